/*
** quant.c - cache rows in f8: the latent in tiles, each with a scale, the rotary part in bf16.
*/
#include "cpu/cpu.h"

#include <math.h>

/* The largest magnitude; NaN when there is one. */
static float largest(const float *x, int64_t n) {
  float amax = 0;
  for (int64_t i = 0; i < n; i++) {
    float a = fabsf(x[i]);
    if (!(a <= amax)) amax = a;
    if (isnan(a)) break;
  }
  return amax;
}

void fm_cpu_pack8(char *to, const fm_cache *k, const float *x) {
  float *scale = (float *)(void *)(to + fm_cache_scales(k->latent));
  uint16_t *rest = (uint16_t *)(void *)(to + fm_cache_rest(k->latent));
  for (int64_t at = 0; at < k->latent; at += FM_CACHE_TILE) {
    int64_t n = k->latent - at < FM_CACHE_TILE ? k->latent - at : FM_CACHE_TILE;
    float s = fm_f8_scale(largest(x + at, n));
    for (int64_t i = 0; i < n; i++) to[at + i] = (char)fm_f32_to_f8(x[at + i] / s);
    scale[at / FM_CACHE_TILE] = s;
  }
  for (int64_t i = k->latent; i < k->width; i++) rest[i - k->latent] = fm_f32_to_bf16(x[i]);
}

void fm_cpu_unpack8(const fm_simd *simd, float *out, const fm_cache *k, const char *rows, int64_t n) {
  int64_t size = fm_cache_row_size(k->dtype, k->width, k->latent), rest = k->width - k->latent;
  for (int64_t j = 0; j < n; j++, rows += size, out += k->width) {
    fm_mat tiles = { .data = rows, .scale = (const float *)(const void *)(rows + fm_cache_scales(k->latent)),
                     .dtype = FM_F8_E4M3, .rows = 1, .cols = k->latent };
    fm_mat tail = { .data = rows + fm_cache_rest(k->latent), .dtype = FM_BF16, .rows = 1, .cols = rest };
    simd->convert(out, k->width, &tiles, 0, 1, 0, k->latent);
    if (rest) simd->convert(out + k->latent, k->width, &tail, 0, 1, 0, rest);
  }
}
