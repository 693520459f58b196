/* What a seed stands for: the size of the cluster and which faults it meets. */
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/sim/cluster.h"

#define MS UINT64_C(1000)

struct scenario {
    const char *name;
    uint64_t low_us, high_us;
    uint32_t weights[FAULTS];
};

static const struct scenario scenarios[] = {
    {"calm", 500 * MS, 2000 * MS, {[FAULT_ADMIN] = 1}},
    {"crash",
     100 * MS,
     3000 * MS,
     {[FAULT_CRASH] = 6,
      [FAULT_CRASH_ALL] = 1,
      [FAULT_POWER] = 3,
      [FAULT_PAUSE] = 1,
      [FAULT_CLERK] = 1}},
    {"leaders",
     10 * MS,
     1500 * MS,
     {[FAULT_CRASH_LEADER] = 8,
      [FAULT_LEADER_CUT] = 2,
      [FAULT_MEND] = 3,
      [FAULT_WEATHER] = 1}},
    {"reads",
     50 * MS,
     1000 * MS,
     {[FAULT_PAUSE] = 5,
      [FAULT_LEADER_CUT] = 5,
      [FAULT_MEND] = 5,
      [FAULT_CLERK] = 4}},
    {"net",
     50 * MS,
     1500 * MS,
     {[FAULT_PARTITION] = 3,
      [FAULT_ONE_WAY] = 3,
      [FAULT_LEADER_CUT] = 3,
      [FAULT_MEND] = 4,
      [FAULT_WEATHER] = 3}},
    {"partial", 200 * MS, 2000 * MS, {[FAULT_PARTIAL] = 4, [FAULT_ADMIN] = 1}},
    {"disk",
     100 * MS,
     2000 * MS,
     {[FAULT_POWER] = 6,
      [FAULT_SYNC] = 2,
      [FAULT_SLOW] = 3,
      [FAULT_CRASH_ALL] = 1,
      [FAULT_FULL] = 6,
      [FAULT_FULL_GROUP] = 2,
      [FAULT_ROT] = 2,
      [FAULT_WEATHER] = 1}},
    {"space",
     50 * MS,
     1000 * MS,
     {[FAULT_FULL_STRUCK] = 10,
      [FAULT_FULL] = 4,
      [FAULT_FULL_GROUP] = 1,
      [FAULT_CRASH] = 3,
      [FAULT_CRASH_LEADER] = 2,
      [FAULT_LEADER_CUT] = 2,
      [FAULT_MEND] = 4}},
    {"rot",
     300 * MS,
     3000 * MS,
     {[FAULT_ROT_GROUP] = 6,
      [FAULT_CRASH] = 3,
      [FAULT_CRASH_LEADER] = 3,
      [FAULT_LEADER_CUT] = 3,
      [FAULT_POWER] = 2,
      [FAULT_MEND] = 4,
      [FAULT_WEATHER] = 1,
      [FAULT_MEMBERS] = 1,
      [FAULT_CLERK] = 1}},
    {"shards",
     50 * MS,
     1500 * MS,
     {[FAULT_ADMIN] = 8,
      [FAULT_CRASH] = 3,
      [FAULT_WEATHER] = 1,
      [FAULT_MEND] = 1,
      [FAULT_PARTITION] = 1,
      [FAULT_CLERK] = 1}},
    {"members",
     50 * MS,
     1500 * MS,
     {[FAULT_MEMBERS] = 10,
      [FAULT_WIPE] = 2,
      [FAULT_CRASH] = 4,
      [FAULT_CRASH_LEADER] = 2,
      [FAULT_CRASH_ALL] = 1,
      [FAULT_PARTITION] = 1,
      [FAULT_LEADER_CUT] = 2,
      [FAULT_MEND] = 4,
      [FAULT_PAUSE] = 1,
      [FAULT_WEATHER] = 2,
      [FAULT_ADMIN] = 2,
      [FAULT_CLERK] = 1}},
    {"forks", 300 * MS, 2000 * MS, {[FAULT_FORK] = 1}},
    {"leases",
     50 * MS,
     1200 * MS,
     {[FAULT_RESET] = 8,
      [FAULT_APART] = 4,
      [FAULT_CRASH_LEADER] = 3,
      [FAULT_CRASH] = 3,
      [FAULT_PAUSE] = 2,
      [FAULT_MEND] = 8,
      [FAULT_WEATHER] = 1,
      [FAULT_CLERK] = 2,
      [FAULT_MEMBERS] = 2}},
    {"moves",
     20 * MS,
     600 * MS,
     {[FAULT_ADMIN] = 8,
      [FAULT_MOVE] = 8,
      [FAULT_CRASH] = 1,
      [FAULT_LEADER_CUT] = 1,
      [FAULT_MEND] = 2,
      [FAULT_WEATHER] = 1,
      [FAULT_CLERK] = 1}},
    {"controllers",
     50 * MS,
     1000 * MS,
     {[FAULT_CONTROLLERS] = 8,
      [FAULT_ADMIN] = 6,
      [FAULT_CRASH] = 2,
      [FAULT_CRASH_LEADER] = 1,
      [FAULT_MOVE] = 1,
      [FAULT_CLERK] = 1}},
    {"streams",
     50 * MS,
     1500 * MS,
     {[FAULT_STREAM] = 10,
      [FAULT_CRASH] = 4,
      [FAULT_LEADER_CUT] = 2,
      [FAULT_PARTITION] = 3,
      [FAULT_MEND] = 6,
      [FAULT_WEATHER] = 3,
      [FAULT_FULL] = 1,
      [FAULT_SLOW] = 1}},
    {"installs",
     50 * MS,
     600 * MS,
     {[FAULT_STREAM] = 10,
      [FAULT_LEADER_CUT] = 3,
      [FAULT_CRASH] = 3,
      [FAULT_PARTITION] = 3,
      [FAULT_MEND] = 6,
      [FAULT_WEATHER] = 1}},
    {"slow",
     100 * MS,
     2000 * MS,
     {[FAULT_PAUSE] = 5,
      [FAULT_SLOW] = 4,
      [FAULT_CLOCK] = 2,
      [FAULT_WEATHER] = 2,
      [FAULT_ADMIN] = 1}},
    {"cuts",
     50 * MS,
     1500 * MS,
     {[FAULT_CRASH] = 2,
      [FAULT_CRASH_LEADER] = 1,
      [FAULT_LEADER_CUT] = 1,
      [FAULT_MEND] = 4,
      [FAULT_WEATHER] = 2,
      [FAULT_ADMIN] = 6,
      [FAULT_MOVE] = 2,
      [FAULT_CLERK] = 1}},
    {"all",
     30 * MS,
     2000 * MS,
     {[FAULT_CRASH] = 4,   [FAULT_CRASH_LEADER] = 2, [FAULT_CRASH_ALL] = 1,
      [FAULT_POWER] = 4,   [FAULT_SYNC] = 1,         [FAULT_PARTITION] = 2,
      [FAULT_ONE_WAY] = 2, [FAULT_LEADER_CUT] = 3,   [FAULT_MEND] = 6,
      [FAULT_PAUSE] = 3,   [FAULT_SLOW] = 2,         [FAULT_CLOCK] = 1,
      [FAULT_WEATHER] = 4, [FAULT_ADMIN] = 6,        [FAULT_MOVE] = 1,
      [FAULT_STREAM] = 2,  [FAULT_FULL] = 2,         [FAULT_CLERK] = 2,
      [FAULT_MEMBERS] = 3, [FAULT_WIPE] = 1}},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios, GROUPS_MAX = 3 };

