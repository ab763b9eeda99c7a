-- The instrument: what a book's own hash says of it, and whether a price or quantity fits.
--
-- The hash `orderbook:{SEGMENT}:SYMBOL` has the rules as they were defined (decimal text) and the
-- counters of the book, each as one line of text:
--
--   rules   tick_size=0.01 lot_size=0.001 status=trading events_length_max=100000 … epoch=188…
--   state   sequence last_order_id last_trade_id last_priority open_orders largest_order_lots
--           last_price (`-` where there was no trade yet)
--
-- `state` is written last of all by every call that changes the book: its sequence is the mark of a
-- call carried out whole. Rules rarely change, so what a line of them says is remembered.

local decimal = require("values/decimal")
local hints = require("values/hints")
local keys = require("values/keys")
local numbers = require("values/numbers")
local reject = require("values/reject")

local instrument_record = {}

-- The rules that every instrument has, in the field `rules`, and what names its history.
local rule_names = {
  "tick_size",
  "lot_size",
  "min_quantity",
  "max_quantity",
  "status",
  "events_length_max",
  "trades_length_max",
  "book_length_max",
  "epoch",
  "run_id",
  "server_run_id",
}
-- The counters of the book, in the field `state`.
local state_names = {
  "sequence",
  "last_order_id",
  "last_trade_id",
  "last_priority",
  "open_orders",
  "largest_order_lots",
  "last_price",
}
local state_pattern = "^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$"

-- What few instruments use, read only where one of them was ever set (`extended` is 1): rules; then
-- where the circuit breaker and an auction that is being uncrossed stand (trading_status.lua,
-- auction.lua); how many open orders expire, are icebergs, wait for a trade price or are paused,
-- trail one, are not armed yet; how many order lists there are and timers are running; what trades
-- have led to that is still to be carried out; which internal error halted the book, and how many
-- there were (isolation.lua).
local feature_fields = {
  "self_trade_prevention",
  "protection",
  "price_band",
  "min_notional",
  "open_orders_max",
  "iceberg_parts_max",
  "limit_percent",
  "window_ms",
  "breaker_status",
  "breaker_duration_ms",
  "reopen_time_ms",
  "breaker_reference",
  "window_start_ms",
  "uncrossing",
  "halt_reason",
  "internal_errors",
  "gtd_orders",
  "iceberg_orders",
  "waiting_orders",
  "trailing_orders",
  "dormant_orders",
  "order_lists",
  "timers",
  "agenda",
}

local feature_counters = {
  "internal_errors",
  "gtd_orders",
  "iceberg_orders",
  "waiting_orders",
  "trailing_orders",
  "dormant_orders",
  "order_lists",
  "timers",
}

-- The rules of an instrument that uses none of them.
function instrument_record.feature_defaults()
  return {
    self_trade_prevention = "none",
    protection = "0",
    price_band = "0",
    min_notional = "0",
    open_orders_max = "0",
    iceberg_parts_max = "1000",
    limit_percent = "0",
    window_ms = "60000",
    breaker_status = "halted",
    breaker_duration_ms = "0",
    reopen_time_ms = "0",
    breaker_reference = "",
    window_start_ms = "0",
    uncrossing = "",
    halt_reason = "",
    internal_errors = 0,
    gtd_orders = 0,
    iceberg_orders = 0,
    waiting_orders = 0,
    trailing_orders = 0,
    dormant_orders = 0,
    order_lists = 0,
    timers = 0,
    agenda = "",
  }
end

local function load_features(book_key)
  local values = redis.call("HMGET", book_key, unpack(feature_fields))
  local features = instrument_record.feature_defaults()
  for i, name in ipairs(feature_fields) do
    features[name] = values[i] or features[name]
  end
  for _, name in ipairs(feature_counters) do
    features[name] = features[name] + 0
  end
  return features
end

-- The rules and counters of features, made where an instrument begins to.
function instrument_record.extend(instrument)
  instrument.features = instrument.features or instrument_record.feature_defaults()
  return instrument.features
end

-- A notional is price times quantity, a natural (decimal.lua) in units of the last of the decimals
-- that both steps have together. From text: nil where it is no strict decimal text, or finer.
function instrument_record.notional(instrument, text)
  return decimal.parse(text, instrument.price_step.decimals + instrument.quantity_step.decimals)
end

-- Why a text is no notional of the instrument.
function instrument_record.notional_refusal(instrument, name, text)
  if not decimal.split(text) then
    return reject.new("INVALID_NUMBER", hints.number(name, text))
  end
  local decimals = instrument.price_step.decimals + instrument.quantity_step.decimals
  local rule = name .. " must have at most " .. decimals .. " decimals"
  return reject.new("INVALID_NUMBER", rule .. ", those of tick_size and lot_size together")
end

-- A notional as the shortest decimal text.
function instrument_record.notional_text(instrument, notional)
  return decimal.text(notional, instrument.price_step.decimals + instrument.quantity_step.decimals)
