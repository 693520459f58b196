/* Writes: into the delta, and into blob files in place. */
#include "shardkv/store_lmdb_int.h"

#include <string.h>

#include "base/check.h"

/* After a write: a failure is final (invariant 7), except of what was refused
 * before anything was done. */
static enum err end_write(struct skv_lmdb *s, enum err rc)
{
    if (rc != ERR_OK) {
        s->failed = rc;
    }
    return rc;
}

/* `old`: what the key had before. */
static void put_record(struct skv_lmdb *s, struct slice key,
                       const struct skv_stored *old, struct slice record)
{
    s->count += !old->shape.exists;
    skv_delta_put(s->fresh, key, record, old->shape.exists);
}

/* `record`: a tag byte's room, then `size` bytes. */
static void put_inline(struct skv_lmdb *s, struct slice key,
                       const struct skv_stored *old,
                       uint8_t record[SKV_RECORD_SIZE_MAX], uint64_t size)
{
    CHECK(size <= SKV_INLINE_SIZE_MAX);
    skv_stored_inline(record);
    put_record(s, key, old, slice_of(record, (size_t)size + 1));
}

static void put_blob(struct skv_lmdb *s, struct slice key,
                     const struct skv_stored *old, uint64_t id, uint64_t length)
{
    s->meta.blob_bytes -= old->shape.blob ? old->shape.length : 0;
    s->meta.blob_bytes += length;
    uint8_t record[SKV_BLOB_RECORD_SIZE];
    skv_stored_blob(record, id, length);
    put_record(s, key, old, slice_of(record, sizeof record));
}

/* The blob of a key that goes away or becomes inline (invariant 4). */
static void bury(struct skv_lmdb *s, const struct skv_stored *old)
{
    if (old->shape.blob) {
        s->meta.blob_bytes -= old->shape.length;
        skv_blobs_forget(s->gen->blobs, old->blob);
        set_be64(buf_extend(&s->dead, 8), old->blob);
    }
}

/* The blob that the new value goes into: the old one, or a new one that holds
 * the old inline bytes. `keep`: how many of them count. */
static enum err blob_for(struct skv_lmdb *s, const struct skv_stored *old,
                         uint64_t keep, uint64_t *id)
{
    if (old->shape.blob) {
        *id = old->blob;
        return ERR_OK;
    }
    *id = s->meta.next_blob++;
    enum err rc = skv_blobs_create(s->gen->blobs, *id);
    if (rc == ERR_OK && keep > 0) {
        rc = skv_blobs_write(s->gen->blobs, *id, 0,
                             slice_of(old->bytes.data, (size_t)keep));
    }
    return rc;
}

/* A copy of an inline value that may be changed, zeros after its end. */
static uint8_t *inline_copy(uint8_t record[SKV_RECORD_SIZE_MAX],
                            const struct skv_stored *old, uint64_t length)
{
    size_t keep = old->bytes.size < length ? old->bytes.size : (size_t)length;
    if (keep > 0) {
        memcpy(record + 1, old->bytes.data, keep);
    }
    memset(record + 1 + keep, 0, (size_t)length - keep);
    return record + 1;
}

static enum err put_large(struct skv_lmdb *s, struct slice key,
                          const struct skv_stored *old, struct slice value)
{
    uint64_t id = 0;
    enum err rc = blob_for(s, old, 0, &id);
    if (rc == ERR_OK) {
        rc = skv_blobs_write(s->gen->blobs, id, 0, value);
    }
    if (rc == ERR_OK) {
        rc = skv_blobs_truncate(s->gen->blobs, id, value.size);
    }
    if (rc == ERR_OK) {
        put_blob(s, key, old, id, value.size);
    }
    return rc;
}

static enum err put_small(struct skv_lmdb *s, struct slice key,
                          const struct skv_stored *old, struct slice value)
{
    uint8_t record[SKV_RECORD_SIZE_MAX];
    if (value.size > 0) {
        memcpy(record + 1, value.data, value.size);
    }
    bury(s, old);
    put_inline(s, key, old, record, value.size);
    return ERR_OK;
}

/* What every write begins with. */
static enum err write_begin(struct skv_lmdb *s, struct slice key,
                            struct skv_stored *old)
{
    return s->failed != ERR_OK ? s->failed : skv_lmdb_get(s, key, old);
}

enum err skv_lmdb_put(struct skv_store *store, struct slice key,
                      struct slice value)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_stored old;
    enum err rc = skv_extent_check(0, value.size);
    if (rc == ERR_OK) {
        rc = write_begin(s, key, &old);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    bool large = skv_shape_put(value.size).blob;
    return end_write(s, large ? put_large(s, key, &old, value)
                              : put_small(s, key, &old, value));
}

