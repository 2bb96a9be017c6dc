/*
** skinny.cuh - products of stored weights with few rows: bound by the bytes of the weights, so these stream without a pause.
**
** A block of 8 warps makes items one after the other: 16 weight rows times NT tiles of 8 tokens. The warps share K in eight fixed
** parts and their sums meet in warp order: the order of a sum hangs on K alone, never on how many tokens run together.
**
** Each warp has a ring of its own in shared memory: 16 rows x 256 bytes a slot, asked for (cp.async) a slot ahead, over the
** ends of items; no warp waits for another but where the sums meet.
**
**   lane = 4 g + t takes 16 bytes of weight rows g and g + 8 at a time: eight bf16 (or sixteen f8) neighbours along K, which
**   are columns 2t, 2t+1, 2t+8, 2t+9 of two (four) mma steps. Inputs are read by the same rule, so the sum is the same.
*/
#ifndef FM_KERNELS_SKINNY_CUH
#define FM_KERNELS_SKINNY_CUH

#include "cuda.cuh"

/* Inputs: row of this lane's token (column g) in each token tile; NULL: none. */
struct fm_x32 { const float *row, *norm; };        /* f32, times the norm's weights when there are any */

__device__ __forceinline__ uint4 fm_input8(const fm_x32 &x, int64_t k, float unit) {
  float4 a = *(const float4 *)(x.row + k), b = *(const float4 *)(x.row + k + 4);
  if (x.norm) {
    float4 u = *(const float4 *)(x.norm + k), v = *(const float4 *)(x.norm + k + 4);
    a = { a.x * u.x, a.y * u.y, a.z * u.z, a.w * u.w };
    b = { b.x * v.x, b.y * v.y, b.z * v.z, b.w * v.w };
  }
  return { fm_pack(a.x * unit, a.y * unit), fm_pack(a.z * unit, a.w * unit), fm_pack(b.x * unit, b.y * unit),
           fm_pack(b.z * unit, b.w * unit) };
}

struct fm_x16 { const bf16 *row; };

__device__ __forceinline__ uint4 fm_input8(const fm_x16 &x, int64_t k, float unit) {
  uint4 v = *(const uint4 *)(x.row + k);
  if (unit == 1.0f) return v;
  __nv_bfloat162 u = __float2bfloat162_rn(unit), *p = (__nv_bfloat162 *)&v;
  for (int i = 0; i < 4; i++) p[i] = __hmul2(p[i], u);      // a power of two: exact
  return v;
}

/* What an item reads: rows 0..7 at top, 8..15 at bottom (neighbours in one matrix, or a gate's and an up's). */
struct fm_tile {
  const char *top, *bottom;
  int top_rows, bottom_rows;             /* that are there */
  int cols;
  const float *top_scale, *bottom_scale; /* f8: scales of these rows' blocks, along K */
  int reps;                              /* how often the item is streamed: once for each tile of tokens, or for each matrix */
};

template <int F8> __device__ __forceinline__ fm_tile fm_tile16(const fm_dmat &w, int r0, int reps) {
  int64_t bytes = F8 ? 1 : 2;
  const float *scale = F8 ? w.scale + r0 / 128 * w.across : nullptr;
  return { w.data + r0 * w.cols * bytes, w.data + (r0 + 8) * w.cols * bytes, (int)w.rows - r0, (int)w.rows - r0 - 8, (int)w.cols, scale,
           scale, reps };
}
template <int F8> __device__ __forceinline__ fm_tile fm_tile_pair(const fm_dmat &a, const fm_dmat &b, int r0, int reps) {
  int64_t bytes = F8 ? 1 : 2;
  return { a.data + r0 * a.cols * bytes, b.data + r0 * b.cols * bytes, (int)a.rows - r0, (int)b.rows - r0, (int)a.cols,
           F8 ? a.scale + r0 / 128 * a.across : nullptr, F8 ? b.scale + r0 / 128 * b.across : nullptr, reps };
}

/* Blocks on a multiprocessor. Measured on an H100, 64 rows of V2-Lite's experts: two with rings of two 352 us; one with rings of
   five 403, of three 391, of two 421. */
constexpr int FM_PER_SM = 2;

