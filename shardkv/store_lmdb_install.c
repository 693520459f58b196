/* A new generation from a stream, or an empty one. */
#include "shardkv/store_lmdb_int.h"

#include <string.h>

enum { INSTALL_COMMIT_SIZE = 4 << 20 };

/* A generation being filled from a stream, in DIR/new. */
struct install {
    struct skv_generation *gen;
    MDB_txn *txn;
    size_t uncommitted;
    struct skv_lmdb_meta meta;
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
    return code == 0 ? ERR_OK : skv_lmdb_failed(in->gen, "commit", code);
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
    uint8_t record[SKV_RECORD_SIZE_MAX];
    size_t size = SKV_BLOB_RECORD_SIZE;
    enum err rc = install_blob_end(in);
    if (rc == ERR_OK && !r->value.is_inline) {
        rc = install_blob(in, &r->value);
        skv_stored_blob(record, in->blob, r->value.length);
    } else if (rc == ERR_OK) {
        struct slice bytes = r->value.inline_bytes;
        skv_stored_inline(record);
        if (bytes.size > 0) {
            memcpy(record + 1, bytes.data, bytes.size);
        }
        size = 1 + bytes.size;
    }
    if (rc != ERR_OK) {
        return rc;
    }
    MDB_val k = skv_val_of(r->key);
    MDB_val v = {.mv_size = size, .mv_data = record};
    int code = mdb_put(in->txn, in->gen->keys, &k, &v, MDB_APPEND);
    if (code != 0) {
        return skv_lmdb_failed(in->gen, "write", code);
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
    int code = skv_lmdb_meta_put(in->gen, in->txn, &in->meta);
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
                     : skv_lmdb_failed(in->gen, "sync", code);
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
    rc = skv_generation_open(path, map_size, MDB_NOSYNC, &in->gen);
    if (rc != ERR_OK) {
        return rc;
    }
    in->meta.next_blob = 1;
    int code = mdb_txn_begin(in->gen->env, NULL, 0, &in->txn);
    return code == 0 ? ERR_OK : skv_lmdb_failed(in->gen, "begin", code);
}

static void install_abort(struct install *in)
{
    if (in->txn != NULL) {
        mdb_txn_abort(in->txn);
    }
    if (in->gen != NULL) {
        in->gen->replaced = true; /* removes DIR/new */
        skv_generation_unref(in->gen);
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

enum err skv_lmdb_install(struct skv_store *store,
                          enum err (*read)(void *arg, void *to, size_t size_max,
                                           size_t *size),
                          void *arg, uint64_t index, uint64_t term)
{
    struct skv_lmdb *s = skv_lmdb_of(store);
    struct install in = {.meta = {.index = index, .term = term}};
    enum err rc = build(s->dir, s->map_size, s->number + 1, read, arg, &in);
    if (rc != ERR_OK) {
        /* Both states are complete, but nothing may be added to the old one
         * if the next start could prefer the other. */
        s->failed = in.adopting ? rc : s->failed;
        return rc;
    }
    skv_lmdb_forget(s);
    s->gen->replaced = true;
    skv_generation_unref(s->gen);
    s->number++;
    s->gen = in.gen;
    s->failed = ERR_OK;
    mem_trim();
    return skv_lmdb_load(s);
}

enum err skv_lmdb_install_empty(struct skv_lmdb *s)
{
    struct install in = {0};
    enum err rc = build(s->dir, s->map_size, 1, NULL, NULL, &in);
    if (rc == ERR_OK) {
        s->number = 1;
        s->gen = in.gen;
    }
    return rc;
}
