/*
** gbnf.c - GBNF, the grammar notation of llama.cpp, to rules.
**
**   rule   name ::= choice          ends with its line; inside ( ) and behind | and ::= lines may break
**   choice sequence | sequence ...
**   items  "text"  [a-z^...]  [^...]  .  name  ( choice ), each with ? * + {m} {m,} {m,n} behind it
**   escapes \n \r \t \\ \" \[ \] \- \^ \xHH \uHHHH \UHHHHHHHH; comments from # to the end of the line
**
** The document is the rule `root`. A choice and its items are read into lists that start at their last one, because nodes are
** made from the end.
*/
#include <string.h>

#include "base/hash.h"
#include "run/rules.h"

enum { MAX_DEPTH = 100, MAX_INLINE = 24 };

typedef enum item_kind { TEXT, CLASS, NAME, GROUP } item_kind;

typedef struct choice { struct choice *before; struct item *last; } choice;

typedef struct item {
  struct item *before;
  item_kind kind;
  int64_t min, max;
  const char *text; size_t len;          /* TEXT */
  fm_range *range; int64_t n; bool not;  /* CLASS */
  int32_t rule;                          /* NAME */
  choice *group;                         /* GROUP */
} item;

/* A rule while it is read. weight: its items, when it has neither names nor endless repetitions; else more than MAX_INLINE. */
typedef struct definition { choice *body; const char *used; bool defined; int weight; } definition;

typedef struct parser {
  const char *text, *at, *end;
  int depth;
  fm_rules *r;
  definition *def; int64_t cap_def;
  int32_t *slot; int64_t n_slots;        /* rules by name, number + 1; 0: empty */
  fm_arena arena;
  fm_error *err;
} parser;

/* ---- reading ------------------------------------------------------------------------------------ */

static fm_status wrong(parser *p, const char *at, const char *what) {
  int line = 1, column = 1;
  for (const char *s = p->text; s < at; s++) {
    column = *s == '\n' ? 1 : column + (((uint8_t)*s & 0xC0) != 0x80);
    line += *s == '\n';
  }
  return fm_fail(p->err, FM_EFORMAT, "grammar, line %d, column %d: %s", line, column, what);
}

static void *need(parser *p, int64_t size) {
  void *q = fm_arena_alloc(&p->arena, size);
  if (q) memset(q, 0, (size_t)size);
  else fm_no_memory(p->err, size);
  return q;
}

static bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* The next character; 0 at the end. */
static char peek(const parser *p) { return p->at < p->end ? *p->at : 0; }

/* Past spaces and comments, and line ends where they may stand. */
static void skip(parser *p, bool lines) {
  for (char c; (c = peek(p)) != 0; p->at++) {
    if (c == '#') while (p->at + 1 < p->end && p->at[1] != '\n') p->at++;
    else if (c != ' ' && c != '\t' && !(lines && (c == '\n' || c == '\r'))) return;
  }
}

static int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static fm_status read_hex(parser *p, int digits, uint32_t *out) {
  *out = 0;
  for (int i = 0; i < digits; i++, p->at++) {
    int h = p->at < p->end ? hex(*p->at) : -1;
    if (h < 0) return wrong(p, p->at, "an escape lacks hexadecimal digits");
    *out = *out << 4 | (uint32_t)h;
  }
  if (*out > 0x10FFFF || (*out >= 0xD800 && *out <= 0xDFFF)) return wrong(p, p->at, "an escape is no character");
  return FM_OK;
}

/* One character of a text or a class. */
static fm_status read_point(parser *p, uint32_t *out) {
  const char *start = p->at;
  if (*p->at != '\\') {
    size_t n = fm_utf8_read(p->at, (size_t)(p->end - p->at), out);
    if (!n) return wrong(p, p->at, "invalid UTF-8");
    p->at += n;
    return FM_OK;
  }
  p->at++;
  char c = peek(p);
  p->at++;
  switch (c) {
    case 'x': return read_hex(p, 2, out);
    case 'u': return read_hex(p, 4, out);
    case 'U': return read_hex(p, 8, out);
    case 'n': *out = '\n'; return FM_OK;
    case 'r': *out = '\r'; return FM_OK;
    case 't': *out = '\t'; return FM_OK;
    case '\\': case '"': case '[': case ']': case '-': case '^': *out = (uint8_t)c; return FM_OK;
    default: return wrong(p, start, "an unknown escape");
  }
}

