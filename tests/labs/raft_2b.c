/* Raft 2B: agreement, and how little it takes. */
#include "tests/labs/group.h"

#include <inttypes.h>

static void basic_agree(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, LAB_EXACT);
    for (raft_index index = 1; index <= 3; index++) {
        uint64_t value = 0;
        if (lab_committed(&l, index, &value) > 0) {
            lab_fail(&l, "some have committed before Start()");
        }
        raft_index at = lab_one(&l, index * 100, 3, false);
        if (at != index) {
            lab_fail(&l, "got index %" PRIu64 " but expected %" PRIu64, at,
                     index);
        }
    }
    lab_end(&l);
}

/* Each command is sent to each peer once. All bytes are counted, those of
 * replies too, and nothing is compressed. */
static void rpc_bytes(struct lab_run *run)
{
    enum { COMMANDS = 10, SIZE = 5000, PEERS = 3, SLACK = 50000 };
    struct lab l;
    lab_begin(&l, run, PEERS, LAB_EXACT);
    lab_one(&l, 99, PEERS, false);
    struct lab_counts before;
    lab_count(&l, &before);
    for (raft_index index = 2; index < COMMANDS + 2; index++) {
        raft_index at = lab_one_sized(&l, lab_random(&l), SIZE, PEERS, false);
        if (at != index) {
            lab_fail(&l, "got index %" PRIu64 " but expected %" PRIu64, at,
                     index);
        }
    }
    struct lab_counts after;
    lab_count(&l, &after);
    uint64_t got = after.bytes - before.bytes;
    if (got > PEERS * COMMANDS * SIZE + SLACK) {
        lab_fail(&l, "too many RPC bytes; got %" PRIu64 ", expected %d", got,
                 PEERS * COMMANDS * SIZE);
    }
    lab_end(&l);
}

static void expect_uncommitted(struct lab *l, raft_index index)
{
    uint64_t value = 0;
    uint32_t count = lab_committed(l, index, &value);
    if (count > 0) {
        lab_fail(l, "%u committed but no majority", count);
    }
}

static struct lab_begun expect_begun(struct lab *l, uint32_t leader,
                                     uint64_t value)
{
    struct lab_begun begun = lab_begin_command(l, leader, value);
    if (!begun.ok) {
        lab_fail(l, "leader n%u rejected Start(%" PRIu64 ")", leader, value);
    }
    return begun;
}

static void follower_failure(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, LAB_EXACT);
    lab_one(&l, 101, 3, false);
    uint32_t leader = lab_one_leader(&l);
    lab_disconnect(&l, (leader + 1) % 3);
    lab_one(&l, 102, 2, false);
    lab_sleep(&l, LAB_ELECTION_MS);
    lab_one(&l, 103, 2, false);

    leader = lab_one_leader(&l);
    lab_disconnect(&l, (leader + 1) % 3);
    lab_disconnect(&l, (leader + 2) % 3);
    struct lab_begun begun = expect_begun(&l, leader, 104);
    if (begun.index != 4) {
        lab_fail(&l, "expected index 4, got %" PRIu64, begun.index);
    }
    lab_sleep(&l, 2 * LAB_ELECTION_MS);
    expect_uncommitted(&l, 4);
    lab_end(&l);
}

static void leader_failure(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, LAB_EXACT);
    lab_one(&l, 101, 3, false);
    lab_disconnect(&l, lab_one_leader(&l));
    lab_one(&l, 102, 2, false);
    lab_sleep(&l, LAB_ELECTION_MS);
    lab_one(&l, 103, 2, false);

    lab_disconnect(&l, lab_one_leader(&l));
    for (uint32_t i = 0; i < 3; i++) {
        lab_begin_command(&l, i, 104); /* most say no */
    }
    lab_sleep(&l, 2 * LAB_ELECTION_MS);
    expect_uncommitted(&l, 4);
    lab_end(&l);
}

static void fail_agree(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    lab_one(&l, 101, 3, false);
    uint32_t away = (lab_one_leader(&l) + 1) % 3;
    lab_disconnect(&l, away);
    lab_one(&l, 102, 2, false);
    lab_one(&l, 103, 2, false);
    lab_sleep(&l, LAB_ELECTION_MS);
    lab_one(&l, 104, 2, false);
    lab_one(&l, 105, 2, false);

    lab_connect(&l, away);
    lab_one(&l, 106, 3, true);
    lab_sleep(&l, LAB_ELECTION_MS);
    lab_one(&l, 107, 3, true);
    lab_end(&l);
}

