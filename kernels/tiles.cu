/*
** tiles.cu - the parts of attention on mma.sync, for every tensor core from 8.0 on: absorbed MLA over a bf16 cache where Hopper's own
** form (sm90/mla.cu) cannot be had, over an f8 cache everywhere; grouped queries over a bf16 cache.
**
** A block: 16 (row, head) pairs of one span and one cut, whose heads read the same keys. Eight warps.
**   pages of 64 keys -> shared memory, two in flight (cp.async); f8 ones are spread to bf16 there, which is exact
**   scores: warp w makes those of keys 8w .. 8w+7 for the 16 queries; softmax over the page by all
**   values: warp w sums an eighth of the columns
*/
#include "tiles.cuh"
#include "quant.cuh"

/* What of a key's row comes into shared memory: KEY elements that are multiplied with a query; VALUE elements from VALUE_AT on. */
struct latent { static constexpr int WIDTH = MLA_WIDTH, KEY = MLA_WIDTH, VALUE_AT = 0, VALUE = MLA_RANK, BLOCKS = 1; static constexpr bool F8 = false, GROUPED = false; };
struct latent8 : latent { static constexpr bool F8 = true; };
struct grouped { static constexpr int WIDTH = 256, KEY = 128, VALUE_AT = 128, VALUE = 128, BLOCKS = 2; static constexpr bool F8 = false, GROUPED = true; };

template <class F> constexpr int PITCH = F::WIDTH + 8;            /* +8: rows start in different banks */
constexpr int PP = 64 + 8;
constexpr int ROW8 = 656;                                         /* bytes of an f8 row */

template <class F> struct tiles {
  bf16 page[F::F8 ? 1 : 2][64 * PITCH<F>];
  char packed[2][F::F8 ? 64 * ROW8 : 16];                         /* f8 pages as they come */
  bf16 q[16 * PITCH<F>];
  bf16 p[16 * PP];
  float score[16][65];
  float keep[16], m[16], sum[16];
};

/* What a block works at. Keys are counted from the cut's begin: `from` .. `until` - 1 are seen by somebody. */
struct work {
  int warp, lane, g, t;                                           /* g, t: this lane's row and column of an mma tile */
  int pairs;                                                      /* of the tile */
  int64_t first, begin;                                           /* the first pair, of all of the call's that read these keys */
  const int32_t *pages;
  int n_pages, from, until;
  int last0, last1;                                               /* the last key that pairs first + g, first + g + 8 see */
};

__device__ work work_of(const attn &a, const items<16> &it) {
  const fm_span &s = a.s.span[it.span];
  work w;
  w.warp = threadIdx.x >> 5, w.lane = threadIdx.x & 31, w.g = w.lane / 4, w.t = w.lane % 4;
  w.pairs = it.pairs, w.first = (s.row + it.row) * a.per + it.first, w.begin = it.begin;
  w.pages = (const int32_t *)((const char *)s.pages + a.s.delta);
  w.n_pages = (int)((it.end - it.begin + 63) / 64);
  w.from = (int)(s.first_key - it.begin), w.until = (int)(it.end - it.begin);
  int64_t sees = s.index + it.row - it.begin;
  w.last0 = w.g < w.pairs ? (int)(sees + (it.first + w.g) / a.per) : -1;
  w.last1 = w.g + 8 < w.pairs ? (int)(sees + (it.first + w.g + 8) / a.per) : -1;
  return w;
}

/* The row of a pair among the call's rows, and its head; blockIdx.y: which heads' keys. */
__device__ __forceinline__ int64_t row_of(const attn &a, int64_t pair) { return pair / a.per; }
__device__ __forceinline__ int head_of(const attn &a, int64_t pair) { return (int)(blockIdx.y * a.per + pair % a.per); }

