/* The foundations: checksums, cursors, message tables, memory, numbers. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/rng.h"

/* Both implementations: the one without the instruction is static, and on this
 * machine nothing else would ever call it. */
#include "base/crc32c.c"

/* --- crc32c --- */

static const struct {
    uint8_t bytes[48];
    size_t size;
    uint32_t crc;
} vectors[] = {
    /* RFC 3720, appendix B.4: 32 bytes of zeros, of ones, 0..31, 31..0, and
     * an iSCSI read command. */
    {{0}, 32, 0x8a9136aa},
    {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
      0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
      0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
     32,
     0x62a8ab43},
    {{0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31},
     32,
     0x46dd794e},
    {{31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
      15, 14, 13, 12, 11, 10, 9,  8,  7,  6,  5,  4,  3,  2,  1,  0},
     32,
     0x113fdb5c},
    {{0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,    0, 0, 0, 0,
      0x14, 0,    0, 0, 0, 0, 4, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18,
      0x28, 0,    0, 0, 0, 0, 0, 0, 2, 0, 0, 0,    0, 0, 0, 0},
     48,
     0xd9963a56},
    {"123456789", 9, 0xe3069283},
    {{0}, 0, 0},
};

static void crc32c_gives_the_rfcs_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        struct slice data = slice_of(vectors[i].bytes, vectors[i].size);
        assert_int_equal(crc32c(0, data), vectors[i].crc);
        assert_int_equal(~crc_portable(~0u, data.data, data.size),
                         vectors[i].crc);
    }
}

/* All sizes and alignments around the steps of 4 and 8; and in two pieces. */
static void both_implementations_agree_however_it_is_cut(void **state)
{
    (void)state;
    uint8_t bytes[100];
    struct rng r = {.state = 1};
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)rng_next(&r);
    }
    for (size_t from = 0; from < 9; from++) {
        for (size_t size = 0; size + from <= sizeof bytes; size++) {
            const uint8_t *p = bytes + from;
            uint32_t whole = crc32c(0, slice_of(p, size));
            assert_int_equal(~crc_portable(~0u, p, size), whole);
            size_t cut = size / 3;
            uint32_t first = crc32c(0, slice_of(p, cut));
            assert_int_equal(crc32c(first, slice_of(p + cut, size - cut)),
                             whole);
        }
    }
}

/* Runs that are done three at a time, and what is left over behind them; in
 * pieces, as the log does it. */
static void a_long_run_has_the_same_sum_in_one_and_in_pieces(void **state)
{
    (void)state;
    enum { SIZE = 2 * 3 * 4096 + 2 * 3 * 256 + 100 };
    static uint8_t bytes[SIZE];
    struct rng r = {.state = 2};
    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] = (uint8_t)rng_next(&r);
    }
    for (size_t round = 0; round < 300; round++) {
        size_t from = rng_below(&r, 16);
        size_t size = rng_below(&r, SIZE - 16);
        size_t cut = rng_below(&r, (uint32_t)size + 1);
        const uint8_t *p = bytes + from;
        uint32_t whole = ~crc_portable(~0u, p, size);
        assert_int_equal(crc32c(0, slice_of(p, size)), whole);
        uint32_t first = crc32c(0, slice_of(p, cut));
        assert_int_equal(crc32c(first, slice_of(p + cut, size - cut)), whole);
    }
}

/* --- cursors --- */

static void what_is_encoded_is_decoded(void **state)
{
    (void)state;
    struct buf b = {0};
    enc_u8(&b, 0xfe);
    enc_u16(&b, 0xfedc);
    enc_u32(&b, 0xfedcba98);
    enc_u64(&b, 0xfedcba9876543210);
    enc_bytes(&b, slice_text("key"));
    enc_bytes(&b, slice_of(NULL, 0));
    static const uint8_t golden[] = {0xfe, 0xdc, 0xfe, 0x98, 0xba, 0xdc, 0xfe,
                                     0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc,
                                     0xfe, 3,    0,    0,    0,    'k',  'e',
                                     'y',  0,    0,    0,    0};
    assert_int_equal(b.size, sizeof golden);
    assert_memory_equal(b.data, golden, sizeof golden);

    struct dec d = dec_of(buf_slice(&b));
    assert_int_equal(dec_u8(&d), 0xfe);
    assert_int_equal(dec_u16(&d), 0xfedc);
    assert_int_equal(dec_u32(&d), 0xfedcba98);
    assert_int_equal(dec_done(&d), ERR_CORRUPT); /* something is left */
    assert_true(dec_u64(&d) == 0xfedcba9876543210);
    assert_int_equal(slice_compare(dec_bytes(&d), slice_text("key")), 0);
    assert_int_equal(dec_bytes(&d).size, 0);
    assert_int_equal(dec_done(&d), ERR_OK);
    buf_free(&b);
}

