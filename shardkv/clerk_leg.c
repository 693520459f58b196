/* One request to one shard, sent to whoever serves it until the shard itself
 * has answered. Invariants:
 *
 *  1. All tries carry the same (session, sequence): a lost reply looks like a
 *     lost request, and only the shard knows the difference.
 *  2. A running leg has a try on the net, or its timer, or waits for the first
 *     configuration.
 *  3. done() is never called from inside skv_leg_start().
 *  4. `first` and SKV_FLAG_OPEN are those of the moment a try is sent. */
#include "shardkv/clerk_int.h"

#include <utlist.h>

#include "base/check.h"

enum { REFUSALS_SHORT = 200, PAUSE_SHORT_US = 8000 };

static void leg_try(struct skv_leg *leg);

uint64_t skv_pause_next(struct skv_clerk *c, uint64_t *pause_us)
{
    uint64_t full = *pause_us < SKV_PAUSE_MIN_US ? SKV_PAUSE_MIN_US : *pause_us;
    uint64_t half = full / 2;
    *pause_us = full * 2 < SKV_PAUSE_MAX_US ? full * 2 : SKV_PAUSE_MAX_US;
    return half + env_random(c->env) % (half + 1);
}

static void leg_rest(struct skv_leg *leg)
{
    DL_DELETE(leg->clerk->legs, leg);
    env_timer_stop(leg->clerk->env, &leg->timer);
    leg->running = false;
    leg->waits_config = false;
}

static void leg_end(struct skv_leg *leg, enum err rc, struct slice body)
{
    leg_rest(leg);
    leg->done(leg, rc, body);
}

static void leg_timer_fired(struct env_timer *timer)
{
    struct skv_leg *leg =
        (struct skv_leg *)(void *)((char *)timer -
                                   offsetof(struct skv_leg, timer));
    if (leg->refused != ERR_OK) {
        leg_end(leg, leg->refused, slice_of(NULL, 0));
        return;
    }
    leg_try(leg);
}

static void leg_timer_start(struct skv_leg *leg, uint64_t delay_us)
{
    leg->timer.fire = leg_timer_fired;
    env_timer_start(leg->clerk->env, &leg->timer, delay_us);
}

static void leg_pause(struct skv_leg *leg)
{
    leg_timer_start(leg, skv_pause_next(leg->clerk, &leg->pause_us));
}

/* ---- what an answer means ---- */

static bool is_elsewhere(enum err rc)
{
    return rc == ERR_NOTLEADER || rc == ERR_CLOSED || rc == ERR_TIMEDOUT ||
           rc == ERR_IO;
}

/* Each server of the group is asked once without a pause: one is likely to
 * lead. A round that failed means an election: then each round waits. Or the
 * group that a detour leads to has gone for good. */
static void leg_elsewhere(struct skv_leg *leg)
{
    leg->silent = leg->gid;
    skv_route_failed(leg->clerk, leg->gid, leg->server, leg->servers);
    leg->failures++;
    if (leg->failures % leg->servers != 0) {
        leg_try(leg);
    } else {
        skv_detour_drop(leg->clerk, leg->request.shard);
        leg_pause(leg);
    }
}

/* The group does not serve the shard now: it has seen a newer configuration
 * than we have, or it is behind, or the shard is on its way. It says who does,
 * as far as it knows. While a shard is handed over, its old and its new owner
 * name one another: that is over soon, so the pauses stay short for a time. */
static void leg_wrong_group(struct skv_leg *leg, uint64_t config_number,
                            struct slice body)
{
    struct skv_clerk *c = leg->clerk;
    struct arena a = {0};
    struct skv_reply reply;
    bool other = skv_reply_decode(body, &a, &reply) == ERR_OK &&
                 skv_detour_take(c, leg->request.shard, leg->gid, reply.owner);
    arena_free(&a);
    if (config_number > c->config.number) {
        leg->waits_config = true;
        skv_config_refresh(c);
    }
    leg->refusals++;
    if (leg->refusals < REFUSALS_SHORT && leg->pause_us > PAUSE_SHORT_US) {
        leg->pause_us = PAUSE_SHORT_US;
    }
    if (other && leg->refusals % 2 != 0) {
        leg->failures = 0;
        leg_try(leg);
    } else {
        leg_pause(leg);
    }
}

/* The shard's state machine has this session from such an answer on. Others
 * may come from before it was looked at; asking once more to open it is
 * harmless. */
static bool opens_session(enum err rc)
{
    return rc == ERR_OK || rc == ERR_CONFLICT || rc == ERR_ABORTED ||
           rc == ERR_NOTFOUND || rc == ERR_ELSEWHERE;
}

/* The reply's own rc, or ERR_CORRUPT. */
static enum err reply_rc(struct slice body, uint64_t *config_number)
{
    struct dec d = dec_of(body);
    enum err rc = err_from_wire(dec_u32(&d));
    dec_u32(&d); /* failed */
    *config_number = dec_u64(&d);
    return d.failed ? ERR_CORRUPT : rc;
}

