/*
** moe_prompt.cu - experts of prompts on Hopper.
**
**   sort (three launches) -> gather rows, normed, in bf16 or f8 -> gate, up, silu -> (f8) -> down -> combine -> shared expert
*/
#include "moe.cuh"

constexpr int CHUNK = 256;               /* slots a block */

/* This thread's rank among the block's slots of its expert, in slot order; count: (8 warps, experts). */
__device__ int rank_in_block(int32_t *count, int e, int experts) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int i = threadIdx.x; i < 8 * experts; i += CHUNK) count[i] = 0;
  __syncthreads();
  uint32_t same = __match_any_sync(~0u, e);
  int rank = __popc(same & ((1u << lane) - 1));
  if (e >= 0 && rank == 0) count[warp * experts + e] = __popc(same);
  __syncthreads();
  for (int w = 0; e >= 0 && w < warp; w++) rank += count[w * experts + e];
  return rank;
}

__global__ void __launch_bounds__(CHUNK) count_kernel(const int32_t *id, int slots, int experts, int32_t *chunk) {
  extern __shared__ int32_t warps[];
  fm_wait();
  int i = blockIdx.x * CHUNK + threadIdx.x;
  rank_in_block(warps, i < slots ? id[i] : -1, experts);
  for (int e = threadIdx.x; e < experts; e += CHUNK) {
    int n = 0;
    for (int w = 0; w < 8; w++) n += warps[w * experts + e];
    chunk[blockIdx.x * experts + e] = n;
  }
}

/* chunk[c][e] becomes the first place of the chunk's slots of e. One block. */
__global__ void __launch_bounds__(1024) start_kernel(int32_t *chunk, int chunks, int experts, int32_t *start) {
  extern __shared__ int32_t total[];
  fm_wait();
  for (int e = threadIdx.x; e < experts; e += 1024) {
    int n = 0;
    for (int c = 0; c < chunks; c++) n += chunk[c * experts + e];
    total[e] = n;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int at = 0;
    for (int e = 0; e < experts; e++) {
      int n = total[e];
      total[e] = at;
      start[e] = at;
      at += n;
    }
    start[experts] = at;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += 1024) {
    int at = total[e];
    for (int c = 0; c < chunks; c++) {
      int n = chunk[c * experts + e];
      chunk[c * experts + e] = at;
      at += n;
    }
  }
}

__global__ void __launch_bounds__(CHUNK) place_kernel(const int32_t *id, int slots, int experts, const int32_t *chunk, int32_t *place) {
  extern __shared__ int32_t warps[];
  fm_wait();
  int i = blockIdx.x * CHUNK + threadIdx.x, e = i < slots ? id[i] : -1, rank = rank_in_block(warps, e, experts);
  if (i < slots) place[i] = e >= 0 ? chunk[blockIdx.x * experts + e] + rank : -1;
}

/* Eight f32 to f8 with one scale: what 16 lanes share, 128 elements. */
__device__ __forceinline__ uint2 quantise8(const float (&v)[8], float *scale) {
  float big = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) big = fmaxf(big, fabsf(v[i]));
  for (int o = 8; o; o >>= 1) big = fmaxf(big, __shfl_xor_sync(~0u, big, o));
  float s = big > 0 ? big / 448.0f : 1.0f, inv = 1.0f / s;
  uint8_t b[8];
#pragma unroll
  for (int i = 0; i < 8; i++) b[i] = __nv_cvt_float_to_fp8(v[i] * inv, __NV_SATFINITE, __NV_E4M3);
  *scale = s;
  return *(const uint2 *)b;
}

struct gather_job {
  const float *x, *norm; float eps;
  const int32_t *place;
  bf16 *xb;                              /* (n, dim): for the shared expert; NULL: none */
  void *xg; float *xs;                   /* (slots, dim) by place: bf16, or f8 with scales */
  int dim, k;
};