/* After the first read past the end everything is zero, also what would fit. */
static void a_cursor_remembers_the_first_failure(void **state)
{
    (void)state;
    static const uint8_t bytes[] = {1, 2, 3};
    struct dec d = dec_of(slice_of(bytes, sizeof bytes));
    assert_int_equal(dec_u32(&d), 0);
    assert_true(d.failed);
    assert_int_equal(dec_u8(&d), 0);
    assert_int_equal(dec_u16(&d), 0);
    assert_int_equal(dec_raw(&d, 0).size, 0);
    assert_int_equal(dec_left(&d), 0);
    assert_int_equal(dec_done(&d), ERR_CORRUPT);
}

/* A size that claims more than there is; the largest would wrap a pointer. */
static void a_size_that_lies_is_refused(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {5, 0x7fffffff, 0xffffffff};
    for (int i = 0; i < 3; i++) {
        uint8_t bytes[8] = {0};
        set_u32(bytes, sizes[i]);
        struct dec d = dec_of(slice_of(bytes, sizeof bytes));
        assert_null(dec_bytes(&d).data);
        assert_int_equal(dec_done(&d), ERR_CORRUPT);
    }
    struct dec none = dec_of(slice_of(NULL, 0));
    assert_int_equal(dec_done(&none), ERR_OK);
    assert_int_equal(dec_u8(&none), 0);
    assert_int_equal(dec_done(&none), ERR_CORRUPT);
}

static void big_endian_numbers_sort_as_bytes(void **state)
{
    (void)state;
    struct rng r = {.state = 2};
    for (int i = 0; i < 1000; i++) {
        uint64_t a = rng_next(&r) >> (rng_next(&r) % 64);
        uint64_t b = rng_next(&r) >> (rng_next(&r) % 64);
        uint8_t ka[8], kb[8];
        set_be64(ka, a);
        set_be64(kb, b);
        assert_true(get_be64(ka) == a);
        assert_true((memcmp(ka, kb, 8) < 0) == (a < b));
        set_be16(ka, (uint16_t)a);
        assert_int_equal(get_be16(ka), (uint16_t)a);
        set_u64(ka, a);
        assert_true(get_u64(ka) == a);
    }
}

/* --- message tables --- */

#define HOP_FIELDS(F)                                                          \
    F(U8, kind)                                                                \
    F(BYTES, name)
MSG_STRUCT(hop, HOP_FIELDS);
MSG_CODEC(hop, HOP_FIELDS)

#define TRIP_FIELDS(F)                                                         \
    F(U16, version)                                                            \
    F(U32, count)                                                              \
    F(U64, sent_us)                                                            \
    F(SUB, hop, first)                                                         \
    F(LIST, hop, hops, 3)                                                      \
    F(BYTES, note)
MSG_STRUCT(trip, TRIP_FIELDS);
MSG_CODEC(trip, TRIP_FIELDS)

#define NOTHING_FIELDS(F)
MSG_STRUCT(nothing, NOTHING_FIELDS);
MSG_CODEC(nothing, NOTHING_FIELDS)

static void trip_make(struct buf *b, uint32_t hops)
{
    struct hop list[4] = {{1, slice_text("one")},
                          {2, slice_text("")},
                          {3, slice_text("three")},
                          {4, slice_text("four")}};
    struct trip t = {.version = 7,
                     .count = 8,
                     .sent_us = 9,
                     .first = {5, slice_text("five")},
                     .hops = list,
                     .hops_count = hops,
                     .note = slice_text("end")};
    trip_encode(b, &t);
}

static void a_message_survives_the_way(void **state)
{
    (void)state;
    struct buf b = {0};
    struct arena a = {0};
    struct trip t;
    trip_make(&b, 3);
    assert_int_equal(trip_decode(buf_slice(&b), &a, &t), ERR_OK);
    assert_true(t.version == 7 && t.count == 8 && t.sent_us == 9);
    assert_int_equal(t.first.kind, 5);
    assert_int_equal(t.hops_count, 3);
    assert_int_equal(t.hops[2].kind, 3);
    assert_int_equal(slice_compare(t.hops[2].name, slice_text("three")), 0);
    assert_int_equal(slice_compare(t.note, slice_text("end")), 0);
    struct nothing n;
    assert_int_equal(nothing_decode(slice_of(NULL, 0), &a, &n), ERR_OK);
    assert_int_equal(nothing_decode(slice_text("x"), &a, &n), ERR_CORRUPT);
    arena_free(&a);
    buf_free(&b);
}

