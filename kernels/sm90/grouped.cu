/*
** grouped.cu - experts of many rows on Hopper: one launch multiplies every chosen expert by its rows, on wgmma.
**
**   y[p] = W_e x[p]                      for places p of expert e (start[e] .. start[e+1] - 1)
**   h[p] = silu(G_e x[p]) * U_e x[p]     the pair, whose tiles stand side by side in one accumulator
**
** bf16: tiles of 128 places x 256 columns. f8: x and h quantised along K by 128 (scales xs), weights by 128 x 128; tiles of
** 128 x 128, partial sums of 128 products in the tensor cores, promoted to f32 sums there.
**
** A block (persistent): one thread asks the copy engine for slices of 128 bytes of K, STAGES ahead; two warpgroups of 64 places
** each multiply. Rows that belong to the next expert are multiplied too and not stored. The order of a sum hangs on K alone.
*/
#include "sm90/grouped.cuh"
#include "sm90/hopper.cuh"

constexpr int BM = 128;

template <bool F8> struct shape {
  static constexpr int BN = F8 ? 128 : 256, BK = F8 ? 128 : 64, STAGES = F8 ? 6 : 4;
  static constexpr int A = BM * 128, B = BN * 128;                  /* bytes a stage */
  static constexpr size_t SHARED = STAGES * (size_t)(A + B) + 1024 + 256;
};

struct grouped_job {
  const int32_t *start;
  int experts, n, k, tiles_n;            /* n: columns of the answer, half of a pair's */
  void *out;                             /* f32, or bf16 of a pair */
  const float *xs;                       /* f8: (slots, ceil(k / 128)) */
  const float *ws, *us; int64_t ws_step, us_step;      /* f8: scales of expert e at ws + e * ws_step; us: of up */
};

__device__ __forceinline__ void multiply_bf16(float (&d)[128], uint64_t a, uint64_t b, int keep) {
#ifdef HOPPER
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,"
    "%122,%123,%124,%125,%126,%127}, %128, %129, p, 1, 1, 0, 0; }"
    : R64(d, 0), R64(d, 64) : "l"(a), "l"(b), "r"(keep));
#endif
}
__device__ __forceinline__ void multiply_f8(float (&d)[64], uint64_t a, uint64_t b, int keep) {
#ifdef HOPPER
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
    "%64, %65, p, 1, 1; }"
    : R64(d, 0) : "l"(a), "l"(b), "r"(keep));
#endif
}
/* Walks the tiles of all experts in order; each caller has its own. */
struct walker {
  int64_t tile, before;                  /* tiles of the experts before this one */
  int expert;
  __device__ bool find(const grouped_job &j, int *first, int *end, int *n_tile) {
    for (; expert < j.experts; expert++) {
      int a = j.start[expert], b = j.start[expert + 1];
      int64_t here = (int64_t)((b - a + BM - 1) / BM) * j.tiles_n;
      if (tile < before + here) {
        int m_tiles = (b - a + BM - 1) / BM, at = (int)(tile - before);
        *first = a + at % m_tiles * BM, *end = b, *n_tile = at / m_tiles;      // places fastest: they share the weights
        return true;
      }
      before += here;
    }
    return false;
  }
};

template <bool F8, bool PAIR>
__device__ void produce(const grouped_job &j, char *tiles, uint64_t *full, uint64_t *empty, const CUtensorMap *xm, const CUtensorMap *wm,
                        const CUtensorMap *um) {
  using S = shape<F8>;
  walker w = { (int64_t)blockIdx.x, 0, 0 };
  int first, end, n_tile, blocks = (j.k + S::BK - 1) / S::BK;
  uint32_t turn = 0;
  for (; w.find(j, &first, &end, &n_tile); w.tile += gridDim.x)
    for (int kb = 0; kb < blocks; kb++, turn++) {
      int s = turn % S::STAGES;
      char *a = tiles + s * (S::A + S::B), *b = a + S::A;
      bar_wait(&empty[s], (turn / S::STAGES & 1) ^ 1);
      bar_expect(&full[s], S::A + S::B);
      box2(a, xm, &full[s], kb * S::BK, first);
      if (PAIR) {
        box3(b, wm, &full[s], kb * S::BK, n_tile * (S::BN / 2), w.expert);
        box3(b + S::B / 2, um, &full[s], kb * S::BK, n_tile * (S::BN / 2), w.expert);
      } else {
        box3(b, wm, &full[s], kb * S::BK, n_tile * S::BN, w.expert);
      }
    }
}

