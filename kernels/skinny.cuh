/*
** skinny.cuh - products of stored weights with few rows: bound by the bytes of the weights, so these stream without a pause.
**
** A block of 8 warps makes tiles one after the other: 16 weight rows times NT groups of 8 tokens. The warps share K in eight fixed
** parts and their sums meet in warp order: the order of a sum hangs on K alone, never on how many tokens run together.
**
** Each warp has a ring of its own in shared memory: 16 rows x 256 bytes a slot (128 of many tokens), asked for (cp.async) RING - 1 slots ahead, over
** the ends of items; no warp waits for another but where the sums meet. What can be asked for before the kernel ahead has ended
** is: blocks of two kernels in a row fit beside each other.
**
**   lane = 4 g + t takes 16 bytes of weight rows g and g + 8 at a time: eight bf16 (or sixteen f8) neighbours along K, which
**   are columns 2t, 2t+1, 2t+8, 2t+9 of two (four) mma steps. Inputs are read by the same rule, so the sum is the same.
**
** Inputs are rows of 16 bits: bf16 beside bf16 weights; beside f8 ones f16, to which f8 converts exactly in one instruction, times
** a power of two that brings a row's largest to 2^10 .. 2^11.
*/
#ifndef FM_KERNELS_SKINNY_CUH
#define FM_KERNELS_SKINNY_CUH

#include "cuda.cuh"

/* ---- inputs ---- */

/* A power of two: times the row whose largest magnitude is `most` it fits f16. Infinity and NaN stay what they are. */
template <int F8> __device__ __forceinline__ float fm_row_unit(float most) {
  if (!F8) return 1.0f;
  int e = (int)(__float_as_uint(most) >> 23 & 255) - 127;
  return __uint_as_float((uint32_t)(127 + 10 - max(e, -110)) << 23);
}

template <int F8> __device__ __forceinline__ uint16_t fm_half_bits(float v) {
  return F8 ? __half_as_ushort(__float2half_rn(v)) : __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

/* What products take in: row i of x, times norm's weights, or silu(x) * up in bf16, beside f8 weights too, as experts take it (moe.cu):
   ranks make a shared expert by products of its own. The factor of RMSNorm is left to the answers. */
struct fm_source { const float *x, *norm, *up; int64_t ldx; float eps; int n, cols; };

/* N values of a row from column i on, STEP apart; raw: without norm and up. All are asked for before the first is used. */
template <int N, int STEP> __device__ __forceinline__ void fm_source_take(float (&v)[N], float (&raw)[N], const fm_source &s, int64_t row, int i) {
  const float *x = s.x + row * s.ldx, *up = s.up ? s.up + row * s.ldx : nullptr;
  float b[N];
#pragma unroll
  for (int u = 0; u < N; u++) {
    int c = i + u * STEP;
    raw[u] = c < s.cols ? x[c] : 0.0f;
    b[u] = c >= s.cols ? 0.0f : s.norm ? s.norm[c] : up ? up[c] : 1.0f;
  }
#pragma unroll
  for (int u = 0; u < N; u++) v[u] = up ? __bfloat162float(__float2bfloat16_rn(fm_silu(raw[u]) * b[u])) : raw[u] * b[u];
}

/* Row `row` of s in 16 bits; returns what its answers are to be multiplied by. By a block of 256. */
template <int F8> __device__ float fm_stage_row(uint16_t *to, const fm_source &s, int64_t row) {
  __shared__ float most[8];
  constexpr int N = 8, WIDE = N * 256;
  float v[N], raw[N], square = 0, big = 0;
  for (int i = threadIdx.x; i < s.cols; i += WIDE) {
    fm_source_take<N, 256>(v, raw, s, row, i);
#pragma unroll
    for (int u = 0; u < N; u++) square = fmaf(raw[u], raw[u], square), big = fmaxf(big, fabsf(v[u]));
  }
  big = fm_warp_max(big);
  if ((threadIdx.x & 31) == 0) most[threadIdx.x >> 5] = big;
  float inv = s.norm ? rsqrtf(fm_block_sum(square) / (float)s.cols + s.eps) : 1.0f;
  if (F8 && !s.norm) fm_sync_256();
  big = fmaxf(fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3])), fmaxf(fmaxf(most[4], most[5]), fmaxf(most[6], most[7])));
  float unit = fm_row_unit<F8>(big);
  for (int i = threadIdx.x; i < s.cols; i += WIDE) {
    if (s.cols > WIDE) fm_source_take<N, 256>(v, raw, s, row, i);
#pragma unroll
    for (int u = 0; u < N; u++)
      if (i + u * 256 < s.cols) to[i + u * 256] = fm_half_bits<F8>(v[u] * unit);
  }
  return inv / unit;
}

