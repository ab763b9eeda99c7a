-- What a refusal says of a value: what is allowed, and the nearest right form of what was given, as
-- `97000` for `97,000`.
--
-- A nearest form is made of what a client sent, and stands in the reply. It is told only where it
-- is one of our own words, or made of digits and points, or of the letters of a symbol alone.

local decimal = require("values/decimal")

local hints = {}

-- Longer values are not looked at.
local given_length_max = 64
local exponent_max = 20

-- A rule with what to write in place of a value, where there is something.
function hints.with_nearest(rule, nearest)
  return nearest and rule .. ": write " .. nearest or rule
end

-- ---- words

local function bare(text)
  return (text:lower():gsub("[%s_%-]", ""))
end

local function nearest_word(words, given)
  for i = 1, #given <= given_length_max and #words or 0 do
    if bare(words[i]) == bare(given) then
      return words[i]
    end
  end
  return nil
end

-- The rule of a field that takes one of these words.
function hints.choice(name, words, given)
  local rule = name .. " must be one of " .. table.concat(words, ", ")
  return hints.with_nearest(rule, nearest_word(words, given))
end

-- ---- numbers

-- Digits with commas: between thousands they go, a single other one is a point.
local function without_commas(text)
  local first, groups, rest = text:match("^([1-9]%d?%d?)(,[%d,]+)(%.?%d*)$")
  if first and groups:gsub(",%d%d%d", "") == "" then
    return first .. groups:gsub(",", "") .. rest
  end
  local whole, fraction = text:match("^(%d+),(%d+)$")
  return whole and whole .. "." .. fraction or text
end

-- A number with an exponent, written out.
local function without_exponent(text)
  local whole, fraction, exponent = text:match("^(%d+)%.?(%d*)[eE]([%+%-]?%d%d?)$")
  exponent = whole and tonumber(exponent)
  if not exponent or math.abs(exponent) > exponent_max then
    return text
  end
  local digits, point = whole .. fraction, #whole + exponent
  if point <= 0 then
    return "0." .. ("0"):rep(-point) .. digits
  end
  digits = digits .. ("0"):rep(point - #digits)
  return digits:sub(1, point) .. "." .. digits:sub(point + 1)
end

-- The strict decimal text nearest to what was given, or nil.
function hints.nearest_number(given)
  if #given > given_length_max then
    return nil
  end
  local text = given:gsub("[%s_']", ""):gsub("^%+", "")
  text = without_commas(without_exponent(text))
  text = text:gsub("^%.", "0."):gsub("%.$", ""):gsub("^0+(%d)", "%1")
  return decimal.split(text) and text ~= given and text or nil
end

-- The rule of a field that takes a decimal number, where a text is none or cannot be held.
function hints.number(name, given)
  if decimal.split(given) then
    local most = decimal.digits(decimal.exact_max)
    return name .. " has more than the engine can hold: at most " .. most .. " in its last decimal"
  end
  local rule = name
    .. " must be decimal text such as 97000.5, without sign, exponent or separators, of at most "
    .. decimal.text_length_max
    .. " characters"
  return hints.with_nearest(rule, hints.nearest_number(given))
end

-- ---- symbols

-- The rule of a book's key, where a text is none.
function hints.book_key(given)
  local rule = "give one key, orderbook:{SEGMENT}:SYMBOL, with a SYMBOL of 1 to 32 characters of "
    .. "A-Z 0-9 . _ -"
  local symbol = given and given:match("^orderbook:{[%w_%-]+}:([%w%._/%-]+)$")
  local nearest = symbol and #symbol <= 32 and symbol:upper():gsub("/", "-")
  return hints.with_nearest(rule, nearest and nearest ~= symbol and nearest or nil)
end

return hints
