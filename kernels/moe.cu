/*
** moe.cu - the router's choice, and the experts (those of prompts on Hopper: moe_prompt.cu). Slots (row, k) are sorted by expert on the device, each chosen expert is read
** once for all its rows, and the answers are added in slot order.
**
**   route -> sort (+ inputs in bf16) -> gate, up, silu -> down -> combine
**
** Nothing here comes back to the host: grids are made for the most experts that the rows can choose, and blocks without work end.
*/
#include <math.h>

#include "moe.cuh"
#include "skinny.cuh"

/* ---- router: a warp a row ---- */

constexpr int ROUTE_ROWS = 4;

struct route_job {
  int32_t *id;
  float *weight;
  const float *logits, *bias;
  int n, experts, k, groups, topk_group, sigmoid, top2, norm;
  float factor;
};

__device__ void route_scores(float *s, const float *z, const route_job &j, int lane) {
  float max = -INFINITY;
  double sum = 0;
  if (j.sigmoid) {
    for (int i = lane; i < j.experts; i += 32) s[i] = (float)(1.0 / (1.0 + exp(-(double)z[i])));
    return;
  }
  for (int i = lane; i < j.experts; i += 32)
    if (z[i] > max) max = z[i];
  max = fm_warp_max(max);
  for (int i = lane; i < j.experts; i += 32) sum += exp((double)z[i] - max);
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  for (int i = lane; i < j.experts; i += 32) s[i] = (float)(exp((double)z[i] - max) / sum);
}

/* A group survives when fewer than topk_group groups beat it; of equal ones the lower wins. */
__device__ void route_groups(float *c, float *worth, const route_job &j, int lane) {
  int n = j.experts / j.groups;
  for (int g = lane; g < j.groups; g += 32) {
    float a = -INFINITY, b = -INFINITY;
    for (int i = 0; i < n; i++) {
      float v = c[g * n + i];
      if (v > a) b = a, a = v;
      else if (v > b) b = v;
    }
    worth[g] = j.top2 && n > 1 ? a + b : a;
  }
  __syncwarp();
  for (int i = lane; i < j.experts; i += 32) {
    int g = i / n, better = 0;
    for (int o = 0; o < j.groups; o++) better += worth[o] > worth[g] || (worth[o] == worth[g] && o < g);
    if (better >= j.topk_group) c[i] = -INFINITY;
  }
  __syncwarp();
}

__device__ int route_best(const float *c, int n, int lane) {
  float v = -INFINITY;
  int best = INT32_MAX;
  for (int i = lane; i < n; i += 32)
    if (!isnan(c[i]) && (best == INT32_MAX || c[i] > v)) v = c[i], best = i;
  for (int o = 16; o; o >>= 1) {
    float w = __shfl_xor_sync(~0u, v, o);
    int b = __shfl_xor_sync(~0u, best, o);
    if (b != INT32_MAX && (best == INT32_MAX || w > v || (w == v && b < best))) v = w, best = b;
  }
  return best;
}

__global__ void __launch_bounds__(32 * ROUTE_ROWS) route_kernel(route_job j) {
  extern __shared__ float shared[];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = blockIdx.x * ROUTE_ROWS + warp;
  fm_go_on();
  fm_wait();
  if (row >= j.n) return;
  float *s = shared + warp * (2 * j.experts + j.groups), *c = s + j.experts, *worth = c + j.experts, sum = 0;
  int32_t *id = j.id + row * (int64_t)j.k;
  route_scores(s, j.logits + row * (int64_t)j.experts, j, lane);
  for (int i = lane; i < j.experts; i += 32) {
    c[i] = j.bias ? s[i] + j.bias[i] : s[i];
    if (isnan(c[i])) c[i] = -INFINITY;
  }
  __syncwarp();
  if (j.groups > 1) route_groups(c, worth, j, lane);
  for (int k = 0; k < j.k; k++) {
    int best = route_best(c, j.experts, lane);
    if (lane == 0) {
      int at = k;
      c[best] = NAN;                     // taken
      for (; at > 0 && id[at - 1] > best; at--) id[at] = id[at - 1];
      id[at] = best;
    }
    __syncwarp();
  }
  if (lane) return;
  for (int k = 0; k < j.k; k++) sum += s[id[k]];
  for (int k = 0; k < j.k; k++) {
    float w = s[id[k]];
    if (j.norm) w /= sum + 1e-20f;
    j.weight[row * (int64_t)j.k + k] = w * j.factor;
  }
}

