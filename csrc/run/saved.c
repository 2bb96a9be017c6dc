/*
** saved.c - reading the file of a saved session with distrust.
*/
#define _GNU_SOURCE                      /* fseeko */
#include "run/saved.h"

#include <errno.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

enum { HEAD_1 = 16 + 8 * FM_S_NOTE_SUM, CHUNK = 1 << 20 };

const char fm_saved_magic[8] = "FATHOMS\n";

int64_t fm_saved_pad(int64_t size) { return (size + 7) / 8 * 8; }

void fm_put_int(char *p, uint64_t v, int size) {
  for (int i = 0; i < size; i++) p[i] = (char)(v >> (8 * i));
}

static uint64_t get_int(const char *p, int size) {
  uint64_t v = 0;
  for (int i = 0; i < size; i++) v |= (uint64_t)(uint8_t)p[i] << (8 * i);
  return v;
}

fm_status fm_saved_read(fm_saved *s, int64_t at, void *to, int64_t size, fm_error *err) {
  if (size == 0) return FM_OK;
  errno = 0;
  if (fseeko(s->f, at, SEEK_SET) == 0 && fread(to, 1, (size_t)size, s->f) == (size_t)size) return FM_OK;
  return fm_fail(err, FM_EIO, "cannot read %s: %s", s->path, errno ? strerror(errno) : "it shrank");
}

static fm_status impossible(const fm_saved *s, fm_error *err) {
  return fm_fail(err, FM_EFORMAT, "%s: %lld bytes, its header says otherwise", s->path, (long long)s->size);
}

/* Lays the parts one behind the other from `at` on; false when the sizes overflow or do not end at the checksum. */
static bool place_parts(fm_saved *s, int64_t at) {
  const int64_t *v = s->field;
  int64_t four, state, pages;
  if (!fm_mul(v[FM_S_N], 4, &four) || !fm_mul(v[FM_S_HIDDEN], 4, &state) ||
      !fm_mul(v[FM_S_N_PAGES], v[FM_S_PAGE_SIZE], &pages)) return false;
  struct { int64_t *at, size; } order[] = { { &s->note, v[FM_S_N_NOTE] }, { &s->ids, four }, { &s->roles, v[FM_S_N] },
                                            { &s->state, state }, { &s->pages, pages } };
  if (s->version == 1) {
    order[0].at = &s->ids, order[0].size = four;
    order[1].at = &s->roles, order[1].size = v[FM_S_N];
    order[2].at = &s->note, order[2].size = v[FM_S_N_NOTE];
  }
  for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
    if (order[i].size > s->size) return false;
    *order[i].at = at;
    if (!fm_add(at, s->version == 1 ? order[i].size : fm_saved_pad(order[i].size), &at)) return false;
  }
  return at == s->size - 8;
}

/* Counts that do not fit each other. */
static bool sane(const fm_saved *s) {
  const int64_t *v = s->field;
  for (int i = 0; i < FM_S_FIELDS; i++)
    if (v[i] < 0 && i != FM_S_DIGEST && i != FM_S_NOTE_SUM && i != FM_S_DROPPED_SUM && i != FM_S_MAKER) return false;
  return v[FM_S_LEN] <= v[FM_S_N] && v[FM_S_MTP_LEN] <= v[FM_S_N] && v[FM_S_MTP_FIRST] <= v[FM_S_MTP_LEN] &&
         v[FM_S_KEEP] <= v[FM_S_N] && v[FM_S_KEPT_LEN] <= v[FM_S_KEEP] && v[FM_S_DROPPED] < (int64_t)1 << 48 &&
         (v[FM_S_PAGES] == 0 || v[FM_S_PAGE_SIZE] % 8 == 0);
}

/* Of the versions that this library does not know it reads those that all have. */
static int64_t n_fields(int64_t version) {
  return version == FM_SAVED_VERSION ? FM_S_FIELDS : version == 2 ? FM_S_KEPT_LEN : FM_S_NOTE_SUM;
}

fm_status fm_saved_open(fm_saved *out, FILE *f, const char *path, fm_error *err) {
  char head[FM_SAVED_HEAD];
  fm_saved s = { .f = f, .path = path };
  if (fseeko(f, 0, SEEK_END) != 0 || (s.size = ftello(f)) < 0)
    return fm_fail(err, FM_EIO, "cannot read %s: %s", path, strerror(errno));
  if (s.size < HEAD_1 + 8) return fm_fail(err, FM_EFORMAT, "%s is no saved session", path);
  TRY(fm_saved_read(&s, 0, head, HEAD_1, err));
  if (memcmp(head, fm_saved_magic, 8) != 0) return fm_fail(err, FM_EFORMAT, "%s is no saved session", path);
  s.version = (int64_t)get_int(head + 8, 4);
  int64_t size = s.version == 1 ? HEAD_1 : (int64_t)get_int(head + 12, 4), n_field = n_fields(s.version);
  if (size > s.size - 8) return impossible(&s, err);
  if (s.version > 1 && s.version <= FM_SAVED_VERSION) {
    if (size != 16 + 8 * n_field) return impossible(&s, err);
    TRY(fm_saved_read(&s, 0, head, size, err));
  }
  for (int64_t i = 0; i < n_field; i++) s.field[i] = (int64_t)get_int(head + 16 + 8 * i, 8);
  s.note = size;
  *out = s;
  if (s.version < 1 || s.version > FM_SAVED_VERSION)
    return fm_fail(err, FM_EUNSUPPORTED, "%s: version %lld, this library reads 1 to %d", path, (long long)s.version,
                   FM_SAVED_VERSION);
  bool fits = sane(&s) && place_parts(&s, size);
  if (s.version == 1 || fits) *out = s;            // a file that is cut short still has its note where it was
  return fits ? FM_OK : impossible(&s, err);
}

fm_status fm_saved_verify(fm_saved *s, fm_error *err) {
  char *p = fm_alloc(CHUNK), tail[8];
  if (!p) return fm_no_memory(err, CHUNK);
  uint64_t sum = FM_HASH_START;
  fm_status status = FM_OK;
  for (int64_t at = 0, end = s->size - 8; at < end && status == FM_OK; at += CHUNK) {
    int64_t n = end - at < CHUNK ? end - at : CHUNK;
    status = fm_saved_read(s, at, p, n, err);
    if (status == FM_OK) sum = s->version == 1 ? fm_fnv(sum, p, n) : fm_sum(sum, p, n);
  }
  fm_free(p);
  TRY(status);
  TRY(fm_saved_read(s, s->size - 8, tail, 8, err));
  if (get_int(tail, 8) == sum) return FM_OK;
  return fm_fail(err, FM_EFORMAT, "%s: the checksum is wrong, a byte was changed", s->path);
}
