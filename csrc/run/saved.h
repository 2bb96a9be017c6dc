/*
** saved.h - the file of a saved session: its layout, and reading it with distrust.
**
** Little-endian. Version 3: magic "FATHOMS\n", u32 version, u32 bytes of this header, then the fields below, u64 each;
** behind the header the note, i32 ids[n], u8 roles[n], f32 state[hidden], pages, each filled up to 8 bytes with zeros;
** u64 checksum of everything before. Version 2 has the fields up to MAKER, version 1 those up to N_NOTE, then ids, roles, note,
** without filling.
** Whatever the version, from 2 on: the note is found by the header's length and N_NOTE, so that a history can be
** read from files whose rest cannot.
*/
#ifndef FM_RUN_SAVED_H
#define FM_RUN_SAVED_H

#include <stdio.h>

#include "base/status.h"

enum { FM_SAVED_VERSION = 3 };

typedef enum fm_saved_field {
  FM_S_DIGEST, FM_S_N, FM_S_N_NOTE,                       /* of the model; ids; bytes of the note */
  FM_S_NOTE_SUM,
  FM_S_PAGES, FM_S_N_PAGES, FM_S_PAGE_SIZE,               /* fm_pages; with those of kept rows, which are last; bytes of one here */
  FM_S_DTYPE, FM_S_WIDTH, FM_S_LAYERS, FM_S_PAGE_TOKENS,  /* of the cache that they come from */
  FM_S_LEN, FM_S_MTP_FIRST, FM_S_MTP_LEN, FM_S_SHIFT,     /* of the sequence, see fm_kv_seq */
  FM_S_HIDDEN,                                            /* elements of the state; 0: none */
  FM_S_DROPPED, FM_S_KEEP, FM_S_DROPPED_SUM,              /* see fm_session */
  FM_S_INEXACT, FM_S_MAKER,                               /* 1: left the promise; what computed the rows */
  FM_S_KEPT_LEN, FM_S_KEPT_SHIFT,                         /* of a window that moved, see fm_kv_seq */
  FM_S_FIELDS
} fm_saved_field;

enum { FM_SAVED_HEAD = 16 + 8 * FM_S_FIELDS };

typedef struct fm_saved {
  FILE *f;                               /* the caller's */
  const char *path;                      /* for messages */
  int64_t version, size;
  int64_t field[FM_S_FIELDS];            /* 0 where the version has none; none is negative but sums and digests */
  int64_t note, ids, roles, state, pages;   /* where they begin */
} fm_saved;

/* Reads the header: FM_EFORMAT no session, FM_EUNSUPPORTED a version this library does not know (note and N_NOTE are set
   all the same), FM_EFORMAT sizes that the file does not have. */
fm_status fm_saved_open(fm_saved *out, FILE *f, const char *path, fm_error *err);
/* FM_EFORMAT when a byte was changed. */
fm_status fm_saved_verify(fm_saved *s, fm_error *err);
fm_status fm_saved_read(fm_saved *s, int64_t at, void *to, int64_t size, fm_error *err);
int64_t   fm_saved_pad(int64_t size);    /* filled up to 8 bytes */

void      fm_put_int(char *p, uint64_t v, int size);      /* little-endian */
extern const char fm_saved_magic[8];

#endif
