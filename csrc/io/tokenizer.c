/*
** tokenizer.c - tokenizer.json: added tokens, normaliser, splitting by patterns, and the way back.
*/
#include "io/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <cjson/cJSON.h>
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "base/file.h"
#include "io/bpe.h"

enum { MAX_STAGES = 16, MAX_ID = 1 << 24, MAX_LENGTHS = 256 };
#define MAX_JSON ((int64_t)128 << 20)

typedef struct stage { pcre2_code *code; bool drop; } stage;   /* drop: what matches is removed */

struct fm_tokenizer {
  fm_bpe bpe;
  bool nfc;
  stage stage[MAX_STAGES]; int n_stages;
  pcre2_general_context *general;
  pcre2_match_context *match;
  pcre2_match_data *data[MAX_STAGES];
  int32_t *added; int64_t n_added;       /* ids by their text, open addressing; -1: empty */
  bool length[MAX_LENGTHS];              /* lengths that added tokens have */
  bool first[256];                       /* bytes they begin with */
  int32_t *points; int64_t cap_points;   /* scratch of NFC */
  char *norm; int64_t cap_norm;
};

/* ---- UTF-8 ------------------------------------------------------------------------------------------ */

size_t fm_utf8_open(const char *text, size_t len) {
  for (size_t back = 1; back <= 3 && back <= len; back++) {
    unsigned char c = (unsigned char)text[len - back];
    if (c < 0x80) return 0;
    if (c < 0xc0) continue;
    size_t want = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    return c >= 0xc2 && c < 0xf5 && want > back ? back : 0;
  }
  return 0;
}

/* Length of the valid character at s, 0 when there is none. */
static size_t valid_char(const char *s, size_t len, int32_t *point) {
  utf8proc_int32_t c;
  utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)len, &c);
  if (n <= 0) return 0;
  *point = c;
  return (size_t)n;
}

/* ---- the byte alphabet -------------------------------------------------------------------------------- */

/* Code point -> byte; -1 for what is not in the alphabet. Printable bytes stand for themselves, the other 68 follow from U+0100. */
static int alphabet(int32_t c) {
  if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return c;
  if (c < 256 || c >= 256 + 68) return -1;
  c -= 256;
  if (c <= 32) return c;
  if (c < 67) return c - 33 + 127;
  return 173;
}

/* Token text -> bytes, in place into out (as long as text). False when a character is outside the alphabet. */
static bool to_bytes(const char *text, size_t len, char *out, size_t *n) {
  *n = 0;
  for (size_t i = 0; i < len;) {
    int32_t c;
    size_t step = valid_char(text + i, len - i, &c);
    int b = step ? alphabet(c) : -1;
    if (b < 0) return false;
    out[(*n)++] = (char)b;
    i += step;
  }
  return true;
}

/* ---- JSON: vocabulary, merges, added tokens -------------------------------------------------------------- */

static fm_status token_id(const cJSON *v, const char *what, int64_t *out, fm_error *err) {
  if (!cJSON_IsNumber(v) || v->valuedouble < 0 || v->valuedouble >= MAX_ID || v->valuedouble != floor(v->valuedouble))
    return fm_fail(err, FM_EFORMAT, "tokenizer: the id of %.80s is out of range", what);
  *out = (int64_t)v->valuedouble;
  return FM_OK;
}

static fm_status read_vocab(fm_tokenizer *t, const cJSON *vocab, fm_error *err) {
  const cJSON *v;
  if (!cJSON_IsObject(vocab)) return fm_fail(err, FM_EFORMAT, "tokenizer: model.vocab is no object");
  cJSON_ArrayForEach(v, vocab) {
    int64_t id;
    size_t len = strlen(v->string), n;
    TRY(token_id(v, v->string, &id, err));
    char *bytes = fm_alloc((int64_t)len + 1);
    if (!bytes) return fm_no_memory(err, (int64_t)len);
    // names outside the alphabet are control words that the vocabulary lists too
    bool plain = to_bytes(v->string, len, bytes, &n);
    fm_status status = fm_bpe_set(&t->bpe, id, plain ? bytes : v->string, plain ? n : len, false, err);
    fm_free(bytes);
    TRY(status);
  }
  return FM_OK;
}

