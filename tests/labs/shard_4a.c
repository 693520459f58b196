/* Shard controller 4A. The labs' "minimal transfers" test nothing (their loops
 * name groups that are not there); here the moves are counted, and compared
 * with the fewest that any even assignment needs.
 *
 * The labs' last Leave empties the configuration. Ours is refused: nobody could
 * take what the last group holds. */
#include "tests/labs/kv_harness.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { CONTROLLERS = 3, CLERKS = 10, NEW_GROUPS = 5, CONFIGS_MAX = 16 };

static struct kv *begin(struct lab_run *run, uint32_t admins, uint32_t shards)
{
    /* The labs' net is reliable here; one seed of four loses messages. */
    struct kv_options options = {
        .admins = admins, .shards = shards, .unreliable = run->seed % 4 == 3};
    return kv_begin(run, &options);
}

/* ---- check() ---- */

/* Of each group, its shards; `nobody`: those of none that is there. */
static void count_shards(const struct ctl_config *c, uint32_t *counts,
                         uint32_t *nobody)
{
    memset(counts, 0, c->groups_count * sizeof *counts);
    *nobody = 0;
    for (uint32_t s = 0; s < c->shards_count; s++) {
        const struct ctl_group *g = ctl_config_group(c, c->shards[s].gid);
        if (g == NULL) {
            ++*nobody;
        } else {
            counts[g - c->groups]++;
        }
    }
}

static void check_even(struct kv *kv, const struct ctl_config *c)
{
    uint32_t counts[CTL_GROUPS_MAX];
    uint32_t nobody = 0;
    count_shards(c, counts, &nobody);
    if (c->groups_count > 0 && nobody > 0) {
        kv_fail(kv, "%u shards are on no or an invalid group", nobody);
    }
    uint32_t least = UINT32_MAX;
    uint32_t most = 0;
    for (uint32_t i = 0; i < c->groups_count; i++) {
        least = counts[i] < least ? counts[i] : least;
        most = counts[i] > most ? counts[i] : most;
    }
    if (c->groups_count > 0 && most > least + 1) {
        kv_fail(kv, "max %u too much larger than min %u", most, least);
    }
}

static const struct ctl_config *check(struct kv *kv, const uint32_t *gids,
                                      uint32_t count)
{
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    if (!kv_failed(kv) && c->groups_count != count) {
        kv_fail(kv, "wanted %u groups, got %u", count, c->groups_count);
    }
    for (uint32_t i = 0; i < count && !kv_failed(kv); i++) {
        if (ctl_config_group(c, gids[i]) == NULL) {
            kv_fail(kv, "missing group %u", gids[i]);
        }
    }
    if (!kv_failed(kv)) {
        check_even(kv, c);
    }
    return c;
}

static void check_servers(struct kv *kv, const struct ctl_config *c,
                          uint32_t gid)
{
    const struct ctl_group *g = ctl_config_group(c, gid);
    if (kv_failed(kv)) {
        return;
    }
    if (g == NULL || g->servers_count != 3) {
        kv_fail(kv, "wrong servers for gid %u", gid);
        return;
    }
    for (uint32_t i = 0; i < 3; i++) {
        char address[32];
        snprintf(address, sizeof address, "%u%c:1", gid, (int)('x' + i));
        if (slice_compare(g->servers[i].address, slice_text(address)) != 0) {
            kv_fail(kv, "wrong server %u for gid %u", i, gid);
        }
    }
}

/* ---- configurations that stay ---- */

struct kept {
    struct buf bytes[CONFIGS_MAX];
    uint64_t numbers[CONFIGS_MAX];
    uint32_t count;
};

static void keep(struct kv *kv, struct kept *k)
{
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    if (!kv_failed(kv)) {
        k->numbers[k->count] = c->number;
        ctl_config_encode(&k->bytes[k->count++], c);
    }
}

static void check_kept(struct kv *kv, const struct kept *k)
{
    for (uint32_t i = 0; i < k->count && !kv_failed(kv); i++) {
        struct buf now = {0};
        ctl_config_encode(&now, kv_query(kv, k->numbers[i]));
        if (!kv_failed(kv) &&
            slice_compare(buf_slice(&now), buf_slice(&k->bytes[i])) != 0) {
            kv_fail(kv, "configuration %" PRIu64 " is not what it was",
                    k->numbers[i]);
        }
        buf_free(&now);
    }
}

