/*
** client.h - HTTP requests side by side, moved by steps (libcurl's multi interface).
** A transfer gathers what arrives until somebody takes it. Nothing here waits longer than it is told, names are
** resolved in a thread of libcurl's. Owner: the caller owns the client and each transfer and may free them in any
** order; a client that goes first ends the transfers that still run.
*/
#ifndef FM_NET_CLIENT_H
#define FM_NET_CLIENT_H

#include "base/status.h"

typedef struct fm_client fm_client;
typedef struct fm_transfer fm_transfer;

typedef enum { FM_TRANSFER_RUNNING, FM_TRANSFER_DONE, FM_TRANSFER_FAILED } fm_transfer_state;

/* Zero or NULL: the default. Strings are copied. */
typedef struct fm_request {
  const char *url;                 /* http or https */
  const char *method;              /* GET; POST where there is a body */
  const char *const *headers;      /* n_headers lines "Name: value" */
  int n_headers;
  const char *body;                /* NULL: none */
  int64_t body_size;
  int64_t connect_ms;              /* 10,000 */
  int64_t idle_ms;                 /* without a byte from the server; 300,000 */
  int64_t total_ms;                /* none */
  int64_t max_size;                /* bytes of the reply; 64 MiB */
  const char *proxy;               /* none: variables of the environment are not looked at */
  const char *ca_file;             /* certificates to trust in place of the system's */
  bool public_only;                /* whatever the name stands for: no connection to an address that is not public */
} fm_request;

fm_status fm_client_new (fm_client **out, fm_error *err);
void      fm_client_free(fm_client *c);
/* Moves every transfer; waits at most wait_ms for something to happen. *n_running: transfers that are not over. */
fm_status fm_client_step(fm_client *c, int wait_ms, int *n_running, fm_error *err);

/* FM_EINVAL: an address or a header that is none; FM_EUNSUPPORTED: not http or https. */
fm_status fm_transfer_new (fm_transfer **out, fm_client *c, const fm_request *r, fm_error *err);
void      fm_transfer_free(fm_transfer *t);              /* while it runs: drops the connection */
fm_transfer_state fm_transfer_now(const fm_transfer *t);
/* Status of the reply once its headers are there, else 0. */
int         fm_transfer_status(const fm_transfer *t);
/* Lines of the reply's head, "Name: value\r\n" each; valid until the transfer moves. */
const char *fm_transfer_head(const fm_transfer *t, int64_t *size);
/* What has arrived and was not taken; valid until the transfer moves. */
const char *fm_transfer_body(const fm_transfer *t, int64_t *size);
void        fm_transfer_taken(fm_transfer *t);           /* forgets it */
/* Why it failed: FM_ENETWORK, FM_ELIMIT (too large), FM_EMEMORY, FM_ECANCELLED (the client went). */
const fm_error *fm_transfer_error(const fm_transfer *t);

int64_t fm_net_now(void);                                /* ms of a clock that only goes forward */

#endif
