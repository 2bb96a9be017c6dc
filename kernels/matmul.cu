/*
** matmul.cu - dense products. Three ways, chosen by what is asked for, never by the number of rows:
**   plain   f32 arithmetic, any dtype and shape: a warp an output row
**   skinny  rows that were sampled: bound by the weights' bytes (skinny.cuh); all rows beside small weights
**   gemm    rows of prompts: cuBLASLt, one algorithm for each (rows, cols), no split of K
*/
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>

#include "exact.cuh"
#include "skinny.cuh"

/* ---- plain ---- */

/* Four tokens a warp; lanes stride over K. */
__global__ void plain_kernel(plain_job j) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int64_t r = blockIdx.x * (int64_t)8 + warp, i0 = blockIdx.y * (int64_t)4, k = j.w.cols;
  fm_wait();
  if (r >= j.w.rows) return;
  float sum[4] = { 0 }, square[4] = { 0 };
  for (int64_t i = lane; i < k; i += 32) {
    float w = fm_element(j.w.data, j.w.dtype, r * k + i);
    if (j.w.scale) w *= j.w.scale[r / 128 * j.w.across + i / 128];
    if (j.norm) w *= j.norm[i];
#pragma unroll
    for (int t = 0; t < 4; t++) {
      if (i0 + t >= j.n) break;
      float x = j.x[(i0 + t) * j.ldx + i];
      if (j.norm) square[t] = fmaf(x, x, square[t]);
      if (j.up) x = fm_silu(x) * j.up[(i0 + t) * j.ldx + i];
      sum[t] = fmaf(w, x, sum[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < 4; t++) {
    if (i0 + t >= j.n) break;
    float v = fm_warp_sum(sum[t]), s = j.norm ? fm_warp_sum(square[t]) : 0;
    if (j.norm) v *= rsqrtf(s / (float)k + j.eps);
    if (j.bias) v += j.bias[r];
    float *out = j.out + (i0 + t) * j.ldo + r;
    if (lane == 0) *out = j.add ? *out + v : v;
  }
}

/* The same for f32 weights whose rows are whole vectors: the router. A warp a row and T tokens, K in steps of 2048; the weights of
   the first are asked for, and normed, before the kernel ahead has ended. */
constexpr int EXACT_WARPS = 4, EXACT_STEP = 16;          /* vectors a lane */

__device__ __forceinline__ void exact_weights(float4 (&a)[EXACT_STEP], const float4 *w, const float4 *norm, int64_t i0, int64_t end) {
#pragma unroll
  for (int u = 0; u < EXACT_STEP; u++) {
    int64_t i = i0 + u * 32;
    a[u] = i < end ? w[i] : float4{ 0, 0, 0, 0 };
    if (!norm || i >= end) continue;
    float4 b = norm[i];
    a[u] = { a[u].x * b.x, a[u].y * b.y, a[u].z * b.z, a[u].w * b.w };
  }
}

template <int T> __global__ void __launch_bounds__(EXACT_WARPS * 32) exact_kernel(plain_job j) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int64_t r = blockIdx.x * (int64_t)EXACT_WARPS + warp, i0 = blockIdx.y * (int64_t)T, k = j.w.cols, end = r < j.w.rows ? k / 4 : 0;
  const float4 *w = (const float4 *)((const float *)j.w.data + r * k), *norm = (const float4 *)j.norm;
  float4 a[EXACT_STEP];
  exact_weights(a, w, norm, lane, end);
  fm_go_on();
  fm_wait();
  float sum[T] = {}, square[T] = {};
  for (int64_t part = lane; part < end; part += EXACT_STEP * 32) {
    if (part != lane) exact_weights(a, w, norm, part, end);
#pragma unroll
    for (int t = 0; t < T; t++) {
      const float4 *in = (const float4 *)(j.x + (i0 + t < j.n ? i0 + t : j.n - 1) * j.ldx);
      float4 x[EXACT_STEP];
#pragma unroll
      for (int u = 0; u < EXACT_STEP; u++) x[u] = part + u * 32 < end ? in[part + u * 32] : float4{ 0, 0, 0, 0 };
#pragma unroll
      for (int u = 0; u < EXACT_STEP; u++) {
        square[t] = fmaf(x[u].w, x[u].w, fmaf(x[u].z, x[u].z, fmaf(x[u].y, x[u].y, fmaf(x[u].x, x[u].x, square[t]))));
        sum[t] = fmaf(a[u].w, x[u].w, fmaf(a[u].z, x[u].z, fmaf(a[u].y, x[u].y, fmaf(a[u].x, x[u].x, sum[t]))));
      }
    }
  }
#pragma unroll
  for (int t = 0; t < T; t++) {
    float v = fm_warp_sum(sum[t]), s = fm_warp_sum(square[t]);
    if (norm) v *= rsqrtf(s / (float)k + j.eps);
    if (lane == 0 && end && i0 + t < j.n) j.out[(i0 + t) * j.ldo + r] = v;
  }
}

static bool whole_vectors(const fm_mm *m) {
  return m->w->dtype == FM_F32 && m->w->cols % 128 == 0 && m->ldx % 4 == 0 && !m->up && !m->bias && !m->add &&
         ((uintptr_t)m->x | (uintptr_t)m->w->data | (uintptr_t)m->norm) % 16 == 0;
}

static fm_status plain(fm_ctx *c, const fm_mm *m) {
  plain_job j = { fm_dmat_of(m->w), m->x, m->norm, m->up, m->bias, m->out, m->ldx, m->ldo, m->n, m->eps, m->add };
  for (int64_t i = 0; i < m->n; i += 4 * 65535) {  // grid.y has 16 bits
    int64_t n = m->n - i < 4 * 65535 ? m->n - i : 4 * 65535;
    j.x = m->x + i * m->ldx, j.up = m->up ? m->up + i * m->ldx : NULL, j.out = m->out + i * m->ldo, j.n = n;
    unsigned rows = (unsigned)((m->w->rows + EXACT_WARPS - 1) / EXACT_WARPS);
    if (whole_vectors(m) && !c->generated && m->w->rows > 32) fm_exact_many(c, &j);     // a tile is 64 of them
    else if (whole_vectors(m) && n <= 16) fm_launch(c, exact_kernel<1>, dim3(rows, (unsigned)n), EXACT_WARPS * 32, 0, j);
    else if (whole_vectors(m)) fm_launch(c, exact_kernel<4>, dim3(rows, (unsigned)((n + 3) / 4)), EXACT_WARPS * 32, 0, j);
    else fm_launch(c, plain_kernel, dim3((unsigned)((m->w->rows + 7) / 8), (unsigned)((n + 3) / 4)), 256, 0, j);
  }
  return fm_cuda_launched(c, "a plain product");
}

/* ---- skinny ---- */

struct skinny_item { fm_dmat w; const float *bias; float *out; int64_t ldo; int add; };
/* Products of one input: staged by every block, or made before (x16, rows of 16 bits, and factor). */
struct skinny_list {
  skinny_item item[4];
  int n_items, tiles;
  fm_source in;
  const uint16_t *x16;
  const float *factor;
};

template <int F8, int NT, bool STAGED> __global__ void __launch_bounds__(256, NT > 4 ? 1 : 2) skinny_kernel(const __grid_constant__ skinny_list list) {
  extern __shared__ __align__(16) char shared[];
  __shared__ fm_group group[4];
  __shared__ float factor[FM_STAGED_ROWS];
  using S = fm_stream<F8, NT>;
  constexpr int EACH = (16 * NT * 8 + 255) / 256;          // answers of a thread
  int n = list.in.n, pitch = STAGED ? fm_pitch<F8>(list.in.cols) : list.in.cols;
  int first = blockIdx.y * (NT * 8), step = gridDim.y * (NT * 8);          // tokens of this block
  uint16_t *staged = (uint16_t *)(shared + S::SHARED);
  S s;
  s.begin(shared);
  if (threadIdx.x < list.n_items)
    group[threadIdx.x] = fm_group_of<false>(list.item[threadIdx.x].w, list.item[threadIdx.x].w, (n - first + step - 1) / step);
  __syncthreads();
  fm_list<false, false> tiles = { group, list.n_items, list.n_items, 0 };
  s.fill(tiles);
  if (STAGED) fm_stage_soon(list.in);
  fm_go_on();
  fm_wait();
  if (STAGED) fm_stage<F8>(staged, factor, list.in);
  const uint16_t *rows = STAGED ? staged : list.x16;
  float *red = (float *)(shared + S::RINGS);
  uint32_t turn = 0;
  for (fm_place at = { 0, (int)blockIdx.x, 0 }; tiles.settle(at); tiles.step(at)) {
    const skinny_item &j = list.item[at.group];
    for (int i0 = first; i0 < n; i0 += step, turn ^= 1) {
      float acc[NT][4] = {}, *sum = red + turn * (8 * 16 * NT * 8), before[EACH];
      const uint16_t *x[NT];
      auto answer = [&](int e) -> float * {                // where this thread's answer goes; NULL: there is none
        int row = at.tile * 16 + (e * 256 + threadIdx.x) % 16, token = i0 + (e * 256 + threadIdx.x) / 16;
        return e * 256 + threadIdx.x < 16 * NT * 8 && row < group[at.group].rows && token < n ? j.out + token * j.ldo + row : nullptr;
      };
#pragma unroll
      for (int e = 0; e < EACH; e++) before[e] = j.add && answer(e) ? *answer(e) : 0.0f;
#pragma unroll
      for (int m = 0; m < NT; m++) x[m] = i0 + m * 8 + s.lane / 4 < n ? rows + (int64_t)(i0 + m * 8 + s.lane / 4) * pitch : nullptr;
      s.run(acc, list.in.cols, tiles, x);
      fm_skinny_put<NT>(sum, acc, s.warp, s.lane);
      __syncthreads();
#pragma unroll
      for (int e = 0; e < EACH; e++) {
        float *out = answer(e);
        if (!out) continue;
        int i = e * 256 + threadIdx.x, token = i0 + i / 16;
        float v = fm_skinny_sum<NT>(sum, i % 16, i / 16) * (STAGED ? factor[token] : list.factor[token]);
        if (j.bias) v += j.bias[at.tile * 16 + i % 16];
        *out = j.add ? before[e] + v : v;
      }
    }
  }
}

template <int F8, int NT, bool STAGED> static void skinny_launch(fm_ctx *c, const skinny_list *l) {
  int n_sm = fm_cuda_of(c)->n_sm * FM_PER_SM, turns = (l->in.n + NT * 8 - 1) / (NT * 8), share = n_sm / l->tiles;
  dim3 grid((unsigned)(l->tiles < n_sm ? l->tiles : n_sm), (unsigned)(share < 1 ? 1 : share < turns ? share : turns));
  auto kernel = skinny_kernel<F8, NT, STAGED>;
  size_t shared = fm_stream<F8, NT>::SHARED + (STAGED ? l->in.n * fm_pitch<F8>(l->in.cols) * sizeof(uint16_t) : 0);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
  fm_launch(c, kernel, grid, 256, shared, *l);
}

template <int F8> static fm_status skinny_run(fm_ctx *c, skinny_list *l) {
  int64_t n = l->in.n, cols = l->in.cols;
  if (n <= FM_STAGED_ROWS && n * fm_pitch<F8>(cols) * sizeof(uint16_t) <= FM_STAGED_BYTES) {
    skinny_launch<F8, 1, true>(c, l);
    return fm_cuda_launched(c, "a product of few rows");
  }
  uint16_t *x16;
  float *factor;
  TRY(fm_cuda_take_n(c, &x16, n * cols));
  TRY(fm_cuda_take_n(c, &factor, n));
  TRY(fm_cuda_prepare(c, F8, x16, factor, l->in));
  l->x16 = x16, l->factor = factor;
  if (n <= 8) skinny_launch<F8, 1, false>(c, l);
  else if (n <= 16) skinny_launch<F8, 2, false>(c, l);
  else if (n <= 32) skinny_launch<F8, 4, false>(c, l);
  else skinny_launch<F8, 8, false>(c, l);
  return fm_cuda_launched(c, "a product of few rows");
}

/* A run of up to four products of one dtype and one input. */
static fm_status skinny(fm_ctx *c, const fm_mm *mm, int64_t n_mm) {
  skinny_list l = { .n_items = (int)n_mm, .in = { mm->x, mm->norm, mm->up, mm->ldx, mm->eps, (int)mm->n, (int)mm->w->cols } };
  for (int64_t i = 0; i < n_mm; i++) {
    l.item[i] = { fm_dmat_of(mm[i].w), mm[i].bias, mm[i].out, mm[i].ldo, mm[i].add };
    l.tiles += (int)((mm[i].w->rows + 15) / 16);
  }
  return mm->w->dtype == FM_F8_E4M3 ? skinny_run<1>(c, &l) : skinny_run<0>(c, &l);
}

/* ---- cuBLASLt, opened when first wanted ---- */

constexpr int LT_PLANS = 512;
struct lt_plan { int64_t rows, cols, n; int bias, out; cublasLtMatmulAlgo_t algo; bool good; };
struct fm_lt {
  void *lib;
  cublasLtHandle_t handle;
  void *workspace;
  lt_plan plan[LT_PLANS];
  int n_plans;
#define LT(name) decltype(&cublasLt##name) name
  LT(Create); LT(Destroy); LT(Matmul); LT(MatmulDescCreate); LT(MatmulDescDestroy); LT(MatmulDescSetAttribute);
  LT(MatrixLayoutCreate); LT(MatrixLayoutDestroy); LT(MatmulPreferenceCreate); LT(MatmulPreferenceDestroy);
  LT(MatmulPreferenceSetAttribute); LT(MatmulAlgoGetHeuristic);
#undef LT
};

constexpr int64_t LT_WORKSPACE = 32 << 20;

static bool lt_symbols(fm_lt *t) {
  bool good = true;
#define LT(name) good = (t->name = (decltype(t->name))dlsym(t->lib, "cublasLt" #name)) != NULL && good
  LT(Create); LT(Destroy); LT(Matmul); LT(MatmulDescCreate); LT(MatmulDescDestroy); LT(MatmulDescSetAttribute);
  LT(MatrixLayoutCreate); LT(MatrixLayoutDestroy); LT(MatmulPreferenceCreate); LT(MatmulPreferenceDestroy);
  LT(MatmulPreferenceSetAttribute); LT(MatmulAlgoGetHeuristic);
#undef LT
  return good;
}

/* Without it, t->handle stays NULL and skinny products stand in. */
static fm_lt *lt_open(fm_cuda *d) {
  static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so", "/usr/local/cuda/lib64/libcublasLt.so" };
  if (d->lt) return d->lt;
  fm_lt *t = d->lt = (fm_lt *)calloc(1, sizeof *t);
  for (const char *name : names)
    if (t && !t->lib) t->lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!t || !t->lib || !lt_symbols(t) || t->Create(&t->handle) != CUBLAS_STATUS_SUCCESS) return t;
  if (cudaMalloc(&t->workspace, LT_WORKSPACE) != cudaSuccess) {
    cudaGetLastError();
    t->Destroy(t->handle);
    t->handle = NULL;
  }
  return t;
}

