/*
** tensor.c - fathom.tensor: f32 numbers that came out of the engine, read from Lua.
*/
#include "bind/bind.h"

#include <stdio.h>
#include <string.h>

typedef struct tensor { float *data; int ndim; int64_t shape[FM_MAX_DIMS]; } tensor;

void fm_bind_push_tensor(lua_State *L, void **box, int ndim, const int64_t *shape) {
  tensor *t = lua_newuserdatauv(L, sizeof *t, 0);
  *t = (tensor){ .data = *box, .ndim = ndim };
  *box = NULL;
  memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
  luaL_setmetatable(L, FM_CTENSOR);
}

static tensor *get(lua_State *L) {
  tensor *t = luaL_checkudata(L, 1, FM_CTENSOR);
  if (!t->data) luaL_error(L, "attempt to use a closed tensor");
  return t;
}

static int64_t len_from(const tensor *t, int axis) {
  int64_t n = 1;
  for (int i = axis; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

static int t_close(lua_State *L) {
  tensor *t = luaL_checkudata(L, 1, FM_CTENSOR);
  fm_release(t->data);
  t->data = NULL;
  return 0;
}

static int t_shape(lua_State *L) {
  tensor *t = get(L);
  lua_createtable(L, t->ndim, 0);
  for (int i = 0; i < t->ndim; i++) {
    lua_pushinteger(L, t->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* Offset of the element or part that the arguments from 2 on name. */
static int64_t offset(lua_State *L, const tensor *t, int n) {
  int64_t at = 0;
  for (int i = 0; i < n; i++) {
    lua_Integer v = luaL_checkinteger(L, i + 2);
    luaL_argcheck(L, v >= 1 && v <= t->shape[i], i + 2, "index outside the tensor");
    at += (v - 1) * len_from(t, i + 1);
  }
  return at;
}

static int t_get(lua_State *L) {
  tensor *t = get(L);
  if (lua_gettop(L) - 1 != t->ndim) return luaL_error(L, "expected %d indices, got %d", t->ndim, lua_gettop(L) - 1);
  lua_pushnumber(L, (lua_Number)t->data[offset(L, t, t->ndim)]);
  return 1;
}

/* Nested lists of the part at p that spans axes axis .. ndim-1. */
static void push_part(lua_State *L, const tensor *t, const float *p, int axis) {
  if (axis == t->ndim) {
    lua_pushnumber(L, (lua_Number)*p);
    return;
  }
  int64_t step = len_from(t, axis + 1);
  luaL_checkstack(L, 4, NULL);
  lua_createtable(L, (int)t->shape[axis], 0);
  for (int64_t i = 0; i < t->shape[axis]; i++) {
    push_part(L, t, p + i * step, axis + 1);
    lua_rawseti(L, -2, i + 1);
  }
}

static int t_row(lua_State *L) {
  tensor *t = get(L);
  push_part(L, t, t->data + offset(L, t, 1), 1);
  return 1;
}

static int t_totable(lua_State *L) {
  tensor *t = get(L);
  push_part(L, t, t->data, 0);
  return 1;
}

/* tensor:slice(i, ...): a tensor of its own, with the named leading axes gone. */
static int t_slice(lua_State *L) {
  tensor *t = get(L);
  int n = lua_gettop(L) - 1;
  luaL_argcheck(L, n < t->ndim, n + 1, "too many indices");
  int64_t at = offset(L, t, n), size = len_from(t, n) * (int64_t)sizeof(float);
  void **box = fm_bind_box(L);
  *box = fm_alloc(size);
  if (!*box) {
    fm_error err;
    fm_no_memory(&err, size);
    return fm_bind_fail(L, &err);
  }
  memcpy(*box, t->data + at, (size_t)size);
  fm_bind_push_tensor(L, box, t->ndim - n, t->shape + n);
  return 1;
}

static int t_len(lua_State *L) {
  tensor *t = get(L);
  lua_pushinteger(L, t->ndim ? t->shape[0] : 0);
  return 1;
}

static int t_bytes(lua_State *L) {
  tensor *t = get(L);
  lua_pushlstring(L, (const char *)t->data, (size_t)len_from(t, 0) * sizeof(float));
  return 1;
}

static int t_tostring(lua_State *L) {
  tensor *t = luaL_checkudata(L, 1, FM_CTENSOR);
  char shape[96];
  lua_pushfstring(L, "fathom.tensor %s f32%s", fm_shape_string(shape, sizeof shape, t->ndim, t->shape),
                  t->data ? "" : " (closed)");
  return 1;
}

void fm_bind_open_tensor(lua_State *L) {
  static const luaL_Reg methods[] = { { "shape", t_shape }, { "get", t_get }, { "row", t_row },
    { "totable", t_totable }, { "slice", t_slice }, { "bytes", t_bytes }, { NULL, NULL } };
  fm_bind_class(L, FM_CTENSOR, methods, t_close, t_tostring);
  luaL_getmetatable(L, FM_CTENSOR);
  lua_pushcfunction(L, t_len);
  lua_setfield(L, -2, "__len");
  lua_pop(L, 1);
}
