/*
** cuda.cuh - what the files of the CUDA device share: its state, checks, and small helpers of the kernels.
*/
#ifndef FM_KERNELS_CUDA_CUH
#define FM_KERNELS_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

extern "C" {
#include "base/status.h"
#include "op/backend.h"
}

using bf16 = __nv_bfloat16;

struct fm_graph;                          /* one noted pass; cuda.cu */
struct fm_lt;                             /* cuBLASLt; matmul.cu */
struct fm_member;                         /* this device's end of a group of ranks; comm.cu */

struct fm_cuda {
  fm_device device;                       /* first */
  int index, n_sm, major, minor;
  char compute[16];
  cudaStream_t stream;
  struct { char *host, *dev; int64_t size, used; } stage;
  struct { char *buf[2]; cudaEvent_t free[2]; int next; } ring;      /* pinned, for uploads */
  struct fm_graph *graphs, *noting;
  struct fm_lt *lt;
  struct fm_member *members;
};

inline fm_cuda *fm_cuda_of(fm_ctx *c) { return (fm_cuda *)c->dev; }

/* Notes no pass any more. */
void fm_cuda_forget(fm_cuda *d);

/* FM_OK, or FM_EDEVICE with the driver's words in err. */
fm_status fm_cuda_check(fm_error *err, cudaError_t e, const char *what);
/* After a launch. */
inline fm_status fm_cuda_launched(fm_ctx *c, const char *what) { return fm_cuda_check(&c->err, cudaGetLastError(), what); }

/* `size` bytes of device scratch, given back by whoever set c->slab_used back. */
fm_status fm_cuda_take(fm_ctx *c, void **out, int64_t size);
template <typename T> inline fm_status fm_cuda_take_n(fm_ctx *c, T **out, int64_t n) {
  return fm_cuda_take(c, (void **)out, n * (int64_t)sizeof(T));
}

/* The device's copy of staged host memory; of other memory a fresh one, which costs a wait. */
fm_status fm_cuda_staged(fm_ctx *c, const void **out, const void *host, int64_t size);
/* The same for spans: page lists are at span.pages + delta bytes. */
struct fm_dspans { const fm_span *span; int64_t delta, n; };
fm_status fm_cuda_spans(fm_ctx *c, fm_dspans *out, const fm_span *span, int64_t n);

/* A kernel that may begin before the one ahead has ended: it calls fm_wait() before it reads what that one wrote. `cluster`
   blocks next to each other run side by side; 1: any. */
template <typename... P, typename... A>
inline void fm_launch_clusters(fm_ctx *c, void (*kernel)(P...), unsigned cluster, dim3 grid, dim3 block, size_t shared, A... args) {
  cudaLaunchConfig_t cfg = {};
  cudaLaunchAttribute attr[2];
  attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attr[0].val.programmaticStreamSerializationAllowed = 1;
  attr[1].id = cudaLaunchAttributeClusterDimension;
  attr[1].val.clusterDim.x = cluster, attr[1].val.clusterDim.y = attr[1].val.clusterDim.z = 1;
  cfg.gridDim = grid, cfg.blockDim = block, cfg.dynamicSmemBytes = shared, cfg.stream = fm_cuda_of(c)->stream;
  cfg.attrs = attr, cfg.numAttrs = fm_cuda_of(c)->major < 9 ? 0 : cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&cfg, kernel, P(args)...);
}
template <typename... P, typename... A>
inline void fm_launch(fm_ctx *c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
  fm_launch_clusters(c, kernel, 1, grid, block, shared, args...);
}

