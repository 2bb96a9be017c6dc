/*
** tensor.c - counted storage and a contiguous view of it.
*/
#include "base/tensor.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

static void release_host(fm_storage *s) { fm_free(s->data); }

fm_status fm_tensor_new(fm_tensor *out, fm_dtype t, int ndim, const int64_t *shape, fm_error *err) {
  int64_t n = 1, size;
  for (int i = 0; i < ndim; i++)
    if (!fm_mul(n, shape[i], &n)) return fm_fail(err, FM_EOVERFLOW, "a tensor's size overflows");
  if (!fm_mul(n, fm_dtype_size(t), &size)) return fm_fail(err, FM_EOVERFLOW, "a tensor's size overflows");
  fm_storage *s = fm_zalloc(sizeof *s);
  if (s) s->data = fm_zalloc(size);
  if (!s || !s->data) {
    fm_free(s);
    return fm_no_memory(err, size);
  }
  s->refs = 1;
  s->size = size;
  s->release = release_host;
  *out = (fm_tensor){ .storage = s, .data = s->data, .dtype = t, .ndim = ndim };
  if (ndim) memcpy(out->shape, shape, (size_t)ndim * sizeof *shape);
  return FM_OK;
}

void fm_tensor_drop(fm_tensor *t) {
  fm_storage *s = t->storage;
  if (s && --s->refs == 0) {
    if (s->release) s->release(s);
    fm_free(s);
  }
  *t = (fm_tensor){ 0 };
}

int64_t fm_tensor_len(const fm_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

const char *fm_shape_string(char *buf, size_t size, int ndim, const int64_t *shape) {
  size_t at = (size_t)snprintf(buf, size, "(");
  for (int i = 0; i < ndim && at < size; i++)
    at += (size_t)snprintf(buf + at, size - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
  if (at < size) snprintf(buf + at, size - at, ")");
  return buf;
}
