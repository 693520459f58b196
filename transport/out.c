/* What waits to be encrypted on one connection, first in first out. Short
 * pieces are copied one behind the other; long ones stay where they are, and a
 * reference is kept. Invariants:
 *
 *  1. `size` is the sum of what is left of all parts. A part that was used up
 *     keeps its reference until the next call: its bytes may just be encrypted.
 *  2. out_next() gives whole TLS records as long as there is enough for one,
 *     whatever the parts are cut like: short ones would cost a header, a tag
 *     and a call each. */
#include "transport/rpc_int.h"

#include <string.h>

#include "base/check.h"

static struct out_part *part_add(struct out *o)
{
    if (o->count == o->capacity) {
        o->capacity = o->capacity == 0 ? 16 : 2 * o->capacity;
        o->parts = mem_resize(o->parts, o->capacity * sizeof *o->parts);
    }
    o->parts[o->count] = (struct out_part){0};
    return &o->parts[o->count++];
}

uint8_t *out_bytes(struct out *o, size_t size)
{
    bool joins = o->count > o->first && o->parts[o->count - 1].owner == NULL;
    struct out_part *part = joins ? &o->parts[o->count - 1] : part_add(o);
    part->size += size;
    o->size += size;
    return buf_extend(&o->bytes, size);
}

void out_refer(struct out *o, struct bytes *owner, struct slice data)
{
    *part_add(o) = (struct out_part){
        .owner = bytes_ref(owner), .data = data.data, .size = data.size};
    o->size += data.size;
}

static const uint8_t *part_data(const struct out *o, const struct out_part *p)
{
    return p->owner != NULL ? p->data : o->bytes.data + o->bytes_at;
}

static void part_use(struct out *o, size_t size)
{
    struct out_part *p = &o->parts[o->first];
    if (p->owner != NULL) {
        p->data += size;
    } else {
        o->bytes_at += size;
    }
    p->size -= size;
    o->size -= size;
}

/* The parts that were used up go. */
static void parts_drop(struct out *o)
{
    while (o->first < o->count && o->parts[o->first].size == 0) {
        bytes_unref(o->parts[o->first++].owner);
    }
}

/* A record from several parts. */
static struct slice gather(struct out *o, uint8_t record[OUT_RECORD_SIZE])
{
    size_t size = 0;
    while (size < OUT_RECORD_SIZE && o->size > 0) {
        const struct out_part *p = &o->parts[o->first];
        size_t room = OUT_RECORD_SIZE - size;
        size_t some = p->size < room ? p->size : room;
        memcpy(record + size, part_data(o, p), some);
        size += some;
        part_use(o, some);
        parts_drop(o);
    }
    return slice_of(record, size);
}

struct slice out_next(struct out *o, size_t size_max,
                      uint8_t record[OUT_RECORD_SIZE])
{
    CHECK(o->size > 0 && size_max >= OUT_RECORD_SIZE);
    parts_drop(o);
    const struct out_part *p = &o->parts[o->first];
    size_t size = p->size < size_max ? p->size : size_max;
    if (size < o->size) {
        size -= size % OUT_RECORD_SIZE;
    }
    if (size == 0) {
        return gather(o, record);
    }
    struct slice next = slice_of(part_data(o, p), size);
    part_use(o, size);
    return next;
}

void out_clear(struct out *o, size_t keep_size)
{
    CHECK(o->size == 0);
    parts_drop(o);
    if (o->bytes.capacity > keep_size) {
        buf_free(&o->bytes);
    }
    if (o->capacity * sizeof *o->parts > keep_size) {
        mem_free(o->parts);
        o->parts = NULL;
        o->capacity = 0;
    }
    buf_clear(&o->bytes);
    o->first = o->count = 0;
    o->bytes_at = 0;
}

void out_free(struct out *o)
{
    for (uint32_t i = o->first; i < o->count; i++) {
        bytes_unref(o->parts[i].owner);
    }
    buf_free(&o->bytes);
    mem_free(o->parts);
    *o = (struct out){0};
}
