/* flotilla mount and umount; also what mount(8) runs as mount.flotilla. */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/log.h"
#include "cmd/args.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/process.h"
#include "fs/fs.h"
#include "mount/mount.h"

enum {
    CONNECT_MS = 15000,
    SPAWN_MS = 20000,
    BEACON_US = 10 * 1000 * 1000, /* the controllers forget us after 60 s */
    GOODBYE_MS = 500,
};

struct mount_request {
    const char *source; /* a cluster's directory, or controllers A,B,C */
    char mountpoint[PATH_MAX];
    struct cluster_access access;
    bool foreground;
    uint64_t ready_fd;
    struct mnt_options options;
};

/* ---- the list after -o ---- */

/* What mount(8) and fstab pass to everybody, and we need not act on. */
static bool is_generic(const char *option)
{
    static const char *const names[] = {
        "rw",      "defaults", "auto",       "noauto",     "user",
        "nouser",  "users",    "_netdev",    "nofail",     "exec",
        "noatime", "relatime", "suid",       "dev",        "async",
        "nosuid",  "nodev",    "nodiratime", "strictatime"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(option, names[i]) == 0) {
            return true;
        }
    }
    return strncmp(option, "x-", 2) == 0;
}

static bool take_option(struct mount_request *m, char *option)
{
    if (strcmp(option, "allow_other") == 0) {
        m->options.allow_other = true;
    } else if (strcmp(option, "nonempty") == 0) {
        m->options.nonempty = true;
    } else if (strcmp(option, "ro") == 0) {
        m->options.read_only = true;
    } else if (strncmp(option, "certs=", 6) == 0) {
        m->access.certs = option + 6;
    } else if (!is_generic(option)) {
        fprintf(stderr,
                "flotilla: mount does not know the option '%s'; it knows "
                "allow_other, nonempty, ro, certs=DIR\n",
                option);
        return false;
    }
    return true;
}

static bool take_options(struct mount_request *m, char *list)
{
    for (char *one; (one = strsep(&list, ",")) != NULL;) {
        if (*one != 0 && !take_option(m, one)) {
            return false;
        }
    }
    return true;
}

/* ---- telling the controllers who has it mounted ---- */

/* Lives on the client's loop: says hello now and then, good-bye at the end. */
struct beacon {
    struct env_timer timer; /* first */
    struct env *env;
    struct ctl_client *ctl;
    struct ctl_mount mount;
    char host[256];
    struct skv_client_task *goodbye;
};

static void beacon_sent(void *arg, enum err rc)
{
    (void)arg;
    (void)rc; /* the next one comes soon */
}

static void beacon_fire(struct env_timer *timer)
{
    struct beacon *b = (struct beacon *)timer;
    ctl_client_mount(b->ctl, &b->mount, BEACON_US / 1000, beacon_sent, NULL);
    env_timer_start(b->env, &b->timer, BEACON_US);
}

struct beacon_task {
    struct skv_client_task task; /* first */
    struct beacon *beacon;
};

static void beacon_start(struct skv_client_task *task, struct env *env,
                         struct net *net, struct ctl_client *ctl)
{
    (void)net;
    struct beacon *b = ((struct beacon_task *)task)->beacon;
    b->env = env;
    b->ctl = ctl;
    b->mount.session = env_random(env) | 1;
    b->mount.since_us = env_wall_us(env);
    beacon_fire(&b->timer);
    skv_client_task_finish(task);
}

static void goodbye_sent(void *arg, enum err rc)
{
    (void)rc;
    skv_client_task_finish(arg);
}

static void beacon_stop(struct skv_client_task *task, struct env *env,
                        struct net *net, struct ctl_client *ctl)
{
    (void)net;
    struct beacon *b = ((struct beacon_task *)task)->beacon;
    env_timer_stop(env, &b->timer);
    b->mount.gone = 1;
    ctl_client_mount(ctl, &b->mount, GOODBYE_MS, goodbye_sent, task);
}

/* ---- in the foreground ---- */

static void mounted(void *arg)
{
    const struct mount_request *m = arg;
    process_ready((int)(int64_t)m->ready_fd);
}

static enum err make_root(struct fs *fs)
{
    struct fs_call call;
    fs_call_begin(&call, fs, getuid(), getgid());
    enum err rc = fs_mkfs(&call);
    fs_call_end(&call);
    return rc;
}

static int serve_client(struct mount_request *m, struct skv_client *client)
{
    struct fs_store *store = fs_store_client_new(client);
    struct fs *fs = fs_new(store);
    int status = EXIT_FAILED;
    enum err rc = make_root(fs);
    if (rc != ERR_OK) {
        fprintf(stderr,
                "flotilla: cannot read or make the root directory: %s\n",
                err_text(rc));
    } else {
        struct beacon b = {.timer = {.fire = beacon_fire}};
        gethostname(b.host, sizeof b.host - 1);
        b.mount.host = slice_text(b.host);
        b.mount.path = slice_text(m->mountpoint);
        b.mount.pid = (uint64_t)getpid();
        struct beacon_task hello = {.task = {.fn = beacon_start}, .beacon = &b};
        skv_client_task_run(client, &hello.task);
        m->options.mountpoint = m->mountpoint;
        m->options.ready = mounted;
        m->options.ready_arg = m;
        status = mnt_run(&m->options, fs);
        struct beacon_task bye = {.task = {.fn = beacon_stop}, .beacon = &b};
        skv_client_task_run(client, &bye.task);
    }
    fs_free(fs);
    fs_store_client_free(store);
    return status;
}

