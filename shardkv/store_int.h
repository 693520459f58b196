/* What the stores share: the rule of which values are large, and the stream
 * that views write and install reads; and the parts of the store on disk that
 * know no LMDB: blob files and the directories of generations. */
#ifndef SHARDKV_STORE_INT_H
#define SHARDKV_STORE_INT_H

#include <pthread.h>

#include "shardkv/request.h"
#include "shardkv/store.h"

/* ---- which values are large (store_rule.c) ---- */

/* A value without its bytes. */
struct skv_shape {
    uint64_t length;
    bool exists;
    bool blob;
};

struct skv_shape skv_shape_put(uint64_t size);
struct skv_shape skv_shape_put_range(struct skv_shape old, uint64_t offset,
                                     uint64_t size);
struct skv_shape skv_shape_truncate(struct skv_shape old, uint64_t length);

/* ERR_INVALID: empty. ERR_TOOBIG: over SKV_STORE_KEY_SIZE_MAX. */
MUST_USE enum err skv_store_key_check(struct slice key);

/* ---- the stream (stream.c; docs/disk-store.md, "Stream") ---- */

enum { SKV_STREAM_DATA_MAX = 1 << 20 };

enum skv_stream_type {
    SKV_STREAM_KEY = 1,  /* a key, and all of an inline value */
    SKV_STREAM_DATA = 2, /* bytes of the blob of the last key */
    SKV_STREAM_END = 3,
};

typedef enum err skv_stream_write_fn(void *arg, struct slice bytes);
typedef enum err skv_stream_read_fn(void *arg, void *to, size_t size_max,
                                    size_t *size);

/* Zero-initialise with write and arg. The first failure is kept in rc and
 * everything after it does nothing. */
struct skv_stream_writer {
    skv_stream_write_fn *write;
    void *arg;
    enum err rc;
    struct buf pending;
    uint32_t crc;
    uint64_t keys;
};
void skv_stream_begin(struct skv_stream_writer *w);
/* `value`: as lookup gives it. */
void skv_stream_key(struct skv_stream_writer *w, struct slice key,
                    const struct skv_value *value);
/* At most SKV_STREAM_DATA_MAX bytes; offsets rise; what is left out is zeros.
 */
void skv_stream_data(struct skv_stream_writer *w, uint64_t offset,
                     struct slice data);
/* Writes the end mark and frees the writer's memory; gives rc. */
MUST_USE enum err skv_stream_end(struct skv_stream_writer *w);

/* Zero-initialise with read and arg; free with skv_stream_reader_fini(). */
struct skv_stream_reader {
    skv_stream_read_fn *read;
    void *arg;
    bool begun;
    uint32_t crc;
    uint64_t keys;
    struct buf body;
    struct buf last_key;
    uint64_t length; /* of the last key's value */
    uint64_t data_end;
    bool in_blob;
};
struct skv_stream_record {
    enum skv_stream_type type;
    struct slice key;       /* KEY */
    struct skv_value value; /* KEY */
    uint64_t offset;        /* DATA */
    struct slice data;      /* DATA */
};
/* The next record, borrowing from the reader until the next call. Checks
 * everything that can be checked: after END nothing more may come. */
MUST_USE enum err skv_stream_next(struct skv_stream_reader *r,
                                  struct skv_stream_record *out);
void skv_stream_reader_fini(struct skv_stream_reader *r);

/* ---- blob files (blob.c) ---- */

struct skv_blobs;

/* Makes DIR, which must not exist. */
MUST_USE enum err skv_blobs_make(const char *dir);
MUST_USE enum err skv_blobs_open(const char *dir, struct skv_blobs **out);
void skv_blobs_close(struct skv_blobs *b);

/* An empty file, also when one of this number is there from before a crash. */
MUST_USE enum err skv_blobs_create(struct skv_blobs *b, uint64_t id);
MUST_USE enum err skv_blobs_write(struct skv_blobs *b, uint64_t id,
                                  uint64_t offset, struct slice data);
/* All of `size` bytes; zeros where the file has none. */
MUST_USE enum err skv_blobs_read(struct skv_blobs *b, uint64_t id,
                                 uint64_t offset, void *to, size_t size);
MUST_USE enum err skv_blobs_truncate(struct skv_blobs *b, uint64_t id,
                                     uint64_t length);
