/*
** comm.c - collectives of ranks that are threads of one process: each shows where its data lies, and takes what it needs from the
** others. Twice a call they meet: when all have shown, and when all have taken.
*/
#include <string.h>

#include "cpu/cpu.h"
#include "op/comm.h"

typedef struct shown { const void *data; const int64_t *size; int64_t sum; } shown;

struct fm_group {
  fm_hub *hub;
  fm_door door;
  shown *at;                             /* (n) what each rank shows */
};

typedef struct member { fm_comm comm; fm_group *group; } member;

static fm_status found(fm_group **out, fm_hub *hub, int n, fm_error *err) {
  fm_group *g = fm_zalloc(sizeof *g);
  if (!g) return fm_no_memory(err, sizeof *g);
  *g = (fm_group){ .hub = hub, .door = { .n = n }, .at = fm_array(n, sizeof *g->at) };
  if (!g->at) {
    fm_free(g);
    return fm_no_memory(err, n * (int64_t)sizeof *g->at);
  }
  *out = g;
  return FM_OK;
}

static void dissolve(fm_group *g) {
  if (g) fm_free(g->at);
  fm_free(g);
}

static fm_status join(fm_comm **out, fm_group *g, fm_device *dev, int me, fm_error *err) {
  member *m = fm_zalloc(sizeof *m);
  (void)dev;
  if (!m) return fm_no_memory(err, sizeof *m);
  *m = (member){ .comm = { .me = me, .n = g->door.n, .ops = &fm_cpu_collectives }, .group = g };
  *out = &m->comm;
  return FM_OK;
}

static void leave(fm_comm *m) { fm_free(m); }

static fm_status meet(fm_ctx *c, fm_comm *m) {
  fm_group *g = ((member *)m)->group;
  return fm_hub_meet(g->hub, &g->door, &c->err);
}

static const shown *show(fm_comm *m, shown mine) {
  fm_group *g = ((member *)m)->group;
  g->at[m->me] = mine;
  return g->at;
}

static int64_t sum_of(const int64_t *size, int n) {
  int64_t sum = 0;
  for (int r = 0; r < n; r++) sum += size[r];
  return sum;
}

static fm_status differ(fm_ctx *c, fm_comm *m, const char *op, int r, int64_t theirs, int64_t mine) {
  return fm_fail(&c->err, FM_EINVAL, "%s: rank %d of the group has %lld, rank %d expects %lld", op, r, (long long)theirs, m->me,
                 (long long)mine);
}

static fm_status all_reduce(fm_ctx *c, fm_comm *m, float *x, const float *part, int64_t len) {
  const shown *at = show(m, (shown){ .data = part, .sum = len });
  TRY(meet(c, m));
  for (int r = 0; r < m->n; r++)
    if (at[r].sum != len) return differ(c, m, "all_reduce", r, at[r].sum, len);
  for (int64_t i = 0; i < len; i++) {
    float sum = ((const float *)at[0].data)[i];
    for (int r = 1; r < m->n; r++) sum += ((const float *)at[r].data)[i];
    x[i] += sum;
  }
  return meet(c, m);
}

static fm_status all_gather(fm_ctx *c, fm_comm *m, void *out, const void *mine, const int64_t *size) {
  int64_t sum = sum_of(size, m->n);
  char *to = out;
  const shown *at = show(m, (shown){ .data = mine, .size = size, .sum = sum });
  TRY(meet(c, m));
  for (int r = 0; r < m->n; to += size[r++]) {
    if (at[r].size[r] != size[r]) return differ(c, m, "all_gather", r, at[r].size[r], size[r]);
    if (size[r] && at[r].data != to) memcpy(to, at[r].data, (size_t)size[r]);
  }
  return meet(c, m);
}

static fm_status all_to_all(fm_ctx *c, fm_comm *m, void *out, const int64_t *out_size, const void *in, const int64_t *in_size) {
  char *to = out;
  const shown *at = show(m, (shown){ .data = in, .size = in_size });
  TRY(meet(c, m));
  for (int r = 0; r < m->n; to += out_size[r++]) {
    int64_t size = at[r].size[m->me];
    if (size != out_size[r]) return differ(c, m, "all_to_all", r, size, out_size[r]);
    if (size) memcpy(to, (const char *)at[r].data + sum_of(at[r].size, m->me), (size_t)size);
  }
  return meet(c, m);
}

static fm_status broadcast(fm_ctx *c, fm_comm *m, void *data, int64_t size, int root) {
  const shown *at = show(m, (shown){ .data = data, .sum = size });
  TRY(meet(c, m));
  if (at[root].sum != size) return differ(c, m, "broadcast", root, at[root].sum, size);
  if (m->me != root) memcpy(data, at[root].data, (size_t)size);
  return meet(c, m);
}

static fm_status all_columns(fm_ctx *c, fm_comm *m, float *out, const float *mine, int64_t n, const int64_t *width) {
  int64_t all = sum_of(width, m->n), first = 0;
  const shown *at = show(m, (shown){ .data = mine, .sum = n * width[m->me] });
  TRY(meet(c, m));
  for (int r = 0; r < m->n; first += width[r++]) {
    if (at[r].sum != n * width[r]) return differ(c, m, "all_columns", r, at[r].sum, n * width[r]);
    for (int64_t i = 0; i < n && out && width[r]; i++)
      memcpy(out + i * all + first, (const float *)at[r].data + i * width[r], (size_t)width[r] * sizeof *out);
  }
  return meet(c, m);
}

const fm_collectives fm_cpu_collectives = {
  .found = found, .dissolve = dissolve, .join = join, .join_far = fm_cpu_join_far, .leave = leave, .barrier = meet, .all_reduce = all_reduce,
  .all_gather = all_gather, .all_to_all = all_to_all, .broadcast = broadcast, .all_columns = all_columns,
};
