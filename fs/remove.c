/* Taking names away, and what happens to an inode with none left.
 *
 *  1. A name and the link count it stands for go in one transaction.
 *  2. The last name goes together with the whole object, unless this mount has
 *     it open: then the inode stays, marked removed, and a record says which
 *     mount has it, so that it can be deleted if that mount dies.
 *  3. A directory goes only if, in the same transaction, it has no entry; and
 *     its attributes are written, as by whoever makes an entry in it. So of
 *     rmdir and create at once, one fails. */
#include "fs/fs_int.h"

static void unlink_last(struct fs_txn *t, const struct fs_attr *victim,
                        bool open_here, struct timespec now)
{
    uint64_t ino = victim->ino;
    fs_txn_put_u32(t, ino, FS_ATTR_STATE, FS_FORMAT | FS_REMOVED << 16);
    if (open_here) {
        fs_txn_put_u64(t, ino, FS_ATTR_NLINK, 0);
        fs_txn_put_time(t, ino, FS_ATTR_CTIME, now);
        fs_txn_add(t, SKV_PUT,
                   fs_key_orphan(&t->arena, t->call->fs->mount_id, ino));
    } else {
        fs_txn_add(t, SKV_DELETE_PREFIX, fs_key_object(&t->arena, ino));
    }
}

void fs_txn_unlink(struct fs_txn *t, const struct fs_attr *victim,
                   bool open_here, struct timespec now, bool *last)
{
    uint64_t ino = victim->ino;
    if (S_ISDIR(victim->mode)) {
        fs_txn_live(t, ino);
        fs_txn_add(t, SKV_CMP_EMPTY, fs_key_entry(t, ino, ""));
        *last = true;
    } else {
        uint8_t nlink[8];
        set_u64(nlink, victim->nlink);
        fs_txn_bytes(t, fs_key_attr(t, ino), FS_ATTR_NLINK, nlink,
                     sizeof nlink);
        *last = victim->nlink <= 1;
    }
    if (*last) {
        unlink_last(t, victim, open_here, now);
    } else {
        fs_txn_add_nlink(t, ino, -1);
        fs_txn_put_time(t, ino, FS_ATTR_CTIME, now);
    }
}

static enum err remove_run(struct fs_call *call, uint64_t parent,
                           const char *name, const struct fs_entry *entry,
                           bool open_here, bool *last)
{
    struct timespec now = fs_now();
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct slice key = fs_key_entry(&t, parent, name);
    fs_txn_bytes(&t, key, 0, entry->bytes, FS_ENTRY_SIZE);
    fs_txn_unlink(&t, &entry->attr, open_here, now, last);
    fs_txn_add(&t, SKV_DELETE, key);
    fs_txn_touch(&t, parent, now);
    fs_txn_add_nlink(&t, parent, S_ISDIR(entry->attr.mode) ? -1 : 0);
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc;
}

static enum err remove_once(struct fs_call *call, uint64_t parent,
                            const char *name, bool dir)
{
    struct fs_entry entry;
    enum err rc = fs_entry_read(call, parent, name, &entry);
    if (rc == ERR_OK && !entry.found) {
        rc = ERR_NOTFOUND;
    }
    if (rc == ERR_OK && dir != (bool)S_ISDIR(entry.attr.mode)) {
        rc = dir ? ERR_NOTDIR : ERR_ISDIR;
    }
    bool open_here = false;
    if (rc == ERR_OK) {
        rc = fs_remove_begin(call, entry.ino, &open_here);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    bool last = false;
    rc = remove_run(call, parent, name, &entry, open_here, &last);
    /* An answer that did not come may have been yes. */
    fs_remove_end(call->fs, entry.ino, last && open_here && rc != ERR_CONFLICT);
    if (rc == ERR_OK && last) {
        fs_hint_drop(call->fs, entry.ino);
    }
    if (rc == ERR_CONFLICT && dir) {
        enum err why = fs_dir_check_empty(call, entry.ino);
        rc = why == ERR_OK ? ERR_CONFLICT : why;
    }
    return rc;
}

enum err fs_dir_check_empty(struct fs_call *call, uint64_t ino)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct skv_item *scan = fs_txn_add(&t, SKV_SCAN, fs_key_entry(&t, ino, ""));
    scan->number = 1;
    struct skv_scan found;
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        rc = skv_scan_decode(fs_txn_result(&t, 0)->data, &t.arena, &found);
    }
    if (rc == ERR_OK && found.entries_count > 0) {
        rc = ERR_NOTEMPTY;
    }
    fs_txn_fini(&t);
    return rc;
}

