/* Is a history of put, append and get linearizable? An answer is only ever
 * LINEAR_OK when an order was found that explains every result; running out of
 * budget is not an answer, and counts as a failure.
 *
 * Histories are checked one object at a time (linearizability is local: Herlihy
 * and Wing 1990). An object is one key, or the two keys that transactions use
 * together. The search is Wing and Gong's with Lowe's memory of (set of
 * linearized operations, state), as porcupine does it.
 *
 * No bytes may be written twice to a key: each write has a token of its own,
 * which is no part of another's. */
#ifndef TESTS_LINEAR_LINEAR_H
#define TESTS_LINEAR_LINEAR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/mem.h"

enum { LINEAR_KEYS = 2, LINEAR_PARTS = 4 };

/* A value, short: its length and a hash over its bytes that can be continued.
 */
struct linear_value {
    bool exists;
    uint64_t length;
    uint64_t hash;
};
struct linear_value linear_value_of(struct slice bytes);
struct linear_value linear_value_append(struct linear_value v,
                                        struct slice bytes);

enum linear_kind {
    LINEAR_GET = 1,    /* `data`: what was read; `exists` */
    LINEAR_PUT = 2,    /* `data`: what was written */
    LINEAR_APPEND = 3, /* `data`; `number`: where it landed */
    LINEAR_DELETE = 4,
    LINEAR_CMP_LENGTH = 5, /* `number`: the length it must have */
};

/* One item of an operation. Reads see what was before the writes. */
struct linear_part {
    enum linear_kind kind;
    uint32_t key; /* of the object: 0 or 1 */
    bool exists;
    struct slice data; /* borrowed */
    uint64_t number;
};

struct linear_op {
    uint64_t call, ret; /* times; equal ones count as overlapping */
    uint64_t name;      /* for people: client and number */
    bool unknown;       /* no answer: it may happen any time later, or never */
    bool conflict;      /* refused: the compare at `failed` did not hold */
    uint32_t failed;
    /* Where it stood among those that wrote, as far as somebody saw; 0: nobody
     * did. The order that ranks give is tried first, no more: a wrong one costs
     * time. */
    uint64_t rank;
    uint32_t part_count;
    struct linear_part parts[LINEAR_PARTS];
};

enum linear_verdict { LINEAR_OK, LINEAR_BAD, LINEAR_BUDGET };

/* Does the order of ranks alone explain it? False says nothing. */
bool linear_follow(const struct linear_op *ops, uint32_t count);

/* `steps`: how many operations the search may try. `why` gets words about the
 * place where it got stuck. */
enum linear_verdict linear_check(const struct linear_op *ops, uint32_t count,
                                 uint64_t steps, struct buf *why);
const char *linear_verdict_text(enum linear_verdict verdict);

#endif
