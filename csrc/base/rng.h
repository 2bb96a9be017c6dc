/*
** rng.h - counter-based random numbers: the same key and counter give the same number on any device.
** Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
*/
#ifndef FM_BASE_RNG_H
#define FM_BASE_RNG_H

#include <stdint.h>

void fm_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* Noise of token `id` at absolute index `pos` of sample `sample`: uniform in (0, 1), never 0 or 1. */
double fm_noise(uint64_t seed, uint32_t sample, int64_t pos, int32_t id);

#endif
