/* Checkpoints, in three steps, so that the applier stops for the first and the
 * last only, which take microseconds:
 *
 *   begin (applier)     the delta is frozen, a new one takes what comes
 *   write (any thread)  blobs are synced; the frozen delta goes into LMDB, in
 *                       the order of its keys, and is committed with a sync
 *   end (applier)       reads see LMDB as it is now; the frozen delta goes
 *
 * Whoever needs it done at once calls write itself, which waits for one that
 * another thread is in. A crash before the commit leaves the state before, and
 * after it the state as it was at begin: LMDB's own promise. */
#include "shardkv/store_lmdb_int.h"

#include "base/check.h"

/* ---- into LMDB; `lock` is held ---- */

static enum err write_keys(struct skv_lmdb *s, MDB_txn *txn)
{
    MDB_cursor *cursor = NULL;
    int code = mdb_cursor_open(txn, s->gen->keys, &cursor);
    const struct skv_delta_node *n = skv_delta_seek(s->frozen, slice_of("", 0));
    for (; code == 0 && n != NULL; n = skv_delta_next(n)) {
        struct skv_delta_entry e = skv_delta_at(n);
        MDB_val key = skv_val_of(e.key);
        MDB_val value = skv_val_of(e.record);
        if (!e.removed) {
            code = mdb_cursor_put(cursor, &key, &value, 0);
            continue;
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_SET);
        if (code == 0) {
            code = mdb_cursor_del(cursor, 0);
        } else if (code == MDB_NOTFOUND) {
            code = 0; /* it came and went since the last checkpoint */
        }
    }
    if (cursor != NULL) {
        mdb_cursor_close(cursor);
    }
    return code == 0 ? ERR_OK : skv_lmdb_write_failed(s->gen, "write", code);
}

static enum err write_dead(struct skv_lmdb *s, MDB_txn *txn)
{
    struct skv_generation *g = s->gen;
    const struct buf *dead = &s->pending.dead;
    int code = g->reaped ? mdb_drop(txn, g->dead, 0) : 0;
    for (size_t at = 0; code == 0 && at < dead->size; at += 8) {
        MDB_val key = {.mv_size = 8, .mv_data = dead->data + at};
        MDB_val value = {.mv_size = 0, .mv_data = dead->data};
        code = mdb_put(txn, g->dead, &key, &value, 0);
    }
    return code == 0 ? ERR_OK : skv_lmdb_write_failed(g, "write", code);
}

static enum err write_all(struct skv_lmdb *s)
{
    struct skv_generation *g = s->gen;
    MDB_txn *txn = NULL;
    int code = mdb_txn_begin(g->env, NULL, 0, &txn);
    if (code != 0) {
        return skv_lmdb_failed(g, "begin", code);
    }
    enum err rc = write_dead(s, txn);
    if (rc == ERR_OK) {
        rc = write_keys(s, txn);
    }
    if (rc == ERR_OK) {
        code = skv_lmdb_meta_put(g, txn, &s->pending.meta);
    }
    if (rc == ERR_OK && code == 0) {
        code = mdb_txn_commit(txn); /* frees it also when it fails */
        txn = NULL;
    }
    if (txn != NULL) {
        mdb_txn_abort(txn);
    }
    if (rc == ERR_OK && code == 0) {
        g->reaped = false;
    }
    return rc == ERR_OK && code != 0 ? skv_lmdb_write_failed(g, "commit", code)
                                     : rc;
}

