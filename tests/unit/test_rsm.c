/* Three replicas on virtual time: what was acknowledged is in every list, once,
 * at the place that the answer named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/unit/rsm_cluster.h"

static void test_proposals_are_applied_once_in_order(void **state)
{
    (void)state;
    cluster_start(1);
    struct node *leader = await_leader();
    static struct client c[2000];
    for (uint32_t i = 0; i < 2000; i++) {
        propose(leader, &c[i], 1000 + i);
        if (i % 50 == 0) {
            run_ms(1);
        }
    }
    for (uint32_t i = 0; i < 2000; i++) {
        await_client(&c[i]);
        assert_int_equal(c[i].rc, ERR_OK);
        assert_int_equal(c[i].place, i);
    }
    await_all_equal();
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_int_equal(status.applied, leader->now.index);
    assert_int_equal(status.proposals_waiting, 0);
    /* Many share one sync. */
    assert_true(status.wal_syncs < 500);
    run_ms(1000);
    rsm_status(leader->rsm, &status);
    assert_int_equal(status.durable, status.applied);
    cluster_free();
}

static void test_reads_see_what_was_acknowledged(void **state)
{
    (void)state;
    cluster_start(2);
    struct node *leader = await_leader();
    for (uint32_t i = 0; i < 300; i++) {
        struct client c;
        struct reader rd[3];
        propose(leader, &c, i);
        await_client(&c);
        for (uint32_t k = 0; k < 3; k++) {
            read_begin(leader, &rd[k]);
        }
        run_ms(100);
        for (uint32_t k = 0; k < 3; k++) {
            assert_true(rd[k].ended);
            assert_int_equal(rd[k].rc, ERR_OK);
            assert_int_equal(rd[k].count, i + 1);
        }
    }
    /* A leader of old does not answer: it cannot know that it still leads. */
    struct reader stale;
    leader->cut = true;
    read_begin(leader, &stale);
    struct node *next = await_leader();
    assert_ptr_not_equal(next, leader);
    struct client c;
    propose(next, &c, 999);
    await_client(&c);
    run_ms(5000);
    assert_true(stale.ended);
    assert_int_equal(stale.rc, ERR_NOTLEADER);
    leader->cut = false;
    await_all_equal();
    cluster_free();
}

/* Who asks for much at once does not make us hold all of it at once. */
static void test_reads_hold_a_bounded_number_of_bytes(void **state)
{
    (void)state;
    enum { COUNT = 500, EACH = 1 << 20 };
    cluster_start(4);
    struct node *leader = await_leader();
    static struct reader rd[COUNT];
    held.most = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        read_begin(leader, &rd[i]);
        rd[i].holds = EACH;
    }
    run_ms(1000);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_true(rd[i].ended);
        assert_int_equal(rd[i].rc, ERR_OK);
    }
    assert_int_equal(held.now, 0);
    assert_true(held.most >= RSM_READ_HELD_SIZE);
    assert_true(held.most <= 2 * (RSM_READ_HELD_SIZE + EACH));
    cluster_free();
}

/* A new leader with a long log to apply: the read waits for all of it. */
static void test_reads_wait_for_the_log(void **state)
{
    (void)state;
    cluster_new(10);
    checkpoint_ms = 1000000;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    for (uint32_t i = 0; i < 10; i++) {
        propose_many(await_leader(), i * 500, 500);
    }
    for (uint32_t i = 0; i < NODES; i++) {
        node_crash(i);
    }
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    struct reader rd = {0};
    while (!rd.ended) {
        for (uint32_t i = 0; i < NODES; i++) {
            if (rd.node == NULL && rsm_is_leader(nodes[i].rsm)) {
                read_begin(&nodes[i], &rd);
            }
        }
        assert_true(run_one());
    }
    assert_int_equal(rd.rc, ERR_OK);
    assert_int_equal(rd.count, 5000);
    cluster_free();
}

/* Could be wrong: only the log's bytes count, and what little changes make of
 * large values fills the memory. */
