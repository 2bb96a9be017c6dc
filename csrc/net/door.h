/*
** door.h - where connections come in: a listening socket, and clients whose first request has not been said yet.
** A client is let in once the head of its request is complete and sound; the bytes stay in its socket for whoever reads
** them then. Owner: the door owns its sockets until it lets them in.
*/
#ifndef FM_NET_DOOR_H
#define FM_NET_DOOR_H

#include <poll.h>
#include <sys/socket.h>

#include "base/status.h"
#include "net/head.h"

typedef struct fm_knock {                                 /* a client at the door */
  int fd;
  int64_t since_ms;
  size_t n_seen;                                          /* bytes that have been looked at */
  struct sockaddr_storage address;
  socklen_t address_len;
} fm_knock;

typedef struct fm_door {
  int fd, port;                                           /* fd: -1 when no one may come any more */
  int64_t head_ms, rests_until_ms;                        /* no descriptor was left: nobody is let in for a while */
  fm_knock *knock;                                        /* the one who has waited longest first */
  int64_t n_knocks, cap;
  int64_t accepted, malformed, slow, busy;                /* counts so far */
} fm_door;

/* Takes the socket, which then is the callee's. */
typedef void fm_admit_fn(void *user, int fd, const struct sockaddr *address, socklen_t len);

fm_status fm_door_open (fm_door *d, const char *host, int port, int64_t head_ms, fm_error *err);
void      fm_door_quiet(fm_door *d);                      /* stops listening; who stands at the door may still come in */
void      fm_door_close(fm_door *d);
/* Fills at most 1 + n_knocks entries; returns how many. */
int       fm_door_watch(const fm_door *d, struct pollfd *fds, int64_t now_ms);
/* Looks at what fm_door_watch's entries brought. room: how many may stand at the door. Where it is full who has stood there
   longest without a word makes room for who comes. */
void      fm_door_step (fm_door *d, const struct pollfd *fds, int n_fds, int64_t now_ms, int64_t room, fm_admit_fn *admit, void *user);

#endif
