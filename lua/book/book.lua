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

-- The instrument's rules or status are others: they are written, and told.
function book.change_rules(b)
  b.changed, b.rules_changed = true, true
  event_stream.instrument_changed(b)
end

-- The order is not as it was stored. For orders that are not `touched` yet.
local function touch(b, o)
  b.changed = true
  o.touched = true
  b.touched_orders[#b.touched_orders + 1] = o
end

-- Queues an order with its priority, behind all others of its price. An iceberg shows the slice
-- that is given, or else a whole one.
function book.enqueue(b, o, slice)
  local side = b[o.side]
  local rank = o.price * side.sign
  if not o.touched then
    touch(b, o)
  end
  o.queued = true
  side.pending[#side.pending + 1] = { order = o, priority = o.priority, rank = rank }
  if side.best_known and not (side.best_price and side.best_price * side.sign <= rank) then
    side.best_price = o.price
  end
  local price, remaining, extras = o.price, o.remaining, o.extras
  if extras and extras.display_quantity then
    remaining = slice or math.min(extras.display_quantity, remaining)
    extras.slice = remaining
    b.has_icebergs = true
  end
  side.differences[price] = (side.differences[price] or 0) + remaining
  if remaining > b.instrument.largest_order_lots then
    b.instrument.largest_order_lots = remaining
  end
end

-- Gives an order the next priority: later than every order's of this book.
function book.prioritize(b, o)
  local record = b.instrument
  record.last_priority = record.last_priority + 1
  o.priority = record.last_priority
end

-- An iceberg whose slice was traded shows the next one, behind the others of its level. Everybody
-- else sees a new order: a slice under the old id would tell that the order hides more.
function book.refresh(b, o)
  o.extras.displayed_order_id, o.terms = book.new_order_id(b), false
  book.prioritize(b, o)
  book.enqueue(b, o, o.extras.slice)
  order_reports.refreshed(b, o)
end

-- The next order_id that no order has.
function book.new_order_id(b)
  local record = b.instrument
  record.last_order_id = record.last_order_id + 1
  return ("%d"):format(record.last_order_id)
end

-- A new order enters the book's care (it may fill at once and never queue): it gets its priority,
-- and its id where it has none yet.
function book.admit(b, o)
  local record = b.instrument
  record.last_priority = record.last_priority + 1
  record.open_orders = record.open_orders + 1
  local order_id = o.order_id or book.new_order_id(b)
  o.order_id, o.priority, o.timestamp_ms = order_id, record.last_priority, b.timestamp_ms
  b.orders[order_id] = o
  if o.client_order_id then
    b.client_orders[orders.client_name(o.account, o.client_order_id)] = order_id
  end
end

local function leave(side, o, price)
  o.queued = false
  if side.best_price == price then
    side.best_known = false
  end
end

function book.count_trailing(b, account, change)
  local counts = b.trailing_counts
  if counts then
    counts[account] = (counts[account] or 0) + change
  end
end

-- Counts an order that begins to wait, or ceases to.
local function count_waiting(b, o, change)
  local extended, extras = instrument_record.extend(b.instrument), o.extras
  if extras.waits == "dormant" then
    extended.dormant_orders = extended.dormant_orders + change
    return
  end
  extended.waiting_orders = extended.waiting_orders + change
  if extras.trailing_offset and extras.waits ~= "paused" then
    extended.trailing_orders = extended.trailing_orders + change
    book.count_trailing(b, o.account, change)
  end
end

-- Takes a waiting order out of its queue.
local function leave_waiting(b, o)
  count_waiting(b, o, -1)
  leave(queue.of(b, o.extras.waits), o, order_record.queue_price(o))
end

-- Takes an order out of the queue; it keeps its record until it is queued again or closed.
function book.dequeue(b, o)
  if not o.touched then
    touch(b, o)
  end
  local side, price, shown, extras = b[o.side], o.price, o.remaining, o.extras
  if extras then
    if extras.waits then
      return leave_waiting(b, o)
    end
    shown = extras.slice or shown
  end
  side.differences[price] = (side.differences[price] or 0) - shown
  leave(side, o, price)
end

-- Queues an order with its priority among those that wait like it, at its place there
-- (order_record.queue_price).
function book.wait(b, o)
  local extras = o.extras
  local side = queue.of(b, extras.waits)
  local rank = order_record.queue_price(o) * side.sign
  if not o.touched then
    touch(b, o)
  end
  o.queued = true
  side.pending[#side.pending + 1] = { order = o, priority = o.priority, rank = rank }
  side.best_known = false
  count_waiting(b, o, 1)
  if extras.reference_price then
    b.trailing_touched = b.trailing_touched or {}
    b.trailing_touched[o.order_id] = o
  end
  b.agenda = b.agenda or { first = 1 }
end

-- A waiting order changes its terms in its place.
function book.change_waiting(b, o)
  if not o.touched then
    touch(b, o)
  end
end

-- Notes what becomes of an order of an order list (traded, triggered, ended; decremented, by so
-- many lots), for the others of it.
function book.note(b, o, event, lots)
  b.notes = b.notes or { first = 1 }
  b.notes[#b.notes + 1] = { order = o, event = event, lots = lots }
end

-- The order is no longer open, and not in the queue.
function book.close(b, o)
  if not o.touched then
    touch(b, o)
  end
  b.instrument.open_orders = b.instrument.open_orders - 1
  if o.extras and o.extras.order_list_id then
    book.note(b, o, "ended")
  end
end

-- Takes an order out of the queue for good.
function book.remove(b, o)
  book.dequeue(b, o)
  book.close(b, o)
end

-- Takes an order out of the queue as `remove` does, but so that it can be put back. Returns the way
-- back, for `restore`.
--
-- What this call queued may still wait in `pending`, and settling drops from there whatever is not
-- in place by then. So such an order is settled first: in `added` an element stays until more is
-- queued, and counts again as soon as its order is queued again. In the window of what Redis has
-- it stays anyway.
function book.lift(b, o)
  local side = queue.of(b, order_record.queue_name(o))
  if o.priority ~= o.stored_priority then
    queue.sort_in(b, side)
  end
  local way_back = {
    order = o,
    head = side.head,
    was_touched = o.touched,
    was_changed = b.changed,
    notes_length = b.notes and #b.notes,
  }
  book.remove(b, o)
  return way_back
end

-- Puts a lifted order back in its old place, as if nothing had happened. Only what reads may have
-- run since: it can have moved the start of both lists past the order, read further chunks, settled
-- what was pending, and found another best price. The window only grows at its end, so the start it
-- had is still right; an element may since have been inserted before the order's in `added`, so
-- there the start is looked for from the beginning.
function book.restore(b, way_back)
  local o = way_back.order
  local side = queue.of(b, order_record.queue_name(o))
  o.queued = true
  if o.extras and o.extras.waits then
    count_waiting(b, o, 1)
  else
    side.differences[o.price] = side.differences[o.price] + order_record.shown(o)
  end
  side.head, side.added_head, side.best_known = way_back.head, 1, false
  b.instrument.open_orders = b.instrument.open_orders + 1
  b.changed = way_back.was_changed
  if way_back.notes_length then
    b.notes[way_back.notes_length + 1] = nil
  else
    b.notes = false
  end
  if not way_back.was_touched then
    o.touched = false
    b.touched_orders[#b.touched_orders] = nil
  end
end

-- Takes traded lots off the slice that an iceberg shows, and those beyond it off its next ones.
-- Returns how much it shows less in its place, and whether a later slice is due there.
local function take_slices(o, lots)
  local extras, shown = o.extras, o.extras.slice
  if lots < shown then
    extras.slice = shown - lots
    return lots, false
  end
  local begun = (lots - shown) % extras.display_quantity
  extras.slice = math.min(extras.display_quantity, o.remaining + begun) - begun
  return shown, true
end

-- Takes traded quantity off an order in its place. Returns whether a slice of an iceberg is used up
-- and a later one is due: the order is then out of the queue.
function book.reduce(b, o, lots)
  local side, extras, shown_less, is_used_up = b[o.side], o.extras, lots, false
  if not o.touched then
    touch(b, o)
  end
  o.remaining = o.remaining - lots
  if extras and extras.slice then
    shown_less, is_used_up = take_slices(o, lots)
  end
  side.differences[o.price] = (side.differences[o.price] or 0) - shown_less
  if extras and extras.order_list_id then
    book.note(b, o, "traded")
  end
  if o.remaining == 0 then
    leave(side, o, o.price)
    book.close(b, o)
  elseif is_used_up then
    leave(side, o, o.price)
    return true
  end
  return false
end

-- Takes quantity off an order that is not traded: an iceberg shows less only where it must.
function book.shrink(b, o, lots)
  local side, before = b[o.side], order_record.shown(o)
  if not o.touched then
    touch(b, o)
  end
  o.remaining = o.remaining - lots
  if o.extras and o.extras.waits then
    return
  end
  if o.extras and o.extras.slice then
    o.extras.slice = math.min(o.extras.slice, o.remaining)
  end
  side.differences[o.price] = (side.differences[o.price] or 0) - before + order_record.shown(o)
end

return book
