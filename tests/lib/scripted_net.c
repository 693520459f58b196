#include "tests/lib/scripted_net.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"

static struct sn *of_env(struct env *env)
{
    return (struct sn *)(void *)env;
}

static struct sn *of_net(struct net *net)
{
    return (struct sn *)(void *)((char *)net - offsetof(struct sn, net));
}

static uint64_t now_us(struct env *env)
{
    return of_env(env)->now_us;
}

static uint64_t wall_us(struct env *env)
{
    return of_env(env)->now_us + 1700000000000000u;
}

static void timer_stop(struct env *env, struct env_timer *t)
{
    struct sn_timer **at = &of_env(env)->timers;
    while (t->impl != NULL) {
        struct sn_timer *node = *at;
        CHECK(node != NULL);
        if (node == t->impl) {
            *at = node->next;
            mem_free(node);
            t->impl = NULL;
        } else {
            at = &node->next;
        }
    }
}

static void timer_start(struct env *env, struct env_timer *t, uint64_t delay_us)
{
    timer_stop(env, t);
    struct sn *s = of_env(env);
    struct sn_timer *node = mem_alloc(sizeof *node);
    node->at_us = s->now_us + delay_us;
    node->timer = t;
    t->impl = node;
    struct sn_timer **at = &s->timers;
    while (*at != NULL && (*at)->at_us <= node->at_us) {
        at = &(*at)->next;
    }
    node->next = *at;
    *at = node;
}

static void post(struct env *env, struct env_job *job)
{
    job->next = of_env(env)->posted;
    of_env(env)->posted = job;
}

static uint64_t env_rng(struct env *env)
{
    return rng_next(&of_env(env)->rng);
}

static void fatal(struct env *env, const char *words)
{
    (void)env;
    fprintf(stderr, "fatal: %s\n", words);
    CHECK(!"fatal");
}

static const struct env_ops env_ops = {
    .now_us = now_us,
    .wall_us = wall_us,
    .timer_start = timer_start,
    .timer_stop = timer_stop,
    .post = post,
    .fatal = fatal,
    .random = env_rng,
};

static uint64_t call(struct net *net, const char *address, net_method method,
                     const struct slice *parts, uint32_t part_count,
                     uint32_t timeout_ms, net_reply_fn *reply, void *arg)
{
    struct sn *s = of_net(net);
    struct sn_call *c = mem_alloc(sizeof *c);
    c->id = ++s->last_id;
    snprintf(c->address, sizeof c->address, "%s", address);
    c->method = method;
    for (uint32_t i = 0; i < part_count; i++) {
        buf_append(&c->body, parts[i].data, parts[i].size);
    }
    c->sent_us = s->now_us;
    c->deadline_us = s->now_us + timeout_ms * 1000ull;
    c->reply = reply;
    c->arg = arg;
    struct sn_call **at = &s->calls;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = c;
    s->sent++;
    if (s->on_call != NULL) {
        s->on_call(c);
    }
    return c->id;
}

static void call_remove(struct sn *s, struct sn_call *c)
{
    struct sn_call **at = &s->calls;
    while (*at != c) {
        CHECK(*at != NULL);
        at = &(*at)->next;
    }
    *at = c->next;
    buf_free(&c->body);
    mem_free(c);
}

static void cancel(struct net *net, uint64_t id)
{
    struct sn *s = of_net(net);
    for (struct sn_call *c = s->calls; c != NULL; c = c->next) {
        if (c->id == id) {
            call_remove(s, c);
            return;
        }
    }
    CHECK(!"cancelled a call that is over");
}

static void send_one_way(struct net *net, const char *address,
                         net_method method, const struct slice *parts,
                         uint32_t part_count)
{
    (void)net;
    (void)address;
    (void)method;
    (void)parts;
    (void)part_count;
}

static const struct net_ops net_ops = {
    .call = call,
    .cancel = cancel,
    .send = send_one_way,
};

void sn_init(struct sn *s, uint64_t seed)
{
    *s = (struct sn){.env = {.ops = &env_ops}, .net = {.ops = &net_ops}};
    s->rng.state = seed;
    s->now_us = 1000000;
}

void sn_fini(struct sn *s)
{
    CHECK(s->timers == NULL);
    CHECK(s->calls == NULL);
}

void sn_answer(struct sn *s, struct sn_call *c, enum err rc, struct slice body)
{
    net_reply_fn *reply = c->reply;
    void *arg = c->arg;
    call_remove(s, c);
    reply(arg, rc, rc == ERR_OK ? body : slice_of(NULL, 0));
}

static struct sn_call *first_to_time_out(struct sn *s)
{
    struct sn_call *first = s->calls;
    for (struct sn_call *c = s->calls; c != NULL; c = c->next) {
        if (c->deadline_us < first->deadline_us) {
            first = c;
        }
    }
    return first;
}

static void advance(struct sn *s, uint64_t to_us)
{
    s->now_us = s->now_us > to_us ? s->now_us : to_us;
}

bool sn_step(struct sn *s, uint64_t until_us)
{
    struct sn_call *c = first_to_time_out(s);
    struct sn_timer *node = s->timers;
    if (node != NULL && (c == NULL || node->at_us <= c->deadline_us)) {
        if (node->at_us > until_us) {
            return false;
        }
        struct env_timer *t = node->timer;
        advance(s, node->at_us);
        s->timers = node->next;
        mem_free(node);
        t->impl = NULL;
        t->fire(t);
        return true;
    }
    if (c == NULL || c->deadline_us > until_us) {
        return false;
    }
    advance(s, c->deadline_us);
    sn_answer(s, c, ERR_TIMEDOUT, slice_of(NULL, 0));
    return true;
}

void sn_run(struct sn *s, uint64_t for_us)
{
    uint64_t until = s->now_us + for_us;
    while (sn_step(s, until)) {
    }
    advance(s, until);
}
