/*
** weights.c - checkpoint names -> slots.
*/
#include "model/weights.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What a slot's filling carries around. */
typedef struct fill {
  fm_weights *w;
  const fm_config *cfg;
  int64_t layer;
  fm_reading reading;
  int64_t bytes;
  fm_error *err;
} fill;

/* How a slot is cut for tensor-parallel ranks: between runs of `unit` rows or columns. */
typedef struct cut { enum { WHOLE, ROWS, COLS } way; int64_t unit; } cut;

static const cut whole = { WHOLE, 0 };

static void tensor_name(const fill *f, char *buf, size_t size, const char *name) {
  if (f->layer >= 0) snprintf(buf, size, "model.layers.%lld.%s", (long long)f->layer, name);
  else snprintf(buf, size, "%s", name);
}

static fm_status find(fill *f, const char *full, int ndim, const int64_t *shape, const fm_entry **out) {
  const fm_entry *e = fm_store_find(f->w->store, full);
  char got[96], want[96];
  if (!e) return fm_fail(f->err, FM_EFORMAT, "the checkpoint has no tensor %s", full);
  if (e->t.ndim != ndim || memcmp(e->t.shape, shape, (size_t)ndim * sizeof *shape) != 0)
    return fm_fail(f->err, FM_EFORMAT, "%s: shape %s, expected %s", full,
                   fm_shape_string(got, sizeof got, e->t.ndim, e->t.shape),
                   fm_shape_string(want, sizeof want, ndim, shape));
  f->bytes += fm_tensor_len(&e->t) * fm_dtype_size(e->t.dtype);
  *out = e;
  return FM_OK;
}

static fm_status check_finite(fill *f, const char *full, const void *data, fm_dtype t, int64_t n) {
  float buf[1024];
  int64_t size = fm_dtype_size(t);
  for (int64_t i = 0; i < n; i += 1024) {
    int64_t len = n - i < 1024 ? n - i : 1024;
    fm_to_f32(buf, (const char *)data + i * size, t, len);
    for (int64_t j = 0; j < len; j++)
      if (!isfinite(buf[j]))
        return fm_fail(f->err, FM_EFORMAT, "%s: element %lld is %s", full, (long long)(i + j),
                       isnan(buf[j]) ? "NaN" : "infinite");
  }
  return FM_OK;
}

static fm_status remember(fill *f, fm_mat *m, const float **vector, int64_t len) {
  fm_weights *w = f->w;
  TRY(fm_grow(&w->fresh, &w->cap_fresh, w->n_fresh + 1, sizeof *w->fresh, f->err));
  w->fresh[w->n_fresh++] = (struct fm_placing){ .mat = m, .vector = vector, .len = len };
  return FM_OK;
}

/* Elements [*a, *b) of n are this rank's. */
static void ends_of(const fill *f, cut k, int64_t n, int64_t *a, int64_t *b) {
  const fm_shard *s = &f->w->shard;
  *a = 0, *b = n;
  if (k.way == WHOLE || s->of.tp == 1) return;
  *a = fm_part_of(n, k.unit, s->of.tp, s->t);
  *b = fm_part_of(n, k.unit, s->of.tp, s->t + 1);
}

/* Memory that lives as long as the weights. */
static fm_status own(fill *f, void *out, int64_t n, int64_t size) {
  fm_weights *w = f->w;
  TRY(fm_grow(&w->owned.p, &w->owned.cap, w->owned.n + 1, sizeof(void *), f->err));
  void *p = fm_array(n, size);
  if (!p) return fm_no_memory(f->err, n * size);
  w->owned.p[w->owned.n++] = p;
  memcpy(out, &p, sizeof p);
  return FM_OK;
}

/* A vector as f32, owned, all finite. */
static fm_status vector(fill *f, const float **out, const char *name, int64_t len, cut k) {
  char full[192];
  tensor_name(f, full, sizeof full, name);
  const fm_entry *e;
  TRY(find(f, full, 1, &len, &e));
  if (e->t.dtype != FM_F32 && e->t.dtype != FM_BF16 && e->t.dtype != FM_F16)
    return fm_fail(f->err, FM_EFORMAT, "%s: dtype %s, expected F32, BF16 or F16", full,
                   fm_dtype_name(e->t.dtype));
  if (f->reading == FM_HEADERS) return FM_OK;
  float *v;
  TRY(own(f, &v, len, sizeof *v));
  fm_to_f32(v, e->t.data, e->t.dtype, len);
  int64_t a = 0, b = len;
  ends_of(f, k, len, &a, &b);
  *out = v + a;
  TRY(remember(f, NULL, out, b - a));
  return check_finite(f, full, v, FM_F32, len);
}

