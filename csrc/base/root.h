/*
** root.h - files below one folder, for callers that nobody vouches for.
** A path is walked part by part from the folder's descriptor, and no link is followed on the way or at its end: so nothing outside is
** reached, whatever a path says and whatever changes meanwhile. Paths: parts between '/'; neither "..", nor a leading '/'.
*/
#ifndef FM_BASE_ROOT_H
#define FM_BASE_ROOT_H

#include "base/status.h"

typedef struct fm_root fm_root;
/* name: without its folder; size: bytes of a plain file, -1 for a folder. */
typedef void fm_entry_fn(void *user, const char *name, int64_t size);

fm_status fm_root_open (fm_root **out, const char *dir, fm_error *err);
void      fm_root_close(fm_root *r);                       /* NULL is allowed */
/* A plain file of at most max_size bytes; free with fm_free. FM_ELIMIT when it is larger. */
fm_status fm_root_read (const fm_root *r, const char *path, int64_t max_size, char **out, int64_t *size, fm_error *err);
/* Writes a file as a whole: it is there complete, or as it was. Missing folders on the way are made. */
fm_status fm_root_write(const fm_root *r, const char *path, const char *data, int64_t size, fm_error *err);
/* Plain files and folders in a folder ("" or ".": the root), at most `most` of them; *more: there were others. */
fm_status fm_root_list (const fm_root *r, const char *path, int64_t most, fm_entry_fn *f, void *user, bool *more, fm_error *err);

#endif