/* Pairs of neighbouring columns of this thread: index i of the accumulator is row (i / 2 % 2) * 8, column i / 4 * 8 + i % 2. */
template <bool F8, bool PAIR, int N>
__device__ __forceinline__ void store_tile(const grouped_job &j, const float (&acc)[N], int first, int end, int n_tile, int group) {
  using S = shape<F8>;
  int warp = threadIdx.x % 128 / 32, lane = threadIdx.x & 31;
  int row0 = first + group * 64 + warp * 16 + lane / 4, width = PAIR ? S::BN / 2 : S::BN;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    int64_t p = row0 + e * 8;
    if (p >= end) continue;
#pragma unroll
    for (int b = 0; b < width / 8; b++) {
      int col = n_tile * width + b * 8 + lane % 4 * 2, i = b * 4 + e * 2;
      if (col >= j.n) continue;
      if (PAIR) {
        constexpr int UP = N / 2;
        *(uint32_t *)((bf16 *)j.out + p * j.n + col) = fm_pack(fm_silu(acc[i]) * acc[i + UP], fm_silu(acc[i + 1]) * acc[i + 1 + UP]);
      } else {
        *(float2 *)((float *)j.out + p * j.n + col) = { acc[i], acc[i + 1] };
      }
    }
  }
}

template <bool PAIR> __device__ void consume_bf16(const grouped_job &j, char *tiles, uint64_t *full, uint64_t *empty, int group) {
  using S = shape<false>;
  walker w = { (int64_t)blockIdx.x, 0, 0 };
  int first, end, n_tile, blocks = (j.k + S::BK - 1) / S::BK;
  uint32_t turn = 0;
  for (; w.find(j, &first, &end, &n_tile); w.tile += gridDim.x) {
    float acc[128];
    for (int kb = 0; kb < blocks; kb++, turn++) {
      int s = turn % S::STAGES;
      uint32_t a = at_shared(tiles + s * (S::A + S::B)) + group * 64 * 128, b = at_shared(tiles + s * (S::A + S::B) + S::A);
      bar_wait(&full[s], turn / S::STAGES & 1);
      multiply_begin();
#pragma unroll
      for (int k = 0; k < 4; k++) multiply_bf16(acc, tile_desc(a + k * 32), tile_desc(b + k * 32), kb + k > 0);
      multiply_commit();
      multiply_wait<1>();
      if (kb > 0 && threadIdx.x % 128 == 0) bar_arrive(&empty[(turn + S::STAGES - 1) % S::STAGES]);
    }
    multiply_wait<0>();
    if (threadIdx.x % 128 == 0) bar_arrive(&empty[(turn + S::STAGES - 1) % S::STAGES]);
    store_tile<false, PAIR>(j, acc, first, end, n_tile, group);
  }
}

template <bool PAIR> __device__ void consume_f8(const grouped_job &j, char *tiles, uint64_t *full, uint64_t *empty, int group) {
  using S = shape<true>;
  walker w = { (int64_t)blockIdx.x, 0, 0 };
  int first, end, n_tile, blocks = (j.k + S::BK - 1) / S::BK;
  uint32_t turn = 0;
  int row = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  for (; w.find(j, &first, &end, &n_tile); w.tile += gridDim.x) {
    float acc[64] = {}, part[64];
    int64_t p0 = min(first + row, end - 1), p1 = min(first + row + 8, end - 1);
    const float *x0 = j.xs + p0 * blocks, *x1 = j.xs + p1 * blocks;
    // a tile's columns lie in one block of 128 rows of the weight
    int rows = n_tile * (PAIR ? S::BN / 2 : S::BN) / 128;
    const float *ws = j.ws + w.expert * j.ws_step + (int64_t)rows * blocks, *us = PAIR ? j.us + w.expert * j.us_step + (int64_t)rows * blocks : ws;
    for (int kb = 0; kb < blocks; kb++, turn++) {
      int s = turn % S::STAGES;
      uint32_t a = at_shared(tiles + s * (S::A + S::B)) + group * 64 * 128, b = at_shared(tiles + s * (S::A + S::B) + S::A);
      float s0 = x0[kb], s1 = x1[kb], g = ws[kb], u = us[kb];
      bar_wait(&full[s], turn / S::STAGES & 1);
      multiply_begin();
#pragma unroll
      for (int k = 0; k < 4; k++) multiply_f8(part, tile_desc(a + k * 32), tile_desc(b + k * 32), k > 0);
      multiply_commit();
      multiply_wait<0>();
      if (threadIdx.x % 128 == 0) bar_arrive(&empty[s]);
#pragma unroll
      for (int i = 0; i < 64; i++) {
        float f = (i / 2 % 2 ? s1 : s0) * (PAIR && i >= 32 ? u : g);
        acc[i] = fmaf(part[i], f, acc[i]);
      }
    }
    store_tile<true, PAIR>(j, acc, first, end, n_tile, group);
  }
}

