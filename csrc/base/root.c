/*
** root.c - files below one folder, for callers that nobody vouches for; see root.h.
*/
#define _GNU_SOURCE
#include "base/root.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

enum { MAX_PATH = 1024, MAX_NAME = 255 };

struct fm_root { int fd; };

fm_status fm_root_open(fm_root **out, const char *dir, fm_error *err) {
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return fm_fail(err, FM_EIO, "cannot open the folder %s: %s", dir, strerror(errno));
  fm_root *r = fm_zalloc(sizeof *r);
  if (!r) {
    close(fd);
    return fm_no_memory(err, sizeof *r);
  }
  r->fd = fd;
  *out = r;
  return FM_OK;
}

void fm_root_close(fm_root *r) {
  if (!r) return;
  close(r->fd);
  fm_free(r);
}

/* ---- walking --------------------------------------------------------------------------------------------- */

/* The next part of a path into name; the rest, or NULL when there is none. */
static const char *next_part(const char *path, char *name, fm_error *err, fm_status *status) {
  while (*path == '/') path++;
  size_t len = strcspn(path, "/");
  *status = FM_OK;
  if (len > MAX_NAME) *status = fm_fail(err, FM_EIO, "a part of the path is longer than %d bytes", MAX_NAME);
  else if (len == 2 && path[0] == '.' && path[1] == '.') *status = fm_fail(err, FM_EIO, "the path leaves its folder");
  if (*status != FM_OK || len == 0) return NULL;
  memcpy(name, path, len);
  name[len] = 0;
  return path + len;
}

static fm_status check(const char *path, fm_error *err) {
  if (*path == '/') return fm_fail(err, FM_EIO, "the path begins at the root of the system");
  if (strlen(path) > MAX_PATH) return fm_fail(err, FM_EIO, "the path is longer than %d bytes", MAX_PATH);
  return FM_OK;
}

static fm_status cannot(fm_error *err, const char *what, const char *path) {
  int why = errno;
  const char *said = why == ELOOP || why == ENOTDIR ? "it leads over a link or no folder" : strerror(why);
  return fm_fail(err, FM_EIO, "cannot %s '%s': %s", what, path, said);
}

/* Opens the folder in which the path's last part lies, and gives that part; "" for the folder itself. The descriptor is the caller's. */
static fm_status walk(const fm_root *r, const char *path, bool make, int *fd, char *last, fm_error *err) {
  char name[MAX_NAME + 1];
  fm_status status = check(path, err);
  const char *whole = path;
  if (status != FM_OK) return status;
  int at = openat(r->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (at < 0) return cannot(err, "open", whole);
  *last = 0;
  while ((path = next_part(path, name, err, &status))) {
    if (strcmp(name, ".") == 0) continue;
    if (*last) {                                            // what came before is a folder on the way
      if (make && mkdirat(at, last, 0777) != 0 && errno != EEXIST) { status = cannot(err, "make a folder for", whole); break; }
      int next = openat(at, last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (next < 0) { status = cannot(err, "open", whole); break; }
      close(at);
      at = next;
    }
    strcpy(last, name);
  }
  if (status != FM_OK) {
    close(at);
    return status;
  }
  *fd = at;
  return FM_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------- */

static fm_status read_all(int fd, const char *path, int64_t max_size, char **out, int64_t *size, fm_error *err) {
  struct stat st;
  if (fstat(fd, &st) != 0) return cannot(err, "read", path);
  if (!S_ISREG(st.st_mode)) return fm_fail(err, FM_EIO, "'%s' is no plain file", path);
  if (st.st_size > max_size)
    return fm_fail(err, FM_ELIMIT, "'%s' has %lld bytes, at most %lld are read", path, (long long)st.st_size, (long long)max_size);
  char *data = fm_alloc(st.st_size + 1);
  if (!data) return fm_no_memory(err, st.st_size);
  int64_t n = 0;
  while (n < st.st_size) {
    ssize_t got = read(fd, data + n, (size_t)(st.st_size - n));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    n += got;
  }
  data[n] = 0;
  *out = data;
  *size = n;
  return FM_OK;
}

fm_status fm_root_read(const fm_root *r, const char *path, int64_t max_size, char **out, int64_t *size, fm_error *err) {
  char name[MAX_NAME + 1];
  int dir;
  TRY(walk(r, path, false, &dir, name, err));
  int fd = openat(dir, *name ? name : ".", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);   // a pipe would wait for a writer
  fm_status status = fd < 0 ? cannot(err, "read", path) : FM_OK;
  close(dir);
  if (status != FM_OK) return status;
  status = read_all(fd, path, max_size, out, size, err);
  close(fd);
  return status;
}

static bool write_all(int fd, const char *data, int64_t size) {
  while (size > 0) {
    ssize_t put = write(fd, data, (size_t)size);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    data += put;
    size -= put;
  }
  return true;
}

/* Under a name of its own first; the rename replaces a link rather than following it. */
static fm_status replace(int dir, const char *name, const char *path, const char *data, int64_t size, fm_error *err) {
  char part[48];
  struct stat st;
  if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(st.st_mode))
    return fm_fail(err, FM_EIO, "'%s' is no plain file", path);
  snprintf(part, sizeof part, ".fathom-%ld.part", (long)getpid());
  unlinkat(dir, part, 0);
  int fd = openat(dir, part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd < 0) return cannot(err, "write", path);
  bool fine = write_all(fd, data, size);
  fine = close(fd) == 0 && fine;
  if (fine && renameat(dir, part, dir, name) == 0) return FM_OK;
  fm_status status = cannot(err, "write", path);
  unlinkat(dir, part, 0);
  return status;
}

fm_status fm_root_write(const fm_root *r, const char *path, const char *data, int64_t size, fm_error *err) {
  char name[MAX_NAME + 1];
  int dir;
  TRY(walk(r, path, true, &dir, name, err));
  fm_status status = *name ? replace(dir, name, path, data, size, err) : fm_fail(err, FM_EIO, "the path names no file");
  close(dir);
  return status;
}

/* ---- folders ------------------------------------------------------------------------------------------------- */

static int open_folder(int dir, const char *name) {
  return openat(dir, *name ? name : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

fm_status fm_root_list(const fm_root *r, const char *path, int64_t most, fm_entry_fn *f, void *user, bool *more, fm_error *err) {
  char name[MAX_NAME + 1];
  int dir;
  TRY(walk(r, path, false, &dir, name, err));
  int fd = open_folder(dir, name);
  fm_status status = fd < 0 ? cannot(err, "list", path) : FM_OK;
  close(dir);
  if (status != FM_OK) return status;
  DIR *d = fdopendir(fd);
  if (!d) {
    close(fd);
    return fm_no_memory(err, 0);
  }
  *more = false;
  for (struct dirent *e; (e = readdir(d));) {
    struct stat st;
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) continue;
    if (most-- <= 0) {
      *more = true;
      break;
    }
    f(user, e->d_name, S_ISDIR(st.st_mode) ? -1 : (int64_t)st.st_size);
  }
  closedir(d);
  return FM_OK;
}