template <class F> __device__ uint4 query_eight(const attn &a, int64_t pair, int d) {
  if constexpr (!F::GROUPED) return *(const uint4 *)(a.qa16 + pair * F::KEY + d);
  const float4 *q = (const float4 *)(a.q + row_of(a, pair) * a.ldq + head_of(a, pair) * (int64_t)F::KEY + d);
  float4 lo = q[0], hi = q[1];
  return { fm_pack(lo.x, lo.y), fm_pack(lo.z, lo.w), fm_pack(hi.x, hi.y), fm_pack(hi.z, hi.w) };
}

template <class F> __device__ void take_queries(tiles<F> &sm, const attn &a, const work &w) {
  for (int i = threadIdx.x; i < 16 * (F::KEY / 8); i += 256) {
    int r = i / (F::KEY / 8), d = i % (F::KEY / 8) * 8;
    uint4 v = { 0, 0, 0, 0 };
    if (r < w.pairs) v = query_eight<F>(a, w.first + r, d);
    *(uint4 *)(sm.q + r * PITCH<F> + d) = v;
  }
  if (threadIdx.x < 16) sm.m[threadIdx.x] = -INFINITY, sm.sum[threadIdx.x] = 0;
}

template <class F> __device__ void fetch_page(tiles<F> &sm, int buf, const attn &a, const char *from) {
  if constexpr (F::F8) {
    for (int i = threadIdx.x; i < 64 * ROW8 / 16; i += 256) copy16(sm.packed[buf] + i * 16, from + i * 16);
  } else {
    for (int i = threadIdx.x; i < 64 * (F::WIDTH / 8); i += 256) {
      int j = i / (F::WIDTH / 8), d = i % (F::WIDTH / 8) * 8, at = d;
      if constexpr (F::GROUPED) at += blockIdx.y * F::KEY + (d < F::KEY ? 0 : a.k.width / 2 - F::KEY);
      copy16(sm.page[buf] + j * PITCH<F> + d, from + (j * (int64_t)a.k.width + at) * 2);
    }
  }
  copy_commit();
}

/* An f8 page to bf16. Sixteen f8, or eight of the rotary part, a turn; keys that nobody sees become 0. */
__device__ void spread_page(tiles<latent8> &sm, int buf, int j0, const work &w) {
  constexpr int EACH = MLA_RANK / 16 + (MLA_WIDTH - MLA_RANK) / 8;
  for (int i = threadIdx.x; i < 64 * EACH; i += 256) {
    int j = i / EACH, x = i % EACH;
    const char *row = sm.packed[buf] + j * ROW8;
    uint4 lo = { 0, 0, 0, 0 }, hi = lo;
    bool seen = j0 + j < w.until && j0 + j >= w.from;
    if (x < MLA_RANK / 16) {
      if (seen) {
        uint4 v = *(const uint4 *)(row + x * 16);
        __nv_bfloat162 s = fm_moved_scale(((const float *)(row + MLA_RANK))[x / 8]);
        uint2 a = fm_four8(v.x, s), b = fm_four8(v.y, s), c = fm_four8(v.z, s), d = fm_four8(v.w, s);
        lo = { a.x, a.y, b.x, b.y }, hi = { c.x, c.y, d.x, d.y };
      }
      uint4 *to = (uint4 *)(sm.page[0] + j * PITCH<latent8> + x * 16);
      to[0] = lo, to[1] = hi;
    } else {
      int d = (x - MLA_RANK / 16) * 8;
      if (seen) lo = *(const uint4 *)(row + MLA_RANK + MLA_RANK / FM_CACHE_TILE * 4 + d * 2);
      *(uint4 *)(sm.page[0] + j * PITCH<latent8> + MLA_RANK + d) = lo;
    }
  }
}

/* Keys that nobody sees may hold anything, and nothing times infinity is NaN. */
template <class F> __device__ void clear_unseen(bf16 *page, int j0, const work &w) {
  if (j0 + 64 <= w.until && j0 >= w.from) return;
  for (int x = threadIdx.x; x < 64 * (F::VALUE / 8); x += 256) {
    int r = x / (F::VALUE / 8), d = F::VALUE_AT + x % (F::VALUE / 8) * 8;
    if (j0 + r >= w.until || j0 + r < w.from) *(uint4 *)(page + r * PITCH<F> + d) = { 0, 0, 0, 0 };
  }
}

