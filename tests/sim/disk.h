/* A disk that survives its node's crashes, but not what was not synced.
 *
 *  1. What a file's sync() returned for is there after any crash.
 *  2. Of the writes since, a crash keeps any subset, each of them whole or torn
 *     at a border of 512 bytes; order between and within files is no promise.
 *  3. Creating, renaming and removing last from the directory's sync_dir() on;
 *     of what came since, a crash keeps a beginning (as a journal does).
 *  4. After a sync that failed, the bytes may look written and never be. */
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
/* The next sync fails with ERR_IO, and what it should have written is lost. */
void sim_disk_fail_sync(struct sim_disk *d);
/* Takes both back. */
void sim_disk_calm(struct sim_disk *d);
uint64_t sim_disk_syncs(const struct sim_disk *d);

#endif
