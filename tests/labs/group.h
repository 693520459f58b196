/* One Raft group as the labs test it: the shell that ships (rsm/, with the
 * core, the log on disk, the timers and the snapshots) under the labs' network,
 * crashes and questions. Two harnesses stand behind it: group.c on virtual
 * time, tests/real/group.c on processes.
 *
 * A row's function calls these one after the other, as a lab's test does; the
 * world moves on only inside them. When a property does not hold the run has
 * failed: all calls then return at once, with a harmless value, so that the
 * function simply runs to its end.
 *
 * Always: a term has one leader. At each apply: entries come in order, once,
 * and what is applied at an index is the same on every peer, in every life, for
 * ever. */
#ifndef TESTS_LABS_GROUP_H
#define TESTS_LABS_GROUP_H

#include "base/rng.h"
#include "rsm/rsm.h"
#include "tests/labs/labs.h"

enum {
    LAB_PEERS_MAX = 7,
    LAB_ELECTION_MS = 1000, /* the labs' word for "a while" */
    LAB_SNAPSHOT_INTERVAL = 10,
    LAB_STATE_SIZE_MAX = 2000,
    LAB_COMMAND_SIZE = 8,
    LAB_COMMANDS_MAX = 16, /* begun at once */
    LAB_TEST_SECONDS_MAX = 120,
};

enum lab_option {
    LAB_UNRELIABLE = 1, /* the net delays 0-26 ms, and loses 10% each way */
    LAB_SNAPSHOTS = 2,  /* the state machine goes to disk every 10 entries */
    /* The row counts entries from 1: never a no-op. Without it, every second
     * seed runs as what ships does, with one at the start of each term. */
    LAB_EXACT = 4,
    /* In half of the seeds the disks are slow, and if the net is reliable it is
     * slow, too, and a message carries one entry: so that a leader can die
     * between the entries of an older term and its own (figure 8). */
    LAB_SLOW = 8,
};

struct lab_entry {
    uint64_t value; /* the first 8 bytes of the command */
    uint32_t crc;   /* of all of it */
    uint32_t type;
};

/* What was applied: [i] is at index i + 1. */
struct lab_log {
    struct lab_entry *entries;
    raft_index count, capacity;
    raft_term term; /* of the last one */
};

struct lab_peer {
    bool up;
    bool connected;
    raft_index applied; /* in this life, what it restored included */
};

/* Of all messages that anybody has given to the network, the lost too. */
struct lab_counts {
    uint64_t requests, replies, bytes;
    uint64_t refusals; /* of APPENDs, for logs that do not fit */
    uint64_t chunks;   /* of snapshots */
    uint64_t installs; /* of snapshots, by anybody */
};

/* Something that goes on beside the row's function: poll() is called when it
 * is due, and says when again; 0: never. */
struct lab_task {
    uint64_t due_us;
    uint64_t (*poll_ms)(struct lab_task *task);
    struct lab_task *next;
};

struct group; /* the harness's own */

struct lab {
    struct lab_run *run;
    struct group *group;
    struct rng *rng;
    uint32_t peer_count;
    unsigned options;
    struct lab_peer peers[LAB_PEERS_MAX];
    struct lab_log decided; /* by anybody, ever */
    raft_id *leaders;       /* by term; 0: none yet */
    raft_term term_count;
    struct lab_task *tasks;
    uint64_t begun_us;
};

/* ---- what a harness does ---- */

void lab_begin(struct lab *l, struct lab_run *run, uint32_t peer_count,
               unsigned options);
void lab_end(struct lab *l);

