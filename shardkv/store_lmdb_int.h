/* The inside of the store on disk, shared by store_lmdb*.c only.
 *
 *   store_lmdb.c             open, close, the table of operations
 *   store_lmdb_env.c         a generation: LMDB's files, its tables, failures
 *   store_lmdb_record.c      keys and records; reads; scans
 *   store_lmdb_write.c       writes
 *   store_lmdb_checkpoint.c  how writes get into LMDB, and back from a full
 * disk store_lmdb_view.c        views store_lmdb_install.c     a new generation
 * from a stream
 *
 * docs/disk-store.md has the formats. Invariants:
 *
 *  1. What was written since the last checkpoint is in `fresh` (delta.h); what
 *     the checkpoint on its way holds is in `frozen`; the rest is in LMDB, as
 *     of the read transaction `txn`. Reads ask in this order.
 *  2. A checkpoint syncs the blobs first, then commits. So whatever LMDB names
 *     on disk is on disk too.
 *  3. A blob's length is its record's. Its file may be shorter (the rest is
 *     zeros) or, after a crash, longer and newer: the replay that follows
 *     writes the same bytes again. Hence no operation reads blob bytes while it
 *     is applied.
 *  4. A dead blob is written into the table `dead` in the transaction that
 *     drops it, and unlinked only when that is committed and no view is open. A
 *     crash in between leaves it in `dead`; open unlinks it.
 *  5. Blob numbers come from a counter in LMDB, so none is used twice, except
 *     that a replay uses again those given out since the last checkpoint.
 *  6. LMDB is written by one transaction of one call, which syncs when it
 *     commits: never MDB_NOSYNC, whose meta page may be on disk before what it
 *     names. `durable_*` are set when that call has returned.
 *  7. After a failed write or checkpoint nothing more is written: half an
 *     operation must not become durable. For want of space, rewind throws away
 *     all since the last checkpoint; also after a failed commit: whatever LMDB
 *     wrote in it, the next one writes again, each page, so no sync is relied
 *     on that failed. A failed sync of a blob is final.
 *
 * Threads: all is the applier's, but `pending` and the tables of LMDB are
 * written under `lock` by whoever writes the checkpoint; and views are for any
 * thread (MDB_NOTLS). */
#ifndef SHARDKV_STORE_LMDB_INT_H
#define SHARDKV_STORE_LMDB_INT_H

#include <lmdb.h>
#include <pthread.h>

#include "shardkv/delta.h"
#include "shardkv/store_int.h"

enum {
    SKV_RECORD_SIZE_MAX = 1 + SKV_INLINE_SIZE_MAX,
    SKV_BLOB_RECORD_SIZE = 1 + 8 + 8,
};

struct skv_lmdb_meta {
    uint64_t index, term;
    uint64_t next_blob;
    uint64_t blob_bytes; /* the sum of the blobs' lengths */
};

/* One DIR/state.N. The store holds a reference, and each view. */
struct skv_generation {
    uint32_t refs; /* atomic */
    bool replaced; /* the last reference removes the directory */
    bool map_full; /* LMDB's file is as large as it may be */
    bool reaped;   /* what `dead` names is unlinked */
    char *path;
    MDB_env *env;
    MDB_dbi keys, bookkeeping, dead;
    struct skv_blobs *blobs;
};

/* The checkpoint that was begun. Filled and emptied by the applier; `written`
 * and `rc` by who writes it. */
struct skv_pending {
    bool begun, written;
    enum err rc;
    struct skv_lmdb_meta meta;
    struct buf dead; /* numbers of blobs */
    struct skv_blob_sync *sync;
};

struct skv_lmdb {
    struct skv_store store;
    char *dir;
    int lock_fd;
    uint64_t map_size;
    uint64_t number; /* N of `gen` */
    struct skv_generation *gen;
    MDB_txn *txn;       /* 1; NULL after a checkpoint until the next read */
    MDB_cursor *cursor; /* on `keys`; goes with `txn`. What the state machine
                           names in one entry lies close together, and LMDB
                           looks in the cursor's page first. */
    MDB_cursor *scan_cursor;          /* likewise; NULL while it is in use */
    struct skv_delta *fresh, *frozen; /* 1; frozen: NULL if none is begun */
    struct skv_delta *spare;          /* an empty one, or NULL */
    struct skv_lmdb_meta meta;        /* with all that is in `fresh` */
    uint64_t count;                   /* of keys, likewise */
    uint64_t leaves;                  /* pages of `keys`, as of `txn` */
    struct buf dead;                  /* numbers of blobs, since the freeze */
    uint64_t durable_index, durable_term;
    enum err failed; /* 7 */
    pthread_mutex_t lock;
    struct skv_pending pending;
};

struct skv_view {
    struct skv_generation *gen;
    MDB_txn *txn;
    struct skv_undo *undo; /* NULL: bytes of blobs may be newer */
};

/* A value as its record says. */
struct skv_stored {
    struct skv_shape shape;
    uint64_t blob;
    struct slice bytes; /* inline; borrowed until the next write */
};

static inline struct skv_lmdb *skv_lmdb_of(struct skv_store *s)
{
    return (struct skv_lmdb *)(void *)s; /* it is the first member */
}

static inline MDB_val skv_val_of(struct slice s)
{
    return (MDB_val){.mv_size = s.size, .mv_data = (void *)(uintptr_t)s.data};
}

