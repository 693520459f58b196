/* Invariants:
 *
 *  1. A letter is in the list from when it was given to us until it was passed
 *     on (one-way), or its caller was told or has cancelled.
 *  2. Of a letter at most one runs: its timer, or its call of the inner net. */
#include "tests/lib/faultnet.h"

#include <stdio.h>
#include <utlist.h>

#include "base/check.h"
#include "base/rng.h"

#define MS UINT64_C(1000)

enum {
    LOSS_PER_MILLE = 100,
    DELAY_US_MAX = 26 * 1000,
    CUT_US_MAX = 100 * 1000,
    LATE_PER_MILLE = 667,
    LATE_MS_MIN = 200,
    LATE_MS_MORE = 2000,
};

struct letter {
    struct env_timer timer; /* first */
    struct faultnet *f;
    void (*due)(struct letter *l); /* what the timer is for */
    char address[NET_ADDRESS_SIZE_MAX];
    net_method method;
    struct buf body; /* of the request; then of the reply that waits */
    /* Of a call: */
    uint64_t number; /* 0: it is one-way */
    uint64_t inner;  /* the inner net's; 0: not now */
    uint64_t deadline_us;
    enum err verdict;
    net_reply_fn *reply;
    void *arg;
    struct letter *prev, *next;
};

struct faultnet {
    struct net net; /* first */
    struct net_ops ops;
    struct faultnet_config config;
    struct faultnet_plan plan;
    struct rng rng;
    struct letter *letters;
    uint64_t number_last;
};

static struct faultnet *of_net(struct net *net)
{
    return (struct faultnet *)net;
}

/* ---- what befalls ---- */

static bool is_cut(const struct faultnet *f, const char *address)
{
    return f->config.is_cut != NULL && f->config.is_cut(f->config.arg, address);
}

static bool is_lost(struct faultnet *f)
{
    return f->plan.unreliable && rng_chance(&f->rng, LOSS_PER_MILLE);
}

static uint64_t request_delay_us(struct faultnet *f)
{
    return f->plan.unreliable ? rng_between(&f->rng, 0, DELAY_US_MAX) : 0;
}

static uint64_t reply_delay_us(struct faultnet *f)
{
    if (!f->plan.long_reordering || !rng_chance(&f->rng, LATE_PER_MILLE)) {
        return 0;
    }
    uint64_t more_ms = rng_between(&f->rng, 1, LATE_MS_MORE);
    return (LATE_MS_MIN + rng_between(&f->rng, 0, more_ms)) * MS;
}

static void watch(struct faultnet *f, net_method method, struct slice body,
                  bool reply)
{
    if (f->config.watch != NULL) {
        f->config.watch(f->config.arg, method, body, reply);
    }
}

/* ---- letters ---- */

static struct letter *letter_new(struct faultnet *f, const char *address,
                                 net_method method, const struct slice *parts,
                                 uint32_t part_count)
{
    struct letter *l = mem_alloc(sizeof *l);
    l->f = f;
    snprintf(l->address, sizeof l->address, "%s", address);
    l->method = method;
    for (uint32_t i = 0; i < part_count; i++) {
        buf_append(&l->body, parts[i].data, parts[i].size);
    }
    DL_APPEND(f->letters, l);
    return l;
}

static void letter_free(struct letter *l)
{
    env_timer_stop(l->f->config.env, &l->timer);
    DL_DELETE(l->f->letters, l);
    buf_free(&l->body);
    mem_free(l);
}

static void letter_due(struct env_timer *timer)
{
    struct letter *l = (struct letter *)timer;
    l->due(l);
}

static void later(struct letter *l, uint64_t delay_us,
                  void (*due)(struct letter *l))
{
    l->due = due;
    l->timer.fire = letter_due;
    env_timer_start(l->f->config.env, &l->timer, delay_us);
}

/* ---- calls ---- */

static void tell(struct letter *l)
{
    struct slice nothing = {0};
    l->reply(l->arg, l->verdict,
             l->verdict == ERR_OK ? buf_slice(&l->body) : nothing);
    letter_free(l);
}

/* Never after its deadline. */
static void tell_later(struct letter *l, enum err verdict, uint64_t delay_us)
{
    uint64_t now_us = env_now_us(l->f->config.env);
    uint64_t left_us = l->deadline_us > now_us ? l->deadline_us - now_us : 0;
    l->verdict = verdict;
    if (delay_us > left_us) {
        l->verdict = ERR_TIMEDOUT;
        delay_us = left_us;
    }
    later(l, delay_us, tell);
}

static void lose(struct letter *l, uint64_t noticed_us)
{
    tell_later(l, ERR_CLOSED, l->f->plan.silent ? UINT64_MAX : noticed_us);
}