void fm_cuda_lt_close(fm_cuda *d) {
  if (!d->lt) return;
  if (d->lt->handle) d->lt->Destroy(d->lt->handle);
  if (d->lt->workspace) cudaFree(d->lt->workspace);
  free(d->lt);                           // the library stays open, as the driver does
  d->lt = NULL;
}

bool fm_cuda_has_gemm(fm_ctx *c) {
  fm_lt *t = lt_open(fm_cuda_of(c));
  return t && t->handle;
}

/* Layouts of out^T (rows, n) = w^T' (cols, rows)' x^T (cols, n), all column-major. */
struct lt_call { cublasLtMatmulDesc_t desc; cublasLtMatrixLayout_t a, b, d; };

static void lt_describe(fm_lt *t, lt_call *l, int64_t rows, int64_t cols, int64_t ldx, int64_t ldo, int64_t n, bool out_bf16,
                        const float *bias) {
  cublasOperation_t yes = CUBLAS_OP_T;
  t->MatmulDescCreate(&l->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  t->MatmulDescSetAttribute(l->desc, CUBLASLT_MATMUL_DESC_TRANSA, &yes, sizeof yes);
  if (bias) {
    cublasLtEpilogue_t e = CUBLASLT_EPILOGUE_BIAS;
    t->MatmulDescSetAttribute(l->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &e, sizeof e);
    t->MatmulDescSetAttribute(l->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
  }
  t->MatrixLayoutCreate(&l->a, CUDA_R_16BF, (uint64_t)cols, (uint64_t)rows, cols);
  t->MatrixLayoutCreate(&l->b, CUDA_R_16BF, (uint64_t)cols, (uint64_t)n, ldx);
  t->MatrixLayoutCreate(&l->d, out_bf16 ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)rows, (uint64_t)n, ldo);
}

static void lt_forget(fm_lt *t, lt_call *l) {
  t->MatmulDescDestroy(l->desc);
  t->MatrixLayoutDestroy(l->a), t->MatrixLayoutDestroy(l->b), t->MatrixLayoutDestroy(l->d);
}

/* The algorithm for (rows, cols): what is best for 4096 tokens, whatever n is; no reduction over parts of K. loose: what is best
   for n, or up to twice that. */
static lt_plan *lt_find(fm_lt *t, int64_t rows, int64_t cols, int64_t many, bool out_bf16, const float *bias, bool loose) {
  int64_t most = 4096;
  while (loose && most > 16 && most / 2 >= many) most /= 2;
  for (int i = 0; i < t->n_plans; i++) {
    lt_plan *p = &t->plan[i];
    if (p->rows == rows && p->cols == cols && p->n == most && p->out == out_bf16 && p->bias == (bias != NULL)) return p;
  }
  if (t->n_plans == LT_PLANS) return NULL;
  lt_plan *p = &t->plan[t->n_plans++];
  *p = { rows, cols, most, bias != NULL, out_bf16, {}, false };
  lt_call l;
  cublasLtMatmulPreference_t pref;
  cublasLtMatmulHeuristicResult_t found;
  int n = 0;
  uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
  size_t space = LT_WORKSPACE;
  lt_describe(t, &l, rows, cols, cols, rows, most, out_bf16, bias);
  t->MatmulPreferenceCreate(&pref);
  if (!loose) t->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof none);
  t->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space, sizeof space);
  if (t->MatmulAlgoGetHeuristic(t->handle, l.desc, l.a, l.b, l.d, l.d, pref, 1, &found, &n) == CUBLAS_STATUS_SUCCESS && n) {
    p->algo = found.algo;
    p->good = true;
  }
  t->MatmulPreferenceDestroy(pref);
  lt_forget(t, &l);
  return p;
}

