-- The order record: one open order, as a table here and as one line of text in the hash `…:orders`.
--
--   side price quantity remaining priority timestamp_ms account client_order_id flags
--   buy  10025 30000    10000     41       1700000000000 alice  a1              -
--
-- Prices are in ticks, quantities in lots. client_order_id is `-` where none was given; flags is
-- `-` or `post_only`. Only limit gtc orders rest, so neither type nor time in force is stored.
--
-- `member` is the order's place in its side's sorted set: its priority, padded so that text order
-- is number order, then its id. An order that has left the book, or lost its place, has another
-- member or none; that is how stale views of the queue recognise it.

local order = {}

local record_pattern = "^(%a+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+) (%S+)$"

-- Characters of a member before the order id: 16 digits and a colon.
local id_offset = 18

function order.member(priority, order_id)
  return string.format("%016.0f:%s", priority, order_id)
end

function order.id_of_member(member)
  return string.sub(member, id_offset)
end

-- The record of an order as the table the engine works on, or nil where it is not one.
function order.parse(order_id, text)
  local side, price, quantity, remaining, priority, timestamp_ms, account, client_id, flags =
    string.match(text, record_pattern)
  if not side then
    return nil
  end
  priority = tonumber(priority)
  local member = order.member(priority, order_id)
  return {
    order_id = order_id,
    side = side,
    price = tonumber(price),
    quantity = tonumber(quantity),
    remaining = tonumber(remaining),
    priority = priority,
    timestamp_ms = tonumber(timestamp_ms),
    account = account,
    client_order_id = client_id ~= "-" and client_id or nil,
    post_only = flags == "post_only",
    member = member,
    stored_member = member,
  }
end

function order.record(o)
  return string.format(
    "%s %.0f %.0f %.0f %.0f %.0f %s %s %s",
    o.side,
    o.price,
    o.quantity,
    o.remaining,
    o.priority,
    o.timestamp_ms,
    o.account,
    o.client_order_id or "-",
    o.post_only and "post_only" or "-"
  )
end

function order.status(o)
  if o.remaining == 0 then
    return "filled"
  end
  return o.remaining < o.quantity and "partially_filled" or "open"
end

return order