static void answered(void *arg, enum err rc, struct slice body)
{
    struct letter *l = arg;
    struct faultnet *f = l->f;
    l->inner = 0;
    buf_clear(&l->body);
    if (rc != ERR_OK) {
        tell_later(l, rc, 0);
        return;
    }
    watch(f, l->method, body, true);
    if (is_cut(f, l->address) || is_lost(f)) {
        lose(l, 0);
        return;
    }
    buf_append(&l->body, body.data, body.size);
    l->verdict = ERR_OK;
    uint64_t delay_us = reply_delay_us(f);
    if (delay_us > 0) {
        tell_later(l, ERR_OK, delay_us);
    } else {
        tell(l);
    }
}

static void pass_call(struct letter *l)
{
    struct faultnet *f = l->f;
    if (is_cut(f, l->address)) {
        lose(l, rng_between(&f->rng, 0, CUT_US_MAX));
        return;
    }
    uint64_t now_us = env_now_us(f->config.env);
    uint64_t left_us = l->deadline_us > now_us ? l->deadline_us - now_us : 0;
    struct slice body = buf_slice(&l->body);
    l->inner = net_call(f->config.inner, l->address, l->method, &body, 1,
                        (uint32_t)((left_us + MS - 1) / MS), answered, l);
}

static uint64_t faultnet_call(struct net *net, const char *address,
                              net_method method, const struct slice *parts,
                              uint32_t part_count, uint32_t timeout_ms,
                              net_reply_fn *reply, void *arg)
{
    struct faultnet *f = of_net(net);
    struct letter *l = letter_new(f, address, method, parts, part_count);
    uint64_t number = ++f->number_last;
    l->number = number;
    l->reply = reply;
    l->arg = arg;
    l->deadline_us = env_now_us(f->config.env) + timeout_ms * MS;
    watch(f, method, buf_slice(&l->body), false);
    uint64_t delay_us = request_delay_us(f);
    if (is_lost(f)) {
        lose(l, delay_us);
    } else if (delay_us > 0) {
        later(l, delay_us, pass_call);
    } else {
        pass_call(l);
    }
    return number;
}

static void faultnet_cancel(struct net *net, uint64_t number)
{
    struct faultnet *f = of_net(net);
    struct letter *l;
    DL_FOREACH(f->letters, l)
    {
        if (l->number == number) {
            if (l->inner != 0) {
                net_cancel(f->config.inner, l->inner);
            }
            letter_free(l);
            return;
        }
    }
}

/* ---- one-way messages ---- */

static void pass_send(struct letter *l)
{
    struct slice body = buf_slice(&l->body);
    if (!is_cut(l->f, l->address)) {
        net_send(l->f->config.inner, l->address, l->method, &body, 1);
    }
    letter_free(l);
}

static void faultnet_send(struct net *net, const char *address,
                          net_method method, const struct slice *parts,
                          uint32_t part_count)
{
    struct faultnet *f = of_net(net);
    struct letter *l = letter_new(f, address, method, parts, part_count);
    struct slice body = buf_slice(&l->body);
    bool reply = f->config.is_reply != NULL && f->config.is_reply(method, body);
    watch(f, method, body, reply);
    uint64_t delay_us = reply ? reply_delay_us(f) : request_delay_us(f);
    if (is_lost(f)) {
        letter_free(l);
    } else if (delay_us > 0) {
        later(l, delay_us, pass_send);
    } else {
        pass_send(l);
    }
}

/* ---- the rest passes ---- */

static size_t faultnet_queued(struct net *net, const char *address)
{
    return net_queued(of_net(net)->config.inner, address);
}

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    struct faultnet *f = arg;
    if (f->net.handler != NULL) {
        f->net.handler(f->net.handler_arg, request, peer, method, body);
    } else if (request != NULL) {
        net_reply(f->config.inner, request, ERR_CLOSED, slice_of(NULL, 0));
    }
}

static void down(void *arg, const char *address)
{
    struct faultnet *f = arg;
    if (f->net.down != NULL) {
        f->net.down(f->net.down_arg, address);
    }
}

struct faultnet *faultnet_new(const struct faultnet_config *config)
{
    struct faultnet *f = mem_alloc(sizeof *f);
    f->config = *config;
    f->rng.state = config->seed;
    f->ops = (struct net_ops){
        .call = faultnet_call,
        .cancel = faultnet_cancel,
        .send = faultnet_send,
        .reply = config->inner->ops->reply, /* a request is the inner net's */
        .queued = faultnet_queued,
    };
    f->net.ops = &f->ops;
    config->inner->handler = handle;
    config->inner->handler_arg = f;
    config->inner->down = down;
    config->inner->down_arg = f;
    return f;
}

void faultnet_free(struct faultnet *f)
{
    f->config.inner->handler = NULL;
    f->config.inner->down = NULL;
    while (f->letters != NULL) {
        if (f->letters->inner != 0) {
            net_cancel(f->config.inner, f->letters->inner);
        }
        letter_free(f->letters);
    }
    mem_free(f);
}

struct net *faultnet_net(struct faultnet *f)
{
    return &f->net;
}

void faultnet_set(struct faultnet *f, const struct faultnet_plan *plan)
{
    f->plan = *plan;
}
