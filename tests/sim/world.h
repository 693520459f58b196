/* The simulated world: virtual time, one queue of events, one seed. Everything
 * that happens in a simulation is an event of this queue, so the same seed
 * gives the same events, and the hash over them says so.
 *
 * It asks no clock, no kernel and no address of memory. One thread. */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/rng.h"

struct sim_env;

enum { SIM_TAIL_LINES = 60, SIM_LINE_SIZE = 200, SIM_BUCKETS = 64 };

/* Embedded first in what happens; the queue owns it until fire or drop. */
struct sim_event {
    uint64_t time_us;
    struct sim_env *env; /* on whose loop; NULL: the world's own */
    /* Of one life of that node: dropped when it crashes. A message on the wire
     * is not: it may arrive in the next life. */
    bool of_life;
    bool is_timer;
    uint8_t tag; /* for the hash and the trace */
    void (*fire)(struct sim_event *e);
    void (*drop)(struct sim_event *e); /* frees it unfired */
    /* The queue's. */
    struct sim_event *next, *prev;
    uint32_t bucket;
};

struct sim_list {
    struct sim_event *first, *last;
};

struct sim_world {
    uint64_t seed;
    uint64_t now_us;
    struct rng rng;
    uint64_t events; /* fired so far */
    uint64_t hash;   /* over all of them */
    bool verbose;
    bool failed;
    char failure[512];

    /* Called after each event, with whose it was (NULL: nobody's). */
    void (*after)(void *arg, struct sim_env *env);
    void *after_arg;

    struct sim_list buckets[SIM_BUCKETS];
    uint64_t filled;  /* bit b: buckets[b] is not empty */
    uint64_t base_us; /* what the buckets are relative to; see world.c */
    char tail[SIM_TAIL_LINES][SIM_LINE_SIZE];
    uint64_t tail_count;
};

void sim_world_init(struct sim_world *w, uint64_t seed, bool verbose);
void sim_world_fini(struct sim_world *w); /* drops what is queued */

/* Takes `e`, to fire after `delay_us`. */
void sim_push(struct sim_world *w, struct sim_event *e, uint64_t delay_us);
/* Takes it out again without firing or dropping it. */
void sim_pull(struct sim_world *w, struct sim_event *e);
/* Drops every event of this life of `env`; gives how many were timers. */
uint32_t sim_sweep(struct sim_world *w, struct sim_env *env);
/* Fires the next event; false when there is none or the run has failed. */
bool sim_step(struct sim_world *w);
/* Fires all up to and at `end_us`, which is then the time. Never goes back. */
void sim_run_to(struct sim_world *w, uint64_t end_us);

/* Calls `fn` once, as an event of the world. */
void sim_after(struct sim_world *w, uint64_t delay_us, void (*fn)(void *arg),
               void *arg);

/* The same, and `arg` is taken: freed if the world ends before. */
void sim_after_taking(struct sim_world *w, uint64_t delay_us,
                      void (*fn)(void *arg), void *arg);

/* A line for the tail that is printed with a failure, and when verbose. */
void sim_trace(struct sim_world *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void sim_print_tail(const struct sim_world *w);
/* A property does not hold: the run ends. The first failure stands. */
void sim_fail(struct sim_world *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts `value` into the world's hash. */
void sim_mix(struct sim_world *w, uint64_t value);
/* A delay: mostly near `low`, seldom near `high`. */
uint64_t sim_delay(struct sim_world *w, uint64_t low, uint64_t high);
static inline uint64_t sim_between(struct sim_world *w, uint64_t low,
                                   uint64_t high)
{
    return rng_between(&w->rng, low, high);
}
static inline bool sim_chance(struct sim_world *w, uint32_t per_mille)
{
    return per_mille > 0 && rng_chance(&w->rng, per_mille);
}

#endif
