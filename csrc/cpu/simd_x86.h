/*
** simd_x86.h - what the x86 forms of fm_simd share; included behind the target they set.
*/

#define IN_REGISTER(v) __asm__("" : "+v"(v))

/* Four sums, each folded in halves as v_fold does. */
static inline __m128 fold4(__m256 a, __m256 b, __m256 c, __m256 d) {
  __m256 ac = _mm256_add_ps(_mm256_blend_ps(a, c, 0xf0), _mm256_permute2f128_ps(a, c, 0x21));          // a | c
  __m256 bd = _mm256_add_ps(_mm256_blend_ps(b, d, 0xf0), _mm256_permute2f128_ps(b, d, 0x21));
  __m256 pairs = _mm256_add_ps(_mm256_blend_ps(ac, bd, 0xcc), _mm256_shuffle_ps(ac, bd, 0x4e));        // a b | c d
  __m128 ab = _mm256_castps256_ps128(pairs), cd = _mm256_extractf128_ps(pairs, 1);
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
}

static float add_up(const float *x, int64_t n) {
  __m256 sum = _mm256_setzero_ps();
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + j));
  if (j < n) {
    __m256i left = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n - j)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    sum = _mm256_add_ps(sum, _mm256_maskload_ps(x + j, left));
  }
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
