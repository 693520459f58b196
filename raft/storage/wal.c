/* Writing the log. Invariants:
 *
 *  1. Records are written in order, and a record lies in one segment.
 *  2. When a record is written, everything before its `batch` offset in its
 *     segment, and every older segment, was synced. Recovery tells a torn tail
 *     from damage by this.
 *  3. A segment begins with a head, the hard state and the start marker,
 *     synced together with its directory entry before anything follows. So it
 *     needs no older segment for them.
 *  4. Segments are deleted oldest first, each deletion durable before the next;
 *     what is left is always a run of consecutive numbers.
 *  5. After a failed sync, or a write that failed for another reason than want
 *     of space, nothing is written any more.
 *  6. The space for a short record is taken, as zeros, before it is written, so
 *     a full disk is met before anything has changed. What was written of a
 *     group commit that finds no space in spite of that is cut off again.
 *  7. Entries leave the last `reserve` bytes of the zeros and of the segment
 *     to hard states and start markers: a log that takes no entries any more
 *     can still vote, and be cut at its beginning, which gives space back.
 *  8. A segment that could not be begun is gone, durably, before the one
 *     before it is written to again: its head says where that one ends. */
#include "raft/storage/wal_int.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"

enum {
    WRITE_SIZE = 8 << 20,
    SEGMENT_SIZE_MIN = 4096,
    RESERVE_SIZE = 16 << 10,
    START_SIZE_MAX = 512, /* of a start marker: 48 ids */
};
#define SEGMENT_SIZE_MAX ((size_t)1 << 31)

static enum err broke(struct wal *w, enum err rc)
{
    if (rc != ERR_OK && rc != ERR_NOSPACE) {
        w->broken = true;
    }
    return rc;
}

static struct wal_segment *last_segment(struct wal *w)
{
    return &w->segments[w->segment_count - 1];
}

static const uint8_t zeros[256 << 10];

/* Zeros ahead of the write, so that an append changes no file size and its
 * fdatasync writes no metadata; and so that a full disk shows here (6). They
 * need no sync of their own. */
static enum err fill_ahead(struct wal *w, uint64_t end)
{
    if (end <= w->filled) {
        return ERR_OK;
    }
    uint64_t to = end + WAL_FILL_SIZE;
    to = to < w->segment_size ? to : w->segment_size;
    to = to > end ? to : end;
    while (w->filled < to) {
        /* First what must be: a disk with too little for more takes that. */
        uint64_t left = (w->filled < end ? end : to) - w->filled;
        struct slice part =
            slice_of(zeros, left < sizeof zeros ? (size_t)left : sizeof zeros);
        enum err rc = w->disk->ops->write(w->file, w->filled, &part, 1);
        if (rc != ERR_OK) {
            return rc == ERR_NOSPACE && w->filled >= end ? ERR_OK : rc;
        }
        w->filled += part.size;
    }
    return ERR_OK;
}

/* A long write has only `keep` zeros behind it: there the metadata is little,
 * and more zeros would double the bytes. */
static enum err write_long(struct wal *w, struct wal_out *out, size_t keep)
{
    uint64_t filled = w->end + out->size + keep;
    bool more = filled > w->filled;
    uint32_t count = 0;
    const struct slice *parts =
        wal_out_parts(out, slice_of(zeros, more ? keep : 0), &count);
    w->unsynced = true;
    enum err rc = w->disk->ops->write(w->file, w->end, parts, count);
    if (rc == ERR_OK && more) {
        w->filled = filled;
    }
    return rc;
}

static enum err write_short(struct wal *w, struct wal_out *out, size_t keep)
{
    enum err rc = fill_ahead(w, w->end + out->size + keep);
    if (rc != ERR_OK) {
        return rc;
    }
    w->unsynced = true;
    uint32_t count = 0;
    const struct slice *parts = wal_out_parts(out, slice_of(NULL, 0), &count);
    return w->disk->ops->write(w->file, w->end, parts, count);
}

typedef enum err write_fn(struct wal *w, struct wal_out *out, size_t keep);

