#include "cmd/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { BAR_WIDTH = 24, PLAIN_EVERY_S = 10 };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

const char *progress_size(uint64_t bytes, char text[24])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double size = (double)bytes;
    unsigned unit = 0;
    while (size >= 1024 && unit < 4) {
        size /= 1024;
        unit++;
    }
    snprintf(text, 24, unit == 0 ? "%.0f %s" : "%.1f %s", size, units[unit]);
    return text;
}

void progress_begin(struct progress *p, const char *what, uint64_t total_bytes)
{
    *p = (struct progress){.what = what,
                           .total_bytes = total_bytes,
                           .terminal = isatty(STDERR_FILENO) == 1};
    p->began_s = p->said_s = now_s();
}

static void print_bar(double share)
{
    fputc('[', stderr);
    for (int i = 0; i < BAR_WIDTH; i++) {
        fputc(i < share * BAR_WIDTH ? '#' : '.', stderr);
    }
    fputs("] ", stderr);
}

static void say(struct progress *p, double now)
{
    char size[24];
    double spent = now - p->began_s;
    double share =
        p->total_bytes > 0 ? (double)p->bytes / (double)p->total_bytes : 0;
    share = share > 1 ? 1 : share;
    fprintf(stderr, "%s%s ", p->terminal ? "\r" : "", p->what);
    if (p->terminal && p->total_bytes > 0) {
        print_bar(share);
    }
    if (p->unit != NULL && p->total_bytes == 0) {
        fprintf(stderr, "%" PRIu64 " %s", p->bytes, p->unit);
    } else if (p->unit != NULL) {
        fprintf(stderr, "%" PRIu64 " of %" PRIu64 " %s", p->bytes,
                p->total_bytes, p->unit);
    } else {
        fprintf(stderr, "%s, %" PRIu64 " keys", progress_size(p->bytes, size),
                p->keys);
    }
    if (share > 0.01 && share < 1) {
        fprintf(stderr, ", about %.0f s left", spent * (1 - share) / share);
    }
    fputs(p->terminal ? "\033[K" : "\n", stderr);
    fflush(stderr);
    p->said_s = now;
}

void progress_show(struct progress *p, uint64_t bytes, uint64_t keys)
{
    double now = now_s();
    p->bytes = bytes;
    p->keys = keys;
    if (now - p->said_s >= (p->terminal ? 0.2 : PLAIN_EVERY_S)) {
        say(p, now);
    }
}

void progress_end(struct progress *p)
{
    if (p->terminal) {
        fputs("\r\033[K", stderr);
    }
}
