/*
** status.h - filling an fm_error at the spot that knows the facts.
*/
#ifndef FM_BASE_STATUS_H
#define FM_BASE_STATUS_H

#include "fathom.h"

/* Fills *err (may be NULL) and returns code. A hint may follow with fm_hint. */
fm_status fm_fail(fm_error *err, fm_status code, const char *fmt, ...)
  __attribute__((format(printf, 3, 4)));
/* Adds a hint to an error already filled; returns its code. */
fm_status fm_hint(fm_error *err, fm_status code, const char *fmt, ...)
  __attribute__((format(printf, 3, 4)));
/* FM_EMEMORY with the size that was wanted. */
fm_status fm_no_memory(fm_error *err, int64_t size);
void fm_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define TRY(call) do { fm_status try_ = (call); if (try_ != FM_OK) return try_; } while (0)
/* The same, leaving through the function's single exit; needs `fm_status status` and `done:`. */
#define TRY_TO(call) do { status = (call); if (status != FM_OK) goto done; } while (0)

#endif