end

-- What one lot costs at a price.
function instrument_record.lot_cost(instrument, ticks)
  return decimal.multiply(ticks * instrument.price_step.size, instrument.quantity_step.size)
end

-- Adds what follows from the rules: steps and limits in ticks and lots, and the texts of a call.
function instrument_record.with_steps(instrument)
  instrument.price_step = numbers.step(instrument.tick_size)
  instrument.quantity_step = numbers.step(instrument.lot_size)
  instrument.lots_max = numbers.steps_max(instrument.quantity_step)
  local least, most = instrument.min_quantity, instrument.max_quantity
  instrument.quantity_min = least and numbers.parse(least, instrument.quantity_step) or 1
  instrument.quantity_max = most and numbers.parse(most, instrument.quantity_step)
    or instrument.lots_max
  instrument.ticks_texts, instrument.lots_texts = {}, {}
  instrument.price_texts = instrument.price_step.is_unit and instrument.ticks_texts or {}
  instrument.quantity_texts = instrument.quantity_step.is_unit and instrument.lots_texts or {}
  return instrument
end

-- Ticks as digits: the name of a level. A call meets the same prices again and again, so it
-- remembers this and the texts below.
function instrument_record.ticks_text(instrument, ticks)
  local text = instrument.ticks_texts[ticks]
  if not text then
    text = numbers.integer_text(ticks)
    instrument.ticks_texts[ticks] = text
  end
  return text
end

-- Lots as digits.
function instrument_record.lots_text(instrument, lots)
  local text = instrument.lots_texts[lots]
  if not text then
    text = numbers.integer_text(lots)
    instrument.lots_texts[lots] = text
  end
  return text
end

-- Ticks as decimal text.
function instrument_record.price_text(instrument, ticks)
  local text = instrument.price_texts[ticks]
  if not text then
    text = numbers.text(ticks, instrument.price_step)
    instrument.price_texts[ticks] = text
  end
  return text
end

-- Lots as decimal text.
function instrument_record.quantity_text(instrument, lots)
  local text = instrument.quantity_texts[lots]
  if not text then
    text = numbers.text(lots, instrument.quantity_step)
    instrument.quantity_texts[lots] = text
  end
  return text
end

-- Rules that were read before, by their text. A text always says the same, so this is no state; it
-- is forgotten before it is much.
local rules_max = 1000
local rules_of, rules_count = {}, 0

-- Returns what the field `rules` says, as the metatable of instruments. All calls share it, and
-- none changes it.
local function read_rules(text)
  local rules = {}
  for name, value in text:gmatch("(%S+)=(%S+)") do
    rules[name] = value
  end
  return { __index = instrument_record.with_steps(rules) }
end

local function rules_from(text)
  local rules = rules_of[text]
  if rules then
    return rules
  end
  if rules_count == rules_max then
    rules_of, rules_count = {}, 0
  end
  rules = read_rules(text)
  rules_of[text], rules_count = rules, rules_count + 1
  return rules
end