static enum err unlink_each(struct skv_generation *g, MDB_cursor *cursor)
{
    MDB_val key, value;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (code == 0) {
        if (key.mv_size != 8) {
            return skv_lmdb_corrupt(g, "the list of dead blobs");
        }
        enum err rc = skv_blobs_unlink(g->blobs, get_be64(key.mv_data));
        if (rc != ERR_OK && rc != ERR_NOTFOUND) {
            return rc;
        }
        code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    return code == MDB_NOTFOUND ? ERR_OK : skv_lmdb_failed(g, "scan", code);
}

/* Unlinks the dead (invariant 4). A view that is opened from here on sees the
 * commit that buried them. */
static enum err reap(struct skv_generation *g)
{
    if (skv_generation_is_viewed(g)) {
        return ERR_OK;
    }
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    int code = mdb_txn_begin(g->env, NULL, MDB_RDONLY, &txn);
    if (code == 0) {
        code = mdb_cursor_open(txn, g->dead, &cursor);
    }
    enum err rc =
        code == 0 ? unlink_each(g, cursor) : skv_lmdb_failed(g, "scan", code);
    if (cursor != NULL) {
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
    g->reaped = rc == ERR_OK;
    return rc;
}

static enum err write_pending(struct skv_lmdb *s)
{
    enum err rc = skv_blobs_sync_run(s->gen->blobs, s->pending.sync);
    s->pending.sync = NULL;
    if (rc == ERR_OK) {
        rc = write_all(s);
    }
    return rc == ERR_OK ? reap(s->gen) : rc;
}

/* ---- the three steps ---- */

static struct skv_delta *delta_take(struct skv_lmdb *s)
{
    struct skv_delta *d = s->spare != NULL ? s->spare : skv_delta_new();
    s->spare = NULL;
    return d;
}

static void delta_give(struct skv_lmdb *s, struct skv_delta *d)
{
    skv_delta_clear(d);
    skv_delta_hand(d, s->fresh);
    if (s->spare == NULL) {
        s->spare = d;
    } else {
        skv_delta_free(d);
    }
}

enum err skv_lmdb_checkpoint_begin(struct skv_store *store, uint64_t index,
                                   uint64_t term)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    if (s->failed != ERR_OK) {
        return s->failed;
    }
    pthread_mutex_lock(&s->lock);
    struct skv_pending *p = &s->pending;
    CHECK(!p->begun && s->frozen == NULL);
    s->meta.index = index;
    s->meta.term = term;
    s->frozen = s->fresh;
    s->fresh = delta_take(s);
    skv_delta_hand(s->frozen, s->fresh);
    struct buf empty = p->dead;
    p->dead = s->dead;
    s->dead = empty;
    p->meta = s->meta;
    p->sync = skv_blobs_freeze(s->gen->blobs);
    p->begun = true;
    p->written = false;
    pthread_mutex_unlock(&s->lock);
    return ERR_OK;
}

/* The delta, and the pages that LMDB changes, which it holds in memory until
 * the commit: those of large records; and of L leaves, for n keys here and
 * there, about nL / (n + L). */
uint64_t skv_lmdb_unsaved(struct skv_store *store)
{
    const struct skv_lmdb *s = skv_lmdb_of(store);
    uint64_t n = skv_delta_count(s->fresh);
    uint64_t leaves = n == 0 ? 0 : n * s->leaves / (n + s->leaves);
    return skv_delta_size(s->fresh) +
           (skv_delta_pages(s->fresh) + leaves) * SKV_PAGE_SIZE;
}

enum err skv_lmdb_checkpoint_write(struct skv_store *store)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_pending *p = &s->pending;
    pthread_mutex_lock(&s->lock);
    if (p->begun && !p->written) {
        p->rc = write_pending(s);
        p->written = true;
    }
    enum err rc = p->begun ? p->rc : ERR_OK;
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* What failed stays frozen: it is still the state that reads see. */
enum err skv_lmdb_checkpoint_end(struct skv_store *store)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct skv_pending *p = &s->pending;
    if (!p->begun) {
        return ERR_OK; /* somebody was in a hurry, and ended it */
    }
    pthread_mutex_lock(&s->lock);
    CHECK(p->written);
    enum err rc = p->rc;
    if (rc == ERR_OK) {
        s->durable_index = p->meta.index;
        s->durable_term = p->meta.term;
        buf_clear(&p->dead);
        p->begun = false;
    }
    pthread_mutex_unlock(&s->lock);
    if (rc != ERR_OK) {
        s->failed = rc;
        return rc;
    }
    skv_lmdb_end(s);
    delta_give(s, s->frozen);
    s->frozen = NULL;
    return ERR_OK;
}

static enum err settle(struct skv_lmdb *s)
{
    enum err rc = skv_lmdb_checkpoint_write(&s->store);
    enum err end = skv_lmdb_checkpoint_end(&s->store);
    return rc != ERR_OK ? rc : end;
}

enum err skv_lmdb_checkpoint(struct skv_store *store, uint64_t index,
                             uint64_t term)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    enum err rc = settle(s);
    if (rc == ERR_OK) {
        rc = skv_lmdb_checkpoint_begin(store, index, term);
    }
    return rc == ERR_OK ? settle(s) : rc;
}

/* ---- back to what LMDB has ---- */

void skv_lmdb_forget(struct skv_lmdb *s)
{
    if (settle(s) != ERR_OK && s->frozen != NULL) {
        pthread_mutex_lock(&s->lock);
        s->pending.begun = false;
        buf_clear(&s->pending.dead);
        pthread_mutex_unlock(&s->lock);
        delta_give(s, s->frozen);
        s->frozen = NULL;
    }
    skv_lmdb_end(s);
    skv_delta_clear(s->fresh);
    buf_clear(&s->dead);
}

/* Blobs made after the last checkpoint, if there was a crash: the replay makes
 * them anew, but may be long in coming. They were numbered without a gap. */
static enum err unlink_unborn(struct skv_lmdb *s)
{
    enum err rc = ERR_OK;
    for (uint64_t id = s->meta.next_blob; rc == ERR_OK; id++) {
        skv_blobs_forget(s->gen->blobs, id);
        rc = skv_blobs_unlink(s->gen->blobs, id);
    }
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

enum err skv_lmdb_load(struct skv_lmdb *s)
{
    MDB_stat st = {0};
    enum err rc = skv_lmdb_begin(s);
    if (rc == ERR_OK) {
        rc = skv_lmdb_meta_get(s->gen, s->txn, &s->meta);
    }
    if (rc == ERR_OK) {
        (void)mdb_stat(s->txn, s->gen->keys, &st);
        s->count = st.ms_entries;
        s->durable_index = s->meta.index;
        s->durable_term = s->meta.term;
        rc = unlink_unborn(s);
    }
    return rc == ERR_OK ? reap(s->gen) : rc;
}

/* A map that was too small grows; not while a view is open, whose thread reads
 * in it. */
static enum err map_grow(struct skv_lmdb *s)
{
    if (!s->gen->map_full) {
        return ERR_OK;
    }
    if (skv_generation_is_viewed(s->gen)) {
        return ERR_NOSPACE;
    }
    int code = mdb_env_set_mapsize(s->gen->env, 2 * s->map_size);
    if (code != 0) {
        return skv_lmdb_failed(s->gen, "resize", code);
    }
    s->map_size *= 2;
    s->gen->map_full = false;
    return ERR_OK;
}

enum err skv_lmdb_rewind(struct skv_store *store)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    if (s->failed != ERR_OK && s->failed != ERR_NOSPACE) {
        return s->failed;
    }
    skv_lmdb_forget(s);
    if (s->failed != ERR_OK && s->failed != ERR_NOSPACE) {
        return s->failed; /* the checkpoint on its way */
    }
    enum err rc = map_grow(s);
    if (rc == ERR_OK) {
        rc = skv_lmdb_load(s);
    }
    if (rc == ERR_OK) {
        s->failed = ERR_OK;
    }
    return rc;
}
