-- A command's fields: from FCALL's flat arguments or from a JSON object to a table of texts whose
-- names are known, whose required ones are present and whose values have the right form.
--
-- Decimal numbers are not checked here: what makes a good price or quantity is the instrument's to
-- say.

local hints = require("values/hints")
local numbers = require("values/numbers")
local reject = require("values/reject")

local fields = {}

local function account(text)
  return #text <= 64 and text:find("^[%w_%.@%-]+$")
end

local function client_order_id(text)
  return #text <= 64 and text:find("^[%w_%.@:/%-]+$")
end

local function run_id(text)
  return #text <= 64 and string.find(text, "^%w+$")
end

-- The fields with a set of values.
local choices = {
  side = { "buy", "sell" },
  order_type = {
    "limit",
    "market",
    "stop",
    "stop_limit",
    "take_profit",
    "take_profit_limit",
    "trailing_stop",
  },
  time_in_force = { "gtc", "ioc", "fok", "gtd" },
  post_only = { "true", "false" },
  validate_only = { "true", "false" },
  self_trade_prevention = { "none", "cancel_taker", "cancel_maker", "cancel_both", "decrement" },
  interval = { "1m", "5m", "15m", "1h", "1d" },
  list_type = { "oco", "oto", "bracket" },
  status = { "trading", "halted", "cancel_only", "post_only", "auction" },
  breaker_status = { "halted", "auction" },
  on_failure = { "stop", "continue" },
}

local list_length_max = 16384

-- A length of time, in milliseconds: from a second to a day.
local function duration_ms(text)
  local count = numbers.positive_integer(text)
  return count and count >= 1000 and count <= 86400000
end

local function percent(text)
  return numbers.percent(text)
end

-- A distance in price units, or a percentage with its sign: above 0 and at most 50.
local trailing_parts_max = 500000

local function trailing_offset(text)
  local share = text:match("^(.*)%%$")
  if not share then
    return true
  end
  local parts = numbers.percent(share)
  return parts and parts > 0 and parts <= trailing_parts_max
end

-- How long a timer runs, in milliseconds; 0 stops it.
local timeout_min_ms = 1000
local timeout_max_ms = 86400000

local function timeout_ms(text)
  local is_time = numbers.positive_integer(text)
  return text == "0" or (is_time and text + 0 >= timeout_min_ms and text + 0 <= timeout_max_ms)
end

local function open_orders_max(text)
  return text == "0" or numbers.positive_integer(text)
end

-- The fields with a form: a function text -> true or nil, or true for any text.
local forms = {
  account = account,
  client_order_id = client_order_id,
  order_id = numbers.positive_integer,
  cancel_order_id = numbers.positive_integer,
  cancel_client_order_id = client_order_id,
  quotes = true,
  after = numbers.positive_integer,
  before = numbers.positive_integer,
  price = true,
  quantity = true,
  remaining_quantity = true,
  display_quantity = true,
  quote_quantity = true,
  stop_price = true,
  trailing_offset = trailing_offset,
  orders = function(text)
    return #text <= list_length_max
  end,
  expire_time_ms = numbers.positive_integer,
  valid_until_ms = numbers.positive_integer,
  stp_group = account,
  session = account,
  timeout_ms = timeout_ms,
  run_id = run_id,
  depth = function(text)
    return text == "full" or numbers.positive_integer(text)
  end,
  limit = numbers.positive_integer,
  tick_size = true,
  lot_size = true,
  min_quantity = true,
  max_quantity = true,
  min_notional = true,
  price_band = percent,
  limit_percent = percent,
  window_ms = duration_ms,
  breaker_duration_ms = function(text)
    return text == "0" or duration_ms(text)
  end,
  protection = percent,
  open_orders_max = open_orders_max,
  iceberg_parts_max = numbers.positive_integer,
  events_length_max = numbers.positive_integer,
  trades_length_max = numbers.positive_integer,
  book_length_max = numbers.positive_integer,
}

