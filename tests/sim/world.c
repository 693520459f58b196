#include "tests/sim/world.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/mem.h"
#include "tests/sim/env.h"

void sim_world_init(struct sim_world *w, uint64_t seed, bool verbose)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.state = seed * 0x9e3779b97f4a7c15u + 1;
    w->now_us = 1000000;
    w->hash = 0xcbf29ce484222325u;
    w->verbose = verbose;
}

/* ---- the queue: a radix heap (Ahuja et al. 1990) ----
 *
 * Time only goes forward, so a queue need not keep everything sorted. `base_us`
 * is the time of the event fired last, and bucket b has the events whose time
 * differs from it first, from the top, in bit b - 1; bucket 0 those of that
 * very time. So each bucket is earlier than the next. When bucket 0 is empty,
 * the base goes on to the earliest time in the first bucket that is not, whose
 * events then all belong in lower ones; no other bucket changes. Events of one
 * time are always in one bucket, in the order in which they came. */

static uint32_t bucket_of(const struct sim_world *w, uint64_t time_us)
{
    uint64_t differs = time_us ^ w->base_us;
    return differs == 0 ? 0 : 64 - (uint32_t)__builtin_clzll(differs);
}

static void insert(struct sim_world *w, struct sim_event *e)
{
    CHECK(e->time_us >= w->base_us);
    uint32_t bucket = bucket_of(w, e->time_us);
    CHECK(bucket < SIM_BUCKETS);
    struct sim_list *list = &w->buckets[bucket];
    e->bucket = bucket;
    e->next = NULL;
    e->prev = list->last;
    if (list->last != NULL) {
        list->last->next = e;
    } else {
        list->first = e;
        w->filled |= UINT64_C(1) << bucket;
    }
    list->last = e;
}

void sim_push(struct sim_world *w, struct sim_event *e, uint64_t delay_us)
{
    e->time_us = w->now_us + delay_us;
    insert(w, e);
}

void sim_pull(struct sim_world *w, struct sim_event *e)
{
    struct sim_list *list = &w->buckets[e->bucket];
    if (e->prev != NULL) {
        CHECK(e->prev->next == e);
        e->prev->next = e->next;
    } else {
        CHECK(list->first == e);
        list->first = e->next;
    }
    if (e->next != NULL) {
        e->next->prev = e->prev;
    } else {
        list->last = e->prev;
    }
    if (list->first == NULL) {
        w->filled &= ~(UINT64_C(1) << e->bucket);
    }
}

static void spread(struct sim_world *w, uint32_t bucket)
{
    struct sim_event *e = w->buckets[bucket].first;
    uint64_t earliest = e->time_us;
    for (; e != NULL; e = e->next) {
        earliest = e->time_us < earliest ? e->time_us : earliest;
    }
    w->base_us = earliest;
    e = w->buckets[bucket].first;
    w->buckets[bucket] = (struct sim_list){0};
    w->filled &= ~(UINT64_C(1) << bucket);
    while (e != NULL) {
        struct sim_event *next = e->next;
        insert(w, e);
        e = next;
    }
}

/* Takes the next one out. NULL: there is none. */
static struct sim_event *queue_pop(struct sim_world *w)
{
    if (w->filled == 0) {
        return NULL;
    }
    if (w->buckets[0].first == NULL) {
        spread(w, (uint32_t)__builtin_ctzll(w->filled));
    }
    struct sim_event *e = w->buckets[0].first;
    sim_pull(w, e);
    return e;
}

uint32_t sim_sweep(struct sim_world *w, struct sim_env *env)
{
    uint32_t timers = 0;
    struct sim_event *doomed = NULL;
    for (uint32_t b = 0; b < SIM_BUCKETS; b++) {
        struct sim_event *next;
        for (struct sim_event *e = w->buckets[b].first; e != NULL; e = next) {
            next = e->next;
            if (e->env == env && e->of_life) {
                timers += e->is_timer;
                sim_pull(w, e);
                e->next = doomed;
                doomed = e;
            }
        }
    }
    while (doomed != NULL) {
        struct sim_event *e = doomed;
        doomed = e->next;
        e->drop(e);
    }
    return timers;
}

/* ---- running ---- */

void sim_world_fini(struct sim_world *w)
{
    struct sim_event *e;
    while ((e = queue_pop(w)) != NULL) {
        e->drop(e);
    }
}

void sim_mix(struct sim_world *w, uint64_t value)
{
    w->hash = (w->hash ^ value) * 0x100000001b3u;
    w->hash ^= w->hash >> 29;
}

