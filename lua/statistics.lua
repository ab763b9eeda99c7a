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
-- opened. All are in decimal text, which stays what it is when tick_size or lot_size change; a
-- volume may outgrow exactness, and is added up in two parts, thousands of millions and the rest.

local instrument = require("instrument")
local keys = require("keys")
local numbers = require("numbers")

local statistics = {}

local minute_ms = 60000
local day_ms = 86400000
local part_max = 1000000000

-- The intervals, and how many finished candles are kept of each.
statistics.intervals = { "1m", "5m", "15m", "1h", "1d" }
local length_ms = { ["1m"] = 60000, ["5m"] = 300000, ["15m"] = 900000, ["1h"] = 3600000 }
length_ms["1d"] = day_ms
local kept_max = { ["1m"] = 1500, ["5m"] = 1000, ["15m"] = 1000, ["1h"] = 1000, ["1d"] = 1000 }

statistics.candles_max = 500

-- ---- decimal text

-- Decimal text as thousands of millions and the rest of the last of so many decimals; what is finer
-- is left out.
local function parts_of(text, decimals)
  local whole, fraction = text:match("^(%d+)%.?(%d*)$")
  local digits = whole .. (fraction .. ("0"):rep(decimals)):sub(1, decimals)
  if #digits <= 9 then
    return 0, digits + 0
  end
  return digits:sub(1, -10) + 0, digits:sub(-9) + 0
end

