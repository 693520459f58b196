/* Replicas whose disks have little space left, or none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/unit/rsm_cluster.h"

static uint32_t space_looks;
static uint64_t space_left;

static enum err counted_space(struct disk *d, uint64_t *free)
{
    (void)d;
    space_looks++;
    *free = space_left;
    return ERR_OK;
}

/* What its disk did before. */
static const struct disk_ops *space_is_counted(struct node *n)
{
    static struct disk_ops counted;
    struct disk *disk = faultdisk_disk(n->disk);
    const struct disk_ops *before = disk->ops;
    counted = *before;
    counted.space = counted_space;
    disk->ops = &counted;
    return before;
}

/* Wrong if the disk is asked for its space at each write, or too late. */
static void test_space_is_looked_at_now_and_then(void **state)
{
    (void)state;
    cluster_start(32);
    struct node *leader = await_leader();
    const struct disk_ops *before = space_is_counted(leader);
    space_left = UINT64_MAX;
    struct client c;
    propose(leader, &c, 0);
    await_client(&c);
    run_ms(10);
    space_looks = 0;
    uint64_t began = world.now_us;
    for (uint32_t i = 1; i <= 200; i++) {
        propose(leader, &c, i);
        await_client(&c);
    }
    uint64_t most = (world.now_us - began) / 5000 + 10;
    assert_true(most < 180 && space_looks > 0 && space_looks <= most);

    /* As many bytes as count, in less time than counts. */
    static struct client big[8];
    space_looks = 0;
    began = world.now_us;
    for (uint32_t i = 0; i < 8; i++) {
        propose_sized(leader, &big[i], 300 + i, 300 << 10);
        run_ms(1);
    }
    for (uint32_t i = 0; i < 8; i++) {
        await_client(&big[i]);
    }
    assert_true(space_looks > (world.now_us - began) / 5000);

    space_left = 1000;
    run_ms(10);
    propose(leader, &c, 400);
    await_client(&c);
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_true(status.full);
    faultdisk_disk(leader->disk)->ops = before;
    cluster_free();
}

/* Wrong if a leader that is well whenever it tries again, and full right after
 * that, leads for ever. */
static void test_full_for_a_moment_hands_over(void **state)
{
    (void)state;
    cluster_start(33);
    struct node *leader = await_leader();
    const struct disk_ops *before = space_is_counted(leader);
    struct client c;
    struct rsm_status status = {0};
    for (uint32_t times = 0; times < 2; times++) {
        assert_true(await_leader() == leader);
        space_left = 1000;
        for (uint32_t i = 0; i < 100 && !status.full; i++) {
            propose(leader, &c, 100 * times + i);
            await_client(&c);
            rsm_status(leader->rsm, &status);
        }
        assert_true(status.full);
        space_left = UINT64_MAX;
        run_ms(2000);
        rsm_status(leader->rsm, &status);
        assert_true(!status.full);
    }
    assert_true(await_leader() != leader);
    faultdisk_disk(leader->disk)->ops = before;
    cluster_free();
}

/* Bytes of its log, and what others leave of its disk. */
static uint64_t log_size(struct node *n)
{
    uint64_t size = 0;
    const char *path = NULL;
    for (uint32_t i = 0; (path = faultdisk_path(n->disk, i)) != NULL; i++) {
        if (strncmp(path, "wal/", 4) == 0) {
            size += faultdisk_bytes(n->disk, path)->size;
        }
    }
    return size;
}

static uint64_t disk_sizes[NODES];

static enum err space_behind_log(struct disk *d, uint64_t *free)
{
    uint32_t at = 0;
    while (faultdisk_disk(nodes[at].disk) != d) {
        at++;
    }
    uint64_t used = log_size(&nodes[at]);
    *free = used < disk_sizes[at] ? disk_sizes[at] - used : 0;
    return ERR_OK;
}

