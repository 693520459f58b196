/* The state machine of the labs' Raft rows in a process: a list of entries, in
 * the file "list" of its disk since the last checkpoint. What it applies it
 * tells the runner. */
#ifndef TESTS_REAL_LIST_H
#define TESTS_REAL_LIST_H

#include "tests/real/control.h"

struct list {
    struct rsm_fsm fsm; /* first */
    struct disk *disk;
    struct lab_log now;
    raft_index stored;
    raft_term stored_term;
    void (*tell)(const struct real_note *note); /* from any thread */
};

MUST_USE enum err list_open(struct list *l, struct disk *disk,
                            void (*tell)(const struct real_note *note));

#endif
