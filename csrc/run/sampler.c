/*
** sampler.c - filters in the order temperature, top-k, top-p, min-p, then the draw.
*/
#include "run/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/gumbel.h"

fm_status fm_sampler_new(fm_sampler **out, int64_t vocab_size, int64_t n_valid, fm_error *err) {
  fm_sampler *s = fm_zalloc(sizeof *s);
  if (!s) return fm_no_memory(err, sizeof *s);
  s->vocab_size = vocab_size;
  s->n_valid = n_valid < vocab_size ? n_valid : vocab_size;
  s->logit = fm_array(vocab_size, sizeof *s->logit);
  s->kept = fm_array(vocab_size, sizeof *s->kept);
  s->stamp = fm_array(vocab_size, sizeof *s->stamp);
  s->count = fm_array(vocab_size, sizeof *s->count);
  if (!s->logit || !s->kept || !s->stamp || !s->count) {
    fm_sampler_free(s);
    return fm_no_memory(err, vocab_size * 16);
  }
  *out = s;
  return FM_OK;
}

void fm_sampler_free(fm_sampler *s) {
  if (!s) return;
  fm_free(s->logit);
  fm_free(s->kept);
  fm_free(s->stamp);
  fm_free(s->count);
  fm_free(s);
}

double fm_log_sum_exp(const float *logits, int64_t n) {
  float max = logits[0];
  for (int64_t i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += exp((double)logits[i] - max);
  return max + log(sum);
}

/* Calls out each distinct id of a stretch of history once, with its count in s->count. */
static int64_t distinct(fm_sampler *s, const int32_t *ids, int64_t n) {
  int64_t kept = 0;
  if (++s->stamp_now == 0) {                       // wrapped: old stamps would look new
    memset(s->stamp, 0, (size_t)s->vocab_size * sizeof *s->stamp);
    s->stamp_now = 1;
  }
  for (int64_t i = 0; i < n; i++) {
    int32_t id = ids[i];
    if (s->stamp[id] != s->stamp_now) {
      s->stamp[id] = s->stamp_now;
      s->count[id] = 0;
      s->kept[kept++] = id;
    }
    s->count[id]++;
  }
  return kept;
}

static void penalise(fm_sampler *s, const fm_generate_options *o, fm_history h) {
  if (o->repeat_penalty != 1) {
    int64_t n = distinct(s, h.ids, h.n);
    for (int64_t i = 0; i < n; i++) {
      float *l = &s->logit[s->kept[i]];
      *l = *l > 0 ? *l / o->repeat_penalty : *l * o->repeat_penalty;
    }
  }
  if (o->presence_penalty != 0 || o->frequency_penalty != 0) {
    int64_t n = distinct(s, h.ids + h.n_prompt, h.n - h.n_prompt);
    for (int64_t i = 0; i < n; i++)
      s->logit[s->kept[i]] -= o->presence_penalty + o->frequency_penalty * (float)s->count[s->kept[i]];
  }
}

static bool penalties(const fm_generate_options *o) {
  return o->repeat_penalty != 1 || o->presence_penalty != 0 || o->frequency_penalty != 0;
}

static int32_t argmax(const float *x, int64_t n) {
  int32_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (x[i] > x[best]) best = (int32_t)i;
  return best;
}

/* Larger logit first, then lower id: a total order, so any sorting gives the same result. */
static bool before(const float *l, int32_t a, int32_t b) {
  return l[a] != l[b] ? l[a] > l[b] : a < b;
}

static void sift_down(const float *l, int32_t *heap, int64_t n, int64_t i) {
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= n) return;
    if (child + 1 < n && before(l, heap[child], heap[child + 1])) child++;
    if (before(l, heap[child], heap[i])) return;   // heap: the worst on top
    int32_t t = heap[i];
    heap[i] = heap[child];
    heap[child] = t;
    i = child;
  }
}

/* Puts the k best of ids[0..n) into ids[0..k), best first. */
static void select_best(const float *l, int32_t *ids, int64_t n, int64_t k) {
  for (int64_t i = k / 2; i-- > 0;) sift_down(l, ids, k, i);
  for (int64_t i = k; i < n; i++)
    if (before(l, ids[i], ids[0])) {
      int32_t t = ids[0];
      ids[0] = ids[i];
      ids[i] = t;
      sift_down(l, ids, k, 0);
    }
  for (int64_t end = k; end > 1; end--) {          // heap sort: worst to the back
    int32_t t = ids[0];
    ids[0] = ids[end - 1];
    ids[end - 1] = t;
    sift_down(l, ids, end - 1, 0);
  }
}

/* Smallest set of best candidates whose probability reaches top_p. Sorting starts from the few that can matter. */
static int64_t keep_top_p(fm_sampler *s, const fm_generate_options *o, int64_t n, float max) {
  const float *l = s->logit;
  double total = 0, temp = o->temperature;
  for (int64_t i = 0; i < n; i++) total += exp(((double)l[s->kept[i]] - max) / temp);
  double want = o->top_p * total;
  for (int64_t k = n < 64 ? n : 64;; k = k * 8 < n ? k * 8 : n) {
    select_best(l, s->kept, n, k);
    double sum = 0;
    for (int64_t i = 0; i < k; i++) {
      sum += exp(((double)l[s->kept[i]] - max) / temp);
      if (sum >= want) return i + 1;
    }
    if (k == n) return n;
  }
}

static int64_t keep_min_p(fm_sampler *s, const fm_generate_options *o, int64_t n, float max) {
  int64_t kept = 0;
  double floor = log((double)o->min_p) * o->temperature + max;
  for (int64_t i = 0; i < n; i++)
    if (s->logit[s->kept[i]] >= floor) s->kept[kept++] = s->kept[i];
  return kept;
}