static int serve(struct mount_request *m)
{
    log_set_level(LOG_LEVEL_INFO);
    signal(SIGPIPE, SIG_IGN);
    struct skv_client *client =
        cluster_connect(&m->access, "client", CONNECT_MS);
    if (client == NULL) {
        return EXIT_FAILED;
    }
    int status = serve_client(m, client);
    skv_client_free(client);
    return status;
}

/* ---- in the background ---- */

/* /srv/x becomes "mount-srv-x": its pid file and its log. No two paths have the
 * same name: a '-' becomes "%2d", and what is too long ends in its checksum. */
static void mount_name(const char *mountpoint, char name[NAME_MAX - 8])
{
    const size_t room = NAME_MAX - 8 - sizeof "%2d" - sizeof "-01234567";
    size_t size = (size_t)snprintf(name, NAME_MAX - 8, "mount");
    for (const char *p = mountpoint; *p != 0; p++) {
        if (size >= room) {
            snprintf(name + size, NAME_MAX - 8 - size, "-%08x",
                     crc32c(0, slice_text(mountpoint)));
            return;
        }
        if (*p == '-' || *p == '%') {
            size += (size_t)snprintf(name + size, NAME_MAX - 8 - size, "%%%02x",
                                     (unsigned char)*p);
        } else {
            name[size++] = *p == '/' ? '-' : *p;
            name[size] = 0;
        }
    }
}

/* Is a mount of this cluster there, and its process alive? Never asks the mount
 * itself: it may be waiting for the replicas that we are about to start. */
static bool is_ours(const struct cluster *c, const char *mountpoint)
{
    char pid[PATH_MAX], name[NAME_MAX - 8], type[MNT_TYPE_SIZE];
    mount_name(mountpoint, name);
    cluster_path(c, "run", name, ".pid", pid);
    return process_alive(pid) != 0 && mnt_is_mounted(mountpoint, type);
}

