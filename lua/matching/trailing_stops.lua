-- Finding the trailing stops that wait: how many an account has, and which a trade price moves.

local book = require("book/book")
local orders = require("book/orders")
local order_record = require("records/order_record")
local keys = require("values/keys")
local numbers = require("values/numbers")

local trailing_stops = {}

-- How many trailing stops of an account wait, those of this call included. All are looked at once a
-- call.
function trailing_stops.count_of(b, account)
  if b.trailing_counts then
    return b.trailing_counts[account] or 0
  end
  local order_ids = {}
  for _, side_name in ipairs({ "buy", "sell" }) do
    local stored = redis.call("ZRANGE", keys.trailing_stops(b.key, side_name), 0, -1)
    for i = 1, #stored do
      order_ids[#order_ids + 1] = stored[i]
    end
  end
  orders.prefetch(b, order_ids)
  for order_id, o in pairs(b.trailing_touched or {}) do
    if not order_record.is_triggerable(o.extras.stored_waits) then
      order_ids[#order_ids + 1] = order_id
    end
  end
  b.trailing_counts = {}
  for i = 1, #order_ids do
    local o = orders.find(b, order_ids[i])
    if o and order_record.is_triggerable(o.extras.waits) then
      book.count_trailing(b, o.account, 1)
    end
  end
  return b.trailing_counts[account] or 0
end

-- The waiting trailing stops of a side whose reference a trade price betters, by priority.
function trailing_stops.behind(b, side_name, price)
  local trailing_key = keys.trailing_stops(b.key, side_name)
  local from, to = "-inf", "(" .. numbers.integer_text(price)
  if side_name == "buy" then
    from, to = to, "+inf"
  end
  local order_ids = redis.call("ZRANGEBYSCORE", trailing_key, from, to)
  orders.prefetch(b, order_ids)
  for order_id, o in pairs(b.trailing_touched or {}) do
    if not order_record.is_triggerable(o.extras.stored_waits) then
      order_ids[#order_ids + 1] = order_id
    end
  end
  local found = {}
  for i = 1, #order_ids do
    local o = orders.find(b, order_ids[i])
    local reference = o and o.side == side_name and o.extras.waits and o.extras.reference_price
    if reference and (reference - price) * (side_name == "buy" and 1 or -1) > 0 then
      found[#found + 1] = o
    end
  end
  table.sort(found, function(left, right)
    return left.priority < right.priority
  end)
  return found
end

return trailing_stops
