-- Which fields an order type needs, and which go together.

local numbers = require("values/numbers")
local reject = require("values/reject")

local order_types = {}

-- What an order type needs and what it may have besides; of its own, that is. Those that need no
-- price do not rest.
local types = {
  limit = { needs = { "price" }, may = { display_quantity = true, post_only = true } },
  market = { needs = {}, may = { protection = true, quote_quantity = true } },
  stop = { needs = { "stop_price" }, may = { protection = true } },
  stop_limit = { needs = { "price", "stop_price" }, may = {} },
  take_profit = { needs = { "stop_price" }, may = { protection = true } },
  take_profit_limit = { needs = { "price", "stop_price" }, may = {} },
  trailing_stop = { needs = { "trailing_offset" }, may = { protection = true } },
}
local fields_of_types = {
  "price",
  "stop_price",
  "trailing_offset",
  "display_quantity",
  "post_only",
  "protection",
  "quote_quantity",
}

-- The time in force asked for, or the one an order of this type has.
function order_types.time_in_force(values)
  local is_priced = types[values.order_type].needs[1] == "price"
  return values.time_in_force or (is_priced and "gtc" or "ioc")
end

local function missing_refusal(values, kind, force)
  for _, name in ipairs(kind.needs) do
    if not values[name] then
      return reject.new("MISSING_FIELD", "missing field " .. name)
    end
  end
  if force == "gtd" and not values.expire_time_ms then
    return reject.new("MISSING_FIELD", "missing field expire_time_ms")
  end
  if not values.quantity and not values.quote_quantity then
    return reject.new("MISSING_FIELD", "missing field quantity")
  end
  return nil
end

-- Why fields and time in force do not go together, or nil.
local function force_problem(values, kind, force)
  local rests = force == "gtc" or force == "gtd"
  if rests and kind.needs[1] ~= "price" then
    return "an order without a price cannot be gtc or gtd"
  end
  if not rests and values.post_only == "true" then
    return "post_only goes with limit gtc and gtd orders only"
  end
  if not rests and values.display_quantity then
    return "display_quantity goes with limit gtc and gtd orders only"
  end
  if values.expire_time_ms and force ~= "gtd" then
    return "expire_time_ms goes with gtd orders only"
  end
  if values.quote_quantity and (values.quantity or force == "fok") then
    return "quote_quantity goes with market ioc orders without a quantity only"
  end
  return nil
end

-- Whether a command is of the kind that nearly all are, whose fields go together.
function order_types.is_simple_limit_order(values)
  return values.order_type == "limit"
    and not values.rare
    and not values.post_only
    and values.price
    and values.quantity
    and values.time_in_force ~= "gtd"
end

-- A refusal where an order's fields do not go together, else nil. What is missing comes before what
-- is too much.
function order_types.combination_refusal(values)
  if values.protection and numbers.percent(values.protection) == 0 then
    return reject.new("INVALID_VALUE", "protection must be above zero")
  end
  local kind, force = types[values.order_type], order_types.time_in_force(values)
  local refusal = missing_refusal(values, kind, force)
  if refusal then
    return refusal
  end
  for _, name in ipairs(fields_of_types) do
    local given = values[name] and not (name == "post_only" and values[name] == "false")
    local fits = kind.may[name] or kind.needs[1] == name or kind.needs[2] == name
    if given and not fits then
      local article = values.order_type .. " order has no " .. name
      return reject.new("FIELD_NOT_ALLOWED", "a " .. article)
    end
  end
  local problem = force_problem(values, kind, force)
  if problem then
    return reject.new("FIELD_NOT_ALLOWED", problem)
  end
  return nil
end

-- Whether an order of this type can be open at the end of its command. What cannot takes nobody's
-- place, so that an account with open_orders_max of them can still trade itself flat. A paused
-- order is open until the next call; it is not counted as one that stays.
function order_types.can_stay_open(order_type, time_in_force)
  local waits = order_type ~= "limit" and order_type ~= "market"
  return waits or time_in_force == "gtc" or time_in_force == "gtd"
end

return order_types
