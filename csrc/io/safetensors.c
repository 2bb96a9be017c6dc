/*
** safetensors.c - checkpoints: headers checked in full, data mapped and left alone.
*/
#include "io/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"

#define MAX_HEADER ((int64_t)100 << 20)  /* bytes; the customary limit */
#define MAX_INDEX ((int64_t)256 << 20)

typedef struct shard { char *path; fm_mapping map; } shard;

struct fm_store {
  shard *shards; int64_t n_shards, cap_shards;
  fm_entry *entries; int64_t n, cap;     /* sorted by name; the names are owned */
};

/* ---- one header ---------------------------------------------------------------------------------- */

typedef struct piece { const char *name; fm_dtype dtype; int ndim; int64_t shape[FM_MAX_DIMS], begin, end; } piece;

static bool whole(const cJSON *v, int64_t *out) {
  if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble <= 9007199254740992.0) ||
      v->valuedouble != floor(v->valuedouble)) return false;
  *out = (int64_t)v->valuedouble;
  return true;
}

static fm_status read_piece(piece *p, const cJSON *t, int64_t data_size, const char *path, fm_error *err) {
  const cJSON *dtype = NULL, *shape = NULL, *offsets = NULL, *v;
  p->name = t->string;
  if (!cJSON_IsObject(t)) return fm_fail(err, FM_EFORMAT, "%s: %.120s is no object", path, p->name);
  cJSON_ArrayForEach(v, t) {
    if (strcmp(v->string, "dtype") == 0) dtype = v;
    else if (strcmp(v->string, "shape") == 0) shape = v;
    else if (strcmp(v->string, "data_offsets") == 0) offsets = v;
  }
  if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets))
    return fm_fail(err, FM_EFORMAT, "%s: %.120s: expected dtype, shape and data_offsets", path, p->name);
  if (!fm_dtype_parse(dtype->valuestring, &p->dtype))
    return fm_fail(err, FM_EUNSUPPORTED, "%s: %.120s: dtype %.16s is not supported", path, p->name, dtype->valuestring);
  int64_t n = 1, size;
  p->ndim = 0;
  cJSON_ArrayForEach(v, shape) {
    if (p->ndim == FM_MAX_DIMS)
      return fm_fail(err, FM_EUNSUPPORTED, "%s: %.120s: more than %d dimensions", path, p->name, FM_MAX_DIMS);
    if (!whole(v, &p->shape[p->ndim]) || !fm_mul(n, p->shape[p->ndim], &n))
      return fm_fail(err, FM_EFORMAT, "%s: %.120s: impossible shape", path, p->name);
    p->ndim++;
  }
  if (!fm_mul(n, fm_dtype_size(p->dtype), &size))
    return fm_fail(err, FM_EFORMAT, "%s: %.120s: impossible shape", path, p->name);
  if (cJSON_GetArraySize(offsets) != 2 || !whole(offsets->child, &p->begin) || !whole(offsets->child->next, &p->end))
    return fm_fail(err, FM_EFORMAT, "%s: %.120s: data_offsets are no two positions", path, p->name);
  if (p->end < p->begin || p->end - p->begin != size)
    return fm_fail(err, FM_EFORMAT, "%s: %.120s: %lld bytes at [%lld, %lld), its shape needs %lld", path, p->name,
                   (long long)(p->end - p->begin), (long long)p->begin, (long long)p->end, (long long)size);
  if (p->end > data_size)
    return fm_fail(err, FM_EFORMAT, "%s: %.120s ends at byte %lld of %lld: the file is cut short", path, p->name,
                   (long long)p->end, (long long)data_size);
  return FM_OK;
}

static int by_offset(const void *a, const void *b) {
  const piece *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return (x->end > y->end) - (x->end < y->end);
}

/* No overlaps and no holes: the pieces cover the data exactly. */
static fm_status check_cover(const piece *p, int64_t n, int64_t data_size, const char *path, fm_error *err) {
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    if (p[i].begin != at)
      return fm_fail(err, FM_EFORMAT, "%s: %.120s begins at %lld, %s", path, p[i].name, (long long)p[i].begin,
                     p[i].begin < at ? "inside another tensor" : "behind a hole");
    at = p[i].end;
  }
  if (at != data_size)
    return fm_fail(err, FM_EFORMAT, "%s: %lld bytes of data, the header speaks of %lld", path, (long long)data_size,
                   (long long)at);
  return FM_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const piece *)a)->name, ((const piece *)b)->name);
}

