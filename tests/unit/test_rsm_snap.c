/* Replicas that lag: the stored log, and snapshots that are sent, broken off,
 * continued and installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/unit/rsm_cluster.h"

/* Makes node `behind` need a snapshot of about 1 MB. */
static struct node *leave_behind(struct node *leader, struct node *behind)
{
    behind->cut = true;
    leader = await_leader();
    run_ms(1500); /* from then on it is silent */
    for (uint32_t i = 0; i < 10; i++) {
        propose_many(leader, i * 500, 500);
    }
    run_ms(1000); /* a checkpoint, and the log is cut */
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_true(status.raft.snapshot_index > behind->now.index);
    return leader;
}

static void test_snapshot_for_one_that_lags(void **state)
{
    (void)state;
    cluster_start(4);
    struct node *leader = await_leader();
    struct node *behind = &nodes[(leader->at + 1) % NODES];
    leader = leave_behind(leader, behind);
    behind->cut = false;
    loss_per_mille = 100;
    for (uint32_t i = 0; i < 100; i++) {
        struct client c;
        propose(leader, &c, 10000 + i);
        run_ms(20);
        if (!c.ended) {
            await_client(&c);
        }
    }
    loss_per_mille = 0;
    await_all_equal();
    assert_true(behind->installs >= 1);
    assert_null(faultdisk_bytes(behind->disk, "snap/in"));
    /* It goes on from there after a restart. */
    node_crash(behind->at);
    node_start(behind->at);
    await_leader();
    await_all_equal();
    cluster_free();
}

/* --- Streams that break */

static struct rsm_snap_stats snap_stats(const struct node *n)
{
    struct rsm_status status;
    rsm_status(n->rsm, &status);
    return status.snap;
}

/* Until about that part of the leader's snapshot has been sent. */
static void run_until_sent(const struct node *leader, uint32_t percent)
{
    for (uint32_t ms = 0; ms < 30000; ms++) {
        struct rsm_snap_stats s = snap_stats(leader);
        if (s.pieces > 0 && s.pieces_sent * 100 >= s.pieces * percent) {
            assert_true(s.pieces_sent < s.pieces);
            return;
        }
        run_ms(1);
    }
    fail_msg("no snapshot was sent");
}

static struct node *begin_stream(uint64_t seed, uint64_t rate,
                                 struct node **behind)
{
    cluster_new(seed);
    snap_rate = rate;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    struct node *leader = await_leader();
    *behind = &nodes[(leader->at + 1) % NODES];
    return leave_behind(leader, *behind);
}

static void await_installed(const struct node *n)
{
    for (uint32_t ms = 0; ms < 60000 && n->installs == 0; ms += 10) {
        run_ms(10);
    }
    assert_int_equal(n->installs, 1);
    await_all_equal();
}

/* Half of it has come when the link breaks, for long. Nothing of that half is
 * sent again, but for what was in flight. */
static void test_stream_goes_on_after_a_broken_link(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *leader = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        run_until_sent(leader, 50);
        behind->cut = true;
        run_ms(rng_below(&world.rng, 20000));
        behind->cut = false;
        await_installed(behind);
        struct rsm_snap_stats s = snap_stats(leader);
        assert_int_equal(s.streams, 1);
        assert_true(s.pieces > 100);
        assert_true(s.pieces_sent >= s.pieces);
        assert_true(s.pieces_sent < s.pieces + 50);
        cluster_free();
    }
}

/* The new leader makes a snapshot of its own, of a later index, and sends only
 * what the follower has not got from the old one. */
static void test_stream_goes_on_after_a_change_of_leader(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *old = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        run_until_sent(old, 10);
        for (uint32_t i = 0; seed % 3 != 0 && i < 30; i++) {
            propose_many(old, 70000 + 10 * i, 10); /* its state is another */
        }
        run_until_sent(old, 60);
        if (seed % 2 == 0) {
            node_crash(old->at);
        } else {
            old->cut = true;
        }
        struct node *new = await_leader();
        assert_ptr_not_equal(new, old);
        assert_ptr_not_equal(new, behind);
        for (uint32_t ms = 0; ms < 60000 && behind->installs == 0; ms += 10) {
            run_ms(10);
        }
        struct rsm_snap_stats s = snap_stats(new);
        assert_true(s.pieces > 100);
        assert_true(s.pieces_sent > 0);
        assert_true(s.pieces_sent < s.pieces * 6 / 10);
        if (old->rsm == NULL) {
            node_start(old->at);
        }
        old->cut = false;
        await_installed(behind);
        cluster_free();
    }
}

