/* A server that keeps a request for long: is it slow, or gone? A halted process
 * or a machine without power breaks no connection, and a request's own timeout
 * must be long, for disks can be slow. So all servers of the group are asked
 * whether they live and lead, which they answer without a disk. When another
 * says that it leads, or the asked one that it does not, or nothing, all that
 * was sent to it before goes on elsewhere, with the same numbers. One that says
 * it leads, and is slow, is waited for: nobody else will say so.
 *
 * Invariant: the timer runs while there are legs, and at most one question to a
 * server is on its way. None begins within AGAIN_US after one of the group said
 * that it leads: then the rest is waiting. Who is silent, or not elected yet,
 * is asked at each look. */
#include "shardkv/clerk_int.h"

#include <utlist.h>

enum {
    LOOK_US = 50000,
    LONG_US = 100000,         /* without an answer: ask */
    LONG_STRANGER_US = 50000, /* of whom any guess may be the wrong one */
    AGAIN_US = 250000,        /* it leads, and still gave none: ask once more */
    QUESTION_MS = 500,        /* without an answer to that: gone */
};

struct skv_question {
    struct skv_clerk *clerk;
    ctl_gid gid;
    uint32_t server;
    uint32_t servers; /* of the group */
    bool waited_for;  /* a leg is there: its silence counts */
    uint64_t asked_us;
    uint64_t net_call;
    struct skv_question *next, *prev;
};

static void question_end(struct skv_question *q)
{
    DL_DELETE(q->clerk->questions, q);
    mem_free(q);
}

static void question_answered(void *arg, enum err rc, struct slice body)
{
    (void)body;
    struct skv_question *of = arg;
    struct skv_question q = *of;
    struct skv_clerk *c = q.clerk;
    question_end(of);
    if (rc == ERR_OK) {
        skv_route_answered(c, q.gid, q.server);
        skv_route_led(c, q.gid);
        skv_legs_follow(c, q.gid, q.server, q.asked_us);
        return;
    }
    if (!q.waited_for || rc == ERR_INVALID || rc == ERR_BUSY) {
        return; /* it lives; of an older version it cannot say more */
    }
    if (rc == ERR_TIMEDOUT &&
        skv_route_has_answered(c, q.gid, q.server, q.asked_us)) {
        return; /* requests; the question waits behind long ones */
    }
    if (rc != ERR_NOTLEADER) {
        skv_route_avoid(c, q.gid, q.server, q.servers);
    }
    skv_legs_leave(c, q.gid, q.server, q.asked_us);
}

static void question_ask(struct skv_clerk *c, const struct skv_leg *leg,
                         uint32_t server, const char *address)
{
    struct skv_question *q = NULL;
    DL_FOREACH(c->questions, q)
    {
        if (q->gid == leg->gid && q->server == server) {
            q->waited_for |= server == leg->server;
            return;
        }
    }
    q = mem_alloc(sizeof *q);
    q->clerk = c;
    q->gid = leg->gid;
    q->server = server;
    q->servers = leg->servers;
    q->waited_for = server == leg->server;
    q->asked_us = env_now_us(c->env);
    DL_APPEND(c->questions, q);
    struct slice nothing = {0};
    q->net_call = net_call(c->net, address, SKV_METHOD_LEADS, &nothing, 1,
                           QUESTION_MS, question_answered, q);
}

/* The one that has the request, and all others: one of them may lead. */
static void group_ask(struct skv_clerk *c, const struct skv_leg *leg)
{
    char address[NET_ADDRESS_SIZE_MAX];
    question_ask(c, leg, leg->server, leg->address);
    for (uint32_t i = 0; i < leg->servers; i++) {
        if (i != leg->server &&
            skv_route_address(c, leg->request.shard, leg->gid, i, address)) {
            question_ask(c, leg, i, address);
        }
    }
}

static bool is_long(struct skv_clerk *c, const struct skv_leg *leg)
{
    bool known = skv_route_is_known(c, leg->gid);
    return leg->net_call != 0 && env_now_us(c->env) - leg->sent_us >=
                                     (known ? LONG_US : LONG_STRANGER_US);
}

static void look(struct env_timer *timer)
{
    struct skv_clerk *c =
        (struct skv_clerk *)(void *)((char *)timer -
                                     offsetof(struct skv_clerk, watch_timer));
    struct skv_leg *leg = NULL;
    c->watching = false;
    DL_FOREACH(c->legs, leg)
    {
        if (is_long(c, leg) && !skv_route_is_led(c, leg->gid, AGAIN_US)) {
            group_ask(c, leg);
        }
    }
    if (c->legs != NULL) {
        skv_watch_start(c);
    }
}

void skv_watch_start(struct skv_clerk *c)
{
    if (!c->watching && !c->closing) {
        c->watching = true;
        c->watch_timer.fire = look;
        env_timer_start(c->env, &c->watch_timer, LOOK_US);
    }
}

void skv_watch_stop(struct skv_clerk *c)
{
    env_timer_stop(c->env, &c->watch_timer);
    while (c->questions != NULL) {
        net_cancel(c->net, c->questions->net_call);
        question_end(c->questions);
    }
}
