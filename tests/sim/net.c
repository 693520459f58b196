/* Invariants:
 *  1. A call's reply function is called once, or never after cancel or death.
 *  2. No reply function and no handler runs inside call, send or reply.
 *  3. What a dead node says is not sent; what it said before may arrive. */
#include "tests/sim/net.h"

#include <stdio.h>
#include <string.h>
#include <uthash.h>

#include "base/check.h"
#include "base/codec.h"

enum {
    TAG_MESSAGE = 16,
    TAG_REPLY,
    TAG_TIMEOUT,
    TAG_HINT,
    CALLS_MAX = 4096, /* of a node; more: ERR_BUSY */
};

struct call {
    struct sim_event event; /* its timeout */
    struct sim_net *net;
    uint64_t id;
    uint32_t to;
    net_reply_fn *reply;
    void *arg;
    UT_hash_handle hh;
};

struct net_request {
    struct sim_net *net; /* who serves it */
    uint32_t from;
    uint64_t life; /* of the caller */
    uint64_t call;
    struct net_request *next, *prev;
};

struct sim_net {
    struct net net;
    struct sim_wire *wire;
    struct sim_env *env;
    enum net_role role;
    uint32_t group;
    char name[32];
    struct call *calls;
    uint64_t next_call;
    struct net_request *requests;
};

struct sim_wire {
    struct sim_world *world;
    struct sim_weather weather;
    struct sim_net *nets[SIM_NODES_MAX];
    bool cut[SIM_NODES_MAX][SIM_NODES_MAX];
    sim_wire_watch *watch;
    void *watch_arg;
    sim_wire_fate *fate;
    void *fate_arg;
    bool loss_is_noticed;
    uint64_t messages;
};

/* On the wire. */
struct message {
    struct sim_event event;
    struct sim_wire *wire;
    uint32_t from, to;
    uint64_t life; /* of the caller, in a request and its reply */
    uint64_t call; /* 0: one way */
    net_method method;
    enum err rc; /* of a reply */
    size_t size;
    uint8_t body[];
};

static struct sim_net *of(struct net *net)
{
    return (struct sim_net *)net;
}

void sim_net_address(uint32_t node, char address[NET_ADDRESS_SIZE_MAX])
{
    snprintf(address, NET_ADDRESS_SIZE_MAX, "n%u:7000", node);
}

static uint32_t node_at(const char *address)
{
    CHECK(address[0] == 'n');
    uint32_t node = 0;
    for (address++; *address >= '0' && *address <= '9'; address++) {
        node = 10 * node + (uint32_t)(*address - '0');
        CHECK(node < SIM_NODES_MAX);
    }
    return node;
}

static void event_free(struct sim_event *e)
{
    mem_free(e);
}

/* ---- the way there ---- */

static struct message *message_new(struct sim_wire *wire, uint32_t from,
                                   uint32_t to, const struct slice *parts,
                                   uint32_t part_count)
{
    size_t size = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        size += parts[i].size;
    }
    struct message *m = mem_resize(NULL, sizeof *m + size);
    *m = (struct message){.wire = wire, .from = from, .to = to, .size = size};
    size_t at = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        if (parts[i].size > 0) {
            memcpy(m->body + at, parts[i].data, parts[i].size);
        }
        at += parts[i].size;
    }
    return m;
}

static uint64_t way_us(struct sim_wire *wire, size_t size)
{
    struct sim_world *w = wire->world;
    struct sim_weather *we = &wire->weather;
    uint64_t us = sim_delay(w, we->delay_low_us, we->delay_high_us);
    if (sim_chance(w, we->late_per_mille)) {
        us += sim_between(w, 0, we->late_us);
    }
    return us + size / 100; /* 100 bytes a microsecond */
}

static void message_queue(struct message *m)
{
    struct sim_wire *wire = m->wire;
    sim_push(wire->world, &m->event, way_us(wire, m->size));
}

static void reply_fire(struct sim_event *event);

/* The caller gets an error in place of an answer. Takes `m`. */
static void message_fail(struct message *m, uint64_t delay_us)
{
    struct sim_wire *wire = m->wire;
    if (m->event.tag != TAG_REPLY) {
        uint32_t caller = m->from;
        m->from = m->to;
        m->to = caller;
        m->event = (struct sim_event){.env = wire->nets[caller]->env,
                                      .tag = TAG_REPLY,
                                      .fire = reply_fire,
                                      .drop = event_free};
    }
    m->rc = ERR_CLOSED;
    sim_push(wire->world, &m->event, delay_us);
}