fm_status fm_cuda_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                        const fm_route *r, int64_t n) {
  if (n == 0) return FM_OK;
  route_job j = { topk_id, topk_weight, logits, bias, (int)n, (int)r->n_experts, (int)r->top_k, (int)(r->n_group > 1 ? r->n_group : 1),
                  (int)r->topk_group, r->sigmoid, r->group_top2, r->norm_topk_prob, r->routed_scaling_factor };
  size_t size = ROUTE_ROWS * (2 * r->n_experts + j.groups) * sizeof(float);
  if (size > 48 << 10) return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: %lld experts are too many", (long long)r->n_experts);
  fm_launch(c, route_kernel, (unsigned)((n + ROUTE_ROWS - 1) / ROUTE_ROWS), 32 * ROUTE_ROWS, size, j);
  return fm_cuda_launched(c, "route");
}

/* ---- sort: slots by expert, stable; blocks from 1 on make the inputs ---- */

struct input_job { bf16 *xb; float *inv; const float *x, *norm; float eps; int64_t dim; };

__device__ void sort_slots(const int32_t *id, int slots, int k, int experts, const sorted &s) {
  extern __shared__ int32_t count[];     // (experts + 1)
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  for (int e = warp; e < experts; e += warps) {
    int n = 0;
    for (int i = 0; i < slots; i += 32) n += __popc(__ballot_sync(~0u, i + lane < slots && id[i + lane] == e));
    if (lane == 0) count[e] = n;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int at = 0, active = 0;
    for (int e = 0; e < experts; e++) {
      int n = count[e];
      count[e] = at;
      s.start[e] = at;
      if (n) s.active[active++] = e;
      at += n;
    }
    s.start[experts] = at;
    *s.n_active = active;
  }
  __syncthreads();
  for (int e = warp; e < experts; e += warps) {
    int at = count[e];
    for (int i = 0; i < slots; i += 32) {
      bool mine = i + lane < slots && id[i + lane] == e;
      uint32_t all = __ballot_sync(~0u, mine);
      if (mine) {
        int p = at + __popc(all & ((1u << lane) - 1));
        s.row[p] = (i + lane) / k;
        s.place[i + lane] = p;
      }
      at += __popc(all);
    }
  }
}

