-- Finding open orders: by order_id, by client_order_id, by account, session and quote; and reading
-- the records of many in one call.

local order_record = require("records/order_record")
local damage = require("server/damage")
local keys = require("values/keys")
local limits = require("values/limits")

local orders = {}

local arguments_max = 4000

-- An order whose record was not looked at yet. Ids that no order had before this call are not
-- looked for.
local function read_order(tx, order_id)
  local text = tx.records[order_id]
  if text == nil and order_id + 0 <= tx.last_order_id_before then
    text = redis.call("HGET", tx.names.orders, order_id)
  end
  local order = text and order_record.parse(order_id, text) or false
  if text and not order then
    return damage.raise("order " .. order_id .. " has no valid record")
  end
  tx.orders[order_id] = order
  return order
end

-- The open order of this id, or nil.
function orders.find(tx, order_id)
  local order = tx.orders[order_id]
  if order == nil then
    order = read_order(tx, order_id)
  end
  if order and order.queued then
    return order
  end
  return nil
end

-- The side of an order that is known, or whose record was read; nil for others.
function orders.side_of(tx, order_id)
  local order, text = tx.orders[order_id], tx.records[order_id]
  return order and order.side or (text and text:match("^%a+"))
end

-- Reads the records of these orders in one call where they are not known yet.
function orders.prefetch(tx, order_ids)
  local missing, records, last = {}, tx.records, tx.last_order_id_before
  for i = 1, #order_ids do
    local order_id = order_ids[i]
    if order_id + 0 <= last and records[order_id] == nil then
      missing[#missing + 1] = order_id
    end
  end
  for from = 1, #missing, arguments_max do
    local to = math.min(from + arguments_max - 1, #missing)
    local texts = redis.call("HMGET", tx.names.orders, unpack(missing, from, to))
    for i = 1, #texts do
      records[missing[from + i - 1]] = texts[i]
    end
  end
end

-- Under which name an order stands in the hash of client_order_ids.
function orders.client_name(account, client_order_id)
  return account .. " " .. client_order_id
end

-- Reads in one call which open orders have these names, and adds their ids to a list.
function orders.prefetch_client_orders(tx, names, order_ids)
  local found = redis.call("HMGET", tx.names.client_orders, unpack(names))
  tx.checked_keys[tx.names.client_orders] = true
  for i = 1, #found do
    tx.client_orders[names[i]] = found[i]
    order_ids[#order_ids + 1] = found[i] or nil
  end
end

-- The id of the account's open order of this client_order_id, or nil.
function orders.find_client_order(tx, account, client_order_id)
  local name = orders.client_name(account, client_order_id)
  local order_id = tx.client_orders[name]
  if order_id == nil then
    order_id = redis.call("HGET", tx.names.client_orders, name)
    tx.checked_keys[tx.names.client_orders] = true
    tx.client_orders[name] = order_id
  end
  if order_id and orders.find(tx, order_id) then
    return order_id
  end
  return nil
end

-- Whether an order is of this account and, where one is given, of its session.
local function belongs_to(order, account, session)
  return order.account == account
    and (not session or (order.attributes and order.attributes.session == session))
end

-- The ids of the open orders of an account, or of one session of it, oldest first. Of more than
-- account_orders_max, which no person has, an arbitrary part: sorting a million to cancel a
-- thousand would stop everybody's trading.
function orders.ids_of_account(tx, account, session)
  local ids_key = session and keys.session_orders(tx.key, account, session)
    or keys.account_orders(tx.key, account)
  local ids = redis.call("SRANDMEMBER", ids_key, limits.account_orders_max)
  for _, order in ipairs(tx.touched_orders) do
    if belongs_to(order, account, session) and not order.stored_priority then
      ids[#ids + 1] = order.order_id
    end
  end
  local open = {}
  for _, order_id in ipairs(ids) do
    local order = tx.orders[order_id]
    if order == nil or (order and order.queued) then
      open[#open + 1] = order_id
    end
  end
  table.sort(open, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return open
end

-- The ids of the account's quotes, oldest first: no more than one mass_quote has placed.
function orders.quote_ids(tx, account)
  local ids = redis.call("SMEMBERS", keys.account_quotes(tx.key, account))
  for _, order in ipairs(tx.touched_orders) do
    if
      order.attributes
      and order.attributes.quote
      and order.account == account
      and not order.stored_priority
    then
      ids[#ids + 1] = order.order_id
    end
  end
  orders.prefetch(tx, ids)
  local open = {}
  for _, order_id in ipairs(ids) do
    if orders.find(tx, order_id) then
      open[#open + 1] = order_id
    end
  end
  table.sort(open, function(left, right)
    return tonumber(left) < tonumber(right)
  end)
  return open
end

-- How many open orders an account has in this book, those of this call included.
function orders.count_open(tx, account)
  tx.stored_counts = tx.stored_counts or {}
  local count = tx.stored_counts[account]
  if not count then
    count = redis.call("SCARD", keys.account_orders(tx.key, account))
    tx.stored_counts[account] = count
  end
  for _, order in ipairs(tx.touched_orders) do
    if order.account == account then
      count = count + (order.queued and 1 or 0) - (order.stored_priority and 1 or 0)
    end
  end
  return count
end

return orders
