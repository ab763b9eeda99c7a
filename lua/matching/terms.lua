-- What an order may ask beyond the common: its rare fields read and checked, and the rules of the
-- instrument that few instruments have.
--
-- Nothing here is looked at for an order without rare fields on an instrument without such rules:
-- what few use costs nobody else.

local orders = require("book/orders")
local queue = require("book/queue")
local stp_groups = require("book/stp_groups")
local timers = require("book/timers")
local last_price = require("matching/last_price")
local stop_orders = require("matching/stop_orders")
local instrument_record = require("records/instrument_record")
local server = require("server/server")
local decimal = require("values/decimal")
local numbers = require("values/numbers")
local reject = require("values/reject")
local sides = require("values/sides")

local terms = {}

-- What an order type needs and what it may have besides; of its own, that is. Those that need no
-- price do not rest.
local order_types = {
  limit = { needs = { "price" }, may = { display_quantity = true, post_only = true } },
  market = { needs = {}, may = { protection = true, quote_quantity = true } },
  stop = { needs = { "stop_price" }, may = { protection = true } },
  stop_limit = { needs = { "price", "stop_price" }, may = {} },
  take_profit = { needs = { "stop_price" }, may = { protection = true } },
  take_profit_limit = { needs = { "price", "stop_price" }, may = {} },
  trailing_stop = { needs = { "trailing_offset" }, may = { protection = true } },
}
local fields_of_types = {
  "price",
  "stop_price",
  "trailing_offset",
  "display_quantity",
  "post_only",
  "protection",
  "quote_quantity",
}

-- The time in force asked for, or the one an order of this type has.
function terms.time_in_force(values)
  local is_priced = order_types[values.order_type].needs[1] == "price"
  return values.time_in_force or (is_priced and "gtc" or "ioc")
end

local function missing_refusal(values, kind, force)
  for _, name in ipairs(kind.needs) do
    if not values[name] then
      return reject.new("MISSING_FIELD", "missing field " .. name)
    end
  end
  if force == "gtd" and not values.expire_time_ms then
    return reject.new("MISSING_FIELD", "missing field expire_time_ms")
  end
  if not values.quantity and not values.quote_quantity then
    return reject.new("MISSING_FIELD", "missing field quantity")
  end
  return nil
end

-- Why fields and time in force do not go together, or nil.
local function force_problem(values, kind, force)
  local rests = force == "gtc" or force == "gtd"
  if rests and kind.needs[1] ~= "price" then
    return "an order without a price cannot be gtc or gtd"
  end
  if not rests and values.post_only == "true" then
    return "post_only goes with limit gtc and gtd orders only"
  end
  if not rests and values.display_quantity then
    return "display_quantity goes with limit gtc and gtd orders only"
  end
  if values.expire_time_ms and force ~= "gtd" then
    return "expire_time_ms goes with gtd orders only"
  end
  if values.quote_quantity and (values.quantity or force == "fok") then
    return "quote_quantity goes with market ioc orders without a quantity only"
  end
  return nil
end

-- Whether a command is of the kind that nearly all are, whose fields go together.
function terms.is_common(values)
  return values.order_type == "limit"
    and not values.rare
    and not values.post_only
    and values.price
    and values.quantity
    and values.time_in_force ~= "gtd"
end

-- A refusal where an order's fields do not go together, else nil. What is missing comes before what
-- is too much.
function terms.combination_refusal(values)
  if values.protection and numbers.percent(values.protection) == 0 then
    return reject.new("INVALID_VALUE", "protection must be above zero")
  end
  local kind, force = order_types[values.order_type], terms.time_in_force(values)
  local refusal = missing_refusal(values, kind, force)
  if refusal then
    return refusal
  end
  for _, name in ipairs(fields_of_types) do
    local given = values[name] and not (name == "post_only" and values[name] == "false")
    local fits = kind.may[name] or kind.needs[1] == name or kind.needs[2] == name
    if given and not fits then
      local article = values.order_type .. " order has no " .. name
      return reject.new("FIELD_NOT_ALLOWED", "a " .. article)
    end
  end
  local problem = force_problem(values, kind, force)
  if problem then
    return reject.new("FIELD_NOT_ALLOWED", problem)
  end
  return nil
end

-- A refusal where a command comes too late, else nil.
function terms.lateness_refusal(b, values)
  if values.valid_until_ms and b.now_ms > values.valid_until_ms + 0 then
    return reject.new("TOO_LATE", "valid_until_ms has passed")
  end
  return nil
end

-- A refusal of what could add risk while the server's memory is full, else nil: see server.lua.
function terms.memory_refusal(b)
  if server.is_memory_full(b.now_ms) then
    local message = "the server's memory is full: only what takes risk off or keeps it is done"
    return reject.new("OUT_OF_MEMORY", message)
  end
  return nil
end

local function read_quote(b, extras, text)
  local units = instrument_record.notional(b.instrument, text)
  if not units then
    return nil, instrument_record.notional_refusal(b.instrument, "quote_quantity", text)
  end
  if units == 0 then
    return reject.with("QUANTITY_TOO_SMALL", "quote_quantity must be above zero")
  end
  extras.quote_units = units
  extras.quote_quantity = instrument_record.notional_text(b.instrument, units)
  return extras
end

