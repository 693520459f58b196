/* Tests that later editions have added (2024: kvsrv; 2025: 5A, 5B), as far as
 * they are about something that is here: memory, and progress while groups
 * come and go. */
#include "tests/labs/kv_sim.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>

enum {
    G1 = 1,
    G2,
    G3,
    G4,
};

/* ---- old values: the server keeps none of them ---- */

enum {
    MEM_CLIENTS = 10,
    MEM_ROUNDS = 5,
    /* The labs' 10 MiB, and less than that in all; a request here may carry
     * 2 MiB. */
    MEM_VALUE_SIZE = 1 << 20,
};

struct memory {
    struct kv *kv;
    char *value;
};

static void memory_begin(struct memory *m, struct lab_run *run)
{
    struct kv_options options = {.groups = 1,
                                 .replicas = 1,
                                 .clients = MEM_CLIENTS,
                                 .maxraftstate = 1000};
    m->kv = kv_begin(run, &options);
    m->value = mem_alloc(MEM_VALUE_SIZE + 1);
    kv_random_text(m->kv, m->value, MEM_VALUE_SIZE);
    kv_join(m->kv, 1);
}

/* Of everything in this process, the (simulated) disks included. */
static size_t heap(struct memory *m)
{
    kv_sleep(m->kv, 1000);
    struct mallinfo2 all = mallinfo2();
    return all.uordblks + all.hblkhd;
}

static void each_client(struct memory *m, enum linear_kind kind)
{
    for (uint32_t i = 0; i < MEM_CLIENTS && !kv_failed(m->kv); i++) {
        m->value[0] = (char)('a' + i);
        kv_op_begin(&m->kv->clients[i], kind, "k", m->value);
        kv_op_await(&m->kv->clients[i]);
        buf_free(&m->kv->clients[i].value); /* the client's own */
        buf_free(&m->kv->clients[i].data);
    }
}

/* The first round fills what is filled once; the others add nothing. */
static void memory_end(struct memory *m, enum linear_kind kind, size_t most)
{
    each_client(m, kind);
    size_t before = heap(m);
    for (int i = 0; i < MEM_ROUNDS && !kv_failed(m->kv); i++) {
        each_client(m, kind);
    }
    size_t after = heap(m);
    if (after > before && after - before > most) {
        kv_fail(m->kv, "error: server using too much memory %zu -> %zu", before,
                after);
    }
    kv_end(m->kv);
    mem_free(m->value);
}

static void mem_get(struct lab_run *run)
{
    struct memory m;
    memory_begin(&m, run);
    kv_put(&m.kv->clients[0], "k", m.value);
    memory_end(&m, LINEAR_GET, MEM_VALUE_SIZE);
}

static void mem_put(struct lab_run *run)
{
    struct memory m;
    memory_begin(&m, run);
    memory_end(&m, LINEAR_PUT, MEM_VALUE_SIZE);
}

/* The value itself grows, in its store; as buffers grow, by up to half again.
 * (The labs allow three times what was appended, which hides a copy.) */
static void mem_append(struct lab_run *run)
{
    struct memory m;
    memory_begin(&m, run);
    size_t appended = (size_t)MEM_ROUNDS * MEM_CLIENTS * MEM_VALUE_SIZE;
    memory_end(&m, LINEAR_APPEND, appended * 3 / 2);
}

/* ---- many clients: how much of each stays ---- */

struct visitor {
    struct skv_txn txn; /* first */
    struct skv_clerk *clerk;
    struct skv_item item;
    bool done;
};

static void visited(struct skv_txn *txn)
{
    ((struct visitor *)txn)->done = true;
}

static void visit_begin(struct kv *kv, struct visitor *v, uint8_t kind,
                        struct slice key)
{
    char addresses[KV_CONTROLLERS][NET_ADDRESS_SIZE_MAX];
    const struct kv_client *c = &kv->clients[0];
    for (uint32_t i = 0; i < KV_CONTROLLERS; i++) {
        kv_address(kv, 0, i, addresses[i]);
    }
    *v = (struct visitor){.item = {.kind = kind, .key = key, .number = 100}};
    v->txn =
        (struct skv_txn){.items = &v->item, .item_count = 1, .done = visited};
    v->clerk =
        skv_clerk_new(kv_sim_env(c), kv_sim_net(c), addresses, KV_CONTROLLERS);
    skv_clerk_run(v->clerk, &v->txn);
}

