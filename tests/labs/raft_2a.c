/* Raft 2A: elections. */
#include "tests/labs/group.h"

static void initial_election(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    lab_one_leader(&l);
    /* Followers learn of it a moment later. */
    lab_sleep(&l, 50);
    raft_term before = lab_same_term(&l);
    if (before < 1) {
        lab_fail(&l, "term is %d, but should be at least 1", (int)before);
    }
    lab_sleep(&l, 2 * LAB_ELECTION_MS);
    /* The labs warn; with nothing lost there is no reason for an election. */
    if (lab_same_term(&l) != before) {
        lab_fail(&l, "term changed even though there were no failures");
    }
    lab_one_leader(&l);
    lab_end(&l);
}

static void re_election(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    uint32_t first = lab_one_leader(&l);
    lab_disconnect(&l, first);
    uint32_t second = lab_one_leader(&l);
    bool leads = false;
    raft_term term = lab_term(&l, second, &leads);

    /* The old leader comes back: that disturbs nobody, and it follows. The
     * labs only ask for one leader; pre-vote promises that the term stays. */
    lab_connect(&l, first);
    uint32_t leader = lab_one_leader(&l);
    if (leader != second || lab_term(&l, second, &leads) != term) {
        lab_fail(&l, "the old leader came back, and took the lead from n%u",
                 second);
    }
    lab_term(&l, first, &leads);
    if (leads) {
        lab_fail(&l, "the old leader n%u still leads", first);
    }

    /* No quorum, no leader. */
    lab_disconnect(&l, leader);
    lab_disconnect(&l, (leader + 1) % 3);
    lab_sleep(&l, 2 * LAB_ELECTION_MS);
    lab_no_leader(&l);

    lab_connect(&l, (leader + 1) % 3);
    lab_one_leader(&l);
    lab_connect(&l, leader);
    lab_one_leader(&l);
    lab_end(&l);
}

static void many_elections(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 7, 0);
    lab_one_leader(&l);
    for (int round = 1; round < 10; round++) {
        uint32_t gone[3];
        for (int i = 0; i < 3; i++) {
            gone[i] = (uint32_t)(lab_random(&l) % 7);
            lab_disconnect(&l, gone[i]);
        }
        /* The leader is among the rest, or the rest elect one. */
        lab_one_leader(&l);
        for (int i = 0; i < 3; i++) {
            lab_connect(&l, gone[i]);
        }
    }
    lab_one_leader(&l);
    lab_end(&l);
}

static const struct lab_row rows[] = {
    {"R1", "TestInitialElection2A", "initial election", initial_election, 0},
    {"R2", "TestReElection2A", "election after network failure", re_election,
     0},
    {"R3", "TestManyElections2A", "multiple elections", many_elections, 0},
};

LAB_TABLE(lab_raft_2a, "2A", rows);
