-- Order reports: what has become of orders, each told to its account alone, and of trades to all.
-- From these reports the book can be rebuilt: they carry the priority an order queued with.

local event_stream = require("market_data/event_stream")
local order_json = require("market_data/order_json")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local numbers = require("values/numbers")

local order_reports = {}

-- Begins this call's message to an account. A report of a trade is appended as one string, the
-- others piece by piece; the last piece is always `b.report_end`, with the comma before the next.
local function reports_to(b, account)
  local pieces = { event_stream.head(b, "orders") .. ',"account":"' .. account .. '","orders":[' }
  b.events.reports[account] = pieces
  b.events.accounts[#b.events.accounts + 1] = account
  return pieces
end

-- Counts an account that will have a report before the call ends among those that have one.
function order_reports.expect_report(b, account)
  if not b.events.reports[account] then
    reports_to(b, account)
  end
end

-- The order was taken on.
function order_reports.accepted(b, o)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = '{"event":"accepted",'
  pieces[n + 2] = order_json.make_terms(b, o)
  pieces[n + 3] = ',"priority":'
  pieces[n + 4] = ("%d"):format(o.priority)
  if o.extras then
    pieces[n + 4] = pieces[n + 4] .. order_json.waiting_terms(b, o)
  end
  pieces[n + 5] = b.report_end
end

-- A report of the order as it stands and with which priority.
local function report_place(b, o, event)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = event
  pieces[n + 2], pieces[n + 4] = order_json.standing(b, o)
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
  pieces[n + 2], pieces[n + 4] = order_json.standing(b, o)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '"'
  pieces[n + 6] = b.report_end
end

-- The order's price or quantity was changed; what it trades by this follows. Where it kept its
-- place the priority is the old one.
function order_reports.amended(b, o)
  report_place(b, o, '{"event":"amended",')
end

-- An iceberg shows its next slice, behind the others of its level.
function order_reports.refreshed(b, o)
  local shown = instrument_record.quantity_text(b.instrument, order_record.shown(o))
  report_place(b, o, '{"event":"refreshed","shown_quantity":"' .. shown .. '",')
end

-- The price that a stop order waited for has come: it enters the market.
function order_reports.triggered(b, o)
  report_place(b, o, '{"event":"triggered",')
end

-- The order has more to trade than this call may: it waits outside the book for the next one. A
-- market order keeps the price that its protection meant at first.
function order_reports.paused(b, o)
  local price = o.extras.protection_price
  local text = price and instrument_record.price_text(b.instrument, price)
  local protection = text and '"protection_price":"' .. text .. '",' or ""
  report_place(b, o, '{"event":"paused",' .. protection)
end

-- An order that was paused goes on: it enters the market again, as a new taker.
function order_reports.resumed(b, o)
  report_place(b, o, '{"event":"resumed",')
end

-- A trailing stop has followed the price; told once a call, as it stands at its end.
function order_reports.trailed(b, o)
  report_place(b, o, '{"event":"trailed"' .. order_json.waiting_terms(b, o) .. ",")
end

-- An order of an order list is armed, with so much as its entry has filled.
function order_reports.armed(b, o)
  report_place(b, o, '{"event":"armed"' .. order_json.waiting_terms(b, o) .. ",")
end

-- The order lost quantity to self-trade prevention.
function order_reports.decremented(b, o)
  report_standing(b, o, '{"event":"decremented",')
end

-- The order's time is over.
function order_reports.expired(b, o)
  report_standing(b, o, '{"event":"expired",')
end

-- What was left of the order is gone. Reasons: requested, replaced, cancel_all, cancel_all_after,
-- disconnected, ioc, fok, self_trade, protection, too_large, order_list.
function order_reports.canceled(b, o, reason)
  local pieces = b.events.reports[o.account] or reports_to(b, o.account)
  local n = #pieces
  pieces[n + 1] = '{"event":"canceled",'
  pieces[n + 2], pieces[n + 4] = order_json.standing(b, o)
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
    .. order_json.identity(o)
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
-- fill_plan.lua writes them.
function order_reports.trade(b, taker, maker, trade)
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
function order_reports.auction_trade(b, taker, maker, trade)
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

return order_reports
