/* What the files of mount/ share. */
#ifndef MOUNT_MOUNT_INT_H
#define MOUNT_MOUNT_INT_H

#include <fuse3/fuse_lowlevel.h>

#include "mount/mount.h"

struct mnt_warden;

/* The session's user data. */
struct mnt {
    const struct mnt_options *options;
    struct fs *fs;
    struct mnt_warden *warden;
};

/* ---- warden.c: calls that shall end ---- */

/* A request of the kernel while it is served; on the stack of its thread. */
struct mnt_call {
    struct fs_call fs; /* pass &call.fs to fs/ */
    fuse_req_t req;
    /* The warden's: */
    bool interrupted;
    uint64_t deadline_ms; /* when to look whether it shall end */
    struct mnt_call *prev, *next;
};
void mnt_begin(struct mnt_call *call, fuse_req_t req);
void mnt_end(struct mnt_call *call); /* before the reply */

struct mnt_warden *mnt_warden_new(struct mnt *mnt, struct fuse_session *se);
/* Stops watching and gives the signals back. */
void mnt_warden_free(struct mnt_warden *w);

/* ---- holder.c ---- */

/* Does process `pid` hold a descriptor of inode `ino`? False if unknown. */
bool mnt_is_held(pid_t pid, uint64_t ino);

/* ---- pending.c ---- */

/* Is thread `tid` stopped by nothing but us from ending? Not if all that waits
 * for it is a timer's signal, a child's, Ctrl-Z and the like. True if unknown.
 */
bool mnt_shall_end(pid_t tid);

/* ---- reply.c ---- */

void mnt_reply_err(fuse_req_t req, enum err rc); /* also for ERR_OK */
void mnt_reply_entry(fuse_req_t req, enum err rc, const struct fs_attr *attr);
void mnt_reply_attr(fuse_req_t req, enum err rc, const struct fs_attr *attr);
void mnt_reply_open(fuse_req_t req, enum err rc, struct fs_file *file,
                    struct fuse_file_info *fi);
void mnt_reply_create(fuse_req_t req, enum err rc, const struct fs_attr *attr,
                      struct fs_file *file, struct fuse_file_info *fi);
/* For calls that ask with size 0 how much there is: value, or its size. */
void mnt_reply_sized(fuse_req_t req, enum err rc, struct slice value,
                     size_t size);
struct fuse_entry_param mnt_entry_of(const struct fs_attr *attr);

/* ---- ops*.c: the operations ---- */

void mnt_ops_fill_attr(struct fuse_lowlevel_ops *ops);
void mnt_ops_fill_dir(struct fuse_lowlevel_ops *ops);
void mnt_ops_fill_file(struct fuse_lowlevel_ops *ops);

#endif
