/* The net over TLS between two loops, each on a thread of its own, over real
 * sockets: what arrives, what fails and how, and what a stranger can do. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "tests/lib/stream.h"
#include "transport/frame_int.h"
#include "transport/rpc.h"

/* For what comes at once, on a machine that stands still now and then: no test
 * waits so long unless it fails. */
enum { LONG_MS = 30000, LONG_US = LONG_MS * 1000, LONG_S = LONG_MS / 1000 };

enum {
    M_ECHO = 0x30,
    M_LATER, /* answered when the next M_ECHO comes */
    M_KEEP,  /* likewise, by its body */
    M_NEVER,
    M_HELD,
    M_WHO,
    M_ERROR,
    M_COUNT, /* one way */
    M_COUNTED,
    M_SUM, /* one way */
    M_SUMMED,
    M_BIG, /* a reply over the limit */
};

static char dir[] = "/tmp/test_rpc_XXXXXX";
static char other[] = "/tmp/test_rpc_XXXXXX";

static void make(const char *where, const char *name, const char *unit,
                 uint32_t days)
{
    struct tls_identity who = {
        .name = name, .unit = unit, .hosts = "127.0.0.1", .days = days};
    assert_int_equal(tls_make_certificate(where, &who), ERR_OK);
}

static int make_all(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_OFF);
    assert_non_null(mkdtemp(dir));
    assert_non_null(mkdtemp(other));
    assert_int_equal(tls_make_ca(dir, "test", 30), ERR_OK);
    assert_int_equal(tls_make_ca(other, "test", 30), ERR_OK);
    make(dir, "s3", "server:3", 30);
    make(dir, "mount", "client", 30);
    make(dir, "op", "admin", 30);
    make(dir, "old", "server:3", 0);
    make(dir, "oldmount", "client", 0);
    make(other, "s3", "server:3", 30);
    make(other, "mount", "client", 30);
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    char *command = mem_printf("rm -rf %s %s", dir, other);
    int rc = system(command);
    mem_free(command);
    return rc;
}

/* --- an end: a loop and a net on it --- */

struct end {
    struct tls_context *context;
    struct net_loop *loop;
    struct rpc *rpc;
};

static void end_open(struct end *e, const char *where, const char *name)
{
    char problem[256] = "";
    *e = (struct end){0};
    if (tls_context_new(where, name, &e->context, problem, sizeof problem) !=
        ERR_OK) {
        fail_msg("%s", problem);
    }
    assert_int_equal(net_loop_new(&e->loop), ERR_OK);
    assert_int_equal(rpc_new(e->loop, e->context, &e->rpc), ERR_OK);
}

static void end_close(struct end *e)
{
    rpc_free(e->rpc);
    net_loop_free(e->loop);
    tls_context_free(e->context);
}

/* --- the server, on its own thread --- */

enum { KEEP_ROOM = 9 };

struct server {
    struct end end;
    pthread_t thread;
    char address[NET_ADDRESS_SIZE_MAX];
    struct net_request *held[32];
    struct bytes *kept[32]; /* their bodies; NULL: M_LATER */
    uint32_t held_count;
    uint32_t counted;
    uint32_t sum; /* CRC of the bodies that came by M_SUM */
};

static void answer(struct server *s, struct net_request *r, struct slice body)
{
    net_reply(rpc_net(s->end.rpc), r, ERR_OK, body);
}

static void answer_held(struct server *s)
{
    while (s->held_count > 0) {
        struct bytes *kept = s->kept[--s->held_count];
        answer(s, s->held[s->held_count],
               kept != NULL ? bytes_slice(kept) : slice_text("later"));
        bytes_unref(kept);
    }
}

static void hold(struct server *s, struct net_request *r, struct bytes *kept)
{
    s->kept[s->held_count] = kept;
    s->held[s->held_count++] = r;
}

static struct bytes *keep(struct server *s, struct slice body)
{
    struct bytes *kept = net_keep(rpc_net(s->end.rpc), body, KEEP_ROOM);
    memset(kept->data, 'r', KEEP_ROOM);
    return kept;
}

static void answer_who(struct server *s, struct net_request *r,
                       const struct net_peer *peer)
{
    struct buf b = {0};
    enc_u32(&b, (uint32_t)peer->role);
    enc_u32(&b, peer->group);
    buf_append(&b, peer->name, strlen(peer->name) + 1);
    answer(s, r, buf_slice(&b));
    buf_free(&b);
}

static void answer_big(struct server *s, struct net_request *r)
{
    uint8_t *big = mem_alloc(NET_BODY_SIZE_MAX + 1);
    answer(s, r, slice_of(big, NET_BODY_SIZE_MAX + 1));
    mem_free(big);
}

static void serve(void *arg, struct net_request *r, const struct net_peer *peer,
                  net_method method, struct slice body)
{
    struct server *s = arg;
    uint8_t number[4];
    switch (method) {
    case M_ECHO:
        answer_held(s);
        answer(s, r, body);
        break;
    case M_LATER: hold(s, r, NULL); break;
    case M_KEEP: hold(s, r, keep(s, body)); break;
    case M_NEVER: break;
    case M_HELD:
        set_u32(number, s->held_count);
        answer(s, r, slice_of(number, sizeof number));
        break;
    case M_WHO: answer_who(s, r, peer); break;
    case M_ERROR:
        net_reply(rpc_net(s->end.rpc), r, ERR_NOTLEADER, slice_text("gone"));
        break;
    case M_COUNT:
        assert_null(r);
        s->counted += (uint32_t)body.size;
        break;
    case M_COUNTED:
        set_u32(number, s->counted);
        answer(s, r, slice_of(number, sizeof number));
        break;
    case M_SUM: s->sum = crc32c(s->sum, body); break;
    case M_SUMMED:
        set_u32(number, s->sum);
        answer(s, r, slice_of(number, sizeof number));
        break;
    case M_BIG: answer_big(s, r); break;
    default: net_reply(rpc_net(s->end.rpc), r, ERR_INVALID, slice_text(""));
    }
}

