/*
** rope.cu - rotary positions in both pair layouts, and storing rows into the paged cache.
** One block a row; a row finds its span by asking all of them.
*/
#include "rope.cuh"

__device__ void turn_heads(float *x, int64_t stride, int64_t n_heads, const fm_turning &t, int64_t pos) {
  int half = t.dim / 2;
  for (int64_t i = threadIdx.x; i < n_heads * half; i += blockDim.x) {
    float *v = x + i / half * stride, *a = v + fm_pair_first(t, (int)(i % half)), *b = v + fm_pair_second(t, (int)(i % half));
    float2 y = fm_turn_pair(*a, *b, fm_angle(t, pos, (int)(i % half)));
    *a = y.x, *b = y.y;
  }
}

__global__ void rope_kernel(float *x, int64_t ldx, int64_t n_heads, int64_t stride, fm_turning t) {
  fm_go_on();
  fm_wait();
  turn_heads(x + blockIdx.x * ldx, stride, n_heads, t, t.pos[blockIdx.x]);
}

fm_status fm_cuda_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r) {
  fm_turning t;
  if (n == 0) return FM_OK;
  TRY(fm_turning_of(c, &t, r, n));
  fm_launch(c, rope_kernel, (unsigned)n, 256, 0, x, ldx, n_heads, stride, t);
  return fm_cuda_launched(c, "rope");
}

__global__ void store_kernel(fm_dcache k, fm_dspans s, const float *x, int64_t ldx, int64_t first_row) {
  fm_go_on();
  fm_wait();
  int64_t row = first_row + blockIdx.x;
  char *to = fm_place_of(k, s, row);
  if (to) fm_store_row(to, x + row * ldx, k);
}

static int64_t end_row(const fm_span *span, int64_t n) {
  int64_t end = 0;
  for (int64_t i = 0; i < n; i++) end = span[i].row + span[i].n > end ? span[i].row + span[i].n : end;
  return end;
}

fm_status fm_cuda_cache_store(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans, const float *x,
                              int64_t ldx) {
  fm_dspans s;
  int64_t end = end_row(span, n_spans);
  if (end == 0) return FM_OK;
  TRY(fm_cuda_spans(c, &s, span, n_spans));
  fm_launch(c, store_kernel, (unsigned)end, 256, 0, fm_dcache_of(cache), s, x, ldx, (int64_t)0);
  return fm_cuda_launched(c, "cache_store");
}

/* Blocks 0 .. n-1: norm, turn and store a row of kv. Blocks n .. 2n-1: turn the heads of a row of q. */
__global__ void mla_store_kernel(fm_dcache k, fm_dspans s, float *q, int64_t ldq, int64_t n_heads, int64_t nope, fm_latents l) {
  bool heads = (int)blockIdx.x >= l.n;
  int64_t row = heads ? blockIdx.x - l.n : blockIdx.x, pos = l.turn.pos[row];
  // what the pass began with, and constants: looked up before the kernel ahead has ended
  char *to = heads ? NULL : fm_place_of(k, s, row);
  fm_latent_soon(l, pos);
  fm_go_on();
  fm_wait();
  if (heads) turn_heads(q + row * ldq + nope, nope + l.turn.dim, n_heads, l.turn, pos);
  else fm_latent_store(to, l.kv + row * k.width, l, k, row, pos);
}

fm_status fm_cuda_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                            const fm_rope *r) {
  fm_dspans s;
  fm_latents l = { kv, norm, eps, (int)n, (int)a->rank };
  if (n == 0) return FM_OK;
  TRY(fm_cuda_spans(c, &s, a->span, a->n_spans));
  TRY(fm_turning_of(c, &l.turn, r, n));
  fm_launch(c, mla_store_kernel, (unsigned)(2 * n), 256, 0, fm_dcache_of(a->cache), s, q, a->ldq, a->n_heads, a->nope, l);
  return fm_cuda_launched(c, "mla_store");
}