static enum err remove_name(struct fs_call *call, uint64_t parent,
                            const char *name, bool dir)
{
    struct fs_retry retry = {0};
    enum err rc = fs_name_check(name);
    while (rc == ERR_OK) {
        rc = remove_once(call, parent, name, dir);
        if (rc != ERR_CONFLICT) {
            return rc;
        }
        rc = fs_retry_pause(call, &retry);
    }
    return rc;
}

enum err fs_unlink(struct fs_call *call, uint64_t parent, const char *name)
{
    return remove_name(call, parent, name, false);
}

enum err fs_rmdir(struct fs_call *call, uint64_t parent, const char *name)
{
    return remove_name(call, parent, name, true);
}

/* ---- orphans ---- */

/* Only what is marked removed is deleted; the record goes in any case. */
enum err fs_orphan_delete(struct fs_call *call, uint64_t mount_id, uint64_t ino)
{
    uint8_t state[4];
    set_u32(state, FS_FORMAT | FS_REMOVED << 16);

    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_bytes(&t, fs_key_attr(&t, ino), FS_ATTR_STATE, state, sizeof state);
    fs_txn_add(&t, SKV_DELETE, fs_key_attr(&t, ino));
    fs_txn_add(&t, SKV_DELETE_PREFIX, fs_key_object(&t.arena, ino));
    fs_txn_add(&t, SKV_DELETE, fs_key_orphan(&t.arena, mount_id, ino));
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    if (rc != ERR_CONFLICT) {
        return rc;
    }
    fs_txn_init(&t, call);
    fs_txn_add(&t, SKV_DELETE, fs_key_orphan(&t.arena, mount_id, ino));
    rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc;
}

/* Up to a page of the orphans of one mount in one shard. */
static enum err reap_page(struct fs_call *call, uint32_t shard,
                          uint64_t mount_id, uint64_t *count, bool *more)
{
    uint8_t id[8];
    set_be64(id, mount_id);
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct slice prefix = fs_key(&t.arena, fs_ino(shard, FS_OBJECT_SHARD),
                                 FS_KEY_ORPHAN, slice_of(id, sizeof id));
    fs_txn_add(&t, SKV_SCAN, prefix)->number = 1000;
    struct skv_scan found = {0};
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        *more = fs_txn_result(&t, 0)->number != 0;
        rc = skv_scan_decode(fs_txn_result(&t, 0)->data, &t.arena, &found);
    }
    for (uint32_t i = 0; i < found.entries_count && rc == ERR_OK; i++) {
        struct slice key = found.entries[i].key;
        if (key.size != prefix.size + 8) {
            rc = ERR_CORRUPT;
            break;
        }
        rc = fs_orphan_delete(call, mount_id, get_be64(key.data + prefix.size));
        *count += rc == ERR_OK;
    }
    fs_txn_fini(&t);
    return rc;
}

enum err fs_reap(struct fs_call *call, uint64_t mount_id, uint64_t *count)
{
    uint32_t shards = call->fs->store->shard_count(call->fs->store);
    *count = 0;
    for (uint32_t shard = 0; shard < shards; shard++) {
        bool more = true;
        while (more) {
            enum err rc = reap_page(call, shard, mount_id, count, &more);
            if (rc != ERR_OK) {
                return rc;
            }
        }
    }
    return ERR_OK;
}
