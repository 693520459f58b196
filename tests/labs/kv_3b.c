/* Key/value 3B: one group that has all shards, and a log that stays short. What
 * maxraftstate and the snapshot's size mean here: README.md. */
#include "tests/labs/kv_generic.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MAX_RAFT_STATE = 1000 };

static void generic(struct lab_run *run, struct generic_plan plan)
{
    plan.maxraftstate = MAX_RAFT_STATE;
    generic_test(run, &plan);
}

/* ---- K15 ---- */

enum { RPC_PUTS = 50 };

static void put_many(struct kv *kv, struct kv_client *c)
{
    for (uint32_t i = 0; i < RPC_PUTS && !kv_failed(kv); i++) {
        char text[16];
        snprintf(text, sizeof text, "%u", i);
        kv_put(c, text, text);
    }
}

static void snapshot_rpc(struct lab_run *run)
{
    struct kv_options options = {.groups = 1,
                                 .replicas = 3,
                                 .clients = 3,
                                 .maxraftstate = MAX_RAFT_STATE};
    struct kv *kv = kv_begin(run, &options);
    struct kv_client *own = &kv->clients[0];
    struct kv_client *first = &kv->clients[1];
    struct kv_client *second = &kv->clients[2];
    kv_join(kv, 1);
    kv_put(own, "a", "A");
    kv_check(own, "a", "A");

    /* A bunch of puts into the majority partition. */
    kv_partition(kv, 1, 1 << 0 | 1 << 1);
    kv_client_reach(first, 1, 1 << 0 | 1 << 1);
    put_many(kv, first);
    kv_sleep(kv, KV_ELECTION_MS);
    kv_put(first, "b", "B");
    kv_check_logs(kv);

    /* A majority that needs the lagging server. */
    kv_partition(kv, 1, 1 << 0 | 1 << 2);
    kv_client_reach(second, 1, 1 << 0 | 1 << 2);
    kv_put(second, "c", "C");
    kv_put(second, "d", "D");
    kv_check(second, "a", "A");
    kv_check(second, "b", "B");
    kv_check(second, "1", "1");
    kv_check(second, "49", "49");
    struct kv_counts counts;
    kv_count(kv, &counts);
    if (counts.chunks == 0) {
        kv_fail(kv, "the lagging server was sent no snapshot");
    }

    kv_connect_all(kv);
    kv_put(own, "e", "E");
    kv_check(own, "c", "C");
    kv_check(own, "e", "E");
    kv_check(own, "1", "1");
    kv_end(kv);
}

/* ---- K16 ---- */

enum {
    SIZE_ROUNDS = 200,
    SNAPSHOT_SIZE_MAX = 500,
    ADDRESS_SIZE = sizeof "n4:7000" - 1,
};

/* The labs' snapshot has no addresses. Ours has the group's servers, and a real
 * one's is longer than a simulated one's: by so much the plain bytes may be
 * over the bound. */
static size_t address_surplus(const struct kv *kv)
{
    size_t surplus = 0;
    for (uint32_t i = 0; i < kv->options.replicas; i++) {
        char address[NET_ADDRESS_SIZE_MAX];
        kv_address(kv, 1, i, address);
        surplus += strlen(address) - ADDRESS_SIZE;
    }
    return surplus;
}

static void check_snapshots(struct kv *kv)
{
    for (uint32_t i = 0; i < kv->options.replicas; i++) {
        struct kv_sizes sizes;
        kv_sizes(kv, 1, i, &sizes);
        if (sizes.snapshot == 0) {
            kv_fail(kv, "server %u has no snapshot", i);
        }
        if (sizes.snapshot > SNAPSHOT_SIZE_MAX + address_surplus(kv) ||
            sizes.stream > SNAPSHOT_SIZE_MAX) {
            kv_fail(kv, "snapshot too large (%zu, compressed %zu > %d)",
                    sizes.snapshot, sizes.stream, SNAPSHOT_SIZE_MAX);
        }
    }
}

static void snapshot_size(struct lab_run *run)
{
    struct kv_options options = {.groups = 1,
                                 .replicas = 3,
                                 .clients = 1,
                                 .shards = 1,
                                 .maxraftstate = MAX_RAFT_STATE};
    struct kv *kv = kv_begin(run, &options);
    struct kv_client *c = &kv->clients[0];
    kv_join(kv, 1);
    for (int i = 0; i < SIZE_ROUNDS && !kv_failed(kv); i++) {
        kv_put(c, "x", "0");
        kv_check(c, "x", "0");
        kv_put(c, "x", "1");
        kv_check(c, "x", "1");
    }
    kv_check_logs(kv);
    check_snapshots(kv);
    kv_end(kv);
}

/* ---- the rest ---- */

static void speed(struct lab_run *run)
{
    generic_speed(run, MAX_RAFT_STATE);
}

static void recover(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){.clients = 1, .servers = 5, .crash = true});
}

static void recover_many_clients(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){.clients = 20, .servers = 5, .crash = true});
}

static void unreliable(struct lab_run *run)
{
    generic(run, (struct generic_plan){
                     .clients = 5, .servers = 5, .unreliable = true});
}

static void unreliable_recover(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){
                .clients = 5, .servers = 5, .crash = true, .unreliable = true});
}

static void all_three(struct lab_run *run)
{
    generic(run, (struct generic_plan){.clients = 5,
                                       .servers = 5,
                                       .crash = true,
                                       .partitions = true,
                                       .unreliable = true});
}

static void all_three_linearizable(struct lab_run *run)
{
    generic(run, (struct generic_plan){.clients = 15,
                                       .servers = 7,
                                       .crash = true,
                                       .partitions = true,
                                       .unreliable = true,
                                       .random_keys = true});
}

static const struct lab_row rows[] = {
    {"K15", "TestSnapshotRPC3B", "InstallSnapshot RPC", snapshot_rpc, 0},
    {"K16", "TestSnapshotSize3B", "snapshot size is reasonable", snapshot_size,
     75},
    {"K17", "TestSpeed3B", "ops complete fast enough", speed, 75},
    {"K18", "TestSnapshotRecover3B", "restarts, snapshots, one client", recover,
     75},
    {"K19", "TestSnapshotRecoverManyClients3B",
     "restarts, snapshots, many clients", recover_many_clients, 75},
    {"K20", "TestSnapshotUnreliable3B",
     "unreliable net, snapshots, many clients", unreliable, 75},
    {"K21", "TestSnapshotUnreliableRecover3B",
     "unreliable net, restarts, snapshots, many clients", unreliable_recover,
     75},
    {"K22", "TestSnapshotUnreliableRecoverConcurrentPartition3B",
     "unreliable net, restarts, partitions, snapshots, many clients", all_three,
     75},
    {"K23", "TestSnapshotUnreliableRecoverConcurrentPartitionLinearizable3B",
     "unreliable net, restarts, partitions, snapshots, random keys, many "
     "clients",
     all_three_linearizable, 75},
};

LAB_TABLE(lab_kv_3b, "3B", rows);
