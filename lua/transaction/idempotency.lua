-- What makes a command safe to send twice: the stored replies of commands that came with a
-- client_order_id.
--
-- A stored reply is one hash field: name -> content, newline, reply. The content is what the
-- command means (fields.content), so a retry gets the first reply, and another command under the
-- same name is refused. Content has no newline.
--
-- Each account has two hashes, generations, in each book. No account can so displace what another
-- one may still ask for. Replies go into the current generation; in time it takes the place of the
-- previous one, which is dropped whole. The rules, by the limits below:
--
--   * at least the last `generation_length` replies of an account are kept, and no reply is dropped
--     for the number of later ones before it is `reply_age_min_ms` old;
--   * a generation that has grown to `generation_length_max` before that refuses further orders
--     with a client_order_id; cancels run, and their replies are not stored;
--   * an account that sends nothing more loses its replies after `generation_life_ms`, by Redis'
--     own expiry. As a generation is filled for `filling_age_max_ms` at most, each reply is kept
--     for the difference of the two at least.

local orders = require("book/orders")
local fields = require("values/fields")
local keys = require("values/keys")
local numbers = require("values/numbers")
local reject = require("values/reject")

local idempotency = {}

idempotency.generation_length = 10000
idempotency.generation_length_max = 500000
idempotency.reply_age_min_ms = 60000
local filling_age_max_ms = 12 * 3600000
local generation_life_ms = 36 * 3600000

-- When the current generation began is one more field of it; `START_MS first` where there was none
-- before it. No client_order_id has a space in it.
local start_field = "generation start_ms"

-- Of a call that asked for no replies.
local none = {}

-- What a call knows of an account's replies: `replies` by name (false for none), the `names` of
-- those to be stored, the names that are `forgotten`, and of the current generation the `count`
-- and `start_ms`, nil where they were not read or there is none, and whether it `has_previous`.
local function of_account(tx, account)
  tx.memory = tx.memory or {}
  local own = tx.memory[account]
  if not own then
    own = { replies = {}, names = {}, forgotten = {}, has_previous = true }
    own.key = keys.stored_replies(tx.key, account)
    own.previous_key = keys.stored_replies_previous(tx.key, account)
    tx.memory[account] = own
  end
  return own
end

-- Under which name the last amend or cancel of the order so named is stored.
local function target_name(client_order_id)
  return client_order_id .. " last"
end

-- Notes what the current generation says of its beginning. Only one that is the first for certain
-- spares the look into a previous one.
local function note_start(tx, own, text)
  tx.checked_keys[own.key] = true
  if text then
    local start_ms, mark = text:match("^(%d+)(.*)$")
    own.start_ms, own.has_previous = start_ms + 0, mark ~= " first"
  end
end

-- The reply stored under a name and whether it answered this content; nil where there is none.
local function read_reply(tx, own, name, content)
  local text = own.replies[name]
  if text == nil then
    local current = redis.call("HMGET", own.key, name, start_field)
    note_start(tx, own, current[2])
    text = current[1] or (own.has_previous and redis.call("HGET", own.previous_key, name))
    own.replies[name] = text
  end
  if not text then
    return nil, false
  end
  local split = string.find(text, "\n", 1, true)
  return string.sub(text, split + 1), string.sub(text, 1, split - 1) == content
end

