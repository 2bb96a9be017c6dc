/*
** attention.cu - MLA and GQA over the paged cache.
**   mla_decode  absorbed: queries are taken into the latent space, every head reads the same rows of the cache. Keys are cut
**               by how many there are, the parts are made side by side and combined in order.
**   mla_prompt  expanded: keys and values of every head are made from the latent rows, then tensor-core attention.
** Sizes or dtypes off these paths, and f32 arithmetic, run through plain kernels of the same form.
**
**   absorb (q -> latent) -> parts (scores, softmax, sums of one cut) -> combine (-> latent answer -> values of the head)
*/
#include <math.h>

#include "absorb.cuh"
#include "mla.cuh"
#include "quant.cuh"
#include "sm90/mla.cuh"
#include "sm90/prompt.cuh"

__device__ const fm_span *span_of(const fm_dspans &s, int64_t row) {
  __shared__ const fm_span *found;
  if (threadIdx.x == 0) found = nullptr;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < s.n; i += blockDim.x)
    if (row >= s.span[i].row && row < s.span[i].row + s.span[i].n) found = &s.span[i];
  __syncthreads();
  const fm_span *mine = found;
  __syncthreads();                       // the next call sets it anew
  return mine;
}

__device__ __forceinline__ float kv_b_at(const fm_dmat &w, int64_t r, int64_t i) {
  float v = fm_element(w.data, w.dtype, r * w.cols + i);
  return w.scale ? v * w.scale[r / 128 * w.across + i / 128] : v;
}

/* ---- absorb: qa[row][h] = { q_nope[h] W_UK[h], q_pe[h] }. A block: one head, up to 8 rows, 256 columns. ---- */

constexpr int ABSORB_ROWS = 8;

__global__ void __launch_bounds__(256) absorb_kernel(attn a) {
  extern __shared__ float q[];           // (8, nope + rope)
  int h = blockIdx.x, col = blockIdx.y * 256 + threadIdx.x, qk = a.nope + a.rope;
  int64_t row0 = blockIdx.z * (int64_t)ABSORB_ROWS;
  fm_wait();
  for (int i = threadIdx.x; i < ABSORB_ROWS * qk; i += 256)
    q[i] = row0 + i / qk < a.n ? a.q[(a.row0 + row0 + i / qk) * a.ldq + (int64_t)h * qk + i % qk] : 0.0f;
  __syncthreads();
  if (col >= a.width) return;
  float sum[ABSORB_ROWS] = {};
  if (col < a.rank) {
    int64_t r0 = (int64_t)h * (a.nope + a.v);
#pragma unroll 8
    for (int j = 0; j < a.nope; j++) {
      float w = kv_b_at(a.kv_b, r0 + j, col);
#pragma unroll
      for (int i = 0; i < ABSORB_ROWS; i++) sum[i] = fmaf(q[i * qk + j], w, sum[i]);
    }
  } else {
    for (int i = 0; i < ABSORB_ROWS; i++) sum[i] = q[i * qk + a.nope + col - a.rank];
  }
  for (int i = 0; i < ABSORB_ROWS && row0 + i < a.n; i++) {
    int64_t at = ((row0 + i) * a.heads + h) * a.width + col;
    if (a.qa16) a.qa16[at] = __float2bfloat16_rn(sum[i]);
    else a.qa32[at] = sum[i];
  }
}

/* ---- plain parts: one block a (row, head, cut), f32 ---- */

struct plain_form {                      /* where a key and a value stand in a cache row, for head h */
  const float *q; int64_t ldq, q_head, q_row0;   /* query of (row, h): q + (row - q_row0) * ldq + h * q_head */
  int k_dim, v_at, v_dim, per;           /* per: heads that share one; key of group g at g * k_dim, value at v_at + g * v_dim */
};

