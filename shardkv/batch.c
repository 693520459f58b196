/* The contents of a shard in batches. Of one that moves: read from the old
 * owner while it serves on, written by the new owner's log. First come the
 * keys, in order; then what changed since (track.c), until nothing is left of
 * it when the shard is frozen. Invariants:
 *
 *  1. A batch is of one moment of the source: what happens there later has left
 *     a change that sorts behind the batch's cursor, and is read later.
 *  2. A record says what the key is at that moment, all of it or the part that
 *     may have changed, and its length. So the destination, which writes the
 *     batches in their order, once each, has at the end what the source has.
 *  3. A batch reads a bounded number of keys and bytes: others wait meanwhile.
 */
#include "shardkv/fsm_int.h"

#include <string.h>
#include <uthash.h>

enum {
    RECORD_OVERHEAD = 48,
    CHANGES_AT_ONCE = 256,
    CHANGES_MAX = 16384, /* looked at for one batch */
    PART_SIZE = 256 << 10,
    READ_FACTOR = 8, /* zeros are read too, and not sent */
    COUNT_MAX = 4096,
};

/* What a batch has of a key already. */
struct sent {
    struct slice key;
    uint64_t offset, end;
    UT_hash_handle hh;
};

struct batch {
    const struct skv_source *source;
    const struct skv_cursor *from;
    struct skv_pulled pulled;
    uint32_t capacity;
    size_t size;     /* of records */
    size_t read;     /* bytes of large values that were looked at */
    uint32_t looked; /* at changes */
    bool full;       /* the cursor says where to go on */
    struct sent *sent;
    struct slice at; /* the large value at hand; empty: none */
    uint64_t at_offset;
    uint64_t zeros_end; /* there are only zeros up to here, as a view knows */
    uint64_t at_length;
};

/* ---- records ---- */

static void add(struct batch *b, const struct skv_record *record)
{
    struct skv_pulled *p = &b->pulled;
    struct arena *a = b->source->arena;
    if (p->records_count == b->capacity) {
        uint32_t capacity = b->capacity == 0 ? 256 : 2 * b->capacity;
        struct skv_record *more = arena_array(a, capacity, sizeof *p->records);
        if (b->capacity > 0) {
            memcpy(more, p->records, b->capacity * sizeof *more);
        }
        p->records = more;
        b->capacity = capacity;
    }
    p->records[p->records_count++] = *record;
    b->size += RECORD_OVERHEAD + record->key.size + record->data.size;
    p->cursor.bytes += record->data.size;
}

static void add_small(struct batch *b, struct slice key, struct slice value)
{
    struct arena *a = b->source->arena;
    struct skv_record r = {.key = arena_copy(a, key),
                           .span = value.size,
                           .length = value.size,
                           .data = arena_copy(a, value)};
    add(b, &r);
}

static bool has_room(const struct batch *b)
{
    return b->size < b->source->batch_size && b->read < b->source->read_size &&
           b->pulled.records_count < SKV_RECORDS_MAX && b->looked < CHANGES_MAX;
}

static void stop_before(struct batch *b, struct slice key, uint64_t offset)
{
    b->full = true;
    b->pulled.cursor.key = arena_copy(b->source->arena, key);
    b->pulled.cursor.offset = offset;
}

/* ---- the source: the store, or a view of it ---- */

static enum err source_scan(struct batch *b, struct slice prefix,
                            struct slice from, skv_scan_fn *each)
{
    struct skv_store *s = b->source->store;
    struct skv_view *v = b->source->view;
    return v != NULL ? s->ops->view_scan(s, v, prefix, from, each, b)
                     : s->ops->scan(s, prefix, from, each, b);
}

/* Exactly `size` bytes of the large value at hand. */
static enum err source_read(struct batch *b, uint64_t offset, uint8_t *to,
                            size_t size)
{
    struct skv_store *s = b->source->store;
    struct skv_view *v = b->source->view;
    size_t got = 0;
    enum err rc = v != NULL
                      ? s->ops->view_value(s, v, b->at, offset, to, size, &got)
                      : s->ops->read(s, b->at, offset, to, size, &got);
    return rc == ERR_OK && got != size ? ERR_CORRUPT : rc;
}

