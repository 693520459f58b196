#include "raft/storage/pack.h"

#include <zstd.h>

#include "base/check.h"

enum { LEVEL = 1 };

void pack_compress(struct slice plain, struct buf *out)
{
    ZSTD_CCtx *z = ZSTD_createCCtx();
    CHECK(z != NULL);
    CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1)));
    CHECK(!ZSTD_isError(
        ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, LEVEL)));
    size_t bound = ZSTD_compressBound(plain.size);
    uint8_t *to = buf_extend(out, bound);
    size_t size = ZSTD_compress2(z, to, bound, plain.data, plain.size);
    CHECK(!ZSTD_isError(size));
    out->size -= bound - size;
    ZSTD_freeCCtx(z);
}

enum err pack_expand(struct slice packed, size_t size, struct buf *out)
{
    uint8_t *to = buf_extend(out, size);
    /* One frame, and nothing else. */
    size_t frame = ZSTD_findFrameCompressedSize(packed.data, packed.size);
    if (ZSTD_isError(frame) || frame != packed.size) {
        return ERR_CORRUPT;
    }
    size_t got = ZSTD_decompress(to, size, packed.data, packed.size);
    return ZSTD_isError(got) || got != size ? ERR_CORRUPT : ERR_OK;
}