__device__ __forceinline__ float cache_at(const fm_dcache &k, const char *row, int i) {
  if (k.dtype == FM_F8_E4M3) return fm_at8(row, i, k);
  return k.dtype == FM_F32 ? ((const float *)row)[i] : __bfloat162float(((const bf16 *)row)[i]);
}

constexpr int PLAIN_DIMS = 8;            /* value dims a thread: 256 threads reach 2048 */

__global__ void __launch_bounds__(256) plain_part_kernel(attn a, plain_form f) {
  __shared__ float p[64];
  extern __shared__ float q[];
  int h = blockIdx.x % a.heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = h / f.per;
  int64_t row = a.row0 + blockIdx.x / a.heads;
  fm_wait();
  const fm_span *s = span_of(a.s, row);
  if (!s) return;
  int64_t last = s->index + row - s->row, width = cut_width(last + 1, a.heads), begin = blockIdx.y * width, end = begin + width;
  if (begin > last) return;
  const int32_t *pages = (const int32_t *)((const char *)s->pages + a.s.delta);
  for (int i = threadIdx.x; i < f.k_dim; i += 256) q[i] = f.q[(row - f.q_row0) * f.ldq + h * f.q_head + i];
  __syncthreads();
  float m = -INFINITY, sum = 0, acc[PLAIN_DIMS] = {};
  for (int64_t j0 = begin; j0 < end && j0 <= last; j0 += 64) {
    const char *page = fm_cache_row(a.k, pages, j0);
    int64_t pitch = a.k.pitch;
    for (int j = warp; j < 64; j += 8) {
      float v = -INFINITY;
      if (j0 + j <= last && j0 + j >= s->first_key) {
        v = 0;
        for (int i = lane; i < f.k_dim; i += 32) v = fmaf(q[i], cache_at(a.k, page + j * pitch, g * f.k_dim + i), v);
        v = fm_warp_sum(v) * a.scale;
      }
      if (lane == 0) p[j] = v;
    }
    __syncthreads();
    float big = m;
    for (int j = 0; j < 64; j++) big = fmaxf(big, p[j]);
    float keep = big == -INFINITY ? 1.0f : expf(m - big);
    sum *= keep;
    for (int i = 0; i < PLAIN_DIMS; i++) acc[i] *= keep;
    m = big;
    for (int j = 0; j < 64; j++) {
      if (p[j] == -INFINITY) continue;   // unseen keys may hold anything
      float e = expf(p[j] - m);
      sum += e;
#pragma unroll
      for (int i = 0; i < PLAIN_DIMS; i++) {
        int d = threadIdx.x + i * 256;
        if (d < f.v_dim) acc[i] = fmaf(e, cache_at(a.k, page + j * pitch, f.v_at + g * f.v_dim + d), acc[i]);
      }
    }
    __syncthreads();
  }
  int64_t at = blockIdx.x * (int64_t)a.cuts + blockIdx.y;
  for (int i = 0; i < PLAIN_DIMS; i++)
    if (threadIdx.x + i * 256 < f.v_dim) a.part[at * f.v_dim + threadIdx.x + i * 256] = acc[i];
  if (threadIdx.x == 0) a.part_ms[2 * at] = m, a.part_ms[2 * at + 1] = sum;
}

/* ---- combine: the parts of a row's head, in order; then out of the latent space where there is one ---- */

constexpr int COMBINE_ROWS = 8;

