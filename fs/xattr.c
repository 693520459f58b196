/* Extended attributes: one key each.
 *
 * Those of the `system.` name space are refused: access control lists that are
 * stored but not obeyed would be worse than none. */
#include <string.h>
#include <sys/xattr.h>

#include "fs/fs_int.h"

static enum err xattr_name_check(const char *name)
{
    size_t size = strnlen(name, FS_NAME_SIZE_MAX + 1);
    if (size == 0 || size > FS_NAME_SIZE_MAX) {
        return ERR_RANGE;
    }
    return strncmp(name, "system.", 7) == 0 ? ERR_NOTSUP : ERR_OK;
}

static struct slice key_xattr(struct fs_txn *t, uint64_t ino, const char *name)
{
    return fs_key(&t->arena, ino, FS_KEY_XATTR, slice_text(name));
}

/* ERR_STALE if the inode is gone, else what the compare of the attribute that
 * failed means. */
static enum err xattr_refused(struct fs_call *call, uint64_t ino,
                              enum err meaning)
{
    struct fs_attr attr;
    enum err rc = fs_attr_read(call, ino, &attr);
    return rc == ERR_OK ? meaning : rc;
}

enum err fs_setxattr(struct fs_call *call, uint64_t ino, const char *name,
                     struct slice value, int flags)
{
    if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) != 0) {
        return ERR_INVALID;
    }
    enum err rc = xattr_name_check(name);
    if (rc == ERR_OK && value.size > FS_XATTR_SIZE_MAX) {
        rc = ERR_TOOBIG;
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct slice key = key_xattr(&t, ino, name);
    fs_txn_exists(&t, ino);
    if ((flags & XATTR_CREATE) != 0) {
        fs_txn_add(&t, SKV_CMP_ABSENT, key);
    }
    if ((flags & XATTR_REPLACE) != 0) {
        fs_txn_add(&t, SKV_CMP_EXISTS, key);
    }
    fs_txn_add(&t, SKV_PUT, key)->data = value;
    fs_txn_put_time(&t, ino, FS_ATTR_CTIME, fs_now());
    rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    if (rc == ERR_CONFLICT) {
        rc = xattr_refused(
            call, ino, (flags & XATTR_CREATE) != 0 ? ERR_EXISTS : ERR_NODATA);
    }
    return rc;
}

enum err fs_getxattr(struct fs_call *call, uint64_t ino, const char *name,
                     struct arena *arena, struct slice *out)
{
    enum err rc = xattr_name_check(name);
    if (rc != ERR_OK) {
        return rc;
    }
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_add(&t, SKV_GET, key_xattr(&t, ino, name))->number =
        FS_XATTR_SIZE_MAX;
    rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        rc = err_from_wire(fs_txn_result(&t, 0)->rc);
        rc = rc == ERR_NOTFOUND ? ERR_NODATA : rc;
    }
    if (rc == ERR_OK) {
        *out = arena_copy(arena, fs_txn_result(&t, 0)->data);
    }
    fs_txn_fini(&t);
    return rc;
}

/* One page holds more names than a list may have bytes. */
enum err fs_listxattr(struct fs_call *call, uint64_t ino, struct buf *names)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct slice prefix = key_xattr(&t, ino, "");
    struct skv_item *scan = fs_txn_add(&t, SKV_SCAN, prefix);
    scan->number = 32768;
    struct skv_scan page = {0};
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        rc = skv_scan_decode(fs_txn_result(&t, 0)->data, &t.arena, &page);
    }
    if (rc == ERR_OK && fs_txn_result(&t, 0)->number != 0) {
        rc = ERR_TOOBIG;
    }
    for (uint32_t i = 0; i < page.entries_count && rc == ERR_OK; i++) {
        struct slice key = page.entries[i].key;
        if (key.size <= prefix.size) {
            rc = ERR_CORRUPT;
            break;
        }
        buf_append(names, key.data + prefix.size, key.size - prefix.size);
        buf_append(names, "", 1);
        rc = names->size > FS_XATTR_SIZE_MAX ? ERR_TOOBIG : ERR_OK;
    }
    fs_txn_fini(&t);
    return rc;
}

enum err fs_removexattr(struct fs_call *call, uint64_t ino, const char *name)
{
    enum err rc = xattr_name_check(name);
    if (rc != ERR_OK) {
        return rc;
    }
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct slice key = key_xattr(&t, ino, name);
    fs_txn_exists(&t, ino);
    fs_txn_add(&t, SKV_CMP_EXISTS, key);
    fs_txn_add(&t, SKV_DELETE, key);
    fs_txn_put_time(&t, ino, FS_ATTR_CTIME, fs_now());
    rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc == ERR_CONFLICT ? xattr_refused(call, ino, ERR_NODATA) : rc;
}
