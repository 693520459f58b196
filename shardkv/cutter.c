/* Taking a cut through all shards, and reading it, for an administrator
 * (docs/backup.md). The steps of one attempt:
 *
 *    the newest configuration
 *    those before it, as many as an attempt before this one has asked for
 *    HOLD, at every group that owns a shard in one of them, until all hold
 *    HOLD again, until none has a prepared transaction
 *    do they serve every shard, each once?
 *    VIEW, at every group
 *
 * Invariants:
 *
 *  1. No VIEW is sent before every group has said that it holds and has nothing
 *     prepared. That is the whole of why the cut is consistent.
 *  2. An attempt that fails sends RELEASE to all, and the next has a higher
 *     number; an answer to an earlier one is not believed.
 *  3. A group may serve what only an older configuration gives it, as long as
 *     it is copied: when shards are missing, the next attempt looks further
 *     back.
 *  4. An attempt ends before the groups' leaders would end its hold by
 *     themselves; if it does not, a VIEW is refused. */
#include "shardkv/cut.h"

#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"

enum {
    CALL_MS = 1000,
    LOOK_CALL_MS = 10000,
    ATTEMPT_US = 3000000,
    ROUND_PAUSE_US = 50000,
    DRAIN_PAUSE_MIN_US = 5000, /* doubled each time: each is in the log */
    DRAIN_PAUSE_MAX_US = 160000,
    AGAIN_PAUSE_US = 200000,
    KEEP_US = 5000000,
    BACK_MAX = 64, /* configurations */
};

/* One step on its way to one group's leader. */
struct leg {
    struct skv_cutter *cutter;
    struct skv_cut_group *group;
    uint32_t server, failures;
    uint64_t net_call;
    struct env_timer timer;
    bool running;
    struct skv_cut_reply reply; /* shards: not kept */
    uint8_t *serves;            /* by shard */
};

/* A question to a view. */
struct look {
    struct skv_cutter *cutter;
    struct skv_cut_group *group;
    uint32_t server, failures;
    bool any;
    struct buf body;
    uint64_t net_call;
    uint64_t until_us;
    struct env_timer timer;
    enum err rc;
    skv_cutter_look_fn *done;
    void *arg;
    struct look *next, *prev;
};

struct skv_cutter {
    struct env *env;
    struct net *net;
    struct ctl_client *ctl;
    uint64_t id;
    uint64_t floor; /* ids up to here were used */
    bool hold;
    enum skv_cut_step step;
    uint64_t until_us;
    struct env_timer attempt_timer;
    struct env_timer again_timer;
    struct env_timer keep_timer; /* while there are views */
    bool failing;                /* the legs that run are RELEASEs */
    bool taken;
    bool querying; /* the controllers; cannot be taken back */
    bool freed;    /* when they have answered */
    skv_cutter_fn *done;
    void *arg;
    enum err rc;
    char problem[160];
    struct arena arena;
    struct ctl_config config; /* the newest */
    uint32_t back;            /* how many before it are looked at */
    uint32_t looked;          /* ... and were, in this attempt */
    struct skv_cut_group groups[CTL_GROUPS_MAX];
    struct leg legs[CTL_GROUPS_MAX]; /* one of each group */
    uint32_t group_count;
    uint32_t running; /* legs */
    uint64_t drain_pause_us;
    struct look *looks;
};

static void attempt(struct skv_cutter *c);
static void tell(struct skv_cutter *c, enum skv_look_what what);
static void leg_send(struct leg *leg);

/* ---- one step at all groups ---- */

static void stage_done(struct skv_cutter *c);
static void attempt_failed(struct skv_cutter *c, enum err rc, const char *words,
                           const struct leg *leg);

static void leg_end(struct leg *leg)
{
    struct skv_cutter *c = leg->cutter;
    if (!leg->running) {
        return;
    }
    leg->running = false;
    env_timer_stop(c->env, &leg->timer);
    if (leg->net_call != 0) {
        net_cancel(c->net, leg->net_call);
        leg->net_call = 0;
    }
    c->running--;
}

static void leg_fired(struct env_timer *timer)
{
    leg_send(
        (struct leg *)(void *)((char *)timer - offsetof(struct leg, timer)));
}

static void leg_later(struct leg *leg, uint64_t delay_us)
{
    leg->timer.fire = leg_fired;
    env_timer_start(leg->cutter->env, &leg->timer, delay_us);
}

/* Another server of the group may lead. */
static void leg_elsewhere(struct leg *leg)
{
    leg->server = (leg->server + 1) % leg->group->server_count;
    leg->failures++;
    if (leg->failures % leg->group->server_count == 0) {
        leg_later(leg, ROUND_PAUSE_US);
    } else {
        leg_send(leg);
    }
}

