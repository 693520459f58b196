/* Logs of a group made whole from each other: whatever was committed is there,
 * where it was; no vote is forgotten; what is intact nowhere is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/codec.h"
#include "base/rng.h"
#include "raft/storage/wal_int.h"
#include "raft/storage/wal_repair.h"
#include "tests/lib/faultdisk.h"

enum { REPLICAS = 3, SEGMENT = 8192, LOG_MAX = 600, FLIPS_MAX = 6 };

struct group {
    struct faultdisk *disks[REPLICAS];
    struct wal *wals[REPLICAS];
    raft_term terms[REPLICAS][LOG_MAX]; /* [index]; 0: no entry */
    raft_index last[REPLICAS], start[REPLICAS];
    struct raft_hard_state states[REPLICAS];
    raft_index committed;
};

static const struct raft_conf conf = {.voters = {1, 2, 3}, .voter_count = 3};

/* By its name: two entries that have the same are the same. */
static struct bytes *data_of(raft_index index, raft_term term)
{
    struct rng rng = {.state = index * 1000 + term};
    struct bytes *b = bytes_new(1 + rng_below(&rng, 200));
    for (uint32_t i = 0; i < b->size; i++) {
        b->data[i] = (uint8_t)rng_next(&rng);
    }
    return b;
}

static void group_open(struct group *g)
{
    memset(g, 0, sizeof *g);
    for (uint32_t i = 0; i < REPLICAS; i++) {
        struct wal_recovery rec;
        g->disks[i] = faultdisk_new();
        assert_int_equal(wal_open(faultdisk_disk(g->disks[i]), "wal", SEGMENT,
                                  0, &g->wals[i], &rec),
                         ERR_OK);
        wal_recovery_free(&rec);
        assert_int_equal(wal_compact(g->wals[i], 0, 0, &conf), ERR_OK);
    }
}

static void group_stop(struct group *g)
{
    for (uint32_t i = 0; i < REPLICAS; i++) {
        wal_close(g->wals[i]);
        g->wals[i] = NULL;
    }
}

static void group_free(struct group *g)
{
    for (uint32_t i = 0; i < REPLICAS; i++) {
        faultdisk_free(g->disks[i]);
    }
}

static void store(struct group *g, uint32_t to, raft_index from,
                  raft_index last, const raft_term *terms)
{
    for (raft_index at = from; at <= last; at++) {
        struct raft_entry e = {.term = terms[at],
                               .index = at,
                               .type = RAFT_ENTRY_COMMAND,
                               .data = data_of(at, terms[at])};
        assert_int_equal(wal_append(g->wals[to], NULL, &e, 1), ERR_OK);
        bytes_unref(e.data);
        g->terms[to][at] = terms[at];
    }
    g->last[to] = last;
}

static void vote(struct group *g, uint32_t of, raft_term term, raft_id to)
{
    g->states[of] = (struct raft_hard_state){.term = term, .vote = to};
    assert_int_equal(wal_append(g->wals[of], &g->states[of], NULL, 0), ERR_OK);
}

static bool is_newer(const struct group *g, uint32_t a, uint32_t b)
{
    raft_term x = g->terms[a][g->last[a]], y = g->terms[b][g->last[b]];
    return x > y || (x == y && g->last[a] >= g->last[b]);
}

/* One term: `leader` and `other` elect it, if Raft lets them; it takes entries,
 * and gives them to some. */
static void reign(struct group *g, struct rng *rng, raft_term term)
{
    uint32_t leader = (uint32_t)rng_below(rng, REPLICAS);
    uint32_t other = (leader + 1 + (uint32_t)rng_below(rng, 2)) % REPLICAS;
    if (!is_newer(g, leader, other)) {
        return;
    }
    vote(g, leader, term, leader + 1);
    vote(g, other, term, leader + 1);
    raft_index first = g->last[leader] + 1;
    raft_index last = g->last[leader] + rng_below(rng, 12);
    for (raft_index at = first; at <= last; at++) {
        g->terms[leader][at] = term;
    }
    store(g, leader, first, last, g->terms[leader]);
    for (uint32_t to = 0; to < REPLICAS; to++) {
        if (to == leader || (to != other && rng_chance(rng, 500)) ||
            g->states[to].term > term || last == first - 1) {
            continue;
        }
        if (g->states[to].term < term) {
            vote(g, to, term, 0);
        }
        raft_index same = g->last[to] < last ? g->last[to] : last;
        while (same > 0 && g->terms[to][same] != g->terms[leader][same]) {
            same--;
        }
        raft_index upto = rng_chance(rng, 800) ? last : same;
        if (upto > same) {
            store(g, to, same + 1, upto, g->terms[leader]);
        }
        if (upto == last && last >= first) {
            g->committed = last;
        }
    }
}

