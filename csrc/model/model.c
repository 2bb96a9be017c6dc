/*
** model.c - fm_config -> list of blocks -> forward.
*/
#include "model/model.h"

#include <math.h>
#include <string.h>

fm_status fm_net_init(fm_net *net, fm_ctx *c, const fm_config *cfg, const fm_weights *w, fm_kv *kv,
                      int64_t n_positions, fm_error *err) {
  int64_t half = (cfg->family == FM_QWEN2 ? cfg->head_dim : cfg->qk_rope_head_dim) / 2;
  *net = (fm_net){ .cfg = cfg, .w = w, .kv = kv, .c = c, .n_positions = n_positions };
  double *freq = fm_array(half, sizeof *freq), amplitude;
  net->cos = fm_array(n_positions * half, sizeof *net->cos);
  net->sin = fm_array(n_positions * half, sizeof *net->sin);
  if (!freq || !net->cos || !net->sin) {
    fm_free(freq);
    fm_net_free(net);
    return fm_no_memory(err, n_positions * half * 8);
  }
  fm_config_inv_freq(cfg, freq, &amplitude);
  for (int64_t p = 0; p < n_positions; p++)
    for (int64_t i = 0; i < half; i++) {
      net->cos[p * half + i] = (float)(cos((double)p * freq[i]) * amplitude);
      net->sin[p * half + i] = (float)(sin((double)p * freq[i]) * amplitude);
    }
  fm_free(freq);
  return FM_OK;
}

void fm_net_free(fm_net *net) {
  fm_free(net->cos);
  fm_free(net->sin);
  *net = (fm_net){ 0 };
}

/* Prompt spans first, generated ones after, each in the order of the segments. */
static void place_spans(fm_pass *p, fm_seg *segs, int64_t n_segs) {
  fm_span *next[2] = { p->prompt, p->decode };
  int64_t row = 0, logit = 0;
  for (int64_t i = 0; i < n_segs; i++) {
    fm_seg *s = &segs[i];
    s->row = row;
    s->logits_row = logit;
    *next[s->role == FM_GENERATED]++ = (fm_span){
      .row = row, .n = s->n, .index = s->index, .pages = s->seq->pages,
      .first_key = p->mtp ? s->seq->mtp_first : 0 };
    for (int64_t j = 0; j < s->n; j++) {
      // an MTP row is stored at the index of its id and rotated as the state it continues
      p->pos[row] = (int32_t)(s->index + j - p->mtp);
      if (j >= s->n - s->n_logits) p->logit_row[logit++] = (int32_t)row;
      row++;
    }
  }
}

static fm_status gather(fm_pass *p, fm_seg *segs, int64_t n_segs) {
  fm_ctx *c = p->net->c;
  int64_t d = p->net->cfg->hidden_size;
  int32_t *ids;
  float *h = NULL;
  TRY(fm_scratch_int(c, &ids, p->n));
  if (p->mtp) TRY(fm_scratch(c, &h, p->n, d));
  for (int64_t i = 0; i < n_segs; i++) {
    const fm_seg *s = &segs[i];
    memcpy(ids + s->row, s->ids, (size_t)s->n * sizeof *ids);
    if (p->mtp) memcpy(h + s->row * d, s->h, (size_t)(s->n * d) * sizeof *h);
  }
  if (p->mtp) return fm_mtp_join(p, ids, h);
  return fm_op_embed(c, p->x, &p->net->w->embed, ids, p->n);
}

static fm_status begin(fm_pass *p, fm_seg *segs, int64_t n_segs) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  for (int64_t i = 0; i < n_segs; i++) {
    p->n += segs[i].n;
    p->n_logits += segs[i].n_logits;
    if (segs[i].role == FM_GENERATED) p->n_decode++;
    else p->n_prompt++;
  }
  TRY(fm_scratch_int(c, &p->pos, p->n));
  TRY(fm_scratch_int(c, &p->logit_row, p->n_logits));
  p->prompt = fm_arena_alloc(&c->arena, n_segs * (int64_t)sizeof(fm_span));
  if (!p->prompt) return fm_no_memory(&c->err, n_segs * (int64_t)sizeof(fm_span));
  p->decode = p->prompt + p->n_prompt;
  p->n_span = n_segs;
  TRY(fm_scratch(c, &p->x, p->n, g->hidden_size));
  TRY(fm_scratch(c, &p->hidden, p->n, g->hidden_size));
  TRY(fm_scratch(c, &p->logits, p->n_logits, g->vocab_size));
  place_spans(p, segs, n_segs);
  fm_mark mark = fm_arena_mark(&c->arena);
  fm_status status = gather(p, segs, n_segs);
  fm_arena_release(&c->arena, mark);
  return status;
}

fm_status fm_pass_begin(fm_pass *p, fm_net *net, fm_seg *segs, int64_t n_segs, bool mtp) {
  *p = (fm_pass){ .net = net, .mtp = mtp, .mark = fm_arena_mark(&net->c->arena) };
  p->layer = mtp ? net->cfg->num_hidden_layers : 0;
  p->n_layers = net->cfg->num_hidden_layers + mtp;
  fm_status status = begin(p, segs, n_segs);
  if (status != FM_OK) fm_pass_end(p);
  return status;
}

static fm_status block(fm_pass *p, const fm_layer *l) {
  TRY(p->net->cfg->family == FM_QWEN2 ? fm_block_gqa(p, l) : fm_block_mla(p, l));
  return l->moe ? fm_block_moe(p, l) : fm_block_mlp(p, l);
}

static fm_status finish(fm_pass *p) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size, v = g->vocab_size;
  TRY(fm_op_rms_norm(c, p->hidden, d, p->x, d, p->mtp ? p->net->w->mtp.norm : p->net->w->norm, p->n, d,
                     (float)g->rms_norm_eps));
  if (!p->n_logits) return FM_OK;
  float *rows;
  TRY(fm_scratch(c, &rows, p->n_logits, d));
  for (int64_t i = 0; i < p->n_logits; i++)
    memcpy(rows + i * d, p->hidden + p->logit_row[i] * d, (size_t)d * sizeof *rows);
  fm_mm mm = { .w = &p->net->w->head, .x = rows, .ldx = d, .out = p->logits, .ldo = v, .n = p->n_logits };
  return fm_op_matmul(c, &mm, 1);
}

fm_status fm_pass_layer(fm_pass *p, bool *done) {
  fm_ctx *c = p->net->c;
  fm_mark mark = fm_arena_mark(&c->arena);
  bool last = p->layer == p->n_layers;
  c->ops->enter(c->dev);
  fm_status status = last ? finish(p) : block(p, &p->net->w->layer[p->layer]);
  c->ops->leave(c->dev);
  fm_arena_release(&c->arena, mark);
  p->layer++;
  *done = last;
  return status;
}

void fm_pass_end(fm_pass *p) {
  fm_arena_release(&p->net->c->arena, p->mark);
}
