-- Order reports: what has become of orders, each told to its account alone, and of trades to all.
-- From these reports the book can be rebuilt: they carry the priority an order queued with.

local event_stream = require("market_data/event_stream")
local order_json = require("market_data/order_json")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local numbers = require("values/numbers")

local order_reports = {}

-- Begins this call's message to an account. A report of a trade is appended as one string, the
-- others piece by piece; the last piece is always `tx.report_end`, with the comma before the next.
local function reports_to(tx, account)
  local pieces = { event_stream.head(tx, "orders") .. ',"account":"' .. account .. '","orders":[' }
  tx.events.reports[account] = pieces
  tx.events.accounts[#tx.events.accounts + 1] = account
  return pieces
end

-- Counts an account that will have a report before the call ends among those that have one.
function order_reports.expect_report(tx, account)
  if not tx.events.reports[account] then
    reports_to(tx, account)
  end
end

-- The order was taken on.
function order_reports.accepted(tx, order)
  local pieces = tx.events.reports[order.account] or reports_to(tx, order.account)
  local n = #pieces
  pieces[n + 1] = '{"event":"accepted",'
  pieces[n + 2] = order_json.make_terms(tx, order)
  pieces[n + 3] = ',"priority":'
  pieces[n + 4] = ("%d"):format(order.priority)
  if order.attributes then
    pieces[n + 4] = pieces[n + 4] .. order_json.waiting_terms(tx, order)
  end
  pieces[n + 5] = tx.report_end
end

-- A report of the order as it stands and with which priority.
local function report_place(tx, order, event)
  local pieces = tx.events.reports[order.account] or reports_to(tx, order.account)
  local n = #pieces
  pieces[n + 1] = event
  pieces[n + 2], pieces[n + 4] = order_json.standing(tx, order)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '","priority":'
  pieces[n + 6] = numbers.integer_text(order.priority)
  pieces[n + 7] = tx.report_end
end

-- A report of the order as it stands.
local function report_standing(tx, order, event)
  local pieces = tx.events.reports[order.account] or reports_to(tx, order.account)
  local n = #pieces
  pieces[n + 1] = event
  pieces[n + 2], pieces[n + 4] = order_json.standing(tx, order)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '"'
  pieces[n + 6] = tx.report_end
end

-- The order's price or quantity was changed; what it trades by this follows. Where it kept its
-- place the priority is the old one.
function order_reports.amended(tx, order)
  report_place(tx, order, '{"event":"amended",')
end

-- An iceberg shows its next slice, behind the others of its level.
function order_reports.refreshed(tx, order)
  local shown = instrument_record.quantity_text(tx.instrument, order_record.shown(order))
  report_place(tx, order, '{"event":"refreshed","shown_quantity":"' .. shown .. '",')
end

-- The price that a stop order waited for has come: it enters the market.
function order_reports.triggered(tx, order)
  report_place(tx, order, '{"event":"triggered",')
end

-- The order has more to trade than this call may: it waits outside the book for the next one. A
-- market order keeps the price that its protection meant at first.
function order_reports.paused(tx, order)
  local price = order.attributes.protection_price
  local text = price and instrument_record.price_text(tx.instrument, price)
  local protection = text and '"protection_price":"' .. text .. '",' or ""
  report_place(tx, order, '{"event":"paused",' .. protection)
end

-- An order that was paused goes on: it enters the market again, as a new taker.
function order_reports.resumed(tx, order)
  report_place(tx, order, '{"event":"resumed",')
end

-- A trailing stop has followed the price: reported once a call, as it stands at its end.
function order_reports.trailed(tx, order)
  report_place(tx, order, '{"event":"trailed"' .. order_json.waiting_terms(tx, order) .. ",")
end

-- An order of an order list is armed, with so much as its entry has filled.
function order_reports.armed(tx, order)
  report_place(tx, order, '{"event":"armed"' .. order_json.waiting_terms(tx, order) .. ",")
end

-- The order lost quantity to self-trade prevention.
function order_reports.decremented(tx, order)
  report_standing(tx, order, '{"event":"decremented",')
end

-- The order's time is over.
function order_reports.expired(tx, order)
  report_standing(tx, order, '{"event":"expired",')
end

-- What was left of the order is gone. Reasons: requested, replaced, cancel_all, cancel_all_after,
-- disconnected, ioc, fok, self_trade, protection, too_large, order_list.
function order_reports.canceled(tx, order, reason)
  local pieces = tx.events.reports[order.account] or reports_to(tx, order.account)
  local n = #pieces
  pieces[n + 1] = '{"event":"canceled",'
  pieces[n + 2], pieces[n + 4] = order_json.standing(tx, order)
  pieces[n + 3] = ',"remaining_quantity":"'
  pieces[n + 5] = '","reason":"'
  pieces[n + 6] = reason
  pieces[n + 7] = '"'
  pieces[n + 8] = tx.report_end
end

-- What an order was as a whole. The report that fills it is the last about it, and carries this so
-- that the order can be told from that report alone.
local function whole_order(tx, order)
  local instrument = tx.instrument
  local text = ',"order_quantity":"' .. instrument_record.quantity_text(instrument, order.quantity)
  if not order.price then
    return text .. '"'
  end
  return text .. '","order_price":"' .. instrument_record.price_text(instrument, order.price) .. '"'
end

local function trade_report(tx, order, trade, role)
  local pieces = tx.events.reports[order.account] or reports_to(tx, order.account)
  local remaining = order.remaining
  local status = '","status":"filled"'
  -- A taker by quote_quantity that cannot spend it all is canceled with nothing left.
  if remaining > 0 or (order.attributes and order.attributes.is_unspent) then
    status = '","status":"partially_filled"'
  else
    status = status .. whole_order(tx, order)
  end
  pieces[#pieces + 1] = '{"event":"trade",'
    .. order_json.identity(order)
    .. ',"trade_id":"'
    .. trade.trade_id
    .. role
    .. order.side
    .. trade.terms
    .. '","remaining_quantity":"'
    .. instrument_record.quantity_text(tx.instrument, remaining)
    .. status
  pieces[#pieces + 1] = tx.report_end
end

-- A trade, after both orders were reduced. trade: { trade_id, terms }, its terms as
-- fill_plan.lua writes them.
function order_reports.trade(tx, taker, maker, trade)
  local pieces = tx.events.trades
  local n = #pieces
  pieces[n + 1] = (n == 0 and '{"trade_id":"' or ',{"trade_id":"')
    .. trade.trade_id
    .. trade.terms
    .. '","aggressor_side":"'
    .. taker.side
    .. '","maker_order_id":"'
    .. (maker.attributes and order_record.displayed_id(maker) or maker.order_id)
    .. '","taker_order_id":"'
    .. (taker.attributes and order_record.displayed_id(taker) or taker.order_id)
    .. '"'
    .. tx.stamp
  trade_report(tx, taker, trade, '","role":"taker","side":"')
  trade_report(tx, maker, trade, '","role":"maker","side":"')
end

-- A trade of an auction, likewise: both orders stood in the book, so there is no aggressor.
function order_reports.auction_trade(tx, taker, maker, trade)
  local pieces = tx.events.trades
  pieces[#pieces + 1] = (#pieces == 0 and '{"trade_id":"' or ',{"trade_id":"')
    .. trade.trade_id
    .. trade.terms
    .. '","auction":true,"maker_order_id":"'
    .. order_record.displayed_id(maker)
    .. '","taker_order_id":"'
    .. order_record.displayed_id(taker)
    .. '"'
    .. tx.stamp
  trade_report(tx, taker, trade, '","auction":true,"role":"taker","side":"')
  trade_report(tx, maker, trade, '","auction":true,"role":"maker","side":"')
end

return order_reports
