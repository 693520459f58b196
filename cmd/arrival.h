/* Does a new replica come nearer to what its group has? A command that waits
 * for it goes on as long as it does. No I/O in here. */
#ifndef CMD_ARRIVAL_H
#define CMD_ARRIVAL_H

#include <stdbool.h>
#include <stddef.h>

#include "rsm/rsm.h"

enum { ARRIVAL_WORDS_SIZE = 128 };

/* The furthest that was seen. */
struct arrival {
    uint64_t term;
    uint64_t match;
    uint64_t stream;                /* its snapshot's index */
    uint64_t made, sent, installed; /* 0: that phase was not seen yet */
    bool brought;                   /* this stream some of it */
};

/* Takes what the leader has just said of it; true if it is further than ever.
 * A snapshot that is made again and again, and of which nothing arrives, is no
 * progress. */
bool arrival_moves(struct arrival *a, uint64_t term,
                   const struct rsm_member *m);

/* "512 of 1900 MiB of its snapshot have arrived" */
const char *arrival_words(const struct rsm_member *m, uint64_t last_index,
                          char text[ARRIVAL_WORDS_SIZE]);

#endif
