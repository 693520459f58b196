/* Reading a damaged log: what lies between two records that are whole is a
 * hole, and nobody knows what it held. Rules:
 *
 *  1. A record is believed when its checksum is right, which covers its place.
 *  2. Torn or a hole? As at every start (wal_recover.c): behind the end of the
 *     last segment there may be a group commit that was never acknowledged.
 *  3. An entry behind a hole says which of those before it still count: up to
 *     the last one of its own term (Log Matching). What lies between may have
 *     been replaced in the hole, and is not known any more.
 *  4. A hole with no entry behind it: the log's end is not known.
 *  5. A hole with no hard state behind it: a vote may be forgotten. */
#include "raft/storage/wal_repair_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/codec.h"

#define FILE_SIZE_MAX ((uint64_t)1 << 32)
enum { ENTRIES_MAX = 1 << 26, SEQUENCES_MAX = 1 << 20 };

struct reading {
    struct disk *disk;
    const char *dir;
    uint32_t replica;
    struct wal_holes *h;
    struct wal_places *places;
    uint64_t *sequences;
    uint32_t sequence_count;
    bool dropped; /* there was another segment, never used */
    bool foreign; /* of another format: nothing can be said of it */
};

/* --- The files */

static void add_name(void *arg, const char *name)
{
    struct reading *r = arg;
    char *end = NULL;
    uint64_t sequence = strtoull(name, &end, 16);
    if (end != name + 16 || strcmp(end, ".wal") != 0 || sequence == 0 ||
        r->sequence_count == SEQUENCES_MAX) {
        return;
    }
    r->sequences = mem_resize(r->sequences,
                              (r->sequence_count + 1) * sizeof *r->sequences);
    r->sequences[r->sequence_count++] = sequence;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

enum err wal_holes_load(struct disk *disk, const char *dir, uint64_t sequence,
                        struct buf *b)
{
    char path[WAL_PATH_SIZE];
    struct disk_file *file = NULL;
    wal_path(dir, sequence, path);
    enum err rc = disk->ops->open(disk, path, false, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    uint64_t size = 0;
    rc = disk->ops->size(file, &size);
    if (rc == ERR_OK) {
        size = size < FILE_SIZE_MAX ? size : FILE_SIZE_MAX;
        buf_clear(b);
        rc =
            disk->ops->read(file, 0, buf_extend(b, (size_t)size), (size_t)size);
    }
    disk->ops->close(file);
    return rc;
}

/* --- What is known */

static void hole(struct reading *r, uint64_t sequence, uint64_t offset,
                 uint64_t size)
{
    struct wal_holes *h = r->h;
    if (h->count++ == 0) {
        snprintf(h->first, sizeof h->first,
                 "%s/%016" PRIx64 ".wal at byte %" PRIu64, r->dir, sequence,
                 offset);
    }
    h->size += size;
    h->end_lost = true;
    h->hard_state_lost = true;
}

raft_term wal_holes_term(const struct wal_holes *h, raft_index index)
{
    return index >= h->first_index && index - h->first_index < h->term_count
               ? h->terms[index - h->first_index]
               : 0;
}

static void cut(struct wal_holes *h, raft_index from)
{
    if (from <= h->first_index) {
        h->term_count = 0;
    } else if (from - h->first_index < h->term_count) {
        h->term_count = (uint32_t)(from - h->first_index);
    }
}

static void push(struct wal_holes *h, raft_term term)
{
    if (h->term_count == h->term_capacity) {
        h->term_capacity = h->term_capacity > 0 ? 2 * h->term_capacity : 1024;
        h->terms = mem_resize(h->terms, h->term_capacity * sizeof *h->terms);
    }
    h->terms[h->term_count++] = term;
}

/* Rule 3: keeps what still counts before the entry behind a hole. */
static void doubt(struct wal_holes *h, raft_index index, raft_term term)
{
    cut(h, index);
    while (h->term_count > 0 && h->terms[h->term_count - 1] != term) {
        h->term_count--;
    }
}

static bool take_entry(struct reading *r, const struct wal_record *record)
{
    struct wal_holes *h = r->h;
    if (record->index == 0 || record->term == 0 ||
        (h->has_start && record->index <= h->start_index) ||
        record->entry_type < RAFT_ENTRY_COMMAND ||
        record->entry_type > RAFT_ENTRY_CONF) {
        return false;
    }
    if (h->end_lost) {
        doubt(h, record->index, record->term);
    }
    cut(h, record->index);
    if (h->term_count == 0) {
        h->first_index = record->index;
    }
    if (record->index - h->first_index >= ENTRIES_MAX ||
        (!h->end_lost && record->index > h->first_index + h->term_count)) {
        return false;
    }
    while (record->index > h->first_index + h->term_count) {
        push(h, 0);
    }
    push(h, record->term);
    h->end_lost = false;
    return true;
}

static bool take_start(struct reading *r, const struct wal_record *record)
{
    struct wal_holes *h = r->h;
    struct raft_conf conf;
    if ((h->has_start && record->index < h->start_index) ||
        raft_conf_decode(record->payload, &conf) != ERR_OK) {
        return false;
    }
    h->has_start = true;
    h->start_index = record->index;
    h->start_term = record->term;
    h->start_conf = conf;
    if (record->index >= h->first_index) {
        uint64_t drop = record->index - h->first_index + 1;
        drop = drop < h->term_count ? drop : h->term_count;
        h->term_count -= (uint32_t)drop;
        if (h->term_count > 0) {
            memmove(h->terms, h->terms + drop,
                    h->term_count * sizeof *h->terms);
        }
        h->first_index += drop;
    }
    return true;
}

static void add_place(struct reading *r, const struct wal_record *record,
                      uint64_t sequence, uint64_t offset)
{
    struct wal_places *p = r->places;
    if (p->count == p->capacity) {
        p->capacity = p->capacity > 0 ? 2 * p->capacity : 1024;
        p->items = mem_resize(p->items, p->capacity * sizeof *p->items);
    }
    p->items[p->count++] = (struct wal_place){.index = record->index,
                                              .term = record->term,
                                              .replica = r->replica,
                                              .sequence = sequence,
                                              .offset = offset};
}

static bool take(struct reading *r, const struct wal_record *record,
                 uint64_t sequence, uint64_t offset)
{
    struct wal_holes *h = r->h;
    h->term_max = record->term > h->term_max ? record->term : h->term_max;
    switch (record->type) {
    case WAL_HARD_STATE:
        if (record->payload.size != 8) {
            return false;
        }
        h->hard_state.term = record->term;
        h->hard_state.vote = get_u64(record->payload.data);
        h->hard_state_lost = false;
        return true;
    case WAL_ENTRY:
        add_place(r, record, sequence, offset);
        return take_entry(r, record);
    case WAL_START: return take_start(r, record);
    }
    return false;
}

/* --- Segments */

/* Where the next whole record is. A length that leads to one is believed first:
 * what lies before it may be a user's bytes. */
static uint64_t find_next(struct slice bytes, uint64_t sequence, uint64_t at)
{
    struct wal_record record;
    uint64_t left = bytes.size - at;
    if (left >= WAL_RECORD_HEAD_SIZE) {
        uint64_t size = wal_record_size(get_u32(bytes.data + at + 4));
        if (size < left && wal_record_look(bytes, sequence, at + size,
                                           &record) == WAL_LOOK_RECORD) {
            return at + size;
        }
    }
    for (at += 8; at + WAL_RECORD_HEAD_SIZE <= bytes.size; at += 8) {
        if (wal_record_look(bytes, sequence, at, &record) == WAL_LOOK_RECORD) {
            return at;
        }
    }
    return bytes.size;
}

static bool is_end(const struct reading *r, struct slice bytes,
                   uint64_t sequence, uint64_t at, bool last, bool end_known)
{
    bool zero = wal_is_zero(bytes.data + at, bytes.size - (size_t)at);
    if (last) {
        return (zero || !r->dropped) &&
               !wal_has_later_batch(bytes, sequence, at);
    }
    return zero && !end_known;
}

static void read_records(struct reading *r, struct slice bytes,
                         uint64_t sequence, bool last, bool end_known)
{
    uint64_t at = WAL_HEAD_SIZE;
    struct wal_record record;
    while (at < bytes.size) {
        if (wal_record_look(bytes, sequence, at, &record) == WAL_LOOK_RECORD) {
            uint64_t size = wal_record_size(record.payload.size);
            if (!take(r, &record, sequence, at)) {
                hole(r, sequence, at, size);
            }
            at += size;
        } else if (is_end(r, bytes, sequence, at, last, end_known)) {
            return;
        } else {
            uint64_t next = find_next(bytes, sequence, at);
            hole(r, sequence, at, next - at);
            at = next;
        }
    }
}

/* Nothing older counts: neither its entries nor its holes. */
static void forget_older(struct wal_holes *h)
{
    h->count = 0;
    h->size = 0;
    h->first[0] = 0;
    h->term_count = 0;
    h->has_start = false;
    h->end_lost = false;
}

/* `next`: the head of the segment that follows; NULL: not known. */
static void read_segment(struct reading *r, struct slice bytes,
                         uint64_t sequence, bool last,
                         const struct wal_head *next)
{
    struct wal_head head;
    r->foreign |= wal_is_foreign(bytes);
    if (!wal_segment_head(bytes, sequence, &head)) {
        hole(r, sequence, 0, WAL_HEAD_SIZE);
    } else if (head.reset) {
        forget_older(r->h);
    }
    uint64_t size = bytes.size;
    if (next != NULL && next->prev_size <= size) {
        size = next->prev_size;
    } else if (next != NULL) {
        hole(r, sequence, size, next->prev_size - size); /* cut off */
    }
    read_records(r, slice_of(bytes.data, (size_t)size), sequence, last,
                 next != NULL);
}

/* A last segment that was never used (wal_recover.c). */
static void drop_unbegun(struct reading *r, struct buf *b)
{
    uint64_t sequence = r->sequences[r->sequence_count - 1];
    if (wal_holes_load(r->disk, r->dir, sequence, b) == ERR_OK &&
        !wal_is_begun(buf_slice(b), sequence) &&
        !wal_is_foreign(buf_slice(b)) &&
        !(r->sequence_count == 1 && sequence > 1) &&
        !wal_has_later_batch(buf_slice(b), sequence, WAL_HEAD_SIZE)) {
        r->dropped = true;
        r->sequence_count--;
    }
}

static void read_one(struct reading *r, uint32_t i, struct buf *b)
{
    uint64_t sequence = r->sequences[i];
    bool last = i + 1 == r->sequence_count;
    struct wal_head next;
    bool next_known =
        !last && r->sequences[i + 1] == sequence + 1 &&
        wal_holes_load(r->disk, r->dir, sequence + 1, b) == ERR_OK &&
        wal_segment_head(buf_slice(b), sequence + 1, &next);
    if (wal_holes_load(r->disk, r->dir, sequence, b) == ERR_OK) {
        read_segment(r, buf_slice(b), sequence, last,
                     next_known ? &next : NULL);
    } else {
        hole(r, sequence, 0, WAL_SEGMENT_SIZE_DEFAULT);
    }
    if (!last && r->sequences[i + 1] != sequence + 1) {
        hole(r, sequence + 1, 0, WAL_SEGMENT_SIZE_DEFAULT);
    }
}

/* What the start marker and the first entry leave out. */
static void check_beginning(struct reading *r)
{
    struct wal_holes *h = r->h;
    bool gap = h->term_count > 0 && h->has_start &&
               h->first_index != h->start_index + 1;
    if (gap || !h->has_start) {
        bool end_lost = h->end_lost, vote_lost = h->hard_state_lost;
        hole(r, r->sequences[0], 0, 0);
        h->end_lost = end_lost;
        h->hard_state_lost = vote_lost;
    }
}

enum err wal_holes_read(struct disk *disk, const char *dir, uint32_t replica,
                        struct wal_holes *h, struct wal_places *places)
{
    struct reading r = {
        .disk = disk, .dir = dir, .replica = replica, .h = h, .places = places};
    struct buf b = {0};
    *h = (struct wal_holes){0};
    enum err rc = disk->ops->list(disk, dir, add_name, &r);
    if (rc == ERR_OK && r.sequence_count > 0) {
        qsort(r.sequences, r.sequence_count, sizeof *r.sequences, by_number);
        h->last_sequence = r.sequences[r.sequence_count - 1];
        drop_unbegun(&r, &b);
        h->readable = r.sequence_count > 0;
        for (uint32_t i = 0; i < r.sequence_count; i++) {
            read_one(&r, i, &b);
        }
    }
    if (h->readable) {
        check_beginning(&r);
    }
    buf_free(&b);
    mem_free(r.sequences);
    if (r.foreign) {
        return ERR_VERSION;
    }
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

void wal_holes_free(struct wal_holes *h)
{
    mem_free(h->terms);
    h->terms = NULL;
}
