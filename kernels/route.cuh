/*
** route.cuh - the router's choice of one row, by a warp: for route.cu, and for experts that choose for themselves. Scores are made in
** f64, so that the choice is the CPU's.
*/
#ifndef FM_KERNELS_ROUTE_CUH
#define FM_KERNELS_ROUTE_CUH

#include <math.h>

#include "cuda.cuh"

/* Rules as in fm_route; logits, bias: of row 0, experts apart. */
struct fm_choice {
  const float *logits, *bias;
  int experts, k, groups, topk_group, sigmoid, top2, norm;
  float factor;
  unsigned long long *count;             /* as fm_route's */
};
/* Notes one choice. */
__device__ __forceinline__ void fm_count(const fm_choice &j, int id) {
  if (j.count) atomicAdd(j.count + id, 1ull);
}
inline fm_choice fm_choice_of(const fm_route *r, const float *logits, const float *bias) {
  return { logits, bias, (int)r->n_experts, (int)r->top_k, (int)(r->n_group > 1 ? r->n_group : 1), (int)r->topk_group, r->sigmoid,
           r->group_top2, r->norm_topk_prob, r->routed_scaling_factor, (unsigned long long *)r->count };
}

/* Words of shared memory that a warp wants: what is chosen by (experts), groups' worth, the chosen ones' scores (k). */
inline size_t fm_choice_room(const fm_choice &j) { return j.experts + j.groups + j.k; }

/* Order of floats as order of integers above 0. */
__device__ __forceinline__ uint32_t fm_key_of(float v) {
  uint32_t b = __float_as_uint(v);
  return b >> 31 ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float fm_of_key(uint32_t k) { return __uint_as_float(k >> 31 ? k & 0x7fffffffu : ~k); }

/* A group survives when fewer than topk_group groups beat it; of equal ones the lower wins. */
__device__ __forceinline__ void fm_choose_groups(uint32_t *key, float *worth, const fm_choice &j, int lane) {
  int n = j.experts / j.groups;
  for (int g = lane; g < j.groups; g += 32) {
    float a = -INFINITY, b = -INFINITY;
    for (int i = 0; i < n; i++) {
      float v = fm_of_key(key[g * n + i]);
      if (v > a) b = a, a = v;
      else if (v > b) b = v;
    }
    worth[g] = j.top2 && n > 1 ? a + b : a;
  }
  __syncwarp();
  for (int i = lane; i < j.experts; i += 32) {
    int g = i / n, better = 0;
    for (int o = 0; o < j.groups; o++) better += worth[o] > worth[g] || (worth[o] == worth[g] && o < g);
    if (better >= j.topk_group) key[i] = fm_key_of(-INFINITY);
  }
  __syncwarp();
}

/* s[x] = score of expert lane + 32 x, from its logit. */
template <int EACH> __device__ __forceinline__ void fm_choice_scores(float (&s)[EACH], const float (&z)[EACH], const fm_choice &j, int lane) {
  float max = -INFINITY;
  double e[EACH], sum = 0;
#pragma unroll
  for (int x = 0; x < EACH; x++)
    if (lane + 32 * x < j.experts && z[x] > max) max = z[x];
  max = j.sigmoid ? 0.0f : fm_warp_max(max);
#pragma unroll
  for (int x = 0; x < EACH; x++) {
    e[x] = exp(j.sigmoid ? -(double)z[x] : (double)z[x] - max);
    if (lane + 32 * x < j.experts) sum += e[x];
  }
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
#pragma unroll
  for (int x = 0; x < EACH; x++) s[x] = (float)(j.sigmoid ? 1.0 / (1.0 + e[x]) : e[x] / sum);
}

/* id, weight (k), in increasing order of id; z[x]: logit of expert lane + 32 x. */
template <int EACH> __device__ __forceinline__ void fm_choose(int32_t *id, float *weight, const float (&z)[EACH], const fm_choice &j, uint32_t *room) {
  int lane = threadIdx.x & 31;
  float s[EACH], *worth = (float *)(room + j.experts), *score = worth + j.groups;
  uint32_t key[EACH];
  bool mine[EACH] = {};
  fm_choice_scores(s, z, j, lane);
#pragma unroll
  for (int x = 0; x < EACH; x++) {
    int i = lane + 32 * x;
    float v = j.bias && i < j.experts ? s[x] + j.bias[i] : s[x];
    key[x] = i < j.experts ? fm_key_of(isnan(v) ? -INFINITY : v) : 0;
    if (j.groups > 1 && i < j.experts) room[i] = key[x];
  }
  if (j.groups > 1) {
    __syncwarp();
    fm_choose_groups(room, worth, j, lane);
#pragma unroll
    for (int x = 0; x < EACH; x++)
      if (lane + 32 * x < j.experts) key[x] = room[lane + 32 * x];
  }
  for (int k = 0; k < j.k; k++) {        // the best that is left, of equal ones the lowest
    uint32_t most = key[0];
    int best = INT32_MAX;
#pragma unroll
    for (int x = 1; x < EACH; x++) most = max(most, key[x]);
    most = __reduce_max_sync(~0u, most);
#pragma unroll
    for (int x = EACH - 1; x >= 0; x--)
      if (key[x] == most) best = lane + 32 * x;
    best = __reduce_min_sync(~0u, best);
#pragma unroll
    for (int x = 0; x < EACH; x++)
      if (best == lane + 32 * x) key[x] = 0, mine[x] = true;
  }
  int at = 0;
#pragma unroll
  for (int x = 0; x < EACH; x++) {
    uint32_t all = __ballot_sync(~0u, mine[x]);
    int place = at + __popc(all & ((1u << lane) - 1));
    if (mine[x]) id[place] = lane + 32 * x, score[place] = s[x];
    at += __popc(all);
  }
  __syncwarp();
  float sum = 0;
  for (int k = 0; k < j.k && j.norm; k++) sum += score[k];
  for (int k = lane; k < j.k; k += 32) weight[k] = (j.norm ? score[k] / (sum + 1e-20f) : score[k]) * j.factor;
  __syncwarp();
}

#endif
