-- The scheduled work of books in which nothing is traded.

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
local function is_behind(tx)
  local is_trading = tx.instrument.status == "trading"
  local is_limited = tx.expiring or tx.canceling or trading_status.is_uncrossing(tx)
  return is_limited or (is_trading and trigger_queue.has_items(tx))
end

-- tick: does what is due and nothing else. Hosts call it at each publish interval.
-- Fields: none. Reply: expired_count canceled_count triggered_count pending sequence. Rejects:
-- UNKNOWN_SYMBOL, INVALID_BOOK_KEY.
function tick.call(call_keys, arguments)
  local instrument, refusal = transaction.open_query(call_keys, arguments, queries.no_fields)
  if not instrument then
    return reject.json(refusal)
  end
  local done = '{"expired_count":%.0f,"canceled_count":%.0f,"triggered_count":%.0f,"pending":%s,'
    .. '"sequence":%.0f}'
  local tx = working_copy.from(instrument)
  -- An instrument without features never has anything due, and many hosts ask twice a second.
  local is_idle = not instrument.features and not epoch.is_due(instrument)
  local damaged = (is_idle and working_copy.missing_key_error(tx))
    or working_copy.missing_stream_error(tx)
  if damaged then
    return damaged
  end
  if is_idle then
    return done:format(0, 0, 0, "false", instrument.sequence)
  end
  local written, refused = transaction.transact(tx, { list = {}, replies = {} })
  if not written then
    return refused
  end
  tx = written
  local triggered_count = limits.triggers_per_call_max - tx.triggers_left
  local pending, sequence = tostring(is_behind(tx)), working_copy.current_sequence(tx)
  return done:format(tx.expired_count, tx.timer_cancel_count, triggered_count, pending, sequence)
end

return tick
