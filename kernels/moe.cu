/*
** moe.cu - the experts (of one row: moe_one.cu; of prompts on Hopper: moe_prompt.cu). Slots (row, k) are sorted by expert on the
** device, each chosen expert is read once for all its rows, and the answers are added in slot order.
**
**   sort (+ inputs in 16 bits) -> gate, up, silu -> (f8: those in f16) -> down -> combine
**
** Nothing here comes back to the host: grids are made for the most experts that the rows can choose, and blocks without work end.
*/
#include "moe.cuh"
#include "skinny.cuh"

/* ---- sort: slots by expert, stable; blocks from 1 on make the inputs ---- */

__device__ void sort_slots(const int32_t *id, int slots, int k, int experts, const sorted &s) {
  extern __shared__ int32_t count[];     // (experts), then the ids (slots): they are read many times
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) count[experts + i] = id[i];
  id = count + experts;
  __syncthreads();
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
  for (int i = s.start[experts] + threadIdx.x; i < slots; i += blockDim.x) s.row[i] = 0;     // some are other ranks'
}

template <int F8> __global__ void __launch_bounds__(1024) sort_kernel(const int32_t *id, int slots, int k, int experts, sorted s,
                                                                     uint16_t *x16, float *factor, fm_source in) {
  if (blockIdx.x > 0 && threadIdx.x < 256) fm_stage_soon(in);
  fm_go_on();
  fm_wait();
  if (blockIdx.x == 0) {
    sort_slots(id, slots, k, experts, s);
    return;
  }
  if (threadIdx.x >= 256) return;
  int64_t row = blockIdx.x - 1;
  float f = fm_stage_row<F8>(x16 + row * in.cols, in, row);
  if (threadIdx.x == 0) factor[row] = f;
}

/* ---- gate and up, then down: grouped skinny products ---- */

struct expert_job {
  sorted s;
  stack gate, up, down;
  fm_dmat shared_gate, shared_up, shared_down;              /* rows 0: none */
  const uint16_t *x16; const float *factor;                 /* (n, hidden), (n) */
  uint16_t *h, *shared_h;                /* (slots, width), (n, shared width): bf16, beside f8 weights f16 in the end */
  float *h_factor, *shared_factor;       /* (slots), (n): f8 */
  float *y, *shared_y;                   /* (slots, hidden), (n, hidden) */
  int n, most, slots;                    /* rows; most active experts */
};

constexpr int MOST_EXPERTS = 512;

/* Behind the rings, in shared memory: group 0 is the shared expert (without tiles where there is none), then a group for each
   expert with rows, whose places begin at first; and what would else be looked up in device memory for every tile. */
struct expert_room {
  fm_group *group;                       /* (1 + most) */
  int *first, *row;                      /* (2 + most) first[g] .. first[g + 1] - 1; (slots) */
  float *factor, *shared_factor;         /* (slots), (n): of inputs */
  static __host__ __device__ size_t size(int most, int slots, int n) { return (1 + most) * sizeof(fm_group) + (2 + most + 2 * slots + n) * 4; }
  __device__ expert_room(char *p, const expert_job &j)
    : group((fm_group *)p), first((int *)(group + 1 + j.most)), row(first + 2 + j.most), factor((float *)(row + j.slots)),
      shared_factor(factor + j.slots) {}
};

/* The groups that are known before the kernel ahead has ended, and after it; all threads are in step again behind both. */
template <bool PAIR> __device__ __forceinline__ void list_shared(const expert_room &m, const expert_job &j, int tokens) {
  if (threadIdx.x == 0)
    m.group[0] = fm_group_of<PAIR>(PAIR ? j.shared_gate : j.shared_down, PAIR ? j.shared_up : j.shared_down, (j.n + tokens - 1) / tokens);
  __syncthreads();
}
template <bool PAIR> __device__ __forceinline__ int list_chosen(const expert_room &m, const expert_job &j, int tokens) {
  int n = *j.s.n_active;
  for (int a = threadIdx.x; a < n; a += 256) {
    int e = j.s.active[a], first = j.s.start[e], end = j.s.start[e + 1];
    fm_dmat top = fm_pick(PAIR ? j.gate : j.down, e), bottom = PAIR ? fm_pick(j.up, e) : top;
    m.group[1 + a] = fm_group_of<PAIR>(top, bottom, (end - first + tokens - 1) / tokens);
    m.first[1 + a] = first;
    if (a == n - 1) m.first[1 + n] = end;
  }
  for (int i = threadIdx.x; i < j.slots; i += 256) {
    int row = j.s.row[i];
    m.row[i] = row;
    if (PAIR || j.h_factor) m.factor[i] = PAIR ? j.factor[row] : j.h_factor[i];
  }
  for (int i = threadIdx.x; i < j.n; i += 256)
    if (PAIR || j.shared_factor) m.shared_factor[i] = PAIR ? j.factor[i] : j.shared_factor[i];
  __syncthreads();
  return n;
}

