/*
** exact.cu - f32 products of many rows on tensor cores: each number is three of bf16 (8 bits each: all 24), of whose nine products the
** six that matter are summed, small ones first. What is left out is below 2^-24 of the largest.
**
** A block: 32 tokens, 64 weight rows. A warp takes every eighth run of 16 along K, straight from memory into the layout of mma, a run
** ahead; where in a run an element stands does not matter as long as both factors agree. Then the warps' sums are added in order.
*/
#include "exact.cuh"

constexpr int TOKENS = 32, ROWS = 64, WARPS = 8;

/* Four f32 as two registers of bf16 pairs, and what is missing, twice. */
struct triple { uint32_t part[3][2]; };

__device__ __forceinline__ uint32_t split_pair(float &a, float &b) {
  uint32_t p = fm_pack(a, b);
  a -= __uint_as_float(p << 16), b -= __uint_as_float(p & 0xffff0000u);
  return p;
}
__device__ __forceinline__ triple split(float4 v) {
  triple t;
#pragma unroll
  for (int i = 0; i < 3; i++) t.part[i][0] = split_pair(v.x, v.y), t.part[i][1] = split_pair(v.z, v.w);
  return t;
}

/* A run of 16 of K: this lane's four elements of token g + 8i, and of weight row g + 8i. */
struct run { float4 x[TOKENS / 8], w[ROWS / 8], norm; };

struct reader {
  const float *x, *w, *norm;             /* at this lane's columns of the warp's first run */
  int64_t ldx, k, tokens, rows;          /* how many are there */
  int g;

  __device__ __forceinline__ void read(run &r, int64_t at) const {
    const float4 zero = { 0, 0, 0, 0 };
#pragma unroll
    for (int i = 0; i < TOKENS / 8; i++) r.x[i] = g + i * 8 < tokens ? *(const float4 *)(x + (g + i * 8) * ldx + at) : zero;
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) r.w[i] = g + i * 8 < rows ? *(const float4 *)(w + (g + i * 8) * k + at) : zero;
    if (norm) r.norm = *(const float4 *)(norm + at);
  }
};

__device__ __forceinline__ void multiply(float (&acc)[TOKENS / 16][ROWS / 8][4], const run &r, bool normed, float (&square)[TOKENS / 8]) {
  triple x[TOKENS / 8];
#pragma unroll
  for (int i = 0; i < TOKENS / 8; i++) {
    float4 v = r.x[i];
    square[i] = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, square[i]))));
    if (normed) v = { v.x * r.norm.x, v.y * r.norm.y, v.z * r.norm.z, v.w * r.norm.w };
    x[i] = split(v);
  }
#pragma unroll
  for (int n = 0; n < ROWS / 8; n++) {
    triple w = split(r.w[n]);
    float sum[TOKENS / 16][4] = {};      // of this run alone: tensor cores cut off what is small beside what they add to
#pragma unroll
    for (int small = 2; small >= 0; small--)
#pragma unroll
      for (int i = 0; i <= small; i++)
#pragma unroll
        for (int m = 0; m < TOKENS / 16; m++) {
          const uint32_t *a = x[2 * m].part[i], *b = x[2 * m + 1].part[i];
          fm_mma(sum[m], a[0], b[0], a[1], b[1], w.part[small - i][0], w.part[small - i][1]);
        }
#pragma unroll
    for (int m = 0; m < TOKENS / 16; m++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[m][n][e] += sum[m][e];
  }
}

/* shared: sums (WARPS, TOKENS, ROWS + 2), then squares (WARPS, TOKENS). */
constexpr int PITCH = ROWS + 2;
constexpr size_t SHARED = WARPS * TOKENS * (PITCH + 1) * sizeof(float);

__global__ void __launch_bounds__(WARPS * 32, 1) exact_many_kernel(plain_job j) {
  extern __shared__ __align__(16) float sums[];
  float *squares = sums + WARPS * TOKENS * PITCH;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  int64_t r0 = blockIdx.x * (int64_t)ROWS, i0 = blockIdx.y * (int64_t)TOKENS, k = j.w.cols, at = warp * 16 + t * 4;
  reader from = { j.x + i0 * j.ldx + at, (const float *)j.w.data + r0 * k + at, j.norm ? j.norm + at : nullptr, j.ldx, k, j.n - i0, j.w.rows - r0, g };
  float acc[TOKENS / 16][ROWS / 8][4] = {}, square[TOKENS / 8] = {};
  run r, next;
  fm_go_on();
  fm_wait();
  from.read(r, 0);
  for (int64_t k0 = 0; k0 < k; k0 += WARPS * 16) {
    if (k0 + WARPS * 16 < k) from.read(next, k0 + WARPS * 16);
    multiply(acc, r, j.norm, square);
    r = next;
  }
#pragma unroll
  for (int m = 0; m < TOKENS / 16; m++)
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        *(float2 *)(sums + (warp * TOKENS + m * 16 + g + e * 8) * PITCH + n * 8 + 2 * t) = { acc[m][n][2 * e], acc[m][n][2 * e + 1] };
#pragma unroll
  for (int i = 0; i < TOKENS / 8; i++) {
    float s = square[i];
    s += __shfl_xor_sync(~0u, s, 1);
    s += __shfl_xor_sync(~0u, s, 2);
    if (t == 0) squares[warp * TOKENS + g + i * 8] = s;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < TOKENS * ROWS; e += WARPS * 32) {
    int token = e / ROWS, row = e % ROWS;
    float v = 0, s = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += sums[(i * TOKENS + token) * PITCH + row], s += squares[i * TOKENS + token];
    if (j.norm) v *= rsqrtf(s / (float)k + j.eps);
    if (i0 + token < j.n && r0 + row < j.w.rows) j.out[(i0 + token) * j.ldo + r0 + row] = v;
  }
}

void fm_exact_many(fm_ctx *c, const plain_job *j) {
  cudaFuncSetAttribute(exact_many_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED);
  fm_launch(c, exact_many_kernel, dim3((unsigned)((j->w.rows + ROWS - 1) / ROWS), (unsigned)((j->n + TOKENS - 1) / TOKENS)), WARPS * 32, SHARED, *j);
}
