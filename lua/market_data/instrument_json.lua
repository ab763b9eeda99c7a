-- The instrument as JSON.

local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")

local instrument_json = {}

-- The instrument as JSON, sequence being the book's after the call that asks.
function instrument_json.text(instrument, sequence)
  local last_price = instrument.last_price and ',"last_price":"' .. instrument.last_price .. '"'
    or ""
  local features = instrument.features or instrument_record.feature_defaults()
  local reopens = features.reopen_time_ms ~= "0"
  local is_halted = features.halt_reason ~= ""
  local rules = string.format(
    ',"self_trade_prevention":"%s","protection":"%s","price_band":"%s","min_notional":"%s",'
      .. '"open_orders_max":%s,"iceberg_parts_max":%s,"limit_percent":"%s","window_ms":%s,'
      .. '"breaker_status":"%s","breaker_duration_ms":%s',
    features.self_trade_prevention,
    features.protection,
    features.price_band,
    features.min_notional,
    features.open_orders_max,
    features.iceberg_parts_max,
    features.limit_percent,
    features.window_ms,
    features.breaker_status,
    features.breaker_duration_ms
  )
  return string.format(
    '{"symbol":"%s","segment":"%s","tick_size":"%s","lot_size":"%s","min_quantity":"%s",'
      .. '"max_quantity":"%s","status":"%s"%s,"events_length_max":%s,"trades_length_max":%s,'
      .. '"book_length_max":%s%s,"open_orders":%.0f%s,"sequence":%.0f,"epoch":%s}',
    instrument.symbol,
    instrument.segment,
    instrument.price_step.text,
    instrument.quantity_step.text,
    numbers.text(instrument.quantity_min, instrument.quantity_step),
    numbers.text(instrument.quantity_max, instrument.quantity_step),
    instrument.status,
    (reopens and ',"reopen_time_ms":' .. features.reopen_time_ms or "")
      .. (is_halted and ',"halt_reason":"' .. features.halt_reason .. '"' or ""),
    instrument.events_length_max,
    instrument.trades_length_max,
    instrument.book_length_max,
    rules,
    instrument.open_orders,
    last_price,
    sequence,
    instrument.epoch
  )
end

return instrument_json
