/* A disk that survives its node's crashes, but not what was not synced.
 *
 *  1. What a file's sync() returned for is there after any crash.
 *  2. Of the writes since, a crash keeps any subset, each of them whole or torn
 *     at a border of 512 bytes; order between and within files is no promise.
 *  3. Creating, renaming and removing last from the directory's sync_dir() on;
 *     of what came since, a crash keeps a beginning (as a journal does).
 *  4. After a sync that failed, the bytes may look written and never be.
 *     Whoever syncs again afterwards, in the same life, has failed the test.
 *  5. A full disk takes no byte that makes a file larger, some disks (which
 *     copy on write) none at all; a write may get half-way. What is removed
 *     gives space back.
 *  6. Bits rot at rest, in what a sync has covered that another one followed.
 */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include "raft/storage/disk.h"
#include "tests/sim/env.h"

struct sim_disk;

/* Empty. A dead env's calls give ERR_IO and change nothing. */
struct sim_disk *sim_disk_new(struct sim_env *env);
void sim_disk_free(struct sim_disk *d);
struct disk *sim_disk_seam(struct sim_disk *d);

/* The power goes: what is not synced is kept, dropped or torn at random. All
 * files must be closed. */
void sim_disk_crash(struct sim_disk *d);

/* The node dies inside its `count`-th call from now that changes anything. */
void sim_disk_die_after(struct sim_disk *d, uint32_t count);
/* Likewise, from the first write on that finds no space. */
void sim_disk_die_after_full(struct sim_disk *d, uint32_t count);
/* The next sync fails with ERR_IO, and what it should have written is lost. */
void sim_disk_fail_sync(struct sim_disk *d);
/* Has a sync failed since the disk last crashed? */
bool sim_disk_sync_failed(const struct sim_disk *d);
/* From now on there is room for `slack` more bytes; until sim_disk_empty(). */
void sim_disk_fill(struct sim_disk *d, uint64_t slack);
/* This one copies on write: any write may find no space. */
void sim_disk_copy(struct sim_disk *d);
void sim_disk_empty(struct sim_disk *d);
bool sim_disk_is_full(const struct sim_disk *d);
/* Flips a bit in a file of the directory "wal" of a node that is down, and says
 * where. False: nothing there is old enough. */
struct sim_rot {
    char name[128];
    uint64_t at;
    uint8_t bit;
};
bool sim_disk_rot(struct sim_disk *d, struct sim_rot *rot);
/* The same bit again. */
void sim_disk_unrot(struct sim_disk *d, const struct sim_rot *rot);
/* Takes back die_after and fail_sync. */
void sim_disk_calm(struct sim_disk *d);
uint64_t sim_disk_syncs(const struct sim_disk *d);

#endif
