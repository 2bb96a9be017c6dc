/*
** pack.h - the 8-bit form of a row of the cache: a scale for each group of 32 elements, then one byte an element.
** A group's largest magnitude becomes 127: what comes back is within 1/254 of that.
*/
#ifndef FM_RUN_PACK_H
#define FM_RUN_PACK_H

#include "base/dtype.h"

int64_t fm_pack_size(int64_t width);                              /* bytes of a packed row, a multiple of 8 */
/* Between a row of width elements in dtype F32 or BF16 and its packed form. */
void    fm_pack_row(char *out, const void *row, fm_dtype t, int64_t width);
void    fm_unpack_row(void *row, const char *in, fm_dtype t, int64_t width);

#endif
