#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static enum log_level level_min = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    __atomic_store_n(&level_min, level, __ATOMIC_RELAXED);
}

void log_line(enum log_level level, const char *folder, const char *format, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (level < __atomic_load_n(&level_min, __ATOMIC_RELAXED)) {
        return;
    }
    char words[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);

    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm tm;
    gmtime_r(&now.tv_sec, &tm);
    char when[32];
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    /* One call, so that lines of threads do not mix. */
    fprintf(stderr, "%s.%03ldZ %s %s: %s\n", when, now.tv_nsec / 1000000,
            names[level], folder, words);
}