static void leg_take_reply(struct leg *leg, const struct skv_cut_reply *reply)
{
    struct skv_cutter *c = leg->cutter;
    leg->reply = *reply;
    leg->reply.shards = NULL;
    if (c->step == SKV_CUT_VIEW) {
        return; /* it may come a second time, when others are served already */
    }
    memset(leg->serves, 0, c->config.shards_count);
    for (uint32_t i = 0; i < reply->shards_count; i++) {
        if (reply->shards[i].shard < c->config.shards_count) {
            leg->serves[reply->shards[i].shard] = 1;
        }
    }
}

static void leg_done(struct leg *leg, enum err rc)
{
    struct skv_cutter *c = leg->cutter;
    leg_end(leg);
    if (c->failing || rc == ERR_OK) {
        if (c->running == 0) {
            stage_done(c);
        }
        return;
    }
    if (rc == ERR_EXPIRED && leg->reply.id > c->floor) {
        c->floor = leg->reply.id;
    }
    attempt_failed(c, rc,
                   rc == ERR_BUSY      ? "shards are moving, or another cut "
                                         "is being taken, at"
                   : rc == ERR_EXPIRED ? "the hold had ended at"
                                       : "refused by",
                   leg);
}

static void leg_answered(void *arg, enum err rc, struct slice body)
{
    struct leg *leg = arg;
    struct arena a = {0};
    struct skv_cut_reply reply;
    leg->net_call = 0;
    if (rc == ERR_DENIED || rc == ERR_INVALID) {
        leg_done(leg, rc);
        return;
    }
    if (rc == ERR_OK) {
        rc = skv_cut_reply_decode(body, &a, &reply);
    }
    if (rc != ERR_OK) {
        leg_elsewhere(leg);
    } else {
        leg_take_reply(leg, &reply);
        leg_done(leg, err_from_wire(reply.rc));
    }
    arena_free(&a);
}

static void leg_send(struct leg *leg)
{
    struct skv_cutter *c = leg->cutter;
    struct skv_cut cut = {.id = c->id, .step = (uint8_t)c->step};
    struct buf b = {0};
    skv_cut_encode(&b, &cut);
    struct slice body = buf_slice(&b);
    leg->net_call =
        net_call(c->net, leg->group->servers[leg->server].address,
                 SKV_METHOD_CUT, &body, 1, CALL_MS, leg_answered, leg);
    buf_free(&b);
}

static void leg_start(struct leg *leg, uint64_t delay_us)
{
    CHECK(!leg->running);
    leg->running = true;
    leg->failures = 0;
    leg->cutter->running++;
    leg_later(leg, delay_us);
}

static void stage_start(struct skv_cutter *c, enum skv_cut_step step)
{
    c->step = step;
    for (uint32_t i = 0; i < c->group_count; i++) {
        leg_start(&c->legs[i], 0);
    }
}

static void stage_stop(struct skv_cutter *c)
{
    for (uint32_t i = 0; i < c->group_count; i++) {
        leg_end(&c->legs[i]);
    }
    CHECK(c->running == 0);
}

/* ---- an attempt ---- */

static void keep_fired(struct env_timer *timer)
{
    struct skv_cutter *c =
        (struct skv_cutter *)(void *)((char *)timer -
                                      offsetof(struct skv_cutter, keep_timer));
    tell(c, SKV_LOOK_KEEP);
    env_timer_start(c->env, timer, KEEP_US);
}

static void take_end(struct skv_cutter *c, enum err rc)
{
    env_timer_stop(c->env, &c->attempt_timer);
    c->taken = rc == ERR_OK;
    if (c->taken) {
        c->keep_timer.fire = keep_fired;
        env_timer_start(c->env, &c->keep_timer, KEEP_US);
    }
    c->done(c->arg, rc);
}

static void again_fired(struct env_timer *timer)
{
    attempt((
        struct skv_cutter *)(void *)((char *)timer -
                                     offsetof(struct skv_cutter, again_timer)));
}

static void attempt_over(struct skv_cutter *c)
{
    c->failing = false;
    env_timer_stop(c->env, &c->attempt_timer);
    if (c->rc == ERR_DENIED || c->rc == ERR_INVALID ||
        env_now_us(c->env) >= c->until_us) {
        take_end(c, c->rc);
        return;
    }
    c->again_timer.fire = again_fired;
    env_timer_start(c->env, &c->again_timer, AGAIN_PAUSE_US);
}

