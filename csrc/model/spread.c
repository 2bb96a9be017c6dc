/*
** spread.c - routed experts that are spread over ranks: rows go to the ranks that have their experts, once each, and answers come back,
** one for each choice. They are added by the row's own rank, choice by choice, so that the sum has the bits of one device's.
**
** Ranks with the same rows (tp) share the work: each sends its part of them, and shows the others what became of it.
** Source: DeepSeek-V3 report, section 3.2.2 (dispatch and combine).
*/
#include <string.h>

#include "model/model.h"

/* Rows that this rank is at home for, and what it asks of whom. Lists are by rank asked, then by row, then by choice. */
typedef struct dispatch {
  fm_pass *p;
  const fm_experts *e;
  int ranks;
  int64_t first, n;                      /* rows [first, first + n) of the pass */
  int64_t rows_to[FM_MOST_RANKS], rows_from[FM_MOST_RANKS];       /* how many, by rank */
  int64_t asks_to[FM_MOST_RANKS], asks_from[FM_MOST_RANKS];
  int64_t n_rows, n_asks;                /* that come here */
  int32_t *row;                          /* which rows are sent */
  int32_t *ask;                          /* (2 each) its place among the rows that this rank sends there, expert of those there */
  int32_t *slot;                         /* (n, top_k) where the answer to a choice comes back */
} dispatch;

static int64_t sum(const int64_t *n, int ranks) {
  int64_t s = 0;
  for (int r = 0; r < ranks; r++) s += n[r];
  return s;
}

/* Who has an expert: those of rank r begin at fm_part(n_experts, ranks, r). */
static int owner(const dispatch *s, int32_t expert) { return (int)(((int64_t)(expert + 1) * s->ranks - 1) / s->e->n_experts); }

static void count(dispatch *s, const int32_t *id) {
  int64_t k = s->e->top_k;
  for (int64_t i = 0; i < s->n; i++) {
    int before = -1;                     // choices are in the order of experts, so of ranks
    for (int64_t j = 0; j < k; j++) {
      int r = owner(s, id[(s->first + i) * k + j]);
      s->asks_to[r]++;
      s->rows_to[r] += r != before;
      before = r;
    }
  }
}

static void list(dispatch *s, const int32_t *id) {
  int64_t k = s->e->top_k, row_at[FM_MOST_RANKS], ask_at[FM_MOST_RANKS], row_begin[FM_MOST_RANKS];
  for (int r = 0; r < s->ranks; r++) {
    row_at[r] = row_begin[r] = sum(s->rows_to, r);
    ask_at[r] = sum(s->asks_to, r);
  }
  for (int64_t i = 0; i < s->n; i++) {
    int before = -1;
    for (int64_t j = 0; j < k; j++) {
      int32_t expert = id[(s->first + i) * k + j];
      int r = owner(s, expert);
      if (r != before) s->row[row_at[r]++] = (int32_t)(s->first + i);
      before = r;
      s->ask[2 * ask_at[r]] = (int32_t)(row_at[r] - 1 - row_begin[r]);
      s->ask[2 * ask_at[r] + 1] = expert - (int32_t)fm_part(s->e->n_experts, s->ranks, r);
      s->slot[i * k + j] = (int32_t)ask_at[r]++;
    }
  }
}

/* Parts of so many things of `size` bytes, to and from everybody. */
static fm_status swap(const dispatch *s, void *out, const int64_t *from, const void *in, const int64_t *to, int64_t size) {
  int64_t out_size[FM_MOST_RANKS], in_size[FM_MOST_RANKS];
  for (int r = 0; r < s->ranks; r++) out_size[r] = from[r] * size, in_size[r] = to[r] * size;
  return fm_op_all_to_all(s->p->net->c, s->p->net->ep, out, out_size, in, in_size);
}