static void compact(struct group *g, struct rng *rng)
{
    uint32_t i = (uint32_t)rng_below(rng, REPLICAS);
    raft_index at = g->committed < g->last[i] ? g->committed : g->last[i];
    if (at > 10 && at - 10 > g->start[i] && rng_chance(rng, 300)) {
        g->start[i] = at - 10;
        assert_int_equal(
            wal_compact(g->wals[i], at - 10, g->terms[i][at - 10], &conf),
            ERR_OK);
    }
}

/* Where the records of a segment end; behind it may be an older one's. */
static size_t records_end(const char *path, const struct buf *b)
{
    uint64_t sequence = strtoull(path + strlen("wal/"), NULL, 16);
    uint64_t at = WAL_HEAD_SIZE;
    struct wal_record record;
    while (at < b->size && wal_record_look(buf_slice(b), sequence, at,
                                           &record) == WAL_LOOK_RECORD) {
        at += wal_record_size(record.payload.size);
    }
    return (size_t)at;
}

/* Not in the last kilobyte: there it looks like a torn write, and is one. */
static bool flip(struct group *g, uint32_t i, struct rng *rng)
{
    const char *paths[64], *path;
    uint32_t count = 0;
    for (uint32_t n = 0;
         count < 64 && (path = faultdisk_path(g->disks[i], n)) != NULL; n++) {
        if (strcmp(path, "wal/spare") != 0) {
            paths[count++] = path;
        }
    }
    path = paths[rng_below(rng, count)];
    struct buf *b = faultdisk_bytes(g->disks[i], path);
    size_t size = records_end(path, b);
    if (size < 2000) {
        return false;
    }
    b->data[rng_below(rng, size - 1500)] ^= (uint8_t)(1u << rng_below(rng, 8));
    return true;
}

static enum err repair(struct group *g, struct wal_repair_replica *replicas,
                       char problem[256])
{
    for (uint32_t i = 0; i < REPLICAS; i++) {
        replicas[i] = (struct wal_repair_replica){
            .id = i + 1, .disk = faultdisk_disk(g->disks[i])};
    }
    return wal_repair(replicas, REPLICAS, "wal", problem);
}

static void check_entries(const struct wal_recovery *rec)
{
    for (uint32_t k = 0; k < rec->entry_count; k++) {
        const struct raft_entry *e = &rec->entries[k];
        struct bytes *want = data_of(e->index, e->term);
        assert_int_equal(e->index, rec->start_index + 1 + k);
        assert_int_equal(slice_compare(bytes_slice(e->data), bytes_slice(want)),
                         0);
        bytes_unref(want);
    }
}

/* Was entry `at`, as committed, on replica i's disk before the damage? */
static raft_term committed_term(const struct group *g, raft_index at)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < REPLICAS; i++) {
        best = is_newer(g, best, i) ? best : i;
    }
    return g->terms[best][at];
}

static void check_opens(struct group *g, uint32_t i)
{
    struct wal_recovery rec;
    enum err rc = wal_open(faultdisk_disk(g->disks[i]), "wal", SEGMENT, 0,
                           &g->wals[i], &rec);
    if (rc != ERR_OK) {
        print_message("replica %u: %s\n", i + 1, rec.problem);
    }
    assert_int_equal(rc, ERR_OK);
    assert_true(rec.hard_state.term >= g->states[i].term);
    if (rec.hard_state.term == g->states[i].term) {
        assert_int_equal(rec.hard_state.vote, g->states[i].vote);
    }
    check_entries(&rec);
    for (raft_index at = rec.start_index + 1; at <= g->committed; at++) {
        raft_term term = committed_term(g, at);
        if (at <= g->last[i] && g->terms[i][at] == term) {
            assert_true(at - rec.start_index - 1 < rec.entry_count);
            assert_int_equal(rec.entries[at - rec.start_index - 1].term, term);
        }
    }
    wal_recovery_free(&rec);
    wal_close(g->wals[i]);
    g->wals[i] = NULL;
}

