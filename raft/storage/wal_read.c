/* Reading committed entries again, for a follower that is far behind. The log
 * may hold an entry several times: what was written and then replaced by
 * another leader's comes before what stands. An index and a term name an entry
 * (Log Matching), so the one with the right term is the one. */
#include "raft/storage/wal_int.h"

#include "base/codec.h"

/* Often a few entries are wanted, seldom all of a segment: each read of a run
 * of them takes twice as much as the one before. */
enum { READ_SIZE_MIN = 4096, READ_SIZE_MAX = 1 << 20 };

struct reader {
    struct disk *disk;
    const char *dir;
    const struct wal_want *want;
    struct disk_file *file;
    uint64_t file_size;
    uint64_t sequence, offset;
    struct buf held;  /* the file's bytes from `offset` on */
    size_t used;      /* of these */
    size_t read_size; /* of the next read */
    uint32_t run;
    raft_index next;
    size_t size;
    struct raft_entry *entries;
    uint32_t count, capacity;
};

static enum err open_file(struct reader *r, uint64_t sequence, uint64_t offset)
{
    char path[WAL_PATH_SIZE];
    if (r->file != NULL) {
        r->disk->ops->close(r->file);
        r->file = NULL;
    }
    wal_path(r->dir, sequence, path);
    enum err rc = r->disk->ops->open(r->disk, path, false, &r->file);
    if (rc != ERR_OK) {
        r->file = NULL;
        return rc;
    }
    r->sequence = sequence;
    r->offset = offset;
    r->used = 0;
    buf_clear(&r->held);
    return r->disk->ops->size(r->file, &r->file_size);
}

/* Up to `size` bytes from r->offset on. The file may have become shorter: a
 * group commit that found no space is cut off (wal_take_back). */
static enum err read_part(struct reader *r, size_t size)
{
    enum err rc = ERR_OK;
    uint64_t file_size = r->file_size;
    do {
        r->file_size = file_size;
        uint64_t left = file_size > r->offset ? file_size - r->offset : 0;
        size_t part = left < size ? (size_t)left : size;
        buf_clear(&r->held);
        rc = r->disk->ops->read(r->file, r->offset, buf_extend(&r->held, part),
                                part);
    } while (rc == ERR_CORRUPT &&
             r->disk->ops->size(r->file, &file_size) == ERR_OK &&
             file_size < r->file_size);
    return rc;
}

/* At least `size` bytes at hand, if the file has so many. */
static enum err hold(struct reader *r, size_t size)
{
    if (r->held.size - r->used >= size) {
        return ERR_OK;
    }
    r->offset += r->used;
    r->used = 0;
    size_t part = size > r->read_size ? size : r->read_size;
    r->read_size *= r->read_size < READ_SIZE_MAX ? 2 : 1;
    return read_part(r, part);
}

static raft_term expected(struct reader *r)
{
    const struct wal_want *w = r->want;
    while (r->run + 1 < w->run_count && w->runs[r->run + 1].first <= r->next) {
        r->run++;
    }
    return w->runs[r->run].term;
}

static void take(struct reader *r, const struct wal_record *record)
{
    if (record->type != WAL_ENTRY || record->index != r->next ||
        record->term != expected(r)) {
        return;
    }
    if (r->count == r->capacity) {
        r->capacity = r->capacity > 0 ? 2 * r->capacity : 64;
        r->entries = mem_resize(r->entries, r->capacity * sizeof *r->entries);
    }
    r->entries[r->count++] = (struct raft_entry){
        .term = record->term,
        .index = record->index,
        .type = record->entry_type,
        .data = record->payload.size > 0 ? bytes_copy(record->payload) : NULL,
    };
    r->size += wal_record_size(record->payload.size);
    r->next++;
}

/* One record; `*end`: there is none here. */
static enum err step(struct reader *r, bool *end)
{
    struct wal_record record;
    enum err rc = hold(r, WAL_RECORD_HEAD_SIZE);
    size_t left = r->held.size - r->used;
    if (rc != ERR_OK || left < WAL_RECORD_HEAD_SIZE) {
        *end = true;
        return rc;
    }
    uint32_t length = get_u32(r->held.data + r->used + 4);
    if (length <= WAL_PAYLOAD_SIZE_MAX) {
        rc = hold(r, wal_record_size(length));
    }
    if (rc != ERR_OK) {
        return rc;
    }
    const uint8_t *p = r->held.data + r->used;
    left = r->held.size - r->used;
    switch (wal_record_look_at(p, left, r->sequence, r->offset + r->used,
                               &record)) {
    case WAL_LOOK_ZERO: *end = true; return ERR_OK;
    case WAL_LOOK_BAD: *end = true; return ERR_OK; /* being written */
    case WAL_LOOK_RECORD: break;
    }
    take(r, &record);
    r->used += wal_record_size(record.payload.size);
    return ERR_OK;
}

static bool is_enough(const struct reader *r)
{
    return r->next > r->want->last ||
           (r->count > 0 && r->size >= r->want->size_max);
}

/* What is wanted was stored once. So if it is not found, its file is gone, or
 * damaged: the caller knows whether it may be gone. */
static enum err read_all(struct reader *r)
{
    enum err rc = open_file(r, r->want->from.sequence, r->want->from.offset);
    while (rc == ERR_OK && !is_enough(r)) {
        bool end = false;
        rc = step(r, &end);
        if (rc == ERR_OK && end) {
            rc = open_file(r, r->sequence + 1, WAL_HEAD_SIZE);
        }
    }
    return r->count > 0 && rc == ERR_NOTFOUND ? ERR_OK : rc;
}

enum err wal_read(struct disk *disk, const char *dir,
                  const struct wal_want *want, struct raft_entry **entries,
                  uint32_t *count)
{
    struct reader r = {.disk = disk,
                       .dir = dir,
                       .want = want,
                       .next = want->first,
                       .read_size = READ_SIZE_MIN};
    enum err rc = read_all(&r);
    if (r.file != NULL) {
        disk->ops->close(r.file);
    }
    buf_free(&r.held);
    *entries = r.entries;
    *count = r.count;
    return rc;
}
