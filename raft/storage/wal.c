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
 *     before it is written to again: its head says where that one ends.
 *  9. A segment may be begun in the file of a deleted one: what is written over
 *     old bytes changes no metadata. They are behind `filled` while it is the
 *     last segment, and are zeros, durably, before another follows it. Its
 *     sequence was never theirs, so no record of theirs is valid.
 * 10. At most one file, the spare, waits for that, and only on a disk with much
 *     room; what is in it counts for nothing, whatever happens to it. One that
 *     is there at start goes: the segment that would be begun in it may have
 *     been before a crash, whose name is lost, and its bytes are not. */
#include "raft/storage/wal_int.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"

enum {
    WRITE_SIZE = 8 << 20,
    SEGMENT_SIZE_MIN = 4096,
    RESERVE_SIZE = 16 << 10,
};
#define SEGMENT_SIZE_MAX ((size_t)1 << 31)

static enum err broke(struct wal *w, enum err rc)
{
    if (rc != ERR_OK && rc != ERR_NOSPACE) {
        w->broken = true;
    }
    return rc;
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
    struct wal_segment *s = wal_last_segment(w);
    uint64_t at = w->end + out->size;
    wal_note_entry(w, s->sequence, at, entry->index,
                   wal_record_size(record.payload.size));
    wal_out_record(out, s->sequence, at, &record);
    s->end = at + wal_record_size(record.payload.size);
    if (entry->index > s->index_max) {
        s->index_max = entry->index;
    }
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
        return out->size + size > WRITE_SIZE ? wal_flush(w, out, keep) : ERR_OK;
    }
    enum err rc = wal_flush(w, out, keep);
    if (rc == ERR_OK) {
        rc = wal_sync_file(w);
    }
    if (rc == ERR_OK) {
        *batch = w->end; /* what is before it stays, whatever comes */
        w->kept = *wal_last_segment(w);
        rc = wal_roll(w, false, wal_write_short);
    }
    if (rc == ERR_OK) {
        *batch = w->end;
        w->kept = *wal_last_segment(w);
    }
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
            wal_put_hard_state(w, out, *batch);
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
        rc = wal_flush(w, out, keep);
    }
    return rc == ERR_OK ? wal_sync_file(w) : rc;
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
    w->kept = *wal_last_segment(w);
    enum err rc = append_records(w, &out, hard_state, entries, count, &batch);
    wal_out_free(&out);
    if (rc == ERR_NOSPACE) {
        void_marks(w);
        *wal_last_segment(w) = w->kept; /* which needs none of them */
        rc = wal_take_back(w, batch);
    }
    return broke(w, rc);
}

static enum err delete_unneeded(struct wal *w)
{
    enum err rc = ERR_OK;
    while (rc == ERR_OK && w->segment_count > 1 &&
           w->segments[0].index_max <= w->start_index) {
        rc = wal_delete_oldest(w);
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
    struct buf conf = {0};
    raft_conf_encode(&conf, &w->start_conf);
    size_t size = wal_record_size(conf.size);
    buf_free(&conf);
    /* Also right if this begins a new segment, which has the marker already. */
    enum err rc = make_room(w, &out, size, 0, &batch);
    if (rc == ERR_OK) {
        wal_put_start(w, &out, batch);
        rc = wal_flush(w, &out, 0);
    }
    wal_out_free(&out);
    if (rc == ERR_NOSPACE) {
        rc = wal_take_back(w, batch);
    }
    return rc == ERR_OK ? wal_sync_file(w) : rc;
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
    uint64_t least = 3 * (uint64_t)w->fill_size;
    return wal_last_segment(w)->index_max <= w->start_index && w->held >= least;
}

enum err wal_shrink(struct wal *w)
{
    if (w->broken) {
        return ERR_IO;
    }
    enum err rc = wal_drop_spare(w);
    if (rc != ERR_OK || !shrinks(w)) {
        return broke(w, rc);
    }
    rc = wal_roll(w, false, wal_write_long); /* no more than it needs */
    if (rc == ERR_OK) {
        rc = delete_unneeded(w); /* the start marker is in the new one */
    }
    if (rc == ERR_OK) {
        rc = wal_drop_spare(w); /* which the old one is now */
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
    enum err rc = wal_roll(w, true, wal_write_short);
    if (rc == ERR_NOSPACE) {
        set_start(w, old_index, old_term, &old_conf);
    }
    while (rc == ERR_OK && w->segment_count > 1) {
        rc = wal_delete_oldest(w);
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
    w->fill_size = segment_size / WAL_FILL_PART;
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
        rc = wal_roll(w, false, wal_write_short);
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
