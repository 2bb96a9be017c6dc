/*
** plain_attention.cu - attention of any sizes and dtypes, in f32.
**
**   absorb   a block: one head, 8 rows, 128 latent columns; a thread makes four rows of a column
**   parts    a block: one (row, head) and one cut. Pages of 64 keys: four threads make a key's score, all 256 add its value
**   combine  a block: one head, 8 rows, 32 values. A warp a row joins the parts; then lane d of a warp makes its row's value d
**
** Weights are asked for before the kernel ahead has ended. A NaN comes through: no maximum and no weight of zero hides it.
*/
#include <math.h>

#include "plain_attention.cuh"
#include "quant.cuh"

constexpr int ROWS = 8;

/* T: the dtype of kv_b, or -1: as it says. */
template <int T> __device__ __forceinline__ float kv_b_at(const fm_dmat &w, int64_t r, int64_t i) {
  float v = fm_element(w.data, T < 0 ? w.dtype : T, r * w.cols + i);
  return w.scale ? v * w.scale[r / 128 * w.across + i / 128] : v;
}

/* to (n, 128) = rows r0 .. r0 + n - 1 of kv_b, columns i0 .. i0 + 127, `turned` (128, n + 1); 0 outside. By a block of 256, whose
   loops are short: fetching instructions for the first time takes longer than what they do. */
template <int T, bool TURNED> __device__ void stage_weights(float *to, const fm_dmat &w, int64_t r0, int n, int most, int i0) {
#pragma unroll 8
  for (int e = threadIdx.x; e < most * 128; e += 256) {
    int r = e / 128, i = e % 128;
    to[TURNED ? i * (most + 1) + r : e] = r < n && i0 + i < w.cols ? kv_b_at<T>(w, r0 + r, i0 + i) : 0.0f;
  }
}

/* ---- absorb: qa[row][h] = { q_nope[h] W_UK[h], q_pe[h] } ---- */

template <int T> __global__ void __launch_bounds__(256) absorb_kernel(attn a) {
  extern __shared__ __align__(16) float q[];                     // (nope + rope, ROWS)
  constexpr int STEP = 32;
  __shared__ float w[STEP * 128];
  int h = blockIdx.x, col = blockIdx.y * 128 + threadIdx.x % 128, half = threadIdx.x / 128 * 4, qk = a.nope + a.rope;
  int64_t row0 = blockIdx.z * (int64_t)ROWS, r0 = (int64_t)h * (a.nope + a.v);
  stage_weights<T, false>(w, a.kv_b, r0, a.nope, STEP, blockIdx.y * 128);
  fm_go_on();
  fm_wait();
  for (int i = threadIdx.x; i < ROWS * qk; i += 256) {
    int t = i / qk, j = i % qk;
    q[j * ROWS + t] = row0 + t < a.n ? a.q[(a.row0 + row0 + t) * a.ldq + (int64_t)h * qk + j] : 0.0f;
  }
  __syncthreads();
  float4 sum = { 0, 0, 0, 0 };
  for (int j0 = 0; j0 < a.nope; j0 += STEP) {
    if (j0) {
      __syncthreads();
      stage_weights<T, false>(w, a.kv_b, r0 + j0, a.nope - j0, STEP, blockIdx.y * 128);
      __syncthreads();
    }
    int n = min(STEP, a.nope - j0);
#pragma unroll 4
    for (int j = 0; j < n; j++) {
      float4 x = *(const float4 *)(q + (j0 + j) * ROWS + half);
      float v = w[j * 128 + threadIdx.x % 128];
      sum = { fmaf(x.x, v, sum.x), fmaf(x.y, v, sum.y), fmaf(x.z, v, sum.z), fmaf(x.w, v, sum.w) };
    }
  }
  if (col >= a.width) return;
  if (col >= a.rank) sum = *(const float4 *)(q + (a.nope + col - a.rank) * ROWS + half);
  const float out[4] = { sum.x, sum.y, sum.z, sum.w };
#pragma unroll
  for (int t = 0; t < 4; t++)
    if (row0 + half + t < a.n) a.qa32[((row0 + half + t) * a.heads + h) * a.width + col] = out[t];
}

/* ---- parts ---- */

struct plain_form {                      /* where a key and a value stand in a cache row, for head h */
  const float *q; int64_t ldq, q_head, q_row0;   /* query of (row, h): q + (row - q_row0) * ldq + h * q_head */
  int k_dim, v_at, v_dim, per;           /* per: heads that share one; key of group g at g * k_dim, value at v_at + g * v_dim */
};

constexpr int MOST_VALUES = 2048;        /* eight a thread */

