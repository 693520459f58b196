/* Reading and writing content. */
#include <linux/falloc.h>

#include "base/check.h"
#include "fs/fs_int.h"

/* ---- reading ---- */

enum err fs_read(struct fs_call *call, struct fs_file *file, uint64_t offset,
                 size_t size, struct arena *arena, struct slice *out)
{
    uint64_t ino = fs_open_ino(file->open);
    enum err rc = fs_open_settle(call, ino);
    if (rc != ERR_OK) {
        return rc;
    }
    *out = slice_of(NULL, 0);
    if (offset >= SKV_VALUE_SIZE_MAX) {
        return ERR_OK;
    }
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_exists(&t, ino);
    struct skv_item *get = fs_txn_add(&t, SKV_GET, fs_key_content(&t, ino));
    get->offset = offset;
    get->number = size < FS_IO_SIZE_MAX ? size : FS_IO_SIZE_MAX;
    rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        const struct skv_result *got = fs_txn_result(&t, 1);
        if (got->rc == ERR_OK) {
            *out = arena_copy(arena, got->data);
        } else if (got->rc != ERR_NOTFOUND) { /* that is an empty file */
            rc = err_from_wire(got->rc);
        }
    }
    fs_txn_fini(&t);
    return rc == ERR_CONFLICT ? ERR_STALE : rc;
}

/* ---- changing ---- */

/* What one change of content does; all in one transaction with the times and,
 * for a writer who is not root, the clearing of set-id bits. */
struct change {
    struct fs_open *open;
    enum skv_kind kind; /* of the write to the content */
    uint64_t offset;
    uint64_t number;
    struct slice data;
    bool no_touch;
    /* Only if the length is still this; with `extend`, it then becomes
     * `extend_to`. */
    bool check_length;
    bool has_content;
    uint64_t length;
    bool extend;
    uint64_t extend_to;
    uint64_t result;
};

static void change_length(struct fs_txn *t, const struct change *c)
{
    struct slice key = fs_key_content(t, fs_open_ino(c->open));
    if (!c->check_length) {
        return;
    }
    if (c->has_content) {
        fs_txn_add(t, SKV_CMP_LENGTH, key)->number = c->length;
    } else {
        fs_txn_add(t, SKV_CMP_ABSENT, key);
    }
    if (c->extend) {
        fs_txn_add(t, SKV_TRUNCATE, key)->number = c->extend_to;
    }
}

static enum err change_run(struct fs_call *call, struct change *c,
                           const struct fs_attr *owner)
{
    uint64_t ino = fs_open_ino(c->open);
    struct fs_txn t;
    fs_txn_init(&t, call);
    if (owner != NULL) {
        fs_txn_owner(&t, owner);
        fs_txn_put_u32(&t, ino, FS_ATTR_MODE,
                       fs_mode_written(call, owner->mode));
    } else {
        fs_txn_exists(&t, ino);
    }
    change_length(&t, c);
    uint32_t at = t.count;
    if (c->kind != 0) {
        struct skv_item *item =
            fs_txn_add(&t, c->kind, fs_key_content(&t, ino));
        item->offset = c->offset;
        item->number = c->number;
        item->data = c->data;
    }
    fs_txn_touch(&t, ino, fs_now());
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        c->result = fs_txn_result(&t, at)->number;
    }
    fs_txn_fini(&t);
    return rc;
}

/* Once, with the set-id bits in mind. ERR_CONFLICT: something compared has
 * changed; if it was only that the file is gone, ERR_STALE. */
static enum err change_once(struct fs_call *call, struct change *c)
{
    if (call->uid == 0 || !fs_open_setid(call->fs, c->open)) {
        enum err rc = change_run(call, c, NULL);
        return rc == ERR_CONFLICT && !c->check_length ? ERR_STALE : rc;
    }
    struct fs_attr attr;
    enum err rc = fs_attr_read(call, fs_open_ino(c->open), &attr);
    if (rc == ERR_OK) {
        rc = change_run(call, c, &attr);
    }
    if (rc == ERR_OK) {
        fs_open_note_mode(call->fs, attr.ino, fs_mode_written(call, attr.mode));
    }
    return rc;
}

static enum err change(struct fs_call *call, struct change *c)
{
    struct fs_retry retry = {0};
    for (;;) {
        enum err rc = change_once(call, c);
        if (rc != ERR_CONFLICT || c->check_length) {
            return rc;
        }
        rc = fs_retry_pause(call, &retry);
        if (rc != ERR_OK) {
            return rc;
        }
    }
}

enum err fs_content_truncate(struct fs_call *call, struct fs_open *o)
{
    struct change c = {.open = o, .kind = SKV_TRUNCATE};
    return change(call, &c);
}