static void kept_free(struct kept *k)
{
    for (uint32_t i = 0; i < k->count; i++) {
        buf_free(&k->bytes[i]);
    }
}

/* ---- C1, C2 ---- */

static void join_leave(struct kv *kv, struct kept *k)
{
    static const uint32_t both[] = {1, 2};
    check(kv, NULL, 0);
    keep(kv, k);
    kv_join(kv, 1);
    check(kv, both, 1);
    keep(kv, k);
    kv_join(kv, 2);
    const struct ctl_config *c = check(kv, both, 2);
    check_servers(kv, c, 1);
    check_servers(kv, c, 2);
    keep(kv, k);
    kv_leave(kv, 1);
    check(kv, both + 1, 1);
    keep(kv, k);
}

/* It would leave its shards to nobody. */
static void last_may_not_leave(struct kv *kv, uint32_t gid)
{
    struct kv_admin *a = &kv->admins[0];
    kv_change_begin(a, CTL_LEAVE, &gid, 1, 0);
    if (kv_admin_await(a) && a->rc != ERR_INVALID) {
        kv_fail(kv, "the last group leaves: %s", err_name(a->rc));
    }
    check(kv, &gid, 1);
}

static void basic(struct lab_run *run)
{
    struct kv *kv = begin(run, 1, 0);
    struct kept k = {0};
    join_leave(kv, &k);
    last_may_not_leave(kv, 2);
    kept_free(&k);
    kv_end(kv);
}

static void historical(struct lab_run *run)
{
    struct kv *kv = begin(run, 1, 0);
    struct kept k = {0};
    join_leave(kv, &k);
    for (uint32_t s = 0; s < CONTROLLERS; s++) {
        kv_shutdown(kv, 0, s);
        check_kept(kv, &k);
        kv_start(kv, 0, s);
    }
    kv_shutdown_group(kv, 0);
    kv_start_group(kv, 0);
    check_kept(kv, &k);
    kept_free(&k);
    kv_end(kv);
}

/* ---- C3 ---- */

static void move_one(struct kv *kv, uint32_t shard, uint32_t gid)
{
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    if (kv_failed(kv)) {
        return;
    }
    uint64_t number = c->number;
    uint32_t owner = c->shards[shard].gid;
    kv_move(kv, shard, gid);
    c = kv_query(kv, CTL_LATEST);
    if (!kv_failed(kv) && owner != gid && c->number <= number) {
        kv_fail(kv, "Move should increase Config.Num");
    }
    if (!kv_failed(kv) && c->shards[shard].gid != gid) {
        kv_fail(kv, "expected shard %u on gid %u actually %u", shard, gid,
                c->shards[shard].gid);
    }
}

static void move(struct lab_run *run)
{
    struct kv *kv = begin(run, 1, 0);
    kv_join(kv, 503);
    kv_join(kv, 504);
    for (uint32_t s = 0; s < KV_SHARDS; s++) {
        move_one(kv, s, s < KV_SHARDS / 2 ? 503 : 504);
    }
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    for (uint32_t s = 0; s < KV_SHARDS && !kv_failed(kv); s++) {
        uint32_t gid = s < KV_SHARDS / 2 ? 503 : 504;
        if (c->shards[s].gid != gid) {
            kv_fail(kv, "expected shard %u on gid %u actually %u", s, gid,
                    c->shards[s].gid);
        }
    }
    /* All on one: uneven, and it stays so until somebody joins or leaves. */
    for (uint32_t s = 0; s < KV_SHARDS; s++) {
        move_one(kv, s, 503);
    }
    kv_leave(kv, 504);
    static const uint32_t left[] = {503};
    check(kv, left, 1);
    kv_end(kv);
}

/* ---- C4 and C6: many at once ---- */

static void await_all(struct kv *kv)
{
    for (uint32_t i = 0; i < CLERKS; i++) {
        struct kv_admin *a = &kv->admins[i];
        if (kv_admin_await(a) && a->rc != ERR_OK) {
            kv_fail(kv, "clerk %u is refused: %s", i, err_name(a->rc));
        }
    }
}

static void concurrent_groups(struct kv *kv, uint32_t gids[CLERKS])
{
    for (uint32_t i = 0; i < CLERKS; i++) {
        gids[i] = 100 + i * 10;
        uint32_t other = gids[i] + 1000;
        kv_change_begin(&kv->admins[i], CTL_JOIN, &other, 1, 0);
        kv_change_begin(&kv->admins[i], CTL_JOIN, &gids[i], 1, 0);
        kv_change_begin(&kv->admins[i], CTL_LEAVE, &other, 1, 0);
    }
    await_all(kv);
    check(kv, gids, CLERKS);
}

