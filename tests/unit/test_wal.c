/* The log against a disk that fails in every place: what was acknowledged is
 * there after a crash, what was not is there or not but never half, and damage
 * is refused and not repaired by forgetting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"
#include "base/rng.h"
#include "raft/storage/wal.h"
#include "tests/lib/faultdisk.h"

enum { SEGMENT = 8192, ENTRIES_MAX = 4096 };

/* What the log should hold. Data is not kept: entry_data() makes it again. */
struct model {
    struct raft_hard_state hard_state;
    raft_index start;
    raft_term start_term;
    raft_term terms[ENTRIES_MAX]; /* of start + 1 + i */
    uint32_t count;
};

static raft_index model_last(const struct model *m)
{
    return m->start + m->count;
}

static raft_term model_term(const struct model *m, raft_index index)
{
    return index == m->start ? m->start_term : m->terms[index - m->start - 1];
}

static void model_append(struct model *m, raft_index first, raft_term term,
                         uint32_t count)
{
    m->count = (uint32_t)(first - m->start - 1);
    for (uint32_t i = 0; i < count; i++) {
        m->terms[m->count++] = term;
    }
}

static void model_compact(struct model *m, raft_index index)
{
    m->start_term = model_term(m, index);
    uint32_t drop = (uint32_t)(index - m->start);
    memmove(m->terms, m->terms + drop, (m->count - drop) * sizeof m->terms[0]);
    m->count -= drop;
    m->start = index;
}

/* One operation of a random history; what it does to a model depends on how
 * many of its entries got through. */
struct operation {
    enum { APPEND, COMPACT, RESET } kind;
    bool shrinks; /* COMPACT */
    bool with_hard_state;
    struct raft_hard_state hard_state;
    raft_index index; /* first entry; or to where */
    raft_term term;
    uint32_t count;
};

static struct raft_conf conf_at(raft_index index)
{
    return (struct raft_conf){.voters = {1, 2, index + 10}, .voter_count = 3};
}

static struct bytes *entry_data(raft_index index, raft_term term)
{
    struct rng rng = {index * 1000 + term};
    size_t size = rng_below(&rng, 300);
    if (rng_chance(&rng, 30)) {
        size = 2 * SEGMENT + 5; /* larger than a segment */
    }
    if (size == 0) {
        return NULL;
    }
    struct bytes *b = bytes_new(size);
    for (size_t i = 0; i < size; i++) {
        b->data[i] = (uint8_t)rng_next(&rng);
    }
    return b;
}

static struct operation choose(const struct model *m, struct rng *rng)
{
    struct operation op = {.kind = APPEND};
    uint64_t dice = rng_below(rng, 100);
    if (dice < 10 && m->count > 0) {
        op.kind = COMPACT;
        op.index = m->start + 1 + rng_below(rng, m->count);
        op.index = rng_chance(rng, 300) ? model_last(m) : op.index;
        op.term = model_term(m, op.index);
        op.shrinks = rng_chance(rng, 300);
        return op;
    }
    if (dice < 13) {
        op.kind = RESET;
        op.index = m->start + 1 + rng_below(rng, m->count + 20);
        op.term = m->hard_state.term + 1;
        return op;
    }
    op.with_hard_state = rng_chance(rng, 300);
    op.hard_state.term = m->hard_state.term + rng_below(rng, 3);
    op.hard_state.vote = rng_below(rng, 4);
    op.count = (uint32_t)rng_below(rng, 9);
    op.index = model_last(m) + 1;
    if (rng_chance(rng, 150) && m->count > 0) {
        op.index -= rng_below(rng, m->count < 20 ? m->count : 20);
    }
    op.term = model_term(m, op.index - 1);
    if (op.index <= model_last(m)) {
        op.term = model_term(m, model_last(m)) + 1;
    }
    if (op.count == 0) {
        op.with_hard_state = true;
    }
    return op;
}

static enum err execute(struct wal *w, const struct operation *op)
{
    struct raft_conf conf = conf_at(op->index);
    if (op->kind == COMPACT) {
        enum err rc = wal_compact(w, op->index, op->term, &conf);
        return rc == ERR_OK && op->shrinks ? wal_shrink(w) : rc;
    }
    if (op->kind == RESET) {
        return wal_reset(w, op->index, op->term, &conf);
    }
    struct raft_entry entries[16] = {0};
    for (uint32_t i = 0; i < op->count; i++) {
        entries[i] = (struct raft_entry){
            .term = op->term,
            .index = op->index + i,
            .type = RAFT_ENTRY_COMMAND,
            .data = entry_data(op->index + i, op->term),
        };
    }
    enum err rc = wal_append(w, op->with_hard_state ? &op->hard_state : NULL,
                             entries, op->count);
    for (uint32_t i = 0; i < op->count; i++) {
        bytes_unref(entries[i].data);
    }
    return rc;
}

