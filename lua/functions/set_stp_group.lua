-- The groups of accounts that count as one trader: an operator's.

local stp_groups = require("book/stp_groups")
local acceptance = require("server/acceptance")
local transaction = require("transaction/transaction")
local fields = require("values/fields")
local keys = require("values/keys")
local reject = require("values/reject")

local set_stp_group = {}

local account_schema = fields.schema({ "account" }, { "account" })
local group_schema = fields.schema({ "account", "stp_group" }, { "account" })

local function group_json(instrument, account, group)
  local group_member = group and ',"stp_group":"' .. group .. '"' or ""
  return string.format(
    '{"account":"%s","segment":"%s"%s}',
    account,
    instrument.segment,
    group_member
  )
end

-- set_stp_group: puts an account into a group, in place of the one it was in, or into none.
-- Fields: account stp_group (none: the account leaves its group). Reply: account segment stp_group.
-- Rejects: TOO_MANY_STP_GROUP_ACCOUNTS, UNKNOWN_SYMBOL, and those of the fields' forms.
function set_stp_group.call(call_keys, arguments)
  local instrument, values = transaction.open_query(call_keys, arguments, group_schema)
  if not instrument then
    return reject.json(values)
  end
  local key, account, group = keys.stp_groups(instrument.segment), values.account, values.stp_group
  local refused = acceptance.error(group and "HSET" or "HDEL", key, {})
  if refused then
    return refused
  end
  if not group then
    redis.call("HDEL", key, account)
    return group_json(instrument, account, false)
  end
  local is_new = redis.call("HEXISTS", key, account) == 0
  if is_new and redis.call("HLEN", key) >= stp_groups.accounts_max then
    local message = ("%d accounts of the segment belong to groups"):format(stp_groups.accounts_max)
    return reject.json(reject.new("TOO_MANY_STP_GROUP_ACCOUNTS", message))
  end
  redis.call("HSET", key, account, group)
  return group_json(instrument, account, group)
end

-- get_stp_group: the group that an account belongs to.
-- Fields: account. Reply: as set_stp_group. Rejects: UNKNOWN_SYMBOL.
function set_stp_group.get(call_keys, arguments)
  local instrument, values = transaction.open_query(call_keys, arguments, account_schema)
  if not instrument then
    return reject.json(values)
  end
  local group = redis.call("HGET", keys.stp_groups(instrument.segment), values.account)
  return group_json(instrument, values.account, group)
end

return set_stp_group
