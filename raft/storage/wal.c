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
 *  5. After a failed write or sync nothing is written any more. */
#include "raft/storage/wal_int.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"

enum { WRITE_SIZE = 8 << 20, SEGMENT_SIZE_MIN = 4096 };
#define SEGMENT_SIZE_MAX ((size_t)1 << 31)

static enum err broke(struct wal *w, enum err rc)
{
    if (rc != ERR_OK) {
        w->broken = true;
    }
    return rc;
}

static struct wal_segment *last_segment(struct wal *w)
{
    return &w->segments[w->segment_count - 1];
}

/* Zeros ahead of the write, so that an append changes no file size and its
 * fdatasync writes no metadata. They need no sync of their own. A long write
 * takes none: there the metadata is little, and zeros would double the bytes.
 */
static enum err fill_ahead(struct wal *w, uint64_t size)
{
    static const uint8_t zeros[256 << 10];

    uint64_t end = w->end + size;
    if (end <= w->filled) {
        return ERR_OK;
    }
    uint64_t to = size < WAL_FILL_UNDER ? end + WAL_FILL_SIZE : end;
    if (to > w->segment_size) {
        to = w->segment_size;
    }
    for (uint64_t at = end; at < to;) {
        uint64_t some = to - at < sizeof zeros ? to - at : sizeof zeros;
        struct slice part = slice_of(zeros, (size_t)some);
        enum err rc = w->disk->ops->write(w->file, at, &part, 1);
        if (rc != ERR_OK) {
            return rc;
        }
        at += some;
    }
    w->filled = to > end ? to : end;
    return ERR_OK;
}

/* Writes what was gathered, without a sync. */
static enum err flush(struct wal *w, struct buf *b)
{
    if (b->size == 0) {
        return ERR_OK;
    }
    enum err rc = fill_ahead(w, b->size);
    if (rc != ERR_OK) {
        return rc;
    }
    struct slice part = buf_slice(b);
    rc = w->disk->ops->write(w->file, w->end, &part, 1);
    if (rc != ERR_OK) {
        return rc;
    }
    w->end += b->size;
    w->stats.bytes += b->size;
    buf_clear(b);
    return ERR_OK;
}

static enum err sync_file(struct wal *w)
{
    w->stats.syncs++;
    return w->disk->ops->sync(w->file);
}

static void put_hard_state(struct wal *w, struct buf *b, uint64_t batch)
{
    uint8_t vote[8];
    set_u64(vote, w->hard_state.vote);
    struct wal_record record = {
        .type = WAL_HARD_STATE,
        .batch = (uint32_t)batch,
        .term = w->hard_state.term,
        .payload = slice_of(vote, sizeof vote),
    };
    wal_record_write(b, last_segment(w)->sequence, w->end + b->size, &record);
}

static void put_start(struct wal *w, struct buf *b, uint64_t batch)
{
    struct buf conf = {0};
    raft_conf_encode(&conf, &w->start_conf);
    struct wal_record record = {
        .type = WAL_START,
        .batch = (uint32_t)batch,
        .term = w->start_term,
        .index = w->start_index,
        .payload = buf_slice(&conf),
    };
    wal_record_write(b, last_segment(w)->sequence, w->end + b->size, &record);
    buf_free(&conf);
}

