/* The seam to what holds a group's state: ordered keys with mutable values of
 * any size up to SKV_VALUE_SIZE_MAX. Two implementations: store_lmdb.c (LMDB
 * for keys and small values, one sparse file for a large one) and store_mem.c
 * (for the simulator, with a durable image that a simulated crash goes back
 * to).
 *
 * One thread, the "apply" worker, makes all calls but the view's. Writes are
 * seen at once by reads, and become durable together at skv_store_checkpoint();
 * a crash goes back to the last checkpoint, except that bytes of large values
 * may be newer: replaying the log writes the same bytes again. That holds only
 * while no operation reads a large value's bytes as it is applied (DESIGN 4).
 */
#ifndef SHARDKV_STORE_H
#define SHARDKV_STORE_H

#include <stdbool.h>

#include "base/err.h"
#include "base/mem.h"

struct skv_store;
struct skv_view;

/* What a value is without reading its bytes. */
struct skv_value {
    uint64_t length;
    /* All of it, when at most SKV_INLINE_SIZE_MAX bytes and kept so; else
     * data is NULL. Borrowed until the next write or checkpoint. */
    struct slice inline_bytes;
    bool is_inline;
};

/* Scan: return false to stop. Key and value are borrowed for the call. */
typedef bool skv_scan_fn(void *arg, struct slice key,
                         const struct skv_value *value);

struct skv_store_ops {
    /* ERR_NOTFOUND. */
    enum err (*lookup)(struct skv_store *s, struct slice key,
                       struct skv_value *out);
    /* Up to `size` bytes from `offset`; *got may be less at the end. */
    enum err (*read)(struct skv_store *s, struct slice key, uint64_t offset,
                     void *to, size_t size, size_t *got);
    enum err (*put)(struct skv_store *s, struct slice key, struct slice value);
    /* Makes the key if missing; zeros fill a hole before `offset`. */
    enum err (*put_range)(struct skv_store *s, struct slice key,
                          uint64_t offset, struct slice data);
    enum err (*truncate)(struct skv_store *s, struct slice key,
                         uint64_t length); /* makes the key if missing */
    enum err (*punch)(struct skv_store *s, struct slice key, uint64_t offset,
                      uint64_t size);
    enum err (*remove)(struct skv_store *s, struct slice key); /* missing: ok */
    /* Every key that begins with `prefix` and is >= `from` (from may be
     * empty), in order. The callback must not write. */
    enum err (*scan)(struct skv_store *s, struct slice prefix,
                     struct slice from, skv_scan_fn *each, void *arg);
    /* Durable: all writes so far, with `index` and `term` in the same commit.
     */
    enum err (*checkpoint)(struct skv_store *s, uint64_t index, uint64_t term);
    /* The last checkpoint's. */
    void (*durable)(struct skv_store *s, uint64_t *index, uint64_t *term);

    /* A view of everything as it is now. view_read() may run on another thread
     * while writes go on; it calls `write` with consecutive bytes of a stream
     * that install() reads. Bytes of large values may be newer than the view.
     */
    enum err (*view_open)(struct skv_store *s, struct skv_view **out);
    enum err (*view_read)(struct skv_store *s, struct skv_view *v,
                          enum err (*write)(void *arg, struct slice bytes),
                          void *arg);
    void (*view_close)(struct skv_store *s, struct skv_view *v);
    /* Replaces everything by such a stream, durably and atomically. `read`
     * gives up to `size_max` bytes, 0 at the end. ERR_CORRUPT: nothing
     * changed. */
    enum err (*install)(struct skv_store *s,
                        enum err (*read)(void *arg, void *to, size_t size_max,
                                         size_t *size),
                        void *arg, uint64_t index, uint64_t term);
    /* Keys and bytes stored, about. */
    void (*usage)(struct skv_store *s, uint64_t *keys, uint64_t *bytes);
    void (*close)(struct skv_store *s); /* no checkpoint is made */
};

struct skv_store {
    const struct skv_store_ops *ops;
};

/* LMDB in DIR/state.lmdb, large values in DIR/blobs. `map_size`: the most the
 * LMDB file may grow to; 0: 64 GiB (address space, not disk). */
MUST_USE enum err skv_store_lmdb_open(const char *dir, uint64_t map_size,
                                      struct skv_store **out);

/* What survives a simulated crash. Zero-initialise; free with
 * skv_mem_image_fini(). */
struct skv_mem_image {
    struct buf bytes;
    uint64_t index;
    uint64_t term;
};
void skv_mem_image_fini(struct skv_mem_image *image);
struct skv_store *skv_store_mem_open(struct skv_mem_image *image);

#endif