static fm_status check_names(piece *p, int64_t n, const char *path, fm_error *err) {
  qsort(p, (size_t)n, sizeof *p, by_name);
  for (int64_t i = 1; i < n; i++)
    if (strcmp(p[i - 1].name, p[i].name) == 0)
      return fm_fail(err, FM_EFORMAT, "%s: two tensors are named %.120s", path, p[i].name);
  return FM_OK;
}

fm_status fm_safetensors_header(const char *json, size_t len, int64_t data_size, const char *path,
                                fm_status (*visit)(void *arg, const char *name, fm_dtype t, int ndim,
                                                   const int64_t *shape, int64_t begin, fm_error *err),
                                void *arg, fm_error *err) {
  fm_json *j;
  TRY(fm_json_parse(&j, json, len, path, err));
  fm_status status = FM_OK;
  int64_t n = 0, count = cJSON_IsObject(j) ? cJSON_GetArraySize(j) : 0;
  piece *p = fm_array(count, sizeof *p);
  const cJSON *t;
  if (!p) TRY_TO(fm_no_memory(err, count * (int64_t)sizeof *p));
  if (!cJSON_IsObject(j)) TRY_TO(fm_fail(err, FM_EFORMAT, "%s: the header is no object", path));
  cJSON_ArrayForEach(t, j) {
    if (strcmp(t->string, "__metadata__") == 0) continue;
    TRY_TO(read_piece(&p[n++], t, data_size, path, err));
  }
  TRY_TO(check_names(p, n, path, err));
  qsort(p, (size_t)n, sizeof *p, by_offset);
  TRY_TO(check_cover(p, n, data_size, path, err));
  for (int64_t i = 0; i < n && visit; i++)
    TRY_TO(visit(arg, p[i].name, p[i].dtype, p[i].ndim, p[i].shape, p[i].begin, err));
done:
  fm_free(p);
  fm_json_free(j);
  return status;
}

/* ---- one file ------------------------------------------------------------------------------------ */

typedef struct adding { fm_store *s; const char *data; int shard; const char *path; } adding;

static fm_status add_entry(void *arg, const char *name, fm_dtype t, int ndim, const int64_t *shape, int64_t begin,
                           fm_error *err) {
  adding *a = arg;
  const char *data = a->data + begin;
  if ((uintptr_t)data % (uintptr_t)fm_dtype_size(t))
    return fm_fail(err, FM_EFORMAT, "%s: %.120s (%s) begins at an odd place, %lld", a->path, name, fm_dtype_name(t),
                   (long long)begin);
  TRY(fm_grow(&a->s->entries, &a->s->cap, a->s->n + 1, sizeof *a->s->entries, err));
  fm_entry e = { .shard = a->shard, .t = { .data = (void *)data, .dtype = t, .ndim = ndim } };
  if (ndim) memcpy(e.t.shape, shape, (size_t)ndim * sizeof *shape);
  e.name = fm_strndup(name, strlen(name));
  if (!e.name) return fm_no_memory(err, (int64_t)strlen(name));
  a->s->entries[a->s->n++] = e;
  return FM_OK;
}

static fm_status add_shard(fm_store *s, const char *path, fm_error *err) {
  TRY(fm_grow(&s->shards, &s->cap_shards, s->n_shards + 1, sizeof *s->shards, err));
  shard *f = &s->shards[s->n_shards];
  *f = (shard){ .path = fm_strndup(path, strlen(path)) };
  if (!f->path) return fm_no_memory(err, (int64_t)strlen(path));
  s->n_shards++;
  TRY(fm_file_map(&f->map, path, err));
  const char *data = f->map.data;
  int64_t size = f->map.size;
  if (size < 10) return fm_fail(err, FM_EFORMAT, "%s: %lld bytes are no safetensors file", path, (long long)size);
  uint64_t len = 0;
  for (int i = 7; i >= 0; i--) len = len << 8 | (uint8_t)data[i];
  if (len > (uint64_t)MAX_HEADER || (int64_t)len > size - 8)
    return fm_fail(err, FM_EFORMAT, "%s: a header of %llu bytes in a file of %lld", path, (unsigned long long)len,
                   (long long)size);
  adding a = { s, data + 8 + len, (int)s->n_shards - 1, path };
  return fm_safetensors_header(data + 8, (size_t)len, size - 8 - (int64_t)len, path, add_entry, &a, err);
}

static int entry_by_name(const void *a, const void *b) {
  return strcmp(((const fm_entry *)a)->name, ((const fm_entry *)b)->name);
}

static fm_status sort_entries(fm_store *s, fm_error *err) {
  if (s->n) qsort(s->entries, (size_t)s->n, sizeof *s->entries, entry_by_name);
  for (int64_t i = 1; i < s->n; i++)
    if (strcmp(s->entries[i - 1].name, s->entries[i].name) == 0)
      return fm_fail(err, FM_EFORMAT, "%.120s is in two shards, %s and %s", s->entries[i].name,
                     s->shards[s->entries[i - 1].shard].path, s->shards[s->entries[i].shard].path);
  return FM_OK;
}

