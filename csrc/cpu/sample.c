/*
** sample.c - draws on the pool: rows in pieces, whose best ones are compared after; then how these stand, in pieces again.
*/
#include <math.h>

#include "base/gumbel.h"
#include "cpu/cpu.h"

enum { PIECE = 4096, CHUNK = 256 };      /* ids of an item: some ten microseconds; of an exp */

typedef struct piece { fm_gumbel best; float most; int64_t n_before; double before, all; } piece;

typedef struct draws {
  const fm_cpu *cpu; const float *logits; const fm_draw_rule *rule; fm_drawn *out;
  piece *piece;                          /* (n, n_pieces) */
  int64_t n_pieces, vocab_size, n_valid;
} draws;

static int64_t end_of(const draws *d, int64_t first) { return first + PIECE < d->n_valid ? first + PIECE : d->n_valid; }

static void draw_piece(void *arg, int64_t item, int worker) {
  const draws *d = arg;
  int64_t row = item / d->n_pieces, first = item % d->n_pieces * PIECE, end = end_of(d, first);
  const float *logit = d->logits + row * d->vocab_size;
  const fm_draw_rule *r = &d->rule[row];
  fm_gumbel g = fm_gumbel_begin(r->seed, r->sample, r->index, r->temperature);
  float most = -INFINITY;
  (void)worker;
  if (r->temperature > 0) {
    for (int64_t i = first; i < end; i++) {
      fm_gumbel_try(&g, logit[i], (int32_t)i);
      if (logit[i] > most) most = logit[i];
    }
  } else {
    g.id = (int32_t)first;
    for (int64_t i = first; i < end; i++)
      if (logit[i] > g.best) g.best = logit[i], g.id = (int32_t)i;
    most = logit[g.id];
  }
  d->piece[item] = (piece){ .best = g, .most = most };
}

static void choose(const draws *d, int64_t row) {
  const piece *p = d->piece + row * d->n_pieces, *best = p;
  fm_drawn *out = &d->out[row];
  *out = (fm_drawn){ .best = p->most };
  for (int64_t k = 1; k < d->n_pieces; k++) {
    if (p[k].best.best > best->best.best) best = &p[k];
    if (p[k].most > out->best) out->best = p[k].most;
  }
  out->id = best->best.id;
  out->logit = d->logits[row * d->vocab_size + out->id];
}

static void stand_piece(void *arg, int64_t item, int worker) {
  const draws *d = arg;
  int64_t row = item / d->n_pieces, first = item % d->n_pieces * PIECE, end = end_of(d, first);
  const float *logit = d->logits + row * d->vocab_size;
  const fm_drawn *out = &d->out[row];
  piece *p = &d->piece[item];
  float weight[CHUNK], t = d->rule[row].temperature;
  (void)worker;
  for (int64_t a = first; a < end && d->rule[row].stands; a += CHUNK) {
    int64_t n = end - a < CHUNK ? end - a : CHUNK;
    for (int64_t j = 0; j < n; j++) weight[j] = (logit[a + j] - out->best) / t;
    d->cpu->simd->exp_sub(weight, weight, 0, n);
    for (int64_t j = 0; j < n; j++) {
      bool ahead = logit[a + j] > out->logit || (logit[a + j] == out->logit && a + j < out->id);
      p->n_before += ahead;
      p->before += ahead ? weight[j] : 0;
      p->all += weight[j];
    }
  }
}

static void add_up(const draws *d, int64_t row) {
  double before = 0, all = 0;
  for (const piece *p = d->piece + row * d->n_pieces, *end = p + d->n_pieces; p < end; p++) {
    d->out[row].n_before += (int32_t)p->n_before;
    before += p->before;
    all += p->all;
  }
  d->out[row].before = (float)before;
  d->out[row].all = (float)all;
}

fm_status fm_cpu_draw(fm_ctx *c, fm_drawn *out, const float *logits, const fm_draw_rule *rule, int64_t n, int64_t vocab_size,
                      int64_t n_valid) {
  const fm_cpu *cpu = (const fm_cpu *)c->dev;
  fm_mark mark = fm_arena_mark(&c->arena);
  draws d = { cpu, logits, rule, out, NULL, (n_valid + PIECE - 1) / PIECE, vocab_size, n_valid };
  int64_t size = n * d.n_pieces * (int64_t)sizeof *d.piece;
  bool stands = false;
  d.piece = fm_arena_alloc(&c->arena, size);
  if (!d.piece) return fm_no_memory(&c->err, size);
  fm_pool_for(cpu->pool, n * d.n_pieces, draw_piece, &d);
  for (int64_t i = 0; i < n; i++) {
    choose(&d, i);
    stands = stands || rule[i].stands;
  }
  if (stands) fm_pool_for(cpu->pool, n * d.n_pieces, stand_piece, &d);
  for (int64_t i = 0; i < n && stands; i++) add_up(&d, i);
  fm_arena_release(&c->arena, mark);
  return FM_OK;
}
