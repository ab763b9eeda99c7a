-- The entry points that only read. Queries show what is stored: what is due but not yet done, like
-- an expiry, they do not do.

local orders = require("book/orders")
local verify_book = require("functions/verify_book")
local candles = require("market_data/candles")
local depth = require("market_data/depth")
local instrument_json = require("market_data/instrument_json")
local level3 = require("market_data/level3")
local replies = require("market_data/replies")
local auction = require("matching/auction")
local target_order = require("transaction/target_order")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local keys = require("values/keys")
local numbers = require("values/numbers")
local reject = require("values/reject")

local queries = {}

local trades_limit_max = 1000
local orders_limit_max = 1000
-- No trade has more JSON, so that the last trades of a message can be cut from its end.
local trade_bytes_max = 256
-- Entries that get_trades reads at once, and from how many bytes on it reads them one by one.
local chunk_max = 32
local chunk_bytes_max = 65536

queries.no_fields = fields.schema({}, {})

local book_schema = fields.schema({ "depth" }, {})

-- A query of so many levels; `add_json` adds what it tells of them.
local function depth_query(call_keys, arguments, add_json)
  local instrument, values = transaction.open_query(call_keys, arguments, book_schema)
  if not instrument then
    return reject.json(values)
  end
  local levels = values.depth or "10"
  levels = levels == "full" and depth.levels_max or tonumber(levels)
  if levels > depth.levels_max then
    return reject.json(reject.new("INVALID_VALUE", "depth must be at most 10000"))
  end
  local head = '{"symbol":"%s","sequence":%.0f,"epoch":%s,'
  local pieces = { head:format(instrument.symbol, instrument.sequence, instrument.epoch) }
  add_json(pieces, instrument, levels)
  pieces[#pieces + 1] = "}"
  return table.concat(pieces)
end

-- get_book: the best levels of both sides.
-- Fields: depth (1 to 10000 or full; 10). Reply: symbol sequence epoch bids asks checksum tick_size
-- lot_size. Rejects: INVALID_VALUE.
function queries.get_book(call_keys, arguments)
  return depth_query(call_keys, arguments, depth.add_json)
end

-- get_level3: the orders of the best levels of both sides, in queue order, as everybody may see
-- them.
-- Fields: depth (levels; 1 to 10000 or full; 10). Reply: symbol sequence epoch bids asks more
-- checksum tick_size lot_size. Rejects: INVALID_VALUE.
function queries.get_level3(call_keys, arguments)
  return depth_query(call_keys, arguments, level3.add_json)
end

local order_schema = fields.schema({ "account", "client_order_id", "order_id" }, {})

-- get_order: one open order.
-- Fields: order_id, or account and client_order_id. Reply: the order. Rejects: UNKNOWN_ORDER.
function queries.get_order(call_keys, arguments)
  local tx, refusal = transaction.open_with(working_copy.open, call_keys)
  local values, order
  if tx then
    values, refusal = fields.from_arguments(arguments, order_schema)
  end
  if values and values.client_order_id and not values.account then
    refusal = reject.new("MISSING_FIELD", "missing field account")
  elseif values then
    order, refusal = target_order.find_order(tx, values)
  end
  if not order then
    return reject.json(refusal, fields.echo_argument(arguments))
  end
  return replies.open_order(tx, order)
    .. string.format(',"account":"%s","sequence":%.0f}', order.account, tx.sequence)
end

local open_orders_schema = fields.schema({ "account", "after", "limit" }, { "account" })

-- The ids of an account's open orders after one of them, in order.
local function ids_after(instrument, account, after)
  local ids = {}
  for _, order_id in ipairs(redis.call("SMEMBERS", keys.account_orders(instrument.key, account))) do
    if tonumber(order_id) > after then
      ids[#ids + 1] = order_id
    end
  end
  table.sort(ids, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return ids
end

-- get_open_orders: an account's open orders of this book by order_id, a page at a time.
-- Fields: account; after limit. Reply: account symbol sequence epoch orders more. Rejects:
-- INVALID_VALUE.
function queries.get_open_orders(call_keys, arguments)
  local tx, refusal = transaction.open_with(working_copy.open, call_keys)
  local values
  if tx then
    values, refusal = fields.from_arguments(arguments, open_orders_schema)
  end
  local limit = tonumber((values or {}).limit or 500)
  if values and limit > orders_limit_max then
    refusal = reject.new("INVALID_VALUE", "limit must be at most 1000")
  end
  if refusal then
    return reject.json(refusal)
  end
  local ids = ids_after(tx.instrument, values.account, tonumber(values.after or 0))
  local page, rows = {}, {}
  for i = 1, math.min(#ids, limit) do
    page[i] = ids[i]
  end
  orders.prefetch(tx, page)
  for _, order_id in ipairs(page) do
    local order = orders.find(tx, order_id)
    rows[#rows + 1] = order and replies.open_order(tx, order) .. "}"
  end
  return string.format(
    '{"account":"%s","symbol":"%s","sequence":%.0f,"epoch":%s,"orders":[%s],"more":%s}',
    values.account,
    tx.instrument.symbol,
    tx.sequence,
    tx.instrument.epoch,
    table.concat(rows, ","),
    tostring(#ids > limit)
  )
end

local trades_schema = fields.schema({ "limit" }, {})

-- Where to begin to look for the last trades of a message: at its list, or later.
local function trades_start(message, count)
  local _, list_start = message:find('"trades":[', 1, true)
  return math.max(list_start, #message - count * trade_bytes_max)
end

-- The last objects of a trades message, as they stand in its text, at least `count` of them where
-- it has so many. None has an object within, so what is left of one that was cut is not met.
local function last_trades_of(message, count)
  local rows = {}
  for row in message:sub(trades_start(message, count)):gmatch("%b{}") do
    rows[#rows + 1] = row
  end
  return rows
end

-- Adds the trades of some entries, which are the newest first. Returns how many bytes these have.
local function add_trades(rows, entries, limit)
  local bytes = 0
  for _, entry in ipairs(entries) do
    local message = entry[2][2]
    bytes = bytes + #message
    local trades = #rows < limit and last_trades_of(message, limit - #rows) or {}
    for i = #trades, 1, -1 do
      rows[#rows + 1] = trades[i]
    end
  end
  return bytes
end

-- The latest trades, newest first. An entry has one trade or thousands, so few are read at once,
-- and more only where those before were short.
local function latest_trades(instrument, limit)
  local rows, to, chunk = {}, "+", 1
  while #rows < limit do
    local entries = redis.call("XREVRANGE", keys.trades(instrument.key), to, "-", "COUNT", chunk)
    local bytes = add_trades(rows, entries, limit)
    if #entries < chunk then
      break
    end
    to = "(" .. entries[#entries][1]
    chunk = bytes < chunk_bytes_max and math.min(chunk * 2, chunk_max) or 1
  end
  return rows
end

-- get_trades: the most recent trades, oldest first.
-- Fields: limit (1 to 1000; 50). Reply: symbol sequence epoch trades. Rejects: INVALID_VALUE.
function queries.get_trades(call_keys, arguments)
  local instrument, values = transaction.open_query(call_keys, arguments, trades_schema)
  if not instrument then
    return reject.json(values)
  end
  local limit = tonumber(values.limit or 50)
  if limit > trades_limit_max then
    return reject.json(reject.new("INVALID_VALUE", "limit must be at most 1000"))
  end
  local latest = latest_trades(instrument, limit)
  local rows = {}
  for i = math.min(#latest, limit), 1, -1 do
    rows[#rows + 1] = latest[i]
  end
  return string.format(
    '{"symbol":"%s","sequence":%.0f,"epoch":%s,"trades":[%s]}',
    instrument.symbol,
    instrument.sequence,
    instrument.epoch,
    table.concat(rows, ",")
  )
end

-- get_auction: what a call auction would come to now.
-- Fields: none. Reply: symbol status indicative_price indicative_quantity imbalance_side
-- imbalance_quantity sequence epoch. Rejects: NO_AUCTION.
function queries.get_auction(call_keys, arguments)
  local instrument, malformed = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(malformed)
  end
  if instrument.status ~= "auction" then
    return reject.json(reject.new("NO_AUCTION", "the instrument is in no auction"))
  end
  return string.format(
    '{"symbol":"%s","status":"auction"%s,"sequence":%.0f,"epoch":%s}',
    instrument.symbol,
    auction.outcome_json(working_copy.from(instrument)),
    instrument.sequence,
    instrument.epoch
  )
end

local candles_schema = fields.schema({ "interval", "limit", "before" }, { "interval" })

-- get_candles: the candles of an interval, oldest first, a page at a time from the latest.
-- Fields: interval (1m 5m 15m 1h 1d); limit (1 to 500; 500), before (an open_time_ms).
-- Reply: symbol interval sequence epoch candles more. Rejects: INVALID_VALUE.
function queries.get_candles(call_keys, arguments)
  local instrument, values = transaction.open_query(call_keys, arguments, candles_schema)
  if not instrument then
    return reject.json(values)
  end
  local limit = tonumber(values.limit or candles.candles_max)
  if limit > candles.candles_max then
    return reject.json(reject.new("INVALID_VALUE", "limit must be at most 500"))
  end
  local before_ms = tonumber(values.before or numbers.exact_max)
  local rows, more = candles.candles(instrument, values.interval, limit, before_ms)
  return string.format(
    '{"symbol":"%s","interval":"%s","sequence":%.0f,"epoch":%s,"candles":%s,"more":%s}',
    instrument.symbol,
    values.interval,
    instrument.sequence,
    instrument.epoch,
    rows,
    tostring(more)
  )
end

-- get_ticker: the best prices, the last one, and what happened in the last 24 hours.
-- Fields: none. Reply: symbol best_bid best_bid_quantity best_ask best_ask_quantity last_price
-- open_24h high_24h low_24h volume_24h change_24h change_percent_24h sequence epoch timestamp_ms.
-- Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
function queries.get_ticker(call_keys, arguments)
  local instrument, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(refusal)
  end
  return '{"symbol":"' .. instrument.symbol .. '"' .. queries.ticker_members(instrument) .. "}"
end

-- What a ticker tells, as JSON members, each with a comma before it.
function queries.ticker_members(instrument)
  local now_ms = working_copy.clock_ms()
  local last = instrument.last_price and ',"last_price":"' .. instrument.last_price .. '"' or ""
  return depth.best_members(instrument)
    .. last
    .. candles.day_members(instrument, now_ms)
    .. string.format(
      ',"sequence":%.0f,"epoch":%s,"timestamp_ms":%.0f',
      instrument.sequence,
      instrument.epoch,
      now_ms
    )
end

-- get_instrument: the rules and state of an instrument.
-- Fields: none. Reply: the instrument. Rejects: UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
function queries.get_instrument(call_keys, arguments)
  local instrument, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(refusal)
  end
  return instrument_json.text(instrument, instrument.sequence)
end

-- verify_book: checks every invariant of the stored book.
-- Fields: none. Reply: verified, then orders levels sequence state_hash, or violations. Rejects:
-- UNKNOWN_SYMBOL.
function queries.verify_book(call_keys, arguments)
  local instrument, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(refusal)
  end
  return verify_book.json(instrument)
end

return queries
