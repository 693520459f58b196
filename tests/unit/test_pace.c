/* How long arriving shards rest: for clients, for an operator's rate, and less
 * and less while changes are caught up with. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "shardkv/server_int.h"

enum { MS = 1000, S = 1000 * MS, NOW = 1000 * S };

/* A batch that took 20 ms for 1 MB, and is over now. */
static struct skv_pace_batch batch(void)
{
    return (struct skv_pace_batch){.begun_us = NOW - 20 * MS, .bytes = 1000000};
}

/* What rests although nobody is there makes moves slow for nothing. */
static void without_clients_and_rate_nothing_rests(void **state)
{
    (void)state;
    struct skv_pace p = {0};
    struct skv_pace_batch b = batch();
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 0);
}

static void
with_clients_a_copy_takes_a_twentieth_of_the_time_at_most(void **state)
{
    (void)state;
    struct skv_pace p = {0};
    struct skv_pace_batch b = batch();
    b.busy = true;
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 380 * MS);
    /* A slow one: it ends all the same. */
    p = (struct skv_pace){0};
    b.begun_us = NOW - 100 * S;
    assert_in_range(skv_pace_rest(&p, &b, NOW), 500 * MS, S);
}

/* Else shards with a few keys wait seconds for one another on a slow net. */
static void after_a_small_batch_nothing_rests_but_for_the_rate(void **state)
{
    (void)state;
    struct skv_pace p = {0};
    struct skv_pace_batch b = batch();
    b.busy = b.small = true;
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 0);
    b.rate = 10000000;
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 80 * MS);
}

/* Else four shards would take four times as much. */
static void shards_rest_one_behind_the_other(void **state)
{
    (void)state;
    struct skv_pace p = {0};
    struct skv_pace_batch b = batch();
    b.busy = true;
    uint64_t one = skv_pace_rest(&p, &b, NOW);
    b.begun_us += 5 * MS;
    assert_int_equal(skv_pace_rest(&p, &b, NOW + 5 * MS), 2 * one - 5 * MS);
    /* When all rests are over, the next begins anew. */
    b.begun_us = NOW + 60ull * S - 20 * MS;
    assert_int_equal(skv_pace_rest(&p, &b, NOW + 60ull * S), one);
}

static void the_rate_is_kept_with_what_the_batch_took(void **state)
{
    (void)state;
    struct skv_pace p = {0};
    struct skv_pace_batch b = batch();
    b.rate = 10000000; /* 100 ms a batch */
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 80 * MS);
    p = (struct skv_pace){0};
    b.rate = 1000000000;
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 0);
    /* It is no share of time: it may rest for long. */
    b.rate = 100000;
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 9980 * MS);
    b.busy = true;
    p = (struct skv_pace){0};
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 9980 * MS);
}

static void catching_up_rests_less_and_less(void **state)
{
    (void)state;
    struct skv_pace_batch b = batch();
    b.busy = true;
    b.rate = 1000000;
    b.copy_us = NOW - 60ull * S;
    uint64_t last = 981 * MS; /* at first as long as in the copy */
    for (uint64_t chased = 0; chased <= 30; chased += 5) {
        struct skv_pace p = {0};
        b.changes_us = NOW - chased * S;
        uint64_t rest = skv_pace_rest(&p, &b, NOW);
        assert_true(rest < last && (chased > 0 || rest > 970 * MS));
        last = rest;
    }
    assert_int_equal(last, 0); /* 30 s of copying, 30 s of changes */
    /* A leader that did not see the copy. */
    struct skv_pace p = {0};
    b.copy_us = b.changes_us = NOW - 50 * MS;
    assert_int_equal(skv_pace_rest(&p, &b, NOW), 0);
}

static void clients_are_there_for_a_moment_after_a_request(void **state)
{
    (void)state;
    assert_false(skv_pace_has_clients(0, 50 * MS));
    assert_true(skv_pace_has_clients(NOW, NOW + 50 * MS));
    assert_false(skv_pace_has_clients(NOW, NOW + 500 * MS));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_clients_and_rate_nothing_rests),
        cmocka_unit_test(
            with_clients_a_copy_takes_a_twentieth_of_the_time_at_most),
        cmocka_unit_test(after_a_small_batch_nothing_rests_but_for_the_rate),
        cmocka_unit_test(shards_rest_one_behind_the_other),
        cmocka_unit_test(the_rate_is_kept_with_what_the_batch_took),
        cmocka_unit_test(catching_up_rests_less_and_less),
        cmocka_unit_test(clients_are_there_for_a_moment_after_a_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
