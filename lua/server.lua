-- The server process that the library runs in: which one it is, and whether a key's hash slot stays
-- where it is.
--
-- Both facts are read once from INFO and kept: they are constants of the process. A Redis user that
-- may not use INFO learns nothing, and then nothing is kept.

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

return server
