/* Lines for the operator on standard error:
 *   2026-11-21T07:48:28.123Z info raft: became leader term=3 last=17
 * folder, words, then key=value. Never the contents of keys or values. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level {
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_INFO,
    LOG_LEVEL_WARN,
    LOG_LEVEL_ERROR,
    LOG_LEVEL_OFF
};

void log_set_level(enum log_level level); /* INFO to begin with */
void log_line(enum log_level level, const char *folder, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(folder, ...) log_line(LOG_LEVEL_DEBUG, folder, __VA_ARGS__)
#define log_info(folder, ...)  log_line(LOG_LEVEL_INFO, folder, __VA_ARGS__)
#define log_warn(folder, ...)  log_line(LOG_LEVEL_WARN, folder, __VA_ARGS__)
#define log_error(folder, ...) log_line(LOG_LEVEL_ERROR, folder, __VA_ARGS__)

#endif
