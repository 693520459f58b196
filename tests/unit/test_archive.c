/* Backups as bytes: what was written is read, and nothing that was changed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "shardkv/archive.h"
#include "tests/lib/stream.h"

/* What comes behind the data, up to `end`, is zeros. */
static struct skv_record part(struct arena *a, uint16_t shard, uint64_t n,
                              uint64_t offset, uint64_t end, uint64_t length,
                              const char *data)
{
    uint8_t *key = arena_alloc(a, 10);
    set_be64(key, (uint64_t)shard << 48 | n);
    key[8] = 'c';
    key[9] = (uint8_t)n;
    return (struct skv_record){.key = slice_of(key, 10),
                               .offset = offset,
                               .span = end - offset,
                               .length = length,
                               .data = slice_text(data)};
}

static struct skv_record record(struct arena *a, uint16_t shard, uint64_t n,
                                uint64_t length, const char *data)
{
    return part(a, shard, n, 0, length, length, data);
}

/* Two shards; small values, a large one with a hole, an empty one. */
static void archive_make(struct buf *out)
{
    struct arena a = {0};
    struct skv_archive_writer w = {.write = to_buf, .arg = out};
    struct skv_archive_head head = {
        .id = 7, .wall_us = 8, .shard_count = 2, .config = slice_text("cfg")};
    struct skv_record first[] = {
        record(&a, 0, 1, 5, "small"),
        part(&a, 0, 2, 0, 500000, 1000000, "large"),
        part(&a, 0, 2, 500000, 1000000, 1000000, "more"),
        record(&a, 0, 3, 0, ""),
    };
    struct skv_record second[] = {record(&a, 1, 9, 6, "second")};
    skv_archive_begin(&w, &head);
    skv_archive_add(&w, &(struct skv_archive_data){
                            .shard = 0, .records = first, .records_count = 2});
    skv_archive_add(&w, &(struct skv_archive_data){.shard = 0,
                                                   .records = first + 2,
                                                   .records_count = 2});
    skv_archive_end_shard(&w, 0);
    skv_archive_add(&w, &(struct skv_archive_data){
                            .shard = 1, .records = second, .records_count = 1});
    skv_archive_end_shard(&w, 1);
    assert_int_equal(skv_archive_end(&w), ERR_OK);
    skv_archive_writer_fini(&w);
    arena_free(&a);
}

/* All of it; `text`: what was in it, or the problem. */
static enum err archive_read(struct slice bytes, size_t step_max,
                             struct buf *text, uint64_t *block)
{
    struct from_buf s = {.left = bytes, .step_max = step_max};
    struct skv_archive_reader r = {.read = from_buf, .arg = &s};
    struct skv_archive_item item = {0};
    enum err rc = ERR_OK;
    while (rc == ERR_OK && item.type != SKV_ARCHIVE_END) {
        rc = skv_archive_next(&r, &item);
        for (uint32_t i = 0; rc == ERR_OK && i < item.data.records_count; i++) {
            const struct skv_record *k = &item.data.records[i];
            char line[64];
            snprintf(line, sizeof line, "%u/%u@%llu of %llu:", item.data.shard,
                     k->key.data[9], (unsigned long long)k->offset,
                     (unsigned long long)k->length);
            buf_append(text, line, strlen(line));
            buf_append(text, k->data.data, k->data.size);
            enc_u8(text, '\n');
        }
    }
    if (rc != ERR_OK) {
        buf_clear(text);
        buf_append(text, r.problem, strlen(r.problem));
    }
    *block = r.block;
    skv_archive_reader_fini(&r);
    return rc;
}

static void assert_text(struct buf *text, const char *expected)
{
    enc_u8(text, 0);
    assert_string_equal((const char *)text->data, expected);
    buf_clear(text);
}

static void what_was_written_is_read(void **state)
{
    struct buf bytes = {0};
    struct buf text = {0};
    uint64_t block = 0;
    (void)state;
    archive_make(&bytes);
    for (size_t step = 1; step < 5000; step *= 17) {
        assert_int_equal(archive_read(buf_slice(&bytes), step, &text, &block),
                         ERR_OK);
        assert_text(&text, "0/1@0 of 5:small\n0/2@0 of 1000000:large\n"
                           "0/2@500000 of 1000000:more\n0/3@0 of 0:\n"
                           "1/9@0 of 6:second\n");
    }
    buf_free(&bytes);
    buf_free(&text);
}

