-- Another price or quantity for an open order: in its place where it only shrinks, else behind all
-- others of its level.

local book = require("book/book")
local levels = require("book/levels")
local order_reports = require("market_data/order_reports")
local replies = require("market_data/replies")
local fill_plan = require("matching/fill_plan")
local order_entry = require("matching/order_entry")
local order_lists = require("matching/order_lists")
local pre_trade_checks = require("matching/pre_trade_checks")
local stop_orders = require("matching/stop_orders")
local trades = require("matching/trades")
local validity = require("matching/validity")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local idempotency = require("transaction/idempotency")
local target_order = require("transaction/target_order")
local fields = require("values/fields")
local reject = require("values/reject")

local amend_order = { name = "amend_order" }

amend_order.schema = fields.schema({
  "account",
  "client_order_id",
  "order_id",
  "price",
  "quantity",
  "remaining_quantity",
  "stop_price",
  "valid_until_ms",
}, {}, 6)

-- A refusal where an order that has no stop price is to get one, or has one of its own making.
local function stop_price_refusal(order, values)
  local attributes = order.attributes
  local has_one = attributes and attributes.waits and not attributes.trailing_offset
  if values.stop_price and not has_one then
    return reject.new("FIELD_NOT_ALLOWED", "only an order that waits for a stop_price has one")
  end
  return nil
end

-- The order's new { ticks, total, remaining, stop_price }, or nil and why not. Where nothing is to
-- remain the amend ends the order, and its total has no least.
local function amended(tx, order, values)
  local instrument = tx.instrument
  local filled = order.quantity - order.remaining
  local new = { ticks = order.price, total = order.quantity, remaining = order.remaining }
  local refusal = values.rare and stop_price_refusal(order, values)
  if values.price and not order.price then
    refusal = reject.new("FIELD_NOT_ALLOWED", "the order has no price of its own")
  end
  if values.price and not refusal then
    new.ticks, refusal = instrument_record.price(instrument, values.price)
  end
  if values.stop_price and not refusal then
    new.stop_price, refusal = instrument_record.price(instrument, values.stop_price)
  end
  if values.quantity and not refusal then
    new.total, refusal = instrument_record.lots(instrument, values.quantity, "quantity")
  end
  if values.remaining_quantity and not refusal then
    local lots
    lots, refusal =
      instrument_record.lots(instrument, values.remaining_quantity, "remaining_quantity")
    new.total = lots and lots + filled
  end
  local is_resized = values.quantity or values.remaining_quantity
  if is_resized and not refusal and new.total > filled then
    refusal = instrument_record.quantity_refusal(instrument, new.total)
  end
  local display_lots = order.attributes and order.attributes.display_quantity
  if display_lots and not refusal and new.total > order.quantity then
    refusal = instrument_record.display_refusal(instrument, new.total, display_lots)
  end
  if refusal then
    return nil, refusal
  end
  new.remaining = new.total - filled
  return new
end

-- A refusal where an amend names no change or two quantities, else nil.
local function amend_refusal(values)
  if values.quantity and values.remaining_quantity then
    return reject.new("FIELD_NOT_ALLOWED", "give quantity or remaining_quantity, not both")
  end
  local quantity = values.quantity or values.remaining_quantity
  if not values.price and not quantity and not values.stop_price then
    local names = "price, stop_price, quantity or remaining_quantity"
    return reject.new("MISSING_FIELD", "missing field " .. names)
  end
  return nil
end

-- Ends an order of which nothing is to remain, as cancel_order does.
local function finish(tx, order)
  book.remove(tx, order)
  order_reports.canceled(tx, order, "requested")
  return replies.order(tx, order, "canceled", "[]")
end

-- Shrinks an order where it stands.
local function shrink(tx, order, new)
  book.shrink(tx, order, order.remaining - new.remaining)
  order.quantity, order.terms = new.total, false
  order_reports.amended(tx, order)
  return replies.order(tx, order, order_record.status(order), "[]")
