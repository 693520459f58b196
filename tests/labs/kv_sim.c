/* The harness of kv_harness.h on virtual time: nodes, disks and a network that
 * are simulated (tests/sim/node.c starts them). What is true of Raft is looked
 * at after each event and message, too (tests/sim/verify.c). */
#include "tests/labs/kv_sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/labs/group.h"
#include "tests/sim/cluster.h"

#define MS UINT64_C(1000)

struct kv_user {
    struct node *node;
};

struct kv_world {
    struct sim_world world;
    struct cluster cluster;
    struct kv_user *users; /* administrators, then clients */
    uint32_t other_first;  /* the first of the other controllers */
    bool linked[SIM_NODES_MAX][SIM_NODES_MAX];
    uint64_t arrives_us[SIM_NODES_MAX][SIM_NODES_MAX]; /* the last message */
    bool unreliable;
    struct kv_counts counts;
};

/* A disk whose sync takes 6 ms, and sometimes 40. */
static const struct sim_speed speeds[SIM_SPEEDS] = {
    {"wal", 1000, 40000, 0, 0},
    {"apply", 5, 500, 0, 0},
    {"checkpoint", 1000, 40000, 0, 0},
    {"snap", 50, 5000, 0, 0},
};

/* A disk that turns: each sync takes its 4 to 12 ms. */
static const struct sim_speed slow_speeds[SIM_SPEEDS] = {
    {"wal", 4000, 12000, 0, 0},
    {"apply", 5, 500, 0, 0},
    {"checkpoint", 4000, 12000, 0, 0},
    {"snap", 4000, 12000, 0, 0},
};

/* ---- failing, and time ---- */

void kv_fail(struct kv *kv, const char *format, ...)
{
    struct sim_world *w = &kv->world->world;
    char words[sizeof w->failure];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    if (!w->failed) {
        verify_describe(&kv->world->cluster);
    }
    sim_fail(w, "%s", words);
}

bool kv_failed(const struct kv *kv)
{
    return kv->world->world.failed;
}

uint64_t kv_now_us(const struct kv *kv)
{
    return kv->world->world.now_us;
}

void kv_sleep(struct kv *kv, uint64_t ms)
{
    struct sim_world *w = &kv->world->world;
    sim_run_to(w, w->now_us + ms * MS);
}

bool kv_await(struct kv *kv, const bool *flag, uint64_t limit_ms,
              const char *what)
{
    struct sim_world *w = &kv->world->world;
    uint64_t end_us = w->now_us + limit_ms * MS;
    while (*flag && !w->failed) {
        if (w->now_us >= end_us) {
            kv_fail(kv, "%s: no answer within %.1f s", what,
                    (double)limit_ms / 1000);
            break;
        }
        sim_step(w);
    }
    return !w->failed;
}

void kv_wake(struct kv *kv)
{
    (void)kv; /* each event is looked at */
}

void kv_after(struct kv *kv, uint64_t ms, void (*fn)(void *arg), void *arg)
{
    sim_after(&kv->world->world, ms * MS, fn, arg);
}

