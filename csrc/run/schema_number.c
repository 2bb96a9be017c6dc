/*
** schema_number.c - numbers within bounds, digit by digit.
** Numbers have at most 15 digits before the point, and those with bounds at most 15 in all: so many a double keeps apart, so that what
** the digits say holds for the number that is read back. Bounds beyond that are refused.
*/
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/schema.h"

enum { DIGITS = 15 };

/* A bound without its sign: digits before and behind the point, without zeros at the ends. */
typedef struct bound { bool given, exclusive; char whole[24], part[24]; int n_whole, n_part; } bound;

typedef struct range { fm_schema *w; bound lo, hi; bool integer; int n_whole; int32_t next; } range;

static int32_t digits(fm_schema *w, int lo, int hi, int32_t next) {
  return lo > hi ? FM_FAIL : fm_rules_bytes(w->r, (uint8_t)('0' + lo), (uint8_t)('0' + hi), next);
}

static int32_t many_digits(fm_schema *w, int min, int max, int32_t next) {
  return fm_rules_loop(w->r, digits(w, 0, 9, FM_END), min, max, next);
}

/* ---- without bounds --------------------------------------------------------------------------------- */

static int32_t literal(fm_schema *w, const char *s, int32_t next) { return fm_rules_literal(w->r, s, strlen(s), next); }

/* -? (0 | [1-9] [0-9]{0,14}), but an integer is no -0 */
static int32_t whole_number(fm_schema *w, bool integer, int32_t next) {
  int32_t big = digits(w, 1, 9, many_digits(w, 0, DIGITS - 1, next)), any = fm_rules_split(w->r, literal(w, "0", next), big);
  return fm_rules_split(w->r, literal(w, "-", integer ? big : any), any);
}

/* ([.] [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})? */
static int32_t fraction(fm_schema *w, int32_t next) {
  int32_t power = many_digits(w, 1, 2, next);
  int32_t sign = fm_rules_split(w->r, power, fm_rules_split(w->r, literal(w, "+", power), literal(w, "-", power)));
  next = fm_rules_split(w->r, next, fm_rules_split(w->r, literal(w, "e", sign), literal(w, "E", sign)));
  return fm_rules_split(w->r, next, literal(w, ".", many_digits(w, 1, DIGITS, next)));
}

/* ---- between bounds ----------------------------------------------------------------------------------- */

static int digit(const char *s, int n, int i) { return i < n ? s[i] - '0' : 0; }

/*
** The number may end here: i digits behind the point (-1: no point) were given, equal to those of the bound so far where
** on_lo or on_hi says so. Missing digits are zeros.
*/
static bool may_end(const range *g, int i, bool on_lo, bool on_hi) {
  int from = i > 0 ? i : 0;
  if (on_lo && (g->lo.n_part > from || g->lo.exclusive)) return false;
  return !(on_hi && g->hi.n_part <= from && g->hi.exclusive);
}

/* Digits behind the point from i on; the point itself for i = -1. */
static int32_t part(const range *g, int i, bool on_lo, bool on_hi) {
  fm_rules *r = g->w->r;
  int room = g->integer ? 0 : DIGITS - g->n_whole;
  int32_t node = i != 0 && may_end(g, i, on_lo, on_hi) ? g->next : FM_FAIL;
  if (i >= room || room == 0) return node;
  if (i < 0) return fm_rules_split(r, node, literal(g->w, ".", part(g, 0, on_lo, on_hi)));
  if (!on_lo && !on_hi) return fm_rules_split(r, node, many_digits(g->w, 1, room - i, g->next));
  int lo = on_lo ? digit(g->lo.part, g->lo.n_part, i) : -1, hi = on_hi ? digit(g->hi.part, g->hi.n_part, i) : 10;
  if (lo == hi) return fm_rules_split(r, node, digits(g->w, lo, lo, part(g, i + 1, true, true)));
  if (on_lo) node = fm_rules_split(r, node, digits(g->w, lo, lo, part(g, i + 1, true, false)));
  if (lo + 1 < hi) node = fm_rules_split(r, node, digits(g->w, lo + 1, hi - 1, part(g, i + 1, false, false)));
  return on_hi ? fm_rules_split(r, node, digits(g->w, hi, hi, part(g, i + 1, false, true))) : node;
}

/* Digit i of g->n_whole before the point. */
static int32_t whole(const range *g, int i, bool on_lo, bool on_hi) {
  if (i == g->n_whole) return part(g, -1, on_lo, on_hi);
  int least = i == 0 && g->n_whole > 1, lo = on_lo ? g->lo.whole[i] - '0' : least - 1, hi = on_hi ? g->hi.whole[i] - '0' : 10;
  if (lo == hi) return digits(g->w, lo, lo, whole(g, i + 1, true, true));
  int32_t node = on_lo ? digits(g->w, lo, lo, whole(g, i + 1, true, false)) : FM_FAIL;
  if (lo + 1 < hi) node = fm_rules_split(g->w->r, node, digits(g->w, lo + 1, hi - 1, whole(g, i + 1, false, false)));
  return on_hi ? fm_rules_split(g->w->r, node, digits(g->w, hi, hi, whole(g, i + 1, false, true))) : node;
}

