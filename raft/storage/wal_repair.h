/* Logs that are damaged before their ends, on several replicas of a group at
 * once, made whole from each other (docs/disk.md). All of them must be stopped.
 *
 * It never drops or invents an entry that may be committed: where one is intact
 * nowhere it changes nothing and says which. */
#ifndef RAFT_STORAGE_WAL_REPAIR_H
#define RAFT_STORAGE_WAL_REPAIR_H

#include "raft/storage/wal.h"

enum wal_repair_state {
    WAL_REPAIR_WHOLE,    /* was not damaged, and is left alone */
    WAL_REPAIR_REPAIRED, /* its log is whole again */
    WAL_REPAIR_LEFT, /* cannot be repaired: not changed; see what it lacks */
};

struct wal_repair_replica {
    raft_id id;
    struct disk *disk; /* its own; NULL: not to be had */
    /* Its state machine holds all entries up to this one, so a log that ends
     * before it has lost its end, though it looks whole. 0: not known. */
    raft_index durable;
    /* Out: */
    enum wal_repair_state state;
    bool damaged;
    uint32_t holes;
    char damage[128];   /* file and offset of the first; empty: not damaged */
    raft_index missing; /* LEFT: the first entry that is intact nowhere, ... */
    uint32_t
        missing_count; /* ... and how many; 0: its beginning is not known */
};

/* Every replica of the group, in any order; at most RAFT_PEERS_MAX.
 * ERR_OK: a majority can start, all that are REPAIRED were written.
 * ERR_CORRUPT, ERR_VERSION: nothing was written; `problem` says why. Other
 * errors: of a disk; each log is as it was, or whole. */
MUST_USE enum err wal_repair(struct wal_repair_replica *replicas,
                             uint32_t count, const char *dir,
                             char problem[256]);

#endif
