/* The controller's clerk. Invariants:
 *
 *  1. A call is in `calls` until its done() was called, and then freed; it has
 *     tries on the net, or its timer running, or it is a change that waits for
 *     its turn. No server has two of its tries at a time.
 *  2. A change keeps its (session, sequence) over all tries, and only the first
 *     change in the queue is tried: the controllers remember one answer a
 *     session, so a second one on its way would make the first unanswerable.
 *  3. A try that was the only one ever sent, and is refused with ERR_EXPIRED,
 *     was not executed: it may go on in a new session. */
#include "shardctrler/client.h"

#include <string.h>

#include "shardctrler/known.h"

enum {
    TRY_MS = 1000,
    SILENCE_US = 50 * 1000, /* of a stranger: then another is asked as well */
    AGAIN_MAX = 3,          /* at once; then the others are asked */
    PAUSE_MIN_US = 10 * 1000,
    PAUSE_MAX_US = 500 * 1000,
    CHANGE_TIMEOUT_MAX_MS = 5 * 60 * 1000,
};

struct call;
/* Gives the caller its answer; `body` is empty unless `rc` is ERR_OK. False
 * when that was not the end: it tries again, or its timer runs. */
typedef bool call_finish_fn(struct call *c, enum err rc, struct slice body);

struct ctl_client {
    struct env *env;
    struct net *net;
    struct ctl_known known;
    uint32_t leader; /* where the last call was answered; a guess */
    bool answered;   /* it did answer: not only a guess */
    struct call *calls;
    struct call *changes_head, *changes_tail; /* first in, first out */
    uint64_t session;
    uint64_t sequence; /* of the last change that was begun */
    bool closing;
};

/* Of a call, at the known place of the same position. */
struct
try {
    struct call *call;
    uint64_t net_call; /* 0: none is on its way */
};

struct call {
    struct ctl_client *client;
    call_finish_fn *finish;
    void (*done)(void); /* one of the header's types; finish() knows which */
    void *arg;
    net_method method;
    struct buf body;
    uint64_t deadline_us; /* UINT64_MAX: none */
    uint64_t wait_us;     /* QUERY: the wait ends at this time */
    uint64_t number;      /* QUERY */
    uint64_t pause_us;
    uint32_t sends;
    uint32_t again; /* so often, in this round, who hung up is asked again */
    uint32_t asked; /* in this round: a bit for each server */
    bool pausing;   /* the round is over, and the timer begins the next one */
    struct try tries[CTL_KNOWN_MAX];
    struct env_timer timer;
    struct call *next, *prev;
    struct call *next_change;
};

/* ---- the list ---- */

static struct call *call_new(struct ctl_client *client, net_method method,
                             uint32_t timeout_ms, call_finish_fn *finish,
                             void (*done)(void), void *arg)
{
    struct call *c = mem_alloc(sizeof *c);
    c->client = client;
    c->method = method;
    c->finish = finish;
    c->done = done;
    c->arg = arg;
    c->deadline_us =
        timeout_ms == 0 ? UINT64_MAX
                        : env_now_us(client->env) + (uint64_t)timeout_ms * 1000;
    c->pause_us = PAUSE_MIN_US;
    c->again = AGAIN_MAX;
    c->next = client->calls;
    if (c->next != NULL) {
        c->next->prev = c;
    }
    client->calls = c;
    return c;
}

static void call_unlink(struct call *c)
{
    if (c->prev != NULL) {
        c->prev->next = c->next;
    } else {
        c->client->calls = c->next;
    }
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
}

static void call_free(struct call *c)
{
    buf_free(&c->body);
    mem_free(c);
}

/* ---- trying ---- */

static void call_try(struct call *c);
static void changes_next(struct ctl_client *client);
static void change_unlink(struct call *c);

/* No more is on its way there. */
static void try_over(struct try *t)
{
    struct call *c = t->call;
    t->net_call = 0;
    c->client->known.places[t - c->tries].tries--;
}

