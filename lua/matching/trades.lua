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
    .. (maker.extras and order_record.displayed_id(maker) or maker.order_id)
    .. '"}'
end

local function note_price(agenda, price)
  if agenda[#agenda] ~= price or agenda.first > #agenda then
    agenda[#agenda + 1] = price
  end
end

-- Notes the prices of a taker's trades for those who wait for one. They go one way only, so whoever
-- is due at one between is due at the first or at the last of them.
local function note_prices(b, fills)
  local first, last
  for i = 1, #fills do
    if not fills[i].prevented then
      last = fills[i].maker.price
      first = first or last
    end
  end
  if first then
    note_price(b.agenda, first)
    note_price(b.agenda, last)
  end
end

local function trade_with(b, taker, maker, lots)
  local record = b.instrument
  record.last_trade_id = record.last_trade_id + 1
  local price = instrument_record.price_text(record, maker.price)
  local quantity = instrument_record.quantity_text(record, lots)
  local trade = {
    trade_id = numbers.integer_text(record.last_trade_id),
    terms = '","price":"' .. price .. '","quantity":"' .. quantity,
  }
  taker.remaining = taker.remaining - lots
  candles.count(b, maker.price, lots)
  if b.breaker then
    circuit_breaker.check_trade(b, maker.price)
  end
  if taker.extras and taker.extras.order_list_id then
    book.note(b, taker, "traded")
  end
  local text = fill_json(trade, maker)
  local is_refreshed = book.reduce(b, maker, lots)
  order_reports.trade(b, taker, maker, trade)
  record.last_price = price
  if is_refreshed then
    book.refresh(b, maker)
  end
  return text
end

-- Carries out a plan with fills: reduces both orders, reports each trade. Returns the fills as
-- JSON.
function trades.execute(b, taker, fills)
  local texts = {}
  for i = 1, #fills do
    local fill = fills[i]
    if fill.prevented then
      self_trade_prevention.carry_out(b, taker, fill)
    else
      texts[#texts + 1] = trade_with(b, taker, fill.maker, fill.lots)
    end
  end
  b.fills_left = b.fills_left - #fills
  if b.agenda and b.instrument.extended.waiting_orders > 0 then
    note_prices(b, fills)
  end
  return "[" .. table.concat(texts, ",") .. "]"
end

return trades
