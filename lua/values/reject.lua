-- A refusal: why a command was not carried out, as a value and as the reply the caller gets.
--
-- Refusals are results, never Lua errors: functions return `nil, reject.new(CODE, message)` and the
-- caller passes it up. Messages name fields and rules, never the caller's input, so that no
-- byte a client sent (a quote, broken UTF-8) can damage the JSON of the reply. The nearest right
-- form of an input is made of harmless characters alone: see hints.lua.

local reject = {}

function reject.new(code, message)
  return { code = code, message = message }
end

-- For tail calls in validators: no value, and the refusal.
function reject.with(code, message)
  return nil, { code = code, message = message }
end

-- Reply text. client_order_id must have been validated, or be nil.
function reject.json(refusal, client_order_id)
  local text = '{"status":"rejected","code":"'
    .. refusal.code
    .. '","message":"'
    .. refusal.message
    .. '"'
  if client_order_id then
    text = text .. ',"client_order_id":"' .. client_order_id .. '"'
  end
  return text .. "}"
end

return reject
