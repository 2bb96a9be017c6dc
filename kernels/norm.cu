/*
** norm.cu - embedding, RMSNorm, and making the bf16 inputs of products.
** One block of 256 threads a row; several where a row needs no sum.
*/
#include "cuda.cuh"

__global__ void embed_kernel(float *out, fm_dmat w, const int32_t *id) {
  fm_go_on();
  fm_wait();
  int64_t row = id[blockIdx.x];
  for (int64_t i = threadIdx.x; i < w.cols; i += blockDim.x) {
    float v = fm_element(w.data, w.dtype, row * w.cols + i);
    if (w.scale) v *= w.scale[row / 128 * w.across + i / 128];
    out[blockIdx.x * w.cols + i] = v;
  }
}

fm_status fm_cuda_embed(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n) {
  const void *ids;
  if (n == 0) return FM_OK;
  TRY(fm_cuda_staged(c, &ids, id, n * 4));
  fm_launch(c, embed_kernel, (unsigned)n, 256, 0, out, fm_dmat_of(table), (const int32_t *)ids);
  return fm_cuda_launched(c, "embed");
}

__global__ void rms_norm_kernel(float *out, int64_t ldo, const float *x, int64_t ldx, const float *w, int64_t dim, float eps) {
  fm_go_on();
  fm_wait();
  x += blockIdx.x * ldx;
  out += blockIdx.x * ldo;
  float inv = fm_inv_rms(x, dim, eps);
  for (int64_t i = threadIdx.x; i < dim; i += 256) out[i] = w[i] * (x[i] * inv);
}

fm_status fm_cuda_rms_norm(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w, int64_t n,
                           int64_t dim, float eps) {
  if (n == 0) return FM_OK;
  fm_launch(c, rms_norm_kernel, (unsigned)n, 256, 0, out, ldo, x, ldx, w, dim, eps);
  return fm_cuda_launched(c, "rms_norm");
}

__global__ void prepare_kernel(bf16 *xb, float *inv, const float *x, int64_t ldx, const float *up, const float *norm, float eps,
                               int64_t dim) {
  fm_go_on();
  fm_wait();
  x += blockIdx.x * ldx;
  xb += blockIdx.x * dim;
  if (norm) {
    float r = fm_inv_rms(x, dim, eps);
    if (threadIdx.x == 0) inv[blockIdx.x] = r;
  }
  for (int64_t i = blockIdx.y * 256 + threadIdx.x; i < dim; i += gridDim.y * 256) {
    float v = x[i];
    if (norm) v *= norm[i];
    if (up) v = fm_silu(v) * up[blockIdx.x * ldx + i];
    xb[i] = __float2bfloat16_rn(v);
  }
}

fm_status fm_cuda_prepare(fm_ctx *c, bf16 *xb, float *inv, const float *x, int64_t ldx, const float *up, const float *norm,
                          float eps, int64_t n, int64_t dim) {
  unsigned wide = norm ? 1 : (unsigned)((dim + 1023) / 1024);
  fm_launch(c, prepare_kernel, dim3((unsigned)n, wide), 256, 0, xb, inv, x, ldx, up, norm, eps, dim);
  return fm_cuda_launched(c, "prepare");
}
