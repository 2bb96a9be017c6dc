/*
** fence_lib.c - the standard functions inside the fence: the safe ones as they are, those that work for long behind a charge.
*/
#include <lualib.h>
#include <string.h>

#include "bind/fence.h"

/* ---- charges ------------------------------------------------------------------------------------------ */

static uint64_t text_cost(lua_State *F) {
  uint64_t n = 0;
  for (int i = lua_gettop(F); i > 0; i--)
    if (lua_type(F, i) == LUA_TSTRING) n += lua_rawlen(F, i);
  return n / 16 + 1;
}

/* How many integers lie from one to the other. */
static uint64_t span(lua_Integer from, lua_Integer to) { return from > to ? 1 : (uint64_t)to - (uint64_t)from + 1; }

static lua_Integer integer_at(lua_State *F, int index, lua_Integer otherwise) {
  int whole;
  lua_Integer v = lua_tointegerx(F, index, &whole);
  return whole ? v : otherwise;
}

/* Length of the list that a function of table gets; what it says must hold a moment later, too. */
static lua_Integer list_length(lua_State *F) {
  luaL_checktype(F, 1, LUA_TTABLE);
  if (luaL_getmetafield(F, 1, "__len") != LUA_TNIL) luaL_error(F, "a list with __len is not taken here");
  return (lua_Integer)lua_rawlen(F, 1);
}

static uint64_t list_cost(lua_State *F) { return span(1, list_length(F)); }

static uint64_t concat_cost(lua_State *F) {
  lua_Integer n = list_length(F);
  return span(integer_at(F, 3, 1), integer_at(F, 4, n)) + text_cost(F);
}

static uint64_t unpack_cost(lua_State *F) { return span(integer_at(F, 2, 1), integer_at(F, 3, list_length(F))); }
static uint64_t move_cost(lua_State *F) { return span(integer_at(F, 2, 1), integer_at(F, 3, 0)); }
static uint64_t thread_cost(lua_State *F) { (void)F; return FM_FENCE_INTERVAL; }      // its own count begins anew

/* What would never fit is refused at once. */
static uint64_t rep_cost(lua_State *F) {
  size_t size = 0, gap = 0;
  lua_Integer n = integer_at(F, 2, 0);
  if (lua_isstring(F, 1)) lua_tolstring(F, 1, &size);
  if (lua_isstring(F, 3)) lua_tolstring(F, 3, &gap);
  if (n <= 0 || (size + gap > 0 && (uint64_t)n > fm_fence_quota(F) / (size + gap))) return 1;
  return (uint64_t)n / 8 + (uint64_t)n * (size + gap) / 16;
}

typedef uint64_t (*cost_fn)(lua_State *F);
static const cost_fn costs[] = { text_cost, list_cost, concat_cost, unpack_cost, move_cost, thread_cost, rep_cost };
enum { TEXT, LIST, CONCAT, UNPACK, MOVE, THREAD, REP };

/* Upvalues: the function behind it, and which cost. */
static int charged(lua_State *F) {
  int n = lua_gettop(F);
  luaL_checkstack(F, 4, NULL);
  fm_fence_charge(F, costs[lua_tointeger(F, lua_upvalueindex(2))](F));
  lua_settop(F, n);
  lua_pushvalue(F, lua_upvalueindex(1));
  lua_insert(F, 1);
  lua_call(F, n, LUA_MULTRET);
  return lua_gettop(F);
}

typedef struct entry { const char *name; int cost; } entry;
enum { FREE = -1 };

/* Fills a new table, left on the stack, with functions of the library at `from`. */
static void choose(lua_State *F, int from, const entry *list) {
  lua_newtable(F);
  for (; list->name; list++) {
    lua_getfield(F, from, list->name);
    if (list->cost != FREE) {
      lua_pushinteger(F, list->cost);
      lua_pushcclosure(F, charged, 2);
    }
    lua_setfield(F, -2, list->name);
  }
}

static const entry base[] = { { "assert", FREE }, { "error", FREE }, { "getmetatable", FREE }, { "ipairs", FREE },
  { "pcall", FREE }, { "rawequal", FREE }, { "rawget", FREE }, { "rawlen", FREE }, { "rawset", FREE },
  { "select", FREE }, { "tonumber", TEXT }, { "type", FREE }, { "xpcall", FREE }, { "_VERSION", FREE }, { NULL, FREE } };
static const entry string[] = { { "byte", TEXT }, { "char", FREE }, { "len", FREE }, { "lower", TEXT }, { "pack", TEXT },
  { "packsize", TEXT }, { "rep", REP }, { "reverse", TEXT }, { "sub", TEXT }, { "unpack", TEXT }, { "upper", TEXT }, { NULL, FREE } };
