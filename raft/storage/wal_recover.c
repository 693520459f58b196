/* Reading the log at start. A crash may leave, and nothing else may:
 *
 *  - in the last segment, some of the bytes of its last group commit: it was
 *    never acknowledged, and is cut off;
 *  - a last segment whose beginning is not whole: it was never used, and goes;
 *    then the one before it was synced whole, and has no such bytes;
 *  - older segments that a reset or compaction was about to delete.
 *
 * Everything else is damage, and refused: entries may have been acknowledged,
 * and dropping them here could lose what the group has promised ("Protocol-
 * Aware Recovery", FAST'18). The rule that tells the first from damage is
 * invariant 2 of wal.c: a record whose `batch` lies beyond the bad place says
 * that the bad place was synced once. */
#include "raft/storage/wal_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/codec.h"
#include "base/log.h"

#define FILE_SIZE_MAX ((uint64_t)1 << 32)

struct recovery {
    struct wal *w;
    struct wal_recovery *out;
    uint32_t capacity; /* of out->entries */
    raft_index start_index;
    raft_index applied;     /* not loaded up to here */
    raft_index first, last; /* that there are; 0 and 0: none */
    bool dropped;           /* there was another segment, never used */
};

void wal_path(const char *dir, uint64_t sequence, char to[WAL_PATH_SIZE])
{
    snprintf(to, WAL_PATH_SIZE, "%s/%016" PRIx64 ".wal", dir, sequence);
}

static enum err damaged(struct wal *w, struct wal_recovery *out,
                        uint64_t sequence, uint64_t offset, const char *what)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, sequence, path);
    snprintf(out->problem, sizeof out->problem,
             "%s at byte %" PRIu64 ": %s, before the end of the log", path,
             offset, what);
    return ERR_CORRUPT;
}

void wal_spare_path(const char *dir, char to[WAL_PATH_SIZE])
{
    snprintf(to, WAL_PATH_SIZE, "%s/" WAL_SPARE_NAME, dir);
}

/* --- The files */

static void add_name(void *arg, const char *name)
{
    struct wal *w = arg;
    char *end = NULL;
    w->spare = w->spare || strcmp(name, WAL_SPARE_NAME) == 0;
    uint64_t sequence = strtoull(name, &end, 16);
    if (end != name + 16 || strcmp(end, ".wal") != 0 || sequence == 0) {
        return;
    }
    w->segments =
        mem_resize(w->segments, (w->segment_count + 1) * sizeof *w->segments);
    w->segments[w->segment_count++] =
        (struct wal_segment){.sequence = sequence};
}

static int by_sequence(const void *a, const void *b)
{
    uint64_t x = ((const struct wal_segment *)a)->sequence;
    uint64_t y = ((const struct wal_segment *)b)->sequence;
    return (x > y) - (x < y);
}

static enum err find_segments(struct wal *w)
{
    enum err rc = w->disk->ops->list(w->disk, w->dir, add_name, w);
    if (rc == ERR_OK && w->segment_count > 0) {
        qsort(w->segments, w->segment_count, sizeof *w->segments, by_sequence);
    }
    return rc;
}

static enum err remove_segment(struct wal *w, uint64_t sequence)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, sequence, path);
    enum err rc = w->disk->ops->remove(w->disk, path);
    return rc == ERR_OK ? w->disk->ops->sync_dir(w->disk, w->dir) : rc;
}

/* Opens into w->file, and reads all of it, or the head only. */
static enum err load(struct wal *w, uint64_t sequence, uint64_t size_max,
                     struct buf *b)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, sequence, path);
    if (w->file != NULL) {
        w->disk->ops->close(w->file);
        w->file = NULL;
    }
    enum err rc = w->disk->ops->open(w->disk, path, false, &w->file);
    if (rc != ERR_OK) {
        w->file = NULL;
        return rc;
    }
    uint64_t size = 0;
    rc = w->disk->ops->size(w->file, &size);
    if (rc != ERR_OK) {
        return rc;
    }
    size = size < size_max ? size : size_max;
    buf_clear(b);
    return w->disk->ops->read(w->file, 0, buf_extend(b, (size_t)size),
                              (size_t)size);
}