static int serve_in_background(const struct mount_request *m)
{
    char log[PATH_MAX] = "/dev/null", pid[PATH_MAX] = "/dev/null";
    char words[1024], name[NAME_MAX - 8];
    struct cluster c;
    if (m->access.controllers == NULL) {
        if (!cluster_load(cluster_dir(m->access.cluster), &c)) {
            return EXIT_FAILED;
        }
        mount_name(m->mountpoint, name);
        cluster_path(&c, "log", name, ".log", log);
        cluster_path(&c, "run", name, ".pid", pid);
        if (is_ours(&c, m->mountpoint)) {
            printf("%s is mounted already\n", m->mountpoint);
            return EXIT_DONE;
        }
    }
    if (mnt_place_check(m->mountpoint, m->options.nonempty, words) != ERR_OK) {
        fprintf(stderr, "flotilla: cannot mount at %s: %s\n", m->mountpoint,
                words);
        return EXIT_FAILED;
    }
    const char *args[16] = {"mount", "--foreground"};
    uint32_t count = 2;
    if (m->options.allow_other) {
        args[count++] = "--allow-other";
    }
    if (m->options.nonempty) {
        args[count++] = "--nonempty";
    }
    if (m->options.read_only) {
        args[count++] = "--read-only";
    }
    if (m->access.certs != NULL) {
        args[count++] = "--certs";
        args[count++] = m->access.certs;
    }
    /* The ready descriptor's option comes first, so no "--" here. */
    args[count++] = m->source;
    args[count++] = m->mountpoint;
    if (process_spawn(args, log, pid, SPAWN_MS, words, sizeof words) == 0) {
        fprintf(stderr, "flotilla: %s is not mounted: %s (its log: %s)\n",
                m->mountpoint, words, log);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

/* The absolute path. Its last part is not looked at, if it is no link: a mount
 * that is dead, or waits for its cluster, does not answer. */
static bool absolute(const char *given, char path[PATH_MAX])
{
    char copy[PATH_MAX], last[PATH_MAX], parent[PATH_MAX];
    char type[MNT_TYPE_SIZE];
    struct stat st;
    snprintf(copy, sizeof copy, "%s", given);
    snprintf(last, sizeof last, "%s", basename(copy));
    snprintf(copy, sizeof copy, "%s", given);
    bool is_name = strcmp(last, ".") != 0 && strcmp(last, "..") != 0;
    if (is_name && realpath(dirname(copy), parent) != NULL &&
        snprintf(path, PATH_MAX, "%s/%s",
                 strcmp(parent, "/") == 0 ? "" : parent, last) < PATH_MAX &&
        (mnt_is_mounted(path, type) ||
         (lstat(path, &st) == 0 && !S_ISLNK(st.st_mode)))) {
        return true;
    }
    if (realpath(given, path) != NULL) {
        return true;
    }
    fprintf(stderr, "flotilla: cannot mount at %s: %s%s\n", given,
            strerror(errno),
            errno == ENOENT ? ": make the directory first" : "");
    return false;
}

bool mount_is_possible(const struct cluster *c, const char *given)
{
    char mountpoint[PATH_MAX], why[MNT_WHY_SIZE];
    if (mkdir(given, 0755) != 0 && errno != EEXIST && errno != ENOTCONN) {
        fprintf(stderr, "flotilla: cannot make the mount point %s: %s%s\n",
                given, strerror(errno),
                errno == ENOENT ? ": make the directory above it first" : "");
        return false;
    }
    if (!absolute(given, mountpoint)) {
        return false;
    }
    if ((c != NULL && is_ours(c, mountpoint)) ||
        mnt_place_check(mountpoint, false, why) == ERR_OK) {
        return true;
    }
    fprintf(stderr, "flotilla: cannot mount at %s: %s\n", mountpoint, why);
    return false;
}

int cmd_mount(int argc, char **argv)
{
    struct mount_request m = {.ready_fd = UINT64_MAX};
    const char *list = NULL;
    const struct arg_option options[] = {
        {"options", 'o', ARG_TEXT, &list, "LIST",
         "allow_other, nonempty, ro, certs=DIR, and what mount(8) passes"},
        {"certs", 0, ARG_TEXT, &m.access.certs, "DIR",
         "certificates, when SOURCE is a list of controllers"},
        {"allow-other", 0, ARG_FLAG, &m.options.allow_other, NULL,
         "other users too"},
        {"nonempty", 0, ARG_FLAG, &m.options.nonempty, NULL,
         "also over a directory with files in it"},
        {"read-only", 0, ARG_FLAG, &m.options.read_only, NULL,
         "refuse all changes"},
        {"foreground", 'f', ARG_FLAG, &m.foreground, NULL,
         "serve from this process"},
        {"debug", 'd', ARG_FLAG, &m.options.debug, NULL,
         "print each request of the kernel"},
        {"ready-fd", 0, ARG_NUMBER, &m.ready_fd, "FD",
         "write a byte there when mounted"},
        {0}};
    const struct arg_spec spec = {
        .usage = "mount [OPTION...] SOURCE DIR [-o LIST]",
        .about =
            "Mounts the filesystem at DIR. SOURCE is the cluster's "
            "directory, or its controllers\nas HOST:PORT,HOST:PORT,... "
            "(with --certs). `mount -t fuse.flotilla` and /etc/fstab\nwork "
            "too when mount.flotilla is a link to this program.",
        .options = options,
        .positional_min = 2,
        .positional_max = 8,
        .stops = true};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    m.source = argv[first];
    /* mount(8) puts its options last: SOURCE DIR -o LIST [-s -f -n -v]. */
    for (int i = first + 2; i < argc; i++) {
        if (strcmp(argv[i], "-o") == 0 && i + 1 < argc) {
            list = argv[++i];
        } else if (argv[i][0] != '-') {
            fprintf(stderr, "usage: flotilla %s\n", spec.usage);
            return EXIT_USAGE;
        }
    }
    char *copy = mem_strdup(list == NULL ? "" : list);
    if (!take_options(&m, copy) || !absolute(argv[first + 1], m.mountpoint)) {
        mem_free(copy);
        return EXIT_USAGE;
    }
    if (strchr(m.source, ':') != NULL) {
        m.access.controllers = m.source;
    } else {
        m.access.cluster = m.source;
    }
    status = m.foreground ? serve(&m) : serve_in_background(&m);
    mem_free(copy);
    return status;
}

int cmd_umount(int argc, char **argv)
{
    bool lazy = false;
    const struct arg_option options[] = {
        {"lazy", 'l', ARG_FLAG, &lazy, NULL,
         "also while programs use it; it goes when they end"},
        {0}};
    const struct arg_spec spec = {.usage = "umount [OPTION...] DIR",
                                  .about = "Unmounts the filesystem at DIR.",
                                  .options = options,
                                  .positional_min = 1,
                                  .positional_max = 1};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    if (umount2(argv[first], lazy ? MNT_DETACH : 0) == 0) {
        return EXIT_DONE;
    }
    if (errno == EPERM) {
        execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--",
               argv[first], (char *)NULL);
    }
    fprintf(stderr, "flotilla: cannot unmount %s: %s%s\n", argv[first],
            strerror(errno),
            errno == EBUSY ? "; programs use it (--lazy unmounts all the same)"
            : errno == EINVAL ? ": nothing is mounted there"
                              : "");
    return EXIT_FAILED;
}
