/* The pieces of snapshots that this replica has: the file "snap/pieces", to
 * which they are added as they come, and their places in memory. Invariants:
 *
 *  1. What is in the table was found to be what its name says, when it came;
 *     and is looked at again when it is used.
 *  2. Records stand one after the other. A crash may leave anything behind the
 *     last sync: at start the first record that is not whole, and all after it,
 *     are cut off.
 *
 * Record:
 *   offset size field
 *        0    4 crc     CRC-32C of all after it
 *        4    4 size    of the packed bytes
 *        8   32 name
 *       40      packed bytes */
#include "rsm/snap_int.h"

#include <string.h>
#include <uthash.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"

#define PIECES_PATH "snap/pieces"

enum {
    RECORD_HEAD_SIZE = 40,
    SYNC_SIZE = 64 << 20, /* so that the last sync is no long one */
};

struct place {
    struct snap_id id;
    uint64_t offset; /* of the packed bytes */
    uint32_t size;
    UT_hash_handle hh;
};

struct rsm_pieces {
    struct snap_source source;
    struct disk *disk;
    struct disk_file *file; /* NULL: not opened yet */
    uint64_t end, synced;
    struct place *places;
    struct snap_unpacker *unpacker;
    struct buf packed;
    /* The source */
    const struct snap_id *ids;
    uint32_t count;
    uint32_t next; /* set with atomics */
    struct slice left;
};

static struct place *find(const struct rsm_pieces *p, const struct snap_id *id)
{
    struct place *at = NULL;
    HASH_FIND(hh, p->places, id, sizeof *id, at);
    return at;
}

static void add_place(struct rsm_pieces *p, const struct snap_id *id,
                      uint64_t offset, uint32_t size)
{
    if (find(p, id) == NULL) {
        struct place *at = mem_alloc(sizeof *at);
        at->id = *id;
        at->offset = offset;
        at->size = size;
        HASH_ADD(hh, p->places, id, sizeof at->id, at);
    }
}

struct rsm_pieces *rsm_pieces_new(struct disk *disk)
{
    struct rsm_pieces *p = mem_alloc(sizeof *p);
    p->disk = disk;
    p->unpacker = snap_unpacker_new();
    return p;
}

void rsm_pieces_free(struct rsm_pieces *p)
{
    struct place *at, *next;
    HASH_ITER(hh, p->places, at, next)
    {
        HASH_DEL(p->places, at);
        mem_free(at);
    }
    if (p->file != NULL) {
        p->disk->ops->close(p->file);
    }
    snap_unpacker_free(p->unpacker);
    buf_free(&p->packed);
    mem_free(p);
}

void rsm_pieces_forget(struct disk *disk)
{
    /* A left-over is looked at when the next snapshot comes. */
    (void)!disk->ops->remove(disk, PIECES_PATH);
}

/* --- What an earlier life has left */

/* False at the first record that is not whole. */
static bool scan_one(struct rsm_pieces *p, uint64_t file_size, enum err *rc)
{
    uint8_t head[RECORD_HEAD_SIZE];
    if (file_size - p->end < RECORD_HEAD_SIZE) {
        return false;
    }
    *rc = p->disk->ops->read(p->file, p->end, head, sizeof head);
    uint32_t size = *rc == ERR_OK ? get_u32(head + 4) : 0;
    if (*rc != ERR_OK || size > SNAP_PACKED_SIZE_MAX ||
        file_size - p->end - RECORD_HEAD_SIZE < size) {
        return false;
    }
    buf_clear(&p->packed);
    *rc = p->disk->ops->read(p->file, p->end + RECORD_HEAD_SIZE,
                             buf_extend(&p->packed, size), size);
    uint32_t crc = crc32c(0, slice_of(head + 4, RECORD_HEAD_SIZE - 4));
    if (*rc != ERR_OK || get_u32(head) != crc32c(crc, buf_slice(&p->packed))) {
        return false;
    }
    struct snap_id id;
    memcpy(id.bytes, head + 8, SNAP_ID_SIZE);
    add_place(p, &id, p->end + RECORD_HEAD_SIZE, size);
    p->end += RECORD_HEAD_SIZE + size;
    return true;
}

