/* The contents of a shard, in batches: read from the old owner's frozen copy,
 * written by the new owner's log.
 *
 * Writing a batch again, or an older one after a newer, changes nothing: the
 * source is frozen, so each record always has the same bytes. That is why a
 * new leader may simply begin again, while its predecessor's last batches are
 * still in the log. */
#include "shardkv/fsm_int.h"

#include <string.h>

enum { RECORD_OVERHEAD = 32 };

struct batch {
    struct skv_fsm *fsm;
    struct skv_pulled pulled;
    uint32_t capacity;
    size_t size;     /* of records */
    size_t read;     /* bytes of large values that were looked at */
    bool full;       /* next_key and next_offset say where to go on */
    struct slice at; /* the large value to go on with; empty: none */
    uint64_t at_offset;
    uint64_t at_length;
    bool scanned_all;
};

static void add(struct batch *b, struct slice key, uint64_t offset,
                uint64_t length, struct slice data)
{
    struct skv_pulled *p = &b->pulled;
    struct arena *a = &b->fsm->arena;
    if (p->records_count == b->capacity) {
        uint32_t capacity = b->capacity == 0 ? 256 : 2 * b->capacity;
        struct skv_record *more = arena_array(a, capacity, sizeof *p->records);
        if (b->capacity > 0) {
            memcpy(more, p->records, b->capacity * sizeof *more);
        }
        p->records = more;
        b->capacity = capacity;
    }
    p->records[p->records_count++] = (struct skv_record){
        .key = arena_copy(a, key),
        .offset = offset,
        .length = length,
        .data = data,
    };
    b->size += RECORD_OVERHEAD + key.size + data.size;
}

static void stop_before(struct batch *b, struct slice key, uint64_t offset)
{
    b->full = true;
    b->pulled.next_key = arena_copy(&b->fsm->arena, key);
    b->pulled.next_offset = offset;
}

/* Small values whole; at a large one the scan stops, to read from it. */
static bool each(void *arg, struct slice key, const struct skv_value *value)
{
    struct batch *b = arg;
    if (b->size >= SKV_BATCH_SIZE_MAX ||
        b->pulled.records_count == SKV_RECORDS_MAX) {
        stop_before(b, key, 0);
        return false;
    }
    if (!value->is_inline) {
        b->at = arena_copy(&b->fsm->arena, key);
        b->at_length = value->length;
        return false;
    }
    add(b, key, 0, value->length,
        arena_copy(&b->fsm->arena, value->inline_bytes));
    return true;
}