static fm_status read_added(fm_tokenizer *t, const cJSON *list, fm_error *err) {
  const cJSON *v;
  if (list && !cJSON_IsArray(list)) return fm_fail(err, FM_EFORMAT, "tokenizer: added_tokens is no list");
  cJSON_ArrayForEach(v, list) {
    const char *text = NULL, *flag[] = { "lstrip", "rstrip", "single_word" };
    int64_t id;
    if (!cJSON_IsObject(v)) return fm_fail(err, FM_EFORMAT, "tokenizer: an added token is no object");
    TRY(fm_json_str(v, "content", &text, err));
    if (!text || !*text || strlen(text) >= MAX_LENGTHS)
      return fm_fail(err, FM_EFORMAT, "tokenizer: an added token without content, or of %d bytes and more", MAX_LENGTHS);
    TRY(token_id(fm_json_get(v, "id"), text, &id, err));
    for (int i = 0; i < 3; i++) {
      bool on = false;
      TRY(fm_json_bool(v, flag[i], &on, err));
      if (on) return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: %s of %.80s is not supported", flag[i], text);
    }
    // an added token takes the id's place, whatever bytes the vocabulary spelt it with
    if (id < t->bpe.n && t->bpe.piece[id].bytes) {
      fm_free(t->bpe.piece[id].bytes);
      t->bpe.piece[id] = (fm_piece){ 0 };
    }
    TRY(fm_bpe_set(&t->bpe, id, text, strlen(text), true, err));
  }
  return FM_OK;
}

static uint64_t hash_text(const char *s, size_t len) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < len; i++) h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
  return h ^ h >> 31;
}

static fm_status index_added(fm_tokenizer *t, fm_error *err) {
  int64_t n = 0;
  for (int64_t i = 0; i < t->bpe.n; i++) n += t->bpe.piece[i].added;
  for (t->n_added = 16; t->n_added < 2 * n;) t->n_added *= 2;
  t->added = fm_array(t->n_added, sizeof *t->added);
  if (!t->added) return fm_no_memory(err, t->n_added * 4);
  memset(t->added, 0xff, (size_t)t->n_added * sizeof *t->added);
  for (int64_t i = 0; i < t->bpe.n; i++) {
    const fm_piece *p = &t->bpe.piece[i];
    if (!p->added) continue;
    if (fm_tokenizer_added(t, p->bytes, (size_t)p->len) >= 0)
      return fm_fail(err, FM_EFORMAT, "tokenizer: two added tokens are %.80s", p->bytes);
    int64_t at = (int64_t)(hash_text(p->bytes, (size_t)p->len) & (uint64_t)(t->n_added - 1));
    while (t->added[at] >= 0) at = (at + 1) & (t->n_added - 1);
    t->added[at] = (int32_t)i;
    t->length[p->len] = t->first[(uint8_t)p->bytes[0]] = true;
  }
  return FM_OK;
}

int32_t fm_tokenizer_added(const fm_tokenizer *t, const char *text, size_t len) {
  int64_t at = (int64_t)(hash_text(text, len) & (uint64_t)(t->n_added - 1));
  for (; t->added[at] >= 0; at = (at + 1) & (t->n_added - 1)) {
    const fm_piece *p = &t->bpe.piece[t->added[at]];
    if ((size_t)p->len == len && memcmp(p->bytes, text, len) == 0) return t->added[at];
  }
  return -1;
}

/* "A B" or ["A", "B"]: the two halves. */
static bool halves(const cJSON *v, const char **a, size_t *na, const char **b, size_t *nb) {
  if (cJSON_IsArray(v)) {
    const cJSON *x = v->child, *y = x ? x->next : NULL;
    if (!cJSON_IsString(x) || !cJSON_IsString(y) || y->next) return false;
    *a = x->valuestring, *b = y->valuestring;
    *na = strlen(*a), *nb = strlen(*b);
    return true;
  }
  const char *space = cJSON_IsString(v) ? strchr(v->valuestring, ' ') : NULL;
  if (!space) return false;
  *a = v->valuestring, *na = (size_t)(space - *a);
  *b = space + 1, *nb = strlen(*b);
  return true;
}

