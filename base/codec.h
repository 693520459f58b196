/* Cursors over bytes. An encoder appends to a buffer; a decoder reads bytes
 * that a stranger sent and trusts nothing: after the first read past the end it
 * returns zeros and remembers, so a caller reads all fields and asks once.
 * Integers are little-endian. */
#ifndef BASE_CODEC_H
#define BASE_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

void enc_u8(struct buf *b, uint8_t v);
void enc_u16(struct buf *b, uint16_t v);
void enc_u32(struct buf *b, uint32_t v);
void enc_u64(struct buf *b, uint64_t v);
void enc_bytes(struct buf *b, struct slice v); /* u32 size, then the bytes */

struct dec {
    const uint8_t *at;
    const uint8_t *end;
    bool failed;
};

struct dec dec_of(struct slice from);
uint8_t dec_u8(struct dec *d);
uint16_t dec_u16(struct dec *d);
uint32_t dec_u32(struct dec *d);
uint64_t dec_u64(struct dec *d);
struct slice dec_bytes(struct dec *d);            /* borrowed from the input */
struct slice dec_raw(struct dec *d, size_t size); /* exactly `size` bytes */
size_t dec_left(const struct dec *d);

/* ERR_OK if all reads were inside and nothing is left over; else ERR_CORRUPT.
 */
MUST_USE enum err dec_done(const struct dec *d);

/* In place, for fixed layouts. */
uint32_t get_u32(const uint8_t *p);
uint64_t get_u64(const uint8_t *p);
void set_u32(uint8_t *p, uint32_t v);
void set_u64(uint8_t *p, uint64_t v);

/* Big-endian, for keys: their byte order is their sort order. */
uint16_t get_be16(const uint8_t *p);
uint64_t get_be64(const uint8_t *p);
void set_be16(uint8_t *p, uint16_t v);
void set_be64(uint8_t *p, uint64_t v);

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `data`, going on from `crc`
 * (0 to begin). */
uint32_t crc32c(uint32_t crc, struct slice data);

#endif
