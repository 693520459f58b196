/* Exact views of blobs, which are written in place: before bytes change that a
 * view may still read, the block they are in is copied to the view's own file.
 * Invariants:
 *
 *  1. A block (BLOCK_SIZE bytes of one blob) is kept at most once for a view,
 *     with what it held when the view was opened: it is kept before the first
 *     change after that.
 *  2. One lock covers keeping and reading a block: a reader that finds it not
 *     kept reads the file before whoever waits to change it goes on.
 *  3. A view that cannot keep a block (no space, too many) fails as a whole;
 *     the write goes on. Nobody stops writing for a reader's sake.
 *
 * Memory: about 100 bytes for each block of 64 KiB that is written to while a
 * view is open, at most KEPT_MAX of them. */
#include "shardkv/store_int.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uthash.h>
#include <utlist.h>

#include "base/check.h"
#include "base/log.h"

#define KEPT_ZEROS UINT64_MAX

enum { BLOCK_SIZE = 64 << 10, KEPT_MAX = 1 << 18 };

struct block_name {
    uint64_t blob;
    uint64_t number; /* offset / BLOCK_SIZE */
};

struct kept {
    struct block_name name;
    uint64_t at; /* in the view's file; KEPT_ZEROS: there is nothing to keep */
    UT_hash_handle hh;
};

struct skv_undo {
    struct skv_blobs *blobs;
    uint64_t next_id;
    int fd;
    uint64_t end; /* of what was kept */
    struct kept *blocks;
    bool failed;
    struct skv_undo *next, *prev;
};

void skv_undos_init(struct skv_undos *all)
{
    pthread_mutex_init(&all->lock, NULL);
}

void skv_undos_fini(struct skv_undos *all)
{
    CHECK(all->list == NULL);
    pthread_mutex_destroy(&all->lock);
}

/* ---- keeping ---- */

