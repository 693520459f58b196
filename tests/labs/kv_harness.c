#include "tests/labs/kv_harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/labs/group.h"

#define MS UINT64_C(1000)

enum {
    TEST_SECONDS_MAX = 120,
    SEGMENT_SIZE = 65536,
    SEGMENT_SIZE_SMALL = 4096,
    LOOK_MS = 10,
};

/* A disk whose sync takes 6 ms, and sometimes 40. */
static const struct sim_speed speeds[SIM_SPEEDS] = {
    {"wal", 1000, 40000, 0, 0},
    {"apply", 5, 500, 0, 0},
    {"snap", 50, 5000, 0, 0},
};

/* ---- failing, and time ---- */

void kv_fail(struct kv *kv, const char *format, ...)
{
    char words[sizeof kv->world.failure];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    sim_fail(&kv->world, "%s", words);
}

bool kv_failed(const struct kv *kv)
{
    return kv->world.failed;
}

uint64_t kv_random(struct kv *kv, uint64_t below)
{
    return sim_between(&kv->world, 0, below - 1);
}

uint64_t kv_now_ms(const struct kv *kv)
{
    return (kv->world.now_us - kv->begun_us) / MS;
}

void kv_sleep(struct kv *kv, uint64_t ms)
{
    struct sim_world *w = &kv->world;
    uint64_t end_us = w->now_us + ms * MS;
    while (!w->failed && w->count > 0 && w->heap[0]->time_us <= end_us) {
        sim_step(w);
    }
    if (!w->failed && w->now_us < end_us) {
        w->now_us = end_us;
    }
}

bool kv_await(struct kv *kv, const bool *flag, uint64_t limit_ms,
              const char *what)
{
    struct sim_world *w = &kv->world;
    uint64_t end_us = w->now_us + limit_ms * MS;
    while (*flag && !w->failed) {
        if (w->now_us >= end_us) {
            verify_describe(&kv->cluster);
            kv_fail(kv, "%s: no answer within %.1f s", what,
                    (double)limit_ms / 1000);
            break;
        }
        sim_step(w);
    }
    return !w->failed;
}

/* ---- the labs' network ---- */

static bool is_reply(const struct sim_letter *letter)
{
    if (letter->reply || letter->method != RSM_METHOD_RAFT) {
        return letter->reply;
    }
    uint8_t type = letter->body.data[0];
    return type == RAFT_MSG_PREVOTE_REPLY || type == RAFT_MSG_VOTE_REPLY ||
           type == RAFT_MSG_APPEND_REPLY;
}

/* A clerk's request, refused for its shard. */
static void look_at_answer(struct kv *kv, const struct sim_letter *letter)
{
    struct arena a = {0};
    struct skv_reply reply;
    const struct node *to = &kv->cluster.nodes[letter->to];
    if (letter->reply && to->kind == NODE_CLERK &&
        skv_reply_decode(letter->body, &a, &reply) == ERR_OK) {
        kv->refusals += reply.rc == ERR_WRONGGROUP;
    }
    arena_free(&a);
}

static void count(struct kv *kv, const struct sim_letter *letter, bool reply)
{
    kv->bytes += letter->body.size;
    kv->requests += !reply;
    kv->replies += reply;
    kv->chunks += !reply && letter->method == RSM_METHOD_SNAP;
    look_at_answer(kv, letter);
}

/* A connection that loses nothing keeps the order. */
static uint64_t after_the_last(struct kv *kv, const struct sim_letter *letter,
                               uint64_t delay_us)
{
    uint64_t *last_us = &kv->arrives_us[letter->from][letter->to];
    uint64_t at_us = kv->world.now_us + delay_us;
    *last_us = at_us > *last_us ? at_us : *last_us + 1;
    return *last_us - kv->world.now_us;
}

static bool fate(void *arg, const struct sim_letter *letter, uint64_t *delay_us)
{
    struct kv *kv = arg;
    struct sim_world *w = &kv->world;
    bool reply = is_reply(letter);
    count(kv, letter, reply);
    if (!kv->linked[letter->from][letter->to]) {
        *delay_us = sim_between(w, 0, 100 * MS);
        return false;
    }
    *delay_us = sim_delay(w, 20, 500) + letter->body.size / 100;
    if (!kv->unreliable) {
        *delay_us = after_the_last(kv, letter, *delay_us);
    } else if (!reply) {
        *delay_us += sim_between(w, 0, 26 * MS);
    }
    return !kv->unreliable || !sim_chance(w, 100);
}

/* ---- servers ---- */

struct node *kv_server(struct kv *kv, uint32_t group, uint32_t server)
{
    uint32_t first =
        group == 0 ? 0 : SIM_CONTROLLERS + (group - 1) * kv->options.replicas;
    struct node *n = &kv->cluster.nodes[first + server];
    CHECK(node_is_server(n) && n->gid == group);
    return n;
}

