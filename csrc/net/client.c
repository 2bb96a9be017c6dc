/*
** client.c - HTTP requests side by side, moved by steps (libcurl's multi interface).
*/
#include "net/client.h"

#include <curl/curl.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "net/address.h"

enum { MAX_HEAD = 64 << 10, MAX_WAIT = 1000 };           // a server that sends more of a head is broken
static const int64_t default_connect_ms = 10000, default_idle_ms = 300000, default_max_size = 64 << 20;

struct fm_client {
  CURLM *multi;
  fm_transfer *first;                                    /* all that are not freed */
};

typedef struct bytes { char *data; int64_t len, cap; } bytes;

struct fm_transfer {
  fm_client *client;                                     /* NULL when it went first */
  fm_transfer *next;
  CURL *easy;                                            /* NULL when it is over */
  struct curl_slist *headers;
  bytes head, body;
  int64_t received, max_size, idle_ms, last_ms;
  fm_transfer_state state;
  int status;
  fm_error err;                                          /* filled where a callback refuses, or at the end */
  char why[CURL_ERROR_SIZE];
};

int64_t fm_net_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- what arrives ---------------------------------------------------------------------------------- */

static fm_status append(bytes *b, const char *data, int64_t size, fm_error *err) {
  TRY(fm_grow(&b->data, &b->cap, b->len + size, 1, err));
  memcpy(b->data + b->len, data, (size_t)size);
  b->len += size;
  return FM_OK;
}

/* Replies may come in several blocks (100, 103, ...): the last one counts. */
static size_t on_head(char *data, size_t size, size_t n, void *user) {
  fm_transfer *t = user;
  int64_t len = (int64_t)(size * n);
  t->last_ms = fm_net_now();
  if (len > 5 && memcmp(data, "HTTP/", 5) == 0) {
    t->head.len = 0;
    return (size_t)len;
  }
  if (t->head.len + len > MAX_HEAD) {
    fm_fail(&t->err, FM_ELIMIT, "the head of the reply is larger than %d bytes", MAX_HEAD);
    return 0;
  }
  return append(&t->head, data, len, &t->err) == FM_OK ? (size_t)len : 0;
}

static size_t on_body(char *data, size_t size, size_t n, void *user) {
  fm_transfer *t = user;
  int64_t len = (int64_t)(size * n);
  t->last_ms = fm_net_now();
  t->received += len;
  if (t->received > t->max_size) {
    fm_fail(&t->err, FM_ELIMIT, "the reply is larger than %lld bytes", (long long)t->max_size);
    return CURL_WRITEFUNC_ERROR;
  }
  return append(&t->body, data, len, &t->err) == FM_OK ? (size_t)len : CURL_WRITEFUNC_ERROR;
}

/* Looked at when the connection is made: a name may stand for another address than a moment ago. */
static curl_socket_t on_socket(void *user, curlsocktype purpose, struct curl_sockaddr *a) {
  fm_transfer *t = user;
  (void)purpose;
  if (fm_address_public(&a->addr)) return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
  fm_fail(&t->err, FM_ENETWORK, "the address is not one of the public network");
  return CURL_SOCKET_BAD;
}

/* ---- transfers --------------------------------------------------------------------------------------- */

static void note_status(fm_transfer *t) {
  long status = 0;
  if (t->easy && curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status) == CURLE_OK) t->status = (int)status;
}

/* Takes the transfer off its client's connections. */
static void leave(fm_transfer *t, fm_transfer_state state) {
  if (!t->easy) return;
  note_status(t);
  if (t->client) curl_multi_remove_handle(t->client->multi, t->easy);
  curl_easy_cleanup(t->easy);
  curl_slist_free_all(t->headers);
  t->easy = NULL;
  t->headers = NULL;
  t->state = state;
}

static void finish(fm_transfer *t, CURLcode code) {
  if (code != CURLE_OK && t->err.code == FM_OK) {
    const char *why = t->why[0] ? t->why : curl_easy_strerror(code);
    fm_fail(&t->err, code == CURLE_OUT_OF_MEMORY ? FM_EMEMORY : FM_ENETWORK, "%s", why);
  }
  leave(t, code == CURLE_OK ? FM_TRANSFER_DONE : FM_TRANSFER_FAILED);
}

