/* Building a transaction and running it.
 *
 *  1. Each transaction that changes an inode, or anything of it, names its
 *     attributes key, in a compare or a write. Two-phase commit locks the keys
 *     a transaction names, so the attributes key is the lock of the whole
 *     object; a prefix (CMP_EMPTY, DELETE_PREFIX) locks nothing by itself.
 *  2. PUT_RANGE and ADD make a key that is missing. So attributes are only
 *     written in a transaction that compares that they are there, or that an
 *     entry still names them. */
#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "fs/fs_int.h"

void fs_txn_init(struct fs_txn *t, struct fs_call *call)
{
    t->call = call;
    t->arena = (struct arena){0};
    t->count = 0;
    t->run = (struct skv_txn){0};
}

void fs_txn_fini(struct fs_txn *t)
{
    arena_free(&t->arena);
    arena_free(&t->run.arena);
}

uint32_t fs_txn_room(const struct fs_txn *t)
{
    return SKV_ITEMS_MAX - t->count;
}

struct skv_item *fs_txn_add(struct fs_txn *t, enum skv_kind kind,
                            struct slice key)
{
    CHECK(t->count < SKV_ITEMS_MAX);
    struct skv_item *item = &t->items[t->count++];
    *item = (struct skv_item){.kind = (uint8_t)kind, .key = key};
    return item;
}

static bool run_begin(struct fs_txn *t)
{
    struct fs_call *call = t->call;
    pthread_mutex_lock(&call->fs->call_lock);
    bool go = !call->cancelled && !call->fs->cancel_all;
    call->running = go ? &t->run : NULL;
    pthread_mutex_unlock(&call->fs->call_lock);
    return go;
}

static void run_end(struct fs_txn *t)
{
    pthread_mutex_lock(&t->call->fs->call_lock);
    t->call->running = NULL;
    pthread_mutex_unlock(&t->call->fs->call_lock);
}

enum err fs_txn_run(struct fs_txn *t)
{
    struct fs_store *store = t->call->fs->store;
    t->run.items = t->items;
    t->run.item_count = t->count;
    if (!run_begin(t)) {
        return ERR_INTERRUPTED;
    }
    enum err rc = store->exec(store, &t->run);
    run_end(t);
    return rc;
}

const struct skv_result *fs_txn_result(const struct fs_txn *t, uint32_t item)
{
    CHECK(item < t->count);
    return &t->run.results[item];
}

struct slice fs_key_attr(struct fs_txn *t, uint64_t ino)
{
    return fs_key(&t->arena, ino, FS_KEY_ATTR, slice_of(NULL, 0));
}

struct slice fs_key_content(struct fs_txn *t, uint64_t ino)
{
    return fs_key(&t->arena, ino, FS_KEY_CONTENT, slice_of(NULL, 0));
}

struct slice fs_key_entry(struct fs_txn *t, uint64_t parent, const char *name)
{
    return fs_key(&t->arena, parent, FS_KEY_ENTRY, slice_text(name));
}

void fs_txn_exists(struct fs_txn *t, uint64_t ino)
{
    fs_txn_add(t, SKV_CMP_EXISTS, fs_key_attr(t, ino));
}

void fs_txn_bytes(struct fs_txn *t, struct slice key, uint64_t offset,
                  const void *data, size_t size)
{
    struct skv_item *item = fs_txn_add(t, SKV_CMP_BYTES, key);
    item->offset = offset;
    item->data = arena_copy(&t->arena, slice_of(data, size));
}

void fs_txn_live(struct fs_txn *t, uint64_t ino)
{
    uint8_t state[4];
    set_u32(state, FS_FORMAT | FS_LIVE << 16);
    fs_txn_bytes(t, fs_key_attr(t, ino), FS_ATTR_STATE, state, sizeof state);
}

void fs_txn_owner(struct fs_txn *t, const struct fs_attr *attr)
{
    uint8_t bytes[FS_ATTR_SIZE];
    fs_attr_encode(attr, bytes);
    fs_txn_bytes(t, fs_key_attr(t, attr->ino), 0, bytes, FS_OWNER_SIZE);
}

static void put_range(struct fs_txn *t, uint64_t ino, uint32_t at,
                      const void *data, size_t size)
{
    struct skv_item *item = fs_txn_add(t, SKV_PUT_RANGE, fs_key_attr(t, ino));
    item->offset = at;
    item->data = arena_copy(&t->arena, slice_of(data, size));
}

void fs_txn_put_u32(struct fs_txn *t, uint64_t ino, uint32_t at, uint32_t v)
{
    uint8_t bytes[4];
    set_u32(bytes, v);
    put_range(t, ino, at, bytes, sizeof bytes);
}

void fs_txn_put_u64(struct fs_txn *t, uint64_t ino, uint32_t at, uint64_t v)
{
    uint8_t bytes[8];
    set_u64(bytes, v);
    put_range(t, ino, at, bytes, sizeof bytes);
}

