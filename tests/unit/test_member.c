/* Who is in a group: the bytes of a configuration, the identity of a data
 * directory; when a command waits on for a new one. Changes under faults are in
 * tests/sim (scenario members). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "cmd/arrival.h"
#include "raft/raft.h"
#include "rsm/rsm_int.h"
#include "tests/lib/faultdisk.h"

static struct raft_conf sample(void)
{
    return (struct raft_conf){
        .voters = {1, 2, 4},
        .voter_count = 3,
        .old = {1, 2, 3},
        .old_count = 3,
        .learners = {7},
        .learner_count = 1,
        .places = {{.id = 1, .address = "a:1"}, {.id = 7, .address = "b:2"}},
        .place_count = 2,
        .last_id = 9};
}

static enum err round_trip(const struct raft_conf *from, struct raft_conf *to)
{
    struct buf b = {0};
    raft_conf_encode(&b, from);
    enum err rc = raft_conf_decode(buf_slice(&b), to);
    buf_free(&b);
    return rc;
}

static void places_and_the_last_id_survive_their_bytes(void **state)
{
    (void)state;
    struct raft_conf from = sample(), to;
    assert_int_equal(round_trip(&from, &to), ERR_OK);
    assert_memory_equal(&from, &to, sizeof from);
    assert_int_equal(raft_conf_last_id(&to), 9);
    from.last_id = 0; /* as a log written before there was one */
    assert_int_equal(raft_conf_last_id(&from), 7);
}

/* Bytes from a peer or a disk: an address that is empty, of a stranger, or
 * given twice is refused, and so is every cut of good bytes. */
static void places_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    struct raft_conf c = sample(), to;
    c.places[1].id = 5;
    assert_int_equal(round_trip(&c, &to), ERR_CORRUPT);
    c = sample();
    c.places[1].id = 1;
    assert_int_equal(round_trip(&c, &to), ERR_CORRUPT);
    c = sample();
    c.places[0].address[0] = '\0';
    assert_int_equal(round_trip(&c, &to), ERR_CORRUPT);
    c = sample();
    struct buf b = {0};
    raft_conf_encode(&b, &c);
    for (size_t size = 0; size < b.size; size++) {
        assert_int_equal(raft_conf_decode(slice_of(b.data, size), &to),
                         ERR_CORRUPT);
    }
    buf_free(&b);
}

static enum err check(struct disk *disk, uint32_t group, raft_id id,
                      struct rsm *r)
{
    *r = (struct rsm){
        .config = {.disk = disk, .group = group, .id = id, .identified = true}};
    return rsm_identity_check(r);
}

/* Wrong if a wiped data directory starts: the replica would vote again in terms
 * in which it has voted. */
static void without_its_identity_nobody_starts(void **state)
{
    (void)state;
    struct faultdisk *f = faultdisk_new();
    struct disk *disk = faultdisk_disk(f);
    struct rsm r;
    assert_int_equal(check(disk, 1, 2, &r), ERR_NOTFOUND);
    assert_int_equal(rsm_identity_make(disk, 1, 2, false), ERR_OK);
    assert_int_equal(rsm_identity_make(disk, 1, 2, false), ERR_OK);
    assert_int_equal(rsm_identity_make(disk, 1, 3, false), ERR_EXISTS);
    assert_int_equal(check(disk, 1, 2, &r), ERR_OK);
    assert_false(r.identity.joining);
    assert_int_equal(rsm_identity_log(&r, true), ERR_OK);
    /* It was started: from now on the log must be there. */
    assert_int_equal(check(disk, 1, 2, &r), ERR_OK);
    assert_int_equal(rsm_identity_log(&r, false), ERR_OK);
    assert_int_equal(rsm_identity_log(&r, true), ERR_NOTFOUND);
    assert_int_equal(check(disk, 1, 4, &r), ERR_INVALID);
    assert_int_equal(check(disk, 3, 2, &r), ERR_INVALID);
    /* A flipped bit anywhere is seen. */
    for (uint64_t at = 0; at < 28; at++) {
        struct disk_file *file = NULL;
        uint8_t byte = 0;
        assert_int_equal(disk->ops->open(disk, "identity", false, &file),
                         ERR_OK);
        assert_int_equal(disk->ops->read(file, at, &byte, 1), ERR_OK);
        byte ^= 1;
        struct slice part = slice_of(&byte, 1);
        assert_int_equal(disk->ops->write(file, at, &part, 1), ERR_OK);
        assert_int_equal(check(disk, 1, 2, &r), ERR_CORRUPT);
        byte ^= 1;
        assert_int_equal(disk->ops->write(file, at, &part, 1), ERR_OK);
        disk->ops->close(file);
    }
    faultdisk_free(f);
}

