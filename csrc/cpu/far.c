/*
** far.c - collectives of ranks that are processes: everything is an exchange over the wire; sums are added in the ranks' order here too, so
** that they have the bits of threads'.
*/
#include <string.h>

#include "cpu/cpu.h"
#include "op/comm.h"

typedef struct member { fm_comm comm; fm_wire *wire; int rank[]; } member;

static const fm_collectives far_collectives;

fm_status fm_cpu_join_far(fm_comm **out, fm_wire *w, const int *rank, int n, int me, fm_device *dev, fm_error *err) {
  int64_t size = (int64_t)sizeof(member) + n * (int64_t)sizeof *rank;
  member *m = fm_zalloc(size);
  (void)dev;
  if (!m) return fm_no_memory(err, size);
  m->comm = (fm_comm){ .me = me, .n = n, .ops = &far_collectives };
  m->wire = w;
  memcpy(m->rank, rank, (size_t)n * sizeof *rank);
  *out = &m->comm;
  return FM_OK;
}

static void leave(fm_comm *m) { fm_free(m); }

/* Parts one behind the other, in and out. same: everybody is told the one part that is there. */
static fm_status swap(fm_ctx *c, fm_comm *comm, char *out, const int64_t *out_size, const char *in, const int64_t *in_size, bool same) {
  member *m = (member *)comm;
  void *to[FM_WIRE_MOST];
  const void *from[FM_WIRE_MOST];
  for (int r = 0; r < comm->n; r++) {
    to[r] = out, from[r] = in;
    out += out_size[r];
    if (!same) in += in_size[r];
  }
  return fm_wire_swap(m->wire, m->rank, comm->n, to, out_size, from, in_size, &c->err);
}

static void fill(int64_t *size, int n, int64_t v) {
  for (int r = 0; r < n; r++) size[r] = v;
}

static fm_status barrier(fm_ctx *c, fm_comm *m) {
  int64_t none[FM_WIRE_MOST];
  fill(none, m->n, 0);
  return swap(c, m, NULL, none, NULL, none, true);
}

static fm_status all_gather(fm_ctx *c, fm_comm *m, void *out, const void *mine, const int64_t *size) {
  int64_t own[FM_WIRE_MOST];
  fill(own, m->n, size[m->me]);
  return swap(c, m, out, size, mine, own, true);
}

static fm_status all_to_all(fm_ctx *c, fm_comm *m, void *out, const int64_t *out_size, const void *in, const int64_t *in_size) {
  return swap(c, m, out, out_size, in, in_size, false);
}

static fm_status all_reduce(fm_ctx *c, fm_comm *m, float *x, const float *part, int64_t len) {
  fm_mark mark = fm_arena_mark(&c->arena);
  int64_t size[FM_WIRE_MOST];
  float *all = fm_arena_alloc(&c->arena, m->n * len * (int64_t)sizeof *all);
  fm_status status = all ? FM_OK : fm_no_memory(&c->err, m->n * len * (int64_t)sizeof *all);
  fill(size, m->n, len * (int64_t)sizeof *all);
  if (status == FM_OK) status = swap(c, m, (char *)all, size, (const char *)part, size, true);
  for (int64_t i = 0; i < len && status == FM_OK; i++) {
    float sum = all[i];
    for (int r = 1; r < m->n; r++) sum += all[r * len + i];
    x[i] += sum;
  }
  fm_arena_release(&c->arena, mark);
  return status;
}

static fm_status broadcast(fm_ctx *c, fm_comm *m, void *data, int64_t size, int root) {
  int64_t in[FM_WIRE_MOST], out[FM_WIRE_MOST];
  fill(in, m->n, m->me == root ? size : 0);
  fill(out, m->n, 0);
  in[m->me] = 0;
  if (m->me != root) out[root] = size;
  return swap(c, m, data, out, data, in, true);
}

static fm_status all_columns(fm_ctx *c, fm_comm *m, float *out, const float *mine, int64_t n, const int64_t *width) {
  fm_mark mark = fm_arena_mark(&c->arena);
  int64_t size[FM_WIRE_MOST], all = 0, first = 0;
  for (int r = 0; r < m->n; r++) size[r] = n * width[r] * (int64_t)sizeof *out, all += width[r];
  float *parts = fm_arena_alloc(&c->arena, n * all * (int64_t)sizeof *parts);
  fm_status status = parts ? all_gather(c, m, parts, mine, size) : fm_no_memory(&c->err, n * all * (int64_t)sizeof *parts);
  for (int r = 0; r < m->n && out && status == FM_OK; first += width[r++])
    for (int64_t i = 0; i < n && width[r]; i++)
      memcpy(out + i * all + first, parts + n * first + i * width[r], (size_t)width[r] * sizeof *out);
  fm_arena_release(&c->arena, mark);
  return status;
}

static const fm_collectives far_collectives = {
  .leave = leave, .barrier = barrier, .all_reduce = all_reduce, .all_gather = all_gather, .all_to_all = all_to_all,
  .broadcast = broadcast, .all_columns = all_columns,
};