void fs_txn_put_time(struct fs_txn *t, uint64_t ino, uint32_t at,
                     struct timespec v)
{
    uint8_t bytes[FS_TIME_SIZE];
    fs_time_encode(v, bytes);
    put_range(t, ino, at, bytes, sizeof bytes);
}

void fs_txn_touch(struct fs_txn *t, uint64_t ino, struct timespec now)
{
    uint8_t bytes[2 * FS_TIME_SIZE];
    fs_time_encode(now, bytes);
    fs_time_encode(now, bytes + FS_TIME_SIZE);
    put_range(t, ino, FS_ATTR_MTIME, bytes, sizeof bytes);
}

void fs_txn_add_nlink(struct fs_txn *t, uint64_t ino, int64_t delta)
{
    if (delta == 0) {
        return;
    }
    struct skv_item *item = fs_txn_add(t, SKV_ADD, fs_key_attr(t, ino));
    item->offset = FS_ATTR_NLINK;
    item->number = (uint64_t)delta;
}

void fs_txn_put_entry(struct fs_txn *t, uint64_t parent, const char *name,
                      uint64_t ino, uint32_t mode)
{
    uint8_t bytes[FS_ENTRY_SIZE];
    fs_entry_encode(ino, mode, bytes);
    struct skv_item *item =
        fs_txn_add(t, SKV_PUT, fs_key_entry(t, parent, name));
    item->data = arena_copy(&t->arena, slice_of(bytes, sizeof bytes));
}

/* ---- calls ---- */

void fs_call_begin(struct fs_call *call, struct fs *fs, uint32_t uid,
                   uint32_t gid)
{
    *call = (struct fs_call){.fs = fs, .uid = uid, .gid = gid};
    pthread_mutex_lock(&fs->call_lock);
    call->next = fs->calls;
    if (call->next != NULL) {
        call->next->prev = call;
    }
    fs->calls = call;
    pthread_mutex_unlock(&fs->call_lock);
}

void fs_call_end(struct fs_call *call)
{
    struct fs *fs = call->fs;
    pthread_mutex_lock(&fs->call_lock);
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
    if (call->prev != NULL) {
        call->prev->next = call->next;
    } else {
        fs->calls = call->next;
    }
    pthread_mutex_unlock(&fs->call_lock);
}

static void cancel_locked(struct fs_call *call)
{
    call->cancelled = true;
    if (call->running != NULL) {
        call->fs->store->cancel(call->fs->store, call->running);
    }
}

/* Who waits for the table of open files looks at `cancelled` too. */
static void wake_all(struct fs *fs)
{
    pthread_cond_broadcast(&fs->call_woken);
    pthread_mutex_lock(&fs->open_lock);
    pthread_cond_broadcast(&fs->open_changed);
    pthread_mutex_unlock(&fs->open_lock);
}

void fs_call_cancel(struct fs_call *call)
{
    struct fs *fs = call->fs;
    pthread_mutex_lock(&fs->call_lock);
    cancel_locked(call);
    pthread_mutex_unlock(&fs->call_lock);
    wake_all(fs);
}

void fs_cancel_all(struct fs *fs)
{
    pthread_mutex_lock(&fs->call_lock);
    fs->cancel_all = true;
    for (struct fs_call *c = fs->calls; c != NULL; c = c->next) {
        cancel_locked(c);
    }
    pthread_mutex_unlock(&fs->call_lock);
    wake_all(fs);
}

bool fs_call_cancelled(struct fs_call *call)
{
    pthread_mutex_lock(&call->fs->call_lock);
    bool cancelled = call->cancelled || call->fs->cancel_all;
    pthread_mutex_unlock(&call->fs->call_lock);
    return cancelled;
}

struct timespec fs_now(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0);
    return now;
}

/* The first retry is at once: most conflicts are with one other caller, who is
 * done by then. */
static uint64_t pause_ns(struct fs *fs, uint32_t attempt)
{
    if (attempt == 0) {
        return 0;
    }
    uint64_t most_us = 500ull << (attempt < 9 ? attempt : 9); /* 256 ms */
    pthread_mutex_lock(&fs->ino_lock);
    uint64_t us = rng_between(&fs->rng, most_us / 4, most_us);
    pthread_mutex_unlock(&fs->ino_lock);
    return us * 1000;
}

enum err fs_retry_pause(struct fs_call *call, struct fs_retry *r)
{
    struct fs *fs = call->fs;
    uint64_t ns = pause_ns(fs, r->attempts++);
    struct timespec until;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &until) == 0);
    ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);

    pthread_mutex_lock(&fs->call_lock);
    while (!call->cancelled && !fs->cancel_all) {
        if (pthread_cond_timedwait(&fs->call_woken, &fs->call_lock, &until) ==
            ETIMEDOUT) {
            break;
        }
    }
    bool cancelled = call->cancelled || fs->cancel_all;
    pthread_mutex_unlock(&fs->call_lock);
    return cancelled ? ERR_INTERRUPTED : ERR_OK;
}
