/* tokenizer_fuzz.c - any bytes as a tokenizer.json: refused or opened; what opens gives every text back. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void round_trip(fm_tokenizer *t, const char *text, size_t len) {
  int32_t *ids = NULL;
  int64_t n = 0, cap = 0;
  fm_error err;
  if (fm_tokenizer_encode(t, text, len, false, &ids, &n, &cap, &err) == FM_OK)
    for (int64_t i = 0; i < n; i++)
      if (ids[i] < 0 || ids[i] >= fm_tokenizer_size(t) || fm_tokenizer_is_added(t, ids[i])) abort();
  fm_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fm_tokenizer *t;
  fm_error err;
  if (fm_tokenizer_parse(&t, (const char *)data, size, &err) != FM_OK) return 0;
  round_trip(t, "Hello  W\xc3\xb6rld 123\n\xff", 18);
  round_trip(t, (const char *)data, size < 256 ? size : 256);
  fm_tokenizer_free(t);
  return 0;
}
