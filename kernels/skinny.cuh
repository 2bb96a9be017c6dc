/*
** skinny.cuh - products of stored weights with few rows: bound by the bytes of the weights, so these go from memory to the
** tensor cores' registers with nothing in between.
**
** A block of 8 warps makes MT tiles of 16 weight rows times NT tiles of 8 tokens. The warps share K in eight fixed parts and
** their sums meet in warp order: the order of a sum hangs on K alone, never on how many tokens run together.
**
**   lane = 4 g + t reads 16 bytes of weight rows g and g + 8 at a time: eight bf16 (or sixteen f8) neighbours along K, which
**   are columns 2t, 2t+1, 2t+8, 2t+9 of two (four) mma steps. Inputs are read by the same rule, so the sum is the same.
*/
#ifndef FM_KERNELS_SKINNY_CUH
#define FM_KERNELS_SKINNY_CUH

#include "cuda.cuh"

/* Sixteen rows of a weight from row r0 on. */
struct fm_wtile {
  const char *row0, *row8;               /* this lane's rows g and g + 8, NULL behind the end */
  const float *scale;                    /* f8: scales of this row of blocks */
};

template <int F8> __device__ __forceinline__ fm_wtile fm_wtile_at(const fm_dmat &w, int64_t r0, int lane) {
  int64_t r = r0 + lane / 4, bytes = F8 ? 1 : 2;
  return { r < w.rows ? w.data + r * w.cols * bytes : nullptr, r + 8 < w.rows ? w.data + (r + 8) * w.cols * bytes : nullptr,
           F8 ? w.scale + r0 / 128 * w.across : nullptr };
}

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

__device__ __forceinline__ uint4 fm_weight16(const char *row, int64_t at, bool in) {
  uint4 v = { 0, 0, 0, 0 };
  if (row && in) asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                              : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(row + at));
  return v;
}

template <int F8, int MT, int NT> struct fm_skinny {
  static constexpr int U = F8 ? (MT == 1 ? 4 : 2) : (MT == 1 ? 8 : 4);   /* loads in flight: 64 registers of them, 32 of f8 */
  static constexpr int STEP = F8 ? 64 : 32;                               /* of K, a lane's 16 bytes times four lanes */
  static constexpr int PART = F8 ? 128 : 32;                              /* K is dealt to the warps in these */
  uint4 a[U][MT][2];
  int64_t k, end;

  __device__ __forceinline__ void load(const fm_wtile (&w)[MT], int64_t cols, int t) {
#pragma unroll
    for (int u = 0; u < U; u++) {
      int64_t at = k + u * STEP + t * (STEP / 4);
      bool in = at < cols && k + u * STEP < end;
#pragma unroll
      for (int m = 0; m < MT; m++) {
        a[u][m][0] = fm_weight16(w[m].row0, at * (F8 ? 1 : 2), in);
        a[u][m][1] = fm_weight16(w[m].row8, at * (F8 ? 1 : 2), in);
      }
    }
  }

  /* The first loads; may stand before fm_wait(). */
  __device__ __forceinline__ void begin(const fm_wtile (&w)[MT], int64_t cols, int warp, int lane) {
    int64_t parts = (cols + PART - 1) / PART;
    k = warp * parts / 8 * PART;
    end = (warp + 1) * parts / 8 * PART;
    load(w, cols, lane & 3);
  }

  /* acc += the warp's part of the sum. f8: in units of FM_F8_UNIT, undone where the scale is applied. */
  template <typename X> __device__ __forceinline__ void run(float (&acc)[MT][NT][4], const fm_wtile (&w)[MT], int64_t cols,
                                                            const X (&x)[NT], int lane) {
    int t = lane & 3;
    float blk[F8 ? MT : 1][F8 ? NT : 1][4];
    while (k < end) {
#pragma unroll
      for (int u = 0; u < U; u++) {
        if (k + u * STEP >= end) break;
        if constexpr (F8) {
          if (u % 2 == 0)
#pragma unroll
            for (int i = 0; i < MT * NT * 4; i++) (&blk[0][0][0])[i] = 0;
        }
        int64_t at = k + u * STEP + t * (STEP / 4);
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
          for (int half = 0; half < (F8 ? 2 : 1); half++) {
            uint4 b = { 0, 0, 0, 0 };
            if (x[n].row && at < cols) b = fm_input8(x[n], at + 8 * half, F8 ? FM_F8_INPUT : 1.0f);
#pragma unroll
            for (int m = 0; m < MT; m++) {
              if constexpr (F8) {
                const uint4 &p = a[u][m][0], &q = a[u][m][1];
                uint32_t p0 = half ? p.z : p.x, p1 = half ? p.w : p.y, q0 = half ? q.z : q.x, q1 = half ? q.w : q.y;
                fm_mma(blk[m][n], fm_f8_pair(p0, 0), fm_f8_pair(q0, 0), fm_f8_pair(p0, 1), fm_f8_pair(q0, 1), b.x, b.y);
                fm_mma(blk[m][n], fm_f8_pair(p1, 0), fm_f8_pair(q1, 0), fm_f8_pair(p1, 1), fm_f8_pair(q1, 1), b.z, b.w);
              } else {
                const uint4 &p = a[u][m][0], &q = a[u][m][1];
                fm_mma(acc[m][n], p.x, q.x, p.y, q.y, b.x, b.y);
                fm_mma(acc[m][n], p.z, q.z, p.w, q.w, b.z, b.w);
              }
            }
          }
        }
        if constexpr (F8) {
          if (u % 2 == 1) {              // a block of 128 is complete
            int64_t block = (k + u * STEP) / 128;
#pragma unroll
            for (int m = 0; m < MT; m++) {
              float s = w[m].scale[block] * FM_F8_UNIT;
#pragma unroll
              for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(blk[m][n][i], s, acc[m][n][i]);
            }
          }
        }
      }
      k += U * STEP;
      if (k < end) load(w, cols, t);
    }
  }
};

/* The warps' sums of element (row of MT * 16, token of NT * 8), in warp order. red: 8 * MT*16 * NT*8 floats. */
template <int MT, int NT> __device__ __forceinline__ void fm_skinny_put(float *red, const float (&acc)[MT][NT][4], int warp, int lane) {
  int g = lane / 4, t = lane % 4;
  red += warp * (MT * 16 * NT * 8);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) red[(m * 16 + g + (i / 2) * 8) * (NT * 8) + n * 8 + 2 * t + i % 2] = acc[m][n][i];
}
template <int MT, int NT> __device__ __forceinline__ float fm_skinny_sum(const float *red, int row, int token) {
  float v = 0;
#pragma unroll
  for (int w = 0; w < 8; w++) v += red[(w * MT * 16 + row) * (NT * 8) + token];
  return v;
}

/* Weights that the skinny kernels can read: 16-byte rows. */
inline bool fm_skinny_fits(const fm_mat *w) {
  return (w->dtype == FM_BF16 && w->cols % 8 == 0) || (w->dtype == FM_F8_E4M3 && w->cols % 16 == 0);
}

#endif
