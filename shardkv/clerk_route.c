/* Where a shard is served. The clerk follows the newest configuration by long
 * polls, and asks at once when a group says that it has seen a newer one. */
#include "shardkv/clerk_int.h"

#include <string.h>

#include "base/check.h"

enum {
    POLL_WAIT_MS = 20000,
    POLL_TIMEOUT_MS = 30000,
    POLL_PAUSE_US = 200000,
    REFRESH_TIMEOUT_MS = 5000,
    AVOID_US = 2000000
};

static struct skv_route *route_of(struct skv_clerk *c, ctl_gid gid)
{
    struct skv_route *r = NULL;
    HASH_FIND(hh, c->routes, &gid, sizeof gid, r);
    if (r == NULL) {
        r = mem_alloc(sizeof *r);
        r->gid = gid;
        HASH_ADD(hh, c->routes, gid, sizeof r->gid, r);
    }
    return r;
}

static struct skv_detour *detour_of(struct skv_clerk *c, uint16_t shard)
{
    struct skv_detour *d = NULL;
    HASH_FIND(hh, c->detours, &shard, sizeof shard, d);
    return d;
}

/* The one that answered last, or the first after it that need not be avoided.
 */
static uint32_t route_choose(struct skv_clerk *c, const struct skv_route *r,
                             uint32_t count)
{
    uint64_t now_us = env_now_us(c->env);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (r->leader + i) % count;
        if (r->avoid_until_us[at] <= now_us) {
            return at;
        }
    }
    return r->leader % count;
}

static const struct ctl_group *group_serving(struct skv_clerk *c,
                                             uint16_t shard)
{
    CHECK(c->has_config && shard < c->config.shards_count);
    const struct skv_detour *d = detour_of(c, shard);
    return d != NULL
               ? &d->group
               : ctl_config_group(&c->config, c->config.shards[shard].gid);
}

static void address_copy(const struct ctl_server *server,
                         char address[NET_ADDRESS_SIZE_MAX])
{
    struct slice text = server->address;
    CHECK(text.size < NET_ADDRESS_SIZE_MAX); /* checked when it came */
    memcpy(address, text.data, text.size);
    address[text.size] = '\0';
}

bool skv_route_find(struct skv_clerk *c, uint16_t shard, ctl_gid *gid,
                    uint32_t *server, uint32_t *server_count,
                    char address[NET_ADDRESS_SIZE_MAX])
{
    const struct ctl_group *g = group_serving(c, shard);
    if (g == NULL) {
        return false;
    }
    *gid = g->gid;
    *server_count = g->servers_count;
    *server = route_choose(c, route_of(c, g->gid), g->servers_count);
    address_copy(&g->servers[*server], address);
    return true;
}

bool skv_route_address(struct skv_clerk *c, uint16_t shard, ctl_gid gid,
                       uint32_t server, char address[NET_ADDRESS_SIZE_MAX])
{
    const struct ctl_group *g = group_serving(c, shard);
    if (g == NULL || g->gid != gid || server >= g->servers_count) {
        return false;
    }
    address_copy(&g->servers[server], address);
    return true;
}

/* Only the first of many that fail at once turns to the next server. The one
 * that would be asked now may stand in for one to be avoided: it is that one's
 * turn that is over, or it alone would be asked for as long. */
void skv_route_failed(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                      uint32_t server_count)
{
    struct skv_route *r = route_of(c, gid);
    if (route_choose(c, r, server_count) == server) {
        r->leader = (server + 1) % server_count;
    }
}

void skv_route_answered(struct skv_clerk *c, ctl_gid gid, uint32_t server)
{
    struct skv_route *r = route_of(c, gid);
    r->leader = server;
    r->known = true;
    r->avoid_until_us[server] = 0;
    r->answered_us[server] = env_now_us(c->env);
}

bool skv_route_has_answered(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                            uint64_t since_us)
{
    return route_of(c, gid)->answered_us[server] > since_us;
}

bool skv_route_book(struct skv_clerk *c, ctl_gid gid, size_t size, bool first)
{
    struct skv_route *r = route_of(c, gid);
    bool has_room = r->long_size == 0 || r->long_size + size <= SKV_LINE_SIZE;
    if (!has_room || (r->line_length > 0 && !first)) {
        return false;
    }
    r->long_size += size;
    return true;
}

void skv_route_unbook(struct skv_clerk *c, ctl_gid gid, size_t size)
{
    struct skv_route *r = route_of(c, gid);
    CHECK(r->long_size >= size);
    r->long_size -= size;
}

void skv_route_line(struct skv_clerk *c, ctl_gid gid, bool joins)
{
    struct skv_route *r = route_of(c, gid);
    CHECK(joins || r->line_length > 0);
    r->line_length += joins ? 1 : UINT32_MAX;
}

bool skv_route_is_known(struct skv_clerk *c, ctl_gid gid)
{
    return route_of(c, gid)->known;
}

