/*
** schema_text.c - strings of JSON: any of some length, given ones, and keys.
*/
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/schema.h"

static int32_t byte(fm_schema *w, char c, int32_t next) { return fm_rules_bytes(w->r, (uint8_t)c, (uint8_t)c, next); }

int32_t fm_schema_gap(fm_schema *w, int32_t next) { return fm_rules_split(w->r, byte(w, ' ', next), next); }

/* ---- any string --------------------------------------------------------------------------------- */

/* One of the characters of a word. */
static int32_t one_of(fm_schema *w, const char *chars, int32_t next) {
  int32_t node = FM_FAIL;
  for (size_t i = strlen(chars); i-- > 0;) node = fm_rules_split(w->r, byte(w, chars[i], next), node);
  return node;
}

static int32_t hex_but(fm_schema *w, bool zero, int32_t next) {
  fm_range range[] = { { '0' + !zero, '9' }, { 'a', 'f' }, { 'A', 'F' } };
  return fm_rules_class(w->r, range, 3, next);
}

/* Four digits behind \u: no half of a pair (a pair would count twice), and no zero, which ends strings elsewhere. */
static int32_t hex_code(fm_schema *w, int32_t next) {
  int32_t h1 = hex_but(w, true, next), h2 = hex_but(w, true, h1), h3 = hex_but(w, true, h2);
  int32_t not0 = hex_but(w, false, next);                                      // 000x
  int32_t zero = fm_rules_split(w->r, hex_but(w, false, h1), byte(w, '0', not0));    // 00xx
  zero = fm_rules_split(w->r, hex_but(w, false, h2), byte(w, '0', zero));            // 0xxx
  fm_range low[] = { { '0', '7' } }, lead[] = { { '1', '9' }, { 'a', 'c' }, { 'A', 'C' }, { 'e', 'f' }, { 'E', 'F' } };
  int32_t d = one_of(w, "dD", fm_rules_class(w->r, low, 1, h2));
  return fm_rules_split(w->r, fm_rules_class(w->r, lead, 5, h3), fm_rules_split(w->r, d, byte(w, '0', zero)));
}

/* Characters that stand for themselves, but those of `not`. */
static int32_t plain(fm_schema *w, const fm_range *not, int64_t n, int32_t next) {
  fm_range *range = fm_array(n + 3, sizeof *range);
  if (!range) return fm_rules_refuse(w->r, FM_EMEMORY, "no memory for a class of %lld ranges", (long long)n);
  if (n) memcpy(range, not, (size_t)n * sizeof *range);
  range[n] = (fm_range){ 0, 0x1F };
  range[n + 1] = (fm_range){ '"', '"' };
  range[n + 2] = (fm_range){ '\\', '\\' };
  int32_t node = fm_rules_class_not(w->r, range, n + 3, next);
  fm_free(range);
  return node;
}

int32_t fm_schema_string(fm_schema *w, int64_t min, int64_t max, int32_t next) {
  int32_t escape = fm_rules_split(w->r, one_of(w, "\"\\/bfnrt", FM_END), byte(w, 'u', hex_code(w, FM_END)));
  int32_t one = fm_rules_split(w->r, plain(w, NULL, 0, FM_END), byte(w, '\\', escape));
  return byte(w, '"', fm_rules_loop(w->r, one, min, max, byte(w, '"', next)));
}

/* ---- given values --------------------------------------------------------------------------------- */

enum { DOUBLE_DIGITS = 15 };              /* integers of no more are doubles, and need no text of their own */

/* Behind a string that begins here. */
static const char *past_string(const char *s) {
  for (s++; *s && *s != '"'; s++)
    if (*s == '\\' && s[1]) s++;
  return *s ? s + 1 : s;
}

/* Where the next number of a text begins. */
static const char *to_number(const char *s) {
  while (*s && *s != '-' && !(*s >= '0' && *s <= '9')) s = *s == '"' ? past_string(s) : s + 1;
  return s;
}

/* Numbers of a tree stand in the order of their text. */
static fm_status note_digits(cJSON *v, const char **at, fm_error *err) {
  for (cJSON *c = v->child; c; c = c->next) TRY(note_digits(c, at, err));
  if (!cJSON_IsNumber(v)) return FM_OK;
  const char *start = to_number(*at), *digits = start + (*start == '-');
  size_t n = strspn(digits, "0123456789"), whole = strspn(start, "0123456789+-.eE");
  *at = start + whole;
  if (!isfinite(v->valuedouble)) return fm_fail(err, FM_EUNSUPPORTED, "schema: %.40s is too large for a number", start);
  if (n <= DOUBLE_DIGITS || digits + n != *at || *digits == '0') return FM_OK;
  v->valuestring = fm_strndup(start, whole);
  return v->valuestring ? FM_OK : fm_no_memory(err, (int64_t)whole);
}

fm_status fm_schema_note_digits(fm_json *root, const char *text, size_t len, fm_error *err) {
  char *copy = fm_strndup(text, len);              // with a zero behind
  const char *at = copy;
  fm_status status = copy ? note_digits(root, &at, err) : fm_no_memory(err, (int64_t)len);
  fm_free(copy);
  return status;
}

