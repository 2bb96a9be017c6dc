/*
** root.c - base/root.h for Lua: core.root(dir), and its read, write and list.
*/
#include "base/root.h"

#include <string.h>

#include "base/mem.h"
#include "bind/bind.h"

#define CROOT "fathom.core.root"

int fm_bind_root(lua_State *L) {
  const char *dir = luaL_checkstring(L, 1);
  fm_handle *h = fm_bind_new(L, CROOT);
  fm_root *r;
  fm_error err;
  if (fm_root_open(&r, dir, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = r;
  return 1;
}

static int r_close(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, CROOT);
  fm_root_close(h->p);
  h->p = NULL;
  return 0;
}

/* A path as C reads it: what stands behind a zero would be lost. */
static const char *path_at(lua_State *L, int index) {
  size_t len;
  const char *path = luaL_checklstring(L, index, &len);
  luaL_argcheck(L, strlen(path) == len, index, "a path holds no zero byte");
  return path;
}

/* root:read(path, max_size) -> bytes | nil, err */
static int r_read(lua_State *L) {
  fm_root *r = fm_bind_get(L, 1, CROOT);
  const char *path = path_at(L, 2);
  lua_Integer most = luaL_checkinteger(L, 3);
  void **box = fm_bind_box(L);
  char *data;
  int64_t size;
  fm_error err;
  if (fm_root_read(r, path, most, &data, &size, &err) != FM_OK) return fm_bind_fail(L, &err);
  *box = data;
  lua_pushlstring(L, data, (size_t)size);
  return 1;
}

/* root:write(path, bytes) -> true | nil, err */
static int r_write(lua_State *L) {
  size_t size;
  fm_root *r = fm_bind_get(L, 1, CROOT);
  const char *path = path_at(L, 2), *data = luaL_checklstring(L, 3, &size);
  fm_error err;
  if (fm_root_write(r, path, data, (int64_t)size, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushboolean(L, true);
  return 1;
}

/* Names are gathered outside Lua: an error of Lua must not leave the folder open. */
typedef struct names { char *text; int64_t len, cap; fm_status status; } names;

static void gather(void *user, const char *name, int64_t size) {
  names *n = user;
  int64_t len = (int64_t)strlen(name) + 1;
  if (n->status == FM_OK) n->status = fm_grow(&n->text, &n->cap, n->len + len + (int64_t)sizeof size, 1, NULL);
  if (n->status != FM_OK) return;
  memcpy(n->text + n->len, &size, sizeof size);
  memcpy(n->text + n->len + sizeof size, name, (size_t)len);
  n->len += len + (int64_t)sizeof size;
}

/* root:list(path, most) -> { { name =, size = }, ... } (no size: a folder), whether there are more | nil, err */
static int r_list(lua_State *L) {
  fm_root *r = fm_bind_get(L, 1, CROOT);
  const char *path = path_at(L, 2);
  lua_Integer most = luaL_checkinteger(L, 3);
  void **box = fm_bind_box(L);
  names n = { NULL, 0, 0, FM_OK };
  bool more;
  fm_error err;
  fm_status status = fm_root_list(r, path, most, gather, &n, &more, &err);
  *box = n.text;
  if (status == FM_OK && n.status != FM_OK) status = fm_no_memory(&err, n.cap);
  if (status != FM_OK) return fm_bind_fail(L, &err);
  lua_newtable(L);
  for (int64_t at = 0, i = 1; at < n.len; i++) {
    int64_t size;
    memcpy(&size, n.text + at, sizeof size);
    at += (int64_t)sizeof size;
    lua_createtable(L, 0, 2);
    lua_pushstring(L, n.text + at);
    lua_setfield(L, -2, "name");
    if (size >= 0) {
      lua_pushinteger(L, size);
      lua_setfield(L, -2, "size");
    }
    lua_rawseti(L, -2, i);
    at += (int64_t)strlen(n.text + at) + 1;
  }
  lua_pushboolean(L, more);
  return 2;
}

static int r_tostring(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, CROOT);
  lua_pushstring(L, h->p ? CROOT : CROOT " (closed)");
  return 1;
}

void fm_bind_open_root(lua_State *L) {
  static const luaL_Reg methods[] = { { "read", r_read }, { "write", r_write }, { "list", r_list }, { NULL, NULL } };
  fm_bind_class(L, CROOT, methods, r_close, r_tostring);
}
