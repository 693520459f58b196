/* Cutting by content: a hash rolls over the last 64 bytes (the "gear" of
 * FastCDC, ATC'16), and where its upper bits are all zero a piece ends. So an
 * insertion or a change moves only the ends next to it. The names must be
 * SHA-256, and not a mere checksum: clients write the bytes, and two different
 * pieces of one name would make replicas differ. */
#include "raft/storage/snapfile.h"

#include <openssl/sha.h>
#include <string.h>
#include <zstd.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/rng.h"

#define MANIFEST_MAGIC UINT64_C(0x3250414e534f4c46) /* "FLOSNAP2" */
#define GEAR_SEED      UINT64_C(0x666c6f74696c6c61)

/* Manifest:
 *   offset size field
 *        0    8 magic
 *        8    4 version
 *       12    4 conf_size
 *       16    8 index
 *       24    8 term
 *       32    4 count
 *       36      conf, then the names, then CRC-32C of all before it (4) */
enum {
    HEAD_SIZE = 36,
    CONF_SIZE_MAX = 4096,
    VERSION = 2,
    LEVEL = 1, /* several times the speed of the default, a little larger */
    GEAR_SIZE = 256,
};
_Static_assert(sizeof(struct snap_id) == SHA256_DIGEST_LENGTH, "a name");

static void name_piece(struct slice plain, struct snap_id *id)
{
    SHA256(plain.data, plain.size, id->bytes);
}

/* --- Cutter */

struct snap_cutter {
    struct snap_sink sink; /* first: what the user writes to */
    snap_piece_fn *piece;
    void *arg;
    enum err failed;
    size_t size_min, size_max;
    uint64_t mask;
    uint64_t gear[GEAR_SIZE];
    uint64_t hash;
    struct buf plain; /* of the piece being gathered */
    struct buf packed;
    ZSTD_CCtx *zstd;
};

static void emit(struct snap_cutter *c)
{
    struct snap_id id;
    size_t bound = ZSTD_compressBound(c->plain.size);
    buf_clear(&c->packed);
    uint8_t *to = buf_extend(&c->packed, bound);
    size_t size =
        ZSTD_compress2(c->zstd, to, bound, c->plain.data, c->plain.size);
    CHECK(!ZSTD_isError(size));
    name_piece(buf_slice(&c->plain), &id);
    c->failed = c->piece(c->arg, &id, slice_of(to, size));
    buf_clear(&c->plain);
    c->hash = 0;
}

/* How many of these bytes still belong to the piece; `*ends`: with them it is
 * whole. */
static size_t take(struct snap_cutter *c, struct slice bytes, bool *ends)
{
    size_t room = c->size_max - c->plain.size;
    size_t limit = bytes.size < room ? bytes.size : room;
    size_t at = c->plain.size < c->size_min ? c->size_min - c->plain.size : 0;
    at = at < limit ? at : limit; /* the hash begins where it may end */
    uint64_t hash = c->hash;
    while (at < limit) {
        hash = (hash << 1) + c->gear[bytes.data[at++]];
        if ((hash & c->mask) == 0) {
            *ends = true;
            return at;
        }
    }
    c->hash = hash;
    *ends = limit == room;
    return at;
}

static enum err cutter_write(struct snap_sink *sink, struct slice bytes)
{
    struct snap_cutter *c = (struct snap_cutter *)sink;
    while (bytes.size > 0 && c->failed == ERR_OK) {
        bool ends = false;
        size_t size = take(c, bytes, &ends);
        buf_append(&c->plain, bytes.data, size);
        bytes = slice_of(bytes.data + size, bytes.size - size);
        if (ends) {
            emit(c);
        }
    }
    return c->failed;
}

/* As many upper bits as halve to one place in `size`. */
static uint64_t mask_of(size_t size)
{
    uint64_t mask = 0;
    for (; size > 1; size /= 2) {
        mask = mask >> 1 | UINT64_C(1) << 63;
    }
    return mask;
}

struct snap_cutter *snap_cutter_new(size_t piece_size, snap_piece_fn *piece,
                                    void *arg)
{
    struct snap_cutter *c = mem_alloc(sizeof *c);
    struct rng rng = {.state = GEAR_SEED};
    piece_size = piece_size != 0 ? piece_size : SNAP_PIECE_SIZE_DEFAULT;
    CHECK(piece_size <= SNAP_PIECE_SIZE_MAX / 4);
    c->sink.write = cutter_write;
    c->piece = piece;
    c->arg = arg;
    c->size_min = piece_size / 4;
    c->size_max = piece_size * 4;
    c->mask = mask_of(piece_size);
    for (int i = 0; i < GEAR_SIZE; i++) {
        c->gear[i] = rng_next(&rng);
    }
    c->zstd = ZSTD_createCCtx();
    CHECK(c->zstd != NULL);
    CHECK(
        !ZSTD_isError(ZSTD_CCtx_setParameter(c->zstd, ZSTD_c_checksumFlag, 1)));
    CHECK(!ZSTD_isError(
        ZSTD_CCtx_setParameter(c->zstd, ZSTD_c_compressionLevel, LEVEL)));
    return c;
}