static void concurrent(struct lab_run *run)
{
    struct kv *kv = begin(run, CLERKS, 0);
    uint32_t gids[CLERKS];
    concurrent_groups(kv, gids);
    kv_end(kv);
}

static void multi_concurrent(struct lab_run *run)
{
    struct kv *kv = begin(run, CLERKS, 0);
    uint32_t gids[CLERKS];
    for (uint32_t i = 0; i < CLERKS; i++) {
        gids[i] = 1000 + i;
        uint32_t joins[] = {gids[i], gids[i] + 1000, gids[i] + 2000};
        kv_change_begin(&kv->admins[i], CTL_JOIN, joins, 3, 0);
        kv_change_begin(&kv->admins[i], CTL_LEAVE, joins + 1, 2, 0);
    }
    await_all(kv);
    check(kv, gids, CLERKS);
    kv_end(kv);
}

static void multi(struct lab_run *run)
{
    static const uint32_t all[] = {1, 2, 3};
    static const uint32_t leavers[] = {1, 3};
    struct kv *kv = begin(run, 1, 0);
    struct kept k = {0};
    check(kv, NULL, 0);
    kv_joins(kv, all, 2);
    keep(kv, &k);
    check(kv, all, 2);
    kv_join(kv, 3);
    const struct ctl_config *c = check(kv, all, 3);
    for (uint32_t i = 0; i < 3; i++) {
        check_servers(kv, c, all[i]);
    }
    keep(kv, &k);
    kv_leaves(kv, leavers, 2);
    check_servers(kv, check(kv, all + 1, 1), 2);
    last_may_not_leave(kv, 2);
    check_kept(kv, &k);
    kept_free(&k);
    kv_end(kv);
}

/* ---- minimal transfers ---- */

/* A copy, and what has to move for the groups of the next. */
struct before {
    struct ctl_config config;
    struct arena arena;
};

static void before_take(struct kv *kv, struct before *b)
{
    ctl_config_copy(&b->arena, kv_query(kv, CTL_LATEST), &b->config);
}

static uint32_t moves(const struct ctl_config *a, const struct ctl_config *b)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < a->shards_count; s++) {
        count += a->shards[s].gid != b->shards[s].gid;
    }
    return count;
}

/* The best of all even assignments, tried one by one: for small cases. */
static uint32_t fewest_tried(const struct ctl_config *a,
                             const struct ctl_config *b)
{
    uint32_t best = UINT32_MAX;
    uint32_t all = 1;
    for (uint32_t s = 0; s < a->shards_count; s++) {
        all *= b->groups_count;
    }
    for (uint32_t code = 0; code < all; code++) {
        uint32_t counts[CTL_GROUPS_MAX] = {0};
        uint32_t moved = 0;
        uint32_t rest = code;
        for (uint32_t s = 0; s < a->shards_count; s++) {
            uint32_t to = rest % b->groups_count;
            rest /= b->groups_count;
            counts[to]++;
            moved += a->shards[s].gid != b->groups[to].gid;
        }
        uint32_t low = a->shards_count / b->groups_count;
        bool even = true;
        for (uint32_t g = 0; g < b->groups_count; g++) {
            even &= counts[g] == low || counts[g] == low + 1;
        }
        best = even && moved < best ? moved : best;
    }
    return best;
}

/* The same by counting: who keeps one more than others had it before. */
static uint32_t fewest_counted(const struct ctl_config *a,
                               const struct ctl_config *b)
{
    uint32_t counts[CTL_GROUPS_MAX] = {0};
    uint32_t kept = 0;
    uint32_t low = a->shards_count / b->groups_count;
    uint32_t more = a->shards_count % b->groups_count;
    for (uint32_t s = 0; s < a->shards_count; s++) {
        const struct ctl_group *g = ctl_config_group(b, a->shards[s].gid);
        if (g == NULL) {
            continue;
        }
        uint32_t had = counts[g - b->groups]++;
        kept += had < low || (had == low && more > 0);
        more -= had == low && more > 0;
    }
    return a->shards_count - kept;
}