void kv_note(struct kv *kv, const char *format, ...)
{
    char words[SIM_LINE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    sim_trace(&kv->world->world, "%s", words);
}

/* ---- the labs' network ---- */

static bool is_reply(const struct sim_letter *letter)
{
    return letter->reply || (letter->method == RSM_METHOD_RAFT &&
                             lab_raft_is_reply(letter->body));
}

static void count(struct kv_world *w, const struct sim_letter *letter,
                  bool reply)
{
    struct kv_counts *c = &w->counts;
    c->bytes += letter->body.size;
    c->requests += !reply;
    c->replies += reply;
    c->chunks += !reply && letter->method == RSM_METHOD_SNAP;
    c->refusals += letter->reply &&
                   w->cluster.nodes[letter->to].kind == NODE_CLERK &&
                   kv_is_refusal(letter->body);
}

void kv_count(struct kv *kv, struct kv_counts *counts)
{
    *counts = kv->world->counts;
}

void kv_network(struct kv *kv, bool unreliable)
{
    kv->world->unreliable = unreliable;
}

/* A connection that loses nothing keeps the order. */
static uint64_t after_the_last(struct kv_world *w,
                               const struct sim_letter *letter,
                               uint64_t delay_us)
{
    uint64_t *last_us = &w->arrives_us[letter->from][letter->to];
    uint64_t at_us = w->world.now_us + delay_us;
    *last_us = at_us > *last_us ? at_us : *last_us + 1;
    return *last_us - w->world.now_us;
}

static bool fate(void *arg, const struct sim_letter *letter, uint64_t *delay_us)
{
    struct kv_world *w = arg;
    bool reply = is_reply(letter);
    count(w, letter, reply);
    if (!w->linked[letter->from][letter->to]) {
        *delay_us = sim_between(&w->world, 0, 100 * MS);
        return false;
    }
    *delay_us = sim_delay(&w->world, 20, 500) + letter->body.size / 100;
    if (!w->unreliable) {
        *delay_us = after_the_last(w, letter, *delay_us);
    } else if (!reply) {
        *delay_us += sim_between(&w->world, 0, 26 * MS);
    }
    return !w->unreliable || !sim_chance(&w->world, 100);
}

/* ---- servers ---- */

static struct node *server_of(const struct kv *kv, uint32_t group,
                              uint32_t server)
{
    uint32_t first =
        group == 0 ? 0 : SIM_CONTROLLERS + (group - 1) * kv->options.replicas;
    struct node *n = &kv->world->cluster.nodes[first + server];
    CHECK(node_is_server(n) && n->gid == group);
    return n;
}

void kv_shutdown(struct kv *kv, uint32_t group, uint32_t server)
{
    struct node *n = server_of(kv, group, server);
    if (!kv_failed(kv) && !n->env.dead) {
        node_crash(n, "shut down");
    }
}

void kv_start(struct kv *kv, uint32_t group, uint32_t server)
{
    if (!kv_failed(kv)) {
        node_start(server_of(kv, group, server));
    }
}

int kv_leader_now(struct kv *kv, uint32_t group)
{
    struct node *leader = cluster_leader(&kv->world->cluster, group);
    return leader != NULL ? (int)(leader - server_of(kv, group, 0)) : -1;
}

static void link_both(struct kv_world *w, uint32_t a, uint32_t b, bool linked)
{
    w->linked[a][b] = linked;
    w->linked[b][a] = linked;
}

void kv_partition(struct kv *kv, uint32_t group, uint32_t side)
{
    kv_note(kv, "partition of group %u: %x", group, side);
    for (uint32_t a = 0; a < kv_group_size(kv, group); a++) {
        for (uint32_t b = 0; b < a; b++) {
            link_both(kv->world, server_of(kv, group, a)->number,
                      server_of(kv, group, b)->number,
                      (side >> a & 1) == (side >> b & 1));
        }
    }
}

void kv_connect_all(struct kv *kv)
{
    memset(kv->world->linked, true, sizeof kv->world->linked);
    kv_note(kv, "all are connected");
}

void kv_client_reach(struct kv_client *c, uint32_t group, uint32_t servers)
{
    for (uint32_t i = 0; i < kv_group_size(c->kv, group); i++) {
        link_both(c->kv->world, c->user->node->number,
                  server_of(c->kv, group, i)->number, (servers >> i & 1) != 0);
    }
}

static void redirect(struct kv *kv, struct node *n)
{
    node_crash(n, "asks other controllers from now on");
    n->controllers = kv->world->other_first;
    node_start(n);
}

void kv_client_deceive(struct kv_client *c)
{
    if (!kv_failed(c->kv)) {
        redirect(c->kv, c->user->node);
        c->clerk = c->user->node->clerk;
    }
}

void kv_admin_redirect(struct kv_admin *a)
{
    if (!kv_failed(a->kv)) {
        redirect(a->kv, a->user->node);
        a->ctl = a->user->node->admin;
    }
}

void kv_address(const struct kv *kv, uint32_t group, uint32_t server,
                char address[NET_ADDRESS_SIZE_MAX])
{
    sim_net_address(server_of(kv, group, server)->number, address);
}

void kv_sizes(struct kv *kv, uint32_t group, uint32_t server,
              struct kv_sizes *sizes)
{
    const struct node *n = server_of(kv, group, server);
    struct rsm *rsm = node_rsm(n);
    struct buf stream = {0};
    *sizes = (struct kv_sizes){0};
    skv_mem_image_save(&n->image, &stream);
    if (n->image.index > 0) {
        sizes->snapshot = stream.size;
    }
    if (rsm != NULL) {
        sizes->log = lab_log_size(rsm);
        sizes->stream = lab_stream_size(buf_slice(&stream));
    }
    buf_free(&stream);
}

struct env *kv_sim_env(const struct kv_client *c)
{
    return &c->user->node->env.env;
}

struct net *kv_sim_net(const struct kv_client *c)
{
    return c->user->node->net;
}

/* ---- begin ---- */

static void plan_fill(struct kv *kv)
{
    struct plan *p = &kv->world->cluster.plan;
    struct kv_tuning tuning = kv_tuning(kv);
    p->scenario = "labs";
    p->groups = kv->options.groups;
    p->replicas = kv->options.replicas;
    p->shards = kv->options.shards;
    p->wal_segment_size = tuning.wal_segment_size;
    p->checkpoint_size_max = tuning.checkpoint_size_max;
    p->checkpoint_ms_max = tuning.checkpoint_ms_max;
    p->log_keep_size = tuning.log_keep_size;
    p->log_hold_size = tuning.log_hold_size;
}

static void build_servers(struct kv *kv)
{
    struct cluster *c = &kv->world->cluster;
    for (uint32_t i = 0; i < SIM_CONTROLLERS; i++) {
        node_add(c, NODE_CONTROLLER, 0, i + 1);
    }
    for (uint32_t g = 1; g <= kv->options.groups; g++) {
        for (uint32_t i = 0; i < kv->options.replicas; i++) {
            node_add(c, NODE_SERVER, g, i + 1);
        }
    }
    kv->world->other_first = c->node_count;
    for (uint32_t i = 0; kv->options.other_controllers && i < SIM_CONTROLLERS;
         i++) {
        node_add(c, NODE_CONTROLLER, SIM_GROUPS_MAX, i + 1);
    }
}

static void build_users(struct kv *kv)
{
    struct cluster *c = &kv->world->cluster;
    struct kv_user *user = kv->world->users;
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        user->node = node_add(c, NODE_ADMIN, 0, 0);
        kv->admins[i].user = user++;
    }
    c->clerk_first = c->node_count;
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        user->node = node_add(c, NODE_CLERK, 0, 0);
        kv->clients[i].user = user++;
    }
}

