/* A stream over bytes in memory, as stores and archives read and write them. */
#ifndef TESTS_LIB_STREAM_H
#define TESTS_LIB_STREAM_H

#include "base/err.h"
#include "base/mem.h"

/* `arg` is a struct buf. */
enum err to_buf(void *arg, struct slice bytes);

struct from_buf {
    struct slice left;
    size_t step_max; /* at most so many at once */
};
/* `arg` is a struct from_buf. At the end *size is 0. */
enum err from_buf(void *arg, void *to, size_t size_max, size_t *size);

struct tls;
/* All that was fed to it, to the end of `plain`. */
enum err tls_read_all(struct tls *t, struct buf *plain);

#endif
