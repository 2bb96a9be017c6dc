/*
** hash.c - checksums of bytes and of words.
*/
#include "base/hash.h"

#include <string.h>

uint64_t fm_fnv(uint64_t h, const void *p, int64_t n) {
  for (const uint8_t *b = p; n-- > 0; b++) h = (h ^ *b) * 0x100000001b3u;
  return h;
}

uint64_t fm_sum(uint64_t h, const void *p, int64_t n) {
  const char *at = p;
  for (int64_t i = 0; i < n; i += 8) {
    uint64_t word;
    memcpy(&word, at + i, sizeof word);
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;                        // a product carries bits upward only: two changed sign bits would cancel
  }
  return h;
}
