/* Bytes on their way to the last segment's file: zeros ahead of short writes,
 * behind long ones; and what of them goes again on a full disk. The invariants
 * are on top of wal.c. */
#include "raft/storage/wal_int.h"

static const uint8_t zeros[256 << 10];

static void filled_to(struct wal *w, uint64_t end)
{
    w->filled = end;
    w->held = w->held > end ? w->held : end;
}

enum err wal_fill(struct wal *w, uint64_t to)
{
    enum err rc = ERR_OK;
    while (w->filled < to && rc == ERR_OK) {
        uint64_t left = to - w->filled;
        struct slice part =
            slice_of(zeros, left < sizeof zeros ? (size_t)left : sizeof zeros);
        rc = w->disk->ops->write(w->file, w->filled, &part, 1);
        if (rc == ERR_OK) {
            filled_to(w, w->filled + part.size);
        }
    }
    return rc;
}

/* Zeros ahead of the write, so that an append changes no file size and its
 * fdatasync writes no metadata; and so that a full disk shows here (6). They
 * need no sync of their own. */
static enum err fill_ahead(struct wal *w, uint64_t end)
{
    if (end <= w->filled) {
        return ERR_OK;
    }
    uint64_t to = end + w->fill_size;
    to = to < w->segment_size ? to : w->segment_size;
    to = to > end ? to : end;
    /* First what must be: a disk with too little for more takes that. */
    enum err rc = wal_fill(w, end);
    if (rc == ERR_OK) {
        rc = wal_fill(w, to);
        rc = rc == ERR_NOSPACE ? ERR_OK : rc;
    }
    return rc;
}

/* How many zeros go behind a long write that ends at `end`. Only `keep`: there
 * the metadata is little, and more zeros would double the bytes. Where the file
 * is long enough already, none but to the end of the page: of a page that is
 * written whole the kernel need not read the old bytes first. */
static size_t zeros_behind(const struct wal *w, uint64_t end, size_t keep)
{
    uint64_t page = w->fill_size < WAL_PAGE_SIZE ? w->fill_size : WAL_PAGE_SIZE;
    uint64_t rest = (page - end % page) % page;
    size_t size = end + keep + page <= w->held ? (size_t)rest : keep;
    return end + size > w->filled ? size : 0;
}

enum err wal_write_long(struct wal *w, struct wal_out *out, size_t keep)
{
    uint64_t end = w->end + out->size;
    size_t behind = zeros_behind(w, end, keep);
    uint32_t count = 0;
    const struct slice *parts =
        wal_out_parts(out, slice_of(zeros, behind), &count);
    w->unsynced = true;
    enum err rc = w->disk->ops->write(w->file, w->end, parts, count);
    if (rc == ERR_OK && end + behind > w->filled) {
        filled_to(w, end + behind);
    }
    return rc;
}

enum err wal_write_short(struct wal *w, struct wal_out *out, size_t keep)
{
    enum err rc = fill_ahead(w, w->end + out->size + keep);
    if (rc != ERR_OK) {
        return rc;
    }
    w->unsynced = true;
    uint32_t count = 0;
    const struct slice *parts = wal_out_parts(out, slice_of(NULL, 0), &count);
    return w->disk->ops->write(w->file, w->end, parts, count);
}

enum err wal_flush_by(struct wal *w, struct wal_out *out, size_t keep,
                      wal_write_fn *write)
{
    if (out->size == 0) {
        return ERR_OK;
    }
    enum err rc = write(w, out, keep);
    if (rc == ERR_OK) {
        w->end += out->size;
        w->stats.bytes += out->size;
        wal_out_clear(out);
    }
    return rc;
}

enum err wal_flush(struct wal *w, struct wal_out *out, size_t keep)
{
    return wal_flush_by(w, out, keep,
                        out->size < WAL_FILL_UNDER && out->size < w->fill_size
                            ? wal_write_short
                            : wal_write_long);
}

enum err wal_final(enum err rc)
{
    return rc == ERR_OK ? ERR_OK : ERR_IO;
}

enum err wal_sync_file(struct wal *w)
{
    w->stats.syncs++;
    enum err rc = wal_final(w->disk->ops->sync(w->file));
    if (rc == ERR_OK) {
        w->unsynced = false;
    }
    return rc;
}

/* Left there, what was written could join up with the next group commit. The
 * next call may have the spare's room. */
enum err wal_take_back(struct wal *w, uint64_t batch)
{
    enum err rc = wal_drop_spare(w);
    if (rc != ERR_OK || !w->unsynced) {
        return rc == ERR_OK ? ERR_NOSPACE : rc;
    }
    w->end = w->filled = w->held = batch;
    rc = wal_final(w->disk->ops->truncate(w->file, batch));
    if (rc == ERR_OK) {
        rc = wal_sync_file(w);
    }
    if (rc == ERR_OK) {
        rc = fill_ahead(w, batch + w->reserve); /* or nearly: (7) */
    }
    return rc == ERR_OK ? ERR_NOSPACE : rc;
}
