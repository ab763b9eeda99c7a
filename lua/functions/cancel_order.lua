-- The cancel of one open order at its owner's wish.

local book = require("book/book")
local order_reports = require("market_data/order_reports")
local replies = require("market_data/replies")
local validity = require("matching/validity")
local idempotency = require("transaction/idempotency")
local target_order = require("transaction/target_order")
local fields = require("values/fields")

local cancel_order = { name = "cancel_order" }

cancel_order.schema = fields.schema(
  { "account", "client_order_id", "order_id", "valid_until_ms" },
  {},
  3
)

-- cancel_order: takes an open order out of the book, in every status of the instrument.
-- Fields: order_id, or account and client_order_id; valid_until_ms. Reply: the order and its
-- remaining_quantity.
-- Rejects: UNKNOWN_ORDER, DUPLICATE_CLIENT_ORDER_ID, TOO_LATE, and those of the
-- fields' forms.
function cancel_order.run(tx, values)
  local order, refusal, reply_key, again =
    target_order.to_change(tx, "cancel_order", values, cancel_order.schema)
  if not order then
    return again, refusal
  end
  refusal = values.rare and validity.lateness_refusal(tx, values)
  if refusal then
    return nil, refusal
  end
  book.remove(tx, order)
  order_reports.canceled(tx, order, "requested")
  return idempotency.store_change_reply(tx, order, values, reply_key, replies.canceled(tx, order))
end

return cancel_order
