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
local function measured(instrument, values)
  local text = values.price
  local lots, price, refusal = 0
  if text then
    price, refusal = instrument_record.price(instrument, text)
    if refusal then
      return nil, refusal
    end
  end
  refusal = values.rare and stop_orders.price_refusal(instrument, values)
  if refusal then
    return nil, refusal
  end
  if values.quantity then
    lots, refusal = instrument_record.lots(instrument, values.quantity, "quantity")
    if not lots then
      return nil, refusal
    end
    if lots < instrument.quantity_min or lots > instrument.quantity_max then
      return nil, instrument_record.quantity_refusal(instrument, lots)
    end
  end
  return lots, price
end

-- The order as its fields ask for it, not yet taken on; or nil and why not.
function order_entry.draft(tx, values)
  local lots, price = measured(tx.instrument, values)
  if not lots then
    return nil, price
  end
  local order = {
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
    attributes = values.post_only == "true" and { post_only = true } or false,
    priority = false,
    queued = false,
    stored_priority = false,
    touched = false,
    terms = false,
  }
  if values.rare then
    return order_attributes.read(tx, order, values)
  end
  return order
end

function order_entry.level_refusal()
  return reject.new("LEVEL_QUANTITY_TOO_LARGE", "the level's total would be beyond exactness")
end

function order_entry.post_only_refusal(tx, taker)
  if fill_plan.would_trade(tx, taker) then
    return reject.new("POST_ONLY_WOULD_CROSS", "the post_only order would trade at once")
  end
  return nil
end

-- Pauses an order: puts it into the queue `paused` and first on the trigger queue, ends the work of
-- this call, and reports it. Returns its status.
local function pause(tx, order)
  local attributes = order.attributes or {}
  order.attributes = attributes
  attributes.waits, attributes.slice = "paused", nil
  if attributes.trailing_offset then
    attributes.stop_price, attributes.reference_price = nil, nil
  end
  attributes.order_type = order.order_type ~= "limit" and order.order_type or nil
  attributes.time_in_force = order.time_in_force == "ioc" and "ioc" or nil
  attributes.protection_price = order.protection_price
  book.wait(tx, order)
  tx.trigger_queue.first = tx.trigger_queue.first - 1
  tx.trigger_queue[tx.trigger_queue.first] = { paused_id = order.order_id }
  tx.budget_exhausted = true
  order_reports.paused(tx, order)
  return order_record.status(order)
end

-- What becomes of the order after its trades: filled, resting, paused, or canceled. Returns its
-- status.
function order_entry.rest_or_end(tx, order, fills)
  local force, ended = order.time_in_force, fills.ended
  if fills.is_cut then
    return pause(tx, order)
  end
  if order.remaining > 0 and not ended and (force == "gtc" or force == "gtd") then
    book.rest(tx, order)
    return order_record.status(order)
  end
  book.end_order(tx, order)
  local by_quote = order.attributes and order.attributes.quote_units
  if order.remaining == 0 and (not by_quote or fills.quote_spent) then
    return "filled"
  end
  order_reports.canceled(tx, order, ended or force)
  return "canceled"
end

-- A refusal where what is left of an order cannot queue, else nil.
local function rest_refusal(tx, order, left)
  local force = order.time_in_force
  if force ~= "gtc" and force ~= "gtd" then
    return nil
  end
  local slice = order.attributes and order.attributes.display_quantity
  local is_giant = slice and math.max(slice, tx.instrument.largest_order_lots) > tx.lots_safe
  if is_giant or levels.overflows(tx, order.side, order.price, left) then
    return order_entry.level_refusal()
  end
  return nil
end

-- The fills of a new order, after the last rules that can refuse it: post_only, and the exactness
-- of the level it would join. nil and why not.
function order_entry.plan(tx, order)
  local attributes = order.attributes
  local never_takes = (attributes and attributes.post_only) or tx.instrument.status == "post_only"
  local refusal = never_takes and order_entry.post_only_refusal(tx, order)
  if refusal then
    return nil, refusal
  end
  if not order.price then
    pre_trade_checks.protect(tx, order)
  end
  local fills, left = fill_plan.make(tx, order)
  if not fills then
    return nil, left
  end
  if attributes and attributes.quote_units then
    order.quantity, attributes.is_unspent = fills.bought or 0, not fills.quote_spent
    order.remaining = order.quantity
    return fills
  end
  if left == 0 or fills.is_cut then
    return fills
  end
  if order.time_in_force == "fok" then
    return fill_plan.no_fills
  end
  local is_small = left <= tx.lots_safe and tx.instrument.largest_order_lots <= tx.lots_safe
  local is_sure_to_fit = fills.ended or (is_small and not attributes)
  refusal = not is_sure_to_fit and rest_refusal(tx, order, left)
  if refusal then
    return nil, refusal
  end
  return fills
