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

local function any(_)
  return true
end

local boolean = { ["true"] = true, ["false"] = true }

-- The form of every field of every command: a set of texts, or a function text -> true or nil. A
-- schema below picks from these by name.
local forms = {
  account = account,
  client_order_id = client_order_id,
  order_id = numbers.positive_integer,
  after = numbers.positive_integer,
  side = { buy = true, sell = true },
  order_type = { limit = true, market = true },
  time_in_force = { gtc = true, ioc = true, fok = true },
  post_only = boolean,
  price = any,
  quantity = any,
  remaining_quantity = any,
  run_id = run_id,
  depth = function(text)
    return text == "full" or numbers.positive_integer(text)
  end,
  limit = numbers.positive_integer,
  tick_size = any,
  lot_size = any,
  min_quantity = any,
  max_quantity = any,
  status = { trading = true, halted = true, cancel_only = true },
  events_length_max = numbers.positive_integer,
  trades_length_max = numbers.positive_integer,
  book_length_max = numbers.positive_integer,
}

-- A schema: which fields a command takes and which it cannot do without, in the order they are
-- reported and compared.
function fields.schema(names, required)
  local schema = { names = names, required = required, forms = {} }
  for i = 1, #names do
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

-- Whether a value has its field's form.
local function fits(form, value)
  if type(form) == "table" then
    return form[value]
  end
  return form(value)
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

local function invalid(name)
  return reject.with("INVALID_VALUE", name .. " has a value that is not allowed")
end

local function unknown(name)
  return reject.with("UNKNOWN_FIELD", "unknown field" .. quoted(name))
end

-- From FCALL arguments: field, value, field, value …
function fields.from_arguments(arguments, schema)
  if #arguments % 2 ~= 0 then
    return reject.with("MALFORMED_COMMAND", "arguments must be field and value pairs")
  end
  local values = {}
  for i = 1, #arguments, 2 do
    local name, value = arguments[i], arguments[i + 1]
    local form = schema.forms[name]
    if not form then
      return unknown(name)
    end
    if values[name] ~= nil then
      return reject.with("DUPLICATE_FIELD", "field " .. name .. " is given twice")
    end
    if not fits(form, value) then
      return invalid(name)
    end
    values[name] = value
  end
  local refusal = missing_refusal(values, schema)
  return not refusal and values or nil, refusal
end

-- From a decoded JSON object, its method taken out. Values are text; post_only may be a JSON
-- boolean.
function fields.from_object(object, schema)
  local form_of = schema.forms
  for name, value in pairs(object) do
    local form = form_of[name]
    if not form then
      return unknown(name)
    end
    if name == "post_only" and type(value) == "boolean" then
      object[name] = tostring(value)
    elseif type(value) ~= "string" then
      return reject.with("WRONG_TYPE", "field " .. name .. " must be text")
    elseif not fits(form, value) then
      return invalid(name)
    end
  end
  local refusal = missing_refusal(object, schema)
  return not refusal and object or nil, refusal
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