end

-- Returns the fills of an order that leaves its place in the queue, after the last rules that can
-- refuse it; or nil and why not.
local function plan_requeue(tx, order, new)
  local taker = {
    side = order.side,
    price = new.ticks,
    remaining = new.remaining,
    account = order.account,
    time_in_force = order.time_in_force,
    attributes = order.attributes,
  }
  local status, is_post_only = tx.instrument.status, order.attributes and order.attributes.post_only
  if is_post_only and status == "auction" then
    return reject.with("INSTRUMENT_AUCTION", "an auction takes no post_only orders anew")
  end
  local never_takes = is_post_only or status == "post_only"
  local refusal = never_takes and order_entry.post_only_refusal(tx, taker)
  if refusal then
    return nil, refusal
  end
  local fills, left = fill_plan.make(tx, taker)
  if not fills then
    return nil, left
  end
  local stays_in_level = new.ticks == order.price and order_record.shown(order) or 0
  local rests = left > 0 and not fills.ended and not fills.is_cut
  if rests and levels.overflows(tx, order.side, new.ticks, left - stays_in_level) then
    return nil, order_entry.level_refusal()
  end
  return fills
end

-- Lifts out whom an order would end by trading at its new price: the others of its list.
local function lift_others(tx, order, new)
  local is_listed = order.attributes and order.attributes.order_list_id
  if not is_listed or not fill_plan.would_trade(tx, { side = order.side, price = new.ticks }) then
    return {}
  end
  return order_lists.remove_others_tentatively(tx, order)
end

-- Gives an order a new price or a larger quantity: it leaves the queue, trades where it now
-- crosses, and queues anew with what is left.
local function requeue(tx, order, new)
  local others = lift_others(tx, order, new)
  local fills, refused = plan_requeue(tx, order, new)
  if not fills then
    order_lists.put_back(tx, others)
    return nil, refused
  end
  order_lists.end_removed(tx, others)
  book.remove_from_queue(tx, order)
  order.price, order.quantity, order.remaining, order.terms =
    new.ticks, new.total, new.remaining, false
  book.assign_priority(tx, order)
  order_reports.amended(tx, order)
  local fills_json = fills[1] and trades.execute(tx, order, fills) or "[]"
  local status = order_entry.rest_or_end(tx, order, fills)
  return replies.order(tx, order, status, fills_json)
end

-- Changes an order that waits for its price: it goes on waiting, with its priority unless its stop
-- price is another.
local function amend_waiting(tx, order, new)
  local attributes = order.attributes
  local moves = new.stop_price and new.stop_price ~= attributes.stop_price
  if moves then
    book.remove_from_queue(tx, order)
  end
  order.price, order.quantity, order.remaining, order.terms =
    new.ticks, new.total, new.remaining, false
  if moves then
    attributes.stop_price = new.stop_price
    book.assign_priority(tx, order)
    book.wait(tx, order)
  else
    book.change_waiting(tx, order)
  end
  order_reports.amended(tx, order)
  return replies.order(tx, order, "open", "[]")
end

-- A refusal of an amend by the rules about prices, else nil.
local function price_rule_refusal(tx, order, values, new)
  if new.stop_price then
    return stop_orders.would_trigger_refusal(tx, order.attributes.waits, new.stop_price)
  end
  if values.price and not (order.attributes and order.attributes.waits) then
    return pre_trade_checks.band_refusal(tx, new.ticks)
  end
  return nil
end

-- A refusal of an amend by min_notional, else nil. What an entry has filled is worth what it is: an
-- order that has no other quantity may get another price.
local function notional_refusal(tx, order, new)
  if
    not tx.instrument.features
    or (new.total == order.quantity and order_lists.is_armed_by_entry(tx, order))
  then
    return nil
  end
  local stop_price = new.stop_price or (order.attributes and order.attributes.stop_price)
  return pre_trade_checks.notional_refusal(tx, {
    order_type = order.order_type,
    price = new.ticks,
    quantity = new.total,
    attributes = { stop_price = stop_price },
  })