static void *server_main(void *arg)
{
    struct server *s = arg;
    net_loop_run(s->end.loop);
    return NULL;
}

static void server_start_as(struct server *s, const char *where,
                            const char *name, uint16_t port)
{
    *s = (struct server){0};
    end_open(&s->end, where, name);
    rpc_net(s->end.rpc)->handler = serve;
    rpc_net(s->end.rpc)->handler_arg = s;
    snprintf(s->address, sizeof s->address, "127.0.0.1:%u", port);
    assert_int_equal(rpc_listen(s->end.rpc, s->address), ERR_OK);
    snprintf(s->address, sizeof s->address, "127.0.0.1:%u",
             rpc_port(s->end.rpc));
    assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
}

static void server_start(struct server *s, uint16_t port)
{
    server_start_as(s, dir, "s3", port);
}

/* Twice is no harm: a test that failed half-way is torn down all the same. */
static void server_stop(struct server *s)
{
    if (s->end.loop == NULL) {
        return;
    }
    net_loop_stop(s->end.loop);
    pthread_join(s->thread, NULL);
    end_close(&s->end);
    s->end = (struct end){0};
}

/* --- the client, on the test's thread --- */

struct waiter {
    struct end *end;
    uint32_t left; /* the loop stops when no reply is missing */
    uint32_t count;
    enum err rc; /* of the last */
    struct buf body;
};

static void waiter_reply(void *arg, enum err rc, struct slice body)
{
    struct waiter *w = arg;
    assert_true(w->left > 0);
    w->rc = rc;
    w->count++;
    buf_clear(&w->body);
    buf_append(&w->body, body.data, body.size);
    if (--w->left == 0) {
        net_loop_stop(w->end->loop);
    }
}

static void waiter_call(struct waiter *w, const char *address,
                        net_method method, struct slice body,
                        uint32_t timeout_ms)
{
    w->left++;
    uint64_t call = net_call(rpc_net(w->end->rpc), address, method, &body, 1,
                             timeout_ms, waiter_reply, w);
    assert_true(call != 0);
}

static enum err call_wait(struct waiter *w, const char *address,
                          net_method method, struct slice body)
{
    uint32_t before = w->count;
    waiter_call(w, address, method, body, LONG_MS);
    assert_int_equal(w->count, before); /* never from inside */
    net_loop_run(w->end->loop);
    assert_int_equal(w->count, before + 1);
    return w->rc;
}

/* As a caller would: a server that is just starting may refuse at first. */
static void call_until(struct waiter *w, const char *address, net_method method,
                       enum err wanted)
{
    struct env *env = net_loop_env(w->end->loop);
    uint64_t end_us = env_now_us(env) + LONG_US;
    while (env_now_us(env) < end_us) {
        if (call_wait(w, address, method, slice_text("x")) == wanted) {
            return;
        }
    }
    fail_msg("%s, not %s", err_name(w->rc), err_name(wanted));
}

struct timed_stop {
    struct env_timer timer; /* first */
    struct net_loop *loop;
};

static void timed_stop_fire(struct env_timer *timer)
{
    net_loop_stop(((struct timed_stop *)timer)->loop);
}

static void run_for(struct net_loop *loop, uint64_t us)
{
    struct timed_stop stop = {.timer.fire = timed_stop_fire, .loop = loop};
    env_timer_start(net_loop_env(loop), &stop.timer, us);
    net_loop_run(loop);
    env_timer_stop(net_loop_env(loop), &stop.timer);
}

/* A server and a client for each test. */
static struct server server;
static struct end client;
static struct waiter waiter;

static int set_up(void **state)
{
    (void)state;
    server_start(&server, 0);
    end_open(&client, dir, "mount");
    waiter = (struct waiter){.end = &client};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    end_close(&client);
    server_stop(&server);
    buf_free(&waiter.body);
    return 0;
}

/* --- what arrives --- */

/* Sizes around every bound that a body crosses: header, record, read, write
 * piece, limit. */
static void bodies_of_all_sizes_come_back_whole(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,
                                   1,
                                   23,
                                   16384 - 24,
                                   16384 - 23,
                                   131072 - 24,
                                   262144,
                                   262145,
                                   NET_BODY_SIZE_MAX - 1,
                                   NET_BODY_SIZE_MAX};
    uint8_t *data = mem_alloc(NET_BODY_SIZE_MAX);
    for (size_t i = 0; i < NET_BODY_SIZE_MAX; i++) {
        data[i] = (uint8_t)(i ^ i >> 8 ^ i >> 16);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct slice body = slice_of(data, sizes[i]);
        assert_int_equal(call_wait(&waiter, server.address, M_ECHO, body),
                         ERR_OK);
        assert_int_equal(waiter.body.size, sizes[i]);
        assert_true(slice_compare(buf_slice(&waiter.body), body) == 0);
    }
    mem_free(data);
}

/* Several large bodies under way at once: the sockets are full both ways. */
static void large_bodies_cross_each_other(void **state)
{
    (void)state;
    size_t size = 6u << 20;
    uint8_t *data = mem_alloc(size);
    memset(data, 7, size);
    for (int i = 0; i < 8; i++) {
        waiter_call(&waiter, server.address, M_ECHO, slice_of(data, size),
                    LONG_MS);
    }
    assert_true(net_queued(rpc_net(client.rpc), server.address) > 8 * size);
    net_loop_run(client.loop);
    assert_int_equal(waiter.count, 8);
    assert_int_equal(waiter.rc, ERR_OK);
    assert_int_equal(waiter.body.size, size);
    assert_int_equal(net_queued(rpc_net(client.rpc), server.address), 0);
    mem_free(data);
}

