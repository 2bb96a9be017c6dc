/*
** hopper.cuh - what the Hopper kernels share: barriers, the copy engine's boxes, wgmma's descriptors and fences, tensor maps.
*/
#ifndef FM_KERNELS_SM90_HOPPER_CUH
#define FM_KERNELS_SM90_HOPPER_CUH

#include <cuda.h>

#include "cuda.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define HOPPER 1
#endif

__device__ __forceinline__ uint32_t at_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void bar_init(uint64_t *b, int n) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(at_shared(b)), "r"(n) : "memory");
}
__device__ __forceinline__ void bar_wait(uint64_t *b, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(at_shared(b)), "r"(parity) : "memory");
}
__device__ __forceinline__ void bar_arrive(uint64_t *b) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(at_shared(b)) : "memory");
}
__device__ __forceinline__ void bar_expect(uint64_t *b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(at_shared(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void box2(void *to, const CUtensorMap *m, uint64_t *b, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               :: "r"(at_shared(to)), "l"(m), "r"(at_shared(b)), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void box3(void *to, const CUtensorMap *m, uint64_t *b, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               :: "r"(at_shared(to)), "l"(m), "r"(at_shared(b)), "r"(x), "r"(y), "r"(z) : "memory");
}

/* Descriptor of a K-major tile of 128-byte rows, swizzled by 128 bytes: groups of eight rows are 1024 bytes apart. */
__device__ __forceinline__ uint64_t tile_desc(uint32_t at) {
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

#define R8(d, i) "+f"(d[i]), "+f"(d[i+1]), "+f"(d[i+2]), "+f"(d[i+3]), "+f"(d[i+4]), "+f"(d[i+5]), "+f"(d[i+6]), "+f"(d[i+7])
#define R64(d, i) R8(d, i), R8(d, i+8), R8(d, i+16), R8(d, i+24), R8(d, i+32), R8(d, i+40), R8(d, i+48), R8(d, i+56)

__device__ __forceinline__ void multiply_begin() {
#ifdef HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void multiply_commit() {
#ifdef HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void multiply_wait() {
#ifdef HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
#endif
}

/* ---- tensor maps ---- */

using encode_fn = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                               const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                               CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's own function, found at run time: nothing is linked for it. */
inline encode_fn encoder(void) {
  static encode_fn fn;
  cudaDriverEntryPointQueryResult found;
  if (!fn && cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&fn, 12000, cudaEnableDefault, &found) != cudaSuccess) fn = NULL;
  return fn;
}

/* Boxes of 128 bytes by box_rows, swizzled, over n matrices (rows, k) `step` bytes apart whose rows are `pitch` bytes apart;
   step 0: one matrix, two coordinates. fetch: what the second-level cache takes at least. */
inline bool make_map(CUtensorMap *m, bool f8, const void *data, int64_t k, int64_t rows, int64_t pitch, int64_t n, int64_t step, int box_rows,
                     CUtensorMapL2promotion fetch = CU_TENSOR_MAP_L2_PROMOTION_L2_256B) {
  encode_fn encode = encoder();
  cuuint64_t dim[3] = { (cuuint64_t)k, (cuuint64_t)rows, (cuuint64_t)n };
  cuuint64_t stride[2] = { (cuuint64_t)pitch, (cuuint64_t)step };
  cuuint32_t box[3] = { f8 ? 128u : 64u, (cuuint32_t)box_rows, 1 }, one[3] = { 1, 1, 1 };
  return encode && encode(m, f8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, step ? 3 : 2, (void *)data, dim,
                          stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          fetch, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#endif
