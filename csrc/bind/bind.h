/*
** bind.h - what the files of the Lua binding share: handles, errors, lists of ids, option tables.
** A handle is a userdata whose pointer is NULL once closed. Children keep parents alive by counts in C.
*/
#ifndef FM_BIND_BIND_H
#define FM_BIND_BIND_H

#include <lauxlib.h>
#include <lua.h>

#include "run/engine.h"

#define FM_CLOADER "fathom.core.loader"
#define FM_CMODEL "fathom.core.model"
#define FM_CSESSION "fathom.core.session"
#define FM_CTASK "fathom.core.task"
#define FM_CTOKENIZER "fathom.core.tokenizer"
#define FM_CTENSOR "fathom.tensor"
#define FM_CERROR "fathom.error"
#define FM_CBOX "fathom.core.box"

typedef struct fm_handle { void *p; void *extra; } fm_handle;

/* A closed handle of metatable `name` on the stack. */
fm_handle *fm_bind_new(lua_State *L, const char *name);
/* The open object at index; raises "attempt to use a closed <what>" otherwise. */
void      *fm_bind_get(lua_State *L, int index, const char *name);
/* A pushed userdata that frees *box with fm_free when it goes: for what is held while Lua may raise. */
void     **fm_bind_box(lua_State *L);
/* Metatable with methods, __gc and __close = close, __tostring = tostring. */
void       fm_bind_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction close,
                         lua_CFunction tostring);
/* Pushes nil, err; returns 2. */
int        fm_bind_fail(lua_State *L, const fm_error *err);
void       fm_bind_push_error(lua_State *L, const fm_error *err);
/* The list of ids at index, in a userdata that is pushed. */
int32_t   *fm_bind_ids(lua_State *L, int index, int64_t *n);
void       fm_bind_push_ids(lua_State *L, const int32_t *ids, int64_t n);
/* Fields of the option table at index; absent ones give `otherwise`. Wrong types raise naming the field. */
lua_Integer fm_bind_int (lua_State *L, int index, const char *key, lua_Integer otherwise);
lua_Number  fm_bind_num (lua_State *L, int index, const char *key, lua_Number otherwise);
bool        fm_bind_bool(lua_State *L, int index, const char *key, bool otherwise);
const char *fm_bind_str (lua_State *L, int index, const char *key, const char *otherwise);

/* A tensor around *data, which must stand in a box: the tensor takes it out. */
void fm_bind_push_tensor(lua_State *L, void **box, int ndim, const int64_t *shape);

void fm_bind_open_tensor(lua_State *L);
void fm_bind_open_tokenizer(lua_State *L);
void fm_bind_open_model(lua_State *L);
void fm_bind_open_session(lua_State *L);
void fm_bind_open_guide(lua_State *L);
void fm_bind_open_root(lua_State *L);
void fm_bind_open_fence(lua_State *L);
int  fm_bind_root(lua_State *L);                   /* core.root(dir) */
int  fm_bind_guide(lua_State *L);                  /* core.guide(tokenizer, options) */
int  fm_bind_tokenizer(lua_State *L);              /* core.tokenizer(path) */
int  fm_bind_session(lua_State *L);                /* model:session() */
int  fm_bind_restore(lua_State *L);                /* model:restore(path) */
int  fm_bind_adopt(lua_State *L);                  /* core.adopt(number) */
int  fm_bind_history(lua_State *L);                /* core.history(path) */
int  fm_bind_fence(lua_State *L);                  /* core.fence(code, ...) */
fm_load_options fm_bind_load_options(lua_State *L, int index);

FM_API int luaopen_fathom_core(lua_State *L);

#endif