/* A row, normed, to all its places. */
template <int F8> __global__ void __launch_bounds__(256) gather_kernel(gather_job j) {
  fm_wait();
  int64_t row = blockIdx.x;
  const float *x = j.x + row * j.dim;
  float inv = j.norm ? fm_inv_rms(x, j.dim, j.eps) : 1.0f;
  const int32_t *place = j.place + row * j.k;
  for (int i0 = 0; i0 < j.dim; i0 += 2048) {
    int i = i0 + threadIdx.x * 8;
    bool in = i < j.dim;
    float v[8] = {};
    if (in)
#pragma unroll
      for (int e = 0; e < 8; e++) v[e] = x[i + e] * inv * (j.norm ? j.norm[i + e] : 1.0f);
    uint4 h = { fm_pack(v[0], v[1]), fm_pack(v[2], v[3]), fm_pack(v[4], v[5]), fm_pack(v[6], v[7]) };
    if (in && j.xb) *(uint4 *)(j.xb + row * j.dim + i) = h;
    if constexpr (F8) {
      float scale;
      uint2 q = quantise8(v, &scale);
      for (int s = 0; s < j.k && in; s++) {
        if (place[s] < 0) continue;      // another rank's
        *(uint2 *)((uint8_t *)j.xg + (int64_t)place[s] * j.dim + i) = q;
        if (threadIdx.x % 16 == 0) j.xs[(int64_t)place[s] * (j.dim / 128) + i / 128] = scale;
      }
    } else {
      for (int s = 0; s < j.k && in; s++)
        if (place[s] >= 0) *(uint4 *)((bf16 *)j.xg + (int64_t)place[s] * j.dim + i) = h;
    }
  }
}

/* Rows of bf16 (slots, dim) to f8 with scales. */
__global__ void __launch_bounds__(256) quantise_kernel(uint8_t *out, float *scale, const bf16 *h, int64_t len) {
  fm_wait();
  int64_t i = (blockIdx.x * (int64_t)256 + threadIdx.x) * 8;
  float v[8] = {}, s;
  if (i < len) {
    uint4 raw = *(const uint4 *)(h + i);
    fm_eight<0>(v, raw);
  }
  uint2 q = quantise8(v, &s);
  if (i >= len) return;
  *(uint2 *)(out + i) = q;
  if (threadIdx.x % 16 == 0) scale[i / 128] = s;
}

static fm_status sort_many(fm_ctx *c, sorted *s, const int32_t *id, int64_t slots, int64_t experts, const fm_kept *kept) {
  int32_t *chunk;
  unsigned chunks = (unsigned)((slots + CHUNK - 1) / CHUNK);
  TRY(fm_cuda_take_n(c, &s->start, experts + 1));
  if (kept) s->place = kept->place;
  else TRY(fm_cuda_take_n(c, &s->place, slots));
  TRY(fm_cuda_take_n(c, &chunk, chunks * experts));
  fm_launch(c, count_kernel, chunks, CHUNK, 8 * experts * 4, id, (int)slots, (int)experts, chunk);
  fm_launch(c, start_kernel, 1, 1024, experts * 4, chunk, (int)chunks, (int)experts, s->start);
  fm_launch(c, place_kernel, chunks, CHUNK, 8 * experts * 4, id, (int)slots, (int)experts, (const int32_t *)chunk, s->place);
  return fm_cuda_launched(c, "sorting slots");
}

__global__ void __launch_bounds__(256) gate_kernel(bf16 *h, const float *gate, const float *up, int64_t len) {
  fm_wait();
  int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
  if (i < len) h[i] = __float2bfloat16_rn(fm_silu(gate[i]) * up[i]);
}

/* The shared expert of all rows: its first half is made before anything is added to out, which may be x. */
struct shared_job { const fm_experts *e; const float *x; const bf16 *xb; float *gate, *up; int64_t n; };

static bool shared_small(const fm_experts *e) { return fm_cuda_small(e->shared_gate) && fm_cuda_small(e->shared_down); }

static fm_status shared_first(fm_ctx *c, shared_job *j) {
  const fm_experts *e = j->e;
  int64_t d = e->hidden_size, wide = e->shared_gate->rows, n = j->n;
  TRY(fm_cuda_take_n(c, &j->gate, n * wide));
  TRY(fm_cuda_take_n(c, &j->up, n * wide));
  if (!shared_small(e)) {
    TRY(fm_cuda_gemm(c, e->shared_gate, j->xb, d, j->gate, wide, false, NULL, n, false));
    return fm_cuda_gemm(c, e->shared_up, j->xb, d, j->up, wide, false, NULL, n, false);
  }
  fm_mm in[2] = { { .w = e->shared_gate, .x = j->x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = j->gate, .ldo = wide, .n = n },
                  { .w = e->shared_up, .x = j->x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = j->up, .ldo = wide, .n = n } };
  return fm_cuda_matmul(c, in, 2);
}

