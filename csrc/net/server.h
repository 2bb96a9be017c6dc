/*
** server.h - an HTTP server that moves when it is stepped (libmicrohttpd, one thread: the caller's).
** Requests are handed out once their bodies are there; answers are given whole or bit by bit. A client that goes away is
** noticed while its answer is still being made. Owner: the caller owns the server and counts of exchanges, and may let
** them go in any order.
*/
#ifndef FM_NET_SERVER_H
#define FM_NET_SERVER_H

#include "base/status.h"

typedef struct fm_server fm_server;
typedef struct fm_exchange fm_exchange;                   /* one request and its answer */

/* Zero or NULL: the default. */
typedef struct fm_server_options {
  const char *host;                /* 127.0.0.1; a number or a name */
  int port;                        /* 0: one that is free */
  int max_connections;             /* 1,024, or what the limit of open files leaves; more are answered 503 */
  int64_t max_body;                /* bytes of a body, 8 MiB; more is answered 413 */
  int64_t max_bodies;              /* bytes of all bodies that are held, 128 MiB; more is answered 503 */
  int64_t head_ms;                 /* until the head of a request is there, 10,000; then 408 */
  int64_t body_ms;                 /* until its body is there, 30,000; then 408 */
  int64_t idle_ms;                 /* a connection that is kept open between requests, 60,000 */
  int64_t stall_ms;                /* a client that takes nothing of its answer, 30,000; then it is dropped */
} fm_server_options;

typedef struct fm_server_counts {
  int64_t connections, exchanges;  /* now */
  int64_t accepted, malformed, too_large, slow, busy, dropped, stalled;   /* so far */
  int64_t bytes_in, bytes_out, body_bytes;   /* of bodies; the last: held now */
} fm_server_counts;

/* FM_ENETWORK: the address cannot be listened at. */
fm_status fm_server_open (fm_server **out, const fm_server_options *o, fm_error *err);
void      fm_server_close(fm_server *s);                  /* drops every connection; NULL is allowed */
int       fm_server_port (const fm_server *s);
fm_server_counts fm_server_count(const fm_server *s);
/* Moves every connection; waits at most wait_ms for something to happen. */
void      fm_server_step (fm_server *s, int wait_ms);
/* No new connections from now on; those that are open stay. */
void      fm_server_quiet(fm_server *s);
/* The next request that is complete, or NULL; to be freed. */
fm_exchange *fm_server_take(fm_server *s);

/* An exchange without an answer is dropped. */
void        fm_exchange_free(fm_exchange *x);
const char *fm_exchange_method(const fm_exchange *x);
const char *fm_exchange_path(const fm_exchange *x);       /* unescaped, without the query */
const char *fm_exchange_address(const fm_exchange *x);    /* of the client */
const char *fm_exchange_body(const fm_exchange *x, int64_t *size);
/* Calls f for every header, or every part of the query (is_query); value may be NULL. */
typedef void fm_field_fn(void *user, const char *name, const char *value);
void        fm_exchange_fields(const fm_exchange *x, bool is_query, fm_field_fn *f, void *user);

/* A whole answer; n_headers pairs of name and value. FM_EINVAL: it has one already, or a header is none. */
fm_status fm_exchange_reply (fm_exchange *x, int status, const char *const *headers, int n_headers, const char *body,
                             int64_t size, fm_error *err);
/* An answer that is written bit by bit, until fm_exchange_finish. */
fm_status fm_exchange_begin (fm_exchange *x, int status, const char *const *headers, int n_headers, fm_error *err);
fm_status fm_exchange_write (fm_exchange *x, const char *data, int64_t size, fm_error *err);
void      fm_exchange_finish(fm_exchange *x);
void      fm_exchange_drop  (fm_exchange *x);             /* closes the connection without more words */
int64_t   fm_exchange_pending(const fm_exchange *x);      /* bytes written that the client has not taken */
bool      fm_exchange_gone  (const fm_exchange *x);       /* over: answered in full, or the client went away */

#endif
