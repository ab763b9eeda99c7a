-- The book of one instrument: how it lies in Redis, and the working copy a call makes of it.
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
--
-- A call never writes while it thinks. It opens a working copy, which reads what it needs and no
-- more, runs its commands (one, or a whole batch) against that copy, and at the end commit.lua
-- puts the difference into Redis in a few calls with many arguments each. This gives three things
-- at once:
--
--   * all or nothing: whatever can fail has failed before the first write;
--   * a batch costs little more calls than a single command;
--   * the stream entry comes first and the sequence last, so a write that was broken off (which
--     Redis does not do by itself) leaves the stream ahead of the book: the next command's entry is
--     then refused by the stream, and the book stands still until repaired.
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

local events = require("market_data/events")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local damage = require("server/damage")
local keys = require("values/keys")
local numbers = require("values/numbers")

local book = {}

local chunk_first = 2
local chunk_growth = 4
local chunk_max = 512
local arguments_max = 4000
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

local function new_side(key, levels_key, sign)
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
function book.queue_side(b, name)
  local side = b[name]
  if not side then
    local key = waiting_queues[name].key(b.key)
    side = new_side(key, keys.levels(key), waiting_queues[name].sign)
    b[name] = side
  end
  return side
end

-- The working copy, or nil where the instrument is not defined.
function book.open(book_key)
  local record = instrument_record.load(book_key)
  if not record then
    return nil
  end
  return book.from(record)
end