struct kept_waiter {
    size_t size;
    bool good;
};

static void kept_reply(void *arg, enum err rc, struct slice body)
{
    struct kept_waiter *k = arg;
    k->good = rc == ERR_OK && body.size == KEEP_ROOM + k->size;
    for (size_t i = 0; i < body.size && k->good; i++) {
        uint8_t expected =
            i < KEEP_ROOM ? 'r' : (uint8_t)(i - KEEP_ROOM + k->size);
        k->good = body.data[i] == expected;
    }
}

/* Bodies that come in one piece with others, in several, and longer than what
 * is taken ahead for them. Wrong if one is used again, or freed, while the
 * handler's owner has it. */
static void bodies_that_are_kept_stay_as_they_came(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,       100,     16383, 16384,
                                   16400,   20000,   70000, 70001,
                                   2097152, 2097153, 33000, 5000000};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    struct kept_waiter kept[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        uint8_t *data = mem_alloc(sizes[i]);
        for (size_t at = 0; at < sizes[i]; at++) {
            data[at] = (uint8_t)(at + sizes[i]);
        }
        struct slice body = slice_of(data, sizes[i]);
        kept[i] = (struct kept_waiter){.size = sizes[i]};
        net_call(rpc_net(client.rpc), server.address, M_KEEP, &body, 1, LONG_MS,
                 kept_reply, &kept[i]);
        mem_free(data);
    }
    /* The echo's answer is behind theirs: last in, first out. */
    assert_int_equal(
        call_wait(&waiter, server.address, M_ECHO, slice_text("now")), ERR_OK);
    for (size_t i = 0; i < COUNT; i++) {
        assert_true(kept[i].good);
    }
}

/* One message of parts with and without owners, around all bounds of a record
 * and of what is copied. The owners are let go at once. */
static uint32_t send_of_parts(uint32_t sum, struct rng *rng)
{
    static const size_t sizes[] = {1,     100,   2047,  2048,  4096,  16383,
                                   16384, 16385, 32768, 65536, 200000};
    enum { COUNT = 7 };
    struct net_part parts[COUNT] = {0};
    struct bytes *owners[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        size_t size = sizes[rng_below(rng, sizeof sizes / sizeof *sizes)];
        owners[i] = bytes_new(size);
        for (size_t at = 0; at < size; at++) {
            owners[i]->data[at] = (uint8_t)rng_next(rng);
        }
        parts[i].data = bytes_slice(owners[i]);
        parts[i].owner = rng_chance(rng, 500) ? owners[i] : NULL;
        sum = crc32c(sum, parts[i].data);
    }
    net_send_parts(rpc_net(client.rpc), server.address, M_SUM, parts, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        bytes_unref(owners[i]);
    }
    return sum;
}

static void parts_that_are_not_copied_arrive(void **state)
{
    (void)state;
    struct rng rng = {.state = 5};
    uint32_t sum = 0;
    assert_int_equal(/* only what is ready queues so much */
                     call_wait(&waiter, server.address, M_ECHO,
                               slice_text("on")),
                     ERR_OK);
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < 5; i++) {
            sum = send_of_parts(sum, &rng);
        }
        assert_int_equal(
            call_wait(&waiter, server.address, M_SUMMED, slice_text("")),
            ERR_OK);
        assert_int_equal(get_u32(waiter.body.data), sum);
    }
    assert_int_equal(net_queued(rpc_net(client.rpc), server.address), 0);
}

static void a_body_over_the_limit_is_refused_on_either_side(void **state)
{
    (void)state;
    uint8_t *data = mem_alloc(NET_BODY_SIZE_MAX + 1);
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO,
                               slice_of(data, NET_BODY_SIZE_MAX + 1)),
                     ERR_TOOBIG);
    assert_int_equal(call_wait(&waiter, server.address, M_BIG, slice_text("")),
                     ERR_TOOBIG);
    assert_int_equal(
        call_wait(&waiter, server.address, M_ECHO, slice_text("on")), ERR_OK);
    mem_free(data);
}

static void parts_are_joined(void **state)
{
    (void)state;
    struct slice parts[3] = {slice_text("one "), slice_text(""),
                             slice_text("two")};
    waiter.left = 1;
    net_call(rpc_net(client.rpc), server.address, M_ECHO, parts, 3, LONG_MS,
             waiter_reply, &waiter);
    net_loop_run(client.loop);
    assert_int_equal(waiter.rc, ERR_OK);
    assert_true(slice_compare(buf_slice(&waiter.body), slice_text("one two")) ==
                0);
}

enum { PIPELINED = 10000 };

struct numbered {
    uint32_t number;
    uint32_t replies;
};

static struct numbered numbered[PIPELINED];
static uint32_t numbered_left;

static void numbered_reply(void *arg, enum err rc, struct slice body)
{
    struct numbered *n = arg;
    assert_int_equal(rc, ERR_OK);
    assert_int_equal(body.size, 4);
    assert_int_equal(get_u32(body.data), n->number);
    n->replies++;
    if (--numbered_left == 0) {
        net_loop_stop(client.loop);
    }
}

/* Wrong if a reply finds another call than its own, or is lost or doubled. */
static void ten_thousand_pipelined_calls_each_get_their_reply(void **state)
{
    (void)state;
    numbered_left = PIPELINED;
    for (uint32_t i = 0; i < PIPELINED; i++) {
        uint8_t number[4];
        set_u32(number, i * 7919);
        numbered[i] = (struct numbered){.number = i * 7919};
        struct slice body = slice_of(number, 4);
        net_call(rpc_net(client.rpc), server.address, M_ECHO, &body, 1, LONG_MS,
                 numbered_reply, &numbered[i]);
    }
    net_loop_run(client.loop);
    for (uint32_t i = 0; i < PIPELINED; i++) {
        assert_int_equal(numbered[i].replies, 1);
    }
}

