/* Raft 2C: what a crash and a bad network must not cost. */
#include "tests/labs/group.h"

#include <inttypes.h>

static void restart(struct lab *l, uint32_t peer)
{
    lab_start1(l, peer);
    lab_connect(l, peer);
}

static void persist_1(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    lab_one(&l, 11, 3, true);
    for (uint32_t i = 0; i < 3; i++) {
        lab_start1(&l, i);
    }
    for (uint32_t i = 0; i < 3; i++) {
        lab_connect(&l, i);
    }
    raft_index before = lab_one(&l, 12, 3, true);

    uint32_t leader = lab_one_leader(&l);
    restart(&l, leader);
    raft_index at = lab_one(&l, 13, 3, true);
    if (at <= before) {
        lab_fail(&l, "index went from %" PRIu64 " to %" PRIu64, before, at);
    }

    leader = lab_one_leader(&l);
    lab_disconnect(&l, leader);
    at = lab_one(&l, 14, 2, true);
    restart(&l, leader);
    uint64_t value = 0;
    lab_wait(&l, at, 3, 0, &value);

    uint32_t follower = (lab_one_leader(&l) + 1) % 3;
    lab_disconnect(&l, follower);
    lab_one(&l, 15, 2, true);
    restart(&l, follower);
    lab_one(&l, 16, 3, true);
    lab_end(&l);
}

static void persist_2(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 5, 0);
    uint64_t value = 11;
    for (int round = 0; round < 5; round++) {
        lab_one(&l, value++, 5, true);
        uint32_t leader = lab_one_leader(&l);
        lab_disconnect(&l, (leader + 1) % 5);
        lab_disconnect(&l, (leader + 2) % 5);
        lab_one(&l, value++, 3, true);

        lab_disconnect(&l, leader);
        lab_disconnect(&l, (leader + 3) % 5);
        lab_disconnect(&l, (leader + 4) % 5);
        lab_start1(&l, (leader + 1) % 5);
        lab_start1(&l, (leader + 2) % 5);
        lab_connect(&l, (leader + 1) % 5);
        lab_connect(&l, (leader + 2) % 5);
        lab_sleep(&l, LAB_ELECTION_MS);

        restart(&l, (leader + 3) % 5);
        lab_one(&l, value++, 3, true);
        lab_connect(&l, (leader + 4) % 5);
        lab_connect(&l, leader);
    }
    lab_one(&l, 1000, 5, true);
    lab_end(&l);
}

static void persist_3(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, 3, 0);
    lab_one(&l, 101, 3, true);
    uint32_t leader = lab_one_leader(&l);
    uint32_t stale = (leader + 2) % 3;
    lab_disconnect(&l, stale);
    lab_one(&l, 102, 2, true);

    lab_crash(&l, leader);
    lab_crash(&l, (leader + 1) % 3);
    lab_connect(&l, stale);
    restart(&l, leader);
    lab_one(&l, 103, 2, true);

    restart(&l, (leader + 1) % 3);
    lab_one(&l, 104, 3, true);
    lab_end(&l);
}

/* ---- Figure 8 of the paper ---- */

enum { FIGURE_8_ROUNDS = 1000, FIGURE_8_PEERS = 5 };

/* Asks every peer; the last one that says it leads, or -1. */
static int begin_anywhere(struct lab *l)
{
    int leader = -1;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        struct lab_begun begun = lab_begin_command(l, i, lab_random(l));
        if (begun.ok && l->peers[i].connected) {
            leader = (int)i;
        }
    }
    return leader;
}

/* To the microsecond: what the labs' leaders die in the middle of takes
 * milliseconds, ours less. */
static void figure_8_pause(struct lab *l)
{
    uint64_t most_ms = lab_chance(l, 100) ? LAB_ELECTION_MS / 2 : 13;
    lab_sleep_us(l, lab_random(l) % (most_ms * 1000));
}

static void figure_8(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, FIGURE_8_PEERS, LAB_SLOW);
    lab_one(&l, lab_random(&l), 1, true);
    int up = FIGURE_8_PEERS;
    for (int i = 0; i < FIGURE_8_ROUNDS && !lab_failed(&l); i++) {
        int leader = begin_anywhere(&l);
        figure_8_pause(&l);
        if (leader >= 0) {
            lab_crash(&l, (uint32_t)leader);
            up--;
        }
        uint32_t one = (uint32_t)(lab_random(&l) % FIGURE_8_PEERS);
        if (up < 3 && !l.peers[one].up) {
            restart(&l, one);
            up++;
        }
    }
    for (uint32_t i = 0; i < FIGURE_8_PEERS; i++) {
        if (!l.peers[i].up) {
            restart(&l, i);
        }
    }
    lab_one(&l, lab_random(&l), FIGURE_8_PEERS, true);
    lab_end(&l);
}

