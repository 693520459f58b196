/* Before the mount: is the place fit? And a look at who holds a file. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "mount/mount_int.h"

extern char **environ;

static enum err device_check(void)
{
    if (access("/dev/fuse", F_OK) != 0) {
        log_error("mount", "/dev/fuse is missing: run `modprobe fuse` as root; "
                           "in a container, start it with --device /dev/fuse "
                           "--cap-add SYS_ADMIN");
        return ERR_IO;
    }
    return ERR_OK;
}

static bool run_fusermount(const char *mountpoint)
{
    char program[] = "fusermount3", flags[] = "-uz", dashes[] = "--";
    char *path = mem_strdup(mountpoint);
    char *argv[] = {program, flags, dashes, path, NULL};
    pid_t pid;
    int status = -1;
    bool ran = posix_spawnp(&pid, program, NULL, NULL, argv, environ) == 0;
    mem_free(path);
    return ran && waitpid(pid, &status, 0) == pid && status == 0;
}

/* A daemon that was killed leaves its mount behind: each access says ENOTCONN
 * until somebody unmounts it. */
static enum err dead_clear(const char *mountpoint)
{
    struct stat st;
    if (stat(mountpoint, &st) == 0 || errno != ENOTCONN) {
        return ERR_OK;
    }
    bool cleared =
        umount2(mountpoint, MNT_DETACH) == 0 || run_fusermount(mountpoint);
    if (!cleared || (stat(mountpoint, &st) != 0 && errno == ENOTCONN)) {
        log_error("mount",
                  "%s: a dead mount is in the way and cannot be removed; run "
                  "`fusermount3 -uz %s` as who mounted it, or as root",
                  mountpoint, mountpoint);
        return ERR_BUSY;
    }
    log_info("mount", "%s: removed the dead mount of an earlier daemon",
             mountpoint);
    return ERR_OK;
}

/* As in /proc/self/mountinfo: space, tab, newline and backslash in octal. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0'; to++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' &&
            from[2] >= '0' && from[2] <= '7' && from[3] >= '0' &&
            from[3] <= '7') {
            *to = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 +
                         (from[3] - '0'));
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

/* Is `path`, absolute and without links, a mountpoint? Its type in `type`. */
static bool is_mounted(const char *path, char type[64])
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t capacity = 0;
    bool found = false;
    while (f != NULL && getline(&line, &capacity, f) > 0) {
        char at[PATH_MAX];
        const char *rest = strstr(line, " - ");
        if (rest == NULL || sscanf(line, "%*s %*s %*s %*s %4095s", at) != 1) {
            continue;
        }
        unescape(at);
        if (strcmp(at, path) == 0 && sscanf(rest + 3, "%63s", type) == 1) {
            found = true; /* the last line is the topmost mount */
        }
    }
    free(line);
    if (f != NULL) {
        fclose(f);
    }
    return found;
}

static enum err free_check(const char *mountpoint)
{
    char path[PATH_MAX], type[64];
    struct stat st;
    if (stat(mountpoint, &st) != 0 || realpath(mountpoint, path) == NULL) {
        log_error("mount", "%s: %s", mountpoint, strerror(errno));
        return ERR_NOTFOUND;
    }
    if (!S_ISDIR(st.st_mode)) {
        log_error("mount", "%s: not a directory", mountpoint);
        return ERR_NOTDIR;
    }
    if (is_mounted(path, type)) {
        log_error("mount",
                  "%s: something is mounted there already (type %s); unmount "
                  "it or choose another directory",
                  mountpoint, type);
        return ERR_BUSY;
    }
    return ERR_OK;
}

enum err mnt_place_prepare(const char *mountpoint)
{
    enum err rc = device_check();
    if (rc == ERR_OK) {
        rc = dead_clear(mountpoint);
    }
    return rc == ERR_OK ? free_check(mountpoint) : rc;
}

/* ---- who holds a file ---- */

enum { FDS_LOOKED_AT = 256 };

/* fdinfo is read and not the link: neither asks us anything, which would be
 * waiting for ourselves. */
static bool fd_is_of(int dir, const char *fd, uint64_t ino)
{
    char text[512];
    int at = openat(dir, fd, O_RDONLY | O_CLOEXEC);
    if (at < 0) {
        return false;
    }
    ssize_t size = read(at, text, sizeof text - 1);
    close(at);
    if (size <= 0) {
        return false;
    }
    text[size] = '\0';
    const char *line = strstr(text, "\nino:");
    return line != NULL && strtoull(line + 5, NULL, 10) == ino;
}

bool mnt_is_held(pid_t pid, uint64_t ino)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fdinfo", (int)pid);
    DIR *dir = pid > 0 ? opendir(path) : NULL;
    if (dir == NULL) {
        return false;
    }
    bool held = false;
    const struct dirent *e;
    for (int i = 0; i < FDS_LOOKED_AT && !held && (e = readdir(dir)) != NULL;
         i++) {
        held = e->d_name[0] != '.' && fd_is_of(dirfd(dir), e->d_name, ino);
    }
    closedir(dir);
    return held;
}
