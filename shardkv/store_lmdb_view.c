/* Views: a read transaction of LMDB, on whatever thread. */
#include "shardkv/store_lmdb_int.h"

enum err skv_lmdb_view_open(struct skv_store *store, struct skv_view **out)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    MDB_txn *txn = NULL;
    skv_generation_ref(s->gen); /* first: see reap() */
    int code = mdb_txn_begin(s->gen->env, NULL, MDB_RDONLY, &txn);
    if (code != 0) {
        skv_generation_unref(s->gen);
        return skv_lmdb_failed(s->gen, "view", code);
    }
    struct skv_view *v = mem_alloc(sizeof *v);
    v->txn = txn;
    v->gen = s->gen;
    *out = v;
    return ERR_OK;
}

static enum err stream_record(const struct skv_view *v, const MDB_val *key,
                              const MDB_val *value, struct skv_stream_writer *w)
{
    struct skv_stored r;
    enum err rc = skv_stored_decode(v->gen, skv_slice_val(value), &r);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_value shown = skv_stored_value(&r);
    skv_stream_key(w, skv_slice_val(key), &shown);
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
    return code == MDB_NOTFOUND ? ERR_OK
                                : skv_lmdb_failed(v->gen, "view", code);
}

enum err skv_lmdb_view_read(struct skv_store *store, struct skv_view *v,
                            enum err (*write)(void *arg, struct slice bytes),
                            void *arg)
{
    (void)store; /* on another thread: not to be touched */
    MDB_cursor *cursor = NULL;
    int code = mdb_cursor_open(v->txn, v->gen->keys, &cursor);
    if (code != 0) {
        return skv_lmdb_failed(v->gen, "view", code);
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

void skv_lmdb_view_close(struct skv_store *store, struct skv_view *v)
{
    (void)store;
    mdb_txn_abort(v->txn);
    skv_generation_unref(v->gen);
    mem_free(v);
}