/* Fills s->kept with the ids of the mask, in order; returns how many. */
static int64_t unmask(fm_sampler *s, const uint64_t *mask) {
  int64_t n = 0, words = (s->n_valid + 63) / 64;
  for (int64_t w = 0; w < words; w++)
    for (uint64_t bits = mask[w]; bits; bits &= bits - 1) s->kept[n++] = (int32_t)(w * 64 + __builtin_ctzll(bits));
  while (n && s->kept[n - 1] >= s->n_valid) n--;
  return n;
}

/* The best of the candidates; ties go to the lower id. */
static int32_t best_of(const fm_sampler *s, int64_t n) {
  int32_t best = s->kept[0];
  for (int64_t i = 1; i < n; i++)
    if (s->logit[s->kept[i]] > s->logit[best]) best = s->kept[i];
  return best;
}

/* Leaves in s->kept, out of n candidates, those that the filters keep; returns how many. */
static int64_t filter(fm_sampler *s, const fm_generate_options *o, int64_t all) {
  int64_t n = 0;
  float max = s->logit[best_of(s, all)];
  for (int64_t i = 0; i < all; i++)
    if (s->logit[s->kept[i]] > -INFINITY) s->kept[n++] = s->kept[i];
  if (o->top_k > 0 && o->top_k < n) {
    select_best(s->logit, s->kept, n, o->top_k);
    n = o->top_k;
  }
  if (o->top_p < 1 && n > 1) n = keep_top_p(s, o, n, max);
  if (o->min_p > 0 && n > 1) n = keep_min_p(s, o, n, max);
  return n;
}

static int32_t gumbel_max(const fm_sampler *s, const fm_generate_options *o, int64_t n, int64_t pos) {
  fm_gumbel g = fm_gumbel_begin(o->seed, o->sample, pos, o->temperature);
  for (int64_t i = 0; i < n; i++) fm_gumbel_try(&g, s->logit[s->kept[i]], s->kept[i]);
  return g.id;
}

enum { DOUBT = 10000 };                  /* one part in so many of all probability: a device's sums are not ours */

bool fm_sampler_keeps(const fm_generate_options *o, const fm_drawn *d) {
  double own = exp(((double)d->logit - d->best) / o->temperature), doubt = (double)d->all / DOUBT;
  // behind top_k top_p is a share of less than all, but of no less than what ends with this id
  double least = o->top_p * (o->top_k > 0 ? d->before + own : d->all);
  if (o->temperature <= 0) return true;
  if (o->top_k > 0 && d->n_before >= o->top_k) return false;
  if (o->top_p < 1 && d->n_before > 0 && !(d->before < least - doubt)) return false;
  return o->min_p <= 0 || d->logit >= log((double)o->min_p) * o->temperature + d->best;
}

static float filtered_logprob(const fm_sampler *s, const fm_generate_options *o, int64_t n, int32_t id) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++)
    sum += exp(((double)s->logit[s->kept[i]] - s->logit[id]) / o->temperature);
  return (float)-log(sum);
}

/* The logits to draw from: under a mask only its own are looked at. Fills s->kept; returns how many candidates there are. */
static int64_t prepare(fm_sampler *s, const fm_generate_options *o, const float *logits, fm_history h, const uint64_t *mask) {
  int64_t n = mask ? unmask(s, mask) : 0;
  if (!mask) memcpy(s->logit, logits, (size_t)s->vocab_size * sizeof *s->logit);
  for (int64_t i = 0; i < n; i++) s->logit[s->kept[i]] = logits[s->kept[i]];
  for (int32_t i = 0; i < o->n_logit_bias; i++)
    s->logit[o->logit_bias[i].id] += o->logit_bias[i].bias;
  penalise(s, o, h);
  if (mask) return penalties(o) ? unmask(s, mask) : n;       // they used s->kept
  if (o->temperature > 0)
    for (n = 0; n < s->n_valid; n++) s->kept[n] = (int32_t)n;
  return n;
}

fm_draw fm_sampler_draw(fm_sampler *s, const fm_generate_options *o, const float *logits, fm_history h, const uint64_t *mask,
                        bool want_logprob) {
  fm_draw d = { .logprob = NAN, .logprob_filtered = NAN };
  int64_t all = prepare(s, o, logits, h, mask), n = 0;
  if (mask && !all) return (fm_draw){ .id = -1, .logprob = NAN, .logprob_filtered = NAN };
  if (o->temperature > 0) n = filter(s, o, all);
  if (n) d.id = gumbel_max(s, o, n, h.n + h.n_dropped);
  else d.id = mask ? best_of(s, all) : argmax(s->logit, s->n_valid);
  if (s->logit[d.id] == -INFINITY) return (fm_draw){ .id = -1, .logprob = NAN, .logprob_filtered = NAN };
  if (want_logprob) {
    d.logprob_filtered = n ? filtered_logprob(s, o, n, d.id) : 0;
    d.logprob = (float)(logits[d.id] - fm_log_sum_exp(logits, s->vocab_size));
  }
  return d;
}

void fm_sampler_top(fm_sampler *s, const float *logits, int32_t k, fm_top_logprob *out) {
  double lse = fm_log_sum_exp(logits, s->vocab_size);
  for (int64_t i = 0; i < s->vocab_size; i++) s->kept[i] = (int32_t)i;
  select_best(logits, s->kept, s->vocab_size, k);
  for (int32_t i = 0; i < k; i++)
    out[i] = (fm_top_logprob){ s->kept[i], (float)(logits[s->kept[i]] - lse) };
}