MUST_USE enum err skv_blobs_punch(struct skv_blobs *b, uint64_t id,
                                  uint64_t offset, uint64_t size);
/* The file is dead: what was written to it need not reach the disk. */
void skv_blobs_forget(struct skv_blobs *b, uint64_t id);
/* One that was forgotten; from any thread. ERR_NOTFOUND. */
MUST_USE enum err skv_blobs_unlink(const struct skv_blobs *b, uint64_t id);
/* Everything written and created so far is on disk. */
MUST_USE enum err skv_blobs_sync(struct skv_blobs *b);
/* The same in two steps: what there is to sync; and, from any thread, while the
 * others go on, to do it. */
struct skv_blob_sync;
struct skv_blob_sync *skv_blobs_freeze(struct skv_blobs *b);
/* Takes `s`. */
MUST_USE enum err skv_blobs_sync_run(const struct skv_blobs *b,
                                     struct skv_blob_sync *s);
void skv_blobs_sync_free(struct skv_blob_sync *s); /* instead */

/* Writes the first `length` bytes of a blob as DATA records, leaving holes out.
 * From any thread, while the others go on. */
MUST_USE enum err skv_blobs_stream(const struct skv_blobs *b, uint64_t id,
                                   uint64_t length,
                                   struct skv_stream_writer *w);

/* The same for one who reads parts: where the next byte that is not in a hole
 * is, or `length`. */
MUST_USE enum err skv_blobs_open_file(const struct skv_blobs *b, uint64_t id,
                                      int *fd);
uint64_t skv_blob_data_from(int fd, uint64_t offset, uint64_t length);

/* ---- exact views of blobs (blob_undo.c) ---- */

struct skv_undo;
struct skv_undos {
    pthread_mutex_t lock;
    struct skv_undo *list;
    uint32_t count; /* atomic: of the list */
};
void skv_undos_init(struct skv_undos *all);
void skv_undos_fini(struct skv_undos *all); /* the list is empty */
/* Bytes that a change of the file `fd` is about to replace are kept for those
 * views that have not kept them. `grows`: it may write past the file's end. A
 * failure is the views', not the caller's. */
void skv_undos_keep(struct skv_undos *all, int fd, uint64_t id, uint64_t offset,
                    uint64_t size, bool grows);

/* From the thread of the writes. Blobs from `next_id` on are newer than the
 * view. What must be kept goes into a file without a name in the blobs'
 * directory. */
MUST_USE enum err skv_undo_open(struct skv_blobs *b, uint64_t next_id,
                                struct skv_undo **out);
void skv_undo_close(struct skv_undo *u); /* any thread */
/* All of `size` bytes, as they were; any thread. ERR_EXPIRED: given up. */
MUST_USE enum err skv_undo_read(struct skv_undo *u, uint64_t id,
                                uint64_t offset, void *to, size_t size);
MUST_USE enum err skv_undo_data_from(struct skv_undo *u, uint64_t id,
                                     uint64_t offset, uint64_t length,
                                     uint64_t *at);
struct skv_undos *skv_blobs_undos(struct skv_blobs *b);
int skv_blobs_dir_fd(const struct skv_blobs *b);

/* ---- generations: DIR/state.N, complete and synced when it has its name;
 * DIR/new, one being built (store_dir.c) ---- */

/* Makes DIR if missing and keeps other processes out while *fd is open;
 * ERR_BUSY. */
MUST_USE enum err skv_dir_lock(const char *dir, int *fd);
/* The highest N, or 0; removes all others and what was being built. */
MUST_USE enum err skv_dir_settle(const char *dir, uint64_t *number);
MUST_USE enum err skv_dir_make_new(const char *dir, char **path);
/* Syncs DIR/new and gives it its name: the switch. */
MUST_USE enum err skv_dir_adopt_new(const char *dir, uint64_t number,
                                    char **path);
MUST_USE enum err skv_dir_remove(const char *path); /* missing: ok */

/* ERR_NOSPACE or ERR_IO, never a code that the store uses to refuse something
 * on every replica alike (EFBIG of a file system is not ERR_TOOBIG). */
enum err skv_system_error(int number);
/* Logs what was tried on what, with errno, and gives the code for it. */
enum err skv_system_failed(const char *what, const char *path);

#endif
