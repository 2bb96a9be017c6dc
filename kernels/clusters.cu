/*
** clusters.cu - products of stored weights with 33 to 64 rows, by clusters of eight blocks: sums and bits of the skinny kernels
** (skinny.cuh), whose eight warps share K in eight parts. Here a block has a part, so that its inputs stay in shared memory while
** all weights pass by; in theirs inputs are read again for every 16 rows of weights, which takes longer than the weights do.
**
**   a cluster: 128 rows of weights at a time, 16 a warp. Sums of the eight parts meet in the shared memory of whoever made them:
**   block b adds up those of its cluster's warps b, part by part, while the next weights are on their way.
*/
#include "skinny.cuh"

constexpr int BLOCKS = 8, TOKENS = 64, RING = 6, LINE = TOKENS + 1;     /* +1: sums of neighbouring rows in different banks */
constexpr size_t SUMS = 2 * 8 * 16 * LINE * sizeof(float);
constexpr size_t INPUTS = 64 << 10;      /* bytes of a block's part of the inputs, at most */

/* Tiles of 16 rows, the list's one after the other; a warp takes every so many. */
struct cluster_tiles {
  static constexpr bool PAIRED = false;
  const fm_group *group;
  int n, known, every;
  __device__ __forceinline__ bool settle(fm_place &p) const {
    while (p.group < n && p.tile >= group[p.group].tiles) p.tile -= group[p.group++].tiles;
    return p.group < n;
  }
  __device__ __forceinline__ void step(fm_place &p) const { p.tile += every; }
};

__device__ __forceinline__ void cluster_meet() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
#endif
}
/* A float at p of block `rank` of the cluster. */
__device__ __forceinline__ float cluster_take(const float *p, int rank) {
  float v = 0;
#if __CUDA_ARCH__ >= 900
  uint32_t at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((uint32_t)__cvta_generic_to_shared(p)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at));
#endif
  return v;
}

/* Columns from .. to - 1 of all rows. */
template <int F8> __device__ void take_inputs(uint16_t *to, const fm_skinny_list &l, int from, int end, int pitch) {
  int each = (end - from) / 8, all = TOKENS * each;                      // whole vectors: parts are multiples of 32 columns
#pragma unroll 8
  for (int i = threadIdx.x; i < all; i += 256) {
    int token = i / each, col = i % each * 8;
    uint4 v = { 0, 0, 0, 0 };
    if (token < l.in.n && from + col < l.in.cols) v = *(const uint4 *)(l.x16 + (int64_t)token * l.in.cols + from + col);
    *(uint4 *)(to + token * pitch + col) = v;
  }
}

/* Adds up this block's share of the cluster's sums, and gives it away. */
__device__ void give(const fm_skinny_list &l, const fm_group *group, const fm_place &at, const float *sum) {
  constexpr int EACH = 16 * TOKENS / 256;
  const fm_skinny_item &j = l.item[at.group];
  int r = threadIdx.x % 16, first = threadIdx.x / 16, row = at.tile * 16 + r;
  if (row >= group[at.group].rows) return;
  float *out = j.out + first * j.ldo + row, before[EACH], bias = j.bias ? j.bias[row] : 0.0f;
#pragma unroll
  for (int e = 0; e < EACH; e++) before[e] = j.add && first + e * 16 < l.in.n ? out[e * 16 * j.ldo] : 0.0f;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    int token = first + e * 16;
    float v = 0;
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) v += cluster_take(sum + r * LINE + token, b);
    if (token >= l.in.n) continue;
    v *= l.factor[token];
    if (j.bias) v += bias;
    out[e * 16 * j.ldo] = j.add ? before[e] + v : v;
  }
}

template <int F8> __global__ void __launch_bounds__(256, 1) cluster_kernel(const __grid_constant__ fm_skinny_list list) {
  extern __shared__ __align__(16) char shared[];
  __shared__ fm_group group[4];
  using S = fm_stream<F8, TOKENS / 8, RING>;
  float *red = (float *)(shared + S::RINGS);
  uint16_t *inputs = (uint16_t *)(shared + S::RINGS + SUMS);
  int me = blockIdx.x % BLOCKS, first = blockIdx.x - me, from, end;
  S s;
  s.begin(shared);
  s.part = me, s.next.tile = first + s.warp;
  s.range(list.in.cols, &from, &end);
  int pitch = fm_pitch<F8>(end - from);
  if (threadIdx.x < list.n_items) group[threadIdx.x] = fm_group_of<false>(list.item[threadIdx.x].w, list.item[threadIdx.x].w, 1);
  __syncthreads();
  cluster_tiles tiles = { group, list.n_items, list.n_items, (int)gridDim.x };
  s.fill(tiles);
  fm_go_on();
  fm_wait();
  take_inputs<F8>(inputs, list, from, end, pitch);
  __syncthreads();
  const uint16_t *x[TOKENS / 8];
#pragma unroll
  for (int m = 0; m < TOKENS / 8; m++) x[m] = inputs + (m * 8 + s.lane / 4) * pitch - from;
  uint32_t turn = 0;
  fm_place at = { 0, first + s.warp, 0 }, mine = { 0, first + me, 0 };
  for (int tile = first; tile < list.tiles; tile += gridDim.x, tiles.step(at), tiles.step(mine), turn ^= 1) {
    float acc[TOKENS / 8][4] = {}, *sum = red + turn * (8 * 16 * LINE), *to = sum + (s.warp * 16 + s.lane / 4) * LINE + s.lane % 4 * 2;
    if (tiles.settle(at)) s.run(acc, list.in.cols, tiles, x);
#pragma unroll
    for (int m = 0; m < TOKENS / 8; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) to[i / 2 * 8 * LINE + m * 8 + i % 2] = acc[m][i];
    cluster_meet();
    if (tiles.settle(mine)) give(list, group, mine, sum + me * 16 * LINE);
  }
  cluster_meet();                        // the others may still read here
}

template <int F8> static bool run(fm_ctx *c, const fm_skinny_list *l) {
  using S = fm_stream<F8, TOKENS / 8, RING>;
  int parts = (l->in.cols + S::PART - 1) / S::PART, widest = (parts + 7) / 8 * S::PART;
  size_t inputs = TOKENS * fm_pitch<F8>(widest) * sizeof(uint16_t), shared = S::RINGS + SUMS + inputs;
  int clusters = fm_cuda_of(c)->n_sm / BLOCKS, tiles = (l->tiles + 7) / 8;
  if (fm_cuda_of(c)->major != 9 || inputs > INPUTS || parts < 8) return false;
  cudaFuncSetAttribute(cluster_kernel<F8>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
  fm_launch_clusters(c, cluster_kernel<F8>, BLOCKS, (unsigned)((tiles < clusters ? tiles : clusters) * BLOCKS), 256, shared, *l);
  return true;
}

bool fm_cluster_run(fm_ctx *c, bool f8, const fm_skinny_list *l) { return f8 ? run<1>(c, l) : run<0>(c, l); }
