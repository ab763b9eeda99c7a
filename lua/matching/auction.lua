-- The call auction: orders are collected without trading, and then all that can trade does, at one
-- price.
--
-- The price is that at which most would trade; among equals where least would be left over on the
-- side that has more; among these market pressure decides: where buyers are left over the highest,
-- where sellers are the lowest; then the nearest to the last trade price; then the lower one. Only
-- prices of orders in the book come into question. Icebergs count, and trade, with all they have.
--
-- Orders trade in price-time priority on both sides. An uncross that is too large for one call is
-- gone on with by the next call or tick, at the same price (`uncrossing`), before anything else;
-- meanwhile nobody can place. Should cancels between two parts have left a crossed book behind, it
-- is uncrossed at a price found anew: trading never begins with a crossed book.

local book = require("book/book")
local queue = require("book/queue")
local candles = require("market_data/candles")
local order_reports = require("market_data/order_reports")
local last_price = require("matching/last_price")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local decimal = require("values/decimal")
local keys = require("values/keys")
local limits = require("values/limits")
local numbers = require("values/numbers")

local auction = {}

-- Whether two orders in the book could trade with each other.
function auction.is_crossed(tx)
  local bid, ask = queue.best_price(tx, "buy"), queue.best_price(tx, "sell")
  return bid and ask and bid >= ask or false
end

-- ---- the price

-- price -> lots of a side, what this call has changed included, as far as it could trade.
local function levels_within(tx, side_name, best_of_other)
  local side, levels = tx[side_name], {}
  local stored = redis.call("HGETALL", keys.levels(side.key))
  for i = 1, #stored, 2 do
    levels[stored[i] + 0] = stored[i + 1] + 0
  end
  for price, difference in pairs(side.differences) do
    levels[price] = (levels[price] or 0) + difference
  end
  for price, lots in pairs(levels) do
    if lots == 0 or (price - best_of_other) * side.sign > 0 then
      levels[price] = nil
    end
  end
  return levels
end

-- Adds what icebergs hide.
local function add_hidden(tx, side_name, levels)
  for order in queue.orders(tx, side_name) do
    if not levels[order.price] then
      return
    end
    levels[order.price] =
      decimal.add(levels[order.price], order.remaining - order_record.shown(order))
  end
end

-- For each of the prices, given in the order in which a side's orders agree to more and more, how
-- much of it would trade there: naturals (decimal.lua), for many orders are more than one may be.
local function cumulated(levels, prices)
  local sum, sums = 0, {}
  for _, price in ipairs(prices) do
    sum = decimal.add(sum, levels[price] or 0)
    sums[price] = sum
  end
  return sums
end

-- Below zero where the left outcome trades more, or as much and leaves less over; zero where the
-- two are equal in this.
local function compare_outcomes(left, right)
  local more = decimal.compare(right.volume, left.volume)
  return more ~= 0 and more or decimal.compare(left.imbalance, right.imbalance)
end

