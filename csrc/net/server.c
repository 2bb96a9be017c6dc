/*
** server.c - an HTTP server that moves when it is stepped.
*/
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "net/serving.h"

enum { ROUNDS = 16, FAR_TOO_LARGE = 8, MAX_NAP_MS = 250, MANNERS_MS = 500, CONNECTION_MEMORY = 48 << 10,
       SPARE_FILES = 64 };

static const fm_refusal too_large = { 413, "body_too_large", "the body of the request is too large" };
static const fm_refusal odd_path = { 400, "malformed_request", "the path of the request holds a zero" };
static const fm_refusal busy = { 503, "too_busy", "the server holds too many requests, try again later" };
static const fm_refusal slow = { 408, "request_timeout", "the request did not come in time" };

int64_t fm_serving_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void fm_connection_enter(fm_connection *c, fm_phase p) {
  if (!c) return;
  c->phase = p;
  c->since_ms = fm_serving_now();
}

fm_connection *fm_connection_of(struct MHD_Connection *c) {
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
  return info ? info->socket_context : NULL;
}

/* ---- libmicrohttpd's side ------------------------------------------------------------------------------ */

static void on_connection(void *cls, struct MHD_Connection *mc, void **context, enum MHD_ConnectionNotificationCode what) {
  fm_server *s = cls;
  if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
    fm_connection *c = *context;
    if (!c) return;
    if (c->before) c->before->next = c->next;
    else s->connections = c->next;
    if (c->next) c->next->before = c->before;
    fm_free(c);
    s->n.connections--;
    return;
  }
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(mc, MHD_CONNECTION_INFO_CONNECTION_FD);
  fm_connection *c = fm_zalloc(sizeof *c);
  if (!c) return;                                         // its requests find no socket, and are refused
  *c = (fm_connection){ .next = s->connections, .fd = info->connect_fd, .phase = IDLE, .since_ms = fm_serving_now() };
  if (s->connections) s->connections->before = c;
  s->connections = c;
  s->n.connections++;
  *context = c;
}

static void *on_uri(void *cls, const char *uri, struct MHD_Connection *mc) {
  fm_connection *c = fm_connection_of(mc);
  (void)cls;
  fm_connection_enter(c, HEAD);
  if (c) c->odd_path = strstr(uri, "%00") != NULL;        // unescaped, it would end there
  return NULL;
}

static void on_completed(void *cls, struct MHD_Connection *c, void **context, enum MHD_RequestTerminationCode why) {
  fm_server *s = cls;
  fm_exchange *x = *context;
  if (!x) return;
  *context = NULL;
  fm_connection_enter(fm_connection_of(c), IDLE);
  if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) {
    x->dropped = true;
    s->n.dropped++;
  }
  fm_exchange_over(x);
}

static enum MHD_Result begin(fm_server *s, struct MHD_Connection *c, const char *url, const char *method, void **context) {
  fm_exchange *x = fm_exchange_new(s, c, url, method);
  if (!x) return MHD_NO;
  *context = x;
  fm_connection_enter(x->socket, BODY);
  if (x->socket->odd_path) x->refusal = &odd_path;
  const char *said = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Length");
  int64_t size = said ? strtoll(said, NULL, 10) : 0;
  if (size <= s->o.max_body) return MHD_YES;
  x->refusal = &too_large;
  s->n.too_large++;
  // who asks first, or means far too much, hears it at once; others when they have said it all, or they would not listen
  bool asks = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Expect") != NULL;
  return asks || size / FAR_TOO_LARGE > s->o.max_body ? fm_exchange_refuse(x) : MHD_YES;
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
    fm_exchange_forget_body(x);
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
  if (x->refusal) return fm_exchange_refuse(x);
  if (x->dropped) return MHD_NO;
  if (x->answer) return fm_exchange_queue(x);
  if (!x->ready) {
    fm_connection_enter(x->socket, WORK);
    line_up(s, x);
  }
  fm_exchange_sleep(x);
  return MHD_YES;
}

/* ---- the server ------------------------------------------------------------------------------------------ */

static int64_t otherwise(int64_t v, int64_t usual) { return v > 0 ? v : usual; }

/* Each connection takes a descriptor; some are the host's. */
static int bounded(int connections) {
  struct rlimit r;
  if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur == RLIM_INFINITY || r.rlim_cur > INT32_MAX) return connections;
  int most = r.rlim_cur > 2 * SPARE_FILES ? (int)r.rlim_cur - SPARE_FILES : (int)r.rlim_cur / 2;
  return connections < most ? connections : most;
}

