/*
** norm.cu - embedding, RMSNorm, and making the inputs of products.
** One block of 256 threads a row.
*/
#include "skinny.cuh"

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

template <int F8> __global__ void __launch_bounds__(256) prepare_kernel(uint16_t *to, float *factor, fm_source s) {
  fm_go_on();
  fm_wait();
  float f = fm_stage_row<F8>(to + blockIdx.x * (int64_t)s.cols, s, blockIdx.x);
  if (threadIdx.x == 0) factor[blockIdx.x] = f;
}

fm_status fm_cuda_prepare(fm_ctx *c, bool f8, uint16_t *to, float *factor, const fm_source &s) {
  fm_launch(c, f8 ? prepare_kernel<1> : prepare_kernel<0>, (unsigned)s.n, 256, 0, to, factor, s);
  return fm_cuda_launched(c, "prepare");
}
