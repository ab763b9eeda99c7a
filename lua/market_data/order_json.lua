-- An order as JSON members, as it stands in every report and reply about it.

local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")

local order_json = {}

-- Whether an order of an order list is armed; told only while it is not.
local function armed_term(order)
  return order.attributes.waits == "dormant" and ',"armed":false' or ""
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
function order_json.identity(order)
  local text = '"order_id":"' .. order.order_id
  if order.client_order_id then
    text = text .. '","client_order_id":"' .. order.client_order_id
  end
  if order.attributes and order.attributes.displayed_order_id then
    text = text .. '","displayed_order_id":"' .. order.attributes.displayed_order_id
  end
  return text .. '"'
end

-- The terms that few orders have.
local function attribute_json(instrument, attributes)
  local terms = attributes.post_only and ',"post_only":true' or ""
  if attributes.quote then
    terms = terms .. ',"quote":true'
  end
  if attributes.display_quantity then
    local shown = instrument_record.quantity_text(instrument, attributes.display_quantity)
    terms = terms .. ',"display_quantity":"' .. shown .. '"'
  end
  if attributes.expire_time_ms then
    terms = terms .. ',"expire_time_ms":' .. numbers.integer_text(attributes.expire_time_ms)
  end
  if attributes.stop_price and not attributes.trailing_offset then
    terms = terms
      .. ',"stop_price":"'
      .. instrument_record.price_text(instrument, attributes.stop_price)
      .. '"'
  end
  if attributes.order_list_id then
    terms = terms .. ',"order_list_id":"' .. numbers.integer_text(attributes.order_list_id) .. '"'
  end
  for i = 1, #text_terms do
    local name = text_terms[i]
    if attributes[name] then
      terms = terms .. ',"' .. name .. '":"' .. attributes[name] .. '"'
    end
  end
  return terms
end

-- The terms of an order, as they stand in every report and reply about it: what it is called, and
-- what it asks for. A market order has no price. Made once, and anew when an amend changes them.
function order_json.make_terms(tx, order)
  local instrument = tx.instrument
  local price = order.price
  local quantity_text = instrument.quantity_texts[order.quantity]
    or instrument_record.quantity_text(instrument, order.quantity)
  order.terms = order_json.identity(order)
    .. ',"side":"'
    .. order.side
    .. '","order_type":"'
    .. order.order_type
    .. '","time_in_force":"'
    .. order.time_in_force
    .. '","quantity":"'
    .. quantity_text
    .. (price and '","price":"' .. instrument_record.price_text(instrument, price) .. '"' or '"')
  if order.attributes then
    order.terms = order.terms .. attribute_json(instrument, order.attributes)
  end
  return order.terms
end

-- What an order waits for, beside its terms: to be armed; of a trailing stop, the price from which
-- its stop price is reckoned now.
function order_json.waiting_terms(tx, order)
  local reference = order.attributes.waits and order.attributes.reference_price
  if not reference then
    return armed_term(order)
  end
  return ',"reference_price":"' .. instrument_record.price_text(tx.instrument, reference) .. '"'
end

-- The terms and what is left, as text: the order as it stands.
function order_json.standing(tx, order)
  local remaining = order.remaining
  local text = tx.instrument.quantity_texts[remaining]
  return order.terms or order_json.make_terms(tx, order),
    text or instrument_record.quantity_text(tx.instrument, remaining)
end

return order_json
