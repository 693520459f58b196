#include "base/codec.h"

#include <endian.h>
#include <string.h>

void enc_u8(struct buf *b, uint8_t v)
{
    *buf_extend(b, 1) = v;
}

void enc_u16(struct buf *b, uint16_t v)
{
    uint8_t *p = buf_extend(b, 2);
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void enc_u32(struct buf *b, uint32_t v)
{
    set_u32(buf_extend(b, 4), v);
}

void enc_u64(struct buf *b, uint64_t v)
{
    set_u64(buf_extend(b, 8), v);
}

void enc_bytes(struct buf *b, struct slice v)
{
    enc_u32(b, (uint32_t)v.size);
    buf_append(b, v.data, v.size);
}

struct dec dec_of(struct slice from)
{
    /* NULL + 0 is undefined. */
    return (struct dec){.at = from.data,
                        .end =
                            from.size > 0 ? from.data + from.size : from.data};
}

size_t dec_left(const struct dec *d)
{
    return d->failed ? 0 : (size_t)(d->end - d->at);
}

struct slice dec_raw(struct dec *d, size_t size)
{
    if (dec_left(d) < size) {
        d->failed = true;
        return slice_of(NULL, 0);
    }
    struct slice v = slice_of(d->at, size);
    d->at += size;
    return v;
}

uint8_t dec_u8(struct dec *d)
{
    struct slice v = dec_raw(d, 1);
    return v.size == 0 ? 0 : v.data[0];
}

uint16_t dec_u16(struct dec *d)
{
    struct slice v = dec_raw(d, 2);
    return (uint16_t)(v.size == 0 ? 0 : v.data[0] | v.data[1] << 8);
}

uint32_t dec_u32(struct dec *d)
{
    struct slice v = dec_raw(d, 4);
    return v.size == 0 ? 0 : get_u32(v.data);
}

uint64_t dec_u64(struct dec *d)
{
    struct slice v = dec_raw(d, 8);
    return v.size == 0 ? 0 : get_u64(v.data);
}

struct slice dec_bytes(struct dec *d)
{
    uint32_t size = dec_u32(d);
    return dec_raw(d, size);
}

enum err dec_done(const struct dec *d)
{
    return d->failed || d->at != d->end ? ERR_CORRUPT : ERR_OK;
}

uint32_t get_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

uint64_t get_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

void set_u32(uint8_t *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, sizeof v);
}

void set_u64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, sizeof v);
}

uint16_t get_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

uint64_t get_be64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

void set_be16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

void set_be64(uint8_t *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof v);
}
