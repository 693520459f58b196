/* The net that loses and delays for tests/real: as much as it should, and
 * every call is still answered once, or cancelled. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "tests/lib/faultnet.h"
#include "tests/lib/scripted_net.h"

#define MS UINT64_C(1000)

enum { METHOD = 0x30, REPLY = 0x31, TIMEOUT_MS = 5000, MANY = 10000 };

static struct sn sn;
static struct net_ops ops;
static struct faultnet *faults;
static bool cut;
static uint32_t requests, replies;
/* What the last call heard, and how many heard what. */
static enum err told;
static uint64_t told_us;
static uint32_t count_ok, count_closed, count_timedout;
static uint32_t passed;
static uint64_t passed_us;

static void on_reply(void *arg, enum err rc, struct slice body)
{
    (void)arg;
    told = rc;
    told_us = sn.now_us;
    count_ok += rc == ERR_OK;
    count_closed += rc == ERR_CLOSED;
    count_timedout += rc == ERR_TIMEDOUT;
    assert_true(rc != ERR_OK || slice_compare(body, slice_text("answer")) == 0);
}

static bool is_cut(void *arg, const char *address)
{
    (void)arg;
    return cut && strcmp(address, "a:1") == 0;
}

static bool is_reply(net_method method, struct slice body)
{
    (void)body;
    return method == REPLY;
}

static void watch(void *arg, net_method method, struct slice body, bool reply)
{
    (void)arg;
    (void)method;
    (void)body;
    requests += !reply;
    replies += reply;
}

static void pass(struct net *net, const char *address, net_method method,
                 const struct slice *parts, uint32_t part_count)
{
    (void)net;
    (void)address;
    (void)method;
    assert_int_equal(part_count, 1);
    assert_int_equal(slice_compare(parts[0], slice_text("one two")), 0);
    passed++;
    passed_us = sn.now_us;
}

static int set_up(void **state)
{
    (void)state;
    sn_init(&sn, 7);
    ops = *sn.net.ops;
    ops.send = pass;
    sn.net.ops = &ops;
    struct faultnet_config config = {.env = &sn.env,
                                     .inner = &sn.net,
                                     .seed = 11,
                                     .is_cut = is_cut,
                                     .is_reply = is_reply,
                                     .watch = watch};
    faults = faultnet_new(&config);
    cut = false;
    requests = replies = passed = 0;
    count_ok = count_closed = count_timedout = 0;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    faultnet_free(faults);
    sn_fini(&sn);
    return 0;
}

static void plan(struct faultnet_plan p)
{
    faultnet_set(faults, &p);
}

static uint64_t call(const char *address)
{
    struct slice parts[] = {slice_text("one "), slice_text("two")};
    return net_call(faultnet_net(faults), address, METHOD, parts, 2, TIMEOUT_MS,
                    on_reply, NULL);
}

static void post(net_method method)
{
    struct slice parts[] = {slice_text("one "), slice_text("two")};
    net_send(faultnet_net(faults), "a:1", method, parts, 2);
}

static void answer_all(void)
{
    while (sn.calls != NULL) {
        sn_answer(&sn, sn.calls, ERR_OK, slice_text("answer"));
    }
}

/* Within two of a hundred. */
static void assert_share(uint32_t count, uint32_t of, uint32_t percent)
{
    assert_in_range(count * 100, of * (percent - 2), of * (percent + 2));
}

static void without_a_plan_all_passes_at_once(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 100; i++) {
        call("a:1");
        answer_all();
        post(METHOD);
    }
    assert_int_equal(count_ok, 100);
    assert_int_equal(passed, 100);
    assert_int_equal(requests, 200);
    assert_int_equal(replies, 100);
    assert_int_equal(sn.now_us, 1000000);
}

static void unreliable_loses_a_tenth_each_way(void **state)
{
    (void)state;
    plan((struct faultnet_plan){.unreliable = true});
    uint64_t latest_us = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        uint64_t begun_us = sn.now_us;
        uint64_t before = sn.sent;
        call("a:1");
        sn_run(&sn, 27 * MS);
        /* Lost on the way there: it has heard so. */
        assert_int_equal(sn.sent > before, sn.calls != NULL);
        if (sn.calls != NULL) {
            uint64_t took_us = sn.calls->sent_us - begun_us;
            latest_us = took_us > latest_us ? took_us : latest_us;
            assert_int_equal(
                sn.calls->deadline_us,
                (begun_us + TIMEOUT_MS * MS - sn.calls->sent_us + MS - 1) / MS *
                        MS +
                    sn.calls->sent_us);
        }
        answer_all();
        sn_run(&sn, 1);
        assert_int_equal(count_ok + count_closed, i + 1);
    }
    assert_share((uint32_t)(MANY - sn.sent), MANY, 10);
    assert_share((uint32_t)sn.sent - count_ok, (uint32_t)sn.sent, 10);
    assert_in_range(latest_us, 25 * MS, 26 * MS);
}

