/* The labs' tests, row by row (README.md): a row is a scenario with the labs'
 * name, run from a seed on virtual time. This header is all that the runner
 * (labs.c) and the files with rows share; how a row builds its world is the
 * row's own affair.
 *
 * A new file of rows defines a `const struct lab_table`, and labs.c lists it.
 */
#ifndef TESTS_LABS_LABS_H
#define TESTS_LABS_LABS_H

#include <stdbool.h>
#include <stdint.h>

/* One run of a row. The runner gives the first fields, the row the others. */
struct lab_run {
    const char *name; /* the row's */
    uint64_t seed;
    bool verbose; /* print the trace while it runs, on standard error */
    bool tail;    /* print the last lines of the trace if it fails */

    bool failed;
    char failure[512]; /* the property, and with which numbers it is broken */
    uint64_t hash; /* over all that happened: the same seed, the same hash */
    /* The labs' line: virtual seconds, peers, RPCs, bytes in RPCs, entries (or
     * operations). */
    double seconds;
    uint32_t peers;
    uint64_t rpcs, bytes, entries;
};

struct lab_row {
    const char *number; /* in the table of README.md: "R12" */
    const char *name;   /* the labs': "TestBackup2B" */
    const char *title;  /* the labs' words for it */
    void (*run)(struct lab_run *run);
    /* Of the seeds asked for, run one in so many; 0: all. For dear rows. */
    uint32_t one_in;
};

struct lab_table {
    const char *part; /* "2B" */
    const struct lab_row *rows;
    uint32_t row_count;
};

/* Does one of `which` name the row? A part (2B), all parts that begin so (2), a
 * row (R12), or text in a name (Backup). None: all are wanted. */
bool lab_wanted(const struct lab_table *table, const struct lab_row *row,
                char **which, int count);

#define LAB_TABLE(name, part_text, rows_array)                                 \
    const struct lab_table name = {                                            \
        .part = part_text,                                                     \
        .rows = rows_array,                                                    \
        .row_count = sizeof rows_array / sizeof *rows_array,                   \
    }

#endif
