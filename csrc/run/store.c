/*
** store.c - a session as a file (layout: saved.h): written whole or not at all, restored row by row or, where the rows are
** not there or belong to another cache, by computing them again from ids and roles.
*/
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "run/engine.h"
#include "run/pack.h"
#include "run/saved.h"

/* Rows that another device, build or arithmetic computed may differ in their last bits. */
static uint64_t maker(const fm_model *m) {
  const char *simd;
  int threads;
  m->c.ops->info(m->c.dev, &simd, &threads);
  uint64_t h = fm_fnv(FM_HASH_START, m->c.ops->name, (int64_t)strlen(m->c.ops->name) + 1);
  h = fm_fnv(h, simd, (int64_t)strlen(simd) + 1);
  h = fm_fnv(h, &m->c.arithmetic, sizeof m->c.arithmetic);
  fm_forms of = m->ranks ? fm_ranks_forms(m->ranks) : (fm_forms){ 1, 1, 1, 1 };
  if (of.tp > 1) h = fm_fnv(h, &of.tp, sizeof of.tp);      // parts of rows are summed in another order; other forms change no bits
  return fm_fnv(h, FM_VERSION, sizeof FM_VERSION);
}

/* What of the model's cache decides whether pages fit. */
static void layout(const fm_model *m, fm_pages form, int64_t field[FM_S_FIELDS]) {
  const fm_kv *kv = m->kv;
  field[FM_S_PAGES] = form;
  field[FM_S_DTYPE] = kv->dtype;
  field[FM_S_WIDTH] = kv->width;
  field[FM_S_LAYERS] = kv->n_layers;
  field[FM_S_PAGE_TOKENS] = FM_PAGE;
  field[FM_S_PAGE_SIZE] = form == FM_PAGES_8BIT ? kv->n_layers * FM_PAGE * fm_pack_size(kv->width) : kv->page_size;
}

/* Pages of the main layers' rows and of the MTP layer's, which may be ahead by the pending id's. */
static int64_t pages_of(int64_t len, int64_t mtp_len) {
  return fm_kv_pages(len > mtp_len ? len : mtp_len);
}

/* The 8-bit form is for floats: a cache of 8 bits stays as it is stored. */
static fm_pages form_for(const fm_model *m, fm_pages asked) {
  bool floats = m->kv->dtype == FM_F32 || m->kv->dtype == FM_BF16;
  return asked == FM_PAGES_8BIT && !floats ? FM_PAGES_STORED : asked;
}

/* ---- saving ------------------------------------------------------------------------------------------- */

typedef struct sink { FILE *f; uint64_t sum; } sink;

/* Writes a part, filled up to 8 bytes; false when the system refused. */
static bool put(sink *o, const void *p, int64_t n) {
  int64_t whole = n / 8 * 8;
  char tail[8] = { 0 };
  if (n > whole) memcpy(tail, (const char *)p + whole, (size_t)(n - whole));
  if (whole) {
    o->sum = fm_sum(o->sum, p, whole);
    if (fwrite(p, 1, (size_t)whole, o->f) != (size_t)whole) return false;
  }
  if (n == whole) return true;
  o->sum = fm_sum(o->sum, tail, 8);
  return fwrite(tail, 1, 8, o->f) == 8;
}

