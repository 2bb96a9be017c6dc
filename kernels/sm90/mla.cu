/*
** mla.cu - the parts of absorbed MLA on Hopper: scores, softmax and sums of one cut of a sequence, wgmma.
**
** A block (persistent) takes items: TILE (row, head) pairs of one span and one cut. A warp finds them, some ahead; one thread asks
** the copy engine for the queries of the next items and for pages of 64 keys, over the ends of items. Two warpgroups share the work on every page:
** the page's owner (they take turns) makes the scores of all pairs and their softmax and leaves the weights to the other; each
** of them sums one half of the latent columns. While one makes weights the tensor cores work for the other.
**
**   owner of page p                                    the other
**     scores p              64 x 64,  K = 576            (scores p + 1)
**     sums += weights p-1   64 x 256, K = 64 (shared)    weights p-1 -> sums (registers)
**     softmax p, weights -> the page's last 64 columns, which nobody needs any more
**     sums += weights p                (registers)       sums += weights p (shared)
**
** A half of a page is asked for anew as soon as the warpgroup that sums it is done with it. Where two tiles of 64 pairs read the
** same keys (PAIR) two blocks are a cluster: each asks for one half of every page, for both.
**
**   shared memory: queries, SLOTS tiles of 9 x (TILE x 64); pages 2 x 9 x (64 x 64); bf16, swizzled by 128 bytes
*/
#include <math.h>

#include "sm90/hopper.cuh"
#include "sm90/mla.cuh"

constexpr int BOX = 64 * 128, PAGE = 9 * BOX;       /* bytes of 64 rows of 64 bf16; of a page */

/* d (64 x 64) = a b^T + keep * d, both K-major */
__device__ __forceinline__ void multiply_scores(float (&d)[32], uint64_t a, uint64_t b, int keep) {
#ifdef HOPPER
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
    "%32, %33, p, 1, 1, 0, 0; }"
    : R8(d, 0), R8(d, 8), R8(d, 16), R8(d, 24) : "l"(a), "l"(b), "r"(keep));
#endif
}
#define SUMS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121," \
  "%122,%123,%124,%125,%126,%127}"
/* d (64 x 256) += a (64 x 16) b (16 x 256, its 256 by boxes of 64); a in registers, or in shared memory, K-major */
__device__ __forceinline__ void multiply_values(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
#ifdef HOPPER
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " SUMS ", {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
    : R64(d, 0), R64(d, 64) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}
__device__ __forceinline__ void multiply_values(float (&d)[128], uint64_t a, uint64_t b) {
#ifdef HOPPER
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " SUMS ", %128, %129, 1, 1, 1, 0, 1;"
    : R64(d, 0), R64(d, 64) : "l"(a), "l"(b));
#endif
}
__device__ __forceinline__ uint64_t value_desc(uint32_t at) {
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(BOX >> 4) << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
__device__ __forceinline__ float exp2_fast(float x) {            /* minus infinity: 0 */
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* ---- clusters of two blocks ---- */

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t r = 0;
#ifdef HOPPER
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
  return r;
}
__device__ __forceinline__ void cluster_sync() {
#ifdef HOPPER
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void bar_arrive_at(uint64_t *b, uint32_t rank) {
#ifdef HOPPER
  asm volatile("{ .reg .b32 r; mapa.shared::cluster.u32 r, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [r]; }"
               :: "r"(at_shared(b)), "r"(rank) : "memory");
#endif
}
/* One box of a page, which is read once: for this block, or for both of the cluster. */
template <bool PAIR> __device__ __forceinline__ void page_box(void *to, const CUtensorMap *m, uint64_t *b, int x, int page, uint64_t policy) {
#ifdef HOPPER
  if constexpr (PAIR)
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6, %7;"
                 :: "r"(at_shared(to)), "l"(m), "r"(at_shared(b)), "r"(x), "r"(0), "r"(page), "h"((uint16_t)3), "l"(policy) : "memory");
  else
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;"
                 :: "r"(at_shared(to)), "l"(m), "r"(at_shared(b)), "r"(x), "r"(0), "r"(page), "l"(policy) : "memory");
#endif
}

/* ---- what a block shares ---- */

struct job {                             /* an item, as the warpgroups need it; keys counted from the cut's beginning */
  int pages;                             /* -1: there is no item any more */
  int pairs, head;                       /* pairs there are, head of the first */
  int last, from, until;                 /* the last key that the first pair sees; keys that some pair sees */
  int64_t pair; int cut;                 /* where its parts go */
};

