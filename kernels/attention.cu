/*
** attention.cu - MLA and GQA over the paged cache.
**   mla_decode  absorbed: queries are taken into the latent space, every head reads the same rows of the cache. Keys are cut
**               by how many there are, the parts are made side by side and combined in order.
**   mla_prompt  expanded: keys and values of every head are made from the latent rows, then tensor-core attention.
**   gqa         prompts likewise, over cached keys and values laid side by side.
** Sizes or dtypes off these paths, and f32 arithmetic, run through plain kernels of the same form (plain_attention.cu).
**
**   absorb (q -> latent) -> parts (scores, softmax, sums of one cut) -> combine (-> latent answer -> values of the head)
*/
#include <math.h>

#include "absorb.cuh"
#include "plain_attention.cuh"
#include "quant.cuh"
#include "sm90/mla.cuh"
#include "sm90/prompt.cuh"
#include "tiles.cuh"

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
  x->heads = (int)a->n_heads, x->per = (int)(a->kv_b ? a->n_heads : a->n_heads / a->n_kv_heads), x->nope = (int)a->nope, x->rope = (int)a->rope;
  x->v = (int)(a->kv_b ? a->v_head_dim : a->nope), x->rank = (int)a->rank, x->width = (int)(a->rank + a->rope);
  x->scale = a->scale;
  if (a->kv_b) x->kv_b = fm_dmat_of(a->kv_b);
  x->n = (int)end_row(a->span, a->n_spans);
  x->cuts = room_for_cuts(c, a->span, a->n_spans, a->n_positions, x->heads);
  return FM_OK;
}

static bool fast_decode(fm_ctx *c, const fm_attn *a) {
  return c->arithmetic != FM_F32 && a->rank == MLA_RANK && a->rope == MLA_WIDTH - MLA_RANK && a->nope == 128 &&
         a->v_head_dim % 32 == 0 && fm_tiles_can(c, a->cache) &&
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
  TRY(fm_parts_take(c, x, x->rank));
  TRY(fm_absorb_run(c, x));
  TRY(x->k.dtype == FM_BF16 && fm_mla_can(c) ? fm_mla_run(c, x) : fm_tiles_run(c, x));
  return fm_combine_run(c, x);
}

/* The fast path stores rows on its way. */
static fm_status take_fresh(fm_ctx *c, attn *x, const fm_attn *a, bool fast) {
  const fm_fresh *f = a->fresh;
  if (!f || f->n == 0) return FM_OK;
  if (!fast) return fm_cuda_mla_store(c, a, f->q, f->kv, f->norm, f->eps, f->n, f->turn);
  x->fresh = { f->kv, f->norm, f->eps, (int)f->n, x->rank };
  return fm_turning_of(c, &x->fresh.turn, f->turn, f->n);
}

