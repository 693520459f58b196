/* Blocks of a backup. Each begins with a head that zstd takes for a skippable
 * frame, so that `zstd -dc` shows the plain bytes of all:
 *
 *   offset size field
 *        0    4 0x184d2a5f        4    4 28: what of the head follows
 *        8    4 magic "FLBK"     12    2 version   14    2 type
 *       16    4 sequence, from 0
 *       20    4 plain size       24    4 packed size
 *       28    4 CRC-32C of the plain bytes
 *       32    4 CRC-32C of all before it and of the packed bytes
 *       36      packed bytes: one zstd frame
 *
 * Invariants of a good backup:
 *  1. Block n has sequence n; the first is HEAD, the last END.
 *  2. Shards come in order, each is ended once, with what it had.
 *  3. In a shard, keys rise; a key's records follow each other and are all of
 *     its value, from offset 0 to its length. No key is of a shard's own
 *     object. */
#include "shardkv/archive.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "raft/storage/pack.h"
#include "shardkv/fsm_int.h"

MSG_CODEC(skv_archive_head, SKV_ARCHIVE_HEAD_FIELDS)
MSG_CODEC(skv_archive_data, SKV_ARCHIVE_DATA_FIELDS)
MSG_CODEC(skv_archive_shard, SKV_ARCHIVE_SHARD_FIELDS)
MSG_CODEC(skv_archive_end, SKV_ARCHIVE_END_FIELDS)

#define SKIPPABLE UINT32_C(0x184d2a5f)
#define MAGIC     UINT32_C(0x4b424c46) /* "FLBK" */

enum {
    VERSION = 1,
    HEAD_SIZE = 36,
    SKIPPED_SIZE = HEAD_SIZE - 8,
    /* A batch has little more than SKV_BATCH_SIZE_MAX. */
    PLAIN_SIZE_MAX = 8 << 20,
    PACKED_SIZE_MAX = PLAIN_SIZE_MAX + (1 << 20),
};

/* ---- writing ---- */

static void emit(struct skv_archive_writer *w, enum skv_archive_type type)
{
    struct slice plain = buf_slice(&w->plain);
    CHECK(plain.size <= PLAIN_SIZE_MAX);
    buf_clear(&w->block);
    (void)buf_extend(&w->block, HEAD_SIZE);
    pack_compress(plain, &w->block);
    uint8_t *head = w->block.data;
    size_t packed = w->block.size - HEAD_SIZE;
    set_u32(head, SKIPPABLE);
    set_u32(head + 4, SKIPPED_SIZE);
    set_u32(head + 8, MAGIC);
    set_u32(head + 12, VERSION | (uint32_t)type << 16);
    set_u32(head + 16, w->sequence++);
    set_u32(head + 20, (uint32_t)plain.size);
    set_u32(head + 24, (uint32_t)packed);
    set_u32(head + 28, crc32c(0, plain));
    uint32_t crc = crc32c(0, slice_of(head, 32));
    set_u32(head + 32, crc32c(crc, slice_of(head + HEAD_SIZE, packed)));
    if (w->rc == ERR_OK) {
        w->rc = w->write(w->arg, buf_slice(&w->block));
    }
    w->crc = crc32c(w->crc, plain);
}

void skv_archive_begin(struct skv_archive_writer *w,
                       const struct skv_archive_head *head)
{
    buf_clear(&w->plain);
    skv_archive_head_encode(&w->plain, head);
    emit(w, SKV_ARCHIVE_HEAD);
}

void skv_archive_add(struct skv_archive_writer *w,
                     const struct skv_archive_data *data)
{
    if (data->records_count == 0) {
        return;
    }
    for (uint32_t i = 0; i < data->records_count; i++) {
        w->shard_keys += data->records[i].offset == 0;
        w->shard_bytes += data->records[i].data.size;
    }
    buf_clear(&w->plain);
    skv_archive_data_encode(&w->plain, data);
    w->shard_crc = crc32c(w->shard_crc, buf_slice(&w->plain));
    emit(w, SKV_ARCHIVE_DATA);
}

void skv_archive_end_shard(struct skv_archive_writer *w, uint16_t shard)
{
    struct skv_archive_shard end = {.shard = shard,
                                    .keys = w->shard_keys,
                                    .bytes = w->shard_bytes,
                                    .crc = w->shard_crc};
    w->shards++;
    w->keys += w->shard_keys;
    w->bytes += w->shard_bytes;
    w->shard_keys = w->shard_bytes = 0;
    w->shard_crc = 0;
    buf_clear(&w->plain);
    skv_archive_shard_encode(&w->plain, &end);
    emit(w, SKV_ARCHIVE_SHARD);
}

