/*
** moe.c - router, routed experts, shared experts. The router's logits are f32: with bf16 ones other experts are chosen.
** Source: DeepSeek-V3 report, section 2.1.2; DeepSeek-V2 report, section 2.2.
*/
#include "model/model.h"

fm_status fm_block_moe(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size, n_exp = g->n_routed_experts, k = g->num_experts_per_tok;
  bool shared = l->mlp.gate.rows > 0;
  float *logits, *weight, eps = (float)g->rms_norm_eps;
  int32_t *id;
  TRY(fm_scratch(c, &logits, p->n, n_exp));
  TRY(fm_scratch(c, &weight, p->n, k));
  TRY(fm_scratch_int(c, &id, p->n * k));
  fm_mm router = { .w = &l->router, .x = p->x, .ldx = d, .norm = l->post_norm, .eps = eps, .out = logits,
                   .ldo = n_exp, .n = p->n, .exact = true };
  TRY(fm_op_matmul(c, &router, 1));
  fm_route r = { .n_experts = n_exp, .top_k = k, .n_group = g->topk_method == FM_GREEDY ? 1 : g->n_group,
                 .topk_group = g->topk_group, .sigmoid = g->scoring_func == FM_SIGMOID,
                 .group_top2 = g->topk_method == FM_NOAUX_TC, .norm_topk_prob = g->norm_topk_prob,
                 .routed_scaling_factor = (float)g->routed_scaling_factor };
  TRY(fm_op_route(c, id, weight, logits, l->router_bias, &r, p->n));
  fm_experts e = { .n_experts = n_exp, .top_k = k, .hidden_size = d,
                   .moe_intermediate_size = g->moe_intermediate_size,
                   .gate = l->gate, .up = l->up, .down = l->down, .norm = l->post_norm, .eps = eps,
                   .shared_gate = shared ? &l->mlp.gate : NULL, .shared_up = shared ? &l->mlp.up : NULL,
                   .shared_down = shared ? &l->mlp.down : NULL };
  return fm_op_experts(c, p->x, p->x, id, weight, &e, p->n);
}
