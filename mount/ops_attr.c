/* Operations on inodes: unpack, one call, one reply. */
#include "mount/mount_int.h"

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct mnt_call c;
    struct fs_attr attr;
    mnt_begin(&c, req);
    enum err rc = fs_lookup(&c.fs, parent, name, &attr);
    mnt_end(&c);
    mnt_reply_entry(req, rc, &attr);
}

/* Numbers are good for ever: there is nothing to forget. */
static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    (void)ino;
    (void)nlookup;
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count,
                            struct fuse_forget_data *forgets)
{
    (void)count;
    (void)forgets;
    fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)fi;
    struct mnt_call c;
    struct fs_attr attr;
    mnt_begin(&c, req);
    enum err rc = fs_getattr(&c.fs, ino, &attr);
    mnt_end(&c);
    mnt_reply_attr(req, rc, &attr);
}

static uint32_t set_of(int to_set)
{
    static const struct {
        int fuse;
        uint32_t fs;
    } bits[] = {
        {FUSE_SET_ATTR_MODE, FS_SET_MODE},
        {FUSE_SET_ATTR_UID, FS_SET_UID},
        {FUSE_SET_ATTR_GID, FS_SET_GID},
        {FUSE_SET_ATTR_SIZE, FS_SET_SIZE},
        {FUSE_SET_ATTR_ATIME, FS_SET_ATIME},
        {FUSE_SET_ATTR_MTIME, FS_SET_MTIME},
        {FUSE_SET_ATTR_ATIME_NOW, FS_SET_ATIME},
        {FUSE_SET_ATTR_MTIME_NOW, FS_SET_MTIME},
    };
    uint32_t set = 0;
    for (size_t i = 0; i < sizeof bits / sizeof bits[0]; i++) {
        set |= (to_set & bits[i].fuse) != 0 ? bits[i].fs : 0;
    }
    return set;
}

static struct fs_attr wanted(const struct stat *st, int to_set)
{
    struct fs_attr want = {
        .mode = st->st_mode,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .size = (uint64_t)st->st_size,
        .atime = st->st_atim,
        .mtime = st->st_mtim,
    };
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if ((to_set & FUSE_SET_ATTR_ATIME_NOW) != 0) {
        want.atime = now;
    }
    if ((to_set & FUSE_SET_ATTR_MTIME_NOW) != 0) {
        want.mtime = now;
    }
    return want;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st,
                       int to_set, struct fuse_file_info *fi)
{
    (void)fi;
    struct mnt_call c;
    struct fs_attr attr, want = wanted(st, to_set);
    mnt_begin(&c, req);
    enum err rc = fs_setattr(&c.fs, ino, &want, set_of(to_set), &attr);
    mnt_end(&c);
    mnt_reply_attr(req, rc, &attr);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct mnt_call c;
    char target[FS_LINK_SIZE_MAX + 1];
    mnt_begin(&c, req);
    enum err rc = fs_readlink(&c.fs, ino, target);
    mnt_end(&c);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    fuse_reply_readlink(req, target);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    struct mnt_call c;
    struct statvfs st;
    mnt_begin(&c, req);
    enum err rc = fs_statfs(&c.fs, &st);
    mnt_end(&c);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    fuse_reply_statfs(req, &st);
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name,
                        const char *value, size_t size, int flags)
{
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_setxattr(&c.fs, ino, name, slice_of(value, size), flags);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name,
                        size_t size)
{
    struct mnt_call c;
    struct arena arena = {0};
    struct slice value = {0};
    mnt_begin(&c, req);
    enum err rc = fs_getxattr(&c.fs, ino, name, &arena, &value);
    mnt_end(&c);
    mnt_reply_sized(req, rc, value, size);
    arena_free(&arena);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct mnt_call c;
    struct buf names = {0};
    mnt_begin(&c, req);
    enum err rc = fs_listxattr(&c.fs, ino, &names);
    mnt_end(&c);
    mnt_reply_sized(req, rc, buf_slice(&names), size);
    buf_free(&names);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_removexattr(&c.fs, ino, name);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

void mnt_ops_fill_attr(struct fuse_lowlevel_ops *ops)
{
    ops->lookup = op_lookup;
    ops->forget = op_forget;
    ops->forget_multi = op_forget_multi;
    ops->getattr = op_getattr;
    ops->setattr = op_setattr;
    ops->readlink = op_readlink;
    ops->statfs = op_statfs;
    ops->setxattr = op_setxattr;
    ops->getxattr = op_getxattr;
    ops->listxattr = op_listxattr;
    ops->removexattr = op_removexattr;
}
