/*
** route.cu - the router's choice for all rows: a warp a row. Experts of one row choose for themselves (moe_one.cu), by the same code.
*/
#include "route.cuh"

constexpr int ROUTE_ROWS = 4;

struct route_job { fm_choice rule; int32_t *id; float *weight; int n, room; };

/* Rows are rehearsed on zeros before the kernel ahead has ended: fetching the instructions takes longer than what they do. */
template <int EACH> __global__ void __launch_bounds__(32 * ROUTE_ROWS) route_kernel(const __grid_constant__ route_job j) {
  extern __shared__ uint32_t shared[];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = blockIdx.x * ROUTE_ROWS + warp, k = j.rule.k;
  uint32_t *room = shared + warp * j.room;
  fm_go_on();
#pragma unroll 1
  for (int turn = 0; turn < 2; turn++) {
    float z[EACH];
    if (turn) fm_wait();
    if (row >= j.n) continue;
#pragma unroll
    for (int x = 0; x < EACH; x++)
      z[x] = turn && lane + 32 * x < j.rule.experts ? j.rule.logits[row * (int64_t)j.rule.experts + lane + 32 * x] : 0.0f;
    int32_t *aside = (int32_t *)room + j.room - 2 * k;
    fm_choose(turn ? j.id + row * (int64_t)k : aside, turn ? j.weight + row * (int64_t)k : (float *)aside + k, z, j.rule, room);
  }
  for (int x = lane; x < k && row < j.n; x += 32) fm_count(j.rule, j.id[row * (int64_t)k + x]);
}

fm_status fm_cuda_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                        const fm_route *r, int64_t n) {
  if (n == 0) return FM_OK;
  route_job j = { fm_choice_of(r, logits, bias), topk_id, topk_weight, (int)n };
  j.room = (int)fm_choice_room(j.rule) + 2 * j.rule.k;
  size_t size = ROUTE_ROWS * j.room * sizeof(uint32_t);
  if (r->n_experts > 768 || size > 48 << 10) return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: %lld experts are too many", (long long)r->n_experts);
  auto kernel = r->n_experts <= 32 ? route_kernel<1> : r->n_experts <= 64 ? route_kernel<2> : r->n_experts <= 256 ? route_kernel<8> : route_kernel<24>;
  fm_launch(c, kernel, (unsigned)((n + ROUTE_ROWS - 1) / ROUTE_ROWS), 32 * ROUTE_ROWS, size, j);
  return fm_cuda_launched(c, "route");
}