static fm_status set_up(fm_transfer *t, const fm_request *r, fm_error *err) {
  CURL *e = t->easy;
  CURLcode bad = CURLE_OK;
#define SET(option, value) do { if (bad == CURLE_OK) bad = curl_easy_setopt(e, option, value); } while (0)
  SET(CURLOPT_NOSIGNAL, 1L);                             // signals are the host's
  SET(CURLOPT_QUICK_EXIT, 1L);                           // a name that is being looked up does not hold up a cancel
  SET(CURLOPT_PROTOCOLS_STR, "http,https");
  SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);   // one connection a transfer: dropping it tells the server
  SET(CURLOPT_PROXY, r->proxy ? r->proxy : "");
  SET(CURLOPT_ERRORBUFFER, t->why);
  SET(CURLOPT_PRIVATE, t);
  SET(CURLOPT_HEADERFUNCTION, on_head);
  SET(CURLOPT_HEADERDATA, t);
  SET(CURLOPT_WRITEFUNCTION, on_body);
  SET(CURLOPT_WRITEDATA, t);
  SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(r->connect_ms ? r->connect_ms : default_connect_ms));
  SET(CURLOPT_TIMEOUT_MS, (long)r->total_ms);
  SET(CURLOPT_URL, r->url);
  SET(CURLOPT_HTTPHEADER, t->headers);
  if (r->ca_file) SET(CURLOPT_CAINFO, r->ca_file);
  if (r->public_only) {
    SET(CURLOPT_OPENSOCKETFUNCTION, on_socket);
    SET(CURLOPT_OPENSOCKETDATA, t);
  }
  if (r->body) SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_size);
  if (r->body) SET(CURLOPT_COPYPOSTFIELDS, r->body);
  if (r->method) SET(CURLOPT_CUSTOMREQUEST, r->method);
#undef SET
  if (bad == CURLE_OK) return FM_OK;
  if (bad == CURLE_OUT_OF_MEMORY) return fm_no_memory(err, r->body_size);
  return fm_fail(err, FM_EINVAL, "the request cannot be made: %s", curl_easy_strerror(bad));
}

static fm_status add_header(fm_transfer *t, const char *line, fm_error *err) {
  if (strpbrk(line, "\r\n")) return fm_fail(err, FM_EINVAL, "a header holds the end of a line");
  struct curl_slist *longer = curl_slist_append(t->headers, line);
  if (!longer) return fm_no_memory(err, (int64_t)strlen(line));
  t->headers = longer;
  return FM_OK;
}

static fm_status start(fm_transfer *t, const fm_request *r, fm_error *err) {
  if (strncmp(r->url, "http://", 7) != 0 && strncmp(r->url, "https://", 8) != 0)
    return fm_fail(err, FM_EUNSUPPORTED, "the address begins neither with http:// nor with https://");
  TRY(add_header(t, "Expect:", err));                    // no waiting for "100 Continue"
  for (int i = 0; i < r->n_headers; i++) TRY(add_header(t, r->headers[i], err));
  TRY(set_up(t, r, err));
  t->max_size = r->max_size ? r->max_size : default_max_size;
  t->idle_ms = r->idle_ms ? r->idle_ms : default_idle_ms;
  t->last_ms = fm_net_now();
  CURLMcode bad = curl_multi_add_handle(t->client->multi, t->easy);
  return bad == CURLM_OK ? FM_OK : fm_fail(err, FM_ENETWORK, "%s", curl_multi_strerror(bad));
}

fm_status fm_transfer_new(fm_transfer **out, fm_client *c, const fm_request *r, fm_error *err) {
  fm_transfer *t = fm_zalloc(sizeof *t);
  if (!t) return fm_no_memory(err, sizeof *t);
  t->client = c;
  t->next = c->first;
  c->first = t;
  t->easy = curl_easy_init();
  fm_status status = t->easy ? start(t, r, err) : fm_no_memory(err, 0);
  if (status == FM_OK) *out = t;
  else fm_transfer_free(t);
  return status;
}

