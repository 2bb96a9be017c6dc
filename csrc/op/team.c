/*
** team.c - one thread a rank, all running the same step.
*/
#include "op/team.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "op/load.h"

enum { PATIENCE = 60 };                 /* s: a layer of a long prompt may take some on a slow machine; who is gone is not waited for */

typedef enum fault { NONE, FAIL, HANG, DIE } fault;

typedef struct rank {
  fm_team *team;
  int number;
  fm_worker *worker;                     /* NULL: the caller's thread */
  fm_status status;
  fm_error err;
  fault fault;
  int64_t fault_at, steps;
} rank;

struct fm_team {
  fm_hub *hub;
  double limit_s;
  int n;
  bool lost;
  fm_error why;                          /* lost: what every later step says */
  fm_team_fn fn;
  void *arg;
  rank rank[];
};

int fm_team_size(const fm_team *t) { return t->n; }
fm_hub *fm_team_hub(fm_team *t) { return t->hub; }
bool fm_team_lost(const fm_team *t) { return t->lost; }

double fm_team_limit(double asked) {
  const char *said = getenv("FATHOM_RANK_SECONDS");
  double s = asked > 0 ? asked : said ? strtod(said, NULL) : 0;
  return s > 0 && s < 1e6 ? s : PATIENCE;
}

static void plant_fault(fm_team *t) {
  static const struct { const char *word; fault f; } kinds[] = { { "fail", FAIL }, { "hang", HANG }, { "die", DIE } };
  const char *said = getenv("FATHOM_FAULT");
  char word[8];
  int who;
  long long at;
  if (!said || sscanf(said, "%7[a-z]:%d:%lld", word, &who, &at) != 3 || who < 0 || who >= t->n) return;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strcmp(word, kinds[i].word) == 0) t->rank[who].fault = kinds[i].f, t->rank[who].fault_at = at;
}

/* One step of one rank; false: its thread is to end without a word. */
static bool step(void *arg) {
  rank *r = arg;
  fm_team *t = r->team;
  fault f = ++r->steps == r->fault_at ? r->fault : NONE;
  if (f == DIE && r->worker) return false;
  while (f == HANG && r->worker) nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
  r->status = f == NONE ? t->fn(t->arg, r->number, &r->err)
                        : fm_fail(&r->err, FM_EDEVICE, "a fault was planted in step %lld", (long long)r->steps);
  if (r->status != FM_OK) fm_hub_abort(t->hub, r->number);
  return true;
}

fm_status fm_team_new(fm_team **out, int n, double limit_s, fm_error *err) {
  fm_team *t = fm_zalloc((int64_t)sizeof *t + n * (int64_t)sizeof *t->rank);
  if (!t) return fm_no_memory(err, (int64_t)sizeof *t);
  t->n = n;
  t->limit_s = fm_team_limit(limit_s);
  fm_status status = fm_hub_new(&t->hub, t->limit_s, err);
  for (int i = 0; i < n; i++) t->rank[i].team = t, t->rank[i].number = i;
  plant_fault(t);
  for (int i = 1; i < n && status == FM_OK; i++) status = fm_worker_new(&t->rank[i].worker, t->hub, step, &t->rank[i], err);
  if (status != FM_OK) {
    fm_team_free(t);
    return status;
  }
  *out = t;
  return FM_OK;
}

bool fm_team_free(fm_team *t) {
  bool all = true;
  if (!t) return true;
  if (t->hub) fm_hub_abort(t->hub, -1);
  for (int i = 1; i < t->n; i++) all = fm_worker_free(t->rank[i].worker) && all;
  if (!all) fm_module_stay();
  if (all) fm_hub_free(t->hub);
  if (all) fm_free(t);
  return all;
}

/* The error of whoever failed first; of the waits that this ended none speaks. */
static fm_status blame(fm_team *t, fm_error *err) {
  int who = fm_hub_culprit(t->hub);
  for (int i = 0; i < t->n && who < 0; i++)
    if (t->rank[i].status != FM_OK) who = i;
  if (who < 0) return FM_OK;
  const rank *r = &t->rank[who];
  fm_fail(err, r->status, "rank %d of %d: %.400s", who, t->n, r->err.message);
  return r->err.hint[0] ? fm_hint(err, r->status, "%s", r->err.hint) : r->status;
}

/* Waits for all the others; those that are late are lost. Who has waited for them in vain already need not wait so long again. */
static void wait_all(fm_team *t) {
  double left = fm_hub_culprit(t->hub) == -1 ? 1 : t->limit_s;
  for (int i = 1; i < t->n; i++) {
    if (fm_worker_wait(t->rank[i].worker, left)) continue;
    fm_hub_abort(t->hub, -1);
    if (fm_worker_wait(t->rank[i].worker, 0.5)) continue;
    left = 0.1;
    if (!t->lost && fm_worker_gone(t->rank[i].worker)) fm_fail(&t->why, FM_EDEVICE, "rank %d of %d is gone", i, t->n);
    else if (!t->lost) fm_fail(&t->why, FM_EDEVICE, "rank %d of %d did not come back in %.3g s", i, t->n, t->limit_s);
    t->lost = true;
  }
}

fm_status fm_team_run(fm_team *t, fm_team_fn fn, void *arg, fm_error *err) {
  if (t->lost) {
    if (err) *err = t->why;
    return fm_hint(err, FM_EDEVICE, "close the model and load it again");
  }
  t->fn = fn;
  t->arg = arg;
  for (int i = 0; i < t->n; i++) t->rank[i].status = FM_OK;
  for (int i = 1; i < t->n; i++) fm_worker_go(t->rank[i].worker);
  step(&t->rank[0]);
  wait_all(t);
  if (t->lost) return fm_team_run(t, fn, arg, err);
  fm_status status = blame(t, err);
  if (status != FM_OK || fm_hub_culprit(t->hub) != -2) fm_hub_reset(t->hub);
  return status;
}