__global__ void unpack_kernel(bf16 *out, fm_dmat w) {
  int64_t r = blockIdx.x;
  fm_wait();
  for (int64_t i = threadIdx.x; i < w.cols; i += blockDim.x)
    out[r * w.cols + i] = __float2bfloat16_rn(fm_element(w.data, w.dtype, r * w.cols + i) * w.scale[r / 128 * w.across + i / 128]);
}

fm_status fm_cuda_gemm(fm_ctx *c, const fm_mat *w, const bf16 *xb, int64_t ldx, void *out, int64_t ldo, bool out_bf16,
                       const float *bias, int64_t n, bool add) {
  fm_cuda *d = fm_cuda_of(c);
  fm_lt *t = lt_open(d);
  const void *a = w->data;
  if (w->dtype == FM_F8_E4M3) {
    bf16 *wide;
    TRY(fm_cuda_take_n(c, &wide, w->rows * w->cols));
    fm_launch(c, unpack_kernel, (unsigned)w->rows, 256, 0, wide, fm_dmat_of(w));
    a = wide;
  }
  lt_plan *p = lt_find(t, w->rows, w->cols, n, out_bf16, bias, c->loose);
  if (!p || !p->good) return fm_fail(&c->err, FM_EDEVICE, "cuBLASLt has no product of (%lld, %lld)", (long long)w->rows, (long long)w->cols);
  lt_call l;
  float one = 1, beta = add ? 1 : 0;
  lt_describe(t, &l, w->rows, w->cols, ldx, ldo, n, out_bf16, bias);
  cublasStatus_t s = t->Matmul(t->handle, l.desc, &one, a, l.a, xb, l.b, &beta, out, l.d, out, l.d, &p->algo, t->workspace,
                               LT_WORKSPACE, d->stream);
  lt_forget(t, &l);
  if (s != CUBLAS_STATUS_SUCCESS)
    return fm_fail(&c->err, FM_EDEVICE, "cuBLASLt: status %d for (%lld, %lld) times %lld", (int)s, (long long)w->rows,
                   (long long)w->cols, (long long)n);
  return FM_OK;
}