local account_rule = "1 to 64 characters of A-Z a-z 0-9 _ . @ -"
local client_order_id_rule = "1 to 64 characters of A-Z a-z 0-9 _ . @ : / -"
local count_rule = "a whole number from 1 to 9007199254740991"
local percent_rule = "a percentage from 0 to 100 with at most 4 decimals"

-- What is said of the fields with a form. Where the rule begins with `a `, the form is a number's.
local rules = {
  account = account_rule,
  client_order_id = client_order_id_rule,
  order_id = count_rule,
  cancel_order_id = count_rule,
  cancel_client_order_id = client_order_id_rule,
  after = count_rule,
  before = count_rule,
  trailing_offset = "in price units, as 2.5, or a percentage above 0 and at most 50, as 1.5%",
  orders = "JSON of at most 16384 bytes",
  expire_time_ms = count_rule,
  valid_until_ms = count_rule,
  stp_group = account_rule,
  session = account_rule,
  timeout_ms = "a whole number from 1000 to 86400000, or 0",
  run_id = "1 to 64 characters of A-Z a-z 0-9",
  depth = "a whole number above 0, or full",
  limit = count_rule,
  price_band = percent_rule,
  limit_percent = percent_rule,
  window_ms = "a whole number from 1000 to 86400000",
  breaker_duration_ms = "a whole number from 1000 to 86400000, or 0",
  protection = percent_rule,
  open_orders_max = "a whole number from 0 on",
  iceberg_parts_max = "a whole number from 1 on",
  events_length_max = count_rule,
  trades_length_max = count_rule,
  book_length_max = count_rule,
}

-- What is said of a value that has not the form of its field.
local function form_text(name, value)
  local rule, nearest = rules[name], nil
  if rule:sub(1, 2) == "a " then
    local number = value:gsub("%%$", "")
    number = hints.nearest_number(number) or number
    nearest = forms[name](number) and number or nil
  end
  return hints.with_nearest(name .. " must be " .. rule, nearest)
end

-- What a field with a set of values takes in a JSON object with each of them; false for others.
local function choice_lengths(name)
  local values, lengths = choices[name], {}
  if not values then
    return false
  end
  for i = 1, #values do
    lengths[values[i]] = #name + #values[i] + 6
  end
  return lengths
end

-- The same with a JSON boolean, where the field may be one.
local function boolean_length(lengths, value)
  if type(value) ~= "boolean" or not lengths["true"] then
    return nil
  end
  return lengths[tostring(value)] - 2
end

-- A schema: which fields a command takes and which it cannot do without, in the order they are
-- reported and compared. The first `common_count` are those of common commands; a command with
-- another one is marked `rare`, so that what is seldom used costs nobody else a look. For
-- plain_length it also has of each field, by its place in that order: `length`, what it takes in a
-- JSON object besides its value; `choice_lengths`, what it takes with each of its values, false
-- where they are not told; `form`, false where any text will do.
function fields.schema(names, required, common_count)
  local schema = { names = names, required = required, choices = {}, forms = {}, is_rare = {} }
  schema.common_count = common_count or #names
  schema.length, schema.choice_lengths, schema.form, schema.is_required = {}, {}, {}, {}
  for i = 1, #names do
    local name = names[i]
    schema.length[i] = #name + 6
    schema.choice_lengths[i] = choice_lengths(name)
    schema.choices[name] = schema.choice_lengths[i] or nil
    schema.forms[name] = forms[name]
    schema.is_rare[name] = i > schema.common_count
    schema.form[i] = forms[name] ~= true and forms[name] or false
    schema.is_required[i] = false
    for j = 1, #required do
      schema.is_required[i] = schema.is_required[i] or required[j] == name
    end
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
    return reject.new("WRONG_TYPE", "field " .. name .. " must be text, in quotes")
  end
  local fits = choice and choice[value] or form == true or (form and form(value))
  if not fits then
    local text = choice and hints.choice(name, choices[name], value) or form_text(name, value)
    return reject.new("INVALID_VALUE", text)
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
    if schema.is_rare[name] then
      values.rare = true
    end
    values[name] = value
  end
  local refusal = missing_refusal(values, schema)
  return not refusal and values or nil, refusal
end