static enum err write_check(uint64_t offset, struct slice data, bool append)
{
    if (data.size > FS_IO_SIZE_MAX) {
        return ERR_INVALID;
    }
    if (!append && (offset > SKV_VALUE_SIZE_MAX ||
                    data.size > SKV_VALUE_SIZE_MAX - offset)) {
        return ERR_TOOBIG;
    }
    return ERR_OK;
}

/* *landed is set for an append. */
static enum err write_into(struct fs_call *call, struct fs_open *o,
                           uint64_t offset, struct slice data, bool append,
                           uint64_t *landed)
{
    struct change c = {.open = o, .data = data};
    c.kind = append ? SKV_APPEND : SKV_PUT_RANGE;
    c.offset = append ? 0 : offset;
    enum err rc = change(call, &c);
    if (rc == ERR_OK && append) {
        *landed = c.result;
    }
    return rc;
}

/* `first`: only if there is no content yet; else ERR_CONFLICT. */
static enum err write_whole(struct fs_call *call, struct fs_open *o,
                            struct slice data, bool first)
{
    struct change c = {
        .open = o, .kind = SKV_PUT, .data = data, .check_length = first};
    enum err rc = change(call, &c);
    fs_open_wrote(call->fs, o, rc == ERR_OK || first);
    return rc;
}

enum err fs_write(struct fs_call *call, struct fs_file *file, uint64_t offset,
                  struct slice data, bool append, uint64_t *landed)
{
    enum fs_write_how how = FS_WRITE_INTO;
    enum err rc = write_check(offset, data, append);
    *landed = offset;
    if (rc != ERR_OK || data.size == 0) {
        return rc;
    }
    rc = fs_open_write(call, file->open, offset, append, &how);
    if (rc != ERR_OK) {
        return rc;
    }
    if (how != FS_WRITE_INTO) {
        *landed = 0;
        rc = write_whole(call, file->open, data, how == FS_WRITE_FIRST);
    }
    if (how == FS_WRITE_INTO || rc == ERR_CONFLICT) {
        rc = write_into(call, file->open, offset, data, append, landed);
    }
    return rc;
}

/* ---- fallocate ---- */

static enum err length_read(struct fs_call *call, struct change *c)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_add(&t, SKV_LENGTH, fs_key_content(&t, fs_open_ino(c->open)));
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        const struct skv_result *got = fs_txn_result(&t, 0);
        c->has_content = got->rc == ERR_OK;
        c->length = c->has_content ? got->number : 0;
    }
    fs_txn_fini(&t);
    return rc;
}

/* Zeros [offset, offset+size) if `zero`, and grows the file to its end if
 * `grow`. Growing is a truncation, so the length is compared: it must not cut
 * off what somebody appended meanwhile. */
static enum err allocate_once(struct fs_call *call, struct fs_open *o,
                              uint64_t offset, uint64_t size, bool zero,
                              bool grow)
{
    struct change c = {.open = o, .check_length = grow};
    enum err rc = length_read(call, &c);
    if (rc != ERR_OK) {
        return rc;
    }
    c.extend = grow && offset + size > c.length;
    c.extend_to = offset + size;
    if (zero && offset < c.length) {
        uint64_t left = c.length - offset;
        c.kind = SKV_PUNCH;
        c.offset = offset;
        c.number = size < left ? size : left;
    }
    if (c.kind == 0 && !c.extend) {
        return ERR_OK;
    }
    return change(call, &c);
}

static enum err allocate(struct fs_call *call, struct fs_open *o,
                         uint64_t offset, uint64_t size, bool zero, bool grow)
{
    struct fs_retry retry = {0};
    enum err rc = fs_open_settle(call, fs_open_ino(o));
    while (rc == ERR_OK) {
        rc = allocate_once(call, o, offset, size, zero, grow);
        if (rc != ERR_CONFLICT) {
            return rc;
        }
        struct fs_attr attr;
        rc = fs_attr_read(call, fs_open_ino(o), &attr); /* or ERR_STALE */
        if (rc == ERR_OK) {
            rc = fs_retry_pause(call, &retry);
        }
    }
    return rc;
}

enum err fs_fallocate(struct fs_call *call, struct fs_file *file, int mode,
                      uint64_t offset, uint64_t size)
{
    if (size == 0) {
        return ERR_INVALID;
    }
    if (offset > SKV_VALUE_SIZE_MAX || size > SKV_VALUE_SIZE_MAX - offset) {
        return ERR_TOOBIG;
    }
    bool keep = (mode & FALLOC_FL_KEEP_SIZE) != 0;
    switch (mode & ~FALLOC_FL_KEEP_SIZE) {
    case 0: return allocate(call, file->open, offset, size, false, !keep);
    case FALLOC_FL_ZERO_RANGE:
        return allocate(call, file->open, offset, size, true, !keep);
    case FALLOC_FL_PUNCH_HOLE:
        if (keep) {
            return allocate(call, file->open, offset, size, true, false);
        }
        return ERR_NOTSUP;
    default: return ERR_NOTSUP;
    }
}
