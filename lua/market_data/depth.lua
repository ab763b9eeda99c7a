-- The book as others see it: levels, best first, and the checksum that lets a client prove it
-- holds the same.
--
-- Only orders are sorted in Redis, not levels. Of a few levels most are mostly at the ticks next to
-- the best price, and their totals are asked for at once. Further ones are found by stepping
-- through a side's orders in chunks and jumping past every price already seen, so the cost is that
-- of the levels asked for, however many orders queue at each. Where most levels of a side are asked
-- for its totals are read whole and put in order here.

local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local keys = require("values/keys")
local numbers = require("values/numbers")

local depth = {}

depth.levels_max = 10000
depth.published_levels = 10

-- Bounds on get_level3, a side each: the orders it tells, and those that its checksum is made of.
local orders_max = 10000
local checksum_orders_max = 1000
local orders_chunk = 500
local row_format = '["%s","%s","%s",%.0f]'

-- A side with at most so many times the levels asked for is read whole.
local whole_side_factor = 4
-- Where on average at most so many ticks lie between two levels, walking from tick to tick finds
-- them in order sooner than sorting does.
local gap_max = 8

-- So many ticks from the best price on are looked at for each level asked for, but not more.
local near_ticks_per_level = 2
local near_ticks_max = 64

local chunk_first = 16
local chunk_max = 512
local arguments_max = 4000

