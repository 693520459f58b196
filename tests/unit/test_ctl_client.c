/* The controllers' clerk against a script: whom it asks next, and when. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "shardctrler/client.h"
#include "tests/lib/scripted_net.h"

#define SECOND UINT64_C(1000000)

#define MS UINT64_C(1000)

enum { AT_ONCE = 3 }; /* so often who hung up is asked again */

struct world {
    struct sn sn;
    struct ctl_client *client;
    enum err rc; /* of the query; ERR_BUSY: unanswered */
};

static void queried(void *arg, enum err rc, const struct ctl_config *config)
{
    struct world *w = arg;
    (void)config;
    w->rc = rc;
}

static void world_init(struct world *w)
{
    static const char addresses[3][NET_ADDRESS_SIZE_MAX] = {"c1:1", "c2:1",
                                                            "c3:1"};
    *w = (struct world){.rc = ERR_BUSY};
    sn_init(&w->sn, 7);
    w->client = ctl_client_new(&w->sn.env, &w->sn.net, addresses, 3);
}

static void begin(struct world *w)
{
    world_init(w);
    ctl_client_query(w->client, 5, 10000, 15000, queried, w);
}

static void end(struct world *w)
{
    ctl_client_free(w->client);
    sn_fini(&w->sn);
}

/* Answers the call under way; the address of the next one, if that was made
 * without a pause, else "". */
static const char *next_after(struct world *w, enum err rc)
{
    struct slice nothing = {0};
    assert_non_null(w->sn.calls);
    sn_answer(&w->sn, w->sn.calls, rc, nothing);
    return w->sn.calls != NULL ? w->sn.calls->address : "";
}

static void pause_ends(struct world *w)
{
    uint64_t until_us = w->sn.now_us + SECOND;
    while (w->sn.calls == NULL && sn_step(&w->sn, until_us)) {
    }
    assert_non_null(w->sn.calls);
}

/* A connection that breaks says nothing of who leads. Sent to ask all others,
 * a group's leader hears of a configuration half a second late. */
static void who_hung_up_is_asked_again_at_once(void **state)
{
    (void)state;
    struct world w;
    char first[NET_ADDRESS_SIZE_MAX];
    begin(&w);
    strcpy(first, w.sn.calls->address);
    for (int i = 0; i < AT_ONCE; i++) {
        assert_string_equal(next_after(&w, ERR_CLOSED), first);
    }
    assert_string_equal(next_after(&w, ERR_NOTFOUND), "");
    assert_int_equal(w.rc, ERR_NOTFOUND);
    end(&w);
}

/* One that is dead hangs up for ever. */
static void then_each_other_is_asked_once_before_a_pause(void **state)
{
    (void)state;
    struct world w;
    char first[NET_ADDRESS_SIZE_MAX];
    char second[NET_ADDRESS_SIZE_MAX];
    begin(&w);
    strcpy(first, w.sn.calls->address);
    for (int i = 0; i < AT_ONCE; i++) {
        next_after(&w, ERR_CLOSED);
    }
    strcpy(second, next_after(&w, ERR_CLOSED));
    assert_string_not_equal(second, first);
    const char *third = next_after(&w, ERR_CLOSED);
    assert_string_not_equal(third, first);
    assert_string_not_equal(third, second);
    assert_string_equal(next_after(&w, ERR_CLOSED), "");
    pause_ends(&w);
    assert_string_equal(w.sn.calls->address, first);
    assert_string_equal(next_after(&w, ERR_CLOSED), first);
    end(&w);
}

static void who_does_not_lead_is_not_asked_again(void **state)
{
    (void)state;
    struct world w;
    char first[NET_ADDRESS_SIZE_MAX];
    begin(&w);
    strcpy(first, w.sn.calls->address);
    assert_string_not_equal(next_after(&w, ERR_NOTLEADER), first);
    end(&w);
}

/* Queries: who the members are is asked from time to time, too. */
static uint32_t calls_to(const struct world *w, const char *address)
{
    uint32_t count = 0;
    for (const struct sn_call *c = w->sn.calls; c != NULL; c = c->next) {
        count +=
            c->method == CTL_METHOD_QUERY && strcmp(c->address, address) == 0;
    }
    return count;
}