/* Cut anywhere, or longer by a byte, it is refused; AddressSanitizer watches
 * for reads past the end of the exact copy. */
static void a_message_of_another_size_is_refused(void **state)
{
    (void)state;
    struct buf b = {0};
    struct arena a = {0};
    struct trip t;
    trip_make(&b, 3);
    for (size_t size = 0; size < b.size; size++) {
        struct bytes *cut = bytes_copy(slice_of(b.data, size));
        assert_int_equal(trip_decode(bytes_slice(cut), &a, &t), ERR_CORRUPT);
        bytes_unref(cut);
    }
    enc_u8(&b, 0);
    assert_int_equal(trip_decode(buf_slice(&b), &a, &t), ERR_CORRUPT);
    arena_free(&a);
    buf_free(&b);
}

static void a_list_over_its_limit_is_refused(void **state)
{
    (void)state;
    struct buf b = {0};
    struct arena a = {0};
    struct trip t;
    trip_make(&b, 4);
    assert_int_equal(trip_decode(buf_slice(&b), &a, &t), ERR_CORRUPT);
    assert_int_equal(t.hops_count, 0);
    arena_free(&a);
    buf_free(&b);
}

/* Random bytes and random flips: no crash, no read outside. */
static void no_bytes_can_hurt_a_decoder(void **state)
{
    (void)state;
    struct rng r = {.state = 3};
    for (int i = 0; i < 20000; i++) {
        struct buf b = {0};
        struct arena a = {0};
        struct trip t;
        trip_make(&b, (uint32_t)rng_below(&r, 4));
        uint64_t flips = rng_between(&r, 1, 4);
        for (uint64_t f = 0; f < flips; f++) {
            b.data[rng_below(&r, b.size)] = (uint8_t)rng_next(&r);
        }
        struct bytes *exact =
            bytes_copy(slice_of(b.data, rng_between(&r, 0, b.size)));
        enum err rc = trip_decode(bytes_slice(exact), &a, &t);
        assert_true(rc == ERR_OK || rc == ERR_CORRUPT);
        bytes_unref(exact);
        arena_free(&a);
        buf_free(&b);
    }
}

/* --- memory --- */

static void an_arena_gives_aligned_zeroed_memory_of_any_size(void **state)
{
    (void)state;
    struct arena a = {0};
    static const size_t sizes[] = {1, 16, 17, 4000, 4096, 4097, 100000, 0, 3};
    uint8_t *blocks[9];
    for (int i = 0; i < 9; i++) {
        blocks[i] = arena_alloc(&a, sizes[i]);
        assert_int_equal((uintptr_t)blocks[i] % 16, 0);
        for (size_t at = 0; at < sizes[i]; at++) {
            assert_int_equal(blocks[i][at], 0);
        }
        memset(blocks[i], i + 1, sizes[i]);
    }
    for (int i = 0; i < 9; i++) {
        for (size_t at = 0; at < sizes[i]; at++) {
            assert_int_equal(blocks[i][at], i + 1);
        }
    }
    struct slice copy = arena_copy(&a, slice_text("copy"));
    assert_int_equal(slice_compare(copy, slice_text("copy")), 0);
    assert_int_equal(arena_copy(&a, slice_of(NULL, 0)).size, 0);
    arena_free(&a);
    /* Usable again, and malloc gives back what was written to above. */
    for (size_t size = 1; size < 5000; size += 7) {
        const uint8_t *block = arena_alloc(&a, size);
        for (size_t at = 0; at < size; at++) {
            assert_int_equal(block[at], 0);
        }
    }
    arena_free(&a);
}

static void a_buffer_grows_and_keeps_its_bytes(void **state)
{
    (void)state;
    struct buf b = {0};
    for (uint32_t i = 0; i < 10000; i++) {
        enc_u32(&b, i);
    }
    buf_append(&b, NULL, 0);
    assert_int_equal(b.size, 40000);
    for (uint32_t i = 0; i < 10000; i++) {
        assert_int_equal(get_u32(b.data + 4 * i), i);
    }
    buf_clear(&b);
    assert_int_equal(b.size, 0);
    assert_true(b.capacity >= 40000);
    buf_free(&b);
    buf_free(&b);
}

