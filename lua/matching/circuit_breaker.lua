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
function circuit_breaker.start(tx)
  local features = tx.instrument.features
  local parts = numbers.percent(features.limit_percent)
  if parts > 0 then
    tx.breaker = { parts = parts, window_ms = features.window_ms + 0, is_tripped = false }
  end
end

-- Shows a trade to the breaker, before it becomes the last one.
function circuit_breaker.check_trade(tx, price)
  local instrument, breaker = tx.instrument, tx.breaker
  local features = instrument.features
  local is_over = tx.now_ms - features.window_start_ms > breaker.window_ms
  if features.breaker_reference == "" or is_over then
    features.breaker_reference = instrument.last_price
      or instrument_record.price_text(instrument, price)
    features.window_start_ms = tx.timestamp_ms
    breaker.reference = nil
  end
  breaker.reference = breaker.reference
    or last_price.measured(instrument, features.breaker_reference)
  if not last_price.is_within(breaker.reference, price, breaker.parts) then
    breaker.is_tripped = true
  end
end

function circuit_breaker.begin_window_anew(features)
  features.breaker_reference, features.window_start_ms = "", "0"
end

-- Where the breaker has tripped, the status changes.
function circuit_breaker.apply(tx)
  local instrument = tx.instrument
  local features = instrument.features
  if not tx.breaker.is_tripped or instrument.status ~= "trading" then
    return
  end
  tx.breaker.is_tripped = false
  instrument.status = features.breaker_status
  local duration_ms = features.breaker_duration_ms + 0
  local reopens = duration_ms > 0 and tx.now_ms + duration_ms or 0
  features.reopen_time_ms = numbers.integer_text(reopens)
  circuit_breaker.begin_window_anew(features)
  book.change_rules(tx)
end

return circuit_breaker