static fm_server_options with_defaults(const fm_server_options *o) {
  return (fm_server_options){ .host = o->host ? o->host : "127.0.0.1", .port = o->port,
    .max_connections = bounded((int)otherwise(o->max_connections, 1024)), .max_body = otherwise(o->max_body, 8 << 20),
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
  for (fm_exchange *x = s->live; x; x = x->next) fm_exchange_drop(x);
  if (s->daemon) MHD_stop_daemon(s->daemon);
  for (fm_exchange *x = s->first_ready, *later; x; x = later) {
    later = x->later;
    fm_exchange_release(x);
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
  for (fm_connection *c = s->connections; c; c = c->next) {
    int64_t age = t - c->since_ms;
    bool late = (c->phase == HEAD && age > s->o.head_ms) || (c->phase == BODY && age > s->o.body_ms);
    if (late) {
      s->n.slow++;
      fm_refuse(c->fd, &slow);
    }
    if (!late && !(c->phase == IDLE && age > s->o.idle_ms)) continue;
    fm_connection_enter(c, WORK);                                       // once is enough
    shutdown(c->fd, SHUT_RDWR);
  }
  for (fm_exchange *x = s->live; x; x = x->next) {
    if (x->dropped || fm_exchange_pending(x) == 0 || t - x->moved_ms <= s->o.stall_ms) continue;
    s->n.stalled++;
    fm_exchange_drop(x);
  }
}

/* Where all places are taken, a connection that is only kept open makes room; it is gone with the next step. */
static void make_room(fm_server *s, int64_t t) {
  fm_connection *longest = NULL;
  if (s->n.connections + s->door.n_knocks < s->o.max_connections) return;
  for (fm_connection *c = s->connections; c; c = c->next)
    if (c->phase == IDLE && (!longest || c->since_ms < longest->since_ms)) longest = c;
  if (!longest || t - longest->since_ms < MANNERS_MS) return;
  fm_connection_enter(longest, WORK);
  shutdown(longest->fd, SHUT_RDWR);
}

/* Entries: the door's, libmicrohttpd's, one for each client that waits for an answer. */
static int watch(fm_server *s, int *n_door) {
  int64_t want = 2 + s->door.n_knocks + s->n.exchanges;
  if (fm_grow(&s->fds, &s->n_fds_cap, want, sizeof *s->fds, NULL) != FM_OK) return 0;
  int n = *n_door = fm_door_watch(&s->door, s->fds, fm_serving_now());
  s->fds[n++] = (struct pollfd){ MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd, POLLIN, 0 };
  for (fm_exchange *x = s->live; x; x = x->next)
    if (x->ready) s->fds[n++] = (struct pollfd){ x->socket->fd, POLLRDHUP, 0 };
  return n;
}

static int patience(fm_server *s, int wait_ms) {
  MHD_UNSIGNED_LONG_LONG ms;
  if (s->first_ready || s->woken) return 0;
  if ((s->n.connections || s->door.n_knocks) && wait_ms > MAX_NAP_MS) wait_ms = MAX_NAP_MS;
  if (MHD_get_timeout(s->daemon, &ms) == MHD_YES && ms < (MHD_UNSIGNED_LONG_LONG)wait_ms) wait_ms = (int)ms;
  return wait_ms;
}

/* Until nothing more can be done without waiting. */
static void run(fm_server *s) {
  MHD_UNSIGNED_LONG_LONG ms = 0;
  s->woken = false;
  for (int i = 0; i < ROUNDS && MHD_run(s->daemon) == MHD_YES; i++)
    if (MHD_get_timeout(s->daemon, &ms) != MHD_YES || ms > 0) break;
}

void fm_server_step(fm_server *s, int wait_ms) {
  int n_door = 0, n = watch(s, &n_door);
  if (poll(s->fds, (nfds_t)n, patience(s, wait_ms)) > 0) {
    int i = n_door + 1;
    for (fm_exchange *x = s->live, *next; x && i < n; x = next) {
      next = x->next;
      if (x->ready && s->fds[i++].revents) fm_exchange_drop(x);
    }
    fm_door_step(&s->door, s->fds, n_door, fm_serving_now(), s->o.max_connections - s->n.connections, admit, s);
  } else {
    fm_door_step(&s->door, s->fds, 0, fm_serving_now(), 0, admit, s);
  }
  sweep(s, fm_serving_now());
  make_room(s, fm_serving_now());
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