static void model_execute(struct model *m, const struct operation *op,
                          uint32_t count)
{
    switch (op->kind) {
    case COMPACT: model_compact(m, op->index); return;
    case RESET:
        m->start = op->index;
        m->start_term = op->term;
        m->count = 0;
        return;
    case APPEND:
        if (op->with_hard_state) {
            m->hard_state = op->hard_state;
        }
        if (count > 0) {
            model_append(m, op->index, op->term, count);
        }
        return;
    }
}

static bool same(const struct model *m, const struct wal_recovery *r)
{
    if (r->hard_state.term != m->hard_state.term ||
        r->hard_state.vote != m->hard_state.vote ||
        r->start_index != m->start || r->start_term != m->start_term ||
        r->entry_count != m->count) {
        return false;
    }
    if (m->start > 0 && r->start_conf.voters[2] != m->start + 10) {
        return false;
    }
    for (uint32_t i = 0; i < m->count; i++) {
        const struct raft_entry *e = &r->entries[i];
        if (e->index != m->start + 1 + i || e->term != m->terms[i]) {
            return false;
        }
        struct bytes *data = entry_data(e->index, e->term);
        int order = slice_compare(bytes_slice(e->data), bytes_slice(data));
        bytes_unref(data);
        if (order != 0) {
            return false;
        }
    }
    return true;
}

/* Is it the acknowledged state, or that and a part of the operation that was
 * under way? Makes `m` the one it is. */
static bool settle(struct model *m, const struct operation *op,
                   const struct wal_recovery *r)
{
    if (same(m, r)) {
        return true;
    }
    static struct model tried;
    for (uint32_t count = 0; count <= op->count; count++) {
        tried = *m;
        model_execute(&tried, op, count);
        if (same(&tried, r)) {
            *m = tried;
            return true;
        }
    }
    return false;
}

static void open_ok(struct faultdisk *d, struct wal **w,
                    struct wal_recovery *recovery)
{
    enum err rc = wal_open(faultdisk_disk(d), "wal", SEGMENT, 0, w, recovery);
    if (rc != ERR_OK) {
        fail_msg("%s: %s", err_name(rc), recovery->problem);
    }
}

/* Random operations until `stop` of them are done or one fails. */
static uint32_t run(struct wal *w, struct model *m, struct rng *rng,
                    uint32_t stop, struct operation *last)
{
    for (uint32_t done = 0; done < stop; done++) {
        *last = choose(m, rng);
        if (execute(w, last) != ERR_OK) {
            return done;
        }
        model_execute(m, last, last->count);
    }
    return stop;
}

static void crash_once(uint64_t seed, uint64_t fail_at)
{
    static struct model m;
    m = (struct model){0};
    struct rng rng = {seed};
    struct operation op = {0};
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;

    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    faultdisk_fail_at(d, fail_at);
    uint32_t done = run(w, &m, &rng, 40, &op);
    if (done < 40) {
        /* After a failure the log is broken for good. */
        faultdisk_fail_at(d, 0);
        struct raft_hard_state hs = {.term = 99};
        assert_int_equal(wal_append(w, &hs, NULL, 0), ERR_IO);
    }
    wal_close(w);
    faultdisk_crash(d, seed + fail_at);

    open_ok(d, &w, &r);
    if (!settle(&m, &op, &r)) {
        fail_msg("seed %d, failed operation %d: acknowledged state is lost",
                 (int)seed, (int)fail_at);
    }
    wal_recovery_free(&r);
    /* It goes on from what was recovered, and nothing old comes back. */
    assert_int_equal(run(w, &m, &rng, 10, &op), 10);
    wal_close(w);
    faultdisk_crash(d, seed);
    open_ok(d, &w, &r);
    assert_true(same(&m, &r));
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

static void test_crash_at_every_operation(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        for (uint64_t fail_at = 1; fail_at <= 130; fail_at++) {
            crash_once(seed, fail_at);
        }
    }
}

/* A full disk: nothing is stored, and the log is as it was, whether it crashes
 * then, or goes on when there is space, with less than what found none. */
static void full_once(uint64_t seed, uint64_t slack, bool copies, bool crashes)
{
    static struct model m;
    m = (struct model){0};
    struct rng rng = {seed};
    struct operation op = {0};
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;

    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    for (uint32_t round = 0; round < 4; round++) {
        faultdisk_fill(d, slack, copies);
        if (run(w, &m, &rng, 60, &op) == 60) {
            break;
        }
        if (crashes) {
            wal_close(w);
            faultdisk_empty(d);
            faultdisk_crash(d, seed + slack + round);
            open_ok(d, &w, &r);
            if (!settle(&m, &op, &r)) {
                fail_msg("seed %d slack %d: acknowledged state is lost",
                         (int)seed, (int)slack);
            }
            wal_recovery_free(&r);
            continue;
        }
        /* The first time may have given back what lay behind the end. */
        enum err rc = execute(w, &op);
        faultdisk_empty(d);
        if (rc != ERR_OK) {
            assert_int_equal(rc, ERR_NOSPACE);
            if (op.kind == APPEND && op.count > 1) {
                op.count = 1 + (uint32_t)rng_below(&rng, op.count - 1);
            }
            assert_int_equal(execute(w, &op), ERR_OK);
        }
        model_execute(&m, &op, op.count);
    }
    faultdisk_empty(d);
    wal_close(w);
    faultdisk_crash(d, seed);
    open_ok(d, &w, &r);
    assert_true(same(&m, &r));
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

static void test_full_disk(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        for (uint64_t slack = 0; slack < 40000; slack = 2 * slack + 700) {
            full_once(seed, slack, false, false);
            full_once(seed, slack, false, true);
            full_once(seed, slack, true, false);
            full_once(seed, slack, true, true);
        }
    }
}

