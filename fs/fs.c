/* The filesystem as a whole: its root, and what is kept in memory of a mount.
 *
 *  1. Nothing kept here can make an answer old: counters of inodes are this
 *     mount's alone, hints are compared in the transaction that uses them, and
 *     the table of open files is about this mount only.
 *  2. Locks are leaves: none is held while a transaction runs or while another
 *     is taken, except that call_lock is held in store->cancel(). */
#include "base/check.h"
#include "fs/fs_int.h"

#include <string.h>

enum { INO_RANGE = 1024 };

static void cond_init_monotonic(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    CHECK(pthread_condattr_init(&attr) == 0);
    CHECK(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    CHECK(pthread_cond_init(cond, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

struct fs *fs_new(struct fs_store *store)
{
    struct fs *fs = mem_alloc(sizeof *fs);
    fs->store = store;
    fs->rng.state = rng_entropy();
    fs->mount_id = rng_entropy();
    fs->next_shard = (uint32_t)rng_next(&fs->rng);
    CHECK(pthread_mutex_init(&fs->call_lock, NULL) == 0);
    CHECK(pthread_mutex_init(&fs->ino_lock, NULL) == 0);
    CHECK(pthread_mutex_init(&fs->open_lock, NULL) == 0);
    cond_init_monotonic(&fs->call_woken);
    cond_init_monotonic(&fs->open_changed);
    return fs;
}

uint64_t fs_mount_id(const struct fs *fs)
{
    return fs->mount_id;
}

/* A root that exists is fine, whoever made it. */
enum err fs_mkfs(struct fs_call *call)
{
    struct timespec now = fs_now();
    struct fs_attr root = {
        .ino = FS_INO_ROOT,
        .mode = S_IFDIR | 0755,
        .uid = call->uid,
        .gid = call->gid,
        .nlink = 2,
        .parent = FS_INO_ROOT,
        .mtime = now,
        .ctime = now,
        .atime = now,
        .btime = now,
    };
    uint8_t bytes[FS_ATTR_SIZE];
    fs_attr_encode(&root, bytes);

    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_add(&t, SKV_CMP_ABSENT, fs_key_attr(&t, FS_INO_ROOT));
    fs_txn_add(&t, SKV_PUT, fs_key_attr(&t, FS_INO_ROOT))->data =
        slice_of(bytes, sizeof bytes);
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc == ERR_CONFLICT ? ERR_OK : rc;
}

/* ---- inode numbers ---- */

static bool range_take(struct fs *fs, uint32_t shard, uint64_t *counter)
{
    pthread_mutex_lock(&fs->ino_lock);
    bool ok = shard < fs->range_count &&
              fs->ranges[shard].next < fs->ranges[shard].end;
    if (ok) {
        *counter = fs->ranges[shard].next++;
    }
    pthread_mutex_unlock(&fs->ino_lock);
    return ok;
}

/* What is left of an older range is given up: there are 2^48. */
static void range_keep(struct fs *fs, uint32_t shard, struct fs_range range)
{
    pthread_mutex_lock(&fs->ino_lock);
    if (shard >= fs->range_count) {
        fs->ranges = mem_resize(fs->ranges, (shard + 1) * sizeof *fs->ranges);
        memset(fs->ranges + fs->range_count, 0,
               (shard + 1 - fs->range_count) * sizeof *fs->ranges);
        fs->range_count = shard + 1;
    }
    fs->ranges[shard] = range;
    pthread_mutex_unlock(&fs->ino_lock);
}

static enum err range_fetch(struct fs_call *call, uint32_t shard,
                            struct fs_range *out)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_add(&t, SKV_ADD,
               fs_key(&t.arena, fs_ino(shard, FS_OBJECT_SHARD), FS_KEY_NEXT,
                      slice_of(NULL, 0)))
        ->number = INO_RANGE;
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        /* The first sum is INO_RANGE: counters below it are reserved. */
        out->next = fs_txn_result(&t, 0)->number;
        out->end = out->next + INO_RANGE;
        if (out->next < INO_RANGE || out->end >= FS_OBJECT_SHARD) {
            rc = ERR_CORRUPT;
        }
    }
    fs_txn_fini(&t);
    return rc;
}

enum err fs_ino_new(struct fs_call *call, uint32_t shard, uint64_t *out)
{
    uint64_t counter;
    if (!range_take(call->fs, shard, &counter)) {
        struct fs_range range;
        enum err rc = range_fetch(call, shard, &range);
        if (rc != ERR_OK) {
            return rc;
        }
        counter = range.next++;
        range_keep(call->fs, shard, range);
    }
    *out = fs_ino(shard, counter);
    return ERR_OK;
}

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

/* So many shards on, for the next directory. A group owns shards that lie side
 * by side, so steps of one would fill a group before the next gets anything;
 * steps of the golden section spread any few of them, and one that shares no
 * divisor with `count` leaves no shard out. */
static uint32_t shard_stride(uint32_t count)
{
    uint32_t stride = (uint32_t)((uint64_t)count * 618 / 1000) + 1;
    while (common_divisor(stride, count) != 1) {
        stride++;
    }
    return stride;
}

/* Directories go round all shards: an even spread at any number of them, which
 * hashing gives only for many. */
enum err fs_shard_pick(struct fs_call *call, uint32_t *out)
{
    struct fs *fs = call->fs;
    uint32_t count = fs->store->shard_count(fs->store);
    if (count == 0) {
        return ERR_BUSY;
    }
    pthread_mutex_lock(&fs->ino_lock);
    fs->next_shard = (fs->next_shard + shard_stride(count)) % count;
    *out = fs->next_shard;
    pthread_mutex_unlock(&fs->ino_lock);
    return ERR_OK;
}

/* ---- hints ---- */

static struct fs_hint *hint_of(struct fs *fs, uint64_t ino)
{
    return &fs->hints[(ino * 0x9e3779b97f4a7c15ull) >> 32 & (FS_HINTS - 1)];
}

void fs_hint_keep(struct fs *fs, const struct fs_attr *attr)
{
    if (!S_ISDIR(attr->mode) || attr->removed) {
        return;
    }
    pthread_mutex_lock(&fs->ino_lock);
    *hint_of(fs, attr->ino) = (struct fs_hint){
        .ino = attr->ino,
        .mode = attr->mode,
        .uid = attr->uid,
        .gid = attr->gid,
    };
    pthread_mutex_unlock(&fs->ino_lock);
}

void fs_hint_drop(struct fs *fs, uint64_t ino)
{
    pthread_mutex_lock(&fs->ino_lock);
    if (hint_of(fs, ino)->ino == ino) {
        hint_of(fs, ino)->ino = 0;
    }
    pthread_mutex_unlock(&fs->ino_lock);
}

enum err fs_hint_get(struct fs_call *call, uint64_t ino, struct fs_attr *out)
{
    pthread_mutex_lock(&call->fs->ino_lock);
    struct fs_hint hint = *hint_of(call->fs, ino);
    pthread_mutex_unlock(&call->fs->ino_lock);
    if (hint.ino == ino) {
        *out = (struct fs_attr){
            .ino = ino, .mode = hint.mode, .uid = hint.uid, .gid = hint.gid};
        return ERR_OK;
    }
    enum err rc = fs_parent_check(call, ino);
    if (rc != ERR_OK) {
        return rc;
    }
    return fs_attr_read(call, ino, out);
}

enum err fs_parent_check(struct fs_call *call, uint64_t parent)
{
    struct fs_attr attr;
    fs_hint_drop(call->fs, parent);
    enum err rc = fs_attr_read(call, parent, &attr); /* keeps a new hint */
    if (rc == ERR_STALE || (rc == ERR_OK && attr.removed)) {
        return ERR_NOTFOUND;
    }
    if (rc == ERR_OK && !S_ISDIR(attr.mode)) {
        return ERR_NOTDIR;
    }
    return rc;
}

/* ---- statfs ---- */

/* What is free is known to the servers, and no item asks for it. So these are
 * not measured: a terabyte for each shard, as many as are promised by
 * SKV_VALUE_SIZE_MAX, all free; programs that check for room go on, and real
 * shortage shows as ENOSPC at the write. */
enum err fs_statfs(struct fs_call *call, struct statvfs *out)
{
    uint64_t shards = call->fs->store->shard_count(call->fs->store);
    uint64_t blocks = (shards == 0 ? 1 : shards) * (SKV_VALUE_SIZE_MAX / 4096);
    *out = (struct statvfs){
        .f_bsize = 4096,
        .f_frsize = 4096,
        .f_blocks = blocks,
        .f_bfree = blocks,
        .f_bavail = blocks,
        .f_files = 1ull << 48,
        .f_ffree = 1ull << 48,
        .f_favail = 1ull << 48,
        .f_namemax = FS_NAME_SIZE_MAX,
    };
    return ERR_OK;
}
