/*
** client_test.c - the HTTP client against a listener of its own: replies, refusals of memory at every point, handles freed in any order.
*/
#include <arpa/inet.h>
#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/client.h"

enum { BODY = 200000 };

static struct { long count, fail_at, live; } mem;

/* Counts what is taken; refuses the fail_at-th request. */
static void *counting(void *user, void *p, size_t size) {
  (void)user;
  if (size == 0) {
    mem.live -= p != NULL;
    free(p);
    return NULL;
  }
  if (++mem.count == mem.fail_at) return NULL;
  void *q = realloc(p, size);
  if (q && !p) mem.live++;
  return q;
}

static int failed;

static void check(int fine, const char *what) {
  printf("%s - %s\n", fine ? "ok" : "not ok", what);
  failed += !fine;
}

/* ---- a server of one reply ---------------------------------------------------------------------------- */

/* Announces a reply, sends a head and a long body; the path /silent gets none. */
static void serve(int s) {
  char in[4096], *body = malloc(BODY);
  ssize_t n = 0, at = 0;
  const char *head = "HTTP/1.1 103 Early Hints\r\nX-A: early\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nConnection: close\r\n\r\n";
  while (at < (ssize_t)sizeof in - 1 && (n = recv(s, in + at, sizeof in - 1 - (size_t)at, 0)) > 0) {
    at += n;
    in[at] = 0;
    if (strstr(in, "\r\n\r\n")) break;
  }
  if (body && n > 0 && !strstr(in, "/silent")) {
    memset(body, 'x', BODY);
    if (send(s, head, strlen(head), MSG_NOSIGNAL) > 0)
      for (at = 0; at < BODY && (n = send(s, body + at, (size_t)(BODY - at), MSG_NOSIGNAL)) > 0;) at += n;
  } else {
    while (n > 0 && recv(s, in, sizeof in, 0) > 0) {}
  }
  free(body);
  close(s);
}

static void *listen_on(void *arg) {
  int s, listener = *(int *)arg;
  while ((s = accept(listener, NULL, NULL)) >= 0) serve(s);
  return NULL;
}

/* ---- what is tried -------------------------------------------------------------------------------------- */

static char url[64], silent_url[64];

/* Runs all transfers of a client to their end; *n_bytes: what arrived of t. */
static fm_status run(fm_client *c, fm_transfer *t, int64_t *n_bytes, fm_error *err) {
  int n = 1;
  int64_t size;
  while (n > 0) {
    fm_status status = fm_client_step(c, 50, &n, err);
    if (status != FM_OK) return status;
    fm_transfer_body(t, &size);
    *n_bytes += size;
    fm_transfer_taken(t);
  }
  return FM_OK;
}

static fm_status whole(int64_t *n_bytes, bool *right_head, fm_error *err) {
  static const char *const headers[] = { "X-One: 1", "X-Two: 2" };
  fm_request r = { .url = url, .headers = headers, .n_headers = 2, .body = "{}", .body_size = 2, .total_ms = 10000 };
  fm_client *c = NULL;
  fm_transfer *t = NULL;
  int64_t size;
  *n_bytes = 0;
  fm_status status = fm_client_new(&c, err);
  if (status == FM_OK) status = fm_transfer_new(&t, c, &r, err);
  if (status == FM_OK) status = run(c, t, n_bytes, err);
  if (status == FM_OK && fm_transfer_now(t) == FM_TRANSFER_FAILED) {
    *err = *fm_transfer_error(t);
    status = err->code;
  }
  if (status == FM_OK) {
    const char *head = fm_transfer_head(t, &size);
    *right_head = fm_transfer_status(t) == 200 && size > 6 && strncmp(head, "X-A: b", 6) == 0;
  }
  fm_transfer_free(t);
  fm_client_free(c);
  return status;
}

/* A slow name server must not hold the thread that steps. */
static void check_names(void) {
  check(curl_version_info(CURLVERSION_NOW)->features & CURL_VERSION_ASYNCHDNS, "names are looked up beside");
}

static void check_reply(void) {
  fm_error err = { 0 };
  int64_t n = 0;
  bool right = false;
  check(whole(&n, &right, &err) == FM_OK && n == BODY && right, "a reply arrives, with the head of its last block");
}

