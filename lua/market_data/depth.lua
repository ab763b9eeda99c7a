-- The book as others see it: levels, best first, and the checksum that lets a client prove it
-- holds the same.
--
-- Only orders are sorted in Redis, not levels. Of a few levels most are mostly at the ticks next to
-- the best price, and their totals are asked for at once. Further ones are found by stepping
-- through a side's orders in chunks and jumping past every price already seen, so the cost is that
-- of the levels asked for, however many orders queue at each. Where most levels of a side are asked
-- for its totals are read whole and put in order here.

local checksum = require("market_data/checksum")
local instrument_record = require("records/instrument_record")
local keys = require("values/keys")
local numbers = require("values/numbers")

local depth = {}

depth.levels_max = 10000

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
local function add_levels_at(instrument, side_key, ticks, levels, count)
  for from = 1, #ticks, arguments_max do
    local names = {}
    for i = from, math.min(from + arguments_max - 1, #ticks) do
      names[#names + 1] = instrument_record.ticks_text(instrument, ticks[i])
    end
    local totals = redis.call("HMGET", keys.levels(side_key), unpack(names))
    for i = 1, #totals do
      if #levels == count * pieces_per_level then
        return
      end
      if totals[i] then
        local quantity = instrument_record.quantity_text(instrument, totals[i] + 0)
        add_level(levels, instrument_record.price_text(instrument, ticks[from + i - 1]), quantity)
      end
    end
  end
end

-- The best levels of a side: those at the ticks next to its best price, then by stepping from one
-- to the next.
local function stepped_levels(instrument, side_key, sign, count)
  local levels, near, far = {}, {}, {}
  local best = place_at(side_key, 0)
  if not best then
    return levels
  end
  local near_count = math.min(count * near_ticks_per_level, near_ticks_max)
  for i = 1, near_count do
    near[i] = (best + i - 1) * sign
  end
  add_levels_at(instrument, side_key, near, levels, count)
  local missing = count - #levels / pieces_per_level
  if missing == 0 then
    return levels
  end
  local last_near = numbers.integer_text(best + near_count - 1)
  for i, score in ipairs(scores_beyond(side_key, last_near, missing)) do
    far[i] = score * sign
  end
  add_levels_at(instrument, side_key, far, levels, count)
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
local function show_as_text(instrument, rows)
  if not instrument.price_step.is_unit then
    for i = 1, #rows, 2 do
      rows[i] = instrument_record.price_text(instrument, rows[i] + 0)
    end
  end
  if not instrument.quantity_step.is_unit then
    for i = 2, #rows, 2 do
      rows[i] = instrument_record.quantity_text(instrument, rows[i] + 0)
    end
  end
end

-- The same of a side that is read whole.
local function whole_levels(instrument, side_key, sign, count)
  local rows = redis.call("HGETALL", keys.levels(side_key))
  local indexes = indexes_in_order(side_key, rows, sign)
  show_as_text(instrument, rows)
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
local function side_levels(instrument, side_key, sign, count)
  if redis.call("HLEN", keys.levels(side_key)) > count * whole_side_factor then
    return stepped_levels(instrument, side_key, sign, count)
  end
  return whole_levels(instrument, side_key, sign, count)
end

-- The best bid and ask as JSON members, each with a comma before it.
function depth.best_members(instrument)
  local text = ""
  for _, side in ipairs({
    { name = "best_bid", key = keys.bids(instrument.key), sign = -1 },
    { name = "best_ask", key = keys.asks(instrument.key), sign = 1 },
  }) do
    local best = side_levels(instrument, side.key, side.sign, 1)
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

local function checksum_text(instrument, levels)
  local parts = {}
  local price_decimals, quantity_decimals =
    instrument.price_step.decimals, instrument.quantity_step.decimals
  local length = math.min(#levels, checksum.levels * pieces_per_level)
  for i = pieces_per_level, length, pieces_per_level do
    parts[#parts + 1] = checksum.digits_of(levels[i - 2], price_decimals)
    parts[#parts + 1] = checksum.digits_of(levels[i], quantity_decimals)
  end
  return table.concat(parts)
end

-- Adds the common part of get_book's reply and of the published book to a list of pieces of text:
-- bids asks checksum tick_size lot_size. The checksum is that of the published levels, however many
-- are asked for. Pieces, because a full book is long, and every string that it passes through costs
-- as much again.
function depth.add_json(pieces, instrument, levels_count)
  local read_count = math.max(levels_count, checksum.levels)
  local bids = side_levels(instrument, keys.bids(instrument.key), -1, read_count)
  local asks = side_levels(instrument, keys.asks(instrument.key), 1, read_count)
  pieces[#pieces + 1] = '"bids":'
  add_levels_json(pieces, bids, levels_count)
  pieces[#pieces + 1] = ',"asks":'
  add_levels_json(pieces, asks, levels_count)
  local asks_text, bids_text = checksum_text(instrument, asks), checksum_text(instrument, bids)
  pieces[#pieces + 1] = checksum.json_fields(instrument, asks_text, bids_text)
end

return depth
