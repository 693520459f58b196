/* The env over libuv. Invariants:
 *
 *  1. Everything runs on the thread that is in net_loop_run(), except post()
 *     and net_loop_stop(), which touch only what `lock` guards.
 *  2. A wake-up is sent when `posted` becomes non-empty, and only then: the
 *     loop takes the whole queue at once, so a burst costs one write(). It goes
 *     through an eventfd of our own: a loop that uv_async_send() woke spins
 *     until the sender has returned from it, which was 6 % of a server's time.
 *  3. A timer never fires early. libuv counts milliseconds from a clock that it
 *     reads once per turn; we give it absolute times, rounded up, so that its
 *     reading may be stale without harm.
 *  4. A timer without delay waits for no millisecond: it fires at the end of
 *     this turn of the loop, before what the turn wrote is flushed. One that is
 *     started while these fire waits for the next turn, so that the network is
 *     looked at in between (libuv's own timers of delay 0 would not). */
#include "transport/loop_int.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"

enum { FATAL_EXIT_STATUS = 70 }; /* EX_SOFTWARE of sysexits.h */

void job_queue_push(struct job_queue *q, struct env_job *job)
{
    job->next = NULL;
    if (q->last != NULL) {
        q->last->next = job;
    } else {
        q->first = job;
    }
    q->last = job;
}

struct env_job *job_queue_pop(struct job_queue *q)
{
    struct env_job *job = q->first;
    if (job != NULL) {
        q->first = job->next;
        if (q->first == NULL) {
            q->last = NULL;
        }
        job->next = NULL;
    }
    return job;
}

void job_queue_join(struct job_queue *to, struct job_queue *from)
{
    if (from->first == NULL) {
        return;
    }
    if (to->last != NULL) {
        to->last->next = from->first;
    } else {
        to->first = from->first;
    }
    to->last = from->last;
    *from = (struct job_queue){0};
}

void job_queue_remove(struct job_queue *q, const struct env_job *job)
{
    struct job_queue kept = {0};
    struct env_job *each;
    while ((each = job_queue_pop(q)) != NULL) {
        if (each != job) {
            job_queue_push(&kept, each);
        }
    }
    *q = kept;
}

static struct net_loop *loop_of(struct env *env)
{
    return (struct net_loop *)env;
}

