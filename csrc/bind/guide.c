/*
** guide.c - a guide without a model, over a tokenizer: what may come next, and draws from made-up logits. For benchmarks and specs.
*/
#include "bind/bind.h"

#define CGUIDE "fathom.core.guide"

/* The tokenizer's handle is the userdata's first user value; its `extra` keeps the grammars. */
typedef struct guided { fm_guide *guide; fm_sampler *sampler; float *logits; int64_t vocab_size; } guided;

static guided *get(lua_State *L) {
  guided *g = luaL_checkudata(L, 1, CGUIDE);
  if (!g->guide) luaL_error(L, "attempt to use a closed guide");
  lua_getiuservalue(L, 1, 1);
  fm_bind_get(L, -1, FM_CTOKENIZER);               // its words are the guide's
  lua_pop(L, 1);
  return g;
}

static int g_close(lua_State *L) {
  guided *g = luaL_checkudata(L, 1, CGUIDE);
  fm_guide_free(g->guide);
  fm_sampler_free(g->sampler);
  fm_free(g->logits);
  *g = (guided){ NULL, NULL, NULL, 0 };
  return 0;
}

static fm_status make(guided *g, fm_handle *tok, const fm_guide_options *o, fm_error *err) {
  g->vocab_size = fm_tokenizer_size(tok->p);
  if (!tok->extra) {
    fm_grammars *gs;
    TRY(fm_grammars_new(&gs, tok->p, g->vocab_size, err));
    tok->extra = gs;
  }
  TRY(fm_sampler_new(&g->sampler, g->vocab_size, g->vocab_size, err));
  g->logits = fm_array(g->vocab_size, sizeof *g->logits);
  if (!g->logits) return fm_no_memory(err, g->vocab_size * (int64_t)sizeof *g->logits);
  return fm_guide_new(&g->guide, tok->extra, o, err);
}

/* core.guide(tokenizer, { schema = or grammar =, grammar_after =, ends = ids }) */
int fm_bind_guide(lua_State *L) {
  fm_error err;
  int64_t n = 0;
  fm_bind_get(L, 1, FM_CTOKENIZER);
  fm_handle *tok = lua_touserdata(L, 1);
  fm_guide_options o = { .grammar = fm_bind_str(L, 2, "grammar", NULL), .schema = fm_bind_str(L, 2, "schema", NULL),
                         .after = (int32_t)fm_bind_int(L, 2, "grammar_after", -1) };
  if (lua_getfield(L, 2, "ends") != LUA_TNIL) o.ends = fm_bind_ids(L, -1, &n);
  o.n_ends = (int32_t)n;
  guided *g = lua_newuserdatauv(L, sizeof *g, 1);
  *g = (guided){ NULL, NULL, NULL, 0 };
  luaL_setmetatable(L, CGUIDE);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  if (make(g, tok, &o, &err) != FM_OK) return fm_bind_fail(L, &err);
  return 1;
}

/* guide:allowed() -> how many tokens may come; with an id: whether that one may. */
static int g_allowed(lua_State *L) {
  guided *g = get(L);
  const uint64_t *bits;
  fm_error err;
  lua_Integer n = 0, id = luaL_optinteger(L, 2, -1);
  if (fm_guide_mask(g->guide, &bits, &err) != FM_OK) return fm_bind_fail(L, &err);
  if (id >= 0) {
    lua_pushboolean(L, id < g->vocab_size && (bits[id >> 6] >> (id & 63) & 1));
    return 1;
  }
  for (int64_t i = 0; i < (g->vocab_size + 63) / 64; i++) n += __builtin_popcountll(bits[i]);
  lua_pushinteger(L, n);
  return 1;
}

static int g_take(lua_State *L) {
  guided *g = get(L);
  fm_error err;
  if (fm_guide_take(g->guide, FM_REAL, (int32_t)luaL_checkinteger(L, 2), &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushboolean(L, true);
  return 1;
}

/* guide:draw(seed, index, left) -> id. All logits are equal: the noise alone decides. */
static int g_draw(lua_State *L) {
  guided *g = get(L);
  fm_generate_options o = fm_generate_options_default();
  fm_draw d;
  fm_error err;
  o.seed = (uint64_t)luaL_checkinteger(L, 2);
  lua_Integer index = luaL_checkinteger(L, 3);
  fm_history h = { .n = index, .n_prompt = index };           // no penalties: its length is all that is looked at
  if (fm_guide_draw(g->guide, FM_REAL, g->sampler, &o, g->logits, -1, h, luaL_checkinteger(L, 4), false, &d, &err) != FM_OK ||
      fm_guide_take(g->guide, FM_REAL, d.id, &err) != FM_OK) return fm_bind_fail(L, &err);
  lua_pushinteger(L, d.id);
  return 1;
}

static int g_complete(lua_State *L) {
  lua_pushboolean(L, fm_guide_complete(get(L)->guide, FM_REAL));
  return 1;
}

static int g_over(lua_State *L) {
  lua_pushboolean(L, fm_guide_over(get(L)->guide, FM_REAL));
  return 1;
}

static int g_tostring(lua_State *L) {
  guided *g = luaL_checkudata(L, 1, CGUIDE);
  lua_pushstring(L, g->guide ? "fathom.core.guide" : "fathom.core.guide (closed)");
  return 1;
}

void fm_bind_open_guide(lua_State *L) {
  static const luaL_Reg methods[] = { { "allowed", g_allowed }, { "take", g_take }, { "draw", g_draw },
    { "complete", g_complete }, { "over", g_over }, { NULL, NULL } };
  fm_bind_class(L, CGUIDE, methods, g_close, g_tostring);
}
