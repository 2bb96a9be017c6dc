/*
** absorb.cu - absorbed MLA before and after its parts, on mma.sync: weights as the left factor, straight from memory to registers;
** rows of the pass as the right one, eight at a time. Weights are asked for before the kernel ahead has ended.
**
**   absorb   a block: one head, 128 latent columns. Warp: 16 of nope's 128, whose sums meet in warp order. Behind these, for a head:
**            the rotary part, which is turned where rows are fresh; and a share of the fresh rows, which are stored.
**   combine  a block: one head, 8 NT rows. A warp a row joins the parts; then two warps' worth of 16 values by four slices of the
**            latent's 512, whose sums meet in order.
*/
#include <math.h>

#include "absorb.cuh"

/* Eight weights, raw, as bf16. f8 without its scale: exact. */
template <int F8> __device__ __forceinline__ uint4 eight_bf16(const uint4 &raw) {
  if constexpr (!F8) return raw;
  float f[8];
  fm_eight<F8>(f, raw);
  return { fm_pack(f[0], f[1]), fm_pack(f[2], f[3]), fm_pack(f[4], f[5]), fm_pack(f[6], f[7]) };
}
/* Element i of a and of b, side by side. */
__device__ __forceinline__ uint32_t beside(const uint4 &a, const uint4 &b, int i) {
  const uint32_t *x = (const uint32_t *)&a, *y = (const uint32_t *)&b;
  return __byte_perm(x[i / 2], y[i / 2], i % 2 ? 0x7632 : 0x5410);
}

/* ---- absorb ---- */

constexpr int SOON_PAGES = 128;          /* the most pages that absorb asks for ahead */
constexpr int RED = 128 + 4;             /* +4: rows of sums start in different banks */

/* The rotary part of head h: the query's, turned if it is not yet. */
__device__ void rotary_part(const attn &a, int h) {
  int half = a.rope / 2, i = blockIdx.z * 256 + threadIdx.x;
  const fm_turning &t = a.fresh.turn;
  bool turn = a.fresh.kv != nullptr;
  float2 angle = { 1, 0 };
  auto look = [&]() {                    // tables and positions stand there since the pass began
    if (turn && i < a.n * half) angle = fm_angle(t, t.pos[a.row0 + i / half], i % half);
  };
  look();
  fm_go_on();
  fm_wait();
  for (; i < a.n * half; i += gridDim.z * 256, look()) {
    int64_t row = i / half;
    int first = turn ? fm_pair_first(t, i % half) : i % half, second = turn ? fm_pair_second(t, i % half) : first + half;
    const float *q = a.q + (a.row0 + row) * a.ldq + (int64_t)h * (a.nope + a.rope) + a.nope;
    bf16 *to = a.qa16 + (row * a.heads + h) * a.width + a.rank;
    float2 y = turn ? fm_turn_pair(q[first], q[second], angle) : float2{ q[first], q[second] };
    to[first] = __float2bfloat16_rn(y.x), to[second] = __float2bfloat16_rn(y.y);
  }
}

/* Every so many of the fresh rows from this block's first on; made: room for one. */
__device__ void store_fresh(const attn &a, float *made) {
  int row = blockIdx.z * gridDim.x + blockIdx.x;
  char *to = nullptr;
  auto look = [&]() {
    if (row < a.fresh.n) to = fm_place_of(a.k, a.s, row), fm_latent_soon(a.fresh, a.fresh.turn.pos[row]);
  };
  look();
  fm_go_on();
  fm_wait();
  for (; row < a.fresh.n; row += gridDim.x * gridDim.z, look()) fm_latent_store(to, made, a.fresh, a.k, row, a.fresh.turn.pos[row]);
}

/* Asks the second-level cache for the pages of the only row's span: those who read them have other things to wait for. */
__device__ __forceinline__ void pages_soon(const attn &a) {
  const fm_span &s = a.s.span[0];
  int first = (int)(s.first_key / FM_PAGE), lines = FM_PAGE * a.k.pitch / 128, n = min((int)(s.index / FM_PAGE) + 1 - first, SOON_PAGES) * lines;
  const int32_t *pages = (const int32_t *)((const char *)s.pages + a.s.delta) + first;
  for (int i = (blockIdx.y * gridDim.x + blockIdx.x) * 256 + threadIdx.x; i < n; i += gridDim.x * (a.rank / 128) * 256)
    asm volatile("prefetch.global.L2 [%0];" :: "l"(a.k.base + pages[i / lines] * a.k.page_stride + i % lines * 128));
}

/* W_UK stands by rows of nope, so its columns are this product's rows: lane 4 g + t reads eight neighbours, 8 g .. 8 g + 7 (and
   64 further), of four rows of nope; column i of the eight is row g of tile i. */