/* The fastest clock and the slowest are RAFT_LEASE_DRIFT_PERCENT apart. */
enum { LEASE_CLOCK_ERROR_PPM = 90000 };

void plan_print_names(void)
{
    for (uint32_t i = 0; i < SCENARIOS; i++) {
        printf(" %s", scenarios[i].name);
    }
    printf("\n");
}

/* Half of all seeds: everything at once. */
static const struct scenario *scenario_of(struct rng *rng, const char *name)
{
    uint64_t draw = rng_below(rng, 2 * SCENARIOS);
    if (name == NULL) {
        return &scenarios[draw < SCENARIOS ? draw : SCENARIOS - 1];
    }
    for (uint32_t i = 0; i < SCENARIOS; i++) {
        if (strcmp(scenarios[i].name, name) == 0) {
            return &scenarios[i];
        }
    }
    return NULL;
}

/* Logs that are cut all the time, and states of many pieces. */
static void plan_streams(struct plan *p, struct rng *rng)
{
    p->checkpoint_size_max = 4096;
    p->wal_segment_size = 16384;
    p->log_keep_size = 1;
    p->log_hold_size = rng_chance(rng, 500);
    p->snap_piece_size = 256;
    p->keys = SIM_KEYS_MAX;
}

/* A stream of one piece, whose install takes long: the leader that sent it
 * goes, and the next one may have a log that reaches further back. */