end

-- A refusal while the trigger queue has items, else nil: an order that trades now would take what a
-- paused order is to get, and a stop order would get trade prices from before it was placed.
local function pending_refusal(tx)
  if trigger_queue.has_items(tx) then
    local message = "what earlier orders have led to is being carried out: try again"
    return reject.new("TRIGGERS_PENDING", message)
  end
  return nil
end

-- A refusal while an order of this book is paused, else nil.
function order_entry.paused_refusal(tx)
  local item = trigger_queue.has_items(tx) and tx.trigger_queue[tx.trigger_queue.first]
  return type(item) == "table" and item.paused_id and pending_refusal(tx) or nil
end

-- A refusal of every new order and amend now, else nil.
function order_entry.closed_refusal(tx)
  local is_trading = tx.instrument.status == "trading"
  local refusal = not is_trading and trading_status.closed_refusal(tx.instrument)
  if refusal then
    return refusal
  end
  if tx.expiring then
    return reject.new("EXPIRING", "many orders are expiring: try again")
  end
  if tx.canceling then
    return reject.new("CANCELING", "many orders are being canceled by timers: try again")
  end
  return is_trading and pending_refusal(tx) or nil
end

-- A refusal of a drafted order by the rules of the instrument and of stop orders, else nil.
local function rule_refusal(tx, order)
  local waits = order.attributes and order.attributes.waits
  local refusal = waits and (pending_refusal(tx) or stop_orders.refusal(tx, order))
  if not refusal and tx.instrument.features then
    refusal = pre_trade_checks.rule_refusal(tx, order)
  end
  return refusal or (waits and stop_orders.count_refusal(tx, order)) or nil
end

-- The order that is asked for and its fills, after every check of its terms; nil and why not.
-- Changes nothing.
function order_entry.check_terms(tx, values)
  local unfit = tx.instrument.status ~= "trading" and trading_status.order_refusal(tx, values)
  if unfit then
    return nil, unfit
  end
  local order, invalid = order_entry.draft(tx, values)
  if not order then
    return nil, invalid
  end
  local refusal = rule_refusal(tx, order)
  if refusal then
    return nil, refusal
  end
  if order.attributes and order.attributes.waits then
    return order, fill_plan.no_fills
  end
  local fills, refused = order_entry.plan(tx, order)
  if not fills then
    return nil, refused
  end
  return order, fills
end

-- The same after every check but those of its client_order_id: it comes in time, and the instrument
-- takes orders now.
function order_entry.check(tx, values)
  local refusal = values.rare and validity.lateness_refusal(tx, values)
  local may_be_closed = tx.instrument.status ~= "trading" or tx.trigger_queue
  if not refusal and (may_be_closed or tx.expiring or tx.canceling) then
    refusal = order_entry.closed_refusal(tx)
  end
  if refusal then
    return nil, refusal
  end
  return order_entry.check_terms(tx, values)
end

-- Takes on an order that was found good: it waits, or trades and queues with the rest. Its reply.
function order_entry.accept(tx, order, fills)
  book.register_order(tx, order)
  order_reports.accepted(tx, order)
  if order.attributes and order.attributes.waits then
    book.wait(tx, order)
    return replies.order(tx, order, "open", "[]")
  end
  local fills_json = fills[1] and trades.execute(tx, order, fills) or "[]"
  return replies.order(tx, order, order_entry.rest_or_end(tx, order, fills), fills_json)
end

-- Whether the call has used up a part of what it may do.
local function has_begun(tx)
  return tx.fills_left < limits.fills_per_call_max or #tx.events.accounts > 0
end

-- Whether a plan was refused because of what this call has done before it.
function order_entry.is_for_next_call(tx, refusal)
  return refusal.code == "TOO_MANY_FILLS" and has_begun(tx)
end

-- An order that waited enters the market with its planned fills: it trades and queues like a new
-- one. Where there is no plan it is canceled, and the others of its list stay.
function order_entry.execute_triggered(tx, order, fills)
  if not fills then
    if order.attributes and order.attributes.order_list_id then
      book.add_list_event(tx, order, "failed")
    end
    book.end_order(tx, order)
    return order_reports.canceled(tx, order, "too_large")
  end
  if fills[1] then
    trades.execute(tx, order, fills)
  end
  return order_entry.rest_or_end(tx, order, fills)
end

return order_entry
