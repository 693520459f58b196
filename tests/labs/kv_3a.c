/* Key/value 3A: one group that has all shards, and no snapshots. */
#include "tests/labs/kv_generic.h"

#include <stdio.h>

static void generic(struct lab_run *run, struct generic_plan plan)
{
    plan.maxraftstate = KV_NO_SNAPSHOTS;
    generic_test(run, &plan);
}

static void basic(struct lab_run *run)
{
    generic(run, (struct generic_plan){.clients = 1, .servers = 5});
}

static void speed(struct lab_run *run)
{
    generic_speed(run, KV_NO_SNAPSHOTS);
}

static void concurrent(struct lab_run *run)
{
    generic(run, (struct generic_plan){.clients = 5, .servers = 5});
}

static void unreliable(struct lab_run *run)
{
    generic(run, (struct generic_plan){
                     .clients = 5, .servers = 5, .unreliable = true});
}

/* ---- K5 ---- */

enum { ONE_KEY_CLIENTS = 5, ONE_KEY_APPENDS = 10 };

static void append_next(struct kv_client *c)
{
    char text[32];
    if (c->count < ONE_KEY_APPENDS) {
        snprintf(text, sizeof text, "x %u %u y", c->number, c->count++);
        kv_op_begin(c, LINEAR_APPEND, "k", text);
    }
}

static void unreliable_one_key(struct lab_run *run)
{
    struct kv_options options = {.groups = 1,
                                 .replicas = 3,
                                 .clients = ONE_KEY_CLIENTS + 1,
                                 .maxraftstate = KV_NO_SNAPSHOTS,
                                 .unreliable = true};
    struct kv *kv = kv_begin(run, &options);
    struct kv_client *own = &kv->clients[ONE_KEY_CLIENTS];
    uint32_t counts[ONE_KEY_CLIENTS];
    kv_join(kv, 1);
    kv_put(own, "k", "");
    for (uint32_t i = 0; i < ONE_KEY_CLIENTS; i++) {
        counts[i] = ONE_KEY_APPENDS;
        kv->clients[i].then = append_next;
        append_next(&kv->clients[i]);
    }
    for (uint32_t i = 0; i < ONE_KEY_CLIENTS; i++) {
        kv_op_await(&kv->clients[i]);
    }
    generic_check_appends(kv, kv_get(own, "k"), counts, ONE_KEY_CLIENTS);
    kv_check_logs(kv);
    kv_end(kv);
}

/* ---- K6 ---- */

/* The leader and one more on the minority's side. */
static uint32_t minority_of(uint32_t leader, uint32_t servers)
{
    return 1u << leader | 1u << ((leader + 1) % servers);
}

static void must_wait(struct kv *kv, const struct kv_client *c,
                      const char *what)
{
    if (!c->busy) {
        kv_fail(kv, "%s in minority completed", what);
    }
}

static void one_partition(struct lab_run *run)
{
    enum { SERVERS = 5, ALL = (1 << SERVERS) - 1, HEALED_MS = 3000 };
    struct kv_options options = {.groups = 1,
                                 .replicas = SERVERS,
                                 .clients = 4,
                                 .maxraftstate = KV_NO_SNAPSHOTS};
    struct kv *kv = kv_begin(run, &options);
    struct kv_client *own = &kv->clients[0];
    struct kv_client *majority = &kv->clients[1];
    struct kv_client *puts = &kv->clients[2];
    struct kv_client *gets = &kv->clients[3];
    kv_join(kv, 1);
    kv_put(own, "1", "13");
    uint32_t minority = minority_of(kv_leader(kv, 1), SERVERS);
    kv_partition(kv, 1, minority);
    kv_client_reach(majority, 1, ALL & ~minority);
    kv_client_reach(puts, 1, minority);
    kv_client_reach(gets, 1, minority);

    kv_put(majority, "1", "14");
    kv_check(majority, "1", "14");

    kv_op_begin(puts, LINEAR_PUT, "1", "15");
    kv_op_begin(gets, LINEAR_GET, "1", "");
    kv_sleep(kv, 1000);
    must_wait(kv, puts, "Put");
    must_wait(kv, gets, "Get");
    kv_check(majority, "1", "14");
    kv_put(majority, "1", "16");
    kv_check(majority, "1", "16");
    must_wait(kv, puts, "Put");
    must_wait(kv, gets, "Get");

    kv_connect_all(kv);
    kv_sleep(kv, KV_ELECTION_MS);
    kv_await(kv, &puts->busy, HEALED_MS, "Put after the heal");
    kv_await(kv, &gets->busy, HEALED_MS, "Get after the heal");
    kv_check(own, "1", "15");
    kv_end(kv);
}

