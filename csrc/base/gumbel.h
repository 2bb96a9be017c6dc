/*
** gumbel.h - the draw of one id: argmax of logit / temperature + gumbel, ties to the lower id, where gumbel = -log(-log(u)) of
** fm_noise. Logarithms are taken only where an id can still win: 1 - u <= -log u, so gumbel <= -log(1 - u), of which the
** leading zeros of 1 - u's 32 bits tell enough.
*/
#ifndef FM_BASE_GUMBEL_H
#define FM_BASE_GUMBEL_H

#include <math.h>

#include "base/rng.h"

typedef struct fm_gumbel {
  uint32_t key[2], counter[4], noise[4];   /* noise: of the four ids that share counter[0] */
  double temperature, best;
  int32_t id;                              /* the best so far; -1: none was tried */
} fm_gumbel;

static inline fm_gumbel fm_gumbel_begin(uint64_t seed, uint32_t sample, int64_t pos, double temperature) {
  return (fm_gumbel){ .key = { (uint32_t)seed, (uint32_t)(seed >> 32) },
                      .counter = { UINT32_MAX, (uint32_t)pos, (uint32_t)((uint64_t)pos >> 32), sample },
                      .temperature = temperature, .best = -INFINITY, .id = -1 };
}

/* No gumbel of these 32 bits is larger; a trifle above for rounding. */
static inline double fm_gumbel_most(uint32_t noise) {
  uint64_t rest = (uint64_t)~noise << 32 | 0x80000000u;
  return (__builtin_clzll(rest) + 1) * 0.6931472;
}

/* The id with the 32 bits that are its own. */
static inline void fm_gumbel_take(fm_gumbel *g, float logit, int32_t id, uint32_t noise) {
  double value = logit / g->temperature;
  if (value + fm_gumbel_most(noise) < g->best) return;
  value -= log(-log(((double)noise + 0.5) * 0x1p-32));
  if (g->id < 0) g->id = id;                       // whatever it is worth: not a number never wins
  if (!(value > g->best || (value == g->best && id < g->id))) return;
  g->best = value;
  g->id = id;
}

static inline void fm_gumbel_try(fm_gumbel *g, float logit, int32_t id) {
  if (g->counter[0] != (uint32_t)id >> 2) {
    g->counter[0] = (uint32_t)id >> 2;
    fm_philox(g->noise, g->counter, g->key);
  }
  fm_gumbel_take(g, logit, id, g->noise[id & 3]);
}

#endif
