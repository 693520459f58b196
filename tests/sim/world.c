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

void sim_world_fini(struct sim_world *w)
{
    for (size_t i = 0; i < w->count; i++) {
        w->heap[i]->drop(w->heap[i]);
    }
    mem_free(w->heap);
    w->heap = NULL;
    w->count = w->capacity = 0;
}

/* ---- the queue: a binary heap by (time, order) ---- */

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->time_us != b->time_us ? a->time_us < b->time_us
                                    : a->order < b->order;
}

static void put_at(struct sim_world *w, size_t at, struct sim_event *e)
{
    w->heap[at] = e;
    e->at = at;
}

static void sift_up(struct sim_world *w, size_t at)
{
    struct sim_event *e = w->heap[at];
    while (at > 0 && before(e, w->heap[(at - 1) / 2])) {
        put_at(w, at, w->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    put_at(w, at, e);
}

static void sift_down(struct sim_world *w, size_t at)
{
    struct sim_event *e = w->heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < w->count &&
            before(w->heap[child + 1], w->heap[child])) {
            child++;
        }
        if (child >= w->count || !before(w->heap[child], e)) {
            break;
        }
        put_at(w, at, w->heap[child]);
        at = child;
    }
    put_at(w, at, e);
}

static void insert(struct sim_world *w, struct sim_event *e)
{
    if (w->count == w->capacity) {
        w->capacity = w->capacity == 0 ? 1024 : 2 * w->capacity;
        w->heap = mem_resize(w->heap, w->capacity * sizeof(void *));
    }
    e->order = w->order++;
    w->heap[w->count++] = e;
    sift_up(w, w->count - 1);
}

void sim_push(struct sim_world *w, struct sim_event *e, uint64_t delay_us)
{
    e->time_us = w->now_us + delay_us;
    insert(w, e);
}

void sim_pull(struct sim_world *w, struct sim_event *e)
{
    size_t at = e->at;
    CHECK(at < w->count && w->heap[at] == e);
    w->count--;
    if (at == w->count) {
        return;
    }
    put_at(w, at, w->heap[w->count]);
    sift_up(w, at);
    sift_down(w, w->heap[at]->at);
}

uint32_t sim_sweep(struct sim_world *w, struct sim_env *env)
{
    uint32_t timers = 0;
    size_t kept = 0;
    size_t count = w->count;
    struct sim_event **doomed = mem_array(count + 1, sizeof *doomed);
    size_t doomed_count = 0;
    for (size_t i = 0; i < count; i++) {
        struct sim_event *e = w->heap[i];
        if (e->env == env && e->of_life) {
            timers += e->is_timer;
            doomed[doomed_count++] = e;
        } else {
            put_at(w, kept++, e);
        }
    }
    w->count = kept;
    for (size_t i = kept / 2; i-- > 0;) {
        sift_down(w, i);
    }
    for (size_t i = 0; i < doomed_count; i++) {
        doomed[i]->drop(doomed[i]);
    }
    mem_free(doomed);
    return timers;
}

/* ---- running ---- */

void sim_mix(struct sim_world *w, uint64_t value)
{
    w->hash = (w->hash ^ value) * 0x100000001b3u;
    w->hash ^= w->hash >> 29;
}

bool sim_step(struct sim_world *w)
{
    if (w->failed || w->count == 0) {
        return false;
    }
    struct sim_event *e = w->heap[0];
    sim_pull(w, e);
    CHECK(e->time_us >= w->now_us);
    w->now_us = e->time_us;
    struct sim_env *env = e->env;
    if (env != NULL && env->paused_until_us > w->now_us) {
        /* A stopped process: all its events wait, in their order. */
        e->time_us = env->paused_until_us;
        insert(w, e);
        return true;
    }
    w->events++;
    sim_mix(w, w->now_us);
    sim_mix(w, (uint64_t)e->tag << 32 | (env != NULL ? env->node : 0));
    e->fire(e);
    if (w->after != NULL) {
        w->after(w->after_arg, env);
    }
    return !w->failed;
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
    /* The product of three draws: the mean is an eighth of the range. */
    uint64_t part = 1024;
    for (int i = 0; i < 3; i++) {
        part = part * rng_below(&w->rng, 1025) / 1024;
    }
    return low + (high - low) * part / 1024;
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
