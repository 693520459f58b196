/* The seam to what holds a group's state: ordered keys with mutable values of
 * any size up to SKV_VALUE_SIZE_MAX. Two implementations: store_lmdb.c (LMDB
 * for keys and small values, one sparse file for a large one) and store_mem.c
 * (for the simulator, with a durable image that a simulated crash goes back
 * to).
 *
 * One thread, the "apply" worker, makes all calls but the view's and
 * checkpoint_write(). Writes are
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

/* LMDB's limit; a key has at least one byte. */
#define SKV_STORE_KEY_SIZE_MAX 511u

struct skv_store;
struct skv_view;

/* What a value is without reading its bytes.
 *
 * Whether it is inline is part of the state, the same on every replica after
 * the same writes: a put makes it inline exactly when it has at most
 * SKV_INLINE_SIZE_MAX bytes; put_range and truncate make it large when its
 * length passes that, and large it stays, however short it becomes, until a put
 * of so few bytes or a truncate to 0. */
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

/* What the store refuses depends on its state alone, so on every replica alike,
 * and changes nothing: ERR_NOTFOUND where said; ERR_INVALID, a key without
 * bytes; ERR_TOOBIG, a key over SKV_STORE_KEY_SIZE_MAX or a value over
 * SKV_VALUE_SIZE_MAX. Any other error is this replica's own trouble and logged:
 * ERR_NOSPACE (the disk is full, or the LMDB file as large as it may be),
 * ERR_IO, ERR_CORRUPT. After one in a write, the store refuses writes and
 * checkpoints with it until it is rewound (ERR_NOSPACE) or closed and opened:
 * both go back to the last checkpoint. */
struct skv_store_ops {
    /* ERR_NOTFOUND. */
    enum err (*lookup)(struct skv_store *s, struct slice key,
                       struct skv_value *out);
    /* Up to `size` bytes from `offset`; *got may be less at the end. */
    enum err (*read)(struct skv_store *s, struct slice key, uint64_t offset,
                     void *to, size_t size, size_t *got);
    enum err (*put)(struct skv_store *s, struct slice key, struct slice value);
    /* Makes the key if missing; zeros fill a hole before `offset`. No bytes of
     * data extend nothing. */
    enum err (*put_range)(struct skv_store *s, struct slice key,
                          uint64_t offset, struct slice data);
    enum err (*truncate)(struct skv_store *s, struct slice key,
                         uint64_t length); /* makes the key if missing */
    /* ERR_NOTFOUND; past the end nothing happens. */
    enum err (*punch)(struct skv_store *s, struct slice key, uint64_t offset,
                      uint64_t size);
    enum err (*remove)(struct skv_store *s, struct slice key); /* missing: ok */
    /* Every key that begins with `prefix` and is >= `from` (from may be
     * empty), in order. The callback must not write. */
    enum err (*scan)(struct skv_store *s, struct slice prefix,
                     struct slice from, skv_scan_fn *each, void *arg);
    /* Durable: all writes so far, with `index` and `term` in the same commit.
     * It waits for one that was begun. */
    enum err (*checkpoint)(struct skv_store *s, uint64_t index, uint64_t term);
    /* The same in three steps, during which the store can be used: begin()
     * takes microseconds, and so does end(); write() takes its time, on any
     * thread. After a crash all writes before begin() are there, or none since
     * the checkpoint before; end() says that they are. If it fails, as after a
     * failed write; and also then end() is called. */
    enum err (*checkpoint_begin)(struct skv_store *s, uint64_t index,
                                 uint64_t term);
    enum err (*checkpoint_write)(struct skv_store *s);
    enum err (*checkpoint_end)(struct skv_store *s);
    /* After ERR_NOSPACE: all writes since the last checkpoint (one that was
     * begun may become it) are gone, and the store takes new ones; bytes of
     * large values may be newer, as after a crash. A failed sync stays final.
     */
    enum err (*rewind)(struct skv_store *s);
    /* Bytes of memory that are free again after the next checkpoint, and that
     * it takes while it is written, about; not those of one that was begun. */
    uint64_t (*unsaved)(struct skv_store *s);
    /* The last checkpoint's. */
    void (*durable)(struct skv_store *s, uint64_t *index, uint64_t *term);

