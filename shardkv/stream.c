/* The record stream of a store's keys and values. docs/disk-store.md, "Stream":
 *
 *   head    4  magic "FLKS"          4  version, 1
 *   record  1  type                  4  size of the body
 *   KEY     1  flags: 1 is a blob    8  length   4+n  key   4+n  inline bytes
 *   DATA    8  offset                4+n  bytes
 *   END     8  number of keys        4  CRC-32C of all bytes before this record
 *
 * Integers are little-endian. Invariants of a good stream:
 *  1. Keys rise strictly, so none comes twice.
 *  2. DATA follows a KEY that is a blob; offsets rise, ranges do not overlap
 *     and end within the length. What no DATA covers is zeros.
 *  3. END is last, and nothing follows it: a stream cut short is refused. */
#include "shardkv/store_int.h"

#include <string.h>

#include "base/check.h"

#define STREAM_MAGIC 0x534b4c46u /* "FLKS" */

enum {
    STREAM_VERSION = 1,
    STREAM_HEAD_SIZE = 4 + 4,
    RECORD_HEAD_SIZE = 1 + 4,
    RECORD_BODY_MAX = SKV_STREAM_DATA_MAX + 64,
    FLUSH_SIZE = 256 << 10,
    FLAG_BLOB = 1,
};

/* ---- writer ---- */

static void flush(struct skv_stream_writer *w)
{
    if (w->rc == ERR_OK && w->pending.size > 0) {
        w->crc = crc32c(w->crc, buf_slice(&w->pending));
        w->rc = w->write(w->arg, buf_slice(&w->pending));
    }
    buf_clear(&w->pending);
}

/* Gives where the record's head is, for record_done(). */
static size_t record_begin(struct skv_stream_writer *w,
                           enum skv_stream_type type)
{
    size_t at = w->pending.size;
    enc_u8(&w->pending, (uint8_t)type);
    enc_u32(&w->pending, 0);
    return at;
}

static void record_done(struct skv_stream_writer *w, size_t at)
{
    size_t body = w->pending.size - at - RECORD_HEAD_SIZE;
    CHECK(body <= RECORD_BODY_MAX);
    set_u32(w->pending.data + at + 1, (uint32_t)body);
    if (w->pending.size >= FLUSH_SIZE) {
        flush(w);
    }
}

void skv_stream_begin(struct skv_stream_writer *w)
{
    enc_u32(&w->pending, STREAM_MAGIC);
    enc_u32(&w->pending, STREAM_VERSION);
}

void skv_stream_key(struct skv_stream_writer *w, struct slice key,
                    const struct skv_value *value)
{
    size_t at = record_begin(w, SKV_STREAM_KEY);
    enc_u8(&w->pending, value->is_inline ? 0 : FLAG_BLOB);
    enc_u64(&w->pending, value->length);
    enc_bytes(&w->pending, key);
    enc_bytes(&w->pending,
              value->is_inline ? value->inline_bytes : slice_of(NULL, 0));
    record_done(w, at);
    w->keys++;
}

void skv_stream_data(struct skv_stream_writer *w, uint64_t offset,
                     struct slice data)
{
    CHECK(data.size <= SKV_STREAM_DATA_MAX);
    size_t at = record_begin(w, SKV_STREAM_DATA);
    enc_u64(&w->pending, offset);
    enc_bytes(&w->pending, data);
    record_done(w, at);
}

enum err skv_stream_end(struct skv_stream_writer *w)
{
    flush(w); /* so that the checksum covers all before END */
    uint32_t crc = w->crc;
    size_t at = record_begin(w, SKV_STREAM_END);
    enc_u64(&w->pending, w->keys);
    enc_u32(&w->pending, crc);
    record_done(w, at);
    flush(w);
    buf_free(&w->pending);
    return w->rc;
}

/* ---- reader ---- */

/* Exactly `size` bytes into `to`; ERR_CORRUPT when the stream ends before. */
static enum err read_exactly(struct skv_stream_reader *r, uint8_t *to,
                             size_t size)
{
    while (size > 0) {
        size_t got = 0;
        enum err rc = r->read(r->arg, to, size, &got);
        if (rc != ERR_OK) {
            return rc;
        }
        if (got == 0 || got > size) {
            return ERR_CORRUPT;
        }
        to += got;
        size -= got;
    }
    return ERR_OK;
}

