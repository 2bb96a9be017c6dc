/*
** route.cu - the router's choice: a warp a row. Scores are made in f64, so that the choice is the CPU's.
*/
#include <math.h>

#include "cuda.cuh"

constexpr int ROUTE_ROWS = 4;

struct route_job {
  int32_t *id;
  float *weight;
  const float *logits, *bias;
  int n, experts, k, groups, topk_group, sigmoid, top2, norm;
  float factor;
};

/* What a warp works on, in shared memory. */
struct route_room {
  double *e;                             /* (experts) */
  float *s, *worth;                      /* scores (experts), groups' worth (groups) */
  uint32_t *key;                         /* (experts) ordered as what is chosen by; 0: taken */
  int *pick;                             /* (k) */
  static __host__ __device__ size_t size(int experts, int groups, int k) { return (experts * 16 + (groups + k) * 4 + 7) / 8 * 8; }
  __device__ route_room(char *p, const route_job &j)
    : e((double *)p), s((float *)(e + j.experts)), worth(s + j.experts), key((uint32_t *)(worth + j.groups)), pick((int *)(key + j.experts)) {}
};

/* Order of floats as order of integers above 0. */
__device__ __forceinline__ uint32_t key_of(float v) {
  uint32_t b = __float_as_uint(v);
  return b >> 31 ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ float of_key(uint32_t k) { return __uint_as_float(k >> 31 ? k & 0x7fffffffu : ~k); }

__device__ void route_scores(const route_room &m, const float *z, const route_job &j, int lane) {
  float max = -INFINITY;
  double sum = 0;
  if (j.sigmoid) {
    for (int i = lane; i < j.experts; i += 32) m.s[i] = (float)(1.0 / (1.0 + exp(-(double)z[i])));
    return;
  }
  for (int i = lane; i < j.experts; i += 32)
    if (z[i] > max) max = z[i];
  max = fm_warp_max(max);
  for (int i = lane; i < j.experts; i += 32) sum += m.e[i] = exp((double)z[i] - max);
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  for (int i = lane; i < j.experts; i += 32) m.s[i] = (float)(m.e[i] / sum);
}

/* A group survives when fewer than topk_group groups beat it; of equal ones the lower wins. */
__device__ void route_groups(const route_room &m, const route_job &j, int lane) {
  int n = j.experts / j.groups;
  for (int g = lane; g < j.groups; g += 32) {
    float a = -INFINITY, b = -INFINITY;
    for (int i = 0; i < n; i++) {
      float v = of_key(m.key[g * n + i]);
      if (v > a) b = a, a = v;
      else if (v > b) b = v;
    }
    m.worth[g] = j.top2 && n > 1 ? a + b : a;
  }
  __syncwarp();
  for (int i = lane; i < j.experts; i += 32) {
    int g = i / n, better = 0;
    for (int o = 0; o < j.groups; o++) better += m.worth[o] > m.worth[g] || (m.worth[o] == m.worth[g] && o < g);
    if (better >= j.topk_group) m.key[i] = key_of(-INFINITY);
  }
  __syncwarp();
}

/* The best that is not taken, of equal ones the lowest; takes it. */
__device__ __forceinline__ int route_take(uint32_t *key, int n, int lane) {
  uint32_t most = 0;
  int best = INT32_MAX;
  for (int i = lane; i < n; i += 32)
    if (key[i] > most) most = key[i], best = i;
  if (most != __reduce_max_sync(~0u, most)) best = INT32_MAX;
  best = __reduce_min_sync(~0u, best);
  if (best % 32 == lane) key[best] = 0;
  return best;
}

/* One row: id, weight (k). By a warp. */
__device__ __forceinline__ void route_row(const route_room &m, int32_t *id, float *weight, const float *z, const route_job &j, int lane) {
  route_scores(m, z, j, lane);
  for (int i = lane; i < j.experts; i += 32) {
    float v = j.bias ? m.s[i] + j.bias[i] : m.s[i];
    m.key[i] = key_of(isnan(v) ? -INFINITY : v);
  }
  __syncwarp();
  if (j.groups > 1) route_groups(m, j, lane);
  for (int k = 0; k < j.k; k++) {
    int best = route_take(m.key, j.experts, lane);
    if (lane == 0) m.pick[k] = best;
  }
  __syncwarp();
  for (int k = lane; k < j.k; k += 32) {                   // into increasing order
    int mine = m.pick[k], at = 0;
    for (int o = 0; o < j.k; o++) at += m.pick[o] < mine;
    if (id) id[at] = mine;
    m.key[at] = (uint32_t)mine;
  }
  __syncwarp();
  float sum = 0;
  for (int k = 0; k < j.k; k++) sum += m.s[m.key[k]];
  for (int k = lane; k < j.k; k += 32) {
    float w = m.s[m.key[k]];
    if (j.norm) w /= sum + 1e-20f;
    if (weight) weight[k] = w * j.factor;
  }
  __syncwarp();
}

/* Rows are rehearsed on zeros before the kernel ahead has ended: fetching the instructions takes longer than what they do. */
__global__ void __launch_bounds__(32 * ROUTE_ROWS) route_kernel(route_job j) {
  extern __shared__ __align__(16) char shared[];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = blockIdx.x * ROUTE_ROWS + warp;
  route_room m(shared + warp * route_room::size(j.experts, j.groups, j.k), j);
  fm_go_on();
#pragma unroll 1
  for (int turn = 0; turn < 2; turn++) {
    if (turn) fm_wait();
    else for (int i = lane; i < j.experts; i += 32) m.s[i] = 0;
    if (row >= j.n) continue;
    route_row(m, turn ? j.id + row * (int64_t)j.k : nullptr, turn ? j.weight + row * (int64_t)j.k : nullptr,
              turn ? j.logits + row * (int64_t)j.experts : m.s, j, lane);
  }
}

fm_status fm_cuda_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                        const fm_route *r, int64_t n) {
  if (n == 0) return FM_OK;
  route_job j = { topk_id, topk_weight, logits, bias, (int)n, (int)r->n_experts, (int)r->top_k, (int)(r->n_group > 1 ? r->n_group : 1),
                  (int)r->topk_group, r->sigmoid, r->group_top2, r->norm_topk_prob, r->routed_scaling_factor };
  size_t size = ROUTE_ROWS * route_room::size(j.experts, j.groups, j.k);
  if (size > 48 << 10) return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: %lld experts are too many", (long long)r->n_experts);
  fm_launch(c, route_kernel, (unsigned)((n + ROUTE_ROWS - 1) / ROUTE_ROWS), 32 * ROUTE_ROWS, size, j);
  return fm_cuda_launched(c, "route");
}
