-- The rights that a Redis user needs in the functions, besides those to call them.
--
-- Redis asks for the right at each command that a function runs. `orderbook functions acl` prints
-- these lists (orderbook/engine/access.py reads them here), and a test compares them with what the
-- functions run.

local acceptance = require("server/acceptance")
local keys = require("values/keys")

local access = {}

access.reads = {
  "EXISTS",
  "HEXISTS",
  "HGET",
  "HGETALL",
  "HLEN",
  "HMGET",
  "SCARD",
  "SISMEMBER",
  "SMEMBERS",
  "SRANDMEMBER",
  "TYPE",
  "XRANGE",
  "XREAD",
  "XREVRANGE",
  "ZCARD",
  "ZRANGE",
  "ZRANGEBYSCORE",
  "ZREVRANGEBYSCORE",
  "ZSCORE",
}

access.writes = {
  "HDEL",
  "HSET",
  "PEXPIRE",
  "RENAME",
  "SADD",
  "SREM",
  "UNLINK",
  "XADD",
  "ZADD",
  "ZREM",
  "ZREMRANGEBYRANK",
}

-- Commands that name no key.
access.keyless = { "INFO", "TIME" }

-- Writes each key of a book, by the type of the key.
local writing_commands = { zset = "ZADD", stream = "XADD", hash = "HSET", set = "SADD" }

local function first_missing(commands, right_error, key)
  for i = 1, #commands do
    local refused = right_error(commands[i], key)
    if refused then
      return refused
    end
  end
  return nil
end

-- An error reply where the caller's Redis user lacks one of the rights that commands on a book
-- need, else nil.
function access.error(book_key)
  local refused = first_missing(access.keyless, acceptance.keyless_right_error)
    or first_missing(access.reads, acceptance.right_error, book_key)
    or first_missing(access.writes, acceptance.right_error, book_key)
  if refused then
    return refused
  end
  for key_type, names in pairs(keys.of_book(book_key)) do
    for i = 1, #names do
      refused = refused or acceptance.right_error(writing_commands[key_type], names[i])
    end
  end
  return refused
end

return access