/* An item as it was found, ahead of its turn. */
constexpr int AHEAD = 4, MOST_PAGES = 8192 / FM_PAGE;            /* of the widest cut there is */
struct found { job j; int old; int number[MOST_PAGES]; };      /* old: pages that hold no row of this pass; where the pages stand */

/* Half h of a page is columns 256 h .. 256 h + 255, summed by warpgroup h. The rotary columns travel with the half of the
   warpgroup that does not own the page: it is the last to read what stands there. */
struct state {
  uint64_t q_full[4], q_empty[4], full[2][2], empty[2][2], weights[2], sums, known[AHEAD], free[AHEAD];
  job jobs[4];
  found ahead[AHEAD];
  float top[2][64], keep[2][64];         /* after page p of parity g: maximum, and what older sums are multiplied by */
  float sum[2][64];                      /* of item i of parity g: warpgroup 1's sums of weights */
};

constexpr size_t SHARED = 3 * (size_t)PAGE + 1024 + sizeof(state);

template <int TILE, bool PAIR> struct form {
  static constexpr int SLOTS = 64 / TILE, BLOCKS = PAIR ? 2 : 1;
  static constexpr int Q_BOX = TILE * 128, QUERIES = 9 * Q_BOX;
};

/* ---- a warp that finds items, ahead of the thread that asks for their pages ---- */

template <int TILE, bool PAIR> __device__ void find_items(const attn &a, state *b) {
  using f = form<TILE, PAIR>;
  int lane = threadIdx.x & 31, rank = PAIR ? cluster_rank() : 0;
  uint32_t n = 0;
  items<TILE * f::BLOCKS> it = { (int64_t)blockIdx.x / f::BLOCKS };
  for (bool there = true; there; it.next += gridDim.x / f::BLOCKS) {
    there = it.find(a);
    if (there && it.end <= it.begin) continue;
    found &to = b->ahead[n % AHEAD];
    bar_wait(&b->free[n % AHEAD], (n / AHEAD & 1) ^ 1);
    if (there) {
      const fm_span &s = a.s.span[it.span];
      const int32_t *pages = (const int32_t *)((const char *)s.pages + a.s.delta) + it.begin / FM_PAGE;
      int first = it.first + rank * TILE, row = it.row + first / a.heads, n_pages = (int)((it.end - it.begin + 63) / 64);
      for (int p = lane; p < n_pages; p += 32) to.number[p] = pages[p];
      if (lane == 0) {
        to.old = (int)max((s.index - it.begin) / FM_PAGE, (int64_t)0);
        to.j = { n_pages, PAIR ? TILE : it.pairs, first % a.heads, (int)(s.index + row - it.begin),
                 (int)max(s.first_key - it.begin, (int64_t)0), (int)(it.end - it.begin), (s.row + it.row - a.row0) * a.heads + first, it.cut };
      }
    } else if (lane == 0) to.j.pages = -1;
    bar_arrive(&b->known[n++ % AHEAD]);
  }
}

/* ---- the asking thread ---- */

template <bool PAIR>
__device__ void ask_half(char *page, state *b, const CUtensorMap *km, uint32_t turn, int h, uint32_t rank, int number, uint64_t policy) {
  int g = turn & 1, columns = h == g ? 4 : 5;
  uint32_t parity = (turn >> 1 & 1) ^ 1;
  bool mine = !PAIR || (int)rank == h;
  if (mine) bar_wait(&b->empty[g][h], parity);
  else bar_wait(&b->full[g][h], parity);                         // what came before has come
  bar_expect(&b->full[g][h], columns * BOX);
  if (!mine) return;
  for (int i = h * 4; i < h * 4 + 4; i++) page_box<PAIR>(page + g * PAGE + i * BOX, km, &b->full[g][h], i * 64, number, policy);
  if (columns == 5) page_box<PAIR>(page + g * PAGE + 8 * BOX, km, &b->full[g][h], 512, number, policy);
}