struct snap_sink *snap_cutter_sink(struct snap_cutter *c)
{
    return &c->sink;
}

enum err snap_cutter_finish(struct snap_cutter *c)
{
    if (c->failed == ERR_OK && c->plain.size > 0) {
        emit(c);
    }
    return c->failed;
}

void snap_cutter_free(struct snap_cutter *c)
{
    ZSTD_freeCCtx(c->zstd);
    buf_free(&c->plain);
    buf_free(&c->packed);
    mem_free(c);
}

/* --- A piece */

struct snap_unpacker {
    ZSTD_DCtx *zstd;
    struct buf plain;
};

struct snap_unpacker *snap_unpacker_new(void)
{
    struct snap_unpacker *u = mem_alloc(sizeof *u);
    u->zstd = ZSTD_createDCtx();
    CHECK(u->zstd != NULL);
    return u;
}

void snap_unpacker_free(struct snap_unpacker *u)
{
    ZSTD_freeDCtx(u->zstd);
    buf_free(&u->plain);
    mem_free(u);
}

enum err snap_unpack(struct snap_unpacker *u, const struct snap_id *id,
                     struct slice packed, struct slice *plain)
{
    unsigned long long size =
        ZSTD_getFrameContentSize(packed.data, packed.size);
    if (size > SNAP_PIECE_SIZE_MAX) { /* unknown and damaged are, too */
        return ERR_CORRUPT;
    }
    buf_clear(&u->plain);
    uint8_t *to = buf_extend(&u->plain, (size_t)size);
    size_t got = ZSTD_decompressDCtx(u->zstd, to, (size_t)size, packed.data,
                                     packed.size);
    struct snap_id found;
    name_piece(buf_slice(&u->plain), &found);
    if (got != size || memcmp(found.bytes, id->bytes, SNAP_ID_SIZE) != 0) {
        return ERR_CORRUPT;
    }
    *plain = buf_slice(&u->plain);
    return ERR_OK;
}

/* --- The manifest */

void snap_manifest_encode(struct buf *b, const struct snap_manifest *m)
{
    struct buf conf = {0};
    raft_conf_encode(&conf, &m->label.conf);
    CHECK(conf.size <= CONF_SIZE_MAX);
    CHECK(m->count <= SNAP_PIECES_MAX);
    CHECK(b->size == 0);
    enc_u64(b, MANIFEST_MAGIC);
    enc_u32(b, VERSION);
    enc_u32(b, (uint32_t)conf.size);
    enc_u64(b, m->label.index);
    enc_u64(b, m->label.term);
    enc_u32(b, m->count);
    buf_append(b, conf.data, conf.size);
    buf_append(b, m->ids, (size_t)m->count * SNAP_ID_SIZE);
    enc_u32(b, crc32c(0, buf_slice(b)));
    buf_free(&conf);
}

enum err snap_manifest_decode(struct slice bytes, struct snap_manifest *m)
{
    const uint8_t *p = bytes.data;
    if (bytes.size < HEAD_SIZE + 4 || get_u64(p) != MANIFEST_MAGIC) {
        return ERR_CORRUPT;
    }
    if (get_u32(p + 8) != VERSION) {
        return ERR_VERSION;
    }
    uint32_t conf_size = get_u32(p + 12);
    uint32_t count = get_u32(p + 32);
    size_t end = bytes.size - 4;
    if (conf_size > CONF_SIZE_MAX || count > SNAP_PIECES_MAX ||
        end != HEAD_SIZE + conf_size + (size_t)count * SNAP_ID_SIZE ||
        get_u32(p + end) != crc32c(0, slice_of(p, end))) {
        return ERR_CORRUPT;
    }
    struct snap_manifest got = {
        .label = {.index = get_u64(p + 16), .term = get_u64(p + 24)},
        .ids = (const struct snap_id *)(p + HEAD_SIZE + conf_size),
        .count = count,
    };
    enum err rc =
        raft_conf_decode(slice_of(p + HEAD_SIZE, conf_size), &got.label.conf);
    if (rc == ERR_OK) {
        *m = got;
    }
    return rc;
}