static void one_way_messages_are_lost_in_silence(void **state)
{
    (void)state;
    plan((struct faultnet_plan){.unreliable = true});
    uint64_t late = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        uint64_t begun_us = sn.now_us;
        passed_us = begun_us;
        post(METHOD);
        sn_run(&sn, 27 * MS);
        assert_in_range(passed_us - begun_us, 0, 26 * MS);
        late += passed_us > begun_us;
    }
    assert_share(passed, MANY, 90);
    assert_true(late > MANY / 2);
}

static void answers_are_not_delayed_unless_reordered(void **state)
{
    (void)state;
    plan((struct faultnet_plan){.unreliable = true});
    for (uint32_t i = 0; i < MANY; i++) {
        post(REPLY);
    }
    assert_share(passed, MANY, 90);
    passed = 0;
    plan((struct faultnet_plan){.long_reordering = true});
    for (uint32_t i = 0; i < MANY; i++) {
        post(REPLY);
    }
    assert_share(passed, MANY, 33);
    sn_run(&sn, 199 * MS);
    assert_share(passed, MANY, 33);
    sn_run(&sn, 2001 * MS);
    assert_int_equal(passed, MANY);
}

static void late_replies_come_or_time_out(void **state)
{
    (void)state;
    plan((struct faultnet_plan){.long_reordering = true});
    for (uint32_t i = 0; i < MANY; i++) {
        call("a:1");
    }
    sn_run(&sn, (TIMEOUT_MS - 1000) * MS);
    answer_all();
    assert_share(count_ok, MANY, 33);
    sn_run(&sn, 1000 * MS);
    assert_int_equal(count_ok + count_timedout, MANY);
    assert_true(count_timedout > MANY / 10);
}

static void a_cut_link_passes_nothing_and_says_so_soon(void **state)
{
    (void)state;
    call("a:1"); /* under way: its reply is lost */
    cut = true;
    answer_all();
    sn_run(&sn, 0);
    assert_int_equal(count_closed, 1);
    for (uint32_t i = 0; i < 100; i++) {
        call("a:1");
        post(METHOD);
    }
    assert_null(sn.calls);
    sn_run(&sn, 50 * MS);
    assert_in_range(count_closed, 20, 80);
    sn_run(&sn, 50 * MS);
    assert_int_equal(count_closed, 101);
    assert_int_equal(passed, 0);
    call("b:1");
    answer_all();
    assert_int_equal(count_ok, 1);
    cut = false;
    call("a:1");
    answer_all();
    assert_int_equal(count_ok, 2);
}

static void in_silence_a_lost_call_times_out(void **state)
{
    (void)state;
    plan((struct faultnet_plan){.silent = true});
    uint64_t begun_us = sn.now_us;
    call("a:1");
    cut = true;
    answer_all();
    call("a:1");
    sn_run(&sn, (TIMEOUT_MS - 1) * MS);
    assert_int_equal(count_timedout, 0);
    sn_run(&sn, 1 * MS);
    assert_int_equal(count_timedout, 2);
    assert_int_equal(told, ERR_TIMEDOUT);
    assert_int_equal(told_us, begun_us + TIMEOUT_MS * MS);
}

static void what_is_cancelled_hears_nothing(void **state)
{
    (void)state;
    struct net *net = faultnet_net(faults);
    net_cancel(net, call("a:1")); /* at the inner net */
    assert_null(sn.calls);
    plan((struct faultnet_plan){.unreliable = true});
    for (uint32_t i = 0; i < 100; i++) {
        net_cancel(net, call("a:1")); /* not sent yet, or lost */
    }
    plan((struct faultnet_plan){.long_reordering = true});
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t before = count_ok;
        uint64_t number = call("a:1");
        answer_all();
        if (count_ok == before) {
            net_cancel(net, number); /* its reply waits */
        }
    }
    uint32_t heard = count_ok + count_closed + count_timedout;
    sn_run(&sn, 10000 * MS);
    assert_int_equal(count_ok + count_closed + count_timedout, heard);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(without_a_plan_all_passes_at_once),
        T(unreliable_loses_a_tenth_each_way),
        T(one_way_messages_are_lost_in_silence),
        T(answers_are_not_delayed_unless_reordered),
        T(late_replies_come_or_time_out),
        T(a_cut_link_passes_nothing_and_says_so_soon),
        T(in_silence_a_lost_call_times_out),
        T(what_is_cancelled_hears_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
