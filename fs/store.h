/* The seam to the store: what fs/ asks of whoever runs minitransactions.
 * store_client.c implements it over the clerk; tests/lib/fake_store.c in the
 * memory of one process. */
#ifndef FS_STORE_H
#define FS_STORE_H

#include "shardkv/client.h"

struct fs_store {
    /* Runs and waits. Any thread, many at once. Gives txn->rc: ERR_OK,
     * ERR_CONFLICT, or an error that waiting would not cure: what a retry can
     * cure never gets here. */
    enum err (*exec)(struct fs_store *s, struct skv_txn *txn);
    /* From any thread, while `txn` lives, also before or after exec(): makes
     * it return ERR_INTERRUPTED soon. */
    void (*cancel)(struct fs_store *s, struct skv_txn *txn);
    uint32_t (*shard_count)(struct fs_store *s); /* 0: not known yet */
};

/* Over a client, which is borrowed and must outlive it. Free with
 * fs_store_client_free(). */
struct fs_store *fs_store_client_new(struct skv_client *client);
void fs_store_client_free(struct fs_store *s);

#endif
