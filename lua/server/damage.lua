-- Damage: what is stored contradicts itself. It is raised as an error where it is found, because no
-- command can be carried out on it, and isolation.lua then halts the book.

local damage = {}

local prefix = "stored state: "

function damage.raise(text)
  return error(prefix .. text, 0)
end

-- Whether the text of an error is that of damage.
function damage.is_in(problem)
  return problem:sub(1, #prefix) == prefix
end

return damage
