/* An env on virtual time and a net whose calls the test answers by hand: for
 * scripts of the kind "the first reply is lost, the second says not leader". */
#ifndef TESTS_LIB_SCRIPTED_NET_H
#define TESTS_LIB_SCRIPTED_NET_H

#include "base/env.h"
#include "base/rng.h"
#include "transport/net.h"

struct sn_call {
    uint64_t id;
    char address[NET_ADDRESS_SIZE_MAX];
    net_method method;
    struct buf body;
    uint64_t sent_us;
    uint64_t deadline_us;
    net_reply_fn *reply;
    void *arg;
    struct sn_call *next;
};

struct sn_timer {
    uint64_t at_us;
    struct env_timer *timer;
    struct sn_timer *next;
};

struct sn {
    struct env env; /* first */
    struct net net;
    uint64_t now_us;
    struct rng rng;
    struct sn_timer *timers; /* by time */
    struct sn_call *calls;   /* unanswered, oldest first */
    uint64_t last_id;
    uint64_t sent; /* calls ever made */
    /* Sees each new call; may be NULL. Must not answer it. */
    void (*on_call)(struct sn_call *call);
    struct env_job *posted;
};

void sn_init(struct sn *s, uint64_t seed);
void sn_fini(struct sn *s); /* fails when timers or calls are left */

/* The next timer or timeout, if it is due by `until_us`. */
bool sn_step(struct sn *s, uint64_t until_us);
void sn_run(struct sn *s, uint64_t for_us);
void sn_answer(struct sn *s, struct sn_call *call, enum err rc,
               struct slice body);

#endif
