/*
** simd_body.h - the loops of fm_simd, written once over a vector type V of LANES floats that the including file defines:
** v_zero, v_set, v_load, v_load_part (n < LANES, rest zero), v_store, v_store_part, v_fma, v_mul, v_sub, v_max (the second where the
** first is not a number), v_div, v_one_or (1 where x >= 0, else y), v_fold, v_fold4, w_load (LANES stored weights as f32; f8 times 2^-120), round_near, pow2, zero_below.
*/

enum { AHEAD = 8, BLOCK = 128 };                    /* f8 scales: columns and rows of a block */

/* f8 bits moved into an f32 come out times 2^-120. Products undo half of that in the inputs and half in the scale of a block's
   sum: neither leaves f32's range, and powers of two round nothing. Loading keeps scales below 2^7. */
#define F8_SHIFT 0x1p120f
#define F8_HALF 0x1p60f

/* exp of x <= 0 by 2^n * p(r), r = x - n ln 2 in +-0.35; the polynomial is exp's series to the seventh power, its
   remainder below 6e-9. Below -87 the result is 0, NaN stays NaN. */
static inline V v_exp(V x) {
  V n = round_near(v_mul(x, v_set(1.44269504f)));
  V r = v_fma(n, v_set(-0.693145752f), x);
  r = v_fma(n, v_set(-1.42860677e-6f), r);
  V p = v_set(1.0f / 5040);
  p = v_fma(p, r, v_set(1.0f / 720));
  p = v_fma(p, r, v_set(1.0f / 120));
  p = v_fma(p, r, v_set(1.0f / 24));
  p = v_fma(p, r, v_set(1.0f / 6));
  p = v_fma(p, r, v_set(0.5f));
  p = v_fma(p, r, v_set(1));
  p = v_fma(p, r, v_set(1));
  return zero_below(v_mul(p, pow2(n)), x);
}

/* The scale of row r0 at column k. */
static inline float scale_at(const fm_mat *w, int64_t r0, int64_t k) {
  return w->scale[r0 / BLOCK * ((w->cols + BLOCK - 1) / BLOCK) + k / BLOCK];
}

/* The last weights of a row, padded with zeros: never reads past the end of the row. */
static inline __attribute__((always_inline))
V w_load_part(const fm_dtype t, const char *p, int64_t n) {
  char buf[LANES * 4] __attribute__((aligned(64))) = { 0 };
  memcpy(buf, p, (size_t)n * (t == FM_F32 ? 4 : t == FM_F8_E4M3 ? 1 : 2));
  return w_load(t, buf);
}

static inline __attribute__((always_inline)) V input(const fm_dtype t, V x) {
  return t == FM_F8_E4M3 ? v_mul(x, v_set(F8_HALF)) : x;
}

/* n vectors of columns (es bytes a weight) of nt rows of x against nr rows of w, onto acc. */
static inline __attribute__((always_inline))
void gemv_steps(V (*acc)[MAX_R], const float *x, int64_t ldx, const char *row, int64_t ld, const fm_dtype t,
                const int nt, const int nr, int64_t n) {
  const int64_t es = t == FM_F32 ? 4 : t == FM_F8_E4M3 ? 1 : 2;
  V xv[MAX_T];
  UNROLL for (int64_t j = 0; j < n * LANES; j += LANES) {
    UNROLL for (int i = 0; i < nt; i++) xv[i] = input(t, v_load(x + i * ldx + j));
    UNROLL for (int r = 0; r < nr; r++) {
      V v = w_load(t, row + r * ld + j * es);
      UNROLL for (int i = 0; i < nt; i++) acc[i][r] = v_fma(xv[i], v, acc[i][r]);
    }
  }
}

static inline __attribute__((always_inline))
void gemv_rest(V (*acc)[MAX_R], const float *x, int64_t ldx, const char *row, int64_t ld, const fm_dtype t,
               const int nt, const int nr, int n) {
  UNROLL for (int r = 0; r < nr; r++) {
    V v = w_load_part(t, row + r * ld, n);
    UNROLL for (int i = 0; i < nt; i++) acc[i][r] = v_fma(input(t, v_load_part(x + i * ldx, n)), v, acc[i][r]);
  }
}

/* Columns [0, k) onto acc, whole cache lines of weights first; the rows behind these are asked for on the way. */
static inline __attribute__((always_inline))
void gemv_span(V (*acc)[MAX_R], const float *x, int64_t ldx, const char *row, int64_t ld, int64_t k, const fm_dtype t,
               const int nt, const int nr) {
  const int64_t es = t == FM_F32 ? 4 : t == FM_F8_E4M3 ? 1 : 2, line = 64 / es;
  int64_t j = 0;
  for (; j + line <= k; j += line) {
    UNROLL for (int r = 0; r < nr; r++) __builtin_prefetch(row + (r + nr) * ld + j * es);
    gemv_steps(acc, x + j, ldx, row + j * es, ld, t, nt, nr, line / LANES);
  }
  for (; j + LANES <= k; j += LANES) gemv_steps(acc, x + j, ldx, row + j * es, ld, t, nt, nr, 1);
  if (j < k) gemv_rest(acc, x + j, ldx, row + j * es, ld, t, nt, nr, (int)(k - j));
}

