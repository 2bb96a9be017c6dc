/*
** tokenizer.c - a tokenizer without a model.
*/
#include "bind/bind.h"

static fm_tokenizer *get(lua_State *L) { return fm_bind_get(L, 1, FM_CTOKENIZER); }

int fm_bind_tokenizer(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  fm_error err;
  fm_tokenizer *t;
  fm_handle *h = fm_bind_new(L, FM_CTOKENIZER);
  if (fm_tokenizer_open(&t, path, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = t;
  return 1;
}

static int k_close(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CTOKENIZER);
  fm_grammars_free(h->extra);
  fm_tokenizer_free(h->p);
  h->p = h->extra = NULL;
  return 0;
}

static int k_encode(lua_State *L) {
  fm_tokenizer *t = get(L);
  size_t len;
  const char *text = luaL_checklstring(L, 2, &len);
  void **box = fm_bind_box(L);
  int32_t *ids = NULL;
  int64_t n = 0, cap = 0;
  fm_error err;
  fm_status status = fm_tokenizer_encode(t, text, len, lua_toboolean(L, 3), &ids, &n, &cap, &err);
  *box = ids;
  if (status != FM_OK) return fm_bind_fail(L, &err);
  fm_bind_push_ids(L, ids, n);
  return 1;
}

static int k_decode(lua_State *L) {
  fm_tokenizer *t = get(L);
  int64_t n;
  int32_t *ids = fm_bind_ids(L, 2, &n);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (int64_t i = 0; i < n; i++) {
    size_t len;
    const char *bytes = fm_tokenizer_bytes(t, ids[i], &len);
    luaL_addlstring(&b, bytes, len);
  }
  luaL_pushresult(&b);
  return 1;
}

static int k_size(lua_State *L) {
  lua_pushinteger(L, fm_tokenizer_size(get(L)));
  return 1;
}

static int k_added(lua_State *L) {
  size_t len;
  fm_tokenizer *t = get(L);
  const char *text = luaL_checklstring(L, 2, &len);
  int32_t id = fm_tokenizer_added(t, text, len);
  if (id < 0) lua_pushnil(L);
  else lua_pushinteger(L, id);
  return 1;
}

static int k_tostring(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CTOKENIZER);
  if (h->p) lua_pushfstring(L, "fathom.tokenizer (%d tokens)", (int)fm_tokenizer_size(h->p));
  else lua_pushliteral(L, "fathom.tokenizer (closed)");
  return 1;
}

void fm_bind_open_tokenizer(lua_State *L) {
  static const luaL_Reg methods[] = { { "encode", k_encode }, { "decode", k_decode }, { "size", k_size },
    { "added", k_added }, { NULL, NULL } };
  fm_bind_class(L, FM_CTOKENIZER, methods, k_close, k_tostring);
}
