/* Spreading shards over groups. Why it is even with the fewest moves:
 *
 *  1. Of s shards a group of weight w, of all weights W, must end with s*w/W,
 *     rounded down, or one more (full) if that is not exact. As many are full
 *     as shards are left over: fewer than have a remainder.
 *  2. A shard moves only when its owner is gone, or has more than its target.
 *     So the number of moves is the shards of nobody plus the sum of what the
 *     groups have above their targets.
 *  3. That sum is smallest when the groups with the most shards above their
 *     rounded share are the full ones: a full target saves a move exactly when
 *     its group has more than that. Ties go to the greater remainder, then to
 *     the lower gid, so every replica does the same.
 *
 * tests/unit/test_ctl_config.c compares it with the best of all even
 * assignments, for every small case. */
#include "shardctrler/config.h"

#include "base/check.h"

struct share {
    uint32_t count;  /* shards it has now */
    uint32_t target; /* shards it must end with */
    uint32_t part;   /* what was rounded off, in parts of all weights */
    bool full;
};

static uint32_t group_index(const struct ctl_config *c, ctl_gid gid)
{
    const struct ctl_group *g = ctl_config_group(c, gid);
    return g == NULL ? c->groups_count : (uint32_t)(g - c->groups);
}

/* Of two with a remainder: invariant 3. */
static bool is_fuller(const struct share *a, const struct share *b)
{
    int64_t above_a = (int64_t)a->count - a->target;
    int64_t above_b = (int64_t)b->count - b->target;
    return above_a != above_b ? above_a > above_b : a->part > b->part;
}

/* Of those that may be full and are not yet. */
static struct share *fullest(struct share *shares, uint32_t count)
{
    struct share *best = NULL;
    for (uint32_t i = 0; i < count; i++) {
        struct share *s = &shares[i];
        if (s->part > 0 && !s->full && (best == NULL || is_fuller(s, best))) {
            best = s;
        }
    }
    CHECK(best != NULL);
    return best;
}

/* Invariant 1. */
static void shares_set_targets(const struct ctl_config *c, struct share *shares)
{
    uint32_t count = c->groups_count;
    uint32_t all = 0;
    uint32_t left = c->shards_count;
    for (uint32_t i = 0; i < count; i++) {
        all += ctl_config_weight(c, c->groups[i].gid);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t parts =
            c->shards_count * ctl_config_weight(c, c->groups[i].gid);
        shares[i].target = parts / all;
        shares[i].part = parts % all;
        left -= shares[i].target;
    }
    for (; left > 0; left--) {
        fullest(shares, count)->full = true;
    }
    for (uint32_t i = 0; i < count; i++) {
        shares[i].target += shares[i].full;
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
        shares_set_targets(c, shares);
    }
    release_surplus(c, shares);
    if (c->groups_count > 0) {
        hand_out(c, shares);
    }
}
