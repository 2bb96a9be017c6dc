/*
** matmul.c - products on the pool. Few rows: straight from the stored weights, bound by memory. Many: a panel of weight rows
** is converted to f32 once, then used for all of them. Both make the same bits (see cpu.h), so the choice is free.
*/
#include <string.h>

#include "cpu/cpu.h"

enum {
  FEW = 4,                               /* rows up to which converting as we go is faster */
  TOKENS = 96,                           /* rows of a result tile: a multiple of every kernel's tile */
  PANEL_ROWS = 64,                       /* weight rows of a panel, at most */
  PANEL = 64 * 1024,                     /* floats of a panel: half of a 512 KiB L2 */
  LEAST_ROWS = 4,                        /* weight rows of a panel, at least */
  SMALL_PANEL = 16,                      /* and where there are few of them, so that all threads end together */
  LEAST = 32 * 1024                      /* weights worth an item of their own: some microseconds */
};

_Static_assert(PANEL + TOKENS * PANEL_ROWS <= FM_CPU_SCRATCH, "a worker's scratch holds both");

typedef struct item_range { const fm_mm *mm; int64_t first, rows; } item_range;   /* items of mm begin at first */
typedef struct job { const fm_cpu *cpu; const item_range *range; int64_t n; } job;

/* out = dot (+ bias) (+ out), for a tile of results. A fused multiply-add by one is an addition. */
static void settle(const fm_simd *simd, const fm_mm *mm, float *tile, int64_t ld, int64_t i0, int64_t n, int64_t r0, int64_t rows) {
  for (int64_t i = 0; i < n; i++) {
    float *out = mm->out + (i0 + i) * mm->ldo + r0, *t = tile + i * ld;
    if (mm->bias) simd->axpy(t, 1, mm->bias + r0, rows);
    if (mm->add) simd->axpy(out, 1, t, rows);
    else memcpy(out, t, (size_t)rows * sizeof *out);
  }
}

/* Rows r0 .. r0+rows-1 of the weight against n rows of x, from the stored form. */
static void few(const fm_cpu *cpu, const fm_mm *mm, int64_t r0, int64_t rows, float *tile) {
  for (int64_t i = 0; i < mm->n; i += FEW) {
    int64_t n = mm->n - i < FEW ? mm->n - i : FEW;
    const float *x = mm->x + i * mm->ldx;
    if (!mm->bias && !mm->add) {
      cpu->simd->gemv(mm->out + i * mm->ldo + r0, mm->ldo, x, mm->ldx, n, mm->w, r0, rows);
      continue;
    }
    for (int64_t r = 0; r < rows; r += TOKENS * PANEL_ROWS / FEW) {
      int64_t part = rows - r < TOKENS * PANEL_ROWS / FEW ? rows - r : TOKENS * PANEL_ROWS / FEW;
      cpu->simd->gemv(tile, part, x, mm->ldx, n, mm->w, r0 + r, part);
      settle(cpu->simd, mm, tile, part, i, n, r0 + r, part);
    }
  }
}

static void many(const fm_cpu *cpu, const fm_mm *mm, int64_t r0, int64_t rows, float *scratch) {
  float *panel = scratch, *tile = scratch + PANEL;
  int64_t k = mm->w->cols;
  fm_mat bare = *mm->w;
  const float *scale = bare.scale ? bare.scale + r0 / 128 * ((k + 127) / 128) : NULL;
  bare.scale = NULL;
  cpu->simd->convert(panel, k, &bare, r0, rows, 0, k);
  for (int64_t i = 0; i < mm->n; i += TOKENS) {
    int64_t n = mm->n - i < TOKENS ? mm->n - i : TOKENS;
    const float *x = mm->x + i * mm->ldx;
    if (!mm->bias && !mm->add) {
      cpu->simd->gemm(mm->out + i * mm->ldo + r0, mm->ldo, x, mm->ldx, n, panel, k, rows, k, scale);
      continue;
    }
    cpu->simd->gemm(tile, rows, x, mm->ldx, n, panel, k, rows, k, scale);
    settle(cpu->simd, mm, tile, rows, i, n, r0, rows);
  }
}

static bool use_panels(const fm_mm *mm) { return mm->n > FEW && LEAST_ROWS * mm->w->cols <= PANEL; }

static void run_item(void *arg, int64_t item, int worker) {
  const job *j = arg;
  int64_t lo = 0, hi = j->n - 1;
  while (lo < hi) {                                // the last range that begins at or before item
    int64_t mid = (lo + hi + 1) / 2;
    if (j->range[mid].first <= item) lo = mid;
    else hi = mid - 1;
  }
  const item_range *g = &j->range[lo];
  int64_t r0 = (item - g->first) * g->rows, rows = g->mm->w->rows - r0;
  if (rows > g->rows) rows = g->rows;
  if (use_panels(g->mm)) many(j->cpu, g->mm, r0, rows, j->cpu->scratch[worker]);
  else few(j->cpu, g->mm, r0, rows, j->cpu->scratch[worker]);
}

