/* Views: a read transaction of LMDB, on whatever thread. */
#include "shardkv/store_lmdb_int.h"

#include <string.h>

#include "base/check.h"

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

/* ---- exact views ---- */

/* Blob numbers rise, so those from the counter on are made later; none is
 * younger than the view itself, as the checkpoint is now. */
enum err skv_lmdb_view_open_exact(struct skv_store *store,
                                  struct skv_view **out)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_view *v = NULL;
    CHECK(s->frozen == NULL && skv_delta_count(s->fresh) == 0);
    enum err rc = skv_lmdb_view_open(store, &v);
    if (rc == ERR_OK) {
        rc = skv_undo_open(s->gen->blobs, s->meta.next_blob, &v->undo);
        if (rc != ERR_OK) {
            skv_lmdb_view_close(store, v);
            return rc;
        }
        *out = v;
    }
    return rc;
}

static enum err scan_cursor(struct skv_generation *g, MDB_cursor *cursor,
                            struct slice prefix, struct slice start,
                            skv_scan_fn *each, void *arg)
{
    MDB_val key = skv_val_of(start);
    MDB_val value;
    int code = mdb_cursor_get(cursor, &key, &value,
                              start.size == 0 ? MDB_FIRST : MDB_SET_RANGE);
    while (code == 0 && skv_has_prefix(skv_slice_val(&key), prefix)) {
        struct skv_stored r;
        enum err rc = skv_stored_decode(g, skv_slice_val(&value), &r);
        if (rc != ERR_OK) {
            return rc;
        }
        struct skv_value shown = skv_stored_value(&r);
        if (!each(arg, skv_slice_val(&key), &shown)) {
            return ERR_OK;
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    return code == 0 || code == MDB_NOTFOUND ? ERR_OK
                                             : skv_lmdb_failed(g, "view", code);
}

enum err skv_lmdb_view_scan(struct skv_store *store, struct skv_view *v,
                            struct slice prefix, struct slice from,
                            skv_scan_fn *each, void *arg)
{
    (void)store;
    struct slice start = slice_compare(from, prefix) > 0 ? from : prefix;
    if (start.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    MDB_cursor *cursor = NULL;
    int code = mdb_cursor_open(v->txn, v->gen->keys, &cursor);
    if (code != 0) {
        return skv_lmdb_failed(v->gen, "view", code);
    }
    enum err rc = scan_cursor(v->gen, cursor, prefix, start, each, arg);
    mdb_cursor_close(cursor);
    return rc;
}

static enum err view_record(const struct skv_view *v, struct slice key,
                            struct skv_stored *out)
{
    MDB_val k = skv_val_of(key);
    MDB_val value;
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    int code = mdb_get(v->txn, v->gen->keys, &k, &value);
    if (code != 0) {
        return code == MDB_NOTFOUND ? ERR_NOTFOUND
                                    : skv_lmdb_failed(v->gen, "view", code);
    }
    return skv_stored_decode(v->gen, skv_slice_val(&value), out);
}

enum err skv_lmdb_view_value(struct skv_store *store, struct skv_view *v,
                             struct slice key, uint64_t offset, void *to,
                             size_t size, size_t *got)
{
    (void)store;
    struct skv_stored r;
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

enum err skv_lmdb_view_skip(struct skv_store *store, struct skv_view *v,
                            struct slice key, uint64_t offset,
                            uint64_t *data_at)
{
    (void)store;
    struct skv_stored r;
    enum err rc = view_record(v, key, &r);
    *data_at = offset;
    if (rc != ERR_OK || !r.shape.blob || offset >= r.shape.length) {
        return rc;
    }
    return skv_undo_data_from(v->undo, r.blob, offset, r.shape.length, data_at);
}

void skv_lmdb_view_close(struct skv_store *store, struct skv_view *v)
{
    (void)store;
    mdb_txn_abort(v->txn);
    if (v->undo != NULL) {
        skv_undo_close(v->undo);
    }
    skv_generation_unref(v->gen);
    mem_free(v);
}
