/*
** shift.c - moving the window of a sequence that has outgrown the context, by turning the rotary part of cached keys.
**
** Attention sees differences of positions only. So when rows are taken out, it is the few that are kept in front which are
** turned forward, to stand right before the rest. They are turned from what they were at first, never from what they were
** turned to: rounding does not add up. Positions grow until the rotation tables end; then all rows are turned back, which a row
** of the window lives to see once or twice.
*/
#include <math.h>

#include "model/model.h"

/* The rotated part of a cache row that is `width` wide. */
static void rotary(const fm_config *g, int64_t width, fm_turn *t) {
  bool gqa = g->family == FM_QWEN2;
  t->at = gqa ? 0 : g->kv_lora_rank;
  t->n_heads = gqa ? width / (2 * g->head_dim) : 1;
  t->dim = gqa ? g->head_dim : g->qk_rope_head_dim;
  t->interleaved = g->rope_interleave;
}

/* Rows [a, b) of one layer that a part keeps; of the MTP layer those that are there. */
static fm_status turn_layer(fm_net *net, const fm_kv_seq *s, fm_turn *t, int part, int64_t layer, int64_t a, int64_t b) {
  bool mtp = layer >= net->cfg->num_hidden_layers;
  fm_cache cache = fm_kv_layer(net->kv, part, layer);
  int64_t end = mtp && s->mtp_len < b ? s->mtp_len : b;
  rotary(net->cfg, cache.width, t);
  t->cache = &cache;
  t->index = mtp && s->mtp_first > a ? s->mtp_first : a;
  t->n = end - t->index;
  return t->n > 0 ? fm_op_turn(net->kv->part[part].c, t) : FM_OK;
}

/* Turns rows [a, b) by `delta` positions, in all layers. */
static fm_status turn_rows(fm_net *net, const fm_kv_seq *s, const int32_t *from, int64_t a, int64_t b, int64_t delta,
                           const double *freq, double *cos_sin, fm_error *err) {
  fm_turn t = { .from = from, .to = s->pages };
  rotary(net->cfg, net->kv->width, &t);
  for (int64_t i = 0; i < t.dim / 2; i++) {
    cos_sin[i] = cos((double)delta * freq[i]);
    cos_sin[t.dim / 2 + i] = sin((double)delta * freq[i]);
  }
  t.cos = cos_sin, t.sin = cos_sin + t.dim / 2;
  for (int i = 0; i < net->kv->n_parts; i++) {
    const fm_kv_part *p = &net->kv->part[i];
    if (!p->c || p->group != s->group) continue;
    for (int64_t l = p->layer; l < p->layer + p->n_layers; l++) {
      fm_status status = turn_layer(net, s, &t, i, l, a, b);
      if (status != FM_OK && err) *err = p->c->err;
      TRY(status);
    }
  }
  return FM_OK;
}

static fm_status turn_all(fm_net *net, fm_kv_seq *s, int64_t n, const double *freq, double *cos_sin, fm_error *err) {
  int64_t keep = s->kept_len, to = s->shift + n, rows = s->len > s->mtp_len ? s->len : s->mtp_len;
  fm_status status = FM_OK;
  if (to + net->n_positions > net->n_turns) {
    TRY(fm_kv_reserve(net->kv, s, keep, rows, err));
    status = turn_rows(net, s, s->pages, keep, rows, -to, freq, cos_sin, err);
    to = 0;
  }
  if (status == FM_OK && keep) status = turn_rows(net, s, s->kept, 0, keep, to - s->kept_shift, freq, cos_sin, err);
  s->shift = to;
  return status;
}

fm_status fm_net_shift(fm_net *net, fm_kv_seq *s, int64_t keep, int64_t n, fm_error *err) {
  fm_turn part;
  double amplitude;
  rotary(net->cfg, net->kv->width, &part);
  double *freq = fm_array(2 * part.dim, sizeof *freq);      // and room for a cosine and a sine of each
  if (!freq) return fm_no_memory(err, 2 * part.dim * (int64_t)sizeof *freq);
  fm_config_inv_freq(net->cfg, freq, &amplitude);
  fm_status status = fm_kv_take_out(net->kv, s, keep, n, err);
  if (status == FM_OK) status = turn_all(net, s, n, freq, freq + part.dim / 2, err);
  fm_free(freq);
  return status;
}
