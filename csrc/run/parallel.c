/*
** parallel.c - several devices: their names, and which forms of sharing the work they take.
**
** The estimate is of one decoding step of all sequences: the bytes of weights that the slowest device reads, and what the ranks tell each
** other. It is made to tell forms apart, not to foretell speed.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run/engine.h"

/* ---- names ----------------------------------------------------------------------------------------------- */

int fm_device_count(const char *devices) {
  int n = 1;
  for (const char *p = devices; p && *p; p++) n += *p == ',';
  return n;
}

void fm_device_name(char name[64], const char *devices, int i, int64_t *described) {
  const char *p = devices ? devices : "auto";
  for (; i > 0 && *p; p++) i -= *p == ',';
  size_t all = strcspn(p, ","), len = strcspn(p, ",=");
  snprintf(name, 64, "%.*s", (int)(len < 63 ? len : 63), p);
  *described = len < all ? strtoll(p + len + 1, NULL, 10) : -1;
}

/* ---- costs ----------------------------------------------------------------------------------------------- */

/* Bytes a second that a device reads and that it sends, seconds of one collective. CPU ranks share one memory. Cards: 0.75 of an H100's
   3.35 TB/s, which kernels/NOTES.md measures, and a third of NVLink's 450 GB/s, which nobody has measured here. */
typedef struct rates { double read, send, wait; bool one_memory; } rates;

static const rates cpu = { 20e9, 5e9, 40e-6, true }, card = { 2.5e12, 150e9, 12e-6, false };

/* Weights of the model in bytes, by what is split how. */
typedef struct sizes { double attention, dense, shared, expert, ends; int64_t n_dense, n_moe; } sizes;

static sizes sizes_of(const fm_config *c, double bytes) {
  double d = (double)c->hidden_size, h = (double)c->num_attention_heads, m = (double)c->moe_intermediate_size;
  double qk = (double)(c->qk_nope_head_dim + c->qk_rope_head_dim), q = (double)c->q_lora_rank, rank = (double)c->kv_lora_rank;
  sizes s = { .dense = 3 * d * (double)c->intermediate_size * bytes, .shared = 3 * d * m * (double)c->n_shared_experts * bytes,
              .expert = 3 * d * m * bytes, .ends = 2 * d * (double)c->vocab_size * bytes };
  if (c->family == FM_QWEN2) s.attention = 2 * d * (h + (double)c->num_key_value_heads) * (double)c->head_dim * bytes;
  else s.attention = ((q > 0 ? q * (d + h * qk) : d * h * qk) + d * (rank + (double)c->qk_rope_head_dim) +
                      rank * h * (double)(c->qk_nope_head_dim + c->v_head_dim) + d * h * (double)c->v_head_dim) * bytes;
  for (int64_t l = 0; l < c->num_hidden_layers; l++) *(fm_config_layer_is_moe(c, l) ? &s.n_moe : &s.n_dense) += 1;
  return s;
}

/* How many of n experts some rows with k choices each are expected to meet. */
static double met(double n, double k, double rows) { return n * (1 - pow(1 - k / n, rows)); }

static void weigh(fm_form_plan *f, const fm_config *c, double bytes, int64_t seqs, const rates *r, int64_t memory) {
  sizes s = sizes_of(c, bytes);
  double tp = f->tp, ep = f->ep, n = (double)c->n_routed_experts, k = (double)c->num_experts_per_tok, d = (double)c->hidden_size;
  double rows = ceil((double)seqs / f->dp), dense = (double)s.n_dense, moe = (double)s.n_moe, layers = dense + moe;
  double crowd = rows * (ep > tp ? ep / tp : 1), split = ep > 1 ? ep : tp;
  double own = moe ? met(n, k, crowd) / split : 0, row = rows * d * 4;
  double read = layers * s.attention / tp + dense * s.dense / tp + moe * (s.shared / tp + own * s.expert) + s.ends / 2;
  double waits = (tp > 1 ? layers * 2 : 0) + (ep > 1 ? moe * 4 : 0) + f->pp - 1;
  double sent = (tp > 1 ? layers * 2 * row * (tp - 1) : 0) + (ep > 1 ? moe * 2 * k * row * (ep - 1) / ep : 0) + (f->pp - 1) * row;
  double held = layers * s.attention / tp + dense * s.dense / tp + moe * (s.shared / tp + n / split * s.expert);
  f->weights = (int64_t)(held / f->pp + s.ends);
  // stages take turns; ranks that read side by side do it out of one memory, or each out of its own
  f->read_ms = read / r->read * 1e3 * (r->one_memory ? f->dp * f->tp : 1);
  f->link_ms = (waits * r->wait + sent / r->send) * 1e3;
  f->fits = memory < 0 || f->weights < memory / 10 * 9;
}