template <bool F8, bool PAIR>
__global__ void __launch_bounds__(384, 1) grouped_kernel(const __grid_constant__ grouped_job j, const __grid_constant__ CUtensorMap xm,
                                                         const __grid_constant__ CUtensorMap wm, const __grid_constant__ CUtensorMap um) {
#ifdef HOPPER
  using S = shape<F8>;
  extern __shared__ char raw[];
  char *tiles = (char *)(((uintptr_t)raw + 1023) / 1024 * 1024);
  uint64_t *full = (uint64_t *)(tiles + S::STAGES * (S::A + S::B)), *empty = full + S::STAGES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::STAGES; i++) bar_init(&full[i], 1), bar_init(&empty[i], 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  fm_wait();
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) produce<F8, PAIR>(j, tiles, full, empty, &xm, &wm, &um);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    if constexpr (F8) consume_f8<PAIR>(j, tiles, full, empty, threadIdx.x / 128);
    else consume_bf16<PAIR>(j, tiles, full, empty, threadIdx.x / 128);
  }
#endif
}

bool fm_grouped_can(fm_ctx *c, const fm_grouped *g) {
  int64_t size = g->f8 ? 1 : 2;
  return fm_cuda_of(c)->major == 9 && encoder() && g->k * size % 16 == 0 && g->n % 8 == 0 &&
         (!g->f8 || (g->k % 128 == 0 && g->n % 128 == 0)) && (uintptr_t)g->w % 16 == 0 && g->w_step % 16 == 0 &&
         (!g->up || ((uintptr_t)g->up % 16 == 0 && g->up_step % 16 == 0));
}

template <bool F8, bool PAIR> static fm_status launch(fm_ctx *c, const fm_grouped *g) {
  using S = shape<F8>;
  CUtensorMap xm, wm, um;
  int box = PAIR ? S::BN / 2 : S::BN;
  int64_t pitch = g->k * (F8 ? 1 : 2);
  bool good = make_map(&xm, F8, g->x, g->k, g->slots, pitch, 1, 0, BM) && make_map(&wm, F8, g->w, g->k, g->n, pitch, g->experts, g->w_step, box) &&
              make_map(&um, F8, PAIR ? g->up : g->w, g->k, g->n, pitch, g->experts, PAIR ? g->up_step : g->w_step, box);
  if (!good) return fm_fail(&c->err, FM_EDEVICE, "cuda: no tensor map for experts of (%lld, %lld)", (long long)g->n, (long long)g->k);
  grouped_job j = { g->start, g->experts, (int)g->n, (int)g->k, (int)((g->n + box - 1) / box), g->out, g->xs, g->ws, g->us, g->ws_step, g->us_step };
  cudaFuncSetAttribute(grouped_kernel<F8, PAIR>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED);
  fm_launch(c, grouped_kernel<F8, PAIR>, (unsigned)fm_cuda_of(c)->n_sm, 384, S::SHARED, j, xm, wm, um);
  return fm_cuda_launched(c, "grouped products");
}

fm_status fm_grouped_run(fm_ctx *c, const fm_grouped *g) {
  if (g->f8) return g->up ? launch<true, true>(c, g) : launch<true, false>(c, g);
  return g->up ? launch<false, true>(c, g) : launch<false, false>(c, g);
}
