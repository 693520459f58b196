/* The store on disk: LMDB for keys, small values and bookkeeping; a file for
 * each large value (blob.c). docs/disk-store.md has the formats. Invariants:
 *
 *  1. One write transaction is open from the first call after a checkpoint to
 *     the next checkpoint; all reads but a view's are answered from it.
 *  2. A checkpoint syncs the blobs first, then commits. So whatever LMDB names
 *     on disk is on disk too.
 *  3. A blob's length is LMDB's. Its file may be shorter (the rest is zeros)
 *     or, after a crash, longer and newer: the replay that follows writes the
 *     same bytes again. Hence no operation reads blob bytes while it is
 * applied.
 *  4. A dead blob is written into `dead` in the transaction that drops it, and
 *     unlinked only when that is committed and no view is open. A crash in
 *     between leaves it in `dead`; open unlinks it.
 *  5. Blob numbers come from a counter in LMDB, so none is used twice, except
 *     that a replay uses again those given out since the last checkpoint.
 *  6. One cursor on `keys` lives as long as the write transaction, and each
 *     get, put and delete goes through it: LMDB looks in the cursor's page
 * first and searches from the root only when the key is not there, and what the
 *     state machine names in one entry lies close together.
 *  7. After a failed write nothing is committed any more: half an operation
 *     must not become durable. For want of space, op_rewind() throws away all
 *     since the last checkpoint and begins anew; also after a failed commit:
 *     whatever LMDB wrote in it, the next one writes again, each page, so no
 *     sync is relied on that failed. A failed sync of a blob is final.
 *
 * Thread: LMDB ties a write transaction to a thread. The first call after open
 * and all later ones are the applier's; close may come from another thread only
 * when that one has ended, as LMDB's robust mutex would stay in its list.
 * view_read and view_close are for any thread (MDB_NOTLS).
 */
#include "shardkv/store_int.h"

#include <errno.h>
#include <inttypes.h>
#include <lmdb.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"

#define MAP_SIZE_DEFAULT (64ull << 30)

enum {
    FORMAT_VERSION = 1,
    META_SIZE = 4 + 8 + 8 + 8 + 8,
    TAG_INLINE = 0,
    TAG_BLOB = 1,
    BLOB_RECORD_SIZE = 1 + 8 + 8,
    RECORD_SIZE_MAX = 1 + SKV_INLINE_SIZE_MAX,
    INSTALL_COMMIT_SIZE = 32 << 20,
    FULL_SIZE = 4 << 20, /* LMDB writes up to 64 pages at a time */
};

struct meta {
    uint64_t index, term;
    uint64_t next_blob;
    uint64_t blob_bytes; /* the sum of the blobs' lengths */
};

/* One DIR/state.N. The store holds a reference, and each view. */
struct generation {
    uint32_t refs; /* atomic */
    bool replaced; /* the last reference removes the directory */
    bool map_full; /* LMDB's file is as large as it may be */
    char *path;
    MDB_env *env;
    MDB_dbi keys, bookkeeping, dead;
    struct skv_blobs *blobs;
};

struct lmdb_store {
    struct skv_store store;
    char *dir;
    int lock_fd;
    uint64_t map_size;
    uint64_t number; /* N of `gen` */
    struct generation *gen;
    MDB_txn *txn;       /* 1; NULL between a checkpoint and the next call */
    MDB_cursor *cursor; /* 6; goes with `txn` */
    struct meta meta;
    uint64_t durable_index, durable_term;
    enum err failed; /* 7 */
};

struct skv_view {
    struct generation *gen;
    MDB_txn *txn;
    struct skv_undo *undo; /* NULL: bytes of blobs may be newer */
};

/* A value as its record in `keys` says. */
struct record {
    struct skv_shape shape;
    uint64_t blob;
    struct slice bytes; /* inline; borrowed from LMDB until the next write */
};

static struct lmdb_store *of(struct skv_store *s)
{
    return (struct lmdb_store *)s;
}

static MDB_val val_of(struct slice s)
{
    return (MDB_val){.mv_size = s.size, .mv_data = (void *)(uintptr_t)s.data};
}

static struct slice slice_val(const MDB_val *v)
{
    return slice_of(v->mv_data, v->mv_size);
}

static bool disk_is_full(const char *path)
{
    struct statvfs st;
    return statvfs(path, &st) == 0 &&
           (uint64_t)st.f_bavail * st.f_frsize < FULL_SIZE;
}

/* What an LMDB failure means to us, logged here. */
static enum err lmdb_failed(const struct generation *g, const char *what,
                            int code)
{
    log_error("shardkv", "store: %s failed path=%s error=%s", what, g->path,
              mdb_strerror(code));
    switch (code) {
    case MDB_MAP_FULL:
    case MDB_TXN_FULL: /* far more than between two checkpoints is normal */
        return ERR_NOSPACE;
    case EIO: /* also what LMDB says of a write cut short by a full disk */
        return disk_is_full(g->path) ? ERR_NOSPACE : ERR_IO;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID: return ERR_CORRUPT;
    case MDB_VERSION_MISMATCH: return ERR_VERSION;
    default: return code > 0 ? skv_system_error(code) : ERR_IO;
    }
}

static enum err write_failed(struct generation *g, const char *what, int code)
{
    g->map_full = g->map_full || code == MDB_MAP_FULL;
    return lmdb_failed(g, what, code);
}