static void start_all(struct kv *kv)
{
    struct cluster *c = &kv->world->cluster;
    for (uint32_t i = 0; i < c->node_count; i++) {
        node_start(&c->nodes[i]);
    }
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        kv->admins[i].ctl = kv->admins[i].user->node->admin;
    }
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        kv->clients[i].clerk = kv->clients[i].user->node->clerk;
    }
}

struct kv *kv_begin(struct lab_run *run, const struct kv_options *options)
{
    struct kv *kv = kv_new(run, options);
    struct kv_world *w = mem_alloc(sizeof *w);
    struct cluster *c = &w->cluster;
    kv->world = w;
    kv->rng = &w->world.rng;
    w->unreliable = options->unreliable;
    w->users =
        mem_array(kv->options.admins + options->clients, sizeof *w->users);
    sim_world_init(&w->world, run->seed, run->verbose);
    c->world = &w->world;
    c->speeds = options->slow_disks ? slow_speeds : speeds;
    c->wire = sim_wire_new(&w->world);
    sim_wire_set_fate(c->wire, fate, w);
    sim_wire_set_watch(c->wire, cluster_on_message, c);
    sim_wire_set_loss_noticed(c->wire, !options->silence || run->seed % 4 != 0);
    c->verify = verify_new(c);
    w->world.after = cluster_after_event;
    w->world.after_arg = c;
    plan_fill(kv);
    build_servers(kv);
    build_users(kv);
    kv_connect_all(kv);
    start_all(kv);
    kv->begun_us = w->world.now_us;
    return kv;
}

/* ---- end ---- */

static void report(struct kv *kv)
{
    struct lab_run *run = kv->run;
    struct sim_world *w = &kv->world->world;
    kv_report(kv);
    run->failed = w->failed;
    memcpy(run->failure, w->failure, sizeof run->failure);
    run->hash = w->hash;
    if (run->failed && run->tail) {
        sim_print_tail(w);
    }
}

void kv_end(struct kv *kv)
{
    struct kv_world *w = kv->world;
    report(kv);
    kv->ending = true;
    cluster_end_nodes(&w->cluster);
    verify_free(w->cluster.verify);
    sim_world_fini(&w->world);
    sim_wire_free(w->cluster.wire);
    mem_free(w->users);
    mem_free(w);
    kv_free(kv);
}
