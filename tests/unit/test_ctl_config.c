/* Configurations and the rebalancing, exhaustively where that is possible. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/rng.h"
#include "shardctrler/client.h"

static struct ctl_server servers[2];

static struct ctl_group group_of(ctl_gid gid)
{
    servers[0] =
        (struct ctl_server){.id = 1, .address = slice_text("127.0.0.1:1")};
    servers[1] =
        (struct ctl_server){.id = 2, .address = slice_text("127.0.0.1:2")};
    return (struct ctl_group){
        .gid = gid, .servers = servers, .servers_count = 2};
}

static struct ctl_config empty(struct arena *a, uint32_t shards)
{
    return (struct ctl_config){
        .shards = arena_array(a, shards, sizeof(struct ctl_owner)),
        .shards_count = shards,
        .groups = arena_array(a, 1, sizeof(struct ctl_group)),
    };
}

static uint32_t spread(const struct ctl_config *c)
{
    uint32_t low = UINT32_MAX;
    uint32_t high = 0;
    for (uint32_t g = 0; g < c->groups_count; g++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < c->shards_count; i++) {
            n += c->shards[i].gid == c->groups[g].gid;
        }
        low = n < low ? n : low;
        high = n > high ? n : high;
    }
    return high - low;
}

static uint32_t moves(const struct ctl_config *a, const struct ctl_config *b)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->shards_count; i++) {
        n += a->shards[i].gid != b->shards[i].gid;
    }
    return n;
}

/* The k-th of all assignments of shards to gids 0..base-1. */
static void assign(struct ctl_config *c, uint32_t k, uint32_t base)
{
    for (uint32_t i = 0; i < c->shards_count; i++) {
        c->shards[i].gid = k % base;
        k /= base;
    }
}

static uint32_t power(uint32_t base, uint32_t n)
{
    uint32_t product = 1;
    while (n-- > 0) {
        product *= base;
    }
    return product;
}

/* Each count is the exact share, rounded up or down. */
static bool is_even(const struct ctl_config *c)
{
    uint32_t all = 0, placed = 0;
    for (uint32_t g = 0; g < c->groups_count; g++) {
        all += ctl_config_weight(c, c->groups[g].gid);
    }
    for (uint32_t g = 0; g < c->groups_count; g++) {
        uint32_t n = 0;
        ctl_gid gid = c->groups[g].gid;
        for (uint32_t i = 0; i < c->shards_count; i++) {
            n += c->shards[i].gid == gid;
        }
        uint32_t parts = c->shards_count * ctl_config_weight(c, gid);
        if (n < parts / all || n > (parts + all - 1) / all) {
            return false;
        }
        placed += n;
    }
    return placed == c->shards_count;
}

/* The least moves to any even assignment, by trying all. */
static uint32_t best_moves(struct arena *a, const struct ctl_config *from)
{
    struct ctl_config to;
    ctl_config_copy(a, from, &to);
    uint32_t best = UINT32_MAX;
    uint32_t base = from->groups_count + 1;
    for (uint32_t k = 0; k < power(base, from->shards_count); k++) {
        assign(&to, k, base);
        if (is_even(&to) && moves(from, &to) < best) {
            best = moves(from, &to);
        }
    }
    return best;
}

static void check_all_assignments(uint32_t groups, uint32_t shards,
                                  struct ctl_weight *weights, uint32_t weighed)
{
    uint32_t base = groups + 2; /* the last gid stands for one that left */
    for (uint32_t k = 0; k < power(base, shards); k++) {
        struct arena a = {0};
        struct ctl_config c = empty(&a, shards);
        c.groups = arena_array(&a, groups, sizeof *c.groups);
        c.groups_count = groups;
        for (uint32_t g = 0; g < groups; g++) {
            c.groups[g] = group_of(g + 1);
        }
        c.weights = weights;
        c.weights_count = weighed;
        assign(&c, k, base);
        struct ctl_config before;
        ctl_config_copy(&a, &c, &before);
        ctl_config_rebalance(&c);
        assert_true(is_even(&c));
        assert_int_equal(moves(&before, &c), best_moves(&a, &before));
        arena_free(&a);
    }
}

/* Wrong if the full targets went to other groups than the fullest, or if a
 * shard moved that could have stayed. */