/* Wrong if one that joined a group later, and lost its log, begins anew: it may
 * have voted. Before it has stored anything, it may begin as often as it likes.
 */
static void who_joined_and_lost_its_log_does_not_begin_anew(void **state)
{
    (void)state;
    struct faultdisk *f = faultdisk_new();
    struct disk *disk = faultdisk_disk(f);
    struct rsm r;
    assert_int_equal(rsm_identity_make(disk, 1, 4, true), ERR_OK);
    for (int life = 0; life < 2; life++) {
        assert_int_equal(check(disk, 1, 4, &r), ERR_OK);
        assert_true(r.identity.joining);
        assert_int_equal(rsm_identity_log(&r, true), ERR_OK);
    }
    assert_int_equal(rsm_identity_started(&r), ERR_OK);
    assert_int_equal(check(disk, 1, 4, &r), ERR_OK);
    assert_true(r.identity.joining && r.identity.started);
    assert_int_equal(rsm_identity_log(&r, false), ERR_OK);
    assert_int_equal(rsm_identity_log(&r, true), ERR_NOTFOUND);
    faultdisk_free(f);
}

/* Wrong if whoever is killed while it makes or changes an identity leaves one
 * that is neither the old nor the new. */
static void an_identity_is_made_whole_or_not(void **state)
{
    (void)state;
    bool through = false;
    for (uint64_t at = 1; !through; at++) {
        for (uint64_t seed = 0; seed < 32; seed++) {
            struct faultdisk *f = faultdisk_new();
            struct disk *disk = faultdisk_disk(f);
            struct rsm r;
            faultdisk_fail_at(f, at);
            bool made = rsm_identity_make(disk, 1, 2, false) == ERR_OK;
            through = made && check(disk, 1, 2, &r) == ERR_OK &&
                      rsm_identity_log(&r, true) == ERR_OK;
            faultdisk_fail_at(f, 0);
            faultdisk_crash(f, seed);
            enum err rc = check(disk, 1, 2, &r);
            assert_true(rc == ERR_OK || (rc == ERR_NOTFOUND && !made));
            assert_true(!through || r.identity.started);
            assert_int_equal(rsm_identity_make(disk, 1, 2, false), ERR_OK);
            faultdisk_free(f);
        }
    }
}

/* Does the command wait on after this answer of the leader's? */
static bool moves(struct arrival *a, uint64_t term, uint64_t match,
                  enum rsm_snap_phase phase, uint64_t index, uint64_t done)
{
    struct rsm_member m = {.id = 6,
                           .role = RSM_LEARNER,
                           .active = 1,
                           .match = match,
                           .snap_phase = (uint8_t)phase,
                           .snap_index = index,
                           .snap_done = done,
                           .snap_all = 100};
    return arrival_moves(a, term, &m);
}

/* Wrong if a command gives up a new replica whose snapshot is on its way: its
 * match stands still meanwhile. */
