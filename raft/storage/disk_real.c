/* The disk seam on Linux: plain POSIX calls below one directory, which a lock
 * file keeps for one process. */
#include "raft/storage/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "raft/storage/sweep.h"

enum { PARTS_MAX = 256 }; /* of IOV_MAX, 1024 */

struct disk_real {
    struct disk disk;
    int root; /* paths are opened relative to it */
    int lock;
    char *path; /* of the root */
    struct sweep *sweep;
};

struct disk_file {
    int fd;
};

static struct disk_real *real_of(struct disk *d)
{
    return (struct disk_real *)d;
}

static enum err failed(const char *what, const char *path)
{
    int number = errno;
    if (number != ENOENT) {
        log_error("disk", "%s failed path=%s error=%s", what, path,
                  strerror(number));
    }
    return err_from_errno(number);
}

static enum err real_open(struct disk *d, const char *path, bool create,
                          struct disk_file **out)
{
    int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0);
    int fd = openat(real_of(d)->root, path, flags, 0600);
    if (fd < 0) {
        return failed("open", path);
    }
    struct disk_file *f = mem_alloc(sizeof *f);
    f->fd = fd;
    *out = f;
    return ERR_OK;
}

static void real_close(struct disk_file *f)
{
    close(f->fd);
    mem_free(f);
}

static enum err real_size(struct disk_file *f, uint64_t *out)
{
    struct stat st;
    if (fstat(f->fd, &st) != 0) {
        return failed("fstat", "");
    }
    *out = (uint64_t)st.st_size;
    return ERR_OK;
}

static enum err real_read(struct disk_file *f, uint64_t offset, void *to,
                          size_t size)
{
    uint8_t *at = to;
    while (size > 0) {
        ssize_t n = pread(f->fd, at, size, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return failed("read", "");
        }
        if (n == 0) {
            return ERR_CORRUPT;
        }
        at += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return ERR_OK;
}

/* One slice that the kernel took only in part. */
static enum err write_all(int fd, uint64_t offset, struct slice part)
{
    while (part.size > 0) {
        ssize_t n = pwrite(fd, part.data, part.size, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return failed("write", "");
        }
        part = slice_of(part.data + n, part.size - (size_t)n);
        offset += (uint64_t)n;
    }
    return ERR_OK;
}

/* At most PARTS_MAX of them. */
static enum err write_some(struct disk_file *f, uint64_t offset,
                           const struct slice *parts, uint32_t count)
{
    struct iovec iov[PARTS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        iov[i].iov_base = (void *)(uintptr_t)parts[i].data;
        iov[i].iov_len = parts[i].size;
    }
    ssize_t n = 0;
    do {
        n = pwritev(f->fd, iov, (int)count, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return failed("write", "");
    }

    /* What the kernel did not take, slice by slice. */
    uint64_t taken = (uint64_t)n;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t skip = taken < parts[i].size ? taken : parts[i].size;
        taken -= skip;
        struct slice rest =
            slice_of(parts[i].data + skip, parts[i].size - (size_t)skip);
        enum err rc = write_all(f->fd, offset + skip, rest);
        if (rc != ERR_OK) {
            return rc;
        }
        offset += parts[i].size;
    }
    return ERR_OK;
}

static enum err real_write(struct disk_file *f, uint64_t offset,
                           const struct slice *parts, uint32_t part_count)
{
    enum err rc = ERR_OK;
    for (uint32_t at = 0; at < part_count && rc == ERR_OK;) {
        uint32_t count =
            part_count - at < PARTS_MAX ? part_count - at : PARTS_MAX;
        rc = write_some(f, offset, parts + at, count);
        for (uint32_t end = at + count; at < end; at++) {
            offset += parts[at].size;
        }
    }
    return rc;
}

static enum err real_truncate(struct disk_file *f, uint64_t size)
{
    return ftruncate(f->fd, (off_t)size) == 0 ? ERR_OK : failed("truncate", "");
}

/* Also when it was for want of space: what is on the disk is not known. */
static enum err sync_result(int code, const char *what, const char *path)
{
    if (code == 0) {
        return ERR_OK;
    }
    (void)!failed(what, path);
    return ERR_IO;
}

static enum err real_sync(struct disk_file *f)
{
    /* No second try, not even for EINTR: after a failure the kernel may have
     * dropped the pages and would report success. */
    return sync_result(fdatasync(f->fd), "fdatasync", "");
}

static enum err real_rename(struct disk *d, const char *from, const char *to)
{
    int root = real_of(d)->root;
    return renameat(root, from, root, to) == 0 ? ERR_OK
                                               : failed("rename", from);
}

/* The name goes now, the space soon. */
static enum err real_remove(struct disk *d, const char *path)
{
    struct disk_real *r = real_of(d);
    int fd = openat(r->root, path, O_RDWR | O_CLOEXEC);
    if (unlinkat(r->root, path, 0) != 0) {
        enum err rc = failed("remove", path);
        if (fd >= 0) {
            close(fd);
        }
        return rc;
    }
    if (fd >= 0) {
        sweep_file(r->sweep, fd);
    }
    return ERR_OK;
}

static enum err real_mkdir(struct disk *d, const char *path)
{
    if (mkdirat(real_of(d)->root, path, 0700) != 0 && errno != EEXIST) {
        return failed("mkdir", path);
    }
    return ERR_OK;
}

static int open_dir(struct disk *d, const char *path)
{
    return openat(real_of(d)->root, path[0] == '\0' ? "." : path,
                  O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static enum err real_sync_dir(struct disk *d, const char *path)
{
    int fd = open_dir(d, path);
    if (fd < 0) {
        return failed("open", path);
    }
    enum err rc = sync_result(fsync(fd), "fsync", path);
    close(fd);
    return rc;
}

static enum err real_list(struct disk *d, const char *path,
                          void (*each)(void *arg, const char *name), void *arg)
{
    int fd = open_dir(d, path);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL) {
        enum err rc = failed("open", path);
        if (fd >= 0) {
            close(fd);
        }
        return rc;
    }
    errno = 0;
    for (struct dirent *e; (e = readdir(dir)) != NULL; errno = 0) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            each(arg, e->d_name);
        }
    }
    enum err rc = errno == 0 ? ERR_OK : failed("readdir", path);
    closedir(dir);
    return rc;
}