static uint64_t sum_of(struct group *g)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < REPLICAS; i++) {
        const char *path = NULL;
        for (uint32_t n = 0; (path = faultdisk_path(g->disks[i], n)) != NULL;
             n++) {
            const struct buf *b = faultdisk_bytes(g->disks[i], path);
            for (size_t k = 0; k < b->size; k++) {
                sum = sum * 31 + b->data[k];
            }
        }
    }
    return sum;
}

/* Histories as Raft makes them, with leaders that are replaced, entries that
 * are, and logs cut at their beginnings; then up to six bits. */
static void nothing_committed_is_lost(void **state)
{
    (void)state;
    uint32_t repaired = 0, refused = 0;
    for (uint64_t seed = 1; seed <= 1500; seed++) {
        struct rng rng = {.state = seed};
        struct group g;
        struct wal_repair_replica replicas[REPLICAS];
        char problem[256];
        group_open(&g);
        for (raft_term term = 1; term < 40; term++) {
            reign(&g, &rng, term);
            compact(&g, &rng);
        }
        group_stop(&g);
        uint64_t flips = rng_below(&rng, FLIPS_MAX + 1);
        for (uint64_t k = 0; k < flips; k++) {
            (void)flip(&g, (uint32_t)rng_below(&rng, REPLICAS), &rng);
        }
        uint64_t before = sum_of(&g);
        enum err rc = repair(&g, replicas, problem);
        assert_true(rc == ERR_OK || rc == ERR_CORRUPT);
        if (rc != ERR_OK) {
            refused++;
            assert_true(problem[0] != 0);
            assert_true(before == sum_of(&g));
        }
        for (uint32_t i = 0; i < REPLICAS && rc == ERR_OK; i++) {
            if (replicas[i].state != WAL_REPAIR_LEFT) {
                check_opens(&g, i);
                repaired += replicas[i].state == WAL_REPAIR_REPAIRED;
            }
        }
        group_free(&g);
    }
    print_message("%u logs repaired, %u groups refused\n", repaired, refused);
    assert_true(repaired > 1000 && refused < 600);
}

/* One byte of the entry's data; all of them lie in the first segment. */
static void damage(struct group *g, uint32_t i, raft_index index,
                   raft_term term)
{
    struct buf *b = faultdisk_bytes(g->disks[i], "wal/0000000000000001.wal");
    assert_non_null(b);
    for (size_t at = 40; at + 32 <= b->size && get_u32(b->data + at) != 0;) {
        if (b->data[at + 8] == 2 && get_u64(b->data + at + 16) == term &&
            get_u64(b->data + at + 24) == index) {
            b->data[at + 32] ^= 1;
            return;
        }
        at += 32 + (get_u32(b->data + at + 4) + 7) / 8 * 8;
    }
    fail_msg("no such entry");
}