static bool put_head(sink *o, const fm_session *s, fm_pages form, const void *note, size_t n_note) {
  int64_t v[FM_S_FIELDS] = { 0 };
  char head[FM_SAVED_HEAD];
  layout(s->m, form, v);
  v[FM_S_DIGEST] = (int64_t)s->m->digest;
  v[FM_S_N] = s->n;
  v[FM_S_N_NOTE] = (int64_t)n_note;
  v[FM_S_NOTE_SUM] = (int64_t)fm_fnv(FM_HASH_START, note, (int64_t)n_note);
  v[FM_S_DROPPED] = s->dropped, v[FM_S_KEEP] = s->keep, v[FM_S_DROPPED_SUM] = (int64_t)s->dropped_sum;
  v[FM_S_INEXACT] = s->inexact;
  v[FM_S_MAKER] = (int64_t)maker(s->m);
  if (form) {
    v[FM_S_N_PAGES] = pages_of(s->kv.len, s->kv.mtp_len) + fm_kv_pages(s->kv.kept_len);
    v[FM_S_KEPT_LEN] = s->kv.kept_len, v[FM_S_KEPT_SHIFT] = s->kv.kept_shift;
    v[FM_S_LEN] = s->kv.len, v[FM_S_SHIFT] = s->kv.shift;
    v[FM_S_MTP_FIRST] = s->kv.mtp_first, v[FM_S_MTP_LEN] = s->kv.mtp_len;
    v[FM_S_HIDDEN] = s->h_valid ? s->m->cfg.hidden_size : 0;
  }
  memcpy(head, fm_saved_magic, 8);
  fm_put_int(head + 8, FM_SAVED_VERSION, 4);
  fm_put_int(head + 12, FM_SAVED_HEAD, 4);
  for (int i = 0; i < FM_S_FIELDS; i++) fm_put_int(head + 16 + 8 * i, (uint64_t)v[i], 8);
  return put(o, head, sizeof head);
}

/* Zeros where a page holds no row of this sequence: what stood there before is nobody else's business. kept: the page is of the
   rows that are kept aside. */
static void blank_others(const fm_session *s, int64_t page, bool kept, char *p) {
  const fm_kv *kv = s->m->kv;
  int64_t row = kv->layer_size / FM_PAGE;
  for (int64_t layer = 0; layer < kv->n_layers; layer++) {
    bool mtp = layer >= s->m->cfg.num_hidden_layers;
    int64_t from = mtp ? s->kv.mtp_first : 0, to = kept ? s->kv.kept_len : mtp ? s->kv.mtp_len : s->kv.len;
    for (int64_t i = 0; i < FM_PAGE; i++) {
      int64_t at = page * FM_PAGE + i;
      if (at < from || at >= to) memset(p + layer * kv->layer_size + i * row, 0, (size_t)row);
    }
  }
}

static void pack_page(const fm_kv *kv, char *out, const char *p) {
  int64_t row = kv->layer_size / FM_PAGE, packed = fm_pack_size(kv->width);
  for (int64_t i = 0; i < kv->n_layers * FM_PAGE; i++) fm_pack_row(out + i * packed, p + i * row, kv->dtype, kv->width);
}

static void unpack_page(const fm_kv *kv, char *p, const char *in) {
  int64_t row = kv->layer_size / FM_PAGE, packed = fm_pack_size(kv->width);
  for (int64_t i = 0; i < kv->n_layers * FM_PAGE; i++) fm_unpack_row(p + i * row, in + i * packed, kv->dtype, kv->width);
}

static fm_status refused(const char *path, fm_error *err) {
  return fm_fail(err, FM_EIO, "cannot write %s: %s", path, strerror(errno));
}

static fm_status put_pages(sink *o, const fm_session *s, fm_pages form, const char *path, fm_error *err) {
  fm_kv *kv = s->m->kv;
  int64_t field[FM_S_FIELDS], n = pages_of(s->kv.len, s->kv.mtp_len), n_kept = fm_kv_pages(s->kv.kept_len);
  layout(s->m, form, field);
  char *p = fm_alloc(kv->page_size), *packed = form == FM_PAGES_8BIT ? fm_alloc(field[FM_S_PAGE_SIZE]) : NULL;
  fm_status status = p && (packed || form != FM_PAGES_8BIT) ? FM_OK : fm_no_memory(err, kv->page_size);
  for (int64_t i = 0; i < n + n_kept && status == FM_OK; i++) {
    bool kept = i >= n;
    status = fm_kv_read_page(kv, kept ? s->kv.kept[i - n] : s->kv.pages[i], p, err);
    if (status != FM_OK) break;
    blank_others(s, kept ? i - n : i, kept, p);
    if (packed) pack_page(kv, packed, p);
    if (!put(o, packed ? packed : p, field[FM_S_PAGE_SIZE])) status = refused(path, err);
  }
  fm_free(packed);
  fm_free(p);
  return status;
}

