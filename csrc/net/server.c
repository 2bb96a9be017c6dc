/*
** server.c - an HTTP server that moves when it is stepped.
*/
#define _GNU_SOURCE
#include "net/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "net/door.h"

enum { BLOCK = 16 << 10, ROUNDS = 16, FAR_TOO_LARGE = 8, MAX_NAP_MS = 250, CONNECTION_MEMORY = 48 << 10 };

typedef enum { IDLE, HEAD, BODY, WORK } phase;

typedef struct connection {                               /* lives as long as its socket */
  struct connection *next, *before;
  int fd;
  phase phase;
  int64_t since_ms;                                       /* the beginning of the phase */
} connection;

struct fm_exchange {
  fm_server *server;                                      /* NULL when it is over */
  fm_exchange *next, *before;                             /* in server->live */
  fm_exchange *later;                                     /* in server->ready */
  struct MHD_Connection *connection;                      /* NULL when it is over */
  connection *socket;
  int counts;                                             /* libmicrohttpd's, and the caller's */
  bool ready, asleep, dropped, streams, finished, begun;
  const fm_refusal *refusal;                              /* answered here, without the caller */
  struct MHD_Response *answer;                            /* waits to be queued */
  int status;
  char *method, *path, address[INET6_ADDRSTRLEN];
  char *body, *out;
  int64_t body_size, body_cap, skipped, out_at, out_size, out_cap, moved_ms;
};

struct fm_server {
  struct MHD_Daemon *daemon;
  fm_server_options o;
  fm_door door;
  connection *connections;
  fm_exchange *live, *first_ready, *last_ready;
  struct pollfd *fds;
  int64_t n_fds_cap, swept_ms;
  fm_server_counts n;
};

static const fm_refusal too_large = { 413, "body_too_large", "the body of the request is too large" };
static const fm_refusal busy = { 503, "too_busy", "the server holds too many requests, try again later" };
static const fm_refusal slow = { 408, "request_timeout", "the request did not come in time" };

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- exchanges: life ---------------------------------------------------------------------------------- */

static void enter(connection *c, phase p) {
  if (!c) return;
  c->phase = p;
  c->since_ms = now();
}

static void release(fm_exchange *x) {
  if (--x->counts > 0) return;
  if (x->answer) MHD_destroy_response(x->answer);
  fm_free(x->method);
  fm_free(x->path);
  fm_free(x->body);
  fm_free(x->out);
  fm_free(x);
}

static void wake(fm_exchange *x) {
  if (!x->connection || !x->asleep) return;
  x->asleep = false;
  MHD_resume_connection(x->connection);
}

static void sleep_now(fm_exchange *x) {
  x->asleep = true;
  MHD_suspend_connection(x->connection);
}

/* What was said is let through and the rest is not waited for. */
static void hang_up(fm_exchange *x) {
  if (!x->connection || x->dropped) return;
  x->dropped = true;
  shutdown(x->socket->fd, SHUT_RDWR);
  wake(x);
}

static connection *socket_of(struct MHD_Connection *c) {
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
  return info ? info->socket_context : NULL;
}

