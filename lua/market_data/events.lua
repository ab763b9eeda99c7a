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

local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local acceptance = require("server/acceptance")
local keys = require("values/keys")
local numbers = require("values/numbers")

local events = {}

function events.new()
  return { accounts = {}, reports = {}, trades = {} }
end

-- Whether an order of an order list is armed; told only while it is not.
local function armed_term(o)
  return o.extras.waits == "dormant" and ',"armed":false' or ""
end

local text_terms = {
  "quote_quantity",
  "trailing_offset",
  "protection",
  "self_trade_prevention",
  "stp_group",
  "session",
}

-- What identifies an order in every report and reply: to its owner alone.
local function identity(o)
  local text = '"order_id":"' .. o.order_id
  if o.client_order_id then
    text = text .. '","client_order_id":"' .. o.client_order_id
  end
  if o.extras and o.extras.displayed_order_id then
    text = text .. '","displayed_order_id":"' .. o.extras.displayed_order_id
  end
  return text .. '"'
end

-- The beginning of a message of a channel.
local function head(b, channel)
  return '{"channel":"'
    .. channel
    .. '","symbol":"'
    .. b.instrument.symbol
    .. '","type":"update","sequence":'
    .. b.sequence_text
    .. ',"epoch":'
    .. b.instrument.epoch
end

