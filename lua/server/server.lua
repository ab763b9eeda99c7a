-- The server process that the library runs in: which one it is, whether a key's hash slot stays
-- where it is, and whether its memory is full.
--
-- The first two facts are read once from INFO and kept: they are constants of the process. A Redis
-- user that may not use INFO learns nothing, and then nothing is kept.

local server = {}

local unknown = { run_id = false, is_cluster = true }
local facts

local function read_facts()
  local text = redis.pcall("INFO", "server")
  if type(text) ~= "string" then
    return unknown
  end
  local run_id, mode = text:match("run_id:(%w+)"), text:match("_mode:(%a+)")
  if not run_id or not mode then
    return unknown
  end
  facts = { run_id = run_id, is_cluster = mode == "cluster" }
  return facts
end

-- The id of the server process, which a restart and a failover change; false where INFO is not
-- allowed.
function server.run_id()
  return (facts or read_facts()).run_id
end

-- An error reply while the hash slot of a book is being moved to another node, else nil. Some keys
-- of the book are then on the other node: they cannot be read here, or look empty. Two keys that
-- never exist find out: the source of a move refuses them because they may be on the other node
-- already, the target because they may not have come yet.
function server.moving_error(book_key)
  if not (facts or read_facts()).is_cluster then
    return nil
  end
  local found = redis.pcall("EXISTS", book_key .. ":absent:1", book_key .. ":absent:2")
  if type(found) ~= "table" then
    return nil
  end
  if found.err:find("NOPERM", 1, true) or found.err:find("ACL", 1, true) then
    return redis.error_reply(found.err)
  end
  return redis.error_reply("TRYAGAIN the hash slot of the book is being moved to another node")
end

-- Redis refuses functions when its memory is full, all but those with the flag allow-oom: these
-- take risk off, or only keep it. Where such a function could also add risk it asks here, because
-- Redis no longer does. What INFO tells is kept for so long.
local memory_check_interval_ms = 100
local memory_state = { is_full = false, checked_ms = -memory_check_interval_ms }

local function read_is_memory_full()
  local text = redis.pcall("INFO", "memory")
  local used = type(text) == "string" and text:match("used_memory:(%d+)")
  local most = used and text:match("maxmemory:(%d+)")
  if not most or most + 0 == 0 then
    return false
  end
  local not_counted = text:match("mem_not_counted_for_evict:(%d+)") or 0
  return used - not_counted > most + 0
end

-- Whether the server uses more memory than its maxmemory allows.
function server.is_memory_full(now_ms)
  local age_ms = now_ms - memory_state.checked_ms
  if age_ms < 0 or age_ms >= memory_check_interval_ms then
    memory_state = { is_full = read_is_memory_full(), checked_ms = now_ms }
  end
  return memory_state.is_full
end

return server
