/*
** pattern.c - Lua's patterns with a price; see pattern.h.
*/
#include "bind/pattern.h"

#include <ctype.h>
#include <string.h>

enum { MAX_NESTING = 200, STEPS = 64 };

static void step(fm_matcher *m) {
  if (++m->steps < STEPS) return;
  m->steps = 0;
  fm_fence_charge(m->F, STEPS / 4);
}

/* ---- single characters ---------------------------------------------------------------------------------- */

static bool in_class(int c, int letter) {
  bool in;
  switch (tolower(letter)) {
    case 'a': in = isalpha(c); break;
    case 'c': in = iscntrl(c); break;
    case 'd': in = isdigit(c); break;
    case 'g': in = isgraph(c); break;
    case 'l': in = islower(c); break;
    case 'p': in = ispunct(c); break;
    case 's': in = isspace(c); break;
    case 'u': in = isupper(c); break;
    case 'w': in = isalnum(c); break;
    case 'x': in = isxdigit(c); break;
    default: return letter == c;
  }
  return isupper(letter) ? !in : in;
}

/* Behind the item that starts at p: a character, %x, ., or a set. */
static const char *item_end(fm_matcher *m, const char *p) {
  char c = *p++;
  if (c == '%') {
    if (p == m->pattern_end) luaL_error(m->F, "malformed pattern (ends with '%%')");
    return p + 1;
  }
  if (c != '[') return p;
  if (p < m->pattern_end && *p == '^') p++;
  do {                                    // a ']' that comes first stands for itself
    if (p == m->pattern_end) luaL_error(m->F, "malformed pattern (missing ']')");
    if (*p++ == '%') {
      if (p == m->pattern_end) luaL_error(m->F, "malformed pattern (missing ']')");
      p++;
    }
  } while (p == m->pattern_end || *p != ']');
  return p + 1;
}

/* Whether c is in the set from '[' at p to its ']' at last. */
static bool in_set(int c, const char *p, const char *last) {
  bool in = true;
  if (*++p == '^') in = false, p++;
  for (; p < last; p++) {
    if (*p == '%') {
      if (in_class(c, (unsigned char)*++p)) return in;
    } else if (p[1] == '-' && p + 2 < last) {
      if ((unsigned char)p[0] <= c && c <= (unsigned char)p[2]) return in;
      p += 2;
    } else if ((unsigned char)*p == c) {
      return in;
    }
  }
  return !in;
}

static bool fits(fm_matcher *m, const char *s, const char *p, const char *behind) {
  step(m);
  if (s >= m->end) return false;
  int c = (unsigned char)*s;
  switch (*p) {
    case '.': return true;
    case '%': return in_class(c, (unsigned char)p[1]);
    case '[': m->steps += (int)(behind - p) / 16; return in_set(c, p, behind - 1);
    default: return (unsigned char)*p == c;
  }
}

/* ---- sequences: each gives the end of the match, or NULL ------------------------------------------------------ */

static const char *match(fm_matcher *m, const char *s, const char *p);

static const char *balanced(fm_matcher *m, const char *s, const char *p) {
  if (p + 1 >= m->pattern_end) luaL_error(m->F, "malformed pattern (missing arguments to '%%b')");
  if (s >= m->end || *s != p[0]) return NULL;
  for (ptrdiff_t depth = 1; ++s < m->end; step(m)) {
    if (*s == p[1]) {
      if (--depth == 0) return s + 1;
    } else if (*s == p[0]) {
      depth++;
    }
  }
  return NULL;
}

static const char *longest(fm_matcher *m, const char *s, const char *p, const char *behind) {
  ptrdiff_t n = 0;
  while (fits(m, s + n, p, behind)) n++;
  for (; n >= 0; n--) {
    const char *e = match(m, s + n, behind + 1);
    if (e) return e;
  }
  return NULL;
}

static const char *shortest(fm_matcher *m, const char *s, const char *p, const char *behind) {
  for (;; s++) {
    const char *e = match(m, s, behind + 1);
    if (e) return e;
    if (!fits(m, s, p, behind)) return NULL;
  }
}

static const char *opened(fm_matcher *m, const char *s, const char *p, ptrdiff_t size) {
  if (m->n_captures >= FM_CAPTURES) luaL_error(m->F, "too many captures");
  m->captures[m->n_captures].at = s;
  m->captures[m->n_captures].size = size;
  m->n_captures++;
  const char *e = match(m, s, p);
  if (!e) m->n_captures--;
  return e;
}

static const char *closed(fm_matcher *m, const char *s, const char *p) {
  int i = m->n_captures;
  while (--i >= 0 && m->captures[i].size != FM_CAPTURE_OPEN) { }
  if (i < 0) luaL_error(m->F, "invalid pattern capture");
  m->captures[i].size = s - m->captures[i].at;
  const char *e = match(m, s, p);
  if (!e) m->captures[i].size = FM_CAPTURE_OPEN;
  return e;
}