    /* A view of everything as of the last checkpoint: call checkpoint() first
     * to see what is now. view_read() may run on another thread while writes
     * go on, and view_close() too, before close(); it calls `write` with
     * consecutive bytes of a stream that install() reads. Bytes of large values
     * may be newer than the view. While it is open, no space is given back. */
    enum err (*view_open)(struct skv_store *s, struct skv_view **out);
    enum err (*view_read)(struct skv_store *s, struct skv_view *v,
                          enum err (*write)(void *arg, struct slice bytes),
                          void *arg);
    void (*view_close)(struct skv_store *s, struct skv_view *v);
    /* An exact view, right behind checkpoint(): bytes of large values too are
     * those of the last checkpoint, whatever is written meanwhile, which costs
     * each first write to a part of one a copy. It is read by the three
     * functions below, from one thread at a time, and closed as the others.
     * They give ERR_EXPIRED when so much was overwritten that the view had to
     * be given up. */
    enum err (*view_open_exact)(struct skv_store *s, struct skv_view **out);
    /* As scan(). */
    enum err (*view_scan)(struct skv_store *s, struct skv_view *v,
                          struct slice prefix, struct slice from,
                          skv_scan_fn *each, void *arg);
    /* As read(). */
    enum err (*view_value)(struct skv_store *s, struct skv_view *v,
                           struct slice key, uint64_t offset, void *to,
                           size_t size, size_t *got);
    /* From `offset` to *data_at, which may be the value's length, there are
     * only zeros; they need not be read. */
    enum err (*view_skip)(struct skv_store *s, struct skv_view *v,
                          struct slice key, uint64_t offset, uint64_t *data_at);
    /* Replaces everything by such a stream, durably and atomically. `read`
     * gives up to `size_max` bytes, 0 at the end. ERR_CORRUPT (and whatever
     * `read` fails with): nothing changed. What was not checkpointed is gone.
     */
    enum err (*install)(struct skv_store *s,
                        enum err (*read)(void *arg, void *to, size_t size_max,
                                         size_t *size),
                        void *arg, uint64_t index, uint64_t term);
    /* Keys and bytes stored, about. */
    void (*usage)(struct skv_store *s, uint64_t *keys, uint64_t *bytes);
    /* No checkpoint is made. On the thread of the writes, or when that one has
     * ended. */
    void (*close)(struct skv_store *s);
};

struct skv_store {
    const struct skv_store_ops *ops;
};

/* LMDB in DIR/state.N/keys.lmdb, large values in DIR/state.N/blobs, where N
 * grows by one with each install (docs/disk-store.md). DIR is made if missing;
 * ERR_BUSY when another process has it open. `map_size`: the most the LMDB file
 * may grow to; 0: 64 GiB (address space, not disk). */
MUST_USE enum err skv_store_lmdb_open(const char *dir, uint64_t map_size,
                                      struct skv_store **out);

/* What survives a simulated crash. Zero-initialise; free with
 * skv_mem_image_fini(). */
struct skv_mem_image {
    struct skv_mem_table *table; /* the store's; NULL: no keys */
    uint64_t index;
    uint64_t term;
    /* Faults: so many more writes are taken, then ERR_NOSPACE. */
    bool is_full;
    uint32_t writes_left;
    /* Hears what the store puts, or removes: `data` is NULL. May be NULL. */
    void (*wrote)(void *arg, struct slice key, const struct slice *data);
    void *wrote_arg;
};
void skv_mem_image_fini(struct skv_mem_image *image);
void skv_mem_image_copy(struct skv_mem_image *to,
                        const struct skv_mem_image *from);
/* As a stream (stream.c), in place of what `to` had. */
void skv_mem_image_save(const struct skv_mem_image *image, struct buf *to);
struct skv_store *skv_store_mem_open(struct skv_mem_image *image);

#endif
