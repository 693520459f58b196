/* The course of a run: start, join, faults, heal, finish, read all, compare. */
#include "tests/sim/cluster.h"

#include <inttypes.h>
#include <string.h>

#include "base/check.h"

#define SECOND UINT64_C(1000000)

enum {
    /* After all is healed: the longest wait for any answer. Elections take
     * seconds; a transaction may wait for locks of others, one after another.
     */
    LIVENESS_S = 120,
    /* What a dead clerk has left prepared, when nobody touches it. Groups that
     * are many configurations behind take them one by one, with the locks: a
     * move waits seconds for each. */
    LOCKS_S = 60,
};

static void cluster_build(struct cluster *c)
{
    for (uint32_t i = 0; i < SIM_CONTROLLERS; i++) {
        node_add(c, NODE_CONTROLLER, 0, i + 1);
    }
    for (uint32_t g = 1; g <= c->plan.groups; g++) {
        for (uint32_t i = 0; i < c->plan.replicas; i++) {
            node_add(c, NODE_SERVER, g, i + 1);
        }
    }
    bool replaces = c->plan.weights[FAULT_MEMBERS] > 0 ||
                    c->plan.weights[FAULT_ROT] > 0 ||
                    c->plan.weights[FAULT_FORK] > 0;
    uint32_t spares = replaces ? SIM_SPARES : 0;
    for (uint32_t g = 1; g <= c->plan.groups; g++) {
        for (uint32_t i = 0; i < spares; i++) {
            node_add(c, NODE_SERVER, g, c->plan.replicas + i + 1)->spare = true;
        }
    }
    for (uint32_t i = 0;
         c->plan.weights[FAULT_CONTROLLERS] > 0 && i < SIM_SPARES; i++) {
        node_add(c, NODE_CONTROLLER, 0, SIM_CONTROLLERS + i + 1)->spare = true;
    }
    node_add(c, NODE_ADMIN, 0, 0);
    c->clerk_first = c->node_count;
    for (uint32_t i = 0; i < c->plan.clerks; i++) {
        node_add(c, NODE_CLERK, 0, 0);
    }
}

static void run_for(struct cluster *c, uint64_t time_us)
{
    uint64_t end = c->world->now_us + time_us;
    while (c->world->now_us < end && sim_step(c->world)) {
    }
}

/* Runs until `done`; what did not happen in time is a failure. */
static bool run_until(struct cluster *c, bool (*done)(struct cluster *c),
                      uint32_t limit_s, const char *what)
{
    struct sim_world *w = c->world;
    uint64_t end = w->now_us + limit_s * SECOND;
    uint64_t look = w->now_us;
    while (!w->failed) {
        if (w->now_us >= look) {
            if (done(c)) {
                return true;
            }
            look = w->now_us + 50000;
        }
        if (w->now_us >= end) {
            verify_describe(c);
            workload_describe(c->workload);
            sim_fail(w, "no progress: %s, %u s after all faults have ended",
                     what, limit_s);
            break;
        }
        sim_step(w);
    }
    return false;
}

static bool all_answered(struct cluster *c)
{
    return workload_idle(c->workload) && !c->admin_busy && members_settled(c) &&
           (c->cuts == NULL || cuts_idle(c->cuts));
}

static bool last_cut_taken(struct cluster *c)
{
    return cuts_last_taken(c->cuts);
}

static struct node *reader(struct cluster *c)
{
    return &c->nodes[c->clerk_first];
}

/* Between two of their messages: what they have prepared stays behind. */
static void clerks_die(struct cluster *c)
{
    for (uint32_t i = c->clerk_first; i < c->node_count; i++) {
        if (!c->nodes[i].env.dead) {
            node_crash(&c->nodes[i], "clerk killed at the end");
        }
    }
}

/* All that was begun is answered or given up, and all locks are gone although
 * nobody asks for their keys. */
static bool finish(struct cluster *c)
{
    if (sim_chance(c->world, 500)) {
        clerks_die(c);
    }
    if (!run_until(c, all_answered, LIVENESS_S,
                   "operations without an answer") ||
        !run_until(c, verify_locks_gone, LOCKS_S, "locks of the dead stay")) {
        return false;
    }
    node_start(reader(c));
    return true;
}

