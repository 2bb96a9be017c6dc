/*
** schema.c - JSON Schema to rules: a rule for each schema, in one line of JSON with at most a space behind commas and colons.
** Every document that comes out is valid; not every valid document can come: keys stand in the order of `properties`, other keys
** only where additionalProperties says so, whole numbers have at most 15 digits, and where anything may stand, at most
** MAX_ANY levels of it. Keywords that are not understood are refused by name: to leave one out would let wrong documents pass.
*/
#include "run/schema.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ANY = 12, MAX_DEPTH = 400 };

/* ---- where we are --------------------------------------------------------------------------------- */

int32_t fm_schema_refuse(fm_schema *w, fm_status code, const char *what) {
  return fm_rules_refuse(w->r, code, "schema, %s: %s", w->path, what);
}

int32_t fm_schema_refuse_key(fm_schema *w, const char *key) {
  return fm_rules_refuse(w->r, FM_EUNSUPPORTED, "schema, %s: the keyword '%s' is not supported", w->path, key);
}

size_t fm_schema_enter(fm_schema *w, const char *key, int64_t index) {
  size_t len = strlen(w->path), room = sizeof w->path - len;
  if (key) snprintf(w->path + len, room, ".%s", key);
  else snprintf(w->path + len, room, "[%lld]", (long long)index);
  return len;
}

void fm_schema_leave(fm_schema *w, size_t mark) { w->path[mark] = 0; }

int64_t fm_schema_count(fm_schema *w, const fm_json *schema, const char *key, int64_t otherwise) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(schema, key);
  if (!v) return otherwise;
  if (cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble < FM_MANY && v->valuedouble == (double)(int64_t)v->valuedouble)
    return (int64_t)v->valuedouble;
  size_t mark = fm_schema_enter(w, key, 0);
  fm_schema_refuse(w, FM_EFORMAT, "expected an integer from 0 to two thousand million");
  fm_schema_leave(w, mark);
  return otherwise;
}

/* ---- references -------------------------------------------------------------------------------------- */

static int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1; }

/* One part of a JSON pointer, unescaped; *at goes to the next '/' or the end. */
static bool pointer_part(const char **at, char *out, size_t room) {
  size_t n = 0;
  const char *s = *at;
  for (; *s && *s != '/'; s++) {
    char c = *s;
    if (c == '%' && hex(s[1]) >= 0 && hex(s[2]) >= 0) c = (char)(hex(s[1]) << 4 | hex(s[2])), s += 2;
    if (c == '~' && (s[1] == '0' || s[1] == '1')) c = *++s == '0' ? '~' : '/';
    if (n + 1 >= room) return false;
    out[n++] = c;
  }
  out[n] = 0;
  *at = s;
  return true;
}

/* What a local reference ("#", "#/$defs/name") points to; NULL: nothing. */
static const cJSON *resolve(const fm_schema *w, const char *ref) {
  const cJSON *at = w->root;
  char part[256];
  if (*ref++ != '#') return NULL;
  while (at && *ref) {
    if (*ref++ != '/' || !pointer_part(&ref, part, sizeof part)) return NULL;
    at = cJSON_IsArray(at) ? cJSON_GetArrayItem(at, atoi(part)) : cJSON_GetObjectItemCaseSensitive(at, part);
  }
  return at;
}

const fm_json *fm_schema_target(fm_schema *w, const fm_json *schema) {
  for (int i = 0; i < MAX_DEPTH; i++) {
    const cJSON *ref = cJSON_GetObjectItemCaseSensitive(schema, "$ref"), *to;
    if (!ref) return schema;
    if (!cJSON_IsString(ref) || !(to = resolve(w, ref->valuestring))) {
      fm_rules_refuse(w->r, cJSON_IsString(ref) && ref->valuestring[0] != '#' ? FM_EUNSUPPORTED : FM_EFORMAT,
                      "schema, %s: $ref '%s' leads nowhere within the schema", w->path,
                      cJSON_IsString(ref) ? ref->valuestring : "?");
      return NULL;
    }
    schema = to;
  }
  fm_schema_refuse(w, FM_EFORMAT, "$ref leads in a circle: this matches nothing");
  return NULL;
}