/* ---- shards with an index -------------------------------------------------------------------------- */

static int by_string(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The distinct files of a weight_map, each checked to be a plain name. */
static fm_status shard_names(const cJSON *map, const char *path, const char ***out, int64_t *n_out, fm_error *err) {
  int64_t n = 0, all = cJSON_GetArraySize(map);
  const char **names = fm_array(all, sizeof *names);
  const cJSON *v;
  if (!names) return fm_no_memory(err, all * (int64_t)sizeof *names);
  cJSON_ArrayForEach(v, map) {
    const char *s = cJSON_IsString(v) ? v->valuestring : NULL;
    if (!s || !*s || strchr(s, '/') || strcmp(s, "..") == 0 || strlen(s) > 255) {
      fm_free(names);
      return fm_fail(err, FM_EFORMAT, "%s: the shard of %.120s is no file name", path, v->string);
    }
    names[n++] = s;
  }
  if (n) qsort(names, (size_t)n, sizeof *names, by_string);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++)
    if (!kept || strcmp(names[kept - 1], names[i]) != 0) names[kept++] = names[i];
  *out = names;
  *n_out = kept;
  return FM_OK;
}

static fm_status open_shards(fm_store *s, const char *dir, const char *index, const cJSON *map, fm_error *err) {
  const char **names = NULL;
  int64_t n = 0;
  char path[4096];
  if (!cJSON_IsObject(map) || !map->child) return fm_fail(err, FM_EFORMAT, "%s has no weight_map", index);
  TRY(shard_names(map, index, &names, &n, err));
  fm_status status = FM_OK;
  for (int64_t i = 0; i < n && status == FM_OK; i++) {
    snprintf(path, sizeof path, "%s/%s", dir, names[i]);
    status = add_shard(s, path, err);
  }
  fm_free(names);
  TRY(status);
  TRY(sort_entries(s, err));
  const cJSON *v;
  cJSON_ArrayForEach(v, map) {
    const fm_entry *e = fm_store_find(s, v->string);
    const char *file = e ? strrchr(s->shards[e->shard].path, '/') + 1 : "";
    if (!e || strcmp(file, v->valuestring) != 0)
      return fm_fail(err, FM_EFORMAT, "%s: %.120s is not in %s", index, v->string, v->valuestring);
  }
  return FM_OK;
}

static fm_status open_indexed(fm_store *s, const char *dir, const char *index, fm_error *err) {
  fm_json *j;
  TRY(fm_json_load(&j, index, MAX_INDEX, err));
  fm_status status = open_shards(s, dir, index, fm_json_get(j, "weight_map"), err);
  fm_json_free(j);
  return status;
}

/* ---- stores ------------------------------------------------------------------------------------------ */

static fm_status finish(fm_store **out, fm_store *s, fm_status status) {
  if (status == FM_OK) *out = s;
  else fm_store_close(s);
  return status;
}

fm_status fm_store_open_file(fm_store **out, const char *path, fm_error *err) {
  fm_store *s = fm_zalloc(sizeof *s);
  if (!s) return fm_no_memory(err, sizeof *s);
  fm_status status = add_shard(s, path, err);
  return finish(out, s, status == FM_OK ? sort_entries(s, err) : status);
}

fm_status fm_store_open(fm_store **out, const char *dir, fm_error *err) {
  char path[4096];
  if (strlen(dir) > sizeof path - 64) return fm_fail(err, FM_EIO, "the path is too long");
  snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
  if (!fm_file_exists(path)) {
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    return fm_store_open_file(out, path, err);
  }
  fm_store *s = fm_zalloc(sizeof *s);
  if (!s) return fm_no_memory(err, sizeof *s);
  return finish(out, s, open_indexed(s, dir, path, err));
}

void fm_store_close(fm_store *s) {
  if (!s) return;
  for (int64_t i = 0; i < s->n; i++) fm_free((void *)s->entries[i].name);
  for (int64_t i = 0; i < s->n_shards; i++) {
    fm_file_unmap(&s->shards[i].map);
    fm_free(s->shards[i].path);
  }
  fm_free(s->entries);
  fm_free(s->shards);
  fm_free(s);
}

int64_t fm_store_count(const fm_store *s) { return s->n; }
const fm_entry *fm_store_at(const fm_store *s, int64_t i) { return &s->entries[i]; }

