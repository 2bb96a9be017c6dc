/*
** lua_server.c - server.h for Lua: net.server{ ... } and the exchanges it hands out; and what a command needs besides.
*/
#include "net/net.h"
#include "net/server.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#define SERVER "fathom.net.server"
#define EXCHANGE "fathom.net.exchange"

static void *get(lua_State *L, const char *name) {
  void **box = luaL_checkudata(L, 1, name);
  if (!*box) luaL_error(L, "attempt to use a closed %s", strrchr(name, '.') + 1);
  return *box;
}

static void **box_new(lua_State *L, const char *name) {
  void **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, name);
  return box;
}

/* ---- servers ------------------------------------------------------------------------------------------ */

static int64_t number(lua_State *L, const char *key, lua_Number most) {
  lua_getfield(L, 1, key);
  lua_Number v = luaL_optnumber(L, -1, 0);
  if (!(v >= 0 && v <= most)) luaL_error(L, "%s: out of range", key);
  lua_pop(L, 1);
  return (int64_t)v;
}

/* net.server{ host=, port=, max_connections=, max_body=, max_bodies=, head_ms=, body_ms=, idle_ms=, stall_ms= }
   -> server | nil, code, message, hint */
static int server(lua_State *L) {
  fm_error err;
  fm_server *s;
  luaL_checktype(L, 1, LUA_TTABLE);
  fm_server_options o = { .port = (int)number(L, "port", 65535), .max_connections = (int)number(L, "max_connections", 1e6),
    .max_body = number(L, "max_body", 1e12), .max_bodies = number(L, "max_bodies", 1e12), .head_ms = number(L, "head_ms", 1e9),
    .body_ms = number(L, "body_ms", 1e9), .idle_ms = number(L, "idle_ms", 1e9), .stall_ms = number(L, "stall_ms", 1e9) };
  lua_getfield(L, 1, "host");
  o.host = luaL_optstring(L, -1, NULL);
  void **box = box_new(L, SERVER);
  if (fm_server_open(&s, &o, &err) != FM_OK) return fm_net_fail(L, &err);
  *box = s;
  return 1;
}

static int s_step(lua_State *L) {
  lua_Number ms = luaL_optnumber(L, 2, 0);
  fm_server_step(get(L, SERVER), ms > 0 ? ms < 1e6 ? (int)ms : 1000000 : 0);
  return 0;
}

static int s_port(lua_State *L) {
  lua_pushinteger(L, fm_server_port(get(L, SERVER)));
  return 1;
}

static int s_quiet(lua_State *L) {
  fm_server_quiet(get(L, SERVER));
  return 0;
}

static int s_counts(lua_State *L) {
  fm_server_counts n = fm_server_count(get(L, SERVER));
  const struct { const char *key; int64_t v; } field[] = { { "connections", n.connections }, { "exchanges", n.exchanges },
    { "accepted", n.accepted }, { "malformed", n.malformed }, { "too_large", n.too_large }, { "slow", n.slow }, { "busy", n.busy },
    { "dropped", n.dropped }, { "stalled", n.stalled }, { "bytes_in", n.bytes_in }, { "bytes_out", n.bytes_out },
    { "body_bytes", n.body_bytes } };
  lua_createtable(L, 0, sizeof field / sizeof *field);
  for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
    lua_pushinteger(L, field[i].v);
    lua_setfield(L, -2, field[i].key);
  }
  return 1;
}

static void set_field(void *user, const char *name, const char *value) {
  lua_State *L = user;
  luaL_checkstack(L, 4, NULL);
  lua_pushstring(L, value ? value : "");
  lua_setfield(L, -2, name);
}

/* Names of headers in small letters. */
static void set_header(void *user, const char *name, const char *value) {
  char small[64];
  size_t i = 0;
  for (; name[i] && i + 1 < sizeof small; i++) small[i] = name[i] >= 'A' && name[i] <= 'Z' ? (char)(name[i] + 32) : name[i];
  small[i] = 0;
  set_field(user, small, value);
}