/* ---- any value ---------------------------------------------------------------------------------------- */

static int32_t literal(fm_schema *w, const char *s, int32_t next) { return fm_rules_literal(w->r, s, strlen(s), next); }

static int32_t comma(fm_schema *w, int32_t next) { return literal(w, ",", fm_schema_gap(w, next)); }

/* null, true, false, numbers and strings of any kind */
static int32_t any_scalar(fm_schema *w, int32_t next) {
  int32_t node = fm_rules_split(w->r, fm_schema_string(w, 0, FM_MANY, next), fm_schema_number(w, NULL, false, next));
  node = fm_rules_split(w->r, literal(w, "true", next), fm_rules_split(w->r, literal(w, "false", next), node));
  return fm_rules_split(w->r, literal(w, "null", next), node);
}

static int32_t member(fm_schema *w, int32_t value) {
  return fm_schema_string(w, 0, FM_MANY, literal(w, ":", fm_schema_gap(w, value)));
}

/* A list of `one`, with commas between; from min to max of them. */
static int32_t listed(fm_schema *w, int32_t first, int32_t more, int64_t min, int64_t max, int32_t next);

static int32_t any_rule(fm_schema *w, int64_t depth) {
  for (; w->n_any <= depth && w->r->status == FM_OK; w->n_any++) {
    fm_status status = fm_grow(&w->any, &w->cap_any, w->n_any + 1, sizeof *w->any, &w->r->err);
    if (status != FM_OK) return w->r->status = status, 0;
    w->any[w->n_any] = fm_rules_add(w->r, "any value", 9);
  }
  return w->r->status == FM_OK ? w->any[depth] : 0;
}

int32_t fm_schema_any(fm_schema *w, int64_t depth, int32_t next) {
  int32_t rule = any_rule(w, depth);
  if (w->r->status != FM_OK || w->r->rule[rule].start >= 0) return fm_rules_call(w->r, rule, next);
  int32_t node = any_scalar(w, FM_END);
  if (depth < MAX_ANY) {
    int32_t value = fm_schema_any(w, depth + 1, FM_END);
    int32_t list = literal(w, "[", listed(w, value, value, 0, FM_MANY, literal(w, "]", FM_END)));
    int32_t one = member(w, value), object = literal(w, "{", listed(w, one, one, 0, FM_MANY, literal(w, "}", FM_END)));
    node = fm_rules_split(w->r, object, fm_rules_split(w->r, list, node));
  }
  if (w->r->status == FM_OK) w->r->rule[rule].start = node;
  return fm_rules_call(w->r, rule, next);
}

/* ---- arrays ---------------------------------------------------------------------------------------------- */

/* Nodes up to their end, and then next. */
static int32_t once(fm_schema *w, int32_t body, int32_t next) {
  int32_t rule = fm_rules_add(w->r, w->path, strlen(w->path));
  if (w->r->status == FM_OK) w->r->rule[rule].start = body;
  return fm_rules_call(w->r, rule, next);
}

/* first and more are nodes up to their end. */
static int32_t listed(fm_schema *w, int32_t first, int32_t more, int64_t min, int64_t max, int32_t next) {
  if (max == 0) return min == 0 ? next : FM_FAIL;
  int64_t rest = max == FM_MANY ? FM_MANY : max - 1;
  int32_t tail = fm_rules_loop(w->r, comma(w, more), min > 0 ? min - 1 : 0, rest, next);
  int32_t node = once(w, first, tail);
  return min == 0 ? fm_rules_split(w->r, next, node) : node;
}

/* Items behind the given first ones. *none: there are to be none. */
static int32_t other_item(fm_schema *w, const cJSON *schema, bool must, bool *none) {
  const cJSON *items = cJSON_GetObjectItemCaseSensitive(schema, "items");
  *none = cJSON_IsFalse(items) || (!items && !must);
  if (*none) return FM_FAIL;
  if (!items) return fm_schema_any(w, 0, FM_END);
  size_t mark = fm_schema_enter(w, "items", 0);
  int32_t node = cJSON_IsArray(items) ? fm_schema_refuse(w, FM_EUNSUPPORTED, "a list here is of an old draft: use prefixItems")
                                      : fm_schema_value(w, items, FM_END);
  fm_schema_leave(w, mark);
  return node;
}

