/*
** mlp.c - dense SwiGLU: down(silu(gate x) * up x).
*/
#include "model/model.h"

fm_status fm_block_mlp(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  int64_t d = p->net->cfg->hidden_size, width = l->mlp.gate.rows;
  float *gate, *up, eps = (float)p->net->cfg->rms_norm_eps;
  TRY(fm_scratch(c, &gate, p->n, width));
  TRY(fm_scratch(c, &up, p->n, width));
  fm_mm mm[2] = { { .w = &l->mlp.gate, .x = p->x, .ldx = d, .norm = l->post_norm, .eps = eps, .out = gate,
                    .ldo = width, .n = p->n },
                  { .w = &l->mlp.up, .x = p->x, .ldx = d, .norm = l->post_norm, .eps = eps, .out = up,
                    .ldo = width, .n = p->n } };
  TRY(fm_op_matmul(c, mm, 2));
  return fm_pass_add(p, (fm_mm){ .w = &l->mlp.down, .x = gate, .ldx = width, .up = up });
}