-- The scores of a side's best levels beyond a score, at most count of them.
local function scores_beyond(side_key, score, count)
  local scores = {}
  local from, chunk = "(" .. score, math.min(chunk_first, count)
  while #scores < count do
    local rows =
      redis.call("ZRANGE", side_key, from, "+inf", "BYSCORE", "LIMIT", 0, chunk, "WITHSCORES")
    local found_before = #scores
    for i = 2, #rows, 2 do
      if rows[i] ~= scores[#scores] and #scores < count then
        scores[#scores + 1] = rows[i]
      end
    end
    if #rows < chunk * 2 then
      break
    end
    local found = #scores - found_before
    chunk = found * 2 > chunk and math.min(chunk * 2, chunk_max) or math.max(found * 2, 2)
    from = "(" .. scores[#scores]
  end
  return scores
end

-- Levels are pieces of JSON, four to a level: what goes before the price, the price, what goes
-- between, the quantity. A full book has tens of thousands, which are put together once.
local pieces_per_level = 4

local function add_level(levels, price, quantity)
  local n = #levels
  levels[n + 1], levels[n + 2] = n == 0 and '[["' or '"],["', price
  levels[n + 3], levels[n + 4] = '","', quantity
end

-- The place of the order at an index of a side's queue: its price in ticks, negated for bids; nil
-- where there is none.
local function place_at(side_key, index)
  return tonumber(redis.call("ZRANGE", side_key, index, index, "WITHSCORES")[2])
end

-- Adds the levels there are at these prices in ticks, as far as count levels.
local function add_levels_at(record, side_key, ticks, levels, count)
  for from = 1, #ticks, arguments_max do
    local names = {}
    for i = from, math.min(from + arguments_max - 1, #ticks) do
      names[#names + 1] = instrument_record.ticks_text(record, ticks[i])
    end
    local totals = redis.call("HMGET", keys.levels(side_key), unpack(names))
    for i = 1, #totals do
      if #levels == count * pieces_per_level then
        return
      end
      if totals[i] then
        local quantity = instrument_record.quantity_text(record, totals[i] + 0)
        add_level(levels, instrument_record.price_text(record, ticks[from + i - 1]), quantity)
      end
    end
  end
end

-- The best levels of a side: those at the ticks next to its best price, then by stepping from one
-- to the next.
local function stepped_levels(record, side_key, sign, count)
  local levels, near, far = {}, {}, {}
  local best = place_at(side_key, 0)
  if not best then
    return levels
  end
  local near_count = math.min(count * near_ticks_per_level, near_ticks_max)
  for i = 1, near_count do
    near[i] = (best + i - 1) * sign
  end
  add_levels_at(record, side_key, near, levels, count)
  local missing = count - #levels / pieces_per_level
  if missing == 0 then
    return levels
  end
  local last_near = numbers.integer_text(best + near_count - 1)
  for i, score in ipairs(scores_beyond(side_key, last_near, missing)) do
    far[i] = score * sign
  end
  add_levels_at(record, side_key, far, levels, count)
  return levels
end

-- Where each level stands in the rows of a side's totals (price, lots, …), found by sorting.
local function sorted_indexes(rows, sign)
  local places, index_of, indexes = {}, {}, {}
  for i = 1, #rows, 2 do
    local place = rows[i] * sign
    places[#places + 1], index_of[place] = place, i
  end
  table.sort(places)
  for n = 1, #places do
    indexes[n] = index_of[places[n]]
  end
  return indexes
end

-- Where each level stands in those rows, best first; false for a tick between that has none.
local function indexes_in_order(side_key, rows, sign)
  local best, worst = place_at(side_key, 0), place_at(side_key, -1)
  if not best then
    return {}
  end
  if (worst - best) * 2 > #rows * gap_max then
    return sorted_indexes(rows, sign)
  end
  -- Filled from its beginning on, a table of Lua is an array; otherwise it would be a hash.
  local indexes, before_best = {}, best - 1
  for i = 1, worst - before_best do
    indexes[i] = false
  end
  for i = 1, #rows, 2 do
    indexes[rows[i] * sign - before_best] = i
  end
  return indexes
end

-- Makes decimal text of what the rows of a side's totals have in ticks and lots.
local function show_as_text(record, rows)
  if not record.price_step.is_unit then
    for i = 1, #rows, 2 do
      rows[i] = instrument_record.price_text(record, rows[i] + 0)
    end
  end
  if not record.quantity_step.is_unit then
    for i = 2, #rows, 2 do
      rows[i] = instrument_record.quantity_text(record, rows[i] + 0)
    end
  end
end

-- The same of a side that is read whole.
local function whole_levels(record, side_key, sign, count)
  local rows = redis.call("HGETALL", keys.levels(side_key))
  local indexes = indexes_in_order(side_key, rows, sign)
  show_as_text(record, rows)
  local levels, n, opening, n_max = {}, 0, '[["', count * pieces_per_level
  for place = 1, #indexes do
    local i = indexes[place]
    if i and n < n_max then
      levels[n + 1] = opening
      levels[n + 2] = rows[i]
      levels[n + 3] = '","'
      n = n + 4
      levels[n] = rows[i + 1]
      opening = '"],["'
    end
  end
  return levels
end

-- The best levels of a side, at most count of them.
local function side_levels(record, side_key, sign, count)
  if redis.call("HLEN", keys.levels(side_key)) > count * whole_side_factor then
    return stepped_levels(record, side_key, sign, count)
  end
  return whole_levels(record, side_key, sign, count)
end

-- The best bid and ask as JSON members, each with a comma before it.
function depth.best_members(record)
  local text = ""
  for _, side in ipairs({
    { name = "best_bid", key = keys.bids(record.key), sign = -1 },
    { name = "best_ask", key = keys.asks(record.key), sign = 1 },
  }) do
    local best = side_levels(record, side.key, side.sign, 1)
    if best[1] then
      text = text .. ',"' .. side.name .. '":"' .. best[2]
      text = text .. '","' .. side.name .. '_quantity":"' .. best[4] .. '"'
    end
  end
  return text
end

-- Adds [["100.25","1"],…] to a list of pieces of text.
local function add_levels_json(pieces, levels, count)
  local shown = math.min(#levels, count * pieces_per_level)
  pieces[#pieces + 1] = table.concat(levels, "", 1, shown)
  pieces[#pieces + 1] = shown > 0 and '"]]' or "[]"
end

-- So many bytes of a text are looked at as one list.
local bytes_chunk = 128

-- The table of CRC-32 (reflected polynomial 0xEDB88320). Built on first use: no arithmetic on bits
-- exists while a library loads.
local crc_table

local function build_crc_table()
  crc_table = {}
  for byte = 0, 255 do
    local value = byte
    for _ = 1, 8 do
      if value % 2 == 1 then
        value = bit.bxor(bit.rshift(value, 1), 0xEDB88320)
      else
        value = bit.rshift(value, 1)
      end
    end
    crc_table[byte] = value
  end
end

-- Three of the four steps for a byte of a text are arithmetic: a call to `bit` costs several times
-- as much. Its results have a sign.
local function crc32(text)
  if not crc_table then
    build_crc_table()
  end
  local steps, bxor, value = crc_table, bit.bxor, 0xFFFFFFFF
  for from = 1, #text, bytes_chunk do
    local bytes = { text:byte(from, from + bytes_chunk - 1) }
    for i = 1, #bytes do
      local low = value % 256
      value = bxor((value - low) / 256, steps[bxor(low, bytes[i])]) % 4294967296
    end
  end
  return bxor(value, 0xFFFFFFFF) % 4294967296
end

-- Decimal text as it counts in a checksum: with all decimals of its step, but without the point and
-- leading zeros. So 1, 0.1 and 0.01 differ.
local function digits_of(text, decimals)
  local point = text:find(".", 1, true)
  if not point then
    return text .. ("0"):rep(decimals)
  end
  local digits = text:sub(1, point - 1) .. text:sub(point + 1)
  digits = digits .. ("0"):rep(decimals - (#text - point))
  return digits:byte() == 48 and digits:gsub("^0+", "") or digits
end

local function checksum_text(record, levels)
  local parts = {}
  local price_decimals, quantity_decimals =
    record.price_step.decimals, record.quantity_step.decimals
  local length = math.min(#levels, depth.published_levels * pieces_per_level)
  for i = pieces_per_level, length, pieces_per_level do
    parts[#parts + 1] = digits_of(levels[i - 2], price_decimals)
    parts[#parts + 1] = digits_of(levels[i], quantity_decimals)
  end
  return table.concat(parts)
end

-- The checksum of both sides as JSON members with a comma before them, and the steps by which a
-- reader can compute it.
local function checksum_members(record, asks_text, bids_text)
  return string.format(
    ',"checksum":%.0f,"tick_size":"%s","lot_size":"%s"',
    crc32(asks_text .. bids_text),
    record.price_step.text,
    record.quantity_step.text
  )
end

-- Adds the common part of get_book's reply and of the published book to a list of pieces of text:
-- bids asks checksum tick_size lot_size. The checksum is that of the published levels, however many
-- are asked for. Pieces, because a full book is long, and every string that it passes through costs
-- as much again.
function depth.add_json(pieces, record, levels_count)
  local read_count = math.max(levels_count, depth.published_levels)
  local bids = side_levels(record, keys.bids(record.key), -1, read_count)
  local asks = side_levels(record, keys.asks(record.key), 1, read_count)
  pieces[#pieces + 1] = '"bids":'
  add_levels_json(pieces, bids, levels_count)
  pieces[#pieces + 1] = ',"asks":'
  add_levels_json(pieces, asks, levels_count)
  local asks_text, bids_text = checksum_text(record, asks), checksum_text(record, bids)
  pieces[#pieces + 1] = checksum_members(record, asks_text, bids_text)
end

-- ---- order by order

-- Adds an order to the rows of a side, and to the text of its checksum.
local function add_order(record, side, order_id, text)
  local ticks, lots, priority, displayed_id = order_record.parse_public(text)
  if not ticks then
    return
  end
  order_id = displayed_id or order_id
  local price = instrument_record.price_text(record, ticks)
  local quantity = instrument_record.quantity_text(record, lots)
  side.count = side.count + 1
  if side.count <= checksum_orders_max and side.levels <= depth.published_levels then
    side.digits[#side.digits + 1] = digits_of(price, record.price_step.decimals)
      .. digits_of(quantity, record.quantity_step.decimals)
      .. order_id
  end
  if side.levels <= side.levels_wanted then
    side.rows[#side.rows + 1] = row_format:format(price, quantity, order_id, priority)
  end
end

-- Adds a chunk of a side's queue. Returns whether it reached beyond the levels that are read.
local function add_orders(record, side, members)
  local ids = {}
  for i = 1, #members, 2 do
    ids[#ids + 1] = order_record.id_of_member(members[i])
  end
  local texts = redis.call("HMGET", keys.orders(record.key), unpack(ids))
  for i = 1, #ids do
    local score = members[i * 2]
    if score ~= side.score then
      side.score, side.levels = score, side.levels + 1
    end
    if side.levels > side.levels_read then
      return true
    end
    if texts[i] then
      add_order(record, side, ids[i], texts[i])
    end
  end
  return false
end

-- The orders of a side's best levels in queue order, as rows of JSON and as the text of their
-- checksum; `more` tells that there were too many.
local function side_orders(record, side_key, levels_wanted)
  local levels_read = math.max(levels_wanted, depth.published_levels)
  local side = { levels = 0, levels_wanted = levels_wanted, levels_read = levels_read }
  side.score, side.count, side.rows, side.digits = false, 0, {}, {}
  for from = 0, orders_max - 1, orders_chunk do
    local to = from + orders_chunk - 1
    local members = redis.call("ZRANGE", side_key, from, to, "WITHSCORES")
    if #members == 0 or add_orders(record, side, members) then
      return side
    end
  end
  side.more = #redis.call("ZRANGE", side_key, orders_max, orders_max) > 0
  return side
end

-- Adds [["100.25","1","17",41],…] to a list of pieces of text.
local function add_rows_json(pieces, rows)
  pieces[#pieces + 1] = "["
  pieces[#pieces + 1] = table.concat(rows, ",")
  pieces[#pieces + 1] = "]"
end

-- Adds the common part of get_level3's reply to a list of pieces of text: bids asks more checksum
-- tick_size lot_size. The checksum is that of the published levels, however many are asked for.
function depth.add_orders_json(pieces, record, levels_count)
  local bids = side_orders(record, keys.bids(record.key), levels_count)
  local asks = side_orders(record, keys.asks(record.key), levels_count)
  pieces[#pieces + 1] = '"bids":'
  add_rows_json(pieces, bids.rows)
  pieces[#pieces + 1] = ',"asks":'
  add_rows_json(pieces, asks.rows)
  pieces[#pieces + 1] = ',"more":' .. tostring(bids.more or asks.more or false)
  local asks_text, bids_text = table.concat(asks.digits), table.concat(bids.digits)
  pieces[#pieces + 1] = checksum_members(record, asks_text, bids_text)
end

return depth
