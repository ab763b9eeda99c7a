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
local function name_refusal(b, values, members)
  local seen = {}
  for _, member in ipairs(members) do
    local name = member.client_order_id
    if name and (seen[name] or name == values.client_order_id) then
      return reject.new("DUPLICATE_CLIENT_ORDER_ID", "two orders have one client_order_id")
    end
    local account = values.account
    local taken = name
      and (idempotency.is_taken(b, account, name) or orders.find_client_order(b, account, name))
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
local function check_acting(b, values, member)
  local o, fills = order_entry.check(b, member)
  local rests = o and values.list_type == "oco" and not (o.extras and o.extras.waits)
  if rests and fill_plan.would_trade(b, o) then
    return reject.with("POST_ONLY_WOULD_CROSS", "an order of the pair would trade at once")
  end
  return o, fills
end

-- An order that is not armed yet: its numbers are looked at, with all that its entry can fill; its
-- chances when it is armed.
local function check_dormant(b, member)
  local o, refusal = order_entry.draft(b, member)
  if not o then
    return nil, refusal
  end
  refusal = b.instrument.extended and pre_trade_checks.price_refusal(b, o)
  refusal = refusal or (o.extras.trailing_offset and stop_orders.count_refusal(b, o))
  if refusal then
    return nil, refusal
  end
  o.extras.waits = "dormant"
  return o
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

local function check_orders(b, values, members)
  local listed, plans = {}, {}
  for i, member in ipairs(members) do
    local acts = i == 1 or values.list_type == "oco"
    local o, outcome
    if acts then
      o, outcome = check_acting(b, values, member)
    else
      o, outcome = check_dormant(b, member)
    end
    if not o then
      return nil, outcome
    end
    listed[i], plans[i] = o, outcome
  end
  if values.list_type == "oco" and listed[1].quantity ~= listed[2].quantity then
    return invalid_list("the orders of an oco have one quantity")
  end
  return listed, plans
end

-- ---- place_order_list

local function take_on_dormant(b, o)
  book.admit(b, o)
  order_reports.accepted(b, o)
  book.wait(b, o)
  return replies.order(b, o, "open", "[]")
end

local function take_on(b, values, listed, plans)
  local list = { kind = values.list_type, ids = {}, armed = 0 }
  local texts = {}
  for i, o in ipairs(listed) do
    o.order_id = book.new_order_id(b)
    list.ids[i] = o.order_id
    list.id = list.ids[1]
    o.extras = o.extras or {}
    o.extras.order_list_id = list.id + 0
  end
  order_lists.keep(b, list)
  for i, o in ipairs(listed) do
    texts[i] = plans[i] and order_entry.take_on(b, o, plans[i]) or take_on_dormant(b, o)
  end
  return '{"order_list_id":"'
    .. list.id
    .. '","list_type":"'
    .. list.kind
    .. '","orders":['
    .. table.concat(texts, ",")
    .. "]"
    .. b.stamp
end

-- place_order_list: takes on orders that hang together, all or none.
-- Fields: account list_type (oco oto bracket) orders (JSON list of orders with the fields of
-- place_order); client_order_id session valid_until_ms.
-- Reply: order_list_id list_type orders (the reply of place_order to each) sequence timestamp_ms.
-- Rejects: INVALID_ORDER_LIST, TOO_MANY_OPEN_ORDERS, and those of place_order for each order.
function place_order_list.run(b, values)
  local members, refusal = read_list(values)
  if not members then
    return nil, refusal
  end
  local memo_record, again
  if values.client_order_id then
    memo_record, again, refusal = idempotency.recall_new(
      b,
      "place_order_list",
      meaning(values, members),
      place_order_list.schema
    )
    if again or refusal then
      return again, refusal
    end
  end
  refusal = name_refusal(b, values, members)
    or validity.lateness_refusal(b, values)
    or order_entry.closed_refusal(b)
    or pre_trade_checks.open_orders_refusal(b, values.account, open_count(members))
  if refusal then
    return nil, refusal
  end
  local listed, plans = check_orders(b, values, members)
  if not listed then
    return nil, plans
  end
  return idempotency.remember(b, memo_record, take_on(b, values, listed, plans))
end

return place_order_list