static void rebalance_is_the_best_of_all_even_ones(void **state)
{
    (void)state;
    for (uint32_t shards = 1; shards <= 6; shards++) {
        check_all_assignments(1, shards, NULL, 0);
        check_all_assignments(2, shards, NULL, 0);
    }
    for (uint32_t shards = 1; shards <= 4; shards++) {
        check_all_assignments(3, shards, NULL, 0);
    }
    check_all_assignments(4, 3, NULL, 0);
}

/* Wrong if a full target went to a group that has no remainder, or whose shards
 * do not reach it although another's do. */
static void with_weights_too(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < 16; k++) {
        struct ctl_weight w[2] = {{1, 2 + k % 4}, {2, 2 + k / 4}};
        for (uint32_t shards = 1; shards <= 5; shards++) {
            check_all_assignments(2, shards, w, 2);
            check_all_assignments(2, shards, &w[1], 1);
        }
        check_all_assignments(3, 3, w, 2);
        check_all_assignments(3, 4, &w[k % 2], 1);
    }
}

/* Wrong if a weight outlives its group, spreads nothing, or is stored as what
 * every group has anyway. */
static void a_weight_spreads_anew_and_goes_with_its_group(void **state)
{
    (void)state;
    struct arena a = {0};
    struct ctl_config c0 = empty(&a, 128);
    struct ctl_config c1, c2, c3, c4, c5;
    struct ctl_group two[2] = {group_of(1), group_of(7)};
    ctl_gid seven = 7;
    assert_int_equal(ctl_config_join(&a, &c0, two, 2, &c1), ERR_OK);
    assert_int_equal(ctl_config_reweigh(&a, &c1, 7, 3, &c2), ERR_OK);
    assert_int_equal(c2.number, c1.number + 1);
    assert_int_equal(moves(&c1, &c2), 32);
    assert_true(is_even(&c2));
    assert_int_equal(ctl_config_check(&c2), ERR_OK);
    assert_int_equal(ctl_config_reweigh(&a, &c2, 7, 1, &c3), ERR_OK);
    assert_int_equal(c3.weights_count, 0);
    assert_int_equal(moves(&c2, &c3), 32);
    assert_int_equal(ctl_config_reweigh(&a, &c2, 1, 2, &c3), ERR_OK);
    assert_int_equal(c3.weights[0].gid, 1);
    assert_int_equal(ctl_config_check(&c3), ERR_OK);
    assert_int_equal(ctl_config_leave(&a, &c3, &seven, 1, &c4), ERR_OK);
    assert_int_equal(ctl_config_check(&c4), ERR_OK);
    assert_int_equal(ctl_config_join(&a, &c4, &two[1], 1, &c5), ERR_OK);
    assert_int_equal(ctl_config_weight(&c5, 7), 1);
    assert_int_equal(ctl_config_weight(&c5, 1), 2);
    assert_int_equal(ctl_config_reweigh(&a, &c2, 7, 0, &c3), ERR_INVALID);
    assert_int_equal(ctl_config_reweigh(&a, &c2, 7, 1001, &c3), ERR_INVALID);
    assert_int_equal(ctl_config_reweigh(&a, &c2, 5, 2, &c3), ERR_NOTFOUND);
    c2.weights[0].weight = 1;
    assert_int_equal(ctl_config_check(&c2), ERR_CORRUPT);
    arena_free(&a);
}

static void a_rate_stands_until_the_next(void **state)
{
    (void)state;
    struct arena a = {0};
    struct ctl_config c0 = empty(&a, 8);
    struct ctl_config c1, c2, c3;
    struct ctl_group g = group_of(1);
    assert_int_equal(ctl_config_limit(&a, &c0, 50 << 20, &c1), ERR_OK);
    assert_int_equal(ctl_config_join(&a, &c1, &g, 1, &c2), ERR_OK);
    assert_int_equal(c2.move_rate, 50 << 20);
    assert_int_equal(ctl_config_check(&c2), ERR_OK);
    assert_int_equal(ctl_config_limit(&a, &c2, 0, &c3), ERR_OK);
    assert_int_equal(c3.move_rate, 0);
    assert_int_equal(c3.number, 3);
    assert_int_equal(moves(&c2, &c3), 0);
    assert_int_equal(ctl_config_limit(&a, &c2, 5, &c3), ERR_INVALID);
    c2.move_rate = 5;
    assert_int_equal(ctl_config_check(&c2), ERR_CORRUPT);
    arena_free(&a);
}