static enum err real_space(struct disk *d, uint64_t *free)
{
    struct statvfs st;
    if (fstatvfs(real_of(d)->root, &st) != 0) {
        return failed("fstatvfs", "");
    }
    *free = (uint64_t)st.f_bavail * st.f_frsize;
    return ERR_OK;
}

static const struct disk_ops real_ops = {
    .open = real_open,
    .close = real_close,
    .size = real_size,
    .read = real_read,
    .write = real_write,
    .truncate = real_truncate,
    .sync = real_sync,
    .rename = real_rename,
    .remove = real_remove,
    .mkdir = real_mkdir,
    .sync_dir = real_sync_dir,
    .space = real_space,
    .list = real_list,
};

/* flock() goes with the process: a killed one leaves no stale lock. */
static enum err take_lock(struct disk_real *d, const char *root)
{
    d->lock = openat(d->root, "LOCK", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock < 0) {
        return failed("open", "LOCK");
    }
    if (flock(d->lock, LOCK_EX | LOCK_NB) != 0) {
        log_error("disk", "another process uses this directory root=%s", root);
        return errno == EWOULDBLOCK ? ERR_BUSY : ERR_IO;
    }
    return ERR_OK;
}

enum err disk_real_open(const char *root, struct disk **out)
{
    if (mkdir(root, 0700) != 0 && errno != EEXIST) {
        return failed("mkdir", root);
    }
    struct disk_real *d = mem_alloc(sizeof *d);
    d->disk.ops = &real_ops;
    d->disk.root = d->path = mem_strdup(root);
    d->lock = -1;
    d->sweep = sweep_new();
    d->root = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum err rc = d->root < 0 ? failed("open", root) : take_lock(d, root);
    if (rc != ERR_OK) {
        disk_real_close(&d->disk);
        return rc;
    }
    *out = &d->disk;
    return ERR_OK;
}

void disk_real_close(struct disk *disk)
{
    struct disk_real *d = real_of(disk);
    sweep_free(d->sweep);
    if (d->lock >= 0) {
        close(d->lock);
    }
    if (d->root >= 0) {
        close(d->root);
    }
    mem_free(d->path);
    mem_free(d);
}