/* The same by one warp, to the same bits: its lanes stand for the threads of that block. */
template <int F8> __device__ float fm_stage_row_by_warp(uint16_t *to, const fm_source &s, int64_t row) {
  constexpr int N = 16;
  float v[N], raw[N], part[8] = {}, big = 0;
  int lane = threadIdx.x & 31;
  for (int i = lane; i < s.cols; i += N * 32) {
    fm_source_take<N, 32>(v, raw, s, row, i);
#pragma unroll
    for (int u = 0; u < N; u++) part[u % 8] = fmaf(raw[u], raw[u], part[u % 8]), big = fmaxf(big, fabsf(v[u]));
  }
#pragma unroll
  for (int w = 0; w < 8; w++) part[w] = fm_warp_sum(part[w]);
  float sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  float unit = fm_row_unit<F8>(fm_warp_max(big)), inv = s.norm ? rsqrtf(sum / (float)s.cols + s.eps) : 1.0f;
  for (int i = lane; i < s.cols; i += N * 32) {
    fm_source_take<N, 32>(v, raw, s, row, i);
#pragma unroll
    for (int u = 0; u < N; u++)
      if (i + u * 32 < s.cols) to[i + u * 32] = fm_half_bits<F8>(v[u] * unit);
  }
  return inv / unit;
}

/* Elements from row to row of staged inputs: the lanes of two rows meet different banks. */
template <int F8> __host__ __device__ __forceinline__ int fm_pitch(int64_t cols) { return (int)(cols + 63) / 64 * 64 + (F8 ? 8 : 32); }

constexpr int FM_STAGED_ROWS = 8;
constexpr size_t FM_STAGED_BYTES = 40 << 10;

/* All rows of s in device memory, s.cols apart. */
fm_status fm_cuda_prepare(fm_ctx *c, bool f8, uint16_t *to, float *factor, const fm_source &s);

/* All rows of s, at most FM_STAGED_ROWS; factor: one for each. By a block of 256, which is in step again afterwards. */
template <int F8> __device__ void fm_stage(uint16_t *to, float *factor, const fm_source &s) {
  int warp = threadIdx.x >> 5;
  float f = 1;
  if (s.n == 1) f = fm_stage_row<F8>(to, s, 0);
  else if (warp < s.n) f = fm_stage_row_by_warp<F8>(to + warp * fm_pitch<F8>(s.cols), s, warp);
  if (s.n == 1 ? threadIdx.x == 0 : (threadIdx.x & 31) == 0 && warp < s.n) factor[warp] = f;
  __syncthreads();
}

/* Asks for the norm's weights before the kernel ahead has ended. */
__device__ __forceinline__ void fm_stage_soon(const fm_source &s) {
  if (s.norm)
    for (int i = threadIdx.x * 32; i < s.cols; i += 256 * 32) asm volatile("prefetch.global.L2 [%0];" :: "l"(s.norm + i));
}

/* A row of cols (whole vectors of 8) bf16, by one warp: converted beside f8 weights, else copied. `to` may be `from`. Returns what
   its answers are to be multiplied by. */
template <int F8> __device__ float fm_convert_row_by_warp(uint16_t *to, const uint16_t *from, int cols) {
  constexpr int N = 12, WIDE = N * 256;  // vectors of a lane that are asked for together
  int lane = threadIdx.x & 31;
  uint4 v[N];
  float big = 0, f[8];
  auto take = [&](int i) {
#pragma unroll
    for (int u = 0; u < N; u++) v[u] = i + u * 256 < cols ? *(const uint4 *)(from + i + u * 256) : uint4{ 0, 0, 0, 0 };
  };
  if constexpr (F8)
    for (int i = lane * 8; i < cols; i += WIDE) {
      take(i);
#pragma unroll
      for (int u = 0; u < N; u++) {
        fm_eight<0>(f, v[u]);
#pragma unroll
        for (int x = 0; x < 8; x++) big = fmaxf(big, fabsf(f[x]));
      }
    }
  float unit = fm_row_unit<F8>(fm_warp_max(big));
  for (int i = lane * 8; i < cols; i += WIDE) {
    if (!F8 || cols > WIDE) take(i);
#pragma unroll
    for (int u = 0; u < N; u++) {
      if (F8) {
        __half2 *h = (__half2 *)&v[u];
        fm_eight<0>(f, v[u]);
#pragma unroll
        for (int x = 0; x < 4; x++) h[x] = __floats2half2_rn(f[2 * x] * unit, f[2 * x + 1] * unit);
      }
      if (i + u * 256 < cols) *(uint4 *)(to + i + u * 256) = v[u];
    }
  }
  return 1.0f / unit;
}

