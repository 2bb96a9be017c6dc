/*
** sample.c - draws on the pool: rows in pieces, whose best ones are compared after.
*/
#include "base/gumbel.h"
#include "cpu/cpu.h"

enum { PIECE = 4096 };                   /* ids of an item: some ten microseconds */

typedef struct draws {
  const float *logits; const fm_draw_rule *rule; fm_gumbel *best;
  int64_t pieces, vocab_size, n_valid;
} draws;

static void draw_piece(void *arg, int64_t item, int worker) {
  const draws *d = arg;
  int64_t row = item / d->pieces, first = item % d->pieces * PIECE, end = first + PIECE < d->n_valid ? first + PIECE : d->n_valid;
  const float *logit = d->logits + row * d->vocab_size;
  const fm_draw_rule *r = &d->rule[row];
  fm_gumbel g = fm_gumbel_begin(r->seed, r->sample, r->index, r->temperature);
  (void)worker;
  if (r->temperature > 0) {
    for (int64_t i = first; i < end; i++) fm_gumbel_try(&g, logit[i], (int32_t)i);
  } else {
    g.id = (int32_t)first;
    for (int64_t i = first; i < end; i++)
      if (logit[i] > g.best) g.best = logit[i], g.id = (int32_t)i;
  }
  d->best[item] = g;
}

fm_status fm_cpu_draw(fm_ctx *c, int32_t *id, const float *logits, const fm_draw_rule *rule, int64_t n, int64_t vocab_size,
                      int64_t n_valid) {
  const fm_cpu *cpu = (const fm_cpu *)c->dev;
  fm_mark mark = fm_arena_mark(&c->arena);
  draws d = { logits, rule, NULL, (n_valid + PIECE - 1) / PIECE, vocab_size, n_valid };
  int64_t size = n * d.pieces * (int64_t)sizeof *d.best;
  d.best = fm_arena_alloc(&c->arena, size);
  if (!d.best) return fm_no_memory(&c->err, size);
  fm_pool_for(cpu->pool, n * d.pieces, draw_piece, &d);
  for (int64_t i = 0; i < n; i++) {
    const fm_gumbel *best = d.best + i * d.pieces, *row = best;
    for (int64_t k = 1; k < d.pieces; k++)
      if (row[k].best > best->best) best = &row[k];
    id[i] = best->id;
  }
  fm_arena_release(&c->arena, mark);
  return FM_OK;
}
