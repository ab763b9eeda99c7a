-- Whether Redis will accept a write: asked before the first write of a call, because nothing takes
-- back what was written before a refusal.
--
-- Redis refuses a single write of a function for two reasons: the Redis user has no right to the
-- command or the key, or the key holds another type. Everything else (memory, a read-only replica,
-- too few replicas, a failed save) it refuses before the function runs.

local acceptance = {}

-- Reads the length of a key of the type that a command writes.
local lengths = {
  HDEL = "HLEN",
  HSET = "HLEN",
  SADD = "SCARD",
  SREM = "SCARD",
  ZADD = "ZCARD",
  ZREM = "ZCARD",
  ZREMRANGEBYRANK = "ZCARD",
}

local function lacks_right(command)
  local needs = "the Redis user needs the right to " .. command .. " on the keys of the book"
  return redis.error_reply("NOPERM " .. needs)
end

-- An error reply where the caller's Redis user may not use this command on this key, else nil.
function acceptance.right_error(command, key)
  local is_allowed = redis.acl_check_cmd
  if not is_allowed or is_allowed(command, key, key) then
    return nil
  end
  return lacks_right(command)
end

-- The same of a command that names no key.
function acceptance.keyless_right_error(command)
  local is_allowed = redis.acl_check_cmd
  if not is_allowed or is_allowed(command) then
    return nil
  end
  return lacks_right(command)
end

local function type_error(problem, key)
  if problem.err:find("WRONGTYPE", 1, true) then
    local text = "DAMAGED the key " .. key .. " has the type of another key: run verify_book"
    return redis.error_reply(text)
  end
  return redis.error_reply(problem.err)
end

-- An error reply where Redis would refuse this write, else nil. The types of keys in `checked` are
-- known; what is asked is added. Other commands than those above write keys that were read before.
-- The right is asked for in place: a call for it would cost as much as the question.
function acceptance.error(write, key, checked)
  local is_allowed = redis.acl_check_cmd
  if is_allowed and not is_allowed(write, key, key) then
    return lacks_right(write)
  end
  if checked[key] then
    return nil
  end
  checked[key] = true
  local command = lengths[write]
  local length = command and redis.pcall(command, key)
  return type(length) == "table" and type_error(length, key) or nil
end

return acceptance
