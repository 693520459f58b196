#include "tests/real/control.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"

struct real_counts *real_counts_map(const char *dir)
{
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s.counts", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct real_counts)) == 0);
    void *counts = mmap(NULL, sizeof(struct real_counts),
                        PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(counts != MAP_FAILED);
    close(fd);
    return counts;
}

void real_counts_unmap(struct real_counts *counts)
{
    munmap(counts, sizeof *counts);
}
