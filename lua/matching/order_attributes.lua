-- The optional attributes of a new order, from its fields. Nothing here is looked at for an order
-- without any.

local stp_groups = require("book/stp_groups")
local timers = require("book/timers")
local stop_orders = require("matching/stop_orders")
local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")
local reject = require("values/reject")

local order_attributes = {}

local function read_quote(tx, attributes, text)
  local units = instrument_record.notional(tx.instrument, text)
  if not units then
    return nil, instrument_record.notional_refusal(tx.instrument, "quote_quantity", text)
  end
  if units == 0 then
    return reject.with("QUANTITY_TOO_SMALL", "quote_quantity must be above zero")
  end
  attributes.quote_units = units
  attributes.quote_quantity = instrument_record.notional_text(tx.instrument, units)
  return attributes
end

local function read_display(tx, attributes, order, text)
  local lots, refusal = instrument_record.lots(tx.instrument, text, "display_quantity")
  if not lots then
    return nil, refusal
  end
  if lots == 0 or lots > order.quantity then
    return reject.with("INVALID_DISPLAY_QUANTITY", "display_quantity must be within quantity")
  end
  refusal = instrument_record.display_refusal(tx.instrument, order.quantity, lots)
  if refusal then
    return nil, refusal
  end
  attributes.display_quantity = lots
  return attributes
end

local function read_expiry(tx, attributes, text)
  attributes.expire_time_ms = text + 0
  if attributes.expire_time_ms <= tx.now_ms then
    return reject.with("EXPIRE_TIME_PASSED", "expire_time_ms is not in the future")
  end
  return attributes
end

-- An order is placed with a session only while the session's timer runs: so none outlives it.
local function read_session(tx, attributes, order, text)
  if not timers.time_ms(tx, order.account, text) then
    return reject.with("SESSION_NOT_ARMED", "the session has no timer: send cancel_all_after first")
  end
  attributes.session = text
  return attributes
end

local function read_group(tx, attributes, order, text)
  if stp_groups.of(tx, order.account) ~= text then
    return reject.with("NOT_IN_STP_GROUP", "no operator has put the account into this stp_group")
  end
  attributes.stp_group = text
  return attributes
end

-- Adds the optional attributes to a drafted order; nil and why not.
function order_attributes.read(tx, order, values)
  local attributes = order.attributes or {}
  local read, refusal = true, nil
  order.attributes = attributes
  if values.stop_price or values.trailing_offset then
    stop_orders.read(tx, order, values)
  end
  if values.quote_quantity then
    read, refusal = read_quote(tx, attributes, values.quote_quantity)
  end
  if read and values.display_quantity then
    read, refusal = read_display(tx, attributes, order, values.display_quantity)
  end
  if read and values.expire_time_ms then
    read, refusal = read_expiry(tx, attributes, values.expire_time_ms)
  end
  if read and values.session then
    read, refusal = read_session(tx, attributes, order, values.session)
  end
  if read and values.stp_group then
    read, refusal = read_group(tx, attributes, order, values.stp_group)
  end
  if not read then
    return nil, refusal
  end
  attributes.self_trade_prevention = values.self_trade_prevention
  attributes.protection = values.protection and numbers.percent_text(values.protection)
  return order
end

return order_attributes
