/*
** pack.c - the 8-bit form of a row of the cache.
*/
#include "run/pack.h"

#include <math.h>
#include <string.h>

enum { GROUP = 32 };

static int64_t groups(int64_t width) { return (width + GROUP - 1) / GROUP; }

int64_t fm_pack_size(int64_t width) {
  return (groups(width) * (int64_t)sizeof(float) + width + 7) / 8 * 8;
}

static float element(const void *row, fm_dtype t, int64_t i) {
  return t == FM_F32 ? ((const float *)row)[i] : fm_bf16_to_f32(((const uint16_t *)row)[i]);
}

void fm_pack_row(char *out, const void *row, fm_dtype t, int64_t width) {
  int8_t *q = (int8_t *)out + groups(width) * (int64_t)sizeof(float);
  memset(out, 0, (size_t)fm_pack_size(width));
  for (int64_t g = 0; g < groups(width); g++) {
    int64_t from = g * GROUP, to = from + GROUP < width ? from + GROUP : width;
    float most = 0;
    for (int64_t i = from; i < to; i++) most = fmaxf(most, fabsf(element(row, t, i)));
    float scale = isfinite(most) ? most / 127 : 0;
    memcpy(out + g * (int64_t)sizeof scale, &scale, sizeof scale);
    for (int64_t i = from; i < to && scale > 0; i++) q[i] = (int8_t)lrintf(element(row, t, i) / scale);
  }
}

void fm_unpack_row(void *row, const char *in, fm_dtype t, int64_t width) {
  const int8_t *q = (const int8_t *)in + groups(width) * (int64_t)sizeof(float);
  for (int64_t i = 0; i < width; i++) {
    float scale;
    memcpy(&scale, in + i / GROUP * (int64_t)sizeof scale, sizeof scale);
    if (t == FM_F32) ((float *)row)[i] = scale * q[i];
    else ((uint16_t *)row)[i] = fm_f32_to_bf16(scale * q[i]);
  }
}
