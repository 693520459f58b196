#include "tests/sim/env.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/mem.h"

enum { TAG_TIMER = 1, TAG_POST = 2, TAG_RUN = 3, TAG_DONE = 4 };

static struct sim_env *of(struct env *env)
{
    return (struct sim_env *)env;
}

/* ---- clocks ---- */

static uint64_t env_now(struct env *env)
{
    struct sim_env *e = of(env);
    /* The product fits: 2^64 / 2^21 us is two hundred days. */
    return e->world->now_us * e->rate_ppm / 1000000;
}

static uint64_t env_wall(struct env *env)
{
    struct sim_env *e = of(env);
    return (uint64_t)((int64_t)(1700000000000000 + e->world->now_us) +
                      e->wall_offset_us);
}

/* ---- timers ---- */

struct timer_event {
    struct sim_event event;
    struct env_timer *timer;
};

static void event_free(struct sim_event *e)
{
    mem_free(e);
}

static void timer_fire(struct sim_event *event)
{
    struct timer_event *t = (struct timer_event *)event;
    struct env_timer *timer = t->timer;
    event->env->timers_fired++;
    timer->impl = NULL;
    mem_free(t);
    timer->fire(timer);
}

static void env_stop(struct env *env, struct env_timer *timer)
{
    struct timer_event *t = timer->impl;
    if (t == NULL) {
        return;
    }
    timer->impl = NULL;
    sim_pull(of(env)->world, &t->event);
    mem_free(t);
}

static void env_start(struct env *env, struct env_timer *timer,
                      uint64_t delay_us)
{
    struct sim_env *e = of(env);
    env_stop(env, timer);
    struct timer_event *t = mem_alloc(sizeof *t);
    t->event = (struct sim_event){.env = e,
                                  .of_life = true,
                                  .is_timer = true,
                                  .tag = TAG_TIMER,
                                  .fire = timer_fire,
                                  .drop = event_free};
    t->timer = timer;
    timer->impl = t;
    /* Never early on the node's own clock; late by what a busy loop costs. */
    uint64_t world_us = delay_us * 1000000 / e->rate_ppm + 2;
    sim_push(e->world, &t->event, world_us + sim_between(e->world, 0, 50));
}

/* ---- jobs ---- */

struct job_event {
    struct sim_event event;
    struct env_job *job;
};

static void post_fire(struct sim_event *event)
{
    struct env_job *job = ((struct job_event *)event)->job;
    mem_free(event);
    if (job->done != NULL) {
        job->done(job);
    }
}

static void env_post_job(struct env *env, struct env_job *job)
{
    struct sim_env *e = of(env);
    struct job_event *p = mem_alloc(sizeof *p);
    p->event = (struct sim_event){.env = e,
                                  .of_life = true,
                                  .tag = TAG_POST,
                                  .fire = post_fire,
                                  .drop = event_free};
    p->job = job;
    sim_push(e->world, &p->event, 1);
}

struct queue {
    struct env_job *head, *tail;
};

static void queue_push(struct queue *q, struct env_job *job)
{
    job->next = NULL;
    if (q->tail != NULL) {
        q->tail->next = job;
    } else {
        q->head = job;
    }
    q->tail = job;
}

static struct env_job *queue_pop(struct queue *q)
{
    struct env_job *job = q->head;
    q->head = job->next;
    if (q->head == NULL) {
        q->tail = NULL;
    }
    job->next = NULL;
    return job;
}

struct worker_event {
    struct sim_event event;
    struct env_worker *worker;
    bool queued;
};

struct env_worker {
    struct sim_env *env;
    struct sim_speed speed;
    struct queue waiting;  /* run() is due */
    struct queue finished; /* done() is due */
    struct worker_event run, done;
};

static void worker_drop(struct sim_event *event)
{
    ((struct worker_event *)event)->queued = false;
}

static uint64_t service_us(struct env_worker *w)
{
    struct sim_world *world = w->env->world;
    uint64_t us = sim_delay(world, w->speed.low_us, w->speed.high_us);
    if (sim_chance(world, w->speed.slow_per_mille)) {
        us += sim_delay(world, 0, w->speed.slow_us);
    }
    return w->env->slow_until_us > world->now_us ? 10 * us : us;
}

static void worker_plan(struct env_worker *w)
{
    if (w->waiting.head != NULL && !w->run.queued) {
        w->run.queued = true;
        sim_push(w->env->world, &w->run.event, service_us(w));
    }
    if (w->finished.head != NULL && !w->done.queued) {
        w->done.queued = true;
        sim_push(w->env->world, &w->done.event,
                 sim_between(w->env->world, 1, 30));
    }
}

static void job_run(struct env_job *job)
{
    if (job->run != NULL) {
        job->run(job);
    }
}