template <int F8, int NT> struct fm_stream {
  static constexpr int RING = 2, PITCH = 256 + 64, SLOT = 16 * PITCH;        /* +64: two rows' lanes meet different banks */
  static constexpr int STEP = F8 ? 64 : 32;                                  /* of K, a lane's 16 bytes times four lanes */
  static constexpr int PART = F8 ? 64 : 32, CHUNK = F8 ? 256 : 128;          /* K is dealt to the warps in parts; a slot of K */
  static constexpr size_t SHARED = 8 * RING * (size_t)SLOT + 2 * 8 * 16 * NT * 8 * sizeof(float);
  char *ring;
  uint32_t slot;                         /* of the next chunk to take */
  /* where asking has come to */
  fm_tile ask;
  int item, rep, k, end;
  int warp, lane;

  __device__ __forceinline__ void range(int cols, int *from, int *to) const {
    int parts = (cols + PART - 1) / PART;
    *from = warp * parts / 8 * PART, *to = (warp + 1) * parts / 8 * PART;
  }

  /* Asks for the next chunk; behind the last item for nothing. `tile(item, rep, &t)` is false there. */
  template <typename T> __device__ __forceinline__ void request(uint32_t to, T tile) {
    while (item >= 0 && k >= end) {
      if (++rep >= ask.reps) rep = 0, item += gridDim.x;
      if (!tile(item, rep, &ask)) item = -1;
      else range(ask.cols, &k, &end);
    }
    if (item >= 0) {
      uint32_t at = (uint32_t)__cvta_generic_to_shared(ring) + to * SLOT + lane % 16 * 16;
      int col = k + lane % 16 * (CHUNK / 16), bytes = F8 ? 1 : 2;
      bool in = col < end && col < ask.cols;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        int r = i % 4 * 2 + lane / 16;
        bool there = in && r < (i < 4 ? ask.top_rows : ask.bottom_rows);
        const char *from = (i < 4 ? ask.top : ask.bottom) + ((int64_t)r * ask.cols + col) * bytes;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at + (i / 4 * 8 + r) * PITCH),
                     "l"(there ? from : ask.top), "r"(there ? 16 : 0) : "memory");
      }
      k += CHUNK;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  /* From item blockIdx.x on. */
  template <typename T> __device__ __forceinline__ void begin(char *shared, T tile) {
    warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    ring = shared + warp * RING * SLOT;
    slot = 0;
    item = blockIdx.x, rep = 0;
    if (!tile(item, rep, &ask)) item = -1;
    else range(ask.cols, &k, &end);
    for (uint32_t i = 0; i < RING - 1; i++) request(i, tile);
  }

  /* acc += the warp's part of the sum of the tile t (which `tile` gave for this item and rep, in order). */
  template <typename T, typename X>
  __device__ __forceinline__ void run(float (&acc)[NT][4], const fm_tile &t, T tile, const X (&x)[NT]) {
    int from, to, g = lane / 4, q = lane % 4;
    range(t.cols, &from, &to);
    constexpr int STEPS = CHUNK / STEP, EACH = F8 ? 2 : 1;
    for (int k0 = from; k0 < to; k0 += CHUNK) {
      uint4 v[STEPS][NT <= 2 ? NT : 1][EACH];        // few inputs are fetched while the weights are on their way
      auto input = [&](uint4 (&to_)[EACH], int u, int n) {
        int kk = k0 + u * STEP + q * (STEP / 4);
        bool in = x[n].row && kk < t.cols && k0 + u * STEP < to;
#pragma unroll
        for (int h = 0; h < EACH; h++) {
          to_[h] = { 0, 0, 0, 0 };
          if (in) to_[h] = fm_input8(x[n], kk + 8 * h, F8 ? FM_F8_INPUT : 1.0f);
        }
      };
      if constexpr (NT <= 2)
#pragma unroll
        for (int u = 0; u < STEPS; u++)
#pragma unroll
          for (int n = 0; n < NT; n++) input(v[u][n], u, n);
      asm volatile("cp.async.wait_group %0;" :: "n"(RING - 2) : "memory");
      __syncwarp();
      const char *at = ring + slot % RING * SLOT + q * 16;
#pragma unroll
      for (int u = 0; u < STEPS; u++) {
        if (k0 + u * STEP >= to) break;
        uint4 a = *(const uint4 *)(at + g * PITCH + u * 64), b = *(const uint4 *)(at + (g + 8) * PITCH + u * 64);
#pragma unroll
        for (int n = 0; n < NT; n++) {
          if constexpr (NT > 2) input(v[0][0], u, n);
          const uint4 (&in)[EACH] = v[NT <= 2 ? u : 0][NT <= 2 ? n : 0];
          if constexpr (F8) {
            float blk[4] = {};
            fm_mma(blk, fm_f8_pair(a.x, 0), fm_f8_pair(b.x, 0), fm_f8_pair(a.x, 1), fm_f8_pair(b.x, 1), in[0].x, in[0].y);
            fm_mma(blk, fm_f8_pair(a.y, 0), fm_f8_pair(b.y, 0), fm_f8_pair(a.y, 1), fm_f8_pair(b.y, 1), in[0].z, in[0].w);
            fm_mma(blk, fm_f8_pair(a.z, 0), fm_f8_pair(b.z, 0), fm_f8_pair(a.z, 1), fm_f8_pair(b.z, 1), in[1].x, in[1].y);
            fm_mma(blk, fm_f8_pair(a.w, 0), fm_f8_pair(b.w, 0), fm_f8_pair(a.w, 1), fm_f8_pair(b.w, 1), in[1].z, in[1].w);
            int block = (k0 + u * STEP) / 128;
            float s0 = t.top_scale[block] * FM_F8_UNIT, s1 = t.bottom_scale[block] * FM_F8_UNIT;
            acc[n][0] = fmaf(blk[0], s0, acc[n][0]), acc[n][1] = fmaf(blk[1], s0, acc[n][1]);
            acc[n][2] = fmaf(blk[2], s1, acc[n][2]), acc[n][3] = fmaf(blk[3], s1, acc[n][3]);
          } else {
            fm_mma(acc[n], a.x, b.x, a.y, b.y, in[0].x, in[0].y);
            fm_mma(acc[n], a.z, b.z, a.w, b.w, in[0].z, in[0].w);
          }
        }
      }
      __syncwarp();
      request((slot + RING - 1) % RING, tile);
      slot++;
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

/* Weights that the skinny kernels can read: 16-byte rows; and a device whose multiprocessors have room for two blocks' rings. */
inline bool fm_skinny_fits(fm_ctx *c, const fm_mat *w) {
  return fm_cuda_of(c)->major == 9 &&
         ((w->dtype == FM_BF16 && w->cols % 8 == 0) || (w->dtype == FM_F8_E4M3 && w->cols % 16 == 0));
}

#endif
