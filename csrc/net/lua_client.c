/*
** lua_client.c - client.h for Lua: net.client() and its transfers.
** A transfer keeps its client alive in a user value; closing either is allowed at any time.
*/
#include "net/client.h"
#include "net/net.h"

#include <string.h>
#include <strings.h>

#include "base/mem.h"

#define CLIENT "fathom.net.client"
#define TRANSFER "fathom.net.transfer"

static void *get(lua_State *L, int index, const char *name) {
  void **box = luaL_checkudata(L, index, name);
  if (!*box) luaL_error(L, "attempt to use a closed %s", strrchr(name, '.') + 1);
  return *box;
}

static void **box_new(lua_State *L, const char *name) {
  void **box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = NULL;
  luaL_setmetatable(L, name);
  return box;
}

/* ---- fields of a request ----------------------------------------------------------------------------- */

/* The string stays alive in the table. */
static const char *text(lua_State *L, int index, const char *key) {
  int type = lua_getfield(L, index, key);
  if (type != LUA_TNIL && type != LUA_TSTRING) luaL_error(L, "%s: expected a string, got %s", key, luaL_typename(L, -1));
  const char *s = lua_tostring(L, -1);
  lua_pop(L, 1);
  return s;
}

static int64_t number(lua_State *L, int index, const char *key) {
  lua_getfield(L, index, key);
  lua_Number v = luaL_optnumber(L, -1, 0);
  if (!(v >= 0 && v < 1e15)) luaL_error(L, "%s: out of range", key);
  lua_pop(L, 1);
  return (int64_t)v;
}

/* Pointers into the list of strings at field "headers"; the array is a userdata that is pushed. */
static void headers(lua_State *L, int index, fm_request *r) {
  int type = lua_getfield(L, index, "headers");
  if (type == LUA_TNIL) return;
  luaL_checktype(L, -1, LUA_TTABLE);
  r->n_headers = (int)luaL_len(L, -1);
  const char **lines = lua_newuserdatauv(L, (size_t)(r->n_headers + 1) * sizeof *lines, 0);
  for (int i = 0; i < r->n_headers; i++) {
    if (lua_rawgeti(L, -2, i + 1) != LUA_TSTRING) luaL_error(L, "headers[%d]: expected a string", i + 1);
    lines[i] = lua_tostring(L, -1);
    lua_pop(L, 1);
  }
  r->headers = lines;
}

/* client:request{ url=, method=, headers=, body=, connect_ms=, idle_ms=, total_ms=, max_size=, proxy=, ca_file=, public_only= }
   -> transfer | nil, code, message */
static int c_request(lua_State *L) {
  fm_error err;
  fm_client *c = get(L, 1, CLIENT);
  luaL_checktype(L, 2, LUA_TTABLE);
  fm_request r = { .url = text(L, 2, "url"), .method = text(L, 2, "method"), .proxy = text(L, 2, "proxy"),
                   .ca_file = text(L, 2, "ca_file"), .connect_ms = number(L, 2, "connect_ms"),
                   .idle_ms = number(L, 2, "idle_ms"), .total_ms = number(L, 2, "total_ms"),
                   .max_size = number(L, 2, "max_size") };
  if (!r.url) luaL_error(L, "url: expected a string, got nil");
  r.body = text(L, 2, "body");
  if (r.body) {
    lua_getfield(L, 2, "body");
    r.body_size = (int64_t)lua_rawlen(L, -1);
  }
  headers(L, 2, &r);
  lua_getfield(L, 2, "public_only");
  r.public_only = lua_toboolean(L, -1);
  lua_pop(L, 1);
  void **box = box_new(L, TRANSFER);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  fm_transfer *t;
  if (fm_transfer_new(&t, c, &r, &err) != FM_OK) return fm_net_fail(L, &err);
  *box = t;
  return 1;
}

/* client:step(ms) -> how many transfers run | nil, code, message */
static int c_step(lua_State *L) {
  fm_error err;
  int n;
  fm_client *c = get(L, 1, CLIENT);
  lua_Number ms = luaL_optnumber(L, 2, 0);
  if (fm_client_step(c, ms > 0 ? ms < 1e6 ? (int)ms : 1000000 : 0, &n, &err) != FM_OK) return fm_net_fail(L, &err);
  lua_pushinteger(L, n);
  return 1;
}

