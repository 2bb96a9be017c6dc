/* safetensors_fuzz.c - any bytes as a header: refused or read, never a crash, and what is read lies inside the data. */
#include <stdlib.h>

#include "base/mem.h"
#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static fm_status inside(void *arg, const char *name, fm_dtype t, int ndim, const int64_t *shape, int64_t begin,
                        fm_error *err) {
  int64_t n = fm_dtype_size(t), room = *(int64_t *)arg;
  (void)name, (void)err;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  if (begin < 0 || n < 0 || begin + n > room) abort();
  return FM_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fm_error err;
  // the first byte says how much data there is to speak of
  int64_t room = size ? data[0] * 8 : 0;
  if (size) fm_safetensors_header((const char *)data + 1, size - 1, room, "fuzz", inside, &room, &err);
  return 0;
}