static void figure_8_unreliable(struct lab_run *run)
{
    struct lab l;
    lab_begin(&l, run, FIGURE_8_PEERS, LAB_UNRELIABLE | LAB_SLOW);
    lab_one(&l, lab_random(&l), 1, true);
    int up = FIGURE_8_PEERS;
    for (int i = 0; i < FIGURE_8_ROUNDS && !lab_failed(&l); i++) {
        if (i == 200) {
            lab_network(&l, true, true);
        }
        int leader = begin_anywhere(&l);
        figure_8_pause(&l);
        if (leader >= 0 && lab_chance(&l, 500)) {
            lab_disconnect(&l, (uint32_t)leader);
            up--;
        }
        uint32_t one = (uint32_t)(lab_random(&l) % FIGURE_8_PEERS);
        if (up < 3 && !l.peers[one].connected) {
            lab_connect(&l, one);
            up++;
        }
    }
    for (uint32_t i = 0; i < FIGURE_8_PEERS; i++) {
        lab_connect(&l, i);
    }
    lab_one(&l, lab_random(&l), FIGURE_8_PEERS, true);
    lab_end(&l);
}

/* ---- unreliable agreement ---- */

enum { AGREE_ROUNDS = 49, AGREE_BESIDE = 4 };

static void unreliable_agree(struct lab_run *run)
{
    struct lab l;
    struct lab_agreement beside[AGREE_ROUNDS * AGREE_BESIDE] = {0};
    lab_begin(&l, run, 5, LAB_UNRELIABLE);
    for (uint64_t i = 0; i < AGREE_ROUNDS; i++) {
        for (uint64_t j = 0; j < AGREE_BESIDE; j++) {
            struct lab_agreement *a = &beside[i * AGREE_BESIDE + j];
            *a = (struct lab_agreement){.value = 100 * (i + 1) + j,
                                        .size = LAB_COMMAND_SIZE,
                                        .peers = 1,
                                        .retry = true};
            lab_agreement_begin(&l, a);
        }
        lab_one(&l, i + 1, 1, true);
    }
    lab_network(&l, false, false);
    for (int i = 0; i < AGREE_ROUNDS * AGREE_BESIDE; i++) {
        while (!beside[i].done && !lab_failed(&l)) {
            lab_sleep(&l, 10);
        }
    }
    lab_one(&l, 100, 5, true);
    lab_end(&l);
}

/* ---- churn ---- */

enum { CHURN_PEERS = 5, CHURN_CLIENTS = 3, CHURN_VALUES_MAX = 4096 };

/* One that submits a value, waits for it for a while, and notes it if it saw
 * it committed. */
struct churn_client {
    struct lab_task task;
    struct lab *lab;
    uint32_t number;
    bool stop, stopped;
    uint64_t value;
    raft_index index; /* under way; 0: none */
    uint32_t look;
    uint64_t *seen;
    uint32_t seen_count;
};

static const uint64_t churn_pauses_ms[] = {10, 20, 50, 100, 200};

enum { CHURN_LOOKS = sizeof churn_pauses_ms / sizeof *churn_pauses_ms };

static uint64_t client_submit(struct churn_client *c)
{
    c->value = lab_random(c->lab);
    c->look = 0;
    for (uint32_t i = 0; i < CHURN_PEERS; i++) {
        struct lab_begun begun = lab_begin_command(c->lab, i, c->value);
        if (begun.ok) {
            c->index = begun.index;
        }
    }
    return c->index != 0 ? churn_pauses_ms[0] : 79 + c->number * 17;
}

static uint64_t client_poll(struct lab_task *task)
{
    struct churn_client *c = (struct churn_client *)task;
    uint64_t value = 0;
    bool committed =
        c->index != 0 && lab_committed(c->lab, c->index, &value) > 0;
    if (c->index != 0 && !committed && ++c->look < CHURN_LOOKS) {
        return churn_pauses_ms[c->look];
    }
    if (committed && value == c->value && c->seen_count < CHURN_VALUES_MAX) {
        c->seen[c->seen_count++] = value;
    }
    c->index = 0;
    c->stopped = c->stop;
    return c->stop ? 0 : client_submit(c);
}