/* Some group may hold: 2. A group that does not answer now ends it itself. */
static void attempt_failed(struct skv_cutter *c, enum err rc, const char *words,
                           const struct leg *leg)
{
    c->rc = rc;
    if (leg != NULL) {
        snprintf(c->problem, sizeof c->problem, "%s group %u: %s", words,
                 leg->group->gid, err_text(rc));
    } else {
        snprintf(c->problem, sizeof c->problem, "%s: %s", words, err_text(rc));
    }
    stage_stop(c);
    tell(c, SKV_LOOK_CLOSE); /* some may have opened it */
    c->failing = true;
    if (!c->hold || c->group_count == 0) {
        attempt_over(c);
        return;
    }
    stage_start(c, SKV_CUT_RELEASE);
    env_timer_start(c->env, &c->attempt_timer, CALL_MS * 1000);
}

/* Views that need not be of one moment can do without a group that has found no
 * leader by now: true if there are any others. */
static bool go_on_without(struct skv_cutter *c)
{
    if (c->step != SKV_CUT_LOOK || c->failing || c->running == c->group_count) {
        return false;
    }
    for (uint32_t i = 0; i < c->group_count; i++) {
        c->groups[i].absent = c->legs[i].running;
        leg_end(&c->legs[i]);
    }
    stage_done(c);
    return true;
}

static void attempt_late(struct env_timer *timer)
{
    struct skv_cutter *c =
        (struct skv_cutter *)(void *)((char *)timer -
                                      offsetof(struct skv_cutter,
                                               attempt_timer));
    const struct leg *waits = NULL;
    if (go_on_without(c)) {
        return;
    }
    /* Perhaps it is long gone, and needed no more. */
    c->back = 0;
    for (uint32_t i = 0; i < c->group_count && waits == NULL; i++) {
        waits = c->legs[i].running ? &c->legs[i] : NULL;
    }
    if (c->failing) {
        stage_stop(c);
        attempt_over(c);
    } else {
        attempt_failed(c, ERR_TIMEDOUT,
                       waits != NULL && waits->reply.prepared > 0
                           ? "a transaction was not finished in time at"
                           : "no answer from",
                       waits);
    }
}

/* Each shard is served by one group, and they hold: it stays so. */
static bool covers_all(struct skv_cutter *c)
{
    for (uint32_t s = 0; s < c->config.shards_count; s++) {
        uint32_t served = 0;
        for (uint32_t i = 0; i < c->group_count; i++) {
            served += c->legs[i].serves[s];
        }
        if (served != 1) {
            return false;
        }
    }
    return true;
}

/* True: some had transactions prepared, and are asked again. */
static bool drain(struct skv_cutter *c)
{
    bool waits = false;
    for (uint32_t i = 0; i < c->group_count; i++) {
        if (c->legs[i].reply.prepared > 0) {
            leg_start(&c->legs[i], c->drain_pause_us);
            waits = true;
        }
    }
    if (c->drain_pause_us < DRAIN_PAUSE_MAX_US) {
        c->drain_pause_us *= 2;
    }
    return waits;
}

static void stage_done(struct skv_cutter *c)
{
    if (c->failing) {
        attempt_over(c);
        return;
    }
    if (c->step == SKV_CUT_HOLD) {
        if (drain(c)) {
            return;
        }
        if (!covers_all(c)) {
            c->back = c->back < BACK_MAX ? 2 * c->back + 1 : BACK_MAX; /* 3 */
            attempt_failed(c, ERR_BUSY, "some shards are on their way", NULL);
            return;
        }
        stage_start(c, SKV_CUT_VIEW); /* 1 */
        return;
    }
    for (uint32_t i = 0; i < c->group_count; i++) {
        c->groups[i].index = c->legs[i].reply.index; /* of one absent: 0 */
    }
    take_end(c, ERR_OK);
}

/* ---- the groups ---- */

static bool owns_some(const struct ctl_config *config, ctl_gid gid)
{
    for (uint32_t s = 0; s < config->shards_count; s++) {
        if (config->shards[s].gid == gid) {
            return true;
        }
    }
    return false;
}

static bool group_take(struct skv_cut_group *to, const struct ctl_group *from)
{
    to->gid = from->gid;
    to->absent = false;
    to->server_count = from->servers_count;
    for (uint32_t i = 0; i < from->servers_count; i++) {
        struct slice address = from->servers[i].address;
        if (address.size >= NET_ADDRESS_SIZE_MAX) {
            return false;
        }
        to->servers[i].id = from->servers[i].id;
        memcpy(to->servers[i].address, address.data, address.size);
    }
    return from->servers_count > 0;
}

