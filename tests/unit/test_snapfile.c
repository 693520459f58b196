/* Pieces of a snapshot: what goes in comes out, other bytes are refused, and a
 * small change of the state changes few pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "raft/storage/snapfile.h"

enum { PIECES_MAX = 4000 };

struct pieces {
    struct snap_id ids[PIECES_MAX];
    struct buf packed[PIECES_MAX];
    uint32_t count;
    uint32_t count_max; /* fails when it would be passed */
};

static enum err keep(void *arg, const struct snap_id *id, struct slice packed)
{
    struct pieces *p = arg;
    if (p->count == p->count_max) {
        return ERR_NOSPACE;
    }
    p->ids[p->count] = *id;
    buf_append(&p->packed[p->count++], packed.data, packed.size);
    return ERR_OK;
}

static struct pieces *pieces_new(void)
{
    struct pieces *p = mem_alloc(sizeof *p);
    p->count_max = PIECES_MAX;
    return p;
}

static void pieces_free(struct pieces *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        buf_free(&p->packed[i]);
    }
    mem_free(p);
}

/* In writes of many sizes. */
static struct pieces *cut(struct slice plain, size_t piece_size)
{
    struct pieces *p = pieces_new();
    struct snap_cutter *c = snap_cutter_new(piece_size, keep, p);
    struct snap_sink *sink = snap_cutter_sink(c);
    for (size_t at = 0, step = 1; at < plain.size; step = step * 3 % 70001) {
        size_t n = plain.size - at < step ? plain.size - at : step;
        assert_int_equal(sink->write(sink, slice_of(plain.data + at, n)),
                         ERR_OK);
        at += n;
    }
    assert_int_equal(snap_cutter_finish(c), ERR_OK);
    snap_cutter_free(c);
    return p;
}

/* Half of it compresses and half does not. */
static struct buf some_bytes(size_t size)
{
    struct buf b = {0};
    struct rng rng = {size};
    uint8_t *p = buf_extend(&b, size);
    for (size_t i = 0; i < size; i++) {
        p[i] = i % 2000 < 1000 ? (uint8_t)'x' : (uint8_t)rng_next(&rng);
    }
    return b;
}

static void test_round_trip(void **state)
{
    (void)state;
    size_t sizes[] = {0, 1, 999, 5000, 300000, 3 << 20};
    struct snap_unpacker *u = snap_unpacker_new();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct buf plain = some_bytes(sizes[i]);
        struct pieces *p = cut(buf_slice(&plain), i % 2 == 0 ? 0 : 4096);
        struct buf got = {0};
        for (uint32_t k = 0; k < p->count; k++) {
            struct slice part;
            assert_int_equal(
                snap_unpack(u, &p->ids[k], buf_slice(&p->packed[k]), &part),
                ERR_OK);
            buf_append(&got, part.data, part.size);
        }
        assert_int_equal(slice_compare(buf_slice(&got), buf_slice(&plain)), 0);
        buf_free(&got);
        buf_free(&plain);
        pieces_free(p);
    }
    snap_unpacker_free(u);
}

/* Sizes are what the header promises; bytes that never end a piece by
 * themselves are cut too. */
static void test_sizes_of_pieces(void **state)
{
    (void)state;
    struct buf plain = {0};
    struct snap_unpacker *u = snap_unpacker_new();
    struct rng rng = {7};
    for (uint32_t i = 0; i < 2 << 20; i++) {
        uint8_t byte = i < 1 << 20 ? (uint8_t)rng_next(&rng) : 0;
        buf_append(&plain, &byte, 1);
    }
    struct pieces *p = cut(buf_slice(&plain), 4096);
    assert_in_range(p->count, 150, 400);
    for (uint32_t i = 0; i < p->count; i++) {
        struct slice part;
        assert_int_equal(
            snap_unpack(u, &p->ids[i], buf_slice(&p->packed[i]), &part),
            ERR_OK);
        assert_true(part.size <= 4 * 4096);
        assert_true(part.size >= 1024 || i + 1 == p->count);
    }
    snap_unpacker_free(u);
    pieces_free(p);
    buf_free(&plain);
}

static uint32_t count_new(const struct pieces *before, const struct pieces *now)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < now->count; i++) {
        bool known = false;
        for (uint32_t k = 0; k < before->count && !known; k++) {
            known = memcmp(&before->ids[k], &now->ids[i], SNAP_ID_SIZE) == 0;
        }
        count += !known;
    }
    return count;
}

