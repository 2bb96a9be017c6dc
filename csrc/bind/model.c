/*
** model.c - a loaded model: ids and text, straight computation, the clock.
*/
#include "bind/bind.h"

#include <cjson/cJSON.h>
#include <stdio.h>

static fm_model *get(lua_State *L) { return fm_bind_get(L, 1, FM_CMODEL); }

static int m_close(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CMODEL);
  fm_model *m = h->p;
  h->p = NULL;
  fm_model_close(m);
  return 0;
}

static int m_encode(lua_State *L) {
  size_t len;
  fm_model *m = get(L);
  const char *text = luaL_checklstring(L, 2, &len);
  void **box = fm_bind_box(L);
  int32_t *ids = NULL;
  int64_t n = 0;
  fm_error err;
  if (fm_model_encode(m, text, len, lua_toboolean(L, 3), &ids, &n, &err) != FM_OK) return fm_bind_fail(L, &err);
  *box = ids;
  fm_bind_push_ids(L, ids, n);
  return 1;
}

static int m_decode(lua_State *L) {
  fm_model *m = get(L);
  int64_t n;
  int32_t *ids = fm_bind_ids(L, 2, &n);
  void **box = fm_bind_box(L);
  char *text = NULL;
  size_t len = 0;
  fm_error err;
  if (fm_model_decode(m, ids, n, &text, &len, &err) != FM_OK) return fm_bind_fail(L, &err);
  *box = text;
  lua_pushlstring(L, text ? text : "", len);
  return 1;
}

static int m_added(lua_State *L) {
  size_t len;
  fm_tokenizer *t = fm_model_tokenizer(get(L));
  const char *text = luaL_checklstring(L, 2, &len);
  int32_t id = t ? fm_tokenizer_added(t, text, len) : -1;
  if (id < 0) lua_pushnil(L);
  else lua_pushinteger(L, id);
  return 1;
}

static int m_is_added(lua_State *L) {
  fm_tokenizer *t = fm_model_tokenizer(get(L));
  lua_Integer id = luaL_checkinteger(L, 2);
  lua_pushboolean(L, t && id >= 0 && id <= INT32_MAX && fm_tokenizer_is_added(t, (int32_t)id));
  return 1;
}

static int m_has_tokenizer(lua_State *L) {
  lua_pushboolean(L, fm_model_has_tokenizer(get(L)));
  return 1;
}

/* ---- config ------------------------------------------------------------------------------------------ */

static void push_json(lua_State *L, const cJSON *v) {
  const cJSON *item;
  lua_Integer i = 0;
  luaL_checkstack(L, 8, NULL);
  if (cJSON_IsBool(v)) lua_pushboolean(L, cJSON_IsTrue(v));
  else if (cJSON_IsString(v)) lua_pushstring(L, v->valuestring);
  else if (cJSON_IsNumber(v)) {
    lua_Integer whole;
    if (lua_numbertointeger(v->valuedouble, &whole) && (lua_Number)whole == v->valuedouble) lua_pushinteger(L, whole);
    else lua_pushnumber(L, v->valuedouble);
  } else if (cJSON_IsArray(v) || cJSON_IsObject(v)) {
    lua_newtable(L);
    cJSON_ArrayForEach(item, v) {
      i++;
      if (cJSON_IsNull(item)) continue;
      push_json(L, item);
      if (cJSON_IsArray(v)) lua_rawseti(L, -2, i);
      else lua_setfield(L, -2, item->string);
    }
  } else lua_pushnil(L);
}

static void fill_int(lua_State *L, const char *key, int64_t v) {
  if (lua_getfield(L, -1, key) == LUA_TNIL) {
    lua_pushinteger(L, v);
    lua_setfield(L, -3, key);
  }
  lua_pop(L, 1);
}

static void fill_num(lua_State *L, const char *key, double v) {
  if (lua_getfield(L, -1, key) == LUA_TNIL) {
    lua_pushnumber(L, v);
    lua_setfield(L, -3, key);
  }
  lua_pop(L, 1);
}