end

-- Whether an amend only takes risk off: it ends the order, or makes it smaller where it is.
local function only_shrinks(order, new)
  if new.remaining <= 0 then
    return true
  end
  local moves = new.stop_price and new.stop_price ~= order.attributes.stop_price
  return new.ticks == order.price and new.remaining < order.remaining and not moves
end

-- The other leg of an oco where an amend changes their quantity, else nil; and a refusal where the
-- quantity is not to be amended.
local function leg_to_resize(tx, order, new)
  if new.total == order.quantity or new.remaining <= 0 then
    return nil
  end
  return order_lists.other_leg(tx, order)
end

-- A refusal where the other leg of an oco cannot have this quantity, else nil.
local function resize_refusal(tx, leg, total)
  local refusal = notional_refusal(tx, leg, { ticks = leg.price, total = total })
  local lots = total - leg.remaining
  if refusal or lots <= 0 or leg.attributes.waits then
    return refusal
  end
  return levels.overflows(tx, leg.side, leg.price, lots) and order_entry.level_refusal() or nil
end

-- A refusal of an amend by the rules of server and instrument, else nil. None keeps an order from
-- being ended.
local function rule_refusal(tx, order, values, new)
  if new.remaining <= 0 then
    return nil
  end
  return (not only_shrinks(order, new) and validity.memory_refusal(tx))
    or price_rule_refusal(tx, order, values, new)
    or notional_refusal(tx, order, new)
end

-- How an amend is carried out.
local function way_of_change(order, new)
  if new.remaining <= 0 then
    return finish
  end
  if order.attributes and order.attributes.waits then
    return amend_waiting
  end
  return only_shrinks(order, new) and shrink or requeue
end

-- A refusal of an amend by the queue an order waits in, else nil.
local function waiting_refusal(waits)
  if waits == "dormant" then
    return reject.new("ORDER_NOT_ARMED", "the order is not armed yet")
  end
  if waits == "paused" then
    return reject.new("TRIGGERS_PENDING", "the order is still trading: try again")
  end
  return nil
end

-- amend_order: changes price or quantity of an open order, which keeps its id. One that asks for no
-- more than is filled ends it. The quantity of both orders of an oco changes together.
-- Fields: order_id, or account and client_order_id; price; quantity or remaining_quantity;
-- stop_price of an order that waits for it; valid_until_ms. Reply as place_order.
-- Rejects: as place_order, and UNKNOWN_ORDER, ORDER_NOT_ARMED, ORDER_LIST_QUANTITY,
-- OUT_OF_MEMORY.
function amend_order.run(tx, values)
  local refusal = amend_refusal(values)
  if refusal then
    return nil, refusal
  end
  local order, missing, reply_key, again =
    target_order.to_change(tx, "amend_order", values, amend_order.schema)
  if not order then
    return again, missing
  end
  refusal = (values.rare and validity.lateness_refusal(tx, values))
    or order_entry.closed_refusal(tx)
  if refusal then
    return nil, refusal
  end
  refusal = order.attributes and waiting_refusal(order.attributes.waits)
  if refusal then
    return nil, refusal
  end
  local new, invalid = amended(tx, order, values)
  if not new then
    return nil, invalid
  end
  local other_leg, fixed = leg_to_resize(tx, order, new)
  refusal = fixed
    or rule_refusal(tx, order, values, new)
    or (other_leg and resize_refusal(tx, other_leg, new.total))
  if refusal then
    return nil, refusal
  end
  local reply, refused = way_of_change(order, new)(tx, order, new)
  if not reply then
    return nil, refused
  end
  if other_leg and other_leg.queued then
    order_lists.resize(tx, other_leg, new.total)
  end
  return idempotency.store_change_reply(tx, order, values, reply_key, reply)
end

return amend_order