-- What market pressure leaves of outcomes that are equal but for their prices, given with these
-- rising: what is left over of buyers falls as the price rises, and what of sellers rises. Where
-- both sides are left over somewhere, these are the two prices between which it turns.
local function under_pressure(tied)
  local left = {}
  for i, outcome in ipairs(tied) do
    local above, below = tied[i + 1], tied[i - 1]
    local is_last_of_buyers = outcome.side == "buy" and not (above and above.side == "buy")
    local is_first_of_sellers = outcome.side == "sell" and not (below and below.side == "sell")
    if not outcome.side or is_last_of_buyers or is_first_of_sellers then
      left[#left + 1] = outcome
    end
  end
  return left
end

-- The outcome nearest to the last trade price, of two as near the lower one; without such a price
-- the lowest.
local function nearest(instrument, outcomes)
  local last = instrument.last_price and last_price.measured(instrument, instrument.last_price)
  local best, least
  for _, outcome in ipairs(outcomes) do
    local distance = last and last_price.distance(last, outcome.price) or 0
    if not best or decimal.compare(distance, least) < 0 then
      best, least = outcome, distance
    end
  end
  return best
end

local function sorted_prices(bids, asks)
  local prices, seen = {}, {}
  for _, levels in ipairs({ bids, asks }) do
    for price in pairs(levels) do
      if not seen[price] then
        seen[price] = true
        prices[#prices + 1] = price
      end
    end
  end
  table.sort(prices)
  return prices
end

local function reversed(list)
  local other = {}
  for i = #list, 1, -1 do
    other[#other + 1] = list[i]
  end
  return other
end

-- What an uncross at a price would come to, by what buyers want there and what sellers give.
local function outcome_at(price, demand, supply)
  local more = decimal.compare(demand, supply)
  if more > 0 then
    local imbalance = decimal.subtract(demand, supply)
    return { price = price, volume = supply, imbalance = imbalance, side = "buy" }
  end
  local imbalance = decimal.subtract(supply, demand)
  return { price = price, volume = demand, imbalance = imbalance, side = more < 0 and "sell" }
end

-- What an uncross would come to: { price, volume, imbalance, side } (`side` is the one of which
-- something is left over, else false), or nil where nothing would trade.
function auction.outcome(tx)
  if not auction.is_crossed(tx) then
    return nil
  end
  local bids = levels_within(tx, "buy", queue.best_price(tx, "sell"))
  local asks = levels_within(tx, "sell", queue.best_price(tx, "buy"))
  if tx.has_icebergs then
    add_hidden(tx, "buy", bids)
    add_hidden(tx, "sell", asks)
  end
  local prices = sorted_prices(bids, asks)
  local demand, supply = cumulated(bids, reversed(prices)), cumulated(asks, prices)
  local tied = {}
  for _, price in ipairs(prices) do
    local outcome = outcome_at(price, demand[price], supply[price])
    local order_of_two = tied[1] and compare_outcomes(outcome, tied[1]) or 0
    if order_of_two < 0 then
      tied = { outcome }
    elseif order_of_two == 0 then
      tied[#tied + 1] = outcome
    end
  end
  return nearest(tx.instrument, under_pressure(tied))
end

-- The outcome as JSON members, each with a comma before it; empty where nothing would trade.
function auction.outcome_json(tx)
  local outcome, instrument = auction.outcome(tx), tx.instrument
  if not outcome then
    return ""
  end
  local text = ',"indicative_price":"'
    .. instrument_record.price_text(instrument, outcome.price)
    .. '","indicative_quantity":"'
    .. numbers.text(outcome.volume, instrument.quantity_step)
    .. '"'
  if not outcome.side then
    return text
  end
  local imbalance = numbers.text(outcome.imbalance, instrument.quantity_step)
  return text
    .. ',"imbalance_side":"'
    .. outcome.side
    .. '","imbalance_quantity":"'
    .. imbalance
    .. '"'
end

-- ---- uncrossing

-- An order that traded shows its next slice, or is gone.
local function reduce(tx, order, lots)
  if book.reduce(tx, order, lots) then
    return order
  end
  return nil
end

-- The heads of both queues trade, an iceberg with all it has: what it hides has no turn of its own
-- in an auction. Nobody is the aggressor; the younger order is called the taker.
local function trade(tx, bid, ask, price)
  local instrument = tx.instrument
  local taker, maker = bid, ask
  if tonumber(ask.order_id) > tonumber(bid.order_id) then
    taker, maker = ask, bid
  end
  local lots = math.min(bid.remaining, ask.remaining)
  instrument.last_trade_id = instrument.last_trade_id + 1
  local quantity = instrument_record.quantity_text(instrument, lots)
  candles.count(tx, price, lots)
  local refreshed = { reduce(tx, taker, lots) }
  refreshed[#refreshed + 1] = reduce(tx, maker, lots)
  order_reports.auction_trade(tx, taker, maker, {
    trade_id = numbers.integer_text(instrument.last_trade_id),
    terms = '","price":"'
      .. instrument_record.price_text(instrument, price)
      .. '","quantity":"'
      .. quantity,
  })
  for _, order in ipairs(refreshed) do
    book.refresh(tx, order)
  end
  tx.fills_left = tx.fills_left - 1
end

local function has_budget(tx)
  return tx.fills_left > 0 and #tx.events.accounts < limits.accounts_per_call_max
end

-- Trades at the price what can, as far as one call may. Whether that was all.
local function trade_all(tx, price)
  local price_text = instrument_record.price_text(tx.instrument, price)
  local traded = false
  while has_budget(tx) do
    local bid, ask = queue.best_price(tx, "buy"), queue.best_price(tx, "sell")
    if not bid or not ask or bid < price or ask > price then
      return true, traded
    end
    trade(tx, queue.orders(tx, "buy")(), queue.orders(tx, "sell")(), price)
    tx.instrument.last_price, traded = price_text, true
  end
  return false, traded
end

-- Goes on uncrossing until nothing crosses, as far as one call may. The book's status is trading
-- when it is done.
function auction.uncross(tx)
  local features = tx.instrument.features
  while auction.is_crossed(tx) do
    local price = tonumber(features.uncrossing) or auction.outcome(tx).price
    features.uncrossing = numbers.integer_text(price)
    local is_done, traded = trade_all(tx, price)
    if traded and tx.trigger_queue then
      tx.trigger_queue[#tx.trigger_queue + 1] = price
    end
    if not is_done then
      tx.changed = true
      return
    end
    features.uncrossing = "begun"
  end
  features.uncrossing = ""
  tx.instrument.status = "trading"
  book.change_rules(tx)
end

return auction
