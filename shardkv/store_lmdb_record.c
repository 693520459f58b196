/* Records, and reading them: what is not in LMDB yet lies over it. */
#include "shardkv/store_lmdb_int.h"

#include <string.h>

enum { TAG_INLINE = 0, TAG_BLOB = 1 };

/* ---- records ---- */

void skv_stored_blob(uint8_t record[SKV_BLOB_RECORD_SIZE], uint64_t id,
                     uint64_t length)
{
    record[0] = TAG_BLOB;
    set_u64(record + 1, id);
    set_u64(record + 9, length);
}

void skv_stored_inline(uint8_t record[SKV_RECORD_SIZE_MAX])
{
    record[0] = TAG_INLINE;
}

enum err skv_stored_decode(const struct skv_generation *g, struct slice bytes,
                           struct skv_stored *out)
{
    struct dec d = dec_of(bytes);
    uint8_t tag = dec_u8(&d);
    struct skv_stored r = {.shape = {.exists = true, .blob = tag == TAG_BLOB}};
    if (tag == TAG_BLOB) {
        r.blob = dec_u64(&d);
        r.shape.length = dec_u64(&d);
    } else {
        r.bytes = dec_raw(&d, dec_left(&d));
        r.shape.length = r.bytes.size;
    }
    if (dec_done(&d) != ERR_OK || tag > TAG_BLOB) {
        return skv_lmdb_corrupt(g, "a record");
    }
    *out = r;
    return ERR_OK;
}

struct skv_value skv_stored_value(const struct skv_stored *r)
{
    return (struct skv_value){.length = r->shape.length,
                              .is_inline = !r->shape.blob,
                              .inline_bytes = r->bytes};
}

/* ---- the read transaction ---- */

enum err skv_lmdb_begin(struct skv_lmdb *s)
{
    if (s->txn != NULL) {
        return ERR_OK;
    }
    MDB_txn *txn = NULL;
    MDB_stat st = {0};
    int code = mdb_txn_begin(s->gen->env, NULL, MDB_RDONLY, &txn);
    if (code == 0) {
        code = mdb_stat(txn, s->gen->keys, &st);
        s->leaves = st.ms_leaf_pages;
    }
    if (code == 0) {
        code = mdb_cursor_open(txn, s->gen->keys, &s->cursor);
    }
    if (code != 0) {
        mdb_txn_abort(txn);
        return skv_lmdb_failed(s->gen, "begin", code);
    }
    s->txn = txn;
    return ERR_OK;
}

static void scan_cursor_close(struct skv_lmdb *s)
{
    if (s->scan_cursor != NULL) {
        mdb_cursor_close(s->scan_cursor);
        s->scan_cursor = NULL;
    }
}

void skv_lmdb_end(struct skv_lmdb *s)
{
    if (s->txn != NULL) {
        mdb_cursor_close(s->cursor);
        scan_cursor_close(s);
        mdb_txn_abort(s->txn);
        s->txn = NULL;
    }
}

/* ---- one key ---- */

static bool find_above(const struct skv_lmdb *s, struct slice key,
                       struct skv_delta_entry *out)
{
    return skv_delta_find(s->fresh, key, out) ||
           (s->frozen != NULL && skv_delta_find(s->frozen, key, out));
}

static enum err get_stored(struct skv_lmdb *s, struct slice key,
                           struct skv_stored *out)
{
    enum err rc = skv_lmdb_begin(s);
    if (rc != ERR_OK) {
        return rc;
    }
    MDB_val k = skv_val_of(key);
    MDB_val v;
    int code = mdb_cursor_get(s->cursor, &k, &v, MDB_SET);
    if (code == MDB_NOTFOUND) {
        *out = (struct skv_stored){0};
        return ERR_OK;
    }
    return code == 0 ? skv_stored_decode(s->gen, skv_slice_val(&v), out)
                     : skv_lmdb_failed(s->gen, "read", code);
}

enum err skv_lmdb_get(struct skv_lmdb *s, struct slice key,
                      struct skv_stored *out)
{
    struct skv_delta_entry e;
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    if (!find_above(s, key, &e)) {
        return get_stored(s, key, out);
    }
    if (e.removed) {
        *out = (struct skv_stored){0};
        return ERR_OK;
    }
    return skv_stored_decode(s->gen, e.record, out);
}

enum err skv_lmdb_lookup(struct skv_store *store, struct slice key,
                         struct skv_value *out)
{
    struct skv_stored r;
    enum err rc = skv_lmdb_get(skv_lmdb_of(store), key, &r);
    if (rc != ERR_OK) {
        return rc;
    }
    if (!r.shape.exists) {
        return ERR_NOTFOUND;
    }
    *out = skv_stored_value(&r);
    return ERR_OK;
}

