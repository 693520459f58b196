/* A rate that an operator sets while a shard is on its way holds for what is
 * still to come, lower or higher, although the group follows no other
 * configuration until the shard is there. Two groups of one server on virtual
 * time; what they say to one another is counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "base/log.h"
#include "tests/labs/kv_harness.h"

enum {
    MIB = 1 << 20,
    VALUES = 40,       /* of 1 MiB */
    SETTLED_MS = 5000, /* what moved at the joins is there */
    HEARD_MS = 1500,   /* the leader asks each second */
};

static void put_values(struct kv *kv)
{
    char *value = mem_alloc(MIB + 1);
    for (uint32_t i = 0; i < VALUES; i++) {
        char key[16];
        snprintf(key, sizeof key, "a%u", i); /* its first letter: the shard */
        kv_random_text(kv, value, MIB);
        kv_put(&kv->clients[0], key, value);
    }
    mem_free(value);
}

static void changed(void *arg, enum err rc, uint64_t number)
{
    bool *waiting = arg;
    assert_int_equal(rc, ERR_OK);
    assert_true(number > 0);
    *waiting = false;
}

static void set_rate(struct kv *kv, uint64_t rate)
{
    struct ctl_change what = {.kind = CTL_LIMIT, .limit = rate};
    bool waiting = true;
    ctl_client_change(kv->admins[0].ctl, &what, 0, changed, &waiting);
    for (int i = 0; waiting && i < 100; i++) {
        kv_sleep(kv, 10);
    }
    assert_false(waiting);
}

/* MiB that arrive in so many seconds. */
static uint64_t arrives(struct kv *kv, uint64_t seconds)
{
    struct kv_counts before, after;
    kv_count(kv, &before);
    kv_sleep(kv, seconds * 1000);
    kv_count(kv, &after);
    return (after.bytes - before.bytes) / MIB;
}

static void a_rate_that_is_set_while_a_shard_moves_holds(void **state)
{
    (void)state;
    struct lab_run run = {.name = "rate", .seed = 1};
    struct kv_options options = {.groups = 2, .replicas = 1, .clients = 1};
    struct kv *kv = kv_begin(&run, &options);
    kv_join(kv, 1);
    kv_join(kv, 2);
    kv_sleep(kv, SETTLED_MS);
    put_values(kv);
    set_rate(kv, MIB);
    uint32_t shard = kv_shard(kv, "a");
    kv_move(kv, shard,
            kv_query(kv, CTL_LATEST)->shards[shard].gid == 1 ? 2 : 1);
    static const struct {
        uint64_t rate, low, high; /* in 3 s */
    } steps[] = {{MIB, 2, 4}, {4 * MIB, 11, 13}, {MIB, 2, 4}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        set_rate(kv, steps[i].rate);
        kv_sleep(kv, HEARD_MS);
        assert_in_range(arrives(kv, 3), steps[i].low, steps[i].high);
    }
    set_rate(kv, 0);
    assert_in_range(arrives(kv, 3), 10, VALUES); /* the rest, at once */
    assert_int_equal(arrives(kv, 3), 0);
    kv_end(kv);
    assert_false(run.failed);
}

int main(void)
{
    log_set_level(LOG_LEVEL_WARN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rate_that_is_set_while_a_shard_moves_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
