/*
** quant.cuh - cache rows in f8 (backend.h has their layout): made by a block, read one element or eight at a time. Twin of
** csrc/cpu/quant.c, to the bit: scales are powers of two, so only the rounding to f8 and to bf16 rounds.
*/
#ifndef FM_KERNELS_QUANT_CUH
#define FM_KERNELS_QUANT_CUH

#include "cuda.cuh"

/* fm_f8_scale of a warp's 128 elements; lane l brings those at l, l + 32, ... */
__device__ __forceinline__ float fm_tile_scale(const float (&x)[4]) {
  float amax = 0;
  bool within = true;
  for (int i = 0; i < 4; i++) within = within && fabsf(x[i]) <= 448.0f * 64, amax = fmaxf(amax, fabsf(x[i]));
  amax = fm_warp_max(amax);
  if (!__all_sync(~0u, within)) return NAN;
  if (amax == 0) return 1;
  int e;
  float m = frexpf(amax, &e);
  return ldexpf(1.0f, max(e - (m <= 0.875f ? 9 : 8), -126));
}

/* Makes a row from k.width floats: a warp a tile. */
__device__ __forceinline__ void fm_pack8(char *to, const float *x, const fm_dcache &k) {
  int lane = threadIdx.x & 31;
  for (int at = (int)(threadIdx.x >> 5) * FM_CACHE_TILE; at < k.latent; at += (int)(blockDim.x >> 5) * FM_CACHE_TILE) {
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = at + i * 32 + lane < k.latent ? x[at + i * 32 + lane] : 0.0f;
    float s = fm_tile_scale(v);
    for (int i = 0; i < 4; i++)
      if (at + i * 32 + lane < k.latent)
        to[at + i * 32 + lane] = (char)__nv_cvt_float_to_fp8(v[i] / s, __NV_SATFINITE, __NV_E4M3);
    if (lane == 0) ((float *)(to + k.scales))[at / FM_CACHE_TILE] = s;
  }
  for (int i = k.latent + (int)threadIdx.x; i < k.width; i += blockDim.x)
    ((bf16 *)(to + k.rest))[i - k.latent] = __float2bfloat16_rn(x[i]);
}

__device__ __forceinline__ float fm_at8(const char *row, int i, const fm_dcache &k) {
  if (i >= k.latent) return __bfloat162float(((const bf16 *)(row + k.rest))[i - k.latent]);
  return fm_f8(((const uint8_t *)row)[i]) * ((const float *)(row + k.scales))[i / FM_CACHE_TILE];
}

/* Four f8 times a power of two as bf16, exact; scale: the tile's times 2^120, which takes the moved bits' 2^-120 back. */
__device__ __forceinline__ uint2 fm_four8(uint32_t w, __nv_bfloat162 scale) {
  uint32_t lo = fm_f8_pair(w, 0), hi = fm_f8_pair(w, 1);
  __nv_bfloat162 a = __hmul2(*(__nv_bfloat162 *)&lo, scale), b = __hmul2(*(__nv_bfloat162 *)&hi, scale);
  return { *(uint32_t *)&a, *(uint32_t *)&b };
}
__device__ __forceinline__ __nv_bfloat162 fm_moved_scale(float s) { return __float2bfloat162_rn(s * 0x1p120f); }

/* Elements i .. i + 7 as bf16; i, latent multiples of 8, the row and its rest at multiples of 16 bytes. */
__device__ __forceinline__ uint4 fm_eight8(const char *row, int i, const fm_dcache &k) {
  if (i >= k.latent) return *(const uint4 *)(row + k.rest + (i - k.latent) * 2);
  uint2 w = *(const uint2 *)(row + i);
  __nv_bfloat162 s = fm_moved_scale(((const float *)(row + k.scales))[i / FM_CACHE_TILE]);
  uint2 a = fm_four8(w.x, s), b = fm_four8(w.y, s);
  return { a.x, a.y, b.x, b.y };
}

#endif
