/*
** turn.cu - cached rows turned by one angle: what a window that moves does to the few keys it keeps.
** One block a row. A thread has pairs of its own and reads both before it writes either, so rows may be turned in place.
*/
#include "cuda.cuh"

struct turned { const int32_t *from, *to; const double *cos, *sin; int64_t index; int offset, n_heads, dim, interleaved; };

__device__ double get(const char *x, bool f32, int i) {
  return f32 ? (double)((const float *)x)[i] : (double)__bfloat162float(((const bf16 *)x)[i]);
}

__device__ void set(char *x, bool f32, int i, double v) {
  if (f32) ((float *)x)[i] = (float)v;
  else ((bf16 *)x)[i] = __float2bfloat16_rn((float)v);
}

__global__ void turn_kernel(fm_dcache k, turned t) {
  fm_go_on();
  fm_wait();
  int64_t at = t.index + blockIdx.x;
  const char *from = fm_cache_row(k, t.from, at);
  char *to = fm_cache_row(k, t.to, at);
  int half = t.dim / 2, end = t.offset + t.n_heads * t.dim * (k.dtype == FM_F32 ? 4 : 2);
  if (to != from)                        // rows are whole numbers of two bytes; the rotated part is written below
    for (int i = threadIdx.x * 2; i < k.pitch; i += blockDim.x * 2)
      if (i < t.offset || i >= end) *(uint16_t *)(to + i) = *(const uint16_t *)(from + i);
  for (int i = threadIdx.x; i < t.n_heads * half; i += blockDim.x) {
    int j = i % half, first = i / half * t.dim;
    int u = first + (t.interleaved ? 2 * j : j), v = t.interleaved ? u + 1 : u + half;
    double a = get(from + t.offset, k.dtype == FM_F32, u), b = get(from + t.offset, k.dtype == FM_F32, v);
    // no contraction: the CPU's bytes
    set(to + t.offset, k.dtype == FM_F32, u, __dsub_rn(__dmul_rn(a, t.cos[j]), __dmul_rn(b, t.sin[j])));
    set(to + t.offset, k.dtype == FM_F32, v, __dadd_rn(__dmul_rn(a, t.sin[j]), __dmul_rn(b, t.cos[j])));
  }
}

fm_status fm_cuda_turn(fm_ctx *c, const fm_turn *t) {
  const void *from, *to, *cs, *sn;
  fm_dtype type;
  int64_t pages = (t->index + t->n + FM_PAGE - 1) / FM_PAGE, half = t->dim / 2;
  if (t->n == 0) return FM_OK;
  TRY(fm_cuda_staged(c, &from, t->from, pages * 4));
  TRY(fm_cuda_staged(c, &to, t->to, pages * 4));
  TRY(fm_cuda_staged(c, &cs, t->cos, half * 8));
  TRY(fm_cuda_staged(c, &sn, t->sin, half * 8));
  turned args = { (const int32_t *)from, (const int32_t *)to, (const double *)cs, (const double *)sn, t->index,
                  (int)fm_cache_element(t->cache->dtype, t->cache->latent, t->at, &type), (int)t->n_heads, (int)t->dim,
                  t->interleaved };
  fm_launch(c, turn_kernel, (unsigned)t->n, 128, 0, fm_dcache_of(t->cache), args);
  return fm_cuda_launched(c, "turn");
}