/* x in bf16, fully normed. */
__global__ void input_kernel(bf16 *xb, const float *x, int64_t ldx, const float *up, const float *norm, float eps, int64_t dim) {
  fm_wait();
  x += blockIdx.x * ldx, xb += blockIdx.x * dim;
  float inv = norm ? fm_inv_rms(x, dim, eps) : 1.0f;
  for (int64_t i = threadIdx.x; i < dim; i += 256) {
    float v = x[i];
    if (norm) v = v * inv * norm[i];
    if (up) v = fm_silu(v) * up[blockIdx.x * ldx + i];
    xb[i] = __float2bfloat16_rn(v);
  }
}

static bool same_input(const fm_mm *a, const fm_mm *b) {
  return a->x == b->x && a->ldx == b->ldx && a->norm == b->norm && a->up == b->up && a->n == b->n && a->w->cols == b->w->cols;
}

static fm_status gemm(fm_ctx *c, const fm_mm *mm, int64_t n_mm) {
  bf16 *xb = NULL;
  for (int64_t i = 0; i < n_mm; i++) {
    const fm_mm *m = &mm[i];
    if (i == 0) {
      TRY(fm_cuda_take_n(c, &xb, m->n * m->w->cols));
      fm_launch(c, input_kernel, (unsigned)m->n, 256, 0, xb, m->x, m->ldx, m->up, m->norm, m->eps, m->w->cols);
      TRY(fm_cuda_launched(c, "the input of a product"));
    }
    TRY(fm_cuda_gemm(c, m->w, xb, m->w->cols, m->out, m->ldo, false, m->bias, m->n, m->add));
  }
  return FM_OK;
}