static fm_status shared_second(fm_ctx *c, const shared_job *j, float *out) {
  const fm_experts *e = j->e;
  int64_t d = e->hidden_size, wide = e->shared_gate->rows, n = j->n;
  if (shared_small(e)) {
    fm_mm down = { .w = e->shared_down, .x = j->gate, .ldx = wide, .up = j->up, .out = out, .ldo = d, .n = n, .add = true };
    return fm_cuda_matmul(c, &down, 1);
  }
  bf16 *h;
  TRY(fm_cuda_take_n(c, &h, n * wide));
  fm_launch(c, gate_kernel, (unsigned)((n * wide + 255) / 256), 256, 0, h, (const float *)j->gate, (const float *)j->up, n * wide);
  return fm_cuda_gemm(c, e->shared_down, h, wide, out, d, false, NULL, n, true);
}

bool fm_moe_plan(fm_ctx *c, fm_grouped g[2], const fm_experts *e, const stack *gate, const stack *up, const stack *down, int64_t n) {
  int64_t d = e->hidden_size, m = e->moe_intermediate_size, size = gate->w.dtype == FM_F8_E4M3 ? 1 : 2;
  bool f8 = size == 1;
  auto step = [&](const stack *s) { return s->step ? s->step : m * d * size; };
  g[0] = { .f8 = f8, .w = gate->w.data, .up = up->w.data, .w_step = step(gate), .up_step = step(up), .ws = gate->w.scale,
           .us = up->w.scale, .ws_step = gate->scale_step, .us_step = up->scale_step, .experts = (int)e->n_experts,
           .slots = n * e->top_k, .n = m, .k = d };
  g[1] = { .f8 = f8, .w = down->w.data, .w_step = step(down), .ws = down->w.scale, .ws_step = down->scale_step,
           .experts = (int)e->n_experts, .slots = n * e->top_k, .n = d, .k = m };
  return !c->generated && c->arithmetic == (f8 ? FM_F8_E4M3 : FM_BF16) && d % 8 == 0 && e->n_experts <= 1024 &&
         fm_grouped_can(c, &g[0]) && fm_grouped_can(c, &g[1]) && (!e->shared_gate || shared_small(e) || fm_cuda_has_gemm(c));
}

fm_status fm_moe_grouped(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                         fm_grouped g[2], int64_t n, const fm_kept *kept) {
  int64_t d = e->hidden_size, m = e->moe_intermediate_size, slots = n * e->top_k, size = g->f8 ? 1 : 2;
  sorted s;
  gather_job in = { .x = x, .norm = e->norm, .eps = e->eps, .dim = (int)d, .k = (int)e->top_k };
  shared_job shared = { .e = e, .x = x, .n = n };
  bf16 *h;
  TRY(sort_many(c, &s, id, slots, e->n_experts, kept));
  if (e->shared_gate && !shared_small(e)) TRY(fm_cuda_take_n(c, &in.xb, n * d));
  TRY(fm_cuda_take(c, &in.xg, slots * d * size));
  if (g->f8) TRY(fm_cuda_take_n(c, &in.xs, slots * (d / 128)));
  TRY(fm_cuda_take_n(c, &h, slots * m));
  in.place = s.place;
  fm_launch(c, g->f8 ? gather_kernel<1> : gather_kernel<0>, (unsigned)n, 256, 0, in);
  g[0].x = in.xg, g[0].xs = in.xs, g[0].out = h, g[0].start = g[1].start = s.start;
  TRY(fm_grouped_run(c, &g[0]));
  g[1].x = h;
  if (g->f8) {
    uint8_t *q;
    float *qs;
    TRY(fm_cuda_take_n(c, &q, slots * m));
    TRY(fm_cuda_take_n(c, &qs, slots * (m / 128)));
    fm_launch(c, quantise_kernel, (unsigned)((slots * m / 8 + 255) / 256), 256, 0, q, qs, (const bf16 *)h, slots * m);
    g[1].x = q, g[1].xs = qs;
  }
  float *y = kept ? kept->y : NULL;
  if (!kept) TRY(fm_cuda_take_n(c, &y, slots * d));
  g[1].out = y;
  TRY(fm_grouped_run(c, &g[1]));
  if (kept) return FM_OK;
  shared.xb = in.xb;
  if (e->shared_gate) TRY(shared_first(c, &shared));
  fm_moe_combine(c, out, y, weight, s.place, NULL, e, n);
  TRY(fm_cuda_launched(c, "experts"));
  return e->shared_gate ? shared_second(c, &shared, out) : FM_OK;
}