static void check_memory(void) {
  fm_error err;
  int64_t n;
  bool right, fine = true;
  fm_status status = FM_EMEMORY;
  long at = 0;
  while (status != FM_OK && at < 1000) {
    mem.count = 0;
    mem.fail_at = ++at;
    status = whole(&n, &right, &err);
    fine = fine && (status == FM_OK || status == FM_EMEMORY) && mem.live == 0;
  }
  mem.fail_at = 0;
  check(fine && status == FM_OK && at > 4, "refused memory is an error each time, and nothing is lost");
}

/* A running transfer, a finished one and the client, freed in each order. */
static void check_orders(void) {
  static const int orders[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
  fm_request done = { .url = "http://127.0.0.1:1/" }, runs = { .url = silent_url };
  bool fine = true;
  for (int i = 0; i < 6; i++) {
    fm_client *c = NULL;
    fm_transfer *t[2] = { NULL, NULL };
    fm_error err;
    int n = 2;
    fine = fine && fm_client_new(&c, &err) == FM_OK && fm_transfer_new(&t[0], c, &done, &err) == FM_OK &&
           fm_transfer_new(&t[1], c, &runs, &err) == FM_OK;
    for (int k = 0; fine && k < 50 && n > 1; k++) fine = fm_client_step(c, 20, &n, &err) == FM_OK;
    fine = fine && n == 1 && fm_transfer_now(t[0]) == FM_TRANSFER_FAILED && fm_transfer_now(t[1]) == FM_TRANSFER_RUNNING;
    for (int k = 0; k < 3; k++) {
      if (orders[i][k] < 2) fm_transfer_free(t[orders[i][k]]);
      else fm_client_free(c);
    }
  }
  check(fine && mem.live == 0, "a client and its transfers are freed in any order");
}

static void check_refusals(void) {
  fm_error err;
  fm_client *c = NULL;
  fm_transfer *t = NULL;
  const char *const bad[] = { "X: a\r\nY: b" };
  fm_request file = { .url = "file:///etc/passwd" }, split = { .url = url, .headers = bad, .n_headers = 1 };
  fm_status status = fm_client_new(&c, &err);
  bool fine = status == FM_OK && fm_transfer_new(&t, c, &file, &err) == FM_EUNSUPPORTED &&
              fm_transfer_new(&t, c, &split, &err) == FM_EINVAL && !t;
  fm_client_free(c);
  check(fine && mem.live == 0, "other protocols and headers of two lines are refused");
}

static void check_silence(void) {
  fm_error err;
  fm_client *c = NULL;
  fm_transfer *t = NULL;
  fm_request r = { .url = silent_url, .idle_ms = 50 };
  int64_t n = 0, began = fm_net_now();
  bool fine = fm_client_new(&c, &err) == FM_OK && fm_transfer_new(&t, c, &r, &err) == FM_OK && run(c, t, &n, &err) == FM_OK &&
              fm_transfer_now(t) == FM_TRANSFER_FAILED && fm_transfer_error(t)->code == FM_ENETWORK;
  check(fine && fm_net_now() - began < 2000, "a silent server is given up");
  fm_transfer_free(t);
  fm_client_free(c);
}

int main(void) {
  struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  socklen_t size = sizeof a;
  pthread_t thread;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&a, size) || listen(listener, 16) ||
      getsockname(listener, (struct sockaddr *)&a, &size) || pthread_create(&thread, NULL, listen_on, &listener)) {
    printf("skip - no sockets here\n");
    return 0;
  }
  snprintf(url, sizeof url, "http://127.0.0.1:%d/", ntohs(a.sin_port));
  snprintf(silent_url, sizeof silent_url, "http://127.0.0.1:%d/silent", ntohs(a.sin_port));
  fm_set_allocator(counting, NULL);
  check_names();
  check_reply();
  check_memory();
  check_orders();
  check_refusals();
  check_silence();
  shutdown(listener, SHUT_RDWR);
  close(listener);
  pthread_join(thread, NULL);
  return failed != 0;
}
