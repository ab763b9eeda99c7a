-- A command's fields: from FCALL's flat arguments or from a JSON object to a table of texts whose
-- names are known, whose required ones are present and whose values have the right form.
--
-- Decimal numbers are not checked here: what makes a good price or quantity is the instrument's to
-- say.

local numbers = require("numbers")
local reject = require("reject")

local fields = {}

local function account(text)
  return #text <= 64 and string.find(text, "^[%w_%.@%-]+$")
end

local function client_order_id(text)
  return #text <= 64 and string.find(text, "^[%w_%.@:/%-]+$")
end

local function run_id(text)
  return #text <= 64 and string.find(text, "^%w+$")
end

-- The fields with a set of values.
local choices = {
  side = { buy = true, sell = true },
  order_type = { limit = true, market = true },
  time_in_force = { gtc = true, ioc = true, fok = true },
  post_only = { ["true"] = true, ["false"] = true },
  status = { trading = true, halted = true, cancel_only = true },
}

-- The fields with a form: a function text -> true or nil, or true for any text.
local forms = {
  account = account,
  client_order_id = client_order_id,
  order_id = numbers.positive_integer,
  after = numbers.positive_integer,
  price = true,
  quantity = true,
  remaining_quantity = true,
  run_id = run_id,
  depth = function(text)
    return text == "full" or numbers.positive_integer(text)
  end,
  limit = numbers.positive_integer,
  tick_size = true,
  lot_size = true,
  min_quantity = true,
  max_quantity = true,
  events_length_max = numbers.positive_integer,
  trades_length_max = numbers.positive_integer,
  book_length_max = numbers.positive_integer,
}

-- A schema: which fields a command takes and which it cannot do without, in the order they are
-- reported and compared.
function fields.schema(names, required)
  local schema = { names = names, required = required, choices = {}, forms = {} }
  for i = 1, #names do
    schema.choices[names[i]] = choices[names[i]]
    schema.forms[names[i]] = forms[names[i]]
  end
  return schema
end

-- Names go into messages only when they are plain words.
local function quoted(name)
  if type(name) == "string" and #name <= 32 and string.find(name, "^[%w_]+$") then
    return " " .. name
  end
  return ""
end

local function missing_refusal(values, schema)
  local required = schema.required
  for i = 1, #required do
    if values[required[i]] == nil then
      return reject.new("MISSING_FIELD", "missing field " .. required[i])
    end
  end
  return nil
end

-- A refusal where a value does not belong to this field of the command, else nil.
local function value_refusal(schema, name, value)
  local choice, form = schema.choices[name], schema.forms[name]
  if not choice and not form then
    return reject.new("UNKNOWN_FIELD", "unknown field" .. quoted(name))
  end
  if type(value) ~= "string" then
    return reject.new("WRONG_TYPE", "field " .. name .. " must be text")
  end
  local fits = choice and choice[value] or form == true or (form and form(value))
  if not fits then
    return reject.new("INVALID_VALUE", name .. " has a value that is not allowed")
  end
  return nil
end

-- From FCALL arguments: field, value, field, value …
function fields.from_arguments(arguments, schema)
  if #arguments % 2 ~= 0 then
    return reject.with("MALFORMED_COMMAND", "arguments must be field and value pairs")
  end
  local values = {}
  for i = 1, #arguments, 2 do
    local name, value = arguments[i], arguments[i + 1]
    if values[name] ~= nil then
      return reject.with("DUPLICATE_FIELD", "field " .. name .. " is given twice")
    end
    local refusal = value_refusal(schema, name, value)
    if refusal then
      return nil, refusal
    end
    values[name] = value
  end
  local refusal = missing_refusal(values, schema)
  return not refusal and values or nil, refusal
end

-- From a decoded JSON object, its method taken out, whose text had fields_count fields. Values are
-- text; post_only may be a JSON boolean.
function fields.from_object(object, schema, fields_count)
  if type(object.post_only) == "boolean" then
    object.post_only = tostring(object.post_only)
  end
  local count = 0
  for name, value in pairs(object) do
    count = count + 1
    local choice = schema.choices[name]
    if not (choice and choice[value]) then
      local refusal = value_refusal(schema, name, value)
      if refusal then
        return nil, refusal
      end
    end
  end
  if count < fields_count then
    return reject.with("DUPLICATE_FIELD", "a field is given twice")
  end
  local refusal = missing_refusal(object, schema)
  return not refusal and object or nil, refusal
end

-- How many names with a value a JSON object's text has. Its decoder keeps only the last of equal
-- ones.
function fields.count(text)
  local count, position = 0, 0
  repeat
    position = string.find(text, '"%s*:', position + 1)
    count = count + 1
  until not position
  return count - 1
end

-- The client_order_id to echo in a refusal: only when it has the right form.
function fields.echo(values)
  local text = values.client_order_id
  if type(text) == "string" and client_order_id(text) then
    return text
  end
  return nil
end

-- The same from FCALL arguments, however malformed the rest of them is.
function fields.echo_argument(arguments)
  for i = 1, #arguments - 1, 2 do
    if arguments[i] == "client_order_id" then
      return fields.echo({ client_order_id = arguments[i + 1] })
    end
  end
  return nil
end

-- What a retry must repeat exactly: the method and every field but who sent it under which id.
function fields.content(method, values, schema)
  local parts = { method }
  for _, name in ipairs(schema.names) do
    if name ~= "account" and name ~= "client_order_id" then
      parts[#parts + 1] = values[name] or "-"
    end
  end
  return table.concat(parts, " ")
end

return fields
