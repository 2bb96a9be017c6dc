/*
** json.c - cJSON behind typed getters.
*/
#include "base/json.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

enum { MAX_DEPTH = 64 };

/* cJSON answers NULL to bad text and to a refused allocation alike; this tells them apart. */
static _Thread_local bool refused;

static void *hook_alloc(size_t size) {
  void *p = fm_alloc((int64_t)size);
  if (!p) refused = true;
  return p;
}

void fm_json_init(void) {
  cJSON_Hooks hooks = { hook_alloc, fm_free };
  cJSON_InitHooks(&hooks);
}

/* Brackets outside strings: depth within bounds, so that neither parsing nor freeing can run the stack out. */
static fm_status check_depth(const char *s, size_t len, const char *what, fm_error *err) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < len; i++) {
    char ch = s[i];
    if (ch == 0) return fm_fail(err, FM_EFORMAT, "%s: a zero byte at %zu", what, i);
    if (in_string) {
      if (ch == '\\' && i + 1 < len) i++;
      else if (ch == '"') in_string = false;
    } else if (ch == '"') {
      in_string = true;
    } else if (ch == '{' || ch == '[') {
      if (++depth > MAX_DEPTH)
        return fm_fail(err, FM_EFORMAT, "%s: nested deeper than %d", what, MAX_DEPTH);
    } else if (ch == '}' || ch == ']') {
      depth--;
    }
  }
  return FM_OK;
}

fm_status fm_json_parse(fm_json **out, const char *text, size_t len, const char *what, fm_error *err) {
  const char *end = NULL;
  TRY(check_depth(text, len, what, err));
  // cJSON wants to see a zero after the last byte when asked to look for garbage there
  char *copy = fm_strndup(text, len);
  if (!copy) return fm_no_memory(err, (int64_t)len);
  fm_json_init();
  refused = false;
  cJSON *j = cJSON_ParseWithLengthOpts(copy, len + 1, &end, 1);
  size_t at = end ? (size_t)(end - copy) : 0;
  fm_free(copy);
  if (!j && refused) return fm_no_memory(err, (int64_t)len);
  if (!j) return fm_fail(err, FM_EFORMAT, "%s: no JSON at byte %zu", what, at);
  *out = j;
  return FM_OK;
}

fm_status fm_json_load(fm_json **out, const char *path, int64_t max_size, fm_error *err) {
  char *text;
  int64_t size;
  TRY(fm_file_load(&text, &size, path, max_size, err));
  fm_status status = fm_json_parse(out, text, (size_t)size, path, err);
  fm_free(text);
  return status;
}

void fm_json_free(fm_json *j) { cJSON_Delete(j); }

const fm_json *fm_json_get(const fm_json *obj, const char *key) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(obj, key);
  return v && !cJSON_IsNull(v) ? v : NULL;
}

fm_status fm_json_int(const fm_json *obj, const char *key, int64_t *out, fm_error *err) {
  double v = (double)*out;
  TRY(fm_json_num(obj, key, &v, err));
  if (!fm_json_get(obj, key)) return FM_OK;
  if (v != floor(v) || fabs(v) > 9007199254740992.0)
    return fm_fail(err, FM_EFORMAT, "%s: %g is no integer", key, v);
  *out = (int64_t)v;
  return FM_OK;
}

fm_status fm_json_num(const fm_json *obj, const char *key, double *out, fm_error *err) {
  const cJSON *v = fm_json_get(obj, key);
  if (!v) return FM_OK;
  if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
    return fm_fail(err, FM_EFORMAT, "%s: expected a number", key);
  *out = v->valuedouble;
  return FM_OK;
}

fm_status fm_json_bool(const fm_json *obj, const char *key, bool *out, fm_error *err) {
  const cJSON *v = fm_json_get(obj, key);
  if (!v) return FM_OK;
  if (!cJSON_IsBool(v)) return fm_fail(err, FM_EFORMAT, "%s: expected true or false", key);
  *out = cJSON_IsTrue(v);
  return FM_OK;
}

fm_status fm_json_str(const fm_json *obj, const char *key, const char **out, fm_error *err) {
  const cJSON *v = fm_json_get(obj, key);
  if (!v) return FM_OK;
  if (!cJSON_IsString(v)) return fm_fail(err, FM_EFORMAT, "%s: expected a string", key);
  *out = v->valuestring;
  return FM_OK;
}
