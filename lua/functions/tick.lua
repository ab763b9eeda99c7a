-- What is due is done though nobody trades.

local queries = require("functions/queries")
local trading_status = require("matching/trading_status")
local trigger_queue = require("matching/trigger_queue")
local epoch = require("transaction/epoch")
local transaction = require("transaction/transaction")
local working_copy = require("transaction/working_copy")
local limits = require("values/limits")
local reject = require("values/reject")

local tick = {}

-- Whether more is due than one call may do.
local function is_behind(b)
  local is_trading = b.instrument.status == "trading"
  local is_limited = b.expiring or b.canceling or trading_status.is_uncrossing(b)
  return is_limited or (is_trading and trigger_queue.has_items(b))
end

-- tick: does what is due and nothing else. Hosts call it at each publish interval.
-- Fields: none. Reply: expired_count canceled_count triggered_count pending sequence. Rejects:
-- UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
function tick.call(call_keys, arguments)
  local record, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not record then
    return reject.json(refusal)
  end
  local done = '{"expired_count":%.0f,"canceled_count":%.0f,"triggered_count":%.0f,"pending":%s,'
    .. '"sequence":%.0f}'
  local b = working_copy.from(record)
  -- An instrument without features never has anything due, and many hosts ask twice a second.
  local is_idle = not record.extended and not epoch.is_due(record)
  local damaged = (is_idle and working_copy.missing_key_error(b))
    or working_copy.missing_stream_error(b)
  if damaged then
    return damaged
  end
  if is_idle then
    return done:format(0, 0, 0, "false", record.sequence)
  end
  local written, refused = transaction.transact(b, { list = {}, replies = {} })
  if not written then
    return refused
  end
  b = written
  local triggered_count = limits.triggers_per_call_max - b.triggers_left
  local pending, sequence = tostring(is_behind(b)), working_copy.current_sequence(b)
  return done:format(b.expired_count, b.timer_cancel_count, triggered_count, pending, sequence)
end

return tick