static enum err walk_step(struct rng *r, const struct ctl_config *c,
                          struct arena *to, struct ctl_config *next)
{
    ctl_gid gid = (ctl_gid)rng_between(r, 1, 40);
    bool there = ctl_config_group(c, gid) != NULL;
    struct ctl_group g = group_of(gid);
    if (rng_chance(r, 200)) {
        uint32_t weight = (uint32_t)rng_between(r, 1, 5);
        enum err rc = ctl_config_reweigh(to, c, gid, weight, next);
        assert_int_equal(rc, there ? ERR_OK : ERR_NOTFOUND);
        return rc;
    }
    if (rng_chance(r, 500)) {
        enum err rc = ctl_config_join(to, c, &g, 1, next);
        assert_int_equal(rc, there ? ERR_EXISTS : ERR_OK);
        return rc;
    }
    enum err rc = ctl_config_leave(to, c, &gid, 1, next);
    enum err last = c->groups_count == 1 ? ERR_INVALID : ERR_OK;
    assert_int_equal(rc, there ? last : ERR_NOTFOUND);
    return rc;
}

/* Wrong if any sequence of changes left groups unsorted or shards uneven. */
static void a_long_random_walk_keeps_every_rule(void **state)
{
    (void)state;
    struct rng r = {.state = 7};
    struct arena a[2] = {{0}, {0}};
    struct ctl_config c = empty(&a[0], CTL_SHARDS_DEFAULT);
    for (uint32_t step = 0; step < 2000; step++) {
        struct arena *to = &a[(step + 1) % 2];
        struct ctl_config next;
        arena_free(to);
        if (walk_step(&r, &c, to, &next) != ERR_OK) {
            ctl_config_copy(to, &c, &next);
        } else {
            assert_int_equal(next.number, c.number + 1);
            assert_true(is_even(&next));
            assert_int_equal(ctl_config_check(&next), ERR_OK);
        }
        for (uint32_t i = 1; i < next.groups_count; i++) {
            assert_true(next.groups[i - 1].gid < next.groups[i].gid);
        }
        c = next;
    }
    arena_free(&a[0]);
    arena_free(&a[1]);
}

/* Wrong if a second move put the first shard back for evenness' sake. */
/* Wrong if a group's new servers move a shard, or are lost in the history. */
static void a_groups_servers_change_and_no_shard_moves(void **state)
{
    (void)state;
    struct arena a = {0};
    struct ctl_config c0 = empty(&a, 8);
    struct ctl_config c1, c2;
    struct ctl_group two[2] = {group_of(9), group_of(4)};
    assert_int_equal(ctl_config_join(&a, &c0, two, 2, &c1), ERR_OK);
    struct ctl_server one = {.id = 77, .address = slice_text("new:1")};
    struct ctl_group now = {.gid = 9, .servers = &one, .servers_count = 1};
    assert_int_equal(ctl_config_servers(&a, &c1, &now, &c2), ERR_OK);
    assert_int_equal(c2.number, c1.number + 1);
    assert_int_equal(c2.groups[1].servers_count, 1);
    assert_int_equal(c2.groups[1].servers[0].id, 77);
    assert_true(ctl_group_same(&c2.groups[0], &c1.groups[0]));
    for (int i = 0; i < 8; i++) {
        assert_int_equal(c2.shards[i].gid, c1.shards[i].gid);
    }
    assert_int_equal(ctl_config_servers(&a, &c2, &now, &c2), ERR_EXISTS);
    now.servers_count = 0;
    assert_int_equal(ctl_config_servers(&a, &c2, &now, &c2), ERR_INVALID);
    now = (struct ctl_group){.gid = 5, .servers = &one, .servers_count = 1};
    assert_int_equal(ctl_config_servers(&a, &c1, &now, &c2), ERR_NOTFOUND);
    arena_free(&a);
}

