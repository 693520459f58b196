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

/* Bytes of one batch: that it takes, and that are read to find the data of a
 * sparse value. */
#define SKV_BATCH_SIZE_MAX (1u << 20)
#define SKV_BATCH_READ_MAX (8u << 20)

enum skv_command_kind {
    SKV_COMMAND_REQUEST = 1,
    SKV_COMMAND_CONFIG = 2,    /* the next configuration: ctl_config */
    SKV_COMMAND_INSTALL = 3,   /* a batch of an arriving shard */
    SKV_COMMAND_INSTALLED = 4, /* that was all of it: skv_step */
    SKV_COMMAND_SETTLED = 5,   /* the old owner knows: skv_step */
    SKV_COMMAND_DROP = 6, /* the new owner has it: some of it goes: skv_step */
    SKV_COMMAND_EXPIRE = 7, /* idle sessions go */
    SKV_COMMAND_CUT = 8,    /* skv_cut; answered by skv_cut_reply */
};

#define SKV_INSTALL_FIELDS(F)                                                  \
    F(U16, shard) F(U64, number) F(LIST, skv_record, records, SKV_RECORDS_MAX)
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

/* PULL: the next batch, from `offset` of the value of the first key >= `key`.
 * ERR_BUSY: the source has not come to that configuration yet. */
#define SKV_PULL_FIELDS(F)                                                     \
    F(U16, shard) F(U64, number) F(BYTES, key) F(U64, offset)
MSG_STRUCT(skv_pull, SKV_PULL_FIELDS);
#define SKV_PULLED_FIELDS(F)                                                   \
    F(U8, last)                                                                \
    F(BYTES, next_key)                                                         \
    F(U64, next_offset)                                                        \
    F(LIST, skv_record, records, SKV_RECORDS_MAX)
MSG_STRUCT(skv_pulled, SKV_PULLED_FIELDS);
/* SETTLE: skv_step -> skv_outcome. */

/* ---- making them: one reference ---- */

struct bytes *skv_command_request(uint64_t stamp_us, struct slice request);
struct bytes *skv_command_config(const struct ctl_config *config);
struct bytes *skv_command_install(const struct skv_install *install);
struct bytes *skv_command_step(enum skv_command_kind kind, uint16_t shard,
                               uint64_t number);
struct bytes *skv_command_cut(const struct skv_cut *cut);
struct bytes *skv_command_expire(uint64_t stamp_us, uint16_t shard,
                                 uint64_t after);

#endif