static size_t put_point(char *s, uint32_t c) {
  if (c < 0x80) return s[0] = (char)c, 1;
  size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (size_t i = n - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3F));
  s[0] = (char)((0xF00u >> n & 0xFF) | c);
  return n;
}

static fm_status read_text(parser *p, item *it) {
  const char *start = p->at++, *s = p->at;
  uint32_t c;
  while (s < p->end && *s != '"') s += *s == '\\' && s + 1 < p->end ? 2 : 1;
  char *out = need(p, s - start + 1);              // no character is longer than its way of writing
  if (!out) return FM_EMEMORY;
  it->text = out;
  while (peek(p) && *p->at != '"') {
    TRY(read_point(p, &c));
    it->len += put_point(out + it->len, c);
  }
  if (!peek(p)) return wrong(p, start, "a text has no end");
  p->at++;
  return FM_OK;
}

static fm_status read_class(parser *p, item *it) {
  const char *start = p->at++, *s = p->at;
  while (s < p->end && *s != ']') s += *s == '\\' && s + 1 < p->end ? 2 : 1;
  it->kind = CLASS;
  it->range = need(p, (s - start + 1) * (int64_t)sizeof *it->range);
  if (!it->range) return FM_EMEMORY;
  it->not = peek(p) == '^';
  p->at += it->not;
  while (peek(p) && *p->at != ']') {
    fm_range *w = &it->range[it->n++];
    TRY(read_point(p, &w->lo));
    w->hi = w->lo;
    if (peek(p) != '-' || p->at + 1 >= p->end || p->at[1] == ']') continue;
    p->at++;
    TRY(read_point(p, &w->hi));
    if (w->hi < w->lo) return wrong(p, start, "a range runs backwards");
  }
  if (!peek(p)) return wrong(p, start, "a class has no end");
  p->at++;
  return FM_OK;
}

/* The slot of a rule of this name, or the empty one where it would go. */
static int32_t *find(const parser *p, const char *s, size_t len) {
  uint64_t mask = (uint64_t)p->n_slots - 1, i = fm_fnv(FM_HASH_START, s, (int64_t)len) & mask;
  for (; p->slot[i]; i = (i + 1) & mask) {
    const char *name = p->r->rule[p->slot[i] - 1].name;
    if (strncmp(name, s, len) == 0 && !name[len]) break;
  }
  return &p->slot[i];
}

static fm_status grow_slots(parser *p) {
  if (2 * (p->r->n_rules + 1) <= p->n_slots) return FM_OK;
  int64_t n = p->n_slots ? 2 * p->n_slots : 64;
  int32_t *slot = fm_array(n, sizeof *slot);
  if (!slot) return fm_no_memory(p->err, n * (int64_t)sizeof *slot);
  fm_free(p->slot);
  p->slot = slot;
  p->n_slots = n;
  for (int32_t i = 0; i < p->r->n_rules; i++) *find(p, p->r->rule[i].name, strlen(p->r->rule[i].name)) = i + 1;
  return FM_OK;
}

/* The number of the rule whose name stands here. */
static fm_status read_name(parser *p, int32_t *out) {
  const char *s = p->at;
  while (is_name(peek(p))) p->at++;
  size_t len = (size_t)(p->at - s);
  TRY(grow_slots(p));
  int32_t *slot = find(p, s, len);
  *out = *slot ? *slot - 1 : (int32_t)p->r->n_rules;
  if (*slot) return FM_OK;
  TRY(fm_grow(&p->def, &p->cap_def, *out + 1, sizeof *p->def, p->err));
  p->def[*out] = (definition){ .used = s };
  *slot = fm_rules_add(p->r, s, len) + 1;
  return p->r->status == FM_OK ? FM_OK : fm_fail(p->err, p->r->status, "%s", p->r->err.message);
}