template <int F8> __global__ void __launch_bounds__(256) absorb_kernel(attn a) {
  __shared__ __align__(16) float red[8][8][RED];
  int h = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, qk = a.nope + a.rope;
  int64_t r0 = (int64_t)h * (128 + a.v) + warp * 16 + 2 * t;
  if ((int)blockIdx.y == a.rank / 128) return rotary_part(a, h);
  if ((int)blockIdx.y > a.rank / 128) return store_fresh(a, red[0][0]);
  float scale = 1;
  uint4 raw[4][2];
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int x = 0; x < 2; x++)
      raw[k][x] = fm_raw8<F8>(a.kv_b.data + ((r0 + k / 2 * 8 + k % 2) * a.rank + blockIdx.y * 128 + x * 64 + g * 8) * (F8 ? 1 : 2));
  if (F8) scale = a.kv_b.scale[r0 / 128 * a.kv_b.across + blockIdx.y];
  fm_go_on();
  if (a.n == 1 && a.s.n == 1) pages_soon(a);
  fm_wait();
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int x = 0; x < 2; x++) raw[k][x] = eight_bf16<F8>(raw[k][x]);
  float2 u = { 0, 0 }, v = { 0, 0 };
  auto ask = [&](int row0) {             // this lane's four elements of row row0 + g
    if (row0 + g >= a.n) return;
    const float *q = a.q + (a.row0 + row0 + g) * a.ldq + (int64_t)h * qk + warp * 16 + 2 * t;
    u = *(const float2 *)q, v = *(const float2 *)(q + 8);
  };
  ask(blockIdx.z * 8);
  for (int row0 = blockIdx.z * 8; row0 < a.n; row0 += gridDim.z * 8) {
    uint32_t b0 = fm_pack(u.x, u.y), b1 = fm_pack(v.x, v.y);
    ask(row0 + gridDim.z * 8);
    float acc[8][4] = {};
#pragma unroll
    for (int i = 0; i < 8; i++)
      fm_mma(acc[i], beside(raw[0][0], raw[1][0], i), beside(raw[0][1], raw[1][1], i), beside(raw[2][0], raw[3][0], i),
             beside(raw[2][1], raw[3][1], i), b0, b1);
#pragma unroll
    for (int e = 0; e < 4; e++)
#pragma unroll
      for (int i = 0; i < 8; i += 4)
        *(float4 *)&red[warp][2 * t + e % 2][e / 2 * 64 + g * 8 + i] = { acc[i][e], acc[i + 1][e], acc[i + 2][e], acc[i + 3][e] };
    __syncthreads();
    float4 sum = { 0, 0, 0, 0 };
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float4 x = *(const float4 *)&red[i][warp][lane * 4];
      sum = { sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w };
    }
    if (row0 + warp < a.n) {
      uint2 out = { fm_pack(sum.x * scale, sum.y * scale), fm_pack(sum.z * scale, sum.w * scale) };
      *(uint2 *)(a.qa16 + ((int64_t)(row0 + warp) * a.heads + h) * a.width + blockIdx.y * 128 + lane * 4) = out;
    }
    __syncthreads();
  }
}

/* ---- combine ---- */

constexpr int LAT = 512 + 32;            /* +32: two rows' lanes meet different banks */

/* lat (512) = the answer of (row, h) in the latent space, by a warp: its parts in order, cuts first .. n - 1; N at a time. */
template <int N> __device__ void join_parts(bf16 *lat, const attn &a, int64_t row, int h, int first, int n) {
  int lane = threadIdx.x & 31;
  const float *ms = a.part_ms + ((row - a.row0) * a.heads + h) * a.cuts * 2, *part = a.part + ((row - a.row0) * a.heads + h) * a.cuts * 512;
  float m = -INFINITY, total = 0;
  float4 v[4] = {};
  for (int i = first + lane; i < n; i += 32) m = fmaxf(m, ms[2 * i]);
  m = fm_warp_max(m);
  for (int c = first; c < n; c += 32) {
    float weight = 0;
    if (c + lane < n) {
      float mi = ms[2 * (c + lane)];
      weight = mi > -INFINITY ? expf(mi - m) : mi == mi ? 0.0f : mi;
      total = fmaf(weight, ms[2 * (c + lane) + 1], total);
    }
#pragma unroll N
    for (int i = 0; i < min(32, n - c); i++) {
      float w = __shfl_sync(~0u, weight, i);
#pragma unroll
      for (int x = 0; x < 4; x++) {
        float4 p = *(const float4 *)(part + (int64_t)(c + i) * 512 + x * 128 + lane * 4);
        v[x] = { fmaf(w, p.x, v[x].x), fmaf(w, p.y, v[x].y), fmaf(w, p.z, v[x].z), fmaf(w, p.w, v[x].w) };
      }
    }
  }
  total = fm_warp_sum(total);
  float over = total > 0 ? 1 / total : total;                    // nothing seen: zeros; NaN stays NaN
#pragma unroll
  for (int x = 0; x < 4; x++)
    *(uint2 *)(lat + x * 128 + lane * 4) = { fm_pack(v[x].x * over, v[x].y * over), fm_pack(v[x].z * over, v[x].w * over) };
}