/* What of the file is there; zeros behind its end. */
static enum err read_file(int fd, uint64_t offset, uint8_t *to, size_t size)
{
    while (size > 0) {
        ssize_t got = pread(fd, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return skv_system_failed("read", "a blob, for a view");
        }
        if (got == 0) {
            memset(to, 0, size);
            return ERR_OK;
        }
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return ERR_OK;
}

static enum err write_file(int fd, uint64_t offset, const uint8_t *from,
                           size_t size)
{
    while (size > 0) {
        ssize_t wrote = pwrite(fd, from, size, (off_t)offset);
        if (wrote < 0 && errno != EINTR) {
            return skv_system_failed("write", "what a view must keep");
        }
        if (wrote > 0) {
            from += wrote;
            offset += (uint64_t)wrote;
            size -= (size_t)wrote;
        }
    }
    return ERR_OK;
}

static bool is_zero(const uint8_t *data, size_t size)
{
    return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

static struct kept *find(const struct skv_undo *u, uint64_t id, uint64_t number)
{
    struct block_name name = {.blob = id, .number = number};
    struct kept *k = NULL;
    HASH_FIND(hh, u->blocks, &name, sizeof name, k);
    return k;
}

static enum err keep_block(struct skv_undo *u, int fd, uint64_t id,
                           uint64_t number)
{
    uint8_t bytes[BLOCK_SIZE];
    if (find(u, id, number) != NULL) {
        return ERR_OK;
    }
    if (HASH_COUNT(u->blocks) >= KEPT_MAX) {
        log_warn("shardkv", "store: too much was overwritten under a view");
        return ERR_NOSPACE;
    }
    enum err rc = read_file(fd, number * BLOCK_SIZE, bytes, sizeof bytes);
    bool zero = is_zero(bytes, sizeof bytes);
    if (rc == ERR_OK && !zero) {
        rc = write_file(u->fd, u->end, bytes, sizeof bytes);
    }
    if (rc == ERR_OK) {
        struct kept *k = mem_alloc(sizeof *k);
        k->name = (struct block_name){.blob = id, .number = number};
        k->at = zero ? KEPT_ZEROS : u->end;
        u->end += zero ? 0 : sizeof bytes;
        HASH_ADD(hh, u->blocks, name, sizeof k->name, k);
    }
    return rc;
}

/* Of what is cut away, only data counts: a hole stays zeros. */
static void keep_range(struct skv_undo *u, int fd, uint64_t id, uint64_t offset,
                       uint64_t end, bool grows)
{
    uint64_t number = offset / BLOCK_SIZE;
    while (!u->failed && number * BLOCK_SIZE < end) {
        if (!grows) {
            uint64_t from = number * BLOCK_SIZE;
            number = skv_blob_data_from(fd, from, end) / BLOCK_SIZE;
            if (number * BLOCK_SIZE >= end) {
                return;
            }
        }
        u->failed = keep_block(u, fd, id, number) != ERR_OK; /* 3 */
        number++;
    }
}

void skv_undos_keep(struct skv_undos *all, int fd, uint64_t id, uint64_t offset,
                    uint64_t size, bool grows)
{
    struct stat st;
    uint64_t end = offset + size;
    if (__atomic_load_n(&all->count, __ATOMIC_ACQUIRE) == 0 || size == 0) {
        return;
    }
    if (!grows && fstat(fd, &st) == 0 && end > (uint64_t)st.st_size) {
        end = (uint64_t)st.st_size;
    }
    pthread_mutex_lock(&all->lock);
    struct skv_undo *u = NULL;
    DL_FOREACH(all->list, u)
    {
        if (id < u->next_id && offset < end) {
            keep_range(u, fd, id, offset, end, grows);
        }
    }
    pthread_mutex_unlock(&all->lock);
}

/* ---- views ---- */

enum err skv_undo_open(struct skv_blobs *b, uint64_t next_id,
                       struct skv_undo **out)
{
    struct skv_undos *all = skv_blobs_undos(b);
    int dir = skv_blobs_dir_fd(b);
    int fd = openat(dir, "kept", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || unlinkat(dir, "kept", 0) != 0) {
        enum err rc = skv_system_failed("make", "a file for a view");
        if (fd >= 0) {
            close(fd);
        }
        return rc;
    }
    struct skv_undo *u = mem_alloc(sizeof *u);
    u->blobs = b;
    u->next_id = next_id;
    u->fd = fd;
    pthread_mutex_lock(&all->lock);
    DL_APPEND(all->list, u);
    __atomic_add_fetch(&all->count, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&all->lock);
    *out = u;
    return ERR_OK;
}

void skv_undo_close(struct skv_undo *u)
{
    struct skv_undos *all = skv_blobs_undos(u->blobs);
    struct kept *k = NULL;
    struct kept *next = NULL;
    pthread_mutex_lock(&all->lock);
    DL_DELETE(all->list, u);
    __atomic_sub_fetch(&all->count, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&all->lock);
    HASH_ITER(hh, u->blocks, k, next)
    {
        HASH_DEL(u->blocks, k);
        mem_free(k);
    }
    close(u->fd);
    mem_free(u);
}

/* A part of one block. With the lock held. */
static enum err read_part(const struct skv_undo *u, int fd, uint64_t id,
                          uint64_t offset, uint8_t *to, size_t size)
{
    const struct kept *k = find(u, id, offset / BLOCK_SIZE);
    if (u->failed) {
        return ERR_EXPIRED;
    }
    if (k == NULL) {
        return read_file(fd, offset, to, size);
    }
    if (k->at == KEPT_ZEROS) {
        memset(to, 0, size);
        return ERR_OK;
    }
    return read_file(u->fd, k->at + offset % BLOCK_SIZE, to, size);
}

enum err skv_undo_read(struct skv_undo *u, uint64_t id, uint64_t offset,
                       void *to, size_t size)
{
    struct skv_undos *all = skv_blobs_undos(u->blobs);
    uint8_t *at = to;
    int fd = -1;
    enum err rc = skv_blobs_open_file(u->blobs, id, &fd);
    while (rc == ERR_OK && size > 0) {
        size_t part = BLOCK_SIZE - (size_t)(offset % BLOCK_SIZE);
        part = part < size ? part : size;
        pthread_mutex_lock(&all->lock);
        rc = read_part(u, fd, id, offset, at, part); /* 2 */
        pthread_mutex_unlock(&all->lock);
        at += part;
        offset += part;
        size -= part;
    }
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

/* The first kept block with data that lies in a hole of the file now. With the
 * lock held. */
static uint64_t kept_from(const struct skv_undo *u, uint64_t id,
                          uint64_t offset, uint64_t end)
{
    if (u->blocks == NULL) {
        return end;
    }
    while (offset < end) {
        const struct kept *k = find(u, id, offset / BLOCK_SIZE);
        if (k != NULL && k->at != KEPT_ZEROS) {
            return offset;
        }
        offset = (offset / BLOCK_SIZE + 1) * BLOCK_SIZE;
    }
    return end;
}

enum err skv_undo_data_from(struct skv_undo *u, uint64_t id, uint64_t offset,
                            uint64_t length, uint64_t *at)
{
    struct skv_undos *all = skv_blobs_undos(u->blobs);
    int fd = -1;
    enum err rc = skv_blobs_open_file(u->blobs, id, &fd);
    if (rc != ERR_OK) {
        return rc;
    }
    pthread_mutex_lock(&all->lock);
    *at = kept_from(u, id, offset, skv_blob_data_from(fd, offset, length));
    pthread_mutex_unlock(&all->lock);
    close(fd);
    return ERR_OK;
}
