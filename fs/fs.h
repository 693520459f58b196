/* A POSIX filesystem whose every file is a value in the sharded store. It knows
 * no FUSE and no network: mount/ calls it, and it calls fs/store.h.
 *
 * Inodes are named by numbers that never change and are never used again, so
 * nothing has to be looked up twice or forgotten. Permissions are left to the
 * caller (the kernel's default_permissions): fs/ does what it is asked. What is
 * promised to programs is in docs/semantics.md. */
#ifndef FS_FS_H
#define FS_FS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "base/err.h"
#include "base/mem.h"
#include "fs/store.h"

#define FS_INO_ROOT         1u
#define FS_NAME_SIZE_MAX    255u
#define FS_LINK_SIZE_MAX    4095u      /* a symbolic link's target */
#define FS_IO_SIZE_MAX      (1u << 20) /* bytes of one read or write */
#define FS_XATTR_SIZE_MAX   65536u     /* a value, or the list of all names */
#define FS_RENAME_NOREPLACE 1u         /* as Linux numbers them */
#define FS_RENAME_EXCHANGE  2u

/* ---- the filesystem ---- */

struct fs;
/* `store` is borrowed. Free with fs_free(), when no call runs any more. */
struct fs *fs_new(struct fs_store *store);
void fs_free(struct fs *fs);

/* ---- a call ---- */

/* Who asks, and the way to make it give up. The caller embeds it, often on the
 * stack; one thread uses it, any thread may cancel it. */
struct fs_call {
    struct fs *fs;
    uint32_t uid; /* owner of what the call makes */
    uint32_t gid;
    /* The rest is fs/'s, under its call lock. */
    bool cancelled;
    struct skv_txn *running;
    struct fs_call *prev;
    struct fs_call *next;
};
void fs_call_begin(struct fs_call *call, struct fs *fs, uint32_t uid,
                   uint32_t gid);
void fs_call_end(struct fs_call *call);
/* From any thread, between begin and end: the call returns ERR_INTERRUPTED
 * soon. What it had sent may still happen. */
void fs_call_cancel(struct fs_call *call);
/* For an unmount that must not wait: cancels all calls, now and from now on. */
void fs_cancel_all(struct fs *fs);

/* Makes the root directory, owned by the caller, unless there is one. To be
 * called once before all others. */
MUST_USE enum err fs_mkfs(struct fs_call *call);

/* ---- attributes ---- */

struct fs_attr {
    uint64_t ino;
    uint32_t mode; /* type and permissions */
    uint32_t uid;
    uint32_t gid;
    uint64_t nlink;
    uint64_t rdev;
    uint64_t size;
    uint64_t parent; /* of a directory; 0 for the rest */
    struct timespec mtime;
    struct timespec ctime;
    struct timespec atime;
    struct timespec btime;
    bool removed; /* no name is left; somebody has it open */
};
struct stat fs_attr_stat(const struct fs_attr *attr);

enum fs_set {
    FS_SET_MODE = 1,
    FS_SET_UID = 2,
    FS_SET_GID = 4,
    FS_SET_SIZE = 8,
    FS_SET_ATIME = 16,
    FS_SET_MTIME = 32,
};

/* An inode that is gone is ERR_STALE; a name that is, ERR_NOTFOUND. */
MUST_USE enum err fs_lookup(struct fs_call *call, uint64_t parent,
                            const char *name, struct fs_attr *out);
MUST_USE enum err fs_getattr(struct fs_call *call, uint64_t ino,
                             struct fs_attr *out);
/* Takes from `want` what `set` names. Changing the owner, and writing or
 * truncating by others than root, clears set-user-id and set-group-id. */
MUST_USE enum err fs_setattr(struct fs_call *call, uint64_t ino,
                             const struct fs_attr *want, uint32_t set,
                             struct fs_attr *out);
MUST_USE enum err fs_statfs(struct fs_call *call, struct statvfs *out);

/* ---- names ---- */

MUST_USE enum err fs_mknod(struct fs_call *call, uint64_t parent,
                           const char *name, uint32_t mode, uint64_t rdev,
                           struct fs_attr *out);
MUST_USE enum err fs_mkdir(struct fs_call *call, uint64_t parent,
                           const char *name, uint32_t mode,
                           struct fs_attr *out);
MUST_USE enum err fs_symlink(struct fs_call *call, uint64_t parent,
                             const char *name, const char *target,
                             struct fs_attr *out);