static void a_snapshot_on_its_way_is_progress(void **state)
{
    (void)state;
    struct arrival a = {0};
    assert_false(moves(&a, 2, 0, RSM_SNAP_NONE, 0, 0));
    for (enum rsm_snap_phase p = RSM_SNAP_MAKING; p <= RSM_SNAP_INSTALLING;
         p++) {
        assert_true(moves(&a, 2, 0, p, 50, 0));
        assert_false(moves(&a, 2, 0, p, 50, 0));
        assert_true(moves(&a, 2, 0, p, 50, 40));
        assert_false(moves(&a, 2, 0, p, 50, 40));
        assert_true(moves(&a, 2, 0, p, 50, 100));
    }
    assert_true(moves(&a, 2, 50, RSM_SNAP_NONE, 0, 0));
    assert_false(moves(&a, 2, 50, RSM_SNAP_NONE, 0, 0));
    assert_true(moves(&a, 2, 51, RSM_SNAP_NONE, 0, 0));
}

/* What has arrived is not sent again: the next stream makes a snapshot of its
 * own, and goes on from there. */
static void a_stream_that_goes_on_is_progress(void **state)
{
    (void)state;
    struct arrival a = {0};
    assert_true(moves(&a, 2, 0, RSM_SNAP_MAKING, 50, 100));
    assert_true(moves(&a, 2, 0, RSM_SNAP_SENDING, 50, 60));
    assert_false(moves(&a, 2, 0, RSM_SNAP_NONE, 0, 0)); /* broken */
    assert_true(moves(&a, 2, 0, RSM_SNAP_MAKING, 70, 10));
    assert_false(moves(&a, 2, 0, RSM_SNAP_SENDING, 70, 0)); /* not asked yet */
    assert_true(moves(&a, 2, 0, RSM_SNAP_SENDING, 70, 61));
    /* Another leader, whose index may be the same. */
    assert_true(moves(&a, 3, 0, RSM_SNAP_MAKING, 70, 5));
    assert_true(moves(&a, 3, 0, RSM_SNAP_SENDING, 70, 61));
    assert_true(moves(&a, 3, 0, RSM_SNAP_INSTALLING, 70, 1));
}

/* Wrong if a command waits for ever for a replica that takes no snapshot. */
static void snapshots_that_do_not_arrive_are_no_progress(void **state)
{
    (void)state;
    struct arrival a = {0};
    uint32_t moved = 0;
    for (uint64_t index = 50; index < 90; index++) {
        moved += moves(&a, 2, 0, RSM_SNAP_MAKING, index, 0);
        moved += moves(&a, 2, 0, RSM_SNAP_MAKING, index, 100);
        moved += moves(&a, 2, 0, RSM_SNAP_SENDING, index, 0);
        moved += moves(&a, 2, 0, RSM_SNAP_NONE, 0, 0);
    }
    assert_in_range(moved, 1, 5);
}

static void what_stands_still_is_named(void **state)
{
    (void)state;
    char words[ARRIVAL_WORDS_SIZE];
    struct rsm_member m = {.active = 1, .match = 7};
    assert_string_equal(arrival_words(&m, 9, words),
                        "it has 7 of 9 log entries");
    m.snap_phase = RSM_SNAP_SENDING;
    m.snap_done = UINT64_C(512) << 20;
    m.snap_all = UINT64_C(1900) << 20;
    assert_string_equal(arrival_words(&m, 9, words),
                        "512 of 1900 MiB of its snapshot have arrived");
    m.active = 0;
    assert_string_equal(arrival_words(&m, 9, words),
                        "it does not answer: does its process run?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_and_the_last_id_survive_their_bytes),
        cmocka_unit_test(places_that_make_no_sense_are_refused),
        cmocka_unit_test(without_its_identity_nobody_starts),
        cmocka_unit_test(who_joined_and_lost_its_log_does_not_begin_anew),
        cmocka_unit_test(an_identity_is_made_whole_or_not),
        cmocka_unit_test(a_snapshot_on_its_way_is_progress),
        cmocka_unit_test(a_stream_that_goes_on_is_progress),
        cmocka_unit_test(snapshots_that_do_not_arrive_are_no_progress),
        cmocka_unit_test(what_stands_still_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