static void churn_step(struct lab *l)
{
    if (lab_chance(l, 200)) {
        lab_disconnect(l, (uint32_t)(lab_random(l) % CHURN_PEERS));
    }
    if (lab_chance(l, 500)) {
        uint32_t peer = (uint32_t)(lab_random(l) % CHURN_PEERS);
        if (!l->peers[peer].up) {
            lab_start1(l, peer);
        }
        lab_connect(l, peer);
    }
    if (lab_chance(l, 200)) {
        lab_crash(l, (uint32_t)(lab_random(l) % CHURN_PEERS));
    }
    /* Seldom enough that the peers can often keep up, often enough that not
     * everything settles in between. */
    lab_sleep(l, LAB_ELECTION_MS * 7 / 10);
}

static void check_seen(struct lab *l, const struct churn_client *c,
                       raft_index last)
{
    for (uint32_t i = 0; i < c->seen_count; i++) {
        bool found = false;
        for (raft_index index = 1; index <= last && !found; index++) {
            found = l->decided.entries[index - 1].value == c->seen[i];
        }
        if (!found) {
            lab_fail(l,
                     "didn't find a value: client %u saw %" PRIu64
                     " committed, and it is not in the log",
                     c->number, c->seen[i]);
        }
    }
}

static void churn_end(struct lab *l, struct churn_client *clients)
{
    lab_sleep(l, LAB_ELECTION_MS);
    lab_network(l, false, false);
    for (uint32_t i = 0; i < CHURN_PEERS; i++) {
        if (!l->peers[i].up) {
            lab_start1(l, i);
        }
        lab_connect(l, i);
    }
    for (int i = 0; i < CHURN_CLIENTS; i++) {
        clients[i].stop = true;
        while (!clients[i].stopped && !lab_failed(l)) {
            lab_sleep(l, 10);
        }
    }
    lab_sleep(l, LAB_ELECTION_MS);
    raft_index last = lab_one(l, lab_random(l), CHURN_PEERS, true);
    for (raft_index index = 1; index <= last && !lab_failed(l); index++) {
        uint64_t value = 0;
        lab_wait(l, index, CHURN_PEERS, 0, &value);
    }
    for (int i = 0; i < CHURN_CLIENTS; i++) {
        check_seen(l, &clients[i], last);
    }
}

static void churn(struct lab_run *run, unsigned options)
{
    struct lab l;
    struct churn_client clients[CHURN_CLIENTS] = {0};
    lab_begin(&l, run, CHURN_PEERS, options);
    for (uint32_t i = 0; i < CHURN_CLIENTS; i++) {
        clients[i].task.poll_ms = client_poll;
        clients[i].lab = &l;
        clients[i].number = i;
        clients[i].seen = mem_array(CHURN_VALUES_MAX, sizeof(uint64_t));
        lab_task_begin(&l, &clients[i].task);
    }
    for (int i = 0; i < 20; i++) {
        churn_step(&l);
    }
    churn_end(&l, clients);
    for (int i = 0; i < CHURN_CLIENTS; i++) {
        mem_free(clients[i].seen);
    }
    lab_end(&l);
}

static void reliable_churn(struct lab_run *run)
{
    churn(run, 0);
}

static void unreliable_churn(struct lab_run *run)
{
    churn(run, LAB_UNRELIABLE);
}

static const struct lab_row rows[] = {
    {"R14", "TestPersist12C", "basic persistence", persist_1, 0},
    {"R15", "TestPersist22C", "more persistence", persist_2, 0},
    {"R16", "TestPersist32C",
     "partitioned leader and one follower crash, leader restarts", persist_3,
     0},
    {"R17", "TestFigure82C", "Figure 8", figure_8, 0},
    {"R18", "TestUnreliableAgree2C", "unreliable agreement", unreliable_agree,
     0},
    {"R19", "TestFigure8Unreliable2C", "Figure 8 (unreliable)",
     figure_8_unreliable, 0},
    {"R20", "TestReliableChurn2C", "churn", reliable_churn, 0},
    {"R21", "TestUnreliableChurn2C", "unreliable churn", unreliable_churn, 0},
};

LAB_TABLE(lab_raft_2c, "2C", rows);
