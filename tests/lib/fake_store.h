/* Minitransactions in the memory of one process, behind fs/store.h: all items
 * of shardkv/request.h, over any shards. For tests of fs/ and mount/.
 *
 * Over several shards it goes in two steps as two-phase commit does, and locks
 * in between just the keys that the items name: a prefix locks nothing. */
#ifndef TESTS_LIB_FAKE_STORE_H
#define TESTS_LIB_FAKE_STORE_H

#include "fs/store.h"

struct fake_store;
struct fake_store *fake_store_new(uint32_t shard_count);
void fake_store_free(struct fake_store *f);
struct fs_store *fake_store_seam(struct fake_store *f);

/* Called once, before the next transaction of `writes` kind is executed, or,
 * for `between`, between the votes and the commit of the next one over several
 * shards. It may run transactions of its own; one that meets a locked key gets
 * ERR_LOCKED. */
typedef void fake_hook(void *arg);
void fake_store_hook_write(struct fake_store *f, fake_hook *hook, void *arg);
void fake_store_hook_between(struct fake_store *f, fake_hook *hook, void *arg);

/* While stuck, exec() waits until it is cancelled. */
void fake_store_stick(struct fake_store *f, bool stuck);

/* What was executed since the last clear: how many transactions, how many of
 * them write, and the write items to file contents ("PUT 6 APPEND 5 "). */
struct fake_count {
    uint32_t execs;
    uint32_t writes;
    uint32_t several; /* over more than one shard */
    uint32_t waiting; /* now, because the store is stuck */
    char content[512];
};
void fake_store_clear(struct fake_store *f);
struct fake_count fake_store_count(struct fake_store *f);

/* How many keys there are of this object; of all inodes for 0. */
size_t fake_store_keys(struct fake_store *f, uint64_t object);

#endif
