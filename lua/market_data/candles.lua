-- Candles and the ticker: what the trades of a book come to, by the minute.
--
-- A call that trades changes one thing only, the unfinished candle of its minute. When a trade
-- comes in a later minute the finished one is kept, and rolled up into the unfinished 5m, 15m, 1h
-- and 1d candles; each of these is finished likewise when a minute of a later interval is rolled
-- up. So a minute costs five candles and a trade a few additions. An interval without trades has no
-- candle.
--
-- Unfinished candles are lines in the hash `…:candles`: when it opened, open, high, low, close,
-- volume, number of trades. Finished ones are JSON in a sorted set an interval, by when they
-- opened. All are in decimal text, which stays what it is when tick_size or lot_size change. A
-- volume may outgrow 2^53 - 1: within a call it is counted as billions and the remainder.

local instrument_record = require("records/instrument_record")
local decimal = require("values/decimal")
local keys = require("values/keys")
local numbers = require("values/numbers")

local candles = {}

local minute_ms = 60000
local day_ms = 86400000
local billion = 1000000000

-- The intervals, and how many finished candles are kept of each.
candles.intervals = { "1m", "5m", "15m", "1h", "1d" }
local length_ms = { ["1m"] = 60000, ["5m"] = 300000, ["15m"] = 900000, ["1h"] = 3600000 }
length_ms["1d"] = day_ms
local kept_max = { ["1m"] = 1500, ["5m"] = 1000, ["15m"] = 1000, ["1h"] = 1000, ["1d"] = 1000 }

candles.candles_max = 500

-- ---- candles: { open_ms, open, high, low, close, volume, trades }

-- Counts a trade of a call, in ticks and lots, into the candle of its minute.
function candles.count(tx, price, lots)
  local candle = tx.candle
  local volume = lots * tx.instrument.quantity_step.size
  if not candle then
    candle = { open = price, high = price, low = price, close = price, trades = 0 }
    candle.billions, candle.remainder, tx.candle = 0, 0, candle
  end
  if price > candle.high then
    candle.high = price
  elseif price < candle.low then
    candle.low = price
  end
  candle.close, candle.trades = price, candle.trades + 1
  local remainder = candle.remainder + volume % billion
  if volume >= billion then
    candle.billions = candle.billions + math.floor(volume / billion)
  end
  if remainder >= billion then
    candle.billions, remainder = candle.billions + 1, remainder - billion
  end
  candle.remainder = remainder
end

-- The volume that a call has counted, as decimal text.
local function counted_volume(candle, decimals)
  local digits = ("%d"):format(candle.remainder)
  if candle.billions > 0 then
    digits = ("%d%09d"):format(candle.billions, candle.remainder)
  end
  return decimal.text_of_digits(digits, decimals)
end

-- What a call has counted, as a candle.
local function counted(tx)
  local instrument, candle = tx.instrument, tx.candle
  return {
    open_ms = tx.now_ms - tx.now_ms % length_ms["1m"],
    open = instrument_record.price_text(instrument, candle.open),
    high = instrument_record.price_text(instrument, candle.high),
    low = instrument_record.price_text(instrument, candle.low),
    close = instrument_record.price_text(instrument, candle.close),
    volume = counted_volume(candle, instrument.quantity_step.decimals),
    trades = candle.trades,
  }
end

local line_pattern = "^(%d+) (%S+) (%S+) (%S+) (%S+) (%S+) (%d+)$"

local function parse(text)
  if not text then
    return nil
  end
  local open_ms, open, high, low, close, volume, trades = text:match(line_pattern)
  return {
    open_ms = open_ms + 0,
    open = open,
    high = high,
    low = low,
    close = close,
    volume = volume,
    trades = trades + 0,
  }
end

local function line(candle)
  return ("%d %s %s %s %s %s %d"):format(
    candle.open_ms,
    candle.open,
    candle.high,
    candle.low,
    candle.close,
    candle.volume,
    candle.trades
  )
