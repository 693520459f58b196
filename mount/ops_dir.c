/* Operations on names and directories: unpack, one call, one reply. */
#include "mount/mount_int.h"

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name,
                     mode_t mode, dev_t rdev)
{
    struct mnt_call c;
    struct fs_attr attr;
    mnt_begin(&c, req);
    enum err rc = fs_mknod(&c.fs, parent, name, mode, rdev, &attr);
    mnt_end(&c);
    mnt_reply_entry(req, rc, &attr);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name,
                     mode_t mode)
{
    struct mnt_call c;
    struct fs_attr attr;
    mnt_begin(&c, req);
    enum err rc = fs_mkdir(&c.fs, parent, name, mode, &attr);
    mnt_end(&c);
    mnt_reply_entry(req, rc, &attr);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent,
                       const char *name)
{
    struct mnt_call c;
    struct fs_attr attr;
    mnt_begin(&c, req);
    enum err rc = fs_symlink(&c.fs, parent, name, target, &attr);
    mnt_end(&c);
    mnt_reply_entry(req, rc, &attr);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent,
                    const char *name)
{
    struct mnt_call c;
    struct fs_attr attr;
    mnt_begin(&c, req);
    enum err rc = fs_link(&c.fs, ino, parent, name, &attr);
    mnt_end(&c);
    mnt_reply_entry(req, rc, &attr);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_unlink(&c.fs, parent, name);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_rmdir(&c.fs, parent, name);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name,
                      fuse_ino_t to_parent, const char *to_name,
                      unsigned int flags)
{
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_rename(&c.fs, parent, name, to_parent, to_name, flags);
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

/* ---- reading ---- */

static struct fs_dir *dir_of(const struct fuse_file_info *fi)
{
    return (struct fs_dir *)(uintptr_t)fi->fh;
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino,
                       struct fuse_file_info *fi)
{
    struct mnt_call c;
    struct mnt *mnt = fuse_req_userdata(req);
    struct fs_dir *dir;
    mnt_begin(&c, req);
    enum err rc = fs_opendir(&c.fs, ino, &dir);
    mnt_end(&c);
    if (rc != ERR_OK) {
        mnt_reply_err(req, rc);
        return;
    }
    fi->fh = (uintptr_t)dir;
    if (fuse_reply_open(req, fi) != 0) {
        struct fs_call call;
        fs_call_begin(&call, mnt->fs, 0, 0);
        fs_releasedir(&call, dir);
        fs_call_end(&call);
    }
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino,
                          struct fuse_file_info *fi)
{
    (void)ino;
    struct mnt_call c;
    mnt_begin(&c, req);
    enum err rc = fs_releasedir(&c.fs, dir_of(fi));
    mnt_end(&c);
    mnt_reply_err(req, rc);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync,
                        struct fuse_file_info *fi)
{
    (void)ino;
    (void)datasync;
    (void)fi;
    fuse_reply_err(req, 0); /* each answer was durable when it was given */
}

/* The reply's page as it fills. */
struct page {
    fuse_req_t req;
    char *at;
    size_t left;
    bool plus;
};

/* An entry with inode 0 tells the kernel that its attributes are not there; it
 * then looks the name up when somebody asks. */
static size_t page_add(struct page *p, const struct fs_dirent *e)
{
    struct fuse_entry_param entry = {
        .attr = {.st_ino = e->ino, .st_mode = e->type}};
    off_t next = (off_t)e->next;
    if (!p->plus) {
        return fuse_add_direntry(p->req, p->at, p->left, e->name, &entry.attr,
                                 next);
    }
    if (e->attr != NULL) {
        entry = mnt_entry_of(e->attr);
    }
    return fuse_add_direntry_plus(p->req, p->at, p->left, e->name, &entry,
                                  next);
}

static bool page_each(void *arg, const struct fs_dirent *e)
{
    struct page *p = arg;
    size_t size = page_add(p, e);
    if (size > p->left) {
        return false;
    }
    p->at += size;
    p->left -= size;
    return true;
}

static void read_page(fuse_req_t req, size_t size, off_t offset,
                      struct fuse_file_info *fi, bool plus)
{
    struct mnt_call c;
    char *memory = mem_alloc(size);
    struct page p = {.req = req, .at = memory, .left = size, .plus = plus};
    mnt_begin(&c, req);
    enum err rc =
        fs_readdir(&c.fs, dir_of(fi), (uint64_t)offset, plus, page_each, &p);
    mnt_end(&c);
    if (rc != ERR_OK && p.left == size) {
        mnt_reply_err(req, rc);
    } else {
        fuse_reply_buf(req, memory, size - p.left);
    }
    mem_free(memory);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size,
                       off_t offset, struct fuse_file_info *fi)
{
    (void)ino;
    read_page(req, size, offset, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size,
                           off_t offset, struct fuse_file_info *fi)
{
    (void)ino;
    read_page(req, size, offset, fi, true);
}

void mnt_ops_fill_dir(struct fuse_lowlevel_ops *ops)
{
    ops->mknod = op_mknod;
    ops->mkdir = op_mkdir;
    ops->symlink = op_symlink;
    ops->link = op_link;
    ops->unlink = op_unlink;
    ops->rmdir = op_rmdir;
    ops->rename = op_rename;
    ops->opendir = op_opendir;
    ops->releasedir = op_releasedir;
    ops->fsyncdir = op_fsyncdir;
    ops->readdir = op_readdir;
    ops->readdirplus = op_readdirplus;
}