static uint32_t size_of(const struct kv *kv, uint32_t group)
{
    return group == 0 ? SIM_CONTROLLERS : kv->options.replicas;
}

void kv_shutdown(struct kv *kv, uint32_t group, uint32_t server)
{
    struct node *n = kv_server(kv, group, server);
    if (!kv_failed(kv) && !n->env.dead) {
        node_crash(n, "shut down");
    }
}

void kv_start(struct kv *kv, uint32_t group, uint32_t server)
{
    if (!kv_failed(kv)) {
        node_start(kv_server(kv, group, server));
    }
}

void kv_shutdown_group(struct kv *kv, uint32_t group)
{
    for (uint32_t i = 0; i < size_of(kv, group); i++) {
        kv_shutdown(kv, group, i);
    }
}

void kv_start_group(struct kv *kv, uint32_t group)
{
    for (uint32_t i = 0; i < size_of(kv, group); i++) {
        kv_start(kv, group, i);
    }
}

uint32_t kv_leader(struct kv *kv, uint32_t group)
{
    for (uint32_t tries = 0; tries < 5000 / LOOK_MS && !kv_failed(kv);
         tries++) {
        struct node *leader = cluster_leader(&kv->cluster, group);
        if (leader != NULL) {
            return (uint32_t)(leader - kv_server(kv, group, 0));
        }
        kv_sleep(kv, LOOK_MS);
    }
    kv_fail(kv, "group %u has no leader", group);
    return 0;
}

static void link_both(struct kv *kv, uint32_t a, uint32_t b, bool linked)
{
    kv->linked[a][b] = linked;
    kv->linked[b][a] = linked;
}

void kv_partition(struct kv *kv, uint32_t group, uint32_t side)
{
    sim_trace(&kv->world, "partition of group %u: %x", group, side);
    for (uint32_t a = 0; a < size_of(kv, group); a++) {
        for (uint32_t b = 0; b < a; b++) {
            link_both(kv, kv_server(kv, group, a)->number,
                      kv_server(kv, group, b)->number,
                      (side >> a & 1) == (side >> b & 1));
        }
    }
}

void kv_connect_all(struct kv *kv)
{
    memset(kv->linked, true, sizeof kv->linked);
    sim_trace(&kv->world, "all are connected");
}

void kv_client_reach(struct kv_client *c, uint32_t group, uint32_t servers)
{
    for (uint32_t i = 0; i < size_of(c->kv, group); i++) {
        link_both(c->kv, c->node->number, kv_server(c->kv, group, i)->number,
                  (servers >> i & 1) != 0);
    }
}

/* ---- sizes ---- */

size_t kv_log_size(const struct node *n)
{
    struct rsm *rsm = node_rsm(n);
    return rsm != NULL ? lab_log_size(rsm) : 0;
}

size_t kv_snapshot_size(const struct node *n)
{
    return n->image.index > 0 ? n->image.bytes.size : 0;
}

static enum err add_size(void *arg, const struct snap_id *id,
                         struct slice packed)
{
    *(size_t *)arg += sizeof *id + packed.size;
    return ERR_OK;
}

size_t kv_stream_size(const struct node *n)
{
    size_t size = 0;
    struct snap_cutter *c = snap_cutter_new(0, add_size, &size);
    struct snap_sink *sink = snap_cutter_sink(c);
    CHECK(sink->write(sink, buf_slice(&n->image.bytes)) == ERR_OK);
    CHECK(snap_cutter_finish(c) == ERR_OK);
    snap_cutter_free(c);
    return size;
}

static void check_log(struct kv *kv, const struct node *n)
{
    int64_t limit = kv->options.maxraftstate;
    size_t size = kv_log_size(n);
    if (limit > 0 && size > 8 * (size_t)limit) {
        verify_describe(&kv->cluster);
        kv_fail(kv, "n%u: logs were not trimmed (%zu > 8*%d)", n->number, size,
                (int)limit);
    }
    if (limit < 0 && (n->image.index > 0 || kv->chunks > 0)) {
        kv_fail(kv, "n%u: there is a snapshot, and there may be none",
                n->number);
    }
}

void kv_check_logs(struct kv *kv)
{
    for (uint32_t i = 0; i < kv->cluster.node_count; i++) {
        if (kv->cluster.nodes[i].kind == NODE_SERVER) {
            check_log(kv, &kv->cluster.nodes[i]);
        }
    }
}

/* ---- begin ---- */

