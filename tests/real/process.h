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
    struct lab_counts *counts;
    char problem[PATH_MAX + 128]; /* empty: none */
    /* What it says by itself; not for answers. */
    void (*noted)(struct process *p, const struct real_note *note);
    void *arg;
};

/* Where everything of this run is; made once. Explains failures on standard
 * error. */
bool process_home_make(void);
/* A signal asks this run to end. */
bool process_interrupted(void);
void process_home_remove(void); /* if no row has left anything there */
const char *process_row_make(const char *row); /* an empty directory */
const char *process_row_dir(void);
void process_row_remove(void);
const char *process_certs(void);
/* The first of `count` free ports; not the same soon. */
uint32_t process_ports(uint32_t count);
uint64_t process_now_us(void);

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