template <class F> __device__ void make_scores(tiles<F> &sm, const bf16 *page, int j0, float scale, const work &w) {
  float sc[2][4] = {};                   // two chains hide the latency of one
#pragma unroll 6
  for (int d = 0; d < F::KEY; d += 32) {
    uint32_t b[4], q0[4], q1[4];
    matrix4(b, page + (w.warp * 8 + w.lane % 8) * PITCH<F> + d + w.lane / 8 * 8);
    matrix4(q0, sm.q + (w.lane % 16) * PITCH<F> + d + w.lane / 16 * 8);
    matrix4(q1, sm.q + (w.lane % 16) * PITCH<F> + d + 16 + w.lane / 16 * 8);
    fm_mma(sc[0], q0[0], q0[1], q0[2], q0[3], b[0], b[1]);
    fm_mma(sc[1], q1[0], q1[1], q1[2], q1[3], b[2], b[3]);
  }
#pragma unroll
  for (int e = 0; e < 4; e++) {
    int r = w.g + e / 2 * 8, j = w.warp * 8 + 2 * w.t + e % 2;
    bool see = j0 + j <= (e < 2 ? w.last0 : w.last1) && j0 + j >= w.from;
    sm.score[r][j] = see ? (sc[0][e] + sc[1][e]) * scale : -INFINITY;
  }
}

/* A warp a query: maximum, weights, sum. */
template <class F> __device__ void soften(tiles<F> &sm, const work &w) {
  for (int r = w.warp; r < 16; r += 8) {
    float u = sm.score[r][w.lane], v = sm.score[r][w.lane + 32], was = sm.m[r];
    float m = fmaxf(was, fm_warp_max(fmaxf(u, v)));
    u = u == -INFINITY ? 0.0f : __expf(u - m);
    v = v == -INFINITY ? 0.0f : __expf(v - m);
    bf16 pu = __float2bfloat16_rn(u), pv = __float2bfloat16_rn(v);
    sm.p[r * PP + w.lane] = pu;
    sm.p[r * PP + w.lane + 32] = pv;
    float total = fm_warp_sum(__bfloat162float(pu) + __bfloat162float(pv));
    __syncwarp();
    if (w.lane == 0) {
      float keep = was == -INFINITY ? 0.0f : __expf(was - m);
      sm.keep[r] = keep;
      sm.sum[r] = sm.sum[r] * keep + total;
      sm.m[r] = m;
    }
  }
}

