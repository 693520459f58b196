/* Private to the repair of logs: wal_holes.c (what is intact in one log) and
 * wal_repair.c (what the group has together). */
#ifndef RAFT_STORAGE_WAL_REPAIR_INT_H
#define RAFT_STORAGE_WAL_REPAIR_INT_H

#include "raft/storage/wal_int.h"
#include "raft/storage/wal_repair.h"

/* Where an intact entry lies. (index, term) is the entry's name in the whole
 * group: two that have the same are the same. */
struct wal_place {
    raft_index index;
    raft_term term;
    uint32_t replica;
    uint64_t sequence, offset;
};

struct wal_places {
    struct wal_place *items;
    uint32_t count, capacity;
};

/* What one replica's log says in spite of its holes. */
struct wal_holes {
    bool readable; /* there is a log */
    uint32_t count;
    uint64_t size;   /* of all holes, in bytes */
    char first[128]; /* where the first is */

    /* The log as it stood at the end: of `first_index` + i the term, 0 where a
     * hole may have replaced or held it. */
    raft_index first_index;
    raft_term *terms;
    uint32_t term_count, term_capacity;
    bool end_lost; /* a hole behind the last entry that is known */
    bool cut_off;  /* the same, and nothing shows where: see durable */

    bool has_start; /* the last start marker that is known */
    raft_index start_index;
    raft_term start_term;
    struct raft_conf start_conf;

    struct raft_hard_state hard_state;
    bool hard_state_lost;   /* a hole may have held a newer one */
    raft_term term_max;     /* of all that is intact in it */
    uint64_t last_sequence; /* of its files */
};

/* Reads; changes nothing on the disk. ERR_VERSION: it has another format. */
MUST_USE enum err wal_holes_read(struct disk *disk, const char *dir,
                                 uint32_t replica, struct wal_holes *h,
                                 struct wal_places *places);
void wal_holes_free(struct wal_holes *h);
raft_term wal_holes_term(const struct wal_holes *h, raft_index index);
/* The whole segment, into `b`. */
MUST_USE enum err wal_holes_load(struct disk *disk, const char *dir,
                                 uint64_t sequence, struct buf *b);

#endif
