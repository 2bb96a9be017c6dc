/*
** serving.h - what server.c and exchange.c know of each other.
*/
#ifndef FM_NET_SERVING_H
#define FM_NET_SERVING_H

#include <arpa/inet.h>
#include <microhttpd.h>

#include "net/door.h"
#include "net/server.h"

typedef enum { IDLE, HEAD, BODY, WORK } fm_phase;

typedef struct fm_connection {                            /* lives as long as its socket */
  struct fm_connection *next, *before;
  int fd;
  fm_phase phase;
  int64_t since_ms;                                       /* the beginning of the phase */
  bool odd_path;
} fm_connection;

struct fm_exchange {
  fm_server *server;                                      /* NULL when it is over */
  fm_exchange *next, *before;                             /* in server->live */
  fm_exchange *later;                                     /* in server->ready */
  struct MHD_Connection *connection;                      /* NULL when it is over */
  fm_connection *socket;
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
  fm_connection *connections;
  fm_exchange *live, *first_ready, *last_ready;
  struct pollfd *fds;
  int64_t n_fds_cap, swept_ms;
  bool woken;                                             /* somebody was woken, which no poll would notice */
  fm_server_counts n;
};

int64_t        fm_serving_now(void);
fm_connection *fm_connection_of(struct MHD_Connection *c);
void           fm_connection_enter(fm_connection *c, fm_phase p);   /* c may be NULL */

/* libmicrohttpd's count; it stands in server->live. NULL: no memory. */
fm_exchange *fm_exchange_new(fm_server *s, struct MHD_Connection *c, const char *url, const char *method);
void fm_exchange_over       (fm_exchange *x);             /* libmicrohttpd has done with it */
void fm_exchange_release    (fm_exchange *x);
void fm_exchange_sleep      (fm_exchange *x);             /* until there is an answer, or more of it */
void fm_exchange_forget_body(fm_exchange *x);
/* Gives libmicrohttpd the answer that waits; the refusal. */
enum MHD_Result fm_exchange_queue (fm_exchange *x);
enum MHD_Result fm_exchange_refuse(fm_exchange *x);

#endif
