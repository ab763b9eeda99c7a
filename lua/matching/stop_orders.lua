-- Stop orders: orders that wait outside the book until trades reach their stop price.
--
-- Some wait for a rise (a buy stop; a sell take_profit), the others for a fall. The two queues
-- `rising` and `falling` hold them the next to trigger first, which is how book.lua keeps a side of
-- the book, so they are kept by the same code: rising ones lowest stop price first, falling ones
-- highest first, at one stop price by priority.
--
-- A trailing stop waits for the price to turn: its stop price is its `trailing_offset` away from
-- its reference, the best trade price in its favour since it was placed. When the reference
-- follows a price the order queues anew at its new stop price.
--
-- Trades do not trigger anything while they are made. Their prices are noted in the working copy
-- (its `trigger queue`), and after each command they are shown to those who wait, one after the
-- other: see triggers.lua.

local book = require("book/book")
local queue = require("book/queue")
local order_reports = require("market_data/order_reports")
local last_price = require("matching/last_price")
local trailing_stops = require("matching/trailing_stops")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local limits = require("values/limits")
local numbers = require("values/numbers")
local reject = require("values/reject")

local stop_orders = {}

local trailing_orders_max = 1000
local trailing_orders_per_account_max = 100
local directions = { "rising", "falling" }
local sides = { "buy", "sell" }

-- Which way the price must go for an order of this kind.
function stop_orders.direction(side, order_type)
  local is_profit = order_type == "take_profit" or order_type == "take_profit_limit"
  return (side == "buy") ~= is_profit and "rising" or "falling"
end

-- Whether a trade price triggers an order that waits this way at a stop price.
function stop_orders.is_triggered(waits, stop_price, price)
  if waits == "rising" then
    return price >= stop_price
  end
  return price <= stop_price
end

-- The percentage that a trailing_offset is, without its sign; nil where it is in price units. No
-- other field takes a percent sign.
local function percentage_of(trailing_offset)
  return trailing_offset:match("^(.*)%%$")
end

-- How far a trailing stop stays from its reference, in ticks: of a percentage the whole part, at
-- least one.
local function offset_ticks(instrument, text, price)
  local percent = percentage_of(text)
  if not percent then
    return (instrument_record.price(instrument, text))
  end
  return math.max(1, numbers.fraction(price, numbers.percent(percent)))
end

-- Sets the reference of a trailing stop, and thereby its stop price: below zero it never triggers,
-- nor beyond the largest price.
function stop_orders.refer(instrument, order, price)
  local attributes = order.attributes
  local offset = offset_ticks(instrument, attributes.trailing_offset, price)
  local stop_price = order.side == "sell" and price - offset or price + offset
  attributes.reference_price = price
  attributes.stop_price = math.min(stop_price, numbers.exact_max + 1)
end

-- Whether a trailing stop has got its first reference, the last trade price. Where that lies
-- between two ticks it is the one that is further from the stop price: no price between the two
-- would trigger it too early.
function stop_orders.refer_to_last(instrument, order)
  local price = order.side == "sell" and last_price.floor(instrument)
    or last_price.ceiling(instrument)
  if price then
    stop_orders.refer(instrument, order, price)
  end
  return price ~= nil
end

-- Whether the last trade price triggers an order that waits this way at a stop price.
function stop_orders.is_triggered_now(instrument, waits, stop_price)
  local price
  if waits == "rising" then
    price = last_price.floor(instrument)
  else
    price = last_price.ceiling(instrument)
  end
  return price and stop_orders.is_triggered(waits, stop_price, price)
end

-- A refusal where a stop price or an offset in price units is no price, else nil.
function stop_orders.price_refusal(instrument, values)
  local offset = values.trailing_offset
  local text = values.stop_price or (offset and not percentage_of(offset) and offset)
  return text and select(2, instrument_record.price(instrument, text)) or nil
end

-- Adds what makes a drafted order wait. Its prices have been looked at.
function stop_orders.read(tx, order, values)
  local attributes = order.attributes
  attributes.stop_price = values.stop_price
    and instrument_record.price(tx.instrument, values.stop_price)
  attributes.order_type = order.order_type
  attributes.trailing_offset = values.trailing_offset
  attributes.waits = stop_orders.direction(order.side, order.order_type)
  if order.time_in_force == "ioc" or order.time_in_force == "fok" then
    attributes.time_in_force = order.time_in_force
  end
