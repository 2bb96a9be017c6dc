/*
** core.c - luaopen_fathom_core: devices, plan, loader.
*/
#include "bind/bind.h"

#include <string.h>

#include "base/file.h"

fm_load_options fm_bind_load_options(lua_State *L, int index) {
  fm_load_options o = fm_load_options_default();
  o.device = fm_bind_str(L, index, "device", NULL);
  o.dtype = fm_bind_str(L, index, "dtype", NULL);
  o.cpus = fm_bind_str(L, index, "cpus", NULL);
  o.cache_dtype = fm_bind_str(L, index, "cache_dtype", NULL);
  o.experts = fm_bind_str(L, index, "experts", NULL);
  o.ctx = fm_bind_int(L, index, "ctx", 0);
  o.seqs = fm_bind_int(L, index, "seqs", 0);
  lua_Integer threads = fm_bind_int(L, index, "threads", 0), mtp = fm_bind_int(L, index, "mtp", -1);
  o.tp = (int)fm_bind_int(L, index, "tp", 0);
  o.dp = (int)fm_bind_int(L, index, "dp", 0);
  o.pp = (int)fm_bind_int(L, index, "pp", 0);
  o.ep = (int)fm_bind_int(L, index, "ep", 0);
  o.threads = threads < 0 || threads > 4096 ? -1 : (int)threads;
  o.mtp = mtp < FM_MTP_AUTO || mtp > 4096 ? 4096 : (int)mtp;
  o.chunk = fm_bind_int(L, index, "chunk", 0);
  o.budget = fm_bind_int(L, index, "budget", 0);
  o.cache_bytes = fm_bind_int(L, index, "cache_bytes", 0);
  o.prefix_bytes = fm_bind_int(L, index, "prefix_bytes", -1);
  o.verify = fm_bind_bool(L, index, "verify", false);
  o.nondeterministic = !fm_bind_bool(L, index, "deterministic", true);
  o.debug = fm_bind_bool(L, index, "debug", false);
  return o;
}

static void push_device(lua_State *L, const fm_ctx *c, const char *name) {
  int64_t total = 0, avail = 0;
  const char *simd;
  int threads;
  c->ops->memory(c->dev, &total, &avail);
  c->ops->info(c->dev, &simd, &threads);
  lua_createtable(L, 0, 5);
  lua_pushstring(L, name);
  lua_setfield(L, -2, "name");
  lua_pushstring(L, simd);
  lua_setfield(L, -2, strcmp(name, "cpu") == 0 ? "simd" : "compute");
  lua_pushinteger(L, threads);
  lua_setfield(L, -2, "threads");
  lua_pushinteger(L, total);
  lua_setfield(L, -2, "total");
  lua_pushinteger(L, avail);
  lua_setfield(L, -2, "free");
}

/* The cpu, then GPUs until one is missing; why there is none, when there is none. */
static int core_devices(lua_State *L) {
  fm_ctx c;
  fm_error err;
  char name[16];
  int n = 0;
  lua_settop(L, 0);
  lua_newtable(L);
  if (fm_ctx_open(&c, "cpu", 0, &err) != FM_OK) return fm_bind_fail(L, &err);
  push_device(L, &c, "cpu");
  fm_ctx_close(&c);
  lua_rawseti(L, 1, 1);
  for (;; n++) {
    snprintf(name, sizeof name, "cuda:%d", n);
    if (fm_ctx_open(&c, name, 0, &err) != FM_OK) break;
    push_device(L, &c, name);
    fm_ctx_close(&c);
    lua_rawseti(L, 1, n + 2);
  }
  if (n > 0) return 1;
  lua_pushstring(L, err.message);
  return 2;
}

static void set_int(lua_State *L, const char *key, int64_t v) {
  lua_pushinteger(L, v);
  lua_setfield(L, -2, key);
}

/* What each device holds, and the ways to share the work. */
static void push_ranks(lua_State *L, const fm_plan *p) {
  lua_createtable(L, p->n_ranks, 0);
  for (int i = 0; i < p->n_ranks; i++) {
    const fm_rank_plan *r = &p->ranks[i];
    lua_createtable(L, 0, 6);
    lua_pushstring(L, r->device);
    lua_setfield(L, -2, "name");
    set_int(L, "weights", r->weights), set_int(L, "cache", r->cache), set_int(L, "scratch", r->scratch);
    set_int(L, "memory", r->memory), set_int(L, "free", r->free_memory);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "devices");
  lua_createtable(L, p->n_forms, 0);
  for (int i = 0; i < p->n_forms; i++) {
    const fm_form_plan *f = &p->forms[i];
    lua_createtable(L, 0, 8);
    set_int(L, "pp", f->pp), set_int(L, "dp", f->dp), set_int(L, "tp", f->tp), set_int(L, "ep", f->ep);
    set_int(L, "weights", f->weights);
    lua_pushnumber(L, f->read_ms);
    lua_setfield(L, -2, "read_ms");
    lua_pushnumber(L, f->link_ms);
    lua_setfield(L, -2, "link_ms");
    lua_pushboolean(L, f->fits);
    lua_setfield(L, -2, "fits");
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "forms");
}

