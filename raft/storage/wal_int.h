/* Private to the log's files: wal_record.c (bytes of a record), wal_write.c
 * (bytes to a file), wal_segment.c (a file's life), wal.c (the calls), and
 * wal_recover.c (reading at start). */
#ifndef RAFT_STORAGE_WAL_INT_H
#define RAFT_STORAGE_WAL_INT_H

#include "raft/storage/wal.h"

enum {
    WAL_HEAD_SIZE = 40,
    WAL_RECORD_HEAD_SIZE = 32,
    WAL_PAYLOAD_SIZE_MAX = 8 << 20,
    WAL_SEGMENT_SIZE_DEFAULT = 64 << 20,
    WAL_FILL_PART = 16,        /* of a segment is filled ahead at a time, */
    WAL_FILL_UNDER = 64 << 10, /* and only ahead of writes under this size */
    WAL_PATH_SIZE = 64,
    WAL_PAGE_SIZE =
        4096, /* the kernel's: what is read before part of it is written */
    WAL_MARK_SIZE = 256 << 10,
    WAL_REFER_SIZE = 2 << 10, /* a longer payload is written from its place */
};

enum wal_record_type {
    WAL_HARD_STATE = 1, /* term; payload: the vote */
    WAL_ENTRY = 2,      /* term, index; payload: the entry's data */
    WAL_START = 3,      /* the log begins after index; payload: conf */
};

/* The head of a segment (docs/disk.md). */
struct wal_head {
    uint64_t sequence;
    bool reset;         /* nothing in older segments counts */
    bool reused;        /* behind the end are an older segment's bytes */
    uint64_t prev_size; /* where the records of sequence - 1 end */
};

struct wal_record {
    enum wal_record_type type;
    uint8_t entry_type;
    uint32_t batch; /* offset in the file where its group commit begins */
    raft_term term;
    raft_index index;
    struct slice payload;
};

/* One file, oldest first in wal.segments. */
struct wal_segment {
    uint64_t sequence;
    raft_index index_max; /* highest entry in it, also if overwritten later */
    uint64_t end;         /* of its last entry */
};

struct wal {
    struct disk *disk;
    char dir[WAL_PATH_SIZE / 2];
    size_t segment_size;
    size_t reserve;   /* of a segment; entries leave it (wal.c, 7) */
    size_t fill_size; /* zeros ahead at a time */
    bool broken;

    struct wal_segment *segments; /* the last one is written to */
    uint32_t segment_count;
    struct wal_segment kept; /* the last one, without this group commit */
    struct disk_file *file;  /* of the last segment */
    uint64_t end;            /* where its next record goes */
    uint64_t filled;         /* zeros are written up to here */
    uint64_t held;           /* the file's size; an older segment's bytes (9) */
    bool unsynced;           /* something was written since the last sync */
    bool spare;              /* there is a file for the next segment (10) */

    /* Repeated at the start of each segment. */
    struct raft_hard_state hard_state;
    raft_index start_index;
    raft_term start_term;
    struct raft_conf start_conf;

    /* Marks: not taken yet; the newest. */
    struct wal_mark *marks;
    uint32_t mark_count;
    struct wal_mark last_mark;
    raft_index last_entry;
    uint64_t entry_size; /* bytes of entries so far */

    struct wal_stats stats;
};

/* --- wal_record.c */
void wal_head_write(uint8_t to[WAL_HEAD_SIZE], const struct wal_head *head);
/* ERR_VERSION: whole, and of a format that is not this one's. */
MUST_USE enum err wal_head_read(const uint8_t from[WAL_HEAD_SIZE],
                                struct wal_head *head);
size_t wal_record_size(size_t payload_size); /* with head and padding */
/* Appends the record; `offset` is where it will be in segment `sequence`. */
void wal_record_write(struct buf *b, uint64_t sequence, uint64_t offset,
                      const struct wal_record *record);

/* Records on their way to a file: heads and short payloads in memory of its
 * own, long payloads where they lie. Zero-initialise it. */
struct wal_out {
    struct buf bytes;
    struct slice *parts; /* data NULL: the next of `bytes` */
    uint32_t count, capacity;
    size_t size; /* of all */
};
uint8_t *wal_out_bytes(struct wal_out *o, size_t size);
/* Borrows the payload until wal_out_clear() or wal_out_free(). */
void wal_out_record(struct wal_out *o, uint64_t sequence, uint64_t offset,
                    const struct wal_record *record);
