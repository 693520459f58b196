/* Looking up, reading and setting attributes. */
#include "base/check.h"
#include "fs/fs_int.h"

void fs_txn_read_attr(struct fs_txn *t, uint64_t ino)
{
    fs_txn_add(t, SKV_GET, fs_key_attr(t, ino))->number = FS_ATTR_SIZE;
    fs_txn_add(t, SKV_LENGTH, fs_key_content(t, ino));
}

enum err fs_txn_decode_attr(struct fs_txn *t, uint32_t item, uint64_t ino,
                            struct fs_attr *out)
{
    const struct skv_result *attr = fs_txn_result(t, item);
    const struct skv_result *length = fs_txn_result(t, item + 1);
    if (attr->rc != ERR_OK) {
        return attr->rc == ERR_NOTFOUND ? ERR_STALE : err_from_wire(attr->rc);
    }
    if (length->rc != ERR_OK && length->rc != ERR_NOTFOUND) {
        return err_from_wire(length->rc);
    }
    enum err rc = fs_attr_decode(attr->data, out);
    if (rc != ERR_OK) {
        return rc;
    }
    out->ino = ino;
    out->size = length->rc == ERR_OK ? length->number : 0;
    fs_hint_keep(t->call->fs, out);
    return ERR_OK;
}

enum err fs_attr_read(struct fs_call *call, uint64_t ino, struct fs_attr *out)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_read_attr(&t, ino);
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        rc = fs_txn_decode_attr(&t, 0, ino, out);
    }
    fs_txn_fini(&t);
    return rc;
}

/* One transaction reads the entry and, through it, the inode. */
static void entry_items(struct fs_txn *t, uint64_t parent, const char *name)
{
    struct slice entry = fs_key_entry(t, parent, name);
    fs_txn_add(t, SKV_GET, entry)->number = FS_ENTRY_SIZE;
    static const uint8_t attr = FS_KEY_ATTR;
    static const uint8_t content = FS_KEY_CONTENT;
    struct skv_item *item = fs_txn_add(t, SKV_GET, slice_of(&attr, 1));
    item->via = entry;
    item->number = FS_ATTR_SIZE;
    item = fs_txn_add(t, SKV_LENGTH, slice_of(&content, 1));
    item->via = entry;
}

/* *elsewhere: the inode is in another shard and still to be read. */
static enum err entry_decode(struct fs_txn *t, struct fs_entry *out,
                             bool *elsewhere)
{
    const struct skv_result *entry = fs_txn_result(t, 0);
    *elsewhere = false;
    out->found = entry->rc == ERR_OK;
    if (!out->found) {
        return entry->rc == ERR_NOTFOUND ? ERR_OK : err_from_wire(entry->rc);
    }
    uint32_t type;
    enum err rc = fs_entry_decode(entry->data, &out->ino, &type);
    if (rc != ERR_OK) {
        return rc;
    }
    fs_entry_encode(out->ino, type, out->bytes);
    *elsewhere = fs_txn_result(t, 1)->rc == ERR_ELSEWHERE;
    if (*elsewhere) {
        return ERR_OK;
    }
    rc = fs_txn_decode_attr(t, 1, out->ino, &out->attr);
    /* Both were read at one moment: an entry without its inode is damage. */
    return rc == ERR_STALE ? ERR_CORRUPT : rc;
}

static enum err entry_read_once(struct fs_call *call, uint64_t parent,
                                const char *name, struct fs_entry *out)
{
    bool elsewhere = false;
    struct fs_txn t;
    fs_txn_init(&t, call);
    entry_items(&t, parent, name);
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        rc = entry_decode(&t, out, &elsewhere);
    }
    fs_txn_fini(&t);
    if (rc == ERR_OK && elsewhere) {
        rc = fs_attr_read(call, out->ino, &out->attr);
    }
    return rc;
}

enum err fs_entry_read(struct fs_call *call, uint64_t parent, const char *name,
                       struct fs_entry *out)
{
    struct fs_retry retry = {0};
    for (;;) {
        enum err rc = entry_read_once(call, parent, name, out);
        if (rc != ERR_STALE) {
            return rc;
        }
        /* The name went between the two reads: look again. */
        rc = fs_retry_pause(call, &retry);
        if (rc != ERR_OK) {
            return rc;
        }
    }
}

enum err fs_lookup(struct fs_call *call, uint64_t parent, const char *name,
                   struct fs_attr *out)
{
    if (fs_name_check(name) == ERR_NAMETOOLONG) {
        return ERR_NAMETOOLONG;
    }
    struct fs_entry entry;
    enum err rc = fs_entry_read(call, parent, name, &entry);
    if (rc == ERR_OK && !entry.found) {
        rc = ERR_NOTFOUND;
    }
    if (rc == ERR_OK && fs_open_pending(call->fs, entry.ino)) {
        rc = fs_getattr(call, entry.ino, &entry.attr);
    }
    if (rc == ERR_OK) {
        *out = entry.attr;
    }
    return rc;
}

