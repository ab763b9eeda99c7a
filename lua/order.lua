-- The order record: one open order, as a table here and as one line of text in the hash `…:orders`.
--
--   side price quantity remaining place            timestamp_ms  account client_order_id flags
--   buy  10025 30000    10000     0000000000000041 1700000000000 alice   a1              -
--
-- Prices are in ticks, quantities in lots. client_order_id is `-` where none was given; flags is
-- `-` or `post_only`. Only limit gtc orders rest, so neither type nor time in force is stored.
--
-- `place` is the order's priority, padded so that text order is number order; place and id make its
-- `member` in its side's sorted set. An order that has left the queue, or lost its place in it, has
-- another member or none: that is how stale views of the queue recognise it.

local instrument = require("instrument")
local numbers = require("numbers")

local order = {}

local record_pattern = "^(%a+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+) (%S+)$"
local place_length = 16
local id_offset = place_length + 2
local zeros = "0000000000000000"

-- A priority as the text that sorts like it.
function order.place(priority)
  local digits = numbers.integer_text(priority)
  return string.sub(zeros, 1, place_length - #digits) .. digits
end

function order.member(o)
  return o.place .. ":" .. o.order_id
end

function order.id_of_member(member)
  return string.sub(member, id_offset)
end

-- The record of an order as the table the engine works on, or nil where it is not one.
function order.parse(order_id, text)
  local side, price, quantity, remaining, place, timestamp_ms, account, client_id, flags =
    string.match(text, record_pattern)
  if not side then
    return nil
  end
  local member = place .. ":" .. order_id
  return {
    order_id = order_id,
    side = side,
    order_type = "limit",
    time_in_force = "gtc",
    price = tonumber(price),
    quantity = tonumber(quantity),
    remaining = tonumber(remaining),
    place = place,
    timestamp_ms = timestamp_ms,
    account = account,
    client_order_id = client_id ~= "-" and client_id or nil,
    post_only = flags == "post_only",
    member = member,
    stored_member = member,
  }
end

-- The record as text; `rules` is the instrument it is of.
function order.record(o, rules)
  return o.side
    .. " "
    .. instrument.ticks_text(rules, o.price)
    .. " "
    .. instrument.lots_text(rules, o.quantity)
    .. " "
    .. instrument.lots_text(rules, o.remaining)
    .. " "
    .. o.place
    .. " "
    .. o.timestamp_ms
    .. " "
    .. o.account
    .. " "
    .. (o.client_order_id or "-")
    .. (o.post_only and " post_only" or " -")
end

function order.status(o)
  if o.remaining == 0 then
    return "filled"
  end
  return o.remaining < o.quantity and "partially_filled" or "open"
end

return order
