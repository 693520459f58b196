/* Writes that are not in LMDB yet, in memory: the newest record of each key, or
 * that it was removed, in the order of keys. It is the applier's until it is
 * frozen; from then on nobody changes it, and any thread may read it.
 *
 * It never gives memory back before it is cleared: what it holds bounds the
 * time between two checkpoints (rsm/checkpoint.c). */
#ifndef SHARDKV_DELTA_H
#define SHARDKV_DELTA_H

#include <stdbool.h>

#include "base/mem.h"

enum { SKV_PAGE_SIZE = 4096 }; /* LMDB's, as a rule */

struct skv_delta;

struct skv_delta *skv_delta_new(void);
void skv_delta_free(struct skv_delta *d); /* NULL: ok */
/* Empty again; some of the memory stays, for what comes next: in `d`, until it
 * is handed to another. */
void skv_delta_clear(struct skv_delta *d);
void skv_delta_hand(struct skv_delta *from, struct skv_delta *to);

/* What was written of a key. Borrowed until the next write to that key. */
struct skv_delta_entry {
    struct slice key;
    struct slice record; /* empty if removed */
    bool removed;
};

bool skv_delta_find(const struct skv_delta *d, struct slice key,
                    struct skv_delta_entry *out);
/* Both copy what they are given, which may be the delta's own. `below`: what
 * lies under the delta has the key. Of what came and went above it nothing is
 * left, or a scan would walk over all of that. */
void skv_delta_put(struct skv_delta *d, struct slice key, struct slice record,
                   bool below);
void skv_delta_remove(struct skv_delta *d, struct slice key);

uint64_t skv_delta_count(const struct skv_delta *d);
/* Bytes of memory that what is in it takes. */
uint64_t skv_delta_size(const struct skv_delta *d);
/* Pages that LMDB takes for its records which do not fit into a leaf. */
uint64_t skv_delta_pages(const struct skv_delta *d);

/* A place in the order, good while nothing is written. */
struct skv_delta_node;
/* The first with a key >= `from`; NULL: none. */
const struct skv_delta_node *skv_delta_seek(const struct skv_delta *d,
                                            struct slice from);
const struct skv_delta_node *skv_delta_next(const struct skv_delta_node *n);
struct skv_delta_entry skv_delta_at(const struct skv_delta_node *n);

#endif