static fm_status plan(dispatch *s, const int32_t *id) {
  fm_ctx *c = s->p->net->c;
  int64_t mine[2 * FM_MOST_RANKS], theirs[2 * FM_MOST_RANKS], one[FM_MOST_RANKS];
  count(s, id);
  TRY(fm_scratch_int(c, &s->row, sum(s->rows_to, s->ranks)));
  TRY(fm_scratch_int(c, &s->ask, 2 * sum(s->asks_to, s->ranks)));
  TRY(fm_scratch_int(c, &s->slot, s->n * s->e->top_k));
  list(s, id);
  for (int r = 0; r < s->ranks; r++) mine[2 * r] = s->rows_to[r], mine[2 * r + 1] = s->asks_to[r], one[r] = 1;
  TRY(swap(s, theirs, one, mine, one, 2 * sizeof *mine));
  for (int r = 0; r < s->ranks; r++) s->rows_from[r] = theirs[2 * r], s->asks_from[r] = theirs[2 * r + 1];
  s->n_rows = sum(s->rows_from, s->ranks);
  s->n_asks = sum(s->asks_from, s->ranks);
  return FM_OK;
}

/* Rows by number, side by side. */
static fm_status pick(fm_ctx *c, float **out, const float *x, int64_t n_x, const int32_t *row, int64_t n, int64_t d) {
  fm_mat all = { .data = x, .dtype = FM_F32, .rows = n_x, .cols = d };
  TRY(fm_scratch(c, out, n, d));
  return n ? fm_op_embed(c, *out, &all, row, n) : FM_OK;
}

static fm_experts my_experts(const dispatch *s, const fm_layer *l) {
  int me = s->p->net->shard->e;
  int64_t first = fm_part(s->e->n_experts, s->ranks, me);
  fm_experts e = *s->e;
  e.n_experts = fm_part(s->e->n_experts, s->ranks, me + 1) - first;
  e.gate = l->gate + first, e.up = l->up + first, e.down = l->down + first;
  e.moe_intermediate_size = e.gate->rows;
  e.shared_gate = e.shared_up = e.shared_down = NULL;
  return e;
}

/* The answers y (n_asks, hidden_size) of this rank's experts to what it was asked about the rows x. */
static fm_status answer(dispatch *s, const fm_layer *l, float **y, const float *x, const int32_t *ask) {
  fm_ctx *c = s->p->net->c;
  int64_t d = s->e->hidden_size, at = 0, begin = 0;
  float *rows, *ones;
  int32_t *row, *expert;
  TRY(fm_scratch_int(c, &row, s->n_asks));
  TRY(fm_scratch_int(c, &expert, s->n_asks));
  TRY(fm_scratch(c, &ones, s->n_asks, 1));
  for (int r = 0; r < s->ranks; begin += s->rows_from[r++])
    for (int64_t i = 0; i < s->asks_from[r]; i++, at++) {
      row[at] = (int32_t)begin + ask[2 * at];
      expert[at] = ask[2 * at + 1];
      ones[at] = 1;
    }
  TRY(pick(c, &rows, x, s->n_rows, row, s->n_asks, d));
  TRY(fm_scratch(c, y, s->n_asks, d));
  c->ops->clear(c->dev, *y, s->n_asks * d * (int64_t)sizeof **y);
  fm_experts e = my_experts(s, l);
  e.top_k = 1;
  return s->n_asks ? fm_op_experts(c, *y, rows, expert, ones, &e, s->n_asks) : FM_OK;
}

static fm_status by_host(dispatch *s, const fm_layer *l, const int32_t *id, const float *weight) {
  fm_ctx *c = s->p->net->c;
  int64_t d = s->e->hidden_size, row = d * (int64_t)sizeof(float), k = s->e->top_k, n_back = s->n * k;
  float *out, *in, *y, *back;
  int32_t *ask;
  TRY(plan(s, id));
  TRY(pick(c, &out, s->p->x, s->p->n, s->row, sum(s->rows_to, s->ranks), d));
  TRY(fm_scratch(c, &in, s->n_rows, d));
  TRY(swap(s, in, s->rows_from, out, s->rows_to, row));
  TRY(fm_scratch_int(c, &ask, 2 * s->n_asks));
  TRY(swap(s, ask, s->asks_from, s->ask, s->asks_to, 2 * sizeof *ask));
  TRY(answer(s, l, &y, in, ask));
  TRY(fm_scratch(c, &back, n_back, d));
  TRY(swap(s, back, s->asks_to, y, s->asks_from, row));
  return fm_op_combine(c, s->p->x + s->first * d, back, s->slot, weight + s->first * k, s->n, k, d);
}

