/* What may be asked of a shard, and what is refused. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/rng.h"
#include "shardkv/request.h"

enum { SHARD = 7 };

static uint8_t key_bytes[SKV_KEY_SIZE_MAX + 1];
static uint8_t large[SKV_DATA_SIZE_MAX + 1];

static struct slice key_in(uint16_t shard, uint64_t object, size_t size)
{
    set_be64(key_bytes, (uint64_t)shard << 48 | object);
    return slice_of(key_bytes, size);
}

static struct skv_item good_item(uint8_t kind)
{
    return (struct skv_item){.kind = kind, .key = key_in(SHARD, 5, 12)};
}

static struct skv_request request_of(struct skv_item *items, uint32_t count)
{
    return (struct skv_request){.session = 1,
                                .sequence = 2,
                                .first = 1,
                                .shard = SHARD,
                                .items = items,
                                .items_count = count};
}

static enum err check_one(struct skv_item item)
{
    struct skv_request request = request_of(&item, 1);
    return skv_request_check(&request);
}

/* Could be wrong: a kind that is missing in the switch, or in two sets. */
static void every_kind_is_of_one_sort_and_passes(void **state)
{
    (void)state;
    uint32_t known = 0;
    for (uint32_t kind = 0; kind < 256; kind++) {
        uint8_t k = (uint8_t)kind;
        int sorts =
            skv_kind_is_compare(k) + skv_kind_is_read(k) + skv_kind_is_write(k);
        assert_true(sorts <= 1);
        assert_int_equal(check_one(good_item(k)),
                         sorts == 1 ? ERR_OK : ERR_INVALID);
        known += sorts == 1;
    }
    assert_int_equal(known, 5 + 3 + 8);
}

/* Could be wrong: a client reaches object 0, or another shard. */
static void a_key_stays_in_its_shard_and_off_object_0(void **state)
{
    (void)state;
    struct skv_item item = good_item(SKV_GET);
    item.key = key_in(SHARD, 0, 12);
    assert_int_equal(check_one(item), ERR_INVALID);
    item.key = key_in(SHARD + 1, 5, 12);
    assert_int_equal(check_one(item), ERR_INVALID);
    item.key = key_in(SHARD, 5, 7);
    assert_int_equal(check_one(item), ERR_INVALID);
    item.key = key_in(SHARD, SKV_OBJECT_KV, SKV_KEY_SIZE_MAX);
    assert_int_equal(check_one(item), ERR_OK);
    item.key = key_in(SHARD, 5, SKV_KEY_SIZE_MAX + 1);
    assert_int_equal(check_one(item), ERR_TOOBIG);
}

/* Could be wrong: the eight bytes that come from via are not counted, or via
 * itself is not checked. */
static void an_indirect_key_is_checked_by_its_via(void **state)
{
    (void)state;
    struct skv_item item = good_item(SKV_GET);
    item.via = key_in(SHARD, 5, 12);
    item.key = slice_of(large, 0);
    assert_int_equal(check_one(item), ERR_OK);
    item.key = slice_of(large, SKV_KEY_SIZE_MAX - 8);
    assert_int_equal(check_one(item), ERR_OK);
    item.key = slice_of(large, SKV_KEY_SIZE_MAX - 7);
    assert_int_equal(check_one(item), ERR_TOOBIG);
    item.key = slice_of(large, 0);
    item.via = key_in(SHARD, 0, 12);
    assert_int_equal(check_one(item), ERR_INVALID);
    item.via = key_in(SHARD + 1, 5, 12);
    assert_int_equal(check_one(item), ERR_INVALID);
}

static void expect_sized(uint8_t kind, uint64_t offset, uint64_t number,
                         size_t data, enum err rc)
{
    struct skv_item item = good_item(kind);
    item.offset = offset;
    item.number = number;
    item.data = slice_of(large, data);
    assert_int_equal(check_one(item), rc);
}

