/*
** door.c - where connections come in.
*/
#define _GNU_SOURCE
#include "net/door.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum { BACKLOG = 1024, ACCEPTS = 128, SEND_BUFFER = 256 << 10, REST_MS = 200, MANNERS_MS = 500 };

/* ---- listening -------------------------------------------------------------------------------------- */

static int port_of(int fd) {
  struct sockaddr_storage a;
  socklen_t len = sizeof a;
  if (getsockname(fd, (struct sockaddr *)&a, &len) != 0) return 0;
  return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port : ((struct sockaddr_in *)&a)->sin_port);
}

static int listen_at(const struct addrinfo *a) {
  int on = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
  if (fd < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
  int why = errno;
  close(fd);
  errno = why;
  return -1;
}

fm_status fm_door_open(fm_door *d, const char *host, int port, int64_t head_ms, fm_error *err) {
  struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *found = NULL;
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  int bad = getaddrinfo(host, service, &hints, &found);
  if (bad) return fm_fail(err, FM_ENETWORK, "the address %s is not known: %s", host, gai_strerror(bad));
  *d = (fm_door){ .fd = -1, .head_ms = head_ms };
  for (struct addrinfo *a = found; a && d->fd < 0; a = a->ai_next) d->fd = listen_at(a);
  int why = errno;
  freeaddrinfo(found);
  if (d->fd < 0) return fm_fail(err, FM_ENETWORK, "cannot listen at %s, port %d: %s", host, port, strerror(why));
  d->port = port_of(d->fd);
  return FM_OK;
}

void fm_door_quiet(fm_door *d) {
  if (d->fd >= 0) close(d->fd);
  d->fd = -1;
}

void fm_door_close(fm_door *d) {
  fm_door_quiet(d);
  for (int64_t i = 0; i < d->n_knocks; i++) close(d->knock[i].fd);
  fm_free(d->knock);
  d->knock = NULL;
  d->n_knocks = 0;
}

/* ---- clients at the door ------------------------------------------------------------------------------ */

static void turn_away(int fd, int status, const char *code, const char *message) {
  fm_refuse(fd, &(fm_refusal){ status, code, message });
  close(fd);
}

static void settle(int fd) {
  int on = 1, size = SEND_BUFFER;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // bounded, so that a client that does not read is noticed before megabytes have piled up in the kernel
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

/* Who does not say what he wants makes room for others: a crowd of the silent must not keep everybody out. */
static void make_room(fm_door *d, int64_t now_ms, int64_t room) {
  if (d->n_knocks < room || d->n_knocks == 0 || now_ms - d->knock[0].since_ms < MANNERS_MS) return;
  d->slow++;
  turn_away(d->knock[0].fd, 408, "request_timeout", "the request did not come in time");
  memmove(d->knock, d->knock + 1, (size_t)(--d->n_knocks) * sizeof *d->knock);
}

/* True when there was somebody. */
static bool accept_one(fm_door *d, int64_t now_ms, int64_t room) {
  fm_knock k = { .since_ms = now_ms, .address_len = sizeof k.address };
  k.fd = accept4(d->fd, (struct sockaddr *)&k.address, &k.address_len, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (k.fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) d->rests_until_ms = now_ms + REST_MS;
  if (k.fd < 0) return errno == EINTR || errno == ECONNABORTED;
  d->accepted++;
  make_room(d, now_ms, room);
  if (d->n_knocks >= room || fm_grow(&d->knock, &d->cap, d->n_knocks + 1, sizeof *d->knock, NULL) != FM_OK) {
    d->busy++;
    turn_away(k.fd, 503, "too_many_connections", "the server has too many connections, try again later");
    return true;
  }
  settle(k.fd);
  d->knock[d->n_knocks++] = k;
  return true;
}

/* Wakes poll only when more than n bytes wait: what was seen stays in the socket. */
static void want_more_than(int fd, size_t n) {
  int low = (int)n + 1;
  setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
}

/* Looks at what has come; true when the client does not stand at the door any more. */
static bool look(fm_door *d, fm_knock *k, fm_admit_fn *admit, void *user) {
  char buf[FM_HEAD_MAX];
  fm_refusal why;
  ssize_t n = recv(k->fd, buf, sizeof buf, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  bool ended = n <= 0 || (size_t)n == k->n_seen;           // nothing new: the other side has closed
  long head = n > 0 ? fm_head_check(buf, (size_t)n, &why) : 0;
  if (head > 0) {
    want_more_than(k->fd, 0);
    admit(user, k->fd, (struct sockaddr *)&k->address, k->address_len);
    return true;
  }
  if (head < 0) {
    d->malformed++;
    turn_away(k->fd, why.status, why.code, why.message);
    return true;
  }
  if (ended) {
    close(k->fd);
    return true;
  }
  k->n_seen = (size_t)n;
  want_more_than(k->fd, k->n_seen);
  return false;
}

static bool too_slow(fm_door *d, fm_knock *k, int64_t now_ms) {
  if (now_ms - k->since_ms < d->head_ms) return false;
  d->slow++;
  turn_away(k->fd, 408, "request_timeout", "the request did not come in time");
  return true;
}

int fm_door_watch(const fm_door *d, struct pollfd *fds, int64_t now_ms) {
  int n = 0;
  if (d->fd >= 0) fds[n++] = (struct pollfd){ d->fd, now_ms < d->rests_until_ms ? 0 : POLLIN, 0 };
  for (int64_t i = 0; i < d->n_knocks; i++) fds[n++] = (struct pollfd){ d->knock[i].fd, POLLIN | POLLRDHUP, 0 };
  return n;
}

void fm_door_step(fm_door *d, const struct pollfd *fds, int n_fds, int64_t now_ms, int64_t room, fm_admit_fn *admit, void *user) {
  int listening = d->fd >= 0;
  int64_t kept = 0;
  for (int64_t i = 0; i < d->n_knocks; i++) {
    fm_knock *k = &d->knock[i];
    bool woken = listening + i < n_fds && fds[listening + i].revents;
    if ((woken && look(d, k, admit, user)) || too_slow(d, k, now_ms)) continue;
    d->knock[kept++] = *k;
  }
  d->n_knocks = kept;
  if (!listening || n_fds < 1 || !fds[0].revents) return;
  for (int i = 0; i < ACCEPTS && accept_one(d, now_ms, room); i++) { }
}
