/*
** bind.c - handles, errors, lists of ids, option tables.
*/
#include "bind/bind.h"

#include <string.h>

fm_handle *fm_bind_new(lua_State *L, const char *name) {
  fm_handle *h = lua_newuserdatauv(L, sizeof *h, 1);
  *h = (fm_handle){ NULL, NULL };
  luaL_setmetatable(L, name);
  return h;
}

void *fm_bind_get(lua_State *L, int index, const char *name) {
  fm_handle *h = luaL_checkudata(L, index, name);
  if (!h->p) luaL_error(L, "attempt to use a closed %s", strrchr(name, '.') + 1);
  return h->p;
}

void fm_bind_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction close,
                   lua_CFunction tostring) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  if (close) {
    lua_pushcfunction(L, close);
    lua_pushvalue(L, -1);
    lua_setfield(L, -3, "close");
    lua_pushvalue(L, -1);
    lua_setfield(L, -4, "__gc");
    lua_setfield(L, -3, "__close");
  }
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pop(L, 1);
}

static int free_box(lua_State *L) {
  void **box = luaL_checkudata(L, 1, FM_CBOX);
  fm_free(*box);
  *box = NULL;
  return 0;
}

void **fm_bind_box(lua_State *L) {
  void **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  if (luaL_newmetatable(L, FM_CBOX)) {
    lua_pushcfunction(L, free_box);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  return box;
}

/* ---- errors -------------------------------------------------------------------------------------- */

void fm_bind_push_error(lua_State *L, const fm_error *err) {
  lua_createtable(L, 0, 3);
  lua_pushstring(L, fm_status_name(err->code));
  lua_setfield(L, -2, "code");
  lua_pushstring(L, err->message);
  lua_setfield(L, -2, "message");
  if (err->hint[0]) {
    lua_pushstring(L, err->hint);
    lua_setfield(L, -2, "hint");
  }
  luaL_setmetatable(L, FM_CERROR);
}

int fm_bind_fail(lua_State *L, const fm_error *err) {
  if (err->code == FM_EINVAL) return luaL_error(L, "%s", err->message);   // the call was wrong
  lua_pushnil(L);
  fm_bind_push_error(L, err);
  return 2;
}

/* ---- lists of ids ---------------------------------------------------------------------------------- */

int32_t *fm_bind_ids(lua_State *L, int index, int64_t *n) {
  index = lua_absindex(L, index);
  luaL_checktype(L, index, LUA_TTABLE);
  lua_Unsigned len = lua_rawlen(L, index);
  int32_t *ids = lua_newuserdatauv(L, (len ? len : 1) * sizeof *ids, 0);
  for (lua_Unsigned i = 0; i < len; i++) {
    int whole;
    lua_rawgeti(L, index, (lua_Integer)i + 1);
    lua_Integer id = lua_tointegerx(L, -1, &whole);
    if (!whole || id < 0 || id > INT32_MAX)
      luaL_error(L, "ids[%d]: expected a token id, got %s", (int)i + 1, luaL_tolstring(L, -1, NULL));
    ids[i] = (int32_t)id;
    lua_pop(L, 1);
  }
  *n = (int64_t)len;
  return ids;
}

void fm_bind_push_ids(lua_State *L, const int32_t *ids, int64_t n) {
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n; i++) {
    lua_pushinteger(L, ids[i]);
    lua_rawseti(L, -2, i + 1);
  }
}

/* ---- options ----------------------------------------------------------------------------------------- */

static int field(lua_State *L, int index, const char *key) {
  return lua_istable(L, index) ? lua_getfield(L, index, key) : (lua_pushnil(L), LUA_TNIL);
}

static void wrong(lua_State *L, const char *key, const char *want) {
  luaL_error(L, "option %s: expected %s, got %s", key, want, luaL_typename(L, -1));
}

lua_Integer fm_bind_int(lua_State *L, int index, const char *key, lua_Integer otherwise) {
  int whole = 1, type = field(L, index, key);
  lua_Integer v = type == LUA_TNIL ? otherwise : lua_tointegerx(L, -1, &whole);
  if (type != LUA_TNIL && (type != LUA_TNUMBER || !whole)) wrong(L, key, "an integer");
  lua_pop(L, 1);
  return v;
}

lua_Number fm_bind_num(lua_State *L, int index, const char *key, lua_Number otherwise) {
  int type = field(L, index, key);
  lua_Number v = type == LUA_TNIL ? otherwise : lua_tonumber(L, -1);
  if (type != LUA_TNIL && type != LUA_TNUMBER) wrong(L, key, "a number");
  lua_pop(L, 1);
  return v;
}

bool fm_bind_bool(lua_State *L, int index, const char *key, bool otherwise) {
  int type = field(L, index, key);
  bool v = type == LUA_TNIL ? otherwise : lua_toboolean(L, -1);
  if (type != LUA_TNIL && type != LUA_TBOOLEAN) wrong(L, key, "true or false");
  lua_pop(L, 1);
  return v;
}

/* The string stays alive in the option table. */
const char *fm_bind_str(lua_State *L, int index, const char *key, const char *otherwise) {
  int type = field(L, index, key);
  const char *v = type == LUA_TNIL ? otherwise : type == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
  if (type != LUA_TNIL && type != LUA_TSTRING) wrong(L, key, "a string");
  lua_pop(L, 1);
  return v;
}
