/* Virtual time, three nodes' workers, and the net between them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "tests/unit/rsm_cluster.h"

/* --- Virtual time */

struct event {
    uint64_t at_us;
    uint64_t order;
    void (*fire)(void *arg);
    void *arg;
    struct event *next;
};

static struct event *schedule(uint64_t delay_us, void (*fire)(void *arg),
                              void *arg)
{
    struct event *e = mem_alloc(sizeof *e);
    *e = (struct event){.at_us = world.now_us + delay_us,
                        .order = world.order++,
                        .fire = fire,
                        .arg = arg};
    struct event **at = &world.events;
    while (*at != NULL && (*at)->at_us <= e->at_us) {
        at = &(*at)->next;
    }
    e->next = *at;
    *at = e;
    return e;
}

static void unschedule(struct event *e)
{
    struct event **at = &world.events;
    while (*at != e) {
        at = &(*at)->next;
    }
    *at = e->next;
    mem_free(e);
}

bool run_one(void)
{
    struct event *e = world.events;
    if (e == NULL) {
        return false;
    }
    world.events = e->next;
    world.now_us = e->at_us;
    world.fired++;
    void (*fire)(void *) = e->fire;
    void *arg = e->arg;
    mem_free(e);
    fire(arg);
    return true;
}

void run_ms(uint64_t ms)
{
    uint64_t until = world.now_us + ms * 1000;
    while (world.events != NULL && world.events->at_us <= until) {
        run_one();
    }
    world.now_us = until;
}

/* --- The env of one replica */

uint32_t slow_per_mille;          /* jobs that take long */
uint64_t apply_us, checkpoint_us; /* these workers' take so much more */

struct env_worker {
    struct node *node;
    bool is_wal;
    const uint64_t *more_us;
    struct env_job *head, *tail;
    struct event *event; /* the next run or done */
};

struct world world;
struct node nodes[NODES];
struct answer answer;

static uint64_t t_now_us(struct env *env)
{
    (void)env;
    return world.now_us;
}

static void timer_fire(void *arg)
{
    struct env_timer *t = arg;
    t->impl = NULL;
    t->fire(t);
}

static void t_timer_stop(struct env *env, struct env_timer *t)
{
    (void)env;
    if (t->impl != NULL) {
        unschedule(t->impl);
        t->impl = NULL;
    }
}

static void t_timer_start(struct env *env, struct env_timer *t,
                          uint64_t delay_us)
{
    t_timer_stop(env, t);
    t->impl = schedule(delay_us, timer_fire, t);
}

static struct env_worker *t_worker_new(struct env *env, const char *name)
{
    struct env_worker *w = mem_alloc(sizeof *w);
    w->node = (struct node *)env;
    w->is_wal = strcmp(name, "wal") == 0;
    static const uint64_t nothing;
    w->more_us = strcmp(name, "apply") == 0        ? &apply_us
                 : strcmp(name, "checkpoint") == 0 ? &checkpoint_us
                                                   : &nothing;
    return w;
}

static void worker_next(struct env_worker *w);

static void job_done(void *arg)
{
    struct env_worker *w = arg;
    struct env_job *job = w->head;
    w->event = NULL;
    w->head = job->next;
    if (job->done != NULL) {
        job->done(job);
    }
    worker_next(w);
}

static void job_run(void *arg)
{
    struct env_worker *w = arg;
    if (w->head->run != NULL) {
        w->head->run(w->head);
    }
    w->event = schedule(rng_below(&world.rng, 300), job_done, w);
}

static void worker_next(struct env_worker *w)
{
    if (w->head != NULL && w->event == NULL) {
        uint64_t delay_us = rng_below(&world.rng, 1000);
        if (rng_chance(&world.rng, slow_per_mille)) {
            delay_us *= 30;
        }
        w->event = schedule(delay_us + *w->more_us, job_run, w);
    }
}

static void t_worker_submit(struct env_worker *w, struct env_job *job)
{
    job->next = NULL;
    if (w->head != NULL) {
        w->tail->next = job;
    } else {
        w->head = job;
    }
    w->tail = job;
    worker_next(w);
}

static void t_worker_submit_brief(struct env_worker *w, struct env_job *job)
{
    w->node->brief_syncs += w->is_wal;
    w->node->brief_in = w->is_wal ? world.fired : w->node->brief_in;
    t_worker_submit(w, job);
}

static void t_worker_free(struct env_worker *w)
{
    while (w->event != NULL) {
        void (*fire)(void *) = w->event->fire;
        unschedule(w->event);
        w->event = NULL;
        fire(w);
    }
    CHECK(w->head == NULL);
    mem_free(w);
}

static void t_fatal(struct env *env, const char *words)
{
    (void)words;
    ((struct node *)env)->fatal = true;
}

static uint64_t t_random(struct env *env)
{
    (void)env;
    return rng_next(&world.rng);
}

