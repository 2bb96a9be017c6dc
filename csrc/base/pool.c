/*
** pool.c - worker threads and a parallel for.
**
** A round: the caller publishes fn, arg and n, then raises `round`; workers that see a new round take items by an atomic counter and
** count themselves out. Inside enter/leave a worker spins a while before it sleeps; outside it sleeps at once.
*/
#define _GNU_SOURCE                      /* sched_getaffinity */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/mem.h"

enum { SPIN = 4000 };                    /* looks at `round` before sleeping: some tens of microseconds */

struct fm_pool {
  int n_threads;                         /* the caller included */
  pthread_t *thread;
  int started;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  atomic_int sleeping;
  atomic_uint round;
  atomic_bool stop;
  atomic_int awake;                      /* depth of enter */
  fm_pool_fn fn; void *arg; int64_t n;
  atomic_llong item;
  atomic_int busy;                       /* workers that have not finished the round */
  atomic_int ids;
};

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

static void take_items(fm_pool *p, int worker) {
  for (int64_t i; (i = atomic_fetch_add_explicit(&p->item, 1, memory_order_relaxed)) < p->n;)
    p->fn(p->arg, i, worker);
}

/* Returns once the round is not `seen` any more, or the pool stops. */
static void wait_round(fm_pool *p, unsigned seen) {
  for (int i = 0; atomic_load_explicit(&p->awake, memory_order_relaxed) && i < SPIN; i++) {
    if (atomic_load_explicit(&p->round, memory_order_acquire) != seen) return;
    relax();
  }
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&p->sleeping, 1);
  while (atomic_load(&p->round) == seen && !atomic_load(&p->stop)) pthread_cond_wait(&p->wake, &p->lock);
  atomic_fetch_sub(&p->sleeping, 1);
  pthread_mutex_unlock(&p->lock);
}

static void *work(void *arg) {
  fm_pool *p = arg;
  int worker = 1 + atomic_fetch_add(&p->ids, 1);
  unsigned seen = 0;
  for (;;) {
    wait_round(p, seen);
    if (atomic_load(&p->stop)) return NULL;
    unsigned round = atomic_load_explicit(&p->round, memory_order_acquire);
    if (round == seen) continue;
    seen = round;
    take_items(p, worker);
    atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
  }
}

static void wake_all(fm_pool *p) {
  if (!atomic_load(&p->sleeping)) return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
}

int fm_pool_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

fm_status fm_pool_new(fm_pool **out, int n_threads, fm_error *err) {
  fm_pool *p = fm_zalloc(sizeof *p);
  if (!p) return fm_no_memory(err, sizeof *p);
  p->n_threads = n_threads > 0 ? n_threads : fm_pool_cores();
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->wake, NULL);
  p->thread = fm_array(p->n_threads, sizeof *p->thread);
  fm_status status = p->thread ? FM_OK : fm_no_memory(err, p->n_threads * (int64_t)sizeof *p->thread);
  for (int i = 1; i < p->n_threads && status == FM_OK; i++) {
    if (pthread_create(&p->thread[i], NULL, work, p) == 0) p->started++;
    else status = fm_fail(err, FM_ELIMIT, "thread %d of %d was refused", i + 1, p->n_threads);
  }
  if (status != FM_OK) {
    fm_pool_free(p);
    return status;
  }
  *out = p;
  return FM_OK;
}

void fm_pool_free(fm_pool *p) {
  if (!p) return;
  pthread_mutex_lock(&p->lock);
  atomic_store(&p->stop, true);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
  atomic_fetch_add(&p->round, 1);                  // whoever spins looks up
  for (int i = 1; i <= p->started; i++) pthread_join(p->thread[i], NULL);
  pthread_mutex_destroy(&p->lock);
  pthread_cond_destroy(&p->wake);
  fm_free(p->thread);
  fm_free(p);
}

/* "0-3,8" */
static fm_status parse_cpus(const char *list, cpu_set_t *set, fm_error *err) {
  const char *at = list;
  CPU_ZERO(set);
  do {
    char *end;
    at += at != list;
    long first = strtol(at, &end, 10), last = first;
    bool good = end != at && *at >= '0' && *at <= '9';
    if (good && *end == '-') {
      at = end + 1;
      last = strtol(at, &end, 10);
      good = end != at && *at >= '0' && *at <= '9';
    }
    if (!good || first > last || last >= CPU_SETSIZE || (*end && *end != ','))
      return fm_fail(err, FM_EINVAL, "cpus must be a list like \"0-3,8\", got \"%.64s\"", list);
    for (long i = first; i <= last; i++) CPU_SET((size_t)i, set);
    at = end;
  } while (*at);
  return FM_OK;
}

fm_status fm_pool_count(const char *cpus, int *n, fm_error *err) {
  cpu_set_t set;
  TRY(parse_cpus(cpus, &set, err));
  *n = CPU_COUNT(&set);
  return FM_OK;
}

fm_status fm_pool_pin(fm_pool *p, const char *cpus, fm_error *err) {
  cpu_set_t set, may;
  TRY(parse_cpus(cpus, &set, err));
  bool good = sched_getaffinity(0, sizeof may, &may) != 0 || (CPU_AND(&may, &may, &set), CPU_COUNT(&may) > 0);   // one thread has none to pin
  for (int i = 1; i <= p->started; i++) good = good && pthread_setaffinity_np(p->thread[i], sizeof set, &set) == 0;
  return good ? FM_OK : fm_fail(err, FM_ELIMIT, "cpus = \"%.64s\": this process may not run there", cpus);
}

int fm_pool_threads(const fm_pool *p) { return p->n_threads; }

void fm_pool_for(fm_pool *p, int64_t n, fm_pool_fn fn, void *arg) {
  if (p->n_threads == 1 || n <= 1) {
    for (int64_t i = 0; i < n; i++) fn(arg, i, 0);
    return;
  }
  p->fn = fn;
  p->arg = arg;
  p->n = n;
  atomic_store_explicit(&p->item, 0, memory_order_relaxed);
  atomic_store_explicit(&p->busy, p->n_threads - 1, memory_order_relaxed);
  atomic_fetch_add(&p->round, 1);                  // publishes the above; ordered before the look at `sleeping`
  wake_all(p);
  take_items(p, 0);
  for (int spins = 0; atomic_load_explicit(&p->busy, memory_order_acquire); spins++) {
    if (spins < SPIN) relax();
    else sched_yield();                            // more threads than cores: let them run
  }
}

void fm_pool_enter(fm_pool *p) {
  atomic_fetch_add_explicit(&p->awake, 1, memory_order_relaxed);
}

void fm_pool_leave(fm_pool *p) {
  atomic_fetch_sub_explicit(&p->awake, 1, memory_order_relaxed);
}
