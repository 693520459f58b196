#include "tests/unit/dying_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/check.h"
#include "shardkv/store_int.h"

enum { NOTES_MAX = 1 << 18, FDS_MAX = 1024, SECTOR = 512, BLOB_NAME_SIZE = 19 };

/* Not synced: bytes of a file, or its name. */
struct note {
    ino_t inode;
    ino_t dir; /* its name in there; 0: bytes */
    uint64_t at, size;
    bool synced;
};

static struct {
    uint32_t count;
    struct note notes[NOTES_MAX];
} * shared;

static struct {
    pthread_mutex_t lock; /* what is noted, and the call itself */
    bool armed;
    atomic_uint_fast64_t calls_left, writes_left;
    atomic_bool is_blob[FDS_MAX];
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};

void dying_disk_init(void)
{
    disk.armed = true;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
}

void dying_disk_arm(uint64_t calls_left, uint64_t writes_left)
{
    disk.calls_left = calls_left;
    disk.writes_left = writes_left;
}

/* ---- what is not synced ---- */

static void note(struct note n)
{
    CHECK(shared->count < NOTES_MAX);
    shared->notes[shared->count] = n;
    shared->count++; /* now it counts: we may die at any time */
}

static void note_sync(bool all, ino_t inode)
{
    for (uint32_t i = 0; i < shared->count; i++) {
        struct note *n = &shared->notes[i];
        if (all || (n->dir == 0 ? n->inode == inode : n->dir == inode)) {
            n->synced = true;
        }
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < shared->count; i++) {
        if (!shared->notes[i].synced) {
            shared->notes[kept++] = shared->notes[i];
        }
    }
    shared->count = kept;
}

/* The file is gone, and another may get its number. */
static void note_gone(ino_t inode)
{
    for (uint32_t i = 0; i < shared->count; i++) {
        shared->notes[i].synced |= shared->notes[i].inode == inode;
    }
}

static void note_made(ino_t inode, int dir)
{
    struct stat st;
    CHECK(fstat(dir, &st) == 0);
    note((struct note){.inode = inode, .dir = st.st_ino});
}

static void note_bytes(int fd, uint64_t at, uint64_t size)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    note((struct note){.inode = st.st_ino, .at = at, .size = size});
}

static bool is_blob(int fd)
{
    return disk.armed && fd >= 0 && fd < FDS_MAX && disk.is_blob[fd];
}

/* ---- dying ---- */

static bool is_last_call(void)
{
    return disk.armed && disk.calls_left > 0 &&
           atomic_fetch_sub(&disk.calls_left, 1) == 1;
}

static _Noreturn void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

static void may_die(void)
{
    if (is_last_call()) {
        die();
    }
}

static bool is_full(void)
{
    return disk.writes_left > 0 && atomic_fetch_sub(&disk.writes_left, 1) == 1;
}

/* ---- in the place of libc's ---- */

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at)
{
    bool blob = is_blob(fd);
    if (blob && is_full()) {
        errno = ENOSPC;
        return -1;
    }
    pthread_mutex_lock(&disk.lock);
    if (blob) {
        note_bytes(fd, (uint64_t)at, size);
    }
    bool last = is_last_call();
    ssize_t rc = syscall(SYS_pwrite64, fd, bytes, last ? size / 2 : size, at);
    if (last) {
        die();
    }
    pthread_mutex_unlock(&disk.lock);
    return rc;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    bool last = is_last_call();
    ssize_t rc = syscall(SYS_writev, fd, parts, last ? count / 2 : count);
    if (last) {
        die();
    }
    return rc;
}

