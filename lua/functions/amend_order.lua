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
local function stop_price_refusal(o, values)
  local extras = o.extras
  local has_one = extras and extras.waits and not extras.trailing_offset
  if values.stop_price and not has_one then
    return reject.new("FIELD_NOT_ALLOWED", "only an order that waits for a stop_price has one")
  end
  return nil
end

-- The order's new { ticks, total, remaining, stop_price }, or nil and why not. Where nothing is to
-- remain the amend ends the order, and its total has no least.
local function amended(b, o, values)
  local record = b.instrument
  local filled = o.quantity - o.remaining
  local new = { ticks = o.price, total = o.quantity, remaining = o.remaining }
  local refusal = values.rare and stop_price_refusal(o, values)
  if values.price and not o.price then
    refusal = reject.new("FIELD_NOT_ALLOWED", "the order has no price of its own")
  end
  if values.price and not refusal then
    new.ticks, refusal = instrument_record.price(record, values.price)
  end
  if values.stop_price and not refusal then
    new.stop_price, refusal = instrument_record.price(record, values.stop_price)
  end
  if values.quantity and not refusal then
    new.total, refusal = instrument_record.lots(record, values.quantity, "quantity")
  end
  if values.remaining_quantity and not refusal then
    local lots
    lots, refusal = instrument_record.lots(record, values.remaining_quantity, "remaining_quantity")
    new.total = lots and lots + filled
  end
  local is_resized = values.quantity or values.remaining_quantity
  if is_resized and not refusal and new.total > filled then
    refusal = instrument_record.quantity_refusal(record, new.total)
  end
  local display_lots = o.extras and o.extras.display_quantity
  if display_lots and not refusal and new.total > o.quantity then
    refusal = instrument_record.display_refusal(record, new.total, display_lots)
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
local function finish(b, o)
  book.remove(b, o)
  order_reports.canceled(b, o, "requested")
  return replies.order(b, o, "canceled", "[]")
end

-- Shrinks an order where it stands.
local function shrink(b, o, new)
  book.shrink(b, o, o.remaining - new.remaining)
  o.quantity, o.terms = new.total, false
  order_reports.amended(b, o)
  return replies.order(b, o, order_record.status(o), "[]")
end

-- The fills of an order that is to queue anew, after the last rules that can refuse it; nil and why
-- not.
local function plan_requeue(b, o, new)
  local taker = {
    side = o.side,
    price = new.ticks,
    remaining = new.remaining,
    account = o.account,
    time_in_force = o.time_in_force,
    extras = o.extras,
  }
  local status, is_post_only = b.instrument.status, o.extras and o.extras.post_only
  if is_post_only and status == "auction" then
    return reject.with("INSTRUMENT_AUCTION", "an auction takes no post_only orders anew")
  end
  local never_takes = is_post_only or status == "post_only"
  local refusal = never_takes and order_entry.post_only_refusal(b, taker)
  if refusal then
    return nil, refusal
  end
  local fills, left = fill_plan.make(b, taker)
  if not fills then
    return nil, left
  end
  local stays_in_level = new.ticks == o.price and order_record.shown(o) or 0
  local rests = left > 0 and not fills.ended and not fills.is_cut
  if rests and levels.overflows(b, o.side, new.ticks, left - stays_in_level) then
    return nil, order_entry.level_refusal()
  end
  return fills
end

-- Lifts out whom an order would end by trading at its new price: the others of its list.
local function lift_others(b, o, new)
  local is_listed = o.extras and o.extras.order_list_id
  if not is_listed or not fill_plan.would_trade(b, { side = o.side, price = new.ticks }) then
    return {}
  end
  return order_lists.lift_others(b, o)
end

-- Gives an order a new price or a larger quantity: it leaves the queue, trades where it now
-- crosses, and queues anew with what is left.
local function requeue(b, o, new)
  local others = lift_others(b, o, new)
  local fills, refused = plan_requeue(b, o, new)
  if not fills then
    order_lists.put_back(b, others)
    return nil, refused
  end
  order_lists.end_lifted(b, others)
  book.dequeue(b, o)
  o.price, o.quantity, o.remaining, o.terms = new.ticks, new.total, new.remaining, false
  book.prioritize(b, o)
  order_reports.amended(b, o)
  local fills_json = fills[1] and trades.execute(b, o, fills) or "[]"
  local status = order_entry.settle(b, o, fills)
  return replies.order(b, o, status, fills_json)
end