static void read_address(fm_exchange *x) {
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
  const struct sockaddr *a = info ? info->client_addr : NULL;
  const void *bytes = !a ? NULL : a->sa_family == AF_INET6 ? (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr
                                                           : (const void *)&((const struct sockaddr_in *)a)->sin_addr;
  if (!bytes || !inet_ntop(a->sa_family, bytes, x->address, sizeof x->address)) strcpy(x->address, "?");
}

static fm_exchange *exchange_new(fm_server *s, struct MHD_Connection *c, const char *url, const char *method) {
  fm_exchange *x = fm_zalloc(sizeof *x);
  if (!x) return NULL;
  *x = (fm_exchange){ .server = s, .connection = c, .socket = socket_of(c), .counts = 1, .moved_ms = now() };
  x->method = fm_strndup(method, strlen(method));
  x->path = fm_strndup(url, strlen(url));
  if (!x->method || !x->path || !x->socket) {
    release(x);
    return NULL;
  }
  read_address(x);
  x->next = s->live;
  if (s->live) s->live->before = x;
  s->live = x;
  s->n.exchanges++;
  return x;
}

static void forget_body(fm_exchange *x) {
  if (x->server) x->server->n.body_bytes -= x->body_size;
  fm_free(x->body);
  x->body = NULL;
  x->body_size = x->body_cap = 0;
}

/* Takes x out of the server's lists. */
static void leave(fm_exchange *x) {
  fm_server *s = x->server;
  if (x->before) x->before->next = x->next;
  else s->live = x->next;
  if (x->next) x->next->before = x->before;
  x->next = x->before = NULL;
  s->n.exchanges--;
}

/* ---- libmicrohttpd's side ------------------------------------------------------------------------------ */

static void on_connection(void *cls, struct MHD_Connection *mc, void **context, enum MHD_ConnectionNotificationCode what) {
  fm_server *s = cls;
  if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
    connection *c = *context;
    if (!c) return;
    if (c->before) c->before->next = c->next;
    else s->connections = c->next;
    if (c->next) c->next->before = c->before;
    fm_free(c);
    s->n.connections--;
    return;
  }
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(mc, MHD_CONNECTION_INFO_CONNECTION_FD);
  connection *c = fm_zalloc(sizeof *c);
  if (!c) return;                                         // its requests find no socket, and are refused
  *c = (connection){ .next = s->connections, .fd = info->connect_fd, .phase = IDLE, .since_ms = now() };
  if (s->connections) s->connections->before = c;
  s->connections = c;
  s->n.connections++;
  *context = c;
}

static void *on_uri(void *cls, const char *uri, struct MHD_Connection *c) {
  (void)cls, (void)uri;
  enter(socket_of(c), HEAD);
  return NULL;
}

static void on_completed(void *cls, struct MHD_Connection *c, void **context, enum MHD_RequestTerminationCode why) {
  fm_server *s = cls;
  fm_exchange *x = *context;
  if (!x) return;
  *context = NULL;
  enter(socket_of(c), IDLE);
  if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) {
    x->dropped = true;
    s->n.dropped++;
  }
  leave(x);
  forget_body(x);
  x->server = NULL;
  x->connection = NULL;
  x->socket = NULL;
  release(x);
}

/* Gives what the caller wrote; falls asleep when there is nothing. */
static ssize_t on_read(void *cls, uint64_t at, char *buf, size_t max) {
  fm_exchange *x = cls;
  (void)at;
  if (x->dropped) return MHD_CONTENT_READER_END_WITH_ERROR;
  int64_t n = x->out_size - x->out_at;
  if (n == 0 && x->finished) return MHD_CONTENT_READER_END_OF_STREAM;
  if (n == 0) {
    sleep_now(x);
    return 0;
  }
  if (n > (int64_t)max) n = (int64_t)max;
  memcpy(buf, x->out + x->out_at, (size_t)n);
  x->out_at += n;
  if (x->out_at == x->out_size) x->out_at = x->out_size = 0;
  x->moved_ms = now();
  x->server->n.bytes_out += n;
  return (ssize_t)n;
}

static enum MHD_Result queue(fm_exchange *x) {
  enum MHD_Result done = MHD_queue_response(x->connection, (unsigned)x->status, x->answer);
  MHD_destroy_response(x->answer);
  x->answer = NULL;
  x->begun = true;
  return done;
}

static enum MHD_Result refuse(fm_exchange *x) {
  char body[512];
  size_t len = fm_refusal_body(x->refusal, body, sizeof body);
  x->answer = MHD_create_response_from_buffer(len, body, MHD_RESPMEM_MUST_COPY);
  if (!x->answer) return MHD_NO;
  MHD_add_response_header(x->answer, "Content-Type", "application/json");
  if (x->refusal->status == 503) MHD_add_response_header(x->answer, "Retry-After", "1");
  x->status = x->refusal->status;
  return queue(x);
}

static enum MHD_Result begin(fm_server *s, struct MHD_Connection *c, const char *url, const char *method, void **context) {
  fm_exchange *x = exchange_new(s, c, url, method);
  if (!x) return MHD_NO;
  *context = x;
  enter(x->socket, BODY);
  const char *said = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Length");
  int64_t size = said ? strtoll(said, NULL, 10) : 0;
  if (size <= s->o.max_body) return MHD_YES;
  x->refusal = &too_large;
  s->n.too_large++;
  // who asks first, or means far too much, hears it at once; others when they have said it all, or they would not listen
  bool asks = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Expect") != NULL;
  return asks || size / FAR_TOO_LARGE > s->o.max_body ? refuse(x) : MHD_YES;
}