static fm_status read_merge(fm_tokenizer *t, const cJSON *v, int32_t rank, char *buf, fm_error *err) {
  const char *a, *b;
  size_t na, nb, la, lb;
  if (!halves(v, &a, &na, &b, &nb)) return fm_fail(err, FM_EFORMAT, "tokenizer: merge %d is no pair", rank);
  if (na + nb > 4096 || !to_bytes(a, na, buf, &la) || !to_bytes(b, nb, buf + la, &lb))
    return fm_fail(err, FM_EFORMAT, "tokenizer: merge %d is outside the byte alphabet", rank);
  int32_t left = fm_bpe_find(&t->bpe, buf, la), right = fm_bpe_find(&t->bpe, buf + la, lb);
  int32_t both = fm_bpe_find(&t->bpe, buf, la + lb);
  // a merge that would make a control word is left out: text never becomes one
  if (both < 0 && fm_tokenizer_added(t, buf, la + lb) >= 0) return FM_OK;
  if (left < 0 || right < 0 || both < 0)
    return fm_fail(err, FM_EFORMAT, "tokenizer: merge %d (%.*s %.*s) names an unknown token", rank, (int)na, a, (int)nb, b);
  return fm_bpe_add_merge(&t->bpe, left, right, rank, both, err);
}

static fm_status read_merges(fm_tokenizer *t, const cJSON *merges, fm_error *err) {
  const cJSON *v;
  char buf[4096];
  int32_t rank = 0;
  if (!cJSON_IsArray(merges)) return fm_fail(err, FM_EFORMAT, "tokenizer: model.merges is no list");
  TRY(fm_bpe_make_merges(&t->bpe, cJSON_GetArraySize(merges), err));
  cJSON_ArrayForEach(v, merges) TRY(read_merge(t, v, rank++, buf, err));
  return FM_OK;
}

static fm_status read_model(fm_tokenizer *t, const cJSON *j, fm_error *err) {
  const cJSON *m = fm_json_get(j, "model");
  const char *type = "BPE";
  bool fallback = false;
  if (!cJSON_IsObject(m)) return fm_fail(err, FM_EFORMAT, "tokenizer: no model");
  TRY(fm_json_str(m, "type", &type, err));
  if (strcmp(type, "BPE") != 0) return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: model type %.40s is not supported", type);
  TRY(fm_json_bool(m, "byte_fallback", &fallback, err));
  if (fallback) return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: byte_fallback is not supported");
  TRY(fm_json_bool(m, "ignore_merges", &t->bpe.ignore_merges, err));
  TRY(read_vocab(t, fm_json_get(m, "vocab"), err));
  TRY(read_added(t, fm_json_get(j, "added_tokens"), err));
  TRY(index_added(t, err));
  TRY(fm_bpe_index(&t->bpe, err));
  return read_merges(t, fm_json_get(m, "merges"), err);
}

/* ---- JSON: normaliser and splitting ------------------------------------------------------------------------ */

static const char *type_of(const cJSON *v) {
  const cJSON *type = cJSON_GetObjectItemCaseSensitive(v, "type");
  return cJSON_IsString(type) ? type->valuestring : "";
}

static fm_status read_normalizer(fm_tokenizer *t, const cJSON *v, int depth, fm_error *err) {
  const cJSON *item;
  if (!v) return FM_OK;
  if (strcmp(type_of(v), "NFC") == 0) {
    t->nfc = true;
    return FM_OK;
  }
  if (strcmp(type_of(v), "Sequence") != 0 || depth > 4)
    return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: normalizer %.40s is not supported", type_of(v));
  cJSON_ArrayForEach(item, fm_json_get(v, "normalizers")) TRY(read_normalizer(t, item, depth + 1, err));
  return FM_OK;
}

static void *pcre_alloc(size_t size, void *user) {
  (void)user;
  return fm_alloc((int64_t)size);
}

static void pcre_free(void *p, void *user) {
  (void)user;
  fm_free(p);
}

/* \s and \S as Unicode's White_Space: PCRE2's own also takes U+180E. out holds 24 times the pattern. */
static void spell_out_space(const char *p, char *out) {
  static const char list[] = "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
  bool in_class = false;
  for (; *p; p++) {
    if (*p == '\\' && p[1]) {
      p++;
      if (*p == 's' && in_class) out += sprintf(out, "%s", list);
      else if (*p == 's') out += sprintf(out, "[%s]", list);
      else if (*p == 'S' && !in_class) out += sprintf(out, "[^%s]", list);
      else *out++ = '\\', *out++ = *p;
      continue;
    }
    if (*p == '[' && !in_class) {
      in_class = true;
      *out++ = *p;
      if (p[1] == '^') *out++ = *++p;
      if (p[1] == ']') *out++ = '\\', *out++ = *++p;
      continue;
    }
    if (*p == '[') *out++ = '\\';                  // a bare [ inside a class is itself
    if (*p == ']') in_class = false;
    *out++ = *p;
  }
  *out = 0;
}

