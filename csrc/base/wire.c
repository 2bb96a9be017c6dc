/*
** wire.c - connections between all of some processes. Every pair has one; what goes over it has its size in front.
*/
#define _GNU_SOURCE                      /* accept4 */
#include "base/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

enum { MAGIC = 0x66776931, WORLDS = FM_WIRE_MOST };

struct fm_wire {
  int me, n, listener;
  double limit_s;
  bool broken;
  fm_error why;                          /* broken: what every later call says */
  int socket[WORLDS];                    /* -1: this process, or none yet */
};

/* What one says first, and what rank 0 answers for each of the others. */
typedef struct hello { int32_t magic, world, rank, port; } hello;
typedef struct place { char host[64]; int32_t port; } place;

int fm_wire_me(const fm_wire *w) { return w->me; }
int fm_wire_size(const fm_wire *w) { return w->n; }
double fm_wire_limit(const fm_wire *w) { return w->limit_s; }

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int left_ms(double end) {
  double left = (end - now_s()) * 1e3;
  return left < 0 ? 0 : left > 1e6 ? 1000000 : (int)left + 1;
}

static void drop(int *socket) {
  if (*socket >= 0) close(*socket);
  *socket = -1;
}

void fm_wire_break(fm_wire *w, const char *why) {
  if (w->broken) return;
  w->broken = true;
  fm_fail(&w->why, FM_EDEVICE, "%.400s", why);
  for (int i = 0; i < w->n; i++) drop(&w->socket[i]);
}

void fm_wire_close(fm_wire *w) {
  if (!w) return;
  for (int i = 0; i < w->n; i++) drop(&w->socket[i]);
  drop(&w->listener);
  fm_free(w);
}

/* ---- one socket ------------------------------------------------------------------------------------------ */

static void settle(int fd) {
  int yes = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static bool wait_for(int fd, short what, double end) {
  struct pollfd p = { .fd = fd, .events = what };
  int n;
  do n = poll(&p, 1, left_ms(end));
  while (n < 0 && errno == EINTR);
  return n > 0;
}

/* All of it, or false. */
static bool move(int fd, void *data, size_t size, bool out, double end) {
  for (char *at = data; size > 0;) {
    ssize_t n = out ? send(fd, at, size, MSG_NOSIGNAL) : recv(fd, at, size, 0);
    if (n > 0) at += n, size -= (size_t)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR)) return false;
    else if (!wait_for(fd, out ? POLLOUT : POLLIN, end)) return false;
  }
  return true;
}

/* A listener at a port, 0: any; *got: which. */
static int listen_at(int port, int *got) {
  struct sockaddr_in6 a = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
  socklen_t size = sizeof a;
  int yes = 1, no = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr *at = (struct sockaddr *)&a;
  struct sockaddr_in old = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
  if (fd < 0) {                          // a machine without IPv6
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at = (struct sockaddr *)&old, size = sizeof old;
  } else {
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
  }
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (fd < 0 || bind(fd, at, size) != 0 || listen(fd, WORLDS) != 0 || getsockname(fd, at, &size) != 0) {
    if (fd >= 0) close(fd);
    return -1;
  }
  *got = ntohs(at->sa_family == AF_INET6 ? a.sin6_port : old.sin_port);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return fd;
}

static int connect_once(const struct addrinfo *a, double end) {
  int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), failed = 0;
  socklen_t size = sizeof failed;
  if (fd < 0) return -1;
  settle(fd);
  double soon = now_s() + 2 < end ? now_s() + 2 : end;
  bool good = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ||
              (errno == EINPROGRESS && wait_for(fd, POLLOUT, soon) && getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &size) == 0 && !failed);
  if (good) return fd;
  close(fd);
  return -1;
}

/* Tries until somebody is there. */
static int connect_to(const char *host, int port, double end) {
  struct addrinfo want = { .ai_socktype = SOCK_STREAM }, *all = NULL;
  char word[16];
  int fd = -1;
  snprintf(word, sizeof word, "%d", port);
  for (;;) {
    if (getaddrinfo(host, word, &want, &all) == 0) {
      for (const struct addrinfo *a = all; a && fd < 0; a = a->ai_next) fd = connect_once(a, end);
      freeaddrinfo(all);
    }
    if (fd >= 0 || now_s() >= end) return fd;
    nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
  }
}