end

-- When the interval began that a time is in.
local function opening(time_ms, interval)
  return time_ms - time_ms % length_ms[interval]
end

-- A stored volume. One that an earlier library wrote wrong, as no decimal text, counts as nothing.
local function volume_of(candle)
  return candle.volume:find("^%d+%.?%d*$") and candle.volume or "0"
end

-- Two candles of one interval as one; the second is the later.
local function joined(first, second)
  return {
    open_ms = first.open_ms,
    open = first.open,
    high = decimal.is_greater(second.high, first.high) and second.high or first.high,
    low = decimal.is_greater(first.low, second.low) and second.low or first.low,
    close = second.close,
    volume = decimal.sum(volume_of(first), volume_of(second)),
    trades = first.trades + second.trades,
  }
end

-- A candle as that of a longer interval which it begins.
local function widened(candle, interval)
  local wide = {}
  for name, value in pairs(candle) do
    wide[name] = value
  end
  wide.open_ms = opening(candle.open_ms, interval)
  return wide
end

local function json(candle, is_closed)
  return string.format(
    '{"open_time_ms":%.0f,"open":"%s","high":"%s","low":"%s","close":"%s","volume":"%s",'
      .. '"trades":%.0f,"closed":%s}',
    candle.open_ms,
    candle.open,
    candle.high,
    candle.low,
    candle.close,
    candle.volume,
    candle.trades,
    tostring(is_closed)
  )
end

-- ---- writing

