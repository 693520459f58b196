/* A process of a row: started, asked, killed. Its own end, or an answer that
 * does not come, is the row's failure: process_problem() has the words. */
#ifndef TESTS_REAL_PROCESS_H
#define TESTS_REAL_PROCESS_H

#include "tests/real/control.h"

struct process {
    struct real_node node;
    pid_t pid; /* 0: it does not run */
    int fd;
    /* Of all its lives: memory that it shares, so kill -9 loses none. */
    struct real_counts *counts;
    char problem[PATH_MAX + 128]; /* empty: none */
    /* What it says by itself; not for answers. */
    void (*noted)(struct process *p, const struct real_note *note);
    void *arg;
};

uint64_t process_now_us(void);
/* For how long this process, from the first call on, and those that are over
 * stood still, though they wanted to run: the machine did. */
uint64_t process_stood_still_us(void);

/* p->node says what it is. */
void process_init(struct process *p);
void process_fini(struct process *p); /* kills it */
/* process_await() says when it serves. */
void process_start(struct process *p);
bool process_await(struct process *p);
void process_kill(struct process *p); /* kill -9; what it said is heard first */
/* Takes one note; false: nothing came within `timeout_ms`, or a problem. */
bool process_hear(struct process *p, int timeout_ms, struct real_note *note);
void process_tell(struct process *p, const struct real_ask *ask);
/* Waits for the answer to what it was told. */
bool process_answer(struct process *p, enum real_note_kind kind,
                    struct real_note *note);
bool process_ask(struct process *p, const struct real_ask *ask,
                 enum real_note_kind kind, struct real_note *note);
/* Hears all of them until `end_us`. */
void process_hear_all(struct process *all, uint32_t count, uint64_t end_us);

#endif
