/*
** attention.cuh - what the attention kernels share: where a sequence's keys are cut, and what a call is about.
*/
#ifndef FM_KERNELS_ATTENTION_CUH
#define FM_KERNELS_ATTENTION_CUH

#include "cuda.cuh"

/* ---- cuts: where the keys of any sequence are divided. A function of the key's index alone, so that a row's sum has one
   order whoever runs beside it. 128 wide up to 1024, 256 to 2048, then 512. ---- */

__host__ __device__ __forceinline__ int cut_of(int64_t j) {
  if (j < 1024) return (int)(j >> 7);
  if (j < 2048) return 4 + (int)(j >> 8);
  return 8 + (int)(j >> 9);
}
__host__ __device__ __forceinline__ int64_t cut_begin(int s) {
  if (s < 8) return (int64_t)s << 7;
  if (s < 12) return (int64_t)(s - 4) << 8;
  return (int64_t)(s - 8) << 9;
}

/* Shared by the kernels of one call. rows: n of them, whichever spans they are in. */
struct attn {
  fm_dcache k;
  fm_dspans s;
  const float *q; int64_t ldq;
  float *out; int64_t ldo;
  int heads, nope, rope, v, rank, width; /* width: of a query in the latent space, rank + rope */
  float scale;
  fm_dmat kv_b;
  float *qa32; bf16 *qa16;               /* (n, heads, width): absorbed queries, in one of the two */
  float *part, *part_ms;                 /* (n * heads, cuts, rank), (n * heads, cuts, 2): sums, maximum and sum of weights */
  int cuts;                              /* room for */
  int64_t row0; int n;                   /* rows row0 .. row0 + n - 1; the arrays above begin with row0 */
};

#endif
