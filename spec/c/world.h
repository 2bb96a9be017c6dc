/*
** world.h - ranks that talk to each other, and whether what is said arrives: for the test of ranks on the CPU and the bench of those on GPUs.
** Owner: whoever opens devices and groups into it.
*/
#ifndef FM_SPEC_WORLD_H
#define FM_SPEC_WORLD_H

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "op/comm.h"
#include "op/op.h"
#include "op/team.h"

enum { WORLD = 8, WORLD_ROOM = 2 << 20 };

typedef struct world {
  int n;
  fm_team *team;
  fm_group *group;
  fm_ctx c[WORLD];
  fm_comm *comm[WORLD];
  char *in[WORLD], *out[WORLD];          /* WORLD_ROOM bytes or more of each device */
  bool good[WORLD];
} world;

static inline double world_now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline bool world_good(const world *w) {
  bool good = true;
  for (int r = 0; r < w->n; r++) good = good && w->good[r];
  return good;
}

static inline fm_status world_put(fm_ctx *c, void *to, const void *from, int64_t size) {
  if (c->ops->upload) return c->ops->upload(c, to, from, size);
  return memcpy(to, from, (size_t)size), FM_OK;
}

static inline fm_status world_get(fm_ctx *c, void *to, const void *from, int64_t size) {
  if (c->ops->download) return c->ops->download(c, to, from, size);
  return memcpy(to, from, (size_t)size), FM_OK;
}

static inline float world_part(int r, int64_t i, int round, bool rounded) {
  float v = (float)(r + 1) / (float)(i % 1000 + round + 3);
  return rounded ? fm_bf16_to_f32(fm_f32_to_bf16(v)) : v;
}

/* x becomes x and the sum of all parts. rounded: the device rounds parts to bf16 first. */
static inline fm_status world_sums(world *w, int me, int round, int64_t len, bool rounded) {
  fm_ctx *c = &w->c[me];
  float *x = malloc((size_t)len * sizeof *x), *part = malloc((size_t)len * sizeof *part);
  for (int64_t i = 0; i < len; i++) x[i] = (float)(i % 77), part[i] = world_part(me, i, round, false);
  fm_status status = world_put(c, w->out[me], x, len * 4);
  if (status == FM_OK) status = world_put(c, w->in[me], part, len * 4);
  if (status == FM_OK) status = fm_op_all_reduce(c, w->comm[me], (float *)(void *)w->out[me], (const float *)(const void *)w->in[me], len);
  if (status == FM_OK) status = world_get(c, x, w->out[me], len * 4);
  for (int64_t i = 0; i < len && status == FM_OK; i++) {
    float sum = world_part(0, i, round, rounded);
    for (int r = 1; r < w->n; r++) sum += world_part(r, i, round, rounded);
    float want = (float)(i % 77) + sum, off = x[i] - want;
    bool own_order = c->ops->upload && w->n > 2;           // NCCL's
    w->good[me] = w->good[me] && (own_order ? off < 1e-2f && off > -1e-2f : off == 0);
  }
  free(x), free(part);
  return status;
}

static inline fm_status world_gathers(world *w, int me, int round, bool in_place) {
  unsigned char mine[WORLD * 40], out[WORLD * WORLD * 40];
  int64_t size[WORLD], at = 0, place = 0;
  for (int r = 0; r < w->n; r++) size[r] = round % 4 == 3 ? 160 : (r * 7 + round) % 3 ? (r + 1) * 4 + round % 5 : 0;
  for (int r = 0; r < me; r++) place += size[r];
  char *from = in_place ? w->out[me] + place : w->in[me];
  memset(mine, me + round, sizeof mine);
  TRY(world_put(&w->c[me], from, mine, size[me]));
  TRY(fm_op_all_gather(&w->c[me], w->comm[me], w->out[me], from, size));
  TRY(world_get(&w->c[me], out, w->out[me], WORLD * 160));
  for (int r = 0; r < w->n; r++)
    for (int64_t i = 0; i < size[r]; i++) w->good[me] = w->good[me] && out[at++] == (unsigned char)(r + round);
  return FM_OK;
}

/* Rank a has (a + 2 b + round) % 4 * unit bytes for rank b. */
static inline fm_status world_swaps(world *w, int me, int round, int64_t unit) {
  int64_t in_size[WORLD], out_size[WORLD], at = 0;
  unsigned char *data = malloc((size_t)(WORLD * 4 * unit));
  for (int r = 0; r < w->n; r++) {
    in_size[r] = (me + 2 * r + round) % 4 * unit;
    out_size[r] = (r + 2 * me + round) % 4 * unit;
    memset(data + at, me * 16 + r, (size_t)in_size[r]);
    at += in_size[r];
  }
  fm_status status = world_put(&w->c[me], w->in[me], data, at);
  if (status == FM_OK) status = fm_op_all_to_all(&w->c[me], w->comm[me], w->out[me], out_size, w->in[me], in_size);
  if (status == FM_OK) status = world_get(&w->c[me], data, w->out[me], WORLD * 4 * unit);
  at = 0;
  for (int r = 0; r < w->n && status == FM_OK; r++)
    for (int64_t i = 0; i < out_size[r]; i++) w->good[me] = w->good[me] && data[at++] == r * 16 + me;
  free(data);
  return status;
}

static inline fm_status world_tells(world *w, int me, int round) {
  int32_t data[5];
  int root = round % w->n;
  for (int i = 0; i < 5; i++) data[i] = me == root ? root * 100 + i : -1;
  TRY(world_put(&w->c[me], w->in[me], data, sizeof data));
  TRY(fm_op_broadcast(&w->c[me], w->comm[me], w->in[me], sizeof data, root));
  TRY(world_get(&w->c[me], data, w->in[me], sizeof data));
  for (int i = 0; i < 5; i++) w->good[me] = w->good[me] && data[i] == root * 100 + i;
  return FM_OK;
}

/* Columns of every rank side by side; every other rank has no use for them now and then. even: widths of whole vectors. */
static inline fm_status world_columns(world *w, int me, int round, bool even) {
  float mine[3 * 64], all[3 * WORLD * 64];
  int64_t width[WORLD], n = 1 + round % 3, at = 0;
  bool wanted = (me + round) % 3 != 0;
  for (int r = 0; r < w->n; r++) width[r] = even ? 4 * (1 + (r + round) % 5) : (r * 5 + round) % 7;
  for (int64_t i = 0; i < n * width[me]; i++) mine[i] = (float)(me * 1000 + round) + (float)i;
  TRY(world_put(&w->c[me], w->in[me], mine, (int64_t)sizeof mine));
  float *out = (float *)(void *)w->out[me];
  TRY(fm_op_all_columns(&w->c[me], w->comm[me], wanted ? out : NULL, (const float *)(const void *)w->in[me], n, width));
  TRY(world_get(&w->c[me], all, out, (int64_t)sizeof all));
  for (int64_t i = 0; i < n && wanted; i++)
    for (int r = 0; r < w->n; r++)
      for (int64_t j = 0; j < width[r]; j++)
        w->good[me] = w->good[me] && all[at++] == (float)(r * 1000 + round) + (float)(i * width[r] + j);
  return FM_OK;
}

#endif
