rockspec_format = "3.0"
package = "fathom"
version = "scm-1"
source = { url = "git+file://." }
description = {
  summary = "An embeddable engine for the DeepSeek family",
  detailed = "Multi-head latent attention, mixture of experts, multi-token prediction and FP8 blocks in a C library, used from Lua 5.4.",
  license = "MIT",
}
dependencies = { "lua ~> 5.4" }
external_dependencies = {
  CJSON = { header = "cjson/cJSON.h" },
  PCRE2 = { header = "pcre2.h" },
  UTF8PROC = { header = "utf8proc.h" },
}
build = {
  type = "make",
  build_target = "modules",
  build_variables = { LUA_INC = "-I$(LUA_INCDIR)" },
  install_target = "rock",
  install_variables = { ROCK_LIB = "$(LIBDIR)", ROCK_LUA = "$(LUADIR)", ROCK_BIN = "$(BINDIR)" },
}