/* ---- the stream ---- */

/* A matrix, or a pair of one shape, cut into tiles of 16 weight rows: neighbours, or eight of each of a pair. */
struct fm_group {
  const char *top, *bottom;              /* bottom: the pair's second */
  const float *top_scale, *bottom_scale; /* f8 */
  int rows, cols, tiles, reps;           /* reps: how often a tile is streamed, once for each tile of tokens */
};

template <bool PAIR> __device__ __forceinline__ fm_group fm_group_of(const fm_dmat &a, const fm_dmat &b, int reps) {
  constexpr int R = PAIR ? 8 : 16;
  return { a.data, b.data, a.scale, b.scale, (int)a.rows, (int)a.cols, (int)(a.rows + R - 1) / R, reps };
}

/* Where a block has come to: it takes every gridDim.x-th of all tiles. */
struct fm_place { int group, tile, rep; };

/* The groups of a kernel, in shared memory; their weights are asked for as soon as they are known. ROUNDS: all have tiles of the
   same answers, and a tile is made of all groups before the next one is. */
template <bool PAIR, bool ROUNDS> struct fm_list {
  static constexpr int R = PAIR ? 8 : 16;                                    /* rows of the answer a tile */
  const fm_group *group;
  int n, known, tiles;                   /* tiles: ROUNDS */
  /* Whether there is a tile at p; moves it into its group first. */
  __device__ __forceinline__ bool settle(fm_place &p) const {
    if constexpr (ROUNDS) {
      if (p.group >= n) p.group = 0, p.tile += gridDim.x;
      return p.tile < tiles && p.group < known;
    } else {
      while (p.group < known && p.tile >= group[p.group].tiles) p.tile -= group[p.group++].tiles;
      return p.group < known;
    }
  }
  __device__ __forceinline__ void step(fm_place &p) const {
    if (ROUNDS) p.group++;
    else p.tile += gridDim.x;
  }
};

/* Two f8 (the low, the high two of w) as f16. */
__device__ __forceinline__ void fm_f8_pairs(uint32_t &lo, uint32_t &hi, uint32_t w) {
#if __CUDA_ARCH__ >= 890
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }" : "=r"(lo), "=r"(hi) : "r"(w));
#else
  lo = hi = w;                           // fm_skinny_fits keeps such devices out
#endif
}