local function read_display(b, extras, o, text)
  local lots, refusal = instrument_record.lots(b.instrument, text, "display_quantity")
  if not lots then
    return nil, refusal
  end
  if lots == 0 or lots > o.quantity then
    return reject.with("INVALID_DISPLAY_QUANTITY", "display_quantity must be within quantity")
  end
  refusal = instrument_record.display_refusal(b.instrument, o.quantity, lots)
  if refusal then
    return nil, refusal
  end
  extras.display_quantity = lots
  return extras
end

local function read_expiry(b, extras, text)
  extras.expire_time_ms = text + 0
  if extras.expire_time_ms <= b.now_ms then
    return reject.with("EXPIRE_TIME_PASSED", "expire_time_ms is not in the future")
  end
  return extras
end

-- An order is placed with a session only while the session's timer runs: so none outlives it.
local function read_session(b, extras, o, text)
  if not timers.time_ms(b, o.account, text) then
    return reject.with("SESSION_NOT_ARMED", "the session has no timer: send cancel_all_after first")
  end
  extras.session = text
  return extras
end

local function read_group(b, extras, o, text)
  if stp_groups.of(b, o.account) ~= text then
    return reject.with("NOT_IN_STP_GROUP", "no operator has put the account into this stp_group")
  end
  extras.stp_group = text
  return extras
end

-- Adds the rare terms to a drafted order; nil and why not.
function terms.read(b, o, values)
  local extras = o.extras or {}
  local read, refusal = true, nil
  o.extras = extras
  if values.stop_price or values.trailing_offset then
    stop_orders.read(b, o, values)
  end
  if values.quote_quantity then
    read, refusal = read_quote(b, extras, values.quote_quantity)
  end
  if read and values.display_quantity then
    read, refusal = read_display(b, extras, o, values.display_quantity)
  end
  if read and values.expire_time_ms then
    read, refusal = read_expiry(b, extras, values.expire_time_ms)
  end
  if read and values.session then
    read, refusal = read_session(b, extras, o, values.session)
  end
  if read and values.stp_group then
    read, refusal = read_group(b, extras, o, values.stp_group)
  end
  if not read then
    return nil, refusal
  end
  extras.self_trade_prevention = values.self_trade_prevention
  extras.protection = values.protection and numbers.percent_text(values.protection)
  return o
end

-- ---- the instrument's rules

-- A refusal where a limit price is too far from the last trade's, else nil.
function terms.band_refusal(b, price)
  local record = b.instrument
  local parts = record.extended and numbers.percent(record.extended.price_band) or 0
  if parts == 0 or not record.last_price then
    return nil
  end
  local last = last_price.measured(record, record.last_price)
  if not last_price.is_within(last, price, parts) then
    return reject.new("PRICE_OUT_OF_BAND", "price is outside the band around the last price")
  end
  return nil
end

-- A refusal where an order { order_type, price, quantity, extras } is worth too little, else nil.
function terms.notional_refusal(b, o)
  local record = b.instrument
  local least = instrument_record.notional(record, record.extended.min_notional)
  if least == 0 then
    return nil
  end
  local quote_units = o.extras and o.extras.quote_units
  local price = o.price or (o.extras and o.extras.stop_price)
  if o.order_type == "market" then
    price = queue.best_price(b, sides.opposite[o.side])
  end
  if o.order_type == "trailing_stop" or (not quote_units and not price) then
    return nil
  end
  local notional = quote_units
    or decimal.multiply(instrument_record.lot_cost(record, price), o.quantity)
  if decimal.compare(notional, least) < 0 then
    return reject.new("NOTIONAL_TOO_SMALL", "price times quantity is below min_notional")
  end
  return nil
end

-- A refusal where an account may not place so many orders more, else nil.
function terms.open_orders_refusal(b, account, count)
  local most = (b.instrument.extended or {}).open_orders_max or "0"
  if most + 0 == 0 then
    return nil
  end
  if orders.count_open(b, account) + count > most + 0 then
    return reject.new("TOO_MANY_OPEN_ORDERS", "the account has open_orders_max open orders")
  end
  return nil
end

-- A refusal of a new order by the rules about prices that few instruments have, else nil. The price
-- band is for limit orders: a stop order is about a market that has moved.
function terms.price_refusal(b, o)
  return o.order_type == "limit" and terms.band_refusal(b, o.price) or terms.notional_refusal(b, o)
end

-- Whether an order of this type can be open at the end of its command. What cannot takes nobody's
-- place, so that an account with open_orders_max of them can still trade itself flat. A paused
-- order is open until the next call; it is not counted as one that stays.
function terms.can_stay_open(order_type, time_in_force)
  local waits = order_type ~= "limit" and order_type ~= "market"
  return waits or time_in_force == "gtc" or time_in_force == "gtd"
end

-- A refusal of a new order by the rules that few instruments have, else nil.
function terms.rule_refusal(b, o)
  local refusal = terms.price_refusal(b, o)
  if refusal or not terms.can_stay_open(o.order_type, o.time_in_force) then
    return refusal
  end
  return terms.open_orders_refusal(b, o.account, 1)
end

-- Gives a market order the price that its protection means now. One that is paused has it already.
function terms.protect(b, o)
  if o.extras and o.extras.waits == "paused" then
    o.protection_price = o.extras.protection_price
    return
  end
  local extended = b.instrument.extended
  local text = o.extras and o.extras.protection or (extended and extended.protection)
  local parts = text and numbers.percent(text) or 0
  local best = parts > 0 and queue.best_price(b, sides.opposite[o.side])
  if not best then
    return
  end
  local width = numbers.fraction(best, parts)
  o.protection_price = o.side == "buy" and best + width or best - width
end

return terms
