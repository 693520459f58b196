/* How far a long command is: a line that is rewritten on a terminal, a plain
 * line now and then elsewhere. On standard error. */
#ifndef CMD_PROGRESS_H
#define CMD_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *what;
    const char *unit;     /* NULL: bytes, and keys; else both are counts */
    uint64_t total_bytes; /* about; 0: not known */
    uint64_t bytes, keys;
    bool terminal;
    double began_s, said_s;
};

void progress_begin(struct progress *p, const char *what, uint64_t total_bytes);
void progress_show(struct progress *p, uint64_t bytes, uint64_t keys);
void progress_end(struct progress *p); /* the last word; or clears the line */

/* "1.5 GiB" */
const char *progress_size(uint64_t bytes, char text[24]);

#endif
