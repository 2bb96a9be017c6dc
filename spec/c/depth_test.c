/*
** depth_test.c - "auto" against made-up devices: it finds the depth that pays, is never slower than no drafts by more than the looks
** that it takes, follows when what pays changes, and keeps up with sessions that join and end.
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "run/engine.h"

static int failures;

static void check(bool good, const char *sentence, const char *device, int n, double got, double asked) {
  printf("%s - %s: %s, %d tasks (%.3f, asked %.3f)\n", good ? "ok" : "not ok", device, sentence, n, got, asked);
  failures += !good;
}

/* ms of a pass: base + row, and at steps of `block` rows; drafts cost `draft` of a pass of as many rows. */
typedef struct device { const char *name; double base, row; int block; double draft, first, noise; } device;

static const device devices[] = {
  { "passes of a graphics card", 1.0, 0.004, 16, 0.25, 12, 0.05 },
  { "large passes of a graphics card", 4.0, 0.05, 64, 0.10, 3, 0.03 },
  { "a processor", 0.3, 0.25, 1, 0.30, 1, 0.10 },
  { "a processor whose drafts cost much", 0.1, 0.30, 1, 0.60, 1, 0.10 },
};

static uint32_t state = 7;
static double uniform(void) {
  state = state * 1664525u + 1013904223u;
  return (double)(state >> 8) / 16777216;
}

static double pass_ms(const device *d, bool draft, int64_t rows) {
  double ms = d->base + d->row * (double)((rows + d->block - 1) / d->block * d->block);
  return draft ? d->draft * ms : ms;
}

/* What a depth brings by the numbers alone, ids a ms. */
static double fixed(const device *d, int n, int k, double p) {
  double ids = 1, part = 1, ms = pass_ms(d, false, n * (1 + k)) + k * pass_ms(d, true, n);
  for (int i = 0; i < k; i++) ids += part *= p;
  return n * ids / ms;
}

static double measured(const device *d, fm_depth *a, bool *seen, bool draft, int64_t rows, double *spent) {
  double ms = pass_ms(d, draft, rows) * (1 + d->noise * (2 * uniform() - 1));
  if (uniform() < 0.01) ms *= 3;                   // somebody else had the machine
  bool *old = &seen[draft * 4096 + rows];
  if (!*old) ms *= d->first;                       // what a device does when a size is met
  *old = true;
  fm_depth_cost(a, draft, rows, ms);
  *spent += pass_ms(d, draft, rows);               // the device as it is: looks are what is left
  return ms;
}

/* `steps` steps of n tasks: ids a ms. */
static double run(const device *d, fm_depth *a, bool *seen, int n, int steps, double p) {
  double ids = 0, spent = 0;
  for (int i = 0; i < steps; i++) {
    int k = a->now;
    measured(d, a, seen, false, n * (1 + k), &spent);
    for (int t = 0; t < n; t++) {
      int right = 0;
      while (right < k && uniform() < p) right++;
      fm_depth_right(a, k, right);
      ids += 1 + right;
    }
    k = fm_depth_choose(a, n, n);
    for (int j = 0; j < k; j++) measured(d, a, seen, true, n, &spent);
  }
  return ids / spent;
}

static void against_fixed(const device *d, double p) {
  for (int n = 1; n <= 64; n *= 2) {
    fm_depth a;
    bool *seen = calloc(8192, sizeof *seen);
    double best = 0, none = fixed(d, n, 0, p);
    for (int k = 0; k <= FM_AUTO_DRAFTS; k++) best = fmax(best, fixed(d, n, k, p));
    fm_depth_begin(&a);
    double got = run(d, &a, seen, n, 3000, p);
    check(got >= 0.97 * none, "not slower than no drafts", d->name, n, got / none, 0.97);
    check(got >= 0.93 * best, "near the best depth", d->name, n, got / best, 0.93);
    free(seen);
  }
}

static void drafts_turn_bad(const device *d) {
  fm_depth a;
  bool *seen = calloc(8192, sizeof *seen);
  fm_depth_begin(&a);
  run(d, &a, seen, 16, 1000, 0.95);
  int before = a.now;
  run(d, &a, seen, 16, 300, 0.1);
  double got = run(d, &a, seen, 16, 2000, 0.1), none = fixed(d, 16, 0, 0.1);
  check(before > 0 && got >= 0.97 * none, "stops when drafts turn bad", d->name, 16, got / none, 0.97);
  run(d, &a, seen, 16, 4000, 0.95);
  got = run(d, &a, seen, 16, 2000, 0.95), none = fixed(d, 16, 0, 0.95);
  check(a.now > 0 && got > none, "and drafts again when they are right", d->name, 16, got / none, 1);
  free(seen);
}

/* ---- sessions that join and end --------------------------------------------------------------------------- */

enum {
  MOST = 64,                             /* sessions at once */
  MISSED = 24,                           /* steps without drafts, behind which a reply makes none any more */
  SIZES = 1024
};

typedef struct talk { int left, missed, drafts; } talk;

