/* A generation: LMDB's files in DIR/state.N, its tables, and what its failures
 * mean. */
#include "shardkv/store_lmdb_int.h"

#include <errno.h>
#include <sys/statvfs.h>

#include "base/log.h"

enum {
    FORMAT_VERSION = 1,
    META_SIZE = 4 + 8 + 8 + 8 + 8,
    FULL_SIZE = 4 << 20, /* LMDB writes up to 64 pages at a time */
};

static bool disk_is_full(const char *path)
{
    struct statvfs st;
    return statvfs(path, &st) == 0 &&
           (uint64_t)st.f_bavail * st.f_frsize < FULL_SIZE;
}

/* What an LMDB failure means to us, logged here. */
enum err skv_lmdb_failed(const struct skv_generation *g, const char *what,
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

enum err skv_lmdb_write_failed(struct skv_generation *g, const char *what,
                               int code)
{
    g->map_full = g->map_full || code == MDB_MAP_FULL;
    return skv_lmdb_failed(g, what, code);
}

enum err skv_lmdb_corrupt(const struct skv_generation *g, const char *what)
{
    log_error("shardkv",
              "store: %s is damaged path=%s; give this "
              "replica's place to a new one: `flotilla member replace GROUP "
              "ID`",
              what, g->path);
    return ERR_CORRUPT;
}

void skv_generation_ref(struct skv_generation *g)
{
    __atomic_add_fetch(&g->refs, 1, __ATOMIC_ACQ_REL);
}

bool skv_generation_is_viewed(const struct skv_generation *g)
{
    return __atomic_load_n(&g->refs, __ATOMIC_ACQUIRE) > 1;
}

void skv_generation_unref(struct skv_generation *g)
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

static enum err env_open(struct skv_generation *g, uint64_t map_size,
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
    return code == 0 ? ERR_OK : skv_lmdb_failed(g, "open", code);
}

static enum err tables_open(struct skv_generation *g)
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
    return code == 0 ? ERR_OK : skv_lmdb_failed(g, "open", code);
}

/* Takes `path`. */
enum err skv_generation_open(char *path, uint64_t map_size, unsigned flags,
                             struct skv_generation **out)
{
    struct skv_generation *g = mem_alloc(sizeof *g);
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
        skv_generation_unref(g);
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

int skv_lmdb_meta_put(struct skv_generation *g, MDB_txn *txn,
                      const struct skv_lmdb_meta *m)
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

enum err skv_lmdb_meta_get(struct skv_generation *g, MDB_txn *txn,
                           struct skv_lmdb_meta *out)
{
    MDB_val key = meta_key();
    MDB_val value;
    int code = mdb_get(txn, g->bookkeeping, &key, &value);
    if (code != 0) {
        return code == MDB_NOTFOUND ? skv_lmdb_corrupt(g, "its state record")
                                    : skv_lmdb_failed(g, "read", code);
    }
    struct dec d = dec_of(skv_slice_val(&value));
    uint32_t version = dec_u32(&d);
    struct skv_lmdb_meta m = {0};
    m.index = dec_u64(&d);
    m.term = dec_u64(&d);
    m.next_blob = dec_u64(&d);
    m.blob_bytes = dec_u64(&d);
    if (dec_done(&d) != ERR_OK) {
        return skv_lmdb_corrupt(g, "its state record");
    }
    if (version != FORMAT_VERSION) {
        log_error("shardkv", "store: written by another version path=%s",
                  g->path);
        return ERR_VERSION;
    }
    *out = m;
    return ERR_OK;
}
