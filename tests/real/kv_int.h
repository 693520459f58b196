/* The world of tests/real/kv.c, for its files alone. */
#ifndef TESTS_REAL_KV_INT_H
#define TESTS_REAL_KV_INT_H

#include <stdio.h>

#include "tests/real/process.h"
#include "tests/real/user.h"

enum {
    WORLD_LOOK_US = 10000,
    WORLD_SETS_MAX = CTL_GROUPS_MAX + 2, /* controllers, groups, and others */
};

/* Something that is called at its time. */
struct later {
    struct env_timer timer; /* first */
    struct kv *kv;
    void (*fn)(void *arg);
    void *arg;
    struct later *prev, *next;
};

/* Servers of one Raft group: numbers from `first` on. */
struct set {
    uint32_t first, count;
    uint32_t *leaders; /* by term: the number + 1; 0: none yet */
    raft_term term_count;
};

struct kv_world {
    struct rng rng;
    struct net_loop *loop;
    struct env *env;
    struct tls_context *client_tls, *admin_tls;
    struct process servers[REAL_NODES_MAX];
    bool ready[REAL_NODES_MAX]; /* it serves */
    uint64_t cuts[REAL_NODES_MAX];
    uint32_t server_count, port;
    struct set sets[WORLD_SETS_MAX];
    uint32_t set_count;
    struct faultnet_plan plan;
    struct kv_user *users; /* administrators, then clients */
    uint32_t user_count;
    struct kv_counts counts; /* the users' */
    const bool *awaited;     /* the loop stops when it is false */
    struct later look;       /* at what servers say */
    struct later alarm;      /* of who sleeps */
    struct later *laters;
    FILE *notes;
};

/* On its own it does not run; stopped by whoever frees it. */
void later_init(struct later *l, struct kv *kv, void (*fn)(void *arg),
                void *arg);
void later_free(struct later *l); /* one of kv_after()'s */

/* Called by w->look and w->alarm; `arg` is the kv. */
void world_look(void *arg);
void world_wake(void *arg);
void world_noted(struct process *p, const struct real_note *note);
/* A server that stopped, a signal, a row that takes too long: it has failed. */
void world_problems(struct kv *kv);
struct real_net world_net(const struct kv *kv, uint32_t number);
void world_address(const struct kv_world *w, uint32_t number,
                   char address[NET_ADDRESS_SIZE_MAX]);

#endif
