/* config_fuzz.c - any bytes as a config.json: refused or read; what is read gives sane sizes. */
#include <stdlib.h>

#include "base/mem.h"
#include "io/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fm_config c;
  fm_error err;
  double freq[1 << 15], amplitude;
  if (fm_config_parse(&c, (const char *)data, size, &err) != FM_OK) return 0;
  if (fm_config_cache_width(&c) <= 0 || !(fm_config_softmax_scale(&c) > 0)) abort();
  fm_config_inv_freq(&c, freq, &amplitude);
  return 0;
}