static void worker_run(struct sim_event *event)
{
    struct worker_event *we = (struct worker_event *)event;
    struct env_worker *w = we->worker;
    we->queued = false;
    struct env_job *job = queue_pop(&w->waiting);
    job_run(job);
    queue_push(&w->finished, job);
    worker_plan(w);
}

static void worker_done(struct sim_event *event)
{
    struct worker_event *we = (struct worker_event *)event;
    struct env_worker *w = we->worker;
    we->queued = false;
    struct env_job *job = queue_pop(&w->finished);
    worker_plan(w); /* first: done() may free the worker */
    if (job->done != NULL) {
        job->done(job);
    }
}

static struct sim_speed speed_of(struct sim_env *e, const char *name)
{
    for (uint32_t i = 0; i < e->speed_count; i++) {
        if (strcmp(e->speeds[i].worker, name) == 0) {
            return e->speeds[i];
        }
    }
    return (struct sim_speed){.worker = name, .low_us = 5, .high_us = 500};
}

static struct worker_event worker_event_of(struct env_worker *w, uint8_t tag,
                                           void (*fire)(struct sim_event *))
{
    return (struct worker_event){.event = {.env = w->env,
                                           .of_life = true,
                                           .tag = tag,
                                           .fire = fire,
                                           .drop = worker_drop},
                                 .worker = w};
}

static struct env_worker *env_worker_make(struct env *env, const char *name)
{
    struct env_worker *w = mem_alloc(sizeof *w);
    w->env = of(env);
    w->speed = speed_of(w->env, name);
    w->run = worker_event_of(w, TAG_RUN, worker_run);
    w->done = worker_event_of(w, TAG_DONE, worker_done);
    return w;
}

static void worker_submit(struct env_worker *w, struct env_job *job)
{
    queue_push(&w->waiting, job);
    worker_plan(w);
}

/* As the loop does it, or does not: whoever submits is in the middle of
 * something when the job runs. */
static void worker_submit_brief(struct env_worker *w, struct env_job *job)
{
    if (w->waiting.head != NULL || sim_chance(w->env->world, 500)) {
        worker_submit(w, job);
        return;
    }
    job_run(job);
    queue_push(&w->finished, job);
    worker_plan(w);
}

static void worker_finish(struct env_worker *w)
{
    struct env_job *job;
    if (w->finished.head != NULL) {
        job = queue_pop(&w->finished);
    } else {
        job = queue_pop(&w->waiting);
        job_run(job);
    }
    if (job->done != NULL) {
        job->done(job);
    }
}

static void worker_end(struct env_worker *w)
{
    while (w->finished.head != NULL || w->waiting.head != NULL) {
        worker_finish(w);
    }
    if (w->run.queued) {
        sim_pull(w->env->world, &w->run.event);
    }
    if (w->done.queued) {
        sim_pull(w->env->world, &w->done.event);
    }
    mem_free(w);
}

/* ---- life and death ---- */

static void env_die(struct env *env, const char *words)
{
    struct sim_env *e = of(env);
    if (e->dead) {
        return;
    }
    snprintf(e->words, sizeof e->words, "%s", words);
    e->dying = true;
    e->dead = true;
}

static uint64_t env_draw(struct env *env)
{
    return rng_next(&of(env)->rng);
}

static const struct env_ops ops = {
    .now_us = env_now,
    .wall_us = env_wall,
    .timer_start = env_start,
    .timer_stop = env_stop,
    .post = env_post_job,
    .worker_new = env_worker_make,
    .worker_submit = worker_submit,
    .worker_submit_brief = worker_submit_brief,
    .worker_free = worker_end,
    .fatal = env_die,
    .random = env_draw,
};

void sim_env_init(struct sim_env *e, struct sim_world *w, uint32_t node)
{
    memset(e, 0, sizeof *e);
    e->env.ops = &ops;
    e->world = w;
    e->node = node;
    e->dead = true;
    e->rate_ppm = 1000000;
}

void sim_env_start(struct sim_env *e)
{
    CHECK(e->dead);
    e->life++;
    e->dead = false;
    e->dying = false;
    e->words[0] = 0;
    e->timers_fired = 0;
    e->heard = 0;
    e->rng.state = rng_next(&e->world->rng);
}

void sim_env_kill(struct sim_env *e)
{
    e->dead = true;
    e->paused_until_us = 0;
}

void sim_env_bury(struct sim_env *e)
{
    CHECK(e->dead);
    e->dying = false; /* or each message that arrives would be a new death */
    uint32_t timers = sim_sweep(e->world, e);
    if (timers > 0) {
        sim_fail(e->world, "node %u: %u timers still ran when it was freed",
                 e->node, timers);
    }
}