static enum MHD_Result append(fm_server *s, fm_exchange *x, const char *data, size_t size) {
  s->n.bytes_in += (int64_t)size;
  if (!x->refusal && x->body_size + (int64_t)size > s->o.max_body) {
    x->refusal = &too_large;
    s->n.too_large++;
  } else if (!x->refusal && (s->n.body_bytes + (int64_t)size > s->o.max_bodies ||
             fm_grow(&x->body, &x->body_cap, x->body_size + (int64_t)size + 1, 1, NULL) != FM_OK)) {
    x->refusal = &busy;
    s->n.busy++;
  }
  if (x->refusal) {
    forget_body(x);
    x->skipped += (int64_t)size;
    return x->skipped / FAR_TOO_LARGE > s->o.max_body ? MHD_NO : MHD_YES;
  }
  memcpy(x->body + x->body_size, data, size);
  x->body_size += (int64_t)size;
  s->n.body_bytes += (int64_t)size;
  return MHD_YES;
}

static void line_up(fm_server *s, fm_exchange *x) {
  x->ready = true;
  x->counts++;
  if (s->last_ready) s->last_ready->later = x;
  else s->first_ready = x;
  s->last_ready = x;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url, const char *method, const char *version,
                                  const char *data, size_t *size, void **context) {
  fm_server *s = cls;
  fm_exchange *x = *context;
  (void)version;
  if (!x) return begin(s, c, url, method, context);
  if (*size) {
    enum MHD_Result go_on = append(s, x, data, *size);
    *size = 0;
    return go_on;
  }
  if (x->begun) return MHD_YES;
  if (x->refusal) return refuse(x);
  if (x->dropped) return MHD_NO;
  if (x->answer) return queue(x);
  if (!x->ready) {
    enter(x->socket, WORK);
    line_up(s, x);
  }
  sleep_now(x);
  return MHD_YES;
}

/* ---- the server ------------------------------------------------------------------------------------------ */

static int64_t otherwise(int64_t v, int64_t usual) { return v > 0 ? v : usual; }

static fm_server_options with_defaults(const fm_server_options *o) {
  return (fm_server_options){ .host = o->host ? o->host : "127.0.0.1", .port = o->port,
    .max_connections = (int)otherwise(o->max_connections, 1024), .max_body = otherwise(o->max_body, 8 << 20),
    .max_bodies = otherwise(o->max_bodies, 128 << 20), .head_ms = otherwise(o->head_ms, 10000),
    .body_ms = otherwise(o->body_ms, 30000), .idle_ms = otherwise(o->idle_ms, 60000), .stall_ms = otherwise(o->stall_ms, 30000) };
}

