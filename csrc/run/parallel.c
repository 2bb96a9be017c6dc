/*
** parallel.c - several devices: their names, and which forms of sharing the work they take.
*/
#include <string.h>

#include "run/engine.h"

int fm_device_count(const char *devices) {
  int n = 1;
  for (const char *p = devices; p && *p; p++) n += *p == ',';
  return n;
}

void fm_device_name(char name[64], const char *devices, int i) {
  const char *p = devices ? devices : "auto";
  for (; i > 0 && *p; p++) i -= *p == ',';
  size_t len = strcspn(p, ",");
  snprintf(name, 64, "%.*s", (int)(len < 63 ? len : 63), p);
}

/* What is given is kept; the first of dp, tp, pp that is not takes what is left. */
static void fill_in(fm_forms *f, int n) {
  int *open[3] = { &f->dp, &f->tp, &f->pp }, left = n;
  for (int i = 0; i < 3; i++)
    if (*open[i] > 0) left /= *open[i];
  for (int i = 0; i < 3; i++) {
    if (*open[i]) continue;
    *open[i] = left > 0 ? left : 1;
    left = 1;
  }
}

static void choose_all(fm_forms *f, const fm_config *cfg, int n) {
  int64_t heads = cfg->family == FM_QWEN2 ? cfg->num_key_value_heads : cfg->num_attention_heads;
  f->dp = f->tp = f->pp = 1;
  if (cfg->n_routed_experts >= n) f->dp = n;       // attention by sequences, experts spread: DeepSeek's own form
  else if (heads % n == 0) f->tp = n;
  else if (cfg->num_hidden_layers >= n) f->pp = n;
  else f->dp = n;
}

fm_status fm_forms_choose(fm_forms *out, const fm_load_options *o, const fm_config *cfg, fm_error *err) {
  int n = fm_device_count(o->device);
  fm_forms f = { .pp = o->pp, .dp = o->dp, .tp = o->tp, .ep = o->ep };
  if (f.pp < 0 || f.dp < 0 || f.tp < 0 || f.ep < 0 || f.pp > FM_MOST_RANKS || f.dp > FM_MOST_RANKS || f.tp > FM_MOST_RANKS ||
      f.ep > FM_MOST_RANKS)
    return fm_fail(err, FM_EINVAL, "tp, dp, pp and ep must be 1 to %d", FM_MOST_RANKS);
  if (!f.pp && !f.dp && !f.tp && !f.ep) choose_all(&f, cfg, n);
  fill_in(&f, n);
  if (!f.ep) f.ep = cfg->n_routed_experts ? f.dp * f.tp : 1;
  TRY(fm_forms_check(&f, cfg, n, err));
  if (!cfg->n_routed_experts) f.ep = 1;
  *out = f;
  return FM_OK;
}
