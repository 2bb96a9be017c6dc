std = "lua54"
max_line_length = 140
unused_args = false
files["spec"] = { std = "lua54+busted" }
files["spec/busted.lua"] = { globals = { "arg" } }
