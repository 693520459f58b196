/* The store on disk: LMDB for keys, small values and bookkeeping; a file for
 * each large value (blob.c). The parts and their invariants are in
 * store_lmdb_int.h. */
#include "shardkv/store_lmdb_int.h"

#include <inttypes.h>
#include <unistd.h>

#include "base/check.h"

#define MAP_SIZE_DEFAULT (64ull << 30)

static void op_durable(struct skv_store *store, uint64_t *index, uint64_t *term)
{
    *index = skv_lmdb_of(store)->durable_index;
    *term = skv_lmdb_of(store)->durable_term;
}

static void op_usage(struct skv_store *store, uint64_t *keys, uint64_t *bytes)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    MDB_stat st = {0};
    if (skv_lmdb_begin(s) == ERR_OK) {
        (void)mdb_stat(s->txn, s->gen->keys, &st);
    }
    uint64_t pages =
        st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages;
    *keys = s->count;
    *bytes = pages * st.ms_psize + s->meta.blob_bytes;
}

static void pending_free(struct skv_pending *p)
{
    if (p->sync != NULL) {
        skv_blobs_sync_free(p->sync);
    }
    buf_free(&p->dead);
}

static void op_close(struct skv_store *store)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    pending_free(&s->pending);
    if (s->gen != NULL) {
        skv_lmdb_end(s);
        skv_generation_unref(s->gen);
    }
    if (s->lock_fd >= 0) {
        close(s->lock_fd);
    }
    skv_delta_free(s->fresh);
    skv_delta_free(s->frozen);
    skv_delta_free(s->spare);
    pthread_mutex_destroy(&s->lock);
    buf_free(&s->dead);
    mem_free(s->dir);
    mem_free(s);
}

static const struct skv_store_ops lmdb_ops = {
    .lookup = skv_lmdb_lookup,
    .read = skv_lmdb_read,
    .put = skv_lmdb_put,
    .put_range = skv_lmdb_put_range,
    .truncate = skv_lmdb_truncate,
    .punch = skv_lmdb_punch,
    .remove = skv_lmdb_remove,
    .scan = skv_lmdb_scan,
    .checkpoint = skv_lmdb_checkpoint,
    .checkpoint_begin = skv_lmdb_checkpoint_begin,
    .checkpoint_write = skv_lmdb_checkpoint_write,
    .checkpoint_end = skv_lmdb_checkpoint_end,
    .unsaved = skv_lmdb_unsaved,
    .durable = op_durable,
    .rewind = skv_lmdb_rewind,
    .view_open = skv_lmdb_view_open,
    .view_read = skv_lmdb_view_read,
    .view_close = skv_lmdb_view_close,
    .view_open_exact = skv_lmdb_view_open_exact,
    .view_scan = skv_lmdb_view_scan,
    .view_value = skv_lmdb_view_value,
    .view_skip = skv_lmdb_view_skip,
    .install = skv_lmdb_install,
    .usage = op_usage,
    .close = op_close,
};

static enum err open_generation(struct skv_lmdb *s)
{
    if (s->number == 0) {
        return skv_lmdb_install_empty(s);
    }
    char *path = mem_printf("%s/state.%" PRIu64, s->dir, s->number);
    return skv_generation_open(path, s->map_size, 0, &s->gen);
}

enum err skv_store_lmdb_open(const char *dir, uint64_t map_size,
                             struct skv_store **out)
{
    struct skv_lmdb *s = mem_alloc(sizeof *s);
    s->store.ops = &lmdb_ops;
    s->dir = mem_strdup(dir);
    s->map_size = map_size != 0 ? map_size : MAP_SIZE_DEFAULT;
    s->lock_fd = -1;
    s->fresh = skv_delta_new();
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    enum err rc = skv_dir_lock(dir, &s->lock_fd);
    if (rc == ERR_OK) {
        rc = skv_dir_settle(dir, &s->number);
    }
    if (rc == ERR_OK) {
        rc = open_generation(s);
    }
    if (rc == ERR_OK) {
        rc = skv_lmdb_load(s);
    }
    if (rc != ERR_OK) {
        op_close(&s->store);
        return rc;
    }
    *out = &s->store;
    return ERR_OK;
}