/* What a %1 stands for, at s. */
static const char *again(fm_matcher *m, const char *s, int digit) {
  int i = digit - '1';
  if (i < 0 || i >= m->n_captures || m->captures[i].size == FM_CAPTURE_OPEN)
    luaL_error(m->F, "invalid capture index %%%d", i + 1);
  ptrdiff_t size = m->captures[i].size;
  if (size == FM_CAPTURE_PLACE || m->end - s < size) return NULL;
  fm_fence_charge(m->F, (uint64_t)size / 16);
  return memcmp(m->captures[i].at, s, (size_t)size) == 0 ? s + size : NULL;
}

/* Whether a %f border is at s; p: its set. */
static bool border(fm_matcher *m, const char *s, const char *p, const char *behind) {
  int before = s == m->text ? 0 : (unsigned char)s[-1], here = s == m->end ? 0 : (unsigned char)*s;
  return !in_set(before, p, behind - 1) && in_set(here, p, behind - 1);
}

/* One item and its suffix: whether the match goes on at *s, *p (true), or is decided: *s. */
static bool item(fm_matcher *m, const char **s, const char **p) {
  const char *behind = item_end(m, *p), *e;
  switch (behind < m->pattern_end ? *behind : 0) {
    case '?':
      if (fits(m, *s, *p, behind) && (e = match(m, *s + 1, behind + 1))) {
        *s = e;
        return false;
      }
      *p = behind + 1;
      return true;
    case '+':
      *s = fits(m, *s, *p, behind) ? longest(m, *s + 1, *p, behind) : NULL;
      return false;
    case '*':
      *s = longest(m, *s, *p, behind);
      return false;
    case '-':
      *s = shortest(m, *s, *p, behind);
      return false;
    default:
      if (!fits(m, *s, *p, behind)) {
        *s = NULL;
        return false;
      }
      ++*s;
      *p = behind;
      return true;
  }
}

/* %b, %f, %0 to %9: true when p was one of them; then *s is where it ends, or NULL. */
static bool special(fm_matcher *m, const char **s, const char **p) {
  if ((*p)[0] != '%' || *p + 1 == m->pattern_end) return false;
  char c = (*p)[1];
  if (c == 'b') {
    *s = balanced(m, *s, *p + 2);
    *p += 4;
    return true;
  }
  if (c == 'f') {
    const char *set = *p + 2;
    if (set == m->pattern_end || *set != '[') luaL_error(m->F, "missing '[' after '%%f' in pattern");
    *p = item_end(m, set);
    if (!border(m, *s, set, *p)) *s = NULL;
    return true;
  }
  if (!isdigit((unsigned char)c)) return false;
  *s = again(m, *s, c);
  *p += 2;
  return true;
}

static const char *match(fm_matcher *m, const char *s, const char *p) {
  if (m->nesting++ == MAX_NESTING) luaL_error(m->F, "pattern too complex");
  while (s && p < m->pattern_end) {
    step(m);
    if (*p == '(') {
      bool place = p + 1 < m->pattern_end && p[1] == ')';
      s = opened(m, s, p + (place ? 2 : 1), place ? FM_CAPTURE_PLACE : FM_CAPTURE_OPEN);
      break;
    }
    if (*p == ')') {
      s = closed(m, s, p + 1);
      break;
    }
    if (*p == '$' && p + 1 == m->pattern_end) {
      if (s != m->end) s = NULL;
      break;
    }
    if (!special(m, &s, &p) && !item(m, &s, &p)) break;
  }
  m->nesting--;
  return s;
}

/* ---- captures on the stack ----------------------------------------------------------------------------------- */

/* Capture i, or the whole match from s to e where the pattern has none and i is 0. */
void fm_matcher_push(fm_matcher *m, int i, const char *s, const char *e) {
  if (i >= m->n_captures) {
    if (i != 0) luaL_error(m->F, "invalid capture index %%%d", i + 1);
    lua_pushlstring(m->F, s, (size_t)(e - s));
  } else if (m->captures[i].size == FM_CAPTURE_PLACE) {
    lua_pushinteger(m->F, m->captures[i].at - m->text + 1);
  } else {
    if (m->captures[i].size == FM_CAPTURE_OPEN) luaL_error(m->F, "unfinished capture");
    lua_pushlstring(m->F, m->captures[i].at, (size_t)m->captures[i].size);
  }
}

int fm_matcher_push_all(fm_matcher *m, const char *s, const char *e) {
  int n = m->n_captures == 0 && s ? 1 : m->n_captures;
  luaL_checkstack(m->F, n, "too many captures");
  for (int i = 0; i < n; i++) fm_matcher_push(m, i, s, e);
  return n;
}

fm_matcher fm_matcher_of(lua_State *F, const char *text, size_t size, const char *pattern, size_t pattern_size) {
  return (fm_matcher){ .F = F, .text = text, .end = text + size, .pattern = pattern, .pattern_end = pattern + pattern_size };
}

const char *fm_matcher_try(fm_matcher *m, const char *s) {
  m->n_captures = m->nesting = 0;
  fm_fence_charge(m->F, 0);
  return match(m, s, m->pattern);
}

/* Whether a pattern is text as it stands. (A ")" alone counts as that, as it does for Lua.) */
bool fm_pattern_plain(const char *pattern, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (pattern[i] && strchr("^$*+?.([%-", pattern[i])) return false;
  return true;
}