-- What trades have led to and is still to be carried out, in order, from index `first` on: prices
-- in ticks to be shown to those who wait for one, { paused_id } of an order that is to go on, and
-- { list_id, filled } of order lists to be armed. false where there is nobody who waits. As text:
-- `@17 10025 17:30000 10030`.
local function read_agenda(extended)
  if extended.waiting_orders == 0 and extended.order_lists == 0 then
    return false
  end
  local agenda = { first = 1 }
  for item in extended.agenda:gmatch("%S+") do
    local list_id, filled = item:match("^(%d+):(%d+)$")
    local paused_id = item:match("^@(%d+)$")
    if list_id then
      agenda[#agenda + 1] = { list_id = list_id, filled = filled + 0 }
    elseif paused_id then
      agenda[#agenda + 1] = { paused_id = paused_id }
    else
      -- Of an item of earlier libraries, `price@order_id@bound`, the price counts.
      agenda[#agenda + 1] = item:match("^%d+") + 0
    end
  end
  return agenda
end

-- What every working copy begins with, and few calls change.
local beginning = {
  trailing_touched = false,
  trailing_counts = false,
  rules_changed = false,
  order_lists = false,
  expiring = false,
  canceling = false,
  timers = false,
  stp_groups = false,
  is_spent = false,
  has_icebergs = false,
  rising = false,
  falling = false,
  dormant = false,
  paused = false,
  memory = false,
  stored_counts = false,
  epoch_changed = false,
  expired_count = 0,
  timer_cancel_count = 0,
}
local beginning_of_all = { __index = beginning }

-- The working copy around an instrument record (a new instrument is not in Redis yet).
function book.from(record)
  local names, extended = keys.names(record.key), record.extended
  local b = setmetatable({
    instrument = record,
    key = record.key,
    names = names,
    sequence = record.sequence,
    call_sequence = record.sequence + 1,
    records = {},
    orders = {},
    touched_orders = {},
    client_orders = {},
    checked_keys = {},
    last_order_id_before = record.last_order_id,
    lots_safe = math.floor(record.lots_max / (record.open_orders + book.orders_per_call_max)),
    buy = new_side(names.bids, names.bid_levels, -1),
    sell = new_side(names.asks, names.ask_levels, 1),
    events = events.new(),
    agenda = false,
    notes = false,
    breaker = false,
    candle = false,
    changed = false,
    fills_left = book.fills_per_call_max,
    command_index = false,
    now_ms = false,
    timestamp_ms = false,
    sequence_text = false,
    stamp = false,
    report_end = false,
    last_report_end = false,
  }, beginning_of_all)
  if extended then
    b.has_icebergs = extended.iceberg_orders > 0
    b.agenda = read_agenda(extended)
  end
  return b
end

-- An error reply where the keys of the orders do not hold as many as the counters say, else nil: a
-- key is missing (evicted, deleted), or the book is half written. For the beginning of a call that
-- may change the book; what is read here also shows that these keys have their types.
function book.missing_key_error(b)
  local record, bids_key, asks_key = b.instrument, b.buy.key, b.sell.key
  local orders_key, extended = b.names.orders, record.extended
  local waiting = extended and extended.waiting_orders + extended.dormant_orders or 0
  local bids, asks = redis.call("ZCARD", bids_key), redis.call("ZCARD", asks_key)
  local orders, open = redis.call("HLEN", orders_key), record.open_orders
  if orders ~= open or bids + asks ~= open - waiting then
    return redis.error_reply("DAMAGED orders of the book are missing: run verify_book")
  end
  b.buy.exhausted, b.sell.exhausted = bids == 0, asks == 0
  local checked = b.checked_keys
  checked[b.key], checked[bids_key], checked[asks_key], checked[orders_key] = true, true, true, true
  return nil
end

-- An error reply where the stream of events is missing, else nil: for every tick, so that damage is
-- told though nobody trades.
function book.missing_stream_error(b)
  if redis.call("EXISTS", b.names.events) == 1 then
    return nil
  end
  return redis.error_reply("DAMAGED the stream events is missing: run verify_book")
end

-- Bounds on the work of one call. Every account of a call is two arguments of its one XADD, and Lua
-- passes at most 8,000 arguments. The orders of a call are its commands' and the quotes.
book.orders_per_call_max = 3000
book.quotes_per_call_max = 2000
book.fills_per_call_max = 10000
book.accounts_per_call_max = 3500
book.cancels_per_call_max = 1000
book.account_orders_max = 10000
book.triggers_per_call_max = 1000
book.trails_per_call_max = 5000
book.expiries_per_call_max = 1000
book.timer_cancels_per_call_max = 1000

beginning.cancels_left = book.cancels_per_call_max
beginning.triggers_left = book.triggers_per_call_max
beginning.quotes_left = book.quotes_per_call_max
beginning.trails_left = book.trails_per_call_max
beginning.expiries_left = book.expiries_per_call_max
beginning.timer_cancels_left = book.timer_cancels_per_call_max

-- One book of a call goes on with what another has left of what the call may do.
function book.share_limits(from, b)
  b.fills_left, b.cancels_left = from.fills_left, from.cancels_left
  b.triggers_left, b.trails_left = from.triggers_left, from.trails_left
  b.expiries_left, b.timer_cancels_left = from.expiries_left, from.timer_cancels_left
end

-- Redis' clock in milliseconds.
function book.clock_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Sets the time of the call, the clock's where none is given: everything a call does happens at one
-- time. `b.timestamp_ms` and `b.sequence_text` are text, `b.stamp` the end of every reply,
-- `b.report_end` that of every report but the last of a message.
function book.stamp(b, now_ms)
  b.now_ms = now_ms or book.clock_ms()
  b.timestamp_ms = numbers.integer_text(b.now_ms)
  b.sequence_text = numbers.integer_text(b.call_sequence)
  local time = ',"timestamp_ms":' .. b.timestamp_ms .. "}"
  b.stamp = ',"sequence":' .. b.sequence_text .. time
  b.report_end, b.last_report_end = time .. ",", time .. "]}"
end

-- The sequence of the book as the command just run leaves it.
function book.current_sequence(b)
  return b.changed and b.call_sequence or b.sequence
end

-- ---- orders

-- An order whose record was not looked at yet. Ids that no order had before this call are not
-- looked for.
local function read_order(b, order_id)
  local text = b.records[order_id]
  if text == nil and order_id + 0 <= b.last_order_id_before then
    text = redis.call("HGET", b.names.orders, order_id)
  end
  local o = text and order_record.parse(order_id, text) or false
  if text and not o then
    return damage.raise("order " .. order_id .. " has no valid record")
  end
  b.orders[order_id] = o
  return o
end

-- The open order of this id, or nil.
function book.order(b, order_id)
  local o = b.orders[order_id]
  if o == nil then
    o = read_order(b, order_id)
  end
  if o and o.queued then
    return o
  end
  return nil
end

-- The side of an order that is known, or whose record was read; nil for others.
function book.side_of(b, order_id)
  local o, text = b.orders[order_id], b.records[order_id]
  return o and o.side or (text and text:match("^%a+"))
end

-- Reads the records of these orders in one call where they are not known yet.
function book.prefetch_orders(b, order_ids)
  local missing, records, last = {}, b.records, b.last_order_id_before
  for i = 1, #order_ids do
    local order_id = order_ids[i]
    if order_id + 0 <= last and records[order_id] == nil then
      missing[#missing + 1] = order_id
    end
  end
  for from = 1, #missing, arguments_max do
    local to = math.min(from + arguments_max - 1, #missing)
    local texts = redis.call("HMGET", b.names.orders, unpack(missing, from, to))
    for i = 1, #texts do
      records[missing[from + i - 1]] = texts[i]
    end
  end
end

-- Under which name an order stands in the hash of client_order_ids.
function book.client_name(account, client_order_id)
  return account .. " " .. client_order_id
end

-- Reads in one call which open orders have these names, and adds their ids to a list.
function book.prefetch_client_orders(b, names, order_ids)
  local found = redis.call("HMGET", b.names.client_orders, unpack(names))
  b.checked_keys[b.names.client_orders] = true
  for i = 1, #found do
    b.client_orders[names[i]] = found[i]
    order_ids[#order_ids + 1] = found[i] or nil
  end
end

-- The id of the account's open order of this client_order_id, or nil.
function book.client_order(b, account, client_order_id)
  local name = book.client_name(account, client_order_id)
  local order_id = b.client_orders[name]
  if order_id == nil then
    order_id = redis.call("HGET", b.names.client_orders, name)
    b.checked_keys[b.names.client_orders] = true
    b.client_orders[name] = order_id
  end
  if order_id and book.order(b, order_id) then
    return order_id
  end
  return nil
end

-- Whether an order is of this account and, where one is given, of its session.
local function belongs_to(o, account, session)
  return o.account == account and (not session or (o.extras and o.extras.session == session))
end

-- The ids of the open orders of an account, or of one session of it, oldest first. Of more than
-- account_orders_max, which no person has, an arbitrary part: sorting a million to cancel a
-- thousand would stop everybody's trading.
function book.account_order_ids(b, account, session)
  local ids_key = session and keys.session_orders(b.key, account, session)
    or keys.account_orders(b.key, account)
  local ids = redis.call("SRANDMEMBER", ids_key, book.account_orders_max)
  for _, o in ipairs(b.touched_orders) do
    if belongs_to(o, account, session) and not o.stored_priority then
      ids[#ids + 1] = o.order_id
    end
  end
  local open = {}
  for _, order_id in ipairs(ids) do
    local o = b.orders[order_id]
    if o == nil or (o and o.queued) then
      open[#open + 1] = order_id
    end
  end
  table.sort(open, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return open
end

-- The instrument's rules or status are others: they are written, and told.
function book.change_rules(b)
  b.changed, b.rules_changed = true, true
  events.instrument_changed(b)
end

-- Whether trades have led to more than was carried out.
function book.has_agenda(b)
  local agenda = b.agenda
  return agenda and agenda[agenda.first] ~= nil
end

-- The ids of the account's quotes, oldest first: no more than one mass_quote has placed.
function book.quote_ids(b, account)
  local ids = redis.call("SMEMBERS", keys.account_quotes(b.key, account))
  for _, o in ipairs(b.touched_orders) do
    if o.extras and o.extras.quote and o.account == account and not o.stored_priority then
      ids[#ids + 1] = o.order_id
    end
  end
  book.prefetch_orders(b, ids)
  local open = {}
  for _, order_id in ipairs(ids) do
    if book.order(b, order_id) then
      open[#open + 1] = order_id
    end
  end
  table.sort(open, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return open
end

-- How many open orders an account has in this book, those of this call included.
function book.open_orders_of(b, account)
  b.stored_counts = b.stored_counts or {}
  local count = b.stored_counts[account]
  if not count then
    count = redis.call("SCARD", keys.account_orders(b.key, account))
    b.stored_counts[account] = count
  end
  for _, o in ipairs(b.touched_orders) do
    if o.account == account then
      count = count + (o.queued and 1 or 0) - (o.stored_priority and 1 or 0)
    end
  end
  return count
end

-- The order is not as it was stored. For orders that are not `touched` yet.
local function touch(b, o)
  b.changed = true
  o.touched = true
  b.touched_orders[#b.touched_orders + 1] = o
end

-- ---- order lists, as text

-- The order list of this id, or false.
function book.order_list(b, id)
  b.order_lists = b.order_lists or { known = {}, changed = {} }
  local text = b.order_lists.known[id]
  if text == nil then
    text = redis.call("HGET", keys.order_lists(b.key), id)
    b.order_lists.known[id] = text
  end
  return text
end

-- Keeps an order list, or with false drops it.
function book.keep_order_list(b, id, text)
  local extended, known = instrument_record.extend(b.instrument), book.order_list(b, id)
  extended.order_lists = extended.order_lists + (text and 1 or 0) - (known and 1 or 0)
  b.order_lists.known[id], b.order_lists.changed[id] = text, text
end

-- ---- levels

-- Reads the stored totals of these prices.
function book.read_totals(b, side, prices)
  local totals = side.totals
  for from = 1, #prices, arguments_max do
    local names = {}
    for i = from, math.min(from + arguments_max - 1, #prices) do
      names[#names + 1] = instrument_record.ticks_text(b.instrument, prices[i])
    end
    local texts = redis.call("HMGET", side.levels_key, unpack(names))
    for i = 1, #texts do
      totals[prices[from + i - 1]] = texts[i] and texts[i] + 0 or 0
    end
  end
end

-- Whether the total of a level would be beyond exactness with these lots more. The slices of
-- icebergs come and go, so beside one there is no order of a size that would matter.
function book.level_overflows(b, side_name, price, lots)
  local record = b.instrument
  if lots <= b.lots_safe and record.largest_order_lots <= b.lots_safe then
    return false
  end
  if b.has_icebergs and lots > b.lots_safe then
    return true
  end
  local side = b[side_name]
  if not side.totals[price] then
    book.read_totals(b, side, { price })
  end
  return side.totals[price] + (side.differences[price] or 0) + lots > record.lots_max
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
  local o = b.orders[order_record.id_of_member(member)]
  return o == nil or (o and o.queued and o.priority == o.stored_priority)
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

-- element: { order, priority, rank }, what this call queued.
local function in_place(element)
  local o = element.order
  return o.queued and o.priority == element.priority
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
local function settle(b, side)
  if side.pending[1] then
    take_in_pending(side)
  end
  side.head = next_stored(b, side, side.head) or #side.members + 1
  side.added_head = next_added(side, side.added_head) or #side.added + 1
end

-- The best price of a side in ticks, or false where it is empty.
function book.best_price(b, side_name)
  local side = b[side_name] or book.queue_side(b, side_name)
  if not side.best_known then
    settle(b, side)
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
local function prefetch_records(b, side, from)
  local ids = {}
  for i = from, math.min(from + side.records_chunk - 1, #side.members) do
    ids[#ids + 1] = order_record.id_of_member(side.members[i])
  end
  side.records_chunk = math.min(side.records_chunk * chunk_growth, chunk_max)
  book.prefetch_orders(b, ids)
end

-- The orders of a side in priority, one a call, nil at the end. Nothing may change while it is in
-- use.
function book.queue(b, side_name)
  local side = book.queue_side(b, side_name)
  settle(b, side)
  local stored, added = side.head, side.added_head
  return function()
    stored = next_stored(b, side, stored)
    added = added and next_added(side, added)
    local element = added and side.added[added]
    if stored and not (element and element.rank < side.ranks[stored]) then
      local order_id = order_record.id_of_member(side.members[stored])
      if b.records[order_id] == nil and b.orders[order_id] == nil then
        prefetch_records(b, side, stored)
      end
      stored = stored + 1
      return book.order(b, order_id) or damage.raise("order " .. order_id .. " has no record")
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

-- ---- changes

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
  events.refreshed(b, o)
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
    b.client_orders[book.client_name(o.account, o.client_order_id)] = order_id
  end
end

local function leave(side, o, price)
  o.queued = false
  if side.best_price == price then
    side.best_known = false
  end
end

local function count_trailing(b, account, change)
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
    count_trailing(b, o.account, change)
  end
end

-- Takes a waiting order out of its queue.
local function leave_waiting(b, o)
  count_waiting(b, o, -1)
  leave(book.queue_side(b, o.extras.waits), o, order_record.queue_price(o))
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
  local side = book.queue_side(b, extras.waits)
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

-- How many trailing stops of an account wait, those of this call included. All are looked at once a
-- call.
function book.trailing_stops_of(b, account)
  if b.trailing_counts then
    return b.trailing_counts[account] or 0
  end
  local order_ids = {}
  for _, side_name in ipairs({ "buy", "sell" }) do
    local stored = redis.call("ZRANGE", keys.trailing_stops(b.key, side_name), 0, -1)
    for i = 1, #stored do
      order_ids[#order_ids + 1] = stored[i]
    end
  end
  book.prefetch_orders(b, order_ids)
  for order_id, o in pairs(b.trailing_touched or {}) do
    if not order_record.is_triggerable(o.extras.stored_waits) then
      order_ids[#order_ids + 1] = order_id
    end
  end
  b.trailing_counts = {}
  for i = 1, #order_ids do
    local o = book.order(b, order_ids[i])
    if o and order_record.is_triggerable(o.extras.waits) then
      count_trailing(b, o.account, 1)
    end
  end
  return b.trailing_counts[account] or 0
end

-- The waiting trailing stops of a side whose reference a trade price betters, by priority.
function book.trailing_stops_behind(b, side_name, price)
  local trailing_key = keys.trailing_stops(b.key, side_name)
  local from, to = "-inf", "(" .. numbers.integer_text(price)
  if side_name == "buy" then
    from, to = to, "+inf"
  end
  local order_ids = redis.call("ZRANGEBYSCORE", trailing_key, from, to)
  book.prefetch_orders(b, order_ids)
  for order_id, o in pairs(b.trailing_touched or {}) do
    if not order_record.is_triggerable(o.extras.stored_waits) then
      order_ids[#order_ids + 1] = order_id
    end
  end
  local found = {}
  for i = 1, #order_ids do
    local o = book.order(b, order_ids[i])
    local reference = o and o.side == side_name and o.extras.waits and o.extras.reference_price
    if reference and (reference - price) * (side_name == "buy" and 1 or -1) > 0 then
      found[#found + 1] = o
    end
  end
  table.sort(found, function(left, right)
    return left.priority < right.priority
  end)
  return found
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
  local side = book.queue_side(b, order_record.queue_name(o))
  if o.priority ~= o.stored_priority then
    settle(b, side)
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
  local side = book.queue_side(b, order_record.queue_name(o))
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

-- ---- what is due

-- Takes the orders out whose time is over, as many as the call may; returns them. Where more are
-- due, `b.expiring` tells.
function book.expire(b)
  local extended, expired = b.instrument.extended, {}
  if not extended or extended.gtd_orders == 0 then
    return expired
  end
  local expiries_key = keys.expiries(b.key)
  local limit = b.expiries_left + 1
  local range = { "-inf", b.timestamp_ms, "LIMIT", 0, limit }
  local members = redis.call("ZRANGEBYSCORE", expiries_key, unpack(range))
  b.expiring = #members == limit
  local order_ids = {}
  for i = 1, math.min(#members, b.expiries_left) do
    order_ids[i] = members[i]:match("^0*(%d+)$")
  end
  b.expiries_left = b.expiries_left - #order_ids
  book.prefetch_orders(b, order_ids)
  for _, order_id in ipairs(order_ids) do
    local o = book.order(b, order_id)
    if o then
      book.remove(b, o)
      expired[#expired + 1] = o
    end
  end
  return expired
end

return book