static void leg_answered(void *arg, enum err rc, struct slice body)
{
    struct skv_leg *leg = arg;
    uint64_t config_number = 0;
    bool replied = rc == ERR_OK;
    leg->net_call = 0;
    if (replied) {
        rc = reply_rc(body, &config_number);
    }
    if (is_elsewhere(rc)) {
        leg_elsewhere(leg);
        return;
    }
    skv_route_answered(leg->clerk, leg->gid, leg->server);
    leg->silent = leg->silent == leg->gid ? 0 : leg->silent;
    if (rc == ERR_WRONGGROUP) {
        leg_wrong_group(leg, config_number, body);
        return;
    }
    if (rc == ERR_BUSY || (leg->stubborn && (!replied || rc == ERR_CORRUPT))) {
        leg_pause(leg);
        return;
    }
    if (replied && leg->session != NULL && opens_session(rc)) {
        skv_session_set_open(leg->session, leg->request.shard);
    }
    leg_end(leg, rc, replied ? body : slice_of(NULL, 0));
}

/* ---- sending ---- */

static void leg_send(struct skv_leg *leg)
{
    struct skv_clerk *c = leg->clerk;
    struct skv_request *r = &leg->request;
    r->first = leg->session != NULL ? skv_session_first(leg->session) : 0;
    r->flags = leg->sends > 0 ? SKV_FLAG_RETRY : 0;
    if (leg->session != NULL && !skv_session_is_open(leg->session, r->shard)) {
        r->flags |= SKV_FLAG_OPEN;
    }
    CHECK(r->first <= r->sequence);
    buf_clear(&c->scratch);
    skv_request_encode(&c->scratch, r);
    struct slice body = buf_slice(&c->scratch);
    leg->sends++;
    leg->sent_us = env_now_us(c->env);
    skv_watch_start(c);
    leg->net_call = net_call(c->net, leg->address, leg->method, &body, 1,
                             SKV_TRY_MS, leg_answered, leg);
}

static void leg_try(struct skv_leg *leg)
{
    struct skv_clerk *c = leg->clerk;
    leg->waits_config = false;
    env_timer_stop(c->env, &leg->timer);
    if (!c->has_config) {
        leg->waits_config = true;
        return;
    }
    if (leg->request.shard >= c->config.shards_count) {
        leg->refused = ERR_INVALID;
        leg_timer_start(leg, 0);
        return;
    }
    if (!skv_route_find(c, leg->request.shard, &leg->gid, &leg->server,
                        &leg->servers, leg->address)) {
        leg->waits_config = true; /* nobody serves it yet */
        leg_pause(leg);
        return;
    }
    leg_send(leg);
}

void skv_leg_start(struct skv_leg *leg)
{
    CHECK(!leg->running);
    leg->running = true;
    leg->failures = 0;
    leg->refusals = 0;
    leg->silent = 0;
    leg->pause_us = SKV_PAUSE_MIN_US;
    leg->refused = ERR_OK;
    DL_APPEND(leg->clerk->legs, leg);
    leg_try(leg);
}

static void leg_cancel(struct skv_leg *leg)
{
    net_cancel(leg->clerk->net, leg->net_call);
    leg->net_call = 0;
}

void skv_leg_stop(struct skv_leg *leg)
{
    if (!leg->running) {
        return;
    }
    if (leg->net_call != 0) {
        leg_cancel(leg);
    }
    leg_rest(leg);
}

static bool leg_is_at(const struct skv_leg *leg, ctl_gid gid, uint32_t server,
                      uint64_t sent_until_us)
{
    return leg->net_call != 0 && leg->gid == gid && leg->server == server &&
           leg->sent_us <= sent_until_us;
}

void skv_legs_leave(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                    uint64_t sent_until_us)
{
    struct skv_leg *leg = NULL;
    DL_FOREACH(c->legs, leg)
    {
        if (leg_is_at(leg, gid, server, sent_until_us)) {
            leg_cancel(leg);
            leg_elsewhere(leg);
        }
    }
}

void skv_legs_follow(struct skv_clerk *c, ctl_gid gid, uint32_t leader,
                     uint64_t sent_until_us)
{
    struct skv_leg *leg = NULL;
    DL_FOREACH(c->legs, leg)
    {
        if (leg->server != leader &&
            leg_is_at(leg, gid, leg->server, sent_until_us)) {
            leg_cancel(leg);
            leg_try(leg);
        }
    }
}

void skv_legs_config_changed(struct skv_clerk *c)
{
    struct skv_leg *leg = NULL;
    struct skv_leg *next = NULL;
    DL_FOREACH_SAFE(c->legs, leg, next)
    {
        if (leg->waits_config) {
            leg->failures = 0;
            leg_try(leg);
        }
    }
}