void skv_route_avoid(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                     uint32_t server_count)
{
    skv_route_failed(c, gid, server, server_count);
    route_of(c, gid)->avoid_until_us[server] = env_now_us(c->env) + AVOID_US;
}

void skv_route_led(struct skv_clerk *c, ctl_gid gid)
{
    route_of(c, gid)->led_us = env_now_us(c->env);
}

bool skv_route_is_led(struct skv_clerk *c, ctl_gid gid, uint64_t for_us)
{
    uint64_t led_us = route_of(c, gid)->led_us;
    return led_us != 0 && env_now_us(c->env) - led_us < for_us;
}

/* ---- detours ---- */

static bool group_makes_sense(const struct ctl_group *g)
{
    bool good = g->gid != 0 && g->servers_count > 0;
    for (uint32_t i = 0; good && i < g->servers_count; i++) {
        good = g->servers[i].address.size < NET_ADDRESS_SIZE_MAX;
    }
    return good;
}

void skv_detour_drop(struct skv_clerk *c, uint16_t shard)
{
    struct skv_detour *d = detour_of(c, shard);
    if (d != NULL) {
        HASH_DEL(c->detours, d);
        arena_free(&d->arena);
        mem_free(d);
    }
}

void skv_detours_free(struct skv_clerk *c)
{
    while (c->detours != NULL) {
        skv_detour_drop(c, c->detours->shard);
    }
}

bool skv_detour_take(struct skv_clerk *c, uint16_t shard, ctl_gid asked,
                     struct slice owner)
{
    struct skv_detour *d = mem_alloc(sizeof *d);
    d->shard = shard;
    enum err rc =
        ctl_group_decode(arena_copy(&d->arena, owner), &d->arena, &d->group);
    bool good =
        rc == ERR_OK && group_makes_sense(&d->group) && d->group.gid != asked;
    skv_detour_drop(c, shard);
    if (good && d->group.gid != c->config.shards[shard].gid) {
        HASH_ADD(hh, c->detours, shard, sizeof d->shard, d);
        return true;
    }
    arena_free(&d->arena);
    mem_free(d);
    return good;
}

/* ---- the newest configuration ---- */

/* A group that left may come back with other servers; its guess is harmless,
 * but the table would grow with every group there ever was. */
static void routes_prune(struct skv_clerk *c)
{
    struct skv_route *r = NULL;
    struct skv_route *next = NULL;
    HASH_ITER(hh, c->routes, r, next)
    {
        if (ctl_config_group(&c->config, r->gid) == NULL && r->long_size == 0 &&
            r->line_length == 0) {
            HASH_DEL(c->routes, r);
            mem_free(r);
        } else {
            /* Another server may have taken the place. */
            memset(r->avoid_until_us, 0, sizeof r->avoid_until_us);
            memset(r->answered_us, 0, sizeof r->answered_us);
        }
    }
}

static bool config_adopt(struct skv_clerk *c, const struct ctl_config *config)
{
    if (c->has_config && (config->number <= c->config.number ||
                          config->shards_count != c->config.shards_count)) {
        return false;
    }
    arena_free(&c->config_arena);
    ctl_config_copy(&c->config_arena, config, &c->config);
    c->has_config = true;
    skv_detours_free(c);
    routes_prune(c);
    skv_legs_config_changed(c);
    if (c->on_config != NULL) {
        c->on_config(c->on_config_arg, &c->config);
    }
    return true;
}

static void refreshed(void *arg, enum err rc, const struct ctl_config *config)
{
    struct skv_clerk *c = arg;
    c->refreshing = false;
    if (rc == ERR_OK && !c->closing) {
        config_adopt(c, config);
    }
}

void skv_config_refresh(struct skv_clerk *c)
{
    if (!c->refreshing && !c->closing) {
        c->refreshing = true;
        ctl_client_query(c->ctl, CTL_LATEST, 0, REFRESH_TIMEOUT_MS, refreshed,
                         c);
    }
}

static void poll_again(struct env_timer *timer);

static void polled(void *arg, enum err rc, const struct ctl_config *config)
{
    struct skv_clerk *c = arg;
    if (c->closing) {
        return;
    }
    bool newer = rc == ERR_OK && config_adopt(c, config);
    /* An old answer or a failure must not become a busy loop. */
    bool at_once = newer || rc == ERR_NOTFOUND;
    c->poll_timer.fire = poll_again;
    env_timer_start(
        c->env, &c->poll_timer,
        at_once ? 0 : POLL_PAUSE_US + env_random(c->env) % POLL_PAUSE_US);
}

static void poll_again(struct env_timer *timer)
{
    struct skv_clerk *c =
        (struct skv_clerk *)(void *)((char *)timer -
                                     offsetof(struct skv_clerk, poll_timer));
    uint64_t number = c->has_config ? c->config.number + 1 : CTL_LATEST;
    ctl_client_query(c->ctl, number, c->has_config ? POLL_WAIT_MS : 0,
                     POLL_TIMEOUT_MS, polled, c);
}

void skv_config_start(struct skv_clerk *c)
{
    poll_again(&c->poll_timer);
}