static void fill_bool(lua_State *L, const char *key, bool v) {
  if (lua_getfield(L, -1, key) == LUA_TNIL) {
    lua_pushboolean(L, v);
    lua_setfield(L, -3, key);
  }
  lua_pop(L, 1);
}

static void fill_str(lua_State *L, const char *key, const char *v) {
  if (lua_getfield(L, -1, key) == LUA_TNIL) {
    lua_pushstring(L, v);
    lua_setfield(L, -3, key);
  }
  lua_pop(L, 1);
}

static void fill_deepseek(lua_State *L, const fm_config *g) {
  static const char *const method[] = { "greedy", "group_limited_greedy", "noaux_tc" };
  fill_int(L, "moe_intermediate_size", g->moe_intermediate_size);
  fill_int(L, "first_k_dense_replace", g->first_k_dense_replace);
  fill_int(L, "moe_layer_freq", g->moe_layer_freq);
  fill_int(L, "num_nextn_predict_layers", g->num_nextn_predict_layers);
  if (g->q_lora_rank) fill_int(L, "q_lora_rank", g->q_lora_rank);
  fill_int(L, "kv_lora_rank", g->kv_lora_rank);
  fill_int(L, "qk_nope_head_dim", g->qk_nope_head_dim);
  fill_int(L, "qk_rope_head_dim", g->qk_rope_head_dim);
  fill_int(L, "v_head_dim", g->v_head_dim);
  fill_int(L, "n_routed_experts", g->n_routed_experts);
  fill_int(L, "n_shared_experts", g->n_shared_experts);
  fill_int(L, "num_experts_per_tok", g->num_experts_per_tok);
  fill_int(L, "n_group", g->n_group);
  fill_int(L, "topk_group", g->topk_group);
  fill_num(L, "routed_scaling_factor", g->routed_scaling_factor);
  fill_bool(L, "norm_topk_prob", g->norm_topk_prob);
  fill_str(L, "scoring_func", g->scoring_func == FM_SIGMOID ? "sigmoid" : "softmax");
  fill_str(L, "topk_method", method[g->topk_method]);
}

static void fill_defaults(lua_State *L, const fm_config *g) {
  fill_int(L, "num_key_value_heads", g->num_key_value_heads);
  fill_int(L, "max_position_embeddings", g->max_position_embeddings);
  fill_num(L, "rms_norm_eps", g->rms_norm_eps);
  fill_num(L, "rope_theta", g->rope_theta);
  fill_bool(L, "tie_word_embeddings", g->tie_word_embeddings);
  fill_bool(L, "rope_interleave", g->rope_interleave);
  fill_str(L, "hidden_act", "silu");
  if (g->family == FM_QWEN2) fill_int(L, "head_dim", g->head_dim);
  else fill_deepseek(L, g);
}

static int close_json(lua_State *L) {
  fm_handle *h = lua_touserdata(L, 1);
  fm_json_free(h->p);
  h->p = NULL;
  return 0;
}

