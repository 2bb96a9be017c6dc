/*
** sample.cu - the draw of a token: argmax, or Gumbel-max over logits / temperature with the noise of csrc/base/rng.c.
** Some blocks a row, then one warp; ties go to the lower id. A block finds its best in f32 first, and makes in f64 only those that
** the error of f32 leaves in question.
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

/* Gumbel noise of u in f32, off by less than 1e-4: near 1 the inner logarithm is made from what is missing. */
__device__ __forceinline__ float rough_gumbel(uint32_t u) {
  float d = ((float)~u + 0.5f) * 0x1p-32f;
  float t = d < 0.0625f ? d * (1.0f + d * (0.5f + d * (1.0f / 3 + d * (0.25f + d * 0.2f)))) : -__logf(((float)u + 0.5f) * 0x1p-32f);
  return -__logf(t);
}

/* Calls f(id, logit, u) for the ids of a quad that take part. */
template <typename F> __device__ __forceinline__ void each_of_quad(const float *logit, const fm_draw_rule &r, int32_t quad, int32_t n_valid, F f) {
  uint32_t u[4] = {};
  if (r.temperature > 0) noise(u, r, (uint32_t)quad);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int32_t id = 4 * quad + j;
    if (id >= n_valid) break;
    float l = logit[id];
    if (r.temperature > 0 && !(l > -INFINITY)) continue;
    f(id, l, u[j]);
  }
}

__device__ __forceinline__ float rough(const fm_draw_rule &r, float l, uint32_t u) {
  return r.temperature > 0 ? l / r.temperature + rough_gumbel(u) : l;
}
__device__ __forceinline__ double exact(const fm_draw_rule &r, float l, uint32_t u) {
  return r.temperature > 0 ? (double)l / r.temperature - log(-log(((double)u + 0.5) * 0x1p-32)) : l;
}

constexpr int FEW_PARTS = 16, MANY_PARTS = 128;          /* blocks a row: of many rows, of few */

struct chosen { best a; float most; };   /* most: the largest logit */

__global__ void __launch_bounds__(512) draw_part_kernel(chosen *out, const float *logits, const fm_draw_rule *rule, int64_t vocab_size,
                                                        int32_t n_valid) {
  __shared__ best part[16];
  __shared__ float tops[16], mosts[16];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, step = gridDim.x * 512;
  fm_go_on();
  fm_wait();
  fm_draw_rule r = rule[blockIdx.y];
  const float *logit = logits + blockIdx.y * vocab_size;
  float top = -INFINITY, most = -INFINITY;
  for (int32_t q = blockIdx.x * 512 + threadIdx.x; 4 * q < n_valid; q += step)
    each_of_quad(logit, r, q, n_valid, [&](int32_t, float l, uint32_t u) {
      top = fmaxf(top, rough(r, l, u));
      most = fmaxf(most, l);
    });
  top = fm_warp_max(top);
  most = fm_warp_max(most);
  if (lane == 0) tops[warp] = top, mosts[warp] = most;
  __syncthreads();
  top = fm_warp_max(tops[lane & 15]);
  most = fm_warp_max(mosts[lane & 15]);
  best a = { -INFINITY, INT32_MAX };
  float near = top - 2 * (1e-3f + 1e-6f * fabsf(top));     // what is below cannot be the best
  if (!(top < INFINITY)) near = top;
  for (int32_t q = blockIdx.x * 512 + threadIdx.x; 4 * q < n_valid; q += step)
    each_of_quad(logit, r, q, n_valid, [&](int32_t id, float l, uint32_t u) {
      if (!(rough(r, l, u) < near)) a = better(a, { exact(r, l, u), id });
    });
  a = warp_best(a);
  if (lane == 0) part[warp] = a;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  a = warp_best(part[lane & 15]);
  if (threadIdx.x == 0) out[blockIdx.y * gridDim.x + blockIdx.x] = { a, most };
}