/* server:take() -> exchange, { method=, path=, address=, body=, headers=, query= } | nil */
static int s_take(lua_State *L) {
  int64_t size;
  void **box = (get(L, SERVER), box_new(L, EXCHANGE));
  fm_exchange *x = *box = fm_server_take(get(L, SERVER));
  if (!x) return 0;
  lua_createtable(L, 0, 6);
  lua_pushstring(L, fm_exchange_method(x));
  lua_setfield(L, -2, "method");
  lua_pushstring(L, fm_exchange_path(x));
  lua_setfield(L, -2, "path");
  lua_pushstring(L, fm_exchange_address(x));
  lua_setfield(L, -2, "address");
  const char *body = fm_exchange_body(x, &size);
  lua_pushlstring(L, body, (size_t)size);
  lua_setfield(L, -2, "body");
  lua_newtable(L);
  fm_exchange_fields(x, false, set_header, L);
  lua_setfield(L, -2, "headers");
  lua_newtable(L);
  fm_exchange_fields(x, true, set_field, L);
  lua_setfield(L, -2, "query");
  return 2;
}

static int s_close(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SERVER);
  fm_server *s = *box;
  *box = NULL;
  fm_server_close(s);
  return 0;
}

/* ---- exchanges ---------------------------------------------------------------------------------------- */

/* Pointers into the list { name, value, ... } at index 3; the array is a userdata that is pushed. */
static const char **headers(lua_State *L, int *n) {
  luaL_checktype(L, 3, LUA_TTABLE);
  lua_Integer len = luaL_len(L, 3);
  luaL_argcheck(L, len % 2 == 0 && len < 1000, 3, "names and values");
  const char **list = lua_newuserdatauv(L, (size_t)(len + 1) * sizeof *list, 0);
  for (lua_Integer i = 0; i < len; i++) {
    luaL_argcheck(L, lua_rawgeti(L, 3, i + 1) == LUA_TSTRING, 3, "strings expected");
    list[i] = lua_tostring(L, -1);
    lua_pop(L, 1);
  }
  *n = (int)len / 2;
  return list;
}

static int done(lua_State *L, fm_status status, const fm_error *err) {
  if (status != FM_OK) return fm_net_fail(L, err);
  lua_pushboolean(L, true);
  return 1;
}

/* exchange:reply(status, { name, value, ... }, body) -> true | nil, code, message */
static int x_reply(lua_State *L) {
  fm_error err;
  size_t size;
  int n;
  fm_exchange *x = get(L, EXCHANGE);
  int status = (int)luaL_checkinteger(L, 2);
  const char *body = luaL_checklstring(L, 4, &size), **list = headers(L, &n);
  return done(L, fm_exchange_reply(x, status, list, n, body, (int64_t)size, &err), &err);
}

/* exchange:begin(status, { name, value, ... }) -> true | nil, code, message */
static int x_begin(lua_State *L) {
  fm_error err;
  int n;
  fm_exchange *x = get(L, EXCHANGE);
  int status = (int)luaL_checkinteger(L, 2);
  const char **list = headers(L, &n);
  return done(L, fm_exchange_begin(x, status, list, n, &err), &err);
}

/* exchange:write(bytes) -> how many bytes the client has not taken | nil, code, message */
static int x_write(lua_State *L) {
  fm_error err;
  size_t size;
  fm_exchange *x = get(L, EXCHANGE);
  const char *data = luaL_checklstring(L, 2, &size);
  if (fm_exchange_write(x, data, (int64_t)size, &err) != FM_OK) return fm_net_fail(L, &err);
  lua_pushinteger(L, fm_exchange_pending(x));
  return 1;
}

static int x_finish(lua_State *L) {
  fm_exchange_finish(get(L, EXCHANGE));
  return 0;
}

static int x_drop(lua_State *L) {
  fm_exchange_drop(get(L, EXCHANGE));
  return 0;
}

static int x_pending(lua_State *L) {
  lua_pushinteger(L, fm_exchange_pending(get(L, EXCHANGE)));
  return 1;
}