bool wal_segment_head(struct slice bytes, uint64_t sequence,
                      struct wal_head *head)
{
    return bytes.size >= WAL_HEAD_SIZE &&
           wal_head_read(bytes.data, head) == ERR_OK &&
           head->sequence == sequence;
}

/* --- Torn or damaged? */

/* The size without the zeros at the end, to within a block. */
static size_t written_size(struct slice bytes)
{
    enum { BLOCK = 4096 };
    size_t size = bytes.size;
    while (size >= BLOCK && wal_is_zero(bytes.data + size - BLOCK, BLOCK)) {
        size -= BLOCK;
    }
    return size;
}

/* Is there a record of a later group commit than the one at `offset`? */
bool wal_has_later_batch(struct slice bytes, uint64_t sequence, uint64_t offset)
{
    uint64_t first = offset < WAL_HEAD_SIZE ? WAL_HEAD_SIZE : offset + 8;
    size_t end = written_size(bytes);
    for (uint64_t at = first;
         at < end && at + WAL_RECORD_HEAD_SIZE <= bytes.size; at += 8) {
        struct wal_record record;
        if (wal_record_look(bytes, sequence, at, &record) == WAL_LOOK_RECORD &&
            record.batch > offset) {
            return true;
        }
    }
    return false;
}

/* Was the segment's beginning written whole (wal.c, invariant 3)? */
bool wal_is_begun(struct slice bytes, uint64_t sequence)
{
    struct wal_head head;
    struct wal_record record;
    if (!wal_segment_head(bytes, sequence, &head) ||
        wal_record_look(bytes, sequence, WAL_HEAD_SIZE, &record) !=
            WAL_LOOK_RECORD ||
        record.type != WAL_HARD_STATE) {
        return false;
    }
    uint64_t next = WAL_HEAD_SIZE + wal_record_size(record.payload.size);
    return wal_record_look(bytes, sequence, next, &record) == WAL_LOOK_RECORD &&
           record.type == WAL_START;
}

/* Nothing can be said of such a file, least of all that it was never used. */
bool wal_is_foreign(struct slice bytes)
{
    struct wal_head head;
    return bytes.size >= WAL_HEAD_SIZE &&
           wal_head_read(bytes.data, &head) == ERR_VERSION;
}

static enum err foreign(struct wal *w, struct wal_recovery *out,
                        uint64_t sequence)
{
    char path[WAL_PATH_SIZE];
    wal_path(w->dir, sequence, path);
    snprintf(out->problem, sizeof out->problem,
             "%s has another log format: start this replica with the version "
             "of flotilla that wrote it",
             path);
    return ERR_VERSION;
}

static bool tail_is_zero(struct slice bytes, uint64_t end)
{
    return wal_is_zero(bytes.data + end, bytes.size - (size_t)end);
}

/* Drops a last segment that was never used. */
static enum err drop_unbegun(struct recovery *r, struct buf *b)
{
    struct wal *w = r->w;
    if (w->segment_count == 0) {
        return ERR_OK;
    }
    uint64_t sequence = w->segments[w->segment_count - 1].sequence;
    enum err rc = load(w, sequence, FILE_SIZE_MAX, b);
    if (rc == ERR_OK && wal_is_foreign(buf_slice(b))) {
        return foreign(w, r->out, sequence);
    }
    if (rc != ERR_OK || wal_is_begun(buf_slice(b), sequence)) {
        return rc;
    }
    bool only = w->segment_count == 1 && sequence > 1;
    if (only || wal_has_later_batch(buf_slice(b), sequence, WAL_HEAD_SIZE)) {
        return damaged(w, r->out, sequence, 0, "its beginning is damaged");
    }
    log_warn("wal", "removing a segment that was never used sequence=%" PRIu64,
             sequence);
    r->dropped = true;
    w->segment_count--;
    w->disk->ops->close(w->file);
    w->file = NULL;
    return remove_segment(w, sequence);
}

