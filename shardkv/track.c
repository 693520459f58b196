/* A store that writes down what changes in a shard that is leaving: it stands
 * between the state machine and its store, so no write can go past it.
 * Invariants (docs/migration.md):
 *
 *  1. From the entry that makes a shard LEAVING to the one that freezes it,
 *     each write to one of its keys leaves a change behind: the key, and the
 *     bytes of its value that may be others now. Its length may be, too.
 *  2. Changes sort by the log's entries: what happens after somebody has read
 *     some of them sorts behind all of those.
 *  3. A change that covers the last one of its key takes its place: who writes
 *     a key again and again has it copied once, or again when it was copied in
 *     between. Two keys of one hash only lose this.
 *  4. A reply that goes, because its session's row has passed it, leaves no
 *     change, and takes its own along: else each write would leave one for
 *     ever. The row is written by the same entry, and its change sorts behind:
 *     who reads that one forgets the reply (skv_replies_follow()).
 *  5. They are state like any other: every replica has the same, and a crash
 *     or a new leader loses none. They go when the shard is dropped. */
#include "shardkv/fsm_int.h"

#include <string.h>

#include "base/check.h"
#include "base/codec.h"

MSG_CODEC(skv_change, SKV_CHANGE_FIELDS)

struct track {
    struct skv_store store;
    struct skv_store *inner;
    const struct skv_fsm *fsm;
    raft_index index; /* of the entry that `count` changes are of */
    uint32_t count;
    struct buf scratch;
};

static const struct skv_store_ops track_ops;

static struct track *of(struct skv_store *s)
{
    return (struct track *)(void *)s; /* it is the first member */
}

static struct skv_store *in(struct skv_store *s)
{
    return of(s)->inner;
}

/* ---- changes ---- */

/* A key on its way through a write, which may take the bytes it was given in:
 * they can be the store's own. */
struct touched {
    uint8_t bytes[SKV_STORE_KEY_SIZE_MAX];
    size_t size; /* 0: the shard stays, so nobody wants to know */
};

/* Before the write. */
static void touch(const struct track *t, struct slice key, struct touched *k)
{
    k->size = 0;
    if (key.size < SKV_SHARD_SIZE || key.size > sizeof k->bytes) {
        return;
    }
    uint16_t shard = get_be16(key.data);
    if (shard < t->fsm->config.shards_count &&
        t->fsm->shards[shard].state == SKV_SHARD_LEAVING) {
        memcpy(k->bytes, key.data, key.size);
        k->size = key.size;
    }
}

static bool covers(const struct skv_change *now, const struct skv_change *old)
{
    return slice_compare(now->key, old->key) == 0 &&
           now->offset <= old->offset && now->end >= old->end;
}

/* Invariant 3: `latest` names the last change of a key of this hash. *found: it
 * is gone. */