static uint32_t call_count(const struct world *w)
{
    return calls_to(w, "c1:1") + calls_to(w, "c2:1") + calls_to(w, "c3:1");
}

static struct sn_call *last_call(const struct world *w)
{
    struct sn_call *c = w->sn.calls;
    while (c->next != NULL) {
        c = c->next;
    }
    return c;
}

static void ask_newest(struct world *w)
{
    w->rc = ERR_BUSY;
    ctl_client_query(w->client, CTL_LATEST, 0, 15000, queried, w);
    assert_non_null(w->sn.calls);
}

/* Wrong if a command that begins with a halted controller waits for it, or if
 * one that is slow is given up, or asked twice at a time. */
static void while_a_stranger_is_silent_others_are_asked_too(void **state)
{
    (void)state;
    struct world w;
    struct slice nothing = {0};
    char first[NET_ADDRESS_SIZE_MAX];
    world_init(&w);
    ask_newest(&w);
    strcpy(first, w.sn.calls->address);
    for (uint32_t asked = 1; asked <= 3; asked++) {
        assert_int_equal(call_count(&w), asked);
        sn_run(&w.sn, 49 * MS);
        assert_int_equal(call_count(&w), asked);
        sn_run(&w.sn, 1 * MS);
    }
    sn_run(&w.sn, 800 * MS);
    assert_int_equal(calls_to(&w, first), 1);
    assert_int_equal(call_count(&w), 3);
    sn_answer(&w.sn, w.sn.calls, ERR_NOTFOUND, nothing);
    assert_int_equal(w.rc, ERR_NOTFOUND);
    assert_int_equal(call_count(&w), 0);
    ask_newest(&w); /* of one that has answered: it may be slow */
    assert_string_equal(w.sn.calls->address, first);
    sn_run(&w.sn, 900 * MS);
    assert_int_equal(call_count(&w), 1);
    sn_run(&w.sn, 100 * MS); /* but not for ever */
    assert_int_equal(calls_to(&w, first), 0);
    assert_int_equal(call_count(&w), 1);
    end(&w);
}

/* Wrong if those that do answer are not asked again, before the silent one's
 * time is over, whether they lead by now. */
static void a_silent_one_keeps_nobody_from_asking_the_others_again(void **state)
{
    (void)state;
    struct world w;
    struct slice nothing = {0};
    char silent[NET_ADDRESS_SIZE_MAX];
    world_init(&w);
    ask_newest(&w);
    strcpy(silent, w.sn.calls->address);
    sn_run(&w.sn, 50 * MS);
    for (int i = 0; i < 6; i++) {
        while (call_count(&w) < 2) {
            assert_true(sn_step(&w.sn, w.sn.now_us + SECOND));
        }
        assert_string_not_equal(last_call(&w)->address, silent);
        sn_answer(&w.sn, last_call(&w), ERR_NOTLEADER, nothing);
    }
    assert_int_equal(calls_to(&w, silent), 1);
    assert_in_range(w.sn.now_us, SECOND, SECOND + 200 * MS);
    sn_run(&w.sn, 2 * SECOND); /* nobody says a thing: it is asked, too */
    assert_int_equal(calls_to(&w, silent), 1);
    end(&w);
}

static uint32_t queries_sent;

static void count_query(struct sn_call *call)
{
    queries_sent += call->method == CTL_METHOD_QUERY;
}

/* Wrong if a long poll, whose answer takes its time, goes to everybody. */
static void a_long_poll_is_sent_to_one(void **state)
{
    (void)state;
    struct world w;
    queries_sent = 0;
    world_init(&w);
    w.sn.on_call = count_query;
    ctl_client_query(w.client, 5, 10000, 15000, queried, &w);
    sn_run(&w.sn, 9 * SECOND);
    assert_int_equal(call_count(&w), 1);
    assert_int_equal(queries_sent, 1);
    end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_hung_up_is_asked_again_at_once),
        cmocka_unit_test(then_each_other_is_asked_once_before_a_pause),
        cmocka_unit_test(who_does_not_lead_is_not_asked_again),
        cmocka_unit_test(while_a_stranger_is_silent_others_are_asked_too),
        cmocka_unit_test(
            a_silent_one_keeps_nobody_from_asking_the_others_again),
        cmocka_unit_test(a_long_poll_is_sent_to_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
