/* The right to restore: a key of its own, which stands in the cluster from
 * before anything is deleted or written until all is there. Who holds it says
 * that he lives, each second; from one who is silent another takes it.
 * Invariants:
 *
 *  1. One holds it at a time: it is taken, marked and given back by
 *     compare-and-put, so two that try at once have one winner; and who has
 *     lost it, stopped or cut off meanwhile, changes nothing more.
 *  2. It says whether the cluster may have been changed: if not, what is in the
 *     cluster is not a restore's, and nobody may empty it for that reason. */
#ifndef CMD_CLAIM_H
#define CMD_CLAIM_H

#include <pthread.h>

#include "shardkv/client.h"

struct claim {
    struct skv_client *client;
    struct buf key;
    uint8_t id[8];
    bool writing; /* by us or by one who was broken off */
    bool held, beats;
    pthread_t thread;
    pthread_mutex_t lock; /* over `stop` */
    pthread_cond_t wake;
    bool stop;
};

enum { CLAIM_SHARD = 0 };

/* The key; no command can name it. */
void claim_key(struct buf *key);

/* These say on standard error why not. `writing` is true when a restore was
 * broken off. */
bool claim_take(struct claim *c, struct skv_client *client);
/* From here on the cluster is changed. */
bool claim_begin_writing(struct claim *c);
/* A compare that is part of every request which changes the cluster: one that
 * was on its way while another took the claim does nothing. */
struct skv_item claim_guard(const struct claim *c);
/* Why such a request failed. */
const char *claim_words(enum err rc);
/* All is there, or nothing was changed: it goes. */
bool claim_give_back(struct claim *c);
/* Ends what runs here; the key stays unless it was given back. */
void claim_fini(struct claim *c);

#endif
