/* Raft 2D: snapshots, and logs that stay short.
 *
 * The labs' service takes a snapshot every 10 entries. Ours is made by the
 * shell from the bytes that were applied, which comes to the same here; a
 * snapshot goes to a peer only when that peer needs it. */
#include "tests/labs/group.h"

#include <inttypes.h>

enum {
    PEERS = 3,
    ROUNDS = 30,
    /* Segment files: the one that is written, the one before it, and one that
     * a compaction is about to remove. */
    FILES_MAX = 3,
};

enum loss { LOSS_NONE, LOSS_DISCONNECT, LOSS_CRASH };

static uint64_t some(struct lab *l)
{
    return LAB_SNAPSHOT_INTERVAL / 2 + lab_random(l) % LAB_SNAPSHOT_INTERVAL;
}

static void check_size(struct lab *l)
{
    size_t size = lab_state_size(l);
    uint32_t files = lab_state_files(l);
    if (size >= LAB_STATE_SIZE_MAX) {
        lab_fail(l, "log size too large: %zu bytes", size);
    }
    if (files > FILES_MAX) {
        lab_fail(l, "the log is %u files on disk, and %zu bytes matter", files,
                 size);
    }
}

static void lose(struct lab *l, uint32_t victim, enum loss loss)
{
    if (loss == LOSS_DISCONNECT) {
        lab_disconnect(l, victim);
    } else {
        lab_crash(l, victim);
    }
    lab_one(l, lab_random(l), PEERS - 1, true);
}

/* It may be far behind, and need a snapshot. */
static void bring_back(struct lab *l, uint32_t victim, enum loss loss)
{
    if (loss == LOSS_CRASH) {
        lab_start1(l, victim);
    }
    lab_connect(l, victim);
    lab_one(l, lab_random(l), PEERS, true);
}

static void snapshot_round(struct lab *l, int round, uint32_t *leader,
                           enum loss loss)
{
    uint32_t victim = (*leader + 1) % PEERS;
    uint32_t sender = *leader;
    if (round % 3 == 1) {
        victim = *leader;
        sender = (*leader + 1) % PEERS;
    }
    if (loss != LOSS_NONE) {
        lose(l, victim, loss);
    }
    for (uint64_t i = some(l); i > 0; i--) {
        lab_begin_command(l, sender, lab_random(l));
    }
    lab_one(l, lab_random(l), loss == LOSS_NONE ? PEERS : PEERS - 1, true);
    check_size(l);
    if (loss != LOSS_NONE) {
        bring_back(l, victim, loss);
        *leader = lab_one_leader(l);
    }
}

static void snapshots(struct lab_run *run, unsigned options, enum loss loss)
{
    struct lab l;
    lab_begin(&l, run, PEERS, options | LAB_SNAPSHOTS);
    lab_one(&l, lab_random(&l), PEERS, true);
    uint32_t leader = lab_one_leader(&l);
    for (int i = 0; i < ROUNDS && !lab_failed(&l); i++) {
        snapshot_round(&l, i, &leader, loss);
    }
    /* What the labs' names say and their tests do not check. */
    struct lab_counts counts;
    lab_count(&l, &counts);
    if (loss == LOSS_NONE && counts.chunks > 0) {
        lab_fail(&l, "%" PRIu64 " snapshots were sent, and all kept up",
                 counts.chunks);
    }
    if (loss != LOSS_NONE && counts.installs == 0) {
        lab_fail(&l, "nobody ever needed a snapshot");
    }
    lab_end(&l);
}

static void basic(struct lab_run *run)
{
    snapshots(run, 0, LOSS_NONE);
}

static void install(struct lab_run *run)
{
    snapshots(run, 0, LOSS_DISCONNECT);
}

static void install_unreliable(struct lab_run *run)
{
    snapshots(run, LAB_UNRELIABLE, LOSS_DISCONNECT);
}

static void install_crash(struct lab_run *run)
{
    snapshots(run, 0, LOSS_CRASH);
}

static void install_unreliable_crash(struct lab_run *run)
{
    snapshots(run, LAB_UNRELIABLE, LOSS_CRASH);
}

static void restart_all(struct lab *l)
{
    for (uint32_t i = 0; i < PEERS; i++) {
        lab_crash(l, i);
    }
    for (uint32_t i = 0; i < PEERS; i++) {
        lab_start1(l, i);
        lab_connect(l, i);
    }
}

static void check_snapshots(struct lab *l)
{
    for (uint32_t i = 0; i < PEERS; i++) {
        if (lab_stored(l, i) == 0) {
            lab_fail(l, "server %u has no snapshot to restart from", i);
        }
    }
}

static void all_crash(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, PEERS, LAB_SNAPSHOTS);
    lab_one(&l, lab_random(&l), PEERS, true);
    for (int round = 0; round < 5; round++) {
        for (uint64_t i = some(&l); i > 0; i--) {
            lab_one(&l, lab_random(&l), PEERS, true);
        }
        raft_index before = lab_one(&l, lab_random(&l), PEERS, true);
        restart_all(&l);
        raft_index after = lab_one(&l, lab_random(&l), PEERS, true);
        if (after < before + 1) {
            lab_fail(&l, "index decreased from %" PRIu64 " to %" PRIu64, before,
                     after);
        }
    }
    check_snapshots(&l);
    lab_end(&l);
}

static void init(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, PEERS, LAB_SNAPSHOTS);
    lab_one(&l, lab_random(&l), PEERS, true);
    for (int i = 0; i < LAB_SNAPSHOT_INTERVAL + 1; i++) {
        lab_one(&l, lab_random(&l), PEERS, true);
    }
    check_snapshots(&l);
    restart_all(&l);
    /* One entry, so that something is written; then the snapshot must still
     * be there. */
    lab_one(&l, lab_random(&l), PEERS, true);
    restart_all(&l);
    lab_one(&l, lab_random(&l), PEERS, true);
    check_snapshots(&l);
    lab_end(&l);
}

static const struct lab_row rows[] = {
    {"R22", "TestSnapshotBasic2D", "snapshots basic", basic, 0},
    {"R23", "TestSnapshotInstall2D", "install snapshots (disconnect)", install,
     0},
    {"R24", "TestSnapshotInstallUnreliable2D",
     "install snapshots (disconnect+unreliable)", install_unreliable, 0},
    {"R25", "TestSnapshotInstallCrash2D", "install snapshots (crash)",
     install_crash, 0},
    {"R26", "TestSnapshotInstallUnCrash2D",
     "install snapshots (unreliable+crash)", install_unreliable_crash, 0},
    {"R27", "TestSnapshotAllCrash2D", "crash and restart all servers",
     all_crash, 0},
    {"R28", "TestSnapshotInit2D", "snapshot initialization after crash", init,
     0},
};

LAB_TABLE(lab_raft_2d, "2D", rows);