/* Pages that hold no row of this pass are asked for before the kernel ahead has ended; spans and page lists came before it. */
template <int TILE, bool PAIR>
__device__ void fetch(const attn &a, char *q, char *page, state *b, const CUtensorMap *qm, const CUtensorMap *km) {
  using f = form<TILE, PAIR>;
  uint32_t turn = 0, n = 0, rank = PAIR ? cluster_rank() : 0;
  uint64_t policy = 0;
#ifdef HOPPER
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  bool waited = false;
  for (;; n++) {
    const found &it = b->ahead[n % AHEAD];
    int slot = n % f::SLOTS, p = 0, n_pages;
    bar_wait(&b->known[n % AHEAD], n / AHEAD & 1);
    bar_wait(&b->q_empty[slot], (n / f::SLOTS & 1) ^ 1);
    b->jobs[slot] = it.j;
    n_pages = it.j.pages;
    if (n_pages < 0) break;
    auto ask = [&] {
      for (int h = 0; h < 2; h++) ask_half<PAIR>(page, b, km, turn, (turn & 1) ^ h, rank, it.number[p], policy);  // as they become free
      p++, turn++;
    };
    if (!waited) {
      while (p < 2 && p < it.old && p < n_pages) ask();
      fm_wait();
    }
    waited = true;
    bar_expect(&b->q_full[slot], f::QUERIES);
    for (int i = 0; i < 9; i++)
      box2(q + slot * f::QUERIES + i * f::Q_BOX, qm, &b->q_full[slot], i * 64, (int)it.j.pair);
    while (p < n_pages) ask();
    bar_arrive(&b->free[n % AHEAD]);
  }
  if (!waited) fm_wait();
  bar_arrive(&b->q_full[n % f::SLOTS]);
}

/* ---- the two warpgroups ---- */

__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" :: "r"(2 + group) : "memory"); }

/* Rows of a page that nobody sees become zeros: they may hold anything, and nothing times infinity is NaN. By the owner. */
__device__ void clear_rows(char *page, int from, int until, int group) {
  for (int i = threadIdx.x % 128; i < 64 * 9 * 8; i += 128) {
    int r = i / 72, x = i % 72;
    if (r < from || r >= until) *(uint4 *)(page + x / 8 * BOX + r * 128 + x % 8 * 16) = { 0, 0, 0, 0 };
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  group_sync(group);
}

__device__ __forceinline__ void scale_sums(float (&acc)[128], const float (&keep)[2]) {
  if (!__any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f)) return;        // the maximum stands for most pages
#pragma unroll
  for (int i = 0; i < 128; i++) acc[i] *= keep[i / 2 % 2];
}

/* This thread's rows of a tile: r and r + 8, with every fourth pair of columns. */
struct rows {
  int r, t;
  int last[2];                           /* the last key each sees; -1: there is no such row */
  float m[2], sum[2];                    /* of scores; of weights of pages that this warpgroup owns, this thread's columns */
};

/* Scores of a page become weights, in registers (w) and in the page's last box (at); both rows' keep. j0: the page's first key. */
__device__ __forceinline__ void weigh(float (&sc)[32], uint32_t (&w)[4][4], float (&keep)[2], rows &x, const job &j, int j0, float scale,
                                      uint32_t at) {
  bool part = j0 + 63 > j.last || j0 < j.from;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    if (part) {
#pragma unroll
      for (int n = 0; n < 16; n++) {
        int key = j0 + n / 2 * 8 + 2 * x.t + n % 2;
        if (key > x.last[e] || key < j.from) sc[n / 2 * 4 + 2 * e + n % 2] = -INFINITY;
      }
    }
    float big = x.m[e];
#pragma unroll
    for (int n = 0; n < 8; n++) big = fmaxf(big, fmaxf(sc[n * 4 + 2 * e], sc[n * 4 + 2 * e + 1]));
    big = fmaxf(big, __shfl_xor_sync(~0u, big, 1));
    big = fmaxf(big, __shfl_xor_sync(~0u, big, 2));
    float shift = big == -INFINITY ? 0.0f : big * scale;
    keep[e] = x.m[e] == big ? 1.0f : exp2_fast(__fmul_rn(x.m[e], scale) - shift);  // 1 exactly: a page that nobody sees changes no bit
    x.m[e] = big;
    x.sum[e] *= keep[e];
#pragma unroll
    for (int n = 0; n < 8; n++) {
      float u = exp2_fast(fmaf(sc[n * 4 + 2 * e], scale, -shift)), v = exp2_fast(fmaf(sc[n * 4 + 2 * e + 1], scale, -shift));
      x.sum[e] += u + v;
      w[n / 2][n % 2 * 2 + e] = fm_pack(u, v);
      asm volatile("st.shared.b32 [%0], %1;" :: "r"(at + (x.r + e * 8) * 128 + (n ^ (x.r & 7)) * 16 + x.t * 4), "r"(w[n / 2][n % 2 * 2 + e]) : "memory");
    }
  }
}

struct yes { static constexpr bool value = true; };
struct no { static constexpr bool value = false; };