static int by_cost(const void *a, const void *b) {
  const fm_form_plan *f = a, *g = b;
  double x = f->read_ms + f->link_ms, y = g->read_ms + g->link_ms;
  if (f->fits != g->fits) return f->fits ? -1 : 1;
  if (x != y) return x < y ? -1 : 1;
  if (f->pp != g->pp) return f->pp < g->pp ? -1 : 1;
  return f->tp - g->tp;
}

static bool as_asked(const fm_load_options *o, int pp, int dp, int tp) {
  return (!o->pp || o->pp == pp) && (!o->dp || o->dp == dp) && (!o->tp || o->tp == tp);
}

/* Over how many ranks experts go when nobody says: over all that share a layer. GPUs with the same rows split each expert, which
   balances at any number of rows. */
static int spread(const fm_load_options *o, const fm_config *cfg, int dp, int tp) {
  bool gpus = strncmp(o->device ? o->device : "", "cuda", 4) == 0;
  return cfg->n_routed_experts && (!gpus || dp > 1) ? dp * tp : 1;
}

fm_status fm_forms_weigh(fm_form_plan **out, int *n_out, const fm_load_options *o, const fm_config *cfg, double bytes, int64_t seqs,
                         fm_error *err) {
  int n = fm_device_count(o->device), met_n = 0;
  int64_t cap = 0, memory;
  fm_form_plan *list = NULL;
  char name[64];
  fm_device_name(name, o->device, 0, &memory);
  const rates *r = strcmp(name, "cpu") == 0 ? &cpu : &card;
  for (int pp = 1; pp <= n; pp++)
    for (int tp = 1; tp <= n / pp; tp++) {
      fm_forms f = { .pp = pp, .tp = tp, .dp = n / pp / tp };
      f.ep = o->ep ? o->ep : spread(o, cfg, f.dp, f.tp);
      if (n % (pp * tp) || !as_asked(o, pp, f.dp, tp) || fm_forms_check(&f, cfg, n, NULL) != FM_OK) continue;
      if (fm_grow(&list, &cap, met_n + 1, sizeof *list, err) != FM_OK) {
        fm_free(list);
        return FM_EMEMORY;
      }
      if (!cfg->n_routed_experts) f.ep = 1;
      list[met_n] = (fm_form_plan){ .pp = pp, .dp = f.dp, .tp = tp, .ep = f.ep };
      weigh(&list[met_n++], cfg, bytes, seqs, r, memory);
    }
  if (met_n) qsort(list, (size_t)met_n, sizeof *list, by_cost);
  *out = list;
  *n_out = met_n;
  return FM_OK;
}

/* ---- the choice ------------------------------------------------------------------------------------------- */

/* Nothing fits what is asked for: what that would be, to say why not. */
static fm_forms filled_in(const fm_load_options *o, const fm_config *cfg, int n) {
  fm_forms f = { .pp = o->pp, .dp = o->dp, .tp = o->tp, .ep = o->ep };
  int *open[3] = { &f.dp, &f.tp, &f.pp }, left = n;
  for (int i = 0; i < 3; i++)
    if (*open[i]) left /= *open[i];
  for (int i = 0; i < 3; i++) {
    if (*open[i]) continue;
    *open[i] = left > 0 ? left : 1;
    left = 1;
  }
  if (!f.ep) f.ep = spread(o, cfg, f.dp, f.tp);
  return f;
}

fm_status fm_forms_choose(fm_forms *out, const fm_load_options *o, const fm_config *cfg, double bytes, int64_t seqs, fm_error *err) {
  fm_form_plan *list;
  int n, most = FM_MOST_RANKS;
  if (o->pp < 0 || o->dp < 0 || o->tp < 0 || o->ep < 0 || o->pp > most || o->dp > most || o->tp > most || o->ep > most)
    return fm_fail(err, FM_EINVAL, "tp, dp, pp and ep must be 1 to %d", most);
  TRY(fm_forms_weigh(&list, &n, o, cfg, bytes, seqs, err));
  if (n) *out = (fm_forms){ .pp = list->pp, .dp = list->dp, .tp = list->tp, .ep = list->ep };
  for (int i = 0; i < n && n > 1; i++)
    fm_log(FM_LOG_INFO, "pp %d dp %d tp %d ep %d: a step reads weights for %.2f ms and talks for %.2f ms", list[i].pp, list[i].dp,
           list[i].tp, list[i].ep, list[i].read_ms, list[i].link_ms);
  fm_free(list);
  if (n) return FM_OK;
  *out = filled_in(o, cfg, fm_device_count(o->device));
  return fm_forms_check(out, cfg, fm_device_count(o->device), err);
}