static enum err corrupt(const struct generation *g, const char *what)
{
    log_error("shardkv",
              "store: %s is damaged path=%s; give this "
              "replica's place to a new one: `flotilla member replace GROUP "
              "ID`",
              what, g->path);
    return ERR_CORRUPT;
}

/* ---- a generation ---- */

static void generation_unref(struct generation *g)
{
    if (g == NULL || __atomic_sub_fetch(&g->refs, 1, __ATOMIC_ACQ_REL) != 0) {
        return;
    }
    if (g->env != NULL) {
        mdb_env_close(g->env);
    }
    if (g->blobs != NULL) {
        skv_blobs_close(g->blobs);
    }
    if (g->replaced && skv_dir_remove(g->path) != ERR_OK) {
        log_warn("shardkv", "store: left behind until the next start path=%s",
                 g->path);
    }
    mem_free(g->path);
    mem_free(g);
}

static enum err env_open(struct generation *g, uint64_t map_size,
                         unsigned flags)
{
    char *path = mem_printf("%s/keys.lmdb", g->path);
    int dead_readers = 0;
    int code = mdb_env_create(&g->env);
    if (code == 0) {
        code = mdb_env_set_mapsize(g->env, map_size);
    }
    if (code == 0) {
        code = mdb_env_set_maxdbs(g->env, 3);
    }
    if (code == 0) {
        code = mdb_env_open(g->env, path,
                            MDB_NOSUBDIR | MDB_NOTLS | MDB_NORDAHEAD | flags,
                            0600);
    }
    if (code == 0) {
        code = mdb_reader_check(g->env, &dead_readers);
    }
    mem_free(path);
    return code == 0 ? ERR_OK : lmdb_failed(g, "open", code);
}

static enum err tables_open(struct generation *g)
{
    MDB_txn *txn = NULL;
    int code = mdb_txn_begin(g->env, NULL, 0, &txn);
    if (code == 0) {
        code = mdb_dbi_open(txn, "keys", MDB_CREATE, &g->keys);
    }
    if (code == 0) {
        code = mdb_dbi_open(txn, "meta", MDB_CREATE, &g->bookkeeping);
    }
    if (code == 0) {
        code = mdb_dbi_open(txn, "dead", MDB_CREATE, &g->dead);
    }
    if (code == 0) {
        code = mdb_txn_commit(txn);
        txn = NULL;
    }
    if (txn != NULL) {
        mdb_txn_abort(txn);
    }
    return code == 0 ? ERR_OK : lmdb_failed(g, "open", code);
}

/* Takes `path`. */
static enum err generation_open(char *path, uint64_t map_size, unsigned flags,
                                struct generation **out)
{
    struct generation *g = mem_alloc(sizeof *g);
    g->refs = 1;
    g->path = path;
    char *blobs = mem_printf("%s/blobs", path);
    enum err rc = env_open(g, map_size, flags);
    if (rc == ERR_OK) {
        rc = tables_open(g);
    }
    if (rc == ERR_OK) {
        rc = skv_blobs_open(blobs, &g->blobs);
    }
    mem_free(blobs);
    if (rc != ERR_OK) {
        generation_unref(g);
        return rc;
    }
    *out = g;
    return ERR_OK;
}

/* ---- meta ---- */

static MDB_val meta_key(void)
{
    static char name[] = "state";
    return (MDB_val){.mv_size = sizeof name - 1, .mv_data = name};
}

static int meta_put(struct generation *g, MDB_txn *txn, const struct meta *m)
{
    uint8_t bytes[META_SIZE];
    set_u32(bytes, FORMAT_VERSION);
    set_u64(bytes + 4, m->index);
    set_u64(bytes + 12, m->term);
    set_u64(bytes + 20, m->next_blob);
    set_u64(bytes + 28, m->blob_bytes);
    MDB_val key = meta_key();
    MDB_val value = {.mv_size = sizeof bytes, .mv_data = bytes};
    return mdb_put(txn, g->bookkeeping, &key, &value, 0);
}

static enum err meta_get(struct generation *g, MDB_txn *txn, struct meta *out)
{
    MDB_val key = meta_key();
    MDB_val value;
    int code = mdb_get(txn, g->bookkeeping, &key, &value);
    if (code != 0) {
        return code == MDB_NOTFOUND ? corrupt(g, "its state record")
                                    : lmdb_failed(g, "read", code);
    }
    struct dec d = dec_of(slice_val(&value));
    uint32_t version = dec_u32(&d);
    struct meta m = {0};
    m.index = dec_u64(&d);
    m.term = dec_u64(&d);
    m.next_blob = dec_u64(&d);
    m.blob_bytes = dec_u64(&d);
    if (dec_done(&d) != ERR_OK) {
        return corrupt(g, "its state record");
    }
    if (version != FORMAT_VERSION) {
        log_error("shardkv", "store: written by another version path=%s",
                  g->path);
        return ERR_VERSION;
    }
    *out = m;
    return ERR_OK;
}

/* ---- the write transaction ---- */

static enum err begin(struct lmdb_store *s)
{
    if (s->txn != NULL) {
        return ERR_OK;
    }
    MDB_txn *txn = NULL;
    int code = mdb_txn_begin(s->gen->env, NULL, 0, &txn);
    if (code == 0) {
        code = mdb_cursor_open(txn, s->gen->keys, &s->cursor);
    }
    if (code != 0) {
        mdb_txn_abort(txn);
        return lmdb_failed(s->gen, "begin", code);
    }
    s->txn = txn;
    return ERR_OK;
}

/* Before a write. */
static enum err begin_write(struct lmdb_store *s)
{
    return s->failed != ERR_OK ? s->failed : begin(s);
}

