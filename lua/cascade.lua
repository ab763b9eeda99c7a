-- The cascade: stop orders that trades have triggered enter the market, and trade, and their trades
-- trigger more.
--
-- The prices of trades are shown to those who wait one after the other, oldest first. At each, who
-- is due comes in one by one, as a taker with a new priority; the prices of his own trades go to
-- the end of the line. So a cascade runs breadth first and ends, for every order triggers once. A
-- call carries out a limited number; the prices still to be shown are kept, and the next call or
-- tick goes on with them before anything else. Nothing triggers while the instrument does not
-- trade.

local book = require("book")
local events = require("events")
local matching = require("matching")
local placing = require("placing")
local stops = require("stops")

local cascade = {}

-- A stop order enters the market. What cannot be done whole is canceled.
local function enter(b, o)
  book.dequeue(b, o)
  o.extras.waits = nil
  book.prioritize(b, o)
  events.triggered(b, o)
  local fills = placing.plan(b, o)
  if not fills then
    book.close(b, o)
    return events.canceled(b, o, "too_large")
  end
  if fills[1] then
    matching.trade(b, o, fills)
  end
  return placing.settle(b, o, fills)
end

local function may_go_on(b)
  return b.triggers_left > 0
    and #b.events.accounts < book.accounts_per_call_max
    and b.instrument.status == "trading"
end

-- Carries out what the trades so far have triggered, as far as one call may. What nobody waits for
-- is forgotten, lest an order that comes later be shown prices from before its time.
function cascade.run(b)
  while book.has_triggers(b) and may_go_on(b) do
    local o = stops.next_triggered(b)
    if o then
      b.triggers_left = b.triggers_left - 1
      enter(b, o)
    end
  end
  if b.instrument.extended.waiting_orders == 0 then
    b.trade_prices = { first = 1 }
  end
end

return cascade
