/* The directories of a store on disk. Invariants:
 *
 *  1. DIR/state.N is complete and synced before it has that name.
 *  2. The highest N is the state; lower ones are what it replaced.
 *  3. DIR/new is never the state.
 *
 * So the switch to an installed state is one rename, and a crash at any instant
 * leaves the old state or the new one. */
#include "shardkv/store_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

enum { REMOVE_DEPTH_FDS = 8 };

enum err skv_system_error(int number)
{
    switch (number) {
    case ENOSPC:
    case EDQUOT: return ERR_NOSPACE;
    default: return ERR_IO;
    }
}

enum err skv_system_failed(const char *what, const char *path)
{
    int number = errno;
    log_error("shardkv", "store: %s failed path=%s error=%s", what, path,
              strerror(number));
    return skv_system_error(number);
}

static enum err sync_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return skv_system_failed("open", path);
    }
    enum err rc = fsync(fd) == 0 ? ERR_OK : skv_system_failed("fsync", path);
    close(fd);
    return rc == ERR_OK ? ERR_OK : ERR_IO; /* final, also for want of space */
}

enum err skv_dir_lock(const char *dir, int *fd)
{
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        return skv_system_failed("mkdir", dir);
    }
    char *path = mem_printf("%s/lock", dir);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    enum err rc = lock < 0 ? skv_system_failed("open", path) : ERR_OK;
    if (rc == ERR_OK && flock(lock, LOCK_EX | LOCK_NB) != 0) {
        log_error("shardkv", "store: another server uses it path=%s", path);
        rc = ERR_BUSY;
        close(lock);
    }
    mem_free(path);
    if (rc == ERR_OK) {
        *fd = lock;
    }
    return rc;
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

enum err skv_dir_remove(const char *path)
{
    if (nftw(path, remove_one, REMOVE_DEPTH_FDS, FTW_DEPTH | FTW_PHYS) != 0 &&
        errno != ENOENT) {
        return skv_system_failed("remove", path);
    }
    return ERR_OK;
}

/* The N of "state.N" as skv_dir_adopt_new() writes it, or 0. */
static uint64_t number_of(const char *name)
{
    uint64_t number = 0;
    int used = 0;
    if (sscanf(name, "state.%" SCNu64 "%n", &number, &used) != 1 ||
        name[used] != '\0') {
        return 0;
    }
    return number;
}

/* Raises *highest to the highest N there is; or, when it is that already,
 * removes all others. */
static enum err each_state(const char *dir, uint64_t *highest, bool removes)
{
    DIR *d = opendir(dir);
    if (d == NULL) {
        return skv_system_failed("opendir", dir);
    }
    enum err rc = ERR_OK;
    struct dirent *entry;
    while (rc == ERR_OK && (entry = readdir(d)) != NULL) {
        uint64_t number = number_of(entry->d_name);
        if (number > *highest) {
            *highest = number;
        }
        if (removes && number != 0 && number != *highest) {
            char *path = mem_printf("%s/%s", dir, entry->d_name);
            rc = skv_dir_remove(path);
            mem_free(path);
        }
    }
    closedir(d);
    return rc;
}

enum err skv_dir_settle(const char *dir, uint64_t *number)
{
    uint64_t highest = 0;
    enum err rc = each_state(dir, &highest, false);
    if (rc == ERR_OK) {
        rc = each_state(dir, &highest, true);
    }
    if (rc == ERR_OK) {
        char *path = mem_printf("%s/new", dir);
        rc = skv_dir_remove(path);
        mem_free(path);
    }
    if (rc == ERR_OK) {
        *number = highest;
    }
    return rc;
}

enum err skv_dir_make_new(const char *dir, char **path)
{
    char *new_path = mem_printf("%s/new", dir);
    enum err rc = skv_dir_remove(new_path);
    if (rc == ERR_OK && mkdir(new_path, 0700) != 0) {
        rc = skv_system_failed("mkdir", new_path);
    }
    if (rc != ERR_OK) {
        mem_free(new_path);
        return rc;
    }
    *path = new_path;
    return ERR_OK;
}

enum err skv_dir_adopt_new(const char *dir, uint64_t number, char **path)
{
    char *from = mem_printf("%s/new", dir);
    char *to = mem_printf("%s/state.%" PRIu64, dir, number);
    enum err rc = sync_dir(from); /* 1 */
    if (rc == ERR_OK && rename(from, to) != 0) {
        rc = skv_system_failed("rename", to);
    }
    if (rc == ERR_OK) {
        rc = sync_dir(dir);
    }
    mem_free(from);
    if (rc != ERR_OK) {
        mem_free(to);
        return rc;
    }
    *path = to;
    return ERR_OK;
}
