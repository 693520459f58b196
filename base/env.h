/* The seam to time and threads: what a replica, a clerk or a connection may ask
 * of the machine it runs on. transport/loop.h implements it over libuv and real
 * threads; tests/sim implements it on virtual time in one thread, from a seed.
 *
 * Everything that holds an env runs on its loop, except a job's run().
 * Code above this seam never asks a clock, sleeps or starts a thread itself. */
#ifndef BASE_ENV_H
#define BASE_ENV_H

#include <stdint.h>

struct env;
struct env_worker;

/* A timer that fires once. The owner embeds it, sets `fire`, and zeroes the
 * rest; it must be stopped before its memory goes. */
struct env_timer {
    void (*fire)(struct env_timer *timer); /* on the loop */
    void *impl; /* the env's; NULL when not running */
};

/* Work for a worker: run() is called on the worker's thread, then done() on the
 * loop, in the order of submission. The owner embeds it and keeps it alive
 * until done(). A worker runs one job at a time, first in first out.
 *
 * A brief job (some hundred microseconds at most, as far as its owner can tell)
 * may instead be run by the loop itself, inside the call that submits it, when
 * the worker has nothing else: waking a thread twice costs more than such a
 * job. done() is never called inside that call. */
struct env_job {
    void (*run)(struct env_job *job);  /* on the worker; may be NULL */
    void (*done)(struct env_job *job); /* on the loop; may be NULL */
    struct env_job *next;              /* the env's */
};

struct env_ops {
    /* Microseconds on a clock that never goes back; its zero means nothing. */
    uint64_t (*now_us)(struct env *env);
    /* Microseconds since 1970; may jump. For stamps that people read. */
    uint64_t (*wall_us)(struct env *env);
    /* Fires after `delay_us`; a running timer is set anew. */
    void (*timer_start)(struct env *env, struct env_timer *t,
                        uint64_t delay_us);
    void (*timer_stop)(struct env *env, struct env_timer *t); /* idempotent */
    /* Calls job->done on the loop soon. The only call that any thread may
     * make. */
    void (*post)(struct env *env, struct env_job *job);
    struct env_worker *(*worker_new)(struct env *env, const char *name);
    /* From the loop only. */
    void (*worker_submit)(struct env_worker *w, struct env_job *job);
    void (*worker_submit_brief)(struct env_worker *w, struct env_job *job);
    /* Waits until all submitted jobs have run, calls their done(), frees. */
    void (*worker_free)(struct env_worker *w);
    /* This replica must not go on (a failed fsync, damage on disk). A process
     * logs the words and exits with status 70; a simulated replica dies, and
     * the call RETURNS there: the caller then does nothing further. */
    void (*fatal)(struct env *env, const char *words);
    /* A number nobody can guess; from the seed in the simulator. */
    uint64_t (*random)(struct env *env);
};

struct env {
    const struct env_ops *ops;
};

static inline uint64_t env_now_us(struct env *e)
{
    return e->ops->now_us(e);
}
static inline uint64_t env_now_ms(struct env *e)
{
    return e->ops->now_us(e) / 1000;
}
static inline uint64_t env_wall_us(struct env *e)
{
    return e->ops->wall_us(e);
}
static inline void env_timer_start(struct env *e, struct env_timer *t,
                                   uint64_t delay_us)
{
    e->ops->timer_start(e, t, delay_us);
}
static inline void env_timer_stop(struct env *e, struct env_timer *t)
{
    e->ops->timer_stop(e, t);
}
static inline void env_post(struct env *e, struct env_job *job)
{
    e->ops->post(e, job);
}
static inline struct env_worker *env_worker_new(struct env *e, const char *name)
{
    return e->ops->worker_new(e, name);
}
static inline void env_worker_submit(struct env *e, struct env_worker *w,
                                     struct env_job *job)
{
    e->ops->worker_submit(w, job);
}
static inline void env_worker_submit_brief(struct env *e, struct env_worker *w,
                                           struct env_job *job)
{
    e->ops->worker_submit_brief(w, job);
}
static inline void env_worker_free(struct env *e, struct env_worker *w)
{
    e->ops->worker_free(w);
}
static inline uint64_t env_random(struct env *e)
{
    return e->ops->random(e);
}
/* printf-like front of ops->fatal; see there: it returns in the simulator. */
void env_fatal(struct env *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
