/*
** mla.cu - the parts of absorbed MLA on Hopper: scores, softmax and sums of one cut of a sequence, wgmma.
**
** A block (persistent) takes items: 64 (row, head) pairs of one span and one cut. One thread asks the copy engine for the
** queries of the item and for pages of 64 keys, two ahead, over the ends of items. Two warpgroups make the same scores of all 64
** pairs, each for itself, and sum different halves of the latent columns: nothing passes between them.
**
**   shared memory: queries 9 x (64 x 64), pages 2 x 9 x (64 x 64); bf16, swizzled by 128 bytes
**   scores  64 x 64, K = 576: a page by rows      values  64 x 256, K = 64: the same page by columns
*/
#include <math.h>

#include "sm90/hopper.cuh"
#include "sm90/mla.cuh"

constexpr int BOX = 64 * 128, PAGE = 9 * BOX;       /* bytes of 64 rows of 64 bf16; of a page */
constexpr size_t SHARED = 3 * (size_t)PAGE + 1024 + 128;

struct bars { uint64_t q_full, q_empty, full[2], empty[2]; };

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
/* d (64 x 256) += a (64 x 16, registers) b (16 x 256, its 256 by boxes of 64) */
__device__ __forceinline__ void multiply_values(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
#ifdef HOPPER
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,"
    "%122,%123,%124,%125,%126,%127}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
    : R64(d, 0), R64(d, 64) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}
