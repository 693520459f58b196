/* CRC-32C: with the SSE 4.2 instruction where the processor has it, else by
 * slicing four tables. Both are held to the RFC's vectors by the unit test.
 *
 * The instruction takes three cycles, and the next one can begin after one: so
 * long runs are done as three at once, side by side, and put together. The CRC
 * of a run is linear in what it begins with: after `size` more bytes a value
 * has moved on by four look-ups. */
#include "base/codec.h"

#include <string.h>

#define CRC32C_POLYNOMIAL 0x82f63b78u /* reflected */

static uint32_t table[4][256];

static void table_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? CRC32C_POLYNOMIAL : 0);
        }
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int t = 1; t < 4; t++) {
            uint32_t prev = table[t - 1][i];
            table[t][i] = prev >> 8 ^ table[0][prev & 0xff];
        }
    }
}

static uint32_t crc_portable(uint32_t crc, const uint8_t *p, size_t size)
{
    for (; size >= 4; p += 4, size -= 4) {
        crc ^= get_u32(p);
        crc = table[3][crc & 0xff] ^ table[2][crc >> 8 & 0xff] ^
              table[1][crc >> 16 & 0xff] ^ table[0][crc >> 24];
    }
    for (; size > 0; p++, size--) {
        crc = crc >> 8 ^ table[0][(crc ^ *p) & 0xff];
    }
    return crc;
}

#if defined(__x86_64__)
enum { LONG_RUN = 4096, SHORT_RUN = 256 };

/* What a byte of the CRC becomes by that many bytes of zeros. */
static uint32_t long_shift[4][256], short_shift[4][256];

static uint32_t shift(uint32_t by[4][256], uint32_t crc)
{
    return by[0][crc & 0xff] ^ by[1][crc >> 8 & 0xff] ^
           by[2][crc >> 16 & 0xff] ^ by[3][crc >> 24];
}

static void shift_init(uint32_t by[4][256], size_t run)
{
    static const uint8_t zeros[LONG_RUN];
    uint32_t bits[32];
    for (uint32_t bit = 0; bit < 32; bit++) {
        bits[bit] = crc_portable(1u << bit, zeros, run);
    }
    for (uint32_t i = 0; i < 4 * 256; i++) {
        uint32_t crc = 0;
        for (uint32_t bit = 0; bit < 8; bit++) {
            crc ^= i >> bit & 1 ? bits[i / 256 * 8 + bit] : 0;
        }
        by[i / 256][i % 256] = crc;
    }
}

static uint64_t get_native(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Of three runs, one behind the other. */
__attribute__((target("sse4.2"))) static uint32_t
crc_three(uint32_t crc, const uint8_t *p, size_t run, uint32_t by[4][256])
{
    uint64_t a = crc, b = 0, c = 0;
    for (size_t at = 0; at < run; at += 8) {
        a = __builtin_ia32_crc32di(a, get_native(p + at));
        b = __builtin_ia32_crc32di(b, get_native(p + run + at));
        c = __builtin_ia32_crc32di(c, get_native(p + 2 * run + at));
    }
    return shift(by, shift(by, (uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
}

__attribute__((target("sse4.2"))) static uint32_t
crc_sse42(uint32_t crc, const uint8_t *p, size_t size)
{
    for (; size >= 3 * LONG_RUN; p += 3 * LONG_RUN, size -= 3 * LONG_RUN) {
        crc = crc_three(crc, p, LONG_RUN, long_shift);
    }
    for (; size >= 3 * SHORT_RUN; p += 3 * SHORT_RUN, size -= 3 * SHORT_RUN) {
        crc = crc_three(crc, p, SHORT_RUN, short_shift);
    }
    uint64_t wide = crc;
    for (; size >= 8; p += 8, size -= 8) {
        wide = __builtin_ia32_crc32di(wide, get_native(p));
    }
    crc = (uint32_t)wide;
    for (; size > 0; p++, size--) {
        crc = __builtin_ia32_crc32qi(crc, *p);
    }
    return crc;
}
#endif

static void __attribute__((constructor)) init(void)
{
    table_init();
#if defined(__x86_64__)
    shift_init(long_shift, LONG_RUN);
    shift_init(short_shift, SHORT_RUN);
#endif
}

uint32_t crc32c(uint32_t crc, struct slice data)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) {
        return ~crc_sse42(crc, data.data, data.size);
    }
#endif
    return ~crc_portable(crc, data.data, data.size);
}
