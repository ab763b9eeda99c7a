-- A new order, from its fields to its reply. What it may do is decided in order_entry.lua.

local order_entry = require("matching/order_entry")
local instrument_record = require("records/instrument_record")
local order_record = require("records/order_record")
local idempotency = require("transaction/idempotency")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local order_types = require("values/order_types")

local place_order = { name = "place_order" }

place_order.schema = fields.schema({
  "account",
  "client_order_id",
  "side",
  "order_type",
  "time_in_force",
  "price",
  "quantity",
  "post_only",
  "expire_time_ms",
  "display_quantity",
  "quote_quantity",
  "protection",
  "self_trade_prevention",
  "stp_group",
  "stop_price",
  "trailing_offset",
  "session",
  "validate_only",
  "valid_until_ms",
}, { "account", "side", "order_type" }, 8)

-- How many lots a plan fills of what the book shows: of an iceberg no more than its slice, for a
-- check costs nothing and must not tell what is hidden.
local function shown_lots(fills)
  local total, left = 0, {}
  for i = 1, #fills do
    local maker = fills[i].maker
    local lots = math.min(left[maker] or order_record.shown(maker), fills[i].lots)
    if not fills[i].prevented then
      left[maker] = (left[maker] or order_record.shown(maker)) - lots
      total = total + lots
    end
  end
  return total
end

-- The answer to an order that is only to be checked.
local function valid_reply(tx, order, fills)
  local lots = shown_lots(fills)
  if order.time_in_force == "fok" and lots < order.quantity then
    lots = 0
  end
  return string.format(
    '{"status":"valid","fill_quantity":"%s","sequence":%.0f,"timestamp_ms":%s}',
    instrument_record.quantity_text(tx.instrument, lots),
    working_copy.current_sequence(tx),
    tx.timestamp_ms
  )
end

-- Validates a limit order without optional attributes on an instrument without features. Only its
-- price, its quantity and its fills can refuse it; the other checks of order_entry.check cannot.
local function check_simple(tx, values)
  local order, invalid = order_entry.draft(tx, values)
  if not order then
    return nil, invalid
  end
  local fills, refused = order_entry.plan(tx, order)
  if not fills then
    return nil, refused
  end
  return order, fills
end

-- place_order: takes an order on, trades it, queues the rest.
-- Fields: account side order_type; quantity or quote_quantity; price time_in_force post_only
-- client_order_id expire_time_ms display_quantity protection self_trade_prevention stp_group
-- stop_price trailing_offset session validate_only valid_until_ms.
-- Reply: the order's terms, remaining_quantity status fills sequence timestamp_ms; with
-- validate_only status fill_quantity sequence timestamp_ms.
-- Rejects: FIELD_NOT_ALLOWED, DUPLICATE_CLIENT_ORDER_ID, TOO_LATE, INSTRUMENT_HALTED,
-- INSTRUMENT_CANCEL_ONLY, INSTRUMENT_POST_ONLY, INSTRUMENT_AUCTION, UNCROSSING, EXPIRING,
-- CANCELING, TRIGGERS_PENDING, WOULD_TRIGGER, NO_LAST_PRICE,
-- TOO_MANY_TRAILING_STOPS, INVALID_NUMBER, PRICE_OFF_TICK, PRICE_NOT_POSITIVE,
-- QUANTITY_OFF_LOT, QUANTITY_TOO_SMALL, QUANTITY_TOO_LARGE, INVALID_DISPLAY_QUANTITY,
-- EXPIRE_TIME_PASSED, SESSION_NOT_ARMED, PRICE_OUT_OF_BAND, NOTIONAL_TOO_SMALL,
-- TOO_MANY_OPEN_ORDERS, TOO_MANY_STORED_REPLIES, POST_ONLY_WOULD_CROSS,
-- LEVEL_QUANTITY_TOO_LARGE, TOO_MANY_FILLS, and those of the fields' forms.
function place_order.run(tx, values)
  local is_common, instrument = order_types.is_simple_limit_order(values), tx.instrument
  local refusal = not is_common and order_types.combination_refusal(values)
  if refusal then
    return nil, refusal
  end
  local reply_key, again
  if values.client_order_id then
    reply_key, again, refusal = idempotency.check_new(tx, "place_order", values, place_order.schema)
    if again or refusal then
      return again, refusal
    end
  end
  local is_plain = is_common and not instrument.features and instrument.status == "trading"
  local order, fills = (is_plain and check_simple or order_entry.check)(tx, values)
  if not order then
    return nil, fills
  end
  if values.validate_only == "true" then
    return valid_reply(tx, order, fills)
  end
  local reply = order_entry.accept(tx, order, fills)
  return reply_key and idempotency.store_reply(tx, reply_key, reply) or reply
end

return place_order