/* Entries leave room to vote, and to say from where on the log counts: that
 * deletes segments, and gives space back. */
static void test_full_disk_votes_and_compacts(void **state)
{
    (void)state;
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    struct wal_stats before, after;
    raft_index last = 0;

    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    faultdisk_fill(d, 5 * SEGMENT, false);
    for (;;) {
        struct bytes *data = bytes_copy(slice_text("some text in an entry"));
        struct raft_entry e = {.term = 1,
                               .index = last + 1,
                               .type = RAFT_ENTRY_COMMAND,
                               .data = data};
        enum err rc = wal_append(w, NULL, &e, 1);
        bytes_unref(data);
        if (rc != ERR_OK) {
            assert_int_equal(rc, ERR_NOSPACE);
            break;
        }
        last++;
    }
    for (uint64_t term = 2; term < 12; term++) {
        struct raft_hard_state hs = {.term = term};
        assert_int_equal(wal_append(w, &hs, NULL, 0), ERR_OK);
    }
    wal_stats(w, &before);
    struct raft_conf conf = conf_at(last);
    assert_int_equal(wal_compact(w, last, 1, &conf), ERR_OK);
    wal_stats(w, &after);
    assert_true(before.segments > 2 && after.segments == 1);
    wal_close(w);
    faultdisk_empty(d);
    faultdisk_crash(d, 1);
    open_ok(d, &w, &r);
    assert_int_equal(r.start_index, last);
    assert_int_equal(r.hard_state.term, 11);
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

/* Recovery itself is interrupted, at each of its own writes. */
static void test_crash_while_recovering(void **state)
{
    (void)state;
    static struct model m;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        m = (struct model){0};
        struct rng rng = {seed};
        struct operation op = {0};
        struct faultdisk *d = faultdisk_new();
        struct wal *w = NULL;
        struct wal_recovery r;
        open_ok(d, &w, &r);
        wal_recovery_free(&r);
        faultdisk_fail_at(d, 20 + rng_below(&rng, 80));
        run(w, &m, &rng, 40, &op);
        wal_close(w);
        faultdisk_crash(d, seed);
        for (uint64_t nth = 1; nth <= 6; nth++) {
            faultdisk_fail_at(d, nth);
            if (wal_open(faultdisk_disk(d), "wal", SEGMENT, 0, &w, &r) ==
                ERR_OK) {
                wal_close(w);
            }
            wal_recovery_free(&r);
            faultdisk_crash(d, seed + nth);
        }
        open_ok(d, &w, &r);
        assert_true(settle(&m, &op, &r));
        wal_recovery_free(&r);
        wal_close(w);
        faultdisk_free(d);
    }
}

/* A log of several segments, each command acknowledged. */
static struct faultdisk *make_log(struct model *m)
{
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    *m = (struct model){0};
    for (uint32_t i = 0; i < 40; i++) {
        struct operation op = {
            .kind = APPEND, .index = model_last(m) + 1, .term = 1, .count = 4};
        assert_int_equal(execute(w, &op), ERR_OK);
        model_execute(m, &op, op.count);
    }
    wal_close(w);
    return d;
}

/* Any flipped byte is refused or, in the very last group commit, cut off with
 * it; never is an entry before that silently gone or changed. */
static void test_flipped_bytes(void **state)
{
    (void)state;
    static struct model m;
    struct faultdisk *whole = make_log(&m);
    struct faultdisk *d = faultdisk_new();
    uint32_t refused = 0;
    uint32_t cut = 0;
    for (uint32_t file = 0; faultdisk_path(whole, file) != NULL; file++) {
        const char *path = faultdisk_path(whole, file);
        size_t size = faultdisk_bytes(whole, path)->size;
        for (size_t at = 0; at < size; at += 97) {
            faultdisk_copy(d, whole);
            struct buf *bytes = faultdisk_bytes(d, path);
            bytes->data[at] ^= 0x10;
            struct wal *w = NULL;
            struct wal_recovery r;
            enum err rc =
                wal_open(faultdisk_disk(d), "wal", SEGMENT, 0, &w, &r);
            if (rc == ERR_OK) {
                bool kept = r.entry_count == m.count;
                cut += !kept;
                assert_true(r.entry_count + 4 >= m.count);
                m.count = r.entry_count;
                assert_true(same(&m, &r));
                m.count = 160;
                wal_close(w);
            } else {
                assert_int_equal(rc, ERR_CORRUPT);
                assert_non_null(strstr(r.problem, path));
                assert_non_null(strstr(r.problem, " at byte "));
                refused++;
            }
            wal_recovery_free(&r);
        }
    }
    assert_true(refused > 100);
    assert_true(cut > 0);
    faultdisk_free(d);
    faultdisk_free(whole);
}