__global__ void draw_kernel(fm_drawn *out, const chosen *part, const float *logits, int64_t vocab_size, int parts) {
  best a = { -INFINITY, INT32_MAX };
  float most = -INFINITY;
  fm_wait();
  for (int i = threadIdx.x; i < parts; i += 32) {
    a = better(a, part[blockIdx.x * parts + i].a);
    most = fmaxf(most, part[blockIdx.x * parts + i].most);
  }
  a = warp_best(a);
  most = fm_warp_max(most);
  if (threadIdx.x) return;
  fm_drawn d = { a.id == INT32_MAX ? 0 : a.id, 0, 0, most, 0, 0 };
  d.logit = logits[blockIdx.x * vocab_size + d.id];
  out[blockIdx.x] = d;
}

/* ---- how what was drawn stands among all ---- */

struct stand { int n_before; float before, all; };

__device__ stand warp_add(stand a) {
  a.before = fm_warp_sum(a.before);
  a.all = fm_warp_sum(a.all);
  for (int o = 16; o; o >>= 1) a.n_before += __shfl_xor_sync(~0u, a.n_before, o);
  return a;
}

__global__ void __launch_bounds__(512) stand_part_kernel(stand *out, const fm_drawn *drawn, const float *logits, const fm_draw_rule *rule,
                                                         int64_t vocab_size, int32_t n_valid) {
  __shared__ stand part[16];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  fm_go_on();
  fm_wait();
  fm_draw_rule r = rule[blockIdx.y];
  if (!r.stands) return;
  fm_drawn d = drawn[blockIdx.y];
  const float *logit = logits + blockIdx.y * vocab_size;
  stand a = { 0, 0, 0 };
  for (int32_t i = blockIdx.x * 512 + threadIdx.x; i < n_valid; i += gridDim.x * 512) {
    float l = logit[i], weight = expf((l - d.best) / r.temperature);
    bool ahead = l > d.logit || (l == d.logit && i < d.id);
    a.n_before += ahead;
    a.before += ahead ? weight : 0;
    a.all += weight;
  }
  a = warp_add(a);
  if (lane == 0) part[warp] = a;
  __syncthreads();
  if (warp) return;
  a = lane < 16 ? part[lane] : stand{ 0, 0, 0 };
  a = warp_add(a);
  if (lane == 0) out[blockIdx.y * gridDim.x + blockIdx.x] = a;
}

__global__ void stand_kernel(fm_drawn *drawn, const stand *part, const fm_draw_rule *rule, int parts) {
  stand a = { 0, 0, 0 };
  fm_wait();
  if (!rule[blockIdx.x].stands) return;
  for (int i = threadIdx.x; i < parts; i += 32) {
    stand b = part[blockIdx.x * parts + i];
    a = { a.n_before + b.n_before, a.before + b.before, a.all + b.all };
  }
  a = warp_add(a);
  if (threadIdx.x) return;
  drawn[blockIdx.x].n_before = a.n_before, drawn[blockIdx.x].before = a.before, drawn[blockIdx.x].all = a.all;
}


fm_status fm_cuda_draw(fm_ctx *c, fm_drawn *out, const float *logits, const fm_draw_rule *rule, int64_t n, int64_t vocab_size,
                       int64_t n_valid) {
  const void *rules;
  chosen *part;
  stand *stands;
  int parts = n > 8 ? FEW_PARTS : MANY_PARTS;
  bool any = false;
  if (n == 0) return FM_OK;
  TRY(fm_cuda_staged(c, &rules, rule, n * (int64_t)sizeof *rule));
  TRY(fm_cuda_take_n(c, &part, n * parts));
  TRY(fm_cuda_take_n(c, &stands, n * parts));
  const fm_draw_rule *r = (const fm_draw_rule *)rules;
  dim3 grid((unsigned)parts, (unsigned)n);
  for (int64_t i = 0; i < n; i++) any = any || rule[i].stands;
  fm_launch(c, draw_part_kernel, grid, 512, 0, part, logits, r, vocab_size, (int32_t)n_valid);
  fm_launch(c, draw_kernel, (unsigned)n, 32, 0, out, (const chosen *)part, logits, vocab_size, parts);
  if (any) {
    fm_launch(c, stand_part_kernel, grid, 512, 0, stands, (const fm_drawn *)out, logits, r, vocab_size, (int32_t)n_valid);
    fm_launch(c, stand_kernel, (unsigned)n, 32, 0, out, (const stand *)stands, r, parts);
  }
  return fm_cuda_launched(c, "draw");
}
