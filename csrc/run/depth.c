/*
** depth.c - how deep "auto" drafts: what passes cost by their rows, how often drafts were right, which depth promises most.
**
** A step in which `able` of n tasks make k drafts each brings n + able (p1 + p1 p2 + ..) ids, for shares p of drafts that were right
** behind right ones, and costs a decoding pass of n + able k rows and k drafting passes of able. What has not been run is taken to
** be cheap, so that it is tried: more rows cost what fewer did, fewer their share of what more did. One depth more than now is
** looked at, none at any time; a change has to promise something, for costs waver. What is known grows old: now and then, less and
** less often, it is learnt anew.
*/
#include <math.h>
#include <string.h>

#include "run/engine.h"

enum { SURE = 4, OLD = 512, OLD_MOST = 8192 };     /* passes of a size before its cost counts; steps before costs are learnt anew */

static const double MARGIN = 1.03;       /* by how much a change must promise more */
static const double BURST = 1.25;        /* a pass that took more than this, beside the mean, counts as this */
static const double HOPE = 0.9;          /* share of right drafts while none was seen */

void fm_depth_begin(fm_depth *d) {
  *d = (fm_depth){ .gap = OLD };
  d->right[0] = HOPE;
}

static int64_t slot(int64_t rows) { return rows < FM_PASS_ROWS ? rows : FM_PASS_ROWS; }

void fm_depth_cost(fm_depth *d, bool draft, int64_t rows, double ms) {
  fm_pass_cost *c = &d->cost[draft][slot(rows)];
  ms *= (double)slot(rows) / (double)rows;
  if (c->n >= SURE) {
    // one pass in many is disturbed, or noted anew: taken whole it would look dear until costs are learnt anew
    fm_mean_add(&c->ms, fmin(ms, BURST * c->ms), 0.1);
    return;
  }
  if (!c->n++ || ms < c->ms) c->ms = ms;           // the first ones may have fetched code, or noted the pass
}

/* ms of a pass of `rows`; 0: nothing is known. */
static double cost(const fm_depth *d, bool draft, int64_t rows) {
  const fm_pass_cost *c = d->cost[draft];
  int64_t at = slot(rows), low = at, high = at;
  double ms;
  while (low > 0 && c[low].n < SURE) low--;
  while (high <= FM_PASS_ROWS && c[high].n < SURE) high++;
  if (!low && high > FM_PASS_ROWS) return 0;
  if (high > FM_PASS_ROWS) return c[low].ms;
  if (!low) ms = c[high].ms * (double)at / (double)high;
  else ms = high == low ? c[low].ms : c[low].ms + (c[high].ms - c[low].ms) * (double)(at - low) / (double)(high - low);
  return ms * (double)rows / (double)at;
}

void fm_depth_right(fm_depth *d, int64_t drafted, int64_t accepted) {
  // drafts behind the first wrong one say nothing
  for (int64_t k = 0; k < drafted && k <= accepted && k < FM_AUTO_DRAFTS; k++) {
    if (d->right[k] <= 0) d->right[k] = d->right[k - 1], d->seen[k] = 0;
    d->seen[k] += d->seen[k] < 100;
    d->right[k] += ((k < accepted) - d->right[k]) / (4 + d->seen[k]);      // the first ones count more
  }
}

/* Ids a millisecond; 0: not known. */
static double speed(const fm_depth *d, int64_t n, int64_t able, int k) {
  double part = (double)able, ids = (double)n, right = 0, ms = cost(d, false, n + able * k);
  if (ms <= 0) return 0;
  for (int i = 0; i < k; i++) {
    right = d->right[i] > 0 ? d->right[i] : right;
    ids += part *= right;
  }
  return ids / (ms + k * cost(d, true, able));
}

/* All but the cost of steps as they are is learnt anew. */
static void grow_old(fm_depth *d, int64_t rows, int64_t able) {
  fm_pass_cost now = d->cost[0][slot(rows)], drafts = d->cost[1][slot(able)];
  if (++d->age < d->gap) return;
  d->age = 0;
  d->gap = d->gap * 2 < OLD_MOST ? d->gap * 2 : OLD_MOST;
  memset(d->cost, 0, sizeof d->cost);
  d->cost[0][slot(rows)] = now;
  d->cost[1][slot(able)] = drafts;
  for (int k = d->now; k < FM_AUTO_DRAFTS; k++) d->right[k] = k ? 0 : HOPE, d->seen[k] = 0;
}

int fm_depth_choose(fm_depth *d, int64_t n, int64_t able) {
  int now = d->now, best = now;
  if (!able) return d->now;
  grow_old(d, n + able * now, able);
  double most = speed(d, n, able, now) * MARGIN;
  if (most <= 0) return d->now;                    // the first steps of all
  for (int k = 1; k <= now + 1 && k <= FM_AUTO_DRAFTS; k++) {
    double s = speed(d, n, able, k);
    if (k != now && s > most) best = k, most = s;
  }
  double best_speed = best == now ? most / MARGIN : most;
  if (now && speed(d, n, able, 0) > best_speed) best = 0;
  return d->now = best;
}
