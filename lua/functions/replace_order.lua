-- An order in place of another: the old one is canceled and a new one placed, as one change.
--
-- The new order is checked as if the old one were gone, so the old one is lifted out of the working
-- copy first. Where the new order is refused and either both are to happen or neither, it is put
-- back in its old place (book.put_back). The same goes for the orders of a list that end with the
-- old one. Reports are made only when it is clear what happens.

local book = require("book/book")
local orders = require("book/orders")
local place_order = require("functions/place_order")
local order_reports = require("market_data/order_reports")
local replies = require("market_data/replies")
local order_entry = require("matching/order_entry")
local order_lists = require("matching/order_lists")
local validity = require("matching/validity")
local idempotency = require("transaction/idempotency")
local target_order = require("transaction/target_order")
local working_copy = require("transaction/working_copy")
local fields = require("values/fields")
local order_types = require("values/order_types")
local reject = require("values/reject")

local replace_order = { name = "replace_order" }

local own_fields = {
  "account",
  "client_order_id",
  "cancel_order_id",
  "cancel_client_order_id",
  "on_failure",
}

-- Its own fields and those of a new order, but for validate_only. The common ones come first.
local function make_schema()
  local placed, names, is_named = place_order.schema, {}, { validate_only = true }
  for i = 1, #own_fields do
    names[i] = own_fields[i]
    is_named[own_fields[i]] = true
  end
  local common_count = #names
  for i = 1, #placed.names do
    local name = placed.names[i]
    if not is_named[name] then
      names[#names + 1] = name
      common_count = common_count + (i <= placed.common_count and 1 or 0)
    end
  end
  return fields.schema(names, placed.required, common_count)
end

replace_order.schema = make_schema()

-- A refusal where the fields do not go together, else nil.
local function combination_refusal(values)
  local by_id, by_name = values.cancel_order_id, values.cancel_client_order_id
  if by_id and by_name then
    local message = "give cancel_order_id or cancel_client_order_id, not both"
    return reject.new("FIELD_NOT_ALLOWED", message)
  end
  if not by_id and not by_name then
    local message = "missing field cancel_order_id, or cancel_client_order_id"
    return reject.new("MISSING_FIELD", message)
  end
  return order_types.combination_refusal(values)
end

-- The order that is to go, or nil and why not.
local function order_to_cancel(tx, values)
  return target_order.find_order(tx, {
    account = values.account,
    order_id = values.cancel_order_id,
    client_order_id = values.cancel_client_order_id,
  })
end

-- A refusal where the new order cannot have its client_order_id, else nil: another open order has
-- it, or it was used before. It may be that of the order that goes. `duplicate` is what the memory
-- of commands says of it.
local function name_refusal(tx, values, old, duplicate)
  local name = values.client_order_id
  if not name or (old and old.client_order_id == name and old.account == values.account) then
    return nil
  end
  if not duplicate and orders.find_client_order(tx, values.account, name) then
    return reject.new("DUPLICATE_CLIENT_ORDER_ID", "an open order has this client_order_id")
  end
  return duplicate
end

-- The new order and its fills, after every check; nil and why not.
local function checked_order(tx, values, old, duplicate)
  local refusal = name_refusal(tx, values, old, duplicate)
  if refusal then
    return nil, refusal
  end
  return order_entry.check(tx, values)
end

-- Cancels `old` and places the new order, as far as both were found good. `old` has been removed
-- tentatively or is nil, the new order is checked or nil. Returns the reply.
local function carried_out(tx, values, change)
  local canceled, placed
  if change.old then
    order_reports.canceled(tx, change.old, "replaced")
    order_lists.end_removed(tx, change.others)
    canceled = replies.canceled(tx, change.old)
  else
    canceled = reject.json(change.missing)
  end
  if change.order then
    placed = order_entry.accept(tx, change.order, change.fills)
  else
    placed = reject.json(change.refusal, values.client_order_id)
  end
  return string.format(
    '{"canceled":%s,"placed":%s,"sequence":%.0f,"timestamp_ms":%s}',
    canceled,
    placed,
    working_copy.current_sequence(tx),
    tx.timestamp_ms
  )
end

-- Cancels and places, or one of both where that is wanted. nil and why not.
local function replaced(tx, values, duplicate)
  local goes_on = values.on_failure == "continue"
  local change = {}
  change.old, change.missing = order_to_cancel(tx, values)
  if not change.old and not goes_on then
    return nil, change.missing
  end
  change.others = change.old and order_lists.remove_others_tentatively(tx, change.old)
  local removed = change.old and book.remove_tentatively(tx, change.old)
  local order, fills = checked_order(tx, values, change.old, duplicate)
  if order then
    change.order, change.fills = order, fills
  elseif goes_on then
    change.refusal = fills
  else
    book.put_back(tx, removed)
    order_lists.put_back(tx, change.others)
    return nil, fills
  end
  return carried_out(tx, values, change), nil, change
end

-- replace_order: cancels an open order and places a new one, as one change.
-- Fields: account; cancel_order_id or cancel_client_order_id; on_failure (stop: both happen or
-- neither; continue: each is tried); those of place_order but validate_only.
-- Reply: canceled (as cancel_order, or its refusal) placed (as place_order, or its refusal)
-- sequence timestamp_ms.
-- Rejects: as place_order, and UNKNOWN_ORDER; with continue only those of the
-- fields' forms and TOO_LATE.
function replace_order.run(tx, values)
  local refusal = combination_refusal(values)
  if refusal then
    return nil, refusal
  end
  local reply_key, again, duplicate
  if values.client_order_id then
    reply_key = idempotency.reply_key("replace_order", values, replace_order.schema)
    again, duplicate = idempotency.find_stored_reply(tx, reply_key)
    if again then
      return again
    end
    refusal = idempotency.full_refusal(tx, reply_key)
  end
  refusal = refusal or (values.rare and validity.lateness_refusal(tx, values))
  if refusal then
    return nil, refusal
  end
  local reply, refused, change = replaced(tx, values, duplicate)
  if not reply then
    return nil, refused
  end
  if not change.order or not reply_key then
    return reply
  end
  if change.old and change.old.client_order_id == values.client_order_id then
    idempotency.discard_stored_reply(tx, values.account, values.client_order_id)
  end
  return idempotency.store_reply(tx, reply_key, reply)
end

return replace_order