-- The field `rules` of a record.
function instrument_record.rules_text(instrument)
  local words = {}
  for _, name in ipairs(rule_names) do
    words[#words + 1] = instrument[name] and name .. "=" .. instrument[name]
  end
  return table.concat(words, " ")
end

-- The field `state` of a record, whose book has this sequence.
function instrument_record.state_text(instrument, sequence_text)
  return ("%s %d %d %d %d %d %s"):format(
    sequence_text,
    instrument.last_order_id,
    instrument.last_trade_id,
    instrument.last_priority,
    instrument.open_orders,
    instrument.largest_order_lots,
    instrument.last_price or "-"
  )
end

-- A record is written out because every call makes one, and a table that is made at its size costs
-- half of one that grows.
local function new_record(book_key, rules, state, has_features)
  local names = keys.names(book_key)
  local sequence, last_order_id, last_trade_id, last_priority, open_orders, largest, last_price =
    state:match(state_pattern)
  if not sequence then
    local problem = "DAMAGED the counters of " .. book_key .. " cannot be read: repair the book"
    return error(redis.error_reply(problem), 0)
  end
  local ticks_texts, lots_texts, steps = {}, {}, rules.__index
  return setmetatable({
    key = book_key,
    segment = names.segment,
    symbol = names.symbol,
    sequence = sequence + 0,
    last_order_id = last_order_id + 0,
    last_trade_id = last_trade_id + 0,
    last_priority = last_priority + 0,
    last_price = last_price ~= "-" and last_price or nil,
    open_orders = open_orders + 0,
    largest_order_lots = largest + 0,
    features = has_features and load_features(book_key),
    -- The rules that every command asks for.
    status = steps.status,
    price_step = steps.price_step,
    quantity_step = steps.quantity_step,
    quantity_min = steps.quantity_min,
    quantity_max = steps.quantity_max,
    ticks_texts = ticks_texts,
    lots_texts = lots_texts,
    price_texts = steps.price_step.is_unit and ticks_texts or {},
    quantity_texts = steps.quantity_step.is_unit and lots_texts or {},
  }, rules)
end

-- A book as earlier libraries stored it: every rule and every counter in a field of its own. The
-- next call that changes the book writes it as today's, and takes those fields away.
local function load_old_layout(book_key)
  local values, given = {}, redis.call("HMGET", book_key, unpack(rule_names))
  if not given[1] then
    return nil
  end
  for i, name in ipairs(rule_names) do
    values[name] = given[i] or nil
  end
  values.server_run_id = values.server_run_id or values.run_id
  local counters = redis.call("HMGET", book_key, unpack(state_names))
  for i = 1, #state_names do
    counters[i] = counters[i] or "-"
  end
  local has_features = redis.call("HGET", book_key, "extended") == "1"
  local rules = rules_from(instrument_record.rules_text(values))
  local instrument = new_record(book_key, rules, table.concat(counters, " "), has_features)
  instrument.has_old_layout = true
  return instrument
end

-- The instrument and the state of its book, or nil where it is not defined.
function instrument_record.load(book_key)
  local values = redis.call("HMGET", book_key, "rules", "state", "extended")
  if not values[1] then
    return load_old_layout(book_key)
  end
  return new_record(book_key, rules_from(values[1]), values[2] or "", values[3] == "1")
end

-- The fields of the old layout, which a record that has it no longer needs.
function instrument_record.old_fields()
  local names = { "remembered_replies", unpack(rule_names) }
  for i = 1, #state_names do
    names[#names + 1] = state_names[i]
  end
  return names
end

-- Price text in ticks, or nil and why not.
function instrument_record.price(instrument, text)
  local ticks, problem, canonical = numbers.parse(text, instrument.price_step)
  if problem == "off_step" then
    return reject.with(
      "PRICE_OFF_TICK",
      "price is not a multiple of tick_size " .. instrument.price_step.text
    )
  end
  if not ticks then
    return reject.with("INVALID_NUMBER", hints.number("price", text))
  end
  if ticks == 0 then
    return reject.with("PRICE_NOT_POSITIVE", "price must be above zero")
  end
  if canonical then
    instrument.price_texts[ticks] = text
  end
  return ticks
end

-- Quantity text in lots, unbounded but for exactness, or nil and why not; name is the field's.
function instrument_record.lots(instrument, text, name)
  local lots, problem, canonical = numbers.parse(text, instrument.quantity_step)
  if problem == "off_step" then
    return reject.with(
      "QUANTITY_OFF_LOT",
      name .. " is not a multiple of lot_size " .. instrument.quantity_step.text
    )
  end
  if not lots then
    return reject.with("INVALID_NUMBER", hints.number(name, text))
  end
  if canonical then
    instrument.quantity_texts[lots] = text
  end
  return lots
end

-- A refusal where an order's total is outside the instrument's limits (of which the least is
-- above zero), else nil.
function instrument_record.quantity_refusal(instrument, lots)
  if lots < instrument.quantity_min then
    local least = numbers.text(instrument.quantity_min, instrument.quantity_step)
    return reject.new("QUANTITY_TOO_SMALL", "quantity is below min_quantity " .. least)
  end
  if lots > instrument.quantity_max then
    local most = numbers.text(instrument.quantity_max, instrument.quantity_step)
    return reject.new("QUANTITY_TOO_LARGE", "quantity is above max_quantity " .. most)
  end
  return nil
end

-- A refusal where an iceberg of so many lots would show too little of them at a time, else nil: who
-- takes it meets one part after the other.
function instrument_record.display_refusal(instrument, lots, display_lots)
  local parts_max = (instrument.features or instrument_record.feature_defaults()).iceberg_parts_max
  if display_lots < instrument.quantity_min then
    local least = numbers.text(instrument.quantity_min, instrument.quantity_step)
    local message = "display_quantity is below min_quantity " .. least
    return reject.new("INVALID_DISPLAY_QUANTITY", message)
  end
  if decimal.compare(lots, decimal.multiply(display_lots, parts_max + 0)) > 0 then
    local message = "quantity is more than " .. parts_max .. " times display_quantity"
    return reject.new("INVALID_DISPLAY_QUANTITY", message .. " (iceberg_parts_max)")
  end
  return nil
end

local function add_fields(list, names, from)
  for _, name in ipairs(names) do
    local value = from[name]
    if value then
      list[#list + 1] = name
      list[#list + 1] = type(value) == "number" and numbers.integer_text(value) or value
    end
  end
end

-- The rules as field, value, … for HSET.
function instrument_record.rule_pairs(instrument)
  local list = { "symbol", instrument.symbol, "rules", instrument_record.rules_text(instrument) }
  if instrument.features then
    list[#list + 1] = "extended"
    list[#list + 1] = "1"
    add_fields(list, feature_fields, instrument.features)
  end
  return list
end

return instrument_record