/* Shards go to newcomers or come from those who left, and no more than must. */
static void check_minimal(struct kv *kv, const struct before *before)
{
    const struct ctl_config *a = &before->config;
    const struct ctl_config *b = kv_query(kv, CTL_LATEST);
    if (kv_failed(kv)) {
        return;
    }
    check_even(kv, b);
    for (uint32_t s = 0; s < a->shards_count; s++) {
        uint32_t from = a->shards[s].gid;
        uint32_t to = b->shards[s].gid;
        if (from != to && ctl_config_group(b, from) != NULL &&
            ctl_config_group(a, to) != NULL) {
            kv_fail(kv, "shard %u moved from gid %u to %u, which both stay", s,
                    from, to);
        }
    }
    uint32_t moved = moves(a, b);
    uint32_t fewest = fewest_counted(a, b);
    if (moved != fewest) {
        kv_fail(kv, "%u shards moved, and %u had to", moved, fewest);
    }
}

static void minimal_step(struct kv *kv, enum ctl_change_kind kind,
                         const uint32_t *gids, uint32_t count)
{
    struct before before = {0};
    before_take(kv, &before);
    if (kind == CTL_JOIN) {
        kv_joins(kv, gids, count);
    } else {
        kv_leaves(kv, gids, count);
    }
    check_minimal(kv, &before);
    arena_free(&before.arena);
}

/* As the labs with ten groups already there; or, by the seed, with one to
 * four, so that shards have to move. */
static void begin_groups(struct kv *kv)
{
    uint32_t count =
        kv->run->seed % 2 == 0 ? CLERKS : 1 + (uint32_t)kv_random(kv, 4);
    for (uint32_t i = 0; i < count; i++) {
        kv_join(kv, 100 + i * 10);
    }
}

static void minimal_joins(struct lab_run *run)
{
    struct kv *kv = begin(run, 1, 0);
    begin_groups(kv);
    for (uint32_t i = 0; i < NEW_GROUPS && !kv_failed(kv); i++) {
        uint32_t gid = 55 + 20 * i; /* between those that are there */
        minimal_step(kv, CTL_JOIN, &gid, 1);
    }
    kv_end(kv);
}

static void minimal_leaves(struct lab_run *run)
{
    struct kv *kv = begin(run, 1, 0);
    begin_groups(kv);
    for (uint32_t i = 0; i < NEW_GROUPS; i++) {
        kv_join(kv, 55 + 20 * i);
    }
    for (uint32_t i = 0; i < NEW_GROUPS && !kv_failed(kv); i++) {
        uint32_t gid = 55 + 20 * i;
        minimal_step(kv, CTL_LEAVE, &gid, 1);
    }
    kv_end(kv);
}

static void multi_minimal_joins(struct lab_run *run)
{
    static const uint32_t gids[NEW_GROUPS] = {51, 151, 53, 203, 1};
    struct kv *kv = begin(run, 1, 0);
    begin_groups(kv);
    minimal_step(kv, CTL_JOIN, gids, NEW_GROUPS);
    kv_end(kv);
}

static void multi_minimal_leaves(struct lab_run *run)
{
    static const uint32_t gids[NEW_GROUPS] = {51, 151, 53, 203, 1};
    struct kv *kv = begin(run, 1, 0);
    begin_groups(kv);
    kv_joins(kv, gids, NEW_GROUPS);
    minimal_step(kv, CTL_LEAVE, gids, NEW_GROUPS);
    kv_end(kv);
}

/* ---- C7 ---- */

static void same_config(struct lab_run *run)
{
    struct kv *kv = begin(run, CLERKS, 0);
    struct kept k = {0};
    uint32_t gids[CLERKS];
    concurrent_groups(kv, gids);
    for (uint32_t i = 0; i < NEW_GROUPS; i++) {
        kv_leave(kv, gids[2 * i]);
        keep(kv, &k);
    }
    for (int round = 0; round < 2 && !kv_failed(kv); round++) {
        uint32_t leader = kv_leader(kv, 0);
        kv_shutdown(kv, 0, leader);
        check_kept(kv, &k);
        if (!kv_failed(kv) && kv_leader(kv, 0) == leader) {
            kv_fail(kv, "a server that is shut down leads");
        }
        kv_start(kv, 0, leader);
    }
    kept_free(&k);
    kv_end(kv);
}

/* ---- C8 ---- */

