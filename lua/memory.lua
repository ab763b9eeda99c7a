-- What makes a command safe to send twice: the replies of commands that came with a
-- client_order_id.
--
-- A remembered reply is one hash field: name -> content, newline, reply. The content is the
-- command as it was sent, so a retry is recognised word for word and anything else under the same
-- name is refused.
--
-- Memory is bounded by two generations. Replies go into the current hash; when it has taken
-- `generation_length` of them it becomes the previous one, and the one before that is dropped
-- whole. So at least the last `generation_length` commands are remembered, at most twice as many,
-- and nothing ever has to be expired one by one.

local fields = require("fields")
local keys = require("keys")
local reject = require("reject")

local memory = {}

memory.generation_length = 100000

function memory.new()
  return { replies = {}, names = {}, forgotten = {} }
end

-- Under which name a command's own id is kept.
local function own_name(account, client_order_id)
  return account .. " " .. client_order_id
end

-- Under which name the last amend or cancel of the order so named is kept.
local function target_name(account, client_order_id)
  return account .. " " .. client_order_id .. " last"
end

local function stored(b, name)
  return redis.call("HGET", keys.replies(b.key), name)
    or redis.call("HGET", keys.replies_previous(b.key), name)
end

-- The reply remembered under a name and whether it answered this content; nil where there is none.
local function recall(b, name, content)
  local text = b.memory.replies[name]
  if text == nil then
    text = stored(b, name)
    b.memory.replies[name] = text
  end
  if not text then
    return nil, false
  end
  local split = string.find(text, "\n", 1, true)
  return string.sub(text, split + 1), string.sub(text, 1, split - 1) == content
end

local function keep(b, name, content, reply)
  b.memory.replies[name] = content .. "\n" .. reply
  b.memory.names[#b.memory.names + 1] = name
end

-- What was remembered under a name answers nobody any more.
local function forget(b, name)
  b.memory.replies[name] = false
  b.memory.forgotten[#b.memory.forgotten + 1] = name
end

-- ---- of a command

local own_id_methods = { place_order = true, place_order_list = true, replace_order = true }

-- Whether a command's client_order_id is its own: other content is then refused. Otherwise it
-- names the order that the command is about.
local function owns_id(method_name, values)
  return own_id_methods[method_name] or values.order_id ~= nil
end

function memory.memo_name(method_name, values)
  local name = owns_id(method_name, values) and own_name or target_name
  return name(values.account, values.client_order_id)
end

-- Where the reply to a command with a client_order_id is remembered: { name, content, owned }.
function memory.memo(method_name, values, schema)
  return {
    name = memory.memo_name(method_name, values),
    content = fields.content(method_name, values, schema),
    owned = owns_id(method_name, values),
  }
end

-- Whether a command with this id of its own is remembered.
function memory.is_taken(b, account, client_order_id)
  return recall(b, own_name(account, client_order_id), "") ~= nil
end

-- The first reply to a command that was sent before, or a refusal where its id has another meaning.
-- nil for a command that is to be carried out.
function memory.answer_again(b, memo_record)
  local reply, same = recall(b, memo_record.name, memo_record.content)
  if reply and same then
    return reply
  end
  if reply and memo_record.owned then
    return nil, reject.new("DUPLICATE_CLIENT_ORDER_ID", "client_order_id was used before")
  end
  return nil
end

function memory.remember(b, memo_record, reply)
  if memo_record then
    keep(b, memo_record.name, memo_record.content, reply)
  end
  return reply
end

-- Remembers the reply to an amend or cancel. One that was sent by order_id ends what is
-- remembered of the order's last amend by name: repeating that one now asks for something new.
function memory.remember_change(b, o, values, memo_record, reply)
  if not memo_record and not o.client_order_id then
    return reply
  end
  if values.order_id and o.client_order_id then
    forget(b, target_name(o.account, o.client_order_id))
  end
  return memory.remember(b, memo_record, reply)
end

-- The name of an order that is gone passes to a new one: what is remembered of the old one's last
-- amend or cancel by name is no answer about the new.
function memory.name_passes(b, account, client_order_id)
  forget(b, target_name(account, client_order_id))
end

-- ---- a call as a whole

-- Reads the replies to these names in two calls.
function memory.prefetch(b, names)
  local current = redis.call("HMGET", keys.replies(b.key), unpack(names))
  local previous = redis.call("HMGET", keys.replies_previous(b.key), unpack(names))
  for i, name in ipairs(names) do
    b.memory.replies[name] = current[i] or previous[i]
  end
end

-- Whether the current generation is full and must give way before this call's replies are written.
function memory.rotation(b)
  local record = b.instrument
  local full = #b.memory.names > 0 and record.remembered_replies >= memory.generation_length
  if full then
    record.remembered_replies = 0
  end
  record.remembered_replies = record.remembered_replies + #b.memory.names
  return full and redis.call("EXISTS", keys.replies(b.key)) == 1
end

-- The writes of what was forgotten and what is remembered: see writing.lua.
function memory.each_write(b, rotation, run)
  local forgotten, current = b.memory.forgotten, keys.replies(b.key)
  if forgotten[1] then
    run("HDEL", current, forgotten)
    run("HDEL", keys.replies_previous(b.key), forgotten)
  end
  if rotation then
    run("UNLINK", keys.replies_previous(b.key), {})
    run("RENAME", current, { keys.replies_previous(b.key) })
  end
  local texts = {}
  for _, name in ipairs(b.memory.names) do
    local text = b.memory.replies[name]
    if text then
      texts[#texts + 1] = name
      texts[#texts + 1] = text
    end
  end
  if texts[1] then
    run("HSET", current, texts)
  end
end

return memory
