/* The nodes of a cluster and their lives: start, crash, restart. What they are
 * told to do, and what befalls them, is the caller's (cluster.c, tests/labs).
 */
#include "tests/sim/cluster.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "rsm/rsm_int.h"

#define SECOND UINT64_C(1000000)

static const struct sim_speed server_speeds[SIM_SPEEDS] = {
    {"wal", 50, 5000, 5, 200000},
    {"apply", 5, 500, 2, 20000},
    {"checkpoint", 500, 50000, 50, 2000000},
    {"snap", 50, 20000, 10, 500000},
};

/* Whoever installs a snapshot waits for what "snap" has to do. */
static const struct sim_speed slow_install_speeds[SIM_SPEEDS] = {
    {"wal", 50, 5000, 5, 200000},
    {"apply", 5, 500, 2, 20000},
    {"checkpoint", 500, 50000, 50, 2000000},
    {"snap", 50, 20000, 400, 3000000},
};

/* It goes back to its checkpoint for as long, and streams begin meanwhile. */
static const struct sim_speed slow_apply_speeds[SIM_SPEEDS] = {
    {"wal", 50, 5000, 5, 200000},
    {"apply", 5, 500, 50, 300000},
    {"checkpoint", 500, 50000, 50, 2000000},
    {"snap", 50, 20000, 10, 500000},
};

/* ---- nodes ---- */

static const struct sim_speed *speeds_of(const struct cluster *c)
{
    if (c->speeds != NULL) {
        return c->speeds;
    }
    return c->plan.slow_installs ? slow_install_speeds
           : c->plan.slow_apply  ? slow_apply_speeds
                                 : server_speeds;
}

bool node_is_server(const struct node *n)
{
    return n->kind == NODE_CONTROLLER || n->kind == NODE_SERVER;
}

bool node_is_member(const struct node *n)
{
    return node_is_server(n) && !n->spare && !n->retired && !n->leaving;
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

struct node *node_add(struct cluster *c, enum node_kind kind, uint32_t gid,
                      raft_id id)
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
    /* A second set of controllers is a group 0 of its own, elsewhere. */
    n->net = sim_net_add(c->wire, &n->env, roles[kind],
                         kind == NODE_CONTROLLER ? 0 : gid, name);
    if (node_is_server(n)) {
        n->disk = sim_disk_new(&n->env);
        n->env.speeds = speeds_of(c);
        n->env.speed_count = SIM_SPEEDS;
    }
    return n;
}

static uint32_t peers_of(struct cluster *c, uint32_t gid,
                         struct rsm_peer peers[RAFT_PEERS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (node_is_server(n) && n->gid == gid && !n->spare && !n->retired) {
            peers[count].id = n->id;
            sim_net_address(n->number, peers[count].address);
            count++;
        }
    }
    return count;
}

/* As the cluster's directory says when a process starts. */
static uint32_t
controllers_of(const struct node *n,
               char addresses[RAFT_PEERS_MAX][NET_ADDRESS_SIZE_MAX])
{
    const struct cluster *c = n->cluster;
    uint32_t count = 0;
    for (uint32_t i = n->controllers; i < c->node_count; i++) {
        if (c->nodes[i].kind == NODE_CONTROLLER &&
            c->nodes[i].gid == c->nodes[n->controllers].gid &&
            node_is_member(&c->nodes[i])) {
            sim_net_address(i, addresses[count++]);
        }
    }
    return count;
}

/* Where installs are slow, some logs reach far back: a leader streams its state
 * to a follower that the next leader can serve from its log. */
static size_t log_keep_size(const struct node *n)
{
    const struct plan *p = &n->cluster->plan;
    return p->slow_installs && n->id % 2 == 0 ? 65536 : p->log_keep_size;
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
        .log_keep_size = log_keep_size(n),
        .append_size_max = n->cluster->plan.append_size_max,
        .snap_piece_size = n->cluster->plan.snap_piece_size,
        .log_hold_size = n->cluster->plan.log_hold_size,
        .space_low = n->cluster->plan.space_low,
        .checkpoint_ms_max = n->cluster->plan.checkpoint_ms_max,
        .identified = true,
        .on_removed = n->cluster->removed,
        .arg = n,
    };
    config.peer_count = peers_of(n->cluster, n->gid, config.peers);
    return ctl_replica_new(&config, &n->ctl);
}

static enum err server_start(struct node *n)
{
    n->image.wrote = n->cluster->wrote;
    n->image.wrote_arg = n->cluster->wrote_arg;
    n->store = skv_store_mem_open(&n->image);
    struct skv_server_config config = {
        .env = &n->env.env,
        .net = n->net,
        .disk = sim_disk_seam(n->disk),
        .store = n->store,
        .gid = n->gid,
        .id = n->id,
        .batch_size = n->cluster->plan.batch_size,
        .checkpoint_size_max = n->cluster->plan.checkpoint_size_max,
        .wal_segment_size = n->cluster->plan.wal_segment_size,
        .log_keep_size = log_keep_size(n),
        .append_size_max = n->cluster->plan.append_size_max,
        .under_way_size = n->cluster->plan.under_way_size,
        .snap_piece_size = n->cluster->plan.snap_piece_size,
        .log_hold_size = n->cluster->plan.log_hold_size,
        .space_low = n->cluster->plan.space_low,
        .checkpoint_ms_max = n->cluster->plan.checkpoint_ms_max,
        .identified = true,
        .lease_reads = n->cluster->plan.lease_reads,
        .on_removed = n->cluster->removed,
        .arg = n,
    };
    config.peer_count = peers_of(n->cluster, n->gid, config.peers);
    config.controller_count = controllers_of(n, config.controllers);
    return skv_server_new(&config, &n->skv);
}