/* The property that does not hold; the first one stands. */
void lab_fail(struct lab *l, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
bool lab_failed(const struct lab *l);
uint64_t lab_now_us(const struct lab *l);
void lab_run_to(struct lab *l, uint64_t end_us); /* the world moves on */

void lab_crash(struct lab *l, uint32_t peer);
void lab_start1(struct lab *l, uint32_t peer); /* crashes it first if it runs */
void lab_connect(struct lab *l, uint32_t peer);
void lab_disconnect(struct lab *l, uint32_t peer);
/* What the net does from now on; it begins as the options say. */
void lab_network(struct lab *l, bool unreliable, bool long_reordering);

/* What GetState() gives; 0 and false for one that is down. */
raft_term lab_term(struct lab *l, uint32_t peer, bool *leader);

/* Start(): not ok if `peer` is down or no leader. */
struct lab_begun {
    bool ok;
    raft_index index;
    raft_term term;
};
/* Several in the same turn of the peer's loop. */
void lab_begin_sized(struct lab *l, uint32_t peer, const uint64_t *values,
                     uint32_t count, size_t size, struct lab_begun *begun);

void lab_count(struct lab *l, struct lab_counts *counts);
/* What a peer's log is on disk (the records that a restart needs), at most,
 * over all peers; of one that is down, when it was last up. */
size_t lab_state_size(struct lab *l);
/* In how many files at most; of those that are up. */
uint32_t lab_state_files(struct lab *l);
/* What the state machine on its disk has applied. */
raft_index lab_stored(struct lab *l, uint32_t peer);

/* ---- what is the same for both (ask.c) ---- */

uint64_t lab_random(struct lab *l);
bool lab_chance(struct lab *l, uint32_t per_mille);
void lab_sleep(struct lab *l, uint64_t ms);
void lab_sleep_us(struct lab *l, uint64_t us);
void lab_task_begin(struct lab *l, struct lab_task *task);

uint32_t lab_one_leader(struct lab *l); /* within about 5 s */
void lab_no_leader(struct lab *l);
raft_term
lab_same_term(struct lab *l); /* on which all who are connected agree */

struct lab_begun lab_begin_command(struct lab *l, uint32_t peer,
                                   uint64_t value);
void lab_begin_commands(struct lab *l, uint32_t peer, const uint64_t *values,
                        uint32_t count, struct lab_begun *begun);

/* How many peers have applied `index`, and what. */
uint32_t lab_committed(const struct lab *l, raft_index index, uint64_t *value);
/* Waits until `peers` have. False: someone moved on from `term` (0: any). */
bool lab_wait(struct lab *l, raft_index index, uint32_t peers, raft_term term,
              uint64_t *value);

/* one(): an agreement by `peers` within about 10 s, 2 s a try; the index. */
raft_index lab_one(struct lab *l, uint64_t value, uint32_t peers, bool retry);
raft_index lab_one_sized(struct lab *l, uint64_t value, size_t size,
                         uint32_t peers, bool retry);

/* one(), beside the row's function. */
struct lab_agreement {
    struct lab_task task;
    struct lab *lab;
    uint64_t value;
    size_t size;
    uint32_t peers;
    bool retry;
    uint64_t begun_us, tried_us; /* 0: nothing is under way */
    uint32_t next_peer;
    raft_index index; /* under way; in the end, where it is */
    bool done;
};
void lab_agreement_begin(struct lab *l, struct lab_agreement *a);

/* Requests, and replies that nobody asked for. Also those that were lost. */
uint64_t lab_rpcs(struct lab *l);

/* ---- for the harnesses (ask.c, entry.c) ---- */

/* `peer` leads in `term`: nobody else may. */
void lab_saw_leader(struct lab *l, uint32_t peer, raft_term term);
/* The labs' checkLogs(): the next entry that `peer` applies, against all that
 * was ever applied anywhere. */
void lab_saw_applied(struct lab *l, uint32_t peer, raft_index index,
                     const struct lab_entry *entry);
void lab_report(struct lab *l);
void lab_free(struct lab *l);

void lab_log_add(struct lab_log *log, struct lab_entry entry);
void lab_log_copy(struct lab_log *to, const struct lab_log *from);
void lab_log_fini(struct lab_log *log);
/* A state machine that is a list: of an entry it keeps this. */
struct lab_entry lab_entry_of(const struct rsm_entry *e);
MUST_USE enum err lab_log_read(struct snap_source *source, struct lab_log *log);
/* The same value and size are the same bytes. */
struct bytes *lab_command(uint64_t value, size_t size);
/* The records on disk that a restart needs, with their heads. */
size_t lab_log_size(const struct rsm *rsm);
uint32_t lab_wal_files(struct disk *disk);
/* `snapshot` as a peer gets it: compressed, with its label. */
size_t lab_stream_size(struct slice snapshot);
bool lab_raft_is_reply(struct slice body);   /* of RSM_METHOD_RAFT */
bool lab_raft_is_refusal(struct slice body); /* the log did not fit */
/* Of a vote that is given; else 0. */
raft_term lab_raft_vote_term(struct slice body);
/* What a peer runs with, but for where it is: env, net, disk, fsm, peers. */
struct rsm_config lab_rsm_config(unsigned options, uint64_t seed);

#endif