static void bytes_live_until_their_last_owner_goes(void **state)
{
    (void)state;
    struct bytes *b = bytes_copy(slice_text("shared"));
    assert_ptr_equal(bytes_ref(b), b);
    bytes_unref(b);
    assert_int_equal(slice_compare(bytes_slice(b), slice_text("shared")), 0);
    bytes_unref(b);
    assert_null(bytes_ref(NULL));
    bytes_unref(NULL);
    assert_int_equal(bytes_slice(NULL).size, 0);
}

static void slices_compare_as_unsigned_bytes(void **state)
{
    (void)state;
    assert_true(slice_compare(slice_text("a"), slice_text("b")) < 0);
    assert_true(slice_compare(slice_text("a"), slice_text("aa")) < 0);
    assert_true(slice_compare(slice_text("\x80"), slice_text("\x7f")) > 0);
    assert_true(slice_compare(slice_text(""), slice_of(NULL, 0)) == 0);
}

/* --- the rest --- */

/* The simulator's replays depend on these numbers never changing: splitmix64
 * from 1234567, as in the reference implementation. */
static void the_generator_gives_the_published_numbers(void **state)
{
    (void)state;
    struct rng r = {.state = 1234567};
    static const uint64_t published[] = {
        6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
        4593380528125082431u, 16408922859458223821u};
    for (int i = 0; i < 5; i++) {
        assert_true(rng_next(&r) == published[i]);
    }
}

static void random_numbers_stay_in_their_bounds(void **state)
{
    (void)state;
    struct rng r = {.state = 4};
    uint32_t seen[3] = {0}, yes = 0;
    for (int i = 0; i < 30000; i++) {
        uint64_t v = rng_between(&r, 5, 7);
        assert_true(v >= 5 && v <= 7);
        seen[v - 5]++;
        assert_int_equal(rng_below(&r, 1), 0);
        yes += rng_chance(&r, 250);
        assert_false(rng_chance(&r, 0));
        assert_true(rng_chance(&r, 1000));
    }
    assert_true(seen[0] > 9000 && seen[1] > 9000 && seen[2] > 9000);
    assert_true(yes > 7000 && yes < 8000);
    assert_true(rng_between(&r, 3, 3) == 3);
    assert_true(rng_entropy() != rng_entropy());
}

static void errors_keep_their_numbers_and_words(void **state)
{
    (void)state;
    assert_int_equal(err_from_wire(7), ERR_NOTLEADER);
    assert_int_equal(err_from_wire(0), ERR_OK);
    assert_int_equal(err_from_wire(31), ERR_CORRUPT);
    assert_int_equal(err_from_wire(0xffffffff), ERR_CORRUPT);
    assert_string_equal(err_name(ERR_DENIED), "ERR_DENIED");
    assert_non_null(err_text((enum err)999));
    assert_int_equal(err_posix(ERR_NOTFOUND), ENOENT);
    assert_int_equal(err_posix((enum err)999), EIO);
    assert_int_equal(err_from_errno(EEXIST), ERR_EXISTS);
    assert_int_equal(err_from_errno(EPIPE), ERR_IO);
}

static void a_broken_invariant_ends_the_process(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        assert_non_null(freopen("/dev/null", "w", stderr));
        CHECK(1 + 1 == 3);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_gives_the_rfcs_values),
        cmocka_unit_test(both_implementations_agree_however_it_is_cut),
        cmocka_unit_test(a_long_run_has_the_same_sum_in_one_and_in_pieces),
        cmocka_unit_test(what_is_encoded_is_decoded),
        cmocka_unit_test(a_cursor_remembers_the_first_failure),
        cmocka_unit_test(a_size_that_lies_is_refused),
        cmocka_unit_test(big_endian_numbers_sort_as_bytes),
        cmocka_unit_test(a_message_survives_the_way),
        cmocka_unit_test(a_message_of_another_size_is_refused),
        cmocka_unit_test(a_list_over_its_limit_is_refused),
        cmocka_unit_test(no_bytes_can_hurt_a_decoder),
        cmocka_unit_test(an_arena_gives_aligned_zeroed_memory_of_any_size),
        cmocka_unit_test(a_buffer_grows_and_keeps_its_bytes),
        cmocka_unit_test(bytes_live_until_their_last_owner_goes),
        cmocka_unit_test(slices_compare_as_unsigned_bytes),
        cmocka_unit_test(the_generator_gives_the_published_numbers),
        cmocka_unit_test(random_numbers_stay_in_their_bounds),
        cmocka_unit_test(errors_keep_their_numbers_and_words),
        cmocka_unit_test(a_broken_invariant_ends_the_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
