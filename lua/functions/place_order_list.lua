-- A new order list: from its JSON through every check of every order to all of them taken on, or
-- none.

local book = require("book/book")
local orders = require("book/orders")
local order_reports = require("market_data/order_reports")
local replies = require("market_data/replies")
local fill_plan = require("matching/fill_plan")
local order_entry = require("matching/order_entry")
local order_lists = require("matching/order_lists")
local pre_trade_checks = require("matching/pre_trade_checks")
local stop_orders = require("matching/stop_orders")
local validity = require("matching/validity")
local idempotency = require("transaction/idempotency")
local fields = require("values/fields")
local order_types = require("values/order_types")
local reject = require("values/reject")

local place_order_list = { name = "place_order_list" }

place_order_list.schema = fields.schema({
  "account",
  "client_order_id",
  "list_type",
  "orders",
  "session",
  "valid_until_ms",
}, { "account", "list_type", "orders" }, 0)

-- What an order of a list may say of itself: the fields of place_order that are not the list's.
local member_schema = fields.schema({
  "client_order_id",
  "side",
  "order_type",
  "time_in_force",
  "price",
  "quantity",
  "post_only",
  "expire_time_ms",
  "display_quantity",
  "protection",
  "self_trade_prevention",
  "stp_group",
  "stop_price",
  "trailing_offset",
}, { "side", "order_type" }, 0)

local list_lengths = { oco = 2, oto = 2, bracket = 3 }

local function invalid_list(message)
  return reject.with("INVALID_ORDER_LIST", message)
end

-- Whether a text is a JSON list of so many objects. A zero byte would end it for the decoder.
local function is_list_of(text, length)
  local decoded, objects = pcall(cjson.decode, text)
  if not decoded or type(objects) ~= "table" or #objects ~= length then
    return false
  end
  for i = 1, length do
    if type(objects[i]) ~= "table" or objects[i][1] ~= nil then
      return false
    end
  end
  return not text:find("\0", 1, true)
end

