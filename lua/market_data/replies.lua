-- What a command answers about an order, as JSON text.

local order_json = require("market_data/order_json")
local order_record = require("records/order_record")

local replies = {}

-- The reply to place_order and amend_order.
function replies.order(tx, order, status, fills_json)
  local standing, remaining = order_json.standing(tx, order)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"'
    .. status
    .. '"'
    .. (order.attributes and order_json.waiting_terms(tx, order) or "")
    .. ',"fills":'
    .. fills_json
    .. tx.stamp
end

function replies.canceled(tx, order)
  local standing, remaining = order_json.standing(tx, order)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"canceled"'
    .. tx.stamp
end

-- Whether a stop order has entered the market, and what an order waits for.
local function stop_state(tx, order)
  local waits = order.attributes.waits
  if not order.attributes.stop_price and not order.attributes.trailing_offset then
    return order_json.waiting_terms(tx, order)
  end
  local triggered = tostring(not waits or waits == "paused")
  return ',"triggered":' .. triggered .. order_json.waiting_terms(tx, order)
end

-- An open order as get_order and get_open_orders show it, without the closing brace.
function replies.open_order(tx, order)
  local standing, remaining = order_json.standing(tx, order)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"'
    .. order_record.status(order)
    .. '","timestamp_ms":'
    .. order.timestamp_ms
    .. (order.attributes and stop_state(tx, order) or "")
end

return replies