static void test_what_is_unsaved_bounds_checkpoints(void **state)
{
    (void)state;
    cluster_new(12);
    checkpoint_ms = 1000000;
    unsaved_each = 1 << 20;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    for (uint32_t i = 0; i < 20; i++) {
        propose_many(await_leader(), i * 10, 10);
    }
    await_all_equal();
    for (uint32_t i = 0; i < NODES; i++) {
        assert_true(nodes[i].stored.count >= 150);
    }
    cluster_free();
}

/* Could be wrong: what makes a checkpoint due still counts when it has begun,
 * and applying waits until it is written. */
static void test_applying_goes_on_when_a_checkpoint_has_begun(void **state)
{
    (void)state;
    cluster_new(13);
    checkpoint_ms = 1000000;
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].fsm.ops = &stepping_ops;
        node_start(i);
    }
    struct node *leader = await_leader();
    unsaved_each = 1 << 20;
    apply_us = 200000;
    checkpoint_us = 2000000;
    propose_many(leader, 0, 60); /* due more than twice over */
    propose_many(leader, 60, 8); /* come while it begins */
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_true(status.checkpointing);
    assert_int_equal(status.stall.count, 0);
    await_all_equal();
    run_ms(5000);
    for (uint32_t i = 0; i < NODES; i++) {
        rsm_status(nodes[i].rsm, &status);
        assert_true(status.stall.count > 0);
        assert_true(status.stall.max_us < 1000000);
    }
    cluster_free();
}

static void test_followers_refuse(void **state)
{
    (void)state;
    cluster_start(3);
    struct node *leader = await_leader();
    struct node *other = &nodes[(leader->at + 1) % NODES];
    run_ms(200);
    char address[2] = {(char)('1' + leader->at), 0};
    assert_string_equal(rsm_leader_address(other->rsm), address);
    struct client c;
    struct reader rd;
    propose(other, &c, 1);
    read_begin(other, &rd);
    run_ms(100);
    assert_true(c.ended && rd.ended);
    assert_int_equal(c.rc, ERR_NOTLEADER);
    assert_int_equal(rd.rc, ERR_NOTLEADER);
    propose_sized(leader, &c, 2, RSM_COMMAND_SIZE_MAX + 1);
    run_ms(1);
    assert_int_equal(c.rc, ERR_TOOBIG);
    propose_sized(leader, &c, 3, RSM_COMMAND_SIZE_MAX);
    await_client(&c);
    assert_int_equal(c.rc, ERR_OK);
    await_all_equal();
    cluster_free();
}

static void test_restart_of_all(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        cluster_start(seed);
        uint32_t count = 0;
        for (uint32_t round = 0; round < 3; round++) {
            struct node *leader = await_leader();
            propose_many(leader, count, 200);
            count += 200;
            run_ms(rng_below(&world.rng, 500));
            for (uint32_t i = 0; i < NODES; i++) {
                node_crash(i);
            }
            for (uint32_t i = 0; i < NODES; i++) {
                node_start(i);
            }
        }
        await_leader();
        await_all_equal();
        assert_int_equal(nodes[0].now.count, count);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(nodes[0].now.numbers[i], i);
        }
        cluster_free();
    }
}

static void test_damaged_log_is_refused(void **state)
{
    (void)state;
    cluster_start(5);
    propose_many(await_leader(), 0, 100);
    await_all_equal();
    node_stop(2);
    const char *path = faultdisk_path(nodes[2].disk, 0);
    assert_int_equal(strncmp(path, "wal/", 4), 0);
    faultdisk_bytes(nodes[2].disk, path)->data[200] ^= 1;
    assert_int_equal(node_try_start(2), ERR_CORRUPT);
    cluster_free();
}

static void test_failed_sync_is_final(void **state)
{
    (void)state;
    cluster_start(6);
    struct node *leader = await_leader();
    struct client c;
    faultdisk_fail_at(leader->disk, 1);
    propose(leader, &c, 1);
    run_ms(3000);
    assert_true(leader->fatal);
    assert_false(c.ended && c.rc == ERR_OK);
    assert_false(rsm_is_leader(leader->rsm));
    leader->cut = true;
    struct node *next = await_leader();
    assert_ptr_not_equal(next, leader);
    propose_many(next, 10, 10);
    node_crash(leader->at);
    assert_true(c.ended);
    node_start(leader->at);
    leader->cut = false;
    await_all_equal();
    cluster_free();
}