static void course(struct cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (c->nodes[i].kind != NODE_CLERK) {
            node_start(&c->nodes[i]);
        }
    }
    admin_join_first(c);
    for (uint32_t i = c->clerk_first; i < c->node_count; i++) {
        node_start(&c->nodes[i]);
    }
    faults_begin(c);
    if (c->cuts != NULL) {
        cuts_begin(c->cuts, &c->nodes[c->clerk_first - 1]);
    }
    run_for(c, c->plan.duration_us);
    sim_trace(c->world, "all faults end");
    faults_heal(c);
    run_for(c, 2 * SECOND);
    workload_stop(c->workload);
    if (c->cuts != NULL) {
        cuts_stop(c->cuts);
    }
    if (!finish(c)) {
        return;
    }
    if (c->cuts != NULL) {
        cuts_last(c->cuts);
        if (!run_until(c, last_cut_taken, LIVENESS_S, "the last cut")) {
            return;
        }
    }
    workload_read_all(c->workload, reader(c));
    c->done_us = c->world->now_us;
    if (run_until(c, all_answered, LIVENESS_S, "the last reads") &&
        run_until(c, verify_replicas_agree, LIVENESS_S,
                  "replicas of a group differ") &&
        run_until(c, verify_controllers_found, LIVENESS_S,
                  "somebody does not find the controllers")) {
        workload_check(c->workload);
    }
}

static void clerk_started(struct node *clerk)
{
    struct cluster *c = clerk->cluster;
    workload_clerk_started(clerk);
    if (c->cuts != NULL) {
        cuts_clerk_started(c->cuts, clerk);
    }
}

static void result_fill(struct cluster *c, struct result *out)
{
    struct sim_world *w = c->world;
    out->failed = w->failed;
    memcpy(out->failure, w->failure, sizeof out->failure);
    out->hash = w->hash;
    out->events = w->events;
    out->virtual_us = w->now_us;
    out->messages = sim_wire_messages(c->wire);
    out->operations = workload_operations(c->workload, &out->unknown);
    out->changes = c->changes;
    out->member_changes = c->member_changes;
    out->repairs = c->repairs;
    out->repairs_refused = c->repairs_refused;
    out->elections = verify_elections(c->verify);
    if (c->cuts != NULL) {
        out->cuts = cuts_taken(c->cuts, &out->cuts_moving);
    }
    out->committed = verify_committed(c->verify);
    for (uint32_t i = 0; i < c->node_count; i++) {
        out->crashes += c->nodes[i].deaths;
    }
}

void simulate_run(uint64_t seed, const char *scenario, bool verbose,
                  struct result *out)
{
    struct sim_world world;
    struct cluster *c = mem_alloc(sizeof *c);
    memset(out, 0, sizeof *out);
    sim_world_init(&world, seed, verbose);
    c->world = &world;
    CHECK(plan_make(&c->plan, seed, scenario));
    sim_trace(&world,
              "seed %" PRIu64 " scenario %s: %u groups of %u, %u shards, %u "
              "clerks, %u keys, checkpoints of %zu bytes, %s net",
              seed, c->plan.scenario, c->plan.groups, c->plan.replicas,
              c->plan.shards, c->plan.clerks, c->plan.keys,
              c->plan.checkpoint_size_max,
              c->plan.unreliable ? "unreliable" : "reliable");
    c->wire = sim_wire_new(&world);
    cluster_build(c);
    c->verify = verify_new(c);
    c->workload = workload_new(c);
    c->cuts = c->plan.cuts ? cuts_new(c) : NULL;
    c->clerk_started = clerk_started;
    c->wrote = workload_wrote;
    c->wrote_arg = c->workload;
    c->removed = members_removed;
    c->refused = members_replace;
    c->leader_seen = faults_leader_seen;
    c->move_seen = faults_move_seen;
    c->stream_seen = faults_stream_seen;
    c->raft_seen = forks_message;
    sim_wire_set_watch(c->wire, cluster_on_message, c);
    world.after = cluster_after_event;
    world.after_arg = c;
    course(c);
    result_fill(c, out);
    if (out->failed) {
        sim_print_tail(&world);
    }
    if (c->cuts != NULL) {
        cuts_end(c->cuts);
    }
    cluster_end_nodes(c);
    workload_free(c->workload);
    verify_free(c->verify);
    sim_world_fini(&world);
    if (c->cuts != NULL) {
        cuts_free(c->cuts);
    }
    sim_wire_free(c->wire);
    mem_free(c);
}
