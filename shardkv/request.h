/* A minitransaction (Sinfonia, SOSP'07): compare items, read items and write
 * items over keys of one shard, executed atomically as one log entry, or
 * refused with the compare that failed. This file is the client's side and the
 * wire's: what may be asked and how it is answered.
 *
 * Keys are bytes, and their first eight name an object: shard (16 bits), then a
 * number in it (48 bits), big-endian. So all keys of an object, and all of a
 * shard, sort together:
 *
 *   object 0                the shard's own: state, sessions, prepared
 *                           transactions; no client may name it
 *   object 1 .. 2^48-2      inodes (fs/keys.h)
 *   object 2^48-1           `flotilla kv` keys: the key follows
 *
 * A value is a mutable byte string; reading past its end gives fewer bytes, and
 * a write past its end fills the hole with zeros. */
#ifndef SHARDKV_REQUEST_H
#define SHARDKV_REQUEST_H

#include <stdbool.h>

#include "base/msg.h"

#define SKV_KEY_SIZE_MAX 400u
/* All data of one request; all bytes that its reads may answer, too. */
#define SKV_DATA_SIZE_MAX    (2u << 20)
#define SKV_ITEMS_MAX        256u
#define SKV_PARTICIPANTS_MAX 64u
#define SKV_VALUE_SIZE_MAX   (1ull << 40)
#define SKV_OBJECT_KV        0xffffffffffffull
#define SKV_SHARD_SIZE       2u /* bytes of the shard in a key */
#define SKV_OBJECT_SIZE      8u

enum skv_kind {
    /* Compare: the item's rc is ERR_CONFLICT when it does not hold, and then
     * nothing of the transaction happens. */
    SKV_CMP_EXISTS = 1,
    SKV_CMP_ABSENT = 2,
    SKV_CMP_BYTES = 3,  /* the value at `offset` equals `data` */
    SKV_CMP_LENGTH = 4, /* the value's length is `number` */
    SKV_CMP_EMPTY = 5,  /* no key begins with `key` */
    /* Read: what was before the write items. ERR_NOTFOUND in the item's rc
     * fails nothing else. In a transaction that also writes, a read may only
     * name values of at most SKV_INLINE_SIZE_MAX bytes (ERR_TOOBIG). */
    SKV_GET = 16,    /* `number` bytes from `offset`; the value's whole length
                        is in the result's `number` */
    SKV_LENGTH = 17, /* result's number */
    SKV_SCAN = 18,   /* keys that begin with `key` and are above key+`data`, in
                        order, at most `number` of them and `offset` bytes (0:
                        1 MiB): data = encoded skv_scan; result's number = 1
                        when there are more */
    /* Write. All of a transaction happen, or none. */
    SKV_PUT = 32,       /* the whole value becomes `data` */
    SKV_APPEND = 33,    /* result's number: the offset where `data` landed */
    SKV_PUT_RANGE = 34, /* `data` at `offset` */
    SKV_TRUNCATE = 35,  /* the length becomes `number`; grows with zeros */
    SKV_DELETE = 36,    /* a missing key is fine */
    SKV_DELETE_PREFIX = 37, /* every key that begins with `key` (8 bytes or
                               more) */
    SKV_ADD = 38,   /* 64-bit little-endian at `offset` += `number` (two's
                       complement); result's number: the sum. The value
                       grows with zeros. */
    SKV_PUNCH = 39, /* `number` bytes from `offset` become zeros; the length
                       stays */
};

/* With `via`, the item is indirect: the key is the first eight bytes of the
 * value of `via`, followed by `key`; rc ERR_NOTFOUND when via is missing and
 * ERR_ELSEWHERE when the object is in another shard (for compares and writes
 * the transaction fails with that). */
#define SKV_ITEM_FIELDS(F)                                                     \
    F(U8, kind)                                                                \
    F(BYTES, via)                                                              \
    F(BYTES, key)                                                              \
    F(U64, offset)                                                             \
    F(U64, number)                                                             \
    F(BYTES, data)
MSG_STRUCT(skv_item, SKV_ITEM_FIELDS);

#define SKV_INLINE_SIZE_MAX 8000u

#define SKV_SCAN_ENTRY_FIELDS(F) F(BYTES, key) F(U64, length) F(BYTES, head)
/* head: the value's first 64 bytes at most; none of a large value */
MSG_STRUCT(skv_scan_entry, SKV_SCAN_ENTRY_FIELDS);
#define SKV_SCAN_FIELDS(F) F(LIST, skv_scan_entry, entries, 65536)
MSG_STRUCT(skv_scan, SKV_SCAN_FIELDS);

enum skv_request_flags {
    SKV_FLAG_OPEN = 1,  /* the session may be new to this shard: make it */
    SKV_FLAG_RETRY = 2, /* for statistics only */
};

