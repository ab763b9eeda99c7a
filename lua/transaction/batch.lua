-- The commands of one execute: JSON texts to fields.
--
-- Nearly all commands are plain, and a batch of plain ones is decoded in one go; any other batch
-- one by one, so that a refusal is of one command alone.

local orders = require("book/orders")
local idempotency = require("transaction/idempotency")
local fields = require("values/fields")
local reject = require("values/reject")

local batch = {}

-- A command from its JSON: its fields, with the method itself as `method`; or nil, why not, and the
-- client_order_id to echo.
local function decode(text, methods)
  local decoded, object = pcall(cjson.decode, text)
  -- The decoder takes a zero byte for the end of the text.
  local cut_short = text:find("\0", 1, true)
  if not decoded or cut_short or type(object) ~= "table" or type(object.method) ~= "string" then
    return nil, reject.new("MALFORMED_COMMAND", "a command is a JSON object with a method")
  end
  local method = methods[object.method]
  if not method then
    return nil, reject.new("UNKNOWN_METHOD", "there is no such method"), fields.echo(object)
  end
  local values, refusal = fields.from_object(object, method.schema, text)
  if not values then
    return nil, refusal, fields.echo(object)
  end
  values.method = method
  return values
end

-- The same for the commands of a batch which are all plain, decoded in one go; else nil. As each is
-- at least as long as its fields, and all together no longer, none can have taken from its
-- neighbour's text.
local function decode_plain(texts, methods)
  local decoded, objects = pcall(cjson.decode, "[" .. table.concat(texts, ",") .. "]")
  if not decoded or #objects ~= #texts then
    return nil
  end
  for i = 1, #texts do
    local object = objects[i]
    local method = type(object) == "table" and methods[object.method]
    if not method then
      return nil
    end
    local schema, length = method.schema, #texts[i]
    if fields.plain_length(object, schema, schema.common_count) ~= length then
      if fields.plain_length(object, schema, #schema.names) ~= length then
        return nil
      end
      object.rare = true
    end
    object.method = method
  end
  return objects
end

-- The commands of a batch, false for those that were refused, and the refusals by their place.
function batch.decode(texts, methods)
  local list, replies = decode_plain(texts, methods), {}
  if list then
    return list, replies
  end
  list = {}
  for i = 1, #texts do
    local values, refusal, client_order_id = decode(texts[i], methods)
    list[i] = values or false
    replies[i] = refusal and reject.json(refusal, client_order_id)
  end
  return list, replies
end

-- Reads in a few calls what the commands of a batch would ask for one by one: the orders they name,
-- by whatever id, and the replies to their ids.
function batch.prefetch(tx, list)
  local order_ids, client_names = {}, {}
  for i = 1, #list do
    local values = list[i]
    if values then
      order_ids[#order_ids + 1] = values.order_id or values.cancel_order_id
      local client_order_id, account = values.client_order_id, values.account
      if client_order_id and account then
        client_names[#client_names + 1] = orders.client_name(account, client_order_id)
      end
    end
  end
  if client_names[1] then
    orders.prefetch_client_orders(tx, client_names, order_ids)
    idempotency.prefetch(tx, list)
  end
  orders.prefetch(tx, order_ids)
end

return batch
