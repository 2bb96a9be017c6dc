/*
** simd_avx512.c - fm_simd with sixteen lanes: AVX-512 F, BW, DQ, VL.
*/
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define UNROLL _Pragma("GCC unroll 8")
#endif

#include "cpu/simd_x86.h"

typedef __m512 V;
enum { LANES = 16, MAX_T = 6, MAX_R = 8, GEMM_T = 6, GEMM_R = 4, GEMV_R1 = 8, GEMV_R2 = 4, GEMV_R4 = 4 };

static inline V v_zero(void) { return _mm512_setzero_ps(); }
static inline V v_set(float f) { return _mm512_set1_ps(f); }
static inline V v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm512_storeu_ps(p, v); }
static inline V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V v_max(V a, V b) { return _mm512_max_ps(a, b); }
static inline V v_div(V a, V b) { return _mm512_div_ps(a, b); }
static inline V v_one_or(V x, V y) {
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), _mm512_set1_ps(1));
}

static inline __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
static inline V v_load_part(const float *p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
static inline void v_store_part(float *p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }

static inline __m256 halves(V v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
static inline float v_fold(V v) {
  __m256 h = halves(v);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline void v_fold4(float *out, const V *v) {
  _mm_storeu_ps(out, fold4(halves(v[0]), halves(v[1]), halves(v[2]), halves(v[3])));
}

static inline __attribute__((always_inline)) V w_load(const fm_dtype t, const char *p) {
  if (t == FM_BF16)
    return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
  if (t == FM_F16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
  if (t == FM_F8_E4M3) {
    // the sign spreads over the high bits; shifted, it ends at bit 31 and the rest is masked off
    __m512i b = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)), 20);
    return _mm512_castsi512_ps(_mm512_and_si512(b, _mm512_set1_epi32((int)0x87f00000)));
  }
  return v_load((const float *)p);
}

static inline V round_near(V v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V pow2(V n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
static inline V zero_below(V v, V x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-87), _CMP_NLT_UQ), v);
}

#include "cpu/simd_body.h"

const fm_simd fm_simd_avx512 = { "avx512", LANES, gemm, dots, gemv, convert, axpy, exp_sub, scale, scale_max, add_up, silu, gain };

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
