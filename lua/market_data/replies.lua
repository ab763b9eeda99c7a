-- What a command answers about an order, as JSON text.

local order_json = require("market_data/order_json")
local order_record = require("records/order_record")

local replies = {}

-- The reply to place_order and amend_order.
function replies.order(b, o, status, fills_json)
  local standing, remaining = order_json.standing(b, o)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"'
    .. status
    .. '"'
    .. (o.extras and order_json.waiting_terms(b, o) or "")
    .. ',"fills":'
    .. fills_json
    .. b.stamp
end

function replies.canceled(b, o)
  local standing, remaining = order_json.standing(b, o)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"canceled"'
    .. b.stamp
end

-- Whether a stop order has entered the market, and what an order waits for.
local function stop_state(b, o)
  local waits = o.extras.waits
  if not o.extras.stop_price and not o.extras.trailing_offset then
    return order_json.waiting_terms(b, o)
  end
  local triggered = tostring(not waits or waits == "paused")
  return ',"triggered":' .. triggered .. order_json.waiting_terms(b, o)
end

-- An open order as get_order and get_open_orders show it, without the closing brace.
function replies.open_order(b, o)
  local standing, remaining = order_json.standing(b, o)
  return "{"
    .. standing
    .. ',"remaining_quantity":"'
    .. remaining
    .. '","status":"'
    .. order_record.status(o)
    .. '","timestamp_ms":'
    .. o.timestamp_ms
    .. (o.extras and stop_state(b, o) or "")
end

return replies