__device__ __forceinline__ float cache_at(const fm_dcache &k, const char *row, int i) {
  if (k.dtype == FM_F8_E4M3) return fm_at8(row, i, k);
  return k.dtype == FM_F32 ? ((const float *)row)[i] : __bfloat162float(((const bf16 *)row)[i]);
}

/* f[u] = elements i + u * step .. + 7 of cache rows `row` + u * pitch, N of them, all asked for before one is used; 0 from `end` on,
   and where there is no row any more. WIDE: bf16, all of it at multiples of eight elements. */
template <bool WIDE, int N>
__device__ __forceinline__ void cache_eights(float (&f)[N][8], const fm_dcache &k, const char *row, int64_t pitch, int rows, int i, int step, int end) {
  if constexpr (WIDE) {
    uint4 raw[N];
#pragma unroll
    for (int u = 0; u < N; u++)
      raw[u] = u < rows && i + u * step < end ? *(const uint4 *)(row + u * pitch + (i + u * step) * 2) : uint4{ 0, 0, 0, 0 };
#pragma unroll
    for (int u = 0; u < N; u++) fm_eight<0>(f[u], raw[u]);
  } else {
#pragma unroll
    for (int u = 0; u < N; u++)
#pragma unroll
      for (int e = 0; e < 8; e++)
        f[u][e] = u < rows && i + u * step + e < end ? cache_at(k, row + u * pitch, i + u * step + e) : 0.0f;
  }
}

template <bool WIDE> __global__ void __launch_bounds__(256) part_kernel(attn a, plain_form f) {
  extern __shared__ __align__(16) float q[];                     // (k_dim, up to a multiple of eight)
  constexpr int N = WIDE ? 5 : 1;        // vectors on their way at a time
  __shared__ __align__(16) float red[MOST_VALUES];
  __shared__ float p[64], weight[64];
  int h = blockIdx.x % a.heads, lane = threadIdx.x & 31, g = h / f.per, wide = (f.k_dim + 7) / 8 * 8;
  int key = threadIdx.x / 4, quarter = threadIdx.x % 4;
  int columns = (f.v_dim + 7) / 8, sets = 256 / columns, set = threadIdx.x / columns, column = threadIdx.x % columns * 8;
  int k_at = g * f.k_dim, v_at = f.v_at + g * f.v_dim;
  int64_t row = a.row0 + blockIdx.x / a.heads;
  const fm_span *s = fm_warp_span(a.s, row);                     // stands there since the pass began
  fm_go_on();
  fm_wait();
  if (!s) return;
  int64_t last = s->index + row - s->row, width = cut_width(last + 1, a.heads), begin = blockIdx.y * width, end = min(begin + width, last + 1);
  int64_t first = s->first_key;
  if (begin > last) return;
  const int32_t *pages = (const int32_t *)((const char *)s->pages + a.s.delta);
  for (int i = threadIdx.x; i < wide; i += 256) q[i] = i < f.k_dim ? f.q[(row - f.q_row0) * f.ldq + h * f.q_head + i] : 0.0f;
  __syncthreads();
  float m = -INFINITY, sum = 0, acc[8] = {};
  for (int64_t j0 = begin; j0 < end; j0 += 64) {
    const char *page = fm_cache_row(a.k, pages, j0);
    int64_t pitch = a.k.pitch;
    int from = (int)max(first - j0, (int64_t)0), to = (int)min(end - j0, (int64_t)64);         // others may hold anything
    bool in = key >= from && key < to;
    float v = 0;
    if (in) {
#pragma unroll 1
      for (int i = quarter * 8; i < wide; i += N * 32) {
        float x[N][8];
        cache_eights<WIDE>(x, a.k, page + key * pitch, 0, N, k_at + i, 32, k_at + f.k_dim);
#pragma unroll
        for (int u = 0; u < N; u++) {
          if (i + u * 32 >= wide) break;
#pragma unroll
          for (int e = 0; e < 8; e++) v = fmaf(q[i + u * 32 + e], x[u][e], v);
        }
      }
    }
    v += __shfl_xor_sync(~0u, v, 1);
    v += __shfl_xor_sync(~0u, v, 2);
    if (quarter == 0) p[key] = in ? v * a.scale : -INFINITY;
    __syncthreads();
    float lo = p[lane], hi = p[lane + 32], big = fmaxf(m, fm_warp_max(fmaxf(lo, hi)));         // every warp by itself
    float keep = m == big ? 1.0f : expf(m - big);
    lo = lo == -INFINITY ? 0.0f : expf(lo - big), hi = hi == -INFINITY ? 0.0f : expf(hi - big);
    m = big, sum = fmaf(sum, keep, fm_warp_sum(lo + hi));
    if (threadIdx.x < 32) weight[lane] = lo, weight[lane + 32] = hi;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 8; e++) acc[e] *= keep;
    if (set < sets) {
      int at = from > set ? set + (from - set + sets - 1) / sets * sets : set;      // this set's first key that is seen
#pragma unroll 1
      for (int j = at; j < to; j += N * sets) {
        float x[N][8];
        cache_eights<WIDE>(x, a.k, page + j * pitch, sets * pitch, (to - j + sets - 1) / sets, v_at + column, 0, v_at + f.v_dim);
#pragma unroll
        for (int u = 0; u < N; u++) {
          if (j + u * sets >= to) break;
#pragma unroll
          for (int e = 0; e < 8; e++) acc[e] = fmaf(weight[j + u * sets], x[u][e], acc[e]);
        }
      }
    }
  }
  if (set < sets) {
#pragma unroll
    for (int e = 0; e < 8; e += 4) *(float4 *)(red + set * columns * 8 + column + e) = { acc[e], acc[e + 1], acc[e + 2], acc[e + 3] };
  }
  __syncthreads();
  int64_t at = blockIdx.x * (int64_t)a.cuts + blockIdx.y;
  for (int d = threadIdx.x; d < f.v_dim; d += 256) {
    float v = 0;
    for (int i = 0; i < sets; i++) v += red[i * columns * 8 + d];
    a.part[at * f.v_dim + d] = v;
  }
  if (threadIdx.x == 0) a.part_ms[2 * at] = sum == sum ? m : sum, a.part_ms[2 * at + 1] = sum;
}