/* Somebody who says hello as one of us, and is not here yet. Strangers are turned away. */
static int accept_one(fm_wire *w, hello *h, place *from, double end) {
  while (now_s() < end) {
    struct sockaddr_storage a;
    socklen_t size = sizeof a;
    if (!wait_for(w->listener, POLLIN, end)) break;
    int fd = accept4(w->listener, (struct sockaddr *)&a, &size, SOCK_CLOEXEC);
    if (fd < 0) continue;
    settle(fd);
    double soon = now_s() + 5 < end ? now_s() + 5 : end;
    bool good = move(fd, h, sizeof *h, false, soon) && h->magic == MAGIC && h->world == w->n && h->rank >= 0 && h->rank < w->n &&
                h->rank != w->me && w->socket[h->rank] < 0;
    if (good && from) {
      good = getnameinfo((struct sockaddr *)&a, size, from->host, sizeof from->host, NULL, 0, NI_NUMERICHOST) == 0;
      from->port = h->port;
    }
    if (good) return fd;
    close(fd);
  }
  return -1;
}

/* ---- meeting ---------------------------------------------------------------------------------------------- */

static fm_status alone(const fm_wire *w, const fm_seat *seat, int there, fm_error *err) {
  fm_fail(err, FM_EDEVICE, "%d of %d processes came to %s port %d in %.3g s", there, w->n, seat->host, seat->port, w->limit_s);
  return fm_hint(err, FM_EDEVICE, "start them all, or unset what says that there are several ($FATHOM_WORLD=1)");
}

static fm_status be_first(fm_wire *w, const fm_seat *seat, place *all, double end, fm_error *err) {
  int port;
  w->listener = listen_at(seat->port, &port);
  if (w->listener < 0) return fm_fail(err, FM_EDEVICE, "port %d cannot be listened at: %s", seat->port, strerror(errno));
  for (int there = 1; there < w->n; there++) {
    hello h;
    place from;
    int fd = accept_one(w, &h, &from, end);
    if (fd < 0) return alone(w, seat, there, err);
    w->socket[h.rank] = fd;
    all[h.rank] = from;
  }
  for (int i = 1; i < w->n; i++)
    if (!move(w->socket[i], all, (size_t)w->n * sizeof *all, true, end)) return alone(w, seat, i, err);
  return FM_OK;
}

static fm_status join(fm_wire *w, const fm_seat *seat, place *all, double end, fm_error *err) {
  hello mine = { MAGIC, w->n, w->me, 0 }, h;
  w->listener = listen_at(0, &mine.port);
  if (w->listener < 0) return fm_fail(err, FM_EDEVICE, "no port can be listened at: %s", strerror(errno));
  w->socket[0] = connect_to(seat->host, seat->port, end);
  if (w->socket[0] < 0 || !move(w->socket[0], &mine, sizeof mine, true, end) ||
      !move(w->socket[0], all, (size_t)w->n * sizeof *all, false, end))
    return alone(w, seat, 1, err);
  for (int i = 1; i < w->me; i++) {
    w->socket[i] = connect_to(all[i].host, all[i].port, end);
    if (w->socket[i] < 0 || !move(w->socket[i], &mine, sizeof mine, true, end)) return alone(w, seat, i, err);
  }
  for (int i = w->me + 1; i < w->n; i++) {
    int fd = accept_one(w, &h, NULL, end);
    if (fd < 0) return alone(w, seat, i, err);
    w->socket[h.rank] = fd;
  }
  return FM_OK;
}

fm_status fm_wire_open(fm_wire **out, const fm_seat *seat, double limit_s, fm_error *err) {
  if (seat->world > WORLDS) return fm_fail(err, FM_EUNSUPPORTED, "%d processes, %d are the most", seat->world, WORLDS);
  fm_wire *w = fm_zalloc(sizeof *w);
  place *all = fm_array(seat->world, sizeof *all);
  fm_status status = w && all ? FM_OK : fm_no_memory(err, (int64_t)sizeof *w);
  if (status == FM_OK) {
    *w = (fm_wire){ .me = seat->rank, .n = seat->world, .listener = -1, .limit_s = limit_s };
    for (int i = 0; i < w->n; i++) w->socket[i] = -1;
    status = (w->me ? join : be_first)(w, seat, all, now_s() + limit_s, err);
    drop(&w->listener);
  }
  fm_free(all);
  if (status == FM_OK) *out = w;
  else if (w) fm_wire_close(w);
  return status;
}

/* ---- exchanges -------------------------------------------------------------------------------------------- */

/* What is still to be sent to and come from one of the others; the first 8 bytes are the size. */
typedef struct talk { int fd; int64_t head_out, head_in, sent, got, out_size, in_size; char *out; const char *in; } talk;

