#include "tests/lib/stream.h"

#include <string.h>

#include "transport/tls.h"

enum err to_buf(void *arg, struct slice bytes)
{
    buf_append(arg, bytes.data, bytes.size);
    return ERR_OK;
}

enum err from_buf(void *arg, void *to, size_t size_max, size_t *size)
{
    struct from_buf *f = arg;
    size_t part = f->left.size < size_max ? f->left.size : size_max;
    part = part < f->step_max ? part : f->step_max;
    if (part > 0) {
        memcpy(to, f->left.data, part);
    }
    f->left = slice_of(f->left.data + part, f->left.size - part);
    *size = part;
    return ERR_OK;
}

enum err tls_read_all(struct tls *t, struct buf *plain)
{
    enum { STEP = 1000 };
    for (;;) {
        size_t before = plain->size, got = 0;
        enum err rc = tls_read(t, buf_extend(plain, STEP), STEP, &got);
        plain->size = before + got;
        if (rc != ERR_OK || got < STEP) {
            return rc;
        }
    }
}
