/*
** session.c - sessions and their tasks.
*/
#include "bind/bind.h"

#include <math.h>
#include <string.h>

static fm_session *get(lua_State *L) { return fm_bind_get(L, 1, FM_CSESSION); }
static fm_task *get_task(lua_State *L) { return fm_bind_get(L, 1, FM_CTASK); }

/* ---- sessions ---------------------------------------------------------------------------------------- */

int fm_bind_session(lua_State *L) {
  fm_model *m = fm_bind_get(L, 1, FM_CMODEL);
  fm_handle *h = fm_bind_new(L, FM_CSESSION);
  fm_session *s;
  fm_error err;
  if (fm_session_new(&s, m, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = s;
  return 1;
}

int fm_bind_restore(lua_State *L) {
  fm_model *m = fm_bind_get(L, 1, FM_CMODEL);
  const char *path = luaL_checkstring(L, 2);
  fm_handle *h = fm_bind_new(L, FM_CSESSION);
  void **box = fm_bind_box(L);
  fm_session *s;
  char *note;
  size_t n_note;
  fm_error err;
  if (fm_session_restore(&s, m, path, &note, &n_note, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = s;
  *box = note;
  lua_pushvalue(L, -2);
  lua_pushlstring(L, note, n_note);
  return 2;
}

static int s_close(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CSESSION);
  fm_session *s = h->p;
  h->p = NULL;
  fm_session_free(s);
  return 0;
}

static int s_fork(lua_State *L) {
  fm_session *s = get(L), *f;
  fm_handle *h = fm_bind_new(L, FM_CSESSION);
  fm_error err;
  if (fm_session_fork(&f, s, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = f;
  return 1;
}

static int s_ids(lua_State *L) {
  fm_session *s = get(L);
  fm_bind_push_ids(L, fm_session_ids(s), fm_session_len(s));
  return 1;
}

static int s_len(lua_State *L) {
  lua_pushinteger(L, fm_session_len(get(L)));
  return 1;
}

/* session:generated() -> { from, to, from, to, ... }: which of its ids (from 1) were sampled, not given. */
static int s_generated(lua_State *L) {
  fm_session *s = get(L);
  int64_t n = fm_session_len(s), out = 0;
  lua_newtable(L);
  for (int64_t i = 0; i < n; i++) {
    bool in = s->roles[i] == FM_GENERATED;
    bool before = i > 0 && s->roles[i - 1] == FM_GENERATED, after = i + 1 < n && s->roles[i + 1] == FM_GENERATED;
    for (int edge = 0; in && edge < !before + !after; edge++) {
      lua_pushinteger(L, i + 1);
      lua_rawseti(L, -2, ++out);
    }
  }
  return 1;
}

/* session:append(ids, generated): goes on with ids that nothing is computed for yet. */
static int s_append(lua_State *L) {
  fm_session *s = get(L);
  int64_t n;
  fm_error err;
  luaL_argcheck(L, !s->task, 1, "a task runs in the session");
  int32_t *ids = fm_bind_ids(L, 2, &n);
  for (int64_t i = 0; i < n; i++)
    luaL_argcheck(L, ids[i] >= 0 && ids[i] < s->m->cfg.vocab_size, 2, "an id is outside the vocabulary");
  luaL_argcheck(L, n <= s->m->ctx - s->n, 2, "more ids than the context holds");
  if (fm_session_append(s, ids, n, lua_toboolean(L, 3) ? FM_GENERATED : FM_PROMPT, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushboolean(L, true);
  return 1;
}

static int s_save(lua_State *L) {
  fm_session *s = get(L);
  size_t n_note;
  static const char *const forms[] = { "none", "stored", "8bit", NULL };    /* in the order of fm_pages */
  const char *path = luaL_checkstring(L, 2), *note = luaL_optlstring(L, 3, "", &n_note);
  fm_pages pages = (fm_pages)luaL_checkoption(L, 4, "stored", forms);
  fm_error err;
  if (fm_session_save(s, path, note, n_note, pages, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushboolean(L, true);
  return 1;
}

/* core.history(path) -> note, sound */
int fm_bind_history(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  void **box = fm_bind_box(L);
  char *note;
  size_t n_note;
  bool sound;
  fm_error err;
  if (fm_session_history(path, &note, &n_note, &sound, &err) != FM_OK) return fm_bind_fail(L, &err);
  *box = note;
  lua_pushlstring(L, note, n_note);
  lua_pushboolean(L, sound);
  return 2;
}

static int s_exact(lua_State *L) {
  lua_pushboolean(L, fm_session_exact(get(L)));
  return 1;
}

static int s_tostring(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CSESSION);
  if (h->p) lua_pushfstring(L, "fathom.core.session (%d ids)", (int)fm_session_len(h->p));
  else lua_pushliteral(L, "fathom.core.session (closed)");
  return 1;
}

/* ---- options of a task: arrays live in userdata on the stack ---------------------------------------------- */

static void read_bias(lua_State *L, fm_generate_options *o) {
  if (lua_getfield(L, 3, "logit_bias") == LUA_TNIL) return;
  luaL_argcheck(L, lua_istable(L, -1), 3, "logit_bias: expected a table of id = bias");
  int table = lua_gettop(L);
  int32_t n = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) n++;
  fm_logit_bias *b = lua_newuserdatauv(L, (size_t)(n ? n : 1) * sizeof *b, 0);
  n = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
    luaL_argcheck(L, lua_isinteger(L, -2) && lua_type(L, -1) == LUA_TNUMBER, 3, "logit_bias: expected id = bias");
    lua_Integer id = lua_tointeger(L, -2);
    luaL_argcheck(L, id >= 0 && id <= INT32_MAX, 3, "logit_bias: an id is out of range");
    b[n++] = (fm_logit_bias){ (int32_t)id, (float)lua_tonumber(L, -1) };
  }
  o->logit_bias = b;
  o->n_logit_bias = n;
}

static void read_id_lists(lua_State *L, fm_generate_options *o) {
  if (lua_getfield(L, 3, "stop_ids") != LUA_TNIL) {
    int64_t n;
    o->stop_ids = fm_bind_ids(L, -1, &n);
    o->n_stop_ids = (int32_t)n;
  }
  if (lua_getfield(L, 3, "forced") != LUA_TNIL) {
    int64_t n;
    o->forced = fm_bind_ids(L, -1, &n);
    o->n_forced = (int32_t)n;
  }
  if (lua_getfield(L, 3, "stop") == LUA_TNIL) return;
  luaL_argcheck(L, lua_istable(L, -1), 3, "stop: expected a list of strings");
  int table = lua_gettop(L);
  lua_Unsigned n = lua_rawlen(L, table);
  const char **stop = lua_newuserdatauv(L, (n ? n : 1) * sizeof *stop, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    luaL_argcheck(L, lua_rawgeti(L, table, (lua_Integer)i + 1) == LUA_TSTRING, 3, "stop: expected a list of strings");
    stop[i] = lua_tostring(L, -1);                 // alive in the list
    lua_pop(L, 1);
  }
  o->stop = stop;
  o->n_stop = (int32_t)n;
}

static int64_t ranged(lua_State *L, const char *key, lua_Integer otherwise, lua_Integer least, lua_Integer most) {
  lua_Integer v = fm_bind_int(L, 3, key, otherwise);
  if (v < least || v > most) luaL_error(L, "option %s: %I is out of range", key, v);
  return v;
}

static fm_generate_options read_options(lua_State *L) {
  fm_generate_options o = fm_generate_options_default();
  o.max_tokens = ranged(L, "max_tokens", -1, -1, INT32_MAX);
  o.temperature = (float)fm_bind_num(L, 3, "temperature", (lua_Number)o.temperature);
  o.top_k = (int32_t)ranged(L, "top_k", 0, 0, INT32_MAX);
  o.top_p = (float)fm_bind_num(L, 3, "top_p", 1);
  o.min_p = (float)fm_bind_num(L, 3, "min_p", 0);
  o.repeat_penalty = (float)fm_bind_num(L, 3, "repeat_penalty", 1);
  o.presence_penalty = (float)fm_bind_num(L, 3, "presence_penalty", 0);
  o.frequency_penalty = (float)fm_bind_num(L, 3, "frequency_penalty", 0);
  o.seed = (uint64_t)fm_bind_int(L, 3, "seed", 0);
  o.sample = (uint32_t)ranged(L, "sample", 0, 0, INT32_MAX);
  o.logprobs = (int32_t)ranged(L, "logprobs", -1, -1, INT32_MAX);
  o.mtp = (int)ranged(L, "mtp", -1, FM_MTP_AUTO, FM_MAX_DRAFTS);
  o.priority = (int)ranged(L, "priority", 0, -FM_MAX_PRIORITY, FM_MAX_PRIORITY);
  o.shift = fm_bind_bool(L, 3, "shift", false);
  o.keep = ranged(L, "keep", -1, -1, INT32_MAX);
  o.ignore_eos = fm_bind_bool(L, 3, "ignore_eos", false);
  o.grammar = fm_bind_str(L, 3, "grammar", NULL);
  o.schema = fm_bind_str(L, 3, "schema", NULL);
  o.grammar_after = (int32_t)ranged(L, "grammar_after", -1, -1, INT32_MAX);
  if (!lua_istable(L, 3)) return o;
  luaL_checkstack(L, 16, NULL);
  read_bias(L, &o);
  read_id_lists(L, &o);
  return o;
}

static int s_task(lua_State *L) {
  fm_session *s = get(L);
  int64_t n;
  lua_settop(L, 3);
  int32_t *ids = fm_bind_ids(L, 2, &n);
  fm_generate_options o = read_options(L);
  fm_handle *h = fm_bind_new(L, FM_CTASK);
  fm_task *t;
  fm_error err;
  if (fm_task_new(&t, s, ids, n, &o, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = t;
  return 1;
}

/* ---- tasks --------------------------------------------------------------------------------------------------- */

static int t_close(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CTASK);
  fm_task *t = h->p;
  h->p = NULL;
  fm_task_free(t);
  return 0;
}

/* nil: not asked for. */
static void push_logprob(lua_State *L, float v) {
  if (isnan(v)) lua_pushnil(L);
  else lua_pushnumber(L, (lua_Number)v + 0.0);     // -0 would come back from JSON as 0
}

static void push_top(lua_State *L, const fm_token *k) {
  lua_createtable(L, k->n_top, 0);
  for (int32_t i = 0; i < k->n_top; i++) {
    lua_createtable(L, 0, 2);
    lua_pushinteger(L, k->top[i].id);
    lua_setfield(L, -2, "id");
    push_logprob(L, k->top[i].logprob);
    lua_setfield(L, -2, "logprob");
    lua_rawseti(L, -2, i + 1);
  }
}

/* task:next() -> id, text, last, logprob, logprob_filtered, top; or nil. No table: there are thousands of tokens a second. */
static int t_next(lua_State *L) {
  fm_token k;
  if (!fm_task_next(get_task(L), &k)) {
    lua_pushnil(L);
    return 1;
  }
  lua_pushinteger(L, k.id);
  lua_pushlstring(L, k.text, k.len);
  lua_pushboolean(L, k.last);
  push_logprob(L, k.logprob);
  push_logprob(L, k.logprob_filtered);
  if (!k.n_top) return 5;
  push_top(L, &k);
  return 6;
}

static int t_state(lua_State *L) {
  static const char *const name[] = { "running", "stop", "length", "cancelled", "failed" };
  lua_pushstring(L, name[fm_task_finish(get_task(L), NULL)]);
  return 1;
}

static int t_error(lua_State *L) {
  fm_error err;
  if (fm_task_finish(get_task(L), &err) == FM_FAILED) fm_bind_push_error(L, &err);
  else lua_pushnil(L);
  return 1;
}

static int t_usage(lua_State *L) {
  fm_usage u = fm_task_usage(get_task(L));
  const struct { const char *key; int64_t v; } whole[] = { { "prompt", u.prompt }, { "cached", u.cached },
    { "completion", u.completion }, { "drafted", u.drafted }, { "accepted", u.accepted },
    { "shifted", u.shifted } };
  lua_createtable(L, 0, 9);
  for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
    lua_pushinteger(L, whole[i].v);
    lua_setfield(L, -2, whole[i].key);
  }
  lua_pushboolean(L, u.exact);
  lua_setfield(L, -2, "exact");
  lua_pushnumber(L, u.prefill_ms);
  lua_setfield(L, -2, "prefill_ms");
  lua_pushnumber(L, u.decode_ms);
  lua_setfield(L, -2, "decode_ms");
  return 1;
}

static int t_cancel(lua_State *L) {
  fm_task_cancel(get_task(L));
  return 0;
}

static int t_tostring(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CTASK);
  lua_pushstring(L, h->p ? "fathom.core.task" : "fathom.core.task (closed)");
  return 1;
}

void fm_bind_open_session(lua_State *L) {
  static const luaL_Reg session[] = { { "fork", s_fork }, { "ids", s_ids }, { "len", s_len }, { "save", s_save },
    { "exact", s_exact }, { "generated", s_generated }, { "append", s_append },
    { "task", s_task }, { NULL, NULL } };
  static const luaL_Reg task[] = { { "next", t_next }, { "state", t_state }, { "error", t_error },
    { "usage", t_usage }, { "cancel", t_cancel }, { NULL, NULL } };
  fm_bind_class(L, FM_CSESSION, session, s_close, s_tostring);
  fm_bind_class(L, FM_CTASK, task, t_close, t_tostring);
}
