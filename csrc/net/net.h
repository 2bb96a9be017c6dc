/*
** net.h - the Lua module of the network library, fathom.net: its halves, each present where its library is.
** The only files in csrc beside bind's that know Lua are net.c and lua_*.c: this library is a module of its own, opened
** on first use, so that the core links neither libcurl nor libmicrohttpd.
*/
#ifndef FM_NET_NET_H
#define FM_NET_NET_H

#include <lauxlib.h>
#include <lua.h>

#include "base/status.h"

/* Each sets its functions in the module table on top of the stack. */
void fm_net_open_client(lua_State *L) __attribute__((weak));   /* lua_client.c, with libcurl */
void fm_net_open_server(lua_State *L) __attribute__((weak));   /* lua_server.c, with libmicrohttpd */

/* Pushes nil, code, message, hint or nil; returns 4. FM_EINVAL raises. The Lua side makes the error object. */
int  fm_net_fail(lua_State *L, const fm_error *err);
/* Metatable `name` with methods, and close as close, __gc and __close. */
void fm_net_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction close);

FM_API int luaopen_fathom_net(lua_State *L);

#endif
