/* A disk in memory that fails as disks do: an operation can be made to fail,
 * and a crash loses or tears, sector by sector, what was not synced; a name
 * whose directory was not synced may be gone, or back. */
#ifndef TESTS_LIB_FAULTDISK_H
#define TESTS_LIB_FAULTDISK_H

#include "raft/storage/disk.h"

struct faultdisk;

struct faultdisk *faultdisk_new(void);
void faultdisk_free(struct faultdisk *d);
struct disk *faultdisk_disk(struct faultdisk *d);

/* The nth operation that changes something from now on, and all after it, fail
 * with ERR_IO; 0: none. A write that fails may have been written. */
void faultdisk_fail_at(struct faultdisk *d, uint64_t nth);
uint64_t faultdisk_operations(const struct faultdisk *d); /* since fail_at */

/* From now on only so many more bytes find room; `copies`: bytes written over
 * others need room too. */
void faultdisk_fill(struct faultdisk *d, uint64_t slack, bool copies);
void faultdisk_empty(struct faultdisk *d);

/* As after a power cut, chosen by `seed`; works again afterwards. */
void faultdisk_crash(struct faultdisk *d, uint64_t seed);

/* The bytes of a file, to damage them: borrowed. NULL if there is none. */
struct buf *faultdisk_bytes(struct faultdisk *d, const char *path);
/* The path of the nth file in order of name; NULL behind the last. */
const char *faultdisk_path(struct faultdisk *d, uint32_t nth);
void faultdisk_copy(struct faultdisk *to, const struct faultdisk *from);

#endif