static enum err flush_by(struct wal *w, struct wal_out *out, size_t keep,
                         write_fn *write)
{
    if (out->size == 0) {
        return ERR_OK;
    }
    enum err rc = write(w, out, keep);
    if (rc == ERR_OK) {
        w->end += out->size;
        w->stats.bytes += out->size;
        wal_out_clear(out);
    }
    return rc;
}

/* Writes what was gathered, without a sync. `keep`: zeros behind it that must
 * be there afterwards. */
static enum err flush(struct wal *w, struct wal_out *out, size_t keep)
{
    return flush_by(w, out, keep,
                    out->size < WAL_FILL_UNDER ? write_short : write_long);
}

/* Never ERR_NOSPACE: after a failed sync nobody knows what is on the disk. */
static enum err final(enum err rc)
{
    return rc == ERR_OK ? ERR_OK : ERR_IO;
}

static enum err sync_file(struct wal *w)
{
    w->stats.syncs++;
    enum err rc = final(w->disk->ops->sync(w->file));
    if (rc == ERR_OK) {
        w->unsynced = false;
    }
    return rc;
}

static enum err sync_names(struct wal *w)
{
    return final(w->disk->ops->sync_dir(w->disk, w->dir));
}

/* After ERR_NOSPACE: what a group commit has written since `batch`, where it
 * begins in this segment, goes. Left there, the next one could join up with
 * it. */
static enum err take_back(struct wal *w, uint64_t batch)
{
    if (!w->unsynced) {
        return ERR_NOSPACE;
    }
    w->end = w->filled = batch;
    enum err rc = final(w->disk->ops->truncate(w->file, batch));
    if (rc == ERR_OK) {
        rc = sync_file(w);
    }
    if (rc == ERR_OK) {
        rc = fill_ahead(w, batch + w->reserve); /* or nearly: (7) */
    }
    return rc == ERR_OK ? ERR_NOSPACE : rc;
}

static void put_hard_state(struct wal *w, struct wal_out *out, uint64_t batch)
{
    uint8_t vote[8];
    set_u64(vote, w->hard_state.vote);
    struct wal_record record = {
        .type = WAL_HARD_STATE,
        .batch = (uint32_t)batch,
        .term = w->hard_state.term,
        .payload = slice_of(vote, sizeof vote),
    };
    wal_out_record(out, last_segment(w)->sequence, w->end + out->size, &record);
}

static void put_start(struct wal *w, struct wal_out *out, uint64_t batch)
{
    struct buf conf = {0};
    raft_conf_encode(&conf, &w->start_conf);
    CHECK(conf.size < WAL_REFER_SIZE); /* so `out` copies it */
    struct wal_record record = {
        .type = WAL_START,
        .batch = (uint32_t)batch,
        .term = w->start_term,
        .index = w->start_index,
        .payload = buf_slice(&conf),
    };
    wal_out_record(out, last_segment(w)->sequence, w->end + out->size, &record);
    buf_free(&conf);
}

void wal_note_entry(struct wal *w, uint64_t sequence, uint64_t offset,
                    raft_index index, size_t size)
{
    uint64_t step = w->segment_size / 16 < WAL_MARK_SIZE ? w->segment_size / 16
                                                         : WAL_MARK_SIZE;
    if (index <= w->last_entry || sequence != w->last_mark.sequence ||
        w->entry_size - w->last_mark.size >= step) {
        w->last_mark = (struct wal_mark){.index = index,
                                         .sequence = sequence,
                                         .offset = offset,
                                         .size = w->entry_size};
        w->marks = mem_resize(w->marks, (w->mark_count + 1) * sizeof *w->marks);
        w->marks[w->mark_count++] = w->last_mark;
    }
    w->last_entry = index;
    w->entry_size += size;
}

void wal_take_marks(struct wal *w, struct wal_mark **marks, uint32_t *count)
{
    *marks = w->marks;
    *count = w->mark_count;
    w->marks = NULL;
    w->mark_count = 0;
}

