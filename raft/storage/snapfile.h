/* A snapshot as a stream: zstd-compressed with zstd's own checksum on, framed
 * by a head (magic, version, index, term, configuration; docs/disk.md) and an
 * end mark. Pure: bytes in, bytes out; what carries them is the caller's.
 *
 * Only this folder includes <zstd.h>. */
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

/* A sink that compresses what is written to it into `out`. finish() writes the
 * end mark; a stream without it is refused by the reader. */
struct snap_writer;
struct snap_writer *snap_writer_new(struct snap_sink *out,
                                    const struct snap_label *label);
struct snap_sink *snap_writer_sink(struct snap_writer *w);
MUST_USE enum err snap_writer_finish(struct snap_writer *w);
void snap_writer_free(struct snap_writer *w);

/* A source of the uncompressed bytes of `in`. The label is checked and read by
 * open. ERR_CORRUPT for anything damaged or cut short. */
struct snap_reader;
MUST_USE enum err snap_reader_new(struct snap_source *in,
                                  struct snap_label *label,
                                  struct snap_reader **out);
struct snap_source *snap_reader_source(struct snap_reader *r);
void snap_reader_free(struct snap_reader *r);

#endif
