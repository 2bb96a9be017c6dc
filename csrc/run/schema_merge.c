/*
** schema_merge.c - two schemas at once: what asks for both, and whether anything could be of both.
*/
#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

#include "run/schema.h"

bool fm_schema_annotation(const char *key) {
  static const char *const say_nothing[] = { "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "deprecated", "readOnly", "writeOnly" };
  for (size_t i = 0; i < sizeof say_nothing / sizeof *say_nothing; i++)
    if (strcmp(key, say_nothing[i]) == 0) return true;
  return false;
}

/* ---- types ------------------------------------------------------------------------------------------ */

static unsigned type_named(const char *name) {
  static const struct { const char *name; unsigned bits; } types[] = { { "null", FM_T_NULL }, { "boolean", FM_T_BOOLEAN },
    { "integer", FM_T_INTEGER }, { "number", FM_T_NUMBER | FM_T_INTEGER }, { "string", FM_T_STRING }, { "array", FM_T_ARRAY },
    { "object", FM_T_OBJECT } };
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (strcmp(types[i].name, name) == 0) return types[i].bits;
  return 0;
}

/* A schema without a type lets all pass; we write what its other keywords are about. */
static unsigned implied(const cJSON *schema) {
  static const struct { const char *key; unsigned bits; } about[] = { { "properties", FM_T_OBJECT }, { "required", FM_T_OBJECT },
    { "additionalProperties", FM_T_OBJECT }, { "items", FM_T_ARRAY }, { "prefixItems", FM_T_ARRAY }, { "minItems", FM_T_ARRAY },
    { "maxItems", FM_T_ARRAY }, { "minLength", FM_T_STRING }, { "maxLength", FM_T_STRING }, { "minimum", FM_T_NUMBER | FM_T_INTEGER },
    { "maximum", FM_T_NUMBER | FM_T_INTEGER }, { "exclusiveMinimum", FM_T_NUMBER | FM_T_INTEGER },
    { "exclusiveMaximum", FM_T_NUMBER | FM_T_INTEGER } };
  unsigned bits = 0;
  for (size_t i = 0; i < sizeof about / sizeof *about; i++)
    if (cJSON_HasObjectItem(schema, about[i].key)) bits |= about[i].bits;
  return bits ? bits : FM_T_ALL;
}

unsigned fm_schema_types(fm_schema *w, const fm_json *schema) {
  const cJSON *type = cJSON_GetObjectItemCaseSensitive(schema, "type"), *t;
  unsigned bits = 0;
  if (!type) return implied(schema);
  if (cJSON_IsString(type)) bits = type_named(type->valuestring);
  for (t = cJSON_IsArray(type) ? type->child : NULL; t; t = t->next) {
    unsigned one = cJSON_IsString(t) ? type_named(t->valuestring) : 0;
    if (!one) fm_schema_refuse(w, FM_EFORMAT, "type names no type of JSON Schema");
    bits |= one;
  }
  if (!bits) fm_schema_refuse(w, FM_EFORMAT, "type is no type of JSON Schema, nor a list of them");
  return bits;
}

bool fm_schema_is(const fm_json *value, unsigned types) {
  if (cJSON_IsNull(value)) return types & FM_T_NULL;
  if (cJSON_IsBool(value)) return types & FM_T_BOOLEAN;
  if (cJSON_IsString(value)) return types & FM_T_STRING;
  if (cJSON_IsArray(value)) return types & FM_T_ARRAY;
  if (cJSON_IsObject(value)) return types & FM_T_OBJECT;
  return types & FM_T_NUMBER || (types & FM_T_INTEGER && value->valuedouble == floor(value->valuedouble));
}

/* ---- both --------------------------------------------------------------------------------------------- */

/* Takes value into object under key, whatever became of both. */
static bool put(fm_schema *w, cJSON *object, const char *key, cJSON *value) {
  if (value) cJSON_DeleteItemFromObjectCaseSensitive(object, key);
  if (value && cJSON_AddItemToObject(object, key, value)) return true;
  cJSON_Delete(value);
  fm_rules_refuse(w->r, FM_EMEMORY, "no memory to put schemas together");
  return false;
}

/* { "allOf": [a, b] } */
static cJSON *pair(const cJSON *a, const cJSON *b) {
  cJSON *both = cJSON_CreateObject(), *list = both ? cJSON_AddArrayToObject(both, "allOf") : NULL;
  cJSON *x = cJSON_Duplicate(a, 1), *y = cJSON_Duplicate(b, 1);
  if (list && x && y) {
    cJSON_AddItemToArray(list, x);
    cJSON_AddItemToArray(list, y);
    return both;
  }
  cJSON_Delete(both);
  cJSON_Delete(x);
  cJSON_Delete(y);
  return NULL;
}

/* Properties of both; one that both have must be of both. */
static bool join_properties(fm_schema *w, cJSON *into, const cJSON *more) {
  const cJSON *p;
  cJSON_ArrayForEach(p, more) {
    const cJSON *had = cJSON_GetObjectItemCaseSensitive(into, p->string);
    if (had && cJSON_Compare(had, p, 1)) continue;
    if (!put(w, into, p->string, had ? pair(had, p) : cJSON_Duplicate(p, 1))) return false;
  }
  return true;
}

static bool join_lists(fm_schema *w, cJSON *into, const cJSON *more) {
  const cJSON *v;
  cJSON_ArrayForEach(v, more) {
    cJSON *copy = cJSON_Duplicate(v, 1);
    if (copy && cJSON_AddItemToArray(into, copy)) continue;
    cJSON_Delete(copy);
    fm_rules_refuse(w->r, FM_EMEMORY, "no memory to put schemas together");
    return false;
  }
  return true;
}

static bool join_types(fm_schema *w, cJSON *into, unsigned bits) {
  static const char *const name[] = { "null", "boolean", "integer", "number", "string", "array", "object" };
  cJSON *list = cJSON_CreateArray();
  if (!bits) fm_schema_refuse(w, FM_EFORMAT, "no type is of all parts: this matches nothing");
  for (int i = 0; i < 7 && list; i++)
    if (bits >> i & 1) cJSON_AddItemToArray(list, cJSON_CreateString(name[i]));
  return put(w, into, "type", list);
}

/* Of two bounds the tighter one. */
static bool join_bound(cJSON *into, const cJSON *more, bool larger) {
  if (!cJSON_IsNumber(into) || !cJSON_IsNumber(more)) return false;
  if ((more->valuedouble > into->valuedouble) == larger) cJSON_SetNumberValue(into, more->valuedouble);
  return true;
}

static bool join_key(fm_schema *w, cJSON *into, const cJSON *more) {
  static const char *const low[] = { "minimum", "exclusiveMinimum", "minLength", "minItems" };
  static const char *const high[] = { "maximum", "exclusiveMaximum", "maxLength", "maxItems" };
  cJSON *had = cJSON_GetObjectItemCaseSensitive(into, more->string);
  if (!had) return put(w, into, more->string, cJSON_Duplicate(more, 1));
  if (fm_schema_annotation(more->string) || cJSON_Compare(had, more, 1)) return true;
  if (strcmp(more->string, "properties") == 0) return join_properties(w, had, more);
  if (strcmp(more->string, "required") == 0) return join_lists(w, had, more);
  for (int i = 0; i < 4; i++) {
    if (strcmp(more->string, low[i]) == 0 && join_bound(had, more, true)) return true;
    if (strcmp(more->string, high[i]) == 0 && join_bound(had, more, false)) return true;
  }
  fm_rules_refuse(w->r, FM_EUNSUPPORTED, "schema, %s: the keyword '%s' is not supported in two parts at once", w->path, more->string);
  return false;
}

static bool same_keys(const cJSON *a, const cJSON *b) {
  const cJSON *p;
  cJSON_ArrayForEach(p, a)
    if (!cJSON_GetObjectItemCaseSensitive(b, p->string)) return false;
  return cJSON_GetArraySize(a) == cJSON_GetArraySize(b);
}

/* additionalProperties speaks of its own schema's properties alone: two schemas with different ones cannot share it. */
static bool may_join(fm_schema *w, const cJSON *a, const cJSON *b) {
  const cJSON *x = cJSON_GetObjectItemCaseSensitive(a, "additionalProperties");
  const cJSON *y = cJSON_GetObjectItemCaseSensitive(b, "additionalProperties");
  bool open = (!x || cJSON_IsTrue(x)) && (!y || cJSON_IsTrue(y));
  if (open || same_keys(cJSON_GetObjectItemCaseSensitive(a, "properties"), cJSON_GetObjectItemCaseSensitive(b, "properties")))
    return true;
  fm_rules_refuse(w->r, FM_EUNSUPPORTED, "schema, %s: the keyword 'additionalProperties' is not supported in one of several parts",
                  w->path);
  return false;
}

static bool join(fm_schema *w, cJSON *into, const cJSON *more) {
  const cJSON *k;
  unsigned a = fm_schema_types(w, into), b = fm_schema_types(w, more);
  bool types = cJSON_HasObjectItem(into, "type") && cJSON_HasObjectItem(more, "type");
  if (!may_join(w, into, more)) return false;
  cJSON_ArrayForEach(k, more) {
    if (types && strcmp(k->string, "type") == 0) continue;
    if (!join_key(w, into, k)) return false;
  }
  return !types || join_types(w, into, a & b);
}

const fm_json *fm_schema_both(fm_schema *w, const fm_json *a, const fm_json *b) {
  a = fm_schema_target(w, a);
  b = fm_schema_target(w, b);
  if (!a || !b || cJSON_IsFalse(a) || cJSON_IsTrue(b)) return a && b ? a : NULL;
  if (cJSON_IsFalse(b) || cJSON_IsTrue(a)) return b;
  if (!cJSON_IsObject(a) || !cJSON_IsObject(b)) {
    fm_schema_refuse(w, FM_EFORMAT, "a schema is an object, true or false");
    return NULL;
  }
  fm_json_init();
  cJSON *both = cJSON_Duplicate(a, 1);
  if (!both || fm_grow(&w->own, &w->cap_own, w->n_own + 1, sizeof *w->own, &w->r->err) != FM_OK) {
    cJSON_Delete(both);
    fm_rules_refuse(w->r, FM_EMEMORY, "no memory to put schemas together");
    return NULL;
  }
  w->own[w->n_own++] = both;
  return join(w, both, b) ? both : NULL;
}

/* ---- either ----------------------------------------------------------------------------------------------- */

/* The values that a schema lists: enum, or const as a list of one; NULL: it lists none. */
static const cJSON *listed(const cJSON *schema, bool *one) {
  const cJSON *value = cJSON_GetObjectItemCaseSensitive(schema, "const");
  *one = value != NULL;
  return value ? value : cJSON_GetObjectItemCaseSensitive(schema, "enum");
}

static bool disjoint_values(const cJSON *a, bool a_one, const cJSON *b, bool b_one) {
  for (const cJSON *x = a_one ? a : a->child; x; x = a_one ? NULL : x->next)
    for (const cJSON *y = b_one ? b : b->child; y; y = b_one ? NULL : y->next)
      if (cJSON_Compare(x, y, 1)) return false;
  return true;
}

/* Types of the values that may come. */
static unsigned kinds(fm_schema *w, const cJSON *schema, const cJSON *values, bool one) {
  unsigned bits = 0;
  if (!values) return cJSON_HasObjectItem(schema, "type") ? fm_schema_types(w, schema) : FM_T_ALL;
  for (const cJSON *v = one ? values : values->child; v; v = one ? NULL : v->next)
    for (unsigned bit = 1; bit < FM_T_ALL; bit *= 2) bits |= fm_schema_is(v, bit) ? bit : 0;
  return bits;
}

static bool requires(const cJSON *schema, const char *key) {
  const cJSON *k;
  cJSON_ArrayForEach(k, cJSON_GetObjectItemCaseSensitive(schema, "required"))
    if (cJSON_IsString(k) && strcmp(k->valuestring, key) == 0) return true;
  return false;
}

/* a requires a key that b either forbids, or requires to be something else. */
static bool told_by_key(fm_schema *w, const cJSON *a, const cJSON *b, int depth) {
  const cJSON *k, *of_a = cJSON_GetObjectItemCaseSensitive(a, "properties"), *of_b = cJSON_GetObjectItemCaseSensitive(b, "properties");
  bool closed = cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(b, "additionalProperties"));
  cJSON_ArrayForEach(k, cJSON_GetObjectItemCaseSensitive(a, "required")) {
    const char *key = cJSON_IsString(k) ? k->valuestring : "";
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(of_a, key), *y = cJSON_GetObjectItemCaseSensitive(of_b, key);
    if (closed && !y) return true;
    if (x && y && requires(b, key) && fm_schema_disjoint(w, x, y, depth + 1)) return true;
  }
  return false;
}

bool fm_schema_disjoint(fm_schema *w, const fm_json *a, const fm_json *b, int depth) {
  bool one_a, one_b;
  if (depth > 8 || !(a = fm_schema_target(w, a)) || !(b = fm_schema_target(w, b))) return false;
  if (cJSON_IsFalse(a) || cJSON_IsFalse(b)) return true;
  if (!cJSON_IsObject(a) || !cJSON_IsObject(b)) return false;
  const cJSON *x = listed(a, &one_a), *y = listed(b, &one_b);
  if (x && y) return disjoint_values(x, one_a, y, one_b);
  unsigned common = kinds(w, a, x, one_a) & kinds(w, b, y, one_b);
  if (!common) return true;
  return common == FM_T_OBJECT && (told_by_key(w, a, b, depth) || told_by_key(w, b, a, depth));
}