static void plan_installs(struct plan *p, struct rng *rng)
{
    p->slow_installs = true;
    p->snap_piece_size = 65536;
    p->log_keep_size = rng_chance(rng, 500) ? 1 : 4096; /* of some: node.c */
    p->log_hold_size = 1;
}

/* Segments that are full all the time, snapshots in half of the seeds. */
static void plan_space(struct plan *p, struct rng *rng)
{
    if (rng_chance(rng, 500)) {
        plan_streams(p, rng);
        p->slow_apply = true;
    }
    p->wal_segment_size = 4096;
    p->space_low = 1;
}

/* Moves that take long enough to be struck: many keys in few shards, a few of
 * them at a time. */
static void plan_moves(struct plan *p, struct rng *rng)
{
    p->groups = (uint32_t)rng_between(rng, 2, SIM_GROUPS_MAX);
    p->shards = (uint32_t)rng_between(rng, 1, 4);
    p->keys = 2 * (uint32_t)rng_between(rng, 4, SIM_KEYS_MAX / 2);
    p->batch_size = rng_between(rng, 1, 1500);
}

bool plan_make(struct plan *p, uint64_t seed, const char *name)
{
    struct rng rng = {.state = seed ^ 0x706c616e};
    const struct scenario *s = scenario_of(&rng, name);
    if (s == NULL) {
        return false;
    }
    memset(p, 0, sizeof *p);
    p->scenario = s->name;
    p->fault_low_us = s->low_us;
    p->fault_high_us = s->high_us;
    memcpy(p->weights, s->weights, sizeof p->weights);
    p->groups = (uint32_t)rng_between(&rng, 1, GROUPS_MAX);
    p->replicas = rng_chance(&rng, 200) ? 5 : 3;
    p->shards = (uint32_t)rng_between(&rng, 1, 12);
    p->clerks = (uint32_t)rng_between(&rng, 2, 5);
    p->keys = 2 * (uint32_t)rng_between(&rng, 1, 6);
    p->duration_us = rng_between(&rng, 8000 * MS, 40000 * MS);
    p->checkpoint_size_max = rng_chance(&rng, 600)   ? 4096
                             : rng_chance(&rng, 500) ? 65536
                                                     : 0;
    p->wal_segment_size = rng_chance(&rng, 500) ? 16384 : 65536;
    p->log_keep_size = rng_chance(&rng, 500) ? 1 : 8192;
    p->append_size_max = rng_chance(&rng, 300) ? 1 : 0; /* one entry each */
    p->batch_size = rng_chance(&rng, 700) ? rng_between(&rng, 1, 2000) : 0;
    p->unreliable = rng_chance(&rng, 250);
    p->pairs = rng_chance(&rng, 600);
    p->space_low = rng_chance(&rng, 500) ? 1 : 16384;
    p->under_way_size = seed % 4 == 1 ? 1 : 0; /* a step at a time */
    p->log_hold_size = seed % 3; /* 1, 2: nothing; snapshots all the time */
    p->snap_piece_size = 256u << seed % 8;
    p->clock_error_ppm = 5000;
    if (p->weights[FAULT_RESET] > 1) {
        p->lease_reads = true;
        p->clock_error_ppm = LEASE_CLOCK_ERROR_PPM;
    }
    p->cuts = strcmp(s->name, "cuts") == 0 || rng_chance(&rng, 100);
    if (p->cuts && p->keys < 8) {
        p->keys = 8; /* holds make callers give up: more histories to check */
    }
    if (p->weights[FAULT_PARTIAL] > 0) {
        p->unreliable = false; /* what is lost may end a leader's term */
        p->duration_us = 40000 * MS;
    }
    if (p->weights[FAULT_CONTROLLERS] > 0) {
        p->duration_us = 50000 * MS; /* all of the first go */
    }
    if (p->weights[FAULT_FORK] > 0) {
        p->unreliable = false;
        p->groups = 1;
        p->replicas = 4;
        p->duration_us = 30000 * MS;
    }
    if (p->weights[FAULT_MOVE] > 1) {
        plan_moves(p, &rng);
    }
    if (p->weights[FAULT_STREAM] > 2) {
        plan_streams(p, &rng);
    }
    if (strcmp(s->name, "installs") == 0) {
        plan_installs(p, &rng);
    }
    if (p->weights[FAULT_FULL_STRUCK] > 0) {
        plan_space(p, &rng);
    }
    if (p->cuts && p->batch_size < 400) {
        p->batch_size = 400; /* else a move never catches up with the bank */
    }
    return true;
}