static void put_entry(struct wal *w, struct buf *b, uint64_t batch,
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
    wal_record_write(b, s->sequence, w->end + b->size, &record);
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
static enum err write_beginning(struct wal *w, const struct wal_head *head)
{
    struct buf b = {0};
    wal_head_write(buf_extend(&b, WAL_HEAD_SIZE), head);
    put_hard_state(w, &b, WAL_HEAD_SIZE);
    put_start(w, &b, WAL_HEAD_SIZE);
    enum err rc = flush(w, &b);
    buf_free(&b);
    if (rc == ERR_OK) {
        rc = sync_file(w);
    }
    return rc == ERR_OK ? w->disk->ops->sync_dir(w->disk, w->dir) : rc;
}

/* Goes on in a new segment. What is in the old one is synced. */
static enum err roll(struct wal *w, bool reset)
{
    struct wal_head head = {.sequence = 1, .reset = reset};
    if (w->segment_count > 0) {
        head.sequence = last_segment(w)->sequence + 1;
        head.prev_size = w->end;
        w->disk->ops->close(w->file);
        w->file = NULL;
    }
    char path[WAL_PATH_SIZE];
    wal_path(w, head.sequence, path);
    enum err rc = w->disk->ops->open(w->disk, path, true, &w->file);
    if (rc != ERR_OK) {
        w->file = NULL;
        return rc;
    }
    rc = w->disk->ops->truncate(w->file, 0);
    if (rc != ERR_OK) {
        return rc;
    }
    push_segment(w, head.sequence);
    w->end = 0;
    w->filled = 0;
    return write_beginning(w, &head);
}

/* Makes room for a record of `size`, in a new segment if it must be. `*batch`
 * is then the new segment's. */
static enum err make_room(struct wal *w, struct buf *b, size_t size,
                          uint64_t *batch)
{
    uint64_t at = w->end + b->size;
    if (at + size <= w->segment_size || at <= w->segment_size / 2) {
        /* A record that fits in no segment goes into a young one, which grows
         * over its size. */
        return b->size + size > WRITE_SIZE ? flush(w, b) : ERR_OK;
    }
    enum err rc = flush(w, b);
    if (rc == ERR_OK) {
        rc = sync_file(w);
    }
    if (rc == ERR_OK) {
        rc = roll(w, false);
    }
    *batch = w->end;
    return rc;
}

static enum err append_records(struct wal *w, struct buf *b,
                               const struct raft_hard_state *hard_state,
                               const struct raft_entry *entries, uint32_t count)
{
    uint64_t batch = w->end;
    enum err rc = ERR_OK;
    if (hard_state != NULL) {
        w->hard_state = *hard_state;
        rc = make_room(w, b, wal_record_size(8), &batch);
        if (rc == ERR_OK) {
            put_hard_state(w, b, batch);
        }
    }
    for (uint32_t i = 0; i < count && rc == ERR_OK; i++) {
        size_t size = wal_record_size(bytes_slice(entries[i].data).size);
        rc = make_room(w, b, size, &batch);
        if (rc == ERR_OK) {
            put_entry(w, b, batch, &entries[i]);
        }
    }
    if (rc == ERR_OK) {
        rc = flush(w, b);
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
    struct buf b = {0};
    enum err rc = append_records(w, &b, hard_state, entries, count);
    buf_free(&b);
    return broke(w, rc);
}

static enum err delete_oldest(struct wal *w)
{
    char path[WAL_PATH_SIZE];
    wal_path(w, w->segments[0].sequence, path);
    enum err rc = w->disk->ops->remove(w->disk, path);
    if (rc != ERR_OK) {
        return rc;
    }
    w->segment_count--;
    memmove(w->segments, w->segments + 1,
            w->segment_count * sizeof *w->segments);
    return w->disk->ops->sync_dir(w->disk, w->dir);
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
    struct buf b = {0};
    uint64_t batch = w->end;
    /* Also right if this begins a new segment, which has the marker already. */
    enum err rc = make_room(w, &b, 4096, &batch);
    if (rc == ERR_OK) {
        put_start(w, &b, batch);
        rc = flush(w, &b);
    }
    buf_free(&b);
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
    while (rc == ERR_OK && w->segment_count > 1 &&
           w->segments[0].index_max <= index) {
        rc = delete_oldest(w);
    }
    return broke(w, rc);
}

enum err wal_reset(struct wal *w, raft_index index, raft_term term,
                   const struct raft_conf *conf)
{
    if (w->broken) {
        return ERR_IO;
    }
    set_start(w, index, term, conf);
    enum err rc = roll(w, true);
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
                  struct wal **out, struct wal_recovery *recovery)
{
    *recovery = (struct wal_recovery){0};
    if (segment_size == 0) {
        segment_size = WAL_SEGMENT_SIZE_DEFAULT;
    }
    CHECK(segment_size >= SEGMENT_SIZE_MIN && segment_size <= SEGMENT_SIZE_MAX);
    struct wal *w = mem_alloc(sizeof *w);
    w->disk = disk;
    w->segment_size = segment_size;
    CHECK(strlen(dir) < sizeof w->dir);
    snprintf(w->dir, sizeof w->dir, "%s", dir);

    enum err rc = disk->ops->mkdir(disk, dir);
    if (rc == ERR_OK) {
        rc = disk->ops->sync_dir(disk, "");
    }
    if (rc == ERR_OK) {
        rc = wal_recover(w, recovery);
    }
    if (rc == ERR_OK && w->segment_count == 0) {
        rc = roll(w, false);
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
    mem_free(w);
}

void wal_recovery_free(struct wal_recovery *recovery)
{
    for (uint32_t i = 0; i < recovery->entry_count; i++) {
        bytes_unref(recovery->entries[i].data);
    }
    mem_free(recovery->entries);
    recovery->entries = NULL;
    recovery->entry_count = 0;
}