-- Rolls a finished minute up into the longer candles: adds to the lines for the hash (field, value,
-- …) and to the rows of what is finished by it ({ interval, candle }).
local function roll_up(key, minute, lines, finished)
  local stored = redis.call("HMGET", key, unpack(candles.intervals))
  finished[1] = { "1m", minute }
  for i = 2, #candles.intervals do
    local interval, wide = candles.intervals[i], parse(stored[i])
    local begun = widened(minute, interval)
    if wide and wide.open_ms == begun.open_ms then
      begun = joined(wide, begun)
    elseif wide then
      finished[#finished + 1] = { interval, wide }
    end
    lines[#lines + 1] = interval
    lines[#lines + 1] = line(begun)
  end
end

-- Plans what a call's trades write; reads one hash. `add` takes a command, a key and what is to be
-- written.
function candles.plan(tx, add)
  local key, candle = keys.candles(tx.key), counted(tx)
  local minute, finished = parse(redis.call("HGET", key, "1m")), {}
  local lines = { "1m", false }
  if minute and minute.open_ms == candle.open_ms then
    candle = joined(minute, candle)
  elseif minute then
    roll_up(key, minute, lines, finished)
  end
  lines[2] = line(candle)
  for i = 1, #lines, 2 do
    add("HSET", key, lines[i], lines[i + 1])
  end
  for _, row in ipairs(finished) do
    local interval, text = row[1], json(row[2], true)
    add("ZADD", keys.interval_candles(tx.key, interval), ("%d"):format(row[2].open_ms), text)
  end
  tx.candles_finished = finished
end

-- Plans the writes that drop the oldest of what a call has finished more than is kept: see
-- commit.lua.
function candles.plan_trims(tx, later)
  for _, row in ipairs(tx.candles_finished) do
    local candles_key = keys.interval_candles(tx.key, row[1])
    later("ZREMRANGEBYRANK", candles_key, { 0, -kept_max[row[1]] - 1 })
  end
end

-- ---- queries

-- The candles of an interval that are not finished, oldest first: at most two.
local function unfinished(instrument, interval)
  local stored = redis.call("HMGET", keys.candles(instrument.key), "1m", interval)
  local minute, wide = parse(stored[1]), parse(stored[2])
  if not minute or interval == "1m" then
    return { minute }
  end
  local begun = widened(minute, interval)
  if wide and wide.open_ms == begun.open_ms then
    return { joined(wide, begun) }
  end
  return { wide or begun, wide and begun }
end

-- The JSON of an interval's candles that opened before a time, the latest `limit` of them, oldest
-- first; and whether there are more.
function candles.candles(instrument, interval, limit, before_ms)
  local open, rows = unfinished(instrument, interval), {}
  local now = redis.call("TIME")
  local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
  for i = #open, 1, -1 do
    if open[i].open_ms < before_ms then
      local is_closed = open[i].open_ms + length_ms[interval] <= now_ms
      rows[#rows + 1] = json(open[i], is_closed)
    end
  end
  local to = "(" .. numbers.integer_text(before_ms)
  local key = keys.interval_candles(instrument.key, interval)
  local stored = redis.call("ZREVRANGEBYSCORE", key, to, "-inf", "LIMIT", 0, limit + 1)
  for i = 1, #stored do
    rows[#rows + 1] = stored[i]
  end
  local oldest_first = {}
  for i = math.min(#rows, limit), 1, -1 do
    oldest_first[#oldest_first + 1] = rows[i]
  end
  return "[" .. table.concat(oldest_first, ",") .. "]", #rows > limit
end

-- Finished candles of an interval that opened from one time on and before another.
local function finished_between(instrument, interval, from_ms, to_ms)
  local key = keys.interval_candles(instrument.key, interval)
  local from, to = numbers.integer_text(from_ms), "(" .. numbers.integer_text(to_ms)
  local rows = redis.call("ZRANGEBYSCORE", key, from, to)
  for i = 1, #rows do
    rows[i] = cjson.decode(rows[i])
  end
  return rows
end

-- The candles of the last 24 hours by the minute, oldest first: minutes up to the first full hour,
-- then hours, then the minute that is not finished.
local function last_day(instrument, now_ms)
  local from_ms = opening(now_ms - day_ms + minute_ms, "1m")
  local hour_ms = opening(from_ms + length_ms["1h"] - 1, "1h")
  local stored = redis.call("HMGET", keys.candles(instrument.key), "1m", "1h")
  local rows = finished_between(instrument, "1m", from_ms, hour_ms)
  for _, row in ipairs(finished_between(instrument, "1h", hour_ms, now_ms + 1)) do
    rows[#rows + 1] = row
  end
  local minute, hour = parse(stored[1]), parse(stored[2])
  for _, candle in ipairs({ hour and hour.open_ms >= hour_ms and hour or false, minute }) do
    if candle and candle.open_ms >= from_ms then
      rows[#rows + 1] = candle
    end
  end
  return rows
end

-- How far the last price is from the first, with its sign, and in percent.
local function change_members(open_text, last_text)
  local open, last, decimals = decimal.pair(open_text, last_text)
  local is_fall = decimal.compare(open, last) > 0
  local sign = is_fall and "-" or ""
  local distance = is_fall and decimal.subtract(open, last) or decimal.subtract(last, open)
  local hundredths = decimal.quotient(decimal.multiply(distance, 10000), open)
  return string.format(
    ',"change_24h":"%s%s","change_percent_24h":"%s%s"',
    sign,
    decimal.text(distance, decimals),
    hundredths ~= 0 and sign or "",
    decimal.text(hundredths, 2)
  )
end

-- Open, high, low, volume and change of the last 24 hours as JSON members, each with a comma before
-- it; only the volume where there were no trades.
function candles.day_members(instrument, now_ms)
  local rows = last_day(instrument, now_ms)
  local day = rows[1]
  if not day then
    return ',"volume_24h":"0"'
  end
  day.open_ms = 0
  for i = 2, #rows do
    day = joined(day, rows[i])
  end
  return string.format(
    ',"open_24h":"%s","high_24h":"%s","low_24h":"%s","volume_24h":"%s"%s',
    day.open,
    day.high,
    day.low,
    day.volume,
    change_members(day.open, day.close)
  )
end

return candles