/* Who is still asked is not waited for any more. */
static void call_rest(struct call *c)
{
    struct ctl_client *client = c->client;
    env_timer_stop(client->env, &c->timer);
    for (uint32_t i = 0; i < client->known.count; i++) {
        if (c->tries[i].net_call != 0) {
            net_cancel(client->net, c->tries[i].net_call);
            try_over(&c->tries[i]);
        }
    }
}

static void call_end(struct call *c, enum err rc, struct slice body)
{
    struct ctl_client *client = c->client;
    call_rest(c);
    if (!c->finish(c, rc, body)) {
        return;
    }
    call_unlink(c);
    if (c->method == CTL_METHOD_CHANGE) {
        change_unlink(c);
    }
    call_free(c);
    changes_next(client);
}

static uint64_t left_us(const struct call *c)
{
    uint64_t now = env_now_us(c->client->env);
    return c->deadline_us > now ? c->deadline_us - now : 0;
}

static void timer_fired(struct env_timer *timer)
{
    struct call *c =
        (struct call *)(void *)((char *)timer - offsetof(struct call, timer));
    if (left_us(c) == 0) {
        call_end(c, ERR_TIMEDOUT, slice_of(NULL, 0));
        return;
    }
    call_try(c);
}

static void timer_start(struct call *c, uint64_t delay_us)
{
    uint64_t left = left_us(c);
    c->timer.fire = timer_fired;
    env_timer_start(c->client->env, &c->timer,
                    delay_us < left ? delay_us : left);
}

/* Half of the pause is random, or clerks that failed together would come back
 * together. */
static void call_pause(struct call *c)
{
    uint64_t half = c->pause_us / 2;
    uint64_t pause = half + env_random(c->client->env) % (half + 1);
    c->pause_us =
        c->pause_us * 2 < PAUSE_MAX_US ? c->pause_us * 2 : PAUSE_MAX_US;
    c->pausing = true;
    c->asked = 0;
    c->again = AGAIN_MAX;
    timer_start(c, pause);
}

static bool is_silence(enum err rc)
{
    return rc == ERR_CLOSED || rc == ERR_TIMEDOUT || rc == ERR_IO;
}

static bool is_elsewhere(enum err rc)
{
    return rc == ERR_NOTLEADER || is_silence(rc);
}

static void call_send(struct call *c, uint32_t server);

static void answered(void *arg, enum err rc, struct slice body)
{
    struct try *t = arg;
    struct call *c = t->call;
    struct ctl_client *client = c->client;
    uint32_t server = (uint32_t)(t - c->tries);
    try_over(t);
    if (is_silence(rc)) {
        ctl_known_silent(&client->known);
    } else {
        ctl_known_answered(&client->known, server);
    }
    if (!is_elsewhere(rc) && rc != ERR_BUSY) {
        client->leader = server;
        client->answered = true;
        call_end(c, rc, body);
        return;
    }
    if (left_us(c) == 0) {
        call_end(c, ERR_TIMEDOUT, slice_of(NULL, 0));
        return;
    }
    if (rc == ERR_CLOSED && c->again > 0) {
        c->again--; /* a connection broke: who led may well lead on */
        call_send(c, server);
        return;
    }
    if (is_elsewhere(rc) && client->leader == server) {
        client->leader = (server + 1) % client->known.count;
        client->answered = false;
    }
    if (c->pausing) {
        return; /* one that was silent: the next round begins soon */
    }
    is_elsewhere(rc) ? call_try(c) : call_pause(c);
}

static uint64_t wait_left_us(const struct call *c)
{
    uint64_t now = env_now_us(c->client->env);
    return c->wait_us > now ? c->wait_us - now : 0;
}

static void body_encode(struct call *c)
{
    if (c->method == CTL_METHOD_QUERY) {
        struct ctl_query q = {.number = c->number,
                              .wait_ms = (uint32_t)(wait_left_us(c) / 1000)};
        buf_clear(&c->body);
        ctl_query_encode(&c->body, &q);
    }
}