static fm_status add_pattern(fm_tokenizer *t, const char *pattern, bool literal, bool drop, fm_error *err) {
  int code;
  size_t at;
  uint32_t flags = PCRE2_UTF | PCRE2_UCP | (literal ? PCRE2_LITERAL : 0);
  if (t->n_stages == MAX_STAGES) return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: more than %d splits", MAX_STAGES);
  char *text = fm_alloc(128 * (int64_t)strlen(pattern) + 1);
  pcre2_compile_context *c = text ? pcre2_compile_context_create(t->general) : NULL;
  if (!c) {
    fm_free(text);
    return fm_no_memory(err, 128 * (int64_t)strlen(pattern));
  }
  if (literal) strcpy(text, pattern);
  else spell_out_space(pattern, text);
  stage *s = &t->stage[t->n_stages];
  s->drop = drop;
  s->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, flags, &code, &at, c);
  pcre2_compile_context_free(c);
  fm_free(text);
  if (!s->code && code == PCRE2_ERROR_HEAP_FAILED) return fm_no_memory(err, (int64_t)strlen(pattern));
  if (!s->code) {
    char why[120];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return fm_fail(err, FM_EFORMAT, "tokenizer: pattern %.80s: %s", pattern, why);
  }
  t->n_stages++;
  pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE);  // without JIT the pattern is interpreted: slower, the same
  t->data[t->n_stages - 1] = pcre2_match_data_create_from_pattern(s->code, t->general);
  return t->data[t->n_stages - 1] ? FM_OK : fm_no_memory(err, 256);
}

static fm_status read_split(fm_tokenizer *t, const cJSON *v, fm_error *err) {
  const cJSON *p = fm_json_get(v, "pattern");
  const char *regex = NULL, *string = NULL, *behavior = "Isolated";
  bool invert = false;
  if (!cJSON_IsObject(p)) return fm_fail(err, FM_EFORMAT, "tokenizer: a Split without pattern");
  TRY(fm_json_str(p, "Regex", &regex, err));
  TRY(fm_json_str(p, "String", &string, err));
  TRY(fm_json_str(v, "behavior", &behavior, err));
  TRY(fm_json_bool(v, "invert", &invert, err));
  bool removed = strcmp(behavior, "Removed") == 0;
  // isolated, matches and gaps are pieces alike, so that inverting changes nothing
  if ((strcmp(behavior, "Isolated") != 0 && !removed) || (removed && invert))
    return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: Split behavior %.40s%s is not supported", behavior, invert ? ", inverted" : "");
  if (!regex && !string) return fm_fail(err, FM_EFORMAT, "tokenizer: a Split without Regex or String");
  return add_pattern(t, regex ? regex : string, !regex, removed, err);
}