enum err rsm_pieces_open(struct rsm_pieces *p)
{
    uint64_t size = 0;
    if (p->file != NULL) {
        return ERR_OK;
    }
    enum err rc = p->disk->ops->open(p->disk, PIECES_PATH, true, &p->file);
    if (rc != ERR_OK) {
        p->file = NULL;
        return rc;
    }
    rc = p->disk->ops->size(p->file, &size);
    while (rc == ERR_OK && scan_one(p, size, &rc)) {
    }
    if (rc == ERR_OK && p->end < size) {
        rc = p->disk->ops->truncate(p->file, p->end);
    }
    if (rc == ERR_OK && p->end > 0) {
        log_info("rsm", "has pieces of a snapshot that did not end: %u",
                 HASH_COUNT(p->places));
    }
    return rc;
}

/* --- New ones */

bool rsm_pieces_has(const struct rsm_pieces *p, const struct snap_id *id)
{
    return find(p, id) != NULL;
}

enum err rsm_pieces_sync(struct rsm_pieces *p)
{
    if (p->synced == p->end) {
        return ERR_OK;
    }
    enum err rc = p->disk->ops->sync(p->file);
    if (rc == ERR_OK && p->synced == 0) {
        rc = p->disk->ops->sync_dir(p->disk, "snap");
    }
    p->synced = rc == ERR_OK ? p->end : p->synced;
    return rc == ERR_OK ? ERR_OK : ERR_IO; /* a failed sync is final */
}

enum err rsm_pieces_add(struct rsm_pieces *p, const struct snap_id *id,
                        struct slice packed)
{
    struct slice plain;
    uint8_t head[RECORD_HEAD_SIZE];
    if (rsm_pieces_has(p, id)) {
        return ERR_OK;
    }
    if (packed.size > SNAP_PACKED_SIZE_MAX ||
        snap_unpack(p->unpacker, id, packed, &plain) != ERR_OK) {
        return ERR_CORRUPT;
    }
    set_u32(head + 4, (uint32_t)packed.size);
    memcpy(head + 8, id->bytes, SNAP_ID_SIZE);
    uint32_t crc = crc32c(0, slice_of(head + 4, RECORD_HEAD_SIZE - 4));
    set_u32(head, crc32c(crc, packed));
    struct slice parts[2] = {slice_of(head, sizeof head), packed};
    enum err rc = p->disk->ops->write(p->file, p->end, parts, 2);
    if (rc != ERR_OK) {
        return rc;
    }
    add_place(p, id, p->end + RECORD_HEAD_SIZE, (uint32_t)packed.size);
    p->end += RECORD_HEAD_SIZE + packed.size;
    return p->end - p->synced >= SYNC_SIZE ? rsm_pieces_sync(p) : ERR_OK;
}

/* --- The plain bytes */

static enum err next_piece(struct rsm_pieces *p)
{
    const struct snap_id *id = &p->ids[p->next];
    const struct place *at = find(p, id);
    CHECK(at != NULL);
    __atomic_store_n(&p->next, p->next + 1, __ATOMIC_RELAXED);
    buf_clear(&p->packed);
    enum err rc = p->disk->ops->read(
        p->file, at->offset, buf_extend(&p->packed, at->size), at->size);
    return rc == ERR_OK
               ? snap_unpack(p->unpacker, id, buf_slice(&p->packed), &p->left)
               : rc;
}

static enum err source_read(struct snap_source *source, void *to,
                            size_t size_max, size_t *size)
{
    struct rsm_pieces *p = (struct rsm_pieces *)source;
    while (p->left.size == 0 && p->next < p->count) {
        enum err rc = next_piece(p);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    size_t n = p->left.size < size_max ? p->left.size : size_max;
    if (n > 0) {
        memcpy(to, p->left.data, n);
    }
    p->left = slice_of(p->left.data + n, p->left.size - n);
    *size = n;
    return ERR_OK;
}

struct snap_source *rsm_pieces_source(struct rsm_pieces *p,
                                      const struct snap_id *ids, uint32_t count)
{
    p->source.read = source_read;
    p->ids = ids;
    p->count = count;
    __atomic_store_n(&p->next, 0, __ATOMIC_RELAXED);
    p->left = slice_of(NULL, 0);
    return &p->source;
}

uint32_t rsm_pieces_position(const struct rsm_pieces *p)
{
    return __atomic_load_n(&p->next, __ATOMIC_RELAXED);
}