static fm_status start(fm_server *s, fm_error *err) {
  // the door bounds connections; this bound is behind it
  unsigned most = (unsigned)s->o.max_connections + 8;
  s->daemon = MHD_start_daemon(MHD_USE_NO_LISTEN_SOCKET | MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, s,
    MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_NOTIFY_CONNECTION, on_connection, s,
    MHD_OPTION_URI_LOG_CALLBACK, on_uri, s, MHD_OPTION_CONNECTION_LIMIT, most,
    MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
  return s->daemon ? FM_OK : fm_fail(err, FM_ENETWORK, "libmicrohttpd does not start: %s", strerror(errno));
}

fm_status fm_server_open(fm_server **out, const fm_server_options *o, fm_error *err) {
  if (MHD_is_feature_supported(MHD_FEATURE_EPOLL) != MHD_YES)
    return fm_fail(err, FM_EUNSUPPORTED, "this libmicrohttpd was built without epoll");
  fm_server *s = fm_zalloc(sizeof *s);
  if (!s) return fm_no_memory(err, sizeof *s);
  s->o = with_defaults(o);
  s->door.fd = -1;
  fm_status status = fm_door_open(&s->door, s->o.host, s->o.port, s->o.head_ms, err);
  s->o.host = NULL;                                       // the caller's string
  if (status == FM_OK) status = start(s, err);
  if (status == FM_OK) *out = s;
  else fm_server_close(s);
  return status;
}

void fm_server_close(fm_server *s) {
  if (!s) return;
  // libmicrohttpd ends the program when it is stopped while somebody sleeps
  for (fm_exchange *x = s->live; x; x = x->next) hang_up(x);
  if (s->daemon) MHD_stop_daemon(s->daemon);
  for (fm_exchange *x = s->first_ready, *later; x; x = later) {
    later = x->later;
    release(x);
  }
  fm_door_close(&s->door);
  fm_free(s->fds);
  fm_free(s);
}

int fm_server_port(const fm_server *s) { return s->door.port; }

void fm_server_quiet(fm_server *s) { fm_door_quiet(&s->door); }

fm_server_counts fm_server_count(const fm_server *s) {
  fm_server_counts n = s->n;
  n.connections += s->door.n_knocks;
  n.accepted += s->door.accepted;
  n.malformed += s->door.malformed;
  n.slow += s->door.slow;
  n.busy += s->door.busy;
  return n;
}

/* ---- a step ------------------------------------------------------------------------------------------------ */

static void admit(void *user, int fd, const struct sockaddr *address, socklen_t len) {
  fm_server *s = user;
  MHD_add_connection(s->daemon, fd, address, len);        // closes it when that fails
}

/* Clients that are slow in one phase or another. */
static void sweep(fm_server *s, int64_t t) {
  if (t - s->swept_ms < MAX_NAP_MS / 2) return;
  s->swept_ms = t;
  for (connection *c = s->connections; c; c = c->next) {
    int64_t age = t - c->since_ms;
    bool late = (c->phase == HEAD && age > s->o.head_ms) || (c->phase == BODY && age > s->o.body_ms);
    if (late) {
      s->n.slow++;
      fm_refuse(c->fd, &slow);
    }
    if (!late && !(c->phase == IDLE && age > s->o.idle_ms)) continue;
    enter(c, WORK);                                       // once is enough
    shutdown(c->fd, SHUT_RDWR);
  }
  for (fm_exchange *x = s->live; x; x = x->next) {
    if (x->dropped || fm_exchange_pending(x) == 0 || t - x->moved_ms <= s->o.stall_ms) continue;
    s->n.stalled++;
    hang_up(x);
  }
}

/* Entries: the door's, libmicrohttpd's, one for each client that waits for an answer. */
static int watch(fm_server *s, int *n_door) {
  int64_t want = 2 + s->door.n_knocks + s->n.exchanges;
  if (fm_grow(&s->fds, &s->n_fds_cap, want, sizeof *s->fds, NULL) != FM_OK) return 0;
  int n = *n_door = fm_door_watch(&s->door, s->fds);
  s->fds[n++] = (struct pollfd){ MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd, POLLIN, 0 };
  for (fm_exchange *x = s->live; x; x = x->next)
    if (x->ready) s->fds[n++] = (struct pollfd){ x->socket->fd, POLLRDHUP, 0 };
  return n;
}

static int patience(fm_server *s, int wait_ms) {
  MHD_UNSIGNED_LONG_LONG ms;
  if (s->first_ready) return 0;
  if ((s->n.connections || s->door.n_knocks) && wait_ms > MAX_NAP_MS) wait_ms = MAX_NAP_MS;
  if (MHD_get_timeout(s->daemon, &ms) == MHD_YES && ms < (MHD_UNSIGNED_LONG_LONG)wait_ms) wait_ms = (int)ms;
  return wait_ms;
}

/* Until nothing more can be done without waiting. */
static void run(fm_server *s) {
  MHD_UNSIGNED_LONG_LONG ms = 0;
  for (int i = 0; i < ROUNDS && MHD_run(s->daemon) == MHD_YES; i++)
    if (MHD_get_timeout(s->daemon, &ms) != MHD_YES || ms > 0) break;
}

void fm_server_step(fm_server *s, int wait_ms) {
  int n_door = 0, n = watch(s, &n_door);
  if (poll(s->fds, (nfds_t)n, patience(s, wait_ms)) > 0) {
    int i = n_door + 1;
    for (fm_exchange *x = s->live, *next; x && i < n; x = next) {
      next = x->next;
      if (x->ready && s->fds[i++].revents) hang_up(x);
    }
    fm_door_step(&s->door, s->fds, n_door, now(), s->o.max_connections - s->n.connections, admit, s);
  } else {
    fm_door_step(&s->door, s->fds, 0, now(), 0, admit, s);
  }
  sweep(s, now());
  run(s);
}

fm_exchange *fm_server_take(fm_server *s) {
  fm_exchange *x = s->first_ready;
  if (!x) return NULL;
  s->first_ready = x->later;
  if (!s->first_ready) s->last_ready = NULL;
  x->later = NULL;
  return x;
}

/* ---- exchanges: the caller's side ---------------------------------------------------------------------------- */

const char *fm_exchange_method(const fm_exchange *x) { return x->method; }
const char *fm_exchange_path(const fm_exchange *x) { return x->path; }
const char *fm_exchange_address(const fm_exchange *x) { return x->address; }
int64_t fm_exchange_pending(const fm_exchange *x) { return x->out_size - x->out_at; }
bool fm_exchange_gone(const fm_exchange *x) { return !x->connection || x->dropped; }

const char *fm_exchange_body(const fm_exchange *x, int64_t *size) {
  *size = x->body_size;
  return x->body ? x->body : "";
}

typedef struct visitor { fm_field_fn *f; void *user; } visitor;

static enum MHD_Result visit(void *cls, enum MHD_ValueKind kind, const char *name, const char *value) {
  visitor *v = cls;
  (void)kind;
  v->f(v->user, name, value);
  return MHD_YES;
}

void fm_exchange_fields(const fm_exchange *x, bool is_query, fm_field_fn *f, void *user) {
  visitor v = { f, user };
  if (x->connection) MHD_get_connection_values(x->connection, is_query ? MHD_GET_ARGUMENT_KIND : MHD_HEADER_KIND, visit, &v);
}

void fm_exchange_drop(fm_exchange *x) { hang_up(x); }

void fm_exchange_free(fm_exchange *x) {
  if (!x) return;
  if (!x->answer && !x->begun) hang_up(x);
  if (x->streams && !x->finished) hang_up(x);
  release(x);
}

static fm_status answer(fm_exchange *x, int status, const char *const *headers, int n_headers, struct MHD_Response *r, fm_error *err) {
  if (!r) return fm_no_memory(err, 0);
  for (int i = 0; i < n_headers; i++)
    if (MHD_add_response_header(r, headers[2 * i], headers[2 * i + 1]) != MHD_YES) {
      MHD_destroy_response(r);
      return fm_fail(err, FM_EINVAL, "the header %s cannot be sent", headers[2 * i]);
    }
  x->answer = r;
  x->status = status;
  forget_body(x);
  wake(x);
  return FM_OK;
}

static fm_status may_answer(const fm_exchange *x, fm_error *err) {
  return x->answer || x->begun ? fm_fail(err, FM_EINVAL, "the request has its answer already") : FM_OK;
}

fm_status fm_exchange_reply(fm_exchange *x, int status, const char *const *headers, int n_headers, const char *body,
                            int64_t size, fm_error *err) {
  TRY(may_answer(x, err));
  if (fm_exchange_gone(x)) return FM_OK;
  TRY(answer(x, status, headers, n_headers,
             MHD_create_response_from_buffer((size_t)size, (void *)(uintptr_t)body, MHD_RESPMEM_MUST_COPY), err));
  x->server->n.bytes_out += size;
  return FM_OK;
}

fm_status fm_exchange_begin(fm_exchange *x, int status, const char *const *headers, int n_headers, fm_error *err) {
  TRY(may_answer(x, err));
  if (fm_exchange_gone(x)) return FM_OK;
  TRY(answer(x, status, headers, n_headers, MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, on_read, x, NULL), err));
  x->streams = true;
  return FM_OK;
}

fm_status fm_exchange_write(fm_exchange *x, const char *data, int64_t size, fm_error *err) {
  if (fm_exchange_gone(x)) return FM_OK;
  if (!x->streams || x->finished) return fm_fail(err, FM_EINVAL, "the answer of this request takes no more");
  if (x->out_at > 0) {
    memmove(x->out, x->out + x->out_at, (size_t)(x->out_size - x->out_at));
    x->out_size -= x->out_at;
    x->out_at = 0;
  }
  TRY(fm_grow(&x->out, &x->out_cap, x->out_size + size, 1, err));
  if (x->out_size == 0) x->moved_ms = now();
  memcpy(x->out + x->out_size, data, (size_t)size);
  x->out_size += size;
  wake(x);
  return FM_OK;
}

void fm_exchange_finish(fm_exchange *x) {
  if (!x->streams || x->finished) return;
  x->finished = true;
  wake(x);
}
