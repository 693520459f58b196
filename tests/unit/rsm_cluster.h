/* Three replicas in one thread: virtual time, a network that can lose and cut,
 * disks that forget what was not synced (rsm_world.c); a state machine that is
 * a list of numbers, and clients (rsm_cluster.c). */
#ifndef TESTS_UNIT_RSM_CLUSTER_H
#define TESTS_UNIT_RSM_CLUSTER_H

#include "base/rng.h"
#include "rsm/rsm.h"
#include "tests/lib/faultdisk.h"

enum { NODES = 3, GROUP = 7, PAD = 200 };

/* ---- rsm_world.c ---- */

struct event;
extern struct world {
    uint64_t now_us;
    uint64_t order;
    uint64_t fired;       /* events so far */
    struct event *events; /* by time */
    struct rng rng;
} world;

bool run_one(void); /* false: nothing will happen any more */
void run_ms(uint64_t ms);

extern struct node {
    struct env env;
    struct net net;
    struct rsm_fsm fsm;
    uint32_t at; /* index of this node */
    struct rsm *rsm;
    struct faultdisk *disk;
    bool fatal;
    bool cut; /* from the network */
    bool leader;
    uint32_t leader_calls;
    uint32_t brief_syncs; /* jobs of "wal" that the loop might run itself */
    uint64_t sent_in, brief_in; /* of `fired`: the last time */

    /* The state machine: now, and on its disk. */
    struct list {
        uint64_t *numbers;
        uint32_t count, capacity;
        raft_index index;
        raft_term term;
    } now, stored, frozen;
    uint32_t installs;
    uint32_t snapshots;
} nodes[NODES];

extern const struct env_ops env_ops;
extern const struct net_ops net_ops;
extern struct call *calls; /* that wait for an answer */

extern uint32_t slow_per_mille;          /* jobs that take long */
extern uint64_t apply_us, checkpoint_us; /* these workers' take so much more */
extern uint32_t loss_per_mille;
extern enum net_role sender_role; /* of all messages */
extern uint32_t sender_group;

struct net_request {
    uint64_t call;
};

/* What a client's request was answered, which came past the net. */
extern struct answer {
    bool ended;
    enum err rc;
} answer;

/* ---- rsm_cluster.c: replicas ---- */

/* Of the next start. */
extern size_t keep_size;
extern size_t under_way_size;
extern uint64_t snap_rate;
extern uint32_t checkpoint_ms;
/* What each command since the checkpoint is said to take. */
extern uint64_t unsaved_each;
/* A state machine whose checkpoints have steps, and which has no snapshots. */
extern const struct rsm_fsm_ops stepping_ops;

enum err node_try_start(uint32_t at);
void node_start(uint32_t at);
void node_stop(uint32_t at);
/* A power cut: what the workers had not stored yet fails, and what was not
 * synced is lost. */
void node_crash(uint32_t at);

void cluster_new(uint64_t seed); /* nothing runs yet */
void cluster_start(uint64_t seed);
void cluster_free(void);
/* The one that says it leads, and has applied its no-op; waits for one. */
struct node *await_leader(void);
bool all_equal(void);
void await_all_equal(void);

/* ---- clients ---- */

struct client {
    struct rsm_proposal proposal;
    uint64_t number;
    bool ended;
    enum err rc;
    uint32_t place;
};

void propose_sized(struct node *n, struct client *c, uint64_t number,
                   size_t size);
void propose(struct node *n, struct client *c, uint64_t number);
void await_client(const struct client *c);
void propose_many(struct node *n, uint64_t first, uint32_t count);

struct reader {
    struct rsm_read read;
    struct node *node;
    uint32_t count; /* the length of the list that it saw */
    size_t holds;   /* its answer */
    bool ended;
    enum err rc;
};

extern struct held {
    size_t now, most;
} held; /* by the answers of all readers */

void read_begin(struct node *n, struct reader *rd);

#endif
