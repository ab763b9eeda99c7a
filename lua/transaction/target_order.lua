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

-- The order a command with a client_order_id is about, or nil and why not; then its memo, and the
-- first reply where the command was sent before. A name can pass from an order that is gone to a
-- new one: what is remembered of the old order is no answer about the new.
local function recall_change(tx, method_name, values, schema)
  if not values.account then
    return reject.with("MISSING_FIELD", "missing field account")
  end
  local memo_record = idempotency.memo(method_name, values, schema)
  local again, duplicate = idempotency.answer_again(tx, memo_record)
  if duplicate then
    return nil, duplicate
  end
  local named = again and not memo_record.owned
  local order_id = named and orders.find_client_order(tx, values.account, values.client_order_id)
  if again and (not order_id or string.find(again, '"order_id":"' .. order_id .. '"', 1, true)) then
    return nil, nil, nil, again
  end
  local order, refusal = target_order.find_order(tx, values)
  refusal = refusal or (method_name ~= "cancel_order" and idempotency.full_refusal(tx, memo_record))
  return not refusal and order or nil, refusal, memo_record
end

-- The order a command is about and its memo, or nil and why not, and the first reply.
function target_order.to_change(tx, method_name, values, schema)
  if values.client_order_id then
    return recall_change(tx, method_name, values, schema)
  end
  return target_order.find_order(tx, values)
end

return target_order