static void test_proposals_do_not_wait_for_ever(void **state)
{
    (void)state;
    cluster_start(7);
    struct node *leader = await_leader();
    struct client c;
    leader->cut = true;
    propose(leader, &c, 1);
    run_ms(6000);
    assert_true(c.ended);
    assert_int_equal(c.rc, ERR_NOTLEADER);
    assert_false(leader->leader);
    leader->cut = false;
    await_leader();
    await_all_equal();
    cluster_free();
}

enum { MANY = 70, LONG = 1 << 20 };

/* Wrong if what is too much at once is refused: it would all be sent again. Or
 * if it is all proposed: what comes then would wait for all of it. */
static void test_too_much_at_once_waits(void **state)
{
    (void)state;
    static struct client c[MANY], at_end;
    cluster_start(21);
    struct node *leader = await_leader();
    for (uint32_t i = 0; i < MANY; i++) {
        propose_sized(leader, &c[i], i, LONG);
    }
    uint64_t most = 0, until_us = world.now_us + 30000000;
    while (!c[MANY - 1].ended && world.now_us < until_us) {
        assert_true(run_one());
        struct rsm_status s;
        rsm_status(leader->rsm, &s);
        uint64_t ahead = s.raft.last_index - s.applied;
        most = ahead > most ? ahead : most;
    }
    assert_true(most > 4 && most <= 8);
    for (uint32_t i = 0; i < MANY; i++) {
        assert_int_equal(c[i].rc, ERR_OK);
        assert_int_equal(c[i].place, i);
    }
    propose(leader, &at_end, MANY);
    await_client(&at_end);
    assert_int_equal(at_end.place, MANY);
    cluster_free();
}

/* Wrong if who writes little waits until all is written of who writes much; or
 * the other way round. */
static void test_short_and_long_proposals_do_not_wait_for_all(void **state)
{
    (void)state;
    static struct client c[MANY], shorts[1000], one;
    cluster_start(22);
    struct node *leader = await_leader();
    for (uint32_t i = 0; i < MANY; i++) {
        propose_sized(leader, &c[i], i, LONG);
    }
    run_ms(1);
    propose(leader, &one, 1000);
    await_client(&one);
    assert_int_equal(one.rc, ERR_OK);
    assert_true(one.place <= 9);
    await_client(&c[MANY - 1]);
    for (uint32_t i = 0; i < 1000; i++) {
        propose(leader, &shorts[i], 2000 + i);
    }
    propose_sized(leader, &one, 1001, LONG);
    await_client(&shorts[999]);
    assert_true(one.ended && one.place < shorts[999].place - 500);
    cluster_free();
}

/* Wrong if memory has no bound, or what waits for its turn is forgotten when
 * the leader finds that it leads no more. */
static void test_proposals_that_wait_are_bounded_and_answered(void **state)
{
    (void)state;
    static struct client c[MANY];
    cluster_start(23);
    struct node *leader = await_leader();
    leader->cut = true;
    for (uint32_t i = 0; i < MANY; i++) {
        propose_sized(leader, &c[i], i, RSM_COMMAND_SIZE_MAX);
    }
    run_ms(1);
    assert_true(!c[31].ended && c[32].ended);
    assert_int_equal(c[32].rc, ERR_BUSY);
    while (rsm_is_leader(leader->rsm)) {
        run_ms(1);
    }
    run_ms(1);
    assert_true(!c[0].ended && c[31].ended);
    run_ms(2000);
    for (uint32_t i = 0; i < 32; i++) {
        assert_true(c[i].ended);
        assert_int_equal(c[i].rc, ERR_NOTLEADER);
    }
    cluster_free();
}

static enum err wish_of_an_admin(struct node *n, const struct rsm_wish *wish)
{
    struct net_peer admin = {.role = NET_ROLE_ADMIN, .name = "admin"};
    struct buf body = {0};
    answer.ended = false;
    rsm_wish_encode(&body, wish);
    rsm_handle(n->rsm, mem_alloc(sizeof(struct net_request)), &admin,
               RSM_METHOD_CHANGE, buf_slice(&body));
    buf_free(&body);
    for (uint32_t ms = 0; !answer.ended && ms < 10000; ms++) {
        run_ms(1);
    }
    assert_true(answer.ended);
    return answer.rc;
}

