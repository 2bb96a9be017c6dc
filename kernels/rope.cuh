/*
** rope.cuh - rotary positions and the rows of the paged cache: what rope.cu shares with attention that stores for itself.
*/
#ifndef FM_KERNELS_ROPE_CUH
#define FM_KERNELS_ROPE_CUH

#include "quant.cuh"

struct fm_turning { const int32_t *pos; const float *cos, *sin; int dim, interleaved; };

inline fm_status fm_turning_of(fm_ctx *c, fm_turning *t, const fm_rope *r, int64_t n) {
  const void *pos;
  TRY(fm_cuda_staged(c, &pos, r->pos, n * 4));
  *t = { (const int32_t *)pos, r->cos, r->sin, (int)r->dim, r->interleaved };
  return FM_OK;
}

/* Pair i of a vector, turned: roundings are written out, so that it has one result wherever it is done. */
__device__ __forceinline__ int fm_pair_first(const fm_turning &t, int i) { return t.interleaved ? 2 * i : i; }
__device__ __forceinline__ int fm_pair_second(const fm_turning &t, int i) { return t.interleaved ? 2 * i + 1 : i + t.dim / 2; }
__device__ __forceinline__ float2 fm_angle(const fm_turning &t, int64_t pos, int i) {
  int64_t at = pos * (t.dim / 2) + i;
  return { t.cos[at], t.sin[at] };
}
__device__ __forceinline__ float2 fm_turn_pair(float u, float v, float2 angle) {
  return { fmaf(u, angle.x, -__fmul_rn(v, angle.y)), fmaf(u, angle.y, __fmul_rn(v, angle.x)) };
}

/* The place of row `row` in the cache, or NULL; the same for the whole block. */
__device__ inline char *fm_place_of(const fm_dcache &k, const fm_dspans &s, int64_t row) {
  __shared__ char *place;
  if (threadIdx.x == 0) place = NULL;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < s.n; i += blockDim.x) {
    const fm_span &p = s.span[i];
    if (row < p.row || row >= p.row + p.n) continue;
    const int32_t *pages = (const int32_t *)((const char *)p.pages + s.delta);
    place = fm_cache_row(k, pages, p.index + row - p.row);
  }
  __syncthreads();
  return place;
}

__device__ inline void fm_store_row(char *to, const float *x, const fm_dcache &k) {
  if (k.dtype == FM_F8_E4M3) return fm_pack8(to, x, k);
  for (int i = threadIdx.x; i < k.width; i += blockDim.x) {
    if (k.dtype == FM_F32) ((float *)to)[i] = x[i];
    else ((bf16 *)to)[i] = __float2bfloat16_rn(x[i]);
  }
}

__device__ __forceinline__ void fm_soon(const float *p) { asm volatile("prefetch.global.L1 [%0];" :: "l"(p)); }

/* Rows of kv on their way into the cache. */
struct fm_latents { float *kv; const float *norm; float eps; int n, rank; fm_turning turn; };

/* Asks for what a row's storing looks up besides the row. */
__device__ __forceinline__ void fm_latent_soon(const fm_latents &l, int64_t pos) {
  int half = l.turn.dim / 2, i = threadIdx.x * 32;
  if (i < half) fm_soon(l.turn.cos + pos * half + i), fm_soon(l.turn.sin + pos * half + i);
  if (i < l.rank) fm_soon(l.norm + i);
}

/* Makes `made` (k.width floats; may be the row itself): the latent normed, the rotary part turned; stores it at `to`, unless that is
   NULL. By a block of 256. */
__device__ inline void fm_latent_store(char *to, float *made, const fm_latents &l, const fm_dcache &k, int64_t row, int64_t pos) {
  const float *x = l.kv + row * k.width, *pe = x + l.rank;
  const fm_turning &t = l.turn;
  int half = t.dim / 2, i = threadIdx.x;
  float u = i < half ? pe[fm_pair_first(t, i)] : 0.0f, v = i < half ? pe[fm_pair_second(t, i)] : 0.0f;
  float inv = fm_inv_rms(x, l.rank, l.eps);
  for (int d = threadIdx.x; d < l.rank; d += 256) made[d] = l.norm[d] * (x[d] * inv);
  for (; i < half; i += 256) {
    if (i >= 256) u = pe[fm_pair_first(t, i)], v = pe[fm_pair_second(t, i)];
    float2 y = fm_turn_pair(u, v, fm_angle(t, pos, i));
    made[l.rank + fm_pair_first(t, i)] = y.x, made[l.rank + fm_pair_second(t, i)] = y.y;
  }
  __syncthreads();
  if (to) fm_store_row(to, made, k);
}

#endif