static bool knows(const struct skv_cutter *c, ctl_gid gid)
{
    for (uint32_t i = 0; i < c->group_count; i++) {
        if (c->groups[i].gid == gid) {
            return true;
        }
    }
    return false;
}

/* The owners that are not known yet; by their newest addresses. */
static bool groups_take(struct skv_cutter *c, const struct ctl_config *config)
{
    for (uint32_t i = 0; i < config->groups_count; i++) {
        ctl_gid gid = config->groups[i].gid;
        if (!owns_some(config, gid) || knows(c, gid)) {
            continue;
        }
        const struct ctl_group *from = ctl_config_group(&c->config, gid);
        if (c->group_count == CTL_GROUPS_MAX ||
            !group_take(&c->groups[c->group_count],
                        from != NULL ? from : &config->groups[i])) {
            return false;
        }
        struct leg *leg = &c->legs[c->group_count];
        *leg = (struct leg){.cutter = c, .group = &c->groups[c->group_count]};
        leg->serves =
            arena_array(&c->arena, c->config.shards_count, sizeof(uint8_t));
        c->group_count++;
    }
    return c->group_count > 0;
}

static void look_back(struct skv_cutter *c);

static void on_config(void *arg, enum err rc, const struct ctl_config *config)
{
    struct skv_cutter *c = arg;
    c->querying = false;
    if (c->freed) {
        mem_free(c);
        return;
    }
    if (rc == ERR_CLOSED) {
        take_end(c, rc);
        return;
    }
    if (rc != ERR_OK) {
        attempt_failed(c, rc, "no answer from the controllers", NULL);
        return;
    }
    if (c->group_count == 0) {
        ctl_config_copy(&c->arena, config, &c->config);
    }
    if (ctl_config_check(config) != ERR_OK || !groups_take(c, config)) {
        c->group_count = 0;
        attempt_failed(c, ERR_BUSY, "no group owns a shard yet", NULL);
        return;
    }
    look_back(c);
}

/* The configuration before the last that was looked at; or the first step. */
static void look_back(struct skv_cutter *c)
{
    c->looked++;
    if (c->looked <= c->back && c->config.number > c->looked) {
        c->querying = true;
        ctl_client_query(c->ctl, c->config.number - c->looked, 0,
                         ATTEMPT_US / 1000, on_config, c);
        return;
    }
    env_timer_start(c->env, &c->attempt_timer, ATTEMPT_US);
    stage_start(c, c->hold ? SKV_CUT_HOLD : SKV_CUT_LOOK);
}

/* Two administrators' numbers differ, and later ones are higher. */
static uint64_t next_id(struct skv_cutter *c)
{
    uint64_t id = env_wall_us(c->env) << 10 | (env_random(c->env) & 1023);
    return id > c->floor ? id : c->floor + 1 + (env_random(c->env) & 1023);
}

static void forget(struct skv_cutter *c)
{
    arena_free(&c->arena);
    c->config = (struct ctl_config){0};
    c->group_count = 0;
    c->looked = 0;
}

static void attempt(struct skv_cutter *c)
{
    forget(c);
    c->id = next_id(c);
    c->floor = c->id;
    c->drain_pause_us = DRAIN_PAUSE_MIN_US;
    c->querying = true;
    ctl_client_query(c->ctl, CTL_LATEST, 0, ATTEMPT_US / 1000, on_config, c);
}

/* ---- questions ---- */

static void look_send(struct look *l);

static void look_end(struct look *l, enum err rc, const struct skv_seen *seen)
{
    struct skv_cutter *c = l->cutter;
    DL_DELETE(c->looks, l);
    env_timer_stop(c->env, &l->timer);
    if (l->done != NULL) {
        l->done(l->arg, rc, seen);
    }
    buf_free(&l->body);
    mem_free(l);
}

static void look_fired(struct env_timer *timer)
{
    look_send(
        (struct look *)(void *)((char *)timer - offsetof(struct look, timer)));
}

static void look_failed(struct look *l, enum err rc)
{
    struct skv_cutter *c = l->cutter;
    bool final = rc == ERR_DENIED || rc == ERR_INVALID;
    if (final || env_now_us(c->env) >= l->until_us) {
        look_end(l, rc, NULL);
        return;
    }
    l->failures++;
    if (l->any) {
        l->server = (l->server + 1) % l->group->server_count;
    }
    bool round = !l->any || l->failures % l->group->server_count == 0;
    l->timer.fire = look_fired;
    env_timer_start(c->env, &l->timer, round ? ROUND_PAUSE_US : 0);
}

