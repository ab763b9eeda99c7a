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
function pre_trade_checks.band_refusal(tx, price)
  local instrument = tx.instrument
  local parts = instrument.features and numbers.percent(instrument.features.price_band) or 0
  if parts == 0 or not instrument.last_price then
    return nil
  end
  local last = last_price.measured(instrument, instrument.last_price)
  if not last_price.is_within(last, price, parts) then
    return reject.new("PRICE_OUT_OF_BAND", "price is outside the band around the last price")
  end
  return nil
end

-- A refusal where an order { order_type, price, quantity, attributes } is worth too little, else
-- nil.
function pre_trade_checks.notional_refusal(tx, order)
  local instrument = tx.instrument
  local least = instrument_record.notional(instrument, instrument.features.min_notional)
  if least == 0 then
    return nil
  end
  local quote_units = order.attributes and order.attributes.quote_units
  local price = order.price or (order.attributes and order.attributes.stop_price)
  if order.order_type == "market" then
    price = queue.best_price(tx, sides.opposite[order.side])
  end
  if order.order_type == "trailing_stop" or (not quote_units and not price) then
    return nil
  end
  local notional = quote_units
    or decimal.multiply(instrument_record.lot_cost(instrument, price), order.quantity)
  if decimal.compare(notional, least) < 0 then
    return reject.new("NOTIONAL_TOO_SMALL", "price times quantity is below min_notional")
  end
  return nil
end

-- A refusal where an account may not place so many orders more, else nil.
function pre_trade_checks.open_orders_refusal(tx, account, count)
  local most = (tx.instrument.features or {}).open_orders_max or "0"
  if most + 0 == 0 then
    return nil
  end
  if orders.count_open(tx, account) + count > most + 0 then
    return reject.new("TOO_MANY_OPEN_ORDERS", "the account has open_orders_max open orders")
  end
  return nil
end

-- A refusal of a new order by the rules about prices that few instruments have, else nil. The price
-- band is for limit orders: a stop order is about a market that has moved.
function pre_trade_checks.price_refusal(tx, order)
  return order.order_type == "limit" and pre_trade_checks.band_refusal(tx, order.price)
    or pre_trade_checks.notional_refusal(tx, order)
end

-- A refusal of a new order by the rules that few instruments have, else nil.
function pre_trade_checks.rule_refusal(tx, order)
  local refusal = pre_trade_checks.price_refusal(tx, order)
  if refusal or not order_types.can_stay_open(order.order_type, order.time_in_force) then
    return refusal
  end
  return pre_trade_checks.open_orders_refusal(tx, order.account, 1)
end

-- Gives a market order the price that its protection means now. One that is paused has it already.
function pre_trade_checks.protect(tx, order)
  if order.attributes and order.attributes.waits == "paused" then
    order.protection_price = order.attributes.protection_price
    return
  end
  local features = tx.instrument.features
  local text = order.attributes and order.attributes.protection
    or (features and features.protection)
  local parts = text and numbers.percent(text) or 0
  local best = parts > 0 and queue.best_price(tx, sides.opposite[order.side])
  if not best then
    return
  end
  local width = numbers.fraction(best, parts)
  order.protection_price = order.side == "buy" and best + width or best - width
end

return pre_trade_checks
