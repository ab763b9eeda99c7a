-- Self-trade prevention: who is one trader, and what happens in place of a trade between orders of
-- one. Which orders meet is decided in fill_plan.lua.

local book = require("book/book")
local stp_groups = require("book/stp_groups")
local order_reports = require("market_data/order_reports")

local self_trade_prevention = {}

-- How a taker keeps from trading with its own trader, or nil.
function self_trade_prevention.mode_of(tx, taker)
  local features = tx.instrument.features
  local mode = taker.attributes and taker.attributes.self_trade_prevention
    or (features and features.self_trade_prevention)
  return mode and mode ~= "none" and mode or nil
end

-- Whether maker and taker belong to one trader: an account, or a group.
function self_trade_prevention.are_one_trader(tx, taker, maker)
  return maker.account == taker.account or stp_groups.are_together(tx, taker, maker)
end

local function decrement(tx, order, lots)
  order.quantity, order.terms = order.quantity - lots, false
  if order.attributes and order.attributes.order_list_id then
    book.add_list_event(tx, order, "decremented", lots)
  end
end

-- What self-trade prevention does in place of a trade.
function self_trade_prevention.apply(tx, taker, fill)
  local maker, lots = fill.maker, fill.lots
  if fill.prevented == "cancel" or lots == maker.remaining then
    book.remove(tx, maker)
    order_reports.canceled(tx, maker, "self_trade")
  else
    book.shrink(tx, maker, lots)
    decrement(tx, maker, lots)
    order_reports.decremented(tx, maker)
  end
  if fill.prevented ~= "decrement" or lots == fill.wanted then
    return
  end
  -- What a taker by quote_quantity buys is planned without it.
  if not (taker.attributes and taker.attributes.quote_units) then
    taker.remaining = taker.remaining - lots
    decrement(tx, taker, lots)
  end
  order_reports.decremented(tx, taker)
end

return self_trade_prevention
