/*
** moe.c - the router's choice, and the routed experts: rows are gathered by expert, multiplied and put back.
*/
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Scratch of one call of experts; rows beyond it are done in further pieces. */
#define EXPERT_SCRATCH ((int64_t)64 << 20)

/* ---- router ---- */

typedef struct route_job {
  const fm_route *r;
  int32_t *id;
  float *weight;
  const float *logits, *bias;
  float *scratch; int64_t stride;        /* (workers, 2 n_experts) */
} route_job;

/* Doubles inside, one rounding at the end: the choice hangs on the last bits of a score. */
static void score_row(float *s, const float *z, int64_t n, bool sigmoid) {
  double max = -INFINITY, sum = 0;
  if (sigmoid) {
    for (int64_t i = 0; i < n; i++) s[i] = (float)(1.0 / (1.0 + exp(-(double)z[i])));
    return;
  }
  for (int64_t i = 0; i < n; i++)
    if (z[i] > max) max = z[i];
  for (int64_t i = 0; i < n; i++) sum += exp(z[i] - max);
  for (int64_t i = 0; i < n; i++) s[i] = (float)(exp(z[i] - max) / sum);
}

static float group_score(const float *c, int64_t n, bool top2) {
  float a = -INFINITY, b = -INFINITY;    // best and second best
  for (int64_t i = 0; i < n; i++) {
    if (c[i] > a) b = a, a = c[i];
    else if (c[i] > b) b = c[i];
  }
  return top2 && n > 1 ? a + b : a;
}

/* A group survives when fewer than topk_group groups beat it; of equal ones the lower wins. `worth` (n_group). */
static void mask_groups(float *c, float *worth, const fm_route *r) {
  int64_t n = r->n_experts / r->n_group;
  for (int64_t g = 0; g < r->n_group; g++) worth[g] = group_score(c + g * n, n, r->group_top2);
  for (int64_t g = 0; g < r->n_group; g++) {
    int64_t better = 0;
    for (int64_t o = 0; o < r->n_group; o++) better += worth[o] > worth[g] || (worth[o] == worth[g] && o < g);
    if (better < r->topk_group) continue;
    // not 0: with a negative bias a masked 0 would beat valid experts
    for (int64_t i = 0; i < n; i++) c[g * n + i] = -INFINITY;
  }
}

/* The k best of c (n) in increasing id; c is used up. Always k different ids, whatever c holds. */
static void choose(int32_t *id, int64_t k, float *c, int64_t n) {
  for (int64_t s = 0; s < k; s++) {
    int64_t best = -1, at = s;
    for (int64_t i = 0; i < n; i++)
      if (!isnan(c[i]) && (best < 0 || c[i] > c[best])) best = i;
    c[best] = NAN;                       // taken
    while (at > 0 && id[at - 1] > best) id[at] = id[at - 1], at--;
    id[at] = (int32_t)best;
  }
}

static void route_row(void *arg, int64_t item, int worker) {
  const route_job *j = arg;
  const fm_route *r = j->r;
  int64_t n = r->n_experts, k = r->top_k;
  float *s = j->scratch + worker * j->stride, *c = s + n, *worth = c + n, sum = 0;
  int32_t *id = j->id + item * k;
  float *weight = j->weight + item * k;
  score_row(s, j->logits + item * n, n, r->sigmoid);
  for (int64_t i = 0; i < n; i++) {
    c[i] = j->bias ? s[i] + j->bias[i] : s[i];
    if (isnan(c[i])) c[i] = -INFINITY;   // a broken row still names k valid experts; its weights stay NaN
  }
  if (r->n_group > 1) mask_groups(c, worth, r);
  choose(id, k, c, n);
  for (int64_t i = 0; i < k; i++) sum += s[id[i]];
  for (int64_t i = 0; i < k; i++) {
    float w = s[id[i]];
    if (r->norm_topk_prob) w /= sum + 1e-20f;
    weight[i] = w * r->routed_scaling_factor;
  }
}

fm_status fm_cpu_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                       const fm_route *r, int64_t n) {
  fm_cpu *d = (fm_cpu *)c->dev;
  int64_t stride = (2 * r->n_experts + r->n_group + 15) / 16 * 16;
  int64_t size = stride * fm_pool_threads(d->pool) * (int64_t)sizeof(float);
  fm_mark mark = fm_arena_mark(&c->arena);
  float *scratch = fm_arena_alloc(&c->arena, size);
  if (!scratch) return fm_no_memory(&c->err, size);
  route_job j = { r, topk_id, topk_weight, logits, bias, scratch, stride };
  if (n * r->n_experts >= 1024) fm_pool_for(d->pool, n, route_row, &j);
  else for (int64_t i = 0; i < n; i++) route_row(&j, i, 0);
  for (int64_t i = 0; r->count && i < n * r->top_k; i++) r->count[topk_id[i]]++;
  fm_arena_release(&c->arena, mark);
  return FM_OK;
}

/* ---- experts ---- */

