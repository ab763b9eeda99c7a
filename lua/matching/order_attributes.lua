-- The optional attributes of a new order, from its fields. Nothing here is looked at for an order
-- without any.

local stp_groups = require("book/stp_groups")
local timers = require("book/timers")
local stop_orders = require("matching/stop_orders")
local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")
local reject = require("values/reject")

local order_attributes = {}

local function read_quote(b, extras, text)
  local units = instrument_record.notional(b.instrument, text)
  if not units then
    return nil, instrument_record.notional_refusal(b.instrument, "quote_quantity", text)
  end
  if units == 0 then
    return reject.with("QUANTITY_TOO_SMALL", "quote_quantity must be above zero")
  end
  extras.quote_units = units
  extras.quote_quantity = instrument_record.notional_text(b.instrument, units)
  return extras
end

local function read_display(b, extras, o, text)
  local lots, refusal = instrument_record.lots(b.instrument, text, "display_quantity")
  if not lots then
    return nil, refusal
  end
  if lots == 0 or lots > o.quantity then
    return reject.with("INVALID_DISPLAY_QUANTITY", "display_quantity must be within quantity")
  end
  refusal = instrument_record.display_refusal(b.instrument, o.quantity, lots)
  if refusal then
    return nil, refusal
  end
  extras.display_quantity = lots
  return extras
end

local function read_expiry(b, extras, text)
  extras.expire_time_ms = text + 0
  if extras.expire_time_ms <= b.now_ms then
    return reject.with("EXPIRE_TIME_PASSED", "expire_time_ms is not in the future")
  end
  return extras
end

-- An order is placed with a session only while the session's timer runs: so none outlives it.
local function read_session(b, extras, o, text)
  if not timers.time_ms(b, o.account, text) then
    return reject.with("SESSION_NOT_ARMED", "the session has no timer: send cancel_all_after first")
  end
  extras.session = text
  return extras
end

local function read_group(b, extras, o, text)
  if stp_groups.of(b, o.account) ~= text then
    return reject.with("NOT_IN_STP_GROUP", "no operator has put the account into this stp_group")
  end
  extras.stp_group = text
  return extras
end

-- Adds the rare terms to a drafted order; nil and why not.
function order_attributes.read(b, o, values)
  local extras = o.extras or {}
  local read, refusal = true, nil
  o.extras = extras
  if values.stop_price or values.trailing_offset then
    stop_orders.read(b, o, values)
  end
  if values.quote_quantity then
    read, refusal = read_quote(b, extras, values.quote_quantity)
  end
  if read and values.display_quantity then
    read, refusal = read_display(b, extras, o, values.display_quantity)
  end
  if read and values.expire_time_ms then
    read, refusal = read_expiry(b, extras, values.expire_time_ms)
  end
  if read and values.session then
    read, refusal = read_session(b, extras, o, values.session)
  end
  if read and values.stp_group then
    read, refusal = read_group(b, extras, o, values.stp_group)
  end
  if not read then
    return nil, refusal
  end
  extras.self_trade_prevention = values.self_trade_prevention
  extras.protection = values.protection and numbers.percent_text(values.protection)
  return o
end

return order_attributes
