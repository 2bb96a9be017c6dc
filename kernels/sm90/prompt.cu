/*
** prompt.cu - attention of prompts on Hopper: keys of 128 + 64 (MLA) or 128 (GQA), values of 128, bf16, wgmma.
**
** A block: 128 queries of one head. One thread asks the copy engine for key and value tiles of 128 places, two ahead; two
** warpgroups of 64 queries multiply. Tiles stand at fixed places of the sequence: a row's sum has one order, whatever chunk it
** is read in.
**
**   shared memory: queries PARTS x (128 x 64), keys 2 x PARTS x (128 x 64), values 2 x 2 x (128 x 64); all swizzled by 128 bytes.
**   PARTS: tiles of 64 columns that a key has, 3 or 2
*/
#include <math.h>

#include "sm90/hopper.cuh"
#include "sm90/prompt.cuh"

constexpr int TILE = 128 * 128;          /* bytes of 128 rows of 64 bf16 */
constexpr int STAGES = 2;
template <int PARTS> constexpr int TILES = PARTS + STAGES * (PARTS + 2);

/* d (64 x 128) = a (64 x 16, shared) b (128 x 16, shared, K-major) + keep * d */
__device__ __forceinline__ void multiply_scores(float (&d)[64], uint64_t a, uint64_t b, int keep) {
#ifdef HOPPER
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
    "%64, %65, p, 1, 1, 0, 0; }"
    : R64(d, 0) : "l"(a), "l"(b), "r"(keep));
