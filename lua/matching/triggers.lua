-- Processes the trigger queue: stop orders that trades have triggered enter the market and trade,
-- and their trades trigger more.
--
-- Trade prices are applied to the pending stop orders one after the other, oldest first. At each
-- price the triggered orders enter one by one, as takers with a new priority, and the prices of
-- their own trades go to the end of the trigger queue. So the queue is processed breadth first, and
-- it ends, because every order triggers once. Order lists that are to be armed stand in the same
-- queue: no order gets a price from before it was armed.
--
-- A call processes a limited number of items, and with them no more fills than one call may make.
-- The rest of the queue is stored, and the next call or tick goes on with it before anything else.
-- An order that has more to trade is paused (order_entry.lua) and then stands first. Nothing is
-- processed while the instrument does not trade, nor while orders that are to expire or to be
-- canceled by now are still in the book.

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

-- Triggers a stop order: the other orders of its list end, and it enters the market. An order that
-- has to be decided whole waits for the next call if it has more trades than this call may make.
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

-- Whether this call may process one more item.
local function has_budget(tx)
  return tx.triggers_left > 0
    and not tx.budget_exhausted
    and tx.fills_left > 0
    and #tx.events.accounts < limits.accounts_per_call_max
    and tx.instrument.status == "trading"
    and not tx.expiring
    and not tx.canceling
end

-- Applies the oldest trade price to the pending stop orders: moves the trailing stops, then
-- triggers at most one order. A price that triggers nothing more leaves the queue.
local function apply_trade_price(tx, price)
  if not stop_orders.follow(tx, price) then
    tx.budget_exhausted = true
    return
  end
  local order = stop_orders.next_triggered(tx, price)
  if order then
    return trigger(tx, order)
  end
  tx.trigger_queue.first = tx.trigger_queue.first + 1
end

-- Goes on with a paused order, if it is still open.
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

-- Processes the first item of the trigger queue, or a part of it.
local function process_item(tx)
  local items = tx.trigger_queue
  local item = items[items.first]
  if type(item) ~= "table" then
    return apply_trade_price(tx, item)
  end
  if item.paused_id then
    return resume(tx, item)
  end
  -- The item leaves the queue first, because a leg that is paused goes to the front of the queue.
  items.first = items.first + 1
  if not order_lists.arm(tx, item) then
    items.first = items.first - 1
    tx.budget_exhausted = true
  end
end

-- Processes what earlier orders have led to, as far as this call may.
function triggers.run(tx)
  order_lists.process_events(tx)
  while trigger_queue.has_items(tx) and has_budget(tx) do
    process_item(tx)
    order_lists.process_events(tx)
    if tx.breaker then
      circuit_breaker.apply(tx)
    end
  end
end

return triggers
