-- Exact arithmetic on non-negative integers and on decimal text, of any size.
--
-- Lua's only number is the double, exact for integers up to 2^53 - 1. Prices, quantities and the
-- totals of levels stay within that. What is made of them does not: price times quantity, the
-- volume of a day, the demand in an auction. Such a figure is a *natural* here: a Lua number while
-- that is exact, beyond it a table of limbs, digits of base 10^7, the least first. One limb times
-- another, with a carry, stays exact. Every function takes and returns naturals, so a caller does
-- not see which of the two it has; numbers cost a comparison more than Lua's own operators.

local decimal = {}

decimal.exact_max = 9007199254740991
decimal.text_length_max = 40

local limb_base = 10000000
local limb_digits = 7
local limb_format = "%07d"
-- A text with no more digits is an exact number for certain.
local exact_digits = 15

-- ---- numbers and limbs

local function limbs_of(number)
  local limbs = {}
  while number > 0 do
    local limb = number % limb_base
    limbs[#limbs + 1] = limb
    number = (number - limb) / limb_base
  end
  return limbs
end

local function to_limbs(natural)
  return type(natural) == "table" and natural or limbs_of(natural)
end

-- The text of limbs; a number's is `%d`.
local function digits_of_limbs(limbs)
  local texts = { ("%d"):format(limbs[#limbs] or 0) }
  for i = #limbs - 1, 1, -1 do
    texts[#texts + 1] = limb_format:format(limbs[i])
  end
  return table.concat(texts)
end

-- Limbs as a natural: without leading zeros, and a number where that is exact.
local function natural_of(limbs)
  while limbs[#limbs] == 0 do
    limbs[#limbs] = nil
  end
  if #limbs > 3 then
    return limbs
  end
  local number = ((limbs[3] or 0) * limb_base + (limbs[2] or 0)) * limb_base + (limbs[1] or 0)
  return number <= decimal.exact_max and number or limbs
end

-- A natural from digits.
function decimal.natural(digits)
  if #digits <= exact_digits then
    return digits + 0
  end
  local limbs = {}
  for to = #digits, 1, -limb_digits do
    limbs[#limbs + 1] = digits:sub(math.max(1, to - limb_digits + 1), to) + 0
  end
  return natural_of(limbs)
end

-- A natural as digits.
function decimal.digits(natural)
  return type(natural) == "number" and ("%d"):format(natural) or digits_of_limbs(natural)
end

-- ---- arithmetic

local function compare_limbs(left, right)
  if #left ~= #right then
    return #left - #right
  end
  for i = #left, 1, -1 do
    if left[i] ~= right[i] then
      return left[i] - right[i]
    end
  end
  return 0
end

-- Below zero where the left one is the smaller, zero where both are equal, else above zero.
function decimal.compare(left, right)
  if type(left) == "number" and type(right) == "number" then
    return left - right
  end
  return compare_limbs(to_limbs(left), to_limbs(right))
end

function decimal.add(left, right)
  if type(left) == "number" and type(right) == "number" then
    local sum = left + right
    if sum <= decimal.exact_max then
      return sum
    end
  end
  left, right = to_limbs(left), to_limbs(right)
  local limbs, carry = {}, 0
  for i = 1, math.max(#left, #right) do
    local sum = (left[i] or 0) + (right[i] or 0) + carry
    carry = sum >= limb_base and 1 or 0
    limbs[i] = sum - carry * limb_base
  end
  limbs[#limbs + 1] = carry
  return natural_of(limbs)
end

local function subtract_limbs(left, right)
  local limbs, borrow = {}, 0
  for i = 1, #left do
    local difference = left[i] - (right[i] or 0) - borrow
    borrow = difference < 0 and 1 or 0
    limbs[i] = difference + borrow * limb_base
  end
  while limbs[#limbs] == 0 do
    limbs[#limbs] = nil
  end
  return limbs
end

-- The left one, which is not the smaller, less the right one.
function decimal.subtract(left, right)
  if type(left) == "number" and type(right) == "number" then
    return left - right
  end
  return natural_of(subtract_limbs(to_limbs(left), to_limbs(right)))
end

local function multiply_limbs(left, right)
  local limbs = {}
  for i = 1, #left + #right do
    limbs[i] = 0
  end
  for i = 1, #left do
    local carry = 0
    for j = 1, #right do
      local sum = limbs[i + j - 1] + left[i] * right[j] + carry
      carry = math.floor(sum / limb_base)
      limbs[i + j - 1] = sum - carry * limb_base
    end
    limbs[i + #right] = carry
  end
  while limbs[#limbs] == 0 do
    limbs[#limbs] = nil
  end
  return limbs
end

function decimal.multiply(left, right)
  if type(left) == "number" and type(right) == "number" then
    local product = left * right
    if product <= decimal.exact_max then
      return product
    end
  end
  return natural_of(multiply_limbs(to_limbs(left), to_limbs(right)))
end

-- The limbs from `place` on as a double, in units of the one there.
local function leading(limbs, place)
  local value = 0
  for i = #limbs, math.max(place, 1), -1 do
    value = value * limb_base + limbs[i]
  end
  return value
end

-- One step of long division: how often the divisor goes into the rest, at most limb_base - 1 times,
-- and what is left of it. The estimate by doubles is wrong by one at most.
local function divide_step(rest, divisor)
  if compare_limbs(rest, divisor) < 0 then
    return 0, rest
  end
  local place = #divisor - 2
  local count = math.floor(leading(rest, place) / leading(divisor, place))
  local product = multiply_limbs(divisor, limbs_of(count))
  while compare_limbs(product, rest) > 0 do
    count, product = count - 1, subtract_limbs(product, divisor)
  end
  rest = subtract_limbs(rest, product)
  while compare_limbs(rest, divisor) >= 0 do
    count, rest = count + 1, subtract_limbs(rest, divisor)
  end
  return count, rest
end

-- How many whole times a divisor above zero goes into a natural.
function decimal.quotient(dividend, divisor)
  if type(dividend) == "number" and type(divisor) == "number" then
    return math.floor(dividend / divisor)
  end
  local limbs, rest = to_limbs(dividend), {}
  local divisor_limbs, counts = to_limbs(divisor), {}
  for i = #limbs, 1, -1 do
    if #rest > 0 or limbs[i] > 0 then
      table.insert(rest, 1, limbs[i])
    end
    counts[i], rest = divide_step(rest, divisor_limbs)
  end
  return natural_of(counts)
end

-- ---- decimal text

-- The digits before and after the point, or nil where the text is not strict decimal text: no sign,
-- exponent, blank, hexadecimal or leading zero.
function decimal.split(text)
  if #text > decimal.text_length_max then
    return nil
  end
  local whole, fraction = string.match(text, "^(%d+)%.(%d+)$")
  if not whole then
    whole, fraction = string.match(text, "^%d+$"), ""
  end
  if not whole or (#whole > 1 and string.byte(whole) == 48) then
    return nil
  end
  return whole, fraction
end

-- Strict decimal text in units of its last of so many decimals, or nil where it is none or finer.
function decimal.parse(text, decimals)
  local whole, fraction = decimal.split(text)
  if not whole or fraction:find("[^0]", decimals + 1) then
    return nil
  end
  return decimal.natural(whole .. (fraction .. ("0"):rep(decimals)):sub(1, decimals))
end

-- Digits, of which the last are so many decimals, as the shortest decimal text: 100.5, not 100.50.
function decimal.text_of_digits(digits, decimals)
  if decimals == 0 then
    return digits
  end
  digits = ("0"):rep(decimals + 1 - #digits) .. digits
  local fraction = digits:sub(-decimals):gsub("0+$", "")
  local whole = digits:sub(1, -decimals - 1)
  return fraction == "" and whole or whole .. "." .. fraction
end

-- A natural in units of the last of so many decimals as the shortest decimal text.
function decimal.text(natural, decimals)
  return decimal.text_of_digits(decimal.digits(natural), decimals)
end

-- Two decimal texts that the engine wrote, of whatever length, as naturals in one unit: both, and
-- the decimals of the unit.
function decimal.pair(left, right)
  local left_whole, left_fraction = left:match("^(%d+)%.?(%d*)$")
  local right_whole, right_fraction = right:match("^(%d+)%.?(%d*)$")
  local decimals = math.max(#left_fraction, #right_fraction)
  left_fraction = left_fraction .. ("0"):rep(decimals - #left_fraction)
  right_fraction = right_fraction .. ("0"):rep(decimals - #right_fraction)
  return decimal.natural(left_whole .. left_fraction),
    decimal.natural(right_whole .. right_fraction),
    decimals
end

-- The sum of two such texts.
function decimal.sum(left, right)
  local left_natural, right_natural, decimals = decimal.pair(left, right)
  return decimal.text(decimal.add(left_natural, right_natural), decimals)
end

-- Whether the left one of two such texts is the larger number.
function decimal.is_greater(left, right)
  if left == right then
    return false
  end
  local left_natural, right_natural = decimal.pair(left, right)
  return decimal.compare(left_natural, right_natural) > 0
end

return decimal
