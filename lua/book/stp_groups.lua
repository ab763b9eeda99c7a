-- Groups of accounts that count as one trader to self-trade prevention.
--
-- An operator puts an account into a group, at most one, for all books of a segment
-- (set_stp_group). An order may name the group of its own account only: otherwise a stranger who
-- names Alice's group could cancel her orders without a trade.

local keys = require("values/keys")

local stp_groups = {}

stp_groups.accounts_max = 100000

-- The group that an account belongs to, or false.
function stp_groups.of(b, account)
  b.stp_groups = b.stp_groups or {}
  local group = b.stp_groups[account]
  if group == nil then
    group = redis.call("HGET", keys.stp_groups(b.instrument.segment), account)
    b.stp_groups[account] = group
  end
  return group
end

-- Whether two orders of different accounts name one group that both accounts belong to now.
function stp_groups.are_together(b, one, other)
  local group = one.extras and one.extras.stp_group
  if not group or not other.extras or other.extras.stp_group ~= group then
    return false
  end
  return stp_groups.of(b, one.account) == group and stp_groups.of(b, other.account) == group
end

return stp_groups
