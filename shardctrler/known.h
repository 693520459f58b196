/* Where the controllers are, for their clerk (client.c): the addresses that it
 * was given, and what the controllers say of their members since. */
#ifndef SHARDCTRLER_KNOWN_H
#define SHARDCTRLER_KNOWN_H

#include "base/env.h"
#include "rsm/rsm.h"
#include "shardctrler/client.h"

enum {
    CTL_KNOWN_MAX = 2 * RAFT_PEERS_MAX, /* members, and those of the start */
};

struct ctl_place {
    char address[NET_ADDRESS_SIZE_MAX];
    bool member;    /* as far as is known: it is asked */
    bool given;     /* at the start: asked where the others are, if they hide */
    uint32_t tries; /* on their way: the position is not another's meanwhile */
};

struct ctl_known {
    struct env *env;
    struct net *net;
    struct ctl_place places[CTL_KNOWN_MAX];
    uint32_t count;     /* of positions that were ever used */
    uint32_t leader;    /* by the last look; a guess */
    raft_term term;     /* of the leader that said who is a member */
    uint64_t heard_us;  /* the last answer, to whatever call */
    uint64_t looked_us; /* when the last look began */
    uint64_t resort_us; /* of the last look at those of the start */
    bool doubt;         /* somebody did not answer */
    bool said;          /* that nobody answers */
    struct env_timer timer;
    /* The look that runs. */
    uint64_t net_call; /* 0: none runs */
    uint32_t asking;
    uint32_t asked; /* a bit for each position */
    bool found;     /* somebody answered */
    bool resort;    /* if nobody does, those of the start are asked */
};

void ctl_known_init(struct ctl_known *k, struct env *env, struct net *net,
                    const char (*addresses)[NET_ADDRESS_SIZE_MAX],
                    uint32_t count);
void ctl_known_fini(struct ctl_known *k);

/* What became of a call to the place. When one was silent and another answers,
 * the list may be old: it is looked at once. */
void ctl_known_silent(struct ctl_known *k);
void ctl_known_answered(struct ctl_known *k, uint32_t at);

#endif
