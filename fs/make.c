/* Making names: files, directories, links. */
#include "base/check.h"
#include "fs/fs_int.h"

#include <string.h>

struct make {
    uint64_t parent;
    const char *name;
    uint32_t mode;
    uint64_t rdev;
    const char *target; /* of a symbolic link, else NULL */
};

/* In a set-group-id directory everything new has its group, and a directory
 * inherits the bit. */
static struct fs_attr make_attr(const struct fs_call *call,
                                const struct make *m,
                                const struct fs_attr *parent, uint64_t ino)
{
    struct timespec now = fs_now();
    bool is_dir = S_ISDIR(m->mode);
    bool inherit = (parent->mode & S_ISGID) != 0;
    return (struct fs_attr){
        .ino = ino,
        .mode = m->mode | (inherit && is_dir ? S_ISGID : 0u),
        .uid = call->uid,
        .gid = inherit ? parent->gid : call->gid,
        .nlink = is_dir ? 2 : 1,
        .rdev = m->rdev,
        .size = m->target == NULL ? 0 : strlen(m->target),
        .parent = is_dir ? m->parent : 0,
        .mtime = now,
        .ctime = now,
        .atime = now,
        .btime = now,
    };
}

static enum err make_run(struct fs_call *call, const struct make *m,
                         const struct fs_attr *parent,
                         const struct fs_attr *attr)
{
    uint8_t bytes[FS_ATTR_SIZE];
    fs_attr_encode(attr, bytes);

    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_owner(&t, parent);
    fs_txn_add(&t, SKV_CMP_ABSENT, fs_key_entry(&t, m->parent, m->name));
    fs_txn_put_entry(&t, m->parent, m->name, attr->ino, attr->mode);
    fs_txn_touch(&t, m->parent, attr->mtime);
    fs_txn_add_nlink(&t, m->parent, S_ISDIR(m->mode) ? 1 : 0);
    fs_txn_add(&t, SKV_PUT, fs_key_attr(&t, attr->ino))->data =
        slice_of(bytes, sizeof bytes);
    if (m->target != NULL) {
        fs_txn_add(&t, SKV_PUT, fs_key_content(&t, attr->ino))->data =
            slice_text(m->target);
    }
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc;
}

/* After a conflict: why no name can be made there; ERR_OK when it can now. */
static enum err make_refused(struct fs_call *call, uint64_t parent,
                             const char *name)
{
    struct fs_entry entry;
    enum err rc = fs_parent_check(call, parent);
    if (rc == ERR_OK) {
        rc = fs_entry_read(call, parent, name, &entry);
    }
    if (rc == ERR_OK && entry.found) {
        rc = ERR_EXISTS;
    }
    return rc;
}

static enum err make_place(struct fs_call *call, const struct make *m,
                           uint64_t *ino)
{
    uint32_t shard = fs_shard(m->parent);
    enum err rc = ERR_OK;
    if (S_ISDIR(m->mode)) {
        rc = fs_shard_pick(call, &shard);
    }
    return rc == ERR_OK ? fs_ino_new(call, shard, ino) : rc;
}

static enum err make(struct fs_call *call, const struct make *m,
                     struct fs_attr *out)
{
    struct fs_retry retry = {0};
    uint64_t ino;
    enum err rc = fs_name_check(m->name);
    if (rc == ERR_INVALID) {
        return ERR_EXISTS; /* . and .. are always there */
    }
    if (rc == ERR_OK) {
        rc = make_place(call, m, &ino);
    }
    while (rc == ERR_OK) {
        struct fs_attr parent;
        rc = fs_hint_get(call, m->parent, &parent);
        if (rc != ERR_OK) {
            return rc;
        }
        struct fs_attr attr = make_attr(call, m, &parent, ino);
        rc = make_run(call, m, &parent, &attr);
        if (rc == ERR_OK) {
            fs_hint_keep(call->fs, &attr);
            *out = attr;
            return ERR_OK;
        }
        if (rc == ERR_CONFLICT) {
            rc = make_refused(call, m->parent, m->name);
        }
        if (rc == ERR_OK) {
            rc = fs_retry_pause(call, &retry);
        }
    }
    return rc;
}