static void one_way_messages_arrive(void **state)
{
    (void)state;
    struct slice body = slice_text("12345");
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, slice_text("")),
                     ERR_OK);
    for (int i = 0; i < 1000; i++) {
        net_send(rpc_net(client.rpc), server.address, M_COUNT, &body, 1);
    }
    assert_int_equal(
        call_wait(&waiter, server.address, M_COUNTED, slice_text("")), ERR_OK);
    assert_int_equal(get_u32(waiter.body.data), 5000);
}

static void errors_and_late_replies_arrive(void **state)
{
    (void)state;
    assert_int_equal(
        call_wait(&waiter, server.address, M_ERROR, slice_text("")),
        ERR_NOTLEADER);
    assert_int_equal(waiter.body.size, 0);
    assert_int_equal(call_wait(&waiter, server.address, 0x02, slice_text("")),
                     ERR_INVALID); /* the transport's own: not for handlers */

    for (int i = 0; i < 10; i++) {
        waiter_call(&waiter, server.address, M_LATER, slice_text(""), LONG_MS);
    }
    waiter_call(&waiter, server.address, M_ECHO, slice_text("now"), LONG_MS);
    net_loop_run(client.loop);
    assert_int_equal(waiter.rc, ERR_OK);
    assert_int_equal(waiter.count, 13);
}

static void the_handler_sees_who_calls(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum net_role role;
        uint32_t group;
    } callers[] = {{"mount", NET_ROLE_CLIENT, 0},
                   {"op", NET_ROLE_ADMIN, 0},
                   {"s3", NET_ROLE_SERVER, 3}};
    for (int i = 0; i < 3; i++) {
        struct end e;
        end_open(&e, dir, callers[i].name);
        struct waiter w = {.end = &e};
        assert_int_equal(call_wait(&w, server.address, M_WHO, slice_text("")),
                         ERR_OK);
        assert_int_equal(get_u32(w.body.data), callers[i].role);
        assert_int_equal(get_u32(w.body.data + 4), callers[i].group);
        assert_string_equal((char *)w.body.data + 8, callers[i].name);
        buf_free(&w.body);
        end_close(&e);
    }
}

/* --- what fails, and how --- */

static void an_unanswered_call_times_out_in_time(void **state)
{
    (void)state;
    struct env *env = net_loop_env(client.loop);
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, slice_text("")),
                     ERR_OK);
    uint64_t before = env_now_us(env);
    static const uint32_t timeouts[] = {90, 30, 60};
    for (int i = 0; i < 3; i++) {
        waiter_call(&waiter, server.address, M_NEVER, slice_text(""),
                    timeouts[i]);
    }
    net_loop_run(client.loop);
    uint64_t took = env_now_us(env) - before;
    assert_int_equal(waiter.rc, ERR_TIMEDOUT);
    assert_true(took >= 90000 && took < LONG_US);
}

enum { DEADLINES = 400 };

struct dated {
    uint64_t due_us, latest_us; /* its deadline lies between */
    uint64_t call;
};

static struct dated dated[DEADLINES];
static uint32_t dated_left;
static uint64_t dated_last_us;

static void dated_reply(void *arg, enum err rc, struct slice body)
{
    const struct dated *d = arg;
    (void)body;
    assert_int_equal(rc, ERR_TIMEDOUT);
    assert_true(env_now_us(net_loop_env(client.loop)) >= d->due_us);
    assert_true(d->latest_us >= dated_last_us);
    dated_last_us = d->due_us;
    if (--dated_left == 0) {
        net_loop_stop(client.loop);
    }
}

static void dated_call(uint32_t i, uint32_t timeout_ms)
{
    struct slice body = slice_text("");
    struct env *env = net_loop_env(client.loop);
    dated[i].due_us = env_now_us(env) + timeout_ms * 1000u;
    dated[i].call = net_call(rpc_net(client.rpc), server.address, M_NEVER,
                             &body, 1, timeout_ms, dated_reply, &dated[i]);
    dated[i].latest_us = env_now_us(env) + timeout_ms * 1000u;
    dated_left++;
}

static void dated_cancel(uint32_t i)
{
    net_cancel(rpc_net(client.rpc), dated[i].call);
    dated_left--;
}

/* Wrong if taking a call out of the middle of the deadlines spoils the order
 * of the others: one would wait behind a later one. */
static void deadlines_come_in_order_whatever_is_cancelled(void **state)
{
    (void)state;
    dated_left = 0;
    dated_last_us = 0;
    for (uint32_t i = 0; i < DEADLINES; i++) {
        dated_call(i, 20 + i * 7919 % 200);
    }
    for (uint32_t i = 0; i < DEADLINES; i++) {
        if (i * 31 % 7 < 4) {
            dated_cancel(i);
        }
    }
    net_loop_run(client.loop);
}

/* The rare way: what fills the gap must go up. The near deadlines are all on
 * the heap's right side, the gap is on its left, below the far ones. */
static void a_near_deadline_does_not_stay_below_a_far_one(void **state)
{
    (void)state;
    static const uint32_t timeouts[] = {20,  100, 24,  110, 120, 28, 60,
                                        130, 131, 140, 141, 64,  32};
    dated_left = 0;
    dated_last_us = 0;
    for (uint32_t i = 0; i < sizeof timeouts / sizeof *timeouts; i++) {
        dated_call(i, timeouts[i]);
    }
    dated_cancel(7);
    net_loop_run(client.loop);
}