template <int TILE, bool PAIR> __device__ void attend(const attn &a, char *q, char *page, state *b, int group) {
  using f = form<TILE, PAIR>;
  int lane = threadIdx.x & 31;
  uint32_t turn = 0;
  float scale = a.scale * 1.4426950408889634f;
  auto done = [&](uint64_t *bar, int rank) {                     // by each warp for itself
    __syncwarp();
    if (lane != 0) return;
    if (PAIR) bar_arrive_at(bar, rank);
    else bar_arrive(bar);
  };
  for (uint32_t item = 0;; item++) {
    int slot = item % f::SLOTS;
    bar_wait(&b->q_full[slot], item / f::SLOTS & 1);
    job j = b->jobs[slot];
    j.pages = __shfl_sync(~0u, j.pages, 0);
    if (j.pages < 0) break;
    rows x = { (int)(threadIdx.x % 128) / 32 * 16 + lane / 4, lane % 4, {}, { -INFINITY, -INFINITY }, { 0, 0 } };
    for (int e = 0; e < 2; e++) x.last[e] = x.r + e * 8 < j.pairs ? j.last + (j.head + x.r + e * 8) / a.heads : -1;
    uint32_t q_at = at_shared(q) + slot * f::QUERIES;
    float acc[128] = {};
    auto take = [&](int p) {             // the other's weights of page p
      int g = (turn + p) & 1;
      uint32_t at = at_shared(page) + g * PAGE;
      float keep[2];
      bar_wait(&b->weights[g], (turn + p) >> 1 & 1);
      for (int e = 0; e < 2; e++) keep[e] = b->keep[g][x.r + e * 8], x.m[e] = b->top[g][x.r + e * 8], x.sum[e] *= keep[e];
      scale_sums(acc, keep);
      multiply_begin();
#pragma unroll
      for (int d = 0; d < 4; d++) multiply_values(acc, tile_desc(at + 8 * BOX + d * 32), value_desc(at + group * 4 * BOX + d * 2048));
      multiply_commit();
    };
    auto let_queries_go = [&] { bar_arrive(&b->q_empty[slot]); };
    auto own = [&](int p, auto behind) { // a page of this warpgroup; behind: there is one before it
      uint32_t parity = (turn + p) >> 1 & 1, at = at_shared(page) + group * PAGE;
      float sc[32], keep[2];
      uint32_t w[4][4];
      bar_wait(&b->full[group][0], parity);
      if (p * 64 + 64 > j.until || p * 64 < j.from) {
        bar_wait(&b->full[group][1], parity);
        clear_rows(page + group * PAGE, j.from - p * 64, j.until - p * 64, group);
      }
      multiply_begin();
#pragma unroll
      for (int d = 0; d < 16; d++)
        multiply_scores(sc, tile_desc(q_at + d / 4 * f::Q_BOX + d % 4 * 32), tile_desc(at + d / 4 * BOX + d % 4 * 32), d > 0);
      bar_wait(&b->full[group][1], parity);
      multiply_begin();
#pragma unroll
      for (int d = 16; d < 36; d++)
        multiply_scores(sc, tile_desc(q_at + d / 4 * f::Q_BOX + d % 4 * 32), tile_desc(at + d / 4 * BOX + d % 4 * 32), 1);
      multiply_commit();
      if constexpr (behind.value) take(p - 1);
      multiply_wait<0>();
      // before the softmax: the page after next comes while it is made
      if constexpr (behind.value) done(&b->empty[group ^ 1][group], group);
      group_sync(group);                 // the rotary columns have been read by all four warps
      if (p + 2 >= j.pages) let_queries_go();
      weigh(sc, w, keep, x, j, p * 64, scale, at + 8 * BOX);
      if (x.t == 0)
        for (int e = 0; e < 2; e++) b->keep[group][x.r + e * 8] = keep[e], b->top[group][x.r + e * 8] = x.m[e];
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      bar_arrive(&b->weights[group]);
      scale_sums(acc, keep);
      multiply_begin();
#pragma unroll
      for (int d = 0; d < 4; d++) multiply_values(acc, w[d], value_desc(at + group * 4 * BOX + d * 2048));
      multiply_commit();
      multiply_wait<0>();
      done(&b->empty[group][group], group);
    };
    int p = 1;
    if ((turn & 1) == (uint32_t)group) own(0, no()), p = 2;
    else if (j.pages == 1) let_queries_go();
    for (; p < j.pages; p += 2) own(p, yes());
    if (p == j.pages) {                  // the last page is the other's
      take(p - 1);
      multiply_wait<0>();
      done(&b->empty[group ^ 1][group], group);
    }
    turn += j.pages;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      x.sum[e] += __shfl_xor_sync(~0u, x.sum[e], 1);
      x.sum[e] += __shfl_xor_sync(~0u, x.sum[e], 2);
      if (group == 1 && x.t == 0) b->sum[item & 1][x.r + e * 8] = x.sum[e];
    }
    if (group == 1) bar_arrive(&b->sums);
    else bar_wait(&b->sums, item & 1);
#pragma unroll
    for (int e = 0; e < 2; e++) {
      if (x.r + e * 8 >= j.pairs) continue;
      int64_t place = (j.pair + x.r + e * 8) * a.cuts + j.cut;
      float *to = a.part + place * 512 + group * 256 + 2 * x.t;
#pragma unroll
      for (int n = 0; n < 32; n++) *(float2 *)(to + n * 8) = { acc[n * 4 + 2 * e], acc[n * 4 + 2 * e + 1] };
      if (group == 0 && x.t == 0)
        a.part_ms[2 * place] = x.m[e] * a.scale, a.part_ms[2 * place + 1] = x.sum[e] + b->sum[item & 1][x.r + e * 8];
    }
  }
}