static void visit_end(struct kv *kv, struct visitor *v)
{
    while (!v->done && !kv_failed(kv)) {
        kv_sleep(kv, 1);
    }
    skv_clerk_free(v->clerk); /* if it still waits, it is told now */
    if (v->txn.rc != ERR_OK) {
        kv_fail(kv, "a client is told %s", err_name(v->txn.rc));
    }
    arena_free(&v->txn.arena);
    kv->operations++;
}

static size_t snapshot_size(struct kv *kv, uint32_t group)
{
    struct kv_sizes sizes;
    kv_sizes(kv, group, 0, &sizes);
    return sizes.snapshot;
}

/* What the group has stored, with a checkpoint for certain. */
static size_t stored(struct kv *kv)
{
    kv_put(&kv->clients[0], "k", "v");
    kv_sleep(kv, 6000); /* a checkpoint comes after five seconds */
    return snapshot_size(kv, 1);
}

static void many(struct lab_run *run, uint8_t kind, size_t bytes_max)
{
    enum { AT_ONCE = 100 };
    /* Each hundredth seed has the labs' number. */
    uint32_t clients = run->seed % 100 == 0 ? 100000 : 5000;
    struct kv_options options = {.groups = 1, .replicas = 1, .clients = 1};
    struct kv *kv = kv_begin(run, &options);
    kv_join(kv, 1);
    size_t before = stored(kv);
    struct visitor *visitors = mem_array(AT_ONCE, sizeof *visitors);
    struct slice key = buf_slice(&kv->clients[0].key);
    for (uint32_t i = 0; i < clients && !kv_failed(kv); i += AT_ONCE) {
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            visit_begin(kv, &visitors[j], kind, key);
        }
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            visit_end(kv, &visitors[j]);
        }
    }
    size_t after = stored(kv);
    if (!kv_failed(kv) && after - before > bytes_max * clients) {
        kv_fail(kv, "error: too much memory for %u clients: %.1f bytes each",
                clients, (double)(after - before) / clients);
    }
    mem_free(visitors);
    kv_end(kv);
}

static void mem_put_many(struct lab_run *run)
{
    many(run, SKV_PUT, 200);
}

static void mem_get_many(struct lab_run *run)
{
    many(run, SKV_GET, 9);
}

/* ---- progress ---- */

enum { KEYS = 10 };

static const char *const keys[KEYS] = {"0", "1", "2", "3", "4",
                                       "5", "6", "7", "8", "9"};

static struct kv *begin(struct lab_run *run, uint32_t groups,
                        int64_t maxraftstate)
{
    struct kv_options options = {.groups = groups,
                                 .replicas = 3,
                                 .clients = 1 + KEYS,
                                 .maxraftstate = maxraftstate};
    return kv_begin(run, &options);
}

static void put_all(struct kv *kv, const char *value)
{
    for (uint32_t i = 0; i < KEYS; i++) {
        kv_put(&kv->clients[0], keys[i], value);
    }
}

static uint32_t owner(struct kv *kv, uint32_t key)
{
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    uint32_t shard = kv_shard(kv, keys[key]);
    return kv_failed(kv) ? 0 : c->shards[shard].gid;
}

/* Gets on all keys of groups that are up, all at once. */
static void gets_finish(struct kv *kv, const bool alive[KEYS])
{
    for (uint32_t i = 0; i < KEYS; i++) {
        if (alive[i]) {
            kv_op_begin(&kv->clients[1 + i], LINEAR_GET, keys[i], "");
        }
    }
    kv_sleep(kv, 2000);
    for (uint32_t i = 0; i < KEYS && !kv_failed(kv); i++) {
        if (kv->clients[1 + i].busy) {
            kv_fail(kv, "Gets didn't finish in 2 s: key %s", keys[i]);
        }
    }
}