static fm_status read_byte_level(fm_tokenizer *t, const cJSON *v, fm_error *err) {
  bool prefix = false, regex = true;
  TRY(fm_json_bool(v, "add_prefix_space", &prefix, err));
  TRY(fm_json_bool(v, "use_regex", &regex, err));
  if (prefix) return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: add_prefix_space is not supported");
  if (!regex) return FM_OK;
  return add_pattern(t, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", false, false, err);
}

static fm_status read_pre_tokenizer(fm_tokenizer *t, const cJSON *v, int depth, fm_error *err) {
  const cJSON *item;
  const char *type;
  bool single = false;
  if (!v) return FM_OK;
  type = type_of(v);
  if (strcmp(type, "Split") == 0) return read_split(t, v, err);
  if (strcmp(type, "ByteLevel") == 0) return read_byte_level(t, v, err);
  if (strcmp(type, "Digits") == 0) {
    TRY(fm_json_bool(v, "individual_digits", &single, err));
    return add_pattern(t, single ? "\\p{N}" : "\\p{N}+", false, false, err);
  }
  if (strcmp(type, "Sequence") != 0 || depth > 4)
    return fm_fail(err, FM_EUNSUPPORTED, "tokenizer: pre_tokenizer %.40s is not supported", type);
  cJSON_ArrayForEach(item, fm_json_get(v, "pretokenizers")) TRY(read_pre_tokenizer(t, item, depth + 1, err));
  return FM_OK;
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

static fm_status build(fm_tokenizer *t, const cJSON *j, fm_error *err) {
  if (!cJSON_IsObject(j)) return fm_fail(err, FM_EFORMAT, "tokenizer: no object");
  t->general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
  t->match = t->general ? pcre2_match_context_create(t->general) : NULL;
  if (!t->match) return fm_no_memory(err, 256);
  TRY(read_model(t, j, err));
  TRY(read_normalizer(t, fm_json_get(j, "normalizer"), 0, err));
  return read_pre_tokenizer(t, fm_json_get(j, "pre_tokenizer"), 0, err);
}

static fm_status from_json(fm_tokenizer **out, const cJSON *j, fm_error *err) {
  fm_tokenizer *t = fm_zalloc(sizeof *t);
  if (!t) return fm_no_memory(err, sizeof *t);
  fm_status status = build(t, j, err);
  if (status == FM_OK) *out = t;
  else fm_tokenizer_free(t);
  return status;
}

fm_status fm_tokenizer_parse(fm_tokenizer **out, const char *json, size_t len, fm_error *err) {
  fm_json *j;
  TRY(fm_json_parse(&j, json, len, "tokenizer.json", err));
  fm_status status = from_json(out, j, err);
  fm_json_free(j);
  return status;
}

fm_status fm_tokenizer_open(fm_tokenizer **out, const char *path, fm_error *err) {
  char file[4096];
  fm_json *j;
  if (snprintf(file, sizeof file, "%s/tokenizer.json", path) >= (int)sizeof file)
    return fm_fail(err, FM_EIO, "the path is too long");
  TRY(fm_json_load(&j, fm_file_exists(file) ? file : path, MAX_JSON, err));
  fm_status status = from_json(out, j, err);
  fm_json_free(j);
  return status;
}

void fm_tokenizer_free(fm_tokenizer *t) {
  if (!t) return;
  for (int i = 0; i < t->n_stages; i++) {
    if (t->data[i]) pcre2_match_data_free(t->data[i]);
    pcre2_code_free(t->stage[i].code);
  }
  if (t->match) pcre2_match_context_free(t->match);
  if (t->general) pcre2_general_context_free(t->general);
  fm_bpe_free(&t->bpe);
  fm_free(t->added);
  fm_free(t->points);
  fm_free(t->norm);
  fm_free(t);
}

int64_t fm_tokenizer_size(const fm_tokenizer *t) { return t->bpe.n; }

bool fm_tokenizer_is_added(const fm_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->bpe.n && t->bpe.piece[id].added;
}

const char *fm_tokenizer_bytes(const fm_tokenizer *t, int32_t id, size_t *len) {
  bool known = id >= 0 && id < t->bpe.n && t->bpe.piece[id].bytes;
  *len = known ? (size_t)t->bpe.piece[id].len : 0;
  return known ? t->bpe.piece[id].bytes : "";
}

/* ---- encoding ------------------------------------------------------------------------------------------------ */

typedef struct sink { fm_tokenizer *t; int32_t **ids; int64_t *n, *cap; fm_error *err; } sink;

static fm_status split(sink *k, int at, const char *s, size_t len);

/* A piece that stage `at` made goes on to the next one, or becomes ids. */
static fm_status pass_on(sink *k, int at, const char *s, size_t len) {
  if (!len) return FM_OK;
  if (at + 1 < k->t->n_stages) return split(k, at + 1, s, len);
  return fm_bpe_encode(&k->t->bpe, s, len, k->ids, k->n, k->cap, k->err);
}

/* Matches and the gaps between them, in order. */
static fm_status split(sink *k, int at, const char *s, size_t len) {
  fm_tokenizer *t = k->t;
  if (at >= t->n_stages) return pass_on(k, at, s, len);
  size_t done = 0, from = 0;
  while (from < len) {
    int got = pcre2_match(t->stage[at].code, (PCRE2_SPTR)s, len, from, PCRE2_NO_UTF_CHECK, t->data[at], t->match);
    if (got == PCRE2_ERROR_NOMATCH) break;
    if (got == PCRE2_ERROR_NOMEMORY || got == PCRE2_ERROR_HEAPLIMIT) return fm_no_memory(k->err, (int64_t)len);
    if (got < 0) return fm_fail(k->err, FM_ELIMIT, "a split pattern gave up on %zu bytes of text (%d)", len, got);
    PCRE2_SIZE *o = pcre2_get_ovector_pointer(t->data[at]);
    size_t begin = o[0], end = o[1];
    if (end == begin) {                            // empty matches split nothing
      int32_t c;
      from = end + valid_char(s + end, len - end, &c);
      continue;
    }
    TRY(pass_on(k, at, s + done, begin - done));
    // a stage's data is used again inside only by other stages
    if (!t->stage[at].drop) TRY(pass_on(k, at, s + begin, end - begin));
    done = from = end;
  }
  return pass_on(k, at, s + done, len - done);
}

/* NFC of a valid run, into t->norm; below U+0300 there is nothing to do. */
static fm_status normalise(fm_tokenizer *t, const char **s, size_t *len, fm_error *err) {
  size_t i = 0;
  while (i < *len && (uint8_t)(*s)[i] < 0xcc) i++;
  if (i == *len) return FM_OK;
  utf8proc_option_t how = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  const utf8proc_uint8_t *in = (const utf8proc_uint8_t *)*s;
  utf8proc_ssize_t n = utf8proc_decompose(in, (utf8proc_ssize_t)*len, NULL, 0, how);
  if (n < 0) return fm_fail(err, FM_EFORMAT, "NFC: %s", utf8proc_errmsg(n));
  TRY(fm_grow(&t->points, &t->cap_points, n + 1, sizeof *t->points, err));
  n = utf8proc_decompose(in, (utf8proc_ssize_t)*len, t->points, n, how);
  if (n >= 0) n = utf8proc_normalize_utf32(t->points, n, how);
  if (n < 0) return fm_fail(err, FM_EFORMAT, "NFC: %s", utf8proc_errmsg(n));
  TRY(fm_grow(&t->norm, &t->cap_norm, 4 * n + 4, 1, err));
  size_t used = 0;
  for (utf8proc_ssize_t j = 0; j < n; j++)
    used += (size_t)utf8proc_encode_char(t->points[j], (utf8proc_uint8_t *)t->norm + used);
  *s = t->norm;
  *len = used;
  return FM_OK;
}

/* Text without control words: valid runs are split by pattern, stray bytes stand alone. */
static fm_status encode_plain(sink *k, const char *s, size_t len) {
  fm_tokenizer *t = k->t;
  for (size_t i = 0; i < len;) {
    size_t run = 0, step;
    int32_t c;
    while (i + run < len && (step = valid_char(s + i + run, len - i - run, &c))) run += step;
    if (run) {
      const char *piece = s + i;
      size_t n = run;
      if (t->nfc) TRY(normalise(t, &piece, &n, k->err));
      TRY(split(k, 0, piece, n));
      i += run;
    } else {
      TRY(fm_grow(k->ids, k->cap, *k->n + 1, sizeof **k->ids, k->err));
      (*k->ids)[(*k->n)++] = t->bpe.byte_id[(uint8_t)s[i++]];
    }
  }
  return FM_OK;
}

/* The longest control word at s; *len its bytes. -1: none. */
static int32_t control_at(const fm_tokenizer *t, const char *s, size_t room, size_t *len) {
  if (!t->first[(uint8_t)*s]) return -1;
  for (size_t n = room < MAX_LENGTHS - 1 ? room : MAX_LENGTHS - 1; n > 0; n--) {
    int32_t id = t->length[n] ? fm_tokenizer_added(t, s, n) : -1;
    if (id >= 0) {
      *len = n;
      return id;
    }
  }
  return -1;
}

fm_status fm_tokenizer_encode(fm_tokenizer *t, const char *text, size_t len, bool special, int32_t **ids,
                              int64_t *n, int64_t *cap, fm_error *err) {
  sink k = { t, ids, n, cap, err };
  size_t done = 0;
  for (size_t i = 0; special && i < len;) {
    size_t word;
    int32_t id = control_at(t, text + i, len - i, &word);
    if (id < 0) {
      i++;
      continue;
    }
    TRY(encode_plain(&k, text + done, i - done));
    TRY(fm_grow(ids, cap, *n + 1, sizeof **ids, err));
    (*ids)[(*n)++] = id;
    done = i = i + word;
  }
  return encode_plain(&k, text + done, len - done);
}

fm_status fm_tokenizer_decode(const fm_tokenizer *t, const int32_t *ids, int64_t n, int64_t limit, char **text,
                              int64_t *len, int64_t *cap, fm_error *err) {
  for (int64_t i = 0; i < n; i++) {
    size_t size;
    if (ids[i] < 0 || ids[i] >= limit)
      return fm_fail(err, FM_EINVAL, "id %d at index %lld is outside the vocabulary of %lld", ids[i], (long long)i,
                     (long long)limit);
    const char *bytes = fm_tokenizer_bytes(t, ids[i], &size);
    TRY(fm_grow(text, cap, *len + (int64_t)size + 1, 1, err));
    memcpy(*text + *len, bytes, size);
    *len += (int64_t)size;
  }
  return FM_OK;
}
