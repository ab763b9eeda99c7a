-- Finding the trailing stops that wait: how many an account has, and which a trade price moves.

local book = require("book/book")
local orders = require("book/orders")
local order_record = require("records/order_record")
local keys = require("values/keys")
local numbers = require("values/numbers")

local trailing_stops = {}

-- How many trailing stops of an account wait, those of this call included. All are looked at once a
-- call.
function trailing_stops.count_of(tx, account)
  if tx.trailing_counts then
    return tx.trailing_counts[account] or 0
  end
  local order_ids = {}
  for _, side_name in ipairs({ "buy", "sell" }) do
    local stored = redis.call("ZRANGE", keys.trailing_stops(tx.key, side_name), 0, -1)
    for i = 1, #stored do
      order_ids[#order_ids + 1] = stored[i]
    end
  end
  orders.prefetch(tx, order_ids)
  for order_id, order in pairs(tx.trailing_touched or {}) do
    if not order_record.is_triggerable(order.attributes.stored_waits) then
      order_ids[#order_ids + 1] = order_id
    end
  end
  tx.trailing_counts = {}
  for i = 1, #order_ids do
    local order = orders.find(tx, order_ids[i])
    if order and order_record.is_triggerable(order.attributes.waits) then
      book.count_trailing(tx, order.account, 1)
    end
  end
  return tx.trailing_counts[account] or 0
end

-- The waiting trailing stops of a side whose reference a trade price betters, by priority.
function trailing_stops.behind(tx, side_name, price)
  local trailing_key = keys.trailing_stops(tx.key, side_name)
  local from, to = "-inf", "(" .. numbers.integer_text(price)
  if side_name == "buy" then
    from, to = to, "+inf"
  end
  local order_ids = redis.call("ZRANGEBYSCORE", trailing_key, from, to)
  orders.prefetch(tx, order_ids)
  for order_id, order in pairs(tx.trailing_touched or {}) do
    if not order_record.is_triggerable(order.attributes.stored_waits) then
      order_ids[#order_ids + 1] = order_id
    end
  end
  local found = {}
  for i = 1, #order_ids do
    local order = orders.find(tx, order_ids[i])
    local reference = order
      and order.side == side_name
      and order.attributes.waits
      and order.attributes.reference_price
    if reference and (reference - price) * (side_name == "buy" and 1 or -1) > 0 then
      found[#found + 1] = order
    end
  end
  table.sort(found, function(left, right)
    return left.priority < right.priority
  end)
  return found
end

return trailing_stops