template <int TILE, bool PAIR>
__global__ void __launch_bounds__(384, 1) mla_kernel(const __grid_constant__ attn a, const __grid_constant__ CUtensorMap qm,
                                                     const __grid_constant__ CUtensorMap km) {
#ifdef HOPPER
  extern __shared__ char raw[];
  char *q = (char *)(((uintptr_t)raw + 1023) / 1024 * 1024), *page = q + PAGE;
  state *b = (state *)(page + 2 * PAGE);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 4; i++) bar_init(&b->q_full[i], 1), bar_init(&b->q_empty[i], 256);
    for (int i = 0; i < 4; i++) bar_init(&b->full[i / 2][i % 2], 1), bar_init(&b->empty[i / 2][i % 2], PAIR ? 8 : 4);
    for (int i = 0; i < 2; i++) bar_init(&b->weights[i], 128);
    bar_init(&b->sums, 128);
    for (int i = 0; i < AHEAD; i++) bar_init(&b->known[i], 32), bar_init(&b->free[i], 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (PAIR) cluster_sync();
  else __syncthreads();
  fm_go_on();
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x == 256) fetch<TILE, PAIR>(a, q, page, b, &qm, &km);
    if (threadIdx.x / 32 == 9) find_items<TILE, PAIR>(a, b);
  } else {
    fm_wait();
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    attend<TILE, PAIR>(a, q, page, b, __shfl_sync(~0u, threadIdx.x / 128, 0));
  }
  __syncwarp();
  if (PAIR) cluster_sync();              // the other block may still write here
#endif
}

template <int TILE, bool PAIR> static fm_status launch(fm_ctx *c, const attn *x, const CUtensorMap &qm, const CUtensorMap &km) {
  cudaFuncSetAttribute(mla_kernel<TILE, PAIR>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED);
  int n = fm_cuda_of(c)->n_sm;
  fm_launch_clusters(c, mla_kernel<TILE, PAIR>, PAIR ? 2 : 1, (unsigned)(PAIR ? n / 2 * 2 : n), 384, SHARED, *x, qm, km);
  return fm_cuda_launched(c, "mla_decode");
}

bool fm_mla_can(fm_ctx *c) { return fm_cuda_of(c)->major == 9 && encoder(); }

fm_status fm_mla_run(fm_ctx *c, const attn *x) {
  CUtensorMap qm, km;
  int64_t pairs = (int64_t)x->heads * x->n;
  int tile = pairs <= 16 * x->s.n ? 16 : pairs <= 32 * x->s.n ? 32 : 64;         // most spans have so many, or fewer
  // how many pages there are is not known here; none is asked for that is not there
  CUtensorMapL2promotion fetch = tile == 16 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  if (!make_map(&qm, false, x->qa16, 576, pairs, 1152, 1, 0, tile) ||
      !make_map(&km, false, x->k.base, 576, FM_PAGE, 1152, 1 << 24, x->k.page_stride, 64, fetch))
    return fm_fail(&c->err, FM_EDEVICE, "cuda: no tensor map for the cache");
  if (x->heads % 128 == 0) return launch<64, true>(c, x, qm, km);
  return tile == 16 ? launch<16, false>(c, x, qm, km) : tile == 32 ? launch<32, false>(c, x, qm, km) : launch<64, false>(c, x, qm, km);
}