static void assert_full(bool full)
{
    for (uint32_t i = 0; i < NODES; i++) {
        struct rsm_status status;
        rsm_status(nodes[i].rsm, &status);
        if (status.full != full) {
            fail_msg("%u: full %d, free %d of %d", i + 1, status.full,
                     (int)status.space_free, (int)status.space_low);
        }
    }
}

static struct disk_ops small_ops;
static const struct disk_ops *ops_before;

static void small_disks_begin(uint64_t seed)
{
    cluster_new(seed);
    keep_size = 100000; /* more than there is */
    for (uint32_t i = 0; i < NODES; i++) {
        struct disk *disk = faultdisk_disk(nodes[i].disk);
        ops_before = disk->ops;
        small_ops = *ops_before;
        small_ops.space = space_behind_log;
        disk_sizes[i] = UINT64_MAX;
    }
    for (uint32_t i = 0; i < NODES; i++) {
        faultdisk_disk(nodes[i].disk)->ops = &small_ops;
        node_start(i);
    }
}

static void small_disks_end(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        faultdisk_disk(nodes[i].disk)->ops = ops_before;
    }
    cluster_free();
}

/* Others fill the disks to `lack` bytes under the bound, no entry comes, and
 * what the log gives back must do. */
static void full_is_over(uint32_t count, uint64_t lack, bool restarted)
{
    struct client c = {0};
    small_disks_begin(count);
    for (uint32_t i = 0; i < count; i++) {
        propose(await_leader(), &c, i);
        await_client(&c);
    }
    run_ms(2000);
    for (uint32_t i = 0; i < NODES; i++) {
        if (restarted) {
            node_stop(i);
        }
        disk_sizes[i] = log_size(&nodes[i]) + (32 << 20) - lack;
    }
    for (uint32_t i = 0; i < NODES && restarted; i++) {
        node_start(i);
    }
    if (!restarted) {
        propose(await_leader(), &c, count);
        await_client(&c);
        assert_full(true);
    }
    run_ms(20000);
    assert_full(false);
    propose(await_leader(), &c, count + 1);
    await_client(&c);
    small_disks_end();
}

/* A follower that answers, and takes nothing: for a while the log is kept for
 * it. */
static void full_is_over_after(uint32_t count)
{
    struct client c = {0};
    struct rsm_status status;
    small_disks_begin(count);
    struct node *leader = await_leader();
    uint32_t other = (leader->at + 1) % NODES;
    disk_sizes[other] = 0;
    for (uint32_t i = 0; i < count; i++) {
        propose(leader, &c, i);
        await_client(&c);
    }
    run_ms(2000);
    assert_true(nodes[other].now.count < 20);
    disk_sizes[leader->at] = log_size(leader) + (32 << 20) - 30000;
    propose(leader, &c, count);
    await_client(&c);
    run_ms(5000);
    rsm_status(leader->rsm, &status);
    assert_true(status.full);
    run_ms(15000);
    rsm_status(leader->rsm, &status);
    assert_true(!status.full);
    disk_sizes[other] = UINT64_MAX;
    run_ms(20000);
    assert_true(all_equal() && nodes[other].installs == 1);
    small_disks_end();
}

/* Wrong if a full disk keeps what a follower might need one day, or the segment
 * that is being written. */
static void test_full_disk_gives_back_log(void **state)
{
    (void)state;
    for (int restarted = 0; restarted < 2; restarted++) {
        full_is_over(300, 30000, restarted); /* older segments */
        full_is_over(40, 5000, restarted);   /* the only one */
    }
    full_is_over_after(300);
}

int main(int argc, char **argv)
{
    log_set_level(argc > 1 ? LOG_LEVEL_DEBUG : LOG_LEVEL_OFF);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_space_is_looked_at_now_and_then),
        cmocka_unit_test(test_full_for_a_moment_hands_over),
        cmocka_unit_test(test_full_disk_gives_back_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
