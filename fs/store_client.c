#include "fs/store.h"

struct store_client {
    struct fs_store base; /* first: the seam is cast back to this */
    struct skv_client *client;
};

static enum err client_exec(struct fs_store *s, struct skv_txn *txn)
{
    return skv_client_run(((struct store_client *)s)->client, txn);
}

static void client_cancel(struct fs_store *s, struct skv_txn *txn)
{
    skv_client_cancel(((struct store_client *)s)->client, txn);
}

static uint32_t client_shard_count(struct fs_store *s)
{
    return skv_client_shard_count(((struct store_client *)s)->client);
}

struct fs_store *fs_store_client_new(struct skv_client *client)
{
    struct store_client *s = mem_alloc(sizeof *s);
    s->base.exec = client_exec;
    s->base.cancel = client_cancel;
    s->base.shard_count = client_shard_count;
    s->client = client;
    return &s->base;
}

void fs_store_client_free(struct fs_store *s)
{
    mem_free(s);
}
