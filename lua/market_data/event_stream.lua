-- What happened, told to the world: one stream entry for each call that changed a book.
--
-- An entry's fields are topics and its values complete JSON messages, so that a host hands the
-- stream's bytes to its clients as they are. One topic an account (`orders:alice`) keeps private
-- reports private; `trades` and `level2` are for everybody. The entry's id is `<sequence>-0`:
-- Redis itself refuses a sequence that was used before, and a reader sees at once when it missed
-- one.
--
-- This file has the only XADDs.

local instrument_json = require("market_data/instrument_json")
local instrument_record = require("records/instrument_record")
local acceptance = require("server/acceptance")
local keys = require("values/keys")
local numbers = require("values/numbers")

local event_stream = {}

function event_stream.new()
  return { accounts = {}, reports = {}, trades = {} }
end

-- The beginning of a message of a channel.
function event_stream.head(tx, channel)
  return '{"channel":"'
    .. channel
    .. '","symbol":"'
    .. tx.instrument.symbol
    .. '","type":"update","sequence":'
    .. tx.sequence_text
    .. ',"epoch":'
    .. tx.instrument.epoch
end

-- The rules or the status of the instrument have changed: the entry has them as they are at the end
-- of the call.
function event_stream.instrument_changed(tx)
  tx.events.instrument = true
end

-- History before this entry may have been lost.
function event_stream.epoch_begun(tx)
  tx.events.epoch = true
end

local function level_rows(tx, side, prices)
  if #prices == 0 then
    return "[]"
  end
  local instrument = tx.instrument
  local rows = {}
  for i = 1, #prices do
    local price = prices[i]
    rows[i] = '["'
      .. instrument_record.price_text(instrument, price)
      .. '","'
      .. instrument_record.quantity_text(instrument, side.totals[price])
      .. '"]'
  end
  return "[" .. table.concat(rows, ",") .. "]"
end

local function add(list, topic, message)
  local length = #list
  list[length + 1], list[length + 2] = topic, message
end

-- A new epoch, with the counters as they are at the end of the call: they skip what was lost.
local function epoch_message(tx)
  local instrument = tx.instrument
  return event_stream.head(tx, "epoch")
    .. ',"last_order_id":"'
    .. numbers.integer_text(instrument.last_order_id)
    .. '","last_trade_id":"'
    .. numbers.integer_text(instrument.last_trade_id)
    .. '"}'
end

-- Topic, message, topic, message … of this call.
local function topics(tx, bid_prices, ask_prices, trades_message)
  local list, told = {}, tx.events
  if trades_message then
    add(list, "trades", trades_message)
  end
  if #bid_prices + #ask_prices > 0 then
    local bids = level_rows(tx, tx.buy, bid_prices)
    local asks = level_rows(tx, tx.sell, ask_prices)
    add(
      list,
      "level2",
      event_stream.head(tx, "level2") .. ',"bids":' .. bids .. ',"asks":' .. asks .. "}"
    )
  end
  for i = 1, #told.accounts do
    local account = told.accounts[i]
    local pieces = told.reports[account]
    pieces[#pieces] = tx.last_report_end
    add(list, "orders:" .. account, table.concat(pieces))
  end
  if told.instrument then
    local text = instrument_json.text(tx.instrument, tx.call_sequence)
    add(
      list,
      "instruments",
      event_stream.head(tx, "instruments") .. ',"instrument":' .. text .. "}"
    )
  end
  if told.epoch then
    add(list, "epoch", epoch_message(tx))
  end
  return list
end

-- Whether a stream has an entry with this sequence or a later one.
local function taken(stream_key, sequence)
  local before = numbers.integer_text(sequence - 1) .. "-18446744073709551615"
  local found = redis.call("XREAD", "COUNT", 1, "STREAMS", stream_key, before)
  return type(found) == "table" and #found > 0
end

local function damaged(problem)
  return redis.error_reply("DAMAGED " .. problem .. ": run verify_book")
end

local function is_ahead(stream_name)
  return damaged("the stream " .. stream_name .. " is ahead of the book")
end

-- An error reply where the stream of trades has the call's sequence already, else nil. The stream
-- of events needs no look: its entry is the first write, and Redis refuses it by itself.
function event_stream.trades_refusal(tx)
  if #tx.events.trades > 0 and taken(keys.trades(tx.key), tx.call_sequence) then
    return is_ahead("trades")
  end
  return nil
end

-- The same of the stream of events: for a call that writes several books, of which all but the
-- first are refused too late.
function event_stream.events_refusal(tx)
  if taken(tx.names.events, tx.call_sequence) then
    return is_ahead("events")
  end
  return nil
end

-- The call's entry: the messages for the stream of events, and the one for the stream of trades or
-- nil. bid_prices and ask_prices are the levels that the call changed.
function event_stream.entry(tx, bid_prices, ask_prices)
  local trades_message
  if #tx.events.trades > 0 then
    trades_message = event_stream.head(tx, "trades")
      .. ',"trades":['
      .. table.concat(tx.events.trades)
      .. "]}"
  end
  return { messages = topics(tx, bid_prices, ask_prices, trades_message), trades = trades_message }
end

-- Appends to a stream with the id of a sequence. Returns nil, or an error reply where the stream
-- refused it: nothing was written then. A stream that must be there already is not made.
local function append_to(stream_name, stream_key, ...)
  local added = redis.pcall("XADD", stream_key, ...)
  if not added then
    return damaged("the stream " .. stream_name .. " is missing")
  end
  if type(added) ~= "table" or not added.err then
    return nil
  end
  if added.err:find("WRONGTYPE", 1, true) then
    return damaged("the stream " .. stream_name .. " has the type of another key")
  end
  return is_ahead(stream_name)
end

-- Appends the call's entry to the stream of events, the first write of every call. Returns nil, or
-- an error reply where the stream refused it: nothing was written then.
function event_stream.append(tx, entry)
  local events_key, length_max = tx.names.events, tx.instrument.events_length_max
  local id, list = tx.sequence_text .. "-0", entry.messages
  if tx.sequence == 0 then
    return append_to("events", events_key, "MAXLEN", "~", length_max, id, unpack(list))
  end
  -- Only a new book has no stream yet.
  local trim = "NOMKSTREAM"
  return append_to("events", events_key, trim, "MAXLEN", "~", length_max, id, unpack(list))
end

-- Plans the write of the call's trades to their own stream: see commit.lua.
function event_stream.plan_trades(tx, entry, later)
  if entry.trades then
    local length_max, id = tx.instrument.trades_length_max, tx.sequence_text .. "-0"
    later("XADD", keys.trades(tx.key), { "MAXLEN", "~", length_max, id, "trades", entry.trades })
  end
end

-- An error reply where the caller's Redis user may not append to the stream of events, else nil.
function event_stream.right_error(tx)
  return acceptance.right_error("XADD", tx.names.events)
end

-- Writes the half-second book and what goes with it (topic, message, …) under the sequence that it
-- shows. Returns nil or an error reply.
function event_stream.publish_book(instrument, list)
  local id = string.format("%.0f-0", instrument.sequence)
  local stream_key, length_max = keys.published_book(instrument.key), instrument.book_length_max
  local refused = acceptance.right_error("XADD", stream_key)
    or acceptance.right_error("HSET", instrument.key)
  if refused then
    return refused
  end
  return append_to("book", stream_key, "MAXLEN", "~", length_max, id, unpack(list))
end

return event_stream