enum err fs_getattr(struct fs_call *call, uint64_t ino, struct fs_attr *out)
{
    enum err rc = fs_open_settle(call, ino);
    return rc == ERR_OK ? fs_attr_read(call, ino, out) : rc;
}

/* ---- setattr ---- */

/* What POSIX and Linux take away with the right to be somebody else:
 * set-user-id always; set-group-id only where the group may execute, for
 * without that bit it once meant mandatory locking. */
static uint32_t mode_without_setid(uint32_t mode)
{
    if (!S_ISREG(mode)) {
        return mode;
    }
    mode &= ~(uint32_t)S_ISUID;
    if ((mode & S_IXGRP) != 0) {
        mode &= ~(uint32_t)S_ISGID;
    }
    return mode;
}

uint32_t fs_mode_written(const struct fs_call *call, uint32_t mode)
{
    return call->uid == 0 ? mode : mode_without_setid(mode);
}

static enum err setattr_check(const struct fs_attr *old,
                              const struct fs_attr *want, uint32_t set)
{
    if ((set & FS_SET_SIZE) == 0) {
        return ERR_OK;
    }
    if (S_ISDIR(old->mode)) {
        return ERR_ISDIR;
    }
    if (!S_ISREG(old->mode)) {
        return ERR_INVALID;
    }
    return want->size > SKV_VALUE_SIZE_MAX ? ERR_TOOBIG : ERR_OK;
}

static struct fs_attr setattr_merge(const struct fs_call *call,
                                    const struct fs_attr *old,
                                    const struct fs_attr *want, uint32_t set)
{
    struct fs_attr new = *old;
    new.ctime = fs_now();
    if ((set & FS_SET_MODE) != 0) {
        new.mode = (old->mode & S_IFMT) | (want->mode & 07777u);
    } else if ((set & (FS_SET_UID | FS_SET_GID)) != 0) {
        new.mode = mode_without_setid(old->mode);
    }
    new.uid = (set & FS_SET_UID) != 0 ? want->uid : old->uid;
    new.gid = (set & FS_SET_GID) != 0 ? want->gid : old->gid;
    if ((set & FS_SET_SIZE) != 0) {
        new.size = want->size;
        new.mtime = new.ctime;
        new.mode = fs_mode_written(call, new.mode);
    }
    new.mtime = (set & FS_SET_MTIME) != 0 ? want->mtime : new.mtime;
    new.atime = (set & FS_SET_ATIME) != 0 ? want->atime : new.atime;
    return new;
}

/* The owner is compared whenever it, or the mode, is in play, so that two
 * changes at once do not mix; times alone never conflict. */
static enum err setattr_run(struct fs_call *call, const struct fs_attr *old,
                            const struct fs_attr *new, uint32_t set)
{
    bool owner = (set & (FS_SET_MODE | FS_SET_UID | FS_SET_GID)) != 0 ||
                 new->mode != old->mode;
    struct fs_txn t;
    fs_txn_init(&t, call);
    if (owner) {
        fs_txn_owner(&t, old);
        fs_txn_put_u32(&t, old->ino, FS_ATTR_MODE, new->mode);
        fs_txn_put_u32(&t, old->ino, FS_ATTR_UID, new->uid);
        fs_txn_put_u32(&t, old->ino, FS_ATTR_GID, new->gid);
    } else {
        fs_txn_exists(&t, old->ino);
    }
    if ((set & FS_SET_SIZE) != 0) {
        fs_txn_add(&t, SKV_TRUNCATE, fs_key_content(&t, old->ino))->number =
            new->size;
    }
    if ((set & (FS_SET_SIZE | FS_SET_MTIME)) != 0) {
        fs_txn_put_time(&t, old->ino, FS_ATTR_MTIME, new->mtime);
    }
    if ((set & FS_SET_ATIME) != 0) {
        fs_txn_put_time(&t, old->ino, FS_ATTR_ATIME, new->atime);
    }
    fs_txn_put_time(&t, old->ino, FS_ATTR_CTIME, new->ctime);
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc;
}

static enum err setattr_once(struct fs_call *call, uint64_t ino,
                             const struct fs_attr *want, uint32_t set,
                             struct fs_attr *out)
{
    struct fs_attr old;
    enum err rc = fs_attr_read(call, ino, &old);
    if (rc == ERR_OK) {
        rc = setattr_check(&old, want, set);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct fs_attr new = setattr_merge(call, &old, want, set);
    rc = setattr_run(call, &old, &new, set);
    if (rc == ERR_OK) {
        fs_hint_drop(call->fs, ino);
        fs_open_note_mode(call->fs, ino, new.mode);
        *out = new;
    }
    return rc;
}

enum err fs_setattr(struct fs_call *call, uint64_t ino,
                    const struct fs_attr *want, uint32_t set,
                    struct fs_attr *out)
{
    struct fs_retry retry = {0};
    enum err rc = fs_open_settle(call, ino);
    while (rc == ERR_OK) {
        rc = setattr_once(call, ino, want, set, out);
        if (rc != ERR_CONFLICT) {
            return rc;
        }
        rc = fs_retry_pause(call, &retry);
    }
    return rc;
}