/* What was noted of entries that were not stored is void. */
static void void_marks(struct wal *w)
{
    w->mark_count = 0;
    w->last_mark.sequence = 0; /* the next entry gets one */
}

static void put_entry(struct wal *w, struct wal_out *out, uint64_t batch,
                      const struct raft_entry *entry)
{
    struct wal_record record = {
        .type = WAL_ENTRY,
        .entry_type = (uint8_t)entry->type,
        .batch = (uint32_t)batch,
        .term = entry->term,
        .index = entry->index,
        .payload = bytes_slice(entry->data),
    };
    struct wal_segment *s = last_segment(w);
    uint64_t at = w->end + out->size;
    wal_note_entry(w, s->sequence, at, entry->index,
                   wal_record_size(record.payload.size));
    wal_out_record(out, s->sequence, at, &record);
    if (entry->index > s->index_max) {
        s->index_max = entry->index;
    }
}

static void push_segment(struct wal *w, uint64_t sequence)
{
    w->segments =
        mem_resize(w->segments, (w->segment_count + 1) * sizeof *w->segments);
    w->segments[w->segment_count++] =
        (struct wal_segment){.sequence = sequence};
}

/* Head, hard state and start marker, synced with the directory. */
static enum err write_beginning(struct wal *w, const struct wal_head *head,
                                write_fn *write)
{
    struct wal_out out = {0};
    wal_head_write(wal_out_bytes(&out, WAL_HEAD_SIZE), head);
    put_hard_state(w, &out, WAL_HEAD_SIZE);
    put_start(w, &out, WAL_HEAD_SIZE);
    enum err rc = flush_by(w, &out, w->reserve, write);
    wal_out_free(&out);
    if (rc == ERR_OK) {
        rc = sync_file(w);
    }
    return rc == ERR_OK ? sync_names(w) : rc;
}

/* The file of the new segment, empty, as the last one. */
static enum err open_segment(struct wal *w, uint64_t sequence)
{
    char path[WAL_PATH_SIZE];
    struct disk_file *file = NULL;
    wal_path(w->dir, sequence, path);
    enum err rc = w->disk->ops->open(w->disk, path, true, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = w->disk->ops->truncate(file, 0);
    if (rc != ERR_OK) {
        w->disk->ops->close(file);
        return rc == ERR_NOSPACE ? ERR_IO : rc;
    }
    push_segment(w, sequence);
    w->file = file;
    w->end = w->filled = 0;
    return ERR_OK;
}

/* Takes the segment back that found no space (8). */
static enum err drop_segment(struct wal *w)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, last_segment(w)->sequence, path);
    w->disk->ops->close(w->file);
    w->file = NULL;
    w->unsynced = false;
    w->segment_count--;
    enum err rc = final(w->disk->ops->remove(w->disk, path));
    if (rc == ERR_OK) {
        rc = sync_names(w);
    }
    return rc == ERR_OK ? ERR_NOSPACE : rc;
}

/* Goes on in a new segment. What is in the old one is synced. With
 * ERR_NOSPACE it goes on in the old one. */
static enum err roll(struct wal *w, bool reset, write_fn *write)
{
    struct wal_head head = {.sequence = 1, .reset = reset};
    struct disk_file *file = w->file;
    uint64_t end = w->end, filled = w->filled;
    if (w->segment_count > 0) {
        head.sequence = last_segment(w)->sequence + 1;
        head.prev_size = end;
    }
    enum err rc = open_segment(w, head.sequence);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = write_beginning(w, &head, write);
    if (rc == ERR_NOSPACE) {
        rc = drop_segment(w);
        w->file = file;
        w->end = end;
        w->filled = filled;
    } else if (file != NULL) {
        w->disk->ops->close(file);
    }
    return rc;
}

/* Makes room for a record of `size`, in a new segment if it must be. `*batch`
 * is then the new segment's. `keep`: what the record must leave (7). */
