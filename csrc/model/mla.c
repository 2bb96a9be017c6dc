/*
** mla.c - multi-head latent attention: low-rank queries, one latent row a token in the cache.
** Source: DeepSeek-V2 report, section 2.1.
*/
#include "model/model.h"

/* q (n, heads * qk) and the latent row kv (n, rank + rope) of the normed input h, normed but not rotated. */
static fm_status project(fm_pass *p, const fm_layer *l, const float *h, float *q, float *kv) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size, width = g->kv_lora_rank + g->qk_rope_head_dim, rq = g->q_lora_rank;
  int64_t ldq = g->num_attention_heads * fm_config_qk_head_dim(g);
  float eps = (float)g->latent_norm_eps;
  fm_mm kv_a = { .w = &l->kv_a, .x = h, .ldx = d, .out = kv, .ldo = width, .n = p->n };
  if (rq) {
    float *qa;
    TRY(fm_scratch(c, &qa, p->n, rq));
    fm_mm both[2] = { { .w = &l->q_a, .x = h, .ldx = d, .out = qa, .ldo = rq, .n = p->n }, kv_a };
    TRY(fm_op_matmul(c, both, 2));
    TRY(fm_op_rms_norm(c, qa, rq, qa, rq, l->q_a_norm, p->n, rq, eps));
    fm_mm q_b = { .w = &l->q_b, .x = qa, .ldx = rq, .out = q, .ldo = ldq, .n = p->n };
    TRY(fm_op_matmul(c, &q_b, 1));
  } else {
    fm_mm both[2] = { { .w = &l->q, .x = h, .ldx = d, .out = q, .ldo = ldq, .n = p->n }, kv_a };
    TRY(fm_op_matmul(c, both, 2));
  }
  // the rope part behind the latent is neither normed nor scaled
  return fm_op_rms_norm(c, kv, width, kv, width, l->kv_a_norm, p->n, g->kv_lora_rank, eps);
}

static fm_status rotate(fm_pass *p, float *q, float *kv) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t qk = fm_config_qk_head_dim(g), heads = g->num_attention_heads, dim = g->qk_rope_head_dim;
  TRY(fm_op_rope(c, q + g->qk_nope_head_dim, heads * qk, heads, qk, dim, p->pos, p->n, p->net->cos,
                 p->net->sin, g->rope_interleave));
  return fm_op_rope(c, kv + g->kv_lora_rank, g->kv_lora_rank + dim, 1, dim, dim, p->pos, p->n, p->net->cos,
                    p->net->sin, g->rope_interleave);
}

fm_status fm_block_mla(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size, heads = g->num_attention_heads, qk = fm_config_qk_head_dim(g);
  int64_t width = g->kv_lora_rank + g->qk_rope_head_dim;
  float *h, *q, *kv, *o;
  TRY(fm_scratch(c, &h, p->n, d));
  TRY(fm_scratch(c, &q, p->n, heads * qk));
  TRY(fm_scratch(c, &kv, p->n, width));
  TRY(fm_scratch(c, &o, p->n, heads * g->v_head_dim));
  TRY(fm_op_rms_norm(c, h, d, p->x, d, l->input_norm, p->n, d, (float)g->rms_norm_eps));
  TRY(project(p, l, h, q, kv));
  TRY(rotate(p, q, kv));
  fm_cache cache = fm_kv_layer(p->net->kv, p->layer);
  TRY(fm_op_cache_store(c, &cache, p->prompt, p->n_span, kv, width));
  fm_attn a = { .cache = &cache, .q = q, .ldq = heads * qk, .out = o, .ldo = heads * g->v_head_dim,
                .n_heads = heads, .nope = g->qk_nope_head_dim, .rope = g->qk_rope_head_dim,
                .v_head_dim = g->v_head_dim, .rank = g->kv_lora_rank,
                .scale = (float)fm_config_softmax_scale(g), .kv_b = &l->kv_b };
  a.span = p->prompt, a.n_spans = p->n_prompt;
  if (a.n_spans) TRY(fm_op_mla_prompt(c, &a));
  a.span = p->decode, a.n_spans = p->n_decode;
  if (a.n_spans) TRY(fm_op_mla_decode(c, &a));
  fm_mm out = { .w = &l->o, .x = o, .ldx = heads * g->v_head_dim, .out = p->x, .ldo = d, .n = p->n, .add = true };
  return fm_op_matmul(c, &out, 1);
}