#define ZERO(a, nt, nr)                                                                    \
  UNROLL for (int i = 0; i < nt; i++)                                                      \
    UNROLL for (int r = 0; r < nr; r++) (a)[i][r] = v_zero()

/* nt rows of x against nr rows of w (f8: of one block of scales), in registers; everything constant is known when it is inlined. */
static inline __attribute__((always_inline))
void gemv_tile(float *out, int64_t ldo, const float *x, int64_t ldx, const fm_mat *w, int64_t r0,
               const fm_dtype t, const int nt, const int nr) {
  const int64_t es = t == FM_F32 ? 4 : t == FM_F8_E4M3 ? 1 : 2, k = w->cols, ld = k * es;
  const char *row = (const char *)w->data + r0 * ld;
  V acc[MAX_T][MAX_R], sum[MAX_T][MAX_R];
  ZERO(sum, nt, nr);
  if (t != FM_F8_E4M3) gemv_span(sum, x, ldx, row, ld, k, t, nt, nr);
  for (int64_t j = 0; t == FM_F8_E4M3 && j < k; j += BLOCK) {
    V s = v_set(scale_at(w, r0, j) * F8_HALF);
    ZERO(acc, nt, nr);
    gemv_span(acc, x + j, ldx, row + j, ld, k - j < BLOCK ? k - j : BLOCK, t, nt, nr);
    UNROLL for (int i = 0; i < nt; i++)
      UNROLL for (int r = 0; r < nr; r++) sum[i][r] = v_fma(acc[i][r], s, sum[i][r]);
  }
  UNROLL for (int i = 0; i < nt; i++)
    UNROLL for (int r = 0; r < nr; r++) out[i * ldo + r] = v_fold(sum[i][r]);
}

/* All rows for nt rows of x, nr at a time; f8 up to where a block of scales ends. */
#define GEMV_ROWS(t, nt, nr)                                                              \
  for (int64_t r = 0, end; r < rows;) {                                                   \
    end = t == FM_F8_E4M3 ? r + BLOCK - (r0 + r) % BLOCK : rows;                          \
    if (end > rows) end = rows;                                                           \
    for (; r + (nr) <= end; r += (nr)) gemv_tile(out + r, ldo, x, ldx, w, r0 + r, t, nt, nr); \
    for (; r < end; r++) gemv_tile(out + r, ldo, x, ldx, w, r0 + r, t, nt, 1);            \
  }

#define GEMV_OF(name, t)                                                                   \
  static void name(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n,         \
                   const fm_mat *w, int64_t r0, int64_t rows) {                             \
    for (; n >= 4; n -= 4, x += 4 * ldx, out += 4 * ldo) GEMV_ROWS(t, 4, GEMV_R4);           \
    if (n == 3) GEMV_ROWS(t, 3, GEMV_R4);                                                    \
    if (n == 2) GEMV_ROWS(t, 2, GEMV_R2);                                                    \
    if (n == 1) GEMV_ROWS(t, 1, GEMV_R1);                                                    \
  }
GEMV_OF(gemv_f32, FM_F32)
GEMV_OF(gemv_bf16, FM_BF16)
GEMV_OF(gemv_f16, FM_F16)
GEMV_OF(gemv_f8, FM_F8_E4M3)

static void gemv(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n, const fm_mat *w,
                 int64_t r0, int64_t rows) {
  switch (w->dtype) {
    case FM_BF16: gemv_bf16(out, ldo, x, ldx, n, w, r0, rows); break;
    case FM_F16: gemv_f16(out, ldo, x, ldx, n, w, r0, rows); break;
    case FM_F8_E4M3: gemv_f8(out, ldo, x, ldx, n, w, r0, rows); break;
    default: gemv_f32(out, ldo, x, ldx, n, w, r0, rows);
  }
}

