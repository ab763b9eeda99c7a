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
-- due, `b.expiring` tells.
local function expire(b)
  local extended, expired = b.instrument.extended, {}
  if not extended or extended.gtd_orders == 0 then
    return expired
  end
  local expiries_key = keys.expiries(b.key)
  local limit = b.expiries_left + 1
  local range = { "-inf", b.timestamp_ms, "LIMIT", 0, limit }
  local members = redis.call("ZRANGEBYSCORE", expiries_key, unpack(range))
  b.expiring = #members == limit
  local order_ids = {}
  for i = 1, math.min(#members, b.expiries_left) do
    order_ids[i] = members[i]:match("^0*(%d+)$")
  end
  b.expiries_left = b.expiries_left - #order_ids
  orders.prefetch(b, order_ids)
  for _, order_id in ipairs(order_ids) do
    local o = orders.find(b, order_id)
    if o then
      book.remove(b, o)
      expired[#expired + 1] = o
    end
  end
  return expired
end

-- Carries out the timers that have run out, the earliest first, as far as one call may. Where more
-- is left, `b.canceling` tells. Returns how many orders were canceled.
local function fire_timers(b)
  local due, more = timers.due(b, timers_per_call_max)
  local left, canceled_count = b.timer_cancels_left, 0
  b.canceling = more
  for _, timer in ipairs(due) do
    local reason = timer.session and "disconnected" or "cancel_all_after"
    local canceled, remaining_count = mass_cancel.cancel_open(b, timer, left, reason)
    left, canceled_count = left - #canceled, canceled_count + #canceled
    if remaining_count > 0 then
      b.canceling = true
      break
    end
    timers.set(b, timer.account, timer.session, false)
  end
  b.timer_cancels_left = left
  return canceled_count
end

-- Does what is due before the commands of a call; nothing in a book that an internal error halted.
function scheduled_work.run(b)
  local extended = b.instrument.extended
  local expired = extended and expire(b) or {}
  for i = 1, #expired do
    order_reports.expired(b, expired[i])
  end
  b.expired_count = #expired
  if extended then
    b.timer_cancel_count = extended.timers > 0 and fire_timers(b) or 0
    circuit_breaker.start(b)
    trading_status.carry_on(b)
  end
  if b.agenda or b.notes then
    triggers.run(b)
  end
end

return scheduled_work
