-- What is due before the commands of a call: orders expire, timers that have run out cancel, a halt
-- that is over ends, and what earlier orders have led to goes on.

local book = require("book/book")
local orders = require("book/orders")
local timers = require("book/timers")
local order_reports = require("market_data/order_reports")
local circuit_breaker = require("matching/circuit_breaker")
local mass_cancel = require("matching/mass_cancel")
local trading_status = require("matching/trading_status")
local triggers = require("matching/triggers")
local keys = require("values/keys")

local scheduled_work = {}

local timers_per_call_max = 1000

-- Takes the orders out whose time is over, as many as the call may; returns them. Where more are
-- due, `tx.expiring` tells.
local function expire(tx)
  local features, expired = tx.instrument.features, {}
  if not features or features.gtd_orders == 0 then
    return expired
  end
  local expiries_key = keys.expiries(tx.key)
  local limit = tx.expiries_left + 1
  local range = { "-inf", tx.timestamp_ms, "LIMIT", 0, limit }
  local members = redis.call("ZRANGEBYSCORE", expiries_key, unpack(range))
  tx.expiring = #members == limit
  local order_ids = {}
  for i = 1, math.min(#members, tx.expiries_left) do
    order_ids[i] = members[i]:match("^0*(%d+)$")
  end
  tx.expiries_left = tx.expiries_left - #order_ids
  orders.prefetch(tx, order_ids)
  for _, order_id in ipairs(order_ids) do
    local order = orders.find(tx, order_id)
    if order then
      book.remove(tx, order)
      expired[#expired + 1] = order
    end
  end
  return expired
end

-- Carries out the timers that have run out, the earliest first, as far as one call may. Where more
-- is left, `tx.canceling` tells. Returns how many orders were canceled.
local function fire_timers(tx)
  local due, more = timers.due(tx, timers_per_call_max)
  local left, canceled_count = tx.timer_cancels_left, 0
  tx.canceling = more
  for _, timer in ipairs(due) do
    local reason = timer.session and "disconnected" or "cancel_all_after"
    local canceled, remaining_count = mass_cancel.cancel_open(tx, timer, left, reason)
    left, canceled_count = left - #canceled, canceled_count + #canceled
    if remaining_count > 0 then
      tx.canceling = true
      break
    end
    timers.set(tx, timer.account, timer.session, false)
  end
  tx.timer_cancels_left = left
  return canceled_count
end

-- Does what is due before the commands of a call; nothing in a book that an internal error halted.
function scheduled_work.run(tx)
  local features = tx.instrument.features
  local expired = features and expire(tx) or {}
  for i = 1, #expired do
    order_reports.expired(tx, expired[i])
  end
  tx.expired_count = #expired
  if features then
    tx.timer_cancel_count = features.timers > 0 and fire_timers(tx) or 0
    circuit_breaker.start(tx)
    trading_status.resume(tx)
  end
  if tx.trigger_queue or tx.list_events then
    triggers.run(tx)
  end
end

return scheduled_work