static void progress_shutdown(struct lab_run *run)
{
    static const uint32_t all[] = {G1, G2, G3, G4};
    bool alive[KEYS] = {0};
    struct kv *kv = begin(run, 4, KV_NO_SNAPSHOTS);
    kv_joins(kv, all, 4);
    put_all(kv, "v");
    kv_shutdown_group(kv, G1);
    kv_shutdown_group(kv, G3);
    for (uint32_t i = 0; i < KEYS; i++) {
        uint32_t gid = owner(kv, i);
        alive[i] = gid == G2 || gid == G4;
    }
    gets_finish(kv, alive);
    /* Its shards are given to the others, and never come. */
    kv_leave(kv, G1);
    kv_sleep(kv, 500);
    gets_finish(kv, alive);
    kv_end(kv);
}

static void get_again(struct kv_client *c)
{
    c->count++;
    kv_op_begin(c, LINEAR_GET, keys[c->round], "");
}

/* A key whose shard stays where it is while G3 comes and goes. */
static bool stays(struct kv *kv, uint32_t key)
{
    uint64_t last = kv_query(kv, CTL_LATEST)->number;
    uint32_t shard = kv_shard(kv, keys[key]);
    uint32_t first_owner = 0;
    for (uint64_t n = 2; n <= last && !kv_failed(kv); n++) {
        uint32_t gid = kv_query(kv, n)->shards[shard].gid;
        if (first_owner != 0 && gid != first_owner) {
            return false;
        }
        first_owner = gid;
    }
    return true;
}

static void come_and_go(struct kv *kv)
{
    kv_join(kv, G3);
    kv_sleep(kv, kv_random(kv, 200));
    kv_leave(kv, G3);
    kv_sleep(kv, kv_random(kv, 200));
}

static void progress_join(struct lab_run *run)
{
    struct kv *kv = begin(run, 3, 1000);
    struct kv_client *c = &kv->clients[1];
    kv_join(kv, G1);
    kv_join(kv, G2);
    put_all(kv, "v");
    come_and_go(kv);
    come_and_go(kv);
    while (c->round < KEYS && !stays(kv, c->round)) {
        c->round++;
    }
    if (!kv_failed(kv) && c->round == KEYS) {
        kv_fail(kv, "each join moves every shard");
        c->round = 0;
    }
    c->then = get_again;
    kv_op_begin(c, LINEAR_GET, keys[c->round], "");
    uint64_t end_ms = kv_now_ms(kv) + 4000;
    while (kv_now_ms(kv) < end_ms && !kv_failed(kv)) {
        come_and_go(kv);
    }
    c->then = NULL;
    kv_op_await(c);
    if (!kv_failed(kv) && stays(kv, c->round) && c->count < 100) {
        kv_fail(kv, "%u Gets in 4 s on a shard that does not move", c->count);
    }
    kv_end(kv);
}

/* ---- what was moved is deleted; a move waits for its source ---- */

static void delete_basic(struct lab_run *run)
{
    struct kv *kv = begin(run, 2, 1);
    char value[1001];
    kv_join(kv, G1);
    kv_random_text(kv, value, sizeof value - 1);
    put_all(kv, value);
    kv_sleep(kv, 1000);
    size_t before = snapshot_size(kv, G1);
    kv_join(kv, G2);
    for (uint32_t i = 0; i < KEYS; i++) {
        kv_check(&kv->clients[0], keys[i], value);
    }
    kv_sleep(kv, 1000);
    size_t after = snapshot_size(kv, G1) + snapshot_size(kv, G2);
    /* The labs allow 10,000 with 40 keys of 4,000 bytes. */
    if (!kv_failed(kv) && after > before + 2000) {
        kv_fail(kv, "%zu bytes in the two groups, and there were %zu", after,
                before);
    }
    kv_end(kv);
}

static void source_down(struct lab_run *run)
{
    struct kv *kv = begin(run, 2, 1000);
    uint32_t moved = 0;
    kv_join(kv, G1);
    put_all(kv, "v");
    kv_shutdown_group(kv, G1);
    kv_join(kv, G2);
    while (moved < KEYS && owner(kv, moved) != G2) {
        moved++;
    }
    struct kv_client *c = &kv->clients[1];
    kv_op_begin(c, LINEAR_GET, keys[moved], "");
    kv_sleep(kv, 1000);
    if (!kv_failed(kv) && !c->busy) {
        kv_fail(kv, "a shard has come from a group that is down");
    }
    kv_start_group(kv, G1);
    kv_await(kv, &c->busy, 2000, "a shard whose source is back");
    if (!kv_failed(kv) && strcmp(kv_value(c), "v") != 0) {
        kv_fail(kv, "Get(%s): received: %s", keys[moved], kv_value(c));
    }
    kv_end(kv);
}