static void a_move_stands_until_the_next_join_or_leave(void **state)
{
    (void)state;
    struct arena a = {0};
    struct ctl_config c0 = empty(&a, 8);
    struct ctl_config c[5];
    struct ctl_group two[2] = {group_of(9), group_of(4)};
    assert_int_equal(ctl_config_join(&a, &c0, two, 2, &c[1]), ERR_OK);
    assert_int_equal(c[1].groups[0].gid, 4);
    uint32_t shard = c[1].shards[0].gid == 4 ? 0 : 7;
    uint32_t other = 7 - shard;
    assert_int_equal(ctl_config_move(&a, &c[1], shard, 9, &c[2]), ERR_OK);
    assert_int_equal(c[2].shards[shard].gid, 9);
    assert_int_equal(ctl_config_move(&a, &c[2], other, 9, &c[3]), ERR_OK);
    assert_int_equal(c[3].shards[shard].gid, 9);
    assert_int_equal(spread(&c[3]), 2);
    struct ctl_group third = group_of(5);
    assert_int_equal(ctl_config_join(&a, &c[3], &third, 1, &c[4]), ERR_OK);
    assert_true(is_even(&c[4]));
    arena_free(&a);
}

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    struct arena a = {0};
    struct ctl_config c0 = empty(&a, 8);
    struct ctl_config c1;
    struct ctl_config next = {.number = 77};
    struct ctl_group g = group_of(1);
    struct ctl_group bad = group_of(0);
    assert_int_equal(ctl_config_join(&a, &c0, &g, 1, &c1), ERR_OK);
    assert_int_equal(ctl_config_join(&a, &c0, &bad, 1, &next), ERR_INVALID);
    assert_int_equal(ctl_config_join(&a, &c0, &g, 0, &next), ERR_INVALID);
    assert_int_equal(ctl_config_join(&a, &c1, &g, 1, &next), ERR_EXISTS);
    struct ctl_group twice[2] = {group_of(3), group_of(3)};
    assert_int_equal(ctl_config_join(&a, &c0, twice, 2, &next), ERR_EXISTS);
    bad = group_of(2);
    bad.servers_count = 0;
    assert_int_equal(ctl_config_join(&a, &c0, &bad, 1, &next), ERR_INVALID);
    char text[NET_ADDRESS_SIZE_MAX];
    memset(text, 'x', sizeof text);
    struct ctl_server far = {.id = 1, .address = slice_of(text, sizeof text)};
    bad = (struct ctl_group){.gid = 2, .servers = &far, .servers_count = 1};
    assert_int_equal(ctl_config_join(&a, &c0, &bad, 1, &next), ERR_TOOBIG);
    ctl_gid one = 1;
    ctl_gid two = 2;
    assert_int_equal(ctl_config_leave(&a, &c1, &one, 1, &next), ERR_INVALID);
    assert_int_equal(ctl_config_leave(&a, &c1, &two, 1, &next), ERR_NOTFOUND);
    assert_int_equal(ctl_config_move(&a, &c1, 8, 1, &next), ERR_INVALID);
    assert_int_equal(ctl_config_move(&a, &c1, 0, 2, &next), ERR_NOTFOUND);
    assert_int_equal(ctl_config_move(&a, &c1, 0, 0, &next), ERR_INVALID);
    assert_int_equal(next.number, 77);
    arena_free(&a);
}

static void a_configuration_survives_its_wire_form(void **state)
{
    (void)state;
    struct arena a = {0};
    struct ctl_config c0 = empty(&a, 16);
    struct ctl_config c1;
    struct ctl_config back;
    struct ctl_group two[2] = {group_of(1), group_of(7)};
    assert_int_equal(ctl_config_join(&a, &c0, two, 2, &c1), ERR_OK);
    struct buf b = {0};
    struct buf again = {0};
    ctl_config_encode(&b, &c1);
    assert_int_equal(ctl_config_decode(buf_slice(&b), &a, &back), ERR_OK);
    ctl_config_encode(&again, &back);
    assert_int_equal(slice_compare(buf_slice(&b), buf_slice(&again)), 0);
    for (size_t size = 0; size < b.size; size++) {
        assert_int_equal(ctl_config_decode(slice_of(b.data, size), &a, &back),
                         ERR_CORRUPT);
    }
    buf_free(&b);
    buf_free(&again);
    arena_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rebalance_is_the_best_of_all_even_ones),
        cmocka_unit_test(with_weights_too),
        cmocka_unit_test(a_weight_spreads_anew_and_goes_with_its_group),
        cmocka_unit_test(a_rate_stands_until_the_next),
        cmocka_unit_test(a_long_random_walk_keeps_every_rule),
        cmocka_unit_test(a_groups_servers_change_and_no_shard_moves),
        cmocka_unit_test(a_move_stands_until_the_next_join_or_leave),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(a_configuration_survives_its_wire_form),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