-- What was stored under a name is no answer any more.
local function discard(own, name)
  own.replies[name] = false
  own.forgotten[#own.forgotten + 1] = name
end

-- ---- generations

-- How many replies the current generation has, those of this call included.
local function current_count(own)
  own.count = own.count or redis.call("HLEN", own.key)
  return own.count + #own.names
end

-- Whether the current generation has to give way to a new one.
local function has_ended(tx, own)
  local age_ms = own.start_ms and tx.now_ms - own.start_ms or filling_age_max_ms
  local is_full = own.count >= idempotency.generation_length
    and age_ms >= idempotency.reply_age_min_ms
  return is_full or age_ms >= filling_age_max_ms
end

-- A refusal where an account has stored as many replies as it may within reply_age_min_ms, else
-- nil.
local function full_refusal(tx, own)
  if current_count(own) < idempotency.generation_length_max or has_ended(tx, own) then
    return nil
  end
  local message = "the account has sent %d commands with a client_order_id in a minute: "
    .. "try again later"
  return reject.new("TOO_MANY_STORED_REPLIES", message:format(idempotency.generation_length_max))
end

-- ---- of a command

local own_id_methods = { place_order = true, place_order_list = true, replace_order = true }

-- Whether a command's client_order_id is its own: other content is then refused. Otherwise it
-- names the order that the command is about.
local function owns_id(method_name, values)
  return own_id_methods[method_name] or values.order_id ~= nil
end

local function reply_name(method_name, values)
  local client_order_id = values.client_order_id
  return owns_id(method_name, values) and client_order_id or target_name(client_order_id)
end

-- Where the reply to a command with a client_order_id is stored: { account, name, content, owned }.
function idempotency.reply_key(method_name, values, schema)
  return {
    account = values.account,
    name = reply_name(method_name, values),
    content = fields.content(method_name, values, schema),
    owned = owns_id(method_name, values),
  }
end

-- Whether a command with this id of its own is remembered.
function idempotency.is_taken(tx, account, client_order_id)
  return read_reply(tx, of_account(tx, account), client_order_id, "") ~= nil
end

-- The first reply to a command that was sent before, or a refusal where its id has another meaning
-- or its reply could not be stored. nil for a command that is to be carried out.
function idempotency.find_stored_reply(tx, reply_key)
  local own = of_account(tx, reply_key.account)
  local reply, same = read_reply(tx, own, reply_key.name, reply_key.content)
  if reply and same then
    return reply
  end
  if reply and reply_key.owned then
    return nil, reject.new("DUPLICATE_CLIENT_ORDER_ID", "client_order_id was used before")
  end
  return nil
end

-- A refusal of an order whose reply could not be stored, else nil.
function idempotency.full_refusal(tx, reply_key)
  return full_refusal(tx, of_account(tx, reply_key.account))
end

function idempotency.store_reply(tx, reply_key, reply)
  if not reply_key then
    return reply
  end
  local own = of_account(tx, reply_key.account)
  if not full_refusal(tx, own) then
    own.replies[reply_key.name] = reply_key.content .. "\n" .. reply
    own.names[#own.names + 1] = reply_key.name
  end
  return reply
end

-- Remembers the reply to an amend or cancel. One that was sent by order_id ends what is
-- remembered of the order's last amend by name: repeating that one now asks for something new.
function idempotency.store_change_reply(tx, order, values, reply_key, reply)
  if values.order_id and order.client_order_id then
    discard(of_account(tx, order.account), target_name(order.client_order_id))
  end
  return reply_key and idempotency.store_reply(tx, reply_key, reply) or reply
end

-- The name of an order that is gone passes to a new one: what is remembered of the old one's last
-- amend or cancel by name is no answer about the new.
function idempotency.discard_stored_reply(tx, account, client_order_id)
  discard(of_account(tx, account), target_name(client_order_id))
end

-- Checks the client_order_id of a new order. Returns where its reply is to be stored, and the
-- stored reply if the command was sent before, or why the id cannot be taken.
function idempotency.check_new(tx, method_name, values, schema)
  local reply_key = idempotency.reply_key(method_name, values, schema)
  local again, refusal = idempotency.find_stored_reply(tx, reply_key)
  if again or refusal then
    return reply_key, again, refusal
  end
  if orders.find_client_order(tx, values.account, values.client_order_id) then
    refusal = reject.new("DUPLICATE_CLIENT_ORDER_ID", "an open order has this client_order_id")
  end
  return reply_key, nil, refusal or idempotency.full_refusal(tx, reply_key)
end

-- ---- a call as a whole

local function prefetch_account(tx, own, names)
  names[#names + 1] = start_field
  local current = redis.call("HMGET", own.key, unpack(names))
  note_start(tx, own, current[#names])
  names[#names] = nil
  local previous = own.has_previous and redis.call("HMGET", own.previous_key, unpack(names))
  for i = 1, #names do
    own.replies[names[i]] = current[i] or (previous and previous[i])
  end
end

-- Reads what is stored for a batch of commands in one call an account, or two where it has a
-- previous generation.
function idempotency.prefetch(tx, list)
  local names_of = {}
  for i = 1, #list do
    local values = list[i]
    if values and values.client_order_id and values.account then
      local names = names_of[values.account] or {}
      names_of[values.account] = names
      names[#names + 1] = reply_name(values.method.name, values)
    end
  end
  for account, names in pairs(names_of) do
    prefetch_account(tx, of_account(tx, account), names)
  end
end

-- Decides whether an account's generation ends with this call, and whether one begins.
local function plan_generation(tx, own)
  current_count(own)
  own.ends = own.count > 0 and has_ended(tx, own)
  own.begins = own.count == 0 or own.ends
  own.is_first = own.begins and not own.ends and redis.call("EXISTS", own.previous_key) == 0
end

-- The fields to be stored. A name is stored as it stands at the end of the call.
local function stored_pairs(tx, own)
  local pairs_to_store = {}
  for _, name in ipairs(own.names) do
    local text = own.replies[name]
    if text then
      pairs_to_store[#pairs_to_store + 1] = name
      pairs_to_store[#pairs_to_store + 1] = text
    end
  end
  if own.begins then
    pairs_to_store[#pairs_to_store + 1] = start_field
    pairs_to_store[#pairs_to_store + 1] = tx.timestamp_ms .. (own.is_first and " first" or "")
  end
  return pairs_to_store
end

local function plan_account(tx, own, later)
  if own.forgotten[1] then
    later("HDEL", own.key, own.forgotten)
    later("HDEL", own.previous_key, own.forgotten)
  end
  if not own.names[1] then
    return
  end
  plan_generation(tx, own)
  if own.ends then
    later("UNLINK", own.previous_key, {})
    later("RENAME", own.key, { own.previous_key })
  end
  later("HSET", own.key, stored_pairs(tx, own))
  if own.begins then
    later("PEXPIRE", own.key, { numbers.integer_text(generation_life_ms) })
  end
end

-- Plans the writes of what was forgotten and what is remembered: see commit.lua.
function idempotency.plan_writes(tx, later)
  for _, own in pairs(tx.memory or none) do
    plan_account(tx, own, later)
  end
end

return idempotency
