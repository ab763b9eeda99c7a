-- Lint rules of lua/: the Lua 5.1 that Redis embeds, with the globals it gives to a function library.
std = "lua51"
read_globals = { "redis", "cjson", "bit" }
max_line_length = 100
max_code_line_length = 100
-- A module is a chunk that ends in `return`; a global of our own would leak between modules.
allow_defined = false
allow_defined_top = false
