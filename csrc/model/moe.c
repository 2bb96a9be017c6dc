/*
** moe.c - router, routed experts, shared experts. The router's logits are f32: with bf16 ones other experts are chosen.
** Source: DeepSeek-V3 report, section 2.1.2; DeepSeek-V2 report, section 2.2.
*/
#include "model/model.h"

#include <string.h>

/* Routed experts by the host, from the mapping, the shared one on the device: x goes down and comes back up with what they add.
   The shared one's first half is made of x as it was; its second half is added last, as everywhere. */
static fm_status with_host(fm_pass *p, const fm_layer *l, const int32_t *id, const float *weight, const fm_experts *e) {
  fm_ctx *c = p->net->c, *h = p->net->host;
  int64_t d = e->hidden_size, wide = l->mlp.gate.rows;
  float *x, *w, *list, *gate = NULL, *up = NULL;
  TRY(fm_scratch(c, &gate, p->n, wide));
  TRY(fm_scratch(c, &up, p->n, wide));
  fm_mm in[2] = { { .w = &l->mlp.gate, .x = p->x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = gate, .ldo = wide, .n = p->n },
                  { .w = &l->mlp.up, .x = p->x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = up, .ldo = wide, .n = p->n } };
  if (wide) TRY(fm_op_matmul(c, in, 2));
  TRY(fm_to_host(c, &list, (const float *)(const void *)id, p->n, e->top_k));
  TRY(fm_to_host(c, &w, weight, p->n, e->top_k));
  TRY(fm_to_host(c, &x, p->x, p->n, d));
  fm_experts mine = *e;
  mine.norm = l->host_norm;
  mine.shared_gate = mine.shared_up = mine.shared_down = NULL;
  h->debug = c->debug;
  memcpy(h->where, c->where, sizeof h->where);
  h->ops->enter(h->dev);
  fm_status status = fm_op_experts(h, x, x, (const int32_t *)(const void *)list, w, &mine, p->n);
  h->ops->leave(h->dev);
  if (status != FM_OK) c->err = h->err;
  TRY(status);
  TRY(c->ops->upload(c, p->x, x, p->n * d * (int64_t)sizeof *x));
  fm_mm down = { .w = &l->mlp.down, .x = gate, .ldx = wide, .up = up, .out = p->x, .ldo = d, .n = p->n, .add = true };
  return wide ? fm_op_matmul(c, &down, 1) : FM_OK;
}

/* Experts whose columns are split among ranks. */
static fm_status with_parts(fm_pass *p, const int32_t *id, const float *weight, const fm_experts *e) {
  fm_ctx *c = p->net->c;
  int64_t len = p->n * e->hidden_size;
  float *part;
  TRY(fm_scratch(c, &part, p->n, e->hidden_size));
  c->ops->clear(c->dev, part, len * (int64_t)sizeof *part);
  TRY(fm_op_experts(c, part, p->x, id, weight, e, p->n));
  return fm_op_all_reduce(c, p->net->tp, p->x, part, len);
}

static fm_status look(fm_pass *p, const fm_layer *l, float *logits) {
  const fm_config *g = p->net->cfg;
  int64_t n_exp = g->n_routed_experts;
  fm_mm router = { .w = &l->router, .x = p->x, .ldx = g->hidden_size, .norm = l->post_norm, .eps = (float)g->rms_norm_eps,
                   .out = logits, .ldo = n_exp, .n = p->n, .exact = true };
  return fm_op_matmul(p->net->c, &router, 1);
}

/* Of ranks with the same rows the first one counts choices. */
static fm_route rule_of(const fm_pass *p) {
  const fm_config *g = p->net->cfg;
  return (fm_route){ .count = fm_comm_me(p->net->tp) ? NULL : p->net->load + p->layer * g->n_routed_experts,
                     .n_experts = g->n_routed_experts, .top_k = g->num_experts_per_tok,
                     .n_group = g->topk_method == FM_GREEDY ? 1 : g->n_group, .topk_group = g->topk_group,
                     .sigmoid = g->scoring_func == FM_SIGMOID, .group_top2 = g->topk_method == FM_NOAUX_TC,
                     .norm_topk_prob = g->norm_topk_prob, .routed_scaling_factor = (float)g->routed_scaling_factor };
}

fm_status fm_block_moe(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t k = g->num_experts_per_tok;
  bool shared = l->mlp.gate.rows > 0;
  float *weight, *logits;
  int32_t *id;
  TRY(fm_scratch(c, &weight, p->n, k));
  TRY(fm_scratch_int(c, &id, p->n * k));
  TRY(fm_scratch(c, &logits, p->n, g->n_routed_experts));
  if (p->n) TRY(look(p, l, logits));
  fm_experts e = { .n_experts = g->n_routed_experts, .top_k = k, .hidden_size = g->hidden_size,
                   .moe_intermediate_size = l->gate[0].rows, .gate = l->gate, .up = l->up, .down = l->down,
                   .norm = l->post_norm, .eps = (float)g->rms_norm_eps,
                   .shared_gate = shared ? &l->mlp.gate : NULL, .shared_up = shared ? &l->mlp.up : NULL,
                   .shared_down = shared ? &l->mlp.down : NULL };
  fm_route rule = rule_of(p);
  fm_gate gate = { .rule = &rule, .logits = logits, .bias = l->router_bias, .topk_id = id, .topk_weight = weight };
  if (p->net->ep || p->net->host) {      // the choice is looked at here
    if (p->n) TRY(fm_op_route(c, id, weight, logits, l->router_bias, &rule, p->n));
    return p->net->ep ? fm_spread_experts(p, l, id, weight, &e) : with_host(p, l, id, weight, &e);
  }
  e.choose = &gate;
  return p->net->tp ? with_parts(p, id, weight, &e) : fm_op_experts(c, p->x, p->x, id, weight, &e, p->n);
}