/* Takes `m`. */
static void message_decided(struct message *m)
{
    struct sim_wire *wire = m->wire;
    struct sim_letter letter = {
        .from = m->from,
        .to = m->to,
        .reply = m->event.tag == TAG_REPLY,
        .method = m->method,
        .body = slice_of(m->body, m->size),
    };
    uint64_t delay_us = 0;
    if (wire->fate(wire->fate_arg, &letter, &delay_us)) {
        sim_push(wire->world, &m->event, delay_us);
    } else if (wire->loss_is_noticed && m->call != 0) {
        message_fail(m, delay_us);
    } else {
        mem_free(m);
    }
}

/* Takes `m`. */
static void message_go(struct message *m)
{
    struct sim_wire *wire = m->wire;
    struct sim_world *w = wire->world;
    wire->messages++;
    sim_mix(w, (uint64_t)m->method << 48 ^ m->size);
    sim_mix(w, crc32c(0, slice_of(m->body, m->size)));
    if (wire->fate != NULL) {
        message_decided(m);
        return;
    }
    if (wire->cut[m->from][m->to] ||
        sim_chance(w, wire->weather.loss_per_mille)) {
        mem_free(m);
        return;
    }
    if (sim_chance(w, wire->weather.twice_per_mille)) {
        struct message *again = mem_resize(NULL, sizeof *m + m->size);
        memcpy(again, m, sizeof *m + m->size);
        message_queue(again);
    }
    message_queue(m);
}

/* ---- arriving ---- */

static void reply_go(struct net_request *request, enum err rc,
                     const struct slice *parts, uint32_t part_count);

static void request_close(struct message *m)
{
    /* Nobody there: the connection is refused, or nothing answers. */
    struct sim_world *w = m->wire->world;
    if (m->call == 0 || !sim_chance(w, 500)) {
        return;
    }
    struct sim_net *net = m->wire->nets[m->to];
    struct net_request *r = mem_alloc(sizeof *r);
    *r = (struct net_request){
        .net = net, .from = m->from, .life = m->life, .call = m->call};
    reply_go(r, ERR_CLOSED, NULL, 0);
    mem_free(r);
}

static struct net_request *request_new(struct message *m, struct sim_net *net)
{
    if (m->call == 0) {
        return NULL;
    }
    struct net_request *r = mem_alloc(sizeof *r);
    *r = (struct net_request){
        .net = net, .from = m->from, .life = m->life, .call = m->call};
    r->next = net->requests;
    if (r->next != NULL) {
        r->next->prev = r;
    }
    net->requests = r;
    return r;
}

static void message_fire(struct sim_event *event)
{
    struct message *m = (struct message *)event;
    struct sim_net *net = m->wire->nets[m->to];
    struct sim_net *from = m->wire->nets[m->from];
    if (net->env->dead || net->net.handler == NULL) {
        request_close(m);
        if (net->env->dead && sim_chance(m->wire->world, 200)) {
            sim_wire_hint(m->wire, m->from, m->to, way_us(m->wire, 0));
        }
    } else {
        net->env->heard++;
        struct net_peer peer = {
            .role = from->role, .group = from->group, .name = from->name};
        net->net.handler(net->net.handler_arg, request_new(m, net), &peer,
                         m->method, slice_of(m->body, m->size));
    }
    mem_free(m);
}

static void reply_fire(struct sim_event *event)
{
    struct message *m = (struct message *)event;
    struct sim_net *net = m->wire->nets[m->to];
    struct call *c = NULL;
    if (!net->env->dead && net->env->life == m->life) {
        HASH_FIND(hh, net->calls, &m->call, sizeof m->call, c);
    }
    if (c != NULL) {
        net->env->heard++;
        HASH_DEL(net->calls, c);
        sim_pull(m->wire->world, &c->event);
        net_reply_fn *reply = c->reply;
        void *arg = c->arg;
        mem_free(c);
        reply(arg, m->rc,
              m->rc == ERR_OK ? slice_of(m->body, m->size) : slice_of(NULL, 0));
    }
    mem_free(m);
}

