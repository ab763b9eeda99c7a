-- The book of one instrument: how it lies in Redis, and the working copy a call makes of it.
--
-- In Redis a side is one sorted set with one member an order. The score is the price in ticks,
-- negated for bids, and the member begins with the order's priority padded to 16 digits. Redis
-- sorts equal scores by member, so the set's own order *is* price-time priority on both sides:
-- ZRANGE 0 0 is the next order to trade. Beside each side lies a hash with the total of each
-- level, so that depth costs levels and not orders. What an order is stands in the hash
-- `…:orders` (order.lua).
--
-- A call never writes while it thinks. It opens a working copy, which reads what it needs and no
-- more, runs its commands (one, or a whole batch) against that copy, and at the end `book.write`
-- puts the difference into Redis in a few calls with many arguments each. This gives three things
-- at once:
--
--   * all or nothing: whatever can fail has failed before the first write;
--   * a batch costs little more calls than a single command;
--   * the stream entry comes first and `sequence` last, so a write that was broken off
--     (which Redis does not do by itself) leaves the stream ahead of the book: the next
--     command's entry is then refused by the stream, and the book stands still until repaired.
--
-- A side's queue in the working copy is two lists merged: `members`, a window of what Redis has,
-- read in growing chunks as matching reaches into it, and `added`, what this call queued. An
-- element counts only while its order still has that member; filled, canceled and requeued orders
-- drop out by this.

local events = require("events")
local instrument = require("instrument")
local keys = require("keys")
local memory = require("memory")
local numbers = require("numbers")
local order = require("order")

local book = {}

local chunk_first = 2
local chunk_growth = 4
local chunk_max = 512
local arguments_max = 4000

local function new_side(book_key, side_key, sign)
  return {
    key = side_key(book_key),
    levels_key = keys.levels(side_key(book_key)),
    sign = sign,
    score_prefix = sign < 0 and "-" or "",
    members = {},
    ranks = {},
    head = 1,
    chunk = chunk_first,
    records_chunk = chunk_first,
    added = {},
    added_head = 1,
    levels = {},
    levels_before = {},
    unqueued = {},
  }
end

-- The working copy, or nil where the instrument is not defined.
function book.open(book_key)
  local record = instrument.load(book_key)
  if not record then
    return nil
  end
  return book.from(record)
end

-- The working copy around an instrument record (a new instrument is not in Redis yet).
function book.from(record)
  return {
    instrument = record,
    key = record.key,
    sequence = record.sequence,
    call_sequence = record.sequence + 1,
    orders = {},
    touched_orders = {},
    client_orders = {},
    opened_by_account = {},
    buy = new_side(record.key, keys.bids, -1),
    sell = new_side(record.key, keys.asks, 1),
    memory = memory.new(),
    changed = false,
    fills_left = book.fills_per_call_max,
    cancels_left = book.cancels_per_call_max,
    events = events.new(),
  }
end

-- Bounds on the work of one call. Every account of a call is two arguments of its one XADD, and Lua
-- passes at most 8,000 arguments.
book.fills_per_call_max = 10000
book.accounts_per_call_max = 3500
book.cancels_per_call_max = 1000
book.account_orders_max = 10000

-- Redis' clock in milliseconds.
function book.clock_ms()
  local time = redis.call("TIME")
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Sets the time of the call, once: everything a call does happens at one time. `b.timestamp_ms`
-- is text, `b.stamp` the end of everything it says.
function book.stamp(b)
  if b.stamp then
    return
  end
  b.timestamp_ms = numbers.integer_text(book.clock_ms())
  local sequence = numbers.integer_text(b.call_sequence)
  b.stamp = ',"sequence":' .. sequence .. ',"timestamp_ms":' .. b.timestamp_ms .. "}"
end

-- The sequence of the book as the command just run leaves it.
function book.current_sequence(b)
  return b.changed and b.call_sequence or b.sequence
end

-- ---- orders

local function keep(b, order_id, text)
  local o = text and order.parse(order_id, text) or false
  b.orders[order_id] = o
  return o
end