static void look_answered(void *arg, enum err rc, struct slice body)
{
    struct look *l = arg;
    struct arena a = {0};
    struct skv_seen seen = {0};
    l->net_call = 0;
    if (rc == ERR_OK && body.size > 0) {
        rc = skv_seen_decode(body, &a, &seen);
    }
    if (rc == ERR_OK) {
        look_end(l, ERR_OK, &seen);
    } else {
        look_failed(l, rc);
    }
    arena_free(&a);
}

static void look_send(struct look *l)
{
    struct slice body = buf_slice(&l->body);
    l->net_call =
        net_call(l->cutter->net, l->group->servers[l->server].address,
                 SKV_METHOD_VIEW, &body, 1, LOOK_CALL_MS, look_answered, l);
}

static void look_start(struct skv_cutter *c, uint32_t group, uint32_t server,
                       const struct skv_look *look, uint32_t timeout_ms,
                       skv_cutter_look_fn *done, void *arg)
{
    struct look *l = mem_alloc(sizeof *l);
    struct skv_look named = *look;
    named.id = c->id;
    skv_look_encode(&l->body, &named);
    l->cutter = c;
    l->group = &c->groups[group];
    l->any = server == SKV_SERVER_ANY;
    /* The leader when the cut was taken has a view for sure. */
    l->server = l->any ? c->legs[group].server : server;
    l->until_us = env_now_us(c->env) + UINT64_C(1000) * timeout_ms;
    l->done = done;
    l->arg = arg;
    DL_APPEND(c->looks, l);
    look_send(l);
}

void skv_cutter_look(struct skv_cutter *c, uint32_t group, uint32_t server,
                     const struct skv_look *look, uint32_t timeout_ms,
                     skv_cutter_look_fn *done, void *arg)
{
    CHECK(c->taken && group < c->group_count);
    look_start(c, group, server, look, timeout_ms, done, arg);
}

/* Without a timeout each is asked once, and its group not looked at again. */
static void tell(struct skv_cutter *c, enum skv_look_what what)
{
    struct skv_look look = {.what = (uint8_t)what};
    for (uint32_t g = 0; g < c->group_count; g++) {
        for (uint32_t s = 0; s < c->groups[g].server_count; s++) {
            look_start(c, g, s, &look, 0, NULL, NULL);
        }
    }
}

void skv_cutter_close(struct skv_cutter *c)
{
    if (c->taken) {
        c->taken = false;
        env_timer_stop(c->env, &c->keep_timer);
        tell(c, SKV_LOOK_CLOSE);
    }
}

/* ---- life ---- */

struct skv_cutter *skv_cutter_new(struct env *env, struct net *net,
                                  struct ctl_client *ctl)
{
    struct skv_cutter *c = mem_alloc(sizeof *c);
    c->env = env;
    c->net = net;
    c->ctl = ctl;
    c->attempt_timer.fire = attempt_late;
    return c;
}

void skv_cutter_free(struct skv_cutter *c)
{
    struct look *l = NULL;
    struct look *next = NULL;
    DL_FOREACH_SAFE(c->looks, l, next)
    {
        if (l->net_call != 0) {
            net_cancel(c->net, l->net_call);
        }
        l->done = NULL;
        look_end(l, ERR_CLOSED, NULL);
    }
    stage_stop(c);
    env_timer_stop(c->env, &c->attempt_timer);
    env_timer_stop(c->env, &c->again_timer);
    env_timer_stop(c->env, &c->keep_timer);
    forget(c);
    c->freed = true;
    if (!c->querying) {
        mem_free(c);
    }
}

void skv_cutter_take(struct skv_cutter *c, bool hold, uint32_t timeout_ms,
                     skv_cutter_fn *done, void *arg)
{
    skv_cutter_close(c);
    c->hold = hold;
    c->until_us = env_now_us(c->env) + UINT64_C(1000) * timeout_ms;
    c->taken = false;
    c->back = 0;
    c->done = done;
    c->arg = arg;
    attempt(c);
}

const char *skv_cutter_problem(const struct skv_cutter *c)
{
    return c->problem;
}

uint64_t skv_cutter_id(const struct skv_cutter *c)
{
    return c->id;
}

const struct ctl_config *skv_cutter_config(const struct skv_cutter *c)
{
    return &c->config;
}

const struct skv_cut_group *skv_cutter_groups(const struct skv_cutter *c,
                                              uint32_t *count)
{
    *count = c->group_count;
    return c->groups;
}

uint32_t skv_cutter_owner(const struct skv_cutter *c, uint32_t shard)
{
    uint32_t i = 0;
    while (i < c->group_count && !c->legs[i].serves[shard]) {
        i++;
    }
    CHECK(i < c->group_count);
    return i;
}
