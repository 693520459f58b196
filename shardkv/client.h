/* The clerk: runs minitransactions against whichever groups own their shards
 * now, exactly once, retrying with growing jittered pauses until the deadline.
 *
 * struct skv_clerk is asynchronous and lives on a loop (the simulator drives
 * it). struct skv_client wraps one with a thread and a loop of its own for
 * callers that block: the mount and the commands. */
#ifndef SHARDKV_CLIENT_H
#define SHARDKV_CLIENT_H

#include "base/env.h"
#include "shardctrler/client.h"
#include "shardkv/request.h"
#include "transport/net.h"

struct skv_clerk;
struct skv_clerk *skv_clerk_new(struct env *env, struct net *net,
                                const char (*controllers)[NET_ADDRESS_SIZE_MAX],
                                uint32_t count);
void skv_clerk_free(struct skv_clerk *c); /* waiting calls get ERR_CLOSED */

/* A transaction of items over any keys: in one shard it is one entry in one log
 * (or none, if it only reads); over several it is two-phase commit. The caller
 * embeds it and keeps it, the items and what they point to, alive until done().
 */
struct skv_txn {
    struct skv_item *items;
    uint32_t item_count;
    uint32_t timeout_ms;               /* 0: wait for ever */
    void (*done)(struct skv_txn *txn); /* on the loop; never from inside */
    void *arg;                         /* for whoever set `done` */
    /* Then: ERR_OK, ERR_CONFLICT (with `failed`: the compare's position), or
     * another final error. results[i] answers items[i]; its data is in memory
     * of `arena`, which the caller frees. */
    enum err rc;
    uint32_t failed;
    struct skv_stuck {
        uint16_t shard;
        ctl_gid gid; /* who serves it; 0: nobody, as far as we know */
        bool locked; /* by another transaction that has not ended */
    } stuck;         /* ERR_TIMEDOUT: what did not answer */
    struct skv_result *results;
    struct arena arena;
    void *impl;         /* the clerk's */
    uint32_t cancelled; /* skv_client_cancel() was called: stays */
};
/* One line for people about an rc that is neither ERR_OK nor ERR_CONFLICT: what
 * did not answer, and whether it may have been done. */
void skv_txn_explain(const struct skv_txn *txn, char *words, size_t size);
/* The rest of a txn is zero to begin with. */
void skv_clerk_run(struct skv_clerk *c, struct skv_txn *txn);
/* Gives up: done() is called with ERR_INTERRUPTED; what was sent may still be
 * executed, once. */
void skv_clerk_cancel(struct skv_clerk *c, struct skv_txn *txn);

/* Number of shards of the cluster; 0 until the first configuration came. */
uint32_t skv_clerk_shard_count(const struct skv_clerk *c);

/* ---- blocking ---- */

struct skv_client_config {
    const char *certs_dir;
    const char *identity; /* "client" or "admin": DIR/NAME.crt */
    char controllers[16][NET_ADDRESS_SIZE_MAX];
    uint32_t controller_count;
    bool at_once; /* wait for no configuration: to look at what is broken */
};

struct skv_client;
/* Connects; waits up to `timeout_ms` (0: for ever) for a configuration, unless
 * `at_once`. On failure `problem` says what was tried. */
MUST_USE enum err skv_client_new(const struct skv_client_config *config,
                                 uint32_t timeout_ms, struct skv_client **out,
                                 char *problem, size_t problem_size);
/* Calls that wait in other threads get ERR_CLOSED; they must have returned
 * before this is called again or the memory they use goes. */
void skv_client_free(struct skv_client *c);

/* Runs and waits; any thread, many at once. `txn->done` and `arg` are the
 * client's. Gives txn->rc. */
MUST_USE enum err skv_client_run(struct skv_client *c, struct skv_txn *txn);
/* From any thread, also before or after the run: makes it return
 * ERR_INTERRUPTED soon. */
void skv_client_cancel(struct skv_client *c, struct skv_txn *txn);
uint32_t skv_client_shard_count(const struct skv_client *c);

/* For commands: run `fn(arg, env, net, ctl)` on the client's loop and wait for
 * it to call skv_client_finish(). */
struct skv_client_task {
    void (*fn)(struct skv_client_task *task, struct env *env, struct net *net,
               struct ctl_client *ctl);
    void *impl;
};
/* Returns at once, without fn() having run, when the client is closing. */
void skv_client_task_run(struct skv_client *c, struct skv_client_task *task);
void skv_client_task_finish(struct skv_client_task *task); /* on the loop */

#endif
