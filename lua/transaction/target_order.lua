-- The order that a command is about, and whether its sender may name it.

local orders = require("book/orders")
local idempotency = require("transaction/idempotency")
local reject = require("values/reject")

local target_order = {}

local function unknown_order()
  return reject.new("UNKNOWN_ORDER", "there is no such open order")
end

-- The order a command is about, or nil and why not.
function target_order.find_order(tx, values)
  local order_id = values.order_id
  if not order_id then
    if not values.account or not values.client_order_id then
      return reject.with("MISSING_FIELD", "missing field order_id, or account and client_order_id")
    end
    order_id = orders.find_client_order(tx, values.account, values.client_order_id)
  end
  local order = order_id and orders.find(tx, order_id)
  if not order then
    return nil, unknown_order()
  end
  -- A stranger is not told which orders there are: some wait where nobody sees them.
  if values.account and values.account ~= order.account then
    return nil, unknown_order()
  end
  return order
end

-- Finds the order that a command names by its client_order_id. Returns the order or nil, why not,
-- where the reply is to be stored, and the stored reply if the command was sent before. A name can
-- pass from an order that has ended to a new one: a reply about the old order is no answer about
-- the new one.
local function find_by_name(tx, method_name, values, schema)
  if not values.account then
    return reject.with("MISSING_FIELD", "missing field account")
  end
  local reply_key = idempotency.reply_key(method_name, values, schema)
  local again, duplicate = idempotency.find_stored_reply(tx, reply_key)
  if duplicate then
    return nil, duplicate
  end
  local named = again and not reply_key.owned
  local order_id = named and orders.find_client_order(tx, values.account, values.client_order_id)
  if again and (not order_id or string.find(again, '"order_id":"' .. order_id .. '"', 1, true)) then
    return nil, nil, nil, again
  end
  local order, refusal = target_order.find_order(tx, values)
  refusal = refusal or (method_name ~= "cancel_order" and idempotency.full_refusal(tx, reply_key))
  return not refusal and order or nil, refusal, reply_key
end

-- Returns the order that a command names and where its reply is to be stored; or nil and why not,
-- and the stored reply if the command was sent before.
function target_order.to_change(tx, method_name, values, schema)
  if values.client_order_id then
    return find_by_name(tx, method_name, values, schema)
  end
  return target_order.find_order(tx, values)
end

return target_order