enum err skv_lmdb_read(struct skv_store *store, struct slice key,
                       uint64_t offset, void *to, size_t size, size_t *got)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_stored r;
    enum err rc = skv_lmdb_get(s, key, &r);
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

/* ---- scans: three sources in order, of which the upper ones hide what the
 * lower ones say of the same key ---- */

enum { SOURCES = 3 };

struct source {
    bool more;
    struct skv_delta_entry at;
    const struct skv_delta_node *node; /* of a delta; */
    MDB_cursor *cursor;                /* or LMDB's */
};

static void delta_show(struct source *f)
{
    f->more = f->node != NULL;
    if (f->more) {
        f->at = skv_delta_at(f->node);
    }
}

static enum err stored_move(struct skv_lmdb *s, struct source *f,
                            MDB_cursor_op op, struct slice start)
{
    MDB_val key = skv_val_of(start);
    MDB_val value;
    int code = mdb_cursor_get(f->cursor, &key, &value, op);
    f->more = code == 0;
    if (f->more) {
        f->at = (struct skv_delta_entry){.key = skv_slice_val(&key),
                                         .record = skv_slice_val(&value)};
    }
    return code == 0 || code == MDB_NOTFOUND
               ? ERR_OK
               : skv_lmdb_failed(s->gen, "scan", code);
}

static enum err advance(struct skv_lmdb *s, struct source *f)
{
    if (f->cursor != NULL) {
        return stored_move(s, f, MDB_NEXT, slice_of(NULL, 0));
    }
    f->node = skv_delta_next(f->node);
    delta_show(f);
    return ERR_OK;
}

static enum err seek(struct skv_lmdb *s, struct source from[SOURCES],
                     struct slice start)
{
    from[0].node = skv_delta_seek(s->fresh, start);
    from[1].node = s->frozen != NULL ? skv_delta_seek(s->frozen, start) : NULL;
    delta_show(&from[0]);
    delta_show(&from[1]);
    return stored_move(s, &from[2], start.size == 0 ? MDB_FIRST : MDB_SET_RANGE,
                       start);
}

/* The uppermost source with the least key. */
static struct source *least(struct source from[SOURCES])
{
    struct source *found = NULL;
    for (int i = 0; i < SOURCES; i++) {
        if (from[i].more &&
            (found == NULL ||
             slice_compare(from[i].at.key, found->at.key) < 0)) {
            found = &from[i];
        }
    }
    return found;
}

/* All sources that are at this key go on. */
static enum err pass(struct skv_lmdb *s, struct source from[SOURCES],
                     struct slice key)
{
    enum err rc = ERR_OK;
    for (int i = 0; i < SOURCES && rc == ERR_OK; i++) {
        if (from[i].more && slice_compare(from[i].at.key, key) == 0) {
            rc = advance(s, &from[i]);
        }
    }
    return rc;
}

bool skv_has_prefix(struct slice key, struct slice prefix)
{
    return key.size >= prefix.size &&
           (prefix.size == 0 ||
            memcmp(key.data, prefix.data, prefix.size) == 0);
}

static enum err merge(struct skv_lmdb *s, struct source from[SOURCES],
                      struct slice prefix, skv_scan_fn *each, void *arg)
{
    const struct source *at = least(from);
    enum err rc = ERR_OK;
    while (rc == ERR_OK && at != NULL && skv_has_prefix(at->at.key, prefix)) {
        struct skv_delta_entry e = at->at;
        struct skv_stored r;
        if (!e.removed) {
            rc = skv_stored_decode(s->gen, e.record, &r);
            if (rc != ERR_OK) {
                return rc;
            }
            struct skv_value shown = skv_stored_value(&r);
            if (!each(arg, e.key, &shown)) {
                return ERR_OK;
            }
        }
        rc = pass(s, from, e.key);
        at = least(from);
    }
    return rc;
}

/* The one of the last scan: most entries scan, and it costs half of a scan. */
static enum err cursor_take(struct skv_lmdb *s, MDB_cursor **out)
{
    int code = 0;
    *out = s->scan_cursor;
    s->scan_cursor = NULL;
    if (*out == NULL) {
        code = mdb_cursor_open(s->txn, s->gen->keys, out);
    }
    return code == 0 ? ERR_OK : skv_lmdb_failed(s->gen, "scan", code);
}

enum err skv_lmdb_scan(struct skv_store *store, struct slice prefix,
                       struct slice from, skv_scan_fn *each, void *arg)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct slice start = slice_compare(from, prefix) > 0 ? from : prefix;
    if (start.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    struct source sources[SOURCES] = {0};
    enum err rc = skv_lmdb_begin(s);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = cursor_take(s, &sources[2].cursor);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = seek(s, sources, start);
    if (rc == ERR_OK) {
        rc = merge(s, sources, prefix, each, arg);
    }
    scan_cursor_close(s); /* of a scan within this one */
    s->scan_cursor = sources[2].cursor;
    return rc;
}