__device__ __forceinline__ void fm_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Lets the kernel behind begin; what this one still writes is seen after its end. */
__device__ __forceinline__ void fm_go_on() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ float fm_warp_sum(float v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float fm_warp_max(float v) {
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

/* A barrier of a block's first 256 threads, whatever others it has. */
__device__ __forceinline__ void fm_sync_256() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

/* Sum over a block's first 256 threads, the same for all of them and for any grid. */
__device__ __forceinline__ float fm_block_sum(float v) {
  __shared__ float part[8];
  v = fm_warp_sum(v);
  fm_sync_256();
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
  fm_sync_256();
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

/* 1 / rms of a row of dim elements, by a block of 256 threads: every kernel that norms does it by this one order. */
__device__ __forceinline__ float fm_inv_rms(const float *x, int64_t dim, float eps) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < dim; i += 256) sum = fmaf(x[i], x[i], sum);
  return rsqrtf(fm_block_sum(sum) / (float)dim + eps);
}

__device__ __forceinline__ float fm_silu(float x) { return x / (1.0f + __expf(-x)); }

__device__ __forceinline__ float fm_f8(uint8_t b) {
  __nv_fp8_e4m3 v;
  v.__x = b;
  return (float)v;
}

/* Element i of a weight in its stored form, f8 without its scale. */
__device__ __forceinline__ float fm_element(const void *p, int t, int64_t i) {
  if (t == FM_F32) return ((const float *)p)[i];
  if (t == FM_BF16) return __bfloat162float(((const bf16 *)p)[i]);
  if (t == FM_F16) return __half2float(((const __half *)p)[i]);
  return fm_f8(((const uint8_t *)p)[i]);
}

/* A weight as kernels take it. */
struct fm_dmat { const char *data; const float *scale; int64_t rows, cols; int dtype, across; };
inline fm_dmat fm_dmat_of(const fm_mat *m) {
  return { (const char *)m->data, m->scale, m->rows, m->cols, (int)m->dtype, (int)((m->cols + 127) / 128) };
}

/* A paged cache; pitch: bytes of a row; latent, scales, rest: of an f8 row, how many f8 and where the others stand. */
struct fm_dcache { char *base; int64_t page_stride; int width, dtype, pitch, latent, scales, rest; };
inline fm_dcache fm_dcache_of(const fm_cache *k) {
  return { k->base, k->page_stride, (int)k->width, (int)k->dtype, (int)fm_cache_row_size(k->dtype, k->width, k->latent),
           (int)k->latent, (int)fm_cache_scales(k->latent), (int)fm_cache_rest(k->latent) };
}
__device__ __forceinline__ char *fm_cache_row(const fm_dcache &k, const int32_t *pages, int64_t j) {
  return k.base + pages[j / FM_PAGE] * k.page_stride + (j % FM_PAGE) * k.pitch;
}

/* mma.m16n8k16, bf16 in, f32 out. */
__device__ __forceinline__ void fm_mma(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t fm_pack(float lo, float hi) {
  __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  return *(uint32_t *)&v;
}

/* Two f8 (bytes `which` 0: 0, 1; 1: 2, 3 of w) to bf16 pairs times 2^-120: exponent and mantissa are moved, not converted. */
__device__ __forceinline__ uint32_t fm_f8_pair(uint32_t w, int which) {
  uint32_t t = __byte_perm(w, 0, which ? 0x3424 : 0x1404);
  return (t & 0x80008000u) | ((t & 0x7f007f00u) >> 4);
}

/* Eight neighbouring weights as f32: bf16 (16 bytes) or f8 (8 bytes, without the scale). */
template <int F8> __device__ __forceinline__ uint4 fm_raw8(const char *p) {
  uint4 v = { 0, 0, 0, 0 };
  if constexpr (F8) {
    uint2 h = *(const uint2 *)p;
    v.x = h.x, v.y = h.y;
  } else v = *(const uint4 *)p;
  return v;
}
template <int F8> __device__ __forceinline__ void fm_eight(float (&f)[8], const uint4 &v) {
  const uint32_t *w = (const uint32_t *)&v;
  if constexpr (F8) {
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] = fm_f8((uint8_t)(w[i / 4] >> (i % 4 * 8)));
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) f[2 * i] = __uint_as_float(w[i] << 16), f[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
  }
}

/* ---- the table's operations ---- */
fm_status fm_cuda_embed(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n);
fm_status fm_cuda_rms_norm(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w, int64_t n,
                           int64_t dim, float eps);
fm_status fm_cuda_matmul(fm_ctx *c, const fm_mm *mm, int64_t n_mm);
fm_status fm_cuda_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r);
fm_status fm_cuda_cache_store(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans, const float *x,
                              int64_t ldx);
fm_status fm_cuda_turn(fm_ctx *c, const fm_turn *t);
fm_status fm_cuda_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                            const fm_rope *r);
fm_status fm_cuda_mla_prompt(fm_ctx *c, const fm_attn *a);
fm_status fm_cuda_mla_decode(fm_ctx *c, const fm_attn *a);
fm_status fm_cuda_gqa(fm_ctx *c, const fm_attn *a);
fm_status fm_cuda_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                        const fm_route *r, int64_t n);
fm_status fm_cuda_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                          const fm_experts *e, int64_t n);
fm_status fm_cuda_experts_of(fm_ctx *c, void *answers, const float *x, const int32_t *id, int64_t first, const fm_experts *e, int64_t n);
fm_status fm_cuda_draw(fm_ctx *c, fm_drawn *out, const float *logits, const fm_draw_rule *rule, int64_t n,
                       int64_t vocab_size, int64_t n_valid);

/* ---- shared between files ---- */
/* out (n, w.rows) = w xb, tensor cores, for many rows. out f32, or bf16 when out_bf16. */
fm_status fm_cuda_gemm(fm_ctx *c, const fm_mat *w, const bf16 *xb, int64_t ldx, void *out, int64_t ldo, bool out_bf16,
                       const float *bias, int64_t n, bool add);
bool      fm_cuda_has_gemm(fm_ctx *c);
/* Weights so small that reading them is nothing: prompts go the way of few rows, which needs no cuBLASLt and unpacks no f8. */
inline bool fm_cuda_small(const fm_mat *w) { return w->cols <= 512 && w->rows * w->cols <= 1 << 20; }
void      fm_cuda_lt_close(fm_cuda *d);

#endif