/* ---- combine: the parts of a row's head, in order; then out of the latent space where there is one ---- */

/* to (dim) = the answer of (row, h) by a warp: zeros when it saw nothing. weight: room for a.cuts floats. */
__device__ void join_parts(float *to, float *weight, const attn &a, const fm_span *s, int64_t row, int h, int dim) {
  int64_t seen = s->index + row - s->row + 1, at = ((row - a.row0) * a.heads + h) * a.cuts;
  int first = first_cut(s->first_key, cut_width(seen, a.heads)), n = cuts_of(seen, a.heads) - first, lane = threadIdx.x & 31;
  const float *ms = a.part_ms + 2 * (at + first), *part = a.part + (at + first) * dim;
  float m = -INFINITY, sum = 0;
  for (int i = lane; i < n; i += 32) m = fmaxf(m, ms[2 * i]);
  m = fm_warp_max(m);
  for (int i = lane; i < n; i += 32) {
    float mi = ms[2 * i], w = mi == -INFINITY ? 0.0f : expf(mi - m);
    weight[i] = w;
    sum = fmaf(w, ms[2 * i + 1], sum);
  }
  sum = fm_warp_sum(sum);
  __syncwarp();
  for (int d0 = lane; d0 < dim; d0 += 128) {
    float v[4] = {};
#pragma unroll 4
    for (int i = 0; i < n; i++) {
      float w = weight[i];
#pragma unroll
      for (int x = 0; x < 4; x++)
        if (d0 + x * 32 < dim) v[x] = fmaf(w, part[i * (int64_t)dim + d0 + x * 32], v[x]);
    }
#pragma unroll
    for (int x = 0; x < 4; x++)
      if (d0 + x * 32 < dim) to[d0 + x * 32] = sum > 0 ? v[x] / sum : sum == 0 ? v[x] : sum;   // NaN stays NaN
  }
}

constexpr int SLICE = 128;               /* columns of the latent whose weights stand in shared memory at a time */

/* shared: the rows' answers in the latent space (ROWS, rank up to a multiple of SLICE), then room for weights (ROWS, cuts). */
template <int T> __global__ void __launch_bounds__(256) combine_kernel(attn a) {
  extern __shared__ __align__(16) float lat[];
  __shared__ float w[SLICE * 33];
  int h = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, d = blockIdx.y * 32 + lane;
  int pitch = (a.rank + SLICE - 1) / SLICE * SLICE;
  int64_t r0 = (int64_t)h * (a.nope + a.v) + a.nope + blockIdx.y * 32, at = blockIdx.z * (int64_t)ROWS + warp, row = a.row0 + at;
  int values = min(a.v - (int)blockIdx.y * 32, 32);
  stage_weights<T, true>(w, a.kv_b, r0, values, 32, 0);
  const fm_span *s = at < a.n ? fm_warp_span(a.s, row) : nullptr;          // rows in no span are left alone
  fm_go_on();
  fm_wait();
  float *mine = lat + warp * pitch, sum = 0;
  if (s) join_parts(mine, lat + ROWS * pitch + warp * a.cuts, a, s, row, h, a.rank);
  for (int i = a.rank + lane; i < pitch; i += 32) mine[i] = 0;
  for (int i0 = 0; i0 < a.rank; i0 += SLICE) {
    if (i0) {
      __syncthreads();
      stage_weights<T, true>(w, a.kv_b, r0, values, 32, i0);
    }
    __syncthreads();
    if (!s) continue;
#pragma unroll 2
    for (int i = 0; i < SLICE; i += 4) {
      float4 x = *(const float4 *)(mine + i0 + i);
      const float *v = w + i * 33 + lane;
      sum = fmaf(v[0], x.x, sum), sum = fmaf(v[33], x.y, sum), sum = fmaf(v[66], x.z, sum), sum = fmaf(v[99], x.w, sum);
    }
  }
  if (s && d < a.v) a.out[row * a.ldo + (int64_t)h * a.v + d] = sum;
}

