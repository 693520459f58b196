/* A backup as a stream of bytes (docs/backup.md, "Format"): blocks that are
 * compressed and checked one by one, so that damage is found where it is.
 *
 *     HEAD, then for each shard in order: DATA..., SHARD; then END
 *
 * Pure: bytes in, bytes out; what carries them is the caller's. */
#ifndef SHARDKV_ARCHIVE_H
#define SHARDKV_ARCHIVE_H

#include "shardkv/cut.h"

#define SKV_ARCHIVE_HEAD_FIELDS(F)                                             \
    F(U64, id)      /* of the cut */                                           \
    F(U64, wall_us) /* when, by the administrator's clock */                   \
    F(U32, shard_count)                                                        \
    F(BYTES, config) /* ctl_config of that moment: for people */
MSG_STRUCT(skv_archive_head, SKV_ARCHIVE_HEAD_FIELDS);

/* Records of one shard, in the order of their keys and offsets. */
#define SKV_ARCHIVE_DATA_FIELDS(F)                                             \
    F(U16, shard) F(LIST, skv_record, records, SKV_RECORDS_MAX)
MSG_STRUCT(skv_archive_data, SKV_ARCHIVE_DATA_FIELDS);

/* A shard has ended. `crc`: CRC-32C of its DATA, uncompressed. */
#define SKV_ARCHIVE_SHARD_FIELDS(F)                                            \
    F(U16, shard) F(U64, keys) F(U64, bytes) F(U32, crc)
MSG_STRUCT(skv_archive_shard, SKV_ARCHIVE_SHARD_FIELDS);

/* Everything has. `crc`: of all blocks' plain bytes before this one. */
#define SKV_ARCHIVE_END_FIELDS(F)                                              \
    F(U32, shards) F(U64, keys) F(U64, bytes) F(U32, crc)
MSG_STRUCT(skv_archive_end, SKV_ARCHIVE_END_FIELDS);

enum skv_archive_type {
    SKV_ARCHIVE_HEAD = 1,
    SKV_ARCHIVE_DATA = 2,
    SKV_ARCHIVE_SHARD = 3,
    SKV_ARCHIVE_END = 4,
};

/* Zero-initialise with write and arg. The first failure stays in rc, and
 * everything after it does nothing. Free with skv_archive_writer_fini(). */
struct skv_archive_writer {
    enum err (*write)(void *arg, struct slice bytes);
    void *arg;
    enum err rc;
    uint32_t sequence;
    uint32_t crc, shard_crc;
    uint64_t keys, bytes; /* of all */
    uint64_t shard_keys, shard_bytes;
    uint32_t shards;
    struct buf plain, block;
};
void skv_archive_begin(struct skv_archive_writer *w,
                       const struct skv_archive_head *head);
void skv_archive_add(struct skv_archive_writer *w,
                     const struct skv_archive_data *data);
void skv_archive_end_shard(struct skv_archive_writer *w, uint16_t shard);
MUST_USE enum err skv_archive_end(struct skv_archive_writer *w);
void skv_archive_writer_fini(struct skv_archive_writer *w);

/* Zero-initialise with read (up to `size_max` bytes; 0 at the end) and arg. */
struct skv_archive_reader {
    enum err (*read)(void *arg, void *to, size_t size_max, size_t *size);
    void *arg;
    uint64_t offset;   /* of what is read next */
    uint64_t block;    /* of the block at hand */
    char problem[160]; /* after ERR_CORRUPT, ERR_VERSION */
    uint32_t sequence;
    uint32_t crc, shard_crc;
    uint64_t keys, bytes, shard_keys, shard_bytes;
    uint32_t shards; /* that have ended */
    uint32_t shard_count;
    struct buf plain, packed, last_key;
    uint64_t length, span_end; /* of the last key's value */
    struct arena arena;
};
struct skv_archive_item {
    enum skv_archive_type type;
    struct skv_archive_head head;
    struct skv_archive_data data;
    struct skv_archive_shard shard;
    struct skv_archive_end end;
};
/* The next block, borrowed until the next call. Everything that can be checked
 * is: the order, the keys, the totals, and that nothing follows END. */
MUST_USE enum err skv_archive_next(struct skv_archive_reader *r,
                                   struct skv_archive_item *out);
void skv_archive_reader_fini(struct skv_archive_reader *r);

#endif