static enum err range_large(struct skv_lmdb *s, struct slice key,
                            const struct skv_stored *old, uint64_t length,
                            uint64_t offset, struct slice data)
{
    uint64_t id = 0;
    enum err rc = blob_for(s, old, old->shape.length, &id);
    if (rc == ERR_OK && data.size > 0) {
        rc = skv_blobs_write(s->gen->blobs, id, offset, data);
    }
    bool same = old->shape.blob && old->shape.length == length;
    if (rc == ERR_OK && !same) {
        put_blob(s, key, old, id, length);
    }
    return rc;
}

static enum err range_small(struct skv_lmdb *s, struct slice key,
                            const struct skv_stored *old, uint64_t length,
                            uint64_t offset, struct slice data)
{
    uint8_t record[SKV_RECORD_SIZE_MAX];
    uint8_t *bytes = inline_copy(record, old, length);
    if (data.size > 0) {
        memcpy(bytes + offset, data.data, data.size);
    }
    put_inline(s, key, old, record, length);
    return ERR_OK;
}

enum err skv_lmdb_put_range(struct skv_store *store, struct slice key,
                            uint64_t offset, struct slice data)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_stored old;
    enum err rc = skv_extent_check(offset, data.size);
    if (rc == ERR_OK) {
        rc = write_begin(s, key, &old);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_shape next = skv_shape_put_range(old.shape, offset, data.size);
    return end_write(
        s, next.blob ? range_large(s, key, &old, next.length, offset, data)
                     : range_small(s, key, &old, next.length, offset, data));
}

static enum err truncate_large(struct skv_lmdb *s, struct slice key,
                               const struct skv_stored *old, uint64_t length)
{
    uint64_t id = 0;
    enum err rc = blob_for(s, old, old->shape.length, &id);
    if (rc == ERR_OK) {
        /* Cuts off what a later growth must not show again. */
        rc = skv_blobs_truncate(s->gen->blobs, id, length);
    }
    if (rc == ERR_OK) {
        put_blob(s, key, old, id, length);
    }
    return rc;
}

static enum err truncate_small(struct skv_lmdb *s, struct slice key,
                               const struct skv_stored *old, uint64_t length)
{
    uint8_t record[SKV_RECORD_SIZE_MAX];
    inline_copy(record, old, length);
    bury(s, old);
    put_inline(s, key, old, record, length);
    return ERR_OK;
}

enum err skv_lmdb_truncate(struct skv_store *store, struct slice key,
                           uint64_t length)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_stored old;
    enum err rc = skv_extent_check(0, length);
    if (rc == ERR_OK) {
        rc = write_begin(s, key, &old);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    bool large = skv_shape_truncate(old.shape, length).blob;
    return end_write(s, large ? truncate_large(s, key, &old, length)
                              : truncate_small(s, key, &old, length));
}

static enum err punch_small(struct skv_lmdb *s, struct slice key,
                            const struct skv_stored *old, uint64_t offset,
                            uint64_t size)
{
    uint8_t record[SKV_RECORD_SIZE_MAX];
    uint8_t *bytes = inline_copy(record, old, old->shape.length);
    memset(bytes + offset, 0, (size_t)size);
    put_inline(s, key, old, record, old->shape.length);
    return ERR_OK;
}

enum err skv_lmdb_punch(struct skv_store *store, struct slice key,
                        uint64_t offset, uint64_t size)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_stored old;
    enum err rc = skv_extent_check(offset, size);
    if (rc == ERR_OK) {
        rc = write_begin(s, key, &old);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    if (!old.shape.exists) {
        return ERR_NOTFOUND;
    }
    uint64_t length = old.shape.length;
    uint64_t left = offset < length ? length - offset : 0;
    uint64_t part = size < left ? size : left;
    if (part == 0) {
        return ERR_OK;
    }
    return end_write(
        s, old.shape.blob
               ? skv_blobs_punch(s->gen->blobs, old.blob, offset, part)
               : punch_small(s, key, &old, offset, part));
}

enum err skv_lmdb_remove(struct skv_store *store, struct slice key)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_stored old;
    enum err rc = write_begin(s, key, &old);
    if (rc != ERR_OK || !old.shape.exists) {
        return rc;
    }
    bury(s, &old);
    skv_delta_remove(s->fresh, key);
    s->count--;
    return ERR_OK;
}