static void fire(struct sim_world *w, struct sim_event *e)
{
    CHECK(e->time_us >= w->now_us);
    w->now_us = e->time_us;
    struct sim_env *env = e->env;
    if (env != NULL && env->paused_until_us > w->now_us) {
        /* A stopped process: all its events wait, in their order. */
        e->time_us = env->paused_until_us;
        insert(w, e);
        return;
    }
    w->events++;
    sim_mix(w, w->now_us);
    sim_mix(w, (uint64_t)e->tag << 32 | (env != NULL ? env->node : 0));
    e->fire(e);
    if (w->after != NULL) {
        w->after(w->after_arg, env);
    }
}

bool sim_step(struct sim_world *w)
{
    struct sim_event *e = w->failed ? NULL : queue_pop(w);
    if (e != NULL) {
        fire(w, e);
    }
    return e != NULL && !w->failed;
}

void sim_run_to(struct sim_world *w, uint64_t end_us)
{
    struct sim_event mark = {.time_us = end_us};
    if (end_us < w->now_us) {
        return;
    }
    insert(w, &mark);
    while (!w->failed) {
        struct sim_event *e = queue_pop(w);
        if (e != &mark) {
            fire(w, e);
        } else if (w->buckets[0].first != NULL) {
            insert(w, e); /* after those that came later for the same time */
        } else {
            w->now_us = end_us;
            return;
        }
    }
    sim_pull(w, &mark);
}

struct call_event {
    struct sim_event event;
    void (*fn)(void *arg);
    void *arg;
    void *taken; /* arg, when it is ours to free */
};

static void call_drop(struct sim_event *e)
{
    mem_free(((struct call_event *)e)->taken);
    mem_free(e);
}

static void call_fire(struct sim_event *e)
{
    struct call_event *c = (struct call_event *)e;
    void (*fn)(void *) = c->fn;
    void *arg = c->arg;
    mem_free(c);
    fn(arg);
}

static void call_push(struct sim_world *w, uint64_t delay_us,
                      void (*fn)(void *arg), void *arg, void *taken)
{
    struct call_event *c = mem_alloc(sizeof *c);
    c->event = (struct sim_event){.fire = call_fire, .drop = call_drop};
    c->fn = fn;
    c->arg = arg;
    c->taken = taken;
    sim_push(w, &c->event, delay_us);
}

void sim_after_taking(struct sim_world *w, uint64_t delay_us,
                      void (*fn)(void *arg), void *arg)
{
    call_push(w, delay_us, fn, arg, arg);
}

void sim_after(struct sim_world *w, uint64_t delay_us, void (*fn)(void *arg),
               void *arg)
{
    call_push(w, delay_us, fn, arg, NULL);
}

uint64_t sim_delay(struct sim_world *w, uint64_t low, uint64_t high)
{
    /* The product of three numbers below 2^21, of one draw: the mean is an
     * eighth of the range. */
    enum { BITS = 21 };
    const uint64_t mask = (UINT64_C(1) << BITS) - 1;
    uint64_t draw = rng_next(&w->rng);
    uint64_t part = ((draw & mask) * (draw >> BITS & mask)) >> BITS;
    part = (part * (draw >> 2 * BITS & mask)) >> BITS;
    return low + ((high - low) * part >> BITS);
}

/* ---- words ---- */

void sim_trace(struct sim_world *w, const char *format, ...)
{
    char *line = w->tail[w->tail_count++ % SIM_TAIL_LINES];
    int head =
        snprintf(line, SIM_LINE_SIZE, "%11.6f ", (double)w->now_us / 1000000);
    va_list args;
    va_start(args, format);
    vsnprintf(line + head, SIM_LINE_SIZE - (size_t)head, format, args);
    va_end(args);
    if (w->verbose) {
        fprintf(stderr, "%s\n", line);
    }
}

void sim_print_tail(const struct sim_world *w)
{
    uint64_t first =
        w->tail_count > SIM_TAIL_LINES ? w->tail_count - SIM_TAIL_LINES : 0;
    for (uint64_t i = first; i < w->tail_count; i++) {
        printf("    %s\n", w->tail[i % SIM_TAIL_LINES]);
    }
}

void sim_fail(struct sim_world *w, const char *format, ...)
{
    if (w->failed) {
        return;
    }
    w->failed = true;
    va_list args;
    va_start(args, format);
    vsnprintf(w->failure, sizeof w->failure, format, args);
    va_end(args);
    sim_trace(w, "FAILED: %.150s", w->failure);
}
