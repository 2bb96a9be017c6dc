/*
** fence.c - runs a program in a state of its own, with quotas of instructions, bytes and seconds; see fence.h.
*/
#include "bind/fence.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include "base/mem.h"
#include "bind/bind.h"

#define CFENCE "fathom.core.fence"

enum { INTERVAL = FM_FENCE_INTERVAL, SLOW_INTERVAL = 4, SLOW_MS = 2,
       SMALL = 512, GRAIN = 16, BLOCK = 16 * 1024, MAX_DEPTH = 64 };

/* Why a program is over. */
enum { FINE, RUNNING, OVER_INSTRUCTIONS, OVER_BYTES, OVER_SECONDS, BAD_INPUT, BAD_SYNTAX, RAISED };
static const char *const reasons[] = { "fine", "running", "instructions", "bytes", "seconds", "input", "syntax", "error" };

typedef struct block { struct block *prev, *next; size_t size, pad; } block;   /* 32 bytes: what follows is aligned */

typedef struct fence {
  jmp_buf out;
  int why, open, closed;
  uint64_t spent, instructions, unlooked;
  double deadline, looked;                /* ms */
  size_t held, quota;                     /* bytes taken from the host, free ones among small blocks included */
  block *large, *blocks;                  /* blocks are cut into small pieces */
  char *cut, *cut_end;
  void *pieces[SMALL / GRAIN + 1];        /* free small pieces, by size */
  const void *refused;                    /* the request that was refused last */
  size_t refused_size;
  lua_State *host;                        /* where the input stands, while the program is prepared */
  int input;
  lua_State *F, *main;                    /* the state, and the thread in which the program runs */
  double slice_end;                       /* ms: when others want their turn */
  int paused;                             /* the hook made the thread yield */
  const char *code, *prelude;
  size_t code_size, prelude_size;
} fence;

/* ---- memory ------------------------------------------------------------------------------------------ */

static block *take(fence *f, block **list, size_t size) {
  size_t whole = size + sizeof(block);
  if (whole < size || whole > f->quota - f->held) return NULL;
  block *b = fm_alloc((int64_t)whole);
  if (!b) return NULL;
  *b = (block){ NULL, *list, size, 0 };
  if (*list) (*list)->prev = b;
  *list = b;
  f->held += whole;
  return b;
}

static void give(fence *f, block *b) {
  if (b->prev) b->prev->next = b->next;
  else f->large = b->next;
  if (b->next) b->next->prev = b->prev;
  f->held -= b->size + sizeof *b;
  fm_free(b);
}

static size_t class_of(size_t size) { return (size + GRAIN - 1) / GRAIN; }

static void *obtain(fence *f, size_t size) {
  if (size > SMALL) {
    block *b = take(f, &f->large, size);
    return b ? b + 1 : NULL;
  }
  size_t c = class_of(size), bytes = c * GRAIN;
  void *p = f->pieces[c];
  if (p) {
    memcpy(&f->pieces[c], p, sizeof p);
    return p;
  }
  if ((size_t)(f->cut_end - f->cut) < bytes) {
    block *b = take(f, &f->blocks, BLOCK);
    if (!b) return NULL;
    f->cut = (char *)(b + 1);
    f->cut_end = f->cut + BLOCK;
  }
  p = f->cut;
  f->cut += bytes;
  return p;
}

static void release(fence *f, void *p, size_t size) {
  if (size > SMALL) {
    give(f, (block *)p - 1);
    return;
  }
  memcpy(p, &f->pieces[class_of(size)], sizeof p);
  f->pieces[class_of(size)] = p;
}

static void forget(fence *f) {
  for (block *b = f->large, *next; b; b = next) next = b->next, fm_free(b);
  for (block *b = f->blocks, *next; b; b = next) next = b->next, fm_free(b);
  f->large = f->blocks = NULL;
  f->F = f->main = NULL;
  f->held = 0, f->closed = 1;
}

static _Noreturn void leave(fence *f, int why) {
  f->why = why;
  longjmp(f->out, 1);
}