static inline struct slice skv_slice_val(const MDB_val *v)
{
    return slice_of(v->mv_data, v->mv_size);
}

/* ---- store_lmdb_env.c ---- */

/* What an LMDB failure means to us, logged here. */
enum err skv_lmdb_failed(const struct skv_generation *g, const char *what,
                         int code);
/* Of the write transaction: the map may be too small. */
enum err skv_lmdb_write_failed(struct skv_generation *g, const char *what,
                               int code);
enum err skv_lmdb_corrupt(const struct skv_generation *g, const char *what);

/* Takes `path`. */
MUST_USE enum err skv_generation_open(char *path, uint64_t map_size,
                                      unsigned flags,
                                      struct skv_generation **out);
void skv_generation_ref(struct skv_generation *g);
void skv_generation_unref(struct skv_generation *g); /* NULL: ok */
bool skv_generation_is_viewed(const struct skv_generation *g);

int skv_lmdb_meta_put(struct skv_generation *g, MDB_txn *txn,
                      const struct skv_lmdb_meta *m);
MUST_USE enum err skv_lmdb_meta_get(struct skv_generation *g, MDB_txn *txn,
                                    struct skv_lmdb_meta *out);

/* ---- store_lmdb_record.c ---- */

void skv_stored_blob(uint8_t record[SKV_BLOB_RECORD_SIZE], uint64_t id,
                     uint64_t length);
/* The tag before the bytes of an inline value. */
void skv_stored_inline(uint8_t record[SKV_RECORD_SIZE_MAX]);
MUST_USE enum err skv_stored_decode(const struct skv_generation *g,
                                    struct slice bytes, struct skv_stored *out);
struct skv_value skv_stored_value(const struct skv_stored *r);

bool skv_has_prefix(struct slice key, struct slice prefix);

/* Begins the read transaction if there is none; ends it. */
MUST_USE enum err skv_lmdb_begin(struct skv_lmdb *s);
void skv_lmdb_end(struct skv_lmdb *s);
/* A missing key gives a record that does not exist. */
MUST_USE enum err skv_lmdb_get(struct skv_lmdb *s, struct slice key,
                               struct skv_stored *out);

enum err skv_lmdb_lookup(struct skv_store *store, struct slice key,
                         struct skv_value *out);
enum err skv_lmdb_read(struct skv_store *store, struct slice key,
                       uint64_t offset, void *to, size_t size, size_t *got);
enum err skv_lmdb_scan(struct skv_store *store, struct slice prefix,
                       struct slice from, skv_scan_fn *each, void *arg);

/* ---- store_lmdb_write.c ---- */

enum err skv_lmdb_put(struct skv_store *store, struct slice key,
                      struct slice value);
enum err skv_lmdb_put_range(struct skv_store *store, struct slice key,
                            uint64_t offset, struct slice data);
enum err skv_lmdb_truncate(struct skv_store *store, struct slice key,
                           uint64_t length);
enum err skv_lmdb_punch(struct skv_store *store, struct slice key,
                        uint64_t offset, uint64_t size);
enum err skv_lmdb_remove(struct skv_store *store, struct slice key);

/* ---- store_lmdb_checkpoint.c ---- */

enum err skv_lmdb_checkpoint(struct skv_store *store, uint64_t index,
                             uint64_t term);
enum err skv_lmdb_checkpoint_begin(struct skv_store *store, uint64_t index,
                                   uint64_t term);
enum err skv_lmdb_checkpoint_write(struct skv_store *store);
enum err skv_lmdb_checkpoint_end(struct skv_store *store);
enum err skv_lmdb_rewind(struct skv_store *store);
uint64_t skv_lmdb_unsaved(struct skv_store *store);
/* What LMDB has, and nothing else, is the state. */
MUST_USE enum err skv_lmdb_load(struct skv_lmdb *s);
/* Waits for the checkpoint on its way, or makes it; all that was not in it is
 * gone. */
void skv_lmdb_forget(struct skv_lmdb *s);

/* ---- store_lmdb_view.c ---- */

enum err skv_lmdb_view_open(struct skv_store *store, struct skv_view **out);
enum err skv_lmdb_view_read(struct skv_store *store, struct skv_view *v,
                            enum err (*write)(void *arg, struct slice bytes),
                            void *arg);
void skv_lmdb_view_close(struct skv_store *store, struct skv_view *v);
enum err skv_lmdb_view_open_exact(struct skv_store *store,
                                  struct skv_view **out);
enum err skv_lmdb_view_scan(struct skv_store *store, struct skv_view *v,
                            struct slice prefix, struct slice from,
                            skv_scan_fn *each, void *arg);
enum err skv_lmdb_view_value(struct skv_store *store, struct skv_view *v,
                             struct slice key, uint64_t offset, void *to,
                             size_t size, size_t *got);
enum err skv_lmdb_view_skip(struct skv_store *store, struct skv_view *v,
                            struct slice key, uint64_t offset,
                            uint64_t *data_at);

/* ---- store_lmdb_install.c ---- */

enum err skv_lmdb_install(struct skv_store *store,
                          enum err (*read)(void *arg, void *to, size_t size_max,
                                           size_t *size),
                          void *arg, uint64_t index, uint64_t term);
/* The first generation, without keys. */
MUST_USE enum err skv_lmdb_install_empty(struct skv_lmdb *s);

#endif