static fm_status put_all(FILE *f, const fm_session *s, fm_pages form, const void *note, size_t n_note, const char *path,
                         fm_error *err) {
  sink o = { f, FM_HASH_START };
  char sum[8];
  bool ok = put_head(&o, s, form, note, n_note) && put(&o, note, (int64_t)n_note) &&
            put(&o, s->ids, s->n * (int64_t)sizeof *s->ids) && put(&o, s->roles, s->n) &&
            put(&o, s->h, form && s->h_valid ? s->m->cfg.hidden_size * (int64_t)sizeof *s->h : 0);
  if (!ok) return refused(path, err);
  if (form) TRY(put_pages(&o, s, form, path, err));
  fm_put_int(sum, o.sum, 8);
  if (fwrite(sum, 1, 8, f) != 8 || fflush(f) != 0 || fsync(fileno(f)) != 0) return refused(path, err);
  return FM_OK;
}

/* The new name is on the disk when the folder is; where a folder cannot be synced the file is there all the same. */
static void sync_folder(const char *path, char *tmp) {
  char *slash = strrchr(tmp, '/');
  if (slash) slash[slash == tmp] = 0;
  int fd = open(slash ? tmp : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || fsync(fd) != 0) fm_log(FM_LOG_INFO, "%s: its folder could not be synced", path);
  if (fd >= 0) close(fd);
}

fm_status fm_session_save(const fm_session *s, const char *path, const void *note, size_t n_note, fm_pages pages,
                          fm_error *err) {
  size_t len = strlen(path);
  struct stat there;
  if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) return fm_fail(err, FM_EIO, "cannot write %s: it is no file", path);
  char *tmp = fm_alloc((int64_t)len + 6);
  if (!tmp) return fm_no_memory(err, (int64_t)len + 6);
  memcpy(tmp, path, len);
  memcpy(tmp + len, ".part", 6);
  FILE *f = fopen(tmp, "wb");
  fm_status status = f ? put_all(f, s, form_for(s->m, pages), note, n_note, path, err) : refused(path, err);
  if (f && fclose(f) != 0 && status == FM_OK) status = refused(path, err);
  if (status == FM_OK && rename(tmp, path) != 0) status = refused(path, err);
  if (status != FM_OK && f) remove(tmp);
  if (status == FM_OK) sync_folder(path, tmp);
  fm_free(tmp);
  return status;
}

/* ---- restoring ------------------------------------------------------------------------------------------ */

static fm_status read_ids(fm_saved *f, fm_session *s, fm_error *err) {
  int64_t n = f->field[FM_S_N];
  TRY(fm_grow(&s->ids, &s->cap_ids, n, sizeof *s->ids, err));
  TRY(fm_grow(&s->roles, &s->cap_roles, n, sizeof *s->roles, err));
  TRY(fm_saved_read(f, f->ids, s->ids, n * (int64_t)sizeof *s->ids, err));
  TRY(fm_saved_read(f, f->roles, s->roles, n, err));
  for (int64_t i = 0; i < n; i++)
    if (s->ids[i] < 0 || s->ids[i] >= s->m->cfg.vocab_size || s->roles[i] > FM_GENERATED)
      return fm_fail(err, FM_EFORMAT, "%s holds id %d in role %d", f->path, s->ids[i], s->roles[i]);
  s->n = n;
  s->dropped = f->field[FM_S_DROPPED];
  s->keep = f->field[FM_S_KEEP];
  s->dropped_sum = (uint64_t)f->field[FM_S_DROPPED_SUM];
  s->inexact = f->field[FM_S_INEXACT] != 0;
  return FM_OK;
}

