#include "shardkv/command_int.h"

#include "base/check.h"

MSG_CODEC(skv_record, SKV_RECORD_FIELDS)
MSG_CODEC(skv_cursor, SKV_CURSOR_FIELDS)
MSG_CODEC(skv_install, SKV_INSTALL_FIELDS)
MSG_CODEC(skv_step, SKV_STEP_FIELDS)
MSG_CODEC(skv_expire, SKV_EXPIRE_FIELDS)
MSG_CODEC(skv_outcome, SKV_OUTCOME_FIELDS)
MSG_CODEC(skv_pull, SKV_PULL_FIELDS)
MSG_CODEC(skv_pulled, SKV_PULLED_FIELDS)
MSG_CODEC(skv_cut, SKV_CUT_FIELDS)
MSG_CODEC(skv_cut_reply, SKV_CUT_REPLY_FIELDS)
MSG_CODEC(skv_look, SKV_LOOK_FIELDS)
MSG_CODEC(skv_seen, SKV_SEEN_FIELDS)
MSG_CODEC(skv_count, SKV_COUNT_FIELDS)
MSG_CODEC(skv_counted, SKV_COUNTED_FIELDS)

struct bytes *skv_command_request(uint64_t stamp_us, struct bytes *request)
{
    CHECK(request->size >= SKV_COMMAND_ROOM);
    request->data[0] = SKV_COMMAND_REQUEST;
    set_u64(request->data + 1, stamp_us);
    return request;
}

/* Takes the buffer. */
static struct bytes *finish(struct buf *b)
{
    struct bytes *bytes = bytes_copy(buf_slice(b));
    buf_free(b);
    return bytes;
}

struct bytes *skv_command_config(const struct ctl_config *config)
{
    struct buf b = {0};
    enc_u8(&b, SKV_COMMAND_CONFIG);
    ctl_config_encode(&b, config);
    return finish(&b);
}

struct bytes *skv_command_install(const struct skv_install *install)
{
    struct buf b = {0};
    enc_u8(&b, SKV_COMMAND_INSTALL);
    skv_install_encode(&b, install);
    return finish(&b);
}

struct bytes *skv_command_step(enum skv_command_kind kind, uint16_t shard,
                               uint64_t number)
{
    struct buf b = {0};
    struct skv_step step = {.shard = shard, .number = number};
    enc_u8(&b, (uint8_t)kind);
    skv_step_encode(&b, &step);
    return finish(&b);
}

struct bytes *skv_command_expire(uint64_t stamp_us, uint16_t shard,
                                 uint64_t after)
{
    struct buf b = {0};
    struct skv_expire expire = {
        .stamp_us = stamp_us, .shard = shard, .after = after};
    enc_u8(&b, SKV_COMMAND_EXPIRE);
    skv_expire_encode(&b, &expire);
    return finish(&b);
}

struct bytes *skv_command_cut(const struct skv_cut *cut)
{
    struct buf b = {0};
    enc_u8(&b, SKV_COMMAND_CUT);
    skv_cut_encode(&b, cut);
    return finish(&b);
}
