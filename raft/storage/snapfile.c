/* The snapshot stream (docs/disk.md): head with the label, one zstd frame, end
 * mark. Three checks: the head's own CRC, so that the label can be trusted
 * before the rest is there; zstd's checksum of the plain bytes; and in the end
 * mark a CRC-32C over every byte of the stream, since a flipped bit in a frame
 * header may change nothing that zstd's checksum covers. */
#include "raft/storage/snapfile.h"

#include <string.h>
#include <zstd.h>

#include "base/check.h"
#include "base/codec.h"

#define HEAD_MAGIC UINT64_C(0x3150414e534f4c46) /* "FLOSNAP1" */
#define END_MAGIC  UINT64_C(0x31444e45534f4c46) /* "FLOSEND1" */

/* Head:
 *   offset size field
 *        0    8 magic
 *        8    4 version
 *       12    4 conf_size
 *       16    8 index
 *       24    8 term
 *       32      conf, then CRC-32C of all before it (4)
 * End mark:
 *        0    8 magic
 *        8    8 plain_size   bytes before compression
 *       16    4 crc          CRC-32C of the stream up to here */
enum {
    HEAD_FIXED_SIZE = 32,
    CONF_SIZE_MAX = 4096,
    END_SIZE = 20,
    VERSION = 1,
    LEVEL = 1, /* several times the speed of the default, a little larger */
    BUFFER_SIZE = 128 << 10,
};

/* --- Writer */

struct snap_writer {
    struct snap_sink sink; /* first: what the user writes to */
    struct snap_sink *out;
    ZSTD_CCtx *zstd;
    uint32_t crc;
    uint64_t plain_size;
    enum err failed;
    uint8_t buffer[BUFFER_SIZE];
};

static enum err emit(struct snap_writer *w, struct slice bytes)
{
    if (w->failed == ERR_OK && bytes.size > 0) {
        w->crc = crc32c(w->crc, bytes);
        w->failed = w->out->write(w->out, bytes);
    }
    return w->failed;
}

static void emit_head(struct snap_writer *w, const struct snap_label *label)
{
    struct buf conf = {0};
    struct buf head = {0};
    raft_conf_encode(&conf, &label->conf);
    CHECK(conf.size <= CONF_SIZE_MAX);
    enc_u64(&head, HEAD_MAGIC);
    enc_u32(&head, VERSION);
    enc_u32(&head, (uint32_t)conf.size);
    enc_u64(&head, label->index);
    enc_u64(&head, label->term);
    buf_append(&head, conf.data, conf.size);
    enc_u32(&head, crc32c(0, buf_slice(&head)));
    /* A failure is remembered, and the first write gives it. */
    (void)!emit(w, buf_slice(&head));
    buf_free(&head);
    buf_free(&conf);
}

static enum err compress(struct snap_writer *w, struct slice bytes,
                         ZSTD_EndDirective mode)
{
    ZSTD_inBuffer in = {bytes.data, bytes.size, 0};
    size_t left = 1;
    while (w->failed == ERR_OK &&
           (in.pos < in.size || (mode == ZSTD_e_end && left != 0))) {
        ZSTD_outBuffer to = {w->buffer, BUFFER_SIZE, 0};
        left = ZSTD_compressStream2(w->zstd, &to, &in, mode);
        CHECK(!ZSTD_isError(left));
        (void)!emit(w, slice_of(w->buffer, to.pos));
    }
    return w->failed;
}

static enum err writer_write(struct snap_sink *sink, struct slice bytes)
{
    struct snap_writer *w = (struct snap_writer *)sink;
    w->plain_size += bytes.size;
    return compress(w, bytes, ZSTD_e_continue);
}

struct snap_writer *snap_writer_new(struct snap_sink *out,
                                    const struct snap_label *label)
{
    struct snap_writer *w = mem_alloc(sizeof *w);
    w->sink.write = writer_write;
    w->out = out;
    w->zstd = ZSTD_createCCtx();
    CHECK(w->zstd != NULL);
    CHECK(
        !ZSTD_isError(ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1)));
    CHECK(!ZSTD_isError(
        ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, LEVEL)));
    emit_head(w, label);
    return w;
}

struct snap_sink *snap_writer_sink(struct snap_writer *w)
{
    return &w->sink;
}

enum err snap_writer_finish(struct snap_writer *w)
{
    enum err rc = compress(w, slice_of(NULL, 0), ZSTD_e_end);
    if (rc != ERR_OK) {
        return rc;
    }
    uint8_t end[END_SIZE];
    set_u64(end, END_MAGIC);
    set_u64(end + 8, w->plain_size);
    set_u32(end + 16, crc32c(w->crc, slice_of(end, 16)));
    return emit(w, slice_of(end, END_SIZE));
}

void snap_writer_free(struct snap_writer *w)
{
    ZSTD_freeCCtx(w->zstd);
    mem_free(w);
}

/* --- Reader */

