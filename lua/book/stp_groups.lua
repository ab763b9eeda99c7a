-- Groups of accounts that count as one trader to self-trade prevention.
--
-- An operator puts an account into a group, at most one, for all books of a segment
-- (set_stp_group). An order may name the group of its own account only: otherwise a stranger who
-- names Alice's group could cancel her orders without a trade.

local keys = require("values/keys")

local stp_groups = {}

stp_groups.accounts_max = 100000

-- The group that an account belongs to, or false.
function stp_groups.of(tx, account)
  tx.stp_groups = tx.stp_groups or {}
  local group = tx.stp_groups[account]
  if group == nil then
    group = redis.call("HGET", keys.stp_groups(tx.instrument.segment), account)
    tx.stp_groups[account] = group
  end
  return group
end

-- Whether two orders of different accounts name one group that both accounts belong to now.
function stp_groups.are_together(tx, one, other)
  local group = one.attributes and one.attributes.stp_group
  if not group or not other.attributes or other.attributes.stp_group ~= group then
    return false
  end
  return stp_groups.of(tx, one.account) == group and stp_groups.of(tx, other.account) == group
end

return stp_groups