static void never_called(void *arg, enum err rc, struct slice body)
{
    (void)arg;
    (void)body;
    fail_msg("a cancelled call got %s", err_name(rc));
}

static void a_cancelled_call_is_never_answered(void **state)
{
    (void)state;
    struct slice body = slice_text("x");
    struct net *net = rpc_net(client.rpc);
    for (uint32_t i = 0; i < 10; i++) {
        net_method method = i % 2 == 0 ? M_ECHO : M_NEVER;
        uint64_t call = net_call(net, server.address, method, &body, 1, i * 5,
                                 never_called, NULL);
        net_cancel(net, call);
        net_cancel(net, call);
    }
    uint64_t late = net_call(net, server.address, M_NEVER, &body, 1, LONG_MS,
                             never_called, NULL);
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, body), ERR_OK);
    net_cancel(net, late);
    run_for(client.loop, 60000);
    net_cancel(net, 123456789);
}

static void a_full_queue_gives_busy(void **state)
{
    (void)state;
    size_t size = 8u << 20;
    uint8_t *data = mem_alloc(size);
    /* Nothing is written before the loop runs. With their headers, the eighth
     * and ninth do not fit. */
    struct waiter full = {.end = &client};
    for (int i = 0; i < 9; i++) {
        waiter_call(i < 7 ? &waiter : &full, server.address, M_COUNTED,
                    slice_of(data, size), LONG_MS);
    }
    while (waiter.left > 0 || full.left > 0) {
        net_loop_run(client.loop);
    }
    assert_int_equal(full.rc, ERR_BUSY);
    assert_int_equal(full.count, 2);
    assert_int_equal(waiter.rc, ERR_OK);
    buf_free(&full.body);
    mem_free(data);
}

static uint32_t downs;

static void down(void *arg, const char *address)
{
    assert_string_equal(address, arg);
    downs++;
}

/* A call under way when the server dies fails at once, not at its deadline;
 * the next ones fail fast until it is back, and then go through. */
static void a_server_that_restarts_is_found_again(void **state)
{
    (void)state;
    struct env *env = net_loop_env(client.loop);
    rpc_net(client.rpc)->down = down;
    rpc_net(client.rpc)->down_arg = server.address;
    downs = 0;
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, slice_text("")),
                     ERR_OK);
    uint16_t port = rpc_port(server.end.rpc);
    waiter_call(&waiter, server.address, M_NEVER, slice_text(""), 60000);
    run_for(client.loop, 20000);
    uint64_t before = env_now_us(env);
    server_stop(&server);
    net_loop_run(client.loop);
    assert_int_equal(waiter.rc, ERR_CLOSED);
    assert_int_equal(downs, 1);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(
            call_wait(&waiter, server.address, M_ECHO, slice_text("")),
            ERR_CLOSED);
    }
    assert_true(env_now_us(env) - before < LONG_US);
    assert_true(downs >= 2); /* also: could not be made */

    server_start(&server, port);
    call_until(&waiter, server.address, M_ECHO, ERR_OK);
    assert_true(env_now_us(env) - before < 2 * LONG_US);
    rpc_net(client.rpc)->down = NULL;
}

/* A caller that retries the moment it is refused must not spin: each refusal
 * takes its 10 ms. */
static void refusals_are_paced(void **state)
{
    (void)state;
    struct env *env = net_loop_env(client.loop);
    uint64_t before = env_now_us(env);
    for (int i = 0; i < 6; i++) {
        call_wait(&waiter, "127.0.0.1:1", M_ECHO, slice_text(""));
        assert_int_equal(waiter.rc, ERR_CLOSED);
    }
    uint64_t took = env_now_us(env) - before;
    assert_true(took > 20000 && took < LONG_US);
    assert_int_equal(call_wait(&waiter, "nonsense", M_ECHO, slice_text("")),
                     ERR_INVALID);
    assert_int_equal(call_wait(&waiter, ":1", M_ECHO, slice_text("")),
                     ERR_INVALID);
    assert_int_equal(
        call_wait(&waiter, "127.0.0.1:70000", M_ECHO, slice_text("")),
        ERR_INVALID);
    assert_int_equal(
        call_wait(&waiter, "no.such.host.invalid:1", M_ECHO, slice_text("")),
        ERR_CLOSED);
}

static void freeing_the_net_answers_what_waits(void **state)
{
    (void)state;
    struct end e;
    end_open(&e, dir, "mount");
    struct waiter w = {.end = &e};
    waiter_call(&w, server.address, M_NEVER, slice_text(""), 60000);
    waiter_call(&w, server.address, M_NEVER, slice_text(""), 60000);
    waiter_call(&w, "nonsense", M_NEVER, slice_text(""), 60000);
    run_for(e.loop, 5000);
    waiter_call(&w, "127.0.0.1:1", M_NEVER, slice_text(""), 60000);
    uint32_t left = w.left;
    uint32_t before = w.count;
    end_close(&e);
    assert_int_equal(w.count, before + left);
    assert_int_equal(w.rc, ERR_CLOSED);
}

/* --- certificates --- */

static void fails_closed(const char *client_dir, const char *client_name,
                         const char *server_dir, const char *server_name)
{
    struct server s;
    struct end e;
    server_start_as(&s, server_dir, server_name, 0);
    end_open(&e, client_dir, client_name);
    struct waiter w = {.end = &e};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(call_wait(&w, s.address, M_ECHO, slice_text("")),
                         ERR_CLOSED);
    }
    end_close(&e);
    struct rpc_stats stats;
    net_loop_stop(s.end.loop);
    pthread_join(s.thread, NULL);
    rpc_stats(s.end.rpc, &stats);
    assert_int_equal(stats.frames_in, 0); /* nothing reached a handler */
    end_close(&s.end);
    buf_free(&w.body);
}

