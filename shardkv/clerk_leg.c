/* One request to one shard, sent to whoever serves it until the shard itself
 * has answered. Invariants:
 *
 *  1. All tries carry the same (session, sequence): a lost reply looks like a
 *     lost request, and only the shard knows the difference.
 *  2. A running leg has a try on the net, or its timer, or waits for the first
 *     configuration, or in line.
 *  3. done() is never called from inside skv_leg_start().
 *  4. `first` and SKV_FLAG_OPEN are those of the moment a try is sent.
 *  5. Of long requests SKV_LINE_SIZE is under way to a group at most, or one;
 *     who is in line for a group has others' under way to it before it.
 *
 * The line is there because what has left cannot be called back: it would wait
 * in sockets and in the server, in front of short requests and of the question
 * whether it lives, until the try is given up and all of it is sent again. */
#include "shardkv/clerk_int.h"

#include <utlist.h>

#include "base/check.h"

enum { REFUSALS_SHORT = 200, PAUSE_SHORT_US = 8000 };

static void leg_try(struct skv_leg *leg);
static void leg_try_as(struct skv_leg *leg, bool first_in_line);

uint64_t skv_pause_next(struct skv_clerk *c, uint64_t *pause_us)
{
    uint64_t full = *pause_us < SKV_PAUSE_MIN_US ? SKV_PAUSE_MIN_US : *pause_us;
    uint64_t half = full / 2;
    *pause_us = full * 2 < SKV_PAUSE_MAX_US ? full * 2 : SKV_PAUSE_MAX_US;
    return half + env_random(c->env) % (half + 1);
}

/* ---- the line ---- */

/* What it carries; keys and the rest are short. */
static size_t long_size(const struct skv_request *r)
{
    size_t size = 0;
    for (uint32_t i = 0; i < r->items_count; i++) {
        size += r->items[i].data.size;
    }
    return size < SKV_LONG_SIZE ? 0 : size;
}

static void leg_leave_line(struct skv_leg *leg)
{
    if (leg->in_line) {
        leg->in_line = false;
        skv_route_line(leg->clerk, leg->line_gid, false);
    }
}

/* False: it is in line. */
static bool leg_book(struct skv_leg *leg, bool first)
{
    CHECK(leg->booked == 0 && !leg->in_line);
    if (leg->size == 0) {
        return true;
    }
    if (skv_route_book(leg->clerk, leg->gid, leg->size, first)) {
        leg->booked = leg->gid;
        return true;
    }
    leg->in_line = true;
    leg->line_gid = leg->gid;
    skv_route_line(leg->clerk, leg->line_gid, true);
    return false;
}

static void leg_unbook(struct skv_leg *leg)
{
    if (leg->booked != 0) {
        skv_route_unbook(leg->clerk, leg->booked, leg->size);
        leg->booked = 0;
        skv_line_later(leg->clerk);
    }
}

/* In the order in which they were started. */
static void line_move(struct env_timer *timer)
{
    struct skv_clerk *c =
        (struct skv_clerk *)(void *)((char *)timer -
                                     offsetof(struct skv_clerk, line_timer));
    struct skv_leg *leg = NULL;
    struct skv_leg *next = NULL;
    ctl_gid full = 0;
    c->line_set = false;
    DL_FOREACH_SAFE(c->legs, leg, next)
    {
        if (leg->in_line && (full == 0 || leg->line_gid != full)) {
            leg_try_as(leg, true);
            full = leg->in_line ? leg->line_gid : full;
        }
    }
}

void skv_line_later(struct skv_clerk *c)
{
    if (!c->line_set && !c->closing) {
        c->line_set = true;
        c->line_timer.fire = line_move;
        env_timer_start(c->env, &c->line_timer, 0);
    }
}

void skv_line_stop(struct skv_clerk *c)
{
    env_timer_stop(c->env, &c->line_timer);
}

/* ---- its end ---- */

static void leg_rest(struct skv_leg *leg)
{
    DL_DELETE(leg->clerk->legs, leg);
    env_timer_stop(leg->clerk->env, &leg->timer);
    leg_unbook(leg);
    leg->running = false;
    leg->waits_config = false;
    leg_leave_line(leg);
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
    leg->timeouts += rc == ERR_TIMEDOUT;
    leg_unbook(leg);
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

/* Longer after each that got no answer: where many wait, what is sent again
 * only makes all wait longer. */
static uint32_t try_ms(const struct skv_leg *leg)
{
    return SKV_TRY_MS << (leg->timeouts < SKV_TRY_DOUBLINGS_MAX
                              ? leg->timeouts
                              : SKV_TRY_DOUBLINGS_MAX);
}

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
                             try_ms(leg), leg_answered, leg);
}

static void leg_try_as(struct skv_leg *leg, bool first_in_line)
{
    struct skv_clerk *c = leg->clerk;
    leg->waits_config = false;
    leg_leave_line(leg);
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
    if (leg_book(leg, first_in_line)) {
        leg_send(leg);
    }
}

static void leg_try(struct skv_leg *leg)
{
    leg_try_as(leg, false);
}

void skv_leg_start(struct skv_leg *leg)
{
    CHECK(!leg->running);
    leg->running = true;
    leg->failures = 0;
    leg->refusals = 0;
    leg->timeouts = 0;
    leg->size = long_size(&leg->request);
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
    leg_unbook(leg);
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
        if (leg->waits_config || leg->in_line) {
            leg->failures = 0;
            leg_try(leg);
        }
    }
}