/* lat (dim): the answer of (row, head), by a block of 256. Zeros when it saw nothing. weight: room for a.cuts floats. */
__device__ void combine_one(float *lat, float *weight, const attn &a, const fm_span *s, int64_t row, int h, int dim) {
  __shared__ float total;
  int64_t at = ((row - a.row0) * a.heads + h) * a.cuts, seen = s ? s->index + row - s->row + 1 : 0;
  int first = s ? first_cut(s->first_key, cut_width(seen, a.heads)) : 0, n = cuts_of(seen, a.heads) - first, lane = threadIdx.x & 31;
  at += first;
  __syncthreads();
  if (threadIdx.x < 32) {
    float m = -INFINITY, sum = 0;
    for (int i = lane; i < n; i += 32) m = fmaxf(m, a.part_ms[2 * (at + i)]);
    m = fm_warp_max(m);
    for (int i = lane; i < n; i += 32) {
      float mi = a.part_ms[2 * (at + i)], w = mi > -INFINITY ? expf(mi - m) : mi == mi ? 0.0f : mi;
      weight[i] = w;
      if (w != 0) sum += w * a.part_ms[2 * (at + i) + 1];
    }
    sum = fm_warp_sum(sum);
    if (lane == 0) total = sum;
  }
  __syncthreads();
  float sum = total;
  for (int d = threadIdx.x; d < dim; d += 256) {
    float v = 0;
#pragma unroll 4
    for (int i = 0; i < n; i++)
      if (weight[i] != 0) v = fmaf(weight[i], a.part[(at + i) * dim + d], v);
    lat[d] = sum > 0 ? v / sum : sum == 0 ? 0.0f : v + sum;      // NaN stays NaN
  }
}

/* A block: one head, R rows, 32 values of the head; a warp makes four of them. shared: weight (cuts, rounded), lat (R, rank). */
template <int R> __global__ void __launch_bounds__(256) combine_kernel(attn a) {
  extern __shared__ __align__(16) float weight[];
  float *lat = weight + (a.cuts + 3) / 4 * 4;
  int h = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int64_t row0 = blockIdx.z * (int64_t)R;
  fm_wait();
  int rows = a.n - row0 < R ? (int)(a.n - row0) : R;
  uint32_t here = 0;                     // rows that stand in some span; others are left alone
  for (int i = 0; i < rows; i++) {
    const fm_span *s = span_of(a.s, a.row0 + row0 + i);
    here |= (uint32_t)(s != nullptr) << i;
    combine_one(lat + i * a.rank, weight, a, s, a.row0 + row0 + i, h, a.rank);
  }
  __syncthreads();
  for (int d = blockIdx.y * 32 + warp; d < (int)blockIdx.y * 32 + 32 && d < a.v; d += 8) {
    int64_t r = (int64_t)h * (a.nope + a.v) + a.nope + d;
    float sum[R] = {};
    for (int i = lane; i < a.rank; i += 32) {
      float w = kv_b_at(a.kv_b, r, i);
#pragma unroll
      for (int t = 0; t < R; t++)
        if (t < rows) sum[t] = fmaf(w, lat[t * a.rank + i], sum[t]);
    }
#pragma unroll
    for (int t = 0; t < R; t++) {
      float v = fm_warp_sum(sum[t]);
      if (lane == 0 && (here >> t & 1)) a.out[(a.row0 + row0 + t) * a.ldo + (int64_t)h * a.v + d] = v;
    }
  }
}

/* Straight to the answer; a block a (row, head). */
__global__ void __launch_bounds__(256) combine_gqa_kernel(attn a) {
  int64_t row = a.row0 + blockIdx.x / a.heads;
  int h = blockIdx.x % a.heads;
  extern __shared__ __align__(16) float weight[];
  fm_wait();
  const fm_span *s = span_of(a.s, row);
  if (s) combine_one(a.out + row * a.ldo + (int64_t)h * a.v, weight, a, s, row, h, a.v);
}

/* ---- launching ---- */

static int64_t end_row(const fm_span *s, int64_t n) {
  int64_t end = 0;
  for (int64_t i = 0; i < n; i++) end = s[i].row + s[i].n > end ? s[i].row + s[i].n : end;
  return end;
}

/* Rows of parts for the longest span. While a pass is noted the room must do for every length that may come. */
static int room_for_cuts(fm_ctx *c, const fm_span *s, int64_t n, int64_t n_positions, int heads) {
  int64_t last = 0;
  for (int64_t i = 0; i < n; i++) last = s[i].index + s[i].n > last ? s[i].index + s[i].n : last;
  if (c->generated && n_positions > last) last = n_positions;
  return max(cuts_room(last, heads), 1);
}

