-- The dead man's switch: an account's orders are canceled unless it says in time that it is still
-- there.
--
-- `cancel_all_after` sets a timer by the clock of Redis (timers.lua); who is alive sets it anew
-- before it runs out. It needs nobody to go off: every call that may change the book first
-- carries out the timers that have run out, and any host's `tick` does where nobody trades. So it
-- works though the client and its host are both gone.
--
-- A timer of a session cancels only the orders placed with that session. Hosts give each websocket
-- that asks for cancel_on_disconnect a session of its own.

local timers = require("book/timers")
local validity = require("matching/validity")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local numbers = require("values/numbers")
local reject = require("values/reject")

local cancel_all_after = { name = "cancel_all_after" }

-- A refusal of a new time for a timer, else nil.
local function refusal_of(tx, values, timeout_ms)
  local refusal = values.rare and validity.lateness_refusal(tx, values)
  if refusal then
    return refusal
  end
  local time_ms = timers.time_ms(tx, values.account, values.session)
  if time_ms and time_ms <= tx.now_ms then
    return reject.new("CANCELING", "the timer has run out and is being carried out: try again")
  end
  if not time_ms and timeout_ms > 0 and timers.are_full(tx) then
    return reject.new("TOO_MANY_TIMERS", "10000 timers are running in this book")
  end
  if not time_ms and timeout_ms > 0 and timers.are_used_up(tx, values.account) then
    return reject.new("TOO_MANY_TIMERS", "100 timers of the account are running in this book")
  end
  return nil
end

cancel_all_after.schema = fields.schema(
  { "account", "timeout_ms", "session", "valid_until_ms" },
  { "account", "timeout_ms" },
  3
)

-- cancel_all_after: sets the timer that cancels an account's open orders of this book, or those
-- of one session, in place of the one before; 0 stops it. Changes nothing that others see.
-- Fields: account timeout_ms; session valid_until_ms. Reply: account session timeout_ms
-- cancel_time_ms sequence timestamp_ms.
-- Rejects: TOO_LATE, CANCELING, TOO_MANY_TIMERS, and those of the fields' forms.
function cancel_all_after.run(tx, values)
  local timeout_ms = values.timeout_ms + 0
  local refusal = refusal_of(tx, values, timeout_ms)
  if refusal then
    return nil, refusal
  end
  local time_ms = timeout_ms > 0 and tx.now_ms + timeout_ms
  timers.set(tx, values.account, values.session, time_ms)
  local session = values.session and ',"session":"' .. values.session .. '"' or ""
  local time = time_ms and ',"cancel_time_ms":' .. numbers.integer_text(time_ms) or ""
  return string.format(
    '{"account":"%s"%s,"timeout_ms":%s%s,"sequence":%.0f,"timestamp_ms":%s}',
    values.account,
    session,
    values.timeout_ms,
    time,
    working_copy.current_sequence(tx),
    tx.timestamp_ms
  )
end

return cancel_all_after
