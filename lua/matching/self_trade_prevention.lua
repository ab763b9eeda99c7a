-- Self-trade prevention: who is one trader, and what happens in place of a trade between orders of
-- one. Which orders meet is decided in fill_plan.lua.

local book = require("book/book")
local stp_groups = require("book/stp_groups")
local order_reports = require("market_data/order_reports")

local self_trade_prevention = {}

-- How a taker keeps from trading with its own trader, or nil.
function self_trade_prevention.mode_of(b, taker)
  local extended = b.instrument.extended
  local mode = taker.extras and taker.extras.self_trade_prevention
    or (extended and extended.self_trade_prevention)
  return mode and mode ~= "none" and mode or nil
end

-- Whether maker and taker belong to one trader: an account, or a group.
function self_trade_prevention.are_one_trader(b, taker, maker)
  return maker.account == taker.account or stp_groups.are_together(b, taker, maker)
end

local function decrement(b, o, lots)
  o.quantity, o.terms = o.quantity - lots, false
  if o.extras and o.extras.order_list_id then
    book.note(b, o, "decremented", lots)
  end
end

-- What self-trade prevention does in place of a trade.
function self_trade_prevention.carry_out(b, taker, fill)
  local maker, lots = fill.maker, fill.lots
  if fill.prevented == "cancel" or lots == maker.remaining then
    book.remove(b, maker)
    order_reports.canceled(b, maker, "self_trade")
  else
    book.shrink(b, maker, lots)
    decrement(b, maker, lots)
    order_reports.decremented(b, maker)
  end
  if fill.prevented ~= "decrement" or lots == fill.wanted then
    return
  end
  -- What a taker by quote_quantity buys is planned without it.
  if not (taker.extras and taker.extras.quote_units) then
    taker.remaining = taker.remaining - lots
    decrement(b, taker, lots)
  end
  order_reports.decremented(b, taker)
end

return self_trade_prevention