static fm_status make_attn(fm_ctx *c, attn *x, const fm_attn *a) {
  *x = {};
  x->k = fm_dcache_of(a->cache);
  TRY(fm_cuda_spans(c, &x->s, a->span, a->n_spans));
  x->q = a->q, x->ldq = a->ldq, x->out = a->out, x->ldo = a->ldo;
  x->heads = (int)a->n_heads, x->nope = (int)a->nope, x->rope = (int)a->rope;
  x->v = (int)(a->kv_b ? a->v_head_dim : a->nope), x->rank = (int)a->rank, x->width = (int)(a->rank + a->rope);
  x->scale = a->scale;
  if (a->kv_b) x->kv_b = fm_dmat_of(a->kv_b);
  x->n = (int)end_row(a->span, a->n_spans);
  x->cuts = room_for_cuts(c, a->span, a->n_spans, a->n_positions, x->heads);
  return FM_OK;
}

static fm_status take_parts(fm_ctx *c, attn *x, int64_t dim) {
  TRY(fm_cuda_take_n(c, &x->part, (int64_t)x->n * x->heads * x->cuts * dim));
  return fm_cuda_take_n(c, &x->part_ms, (int64_t)x->n * x->heads * x->cuts * 2);
}

static fm_status plain_parts(fm_ctx *c, const attn *x, const plain_form *f) {
  if (f->v_dim > 256 * PLAIN_DIMS)
    return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: attention values of %d elements, %d are the most", f->v_dim, 256 * PLAIN_DIMS);
  fm_launch(c, plain_part_kernel, dim3((unsigned)(x->n * x->heads), (unsigned)x->cuts), 256, f->k_dim * sizeof(float), *x, *f);
  return fm_cuda_launched(c, "attention");
}

static bool fast_decode(fm_ctx *c, const fm_attn *a) {
  return c->arithmetic != FM_F32 && a->rank == MLA_RANK && a->rope == MLA_WIDTH - MLA_RANK && a->nope == 128 &&
         a->v_head_dim % 32 == 0 && a->cache->page_stride % 16 == 0 && fm_mla_tiles_can(c, a->cache) &&
         (a->kv_b->dtype == FM_BF16 || a->kv_b->dtype == FM_F8_E4M3);
}

/* Rows whose parts fill about PARTS bytes; the fast path, whose rows are few, takes all. */
constexpr int64_t PARTS = 256 << 20;
static int64_t window_of(const attn *x, int64_t dim) {
  int64_t rows = PARTS / ((int64_t)x->heads * x->cuts * dim * 4);
  return rows < 1 ? 1 : rows;
}

static fm_status fast_rows(fm_ctx *c, attn *x) {
  TRY(fm_cuda_take_n(c, &x->qa16, (int64_t)x->n * x->heads * x->width));
  TRY(take_parts(c, x, x->rank));
  TRY(fm_absorb_run(c, x));
  TRY(x->k.dtype == FM_BF16 && fm_mla_can(c) ? fm_mla_run(c, x) : fm_mla_tiles_run(c, x));
  return fm_combine_run(c, x);
}

static fm_status plain_rows(fm_ctx *c, attn *x) {
  TRY(fm_cuda_take_n(c, &x->qa32, (int64_t)x->n * x->heads * x->width));
  TRY(take_parts(c, x, x->rank));
  unsigned groups = (unsigned)((x->n + ABSORB_ROWS - 1) / ABSORB_ROWS);
  fm_launch(c, absorb_kernel, dim3((unsigned)x->heads, (unsigned)((x->width + 255) / 256), groups), 256,
            ABSORB_ROWS * (x->nope + x->rope) * sizeof(float), *x);
  plain_form f = { x->qa32, (int64_t)x->heads * x->width, x->width, x->row0, x->width, 0, x->rank, x->heads };
  TRY(plain_parts(c, x, &f));
  fm_launch(c, combine_kernel<COMBINE_ROWS>, dim3((unsigned)x->heads, (unsigned)((x->v + 31) / 32), groups), 256,
            (COMBINE_ROWS * x->rank + (x->cuts + 3) / 4 * 4) * sizeof(float), *x);
  return fm_cuda_launched(c, "mla_decode");
}