static void reply_go(struct net_request *r, enum err rc,
                     const struct slice *parts, uint32_t part_count)
{
    struct sim_wire *wire = r->net->wire;
    struct message *m = message_new(wire, r->net->env->node, r->from, parts,
                                    rc == ERR_OK ? part_count : 0);
    m->event = (struct sim_event){.env = wire->nets[r->from]->env,
                                  .tag = TAG_REPLY,
                                  .fire = reply_fire,
                                  .drop = event_free};
    m->life = r->life;
    m->call = r->call;
    m->rc = rc;
    message_go(m);
}

static void request_free(struct net_request *r)
{
    if (r->prev != NULL) {
        r->prev->next = r->next;
    } else {
        r->net->requests = r->next;
    }
    if (r->next != NULL) {
        r->next->prev = r->prev;
    }
    mem_free(r);
}

static void net_do_reply(struct net_request *request, enum err rc,
                         const struct slice *parts, uint32_t part_count)
{
    if (!request->net->env->dead) {
        reply_go(request, rc, parts, part_count);
    }
    request_free(request);
}

/* ---- calling ---- */

static void call_timeout(struct sim_event *event)
{
    struct call *c = (struct call *)event;
    HASH_DEL(c->net->calls, c);
    net_reply_fn *reply = c->reply;
    void *arg = c->arg;
    enum err rc = c->to == SIM_NODES_MAX ? ERR_BUSY : ERR_TIMEDOUT;
    mem_free(c);
    reply(arg, rc, slice_of(NULL, 0));
}

static void call_drop(struct sim_event *event)
{
    struct call *c = (struct call *)event;
    HASH_DEL(c->net->calls, c);
    mem_free(c);
}

static void request_go(struct sim_net *n, uint32_t to, uint64_t call,
                       net_method method, const struct slice *parts,
                       uint32_t part_count)
{
    struct sim_wire *wire = n->wire;
    struct message *m = message_new(wire, n->env->node, to, parts, part_count);
    CHECK(m->size <= NET_BODY_SIZE_MAX);
    m->event = (struct sim_event){.env = wire->nets[to]->env,
                                  .tag = TAG_MESSAGE,
                                  .fire = message_fire,
                                  .drop = event_free};
    m->method = method;
    m->life = n->env->life;
    m->call = call;
    if (wire->watch != NULL) {
        wire->watch(wire->watch_arg, m->from, to, method,
                    slice_of(m->body, m->size));
    }
    message_go(m);
}

static uint64_t net_do_call(struct net *net, const char *address,
                            net_method method, const struct slice *parts,
                            uint32_t part_count, uint32_t timeout_ms,
                            net_reply_fn *reply, void *arg)
{
    struct sim_net *n = of(net);
    struct call *c = mem_alloc(sizeof *c);
    c->event = (struct sim_event){.env = n->env,
                                  .of_life = true,
                                  .tag = TAG_TIMEOUT,
                                  .fire = call_timeout,
                                  .drop = call_drop};
    c->net = n;
    c->id = ++n->next_call;
    c->to = node_at(address);
    c->reply = reply;
    c->arg = arg;
    bool full = HASH_COUNT(n->calls) >= CALLS_MAX;
    HASH_ADD(hh, n->calls, id, sizeof c->id, c);
    uint64_t wait_us =
        timeout_ms == 0 ? UINT64_C(3600000000) : (uint64_t)timeout_ms * 1000;
    if (full) {
        c->to = SIM_NODES_MAX;
        wait_us = 1;
    } else if (!n->env->dead) {
        request_go(n, c->to, c->id, method, parts, part_count);
    }
    sim_push(n->wire->world, &c->event, wait_us);
    return c->id;
}

static void net_do_cancel(struct net *net, uint64_t id)
{
    struct sim_net *n = of(net);
    struct call *c = NULL;
    HASH_FIND(hh, n->calls, &id, sizeof id, c);
    if (c != NULL) {
        HASH_DEL(n->calls, c);
        sim_pull(n->wire->world, &c->event);
        mem_free(c);
    }
}

static void net_do_send(struct net *net, const char *address, net_method method,
                        const struct slice *parts, uint32_t part_count)
{
    struct sim_net *n = of(net);
    if (!n->env->dead) {
        request_go(n, node_at(address), 0, method, parts, part_count);
    }
}

