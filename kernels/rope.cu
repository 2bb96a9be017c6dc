/*
** rope.cu - rotary positions in both pair layouts, and storing rows into the paged cache.
** One block a row; a row finds its span by asking all of them.
*/
#include "cuda.cuh"
#include "quant.cuh"

struct turn { const int32_t *pos; const float *cos, *sin; int dim, interleaved; };

static fm_status turn_of(fm_ctx *c, turn *t, const fm_rope *r, int64_t n) {
  const void *pos;
  TRY(fm_cuda_staged(c, &pos, r->pos, n * 4));
  *t = { (const int32_t *)pos, r->cos, r->sin, (int)r->dim, r->interleaved };
  return FM_OK;
}

__device__ void turn_vector(float *x, const turn &t, int64_t pos, int i) {
  int half = t.dim / 2, a = t.interleaved ? 2 * i : i, b = t.interleaved ? 2 * i + 1 : i + half;
  float cs = t.cos[pos * half + i], sn = t.sin[pos * half + i], u = x[a], v = x[b];
  x[a] = u * cs - v * sn;
  x[b] = u * sn + v * cs;
}

__device__ void turn_heads(float *x, int64_t stride, int64_t n_heads, const turn &t, int64_t pos) {
  int half = t.dim / 2;
  for (int64_t i = threadIdx.x; i < n_heads * half; i += blockDim.x) turn_vector(x + i / half * stride, t, pos, (int)(i % half));
}

/* The place of row `row` in the cache, or NULL; the same for the whole block. */
__device__ char *place_of(const fm_dcache &k, const fm_dspans &s, int64_t row) {
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

__device__ void store_row(char *to, const float *x, const fm_dcache &k) {
  if (k.dtype == FM_F8_E4M3) return fm_pack8(to, x, k);
  for (int i = threadIdx.x; i < k.width; i += blockDim.x) {
    if (k.dtype == FM_F32) ((float *)to)[i] = x[i];
    else ((bf16 *)to)[i] = __float2bfloat16_rn(x[i]);
  }
}

__global__ void rope_kernel(float *x, int64_t ldx, int64_t n_heads, int64_t stride, turn t) {
  fm_go_on();
  fm_wait();
  turn_heads(x + blockIdx.x * ldx, stride, n_heads, t, t.pos[blockIdx.x]);
}

fm_status fm_cuda_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r) {
  turn t;
  if (n == 0) return FM_OK;
  TRY(turn_of(c, &t, r, n));
  fm_launch(c, rope_kernel, (unsigned)n, 256, 0, x, ldx, n_heads, stride, t);
  return fm_cuda_launched(c, "rope");
}

__global__ void store_kernel(fm_dcache k, fm_dspans s, const float *x, int64_t ldx, int64_t first_row) {
  fm_go_on();
  fm_wait();
  int64_t row = first_row + blockIdx.x;
  char *to = place_of(k, s, row);
  if (to) store_row(to, x + row * ldx, k);
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

__device__ __forceinline__ void soon(const float *p) { asm volatile("prefetch.global.L1 [%0];" :: "l"(p)); }

/* Blocks 0 .. n-1: norm, turn and store a row of kv. Blocks n .. 2n-1: turn the heads of a row of q. */
__global__ void mla_store_kernel(fm_dcache k, fm_dspans s, float *q, int64_t ldq, int64_t n_heads, int64_t nope, float *kv,
                                 int rank, const float *norm, float eps, int n, turn t) {
  bool heads = (int)blockIdx.x >= n;
  int64_t row = heads ? blockIdx.x - n : blockIdx.x, pos = t.pos[row], half = t.dim / 2;
  // what the pass began with, and constants: looked up before the kernel ahead has ended
  char *to = heads ? NULL : place_of(k, s, row);
  if (threadIdx.x * 32 < half) soon(t.cos + pos * half + threadIdx.x * 32), soon(t.sin + pos * half + threadIdx.x * 32);
  if (!heads && threadIdx.x * 32 < rank) soon(norm + threadIdx.x * 32);
  fm_go_on();
  fm_wait();
  if (heads) {
    turn_heads(q + row * ldq + nope, nope + t.dim, n_heads, t, pos);
    return;
  }
  float *x = kv + row * k.width, inv = fm_inv_rms(x, rank, eps);
  for (int i = threadIdx.x; i < rank; i += 256) x[i] = norm[i] * (x[i] * inv);
  turn_heads(x + rank, 0, 1, t, pos);
  __syncthreads();
  if (to) store_row(to, x, k);
}

fm_status fm_cuda_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                            const fm_rope *r) {
  fm_dspans s;
  turn t;
  if (n == 0) return FM_OK;
  TRY(fm_cuda_spans(c, &s, a->span, a->n_spans));
  TRY(turn_of(c, &t, r, n));
  fm_launch(c, mla_store_kernel, (unsigned)(2 * n), 256, 0, fm_dcache_of(a->cache), s, q, a->ldq, a->n_heads, a->nope, kv,
            (int)a->rank, norm, eps, (int)n, t);
  return fm_cuda_launched(c, "mla_store");
}