static void test_a_small_change_changes_few_pieces(void **state)
{
    (void)state;
    struct buf plain = some_bytes(2 << 20);
    struct pieces *before = cut(buf_slice(&plain), 4096);
    for (uint32_t i = 0; i < 8; i++) { /* an insertion, here and there */
        uint8_t more[37] = {(uint8_t)i};
        size_t at = (i * 257u << 10) % plain.size;
        buf_extend(&plain, sizeof more);
        memmove(plain.data + at + sizeof more, plain.data + at,
                plain.size - at - sizeof more);
        memcpy(plain.data + at, more, sizeof more);
    }
    struct pieces *now = cut(buf_slice(&plain), 4096);
    assert_true(now->count > 200);
    assert_in_range(count_new(before, now), 8, 40);
    pieces_free(before);
    pieces_free(now);
    buf_free(&plain);
}

/* What comes out is what the name says, or nothing does. */
static void test_damage_of_a_piece_is_refused(void **state)
{
    (void)state;
    struct buf plain = some_bytes(3000);
    struct pieces *p = cut(buf_slice(&plain), 0);
    struct snap_unpacker *u = snap_unpacker_new();
    struct buf *packed = &p->packed[0];
    struct slice part;
    uint32_t refused = 0;
    assert_int_equal(p->count, 1);
    for (size_t at = 0; at < packed->size; at++) {
        assert_int_equal(
            snap_unpack(u, &p->ids[0], slice_of(packed->data, at), &part),
            ERR_CORRUPT);
        for (int bit = 0; bit < 8; bit++) {
            packed->data[at] ^= (uint8_t)(1 << bit);
            enum err rc = snap_unpack(u, &p->ids[0], buf_slice(packed), &part);
            refused += rc == ERR_CORRUPT;
            assert_true(rc == ERR_CORRUPT ||
                        slice_compare(part, buf_slice(&plain)) == 0);
            packed->data[at] ^= (uint8_t)(1 << bit);
        }
    }
    assert_true(refused > packed->size * 8 - 10); /* zstd has unused bits */
    p->ids[0].bytes[31] ^= 1;
    assert_int_equal(snap_unpack(u, &p->ids[0], buf_slice(packed), &part),
                     ERR_CORRUPT);
    snap_unpacker_free(u);
    pieces_free(p);
    buf_free(&plain);
}

static void test_damage_of_a_manifest_is_refused(void **state)
{
    (void)state;
    struct snap_id ids[3] = {{{1}}, {{2}}, {{3}}};
    struct snap_manifest m = {
        .label = {.index = 77,
                  .term = 5,
                  .conf = {.voters = {3, 1, 2}, .voter_count = 3}},
        .ids = ids,
        .count = 3,
    };
    struct buf b = {0};
    struct snap_manifest got;
    snap_manifest_encode(&b, &m);
    assert_int_equal(snap_manifest_decode(buf_slice(&b), &got), ERR_OK);
    assert_int_equal(got.label.index, 77);
    assert_int_equal(got.label.term, 5);
    assert_int_equal(got.label.conf.voter_count, 3);
    assert_int_equal(got.label.conf.voters[0], 3);
    assert_int_equal(got.count, 3);
    assert_memory_equal(got.ids, ids, sizeof ids);
    for (size_t at = 0; at < b.size; at++) {
        assert_int_equal(snap_manifest_decode(slice_of(b.data, at), &got),
                         ERR_CORRUPT);
        for (int bit = 0; bit < 8; bit++) {
            b.data[at] ^= (uint8_t)(1 << bit);
            enum err rc = snap_manifest_decode(buf_slice(&b), &got);
            assert_true(rc == ERR_CORRUPT || rc == ERR_VERSION);
            b.data[at] ^= (uint8_t)(1 << bit);
        }
    }
    buf_free(&b);
}

static void test_a_full_disk_stops_the_cutter(void **state)
{
    (void)state;
    struct buf plain = some_bytes(1 << 20);
    struct pieces *p = pieces_new();
    p->count_max = 2;
    struct snap_cutter *c = snap_cutter_new(4096, keep, p);
    struct snap_sink *sink = snap_cutter_sink(c);
    assert_int_equal(sink->write(sink, buf_slice(&plain)), ERR_NOSPACE);
    assert_int_equal(sink->write(sink, buf_slice(&plain)), ERR_NOSPACE);
    assert_int_equal(snap_cutter_finish(c), ERR_NOSPACE);
    snap_cutter_free(c);
    pieces_free(p);
    buf_free(&plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_sizes_of_pieces),
        cmocka_unit_test(test_a_small_change_changes_few_pieces),
        cmocka_unit_test(test_damage_of_a_piece_is_refused),
        cmocka_unit_test(test_damage_of_a_manifest_is_refused),
        cmocka_unit_test(test_a_full_disk_stops_the_cutter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