struct snap_reader {
    struct snap_source source; /* first: what the user reads from */
    struct snap_source *in;
    ZSTD_DCtx *zstd;
    uint32_t crc;
    uint64_t plain_size;
    enum err failed;
    bool ended; /* the frame is whole, and the end mark was right */
    ZSTD_inBuffer held;
    uint8_t buffer[BUFFER_SIZE];
};

/* Exactly `size` bytes from what is held, then from below. */
static enum err take(struct snap_reader *r, void *to, size_t size)
{
    uint8_t *at = to;
    while (size > 0) {
        size_t n = r->held.size - r->held.pos;
        n = n < size ? n : size;
        if (n > 0) {
            memcpy(at, r->buffer + r->held.pos, n);
            r->held.pos += n;
        } else {
            enum err rc = r->in->read(r->in, at, size, &n);
            if (rc != ERR_OK) {
                return rc;
            }
            if (n == 0) {
                return ERR_CORRUPT;
            }
        }
        at += n;
        size -= n;
    }
    return ERR_OK;
}

static enum err read_head(struct snap_reader *r, struct snap_label *label)
{
    uint8_t head[HEAD_FIXED_SIZE + CONF_SIZE_MAX + 4];
    enum err rc = take(r, head, HEAD_FIXED_SIZE);
    if (rc != ERR_OK) {
        return rc;
    }
    uint32_t conf_size = get_u32(head + 12);
    if (get_u64(head) != HEAD_MAGIC || conf_size > CONF_SIZE_MAX) {
        return ERR_CORRUPT;
    }
    if (get_u32(head + 8) != VERSION) {
        return ERR_VERSION;
    }
    rc = take(r, head + HEAD_FIXED_SIZE, conf_size + 4);
    if (rc != ERR_OK) {
        return rc;
    }
    size_t size = HEAD_FIXED_SIZE + conf_size;
    if (get_u32(head + size) != crc32c(0, slice_of(head, size))) {
        return ERR_CORRUPT;
    }
    label->index = get_u64(head + 16);
    label->term = get_u64(head + 24);
    r->crc = crc32c(0, slice_of(head, size + 4));
    return raft_conf_decode(slice_of(head + HEAD_FIXED_SIZE, conf_size),
                            &label->conf);
}

static enum err read_end(struct snap_reader *r)
{
    uint8_t end[END_SIZE];
    uint8_t more = 0;
    enum err rc = take(r, end, END_SIZE);
    if (rc != ERR_OK) {
        return rc;
    }
    if (get_u64(end) != END_MAGIC || get_u64(end + 8) != r->plain_size ||
        get_u32(end + 16) != crc32c(r->crc, slice_of(end, 16))) {
        return ERR_CORRUPT;
    }
    if (take(r, &more, 1) != ERR_CORRUPT) {
        return ERR_CORRUPT; /* something follows the end */
    }
    r->ended = true;
    return ERR_OK;
}

static enum err refill(struct snap_reader *r)
{
    size_t n = 0;
    enum err rc = r->in->read(r->in, r->buffer, BUFFER_SIZE, &n);
    if (rc == ERR_OK && n == 0) {
        rc = ERR_CORRUPT; /* cut short */
    }
    r->held = (ZSTD_inBuffer){r->buffer, n, 0};
    return rc;
}

static enum err reader_read(struct snap_source *source, void *to,
                            size_t size_max, size_t *size)
{
    struct snap_reader *r = (struct snap_reader *)source;
    ZSTD_outBuffer out = {to, size_max, 0};
    while (r->failed == ERR_OK && !r->ended && out.pos == 0 && size_max > 0) {
        /* Before more input: what zstd still holds from the last call. */
        size_t from = r->held.pos;
        size_t left = ZSTD_decompressStream(r->zstd, &out, &r->held);
        r->crc = crc32c(r->crc, slice_of(r->buffer + from, r->held.pos - from));
        r->plain_size += out.pos;
        if (ZSTD_isError(left)) {
            r->failed = ERR_CORRUPT;
        } else if (left == 0) {
            r->failed = read_end(r);
        } else if (out.pos == 0 && r->held.pos == r->held.size) {
            r->failed = refill(r);
        }
    }
    if (r->failed == ERR_OK) {
        *size = out.pos;
    }
    return r->failed;
}

enum err snap_reader_new(struct snap_source *in, struct snap_label *label,
                         struct snap_reader **out)
{
    struct snap_reader *r = mem_alloc(sizeof *r);
    r->source.read = reader_read;
    r->in = in;
    r->held = (ZSTD_inBuffer){r->buffer, 0, 0};
    r->zstd = ZSTD_createDCtx();
    CHECK(r->zstd != NULL);
    enum err rc = read_head(r, label);
    if (rc != ERR_OK) {
        snap_reader_free(r);
        return rc;
    }
    *out = r;
    return ERR_OK;
}

struct snap_source *snap_reader_source(struct snap_reader *r)
{
    return &r->source;
}

void snap_reader_free(struct snap_reader *r)
{
    ZSTD_freeDCtx(r->zstd);
    mem_free(r);
}