/* ---- the choice ---- */

enum way { PLAIN, SKINNY, GEMM };

static way way_of(fm_ctx *c, const fm_mm *m) {
  if (m->exact || c->arithmetic == FM_F32 || !fm_skinny_fits(c, m->w)) return PLAIN;
  bool aligned = m->ldo % 4 == 0 && (uintptr_t)m->out % 16 == 0 && (!m->bias || (uintptr_t)m->bias % 16 == 0);
  return c->generated || !aligned || fm_cuda_small(m->w) || !fm_cuda_has_gemm(c) ? SKINNY : GEMM;
}

fm_status fm_cuda_matmul(fm_ctx *c, const fm_mm *mm, int64_t n_mm) {
  for (int64_t i = 0, n; i < n_mm; i += n) {
    way how = way_of(c, &mm[i]);
    n = 1;
    if (mm[i].n == 0 || mm[i].w->rows == 0) continue;
    while (how != PLAIN && n < 4 && i + n < n_mm && way_of(c, &mm[i + n]) == how && same_input(&mm[i + n], &mm[i]) &&
           mm[i + n].w->dtype == mm[i].w->dtype && mm[i + n].w->rows > 0) n++;
    if (how == PLAIN) TRY(plain(c, &mm[i]));
    else TRY(how == SKINNY ? skinny(c, &mm[i], n) : gemm(c, &mm[i], n));
  }
  return FM_OK;
}