static const raft_term old_terms[] = {0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static const raft_term new_terms[] = {0, 1, 1, 1, 2, 2, 2};

/* Of term 1, each log up to its index in `ends`. */
static void group_fill(struct group *g, const raft_index ends[REPLICAS])
{
    group_open(g);
    for (uint32_t i = 0; i < REPLICAS; i++) {
        vote(g, i, 1, 1);
        store(g, i, 1, ends[i], old_terms);
    }
}

static const raft_index all_ten[REPLICAS] = {10, 10, 10};

static void each_elsewhere_is_made_whole(void **state)
{
    (void)state;
    struct group g;
    struct wal_repair_replica replicas[REPLICAS];
    char problem[256];
    group_fill(&g, all_ten);
    g.committed = 10;
    group_stop(&g);
    for (uint32_t i = 0; i < REPLICAS; i++) {
        damage(&g, i, 2 + 2 * i, 1);
        damage(&g, i, 3 + 2 * i, 1);
    }
    assert_int_equal(repair(&g, replicas, problem), ERR_OK);
    for (uint32_t i = 0; i < REPLICAS; i++) {
        assert_int_equal(replicas[i].state, WAL_REPAIR_REPAIRED);
        check_opens(&g, i);
    }
    group_free(&g);
}

static void what_is_intact_nowhere_is_named(void **state)
{
    (void)state;
    struct group g;
    struct wal_repair_replica replicas[REPLICAS];
    char problem[256];
    group_fill(&g, all_ten);
    group_stop(&g);
    for (uint32_t i = 0; i < REPLICAS; i++) {
        damage(&g, i, 7, 1);
    }
    assert_int_equal(repair(&g, replicas, problem), ERR_CORRUPT);
    assert_string_equal(
        problem, "entry 7 may be committed, and is intact on no replica");
    group_free(&g);
}

/* Two acknowledged the entries at the ends, and both have lost them: the third
 * never had them, and its log must not win. */
static void lost_ends_do_not_vote(void **state)
{
    (void)state;
    struct group g;
    struct wal_repair_replica replicas[REPLICAS];
    char problem[256];
    group_open(&g);
    for (uint32_t i = 0; i < REPLICAS; i++) {
        vote(&g, i, 1, 1);
        store(&g, i, 1, i < 2 ? 10 : 5, old_terms);
        vote(&g, i, 2, 0);
    }
    group_stop(&g);
    for (uint32_t i = 0; i < 2; i++) {
        damage(&g, i, 9, 1);
        damage(&g, i, 10, 1);
    }
    assert_int_equal(repair(&g, replicas, problem), ERR_CORRUPT);
    group_free(&g);
}

/* Two logs that end before what their stores hold, and look whole: what those
 * two acknowledged the third may not have, and they must not be said to be
 * well. One alone is left, for its group to replace. */
static void an_end_that_the_store_had_is_missed(void **state)
{
    (void)state;
    for (uint32_t cut = 1; cut <= 2; cut++) {
        struct group g;
        struct wal_repair_replica replicas[REPLICAS] = {0};
        char problem[256];
        group_open(&g);
        for (uint32_t i = 0; i < REPLICAS; i++) {
            vote(&g, i, 1, 1);
            store(&g, i, 1, i < cut ? 5 : 10, old_terms);
        }
        group_stop(&g);
        for (uint32_t i = 0; i < REPLICAS; i++) {
            replicas[i] =
                (struct wal_repair_replica){.id = i + 1,
                                            .disk = faultdisk_disk(g.disks[i]),
                                            .durable = i < cut ? 8 : 10};
        }
        uint64_t before = sum_of(&g);
        assert_int_equal(wal_repair(replicas, REPLICAS, "wal", problem),
                         cut == 1 ? ERR_OK : ERR_CORRUPT);
        assert_true(before == sum_of(&g));
        assert_string_equal(replicas[0].damage,
                            "its log ends at entry 5, and its store holds 8");
        assert_int_equal(replicas[0].state, WAL_REPAIR_LEFT);
        assert_int_equal(replicas[2].state, WAL_REPAIR_WHOLE);
        group_free(&g);
    }
}

/* What lies before a hole may have been replaced in it: entries 4 and 5 of term
 * 1 were, by two that are intact nowhere. */
static void what_was_replaced_in_a_hole_does_not_come_back(void **state)
{
    (void)state;
    struct group g;
    struct wal_repair_replica replicas[REPLICAS];
    char problem[256];
    group_fill(&g, (const raft_index[REPLICAS]){5, 3, 3});
    for (uint32_t i = 0; i < 2; i++) {
        vote(&g, i, 2, 2);
        store(&g, i, 4, 6, new_terms);
    }
    group_stop(&g);
    for (uint32_t i = 0; i < 2; i++) {
        damage(&g, i, 4, 2);
        damage(&g, i, 5, 2);
    }
    assert_int_equal(repair(&g, replicas, problem), ERR_CORRUPT);
    group_free(&g);
}

/* Nothing can be said of such logs: least of all that they are not there, or
 * damaged, and that a backup is what remains. */
static void another_format_is_not_damage(void **state)
{
    (void)state;
    struct group g;
    struct wal_repair_replica replicas[REPLICAS];
    char problem[256];
    group_fill(&g, all_ten);
    group_stop(&g);
    struct buf *b = faultdisk_bytes(g.disks[1], "wal/0000000000000001.wal");
    assert_non_null(b);
    b->data[8] = 1; /* the version */
    set_u32(b->data + 36, crc32c(0, slice_of(b->data, 36)));
    assert_int_equal(repair(&g, replicas, problem), ERR_VERSION);
    assert_string_equal(problem,
                        "the log of replica 2 has another format: use the "
                        "version of flotilla that wrote it");
    group_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_format_is_not_damage),
        cmocka_unit_test(each_elsewhere_is_made_whole),
        cmocka_unit_test(what_is_intact_nowhere_is_named),
        cmocka_unit_test(lost_ends_do_not_vote),
        cmocka_unit_test(an_end_that_the_store_had_is_missed),
        cmocka_unit_test(what_was_replaced_in_a_hole_does_not_come_back),
        cmocka_unit_test(nothing_committed_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
