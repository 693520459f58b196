/* The commands in a group's log, and what migration sends between groups
 * (docs/migration.md). A command is its kind in one byte, then its body:
 *
 *   REQUEST    u64 stamp_us, the leader's wall clock; then the client's encoded
 *              skv_request as it came. Answered by an encoded skv_reply
 *   the others the message of the same name. Answered by skv_outcome */
#ifndef SHARDKV_COMMAND_INT_H
#define SHARDKV_COMMAND_INT_H

#include "shardctrler/config.h"
#include "shardkv/cut.h"

/* Bytes of one batch, about. */
#define SKV_BATCH_SIZE_MAX (1u << 20)

enum skv_command_kind {
    SKV_COMMAND_REQUEST = 1,
    SKV_COMMAND_CONFIG = 2, /* the next configuration: ctl_config */
    /* INSTALL in logs of before: each reply that goes has a record. */
    SKV_COMMAND_INSTALL_TOLD = 3,
    SKV_COMMAND_SETTLED = 5, /* the old owner knows: skv_step */
    SKV_COMMAND_DROP = 6, /* the new owner has it: some of it goes: skv_step */
    SKV_COMMAND_EXPIRE = 7, /* idle sessions go */
    SKV_COMMAND_FREEZE = 8, /* the new owner has nearly all: skv_step */
    SKV_COMMAND_CUT = 9,    /* skv_cut; answered by skv_cut_reply */
    /* A batch of an arriving shard; its rows say which replies go. */
    SKV_COMMAND_INSTALL = 10,
};

/* How far a shard on its way has come: first its keys in order, then what
 * changed meanwhile. It goes on at `offset` of the value of the first key >=
 * `key`; with `changes`, `key` is that of a change (track.c). */
#define SKV_CURSOR_FIELDS(F)                                                   \
    F(U64, batches) /* installed */                                            \
    F(U8, changes)                                                             \
    F(BYTES, key)                                                              \
    F(U64, offset)                                                             \
    F(U64, keys)  /* copied, without changes: for people */                    \
    F(U64, bytes) /* likewise */
MSG_STRUCT(skv_cursor, SKV_CURSOR_FIELDS);

/* Refused unless it is batch number cursor.batches. With `last`, the shard is
 * here and served from then on. */
#define SKV_INSTALL_FIELDS(F)                                                  \
    F(U16, shard)                                                              \
    F(U64, number)                                                             \
    F(U8, last)                                                                \
    F(SUB, skv_cursor, cursor) /* behind this batch */                         \
    F(LIST, skv_record, records, SKV_RECORDS_MAX)
MSG_STRUCT(skv_install, SKV_INSTALL_FIELDS);

/* A step in the life of a shard, named by it and by the configuration that
 * moved it. */
#define SKV_STEP_FIELDS(F) F(U16, shard) F(U64, number)
MSG_STRUCT(skv_step, SKV_STEP_FIELDS);

/* Looks at a bounded number of sessions of the shard, above `after`. */
#define SKV_EXPIRE_FIELDS(F) F(U64, stamp_us) F(U16, shard) F(U64, after)
MSG_STRUCT(skv_expire, SKV_EXPIRE_FIELDS);

/* `more`: the same command again finds more to do (EXPIRE: from `next`). */
#define SKV_OUTCOME_FIELDS(F) F(U32, rc) F(U8, more) F(U64, next)
MSG_STRUCT(skv_outcome, SKV_OUTCOME_FIELDS);

/* ---- between groups ---- */

/* PULL: the next batch from a shard that is leaving. ERR_BUSY: the source has
 * not come to that configuration yet. */
#define SKV_PULL_FIELDS(F)                                                     \
    F(U16, shard) F(U64, number) F(SUB, skv_cursor, cursor)
MSG_STRUCT(skv_pull, SKV_PULL_FIELDS);
enum skv_end {
    SKV_END_MORE = 0, /* there is more to pull */
    SKV_END_NOW = 1,  /* that is all for now, but the shard is in use */
    SKV_END_LAST = 2, /* that is all */
};
#define SKV_PULLED_FIELDS(F)                                                   \
    F(U8, end)                                                                 \
    F(SUB, skv_cursor, cursor) /* behind this batch; its `batches` as asked */ \
    F(LIST, skv_record, records, SKV_RECORDS_MAX)                              \
    F(U8, busy) /* 1: the source has clients now */
MSG_STRUCT(skv_pulled, SKV_PULLED_FIELDS);
/* COUNT: how much there is from `key` on, of a bounded number of keys. */
#define SKV_COUNT_FIELDS(F) F(U16, shard) F(U64, number) F(BYTES, key)
MSG_STRUCT(skv_count, SKV_COUNT_FIELDS);
#define SKV_COUNTED_FIELDS(F)                                                  \
    F(U64, keys) F(U64, bytes) F(BYTES, next_key) /* empty: that was all */
MSG_STRUCT(skv_counted, SKV_COUNTED_FIELDS);
/* SETTLE, FREEZE: skv_step -> skv_outcome. */

/* ---- making them: one reference ---- */

/* Takes a request with room before it, and fills that. */
#define SKV_COMMAND_ROOM 9u
struct bytes *skv_command_request(uint64_t stamp_us, struct bytes *request);
struct bytes *skv_command_config(const struct ctl_config *config);
struct bytes *skv_command_install(const struct skv_install *install);
struct bytes *skv_command_step(enum skv_command_kind kind, uint16_t shard,
                               uint64_t number);
struct bytes *skv_command_cut(const struct skv_cut *cut);
struct bytes *skv_command_expire(uint64_t stamp_us, uint16_t shard,
                                 uint64_t after);

#endif