static inline __attribute__((always_inline))
void gemm_span(V (*acc)[MAX_R], const float *x, int64_t ldx, const float *w, int64_t ldw, int64_t k, const int nt,
               const int nr) {
  int64_t j = 0;
  V xv[MAX_T];
  for (; j + LANES <= k; j += LANES) {
    UNROLL for (int i = 0; i < nt; i++) xv[i] = v_load(x + i * ldx + j);
    UNROLL for (int r = 0; r < nr; r++) {
      V v = v_load(w + r * ldw + j);
      if (nt > 1) IN_REGISTER(v);        // else the compiler loads it again for each row of x
      UNROLL for (int i = 0; i < nt; i++) acc[i][r] = v_fma(xv[i], v, acc[i][r]);
    }
  }
  if (j == k) return;
  UNROLL for (int r = 0; r < nr; r++) {
    V v = v_load_part(w + r * ldw + j, (int)(k - j));
    UNROLL for (int i = 0; i < nt; i++) acc[i][r] = v_fma(v_load_part(x + i * ldx + j, (int)(k - j)), v, acc[i][r]);
  }
}

/* sum = sum * s + was, of a block's sums; was NULL: 0. */
static inline __attribute__((always_inline))
void scaled(V (*sum)[MAX_R], V s, const float *was, const int nt, const int nr) {
  UNROLL for (int i = 0; i < nt; i++)
    UNROLL for (int r = 0; r < nr; r++)
      sum[i][r] = v_fma(sum[i][r], s, was ? v_load(was + (i * nr + r) * LANES) : v_zero());
}

/* scale: of the columns' blocks, or NULL; which of the two is known when it is inlined. */
static inline __attribute__((always_inline))
void gemm_tile(float *out, int64_t ldo, const float *x, int64_t ldx, const float *w, int64_t ldw, int64_t k,
               const float *scale, const int nt, const int nr) {
  V sum[MAX_T][MAX_R];
  ZERO(sum, nt, nr);
  gemm_span(sum, x, ldx, w, ldw, scale && k > BLOCK ? BLOCK : k, nt, nr);
  if (scale) scaled(sum, v_set(scale[0]), NULL, nt, nr);
  for (int64_t j = BLOCK; scale && j < k; j += BLOCK) {
    float was[MAX_T * MAX_R * LANES] __attribute__((aligned(64)));   // registers are for the block's own sums
    UNROLL for (int i = 0; i < nt; i++)
      UNROLL for (int r = 0; r < nr; r++) v_store(was + (i * nr + r) * LANES, sum[i][r]);
    ZERO(sum, nt, nr);
    gemm_span(sum, x + j, ldx, w + j, ldw, k - j < BLOCK ? k - j : BLOCK, nt, nr);
    scaled(sum, v_set(scale[j / BLOCK]), was, nt, nr);
  }
  if (nr == 4) {
    UNROLL for (int i = 0; i < nt; i++) v_fold4(out + i * ldo, sum[i]);
    return;
  }
  UNROLL for (int i = 0; i < nt; i++)
    UNROLL for (int r = 0; r < nr; r++) out[i * ldo + r] = v_fold(sum[i][r]);
}

_Static_assert(GEMM_R == 4, "sums are folded by fours");

/* Rows r .. r + nr - 1 of w against all rows of x: GEMM_T at a time, the rest by twos; four left go so too, since a tile of one
   takes as long as one of two. */
#define GEMM_ROWS(nr, scale)                                                                            \
  do {                                                                                                  \
    int64_t i = 0;                                                                                      \
    for (; i + GEMM_T <= n && (GEMM_T != 3 || n - i != 4); i += GEMM_T)                                 \
      gemm_tile(out + i * ldo + r, ldo, x + i * ldx, ldx, w + r * ldw, ldw, k, scale, GEMM_T, nr);       \
    for (; GEMM_T > 2 && i + 2 <= n; i += 2)                                                            \
      gemm_tile(out + i * ldo + r, ldo, x + i * ldx, ldx, w + r * ldw, ldw, k, scale, 2, nr);            \
    for (; i < n; i++)                                                                                  \
      gemm_tile(out + i * ldo + r, ldo, x + i * ldx, ldx, w + r * ldw, ldw, k, scale, 1, nr);            \
  } while (0)

static void dots(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n, const float *w, int64_t ldw,
                 int64_t rows, int64_t k, const float *next) {
  int64_t r = 0;
  for (; r + GEMM_R <= rows; r += GEMM_R) {
    // a cache's page comes from memory: its rows are asked for well ahead, or were while another page was used
    const char *ahead = (const char *)(next ? next + r / GEMM_R * FM_CPU_NEXT * ldw : w + (r + AHEAD) * ldw);
    for (int64_t j = 0; next && j < FM_CPU_NEXT * ldw * 4; j += 64) __builtin_prefetch(ahead + j, 0, 2);
    for (int64_t j = 0; !next && j < GEMM_R * ldw * 4 && r + AHEAD < rows; j += 64) __builtin_prefetch(ahead + j);
    GEMM_ROWS(GEMM_R, NULL);
  }
  for (; r < rows; r++) GEMM_ROWS(1, NULL);
}