static void call_send(struct call *c, uint32_t server)
{
    struct ctl_client *client = c->client;
    struct try *t = &c->tries[server];
    uint64_t left_ms = left_us(c) / 1000 + 1;
    uint64_t try_ms = TRY_MS + wait_left_us(c) / 1000;
    body_encode(c);
    struct slice body = buf_slice(&c->body);
    struct ctl_place *place = &client->known.places[server];
    c->sends++;
    place->tries++;
    t->call = c;
    t->net_call =
        net_call(client->net, place->address, c->method, &body, 1,
                 (uint32_t)(left_ms < try_ms ? left_ms : try_ms), answered, t);
}

/* The one that is likely to lead, or the next after it that was not asked in
 * this round and keeps no try; CTL_KNOWN_MAX: none is left. */
static uint32_t choose(const struct call *c)
{
    const struct ctl_known *known = &c->client->known;
    for (uint32_t i = 0; i < known->count; i++) {
        uint32_t at = (c->client->leader + i) % known->count;
        if (known->places[at].member && (c->asked & 1u << at) == 0 &&
            c->tries[at].net_call == 0) {
            return at;
        }
    }
    return CTL_KNOWN_MAX;
}

/* Each is asked once without a pause: one of them is likely to lead. Who has
 * not answered anything yet may be halted or without power, which breaks no
 * connection: when it is silent, another is asked as well, and the first answer
 * counts. Not so with a long poll, whose answer takes its time. */
static void call_try(struct call *c)
{
    uint32_t server = choose(c);
    env_timer_stop(c->client->env, &c->timer);
    c->pausing = false;
    if (server == CTL_KNOWN_MAX) {
        call_pause(c);
        return;
    }
    c->asked |= 1u << server;
    call_send(c, server);
    if (!c->client->answered && wait_left_us(c) == 0) {
        timer_start(c, SILENCE_US);
    }
}

/* ---- query ---- */

static bool query_finish(struct call *c, enum err rc, struct slice body)
{
    ctl_query_fn *done = (ctl_query_fn *)c->done;
    struct arena a = {0};
    struct ctl_config config;
    if (rc == ERR_OK) {
        rc = ctl_config_decode(body, &a, &config);
    }
    if (rc == ERR_OK) {
        rc = ctl_config_check(&config);
    }
    done(c->arg, rc, rc == ERR_OK ? &config : NULL);
    arena_free(&a);
    return true;
}

void ctl_client_query(struct ctl_client *client, uint64_t number,
                      uint32_t wait_ms, uint32_t timeout_ms, ctl_query_fn *done,
                      void *arg)
{
    struct call *c = call_new(client, CTL_METHOD_QUERY, timeout_ms,
                              query_finish, (void (*)(void))done, arg);
    c->number = number;
    c->wait_us = env_now_us(client->env) + (uint64_t)wait_ms * 1000;
    if (!client->closing) {
        call_try(c);
    }
}

/* ---- change ---- */

static void change_name(struct call *c)
{
    set_u64(c->body.data, c->client->session);
    set_u64(c->body.data + sizeof(uint64_t), c->client->sequence);
}

static void session_start(struct ctl_client *client)
{
    do {
        client->session = env_random(client->env);
    } while (client->session == 0);
    client->sequence = 0;
}

/* Invariant 2: begins the first change of the queue, unless it runs. */
static void changes_next(struct ctl_client *client)
{
    struct call *c = client->changes_head;
    if (c == NULL || c->sends > 0 || client->closing) {
        return;
    }
    env_timer_stop(client->env, &c->timer);
    client->sequence++;
    change_name(c);
    call_try(c);
}

static void change_unlink(struct call *c)
{
    struct ctl_client *client = c->client;
    struct call **at = &client->changes_head;
    struct call *last = NULL;
    while (*at != c) {
        last = *at;
        at = &last->next_change;
    }
    *at = c->next_change;
    if (client->changes_tail == c) {
        client->changes_tail = last;
    }
}