static void fail_no_agree(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 5, LAB_EXACT);
    lab_one(&l, 10, 5, false);
    uint32_t leader = lab_one_leader(&l);
    for (uint32_t i = 1; i <= 3; i++) {
        lab_disconnect(&l, (leader + i) % 5);
    }
    struct lab_begun begun = expect_begun(&l, leader, 20);
    if (begun.index != 2) {
        lab_fail(&l, "expected index 2, got %" PRIu64, begun.index);
    }
    lab_sleep(&l, 2 * LAB_ELECTION_MS);
    expect_uncommitted(&l, 2);

    for (uint32_t i = 1; i <= 3; i++) {
        lab_connect(&l, (leader + i) % 5);
    }
    /* The majority may have chosen one of its own, who forgets index 2. */
    begun = expect_begun(&l, lab_one_leader(&l), 30);
    if (begun.index < 2 || begun.index > 3) {
        lab_fail(&l, "unexpected index %" PRIu64, begun.index);
    }
    lab_one(&l, 1000, 5, true);
    lab_end(&l);
}

/* ---- several at once, in one term ---- */

static bool all_in(struct lab *l, raft_term term)
{
    for (uint32_t i = 0; i < l->peer_count; i++) {
        bool leader = false;
        if (lab_term(l, i, &leader) != term) {
            return false;
        }
    }
    return true;
}

enum { STARTS = 5, TRIES = 5 };

/* False: the term changed, so nothing can be expected. */
static bool concurrent_try(struct lab *l)
{
    static const uint64_t values[STARTS] = {100, 101, 102, 103, 104};
    struct lab_begun begun[STARTS];
    uint32_t leader = lab_one_leader(l);
    struct lab_begun first = lab_begin_command(l, leader, 1);
    lab_begin_commands(l, leader, values, STARTS, begun);
    if (!first.ok || !all_in(l, first.term)) {
        return false;
    }
    uint32_t seen = 0;
    for (int i = 0; i < STARTS; i++) {
        uint64_t value = 0;
        if (!begun[i].ok || begun[i].term != first.term) {
            continue; /* then its value is missing below */
        }
        if (!lab_wait(l, begun[i].index, 3, first.term, &value)) {
            return false;
        }
        seen |= value >= 100 && value < 105 ? 1u << (value - 100) : 0;
    }
    if (seen != (1u << STARTS) - 1) {
        lab_fail(l,
                 "of five commands that began in one term, these were "
                 "committed: bits %#x",
                 seen);
    }
    return true;
}

static void concurrent_starts(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    bool success = false;
    for (int i = 0; i < TRIES && !success && !lab_failed(&l); i++) {
        lab_sleep(&l, i > 0 ? 3000 : 0);
        success = concurrent_try(&l);
    }
    if (!success) {
        lab_fail(&l, "term changed too often");
    }
    lab_end(&l);
}

/* ---- logs that went apart ---- */

static void rejoin(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    lab_one(&l, 101, 3, true);
    uint32_t first = lab_one_leader(&l);
    lab_disconnect(&l, first);
    for (uint64_t value = 102; value <= 104; value++) {
        lab_begin_command(&l, first, value);
    }
    lab_one(&l, 103, 2, true); /* takes the place of the old leader's 102 */

    uint32_t second = lab_one_leader(&l);
    lab_disconnect(&l, second);
    lab_connect(&l, first);
    lab_one(&l, 104, 2, true);
    lab_connect(&l, second);
    lab_one(&l, 105, 3, true);
    lab_end(&l);
}

static void begin_many(struct lab *l, uint32_t leader)
{
    for (int i = 0; i < 50; i++) {
        lab_begin_command(l, leader, lab_random(l));
    }
    lab_sleep(l, LAB_ELECTION_MS / 2);
}

static void agree_many(struct lab *l)
{
    for (int i = 0; i < 50; i++) {
        lab_one(l, lab_random(l), 3, true);
    }
}

/* Four logs go apart by 50 entries. In the labs one entry an RPC is too slow;
 * here the net is fast, so the refusals are counted: each takes back a whole
 * term, not an entry. */
enum { REFUSALS_MAX = 10 };

static void backup(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 5, 0);
    lab_one(&l, lab_random(&l), 5, true);

    /* The leader and one follower alone: 50 entries that do not commit. */
    uint32_t first = lab_one_leader(&l);
    for (uint32_t i = 2; i <= 4; i++) {
        lab_disconnect(&l, (first + i) % 5);
    }
    begin_many(&l, first);
    lab_disconnect(&l, first);
    lab_disconnect(&l, (first + 1) % 5);
    for (uint32_t i = 2; i <= 4; i++) {
        lab_connect(&l, (first + i) % 5);
    }
    agree_many(&l);

    /* The same again, with the leader of the other three. */
    uint32_t second = lab_one_leader(&l);
    uint32_t other = (first + 2) % 5;
    other = other == second ? (second + 1) % 5 : other;
    lab_disconnect(&l, other);
    begin_many(&l, second);
    for (uint32_t i = 0; i < 5; i++) {
        lab_disconnect(&l, i);
    }

    /* Those with the oldest, longest tails and one with a newer log. */
    lab_connect(&l, first);
    lab_connect(&l, (first + 1) % 5);
    lab_connect(&l, other);
    agree_many(&l);

    for (uint32_t i = 0; i < 5; i++) {
        lab_connect(&l, i);
    }
    lab_one(&l, lab_random(&l), 5, true);
    struct lab_counts counts;
    lab_count(&l, &counts);
    if (counts.refusals > REFUSALS_MAX) {
        lab_fail(&l, "%" PRIu64 " refusals until all logs fit",
                 counts.refusals);
    }
    lab_end(&l);
}

