-- The circuit breaker: it sets the trading status by itself when the price moves too far too fast.
--
-- A window begins with the last price as reference, lasts `window_ms`, and the next begins with the
-- first trade after it. A trade more than `limit_percent` away from the reference trips the
-- breaker: its order is carried out as far as its call goes, and everything behind it, also in the
-- same batch, finds the new status.

local book = require("book/book")
local last_price = require("matching/last_price")
local instrument_record = require("records/instrument_record")
local numbers = require("values/numbers")

local circuit_breaker = {}

-- Sets up the breaker of a call, where the instrument has one.
function circuit_breaker.start(b)
  local extended = b.instrument.extended
  local parts = numbers.percent(extended.limit_percent)
  if parts > 0 then
    b.breaker = { parts = parts, window_ms = extended.window_ms + 0, is_tripped = false }
  end
end

-- Shows a trade to the breaker, before it becomes the last one.
function circuit_breaker.check_trade(b, price)
  local record, breaker = b.instrument, b.breaker
  local extended = record.extended
  local is_over = b.now_ms - extended.window_start_ms > breaker.window_ms
  if extended.breaker_reference == "" or is_over then
    extended.breaker_reference = record.last_price or instrument_record.price_text(record, price)
    extended.window_start_ms = b.timestamp_ms
    breaker.reference = nil
  end
  breaker.reference = breaker.reference or last_price.measured(record, extended.breaker_reference)
  if not last_price.is_within(breaker.reference, price, breaker.parts) then
    breaker.is_tripped = true
  end
end

function circuit_breaker.begin_window_anew(extended)
  extended.breaker_reference, extended.window_start_ms = "", "0"
end

-- Where the breaker has tripped, the status changes.
function circuit_breaker.apply(b)
  local record = b.instrument
  local extended = record.extended
  if not b.breaker.is_tripped or record.status ~= "trading" then
    return
  end
  b.breaker.is_tripped = false
  record.status = extended.breaker_status
  local duration_ms = extended.breaker_duration_ms + 0
  local reopens = duration_ms > 0 and b.now_ms + duration_ms or 0
  extended.reopen_time_ms = numbers.integer_text(reopens)
  circuit_breaker.begin_window_anew(extended)
  book.change_rules(b)
end

return circuit_breaker