/* Could be wrong: a sum that wraps around 2^64 and looks small. */
static void sizes_are_bounded_and_sums_do_not_wrap(void **state)
{
    (void)state;
    const uint64_t most = SKV_VALUE_SIZE_MAX;
    expect_sized(SKV_PUT_RANGE, most - 1, 0, 1, ERR_OK);
    expect_sized(SKV_PUT_RANGE, most, 0, 1, ERR_TOOBIG);
    expect_sized(SKV_PUT_RANGE, UINT64_MAX, 0, 1, ERR_TOOBIG);
    expect_sized(SKV_CMP_BYTES, UINT64_MAX - 1, 0, 4, ERR_TOOBIG);
    expect_sized(SKV_ADD, most - 8, UINT64_MAX, 0, ERR_OK);
    expect_sized(SKV_ADD, most - 7, 1, 0, ERR_TOOBIG);
    expect_sized(SKV_TRUNCATE, 0, most, 0, ERR_OK);
    expect_sized(SKV_TRUNCATE, 0, most + 1, 0, ERR_TOOBIG);
    expect_sized(SKV_PUNCH, most, UINT64_MAX, 0, ERR_TOOBIG);
    expect_sized(SKV_PUNCH, 1, most - 1, 0, ERR_OK);
    expect_sized(SKV_GET, UINT64_MAX, 1, 0, ERR_TOOBIG);
    expect_sized(SKV_GET, most, SKV_DATA_SIZE_MAX, 0, ERR_OK);
    expect_sized(SKV_GET, 0, SKV_DATA_SIZE_MAX + 1ull, 0, ERR_TOOBIG);
    expect_sized(SKV_PUT, 0, 0, SKV_DATA_SIZE_MAX, ERR_OK);
    expect_sized(SKV_PUT, 0, 0, SKV_DATA_SIZE_MAX + 1ull, ERR_TOOBIG);
    expect_sized(SKV_SCAN, SKV_DATA_SIZE_MAX, 65536, 388, ERR_OK);
    expect_sized(SKV_SCAN, 0, 65537, 0, ERR_TOOBIG);
    expect_sized(SKV_SCAN, 0, 1, 389, ERR_TOOBIG);
    expect_sized(SKV_SCAN, SKV_DATA_SIZE_MAX + 1ull, 1, 0, ERR_TOOBIG);
}

/* Could be wrong: each item is small, and all together are not. */
static void all_items_together_are_bounded(void **state)
{
    (void)state;
    struct skv_item items[3];
    for (int i = 0; i < 3; i++) {
        items[i] = good_item(SKV_PUT);
        items[i].data = slice_of(large, SKV_DATA_SIZE_MAX / 2);
    }
    struct skv_request request = request_of(items, 2);
    assert_int_equal(skv_request_check(&request), ERR_OK);
    request.items_count = 3;
    assert_int_equal(skv_request_check(&request), ERR_TOOBIG);
    for (int i = 0; i < 3; i++) {
        items[i] = good_item(SKV_SCAN); /* 1 MiB each by default */
    }
    request.items_count = 2;
    assert_int_equal(skv_request_check(&request), ERR_OK);
    request.items_count = 3;
    assert_int_equal(skv_request_check(&request), ERR_TOOBIG);
}

/* Could be wrong: a write without a name, which a retry would do twice. */
static void whatever_changes_a_shard_has_a_name(void **state)
{
    (void)state;
    struct skv_item item = good_item(SKV_PUT);
    struct skv_request request = request_of(&item, 1);
    request.session = 0;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    item.kind = SKV_GET;
    assert_int_equal(skv_request_check(&request), ERR_OK);
    request.items_count = 0;
    request.phase = SKV_RESOLVE;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    request.session = 9;
    request.first = 0;
    assert_int_equal(skv_request_check(&request), ERR_OK);
    request.sequence = 0;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    request.sequence = 3;
    request.first = 4;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    request.first = 3;
    request.phase = SKV_RESOLVE + 1;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    request.phase = SKV_EXECUTE;
    request.flags = 4;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
}

static void a_prepare_names_each_participant_once(void **state)
{
    (void)state;
    struct skv_item item = good_item(SKV_PUT);
    struct skv_request request = request_of(&item, 1);
    struct skv_shard_ref shards[] = {{3}, {SHARD}, {9}, {3}};
    request.phase = SKV_PREPARE;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    request.participants = shards;
    request.participants_count = 1; /* without itself */
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
    request.participants_count = 3;
    assert_int_equal(skv_request_check(&request), ERR_OK);
    request.participants_count = 4;
    assert_int_equal(skv_request_check(&request), ERR_INVALID);
}

