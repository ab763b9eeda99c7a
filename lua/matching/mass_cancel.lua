-- The cancel of many orders at once: those of an account or of one of its sessions, oldest first.

local book = require("book/book")
local orders = require("book/orders")
local order_reports = require("market_data/order_reports")

local mass_cancel = {}

-- The open orders of an account, or of one session of it, by id, oldest first; of one side where
-- that is asked for.
local function ids_to_cancel(b, whose)
  local ids = orders.ids_of_account(b, whose.account, whose.session)
  if not whose.side then
    return ids
  end
  orders.prefetch(b, ids)
  local found = {}
  for _, order_id in ipairs(ids) do
    if orders.side_of(b, order_id) == whose.side then
      found[#found + 1] = order_id
    end
  end
  return found
end

-- Cancels the oldest open orders of { account, session, side }, at most `limit`. Returns their ids
-- and how many are left, as far as orders.ids_of_account counts.
function mass_cancel.cancel_open(b, whose, limit, reason)
  local ids = ids_to_cancel(b, whose)
  local wanted, canceled = {}, {}
  for i = 1, math.min(#ids, limit) do
    wanted[i] = ids[i]
  end
  orders.prefetch(b, wanted)
  for _, order_id in ipairs(wanted) do
    local o = orders.find(b, order_id)
    if o then
      book.remove(b, o)
      order_reports.canceled(b, o, reason)
      canceled[#canceled + 1] = order_id
    end
  end
  return canceled, #ids - #wanted
end

return mass_cancel