/* h = silu(gate) * up. */
template <int F8, int NT> __global__ void __launch_bounds__(256, 2) gate_up_kernel(const __grid_constant__ expert_job j) {
  extern __shared__ __align__(16) char shared[];
  using S = fm_stream<F8, NT>;
  expert_room m(shared + S::SHARED, j);
  fm_list<true, false> tiles = { m.group, 2, 1, 0 };
  S s;
  s.begin(shared);
  list_shared<true>(m, j, NT * 8);
  s.fill(tiles);
  fm_go_on();
  fm_wait();
  tiles.n = tiles.known = 1 + list_chosen<true>(m, j, NT * 8);
  s.fill(tiles);
  float *red = (float *)(shared + S::RINGS);
  uint32_t turn = 0;
  for (fm_place at = { 0, (int)blockIdx.x, 0 }; tiles.settle(at); tiles.step(at)) {
    bool chosen = at.group > 0;
    int first = chosen ? m.first[at.group] : 0, end = chosen ? m.first[at.group + 1] : j.n, rows = m.group[at.group].rows;
    uint16_t *h = chosen ? j.h : j.shared_h;
    const float *factor = chosen ? m.factor : m.shared_factor;
    for (int p0 = first; p0 < end; p0 += NT * 8, turn ^= 1) {
      float acc[NT][4] = {}, *sum = red + turn * (8 * 16 * NT * 8);
      const uint16_t *x[NT];
#pragma unroll
      for (int n = 0; n < NT; n++) {
        int p = p0 + n * 8 + s.lane / 4;
        x[n] = p < end ? j.x16 + (int64_t)(chosen ? m.row[p] : p) * j.gate.w.cols : nullptr;
      }
      s.run(acc, (int)j.gate.w.cols, tiles, x);
      fm_skinny_put<NT>(sum, acc, s.warp, s.lane);
      __syncthreads();
      for (int i = threadIdx.x; i < 8 * NT * 8; i += 256) {
        int r = i % 8, p = p0 + i / 8, row = at.tile * 8 + r;
        if (row >= rows || p >= end) continue;
        float g = fm_skinny_sum<NT>(sum, r, i / 8) * factor[p], u = fm_skinny_sum<NT>(sum, 8 + r, i / 8) * factor[p];
        h[(int64_t)p * rows + row] = __bfloat16_as_ushort(__float2bfloat16_rn(fm_silu(g) * u));
      }
    }
  }
}

/* f8: every row of h and shared_h to f16, in place. A warp a row. */
__global__ void __launch_bounds__(256) convert_kernel(expert_job j) {
  int row = blockIdx.x * 8 + (threadIdx.x >> 5), shared = row - j.slots, m = (int)j.gate.w.rows, wide = (int)j.shared_gate.rows;
  fm_go_on();
  fm_wait();
  if (row >= j.slots + (wide ? j.n : 0)) return;
  uint16_t *h = shared < 0 ? j.h + (int64_t)row * m : j.shared_h + (int64_t)shared * wide;
  float f = fm_convert_row_by_warp<1>(h, h, shared < 0 ? m : wide);
  if ((threadIdx.x & 31) == 0) (shared < 0 ? j.h_factor + row : j.shared_factor + shared)[0] = f;
}

