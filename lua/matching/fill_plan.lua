-- Price-time priority: a taker against the other side gives a plan of fills, and the plan, once
-- it is accepted, is carried out on the working copy.
--
-- The plan comes first because the outcome decides what becomes of the order: fill-or-kill trades
-- all or nothing, a post-only order must not trade at all, and a rest that cannot queue refuses
-- the whole command. A fill is always at the maker's price.

local queue = require("book/queue")
local self_trade_prevention = require("matching/self_trade_prevention")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local decimal = require("values/decimal")
local limits = require("values/limits")
local numbers = require("values/numbers")
local reject = require("values/reject")
local sides = require("values/sides")

local fill_plan = {}

-- Whether a taker { side, price (nil for market), protection_price } would trade with an order at
-- this price.
-- A market order may have a protection_price.
local function crosses(taker, price)
  local limit = taker.price or taker.protection_price
  if not limit then
    return true
  end
  if taker.side == "buy" then
    return price <= limit
  end
  return price >= limit
end

-- Whether a taker would trade at once. In an auction no order does.
function fill_plan.would_trade(tx, taker)
  if tx.instrument.status == "auction" then
    return false
  end
  local best = queue.best_price(tx, sides.opposite[taker.side])
  return best and crosses(taker, best)
end

local function too_many_fills()
  return reject.with("TOO_MANY_FILLS", "one call can fill at most 10000 makers of 3500 accounts")
end

local function drop_from(list, first)
  for i = #list, first, -1 do
    list[i] = nil
  end
end

-- Cuts fills off for whose accounts one stream entry has no room beside those of the call before,
-- and the taker's.
local function cut_to_accounts(tx, taker, fills)
  local seen = { [taker.account] = true }
  local count = #tx.events.accounts + (tx.events.reports[taker.account] and 0 or 1)
  for i = 1, #fills do
    local account = fills[i].maker.account
    if not seen[account] and not tx.events.reports[account] then
      seen[account] = true
      count = count + 1
    end
    if count > limits.accounts_per_call_max then
      fills.is_cut = true
      return drop_from(fills, i)
    end
  end
end

-- The plan of an order that meets no other.
fill_plan.no_fills = {}

-- ---- the general plan: icebergs, self-trade prevention, quote quantities, protection

-- How many lots the taker still wants at a price; of a quote quantity, as many as it can pay. More
-- lots than are exact are more than any order has.
local function wanted_at(walk, price)
  if not walk.quote_left then
    return walk.left
  end
  local lots =
    decimal.quotient(walk.quote_left, instrument_record.lot_cost(walk.tx.instrument, price))
  return type(lots) == "number" and lots or numbers.exact_max
end

-- The taker wants so many lots less.
local function count_step(walk, maker, lots)
  if walk.quote_left then
    local cost = decimal.multiply(instrument_record.lot_cost(walk.tx.instrument, maker.price), lots)
    walk.quote_left = decimal.subtract(walk.quote_left, cost)
  else
    walk.left = walk.left - lots
  end
end

-- One step of the plan: lots that are traded, of those wanted, or what self-trade prevention does
-- with the maker.
local function add_step(walk, maker, lots, wanted, prevented)
  if #walk.fills == walk.tx.fills_left then
    walk.done, walk.fills.is_cut = true, true
    return
  end
  walk.fills[#walk.fills + 1] = {
    maker = maker,
    lots = lots,
    wanted = wanted,
    prevented = prevented,
  }
  count_step(walk, maker, lots)
end

local function finish_taker(walk, reason)
  walk.done, walk.fills.ended = true, reason
end

-- The taker meets an order of its own trader.
local function prevent(walk, maker, wanted)
  if walk.prevention == "decrement" then
    local lots = math.min(wanted, maker.remaining)
    add_step(walk, maker, lots, wanted, "decrement")
    -- A fok order that must pass over one of its own cannot be filled whole.
    if lots == wanted or walk.taker.time_in_force == "fok" then
      finish_taker(walk, "self_trade")
    end
    return
  end
  if walk.prevention ~= "cancel_taker" then
    add_step(walk, maker, 0, wanted, "cancel")
  end
  if walk.prevention ~= "cancel_maker" then
    finish_taker(walk, "self_trade")
  end
end

