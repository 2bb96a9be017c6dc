/*
** file.c - files of a checkpoint, through the host's hooks or from the system.
*/
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

/* Global like the allocator, and set as early: see fathom.h. */
static fm_file_hooks host;

void fm_set_files(const fm_file_hooks *hooks) {
  host = hooks ? *hooks : (fm_file_hooks){ 0 };
}

/* ---- the system --------------------------------------------------------------------------------------- */

/* A descriptor of a plain file. Looked at before it is opened: opening a pipe would wait for a writer. */
static fm_status open_plain(int *fd, int64_t *size, const char *path, fm_error *err) {
  struct stat st;
  if (stat(path, &st) != 0) return fm_fail(err, FM_EIO, "cannot read %s: %s", path, strerror(errno));
  if (!S_ISREG(st.st_mode)) return fm_fail(err, FM_EIO, "%s is no plain file", path);
  *fd = open(path, O_RDONLY | O_CLOEXEC);
  if (*fd < 0) return fm_fail(err, FM_EIO, "cannot read %s: %s", path, strerror(errno));
  *size = st.st_size;
  return FM_OK;
}

static fm_status system_map(fm_mapping *m, const char *path, fm_error *err) {
  int fd = -1;
  TRY(open_plain(&fd, &m->size, path, err));
  void *p = m->size ? mmap(NULL, (size_t)m->size, PROT_READ, MAP_SHARED, fd, 0) : NULL;
  fm_status status = p == MAP_FAILED ? fm_fail(err, FM_EIO, "cannot map %s: %s", path, strerror(errno)) : FM_OK;
  close(fd);
  if (status == FM_OK) m->data = p;
  return status;
}

static fm_status system_load(char *to, int fd, int64_t size, const char *path, fm_error *err) {
  for (int64_t at = 0; at < size;) {
    ssize_t got = read(fd, to + at, (size_t)(size - at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fm_fail(err, FM_EIO, "cannot read %s: %s", path, got ? strerror(errno) : "it shrank");
    at += got;
  }
  return FM_OK;
}

/* ---- the host's hooks ----------------------------------------------------------------------------------- */

static fm_status hook_open(fm_mapping *m, const char *path, fm_error *err) {
  int64_t size = -1;
  void *file = host.open(host.user, path, &size);
  if (!file) return fm_fail(err, FM_EIO, "cannot read %s: the host's hook has no such file", path);
  *m = (fm_mapping){ .size = size, .file = file, .via = host };
  if (size >= 0) return FM_OK;
  fm_file_unmap(m);
  return fm_fail(err, FM_EIO, "cannot read %s: the host's hook says that it has %lld bytes", path, (long long)size);
}

/* Short reads are asked on; one that brings nothing, or more than was asked for, is a failure. */
static fm_status hook_read(const fm_mapping *m, char *to, const char *path, fm_error *err) {
  for (int64_t at = 0; at < m->size;) {
    int64_t got = m->via.read(m->via.user, m->file, at, to + at, m->size - at);
    if (got <= 0 || got > m->size - at)
      return fm_fail(err, FM_EIO, "cannot read %s: the host's hook gave %lld of %lld bytes at %lld", path, (long long)got,
                     (long long)(m->size - at), (long long)at);
    at += got;
  }
  return FM_OK;
}

static fm_status hook_map(fm_mapping *m, const char *path, fm_error *err) {
  TRY(hook_open(m, path, err));
  if (m->via.map) m->data = m->via.map(m->via.user, m->file);
  if (m->data) return FM_OK;
  m->copy = fm_alloc(m->size);
  fm_status status = m->copy ? hook_read(m, m->copy, path, err) : fm_no_memory(err, m->size);
  if (status == FM_OK) m->data = m->copy;
  else fm_file_unmap(m);
  return status;
}

/* ---- both ------------------------------------------------------------------------------------------------- */

bool fm_file_exists(const char *path) {
  fm_mapping m = { 0 };
  if (!host.open) return access(path, F_OK) == 0;
  bool there = hook_open(&m, path, NULL) == FM_OK;
  fm_file_unmap(&m);
  return there;
}

fm_status fm_file_map(fm_mapping *out, const char *path, fm_error *err) {
  fm_mapping m = { 0 };
  TRY(host.open ? hook_map(&m, path, err) : system_map(&m, path, err));
  *out = m;
  return FM_OK;
}

void fm_file_unmap(fm_mapping *m) {
  if (m->via.open) {
    fm_free(m->copy);
    if (m->file) m->via.close(m->via.user, m->file);
  } else if (m->data) {
    munmap((void *)(uintptr_t)m->data, (size_t)m->size);
  }
  *m = (fm_mapping){ 0 };
}

static fm_status check_size(const char *path, int64_t size, int64_t max_size, fm_error *err) {
  if (size <= max_size) return FM_OK;
  return fm_fail(err, FM_EFORMAT, "%s: %lld bytes, at most %lld are read", path, (long long)size, (long long)max_size);
}

fm_status fm_file_load(char **out, int64_t *size, const char *path, int64_t max_size, fm_error *err) {
  fm_mapping m = { 0 };
  int fd = -1;
  TRY(host.open ? hook_open(&m, path, err) : open_plain(&fd, &m.size, path, err));
  fm_status status = check_size(path, m.size, max_size, err);
  char *text = status == FM_OK ? fm_alloc(m.size + 1) : NULL;
  if (status == FM_OK && !text) status = fm_no_memory(err, m.size + 1);
  if (status == FM_OK) status = fd < 0 ? hook_read(&m, text, path, err) : system_load(text, fd, m.size, path, err);
  if (status == FM_OK) {
    text[m.size] = 0;
    *out = text;
    *size = m.size;
  } else {
    fm_free(text);
  }
  if (fd >= 0) close(fd);
  if (m.file) fm_file_unmap(&m);
  return status;
}