fm_status fm_cuda_mla_decode(fm_ctx *c, const fm_attn *a) {
  attn x;
  TRY(make_attn(c, &x, a));
  bool fast = fast_decode(c, a);
  int64_t n = x.n, used = c->slab_used, step = fast ? n : window_of(&x, x.rank);
  for (x.row0 = 0; x.row0 < n; x.row0 += step) {
    x.n = (int)(n - x.row0 < step ? n - x.row0 : step);
    TRY(fast ? fast_rows(c, &x) : plain_rows(c, &x));
    c->slab_used = used;
  }
  return FM_OK;
}

fm_status fm_cuda_gqa(fm_ctx *c, const fm_attn *a) {
  attn x;
  TRY(make_attn(c, &x, a));
  int dim = (int)a->nope;
  int64_t n = x.n, used = c->slab_used, step = window_of(&x, dim);
  plain_form f = { a->q, a->ldq, dim, 0, dim, (int)(a->n_kv_heads * dim), dim, (int)(a->n_heads / a->n_kv_heads) };
  for (x.row0 = 0; x.row0 < n; x.row0 += step) {
    x.n = (int)(n - x.row0 < step ? n - x.row0 : step);
    TRY(take_parts(c, &x, x.v));
    TRY(plain_parts(c, &x, &f));
    fm_launch(c, combine_gqa_kernel, (unsigned)(x.n * x.heads), 256, (x.cuts + 3) / 4 * 4 * sizeof(float), x);
    c->slab_used = used;
  }
  return fm_cuda_launched(c, "gqa");
}

/* ---- prompts: expanded keys and values, tensor cores ----
**
** A block: 64 queries of one head, four warps of 16. Key tiles of 64 stand at fixed places of the sequence.
** kx (keys, heads of the group, nope + v) bf16 made from the latent rows; the rotary part comes from the cache.
*/

constexpr int BN = 64;

template <int NOPE, int ROPE, int V> struct prompt_shared {
  static constexpr int KP = NOPE + ROPE + 8, VP = V + 8;
  bf16 k[2][BN * KP];
  bf16 v[2][BN * VP];
};

struct prompt_job {
  attn a;
  const bf16 *kx; int64_t ldk;           /* row of key j: kx + j * ldk */
  int head0, heads;                      /* heads of this group */
  int span;
  int64_t blocks;
};

template <int NOPE, int ROPE, int V>
__device__ void fetch_tile(prompt_shared<NOPE, ROPE, V> &sm, int buf, const prompt_job &j, const int32_t *pages, int64_t j0, int64_t end,
                           int h) {
  constexpr int KP = prompt_shared<NOPE, ROPE, V>::KP, VP = prompt_shared<NOPE, ROPE, V>::VP;
  constexpr int CK = NOPE / 8, CR = ROPE / 8, CV = V / 8, C = CK + CR + CV;
  const char *page = fm_cache_row(j.a.k, pages, j0);
  for (int i = threadIdx.x; i < BN * C; i += 128) {
    int r = i / C, x = i % C;
    int64_t key = max(j0 + r, j.a.s.span[j.span].first_key);       // rows that nobody sees repeat one that is there: finite, and masked
    key = min(key, end - 1);
    const bf16 *row = j.kx + key * j.ldk + (int64_t)h * (NOPE + V);
    if (x < CK) copy16(&sm.k[buf][r * KP + x * 8], row + x * 8);
    else if (x < CK + CR)
      copy16(&sm.k[buf][r * KP + x * 8], page + ((key - j0) * (int64_t)j.a.k.width + j.a.rank + (x - CK) * 8) * 2);
    else copy16(&sm.v[buf][r * VP + (x - CK - CR) * 8], row + NOPE + (x - CK - CR) * 8);
  }
  copy_commit();
}

