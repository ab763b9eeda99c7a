-- Whether a command can be carried out now, whatever it asks: it has not come too late, and memory
-- is not full.

local server = require("server/server")
local reject = require("values/reject")

local validity = {}

-- A refusal where a command comes too late, else nil.
function validity.lateness_refusal(tx, values)
  if values.valid_until_ms and tx.now_ms > values.valid_until_ms + 0 then
    return reject.new("TOO_LATE", "valid_until_ms has passed")
  end
  return nil
end

-- A refusal of what could add risk while the server's memory is full, else nil: see server.lua.
function validity.memory_refusal(tx)
  if server.is_memory_full(tx.now_ms) then
    local message = "the server's memory is full: only what takes risk off or keeps it is done"
    return reject.new("OUT_OF_MEMORY", message)
  end
  return nil
end

return validity
