/* Controllers, groups, clerks and administrators as the labs test them, on
 * virtual time: the servers and clerks that ship (tests/sim/node.c starts them)
 * under the labs' network, shutdowns and questions.
 *
 * A row's function calls these one after the other, as a lab's test does; the
 * world moves on only inside them. When a property does not hold the run has
 * failed: all calls then return at once, with a harmless value. What is true of
 * Raft is looked at after each event and message, too (tests/sim/verify.c).
 *
 * How maxraftstate and the snapshot's size are meant here: README.md. */
#ifndef TESTS_LABS_KV_HARNESS_H
#define TESTS_LABS_KV_HARNESS_H

#include "tests/labs/labs.h"
#include "tests/linear/linear.h"
#include "tests/sim/cluster.h"

enum {
    KV_SHARDS = 10,
    KV_ELECTION_MS = 1000, /* the labs' word for "a while" */
    KV_ANSWER_MS = 60000,  /* the longest wait for an answer that must come */
    KV_NO_LIMIT = 0,       /* maxraftstate: as shipped */
    KV_NO_SNAPSHOTS = -1,  /* maxraftstate: the log is never cut */
};

struct kv_options {
    uint32_t groups, replicas; /* gids 1, 2, ... */
    uint32_t clients, admins;  /* admins: 0 is 1 */
    uint32_t shards;           /* 0: KV_SHARDS */
    int64_t maxraftstate;
    bool unreliable;
    bool silence; /* in one seed of four, the lost is lost without a sign */
    bool other_controllers; /* a second set, which no group asks */
    const struct sim_speed *speeds;
};

/* What befell one key, for linear_check(). */
struct kv_history {
    struct linear_op *ops;
    uint32_t count, capacity;
};

/* A clerk that does one thing after the other. */
struct kv_client {
    struct skv_txn txn; /* first */
    struct kv *kv;
    struct node *node;
    struct skv_clerk *clerk;
    uint32_t number;
    bool busy;
    enum err rc; /* of the last operation */
    struct skv_item item;
    struct buf key, data; /* of the operation */
    struct buf value;     /* what the last get gave: text, ends with a zero */
    struct linear_op record;
    struct kv_history *history; /* of the operation; may be NULL */
    /* Called with each answer, and may begin the next operation. */
    void (*then)(struct kv_client *c);
    void *arg;
    uint32_t round, count; /* the row's */
};

/* Its changes are made one after the other, in the order they were begun. */
struct kv_admin {
    struct kv *kv;
    struct node *node;
    uint32_t waiting; /* for so many answers */
    bool busy;
    enum err rc;              /* the last */
    uint64_t number;          /* of the configuration that a change made */
    struct ctl_config config; /* that the last query gave */
    struct arena arena;       /* of it */
};

struct kv {
    struct lab_run *run;
    struct kv_options options;
    struct sim_world world;
    struct cluster cluster;
    struct kv_client *clients;
    struct kv_admin *admins;
    uint32_t other_first; /* the first of the other controllers */
    bool linked[SIM_NODES_MAX][SIM_NODES_MAX];
    uint64_t arrives_us[SIM_NODES_MAX][SIM_NODES_MAX]; /* the last message */
    bool unreliable;
    bool ending;
    uint64_t begun_us;
    uint64_t requests, replies, bytes, operations;
    uint64_t chunks;    /* of snapshots, sent */
    uint64_t refusals;  /* of requests, for a shard that is not served */
    struct arena arena; /* values in histories */
    struct kv_history *histories;
    uint32_t history_count;
};

/* Everything runs, and nothing has joined. */
struct kv *kv_begin(struct lab_run *run, const struct kv_options *options);
void kv_end(struct kv *kv);

/* The property that does not hold; the first one stands. */
void kv_fail(struct kv *kv, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
bool kv_failed(const struct kv *kv);
uint64_t kv_random(struct kv *kv, uint64_t below);
uint64_t kv_now_ms(const struct kv *kv);
void kv_sleep(struct kv *kv, uint64_t ms);
/* Until `*flag` is false; it is a failure if that takes longer. */
bool kv_await(struct kv *kv, const bool *flag, uint64_t limit_ms,
              const char *what);

/* ---- servers: `group` 0 is the controllers, `server` counts from 0 ---- */
struct node *kv_server(struct kv *kv, uint32_t group, uint32_t server);
void kv_shutdown(struct kv *kv, uint32_t group, uint32_t server);
void kv_start(struct kv *kv, uint32_t group, uint32_t server);
void kv_shutdown_group(struct kv *kv, uint32_t group);
void kv_start_group(struct kv *kv, uint32_t group);
/* Its leader's number; waits for one for about 5 s. */
uint32_t kv_leader(struct kv *kv, uint32_t group);
/* Servers of the group on the same side (bit: server) reach each other. */
void kv_partition(struct kv *kv, uint32_t group, uint32_t side);
void kv_connect_all(struct kv *kv);
/* Of the group, it reaches these servers alone. */
void kv_client_reach(struct kv_client *c, uint32_t group, uint32_t servers);

/* ---- sizes (README.md) ---- */
size_t kv_log_size(const struct node *n);
size_t kv_snapshot_size(const struct node *n); /* what a checkpoint stored */
size_t kv_stream_size(const struct node *n);   /* the same as a peer gets it */
/* The labs' checklogs(): each log <= 8 x maxraftstate; or no snapshots. */
void kv_check_logs(struct kv *kv);

/* ---- clients: key "k..." is in shard k % shards, as in the labs ---- */
uint32_t kv_shard(const struct kv *kv, const char *key);
void kv_op_begin(struct kv_client *c, enum linear_kind kind, const char *key,
                 const char *value);
bool kv_op_await(struct kv_client *c);
void kv_put(struct kv_client *c, const char *key, const char *value);
void kv_append(struct kv_client *c, const char *key, const char *value);
const char *kv_get(struct kv_client *c, const char *key); /* missing: "" */
void kv_check(struct kv_client *c, const char *key, const char *value);
const char *kv_value(const struct kv_client *c);
/* Own histories from now on: one for each of `count` keys. */
void kv_record(struct kv *kv, uint32_t count);
void kv_check_histories(struct kv *kv);
/* Letters, `size` of them. */
void kv_random_text(struct kv *kv, char *to, size_t size);

/* ---- administrators ---- */
void kv_change_begin(struct kv_admin *a, enum ctl_change_kind kind,
                     const uint32_t *gids, uint32_t count, uint32_t shard);
void kv_query_begin(struct kv_admin *a, uint64_t number);
bool kv_admin_await(struct kv_admin *a);
/* By the first administrator, waiting; what is refused is a failure. */
void kv_join(struct kv *kv, uint32_t gid);
void kv_leave(struct kv *kv, uint32_t gid);
void kv_joins(struct kv *kv, const uint32_t *gids, uint32_t count);
void kv_leaves(struct kv *kv, const uint32_t *gids, uint32_t count);
void kv_move(struct kv *kv, uint32_t shard, uint32_t gid);
/* Stands until the next one. */
const struct ctl_config *kv_query(struct kv *kv, uint64_t number);

#endif
