/*
** comm_test.c - ranks as threads: every collective over 1 to 8 ranks with uneven parts, an abort in the middle, a rank that never
** comes, a team that loses one.
*/
#include <stdio.h>

#include "world.h"

static int failures;

static void check(bool good, const char *sentence, int n) {
  if (n) printf("%s - %s, %d ranks\n", good ? "ok" : "not ok", sentence, n);
  else printf("%s - %s\n", good ? "ok" : "not ok", sentence);
  failures += !good;
}

enum { MOST = WORLD, ROUNDS = 50 };

/* Static: a rank that is lost may go on to look at it. */
static world w;
static int victim, kind;

extern world left_to_it;          /* what a lost rank may still use; not static, or nobody would be seen to hold it */
world left_to_it;

static void leave(void) {
  for (int r = 0; r < w.n; r++) {
    if (w.comm[r]) w.c[r].ops->comm->leave(w.comm[r]);
    fm_ctx_close(&w.c[r]);
    free(w.in[r]), free(w.out[r]);
  }
  fm_cpu_backend()->comm->dissolve(w.group);
}

static void enter(int n, double limit_s) {
  fm_error err;
  memset(&w, 0, sizeof w);
  w.n = n;
  bool good = fm_team_new(&w.team, n, limit_s, &err) == FM_OK;
  good = good && fm_cpu_backend()->comm->found(&w.group, fm_team_hub(w.team), n, &err) == FM_OK;
  for (int r = 0; r < n && good; r++) {
    good = fm_ctx_open(&w.c[r], "cpu", 1, &err) == FM_OK;
    good = good && w.c[r].ops->comm->join(&w.comm[r], w.group, w.c[r].dev, r, &err) == FM_OK;
    w.in[r] = calloc(1, WORLD_ROOM), w.out[r] = calloc(1, WORLD_ROOM);
  }
  if (good) return;
  printf("not ok - no ranks: %s\n", err.message);
  exit(1);
}

/* ---- what is said arrives ---- */

static fm_status one_round(int me, int round) {
  TRY(world_sums(&w, me, round, 1003, false));
  TRY(world_gathers(&w, me, round, false));
  TRY(world_gathers(&w, me, round, true));
  TRY(world_swaps(&w, me, round, 1));
  TRY(world_tells(&w, me, round));
  TRY(world_columns(&w, me, round, round % 2));
  return fm_op_barrier(&w.c[me], w.comm[me]);
}

static fm_status talk(void *arg, int me, fm_error *err) {
  fm_status status = FM_OK;
  (void)arg;
  w.good[me] = true;
  for (int round = 0; round < ROUNDS && status == FM_OK; round++) status = one_round(me, round);
  w.good[me] = w.good[me] && status == FM_OK;
  return w.good[me] ? FM_OK : fm_fail(err, FM_EFORMAT, "not what was said: %.200s", w.c[me].err.message);
}

static void conversations(void) {
  for (int n = 1; n <= MOST; n++) {
    fm_error err;
    enter(n, 20);
    bool good = fm_team_run(w.team, talk, NULL, &err) == FM_OK && fm_team_run(w.team, talk, NULL, &err) == FM_OK;
    check(good && world_good(&w), "sums, gathers, exchanges, broadcasts and columns of uneven parts arrive", n);
    check(fm_team_free(w.team), "a team whose work is done ends", n);
    leave();
  }
}

/* ---- what goes wrong ---- */

enum { FAILS, DIFFERS, ABSENT };

static fm_status trouble(void *arg, int me, fm_error *err) {
  (void)arg;
  fm_ctx *c = &w.c[me];
  int32_t x[4] = { 0 };
  for (int round = 0; round < 8; round++) {
    bool mine = me == victim && round == 3;
    if (mine && kind == FAILS) return fm_fail(err, FM_EMEMORY, "this rank has no memory left");
    if (mine && kind == ABSENT) nanosleep(&(struct timespec){ .tv_sec = 1, .tv_nsec = 500000000 }, NULL);
    if (fm_op_broadcast(c, w.comm[me], x, mine && kind == DIFFERS ? 8 : 16, round % w.n) == FM_OK) continue;
    *err = c->err;
    return err->code;
  }
  return FM_OK;
}

static void one_fails(int n) {
  fm_error err = { 0 };
  for (victim = 0; victim < n; victim++) {
    double begin = world_now_s();
    kind = FAILS;
    fm_status status = fm_team_run(w.team, trouble, NULL, &err);
    char who[32];
    snprintf(who, sizeof who, "rank %d of %d: this rank", victim, n);
    if (status == FM_EMEMORY && strncmp(err.message, who, strlen(who)) == 0 && world_now_s() - begin < 1) continue;
    check(false, "a rank's failure ends the others' waits", n);
    return;
  }
  check(true, "a rank's failure ends the others' waits, and is what is told", n);
  kind = FAILS, victim = -1;
  check(fm_team_run(w.team, trouble, NULL, &err) == FM_OK, "and the next step goes well", n);
}

static void aborts(void) {
  for (int n = 2; n <= MOST; n += 3) {
    fm_error err = { 0 };
    enter(n, 20);
    one_fails(n);
    kind = DIFFERS, victim = n - 1;
    check(fm_team_run(w.team, trouble, NULL, &err) == FM_EINVAL && strstr(err.message, "expects"), "sizes that differ are told", n);
    fm_team_free(w.team);
    leave();
    enter(n, 0.4);
    kind = ABSENT, victim = 1;
    double begin = world_now_s();
    fm_status status = fm_team_run(w.team, trouble, NULL, &err);
    check(status == FM_EDEVICE && world_now_s() - begin < 3, "nobody waits longer than the limit for a rank that does not come", n);
    nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
    fm_team_free(w.team);
    leave();
  }
}

/* What a lost rank holds is left to it. */
static void losses(void) {
  static const char *const faults[] = { "die:1:2", "hang:2:2" };
  for (int i = 0; i < 2; i++) {
    fm_error err = { 0 };
    setenv("FATHOM_FAULT", faults[i], 1);
    enter(3, 0.5);
    unsetenv("FATHOM_FAULT");
    bool good = fm_team_run(w.team, talk, NULL, &err) == FM_OK;
    double begin = world_now_s();
    good = good && fm_team_run(w.team, talk, NULL, &err) == FM_EDEVICE && world_now_s() - begin < 4;
    check(good && strstr(err.message, i ? "did not come back" : "is gone"), "a rank that is gone ends the step", 3);
    begin = world_now_s();
    check(fm_team_run(w.team, talk, NULL, &err) == FM_EDEVICE && world_now_s() - begin < 0.1 && err.hint[0], "and every later one at once", 3);
    begin = world_now_s();
    bool all = fm_team_free(w.team);
    check(all == (i == 0) && world_now_s() - begin < 3, "closing does not wait for it", 3);
    if (all) leave();
    else left_to_it = w;
  }
  setenv("FATHOM_FAULT", "fail:2:2", 1);
  enter(3, 5);
  unsetenv("FATHOM_FAULT");
  fm_error err = { 0 };
  bool good = fm_team_run(w.team, talk, NULL, &err) == FM_OK && fm_team_run(w.team, talk, NULL, &err) == FM_EDEVICE;
  check(good && strstr(err.message, "planted") && fm_team_run(w.team, talk, NULL, &err) == FM_OK, "a planted failure passes", 3);
  fm_team_free(w.team);
  leave();
}

int main(void) {
  conversations();
  aborts();
  losses();
  return failures != 0;
}
