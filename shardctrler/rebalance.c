/* Spreading shards over groups. Why it is even with the fewest moves:
 *
 *  1. With s shards and g groups, s mod g groups must end with s/g + 1 shards
 *     (full) and the others with s/g.
 *  2. A shard moves only when its owner is gone, or has more than its target.
 *     So the number of moves is the shards of nobody plus the sum of what the
 *     groups have above their targets.
 *  3. That sum is smallest when the groups with the most shards now are the
 *     full ones: a full target saves a move exactly when its group has more
 *     than s/g. Ties go to the lower gid, so every replica does the same.
 *
 * tests/unit/test_ctl_config.c compares it with the best of all even
 * assignments, for every small case. */
#include "shardctrler/config.h"

#include "base/check.h"

struct share {
    uint32_t count;  /* shards it has now */
    uint32_t target; /* shards it must end with */
};

static uint32_t group_index(const struct ctl_config *c, ctl_gid gid)
{
    const struct ctl_group *g = ctl_config_group(c, gid);
    return g == NULL ? c->groups_count : (uint32_t)(g - c->groups);
}

/* Invariant 3: the fullest group that has no full target yet; the lowest gid
 * among equals. */
static uint32_t fullest(const struct share *shares, uint32_t count,
                        uint32_t target_full)
{
    uint32_t best = count;
    for (uint32_t i = 0; i < count; i++) {
        if (shares[i].target != target_full &&
            (best == count || shares[i].count > shares[best].count)) {
            best = i;
        }
    }
    CHECK(best < count);
    return best;
}

static void shares_set_targets(struct share *shares, uint32_t count,
                               uint32_t shards)
{
    uint32_t low = shards / count;
    for (uint32_t i = 0; i < count; i++) {
        shares[i].target = low;
    }
    for (uint32_t i = 0; i < shards % count; i++) {
        shares[fullest(shares, count, low + 1)].target = low + 1;
    }
}

/* Shards of groups that are gone, and the last ones of those with too many,
 * belong to nobody after this. */
static void release_surplus(struct ctl_config *c, struct share *shares)
{
    for (uint32_t i = c->shards_count; i-- > 0;) {
        uint32_t owner = group_index(c, c->shards[i].gid);
        if (owner == c->groups_count) {
            c->shards[i].gid = 0;
        } else if (shares[owner].count > shares[owner].target) {
            shares[owner].count--;
            c->shards[i].gid = 0;
        }
    }
}

static void hand_out(struct ctl_config *c, struct share *shares)
{
    uint32_t to = 0;
    for (uint32_t i = 0; i < c->shards_count; i++) {
        if (c->shards[i].gid != 0) {
            continue;
        }
        while (shares[to].count == shares[to].target) {
            to++;
            CHECK(to < c->groups_count);
        }
        shares[to].count++;
        c->shards[i].gid = c->groups[to].gid;
    }
}

void ctl_config_rebalance(struct ctl_config *c)
{
    struct share shares[CTL_GROUPS_MAX] = {0};
    CHECK(c->groups_count <= CTL_GROUPS_MAX);
    for (uint32_t i = 0; i < c->shards_count; i++) {
        uint32_t owner = group_index(c, c->shards[i].gid);
        if (owner < c->groups_count) {
            shares[owner].count++;
        }
    }
    if (c->groups_count > 0) {
        shares_set_targets(shares, c->groups_count, c->shards_count);
    }
    release_surplus(c, shares);
    if (c->groups_count > 0) {
        hand_out(c, shares);
    }
}