static void check_moved(struct kv *kv, const struct before *before,
                        uint32_t gid)
{
    const struct ctl_config *a = &before->config;
    const struct ctl_config *b = kv_query(kv, CTL_LATEST);
    for (uint32_t s = 0; s < KV_SHARDS && !kv_failed(kv); s++) {
        uint32_t from = a->shards[s].gid;
        uint32_t to = b->shards[s].gid;
        if (from != to && from != gid && to != gid) {
            kv_fail(kv, "non-minimal transfer: shard %u from %u to %u", s, from,
                    to);
        }
    }
    if (!kv_failed(kv) && moves(a, b) > KV_SHARDS / 3 + 1) {
        kv_fail(kv, "too many shards moved: %u", moves(a, b));
    }
    check_minimal(kv, before);
}

static void minimal_again(struct lab_run *run)
{
    struct kv *kv = begin(run, 1, 0);
    struct before before = {0};
    kv_join(kv, 1);
    kv_join(kv, 2);
    before_take(kv, &before);
    kv_join(kv, 3);
    check_moved(kv, &before, 3);
    before_take(kv, &before);
    kv_leave(kv, 3);
    check_moved(kv, &before, 3);
    arena_free(&before.arena);
    kv_end(kv);
}

/* Each way to give 5 shards to groups 1 to 3, made by moves; then group 4
 * joins, or 2 leaves. The best of all even assignments moves as many. */
static void minimal_each(struct kv *kv, uint32_t code, bool joins)
{
    enum { SHARDS = 5 };
    struct before before = {0};
    for (uint32_t s = 0; s < SHARDS; s++) {
        uint32_t gid = 1 + code % 3;
        code /= 3;
        if (kv_query(kv, CTL_LATEST)->shards[s].gid != gid) {
            kv_move(kv, s, gid);
        }
        if (kv_failed(kv)) {
            return;
        }
    }
    before_take(kv, &before);
    uint32_t gid = joins ? 4 : 2;
    if (joins) {
        kv_join(kv, gid);
    } else {
        kv_leave(kv, gid);
    }
    const struct ctl_config *c = kv_query(kv, CTL_LATEST);
    if (!kv_failed(kv)) {
        check_even(kv, c);
        uint32_t fewest = fewest_tried(&before.config, c);
        if (moves(&before.config, c) != fewest ||
            fewest != fewest_counted(&before.config, c)) {
            kv_fail(kv, "%u shards moved, and %u had to",
                    moves(&before.config, c), fewest);
        }
    }
    if (joins) {
        kv_leave(kv, gid);
    } else {
        kv_join(kv, gid);
    }
    arena_free(&before.arena);
}

static void minimal_exhaustive(struct lab_run *run)
{
    enum { ASSIGNMENTS = 3 * 3 * 3 * 3 * 3, SLICE = 27 };
    struct kv *kv = begin(run, 1, 5);
    for (uint32_t gid = 1; gid <= 3; gid++) {
        kv_join(kv, gid);
    }
    /* Nine seeds see all of them. */
    uint32_t first = (uint32_t)(run->seed * SLICE % ASSIGNMENTS);
    for (uint32_t i = 0; i < SLICE && !kv_failed(kv); i++) {
        minimal_each(kv, first + i, true);
        minimal_each(kv, first + i, false);
    }
    kv_end(kv);
}

static const struct lab_row rows[] = {
    {"C1", "TestBasic/LeaveJoin", "Basic leave/join", basic, 0},
    {"C2", "TestBasic/Historical", "Historical queries", historical, 0},
    {"C3", "TestBasic/Move", "Move", move, 0},
    {"C4", "TestBasic/Concurrent", "Concurrent leave/join", concurrent, 0},
    {"C5", "TestBasic/MinimalJoins", "Minimal transfers after joins",
     minimal_joins, 0},
    {"C5", "TestBasic/MinimalLeaves", "Minimal transfers after leaves",
     minimal_leaves, 0},
    {"C6", "TestMulti/LeaveJoin", "Multi-group join/leave", multi, 0},
    {"C6", "TestMulti/Concurrent", "Concurrent multi leave/join",
     multi_concurrent, 0},
    {"C6", "TestMulti/MinimalJoins", "Minimal transfers after multijoins",
     multi_minimal_joins, 0},
    {"C6", "TestMulti/MinimalLeaves", "Minimal transfers after multileaves",
     multi_minimal_leaves, 0},
    {"C7", "TestMulti/SameConfig", "Check Same config on servers", same_config,
     0},
    {"C8", "TestMinimalAgain", "Minimal transfers, the real check",
     minimal_again, 0},
    {"C8", "TestMinimalExhaustive",
     "Minimal transfers against the best, small cases", minimal_exhaustive, 10},
};

LAB_TABLE(lab_shard_4a, "4A", rows);