static void client_start(struct node *n)
{
    char addresses[RAFT_PEERS_MAX][NET_ADDRESS_SIZE_MAX];
    uint32_t count = controllers_of(n, addresses);
    if (n->kind == NODE_ADMIN) {
        n->admin = ctl_client_new(&n->env.env, n->net, addresses, count);
    } else {
        n->clerk = skv_clerk_new(&n->env.env, n->net, addresses, count);
        if (n->cluster->clerk_started != NULL) {
            n->cluster->clerk_started(n);
        }
    }
}

/* What was on its disk when it died is there again: nothing acknowledged is
 * taken for a torn write, and no damage either. */
static void check_stored(struct node *n)
{
    struct rsm *rsm = node_is_server(n) ? node_rsm(n) : NULL;
    struct raft_status s;
    if (rsm == NULL) {
        return;
    }
    raft_status(rsm_raft(rsm), &s);
    if (s.last_index < n->stored) {
        sim_fail(n->cluster->world,
                 "n%u has entries up to %" PRIu64 ", and had stored %" PRIu64,
                 n->number, s.last_index, n->stored);
    }
}

static void note_stored(struct node *n)
{
    struct rsm *rsm = n->ctl != NULL   ? ctl_replica_rsm(n->ctl)
                      : n->skv != NULL ? skv_server_rsm(n->skv)
                                       : NULL;
    struct raft_status s;
    n->stored = 0;
    if (rsm != NULL && !rsm->installing) { /* it takes away what conflicts */
        raft_status(rsm_raft(rsm), &s);
        n->stored = s.persisted;
    }
}

/* It says why, and stays down. */
static void start_failed(struct node *n, const char *why)
{
    sim_trace(n->cluster->world, "n%u does not start: %s", n->number, why);
    sim_env_kill(&n->env);
    node_end(n);
    sim_net_bury(n->cluster->wire, n->number);
    sim_env_bury(&n->env);
    sim_disk_crash(n->disk);
}

void node_start(struct node *n)
{
    struct sim_world *w = n->cluster->world;
    if (!n->env.dead || n->spare || n->retired || n->gone) {
        return;
    }
    bool is_new = n->env.life == 0;
    if (is_new) {
        /* Its crystal; clocks only go forward, so it is set once. */
        uint32_t error_ppm = n->cluster->plan.clock_error_ppm;
        n->env.rate_ppm =
            (uint32_t)sim_between(w, 1000000 - error_ppm, 1000000 + error_ppm);
    }
    sim_env_start(&n->env);
    n->doomed = false;
    sim_trace(w, "n%u starts: group %u, life %" PRIu64, n->number, n->gid,
              n->env.life);
    enum err rc = ERR_OK;
    if (is_new && node_is_server(n)) {
        rc = rsm_identity_make(sim_disk_seam(n->disk),
                               n->kind == NODE_CONTROLLER ? 0 : n->gid, n->id,
                               n->joining);
        CHECK(rc == ERR_OK);
    }
    switch (n->kind) {
    case NODE_CONTROLLER: rc = controller_start(n); break;
    case NODE_SERVER: rc = server_start(n); break;
    default: client_start(n);
    }
    bool full = n->disk != NULL && sim_disk_is_full(n->disk);
    if (rc == ERR_NOSPACE && full) {
        start_failed(n, "its disk is full");
        node_restart_later(n, SECOND);
    } else if (n->wiped) {
        if (rc != ERR_NOTFOUND) {
            sim_fail(w, "n%u lost its disk, and starts again: %s", n->number,
                     err_name(rc));
        }
        n->retired = true;
        node_crash(n, "it has no identity");
    } else if (rc == ERR_OK) {
        check_stored(n);
    } else if ((rc == ERR_CORRUPT || rc == ERR_NOTFOUND) && n->rotten) {
        /* Not found: nothing but the log's beginning was there to rot. */
        n->gone = true;
        start_failed(n, "its log is damaged");
        if (n->cluster->refused != NULL) {
            n->cluster->refused(n);
        }
    } else if (n->doomed && n->env.dying) {
        return; /* died at once */
    } else {
        sim_fail(w, "n%u of group %u does not start again: %s", n->number,
                 n->gid, err_name(rc));
    }
}

/* ---- death ---- */

/* The image as it was: what the store writes while it is being freed was
 * written by nobody. */
static void server_end(struct node *n)
{
    struct skv_mem_image kept;
    skv_mem_image_copy(&kept, &n->image);
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

void node_end(struct node *n)
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
    CHECK(n->deaths <= n->env.life);
    note_stored(n);
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

void cluster_after_event(void *arg, struct sim_env *env)
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

void cluster_on_message(void *arg, uint32_t from, uint32_t to,
                        net_method method, struct slice body)
{
    struct cluster *c = arg;
    verify_message(c->verify, from, method, body);
    if (method == RSM_METHOD_RAFT && c->raft_seen != NULL) {
        c->raft_seen(c, from, body);
    }
    bool moves = method == SKV_METHOD_PULL || method == SKV_METHOD_FREEZE ||
                 method == SKV_METHOD_SETTLE;
    if (moves && c->move_seen != NULL) {
        c->move_seen(&c->nodes[from], &c->nodes[to]);
    }
    if (method == RSM_METHOD_SNAP && c->stream_seen != NULL) {
        c->stream_seen(&c->nodes[from], &c->nodes[to]);
    }
}

/* ---- the end ---- */

void cluster_end_nodes(struct cluster *c)
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
}
