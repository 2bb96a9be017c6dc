/*
** rng.c - Philox 4x32-10, and the noise of a draw.
*/
#include "base/rng.h"

void fm_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Four neighbouring ids share a block of numbers; 32 bits are enough for a draw, shifted off 0 and 1 by half a unit. */
double fm_noise(uint64_t seed, uint32_t sample, int64_t pos, int32_t id) {
  uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) }, out[4];
  uint32_t counter[4] = { (uint32_t)id >> 2, (uint32_t)pos, (uint32_t)((uint64_t)pos >> 32), sample };
  fm_philox(out, counter, key);
  return ((double)out[id & 3] + 0.5) * 0x1p-32;
}