static const entry table[] = { { "concat", CONCAT }, { "insert", LIST }, { "move", MOVE }, { "pack", FREE }, { "remove", LIST },
  { "unpack", UNPACK }, { NULL, FREE } };
static const entry math[] = { { "abs", FREE }, { "acos", FREE }, { "asin", FREE }, { "atan", FREE }, { "ceil", FREE },
  { "cos", FREE }, { "deg", FREE }, { "exp", FREE }, { "floor", FREE }, { "fmod", FREE }, { "huge", FREE }, { "log", FREE },
  { "max", FREE }, { "maxinteger", FREE }, { "min", FREE }, { "mininteger", FREE }, { "modf", FREE }, { "pi", FREE },
  { "rad", FREE }, { "random", FREE }, { "randomseed", FREE }, { "sin", FREE }, { "sqrt", FREE }, { "tan", FREE },
  { "tointeger", FREE }, { "type", FREE }, { "ult", FREE }, { NULL, FREE } };
static const entry coroutine[] = { { "close", FREE }, { "create", THREAD }, { "resume", FREE }, { "status", FREE },
  { "wrap", THREAD }, { "yield", FREE }, { NULL, FREE } };
static const entry utf8[] = { { "char", FREE }, { "charpattern", FREE }, { "codepoint", TEXT }, { "codes", TEXT }, { "len", TEXT },
  { "offset", TEXT }, { NULL, FREE } };
static const entry os[] = { { "clock", FREE }, { "date", TEXT }, { "difftime", FREE }, { "time", FREE }, { NULL, FREE } };

/* ---- functions of our own ------------------------------------------------------------------------------- */

/* Finalizers would run with hooks off. (A __gc that comes into a metatable later is not looked at by Lua.) */
static int f_setmetatable(lua_State *F) {
  int kind = lua_type(F, 2);
  luaL_checktype(F, 1, LUA_TTABLE);
  luaL_argexpected(F, kind == LUA_TNIL || kind == LUA_TTABLE, 2, "nil or table");
  if (luaL_getmetafield(F, 1, "__metatable") != LUA_TNIL) return luaL_error(F, "cannot change a protected metatable");
  if (kind == LUA_TTABLE) {
    lua_pushliteral(F, "__gc");
    if (lua_rawget(F, 2) != LUA_TNIL) return luaL_error(F, "no finalizers in here: take __gc out of the metatable");
  }
  lua_settop(F, 2);
  lua_setmetatable(F, 1);
  return 1;
}

static int f_next(lua_State *F) {
  luaL_checktype(F, 1, LUA_TTABLE);
  fm_fence_charge(F, 1);                                          // an emptied table is searched for long
  lua_settop(F, 2);
  if (lua_next(F, 1)) return 2;
  lua_pushnil(F);
  return 1;
}

static int f_pairs(lua_State *F) {
  luaL_checkany(F, 1);
  if (luaL_getmetafield(F, 1, "__pairs") == LUA_TNIL) {
    lua_pushcfunction(F, f_next);
    lua_pushvalue(F, 1);
    lua_pushnil(F);
    return 3;
  }
  lua_pushvalue(F, 1);
  lua_call(F, 1, 3);
  return 3;
}

/* Without addresses: they say where the host's memory lies, and are never the same twice. */
static int f_tostring(lua_State *F) {
  luaL_checkany(F, 1);
  int kind = lua_type(F, 1);
  if (luaL_getmetafield(F, 1, "__tostring") == LUA_TNIL) {
    if (luaL_getmetafield(F, 1, "__name") == LUA_TSTRING) return 1;
    if (kind == LUA_TTABLE || kind == LUA_TFUNCTION || kind == LUA_TTHREAD) {
      lua_pushstring(F, lua_typename(F, kind));
      return 1;
    }
  }
  luaL_tolstring(F, 1, NULL);
  return 1;
}

/* Upvalue: string.format, which would write addresses. */
static int f_format(lua_State *F) {
  int n = lua_gettop(F);
  size_t size;
  const char *s = luaL_checklstring(F, 1, &size);
  fm_fence_charge(F, text_cost(F));
  for (const char *at = s, *end = s + size; (at = memchr(at, '%', (size_t)(end - at))); at++) {
    while (++at < end && strchr("-+ #0123456789.", *at) && *at);
    if (at == end) break;
    if (*at == 'p') return luaL_error(F, "invalid conversion '%%p' to 'format': there are no addresses in here");
  }
  for (int i = 2; i <= n; i++) {
    int kind = lua_type(F, i);
    if (kind != LUA_TTABLE && kind != LUA_TFUNCTION && kind != LUA_TTHREAD) continue;
    lua_pushcfunction(F, f_tostring);
    lua_pushvalue(F, i);
    lua_call(F, 1, 1);
    lua_replace(F, i);
  }
  lua_pushvalue(F, lua_upvalueindex(1));
  lua_insert(F, 1);
  lua_call(F, n, 1);
  return 1;
}

