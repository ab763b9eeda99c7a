-- Decimal text in, integers inside, decimal text out.
--
-- A price is a whole number of ticks and a quantity a whole number of lots; no fraction ever enters
-- the engine. Lua's only number is the double, exact for integers up to 2^53 - 1, so that is the
-- limit of what is parsed here. Lua would read `0x10`, `1e5` and ` 1` as numbers and write 1e15 as
-- `1e+15`; therefore text is taken in by pattern and put out with `%d`. Figures made of prices and
-- quantities may be larger: see decimal.lua.

local decimal = require("values/decimal")

local numbers = {}

numbers.exact_max = decimal.exact_max
numbers.decimals_max = 15

-- An exact non-negative integer from digits, or nil when it is beyond exact_max.
local function exact(digits)
  local number = tonumber(digits)
  if number > numbers.exact_max then
    return nil
  end
  return number
end

-- Reads a step: see numbers.step.
local function read_step(text)
  local whole, fraction = decimal.split(text)
  if not whole then
    return nil
  end
  fraction = string.gsub(fraction, "0+$", "")
  local size = #fraction <= numbers.decimals_max and exact(whole .. fraction)
  if not size or size == 0 then
    return nil
  end
  local canonical = #fraction > 0 and whole .. "." .. fraction or whole
  local is_unit = fraction == "" and size == 1
  return { decimals = #fraction, size = size, text = canonical, is_unit = is_unit }
end

-- Steps read before. Every call needs two, and a text always gives the same step, so this is no
-- state; it is emptied before it grows large.
local steps_known_max = 1000
local steps_known, steps_known_count = {}, 0

-- Step: what tick_size and lot_size are read into. A step of 0.05 has 2 decimals and size 5: text
-- is first scaled by 10^decimals and must then be a multiple of size. Returns { decimals, size,
-- text, is_unit (whether a number of such steps has the same digits as its decimal text) }, or nil
-- where the text is no positive decimal.
function numbers.step(text)
  local step = steps_known[text]
  if step then
    return step
  end
  step = read_step(text)
  if steps_known_count == steps_known_max then
    steps_known, steps_known_count = {}, 0
  end
  if step then
    steps_known[text] = step
    steps_known_count = steps_known_count + 1
  end
  return step
end

-- Decimal text as a whole number of steps; where it is the text that numbers.text would write, nil
-- and true follow. On failure nil and "malformed" (not a number the engine can hold) or "off_step"
-- (a number between two steps).
function numbers.parse(text, step)
  if step.is_unit and #text < 16 and text:find("^[1-9]%d*$") then
    return text + 0, nil, true
  end
  local whole, fraction = decimal.split(text)
  if not whole then
    return nil, "malformed"
  end
  local canonical = fraction == "" or fraction:byte(-1) ~= 48
  local missing = step.decimals - #fraction
  if missing > 0 then
    fraction = fraction .. string.rep("0", missing)
  elseif missing < 0 then
    if string.find(fraction, "[^0]", step.decimals + 1) then
      return nil, "off_step"
    end
    fraction = string.sub(fraction, 1, step.decimals)
  end
  local scaled = exact(whole .. fraction)
  if not scaled then
    return nil, "malformed"
  end
  if step.size == 1 then
    return scaled, nil, canonical
  end
  if scaled % step.size ~= 0 then
    return nil, "off_step"
  end
  return scaled / step.size, nil, canonical
end

-- An exact integer as plain digits. `%d` is exact for every integer a double can hold, and several
-- times quicker than the formats for fractions, Lua's own conversion among them.
function numbers.integer_text(number)
  return ("%d"):format(number)
end

-- A whole number of steps, or a natural of them, as the shortest decimal text: 100.5, not 100.50.
-- What was parsed is within numbers.steps_max; a sum may be beyond it.
function numbers.text(count, step)
  local scaled = type(count) == "number" and count * step.size
  if not scaled or scaled > decimal.exact_max then
    return decimal.text(decimal.multiply(count, step.size), step.decimals)
  end
  local decimals = step.decimals
  if decimals == 0 then
    return numbers.integer_text(scaled)
  end
  local digits = string.format("%0" .. (decimals + 1) .. "d", scaled)
  local fraction = string.gsub(string.sub(digits, -decimals), "0+$", "")
  local whole = string.sub(digits, 1, -decimals - 1)
  if fraction == "" then
    return whole
  end
  return whole .. "." .. fraction
end

-- Percent text as parts of a million: 2.5 is 25,000. nil where it is no decimal text with at most 4
-- decimals, or above 100.
local percent_step = { decimals = 4, size = 1, is_unit = false }
local percent_max = 1000000

function numbers.percent(text)
  local parts = numbers.parse(text, percent_step)
  return parts and parts <= percent_max and parts or nil
end

-- A percentage as the shortest text.
function numbers.percent_text(text)
  return numbers.text(numbers.percent(text), percent_step)
end

-- The whole part of a fraction of an exact integer, in parts of a million. By halves: the product
-- of the two may be beyond exactness.
function numbers.fraction(number, parts)
  local millions = math.floor(number / 1000000)
  return millions * parts + math.floor((number - millions * 1000000) * parts / 1000000)
end

-- The largest number of steps whose decimal text is still exact.
function numbers.steps_max(step)
  return math.floor(numbers.exact_max / step.size)
end

-- A positive integer of plain digits (an id, a limit), or nil.
function numbers.positive_integer(text)
  if #text > 16 or not text:find("^[1-9]%d*$") then
    return nil
  end
  return #text < 16 and text + 0 or exact(text)
end

return numbers