/* Two counts that bound one thing. */
static void least_and_most(fm_schema *w, const cJSON *schema, const char *lo, const char *hi, int64_t *min, int64_t *max) {
  *min = fm_schema_count(w, schema, lo, 0);
  *max = fm_schema_count(w, schema, hi, FM_MANY);
  if (*min > *max)
    fm_rules_refuse(w->r, FM_EFORMAT, "schema, %s: %s %lld is more than %s %lld", w->path, lo, (long long)*min, hi, (long long)*max);
}

static int32_t array(fm_schema *w, const cJSON *schema, int32_t next) {
  const cJSON *prefix = cJSON_GetObjectItemCaseSensitive(schema, "prefixItems");
  int64_t min, max;
  least_and_most(w, schema, "minItems", "maxItems", &min, &max);
  int64_t n = cJSON_GetArraySize(prefix);
  bool none;
  int32_t end = literal(w, "]", next), item = other_item(w, schema, n == 0 || min > n, &none);
  if (prefix && !cJSON_IsArray(prefix)) return fm_schema_refuse(w, FM_EFORMAT, "prefixItems is no list");
  if (n == 0) return literal(w, "[", listed(w, item, item, min, none ? 0 : max, end));
  int64_t more = max == FM_MANY ? FM_MANY : max > n ? max - n : 0;
  int32_t node = none ? (min > n ? FM_FAIL : end) : fm_rules_loop(w->r, comma(w, item), min > n ? min - n : 0, more, end);
  for (int64_t i = n; i-- > 0;) {
    size_t mark = fm_schema_enter(w, "prefixItems", 0), inner = fm_schema_enter(w, NULL, i);
    node = i < max ? fm_schema_value(w, cJSON_GetArrayItem(prefix, (int)i), node) : FM_FAIL;
    fm_schema_leave(w, inner);
    fm_schema_leave(w, mark);
    if (i > 0) node = comma(w, node);
    if (i >= min) node = fm_rules_split(w->r, end, node);
  }
  return literal(w, "[", node);
}

/* ---- objects ------------------------------------------------------------------------------------------------ */

static bool is_required(const cJSON *required, const char *key) {
  const cJSON *k;
  cJSON_ArrayForEach(k, required)
    if (cJSON_IsString(k) && strcmp(k->valuestring, key) == 0) return true;
  return false;
}

typedef struct object {
  fm_schema *w;
  const cJSON *properties, *required;
  const cJSON *other;                    /* additionalProperties; NULL: none are given */
  bool open;                             /* properties beside those named may come */
  int32_t next;
} object;

static int32_t other_value(object *o, int32_t next) {
  if (!o->other) return fm_schema_any(o->w, 0, next);
  size_t mark = fm_schema_enter(o->w, "additionalProperties", 0);
  int32_t node = fm_schema_value(o->w, o->other, next);
  fm_schema_leave(o->w, mark);
  return node;
}

/* What stands behind the named properties. some: there was one. */
static int32_t object_end(object *o, bool some) {
  fm_schema *w = o->w;
  int32_t end = literal(w, "}", o->next);
  if (!o->open) return end;
  int32_t one = fm_schema_other_key(w, o->properties, other_value(o, FM_END));
  return some ? fm_rules_loop(w->r, comma(w, one), 0, FM_MANY, end) : listed(w, one, one, 0, FM_MANY, end);
}

/* One named property in front of both ways on: node[some] is what follows when there was one before, or none. */
static void add_property(object *o, const char *key, const cJSON *schema, int32_t node[2]) {
  fm_schema *w = o->w;
  bool must = is_required(o->required, key);
  size_t outer = fm_schema_enter(w, "properties", 0), mark = fm_schema_enter(w, key, 0);
  int32_t value = schema ? fm_schema_value(w, schema, node[1]) : other_value(o, node[1]);
  fm_schema_leave(w, mark);
  fm_schema_leave(w, outer);
  int32_t with = fm_schema_key(w, key, value), behind = comma(w, with);
  node[0] = must ? with : fm_rules_split(w->r, with, node[0]);
  node[1] = must ? behind : fm_rules_split(w->r, behind, node[1]);
}

