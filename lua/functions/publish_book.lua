-- The half-second stream: the top of the book, the ticker and the candles.

local queries = require("functions/queries")
local candles = require("market_data/candles")
local checksum = require("market_data/checksum")
local depth = require("market_data/depth")
local event_stream = require("market_data/event_stream")
local auction = require("matching/auction")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local numbers = require("values/numbers")
local reject = require("values/reject")

local publish_book = {}

local publish_interval_ms = 500

-- What an auction would come to now, for the half-second book; empty where there is none.
local function auction_member(instrument)
  if instrument.status ~= "auction" then
    return ""
  end
  return ',"auction":{' .. auction.outcome_json(working_copy.from(instrument)):sub(2) .. "}"
end

local function published_message(instrument, now_ms)
  local head = '{"channel":"book","symbol":"%s","type":"snapshot","sequence":%.0f,"epoch":%s,'
    .. '"timestamp_ms":%.0f,'
  local pieces = { head:format(instrument.symbol, instrument.sequence, instrument.epoch, now_ms) }
  depth.add_json(pieces, instrument, checksum.levels)
  pieces[#pieces + 1] = auction_member(instrument) .. "}"
  return table.concat(pieces)
end

local function update_head(instrument, channel)
  return '{"channel":"' .. channel .. '","symbol":"' .. instrument.symbol .. '","type":"update"'
end

-- What the half-second stream gets, as topic, message, …: the book, the ticker, and where there was
-- a trade since the last time the two latest candles of each interval: the one before may have
-- ended in between.
local function published_messages(instrument, now_ms)
  local ticker = update_head(instrument, "ticker") .. queries.ticker_members(instrument) .. "}"
  local list = { "book", published_message(instrument, now_ms), "ticker", ticker }
  local last_trade_id = redis.call("HGET", instrument.key, "published_trade_id")
  if instrument.last_trade_id == tonumber(last_trade_id or 0) then
    return list
  end
  for _, interval in ipairs(candles.intervals) do
    local rows = candles.candles(instrument, interval, 2, numbers.exact_max)
    list[#list + 1] = "candles:" .. interval
    list[#list + 1] = string.format(
      '%s,"interval":"%s","sequence":%.0f,"epoch":%s,"candles":%s}',
      update_head(instrument, "candles"),
      interval,
      instrument.sequence,
      instrument.epoch,
      rows
    )
  end
  return list
end

-- publish_book: writes the top 10, the ticker and the candles that changed to the stream `…:book`
-- when the book changed since and 500 ms have passed.
-- Fields: none. Reply: published sequence wait_ms. Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
function publish_book.call(call_keys, arguments)
  local instrument, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(refusal)
  end
  local now_ms = working_copy.clock_ms()
  local last = redis.call("HMGET", instrument.key, "published_sequence", "published_timestamp_ms")
  local since_ms = now_ms - tonumber(last[2] or 0)
  local due = since_ms >= publish_interval_ms or since_ms < 0
  local published = due and instrument.sequence > tonumber(last[1] or 0)
  if published then
    local refused = event_stream.publish_book(instrument, published_messages(instrument, now_ms))
    if refused then
      return refused
    end
    local sequence, now = numbers.integer_text(instrument.sequence), numbers.integer_text(now_ms)
    local trade_id = numbers.integer_text(instrument.last_trade_id)
    local state = { "published_sequence", sequence, "published_trade_id", trade_id }
    redis.call("HSET", instrument.key, "published_timestamp_ms", now, unpack(state))
  end
  return string.format(
    '{"published":%s,"sequence":%.0f,"wait_ms":%.0f}',
    tostring(published),
    instrument.sequence,
    due and publish_interval_ms or publish_interval_ms - since_ms
  )
end

return publish_book