-- The fields of each order of the list, or nil and why not. No good value has braces in it, so
-- each order's text is found by its own.
local function read_members(values)
  local length = list_lengths[values.list_type]
  if not is_list_of(values.orders, length) then
    return invalid_list("orders is a JSON list of 2 orders, of a bracket 3")
  end
  local members = {}
  for text in values.orders:gmatch("%b{}") do
    local decoded, object = pcall(cjson.decode, text)
    if not decoded then
      return invalid_list("no value in orders has braces")
    end
    if object.method ~= nil then
      return reject.with("UNKNOWN_FIELD", "unknown field method")
    end
    local member, refusal = fields.from_object(object, member_schema, text)
    if not member then
      return nil, refusal
    end
    member.account, member.session = values.account, values.session
    members[#members + 1] = member
  end
  if #members ~= length then
    return invalid_list("orders is a JSON list of 2 orders, of a bracket 3")
  end
  return members
end

-- ---- what goes together

local function is_stop(member)
  return member.order_type ~= "limit" and member.order_type ~= "market"
end

-- Why an order cannot be a leg, one that another decides about; or nil.
local function leg_problem(member)
  local force = member.time_in_force
  if member.order_type == "market" then
    return "no leg is a market order"
  end
  if member.order_type == "limit" and (force == "ioc" or force == "fok") then
    return "a limit order of a pair must be able to rest"
  end
  if member.post_only == "true" or member.display_quantity then
    return "no leg is post_only or an iceberg"
  end
  return nil
end

local function pair_problem(left, right)
  if left.side ~= right.side then
    return "the orders of a pair have one side"
  end
  if not is_stop(left) and not is_stop(right) then
    return "one order of a pair waits for a price"
  end
  return nil
end

-- Why the orders of a list do not go together, or nil.
local function list_problem(list_type, members)
  local first, second, third = members[1], members[2], members[3]
  if list_type == "oco" then
    return leg_problem(first) or leg_problem(second) or pair_problem(first, second)
  end
  if second.quantity or (third and third.quantity) then
    return "what an entry arms has no quantity of its own"
  end
  local problem = leg_problem(second)
  if problem or list_type == "oto" then
    return problem
  end
  if second.side == first.side then
    return "the pair of a bracket is on the other side than its entry"
  end
  return leg_problem(third) or pair_problem(second, third)
end

-- A refusal where names are taken or given twice, else nil.
local function name_refusal(tx, values, members)
  local seen = {}
  for _, member in ipairs(members) do
    local name = member.client_order_id
    if name and (seen[name] or name == values.client_order_id) then
      return reject.new("DUPLICATE_CLIENT_ORDER_ID", "two orders have one client_order_id")
    end
    local account = values.account
    local taken = name
      and (idempotency.is_taken(tx, account, name) or orders.find_client_order(tx, account, name))
    if taken then
      return reject.new("DUPLICATE_CLIENT_ORDER_ID", "client_order_id was used before")
    end
    if name then
      seen[name] = true
    end
  end
  return nil
end

-- The fields of every order, with what a leg takes from its entry; or nil and why not.
local function read_list(values)
  local members, refusal = read_members(values)
  if not members then
    return nil, refusal
  end
  local problem = list_problem(values.list_type, members)
  if problem then
    return invalid_list(problem)
  end
  for _, member in ipairs(members) do
    member.quantity = member.quantity or members[1].quantity
    refusal = order_types.combination_refusal(member)
    if refusal then
      return nil, refusal
    end
  end
  return members
end

-- The command's fields with its orders as what they mean, however their JSON is written.
local function meaning(values, members)
  local contents = {}
  for i, member in ipairs(members) do
    contents[i] = fields.content(member.client_order_id or "*", member, member_schema)
  end
  return {
    account = values.account,
    client_order_id = values.client_order_id,
    list_type = values.list_type,
    orders = table.concat(contents, ", "),
    rare = true,
  }
end

-- ---- checks against the book

-- An order that acts at once: checked like any new one. Of a pair no order may trade at once.
local function check_acting(tx, values, member)
  local order, fills = order_entry.check(tx, member)
  local rests = order
    and values.list_type == "oco"
    and not (order.attributes and order.attributes.waits)
  if rests and fill_plan.would_trade(tx, order) then
    return reject.with("POST_ONLY_WOULD_CROSS", "an order of the pair would trade at once")
  end
  return order, fills
end

-- An order that is not armed yet: its numbers are looked at, with all that its entry can fill; its
-- chances when it is armed.
local function check_dormant(tx, member)
  local order, refusal = order_entry.draft(tx, member)
  if not order then
    return nil, refusal
  end
  refusal = tx.instrument.features and pre_trade_checks.price_refusal(tx, order)
  refusal = refusal or (order.attributes.trailing_offset and stop_orders.count_refusal(tx, order))
  if refusal then
    return nil, refusal
  end
  order.attributes.waits = "dormant"
  return order
end

-- How many orders of a list can be open at the end of its command.
local function open_count(members)
  local count = 0
  for _, member in ipairs(members) do
    local stays = order_types.can_stay_open(member.order_type, order_types.time_in_force(member))
    count = count + (stays and 1 or 0)
  end
  return count
end

local function check_orders(tx, values, members)
  local listed, plans = {}, {}
  for i, member in ipairs(members) do
    local acts = i == 1 or values.list_type == "oco"
    local order, outcome
    if acts then
      order, outcome = check_acting(tx, values, member)
    else
      order, outcome = check_dormant(tx, member)
    end
    if not order then
      return nil, outcome
    end
    listed[i], plans[i] = order, outcome
  end
  if values.list_type == "oco" and listed[1].quantity ~= listed[2].quantity then
    return invalid_list("the orders of an oco have one quantity")
  end
  return listed, plans
end

-- ---- place_order_list

local function take_on_dormant(tx, order)
  book.register_order(tx, order)
  order_reports.accepted(tx, order)
  book.wait(tx, order)
  return replies.order(tx, order, "open", "[]")
end

local function take_on(tx, values, listed, plans)
  local list = { kind = values.list_type, ids = {}, armed = 0 }
  local texts = {}
  for i, order in ipairs(listed) do
    order.order_id = book.new_order_id(tx)
    list.ids[i] = order.order_id
    list.id = list.ids[1]
    order.attributes = order.attributes or {}
    order.attributes.order_list_id = list.id + 0
  end
  order_lists.keep(tx, list)
  for i, order in ipairs(listed) do
    texts[i] = plans[i] and order_entry.accept(tx, order, plans[i]) or take_on_dormant(tx, order)
  end
  return '{"order_list_id":"'
    .. list.id
    .. '","list_type":"'
    .. list.kind
    .. '","orders":['
    .. table.concat(texts, ",")
    .. "]"
    .. tx.stamp
end

-- place_order_list: takes on orders that hang together, all or none.
-- Fields: account list_type (oco oto bracket) orders (JSON list of orders with the fields of
-- place_order); client_order_id session valid_until_ms.
-- Reply: order_list_id list_type orders (the reply of place_order to each) sequence timestamp_ms.
-- Rejects: INVALID_ORDER_LIST, TOO_MANY_OPEN_ORDERS, and those of place_order for each order.
function place_order_list.run(tx, values)
  local members, refusal = read_list(values)
  if not members then
    return nil, refusal
  end
  local reply_key, again
  if values.client_order_id then
    reply_key, again, refusal = idempotency.check_new(
      tx,
      "place_order_list",
      meaning(values, members),
      place_order_list.schema
    )
    if again or refusal then
      return again, refusal
    end
  end
  refusal = name_refusal(tx, values, members)
    or validity.lateness_refusal(tx, values)
    or order_entry.closed_refusal(tx)
    or pre_trade_checks.open_orders_refusal(tx, values.account, open_count(members))
  if refusal then
    return nil, refusal
  end
  local listed, plans = check_orders(tx, values, members)
  if not listed then
    return nil, plans
  end
  return idempotency.store_reply(tx, reply_key, take_on(tx, values, listed, plans))
end

return place_order_list