__device__ float wide_inv_rms(const float *x, int64_t dim, float eps, bool mine) {
  float sum = 0;                         // the first 256 threads, in the order of fm_inv_rms
  __shared__ float part[8];
  if (mine)
    for (int64_t i = threadIdx.x; i < dim; i += 256) sum = fmaf(x[i], x[i], sum);
  sum = fm_warp_sum(sum);
  if (mine && (threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = sum;
  __syncthreads();
  sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  return rsqrtf(sum / (float)dim + eps);
}

__global__ void __launch_bounds__(1024) sort_kernel(const int32_t *id, int slots, int k, int experts, sorted s, input_job in) {
  fm_wait();
  if (blockIdx.x == 0) {
    sort_slots(id, slots, k, experts, s);
    return;
  }
  int64_t row = blockIdx.x - 1;
  const float *x = in.x + row * in.dim;
  if (in.norm) {
    float r = wide_inv_rms(x, in.dim, in.eps, threadIdx.x < 256);
    if (threadIdx.x == 0) in.inv[row] = r;
  }
  for (int64_t i = threadIdx.x; i < in.dim; i += blockDim.x)
    in.xb[row * in.dim + i] = __float2bfloat16_rn(in.norm ? x[i] * in.norm[i] : x[i]);
}

/* ---- gate and up, then down: grouped skinny products ---- */

struct expert_job {
  sorted s;
  stack gate, up, down;
  fm_dmat shared_gate, shared_up, shared_down;              /* rows 0: none */
  const bf16 *xb; const float *inv;
  bf16 *h, *shared_h;                    /* (slots, width), (n, shared width) */
  float *y, *shared_y;                   /* (slots, hidden), (n, hidden) */
  int n, most;                           /* rows; most active experts */
  /* one row: its slots are its experts, nothing is sorted */
  const int32_t *id; const float *weight;
  const float *x, *norm; float eps;
  float *out;
};

__device__ __forceinline__ fm_dmat pick(const stack &s, int e) {
  fm_dmat w = s.w;
  w.data += e * s.step;
  w.scale += e * s.scale_step;
  return w;
}

constexpr int MOST_EXPERTS = 512;

/* The chosen experts and their places, where asking for the next weights can look them up at once. */
struct chosen { int e[MOST_EXPERTS], first[MOST_EXPERTS], end[MOST_EXPERTS]; };

__device__ __forceinline__ int list_chosen(chosen &c, const expert_job &j, bool one) {
  int n = one ? j.most : *j.s.n_active;
  for (int a = threadIdx.x; a < n; a += 256) {
    int e = one ? j.id[a] : j.s.active[a];
    c.e[a] = e, c.first[a] = one ? a : j.s.start[e], c.end[a] = one ? a + 1 : j.s.start[e + 1];
  }
  __syncthreads();
  return n;
}

/* Item -> the rows of one expert (places first .. end - 1), or of the shared one (expert -1), and a tile of its weight. */
struct expert_items {
  const expert_job &j;
  const chosen &c;
  int tiles, active, items;
  __device__ __forceinline__ bool at(int item, int *e, int *tile, int *first, int *end) const {
    if (item >= items) return false;
    if (item >= active * tiles) {
      *e = -1, *tile = item - active * tiles, *first = 0, *end = j.n;
      return true;
    }
    int a = item / tiles;
    *tile = item - a * tiles;
    *e = c.e[a], *first = c.first[a], *end = c.end[a];
    return true;
  }
};

template <int F8, int NT> struct pair_tiles : expert_items {
  __device__ __forceinline__ bool operator()(int item, int, fm_tile *t) const {
    int e, tile, first, end;
    if (!at(item, &e, &tile, &first, &end)) return false;
    *t = fm_tile_pair<F8>(e < 0 ? j.shared_gate : pick(j.gate, e), e < 0 ? j.shared_up : pick(j.up, e), tile * 8,
                          (end - first + NT * 8 - 1) / (NT * 8));
    return true;
  }
};
template <int F8, int NT> struct down_tiles : expert_items {
  __device__ __forceinline__ bool operator()(int item, int, fm_tile *t) const {
    int e, tile, first, end;
    if (!at(item, &e, &tile, &first, &end)) return false;
    *t = fm_tile16<F8>(e < 0 ? j.shared_down : pick(j.down, e), tile * 16, (end - first + NT * 8 - 1) / (NT * 8));
    return true;
  }
};

/* h = silu(gate) * up. One row (j.id): x is f32 and normed here; else xb is ready but for the factor inv. */
template <int F8, int NT, bool ONE> __global__ void __launch_bounds__(256, 2) gate_up_kernel(const __grid_constant__ expert_job j) {
  extern __shared__ __align__(16) char rings[];
  __shared__ chosen those;
  using S = fm_stream<F8, NT>;
  fm_go_on();
  fm_wait();
  int tiles = (int)((j.gate.w.rows + 7) / 8), active = list_chosen(those, j, ONE), e, tile, first, end;
  pair_tiles<F8, NT> list = { { j, those, tiles, active, active * tiles + (int)((j.shared_gate.rows + 7) / 8) } };
  S s;
  s.begin(rings, list);
  float one = ONE && j.norm ? fm_inv_rms(j.x, j.gate.w.cols, j.eps) : 1.0f, *red = (float *)(rings + 8 * S::RING * S::SLOT);
  uint32_t turn = 0;
  for (int item = blockIdx.x; list.at(item, &e, &tile, &first, &end); item += gridDim.x) {
    fm_dmat gate = e < 0 ? j.shared_gate : pick(j.gate, e), up = e < 0 ? j.shared_up : pick(j.up, e);
    fm_tile t = fm_tile_pair<F8>(gate, up, tile * 8, 1);
    bf16 *h = e < 0 ? j.shared_h : j.h;
    for (int p0 = first; p0 < end; p0 += NT * 8, turn++) {
      float acc[NT][4] = {}, *sum = red + turn % 2 * (8 * 16 * NT * 8);
      if constexpr (ONE) {
        fm_x32 x[NT] = { { s.lane < 4 ? j.x : nullptr, j.norm } };
        s.run(acc, t, list, x);
      } else {
        fm_x16 x[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) {
          int p = p0 + n * 8 + s.lane / 4;
          x[n] = { p < end ? j.xb + (int64_t)(e < 0 ? p : j.s.row[p]) * gate.cols : nullptr };
        }
        s.run(acc, t, list, x);
      }
      fm_skinny_put<NT>(sum, acc, s.warp, s.lane);
      __syncthreads();
      for (int i = threadIdx.x; i < 8 * NT * 8; i += 256) {
        int r = i % 8, p = p0 + i / 8;
        if (tile * 8 + r >= gate.rows || p >= end) continue;
        float inv = ONE ? one : j.inv ? j.inv[e < 0 ? p : j.s.row[p]] : 1.0f;
        float g = fm_skinny_sum<NT>(sum, r, i / 8) * inv, u = fm_skinny_sum<NT>(sum, 8 + r, i / 8) * inv;
        h[p * gate.rows + tile * 8 + r] = __float2bfloat16_rn(fm_silu(g) * u);
      }
    }
  }
}

template <int F8, int NT> __global__ void __launch_bounds__(256, 2) down_kernel(const __grid_constant__ expert_job j) {
  extern __shared__ __align__(16) char rings[];
  __shared__ chosen those;
  using S = fm_stream<F8, NT>;
  fm_go_on();
  fm_wait();
  int tiles = (int)((j.down.w.rows + 15) / 16), active = list_chosen(those, j, false), e, tile, first, end;
  down_tiles<F8, NT> list = { { j, those, tiles, active, active * tiles + (int)((j.shared_down.rows + 15) / 16) } };
  S s;
  s.begin(rings, list);
  float *red = (float *)(rings + 8 * S::RING * S::SLOT);
  uint32_t turn = 0;
  for (int item = blockIdx.x; list.at(item, &e, &tile, &first, &end); item += gridDim.x) {
    fm_dmat down = e < 0 ? j.shared_down : pick(j.down, e);
    fm_tile t = fm_tile16<F8>(down, tile * 16, 1);
    const bf16 *h = e < 0 ? j.shared_h : j.h;
    float *y = e < 0 ? j.shared_y : j.y;
    for (int p0 = first; p0 < end; p0 += NT * 8, turn++) {
      float acc[NT][4] = {}, *sum = red + turn % 2 * (8 * 16 * NT * 8);
      fm_x16 x[NT];
#pragma unroll
      for (int n = 0; n < NT; n++) {
        int p = p0 + n * 8 + s.lane / 4;
        x[n] = { p < end ? h + (int64_t)p * down.cols : nullptr };
      }
      s.run(acc, t, list, x);
      fm_skinny_put<NT>(sum, acc, s.warp, s.lane);
      __syncthreads();
      for (int i = threadIdx.x; i < 16 * NT * 8; i += 256) {
        int r = i % 16, p = p0 + i / 16;
        if (tile * 16 + r < down.rows && p < end) y[p * down.rows + tile * 16 + r] = fm_skinny_sum<NT>(sum, r, i / 16);
      }
    }
  }
}

/* ---- one row: nothing is sorted; a block makes 16 rows of the answer, all slots of them, in their order ---- */

constexpr int MOST_SLOTS = 16;

template <int F8> struct slot_tiles {
  const expert_job &j;
  const int *id;
  int n, tiles;
  __device__ __forceinline__ fm_dmat matrix(int slot) const { return slot < j.most ? pick(j.down, id[slot]) : j.shared_down; }
  __device__ __forceinline__ bool operator()(int item, int rep, fm_tile *t) const {
    if (item >= tiles) return false;
    *t = fm_tile16<F8>(matrix(rep), item * 16, n);
    return true;
  }
};

template <int F8> __global__ void __launch_bounds__(256, 2) down_one_kernel(const __grid_constant__ expert_job j) {
  extern __shared__ __align__(16) char rings[];
  __shared__ float red[MOST_SLOTS + 1][8][16];
  __shared__ int id[MOST_SLOTS];
  int n = j.most + (j.shared_down.rows > 0);
  fm_go_on();
  fm_wait();
  if (threadIdx.x < j.most) id[threadIdx.x] = j.id[threadIdx.x];
  __syncthreads();
  slot_tiles<F8> list = { j, id, n, (int)((j.down.w.rows + 15) / 16) };
  fm_stream<F8, 1> s;
  s.begin(rings, list);
  for (int item = blockIdx.x; item < list.tiles; item += gridDim.x) {
    for (int slot = 0; slot < n; slot++) {
      fm_dmat m = list.matrix(slot);
      fm_x16 x[1] = { { s.lane < 4 ? (slot < j.most ? j.h + slot * m.cols : j.shared_h) : nullptr } };
      float acc[1][4] = {};
      s.run(acc, fm_tile16<F8>(m, item * 16, 1), list, x);
      if (s.lane % 4 == 0) red[slot][s.warp][s.lane / 4] = acc[0][0], red[slot][s.warp][s.lane / 4 + 8] = acc[0][2];
    }
    __syncthreads();
    int r = threadIdx.x;
    if (r < 16 && item * 16 + r < j.down.w.rows) {
      float sum = 0, last = 0;
      for (int slot = 0; slot < n; slot++) {
        float y = 0;
        for (int w = 0; w < 8; w++) y += red[slot][w][r];
        if (slot < j.most) sum = fmaf(j.weight[slot], y, sum);
        else last = y;
      }
      float v = j.out[item * 16 + r] + sum;
      j.out[item * 16 + r] = n > j.most ? v + last : v;
    }
    __syncthreads();
  }
}

/* ---- plain: a warp an output row of one slot, f32 ---- */

struct plain_expert { stack w, second; const float *x; float *y; const int32_t *id; int k, n; };   /* second: up */

__device__ __forceinline__ float plain_dot(const fm_dmat &w, int64_t r, const float *x, int lane) {
  float sum = 0;
  for (int64_t i = lane; i < w.cols; i += 32) {
    float v = fm_element(w.data, w.dtype, r * w.cols + i);
    if (w.scale) v *= w.scale[r / 128 * w.across + i / 128];
    sum = fmaf(v, x[i], sum);
  }
  return fm_warp_sum(sum);
}

__device__ __forceinline__ fm_dmat plain_pick(const stack &s, int e) {
  fm_dmat w = s.w;
  w.data += e * s.step;
  if (w.scale) w.scale += e * s.scale_step;
  return w;
}

/* y[slot][r] = silu(gate) * up of row slot / k when there is a second matrix, else w x[slot]. */
__global__ void plain_expert_kernel(plain_expert j) {
  int lane = threadIdx.x & 31;
  int64_t r = blockIdx.y * (int64_t)8 + (threadIdx.x >> 5), slot = blockIdx.x;
  fm_wait();
  if (r >= j.w.w.rows) return;
  int e = j.id[slot];
  fm_dmat w = plain_pick(j.w, e);
  float v;
  if (j.second.w.data) {
    const float *x = j.x + slot / j.k * w.cols;
    v = fm_silu(plain_dot(w, r, x, lane)) * plain_dot(plain_pick(j.second, e), r, x, lane);
  } else {
    v = plain_dot(w, r, j.x + slot * w.cols, lane);
  }
  if (lane == 0) j.y[slot * w.rows + r] = v;
}

/* ---- combine: out[i] += sum over k of weight * y[place of slot], then the shared expert's ---- */

__global__ void combine_kernel(float *out, const float *y, const float *weight, const int32_t *place, const float *shared, int k,
                               int64_t dim) {
  int64_t i = blockIdx.y, d = blockIdx.x * (int64_t)256 + threadIdx.x;
  fm_wait();
  if (d >= dim) return;
  float sum = 0;
  for (int s = 0; s < k; s++) {
    int64_t slot = i * k + s, at = place ? place[slot] : slot;
    sum = fmaf(weight[slot], y[at * dim + d], sum);
  }
  float v = out[i * dim + d] + sum;
  out[i * dim + d] = shared ? v + shared[i * dim + d] : v;
}

void fm_moe_combine(fm_ctx *c, float *out, const float *y, const float *weight, const int32_t *place, const float *shared,
                    const fm_experts *e, int64_t n) {
  fm_launch(c, combine_kernel, dim3((unsigned)((e->hidden_size + 255) / 256), (unsigned)n), 256, 0, out, y, weight, place, shared,
            (int)e->top_k, e->hidden_size);
}

/* ---- the whole ---- */

/* Experts at equal distances, of one dtype. */
static bool stack_of(stack *s, const fm_mat *m, int64_t n) {
  *s = { fm_dmat_of(m), n > 1 ? (const char *)m[1].data - (const char *)m[0].data : 0,
         n > 1 && m[0].scale ? m[1].scale - m[0].scale : 0 };
  for (int64_t i = 1; i < n; i++)
    if ((const char *)m[i].data != (const char *)m[0].data + i * s->step || m[i].dtype != m[0].dtype ||
        (m[0].scale && m[i].scale != m[0].scale + i * s->scale_step)) return false;
  return true;
}

static fm_status plain_experts(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                               const stack *gate, const stack *up, const stack *down, int64_t n) {
  int64_t d = e->hidden_size, m = e->moe_intermediate_size, slots = n * e->top_k;
  float *xn, *h, *y;
  if (e->norm) {
    TRY(fm_cuda_take_n(c, &xn, n * d));
    TRY(fm_cuda_rms_norm(c, xn, d, x, d, e->norm, n, d, e->eps));
    x = xn;
  }
  TRY(fm_cuda_take_n(c, &h, slots * m));
  TRY(fm_cuda_take_n(c, &y, slots * d));
  plain_expert first = { *gate, *up, x, h, id, (int)e->top_k, (int)n }, second = { *down, {}, h, y, id, 1, (int)n };
  fm_launch(c, plain_expert_kernel, dim3((unsigned)slots, (unsigned)((m + 7) / 8)), 256, 0, first);
  fm_launch(c, plain_expert_kernel, dim3((unsigned)slots, (unsigned)((d + 7) / 8)), 256, 0, second);
  fm_moe_combine(c, out, y, weight, NULL, NULL, e, n);
  TRY(fm_cuda_launched(c, "experts"));
  if (!e->shared_gate) return FM_OK;
  int64_t wide = e->shared_gate->rows;
  float *g, *u;
  TRY(fm_cuda_take_n(c, &g, n * wide));
  TRY(fm_cuda_take_n(c, &u, n * wide));
  fm_mm in[2] = { { .w = e->shared_gate, .x = x, .ldx = d, .out = g, .ldo = wide, .n = n },
                  { .w = e->shared_up, .x = x, .ldx = d, .out = u, .ldo = wide, .n = n } };
  TRY(fm_cuda_matmul(c, in, 2));
  fm_mm last = { .w = e->shared_down, .x = g, .ldx = wide, .up = u, .out = out, .ldo = d, .n = n, .add = true };
  return fm_cuda_matmul(c, &last, 1);
}

template <typename K> static void launch_stream(fm_ctx *c, K kernel, int64_t items, size_t shared, const expert_job &j) {
  int n_sm = fm_cuda_of(c)->n_sm * FM_PER_SM;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
  fm_launch(c, kernel, (unsigned)(items < n_sm ? items : n_sm), 256, shared, j);
}

template <int F8, int NT> static void launch_pair(fm_ctx *c, const expert_job &j) {
  int64_t first = j.most * ((j.gate.w.rows + 7) / 8) + (j.shared_gate.rows + 7) / 8;
  int64_t second = j.most * ((j.down.w.rows + 15) / 16) + (j.shared_down.rows + 15) / 16;
  launch_stream(c, gate_up_kernel<F8, NT, false>, first, fm_stream<F8, NT>::SHARED, j);
  launch_stream(c, down_kernel<F8, NT>, second, fm_stream<F8, NT>::SHARED, j);
}

template <int F8> static void launch_experts(fm_ctx *c, const expert_job &j) {
  if (j.n <= 8) launch_pair<F8, 1>(c, j);
  else if (j.n <= 128) launch_pair<F8, 2>(c, j);
  else launch_pair<F8, 4>(c, j);
}

template <int F8> static void launch_one(fm_ctx *c, const expert_job &j) {
  size_t shared = fm_stream<F8, 1>::SHARED;
  launch_stream(c, gate_up_kernel<F8, 1, true>, j.most * ((j.gate.w.rows + 7) / 8) + (j.shared_gate.rows + 7) / 8, shared, j);
  launch_stream(c, down_one_kernel<F8>, (j.down.w.rows + 15) / 16, shared, j);
}

static fm_status take_sorted(fm_ctx *c, sorted *s, int64_t slots, int64_t experts) {
  TRY(fm_cuda_take_n(c, &s->start, experts + 1));
  TRY(fm_cuda_take_n(c, &s->row, slots));
  TRY(fm_cuda_take_n(c, &s->place, slots));
  TRY(fm_cuda_take_n(c, &s->active, experts));
  return fm_cuda_take_n(c, &s->n_active, 1);
}

static fm_status skinny_experts(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                                const stack *gate, const stack *up, const stack *down, int64_t n) {
  int64_t d = e->hidden_size, m = e->moe_intermediate_size, slots = n * e->top_k, wide = e->shared_gate ? e->shared_gate->rows : 0;
  expert_job j = { .gate = *gate, .up = *up, .down = *down, .n = (int)n };
  bf16 *xb;
  float *inv = NULL;
  TRY(take_sorted(c, &j.s, slots, e->n_experts));
  TRY(fm_cuda_take_n(c, &xb, n * d));
  if (e->norm) TRY(fm_cuda_take_n(c, &inv, n));
  TRY(fm_cuda_take_n(c, &j.h, slots * m));
  TRY(fm_cuda_take_n(c, &j.y, slots * d));
  if (wide) {
    TRY(fm_cuda_take_n(c, &j.shared_h, n * wide));
    TRY(fm_cuda_take_n(c, &j.shared_y, n * d));
    j.shared_gate = fm_dmat_of(e->shared_gate), j.shared_up = fm_dmat_of(e->shared_up), j.shared_down = fm_dmat_of(e->shared_down);
  }
  j.xb = xb, j.inv = inv;
  j.most = (int)(slots < e->n_experts ? slots : e->n_experts);
  input_job in = { xb, inv, x, e->norm, e->eps, d };
  fm_launch(c, sort_kernel, (unsigned)(1 + n), 1024, (e->n_experts + 1) * sizeof(int32_t), id, (int)slots, (int)e->top_k,
            (int)e->n_experts, j.s, in);
  if (gate->w.dtype == FM_F8_E4M3) launch_experts<1>(c, j);
  else launch_experts<0>(c, j);
  fm_moe_combine(c, out, j.y, weight, j.s.place, j.shared_y, e, n);
  return fm_cuda_launched(c, "experts");
}

static bool all_skinny(fm_ctx *c, const fm_experts *e) {
  const fm_mat *m[6] = { e->gate, e->up, e->down, e->shared_gate, e->shared_up, e->shared_down };
  if (c->arithmetic == FM_F32 || e->n_experts > MOST_EXPERTS) return false;
  for (const fm_mat *w : m)
    if (w && (!fm_skinny_fits(c, w) || w->dtype != e->gate->dtype)) return false;
  return true;
}

static fm_status one_row(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                         const stack *gate, const stack *up, const stack *down) {
  int64_t m = e->moe_intermediate_size, wide = e->shared_gate ? e->shared_gate->rows : 0;
  expert_job j = { .gate = *gate, .up = *up, .down = *down, .n = 1, .most = (int)e->top_k, .id = id, .weight = weight, .x = x,
                   .norm = e->norm, .eps = e->eps, .out = out };
  TRY(fm_cuda_take_n(c, &j.h, e->top_k * m));
  if (wide) {
    TRY(fm_cuda_take_n(c, &j.shared_h, wide));
    j.shared_gate = fm_dmat_of(e->shared_gate), j.shared_up = fm_dmat_of(e->shared_up), j.shared_down = fm_dmat_of(e->shared_down);
  }
  if (gate->w.dtype == FM_F8_E4M3) launch_one<1>(c, j);
  else launch_one<0>(c, j);
  return fm_cuda_launched(c, "experts");
}

/* Rows at a time: what the slots' answers take stays within bounds. */
constexpr int64_t SLOT_BYTES = 512 << 20;

fm_status fm_cuda_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                          const fm_experts *e, int64_t n) {
  stack gate, up, down;
  int64_t d = e->hidden_size, k = e->top_k;
  if (!stack_of(&gate, e->gate, e->n_experts) || !stack_of(&up, e->up, e->n_experts) || !stack_of(&down, e->down, e->n_experts))
    return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: the experts of a layer must be of one dtype and lie at equal distances");
  int64_t step = SLOT_BYTES / (k * (d + e->moe_intermediate_size) * 4);
  step = step < 1 ? 1 : step > 60000 / k ? 60000 / k : step;
  bool skinny = all_skinny(c, e);
  int64_t used = c->slab_used;
  fm_grouped g[2];
  if (n == 1 && skinny && k <= MOST_SLOTS && (uintptr_t)x % 16 == 0 && !fm_moe_plan(c, g, e, &gate, &up, &down, n))
    return one_row(c, out, x, topk_id, topk_weight, e, &gate, &up, &down);
  for (int64_t i = 0; i < n; i += step) {
    int64_t rows = n - i < step ? n - i : step;
    if (skinny && fm_moe_plan(c, g, e, &gate, &up, &down, rows))
      TRY(fm_moe_grouped(c, out + i * d, x + i * d, topk_id + i * k, topk_weight + i * k, e, g, rows));
    else TRY((skinny ? skinny_experts : plain_experts)(c, out + i * d, x + i * d, topk_id + i * k, topk_weight + i * k, e, &gate, &up,
                                                  &down, rows));
    c->slab_used = used;
  }
  return FM_OK;
}