/* `to` gets the target and a 0. */
MUST_USE enum err fs_readlink(struct fs_call *call, uint64_t ino,
                              char to[FS_LINK_SIZE_MAX + 1]);
MUST_USE enum err fs_link(struct fs_call *call, uint64_t ino, uint64_t parent,
                          const char *name, struct fs_attr *out);
MUST_USE enum err fs_unlink(struct fs_call *call, uint64_t parent,
                            const char *name);
MUST_USE enum err fs_rmdir(struct fs_call *call, uint64_t parent,
                           const char *name);
MUST_USE enum err fs_rename(struct fs_call *call, uint64_t parent,
                            const char *name, uint64_t to_parent,
                            const char *to_name, uint32_t flags);

/* ---- open files ---- */

struct fs_file;
/* `flags` as of open(2); O_TRUNC and O_EXCL matter here. Close with
 * fs_release(). */
MUST_USE enum err fs_open(struct fs_call *call, uint64_t ino, int flags,
                          struct fs_file **out);
MUST_USE enum err fs_create(struct fs_call *call, uint64_t parent,
                            const char *name, uint32_t mode, int flags,
                            struct fs_attr *attr, struct fs_file **out);
/* Takes the file, also on failure. */
enum err fs_release(struct fs_call *call, struct fs_file *file);
/* A descriptor was closed; `more`: its process holds another one. */
MUST_USE enum err fs_flush(struct fs_call *call, struct fs_file *file,
                           bool more);
/* Was it opened with O_TRUNC, and is the truncation still to come? */
bool fs_is_put_off(struct fs_call *call, struct fs_file *file);
MUST_USE enum err fs_fsync(struct fs_call *call, struct fs_file *file);

/* Up to `size` bytes; the data is in memory of `arena`. */
MUST_USE enum err fs_read(struct fs_call *call, struct fs_file *file,
                          uint64_t offset, size_t size, struct arena *arena,
                          struct slice *out);
/* At most FS_IO_SIZE_MAX bytes, all or nothing. `append` ignores `offset`;
 * *landed is where the bytes went. */
MUST_USE enum err fs_write(struct fs_call *call, struct fs_file *file,
                           uint64_t offset, struct slice data, bool append,
                           uint64_t *landed);
/* `mode` as of fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE. */
MUST_USE enum err fs_fallocate(struct fs_call *call, struct fs_file *file,
                               int mode, uint64_t offset, uint64_t size);

/* ---- open directories ---- */

struct fs_dir;
MUST_USE enum err fs_opendir(struct fs_call *call, uint64_t ino,
                             struct fs_dir **out);
enum err fs_releasedir(struct fs_call *call, struct fs_dir *dir); /* takes */

struct fs_dirent {
    const char *name;
    uint64_t ino;
    uint32_t type;              /* S_IFMT bits */
    uint64_t next;              /* the offset that goes on after it */
    const struct fs_attr *attr; /* with `plus`; NULL if it needs a lookup */
};
/* Returns false if it has no room: the entry counts as not read. */
typedef bool fs_dirent_fn(void *arg, const struct fs_dirent *entry);
/* From `offset`: 0 reads the directory anew, others are a `next` of this
 * fs_dir. Ends at the end or when `each` returns false. */
MUST_USE enum err fs_readdir(struct fs_call *call, struct fs_dir *dir,
                             uint64_t offset, bool plus, fs_dirent_fn *each,
                             void *arg);

/* ---- extended attributes ---- */

/* `flags`: XATTR_CREATE, XATTR_REPLACE, 0. */
MUST_USE enum err fs_setxattr(struct fs_call *call, uint64_t ino,
                              const char *name, struct slice value, int flags);
/* Data in memory of `arena`. */
MUST_USE enum err fs_getxattr(struct fs_call *call, uint64_t ino,
                              const char *name, struct arena *arena,
                              struct slice *out);
/* Names, each with its 0. */
MUST_USE enum err fs_listxattr(struct fs_call *call, uint64_t ino,
                               struct buf *names);
MUST_USE enum err fs_removexattr(struct fs_call *call, uint64_t ino,
                                 const char *name);

/* ---- what a dead mount left ---- */

/* This mount's number in its orphan records. */
uint64_t fs_mount_id(const struct fs *fs);
/* Deletes the files that mount `mount_id` had open after their last name went,
 * and its records. Only for a mount that runs no more. */
MUST_USE enum err fs_reap(struct fs_call *call, uint64_t mount_id,
                          uint64_t *count);

#endif
