/* The bytes of the log: a segment's head and its records (docs/disk.md). */
#include "raft/storage/wal_int.h"

#include <string.h>

#include "base/check.h"
#include "base/codec.h"

#define WAL_MAGIC   UINT64_C(0x314c4157544f4c46) /* "FLOTWAL1" */
#define WAL_VERSION 2u

enum { HEAD_RESET = 1, HEAD_REUSED = 2 };

/* Segment head:
 *   offset size field
 *        0    8 magic
 *        8    4 version
 *       12    4 flags      1: reset; 2: reused
 *       16    8 sequence
 *       24    8 prev_size
 *       32    4 reserved   zero
 *       36    4 crc        CRC-32C of bytes 0..35 */
_Static_assert(WAL_HEAD_SIZE == 8 + 4 + 4 + 8 + 8 + 4 + 4, "see docs/disk.md");

void wal_head_write(uint8_t to[WAL_HEAD_SIZE], const struct wal_head *head)
{
    set_u64(to, WAL_MAGIC);
    set_u32(to + 8, WAL_VERSION);
    set_u32(to + 12, (head->reset ? HEAD_RESET : 0u) |
                         (head->reused ? HEAD_REUSED : 0u));
    set_u64(to + 16, head->sequence);
    set_u64(to + 24, head->prev_size);
    set_u32(to + 32, 0);
    set_u32(to + 36, crc32c(0, slice_of(to, 36)));
}

enum err wal_head_read(const uint8_t from[WAL_HEAD_SIZE], struct wal_head *head)
{
    uint32_t flags = get_u32(from + 12);
    if (get_u64(from) != WAL_MAGIC ||
        get_u32(from + 36) != crc32c(0, slice_of(from, 36))) {
        return ERR_CORRUPT;
    }
    if (get_u32(from + 8) != WAL_VERSION) {
        return ERR_VERSION;
    }
    if ((flags & ~(uint32_t)(HEAD_RESET | HEAD_REUSED)) != 0 ||
        get_u32(from + 32) != 0) {
        return ERR_CORRUPT;
    }
    *head = (struct wal_head){
        .sequence = get_u64(from + 16),
        .reset = (flags & HEAD_RESET) != 0,
        .reused = (flags & HEAD_REUSED) != 0,
        .prev_size = get_u64(from + 24),
    };
    return ERR_OK;
}

/* Record:
 *   offset size field
 *        0    4 crc        see head_crc()
 *        4    4 length     of the payload
 *        8    1 type       enum wal_record_type
 *        9    1 entry_type enum raft_entry_type; 0 unless type is WAL_ENTRY
 *       10    2 check      of the head: see head_crc()
 *       12    4 batch      where its group commit begins in this file
 *       16    8 term
 *       24    8 index
 *       32      payload, and zeros up to a multiple of 8 */
_Static_assert(WAL_RECORD_HEAD_SIZE == 4 + 4 + 1 + 1 + 2 + 4 + 8 + 8,
               "see docs/disk.md");

size_t wal_record_size(size_t payload_size)
{
    return (WAL_RECORD_HEAD_SIZE + payload_size + 7) & ~(size_t)7;
}

static const uint8_t padding[8];

static size_t padding_size(const struct wal_record *record)
{
    return wal_record_size(record->payload.size) - WAL_RECORD_HEAD_SIZE -
           record->payload.size;
}

/* Over the place and the head, but for the checks themselves; what follows the
 * head goes on from it. The place is in it because an entry's payload is a
 * user's, who may well keep a copy of such a file in our filesystem, and
 * because a file is used again for another segment: a record that is valid only
 * where it was written is never mistaken for one.
 *
 * Half of it is in the head: whoever looks for a record among bytes that may be
 * anything sees at once that there is none, and need not read as much as a
 * length says that was never one. */
static uint32_t head_crc(const uint8_t head[WAL_RECORD_HEAD_SIZE],
                         uint64_t sequence, uint64_t offset)
{
    uint8_t b[16 + WAL_RECORD_HEAD_SIZE - 4];
    set_u64(b, sequence);
    set_u64(b + 8, offset);
    memcpy(b + 16, head + 4, WAL_RECORD_HEAD_SIZE - 4);
    b[16 + 6] = b[16 + 7] = 0;
    return crc32c(0, slice_of(b, sizeof b));
}

static void head_put(uint8_t p[WAL_RECORD_HEAD_SIZE], uint64_t sequence,
                     uint64_t offset, const struct wal_record *record)
{
    CHECK(record->payload.size <= WAL_PAYLOAD_SIZE_MAX);
    CHECK(offset % 8 == 0);
    set_u32(p + 4, (uint32_t)record->payload.size);
    p[8] = (uint8_t)record->type;
    p[9] = record->entry_type;
    set_u32(p + 12, record->batch);
    set_u64(p + 16, record->term);
    set_u64(p + 24, record->index);
    uint32_t crc = head_crc(p, sequence, offset);
    p[10] = (uint8_t)crc;
    p[11] = (uint8_t)(crc >> 8);
    crc = crc32c(crc, record->payload);
    set_u32(p, crc32c(crc, slice_of(padding, padding_size(record))));
}