template <class F> __device__ void add_values(float (&acc)[F::VALUE / 64][4], const tiles<F> &sm, const bf16 *page, const work &w) {
  float k0 = sm.keep[w.g], k1 = sm.keep[w.g + 8];
#pragma unroll
  for (int n = 0; n < F::VALUE / 64; n++) acc[n][0] *= k0, acc[n][1] *= k0, acc[n][2] *= k1, acc[n][3] *= k1;
#pragma unroll
  for (int j = 0; j < 64; j += 16) {
    uint32_t p[4];
    matrix4(p, sm.p + (w.lane % 16) * PP + j + w.lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < F::VALUE / 64; n += 2) {
      uint32_t b[4];
      matrix4_turned(b, page + (j + w.lane % 16) * PITCH<F> + F::VALUE_AT + w.warp * (F::VALUE / 8) + n * 8 + w.lane / 16 * 8);
      fm_mma(acc[n], p[0], p[1], p[2], p[3], b[0], b[1]);
      fm_mma(acc[n + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
    }
  }
}

template <class F> __device__ __forceinline__ int64_t part_of(const attn &a, int64_t pair, int cut) {
  if constexpr (F::GROUPED) pair = row_of(a, pair) * a.heads + head_of(a, pair);
  return pair * a.cuts + cut;
}

template <class F> __device__ void give_parts(const float (&acc)[F::VALUE / 64][4], const tiles<F> &sm, const attn &a, int cut, const work &w) {
  for (int e = 0; e < 2; e++) {
    if (w.g + e * 8 >= w.pairs) continue;
    float *to = a.part + part_of<F>(a, w.first + w.g + e * 8, cut) * F::VALUE + w.warp * (F::VALUE / 8) + 2 * w.t;
#pragma unroll
    for (int n = 0; n < F::VALUE / 64; n++) *(float2 *)(to + n * 8) = { acc[n][2 * e], acc[n][2 * e + 1] };
  }
  if (threadIdx.x < w.pairs) {
    float *ms = a.part_ms + 2 * part_of<F>(a, w.first + threadIdx.x, cut);
    ms[0] = sm.m[threadIdx.x], ms[1] = sm.sum[threadIdx.x];
  }
}

template <class F> __device__ void make_parts(tiles<F> &sm, const attn &a, const items<16> &it) {
  work w = work_of(a, it);
  float acc[F::VALUE / 64][4] = {};
  take_queries(sm, a, w);
  fetch_page(sm, 0, a, fm_cache_row(a.k, w.pages, w.begin));
  for (int i = 0; i < w.n_pages; i++) {
    int j0 = i * 64;
    if (i + 1 < w.n_pages) {
      fetch_page(sm, (i + 1) & 1, a, fm_cache_row(a.k, w.pages, w.begin + j0 + 64));
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    bf16 *page = sm.page[F::F8 ? 0 : i & 1];
    if constexpr (F::F8) {
      spread_page(sm, i & 1, j0, w);
      __syncthreads();
    }
    make_scores(sm, page, j0, a.scale, w);
    __syncthreads();
    soften(sm, w);
    if constexpr (!F::F8) clear_unseen<F>(page, j0, w);
    __syncthreads();
    add_values(acc, sm, page, w);
    __syncthreads();
  }
  give_parts(acc, sm, a, it.cut, w);
  __syncthreads();
}

template <class F> __global__ void __launch_bounds__(256, F::BLOCKS) part_kernel(attn a) {
  extern __shared__ __align__(16) char raw[];
  tiles<F> &sm = *(tiles<F> *)raw;
  fm_go_on();
  fm_wait();
  items<16> it = { blockIdx.x };
  for (; it.find(a); it.next += gridDim.x)
    if (it.begin < it.end) make_parts(sm, a, it);
}

template <class F> static bool has_room(fm_ctx *c) {
  int most = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, fm_cuda_of(c)->index);
  return most >= (int)sizeof(tiles<F>);
}

bool fm_tiles_can(fm_ctx *c, const fm_cache *k) {
  if (k->width != MLA_WIDTH || k->page_stride % 16) return false;
  return k->dtype == FM_F8_E4M3 ? k->latent == MLA_RANK && has_room<latent8>(c) : k->dtype == FM_BF16 && has_room<latent>(c);
}

bool fm_tiles_can_gqa(fm_ctx *c, const fm_attn *a) {
  return a->cache->dtype == FM_BF16 && a->nope == grouped::KEY && a->cache->page_stride % 16 == 0 && a->ldq % 4 == 0 && has_room<grouped>(c);
}

/* groups: how many heads' keys there are. */
template <class F> static fm_status run(fm_ctx *c, const attn *x, int groups) {
  int blocks = (fm_cuda_of(c)->n_sm * F::BLOCKS + groups - 1) / groups;
  cudaFuncSetAttribute(part_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(tiles<F>));
  fm_launch(c, part_kernel<F>, dim3((unsigned)blocks, (unsigned)groups), 256, sizeof(tiles<F>), *x);
  return fm_cuda_launched(c, "attention");
}

fm_status fm_tiles_run(fm_ctx *c, const attn *x) { return x->k.dtype == FM_F8_E4M3 ? run<latent8>(c, x, 1) : run<latent>(c, x, 1); }
fm_status fm_tiles_run_gqa(fm_ctx *c, const attn *x) { return run<grouped>(c, x, x->heads / x->per); }
