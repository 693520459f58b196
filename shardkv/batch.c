/* The contents of a shard, in batches: read from the old owner's frozen copy,
 * written by the new owner's log.
 *
 * Writing a batch again, or an older one after a newer, changes nothing: the
 * source is frozen, so each record always has the same bytes. That is why a
 * new leader may simply begin again, while its predecessor's last batches are
 * still in the log. */
#include "shardkv/fsm_int.h"

#include <string.h>

enum { RECORD_OVERHEAD = 32, PART_SIZE = 256 << 10 };

struct batch {
    const struct skv_source *from;
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
    struct arena *a = b->from->arena;
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
    b->pulled.next_key = arena_copy(b->from->arena, key);
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
        b->at = arena_copy(b->from->arena, key);
        b->at_length = value->length;
        return false;
    }
    add(b, key, 0, value->length,
        arena_copy(b->from->arena, value->inline_bytes));
    return true;
}

static enum err source_scan(struct batch *b, struct slice prefix,
                            struct slice from)
{
    struct skv_store *s = b->from->store;
    struct skv_view *v = b->from->view;
    return v != NULL ? s->ops->view_scan(s, v, prefix, from, each, b)
                     : s->ops->scan(s, prefix, from, each, b);
}

/* Exactly `size` bytes of the large value at hand. */
static enum err source_read(struct batch *b, uint64_t offset, uint8_t *to,
                            size_t size)
{
    struct skv_store *s = b->from->store;
    struct skv_view *v = b->from->view;
    size_t got = 0;
    enum err rc = v != NULL
                      ? s->ops->view_value(s, v, b->at, offset, to, size, &got)
                      : s->ops->read(s, b->at, offset, to, size, &got);
    return rc == ERR_OK && got != size ? ERR_CORRUPT : rc;
}

/* Parts that a view knows to be zeros need not be read. */
static enum err source_skip(struct batch *b)
{
    struct skv_store *s = b->from->store;
    uint64_t data_at = 0;
    if (b->from->view == NULL || b->at_offset == 0) {
        return ERR_OK;
    }
    enum err rc =
        s->ops->view_skip(s, b->from->view, b->at, b->at_offset, &data_at);
    if (rc == ERR_OK && data_at >= b->at_length) {
        b->at_offset = b->at_length;
    } else if (rc == ERR_OK) {
        data_at -= data_at % PART_SIZE;
        b->at_offset = data_at > b->at_offset ? data_at : b->at_offset;
    }
    return rc;
}

static bool is_zero(const uint8_t *data, size_t size)
{
    return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

static enum err read_part(struct batch *b, size_t size)
{
    uint8_t *to = arena_alloc(b->from->arena, size);
    enum err rc = source_read(b, b->at_offset, to, size);
    if (rc != ERR_OK) {
        return rc;
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
    enum err rc = ERR_OK;
    while (rc == ERR_OK && b->at_offset < b->at_length) {
        uint64_t left = b->at_length - b->at_offset;
        if (b->size >= SKV_BATCH_SIZE_MAX || b->read >= SKV_BATCH_READ_MAX ||
            b->pulled.records_count == SKV_RECORDS_MAX) {
            stop_before(b, b->at, b->at_offset);
            return ERR_OK;
        }
        rc = read_part(b, left < PART_SIZE ? (size_t)left : PART_SIZE);
        if (rc == ERR_OK) {
            rc = source_skip(b);
        }
    }
    return rc;
}

/* A large value that was cut to a short one: its only record must be whole. */
static enum err read_short(struct batch *b)
{
    size_t size = (size_t)b->at_length;
    uint8_t *to = arena_alloc(b->from->arena, size);
    enum err rc = source_read(b, 0, to, size);
    if (rc == ERR_OK) {
        add(b, b->at, 0, b->at_length, slice_of(to, size));
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
    while (!b->full) {
        b->at = slice_of(NULL, 0);
        b->at_offset = offset;
        enum err rc = source_scan(b, prefix, from);
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
        from = above(b->from->arena, b->at);
        offset = 0;
    }
    return ERR_OK;
}

enum err skv_batch_fill(const struct skv_source *from, struct slice prefix,
                        struct slice key, uint64_t offset,
                        struct skv_pulled *out)
{
    struct batch b = {.from = from};
    enum err rc = fill(&b, prefix, key, offset);
    *out = b.pulled;
    return rc;
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
        struct skv_source from = {.store = f->store, .arena = &f->arena};
        struct skv_pulled pulled = {0};
        *fault = skv_batch_fill(&from, skv_name_slice(&prefix), pull->key,
                                pull->offset, &pulled);
        skv_pulled_encode(out, &pulled);
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