static void gemm(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n, const float *w, int64_t ldw,
                 int64_t rows, int64_t k, const float *scale) {
  int64_t r = 0;
  if (!scale) {
    dots(out, ldo, x, ldx, n, w, ldw, rows, k, NULL);
    return;
  }
  for (; r + GEMM_R <= rows; r += GEMM_R) GEMM_ROWS(GEMM_R, scale);
  for (; r < rows; r++) GEMM_ROWS(1, scale);
}

static inline __attribute__((always_inline))
void convert_row(float *out, const fm_mat *w, const fm_dtype t, int64_t row, int64_t c0, int64_t cols) {
  const int64_t es = t == FM_F32 ? 4 : t == FM_F8_E4M3 ? 1 : 2;
  const char *p = (const char *)w->data + (row * w->cols + c0) * es;
  for (int64_t j = 0; j < cols;) {
    int64_t block = BLOCK - (c0 + j) % BLOCK, end = j + block < cols ? j + block : cols;
    V s = v_set((w->scale ? scale_at(w, row, c0 + j) : 1) * F8_SHIFT);
    for (; j + LANES <= end; j += LANES) {
      V v = w_load(t, p + j * es);
      v_store(out + j, t == FM_F8_E4M3 ? v_mul(v, s) : v);
    }
    if (j < end) {
      V v = w_load_part(t, p + j * es, end - j);
      v_store_part(out + j, t == FM_F8_E4M3 ? v_mul(v, s) : v, (int)(end - j));
      j = end;
    }
  }
}

static void convert(float *out, int64_t ld, const fm_mat *w, int64_t r0, int64_t rows, int64_t c0, int64_t cols) {
  for (int64_t r = 0; r < rows; r++) {
    float *o = out + r * ld;
    switch (w->dtype) {
      case FM_BF16: convert_row(o, w, FM_BF16, r0 + r, c0, cols); break;
      case FM_F16: convert_row(o, w, FM_F16, r0 + r, c0, cols); break;
      case FM_F8_E4M3: convert_row(o, w, FM_F8_E4M3, r0 + r, c0, cols); break;
      default: convert_row(o, w, FM_F32, r0 + r, c0, cols);
    }
  }
}

static void axpy(float *out, float a, const float *row, int64_t k) {
  V av = v_set(a);
  int64_t j = 0;
  for (; j + LANES <= k; j += LANES) v_store(out + j, v_fma(av, v_load(row + j), v_load(out + j)));
  if (j < k) {
    int n = (int)(k - j);
    v_store_part(out + j, v_fma(av, v_load_part(row + j, n), v_load_part(out + j, n)), n);
  }
}

static void exp_sub(float *out, const float *x, float m, int64_t n) {
  V mv = v_set(m);
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) v_store(out + j, v_exp(v_sub(v_load(x + j), mv)));
  if (j < n) {
    int left = (int)(n - j);
    v_store_part(out + j, v_exp(v_sub(v_load_part(x + j, left), mv)), left);
  }
}

static void scale(float *x, float a, int64_t n) {
  V av = v_set(a);
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) v_store(x + j, v_mul(av, v_load(x + j)));
  for (; j < n; j++) x[j] *= a;
}

static float scale_max(float *x, float a, float max, int64_t n) {
  V av = v_set(a), most = v_set(max);
  float lane[LANES];
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) {
    V v = v_mul(av, v_load(x + j));
    most = v_max(v, most);
    v_store(x + j, v);
  }
  for (; j < n; j++) {
    x[j] *= a;
    if (x[j] > max) max = x[j];
  }
  v_store(lane, most);
  for (int l = 0; l < LANES; l++)
    if (lane[l] > max) max = lane[l];
  return max;
}

static void silu(float *out, const float *gate, const float *up, int64_t n) {
  V one = v_set(1);
  for (int64_t j = 0; j < n; j += LANES) {
    int part = n - j < LANES ? (int)(n - j) : LANES;
    V g = part < LANES ? v_load_part(gate + j, part) : v_load(gate + j);
    V u = part < LANES ? v_load_part(up + j, part) : v_load(up + j);
    V e = v_exp(v_sub(v_zero(), v_max(g, v_sub(v_zero(), g))));
    V y = v_mul(v_mul(g, v_div(v_one_or(g, e), v_fma(e, one, one))), u);
    if (part < LANES) v_store_part(out + j, y, part);
    else v_store(out + j, y);
  }
}

static void gain(float *out, const float *x, const float *w, float a, int64_t n) {
  V av = v_set(a);
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) v_store(out + j, v_mul(v_load(w + j), v_mul(v_load(x + j), av)));
  for (; j < n; j++) out[j] = w[j] * (x[j] * a);
}
