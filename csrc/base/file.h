/*
** file.h - files of a checkpoint, through the host's hooks where it has set some (fathom.h), else from the system.
*/
#ifndef FM_BASE_FILE_H
#define FM_BASE_FILE_H

#include "base/status.h"

/* A whole file in memory for reading: mapped, or read where the hooks have no map. */
typedef struct fm_mapping {
  const char *data;
  int64_t size;
  void *file;                            /* the hooks' */
  void *copy;                            /* ours, when it was read */
  fm_file_hooks via;                     /* those it was opened with; open NULL: the system */
} fm_mapping;

bool      fm_file_exists(const char *path);
/* FM_EIO: missing, no plain file, or the read failed. */
fm_status fm_file_map(fm_mapping *out, const char *path, fm_error *err);
void      fm_file_unmap(fm_mapping *m);                /* clears it; may be called twice */
/* The bytes of a file of at most max_size, zero-terminated; free with fm_free. FM_EFORMAT when it is larger. */
fm_status fm_file_load(char **out, int64_t *size, const char *path, int64_t max_size, fm_error *err);

#endif
