-- The rules of the instrument that a new order is held to: price band, least notional, open orders;
-- and the price that protects a market order. Nothing here is looked at on an instrument without
-- such rules.

local orders = require("book/orders")
local queue = require("book/queue")
local last_price = require("matching/last_price")
local instrument_record = require("records/instrument_record")
local decimal = require("values/decimal")
local numbers = require("values/numbers")
local order_types = require("values/order_types")
local reject = require("values/reject")
local sides = require("values/sides")

local pre_trade_checks = {}

-- A refusal where a limit price is too far from the last trade's, else nil.
function pre_trade_checks.band_refusal(b, price)
  local record = b.instrument
  local parts = record.extended and numbers.percent(record.extended.price_band) or 0
  if parts == 0 or not record.last_price then
    return nil
  end
  local last = last_price.measured(record, record.last_price)
  if not last_price.is_within(last, price, parts) then
    return reject.new("PRICE_OUT_OF_BAND", "price is outside the band around the last price")
  end
  return nil
end

-- A refusal where an order { order_type, price, quantity, extras } is worth too little, else nil.
function pre_trade_checks.notional_refusal(b, o)
  local record = b.instrument
  local least = instrument_record.notional(record, record.extended.min_notional)
  if least == 0 then
    return nil
  end
  local quote_units = o.extras and o.extras.quote_units
  local price = o.price or (o.extras and o.extras.stop_price)
  if o.order_type == "market" then
    price = queue.best_price(b, sides.opposite[o.side])
  end
  if o.order_type == "trailing_stop" or (not quote_units and not price) then
    return nil
  end
  local notional = quote_units
    or decimal.multiply(instrument_record.lot_cost(record, price), o.quantity)
  if decimal.compare(notional, least) < 0 then
    return reject.new("NOTIONAL_TOO_SMALL", "price times quantity is below min_notional")
  end
  return nil
end

-- A refusal where an account may not place so many orders more, else nil.
function pre_trade_checks.open_orders_refusal(b, account, count)
  local most = (b.instrument.extended or {}).open_orders_max or "0"
  if most + 0 == 0 then
    return nil
  end
  if orders.count_open(b, account) + count > most + 0 then
    return reject.new("TOO_MANY_OPEN_ORDERS", "the account has open_orders_max open orders")
  end
  return nil
end

-- A refusal of a new order by the rules about prices that few instruments have, else nil. The price
-- band is for limit orders: a stop order is about a market that has moved.
function pre_trade_checks.price_refusal(b, o)
  return o.order_type == "limit" and pre_trade_checks.band_refusal(b, o.price)
    or pre_trade_checks.notional_refusal(b, o)
end

-- A refusal of a new order by the rules that few instruments have, else nil.
function pre_trade_checks.rule_refusal(b, o)
  local refusal = pre_trade_checks.price_refusal(b, o)
  if refusal or not order_types.can_stay_open(o.order_type, o.time_in_force) then
    return refusal
  end
  return pre_trade_checks.open_orders_refusal(b, o.account, 1)
end

-- Gives a market order the price that its protection means now. One that is paused has it already.
function pre_trade_checks.protect(b, o)
  if o.extras and o.extras.waits == "paused" then
    o.protection_price = o.extras.protection_price
    return
  end
  local extended = b.instrument.extended
  local text = o.extras and o.extras.protection or (extended and extended.protection)
  local parts = text and numbers.percent(text) or 0
  local best = parts > 0 and queue.best_price(b, sides.opposite[o.side])
  if not best then
    return
  end
  local width = numbers.fraction(best, parts)
  o.protection_price = o.side == "buy" and best + width or best - width
end

return pre_trade_checks
