/*
** gqa.c - grouped-query attention of the distilled Qwen2 students: q, k, v with bias, rotation in halves.
*/
#include "model/model.h"

fm_status fm_block_gqa(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size, hd = g->head_dim, heads = g->num_attention_heads;
  int64_t kv_dim = g->num_key_value_heads * hd;
  float *q, *kv, *o, eps = (float)g->rms_norm_eps;
  TRY(fm_scratch(c, &q, p->n, heads * hd));
  TRY(fm_scratch(c, &kv, p->n, 2 * kv_dim));
  TRY(fm_scratch(c, &o, p->n, heads * hd));
  fm_mm mm[3] = {
    { .w = &l->q, .x = p->x, .ldx = d, .norm = l->input_norm, .eps = eps, .out = q, .ldo = heads * hd,
      .bias = l->q_bias, .n = p->n },
    { .w = &l->k, .x = p->x, .ldx = d, .norm = l->input_norm, .eps = eps, .out = kv, .ldo = 2 * kv_dim,
      .bias = l->k_bias, .n = p->n },
    { .w = &l->v, .x = p->x, .ldx = d, .norm = l->input_norm, .eps = eps, .out = kv + kv_dim, .ldo = 2 * kv_dim,
      .bias = l->v_bias, .n = p->n } };
  TRY(fm_op_matmul(c, mm, 3));
  fm_rope turn = fm_pass_rope(p, hd);
  TRY(fm_op_rope(c, q, heads * hd, heads, hd, p->n, &turn));
  TRY(fm_op_rope(c, kv, 2 * kv_dim, g->num_key_value_heads, hd, p->n, &turn));
  fm_cache cache = fm_kv_layer(p->net->kv, p->net->part, p->layer);
  TRY(fm_op_cache_store(c, &cache, p->prompt, p->n_span, kv, 2 * kv_dim));
  fm_attn a = { .cache = &cache, .span = p->prompt, .n_spans = p->n_span, .q = q, .ldq = heads * hd, .out = o,
                .ldo = heads * hd, .n_heads = heads, .n_kv_heads = g->num_key_value_heads, .nope = hd,
                .scale = (float)fm_config_softmax_scale(g), .n_positions = p->net->n_positions };
  TRY(fm_op_gqa(c, &a));
  return fm_pass_add(p, (fm_mm){ .w = &l->o, .x = o, .ldx = heads * hd });
}
