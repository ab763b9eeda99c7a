-- Trades: carrying out a plan of fills (fill_plan.lua) on the working copy. It cannot fail.

local book = require("book/book")
local candles = require("market_data/candles")
local order_reports = require("market_data/order_reports")
local circuit_breaker = require("matching/circuit_breaker")
local self_trade_prevention = require("matching/self_trade_prevention")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local numbers = require("values/numbers")

local trades = {}

local function fill_json(trade, maker)
  return '{"trade_id":"'
    .. trade.trade_id
    .. trade.terms
    .. '","maker_order_id":"'
    .. (maker.attributes and order_record.displayed_id(maker) or maker.order_id)
    .. '"}'
end

local function note_price(items, price)
  if items[#items] ~= price or items.first > #items then
    items[#items + 1] = price
  end
end

-- Adds the prices of a taker's trades to the trigger queue. The prices go one way only, so an order
-- that one in between triggers is triggered by the first or by the last of them.
local function note_prices(tx, fills)
  local first, last
  for i = 1, #fills do
    if not fills[i].prevented then
      last = fills[i].maker.price
      first = first or last
    end
  end
  if first then
    note_price(tx.trigger_queue, first)
    note_price(tx.trigger_queue, last)
  end
end

local function trade_with(tx, taker, maker, lots)
  local instrument = tx.instrument
  instrument.last_trade_id = instrument.last_trade_id + 1
  local price = instrument_record.price_text(instrument, maker.price)
  local quantity = instrument_record.quantity_text(instrument, lots)
  local trade = {
    trade_id = numbers.integer_text(instrument.last_trade_id),
    terms = '","price":"' .. price .. '","quantity":"' .. quantity,
  }
  taker.remaining = taker.remaining - lots
  candles.count(tx, maker.price, lots)
  if tx.breaker then
    circuit_breaker.check_trade(tx, maker.price)
  end
  if taker.attributes and taker.attributes.order_list_id then
    book.add_list_event(tx, taker, "traded")
  end
  local text = fill_json(trade, maker)
  local is_refreshed = book.reduce(tx, maker, lots)
  order_reports.trade(tx, taker, maker, trade)
  instrument.last_price = price
  if is_refreshed then
    book.refresh(tx, maker)
  end
  return text
end

-- Carries out a plan with fills: reduces both orders, reports each trade. Returns the fills as
-- JSON.
function trades.execute(tx, taker, fills)
  local texts = {}
  for i = 1, #fills do
    local fill = fills[i]
    if fill.prevented then
      self_trade_prevention.apply(tx, taker, fill)
    else
      texts[#texts + 1] = trade_with(tx, taker, fill.maker, fill.lots)
    end
  end
  tx.fills_left = tx.fills_left - #fills
  if tx.trigger_queue and tx.instrument.features.waiting_orders > 0 then
    note_prices(tx, fills)
  end
  return "[" .. table.concat(texts, ",") .. "]"
end

return trades
