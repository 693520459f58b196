/* What signals wait for a process. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mount/mount_int.h"

static uint64_t bit(int number)
{
    return (uint64_t)1 << (number - 1);
}

/* A set of signals in the text of /proc/TID/status; see proc(5). */
static uint64_t set_of(const char *status, const char *name)
{
    const char *line = strstr(status, name);
    return line == NULL ? 0 : strtoull(line + strlen(name), NULL, 16);
}

/* Of a signal that nothing handles and that ends the process, the kernel makes
 * a SIGKILL; the others here are what people send to programs that do handle
 * them. */
bool mnt_shall_end(pid_t tid)
{
    char text[4096];
    snprintf(text, sizeof text, "/proc/%d/status", (int)tid);
    int fd = open(text, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) {
        close(fd);
    }
    if (size <= 0) {
        return true; /* gone, or not ours to see */
    }
    text[size] = '\0';
    uint64_t pending = set_of(text, "\nSigPnd:") | set_of(text, "\nShdPnd:");
    uint64_t ends = bit(SIGKILL) | bit(SIGINT) | bit(SIGTERM) | bit(SIGHUP) |
                    bit(SIGQUIT) | bit(SIGABRT);
    return (pending & ~set_of(text, "\nSigBlk:") & ends) != 0;
}