/* Wrong if a leader that was deposed, and has not heard of it, judges a change
 * of members by the configuration that it remembers. */
static void test_wishes_wait_for_a_leader_that_is_one(void **state)
{
    (void)state;
    const struct rsm_wish wish = {
        .kind = RSM_PROMOTE, .id = 9, .timeout_ms = 1000};
    cluster_start(11);
    struct node *leader = await_leader();
    assert_int_equal(wish_of_an_admin(leader, &wish), ERR_NOTFOUND);
    leader->cut = true;
    assert_true(rsm_is_leader(leader->rsm));
    assert_int_equal(wish_of_an_admin(leader, &wish), ERR_NOTLEADER);
    leader->cut = false;
    leader = await_leader();
    assert_int_equal(wish_of_an_admin(leader, &wish), ERR_NOTFOUND);
    cluster_free();
}

/* Wrong if a leader that others wait for syncs on its loop, or if one whose
 * caller is alone does so before its messages have left. */
static void test_a_leader_syncs_itself_when_callers_come_alone(void **state)
{
    (void)state;
    cluster_start(31);
    struct node *leader = await_leader();
    propose_many(leader, 0, 50);
    uint32_t before = leader->brief_syncs;
    struct client c[3];
    for (uint32_t i = 0; i < 100; i++) {
        propose(leader, &c[0], 100 + i);
        await_client(&c[0]);
    }
    assert_in_range(leader->brief_syncs - before, 80, 90);
    propose(leader, &c[0], 200);
    uint32_t first = leader->brief_syncs;
    while (leader->brief_syncs == first) {
        assert_true(run_one());
    }
    assert_true(leader->sent_in < leader->brief_in);
    await_client(&c[0]);

    /* A second caller, and a reader. */
    propose(leader, &c[1], 300);
    propose(leader, &c[2], 301);
    await_client(&c[1]);
    await_client(&c[2]);
    before = leader->brief_syncs;
    for (uint32_t i = 0; i < 60; i++) {
        struct reader reader;
        if (i < 30) {
            propose(leader, &c[0], 400 + i);
            read_begin(leader, &reader);
        } else {
            read_begin(leader, &reader);
            propose(leader, &c[0], 400 + i);
        }
        await_client(&c[0]);
        while (!reader.ended) {
            run_ms(1);
        }
    }
    assert_int_equal(leader->brief_syncs, before);
    cluster_free();
}

static void note_done(void *arg)
{
    *(bool *)arg = true;
}

static void test_step_down(void **state)
{
    (void)state;
    cluster_start(8);
    struct node *leader = await_leader();
    propose_many(leader, 0, 50);
    bool done = false;
    uint64_t begin = world.now_us;
    rsm_step_down(leader->rsm, 5000, note_done, &done);
    assert_false(done);
    while (!done) {
        run_ms(1);
    }
    assert_true(world.now_us - begin < 100000);
    assert_false(rsm_is_leader(leader->rsm));
    struct node *next = await_leader();
    assert_ptr_not_equal(next, leader);
    assert_true(world.now_us - begin < 300000);
    /* With nobody to take over, after its timeout. */
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].cut = nodes[i].rsm != next->rsm;
    }
    done = false;
    begin = world.now_us;
    rsm_step_down(next->rsm, 200, note_done, &done);
    while (!done) {
        run_ms(1);
    }
    assert_true(world.now_us - begin <= 250000);
    cluster_free();
}

static void test_strangers_are_not_heard(void **state)
{
    (void)state;
    cluster_start(9);
    sender_role = NET_ROLE_CLIENT;
    run_ms(5000);
    for (uint32_t i = 0; i < NODES; i++) {
        assert_false(rsm_is_leader(nodes[i].rsm));
    }
    sender_role = NET_ROLE_SERVER;
    sender_group = GROUP + 1;
    run_ms(5000);
    for (uint32_t i = 0; i < NODES; i++) {
        assert_false(rsm_is_leader(nodes[i].rsm));
    }
    sender_group = GROUP;
    await_leader();
    cluster_free();
}