-- Such parts as the shortest decimal text.
local function text_of(millions, rest, decimals)
  local digits = millions > 0 and ("%d%09d"):format(millions, rest) or ("%d"):format(rest)
  if decimals == 0 then
    return digits
  end
  digits = ("0"):rep(decimals + 1 - #digits) .. digits
  local fraction = digits:sub(-decimals):gsub("0+$", "")
  local whole = digits:sub(1, -decimals - 1)
  return fraction == "" and whole or whole .. "." .. fraction
end

local function decimals_of(left, right)
  return math.max(#left:match("%.?(%d*)$"), #right:match("%.?(%d*)$"))
end

local function sum(left, right)
  local decimals = decimals_of(left, right)
  local millions, rest = parts_of(left, decimals)
  local more_millions, more = parts_of(right, decimals)
  millions, rest = millions + more_millions, rest + more
  if rest >= part_max then
    millions, rest = millions + 1, rest - part_max
  end
  return text_of(millions, rest, decimals)
end

local function is_greater(left, right)
  local left_whole, left_fraction = left:match("^(%d+)%.?(%d*)$")
  local right_whole, right_fraction = right:match("^(%d+)%.?(%d*)$")
  if #left_whole ~= #right_whole then
    return #left_whole > #right_whole
  end
  if left_whole ~= right_whole then
    return left_whole > right_whole
  end
  return left_fraction > right_fraction
end

-- ---- candles: { open_ms, open, high, low, close, volume, trades }

-- Counts a trade of a call, in ticks and lots, into the candle of its minute.
function statistics.count(b, price, lots)
  local candle = b.candle
  local volume = lots * b.instrument.quantity_step.size
  if not candle then
    candle = { open = price, high = price, low = price, close = price, millions = 0, rest = 0 }
    candle.trades, b.candle = 0, candle
  end
  if price > candle.high then
    candle.high = price
  elseif price < candle.low then
    candle.low = price
  end
  candle.close, candle.trades = price, candle.trades + 1
  local rest = candle.rest + volume % part_max
  if volume >= part_max then
    candle.millions = candle.millions + math.floor(volume / part_max)
  end
  if rest >= part_max then
    candle.millions, rest = candle.millions + 1, rest - part_max
  end
  candle.rest = rest
end

-- What a call has counted, as a candle.
local function counted(b)
  local record, candle = b.instrument, b.candle
  local decimals = record.quantity_step.decimals
  return {
    open_ms = b.now_ms - b.now_ms % length_ms["1m"],
    open = instrument.price_text(record, candle.open),
    high = instrument.price_text(record, candle.high),
    low = instrument.price_text(record, candle.low),
    close = instrument.price_text(record, candle.close),
    volume = text_of(candle.millions, candle.rest, decimals),
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

-- Two candles of one interval as one; the second is the later.
local function joined(first, second)
  return {
    open_ms = first.open_ms,
    open = first.open,
    high = is_greater(second.high, first.high) and second.high or first.high,
    low = is_greater(first.low, second.low) and second.low or first.low,
    close = second.close,
    volume = sum(first.volume, second.volume),
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
  local stored = redis.call("HMGET", key, unpack(statistics.intervals))
  finished[1] = { "1m", minute }
  for i = 2, #statistics.intervals do
    local interval, wide = statistics.intervals[i], parse(stored[i])
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
function statistics.plan(b, add)
  local key, candle = keys.candles(b.key), counted(b)
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
    add("ZADD", keys.interval_candles(b.key, interval), ("%d"):format(row[2].open_ms), text)
  end
  b.candles_finished = finished
end

-- The writes that drop the oldest of what a call has finished more than is kept: see writing.lua.
function statistics.each_trim(b, run)
  for _, row in ipairs(b.candles_finished) do
    local candles_key = keys.interval_candles(b.key, row[1])
    run("ZREMRANGEBYRANK", candles_key, { 0, -kept_max[row[1]] - 1 })
  end
end

-- ---- queries

-- The candles of an interval that are not finished, oldest first: at most two.
local function unfinished(record, interval)
  local stored = redis.call("HMGET", keys.candles(record.key), "1m", interval)
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
function statistics.candles(record, interval, limit, before_ms)
  local open, rows = unfinished(record, interval), {}
  local now = redis.call("TIME")
  local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
  for i = #open, 1, -1 do
    if open[i].open_ms < before_ms then
      local is_closed = open[i].open_ms + length_ms[interval] <= now_ms
      rows[#rows + 1] = json(open[i], is_closed)
    end
  end
  local to = "(" .. numbers.integer_text(before_ms)
  local key = keys.interval_candles(record.key, interval)
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
local function finished_between(record, interval, from_ms, to_ms)
  local key = keys.interval_candles(record.key, interval)
  local from, to = numbers.integer_text(from_ms), "(" .. numbers.integer_text(to_ms)
  local rows = redis.call("ZRANGEBYSCORE", key, from, to)
  for i = 1, #rows do
    rows[i] = cjson.decode(rows[i])
  end
  return rows
end

-- The candles of the last 24 hours by the minute, oldest first: minutes up to the first full hour,
-- then hours, then the minute that is not finished.
local function last_day(record, now_ms)
  local from_ms = opening(now_ms - day_ms + minute_ms, "1m")
  local hour_ms = opening(from_ms + length_ms["1h"] - 1, "1h")
  local stored = redis.call("HMGET", keys.candles(record.key), "1m", "1h")
  local rows = finished_between(record, "1m", from_ms, hour_ms)
  for _, row in ipairs(finished_between(record, "1h", hour_ms, now_ms + 1)) do
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
local function change_members(open, last)
  local decimals = decimals_of(open, last)
  local open_millions, open_rest = parts_of(open, decimals)
  local last_millions, last_rest = parts_of(last, decimals)
  local sign = is_greater(open, last) and "-" or ""
  local distance = math.abs((last_millions - open_millions) * part_max + last_rest - open_rest)
  local hundredths = math.floor(distance * 10000 / (open_millions * part_max + open_rest))
  return string.format(
    ',"change_24h":"%s%s","change_percent_24h":"%s%s"',
    sign,
    text_of(math.floor(distance / part_max), distance % part_max, decimals),
    hundredths > 0 and sign or "",
    text_of(math.floor(hundredths / part_max), hundredths % part_max, 2)
  )
end

-- Open, high, low, volume and change of the last 24 hours as JSON members, each with a comma before
-- it; only the volume where there were no trades.
function statistics.day_members(record, now_ms)
  local rows = last_day(record, now_ms)
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

return statistics
