-- The order record: one open order, as a table here and as one line of text in the hash `…:orders`.
--
--   side price quantity remaining place            timestamp_ms  account client_order_id flags
--   buy  10025 30000    10000     0000000000000041 1700000000000 alice   a1              -
--
-- Prices are in ticks, quantities in lots. client_order_id is `-` where none was given, and the
-- client_order_id `-` itself is written `=-`. flags is `-`, or optional attributes:
-- `post_only,display_quantity=300,slice=100,expire_time_ms=1700…`. Where they tell neither type nor
-- time in force it is a limit order, gtc or, where it expires,
-- gtd. In the table flags are `attributes`, false where there are none.
--
-- An iceberg shows `slice` lots, at most `display_quantity` of what remains. Its next slices are
-- shown under ids of their own (`displayed_order_id`), so that they look like other orders.
--
-- A stop order that waits for its price has the flag `waits`, which names its queue
-- (stop_orders.lua), and in it stands at `stop_price`. The price is `-` where it has none of its
-- own. An order that is not armed yet (order_lists.lua) waits in the queue `dormant`, by its list.
-- One that has more to trade than a call may waits in the queue `paused`, by its id, and may have a
-- `protection_price`.
--
-- `place` is the order's priority, padded so that text order is number order; place and id make its
-- `member` in its side's sorted set. The table has the priority as a number, `queued` (whether it
-- is in the queue with it) and `stored_priority` (the one it has in Redis, false where it is not
-- there). An order that left the queue, or lost its place in it, differs in these from what a view
-- of the queue says: that is how stale views recognise it.
--
-- Orders are made by the million, so both makers of one write out all its fields: a table made at
-- its size costs half of one that grows.

local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")

local order_record = {}

local record_pattern = "^(%a+) (%S+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+) (%S+)$"
local public_pattern = "^%a+ (%d+) %d+ (%d+) (%d+) %d+ %S+ %S+ (%S+)$"
local place_format = "%016d"
local id_offset = 18

-- The name in its side's sorted set of an order that queues with this priority.
function order_record.member(priority, order_id)
  return place_format:format(priority) .. ":" .. order_id
end

-- An order_id so that text order is number order.
function order_record.padded(order_id)
  return place_format:format(order_id)
end

function order_record.id_of_member(member)
  return member:sub(id_offset)
end

-- The client_order_id of an order in a line of text. No client_order_id has a `=` in it.
function order_record.client_order_id_text(order)
  local client_order_id = order.client_order_id
  return client_order_id == "-" and "=-" or client_order_id or "-"
end

-- The flags of a record, in the order they are written: first those that are numbers.
local number_flags = {
  "display_quantity",
  "slice",
  "expire_time_ms",
  "stop_price",
  "reference_price",
  "order_list_id",
  "protection_price",
}
local text_flags = {
  "self_trade_prevention",
  "stp_group",
  "order_type",
  "time_in_force",
  "trailing_offset",
  "protection",
  "session",
  "displayed_order_id",
  "waits",
}

local function parse_flags(text)
  if text == "-" then
    return false
  end
  local attributes = {}
  for name, value in text:gmatch("([%w_]+)=?([^,]*)") do
    attributes[name] = value == "" or value
  end
  for _, name in ipairs(number_flags) do
    attributes[name] = attributes[name] and attributes[name] + 0
  end
  attributes.stored_waits = attributes.waits
  return attributes
end

-- Which queue an order stands in: that of its side or, where it waits outside the book, the one
-- that `waits` names.
function order_record.queue_name(order)
  return order.attributes and order.attributes.waits or order.side
end

-- Whether the orders of a queue wait for a trade price.
function order_record.is_triggerable(waits)
  return waits == "rising" or waits == "falling"
end

-- The price in ticks by which it stands there; of a dormant order its list, of a paused one its id.
function order_record.queue_price(order)
  local waits = order.attributes and order.attributes.waits
  if not waits then
    return order.price
  end
  if waits == "paused" then
    return order.order_id + 0
  end
  return waits == "dormant" and order.attributes.order_list_id or order.attributes.stop_price
end

local function parse_time_in_force(attributes)
  return attributes.time_in_force or (attributes.expire_time_ms and "gtd") or "gtc"
end

-- The flags of an order as text.
function order_record.flags(order)
  local attributes = order.attributes
  if not attributes then
    return "-"
  end
  local flags = { attributes.post_only and "post_only" or nil }
  flags[#flags + 1] = attributes.quote and "quote" or nil
  for _, name in ipairs(number_flags) do
    flags[#flags + 1] = attributes[name] and name .. "=" .. numbers.integer_text(attributes[name])
  end
  for _, name in ipairs(text_flags) do
    flags[#flags + 1] = attributes[name] and name .. "=" .. attributes[name]
  end
  return #flags > 0 and table.concat(flags, ",") or "-"
end

-- The order_id that an order has in what everybody can see.
function order_record.displayed_id(order)
  return order.attributes and order.attributes.displayed_order_id or order.order_id
end

-- How much of an order the book shows.
function order_record.shown(order)
  local attributes = order.attributes
  return attributes and attributes.slice or order.remaining
end

-- The record of an order as the table the engine works on, or nil where it is not one.
function order_record.parse(order_id, text)
  local side, price, quantity, remaining, place, timestamp_ms, account, client_id, flags =
    text:match(record_pattern)
  if not side then
    return nil
  end
  -- Arithmetic turns digits into a number at a third of tonumber's price.
  local priority = place + 0
  local attributes = parse_flags(flags)
  return {
    order_id = order_id,
    side = side,
    order_type = attributes and attributes.order_type or "limit",
    time_in_force = attributes and parse_time_in_force(attributes) or "gtc",
    price = price ~= "-" and price + 0 or nil,
    quantity = quantity + 0,
    remaining = remaining + 0,
    timestamp_ms = timestamp_ms,
    account = account,
    client_order_id = client_id ~= "-" and (client_id == "=-" and "-" or client_id) or nil,
    attributes = attributes,
    priority = priority,
    queued = true,
    stored_priority = priority,
    touched = false,
    terms = false,
  }
end

-- What everybody may see of a record: price in ticks, lots shown, priority, and its order_id where
-- that is another one; nil where it is none. A full book has thousands: no order is made of it.
function order_record.parse_public(text)
  local price, remaining, place, flags = text:match(public_pattern)
  if not price then
    return nil
  end
  local attributes = parse_flags(flags)
  if not attributes then
    return price + 0, remaining + 0, place + 0
  end
  return price + 0, attributes.slice or remaining + 0, place + 0, attributes.displayed_order_id
end

-- The record as text, of an order of this instrument.
function order_record.record(order, instrument)
  return order.side
    .. " "
    .. (order.price and instrument_record.ticks_text(instrument, order.price) or "-")
    .. " "
    .. instrument_record.lots_text(instrument, order.quantity)
    .. " "
    .. instrument_record.lots_text(instrument, order.remaining)
    .. " "
    .. place_format:format(order.priority)
    .. " "
    .. order.timestamp_ms
    .. " "
    .. order.account
    .. " "
    .. (order.client_order_id and order_record.client_order_id_text(order) or "-")
    .. " "
    .. (order.attributes and order_record.flags(order) or "-")
end

function order_record.status(order)
  if order.remaining == 0 then
    return "filled"
  end
  return order.remaining < order.quantity and "partially_filled" or "open"
end

return order_record
