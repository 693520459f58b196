/* One consistent cut through all shards of a cluster, and reading it
 * (docs/backup.md). For backups and for comparing replicas; admins only.
 *
 * A cut is taken in two rounds over the groups. HOLD: from this entry of its
 * log on, a group begins no transaction; those that were prepared are finished.
 * When every group holds and none has a prepared transaction left, no
 * transaction is half done anywhere. VIEW: each replica that applies this entry
 * opens an exact view of its store, and the group goes on. LOOK opens a view
 * without a hold: of one group, at one index of its log.
 *
 * A view lives as long as somebody reads it, or says every now and then that he
 * is going to; it dies with its replica, and others have the same. */
#ifndef SHARDKV_CUT_H
#define SHARDKV_CUT_H

#include "base/env.h"
#include "shardctrler/client.h"
#include "shardkv/request.h"

#define SKV_RECORDS_MAX 65536u

/* A key as it is at its source: gone; or `span` bytes from `offset` of a value
 * of `length` bytes, namely `data` and then zeros. Values of up to
 * SKV_INLINE_SIZE_MAX bytes come whole; of a longer one in a view, record after
 * record from offset 0 on. */
#define SKV_RECORD_FIELDS(F)                                                   \
    F(BYTES, key)                                                              \
    F(U8, gone)                                                                \
    F(U64, offset)                                                             \
    F(U64, span)                                                               \
    F(U64, length)                                                             \
    F(BYTES, data)
MSG_STRUCT(skv_record, SKV_RECORD_FIELDS);

enum skv_cut_step {
    SKV_CUT_HOLD = 1,
    SKV_CUT_VIEW = 2,
    SKV_CUT_RELEASE = 3, /* goes on without a view */
    SKV_CUT_LOOK = 4,
};

/* CUT, to a group's leader. All steps may come twice, late, and in any order:
 * a cut has a number above that of every cut before it. */
#define SKV_CUT_FIELDS(F) F(U64, id) F(U8, step)
MSG_STRUCT(skv_cut, SKV_CUT_FIELDS);
/* rc: ERR_BUSY: not now (another cut holds the group; a transaction is
 * prepared). ERR_EXPIRED: the cut is over; `id` is the newest.
 */
#define SKV_CUT_REPLY_FIELDS(F)                                                \
    F(U32, rc)                                                                 \
    F(U64, id)                                                                 \
    F(U64, config_number)                                                      \
    F(U64, index)    /* the view's */                                          \
    F(U32, prepared) /* transactions not yet finished */                       \
    F(LIST, skv_shard_ref, shards, CTL_SHARDS_MAX) /* that it serves */
MSG_STRUCT(skv_cut_reply, SKV_CUT_REPLY_FIELDS);

enum skv_look_what {
    SKV_LOOK_READ = 1,
    SKV_LOOK_SUM = 2,   /* as READ, without the records */
    SKV_LOOK_KEEP = 3,  /* the view is still needed */
    SKV_LOOK_CLOSE = 4, /* not any more */
};

/* VIEW, to any replica: the next batch of a shard, from `offset` of the value
 * of the first key >= `key`. ERR_NOTFOUND: it has no such view. */
#define SKV_LOOK_FIELDS(F)                                                     \
    F(U64, id) F(U8, what) F(U16, shard) F(BYTES, key) F(U64, offset)
MSG_STRUCT(skv_look, SKV_LOOK_FIELDS);
/* `crc`: CRC-32C of the encoded skv_pulled of this batch; the same on every
 * replica that has the same. */
#define SKV_SEEN_FIELDS(F)                                                     \
    F(U64, index)                                                              \
    F(U32, crc)                                                                \
    F(U8, last)                                                                \
    F(BYTES, next_key)                                                         \
    F(U64, next_offset)                                                        \
    F(LIST, skv_record, records, SKV_RECORDS_MAX)
MSG_STRUCT(skv_seen, SKV_SEEN_FIELDS);

#define SKV_METHOD_CUT  0x38 /* admin: skv_cut -> skv_cut_reply */
#define SKV_METHOD_VIEW 0x39 /* admin: skv_look -> skv_seen */

/* ---- the administrator's side (cutter.c): on a loop ---- */

struct skv_cut_server {
    uint64_t id;
    char address[NET_ADDRESS_SIZE_MAX];
};
struct skv_cut_group {
    ctl_gid gid;
    uint64_t index; /* of its view */
    bool absent;    /* it has none: its leader did not answer in time */
    uint32_t server_count;
    struct skv_cut_server servers[CTL_SERVERS_MAX];
};

struct skv_cutter;
/* All three outlive it. */
struct skv_cutter *skv_cutter_new(struct env *env, struct net *net,
                                  struct ctl_client *ctl);
/* Nothing of it is called any more. Views stay until their leases end: see
 * skv_cutter_close(). */
void skv_cutter_free(struct skv_cutter *c);

/* ERR_OK, or why there is no cut: skv_cutter_problem() has words. */
typedef void skv_cutter_fn(void *arg, enum err rc);
/* `hold`: one cut through all groups; else a view of each that answers, at an
 * index of its own. Tries again until the timeout. */
void skv_cutter_take(struct skv_cutter *c, bool hold, uint32_t timeout_ms,
                     skv_cutter_fn *done, void *arg);
const char *skv_cutter_problem(const struct skv_cutter *c);

/* Of the last cut that was taken. */
uint64_t skv_cutter_id(const struct skv_cutter *c);
const struct ctl_config *skv_cutter_config(const struct skv_cutter *c);
const struct skv_cut_group *skv_cutter_groups(const struct skv_cutter *c,
                                              uint32_t *count);
/* The position in the groups of who serves the shard. */
uint32_t skv_cutter_owner(const struct skv_cutter *c, uint32_t shard);

#define SKV_SERVER_ANY UINT32_MAX
/* `seen` is borrowed for the call, and NULL unless rc is ERR_OK. */
typedef void skv_cutter_look_fn(void *arg, enum err rc,
                                const struct skv_seen *seen);
/* Asks one server of a group, or each until one answers. look->id is filled in;
 * look->key is copied. */
void skv_cutter_look(struct skv_cutter *c, uint32_t group, uint32_t server,
                     const struct skv_look *look, uint32_t timeout_ms,
                     skv_cutter_look_fn *done, void *arg);
/* The views are not needed any more: says so, and waits for no answer. */
void skv_cutter_close(struct skv_cutter *c);

#endif
