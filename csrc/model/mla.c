/*
** mla.c - multi-head latent attention: low-rank queries, one latent row a token in the cache.
** Source: DeepSeek-V2 report, section 2.1.
*/
#include "model/model.h"

/* q (n, heads * qk) and kv (n, rank + rope) of the normed x; neither normed nor rotated themselves. */
static fm_status project(fm_pass *p, const fm_layer *l, float *q, float *kv) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size, width = g->kv_lora_rank + g->qk_rope_head_dim, rq = g->q_lora_rank;
  int64_t ldq = g->num_attention_heads * fm_config_qk_head_dim(g);
  float *qa = q;
  if (rq) TRY(fm_scratch(c, &qa, p->n, rq));
  fm_mm first[2] = {
    { .w = rq ? &l->q_a : &l->q, .x = p->x, .ldx = d, .norm = l->input_norm, .eps = (float)g->rms_norm_eps,
      .out = qa, .ldo = rq ? rq : ldq, .n = p->n },
    { .w = &l->kv_a, .x = p->x, .ldx = d, .norm = l->input_norm, .eps = (float)g->rms_norm_eps,
      .out = kv, .ldo = width, .n = p->n } };
  TRY(fm_op_matmul(c, first, 2));
  if (!rq) return FM_OK;
  fm_mm q_b = { .w = &l->q_b, .x = qa, .ldx = rq, .norm = l->q_a_norm, .eps = (float)g->latent_norm_eps,
                .out = q, .ldo = ldq, .n = p->n };
  return fm_op_matmul(c, &q_b, 1);
}

fm_status fm_block_mla(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t heads = g->num_attention_heads, qk = fm_config_qk_head_dim(g);
  float *q, *kv, *o;
  TRY(fm_scratch(c, &q, p->n, heads * qk));
  TRY(fm_scratch(c, &kv, p->n, g->kv_lora_rank + g->qk_rope_head_dim));
  TRY(fm_scratch(c, &o, p->n, heads * g->v_head_dim));
  TRY(project(p, l, q, kv));
  fm_cache cache = fm_kv_layer(p->net->kv, p->net->part, p->layer);
  fm_rope turn = fm_pass_rope(p, g->qk_rope_head_dim);
  fm_attn a = { .cache = &cache, .span = p->prompt, .n_spans = p->n_span, .q = q, .ldq = heads * qk, .out = o,
                .ldo = heads * g->v_head_dim, .n_heads = heads, .nope = g->qk_nope_head_dim,
                .rope = g->qk_rope_head_dim, .v_head_dim = g->v_head_dim, .rank = g->kv_lora_rank,
                .scale = (float)fm_config_softmax_scale(g), .n_positions = p->net->n_positions, .kv_b = &l->kv_b };
  fm_fresh fresh = { .q = q, .kv = kv, .norm = l->kv_a_norm, .eps = (float)g->latent_norm_eps, .n = p->n, .turn = &turn };
  if (p->n_prompt == 0) a.fresh = &fresh;
  else TRY(fm_op_mla_store(c, &a, q, kv, fresh.norm, fresh.eps, p->n, &turn));
  a.n_spans = p->n_prompt;
  if (a.n_spans) TRY(fm_op_mla_prompt(c, &a));
  a.span = p->decode, a.n_spans = p->n_decode;
  if (a.n_spans) TRY(fm_op_mla_decode(c, &a));
  return fm_pass_add(p, (fm_mm){ .w = &l->o, .x = o, .ldx = heads * g->v_head_dim });
}
