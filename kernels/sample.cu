/*
** sample.cu - the draw of a token: argmax, or Gumbel-max over logits / temperature with the noise of csrc/base/rng.c.
** Sixteen blocks a row, then one warp; ties go to the lower id.
*/
#include "cuda.cuh"

struct best { double value; int32_t id; };

__device__ __forceinline__ best better(best a, best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ best warp_best(best a) {
  for (int o = 16; o; o >>= 1) {
    best b = { __shfl_xor_sync(~0u, a.value, o), __shfl_xor_sync(~0u, a.id, o) };
    a = better(a, b);
  }
  return a;
}

/* Four numbers of Philox 4x32-10 for ids 4 * quad .. + 3. */
__device__ void noise(uint32_t out[4], const fm_draw_rule &r, uint32_t quad) {
  uint32_t c0 = quad, c1 = (uint32_t)r.index, c2 = (uint32_t)((uint64_t)r.index >> 32), c3 = r.sample;
  uint32_t k0 = (uint32_t)r.seed, k1 = (uint32_t)(r.seed >> 32);
  for (int i = 0; i < 10; i++) {
    uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0, h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

__device__ best best_of_quad(best a, const float *logit, const fm_draw_rule &r, int32_t quad, int32_t n_valid) {
  uint32_t u[4];
  if (r.temperature > 0) noise(u, r, (uint32_t)quad);
  for (int j = 0; j < 4; j++) {
    int32_t id = 4 * quad + j;
    if (id >= n_valid) break;
    float l = logit[id];
    if (r.temperature > 0 && !(l > -INFINITY)) continue;
    double v = l;
    if (r.temperature > 0) v = v / r.temperature - log(-log(((double)u[j] + 0.5) * 0x1p-32));
    a = better(a, { v, id });
  }
  return a;
}

constexpr int PARTS = 16;                /* blocks a row */

__global__ void __launch_bounds__(512) draw_part_kernel(best *out, const float *logits, const fm_draw_rule *rule, int64_t vocab_size,
                                                        int32_t n_valid) {
  __shared__ best part[16];
  fm_wait();
  fm_draw_rule r = rule[blockIdx.y];
  const float *logit = logits + blockIdx.y * vocab_size;
  best a = { -INFINITY, INT32_MAX };
  for (int32_t q = blockIdx.x * 512 + threadIdx.x; 4 * q < n_valid; q += PARTS * 512) a = best_of_quad(a, logit, r, q, n_valid);
  a = warp_best(a);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = a;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  a = warp_best(part[threadIdx.x & 15]);
  if (threadIdx.x == 0) out[blockIdx.y * PARTS + blockIdx.x] = a;
}

__global__ void draw_kernel(int32_t *id, const best *part) {
  fm_wait();
  best a = warp_best(part[blockIdx.x * PARTS + threadIdx.x % PARTS]);
  if (threadIdx.x == 0) id[blockIdx.x] = a.id == INT32_MAX ? 0 : a.id;
}

fm_status fm_cuda_draw(fm_ctx *c, int32_t *id, const float *logits, const fm_draw_rule *rule, int64_t n, int64_t vocab_size,
                       int64_t n_valid) {
  const void *rules;
  best *part;
  if (n == 0) return FM_OK;
  TRY(fm_cuda_staged(c, &rules, rule, n * (int64_t)sizeof *rule));
  TRY(fm_cuda_take_n(c, &part, n * PARTS));
  fm_launch(c, draw_part_kernel, dim3(PARTS, (unsigned)n), 512, 0, part, logits, (const fm_draw_rule *)rules, vocab_size, (int32_t)n_valid);
  fm_launch(c, draw_kernel, (unsigned)n, 32, 0, id, (const best *)part);
  return fm_cuda_launched(c, "draw");
}