/* ---- counting RPCs ---- */

enum { BATCH = 10 };

/* Half of the seeds begin all in one turn, half one by one: then each has
 * messages of its own. */
static bool begin_batch(struct lab *l, uint32_t leader, uint64_t *values,
                        struct lab_begun *begun)
{
    for (int i = 0; i <= BATCH; i++) {
        values[i] = lab_random(l) >> 33;
    }
    if (l->run->seed / 2 % 2 == 0) {
        lab_begin_commands(l, leader, values, BATCH + 1, begun);
    }
    for (int i = 0; i <= BATCH; i++) {
        if (l->run->seed / 2 % 2 != 0) {
            begun[i] = lab_begin_command(l, leader, values[i]);
        }
        if (!begun[i].ok || begun[i].term != begun[0].term) {
            return false;
        }
        if (begun[i].index != begun[0].index + (raft_index)i) {
            lab_fail(l, "Start() failed");
        }
    }
    return true;
}

static bool count_try(struct lab *l)
{
    uint64_t values[BATCH + 1];
    struct lab_begun begun[BATCH + 1];
    uint32_t leader = lab_one_leader(l);
    uint64_t before = lab_rpcs(l);
    struct lab_begun first = lab_begin_command(l, leader, 1);
    if (!first.ok || !begin_batch(l, leader, values, begun) ||
        begun[0].term != first.term) {
        return false;
    }
    for (int i = 0; i < BATCH; i++) {
        uint64_t value = 0;
        if (!lab_wait(l, begun[i].index, 3, first.term, &value)) {
            return false;
        }
        if (value != values[i]) {
            lab_fail(l,
                     "wrong value %" PRIu64 " committed for index %" PRIu64
                     "; expected %" PRIu64,
                     value, begun[i].index, values[i]);
        }
    }
    if (!all_in(l, first.term)) {
        return false;
    }
    uint64_t took = lab_rpcs(l) - before;
    if (took > (BATCH + 1 + 3) * 3) {
        lab_fail(l, "too many RPCs (%" PRIu64 ") for %d entries", took, BATCH);
    }
    return true;
}

static void count_rpcs(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    lab_one_leader(&l);
    uint64_t elected = lab_rpcs(&l);
    if (elected > 30 || elected < 1) {
        lab_fail(&l,
                 "too many or few RPCs (%" PRIu64 ") to elect initial leader",
                 elected);
    }
    bool success = false;
    for (int i = 0; i < TRIES && !success && !lab_failed(&l); i++) {
        lab_sleep(&l, i > 0 ? 3000 : 0);
        success = count_try(&l);
    }
    if (!success) {
        lab_fail(&l, "term changed too often");
    }
    uint64_t before = lab_rpcs(&l);
    lab_sleep(&l, LAB_ELECTION_MS);
    uint64_t idle = lab_rpcs(&l) - before;
    if (idle > 3 * 20) {
        lab_fail(&l, "too many RPCs (%" PRIu64 ") for 1 second of idleness",
                 idle);
    }
    lab_end(&l);
}

static const struct lab_row rows[] = {
    {"R4", "TestBasicAgree2B", "basic agreement", basic_agree, 0},
    {"R5", "TestRPCBytes2B", "RPC byte count", rpc_bytes, 0},
    {"R6", "TestFollowerFailure2B", "test progressive failure of followers",
     follower_failure, 0},
    {"R7", "TestLeaderFailure2B", "test failure of leaders", leader_failure, 0},
    {"R8", "TestFailAgree2B", "agreement after follower reconnects", fail_agree,
     0},
    {"R9", "TestFailNoAgree2B", "no agreement if too many followers disconnect",
     fail_no_agree, 0},
    {"R10", "TestConcurrentStarts2B", "concurrent Start()s", concurrent_starts,
     0},
    {"R11", "TestRejoin2B", "rejoin of partitioned leader", rejoin, 0},
    {"R12", "TestBackup2B",
     "leader backs up quickly over incorrect follower logs", backup, 0},
    {"R13", "TestCount2B", "RPC counts aren't too high", count_rpcs, 0},
};

LAB_TABLE(lab_raft_2b, "2B", rows);
