/*
** lua_test.c - two Lua states in one process share a model: loaded once, driven in turns, freed with the last. A rank that hangs
** outlives the state that made it.
*/
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int failures;

static void check(int good, const char *sentence) {
  printf("%s - %s\n", good ? "ok" : "not ok", sentence);
  failures += !good;
}

/* Runs a chunk with one argument; its integer result, or -1 and the error printed. */
static lua_Integer run(lua_State *L, const char *chunk, lua_Integer arg) {
  lua_settop(L, 0);
  int bad = luaL_loadstring(L, chunk);
  lua_pushinteger(L, arg);
  if (bad || lua_pcall(L, 1, 1, 0) != LUA_OK) {
    printf("  %s\n", luaL_tolstring(L, -1, NULL));
    return -1;
  }
  return lua_tointeger(L, -1);
}

static lua_State *fresh(void) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  return L;
}

#define SAY "local function say(m) return table.concat(assert(m:generate({ { role = 'user', content = 'Hello!' } }," \
            " { temperature = 0.8, seed = 5, max_tokens = 20 })).ids, ' ') end "

/* The thread comes back to the module's code when the state, which was its only user, is gone. */
static void lost_rank(void) {
  lua_State *L = fresh();
  setenv("FATHOM_FAULT", "hang:1:5", 1);
  setenv("FATHOM_RANK_SECONDS", "0.5", 1);
  lua_Integer good = run(L, "local fathom = require 'fathom' local model = assert(fathom.load(fathom.pocket, { ctx = 256, threads = 1,"
                            " device = { 'cpu', 'cpu' } })) local r, err = model:generate('Hello!', { max_tokens = 8 }) model:close()"
                            " return r == nil and err.code == 'device' and 1 or 0", 0);
  unsetenv("FATHOM_FAULT");
  unsetenv("FATHOM_RANK_SECONDS");
  lua_close(L);
  sleep(2);
  check(good == 1, "a rank that hangs outlives the state that made it, and does no harm");
}

int main(void) {
  lua_State *a = fresh(), *b = fresh();
  lua_Integer key = run(a, "fathom = require 'fathom' model = assert(fathom.load(fathom.pocket, { ctx = 256, threads = 1 }))"
                           " return model:share()", 0);
  check(key > 0, "a state offers its model");
  check(run(b, SAY "fathom = require 'fathom' model = assert(fathom.adopt(...)) said = say(model)"
               " return model:stats().weight_bytes", key) > 0, "another adopts it and generates");
  check(run(b, "local m, err = fathom.adopt(...) return m == nil and err.code == 'limit' and 1 or 0", key) == 1,
        "an offer is good for one adoption");
  check(run(b, "local m, err = fathom.adopt(...) return m == nil and 1 or 0", 12345) == 1, "a number nobody offered is refused");
  run(b, "session = assert(model:session()) task = session:ask 'Who are you?' return 1", 0);
  check(run(a, "task = model:session():ask 'Hello!' while model:step() do end return task.done and 1 or 0", 0) == 1,
        "one state's steps move the other's tasks along");
  check(run(b, "return task:wait() and 1 or 0", 0) == 1, "which the other finds done");
  run(a, "model:close() return 1", 0);
  lua_close(a);
  check(run(b, SAY "return say(model) == said and 1 or 0", 0) == 1, "it lives on when the first state is closed, and says the same");
  lua_close(b);
  lost_rank();
  return failures != 0;
}
