/* A segment's life: begun in a new file, or in a deleted one's, followed by
 * another, deleted. The invariants are on top of wal.c. */
#include "raft/storage/wal_int.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"

enum { SPARE_ROOM = 16 /* segments that the disk must have room for */ };

static enum err sync_names(struct wal *w)
{
    return wal_final(w->disk->ops->sync_dir(w->disk, w->dir));
}

/* That somebody else removed it is as good. */
enum err wal_drop_spare(struct wal *w)
{
    char path[WAL_PATH_SIZE];
    wal_spare_path(w->dir, path);
    enum err rc = w->spare ? w->disk->ops->remove(w->disk, path) : ERR_OK;
    rc = rc == ERR_NOTFOUND ? ERR_OK : rc;
    w->spare = w->spare && rc != ERR_OK;
    return rc;
}

void wal_put_hard_state(struct wal *w, struct wal_out *out, uint64_t batch)
{
    uint8_t vote[8];
    set_u64(vote, w->hard_state.vote);
    struct wal_record record = {
        .type = WAL_HARD_STATE,
        .batch = (uint32_t)batch,
        .term = w->hard_state.term,
        .payload = slice_of(vote, sizeof vote),
    };
    wal_out_record(out, wal_last_segment(w)->sequence, w->end + out->size,
                   &record);
}

void wal_put_start(struct wal *w, struct wal_out *out, uint64_t batch)
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
    wal_out_record(out, wal_last_segment(w)->sequence, w->end + out->size,
                   &record);
    buf_free(&conf);
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
                                wal_write_fn *write)
{
    struct wal_out out = {0};
    wal_head_write(wal_out_bytes(&out, WAL_HEAD_SIZE), head);
    wal_put_hard_state(w, &out, WAL_HEAD_SIZE);
    wal_put_start(w, &out, WAL_HEAD_SIZE);
    enum err rc = wal_flush_by(w, &out, w->reserve, write);
    wal_out_free(&out);
    if (rc == ERR_OK) {
        rc = wal_sync_file(w);
    }
    return rc == ERR_OK ? sync_names(w) : rc;
}

/* The spare gets the new segment's name, unless somebody removed it. */
static enum err take_spare(struct wal *w, const char *path)
{
    char spare[WAL_PATH_SIZE];
    wal_spare_path(w->dir, spare);
    enum err rc = w->disk->ops->rename(w->disk, spare, path);
    if (rc == ERR_OK || rc == ERR_NOTFOUND) {
        w->spare = false;
    }
    return rc;
}

/* The file of the new segment, empty or the spare, as the last one. */
static enum err open_segment(struct wal *w, struct wal_head *head)
{
    char path[WAL_PATH_SIZE];
    struct disk_file *file = NULL;
    uint64_t held = 0;
    wal_path(w->dir, head->sequence, path);
    enum err rc = head->reused ? take_spare(w, path) : ERR_OK;
    if (rc == ERR_NOTFOUND) {
        head->reused = false;
        rc = ERR_OK;
    }
    if (rc == ERR_OK) {
        rc = w->disk->ops->open(w->disk, path, !head->reused, &file);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    rc = head->reused ? w->disk->ops->size(file, &held)
                      : w->disk->ops->truncate(file, 0);
    if (rc != ERR_OK) {
        w->disk->ops->close(file);
        return wal_final(rc);
    }
    push_segment(w, head->sequence);
    w->file = file;
    w->end = w->filled = 0;
    w->held = held;
    return ERR_OK;
}

/* Takes the segment back that found no space (8). */
static enum err drop_segment(struct wal *w)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, wal_last_segment(w)->sequence, path);
    w->disk->ops->close(w->file);
    w->file = NULL;
    w->unsynced = false;
    w->segment_count--;
    enum err rc = wal_final(w->disk->ops->remove(w->disk, path));
    if (rc == ERR_OK) {
        rc = sync_names(w);
    }
    return rc == ERR_OK ? ERR_NOSPACE : rc;
}

/* Nothing of an older segment stays behind the end of this one (9). */
static enum err wipe(struct wal *w)
{
    if (w->filled == w->held) {
        return ERR_OK;
    }
    enum err rc = wal_fill(w, w->held);
    if (rc == ERR_NOSPACE) { /* a disk that writes copies */
        rc = wal_final(w->disk->ops->truncate(w->file, w->filled));
        w->held = w->filled;
    }
    return rc == ERR_OK ? wal_sync_file(w) : rc;
}

enum err wal_roll(struct wal *w, bool reset, wal_write_fn *write)
{
    struct wal_head head = {.sequence = 1, .reset = reset, .reused = w->spare};
    enum err rc = ERR_OK;
    if (w->segment_count > 0) {
        head.sequence = wal_last_segment(w)->sequence + 1;
        head.prev_size = w->end;
        rc = wipe(w);
    }
    struct disk_file *file = w->file;
    uint64_t end = w->end, filled = w->filled;
    if (rc == ERR_OK) {
        rc = open_segment(w, &head);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    rc = write_beginning(w, &head, write);
    if (rc == ERR_NOSPACE) {
        rc = drop_segment(w);
        w->file = file;
        w->end = end;
        w->filled = w->held = filled;
        if (rc == ERR_NOSPACE && head.reused) {
            return wal_roll(w, reset,
                            write); /* in the room that the spare had */
        }
    } else if (file != NULL) {
        w->disk->ops->close(file);
    }
    return rc;
}

static bool has_room(struct wal *w)
{
    uint64_t free = 0;
    return w->disk->ops->space(w->disk, &free) == ERR_OK &&
           free / SPARE_ROOM >= w->segment_size;
}

/* Its file goes, or is the spare from now on, unless it is a larger one. */
enum err wal_delete_oldest(struct wal *w)
{
    char path[WAL_PATH_SIZE], spare[WAL_PATH_SIZE];
    wal_path(w->dir, w->segments[0].sequence, path);
    wal_spare_path(w->dir, spare);
    bool keep =
        !w->spare && w->segments[0].end <= w->segment_size && has_room(w);
    enum err rc = keep ? w->disk->ops->rename(w->disk, path, spare)
                       : w->disk->ops->remove(w->disk, path);
    if (rc != ERR_OK) {
        return rc;
    }
    w->spare = w->spare || keep;
    w->segment_count--;
    memmove(w->segments, w->segments + 1,
            w->segment_count * sizeof *w->segments);
    return sync_names(w);
}
