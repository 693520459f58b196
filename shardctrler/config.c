#include "shardctrler/config.h"

#include <string.h>

#include "transport/net.h"

const struct ctl_group *ctl_config_group(const struct ctl_config *c,
                                         ctl_gid gid)
{
    uint32_t low = 0;
    uint32_t high = c->groups_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->groups[middle].gid < gid) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < c->groups_count && c->groups[low].gid == gid;
    return found ? &c->groups[low] : NULL;
}

uint32_t ctl_config_weight(const struct ctl_config *c, ctl_gid gid)
{
    for (uint32_t i = 0; i < c->weights_count; i++) {
        if (c->weights[i].gid == gid) {
            return c->weights[i].weight;
        }
    }
    return 1;
}

static void group_copy(struct arena *a, const struct ctl_group *from,
                       struct ctl_group *to)
{
    *to = (struct ctl_group){.gid = from->gid,
                             .servers_count = from->servers_count};
    to->servers = arena_array(a, from->servers_count, sizeof *to->servers);
    for (uint32_t i = 0; i < from->servers_count; i++) {
        to->servers[i].id = from->servers[i].id;
        to->servers[i].address = arena_copy(a, from->servers[i].address);
    }
}

/* With room for one more. */
static void weights_copy(struct arena *a, const struct ctl_config *from,
                         struct ctl_config *to)
{
    to->weights = arena_array(a, from->weights_count + 1, sizeof *to->weights);
    to->weights_count = from->weights_count;
    for (uint32_t i = 0; i < from->weights_count; i++) {
        to->weights[i] = from->weights[i];
    }
}

/* Copies with room for `more` groups after those of `from`. */
static void config_copy_roomy(struct arena *a, const struct ctl_config *from,
                              uint32_t more, struct ctl_config *to)
{
    struct ctl_config copy = {
        .number = from->number,
        .shards_count = from->shards_count,
        .groups_count = from->groups_count,
        .move_rate = from->move_rate,
    };
    weights_copy(a, from, &copy);
    copy.shards = arena_array(a, from->shards_count, sizeof *copy.shards);
    for (uint32_t i = 0; i < from->shards_count; i++) {
        copy.shards[i] = from->shards[i];
    }
    copy.groups =
        arena_array(a, from->groups_count + more, sizeof *copy.groups);
    for (uint32_t i = 0; i < from->groups_count; i++) {
        group_copy(a, &from->groups[i], &copy.groups[i]);
    }
    *to = copy;
}

void ctl_config_copy(struct arena *a, const struct ctl_config *from,
                     struct ctl_config *to)
{
    config_copy_roomy(a, from, 0, to);
}

static enum err group_check(const struct ctl_group *g)
{
    if (g->gid == 0 || g->servers_count == 0) {
        return ERR_INVALID;
    }
    if (g->servers_count > CTL_SERVERS_MAX) {
        return ERR_TOOBIG;
    }
    for (uint32_t i = 0; i < g->servers_count; i++) {
        const struct ctl_server *s = &g->servers[i];
        if (s->id == 0 || s->address.size == 0 ||
            memchr(s->address.data, 0, s->address.size) != NULL) {
            return ERR_INVALID;
        }
        if (s->address.size >= NET_ADDRESS_SIZE_MAX) {
            return ERR_TOOBIG;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (g->servers[j].id == s->id ||
                slice_compare(g->servers[j].address, s->address) == 0) {
                return ERR_INVALID;
            }
        }
    }
    return ERR_OK;
}

static bool rate_is_good(uint64_t rate)
{
    return rate == 0 || rate >= CTL_RATE_MIN;
}

static enum err weights_check(const struct ctl_config *c)
{
    for (uint32_t i = 0; i < c->weights_count; i++) {
        const struct ctl_weight *w = &c->weights[i];
        if (w->weight < 2 || w->weight > CTL_WEIGHT_MAX ||
            ctl_config_group(c, w->gid) == NULL ||
            (i > 0 && w[-1].gid >= w->gid)) {
            return ERR_CORRUPT;
        }
    }
    return ERR_OK;
}

enum err ctl_config_check(const struct ctl_config *c)
{
    if (c->shards_count == 0 || c->shards_count > CTL_SHARDS_MAX ||
        c->groups_count > CTL_GROUPS_MAX) {
        return ERR_CORRUPT;
    }
    for (uint32_t i = 0; i < c->groups_count; i++) {
        if (group_check(&c->groups[i]) != ERR_OK ||
            (i > 0 && c->groups[i - 1].gid >= c->groups[i].gid)) {
            return ERR_CORRUPT;
        }
    }
    for (uint32_t i = 0; i < c->shards_count; i++) {
        ctl_gid gid = c->shards[i].gid;
        if (gid != 0 && ctl_config_group(c, gid) == NULL) {
            return ERR_CORRUPT;
        }
    }
    return rate_is_good(c->move_rate) ? weights_check(c) : ERR_CORRUPT;
}

static enum err join_check(const struct ctl_config *last,
                           const struct ctl_group *groups, uint32_t count)
{
    if (count == 0) {
        return ERR_INVALID;
    }
    if (count > CTL_GROUPS_MAX - last->groups_count) {
        return ERR_TOOBIG;
    }
    for (uint32_t i = 0; i < count; i++) {
        enum err rc = group_check(&groups[i]);
        if (rc != ERR_OK) {
            return rc;
        }
        if (ctl_config_group(last, groups[i].gid) != NULL) {
            return ERR_EXISTS;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (groups[j].gid == groups[i].gid) {
                return ERR_EXISTS;
            }
        }
    }
    return ERR_OK;
}

