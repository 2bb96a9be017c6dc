/*
** store.c - a session as a file: ids and roles, the caller's note, the model's digest, a checksum.
** Layout, little-endian: magic "FATHOMS\n", u32 version, u32 0, u64 digest, u64 n, u64 n_note, i32 ids[n],
** u8 roles[n], note, u64 checksum of everything before.
*/
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "run/engine.h"

enum { HEAD = 40, VERSION = 1 };
static const char magic[8] = "FATHOMS\n";

static uint64_t checksum(const char *p, int64_t n) {           /* FNV-1a */
  uint64_t h = 0xcbf29ce484222325u;
  for (int64_t i = 0; i < n; i++) h = (h ^ (uint8_t)p[i]) * 0x100000001b3u;
  return h;
}

static void put(char *p, uint64_t v, int size) {
  for (int i = 0; i < size; i++) p[i] = (char)(v >> (8 * i));
}

static uint64_t get(const char *p, int size) {
  uint64_t v = 0;
  for (int i = 0; i < size; i++) v |= (uint64_t)(uint8_t)p[i] << (8 * i);
  return v;
}

static char *pack(const fm_session *s, const void *note, size_t n_note, int64_t *size) {
  *size = HEAD + s->n * 5 + (int64_t)n_note + 8;
  char *p = fm_alloc(*size), *at = p + HEAD;
  if (!p) return NULL;
  memcpy(p, magic, 8);
  put(p + 8, VERSION, 4);
  put(p + 12, 0, 4);
  put(p + 16, s->m->digest, 8);
  put(p + 24, (uint64_t)s->n, 8);
  put(p + 32, n_note, 8);
  for (int64_t i = 0; i < s->n; i++, at += 4) put(at, (uint32_t)s->ids[i], 4);
  if (s->n) memcpy(at, s->roles, (size_t)s->n);
  if (n_note) memcpy(at + s->n, note, n_note);
  put(p + *size - 8, checksum(p, *size - 8), 8);
  return p;
}

static fm_status write_whole(const char *path, const char *p, int64_t size, fm_error *err) {
  size_t len = strlen(path);
  char *tmp = fm_alloc((int64_t)len + 8);
  if (!tmp) return fm_no_memory(err, (int64_t)len + 8);
  memcpy(tmp, path, len);
  memcpy(tmp + len, ".part", 6);
  FILE *f = fopen(tmp, "wb");
  bool ok = f != NULL;
  ok = ok && fwrite(p, 1, (size_t)size, f) == (size_t)size && fflush(f) == 0 && fsync(fileno(f)) == 0;
  int why = errno;
  if (f && fclose(f) != 0) ok = false;
  if (ok && rename(tmp, path) != 0) {
    ok = false;
    why = errno;
  }
  if (!ok && f) remove(tmp);
  fm_free(tmp);
  return ok ? FM_OK : fm_fail(err, FM_EIO, "cannot write %s: %s", path, strerror(why));
}

fm_status fm_session_save(const fm_session *s, const char *path, const void *note, size_t n_note, fm_error *err) {
  int64_t size;
  char *p = pack(s, note, n_note, &size);
  if (!p) return fm_no_memory(err, size);
  fm_status status = write_whole(path, p, size, err);
  fm_free(p);
  return status;
}

static fm_status read_whole(const char *path, char **out, int64_t *size, fm_error *err) {
  FILE *f = fopen(path, "rb");
  if (!f) return fm_fail(err, FM_EIO, "cannot read %s: %s", path, strerror(errno));
  char *p = NULL;
  int64_t cap = 0, n = 0;
  fm_status status = FM_OK;
  for (size_t got = 1; got && status == FM_OK; n += (int64_t)got) {
    got = 0;
    status = fm_grow(&p, &cap, n + (1 << 16), 1, err);
    if (status == FM_OK) got = fread(p + n, 1, 1 << 16, f);
  }
  if (status == FM_OK && ferror(f)) status = fm_fail(err, FM_EIO, "cannot read %s", path);
  fclose(f);
  if (status != FM_OK) {
    fm_free(p);
    return status;
  }
  *out = p;
  *size = n;
  return FM_OK;
}

/* Everything that can be wrong with a file, in the order in which it matters to whoever reads the message. */
static fm_status check(const fm_model *m, const char *path, const char *p, int64_t size, fm_error *err) {
  if (size < HEAD + 8 || memcmp(p, magic, 8) != 0)
    return fm_fail(err, FM_EFORMAT, "%s is no saved session", path);
  if (get(p + 8, 4) != VERSION)
    return fm_fail(err, FM_EUNSUPPORTED, "%s: version %llu, this library reads %d", path,
                   (unsigned long long)get(p + 8, 4), VERSION);
  uint64_t n = get(p + 24, 8), n_note = get(p + 32, 8), room = (uint64_t)size - HEAD - 8;
  if (n > room / 5 || n_note > room || n * 5 + n_note != room)
    return fm_fail(err, FM_EFORMAT, "%s: %lld bytes, its header says otherwise", path, (long long)size);
  if (get(p + size - 8, 8) != checksum(p, size - 8))
    return fm_fail(err, FM_EFORMAT, "%s: the checksum is wrong, a byte was changed", path);
  if (get(p + 16, 8) != m->digest)
    return fm_fail(err, FM_EFORMAT, "%s was saved with another model", path);
  if ((int64_t)n > m->ctx)
    return fm_fail(err, FM_EOVERFLOW, "%s holds %lld tokens, the context %lld", path, (long long)n,
                   (long long)m->ctx);
  return FM_OK;
}

static fm_status unpack(fm_session *s, const char *p, int64_t n, fm_error *err) {
  for (int64_t i = 0; i < n; i++) {
    int32_t id = (int32_t)get(p + 4 * i, 4);
    uint8_t role = (uint8_t)p[4 * n + i];
    if (id < 0 || id >= s->m->cfg.vocab_size || role > FM_GENERATED)
      return fm_fail(err, FM_EFORMAT, "a saved session holds id %d in role %d", id, role);
    TRY(fm_session_append(s, &id, 1, (fm_role)role, err));
  }
  return FM_OK;
}

fm_status fm_session_restore(fm_session **out, fm_model *m, const char *path, char **note, size_t *n_note,
                             fm_error *err) {
  char *p = NULL, *text = NULL;
  int64_t size = 0;
  fm_session *s = NULL;
  fm_status status = FM_OK;
  TRY_TO(read_whole(path, &p, &size, err));
  TRY_TO(check(m, path, p, size, err));
  int64_t n = (int64_t)get(p + 24, 8), len = (int64_t)get(p + 32, 8);
  TRY_TO(fm_session_new(&s, m, err));
  TRY_TO(unpack(s, p + HEAD, n, err));
  text = fm_strndup(p + HEAD + 5 * n, (size_t)len);
  if (!text) TRY_TO(fm_no_memory(err, len));
  *note = text;
  *n_note = (size_t)len;
  *out = s;
  s = NULL;
done:
  fm_session_free(s);
  fm_free(p);
  return status;
}