local function meet(walk, maker, wanted)
  if walk.prevention and self_trade_prevention.are_one_trader(walk.tx, walk.taker, maker) then
    return prevent(walk, maker, wanted)
  end
  local shown = order_record.shown(maker)
  add_step(walk, maker, math.min(wanted, shown), wanted)
  if walk.quote_left and wanted < shown then
    walk.done, walk.fills.quote_spent = true, true
  end
  if wanted >= shown and maker.remaining > shown then
    walk.refreshed[#walk.refreshed + 1] = { maker = maker, rest = maker.remaining - shown }
  end
end

-- How many lots icebergs trade in so many rounds, in each of which each shows one slice.
local function lots_of_rounds(icebergs, rounds)
  local total = 0
  for i = 1, #icebergs do
    local rest, slice = icebergs[i].rest, icebergs[i].maker.attributes.display_quantity
    total = total + math.min(rest, rounds * slice)
  end
  return total
end

-- How many whole rounds so many wanted lots are enough for. Fewer lots than a round needs, or
-- none, are left then.
local function whole_rounds(icebergs, wanted)
  local rounds, too_many = 0, 1
  for i = 1, #icebergs do
    local slice = icebergs[i].maker.attributes.display_quantity
    too_many = math.max(too_many, math.ceil(icebergs[i].rest / slice) + 1)
  end
  while too_many - rounds > 1 do
    local middle = math.floor((rounds + too_many) / 2)
    if lots_of_rounds(icebergs, middle) <= wanted then
      rounds = middle
    else
      too_many = middle
    end
  end
  return rounds
end

-- What each of these icebergs trades of so many wanted lots, slice by slice in turn, as one fill
-- each: { maker, lots }. They come in the order of their last whole slices, which is that in which
-- they stand in the queue afterwards.
local function joined_slices(icebergs, wanted)
  local rounds, joined = whole_rounds(icebergs, wanted), {}
  local left = wanted - lots_of_rounds(icebergs, rounds)
  for i = 1, #icebergs do
    local maker, rest = icebergs[i].maker, icebergs[i].rest
    local slice = maker.attributes.display_quantity
    local lots = math.min(rest, rounds * slice)
    local round = math.min(rounds, math.ceil(rest / slice))
    local next_slice = math.min(slice, rest - lots)
    local more = math.min(left, next_slice)
    if more > 0 and more == next_slice then
      round = rounds + 1
    end
    left = left - more
    if lots + more > 0 then
      joined[#joined + 1] = { maker = maker, lots = lots + more, round = round, index = i }
    end
  end
  table.sort(joined, function(one, other)
    if one.round ~= other.round then
      return one.round < other.round
    end
    return one.index < other.index
  end)
  return joined
end

-- The icebergs of a level whose slice was taken stand behind its other orders with the next one,
-- and so round by round. However many slices an iceberg trades so, they are one fill: else an order
-- that shows little of much could use up what a call may do. One that is met alone is one fill
-- together with the slice that it showed first. Where the call has not enough fills left for all of
-- them none trades: one that came first would get the lots of all its rounds out of turn.
local function meet_refreshed(walk)
  local icebergs = walk.refreshed
  if not icebergs[1] then
    return
  end
  walk.refreshed = {}
  local wanted, taken = wanted_at(walk, icebergs[1].maker.price), 0
  local last, steps = walk.fills[#walk.fills], joined_slices(icebergs, wanted)
  local is_lone = not icebergs[2] and last.maker == icebergs[1].maker
  if not is_lone and #walk.fills + #steps > walk.tx.fills_left then
    walk.done, walk.fills.is_cut = true, true
    return
  end
  for _, step in ipairs(steps) do
    taken = taken + step.lots
    if is_lone then
      count_step(walk, step.maker, step.lots)
      last.lots = last.lots + step.lots
    else
      add_step(walk, step.maker, step.lots, wanted)
    end
  end
  if walk.quote_left and lots_of_rounds(icebergs, math.huge) > wanted then
    -- The orders behind, at worse prices, are not for this taker, be they worth a lot.
    walk.done, walk.fills.quote_spent = true, true
  end
end

-- The taker goes through the queue of the other side, level by level.
local function walk_queue(walk)
  local taker, level = walk.taker, nil
  for maker in queue.orders(walk.tx, sides.opposite[taker.side]) do
    if maker.price ~= level then
      meet_refreshed(walk)
      level = maker.price
    end
    if walk.done then
      break
    end
    local wanted = wanted_at(walk, maker.price)
    walk.fills.quote_spent = wanted == 0
    if wanted == 0 then
      break
    end
    if not crosses(taker, maker.price) then
      walk.fills.ended = not taker.price and "protection" or nil
      break
    end
    meet(walk, maker, wanted)
    if walk.done then
      break
    end
  end
  if not walk.done then
    meet_refreshed(walk)
  end
end

-- How much a taker by quote_quantity buys, and whether it cannot pay one lot more; or nil and a
-- refusal where that is more than an order may have.
local function settle_quote(walk)
  local fills, bought = walk.fills, 0
  for i = 1, #fills do
    bought = bought + (fills[i].prevented and 0 or fills[i].lots)
  end
  if bought > walk.tx.instrument.lots_max then
    return reject.with("QUANTITY_TOO_LARGE", "quote_quantity buys more than the engine can hold")
  end
  fills.bought = bought
  local last = fills[#fills]
  local is_short = fills.quote_spent or (last and wanted_at(walk, last.maker.price) == 0)
  fills.quote_spent = bought > 0 and is_short and not fills.ended
  return fills
end

local function plan_general(tx, taker)
  local walk = {
    tx = tx,
    taker = taker,
    fills = {},
    left = taker.remaining,
    quote_left = taker.attributes and taker.attributes.quote_units,
    prevention = self_trade_prevention.mode_of(tx, taker),
    refreshed = {},
  }
  walk_queue(walk)
  if walk.fills.is_cut then
    return walk.fills, walk.left
  end
  if walk.quote_left then
    local settled, refusal = settle_quote(walk)
    if not settled then
      return nil, refusal
    end
  end
  if walk.fills.ended and taker.time_in_force == "fok" then
    return fill_plan.no_fills, taker.remaining
  end
  return walk.fills, walk.left
end

-- ---- the plan

-- The fills of an order without optional attributes; nil where it meets an order that has some.
local function plan_simple(tx, taker)
  local fills, left = {}, taker.remaining
  for maker in queue.orders(tx, sides.opposite[taker.side]) do
    if left == 0 or not crosses(taker, maker.price) then
      break
    end
    if maker.attributes and maker.attributes.slice then
      return nil
    end
    if #fills == tx.fills_left then
      fills.is_cut = true
      break
    end
    local lots = math.min(left, maker.remaining)
    fills[#fills + 1] = { maker = maker, lots = lots }
    left = left - lots
  end
  return fills, left
end

-- Whether an order on an instrument with rare rules, or with optional attributes, has any that
-- matter here.
local function needs_general_plan(tx, taker)
  local by_quote = taker.attributes and taker.attributes.quote_units
  return by_quote or taker.protection_price or self_trade_prevention.mode_of(tx, taker)
end

-- Whether a taker cannot be done in parts: all of it trades or nothing, or what it buys in all must
-- be known first.
local function is_decided_whole(taker)
  return taker.time_in_force == "fok" or (taker.attributes and taker.attributes.quote_units)
end

-- The fills of a taker { side, price (nil for market), remaining, account, time_in_force,
-- attributes }: a list of { maker, lots, prevented }, and the lots left over. `prevented` tells
-- what self-trade prevention does in place of a trade (cancel, decrement); `ended` in the list why
-- the taker ends before its time. Changes nothing. Where there would be more than a call may do the
-- list is cut to as many as it may (`is_cut`); of a taker that has to be decided whole, nil and a
-- refusal.
function fill_plan.make(tx, taker)
  local best = queue.best_price(tx, sides.opposite[taker.side])
  if not best or not crosses(taker, best) or tx.instrument.status == "auction" then
    return fill_plan.no_fills, taker.remaining
  end
  local fills, left
  local is_plain = not taker.attributes and not tx.instrument.features
  if is_plain or not needs_general_plan(tx, taker) then
    fills, left = plan_simple(tx, taker)
  end
  if not fills and not left then
    fills, left = plan_general(tx, taker)
  end
  if not fills then
    return nil, left
  end
  if #fills + #tx.events.accounts >= limits.accounts_per_call_max then
    cut_to_accounts(tx, taker, fills)
  end
  if fills.is_cut and is_decided_whole(taker) then
    return too_many_fills()
  end
  return fills, left
end

return fill_plan
