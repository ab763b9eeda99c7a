-- The bounds on the work of one call. Redis runs one call at a time, so a long call makes all
-- others wait.

local limits = {}

-- Every account of a call is two arguments of its one XADD, and Lua passes at most 8,000 arguments.
-- The orders of a call are its commands' and the quotes.
limits.orders_per_call_max = 3000
limits.quotes_per_call_max = 2000
limits.fills_per_call_max = 10000
limits.accounts_per_call_max = 3500
limits.cancels_per_call_max = 1000
limits.account_orders_max = 10000
limits.triggers_per_call_max = 1000
limits.trails_per_call_max = 5000
limits.expiries_per_call_max = 1000
limits.timer_cancels_per_call_max = 1000

return limits
