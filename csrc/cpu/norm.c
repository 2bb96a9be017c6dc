/*
** norm.c - RMSNorm, and the elementwise step of the feed-forward.
*/
#include "cpu/cpu.h"

#include <math.h>

#define SMALL 16384     /* elements below which waking the pool costs more than the work */
#define TILE  256       /* elements of a row a worker takes at once */

/* Runs fn over n items, on this thread when `work` elements are few. */
static void spread(fm_cpu *d, int64_t n, int64_t work, fm_pool_fn fn, void *arg) {
  if (work >= SMALL) fm_pool_for(d->pool, n, fn, arg);
  else for (int64_t i = 0; i < n; i++) fn(arg, i, 0);
}

typedef struct norm_job {
  const fm_simd *simd;
  float *out; int64_t ldo;
  const float *x; int64_t ldx;
  const float *w;
  int64_t dim;
  float eps;
} norm_job;

static void norm_row(void *arg, int64_t item, int worker) {
  const norm_job *j = arg;
  const float *x = j->x + item * j->ldx, *w = j->w;
  float *out = j->out + item * j->ldo, sum;
  (void)worker;
  j->simd->gemm(&sum, 1, x, j->ldx, 1, x, j->ldx, 1, j->dim, NULL);
  float scale = 1.0f / sqrtf(sum / (float)j->dim + j->eps);
  for (int64_t i = 0; i < j->dim; i++) out[i] = w[i] * (x[i] * scale);
}

fm_status fm_cpu_rms_norm(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w,
                          int64_t n, int64_t dim, float eps) {
  fm_cpu *d = (fm_cpu *)c->dev;
  norm_job j = { d->simd, out, ldo, x, ldx, w, dim, eps };
  spread(d, n, n * dim, norm_row, &j);
  return FM_OK;
}

typedef struct silu_job {
  const fm_simd *simd;
  float *out; int64_t ldo;
  const float *gate, *up; int64_t ld;
  int64_t dim;
} silu_job;

/* At most TILE elements. exp of a negative number only: nothing overflows, and both signs are exact to a few ulp. */
static void silu_tile(const fm_simd *simd, float *out, const float *gate, const float *up, int64_t n) {
  float minus[TILE] = { 0 }, e[TILE];
  for (int64_t i = 0; i < n; i++) minus[i] = -fabsf(gate[i]);
  simd->exp_sub(e, minus, 0.0f, n);
  for (int64_t i = 0; i < n; i++) {
    float top = gate[i] >= 0.0f ? 1.0f : e[i];
    out[i] = gate[i] * (top / (1.0f + e[i])) * up[i];
  }
}

static void silu_row(void *arg, int64_t item, int worker) {
  const silu_job *j = arg;
  (void)worker;
  for (int64_t i = 0; i < j->dim; i += TILE) {
    int64_t n = j->dim - i < TILE ? j->dim - i : TILE;
    silu_tile(j->simd, j->out + item * j->ldo + i, j->gate + item * j->ld + i, j->up + item * j->ld + i, n);
  }
}

fm_status fm_cpu_silu_mul(fm_ctx *c, float *out, int64_t ldo, const float *gate, const float *up, int64_t ld,
                          int64_t n, int64_t dim) {
  fm_cpu *d = (fm_cpu *)c->dev;
  silu_job j = { d->simd, out, ldo, gate, up, ld, dim };
  spread(d, n, n * dim, silu_row, &j);
  return FM_OK;
}
