-- What can happen to an open order at its owner's wish: it is canceled, or amended in its place or
-- to another one.

local book = require("book")
local events = require("events")
local fields = require("fields")
local instrument = require("instrument")
local lists = require("lists")
local matching = require("matching")
local memory = require("memory")
local order = require("order")
local placing = require("placing")
local reject = require("reject")
local replies = require("replies")
local stops = require("stops")
local terms = require("terms")

local changing = {}

local function unknown_order()
  return reject.new("UNKNOWN_ORDER", "there is no such open order")
end

-- The order a command is about, or nil and why not.
function changing.find_order(b, values)
  local order_id = values.order_id
  if not order_id then
    if not values.account or not values.client_order_id then
      return reject.with("MISSING_FIELD", "missing field order_id, or account and client_order_id")
    end
    order_id = book.client_order(b, values.account, values.client_order_id)
  end
  local o = order_id and book.order(b, order_id)
  if not o then
    return nil, unknown_order()
  end
  -- A stranger is not told which orders there are: some wait where nobody sees them.
  if values.account and values.account ~= o.account then
    return nil, unknown_order()
  end
  return o
end

-- The order a command with a client_order_id is about, or nil and why not; then its memo, and the
-- first reply where the command was sent before. A name can pass from an order that is gone to a
-- new one: what is remembered of the old order is no answer about the new.
local function recall_change(b, method_name, values, schema)
  if not values.account then
    return reject.with("MISSING_FIELD", "missing field account")
  end
  local memo_record = memory.memo(method_name, values, schema)
  local again, duplicate = memory.answer_again(b, memo_record)
  if duplicate then
    return nil, duplicate
  end
  local named = again and not memo_record.owned
  local order_id = named and book.client_order(b, values.account, values.client_order_id)
  if again and (not order_id or string.find(again, '"order_id":"' .. order_id .. '"', 1, true)) then
    return nil, nil, nil, again
  end
  local o, refusal = changing.find_order(b, values)
  refusal = refusal or (method_name ~= "cancel_order" and memory.full_refusal(b, memo_record))
  return not refusal and o or nil, refusal, memo_record
end

-- The order a command is about and its memo, or nil and why not, and the first reply.
local function order_to_change(b, method_name, values, schema)
  if values.client_order_id then
    return recall_change(b, method_name, values, schema)
  end
  return changing.find_order(b, values)
end

changing.cancel_schema = fields.schema(
  { "account", "client_order_id", "order_id", "valid_until_ms" },
  {},
  3
)

-- cancel_order: takes an open order out of the book, in every status of the instrument.
-- Fields: order_id, or account and client_order_id; valid_until_ms. Reply: the order and its
-- remaining_quantity.
-- Rejects: UNKNOWN_ORDER, DUPLICATE_CLIENT_ORDER_ID, TOO_LATE, and those of the
-- fields' forms.
function changing.cancel_order(b, values)
  local o, refusal, memo_record, again =
    order_to_change(b, "cancel_order", values, changing.cancel_schema)
  if not o then
    return again, refusal
  end
  refusal = values.rare and terms.lateness_refusal(b, values)
  if refusal then
    return nil, refusal
  end
  book.remove(b, o)
  events.canceled(b, o, "requested")
  return memory.remember_change(b, o, values, memo_record, replies.canceled(b, o))
end