/* ---- the rest ---- */

static void many_partitions_one_client(struct lab_run *run)
{
    generic(run, (struct generic_plan){
                     .clients = 1, .servers = 5, .partitions = true});
}

static void many_partitions_many_clients(struct lab_run *run)
{
    generic(run, (struct generic_plan){
                     .clients = 5, .servers = 5, .partitions = true});
}

static void persist_one_client(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){.clients = 1, .servers = 5, .crash = true});
}

static void persist_concurrent(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){.clients = 5, .servers = 5, .crash = true});
}

static void persist_concurrent_unreliable(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){
                .clients = 5, .servers = 5, .crash = true, .unreliable = true});
}

static void persist_partition(struct lab_run *run)
{
    generic(run,
            (struct generic_plan){
                .clients = 5, .servers = 5, .crash = true, .partitions = true});
}

static void persist_partition_unreliable(struct lab_run *run)
{
    generic(run, (struct generic_plan){.clients = 5,
                                       .servers = 5,
                                       .crash = true,
                                       .partitions = true,
                                       .unreliable = true});
}

static void persist_partition_unreliable_linearizable(struct lab_run *run)
{
    generic(run, (struct generic_plan){.clients = 15,
                                       .servers = 7,
                                       .crash = true,
                                       .partitions = true,
                                       .unreliable = true,
                                       .random_keys = true});
}

static const struct lab_row rows[] = {
    {"K1", "TestBasic3A", "one client", basic, 75},
    {"K2", "TestSpeed3A", "ops complete fast enough", speed, 75},
    {"K3", "TestConcurrent3A", "many clients", concurrent, 75},
    {"K4", "TestUnreliable3A", "unreliable net, many clients", unreliable, 75},
    {"K5", "TestUnreliableOneKey3A",
     "concurrent append to same key, unreliable", unreliable_one_key, 0},
    {"K6", "TestOnePartition3A", "progress in majority", one_partition, 0},
    {"K7", "TestManyPartitionsOneClient3A", "partitions, one client",
     many_partitions_one_client, 75},
    {"K8", "TestManyPartitionsManyClients3A", "partitions, many clients",
     many_partitions_many_clients, 75},
    {"K9", "TestPersistOneClient3A", "restarts, one client", persist_one_client,
     75},
    {"K10", "TestPersistConcurrent3A", "restarts, many clients",
     persist_concurrent, 75},
    {"K11", "TestPersistConcurrentUnreliable3A",
     "unreliable net, restarts, many clients", persist_concurrent_unreliable,
     75},
    {"K12", "TestPersistPartition3A", "restarts, partitions, many clients",
     persist_partition, 75},
    {"K13", "TestPersistPartitionUnreliable3A",
     "unreliable net, restarts, partitions, many clients",
     persist_partition_unreliable, 75},
    {"K14", "TestPersistPartitionUnreliableLinearizable3A",
     "unreliable net, restarts, partitions, random keys, many clients",
     persist_partition_unreliable_linearizable, 75},
};

LAB_TABLE(lab_kv_3a, "3A", rows);
