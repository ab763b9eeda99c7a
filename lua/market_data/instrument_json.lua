-- The instrument as JSON.

local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")

local instrument_json = {}

-- The instrument as JSON, sequence being the book's after the call that asks.
function instrument_json.text(record, sequence)
  local last_price = record.last_price and ',"last_price":"' .. record.last_price .. '"' or ""
  local extended = record.extended or instrument_record.extended_defaults()
  local reopens = extended.reopen_time_ms ~= "0"
  local is_halted = extended.halt_reason ~= ""
  local rules = string.format(
    ',"self_trade_prevention":"%s","protection":"%s","price_band":"%s","min_notional":"%s",'
      .. '"open_orders_max":%s,"iceberg_parts_max":%s,"limit_percent":"%s","window_ms":%s,'
      .. '"breaker_status":"%s","breaker_duration_ms":%s',
    extended.self_trade_prevention,
    extended.protection,
    extended.price_band,
    extended.min_notional,
    extended.open_orders_max,
    extended.iceberg_parts_max,
    extended.limit_percent,
    extended.window_ms,
    extended.breaker_status,
    extended.breaker_duration_ms
  )
  return string.format(
    '{"symbol":"%s","segment":"%s","tick_size":"%s","lot_size":"%s","min_quantity":"%s",'
      .. '"max_quantity":"%s","status":"%s"%s,"events_length_max":%s,"trades_length_max":%s,'
      .. '"book_length_max":%s%s,"open_orders":%.0f%s,"sequence":%.0f,"epoch":%s}',
    record.symbol,
    record.segment,
    record.price_step.text,
    record.quantity_step.text,
    numbers.text(record.quantity_min, record.quantity_step),
    numbers.text(record.quantity_max, record.quantity_step),
    record.status,
    (reopens and ',"reopen_time_ms":' .. extended.reopen_time_ms or "")
      .. (is_halted and ',"halt_reason":"' .. extended.halt_reason .. '"' or ""),
    record.events_length_max,
    record.trades_length_max,
    record.book_length_max,
    rules,
    record.open_orders,
    last_price,
    sequence,
    record.epoch
  )
end

return instrument_json