/* So does a follower that was killed: what it had synced or not, if it is whole
 * it counts. */
static void test_stream_goes_on_after_a_crash_of_the_follower(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *leader = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        run_until_sent(leader, 70);
        node_stop(behind->at); /* its process, not its machine */
        run_ms(rng_below(&world.rng, 3000));
        node_start(behind->at);
        await_installed(behind);
        struct rsm_snap_stats s = snap_stats(leader);
        assert_true(s.pieces_sent < s.pieces * 14 / 10);
        run_ms(100);
        assert_null(faultdisk_bytes(behind->disk, "snap/pieces"));
        assert_null(faultdisk_bytes(behind->disk, "snap/in"));
        cluster_free();
    }
}

/* Behind, but not too far: what it needs comes from the leader's disk, and the
 * leader's memory holds no more of the log than ever. */
static void test_follower_catches_up_from_the_stored_log(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        cluster_start(seed);
        struct node *leader = await_leader();
        struct node *behind = &nodes[(leader->at + 1) % NODES];
        behind->cut = true;
        leader = await_leader();
        propose_many(leader, 0, 400);
        run_ms(400);
        struct rsm_status status;
        rsm_status(leader->rsm, &status);
        assert_true(status.raft.first_index > behind->now.index + 100);
        assert_true(status.raft.snapshot_index <= behind->now.index + 1);
        if (seed % 2 == 0) { /* a new life knows where entries stand, too */
            node_crash(leader->at);
            behind->cut = false;
            node_start(leader->at);
            leader = await_leader();
        }
        behind->cut = false;
        propose_many(leader, 400, 50);
        await_all_equal();
        uint64_t read = 0;
        for (uint32_t i = 0; i < NODES; i++) {
            rsm_status(nodes[i].rsm, &status);
            read += status.entries_read;
            assert_int_equal(nodes[i].installs, 0);
        }
        assert_true(read > 100);
        cluster_free();
    }
}

/* E18: the log is cut every few entries, clients write all the time, the link
 * is slow and loses. One snapshot is enough: what it needs after it is there.
 */
static void test_log_is_there_when_a_snapshot_lands(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *leader = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        loss_per_mille = 50;
        static struct client busy[4000];
        uint32_t count = 0;
        for (uint32_t ms = 0; ms < 4000; ms += 5) {
            run_ms(5);
            leader = await_leader();
            for (uint32_t i = 0; i < 4; i++) {
                propose(leader, &busy[count], 100000 + count);
                count++;
            }
        }
        loss_per_mille = 0;
        run_ms(5000);
        await_installed(behind);
        cluster_free();
    }
}

/* An operator's limit is kept: a megabyte takes ten seconds. */
static void test_stream_keeps_to_its_rate(void **state)
{
    (void)state;
    struct node *behind;
    struct node *leader = begin_stream(5, 100000, &behind);
    behind->cut = false;
    uint64_t from_us = world.now_us;
    await_installed(behind);
    uint64_t seconds = (world.now_us - from_us) / 1000000;
    assert_in_range(seconds, 9, 14);
    assert_in_range(snap_stats(leader).bytes_sent / seconds, 60000, 110000);
    cluster_free();
}

static struct rsm_member shown(const struct node *leader, uint64_t id)
{
    struct rsm_member members[RAFT_PEERS_MAX];
    uint32_t count = rsm_member_list(leader->rsm, members);
    for (uint32_t i = 0; i < count; i++) {
        if (members[i].id == id) {
            return members[i];
        }
    }
    fail_msg("no such member");
    return (struct rsm_member){0};
}

/* Of each phase, what was shown of it. */
struct shown_phase {
    uint64_t first, last; /* bytes */
    uint32_t seen;
    uint32_t steps; /* how often it had grown */
};

static void watch_stream(const struct node *leader, const struct node *behind,
                         struct shown_phase phases[RSM_SNAP_INSTALLING + 1])
{
    uint8_t before = RSM_SNAP_NONE;
    for (uint32_t ms = 0; ms < 60000 && behind->installs == 0; ms++) {
        struct rsm_member m = shown(leader, behind->at + 1);
        struct shown_phase *p = &phases[m.snap_phase];
        assert_true(m.snap_phase >= before);
        assert_true(m.snap_index > 0 || m.snap_phase == RSM_SNAP_NONE);
        assert_true(m.snap_done <= m.snap_all ||
                    m.snap_phase == RSM_SNAP_MAKING);
        if (m.snap_phase != before) {
            before = m.snap_phase;
            p->first = p->last = m.snap_done;
        }
        assert_true(m.snap_done >= p->last);
        p->steps += m.snap_done > p->last;
        p->last = m.snap_done;
        p->seen++;
        run_ms(1);
    }
}

