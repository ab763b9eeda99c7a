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

local keys = require("keys")

local memory = {}

memory.generation_length = 100000

function memory.new()
  return { replies = {}, names = {}, forgotten = {} }
end

-- Under which name a command's own id is kept.
function memory.own_name(account, client_order_id)
  return account .. " " .. client_order_id
end

-- Under which name the last amend or cancel of the order so named is kept.
function memory.target_name(account, client_order_id)
  return account .. " " .. client_order_id .. " last"
end

local function stored(b, name)
  return redis.call("HGET", keys.replies(b.key), name)
    or redis.call("HGET", keys.replies_previous(b.key), name)
end

-- The reply remembered under a name and whether it answered this content; nil where there is none.
function memory.recall(b, name, content)
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

function memory.remember(b, name, content, reply)
  b.memory.replies[name] = content .. "\n" .. reply
  b.memory.names[#b.memory.names + 1] = name
end

-- What was remembered under a name answers nobody any more.
function memory.forget(b, name)
  b.memory.replies[name] = false
  b.memory.forgotten[#b.memory.forgotten + 1] = name
end

-- Reads the replies to these names in two calls.
function memory.prefetch(b, names)
  if #names == 0 then
    return
  end
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

-- Writes what was forgotten and what is remembered.
function memory.write(b, rotation)
  if #b.memory.forgotten > 0 then
    redis.call("HDEL", keys.replies(b.key), unpack(b.memory.forgotten))
    redis.call("HDEL", keys.replies_previous(b.key), unpack(b.memory.forgotten))
  end
  if rotation then
    redis.call("UNLINK", keys.replies_previous(b.key))
    redis.call("RENAME", keys.replies(b.key), keys.replies_previous(b.key))
  end
  local texts = {}
  for _, name in ipairs(b.memory.names) do
    local text = b.memory.replies[name]
    if text then
      texts[#texts + 1] = name
      texts[#texts + 1] = text
    end
  end
  if #texts > 0 then
    redis.call("HSET", keys.replies(b.key), unpack(texts))
  end
end

return memory