/* Passes that the device has noted, the latest first: one that it meets anew, or has forgotten, is dear. */
typedef struct notes { int most, n, size[SIZES]; } notes;

typedef struct crowd {
  const device *d;
  fm_depth depth;
  int fixed;                             /* drafts a step; -1: as `depth` says */
  notes notes;
  talk talk[MOST];
  int n;
  double ids, ms;
} crowd;

static bool known(notes *s, int size) {
  int i = 0;
  while (i < s->n && s->size[i] != size) i++;
  bool found = i < s->n;
  if (!found && s->n < s->most) s->n++;
  for (i = i < s->n ? i : s->n - 1; i > 0; i--) s->size[i] = s->size[i - 1];
  s->size[0] = size;
  return found;
}

/* Here all that is spent counts, the noting of passes too. */
static void run_pass(crowd *c, bool draft, int rows) {
  const device *d = c->d;
  double ms = pass_ms(d, draft, rows) * (1 + d->noise * (2 * uniform() - 1));
  if (uniform() < 0.01) ms *= 3;
  if (!known(&c->notes, 2 * rows + draft)) ms *= d->first;
  if (c->fixed < 0) fm_depth_cost(&c->depth, draft, rows, ms);
  c->ms += ms;
}

/* Every talk says its next ids; those that have said all are gone. */
static void decode(crowd *c, double p) {
  int rows = c->n, stay = 0;
  for (int i = 0; i < c->n; i++) rows += c->talk[i].drafts;
  run_pass(c, false, rows);
  for (int i = 0; i < c->n; i++) {
    talk t = c->talk[i];
    int right = 0;
    while (right < t.drafts && uniform() < p) right++;
    if (t.drafts) fm_depth_right(&c->depth, t.drafts, right);
    c->ids += 1 + right;
    t.left -= 1 + right;
    if (t.left > 0) c->talk[stay++] = t;
  }
  c->n = stay;
}

/* As many as there are to be at this point of the work, now few, now many, some of them late. */
static void join(crowd *c) {
  int want = 1 + (int)((MOST - 1) * (0.5 - 0.5 * cos(c->ids / 9000)) * (0.8 + 0.2 * cos(c->ids / 700)));
  while (c->n < want && (c->n == 0 || uniform() < 0.8)) c->talk[c->n++] = (talk){ .left = 10 + (int)(300 * uniform()) };
}

static void draft(crowd *c) {
  int able = 0, k = c->fixed;
  for (int i = 0; i < c->n; i++) able += c->talk[i].missed <= MISSED;
  if (c->fixed < 0) k = fm_depth_choose(&c->depth, c->n, able);
  for (int i = 0; i < k && able; i++) run_pass(c, true, able);
  for (talk *t = c->talk; t < c->talk + c->n; t++) {
    t->drafts = t->missed <= MISSED ? k : 0;
    t->missed = t->drafts ? 0 : t->missed + (c->fixed < 0);
  }
}

/* ms for the second half of some work. */
static double crowd_ms(const device *d, int fixed, int noted, double p) {
  static crowd c;
  double work = 300000, begun = 0;
  c = (crowd){ .d = d, .fixed = fixed, .notes.most = noted };
  fm_depth_begin(&c.depth);
  state = 7;
  while (c.ids < work) {
    join(&c);
    decode(&c, p);
    draft(&c);
    if (c.ids < work / 2) begun = c.ms;
  }
  return c.ms - begun;
}

static void among_a_crowd(const device *d, int noted, double p) {
  double best = INFINITY;
  int k_best = 0;
  for (int k = 0; k <= FM_AUTO_DRAFTS; k++) {
    double ms = crowd_ms(d, k, noted, p);
    if (ms < best) best = ms, k_best = k;
  }
  double got = best / crowd_ms(d, -1, noted, p);
  char what[100];
  snprintf(what, sizeof what, "sessions join and end, near the best depth (%d) for p %.2f", k_best, p);
  check(got >= 0.95, what, d->name, MOST, got, 0.95);
}

/* Tasks that cannot draft are not counted on. */
static void nobody_able(void) {
  fm_depth a;
  fm_depth_begin(&a);
  for (int i = 0; i < 100; i++) fm_depth_cost(&a, false, 8, 1), fm_depth_choose(&a, 8, 0);
  check(a.now == 0, "nobody can draft, nothing is chosen", "any", 8, a.now, 0);
}

int main(void) {
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    for (int high = 0; high < 2; high++) against_fixed(&devices[i], high ? 0.95 : 0.4);
  drafts_turn_bad(&devices[0]);
  drafts_turn_bad(&devices[1]);
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    for (int j = 0; j < 3; j++) among_a_crowd(&devices[i], SIZES, (double[]){ 0.4, 0.7, 0.95 }[j]);
  device noting = { "a graphics card that notes passes", 1.0, 0.004, 16, 0.25, 12, 0.05 };
  for (int j = 0; j < 3; j++)
    for (int noted = 64; noted <= SIZES; noted *= 16) among_a_crowd(&noting, noted, (double[]){ 0.4, 0.7, 0.95 }[j]);
  nobody_able();
  return failures > 0;
}