/* Required keys that `properties` does not name come last. */
static void add_required(object *o, int32_t node[2]) {
  const cJSON *key;
  for (int i = cJSON_GetArraySize(o->required); i-- > 0;) {
    key = cJSON_GetArrayItem(o->required, i);
    if (!cJSON_IsString(key)) {
      fm_schema_refuse(o->w, FM_EFORMAT, "required is a list of names");
    } else if (!cJSON_GetObjectItemCaseSensitive(o->properties, key->valuestring)) {
      if (cJSON_IsFalse(o->other)) fm_rules_refuse(o->w->r, FM_EFORMAT, "schema, %s: '%s' is required, and additionalProperties forbids it",
                                    o->w->path, key->valuestring);
      add_property(o, key->valuestring, NULL, node);
    }
  }
}

static int32_t object_value(fm_schema *w, const cJSON *schema, int32_t next) {
  const cJSON *other = cJSON_GetObjectItemCaseSensitive(schema, "additionalProperties");
  object o = { .w = w, .properties = cJSON_GetObjectItemCaseSensitive(schema, "properties"),
               .required = cJSON_GetObjectItemCaseSensitive(schema, "required"), .other = other, .next = next };
  if (o.properties && !cJSON_IsObject(o.properties)) return fm_schema_refuse(w, FM_EFORMAT, "properties is no object");
  if (o.required && !cJSON_IsArray(o.required)) return fm_schema_refuse(w, FM_EFORMAT, "required is a list of names");
  bool asked = false;                              // for keys that are not described: they may be anything
  for (const cJSON *k = o.required ? o.required->child : NULL; k; k = k->next)
    asked |= cJSON_IsString(k) && !cJSON_GetObjectItemCaseSensitive(o.properties, k->valuestring);
  o.open = other ? !cJSON_IsFalse(other) : !o.properties && !asked;
  int32_t node[2] = { object_end(&o, false), object_end(&o, true) };
  add_required(&o, node);
  // from the last to the first, without walking the list anew for each
  const cJSON *last = o.properties ? o.properties->child : NULL;
  while (last && last->next) last = last->next;
  for (const cJSON *p = last; p; p = p == o.properties->child ? NULL : p->prev) add_property(&o, p->string, p, node);
  return literal(w, "{", node[0]);
}

/* ---- one schema ---------------------------------------------------------------------------------------------- */

