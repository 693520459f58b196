/* How fast shards arrive. A batch costs processor and disk in both groups, and
 * whoever else waits for these. Invariants:
 *
 *  1. Clients first: while either group has any, a leader takes at most one
 *     part in PARTS of the time for batches, of all its shards together. What
 *     a batch took is measured, so the slower the machines are the longer they
 *     rest; not after one that is so small that this was the net's delay. What
 *     it costs behind its log, where replicas apply it and write it down, is
 *     not measured and comes on top: hence so small a part.
 *  2. An operator's rate is kept, with clients or without, but for (3).
 *  3. A move ends: no rest for clients is longer than REST_MAX_US, and while
 *     changes are caught up with both ease off until, after as long as the copy
 *     took, they are gone. Else who writes faster than changes are fetched
 *     would keep the shard on its way, or freeze it for the rest. */
#include "shardkv/server_int.h"

enum {
    PARTS = 20,
    REST_MAX_US = 1000000,
    QUIET_US = 100000, /* without a request: no clients */
    ALL = 1024,
};

bool skv_pace_has_clients(uint64_t asked_us, uint64_t now_us)
{
    return asked_us != 0 && now_us - asked_us < QUIET_US;
}

/* Invariant 3: what is left of a rest, in parts of ALL. */
static uint64_t ease(const struct skv_pace_batch *b, uint64_t now_us)
{
    if (b->changes_us == 0) {
        return ALL;
    }
    uint64_t copied_us = b->changes_us - b->copy_us;
    uint64_t chased_us = now_us - b->changes_us;
    return chased_us < copied_us ? ALL - chased_us * ALL / copied_us : 0;
}

static uint64_t rest_us(const struct skv_pace_batch *b, uint64_t now_us)
{
    bool yields = b->busy && !b->small;
    uint64_t clients_us = yields ? (now_us - b->begun_us) * (PARTS - 1) : 0;
    uint64_t rate_us = b->rate == 0 ? 0 : b->bytes * 1000000 / b->rate;
    uint64_t spent_us = now_us - b->begun_us;
    rate_us = rate_us > spent_us ? rate_us - spent_us : 0;
    clients_us = clients_us < REST_MAX_US ? clients_us : REST_MAX_US;
    uint64_t most_us = clients_us > rate_us ? clients_us : rate_us;
    return most_us * ease(b, now_us) / ALL;
}

uint64_t skv_pace_rest(struct skv_pace *p, const struct skv_pace_batch *b,
                       uint64_t now_us)
{
    uint64_t rest = rest_us(b, now_us);
    uint64_t from_us = p->free_us > now_us && rest > 0 ? p->free_us : now_us;
    p->free_us = from_us + rest;
    return p->free_us - now_us;
}