const fm_entry *fm_store_find(const fm_store *s, const char *name) {
  fm_entry key = { .name = name };
  return s->n ? bsearch(&key, s->entries, (size_t)s->n, sizeof key, entry_by_name) : NULL;
}

int64_t fm_store_parameters(const fm_store *s) {
  int64_t sum = 0;
  for (int64_t i = 0; i < s->n; i++) {
    size_t len = strlen(s->entries[i].name);
    if (len > 10 && strcmp(s->entries[i].name + len - 10, "_scale_inv") == 0) continue;
    sum += fm_tensor_len(&s->entries[i].t);
  }
  return sum;
}

uint64_t fm_store_digest(const fm_store *s) {
  uint64_t h = FM_HASH_START;
  for (int64_t i = 0; i < s->n; i++) {
    const fm_entry *e = &s->entries[i];
    int64_t size = fm_tensor_len(&e->t) * fm_dtype_size(e->t.dtype), take = size < 64 ? size : 64;
    h = fm_fnv(h, e->name, (int64_t)strlen(e->name) + 1);
    h = fm_fnv(h, &e->t.dtype, sizeof e->t.dtype);
    h = fm_fnv(h, e->t.shape, (int64_t)sizeof *e->t.shape * e->t.ndim);
    // sixty-four bytes from the middle: one page a tensor, and enough to tell two trainings apart
    h = fm_fnv(h, (const char *)e->t.data + (size - take) / 2, take);
  }
  return h;
}

/* ---- writing -------------------------------------------------------------------------------------------- */

static fm_status build_header(const fm_entry *e, int64_t n, char **out, int64_t *len, fm_error *err) {
  cJSON *j = cJSON_CreateObject();
  int64_t at = 0;
  bool ok = j != NULL;
  for (int64_t i = 0; i < n && ok; i++) {
    int64_t size = fm_tensor_len(&e[i].t) * fm_dtype_size(e[i].t.dtype);
    cJSON *t = cJSON_AddObjectToObject(j, e[i].name), *shape, *off;
    ok = t && cJSON_AddStringToObject(t, "dtype", fm_dtype_name(e[i].t.dtype));
    shape = ok ? cJSON_AddArrayToObject(t, "shape") : NULL;
    off = shape ? cJSON_AddArrayToObject(t, "data_offsets") : NULL;
    ok = off != NULL;
    for (int d = 0; ok && d < e[i].t.ndim; d++) ok = cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)e[i].t.shape[d]));
    ok = ok && cJSON_AddItemToArray(off, cJSON_CreateNumber((double)at)) &&
         cJSON_AddItemToArray(off, cJSON_CreateNumber((double)(at + size)));
    at += size;
  }
  char *text = ok ? cJSON_PrintUnformatted(j) : NULL;
  cJSON_Delete(j);
  if (!text) return fm_no_memory(err, n * 64);
  *len = (int64_t)strlen(text);
  *out = text;
  return FM_OK;
}

static bool put_all(FILE *f, const fm_entry *e, int64_t n, const char *head, int64_t len) {
  int64_t padded = (len + 7) / 8 * 8;
  uint8_t size[8];
  for (int i = 0; i < 8; i++) size[i] = (uint8_t)((uint64_t)padded >> (8 * i));
  bool ok = fwrite(size, 1, 8, f) == 8 && fwrite(head, 1, (size_t)len, f) == (size_t)len;
  for (int64_t i = len; i < padded && ok; i++) ok = fputc(' ', f) != EOF;
  for (int64_t i = 0; i < n && ok; i++) {
    size_t bytes = (size_t)(fm_tensor_len(&e[i].t) * fm_dtype_size(e[i].t.dtype));
    ok = fwrite(e[i].t.data, 1, bytes, f) == bytes;
  }
  return ok && fflush(f) == 0 && fsync(fileno(f)) == 0;
}

fm_status fm_safetensors_write(const char *path, const fm_entry *entries, int64_t n, fm_error *err) {
  char tmp[4096], *head = NULL;
  int64_t len = 0;
  if (snprintf(tmp, sizeof tmp, "%s.part", path) >= (int)sizeof tmp) return fm_fail(err, FM_EIO, "the path is too long");
  fm_json_init();
  TRY(build_header(entries, n, &head, &len, err));
  FILE *f = fopen(tmp, "wb");
  bool ok = f && put_all(f, entries, n, head, len);
  if (f && fclose(f) != 0) ok = false;
  ok = ok && rename(tmp, path) == 0;
  int why = errno;
  if (!ok && f) remove(tmp);
  cJSON_free(head);
  return ok ? FM_OK : fm_fail(err, FM_EIO, "cannot write %s: %s", path, strerror(why));
}