/* Finds the newest reset, checks that no number is missing after it, and drops
 * what is older. */
static enum err find_base(struct wal *w, struct wal_recovery *out,
                          struct buf *b)
{
    uint32_t base = w->segment_count;
    while (base > 0) {
        uint64_t sequence = w->segments[base - 1].sequence;
        if (base < w->segment_count &&
            sequence + 1 != w->segments[base].sequence) {
            return damaged(w, out, sequence + 1, 0, "the file is missing");
        }
        enum err rc = load(w, sequence, WAL_HEAD_SIZE, b);
        if (rc != ERR_OK) {
            return rc;
        }
        struct wal_head head;
        if (!wal_segment_head(buf_slice(b), sequence, &head)) {
            return damaged(w, out, sequence, 0, "its head is damaged");
        }
        base--;
        if (head.reset) {
            break;
        }
    }
    for (uint32_t i = 0; i < base; i++) {
        enum err rc = remove_segment(w, w->segments[i].sequence);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    w->segment_count -= base;
    if (base > 0) {
        memmove(w->segments, w->segments + base,
                w->segment_count * sizeof *w->segments);
    }
    return ERR_OK;
}

/* --- The records */

static void cut_entries(struct raft_entry *entries, uint32_t *count,
                        raft_index from)
{
    while (*count > 0 && entries[*count - 1].index >= from) {
        bytes_unref(entries[--*count].data);
    }
}

static void drop_first_entries(struct raft_entry *entries, uint32_t *count,
                               raft_index index)
{
    uint32_t drop = 0;
    while (drop < *count && entries[drop].index <= index) {
        bytes_unref(entries[drop++].data);
    }
    if (drop > 0) {
        *count -= drop;
        memmove(entries, entries + drop, *count * sizeof *entries);
    }
}

/* Entries from `from` on are replaced. */
static void cut(struct recovery *r, raft_index from)
{
    struct wal_recovery *out = r->out;
    cut_entries(out->entries, &out->entry_count, from);
    cut_entries(out->confs, &out->conf_count, from);
    while (out->run_count > 0 && out->runs[out->run_count - 1].first >= from) {
        out->run_count--;
    }
}

/* Entries up to `index` are compacted. */
static void drop_first(struct recovery *r, raft_index index)
{
    struct wal_recovery *out = r->out;
    drop_first_entries(out->entries, &out->entry_count, index);
    drop_first_entries(out->confs, &out->conf_count, index);
    if (index >= r->last) {
        r->first = r->last = 0;
    } else if (index >= r->first) {
        r->first = index + 1;
    }
    uint32_t drop = 0;
    while (drop + 1 < out->run_count &&
           out->runs[drop + 1].first <= index + 1) {
        drop++;
    }
    bool all = r->first == 0 || index >= r->applied;
    drop = all ? out->run_count : drop;
    if (drop > 0) {
        out->run_count -= drop;
        memmove(out->runs, out->runs + drop,
                out->run_count * sizeof *out->runs);
    }
    if (out->run_count > 0 && out->runs[0].first <= index) {
        out->runs[0].first = index + 1;
    }
}

static struct raft_entry entry_of(const struct wal_record *record)
{
    return (struct raft_entry){
        .term = record->term,
        .index = record->index,
        .type = record->entry_type,
        .data = record->payload.size > 0 ? bytes_copy(record->payload) : NULL,
    };
}

static void keep_evicted(struct wal_recovery *out,
                         const struct wal_record *record)
{
    if (out->run_count == 0 ||
        out->runs[out->run_count - 1].term != record->term) {
        out->runs =
            mem_resize(out->runs, (out->run_count + 1) * sizeof *out->runs);
        out->runs[out->run_count++] =
            (struct raft_run){.first = record->index, .term = record->term};
    }
    if (record->entry_type == RAFT_ENTRY_CONF) {
        out->confs =
            mem_resize(out->confs, (out->conf_count + 1) * sizeof *out->confs);
        out->confs[out->conf_count++] = entry_of(record);
    }
}

/* A segment's entries may begin anywhere above the start marker at first (what
 * lay between was in deleted segments); from then on without a gap. */
static bool replay_entry(struct recovery *r, const struct wal_record *record)
{
    struct wal_recovery *out = r->out;
    if (record->index <= r->start_index ||
        record->entry_type < RAFT_ENTRY_COMMAND ||
        record->entry_type > RAFT_ENTRY_CONF ||
        (r->last > 0 && record->index > r->last + 1)) {
        return false;
    }
    cut(r, record->index);
    r->first =
        r->last == 0 || record->index < r->first ? record->index : r->first;
    r->last = record->index;
    if (record->index <= r->applied) {
        keep_evicted(out, record);
        return true;
    }
    if (out->entry_count == r->capacity) {
        r->capacity = r->capacity > 0 ? 2 * r->capacity : 64;
        out->entries =
            mem_resize(out->entries, r->capacity * sizeof *out->entries);
    }
    out->entries[out->entry_count++] = entry_of(record);
    return true;
}

static bool replay_start(struct recovery *r, const struct wal_record *record)
{
    struct raft_conf conf;
    if (record->index < r->start_index ||
        raft_conf_decode(record->payload, &conf) != ERR_OK) {
        return false;
    }
    r->start_index = record->index;
    r->out->start_index = record->index;
    r->out->start_term = record->term;
    r->out->start_conf = conf;
    drop_first(r, record->index);
    return true;
}

static bool replay_record(struct recovery *r, struct wal_segment *s,
                          const struct wal_record *record)
{
    switch (record->type) {
    case WAL_HARD_STATE:
        if (record->payload.size != 8) {
            return false;
        }
        r->out->hard_state.term = record->term;
        r->out->hard_state.vote = get_u64(record->payload.data);
        return true;
    case WAL_ENTRY:
        if (record->index > s->index_max) {
            s->index_max = record->index;
        }
        return replay_entry(r, record);
    case WAL_START: return replay_start(r, record);
    }
    return false;
}

/* Replays records until what follows is none; `*end` is where. */
static enum err replay_segment(struct recovery *r, struct wal_segment *s,
                               struct slice bytes, uint64_t *end)
{
    uint64_t at = WAL_HEAD_SIZE;
    struct wal_record record;
    while (at < bytes.size && wal_record_look(bytes, s->sequence, at,
                                              &record) == WAL_LOOK_RECORD) {
        if (!replay_record(r, s, &record)) {
            return damaged(r->w, r->out, s->sequence, at,
                           "a record makes no sense there");
        }
        if (record.type == WAL_ENTRY) {
            wal_note_entry(r->w, s->sequence, at, record.index,
                           wal_record_size(record.payload.size));
            s->end = at + wal_record_size(record.payload.size);
        }
        at += wal_record_size(record.payload.size);
    }
    *end = at;
    return ERR_OK;
}

/* Zeros behind the end, also where a torn write left bytes: a later append must
 * never join up with them. In a file that was used before nobody can tell those
 * from an older segment's. */
static enum err cut_tail(struct wal *w, struct slice bytes, uint64_t sequence)
{
    struct wal_head head;
    w->filled = w->held = bytes.size;
    if (tail_is_zero(bytes, w->end)) {
        return ERR_OK;
    }
    if (!wal_segment_head(bytes, sequence, &head) || !head.reused) {
        log_warn("wal",
                 "cutting off a write that a crash interrupted "
                 "sequence=%" PRIu64 " offset=%" PRIu64,
                 sequence, w->end);
    }
    w->filled = w->held = w->end;
    enum err rc = w->disk->ops->truncate(w->file, w->end);
    return rc == ERR_OK ? w->disk->ops->sync(w->file) : rc;
}

static enum err replay_last(struct recovery *r, struct wal_segment *s,
                            struct buf *b)
{
    struct wal *w = r->w;
    enum err rc = load(w, s->sequence, FILE_SIZE_MAX, b);
    if (rc == ERR_OK && !wal_is_begun(buf_slice(b), s->sequence)) {
        return damaged(w, r->out, s->sequence, 0, "its beginning is damaged");
    }
    if (rc == ERR_OK) {
        rc = replay_segment(r, s, buf_slice(b), &w->end);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    /* All of it was synced before the segment that was dropped was made. */
    bool torn = !r->dropped || tail_is_zero(buf_slice(b), w->end);
    if (!torn || wal_has_later_batch(buf_slice(b), s->sequence, w->end)) {
        return damaged(w, r->out, s->sequence, w->end, "a record is damaged");
    }
    return cut_tail(w, buf_slice(b), s->sequence);
}

/* A segment that another follows was synced whole; the next one's head says
 * where it ends. */
static enum err replay_older(struct recovery *r, struct wal_segment *s,
                             uint64_t next_sequence, struct buf *b)
{
    struct wal *w = r->w;
    struct wal_head next;
    enum err rc = load(w, next_sequence, WAL_HEAD_SIZE, b);
    if (rc != ERR_OK) {
        return rc;
    }
    if (!wal_segment_head(buf_slice(b), next_sequence, &next)) {
        return damaged(w, r->out, next_sequence, 0, "its head is damaged");
    }
    uint64_t end = 0;
    rc = load(w, s->sequence, next.prev_size, b);
    if (rc == ERR_OK) {
        rc = replay_segment(r, s, buf_slice(b), &end);
    }
    if (rc == ERR_OK && end != next.prev_size) {
        rc = damaged(w, r->out, s->sequence, end, "a record is damaged");
    }
    return rc;
}

static enum err replay_all(struct recovery *r, struct buf *b)
{
    struct wal *w = r->w;
    enum err rc = ERR_OK;
    for (uint32_t i = 0; i + 1 < w->segment_count && rc == ERR_OK; i++) {
        rc = replay_older(r, &w->segments[i], w->segments[i + 1].sequence, b);
    }
    if (rc == ERR_OK && w->segment_count > 0) {
        rc = replay_last(r, &w->segments[w->segment_count - 1], b);
    }
    if (rc == ERR_OK && r->first > 0 && r->first != r->start_index + 1) {
        return damaged(w, r->out, w->segments[0].sequence, 0,
                       "entries between the start marker and it are missing");
    }
    return rc;
}

enum err wal_recover(struct wal *w, raft_index applied,
                     struct wal_recovery *out)
{
    struct buf b = {0};
    struct recovery r = {.w = w, .out = out, .applied = applied};
    enum err rc = find_segments(w);
    if (rc == ERR_OK) {
        rc = drop_unbegun(&r, &b);
    }
    if (rc == ERR_OK) {
        rc = find_base(w, out, &b);
    }
    if (rc == ERR_OK) {
        rc = replay_all(&r, &b);
    }
    if (rc == ERR_OK) {
        rc = wal_drop_spare(w); /* which may have been begun (wal.c, 10) */
    }
    buf_free(&b);
    if (rc != ERR_OK) {
        return rc;
    }
    if (out->run_count > 0) {
        out->evicted_index = r.last < applied ? r.last : applied;
    }
    w->hard_state = out->hard_state;
    w->start_index = out->start_index;
    w->start_term = out->start_term;
    w->start_conf = out->start_conf;
    return ERR_OK;
}