static fm_status broken(fm_wire *w, fm_error *err, const char *what, int rank) {
  char why[128];
  snprintf(why, sizeof why, what, rank, w->limit_s);
  fm_wire_break(w, why);
  if (err) *err = w->why;
  return fm_hint(err, FM_EDEVICE, "close the model and load it again, in all processes");
}

static bool send_some(talk *t) {
  struct iovec v[2] = { { (char *)&t->head_out + (t->sent < 8 ? t->sent : 8), t->sent < 8 ? (size_t)(8 - t->sent) : 0 },
                        { (char *)(uintptr_t)t->in + (t->sent > 8 ? t->sent - 8 : 0),
                          (size_t)(t->in_size - (t->sent > 8 ? t->sent - 8 : 0)) } };
  struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };
  ssize_t n = sendmsg(t->fd, &m, MSG_NOSIGNAL);
  if (n > 0) t->sent += n;
  return n >= 0 || errno == EAGAIN || errno == EINTR;
}

static bool take_some(talk *t) {
  bool head = t->got < 8;
  char *to = head ? (char *)&t->head_in + t->got : t->out + t->got - 8;
  ssize_t n = recv(t->fd, to, (size_t)(head ? 8 - t->got : 8 + t->out_size - t->got), 0);
  if (n > 0) t->got += n;
  return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool sending(const talk *t) { return t->fd >= 0 && t->sent < 8 + t->in_size; }
static bool taking(const talk *t) { return t->fd >= 0 && t->got < 8 + t->out_size; }

/* What comes first is done first: nobody waits for one while another one could be served. */
static fm_status serve(fm_wire *w, talk *t, const int *rank, int n, fm_error *err) {
  struct pollfd p[WORLDS];
  double end = now_s() + w->limit_s;
  for (;;) {
    int open = 0, last = 0;
    for (int i = 0; i < n; i++) {
      p[i] = (struct pollfd){ .fd = t[i].fd, .events = (short)((sending(&t[i]) ? POLLOUT : 0) | (taking(&t[i]) ? POLLIN : 0)) };
      if (!p[i].events) p[i].fd = -1;
      else open++, last = i;
    }
    if (!open) return FM_OK;
    int ready = poll(p, (nfds_t)n, left_ms(end));
    if (ready < 0 && errno != EINTR) return broken(w, err, "waiting for process %d failed", rank[last]);
    if (ready == 0) return broken(w, err, "process %d did not answer in %.3g s", rank[last]);
    for (int i = 0; i < n && ready > 0; i++) {
      if (p[i].fd < 0 || !p[i].revents) continue;
      if (sending(&t[i]) && p[i].revents & POLLOUT && !send_some(&t[i])) return broken(w, err, "process %d is gone", rank[i]);
      if (taking(&t[i]) && p[i].revents & (POLLIN | POLLHUP | POLLERR) && !take_some(&t[i])) return broken(w, err, "process %d is gone", rank[i]);
      if (t[i].got >= 8 && t[i].head_in != t[i].out_size) {
        fm_fail(err, FM_EDEVICE, "process %d sends %lld bytes, process %d expects %lld: they do not run the same script", rank[i],
                (long long)t[i].head_in, w->me, (long long)t[i].out_size);
        fm_wire_break(w, err ? err->message : "another size");
        return FM_EDEVICE;
      }
    }
  }
}

fm_status fm_wire_swap(fm_wire *w, const int *rank, int n, void *const *out, const int64_t *out_size, const void *const *in,
                       const int64_t *in_size, fm_error *err) {
  talk t[WORLDS];
  if (w->broken) {
    if (err) *err = w->why;
    return fm_hint(err, FM_EDEVICE, "close the model and load it again, in all processes");
  }
  for (int i = 0; i < n; i++) {
    t[i] = (talk){ .fd = w->socket[rank[i]], .head_out = in_size[i], .out_size = out_size[i], .in_size = in_size[i], .out = out[i], .in = in[i] };
    if (rank[i] == w->me && out_size[i] && out[i] != in[i]) memcpy(out[i], in[i], (size_t)out_size[i]);
  }
  return serve(w, t, rank, n, err);
}

fm_status fm_wire_look(fm_wire *w, fm_error *err) {
  struct pollfd p[WORLDS];
  if (!w->broken) {
    for (int i = 0; i < w->n; i++) p[i] = (struct pollfd){ .fd = w->socket[i], .events = POLLRDHUP };
    if (poll(p, (nfds_t)w->n, 0) <= 0) return FM_OK;
    for (int i = 0; i < w->n; i++)
      if (p[i].fd >= 0 && p[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) return broken(w, err, "process %d is gone", i);
    return FM_OK;
  }
  if (err) *err = w->why;
  return FM_EDEVICE;
}