static int m_config(lua_State *L) {
  fm_model *m = get(L);
  char path[4096];
  fm_error err;
  fm_json *j;
  snprintf(path, sizeof path, "%s/config.json", fm_model_dir(m));
  fm_handle *h = lua_newuserdatauv(L, sizeof *h, 0);
  h->p = NULL;
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, close_json);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  if (fm_json_load(&j, path, 1 << 20, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = j;
  push_json(L, j);
  fill_defaults(L, fm_model_config(m));
  return 1;
}

/* ---- facts ----------------------------------------------------------------------------------------------- */

static int m_vocab_size(lua_State *L) {
  lua_pushinteger(L, fm_model_vocab_size(get(L)));
  return 1;
}

static int m_ctx(lua_State *L) {
  lua_pushinteger(L, fm_model_ctx(get(L)));
  return 1;
}

static int m_eos(lua_State *L) {
  const fm_config *g = fm_model_config(get(L));
  fm_bind_push_ids(L, g->eos_token_id, g->n_eos);
  return 1;
}

static int m_bos(lua_State *L) {
  const fm_config *g = fm_model_config(get(L));
  if (g->bos_token_id < 0) lua_pushnil(L);
  else lua_pushinteger(L, g->bos_token_id);
  return 1;
}

static int m_defaults(lua_State *L) {
  const fm_config *g = fm_model_config(get(L));
  lua_pushnumber(L, (lua_Number)g->default_temperature);
  lua_pushnumber(L, (lua_Number)g->default_top_p);
  return 2;
}

static int m_mtp(lua_State *L) {
  lua_pushinteger(L, fm_model_mtp(get(L)));
  return 1;
}

/* core:load(layer from 0) -> counts by expert; none where the layer has no experts */
static int m_load(lua_State *L) {
  fm_model *m = get(L);
  int64_t n = fm_model_config(m)->n_routed_experts, *count = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *count, 0);
  fm_error err;
  fm_status status = fm_model_expert_load(m, luaL_checkinteger(L, 2), count, &err);
  if (status == FM_EINVAL) return fm_bind_fail(L, &err);
  lua_newtable(L);
  for (int64_t i = 0; i < n && status == FM_OK; i++) {
    lua_pushinteger(L, count[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* What seeds that are drawn begin with, the same in all processes; nothing where there is but one. */
static int m_seeds(lua_State *L) {
  const fm_model *m = get(L);
  if (!m->wire) return 0;
  lua_pushinteger(L, m->seeds);
  return 1;
}

static int m_stats(lua_State *L) {
  fm_stats s = fm_model_stats(get(L));
  const struct { const char *key; int64_t v; } whole[] = {
    { "threads", s.threads }, { "ranks", s.ranks }, { "tp", s.tp }, { "dp", s.dp }, { "pp", s.pp }, { "ep", s.ep },
    { "processes", s.processes }, { "process", s.process },
    { "prompt_tokens", s.prompt_tokens }, { "generated_tokens", s.generated_tokens },
    { "steps", s.steps }, { "set_back", s.set_back }, { "prefix_pages", s.prefix_pages }, { "drafted", s.drafted }, { "accepted", s.accepted }, { "pages", s.pages },
    { "pages_used", s.pages_used }, { "page_tokens", s.page_tokens }, { "weight_bytes", s.weight_bytes },
    { "host_weight_bytes", s.host_weight_bytes }, { "cache_bytes", s.cache_bytes }, { "scratch_bytes", s.scratch_bytes } };
  lua_newtable(L);
  for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
    lua_pushinteger(L, whole[i].v);
    lua_setfield(L, -2, whole[i].key);
  }
  char digest[17];
  snprintf(digest, sizeof digest, "%016llx", (unsigned long long)get(L)->digest);
  lua_pushstring(L, digest);                       // of names, shapes, dtypes and a sample of the weights: tells models apart
  lua_setfield(L, -2, "digest");
  lua_pushstring(L, s.device);
  lua_setfield(L, -2, "device");
  lua_pushstring(L, s.simd);
  lua_setfield(L, -2, "simd");
  lua_pushnumber(L, s.overshoot_ms);
  lua_setfield(L, -2, "overshoot_ms");
  lua_pushnumber(L, s.max_overshoot_ms);
  lua_setfield(L, -2, "max_overshoot_ms");
  return 1;
}

/* ---- computation -------------------------------------------------------------------------------------------- */

static int m_logits(lua_State *L) {
  fm_model *m = get(L);
  int64_t n, shape[2];
  int32_t *ids = fm_bind_ids(L, 2, &n);
  void **box = fm_bind_box(L);
  float *out = NULL;
  fm_error err;
  if (fm_model_logits(m, ids, n, lua_toboolean(L, 3), lua_toboolean(L, 4), &out, shape, &err) != FM_OK)
    return fm_bind_fail(L, &err);
  *box = out;
  fm_bind_push_tensor(L, box, 2, shape);
  return 1;
}

static int m_hidden(lua_State *L) {
  fm_model *m = get(L);
  int64_t n, shape[3];
  int32_t *ids = fm_bind_ids(L, 2, &n);
  void **box = fm_bind_box(L);
  float *out = NULL;
  fm_error err;
  if (fm_model_hidden(m, ids, n, &out, shape, &err) != FM_OK) return fm_bind_fail(L, &err);
  *box = out;
  fm_bind_push_tensor(L, box, 3, shape);
  return 1;
}

static int m_score(lua_State *L) {
  fm_model *m = get(L);
  int64_t n, from = luaL_checkinteger(L, 3);
  int32_t *ids = fm_bind_ids(L, 2, &n);
  luaL_argcheck(L, from >= 1 && from <= n, 3, "scoring begins behind at least one id");
  float *p = lua_newuserdatauv(L, (size_t)(n - from + 1) * sizeof *p, 0);
  fm_error err;
  if (fm_model_score(m, ids, n, from, p, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_createtable(L, (int)(n - from), 0);
  for (int64_t i = 0; i < n - from; i++) {
    lua_pushnumber(L, (lua_Number)p[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int m_step(lua_State *L) {
  fm_model *m = get(L);
  bool busy;
  fm_error err;
  if (fm_model_step(m, luaL_optnumber(L, 2, 0), &busy, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushboolean(L, busy);
  return 1;
}

static int m_drop_prefixes(lua_State *L) {
  fm_model_drop_prefixes(get(L));
  return 0;
}

static int m_share(lua_State *L) {
  uint64_t key;
  fm_error err;
  if (fm_model_share(get(L), &key, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushinteger(L, (lua_Integer)key);
  return 1;
}

/* core.adopt(number) -> model */
int fm_bind_adopt(lua_State *L) {
  lua_Integer key = luaL_checkinteger(L, 1);
  fm_handle *h = fm_bind_new(L, FM_CMODEL);
  fm_model *m;
  fm_error err;
  if (fm_model_adopt(&m, (uint64_t)key, &err) != FM_OK) return fm_bind_fail(L, &err);
  h->p = m;
  return 1;
}

static int m_dir(lua_State *L) {
  lua_pushstring(L, fm_model_dir(get(L)));
  return 1;
}

static int m_seqs(lua_State *L) {
  lua_pushinteger(L, fm_model_seqs(get(L)));
  return 1;
}

static int m_tostring(lua_State *L) {
  fm_handle *h = luaL_checkudata(L, 1, FM_CMODEL);
  if (h->p) lua_pushfstring(L, "fathom.core.model (%s)", fm_model_dir(h->p));
  else lua_pushliteral(L, "fathom.core.model (closed)");
  return 1;
}

void fm_bind_open_model(lua_State *L) {
  static const luaL_Reg methods[] = {
    { "encode", m_encode }, { "decode", m_decode }, { "added", m_added }, { "is_added", m_is_added },
    { "has_tokenizer", m_has_tokenizer }, { "config", m_config }, { "vocab_size", m_vocab_size },
    { "ctx", m_ctx }, { "eos", m_eos }, { "bos", m_bos }, { "defaults", m_defaults }, { "mtp", m_mtp },
    { "seeds", m_seeds }, { "stats", m_stats }, { "load", m_load }, { "logits", m_logits }, { "hidden", m_hidden }, { "score", m_score },
    { "share", m_share }, { "dir", m_dir }, { "seqs", m_seqs }, { "step", m_step }, { "drop_prefixes", m_drop_prefixes }, { "session", fm_bind_session }, { "restore", fm_bind_restore }, { NULL, NULL } };
  fm_bind_class(L, FM_CMODEL, methods, m_close, m_tostring);
}
