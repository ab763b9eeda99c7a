-- What happened, told to the world: one stream entry for each call that changed a book.
--
-- An entry's fields are topics and its values complete JSON messages, so that a host hands the
-- stream's bytes to its clients as they are. One topic an account (`orders:alice`) keeps private
-- reports private; `trades` and `level2` are for everybody. The entry's id is `<sequence>-0`:
-- Redis itself refuses a sequence that was used before, and a reader sees at once when it missed
-- one.
--
-- From these reports alone the book can be rebuilt: they carry the priority an order queued with.
-- This file has the only XADDs.

local instrument = require("instrument")
local keys = require("keys")
local numbers = require("numbers")

local events = {}

function events.new()
  return { accounts = {}, reports = {}, trades = {} }
end

-- What identifies an order in every report and reply.
function events.identity(o)
  if not o.identity then
    local client = o.client_order_id and '","client_order_id":"' .. o.client_order_id or ""
    o.identity = '"order_id":"' .. o.order_id .. client .. '"'
  end
  return o.identity
end

-- text: a JSON object.
local function report(b, account, text)
  local list = b.events.reports[account]
  if not list then
    list = {}
    b.events.reports[account] = list
    b.events.accounts[#b.events.accounts + 1] = account
  end
  list[#list + 1] = text
end

-- The terms of an order, as they stand in every report and reply about it: what it is called, and
-- what it asks for. A market order has no price. Made once, and anew when an amend changes them.
function events.terms(b, o)
  if not o.terms then
    local record = b.instrument
    o.terms = events.identity(o)
      .. ',"side":"'
      .. o.side
      .. '","order_type":"'
      .. o.order_type
      .. '","time_in_force":"'
      .. o.time_in_force
      .. (o.post_only and '","post_only":true,"quantity":"' or '","quantity":"')
      .. instrument.quantity_text(record, o.quantity)
      .. (o.price and '","price":"' .. instrument.price_text(record, o.price) .. '"' or '"')
  end
  return o.terms
end

-- The terms and what is left: the order as it stands.
function events.standing(b, o)
  local remaining = instrument.quantity_text(b.instrument, o.remaining)
  return events.terms(b, o) .. ',"remaining_quantity":"' .. remaining .. '"'
end

-- The order was taken on.
function events.accepted(b, o)
  report(
    b,
    o.account,
    '{"event":"accepted",'
      .. events.terms(b, o)
      .. ',"priority":'
      .. numbers.integer_text(o.priority)
      .. ',"timestamp_ms":'
      .. b.timestamp_ms
      .. "}"
  )
end

-- The order's price or quantity was changed; what it trades by this follows. Where it kept its
-- place the priority is the old one.
function events.amended(b, o)
  report(
    b,
    o.account,
    '{"event":"amended",'
      .. events.standing(b, o)
      .. ',"priority":'
      .. numbers.integer_text(tonumber(o.place))
      .. ',"timestamp_ms":'
      .. b.timestamp_ms
      .. "}"
  )
end

-- What was left of the order is gone. Reasons: requested, cancel_all, ioc, fok.
function events.canceled(b, o, reason)
  report(
    b,
    o.account,
    '{"event":"canceled",'
      .. events.standing(b, o)
      .. ',"reason":"'
      .. reason
      .. '","timestamp_ms":'
      .. b.timestamp_ms
      .. "}"
  )
end

local function trade_report(b, o, trade, role)
  local status = o.remaining == 0 and "filled" or "partially_filled"
  report(
    b,
    o.account,
    '{"event":"trade",'
      .. events.identity(o)
      .. ',"trade_id":"'
      .. trade.trade_id
      .. '","role":"'
      .. role
      .. '","side":"'
      .. o.side
      .. '","price":"'
      .. trade.price
      .. '","quantity":"'
      .. trade.quantity
      .. '","remaining_quantity":"'
      .. instrument.quantity_text(b.instrument, o.remaining)
      .. '","status":"'
      .. status
      .. '","timestamp_ms":'
      .. b.timestamp_ms
      .. "}"
  )
end

-- A trade, after both orders were reduced. trade: { trade_id, price, quantity }, all text.
function events.trade(b, taker, maker, trade)
  local list = b.events.trades
  list[#list + 1] = '{"trade_id":"'
    .. trade.trade_id
    .. '","price":"'
    .. trade.price
    .. '","quantity":"'
    .. trade.quantity
    .. '","aggressor_side":"'
    .. taker.side
    .. '","maker_order_id":"'
    .. maker.order_id
    .. '","taker_order_id":"'
    .. taker.order_id
    .. '"'
    .. b.stamp
  trade_report(b, taker, trade, "taker")
  trade_report(b, maker, trade, "maker")
end

-- The instrument was defined or its rules changed.
function events.instrument_changed(b)
  b.events.instrument = instrument.json(b.instrument, b.call_sequence)
end

-- History before this entry may have been lost.
function events.epoch_begun(b)
  b.events.epoch = true
end

local function head(b, channel)
  return '{"channel":"'
    .. channel
    .. '","symbol":"'
    .. b.instrument.symbol
    .. string.format('","type":"update","sequence":%.0f,"epoch":', b.call_sequence)
    .. b.instrument.epoch
end

local function level_rows(b, side, prices)
  local record = b.instrument
  local rows = {}
  for i, price in ipairs(prices) do
    rows[i] = '["'
      .. instrument.price_text(record, price)
      .. '","'
      .. instrument.quantity_text(record, side.levels[price])
      .. '"]'
  end
  return "[" .. table.concat(rows, ",") .. "]"
end

-- Topic, message, topic, message … of this call.
local function topics(b, bid_prices, ask_prices, trades_message)
  local list = {}
  local function add(topic, message)
    list[#list + 1] = topic
    list[#list + 1] = message
  end
  local told = b.events
  if trades_message then
    add("trades", trades_message)
  end
  if #bid_prices + #ask_prices > 0 then
    local bids = level_rows(b, b.buy, bid_prices)
    local asks = level_rows(b, b.sell, ask_prices)
    add("level2", head(b, "level2") .. ',"bids":' .. bids .. ',"asks":' .. asks .. "}")
  end
  for _, account in ipairs(told.accounts) do
    local reports = table.concat(told.reports[account], ",")
    local who = ',"account":"' .. account .. '","orders":['
    add("orders:" .. account, head(b, "orders") .. who .. reports .. "]}")
  end
  if told.instrument then
    add("instruments", head(b, "instruments") .. ',"instrument":' .. told.instrument .. "}")
  end
  if told.epoch then
    add("epoch", head(b, "epoch") .. "}")
  end
  return list
end

local function taken(stream_key, id)
  return #redis.call("XREVRANGE", stream_key, "+", id, "COUNT", 1) > 0
end

local function add_entry(stream_key, length_max, id, list)
  return redis.pcall("XADD", stream_key, "MAXLEN", "~", length_max, id, unpack(list))
end

local function damaged(stream_name)
  return redis.error_reply(
    "DAMAGED the stream " .. stream_name .. " is ahead of the book: run verify_book"
  )
end

-- Appends the call's entry, the first write of every command. bid_prices and ask_prices are the
-- levels it changed. Returns nil, or an error reply when the stream has that sequence already:
-- nothing was written then.
function events.append(b, bid_prices, ask_prices)
  local id = string.format("%.0f-0", b.call_sequence)
  local trades_key = keys.trades(b.key)
  local trades_message
  if #b.events.trades > 0 then
    trades_message = head(b, "trades")
      .. ',"trades":['
      .. table.concat(b.events.trades, ",")
      .. "]}"
    if taken(trades_key, id) then
      return damaged("trades")
    end
  end
  local list = topics(b, bid_prices, ask_prices, trades_message)
  local added = add_entry(keys.events(b.key), b.instrument.events_length_max, id, list)
  if type(added) == "table" and added.err then
    return damaged("events")
  end
  if trades_message then
    local length_max = b.instrument.trades_length_max
    redis.call("XADD", trades_key, "MAXLEN", "~", length_max, id, "trades", trades_message)
  end
  return nil
end

-- Writes the half-second book under the sequence it shows. Returns nil or an error reply.
function events.publish_book(record, message)
  local id = string.format("%.0f-0", record.sequence)
  local list = { "book", message }
  local stream_key = keys.published_book(record.key)
  local added = add_entry(stream_key, record.book_length_max, id, list)
  if type(added) == "table" and added.err then
    return damaged("book")
  end
  return nil
end

return events
