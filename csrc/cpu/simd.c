/*
** simd.c - the choice of an instruction set, and the plain C version of the loops.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"

typedef struct V { float v[8]; } V;
enum { LANES = 8, MAX_T = 4, MAX_R = 4, GEMM_T = 1, GEMM_R = 4, GEMV_R1 = 4, GEMV_R2 = 2, GEMV_R4 = 1 };
#define UNROLL
#define IN_REGISTER(v) ((void)(v))

#define EACH(expr) do { V o_; for (int i = 0; i < LANES; i++) o_.v[i] = (expr); return o_; } while (0)

static inline V v_set(float f) { EACH(f); }
static inline V v_zero(void) { return v_set(0); }
static inline V v_load(const float *p) { EACH(p[i]); }
static inline V v_load_part(const float *p, int n) { EACH(i < n ? p[i] : 0); }
static inline void v_store(float *p, V v) { memcpy(p, v.v, sizeof v.v); }
static inline void v_store_part(float *p, V v, int n) { memcpy(p, v.v, (size_t)n * sizeof *p); }
static inline V v_fma(V a, V b, V c) { EACH(fmaf(a.v[i], b.v[i], c.v[i])); }
static inline V v_mul(V a, V b) { EACH(a.v[i] * b.v[i]); }
static inline V v_sub(V a, V b) { EACH(a.v[i] - b.v[i]); }
static inline V v_max(V a, V b) { EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline V v_div(V a, V b) { EACH(a.v[i] / b.v[i]); }
static inline V v_one_or(V x, V y) { EACH(x.v[i] >= 0 ? 1 : y.v[i]); }

static inline float v_fold(V v) {
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) v.v[i] += v.v[i + half];
  return v.v[0];
}

static inline void v_fold4(float *out, const V *v) {
  for (int i = 0; i < 4; i++) out[i] = v_fold(v[i]);
}

static inline V w_load(const fm_dtype t, const char *p) {
  V o;
  fm_to_f32(o.v, p, t, LANES);
  for (int i = 0; i < LANES && t == FM_F8_E4M3; i++) o.v[i] *= 0x1p-120f;
  return o;
}

static inline V round_near(V v) { EACH(nearbyintf(v.v[i])); }
static inline V pow2(V n) { EACH(ldexpf(1, (int)n.v[i])); }
static inline V zero_below(V v, V x) { EACH(x.v[i] < -87 ? 0 : v.v[i]); }

#include "cpu/simd_body.h"

static float add_up(const float *x, int64_t n) {
  float part[FM_CPU_PARTS] = { 0 };
  for (int64_t j = 0; j < n; j++) part[j % FM_CPU_PARTS] += x[j];
  for (int half = FM_CPU_PARTS / 2; half; half /= 2)
    for (int l = 0; l < half; l++) part[l] += part[l + half];
  return part[0];
}

const fm_simd fm_simd_plain = { "plain", LANES, gemm, dots, gemv, convert, axpy, exp_sub, scale, scale_max, add_up, silu, gain };

const fm_simd *fm_simd_choose(void) {
#if defined(__x86_64__)
  const char *want = getenv("FATHOM_SIMD");
  bool plain = want && strcmp(want, "plain") == 0, avx2 = want && strcmp(want, "avx2") == 0;
  __builtin_cpu_init();
  if (!plain && !avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &fm_simd_avx512;
  if (!plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &fm_simd_avx2;
#endif
  return &fm_simd_plain;
}
