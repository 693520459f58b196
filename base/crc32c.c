/* CRC-32C: with the SSE 4.2 instruction where the processor has it, else by
 * slicing four tables. Both are held to the RFC's vectors by the unit test. */
#include "base/codec.h"

#include <string.h>

#define CRC32C_POLYNOMIAL 0x82f63b78u /* reflected */

static uint32_t table[4][256];

static void __attribute__((constructor)) table_init(void)
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
__attribute__((target("sse4.2"))) static uint32_t
crc_sse42(uint32_t crc, const uint8_t *p, size_t size)
{
    uint64_t wide = crc;
    for (; size >= 8; p += 8, size -= 8) {
        uint64_t v;
        memcpy(&v, p, sizeof v);
        wide = __builtin_ia32_crc32di(wide, v);
    }
    crc = (uint32_t)wide;
    for (; size > 0; p++, size--) {
        crc = __builtin_ia32_crc32qi(crc, *p);
    }
    return crc;
}
#endif

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