/* Scales of an f8 tensor: (leading, ceil(rows/128), ceil(cols/128)) f32. */
static fm_status scales(fill *f, const char *weight, int64_t lead, int64_t rows, int64_t cols,
                        const float **out) {
  char full[208];
  snprintf(full, sizeof full, "%s_scale_inv", weight);
  int64_t shape[3] = { lead, (rows + 127) / 128, (cols + 127) / 128 };
  const fm_entry *e;
  TRY(find(f, full, lead ? 3 : 2, lead ? shape : shape + 1, &e));
  if (e->t.dtype != FM_F32)
    return fm_fail(f->err, FM_EFORMAT, "%s: dtype %s, expected F32", full, fm_dtype_name(e->t.dtype));
  if (f->reading == FM_HEADERS) return FM_OK;
  TRY(check_finite(f, full, e->t.data, FM_F32, fm_tensor_len(&e->t)));
  const float *s = e->t.data;
  for (int64_t i = 0; i < fm_tensor_len(&e->t); i++)
    if (fabsf(s[i]) >= FM_F8_SCALE_LIMIT)
      return fm_fail(f->err, FM_EFORMAT, "%s: a scale of %g, expected less than %g", full, (double)s[i], FM_F8_SCALE_LIMIT);
  *out = s;
  return FM_OK;
}

static fm_status weight_dtype(fill *f, const char *full, const fm_tensor *t) {
  switch (t->dtype) {
    case FM_F32: case FM_BF16: case FM_F16: case FM_F8_E4M3: break;
    default:
      return fm_fail(f->err, FM_EFORMAT, "%s: dtype %s, expected F32, BF16, F16 or F8_E4M3", full,
                     fm_dtype_name(t->dtype));
  }
  return f->reading == FM_ALL ? check_finite(f, full, t->data, t->dtype, fm_tensor_len(t)) : FM_OK;
}

/* ---- slices ------------------------------------------------------------------------------------- */

static int64_t scale_len(const fm_mat *m) {
  return m->dtype == FM_F8_E4M3 ? (m->rows + 127) / 128 * ((m->cols + 127) / 128) : 0;
}

static int64_t mat_bytes(const fm_mat *m) { return m->rows * m->cols * fm_dtype_size(m->dtype) + scale_len(m) * 4; }

/* Rows [r0, r1), columns [c0, c1) of m in memory of their own; f8 that is cut inside of a block becomes f32. */
static fm_status copy_out(fill *f, fm_mat *m, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  fm_mat s = *m;
  int64_t size = fm_dtype_size(m->dtype), across = (m->cols + 127) / 128;
  bool blocks = r0 % 128 == 0 && c0 % 128 == 0 && (r1 % 128 == 0 || r1 == m->rows) && (c1 % 128 == 0 || c1 == m->cols);
  char *to;
  s.rows = r1 - r0, s.cols = c1 - c0;
  if (m->dtype == FM_F8_E4M3 && !blocks) s.dtype = FM_F32, s.scale = NULL;
  if (f->reading == FM_HEADERS) {
    *m = s;
    return FM_OK;
  }
  int64_t row = s.cols * fm_dtype_size(s.dtype);
  TRY(own(f, &to, s.rows, row));
  for (int64_t r = r0; r < r1; r++, to += row) {
    const char *from = (const char *)m->data + (r * m->cols + c0) * size;
    if (s.dtype == m->dtype) memcpy(to, from, (size_t)row);
    else fm_to_f32((float *)(void *)to, from, m->dtype, s.cols);
    for (int64_t c = c0; s.dtype != m->dtype && c < c1; c++) ((float *)(void *)to)[c - c0] *= m->scale[r / 128 * across + c / 128];
  }
  s.data = to - s.rows * row;
  if (s.scale) {
    float *scale;
    int64_t n = (s.cols + 127) / 128;
    TRY(own(f, &scale, scale_len(&s), sizeof *scale));
    for (int64_t i = 0; i < scale_len(&s); i++) scale[i] = m->scale[(r0 / 128 + i / n) * across + c0 / 128 + i % n];
    s.scale = scale;
  }
  *m = s;
  return FM_OK;
}

