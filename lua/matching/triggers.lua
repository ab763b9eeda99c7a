-- The cascade: stop orders that trades have triggered enter the market, and trade, and their trades
-- trigger more.
--
-- The prices of trades are shown to those who wait one after the other, oldest first. At each, who
-- is due comes in one by one, as a taker with a new priority; the prices of his own trades go to
-- the end of the agenda. So a cascade runs breadth first and ends, for every order triggers once.
-- What an order list arms stands on the same agenda: nobody is shown a price from before he was
-- armed. A call carries out a limited number, and with it no more fills than one call may make; the
-- rest of the agenda is kept, and the next call or tick goes on with it before anything else. An
-- order that has more to trade is paused (order_entry.lua), and then stands first on the agenda.
-- Nothing goes on while the instrument does not trade, nor while orders that are to expire or to be
-- canceled by now are still there to be met.

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
local function trigger(b, o)
  local fills, refusal = order_lists.plan(b, o)
  if not fills and order_entry.is_for_next_call(b, refusal) then
    b.is_spent = true
    return
  end
  if fills and o.extras.order_list_id then
    order_lists.end_others(b, o)
  end
  b.triggers_left = b.triggers_left - 1
  book.dequeue(b, o)
  o.extras.waits = nil
  book.prioritize(b, o)
  order_reports.triggered(b, o)
  order_entry.enter(b, o, fills)
end

local function may_go_on(b)
  return b.triggers_left > 0
    and not b.is_spent
    and b.fills_left > 0
    and #b.events.accounts < limits.accounts_per_call_max
    and b.instrument.status == "trading"
    and not b.expiring
    and not b.canceling
end

-- Shows a price to those who wait: to one of them at a time.
local function show(b, price)
  if not stop_orders.follow(b, price) then
    b.is_spent = true
    return
  end
  local o = stop_orders.next_due(b, price)
  if o then
    return trigger(b, o)
  end
  b.agenda.first = b.agenda.first + 1
end

-- Goes on with an order that was paused, if it is still there.
local function resume(b, item)
  b.agenda.first = b.agenda.first + 1
  local o = orders.find(b, item.paused_id)
  if not o then
    return
  end
  local fills = order_lists.plan(b, o)
  book.dequeue(b, o)
  o.extras.waits = nil
  book.prioritize(b, o)
  order_reports.resumed(b, o)
  order_entry.enter(b, o, fills)
end

-- Carries out the first item of the agenda, or a part of it.
local function carry_out(b)
  local agenda = b.agenda
  local item = agenda[agenda.first]
  if type(item) ~= "table" then
    return show(b, item)
  end
  if item.paused_id then
    return resume(b, item)
  end
  -- It goes first: a leg that is paused takes the place before what is left.
  agenda.first = agenda.first + 1
  if not order_lists.arm(b, item) then
    agenda.first = agenda.first - 1
    b.is_spent = true
  end
end

-- Carries out what the command before has led to, as far as one call may.
function triggers.run(b)
  order_lists.settle(b)
  while trigger_queue.has_items(b) and may_go_on(b) do
    carry_out(b)
    order_lists.settle(b)
    if b.breaker then
      circuit_breaker.apply(b)
    end
  end
end

return triggers