/* After a write: a failure is final (7), except of what was refused before
 * anything was done. */
static enum err end_write(struct lmdb_store *s, enum err rc)
{
    if (rc != ERR_OK) {
        s->failed = rc;
    }
    return rc;
}

/* ---- records ---- */

static enum err record_decode(const struct generation *g, struct slice bytes,
                              struct record *out)
{
    struct dec d = dec_of(bytes);
    uint8_t tag = dec_u8(&d);
    struct record r = {.shape = {.exists = true, .blob = tag == TAG_BLOB}};
    if (tag == TAG_BLOB) {
        r.blob = dec_u64(&d);
        r.shape.length = dec_u64(&d);
    } else {
        r.bytes = dec_raw(&d, dec_left(&d));
        r.shape.length = r.bytes.size;
    }
    if (dec_done(&d) != ERR_OK || tag > TAG_BLOB) {
        return corrupt(g, "a record");
    }
    *out = r;
    return ERR_OK;
}

/* A missing key gives a record that does not exist. */
static enum err record_get(struct lmdb_store *s, struct slice key,
                           struct record *out)
{
    enum err rc = skv_store_key_check(key);
    if (rc == ERR_OK) {
        rc = begin(s);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    MDB_val k = val_of(key);
    MDB_val v;
    int code = mdb_cursor_get(s->cursor, &k, &v, MDB_SET);
    if (code == MDB_NOTFOUND) {
        *out = (struct record){0};
        return ERR_OK;
    }
    return code == 0 ? record_decode(s->gen, slice_val(&v), out)
                     : lmdb_failed(s->gen, "read", code);
}

static enum err put_bytes(struct lmdb_store *s, struct slice key,
                          struct slice bytes)
{
    MDB_val k = val_of(key);
    MDB_val v = val_of(bytes);
    int code = mdb_cursor_put(s->cursor, &k, &v, 0);
    return code == 0 ? ERR_OK : write_failed(s->gen, "write", code);
}

/* `record`: a tag byte's room, then `size` bytes. */
static enum err put_inline(struct lmdb_store *s, struct slice key,
                           uint8_t record[RECORD_SIZE_MAX], uint64_t size)
{
    CHECK(size <= SKV_INLINE_SIZE_MAX);
    record[0] = TAG_INLINE;
    return put_bytes(s, key, slice_of(record, (size_t)size + 1));
}

static void blob_record(uint8_t record[BLOB_RECORD_SIZE], uint64_t id,
                        uint64_t length)
{
    record[0] = TAG_BLOB;
    set_u64(record + 1, id);
    set_u64(record + 9, length);
}

/* `old`: the blob's record before, for the sum of lengths. */
static enum err put_blob(struct lmdb_store *s, struct slice key,
                         const struct record *old, uint64_t id, uint64_t length)
{
    s->meta.blob_bytes -= old->shape.blob ? old->shape.length : 0;
    s->meta.blob_bytes += length;
    uint8_t record[BLOB_RECORD_SIZE];
    blob_record(record, id, length);
    return put_bytes(s, key, slice_of(record, sizeof record));
}

/* The blob of a key that goes away or becomes inline (4). */
static enum err bury(struct lmdb_store *s, const struct record *old)
{
    if (!old->shape.blob) {
        return ERR_OK;
    }
    s->meta.blob_bytes -= old->shape.length;
    skv_blobs_forget(s->gen->blobs, old->blob);
    uint8_t number[8];
    set_be64(number, old->blob);
    MDB_val k = {.mv_size = sizeof number, .mv_data = number};
    MDB_val v = {.mv_size = 0, .mv_data = number};
    int code = mdb_put(s->txn, s->gen->dead, &k, &v, 0);
    return code == 0 ? ERR_OK : write_failed(s->gen, "write", code);
}

/* The blob that the new value goes into: the old one, or a new one that holds
 * the old inline bytes. `keep`: how many of them count. */
static enum err blob_for(struct lmdb_store *s, const struct record *old,
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
static uint8_t *inline_copy(uint8_t record[RECORD_SIZE_MAX],
                            const struct record *old, uint64_t length)
{
    size_t keep = old->bytes.size < length ? old->bytes.size : (size_t)length;
    if (keep > 0) {
        memcpy(record + 1, old->bytes.data, keep);
    }
    memset(record + 1 + keep, 0, (size_t)length - keep);
    return record + 1;
}

/* ---- reads ---- */

static struct skv_value value_of(const struct record *r)
{
    return (struct skv_value){.length = r->shape.length,
                              .is_inline = !r->shape.blob,
                              .inline_bytes = r->bytes};
}

static enum err op_lookup(struct skv_store *store, struct slice key,
                          struct skv_value *out)
{
    struct record r;
    enum err rc = record_get(of(store), key, &r);
    if (rc != ERR_OK) {
        return rc;
    }
    if (!r.shape.exists) {
        return ERR_NOTFOUND;
    }
    *out = value_of(&r);
    return ERR_OK;
}

static enum err op_read(struct skv_store *store, struct slice key,
                        uint64_t offset, void *to, size_t size, size_t *got)
{
    struct lmdb_store *s = of(store);
    struct record r;
    enum err rc = record_get(s, key, &r);
    if (rc != ERR_OK) {
        return rc;
    }
    if (!r.shape.exists) {
        return ERR_NOTFOUND;
    }
    uint64_t left = offset < r.shape.length ? r.shape.length - offset : 0;
    size_t part = left < size ? (size_t)left : size;
    if (part > 0 && r.shape.blob) {
        rc = skv_blobs_read(s->gen->blobs, r.blob, offset, to, part);
    } else if (part > 0) {
        memcpy(to, r.bytes.data + offset, part);
    }
    if (rc == ERR_OK) {
        *got = part;
    }
    return rc;
}

static bool has_prefix(const MDB_val *key, struct slice prefix)
{
    return key->mv_size >= prefix.size &&
           (prefix.size == 0 ||
            memcmp(key->mv_data, prefix.data, prefix.size) == 0);
}

static enum err scan_cursor(const struct generation *g, MDB_cursor *cursor,
                            struct slice prefix, struct slice start,
                            skv_scan_fn *each, void *arg)
{
    MDB_val key = val_of(start);
    MDB_val value;
    int code = mdb_cursor_get(cursor, &key, &value,
                              start.size == 0 ? MDB_FIRST : MDB_SET_RANGE);
    while (code == 0 && has_prefix(&key, prefix)) {
        struct record r;
        enum err rc = record_decode(g, slice_val(&value), &r);
        if (rc != ERR_OK) {
            return rc;
        }
        struct skv_value shown = value_of(&r);
        if (!each(arg, slice_val(&key), &shown)) {
            return ERR_OK;
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    return code == 0 || code == MDB_NOTFOUND ? ERR_OK
                                             : lmdb_failed(g, "scan", code);
}

/* All that begins with `prefix`, from `from` on, as `txn` sees it. */
static enum err scan_txn(const struct generation *g, MDB_txn *txn,
                         struct slice prefix, struct slice from,
                         skv_scan_fn *each, void *arg)
{
    struct slice start = slice_compare(from, prefix) > 0 ? from : prefix;
    if (start.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    MDB_cursor *cursor = NULL;
    int code = mdb_cursor_open(txn, g->keys, &cursor);
    if (code != 0) {
        return lmdb_failed(g, "scan", code);
    }
    enum err rc = scan_cursor(g, cursor, prefix, start, each, arg);
    mdb_cursor_close(cursor);
    return rc;
}

static enum err op_scan(struct skv_store *store, struct slice prefix,
                        struct slice from, skv_scan_fn *each, void *arg)
{
    struct lmdb_store *s = of(store);
    enum err rc = begin(s);
    return rc == ERR_OK ? scan_txn(s->gen, s->txn, prefix, from, each, arg)
                        : rc;
}

/* ---- writes ---- */

static enum err put_large(struct lmdb_store *s, struct slice key,
                          const struct record *old, struct slice value)
{
    uint64_t id = 0;
    enum err rc = blob_for(s, old, 0, &id);
    if (rc == ERR_OK) {
        rc = skv_blobs_write(s->gen->blobs, id, 0, value);
    }
    if (rc == ERR_OK) {
        rc = skv_blobs_truncate(s->gen->blobs, id, value.size);
    }
    return rc == ERR_OK ? put_blob(s, key, old, id, value.size) : rc;
}

static enum err put_small(struct lmdb_store *s, struct slice key,
                          const struct record *old, struct slice value)
{
    uint8_t record[RECORD_SIZE_MAX];
    if (value.size > 0) {
        memcpy(record + 1, value.data, value.size);
    }
    enum err rc = bury(s, old);
    return rc == ERR_OK ? put_inline(s, key, record, value.size) : rc;
}

/* What every write begins with. */
static enum err write_begin(struct lmdb_store *s, struct slice key,
                            struct record *old)
{
    enum err rc = begin_write(s);
    return rc == ERR_OK ? record_get(s, key, old) : rc;
}

static enum err op_put(struct skv_store *store, struct slice key,
                       struct slice value)
{
    struct lmdb_store *s = of(store);
    struct record old;
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

static enum err range_large(struct lmdb_store *s, struct slice key,
                            const struct record *old, uint64_t length,
                            uint64_t offset, struct slice data)
{
    uint64_t id = 0;
    enum err rc = blob_for(s, old, old->shape.length, &id);
    if (rc == ERR_OK && data.size > 0) {
        rc = skv_blobs_write(s->gen->blobs, id, offset, data);
    }
    bool same = old->shape.blob && old->shape.length == length;
    return rc == ERR_OK && !same ? put_blob(s, key, old, id, length) : rc;
}

static enum err range_small(struct lmdb_store *s, struct slice key,
                            const struct record *old, uint64_t length,
                            uint64_t offset, struct slice data)
{
    uint8_t record[RECORD_SIZE_MAX];
    uint8_t *bytes = inline_copy(record, old, length);
    if (data.size > 0) {
        memcpy(bytes + offset, data.data, data.size);
    }
    return put_inline(s, key, record, length);
}

static enum err op_put_range(struct skv_store *store, struct slice key,
                             uint64_t offset, struct slice data)
{
    struct lmdb_store *s = of(store);
    struct record old;
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

static enum err truncate_large(struct lmdb_store *s, struct slice key,
                               const struct record *old, uint64_t length)
{
    uint64_t id = 0;
    enum err rc = blob_for(s, old, old->shape.length, &id);
    if (rc == ERR_OK) {
        /* Cuts off what a later growth must not show again. */
        rc = skv_blobs_truncate(s->gen->blobs, id, length);
    }
    return rc == ERR_OK ? put_blob(s, key, old, id, length) : rc;
}

static enum err truncate_small(struct lmdb_store *s, struct slice key,
                               const struct record *old, uint64_t length)
{
    uint8_t record[RECORD_SIZE_MAX];
    inline_copy(record, old, length);
    enum err rc = bury(s, old);
    return rc == ERR_OK ? put_inline(s, key, record, length) : rc;
}

static enum err op_truncate(struct skv_store *store, struct slice key,
                            uint64_t length)
{
    struct lmdb_store *s = of(store);
    struct record old;
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

static enum err punch_small(struct lmdb_store *s, struct slice key,
                            const struct record *old, uint64_t offset,
                            uint64_t size)
{
    uint8_t record[RECORD_SIZE_MAX];
    uint8_t *bytes = inline_copy(record, old, old->shape.length);
    memset(bytes + offset, 0, (size_t)size);
    return put_inline(s, key, record, old->shape.length);
}

static enum err op_punch(struct skv_store *store, struct slice key,
                         uint64_t offset, uint64_t size)
{
    struct lmdb_store *s = of(store);
    struct record old;
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

static enum err remove_record(struct lmdb_store *s, struct slice key,
                              const struct record *old)
{
    enum err rc = bury(s, old);
    if (rc != ERR_OK) {
        return rc;
    }
    MDB_val k = val_of(key);
    MDB_val v;
    int code = mdb_cursor_get(s->cursor, &k, &v, MDB_SET);
    if (code == 0) {
        code = mdb_cursor_del(s->cursor, 0);
    }
    return code == 0 ? ERR_OK : write_failed(s->gen, "delete", code);
}

static enum err op_remove(struct skv_store *store, struct slice key)
{
    struct lmdb_store *s = of(store);
    struct record old;
    enum err rc = write_begin(s, key, &old);
    if (rc != ERR_OK || !old.shape.exists) {
        return rc;
    }
    return end_write(s, remove_record(s, key, &old));
}

/* ---- checkpoints ---- */

static enum err unlink_each(struct lmdb_store *s, MDB_cursor *cursor,
                            bool *found)
{
    MDB_val key, value;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (code == 0) {
        if (key.mv_size != 8) {
            return corrupt(s->gen, "the list of dead blobs");
        }
        *found = true;
        uint64_t id = get_be64(key.mv_data);
        enum err rc = skv_blobs_unlink(s->gen->blobs, id);
        if (rc != ERR_OK && rc != ERR_NOTFOUND) {
            return rc;
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    return code == MDB_NOTFOUND ? ERR_OK : lmdb_failed(s->gen, "scan", code);
}

/* Unlinks the dead (4). Called when everything in `dead` is committed. */
static enum err reap(struct lmdb_store *s)
{
    if (__atomic_load_n(&s->gen->refs, __ATOMIC_ACQUIRE) > 1) {
        return ERR_OK; /* a view may still read them */
    }
    MDB_cursor *cursor = NULL;
    enum err rc = begin(s);
    if (rc != ERR_OK) {
        return rc;
    }
    int code = mdb_cursor_open(s->txn, s->gen->dead, &cursor);
    if (code != 0) {
        return lmdb_failed(s->gen, "scan", code);
    }
    bool found = false;
    rc = unlink_each(s, cursor, &found);
    mdb_cursor_close(cursor);
    if (rc == ERR_OK && found) {
        code = mdb_drop(s->txn, s->gen->dead, 0);
        rc = code == 0 ? ERR_OK : write_failed(s->gen, "drop", code);
    }
    return rc;
}

static enum err commit(struct lmdb_store *s)
{
    int code = meta_put(s->gen, s->txn, &s->meta);
    if (code == 0) {
        code = mdb_txn_commit(s->txn); /* frees it also when it fails */
        s->txn = NULL;
    }
    return code == 0 ? ERR_OK : write_failed(s->gen, "commit", code);
}

static enum err op_checkpoint(struct skv_store *store, uint64_t index,
                              uint64_t term)
{
    struct lmdb_store *s = of(store);
    enum err rc = begin_write(s);
    if (rc == ERR_OK) {
        rc = skv_blobs_sync(s->gen->blobs); /* 2 */
    }
    if (rc == ERR_OK) {
        s->meta.index = index;
        s->meta.term = term;
        rc = commit(s);
    }
    if (rc == ERR_OK) {
        s->durable_index = index;
        s->durable_term = term;
        rc = reap(s);
    }
    return end_write(s, rc);
}

static enum err load(struct lmdb_store *s);

static void txn_drop(struct lmdb_store *s)
{
    if (s->txn != NULL) {
        mdb_txn_abort(s->txn);
        s->txn = NULL;
    }
}

/* A map that was too small grows; not while a view is open, whose thread reads
 * in it. */
static enum err map_grow(struct lmdb_store *s)
{
    if (!s->gen->map_full) {
        return ERR_OK;
    }
    if (__atomic_load_n(&s->gen->refs, __ATOMIC_ACQUIRE) > 1) {
        return ERR_NOSPACE;
    }
    int code = mdb_env_set_mapsize(s->gen->env, 2 * s->map_size);
    if (code != 0) {
        return lmdb_failed(s->gen, "resize", code);
    }
    s->map_size *= 2;
    s->gen->map_full = false;
    return ERR_OK;
}

static enum err op_rewind(struct skv_store *store)
{
    struct lmdb_store *s = of(store);
    if (s->failed != ERR_OK && s->failed != ERR_NOSPACE) {
        return s->failed;
    }
    txn_drop(s);
    enum err rc = map_grow(s);
    if (rc == ERR_OK) {
        rc = load(s);
    }
    if (rc == ERR_OK) {
        s->failed = ERR_OK;
    }
    return rc;
}

static void op_durable(struct skv_store *store, uint64_t *index, uint64_t *term)
{
    *index = of(store)->durable_index;
    *term = of(store)->durable_term;
}

/* ---- views ---- */

static enum err view_open(struct lmdb_store *s, struct skv_view **out)
{
    MDB_txn *txn = NULL;
    int code = mdb_txn_begin(s->gen->env, NULL, MDB_RDONLY, &txn);
    if (code != 0) {
        return lmdb_failed(s->gen, "view", code);
    }
    struct skv_view *v = mem_alloc(sizeof *v);
    v->txn = txn;
    v->gen = s->gen;
    __atomic_add_fetch(&s->gen->refs, 1, __ATOMIC_RELAXED);
    *out = v;
    return ERR_OK;
}

static void op_view_close(struct skv_store *store, struct skv_view *v)
{
    (void)store;
    mdb_txn_abort(v->txn);
    if (v->undo != NULL) {
        skv_undo_close(v->undo);
    }
    generation_unref(v->gen);
    mem_free(v);
}

static enum err op_view_open(struct skv_store *store, struct skv_view **out)
{
    return view_open(of(store), out);
}

/* Blob numbers rise, so those from the counter on are made later. */
static enum err op_view_open_exact(struct skv_store *store,
                                   struct skv_view **out)
{
    struct lmdb_store *s = of(store);
    struct skv_view *v = NULL;
    enum err rc = view_open(s, &v);
    if (rc == ERR_OK) {
        rc = skv_undo_open(s->gen->blobs, s->meta.next_blob, &v->undo);
        if (rc != ERR_OK) {
            op_view_close(store, v);
            return rc;
        }
        *out = v;
    }
    return rc;
}

static enum err op_view_scan(struct skv_store *store, struct skv_view *v,
                             struct slice prefix, struct slice from,
                             skv_scan_fn *each, void *arg)
{
    (void)store;
    return scan_txn(v->gen, v->txn, prefix, from, each, arg);
}

static enum err view_record(const struct skv_view *v, struct slice key,
                            struct record *out)
{
    MDB_val k = val_of(key);
    MDB_val value;
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    int code = mdb_get(v->txn, v->gen->keys, &k, &value);
    if (code != 0) {
        return code == MDB_NOTFOUND ? ERR_NOTFOUND
                                    : lmdb_failed(v->gen, "view", code);
    }
    return record_decode(v->gen, slice_val(&value), out);
}

static enum err op_view_value(struct skv_store *store, struct skv_view *v,
                              struct slice key, uint64_t offset, void *to,
                              size_t size, size_t *got)
{
    (void)store;
    struct record r;
    enum err rc = view_record(v, key, &r);
    if (rc != ERR_OK) {
        return rc;
    }
    uint64_t left = offset < r.shape.length ? r.shape.length - offset : 0;
    *got = left < size ? (size_t)left : size;
    if (*got > 0 && !r.shape.blob) {
        memcpy(to, r.bytes.data + offset, *got);
    } else if (*got > 0) {
        rc = skv_undo_read(v->undo, r.blob, offset, to, *got);
    }
    return rc;
}

static enum err op_view_skip(struct skv_store *store, struct skv_view *v,
                             struct slice key, uint64_t offset,
                             uint64_t *data_at)
{
    (void)store;
    struct record r;
    enum err rc = view_record(v, key, &r);
    *data_at = offset;
    if (rc != ERR_OK || !r.shape.blob || offset >= r.shape.length) {
        return rc;
    }
    return skv_undo_data_from(v->undo, r.blob, offset, r.shape.length, data_at);
}

static enum err stream_record(const struct skv_view *v, const MDB_val *key,
                              const MDB_val *value, struct skv_stream_writer *w)
{
    struct record r;
    enum err rc = record_decode(v->gen, slice_val(value), &r);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_value shown = value_of(&r);
    skv_stream_key(w, slice_val(key), &shown);
    return r.shape.blob
               ? skv_blobs_stream(v->gen->blobs, r.blob, r.shape.length, w)
               : w->rc;
}

static enum err stream_all(const struct skv_view *v, MDB_cursor *cursor,
                           struct skv_stream_writer *w)
{
    MDB_val key, value;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (code == 0) {
        enum err rc = stream_record(v, &key, &value, w);
        if (rc != ERR_OK) {
            return rc;
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    return code == MDB_NOTFOUND ? ERR_OK : lmdb_failed(v->gen, "view", code);
}

static enum err op_view_read(struct skv_store *store, struct skv_view *v,
                             enum err (*write)(void *arg, struct slice bytes),
                             void *arg)
{
    (void)store; /* on another thread: not to be touched */
    MDB_cursor *cursor = NULL;
    int code = mdb_cursor_open(v->txn, v->gen->keys, &cursor);
    if (code != 0) {
        return lmdb_failed(v->gen, "view", code);
    }
    struct skv_stream_writer w = {.write = write, .arg = arg};
    skv_stream_begin(&w);
    enum err rc = stream_all(v, cursor, &w);
    if (rc != ERR_OK) {
        w.rc = rc; /* nothing more goes out, no end mark either */
    }
    rc = skv_stream_end(&w);
    mdb_cursor_close(cursor);
    return rc;
}

/* ---- install ---- */

/* A generation being filled from a stream, in DIR/new. */
struct install {
    struct generation *gen;
    MDB_txn *txn;
    size_t uncommitted;
    struct meta meta;
    uint64_t blob; /* of the last key; 0: none */
    uint64_t blob_length;
    bool adopting; /* from here on a restart may find either state */
};

static enum err install_commit(struct install *in)
{
    int code = mdb_txn_commit(in->txn);
    in->txn = NULL;
    in->uncommitted = 0;
    if (code == 0) {
        code = mdb_txn_begin(in->gen->env, NULL, 0, &in->txn);
    }
    return code == 0 ? ERR_OK : lmdb_failed(in->gen, "commit", code);
}

static enum err install_blob(struct install *in, const struct skv_value *value)
{
    in->blob = in->meta.next_blob++;
    in->blob_length = value->length;
    in->meta.blob_bytes += value->length;
    return skv_blobs_create(in->gen->blobs, in->blob);
}

static enum err install_blob_end(struct install *in)
{
    uint64_t id = in->blob;
    in->blob = 0;
    return id == 0 ? ERR_OK
                   : skv_blobs_truncate(in->gen->blobs, id, in->blob_length);
}

static enum err install_key(struct install *in,
                            const struct skv_stream_record *r)
{
    uint8_t record[RECORD_SIZE_MAX];
    size_t size = BLOB_RECORD_SIZE;
    enum err rc = install_blob_end(in);
    if (rc == ERR_OK && !r->value.is_inline) {
        rc = install_blob(in, &r->value);
        blob_record(record, in->blob, r->value.length);
    } else if (rc == ERR_OK) {
        struct slice bytes = r->value.inline_bytes;
        record[0] = TAG_INLINE;
        if (bytes.size > 0) {
            memcpy(record + 1, bytes.data, bytes.size);
        }
        size = 1 + bytes.size;
    }
    if (rc != ERR_OK) {
        return rc;
    }
    MDB_val k = val_of(r->key);
    MDB_val v = {.mv_size = size, .mv_data = record};
    int code = mdb_put(in->txn, in->gen->keys, &k, &v, MDB_APPEND);
    if (code != 0) {
        return lmdb_failed(in->gen, "write", code);
    }
    in->uncommitted += r->key.size + size;
    return in->uncommitted < INSTALL_COMMIT_SIZE ? ERR_OK : install_commit(in);
}

static enum err install_stream(struct install *in, skv_stream_read_fn *read,
                               void *arg)
{
    struct skv_stream_reader r = {.read = read, .arg = arg};
    struct skv_stream_record record = {0};
    enum err rc = ERR_OK;
    while (rc == ERR_OK && record.type != SKV_STREAM_END) {
        rc = skv_stream_next(&r, &record);
        if (rc == ERR_OK && record.type == SKV_STREAM_KEY) {
            rc = install_key(in, &record);
        } else if (rc == ERR_OK && record.type == SKV_STREAM_DATA) {
            rc = skv_blobs_write(in->gen->blobs, in->blob, record.offset,
                                 record.data);
        }
    }
    skv_stream_reader_fini(&r);
    return rc == ERR_OK ? install_blob_end(in) : rc;
}

/* Until here nothing was synced (MDB_NOSYNC): a crash leaves DIR/new, which is
 * thrown away. */
static enum err install_sync(struct install *in)
{
    int code = meta_put(in->gen, in->txn, &in->meta);
    if (code == 0) {
        code = mdb_txn_commit(in->txn);
        in->txn = NULL;
    }
    if (code == 0) {
        code = mdb_env_set_flags(in->gen->env, MDB_NOSYNC, 0);
    }
    if (code == 0) {
        code = mdb_env_sync(in->gen->env, 1);
    }
    return code == 0 ? skv_blobs_sync(in->gen->blobs)
                     : lmdb_failed(in->gen, "sync", code);
}

static enum err install_begin(const char *dir, uint64_t map_size,
                              struct install *in)
{
    char *path = NULL;
    enum err rc = skv_dir_make_new(dir, &path);
    if (rc != ERR_OK) {
        return rc;
    }
    char *blobs = mem_printf("%s/blobs", path);
    rc = skv_blobs_make(blobs);
    mem_free(blobs);
    if (rc != ERR_OK) {
        mem_free(path);
        return rc;
    }
    rc = generation_open(path, map_size, MDB_NOSYNC, &in->gen);
    if (rc != ERR_OK) {
        return rc;
    }
    in->meta.next_blob = 1;
    int code = mdb_txn_begin(in->gen->env, NULL, 0, &in->txn);
    return code == 0 ? ERR_OK : lmdb_failed(in->gen, "begin", code);
}

static void install_abort(struct install *in)
{
    if (in->txn != NULL) {
        mdb_txn_abort(in->txn);
    }
    if (in->gen != NULL) {
        in->gen->replaced = true; /* removes DIR/new */
        generation_unref(in->gen);
    }
}

/* Builds DIR/state.`number` from a stream, or empty when `read` is NULL. */
static enum err build(const char *dir, uint64_t map_size, uint64_t number,
                      skv_stream_read_fn *read, void *arg, struct install *in)
{
    enum err rc = install_begin(dir, map_size, in);
    if (rc == ERR_OK && read != NULL) {
        rc = install_stream(in, read, arg);
    }
    if (rc == ERR_OK) {
        rc = install_sync(in);
    }
    char *path = NULL;
    if (rc == ERR_OK) {
        in->adopting = true;
        rc = skv_dir_adopt_new(dir, number, &path);
    }
    if (rc != ERR_OK) {
        install_abort(in);
        return in->adopting ? ERR_IO : rc;
    }
    mem_free(in->gen->path);
    in->gen->path = path;
    return ERR_OK;
}

#if defined(__SANITIZE_THREAD__)
/* Aborting a transaction whose thread has ended makes LMDB unlock its mutex,
 * which refuses (EPERM: it is a robust one, and already marked as its dead
 * owner's); then the mutex goes away with the mapping. Harmless, and not to be
 * reported. */
const char *__tsan_default_suppressions(void);
__attribute__((weak)) const char *__tsan_default_suppressions(void)
{
    return "mutex:liblmdb.so\n";
}
#endif

static void drop_generation(struct lmdb_store *s)
{
    txn_drop(s);
    generation_unref(s->gen);
    s->gen = NULL;
}

static enum err op_install(struct skv_store *store,
                           enum err (*read)(void *arg, void *to,
                                            size_t size_max, size_t *size),
                           void *arg, uint64_t index, uint64_t term)
{
    struct lmdb_store *s = of(store);
    struct install in = {.meta = {.index = index, .term = term}};
    enum err rc = build(s->dir, s->map_size, s->number + 1, read, arg, &in);
    if (rc != ERR_OK) {
        /* Both states are complete, but nothing may be added to the old one
         * if the next start could prefer the other. */
        s->failed = in.adopting ? rc : s->failed;
        return rc;
    }
    s->gen->replaced = true;
    drop_generation(s);
    s->number++;
    s->gen = in.gen;
    s->meta = in.meta;
    s->durable_index = index;
    s->durable_term = term;
    s->failed = ERR_OK;
    return ERR_OK;
}

/* ---- the rest ---- */

static void op_usage(struct skv_store *store, uint64_t *keys, uint64_t *bytes)
{
    struct lmdb_store *s = of(store);
    MDB_stat st = {0};
    if (begin(s) == ERR_OK) {
        (void)mdb_stat(s->txn, s->gen->keys, &st);
    }
    uint64_t pages =
        st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages;
    *keys = st.ms_entries;
    *bytes = pages * st.ms_psize + s->meta.blob_bytes;
}

static void op_close(struct skv_store *store)
{
    struct lmdb_store *s = of(store);
    if (s->gen != NULL) {
        drop_generation(s);
    }
    if (s->lock_fd >= 0) {
        close(s->lock_fd);
    }
    mem_free(s->dir);
    mem_free(s);
}

static const struct skv_store_ops lmdb_ops = {
    .lookup = op_lookup,
    .read = op_read,
    .put = op_put,
    .put_range = op_put_range,
    .truncate = op_truncate,
    .punch = op_punch,
    .remove = op_remove,
    .scan = op_scan,
    .checkpoint = op_checkpoint,
    .durable = op_durable,
    .rewind = op_rewind,
    .view_open = op_view_open,
    .view_read = op_view_read,
    .view_close = op_view_close,
    .view_open_exact = op_view_open_exact,
    .view_scan = op_view_scan,
    .view_value = op_view_value,
    .view_skip = op_view_skip,
    .install = op_install,
    .usage = op_usage,
    .close = op_close,
};

/* Blobs made after the last checkpoint, if there was a crash: the replay makes
 * them anew, but may be long in coming. They were numbered without a gap. */
static enum err unlink_unborn(struct lmdb_store *s)
{
    enum err rc = ERR_OK;
    for (uint64_t id = s->meta.next_blob; rc == ERR_OK; id++) {
        rc = skv_blobs_unlink(s->gen->blobs, id);
    }
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

static enum err open_generation(struct lmdb_store *s)
{
    if (s->number == 0) {
        struct install in = {0};
        enum err rc = build(s->dir, s->map_size, 1, NULL, NULL, &in);
        if (rc != ERR_OK) {
            return rc;
        }
        s->number = 1;
        s->gen = in.gen;
        return ERR_OK;
    }
    char *path = mem_printf("%s/state.%" PRIu64, s->dir, s->number);
    return generation_open(path, s->map_size, 0, &s->gen);
}

static enum err load(struct lmdb_store *s)
{
    enum err rc = begin(s);
    if (rc == ERR_OK) {
        rc = meta_get(s->gen, s->txn, &s->meta);
    }
    if (rc == ERR_OK) {
        s->durable_index = s->meta.index;
        s->durable_term = s->meta.term;
        rc = unlink_unborn(s);
    }
    return rc == ERR_OK ? reap(s) : rc;
}

/* The applier begins the transaction it will use, on its own thread; what
 * load() began belongs to this one. Dead blobs stay listed until then: to
 * unlink one that is gone is fine. */
static void hand_over(struct lmdb_store *s)
{
    mdb_txn_abort(s->txn);
    s->txn = NULL;
}

enum err skv_store_lmdb_open(const char *dir, uint64_t map_size,
                             struct skv_store **out)
{
    struct lmdb_store *s = mem_alloc(sizeof *s);
    s->store.ops = &lmdb_ops;
    s->dir = mem_strdup(dir);
    s->map_size = map_size != 0 ? map_size : MAP_SIZE_DEFAULT;
    s->lock_fd = -1;
    enum err rc = skv_dir_lock(dir, &s->lock_fd);
    if (rc == ERR_OK) {
        rc = skv_dir_settle(dir, &s->number);
    }
    if (rc == ERR_OK) {
        rc = open_generation(s);
    }
    if (rc == ERR_OK) {
        rc = load(s);
    }
    if (rc != ERR_OK) {
        op_close(&s->store);
        return rc;
    }
    hand_over(s);
    *out = &s->store;
    return ERR_OK;
}
