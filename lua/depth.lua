-- The book as others see it: levels, best first, and the checksum that lets a client prove it
-- holds the same.
--
-- Only orders are sorted in Redis, not levels. The levels' prices are found by stepping through a
-- side in chunks and jumping past every price already seen, so the cost is that of the levels
-- asked for, however many orders queue at each.

local instrument = require("instrument")
local keys = require("keys")
local numbers = require("numbers")
local order = require("order")

local depth = {}

depth.levels_max = 10000
depth.published_levels = 10

-- Bounds on get_level3, a side each: the orders it tells, and those that its checksum is made of.
local orders_max = 10000
local checksum_orders_max = 1000
local orders_chunk = 500

local chunk_first = 16
local chunk_max = 512
local arguments_max = 4000

-- The scores of a side's best levels, at most count of them.
local function best_scores(side_key, count)
  local scores = {}
  local from, chunk = "-inf", math.min(chunk_first, count)
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

-- [["100.25","1"],…] of one side as a list of { price text, quantity text }.
local function side_levels(record, side_key, sign, count)
  local prices, names = {}, {}
  for i, score in ipairs(best_scores(side_key, count)) do
    prices[i] = tonumber(score) * sign
    names[i] = numbers.integer_text(prices[i])
  end
  local levels = {}
  for from = 1, #names, arguments_max do
    local to = math.min(from + arguments_max - 1, #names)
    local totals = redis.call("HMGET", keys.levels(side_key), unpack(names, from, to))
    for i, total in ipairs(totals) do
      levels[#levels + 1] = {
        instrument.price_text(record, prices[from + i - 1]),
        numbers.text(tonumber(total or 0), record.quantity_step),
      }
    end
  end
  return levels
end

-- The best bid and ask as JSON members, each with a comma before it.
function depth.best_members(record)
  local text = ""
  for _, side in ipairs({
    { name = "best_bid", key = keys.bids(record.key), sign = -1 },
    { name = "best_ask", key = keys.asks(record.key), sign = 1 },
  }) do
    local best = side_levels(record, side.key, side.sign, 1)[1]
    if best then
      text = text .. ',"' .. side.name .. '":"' .. best[1]
      text = text .. '","' .. side.name .. '_quantity":"' .. best[2] .. '"'
    end
  end
  return text
end

local function levels_json(levels, count)
  local rows = {}
  for i = 1, math.min(#levels, count) do
    rows[i] = '["' .. levels[i][1] .. '","' .. levels[i][2] .. '"]'
  end
  return "[" .. table.concat(rows, ",") .. "]"
end

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

local function crc32(text)
  if not crc_table then
    build_crc_table()
  end
  local value = 0xFFFFFFFF
  for i = 1, #text do
    local index = bit.band(bit.bxor(value, string.byte(text, i)), 0xFF)
    value = bit.bxor(bit.rshift(value, 8), crc_table[index])
  end
  return bit.bxor(value, 0xFFFFFFFF) % 4294967296
end

-- Decimal text as it counts in a checksum: without the point and leading zeros.
local function digits_of(text)
  local digits = string.gsub(text, "%.", "")
  return (string.gsub(digits, "^0+", ""))
end

local function checksum_text(levels)
  local parts = {}
  for i = 1, math.min(#levels, depth.published_levels) do
    for column = 1, 2 do
      parts[#parts + 1] = digits_of(levels[i][column])
    end
  end
  return table.concat(parts)
end

-- The common part of get_book's reply and of the published book: "bids":…,"asks":…,"checksum":…
-- The checksum is that of the published levels, however many are asked for.
function depth.json(record, levels_count)
  local read_count = math.max(levels_count, depth.published_levels)
  local bids = side_levels(record, keys.bids(record.key), -1, read_count)
  local asks = side_levels(record, keys.asks(record.key), 1, read_count)
  return string.format(
    '"bids":%s,"asks":%s,"checksum":%.0f',
    levels_json(bids, levels_count),
    levels_json(asks, levels_count),
    crc32(checksum_text(asks) .. checksum_text(bids))
  )
end

-- ---- order by order

-- Adds a chunk of a side's queue to its rows. Returns whether it reached beyond the levels asked
-- for.
local function add_orders(record, side, rows)
  local ids = {}
  for i = 1, #rows, 2 do
    ids[#ids + 1] = order.id_of_member(rows[i])
  end
  local texts = redis.call("HMGET", keys.orders(record.key), unpack(ids))
  for i = 1, #ids do
    local score, o = rows[i * 2], texts[i] and order.parse(ids[i], texts[i])
    if score ~= side.score then
      side.score, side.levels = score, side.levels + 1
    end
    if side.levels > side.levels_wanted then
      return true
    end
    if o then
      side.orders[#side.orders + 1] = {
        price = instrument.price_text(record, o.price),
        quantity = instrument.quantity_text(record, order.shown(o)),
        order_id = o.order_id,
        priority = o.priority,
        level = side.levels,
      }
    end
  end
  return false
end

-- The orders of a side's best levels in queue order; `more` tells that there were too many.
local function side_orders(record, side_key, levels_wanted)
  local side = { levels = 0, levels_wanted = levels_wanted, score = false, orders = {} }
  for from = 0, orders_max - 1, orders_chunk do
    local to = from + orders_chunk - 1
    local rows = redis.call("ZRANGE", side_key, from, to, "WITHSCORES")
    if #rows == 0 or add_orders(record, side, rows) then
      return side
    end
  end
  side.more = #redis.call("ZRANGE", side_key, orders_max, orders_max) > 0
  return side
end

local function orders_json(side, levels_count)
  local rows = {}
  for i = 1, #side.orders do
    local o = side.orders[i]
    if o.level > levels_count then
      break
    end
    rows[i] = string.format('["%s","%s","%s",%.0f]', o.price, o.quantity, o.order_id, o.priority)
  end
  return "[" .. table.concat(rows, ",") .. "]"
end

local function orders_checksum_text(side)
  local parts = {}
  for i = 1, math.min(#side.orders, checksum_orders_max) do
    local o = side.orders[i]
    if o.level > depth.published_levels then
      break
    end
    parts[i] = digits_of(o.price) .. digits_of(o.quantity) .. o.order_id
  end
  return table.concat(parts)
end

-- The common part of get_level3's reply: "bids":…,"asks":…,"more":…,"checksum":… The checksum is
-- that of the published levels, however many are asked for.
function depth.orders_json(record, levels_count)
  local wanted = math.max(levels_count, depth.published_levels)
  local bids = side_orders(record, keys.bids(record.key), wanted)
  local asks = side_orders(record, keys.asks(record.key), wanted)
  return string.format(
    '"bids":%s,"asks":%s,"more":%s,"checksum":%.0f',
    orders_json(bids, levels_count),
    orders_json(asks, levels_count),
    tostring(bids.more or asks.more or false),
    crc32(orders_checksum_text(asks) .. orders_checksum_text(bids))
  )
end

return depth