/* The fewest digits that read back as the same number. */
static void spell(double v, char out[32]) {
  for (int n = DOUBLE_DIGITS; n <= 17; n++) {
    snprintf(out, 32, "%.*g", n, v);
    if (strtod(out, NULL) == v) return;
  }
}

/* Turns numbers into their texts: cJSON's own way of writing them drops digits. */
static bool spell_numbers(cJSON *v) {
  char text[32];
  for (cJSON *c = v->child; c; c = c->next)
    if (!spell_numbers(c)) return false;
  if (!cJSON_IsNumber(v)) return true;
  v->type = cJSON_Raw | (v->type & ~0xFF);
  if (v->valuestring) return true;
  spell(v->valuedouble, text);
  return (v->valuestring = fm_strndup(text, strlen(text))) != NULL;
}

/* Text of a value, to be freed with fm_free; NULL (and an error) without memory. */
static char *print(fm_schema *w, const cJSON *value) {
  fm_json_init();
  cJSON *copy = cJSON_Duplicate(value, 1);
  char *text = copy && spell_numbers(copy) ? cJSON_PrintUnformatted(copy) : NULL;
  cJSON_Delete(copy);
  if (!text) fm_rules_refuse(w->r, FM_EMEMORY, "no memory for a value");
  return text;
}

int32_t fm_schema_literal(fm_schema *w, const fm_json *value, int32_t next) {
  char *text = print(w, value);
  int32_t node = text ? fm_rules_literal(w->r, text, strlen(text), next) : FM_FAIL;
  fm_free(text);
  return node;
}

int32_t fm_schema_values(fm_schema *w, const fm_json *list, bool (*fits)(const fm_json *, unsigned), unsigned types,
                         int32_t next) {
  int64_t n = 0, size = cJSON_GetArraySize(list);
  int32_t node = FM_FAIL;
  const cJSON *v;
  fm_word *word = fm_array(size, sizeof *word);
  if (!word) return fm_rules_refuse(w->r, FM_EMEMORY, "no memory for %lld values", (long long)size);
  cJSON_ArrayForEach(v, list) {
    if (!fits(v, types)) continue;
    char *text = print(w, v);
    if (!text) break;
    word[n++] = (fm_word){ text, strlen(text) };
  }
  fm_word *sorted = fm_array(n, sizeof *sorted);   // duplicates are dropped from it, and word must be freed whole
  if (sorted && n) memcpy(sorted, word, (size_t)n * sizeof *word);
  if (sorted) node = fm_rules_words(w->r, sorted, n, next);
  else fm_rules_refuse(w->r, FM_EMEMORY, "no memory for %lld values", (long long)n);
  for (int64_t i = 0; i < n; i++) fm_free((void *)word[i].s);
  fm_free(word);
  fm_free(sorted);
  return node;
}

/* ---- keys -------------------------------------------------------------------------------------------- */

int32_t fm_schema_key(fm_schema *w, const char *key, int32_t next) {
  fm_json_init();
  cJSON *s = cJSON_CreateString(key);
  if (!s) return fm_rules_refuse(w->r, FM_EMEMORY, "no memory for a key");
  int32_t node = fm_schema_literal(w, s, byte(w, ':', fm_schema_gap(w, next)));
  cJSON_Delete(s);
  return node;
}

/* The rest of a key whose beginning it has in common with those of the properties that `begins` names. */
static int32_t other_rest(fm_schema *w, const cJSON *properties, const char *begin, size_t len, int32_t next) {
  const cJSON *p;
  bool ends = false;
  int64_t n = 0, size = cJSON_GetArraySize(properties);
  int32_t node = FM_FAIL, free_rest = fm_rules_loop(w->r, plain(w, NULL, 0, FM_END), 0, FM_MANY, byte(w, '"', next));
  fm_range *taken = fm_array(size, sizeof *taken);
  if (!taken) return fm_rules_refuse(w->r, FM_EMEMORY, "no memory for %lld keys", (long long)size);
  cJSON_ArrayForEach(p, properties) {
    uint32_t c;
    size_t whole = strlen(p->string), more;
    if (whole < len || memcmp(p->string, begin, len) != 0) continue;
    ends |= whole == len;
    if (whole == len || !(more = fm_utf8_read(p->string + len, whole - len, &c))) continue;
    bool seen = c < ' ' || c == '"' || c == '\\';  // such keys are never spelt without escapes
    for (int64_t i = 0; i < n; i++) seen |= taken[i].lo == c;
    if (seen) continue;
    taken[n++] = (fm_range){ c, c };
    int32_t rest = other_rest(w, properties, p->string, len + more, next);
    node = fm_rules_split(w->r, fm_rules_literal(w->r, p->string + len, more, rest), node);
  }
  node = fm_rules_split(w->r, plain(w, taken, n, free_rest), node);
  if (!ends) node = fm_rules_split(w->r, byte(w, '"', next), node);
  fm_free(taken);
  return node;
}

int32_t fm_schema_other_key(fm_schema *w, const fm_json *properties, int32_t next) {
  const cJSON *p;
  cJSON_ArrayForEach(p, properties)
    if (strlen(p->string) > 256) return fm_schema_refuse(w, FM_EUNSUPPORTED, "other properties beside one with a name of over 256 bytes");
  return byte(w, '"', other_rest(w, properties, "", 0, byte(w, ':', fm_schema_gap(w, next))));
}
