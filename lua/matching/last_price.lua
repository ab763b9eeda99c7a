-- The last trade price as rules measure from it.
--
-- It is kept as decimal text. Where tick_size has changed since that trade it may lie between two
-- ticks, or beyond the largest price: each rule then gets the tick that is right for it, or the
-- exact distance.

local decimal = require("values/decimal")
local numbers = require("values/numbers")

local last_price = {}

local million = 1000000
-- Above every price.
local beyond = numbers.exact_max + 1

-- The price of a text as naturals { price, tick } in one unit, the last decimal of either.
function last_price.measured(instrument, text)
  local step = instrument.price_step
  local ticks = numbers.parse(text, step)
  if ticks then
    return { price = ticks, tick = 1 }
  end
  local _, fraction = decimal.split(text)
  local decimals = math.max(step.decimals, #fraction)
  local zeros = ("0"):rep(decimals - step.decimals)
  return {
    price = decimal.parse(text, decimals),
    tick = decimal.natural(numbers.integer_text(step.size) .. zeros),
  }
end

-- The last tick that is not above the last trade price, zero where there is none; nil without a
-- trade.
function last_price.floor(instrument)
  if not instrument.last_price then
    return nil
  end
  local measured = last_price.measured(instrument, instrument.last_price)
  local ticks = decimal.quotient(measured.price, measured.tick)
  return type(ticks) == "number" and ticks or beyond
end

-- The first tick that is not below the last trade price; nil without a trade.
function last_price.ceiling(instrument)
  local ticks = last_price.floor(instrument)
  if not ticks or ticks == beyond then
    return ticks
  end
  local measured = last_price.measured(instrument, instrument.last_price)
  local is_exact = decimal.compare(decimal.multiply(ticks, measured.tick), measured.price) == 0
  return is_exact and ticks or ticks + 1
end

-- How far a price in ticks is from a measured one: a natural in its unit.
function last_price.distance(measured, ticks)
  local price = decimal.multiply(ticks, measured.tick)
  if decimal.compare(price, measured.price) < 0 then
    return decimal.subtract(measured.price, price)
  end
  return decimal.subtract(price, measured.price)
end

-- Whether a price in ticks is at most so many parts of a million of a measured one away from it.
function last_price.is_within(measured, ticks, parts)
  local distance = decimal.multiply(last_price.distance(measured, ticks), million)
  return decimal.compare(distance, decimal.multiply(measured.price, parts)) <= 0
end

return last_price