int ftruncate(int fd, off_t length)
{
    pthread_mutex_lock(&disk.lock);
    may_die();
    struct stat st;
    if (is_blob(fd) && fstat(fd, &st) == 0 && st.st_size > length) {
        note_bytes(fd, (uint64_t)length, (uint64_t)(st.st_size - length));
    }
    int rc = (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_unlock(&disk.lock);
    return rc;
}

int fallocate(int fd, int mode, off_t at, off_t size)
{
    pthread_mutex_lock(&disk.lock);
    may_die();
    if (is_blob(fd)) {
        note_bytes(fd, (uint64_t)at, (uint64_t)size);
    }
    int rc = (int)syscall(SYS_fallocate, fd, mode, at, size);
    pthread_mutex_unlock(&disk.lock);
    return rc;
}

static int sync_one(int fd)
{
    struct stat st;
    pthread_mutex_lock(&disk.lock);
    may_die();
    if (disk.armed && fstat(fd, &st) == 0) {
        note_sync(false, st.st_ino);
    }
    pthread_mutex_unlock(&disk.lock);
    return 0;
}

int fdatasync(int fd)
{
    return sync_one(fd);
}

int fsync(int fd)
{
    return sync_one(fd);
}

int syncfs(int fd)
{
    (void)fd;
    pthread_mutex_lock(&disk.lock);
    may_die();
    if (disk.armed) {
        note_sync(true, 0);
    }
    pthread_mutex_unlock(&disk.lock);
    return 0;
}

/* The mode, when there is one: `more` is behind `flags`. */
static mode_t mode_of(int flags, va_list more)
{
    return (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
}

/* LMDB's, which would write its meta pages through. */
int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags & ~O_DSYNC, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    bool is_new = (flags & O_CREAT) != 0 &&
                  faccessat(dir, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (!disk.armed || fd < 0 || fd >= FDS_MAX) {
        return fd;
    }
    disk.is_blob[fd] = strlen(path) == BLOB_NAME_SIZE && path[2] == '/';
    if (disk.is_blob[fd] && is_new) {
        struct stat st;
        CHECK(fstat(fd, &st) == 0);
        int fan = (int)syscall(SYS_openat, dir, (char[]){path[0], path[1], 0},
                               O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
        pthread_mutex_lock(&disk.lock);
        note_made(st.st_ino, fan);
        may_die();
        pthread_mutex_unlock(&disk.lock);
        close(fan);
    }
    return fd;
}

int close(int fd)
{
    if (is_blob(fd)) {
        disk.is_blob[fd] = false;
    }
    return (int)syscall(SYS_close, fd);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
    may_die();
    int rc = (int)syscall(SYS_mkdirat, dir, path, mode);
    struct stat st;
    if (rc == 0 && disk.armed && fstatat(dir, path, &st, 0) == 0) {
        pthread_mutex_lock(&disk.lock);
        note_made(st.st_ino, dir);
        pthread_mutex_unlock(&disk.lock);
    }
    return rc;
}

int unlinkat(int dir, const char *path, int flags)
{
    may_die();
    struct stat st;
    bool known =
        disk.armed && fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    pthread_mutex_lock(&disk.lock);
    int rc = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (rc == 0 && known) {
        note_gone(st.st_ino);
    }
    pthread_mutex_unlock(&disk.lock);
    return rc;
}

int remove(const char *path)
{
    struct stat st;
    bool is_dir = lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
    return unlinkat(AT_FDCWD, path, is_dir ? AT_REMOVEDIR : 0);
}

int rename(const char *from, const char *to)
{
    may_die();
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* ---- the loss of power ---- */

static struct rng *spoil_rng;

/* Some of the sectors hold something else; or the file is longer than it should
 * be. */
static void spoil_bytes(const char *path, const struct note *n)
{
    uint8_t bytes[SECTOR];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    for (uint64_t done = 0; done < n->size; done += SECTOR) {
        uint64_t left = n->size - done;
        if (rng_chance(spoil_rng, 300)) {
            memset(bytes, (int)rng_below(spoil_rng, 256), sizeof bytes);
            (void)!pwrite(fd, bytes, left < SECTOR ? left : SECTOR,
                          (off_t)(n->at + done));
        }
    }
    close(fd);
}

static int spoil_file(const char *path, const struct stat *st, int type,
                      struct FTW *at)
{
    (void)type;
    (void)at;
    bool gone = false;
    for (uint32_t i = 0; i < shared->count && !gone; i++) {
        struct note *n = &shared->notes[i];
        if (n->synced || n->inode != st->st_ino) {
            continue;
        }
        if (n->dir == 0 && S_ISREG(st->st_mode)) {
            spoil_bytes(path, n);
        } else if (n->dir != 0 && rng_chance(spoil_rng, 300)) {
            CHECK(skv_dir_remove(path) == ERR_OK);
            gone = true;
        }
    }
    return 0;
}

void dying_disk_spoil(struct rng *r, const char *dir)
{
    spoil_rng = r;
    disk.armed = false;
    CHECK(nftw(dir, spoil_file, 8, FTW_DEPTH | FTW_PHYS) == 0);
    disk.armed = true;
    shared->count = 0;
}
