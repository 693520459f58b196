/* Who holds a file. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mount/mount_int.h"

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
