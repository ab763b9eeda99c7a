-- The totals of price levels, which must stay exact integers.

local instrument_record = require("records/instrument_record")

local levels = {}

local arguments_max = 4000

-- Reads the stored totals of these prices.
function levels.read_totals(tx, side, prices)
  local totals = side.totals
  for from = 1, #prices, arguments_max do
    local names = {}
    for i = from, math.min(from + arguments_max - 1, #prices) do
      names[#names + 1] = instrument_record.ticks_text(tx.instrument, prices[i])
    end
    local texts = redis.call("HMGET", side.levels_key, unpack(names))
    for i = 1, #texts do
      totals[prices[from + i - 1]] = texts[i] and texts[i] + 0 or 0
    end
  end
end

-- Whether the total of a level would be beyond exactness with these lots more. The slices of
-- icebergs come and go, so beside one there is no order of a size that would matter.
function levels.overflows(tx, side_name, price, lots)
  local instrument = tx.instrument
  if lots <= tx.lots_safe and instrument.largest_order_lots <= tx.lots_safe then
    return false
  end
  if tx.has_icebergs and lots > tx.lots_safe then
    return true
  end
  local side = tx[side_name]
  if not side.totals[price] then
    levels.read_totals(tx, side, { price })
  end
  return side.totals[price] + (side.differences[price] or 0) + lots > instrument.lots_max
end

return levels
