/* head_fuzz.c - any bytes as the head of a request: a sentence of refusal, a length, or more is wanted; and never a different
   answer because the bytes came in other portions. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "net/head.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int holds) { if (!holds) abort(); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const char *p = (const char *)data;
  fm_refusal why = { 0 }, other;
  long whole = fm_head_check(p, size, &why);
  must(whole <= (long)size);
  if (whole > 0) must(whole >= 4 && memcmp(p + whole - 4, "\r\n\r\n", 4) == 0);
  if (whole < 0) {
    char body[512];
    must(why.status >= 400 && why.status < 600 && why.message && why.code);
    must(fm_refusal_body(&why, body, sizeof body) < sizeof body - 1 && !strpbrk(why.message, "\"\\"));
  }
  for (size_t n = 0; n < size; n += 1 + size / 64) {
    long part = fm_head_check(p, n, &other);
    if (part > 0) must(part == whole);                    // what is complete stays what it is
    if (part < 0) must(whole < 0);                        // what is refused is not let in later
    if (whole > 0 && n < (size_t)whole) must(part == 0);
  }
  return 0;
}