static size_t net_do_queued(struct net *net, const char *address)
{
    (void)net;
    (void)address;
    return 0;
}

static const struct net_ops ops = {
    .call = net_do_call,
    .cancel = net_do_cancel,
    .send = net_do_send,
    .reply = net_do_reply,
    .queued = net_do_queued,
};

/* ---- hints that a node is gone ---- */

struct hint {
    struct sim_event event;
    struct sim_net *net;
    uint32_t about;
};

static void hint_fire(struct sim_event *event)
{
    struct hint *h = (struct hint *)event;
    struct net *net = &h->net->net;
    char address[NET_ADDRESS_SIZE_MAX];
    sim_net_address(h->about, address);
    bool alive = !h->net->env->dead;
    mem_free(h);
    if (alive && net->down != NULL) {
        net->down(net->down_arg, address);
    }
}

void sim_wire_hint(struct sim_wire *wire, uint32_t at, uint32_t about,
                   uint64_t delay_us)
{
    struct hint *h = mem_alloc(sizeof *h);
    h->event = (struct sim_event){.env = wire->nets[at]->env,
                                  .of_life = true,
                                  .tag = TAG_HINT,
                                  .fire = hint_fire,
                                  .drop = event_free};
    h->net = wire->nets[at];
    h->about = about;
    sim_push(wire->world, &h->event, delay_us);
}

/* ---- the wire ---- */

struct sim_wire *sim_wire_new(struct sim_world *w)
{
    struct sim_wire *wire = mem_alloc(sizeof *wire);
    wire->world = w;
    wire->weather =
        (struct sim_weather){.delay_low_us = 50, .delay_high_us = 2000};
    return wire;
}

void sim_wire_free(struct sim_wire *wire)
{
    for (uint32_t i = 0; i < SIM_NODES_MAX; i++) {
        mem_free(wire->nets[i]);
    }
    mem_free(wire);
}

struct sim_weather *sim_wire_weather(struct sim_wire *wire)
{
    return &wire->weather;
}

void sim_wire_cut(struct sim_wire *wire, uint32_t from, uint32_t to, bool cut)
{
    wire->cut[from][to] = cut;
}

void sim_wire_mend(struct sim_wire *wire)
{
    memset(wire->cut, 0, sizeof wire->cut);
}

void sim_wire_set_watch(struct sim_wire *wire, sim_wire_watch *watch, void *arg)
{
    wire->watch = watch;
    wire->watch_arg = arg;
}

void sim_wire_set_fate(struct sim_wire *wire, sim_wire_fate *fate, void *arg)
{
    wire->fate = fate;
    wire->fate_arg = arg;
}

void sim_wire_set_loss_noticed(struct sim_wire *wire, bool noticed)
{
    wire->loss_is_noticed = noticed;
}

uint64_t sim_wire_messages(const struct sim_wire *wire)
{
    return wire->messages;
}

struct net *sim_net_add(struct sim_wire *wire, struct sim_env *env,
                        enum net_role role, uint32_t group, const char *name)
{
    CHECK(env->node < SIM_NODES_MAX && wire->nets[env->node] == NULL);
    struct sim_net *n = mem_alloc(sizeof *n);
    n->net.ops = &ops;
    n->wire = wire;
    n->env = env;
    n->role = role;
    n->group = group;
    snprintf(n->name, sizeof n->name, "%s", name);
    wire->nets[env->node] = n;
    return &n->net;
}

void sim_net_bury(struct sim_wire *wire, uint32_t node)
{
    struct sim_net *n = wire->nets[node];
    struct call *c, *next;
    HASH_ITER(hh, n->calls, c, next)
    {
        HASH_DEL(n->calls, c);
        sim_pull(wire->world, &c->event);
        mem_free(c);
    }
    while (n->requests != NULL) {
        request_free(n->requests);
    }
    n->net.handler = NULL;
    n->net.down = NULL;
    for (uint32_t i = 0; i < SIM_NODES_MAX; i++) {
        if (wire->nets[i] != NULL && i != node && !wire->nets[i]->env->dead &&
            sim_chance(wire->world, 300)) {
            sim_wire_hint(wire, i, node, sim_between(wire->world, 100, 50000));
        }
    }
}