static int c_close(lua_State *L) {
  void **box = luaL_checkudata(L, 1, CLIENT);
  fm_client_free(*box);
  *box = NULL;
  return 0;
}

/* net.client() -> client | nil, code, message */
static int client(lua_State *L) {
  fm_error err;
  void **box = box_new(L, CLIENT);
  fm_client *c;
  if (fm_client_new(&c, &err) != FM_OK) return fm_net_fail(L, &err);
  *box = c;
  return 1;
}

/* ---- transfers --------------------------------------------------------------------------------------- */

/* transfer:take() -> the bytes that came since, "" for none */
static int t_take(lua_State *L) {
  int64_t size;
  fm_transfer *t = get(L, 1, TRANSFER);
  const char *data = fm_transfer_body(t, &size);
  lua_pushlstring(L, size ? data : "", (size_t)size);
  fm_transfer_taken(t);
  return 1;
}

/* transfer:news() -> whether bytes wait to be taken, or it is over */
static int t_news(lua_State *L) {
  int64_t size;
  fm_transfer *t = get(L, 1, TRANSFER);
  fm_transfer_body(t, &size);
  lua_pushboolean(L, size > 0 || fm_transfer_now(t) != FM_TRANSFER_RUNNING);
  return 1;
}

/* transfer:state() -> "running" | "done" | "failed", code, message */
static int t_state(lua_State *L) {
  static const char *const name[] = { "running", "done", "failed" };
  fm_transfer *t = get(L, 1, TRANSFER);
  fm_transfer_state state = fm_transfer_now(t);
  lua_pushstring(L, name[state]);
  if (state != FM_TRANSFER_FAILED) return 1;
  lua_pushstring(L, fm_status_name(fm_transfer_error(t)->code));
  lua_pushstring(L, fm_transfer_error(t)->message);
  return 3;
}

/* transfer:status() -> 200, or nil before the head is there */
static int t_status(lua_State *L) {
  int status = fm_transfer_status(get(L, 1, TRANSFER));
  if (status) lua_pushinteger(L, status);
  else lua_pushnil(L);
  return 1;
}

/* transfer:header(name) -> its value | nil; the last one where there are several */
static int t_header(lua_State *L) {
  int64_t size;
  size_t len;
  fm_transfer *t = get(L, 1, TRANSFER);
  const char *name = luaL_checklstring(L, 2, &len), *p = fm_transfer_head(t, &size), *end = p ? p + size : p;
  lua_pushnil(L);
  while (p < end) {
    const char *eol = memchr(p, '\n', (size_t)(end - p)), *next = eol ? eol + 1 : end;
    if (!eol) eol = end;
    if ((size_t)(eol - p) > len && p[len] == ':' && strncasecmp(p, name, len) == 0) {
      const char *v = p + len + 1;
      while (v < eol && (*v == ' ' || *v == '\t')) v++;
      while (eol > v && (eol[-1] == '\r' || eol[-1] == ' ')) eol--;
      lua_pop(L, 1);
      lua_pushlstring(L, v, (size_t)(eol - v));
    }
    p = next;
  }
  return 1;
}

static int t_close(lua_State *L) {
  void **box = luaL_checkudata(L, 1, TRANSFER);
  fm_transfer_free(*box);
  *box = NULL;
  return 0;
}

void fm_net_open_client(lua_State *L) {
  static const luaL_Reg of_client[] = { { "request", c_request }, { "step", c_step }, { NULL, NULL } };
  static const luaL_Reg of_transfer[] = { { "take", t_take }, { "news", t_news }, { "state", t_state }, { "status", t_status },
                                          { "header", t_header }, { NULL, NULL } };
  fm_net_class(L, CLIENT, of_client, c_close);
  fm_net_class(L, TRANSFER, of_transfer, t_close);
  lua_pushcfunction(L, client);
  lua_setfield(L, -2, "client");
}
