/*
** exchange.c - one request and its answer: how long they live, and what the caller and libmicrohttpd do with them.
*/
#include "net/serving.h"

#include <string.h>

#include "base/mem.h"

enum { BLOCK = 16 << 10 };

/* ---- life ---------------------------------------------------------------------------------- */

void fm_exchange_release(fm_exchange *x) {
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
  x->server->woken = true;
  MHD_resume_connection(x->connection);
}

void fm_exchange_sleep(fm_exchange *x) {
  x->asleep = true;
  MHD_suspend_connection(x->connection);
}

/* What was said is let through and the rest is not waited for. */
void fm_exchange_drop(fm_exchange *x) {
  if (!x->connection || x->dropped) return;
  x->dropped = true;
  shutdown(x->socket->fd, SHUT_RDWR);
  wake(x);
}

static void read_address(fm_exchange *x) {
  const union MHD_ConnectionInfo *info = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
  const struct sockaddr *a = info ? info->client_addr : NULL;
  const void *bytes = !a ? NULL : a->sa_family == AF_INET6 ? (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr
                                                           : (const void *)&((const struct sockaddr_in *)a)->sin_addr;
  if (!bytes || !inet_ntop(a->sa_family, bytes, x->address, sizeof x->address)) strcpy(x->address, "?");
}

fm_exchange *fm_exchange_new(fm_server *s, struct MHD_Connection *c, const char *url, const char *method) {
  fm_exchange *x = fm_zalloc(sizeof *x);
  if (!x) return NULL;
  *x = (fm_exchange){ .server = s, .connection = c, .socket = fm_connection_of(c), .counts = 1, .moved_ms = fm_serving_now() };
  x->method = fm_strndup(method, strlen(method));
  x->path = fm_strndup(url, strlen(url));
  if (!x->method || !x->path || !x->socket) {
    fm_exchange_release(x);
    return NULL;
  }
  read_address(x);
  x->next = s->live;
  if (s->live) s->live->before = x;
  s->live = x;
  s->n.exchanges++;
  return x;
}

void fm_exchange_forget_body(fm_exchange *x) {
  if (x->server) x->server->n.body_bytes -= x->body_size;
  fm_free(x->body);
  x->body = NULL;
  x->body_size = x->body_cap = 0;
}

void fm_exchange_over(fm_exchange *x) {
  if (x->before) x->before->next = x->next;
  else x->server->live = x->next;
  if (x->next) x->next->before = x->before;
  x->next = x->before = NULL;
  x->server->n.exchanges--;
  fm_exchange_forget_body(x);
  x->server = NULL;
  x->connection = NULL;
  x->socket = NULL;
  fm_exchange_release(x);
}

/* ---- answers ---------------------------------------------------------------------------------------------- */

/* Gives what the caller wrote; falls asleep when there is nothing. */
static ssize_t on_read(void *cls, uint64_t at, char *buf, size_t max) {
  fm_exchange *x = cls;
  (void)at;
  if (x->dropped) return MHD_CONTENT_READER_END_WITH_ERROR;
  int64_t n = x->out_size - x->out_at;
  if (n == 0 && x->finished) return MHD_CONTENT_READER_END_OF_STREAM;
  if (n == 0) {
    fm_exchange_sleep(x);
    return 0;
  }
  if (n > (int64_t)max) n = (int64_t)max;
  memcpy(buf, x->out + x->out_at, (size_t)n);
  x->out_at += n;
  if (x->out_at == x->out_size) x->out_at = x->out_size = 0;
  x->moved_ms = fm_serving_now();
  x->server->n.bytes_out += n;
  return (ssize_t)n;
}

enum MHD_Result fm_exchange_queue(fm_exchange *x) {
  enum MHD_Result done = MHD_queue_response(x->connection, (unsigned)x->status, x->answer);
  MHD_destroy_response(x->answer);
  x->answer = NULL;
  x->begun = true;
  return done;
}

enum MHD_Result fm_exchange_refuse(fm_exchange *x) {
  char body[512];
  size_t len = fm_refusal_body(x->refusal, body, sizeof body);
  x->answer = MHD_create_response_from_buffer(len, body, MHD_RESPMEM_MUST_COPY);
  if (!x->answer) return MHD_NO;
  MHD_add_response_header(x->answer, "Content-Type", "application/json");
  if (x->refusal->status == 503) MHD_add_response_header(x->answer, "Retry-After", "1");
  x->status = x->refusal->status;
  return fm_exchange_queue(x);
}

/* ---- the caller's side ---------------------------------------------------------------------------- */

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

void fm_exchange_free(fm_exchange *x) {
  if (!x) return;
  if (!x->answer && !x->begun) fm_exchange_drop(x);
  if (x->streams && !x->finished) fm_exchange_drop(x);
  fm_exchange_release(x);
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
  fm_exchange_forget_body(x);
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
  if (x->out_size == 0) x->moved_ms = fm_serving_now();
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
