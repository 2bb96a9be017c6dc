/*
** pattern.h - Lua's patterns, with every step charged to the fence, so that one that would go on for ever ends with the program's quota.
** What they mean: Lua 5.4 reference manual, 6.4.1. Errors of a pattern are raised.
*/
#ifndef FM_BIND_PATTERN_H
#define FM_BIND_PATTERN_H

#include <stddef.h>

#include "bind/fence.h"

enum { FM_CAPTURES = 32, FM_CAPTURE_OPEN = -1, FM_CAPTURE_PLACE = -2 };

/* One attempt at matching. A capture's size is FM_CAPTURE_OPEN until it is closed, or FM_CAPTURE_PLACE. */
typedef struct fm_matcher {
  lua_State *F;
  const char *text, *end, *pattern, *pattern_end;
  int n_captures, nesting, steps;
  struct { const char *at; ptrdiff_t size; } captures[FM_CAPTURES];
} fm_matcher;

/* A pattern without its anchor over a text; both must stay where they are. */
fm_matcher  fm_matcher_of(lua_State *F, const char *text, size_t size, const char *pattern, size_t pattern_size);
/* Where a match that begins at s ends, or NULL. */
const char *fm_matcher_try(fm_matcher *m, const char *s);
/* Pushes capture i of the match from s to e, or the whole match where the pattern has none and i is 0. */
void        fm_matcher_push(fm_matcher *m, int i, const char *s, const char *e);
/* Pushes all captures (s NULL: without the whole match in place of none) and returns how many. */
int         fm_matcher_push_all(fm_matcher *m, const char *s, const char *e);
/* Whether a pattern is text as it stands. */
bool        fm_pattern_plain(const char *pattern, size_t size);

#endif