static void test_lost_sector_in_the_middle(void **state)
{
    (void)state;
    static struct model m;
    struct faultdisk *d = make_log(&m);
    for (uint32_t nth = 0; nth < 2; nth++) {
        struct faultdisk *copy = faultdisk_new();
        faultdisk_copy(copy, d);
        struct buf *bytes = faultdisk_bytes(copy, faultdisk_path(copy, nth));
        memset(bytes->data + 1024, 0, 4096);
        struct wal *w = NULL;
        struct wal_recovery r;
        assert_int_equal(
            wal_open(faultdisk_disk(copy), "wal", SEGMENT, 0, &w, &r),
            ERR_CORRUPT);
        wal_recovery_free(&r);
        faultdisk_free(copy);
    }
    faultdisk_free(d);
}

static void test_missing_segment(void **state)
{
    (void)state;
    static struct model m;
    struct faultdisk *d = make_log(&m);
    struct disk *disk = faultdisk_disk(d);
    const char *path = faultdisk_path(d, 1);
    assert_non_null(faultdisk_path(d, 2));
    assert_int_equal(disk->ops->remove(disk, path), ERR_OK);
    struct wal *w = NULL;
    struct wal_recovery r;
    assert_int_equal(wal_open(disk, "wal", SEGMENT, 0, &w, &r), ERR_CORRUPT);
    assert_non_null(strstr(r.problem, path));
    wal_recovery_free(&r);
    faultdisk_free(d);
}