static enum err make_room(struct wal *w, struct wal_out *out, size_t size,
                          size_t keep, uint64_t *batch)
{
    uint64_t at = w->end + out->size;
    if (at + size + keep <= w->segment_size || at <= w->segment_size / 2) {
        /* A record that fits in no segment goes into a young one, which grows
         * over its size. */
        return out->size + size > WRITE_SIZE ? flush(w, out, keep) : ERR_OK;
    }
    enum err rc = flush(w, out, keep);
    if (rc == ERR_OK) {
        rc = sync_file(w);
    }
    if (rc == ERR_OK) {
        *batch = w->end; /* what is before it stays, whatever comes */
        rc = roll(w, false, write_short);
    }
    *batch = rc == ERR_OK ? w->end : *batch;
    return rc;
}

static enum err append_records(struct wal *w, struct wal_out *out,
                               const struct raft_hard_state *hard_state,
                               const struct raft_entry *entries, uint32_t count,
                               uint64_t *batch)
{
    size_t keep = count > 0 ? w->reserve : 0;
    enum err rc = ERR_OK;
    if (hard_state != NULL) {
        w->hard_state = *hard_state;
        rc = make_room(w, out, wal_record_size(8), keep, batch);
        if (rc == ERR_OK) {
            put_hard_state(w, out, *batch);
        }
    }
    for (uint32_t i = 0; i < count && rc == ERR_OK; i++) {
        size_t size = wal_record_size(bytes_slice(entries[i].data).size);
        rc = make_room(w, out, size, keep, batch);
        if (rc == ERR_OK) {
            put_entry(w, out, *batch, &entries[i]);
        }
    }
    if (rc == ERR_OK) {
        rc = flush(w, out, keep);
    }
    return rc == ERR_OK ? sync_file(w) : rc;
}

enum err wal_append(struct wal *w, const struct raft_hard_state *hard_state,
                    const struct raft_entry *entries, uint32_t count)
{
    if (w->broken) {
        return ERR_IO;
    }
    if (hard_state == NULL && count == 0) {
        return ERR_OK;
    }
    struct wal_out out = {0};
    uint64_t batch = w->end;
    enum err rc = append_records(w, &out, hard_state, entries, count, &batch);
    wal_out_free(&out);
    if (rc == ERR_NOSPACE) {
        void_marks(w);
        rc = take_back(w, batch);
    }
    return broke(w, rc);
}

static enum err delete_oldest(struct wal *w)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, w->segments[0].sequence, path);
    enum err rc = w->disk->ops->remove(w->disk, path);
    if (rc != ERR_OK) {
        return rc;
    }
    w->segment_count--;
    memmove(w->segments, w->segments + 1,
            w->segment_count * sizeof *w->segments);
    return sync_names(w);
}

static enum err delete_unneeded(struct wal *w)
{
    enum err rc = ERR_OK;
    while (rc == ERR_OK && w->segment_count > 1 &&
           w->segments[0].index_max <= w->start_index) {
        rc = delete_oldest(w);
    }
    return rc;
}

static void set_start(struct wal *w, raft_index index, raft_term term,
                      const struct raft_conf *conf)
{
    w->start_index = index;
    w->start_term = term;
    w->start_conf = *conf;
}

static enum err write_start(struct wal *w)
{
    struct wal_out out = {0};
    uint64_t batch = w->end;
    /* Also right if this begins a new segment, which has the marker already. */
    enum err rc = make_room(w, &out, START_SIZE_MAX, 0, &batch);
    if (rc == ERR_OK) {
        put_start(w, &out, batch);
        rc = flush(w, &out, 0);
    }
    wal_out_free(&out);
    if (rc == ERR_NOSPACE) {
        rc = take_back(w, batch);
    }
    return rc == ERR_OK ? sync_file(w) : rc;
}

enum err wal_compact(struct wal *w, raft_index index, raft_term term,
                     const struct raft_conf *conf)
{
    if (w->broken) {
        return ERR_IO;
    }
    if (index < w->start_index) {
        return ERR_OK;
    }
    set_start(w, index, term, conf);
    enum err rc = write_start(w);
    if (rc == ERR_OK) {
        rc = delete_unneeded(w);
    }
    return broke(w, rc);
}

