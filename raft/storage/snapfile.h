/* A snapshot as pieces. The plain bytes of a state are cut where their content
 * says, so that two snapshots of nearly the same state, made by different
 * replicas at different times, consist of nearly the same pieces. A piece is
 * named by the SHA-256 of its plain bytes, and packed by zstd with a checksum
 * of its own. The manifest is the label and the names in order: whoever has it,
 * and pieces with these names from wherever, has the snapshot.
 *
 * Pure: bytes in, bytes out; what carries and stores them is the caller's. Only
 * this folder includes <zstd.h>. Formats: docs/disk.md. */
#ifndef RAFT_STORAGE_SNAPFILE_H
#define RAFT_STORAGE_SNAPFILE_H

#include "raft/raft.h"

struct snap_label {
    raft_index index;
    raft_term term;
    struct raft_conf conf;
};

/* Where bytes of a snapshot go; a failure stops the writer. */
struct snap_sink {
    enum err (*write)(struct snap_sink *sink, struct slice bytes);
};
/* Where they come from: exactly up to `size_max` bytes, 0 at the end. */
struct snap_source {
    enum err (*read)(struct snap_source *source, void *to, size_t size_max,
                     size_t *size);
};

enum {
    SNAP_ID_SIZE = 32,
    SNAP_PIECE_SIZE_DEFAULT = 256 << 10,
    SNAP_PIECE_SIZE_MAX = 1 << 20,  /* of plain bytes */
    SNAP_PACKED_SIZE_MAX = 2 << 20, /* far more than zstd needs at worst */
    SNAP_PIECES_MAX = 2 << 20,      /* 512 GiB in pieces of the default */
};

struct snap_id {
    uint8_t bytes[SNAP_ID_SIZE];
};

/* --- Cutting */

/* Called with each piece, in order; a failure stops the cutter. */
typedef enum err snap_piece_fn(void *arg, const struct snap_id *id,
                               struct slice packed);

/* Pieces have `piece_size` plain bytes on average, a quarter of it at least and
 * four times as many at most (0: the default). */
struct snap_cutter;
struct snap_cutter *snap_cutter_new(size_t piece_size, snap_piece_fn *piece,
                                    void *arg);
struct snap_sink *snap_cutter_sink(struct snap_cutter *c);
MUST_USE enum err snap_cutter_finish(struct snap_cutter *c); /* the last one */
void snap_cutter_free(struct snap_cutter *c);

/* --- A piece */

struct snap_unpacker;
struct snap_unpacker *snap_unpacker_new(void);
void snap_unpacker_free(struct snap_unpacker *u);
/* The plain bytes, borrowed until the next call. ERR_CORRUPT unless they are
 * those that `id` names. */
MUST_USE enum err snap_unpack(struct snap_unpacker *u, const struct snap_id *id,
                              struct slice packed, struct slice *plain);

/* --- The manifest */

struct snap_manifest {
    struct snap_label label;
    const struct snap_id *ids; /* borrowed from the bytes */
    uint32_t count;
};

void snap_manifest_encode(struct buf *b, const struct snap_manifest *m);
/* ERR_CORRUPT for anything damaged or cut short; ERR_VERSION. */
MUST_USE enum err snap_manifest_decode(struct slice bytes,
                                       struct snap_manifest *m);

#endif
