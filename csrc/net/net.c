/*
** net.c - the Lua module fathom.net.
*/
#include "net/net.h"

#include <time.h>

int fm_net_fail(lua_State *L, const fm_error *err) {
  if (err->code == FM_EINVAL) return luaL_error(L, "%s", err->message);
  lua_pushnil(L);
  lua_pushstring(L, fm_status_name(err->code));
  lua_pushstring(L, err->message);
  if (err->hint[0]) lua_pushstring(L, err->hint);
  else lua_pushnil(L);
  return 4;
}

void fm_net_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction close) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_pushcfunction(L, close);
  lua_setfield(L, -2, "close");
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, close);
  lua_setfield(L, -2, "__gc");
  lua_pushcfunction(L, close);
  lua_setfield(L, -2, "__close");
  lua_pop(L, 1);
}

/* net.now() -> ms of a clock that only goes forward */
static int now(lua_State *L) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  lua_pushnumber(L, (lua_Number)t.tv_sec * 1e3 + (lua_Number)t.tv_nsec / 1e6);
  return 1;
}

int luaopen_fathom_net(lua_State *L) {
  lua_newtable(L);
  lua_pushcfunction(L, now);
  lua_setfield(L, -2, "now");
  if (fm_net_open_client) fm_net_open_client(L);
  if (fm_net_open_server) fm_net_open_server(L);
  return 1;
}
