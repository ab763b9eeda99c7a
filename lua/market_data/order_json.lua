-- An order as JSON members, as it stands in every report and reply about it.

local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")

local order_json = {}

-- Whether an order of an order list is armed; told only while it is not.
local function armed_term(o)
  return o.extras.waits == "dormant" and ',"armed":false' or ""
end

local text_terms = {
  "quote_quantity",
  "trailing_offset",
  "protection",
  "self_trade_prevention",
  "stp_group",
  "session",
}

-- What identifies an order in every report and reply: to its owner alone.
function order_json.identity(o)
  local text = '"order_id":"' .. o.order_id
  if o.client_order_id then
    text = text .. '","client_order_id":"' .. o.client_order_id
  end
  if o.extras and o.extras.displayed_order_id then
    text = text .. '","displayed_order_id":"' .. o.extras.displayed_order_id
  end
  return text .. '"'
end

-- The terms that few orders have.
local function extra_terms(record, extras)
  local terms = extras.post_only and ',"post_only":true' or ""
  if extras.quote then
    terms = terms .. ',"quote":true'
  end
  if extras.display_quantity then
    local shown = instrument_record.quantity_text(record, extras.display_quantity)
    terms = terms .. ',"display_quantity":"' .. shown .. '"'
  end
  if extras.expire_time_ms then
    terms = terms .. ',"expire_time_ms":' .. numbers.integer_text(extras.expire_time_ms)
  end
  if extras.stop_price and not extras.trailing_offset then
    terms = terms
      .. ',"stop_price":"'
      .. instrument_record.price_text(record, extras.stop_price)
      .. '"'
  end
  if extras.order_list_id then
    terms = terms .. ',"order_list_id":"' .. numbers.integer_text(extras.order_list_id) .. '"'
  end
  for i = 1, #text_terms do
    local name = text_terms[i]
    if extras[name] then
      terms = terms .. ',"' .. name .. '":"' .. extras[name] .. '"'
    end
  end
  return terms
end

-- The terms of an order, as they stand in every report and reply about it: what it is called, and
-- what it asks for. A market order has no price. Made once, and anew when an amend changes them.
function order_json.make_terms(b, o)
  local record = b.instrument
  local quantity, price = o.quantity, o.price
  o.terms = order_json.identity(o)
    .. ',"side":"'
    .. o.side
    .. '","order_type":"'
    .. o.order_type
    .. '","time_in_force":"'
    .. o.time_in_force
    .. '","quantity":"'
    .. (record.quantity_texts[quantity] or instrument_record.quantity_text(record, quantity))
    .. (price and '","price":"' .. instrument_record.price_text(record, price) .. '"' or '"')
  if o.extras then
    o.terms = o.terms .. extra_terms(record, o.extras)
  end
  return o.terms
end

-- What an order waits for, beside its terms: to be armed; of a trailing stop, the price from which
-- its stop price is reckoned now.
function order_json.waiting_terms(b, o)
  local reference = o.extras.waits and o.extras.reference_price
  if not reference then
    return armed_term(o)
  end
  return ',"reference_price":"' .. instrument_record.price_text(b.instrument, reference) .. '"'
end

-- The terms and what is left, as text: the order as it stands.
function order_json.standing(b, o)
  local remaining = o.remaining
  local text = b.instrument.quantity_texts[remaining]
  return o.terms or order_json.make_terms(b, o),
    text or instrument_record.quantity_text(b.instrument, remaining)
end

return order_json