-- Begins this call's message to an account. A report of a trade is appended as one string, the
-- others piece by piece; the last piece is always `b.report_end`, with the comma before the next.
local function reports_to(b, account)
  local pieces = { head(b, "orders") .. ',"account":"' .. account .. '","orders":[' }
  b.events.reports[account] = pieces
  b.events.accounts[#b.events.accounts + 1] = account
  return pieces
end

-- Counts an account that will have a report before the call ends among those that have one.
function events.expect_report(b, account)
  if not b.events.reports[account] then
    reports_to(b, account)
  end
end

-- The terms that few orders have.
local function extra_terms(record, extras)
  local terms = extras.post_only and ',"post_only":true' or ""
  if extras.quote then
    terms = terms .. ',"quote":true'
  end
  if extras.display_quantity then
    local shown = instrument_record.quantity_text(record, extras.display_quantity)
    terms = terms .. ',"display_quantity":"' .. shown .. '"'
  end
  if extras.expire_time_ms then
    terms = terms .. ',"expire_time_ms":' .. numbers.integer_text(extras.expire_time_ms)
  end
  if extras.stop_price and not extras.trailing_offset then
    terms = terms
      .. ',"stop_price":"'
      .. instrument_record.price_text(record, extras.stop_price)
      .. '"'
  end
  if extras.order_list_id then
    terms = terms .. ',"order_list_id":"' .. numbers.integer_text(extras.order_list_id) .. '"'
  end
  for i = 1, #text_terms do
    local name = text_terms[i]
    if extras[name] then
      terms = terms .. ',"' .. name .. '":"' .. extras[name] .. '"'
    end
  end
  return terms
end

-- The terms of an order, as they stand in every report and reply about it: what it is called, and
-- what it asks for. A market order has no price. Made once, and anew when an amend changes them.
local function make_terms(b, o)
  local record = b.instrument
  local quantity, price = o.quantity, o.price
  o.terms = identity(o)
    .. ',"side":"'
    .. o.side
    .. '","order_type":"'
    .. o.order_type
    .. '","time_in_force":"'
    .. o.time_in_force
    .. '","quantity":"'
    .. (record.quantity_texts[quantity] or instrument_record.quantity_text(record, quantity))
    .. (price and '","price":"' .. instrument_record.price_text(record, price) .. '"' or '"')
  if o.extras then
    o.terms = o.terms .. extra_terms(record, o.extras)
  end
  return o.terms
end

-- What an order waits for, beside its terms: to be armed; of a trailing stop, the price from which
-- its stop price is reckoned now.
function events.waiting_terms(b, o)
  local reference = o.extras.waits and o.extras.reference_price
  if not reference then
    return armed_term(o)
  end
  return ',"reference_price":"' .. instrument_record.price_text(b.instrument, reference) .. '"'
end

-- The terms and what is left, as text: the order as it stands.
function events.standing(b, o)
  local remaining = o.remaining
  local text = b.instrument.quantity_texts[remaining]
  return o.terms or make_terms(b, o),
    text or instrument_record.quantity_text(b.instrument, remaining)
end

-- The order was taken on.
function events.accepted(b, o)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = '{"event":"accepted",'
  pieces[n + 2] = make_terms(b, o)
  pieces[n + 3] = ',"priority":'
  pieces[n + 4] = ("%d"):format(o.priority)
  if o.extras then
    pieces[n + 4] = pieces[n + 4] .. events.waiting_terms(b, o)
  end
  pieces[n + 5] = b.report_end
end

-- A report of the order as it stands and with which priority.
local function report_place(b, o, event)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = event
  pieces[n + 2], pieces[n + 4] = events.standing(b, o)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '","priority":'
  pieces[n + 6] = numbers.integer_text(o.priority)
  pieces[n + 7] = b.report_end
end

-- A report of the order as it stands.
local function report_standing(b, o, event)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = event
  pieces[n + 2], pieces[n + 4] = events.standing(b, o)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '"'
  pieces[n + 6] = b.report_end
end

-- The order's price or quantity was changed; what it trades by this follows. Where it kept its
-- place the priority is the old one.
function events.amended(b, o)
  report_place(b, o, '{"event":"amended",')
end

-- An iceberg shows its next slice, behind the others of its level.
function events.refreshed(b, o)
  local shown = instrument_record.quantity_text(b.instrument, order_record.shown(o))
  report_place(b, o, '{"event":"refreshed","shown_quantity":"' .. shown .. '",')
end

-- The price that a stop order waited for has come: it enters the market.
function events.triggered(b, o)
  report_place(b, o, '{"event":"triggered",')
end

-- The order has more to trade than this call may: it waits outside the book for the next one. A
-- market order keeps the price that its protection meant at first.
function events.paused(b, o)
  local price = o.extras.protection_price
  local text = price and instrument_record.price_text(b.instrument, price)
  local protection = text and '"protection_price":"' .. text .. '",' or ""
  report_place(b, o, '{"event":"paused",' .. protection)
end

-- An order that was paused goes on: it enters the market again, as a new taker.
function events.resumed(b, o)
  report_place(b, o, '{"event":"resumed",')
end

-- A trailing stop has followed the price; told once a call, as it stands at its end.
function events.trailed(b, o)
  report_place(b, o, '{"event":"trailed"' .. events.waiting_terms(b, o) .. ",")
end

-- An order of an order list is armed, with so much as its entry has filled.
function events.armed(b, o)
  report_place(b, o, '{"event":"armed"' .. events.waiting_terms(b, o) .. ",")
end

-- The order lost quantity to self-trade prevention.
function events.decremented(b, o)
  report_standing(b, o, '{"event":"decremented",')
end

-- The order's time is over.
function events.expired(b, o)
  report_standing(b, o, '{"event":"expired",')
end

-- What was left of the order is gone. Reasons: requested, replaced, cancel_all, cancel_all_after,
-- disconnected, ioc, fok, self_trade, protection, too_large, order_list.
function events.canceled(b, o, reason)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = '{"event":"canceled",'
  pieces[n + 2], pieces[n + 4] = events.standing(b, o)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '","reason":"'
  pieces[n + 6] = reason
  pieces[n + 7] = '"'
  pieces[n + 8] = b.report_end
end

-- What an order was as a whole. The report that fills it is the last about it, and carries this so
-- that the order can be told from that report alone.
local function whole_order(b, o)
  local record = b.instrument
  local text = ',"order_quantity":"' .. instrument_record.quantity_text(record, o.quantity)
  if not o.price then
    return text .. '"'
  end
  return text .. '","order_price":"' .. instrument_record.price_text(record, o.price) .. '"'
end

local function trade_report(b, o, trade, role)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local remaining = o.remaining
  local status = '","status":"filled"'
  -- A taker by quote_quantity that cannot spend it all is canceled with nothing left.
  if remaining > 0 or (o.extras and o.extras.is_unspent) then
    status = '","status":"partially_filled"'
  else
    status = status .. whole_order(b, o)
  end
  pieces[#pieces + 1] = '{"event":"trade",'
    .. identity(o)
    .. ',"trade_id":"'
    .. trade.trade_id
    .. role
    .. o.side
    .. trade.terms
    .. '","remaining_quantity":"'
    .. instrument_record.quantity_text(b.instrument, remaining)
    .. status
  pieces[#pieces + 1] = b.report_end
end

-- A trade, after both orders were reduced. trade: { trade_id, terms }, its terms as
-- matching.lua writes them.
function events.trade(b, taker, maker, trade)
  local pieces = b.events.trades
  local n = #pieces
  pieces[n + 1] = (n == 0 and '{"trade_id":"' or ',{"trade_id":"')
    .. trade.trade_id
    .. trade.terms
    .. '","aggressor_side":"'
    .. taker.side
    .. '","maker_order_id":"'
    .. (maker.extras and order_record.displayed_id(maker) or maker.order_id)
    .. '","taker_order_id":"'
    .. (taker.extras and order_record.displayed_id(taker) or taker.order_id)
    .. '"'
    .. b.stamp
  trade_report(b, taker, trade, '","role":"taker","side":"')
  trade_report(b, maker, trade, '","role":"maker","side":"')
end

-- A trade of an auction, likewise: both orders stood in the book, so there is no aggressor.
function events.auction_trade(b, taker, maker, trade)
  local pieces = b.events.trades
  pieces[#pieces + 1] = (#pieces == 0 and '{"trade_id":"' or ',{"trade_id":"')
    .. trade.trade_id
    .. trade.terms
    .. '","auction":true,"maker_order_id":"'
    .. order_record.displayed_id(maker)
    .. '","taker_order_id":"'
    .. order_record.displayed_id(taker)
    .. '"'
    .. b.stamp
  trade_report(b, taker, trade, '","auction":true,"role":"taker","side":"')
  trade_report(b, maker, trade, '","auction":true,"role":"maker","side":"')
end

-- The instrument was defined, or its rules or status changed: told as it is at the end of the call.
function events.instrument_changed(b)
  b.events.instrument = true
end

-- History before this entry may have been lost.
function events.epoch_begun(b)
  b.events.epoch = true
end

local function level_rows(b, side, prices)
  if #prices == 0 then
    return "[]"
  end
  local record = b.instrument
  local rows = {}
  for i = 1, #prices do
    local price = prices[i]
    rows[i] = '["'
      .. instrument_record.price_text(record, price)
      .. '","'
      .. instrument_record.quantity_text(record, side.totals[price])
      .. '"]'
  end
  return "[" .. table.concat(rows, ",") .. "]"
end

local function add(list, topic, message)
  local length = #list
  list[length + 1], list[length + 2] = topic, message
end

-- A new epoch, with the counters as they are at the end of the call: they skip what was lost.
local function epoch_message(b)
  local record = b.instrument
  return head(b, "epoch")
    .. ',"last_order_id":"'
    .. numbers.integer_text(record.last_order_id)
    .. '","last_trade_id":"'
    .. numbers.integer_text(record.last_trade_id)
    .. '"}'
end

-- Topic, message, topic, message … of this call.
local function topics(b, bid_prices, ask_prices, trades_message)
  local list, told = {}, b.events
  if trades_message then
    add(list, "trades", trades_message)
  end
  if #bid_prices + #ask_prices > 0 then
    local bids = level_rows(b, b.buy, bid_prices)
    local asks = level_rows(b, b.sell, ask_prices)
    add(list, "level2", head(b, "level2") .. ',"bids":' .. bids .. ',"asks":' .. asks .. "}")
  end
  for i = 1, #told.accounts do
    local account = told.accounts[i]
    local pieces = told.reports[account]
    pieces[#pieces] = b.last_report_end
    add(list, "orders:" .. account, table.concat(pieces))
  end
  if told.instrument then
    local text = instrument_record.json(b.instrument, b.call_sequence)
    add(list, "instruments", head(b, "instruments") .. ',"instrument":' .. text .. "}")
  end
  if told.epoch then
    add(list, "epoch", epoch_message(b))
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
function events.trades_refusal(b)
  if #b.events.trades > 0 and taken(keys.trades(b.key), b.call_sequence) then
    return is_ahead("trades")
  end
  return nil
end

-- The same of the stream of events: for a call that writes several books, of which all but the
-- first are refused too late.
function events.events_refusal(b)
  if taken(b.names.events, b.call_sequence) then
    return is_ahead("events")
  end
  return nil
end

-- The call's entry: the messages for the stream of events, and the one for the stream of trades or
-- nil. bid_prices and ask_prices are the levels that the call changed.
function events.entry(b, bid_prices, ask_prices)
  local trades_message
  if #b.events.trades > 0 then
    trades_message = head(b, "trades") .. ',"trades":[' .. table.concat(b.events.trades) .. "]}"
  end
  return { messages = topics(b, bid_prices, ask_prices, trades_message), trades = trades_message }
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
function events.append(b, entry)
  local events_key, length_max = b.names.events, b.instrument.events_length_max
  local id, list = b.sequence_text .. "-0", entry.messages
  if b.sequence == 0 then
    return append_to("events", events_key, "MAXLEN", "~", length_max, id, unpack(list))
  end
  -- Only a new book has no stream yet.
  local trim = "NOMKSTREAM"
  return append_to("events", events_key, trim, "MAXLEN", "~", length_max, id, unpack(list))
end

-- Plans the write of the call's trades to their own stream: see commit.lua.
function events.plan_trades(b, entry, later)
  if entry.trades then
    local length_max, id = b.instrument.trades_length_max, b.sequence_text .. "-0"
    later("XADD", keys.trades(b.key), { "MAXLEN", "~", length_max, id, "trades", entry.trades })
  end
end

-- An error reply where the caller's Redis user may not append to the stream of events, else nil.
function events.right_error(b)
  return acceptance.right_error("XADD", b.names.events)
end

-- Writes the half-second book and what goes with it (topic, message, …) under the sequence that it
-- shows. Returns nil or an error reply.
function events.publish_book(record, list)
  local id = string.format("%.0f-0", record.sequence)
  local stream_key, length_max = keys.published_book(record.key), record.book_length_max
  local refused = acceptance.right_error("XADD", stream_key)
    or acceptance.right_error("HSET", record.key)
  if refused then
    return refused
  end
  return append_to("book", stream_key, "MAXLEN", "~", length_max, id, unpack(list))
end

return events