/* Where the device looks up by itself who has what: all rows go to all, every rank answers with its own experts, and a row's own rank takes
   the answers from where they are. */
static fm_status by_device(dispatch *s, const fm_layer *l, const int32_t *id, const float *weight) {
  const fm_net *net = s->p->net;
  fm_ctx *c = net->c;
  int64_t d = s->e->hidden_size, k = s->e->top_k, all = sum(net->home, s->ranks), size[FM_MOST_RANKS];
  int me = net->shard->e;
  float *x, *answers;
  int32_t *ids;
  TRY(fm_scratch(c, &x, all, d));
  TRY(fm_scratch_int(c, &ids, all * k));
  TRY(fm_scratch(c, &answers, 1, fm_answers_size(all * k, d) / 4));
  for (int r = 0; r < s->ranks; r++) size[r] = net->home[r] * d * 4;
  TRY(fm_op_all_gather(c, net->ep, x, s->p->x + s->first * d, size));
  for (int r = 0; r < s->ranks; r++) size[r] = net->home[r] * k * 4;
  TRY(fm_op_all_gather(c, net->ep, ids, id + s->first * k, size));
  fm_experts e = my_experts(s, l);
  e.top_k = k;
  TRY(c->ops->experts_of(c, answers, x, ids, fm_part(s->e->n_experts, s->ranks, me), &e, all));
  fm_combine j = { .n = s->n, .row = sum(net->home, me), .all = all, .top_k = k, .n_experts = s->e->n_experts, .hidden_size = d };
  return fm_op_all_combine(c, net->ep, s->p->x + s->first * d, answers, id + s->first * k, weight + s->first * k, &j);
}

/* What became of each one's part of the rows that some ranks have in common. */
static fm_status show(const dispatch *s) {
  fm_comm *m = s->p->net->share;
  int64_t size[FM_MOST_RANKS], row = s->e->hidden_size * (int64_t)sizeof(float);
  int n = fm_comm_size(m);
  if (!m) return FM_OK;
  for (int r = 0; r < n; r++) size[r] = (fm_part(s->p->n, n, r + 1) - fm_part(s->p->n, n, r)) * row;
  return fm_op_all_gather(s->p->net->c, m, s->p->x, s->p->x + s->first * s->e->hidden_size, size);
}

fm_status fm_spread_experts(fm_pass *p, const fm_layer *l, const int32_t *id, const float *weight, const fm_experts *e) {
  fm_ctx *c = p->net->c;
  int me = fm_comm_me(p->net->share), share = fm_comm_size(p->net->share);
  int64_t d = e->hidden_size, wide = p->n ? l->mlp.gate.rows : 0;
  float *gate = NULL, *up = NULL;
  dispatch s = { .p = p, .e = e, .ranks = fm_comm_size(p->net->ep), .first = fm_part(p->n, share, me) };
  s.n = fm_part(p->n, share, me + 1) - s.first;
  TRY(fm_scratch(c, &gate, p->n, wide));
  TRY(fm_scratch(c, &up, p->n, wide));
  // the shared one is made of x as it was, and added last
  fm_mm in[2] = { { .w = &l->mlp.gate, .x = p->x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = gate, .ldo = wide, .n = p->n },
                  { .w = &l->mlp.up, .x = p->x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = up, .ldo = wide, .n = p->n } };
  if (wide) TRY(fm_op_matmul(c, in, 2));
  TRY((c->ops->experts_of ? by_device : by_host)(&s, l, id, weight));
  TRY(show(&s));
  return wide ? fm_pass_add(p, (fm_mm){ .w = &l->mlp.down, .x = gate, .ldx = wide, .up = up }) : FM_OK;
}
