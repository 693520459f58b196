/* What went wrong, for people. */
#include <stdio.h>

#include "shardkv/clerk_int.h"

static bool writes(const struct skv_txn *txn)
{
    for (uint32_t i = 0; i < txn->item_count; i++) {
        if (skv_kind_is_write(txn->items[i].kind)) {
            return true;
        }
    }
    return false;
}

void skv_txn_explain(const struct skv_txn *txn, char *words, size_t size)
{
    const struct skv_stuck *at = &txn->stuck;
    char who[96];
    if (txn->rc != ERR_TIMEDOUT) {
        snprintf(words, size, "%s", err_text(txn->rc));
        return;
    }
    if (at->locked) {
        snprintf(who, sizeof who,
                 "shard %u of group %u was locked by another transaction",
                 at->shard, at->gid);
    } else if (at->gid == 0) {
        snprintf(who, sizeof who, "no group serves shard %u", at->shard);
    } else {
        snprintf(who, sizeof who,
                 "group %u, which has shard %u, did not answer", at->gid,
                 at->shard);
    }
    snprintf(words, size, "%s for %u ms%s; `flotilla status` says more", who,
             txn->timeout_ms,
             writes(txn) && !at->locked ? " (it may be done all the same)"
                                        : "");
}
