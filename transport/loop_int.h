/* The insides of the loop, for the files of this folder. */
#ifndef TRANSPORT_LOOP_INT_H
#define TRANSPORT_LOOP_INT_H

#include <pthread.h>
#include <stdbool.h>
#include <uv.h>

#include "transport/loop.h"

enum { LOOP_SIGNALS_MAX = 8 };

/* Jobs in the order in which they came. */
struct job_queue {
    struct env_job *first;
    struct env_job *last;
};

void job_queue_push(struct job_queue *q, struct env_job *job);
struct env_job *job_queue_pop(struct job_queue *q); /* NULL when empty */
void job_queue_join(struct job_queue *to, struct job_queue *from);
void job_queue_remove(struct job_queue *q, const struct env_job *job);

struct loop_timer;

struct loop_signal {
    uv_signal_t handle;
    void (*fn)(void *arg, int signal_number);
    void *arg;
};

struct net_loop {
    struct env env; /* first: the env that is handed out is the loop itself */
    uv_loop_t uv;
    int wake_fd; /* an eventfd */
    uv_poll_t wake;
    struct job_queue ready;         /* taken from `posted`, being called */
    struct job_queue here;          /* posted by the loop to itself */
    struct loop_timer *idle_timers; /* initialised, not running */
    struct loop_timer *due_timers;  /* without delay, the oldest first */
    uint64_t due_turn;
    uv_idle_t due; /* runs while there are such, or jobs in `here` */
    uint32_t running_timer_count;
    struct loop_signal signals[LOOP_SIGNALS_MAX];
    uint32_t signal_count;

    pthread_mutex_t lock; /* guards the rest; never held over a call out */
    struct job_queue posted;
    bool stop_asked;
};

/* For the loop's own thread: calls job->done at the end of this turn, after the
 * timers without delay. No wake-up. */
void net_loop_post_here(struct net_loop *loop, struct env_job *job);
/* Takes back a job that was posted and not yet called. */
void net_loop_unpost(struct net_loop *loop, const struct env_job *job);

/* worker.c, the operations of the env. */
struct env_worker *net_worker_new(struct env *env, const char *name);
void net_worker_submit(struct env_worker *w, struct env_job *job);
void net_worker_submit_brief(struct env_worker *w, struct env_job *job);
void net_worker_free(struct env_worker *w);

#endif