void fm_transfer_free(fm_transfer *t) {
  if (!t) return;
  leave(t, FM_TRANSFER_FAILED);
  for (fm_transfer **p = t->client ? &t->client->first : NULL; p && *p; p = &(*p)->next) {
    if (*p != t) continue;
    *p = t->next;
    break;
  }
  fm_free(t->head.data);
  fm_free(t->body.data);
  fm_free(t);
}

fm_transfer_state fm_transfer_now(const fm_transfer *t) { return t->state; }

/* 100 and 103 only announce a reply. */
int fm_transfer_status(const fm_transfer *t) { return t->status >= 200 ? t->status : 0; }

const char *fm_transfer_head(const fm_transfer *t, int64_t *size) {
  *size = t->head.len;
  return t->head.data;
}

const char *fm_transfer_body(const fm_transfer *t, int64_t *size) {
  *size = t->body.len;
  return t->body.data;
}

void fm_transfer_taken(fm_transfer *t) { t->body.len = 0; }

const fm_error *fm_transfer_error(const fm_transfer *t) { return &t->err; }

/* ---- the client -------------------------------------------------------------------------------------- */

fm_status fm_client_new(fm_client **out, fm_error *err) {
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)   // counted by libcurl; never taken back, others may use it
    return fm_fail(err, FM_ENETWORK, "libcurl does not start");
  fm_client *c = fm_zalloc(sizeof *c);
  if (!c) return fm_no_memory(err, sizeof *c);
  c->multi = curl_multi_init();
  if (!c->multi) {
    fm_free(c);
    return fm_no_memory(err, 0);
  }
  *out = c;
  return FM_OK;
}

void fm_client_free(fm_client *c) {
  if (!c) return;
  for (fm_transfer *t = c->first, *next; t; t = next) {
    next = t->next;
    if (t->easy) fm_fail(&t->err, FM_ECANCELLED, "the connection was closed from this side");
    leave(t, FM_TRANSFER_FAILED);
    t->client = NULL;
    t->next = NULL;
  }
  curl_multi_cleanup(c->multi);
  fm_free(c);
}

static void take_news(fm_client *c) {
  int left;
  for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left));) {
    char *t = NULL;
    CURLcode code = m->data.result;
    if (m->msg == CURLMSG_DONE && curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t) == CURLE_OK)
      finish((fm_transfer *)(void *)t, code);
  }
}

/* Notes status lines, ends what is silent. Returns how many run, and in *wait_ms when the next would be too silent. */
static int look_round(fm_client *c, int64_t *wait_ms) {
  int n = 0;
  int64_t now = fm_net_now();
  for (fm_transfer *t = c->first; t; t = t->next) {
    if (!t->easy) continue;
    note_status(t);
    int64_t left = t->last_ms + t->idle_ms - now;
    if (left <= 0) {
      fm_fail(&t->err, FM_ENETWORK, "the server was silent for %lld ms", (long long)t->idle_ms);
      leave(t, FM_TRANSFER_FAILED);
      continue;
    }
    if (left < *wait_ms) *wait_ms = left;
    n++;
  }
  return n;
}

static fm_status perform(fm_client *c, fm_error *err) {
  int running;
  CURLMcode bad = curl_multi_perform(c->multi, &running);
  if (bad != CURLM_OK) return fm_fail(err, FM_ENETWORK, "%s", curl_multi_strerror(bad));
  take_news(c);
  return FM_OK;
}

/* Whether something lies ready that was not taken: then nobody wants to wait. */
static bool has_news(const fm_client *c) {
  for (const fm_transfer *t = c->first; t; t = t->next)
    if (t->body.len > 0) return true;
  return false;
}

fm_status fm_client_step(fm_client *c, int wait_ms, int *n_running, fm_error *err) {
  int64_t wait = wait_ms < MAX_WAIT ? wait_ms : MAX_WAIT, none = MAX_WAIT;
  int before = look_round(c, &wait);
  TRY(perform(c, err));
  int now = look_round(c, &wait);
  if (wait > 0 && now == before && !has_news(c)) {
    CURLMcode bad = curl_multi_poll(c->multi, NULL, 0, (int)wait, NULL);
    if (bad != CURLM_OK) return fm_fail(err, FM_ENETWORK, "%s", curl_multi_strerror(bad));
    TRY(perform(c, err));
    now = look_round(c, &none);
  }
  *n_running = now;
  return FM_OK;
}