/* For disk_ops.write, and `more` behind it; nothing is added after this. */
const struct slice *wal_out_parts(struct wal_out *o, struct slice more,
                                  uint32_t *count);
void wal_out_clear(struct wal_out *o);
void wal_out_free(struct wal_out *o);

enum wal_look {
    WAL_LOOK_RECORD,
    WAL_LOOK_ZERO, /* never written */
    WAL_LOOK_BAD,
};
/* The same of a record that begins at `p`, with `left` bytes there. */
enum wal_look wal_record_look_at(const uint8_t *p, uint64_t left,
                                 uint64_t sequence, uint64_t offset,
                                 struct wal_record *record);
bool wal_is_zero(const uint8_t *p, size_t size);
/* What is at `offset` of the segment's bytes. */
enum wal_look wal_record_look(struct slice segment, uint64_t sequence,
                              uint64_t offset, struct wal_record *record);

/* --- wal_write.c */
static inline struct wal_segment *wal_last_segment(struct wal *w)
{
    return &w->segments[w->segment_count - 1];
}
/* Zeros from `filled` on, up to `to`. */
MUST_USE enum err wal_fill(struct wal *w, uint64_t to);
/* Writes what was gathered, without a sync. `keep`: zeros behind it that must
 * be there afterwards. wal_flush() chooses the way by the size. */
typedef enum err wal_write_fn(struct wal *w, struct wal_out *out, size_t keep);
wal_write_fn wal_write_short, wal_write_long;
MUST_USE enum err wal_flush_by(struct wal *w, struct wal_out *out, size_t keep,
                               wal_write_fn *write);
MUST_USE enum err wal_flush(struct wal *w, struct wal_out *out, size_t keep);
MUST_USE enum err wal_sync_file(struct wal *w);
/* Never ERR_NOSPACE: after a failed sync nobody knows what is on the disk. */
enum err wal_final(enum err rc);
/* After ERR_NOSPACE, which it returns if all is well: what a group commit has
 * written since `batch`, where it begins in this segment, goes, and the spare.
 */
MUST_USE enum err wal_take_back(struct wal *w, uint64_t batch);

/* --- wal_segment.c */
void wal_put_hard_state(struct wal *w, struct wal_out *out, uint64_t batch);
void wal_put_start(struct wal *w, struct wal_out *out, uint64_t batch);
/* Goes on in a new segment. What is in the old one is synced. With ERR_NOSPACE
 * it goes on in the old one. */
MUST_USE enum err wal_roll(struct wal *w, bool reset, wal_write_fn *write);
/* Its file goes, or is the spare from now on. */
MUST_USE enum err wal_delete_oldest(struct wal *w);
MUST_USE enum err wal_drop_spare(struct wal *w);

/* --- wal.c */
/* An entry of `size` bytes stands there: a mark, if one is due. */
void wal_note_entry(struct wal *w, uint64_t sequence, uint64_t offset,
                    raft_index index, size_t size);

/* --- wal_recover.c */
#define WAL_SPARE_NAME "spare"
void wal_spare_path(const char *dir, char to[WAL_PATH_SIZE]);
void wal_path(const char *dir, uint64_t sequence, char to[WAL_PATH_SIZE]);
/* Is there a record of a later group commit than the one at `offset`? */
bool wal_has_later_batch(struct slice bytes, uint64_t sequence,
                         uint64_t offset);
/* Has it a whole head, which is of this sequence? */
bool wal_segment_head(struct slice bytes, uint64_t sequence,
                      struct wal_head *head);
/* Was the segment's beginning written whole (wal.c, invariant 3)? */
bool wal_is_begun(struct slice bytes, uint64_t sequence);
/* Is it whole, and of a format that is not this one's? */
bool wal_is_foreign(struct slice bytes);
/* Fills segments, file, end, filled and what is repeated, and `out`. With no
 * usable segment, segment_count is 0. */
MUST_USE enum err wal_recover(struct wal *w, raft_index applied,
                              struct wal_recovery *out);

#endif
