/*
** moe_one.cu - the experts of one row: nothing is sorted, a slot is its expert.
**
**   gate, up, silu of all slots and of the shared expert -> down, whose blocks make 16 rows of the answer, slots in their order
**
** The shared expert's weights come first: they are asked for before it is known which experts are chosen. Sums are those of the
** kernels for more rows (moe.cu), to the bit.
*/
#include "moe.cuh"
#include "route.cuh"
#include "skinny.cuh"

constexpr int MOST_SLOTS = 16, MOST_CHOICE = 64;         /* of experts that the ninth warp chooses from: two a lane */
constexpr int PAIR_RING = 3;             /* slots of a ring of gate and up */
constexpr size_t STAGED = 48 << 10;      /* bytes of all slots' inputs of down that a block keeps */

struct one_job {
  stack gate, up, down;
  fm_dmat shared_gate, shared_up, shared_down;           /* rows 0: none */
  int32_t *id; float *weight;            /* (slots) */
  bool choose; fm_choice rule;           /* whether the first kernel makes them, and how */
  int slots, split;                      /* groups of down (the shared expert, then the slots) that its first warps make */
  fm_source in;                          /* one row */
  uint16_t *h, *shared_h;                /* (slots, width), (shared width): bf16 */
  float *out;
};

/* By a warp of its own: what is chosen, and the groups that this makes. Rehearsed on zeros, as route_kernel is. */
__device__ __forceinline__ void one_choose(const one_job &j, fm_group *group) {
  __shared__ uint32_t room[2 * MOST_CHOICE + MOST_SLOTS];
  __shared__ float weight[MOST_SLOTS];
  __shared__ int chosen[MOST_SLOTS];
  int lane = threadIdx.x & 31;
  if (!j.choose) fm_wait();
#pragma unroll 1
  for (int turn = 0; turn < 2 && j.choose; turn++) {
    float z[2];
    if (turn) fm_wait();
#pragma unroll
    for (int x = 0; x < 2; x++) z[x] = turn && lane + 32 * x < j.rule.experts ? j.rule.logits[lane + 32 * x] : 0.0f;
    fm_choose(chosen, weight, z, j.rule, room);
  }
  if (lane >= j.slots) return;
  int e = j.choose ? chosen[lane] : j.id[lane];
  group[1 + lane] = fm_group_of<true>(fm_pick(j.gate, e), fm_pick(j.up, e), 1);
  if (!j.choose || blockIdx.x) return;
  j.id[lane] = e, j.weight[lane] = weight[lane];
  fm_count(j.rule, e);
}

/* Group 0: the shared expert (without tiles where there is none); then a group a slot, once the choice is known. Eight warps make
   tiles, the ninth chooses. */
template <int F8> __global__ void __launch_bounds__(288, 2) one_gate_up_kernel(const __grid_constant__ one_job j) {
  extern __shared__ __align__(16) char shared[];
  __shared__ fm_group group[MOST_SLOTS + 1];
  __shared__ float factor[FM_STAGED_ROWS], red[2][8][16];
  using S = fm_stream<F8, 1, PAIR_RING>;
  uint16_t *staged = (uint16_t *)(shared + S::RINGS);
  fm_list<true, false> tiles = { group, 1 + j.slots, 1, 0 };
  S s;
  s.begin(shared);
  if (threadIdx.x == 0) group[0] = fm_group_of<true>(j.shared_gate, j.shared_up, 1);
  __syncthreads();
  if (threadIdx.x >= 256) {
    one_choose(j, group);
    __syncthreads();
    return;
  }
  s.fill(tiles);
  fm_stage_soon(j.in);
  fm_go_on();
  fm_wait();
  fm_stage<F8>(staged, factor, j.in);    // ends in step: the groups are there
  tiles.known = tiles.n;
  s.fill(tiles);
  const uint16_t *const x[1] = { s.lane < 4 ? staged : nullptr };
  uint32_t turn = 0;
  for (fm_place at = { 0, (int)blockIdx.x, 0 }; tiles.settle(at); tiles.step(at), turn ^= 1) {
    float acc[1][4] = {};
    s.run(acc, j.in.cols, tiles, x);
    if (s.lane % 4 == 0) red[turn][s.warp][s.lane / 4] = acc[0][0], red[turn][s.warp][s.lane / 4 + 8] = acc[0][2];
    fm_sync_256();
    if (threadIdx.x >= 32) continue;
    int r = threadIdx.x % 16, rows = group[at.group].rows, row = at.tile * 8 + r;
    float v = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) v += red[turn][w][r];
    v *= factor[0];
    float up = __shfl_down_sync(~0u, v, 8);
    if (threadIdx.x < 8 && row < rows)
      (at.group ? j.h + (at.group - 1) * rows : j.shared_h)[row] = __bfloat16_as_ushort(__float2bfloat16_rn(fm_silu(v) * up));
  }
}

/* out += the weighted sum of the slots, then the shared expert's; thread r: row r of the tile. red: (groups, 8 warps, 16). */
__device__ __forceinline__ void one_finish(const one_job &j, const float (*red)[8][16], const float *factor, int64_t row, float before) {
  int r = threadIdx.x;
  float sum = 0, y[MOST_SLOTS + 1];
#pragma unroll
  for (int g = 0; g <= MOST_SLOTS; g++) {
    if (g > j.slots) break;
    y[g] = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) y[g] += red[g][w][r];
    y[g] *= factor[g];
    if (g) sum = fmaf(j.weight[g - 1], y[g], sum);
  }
  float v = before + sum;
  j.out[row + r] = j.shared_down.rows ? v + y[0] : v;
}

