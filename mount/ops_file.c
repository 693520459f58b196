/* Operations on open files: unpack, one call, one reply. */
#include <fcntl.h>

#include "mount/mount_int.h"

static struct fs_file *file_of(const struct fuse_file_info *fi)
{
    return (struct fs_file *)(uintptr_t)fi->fh;
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mnt_call c;
    struct fs_file *file = NULL;
    mnt_begin(&c, req);
    enum err rc = fs_open(&c.fs, ino, fi->flags, &file);
    mnt_end(&c);
    mnt_reply_open(req, rc, file, fi);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name,
                      mode_t mode, struct fuse_file_info *fi)
{
    struct mnt_call c;
    struct fs_attr attr;
    struct fs_file *file = NULL;
    mnt_begin(&c, req);
    enum err rc = fs_create(&c.fs, parent, name, mode, fi->flags, &attr, &file);
    mnt_end(&c);
    mnt_reply_create(req, rc, &attr, file, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    (void)ino;
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_release(&c.fs, file_of(fi));
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mnt_call c;
    mnt_begin(&c, req);
    bool more = fs_is_put_off(&c.fs, file_of(fi)) &&
                mnt_is_held(fuse_req_ctx(req)->pid, ino);
    enum err rc = fs_flush(&c.fs, file_of(fi), more);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync,
                     struct fuse_file_info *fi)
{
    (void)ino;
    (void)datasync;
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_fsync(&c.fs, file_of(fi));
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    (void)ino;
    struct mnt_call c;
    struct arena arena = {0};
    struct slice data = {0};
    mnt_begin(&c, req);
    enum err rc =
        fs_read(&c.fs, file_of(fi), (uint64_t)offset, size, &arena, &data);
    mnt_end(&c);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
    } else {
        fuse_reply_buf(req, (const char *)data.data, data.size);
    }
    arena_free(&arena);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *data,
                     size_t size, off_t offset, struct fuse_file_info *fi)
{
    (void)ino;
    struct mnt_call c;
    uint64_t landed;
    mnt_begin(&c, req);
    enum err rc =
        fs_write(&c.fs, file_of(fi), (uint64_t)offset, slice_of(data, size),
                 (fi->flags & O_APPEND) != 0, &landed);
    mnt_end(&c);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    fuse_reply_write(req, size);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset,
                         off_t size, struct fuse_file_info *fi)
{
    (void)ino;
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_fallocate(&c.fs, file_of(fi), mode, (uint64_t)offset,
                               (uint64_t)size);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

void mnt_ops_fill_file(struct fuse_lowlevel_ops *ops)
{
    ops->open = op_open;
    ops->create = op_create;
    ops->release = op_release;
    ops->flush = op_flush;
    ops->fsync = op_fsync;
    ops->read = op_read;
    ops->write = op_write;
    ops->fallocate = op_fallocate;
}