/* Would a new segment be so much smaller that it is worth beginning? The next
 * entry fills it ahead. */
static bool shrinks(struct wal *w)
{
    uint64_t least = 3 * (uint64_t)WAL_FILL_SIZE;
    least = least < w->segment_size / 2 ? least : w->segment_size / 2;
    return last_segment(w)->index_max <= w->start_index && w->filled >= least;
}

enum err wal_shrink(struct wal *w)
{
    if (w->broken) {
        return ERR_IO;
    }
    if (!shrinks(w)) {
        return ERR_OK;
    }
    enum err rc = roll(w, false, write_long); /* no more than it needs */
    if (rc == ERR_OK) {
        rc = delete_unneeded(w); /* the start marker is in the new one */
    }
    /* Want of space is no failure: the log goes on where it was. */
    return rc == ERR_NOSPACE ? ERR_OK : broke(w, rc);
}

enum err wal_reset(struct wal *w, raft_index index, raft_term term,
                   const struct raft_conf *conf)
{
    if (w->broken) {
        return ERR_IO;
    }
    raft_index old_index = w->start_index;
    raft_term old_term = w->start_term;
    struct raft_conf old_conf = w->start_conf;
    set_start(w, index, term, conf);
    enum err rc = roll(w, true, write_short);
    if (rc == ERR_NOSPACE) {
        set_start(w, old_index, old_term, &old_conf);
    }
    while (rc == ERR_OK && w->segment_count > 1) {
        rc = delete_oldest(w);
    }
    return broke(w, rc);
}

void wal_stats(const struct wal *w, struct wal_stats *stats)
{
    *stats = w->stats;
    stats->segments = w->segment_count;
}

enum err wal_open(struct disk *disk, const char *dir, size_t segment_size,
                  raft_index applied, struct wal **out,
                  struct wal_recovery *recovery)
{
    *recovery = (struct wal_recovery){0};
    if (segment_size == 0) {
        segment_size = WAL_SEGMENT_SIZE_DEFAULT;
    }
    CHECK(segment_size >= SEGMENT_SIZE_MIN && segment_size <= SEGMENT_SIZE_MAX);
    struct wal *w = mem_alloc(sizeof *w);
    w->disk = disk;
    w->segment_size = segment_size;
    w->reserve =
        segment_size / 8 < RESERVE_SIZE ? segment_size / 8 : RESERVE_SIZE;
    CHECK(strlen(dir) < sizeof w->dir);
    snprintf(w->dir, sizeof w->dir, "%s", dir);

    enum err rc = disk->ops->mkdir(disk, dir);
    if (rc == ERR_OK) {
        rc = disk->ops->sync_dir(disk, "");
    }
    if (rc == ERR_OK) {
        rc = wal_recover(w, applied, recovery);
    }
    if (rc == ERR_OK && w->segment_count == 0) {
        rc = roll(w, false, write_short);
    }
    if (rc != ERR_OK) {
        wal_close(w);
        return rc;
    }
    *out = w;
    return ERR_OK;
}

void wal_close(struct wal *w)
{
    if (w->file != NULL) {
        w->disk->ops->close(w->file);
    }
    mem_free(w->segments);
    mem_free(w->marks);
    mem_free(w);
}

void wal_recovery_free(struct wal_recovery *recovery)
{
    for (uint32_t i = 0; i < recovery->entry_count; i++) {
        bytes_unref(recovery->entries[i].data);
    }
    for (uint32_t i = 0; i < recovery->conf_count; i++) {
        bytes_unref(recovery->confs[i].data);
    }
    mem_free(recovery->entries);
    mem_free(recovery->confs);
    mem_free(recovery->runs);
    recovery->entries = recovery->confs = NULL;
    recovery->runs = NULL;
    recovery->entry_count = recovery->conf_count = recovery->run_count = 0;
    recovery->evicted_index = 0;
}