static enum err forget_covered(struct track *t, const struct skv_name *latest,
                               const struct skv_change *now, bool *found)
{
    const struct skv_store_ops *ops = t->inner->ops;
    struct skv_name name = {0};
    struct skv_value value;
    struct skv_change old;
    struct arena a = {0};
    enum err rc = ops->lookup(t->inner, skv_name_slice(latest), &value);
    *found = false;
    if (rc != ERR_OK) {
        return rc == ERR_NOTFOUND ? ERR_OK : rc;
    }
    if (value.inline_bytes.size > sizeof name.data) {
        return ERR_CORRUPT;
    }
    name.size = value.inline_bytes.size;
    memcpy(name.data, value.inline_bytes.data, name.size);
    rc = ops->lookup(t->inner, skv_name_slice(&name), &value);
    if (rc == ERR_OK) {
        rc = skv_change_decode(value.inline_bytes, &a, &old);
    }
    if (rc == ERR_OK && covers(now, &old)) {
        *found = true;
        rc = ops->remove(t->inner, skv_name_slice(&name));
    }
    arena_free(&a);
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

/* Of the entry at hand. What leaves no change takes a number, too: else the
 * names of those behind it would be others in a log's replay by a program that
 * knew nothing of that. */
static void next_number(struct track *t)
{
    raft_index index = t->fsm->index + 1;
    t->count = index == t->index ? t->count + 1 : 0;
    t->index = index;
}

/* After it: `rc` is what it gave. */
static enum err write_down(struct track *t, const struct touched *k,
                           uint64_t offset, uint64_t end, enum err rc)
{
    if (rc != ERR_OK || k->size == 0) {
        return rc;
    }
    bool found = false;
    next_number(t);
    struct skv_change change = {
        .key = slice_of(k->bytes, k->size), .offset = offset, .end = end};
    uint16_t shard = get_be16(k->bytes);
    struct skv_name name = skv_name_change(shard, t->index, t->count);
    struct skv_name latest = skv_name_latest(shard, crc32c(0, change.key));
    rc = forget_covered(t, &latest, &change, &found);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = t->inner->ops->put(t->inner, skv_name_slice(&latest),
                            skv_name_slice(&name));
    buf_clear(&t->scratch);
    skv_change_encode(&t->scratch, &change);
    return rc != ERR_OK ? rc
                        : t->inner->ops->put(t->inner, skv_name_slice(&name),
                                             buf_slice(&t->scratch));
}

/* ---- writes ---- */

static enum err op_put(struct skv_store *s, struct slice key,
                       struct slice value)
{
    struct touched k;
    touch(of(s), key, &k);
    enum err rc = in(s)->ops->put(in(s), key, value);
    return write_down(of(s), &k, 0, UINT64_MAX, rc);
}

/* The zeros of a hole before `offset` need no change: whoever copies sets the
 * length, and what it has beyond the old one was cut off by another change. */
static enum err op_put_range(struct skv_store *s, struct slice key,
                             uint64_t offset, struct slice data)
{
    struct touched k;
    uint64_t end = offset + data.size;
    touch(of(s), key, &k);
    enum err rc = in(s)->ops->put_range(in(s), key, offset, data);
    return write_down(of(s), &k, offset, end, rc);
}

/* What it cuts off is zeros if the value grows again. */
static enum err op_truncate(struct skv_store *s, struct slice key,
                            uint64_t length)
{
    struct touched k;
    touch(of(s), key, &k);
    enum err rc = in(s)->ops->truncate(in(s), key, length);
    return write_down(of(s), &k, length, UINT64_MAX, rc);
}

static enum err op_punch(struct skv_store *s, struct slice key, uint64_t offset,
                         uint64_t size)
{
    struct touched k;
    touch(of(s), key, &k);
    enum err rc = in(s)->ops->punch(in(s), key, offset, size);
    return write_down(of(s), &k, offset, offset + size, rc);
}

static enum err op_remove(struct skv_store *s, struct slice key)
{
    struct touched k;
    touch(of(s), key, &k);
    enum err rc = in(s)->ops->remove(in(s), key);
    return write_down(of(s), &k, 0, UINT64_MAX, rc);
}

/* Invariant 4. */
enum err skv_track_forget(struct skv_store *s, struct slice key)
{
    struct track *t = of(s);
    struct touched k;
    bool found = false;
    CHECK(s->ops == &track_ops);
    touch(t, key, &k);
    enum err rc = in(s)->ops->remove(in(s), key);
    if (rc != ERR_OK || k.size == 0) {
        return rc;
    }
    struct skv_change change = {.key = slice_of(k.bytes, k.size),
                                .end = UINT64_MAX};
    struct skv_name latest =
        skv_name_latest(get_be16(k.bytes), crc32c(0, change.key));
    next_number(t);
    rc = forget_covered(t, &latest, &change, &found);
    return rc == ERR_OK && found
               ? in(s)->ops->remove(in(s), skv_name_slice(&latest))
               : rc;
}

/* ---- all else goes through ---- */

static enum err op_lookup(struct skv_store *s, struct slice key,
                          struct skv_value *out)
{
    return in(s)->ops->lookup(in(s), key, out);
}

static enum err op_read(struct skv_store *s, struct slice key, uint64_t offset,
                        void *to, size_t size, size_t *got)
{
    return in(s)->ops->read(in(s), key, offset, to, size, got);
}

static enum err op_scan(struct skv_store *s, struct slice prefix,
                        struct slice from, skv_scan_fn *each, void *arg)
{
    return in(s)->ops->scan(in(s), prefix, from, each, arg);
}

static enum err op_checkpoint(struct skv_store *s, uint64_t index,
                              uint64_t term)
{
    return in(s)->ops->checkpoint(in(s), index, term);
}

static enum err op_checkpoint_begin(struct skv_store *s, uint64_t index,
                                    uint64_t term)
{
    return in(s)->ops->checkpoint_begin(in(s), index, term);
}

static enum err op_checkpoint_write(struct skv_store *s)
{
    return in(s)->ops->checkpoint_write(in(s));
}

static enum err op_checkpoint_end(struct skv_store *s)
{
    return in(s)->ops->checkpoint_end(in(s));
}

/* The entry at hand comes again, and its changes get the same numbers. */
static enum err op_rewind(struct skv_store *s)
{
    of(s)->index = 0;
    return in(s)->ops->rewind(in(s));
}

static void op_durable(struct skv_store *s, uint64_t *index, uint64_t *term)
{
    in(s)->ops->durable(in(s), index, term);
}

static uint64_t op_unsaved(struct skv_store *s)
{
    return in(s)->ops->unsaved(in(s));
}

static enum err op_view_open(struct skv_store *s, struct skv_view **out)
{
    return in(s)->ops->view_open(in(s), out);
}

static enum err op_view_read(struct skv_store *s, struct skv_view *v,
                             enum err (*write)(void *arg, struct slice bytes),
                             void *arg)
{
    return in(s)->ops->view_read(in(s), v, write, arg);
}

static enum err op_view_open_exact(struct skv_store *s, struct skv_view **out)
{
    return in(s)->ops->view_open_exact(in(s), out);
}

static enum err op_view_scan(struct skv_store *s, struct skv_view *v,
                             struct slice prefix, struct slice from,
                             skv_scan_fn *each, void *arg)
{
    return in(s)->ops->view_scan(in(s), v, prefix, from, each, arg);
}

static enum err op_view_value(struct skv_store *s, struct skv_view *v,
                              struct slice key, uint64_t offset, void *to,
                              size_t size, size_t *got)
{
    return in(s)->ops->view_value(in(s), v, key, offset, to, size, got);
}

static enum err op_view_skip(struct skv_store *s, struct skv_view *v,
                             struct slice key, uint64_t offset,
                             uint64_t *data_at)
{
    return in(s)->ops->view_skip(in(s), v, key, offset, data_at);
}

static void op_view_close(struct skv_store *s, struct skv_view *v)
{
    in(s)->ops->view_close(in(s), v);
}

static enum err op_install(struct skv_store *s,
                           enum err (*read)(void *arg, void *to,
                                            size_t size_max, size_t *size),
                           void *arg, uint64_t index, uint64_t term)
{
    return in(s)->ops->install(in(s), read, arg, index, term);
}

static void op_usage(struct skv_store *s, uint64_t *keys, uint64_t *bytes)
{
    in(s)->ops->usage(in(s), keys, bytes);
}

static void op_close(struct skv_store *s)
{
    in(s)->ops->close(in(s));
    buf_free(&of(s)->scratch);
    mem_free(of(s));
}

static const struct skv_store_ops track_ops = {
    .lookup = op_lookup,
    .read = op_read,
    .put = op_put,
    .put_range = op_put_range,
    .truncate = op_truncate,
    .punch = op_punch,
    .remove = op_remove,
    .scan = op_scan,
    .checkpoint = op_checkpoint,
    .checkpoint_begin = op_checkpoint_begin,
    .checkpoint_write = op_checkpoint_write,
    .checkpoint_end = op_checkpoint_end,
    .unsaved = op_unsaved,
    .durable = op_durable,
    .rewind = op_rewind,
    .view_open = op_view_open,
    .view_read = op_view_read,
    .view_open_exact = op_view_open_exact,
    .view_scan = op_view_scan,
    .view_value = op_view_value,
    .view_skip = op_view_skip,
    .view_close = op_view_close,
    .install = op_install,
    .usage = op_usage,
    .close = op_close,
};

struct skv_store *skv_track_new(struct skv_store *inner,
                                const struct skv_fsm *f)
{
    struct track *t = mem_alloc(sizeof *t);
    t->store.ops = &track_ops;
    t->inner = inner;
    t->fsm = f;
    return &t->store;
}