enum err fs_mknod(struct fs_call *call, uint64_t parent, const char *name,
                  uint32_t mode, uint64_t rdev, struct fs_attr *out)
{
    if ((mode & S_IFMT) == 0) {
        mode |= S_IFREG;
    }
    if (S_ISDIR(mode) || S_ISLNK(mode)) {
        return ERR_INVALID;
    }
    struct make m = {
        .parent = parent, .name = name, .mode = mode, .rdev = rdev};
    return make(call, &m, out);
}

enum err fs_mkdir(struct fs_call *call, uint64_t parent, const char *name,
                  uint32_t mode, struct fs_attr *out)
{
    struct make m = {
        .parent = parent, .name = name, .mode = S_IFDIR | (mode & 07777u)};
    return make(call, &m, out);
}

enum err fs_symlink(struct fs_call *call, uint64_t parent, const char *name,
                    const char *target, struct fs_attr *out)
{
    size_t size = strnlen(target, FS_LINK_SIZE_MAX + 1);
    if (size == 0) {
        return ERR_NOTFOUND;
    }
    if (size > FS_LINK_SIZE_MAX) {
        return ERR_NAMETOOLONG;
    }
    struct make m = {.parent = parent,
                     .name = name,
                     .mode = S_IFLNK | 0777,
                     .target = target};
    return make(call, &m, out);
}

enum err fs_readlink(struct fs_call *call, uint64_t ino,
                     char to[FS_LINK_SIZE_MAX + 1])
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_read_attr(&t, ino);
    fs_txn_add(&t, SKV_GET, fs_key_content(&t, ino))->number = FS_LINK_SIZE_MAX;
    enum err rc = fs_txn_run(&t);
    struct fs_attr attr;
    if (rc == ERR_OK) {
        rc = fs_txn_decode_attr(&t, 0, ino, &attr);
    }
    if (rc == ERR_OK && !S_ISLNK(attr.mode)) {
        rc = ERR_INVALID;
    }
    if (rc == ERR_OK) {
        struct slice target = fs_txn_result(&t, 2)->data;
        rc =
            fs_txn_result(&t, 2)->rc != ERR_OK || target.size > FS_LINK_SIZE_MAX
                ? ERR_CORRUPT
                : ERR_OK;
        if (rc == ERR_OK) {
            memcpy(to, target.data, target.size);
            to[target.size] = '\0';
        }
    }
    fs_txn_fini(&t);
    return rc;
}

/* ---- hard links ---- */

static enum err link_run(struct fs_call *call, const struct fs_attr *attr,
                         uint64_t parent, const char *name, struct timespec now)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    fs_txn_live(&t, attr->ino);
    fs_txn_live(&t, parent);
    fs_txn_add(&t, SKV_CMP_ABSENT, fs_key_entry(&t, parent, name));
    fs_txn_put_entry(&t, parent, name, attr->ino, attr->mode);
    fs_txn_touch(&t, parent, now);
    fs_txn_add_nlink(&t, attr->ino, 1);
    fs_txn_put_time(&t, attr->ino, FS_ATTR_CTIME, now);
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc;
}

static enum err link_once(struct fs_call *call, uint64_t ino, uint64_t parent,
                          const char *name, struct fs_attr *out)
{
    struct fs_attr attr;
    enum err rc = fs_getattr(call, ino, &attr);
    if (rc == ERR_OK && attr.removed) {
        rc = ERR_NOTFOUND; /* no name is left to copy */
    }
    if (rc == ERR_OK && S_ISDIR(attr.mode)) {
        rc = ERR_PERM;
    }
    if (rc != ERR_OK) {
        return rc;
    }
    attr.ctime = fs_now();
    rc = link_run(call, &attr, parent, name, attr.ctime);
    if (rc == ERR_OK) {
        attr.nlink++;
        *out = attr;
    }
    return rc;
}

enum err fs_link(struct fs_call *call, uint64_t ino, uint64_t parent,
                 const char *name, struct fs_attr *out)
{
    struct fs_retry retry = {0};
    enum err rc = fs_name_check(name);
    while (rc == ERR_OK) {
        rc = link_once(call, ino, parent, name, out);
        if (rc != ERR_CONFLICT) {
            return rc;
        }
        rc = make_refused(call, parent, name);
        if (rc == ERR_OK) {
            rc = fs_retry_pause(call, &retry);
        }
    }
    return rc;
}