/* Weight rows of an item: a panel, or as much as keeps the threads evenly busy. */
static int64_t item_rows(const fm_cpu *cpu, const fm_mm *mm, int64_t total) {
  int64_t k = mm->w->cols > 0 ? mm->w->cols : 1, threads = fm_pool_threads(cpu->pool), rows;
  if (use_panels(mm)) {
    rows = PANEL / k / LEAST_ROWS * LEAST_ROWS;
    if (rows > PANEL_ROWS) rows = PANEL_ROWS;
    while (threads > 1 && rows > SMALL_PANEL && rows * k * 8 * threads > total) rows = rows / 2 / LEAST_ROWS * LEAST_ROWS;
    while (mm->w->scale && rows & (rows - 1)) rows &= rows - 1;    // a panel of f8 has one row of scales
    return rows;
  }
  int64_t share = total / (threads * 8);
  rows = ((share > LEAST ? share : LEAST) / k + 15) / 16 * 16;
  return rows < 16 ? 16 : rows;
}

/* The product's x as it says: normed, or gated. A neighbour's is taken when it is the same. */
static fm_status make_input(fm_ctx *c, fm_mm *m, const fm_mm *was, const fm_mm *made) {
  int64_t k = m->w->cols, size = m->n * k * (int64_t)sizeof(float);
  if (!m->norm && !m->up) return FM_OK;
  const float *x = was && was->x == m->x && was->norm == m->norm && was->up == m->up && was->n == m->n ? made->x : NULL;
  if (!x) {
    float *y = fm_arena_alloc(&c->arena, size);
    if (!y) return fm_no_memory(&c->err, size);
    TRY(m->norm ? fm_cpu_rms_norm(c, y, k, m->x, m->ldx, m->norm, m->n, k, m->eps)
                : fm_cpu_silu_mul(c, y, k, m->x, m->up, m->ldx, m->n, k));
    x = y;
  }
  m->x = x;
  m->ldx = k;
  return FM_OK;
}

static fm_status run_list(fm_ctx *c, const fm_mm *mm, int64_t n_mm) {
  const fm_cpu *cpu = (const fm_cpu *)c->dev;
  item_range *range = fm_arena_alloc(&c->arena, n_mm * (int64_t)sizeof *range);
  if (!range) return fm_no_memory(&c->err, n_mm * (int64_t)sizeof *range);
  int64_t total = 0, items = 0, n = 0;
  for (int64_t i = 0; i < n_mm; i++) total += mm[i].w->rows * mm[i].w->cols;
  for (int64_t i = 0; i < n_mm; i++) {
    if (mm[i].n == 0 || mm[i].w->rows == 0) continue;
    int64_t rows = item_rows(cpu, &mm[i], total);
    range[n++] = (item_range){ &mm[i], items, rows };
    items += (mm[i].w->rows + rows - 1) / rows;
  }
  job j = { cpu, range, n };
  fm_pool_for(cpu->pool, items, run_item, &j);
  return FM_OK;
}

static fm_status make_list(fm_ctx *c, fm_mm **out, const fm_mm *mm, int64_t n_mm) {
  fm_mm *list = *out = fm_arena_alloc(&c->arena, n_mm * (int64_t)sizeof *list);
  if (!list) return fm_no_memory(&c->err, n_mm * (int64_t)sizeof *list);
  memcpy(list, mm, (size_t)n_mm * sizeof *list);
  for (int64_t i = 0; i < n_mm; i++) TRY(make_input(c, &list[i], i ? &mm[i - 1] : NULL, &list[i - (i > 0)]));
  return FM_OK;
}

fm_status fm_cpu_matmul(fm_ctx *c, const fm_mm *mm, int64_t n_mm) {
  fm_mark mark = fm_arena_mark(&c->arena);
  bool plain = true;
  for (int64_t i = 0; i < n_mm; i++) plain = plain && !mm[i].norm && !mm[i].up;
  fm_mm *list = NULL;
  fm_status status = plain ? FM_OK : make_list(c, &list, mm, n_mm);
  if (status == FM_OK) status = run_list(c, plain ? mm : list, n_mm);
  fm_arena_release(&c->arena, mark);
  return status;
}

fm_status fm_cpu_embed(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n) {
  const fm_cpu *cpu = (const fm_cpu *)c->dev;
  for (int64_t i = 0; i < n; i++)
    cpu->simd->convert(out + i * table->cols, table->cols, table, id[i], 1, 0, table->cols);
  return FM_OK;
}
