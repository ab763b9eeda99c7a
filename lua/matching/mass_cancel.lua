-- The cancel of many orders at once: those of an account or of one of its sessions, oldest first.

local book = require("book/book")
local orders = require("book/orders")
local order_reports = require("market_data/order_reports")

local mass_cancel = {}

-- The open orders of an account, or of one session of it, by id, oldest first; of one side where
-- that is asked for.
local function ids_to_cancel(tx, whose)
  local ids = orders.ids_of_account(tx, whose.account, whose.session)
  if not whose.side then
    return ids
  end
  orders.prefetch(tx, ids)
  local found = {}
  for _, order_id in ipairs(ids) do
    if orders.side_of(tx, order_id) == whose.side then
      found[#found + 1] = order_id
    end
  end
  return found
end

-- Cancels the oldest open orders of { account, session, side }, at most `limit`. Returns their ids
-- and how many are left, as far as orders.ids_of_account counts.
function mass_cancel.cancel_open(tx, whose, limit, reason)
  local ids = ids_to_cancel(tx, whose)
  local wanted, canceled = {}, {}
  for i = 1, math.min(#ids, limit) do
    wanted[i] = ids[i]
  end
  orders.prefetch(tx, wanted)
  for _, order_id in ipairs(wanted) do
    local order = orders.find(tx, order_id)
    if order then
      book.remove(tx, order)
      order_reports.canceled(tx, order, reason)
      canceled[#canceled + 1] = order_id
    end
  end
  return canceled, #ids - #wanted
end

return mass_cancel