/* What this rank keeps of a matrix. Whole rows stay in the mapping. */
static fm_status slice(fill *f, fm_mat *m, cut k) {
  int64_t r0, r1, c0, c1, before = mat_bytes(m);
  ends_of(f, k.way == ROWS ? k : whole, m->rows, &r0, &r1);
  ends_of(f, k.way == COLS ? k : whole, m->cols, &c0, &c1);
  if (r1 - r0 == m->rows && c1 - c0 == m->cols) return FM_OK;
  bool in_place = k.way == ROWS && (m->dtype != FM_F8_E4M3 || (r0 % 128 == 0 && (r1 % 128 == 0 || r1 == m->rows)));
  if (in_place) {
    if (m->scale) m->scale += r0 / 128 * ((m->cols + 127) / 128);
    m->data = (const char *)m->data + r0 * m->cols * fm_dtype_size(m->dtype);
    m->rows = r1 - r0;
  } else {
    TRY(copy_out(f, m, r0, r1, c0, c1));
  }
  f->bytes += mat_bytes(m) - before;
  return FM_OK;
}

static fm_status matrix(fill *f, fm_mat *out, const char *name, int64_t rows, int64_t cols, cut k) {
  char full[192];
  tensor_name(f, full, sizeof full, name);
  const fm_entry *e;
  int64_t shape[2] = { rows, cols };
  TRY(find(f, full, 2, shape, &e));
  TRY(weight_dtype(f, full, &e->t));
  *out = (fm_mat){ .data = e->t.data, .dtype = e->t.dtype, .rows = rows, .cols = cols };
  TRY(remember(f, out, NULL, 0));
  if (e->t.dtype == FM_F8_E4M3) TRY(scales(f, full, 0, rows, cols, &out->scale));
  return slice(f, out, k);
}

/* Experts [*first, *end) are this rank's. */
static void my_experts(const fill *f, int64_t *first, int64_t *end) {
  const fm_shard *s = &f->w->shard;
  *first = fm_part(f->cfg->n_routed_experts, s->of.ep, s->e);
  *end = fm_part(f->cfg->n_routed_experts, s->of.ep, s->e + 1);
}

/* Where an MLP of that width is cut: f8 between blocks, where there are enough. Experts that are spread whole are not. */
static cut by_width(const fill *f, int64_t width, int way) {
  int64_t unit = f->cfg->fp8 && width / 128 >= f->w->shard.of.tp ? 128 : 1;
  return (cut){ way, unit };
}

/* One of the packed expert tensors (E, rows, cols), cut into `parts` matrices an expert, one below the other. */
static fm_status packed(fill *f, fm_mat **out, int parts, const char *name, int64_t rows, int64_t cols, cut k) {
  char full[192];
  tensor_name(f, full, sizeof full, name);
  const fm_entry *e;
  int64_t n = f->cfg->n_routed_experts, shape[3] = { n, rows, cols }, part = rows / parts;
  TRY(find(f, full, 3, shape, &e));
  TRY(weight_dtype(f, full, &e->t));
  const float *scale = NULL;
  if (e->t.dtype == FM_F8_E4M3) {
    if (part % 128)
      return fm_fail(f->err, FM_EUNSUPPORTED, "%s: f8 experts packed off the 128-row blocks", full);
    TRY(scales(f, full, n, rows, cols, &scale));
  }
  int64_t size = fm_dtype_size(e->t.dtype), block_cols = (cols + 127) / 128, first, end, mine = 0;
  my_experts(f, &first, &end);
  for (int64_t i = first * parts; i < end * parts; i++)
    out[i % parts][i / parts] = (fm_mat){
      .data = (const char *)e->t.data + i * part * cols * size,
      .scale = scale ? scale + (i / parts) * ((rows + 127) / 128) * block_cols
                             + (i % parts) * (part / 128) * block_cols : NULL,
      .dtype = e->t.dtype, .rows = part, .cols = cols };
  for (int64_t i = first * parts; i < end * parts; i++) {
    fm_mat *m = &out[i % parts][i / parts];
    mine += mat_bytes(m);
    TRY(remember(f, m, NULL, 0));
    TRY(slice(f, m, k));
  }
  f->bytes += mine - (fm_tensor_len(&e->t) * size + (scale ? n * ((rows + 127) / 128) * block_cols * 4 : 0));
  return FM_OK;
}