-- The open order of this id, or nil.
function book.order(b, order_id)
  local o = b.orders[order_id]
  if o == nil then
    o = keep(b, order_id, redis.call("HGET", keys.orders(b.key), order_id))
  end
  if o and o.member then
    return o
  end
  return nil
end

-- Reads the records of these orders in one call where they are not known yet.
function book.prefetch_orders(b, order_ids)
  local missing = {}
  for _, order_id in ipairs(order_ids) do
    if b.orders[order_id] == nil then
      missing[#missing + 1] = order_id
    end
  end
  for from = 1, #missing, arguments_max do
    local to = math.min(from + arguments_max - 1, #missing)
    local texts = redis.call("HMGET", keys.orders(b.key), unpack(missing, from, to))
    for i, text in ipairs(texts) do
      keep(b, missing[from + i - 1], text)
    end
  end
end

-- The id of the account's open order of this client_order_id, or nil.
function book.client_order(b, account, client_order_id)
  local name = account .. " " .. client_order_id
  local order_id = b.client_orders[name]
  if order_id == nil then
    order_id = redis.call("HGET", keys.client_orders(b.key), name)
    b.client_orders[name] = order_id
  end
  if order_id and book.order(b, order_id) then
    return order_id
  end
  return nil
end

-- The ids of the account's open orders, oldest first. Of an account with more than
-- account_orders_max, which no person has, an arbitrary part: sorting a million to cancel a
-- thousand would stop everybody's trading.
function book.account_order_ids(b, account)
  local account_key = keys.account_orders(b.key, account)
  local ids = redis.call("SRANDMEMBER", account_key, book.account_orders_max)
  for _, o in ipairs(b.opened_by_account[account] or {}) do
    ids[#ids + 1] = o.order_id
  end
  local open = {}
  for _, order_id in ipairs(ids) do
    local o = b.orders[order_id]
    if o == nil or (o and o.member) then
      open[#open + 1] = order_id
    end
  end
  table.sort(open, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return open
end

local function touch(b, o)
  b.changed = true
  if not o.touched then
    o.touched = true
    b.touched_orders[#b.touched_orders + 1] = o
  end
end

-- ---- levels

-- The total quantity open at a price, in lots.
function book.level(b, side_name, price)
  local side = b[side_name]
  local total = side.levels[price]
  if not total then
    local text = redis.call("HGET", side.levels_key, instrument.ticks_text(b.instrument, price))
    total = tonumber(text or 0)
    side.levels[price] = total
  end
  return total
end

local function change_level(b, side_name, price, difference)
  local side = b[side_name]
  local total = book.level(b, side_name, price)
  if side.levels_before[price] == nil then
    side.levels_before[price] = total
  end
  side.levels[price] = total + difference
end

-- Reads the totals of these prices in one call.
function book.prefetch_levels(b, side_name, prices)
  local side = b[side_name]
  local names = {}
  for i, price in ipairs(prices) do
    names[i] = instrument.ticks_text(b.instrument, price)
  end
  if #names == 0 then
    return
  end
  local totals = redis.call("HMGET", side.levels_key, unpack(names))
  for i = 1, #names do
    side.levels[prices[i]] = tonumber(totals[i] or 0)
  end
end

-- ---- the queue of a side

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

local function stands(b, member)
  local o = b.orders[order.id_of_member(member)]
  return o == nil or (o and o.member == member)
end

-- The index of the next window element that still counts, from index on, or nil at the end.
local function next_stored(b, side, index)
  while true do
    if index > #side.members then
      if side.exhausted then
        return nil
      end
      load_chunk(side)
    elseif stands(b, side.members[index]) then
      return index
    else
      index = index + 1
    end
  end
end

local function next_added(side, index)
  local element = side.added[index]
  while element and element.order.member ~= element.member do
    index = index + 1
    element = side.added[index]
  end
  return element and index
end

-- Moves the start of both lists past elements that will never count again.
local function settle(b, side)
  side.head = next_stored(b, side, side.head) or #side.members + 1
  side.added_head = next_added(side, side.added_head) or #side.added + 1
end

-- The best price of a side in ticks, or nil where it is empty.
function book.best_price(b, side_name)
  local side = b[side_name]
  settle(b, side)
  local rank = side.ranks[side.head]
  local element = side.added[side.added_head]
  if element and not (rank and rank <= element.rank) then
    rank = element.rank
  end
  return rank and rank * side.sign
end

-- Reads the records of the window from an index on, the more the further matching reaches.
local function prefetch_records(b, side, from)
  local ids = {}
  for i = from, math.min(from + side.records_chunk - 1, #side.members) do
    ids[#ids + 1] = order.id_of_member(side.members[i])
  end
  side.records_chunk = math.min(side.records_chunk * chunk_growth, chunk_max)
  book.prefetch_orders(b, ids)
end

-- The orders of a side in priority, one a call, nil at the end. Nothing may change while it is in
-- use.
function book.queue(b, side_name)
  local side = b[side_name]
  settle(b, side)
  local stored, added = side.head, side.added_head
  return function()
    stored = next_stored(b, side, stored)
    added = added and next_added(side, added)
    local element = added and side.added[added]
    if stored and not (element and element.rank < side.ranks[stored]) then
      local order_id = order.id_of_member(side.members[stored])
      if b.orders[order_id] == nil then
        prefetch_records(b, side, stored)
      end
      stored = stored + 1
      return book.order(b, order_id)
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
  side.added_head = math.min(side.added_head, low)
end

-- ---- changes

-- Queues an order at its place, behind all others of its price.
function book.enqueue(b, o)
  local side = b[o.side]
  touch(b, o)
  o.member = order.member(o)
  insert_by_rank(side, { order = o, member = o.member, rank = o.price * side.sign })
  change_level(b, o.side, o.price, o.remaining)
end

-- Gives an order the next priority: later than every order's of this book.
function book.prioritize(b, o)
  local record = b.instrument
  record.last_priority = record.last_priority + 1
  o.priority = record.last_priority
  o.place = order.place(o.priority)
end

-- A new order enters the book's care (it may fill at once and never queue).
function book.add(b, o)
  b.orders[o.order_id] = o
  b.instrument.open_orders = b.instrument.open_orders + 1
  if o.client_order_id then
    b.client_orders[o.account .. " " .. o.client_order_id] = o.order_id
  end
  local opened = b.opened_by_account[o.account] or {}
  b.opened_by_account[o.account] = opened
  opened[#opened + 1] = o
end

-- Takes an order out of the queue; it keeps its record until it is queued again or closed.
function book.dequeue(b, o)
  touch(b, o)
  change_level(b, o.side, o.price, -o.remaining)
  o.member = nil
end

-- The order is no longer open.
function book.close(b, o)
  touch(b, o)
  o.member = nil
  b.instrument.open_orders = b.instrument.open_orders - 1
end

-- Takes quantity off an order in its place: it keeps its priority.
function book.reduce(b, o, lots)
  touch(b, o)
  change_level(b, o.side, o.price, -lots)
  o.remaining = o.remaining - lots
  if o.remaining == 0 then
    book.close(b, o)
  end
end

-- ---- writing

-- The prices of the levels a call changed, best first, for one side.
local function changed_levels(side)
  local changed, levels, sign = {}, side.levels, side.sign
  for price, before in pairs(side.levels_before) do
    if levels[price] ~= before then
      changed[#changed + 1] = price * sign
    end
  end
  table.sort(changed)
  for i = 1, #changed do
    changed[i] = changed[i] * sign
  end
  return changed
end

-- The arguments still to be written by one command to one key, as a list to be added to.
local function arguments_for(plan, command, key)
  local by_key = plan[command]
  local arguments = by_key[key]
  if not arguments then
    arguments = {}
    by_key[key] = arguments
  end
  return arguments
end

local function plan_queue_write(b, plan, o)
  local side = b[o.side]
  if o.stored_member then
    local removed = arguments_for(plan, "ZREM", side.key)
    removed[#removed + 1] = o.stored_member
  end
  if o.member then
    local added = arguments_for(plan, "ZADD", side.key)
    added[#added + 1] = side.score_prefix .. instrument.ticks_text(b.instrument, o.price)
    added[#added + 1] = o.member
  end
end

-- An order that became open, or ceased to be, by this call.
local function plan_index_write(b, plan, o)
  local account_key = keys.account_orders(b.key, o.account)
  local ids = arguments_for(plan, o.member and "SADD" or "SREM", account_key)
  ids[#ids + 1] = o.order_id
  if not o.client_order_id then
    return
  end
  local clients_key = keys.client_orders(b.key)
  local names = arguments_for(plan, o.member and "HSET" or "HDEL", clients_key)
  names[#names + 1] = o.account .. " " .. o.client_order_id
  if o.member then
    names[#names + 1] = o.order_id
  end
end

-- One pass over the touched orders sorts what is to be written by command and key.
local function plan_order_writes(b, plan)
  local orders_key = keys.orders(b.key)
  local records = arguments_for(plan, "HSET", orders_key)
  local gone = arguments_for(plan, "HDEL", orders_key)
  local touched = b.touched_orders
  for i = 1, #touched do
    local o = touched[i]
    local member, stored = o.member, o.stored_member
    if member then
      records[#records + 1] = o.order_id
      records[#records + 1] = order.record(o, b.instrument)
    elseif stored then
      gone[#gone + 1] = o.order_id
    end
    if member ~= stored then
      plan_queue_write(b, plan, o)
    end
    if (member == nil) ~= (stored == nil) then
      plan_index_write(b, plan, o)
    end
  end
end

local function plan_level_writes(b, side, prices, plan)
  for _, price in ipairs(prices) do
    local total = side.levels[price]
    local name = instrument.ticks_text(b.instrument, price)
    if total == 0 then
      local gone = arguments_for(plan, "HDEL", side.levels_key)
      gone[#gone + 1] = name
    else
      local totals = arguments_for(plan, "HSET", side.levels_key)
      totals[#totals + 1] = name
      totals[#totals + 1] = instrument.lots_text(b.instrument, total)
    end
  end
end

local function call_in_chunks(command, key, arguments)
  for from = 1, #arguments, arguments_max do
    local to = math.min(from + arguments_max - 1, #arguments)
    redis.call(command, key, unpack(arguments, from, to))
  end
end

local function state_pairs(b)
  local record = b.instrument
  local texts = {
    "last_order_id",
    numbers.integer_text(record.last_order_id),
    "last_trade_id",
    numbers.integer_text(record.last_trade_id),
    "last_priority",
    numbers.integer_text(record.last_priority),
    "open_orders",
    numbers.integer_text(record.open_orders),
    "remembered_replies",
    numbers.integer_text(record.remembered_replies),
  }
  if record.last_price then
    texts[#texts + 1] = "last_price"
    texts[#texts + 1] = record.last_price
  end
  texts[#texts + 1] = "sequence"
  texts[#texts + 1] = numbers.integer_text(b.call_sequence)
  return texts
end

local write_commands = { "ZREM", "HDEL", "SREM", "ZADD", "HSET", "SADD" }

-- Puts the working copy into Redis. Returns nil, or an error reply where the event stream refuses
-- the entry: then nothing was written.
function book.write(b)
  if not b.changed then
    return nil
  end
  local plan = { ZREM = {}, ZADD = {}, HSET = {}, HDEL = {}, SADD = {}, SREM = {} }
  local bid_prices, ask_prices = changed_levels(b.buy), changed_levels(b.sell)
  plan_order_writes(b, plan)
  plan_level_writes(b, b.buy, bid_prices, plan)
  plan_level_writes(b, b.sell, ask_prices, plan)
  local rotation = memory.rotation(b)
  local state = state_pairs(b)
  local refused = events.append(b, bid_prices, ask_prices)
  if refused then
    return refused
  end
  for _, command in ipairs(write_commands) do
    for key, arguments in pairs(plan[command]) do
      call_in_chunks(command, key, arguments)
    end
  end
  memory.write(b, rotation)
  redis.call("HSET", b.key, unpack(state))
  return nil
end

return book