static void plan_fill(struct kv *kv)
{
    struct plan *p = &kv->cluster.plan;
    const struct kv_options *o = &kv->options;
    p->scenario = "labs";
    p->groups = o->groups;
    p->replicas = o->replicas;
    p->shards = o->shards != 0 ? o->shards : KV_SHARDS;
    p->wal_segment_size = SEGMENT_SIZE;
    if (o->maxraftstate < 0) {
        p->checkpoint_size_max = SIZE_MAX;
        p->checkpoint_ms_max = UINT32_MAX;
        p->log_keep_size = SIZE_MAX;
    } else if (o->maxraftstate > 0) {
        /* As the labs, nothing stays; or as what ships, a little. */
        bool keep = kv->run->seed / 2 % 2 == 0;
        p->checkpoint_size_max = (size_t)o->maxraftstate;
        p->log_keep_size = keep ? (size_t)o->maxraftstate : 1;
        p->wal_segment_size = SEGMENT_SIZE_SMALL;
        p->log_hold_size = 1; /* who is behind is sent a snapshot */
    }
}

static void build_servers(struct kv *kv)
{
    struct cluster *c = &kv->cluster;
    for (uint32_t i = 0; i < SIM_CONTROLLERS; i++) {
        node_add(c, NODE_CONTROLLER, 0, i + 1);
    }
    for (uint32_t g = 1; g <= kv->options.groups; g++) {
        for (uint32_t i = 0; i < kv->options.replicas; i++) {
            node_add(c, NODE_SERVER, g, i + 1);
        }
    }
    kv->other_first = c->node_count;
    for (uint32_t i = 0; kv->options.other_controllers && i < SIM_CONTROLLERS;
         i++) {
        node_add(c, NODE_CONTROLLER, SIM_GROUPS_MAX, i + 1);
    }
}

static void build_users(struct kv *kv)
{
    struct cluster *c = &kv->cluster;
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        struct kv_admin *a = &kv->admins[i];
        *a = (struct kv_admin){.kv = kv, .node = node_add(c, NODE_ADMIN, 0, 0)};
    }
    c->clerk_first = c->node_count;
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        struct kv_client *client = &kv->clients[i];
        client->kv = kv;
        client->number = i;
        client->node = node_add(c, NODE_CLERK, 0, 0);
    }
}

struct kv *kv_begin(struct lab_run *run, const struct kv_options *options)
{
    struct kv *kv = mem_alloc(sizeof *kv);
    kv->run = run;
    kv->options = *options;
    kv->options.admins += options->admins == 0;
    kv->unreliable = options->unreliable;
    kv->clients = mem_array(options->clients, sizeof *kv->clients);
    kv->admins = mem_array(kv->options.admins, sizeof *kv->admins);
    sim_world_init(&kv->world, run->seed, run->verbose);
    struct cluster *c = &kv->cluster;
    c->world = &kv->world;
    c->speeds = options->speeds != NULL ? options->speeds : speeds;
    c->wire = sim_wire_new(&kv->world);
    sim_wire_set_fate(c->wire, fate, kv);
    sim_wire_set_watch(c->wire, cluster_on_message, c);
    sim_wire_set_loss_noticed(c->wire, !options->silence || run->seed % 4 != 0);
    c->verify = verify_new(c);
    kv->world.after = cluster_after_event;
    kv->world.after_arg = c;
    plan_fill(kv);
    build_servers(kv);
    build_users(kv);
    kv_connect_all(kv);
    for (uint32_t i = 0; i < c->node_count; i++) {
        node_start(&c->nodes[i]);
    }
    for (uint32_t i = 0; i < options->clients; i++) {
        kv->clients[i].clerk = kv->clients[i].node->clerk;
    }
    kv->begun_us = kv->world.now_us;
    return kv;
}

/* ---- end ---- */

static void report(struct kv *kv)
{
    struct lab_run *run = kv->run;
    run->failed = kv->world.failed;
    memcpy(run->failure, kv->world.failure, sizeof run->failure);
    run->hash = kv->world.hash;
    run->seconds = (double)(kv->world.now_us - kv->begun_us) / 1e6;
    run->peers = size_of(kv, kv->options.groups > 0 ? 1 : 0);
    run->rpcs = kv->requests > kv->replies ? kv->requests : kv->replies;
    run->bytes = kv->bytes;
    run->entries = kv->operations;
    if (run->failed && run->tail) {
        sim_print_tail(&kv->world);
    }
}

void kv_end(struct kv *kv)
{
    if (kv_now_ms(kv) > TEST_SECONDS_MAX * 1000) {
        kv_fail(kv, "test took longer than %d seconds", TEST_SECONDS_MAX);
    }
    report(kv);
    kv->ending = true;
    cluster_end_nodes(&kv->cluster);
    verify_free(kv->cluster.verify);
    sim_world_fini(&kv->world);
    sim_wire_free(kv->cluster.wire);
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        struct kv_client *c = &kv->clients[i];
        CHECK(!c->busy);
        buf_free(&c->key);
        buf_free(&c->data);
        buf_free(&c->value);
    }
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        arena_free(&kv->admins[i].arena);
    }
    for (uint32_t i = 0; i < kv->history_count; i++) {
        mem_free(kv->histories[i].ops);
    }
    mem_free(kv->histories);
    mem_free(kv->clients);
    mem_free(kv->admins);
    arena_free(&kv->arena);
    mem_free(kv);
}
