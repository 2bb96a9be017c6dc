/*
** hub.c - one lock and one condition for all that ranks wait for: they are few, and look again when it was not for them.
*/
#include "base/hub.h"

#include <pthread.h>
#include <time.h>

#include "base/mem.h"

enum { NOBODY = -2, LATE = -1 };

struct fm_hub {
  pthread_mutex_t lock;
  pthread_cond_t news;
  double limit_s;
  int culprit;
  unsigned epoch;                        /* counts resets: a door that was left half full starts over */
  int refs;                              /* the owner's, and one of each thread that was left behind */
};

struct fm_worker {
  fm_hub *hub;
  fm_worker_fn fn;
  void *arg;
  pthread_t thread;
  bool told, stop, over;                 /* over: the thread has ended */
};

static struct timespec after(double seconds) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  int64_t ns = t.tv_nsec + (int64_t)(seconds * 1e9);
  return (struct timespec){ .tv_sec = t.tv_sec + ns / 1000000000, .tv_nsec = ns % 1000000000 };
}

fm_status fm_hub_new(fm_hub **out, double limit_s, fm_error *err) {
  fm_hub *h = fm_zalloc(sizeof *h);
  pthread_condattr_t monotonic;
  if (!h) return fm_no_memory(err, sizeof *h);
  *h = (fm_hub){ .limit_s = limit_s, .culprit = NOBODY, .refs = 1 };
  pthread_mutex_init(&h->lock, NULL);
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&h->news, &monotonic);
  pthread_condattr_destroy(&monotonic);
  *out = h;
  return FM_OK;
}

/* With the lock held, which is given back. */
static void let_go(fm_hub *h) {
  bool last = --h->refs == 0;
  pthread_mutex_unlock(&h->lock);
  if (!last) return;
  pthread_mutex_destroy(&h->lock);
  pthread_cond_destroy(&h->news);
  fm_free(h);
}

void fm_hub_free(fm_hub *h) {
  if (!h) return;
  pthread_mutex_lock(&h->lock);
  let_go(h);
}

static void abort_now(fm_hub *h, int who) {
  if (h->culprit != NOBODY) return;
  h->culprit = who;
  pthread_cond_broadcast(&h->news);
}

void fm_hub_abort(fm_hub *h, int who) {
  pthread_mutex_lock(&h->lock);
  abort_now(h, who);
  pthread_mutex_unlock(&h->lock);
}

int fm_hub_culprit(fm_hub *h) {
  pthread_mutex_lock(&h->lock);
  int who = h->culprit;
  pthread_mutex_unlock(&h->lock);
  return who;
}

double fm_hub_limit(const fm_hub *h) { return h->limit_s; }

unsigned fm_hub_epoch(fm_hub *h) {
  pthread_mutex_lock(&h->lock);
  unsigned epoch = h->epoch;
  pthread_mutex_unlock(&h->lock);
  return epoch;
}

void fm_hub_reset(fm_hub *h) {
  pthread_mutex_lock(&h->lock);
  h->culprit = NOBODY;
  h->epoch++;
  pthread_mutex_unlock(&h->lock);
}

static void arrive(fm_hub *h, fm_door *d) {
  if (d->epoch != h->epoch) d->arrived = 0, d->epoch = h->epoch;
  if (++d->arrived < d->n) return;
  d->arrived = 0;
  d->round++;
  pthread_cond_broadcast(&h->news);
}

fm_status fm_hub_meet(fm_hub *h, fm_door *d, fm_error *err) {
  fm_status status = FM_OK;
  struct timespec end = after(h->limit_s);
  bool late = false;
  pthread_mutex_lock(&h->lock);
  unsigned round = d->round;
  if (h->culprit == NOBODY) arrive(h, d);
  while (d->round == round && h->culprit == NOBODY && !late) late = pthread_cond_timedwait(&h->news, &h->lock, &end) != 0;
  if (d->round == round) {
    if (late && h->culprit == NOBODY) {
      status = fm_fail(err, FM_EDEVICE, "%d of %d ranks came in %.3g s", d->arrived, d->n, h->limit_s);
      abort_now(h, LATE);
    } else {
      status = fm_fail(err, FM_EDEVICE, "another rank failed");
    }
  }
  pthread_mutex_unlock(&h->lock);
  return status;
}

/* ---- threads ------------------------------------------------------------------------------------------ */

static void *work(void *arg) {
  fm_worker *w = arg;
  fm_hub *h = w->hub;
  bool more = true;
  pthread_mutex_lock(&h->lock);
  while (more) {
    while (!w->told && !w->stop) pthread_cond_wait(&h->news, &h->lock);
    if (!w->told) break;
    pthread_mutex_unlock(&h->lock);
    more = w->fn(w->arg);
    pthread_mutex_lock(&h->lock);
    if (more) w->told = false;
    pthread_cond_broadcast(&h->news);
  }
  w->over = true;
  if (!more) abort_now(h, LATE);
  pthread_cond_broadcast(&h->news);
  let_go(h);
  return NULL;
}

fm_status fm_worker_new(fm_worker **out, fm_hub *h, fm_worker_fn fn, void *arg, fm_error *err) {
  fm_worker *w = fm_zalloc(sizeof *w);
  if (!w) return fm_no_memory(err, sizeof *w);
  *w = (fm_worker){ .hub = h, .fn = fn, .arg = arg };
  pthread_mutex_lock(&h->lock);
  h->refs++;
  pthread_mutex_unlock(&h->lock);
  if (pthread_create(&w->thread, NULL, work, w) != 0) {
    fm_hub_free(h);
    fm_free(w);
    return fm_fail(err, FM_ELIMIT, "a thread was refused");
  }
  *out = w;
  return FM_OK;
}

void fm_worker_go(fm_worker *w) {
  pthread_mutex_lock(&w->hub->lock);
  w->told = true;
  pthread_cond_broadcast(&w->hub->news);
  pthread_mutex_unlock(&w->hub->lock);
}

/* Waits until the thread has done what it was told, or for its end. */
static bool wait_for(fm_worker *w, bool end_of_it, double seconds) {
  fm_hub *h = w->hub;
  struct timespec end = after(seconds);
  bool late = false;
  pthread_mutex_lock(&h->lock);
  while (!w->over && (end_of_it || w->told) && !late) late = pthread_cond_timedwait(&h->news, &h->lock, &end) != 0;
  bool good = end_of_it ? w->over : !w->told;
  pthread_mutex_unlock(&h->lock);
  return good;
}

bool fm_worker_wait(fm_worker *w, double seconds) { return wait_for(w, false, seconds); }

bool fm_worker_gone(fm_worker *w) { return wait_for(w, true, 0); }

bool fm_worker_free(fm_worker *w) {
  if (!w) return true;
  pthread_mutex_lock(&w->hub->lock);
  w->stop = true;
  pthread_cond_broadcast(&w->hub->news);
  pthread_mutex_unlock(&w->hub->lock);
  if (!wait_for(w, true, 1)) {
    pthread_detach(w->thread);
    return false;
  }
  pthread_join(w->thread, NULL);
  fm_free(w);
  return true;
}