static bool is_zero(const uint8_t *data, size_t size)
{
    return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

static enum err read_part(struct batch *b, size_t size)
{
    struct skv_store *s = b->fsm->store;
    size_t got = 0;
    uint8_t *to = arena_alloc(&b->fsm->arena, size);
    enum err rc = s->ops->read(s, b->at, b->at_offset, to, size, &got);
    if (rc != ERR_OK) {
        return rc;
    }
    if (got != size) {
        return ERR_CORRUPT;
    }
    b->read += size;
    bool zero = is_zero(to, size);
    if (!zero || b->at_offset == 0) {
        add(b, b->at, b->at_offset, b->at_length,
            slice_of(to, zero ? 0 : size));
    }
    b->at_offset += size;
    return ERR_OK;
}

/* As much of the large value as still goes into the batch: into an empty one,
 * at least a part. */
static enum err read_large(struct batch *b)
{
    enum { PART_SIZE = 256 << 10 };
    enum err rc = ERR_OK;
    while (rc == ERR_OK && b->at_offset < b->at_length) {
        uint64_t left = b->at_length - b->at_offset;
        if (b->size >= SKV_BATCH_SIZE_MAX || b->read >= SKV_BATCH_READ_MAX ||
            b->pulled.records_count == SKV_RECORDS_MAX) {
            stop_before(b, b->at, b->at_offset);
            return ERR_OK;
        }
        rc = read_part(b, left < PART_SIZE ? (size_t)left : PART_SIZE);
    }
    return rc;
}

/* A large value that was cut to a short one: its only record must be whole. */
static enum err read_short(struct batch *b)
{
    struct skv_store *s = b->fsm->store;
    size_t got = 0;
    uint8_t *to = arena_alloc(&b->fsm->arena, (size_t)b->at_length);
    enum err rc = s->ops->read(s, b->at, 0, to, (size_t)b->at_length, &got);
    if (rc == ERR_OK && got != b->at_length) {
        rc = ERR_CORRUPT;
    }
    if (rc == ERR_OK) {
        add(b, b->at, 0, b->at_length, slice_of(to, got));
        b->at_offset = b->at_length;
    }
    return rc;
}

/* The first key above `key`. */
static struct slice above(struct arena *a, struct slice key)
{
    uint8_t *to = arena_alloc(a, key.size + 1);
    memcpy(to, key.data, key.size);
    return slice_of(to, key.size + 1);
}

static enum err fill(struct batch *b, struct slice prefix, struct slice from,
                     uint64_t offset)
{
    struct skv_store *s = b->fsm->store;
    while (!b->full) {
        b->at = slice_of(NULL, 0);
        b->at_offset = offset;
        enum err rc = s->ops->scan(s, prefix, from, each, b);
        if (rc == ERR_OK && b->at.size > 0) {
            rc = b->at_length <= SKV_INLINE_SIZE_MAX ? read_short(b)
                                                     : read_large(b);
        }
        if (rc != ERR_OK) {
            return rc;
        }
        if (b->at.size == 0) {
            b->pulled.last = !b->full;
            return ERR_OK;
        }
        from = above(&b->fsm->arena, b->at);
        offset = 0;
    }
    return ERR_OK;
}

/* ERR_BUSY: not yet. ERR_INVALID: no such move. ERR_DENIED: to another. */
static enum err may_read(const struct skv_fsm *f, const struct skv_pull *pull,
                         ctl_gid to)
{
    if (pull->key.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_INVALID;
    }
    if (f->config.number < pull->number) {
        return ERR_BUSY;
    }
    bool frozen = pull->shard < f->config.shards_count &&
                  f->shards[pull->shard].state == SKV_SHARD_FROZEN &&
                  f->shards[pull->shard].number == pull->number;
    return frozen ? skv_shard_may_take(f, pull->shard, to) : ERR_INVALID;
}

enum err skv_batch_read(struct skv_fsm *f, const struct skv_pull *pull,
                        ctl_gid to, struct buf *out, enum err *fault)
{
    *fault = skv_fsm_ready(f);
    if (*fault != ERR_OK) {
        return *fault;
    }
    enum err refusal = may_read(f, pull, to);
    if (refusal == ERR_OK) {
        struct skv_name prefix = skv_name_shard(pull->shard);
        struct batch b = {.fsm = f};
        *fault = fill(&b, skv_name_slice(&prefix), pull->key, pull->offset);
        skv_pulled_encode(out, &b.pulled);
    }
    arena_free(&f->arena);
    return refusal;
}

/* Could a shard's owner have sent this? */
enum err skv_record_check(const struct skv_record *r, uint16_t shard)
{
    if (r->key.size < SKV_OBJECT_SIZE || r->key.size > SKV_STORE_KEY_SIZE_MAX ||
        get_be16(r->key.data) != shard || !skv_name_may_move(r->key)) {
        return ERR_INVALID;
    }
    if (r->length > SKV_VALUE_SIZE_MAX || r->offset > r->length ||
        r->data.size > r->length - r->offset) {
        return ERR_INVALID;
    }
    bool whole = r->offset == 0 && r->data.size == r->length;
    return whole || r->length > SKV_INLINE_SIZE_MAX ? ERR_OK : ERR_INVALID;
}

static enum err write_record(struct skv_store *s, const struct skv_record *r)
{
    if (r->length <= SKV_INLINE_SIZE_MAX) {
        return s->ops->put(s, r->key, r->data);
    }
    enum err rc = ERR_OK;
    if (r->offset == 0) {
        rc = s->ops->truncate(s, r->key, r->length);
    }
    return rc == ERR_OK && r->data.size > 0
               ? s->ops->put_range(s, r->key, r->offset, r->data)
               : rc;
}

enum err skv_batch_write(struct skv_fsm *f, const struct skv_install *install)
{
    enum err rc = ERR_OK;
    for (uint32_t i = 0; rc == ERR_OK && i < install->records_count; i++) {
        rc = write_record(f->store, &install->records[i]);
    }
    return rc;
}
