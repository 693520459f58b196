/* The snapshot stream: what goes in comes out, and any other bytes are
 * refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "raft/storage/snapfile.h"

struct buf_sink {
    struct snap_sink sink;
    struct buf bytes;
    size_t size_max; /* fails when it would be passed */
};

static enum err sink_write(struct snap_sink *sink, struct slice bytes)
{
    struct buf_sink *s = (struct buf_sink *)sink;
    if (s->size_max != 0 && s->bytes.size + bytes.size > s->size_max) {
        return ERR_NOSPACE;
    }
    buf_append(&s->bytes, bytes.data, bytes.size);
    return ERR_OK;
}

struct slice_source {
    struct snap_source source;
    struct slice left;
    size_t step; /* at most so much at once */
};

static enum err source_read(struct snap_source *source, void *to,
                            size_t size_max, size_t *size)
{
    struct slice_source *s = (struct slice_source *)source;
    size_t n = s->left.size < size_max ? s->left.size : size_max;
    n = n < s->step ? n : s->step;
    if (n > 0) {
        memcpy(to, s->left.data, n);
    }
    s->left = slice_of(s->left.data + n, s->left.size - n);
    *size = n;
    return ERR_OK;
}

static const struct snap_label label = {
    .index = 77, .term = 5, .conf = {.voters = {3, 1, 2}, .voter_count = 3}};

static struct buf make_stream(struct slice plain)
{
    struct buf_sink out = {.sink.write = sink_write};
    struct snap_writer *w = snap_writer_new(&out.sink, &label);
    struct snap_sink *sink = snap_writer_sink(w);
    /* In pieces of many sizes. */
    for (size_t at = 0, step = 1; at < plain.size; step = step * 3 + 1) {
        size_t n = plain.size - at < step ? plain.size - at : step;
        assert_int_equal(sink->write(sink, slice_of(plain.data + at, n)),
                         ERR_OK);
        at += n;
    }
    assert_int_equal(snap_writer_finish(w), ERR_OK);
    snap_writer_free(w);
    return out.bytes;
}

static enum err read_stream(struct slice stream, size_t step, struct buf *plain)
{
    struct slice_source in = {
        .source.read = source_read, .left = stream, .step = step};
    struct snap_label got;
    struct snap_reader *r = NULL;
    enum err rc = snap_reader_new(&in.source, &got, &r);
    if (rc != ERR_OK) {
        return rc;
    }
    assert_int_equal(got.index, label.index);
    assert_int_equal(got.term, label.term);
    assert_int_equal(got.conf.voter_count, 3);
    assert_int_equal(got.conf.voters[0], 3);
    struct snap_source *source = snap_reader_source(r);
    uint8_t piece[1000];
    size_t n = 1;
    while (rc == ERR_OK && n > 0) {
        rc = source->read(source, piece, sizeof piece, &n);
        if (rc == ERR_OK) {
            buf_append(plain, piece, n);
        }
    }
    snap_reader_free(r);
    return rc;
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
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct buf plain = some_bytes(sizes[i]);
        struct buf stream = make_stream(buf_slice(&plain));
        for (size_t step = 7; step < 1 << 20; step *= 73) {
            struct buf got = {0};
            assert_int_equal(read_stream(buf_slice(&stream), step, &got),
                             ERR_OK);
            assert_int_equal(slice_compare(buf_slice(&got), buf_slice(&plain)),
                             0);
            buf_free(&got);
        }
        buf_free(&stream);
        buf_free(&plain);
    }
}

static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    struct buf plain = some_bytes(4000);
    struct buf stream = make_stream(buf_slice(&plain));
    for (size_t size = 0; size < stream.size; size++) {
        struct buf got = {0};
        assert_int_equal(read_stream(slice_of(stream.data, size), 4096, &got),
                         ERR_CORRUPT);
        buf_free(&got);
    }
    *buf_extend(&stream, 1) = 0; /* and one byte too many */
    struct buf got = {0};
    assert_int_equal(read_stream(buf_slice(&stream), 4096, &got), ERR_CORRUPT);
    buf_free(&got);
    buf_free(&stream);
    buf_free(&plain);
}

static void test_every_flipped_bit_is_refused(void **state)
{
    (void)state;
    struct buf plain = some_bytes(3000);
    struct buf stream = make_stream(buf_slice(&plain));
    for (size_t at = 0; at < stream.size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            stream.data[at] ^= (uint8_t)(1 << bit);
            struct buf got = {0};
            enum err rc = read_stream(buf_slice(&stream), 4096, &got);
            assert_true(rc == ERR_CORRUPT || rc == ERR_VERSION);
            buf_free(&got);
            stream.data[at] ^= (uint8_t)(1 << bit);
        }
    }
    buf_free(&stream);
    buf_free(&plain);
}

static void test_a_full_sink_stops_the_writer(void **state)
{
    (void)state;
    struct buf plain = some_bytes(1 << 20);
    struct buf_sink out = {.sink.write = sink_write, .size_max = 1000};
    struct snap_writer *w = snap_writer_new(&out.sink, &label);
    struct snap_sink *sink = snap_writer_sink(w);
    assert_int_equal(sink->write(sink, buf_slice(&plain)), ERR_NOSPACE);
    assert_int_equal(sink->write(sink, buf_slice(&plain)), ERR_NOSPACE);
    assert_int_equal(snap_writer_finish(w), ERR_NOSPACE);
    snap_writer_free(w);
    buf_free(&out.bytes);
    buf_free(&plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_every_flipped_bit_is_refused),
        cmocka_unit_test(test_a_full_sink_stops_the_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