/* One piece of the rows. A slot is one (row, k); slots stand grouped by expert. */
typedef struct experts_job {
  const fm_experts *e;
  const fm_simd *simd;
  float *out;
  const float *x, *weight;
  const int32_t *id;
  int64_t n, n_slots, n_mm;
  int32_t *start;                        /* (n_experts + 1) first slot of each expert */
  int32_t *slot;                         /* (n * top_k) where row i's k-th choice stands */
  float *rows;                           /* (n_slots, hidden_size) gathered rows, then the experts' answers */
  float *gate, *up;                      /* (n_slots, moe_intermediate_size) */
  float *sum;                            /* (workers, hidden_size) */
  fm_mm *mm;                             /* (2 * active experts) */
} experts_job;

static fm_status take(fm_ctx *c, void *out, int64_t n, int64_t size) {
  void *p = fm_arena_alloc(&c->arena, n * size);
  if (!p) return fm_no_memory(&c->err, n * size);
  memcpy(out, &p, sizeof p);
  return FM_OK;
}

static fm_status take_scratch(fm_ctx *c, experts_job *j, int workers) {
  int64_t active = j->e->n_experts < j->n_slots ? j->e->n_experts : j->n_slots;
  TRY(take(c, &j->start, j->e->n_experts + 1, sizeof *j->start));
  TRY(take(c, &j->slot, j->n_slots, sizeof *j->slot));
  TRY(take(c, &j->rows, j->n_slots * j->e->hidden_size, sizeof *j->rows));
  TRY(take(c, &j->gate, j->n_slots * j->e->moe_intermediate_size, sizeof *j->gate));
  TRY(take(c, &j->up, j->n_slots * j->e->moe_intermediate_size, sizeof *j->up));
  TRY(take(c, &j->sum, workers * j->e->hidden_size, sizeof *j->sum));
  return take(c, &j->mm, 2 * active, sizeof *j->mm);
}

/* Counting sort of the slots by expert. */
static void group_slots(experts_job *j) {
  int32_t *start = j->start;
  int64_t n_experts = j->e->n_experts;
  memset(start, 0, (size_t)(n_experts + 1) * sizeof *start);
  for (int64_t s = 0; s < j->n_slots; s++) start[j->id[s] + 1]++;
  for (int64_t e = 0; e < n_experts; e++) start[e + 1] += start[e];
  for (int64_t s = 0; s < j->n_slots; s++) j->slot[s] = start[j->id[s]]++;
  for (int64_t e = n_experts; e > 0; e--) start[e] = start[e - 1];
  start[0] = 0;
}

static void gather_row(void *arg, int64_t item, int worker) {
  const experts_job *j = arg;
  int64_t d = j->e->hidden_size, k = j->e->top_k;
  (void)worker;
  for (int64_t s = item * k; s < (item + 1) * k; s++)
    memcpy(j->rows + j->slot[s] * d, j->x + item * d, (size_t)d * sizeof *j->x);
}

/* Row `item` of out: what its slots' answers add to it, slot by slot. */
static void combine_row(void *arg, int64_t item, int worker) {
  const experts_job *j = arg;
  int64_t d = j->e->hidden_size, k = j->e->top_k;
  float *sum = j->sum + worker * d, *out = j->out + item * d;
  memset(sum, 0, (size_t)d * sizeof *sum);
  for (int64_t s = item * k; s < (item + 1) * k; s++)
    j->simd->axpy(sum, j->weight[s], j->rows + j->slot[s] * d, d);
  j->simd->axpy(out, 1, sum, d);         // a fused multiply-add by one is an addition
}

static void list_first(experts_job *j) {
  int64_t d = j->e->hidden_size, width = j->e->moe_intermediate_size;
  j->n_mm = 0;
  for (int64_t e = 0; e < j->e->n_experts; e++) {
    int64_t at = j->start[e], n = j->start[e + 1] - at;
    if (!n) continue;
    // a single row is its experts' common input and needs no copies
    const float *x = j->n == 1 ? j->x : j->rows + at * d;
    j->mm[j->n_mm++] = (fm_mm){ .w = &j->e->gate[e], .x = x, .ldx = d,
                                .out = j->gate + at * width, .ldo = width, .n = n };
    j->mm[j->n_mm++] = (fm_mm){ .w = &j->e->up[e], .x = x, .ldx = d,
                                .out = j->up + at * width, .ldo = width, .n = n };
  }
}

static void list_second(experts_job *j) {
  int64_t d = j->e->hidden_size, width = j->e->moe_intermediate_size;
  j->n_mm = 0;
  for (int64_t e = 0; e < j->e->n_experts; e++) {
    int64_t at = j->start[e], n = j->start[e + 1] - at;
    if (!n) continue;
    j->mm[j->n_mm++] = (fm_mm){ .w = &j->e->down[e], .x = j->gate + at * width, .ldx = width,
                                .out = j->rows + at * d, .ldo = d, .n = n };
  }
}

