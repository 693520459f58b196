#include "cmd/health.h"

#include <inttypes.h>
#include <string.h>

#include "raft/raft.h"

/* ---- asking ---- */

void health_fini(struct health *h)
{
    arena_free(&h->arena);
}

void health_add_one(struct health *h, ctl_gid gid, uint64_t id,
                    struct slice address)
{
    if (h->count == HEALTH_REPLICAS_MAX ||
        address.size >= NET_ADDRESS_SIZE_MAX) {
        return;
    }
    struct ask_replica *r = &h->replicas[h->count++];
    *r = (struct ask_replica){.gid = gid, .id = id};
    memcpy(r->address, address.data, address.size);
}

void health_add(struct health *h, const struct ctl_group *group)
{
    for (uint32_t i = 0; i < h->count; i++) {
        if (h->replicas[i].gid == group->gid) {
            return;
        }
    }
    for (uint32_t i = 0; i < group->servers_count; i++) {
        health_add_one(h, group->gid, group->servers[i].id,
                       group->servers[i].address);
    }
}

void health_add_all(struct health *h, const struct ctl_config *config)
{
    for (uint32_t g = 0; g < config->groups_count; g++) {
        health_add(h, &config->groups[g]);
    }
}

void health_add_controllers(struct health *h,
                            const struct skv_client_config *config)
{
    for (uint32_t i = 0; i < config->controller_count; i++) {
        health_add_one(h, 0, i + 1, slice_text(config->controllers[i]));
    }
}

void health_ask(struct health *h, struct skv_client *client,
                uint32_t timeout_ms)
{
    for (uint32_t i = 0; i < h->count; i++) {
        h->replicas[i].status = (struct ctl_status){0};
    }
    arena_free(&h->arena);
    ask_statuses(client, h->replicas, h->count, timeout_ms, &h->arena);
}

/* ---- who has what ---- */

bool health_waits_for(const struct ctl_status *s, uint32_t shard)
{
    bool named = s->arriving > s->moves_count;
    for (uint32_t i = 0; i < s->moves_count; i++) {
        named |= s->moves[i].shard == shard;
    }
    return named;
}

/* What a group waits for is with who had it before. */
static void note_holders(struct health *h, const struct ctl_status *s,
                         const struct ctl_config *before,
                         const struct ctl_config *now)
{
    for (uint32_t i = 0; i < now->shards_count && i < before->shards_count;
         i++) {
        ctl_gid from = before->shards[i].gid;
        if (now->shards[i].gid == s->gid && from != 0 && from != s->gid &&
            health_waits_for(s, i)) {
            h->holder[i] = from;
        }
    }
}

/* Who has left is needed until its shards have arrived, and a group that is
 * behind waits for those of the configuration that it is at. */
static void follow(struct health *h, struct skv_client *client,
                   const struct ctl_status *s, uint32_t timeout_ms)
{
    struct arena arena = {0};
    struct ctl_config before = {0}, now = {0};
    if (s->config_number > 0 &&
        ask_config(client, s->config_number, timeout_ms, &arena, &now) ==
            ERR_OK &&
        ask_config(client, s->config_number - 1, timeout_ms, &arena, &before) ==
            ERR_OK) {
        note_holders(h, s, &before, &now);
        health_add_all(h, &now);
        health_add_all(h, &before);
    }
    arena_free(&arena);
}

void health_ask_all(struct health *h, struct skv_client *client,
                    const struct ctl_config *newest, uint32_t timeout_ms)
{
    uint32_t known = h->count;
    health_ask(h, client, timeout_ms);
    for (uint32_t i = 0; i < newest->shards_count; i++) {
        h->holder[i] = newest->shards[i].gid;
    }
    for (uint32_t i = 0; i < known; i++) {
        const struct ctl_status *s = &h->replicas[i].status;
        if (h->replicas[i].rc == ERR_OK && s->role == RAFT_LEADER &&
            s->arriving + s->leaving > 0) {
            follow(h, client, s, timeout_ms);
        }
    }
    ask_statuses(client, &h->replicas[known], h->count - known, timeout_ms,
                 &h->arena);
}

/* ---- judging ---- */

struct health_group health_of(const struct health *h, ctl_gid gid)
{
    struct health_group g = {.gid = gid};
    for (uint32_t i = 0; i < h->count; i++) {
        const struct ask_replica *one = &h->replicas[i];
        /* Somebody else may have the address by now. */
        bool answers = one->rc == ERR_OK && one->status.gid == gid;
        if (one->gid == gid) {
            g.all++;
            g.answer += answers;
            g.leader =
                answers && one->status.role == RAFT_LEADER ? one : g.leader;
        }
    }
    return g;
}

bool health_has_majority(const struct health_group *g)
{
    return g->answer > g->all / 2;
}

bool health_is_dead(const struct health *h, ctl_gid gid)
{
    struct health_group g = health_of(h, gid);
    return !health_has_majority(&g);
}

static bool seen_before(const struct health *h, uint32_t at)
{
    for (uint32_t i = 0; i < at; i++) {
        if (h->replicas[i].gid == h->replicas[at].gid) {
            return true;
        }
    }
    return false;
}

uint32_t health_next(const struct health *h, uint32_t i)
{
    do {
        i++;
    } while (i < h->count && seen_before(h, i));
    return i;
}

/* Since a group's leader last spoke to some controller that answers. */
static bool heard_ago(const struct health *h, ctl_gid gid, uint64_t *ago_ms)
{
    *ago_ms = UINT64_MAX;
    for (uint32_t i = 0; i < h->count; i++) {
        const struct ctl_status *s = &h->replicas[i].status;
        for (uint32_t k = 0; h->replicas[i].rc == ERR_OK && k < s->heard_count;
             k++) {
            if (s->heard[k].gid == gid && s->heard[k].ago_ms < *ago_ms) {
                *ago_ms = s->heard[k].ago_ms;
            }
        }
    }
    return *ago_ms != UINT64_MAX;
}

void health_say(FILE *to, const struct health *h, ctl_gid gid)
{
    struct health_group g = health_of(h, gid);
    uint64_t ago_ms = 0;
    fprintf(to, "only %u of %u replicas answer, which is no majority", g.answer,
            g.all);
    if (gid != 0 && heard_ago(h, gid, &ago_ms)) {
        fprintf(to,
                "; its leader last spoke to the controllers %" PRIu64 " s ago",
                ago_ms / 1000);
    }
}

/* ---- shards ---- */

void health_say_held(FILE *to, const struct health *h, ctl_gid gid)
{
    uint8_t held[CTL_SHARDS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < CTL_SHARDS_MAX; i++) {
        held[i] = h->holder[i] == gid;
        count += held[i];
    }
    fprintf(to, count == 0 ? "no shards" : "shards");
    health_print_shards(to, held, CTL_SHARDS_MAX);
}

void health_print_shards(FILE *to, const uint8_t *set, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t from = i;
        while (i < count && set[i]) {
            i++;
        }
        if (i - from == 1) {
            fprintf(to, " %u", from);
        } else if (i > from) {
            fprintf(to, " %u-%u", from, i - 1);
        }
    }
}