/* mma.m16n8k16, f16 in, f32 out: f8 weights of a lane's rows, four neighbours each. */
__device__ __forceinline__ void fm_mma_f8(float *d, uint32_t top, uint32_t bottom, uint32_t b0, uint32_t b1) {
  uint32_t a0, a1, a2, a3;
  fm_f8_pairs(a0, a2, top);
  fm_f8_pairs(a1, a3, bottom);
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Slots of a warp's ring: what two blocks (one of 64 tokens) have room for; of few rows a third one's fit beside them. */
constexpr int fm_ring(int NT) { return NT == 1 ? 2 : NT == 2 ? 5 : NT == 4 ? 4 : 8; }

template <int F8, int NT, int RING = fm_ring(NT)> struct fm_stream {
  static constexpr int STEP = F8 ? 64 : 32, STEPS = NT == 1 ? 4 : 2, CHUNK = STEP * STEPS;    /* of K: a lane's 16 bytes times four lanes; a slot */
  static constexpr int LINE = STEPS * 64, SLOT = 16 * LINE;                  /* bytes of a row, of a slot */
  static constexpr int PART = STEP;                                          /* K is dealt to the warps in parts */
  static constexpr int WARP = RING * (SLOT + (F8 ? STEPS * 8 : 0));          /* a warp's slots, then their scales: (step, top or bottom) */
  static constexpr size_t RINGS = 8 * (size_t)WARP, SUMS = 2 * 8 * 16 * NT * 8 * sizeof(float), SHARED = RINGS + SUMS;
  uint32_t ring, give, take;             /* shared address; slots to ask into and to take from */
  int warp, lane, asked;
  /* where asking has come to: the tile to open next, what is left of the open one */
  fm_place next;
  const char *top, *bottom;              /* this lane's row and column */
  const float *scale;                    /* f8: of the top rows, or (odd lanes) of the bottom ones */
  int pitch, top_rows, bottom_rows, cols, k, end;

  __device__ __forceinline__ void range(int n_cols, int *from, int *to) const {
    int parts = (n_cols + PART - 1) / PART;
    *from = warp * parts / 8 * PART, *to = (warp + 1) * parts / 8 * PART;
  }

  /* Opens tiles until one has something for this warp; false behind the last, and where the list does not know yet. */
  template <bool PAIR, bool ROUNDS> __device__ __forceinline__ bool open(const fm_list<PAIR, ROUNDS> &list) {
    constexpr int BYTES = F8 ? 1 : 2, R = PAIR ? 8 : 16;
    while (k >= end) {
      if (!list.settle(next)) return false;
      const fm_group &g = list.group[next.group];
      int r0 = next.tile * R, r = lane / (LINE / 16);
      cols = g.cols, pitch = cols * BYTES;
      int64_t at = (int64_t)r0 * pitch, mine = r * pitch + lane % (LINE / 16) * 16;
      top = g.top + at + mine, bottom = (PAIR ? g.bottom + at : g.top + at + 8 * pitch) + mine;
      top_rows = g.rows - r0 - r, bottom_rows = PAIR ? top_rows : top_rows - 8;
      if (F8) scale = (PAIR && lane % 2 ? g.bottom_scale : g.top_scale) + (r0 >> 7) * ((cols + 127) / 128);
      range(cols, &k, &end);
      if (++next.rep >= g.reps) next.rep = 0, list.step(next);
    }
    return true;
  }

  /* Asks for the next chunk, behind the last for nothing. */
  __device__ __forceinline__ void request() {
    if (k < end) {
      constexpr int BYTES = F8 ? 1 : 2, C = LINE / 16, ROWS = 32 / C;        // 16-byte pieces of a row; rows that the warp asks for at once
      int r = lane / C, col = k + lane % C * (16 / BYTES);
      uint32_t at = ring + give * SLOT + r * LINE + (lane % C ^ (r & 1) << 2) * 16;
      bool in = col < end && col < cols;
#pragma unroll
      for (int i = 0; i < 16 / ROWS; i++) {
        int down = i % (8 / ROWS) * ROWS;
        bool there = in && down < (i < 8 / ROWS ? top_rows : bottom_rows);
        const char *from = (i < 8 / ROWS ? top : bottom) + (uint32_t)(down * pitch + k * BYTES);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at + i * ROWS * LINE), "l"(there ? from : top), "r"(there ? 16 : 0)
                     : "memory");
      }
      if (F8 && lane < 2 * STEPS)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(ring + RING * SLOT + give * STEPS * 8 + lane * 4),
                     "l"(scale + min(k + lane / 2 * STEP, end - 1) / 128) : "memory");
      k += CHUNK;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    give = give + 1 == RING ? 0 : give + 1;
  }

  __device__ __forceinline__ void begin(char *shared) {
    warp = (threadIdx.x >> 5) % 8, lane = threadIdx.x & 31;
    ring = (uint32_t)__cvta_generic_to_shared(shared) + (threadIdx.x >> 5) * WARP;
    give = take = 0, asked = 0;
    next = { 0, (int)blockIdx.x, 0 }, k = end = 0;
  }
  /* Asks for as much as there is room for and the list knows; to be called again when it knows all, before the first run. */
  template <typename T> __device__ __forceinline__ void fill(const T &list) {
    for (; asked < RING - 1; asked++) {
      if (!open(list) && list.known < list.n) return;
      request();
    }
  }

  /* acc += the warp's part of the sum of the next tile, which has n_cols columns. x: rows of inputs of this lane's token in each
     tile of tokens; NULL: none. */
  template <typename T>
  __device__ __forceinline__ void run(float (&acc)[NT][4], int n_cols, const T &list, const uint16_t *const (&x)[NT]) {
    int from, to, g = lane / 4, q = lane % 4;
    range(n_cols, &from, &to);
    constexpr int EACH = F8 ? 2 : 1, HELD = NT <= 2 ? NT : 1;
    for (int k0 = from; k0 < to; k0 += CHUNK) {
      uint4 v[STEPS][HELD][EACH];        // few inputs are fetched while the weights are on their way
      auto input = [&](uint4 (&in)[EACH], int u, int n) {
        int kk = k0 + u * STEP + q * (STEP / 4);
        bool there = x[n] && kk < n_cols && k0 + u * STEP < to;
#pragma unroll
        for (int h = 0; h < EACH; h++) in[h] = there ? *(const uint4 *)(x[n] + kk + 8 * h) : uint4{ 0, 0, 0, 0 };
      };
#pragma unroll
      for (int u = 0; u < STEPS; u++)
        if constexpr (NT <= 2)
#pragma unroll
          for (int n = 0; n < NT; n++) input(v[u][n], u, n);
      asm volatile("cp.async.wait_group %0;" :: "n"(RING - 2) : "memory");
      __syncwarp();                      // and the slot before this one has been read by all lanes
      open(list);
      request();
      uint32_t at = ring + take * SLOT + g * LINE + q * 16;
#pragma unroll
      for (int u = 0; u < STEPS; u++) {
        if (k0 + u * STEP >= to) break;
        uint4 a, b;
        float top = 1, bottom = 1;
        uint32_t here = at + (u ^ (g & 1)) * 64;
        if (F8) asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(top), "=f"(bottom) : "r"(ring + RING * SLOT + (take * STEPS + u) * 8));
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w) : "r"(here));
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w) : "r"(here + 8 * LINE));
#pragma unroll
        for (int n = 0; n < NT; n++) {
          if constexpr (NT > 2) input(v[0][0], u, n);
          const uint4 (&in)[EACH] = v[NT <= 2 ? u : 0][NT <= 2 ? n : 0];
          if constexpr (F8) {
            float blk[4] = {};
            fm_mma_f8(blk, a.x, b.x, in[0].x, in[0].y);
            fm_mma_f8(blk, a.y, b.y, in[0].z, in[0].w);
            fm_mma_f8(blk, a.z, b.z, in[1].x, in[1].y);
            fm_mma_f8(blk, a.w, b.w, in[1].z, in[1].w);
            acc[n][0] = fmaf(blk[0], top, acc[n][0]), acc[n][1] = fmaf(blk[1], top, acc[n][1]);
            acc[n][2] = fmaf(blk[2], bottom, acc[n][2]), acc[n][3] = fmaf(blk[3], bottom, acc[n][3]);
          } else {
            fm_mma(acc[n], a.x, b.x, a.y, b.y, in[0].x, in[0].y);
            fm_mma(acc[n], a.z, b.z, a.w, b.w, in[0].z, in[0].w);
          }
        }
      }
      take = take + 1 == RING ? 0 : take + 1;
    }
  }
};

/* The warps' sums of element (row of 16, token of NT * 8), in warp order. red: 8 * 16 * NT*8 floats. */
template <int NT> __device__ __forceinline__ void fm_skinny_put(float *red, const float (&acc)[NT][4], int warp, int lane) {
  int g = lane / 4, t = lane % 4;
  red += warp * (16 * NT * 8);
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) red[(g + (i / 2) * 8) * (NT * 8) + n * 8 + 2 * t + i % 2] = acc[n][i];
}
template <int NT> __device__ __forceinline__ float fm_skinny_sum(const float *red, int row, int token) {
  float v = 0;
#pragma unroll
  for (int w = 0; w < 8; w++) v += red[(w * 16 + row) * (NT * 8) + token];
  return v;
}

constexpr int FM_PER_SM = 2;             /* blocks on a multiprocessor */

/* Weights that the skinny kernels can read: 16-byte rows; and a device whose multiprocessors have room for two blocks' rings. */
inline bool fm_skinny_fits(fm_ctx *c, const fm_mat *w) {
  return fm_cuda_of(c)->major == 9 &&
         ((w->dtype == FM_BF16 && w->cols % 8 == 0) || (w->dtype == FM_F8_E4M3 && w->cols % 16 == 0));
}

#endif