/* Could be wrong: a bit that no checksum covers. */
static void every_flipped_bit_is_refused_where_it_is(void **state)
{
    struct buf bytes = {0};
    struct buf text = {0};
    (void)state;
    archive_make(&bytes);
    for (size_t bit = 0; bit < 8 * bytes.size; bit++) {
        uint64_t block = 0;
        bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_not_equal(
            archive_read(buf_slice(&bytes), 4096, &text, &block), ERR_OK);
        assert_true(block <= bit / 8);
        assert_true(text.size > 0);
        bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    buf_free(&bytes);
    buf_free(&text);
}

static void a_beginning_or_more_than_all_is_refused(void **state)
{
    struct buf bytes = {0};
    struct buf text = {0};
    uint64_t block = 0;
    (void)state;
    archive_make(&bytes);
    for (size_t size = 0; size < bytes.size; size++) {
        assert_int_equal(
            archive_read(slice_of(bytes.data, size), 4096, &text, &block),
            ERR_CORRUPT);
    }
    enc_u8(&bytes, 0);
    assert_int_equal(archive_read(buf_slice(&bytes), 4096, &text, &block),
                     ERR_CORRUPT);
    assert_memory_equal(text.data, "something follows its end", 25);
    buf_clear(&text);
    assert_int_equal(
        archive_read(slice_text("this is no backup, but it is long enough to "
                                "be one"),
                     4096, &text, &block),
        ERR_CORRUPT);
    assert_text(&text, "not a backup: no magic at offset 0");
    buf_free(&bytes);
    buf_free(&text);
}

/* Could be wrong: blocks that are good, each, but not in this place. */
static void blocks_out_of_their_order_are_refused(void **state)
{
    struct buf bytes = {0};
    struct buf text = {0};
    size_t starts[16];
    uint32_t count = 0;
    (void)state;
    archive_make(&bytes);
    for (size_t at = 0; at < bytes.size; count++) {
        starts[count] = at;
        at += 36 + get_u32(bytes.data + at + 24);
    }
    starts[count] = bytes.size;
    assert_int_equal(count, 7);
    for (uint32_t skip = 0; skip < count; skip++) {
        struct buf less = {0};
        uint64_t block = 0;
        buf_append(&less, bytes.data, starts[skip]);
        buf_append(&less, bytes.data + starts[skip + 1],
                   bytes.size - starts[skip + 1]);
        assert_int_equal(archive_read(buf_slice(&less), 4096, &text, &block),
                         ERR_CORRUPT);
        buf_free(&less);
    }
    buf_free(&bytes);
    buf_free(&text);
}

/* Could be wrong: records that checksums are good of, and no writer made. */
static void records_that_make_no_sense_are_refused(void **state)
{
    struct arena a = {0};
    struct skv_record bad[][2] = {
        {record(&a, 0, 2, 1, "b"), record(&a, 0, 1, 1, "a")},
        {record(&a, 0, 1, 1, "a"), record(&a, 0, 1, 1, "a")},
        {record(&a, 0, 1, 1, "a"), record(&a, 1, 2, 1, "a")},
        {record(&a, 0, 1, 1, "a"), part(&a, 0, 2, 9, 9000, 9000, "a")},
        {part(&a, 0, 1, 0, 5, 9000, "a"), part(&a, 0, 1, 5, 8000, 8000, "a")},
        {part(&a, 0, 1, 0, 5, 9000, "a"), part(&a, 0, 1, 6, 9000, 9000, "a")},
        {part(&a, 0, 1, 0, 5, 9000, "a"), part(&a, 0, 1, 4, 9000, 9000, "a")},
        {part(&a, 0, 1, 0, 5, 9000, "a"), part(&a, 0, 1, 5, 8999, 9000, "a")},
        {part(&a, 0, 1, 0, 5, 9000, "a"), record(&a, 0, 2, 1, "b")},
        {record(&a, 0, 0, 1, "a"), record(&a, 0, 1, 1, "a")},
        {part(&a, 0, 1, 0, 1, 9, "a"), record(&a, 0, 2, 1, "a")},
        {{.key = record(&a, 0, 1, 0, "").key, .gone = 1},
         record(&a, 0, 2, 1, "a")},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct buf bytes = {0};
        struct buf text = {0};
        uint64_t block = 0;
        struct skv_archive_writer w = {.write = to_buf, .arg = &bytes};
        skv_archive_begin(&w, &(struct skv_archive_head){.shard_count = 1});
        skv_archive_add(&w, &(struct skv_archive_data){.records = bad[i],
                                                       .records_count = 2});
        skv_archive_end_shard(&w, 0);
        assert_int_equal(skv_archive_end(&w), ERR_OK);
        skv_archive_writer_fini(&w);
        assert_int_equal(archive_read(buf_slice(&bytes), 4096, &text, &block),
                         ERR_CORRUPT);
        buf_free(&bytes);
        buf_free(&text);
    }
    arena_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(every_flipped_bit_is_refused_where_it_is),
        cmocka_unit_test(a_beginning_or_more_than_all_is_refused),
        cmocka_unit_test(blocks_out_of_their_order_are_refused),
        cmocka_unit_test(records_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
