-- The cancel of all of an account in one book. several_books.lua does it in many at once.

local mass_cancel = require("matching/mass_cancel")
local validity = require("matching/validity")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")

local cancel_all_orders = { name = "cancel_all_orders" }

cancel_all_orders.schema = fields.schema(
  { "account", "session", "side", "valid_until_ms" },
  { "account" },
  1
)

-- cancel_all_orders: cancels an account's open orders of this book, or those of one of its
-- sessions, oldest first, as many as one call may.
-- Fields: account; session side valid_until_ms. Reply: account canceled_order_ids canceled_count
-- remaining_count sequence timestamp_ms.
-- Rejects: TOO_LATE, and those of the fields' forms.
function cancel_all_orders.run(tx, values)
  local refusal = values.rare and validity.lateness_refusal(tx, values)
  if refusal then
    return nil, refusal
  end
  local canceled, remaining_count =
    mass_cancel.cancel_open(tx, values, tx.cancels_left, "cancel_all")
  local count = #canceled
  tx.cancels_left = tx.cancels_left - count
  local ids_json = count > 0 and '"' .. table.concat(canceled, '","') .. '"' or ""
  local reply = string.format(
    '{"account":"%s","canceled_order_ids":[%s],"canceled_count":%.0f,"remaining_count":%.0f,'
      .. '"sequence":%.0f,"timestamp_ms":%s}',
    values.account,
    ids_json,
    count,
    remaining_count,
    working_copy.current_sequence(tx),
    tx.timestamp_ms
  )
  return reply, nil, { canceled = count, remaining = remaining_count }
end

return cancel_all_orders
