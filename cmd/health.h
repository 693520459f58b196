/* How groups are, judged by what their replicas answered: who has no majority,
 * since when, and which shards wait for it. */
#ifndef CMD_HEALTH_H
#define CMD_HEALTH_H

#include <stdio.h>

#include "cmd/ask.h"

enum { HEALTH_REPLICAS_MAX = 1024 };

/* Whom to ask, and then their answers. Zero-initialise; free with
 * health_fini(). */
struct health {
    struct ask_replica replicas[HEALTH_REPLICAS_MAX];
    uint32_t count;
    struct arena arena;             /* of the answers */
    ctl_gid holder[CTL_SHARDS_MAX]; /* who has it now; 0: nobody known */
};
void health_fini(struct health *h);
void health_add_one(struct health *h, ctl_gid gid, uint64_t id,
                    struct slice address);
/* Each group once. */
void health_add(struct health *h, const struct ctl_group *group);
void health_add_all(struct health *h, const struct ctl_config *config);
/* They know since when a group is silent. */
void health_add_controllers(struct health *h,
                            const struct skv_client_config *config);
/* Again, too: earlier answers are forgotten. */
void health_ask(struct health *h, struct skv_client *client,
                uint32_t timeout_ms);
/* Asks, and finds who has which shard: while it is on its way, its owner in an
 * earlier configuration, who may have left the newest one. */
void health_ask_all(struct health *h, struct skv_client *client,
                    const struct ctl_config *newest, uint32_t timeout_ms);

/* Does the leader that said this wait for the shard? It names some of those
 * that it waits for; if not all, any may be one of the others. */
bool health_waits_for(const struct ctl_status *s, uint32_t shard);

struct health_group {
    ctl_gid gid;
    uint32_t all, answer;
    const struct ask_replica *leader; /* NULL: none says that it leads */
};
struct health_group health_of(const struct health *h, ctl_gid gid);
bool health_has_majority(const struct health_group *g);
/* A group that has none: shards wait for it, or the configuration has it. */
bool health_is_dead(const struct health *h, ctl_gid gid);
/* The position of the next group after that of replica `i`; `count` is the
 * end. */
uint32_t health_next(const struct health *h, uint32_t i);

/* "only 1 of 3 replicas answer, which is no majority; its leader last spoke to
 * the controllers 25 s ago" */
void health_say(FILE *to, const struct health *h, ctl_gid gid);
/* "shards 0-3 7" that the group has now. */
void health_say_held(FILE *to, const struct health *h, ctl_gid gid);
/* " 0-3 7": the shards that are set. */
void health_print_shards(FILE *to, const uint8_t *set, uint32_t count);

#endif