static struct buf encoded_example(void)
{
    struct skv_item items[2] = {good_item(SKV_PUT), good_item(SKV_SCAN)};
    items[0].data = slice_text("value");
    items[1].via = key_in(SHARD, 5, 12);
    struct skv_shard_ref shards[] = {{SHARD}, {9}};
    struct skv_request request = request_of(items, 2);
    request.phase = SKV_PREPARE;
    request.participants = shards;
    request.participants_count = 2;
    struct buf b = {0};
    skv_request_encode(&b, &request);
    return b;
}

/* Could be wrong: fields in another order on one of the sides. */
static void a_request_survives_the_wire(void **state)
{
    (void)state;
    struct buf b = encoded_example();
    struct arena arena = {0};
    struct skv_request back;
    assert_int_equal(skv_request_decode(buf_slice(&b), &arena, &back), ERR_OK);
    assert_int_equal(skv_request_check(&back), ERR_OK);
    assert_int_equal(back.participants[1].shard, 9);
    assert_int_equal(back.items[0].data.size, 5);
    struct buf again = {0};
    skv_request_encode(&again, &back);
    assert_int_equal(again.size, b.size);
    assert_memory_equal(again.data, b.data, b.size);
    arena_free(&arena);
    buf_free(&again);
    buf_free(&b);
}

/* Could be wrong: a decoder or the check reads outside (the sanitizer says so),
 * or a request cut short is taken. */
static void damaged_requests_are_refused_or_harmless(void **state)
{
    (void)state;
    struct buf good = encoded_example();
    struct rng r = {.state = 3};
    for (uint32_t i = 0; i < 20000; i++) {
        size_t size = i < good.size ? i : good.size;
        uint8_t *copy = mem_alloc(size); /* exact, so that overreads show */
        memcpy(copy, good.data, size);
        if (size == good.size) {
            copy[rng_below(&r, size)] = (uint8_t)rng_next(&r);
            copy[rng_below(&r, size)] = (uint8_t)rng_next(&r);
        }
        struct arena arena = {0};
        struct skv_request back;
        enum err rc = skv_request_decode(slice_of(copy, size), &arena, &back);
        assert_true(rc == ERR_CORRUPT || size == good.size);
        if (rc == ERR_OK) {
            rc = skv_request_check(&back);
            assert_true(rc == ERR_OK || rc == ERR_INVALID || rc == ERR_TOOBIG);
        }
        arena_free(&arena);
        mem_free(copy);
    }
    buf_free(&good);
}

/* The hash is a format: keys of today must be found tomorrow. */
static void a_name_has_its_key_for_ever(void **state)
{
    (void)state;
    struct buf key = {0};
    skv_key_of_name(&key, slice_text("123456789"), 128);
    /* CRC-32C of it is e3069283 (RFC 3720's check value), 0x83 % 128 = 3. */
    assert_int_equal(key.size, 8 + 9);
    assert_memory_equal(key.data,
                        "\0\3\xff\xff\xff\xff\xff\xff"
                        "123456789",
                        17);
    struct skv_item item = {.kind = SKV_GET, .key = buf_slice(&key)};
    struct skv_request request = request_of(&item, 1);
    request.shard = 3;
    assert_int_equal(skv_request_check(&request), ERR_OK);
    buf_free(&key);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_is_of_one_sort_and_passes),
        cmocka_unit_test(a_key_stays_in_its_shard_and_off_object_0),
        cmocka_unit_test(an_indirect_key_is_checked_by_its_via),
        cmocka_unit_test(sizes_are_bounded_and_sums_do_not_wrap),
        cmocka_unit_test(all_items_together_are_bounded),
        cmocka_unit_test(whatever_changes_a_shard_has_a_name),
        cmocka_unit_test(a_prepare_names_each_participant_once),
        cmocka_unit_test(a_request_survives_the_wire),
        cmocka_unit_test(damaged_requests_are_refused_or_harmless),
        cmocka_unit_test(a_name_has_its_key_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
