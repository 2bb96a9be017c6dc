/*
** comm.c - GPUs of one host that work together: every collective is checked against what it should bring, then timed; a rank that does not
** come ends the others' waits, and all go on together afterwards.
**
** Bus bandwidth as NCCL's own tests count it: all_reduce 2 (n - 1) / n of the bytes, all_gather (n - 1) / n; all_to_all: bytes that cross
** the link in one direction. Of sums whose parts are rounded to bf16 half of what is counted travels. Short calls are timed inside a noted pass of a hundred.
** usage: comm [ranks]
*/
#include <stdio.h>
#include <unistd.h>

#include "../../spec/c/world.h"

enum { MOST = WORLD, ROUNDS = 20, NOTED = 100 };
static const int64_t LARGE = (int64_t)1 << 30;             /* bytes of each device's in and out */

static world w;
static int absent;

static double now_us(void) { return world_now_s() * 1e6; }

static void must(fm_status status, const fm_error *err) {
  if (status == FM_OK) return;
  printf("comm: %s%s%s\n", err->message, err->hint[0] ? "; " : "", err->hint);
  fflush(stdout);
  _exit(1);                              // other ranks may still be at work
}

#define CALL(call) do { if ((call) != FM_OK) { *err = c->err; return err->code; } } while (0)

/* ---- what is said arrives ---- */

static fm_status talk(void *arg, int me, fm_error *err) {
  enum { FEW = 65536 };                  // floats that are summed as they are
  static const int64_t length[] = { 4, 1003, 2048, 65536, 65544, 65544, 300000 };
  fm_ctx *c = &w.c[me];
  (void)arg;
  c->ops->enter(c->dev);
  w.good[me] = true;
  for (int round = 0; round < ROUNDS; round++) {
    bool rounded = round % 2;
    c->arithmetic = rounded ? FM_BF16 : FM_F32;
    CALL(world_sums(&w, me, round, length[round % 7], rounded && length[round % 7] > FEW));
    CALL(world_swaps(&w, me, round, 1000));
    CALL(world_gathers(&w, me, round, round % 3 == 0));
    CALL(world_tells(&w, me, round));
    CALL(world_columns(&w, me, round, round % 2));
    CALL(fm_op_barrier(c, w.comm[me]));
  }
  return FM_OK;
}

/* ---- a rank that does not come ---- */

static fm_status absence(void *arg, int me, fm_error *err) {
  fm_ctx *c = &w.c[me];
  char last;
  (void)arg;
  c->ops->enter(c->dev);
  if (me == absent) return nanosleep(&(struct timespec){ .tv_sec = 2, .tv_nsec = 300000000 }, NULL), FM_OK;
  CALL(fm_op_all_reduce(c, w.comm[me], (float *)(void *)w.out[me], (const float *)(const void *)w.in[me], 4096));
  CALL(c->ops->download(c, &last, w.out[me], 1));
  return FM_OK;
}

/* It comes back before the team counts it as lost: that is after the limit of 2 s and a half more. */
static void lose_one(void) {
  fm_error err = { 0 };
  for (absent = 0; absent < 2; absent++) {
    double begun = now_us();
    fm_status status = fm_team_run(w.team, absence, NULL, &err);
    printf("rank %d stays away: after %.1f s \"%s\"\n", absent, (now_us() - begun) * 1e-6, status == FM_OK ? "nobody noticed" : err.message);
    must(fm_team_run(w.team, talk, NULL, &err), &err);
    if (!world_good(&w)) printf("not ok - after it the ranks no longer understand each other\n");
  }
}

/* ---- times ---- */

typedef enum kind { REDUCE, ROUNDED, GATHER, SWAP } kind;            /* ROUNDED: as where the arithmetic is not f32 */

static fm_status one(fm_ctx *c, int me, kind k, int64_t bytes) {
  int64_t size[MOST];
  for (int r = 0; r < w.n; r++) size[r] = bytes / w.n;
  c->arithmetic = k == ROUNDED ? FM_BF16 : FM_F32;
  if (k <= ROUNDED)
    return fm_op_all_reduce(c, w.comm[me], (float *)(void *)w.out[me], (const float *)(const void *)w.in[me], bytes / 4);
  return k == GATHER ? fm_op_all_gather(c, w.comm[me], w.out[me], w.in[me], size)
                     : fm_op_all_to_all(c, w.comm[me], w.out[me], size, w.in[me], size);
}

static struct timing { kind k; int64_t bytes; double us[MOST]; } timing;