-- Changes an order that waits for its price: it goes on waiting, with its priority unless its stop
-- price is another.
local function amend_waiting(b, o, new)
  local extras = o.extras
  local moves = new.stop_price and new.stop_price ~= extras.stop_price
  if moves then
    book.dequeue(b, o)
  end
  o.price, o.quantity, o.remaining, o.terms = new.ticks, new.total, new.remaining, false
  if moves then
    extras.stop_price = new.stop_price
    book.prioritize(b, o)
    book.wait(b, o)
  else
    book.change_waiting(b, o)
  end
  order_reports.amended(b, o)
  return replies.order(b, o, "open", "[]")
end

-- A refusal of an amend by the rules about prices, else nil.
local function price_rule_refusal(b, o, values, new)
  if new.stop_price then
    return stop_orders.would_trigger_refusal(b, o.extras.waits, new.stop_price)
  end
  if values.price and not (o.extras and o.extras.waits) then
    return pre_trade_checks.band_refusal(b, new.ticks)
  end
  return nil
end

-- A refusal of an amend by min_notional, else nil. What an entry has filled is worth what it is: an
-- order that has no other quantity may get another price.
local function notional_refusal(b, o, new)
  if
    not b.instrument.extended or (new.total == o.quantity and order_lists.is_armed_by_entry(b, o))
  then
    return nil
  end
  local stop_price = new.stop_price or (o.extras and o.extras.stop_price)
  return pre_trade_checks.notional_refusal(b, {
    order_type = o.order_type,
    price = new.ticks,
    quantity = new.total,
    extras = { stop_price = stop_price },
  })
end

-- Whether an amend only takes risk off: it ends the order, or makes it smaller where it is.
local function only_shrinks(o, new)
  if new.remaining <= 0 then
    return true
  end
  local moves = new.stop_price and new.stop_price ~= o.extras.stop_price
  return new.ticks == o.price and new.remaining < o.remaining and not moves
end

-- The other leg of an oco where an amend changes their quantity, else nil; and a refusal where the
-- quantity is not to be amended.
local function leg_to_resize(b, o, new)
  if new.total == o.quantity or new.remaining <= 0 then
    return nil
  end
  return order_lists.other_leg(b, o)
end

-- A refusal where the other leg of an oco cannot have this quantity, else nil.
local function resize_refusal(b, leg, total)
  local refusal = notional_refusal(b, leg, { ticks = leg.price, total = total })
  local lots = total - leg.remaining
  if refusal or lots <= 0 or leg.extras.waits then
    return refusal
  end
  return levels.overflows(b, leg.side, leg.price, lots) and order_entry.level_refusal() or nil
end

-- A refusal of an amend by the rules of server and instrument, else nil. None keeps an order from
-- being ended.
local function rule_refusal(b, o, values, new)
  if new.remaining <= 0 then
    return nil
  end
  return (not only_shrinks(o, new) and validity.memory_refusal(b))
    or price_rule_refusal(b, o, values, new)
    or notional_refusal(b, o, new)
end

-- How an amend is carried out.
local function way_of_change(o, new)
  if new.remaining <= 0 then
    return finish
  end
  if o.extras and o.extras.waits then
    return amend_waiting
  end
  return only_shrinks(o, new) and shrink or requeue
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
function amend_order.run(b, values)
  local refusal = amend_refusal(values)
  if refusal then
    return nil, refusal
  end
  local o, missing, memo_record, again =
    target_order.to_change(b, "amend_order", values, amend_order.schema)
  if not o then
    return again, missing
  end
  refusal = (values.rare and validity.lateness_refusal(b, values)) or order_entry.closed_refusal(b)
  if refusal then
    return nil, refusal
  end
  refusal = o.extras and waiting_refusal(o.extras.waits)
  if refusal then
    return nil, refusal
  end
  local new, invalid = amended(b, o, values)
  if not new then
    return nil, invalid
  end
  local other_leg, fixed = leg_to_resize(b, o, new)
  refusal = fixed
    or rule_refusal(b, o, values, new)
    or (other_leg and resize_refusal(b, other_leg, new.total))
  if refusal then
    return nil, refusal
  end
  local reply, refused = way_of_change(o, new)(b, o, new)
  if not reply then
    return nil, refused
  end
  if other_leg and other_leg.queued then
    order_lists.resize(b, other_leg, new.total)
  end
  return idempotency.remember_change(b, o, values, memo_record, reply)
end

return amend_order