/* All of it, at `p`. */
static void record_put(uint8_t *p, uint64_t sequence, uint64_t offset,
                       const struct wal_record *record)
{
    head_put(p, sequence, offset, record);
    p += WAL_RECORD_HEAD_SIZE;
    if (record->payload.size > 0) {
        memcpy(p, record->payload.data, record->payload.size);
    }
    memset(p + record->payload.size, 0, padding_size(record));
}

void wal_record_write(struct buf *b, uint64_t sequence, uint64_t offset,
                      const struct wal_record *record)
{
    record_put(buf_extend(b, wal_record_size(record->payload.size)), sequence,
               offset, record);
}

/* --- what is to be written */

static struct slice *out_part(struct wal_out *o)
{
    if (o->count == o->capacity) {
        o->capacity = o->capacity == 0 ? 16 : 2 * o->capacity;
        o->parts = mem_resize(o->parts, o->capacity * sizeof *o->parts);
    }
    o->parts[o->count] = slice_of(NULL, 0);
    return &o->parts[o->count++];
}

uint8_t *wal_out_bytes(struct wal_out *o, size_t size)
{
    bool joins = o->count > 0 && o->parts[o->count - 1].data == NULL;
    struct slice *part = joins ? &o->parts[o->count - 1] : out_part(o);
    part->size += size;
    o->size += size;
    return buf_extend(&o->bytes, size);
}

void wal_out_record(struct wal_out *o, uint64_t sequence, uint64_t offset,
                    const struct wal_record *record)
{
    if (record->payload.size < WAL_REFER_SIZE) {
        size_t size = wal_record_size(record->payload.size);
        record_put(wal_out_bytes(o, size), sequence, offset, record);
        return;
    }
    head_put(wal_out_bytes(o, WAL_RECORD_HEAD_SIZE), sequence, offset, record);
    *out_part(o) = record->payload;
    o->size += record->payload.size;
    size_t pad = padding_size(record);
    memset(wal_out_bytes(o, pad), 0, pad);
}

const struct slice *wal_out_parts(struct wal_out *o, struct slice more,
                                  uint32_t *count)
{
    const uint8_t *at = o->bytes.data;
    for (uint32_t i = 0; i < o->count; i++) {
        if (o->parts[i].data == NULL) {
            o->parts[i].data = at;
            at += o->parts[i].size;
        }
    }
    if (more.size > 0) {
        *out_part(o) = more;
    }
    *count = o->count;
    return o->parts;
}

void wal_out_clear(struct wal_out *o)
{
    buf_clear(&o->bytes);
    o->count = 0;
    o->size = 0;
}

void wal_out_free(struct wal_out *o)
{
    buf_free(&o->bytes);
    mem_free(o->parts);
}

/* Each byte equals the one before it, and the first is zero: memcmp() looks at
 * many at once, and a segment's empty tail is looked at on every start. */
bool wal_is_zero(const uint8_t *p, size_t size)
{
    return size == 0 || (p[0] == 0 && memcmp(p, p + 1, size - 1) == 0);
}

static bool is_record(const uint8_t *p, uint64_t left, uint64_t sequence,
                      uint64_t offset)
{
    uint32_t length = get_u32(p + 4);
    if (p[8] < WAL_HARD_STATE || p[8] > WAL_START ||
        length > WAL_PAYLOAD_SIZE_MAX || wal_record_size(length) > left) {
        return false;
    }
    uint32_t crc = head_crc(p, sequence, offset);
    size_t behind = wal_record_size(length) - WAL_RECORD_HEAD_SIZE;
    return p[10] == (uint8_t)crc && p[11] == (uint8_t)(crc >> 8) &&
           get_u32(p) ==
               crc32c(crc, slice_of(p + WAL_RECORD_HEAD_SIZE, behind));
}

enum wal_look wal_record_look_at(const uint8_t *p, uint64_t left,
                                 uint64_t sequence, uint64_t offset,
                                 struct wal_record *record)
{
    if (left < WAL_RECORD_HEAD_SIZE) {
        return wal_is_zero(p, (size_t)left) ? WAL_LOOK_ZERO : WAL_LOOK_BAD;
    }
    if (wal_is_zero(p, WAL_RECORD_HEAD_SIZE)) {
        return WAL_LOOK_ZERO;
    }
    if (!is_record(p, left, sequence, offset)) {
        return WAL_LOOK_BAD;
    }
    *record = (struct wal_record){
        .type = p[8],
        .entry_type = p[9],
        .batch = get_u32(p + 12),
        .term = get_u64(p + 16),
        .index = get_u64(p + 24),
        .payload = slice_of(p + WAL_RECORD_HEAD_SIZE, get_u32(p + 4)),
    };
    return WAL_LOOK_RECORD;
}

enum wal_look wal_record_look(struct slice segment, uint64_t sequence,
                              uint64_t offset, struct wal_record *record)
{
    return wal_record_look_at(segment.data + offset, segment.size - offset,
                              sequence, offset, record);
}