static void test_compaction_deletes_segments(void **state)
{
    (void)state;
    static struct model m;
    struct faultdisk *d = make_log(&m);
    struct wal *w = NULL;
    struct wal_recovery r;
    struct wal_stats stats;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    wal_stats(w, &stats);
    uint32_t before = stats.segments;
    assert_true(before > 3);
    struct raft_conf conf = conf_at(100);
    assert_int_equal(wal_compact(w, 100, 1, &conf), ERR_OK);
    wal_stats(w, &stats);
    assert_true(stats.segments < before);
    conf = conf_at(160);
    assert_int_equal(wal_compact(w, 160, 1, &conf), ERR_OK);
    wal_stats(w, &stats);
    assert_int_equal(stats.segments, 1);
    wal_close(w);

    open_ok(d, &w, &r);
    model_compact(&m, 160);
    assert_true(same(&m, &r));
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

static struct buf *last_file(struct faultdisk *d)
{
    const char *last = NULL, *path;
    for (uint32_t i = 0; (path = faultdisk_path(d, i)) != NULL; i++) {
        last = strcmp(path, "wal/spare") == 0 ? last : path;
    }
    return faultdisk_bytes(d, last);
}

static void append_text(struct wal *w, raft_index first,
                        const char *const *text, uint32_t count)
{
    struct raft_entry entries[4] = {0};
    for (uint32_t i = 0; i < count; i++) {
        entries[i] = (struct raft_entry){
            .term = 1,
            .index = first + i,
            .type = RAFT_ENTRY_COMMAND,
            .data = bytes_copy(slice_text(text[i])),
        };
    }
    assert_int_equal(wal_append(w, NULL, entries, count), ERR_OK);
    for (uint32_t i = 0; i < count; i++) {
        bytes_unref(entries[i].data);
    }
}

/* A file of log records stored as an entry: its bytes must never be taken for
 * records, whatever is torn around them. */
static void test_records_inside_an_entry(void **state)
{
    (void)state;
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    for (uint32_t i = 1; i <= 100; i++) {
        const char *text[] = {"some text"};
        append_text(w, i, text, 1);
    }
    struct buf *other = faultdisk_bytes(d, faultdisk_path(d, 0));
    struct raft_entry entry = {
        .term = 1,
        .index = 101,
        .type = RAFT_ENTRY_COMMAND,
        .data = bytes_copy(slice_of(other->data + 4096, 2048)),
    };
    struct raft_conf conf = conf_at(100);
    assert_int_equal(wal_reset(w, 100, 1, &conf), ERR_OK);
    assert_int_equal(wal_append(w, NULL, &entry, 1), ERR_OK);
    wal_close(w);
    /* The record's head is torn away, as if the write had not finished. */
    struct buf *bytes = last_file(d);
    uint8_t *at =
        memmem(bytes->data, bytes->size, entry.data->data, entry.data->size);
    assert_non_null(at);
    bytes_unref(entry.data);
    memset(at - 32, 0, 32);
    open_ok(d, &w, &r);
    assert_int_equal(r.start_index, 100);
    assert_int_equal(r.entry_count, 0);
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

/* Until the log writes into a file that was used before, and `more` entries. */
static raft_index fill_used(struct wal *w, uint32_t more)
{
    struct raft_conf conf;
    struct wal_stats stats;
    raft_index last = 0;
    for (uint32_t round = 0; round < 3; round++) {
        do {
            const char *text[] = {"some text that is in an older segment"};
            append_text(w, ++last, text, 1);
            wal_stats(w, &stats);
        } while (stats.segments < 2);
        conf = conf_at(last - 1);
        assert_int_equal(wal_compact(w, last - 1, 1, &conf), ERR_OK);
    }
    for (uint32_t i = 0; i < more; i++) {
        const char *text[] = {"new text"};
        append_text(w, ++last, text, 1);
    }
    return last;
}

static uint32_t files(struct faultdisk *d)
{
    uint32_t count = 0;
    while (faultdisk_path(d, count) != NULL) {
        count++;
    }
    return count;
}

static uint64_t offset_of(const struct buf *bytes, const char *text)
{
    const uint8_t *at = memmem(bytes->data, bytes->size, text, strlen(text));
    assert_non_null(at);
    return (uint64_t)(at - bytes->data);
}

/* Of a group commit of two, the first was torn and the second was not. A later
 * write of the first one's size must not join up with the second. `used`: in a
 * file that was used before; and so long that no zeros are written ahead of it,
 * and up to the end of a page, so that there are none behind it. */
static void torn_once(bool used)
{
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    static char first[4096];
    size_t size = 16;
    raft_index last = 0;
    if (used) {
        last = fill_used(w, 1);
        size = 4096 - 32 - 8 - offset_of(last_file(d), "new text");
    }
    memset(first, 'x', size);
    first[size] = 0;
    const char *torn[] = {first, "the second"};
    append_text(w, last + 1, torn, 2);
    wal_close(w);
    struct buf *bytes = last_file(d);
    memset(bytes->data + offset_of(bytes, first) - 32, 0, 48);

    open_ok(d, &w, &r);
    assert_int_equal(r.start_index + r.entry_count, last);
    wal_recovery_free(&r);
    memset(first, 'y', size);
    const char *again[] = {first};
    append_text(w, last + 1, again, 1);
    wal_close(w);
    open_ok(d, &w, &r);
    assert_int_equal(r.start_index + r.entry_count, last + 1);
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

static void test_torn_leftovers_do_not_come_back(void **state)
{
    (void)state;
    torn_once(false);
    torn_once(true);
}

/* Behind the end of a log there are records of an older segment, each of which
 * was whole and acknowledged: none is taken for one of this segment, also not
 * when the end is torn. Wrong if a file's place in the log is not in the
 * checksum, or the old bytes stay for the writes after a start. */
static void test_a_used_file_keeps_nothing(void **state)
{
    (void)state;
    for (uint32_t torn = 0; torn < 60; torn++) {
        struct faultdisk *d = faultdisk_new();
        struct wal *w = NULL;
        struct wal_recovery r;
        open_ok(d, &w, &r);
        wal_recovery_free(&r);
        raft_index last = fill_used(w, 20);
        wal_close(w);
        assert_int_equal(files(d), 2); /* the log, and the spare */
        struct buf *bytes = last_file(d);
        const char *found = "some text that is in an older segment";
        uint8_t *old = NULL, *text = bytes->data, *end = text + bytes->size;
        while ((text = memmem(text, (size_t)(end - text), "new text", 8))) {
            old = text++;
        }
        assert_non_null(old); /* the last of the new ones */
        assert_non_null(memmem(old, (size_t)(end - old), found, strlen(found)));
        if (torn > 0) { /* a byte of the last record */
            old[-32 + (int)(torn % 40)] ^= (uint8_t)(1 + torn);
        }
        for (uint32_t again = 0; again < 2; again++) {
            open_ok(d, &w, &r);
            assert_int_equal(r.evicted_index, 0);
            raft_index expected = last - (torn > 0) + again;
            assert_int_equal(r.start_index + r.entry_count, expected);
            wal_recovery_free(&r);
            const char *more[] = {"more"};
            append_text(w, expected + 1, more, 1);
            wal_close(w);
        }
        faultdisk_free(d);
    }
}

/* Begins a log in a used file and a spare, up to where one more text begins the
 * next segment in that. */
static raft_index fill_to_the_spare(struct wal *w)
{
    enum { TEXTS = 90 }; /* the next one is too many for a segment */
    raft_index last = fill_used(w, 0);
    for (uint32_t i = 0; i < TEXTS; i++) {
        const char *text[] = {"some text that is in an older segment"};
        append_text(w, ++last, text, 1);
    }
    return last;
}

/* Its `fail_at`th operation fails, and then the power. */
static void begin_segment_and_crash(struct faultdisk *d, struct wal *w,
                                    raft_index first, uint64_t fail_at,
                                    uint64_t seed)
{
    struct bytes *data = bytes_new(SEGMENT / 4);
    memset(data->data, 'z', data->size);
    struct raft_entry entry = {
        .term = 1, .index = first, .type = RAFT_ENTRY_COMMAND, .data = data};
    faultdisk_fail_at(d, fail_at);
    (void)!wal_append(w, NULL, &entry, 1);
    bytes_unref(data);
    wal_close(w);
    faultdisk_crash(d, seed);
}

/* Twice in a row the power fails while the same segment is begun: first its
 * bytes are on the disk and its name is not, then its name and not its bytes.
 * What was begun the first time says nothing of what came between. */
static void begun_twice_once(uint64_t seed, uint64_t first, uint64_t second)
{
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    raft_index last = fill_to_the_spare(w);
    begin_segment_and_crash(d, w, last + 1, first, seed);

    open_ok(d, &w, &r);
    last = r.start_index + r.entry_count;
    wal_recovery_free(&r);
    struct raft_hard_state hs = {.term = 7, .vote = 2};
    assert_int_equal(wal_append(w, &hs, NULL, 0), ERR_OK);
    const char *text[] = {"x"};
    append_text(w, ++last, text, 1);
    begin_segment_and_crash(d, w, last + 1, second, seed + 1000);

    open_ok(d, &w, &r);
    if (r.hard_state.term != 7 || r.hard_state.vote != 2 ||
        r.start_index + r.entry_count < last) {
        fail_msg("seed %d, operations %d and %d: a vote in term %d, and the "
                 "last entry %d, not %d",
                 (int)seed, (int)first, (int)second, (int)r.hard_state.term,
                 (int)(r.start_index + r.entry_count), (int)last);
    }
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

static void test_a_segment_begun_twice(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        for (uint64_t first = 1; first <= 9; first++) {
            for (uint64_t second = 1; second <= 9; second++) {
                begun_twice_once(seed, first, second);
            }
        }
    }
}

static uint64_t cut_to; /* 0: nothing is cut */
static const struct disk_ops *whole_ops;

static enum err read_of_a_shorter_file(struct disk_file *f, uint64_t offset,
                                       void *to, size_t size)
{
    if (cut_to > 0) {
        assert_int_equal(whole_ops->truncate(f, cut_to), ERR_OK);
    }
    cut_to = 0;
    return whole_ops->read(f, offset, to, size);
}

/* Wrong if a reader takes it for damage that the zeros behind the end went
 * while it read, as they do when a write finds no space: that ends the replica.
 */
static void test_a_reader_of_a_file_that_is_cut(void **state)
{
    (void)state;
    struct faultdisk *d = faultdisk_new();
    struct disk *disk = faultdisk_disk(d);
    struct wal *w = NULL;
    struct wal_recovery r;
    struct wal_mark *marks = NULL;
    uint32_t mark_count = 0, count = 0;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    for (uint32_t i = 1; i <= 5; i++) {
        const char *text[] = {"the last of them"};
        append_text(w, i, text, 1);
    }
    wal_take_marks(w, &marks, &mark_count);
    wal_close(w);
    struct buf *bytes = last_file(d);
    const uint8_t *end = memrchr(bytes->data, 'm', bytes->size);
    assert_non_null(end);

    struct disk_ops ops = *disk->ops;
    whole_ops = disk->ops;
    ops.read = read_of_a_shorter_file;
    disk->ops = &ops;
    cut_to = (uint64_t)(end - bytes->data) + 1;
    assert_true(cut_to < bytes->size);
    struct raft_run run = {.first = 1, .term = 1};
    struct wal_want want = {.from = marks[0],
                            .first = 1,
                            .last = 5,
                            .size_max = 1 << 20,
                            .runs = &run,
                            .run_count = 1};
    struct raft_entry *entries = NULL;
    assert_int_equal(wal_read(disk, "wal", &want, &entries, &count), ERR_OK);
    assert_int_equal(count, 5);
    disk->ops = whole_ops;
    for (uint32_t i = 0; i < count; i++) {
        bytes_unref(entries[i].data);
    }
    mem_free(entries);
    mem_free(marks);
    faultdisk_free(d);
}

/* The spare is given back where space is short. */
static void test_a_spare_goes_when_space_is_short(void **state)
{
    (void)state;
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    raft_index last = fill_used(w, 1);
    assert_non_null(faultdisk_bytes(d, "wal/spare"));
    assert_int_equal(wal_shrink(w), ERR_OK);
    assert_null(faultdisk_bytes(d, "wal/spare"));

    /* With little room none is kept. */
    faultdisk_fill(d, 15 * SEGMENT, false);
    struct wal_stats stats;
    do {
        const char *text[] = {"text"};
        append_text(w, ++last, text, 1);
        wal_stats(w, &stats);
    } while (stats.segments < 2);
    struct raft_conf conf = conf_at(last - 1);
    assert_int_equal(wal_compact(w, last - 1, 1, &conf), ERR_OK);
    assert_null(faultdisk_bytes(d, "wal/spare"));
    wal_close(w);
    faultdisk_free(d);
}

/* An entry that found no space is not one that the log still needs. */
static void test_shrinks_after_a_refusal(void **state)
{
    (void)state;
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    open_ok(d, &w, &r);
    wal_recovery_free(&r);
    raft_index last = 0;
    while (last < 50) {
        const char *text[] = {"some text that is in an older segment"};
        append_text(w, ++last, text, 1);
    }
    struct raft_conf conf = conf_at(last);
    assert_int_equal(wal_compact(w, last, 1, &conf), ERR_OK);
    size_t before = last_file(d)->size;
    struct raft_entry large = {.term = 1,
                               .index = last + 1,
                               .type = RAFT_ENTRY_COMMAND,
                               .data = bytes_new(3000)};
    memset(large.data->data, 'x', large.data->size);
    faultdisk_fill(d, 2000, false);
    assert_int_equal(wal_append(w, NULL, &large, 1), ERR_NOSPACE);
    bytes_unref(large.data);
    assert_int_equal(wal_shrink(w), ERR_OK);
    assert_true(last_file(d)->size < before / 2);
    wal_close(w);
    open_ok(d, &w, &r);
    assert_int_equal(r.start_index, last);
    assert_int_equal(r.entry_count, 0);
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

/* Somebody tidied up while the log was open. */
static void test_a_spare_that_is_gone(void **state)
{
    (void)state;
    for (uint32_t shrinks = 0; shrinks < 2; shrinks++) {
        struct faultdisk *f = faultdisk_new();
        struct disk *d = faultdisk_disk(f);
        struct wal *w = NULL;
        struct wal_recovery r;
        open_ok(f, &w, &r);
        wal_recovery_free(&r);
        raft_index last = fill_to_the_spare(w) + 1;
        assert_int_equal(d->ops->remove(d, "wal/spare"), ERR_OK);
        if (shrinks) {
            assert_int_equal(wal_shrink(w), ERR_OK);
        }
        static char text[SEGMENT / 4];
        memset(text, 'z', sizeof text - 1);
        const char *texts[] = {text};
        append_text(w, last, texts, 1);
        wal_close(w);
        open_ok(f, &w, &r);
        assert_int_equal(r.start_index + r.entry_count, last);
        wal_recovery_free(&r);
        wal_close(w);
        faultdisk_free(f);
    }
}

enum { HEADS_SIZE = 6 << 20 };

/* Eight bytes again and again, so that each place looks like the head of a long
 * record. Wrong if as much is read there as the length says: this test then
 * takes an hour. */
static void test_bytes_like_heads_cost_little(void **state)
{
    (void)state;
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    assert_int_equal(
        wal_open(faultdisk_disk(d), "wal", 2 * HEADS_SIZE, 0, &w, &r), ERR_OK);
    wal_recovery_free(&r);
    struct raft_entry e = {.term = 1,
                           .index = 1,
                           .type = RAFT_ENTRY_COMMAND,
                           .data = bytes_new(HEADS_SIZE)};
    for (size_t i = 0; i < HEADS_SIZE; i += 8) {
        memcpy(e.data->data + i, "\x02\0\0\0\0\0\x30\0", 8);
    }
    assert_int_equal(wal_append(w, NULL, &e, 1), ERR_OK);
    bytes_unref(e.data);
    wal_close(w);
    struct buf *bytes = last_file(d);
    bytes->data[bytes->size / 2] ^= 1; /* torn: what is behind is searched */
    assert_int_equal(
        wal_open(faultdisk_disk(d), "wal", 2 * HEADS_SIZE, 0, &w, &r), ERR_OK);
    assert_int_equal(r.entry_count, 0);
    wal_recovery_free(&r);
    wal_close(w);
    faultdisk_free(d);
}

/* A log of another format is refused, and no file of it is touched: that none
 * of its segments makes sense does not say that they were never used. */
static void test_another_format_is_refused(void **state)
{
    (void)state;
    static struct model m;
    struct faultdisk *d = make_log(&m);
    uint32_t before = files(d);
    const char *path = NULL;
    for (uint32_t i = 0; (path = faultdisk_path(d, i)) != NULL; i++) {
        struct buf *b = faultdisk_bytes(d, path);
        b->data[8] = 1; /* the version */
        uint32_t crc = crc32c(0, slice_of(b->data, 36));
        memcpy(b->data + 36, &crc, sizeof crc);
    }
    struct wal *w = NULL;
    struct wal_recovery r;
    assert_int_equal(wal_open(faultdisk_disk(d), "wal", SEGMENT, 0, &w, &r),
                     ERR_VERSION);
    assert_non_null(strstr(r.problem, "another log format"));
    assert_int_equal(files(d), before);
    faultdisk_free(d);
}

enum { LONG_SEGMENT = 1 << 20, LONG_ENTRY = 70000 };

static enum err append_long(struct wal *w, raft_index index)
{
    static uint8_t text[LONG_ENTRY];
    struct bytes *data = bytes_copy(slice_of(text, sizeof text));
    struct raft_entry e = {
        .term = 1, .index = index, .type = RAFT_ENTRY_COMMAND, .data = data};
    enum err rc = wal_append(w, NULL, &e, 1);
    bytes_unref(data);
    return rc;
}

/* Long writes have no zeros ahead: what the disk took of them goes, and the
 * room for votes stays. */
static void long_once(uint64_t slack)
{
    struct faultdisk *d = faultdisk_new();
    struct wal *w = NULL;
    struct wal_recovery r;
    raft_index last = 0;
    assert_int_equal(
        wal_open(faultdisk_disk(d), "wal", LONG_SEGMENT, 0, &w, &r), ERR_OK);
    wal_recovery_free(&r);
    assert_int_equal(append_long(w, ++last), ERR_OK);
    faultdisk_fill(d, slack, false);
    while (append_long(w, last + 1) == ERR_OK) {
        last++;
    }
    assert_int_equal(append_long(w, last + 1), ERR_NOSPACE);
    faultdisk_fill(d, 0, false); /* others take what it gave back */
    for (uint64_t term = 2; term < 40; term++) {
        struct raft_hard_state hs = {.term = term};
        assert_int_equal(wal_append(w, &hs, NULL, 0), ERR_OK);
    }
    wal_close(w);
    faultdisk_empty(d);
    faultdisk_crash(d, slack);
    assert_int_equal(
        wal_open(faultdisk_disk(d), "wal", LONG_SEGMENT, 0, &w, &r), ERR_OK);
    assert_int_equal(r.entry_count, last);
    assert_int_equal(r.hard_state.term, 39);
    wal_recovery_free(&r);
    assert_int_equal(append_long(w, last + 1), ERR_OK);
    wal_close(w);
    faultdisk_free(d);
}

static void test_full_disk_long_writes(void **state)
{
    (void)state;
    for (uint64_t slack = 0; slack < 3000000; slack += 33333) {
        long_once(slack);
    }
}

enum { MIXED = 700 }; /* more than one pwritev() takes */

static size_t mixed_size(uint32_t i)
{
    return i % 5 == 0 ? i % 90 : 2000 + 7 * (i % 40);
}

static void mixed_append(struct wal *w)
{
    static uint8_t text[3000];
    struct raft_entry entries[MIXED];
    for (uint32_t i = 0; i < MIXED; i++) {
        memset(text, (int)i, sizeof text);
        entries[i] = (struct raft_entry){
            .term = 1,
            .index = i + 1,
            .type = RAFT_ENTRY_COMMAND,
            .data = bytes_copy(slice_of(text, mixed_size(i))),
        };
    }
    assert_int_equal(wal_append(w, NULL, entries, MIXED), ERR_OK);
    for (uint32_t i = 0; i < MIXED; i++) {
        bytes_unref(entries[i].data); /* nothing of it is needed any more */
    }
}

/* Payloads around the size from which they are written from their own place,
 * by as many system calls as it takes. */
static void test_many_payloads_in_one_write(void **state)
{
    (void)state;
    char root[] = "/tmp/test_wal_XXXXXX", command[64];
    struct disk *disk = NULL;
    struct wal *w = NULL;
    struct wal_recovery r;
    assert_non_null(mkdtemp(root));
    assert_int_equal(disk_real_open(root, &disk), ERR_OK);
    assert_int_equal(wal_open(disk, "wal", 0, 0, &w, &r), ERR_OK);
    wal_recovery_free(&r);
    mixed_append(w);
    wal_close(w);
    assert_int_equal(wal_open(disk, "wal", 0, 0, &w, &r), ERR_OK);
    assert_int_equal(r.entry_count, MIXED);
    for (uint32_t i = 0; i < MIXED; i++) {
        struct slice got = bytes_slice(r.entries[i].data);
        assert_int_equal(got.size, mixed_size(i));
        for (size_t at = 0; at < got.size; at++) {
            assert_int_equal(got.data[at], (uint8_t)i);
        }
    }
    wal_recovery_free(&r);
    wal_close(w);
    disk_real_close(disk);
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    log_set_level(LOG_LEVEL_OFF);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crash_at_every_operation),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_full_disk_votes_and_compacts),
        cmocka_unit_test(test_full_disk_long_writes),
        cmocka_unit_test(test_many_payloads_in_one_write),
        cmocka_unit_test(test_crash_while_recovering),
        cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_lost_sector_in_the_middle),
        cmocka_unit_test(test_missing_segment),
        cmocka_unit_test(test_compaction_deletes_segments),
        cmocka_unit_test(test_torn_leftovers_do_not_come_back),
        cmocka_unit_test(test_records_inside_an_entry),
        cmocka_unit_test(test_a_used_file_keeps_nothing),
        cmocka_unit_test(test_a_segment_begun_twice),
        cmocka_unit_test(test_a_reader_of_a_file_that_is_cut),
        cmocka_unit_test(test_a_spare_goes_when_space_is_short),
        cmocka_unit_test(test_shrinks_after_a_refusal),
        cmocka_unit_test(test_a_spare_that_is_gone),
        cmocka_unit_test(test_bytes_like_heads_cost_little),
        cmocka_unit_test(test_another_format_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