/* Checks that every keyword is one we know. */
static void check_keys(fm_schema *w, const cJSON *schema) {
  static const char *const known[] = { "type", "properties", "required", "additionalProperties", "enum", "const", "items",
    "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "anyOf", "oneOf", "allOf", "$ref" };
  const cJSON *k;
  cJSON_ArrayForEach(k, schema) {
    bool fine = fm_schema_annotation(k->string);
    for (size_t i = 0; i < sizeof known / sizeof *known && !fine; i++) fine = strcmp(k->string, known[i]) == 0;
    if (!fine) fm_schema_refuse_key(w, k->string);
  }
}

static int32_t typed(fm_schema *w, const cJSON *schema, unsigned types, int32_t next) {
  fm_rules *r = w->r;
  int32_t node = FM_FAIL;
  int64_t min, max;
  if (types & FM_T_NULL) node = literal(w, "null", next);
  if (types & FM_T_BOOLEAN) node = fm_rules_split(r, literal(w, "true", next), fm_rules_split(r, literal(w, "false", next), node));
  if (types & FM_T_NUMBER) node = fm_rules_split(r, fm_schema_number(w, schema, false, next), node);
  else if (types & FM_T_INTEGER) node = fm_rules_split(r, fm_schema_number(w, schema, true, next), node);
  if (types & FM_T_STRING) {
    least_and_most(w, schema, "minLength", "maxLength", &min, &max);
    node = fm_rules_split(r, fm_schema_string(w, min, max, next), node);
  }
  if (types & FM_T_ARRAY) node = fm_rules_split(r, array(w, schema, next), node);
  if (types & FM_T_OBJECT) node = fm_rules_split(r, object_value(w, schema, next), node);
  return node;
}

/* Keywords beside these that say something; NULL: none. */
static const char *beside(const cJSON *schema, const char *a, const char *b) {
  const cJSON *k;
  cJSON_ArrayForEach(k, schema)
    if (!fm_schema_annotation(k->string) && strcmp(k->string, a) != 0 && strcmp(k->string, b) != 0) return k->string;
  return NULL;
}

static int32_t given(fm_schema *w, const cJSON *schema, int32_t next) {
  const cJSON *one = cJSON_GetObjectItemCaseSensitive(schema, "const"), *list = cJSON_GetObjectItemCaseSensitive(schema, "enum");
  const char *other = beside(schema, one ? "const" : "enum", "type");
  if (other) return fm_rules_refuse(w->r, FM_EUNSUPPORTED, "schema, %s: the keyword '%s' is not supported beside const or enum",
                                    w->path, other);
  unsigned types = fm_schema_types(w, schema);
  if (one) return fm_schema_is(one, types) ? fm_schema_literal(w, one, next) : FM_FAIL;
  if (!cJSON_IsArray(list)) return fm_schema_refuse(w, FM_EFORMAT, "enum is a list of values");
  return fm_schema_values(w, list, fm_schema_is, types, next);
}

/* The schema without one of its keywords, owned by the writer; NULL without memory. */
static const cJSON *without(fm_schema *w, const cJSON *schema, const char *key) {
  fm_json_init();
  cJSON *copy = cJSON_Duplicate(schema, 1);
  if (!copy || fm_grow(&w->own, &w->cap_own, w->n_own + 1, sizeof *w->own, &w->r->err) != FM_OK) {
    cJSON_Delete(copy);
    fm_rules_refuse(w->r, FM_EMEMORY, "no memory for a copy of a schema");
    return NULL;
  }
  cJSON_DeleteItemFromObjectCaseSensitive(copy, key);
  w->own[w->n_own++] = copy;
  return copy;
}

/* anyOf, and oneOf where no value can be of two. What stands beside it is asked of every choice. */
static int32_t choices(fm_schema *w, const cJSON *schema, const char *key, int32_t next) {
  const cJSON *list = cJSON_GetObjectItemCaseSensitive(schema, key), *c, *d;
  const cJSON *base = beside(schema, key, key) ? without(w, schema, key) : NULL;
  int32_t node = FM_FAIL;
  if (!cJSON_IsArray(list) || !list->child) return fm_rules_refuse(w->r, FM_EFORMAT, "schema, %s: %s is a list of schemas", w->path, key);
  int64_t i = 0, j;
  cJSON_ArrayForEach(c, list) {
    j = 0;
    size_t outer = fm_schema_enter(w, key, 0), mark = fm_schema_enter(w, NULL, i);
    for (d = list->child; key[0] == 'o' && d != c; d = d->next, j++)
      if (!fm_schema_disjoint(w, d, c, 0))
        fm_rules_refuse(w->r, FM_EUNSUPPORTED,
                        "schema, %s: a value might be of choice %lld of oneOf as well; use anyOf where that is meant", w->path,
                        (long long)j);
    const cJSON *both = base ? fm_schema_both(w, base, c) : c;
    if (both) node = fm_rules_split(w->r, node, fm_schema_value(w, both, next));
    fm_schema_leave(w, mark);
    fm_schema_leave(w, outer);
    i++;
  }
  return node;
}

/* allOf: everything in one schema. */
static int32_t together(fm_schema *w, const cJSON *schema, int32_t next) {
  const cJSON *list = cJSON_GetObjectItemCaseSensitive(schema, "allOf"), *c, *all = without(w, schema, "allOf");
  if (!cJSON_IsArray(list)) return fm_schema_refuse(w, FM_EFORMAT, "allOf is a list of schemas");
  cJSON_ArrayForEach(c, list)
    if (all) all = fm_schema_both(w, all, c);
  return all ? fm_schema_value(w, all, next) : FM_FAIL;
}

static int32_t write(fm_schema *w, const cJSON *schema, int32_t next) {
  if (cJSON_IsTrue(schema)) return fm_schema_any(w, 0, next);
  if (cJSON_IsFalse(schema)) return FM_FAIL;
  if (!cJSON_IsObject(schema)) return fm_schema_refuse(w, FM_EFORMAT, "a schema is an object, true or false");
  check_keys(w, schema);
  if (cJSON_HasObjectItem(schema, "$ref")) {
    const char *other = beside(schema, "$ref", "$ref");
    if (other) return fm_rules_refuse(w->r, FM_EUNSUPPORTED, "schema, %s: the keyword '%s' is not supported beside $ref", w->path, other);
    const cJSON *to = fm_schema_target(w, schema);
    return to ? fm_schema_value(w, to, next) : FM_FAIL;
  }
  if (cJSON_HasObjectItem(schema, "allOf")) return together(w, schema, next);
  if (cJSON_HasObjectItem(schema, "anyOf")) return choices(w, schema, "anyOf", next);
  if (cJSON_HasObjectItem(schema, "oneOf")) return choices(w, schema, "oneOf", next);
  if (cJSON_HasObjectItem(schema, "const") || cJSON_HasObjectItem(schema, "enum")) return given(w, schema, next);
  return typed(w, schema, fm_schema_types(w, schema), next);
}

/* The rule of a schema; made is noted before it is written, so that it may contain itself. */
int32_t fm_schema_value(fm_schema *w, const fm_json *schema, int32_t next) {
  for (int64_t i = 0; i < w->n_made; i++)
    if (w->made[i].schema == schema) return fm_rules_call(w->r, w->made[i].rule, next);
  fm_status status = fm_grow(&w->made, &w->cap_made, w->n_made + 1, sizeof *w->made, &w->r->err);
  if (status != FM_OK && w->r->status == FM_OK) w->r->status = status;
  if (++w->depth > MAX_DEPTH) fm_schema_refuse(w, FM_EUNSUPPORTED, "schemas nested too deeply, or allOf for ever");
  if (w->r->status != FM_OK) return FM_FAIL;
  int32_t rule = fm_rules_add(w->r, w->path, strlen(w->path));
  w->made[w->n_made++] = (fm_schema_rule){ schema, rule };
  int32_t start = write(w, schema, FM_END);
  if (w->r->status == FM_OK) w->r->rule[rule].start = start;
  w->depth--;
  return fm_rules_call(w->r, rule, next);
}

/* ---- the text --------------------------------------------------------------------------------------------------- */

/* Valid UTF-8 without a \u0000, which C strings could not hold. */
static fm_status check_text(const char *s, size_t len, fm_error *err) {
  uint32_t c;
  for (size_t i = 0, n; i < len; i += n) {
    n = fm_utf8_read(s + i, len - i, &c);
    if (!n) return fm_fail(err, FM_EFORMAT, "schema: invalid UTF-8 at byte %zu", i);
    if (c != '\\') continue;
    if (len - i >= 6 && memcmp(s + i, "\\u0000", 6) == 0)
      return fm_fail(err, FM_EUNSUPPORTED, "schema: a zero byte in a text (\\u0000)");
    n = i + 1 < len ? 2 : 1;
    if (n == 2 && (uint8_t)s[i + 1] >= 0x80) n = 1;
  }
  return FM_OK;
}

fm_status fm_schema_read(fm_rules *r, const char *text, size_t len, fm_error *err) {
  fm_json *root;
  TRY(check_text(text, len, err));
  TRY(fm_json_parse(&root, text, len, "schema", err));
  fm_schema w = { .r = r, .root = root, .path = "$" };
  fm_status status = fm_schema_note_digits(root, text, len, err);
  if (status == FM_OK) fm_schema_value(&w, root, FM_END);
  if (r->status != FM_OK && err) *err = r->err;
  if (status == FM_OK) status = r->status == FM_OK ? fm_rules_check(r, w.made[0].rule, err) : r->status;
  for (int64_t i = 0; i < w.n_own; i++) fm_json_free(w.own[i]);
  fm_free(w.own);
  fm_free(w.made);
  fm_free(w.any);
  fm_json_free(root);
  return status;
}