/* Crashes, cuts and loss, all at once; then what was acknowledged is there. */
enum { CHAOS_CLIENTS = 3000 };
static struct client chaos[CHAOS_CLIENTS];

static void chaos_disturb(void)
{
    uint32_t at = (uint32_t)rng_below(&world.rng, NODES);
    struct node *n = &nodes[at];
    switch (rng_below(&world.rng, 8)) {
    case 0:
    case 1:
        if (n->rsm != NULL) {
            node_crash(at);
        }
        break;
    case 2:
    case 3: n->cut = true; break;
    case 4: /* the power goes for all of them */
        for (uint32_t i = 0; i < NODES; i++) {
            if (nodes[i].rsm != NULL) {
                node_crash(i);
            }
            node_start(i);
        }
        break;
    default:
        for (uint32_t i = 0; i < NODES; i++) {
            nodes[i].cut = false;
            if (nodes[i].rsm == NULL) {
                node_start(i);
            }
        }
    }
}

static void chaos_run(uint64_t seed)
{
    cluster_new(seed);
    keep_size = 3000;
    under_way_size = seed % 2 == 0 ? 250 : 0;
    slow_per_mille = 200;
    loss_per_mille = 20;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    uint32_t proposed = 0;
    for (uint32_t step = 0; step < 400; step++) {
        for (uint32_t i = 0; i < NODES; i++) {
            if (nodes[i].rsm != NULL && rsm_is_leader(nodes[i].rsm)) {
                for (uint32_t k = 0; k < 5 && proposed < CHAOS_CLIENTS; k++) {
                    propose(&nodes[i], &chaos[proposed], proposed);
                    proposed++;
                }
            }
        }
        run_ms(rng_below(&world.rng, 30));
        if (rng_chance(&world.rng, 40)) {
            chaos_disturb();
        }
    }
    loss_per_mille = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].cut = false;
        if (nodes[i].rsm == NULL) {
            node_start(i);
        }
    }
    await_leader();
    run_ms(5000);
    await_all_equal();
    uint32_t acknowledged = 0;
    for (uint32_t i = 0; i < proposed; i++) {
        assert_true(chaos[i].ended);
        if (chaos[i].rc == ERR_OK) {
            acknowledged++;
            assert_true(chaos[i].place < nodes[0].now.count);
            assert_int_equal(nodes[0].now.numbers[chaos[i].place],
                             chaos[i].number);
        }
    }
    static uint8_t seen[CHAOS_CLIENTS];
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < nodes[0].now.count; i++) {
        assert_int_equal(seen[nodes[0].now.numbers[i]]++, 0);
    }
    assert_true(acknowledged > 0);
    cluster_free();
}

static void test_chaos(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        chaos_run(seed);
    }
}

int main(int argc, char **argv)
{
    log_set_level(argc > 1 ? LOG_LEVEL_DEBUG : LOG_LEVEL_OFF);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_proposals_are_applied_once_in_order),
        cmocka_unit_test(test_reads_see_what_was_acknowledged),
        cmocka_unit_test(test_reads_hold_a_bounded_number_of_bytes),
        cmocka_unit_test(test_reads_wait_for_the_log),
        cmocka_unit_test(test_what_is_unsaved_bounds_checkpoints),
        cmocka_unit_test(test_applying_goes_on_when_a_checkpoint_has_begun),
        cmocka_unit_test(test_followers_refuse),
        cmocka_unit_test(test_restart_of_all),
        cmocka_unit_test(test_damaged_log_is_refused),
        cmocka_unit_test(test_failed_sync_is_final),
        cmocka_unit_test(test_proposals_do_not_wait_for_ever),
        cmocka_unit_test(test_too_much_at_once_waits),
        cmocka_unit_test(test_short_and_long_proposals_do_not_wait_for_all),
        cmocka_unit_test(test_proposals_that_wait_are_bounded_and_answered),
        cmocka_unit_test(test_wishes_wait_for_a_leader_that_is_one),
        cmocka_unit_test(test_a_leader_syncs_itself_when_callers_come_alone),
        cmocka_unit_test(test_step_down),
        cmocka_unit_test(test_strangers_are_not_heard),
        cmocka_unit_test(test_chaos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