/* Whether as many pages are there as rows are told of, and no more rows than a sequence of this model can have. */
static bool rows_fit(const int64_t *v, const fm_model *m) {
  int64_t turns = m->net.n_turns - m->ctx, kept = v[FM_S_KEPT_LEN];
  return v[FM_S_N_PAGES] == pages_of(v[FM_S_LEN], v[FM_S_MTP_LEN]) + fm_kv_pages(kept) && v[FM_S_LEN] <= m->ctx &&
         v[FM_S_MTP_LEN] <= m->ctx && v[FM_S_SHIFT] <= turns && v[FM_S_KEPT_SHIFT] <= turns &&
         (!kept || (kept == v[FM_S_KEEP] && v[FM_S_DROPPED] && kept <= m->ctx / 4));
}

/* Whether the file's pages are of the cache's own making; those of another are left, and computed again. */
static bool pages_fit(const fm_saved *f, const fm_model *m) {
  int64_t want[FM_S_FIELDS] = { 0 };
  const int64_t *v = f->field;
  fm_pages form = (fm_pages)v[FM_S_PAGES];
  layout(m, form, want);
  for (int i = FM_S_DTYPE; i <= FM_S_PAGE_TOKENS; i++)
    if (v[i] != want[i]) return false;
  return (form == FM_PAGES_STORED || form == FM_PAGES_8BIT) && form_for(m, form) == form && v[FM_S_PAGE_SIZE] == want[FM_S_PAGE_SIZE] &&
         rows_fit(v, m) && (v[FM_S_HIDDEN] == 0 || v[FM_S_HIDDEN] == m->cfg.hidden_size);
}

static fm_status read_pages(fm_saved *f, fm_session *s, fm_error *err) {
  fm_kv *kv = s->m->kv;
  const int64_t *v = f->field;
  bool packed = v[FM_S_PAGES] == FM_PAGES_8BIT;
  char *in = fm_alloc(v[FM_S_PAGE_SIZE]), *p = packed ? fm_alloc(kv->page_size) : in;
  fm_status status = in && p ? FM_OK : fm_no_memory(err, kv->page_size);
  for (int64_t i = 0; i < v[FM_S_N_PAGES] && status == FM_OK; i++) {
    status = fm_saved_read(f, f->pages + i * v[FM_S_PAGE_SIZE], in, v[FM_S_PAGE_SIZE], err);
    if (status == FM_OK && packed) unpack_page(kv, p, in);
    if (status == FM_OK) status = fm_kv_write_page(kv, s->kv.pages[i], p, err);
  }
  if (packed) fm_free(p);
  fm_free(in);
  TRY(status);
  TRY(fm_saved_read(f, f->state, s->h, v[FM_S_HIDDEN] * (int64_t)sizeof *s->h, err));
  s->h_valid = v[FM_S_HIDDEN] > 0;
  s->kv.len = v[FM_S_LEN], s->kv.mtp_first = v[FM_S_MTP_FIRST], s->kv.mtp_len = v[FM_S_MTP_LEN];
  s->kv.shift = v[FM_S_SHIFT];
  TRY(fm_kv_set_kept(&s->kv, v[FM_S_KEPT_LEN], v[FM_S_KEPT_SHIFT], err));
  s->inexact = s->inexact || packed || (uint64_t)v[FM_S_MAKER] != maker(s->m);
  return FM_OK;
}

static fm_status restore_rows(fm_saved *f, fm_session *s, fm_error *err) {
  if (!f->field[FM_S_PAGES] || !f->field[FM_S_N_PAGES]) return FM_OK;
  fm_status status = pages_fit(f, s->m) ? fm_session_reserve(s, 0, f->field[FM_S_N_PAGES] * FM_PAGE, err) : FM_ELIMIT;
  if (status == FM_ELIMIT) {
    fm_log(FM_LOG_WARNING, "%s: its pages fit no room in this cache, they will be computed again", f->path);
    return FM_OK;
  }
  TRY(status);
  return read_pages(f, s, err);
}