static enum err read_head(struct skv_stream_reader *r)
{
    uint8_t head[STREAM_HEAD_SIZE];
    enum err rc = read_exactly(r, head, sizeof head);
    if (rc != ERR_OK) {
        return rc;
    }
    if (get_u32(head) != STREAM_MAGIC) {
        return ERR_CORRUPT;
    }
    if (get_u32(head + 4) != STREAM_VERSION) {
        return ERR_VERSION;
    }
    r->crc = crc32c(0, slice_of(head, sizeof head));
    r->begun = true;
    return ERR_OK;
}

/* The whole record in r->body, its head included. */
static enum err read_record(struct skv_stream_reader *r)
{
    buf_clear(&r->body);
    uint8_t *head = buf_extend(&r->body, RECORD_HEAD_SIZE);
    enum err rc = read_exactly(r, head, RECORD_HEAD_SIZE);
    if (rc != ERR_OK) {
        return rc;
    }
    uint32_t size = get_u32(head + 1);
    if (size > RECORD_BODY_MAX) {
        return ERR_CORRUPT;
    }
    return read_exactly(r, buf_extend(&r->body, size), size);
}

static enum err take_key(struct skv_stream_reader *r, struct dec *d,
                         struct skv_stream_record *out)
{
    uint8_t flags = dec_u8(d);
    out->value.length = dec_u64(d);
    out->key = dec_bytes(d);
    struct slice bytes = dec_bytes(d);
    if (dec_done(d) != ERR_OK || flags > FLAG_BLOB ||
        skv_store_key_check(out->key) != ERR_OK) {
        return ERR_CORRUPT;
    }
    bool first = r->keys == 0;
    if (!first && slice_compare(out->key, buf_slice(&r->last_key)) <= 0) {
        return ERR_CORRUPT; /* 1 */
    }
    bool blob = flags == FLAG_BLOB;
    uint64_t length_max = blob ? SKV_VALUE_SIZE_MAX : SKV_INLINE_SIZE_MAX;
    if (out->value.length > length_max ||
        bytes.size != (blob ? 0 : out->value.length)) {
        return ERR_CORRUPT;
    }
    out->value.is_inline = !blob;
    out->value.inline_bytes = blob ? slice_of(NULL, 0) : bytes;
    buf_clear(&r->last_key);
    buf_append(&r->last_key, out->key.data, out->key.size);
    r->keys++;
    r->in_blob = blob;
    r->length = out->value.length;
    r->data_end = 0;
    return ERR_OK;
}

static enum err take_data(struct skv_stream_reader *r, struct dec *d,
                          struct skv_stream_record *out)
{
    out->offset = dec_u64(d);
    out->data = dec_bytes(d);
    if (dec_done(d) != ERR_OK || !r->in_blob ||
        out->data.size > SKV_STREAM_DATA_MAX || out->offset < r->data_end ||
        out->offset > r->length || out->data.size > r->length - out->offset) {
        return ERR_CORRUPT; /* 2 */
    }
    r->data_end = out->offset + out->data.size;
    return ERR_OK;
}

static enum err take_end(struct skv_stream_reader *r, struct dec *d)
{
    uint64_t keys = dec_u64(d);
    uint32_t crc = dec_u32(d);
    if (dec_done(d) != ERR_OK || keys != r->keys || crc != r->crc) {
        return ERR_CORRUPT;
    }
    uint8_t more;
    size_t got = 0;
    enum err rc = r->read(r->arg, &more, 1, &got);
    return rc != ERR_OK ? rc : got == 0 ? ERR_OK : ERR_CORRUPT; /* 3 */
}

static enum err take_record(struct skv_stream_reader *r,
                            struct skv_stream_record *out)
{
    struct dec d = dec_of(buf_slice(&r->body));
    uint8_t type = dec_u8(&d);
    (void)dec_u32(&d);
    *out = (struct skv_stream_record){.type = (enum skv_stream_type)type};
    switch (type) {
    case SKV_STREAM_KEY: return take_key(r, &d, out);
    case SKV_STREAM_DATA: return take_data(r, &d, out);
    case SKV_STREAM_END: return take_end(r, &d);
    default: return ERR_CORRUPT;
    }
}

enum err skv_stream_next(struct skv_stream_reader *r,
                         struct skv_stream_record *out)
{
    enum err rc = r->begun ? ERR_OK : read_head(r);
    if (rc == ERR_OK) {
        rc = read_record(r);
    }
    if (rc == ERR_OK) {
        rc = take_record(r, out);
    }
    if (rc == ERR_OK) {
        r->crc = crc32c(r->crc, buf_slice(&r->body));
    }
    return rc;
}

void skv_stream_reader_fini(struct skv_stream_reader *r)
{
    buf_free(&r->body);
    buf_free(&r->last_key);
}
