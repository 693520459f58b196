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

static void begin(struct world *w)
{
    static const char addresses[3][NET_ADDRESS_SIZE_MAX] = {"c1:1", "c2:1",
                                                            "c3:1"};
    *w = (struct world){.rc = ERR_BUSY};
    sn_init(&w->sn, 7);
    w->client = ctl_client_new(&w->sn.env, &w->sn.net, addresses, 3);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_hung_up_is_asked_again_at_once),
        cmocka_unit_test(then_each_other_is_asked_once_before_a_pause),
        cmocka_unit_test(who_does_not_lead_is_not_asked_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