/* Numbers of no sign between g's bounds, by how many digits they have before the point. */
static int32_t between(range *g) {
  int32_t node = FM_FAIL;
  int from = g->lo.given ? g->lo.n_whole : 1, to = g->hi.given ? g->hi.n_whole : DIGITS;
  for (g->n_whole = to; g->n_whole >= from; g->n_whole--)
    node = fm_rules_split(g->w->r, whole(g, 0, g->lo.given && g->n_whole == from, g->hi.given && g->n_whole == to), node);
  return node;
}

/* ---- bounds of a schema ---------------------------------------------------------------------------------- */

/* Digits of |v|; false: there are too many. */
static bool spell(bound *b, double v, bool exclusive) {
  char text[64];
  *b = (bound){ .given = true, .exclusive = exclusive };
  snprintf(text, sizeof text, "%.*f", DIGITS, fabs(v));
  char *point = strchr(text, '.');
  if (!point || point - text > DIGITS || strtod(text, NULL) != fabs(v)) return false;
  b->n_whole = (int)(point - text);
  memcpy(b->whole, text, (size_t)b->n_whole);
  // the shortest digits behind the point that still read as the same number
  for (b->n_part = 0; b->n_part < DIGITS; b->n_part++) {
    snprintf(text, sizeof text, "%.*f", b->n_part, fabs(v));
    if (strtod(text, NULL) == fabs(v)) break;
  }
  if (b->n_part) memcpy(b->part, strchr(text, '.') + 1, (size_t)b->n_part);
  return b->n_whole + b->n_part <= DIGITS;
}

/* A number of the schema; *given: it is there. */
static double number_of(fm_schema *w, const cJSON *schema, const char *key, bool *given) {
  const cJSON *v = schema ? cJSON_GetObjectItemCaseSensitive(schema, key) : NULL;
  *given = v != NULL;
  if (v && !(cJSON_IsNumber(v) && isfinite(v->valuedouble))) {
    size_t mark = fm_schema_enter(w, key, 0);
    fm_schema_refuse(w, FM_EFORMAT, "expected a number");
    fm_schema_leave(w, mark);
  }
  return v ? v->valuedouble : 0;
}

typedef struct limits { double lo, hi; bool has_lo, has_hi, lo_exclusive, hi_exclusive; } limits;

static limits limits_of(fm_schema *w, const cJSON *schema) {
  bool min, max, above, below;
  double lo = number_of(w, schema, "minimum", &min), hi = number_of(w, schema, "maximum", &max);
  double over = number_of(w, schema, "exclusiveMinimum", &above), under = number_of(w, schema, "exclusiveMaximum", &below);
  limits l = { lo, hi, min || above, max || below, above && (!min || over >= lo), below && (!max || under <= hi) };
  if (l.lo_exclusive) l.lo = over;
  if (l.hi_exclusive) l.hi = under;
  // no number of ours is that large
  if (l.lo <= -1e15) l.has_lo = false;
  if (l.hi >= 1e15) l.has_hi = false;
  return l;
}

/* Numbers of 0 and more. */
static int32_t upper_half(fm_schema *w, const limits *l, bool integer, int32_t next) {
  range g = { .w = w, .integer = integer, .next = next };
  if (l->has_hi && (l->hi < 0 || (l->hi_exclusive && l->hi <= 0))) return FM_FAIL;
  bool fine = !l->has_lo || l->lo < 0 || spell(&g.lo, l->lo, l->lo_exclusive);
  fine = fine && (!l->has_hi || spell(&g.hi, l->hi, l->hi_exclusive));
  return fine ? between(&g) : fm_schema_refuse(w, FM_EUNSUPPORTED, "a bound of more than 15 digits");
}

/* Numbers below 0: a sign, and the bounds the other way round. */
static int32_t lower_half(fm_schema *w, const limits *l, bool integer, int32_t next) {
  range g = { .w = w, .integer = integer, .next = next };
  if (l->has_lo && l->lo >= 0) return FM_FAIL;
  bool zero = !l->has_hi || l->hi >= 0;
  bool fine = spell(&g.lo, zero ? 0 : l->hi, zero || l->hi_exclusive);
  fine = fine && (!l->has_lo || spell(&g.hi, l->lo, l->lo_exclusive));
  return fine ? literal(w, "-", between(&g)) : fm_schema_refuse(w, FM_EUNSUPPORTED, "a bound of more than 15 digits");
}

int32_t fm_schema_number(fm_schema *w, const fm_json *schema, bool integer, int32_t next) {
  limits l = limits_of(w, schema);
  if (!l.has_lo && !l.has_hi) return whole_number(w, integer, integer ? next : fraction(w, next));
  if (l.has_lo && l.has_hi && l.lo > l.hi) return fm_schema_refuse(w, FM_EFORMAT, "no number is within the bounds");
  if (l.has_lo && l.lo >= 1e15) return fm_schema_refuse(w, FM_EUNSUPPORTED, "a bound of more than 15 digits");
  return fm_rules_split(w->r, upper_half(w, &l, integer, next), lower_half(w, &l, integer, next));
}