static fm_status experts(fill *f, fm_layer *l) {
  int64_t n = f->cfg->n_routed_experts, d = f->cfg->hidden_size, m = f->cfg->moe_intermediate_size;
  char name[96];
  bool spread = f->w->shard.of.ep > 1;
  cut in = spread ? whole : by_width(f, m, ROWS), out = spread ? whole : by_width(f, m, COLS);
  fm_mat *all;
  TRY(own(f, &all, 3 * n, sizeof *all));
  l->gate = all;
  l->up = all + n;
  l->down = all + 2 * n;
  tensor_name(f, name, sizeof name, "mlp.experts.gate_up_proj");
  if (fm_store_find(f->w->store, name)) {
    TRY(packed(f, (fm_mat *[]){ l->gate, l->up }, 2, "mlp.experts.gate_up_proj", 2 * m, d, in));
    return packed(f, &l->down, 1, "mlp.experts.down_proj", d, m, out);
  }
  int64_t first, end;
  my_experts(f, &first, &end);
  for (int64_t i = first; i < end; i++) {
    snprintf(name, sizeof name, "mlp.experts.%lld.gate_proj.weight", (long long)i);
    TRY(matrix(f, &l->gate[i], name, m, d, in));
    snprintf(name, sizeof name, "mlp.experts.%lld.up_proj.weight", (long long)i);
    TRY(matrix(f, &l->up[i], name, m, d, in));
    snprintf(name, sizeof name, "mlp.experts.%lld.down_proj.weight", (long long)i);
    TRY(matrix(f, &l->down[i], name, d, m, out));
  }
  return FM_OK;
}

static fm_status attention_mla(fill *f, fm_layer *l) {
  const fm_config *g = f->cfg;
  int64_t heads = g->num_attention_heads, qk = g->qk_nope_head_dim + g->qk_rope_head_dim, kv = g->qk_nope_head_dim + g->v_head_dim;
  if (g->q_lora_rank) {
    TRY(matrix(f, &l->q_a, "self_attn.q_a_proj.weight", g->q_lora_rank, g->hidden_size, whole));
    TRY(vector(f, &l->q_a_norm, "self_attn.q_a_layernorm.weight", g->q_lora_rank, whole));
    TRY(matrix(f, &l->q_b, "self_attn.q_b_proj.weight", heads * qk, g->q_lora_rank, (cut){ ROWS, qk }));
  } else {
    TRY(matrix(f, &l->q, "self_attn.q_proj.weight", heads * qk, g->hidden_size, (cut){ ROWS, qk }));
  }
  TRY(matrix(f, &l->kv_a, "self_attn.kv_a_proj_with_mqa.weight",
             g->kv_lora_rank + g->qk_rope_head_dim, g->hidden_size, whole));
  TRY(vector(f, &l->kv_a_norm, "self_attn.kv_a_layernorm.weight", g->kv_lora_rank, whole));
  TRY(matrix(f, &l->kv_b, "self_attn.kv_b_proj.weight", heads * kv, g->kv_lora_rank, (cut){ ROWS, kv }));
  return matrix(f, &l->o, "self_attn.o_proj.weight", g->hidden_size, heads * g->v_head_dim, (cut){ COLS, g->v_head_dim });
}

static fm_status attention_gqa(fill *f, fm_layer *l) {
  const fm_config *g = f->cfg;
  int64_t q = g->num_attention_heads * g->head_dim, kv = g->num_key_value_heads * g->head_dim;
  cut heads = { ROWS, g->head_dim };
  TRY(matrix(f, &l->q, "self_attn.q_proj.weight", q, g->hidden_size, heads));
  TRY(matrix(f, &l->k, "self_attn.k_proj.weight", kv, g->hidden_size, heads));
  TRY(matrix(f, &l->v, "self_attn.v_proj.weight", kv, g->hidden_size, heads));
  TRY(vector(f, &l->q_bias, "self_attn.q_proj.bias", q, heads));
  TRY(vector(f, &l->k_bias, "self_attn.k_proj.bias", kv, heads));
  TRY(vector(f, &l->v_bias, "self_attn.v_proj.bias", kv, heads));
  return matrix(f, &l->o, "self_attn.o_proj.weight", g->hidden_size, q, (cut){ COLS, g->head_dim });
}