#endif
}
/* d += a (64 x 16, registers) b (16 x 128, shared, its 128 contiguous) */
__device__ __forceinline__ void multiply_values(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
#ifdef HOPPER
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
    "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
    : R64(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}
/* Values (places, 64 contiguous): the next 64 columns are a tile away, the next eight places 1024 bytes. */
__device__ __forceinline__ uint64_t value_desc(uint32_t at) {
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(TILE >> 4) << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

struct bars { uint64_t q, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES]; };

template <int PARTS>
__device__ void fetch(char *tiles, bars *b, const CUtensorMap *qm, const CUtensorMap *km, const CUtensorMap *pm, const fm_where &w, int h, int row,
                      int first, int n) {
  int k_at = h / w.per * w.step, v_at = w.v_at + k_at;
  bar_expect(&b->q, PARTS * TILE);
  for (int i = 0; i < PARTS; i++) box2(tiles + i * TILE, qm, &b->q, (h * PARTS + i) * 64, row);
  for (int i = 0; i < n; i++) {
    int s = i % STAGES, key = (first + i) * 128;
    uint32_t free = (uint32_t)(i / STAGES & 1) ^ 1;
    char *k = tiles + (PARTS + s * (PARTS + 2)) * TILE, *v = k + PARTS * TILE;
    bar_wait(&b->k_empty[s], free);
    bar_expect(&b->k_full[s], PARTS * TILE);
    box2(k, km, &b->k_full[s], k_at, key);
    box2(k + TILE, km, &b->k_full[s], k_at + 64, key);
    if (PARTS == 3) box2(k + 2 * TILE, pm, &b->k_full[s], 0, key);
    bar_wait(&b->v_empty[s], free);
    bar_expect(&b->v_full[s], 2 * TILE);
    box2(v, km, &b->v_full[s], v_at, key);
    box2(v + TILE, km, &b->v_full[s], v_at + 64, key);
  }
}

/* Softmax of one tile for this thread's two rows: scores become weights; m, sum, keep are carried. */
__device__ __forceinline__ void weigh(float (&sc)[64], float (&m)[2], float (&sum)[2], float (&keep)[2], float scale) {
#pragma unroll
  for (int e = 0; e < 2; e++) {
    float big = m[e];
#pragma unroll
    for (int n = 0; n < 16; n++) big = fmaxf(big, fmaxf(sc[n * 4 + 2 * e], sc[n * 4 + 2 * e + 1]));
    big = fmaxf(big, __shfl_xor_sync(~0u, big, 1));
    big = fmaxf(big, __shfl_xor_sync(~0u, big, 2));
    float shift = big == -INFINITY ? 0.0f : big * scale;          // exp2 of minus infinity is zero
    keep[e] = exp2f(m[e] * scale - shift);
    m[e] = big;
    sum[e] *= keep[e];
#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
      for (int x = n * 4 + 2 * e; x < n * 4 + 2 * e + 2; x++) {
        sc[x] = exp2f(fmaf(sc[x], scale, -shift));
        sum[e] += sc[x];
      }
  }
}

template <int PARTS> __device__ void attend(const fm_prompt &p, char *tiles, bars *b, int h, int row0, int first, int n, int group) {
  int warp = threadIdx.x % 128 / 32, lane = threadIdx.x & 31, t = lane % 4;
  int64_t row = row0 + group * 64 + warp * 16 + lane / 4;          // and row + 8
  int last0 = (int)(p.index + row), last1 = last0 + 8, lowest = (int)(p.index + row0 + group * 64);
  float acc[64] = {}, m[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, keep[2];
  float scale = p.scale * 1.4426950408889634f;
  uint32_t q = at_shared(tiles) + group * 64 * 128;
  bar_wait(&b->q, 0);
  for (int i = 0; i < n; i++) {
    int s = i % STAGES, key0 = (first + i) * 128;
    uint32_t phase = i / STAGES & 1, k = at_shared(tiles + (PARTS + s * (PARTS + 2)) * TILE), v = k + PARTS * TILE;
    float sc[64];
    bar_wait(&b->k_full[s], phase);
    multiply_begin();
#pragma unroll
    for (int d = 0; d < 4 * PARTS; d++)
      multiply_scores(sc, tile_desc(q + d / 4 * TILE + d % 4 * 32), tile_desc(k + d / 4 * TILE + d % 4 * 32), d > 0);
    multiply_commit();
    multiply_wait<0>();
    if (threadIdx.x % 128 == 0) bar_arrive(&b->k_empty[s]);
    if (key0 + 127 > lowest || key0 < p.first_key) {
#pragma unroll
      for (int x = 0; x < 64; x++) {
        int key = key0 + x / 4 * 8 + 2 * t + x % 2;
        if (key > (x / 2 % 2 ? last1 : last0) || key < p.first_key) sc[x] = -INFINITY;
      }
    }
    weigh(sc, m, sum, keep, scale);
#pragma unroll
    for (int x = 0; x < 64; x++) acc[x] *= keep[x / 2 % 2];
    uint32_t w[8][4];
#pragma unroll
    for (int d = 0; d < 8; d++)
#pragma unroll
      for (int x = 0; x < 4; x++) w[d][x] = fm_pack(sc[d * 8 + x * 2], sc[d * 8 + x * 2 + 1]);
    bar_wait(&b->v_full[s], phase);
    multiply_begin();
#pragma unroll
    for (int d = 0; d < 8; d++) multiply_values(acc, w[d], value_desc(v + d * 2048));
    multiply_commit();
    multiply_wait<0>();
    if (threadIdx.x % 128 == 0) bar_arrive(&b->v_empty[s]);
  }
#pragma unroll
  for (int e = 0; e < 2; e++) {
    sum[e] += __shfl_xor_sync(~0u, sum[e], 1);
    sum[e] += __shfl_xor_sync(~0u, sum[e], 2);
    if (row + e * 8 >= p.n) continue;
    float inv = sum[e] == 0 ? 0.0f : 1.0f / sum[e];
    float *to = p.out + (row + e * 8) * p.ldo + (int64_t)h * 128 + 2 * t;
#pragma unroll
    for (int x = 0; x < 16; x++) *(float2 *)(to + x * 8) = { acc[x * 4 + 2 * e] * inv, acc[x * 4 + 2 * e + 1] * inv };
  }
}

template <int PARTS>
__global__ void __launch_bounds__(384, 1) prompt_kernel(const __grid_constant__ fm_prompt p, const __grid_constant__ CUtensorMap qm,
                                                        const __grid_constant__ CUtensorMap km, const __grid_constant__ CUtensorMap pm) {
#ifdef HOPPER
  extern __shared__ char raw[];
  char *tiles = (char *)(((uintptr_t)raw + 1023) / 1024 * 1024);
  bars *b = (bars *)(tiles + TILES<PARTS> * TILE);
  if (threadIdx.x == 0) {
    bar_init(&b->q, 1);
    for (int i = 0; i < STAGES; i++) bar_init(&b->k_full[i], 1), bar_init(&b->v_full[i], 1), bar_init(&b->k_empty[i], 2), bar_init(&b->v_empty[i], 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  fm_wait();
  int h = blockIdx.y, row0 = (int)(gridDim.x - 1 - blockIdx.x) * 128;             // longest first
  int64_t rows = p.n - row0 < 128 ? p.n - row0 : 128, end = p.index + row0 + rows;
  int first = (int)(p.first_key / 128), n = (int)((end + 127) / 128) - first;
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) fetch<PARTS>(tiles, b, &qm, &km, &pm, p.where, h, row0, first, n);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    attend<PARTS>(p, tiles, b, h, row0, first, n, threadIdx.x / 128);
  }
#endif
}

bool fm_prompt_can(fm_ctx *c) { return fm_cuda_of(c)->major == 9 && encoder(); }

template <int PARTS> static fm_status run(fm_ctx *c, const fm_prompt *p, int64_t columns) {
  CUtensorMap qm, km, pm = {};
  if (!make_map(&qm, false, p->q, (int64_t)p->heads * PARTS * 64, p->n, p->ldq * 2, 1, 0, 128) ||
      !make_map(&km, false, p->kx, columns, p->keys, p->ldk * 2, 1, 0, 128) ||
      (p->pe && !make_map(&pm, false, p->pe, 64, p->keys, 128, 1, 0, 128)))
    return fm_fail(&c->err, FM_EDEVICE, "cuda: no tensor map for a prompt of %lld over %lld", (long long)p->n, (long long)p->keys);
  size_t shared = TILES<PARTS> * (size_t)TILE + 1024 + 128;
  cudaFuncSetAttribute(prompt_kernel<PARTS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
  fm_launch(c, prompt_kernel<PARTS>, dim3((unsigned)((p->n + 127) / 128), (unsigned)p->heads), 384, shared, *p, qm, km, pm);
  return fm_cuda_launched(c, "attention of a prompt");
}

fm_status fm_prompt_run(fm_ctx *c, const fm_prompt *p) {
  int64_t columns = p->where.v_at + (int64_t)((p->heads - 1) / p->where.per) * p->where.step + 128;
  return p->pe ? run<3>(c, p, columns) : run<2>(c, p, columns);
}
