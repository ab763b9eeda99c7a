-- A new order: from its fields through every check to its trades and its place in the queue. What
-- waited enters the market by the same way.
--
-- Everything that can refuse an order is looked at before anything happens: its fields, the rules
-- of the instrument, the plan of its fills, the level it would join. What follows cannot fail.
--
-- An order that has more to trade than one call may is paused: it waits outside the book, in the
-- queue `paused`, and the next call goes on with it before anything else (triggers.lua). Until then
-- nobody else can trade: an order that came later would take what this one is to get.

local book = require("book/book")
local levels = require("book/levels")
local order_reports = require("market_data/order_reports")
local replies = require("market_data/replies")
local fill_plan = require("matching/fill_plan")
local order_attributes = require("matching/order_attributes")
local pre_trade_checks = require("matching/pre_trade_checks")
local stop_orders = require("matching/stop_orders")
local trades = require("matching/trades")
local trading_status = require("matching/trading_status")
local trigger_queue = require("matching/trigger_queue")
local validity = require("matching/validity")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local limits = require("values/limits")
local order_types = require("values/order_types")
local reject = require("values/reject")

local order_entry = {}

-- The price and quantity asked for, in ticks and lots; nil and why not. A market order has no price
-- and one by quote_quantity no quantity yet.
local function measured(record, values)
  local text = values.price
  local lots, price, refusal = 0
  if text then
    price, refusal = instrument_record.price(record, text)
    if refusal then
      return nil, refusal
    end
  end
  refusal = values.rare and stop_orders.price_refusal(record, values)
  if refusal then
    return nil, refusal
  end
  if values.quantity then
    lots, refusal = instrument_record.lots(record, values.quantity, "quantity")
    if not lots then
      return nil, refusal
    end
    if lots < record.quantity_min or lots > record.quantity_max then
      return nil, instrument_record.quantity_refusal(record, lots)
    end
  end
  return lots, price
end

-- The order as its fields ask for it, not yet taken on; or nil and why not.
function order_entry.draft(b, values)
  local lots, price = measured(b.instrument, values)
  if not lots then
    return nil, price
  end
  local o = {
    order_id = false,
    side = values.side,
    order_type = values.order_type,
    time_in_force = values.time_in_force or order_types.time_in_force(values),
    price = price,
    quantity = lots,
    remaining = lots,
    timestamp_ms = false,
    account = values.account,
    client_order_id = values.client_order_id,
    extras = values.post_only == "true" and { post_only = true } or false,
    priority = false,
    queued = false,
    stored_priority = false,
    touched = false,
    terms = false,
  }
  if values.rare then
    return order_attributes.read(b, o, values)
  end
  return o
end

function order_entry.level_refusal()
  return reject.new("LEVEL_QUANTITY_TOO_LARGE", "the level's total would be beyond exactness")
end

function order_entry.post_only_refusal(b, taker)
  if fill_plan.would_trade(b, taker) then
    return reject.new("POST_ONLY_WOULD_CROSS", "the post_only order would trade at once")
  end
  return nil
end

-- Pauses an order: puts it into the queue `paused` and first on the agenda, ends the work of this
-- call, and reports it. Returns its status.
local function pause(b, o)
  local extras = o.extras or {}
  o.extras = extras
  extras.waits, extras.slice = "paused", nil
  if extras.trailing_offset then
    extras.stop_price, extras.reference_price = nil, nil
  end
  extras.order_type = o.order_type ~= "limit" and o.order_type or nil
  extras.time_in_force = o.time_in_force == "ioc" and "ioc" or nil
  extras.protection_price = o.protection_price
  book.wait(b, o)
  b.agenda.first = b.agenda.first - 1
  b.agenda[b.agenda.first] = { paused_id = o.order_id }
  b.is_spent = true
  order_reports.paused(b, o)
  return order_record.status(o)
end

-- What becomes of the order after its trades: filled, resting, paused, or canceled. Returns its
-- status.
function order_entry.settle(b, o, fills)
  local force, ended = o.time_in_force, fills.ended
  if fills.is_cut then
    return pause(b, o)
  end
  if o.remaining > 0 and not ended and (force == "gtc" or force == "gtd") then
    book.enqueue(b, o)
    return order_record.status(o)
  end
  book.close(b, o)
  local by_quote = o.extras and o.extras.quote_units
  if o.remaining == 0 and (not by_quote or fills.is_spent) then
    return "filled"
  end
  order_reports.canceled(b, o, ended or force)
  return "canceled"
end

-- A refusal where what is left of an order cannot queue, else nil.
local function rest_refusal(b, o, left)
  local force = o.time_in_force
  if force ~= "gtc" and force ~= "gtd" then
    return nil
  end
  local slice = o.extras and o.extras.display_quantity
  local is_giant = slice and math.max(slice, b.instrument.largest_order_lots) > b.lots_safe
  if is_giant or levels.overflows(b, o.side, o.price, left) then
    return order_entry.level_refusal()
  end
  return nil
end