static void certificates_of_another_ca_are_refused(void **state)
{
    (void)state;
    fails_closed(other, "mount", dir, "s3");
    /* A client that trusts the server, which does not trust the client. */
    char *command = mem_printf("mkdir -p %s/mixed && cp %s/mount.* %s/mixed && "
                               "cp %s/ca.crt %s/mixed",
                               dir, other, dir, dir, dir);
    assert_int_equal(system(command), 0);
    mem_free(command);
    char *mixed = mem_printf("%s/mixed", dir);
    fails_closed(mixed, "mount", dir, "s3");
    mem_free(mixed);
}

static void expired_certificates_are_refused(void **state)
{
    (void)state;
    fails_closed(dir, "mount", dir, "old");
    fails_closed(dir, "oldmount", dir, "s3");
}

static void a_client_does_not_talk_to_a_client(void **state)
{
    (void)state;
    fails_closed(dir, "mount", dir, "op");
}

/* --- strangers --- */

static int dial(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(rpc_port(server.end.rpc)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval wait = {.tv_sec = LONG_S};
    assert_int_equal(
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

/* Reads until the server closes. */
static void expect_close(int fd)
{
    char bytes[4096];
    ssize_t size;
    do { /* a process that was stopped goes on with EINTR */
        size = recv(fd, bytes, sizeof bytes, 0);
    } while (size > 0 || (size < 0 && errno == EINTR));
    if (size != 0) {
        assert_int_equal(errno, ECONNRESET);
    }
    close(fd);
}

static void garbage_closes_only_its_own_connection(void **state)
{
    (void)state;
    static const char *const garbage[] = {
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\x16\x03\x01\xff\xff\x01",
        "\x15\x03\x03\x00\x02\x02\x28",
        "FLT1........................................................",
    };
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        assert_int_equal(
            call_wait(&waiter, server.address, M_ECHO, slice_text("1")),
            ERR_OK);
        int fd = dial();
        size_t size = i == 2 ? 7 : strlen(garbage[i]);
        assert_int_equal(send(fd, garbage[i], size, 0), size);
        shutdown(fd, SHUT_WR);
        expect_close(fd);
        assert_int_equal(
            call_wait(&waiter, server.address, M_ECHO, slice_text("2")),
            ERR_OK);
    }
}

/* A client with a good certificate that sends what it likes. */
struct rogue {
    int fd;
    struct tls *tls;
    struct buf plain;
};

static void rogue_push(struct rogue *r)
{
    struct buf out = {0};
    tls_drain(r->tls, &out);
    assert_int_equal(send(r->fd, out.data, out.size, MSG_NOSIGNAL), out.size);
    buf_free(&out);
}

static void rogue_pull(struct rogue *r)
{
    uint8_t bytes[16384];
    ssize_t size;
    do {
        size = recv(r->fd, bytes, sizeof bytes, 0);
    } while (size < 0 && errno == EINTR);
    assert_true(size > 0);
    tls_feed(r->tls, slice_of(bytes, (size_t)size));
    assert_int_equal(tls_read_all(r->tls, &r->plain), ERR_OK);
}

/* Comes as far as the server's hello. */
static void rogue_connect(struct rogue *r)
{
    *r = (struct rogue){.fd = dial()};
    r->tls = tls_new(client.context, false, "127.0.0.1");
    assert_int_equal(tls_read_all(r->tls, &r->plain), ERR_OK);
    rogue_push(r);
    while (!tls_is_ready(r->tls)) {
        rogue_pull(r);
    }
    rogue_push(r);
    while (r->plain.size < FRAME_HEADER_SIZE) {
        rogue_pull(r);
    }
}

static void rogue_send(struct rogue *r, const uint8_t *data, size_t size)
{
    assert_int_equal(tls_write(r->tls, slice_of(data, size)), ERR_OK);
    rogue_push(r);
}

static void rogue_end(struct rogue *r)
{
    expect_close(r->fd);
    tls_free(r->tls);
    buf_free(&r->plain);
}

static void bad_frames_close_only_their_own_connection(void **state)
{
    (void)state;
    static const struct {
        uint32_t at;
        uint8_t value;
    } bad[] = {
        {0, 'X'},  {3, '2'}, /* magic, version */
        {7, 0x01},           /* 16 MiB and more */
        {6, 0x81},           /* just over the limit */
        {16, 0},   {16, 9},  /* type */
        {16, 2},             /* a reply, to a server that called nobody */
        {17, 1},   {22, 1},  {23, 1}, /* reserved */
        {20, 1},                      /* rc in a call */
        {18, 0},                      /* no method */
    };
    assert_int_equal(
        call_wait(&waiter, server.address, M_ECHO, slice_text("1")), ERR_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rogue r;
        rogue_connect(&r);
        struct frame f = {
            .type = FRAME_CALL, .call = 5, .method = M_ECHO, .size = 0};
        uint8_t header[FRAME_HEADER_SIZE];
        frame_encode(header, &f);
        header[bad[i].at] = bad[i].value;
        rogue_send(&r, header, sizeof header);
        rogue_end(&r);
        assert_int_equal(
            call_wait(&waiter, server.address, M_ECHO, slice_text("2")),
            ERR_OK);
    }
}

static void idle_connections_disturb_nobody(void **state)
{
    (void)state;
    enum { SILENT = 100, KNOWN = 100 };
    int silent[SILENT];
    struct rogue known[KNOWN];
    for (int i = 0; i < SILENT; i++) {
        silent[i] = dial();
    }
    for (int i = 0; i < KNOWN; i++) {
        rogue_connect(&known[i]);
    }
    struct env *env = net_loop_env(client.loop);
    uint64_t before = env_now_us(env);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(
            call_wait(&waiter, server.address, M_ECHO, slice_text("x")),
            ERR_OK);
    }
    assert_true(env_now_us(env) - before < LONG_US);
    for (int i = 0; i < SILENT; i++) {
        close(silent[i]);
    }
    for (int i = 0; i < KNOWN; i++) {
        shutdown(known[i].fd, SHUT_WR);
        rogue_end(&known[i]);
    }
}

/* Somebody who begins a handshake and says no more is let go of after its five
 * seconds, and so is one who says nothing; those who are known stay. */
static void a_handshake_that_is_held_open_ends(void **state)
{
    (void)state;
    static const char begun[] = "\x16\x03\x01\x02\x00\x01\x00";
    struct env *env = net_loop_env(client.loop);
    assert_int_equal(
        call_wait(&waiter, server.address, M_ECHO, slice_text("1")), ERR_OK);
    uint64_t before = env_now_us(env);
    int silent = dial();
    int half = dial();
    assert_int_equal(send(half, begun, sizeof begun, 0), sizeof begun);
    expect_close(half);
    expect_close(silent);
    uint64_t took = env_now_us(env) - before;
    assert_true(took > 4000000 && took < LONG_US);
    assert_int_equal(
        call_wait(&waiter, server.address, M_ECHO, slice_text("2")), ERR_OK);
}

/* Frames cut into single bytes, and many in one record. */
static void frames_may_be_cut_and_joined_anywhere(void **state)
{
    (void)state;
    struct rogue r;
    rogue_connect(&r);
    struct buf out = {0};
    for (uint32_t i = 1; i <= 40; i++) {
        struct frame f = {
            .type = FRAME_CALL, .call = i, .method = M_ECHO, .size = i};
        frame_encode(buf_extend(&out, FRAME_HEADER_SIZE), &f);
        memset(buf_extend(&out, i), (int)i, i);
    }
    for (size_t i = 0; i < out.size / 2; i++) {
        rogue_send(&r, out.data + i, 1);
    }
    rogue_send(&r, out.data + out.size / 2, out.size - out.size / 2);
    size_t wanted = FRAME_HEADER_SIZE + out.size;
    while (r.plain.size < wanted) {
        rogue_pull(&r);
    }
    assert_int_equal(r.plain.size, wanted);
    const uint8_t *at = r.plain.data + FRAME_HEADER_SIZE;
    for (uint32_t i = 1; i <= 40; i++) {
        struct frame f;
        assert_int_equal(frame_decode(&f, at), ERR_OK);
        assert_int_equal(f.type, FRAME_REPLY);
        assert_int_equal(f.call, i);
        assert_int_equal(f.size, i);
        assert_int_equal(at[FRAME_HEADER_SIZE], i);
        at += FRAME_HEADER_SIZE + i;
    }
    buf_free(&out);
    shutdown(r.fd, SHUT_WR);
    rogue_end(&r);
}

enum { MUCH = 4 << 20 };

static void ask_much(struct waiter *w, uint32_t count)
{
    uint8_t *data = mem_alloc(MUCH);
    for (uint32_t i = 0; i < count; i++) {
        waiter_call(w, server.address, M_KEEP, slice_of(data, MUCH), LONG_MS);
    }
    mem_free(data);
}

/* What the server has and has not answered, once that does not change. */
static uint32_t held_at_last(struct end *from)
{
    uint32_t held = 0;
    struct waiter w = {.end = &client};
    for (int same = 0; same < 10;) {
        run_for(from->loop, 20000);
        assert_int_equal(call_wait(&w, server.address, M_HELD, slice_text("")),
                         ERR_OK);
        uint32_t now = get_u32(w.body.data);
        same = now == held ? same + 1 : 0;
        held = now;
    }
    buf_free(&w.body);
    return held;
}

static void answer_all(struct waiter *w)
{
    while (w->left > 0) {
        struct waiter one = {.end = &client};
        assert_int_equal(
            call_wait(&one, server.address, M_ECHO, slice_text("")), ERR_OK);
        buf_free(&one.body);
        run_for(w->end->loop, 20000);
    }
    assert_int_equal(w->rc, ERR_OK);
}

/* Wrong if one who asks for much fills the server's memory, is refused, or
 * keeps others waiting; or if another server's messages wait with its calls. */
static void who_asks_for_much_is_made_to_wait(void **state)
{
    (void)state;
    const char *const names[] = {"mount", "s3", "mount"};
    for (int i = 0; i < 3; i++) {
        struct end e;
        end_open(&e, dir, names[i]);
        struct waiter w = {.end = &e};
        ask_much(&w, 12);
        uint32_t held = held_at_last(&e);
        assert_int_equal(held, i == 1 ? 12 : 4);
        answer_all(&w);
        buf_free(&w.body);
        end_close(&e);
    }
}

/* Wrong if many, each below its own bound, fill the server's memory; or if then
 * nobody else comes through. */
static void many_who_ask_for_much_are_made_to_wait(void **state)
{
    (void)state;
    enum { ENDS = 6 };
    struct end e[ENDS];
    struct waiter w[ENDS];
    uint32_t held = 0;
    for (int i = 0; i < ENDS; i++) {
        end_open(&e[i], dir, "mount");
        w[i] = (struct waiter){.end = &e[i]};
        ask_much(&w[i], 4);
        held = held_at_last(&e[i]);
    }
    assert_int_equal(held, 4 * 4 + 2); /* 64 MiB, and one of each more */
    for (int i = 0; i < ENDS; i++) {
        answer_all(&w[i]);
        buf_free(&w[i].body);
        end_close(&e[i]);
    }
}

/* A client that asks and does not read: the server must stop reading from it
 * and keep its memory bounded, and go on with others. */
static void who_does_not_read_is_not_read_from(void **state)
{
    (void)state;
    struct rogue r;
    rogue_connect(&r);
    size_t size = 1u << 20;
    struct frame f = {.type = FRAME_CALL,
                      .call = 1,
                      .method = M_ECHO,
                      .size = (uint32_t)size};
    struct buf one = {0};
    frame_encode(buf_extend(&one, FRAME_HEADER_SIZE), &f);
    memset(buf_extend(&one, size), 1, size);
    struct timeval wait = {.tv_sec = 1};
    assert_int_equal(
        setsockopt(r.fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait), 0);
    size_t sent = 0;
    bool stuck = false;
    while (!stuck && sent < 200) {
        struct buf out = {0};
        assert_int_equal(tls_write(r.tls, buf_slice(&one)), ERR_OK);
        tls_drain(r.tls, &out);
        for (size_t at = 0; at < out.size && !stuck;) {
            ssize_t taken =
                send(r.fd, out.data + at, out.size - at, MSG_NOSIGNAL);
            stuck = taken <= 0;
            at += stuck ? 0 : (size_t)taken;
        }
        buf_free(&out);
        sent++;
    }
    /* 32 MiB of replies, one read more, and the kernel's own buffers, which
     * grow to 32 MiB a side where tcp_rmem lets them. */
    assert_true(stuck);
    assert_true(sent < 128);
    assert_int_equal(
        call_wait(&waiter, server.address, M_ECHO, slice_text("2")), ERR_OK);
    buf_free(&one);
    close(r.fd);
    tls_free(r.tls);
    buf_free(&r.plain);
}

/* Wrong if a request's memory goes with its connection: the server answers it
 * afterwards. */
static void a_late_reply_to_a_caller_that_has_gone_is_harmless(void **state)
{
    (void)state;
    struct end e;
    end_open(&e, dir, "mount");
    struct waiter w = {.end = &e};
    waiter_call(&w, server.address, M_LATER, slice_text(""), 60000);
    waiter_call(&w, server.address, M_LATER, slice_text(""), 60000);
    waiter_call(&w, server.address, M_COUNTED, slice_text(""), 60000);
    w.left = 1;
    net_loop_run(e.loop);
    w.left = 2;
    end_close(&e);
    buf_free(&w.body);
    run_for(client.loop, 30000); /* the server sees that it has gone */
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, slice_text("")),
                     ERR_OK);
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, slice_text("")),
                     ERR_OK);
}