template <int F8, int NT> __global__ void __launch_bounds__(256, 2) down_kernel(const __grid_constant__ expert_job j) {
  extern __shared__ __align__(16) char shared[];
  using S = fm_stream<F8, NT>;
  expert_room m(shared + S::SHARED, j);
  fm_list<false, false> tiles = { m.group, 2, 1, 0 };
  S s;
  s.begin(shared);
  list_shared<false>(m, j, NT * 8);
  s.fill(tiles);
  fm_go_on();
  fm_wait();
  tiles.n = tiles.known = 1 + list_chosen<false>(m, j, NT * 8);
  s.fill(tiles);
  float *red = (float *)(shared + S::RINGS);
  uint32_t turn = 0;
  for (fm_place at = { 0, (int)blockIdx.x, 0 }; tiles.settle(at); tiles.step(at)) {
    bool chosen = at.group > 0;
    int first = chosen ? m.first[at.group] : 0, end = chosen ? m.first[at.group + 1] : j.n, rows = (int)j.down.w.rows;
    int cols = m.group[at.group].cols;
    const uint16_t *h = chosen ? j.h : j.shared_h;
    const float *factor = chosen ? m.factor : m.shared_factor;
    float *y = chosen ? j.y : j.shared_y;
    for (int p0 = first; p0 < end; p0 += NT * 8, turn ^= 1) {
      float acc[NT][4] = {}, *sum = red + turn * (8 * 16 * NT * 8);
      const uint16_t *x[NT];
#pragma unroll
      for (int n = 0; n < NT; n++) {
        int p = p0 + n * 8 + s.lane / 4;
        x[n] = p < end ? h + (int64_t)p * cols : nullptr;
      }
      s.run(acc, cols, tiles, x);
      fm_skinny_put<NT>(sum, acc, s.warp, s.lane);
      __syncthreads();
      for (int i = threadIdx.x; i < 16 * NT * 8; i += 256) {
        int r = i % 16, p = p0 + i / 16, row = at.tile * 16 + r;
        if (row >= rows || p >= end) continue;
        float v = fm_skinny_sum<NT>(sum, r, i / 16);
        y[(int64_t)p * rows + row] = F8 ? v * factor[p] : v;
      }
    }
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

/* y[slot][r] = silu(gate) * up of row slot / k when there is a second matrix, else w x[slot]. */
__global__ void plain_expert_kernel(plain_expert j) {
  int lane = threadIdx.x & 31;
  int64_t r = blockIdx.y * (int64_t)8 + (threadIdx.x >> 5), slot = blockIdx.x;
  fm_wait();
  if (r >= j.w.w.rows) return;
  int e = j.id[slot];
  if (e < 0) return;
  fm_dmat w = fm_pick(j.w, e);
  float v;
  if (j.second.w.data) {
    const float *x = j.x + slot / j.k * w.cols;
    v = fm_silu(plain_dot(w, r, x, lane)) * plain_dot(fm_pick(j.second, e), r, x, lane);
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

__global__ void count_up_kernel(int32_t *place, int64_t n) {
  int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
  fm_wait();
  if (i < n) place[i] = (int32_t)i;
}

static fm_status plain_experts(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                               const stack *gate, const stack *up, const stack *down, int64_t n, const fm_kept *kept) {
  int64_t d = e->hidden_size, m = e->moe_intermediate_size, slots = n * e->top_k, wide = e->shared_gate && !kept ? e->shared_gate->rows : 0;
  float *xn, *h, *y, *g = NULL, *u = NULL;
  if (wide) {                            // before anything is added to out, which may be x
    TRY(fm_cuda_take_n(c, &g, n * wide));
    TRY(fm_cuda_take_n(c, &u, n * wide));
    fm_mm in[2] = { { .w = e->shared_gate, .x = x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = g, .ldo = wide, .n = n },
                    { .w = e->shared_up, .x = x, .ldx = d, .norm = e->norm, .eps = e->eps, .out = u, .ldo = wide, .n = n } };
    TRY(fm_cuda_matmul(c, in, 2));
  }
  if (e->norm) {
    TRY(fm_cuda_take_n(c, &xn, n * d));
    TRY(fm_cuda_rms_norm(c, xn, d, x, d, e->norm, n, d, e->eps));
    x = xn;
  }
  TRY(fm_cuda_take_n(c, &h, slots * m));
  if (kept) y = kept->y;
  else TRY(fm_cuda_take_n(c, &y, slots * d));
  plain_expert first = { *gate, *up, x, h, id, (int)e->top_k, (int)n }, second = { *down, {}, h, y, id, 1, (int)n };
  fm_launch(c, plain_expert_kernel, dim3((unsigned)slots, (unsigned)((m + 7) / 8)), 256, 0, first);
  fm_launch(c, plain_expert_kernel, dim3((unsigned)slots, (unsigned)((d + 7) / 8)), 256, 0, second);
  if (kept) {
    fm_launch(c, count_up_kernel, (unsigned)((slots + 255) / 256), 256, 0, kept->place, slots);
    return fm_cuda_launched(c, "experts");
  }
  fm_moe_combine(c, out, y, weight, NULL, NULL, e, n);
  TRY(fm_cuda_launched(c, "experts"));
  if (!wide) return FM_OK;
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
  size_t shared = fm_stream<F8, NT>::SHARED + expert_room::size(j.most, j.slots, j.n);
  launch_stream(c, gate_up_kernel<F8, NT>, first, shared, j);
  if (F8) fm_launch(c, convert_kernel, (unsigned)((j.slots + j.n + 7) / 8), 256, 0, j);
  launch_stream(c, down_kernel<F8, NT>, second, shared, j);
}

template <int F8> static void launch_experts(fm_ctx *c, const expert_job &j) {
  if (j.n <= 8) launch_pair<F8, 1>(c, j);
  else if (j.n <= 128) launch_pair<F8, 2>(c, j);
  else launch_pair<F8, 4>(c, j);
}

static fm_status take_sorted(fm_ctx *c, sorted *s, int64_t slots, int64_t experts) {
  TRY(fm_cuda_take_n(c, &s->start, experts + 1));
  TRY(fm_cuda_take_n(c, &s->row, slots));
  TRY(fm_cuda_take_n(c, &s->place, slots));
  TRY(fm_cuda_take_n(c, &s->active, experts));
  return fm_cuda_take_n(c, &s->n_active, 1);
}

static fm_status skinny_experts(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                                const stack *gate, const stack *up, const stack *down, int64_t n, const fm_kept *kept) {
  int64_t d = e->hidden_size, m = e->moe_intermediate_size, slots = n * e->top_k, wide = e->shared_gate ? e->shared_gate->rows : 0;
  expert_job j = { .gate = *gate, .up = *up, .down = *down, .n = (int)n, .slots = (int)slots };
  fm_source in = { x, e->norm, NULL, d, e->eps, (int)n, (int)d };
  uint16_t *x16;
  float *factor;
  bool f8 = gate->w.dtype == FM_F8_E4M3;
  TRY(take_sorted(c, &j.s, slots, e->n_experts));
  TRY(fm_cuda_take_n(c, &x16, n * d));
  TRY(fm_cuda_take_n(c, &factor, n));
  TRY(fm_cuda_take_n(c, &j.h, slots * m));
  TRY(fm_cuda_take_n(c, &j.h_factor, slots));
  if (kept) j.s.place = kept->place, j.y = kept->y;
  else TRY(fm_cuda_take_n(c, &j.y, slots * d));
  if (wide) {
    TRY(fm_cuda_take_n(c, &j.shared_h, n * wide));
    TRY(fm_cuda_take_n(c, &j.shared_factor, n));
    TRY(fm_cuda_take_n(c, &j.shared_y, n * d));
    j.shared_gate = fm_dmat_of(e->shared_gate), j.shared_up = fm_dmat_of(e->shared_up), j.shared_down = fm_dmat_of(e->shared_down);
  }
  j.x16 = x16, j.factor = factor;
  j.most = (int)(slots < e->n_experts ? slots : e->n_experts);
  fm_launch(c, f8 ? sort_kernel<1> : sort_kernel<0>, (unsigned)(1 + n), 1024, (e->n_experts + slots) * sizeof(int32_t), id, (int)slots,
            (int)e->top_k, (int)e->n_experts, j.s, x16, factor, in);
  if (f8) launch_experts<1>(c, j);
  else launch_experts<0>(c, j);
  if (!kept) fm_moe_combine(c, out, j.y, weight, j.s.place, j.shared_y, e, n);
  return fm_cuda_launched(c, "experts");
}

static bool all_skinny(fm_ctx *c, const fm_experts *e) {
  const fm_mat *m[6] = { e->gate, e->up, e->down, e->shared_gate, e->shared_up, e->shared_down };
  if (c->arithmetic == FM_F32 || e->n_experts > MOST_EXPERTS) return false;
  for (const fm_mat *w : m)
    if (w && (!fm_skinny_fits(c, w) || w->dtype != e->gate->dtype)) return false;
  return true;
}

/* Rows at a time: what the slots' answers take stays within bounds, and what every block of the skinny kernels keeps of them. */
constexpr int64_t SLOT_BYTES = 512 << 20, SKINNY_SLOTS = 1024;

__global__ void move_places_kernel(int32_t *place, int64_t n, int32_t by) {
  int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
  fm_wait();
  if (i < n) place[i] += by;
}

static fm_status run_experts(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e, int64_t n,
                             const fm_kept *kept) {
  stack gate, up, down;
  int64_t d = e->hidden_size, k = e->top_k;
  if (!stack_of(&gate, e->gate, e->n_experts) || !stack_of(&up, e->up, e->n_experts) || !stack_of(&down, e->down, e->n_experts))
    return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: the experts of a layer must be of one dtype and lie at equal distances");
  bool skinny = all_skinny(c, e);
  int64_t step = SLOT_BYTES / (k * (d + e->moe_intermediate_size) * 4), most = 60000 / k, used = c->slab_used;
  fm_grouped g[2];
  bool grouped = skinny && fm_moe_plan(c, g, e, &gate, &up, &down, n);
  bool one = n == 1 && skinny && !grouped && !kept && fm_moe_one_can(e);
  const fm_gate *choose = one && fm_moe_one_chooses(e) ? NULL : e->choose;
  if (choose) TRY(fm_cuda_route(c, choose->topk_id, choose->topk_weight, choose->logits, choose->bias, choose->rule, n));
  if (one) return fm_moe_one(c, out, x, id, weight, e, &gate, &up, &down);
  if (skinny && !grouped) most = SKINNY_SLOTS / k;
  step = step > most ? most : step;
  if (step < 1) step = 1;
  for (int64_t i = 0; i < n; i += step) {
    int64_t rows = n - i < step ? n - i : step, slot = i * k, slots = rows * k;
    fm_kept part = kept ? fm_kept{ kept->place + slot, kept->y + slot * d } : fm_kept{};
    float *to = out ? out + i * d : NULL;
    const float *w = weight ? weight + slot : NULL;
    if (grouped) {
      fm_moe_plan(c, g, e, &gate, &up, &down, rows);
      TRY(fm_moe_grouped(c, to, x + i * d, id + slot, w, e, g, rows, kept ? &part : NULL));
    } else {
      TRY((skinny ? skinny_experts : plain_experts)(c, to, x + i * d, id + slot, w, e, &gate, &up, &down, rows, kept ? &part : NULL));
    }
    if (kept && i) fm_launch(c, move_places_kernel, (unsigned)((slots + 255) / 256), 256, 0, part.place, slots, (int32_t)slot);
    c->slab_used = used;
  }
  return FM_OK;
}

fm_status fm_cuda_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                          const fm_experts *e, int64_t n) {
  return run_experts(c, out, x, topk_id, topk_weight, e, n, NULL);
}

/* ---- some of a layer's experts, for rows that chose among all ---- */

__global__ void own_kernel(int32_t *own, const int32_t *id, int64_t n, int first, int experts) {
  int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
  fm_wait();
  if (i >= n) return;
  int e = id[i] - first;
  own[i] = e >= 0 && e < experts ? e : -1;
}

fm_status fm_cuda_experts_of(fm_ctx *c, void *answers, const float *x, const int32_t *id, int64_t first, const fm_experts *e, int64_t n) {
  int64_t slots = n * e->top_k;
  fm_kept kept = { (int32_t *)answers, (float *)((char *)answers + fm_answers_at(slots)) };
  int32_t *own;
  if (!slots) return FM_OK;
  TRY(fm_cuda_take_n(c, &own, slots));
  fm_launch(c, own_kernel, (unsigned)((slots + 255) / 256), 256, 0, own, id, slots, (int)first, (int)e->n_experts);
  TRY(fm_cuda_launched(c, "choices"));
  return run_experts(c, NULL, x, own, NULL, e, n, &kept);
}