end

-- A refusal where a stop price is reached already, else nil.
function stop_orders.would_trigger_refusal(tx, waits, stop_price)
  if stop_orders.is_triggered_now(tx.instrument, waits, stop_price) then
    return reject.new("WOULD_TRIGGER", "the last trade price is at the stop price or beyond it")
  end
  return nil
end

-- A refusal of a new stop order, else nil; a trailing one gets its first reference.
function stop_orders.refusal(tx, order)
  if not order.attributes.trailing_offset then
    return stop_orders.would_trigger_refusal(
      tx,
      order.attributes.waits,
      order.attributes.stop_price
    )
  end
  if not stop_orders.refer_to_last(tx.instrument, order) then
    return reject.new("NO_LAST_PRICE", "a trailing_stop needs a last trade price")
  end
  if order.attributes.reference_price > numbers.exact_max then
    return reject.new("NO_LAST_PRICE", "the last trade price is beyond what tick_size can count")
  end
  return nil
end

-- A refusal where no more trailing stops may wait, else nil.
function stop_orders.count_refusal(tx, order)
  local features = tx.instrument.features
  local count = features and features.trailing_orders or 0
  if not order.attributes.trailing_offset or count < trailing_orders_per_account_max then
    return nil
  end
  if count >= trailing_orders_max then
    return reject.new("TOO_MANY_TRAILING_STOPS", "1000 trailing stops wait in this book")
  end
  if trailing_stops.count_of(tx, order.account) >= trailing_orders_per_account_max then
    local message = "100 trailing stops of the account wait in this book"
    return reject.new("TOO_MANY_TRAILING_STOPS", message)
  end
  return nil
end

-- Whether the call may move no more trailing stops: each of them will be reported.
local function are_trails_used_up(tx)
  return tx.trails_left == 0 or #tx.events.accounts >= limits.accounts_per_call_max
end

-- Shows a trade price to the trailing stops of both sides. Whether the call could move all of them.
local function show_to_trailing(tx, price)
  for _, side in ipairs(sides) do
    for _, order in ipairs(trailing_stops.behind(tx, side, price)) do
      if are_trails_used_up(tx) then
        return false
      end
      tx.trails_left = tx.trails_left - 1
      order_reports.expect_report(tx, order.account)
      book.remove_from_queue(tx, order)
      stop_orders.refer(tx.instrument, order, price)
      book.assign_priority(tx, order)
      book.wait(tx, order)
      order.attributes.trailed = true
    end
  end
  return true
end

-- Reports the trailing stops that have followed the price in this call and still wait, oldest
-- first.
function stop_orders.report_trailed(tx)
  local trailed = {}
  for _, order in pairs(tx.trailing_touched) do
    if
      order.queued
      and order_record.is_triggerable(order.attributes.waits)
      and order.attributes.trailed
    then
      trailed[#trailed + 1] = order
    end
  end
  table.sort(trailed, function(left, right)
    return tonumber(left.order_id) < tonumber(right.order_id)
  end)
  for _, order in ipairs(trailed) do
    order_reports.trailed(tx, order)
  end
end

-- The next order that a trade price triggers, or nil; rising ones come first.
function stop_orders.next_triggered(tx, price)
  for _, waits in ipairs(directions) do
    local stop_price = queue.best_price(tx, waits)
    if stop_price and stop_orders.is_triggered(waits, stop_price, price) then
      return queue.orders(tx, waits)()
    end
  end
  return nil
end

-- Lets the trailing stops follow the price that stands first on the trigger queue. Whether all
-- have: a call moves a limited number, and the next one goes on with the others.
function stop_orders.follow(tx, price)
  local items = tx.trigger_queue
  if items.shown == items.first or tx.instrument.features.trailing_orders == 0 then
    return true
  end
  if not show_to_trailing(tx, price) then
    return false
  end
  items.shown = items.first
  return true
end

return stop_orders
