/*
** simd_avx2.c - fm_simd with eight lanes: AVX2, FMA and F16C.
*/
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define UNROLL _Pragma("GCC unroll 8")
#endif

#include "cpu/simd_x86.h"

typedef __m256 V;
enum { LANES = 8, MAX_T = 4, MAX_R = 8, GEMM_T = 3, GEMM_R = 4, GEMV_R1 = 8, GEMV_R2 = 4, GEMV_R4 = 2 };

static inline V v_zero(void) { return _mm256_setzero_ps(); }
static inline V v_set(float f) { return _mm256_set1_ps(f); }
static inline V v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm256_storeu_ps(p, v); }
static inline V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
static inline V v_max(V a, V b) { return _mm256_max_ps(a, b); }
static inline V v_div(V a, V b) { return _mm256_div_ps(a, b); }
static inline V v_one_or(V x, V y) {
  return _mm256_blendv_ps(y, _mm256_set1_ps(1), _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
}

static inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline V v_load_part(const float *p, int n) { return _mm256_maskload_ps(p, first(n)); }
static inline void v_store_part(float *p, V v, int n) { _mm256_maskstore_ps(p, first(n), v); }

static inline float v_fold(V v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline void v_fold4(float *out, const V *v) { _mm_storeu_ps(out, fold4(v[0], v[1], v[2], v[3])); }

static inline __attribute__((always_inline)) V w_load(const fm_dtype t, const char *p) {
  if (t == FM_BF16)
    return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
  if (t == FM_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
  if (t == FM_F8_E4M3) {
    // the sign spreads over the high bits; shifted, it ends at bit 31 and the rest is masked off
    __m256i b = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)), 20);
    return _mm256_castsi256_ps(_mm256_and_si256(b, _mm256_set1_epi32((int)0x87f00000)));
  }
  return v_load((const float *)p);
}

static inline V round_near(V v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V pow2(V n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline V zero_below(V v, V x) {
  return _mm256_and_ps(v, _mm256_cmp_ps(x, _mm256_set1_ps(-87), _CMP_NLT_UQ));
}

#include "cpu/simd_body.h"

const fm_simd fm_simd_avx2 = { "avx2", LANES, gemm, dots, gemv, convert, axpy, exp_sub, scale, scale_max, add_up, silu, gain };

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