changing.amend_schema = fields.schema({
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
    new.ticks, refusal = instrument.price(record, values.price)
  end
  if values.stop_price and not refusal then
    new.stop_price, refusal = instrument.price(record, values.stop_price)
  end
  if values.quantity and not refusal then
    new.total, refusal = instrument.lots(record, values.quantity, "quantity")
  end
  if values.remaining_quantity and not refusal then
    local lots
    lots, refusal = instrument.lots(record, values.remaining_quantity, "remaining_quantity")
    new.total = lots and lots + filled
  end
  local is_resized = values.quantity or values.remaining_quantity
  if is_resized and not refusal and new.total > filled then
    refusal = instrument.quantity_refusal(record, new.total)
  end
  local display_lots = o.extras and o.extras.display_quantity
  if display_lots and not refusal and new.total > o.quantity then
    refusal = instrument.display_refusal(record, new.total, display_lots)
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
  events.canceled(b, o, "requested")
  return replies.order(b, o, "canceled", "[]")
end

-- Shrinks an order where it stands.
local function shrink(b, o, new)
  book.shrink(b, o, o.remaining - new.remaining)
  o.quantity, o.terms = new.total, false
  events.amended(b, o)
  return replies.order(b, o, order.status(o), "[]")
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
  local refusal = never_takes and placing.post_only_refusal(b, taker)
  if refusal then
    return nil, refusal
  end
  local fills, left = matching.plan(b, taker)
  if not fills then
    return nil, left
  end
  local stays_in_level = new.ticks == o.price and order.shown(o) or 0
  local rests = left > 0 and not fills.ended and not fills.is_cut
  if rests and book.level_overflows(b, o.side, new.ticks, left - stays_in_level) then
    return nil, placing.level_refusal()
  end
  return fills
end

-- Lifts out whom an order would end by trading at its new price: the others of its list.
local function lift_others(b, o, new)
  local is_listed = o.extras and o.extras.order_list_id
  if not is_listed or not matching.would_trade(b, { side = o.side, price = new.ticks }) then
    return {}
  end
  return lists.lift_others(b, o)
end

-- Gives an order a new price or a larger quantity: it leaves the queue, trades where it now
-- crosses, and queues anew with what is left.
local function requeue(b, o, new)
  local others = lift_others(b, o, new)
  local fills, refused = plan_requeue(b, o, new)
  if not fills then
    lists.put_back(b, others)
    return nil, refused
  end
  lists.end_lifted(b, others)
  book.dequeue(b, o)
  o.price, o.quantity, o.remaining, o.terms = new.ticks, new.total, new.remaining, false
  book.prioritize(b, o)
  events.amended(b, o)
  local fills_json = fills[1] and matching.trade(b, o, fills) or "[]"
  local status = placing.settle(b, o, fills)
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
  events.amended(b, o)
  return replies.order(b, o, "open", "[]")
end

-- A refusal of an amend by the rules about prices, else nil.
local function price_rule_refusal(b, o, values, new)
  if new.stop_price then
    return stops.would_trigger_refusal(b, o.extras.waits, new.stop_price)
  end
  if values.price and not (o.extras and o.extras.waits) then
    return terms.band_refusal(b, new.ticks)
  end
  return nil
end

-- A refusal of an amend by min_notional, else nil. What an entry has filled is worth what it is: an
-- order that has no other quantity may get another price.
local function notional_refusal(b, o, new)
  if not b.instrument.extended or (new.total == o.quantity and lists.is_armed_by_entry(b, o)) then
    return nil
  end
  local stop_price = new.stop_price or (o.extras and o.extras.stop_price)
  return terms.notional_refusal(b, {
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
  return lists.other_leg(b, o)
end

-- A refusal where the other leg of an oco cannot have this quantity, else nil.
local function resize_refusal(b, leg, total)
  local refusal = notional_refusal(b, leg, { ticks = leg.price, total = total })
  local lots = total - leg.remaining
  if refusal or lots <= 0 or leg.extras.waits then
    return refusal
  end
  return book.level_overflows(b, leg.side, leg.price, lots) and placing.level_refusal() or nil
end

-- A refusal of an amend by the rules of server and instrument, else nil. None keeps an order from
-- being ended.
local function rule_refusal(b, o, values, new)
  if new.remaining <= 0 then
    return nil
  end
  return (not only_shrinks(o, new) and terms.memory_refusal(b))
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
function changing.amend_order(b, values)
  local refusal = amend_refusal(values)
  if refusal then
    return nil, refusal
  end
  local o, missing, memo_record, again =
    order_to_change(b, "amend_order", values, changing.amend_schema)
  if not o then
    return again, missing
  end
  refusal = (values.rare and terms.lateness_refusal(b, values)) or placing.closed_refusal(b)
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
    lists.resize(b, other_leg, new.total)
  end
  return memory.remember_change(b, o, values, memo_record, reply)
end

-- ---- cancel_all_orders

changing.cancel_all_schema = fields.schema(
  { "account", "session", "side", "valid_until_ms" },
  { "account" },
  1
)

-- The open orders of an account, or of one session of it, by id, oldest first; of one side where
-- that is asked for.
local function ids_to_cancel(b, whose)
  local ids = book.account_order_ids(b, whose.account, whose.session)
  if not whose.side then
    return ids
  end
  book.prefetch_orders(b, ids)
  local found = {}
  for _, order_id in ipairs(ids) do
    if book.side_of(b, order_id) == whose.side then
      found[#found + 1] = order_id
    end
  end
  return found
end

-- Cancels the oldest open orders of { account, session, side }, at most `limit`. Returns their ids
-- and how many are left, as far as book.account_order_ids counts.
function changing.cancel_open(b, whose, limit, reason)
  local ids = ids_to_cancel(b, whose)
  local wanted, canceled = {}, {}
  for i = 1, math.min(#ids, limit) do
    wanted[i] = ids[i]
  end
  book.prefetch_orders(b, wanted)
  for _, order_id in ipairs(wanted) do
    local o = book.order(b, order_id)
    if o then
      book.remove(b, o)
      events.canceled(b, o, reason)
      canceled[#canceled + 1] = order_id
    end
  end
  return canceled, #ids - #wanted
end

-- cancel_all_orders: cancels an account's open orders of this book, or those of one of its
-- sessions, oldest first, as many as one call may.
-- Fields: account; session side valid_until_ms. Reply: account canceled_order_ids canceled_count
-- remaining_count sequence timestamp_ms.
-- Rejects: TOO_LATE, and those of the fields' forms.
function changing.cancel_all_orders(b, values)
  local refusal = values.rare and terms.lateness_refusal(b, values)
  if refusal then
    return nil, refusal
  end
  local canceled, remaining_count = changing.cancel_open(b, values, b.cancels_left, "cancel_all")
  local count = #canceled
  b.cancels_left = b.cancels_left - count
  local ids_json = count > 0 and '"' .. table.concat(canceled, '","') .. '"' or ""
  local reply = string.format(
    '{"account":"%s","canceled_order_ids":[%s],"canceled_count":%.0f,"remaining_count":%.0f,'
      .. '"sequence":%.0f,"timestamp_ms":%s}',
    values.account,
    ids_json,
    count,
    remaining_count,
    book.current_sequence(b),
    b.timestamp_ms
  )
  return reply, nil, { canceled = count, remaining = remaining_count }
end

return changing