static int core_plan(lua_State *L) {
  const char *dir = luaL_checkstring(L, 1);
  fm_load_options o = fm_bind_load_options(L, 2);
  fm_plan p;
  fm_error err;
  if (fm_plan_make(&p, dir, &o, &err) != FM_OK) return fm_bind_fail(L, &err);
  const struct { const char *key; int64_t v; } whole[] = { { "parameters", p.parameters }, { "weights", p.weights },
    { "cache", p.cache }, { "scratch", p.scratch }, { "ctx", p.ctx }, { "seqs", p.seqs }, { "max_ctx", p.max_ctx },
    { "memory", p.memory }, { "free", p.free_memory }, { "host_weights", p.host_weights }, { "host_memory", p.host_memory },
    { "host_free", p.host_free } };
  lua_createtable(L, 0, 8);
  for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
    lua_pushinteger(L, whole[i].v);
    lua_setfield(L, -2, whole[i].key);
  }
  lua_pushstring(L, p.device);
  lua_setfield(L, -2, "device");
  push_ranks(L, &p);
  fm_plan_free(&p);
  return 1;
}

static int core_error(lua_State *L) {
  static const char *const field[] = { "code", "message", "hint" };
  lua_settop(L, 3);
  lua_createtable(L, 0, 3);
  for (int i = 0; i < 3; i++) {
    if (i < 2) luaL_checkstring(L, i + 1);
    lua_pushvalue(L, i + 1);
    lua_setfield(L, -2, field[i]);
  }
  luaL_setmetatable(L, FM_CERROR);
  return 1;
}

static int error_tostring(lua_State *L) {
  lua_getfield(L, 1, "message");
  lua_getfield(L, 1, "code");
  lua_pushfstring(L, "%s (%s)", lua_tostring(L, -2), lua_tostring(L, -1));
  if (lua_getfield(L, 1, "hint") == LUA_TSTRING) lua_pushfstring(L, "%s; %s", lua_tostring(L, -2), lua_tostring(L, -1));
  else lua_pop(L, 1);
  return 1;
}

/* Milliseconds of a clock that only goes forward. */
static int core_now(lua_State *L) {
  lua_pushnumber(L, fm_now_ms());
  return 1;
}

/* core.read(path) -> the bytes of a checkpoint's file, through the host's hooks; nil where there is none, or it cannot be read */
static int core_read(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  void **box = fm_bind_box(L);
  char *text;
  int64_t size;
  if (!fm_file_exists(path) || fm_file_load(&text, &size, path, 64 << 20, NULL) != FM_OK) return 0;
  *box = text;
  lua_pushlstring(L, text, (size_t)size);
  return 1;
}

/* Which of how many processes that work together this one is. */
static int core_seat(lua_State *L) {
  fm_seat s;
  fm_error err;
  if (fm_seat_find(&s, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushinteger(L, s.rank);
  lua_pushinteger(L, s.world);
  return 2;
}

/* ---- loader ---------------------------------------------------------------------------------------- */

static int core_loader(lua_State *L) {
  const char *dir = luaL_checkstring(L, 1);
  fm_load_options o = fm_bind_load_options(L, 2);
  fm_handle *h = fm_bind_new(L, FM_CLOADER);
  fm_loader *l;
  fm_error err;
  if (fm_loader_open(&l, dir, &o, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = l;
  return 1;
}

static int l_close(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CLOADER);
  fm_loader_close(h->p);
  h->p = NULL;
  return 0;
}

static int l_step(lua_State *L) {
  int64_t done, total;
  fm_error err;
  if (fm_loader_step(fm_bind_get(L, 1, FM_CLOADER), &done, &total, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushinteger(L, done);
  lua_pushinteger(L, total);
  return 2;
}

static int l_finish(lua_State *L) {
  fm_loader *l = fm_bind_get(L, 1, FM_CLOADER);
  fm_handle *h = fm_bind_new(L, FM_CMODEL);
  fm_model *m;
  fm_error err;
  if (fm_loader_finish(l, &m, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = m;
  return 1;
}

static int l_tostring(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CLOADER);
  lua_pushstring(L, h->p ? "fathom.core.loader" : "fathom.core.loader (closed)");
  return 1;
}

int luaopen_fathom_core(lua_State *L) {
  static const luaL_Reg loader[] = { { "step", l_step }, { "finish", l_finish }, { NULL, NULL } };
  static const luaL_Reg functions[] = { { "devices", core_devices }, { "plan", core_plan },
    { "loader", core_loader }, { "tokenizer", fm_bind_tokenizer }, { "guide", fm_bind_guide }, { "error", core_error },
    { "history", fm_bind_history }, { "adopt", fm_bind_adopt }, { "read", core_read }, { "seat", core_seat }, { "now", core_now }, { "fence", fm_bind_fence },
    { "root", fm_bind_root }, { NULL, NULL } };
  luaL_checkversion(L);
  luaL_newmetatable(L, FM_CERROR);
  lua_pushcfunction(L, error_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pop(L, 1);
  fm_bind_class(L, FM_CLOADER, loader, l_close, l_tostring);
  fm_bind_open_tensor(L);
  fm_bind_open_tokenizer(L);
  fm_bind_open_model(L);
  fm_bind_open_session(L);
  fm_bind_open_guide(L);
  fm_bind_open_root(L);
  fm_bind_open_fence(L);
  luaL_newlib(L, functions);
  lua_pushstring(L, fm_version());
  lua_setfield(L, -2, "version");
  return 1;
}
