/*
** schema.h - what the files that turn a JSON Schema into rules share.
** Owner: a fm_schema lives for one call of fm_schema_read; it owns the schemas that are put together on the way (allOf).
*/
#ifndef FM_RUN_SCHEMA_H
#define FM_RUN_SCHEMA_H

#include "base/json.h"
#include "run/rules.h"

typedef struct fm_schema_rule { const fm_json *schema; int32_t rule; } fm_schema_rule;

typedef struct fm_schema {
  fm_rules *r;
  const fm_json *root;
  fm_schema_rule *made; int64_t n_made, cap_made;   /* each schema is one rule, so that they may name each other */
  fm_json **own; int64_t n_own, cap_own;
  int32_t *any; int64_t n_any, cap_any;             /* rules of any value, by how deep it stands in another */
  char path[256];                                   /* where we are, for messages: $.properties.name */
  int depth;
} fm_schema;

/* ---- schema.c: all return the node to go on from ---- */

/* Notes an error that names the path. */
int32_t fm_schema_refuse(fm_schema *w, fm_status code, const char *what);
/* The same about a key: 'not' is not supported at $.properties.name. */
int32_t fm_schema_refuse_key(fm_schema *w, const char *key);
/* Enters and leaves a part of the path; key NULL: index counts. Returns what leave wants. */
size_t  fm_schema_enter(fm_schema *w, const char *key, int64_t index);
void    fm_schema_leave(fm_schema *w, size_t mark);
/* A value of the schema, as a rule of its own. */
int32_t fm_schema_value(fm_schema *w, const fm_json *schema, int32_t next);
int32_t fm_schema_any(fm_schema *w, int64_t depth, int32_t next);
/* The schema behind $ref; NULL (and an error) when there is none. Others are themselves. */
const fm_json *fm_schema_target(fm_schema *w, const fm_json *schema);
/* A number that must be an integer of 0 or more. */
int64_t fm_schema_count(fm_schema *w, const fm_json *schema, const char *key, int64_t otherwise);

/* ---- schema_text.c: strings, and JSON's own marks ---- */

int32_t fm_schema_gap(fm_schema *w, int32_t next);                       /* nothing or a space */
int32_t fm_schema_string(fm_schema *w, int64_t min, int64_t max, int32_t next);
/* Keeps the digits of integers that no double holds, as valuestring; text: what root was read from. */
fm_status fm_schema_note_digits(fm_json *root, const char *text, size_t len, fm_error *err);
/* The bytes of a JSON value that is given: integers digit for digit, other numbers by the fewest digits that read back. */
int32_t fm_schema_literal(fm_schema *w, const fm_json *value, int32_t next);
/* One of the values of a list that `fits` lets pass. */
int32_t fm_schema_values(fm_schema *w, const fm_json *list, bool (*fits)(const fm_json *, unsigned), unsigned types, int32_t next);
int32_t fm_schema_key(fm_schema *w, const char *key, int32_t next);     /* "key": */
/* A key without escapes that is none of the object's own. */
int32_t fm_schema_other_key(fm_schema *w, const fm_json *properties, int32_t next);

/* ---- schema_number.c ---- */

/* A number, or an integer, within minimum, maximum, exclusiveMinimum and exclusiveMaximum of the schema (or NULL). */
int32_t fm_schema_number(fm_schema *w, const fm_json *schema, bool integer, int32_t next);

/* ---- schema_merge.c ---- */

/* A schema that asks for both; NULL (and an error) where that cannot be written as one. The writer owns it. */
const fm_json *fm_schema_both(fm_schema *w, const fm_json *a, const fm_json *b);
/* Whether no value can be of both. False when that cannot be seen. */
bool fm_schema_disjoint(fm_schema *w, const fm_json *a, const fm_json *b, int depth);
/* Types that a schema lets pass, one bit each. */
enum { FM_T_NULL = 1, FM_T_BOOLEAN = 2, FM_T_INTEGER = 4, FM_T_NUMBER = 8, FM_T_STRING = 16, FM_T_ARRAY = 32, FM_T_OBJECT = 64,
       FM_T_ALL = 127 };
unsigned fm_schema_types(fm_schema *w, const fm_json *schema);
/* Whether a value is of one of the types. */
bool fm_schema_is(const fm_json *value, unsigned types);
bool fm_schema_annotation(const char *key);

#endif
