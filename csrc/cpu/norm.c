/*
** norm.c - RMSNorm, and the elementwise step of the feed-forward.
*/
#include "cpu/cpu.h"

#include <math.h>

#define SMALL 16384     /* elements below which waking the pool costs more than the work */

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
  const float *x = j->x + item * j->ldx;
  float sum;
  (void)worker;
  j->simd->gemm(&sum, 1, x, j->ldx, 1, x, j->ldx, 1, j->dim, NULL);
  float scale = 1.0f / sqrtf(sum / (float)j->dim + j->eps);
  j->simd->gain(j->out + item * j->ldo, x, j->w, scale, j->dim);
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

static void silu_row(void *arg, int64_t item, int worker) {
  const silu_job *j = arg;
  (void)worker;
  j->simd->silu(j->out + item * j->ldo, j->gate + item * j->ld, j->up + item * j->ld, j->dim);
}

fm_status fm_cpu_silu_mul(fm_ctx *c, float *out, int64_t ldo, const float *gate, const float *up, int64_t ld,
                          int64_t n, int64_t dim) {
  fm_cpu *d = (fm_cpu *)c->dev;
  silu_job j = { d->simd, out, ldo, gate, up, ld, dim };
  spread(d, n, n * dim, silu_row, &j);
  return FM_OK;
}