/* A block makes tiles of 16 rows of the answer, all groups of them: two sets of eight warps share the groups. */
template <int F8> __global__ void __launch_bounds__(512) one_down_kernel(const __grid_constant__ one_job j) {
  extern __shared__ __align__(16) char shared[];
  __shared__ fm_group group[MOST_SLOTS + 1];
  __shared__ float red[MOST_SLOTS + 1][8][16], factor[MOST_SLOTS + 1];
  using S = fm_stream<F8, 1>;
  uint16_t *staged = (uint16_t *)(shared + 2 * S::RINGS);
  int wide = (int)j.shared_down.cols, m = (int)j.down.w.cols, second = threadIdx.x >= 256;
  int begin = second ? j.split : 0, end = second ? 1 + j.slots : j.split;
  fm_list<false, true> rounds = { group + begin, end - begin, !second, (int)((j.down.w.rows + 15) / 16) };
  S s;
  s.begin(shared);
  if (threadIdx.x == 0) group[0] = fm_group_of<false>(j.shared_down, j.shared_down, 1);
  __syncthreads();
  s.fill(rounds);
  fm_go_on();
  fm_wait();
  if (threadIdx.x < j.slots) {
    fm_dmat down = fm_pick(j.down, j.id[threadIdx.x]);
    group[1 + threadIdx.x] = fm_group_of<false>(down, down, 1);
  }
  __syncthreads();
  rounds.known = rounds.n;
  s.fill(rounds);
  for (int g = threadIdx.x >> 5; g <= j.slots; g += 16) {
    float f = g ? fm_convert_row_by_warp<F8>(staged + wide + (g - 1) * m, j.h + (g - 1) * m, m) : fm_convert_row_by_warp<F8>(staged, j.shared_h, wide);
    if (s.lane == 0) factor[g] = f;
  }
  __syncthreads();
  for (int64_t tile = blockIdx.x; tile < rounds.tiles; tile += gridDim.x) {
    bool mine = threadIdx.x < 16 && tile * 16 + threadIdx.x < j.down.w.rows;
    float before = mine ? j.out[tile * 16 + threadIdx.x] : 0;
    for (int g = begin; g < end; g++) {
      float acc[1][4] = {};
      const uint16_t *const x[1] = { s.lane < 4 ? staged + (g ? wide + (g - 1) * m : 0) : nullptr };
      s.run(acc, g ? m : wide, rounds, x);
      if (s.lane % 4 == 0) red[g][s.warp][s.lane / 4] = acc[0][0], red[g][s.warp][s.lane / 4 + 8] = acc[0][2];
    }
    __syncthreads();
    if (mine) one_finish(j, red, factor, tile * 16, before);
    __syncthreads();
  }
}

static int64_t staged_down(const fm_experts *e) {
  return (e->top_k * e->moe_intermediate_size + (e->shared_down ? e->shared_down->cols : 0)) * (int64_t)sizeof(uint16_t);
}

bool fm_moe_one_can(const fm_experts *e) {
  return e->top_k <= MOST_SLOTS && staged_down(e) <= (int64_t)STAGED && fm_pitch<0>(e->hidden_size) * sizeof(uint16_t) <= FM_STAGED_BYTES;
}

template <typename K> static void launch(fm_ctx *c, K kernel, int64_t tiles, int per_sm, int threads, size_t shared, const one_job &j) {
  int blocks = fm_cuda_of(c)->n_sm * per_sm;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
  fm_launch(c, kernel, (unsigned)(tiles < blocks ? tiles : blocks), threads, shared, j);
}

template <int F8> static void launch_both(fm_ctx *c, const fm_experts *e, const one_job &j) {
  int64_t pairs = j.slots * ((j.gate.w.rows + 7) / 8) + (j.shared_gate.rows + 7) / 8;
  size_t first = fm_stream<F8, 1, PAIR_RING>::RINGS + fm_pitch<F8>(e->hidden_size) * sizeof(uint16_t);
  size_t second = 2 * fm_stream<F8, 1>::RINGS + staged_down(e);
  launch(c, one_gate_up_kernel<F8>, pairs, FM_PER_SM, 288, first, j);
  launch(c, one_down_kernel<F8>, (j.down.w.rows + 15) / 16, 1, 512, second, j);
}

/* Half of the work, by columns. */
static int split_of(const one_job &j) {
  int64_t shared = j.shared_down.cols, m = j.down.w.cols, half = (shared + j.slots * m) / 2;
  int64_t n = half > shared ? 1 + (half - shared + m / 2) / m : 1;
  return (int)(n > j.slots ? j.slots : n);
}

bool fm_moe_one_chooses(const fm_experts *e) { return e->choose && e->n_experts <= MOST_CHOICE; }

fm_status fm_moe_one(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                     const stack *gate, const stack *up, const stack *down) {
  one_job j = { .gate = *gate, .up = *up, .down = *down, .id = (int32_t *)id, .weight = (float *)weight, .choose = fm_moe_one_chooses(e),
                .slots = (int)e->top_k, .in = { x, e->norm, NULL, e->hidden_size, e->eps, 1, (int)e->hidden_size }, .out = out };
  if (j.choose) j.rule = fm_choice_of(e->choose->rule, e->choose->logits, e->choose->bias);
  TRY(fm_cuda_take_n(c, &j.h, e->top_k * e->moe_intermediate_size));
  if (e->shared_gate) {
    TRY(fm_cuda_take_n(c, &j.shared_h, e->shared_gate->rows));
    j.shared_gate = fm_dmat_of(e->shared_gate), j.shared_up = fm_dmat_of(e->shared_up), j.shared_down = fm_dmat_of(e->shared_down);
  }
  j.split = split_of(j);
  if (gate->w.dtype == FM_F8_E4M3) launch_both<1>(c, e, j);
  else launch_both<0>(c, e, j);
  return fm_cuda_launched(c, "experts");
}
