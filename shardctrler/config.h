/* Which group owns which shard: numbered configurations, and the pure functions
 * that make the next from the last. No clock, no random number, no hash order:
 * every replica computes the same. */
#ifndef SHARDCTRLER_CONFIG_H
#define SHARDCTRLER_CONFIG_H

#include <stdbool.h>

#include "base/msg.h"

#define CTL_SHARDS_MAX     4096u
#define CTL_GROUPS_MAX     256u
#define CTL_SERVERS_MAX    16u /* replicas of one group */
#define CTL_SHARDS_DEFAULT 128u
#define CTL_WEIGHT_MAX     1000u
#define CTL_RATE_MIN       (1u << 20)

typedef uint32_t ctl_gid; /* 0: no group; the controllers' own group */

#define CTL_SERVER_FIELDS(F) F(U64, id) F(BYTES, address)
MSG_STRUCT(ctl_server, CTL_SERVER_FIELDS);

#define CTL_GROUP_FIELDS(F)                                                    \
    F(U32, gid)                                                                \
    F(LIST, ctl_server, servers, CTL_SERVERS_MAX)
MSG_STRUCT(ctl_group, CTL_GROUP_FIELDS);

#define CTL_OWNER_FIELDS(F) F(U32, gid)
MSG_STRUCT(ctl_owner, CTL_OWNER_FIELDS);

/* Of a group that shall have another part of the shards than those of weight 1.
 */
#define CTL_WEIGHT_FIELDS(F) F(U32, gid) F(U32, weight)
MSG_STRUCT(ctl_weight, CTL_WEIGHT_FIELDS);

/* Number 0 has no groups, and all shards belong to nobody. */
#define CTL_CONFIG_FIELDS(F)                                                   \
    F(U64, number)                                                             \
    F(LIST, ctl_owner, shards, CTL_SHARDS_MAX)   /* index: the shard */        \
    F(LIST, ctl_group, groups, CTL_GROUPS_MAX)   /* sorted by gid */           \
    F(LIST, ctl_weight, weights, CTL_GROUPS_MAX) /* those above 1; likewise */ \
    F(U64, move_rate) /* bytes a second that shards arrive at; 0: any */
MSG_STRUCT(ctl_config, CTL_CONFIG_FIELDS);

/* The group's entry, or NULL. */
const struct ctl_group *ctl_config_group(const struct ctl_config *c,
                                         ctl_gid gid);
uint32_t ctl_config_weight(const struct ctl_config *c, ctl_gid gid);
/* ERR_CORRUPT unless the functions below could have made it: sorted groups with
 * servers, sizes within limits, every shard's owner there. For a configuration
 * that came from a peer or a disk. */
MUST_USE enum err ctl_config_check(const struct ctl_config *c);
/* A deep copy into the arena. */
void ctl_config_copy(struct arena *a, const struct ctl_config *from,
                     struct ctl_config *to);

/* Each makes `next` = `last` changed, numbered one higher, in memory of `a`.
 * ERR_EXISTS: a gid joins twice. ERR_NOTFOUND: a gid is not there.
 * ERR_INVALID: gid 0, no servers, a shard out of range, a weight or a rate that
 * may not be, or the last group would leave while it holds shards. ERR_TOOBIG:
 * a limit above. */
MUST_USE enum err ctl_config_join(struct arena *a,
                                  const struct ctl_config *last,
                                  const struct ctl_group *groups,
                                  uint32_t count, struct ctl_config *next);
MUST_USE enum err ctl_config_leave(struct arena *a,
                                   const struct ctl_config *last,
                                   const ctl_gid *gids, uint32_t count,
                                   struct ctl_config *next);
/* The group is served by these from now on; no shard moves. */
MUST_USE enum err ctl_config_servers(struct arena *a,
                                     const struct ctl_config *last,
                                     const struct ctl_group *group,
                                     struct ctl_config *next);
/* The same servers, in any order? */
bool ctl_group_same(const struct ctl_group *a, const struct ctl_group *b);
MUST_USE enum err ctl_config_move(struct arena *a,
                                  const struct ctl_config *last, uint32_t shard,
                                  ctl_gid gid, struct ctl_config *next);

/* From now on the group has `weight` parts of the shards: they are spread anew.
 */
MUST_USE enum err ctl_config_reweigh(struct arena *a,
                                     const struct ctl_config *last, ctl_gid gid,
                                     uint32_t weight, struct ctl_config *next);
/* How fast shards may arrive at a group; 0: no limit. */
MUST_USE enum err ctl_config_limit(struct arena *a,
                                   const struct ctl_config *last, uint64_t rate,
                                   struct ctl_config *next);

/* Spreads the shards over c->groups in proportion to their weights (each count
 * is the exact share, rounded up or down) with the fewest moves. */
void ctl_config_rebalance(struct ctl_config *c);

#endif