fm_status fm_cuda_mla_decode(fm_ctx *c, const fm_attn *a) {
  attn x;
  TRY(make_attn(c, &x, a));
  bool fast = fast_decode(c, a);
  TRY(take_fresh(c, &x, a, fast));
  int64_t n = x.n, used = c->slab_used, step = fast ? n : window_of(&x, x.rank);
  for (x.row0 = 0; x.row0 < n; x.row0 += step) {
    x.n = (int)(n - x.row0 < step ? n - x.row0 : step);
    TRY(fast ? fast_rows(c, &x) : fm_plain_mla(c, &x));
    c->slab_used = used;
  }
  return FM_OK;
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
  fm_where where;                        /* of keys and values in it */
  int head0;                             /* the first of this group of heads */
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
    const bf16 *row = j.kx + key * j.ldk + h / j.where.per * j.where.step;
    if (x < CK) copy16(&sm.k[buf][r * KP + x * 8], row + x * 8);
    else if (x < CK + CR)
      copy16(&sm.k[buf][r * KP + x * 8], page + ((key - j0) * (int64_t)j.a.k.width + j.a.rank + (x - CK) * 8) * 2);
    else copy16(&sm.v[buf][r * VP + (x - CK - CR) * 8], row + j.where.v_at + (x - CK - CR) * 8);
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

/* Cached rows of keys 0 .. n-1 side by side: the first `rank` elements, and the rotary parts behind them. Keys that nobody sees may hold
   anything: they become 0. */
__global__ void rows_kernel(bf16 *to, bf16 *pe, attn a, int span) {
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

/* Attention of `heads` heads of a span, from head0 on, over keys and values that stand side by side; q16: its queries in bf16 where Hopper's
   form is had. pe as fm_prompt has it. */
template <int NOPE, int ROPE, int V>
static fm_status attend_span(fm_ctx *c, const attn *x, const fm_span *s, int span, const bf16 *q16, const bf16 *kx, int64_t ldk, const bf16 *pe,
                             fm_where where, int head0, int heads) {
  if (q16) {
    int64_t ldq = x->heads * (int64_t)(NOPE + ROPE);
    fm_prompt p = { q16 + head0 * (int64_t)(NOPE + ROPE), ldq, kx, ldk, pe, x->out + s->row * x->ldo + head0 * (int64_t)V, x->ldo,
                    s->n, s->index + s->n, s->index, s->first_key, heads, where, x->scale };
    return fm_prompt_run(c, &p);
  }
  using shared = prompt_shared<NOPE, ROPE, V>;
  prompt_job j = { *x, kx, ldk, where, head0, span };
  cudaFuncSetAttribute(prompt_kernel<NOPE, ROPE, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(shared));
  fm_launch(c, prompt_kernel<NOPE, ROPE, V>, dim3((unsigned)((s->n + 63) / 64), (unsigned)heads), 128, sizeof(shared), j);
  return fm_cuda_launched(c, "attention of a prompt");
}

/* The queries of a span in bf16 where Hopper's form is had; else NULL. */
static fm_status take_queries(fm_ctx *c, bf16 **out, const attn *x, const fm_span *s, int span, int dim) {
  *out = NULL;
  if (!fm_prompt_can(c)) return FM_OK;
  TRY(fm_cuda_take_n(c, out, s->n * x->heads * dim));
  fm_launch(c, queries_kernel, (unsigned)s->n, 256, 0, *out, *x, span, x->heads * dim);
  return FM_OK;
}

constexpr int64_t EXPANDED = 256 << 20;  /* bytes of keys and values made at a time */

constexpr int NOPE = 128, ROPE = 64, V = 128;          /* of the released models */

static fm_status mla_span(fm_ctx *c, const attn *x, const fm_attn *a, int span) {
  const fm_span *s = &a->span[span];
  int64_t keys = s->index + s->n, each = NOPE + V, used = c->slab_used;
  int group = (int)(EXPANDED / (keys * each * 2));
  group = group < 1 ? 1 : group > x->heads ? x->heads : group;
  bf16 *latent, *kx, *pe, *q16;
  TRY(fm_cuda_take_n(c, &latent, keys * x->rank));
  TRY(fm_cuda_take_n(c, &kx, keys * each * group));
  TRY(fm_cuda_take_n(c, &pe, keys * ROPE));
  fm_launch(c, rows_kernel, (unsigned)keys, 96, 0, latent, pe, *x, span);
  TRY(take_queries(c, &q16, x, s, span, NOPE + ROPE));
  for (int h = 0; h < x->heads; h += group) {
    int n = x->heads - h < group ? x->heads - h : group;
    fm_mat w = *a->kv_b;
    w.rows = n * each;
    w.data = (const char *)w.data + h * each * w.cols * (w.dtype == FM_F8_E4M3 ? 1 : 2);
    if (w.scale) w.scale += h * each / 128 * ((w.cols + 127) / 128);
    TRY(fm_cuda_gemm(c, &w, latent, x->rank, kx, n * each, true, NULL, keys, false));
    TRY((attend_span<NOPE, ROPE, V>(c, x, s, span, q16, kx, n * each, pe, { 1, (int)each, NOPE }, h, n)));
  }
  c->slab_used = used;
  return FM_OK;
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
  bool fast = c->arithmetic != FM_F32 && a->nope == NOPE && a->rope == ROPE && a->v_head_dim == V && a->rank % 8 == 0 &&
              by_eights(c, a->cache) && a->ldq % 2 == 0 && a->ldo % 2 == 0 && (a->kv_b->dtype == FM_BF16 || a->kv_b->dtype == FM_F8_E4M3) && fm_cuda_has_gemm(c);
  if (!fast) return fm_cuda_mla_decode(c, a);
  TRY(make_attn(c, &x, a));
  for (int64_t i = 0; i < a->n_spans; i++)
    if (a->span[i].n > 0) TRY(mla_span(c, &x, a, (int)i));
  return FM_OK;
}

/* ---- grouped queries ---- */

static fm_status gqa_span(fm_ctx *c, const attn *x, const fm_attn *a, int span) {
  const fm_span *s = &a->span[span];
  int64_t keys = s->index + s->n, used = c->slab_used, width = a->cache->width;
  bf16 *kv, *q16;
  attn rows = *x;
  rows.rank = rows.width = (int)width;
  TRY(fm_cuda_take_n(c, &kv, keys * width));
  fm_launch(c, rows_kernel, (unsigned)keys, 96, 0, kv, (bf16 *)NULL, rows, span);
  TRY(take_queries(c, &q16, x, s, span, V));
  TRY((attend_span<V, 0, V>(c, x, s, span, q16, kv, width, NULL, { x->per, V, (int)width / 2 }, 0, x->heads)));
  c->slab_used = used;
  return FM_OK;
}

static fm_status gqa_rows(fm_ctx *c, attn *x, bool tiles) {
  if (!tiles) return fm_plain_gqa(c, x);
  TRY(fm_parts_take(c, x, x->v));
  TRY(fm_tiles_run_gqa(c, x));
  return fm_combine_gqa(c, x);
}

fm_status fm_cuda_gqa(fm_ctx *c, const fm_attn *a) {
  attn x;
  bool fast = c->arithmetic != FM_F32, tiles = fast && c->generated && fm_tiles_can_gqa(c, a);
  TRY(make_attn(c, &x, a));
  if (fast && !c->generated && a->nope == V && a->cache->dtype == FM_BF16 && by_eights(c, a->cache) && a->ldq % 2 == 0 && a->ldo % 2 == 0) {
    for (int64_t i = 0; i < a->n_spans; i++)
      if (a->span[i].n > 0) TRY(gqa_span(c, &x, a, (int)i));
    return FM_OK;
  }
  int64_t n = x.n, used = c->slab_used, step = tiles ? n : window_of(&x, x.v);
  for (x.row0 = 0; x.row0 < n; x.row0 += step) {
    x.n = (int)(n - x.row0 < step ? n - x.row0 : step);
    TRY(gqa_rows(c, &x, tiles));
    c->slab_used = used;
  }
  return FM_OK;
}