static int x_gone(lua_State *L) {
  lua_pushboolean(L, fm_exchange_gone(get(L, EXCHANGE)));
  return 1;
}

static int x_close(lua_State *L) {
  void **box = luaL_checkudata(L, 1, EXCHANGE);
  fm_exchange *x = *box;
  *box = NULL;
  fm_exchange_free(x);
  return 0;
}

/* ---- for keys and commands ------------------------------------------------------------------------------ */

/* net.same(a, b): equal, in a time that depends on the length of a only */
static int same(lua_State *L) {
  size_t na, nb;
  const volatile char *a = luaL_checklstring(L, 1, &na), *b = luaL_checklstring(L, 2, &nb);
  volatile unsigned char differs = na != nb;
  for (size_t i = 0; i < na; i++) differs |= (unsigned char)(a[i] ^ (nb ? b[i % nb] : 0));
  lua_pushboolean(L, na > 0 && !differs);
  return 1;
}

static void on_count(lua_State *L, lua_Debug *d) {
  (void)d;
  if (lua_isyieldable(L)) lua_yield(L, 0);
}

/* net.pace(coroutine, n): from now on it yields by itself after each n instructions, for work of pure Lua that takes long */
static int pace(lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  luaL_argcheck(L, co, 1, "a coroutine expected");
  lua_sethook(co, on_count, LUA_MASKCOUNT, (int)luaL_checkinteger(L, 2));
  return 0;
}

/* net.files(dir) -> { { name=, size=, modified= }, ... } of its plain files, links left out | nil, message */
static int files(lua_State *L) {
  struct stat st;
  struct dirent *e;
  const char *dir = luaL_checkstring(L, 1);
  lua_newtable(L);
  DIR *d = opendir(dir);
  if (!d) {
    lua_pushnil(L);
    lua_pushstring(L, strerror(errno));
    return 2;
  }
  // 255 bytes a name: nothing below raises while the folder is open but for want of memory
  for (lua_Integer n = 0; (e = readdir(d));) {
    if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
    lua_createtable(L, 0, 3);
    lua_pushstring(L, e->d_name);
    lua_setfield(L, -2, "name");
    lua_pushinteger(L, st.st_size);
    lua_setfield(L, -2, "size");
    lua_pushinteger(L, st.st_mtime);
    lua_setfield(L, -2, "modified");
    lua_rawseti(L, -2, ++n);
  }
  closedir(d);
  return 1;
}

static volatile sig_atomic_t caught;

static void note_signal(int number_of) { caught = number_of; }

/* net.catch(): SIGINT and SIGTERM are noted from now on, in place of ending the program. For commands, which own it. */
static int catch_signals(lua_State *L) {
  struct sigaction a = { .sa_handler = note_signal };
  (void)L;
  sigemptyset(&a.sa_mask);
  sigaction(SIGINT, &a, NULL);
  sigaction(SIGTERM, &a, NULL);
  return 0;
}

/* net.caught() -> the number of the signal that came since it was last asked | nil */
static int was_caught(lua_State *L) {
  if (!caught) return 0;
  lua_pushinteger(L, caught);
  caught = 0;
  return 1;
}

void fm_net_open_server(lua_State *L) {
  static const luaL_Reg of_server[] = { { "step", s_step }, { "port", s_port }, { "quiet", s_quiet }, { "counts", s_counts },
                                        { "take", s_take }, { NULL, NULL } };
  static const luaL_Reg of_exchange[] = { { "reply", x_reply }, { "begin", x_begin }, { "write", x_write }, { "finish", x_finish },
                                          { "drop", x_drop }, { "pending", x_pending }, { "gone", x_gone }, { NULL, NULL } };
  static const luaL_Reg functions[] = { { "server", server }, { "same", same }, { "files", files },
                                        { "pace", pace }, { "catch", catch_signals },
                                        { "caught", was_caught }, { NULL, NULL } };
  fm_net_class(L, SERVER, of_server, s_close);
  fm_net_class(L, EXCHANGE, of_exchange, x_close);
  luaL_setfuncs(L, functions, 0);
}