/* Lua answers a refusal by collecting all garbage and asking again: the second time the program is over. */
static void *refuse(fence *f, const void *p, size_t size) {
  if (f->open && f->refused_size == size && f->refused == p) leave(f, OVER_BYTES);
  f->refused = p;
  f->refused_size = size;
  return NULL;
}

static void *fence_alloc(void *ud, void *p, size_t old, size_t size) {
  fence *f = ud;
  if (!p) old = 0;                        // it says the type of what is made
  if (size == 0) {
    if (p) release(f, p, old);
    return NULL;
  }
  if (p && old <= SMALL && size <= SMALL && class_of(old) == class_of(size)) return p;
  void *q = obtain(f, size);
  if (!q && p && size <= old) return p;   // shrinking never fails; a block known by less goes at the end
  if (!q) return refuse(f, p, size);
  f->refused_size = 0;
  if (p) {
    memcpy(q, p, old < size ? old : size);
    release(f, p, old);
  }
  return q;
}

/* ---- time -------------------------------------------------------------------------------------------- */

static fence *fence_of(lua_State *F) {
  void *ud;
  lua_getallocf(F, &ud);
  return ud;
}

uint64_t fm_fence_quota(lua_State *F) { return fence_of(F)->quota; }

void fm_fence_charge(lua_State *F, uint64_t n) {
  fence *f = fence_of(F);
  f->spent = n > UINT64_MAX - f->spent ? UINT64_MAX : f->spent + n;
  if (f->spent > f->instructions) leave(f, OVER_INSTRUCTIONS);
  f->unlooked += n + 8;
  if (f->unlooked < INTERVAL) return;
  f->unlooked = 0;
  f->looked = fm_now_ms();
  if (f->looked > f->deadline) leave(f, OVER_SECONDS);
}

/* Others get their turn only where the program itself can wait: not inside its coroutines, nor below a C function. */
static void on_count(lua_State *F, lua_Debug *ar) {
  fence *f = fence_of(F);
  double before = f->looked;
  int count = lua_gethookcount(F);
  (void)ar;
  f->unlooked = INTERVAL;
  fm_fence_charge(F, (uint64_t)count);
  // one instruction may work for long (comparing megabytes): then the next look comes soon
  int want = f->looked - before > SLOW_MS ? SLOW_INTERVAL : INTERVAL;
  if (want != count) lua_sethook(F, on_count, LUA_MASKCOUNT, want);
  if (F != f->main || !lua_isyieldable(F) || f->looked < f->slice_end) return;
  f->paused = 1;
  lua_yield(F, 0);
}

bool fm_fence_is_main(lua_State *F) { return fence_of(F)->main == F; }

/* ---- input: plain data of the host, copied ------------------------------------------------------------- */

/* Copies the value at index of the host's stack. Nothing here raises in the host; in the fence it may. */
static void copy(lua_State *F, lua_State *H, int index, int depth) {
  size_t size;
  const char *s;
  if (depth > MAX_DEPTH || !lua_checkstack(H, 4)) luaL_error(F, "the input is nested too deeply, or in a circle");
  luaL_checkstack(F, 6, "the input is nested too deeply");
  switch (lua_type(H, index)) {
    case LUA_TNIL: lua_pushnil(F); return;
    case LUA_TBOOLEAN: lua_pushboolean(F, lua_toboolean(H, index)); return;
    case LUA_TNUMBER:
      if (lua_isinteger(H, index)) lua_pushinteger(F, lua_tointeger(H, index));
      else lua_pushnumber(F, lua_tonumber(H, index));
      return;
    case LUA_TSTRING:
      s = lua_tolstring(H, index, &size);
      lua_pushlstring(F, s, size);
      return;
    case LUA_TTABLE: break;
    default: luaL_error(F, "the input holds a %s: only plain data comes in", lua_typename(H, lua_type(H, index)));
  }
  int top = lua_gettop(H);
  lua_newtable(F);
  for (lua_pushnil(H); lua_next(H, index); lua_settop(H, top + 1)) {
    copy(F, H, top + 1, depth + 1);
    copy(F, H, top + 2, depth + 1);
    lua_rawset(F, -3);
  }
  lua_settop(H, top);
}