/* There is room for one more in the array. */
static void group_insert(struct arena *a, struct ctl_config *c,
                         const struct ctl_group *g)
{
    uint32_t at = c->groups_count++;
    while (at > 0 && c->groups[at - 1].gid > g->gid) {
        c->groups[at] = c->groups[at - 1];
        at--;
    }
    group_copy(a, g, &c->groups[at]);
}

enum err ctl_config_join(struct arena *a, const struct ctl_config *last,
                         const struct ctl_group *groups, uint32_t count,
                         struct ctl_config *next)
{
    enum err rc = join_check(last, groups, count);
    if (rc != ERR_OK) {
        return rc;
    }
    config_copy_roomy(a, last, count, next);
    next->number++;
    for (uint32_t i = 0; i < count; i++) {
        group_insert(a, next, &groups[i]);
    }
    ctl_config_rebalance(next);
    return ERR_OK;
}

static bool gid_among(ctl_gid gid, const ctl_gid *gids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (gids[i] == gid) {
            return true;
        }
    }
    return false;
}

static enum err leave_check(const struct ctl_config *last, const ctl_gid *gids,
                            uint32_t count)
{
    if (count == 0) {
        return ERR_INVALID;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (gids[i] == 0) {
            return ERR_INVALID;
        }
        if (ctl_config_group(last, gids[i]) == NULL ||
            gid_among(gids[i], gids, i)) {
            return ERR_NOTFOUND;
        }
    }
    if (count < last->groups_count) {
        return ERR_OK;
    }
    /* Nobody would be left to take the shards, and their contents. */
    for (uint32_t i = 0; i < last->shards_count; i++) {
        if (last->shards[i].gid != 0) {
            return ERR_INVALID;
        }
    }
    return ERR_OK;
}

static void weight_remove(struct ctl_config *c, ctl_gid gid)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->weights_count; i++) {
        if (c->weights[i].gid != gid) {
            c->weights[kept++] = c->weights[i];
        }
    }
    c->weights_count = kept;
}

/* There is room for one more in the array. */
static void weight_insert(struct ctl_config *c, ctl_gid gid, uint32_t weight)
{
    uint32_t at = c->weights_count++;
    while (at > 0 && c->weights[at - 1].gid > gid) {
        c->weights[at] = c->weights[at - 1];
        at--;
    }
    c->weights[at] = (struct ctl_weight){.gid = gid, .weight = weight};
}

enum err ctl_config_reweigh(struct arena *a, const struct ctl_config *last,
                            ctl_gid gid, uint32_t weight,
                            struct ctl_config *next)
{
    if (weight == 0 || weight > CTL_WEIGHT_MAX) {
        return ERR_INVALID;
    }
    if (ctl_config_group(last, gid) == NULL) {
        return ERR_NOTFOUND;
    }
    ctl_config_copy(a, last, next);
    next->number++;
    weight_remove(next, gid);
    if (weight > 1) {
        weight_insert(next, gid, weight);
    }
    ctl_config_rebalance(next);
    return ERR_OK;
}

enum err ctl_config_limit(struct arena *a, const struct ctl_config *last,
                          uint64_t rate, struct ctl_config *next)
{
    if (!rate_is_good(rate)) {
        return ERR_INVALID;
    }
    ctl_config_copy(a, last, next);
    next->number++;
    next->move_rate = rate;
    return ERR_OK;
}

enum err ctl_config_leave(struct arena *a, const struct ctl_config *last,
                          const ctl_gid *gids, uint32_t count,
                          struct ctl_config *next)
{
    enum err rc = leave_check(last, gids, count);
    if (rc != ERR_OK) {
        return rc;
    }
    ctl_config_copy(a, last, next);
    next->number++;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < next->groups_count; i++) {
        if (!gid_among(next->groups[i].gid, gids, count)) {
            next->groups[kept++] = next->groups[i];
        }
    }
    next->groups_count = kept;
    for (uint32_t i = 0; i < count; i++) {
        weight_remove(next, gids[i]);
    }
    ctl_config_rebalance(next);
    return ERR_OK;
}

enum err ctl_config_move(struct arena *a, const struct ctl_config *last,
                         uint32_t shard, ctl_gid gid, struct ctl_config *next)
{
    if (gid == 0 || shard >= last->shards_count) {
        return ERR_INVALID;
    }
    if (ctl_config_group(last, gid) == NULL) {
        return ERR_NOTFOUND;
    }
    ctl_config_copy(a, last, next);
    next->number++;
    next->shards[shard].gid = gid;
    return ERR_OK;
}

bool ctl_group_same(const struct ctl_group *a, const struct ctl_group *b)
{
    for (uint32_t i = 0; i < a->servers_count; i++) {
        bool found = false;
        for (uint32_t k = 0; k < b->servers_count && !found; k++) {
            found = a->servers[i].id == b->servers[k].id &&
                    slice_compare(a->servers[i].address,
                                  b->servers[k].address) == 0;
        }
        if (!found) {
            return false;
        }
    }
    return a->servers_count == b->servers_count;
}

enum err ctl_config_servers(struct arena *a, const struct ctl_config *last,
                            const struct ctl_group *group,
                            struct ctl_config *next)
{
    enum err rc = group_check(group);
    if (rc != ERR_OK) {
        return rc;
    }
    const struct ctl_group *now = ctl_config_group(last, group->gid);
    if (now == NULL) {
        return ERR_NOTFOUND;
    }
    if (ctl_group_same(now, group)) {
        return ERR_EXISTS;
    }
    ctl_config_copy(a, last, next);
    next->number++;
    group_copy(a, group, &next->groups[now - last->groups]);
    return ERR_OK;
}