enum skv_phase {
    SKV_EXECUTE = 0, /* one shard: do it */
    /* Several shards: two-phase commit without a coordinator's log (Sinfonia,
     * section 4). (session, sequence) names the transaction in every shard.
     *
     * PREPARE executes the compares and reads, locks every key it names
     * (exclusive for writes, shared for the rest) and keeps the writes: the
     * vote, in the group's log. It never waits: ERR_LOCKED and ERR_CONFLICT are
     * votes against. COMMIT does the writes, ABORT drops them; both unlock, and
     * both may come twice.
     *
     * The transaction commits if every participant voted for it, and only then;
     * so only somebody who knows of a vote against may send ABORT. Whoever
     * trips over an old lock (ERR_LOCKED names the holder and the participants)
     * sends RESOLVE to every participant: a shard that has not voted for it
     * votes against it, for ever, by this (rc ERR_ABORTED); one that has says
     * ERR_OK. Then it sends COMMIT or ABORT to all. `first` is 0 in what others
     * than the session's own clerk send. */
    SKV_PREPARE = 1,
    SKV_COMMIT = 2,
    SKV_ABORT = 3,
    SKV_RESOLVE = 4,
};

#define SKV_SHARD_FIELDS(F) F(U16, shard)
MSG_STRUCT(skv_shard_ref, SKV_SHARD_FIELDS);

/* Exactly once (RIFL, SOSP'15): a clerk numbers its requests; `first` is the
 * lowest number still unanswered, and replies below it are forgotten. A
 * transaction over several shards uses one number in all of them. Read-only
 * requests have session 0. */
#define SKV_REQUEST_FIELDS(F)                                                  \
    F(U64, session)                                                            \
    F(U64, sequence)                                                           \
    F(U64, first)                                                              \
    F(U8, flags)                                                               \
    F(U8, phase)                                                               \
    F(U16, shard)                                                              \
    F(LIST, skv_shard_ref, participants, SKV_PARTICIPANTS_MAX) /* PREPARE */   \
    F(LIST, skv_item, items, SKV_ITEMS_MAX)
MSG_STRUCT(skv_request, SKV_REQUEST_FIELDS);

#define SKV_RESULT_FIELDS(F) F(U32, rc) F(U64, number) F(BYTES, data)
MSG_STRUCT(skv_result, SKV_RESULT_FIELDS);

/* rc of the whole: ERR_OK; ERR_CONFLICT (failed = the compare's position) and
 * others of the transaction itself, which are final; ERR_WRONGGROUP with the
 * configuration number seen and who serves the shard as far as is known there,
 * ERR_LOCKED with the holder, which the clerk handles. */
#define SKV_REPLY_FIELDS(F)                                                    \
    F(U32, rc)                                                                 \
    F(U32, failed)                                                             \
    F(U64, config_number)                                                      \
    F(U64, holder_session)                                                     \
    F(U64, holder_sequence)                                                    \
    F(LIST, skv_shard_ref, participants, SKV_PARTICIPANTS_MAX)                 \
    F(LIST, skv_result, results, SKV_ITEMS_MAX)                                \
    F(BYTES, owner) /* encoded ctl_group, or empty */
MSG_STRUCT(skv_reply, SKV_REPLY_FIELDS);

#define SKV_METHOD_READ   0x30 /* skv_request -> skv_reply; only reads */
#define SKV_METHOD_WRITE  0x31 /* skv_request -> skv_reply */
#define SKV_METHOD_STATUS 0x32 /* empty -> ctl_status */
#define SKV_METHOD_SETTLE 0x34 /* server: the new owner has a shard */
#define SKV_METHOD_LEADS  0x35 /* empty -> empty: lives and leads, at once */
#define SKV_METHOD_FREEZE                                                      \
    0x36                      /* server: the new owner has nearly all of it    \
                               */
#define SKV_METHOD_COUNT 0x37 /* server: skv_count -> skv_counted */
/* server: skv_pull -> skv_pulled. It was 0x33 for those who must be told of
 * each reply that goes: they get nothing, and wait for their next version. */
#define SKV_METHOD_PULL 0x3a

bool skv_kind_is_compare(uint8_t kind);
bool skv_kind_is_read(uint8_t kind);
bool skv_kind_is_write(uint8_t kind);

/* Sizes, kinds and that every key (and via) is of request.shard and names no
 * object 0; that what changes a shard has a session and a sequence; that a
 * PREPARE names each participant once, its own shard too. docs/keys.md lists
 * the limits. ERR_INVALID or ERR_TOOBIG. */
MUST_USE enum err skv_request_check(const struct skv_request *request);

/* ERR_TOOBIG when `size` bytes at `offset` reach over SKV_VALUE_SIZE_MAX. */
MUST_USE enum err skv_extent_check(uint64_t offset, uint64_t size);

/* The key of a `flotilla kv` name: hashed to one of `shard_count` shards. */
void skv_key_of_name(struct buf *key, struct slice name, uint32_t shard_count);

#endif