-- The fills of a new order, after the last rules that can refuse it: post_only, and the exactness
-- of the level it would join. nil and why not.
function order_entry.plan(b, o)
  local extras = o.extras
  local never_takes = (extras and extras.post_only) or b.instrument.status == "post_only"
  local refusal = never_takes and order_entry.post_only_refusal(b, o)
  if refusal then
    return nil, refusal
  end
  if not o.price then
    pre_trade_checks.protect(b, o)
  end
  local fills, left = fill_plan.make(b, o)
  if not fills then
    return nil, left
  end
  if extras and extras.quote_units then
    o.quantity, extras.is_unspent = fills.bought or 0, not fills.is_spent
    o.remaining = o.quantity
    return fills
  end
  if left == 0 or fills.is_cut then
    return fills
  end
  if o.time_in_force == "fok" then
    return fill_plan.no_fills
  end
  local is_small = left <= b.lots_safe and b.instrument.largest_order_lots <= b.lots_safe
  local is_sure_to_fit = fills.ended or (is_small and not extras)
  refusal = not is_sure_to_fit and rest_refusal(b, o, left)
  if refusal then
    return nil, refusal
  end
  return fills
end

-- A refusal while something is still to be done that came before: who trades now would take what a
-- paused order is to get, and an order that waits would be shown trades from before its time. Else
-- nil.
local function agenda_refusal(b)
  if trigger_queue.has_items(b) then
    local message = "what earlier orders have led to is being carried out: try again"
    return reject.new("TRIGGERS_PENDING", message)
  end
  return nil
end

-- A refusal while an order of this book is paused, else nil.
function order_entry.paused_refusal(b)
  local item = trigger_queue.has_items(b) and b.agenda[b.agenda.first]
  return type(item) == "table" and item.paused_id and agenda_refusal(b) or nil
end

-- A refusal of every new order and amend now, else nil.
function order_entry.closed_refusal(b)
  local is_trading = b.instrument.status == "trading"
  local refusal = not is_trading and trading_status.closed_refusal(b.instrument)
  if refusal then
    return refusal
  end
  if b.expiring then
    return reject.new("EXPIRING", "many orders are expiring: try again")
  end
  if b.canceling then
    return reject.new("CANCELING", "many orders are being canceled by timers: try again")
  end
  return is_trading and agenda_refusal(b) or nil
end

-- A refusal of a drafted order by the rules of the instrument and of stop orders, else nil.
local function rule_refusal(b, o)
  local waits = o.extras and o.extras.waits
  local refusal = waits and (agenda_refusal(b) or stop_orders.refusal(b, o))
  if not refusal and b.instrument.extended then
    refusal = pre_trade_checks.rule_refusal(b, o)
  end
  return refusal or (waits and stop_orders.count_refusal(b, o)) or nil
end

-- The order that is asked for and its fills, after every check of its terms; nil and why not.
-- Changes nothing.
function order_entry.check_terms(b, values)
  local unfit = b.instrument.status ~= "trading" and trading_status.order_refusal(b, values)
  if unfit then
    return nil, unfit
  end
  local o, invalid = order_entry.draft(b, values)
  if not o then
    return nil, invalid
  end
  local refusal = rule_refusal(b, o)
  if refusal then
    return nil, refusal
  end
  if o.extras and o.extras.waits then
    return o, fill_plan.no_fills
  end
  local fills, refused = order_entry.plan(b, o)
  if not fills then
    return nil, refused
  end
  return o, fills
end

-- The same after every check but those of its client_order_id: it comes in time, and the instrument
-- takes orders now.
function order_entry.check(b, values)
  local refusal = values.rare and validity.lateness_refusal(b, values)
  local may_be_closed = b.instrument.status ~= "trading" or b.agenda
  if not refusal and (may_be_closed or b.expiring or b.canceling) then
    refusal = order_entry.closed_refusal(b)
  end
  if refusal then
    return nil, refusal
  end
  return order_entry.check_terms(b, values)
end

-- Takes on an order that was found good: it waits, or trades and queues with the rest. Its reply.
function order_entry.take_on(b, o, fills)
  book.admit(b, o)
  order_reports.accepted(b, o)
  if o.extras and o.extras.waits then
    book.wait(b, o)
    return replies.order(b, o, "open", "[]")
  end
  local fills_json = fills[1] and trades.execute(b, o, fills) or "[]"
  return replies.order(b, o, order_entry.settle(b, o, fills), fills_json)
end

-- Whether the call has used up a part of what it may do.
local function has_begun(b)
  return b.fills_left < limits.fills_per_call_max or #b.events.accounts > 0
end

-- Whether a plan was refused because of what this call has done before it.
function order_entry.is_for_next_call(b, refusal)
  return refusal.code == "TOO_MANY_FILLS" and has_begun(b)
end

-- An order that waited enters the market with its planned fills: it trades and queues like a new
-- one. Where there is no plan it is canceled, and the others of its list stay.
function order_entry.enter(b, o, fills)
  if not fills then
    if o.extras and o.extras.order_list_id then
      book.note(b, o, "failed")
    end
    book.close(b, o)
    return order_reports.canceled(b, o, "too_large")
  end
  if fills[1] then
    trades.execute(b, o, fills)
  end
  return order_entry.settle(b, o, fills)
end

return order_entry