static uint64_t clock_us(clockid_t clock)
{
    struct timespec now;
    CHECK(clock_gettime(clock, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static uint64_t loop_now_us(struct env *env)
{
    (void)env;
    /* Not uv_now(): that is the time at which this turn of the loop began. */
    return clock_us(CLOCK_MONOTONIC);
}

static uint64_t loop_wall_us(struct env *env)
{
    (void)env;
    return clock_us(CLOCK_REALTIME);
}

static uint64_t loop_random(struct env *env)
{
    (void)env;
    /* Straight from the kernel: one number of a small generator would give
     * away all that follow, and sessions are named by these. */
    return rng_entropy();
}

static void loop_fatal(struct env *env, const char *words)
{
    (void)env;
    log_error("transport", "fatal: %s", words);
    _exit(FATAL_EXIT_STATUS); /* no atexit handlers over a broken state */
}

/* --- timers --- */

struct loop_timer {
    uv_timer_t handle;
    struct env_timer *owner; /* NULL when idle */
    bool is_due;             /* in `due_timers`; the handle does not run */
    uint64_t due_turn;       /* in which it was put there */
    struct loop_timer *prev, *next; /* of the due or the idle ones */
};

static void timer_retire(struct net_loop *loop, struct loop_timer *timer)
{
    timer->owner->impl = NULL;
    timer->owner = NULL;
    timer->next = loop->idle_timers;
    loop->idle_timers = timer;
    loop->running_timer_count--;
}

static void timer_fire(struct net_loop *loop, struct loop_timer *timer)
{
    struct env_timer *owner = timer->owner;
    timer_retire(loop, timer);
    owner->fire(owner);
}

static void timer_fired(uv_timer_t *handle)
{
    timer_fire((struct net_loop *)handle->loop->data, handle->data);
}

/* Takes it from wherever it runs. */
static void timer_halt(struct net_loop *loop, struct loop_timer *timer)
{
    if (timer->is_due) {
        DL_DELETE(loop->due_timers, timer);
        timer->is_due = false;
    } else {
        uv_timer_stop(&timer->handle);
    }
}

/* Those that come meanwhile wait until this is called again. */
static void ready_call(struct net_loop *loop)
{
    struct env_job *job;
    while ((job = job_queue_pop(&loop->ready)) != NULL) {
        if (job->done != NULL) {
            job->done(job);
        }
    }
}

static void turn_ends(uv_idle_t *idle)
{
    struct net_loop *loop = idle->data;
    uint64_t turn = loop->due_turn++;
    while (loop->due_timers != NULL && loop->due_timers->due_turn <= turn) {
        struct loop_timer *timer = loop->due_timers;
        timer_halt(loop, timer);
        timer_fire(loop, timer);
    }
    /* Twice: what ends a job may submit another brief one, whose end somebody
     * waits for. No more often, or the network would not be looked at. */
    for (uint32_t i = 0; i < 2; i++) {
        job_queue_join(&loop->ready, &loop->here);
        ready_call(loop);
    }
    if (loop->due_timers == NULL && loop->here.first == NULL) {
        uv_idle_stop(idle);
    }
}

static void timer_set_due(struct net_loop *loop, struct loop_timer *timer)
{
    timer->is_due = true;
    timer->due_turn = loop->due_turn;
    DL_APPEND(loop->due_timers, timer);
    /* Runs each turn, just before the hooks that flush; a running one may be
     * started again. */
    CHECK(uv_idle_start(&loop->due, turn_ends) == 0);
}

static struct loop_timer *timer_take(struct net_loop *loop)
{
    struct loop_timer *timer = loop->idle_timers;
    if (timer != NULL) {
        loop->idle_timers = timer->next;
    } else {
        timer = mem_alloc(sizeof *timer);
        CHECK(uv_timer_init(&loop->uv, &timer->handle) == 0);
        timer->handle.data = timer;
    }
    loop->running_timer_count++;
    return timer;
}

static void loop_timer_start(struct env *env, struct env_timer *t,
                             uint64_t delay_us)
{
    struct net_loop *loop = loop_of(env);
    struct loop_timer *timer = t->impl;
    if (timer == NULL) {
        timer = timer_take(loop);
        timer->owner = t;
        t->impl = timer;
    }
    timer_halt(loop, timer);
    if (delay_us == 0) {
        timer_set_due(loop, timer);
        return;
    }
    uint64_t due_ms = (loop_now_us(env) + delay_us + 999) / 1000;
    uint64_t base_ms = uv_now(&loop->uv); /* the same clock, read earlier */
    uint64_t wait_ms = due_ms > base_ms ? due_ms - base_ms : 0;
    CHECK(uv_timer_start(&timer->handle, timer_fired, wait_ms, 0) == 0);
}

static void loop_timer_stop(struct env *env, struct env_timer *t)
{
    struct loop_timer *timer = t->impl;
    if (timer != NULL) {
        timer_halt(loop_of(env), timer);
        timer_retire(loop_of(env), timer);
    }
}

/* --- posts --- */

static void loop_wake(struct net_loop *loop)
{
    /* Fails only when 2^64 - 1 wake-ups wait: then there is one. */
    (void)!eventfd_write(loop->wake_fd, 1);
}

static void loop_post(struct env *env, struct env_job *job)
{
    struct net_loop *loop = loop_of(env);
    pthread_mutex_lock(&loop->lock);
    bool was_empty = loop->posted.first == NULL;
    job_queue_push(&loop->posted, job);
    pthread_mutex_unlock(&loop->lock);
    if (was_empty) {
        loop_wake(loop);
    }
}

void net_loop_post_here(struct net_loop *loop, struct env_job *job)
{
    job_queue_push(&loop->here, job);
    CHECK(uv_idle_start(&loop->due, turn_ends) == 0);
}

void net_loop_unpost(struct net_loop *loop, const struct env_job *job)
{
    job_queue_remove(&loop->ready, job);
    job_queue_remove(&loop->here, job);
    pthread_mutex_lock(&loop->lock);
    job_queue_remove(&loop->posted, job);
    pthread_mutex_unlock(&loop->lock);
}

static void loop_woken(uv_poll_t *wake, int status, int events)
{
    (void)status;
    (void)events;
    struct net_loop *loop = wake->data;
    eventfd_t count;
    /* Before the queue is looked at: who posts from here on wakes us again. */
    (void)!eventfd_read(loop->wake_fd, &count);
    pthread_mutex_lock(&loop->lock);
    job_queue_join(&loop->ready, &loop->posted);
    bool stop = loop->stop_asked;
    loop->stop_asked = false;
    pthread_mutex_unlock(&loop->lock);

    ready_call(loop);
    if (stop) {
        uv_stop(&loop->uv);
    }
}

/* --- the loop --- */

static const struct env_ops loop_ops = {
    .now_us = loop_now_us,
    .wall_us = loop_wall_us,
    .timer_start = loop_timer_start,
    .timer_stop = loop_timer_stop,
    .post = loop_post,
    .worker_new = net_worker_new,
    .worker_submit = net_worker_submit,
    .worker_submit_brief = net_worker_submit_brief,
    .worker_free = net_worker_free,
    .fatal = loop_fatal,
    .random = loop_random,
};

enum err net_loop_new(struct net_loop **out)
{
    struct net_loop *loop = mem_alloc(sizeof *loop);
    loop->env.ops = &loop_ops;
    int rc = uv_loop_init(&loop->uv);
    if (rc != 0) {
        mem_free(loop);
        return err_from_errno(-rc);
    }
    loop->uv.data = loop;
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->wake_fd < 0) {
        enum err err = err_from_errno(errno);
        CHECK(uv_loop_close(&loop->uv) == 0);
        mem_free(loop);
        return err;
    }
    CHECK(uv_poll_init(&loop->uv, &loop->wake, loop->wake_fd) == 0);
    CHECK(uv_poll_start(&loop->wake, UV_READABLE, loop_woken) == 0);
    loop->wake.data = loop;
    CHECK(uv_idle_init(&loop->uv, &loop->due) == 0);
    loop->due.data = loop;
    pthread_mutex_init(&loop->lock, NULL);
    /* A peer that went away while we write is an error of that write. */
    signal(SIGPIPE, SIG_IGN);
    *out = loop;
    return ERR_OK;
}

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void net_loop_free(struct net_loop *loop)
{
    if (loop == NULL) {
        return;
    }
    CHECK(loop->running_timer_count == 0);
    while (loop->idle_timers != NULL) {
        struct loop_timer *timer = loop->idle_timers;
        loop->idle_timers = timer->next;
        uv_close((uv_handle_t *)&timer->handle, timer_closed);
    }
    for (uint32_t i = 0; i < loop->signal_count; i++) {
        uv_close((uv_handle_t *)&loop->signals[i].handle, NULL);
    }
    uv_close((uv_handle_t *)&loop->wake, NULL);
    uv_close((uv_handle_t *)&loop->due, NULL);
    uv_run(&loop->uv, UV_RUN_DEFAULT);
    /* Fails when somebody left a handle open: their bug, found here. */
    CHECK(uv_loop_close(&loop->uv) == 0);
    close(loop->wake_fd);
    pthread_mutex_destroy(&loop->lock);
    mem_free(loop);
}

struct env *net_loop_env(struct net_loop *loop)
{
    return &loop->env;
}

void net_loop_run(struct net_loop *loop)
{
    uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void net_loop_stop(struct net_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    loop->stop_asked = true;
    pthread_mutex_unlock(&loop->lock);
    loop_wake(loop);
}

static void signal_came(uv_signal_t *handle, int signal_number)
{
    struct loop_signal *s = handle->data;
    s->fn(s->arg, signal_number);
}

enum err net_loop_signal(struct net_loop *loop, int signal_number,
                         void (*fn)(void *arg, int signal_number), void *arg)
{
    if (loop->signal_count == LOOP_SIGNALS_MAX) {
        return ERR_BUSY;
    }
    struct loop_signal *s = &loop->signals[loop->signal_count];
    int rc = uv_signal_init(&loop->uv, &s->handle);
    if (rc != 0) {
        return err_from_errno(-rc);
    }
    loop->signal_count++; /* from here net_loop_free() closes it */
    s->handle.data = s;
    s->fn = fn;
    s->arg = arg;
    rc = uv_signal_start(&s->handle, signal_came, signal_number);
    return rc == 0 ? ERR_OK : err_from_errno(-rc);
}
