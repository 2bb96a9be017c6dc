/*
** dtype.c - element types: sizes, names, exact conversions.
*/
#include "base/dtype.h"

#include <math.h>
#include <string.h>

static const struct { const char *name; int64_t size; } info[FM_N_DTYPES] = {
  [FM_F32] = { "F32", 4 }, [FM_BF16] = { "BF16", 2 }, [FM_F16] = { "F16", 2 }, [FM_F8_E4M3] = { "F8_E4M3", 1 },
  [FM_I32] = { "I32", 4 }, [FM_I64] = { "I64", 8 }, [FM_U8] = { "U8", 1 }, [FM_BOOL] = { "BOOL", 1 } };

int64_t fm_dtype_size(fm_dtype t) { return info[t].size; }
const char *fm_dtype_name(fm_dtype t) { return info[t].name; }

bool fm_dtype_parse(const char *name, fm_dtype *out) {
  for (int i = 0; i < FM_N_DTYPES; i++)
    if (strcmp(name, info[i].name) == 0) {
      *out = (fm_dtype)i;
      return true;
    }
  return false;
}

static float from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static uint32_t to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

float fm_bf16_to_f32(uint16_t h) { return from_bits((uint32_t)h << 16); }

/* A small float of e exponent and m mantissa bits, all-ones exponent kept for the caller. */
static float small_to_f32(uint32_t sign, uint32_t exp, uint32_t frac, int m, int bias) {
  float v = exp ? ldexpf((float)((1u << m) + frac), (int)exp - bias - m) : ldexpf((float)frac, 1 - bias - m);
  return sign ? -v : v;
}

float fm_f16_to_f32(uint16_t h) {
  uint32_t exp = (h >> 10) & 31, frac = h & 1023;
  if (exp == 31) return from_bits((uint32_t)(h & 0x8000) << 16 | 0x7f800000u | frac << 13);
  return small_to_f32(h >> 15, exp, frac, 10, 15);
}

float fm_f8_to_f32(uint8_t b) {
  if ((b & 0x7f) == 0x7f) return from_bits((uint32_t)(b & 0x80) << 24 | 0x7fc00000u);
  return small_to_f32(b >> 7, (b >> 3) & 15, b & 7, 3, 7);
}

uint16_t fm_f32_to_bf16(float f) {
  uint32_t u = to_bits(f);
  if (isnan(f)) return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

uint16_t fm_f32_to_f16(float f) {
  uint32_t sign = to_bits(f) >> 16 & 0x8000;
  float a = fabsf(f);
  if (isnan(f)) return (uint16_t)(sign | 0x7e00);
  if (a >= 65520) return (uint16_t)(sign | 0x7c00);
  int e;
  frexpf(a, &e);                                   // a = m * 2^e, m in [0.5, 1)
  if (a == 0 || e < -13) e = -13;                  // subnormal: the unit is 2^-24
  uint32_t q = (uint32_t)nearbyintf(ldexpf(a, 11 - e));
  return (uint16_t)(sign | (((uint32_t)(e + 13) << 10) + q));
}

uint8_t fm_f32_to_f8(float f) {
  uint32_t sign = to_bits(f) >> 24 & 0x80;
  float a = fabsf(f);
  if (isnan(f)) return (uint8_t)(sign | 0x7f);
  if (a >= 448) return (uint8_t)(sign | 0x7e);
  int e;
  frexpf(a, &e);
  if (a == 0 || e < -5) e = -5;                    // subnormal: the unit is 2^-9
  uint32_t q = (uint32_t)nearbyintf(ldexpf(a, 4 - e));
  return (uint8_t)(sign | (((uint32_t)(e + 5) << 3) + q));
}

float fm_f8_scale(float amax) {
  int e;
  if (!(amax <= 448 * 64)) return NAN;
  float m = frexpf(amax, &e);                      // 448 = 0.875 * 2^9
  if (amax == 0) return 1;
  e -= m <= 0.875f ? 9 : 8;
  return ldexpf(1, e < -126 ? -126 : e);           // a scale that f32 holds as a normal number
}

void fm_to_f32(float *out, const void *in, fm_dtype t, int64_t n) {
  const uint16_t *h = in;
  const uint8_t *b = in;
  switch (t) {
    case FM_BF16:
      for (int64_t i = 0; i < n; i++) out[i] = fm_bf16_to_f32(h[i]);
      break;
    case FM_F16:
      for (int64_t i = 0; i < n; i++) out[i] = fm_f16_to_f32(h[i]);
      break;
    case FM_F8_E4M3:
      for (int64_t i = 0; i < n; i++) out[i] = fm_f8_to_f32(b[i]);
      break;
    default:
      if (n) memcpy(out, in, (size_t)n * sizeof *out);
  }
}
