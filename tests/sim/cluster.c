/* The nodes, their lives, and the course of a run: start, join, faults, heal,
 * finish, read all, compare. */
#include "tests/sim/cluster.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

#define SECOND UINT64_C(1000000)

enum {
    FIRST_SERVER = SIM_CONTROLLERS,
    /* After all is healed: the longest wait for any answer. Elections take
     * seconds; a transaction may wait for locks of others, one after another.
     */
    LIVENESS_S = 120,
    /* What a dead clerk has left prepared, when nobody touches it. */
    LOCKS_S = 30,
};

static const struct sim_speed server_speeds[] = {
    {"wal", 50, 5000, 5, 200000},
    {"apply", 5, 500, 2, 20000},
    {"snap", 50, 20000, 10, 500000},
};

/* ---- nodes ---- */

bool node_is_server(const struct node *n)
{
    return n->kind == NODE_CONTROLLER || n->kind == NODE_SERVER;
}

struct rsm *node_rsm(const struct node *n)
{
    if (n->env.dead) {
        return NULL;
    }
    if (n->ctl != NULL) {
        return ctl_replica_rsm(n->ctl);
    }
    return n->skv != NULL ? skv_server_rsm(n->skv) : NULL;
}

struct node *cluster_leader(struct cluster *c, uint32_t gid)
{
    struct node *found = NULL;
    raft_term term = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        struct rsm *rsm = node_is_server(n) ? node_rsm(n) : NULL;
        if (rsm == NULL || n->gid != gid || !rsm_is_leader(rsm)) {
            continue;
        }
        struct raft_status status;
        raft_status(rsm_raft(rsm), &status);
        if (status.term > term) {
            term = status.term;
            found = n;
        }
    }
    return found;
}

static struct node *node_add(struct cluster *c, enum node_kind kind,
                             uint32_t gid, raft_id id)
{
    CHECK(c->node_count < SIM_NODES_MAX);
    struct node *n = &c->nodes[c->node_count];
    n->cluster = c;
    n->kind = kind;
    n->number = c->node_count++;
    n->gid = gid;
    n->id = id;
    sim_env_init(&n->env, c->world, n->number);
    static const enum net_role roles[] = {
        [NODE_CONTROLLER] = NET_ROLE_SERVER,
        [NODE_SERVER] = NET_ROLE_SERVER,
        [NODE_CLERK] = NET_ROLE_CLIENT,
        [NODE_ADMIN] = NET_ROLE_ADMIN,
    };
    char name[32];
    snprintf(name, sizeof name, "n%u", n->number);
    n->net = sim_net_add(c->wire, &n->env, roles[kind], gid, name);
    if (node_is_server(n)) {
        n->disk = sim_disk_new(&n->env);
        n->env.speeds = server_speeds;
        n->env.speed_count = sizeof server_speeds / sizeof *server_speeds;
    }
    return n;
}

static uint32_t peers_of(struct cluster *c, uint32_t gid,
                         struct rsm_peer peers[RAFT_PEERS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (node_is_server(n) && n->gid == gid) {
            peers[count].id = n->id;
            sim_net_address(n->number, peers[count].address);
            count++;
        }
    }
    return count;
}

static void controllers_of(char addresses[][NET_ADDRESS_SIZE_MAX])
{
    for (uint32_t i = 0; i < SIM_CONTROLLERS; i++) {
        sim_net_address(i, addresses[i]);
    }
}

static enum err controller_start(struct node *n)
{
    struct ctl_server_config config = {
        .env = &n->env.env,
        .net = n->net,
        .disk = sim_disk_seam(n->disk),
        .id = n->id,
        .shard_count = n->cluster->plan.shards,
        .checkpoint_size_max = n->cluster->plan.checkpoint_size_max,
        .wal_segment_size = n->cluster->plan.wal_segment_size,
        .log_keep_size = n->cluster->plan.log_keep_size,
        .append_size_max = n->cluster->plan.append_size_max,
    };
    config.peer_count = peers_of(n->cluster, 0, config.peers);
    return ctl_replica_new(&config, &n->ctl);
}

static enum err server_start(struct node *n)
{
    n->store = skv_store_mem_open(&n->image);
    struct skv_server_config config = {
        .env = &n->env.env,
        .net = n->net,
        .disk = sim_disk_seam(n->disk),
        .store = n->store,
        .gid = n->gid,
        .id = n->id,
        .controller_count = SIM_CONTROLLERS,
        .checkpoint_size_max = n->cluster->plan.checkpoint_size_max,
        .wal_segment_size = n->cluster->plan.wal_segment_size,
        .log_keep_size = n->cluster->plan.log_keep_size,
        .append_size_max = n->cluster->plan.append_size_max,
    };
    config.peer_count = peers_of(n->cluster, n->gid, config.peers);
    controllers_of(config.controllers);
    return skv_server_new(&config, &n->skv);
}

static void client_start(struct node *n)
{
    char addresses[SIM_CONTROLLERS][NET_ADDRESS_SIZE_MAX];
    controllers_of(addresses);
    if (n->kind == NODE_ADMIN) {
        n->admin =
            ctl_client_new(&n->env.env, n->net, addresses, SIM_CONTROLLERS);
    } else {
        n->clerk =
            skv_clerk_new(&n->env.env, n->net, addresses, SIM_CONTROLLERS);
        workload_clerk_started(n->cluster->workload, n);
    }
}

