/*
** draw_test.c - the CPU's draws are those of the noise taken id by id, on any number of threads, rows beside it or not; and what it says of
** how they stand among all is what counting says.
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "op/op.h"

enum { N = 24, VOCAB = 20003, VALID = 19995 };

static int failures;
static uint64_t state = 20251125;
static float logit[N][VOCAB];

static void check(bool fine, const char *what) {
  printf("%s - %s\n", fine ? "ok" : "not ok", what);
  failures += !fine;
}

static uint32_t draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 32);
}

static int32_t best_of(const float *l, const fm_draw_rule *r) {
  double most = -INFINITY;
  int32_t best = 0;
  for (int32_t i = 0; i < VALID; i++) {
    double v = l[i];
    if (r->temperature > 0) v = v / r->temperature - log(-log(fm_noise(r->seed, r->sample, r->index, i)));
    if (v > most) most = v, best = i;
  }
  return best;
}

/* Whether d says how its id stands, against sums in double precision. */
static bool stands(const float *l, const fm_draw_rule *r, const fm_drawn *d) {
  double before = 0, all = 0, best = -INFINITY;
  int n = 0;
  for (int i = 0; i < VALID; i++) best = l[i] > best ? l[i] : best;
  for (int i = 0; i < VALID; i++) {
    bool ahead = l[i] > l[d->id] || (l[i] == l[d->id] && i < d->id);
    double weight = exp((l[i] - best) / r->temperature);
    n += ahead, before += ahead ? weight : 0, all += weight;
  }
  if (isnan(all)) return isnan(d->all);
  return d->n_before == n && d->best == (float)best && d->logit == l[d->id] && fabs(d->before - before) <= 1e-5 * all &&
         fabs(d->all - all) <= 1e-5 * all;
}

/* Flat logits (noise decides, also where it is close to its ends), steep ones, masked ones, ties, not a number, any. */
static float made(int row, int id) {
  float any = (float)(draw() >> 8) * 0x1p-23f - 1;
  switch (row / 4) {
    case 0: return 0;
    case 1: return any * 20;
    case 2: return id % 3 ? -INFINITY : any;
    case 3: return (float)(id % 7);
    case 4: return id % 5 ? any : NAN;
    default: return any * 3;
  }
}

static void test_draw(int threads) {
  static const float temperature[4] = { 1, 0, 0.01f, 30 };
  fm_ctx c;
  fm_error err;
  fm_draw_rule rule[N];
  fm_drawn out[N];
  bool alone = true, together = true, placed = true;
  if (fm_ctx_open(&c, "cpu", threads, &err) != FM_OK) exit(2);
  for (int i = 0; i < N; i++) {
    rule[i] = (fm_draw_rule){ .seed = draw(), .index = draw(), .sample = (uint32_t)i, .temperature = temperature[i % 4], .stands = i % 4 != 1 && i % 3 };
    for (int j = 0; j < VOCAB; j++) logit[i][j] = j < VALID ? made(i, j) : 1000;
  }
  for (int i = 0; i < N; i++) {
    if (c.ops->draw(&c, out, logit[i], &rule[i], 1, VOCAB, VALID) != FM_OK) exit(2);
    alone = alone && out[0].id == best_of(logit[i], &rule[i]);
  }
  if (c.ops->draw(&c, out, logit[0], rule, N, VOCAB, VALID) != FM_OK) exit(2);
  for (int i = 0; i < N; i++) {
    together = together && out[i].id == best_of(logit[i], &rule[i]);
    placed = placed && (!rule[i].stands || stands(logit[i], &rule[i], &out[i]));
  }
  check(alone, threads == 1 ? "a row alone, one thread" : "a row alone, three threads");
  check(together, threads == 1 ? "many rows, one thread" : "many rows, three threads");
  check(placed, threads == 1 ? "how they stand, one thread" : "how they stand, three threads");
  fm_ctx_close(&c);
}

int main(void) {
  for (int round = 0; round < 4; round++) test_draw(round % 2 ? 3 : 1);
  return failures != 0;
}
