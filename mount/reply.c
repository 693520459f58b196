/* Replies. Nothing may be cached by the kernel: all timeouts are zero, because
 * another mount may change anything without our knowing. */
#include "base/log.h"
#include "mount/mount_int.h"

#include <errno.h>

void mnt_reply_err(fuse_req_t req, enum err rc)
{
    fuse_reply_err(req, err_posix(rc));
}

struct fuse_entry_param mnt_entry_of(const struct fs_attr *attr)
{
    return (struct fuse_entry_param){.ino = attr->ino,
                                     .attr = fs_attr_stat(attr)};
}

/* An inode needs no forgetting: its number is good for ever. So a caller that
 * went away in the meantime, and a lookup that was never counted, are fine. */
void mnt_reply_entry(fuse_req_t req, enum err rc, const struct fs_attr *attr)
{
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    struct fuse_entry_param entry = mnt_entry_of(attr);
    fuse_reply_entry(req, &entry);
}

void mnt_reply_attr(fuse_req_t req, enum err rc, const struct fs_attr *attr)
{
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    struct stat st = fs_attr_stat(attr);
    fuse_reply_attr(req, &st, 0);
}

/* The caller went away between asking and hearing: nobody will release. */
static void give_back(struct mnt *mnt, struct fs_file *file)
{
    struct fs_call call;
    fs_call_begin(&call, mnt->fs, 0, 0);
    fs_release(&call, file);
    fs_call_end(&call);
}

/* Reads and writes go around the page cache, which other mounts' writes would
 * not reach. */
static void file_info(struct fuse_file_info *fi, struct fs_file *file)
{
    fi->fh = (uintptr_t)file;
    fi->direct_io = 1;
    fi->keep_cache = 0;
}

void mnt_reply_open(fuse_req_t req, enum err rc, struct fs_file *file,
                    struct fuse_file_info *fi)
{
    struct mnt *mnt = fuse_req_userdata(req);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    file_info(fi, file);
    if (fuse_reply_open(req, fi) != 0) {
        give_back(mnt, file);
    }
}

void mnt_reply_create(fuse_req_t req, enum err rc, const struct fs_attr *attr,
                      struct fs_file *file, struct fuse_file_info *fi)
{
    struct mnt *mnt = fuse_req_userdata(req);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    file_info(fi, file);
    struct fuse_entry_param entry = mnt_entry_of(attr);
    if (fuse_reply_create(req, &entry, fi) != 0) {
        give_back(mnt, file);
    }
}

void mnt_reply_sized(fuse_req_t req, enum err rc, struct slice value,
                     size_t size)
{
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
    } else if (size == 0) {
        fuse_reply_xattr(req, value.size);
    } else if (value.size > size) {
        fuse_reply_err(req, ERANGE);
    } else {
        fuse_reply_buf(req, (const char *)value.data, value.size);
    }
}