void node_start(struct node *n)
{
    struct sim_world *w = n->cluster->world;
    if (!n->env.dead) {
        return;
    }
    if (n->env.life == 0) {
        /* Its crystal; clocks only go forward, so it is set once. */
        n->env.rate_ppm = (uint32_t)sim_between(w, 995000, 1005000);
    }
    sim_env_start(&n->env);
    n->doomed = false;
    sim_trace(w, "n%u starts: group %u, life %" PRIu64, n->number, n->gid,
              n->env.life);
    enum err rc = ERR_OK;
    switch (n->kind) {
    case NODE_CONTROLLER: rc = controller_start(n); break;
    case NODE_SERVER: rc = server_start(n); break;
    default: client_start(n);
    }
    if (rc != ERR_OK) {
        sim_fail(w, "n%u of group %u does not start again: %s", n->number,
                 n->gid, err_name(rc));
    }
}

/* ---- death ---- */

/* The image as it was: what the store writes while it is being freed was
 * written by nobody. */
static void server_end(struct node *n)
{
    struct skv_mem_image kept = {.index = n->image.index,
                                 .term = n->image.term};
    buf_append(&kept.bytes, n->image.bytes.data, n->image.bytes.size);
    if (n->skv != NULL) {
        skv_server_free(n->skv);
    }
    if (n->image.index != kept.index) {
        skv_mem_image_fini(&n->image);
        n->image = kept;
    } else {
        skv_mem_image_fini(&kept);
    }
    n->skv = NULL;
    n->store = NULL;
}

static void node_end(struct node *n)
{
    switch (n->kind) {
    case NODE_CONTROLLER:
        if (n->ctl != NULL) {
            ctl_replica_free(n->ctl);
        }
        n->ctl = NULL;
        break;
    case NODE_SERVER: server_end(n); break;
    case NODE_CLERK:
        skv_clerk_free(n->clerk);
        n->clerk = NULL;
        break;
    case NODE_ADMIN:
        ctl_client_free(n->admin);
        n->admin = NULL;
        break;
    }
}

void node_crash(struct node *n, const char *why)
{
    struct sim_world *w = n->cluster->world;
    sim_trace(w, "n%u dies: %s", n->number, why);
    n->deaths++;
    sim_env_kill(&n->env);
    node_end(n);
    sim_net_bury(n->cluster->wire, n->number);
    sim_env_bury(&n->env);
    if (n->disk != NULL) {
        sim_disk_crash(n->disk);
    }
}

static void restart(void *arg)
{
    struct node *n = arg;
    node_start(n);
}

void node_restart_later(struct node *n, uint64_t delay_us)
{
    sim_after(n->cluster->world, delay_us, restart, n);
}

/* It said that it cannot go on. Right, if something was done to it. */
static void node_died(struct node *n)
{
    struct sim_world *w = n->cluster->world;
    if (!n->doomed) {
        sim_fail(w, "n%u of group %u stopped without cause: %s", n->number,
                 n->gid, n->env.words);
    }
    node_crash(n, n->env.words);
    node_restart_later(
        n, n->cluster->healed ? 1000 : sim_between(w, 1000, 3 * SECOND));
}

static void after_event(void *arg, struct sim_env *env)
{
    struct cluster *c = arg;
    if (env == NULL) {
        return;
    }
    struct node *n = &c->nodes[env->node];
    if (env->dying) {
        node_died(n);
    } else if (!env->dead) {
        verify_after(c->verify, n);
    }
}

static void on_message(void *arg, uint32_t from, uint32_t to, net_method method,
                       struct slice body)
{
    (void)to;
    struct cluster *c = arg;
    verify_message(c->verify, from, method, body);
}

/* ---- the run ---- */

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
    return workload_idle(c->workload) && !c->admin_busy;
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
    run_for(c, c->plan.duration_us);
    sim_trace(c->world, "all faults end");
    faults_heal(c);
    run_for(c, 2 * SECOND);
    workload_stop(c->workload);
    if (!finish(c)) {
        return;
    }
    workload_read_all(c->workload, reader(c));
    if (run_until(c, all_answered, LIVENESS_S, "the last reads") &&
        run_until(c, verify_replicas_agree, LIVENESS_S,
                  "replicas of a group differ")) {
        workload_check(c->workload);
    }
}

static void cluster_end(struct cluster *c)
{
    /* Half of the runs end as a machine does that is told to stop. */
    bool clean = c->world->seed % 2 == 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n->env.life > 0 && !n->env.dead && clean) {
            node_end(n);
        }
        if (!n->env.dead) {
            sim_env_kill(&n->env);
            if (!clean) {
                node_end(n);
            }
        } else if (n->env.dying) {
            node_end(n);
        }
        sim_net_bury(c->wire, n->number);
        sim_env_bury(&n->env);
        skv_mem_image_fini(&n->image);
        if (n->disk != NULL) {
            sim_disk_free(n->disk);
        }
    }
    workload_free(c->workload);
    verify_free(c->verify);
    sim_world_fini(c->world);
    sim_wire_free(c->wire);
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
    out->elections = verify_elections(c->verify);
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
    sim_wire_set_watch(c->wire, on_message, c);
    world.after = after_event;
    world.after_arg = c;
    course(c);
    result_fill(c, out);
    if (out->failed) {
        sim_print_tail(&world);
    }
    cluster_end(c);
    mem_free(c);
}
