/* One node's env on virtual time: its timers, its workers, its clock with a
 * rate and a wall clock of its own, and its deaths.
 *
 * A crash is three steps: sim_env_kill() (from here on nothing it does has an
 * effect), the owner frees the node's objects with their normal functions (so
 * that a leak checker sees leaks), sim_env_bury(). */
#ifndef TESTS_SIM_ENV_H
#define TESTS_SIM_ENV_H

#include "base/env.h"
#include "tests/sim/world.h"

/* How long one job of a worker takes. */
struct sim_speed {
    const char *worker;
    uint64_t low_us, high_us;
    uint32_t slow_per_mille; /* jobs that take up to slow_us */
    uint64_t slow_us;
};

struct sim_env {
    struct env env;
    struct sim_world *world;
    uint32_t node;
    uint64_t life;   /* how many times it was started */
    bool dead;       /* nothing it does has an effect */
    bool dying;      /* fatal() was called: crash it after this event */
    char words[256]; /* what fatal() said */
    uint64_t paused_until_us;
    uint64_t slow_until_us; /* its disk is slow: jobs take 10 times as long */
    uint32_t rate_ppm;      /* of its clock; 1000000 is right */
    int64_t wall_offset_us; /* may jump */
    const struct sim_speed *speeds;
    uint32_t speed_count;
    uint64_t timers_fired, heard; /* in this life: messages, replies */
    struct rng rng;
};

void sim_env_init(struct sim_env *e, struct sim_world *w, uint32_t node);
void sim_env_start(struct sim_env *e); /* a new life */
void sim_env_kill(struct sim_env *e);
/* Drops all events of the life. Timers that its objects left running when they
 * were freed are a failure: they would fire into freed memory. */
void sim_env_bury(struct sim_env *e);

#endif
