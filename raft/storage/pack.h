/* Bytes compressed as one zstd frame with zstd's own checksum, in memory: what
 * is stored in blocks, each readable by itself. */
#ifndef RAFT_STORAGE_PACK_H
#define RAFT_STORAGE_PACK_H

#include "base/err.h"
#include "base/mem.h"

/* To the end of `out`. */
void pack_compress(struct slice plain, struct buf *out);
/* Exactly `size` bytes, to the end of `out`; else ERR_CORRUPT. */
MUST_USE enum err pack_expand(struct slice packed, size_t size,
                              struct buf *out);

#endif
