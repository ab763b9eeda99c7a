-- The cascade: stop orders that trades have triggered enter the market, and trade, and their trades
-- trigger more.
--
-- The prices of trades are shown to those who wait one after the other, oldest first. At each, who
-- is due comes in one by one, as a taker with a new priority; the prices of his own trades go to
-- the end of the trigger queue. So a cascade runs breadth first and ends, for every order triggers
-- once. What an order list arms stands on the same trigger queue: nobody is shown a price from
-- before he was armed. A call carries out a limited number, and with it no more fills than one call
-- may make; the rest of the trigger queue is kept, and the next call or tick goes on with it before
-- anything else. An order that has more to trade is paused (order_entry.lua), and then stands first
-- on the trigger queue. Nothing goes on while the instrument does not trade, nor while orders that
-- are to expire or to be canceled by now are still there to be met.

local book = require("book/book")
local orders = require("book/orders")
local order_reports = require("market_data/order_reports")
local circuit_breaker = require("matching/circuit_breaker")
local order_entry = require("matching/order_entry")
local order_lists = require("matching/order_lists")
local stop_orders = require("matching/stop_orders")
local trigger_queue = require("matching/trigger_queue")
local limits = require("values/limits")

local triggers = {}

-- A stop order enters the market, unless it has to be decided whole and its trades are more than
-- what is left to this call. The other orders of its list end before.
local function trigger(tx, order)
  local fills, refusal = order_lists.plan(tx, order)
  if not fills and order_entry.is_for_next_call(tx, refusal) then
    tx.budget_exhausted = true
    return
  end
  if fills and order.attributes.order_list_id then
    order_lists.end_others(tx, order)
  end
  tx.triggers_left = tx.triggers_left - 1
  book.remove_from_queue(tx, order)
  order.attributes.waits = nil
  book.assign_priority(tx, order)
  order_reports.triggered(tx, order)
  order_entry.execute_triggered(tx, order, fills)
end

local function may_go_on(tx)
  return tx.triggers_left > 0
    and not tx.budget_exhausted
    and tx.fills_left > 0
    and #tx.events.accounts < limits.accounts_per_call_max
    and tx.instrument.status == "trading"
    and not tx.expiring
    and not tx.canceling
end

-- Shows a price to those who wait: to one of them at a time.
local function show(tx, price)
  if not stop_orders.follow(tx, price) then
    tx.budget_exhausted = true
    return
  end
  local order = stop_orders.next_due(tx, price)
  if order then
    return trigger(tx, order)
  end
  tx.trigger_queue.first = tx.trigger_queue.first + 1
end

-- Goes on with an order that was paused, if it is still there.
local function resume(tx, item)
  tx.trigger_queue.first = tx.trigger_queue.first + 1
  local order = orders.find(tx, item.paused_id)
  if not order then
    return
  end
  local fills = order_lists.plan(tx, order)
  book.remove_from_queue(tx, order)
  order.attributes.waits = nil
  book.assign_priority(tx, order)
  order_reports.resumed(tx, order)
  order_entry.execute_triggered(tx, order, fills)
end

-- Carries out the first item of the trigger queue, or a part of it.
local function carry_out(tx)
  local items = tx.trigger_queue
  local item = items[items.first]
  if type(item) ~= "table" then
    return show(tx, item)
  end
  if item.paused_id then
    return resume(tx, item)
  end
  -- It goes first: a leg that is paused takes the place before what is left.
  items.first = items.first + 1
  if not order_lists.arm(tx, item) then
    items.first = items.first - 1
    tx.budget_exhausted = true
  end
end

-- Carries out what the command before has led to, as far as one call may.
function triggers.run(tx)
  order_lists.process_events(tx)
  while trigger_queue.has_items(tx) and may_go_on(tx) do
    carry_out(tx)
    order_lists.process_events(tx)
    if tx.breaker then
      circuit_breaker.apply(tx)
    end
  end
end

return triggers