enum err skv_archive_end(struct skv_archive_writer *w)
{
    struct skv_archive_end end = {
        .shards = w->shards, .keys = w->keys, .bytes = w->bytes, .crc = w->crc};
    buf_clear(&w->plain);
    skv_archive_end_encode(&w->plain, &end);
    emit(w, SKV_ARCHIVE_END);
    return w->rc;
}

void skv_archive_writer_fini(struct skv_archive_writer *w)
{
    buf_free(&w->plain);
    buf_free(&w->block);
}

/* ---- reading ---- */

static enum err damaged(struct skv_archive_reader *r, enum err rc,
                        const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static enum err damaged(struct skv_archive_reader *r, enum err rc,
                        const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vsnprintf(r->problem, sizeof r->problem, format, words);
    va_end(words);
    return rc;
}

static enum err bad_block(struct skv_archive_reader *r, const char *why)
{
    return damaged(r, ERR_CORRUPT,
                   "damaged at offset %" PRIu64 ", in the block that ends "
                   "before %" PRIu64 ": %s",
                   r->block, r->offset, why);
}

/* *got less than `size`: the stream ends. */
static enum err read_some(struct skv_archive_reader *r, uint8_t *to,
                          size_t size, size_t *got)
{
    *got = 0;
    while (*got < size) {
        size_t part = 0;
        enum err rc = r->read(r->arg, to + *got, size - *got, &part);
        if (rc != ERR_OK) {
            return damaged(r, rc, "cannot be read at offset %" PRIu64,
                           r->offset);
        }
        if (part == 0) {
            break;
        }
        *got += part;
        r->offset += part;
    }
    return ERR_OK;
}

static enum err read_exactly(struct skv_archive_reader *r, uint8_t *to,
                             size_t size)
{
    size_t got = 0;
    enum err rc = read_some(r, to, size, &got);
    if (rc == ERR_OK && got < size) {
        return damaged(r, ERR_CORRUPT,
                       "cut short: ends at offset %" PRIu64
                       ", before its end record",
                       r->offset);
    }
    return rc;
}

static enum err read_block(struct skv_archive_reader *r,
                           enum skv_archive_type *type)
{
    uint8_t head[HEAD_SIZE];
    r->block = r->offset;
    enum err rc = read_exactly(r, head, sizeof head);
    if (rc != ERR_OK) {
        return rc;
    }
    uint32_t plain = get_u32(head + 20);
    uint32_t packed = get_u32(head + 24);
    if (get_u32(head) != SKIPPABLE || get_u32(head + 4) != SKIPPED_SIZE ||
        get_u32(head + 8) != MAGIC) {
        return r->block == 0 ? damaged(r, ERR_CORRUPT,
                                       "not a backup: no magic at offset 0")
                             : bad_block(r, "no block begins there");
    }
    if (plain > PLAIN_SIZE_MAX || packed > PACKED_SIZE_MAX) {
        return bad_block(r, "its size makes no sense");
    }
    buf_clear(&r->packed);
    rc = read_exactly(r, buf_extend(&r->packed, packed), packed);
    if (rc != ERR_OK) {
        return rc;
    }
    uint32_t crc = crc32c(0, slice_of(head, 32));
    if (crc32c(crc, buf_slice(&r->packed)) != get_u32(head + 32)) {
        return bad_block(r, "its checksum is another");
    }
    uint32_t version = get_u32(head + 12) & UINT16_MAX;
    if (version != VERSION) {
        return damaged(r, ERR_VERSION, "of version %u; this program reads %d",
                       version, VERSION);
    }
    if (get_u32(head + 16) != r->sequence++) {
        return bad_block(r, "it is not the one that belongs there");
    }
    buf_clear(&r->plain);
    if (pack_expand(buf_slice(&r->packed), plain, &r->plain) != ERR_OK ||
        crc32c(0, buf_slice(&r->plain)) != get_u32(head + 28)) {
        return bad_block(r, "it does not decompress to what was written");
    }
    *type = (enum skv_archive_type)(get_u32(head + 12) >> 16);
    return ERR_OK;
}

static enum err take_head(struct skv_archive_reader *r,
                          struct skv_archive_head *head)
{
    if (r->sequence != 1 ||
        skv_archive_head_decode(buf_slice(&r->plain), &r->arena, head) !=
            ERR_OK ||
        head->shard_count == 0 || head->shard_count > CTL_SHARDS_MAX) {
        return bad_block(r, "the head makes no sense");
    }
    r->shard_count = head->shard_count;
    return ERR_OK;
}

/* 3. */
static bool record_follows(struct skv_archive_reader *r,
                           const struct skv_record *k, uint16_t shard)
{
    if (skv_record_check(k, shard) != ERR_OK ||
        k->key.size > SKV_KEY_SIZE_MAX ||
        (get_be64(k->key.data) & SKV_OBJECT_KV) == 0) {
        return false;
    }
    bool empty = r->last_key.size == 0;
    int order = empty ? 1 : slice_compare(k->key, buf_slice(&r->last_key));
    bool begins = order > 0 && k->offset == 0 && r->span_end == r->length;
    bool goes_on = order == 0 && k->offset > 0 && k->offset == r->span_end &&
                   k->length == r->length;
    if (k->gone != 0 || (!begins && !goes_on)) {
        return false;
    }
    buf_clear(&r->last_key);
    buf_append(&r->last_key, k->key.data, k->key.size);
    r->length = k->length;
    r->span_end = k->offset + k->span;
    r->shard_keys += order > 0;
    r->shard_bytes += k->data.size;
    return true;
}

static enum err take_data(struct skv_archive_reader *r,
                          struct skv_archive_data *data)
{
    struct slice plain = buf_slice(&r->plain);
    if (skv_archive_data_decode(plain, &r->arena, data) != ERR_OK ||
        data->shard != r->shards || data->shard >= r->shard_count) {
        return bad_block(r, "its data is not of the shard that is at hand");
    }
    for (uint32_t i = 0; i < data->records_count; i++) {
        if (!record_follows(r, &data->records[i], data->shard)) {
            return bad_block(r, "its records make no sense");
        }
    }
    r->shard_crc = crc32c(r->shard_crc, plain);
    return ERR_OK;
}

static enum err take_shard(struct skv_archive_reader *r,
                           struct skv_archive_shard *shard)
{
    if (skv_archive_shard_decode(buf_slice(&r->plain), &r->arena, shard) !=
            ERR_OK ||
        shard->shard != r->shards || r->shards >= r->shard_count ||
        r->span_end != r->length || shard->keys != r->shard_keys ||
        shard->bytes != r->shard_bytes || shard->crc != r->shard_crc) {
        return bad_block(r, "the shard does not end with what it had");
    }
    r->shards++;
    r->keys += r->shard_keys;
    r->bytes += r->shard_bytes;
    r->shard_keys = r->shard_bytes = 0;
    r->shard_crc = 0;
    buf_clear(&r->last_key);
    r->length = r->span_end = 0;
    return ERR_OK;
}

static enum err take_end(struct skv_archive_reader *r,
                         struct skv_archive_end *end)
{
    uint8_t more;
    size_t got = 0;
    if (skv_archive_end_decode(buf_slice(&r->plain), &r->arena, end) !=
            ERR_OK ||
        end->shards != r->shards || r->shards != r->shard_count ||
        end->keys != r->keys || end->bytes != r->bytes || end->crc != r->crc) {
        return bad_block(r, "the totals are not those of what came before");
    }
    uint64_t at = r->offset;
    enum err rc = read_some(r, &more, 1, &got);
    if (rc == ERR_OK && got > 0) {
        return damaged(r, ERR_CORRUPT,
                       "something follows its end, at offset %" PRIu64, at);
    }
    return rc;
}

enum err skv_archive_next(struct skv_archive_reader *r,
                          struct skv_archive_item *out)
{
    arena_free(&r->arena);
    *out = (struct skv_archive_item){0};
    enum err rc = read_block(r, &out->type);
    if (rc != ERR_OK) {
        return rc;
    }
    if (r->sequence == 1 && out->type != SKV_ARCHIVE_HEAD) {
        return bad_block(r, "it does not begin with a head");
    }
    switch (out->type) {
    case SKV_ARCHIVE_HEAD: rc = take_head(r, &out->head); break;
    case SKV_ARCHIVE_DATA: rc = take_data(r, &out->data); break;
    case SKV_ARCHIVE_SHARD: rc = take_shard(r, &out->shard); break;
    case SKV_ARCHIVE_END: rc = take_end(r, &out->end); break;
    default: rc = bad_block(r, "of a kind that is not known"); break;
    }
    r->crc = crc32c(r->crc, buf_slice(&r->plain));
    return rc;
}

void skv_archive_reader_fini(struct skv_archive_reader *r)
{
    buf_free(&r->plain);
    buf_free(&r->packed);
    buf_free(&r->last_key);
    arena_free(&r->arena);
}
