/* Before the mount: is the place fit? */
#include <dirent.h>
#include <errno.h>
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

static enum err device_check(char why[MNT_WHY_SIZE])
{
    if (access("/dev/fuse", F_OK) != 0) {
        snprintf(why, MNT_WHY_SIZE,
                 "/dev/fuse is missing: run `modprobe fuse` as root; in a "
                 "container, start it with --device /dev/fuse --cap-add "
                 "SYS_ADMIN");
        return ERR_IO;
    }
    if (access("/dev/fuse", R_OK | W_OK) != 0) {
        snprintf(why, MNT_WHY_SIZE,
                 "this user may not open /dev/fuse: run `chmod 666 /dev/fuse` "
                 "as root, as udev does elsewhere, or mount as root");
        return ERR_ACCESS;
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
static bool is_dead(const char *mountpoint)
{
    struct stat st;
    return stat(mountpoint, &st) != 0 && errno == ENOTCONN;
}

static enum err dead_clear(const char *mountpoint, char why[MNT_WHY_SIZE])
{
    if (!is_dead(mountpoint)) {
        return ERR_OK;
    }
    bool cleared =
        umount2(mountpoint, MNT_DETACH) == 0 || run_fusermount(mountpoint);
    if (!cleared || is_dead(mountpoint)) {
        snprintf(why, MNT_WHY_SIZE,
                 "a dead mount is in the way and cannot be removed: run "
                 "`fusermount3 -uz %s` as who mounted it, or as root",
                 mountpoint);
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

bool mnt_is_mounted(const char *path, char type[MNT_TYPE_SIZE])
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

static bool is_empty(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *e = NULL;
    while (dir != NULL && (e = readdir(dir)) != NULL &&
           (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)) {
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return e == NULL;
}

static enum err free_check(const char *mountpoint, bool nonempty,
                           char why[MNT_WHY_SIZE])
{
    char path[PATH_MAX], type[MNT_TYPE_SIZE];
    struct stat st;
    if (stat(mountpoint, &st) != 0 || realpath(mountpoint, path) == NULL) {
        snprintf(why, MNT_WHY_SIZE, "%s", strerror(errno));
        return ERR_NOTFOUND;
    }
    if (!S_ISDIR(st.st_mode)) {
        snprintf(why, MNT_WHY_SIZE,
                 "it is not a directory: choose an empty directory");
        return ERR_NOTDIR;
    }
    if (mnt_is_mounted(path, type)) {
        snprintf(why, MNT_WHY_SIZE,
                 "something is mounted there already (type %s): unmount it, "
                 "or choose another directory",
                 type);
        return ERR_BUSY;
    }
    if (!nonempty && !is_empty(path)) {
        snprintf(why, MNT_WHY_SIZE,
                 "it is not empty, and a mount would hide what is in it: "
                 "choose an empty directory, or say -o nonempty");
        return ERR_NOTEMPTY;
    }
    return ERR_OK;
}

enum err mnt_place_check(const char *mountpoint, bool nonempty,
                         char why[MNT_WHY_SIZE])
{
    enum err rc = device_check(why);
    if (rc != ERR_OK || is_dead(mountpoint)) {
        return rc;
    }
    return free_check(mountpoint, nonempty, why);
}

enum err mnt_place_prepare(const char *mountpoint, bool nonempty,
                           char why[MNT_WHY_SIZE])
{
    enum err rc = device_check(why);
    if (rc == ERR_OK) {
        rc = dead_clear(mountpoint, why);
    }
    return rc == ERR_OK ? free_check(mountpoint, nonempty, why) : rc;
}