static fm_status read_number(parser *p, int64_t *out) {
  const char *start = p->at;
  *out = 0;
  for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
    *out = *out * 10 + (*p->at - '0');
    if (*out >= FM_MANY) return wrong(p, start, "a repetition of more than two thousand million times");
  }
  return p->at > start ? FM_OK : wrong(p, p->at, "a number was expected");
}

static fm_status read_braces(parser *p, item *it) {
  const char *start = p->at++;
  skip(p, true);
  TRY(read_number(p, &it->min));
  it->max = it->min;
  skip(p, true);
  if (peek(p) == ',') {
    p->at++;
    skip(p, true);
    it->max = FM_MANY;
    if (peek(p) >= '0' && peek(p) <= '9') TRY(read_number(p, &it->max));
    skip(p, true);
  }
  if (peek(p) != '}') return wrong(p, p->at, "'}' was expected");
  p->at++;
  return it->max < it->min ? wrong(p, start, "a repetition of at most fewer times than at least") : FM_OK;
}

static fm_status read_repetition(parser *p, item *it) {
  it->min = it->max = 1;
  char c = peek(p);
  if (c == '{') return read_braces(p, it);
  if (c != '?' && c != '*' && c != '+') return FM_OK;
  p->at++;
  it->min = c == '+';
  it->max = c == '?' ? 1 : FM_MANY;
  return FM_OK;
}

static fm_status read_choice(parser *p, choice **out, bool inside);

static fm_status read_group(parser *p, item *it) {
  const char *start = p->at++;
  it->kind = GROUP;
  if (++p->depth > MAX_DEPTH) return wrong(p, start, "groups nested too deeply");
  TRY(read_choice(p, &it->group, true));
  p->depth--;
  if (peek(p) != ')') return wrong(p, start, "a group has no end");
  p->at++;
  return FM_OK;
}

static fm_status read_item(parser *p, item *it) {
  static const fm_range any = { 0, 0x10FFFF };
  char c = peek(p);
  if (c == '"') TRY(read_text(p, it));
  else if (c == '[') TRY(read_class(p, it));
  else if (c == '(') TRY(read_group(p, it));
  else if (c == '.') {
    it->kind = CLASS;
    it->range = need(p, sizeof any);
    if (!it->range) return FM_EMEMORY;
    it->range[it->n++] = any;
    p->at++;
  } else if (is_name(c)) {
    it->kind = NAME;
    TRY(read_name(p, &it->rule));
  } else {
    return wrong(p, p->at, c == '<' ? "tokens (<...>) are not supported: write their text" : "an unexpected character");
  }
  return read_repetition(p, it);
}

/* A line may begin with the next choice. */
static void skip_to_bar(parser *p) {
  const char *here = p->at;
  skip(p, true);
  if (peek(p) != '|') p->at = here;
}

/* inside: in parentheses, where lines may break. */
static fm_status read_choice(parser *p, choice **out, bool inside) {
  for (*out = NULL;; p->at++) {
    choice *c = need(p, sizeof *c);
    if (!c) return FM_EMEMORY;
    c->before = *out;
    *out = c;
    skip(p, inside || c->before);
    while (peek(p) && !strchr("|)\n\r", peek(p))) {
      item *it = need(p, sizeof *it);
      if (!it) return FM_EMEMORY;
      TRY(read_item(p, it));
      it->before = c->last;
      c->last = it;
      skip(p, inside);
    }
    skip_to_bar(p);
    if (peek(p) != '|') return FM_OK;
  }
}

static fm_status read_rule(parser *p) {
  const char *start = p->at;
  int32_t rule;
  choice *body;
  if (!is_name(peek(p))) return wrong(p, p->at, "the name of a rule was expected");
  TRY(read_name(p, &rule));
  if (p->def[rule].defined) return wrong(p, start, "a rule is defined twice");
  skip(p, false);
  if (p->end - p->at < 3 || memcmp(p->at, "::=", 3) != 0) return wrong(p, p->at, "'::=' was expected");
  p->at += 3;
  skip(p, true);
  p->def[rule].defined = true;
  TRY(read_choice(p, &body, false));
  p->def[rule].body = body;                        // def may have moved
  return peek(p) == ')' ? wrong(p, p->at, "')' without '('") : FM_OK;
}

