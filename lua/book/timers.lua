-- The timers of a book: when the open orders of an account, or of one of its sessions, are to be
-- canceled. cancel_all_after.lua tells what for.
--
-- In Redis they are one sorted set. The score is the time in milliseconds, the member says whose
-- orders: `ACCOUNT` for all of an account's, `ACCOUNT SESSION` for those placed with this session.
-- The instrument counts them (`timers`), so that a book without any never looks.
--
-- A timer is no part of what others can see of a book: setting one takes no sequence and no entry
-- in the stream. It is written at the end of its call all the same, after everything that can fail.

local instrument_record = require("records/instrument_record")
local keys = require("values/keys")
local numbers = require("values/numbers")

local timers = {}

timers.count_max = 10000
timers.per_account_max = 100

local function member(account, session)
  return session and account .. " " .. session or account
end

local function count(tx)
  local features = tx.instrument.features
  return features and features.timers or 0
end

-- The part of the working copy that is about timers: the times by member, false where there is
-- none, and the members whose time this call sets.
local function working_copy(tx)
  tx.timers = tx.timers or { times = {}, members = {} }
  return tx.timers
end

-- A timer of an account begins to run, or ceases to.
local function count_for(copy, name, change)
  local account = name:match("^%S+")
  if copy.counts then
    copy.counts[account] = (copy.counts[account] or 0) + change
  end
end

-- When the timer runs out, in milliseconds, or false where none is running.
function timers.time_ms(tx, account, session)
  if count(tx) == 0 then
    return false
  end
  local times, name = working_copy(tx).times, member(account, session)
  if times[name] == nil then
    local score = redis.call("ZSCORE", keys.timers(tx.key), name)
    times[name] = score and tonumber(score)
  end
  return times[name]
end

-- Whether no more timers can be set.
function timers.are_full(tx)
  return count(tx) >= timers.count_max
end

-- How many timers each account has, by account: looked at once a call.
local function counts_by_account(tx)
  local copy = working_copy(tx)
  if not copy.counts then
    local stored = {}
    copy.counts = {}
    for _, name in ipairs(redis.call("ZRANGE", keys.timers(tx.key), 0, -1)) do
      stored[name] = true
      if copy.times[name] ~= false then
        count_for(copy, name, 1)
      end
    end
    for name, time_ms in pairs(copy.times) do
      local is_new = time_ms and not stored[name]
      count_for(copy, name, is_new and 1 or 0)
    end
  end
  return copy.counts
end

-- Whether an account has so many timers that it may set no more.
function timers.are_used_up(tx, account)
  if count(tx) < timers.per_account_max then
    return false
  end
  return (counts_by_account(tx)[account] or 0) >= timers.per_account_max
end

-- Sets a timer, or with false for its time takes it away.
function timers.set(tx, account, session, time_ms)
  local before = timers.time_ms(tx, account, session)
  if before == time_ms then
    return
  end
  local copy, name = working_copy(tx), member(account, session)
  local features = instrument_record.extend(tx.instrument)
  features.timers = features.timers + (time_ms and 1 or 0) - (before and 1 or 0)
  count_for(copy, name, (time_ms and 1 or 0) - (before and 1 or 0))
  copy.times[name] = time_ms
  copy.members[#copy.members + 1] = name
end

-- The timers that have run out, the earliest first, at most `limit`: a list of { account,
-- session }, and whether there are more. For the beginning of a call.
function timers.due(tx, limit)
  local times, list = working_copy(tx).times, {}
  local range = { "-inf", tx.timestamp_ms, "WITHSCORES", "LIMIT", 0, limit + 1 }
  local rows = redis.call("ZRANGEBYSCORE", keys.timers(tx.key), unpack(range))
  for i = 1, math.min(#rows, limit * 2), 2 do
    local account, session = rows[i]:match("^(%S+) ?(%S*)$")
    times[rows[i]] = tonumber(rows[i + 1])
    list[#list + 1] = { account = account, session = session ~= "" and session or nil }
  end
  return list, #rows > limit * 2
end

-- Whether the call has set any timer.
function timers.are_changed(tx)
  return #tx.timers.members > 0
end

-- Plans the writes of the timers that the call has set: see commit.lua. Their number goes first: a
-- book that counts too many looks in vain, one that counts too few would never look.
function timers.plan_writes(tx, later)
  local copy = tx.timers
  if not timers.are_changed(tx) then
    return
  end
  local set, gone = {}, {}
  for _, name in ipairs(copy.members) do
    if copy.times[name] then
      set[#set + 1] = numbers.integer_text(copy.times[name])
      set[#set + 1] = name
    else
      gone[#gone + 1] = name
    end
  end
  later("HSET", tx.key, { "extended", "1", "timers", numbers.integer_text(count(tx)) })
  if gone[1] then
    later("ZREM", keys.timers(tx.key), gone)
  end
  if set[1] then
    later("ZADD", keys.timers(tx.key), set)
  end
end

return timers
