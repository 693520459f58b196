/* A clerk's or an administrator's place in the runner: a TLS net of its own,
 * and between the two a faultnet. */
#ifndef TESTS_REAL_USER_H
#define TESTS_REAL_USER_H

#include "tests/labs/kv_harness.h"
#include "tests/lib/faultnet.h"
#include "transport/rpc.h"

struct kv_user {
    struct kv_counts *counts; /* what it sends and hears is added */
    uint32_t port;            /* of server number 0 */
    uint64_t cut; /* bit: the number of a server that it does not reach */
    struct rpc *rpc;
    struct faultnet *faults;
};

/* The first three fields are set. */
void user_init(struct kv_user *u, struct net_loop *loop,
               struct tls_context *tls, uint64_t seed);
/* After the parts that use it; the loop does not run. */
void user_fini(struct kv_user *u);
struct net *user_net(struct kv_user *u);

#endif
