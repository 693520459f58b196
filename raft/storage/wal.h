/* The write-ahead log: hard state and entries, in segment files of records with
 * length, term, index and CRC-32C (docs/disk.md). One wal_append() is one
 * group commit: everything in it is covered by one fdatasync.
 *
 * Recovery tells a torn tail, which was never acknowledged and is cut off, from
 * damage before the tail, which is refused with file, offset and what to do.
 * All calls block. ERR_NOSPACE: nothing was stored, the log is as it was, and
 * the same call may be made again. After any other error the wal is broken and
 * refuses everything. */
#ifndef RAFT_STORAGE_WAL_H
#define RAFT_STORAGE_WAL_H

#include "raft/raft.h"
#include "raft/storage/disk.h"

struct wal;

/* What recovery found: free with wal_recovery_free(). */
struct wal_recovery {
    struct raft_hard_state hard_state;
    raft_index start_index; /* entries begin after this: the last compaction */
    raft_term start_term;   /* or reset; 0 and 0 in a new log */
    struct raft_conf start_conf; /* in force at start_index */
    /* Of what is not loaded, up to `evicted_index` (0: there is no such part),
     * the terms and the configurations. */
    raft_index evicted_index;
    struct raft_run *runs;
    uint32_t run_count;
    struct raft_entry *confs;
    uint32_t conf_count;
    struct raft_entry *entries; /* those after it */
    uint32_t entry_count;
    char problem[320]; /* with ERR_CORRUPT: file, offset, and what is there */
};

/* Opens or makes the log in `dir` of the disk. Entries up to `applied`, which
 * are committed, are checked but not loaded. ERR_CORRUPT: see problem. */
MUST_USE enum err wal_open(struct disk *disk, const char *dir,
                           size_t segment_size, raft_index applied,
                           struct wal **out, struct wal_recovery *recovery);
void wal_recovery_free(struct wal_recovery *recovery);
void wal_close(struct wal *w);

/* Writes and syncs. `hard_state` may be NULL. entries[0].index may be at or
 * below what is stored: it replaces from there on. */
MUST_USE enum err wal_append(struct wal *w,
                             const struct raft_hard_state *hard_state,
                             const struct raft_entry *entries, uint32_t count);

/* The state machine has everything up to `index` on its disk: frees segments
 * wholly at or below it. `term` and `conf` are those at `index`. */
MUST_USE enum err wal_compact(struct wal *w, raft_index index, raft_term term,
                              const struct raft_conf *conf);

/* If no entry is needed any more, goes on in a new segment when that is
 * smaller, and frees the last one. Finding no room for that is no error. */
MUST_USE enum err wal_shrink(struct wal *w);

/* A snapshot replaced the state machine: the log now begins after `index`,
 * empty. Atomic: a crash leaves the old log or the new one. Keeps the hard
 * state. */
MUST_USE enum err wal_reset(struct wal *w, raft_index index, raft_term term,
                            const struct raft_conf *conf);

/* Where an entry stands: every so often, and whenever the next one stands in
 * another file, or replaces another. A mark replaces all of its index and of
 * higher ones. `size`: bytes of entries written before it, since the oldest. */
struct wal_mark {
    raft_index index;
    uint64_t sequence, offset;
    uint64_t size;
};
/* New ones since the last call; the caller frees them. */
void wal_take_marks(struct wal *w, struct wal_mark **marks, uint32_t *count);

/* Reads committed entries again (wal_read.c), from `first` on, which is at or
 * after the mark: at most `last` and about `size_max` bytes, one entry at
 * least. `runs` are the terms of all of them. On any thread, while others write
 * and compact. ERR_NOTFOUND: they are compacted. */
struct wal_want {
    struct wal_mark from;
    raft_index first, last;
    size_t size_max;
    const struct raft_run *runs;
    uint32_t run_count;
};
MUST_USE enum err wal_read(struct disk *disk, const char *dir,
                           const struct wal_want *want,
                           struct raft_entry **entries, uint32_t *count);

/* Since wal_open(). */
struct wal_stats {
    uint64_t bytes; /* of records */
    uint64_t syncs;
    uint32_t segments; /* files there are now */
};
void wal_stats(const struct wal *w, struct wal_stats *stats);

#endif
