/* gbnf_fuzz.c - any bytes as a GBNF: refused with a sentence, or read; what is read can be completed. */
#include "shortest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fm_rules r;
  fm_error err = { .message = "" };
  if (fm_rules_init(&r, &err) != FM_OK) return 0;
  if (fm_gbnf_read(&r, (const char *)data, size, &err) == FM_OK) walk_shortest(&r);
  else if (!err.message[0]) abort();
  fm_rules_free(&r);
  return 0;
}