/* A view may know without reading where there are only zeros. */
static enum err source_skip(struct batch *b)
{
    struct skv_store *s = b->source->store;
    struct skv_view *v = b->source->view;
    if (v == NULL || b->zeros_end > b->at_offset) {
        return ERR_OK;
    }
    return s->ops->view_skip(s, v, b->at, b->at_offset, &b->zeros_end);
}

/* ---- large values ---- */

static bool is_zero(const uint8_t *data, size_t size)
{
    return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

/* Zeros right behind the last record make that one longer. */
static bool extend_last(struct batch *b, uint64_t size)
{
    struct skv_pulled *p = &b->pulled;
    if (p->records_count == 0) {
        return false;
    }
    struct skv_record *last = &p->records[p->records_count - 1];
    if (slice_compare(last->key, b->at) != 0 ||
        last->offset + last->span != b->at_offset) {
        return false;
    }
    last->span += size;
    return true;
}

static void add_zeros(struct batch *b, uint64_t size)
{
    if (!extend_last(b, size)) {
        struct skv_record r = {.key = b->at,
                               .offset = b->at_offset,
                               .span = size,
                               .length = b->at_length};
        add(b, &r);
    }
    b->at_offset += size;
}

/* A hole counts as if it were read: where a batch ends is the same on replicas
 * of which only some have one. */
static enum err read_part(struct batch *b, size_t size)
{
    enum err rc = source_skip(b);
    bool hole = b->zeros_end >= b->at_offset + size;
    uint8_t *to = hole ? NULL : arena_alloc(b->source->arena, size);
    if (rc == ERR_OK && !hole) {
        rc = source_read(b, b->at_offset, to, size);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    b->read += size;
    if (hole || is_zero(to, size)) {
        add_zeros(b, size);
        return ERR_OK;
    }
    struct skv_record r = {.key = b->at,
                           .offset = b->at_offset,
                           .span = size,
                           .length = b->at_length,
                           .data = slice_of(to, size)};
    add(b, &r);
    b->at_offset += size;
    return ERR_OK;
}

/* As much of the large value, up to `end`, as still goes into the batch: into
 * an empty one, at least a part. `resume`: the cursor's key if it does not. */
static enum err read_large(struct batch *b, uint64_t end, struct slice resume)
{
    enum err rc = ERR_OK;
    while (rc == ERR_OK && b->at_offset < end) {
        uint64_t left = end - b->at_offset;
        if (!has_room(b)) {
            stop_before(b, resume, b->at_offset);
            return ERR_OK;
        }
        rc = read_part(b, left < PART_SIZE ? (size_t)left : PART_SIZE);
    }
    return rc;
}

/* A large value that was cut to a short one comes whole. */
static enum err read_short(struct batch *b)
{
    uint8_t bytes[SKV_INLINE_SIZE_MAX];
    size_t size = (size_t)b->at_length;
    enum err rc = source_read(b, 0, bytes, size);
    if (rc == ERR_OK) {
        add_small(b, b->at, slice_of(bytes, size));
    }
    return rc;
}

/* ---- keys, in order ---- */

/* Small values whole; at a large one the scan stops, to read from it. */
static bool each(void *arg, struct slice key, const struct skv_value *value)
{
    struct batch *b = arg;
    if (!has_room(b)) {
        stop_before(b, key, 0);
        return false;
    }
    if (!value->is_inline) {
        b->at = arena_copy(b->source->arena, key);
        b->at_length = value->length;
        return false;
    }
    add_small(b, key, value->inline_bytes);
    b->pulled.cursor.keys++;
    return true;
}

/* The first key above `key`. */
static struct slice above(struct arena *a, struct slice key)
{
    uint8_t *to = arena_alloc(a, key.size + 1);
    memcpy(to, key.data, key.size);
    return slice_of(to, key.size + 1);
}

/* From the cursor's offset on, if it is the cursor's key that is still there.
 */
static enum err read_at(struct batch *b)
{
    bool goes_on = slice_compare(b->at, b->from->key) == 0;
    b->at_offset = goes_on ? b->from->offset : 0;
    b->zeros_end = 0;
    enum err rc = b->at_length <= SKV_INLINE_SIZE_MAX
                      ? read_short(b)
                      : read_large(b, b->at_length, b->at);
    b->pulled.cursor.keys += !b->full;
    return rc;
}

static enum err fill_keys(struct batch *b, uint16_t shard)
{
    struct skv_name prefix = skv_name_shard(shard);
    struct slice from = b->from->key;
    while (!b->full) {
        b->at = slice_of(NULL, 0);
        enum err rc = source_scan(b, skv_name_slice(&prefix), from, each);
        if (rc == ERR_OK && b->at.size > 0) {
            rc = read_at(b);
        }
        if (rc != ERR_OK) {
            return rc;
        }
        if (b->at.size == 0) {
            break;
        }
        from = above(b->source->arena, b->at);
    }
    if (!b->full) { /* changes come next, from the first */
        b->pulled.cursor.changes = 1;
        b->pulled.cursor.key = slice_of(NULL, 0);
        b->pulled.cursor.offset = 0;
    }
    return ERR_OK;
}

/* ---- changes ---- */

/* Is all that the change is about in the batch? Else it will be. */
static bool was_sent(struct batch *b, struct slice key, uint64_t offset,
                     uint64_t end)
{
    struct sent *s = NULL;
    HASH_FIND(hh, b->sent, key.data, key.size, s);
    if (s != NULL && s->offset <= offset && end <= s->end) {
        return true;
    }
    if (s == NULL) {
        s = arena_alloc(b->source->arena, sizeof *s);
        s->key = key;
        HASH_ADD_KEYPTR(hh, b->sent, s->key.data, s->key.size, s);
    }
    s->offset = offset;
    s->end = end;
    return false;
}

static enum err add_large_change(struct batch *b,
                                 const struct skv_change *change,
                                 struct slice name)
{
    bool goes_on = slice_compare(name, b->from->key) == 0;
    uint64_t offset = change->offset;
    if (goes_on && b->from->offset > offset) {
        offset = b->from->offset;
    }
    uint64_t end = change->end < b->at_length ? change->end : b->at_length;
    if (was_sent(b, b->at, offset, change->end)) {
        return ERR_OK;
    }
    if (offset >= end) { /* only its length */
        struct skv_record r = {
            .key = b->at, .offset = b->at_length, .length = b->at_length};
        add(b, &r);
        return ERR_OK;
    }
    b->at_offset = offset;
    return read_large(b, end, name);
}

static enum err add_change(struct batch *b, const struct skv_change *change,
                           struct slice name)
{
    struct skv_store *s = b->source->store;
    struct skv_value value;
    enum err rc = s->ops->lookup(s, change->key, &value);
    if (rc != ERR_OK && rc != ERR_NOTFOUND) {
        return rc;
    }
    b->at = change->key;
    if (rc == ERR_OK && value.length > SKV_INLINE_SIZE_MAX) {
        b->at_length = value.length;
        return add_large_change(b, change, name);
    }
    if (was_sent(b, change->key, 0, UINT64_MAX)) {
        return ERR_OK;
    }
    if (rc == ERR_NOTFOUND) {
        struct skv_record r = {.key = change->key, .gone = 1};
        add(b, &r);
        return ERR_OK;
    }
    if (value.is_inline) {
        add_small(b, change->key, value.inline_bytes);
        return ERR_OK;
    }
    b->at_length = value.length;
    return read_short(b);
}

/* Some changes, copied: reading one ends what a scan gave. */
struct some {
    struct arena *arena;
    struct {
        struct slice name;
        struct slice change;
    } list[CHANGES_AT_ONCE];
    uint32_t count;
    bool more;
};

static bool collect(void *arg, struct slice key, const struct skv_value *value)
{
    struct some *some = arg;
    if (some->count == CHANGES_AT_ONCE) {
        some->more = true;
        return false;
    }
    some->list[some->count].name = arena_copy(some->arena, key);
    some->list[some->count].change =
        arena_copy(some->arena, value->inline_bytes);
    some->count++;
    return true;
}

static enum err fill_some(struct batch *b, const struct some *some)
{
    for (uint32_t i = 0; i < some->count; i++) {
        struct slice name = some->list[i].name;
        struct skv_change change;
        if (!has_room(b)) {
            stop_before(b, name, 0);
            return ERR_OK;
        }
        enum err rc =
            skv_change_decode(some->list[i].change, b->source->arena, &change);
        if (rc == ERR_OK) {
            b->looked++;
            rc = add_change(b, &change, name);
        }
        if (rc != ERR_OK || b->full) {
            return rc;
        }
        b->pulled.cursor.key = above(b->source->arena, name);
        b->pulled.cursor.offset = 0;
    }
    return ERR_OK;
}

static enum err fill_changes(struct batch *b, uint16_t shard)
{
    struct skv_store *s = b->source->store;
    struct skv_name prefix = skv_name_changes(shard);
    struct some *some = arena_alloc(b->source->arena, sizeof *some);
    enum err rc = ERR_OK;
    do {
        some->arena = b->source->arena;
        some->count = 0;
        some->more = false;
        rc = s->ops->scan(s, skv_name_slice(&prefix), b->pulled.cursor.key,
                          collect, some);
        if (rc == ERR_OK) {
            rc = fill_some(b, some);
        }
    } while (rc == ERR_OK && some->more && !b->full);
    return rc;
}

/* ---- the source ---- */

/* ERR_BUSY: not yet. ERR_INVALID: no such move. ERR_DENIED: to another. */
static enum err may_read(const struct skv_fsm *f, uint16_t shard,
                         uint64_t number, ctl_gid to)
{
    if (f->config.number < number) {
        return ERR_BUSY;
    }
    if (shard >= f->config.shards_count || f->shards[shard].number != number) {
        return ERR_INVALID;
    }
    uint8_t state = f->shards[shard].state;
    bool leaves = state == SKV_SHARD_LEAVING || state == SKV_SHARD_FROZEN;
    return leaves ? skv_shard_may_take(f, shard, number, to) : ERR_INVALID;
}

enum err skv_batch_fill(const struct skv_source *source, uint16_t shard,
                        const struct skv_cursor *from, struct skv_pulled *out)
{
    struct batch b = {
        .source = source, .from = from, .pulled = {.cursor = *from}};
    enum err rc = fill_keys(&b, shard);
    b.pulled.end = b.full ? SKV_END_MORE : SKV_END_LAST;
    *out = b.pulled;
    return rc;
}

static enum err fill(struct batch *b, const struct skv_fsm *f, uint16_t shard)
{
    bool copying = b->from->changes == 0;
    enum err rc = copying ? fill_keys(b, shard) : fill_changes(b, shard);
    if (b->full || copying) {
        b->pulled.end = SKV_END_MORE;
    } else {
        b->pulled.end = f->shards[shard].state == SKV_SHARD_FROZEN
                            ? SKV_END_LAST
                            : SKV_END_NOW;
    }
    HASH_CLEAR(hh, b->sent);
    return rc;
}

enum err skv_batch_read(struct skv_fsm *f, const struct skv_pull *pull,
                        ctl_gid to, bool busy, struct buf *out, enum err *fault)
{
    *fault = skv_fsm_ready(f);
    if (*fault != ERR_OK) {
        return *fault;
    }
    enum err refusal = pull->cursor.key.size > SKV_STORE_KEY_SIZE_MAX
                           ? ERR_INVALID
                           : may_read(f, pull->shard, pull->number, to);
    if (refusal == ERR_OK) {
        struct skv_source source = {.store = f->store,
                                    .arena = &f->arena,
                                    .batch_size = f->batch_size,
                                    .read_size = READ_FACTOR * f->batch_size};
        struct batch b = {.source = &source,
                          .from = &pull->cursor,
                          .pulled = {.cursor = pull->cursor}};
        *fault = fill(&b, f, pull->shard);
        b.pulled.busy = busy;
        skv_pulled_encode(out, &b.pulled);
    }
    arena_free(&f->arena);
    return refusal;
}

struct counting {
    struct arena *arena;
    struct skv_counted sum;
};

static bool count_one(void *arg, struct slice key,
                      const struct skv_value *value)
{
    struct counting *c = arg;
    if (c->sum.keys == COUNT_MAX) {
        c->sum.next_key = arena_copy(c->arena, key);
        return false;
    }
    c->sum.keys++;
    c->sum.bytes += value->length;
    return true;
}

enum err skv_batch_count(struct skv_fsm *f, const struct skv_count *count,
                         ctl_gid to, struct buf *out, enum err *fault)
{
    *fault = skv_fsm_ready(f);
    if (*fault != ERR_OK) {
        return *fault;
    }
    enum err refusal = count->key.size > SKV_STORE_KEY_SIZE_MAX
                           ? ERR_INVALID
                           : may_read(f, count->shard, count->number, to);
    if (refusal == ERR_OK) {
        struct skv_name prefix = skv_name_shard(count->shard);
        struct counting c = {.arena = &f->arena};
        *fault = f->store->ops->scan(f->store, skv_name_slice(&prefix),
                                     count->key, count_one, &c);
        skv_counted_encode(out, &c.sum);
    }
    arena_free(&f->arena);
    return refusal;
}

/* ---- the destination ---- */

/* Could a shard's owner have sent this? */
enum err skv_record_check(const struct skv_record *r, uint16_t shard)
{
    if (r->key.size < SKV_OBJECT_SIZE || r->key.size > SKV_STORE_KEY_SIZE_MAX ||
        get_be16(r->key.data) != shard || !skv_name_may_move(r->key)) {
        return ERR_INVALID;
    }
    if (r->length > SKV_VALUE_SIZE_MAX || r->offset > r->length ||
        r->span > r->length - r->offset || r->data.size > r->span) {
        return ERR_INVALID;
    }
    if (r->gone != 0) {
        return r->gone == 1 && r->length == 0 ? ERR_OK : ERR_INVALID;
    }
    bool whole = r->offset == 0 && r->data.size == r->length;
    return whole || r->length > SKV_INLINE_SIZE_MAX ? ERR_OK : ERR_INVALID;
}

/* The length first: what it cuts off must not be seen when it grows again. */
static enum err write_large(struct skv_store *s, const struct skv_record *r)
{
    uint64_t zeros = r->span - r->data.size;
    enum err rc = s->ops->truncate(s, r->key, r->length);
    if (rc == ERR_OK && r->data.size > 0) {
        rc = s->ops->put_range(s, r->key, r->offset, r->data);
    }
    if (rc == ERR_OK && zeros > 0) {
        rc = s->ops->punch(s, r->key, r->offset + r->data.size, zeros);
    }
    return rc;
}

static enum err write_record(struct skv_store *s, const struct skv_record *r)
{
    if (r->gone != 0) {
        return s->ops->remove(s, r->key);
    }
    return r->length <= SKV_INLINE_SIZE_MAX ? s->ops->put(s, r->key, r->data)
                                            : write_large(s, r);
}

enum err skv_batch_write(struct skv_fsm *f, const struct skv_install *install)
{
    enum err rc = ERR_OK;
    for (uint32_t i = 0; rc == ERR_OK && i < install->records_count; i++) {
        rc = write_record(f->store, &install->records[i]);
    }
    return rc;
}

static enum err follow_row(struct skv_fsm *f, uint16_t shard,
                           const struct skv_record *r)
{
    struct skv_row row;
    uint64_t session = 0;
    if (r->gone != 0 || !skv_name_read_session(r->key, &session) ||
        skv_row_decode(r->data, &f->arena, &row) != ERR_OK) {
        return ERR_OK; /* what makes no sense is refused by arrival.c */
    }
    return skv_replies_follow(f, shard, session, row.first);
}

enum err skv_batch_follow(struct skv_fsm *f, const struct skv_install *install)
{
    enum err rc = ERR_OK;
    for (uint32_t i = 0; rc == ERR_OK && i < install->records_count; i++) {
        rc = follow_row(f, install->shard, &install->records[i]);
    }
    return rc;
}