static fm_status time_it(void *arg, int me, fm_error *err) {
  fm_ctx *c = &w.c[me];
  bool noted = timing.bytes < 4 << 20, known;
  int calls = noted ? NOTED : 5;
  double best = 1e30;
  char last;
  (void)arg;
  c->ops->enter(c->dev);
  CALL(one(c, me, timing.k, timing.bytes));
  for (int round = 0; round < 8; round++) {
    int64_t key[8] = { -1, timing.k, timing.bytes };
    CALL(fm_op_barrier(c, w.comm[me]));
    double begun = now_us();
    if (noted) CALL(c->ops->record(c, key, &known));
    for (int i = 0; i < calls && !(noted && known); i++) CALL(one(c, me, timing.k, timing.bytes));
    if (noted) CALL(c->ops->play(c, true));
    CALL(c->ops->download(c, &last, w.out[me], 1));
    double us = (now_us() - begun) / calls;
    if (round && us < best) best = us;   // at first they are noted
  }
  timing.us[me] = best;
  return FM_OK;
}

static void show(kind k, const char *name, int64_t bytes) {
  fm_error err;
  timing = (struct timing){ .k = k, .bytes = bytes };
  must(fm_team_run(w.team, time_it, NULL, &err), &err);
  double us = 0, share = (double)(w.n - 1) / w.n * (k <= ROUNDED ? 2 : 1);
  for (int r = 0; r < w.n; r++) us = timing.us[r] > us ? timing.us[r] : us;
  printf("  %-44s %11lld bytes %10.1f us %8.1f GB/s\n", name, (long long)bytes, us, share * (double)bytes / us * 1e-3);
}

static void times(void) {
  for (int64_t bytes = 4096; bytes <= 256 << 10; bytes *= 2) show(REDUCE, "all_reduce and residual", bytes);
  for (int64_t bytes = 4100; bytes <= 300 << 10; bytes *= 4) show(REDUCE, "all_reduce and residual, by NCCL", bytes + 8 - bytes % 8 + 4);
  for (int64_t bytes = 16 << 20; bytes <= LARGE / 2; bytes *= 32) {
    show(REDUCE, "all_reduce and residual", bytes);
    show(ROUNDED, "all_reduce and residual, parts in bf16", bytes);
  }
  show(GATHER, "all_gather", LARGE / 2);
  for (int64_t tokens = 128; tokens <= 4096; tokens *= 32) {
    char name[64];
    snprintf(name, sizeof name, "all_to_all, %lld tokens x 7168 x 8, FP8", (long long)tokens);
    show(SWAP, name, tokens * 7168 * 8);
  }
}

/* ---- the run ---- */

static fm_status open_rank(void *arg, int me, fm_error *err) {
  fm_ctx *c = &w.c[me];
  char device[16];
  void *p;
  (void)arg;
  snprintf(device, sizeof device, "cuda:%d", me);
  TRY(fm_ctx_open(c, device, 0, err));
  TRY(fm_ctx_reserve(c, LARGE, err));
  TRY(c->ops->comm->join(&w.comm[me], w.group, c->dev, me, err));
  TRY(c->ops->alloc(c->dev, &p, LARGE, err));
  w.in[me] = p;
  TRY(c->ops->alloc(c->dev, &p, LARGE, err));
  w.out[me] = p;
  c->ops->clear(c->dev, w.in[me], LARGE);
  c->ops->clear(c->dev, w.out[me], LARGE);
  return FM_OK;
}

int main(int argc, char **argv) {
  fm_error err = { 0 };
  fm_ctx first;
  setvbuf(stdout, NULL, _IOLBF, 0);
  w.n = argc > 1 ? atoi(argv[1]) : 2;
  if (w.n < 2 || w.n > MOST) return printf("usage: comm [ranks, 2 to %d]\n", MOST), 2;
  must(fm_ctx_open(&first, "cuda:0", 0, &err), &err);
  must(fm_team_new(&w.team, w.n, 2, &err), &err);
  must(first.ops->comm->found(&w.group, fm_team_hub(w.team), w.n, &err), &err);
  must(fm_team_run(w.team, open_rank, NULL, &err), &err);
  double begun = now_us();
  must(fm_team_run(w.team, talk, NULL, &err), &err);
  bool good = world_good(&w);
  printf("%d ranks, %d rounds of every collective: %s, in %.1f s\n", w.n, ROUNDS, good ? "all arrives" : "NOT WHAT WAS SAID",
         (now_us() - begun) * 1e-6);
  times();
  lose_one();
  return !good;
}
