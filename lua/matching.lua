-- Price-time priority: a taker against the other side gives a plan of fills, and the plan, once
-- it is accepted, is carried out on the working copy.
--
-- The plan comes first because the outcome decides what becomes of the order: fill-or-kill trades
-- all or nothing, a post-only order must not trade at all, and a rest that cannot queue refuses
-- the whole command. A fill is always at the maker's price.

local book = require("book")
local events = require("events")
local instrument = require("instrument")
local numbers = require("numbers")
local reject = require("reject")

local matching = {}

matching.opposite = { buy = "sell", sell = "buy" }

-- Whether a taker { side, price (nil for market) } would trade with an order at this price.
local function crosses(taker, price)
  local limit = taker.price
  if not limit then
    return true
  end
  if taker.side == "buy" then
    return price <= limit
  end
  return price >= limit
end

-- Whether a taker would trade at once.
function matching.would_trade(b, taker)
  local best = book.best_price(b, matching.opposite[taker.side])
  return best and crosses(taker, best)
end

local function too_many_fills()
  return reject.with("TOO_MANY_FILLS", "one call can fill at most 10000 makers of 3500 accounts")
end

-- Whether the call would have more accounts to report to than one stream entry can carry.
local function too_many_accounts(b, fills)
  local count, seen = #b.events.accounts + 1, {}
  for _, fill in ipairs(fills) do
    local account = fill.maker.account
    if not seen[account] and not b.events.reports[account] then
      seen[account] = true
      count = count + 1
    end
  end
  return count > book.accounts_per_call_max
end

-- The plan of an order that meets nobody.
matching.no_fills = {}

-- The fills of a taker { side, price (nil for market), remaining }: a list of { maker, lots }, and
-- the lots left over. Changes nothing. nil and a refusal where there would be more fills than a
-- call may do.
function matching.plan(b, taker)
  local best = book.best_price(b, matching.opposite[taker.side])
  if not best or not crosses(taker, best) then
    return matching.no_fills, taker.remaining
  end
  local fills, left = {}, taker.remaining
  for maker in book.queue(b, matching.opposite[taker.side]) do
    if left == 0 or not crosses(taker, maker.price) then
      break
    end
    if #fills == b.fills_left then
      return too_many_fills()
    end
    local lots = math.min(left, maker.remaining)
    fills[#fills + 1] = { maker = maker, lots = lots }
    left = left - lots
  end
  if #fills + #b.events.accounts >= book.accounts_per_call_max and too_many_accounts(b, fills) then
    return too_many_fills()
  end
  return fills, left
end

local function fill_json(trade, maker)
  return '{"trade_id":"'
    .. trade.trade_id
    .. trade.terms
    .. '","maker_order_id":"'
    .. maker.order_id
    .. '"}'
end

-- Carries out a plan with fills: reduces both orders, reports each trade. Returns the fills as
-- JSON.
function matching.trade(b, taker, fills)
  local record = b.instrument
  local texts = {}
  for i, fill in ipairs(fills) do
    local maker = fill.maker
    record.last_trade_id = record.last_trade_id + 1
    local price = instrument.price_text(record, maker.price)
    local quantity = instrument.quantity_text(record, fill.lots)
    local trade = {
      trade_id = numbers.integer_text(record.last_trade_id),
      terms = '","price":"' .. price .. '","quantity":"' .. quantity,
    }
    taker.remaining = taker.remaining - fill.lots
    book.reduce(b, maker, fill.lots)
    events.trade(b, taker, maker, trade)
    texts[i] = fill_json(trade, maker)
    record.last_price = price
  end
  b.fills_left = b.fills_left - #fills
  return "[" .. table.concat(texts, ",") .. "]"
end

return matching
