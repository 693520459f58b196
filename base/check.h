/* Asserts that stay on in release builds. They are for our own state: what
 * comes from a disk, a peer or a user is checked with an `if` and gives an
 * error. Stopping is safer than a second leader. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            check_failed(#condition, __FILE__, __LINE__);                      \
        }                                                                      \
    } while (0)

/* Prints what did not hold, and where, on standard error; then aborts. */
void check_failed(const char *condition, const char *file, int line)
    __attribute__((noreturn, cold));

#endif
