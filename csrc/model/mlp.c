/*
** mlp.c - dense SwiGLU: down(silu(gate x) * up x).
*/
#include "model/model.h"

fm_status fm_block_mlp(fm_pass *p, const fm_layer *l) {
  fm_ctx *c = p->net->c;
  int64_t d = p->net->cfg->hidden_size, width = l->mlp.gate.rows;
  float *h, *gate, *up;
  TRY(fm_scratch(c, &h, p->n, d));
  TRY(fm_scratch(c, &gate, p->n, width));
  TRY(fm_scratch(c, &up, p->n, width));
  TRY(fm_op_rms_norm(c, h, d, p->x, d, l->post_norm, p->n, d, (float)p->net->cfg->rms_norm_eps));
  fm_mm mm[2] = { { .w = &l->mlp.gate, .x = h, .ldx = d, .out = gate, .ldo = width, .n = p->n },
                  { .w = &l->mlp.up, .x = h, .ldx = d, .out = up, .ldo = width, .n = p->n } };
  TRY(fm_op_matmul(c, mm, 2));
  TRY(fm_op_silu_mul(c, gate, width, gate, up, width, p->n, width));
  fm_mm down = { .w = &l->mlp.down, .x = gate, .ldx = width, .out = p->x, .ldo = d, .n = p->n, .add = true };
  return fm_op_matmul(c, &down, 1);
}