static fm_status mlp(fill *f, fm_mlp_weights *m, const char *prefix, int64_t width) {
  char name[96];
  int64_t d = f->cfg->hidden_size;
  snprintf(name, sizeof name, "%sgate_proj.weight", prefix);
  TRY(matrix(f, &m->gate, name, width, d, by_width(f, width, ROWS)));
  snprintf(name, sizeof name, "%sup_proj.weight", prefix);
  TRY(matrix(f, &m->up, name, width, d, by_width(f, width, ROWS)));
  snprintf(name, sizeof name, "%sdown_proj.weight", prefix);
  return matrix(f, &m->down, name, d, width, by_width(f, width, COLS));
}

static fm_status feed_forward(fill *f, fm_layer *l) {
  const fm_config *g = f->cfg;
  l->moe = fm_config_layer_is_moe(g, f->layer);
  if (!l->moe) return mlp(f, &l->mlp, "mlp.", g->intermediate_size);
  TRY(matrix(f, &l->router, "mlp.gate.weight", g->n_routed_experts, g->hidden_size, whole));
  f->w->fresh[f->w->n_fresh - 1].exact = true;
  if (g->topk_method == FM_NOAUX_TC)
    TRY(vector(f, &l->router_bias, "mlp.gate.e_score_correction_bias", g->n_routed_experts, whole));
  int64_t first = f->w->n_fresh;
  TRY(experts(f, l));
  for (int64_t i = first; i < f->w->n_fresh; i++) f->w->fresh[i].expert = true;
  if (!g->n_shared_experts) return FM_OK;
  return mlp(f, &l->mlp, "mlp.shared_experts.", g->n_shared_experts * g->moe_intermediate_size);
}

static fm_status layer(fill *f, fm_layer *l) {
  int64_t d = f->cfg->hidden_size;
  TRY(vector(f, &l->input_norm, "input_layernorm.weight", d, whole));
  TRY(vector(f, &l->post_norm, "post_attention_layernorm.weight", d, whole));
  l->host_norm = l->post_norm;
  TRY(f->cfg->family == FM_QWEN2 ? attention_gqa(f, l) : attention_mla(f, l));
  TRY(feed_forward(f, l));
  if (f->layer < f->cfg->num_hidden_layers) return FM_OK;
  TRY(vector(f, &f->w->mtp.enorm, "enorm.weight", d, whole));
  TRY(vector(f, &f->w->mtp.hnorm, "hnorm.weight", d, whole));
  TRY(vector(f, &f->w->mtp.norm, "shared_head.norm.weight", d, whole));
  return matrix(f, &f->w->mtp.eh_proj, "eh_proj.weight", d, 2 * d, whole);
}

/* The head's rows among the embedding's. */
static void tie(fm_weights *w) {
  int64_t first = w->head_first, n = w->head.rows;
  w->head = w->embed;
  w->head.rows = n;
  w->head.data = (const char *)w->embed.data + first * w->embed.cols * fm_dtype_size(w->embed.dtype);
  if (w->embed.scale) w->head.scale = w->embed.scale + first / 128 * ((w->embed.cols + 127) / 128);
}

static fm_status ends(fill *f) {
  const fm_config *g = f->cfg;
  const fm_shard *s = &f->w->shard;
  bool last = s->end == s->n_layers, ids = s->layer == 0 || (last && (f->w->has_mtp || g->tie_word_embeddings));
  f->layer = -1;
  if (ids) TRY(matrix(f, &f->w->embed, "model.embed_tokens.weight", g->vocab_size, g->hidden_size, whole));
  if (!last) return FM_OK;
  TRY(vector(f, &f->w->norm, "model.norm.weight", g->hidden_size, whole));
  int64_t first = fm_head_part(g, s->of.tp, s->t), n = fm_head_part(g, s->of.tp, s->t + 1) - first;
  f->w->head_first = first;
  f->w->tied = g->tie_word_embeddings;
  if (!f->w->tied)
    return matrix(f, &f->w->head, "lm_head.weight", g->vocab_size, g->hidden_size, (cut){ ROWS, g->vocab_size / 128 >= s->of.tp ? 128 : 1 });
  f->w->head.rows = n;
  if (f->w->embed.dtype == FM_F8_E4M3 && first % 128)
    return fm_fail(f->err, FM_EUNSUPPORTED, "tp = %d: a tied f8 head of %lld ids is split inside of a block", s->of.tp, (long long)g->vocab_size);
  tie(f->w);
  return FM_OK;
}

