/*
** tensor.h - counted storage and a contiguous row-major view of it; no arithmetic.
** A storage carries its own release function, so this room never sees a file or a device.
*/
#ifndef FM_BASE_TENSOR_H
#define FM_BASE_TENSOR_H

#include "base/dtype.h"

#define FM_MAX_DIMS 4

typedef struct fm_storage {
  int refs;
  void *data;
  int64_t size;                                /* bytes */
  void (*release)(struct fm_storage *s);       /* frees data; the storage itself is freed after it */
  void *owner;
} fm_storage;

typedef struct fm_tensor {
  fm_storage *storage;                         /* NULL: a borrowed view */
  void *data;
  fm_dtype dtype;
  int ndim;
  int64_t shape[FM_MAX_DIMS];
} fm_tensor;

/* A fresh tensor on the host, zeroed. FM_EMEMORY, FM_EOVERFLOW. */
fm_status fm_tensor_new(fm_tensor *out, fm_dtype t, int ndim, const int64_t *shape, fm_error *err);
void      fm_tensor_drop(fm_tensor *t);        /* gives its count back and clears it */
int64_t   fm_tensor_len(const fm_tensor *t);   /* elements */
/* "(3, 48)" into buf; returns buf. */
const char *fm_shape_string(char *buf, size_t size, int ndim, const int64_t *shape);

#endif
