-- The book of one instrument: how it lies in Redis, and what changes an order's place in it.
--
-- In Redis a side is one sorted set with one member an order. The score is the price in ticks,
-- negated for bids, and the member begins with the order's priority padded to 16 digits. Redis
-- sorts equal scores by member, so the set's own order *is* price-time priority on both sides:
-- ZRANGE 0 0 is the next order to trade. Beside each side lies a hash with the total of each
-- level, so that depth costs levels and not orders. What an order is stands in the hash
-- `…:orders` (order_record.lua).
--
-- A level's total must stay an exact integer, yet most orders of a batch are gone again before its
-- end and need not know their level's. So the instrument keeps the largest quantity that queued
-- since its book was last empty: as long as that many orders of that size are exact together, a
-- call only counts differences, and reads the totals that it writes.

local orders = require("book/orders")
local queue = require("book/queue")
local event_stream = require("market_data/event_stream")
local order_reports = require("market_data/order_reports")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")

local book = {}

-- The rules or the status of the instrument have changed: they are stored and reported.
function book.change_rules(tx)
  tx.changed, tx.rules_changed = true, true
  event_stream.instrument_changed(tx)
end

-- The order is not as it was stored. For orders that are not `touched` yet.
local function touch(tx, order)
  tx.changed = true
  order.touched = true
  tx.touched_orders[#tx.touched_orders + 1] = order
end

-- Queues an order with its priority, behind all others of its price. An iceberg shows the slice
-- that is given, or else a whole one.
function book.rest(tx, order, slice)
  local side = tx[order.side]
  local rank = order.price * side.sign
  if not order.touched then
    touch(tx, order)
  end
  order.queued = true
  side.pending[#side.pending + 1] = { order = order, priority = order.priority, rank = rank }
  if side.best_known and not (side.best_price and side.best_price * side.sign <= rank) then
    side.best_price = order.price
  end
  local price, remaining, attributes = order.price, order.remaining, order.attributes
  if attributes and attributes.display_quantity then
    remaining = slice or math.min(attributes.display_quantity, remaining)
    attributes.slice = remaining
    tx.has_icebergs = true
  end
  side.differences[price] = (side.differences[price] or 0) + remaining
  if remaining > tx.instrument.largest_order_lots then
    tx.instrument.largest_order_lots = remaining
  end
end

-- Gives an order the next priority: later than every order's of this book.
function book.assign_priority(tx, order)
  local instrument = tx.instrument
  instrument.last_priority = instrument.last_priority + 1
  order.priority = instrument.last_priority
end

-- An iceberg whose slice was traded shows the next one, behind the others of its level. Everybody
-- else sees a new order: a slice under the old id would tell that the order hides more.
function book.refresh(tx, order)
  order.attributes.displayed_order_id, order.terms = book.new_order_id(tx), false
  book.assign_priority(tx, order)
  book.rest(tx, order, order.attributes.slice)
  order_reports.refreshed(tx, order)
end

-- The next order_id that no order has.
function book.new_order_id(tx)
  local instrument = tx.instrument
  instrument.last_order_id = instrument.last_order_id + 1
  return ("%d"):format(instrument.last_order_id)
end

-- A new order enters the book's care (it may fill at once and never queue): it gets its priority,
-- and its id where it has none yet.
function book.register_order(tx, order)
  local instrument = tx.instrument
  instrument.last_priority = instrument.last_priority + 1
  instrument.open_orders = instrument.open_orders + 1
  local order_id = order.order_id or book.new_order_id(tx)
  order.order_id, order.priority, order.timestamp_ms =
    order_id, instrument.last_priority, tx.timestamp_ms
  tx.orders[order_id] = order
  if order.client_order_id then
    tx.client_orders[orders.client_name(order.account, order.client_order_id)] = order_id
  end
end

local function leave(side, order, price)
  order.queued = false
  if side.best_price == price then
    side.best_known = false
  end
end

function book.count_trailing(tx, account, change)
  local counts = tx.trailing_counts
  if counts then
    counts[account] = (counts[account] or 0) + change
  end
end

-- Counts an order that begins to wait, or ceases to.
local function count_waiting(tx, order, change)
  local features, attributes = instrument_record.extend(tx.instrument), order.attributes
  if attributes.waits == "dormant" then
    features.dormant_orders = features.dormant_orders + change
    return
  end
  features.waiting_orders = features.waiting_orders + change
  if attributes.trailing_offset and attributes.waits ~= "paused" then
    features.trailing_orders = features.trailing_orders + change
    book.count_trailing(tx, order.account, change)
  end
end

-- Takes a waiting order out of its queue.
local function leave_waiting(tx, order)
  count_waiting(tx, order, -1)
  leave(queue.of(tx, order.attributes.waits), order, order_record.queue_price(order))
end

-- Takes an order out of the queue; it keeps its record until it is queued again or closed.
function book.remove_from_queue(tx, order)
  if not order.touched then
    touch(tx, order)
  end
  local side, price, shown, attributes =
    tx[order.side], order.price, order.remaining, order.attributes
  if attributes then
    if attributes.waits then
      return leave_waiting(tx, order)
    end
    shown = attributes.slice or shown
  end
  side.differences[price] = (side.differences[price] or 0) - shown
  leave(side, order, price)
end

-- Queues an order with its priority among those that wait like it, at its place there
-- (order_record.queue_price).
function book.wait(tx, order)
  local attributes = order.attributes
  local side = queue.of(tx, attributes.waits)
  local rank = order_record.queue_price(order) * side.sign
  if not order.touched then
    touch(tx, order)
  end
  order.queued = true
  side.pending[#side.pending + 1] = { order = order, priority = order.priority, rank = rank }
  side.best_known = false
  count_waiting(tx, order, 1)
  if attributes.reference_price then
    tx.trailing_touched = tx.trailing_touched or {}
    tx.trailing_touched[order.order_id] = order
  end
  tx.trigger_queue = tx.trigger_queue or { first = 1 }
end

-- A waiting order changes its terms in its place.
function book.change_waiting(tx, order)
  if not order.touched then
    touch(tx, order)
  end
end

-- Notes what becomes of an order of an order list (traded, triggered, ended; decremented, by so
-- many lots), for the others of it.
function book.add_list_event(tx, order, event, lots)
  tx.list_events = tx.list_events or { first = 1 }
  tx.list_events[#tx.list_events + 1] = { order = order, event = event, lots = lots }
end

-- The order is no longer open, and not in the queue.
function book.end_order(tx, order)
  if not order.touched then
    touch(tx, order)
  end
  tx.instrument.open_orders = tx.instrument.open_orders - 1
  if order.attributes and order.attributes.order_list_id then
    book.add_list_event(tx, order, "ended")
  end
end

-- Takes an order out of the queue for good.
function book.remove(tx, order)
  book.remove_from_queue(tx, order)
  book.end_order(tx, order)
end

-- Takes an order out of the queue as `remove` does, but so that it can be put back. Returns the way
-- back, for `restore`.
--
-- What this call queued may still wait in `pending`, and settling drops from there whatever is not
-- in place by then. So such an order is settled first: in `added` an element stays until more is
-- queued, and counts again as soon as its order is queued again. In the window of what Redis has
-- it stays anyway.
function book.remove_tentatively(tx, order)
  local side = queue.of(tx, order_record.queue_name(order))
  if order.priority ~= order.stored_priority then
    queue.sort_in(tx, side)
  end
  local removed = {
    order = order,
    head = side.head,
    was_touched = order.touched,
    was_changed = tx.changed,
    list_events_length = tx.list_events and #tx.list_events,
  }
  book.remove(tx, order)
  return removed
end

-- Puts a lifted order back in its old place, as if nothing had happened. Only what reads may have
-- run since: it can have moved the start of both lists past the order, read further chunks, settled
-- what was pending, and found another best price. The window only grows at its end, so the start it
-- had is still right; an element may since have been inserted before the order's in `added`, so
-- there the start is looked for from the beginning.
function book.put_back(tx, removed)
  local order = removed.order
  local side = queue.of(tx, order_record.queue_name(order))
  order.queued = true
  if order.attributes and order.attributes.waits then
    count_waiting(tx, order, 1)
  else
    side.differences[order.price] = side.differences[order.price] + order_record.shown(order)
  end
  side.head, side.added_head, side.best_known = removed.head, 1, false
  tx.instrument.open_orders = tx.instrument.open_orders + 1
  tx.changed = removed.was_changed
  if removed.list_events_length then
    tx.list_events[removed.list_events_length + 1] = nil
  else
    tx.list_events = false
  end
  if not removed.was_touched then
    order.touched = false
    tx.touched_orders[#tx.touched_orders] = nil
  end
end

-- Takes traded lots off the slice that an iceberg shows, and those beyond it off its next ones.
-- Returns how much it shows less in its place, and whether a later slice is due there.
local function take_slices(order, lots)
  local attributes, shown = order.attributes, order.attributes.slice
  if lots < shown then
    attributes.slice = shown - lots
    return lots, false
  end
  local begun = (lots - shown) % attributes.display_quantity
  attributes.slice = math.min(attributes.display_quantity, order.remaining + begun) - begun
  return shown, true
end

-- Takes traded quantity off an order in its place. Returns whether a slice of an iceberg is used up
-- and a later one is due: the order is then out of the queue.
function book.reduce(tx, order, lots)
  local side, attributes, shown_less, is_used_up = tx[order.side], order.attributes, lots, false
  if not order.touched then
    touch(tx, order)
  end
  order.remaining = order.remaining - lots
  if attributes and attributes.slice then
    shown_less, is_used_up = take_slices(order, lots)
  end
  side.differences[order.price] = (side.differences[order.price] or 0) - shown_less
  if attributes and attributes.order_list_id then
    book.add_list_event(tx, order, "traded")
  end
  if order.remaining == 0 then
    leave(side, order, order.price)
    book.end_order(tx, order)
  elseif is_used_up then
    leave(side, order, order.price)
    return true
  end
  return false
end

-- Takes quantity off an order that is not traded: an iceberg shows less only where it must.
function book.shrink(tx, order, lots)
  local side, before = tx[order.side], order_record.shown(order)
  if not order.touched then
    touch(tx, order)
  end
  order.remaining = order.remaining - lots
  if order.attributes and order.attributes.waits then
    return
  end
  if order.attributes and order.attributes.slice then
    order.attributes.slice = math.min(order.attributes.slice, order.remaining)
  end
  side.differences[order.price] = (side.differences[order.price] or 0)
    - before
    + order_record.shown(order)
end

return book
