/* The parts of `flotilla kv`: kv.c for one key, txn.c for several at once. */
#ifndef CMD_KV_INT_H
#define CMD_KV_INT_H

#include "cmd/args.h"
#include "cmd/cluster.h"

enum { KV_NAME_SIZE_MAX = SKV_KEY_SIZE_MAX - SKV_OBJECT_SIZE };

struct kv {
    struct skv_client *client;
    struct buf key;
    uint32_t timeout_ms;
};

/* Reads a minitransaction from standard input, runs it and prints what its
 * reads found. Gives the exit status. */
int kv_txn(const struct kv *kv);

#endif