fm_status fm_weights_fill(fm_weights *w, const fm_config *cfg, int64_t i, fm_reading reading, int64_t *bytes,
                          fm_error *err) {
  fill f = { .w = w, .cfg = cfg, .layer = i, .reading = reading, .err = err };
  bool elsewhere = i < w->n_layers && (i < w->shard.layer || i >= w->shard.end);
  w->n_fresh = 0;
  fm_status status = elsewhere ? FM_OK : i < w->n_layers ? layer(&f, &w->layer[i]) : ends(&f);
  *bytes = f.bytes;
  return status;
}

fm_status fm_weights_new(fm_weights **out, fm_store *store, const fm_config *cfg, bool mtp, fm_error *err) {
  fm_weights *w = fm_zalloc(sizeof *w);
  if (!w) {
    fm_store_close(store);
    return fm_no_memory(err, sizeof *w);
  }
  w->store = store;
  w->has_mtp = mtp && cfg->num_nextn_predict_layers > 0;
  w->n_layers = cfg->num_hidden_layers + w->has_mtp;
  fm_shard_make(&w->shard, cfg, (fm_forms){ 1, 1, 1, 1 }, w->has_mtp, 0);
  w->layer = fm_array(w->n_layers, sizeof *w->layer);
  if (!w->layer) {
    fm_weights_free(w);
    return fm_no_memory(err, w->n_layers * (int64_t)sizeof *w->layer);
  }
  *out = w;
  return FM_OK;
}

fm_status fm_weights_size(fm_store *store, const fm_config *cfg, bool mtp, const fm_shard *shard, int64_t *size, fm_error *err) {
  fm_weights *w;
  fm_status status = FM_OK;
  int64_t sum = 0;
  TRY(fm_weights_new(&w, NULL, cfg, mtp, err));
  w->store = store;
  if (shard) w->shard = *shard;
  for (int64_t i = 0, bytes; i <= w->n_layers && status == FM_OK; i++, sum += bytes)
    status = fm_weights_fill(w, cfg, i, FM_HEADERS, &bytes, err);
  w->store = NULL;                       // still the caller's
  fm_weights_free(w);
  if (status == FM_OK) *size = sum;
  return status;
}

/* ---- placing ------------------------------------------------------------------------------------- */

enum { PIECE = 64 << 20 };               /* bytes placed in one go: some milliseconds, so that loading can be stopped */

/* What a matrix is stored as on the device. */
static fm_dtype placed_dtype(const fm_ctx *c, const struct fm_placing *p) {
  if (p->exact) return FM_F32;
  if (c->arithmetic == FM_F32 || p->mat->dtype == FM_F8_E4M3) return p->mat->dtype;
  return FM_BF16;
}

static int64_t rounded(int64_t size) { return (size + 255) / 256 * 256; }

/* Bytes of one entry; its scales stand behind it. */
static int64_t placed_size(const fm_ctx *c, const struct fm_placing *p) {
  if (p->vector) return rounded(p->len * 4);
  return rounded(p->mat->rows * p->mat->cols * fm_dtype_size(placed_dtype(c, p))) + rounded(scale_len(p->mat) * 4);
}

/* Uploads a matrix whose stored dtype is not the device's; f8 with its scales. */
static fm_status upload_converted(fm_ctx *c, char *to, const fm_mat *m, fm_dtype t) {
  int64_t k = m->cols, across = (k + 127) / 128;
  fm_mark mark = fm_arena_mark(&c->arena);
  float *row = fm_arena_alloc(&c->arena, k * (int64_t)sizeof *row);
  fm_status status = row ? FM_OK : fm_no_memory(&c->err, k * (int64_t)sizeof *row);
  for (int64_t r = 0; r < m->rows && status == FM_OK; r++) {
    fm_to_f32(row, (const char *)m->data + r * k * fm_dtype_size(m->dtype), m->dtype, k);
    for (int64_t i = 0; m->scale && i < k; i++) row[i] *= m->scale[r / 128 * across + i / 128];
    for (int64_t i = 0; t == FM_BF16 && i < k; i++) ((uint16_t *)row)[i] = fm_f32_to_bf16(row[i]);
    status = c->ops->upload(c, to + r * k * fm_dtype_size(t), row, k * fm_dtype_size(t));
  }
  fm_arena_release(&c->arena, mark);
  return status;
}

