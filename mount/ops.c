/* The session: capabilities, mount, loop, unmount. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "mount/mount_int.h"

/* A call that waits for the cluster keeps its thread, and a signal to end it
 * is read by another: so there may be many more than ever work at once. */
enum { IDLE_THREADS = 10, THREADS_MAX = 1000, BACKGROUND_MAX = 64 };

static void want(struct fuse_conn_info *conn, unsigned int capability)
{
    conn->want |= conn->capable & capability;
}

/* What we refuse, and why:
 *  - writeback cache: a write would return before anybody else can see it;
 *  - readdirplus: attributes may not be kept by the kernel (reply.c), so it
 *    would ask for each again, and reading them along only costs;
 *  - HANDLE_KILLPRIV is wanted: fs/ clears set-id bits in the transaction that
 *    writes. Without it the kernel sends a setattr first, and with direct
 *    writes does not even do that. */
static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    want(conn, FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO |
                   FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_PARALLEL_DIROPS |
                   FUSE_CAP_HANDLE_KILLPRIV);
    conn->want &=
        ~(unsigned int)(FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_READDIRPLUS |
                        FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_POSIX_ACL |
                        FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS |
                        FUSE_CAP_SPLICE_READ);
    conn->max_write = FS_IO_SIZE_MAX;
    conn->max_readahead = FS_IO_SIZE_MAX;
    conn->max_background = BACKGROUND_MAX;
    conn->congestion_threshold = BACKGROUND_MAX * 3 / 4;
    conn->time_gran = 1;
}

static struct fuse_lowlevel_ops ops_make(void)
{
    struct fuse_lowlevel_ops ops = {.init = op_init};
    mnt_ops_fill_attr(&ops);
    mnt_ops_fill_dir(&ops);
    mnt_ops_fill_file(&ops);
    return ops;
}

/* What libfuse has to say goes into the log, a line each. */
static void on_fuse_log(enum fuse_log_level level, const char *format,
                        va_list args) __attribute__((format(printf, 2, 0)));
static void on_fuse_log(enum fuse_log_level level, const char *format,
                        va_list args)
{
    char line[512];
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = '\0';
    if (level >= FUSE_LOG_DEBUG) {
        fprintf(stderr, "%s\n", line);
    } else if (line[0] != '\0') {
        log_line(level <= FUSE_LOG_ERR ? LOG_LEVEL_ERROR : LOG_LEVEL_WARN,
                 "mount", "%s", line);
    }
}

static void arg_add(struct fuse_args *args, const char *text)
{
    if (fuse_opt_add_arg(args, text) != 0) {
        log_error("mount", "no memory for options");
    }
}

/* A comma or backslash in a name would end the option. */
static char *fsname_option(const char *name)
{
    struct buf b = {0};
    buf_append(&b, "-ofsname=", 9);
    for (; *name != '\0'; name++) {
        if (*name == ',' || *name == '\\') {
            buf_append(&b, "\\", 1);
        }
        buf_append(&b, name, 1);
    }
    buf_append(&b, "", 1);
    return (char *)b.data;
}

static struct fuse_session *session_new(const struct mnt_options *o,
                                        struct mnt *mnt)
{
    struct fuse_lowlevel_ops ops = ops_make();
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    char *fsname = fsname_option(o->fsname == NULL ? "flotilla" : o->fsname);
    arg_add(&args, "flotilla");
    arg_add(&args, fsname);
    arg_add(&args, "-osubtype=flotilla,default_permissions");
    if (o->allow_other) {
        arg_add(&args, "-oallow_other");
    }
    if (o->read_only) {
        arg_add(&args, "-oro");
    }
    if (o->debug) {
        arg_add(&args, "-odebug");
    }
    struct fuse_session *se = fuse_session_new(&args, &ops, sizeof ops, mnt);
    fuse_opt_free_args(&args);
    mem_free(fsname);
    return se;
}

static int serve(const struct mnt_options *o, struct mnt *mnt,
                 struct fuse_session *se)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_idle_threads(config,
                                   o->threads == 0 ? IDLE_THREADS : o->threads);
    fuse_loop_cfg_set_max_threads(config, THREADS_MAX);
    mnt->warden = mnt_warden_new(mnt, se);
    if (o->ready != NULL) {
        o->ready(o->ready_arg);
    }
    int rc = fuse_session_loop_mt(se, config);
    mnt_warden_free(mnt->warden);
    fuse_loop_cfg_destroy(config);
    return rc;
}

int mnt_run(const struct mnt_options *options, struct fs *fs)
{
    struct mnt mnt = {.options = options, .fs = fs};
    char why[MNT_WHY_SIZE];
    if (mnt_place_prepare(options->mountpoint, options->nonempty, why) !=
        ERR_OK) {
        fprintf(stderr, "flotilla: cannot mount at %s: %s\n",
                options->mountpoint, why);
        return 1;
    }
    fuse_set_log_func(on_fuse_log);
    struct fuse_session *se = session_new(options, &mnt);
    if (se == NULL) {
        log_error("mount", "cannot start a FUSE session");
        return 1;
    }
    if (fuse_session_mount(se, options->mountpoint) != 0) {
        fprintf(stderr,
                "flotilla: cannot mount at %s: the kernel or fusermount3 "
                "refused; the lines before this one say why\n",
                options->mountpoint);
        fuse_session_destroy(se);
        return 1;
    }
    int rc = serve(options, &mnt, se);
    fuse_session_unmount(se);
    fs_cancel_all(fs);
    fuse_session_destroy(se);
    /* A signal that ended the loop is no failure; lost sessions are. */
    if (rc < 0) {
        log_error("mount", "%s: serving ended: %s", options->mountpoint,
                  strerror(-rc));
    }
    return rc < 0 ? 1 : 0;
}
