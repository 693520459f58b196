#include "tests/lib/fake_store.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"

struct pair {
    struct bytes *key;
    struct buf value;
};

struct lock {
    struct slice key;
    bool exclusive;
};

struct fake_store {
    struct fs_store seam; /* first */
    uint32_t shards;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool stuck;
    uint32_t waiting;
    struct pair *pairs; /* by key */
    size_t count, capacity;
    fake_hook *write_hook, *between_hook;
    void *write_arg, *between_arg;
    struct lock locks[SKV_ITEMS_MAX]; /* of the one that is between */
    uint32_t lock_count;
    struct fake_count counts;
};

/* ---- pairs ---- */

static size_t place(const struct fake_store *f, struct slice key)
{
    size_t low = 0, high = f->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (slice_compare(bytes_slice(f->pairs[middle].key), key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct buf *value_find(struct fake_store *f, struct slice key)
{
    size_t at = place(f, key);
    bool found =
        at < f->count && slice_compare(bytes_slice(f->pairs[at].key), key) == 0;
    return found ? &f->pairs[at].value : NULL;
}

static struct buf *value_make(struct fake_store *f, struct slice key)
{
    struct buf *value = value_find(f, key);
    if (value != NULL) {
        return value;
    }
    if (f->count == f->capacity) {
        f->capacity = f->capacity == 0 ? 64 : f->capacity * 2;
        f->pairs = mem_resize(f->pairs, f->capacity * sizeof *f->pairs);
    }
    size_t at = place(f, key);
    memmove(&f->pairs[at + 1], &f->pairs[at],
            (f->count - at) * sizeof *f->pairs);
    f->count++;
    f->pairs[at] = (struct pair){.key = bytes_copy(key)};
    return &f->pairs[at].value;
}

static void remove_at(struct fake_store *f, size_t at)
{
    bytes_unref(f->pairs[at].key);
    buf_free(&f->pairs[at].value);
    f->count--;
    memmove(&f->pairs[at], &f->pairs[at + 1],
            (f->count - at) * sizeof *f->pairs);
}

static bool begins(struct slice key, struct slice prefix)
{
    return key.size >= prefix.size &&
           memcmp(key.data, prefix.data, prefix.size) == 0;
}

static bool any_begins(struct fake_store *f, struct slice prefix)
{
    size_t at = place(f, prefix);
    return at < f->count && begins(bytes_slice(f->pairs[at].key), prefix);
}

static void value_resize(struct buf *value, uint64_t size)
{
    if (size > value->size) {
        size_t more = (size_t)size - value->size;
        memset(buf_extend(value, more), 0, more);
    }
    value->size = (size_t)size;
}

static void value_write(struct buf *value, uint64_t offset, struct slice data)
{
    if (value->size < offset + data.size) {
        value_resize(value, offset + data.size);
    }
    if (data.size > 0) {
        memcpy(value->data + offset, data.data, data.size);
    }
}

/* ---- items ---- */

/* The key an item means, through `via` if it has one. */
static enum err item_key(struct fake_store *f, struct arena *a,
                         const struct skv_item *item, struct slice *out)
{
    if (item->via.size == 0) {
        *out = item->key;
        return ERR_OK;
    }
    const struct buf *via = value_find(f, item->via);
    if (via == NULL) {
        return ERR_NOTFOUND;
    }
    CHECK(via->size >= SKV_OBJECT_SIZE);
    if (memcmp(via->data, item->via.data, SKV_SHARD_SIZE) != 0) {
        return ERR_ELSEWHERE;
    }
    uint8_t *key = arena_alloc(a, SKV_OBJECT_SIZE + item->key.size);
    memcpy(key, via->data, SKV_OBJECT_SIZE);
    memcpy(key + SKV_OBJECT_SIZE, item->key.data, item->key.size);
    *out = slice_of(key, SKV_OBJECT_SIZE + item->key.size);
    return ERR_OK;
}

static bool holds(struct fake_store *f, const struct skv_item *item,
                  struct slice key)
{
    const struct buf *value = value_find(f, key);
    switch ((int)item->kind) {
    case SKV_CMP_EXISTS: return value != NULL;
    case SKV_CMP_ABSENT: return value == NULL;
    case SKV_CMP_LENGTH: return value != NULL && value->size == item->number;
    case SKV_CMP_EMPTY: return !any_begins(f, key);
    default:
        return value != NULL && value->size >= item->offset + item->data.size &&
               memcmp(value->data + item->offset, item->data.data,
                      item->data.size) == 0;
    }
}

static void scan(struct fake_store *f, struct arena *a,
                 const struct skv_item *item, struct slice prefix,
                 struct skv_result *out)
{
    struct buf above = {0}, encoded = {0};
    struct skv_scan found = {0};
    size_t most = item->offset == 0 ? 1 << 20 : item->offset, size = 0;
    buf_append(&above, prefix.data, prefix.size);
    buf_append(&above, item->data.data, item->data.size);
    found.entries = mem_array(item->number, sizeof *found.entries);
    for (size_t at = place(f, buf_slice(&above)); at < f->count; at++) {
        struct slice key = bytes_slice(f->pairs[at].key);
        const struct buf *value = &f->pairs[at].value;
        if (!begins(key, prefix)) {
            break;
        }
        if (item->data.size > 0 && slice_compare(key, buf_slice(&above)) == 0) {
            continue;
        }
        size += key.size + 64;
        if (found.entries_count == item->number || size > most) {
            out->number = 1;
            break;
        }
        found.entries[found.entries_count++] = (struct skv_scan_entry){
            .key = key,
            .length = value->size,
            .head = slice_of(value->data, value->size < 64 ? value->size : 64)};
    }
    skv_scan_encode(&encoded, &found);
    out->data = arena_copy(a, buf_slice(&encoded));
    mem_free(found.entries);
    buf_free(&encoded);
    buf_free(&above);
}

static void do_read(struct fake_store *f, struct arena *a,
                    const struct skv_item *item, struct skv_result *out)
{
    struct slice key;
    out->rc = item_key(f, a, item, &key);
    if (out->rc != ERR_OK) {
        return;
    }
    if (item->kind == SKV_SCAN) {
        scan(f, a, item, key, out);
        return;
    }
    const struct buf *value = value_find(f, key);
    if (value == NULL) {
        out->rc = ERR_NOTFOUND;
        return;
    }
    out->number = value->size;
    if (item->kind == SKV_GET && item->offset < value->size) {
        size_t left = value->size - (size_t)item->offset;
        out->data = arena_copy(
            a, slice_of(value->data + item->offset,
                        item->number < left ? (size_t)item->number : left));
    }
}

static void do_write(struct fake_store *f, const struct skv_item *item,
                     struct slice key, struct skv_result *out)
{
    struct buf *value;
    switch ((int)item->kind) {
    case SKV_PUT:
        value = value_make(f, key);
        value->size = 0;
        value_write(value, 0, item->data);
        break;
    case SKV_APPEND:
        value = value_make(f, key);
        out->number = value->size;
        value_write(value, value->size, item->data);
        break;
    case SKV_PUT_RANGE:
        value_write(value_make(f, key), item->offset, item->data);
        break;
    case SKV_TRUNCATE: value_resize(value_make(f, key), item->number); break;
    case SKV_DELETE:
        if (value_find(f, key) != NULL) {
            remove_at(f, place(f, key));
        }
        break;
    case SKV_DELETE_PREFIX:
        while (any_begins(f, key)) {
            remove_at(f, place(f, key));
        }
        break;
    case SKV_ADD:
        value = value_make(f, key);
        if (value->size < item->offset + 8) {
            value_resize(value, item->offset + 8);
        }
        out->number = get_u64(value->data + item->offset) + item->number;
        set_u64(value->data + item->offset, out->number);
        break;
    case SKV_PUNCH:
        value = value_find(f, key);
        if (value != NULL && item->offset < value->size) {
            size_t left = value->size - (size_t)item->offset;
            memset(value->data + item->offset, 0,
                   item->number < left ? (size_t)item->number : left);
        }
        break;
    default: CHECK(false);
    }
}

/* ---- transactions ---- */

static uint32_t item_shard(const struct skv_item *item)
{
    return get_be16(item->via.size > 0 ? item->via.data : item->key.data);
}

/* As each shard's server would check its part. */
static enum err check(struct fake_store *f, const struct skv_txn *txn,
                      bool *writes, bool *several)
{
    *writes = false;
    *several = false;
    struct skv_request r = {.session = 1, .sequence = 1};
    for (uint32_t i = 0; i < txn->item_count; i++) {
        r.shard = (uint16_t)item_shard(&txn->items[i]);
        r.items = &txn->items[i];
        r.items_count = 1;
        enum err rc = skv_request_check(&r);
        if (rc != ERR_OK || r.shard >= f->shards) {
            return rc == ERR_OK ? ERR_INVALID : rc;
        }
        *writes |= skv_kind_is_write(txn->items[i].kind);
        *several |= r.shard != item_shard(&txn->items[0]);
    }
    if (!*several) {
        r.items = txn->items;
        r.items_count = txn->item_count;
        return skv_request_check(&r);
    }
    return ERR_OK;
}

static bool is_locked(const struct fake_store *f, const struct skv_item *item)
{
    bool exclusive = skv_kind_is_write(item->kind);
    for (uint32_t i = 0; i < f->lock_count; i++) {
        if ((exclusive || f->locks[i].exclusive) &&
            slice_compare(f->locks[i].key, item->key) == 0) {
            return true;
        }
    }
    return false;
}

/* Compares and reads: the vote. */
static enum err vote(struct fake_store *f, struct skv_txn *txn, bool writes)
{
    for (uint32_t i = 0; i < txn->item_count; i++) {
        const struct skv_item *item = &txn->items[i];
        struct skv_result *out = &txn->results[i];
        struct slice key;
        if (is_locked(f, item)) {
            return ERR_LOCKED;
        }
        if (skv_kind_is_read(item->kind)) {
            do_read(f, &txn->arena, item, out);
            if (writes && item->kind == SKV_GET &&
                out->number > SKV_INLINE_SIZE_MAX) {
                return ERR_TOOBIG;
            }
            continue;
        }
        enum err rc = item_key(f, &txn->arena, item, &key);
        if (rc == ERR_OK && skv_kind_is_compare(item->kind) &&
            !holds(f, item, key)) {
            rc = ERR_CONFLICT;
        }
        if (rc != ERR_OK) {
            out->rc = rc;
            txn->failed = i;
            return rc;
        }
    }
    return ERR_OK;
}

static void note(struct fake_store *f, const struct skv_item *item)
{
    static const char *const names[] = {"PUT",      "APPEND", "PUT_RANGE",
                                        "TRUNCATE", "DELETE", "DELETE_PREFIX",
                                        "ADD",      "PUNCH"};
    size_t used = strlen(f->counts.content);
    if (item->key.size == SKV_OBJECT_SIZE + 1 &&
        item->key.data[SKV_OBJECT_SIZE] == 'c') {
        snprintf(f->counts.content + used, sizeof f->counts.content - used,
                 "%s %zu ", names[item->kind - SKV_PUT], item->data.size);
    }
}

static void commit(struct fake_store *f, struct skv_txn *txn)
{
    for (uint32_t i = 0; i < txn->item_count; i++) {
        const struct skv_item *item = &txn->items[i];
        struct slice key;
        if (skv_kind_is_write(item->kind)) {
            CHECK(item_key(f, &txn->arena, item, &key) == ERR_OK);
            do_write(f, item, key, &txn->results[i]);
            note(f, item);
        }
    }
}

static void run_hook(struct fake_store *f, fake_hook **hook, void *arg)
{
    fake_hook *run = *hook;
    *hook = NULL;
    if (run != NULL) {
        pthread_mutex_unlock(&f->mutex);
        run(arg);
        pthread_mutex_lock(&f->mutex);
    }
}

static void between(struct fake_store *f, const struct skv_txn *txn)
{
    if (f->between_hook == NULL) {
        return;
    }
    for (uint32_t i = 0; i < txn->item_count; i++) {
        const struct skv_item *item = &txn->items[i];
        if (item->kind != SKV_CMP_EMPTY && item->kind != SKV_DELETE_PREFIX &&
            item->kind != SKV_SCAN) {
            f->locks[f->lock_count++] = (struct lock){
                .key = item->key, .exclusive = skv_kind_is_write(item->kind)};
        }
    }
    run_hook(f, &f->between_hook, f->between_arg);
    f->lock_count = 0;
}

static enum err execute(struct fake_store *f, struct skv_txn *txn)
{
    bool writes, several;
    enum err rc = check(f, txn, &writes, &several);
    if (rc != ERR_OK) {
        return rc;
    }
    if (writes) {
        run_hook(f, &f->write_hook, f->write_arg);
    }
    f->counts.execs++;
    f->counts.writes += writes;
    f->counts.several += several;
    rc = vote(f, txn, writes);
    if (rc == ERR_OK && several) {
        between(f, txn);
    }
    if (rc == ERR_OK) {
        commit(f, txn);
    }
    return rc;
}

static enum err fake_exec(struct fs_store *s, struct skv_txn *txn)
{
    struct fake_store *f = (struct fake_store *)s;
    txn->results =
        arena_array(&txn->arena, txn->item_count, sizeof *txn->results);
    pthread_mutex_lock(&f->mutex);
    f->waiting++;
    while (f->stuck && txn->impl == NULL) {
        pthread_cond_wait(&f->changed, &f->mutex);
    }
    f->waiting--;
    txn->rc = txn->impl != NULL ? ERR_INTERRUPTED : execute(f, txn);
    pthread_mutex_unlock(&f->mutex);
    return txn->rc;
}

static void fake_cancel(struct fs_store *s, struct skv_txn *txn)
{
    struct fake_store *f = (struct fake_store *)s;
    pthread_mutex_lock(&f->mutex);
    txn->impl = f; /* marks it as cancelled */
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
}

static uint32_t fake_shard_count(struct fs_store *s)
{
    return ((struct fake_store *)s)->shards;
}

struct fake_store *fake_store_new(uint32_t shard_count)
{
    struct fake_store *f = mem_alloc(sizeof *f);
    f->seam.exec = fake_exec;
    f->seam.cancel = fake_cancel;
    f->seam.shard_count = fake_shard_count;
    f->shards = shard_count;
    CHECK(pthread_mutex_init(&f->mutex, NULL) == 0);
    CHECK(pthread_cond_init(&f->changed, NULL) == 0);
    return f;
}

void fake_store_free(struct fake_store *f)
{
    while (f->count > 0) {
        remove_at(f, f->count - 1);
    }
    mem_free(f->pairs);
    pthread_mutex_destroy(&f->mutex);
    pthread_cond_destroy(&f->changed);
    mem_free(f);
}

struct fs_store *fake_store_seam(struct fake_store *f)
{
    return &f->seam;
}

void fake_store_hook_write(struct fake_store *f, fake_hook *hook, void *arg)
{
    f->write_hook = hook;
    f->write_arg = arg;
}

void fake_store_hook_between(struct fake_store *f, fake_hook *hook, void *arg)
{
    f->between_hook = hook;
    f->between_arg = arg;
}

void fake_store_stick(struct fake_store *f, bool stuck)
{
    pthread_mutex_lock(&f->mutex);
    f->stuck = stuck;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
}

void fake_store_clear(struct fake_store *f)
{
    pthread_mutex_lock(&f->mutex);
    f->counts = (struct fake_count){0};
    pthread_mutex_unlock(&f->mutex);
}

struct fake_count fake_store_count(struct fake_store *f)
{
    pthread_mutex_lock(&f->mutex);
    struct fake_count counts = f->counts;
    counts.waiting = f->waiting;
    pthread_mutex_unlock(&f->mutex);
    return counts;
}

size_t fake_store_keys(struct fake_store *f, uint64_t object)
{
    size_t count = 0;
    pthread_mutex_lock(&f->mutex);
    for (size_t i = 0; i < f->count; i++) {
        uint64_t of = get_be64(f->pairs[i].key->data);
        bool inode = (of & SKV_OBJECT_KV) < SKV_OBJECT_KV - 1;
        count += object == 0 ? inode : of == object;
    }
    pthread_mutex_unlock(&f->mutex);
    return count;
}