static fm_status read_all(parser *p) {
  for (skip(p, true); p->at < p->end; skip(p, true)) {
    if (!*p->at) return wrong(p, p->at, "a zero byte");
    TRY(read_rule(p));
  }
  for (int64_t i = 0; i < p->r->n_rules; i++)
    if (!p->def[i].defined) return wrong(p, p->def[i].used, "a rule is used that is not defined");
  return FM_OK;
}

/* ---- writing -------------------------------------------------------------------------------------- */

/* Small rules without names and endless repetitions are written where they are used: so what they stand in can be looked at whole. */
static int weigh(const choice *c) {
  int weight = 0;
  for (; c; c = c->before)
    for (const item *it = c->last; it; it = it->before) {
      if (it->kind == NAME || it->max > 1) return MAX_INLINE + 1;
      weight += it->kind == GROUP ? weigh(it->group) : it->kind == TEXT ? (int)it->len : 1;
      if (weight > MAX_INLINE) return MAX_INLINE + 1;
    }
  return weight;
}

static int32_t write_choice(parser *p, const choice *c, int32_t next);

static int32_t write_once(parser *p, const item *it, int32_t next) {
  switch (it->kind) {
    case TEXT: return fm_rules_literal(p->r, it->text, it->len, next);
    case CLASS: return it->not ? fm_rules_class_not(p->r, it->range, it->n, next) : fm_rules_class(p->r, it->range, it->n, next);
    case GROUP: return write_choice(p, it->group, next);
    default:
      if (p->def[it->rule].weight <= MAX_INLINE) return write_choice(p, p->def[it->rule].body, next);
      return fm_rules_call(p->r, it->rule, next);
  }
}

static int32_t write_item(parser *p, const item *it, int32_t next) {
  if (it->max == 1) {
    int32_t node = write_once(p, it, next);
    return it->min ? node : fm_rules_split(p->r, node, next);
  }
  return fm_rules_loop(p->r, write_once(p, it, FM_END), it->min, it->max, next);
}

static bool is_word(const choice *c) {
  return c->last && !c->last->before && c->last->kind == TEXT && c->last->min == 1 && c->last->max == 1;
}

/* Choices that are a single text each share their beginnings. */
static int32_t write_words(parser *p, const choice *c, int32_t next) {
  int64_t n = 0;
  for (const choice *i = c; i; i = i->before) n += is_word(i);
  if (n < 2) return FM_FAIL;
  fm_word *word = need(p, n * (int64_t)sizeof *word);
  if (!word) return fm_rules_refuse(p->r, FM_EMEMORY, "no memory for %lld words", (long long)n);
  n = 0;
  for (; c; c = c->before)
    if (is_word(c)) word[n++] = (fm_word){ c->last->text, c->last->len };
  return fm_rules_words(p->r, word, n, next);
}

static int32_t write_choice(parser *p, const choice *c, int32_t next) {
  int32_t words = write_words(p, c, next), all = words;
  for (; c; c = c->before) {
    if (words != FM_FAIL && is_word(c)) continue;
    int32_t node = next;
    for (const item *it = c->last; it; it = it->before) node = write_item(p, it, node);
    all = fm_rules_split(p->r, node, all);
  }
  return all;
}

static fm_status write_all(parser *p) {
  int32_t root = -1;
  fm_rules *r = p->r;
  for (int64_t i = 0; i < r->n_rules; i++) p->def[i].weight = weigh(p->def[i].body);
  for (int32_t i = 0; i < r->n_rules; i++) {
    r->rule[i].start = write_choice(p, p->def[i].body, FM_END);
    if (strcmp(r->rule[i].name, "root") == 0) root = i;
  }
  if (root < 0) return fm_fail(p->err, FM_EFORMAT, "the grammar has no rule named root");
  return fm_rules_check(r, root, p->err);
}

fm_status fm_gbnf_read(fm_rules *r, const char *text, size_t len, fm_error *err) {
  fm_error own;
  parser p = { .text = text, .at = text, .end = text + len, .r = r, .err = err ? err : &own };
  fm_status status = read_all(&p);
  if (status == FM_OK) status = write_all(&p);
  fm_arena_free(&p.arena);
  fm_free(p.def);
  fm_free(p.slot);
  return status;
}