static fm_status read_note(fm_saved *f, char **note, fm_error *err) {
  int64_t n = f->field[FM_S_N_NOTE];
  char *text = fm_alloc(n + 1);
  if (!text) return fm_no_memory(err, n + 1);
  text[n] = 0;
  fm_status status = fm_saved_read(f, f->note, text, n, err);
  if (status == FM_OK) *note = text;
  else fm_free(text);
  return status;
}

/* Everything that can be wrong with a file, in the order in which it matters to whoever reads the message. */
static fm_status check(fm_saved *f, const fm_model *m, fm_error *err) {
  TRY(fm_saved_verify(f, err));
  if ((uint64_t)f->field[FM_S_DIGEST] != m->digest)
    return fm_fail(err, FM_EFORMAT, "%s was saved with another model", f->path);
  if (f->field[FM_S_N] > m->ctx + 1)               // the last id of a full one has no row
    return fm_fail(err, FM_EOVERFLOW, "%s holds %lld tokens, the context %lld", f->path, (long long)f->field[FM_S_N],
                   (long long)m->ctx);
  return FM_OK;
}

fm_status fm_session_restore_from(fm_session **out, fm_model *m, FILE *file, const char *path, char **note, size_t *n_note,
                                  fm_error *err) {
  fm_saved f;
  fm_session *s;
  char *text = NULL;
  fm_status status;
  TRY(fm_saved_open(&f, file, path, err));
  TRY(check(&f, m, err));
  fm_sched_settle(m);                              // pages that a pass still writes to are not given to anybody
  TRY(fm_session_new(&s, m, err));
  TRY_TO(read_ids(&f, s, err));
  TRY_TO(read_note(&f, &text, err));
  TRY_TO(restore_rows(&f, s, err));
  *note = text;
  *n_note = (size_t)f.field[FM_S_N_NOTE];
  *out = s;
  return FM_OK;
done:
  fm_free(text);
  fm_session_free(s);
  return status;
}

static fm_status open_file(FILE **out, const char *path, fm_error *err) {
  struct stat st;
  if (stat(path, &st) != 0) return fm_fail(err, FM_EIO, "cannot read %s: %s", path, strerror(errno));
  if (!S_ISREG(st.st_mode)) return fm_fail(err, FM_EIO, "%s is no plain file", path);
  *out = fopen(path, "rb");
  return *out ? FM_OK : fm_fail(err, FM_EIO, "cannot read %s: %s", path, strerror(errno));
}

fm_status fm_session_restore(fm_session **out, fm_model *m, const char *path, char **note, size_t *n_note,
                             fm_error *err) {
  FILE *f;
  TRY(open_file(&f, path, err));
  fm_status status = fm_session_restore_from(out, m, f, path, note, n_note, err);
  fclose(f);
  return status;
}

static fm_status history(FILE *file, const char *path, char **note, size_t *n_note, bool *sound, fm_error *err) {
  fm_saved f = { 0 };
  fm_error why;
  fm_status status = fm_saved_open(&f, file, path, &why);
  if (!f.note || f.field[FM_S_N_NOTE] < 0 || f.field[FM_S_N_NOTE] > f.size - f.note) {
    if (err && status != FM_OK) *err = why;
    return status != FM_OK ? status : fm_fail(err, FM_EFORMAT, "%s: its history is cut off", path);
  }
  TRY(read_note(&f, note, err));
  int64_t n = f.field[FM_S_N_NOTE];
  *n_note = (size_t)n;
  *sound = f.version == 1 ? status == FM_OK && fm_saved_verify(&f, NULL) == FM_OK
                          : (uint64_t)f.field[FM_S_NOTE_SUM] == fm_fnv(FM_HASH_START, *note, n);
  return FM_OK;
}

fm_status fm_session_history(const char *path, char **note, size_t *n_note, bool *sound, fm_error *err) {
  FILE *f;
  TRY(open_file(&f, path, err));
  fm_status status = history(f, path, note, n_note, sound, err);
  fclose(f);
  return status;
}
