/* Controllers, groups, clerks and administrators as the labs test them: the
 * servers and clerks that ship, under the labs' network, shutdowns and
 * questions. Two harnesses stand behind it: kv_sim.c on virtual time,
 * tests/real/kv.c on processes.
 *
 * A row's function calls these one after the other, as a lab's test does; the
 * world moves on only inside them. When a property does not hold the run has
 * failed: all calls then return at once, with a harmless value.
 *
 * How maxraftstate and the snapshot's size are meant here: README.md. */
#ifndef TESTS_LABS_KV_HARNESS_H
#define TESTS_LABS_KV_HARNESS_H

#include "base/rng.h"
#include "shardctrler/client.h"
#include "shardkv/client.h"
#include "tests/labs/labs.h"
#include "tests/linear/linear.h"

enum {
    KV_SHARDS = 10,
    KV_CONTROLLERS = 3,
    KV_REPLICAS_MAX = 7,
    KV_ELECTION_MS = 1000, /* the labs' word for "a while" */
    KV_ANSWER_MS = 60000,  /* the longest wait for an answer that must come */
    KV_NO_LIMIT = 0,       /* maxraftstate: as shipped */
    KV_NO_SNAPSHOTS = -1,  /* maxraftstate: the log is never cut */
    KV_TEST_SECONDS_MAX = 120,
};

struct kv_options {
    uint32_t groups, replicas; /* gids 1, 2, ... */
    uint32_t clients, admins;  /* admins: 0 is 1 */
    uint32_t shards;           /* 0: KV_SHARDS */
    int64_t maxraftstate;
    bool unreliable;
    bool silence; /* in one seed of four, the lost is lost without a sign */
    bool other_controllers; /* a second set, which no group asks */
    bool slow_disks;        /* if the harness has disks of its own */
    uint32_t seconds_max;   /* of the row; 0: KV_TEST_SECONDS_MAX */
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
    struct skv_clerk *clerk;
    struct kv_user *user; /* the harness's own */
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
    struct ctl_client *ctl;
    struct kv_user *user; /* the harness's own */
    uint32_t waiting;     /* for so many answers */
    bool busy;
    enum err rc;              /* the last */
    uint64_t number;          /* of the configuration that a change made */
    struct ctl_config config; /* that the last query gave */
    struct arena arena;       /* of it */
};

struct kv_world; /* the harness's own */

struct kv {
    struct lab_run *run;
    struct kv_options options;
    struct kv_world *world;
    struct rng *rng;
    struct kv_client *clients;
    struct kv_admin *admins;
    bool ending;
    uint64_t begun_us;
    uint64_t operations;
    struct arena arena; /* values in histories */
    struct kv_history *histories;
    uint32_t history_count;
};

/* ---- what a harness does ---- */

/* Everything runs, and nothing has joined. */
struct kv *kv_begin(struct lab_run *run, const struct kv_options *options);
void kv_end(struct kv *kv);

/* The property that does not hold; the first one stands. */
void kv_fail(struct kv *kv, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
bool kv_failed(const struct kv *kv);
uint64_t kv_now_us(const struct kv *kv);
void kv_sleep(struct kv *kv, uint64_t ms);
/* Until `*flag` is false; it is a failure if that takes longer. */
bool kv_await(struct kv *kv, const bool *flag, uint64_t limit_ms,
              const char *what);
void kv_wake(struct kv *kv); /* such a flag may have become false */
/* Calls `fn` once, beside the row. */
void kv_after(struct kv *kv, uint64_t ms, void (*fn)(void *arg), void *arg);
/* A line for whoever looks for the cause of a failure. */
void kv_note(struct kv *kv, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Servers: `group` 0 is the controllers, `server` counts from 0. */
void kv_shutdown(struct kv *kv, uint32_t group, uint32_t server);
void kv_start(struct kv *kv, uint32_t group, uint32_t server);
/* The number of the one that leads now; -1: none. */
int kv_leader_now(struct kv *kv, uint32_t group);
/* Servers of the group on the same side (bit: server) reach each other. */
void kv_partition(struct kv *kv, uint32_t group, uint32_t side);
void kv_connect_all(struct kv *kv);
/* What the net does from now on; it begins as the options say. */
void kv_network(struct kv *kv, bool unreliable);
/* Of the group, it reaches these servers alone. */
void kv_client_reach(struct kv_client *c, uint32_t group, uint32_t servers);
/* Anew, with the other controllers. */
void kv_client_deceive(struct kv_client *c);
void kv_admin_redirect(struct kv_admin *a);
/* Where a server of a group that runs is. */
void kv_address(const struct kv *kv, uint32_t group, uint32_t server,
                char address[NET_ADDRESS_SIZE_MAX]);

/* README.md has what they are. Of one that is down: no log. */
struct kv_sizes {
    size_t log;
    size_t snapshot; /* what the last checkpoint stored; 0: there is none */
    size_t stream;   /* the same as a peer gets it */
};
void kv_sizes(struct kv *kv, uint32_t group, uint32_t server,
              struct kv_sizes *sizes);

struct kv_counts {
    uint64_t requests, replies, bytes;
    uint64_t chunks;   /* of snapshots, sent */
    uint64_t refusals; /* of clients' requests, for a shard not served */
};
void kv_count(struct kv *kv, struct kv_counts *counts);

/* ---- what is the same for both (kv_ask.c) ---- */

uint64_t kv_random(struct kv *kv, uint64_t below);
uint64_t kv_now_ms(const struct kv *kv); /* since the row began */
uint32_t kv_group_size(const struct kv *kv, uint32_t group);
void kv_shutdown_group(struct kv *kv, uint32_t group);
void kv_start_group(struct kv *kv, uint32_t group);
/* Its leader's number; waits for one for about 5 s. */
uint32_t kv_leader(struct kv *kv, uint32_t group);
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

/* ---- for the harnesses (kv_ask.c) ---- */

struct kv *kv_new(struct lab_run *run, const struct kv_options *options);
void kv_free(struct kv *kv);
void kv_report(struct kv *kv); /* the labs' line */
/* An answer to a clerk: a refusal for the shard? */
bool kv_is_refusal(struct slice body);

/* How a server of a group runs: what of rsm_config maxraftstate means. */
struct kv_tuning {
    size_t checkpoint_size_max, wal_segment_size, log_keep_size, log_hold_size;
    uint32_t checkpoint_ms_max;
};
struct kv_tuning kv_tuning(const struct kv *kv);

#endif
