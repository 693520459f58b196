/* The seam to files: the few calls that the log and the snapshots make.
 * disk_real.c implements it on Linux; tests/sim implements it with a disk that
 * loses what was not synced, tears writes, and returns errors.
 *
 * All calls block, and run on a worker. Paths are relative to the disk's root,
 * with at most one '/'. ERR_NOSPACE from open, write, truncate, rename or mkdir
 * has changed nothing that was there, and may be tried again (some of a write's
 * bytes may be in the file). A failed sync is final, and never ERR_NOSPACE:
 * the caller stops for good and never tries it again ("Can applications recover
 * from fsync failures?", ATC'20). */
#ifndef RAFT_STORAGE_DISK_H
#define RAFT_STORAGE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

struct disk;
struct disk_file;

struct disk_ops {
    /* Opens for reading and writing; with `create`, makes it if missing. */
    enum err (*open)(struct disk *d, const char *path, bool create,
                     struct disk_file **out);
    void (*close)(struct disk_file *f);
    enum err (*size)(struct disk_file *f, uint64_t *out);
    /* Reads exactly `size` bytes; ERR_CORRUPT when the file ends before. */
    enum err (*read)(struct disk_file *f, uint64_t offset, void *to,
                     size_t size);
    enum err (*write)(struct disk_file *f, uint64_t offset,
                      const struct slice *parts, uint32_t part_count);
    enum err (*truncate)(struct disk_file *f, uint64_t size);
    enum err (*sync)(struct disk_file *f); /* fdatasync */
    enum err (*rename)(struct disk *d, const char *from, const char *to);
    enum err (*remove)(struct disk *d, const char *path);
    enum err (*mkdir)(struct disk *d, const char *path);    /* exists: fine */
    enum err (*sync_dir)(struct disk *d, const char *path); /* "" is the root */
    /* Bytes that may still be written. */
    enum err (*space)(struct disk *d, uint64_t *free);
    /* Calls `each` for every file of a directory, in no order. */
    enum err (*list)(struct disk *d, const char *path,
                     void (*each)(void *arg, const char *name), void *arg);
};

struct disk {
    const struct disk_ops *ops;
    const char *root; /* for people; NULL: not a real one */
};

/* A disk on the directory `root`, made if missing; takes a lock file so that
 * two processes never share it (ERR_BUSY). Free with disk_real_close(). */
MUST_USE enum err disk_real_open(const char *root, struct disk **out);
void disk_real_close(struct disk *d);

#endif
