-- The book order by order, as everybody may see it.

local checksum = require("market_data/checksum")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local keys = require("values/keys")

local level3 = {}

-- Bounds on get_level3, a side each: the orders it tells, and those that its checksum is made of.
local orders_max = 10000
local checksum_orders_max = 1000
local orders_chunk = 500
local row_format = '["%s","%s","%s",%.0f]'

-- Adds an order to the rows of a side, and to the text of its checksum.
local function add_order(instrument, side, order_id, text)
  local ticks, lots, priority, displayed_id = order_record.parse_public(text)
  if not ticks then
    return
  end
  order_id = displayed_id or order_id
  local price = instrument_record.price_text(instrument, ticks)
  local quantity = instrument_record.quantity_text(instrument, lots)
  side.count = side.count + 1
  if side.count <= checksum_orders_max and side.levels <= checksum.levels then
    side.digits[#side.digits + 1] = checksum.digits_of(price, instrument.price_step.decimals)
      .. checksum.digits_of(quantity, instrument.quantity_step.decimals)
      .. order_id
  end
  if side.levels <= side.levels_wanted then
    side.rows[#side.rows + 1] = row_format:format(price, quantity, order_id, priority)
  end
end

-- Adds a chunk of a side's queue. Returns whether it reached beyond the levels that are read.
local function add_orders(instrument, side, members)
  local ids = {}
  for i = 1, #members, 2 do
    ids[#ids + 1] = order_record.id_of_member(members[i])
  end
  local texts = redis.call("HMGET", keys.orders(instrument.key), unpack(ids))
  for i = 1, #ids do
    local score = members[i * 2]
    if score ~= side.score then
      side.score, side.levels = score, side.levels + 1
    end
    if side.levels > side.levels_read then
      return true
    end
    if texts[i] then
      add_order(instrument, side, ids[i], texts[i])
    end
  end
  return false
end

-- The orders of a side's best levels in queue order, as rows of JSON and as the text of their
-- checksum; `more` tells that there were too many.
local function side_orders(instrument, side_key, levels_wanted)
  local levels_read = math.max(levels_wanted, checksum.levels)
  local side = { levels = 0, levels_wanted = levels_wanted, levels_read = levels_read }
  side.score, side.count, side.rows, side.digits = false, 0, {}, {}
  for from = 0, orders_max - 1, orders_chunk do
    local to = from + orders_chunk - 1
    local members = redis.call("ZRANGE", side_key, from, to, "WITHSCORES")
    if #members == 0 or add_orders(instrument, side, members) then
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
function level3.add_json(pieces, instrument, levels_count)
  local bids = side_orders(instrument, keys.bids(instrument.key), levels_count)
  local asks = side_orders(instrument, keys.asks(instrument.key), levels_count)
  pieces[#pieces + 1] = '"bids":'
  add_rows_json(pieces, bids.rows)
  pieces[#pieces + 1] = ',"asks":'
  add_rows_json(pieces, asks.rows)
  pieces[#pieces + 1] = ',"more":' .. tostring(bids.more or asks.more or false)
  local asks_text, bids_text = table.concat(asks.digits), table.concat(bids.digits)
  pieces[#pieces + 1] = checksum.json_fields(instrument, asks_text, bids_text)
end

return level3
