/* A worker: one thread that runs jobs in order. Invariants:
 *
 *  1. `lock` guards the queues and flags below it; it is never held while a
 *     job's run() or done() is called.
 *  2. Finished jobs come back in batches: one wake-up of the loop for all that
 *     finished since it last looked. A batch that takes long is handed over in
 *     pieces, so that the first job does not wait for the last.
 *  3. `collect` is in a queue of the loop's exactly while `collect_posted` is
 *     set.
 *  4. A brief job runs on the loop only while the thread has nothing: nobody
 *     else submits, so the thread stays idle meanwhile, and `lock` orders what
 *     the two see. One that was not brief sends the next ones to the thread for
 *     PAUSE_FACTOR times as long as it took: a slow disk holds up the loop for
 *     at most a seventeenth of the time. */
#include "transport/loop_int.h"

#include <signal.h>
#include <stdio.h>

#include "base/check.h"
#include "base/mem.h"

enum {
    HAND_OVER_US = 100,
    THREAD_NAME_SIZE = 16,
    BRIEF_US = 1000,
    PAUSE_FACTOR = 16,
};

struct env_worker {
    struct net_loop *loop;
    pthread_t thread;
    struct env_job collect; /* calls worker_collect() on the loop */

    /* The loop's. */
    struct job_queue ready;  /* finished, their done() not yet called */
    uint32_t delivering;     /* depth: a done() may free the worker */
    uint64_t pause_until_us; /* 4 */
    bool freed;

    pthread_mutex_t lock;
    pthread_cond_t more; /* `todo` is not empty, or `ending` */
    pthread_cond_t idle; /* nothing to do and nothing running */
    struct job_queue todo;
    struct job_queue finished;
    bool busy;
    bool ending;
    bool collect_posted;
};

/* Whether the caller is to post `collect`. */
static bool worker_finished(struct env_worker *w, struct job_queue *batch)
{
    pthread_mutex_lock(&w->lock);
    job_queue_join(&w->finished, batch);
    bool post = !w->collect_posted;
    w->collect_posted = true;
    pthread_mutex_unlock(&w->lock);
    return post;
}

static void worker_hand_over(struct env_worker *w, struct job_queue *batch)
{
    if (worker_finished(w, batch)) {
        env_post(&w->loop->env, &w->collect);
    }
}

static void worker_run(struct env_worker *w, struct job_queue *batch)
{
    struct job_queue finished = {0};
    uint64_t since_us = env_now_us(&w->loop->env);
    struct env_job *job;
    while ((job = job_queue_pop(batch)) != NULL) {
        if (job->run != NULL) {
            job->run(job);
        }
        job_queue_push(&finished, job);
        uint64_t now_us = env_now_us(&w->loop->env);
        if (batch->first == NULL || now_us - since_us > HAND_OVER_US) {
            worker_hand_over(w, &finished);
            since_us = now_us;
        }
    }
}

static void *worker_main(void *arg)
{
    struct env_worker *w = arg;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->todo.first == NULL && !w->ending) {
            pthread_cond_wait(&w->more, &w->lock);
        }
        if (w->todo.first == NULL) {
            break;
        }
        struct job_queue batch = {0};
        job_queue_join(&batch, &w->todo);
        w->busy = true;
        pthread_mutex_unlock(&w->lock);
        worker_run(w, &batch);
        pthread_mutex_lock(&w->lock);
        w->busy = false;
        if (w->todo.first == NULL) {
            pthread_cond_signal(&w->idle);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void worker_destroy(struct env_worker *w)
{
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->more);
    pthread_cond_destroy(&w->idle);
    mem_free(w);
}

/* Calls done() of what is in `ready`. `w` may be gone afterwards. */
static void worker_deliver(struct env_worker *w)
{
    w->delivering++;
    struct env_job *job;
    while ((job = job_queue_pop(&w->ready)) != NULL) {
        if (job->done != NULL) {
            job->done(job);
        }
    }
    w->delivering--;
    if (w->freed && w->delivering == 0) {
        worker_destroy(w);
    }
}

static void worker_collect(struct env_job *job)
{
    struct env_worker *w =
        (struct env_worker *)((char *)job -
                              offsetof(struct env_worker, collect));
    pthread_mutex_lock(&w->lock);
    w->collect_posted = false;
    job_queue_join(&w->ready, &w->finished);
    pthread_mutex_unlock(&w->lock);
    worker_deliver(w);
}

struct env_worker *net_worker_new(struct env *env, const char *name)
{
    struct env_worker *w = mem_alloc(sizeof *w);
    w->loop = (struct net_loop *)env;
    w->collect.done = worker_collect;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    pthread_cond_init(&w->idle, NULL);

    /* Signals are the loop's; a new thread inherits this thread's mask. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        env_fatal(env, "cannot start thread %s: error %d; check ulimit -u",
                  name, rc);
    }
    char short_name[THREAD_NAME_SIZE];
    snprintf(short_name, sizeof short_name, "%s", name);
    pthread_setname_np(w->thread, short_name);
    return w;
}

void net_worker_submit(struct env_worker *w, struct env_job *job)
{
    pthread_mutex_lock(&w->lock);
    CHECK(!w->ending);
    bool was_empty = w->todo.first == NULL;
    job_queue_push(&w->todo, job);
    pthread_mutex_unlock(&w->lock);
    if (was_empty) {
        pthread_cond_signal(&w->more);
    }
}

static bool worker_is_idle(struct env_worker *w)
{
    pthread_mutex_lock(&w->lock);
    CHECK(!w->ending);
    bool idle = !w->busy && w->todo.first == NULL;
    pthread_mutex_unlock(&w->lock);
    return idle;
}

static void worker_finished_here(struct env_worker *w, struct env_job *job)
{
    struct job_queue batch = {0};
    job_queue_push(&batch, job);
    if (worker_finished(w, &batch)) {
        net_loop_post_here(w->loop, &w->collect);
    }
}

void net_worker_submit_brief(struct env_worker *w, struct env_job *job)
{
    uint64_t began_us = env_now_us(&w->loop->env);
    if (began_us < w->pause_until_us || !worker_is_idle(w)) {
        net_worker_submit(w, job);
        return;
    }
    if (job->run != NULL) {
        job->run(job);
    }
    uint64_t now_us = env_now_us(&w->loop->env);
    if (now_us - began_us > BRIEF_US) {
        w->pause_until_us = now_us + (now_us - began_us) * PAUSE_FACTOR;
    }
    worker_finished_here(w, job);
}

/* Waits for the worker, then takes what it finished. False when there was
 * nothing: no job is left anywhere. */
static bool worker_take_rest(struct env_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->busy || w->todo.first != NULL) {
        pthread_cond_wait(&w->idle, &w->lock);
    }
    job_queue_join(&w->ready, &w->finished);
    pthread_mutex_unlock(&w->lock);
    return w->ready.first != NULL;
}

void net_worker_free(struct env_worker *w)
{
    if (w == NULL) {
        return;
    }
    w->delivering++; /* holds `w` until the end of this function */
    while (worker_take_rest(w)) {
        worker_deliver(w); /* which may submit more */
    }
    pthread_mutex_lock(&w->lock);
    w->ending = true;
    pthread_mutex_unlock(&w->lock);
    pthread_cond_signal(&w->more);
    CHECK(pthread_join(w->thread, NULL) == 0);
    if (w->collect_posted) {
        net_loop_unpost(w->loop, &w->collect);
    }
    w->delivering--;
    w->freed = true;
    if (w->delivering == 0) {
        worker_destroy(w);
    }
}
