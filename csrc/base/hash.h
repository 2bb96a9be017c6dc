/*
** hash.h - two checksums that notice accidents, not attacks: FNV-1a for names and other short things, and one
** that takes eight bytes at a time, for files as fast as a disk.
*/
#ifndef FM_BASE_HASH_H
#define FM_BASE_HASH_H

#include <stdint.h>

#define FM_HASH_START 0xcbf29ce484222325u   /* what either begins with */

uint64_t fm_fnv(uint64_t h, const void *p, int64_t n);
/* n must be a multiple of 8. Any change of one word changes the result. */
uint64_t fm_sum(uint64_t h, const void *p, int64_t n);

#endif