/* Weights of 16 values (rows r .. r + 15) and 128 of the latent (from col on): lane 4 g + t takes eight neighbours at a time. */
template <int F8> __device__ __forceinline__ void ask_values(uint4 (&w)[4][2], const attn &a, int64_t r, int col) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int x = 0; x < 2; x++)
      w[k][x] = fm_raw8<F8>(a.kv_b.data + ((r + lane / 4 + x * 8) * 512 + col + k * 32 + lane % 4 * 8) * (F8 ? 1 : 2));
}

template <int F8, int NT> __global__ void __launch_bounds__(256) combine_kernel(attn a) {
  __shared__ __align__(16) bf16 lat[8 * NT * LAT];
  __shared__ float red[4][8 * NT][33];
  __shared__ bool there[8 * NT];
  int h = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, slice = warp / 2, half = warp % 2;
  int64_t row0 = a.row0 + blockIdx.z * (int64_t)(8 * NT), r0 = (int64_t)h * (a.nope + a.v) + a.nope;
  uint4 w[4][2];
  ask_values<F8>(w, a, r0 + blockIdx.y * 32 + half * 16, slice * 128);
  int first[NT], cuts[NT];               // spans stand there since the pass began
#pragma unroll
  for (int i = 0; i < NT; i++) {
    int64_t row = row0 + i * 8 + warp;
    const fm_span *s = row < a.row0 + a.n ? fm_warp_span(a.s, row) : nullptr;
    int64_t sees = s ? s->index + row - s->row + 1 : 0;
    if (lane == 0) there[i * 8 + warp] = s != nullptr;
    first[i] = s ? first_cut(s->first_key, cut_width(sees, a.heads)) : 0, cuts[i] = s ? cuts_of(sees, a.heads) : 0;
  }
  fm_go_on();
  fm_wait();
#pragma unroll
  for (int i = 0; i < NT; i++)
    if (cuts[i]) join_parts<NT == 1 ? 8 : 4>(lat + (i * 8 + warp) * LAT, a, row0 + i * 8 + warp, h, first[i], cuts[i]);
  __syncthreads();
  for (int v0 = blockIdx.y * 32; v0 < a.v; v0 += gridDim.y * 32) {
    float acc[NT][4] = {}, scale = F8 ? a.kv_b.scale[(r0 + v0 + half * 16) / 128 * a.kv_b.across + slice] : 1.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      uint4 top = eight_bf16<F8>(w[k][0]), low = eight_bf16<F8>(w[k][1]);
#pragma unroll
      for (int i = 0; i < NT; i++) {
        uint4 x = *(const uint4 *)(lat + (i * 8 + g) * LAT + slice * 128 + k * 32 + t * 8);
        fm_mma(acc[i], top.x, low.x, top.y, low.y, x.x, x.y);
        fm_mma(acc[i], top.z, low.z, top.w, low.w, x.z, x.w);
      }
    }
    if (v0 + (int)gridDim.y * 32 < a.v) ask_values<F8>(w, a, r0 + v0 + gridDim.y * 32 + half * 16, slice * 128);
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) red[slice][i * 8 + 2 * t + e % 2][half * 16 + g + e / 2 * 8] = acc[i][e] * scale;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < NT; i++) {
      int r = i * 8 + warp;
      float sum = ((red[0][r][lane] + red[1][r][lane]) + red[2][r][lane]) + red[3][r][lane];
      if (there[r]) a.out[(row0 + r) * a.ldo + (int64_t)h * a.v + v0 + lane] = sum;
    }
    __syncthreads();
  }
}

/* ---- launching ---- */

fm_status fm_absorb_run(fm_ctx *c, const attn *x) {
  int tiles = (x->n + 7) / 8, columns = x->rank / 128 + (x->fresh.kv ? 2 : 1), room = 660 / (x->heads * columns);      // five blocks a multiprocessor
  dim3 grid((unsigned)x->heads, (unsigned)columns, (unsigned)(room < 1 ? 1 : room < tiles ? room : tiles));
  if (x->kv_b.dtype == FM_F8_E4M3) fm_launch(c, absorb_kernel<1>, grid, 256, 0, *x);
  else fm_launch(c, absorb_kernel<0>, grid, 256, 0, *x);
  return fm_cuda_launched(c, "mla_decode");
}

template <int F8> static void combine(fm_ctx *c, const attn *x) {
  int tiles = (x->n + 7) / 8, many = x->heads * tiles > 512;
  // a few blocks would leave the device idle: then the values are dealt out too
  dim3 grid((unsigned)x->heads, x->heads * tiles <= 64 ? (unsigned)(x->v / 32) : 1, (unsigned)(many ? (tiles + 1) / 2 : tiles));
  if (many) fm_launch(c, combine_kernel<F8, 2>, grid, 256, 0, *x);
  else fm_launch(c, combine_kernel<F8, 1>, grid, 256, 0, *x);
}

fm_status fm_combine_run(fm_ctx *c, const attn *x) {
  if (x->kv_b.dtype == FM_F8_E4M3) combine<1>(c, x);
  else combine<0>(c, x);
  return fm_cuda_launched(c, "mla_decode");
}
