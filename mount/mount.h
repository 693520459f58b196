/* A filesystem of fs/ on a mountpoint, through the kernel's FUSE. It decides
 * nothing: each request of the kernel becomes one call of fs/ and one reply. */
#ifndef MOUNT_MOUNT_H
#define MOUNT_MOUNT_H

#include "fs/fs.h"

struct mnt_options {
    const char *mountpoint;
    const char *fsname; /* shown by mount(8) and df; NULL: "flotilla" */
    bool allow_other;   /* other users too; needs user_allow_other in
                           /etc/fuse.conf unless root mounts */
    bool read_only;
    bool nonempty;    /* hide what is in the directory */
    bool debug;       /* print each request on standard error */
    uint32_t threads; /* idle ones kept; 0: 10 */
    /* How long a call of a process that a signal asks to end may go on before
     * it fails with EINTR: for the cluster that does not answer. 0: 1000. */
    uint32_t interrupt_ms;
    /* Called once, when it is mounted, before requests are served; may be
     * NULL. */
    void (*ready)(void *arg);
    void *ready_arg;
};

enum { MNT_WHY_SIZE = 512, MNT_TYPE_SIZE = 64 };

/* Is `path`, absolute and without links, a mountpoint? Its type in `type`. Asks
 * the kernel's table and not the filesystem, which may not answer. */
bool mnt_is_mounted(const char *path, char type[MNT_TYPE_SIZE]);

/* Whether one can mount there. Not ERR_OK: `why` says what is in the way and
 * what to do. A mount whose process died is not in the way, and stays: while it
 * is there, programs get an error instead of writing below it. */
MUST_USE enum err mnt_place_check(const char *mountpoint, bool nonempty,
                                  char why[MNT_WHY_SIZE]);

/* The same, and clears away a mount whose process died: just before one mounts.
 */
MUST_USE enum err mnt_place_prepare(const char *mountpoint, bool nonempty,
                                    char why[MNT_WHY_SIZE]);

/* Mounts, serves until it is unmounted or SIGTERM, SIGINT or SIGHUP comes, and
 * unmounts. Blocks; must run on the main thread, and replaces the handlers of
 * these signals meanwhile. Begins with mnt_place_prepare(). `fs` is borrowed,
 * and calls of it are cancelled at the end. Gives the exit status: 0, or 1
 * after a line on standard error that says what failed. */
int mnt_run(const struct mnt_options *options, struct fs *fs);

#endif