static void a_port_in_use_is_said_so(void **state)
{
    (void)state;
    assert_int_equal(rpc_listen(client.rpc, server.address), ERR_EXISTS);
    assert_int_equal(rpc_listen(client.rpc, "127.0.0.1"), ERR_INVALID);
    assert_int_equal(call_wait(&waiter, server.address, M_ECHO, slice_text("")),
                     ERR_OK);
}

/* docs/wire.md's example, byte for byte: a change of the format shows here. */
static void the_header_has_its_documented_bytes(void **state)
{
    (void)state;
    static const uint8_t golden[FRAME_HEADER_SIZE] = {
        'F',  'L',  'T',  '1',  0x04, 0x03, 0x02, 0x00, 0x18, 0x17, 0x16, 0x15,
        0x14, 0x13, 0x12, 0x11, 0x02, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00};
    struct frame f = {.size = 0x020304,
                      .call = 0x1112131415161718,
                      .type = FRAME_REPLY,
                      .rc = ERR_NOTLEADER};
    uint8_t header[FRAME_HEADER_SIZE];
    frame_encode(header, &f);
    assert_memory_equal(header, golden, sizeof golden);
    struct frame back;
    assert_int_equal(frame_decode(&back, golden), ERR_OK);
    assert_true(back.size == f.size && back.call == f.call &&
                back.type == f.type && back.rc == f.rc && back.method == 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(bodies_of_all_sizes_come_back_whole),
        T(bodies_that_are_kept_stay_as_they_came),
        T(parts_that_are_not_copied_arrive),
        T(large_bodies_cross_each_other),
        T(a_body_over_the_limit_is_refused_on_either_side),
        T(parts_are_joined),
        T(ten_thousand_pipelined_calls_each_get_their_reply),
        T(one_way_messages_arrive),
        T(errors_and_late_replies_arrive),
        T(the_handler_sees_who_calls),
        T(an_unanswered_call_times_out_in_time),
        T(deadlines_come_in_order_whatever_is_cancelled),
        T(a_near_deadline_does_not_stay_below_a_far_one),
        T(a_cancelled_call_is_never_answered),
        T(a_full_queue_gives_busy),
        T(a_server_that_restarts_is_found_again),
        T(refusals_are_paced),
        T(freeing_the_net_answers_what_waits),
        T(garbage_closes_only_its_own_connection),
        T(bad_frames_close_only_their_own_connection),
        T(idle_connections_disturb_nobody),
        T(a_handshake_that_is_held_open_ends),
        T(frames_may_be_cut_and_joined_anywhere),
        T(who_asks_for_much_is_made_to_wait),
        T(many_who_ask_for_much_are_made_to_wait),
        T(who_does_not_read_is_not_read_from),
        T(a_late_reply_to_a_caller_that_has_gone_is_harmless),
        T(a_port_in_use_is_said_so),
        cmocka_unit_test(certificates_of_another_ca_are_refused),
        cmocka_unit_test(expired_certificates_are_refused),
        cmocka_unit_test(a_client_does_not_talk_to_a_client),
        cmocka_unit_test(the_header_has_its_documented_bytes),
    };
    return cmocka_run_group_tests(tests, make_all, remove_all);
}