template <int NOPE, int ROPE, int V> __global__ void __launch_bounds__(128) prompt_kernel(const __grid_constant__ prompt_job j) {
  extern __shared__ __align__(16) char raw[];
  using shared = prompt_shared<NOPE, ROPE, V>;
  constexpr int QK = NOPE + ROPE, KP = shared::KP, VP = shared::VP;
  shared &sm = *(shared *)raw;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, h = blockIdx.y;
  fm_wait();
  const fm_span s = j.a.s.span[j.span];
  const int32_t *pages = (const int32_t *)((const char *)s.pages + j.a.s.delta);
  int64_t block = gridDim.x - 1 - blockIdx.x, r0 = block * 64 + warp * 16;      // longest first
  uint32_t q[QK / 16][4];
#pragma unroll
  for (int d = 0; d < QK / 16; d++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int64_t r = r0 + g + e % 2 * 8;
      float2 v = { 0, 0 };
      if (r < s.n) v = *(const float2 *)(j.a.q + (s.row + r) * j.a.ldq + (int64_t)(j.head0 + h) * QK + d * 16 + e / 2 * 8 + 2 * t);
      q[d][e] = fm_pack(v.x * j.a.scale, v.y * j.a.scale);
    }
  int64_t last_row = block * 64 + 63 < s.n - 1 ? block * 64 + 63 : s.n - 1, end = s.index + last_row + 1;
  int64_t begin = s.first_key / BN * BN;
  float acc[V / 8][4] = {}, m[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
  int64_t tiles = (end - begin + BN - 1) / BN;
  if (tiles > 0) fetch_tile<NOPE, ROPE, V>(sm, 0, j, pages, begin, end, h);
  for (int64_t i = 0; i < tiles; i++) {
    int64_t j0 = begin + i * BN;
    if (i + 1 < tiles) {
      fetch_tile<NOPE, ROPE, V>(sm, (i + 1) & 1, j, pages, j0 + BN, end, h);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const bf16 *k = sm.k[i & 1], *v = sm.v[i & 1];
    float sc[BN / 8][4] = {};
#pragma unroll
    for (int d = 0; d < QK / 16; d++)
#pragma unroll
      for (int n = 0; n < BN / 8; n += 2) {
        uint32_t b[4];
        matrix4(b, k + (n * 8 + lane % 8 + lane / 16 * 8) * KP + d * 16 + lane / 8 % 2 * 8);
        fm_mma(sc[n], q[d][0], q[d][1], q[d][2], q[d][3], b[0], b[1]);
        fm_mma(sc[n + 1], q[d][0], q[d][1], q[d][2], q[d][3], b[2], b[3]);
      }
    if (j0 + BN > s.index + block * 64 + warp * 16 || j0 < s.first_key) {
#pragma unroll
      for (int n = 0; n < BN / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int64_t key = j0 + n * 8 + 2 * t + e % 2, last = s.index + r0 + g + e / 2 * 8;
          if (key > last || key < s.first_key) sc[n][e] = -INFINITY;
        }
    }
    float keep[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
      float big = m[e];
#pragma unroll
      for (int n = 0; n < BN / 8; n++) big = fmaxf(big, fmaxf(sc[n][2 * e], sc[n][2 * e + 1]));
      big = fmaxf(big, __shfl_xor_sync(~0u, big, 1));
      big = fmaxf(big, __shfl_xor_sync(~0u, big, 2));
      keep[e] = m[e] == -INFINITY ? 0.0f : __expf(m[e] - big);
      m[e] = big;
      sum[e] *= keep[e];
#pragma unroll
      for (int n = 0; n < BN / 8; n++)
#pragma unroll
        for (int x = 2 * e; x < 2 * e + 2; x++) {
          sc[n][x] = sc[n][x] == -INFINITY ? 0.0f : __expf(sc[n][x] - big);
          sum[e] += sc[n][x];
        }
    }
#pragma unroll
    for (int n = 0; n < V / 8; n++) acc[n][0] *= keep[0], acc[n][1] *= keep[0], acc[n][2] *= keep[1], acc[n][3] *= keep[1];
#pragma unroll
    for (int d = 0; d < BN / 16; d++) {
      uint32_t p[4] = { fm_pack(sc[2 * d][0], sc[2 * d][1]), fm_pack(sc[2 * d][2], sc[2 * d][3]),
                        fm_pack(sc[2 * d + 1][0], sc[2 * d + 1][1]), fm_pack(sc[2 * d + 1][2], sc[2 * d + 1][3]) };
#pragma unroll
      for (int n = 0; n < V / 8; n += 2) {
        uint32_t b[4];
        matrix4_turned(b, v + (d * 16 + lane % 16) * VP + n * 8 + lane / 16 * 8);
        fm_mma(acc[n], p[0], p[1], p[2], p[3], b[0], b[1]);
        fm_mma(acc[n + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < 2; e++) {
    sum[e] += __shfl_xor_sync(~0u, sum[e], 1);
    sum[e] += __shfl_xor_sync(~0u, sum[e], 2);
    int64_t r = r0 + g + e * 8;
    if (r >= s.n) continue;
    float inv = sum[e] == 0 ? 0.0f : 1.0f / sum[e];
    float *to = j.a.out + (s.row + r) * j.a.ldo + (int64_t)(j.head0 + h) * V + 2 * t;
#pragma unroll
    for (int n = 0; n < V / 8; n++) *(float2 *)(to + n * 8) = { acc[n][2 * e] * inv, acc[n][2 * e + 1] * inv };
  }
}

/* Rows of keys 0 .. n-1 side by side: latent parts, and rotary parts. Keys that nobody sees may hold anything: they become 0. */
__global__ void latent_kernel(bf16 *to, bf16 *pe, attn a, int span) {
  fm_wait();
  const fm_span &s = a.s.span[span];
  const int32_t *pages = (const int32_t *)((const char *)s.pages + a.s.delta);
  const char *row = fm_cache_row(a.k, pages, blockIdx.x);
  bool seen = blockIdx.x >= s.first_key;
  for (int i = threadIdx.x; i < a.width / 8; i += blockDim.x) {
    uint4 v = { 0, 0, 0, 0 };
    if (seen) v = a.k.dtype == FM_F8_E4M3 ? fm_eight8(row, i * 8, a.k) : ((const uint4 *)row)[i];
    if (i < a.rank / 8) ((uint4 *)(to + blockIdx.x * (int64_t)a.rank))[i] = v;
    else ((uint4 *)(pe + blockIdx.x * (int64_t)a.rope))[i - a.rank / 8] = v;
  }
}

/* Queries of a span in bf16, (n, heads * qk). */
__global__ void queries_kernel(bf16 *to, attn a, int span, int ld) {
  fm_wait();
  const float *q = a.q + (a.s.span[span].row + blockIdx.x) * a.ldq;
  for (int i = threadIdx.x; i < ld; i += blockDim.x) to[blockIdx.x * (int64_t)ld + i] = __float2bfloat16_rn(q[i]);
}

constexpr int64_t EXPANDED = 256 << 20;  /* bytes of keys and values made at a time */

template <int NOPE, int ROPE, int V> static fm_status prompt_span(fm_ctx *c, const attn *x, const fm_attn *a, int64_t span) {
  const fm_span *s = &a->span[span];
  int64_t keys = s->index + s->n, each = NOPE + V, used = c->slab_used;
  int group = (int)(EXPANDED / (keys * each * 2));
  group = group < 1 ? 1 : group > x->heads ? x->heads : group;
  bf16 *latent, *kx, *pe, *qb = NULL;
  bool hopper = NOPE == 128 && ROPE == 64 && V == 128 && fm_prompt_can(c);
  int64_t ldq = x->heads * (int64_t)(NOPE + ROPE);
  using shared = prompt_shared<NOPE, ROPE, V>;
  TRY(fm_cuda_take_n(c, &latent, keys * x->rank));
  TRY(fm_cuda_take_n(c, &kx, keys * each * group));
  TRY(fm_cuda_take_n(c, &pe, keys * ROPE));
  fm_launch(c, latent_kernel, (unsigned)keys, 96, 0, latent, pe, *x, (int)span);
  if (hopper) {
    TRY(fm_cuda_take_n(c, &qb, s->n * ldq));
    fm_launch(c, queries_kernel, (unsigned)s->n, 256, 0, qb, *x, (int)span, (int)ldq);
  }
  cudaFuncSetAttribute(prompt_kernel<NOPE, ROPE, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(shared));
  for (int h = 0; h < x->heads; h += group) {
    int n = x->heads - h < group ? x->heads - h : group;
    fm_mat w = *a->kv_b;
    w.rows = n * each;
    w.data = (const char *)w.data + h * each * w.cols * (w.dtype == FM_F8_E4M3 ? 1 : 2);
    if (w.scale) w.scale += h * each / 128 * ((w.cols + 127) / 128);
    TRY(fm_cuda_gemm(c, &w, latent, x->rank, kx, n * each, true, NULL, keys, false));
    if (hopper) {
      fm_prompt p = { qb + h * (int64_t)(NOPE + ROPE), ldq, kx, n * each, pe, x->out + s->row * x->ldo + h * (int64_t)V, x->ldo,
                      s->n, keys, s->index, s->first_key, n, x->scale };
      TRY(fm_prompt_run(c, &p));
      continue;
    }
    prompt_job j = { *x, kx, n * each, h, n, (int)span, (s->n + 63) / 64 };
    fm_launch(c, prompt_kernel<NOPE, ROPE, V>, dim3((unsigned)j.blocks, (unsigned)n), 128, sizeof(shared), j);
  }
  c->slab_used = used;
  return fm_cuda_launched(c, "mla_prompt");
}

/* The cache's rows can be taken eight elements at a time. An f8 row is spread first, which Hopper's form does anyway. */
static bool by_eights(fm_ctx *c, const fm_cache *k) {
  bool row = k->dtype == FM_BF16 ? k->width % 8 == 0
                                 : k->dtype == FM_F8_E4M3 && k->latent % 8 == 0 && fm_cache_rest(k->latent) % 16 == 0 &&
                                   fm_cache_row_size(k->dtype, k->width, k->latent) % 16 == 0 && fm_prompt_can(c);
  return row && k->page_stride % 16 == 0;
}

fm_status fm_cuda_mla_prompt(fm_ctx *c, const fm_attn *a) {
  attn x;
  bool fast = c->arithmetic != FM_F32 && a->nope == 128 && a->rope == 64 && a->v_head_dim == 128 && a->rank % 8 == 0 &&
              by_eights(c, a->cache) && a->ldq % 2 == 0 && a->ldo % 2 == 0 && (a->kv_b->dtype == FM_BF16 || a->kv_b->dtype == FM_F8_E4M3) && fm_cuda_has_gemm(c);
  if (!fast) return fm_cuda_mla_decode(c, a);
  TRY(make_attn(c, &x, a));
  for (int64_t i = 0; i < a->n_spans; i++)
    if (a->span[i].n > 0) TRY((prompt_span<128, 64, 128>(c, &x, a, i)));
  return FM_OK;
}
