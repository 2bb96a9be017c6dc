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

/* The sizes of the released models, which the tensor-core forms of mla_decode are for. */
constexpr int MLA_WIDTH = 576, MLA_RANK = 512;

/* ---- asynchronous copies into shared memory, and matrices out of it ---- */

__device__ __forceinline__ uint32_t smem_at(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(void *to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(smem_at(to)), "l"(from));
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N)); }
__device__ __forceinline__ void matrix4(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_at(p)));
}
__device__ __forceinline__ void matrix4_turned(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_at(p)));
}

#endif