/* ---- the program --------------------------------------------------------------------------------------- */

/* The program as a function, on the stack: an expression, else statements. */
static void compile(lua_State *F, fence *f) {
  luaL_Buffer b;
  size_t size;
  f->why = BAD_SYNTAX;
  fm_fence_charge(F, f->code_size);
  if (f->code_size > FM_FENCE_CHUNK) luaL_error(F, "the program is longer than %d bytes", FM_FENCE_CHUNK);
  luaL_buffinit(F, &b);
  luaL_addstring(&b, "return ");
  luaL_addlstring(&b, f->code, f->code_size);
  luaL_pushresult(&b);
  const char *s = lua_tolstring(F, -1, &size);
  if (luaL_loadbufferx(F, s, size, "=code", "t") != LUA_OK) {
    lua_pop(F, 1);
    if (luaL_loadbufferx(F, f->code, f->code_size, "=code", "t") != LUA_OK) lua_error(F);
  }
  lua_remove(F, -2);
  f->why = FINE;
}

/* Makes the thread in which the program runs, with what it starts from: render (what the prelude returns), the program, its input. */
static int prepare(lua_State *F) {
  fence *f = fence_of(F);
  fm_fence_globals(F);
  lua_pushvalue(F, -1);
  lua_rawseti(F, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
  f->main = lua_newthread(F);
  lua_rawsetp(F, LUA_REGISTRYINDEX, f);                           // nobody else keeps it
  if (luaL_loadbufferx(F, f->prelude, f->prelude_size, "=prelude", "t") != LUA_OK) return lua_error(F);
  lua_call(F, 0, 1);                                              // globals, render
  f->open = 1;
  compile(F, f);
  f->why = BAD_INPUT;
  copy(F, f->host, f->input, 0);                                  // globals, render, program, input
  f->why = FINE;
  lua_pushvalue(F, -1);
  lua_setfield(F, 1, "input");
  luaL_checkstack(f->main, 8, NULL);
  lua_xmove(F, f->main, 3);
  lua_sethook(f->main, on_count, LUA_MASKCOUNT, INTERVAL);
  return 0;
}

static int rendered(lua_State *F, int status, lua_KContext context) {
  (void)F, (void)status, (void)context;
  return 1;
}

/* Stack: render, the program's values. */
static int ran(lua_State *F, int status, lua_KContext context) {
  (void)status, (void)context;
  lua_callk(F, lua_gettop(F) - 1, 1, 0, rendered);
  return 1;
}

/* Stack: render, program, input. */
static int program(lua_State *F) {
  lua_callk(F, 1, LUA_MULTRET, 0, ran);
  return ran(F, LUA_OK, 0);
}

static int ended(fence *f, int status, int otherwise) {
  if (status == LUA_OK) return f->why = otherwise;
  return f->why = status == LUA_ERRMEM ? OVER_BYTES : f->why == FINE ? RAISED : f->why;
}

/* Opens the state; FINE, or why not: then a message may stand on its stack. */
static int begin(fence *f) {
  if (setjmp(f->out)) return f->why;
  lua_State *F = lua_newstate(fence_alloc, f);
  if (!F) return f->why = OVER_BYTES;
  lua_pushcfunction(F, prepare);
  int status = lua_pcall(F, 0, 0, 0);
  f->F = status == LUA_OK ? f->main : F;
  if (status != LUA_OK) return ended(f, status, FINE);
  lua_pushcfunction(f->main, program);
  lua_insert(f->main, 1);
  return f->why = RUNNING;
}

/* Goes on until slice_end at least; leaves the program's text or message on f->F where there is one. */
static int go_on(fence *f) {
  int n = 0, begun = lua_status(f->main) == LUA_YIELD;
  if (setjmp(f->out)) {
    f->F = NULL;
    return f->why;
  }
  f->why = FINE, f->paused = 0;
  int status = lua_resume(f->main, NULL, begun ? 0 : 3, &n);
  if (status != LUA_YIELD) return ended(f, status, FINE);
  if (f->paused) return f->why = RUNNING;
  lua_pushliteral(f->main, "attempt to yield from outside a coroutine");
  return f->why = RAISED;
}

static int fence_gc(lua_State *L) {
  forget(luaL_checkudata(L, 1, CFENCE));
  return 0;
}

static void push_text(lua_State *L, lua_State *F) {
  size_t size;
  const char *s = F && lua_type(F, -1) == LUA_TSTRING ? lua_tolstring(F, -1, &size) : NULL;
  if (s) lua_pushlstring(L, s, size);
  else if (F && lua_isinteger(F, -1)) lua_pushfstring(L, "%I", (LUAI_UACINT)lua_tointeger(F, -1));
  else if (F && lua_isnumber(F, -1)) lua_pushfstring(L, "%f", (LUAI_UACNUMBER)lua_tonumber(F, -1));
  else if (F) lua_pushfstring(L, "the error is a %s", luaL_typename(F, -1));
  else lua_pushnil(L);
}

/*
** core.fence(code, prelude, instructions, bytes, input) -> fence
** The prelude is a trusted text, run first with no quota of time; it returns a function that makes one string of the values of code.
*/
int fm_bind_fence(lua_State *L) {
  size_t code_size, prelude_size;
  const char *code = luaL_checklstring(L, 1, &code_size), *prelude = luaL_checklstring(L, 2, &prelude_size);
  lua_Integer instructions = luaL_checkinteger(L, 3), bytes = luaL_checkinteger(L, 4);
  lua_settop(L, 5);
  luaL_checkstack(L, 4 * MAX_DEPTH + 8, NULL);
  fence *f = lua_newuserdatauv(L, sizeof *f, 0);
  memset(f, 0, sizeof *f);
  luaL_setmetatable(L, CFENCE);
  f->instructions = (uint64_t)instructions, f->quota = (size_t)bytes;
  f->deadline = HUGE_VAL;
  f->host = L, f->input = 5;
  f->code = code, f->code_size = code_size, f->prelude = prelude, f->prelude_size = prelude_size;
  begin(f);
  lua_settop(L, 6);
  f->host = NULL, f->code = f->prelude = NULL;                    // the strings may go now
  return 1;
}

/*
** fence:step(slice_ms, left_ms) -> nil: it goes on; or why, text, instructions spent, bytes held
**   left_ms   how long the program may still run
**   why       "fine", or "instructions" "bytes" "seconds" (a quota is used up: no text) "input" "syntax" "error" (text is the message)
*/
static int f_step(lua_State *L) {
  fence *f = luaL_checkudata(L, 1, CFENCE);
  double slice = luaL_checknumber(L, 2), left = luaL_checknumber(L, 3), now = fm_now_ms();
  if (f->closed) return luaL_error(L, "attempt to use a closed fence");
  f->slice_end = now + slice, f->deadline = now + left, f->looked = now;
  if (f->why == RUNNING && go_on(f) == RUNNING) return 0;
  lua_pushstring(L, reasons[f->why]);
  push_text(L, f->F);
  lua_pushinteger(L, f->spent > INT64_MAX ? INT64_MAX : (lua_Integer)f->spent);
  lua_pushinteger(L, (lua_Integer)f->held);
  forget(f);
  return 4;
}

static int f_tostring(lua_State *L) {
  fence *f = luaL_checkudata(L, 1, CFENCE);
  lua_pushfstring(L, CFENCE " (%s)", f->closed ? "closed" : "running");
  return 1;
}

void fm_bind_open_fence(lua_State *L) {
  static const luaL_Reg methods[] = { { "step", f_step }, { NULL, NULL } };
  fm_bind_class(L, CFENCE, methods, fence_gc, f_tostring);
}
