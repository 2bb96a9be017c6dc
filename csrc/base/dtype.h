/*
** dtype.h - element types: sizes, names as in safetensors, exact conversions.
*/
#ifndef FM_BASE_DTYPE_H
#define FM_BASE_DTYPE_H

#include "base/status.h"

typedef enum fm_dtype {
  FM_F32, FM_BF16, FM_F16, FM_F8_E4M3, FM_I32, FM_I64, FM_U8, FM_BOOL, FM_N_DTYPES
} fm_dtype;

int64_t     fm_dtype_size(fm_dtype t);                 /* bytes */
const char *fm_dtype_name(fm_dtype t);                 /* "F32", "BF16", ... */
bool        fm_dtype_parse(const char *name, fm_dtype *out);

/* To f32, exact. From f32, round to nearest even; f8 saturates to 448 and keeps NaN. */
float    fm_bf16_to_f32(uint16_t h);
float    fm_f16_to_f32(uint16_t h);
float    fm_f8_to_f32(uint8_t b);
uint16_t fm_f32_to_bf16(float f);
uint16_t fm_f32_to_f16(float f);
uint8_t  fm_f32_to_f8(float f);
/* The least power of two (so that products with it are exact) that makes amax / scale reach no further than f8 does; 1 for 0.
   NaN for what is not finite, and beyond 448 * 64: a device may fold 2^120 into a scale. */
float    fm_f8_scale(float amax);
/* n elements of any float dtype to f32. */
void     fm_to_f32(float *out, const void *in, fm_dtype t, int64_t n);

#endif
