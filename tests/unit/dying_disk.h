/* The system calls that write, in the place of libc's, for a program whose
 * children die of them: at the n-th call, in the middle of it, on whatever
 * thread. Nothing is ever synced for real: a process that was killed leaves
 * what it wrote. What a loss of power may undo of large values (blob.c) is
 * noted in memory that the parent shares, and spoiled by it: all that was
 * written since the file, or made since its directory, was last synced, also by
 * a process before, which was killed while the power stayed.
 * test_store_power.c does the same for keys.lmdb. */
#ifndef TESTS_UNIT_DYING_DISK_H
#define TESTS_UNIT_DYING_DISK_H

#include <stdint.h>

#include "base/rng.h"

/* Once, in the parent. */
void dying_disk_init(void);

/* In a child, and before its first thread. It dies at its `calls_left`th call
 * (0: never); its `writes_left`th to a large value finds no space (0: none). */
void dying_disk_arm(uint64_t calls_left, uint64_t writes_left);

/* In the parent, when the child is dead: the power was lost, too. */
void dying_disk_spoil(struct rng *r, const char *dir);

#endif
