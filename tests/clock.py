"""Time that tests move: a shim around the library whose TIME is what a test has set.

The library under test is the real one; only `redis.call("TIME")` is answered from the key
`test:clock`, in milliseconds, for as long as there is one. The key is not a book's, so that nothing
else changes. Servers of a cluster would refuse to read it; use single ones.
"""

from typing import Any

CLOCK_KEY = "test:clock"

SHIM = """
local function server() return redis end
local function clock(...)
  if (...) ~= "TIME" then return nil end
  local now_ms = server().call("GET", "test:clock")
  if not now_ms then return nil end
  return { string.sub(now_ms, 1, -4), string.sub(now_ms, -3) .. "000" }
end
local redis = {
  register_function = redis.register_function,
  call = function(...) return clock(...) or server().call(...) end,
  pcall = function(...) return clock(...) or server().pcall(...) end,
  sha1hex = function(text) return server().sha1hex(text) end,
  error_reply = function(text) return server().error_reply(text) end,
  status_reply = function(text) return server().status_reply(text) end,
  log = function(...) return server().log(...) end,
  LOG_WARNING = 3,
  -- fakeredis has no users, and so nothing to check.
  acl_check_cmd = function(...)
    return not server().acl_check_cmd or server().acl_check_cmd(...)
  end,
}
"""


def shimmed(text: str) -> str:
    """The library's text with the shim around it."""
    shebang, _, rest = text.partition("\n")
    return f"{shebang}\n{SHIM}{rest}"


def set_clock(client: Any, now_ms: int) -> None:
    """From now on, and until it is set again, it is this time for the library."""
    client.set(CLOCK_KEY, now_ms)
