/*
** fence_text.c - find, match, gmatch and gsub of the fence.
*/
#define _GNU_SOURCE
#include <ctype.h>
#include <string.h>

#include "bind/pattern.h"

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

static int search(lua_State *F, bool find) {
  size_t size, pattern_size;
  const char *text = luaL_checklstring(F, 1, &size), *pattern = luaL_checklstring(F, 2, &pattern_size);
  size_t at = start_of(F, 3, size);
  if (at > size) {
    luaL_pushfail(F);
    return 1;
  }
  if (find && (lua_toboolean(F, 4) || fm_pattern_plain(pattern, pattern_size))) {
    fm_fence_charge(F, (size - at) / 16 + pattern_size / 16);
    const char *s = memmem(text + at, size - at, pattern, pattern_size);     // linear, unlike a loop of memcmp
    if (s) return found(F, text, s, s + pattern_size);
    luaL_pushfail(F);
    return 1;
  }
  bool anchored = pattern_size > 0 && *pattern == '^';
  fm_matcher m = fm_matcher_of(F, text, size, pattern + anchored, pattern_size - anchored);
  for (const char *s = text + at; s <= m.end; s++) {
    const char *e = fm_matcher_try(&m, s);
    if (e) return find ? found(F, text, s, e) + fm_matcher_push_all(&m, NULL, NULL) : fm_matcher_push_all(&m, s, e);
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
  fm_matcher m = fm_matcher_of(F, text, size, pattern, pattern_size);
  for (; at <= (lua_Integer)size; at++) {
    const char *e = fm_matcher_try(&m, text + at);
    if (!e || e - text == last) continue;
    lua_pushinteger(F, e - text);
    lua_pushvalue(F, -1);
    lua_replace(F, lua_upvalueindex(3));
    lua_replace(F, lua_upvalueindex(4));
    return fm_matcher_push_all(&m, text + at, e);
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
static void add_text(fm_matcher *m, luaL_Buffer *b, const char *s, const char *e) {
  size_t size;
  const char *r = lua_tolstring(m->F, 3, &size), *r_end = r + size;
  fm_fence_charge(m->F, size / 16);
  for (const char *mark; (mark = memchr(r, '%', (size_t)(r_end - r))); r = mark + 2) {
    char c = mark + 1 < r_end ? mark[1] : 0;
    luaL_addlstring(b, r, (size_t)(mark - r));
    if (c == '%') luaL_addchar(b, '%');
    else if (c == '0') luaL_addlstring(b, s, (size_t)(e - s));
    else if (isdigit((unsigned char)c)) {
      fm_matcher_push(m, c - '1', s, e);
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
static bool add_value(fm_matcher *m, luaL_Buffer *b, const char *s, const char *e, int kind) {
  lua_State *F = m->F;
  if (kind == LUA_TFUNCTION) {
    lua_pushvalue(F, 3);
    lua_call(F, fm_matcher_push_all(m, s, e), 1);
  } else if (kind == LUA_TTABLE) {
    fm_matcher_push(m, 0, s, e);
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
  fm_matcher m = fm_matcher_of(F, text, size, pattern + anchored, pattern_size - anchored);
  const char *s = text, *last = NULL;
  luaL_Buffer b;
  lua_settop(F, 3);
  luaL_buffinit(F, &b);
  while (n < most) {
    const char *e = fm_matcher_try(&m, s);
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