__device__ __forceinline__ uint64_t value_desc(uint32_t at) {
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(BOX >> 4) << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

/* Item after item: which span, which 64 of its pairs, which cut, and how many pages that is. */
struct items {
  int64_t next, before;                  /* the item wanted; items of the spans before this one */
  int span, tile, cut, pages;
  int64_t begin, end;                    /* keys of the cut that some pair of the tile sees */
  __device__ bool find(const attn &a) {
    for (; span < a.s.n; span++) {
      const fm_span &s = a.s.span[span];
      int64_t pairs = s.n * a.heads, tiles = (pairs + 63) / 64;
      int64_t here = s.n ? tiles * (cut_of(s.index + s.n - 1) + 1) : 0;
      if (next < before + here) {
        tile = (int)((next - before) % tiles), cut = (int)((next - before) / tiles);
        int64_t last = tile * (int64_t)64 + 63 < pairs ? tile * (int64_t)64 + 63 : pairs - 1, seen = s.index + (int)last / a.heads + 1;
        begin = cut_begin(cut), end = cut_begin(cut + 1) < seen ? cut_begin(cut + 1) : seen;
        pages = end > begin ? (int)((end - begin + 63) / 64) : 0;
        return true;
      }
      before += here;
    }
    return false;
  }
};

__device__ void fetch(const attn &a, char *q, char *page, bars *b, const CUtensorMap *qm, const CUtensorMap *km) {
  items it = { (int64_t)blockIdx.x, 0, 0 };
  uint32_t turn = 0, item = 0;
  for (; it.find(a); it.next += gridDim.x, item++) {
    const fm_span &s = a.s.span[it.span];
    const int32_t *pages = (const int32_t *)((const char *)s.pages + a.s.delta) + it.begin / FM_PAGE;
    bar_wait(&b->q_empty, (item & 1) ^ 1);
    int64_t left = s.n * a.heads - it.tile * (int64_t)64;
    int sixteens = left < 64 ? (int)((left + 15) / 16) : 4;        // what stands behind the last pair is old, and not kept
    bar_expect(&b->q_full, sixteens * PAGE / 4);
    for (int x = 0; x < sixteens; x++)
      for (int i = 0; i < 9; i++)
        box2(q + i * BOX + x * 2048, qm, &b->q_full, i * 64, (int)((s.row - a.row0) * a.heads + it.tile * 64 + x * 16));
    for (int p = 0; p < it.pages; p++, turn++) {
      int st = turn & 1, number = pages[p];
      bar_wait(&b->empty[st], (turn >> 1 & 1) ^ 1);
      bar_expect(&b->full[st], PAGE);
      for (int i = 0; i < 9; i++) box3(page + st * PAGE + i * BOX, km, &b->full[st], i * 64, 0, number);
    }
  }
}

/* Rows of a page that nobody sees become zeros: they may hold anything, and nothing times infinity is NaN. All 256 threads. */
__device__ void clear_rows(char *page, int from, int until) {
  for (int i = threadIdx.x; i < 64 * 9 * 8; i += 256) {
    int r = i / 72, x = i % 72;
    if (r < from || r >= until) *(uint4 *)(page + x / 8 * BOX + r * 128 + x % 8 * 16) = { 0, 0, 0, 0 };
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync 1, 256;" ::: "memory");
}

__device__ void attend(const attn &a, char *q, char *page, bars *b, int group) {
  int warp = threadIdx.x % 128 / 32, lane = threadIdx.x & 31, t = lane % 4, r = warp * 16 + lane / 4;
  items it = { (int64_t)blockIdx.x, 0, 0 };
  uint32_t turn = 0, item = 0, q_at = at_shared(q);
  float scale = a.scale * 1.4426950408889634f;
  for (; it.find(a); it.next += gridDim.x, item++) {
    const fm_span s = a.s.span[it.span];
    int pairs = (int)(s.n * a.heads) - it.tile * 64, first = it.tile * 64;
    int last[2], from = (int)(s.first_key - it.begin), until = (int)(it.end - it.begin);
    for (int e = 0; e < 2; e++) last[e] = r + e * 8 < pairs ? (int)(s.index + (first + r + e * 8) / a.heads - it.begin) : -1;
    float acc[128] = {}, m[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
    bar_wait(&b->q_full, item & 1);
    for (int p = 0; p < it.pages; p++, turn++) {
      int st = turn & 1, j0 = p * 64;
      uint32_t at = at_shared(page + st * PAGE);
      float sc[32];
      bar_wait(&b->full[st], turn >> 1 & 1);
      if (j0 + 64 > until || j0 < from) clear_rows(page + st * PAGE, from - j0, until - j0);
      multiply_begin();
#pragma unroll
      for (int d = 0; d < 36; d++)
        multiply_scores(sc, tile_desc(q_at + d / 4 * BOX + d % 4 * 32), tile_desc(at + d / 4 * BOX + d % 4 * 32), d > 0);
      multiply_commit();
      multiply_wait<0>();
      uint32_t w[4][4];
      float keep[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float big = m[e];
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int x = 0; x < 2; x++) {
            int j = j0 + n * 8 + 2 * t + x, i = n * 4 + 2 * e + x;
            if (j > last[e] || j < from) sc[i] = -INFINITY;
            big = fmaxf(big, sc[i]);
          }
        big = fmaxf(big, __shfl_xor_sync(~0u, big, 1));
        big = fmaxf(big, __shfl_xor_sync(~0u, big, 2));
        float shift = big == -INFINITY ? 0.0f : big * scale;
        keep[e] = exp2f(m[e] * scale - shift);
        m[e] = big;
        sum[e] *= keep[e];
#pragma unroll
        for (int n = 0; n < 8; n++) {
          int i = n * 4 + 2 * e;
          sc[i] = exp2f(fmaf(sc[i], scale, -shift)), sc[i + 1] = exp2f(fmaf(sc[i + 1], scale, -shift));
          sum[e] += sc[i] + sc[i + 1];
          w[n / 2][n % 2 * 2 + e] = fm_pack(sc[i], sc[i + 1]);
        }
      }
#pragma unroll
      for (int x = 0; x < 128; x++) acc[x] *= keep[x / 2 % 2];
      multiply_begin();
#pragma unroll
      for (int d = 0; d < 4; d++) multiply_values(acc, w[d], value_desc(at + group * 4 * BOX + d * 2048));
      multiply_commit();
      multiply_wait<0>();
      if (threadIdx.x % 128 == 0) bar_arrive(&b->empty[st]);
    }
    if (threadIdx.x % 128 == 0) bar_arrive(&b->q_empty);
#pragma unroll
    for (int e = 0; e < 2; e++) {
      sum[e] += __shfl_xor_sync(~0u, sum[e], 1);
      sum[e] += __shfl_xor_sync(~0u, sum[e], 2);
      if (r + e * 8 >= pairs) continue;
      int64_t place = ((s.row * a.heads - a.row0 * a.heads) + first + r + e * 8) * a.cuts + it.cut;
      float *to = a.part + place * 512 + group * 256 + 2 * t;
#pragma unroll
      for (int n = 0; n < 32; n++) *(float2 *)(to + n * 8) = { acc[n * 4 + 2 * e], acc[n * 4 + 2 * e + 1] };
      if (group == 0 && t == 0) a.part_ms[2 * place] = m[e] * a.scale, a.part_ms[2 * place + 1] = sum[e];
    }
  }
}

__global__ void __launch_bounds__(384, 1) mla_kernel(const __grid_constant__ attn a, const __grid_constant__ CUtensorMap qm,
                                                     const __grid_constant__ CUtensorMap km) {
#ifdef HOPPER
  extern __shared__ char raw[];
  char *q = (char *)(((uintptr_t)raw + 1023) / 1024 * 1024), *page = q + PAGE;
  bars *b = (bars *)(page + 2 * PAGE);
  if (threadIdx.x == 0) {
    bar_init(&b->q_full, 1), bar_init(&b->q_empty, 2);
    for (int i = 0; i < 2; i++) bar_init(&b->full[i], 1), bar_init(&b->empty[i], 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  fm_go_on();
  fm_wait();
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) fetch(a, q, page, b, &qm, &km);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    attend(a, q, page, b, threadIdx.x / 128);
  }
#endif
}

bool fm_mla_can(fm_ctx *c) { return fm_cuda_of(c)->major == 9 && encoder(); }

fm_status fm_mla_run(fm_ctx *c, const attn *x) {
  CUtensorMap qm, km;
  // how many pages there are is not known here; none is asked for that is not there
  if (!make_map(&qm, false, x->qa16, 576, (int64_t)x->n * x->heads, 1152, 1, 0, 16) ||
      !make_map(&km, false, x->k.base, 576, FM_PAGE, 1152, 1 << 24, x->k.page_stride, 64))
    return fm_fail(&c->err, FM_EDEVICE, "cuda: no tensor map for the cache");
  cudaFuncSetAttribute(mla_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED);
  fm_launch(c, mla_kernel, (unsigned)fm_cuda_of(c)->n_sm, 384, SHARED, *x, qm, km);
  return fm_cuda_launched(c, "mla_decode");
}