-- How long the text of a decoded JSON object with its method is where it says what the schema asks
-- for and nothing else: no unknown or repeated field, no escape, no space, no byte after a zero
-- byte, for each would make the text longer. nil where a field does not fit or is missing. Commands
-- come by the million and nearly all are plain: one look at their length spares them a search of
-- their text. Only the first `count` fields of the schema are looked at. A JSON boolean becomes
-- text.
function fields.plain_length(object, schema, count)
  local names, lengths, choices_of = schema.names, schema.length, schema.choice_lengths
  local forms_of, is_required = schema.form, schema.is_required
  local total, type_of = #object.method + 13, type
  for i = 1, count do
    local value = object[names[i]]
    if value ~= nil then
      local length_of = choices_of[i]
      if length_of then
        local length = length_of[value]
        if not length then
          length = boolean_length(length_of, value)
          if not length then
            return nil
          end
          object[names[i]] = tostring(value)
        end
        total = total + length
      else
        local form = forms_of[i]
        if type_of(value) ~= "string" or (form and not form(value)) then
          return nil
        end
        total = total + lengths[i] + #value
      end
    elseif is_required[i] then
      return nil
    end
  end
  return total
end

-- How many names with a value a JSON object's text has. Its decoder keeps only the last of equal
-- ones.
function fields.names_count(text)
  local unescaped = string.gsub(text, "\\.", "")
  local count = 0
  for colon in string.gmatch(unescaped, '"[^"]*"%s*(:?)') do
    count = count + #colon
  end
  return count
end

-- Whether a text has the form of this field, or is one of its values.
function fields.fits(name, text)
  if type(text) ~= "string" then
    return false
  end
  local form = forms[name]
  if form then
    return form == true or form(text)
  end
  for _, choice in ipairs(choices[name]) do
    if choice == text then
      return true
    end
  end
  return false
end

-- A value as text, where the field may be a JSON boolean.
local function without_boolean(schema, name, value)
  local choice = schema.choices[name]
  if type(value) == "boolean" and choice and choice["true"] then
    return tostring(value)
  end
  return value
end

-- From a decoded JSON object with its method and the text it was decoded from. Values are text;
-- where true and false are allowed, JSON booleans are too.
function fields.from_object(object, schema, text)
  local count, values = 0, { rare = true }
  for name, value in pairs(object) do
    count = count + 1
    values[name] = without_boolean(schema, name, value)
    local refusal = name ~= "method" and value_refusal(schema, name, values[name])
    if refusal then
      return nil, refusal
    end
  end
  if count < fields.names_count(text) then
    return reject.with("DUPLICATE_FIELD", "a field is given twice")
  end
  local refusal = missing_refusal(values, schema)
  return not refusal and values or nil, refusal
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

-- Who sent a command, under which id and until when: a retry comes by another connection, and so in
-- another session, and later.
local is_envelope =
  { account = true, client_order_id = true, session = true, valid_until_ms = true }

local is_decimal = {
  price = true,
  quantity = true,
  remaining_quantity = true,
  display_quantity = true,
  quote_quantity = true,
  stop_price = true,
  trailing_offset = true,
  protection = true,
}

local zero, percent_sign = 48, 37

-- Decimal text, maybe of a percentage, without zeros at the end of its fraction.
local function shortest_decimal(text)
  local last = text:byte(-1)
  if (last ~= zero and last ~= percent_sign) or not text:find(".", 1, true) then
    return text
  end
  local number, unit = text:match("^(%d+%.%d-)0*(%%?)$")
  return number and number:gsub("%.$", "") .. unit or text
end

-- What a command means, as text in which a retry is recognized: the method, and every field but
-- those of its envelope. Decimals are equal by value, and `false` is as if the field were absent.
function fields.content(method, values, schema)
  local names, content = schema.names, method
  for i = 1, values.rare and #names or schema.common_count do
    local name = names[i]
    local value = values[name]
    if value and value ~= "false" and not is_envelope[name] then
      value = is_decimal[name] and shortest_decimal(value) or value
      content = content .. " " .. name .. " " .. value
    end
  end
  return content
end

return fields
