/*
** mtp.c - the multi-token prediction module's own part: joining a state with the embedding of the next id.
** The released weights take the embedding's half first. Source: DeepSeek-V3 report, section 2.2.
*/
#include "model/model.h"

#include <string.h>

fm_status fm_mtp_join(fm_pass *p, const float *h) {
  fm_ctx *c = p->net->c;
  const fm_weights *w = p->net->w;
  int64_t d = p->net->cfg->hidden_size;
  float eps = (float)p->net->cfg->rms_norm_eps, *emb, *both;
  TRY(fm_scratch(c, &emb, p->n, d));
  TRY(fm_scratch(c, &both, p->n, 2 * d));
  TRY(fm_op_embed(c, emb, &w->embed, p->ids, p->n));
  TRY(fm_op_rms_norm(c, both, 2 * d, emb, d, w->mtp.enorm, p->n, d, eps));
  TRY(fm_op_rms_norm(c, both + d, 2 * d, h, d, w->mtp.hnorm, p->n, d, eps));
  fm_mm mm = { .w = &w->mtp.eh_proj, .x = both, .ldx = 2 * d, .out = p->x, .ldo = d, .n = p->n };
  return fm_op_matmul(c, &mm, 1);
}
