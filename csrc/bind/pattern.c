/*
** pattern.c - find, match, gmatch and gsub for the fence: Lua's patterns, with every step charged, so that one that would go on for
** ever ends with the program's quota. What they mean: Lua 5.4 reference manual, 6.4.1.
*/
#define _GNU_SOURCE
#include <ctype.h>
#include <string.h>

#include "bind/fence.h"

enum { MAX_CAPTURES = 32, MAX_NESTING = 200, STEPS = 64, OPEN = -1, PLACE = -2 };

/* One attempt at matching. A capture's size is OPEN until it is closed, or PLACE. */
typedef struct matcher {
  lua_State *F;
  const char *text, *end, *pattern, *pattern_end;
  int n_captures, nesting, steps;
  struct { const char *at; ptrdiff_t size; } captures[MAX_CAPTURES];
} matcher;

static void step(matcher *m) {
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
static const char *item_end(matcher *m, const char *p) {
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

static bool fits(matcher *m, const char *s, const char *p, const char *behind) {
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

static const char *match(matcher *m, const char *s, const char *p);

static const char *balanced(matcher *m, const char *s, const char *p) {
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

static const char *longest(matcher *m, const char *s, const char *p, const char *behind) {
  ptrdiff_t n = 0;
  while (fits(m, s + n, p, behind)) n++;
  for (; n >= 0; n--) {
    const char *e = match(m, s + n, behind + 1);
    if (e) return e;
  }
  return NULL;
}

static const char *shortest(matcher *m, const char *s, const char *p, const char *behind) {
  for (;; s++) {
    const char *e = match(m, s, behind + 1);
    if (e) return e;
    if (!fits(m, s, p, behind)) return NULL;
  }
}

static const char *opened(matcher *m, const char *s, const char *p, ptrdiff_t size) {
  if (m->n_captures >= MAX_CAPTURES) luaL_error(m->F, "too many captures");
  m->captures[m->n_captures].at = s;
  m->captures[m->n_captures].size = size;
  m->n_captures++;
  const char *e = match(m, s, p);
  if (!e) m->n_captures--;
  return e;
}

static const char *closed(matcher *m, const char *s, const char *p) {
  int i = m->n_captures;
  while (--i >= 0 && m->captures[i].size != OPEN) { }
  if (i < 0) luaL_error(m->F, "invalid pattern capture");
  m->captures[i].size = s - m->captures[i].at;
  const char *e = match(m, s, p);
  if (!e) m->captures[i].size = OPEN;
  return e;
}

/* What a %1 stands for, at s. */
static const char *again(matcher *m, const char *s, int digit) {
  int i = digit - '1';
  if (i < 0 || i >= m->n_captures || m->captures[i].size == OPEN)
    luaL_error(m->F, "invalid capture index %%%d", i + 1);
  ptrdiff_t size = m->captures[i].size;
  if (size == PLACE || m->end - s < size) return NULL;
  fm_fence_charge(m->F, (uint64_t)size / 16);
  return memcmp(m->captures[i].at, s, (size_t)size) == 0 ? s + size : NULL;
}

/* Whether a %f border is at s; p: its set. */
static bool border(matcher *m, const char *s, const char *p, const char *behind) {
  int before = s == m->text ? 0 : (unsigned char)s[-1], here = s == m->end ? 0 : (unsigned char)*s;
  return !in_set(before, p, behind - 1) && in_set(here, p, behind - 1);
}

/* One item and its suffix: whether the match goes on at *s, *p (true), or is decided: *s. */
static bool item(matcher *m, const char **s, const char **p) {
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
static bool special(matcher *m, const char **s, const char **p) {
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

static const char *match(matcher *m, const char *s, const char *p) {
  if (m->nesting++ == MAX_NESTING) luaL_error(m->F, "pattern too complex");
  while (s && p < m->pattern_end) {
    step(m);
    if (*p == '(') {
      bool place = p + 1 < m->pattern_end && p[1] == ')';
      s = opened(m, s, p + (place ? 2 : 1), place ? PLACE : OPEN);
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
static void push_capture(matcher *m, int i, const char *s, const char *e) {
  if (i >= m->n_captures) {
    if (i != 0) luaL_error(m->F, "invalid capture index %%%d", i + 1);
    lua_pushlstring(m->F, s, (size_t)(e - s));
  } else if (m->captures[i].size == PLACE) {
    lua_pushinteger(m->F, m->captures[i].at - m->text + 1);
  } else {
    if (m->captures[i].size == OPEN) luaL_error(m->F, "unfinished capture");
    lua_pushlstring(m->F, m->captures[i].at, (size_t)m->captures[i].size);
  }
}

static int push_captures(matcher *m, const char *s, const char *e) {
  int n = m->n_captures == 0 && s ? 1 : m->n_captures;
  luaL_checkstack(m->F, n, "too many captures");
  for (int i = 0; i < n; i++) push_capture(m, i, s, e);
  return n;
}

static matcher matcher_of(lua_State *F, const char *text, size_t size, const char *pattern, size_t pattern_size) {
  return (matcher){ .F = F, .text = text, .end = text + size, .pattern = pattern, .pattern_end = pattern + pattern_size };
}

static const char *attempt(matcher *m, const char *s) {
  m->n_captures = m->nesting = 0;
  fm_fence_charge(m->F, 0);
  return match(m, s, m->pattern);
}

/* ---- find, match ------------------------------------------------------------------------------------------------ */

/* Where to start, from 0; beyond the text: size + 1. */
static size_t start_of(lua_State *F, int index, size_t size) {
  lua_Integer at = luaL_optinteger(F, index, 1);
  if (at > 0) return (size_t)at - 1 > size ? size + 1 : (size_t)at - 1;
  if (at == 0 || at < -(lua_Integer)size) return 0;
  return size - (size_t)-at;
}

static int found(lua_State *F, const char *text, const char *s, const char *e) {
  lua_pushinteger(F, s - text + 1);
  lua_pushinteger(F, e - text);
  return 2;
}

/* Whether a pattern is text as it stands. (A ")" alone counts as that, as it does for Lua.) */
static bool is_plain(const char *pattern, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (pattern[i] && strchr("^$*+?.([%-", pattern[i])) return false;
  return true;
}

static int search(lua_State *F, bool find) {
  size_t size, pattern_size;
  const char *text = luaL_checklstring(F, 1, &size), *pattern = luaL_checklstring(F, 2, &pattern_size);
  size_t at = start_of(F, 3, size);
  if (at > size) {
    luaL_pushfail(F);
    return 1;
  }
  if (find && (lua_toboolean(F, 4) || is_plain(pattern, pattern_size))) {
    fm_fence_charge(F, (size - at) / 16 + pattern_size / 16);
    const char *s = memmem(text + at, size - at, pattern, pattern_size);     // linear, unlike a loop of memcmp
    if (s) return found(F, text, s, s + pattern_size);
    luaL_pushfail(F);
    return 1;
  }
  bool anchored = pattern_size > 0 && *pattern == '^';
  matcher m = matcher_of(F, text, size, pattern + anchored, pattern_size - anchored);
  for (const char *s = text + at; s <= m.end; s++) {
    const char *e = attempt(&m, s);
    if (e) return find ? found(F, text, s, e) + push_captures(&m, NULL, NULL) : push_captures(&m, s, e);
    if (anchored) break;
  }
  luaL_pushfail(F);
  return 1;
}

static int p_find(lua_State *F) { return search(F, true); }
static int p_match(lua_State *F) { return search(F, false); }

/* ---- gmatch -------------------------------------------------------------------------------------------------------- */

/* Upvalues: text, pattern, where to go on (from 0), where the last match ended (-1: none yet). */
static int gmatch_next(lua_State *F) {
  size_t size, pattern_size;
  const char *text = lua_tolstring(F, lua_upvalueindex(1), &size);
  const char *pattern = lua_tolstring(F, lua_upvalueindex(2), &pattern_size);
  lua_Integer at = lua_tointeger(F, lua_upvalueindex(3)), last = lua_tointeger(F, lua_upvalueindex(4));
  matcher m = matcher_of(F, text, size, pattern, pattern_size);
  for (; at <= (lua_Integer)size; at++) {
    const char *e = attempt(&m, text + at);
    if (!e || e - text == last) continue;
    lua_pushinteger(F, e - text);
    lua_pushvalue(F, -1);
    lua_replace(F, lua_upvalueindex(3));
    lua_replace(F, lua_upvalueindex(4));
    return push_captures(&m, text + at, e);
  }
  lua_pushinteger(F, (lua_Integer)size + 1);
  lua_replace(F, lua_upvalueindex(3));
  return 0;
}

static int p_gmatch(lua_State *F) {
  size_t size;
  luaL_checklstring(F, 1, &size);
  luaL_checkstring(F, 2);
  size_t at = start_of(F, 3, size);
  lua_settop(F, 2);
  lua_pushinteger(F, (lua_Integer)at);
  lua_pushinteger(F, -1);
  lua_pushcclosure(F, gmatch_next, 4);
  return 1;
}

/* ---- gsub ------------------------------------------------------------------------------------------------------------ */

/* Adds the replacement text at index 3 with its %0 to %9. */
static void add_text(matcher *m, luaL_Buffer *b, const char *s, const char *e) {
  size_t size;
  const char *r = lua_tolstring(m->F, 3, &size), *r_end = r + size;
  fm_fence_charge(m->F, size / 16);
  for (const char *mark; (mark = memchr(r, '%', (size_t)(r_end - r))); r = mark + 2) {
    char c = mark + 1 < r_end ? mark[1] : 0;
    luaL_addlstring(b, r, (size_t)(mark - r));
    if (c == '%') luaL_addchar(b, '%');
    else if (c == '0') luaL_addlstring(b, s, (size_t)(e - s));
    else if (isdigit((unsigned char)c)) {
      push_capture(m, c - '1', s, e);
      luaL_tolstring(m->F, -1, NULL);
      lua_remove(m->F, -2);
      luaL_addvalue(b);
    } else {
      luaL_error(m->F, "invalid use of '%%' in replacement string");
    }
  }
  luaL_addlstring(b, r, (size_t)(r_end - r));
}

/* Adds what takes the place of the match; whether it differs. */
static bool add_value(matcher *m, luaL_Buffer *b, const char *s, const char *e, int kind) {
  lua_State *F = m->F;
  if (kind == LUA_TFUNCTION) {
    lua_pushvalue(F, 3);
    lua_call(F, push_captures(m, s, e), 1);
  } else if (kind == LUA_TTABLE) {
    push_capture(m, 0, s, e);
    lua_gettable(F, 3);
  } else {
    add_text(m, b, s, e);
    return true;
  }
  if (!lua_toboolean(F, -1)) {
    lua_pop(F, 1);
    luaL_addlstring(b, s, (size_t)(e - s));
    return false;
  }
  if (!lua_isstring(F, -1)) luaL_error(F, "invalid replacement value (a %s)", luaL_typename(F, -1));
  luaL_addvalue(b);
  return true;
}

static int p_gsub(lua_State *F) {
  size_t size, pattern_size;
  const char *text = luaL_checklstring(F, 1, &size), *pattern = luaL_checklstring(F, 2, &pattern_size);
  int kind = lua_type(F, 3);
  luaL_argexpected(F, kind == LUA_TNUMBER || kind == LUA_TSTRING || kind == LUA_TFUNCTION || kind == LUA_TTABLE, 3,
                   "string/function/table");
  lua_Integer most = luaL_optinteger(F, 4, (lua_Integer)size + 1), n = 0;
  bool anchored = pattern_size > 0 && *pattern == '^', changed = false;
  matcher m = matcher_of(F, text, size, pattern + anchored, pattern_size - anchored);
  const char *s = text, *last = NULL;
  luaL_Buffer b;
  lua_settop(F, 3);
  luaL_buffinit(F, &b);
  while (n < most) {
    const char *e = attempt(&m, s);
    if (e && e != last) {
      n++;
      changed |= add_value(&m, &b, s, e, kind);
      s = last = e;
    } else if (s < m.end) {
      luaL_addchar(&b, *s++);
    } else {
      break;
    }
    if (anchored) break;
  }
  if (changed) {
    luaL_addlstring(&b, s, (size_t)(m.end - s));
    luaL_pushresult(&b);
  } else {
    lua_pushvalue(F, 1);
  }
  lua_pushinteger(F, n);
  return 2;
}

void fm_fence_patterns(lua_State *F) {
  static const luaL_Reg own[] = { { "find", p_find }, { "gmatch", p_gmatch }, { "gsub", p_gsub }, { "match", p_match }, { NULL, NULL } };
  luaL_setfuncs(F, own, 0);
}