static fm_status run_piece(fm_ctx *c, experts_job *j) {
  fm_cpu *dev = (fm_cpu *)c->dev;
  int64_t width = j->e->moe_intermediate_size;
  TRY(take_scratch(c, j, fm_pool_threads(dev->pool)));
  group_slots(j);
  if (j->n > 1) fm_pool_for(dev->pool, j->n, gather_row, j);
  list_first(j);
  TRY(fm_cpu_matmul(c, j->mm, j->n_mm));
  TRY(fm_cpu_silu_mul(c, j->gate, width, j->gate, j->up, width, j->n_slots, width));
  list_second(j);
  TRY(fm_cpu_matmul(c, j->mm, j->n_mm));
  if (j->n > 1) fm_pool_for(dev->pool, j->n, combine_row, j);
  else combine_row(j, 0, 0);
  return FM_OK;
}

static fm_status check_ids(fm_ctx *c, const int32_t *id, int64_t n, int64_t n_experts) {
  for (int64_t s = 0; s < n; s++)
    if (id[s] < 0 || id[s] >= n_experts)
      return fm_fail(&c->err, FM_EINVAL, "expert id %d of %lld experts", (int)id[s], (long long)n_experts);
  return FM_OK;
}

static fm_status routed(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                        const fm_experts *e, int64_t n) {
  int64_t d = e->hidden_size, k = e->top_k;
  int64_t row_size = k * (d + 2 * e->moe_intermediate_size) * (int64_t)sizeof(float);
  int64_t most = EXPERT_SCRATCH / (row_size ? row_size : 1);
  if (most < 1) most = 1;
  int64_t pieces = (n + most - 1) / most, step = (n + pieces - 1) / pieces;
  for (int64_t i = 0; i < n; i += step) {
    int64_t rows = n - i < step ? n - i : step;
    experts_job j = { .e = e, .simd = ((fm_cpu *)c->dev)->simd, .out = out + i * d, .x = x + i * d,
                      .weight = topk_weight + i * k, .id = topk_id + i * k, .n = rows, .n_slots = rows * k };
    fm_mark mark = fm_arena_mark(&c->arena);
    fm_status status = run_piece(c, &j);
    fm_arena_release(&c->arena, mark);
    TRY(status);
  }
  return FM_OK;
}

static fm_status shared(fm_ctx *c, float *out, const float *x, const fm_experts *e, int64_t n) {
  int64_t d = e->hidden_size, width = e->shared_gate->rows;
  float *gate = NULL, *up = NULL;
  TRY(take(c, &gate, n * width, sizeof *gate));
  TRY(take(c, &up, n * width, sizeof *up));
  fm_mm in[2] = { { .w = e->shared_gate, .x = x, .ldx = d, .out = gate, .ldo = width, .n = n },
                  { .w = e->shared_up, .x = x, .ldx = d, .out = up, .ldo = width, .n = n } };
  TRY(fm_cpu_matmul(c, in, 2));
  fm_mm down = { .w = e->shared_down, .x = gate, .ldx = width, .up = up, .out = out, .ldo = d, .n = n, .add = true };
  return fm_cpu_matmul(c, &down, 1);
}

static fm_status experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                         const fm_experts *e, int64_t n) {
  int64_t d = e->hidden_size;
  if (e->norm) {
    float *h = NULL;
    TRY(take(c, &h, n * d, sizeof *h));
    TRY(fm_cpu_rms_norm(c, h, d, x, d, e->norm, n, d, e->eps));
    x = h;
  }
  TRY(routed(c, out, x, topk_id, topk_weight, e, n));
  return e->shared_gate ? shared(c, out, x, e, n) : FM_OK;
}

fm_status fm_cpu_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                         const fm_experts *e, int64_t n) {
  const fm_gate *g = e->choose;
  if (g) TRY(fm_cpu_route(c, g->topk_id, g->topk_weight, g->logits, g->bias, g->rule, n));
  TRY(check_ids(c, topk_id, n * e->top_k, e->n_experts));
  if (n == 0) return FM_OK;
  fm_mark mark = fm_arena_mark(&c->arena);
  fm_status status = experts(c, out, x, topk_id, topk_weight, e, n);
  fm_arena_release(&c->arena, mark);
  return status;
}

fm_status fm_cpu_combine(fm_ctx *c, float *out, const float *y, const int32_t *slot, const float *topk_weight, int64_t n,
                         int64_t top_k, int64_t hidden_size) {
  fm_cpu *d = (fm_cpu *)c->dev;
  fm_experts e = { .top_k = top_k, .hidden_size = hidden_size };
  experts_job j = { .e = &e, .simd = d->simd, .out = out, .weight = topk_weight, .n = n, .slot = (int32_t *)(uintptr_t)slot,
                    .rows = (float *)(uintptr_t)y };
  fm_mark mark = fm_arena_mark(&c->arena);
  fm_status status = take(c, &j.sum, fm_pool_threads(d->pool) * hidden_size, sizeof *j.sum);
  if (status == FM_OK) fm_pool_for(d->pool, n, combine_row, &j);
  fm_arena_release(&c->arena, mark);
  return status;
}