/* Not of any lab: the source of shards dies in the middle of moves, for an
 * hour. Nobody grows or spins meanwhile; then all goes on. */
static void source_dead(struct lab_run *run)
{
    /* A call to one that is silent is given 10 s by now. */
    enum { HOUR_MS = 3600 * 1000, CALLS_PER_S_MAX = 200, BACK_MS = 15000 };
    struct kv_options options = {.groups = 2,
                                 .replicas = 3,
                                 .clients = 1 + KEYS,
                                 .maxraftstate = 1000,
                                 .seconds_max = 2 * 3600};
    struct kv *kv = kv_begin(run, &options);
    struct kv_counts before, after;
    struct kv_sizes sizes;
    kv_join(kv, G1);
    put_all(kv, "v");
    const uint32_t arrives[] = {G2};
    kv_change_begin(&kv->admins[0], CTL_JOIN, arrives, 1, 0);
    kv_sleep(kv, kv_random(kv, 40));
    kv_shutdown_group(kv, G1);
    kv_admin_await(&kv->admins[0]);
    kv_count(kv, &before);
    kv_sleep(kv, HOUR_MS);
    kv_count(kv, &after);
    if (!kv_failed(kv) && after.requests - before.requests >
                              (uint64_t)CALLS_PER_S_MAX * HOUR_MS / 1000) {
        kv_fail(kv, "%" PRIu64 " requests in an hour of waiting",
                after.requests - before.requests);
    }
    kv_sizes(kv, G2, kv_leader(kv, G2), &sizes);
    if (!kv_failed(kv) && sizes.log > 8 * 1000) {
        kv_fail(kv, "a log of %zu bytes after an hour of waiting", sizes.log);
    }
    kv_start_group(kv, G1);
    for (uint32_t i = 0; i < KEYS && !kv_failed(kv); i++) {
        struct kv_client *c = &kv->clients[0];
        kv_op_begin(c, LINEAR_GET, keys[i], "");
        kv_await(kv, &c->busy, BACK_MS, "a shard whose source is back");
        if (!kv_failed(kv) && strcmp(kv_value(c), "v") != 0) {
            kv_fail(kv, "Get(%s): received: %s", keys[i], kv_value(c));
        }
        kv_put(c, keys[i], "w");
    }
    kv_sleep(kv, BACK_MS);
    kv_shutdown_group(kv, G1); /* which served what had not gone yet */
    for (uint32_t i = 0; i < KEYS && !kv_failed(kv); i++) {
        struct kv_client *c = &kv->clients[0];
        if (owner(kv, i) == G2) {
            kv_op_begin(c, LINEAR_GET, keys[i], "");
            kv_await(kv, &c->busy, 5000, "a shard that has come");
        }
    }
    kv_end(kv);
}

static const struct lab_row rows[] = {
    {"L1", "TestMemGet2", "memory use many gets", mem_get, 150},
    {"L2", "TestMemPut2", "memory use many puts", mem_put, 150},
    {"L3", "TestMemAppend2", "memory use many appends", mem_append, 300},
    {"L4", "TestMemPutMany", "memory use many put clients", mem_put_many, 150},
    {"L5", "TestMemGetMany", "memory use many get clients", mem_get_many, 300},
    {"L6", "TestProgressShutdown", "progress while groups are down",
     progress_shutdown, 20},
    {"L7", "TestProgressJoin", "progress while a group joins and leaves",
     progress_join, 50},
    {"L8", "TestDeleteBasic", "what was moved is deleted", delete_basic, 20},
    {"L9", "TestJoinLeave5B", "a join while the source is down", source_down,
     20},
    {"L10", "TestSourceDead", "the source of moves is dead for an hour",
     source_dead, 50},
};

LAB_TABLE(lab_later, "5A", rows);