static bool change_finish(struct call *c, enum err rc, struct slice body)
{
    ctl_change_fn *done = (ctl_change_fn *)c->done;
    struct arena a = {0};
    struct ctl_changed changed = {0};
    if (rc == ERR_OK) {
        rc = ctl_changed_decode(body, &a, &changed);
        rc = rc == ERR_OK ? err_from_wire(changed.rc) : rc;
    }
    arena_free(&a);
    if (rc == ERR_BUSY) {
        call_pause(c); /* not made, and not remembered */
        return false;
    }
    if (rc == ERR_EXPIRED) {
        session_start(c->client);
        if (c->sends == 1) { /* invariant 3 */
            c->client->sequence++;
            change_name(c);
            call_try(c);
            return false;
        }
    }
    done(c->arg, rc, changed.number);
    return true;
}

void ctl_client_change(struct ctl_client *client,
                       const struct ctl_change *change, uint32_t timeout_ms,
                       ctl_change_fn *done, void *arg)
{
    if (timeout_ms == 0 || timeout_ms > CHANGE_TIMEOUT_MAX_MS) {
        timeout_ms = CHANGE_TIMEOUT_MAX_MS;
    }
    struct call *c = call_new(client, CTL_METHOD_CHANGE, timeout_ms,
                              change_finish, (void (*)(void))done, arg);
    ctl_change_encode(&c->body, change);
    if (client->changes_tail != NULL) {
        client->changes_tail->next_change = c;
    } else {
        client->changes_head = c;
    }
    client->changes_tail = c;
    if (client->changes_head != c) {
        timer_start(c, UINT64_MAX);
    }
    changes_next(client);
}

/* ---- mount, mounts ---- */

static bool mount_finish(struct call *c, enum err rc, struct slice body)
{
    (void)body;
    ctl_mount_fn *done = (ctl_mount_fn *)c->done;
    done(c->arg, rc);
    return true;
}

void ctl_client_mount(struct ctl_client *client, const struct ctl_mount *mount,
                      uint32_t timeout_ms, ctl_mount_fn *done, void *arg)
{
    struct call *c = call_new(client, CTL_METHOD_MOUNT, timeout_ms,
                              mount_finish, (void (*)(void))done, arg);
    ctl_mount_encode(&c->body, mount);
    if (!client->closing) {
        call_try(c);
    }
}

static bool mounts_finish(struct call *c, enum err rc, struct slice body)
{
    ctl_mounts_fn *done = (ctl_mounts_fn *)c->done;
    struct arena a = {0};
    struct ctl_mounts mounts;
    if (rc == ERR_OK) {
        rc = ctl_mounts_decode(body, &a, &mounts);
    }
    done(c->arg, rc, rc == ERR_OK ? &mounts : NULL);
    arena_free(&a);
    return true;
}

void ctl_client_mounts(struct ctl_client *client, uint32_t timeout_ms,
                       ctl_mounts_fn *done, void *arg)
{
    struct call *c = call_new(client, CTL_METHOD_MOUNTS, timeout_ms,
                              mounts_finish, (void (*)(void))done, arg);
    if (!client->closing) {
        call_try(c);
    }
}

/* ---- life ---- */

struct ctl_client *ctl_client_new(struct env *env, struct net *net,
                                  const char (*addresses)[NET_ADDRESS_SIZE_MAX],
                                  uint32_t count)
{
    struct ctl_client *client = mem_alloc(sizeof *client);
    client->env = env;
    client->net = net;
    ctl_known_init(&client->known, env, net, addresses, count);
    client->leader = (uint32_t)(env_random(env) % count);
    session_start(client);
    return client;
}

void ctl_client_free(struct ctl_client *client)
{
    client->closing = true;
    while (client->calls != NULL) {
        call_end(client->calls, ERR_CLOSED, slice_of(NULL, 0));
    }
    ctl_known_fini(&client->known);
    mem_free(client);
}

uint64_t ctl_client_silent_ms(const struct ctl_client *c)
{
    return (env_now_us(c->env) - c->known.heard_us) / 1000;
}