/* Wrong if a snapshot on its way looks as if it stood still, from one second
 * to the next: whoever waits for it would give up. */
static void test_how_far_a_stream_is_is_shown(void **state)
{
    (void)state;
    struct node *behind;
    struct node *leader = begin_stream(6, 100000, &behind);
    struct shown_phase phases[RSM_SNAP_INSTALLING + 1] = {0};
    behind->cut = false;
    apply_us = 500000; /* an install takes long, too */
    watch_stream(leader, behind, phases);
    apply_us = 0;
    struct shown_phase *sent = &phases[RSM_SNAP_SENDING];
    assert_int_equal(sent->first, 0);
    assert_true(sent->last > 900000);
    assert_true(sent->steps > 50);
    assert_in_range(phases[RSM_SNAP_INSTALLING].seen, 200, 1000);
    await_installed(behind);
    run_ms(1000);
    assert_int_equal(shown(leader, behind->at + 1).snap_index, 0);
    cluster_free();
}

/* What the first stream has brought counts for the next leader's. */
static void test_a_stream_that_goes_on_is_shown_so(void **state)
{
    (void)state;
    struct node *behind;
    struct node *old = begin_stream(7, 100000, &behind);
    behind->cut = false;
    run_until_sent(old, 60);
    uint64_t done = shown(old, behind->at + 1).snap_done;
    assert_true(done > 400000);
    old->cut = true;
    /* It cannot commit anything before the snapshot is there. */
    struct node *new = &nodes[NODES - old->at - behind->at];
    struct rsm_member m = shown(new, behind->at + 1);
    for (uint32_t ms = 0; ms < 10000 && m.snap_done < done; ms++) {
        run_ms(1);
        m = shown(new, behind->at + 1);
    }
    assert_int_equal(m.snap_phase, RSM_SNAP_SENDING);
    assert_in_range(m.snap_done, done, done + 100000);
    assert_true(snap_stats(new).bytes_sent < 100000);
    old->cut = false;
    await_installed(behind);
    cluster_free();
}

/* The receiver dies at some moment of an install, over and over. */
static void test_crash_while_installing(void **state)
{
    (void)state;
    uint32_t finished_at_start = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        cluster_start(seed);
        struct node *leader = await_leader();
        struct node *behind = &nodes[(leader->at + 1) % NODES];
        leave_behind(leader, behind);
        behind->cut = false;
        uint32_t installs = behind->installs;
        for (uint32_t ms = 0; ms < 20000 && behind->installs == installs;
             ms++) {
            run_ms(1);
            if (seed % 2 == 0 && rng_chance(&world.rng, 10)) {
                break;
            }
        }
        /* Odd seeds: the state machine is replaced, the log is not yet. */
        raft_index index = behind->stored.index;
        node_crash(behind->at);
        finished_at_start += behind->installs > installs;
        node_start(behind->at);
        assert_true(behind->now.index >= index);
        run_ms(3000);
        propose_many(await_leader(), 50000, 20);
        await_all_equal();
        /* What was written after the install joins up with it. */
        node_crash(behind->at);
        node_start(behind->at);
        await_leader();
        await_all_equal();
        cluster_free();
    }
    assert_true(finished_at_start > 20);
}

int main(int argc, char **argv)
{
    log_set_level(argc > 1 ? LOG_LEVEL_DEBUG : LOG_LEVEL_OFF);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapshot_for_one_that_lags),
        cmocka_unit_test(test_stream_goes_on_after_a_broken_link),
        cmocka_unit_test(test_stream_goes_on_after_a_change_of_leader),
        cmocka_unit_test(test_stream_goes_on_after_a_crash_of_the_follower),
        cmocka_unit_test(test_follower_catches_up_from_the_stored_log),
        cmocka_unit_test(test_log_is_there_when_a_snapshot_lands),
        cmocka_unit_test(test_stream_keeps_to_its_rate),
        cmocka_unit_test(test_how_far_a_stream_is_is_shown),
        cmocka_unit_test(test_a_stream_that_goes_on_is_shown_so),
        cmocka_unit_test(test_crash_while_installing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