const struct env_ops env_ops = {
    .now_us = t_now_us,
    .wall_us = t_now_us,
    .timer_start = t_timer_start,
    .timer_stop = t_timer_stop,
    .worker_new = t_worker_new,
    .worker_submit = t_worker_submit,
    .worker_submit_brief = t_worker_submit_brief,
    .worker_free = t_worker_free,
    .fatal = t_fatal,
    .random = t_random,
};

/* --- The network */

struct call {
    uint64_t number;
    net_reply_fn *reply;
    void *arg;
    struct call *next;
};

struct packet {
    uint32_t from, to;
    net_method method;
    uint64_t call; /* 0: one way */
    bool is_reply;
    enum err rc;
    struct buf body;
};

struct call *calls;
static uint64_t call_number;
uint32_t loss_per_mille;
enum net_role sender_role = NET_ROLE_SERVER;
uint32_t sender_group = GROUP;

static struct node *node_of_net(struct net *net)
{
    return (struct node *)((char *)net - offsetof(struct node, net));
}

static bool take_call(uint64_t number, struct call *out)
{
    for (struct call **at = &calls; *at != NULL; at = &(*at)->next) {
        if ((*at)->number == number) {
            struct call *c = *at;
            *out = *c;
            *at = c->next;
            mem_free(c);
            return true;
        }
    }
    return false;
}

static void end_call(uint64_t number, enum err rc, struct slice body)
{
    struct call c;
    if (take_call(number, &c)) {
        c.reply(c.arg, rc, body);
    }
}

static void packet_arrive(void *arg)
{
    struct packet *p = arg;
    struct node *to = &nodes[p->to];
    struct node *from = &nodes[p->from];
    if (to->cut || from->cut || to->rsm == NULL) {
        /* lost; a call finds out by its timeout */
    } else if (p->is_reply) {
        end_call(p->call, p->rc, buf_slice(&p->body));
    } else {
        struct net_request *request = NULL;
        struct net_peer peer = {
            .role = sender_role, .group = sender_group, .name = "test"};
        if (p->call != 0) {
            request = mem_alloc(sizeof *request);
            request->call =
                p->call | (uint64_t)p->to << 60 | (uint64_t)p->from << 56;
        }
        rsm_handle(to->rsm, request, &peer, p->method, buf_slice(&p->body));
    }
    buf_free(&p->body);
    mem_free(p);
}

static void send_packet(struct packet p, const struct slice *parts,
                        uint32_t part_count)
{
    if (nodes[p.from].cut || rng_chance(&world.rng, loss_per_mille)) {
        return;
    }
    struct packet *copy = mem_alloc(sizeof *copy);
    *copy = p;
    for (uint32_t i = 0; i < part_count; i++) {
        buf_append(&copy->body, parts[i].data, parts[i].size);
    }
    schedule(100 + rng_below(&world.rng, 900), packet_arrive, copy);
}

static void t_send(struct net *net, const char *address, net_method method,
                   const struct slice *parts, uint32_t part_count)
{
    struct packet p = {.from = node_of_net(net)->at,
                       .to = (uint32_t)(address[0] - '1'),
                       .method = method};
    nodes[p.from].sent_in = world.fired;
    send_packet(p, parts, part_count);
}

struct timeout {
    uint64_t call;
};

static void call_timeout(void *arg)
{
    uint64_t number = ((struct timeout *)arg)->call;
    mem_free(arg);
    end_call(number, ERR_TIMEDOUT, slice_of(NULL, 0));
}

static uint64_t t_call(struct net *net, const char *address, net_method method,
                       const struct slice *parts, uint32_t part_count,
                       uint32_t timeout_ms, net_reply_fn *reply, void *arg)
{
    struct call *c = mem_alloc(sizeof *c);
    *c = (struct call){
        .number = ++call_number, .reply = reply, .arg = arg, .next = calls};
    calls = c;
    struct timeout *t = mem_alloc(sizeof *t);
    t->call = c->number;
    schedule(timeout_ms * UINT64_C(1000), call_timeout, t);
    struct packet p = {.from = node_of_net(net)->at,
                       .to = (uint32_t)(address[0] - '1'),
                       .method = method,
                       .call = c->number};
    send_packet(p, parts, part_count);
    return call_number;
}

static void t_cancel(struct net *net, uint64_t number)
{
    (void)net;
    struct call c;
    take_call(number, &c);
}

static void t_reply(struct net_request *request, enum err rc,
                    const struct slice *parts, uint32_t part_count)
{
    if (request->call == 0) {
        answer = (struct answer){.ended = true, .rc = rc};
        mem_free(request);
        return;
    }
    struct packet p = {.from = (uint32_t)(request->call >> 60),
                       .to = (uint32_t)(request->call >> 56 & 15),
                       .call = request->call & 0xffffffffffff,
                       .is_reply = true,
                       .rc = rc};
    send_packet(p, parts, rc == ERR_OK ? part_count : 0);
    mem_free(request);
}

static size_t t_queued(struct net *net, const char *address)
{
    (void)net;
    (void)address;
    return 0;
}

const struct net_ops net_ops = {
    .call = t_call,
    .cancel = t_cancel,
    .send = t_send,
    .reply = t_reply,
    .queued = t_queued,
};