/* The text of a chunk that comes in pieces, on top of the stack. */
static void gather(lua_State *F) {
  luaL_Buffer b;
  size_t size, whole = 0;
  luaL_buffinit(F, &b);
  for (;;) {
    lua_pushvalue(F, 1);
    lua_call(F, 0, 1);
    const char *s = lua_tolstring(F, -1, &size);
    if (!s && !lua_isnil(F, -1)) luaL_error(F, "reader function must return a string");
    if (!s || size == 0) break;
    if ((whole += size) > FM_FENCE_CHUNK) luaL_error(F, "a chunk is longer than %d bytes", FM_FENCE_CHUNK);
    luaL_addvalue(&b);
  }
  lua_pop(F, 1);
  luaL_pushresult(&b);
}

/* load(chunk, name, mode, env): text only, whatever mode says. */
static int f_load(lua_State *F) {
  bool env = lua_gettop(F) >= 4;
  lua_settop(F, 4);
  if (lua_isstring(F, 1)) lua_pushvalue(F, 1);
  else {
    luaL_checktype(F, 1, LUA_TFUNCTION);
    gather(F);
  }
  size_t size;
  const char *s = lua_tolstring(F, 5, &size), *name = luaL_optstring(F, 2, lua_isstring(F, 1) ? s : "=(load)");
  fm_fence_charge(F, size);
  if (size > FM_FENCE_CHUNK) return luaL_error(F, "a chunk is longer than %d bytes", FM_FENCE_CHUNK);
  if (luaL_loadbufferx(F, s, size, name, "t") != LUA_OK) {
    lua_pushnil(F);
    lua_insert(F, -2);
    return 2;
  }
  if (env) {
    lua_pushvalue(F, 4);
    if (!lua_setupvalue(F, -2, 1)) lua_pop(F, 1);
  }
  return 1;
}

/* The program runs in a thread that its host may resume: inside, that is the main one. */
static int f_isyieldable(lua_State *F) {
  lua_State *co = lua_isthread(F, 1) ? lua_tothread(F, 1) : F;
  lua_pushboolean(F, !fm_fence_is_main(co) && lua_isyieldable(co));
  return 1;
}

static int f_running(lua_State *F) {
  lua_pushthread(F);
  lua_pushboolean(F, fm_fence_is_main(F));
  return 2;
}

/* ---- the globals ------------------------------------------------------------------------------------------ */

/* Opens a library and leaves the chosen part of it on the stack, the whole of it below. */
static void open(lua_State *F, lua_CFunction f, const char *name, const entry *list) {
  lua_pushcfunction(F, f);
  lua_pushstring(F, name);
  lua_call(F, 1, 1);
  choose(F, lua_gettop(F), list);
}

static void add(lua_State *F, int globals, lua_CFunction f, const char *name, const entry *list) {
  open(F, f, name, list);
  lua_setfield(F, globals, name);
  lua_pop(F, 1);
}

static void add_string(lua_State *F, int globals) {
  open(F, luaopen_string, "string", string);
  lua_getfield(F, -2, "format");
  lua_pushcclosure(F, f_format, 1);
  lua_setfield(F, -2, "format");
  fm_fence_patterns(F);
  lua_pushliteral(F, "");
  lua_getmetatable(F, -1);                                        // whole, chosen, "", metatable of strings
  lua_pushvalue(F, -3);
  lua_setfield(F, -2, "__index");
  lua_pushliteral(F, "string");
  lua_setfield(F, -2, "__metatable");
  lua_pop(F, 2);
  lua_setfield(F, globals, "string");
  lua_pop(F, 1);
}

void fm_fence_globals(lua_State *F) {
  static const luaL_Reg own[] = { { "load", f_load }, { "next", f_next }, { "pairs", f_pairs },
    { "setmetatable", f_setmetatable }, { "tostring", f_tostring }, { NULL, NULL } };
  static const luaL_Reg threads[] = { { "isyieldable", f_isyieldable }, { "running", f_running }, { NULL, NULL } };
  luaL_checkstack(F, 20, NULL);
  open(F, luaopen_base, "_G", base);
  lua_remove(F, -2);
  int globals = lua_gettop(F);
  luaL_setfuncs(F, own, 0);
  lua_pushvalue(F, globals);
  lua_setfield(F, globals, "_G");
  add_string(F, globals);
  add(F, globals, luaopen_table, "table", table);
  add(F, globals, luaopen_math, "math", math);
  add(F, globals, luaopen_coroutine, "coroutine", coroutine);
  lua_getfield(F, globals, "coroutine");
  luaL_setfuncs(F, threads, 0);
  lua_pop(F, 1);
  add(F, globals, luaopen_utf8, "utf8", utf8);
  add(F, globals, luaopen_os, "os", os);
}