/* Straight to the answer; a warp a (row, head). shared: room for weights (8, cuts). */
__global__ void __launch_bounds__(256) combine_gqa_kernel(attn a) {
  extern __shared__ __align__(16) float weight[];
  int warp = threadIdx.x >> 5;
  int64_t pair = blockIdx.x * (int64_t)8 + warp, row = a.row0 + pair / a.heads;
  int h = (int)(pair % a.heads);
  const fm_span *s = pair < (int64_t)a.n * a.heads ? fm_warp_span(a.s, row) : nullptr;
  fm_go_on();
  fm_wait();
  if (s) join_parts(a.out + row * a.ldo + (int64_t)h * a.v, weight + warp * a.cuts, a, s, row, h, a.v);
}

/* ---- launching ---- */

fm_status fm_parts_take(fm_ctx *c, attn *x, int dim) {
  TRY(fm_cuda_take_n(c, &x->part, (int64_t)x->n * x->heads * x->cuts * dim));
  return fm_cuda_take_n(c, &x->part_ms, (int64_t)x->n * x->heads * x->cuts * 2);
}

static fm_status make_parts(fm_ctx *c, attn *x, const plain_form *f) {
  bool wide = x->k.dtype == FM_BF16 && x->k.pitch % 16 == 0 && x->k.page_stride % 16 == 0 && (uintptr_t)x->k.base % 16 == 0 &&
              f->k_dim % 8 == 0 && f->v_dim % 8 == 0 && f->v_at % 8 == 0;
  if (f->v_dim > MOST_VALUES)
    return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: attention values of %d elements, %d are the most", f->v_dim, MOST_VALUES);
  TRY(fm_parts_take(c, x, f->v_dim));
  fm_launch(c, wide ? part_kernel<true> : part_kernel<false>, dim3((unsigned)(x->n * x->heads), (unsigned)x->cuts), 256,
            (f->k_dim + 7) / 8 * 8 * sizeof(float), *x, *f);
  return fm_cuda_launched(c, "attention");
}

template <int T> static fm_status mla(fm_ctx *c, attn *x) {
  unsigned groups = (unsigned)((x->n + ROWS - 1) / ROWS), heads = (unsigned)x->heads;
  size_t shared = ROWS * ((x->rank + SLICE - 1) / SLICE * SLICE + x->cuts) * sizeof(float);
  fm_launch(c, absorb_kernel<T>, dim3(heads, (unsigned)((x->width + 127) / 128), groups), 256,
            ROWS * (x->nope + x->rope) * sizeof(float), *x);
  plain_form f = { x->qa32, (int64_t)x->heads * x->width, x->width, x->row0, x->width, 0, x->rank, x->heads };
  TRY(make_parts(c, x, &f));
  cudaFuncSetAttribute(combine_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
  fm_launch(c, combine_kernel<T>, dim3(heads, (unsigned)((x->v + 31) / 32), groups), 256, shared, *x);
  return fm_cuda_launched(c, "mla_decode");
}

fm_status fm_plain_mla(fm_ctx *c, attn *x) {
  TRY(fm_cuda_take_n(c, &x->qa32, (int64_t)x->n * x->heads * x->width));
  if (x->kv_b.dtype == FM_F8_E4M3) return mla<FM_F8_E4M3>(c, x);
  return x->kv_b.dtype == FM_BF16 ? mla<FM_BF16>(c, x) : mla<-1>(c, x);
}

fm_status fm_plain_gqa(fm_ctx *c, attn *x) {
  plain_form f = { x->q, x->ldq, x->v, 0, x->v, x->k.width / 2, x->v, x->per };
  TRY(make_parts(c, x, &f));
  return fm_combine_gqa(c, x);
}

fm_status fm_combine_gqa(fm_ctx *c, const attn *x) {
  fm_launch(c, combine_gqa_kernel, (unsigned)(((int64_t)x->n * x->heads + 7) / 8), 256, 8 * x->cuts * sizeof(float), *x);
  return fm_cuda_launched(c, "gqa");
}