static fm_status place_one(fm_ctx *c, const struct fm_placing *p, char *at) {
  if (p->vector) {
    TRY(c->ops->upload(c, at, *p->vector, p->len * (int64_t)sizeof **p->vector));
    *p->vector = (const float *)(void *)at;
    return FM_OK;
  }
  fm_mat *m = p->mat;
  fm_dtype t = placed_dtype(c, p);
  int64_t size = m->rows * m->cols * fm_dtype_size(t);
  if (t != m->dtype) TRY(upload_converted(c, at, m, t));
  else TRY(c->ops->upload(c, at, m->data, size));
  if (t == FM_F8_E4M3) {
    TRY(c->ops->upload(c, at + rounded(size), m->scale, scale_len(m) * (int64_t)sizeof *m->scale));
    m->scale = (const float *)(void *)(at + rounded(size));
  } else m->scale = NULL;
  m->data = at;
  m->dtype = t;
  return FM_OK;
}

/* Forgets the fresh entries that stay where they are. */
static void leave_experts(fm_weights *w) {
  int64_t kept = 0;
  for (int64_t i = 0; i < w->n_fresh; i++)
    if (!w->fresh[i].expert) w->fresh[kept++] = w->fresh[i];
  w->n_fresh = kept;
}

int64_t fm_weights_expert_bytes(const fm_store *store, const fm_config *cfg, bool mtp) {
  int64_t size = 0;
  for (int64_t i = 0; i < fm_store_count(store); i++) {
    const fm_entry *e = fm_store_at(store, i);
    long long layer;
    int end = 0;
    if (sscanf(e->name, "model.layers.%lld.mlp.experts.%n", &layer, &end) == 1 && end && layer < cfg->num_hidden_layers + mtp)
      size += fm_tensor_len(&e->t) * fm_dtype_size(e->t.dtype);
  }
  return size;
}

/* A block for all that the slot holds. */
static fm_status begin_placing(fm_weights *w, fm_ctx *c, fm_error *err) {
  int64_t size = 0;
  void *block;
  w->device = c;
  for (int64_t i = 0; i < w->n_fresh; i++) size += placed_size(c, &w->fresh[i]);
  TRY(fm_grow(&w->block.p, &w->block.cap, w->block.n + 1, sizeof(void *), err));
  TRY(c->ops->alloc(c->dev, &block, size, err));
  w->block.p[w->block.n++] = block;
  w->place = block;
  return FM_OK;
}

fm_status fm_weights_place(fm_weights *w, fm_ctx *c, bool *done, fm_error *err) {
  *done = true;
  if (!c->ops->upload) return FM_OK;
  if (w->n_placed == 0 && w->experts_stay) leave_experts(w);
  if (w->n_placed == 0) TRY(begin_placing(w, c, err));
  for (int64_t size = 0; w->n_placed < w->n_fresh && size < PIECE; w->n_placed++) {
    const struct fm_placing *p = &w->fresh[w->n_placed];
    int64_t step = placed_size(c, p);
    if (place_one(c, p, w->place) != FM_OK) {
      if (err) *err = c->err;
      return c->err.code;
    }
    if (p->mat == &w->embed && w->tied) tie(w);
    w->place += step;
    size += step;
  }
  *done = w->n_placed == w->n_fresh;
  if (*done) w->n_placed = w->n_fresh = 0;
  return FM_OK;
}

void fm_weights_free(fm_weights *w) {
  if (!w) return;
  for (int64_t i = 0; i < w->block.n; i++) w->device->ops->release(w->device->dev, w->block.p[i]);
  fm_free(w->block.p);
  fm_free(w->fresh);
  for (int64_t i = 0; i < w->owned.n; i++) fm_free(w->owned.p[i]);
  fm_free(w->owned.p);
  fm_free(w->layer);
  if (!w->borrows) fm_store_close(w->store);
  fm_free(w);
}
