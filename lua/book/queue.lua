-- The queue of a side, in price-time priority: what Redis has, merged with what this call queued.
--
-- A side's queue in the working copy is two lists merged: `members`, a window of what Redis has,
-- read in growing chunks as matching reaches into it, and `added`, what this call queued. An
-- element counts only while its order is queued with the element's priority; filled, canceled and
-- requeued orders drop out by this. Most orders of a batch never meet a taker: what is queued waits
-- in `pending` until somebody asks for the queue, and the best price is remembered while no order
-- at it leaves.
--
-- The stop orders that wait stand in two more queues of the same make, `rising` and `falling`
-- (stop_orders.lua): by stop price in place of price, and without levels. A third, `dormant`, has
-- the orders of order lists that are not armed yet (order_lists.lua), a fourth those that are
-- `paused` (order_entry.lua). Only a book that has some opens them.

local orders = require("book/orders")
local order_record = require("records/order_record")
local damage = require("server/damage")
local keys = require("values/keys")

local queue = {}

local chunk_first = 2
local chunk_growth = 4
local chunk_max = 512
-- More elements than these are sorted in at once; more dead ones at a list's start are dropped.
local insertions_max = 16
local dead_elements_max = 256

-- Lists of a side that few calls use: made when somebody asks for them first.
local lists_made_late = {
  members = true,
  ranks = true,
  pending = true,
  added = true,
  totals = true,
  differences = true,
}
local late_lists = {
  __index = function(side, name)
    if not lists_made_late[name] then
      return nil
    end
    local list = {}
    side[name] = list
    return list
  end,
}

function queue.new(key, levels_key, sign)
  return setmetatable({
    key = key,
    levels_key = levels_key,
    sign = sign,
    score_prefix = sign < 0 and "-" or "",
    head = 1,
    chunk = chunk_first,
    records_chunk = chunk_first,
    added_head = 1,
    best_price = false,
    best_known = false,
    exhausted = false,
  }, late_lists)
end

local waiting_queues = {
  rising = { key = keys.stops_rising, sign = 1 },
  falling = { key = keys.stops_falling, sign = -1 },
  dormant = { key = keys.dormant_orders, sign = 1 },
  paused = { key = keys.paused_orders, sign = 1 },
}

-- A queue by name: buy, sell, or one of those that wait.
function queue.of(tx, name)
  local side = tx[name]
  if not side then
    local key = waiting_queues[name].key(tx.key)
    side = queue.new(key, keys.levels(key), waiting_queues[name].sign)
    tx[name] = side
  end
  return side
end

local function load_chunk(side)
  local count = #side.members
  local rows = redis.call("ZRANGE", side.key, count, count + side.chunk - 1, "WITHSCORES")
  for i = 1, #rows, 2 do
    count = count + 1
    side.members[count] = rows[i]
    side.ranks[count] = tonumber(rows[i + 1])
  end
  side.exhausted = #rows < side.chunk * 2
  side.chunk = math.min(side.chunk * chunk_growth, chunk_max)
end

local function stands(tx, member)
  local order = tx.orders[order_record.id_of_member(member)]
  return order == nil or (order and order.queued and order.priority == order.stored_priority)
end

-- The index of the next window element that still counts, from index on, or nil at the end.
local function next_stored(tx, side, index)
  while true do
    if index > #side.members then
      if side.exhausted then
        return nil
      end
      load_chunk(side)
    elseif stands(tx, side.members[index]) then
      return index
    else
      index = index + 1
    end
  end
end

-- element: { order, priority, rank }, what this call queued.
local function in_place(element)
  local order = element.order
  return order.queued and order.priority == element.priority
end

local function next_added(side, index)
  local element = side.added[index]
  while element and not in_place(element) do
    index = index + 1
    element = side.added[index]
  end
  return element and index
end

-- Behind all elements of the same rank: what is queued later has less priority.
local function insert_by_rank(side, element)
  local list, rank = side.added, element.rank
  local low, high = 1, #list + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if list[middle].rank > rank then
      high = middle
    else
      low = middle + 1
    end
  end
  table.insert(list, low, element)
  if low < side.added_head then
    side.added_head = low
  end
end

local function goes_before(left, right)
  if left.rank ~= right.rank then
    return left.rank < right.rank
  end
  return left.priority < right.priority
end

-- Takes many elements in at once, and drops those on the way that will never count again.
local function merge_by_rank(side, elements)
  table.sort(elements, goes_before)
  local merged, index = {}, 1
  for _, element in ipairs(side.added) do
    if in_place(element) then
      while elements[index] and elements[index].rank < element.rank do
        merged[#merged + 1] = elements[index]
        index = index + 1
      end
      merged[#merged + 1] = element
    end
  end
  for i = index, #elements do
    merged[#merged + 1] = elements[i]
  end
  side.added, side.added_head = merged, 1
end

-- Sorts in what was queued since somebody last asked for the queue.
local function take_in_pending(side)
  local pending, elements = side.pending, {}
  for i = 1, #pending do
    if in_place(pending[i]) then
      elements[#elements + 1] = pending[i]
    end
  end
  side.pending = {}
  if #elements > insertions_max or side.added_head > dead_elements_max then
    return merge_by_rank(side, elements)
  end
  for i = 1, #elements do
    insert_by_rank(side, elements[i])
  end
end

-- Takes in what waits to be sorted, and moves the start of both lists past elements that will
-- never count again.
function queue.sort_in(tx, side)
  if side.pending[1] then
    take_in_pending(side)
  end
  side.head = next_stored(tx, side, side.head) or #side.members + 1
  side.added_head = next_added(side, side.added_head) or #side.added + 1
end

-- The best price of a side in ticks, or false where it is empty.
function queue.best_price(tx, side_name)
  local side = tx[side_name] or queue.of(tx, side_name)
  if not side.best_known then
    queue.sort_in(tx, side)
    local rank = side.ranks[side.head]
    local element = side.added[side.added_head]
    if element and not (rank and rank <= element.rank) then
      rank = element.rank
    end
    side.best_price, side.best_known = rank and rank * side.sign or false, true
  end
  return side.best_price
end

-- Reads the records of the window from an index on, the more the further matching reaches.
local function prefetch_records(tx, side, from)
  local ids = {}
  for i = from, math.min(from + side.records_chunk - 1, #side.members) do
    ids[#ids + 1] = order_record.id_of_member(side.members[i])
  end
  side.records_chunk = math.min(side.records_chunk * chunk_growth, chunk_max)
  orders.prefetch(tx, ids)
end

-- The orders of a side in priority, one a call, nil at the end. Nothing may change while it is in
-- use.
function queue.orders(tx, side_name)
  local side = queue.of(tx, side_name)
  queue.sort_in(tx, side)
  local stored, added = side.head, side.added_head
  return function()
    stored = next_stored(tx, side, stored)
    added = added and next_added(side, added)
    local element = added and side.added[added]
    if stored and not (element and element.rank < side.ranks[stored]) then
      local order_id = order_record.id_of_member(side.members[stored])
      if tx.records[order_id] == nil and tx.orders[order_id] == nil then
        prefetch_records(tx, side, stored)
      end
      stored = stored + 1
      return orders.find(tx, order_id) or damage.raise("order " .. order_id .. " has no record")
    end
    if not stored then
      stored = #side.members + 1
    end
    if not element then
      return nil
    end
    added = added + 1
    return element.order
  end
end

return queue
