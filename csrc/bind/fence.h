/*
** fence.h - a Lua state of its own for code that nobody vouches for: what its files share.
** The fence ends a program from outside: once a quota is used up, control leaves the state by longjmp and the state is
** never entered again; all its memory goes with its allocator. So nothing inside (pcall, a coroutine, __close) can hold on.
** That needs two things: no code of the program runs where hooks are off (finalizers: setmetatable refuses __gc), and
** whatever works for long inside C says so by fm_fence_charge.
*/
#ifndef FM_BIND_FENCE_H
#define FM_BIND_FENCE_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stdint.h>

#define FM_FENCE_INTERVAL 32              /* instructions between two looks at the clock: one of them may work for a millisecond */
#define FM_FENCE_CHUNK (256 * 1024)       /* bytes of a program's text, at most: compiling is not interrupted */

/* Counts n instructions and looks at the clock now and then; does not return when a quota is used up. */
void fm_fence_charge(lua_State *F, uint64_t n);
/* Whether this is the thread in which the program itself runs. */
bool fm_fence_is_main(lua_State *F);
/* How many bytes the state may have. */
uint64_t fm_fence_quota(lua_State *F);
/* Pushes the globals of a program: the standard functions that are safe, guarded where they work for long. May raise. */
void fm_fence_globals(lua_State *F);
/* Sets find, match, gmatch and gsub in the table on top: patterns that count their steps. May raise. */
void fm_fence_patterns(lua_State *F);

#endif
