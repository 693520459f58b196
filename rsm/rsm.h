/* A replicated state machine: the shell that shardkv and shardctrler both stand
 * on. It runs the Raft core, its log, its timers and its messages, and calls
 * its user's state machine with committed entries, in order, once each.
 *
 * Threads (workers of the env), few and fixed; they pass jobs, they share no
 * locked structure:
 *   loop     the core, messages, timers, proposals and their answers
 *   "wal"    group commit: one wal_append() for all updates that waited
 *   "apply"  the state machine: apply, reads, checkpoints, snapshot install
 *   "snap"   making and compressing a snapshot for a peer
 *
 * It knows no keys and no shards. */
#ifndef RSM_RSM_H
#define RSM_RSM_H

#include "base/env.h"
#include "raft/raft.h"
#include "raft/storage/disk.h"
#include "raft/storage/snapfile.h"
#include "transport/net.h"

#define RSM_METHOD_RAFT 0x10 /* one-way: an encoded raft_msg */
#define RSM_METHOD_SNAP 0x11 /* call: a chunk of a snapshot stream */
#define RSM_METHOD_MAX  0x1f

#define RSM_COMMAND_SIZE_MAX (4u << 20)

/* A committed entry on its way through apply(). NOOP and CONF entries are shown
 * too (`command` empty), so that the state machine's applied index never has a
 * gap. */
struct rsm_entry {
    raft_index index;
    raft_term term;
    enum raft_entry_type type;
    struct slice command; /* borrowed */
    /* Where the answer goes; NULL when nobody here waits for it. */
    struct buf *reply;
};

/* The user's state machine. Everything is called on the "apply" worker, except
 * snap_read() and snap_end() ("snap"). Errors other than those named end the
 * replica: it cannot go on from half an entry. */
struct rsm_fsm;
struct rsm_fsm_ops {
    /* The last entry whose effects are on disk: replay begins after it. Called
     * once, at start, on the caller's thread. */
    raft_index (*durable)(struct rsm_fsm *fsm, raft_term *term);
    enum err (*apply)(struct rsm_fsm *fsm, struct rsm_entry *entries,
                      uint32_t count);
    /* Makes all that was applied durable (durable() would name it). */
    enum err (*checkpoint)(struct rsm_fsm *fsm);
    /* Freezes a view of what is applied now, cheaply; its label is the last
     * applied index. */
    enum err (*snap_begin)(struct rsm_fsm *fsm, void **view);
    /* Writes the view's bytes to `sink`; apply() goes on meanwhile. */
    enum err (*snap_read)(struct rsm_fsm *fsm, void *view,
                          struct snap_sink *sink);
    void (*snap_end)(struct rsm_fsm *fsm, void *view);
    /* Replaces all state by the bytes of `source`, durably and atomically: a
     * crash leaves the old state or the new. ERR_CORRUPT: the old state
     * stands. */
    enum err (*snap_install)(struct rsm_fsm *fsm, struct snap_source *source,
                             raft_index index, raft_term term);
};
struct rsm_fsm {
    const struct rsm_fsm_ops *ops;
};

struct rsm_peer {
    raft_id id;
    char address[NET_ADDRESS_SIZE_MAX];
};

struct rsm_config {
    struct env *env;
    struct net *net;   /* rsm sends; the user's handler gives it RSM_METHOD_* */
    struct disk *disk; /* uses the directories "wal" and "snap" */
    struct rsm_fsm *fsm;
    uint32_t group; /* only servers of this group may speak Raft to us */
    raft_id id;
    struct rsm_peer peers[RAFT_PEERS_MAX]; /* the first configuration, self */
    uint32_t peer_count;                   /* included */
    uint32_t heartbeat_ms, election_min_ms, election_max_ms; /* 0: default */
    size_t wal_segment_size;                                 /* 0: 64 MiB */
    size_t checkpoint_size_max; /* log bytes between checkpoints; 0: 8 MiB */
    uint32_t checkpoint_ms_max; /* time between; 0: 1000 */
    size_t append_size_max;     /* of a message with entries; 0: default */
    size_t log_keep_size; /* bytes kept after a checkpoint for slow followers */
    /* A new leader proposes nothing by itself, as in the labs, which count the
     * entries from 1. Nothing commits and no read is answered until the user
     * proposes something in the new term. */
    bool no_noop;
    /* On the loop. `leader`: this replica can propose from now on, or no
     * longer. `applied`: another batch went through apply(). May be NULL. */
    void (*on_leader)(void *arg, bool leader);
    void (*on_applied)(void *arg);
    void *arg;
};

struct rsm;

/* Opens the log, replays nothing yet, starts. ERR_CORRUPT and ERR_IO are logged
 * with what to do. */
MUST_USE enum err rsm_new(const struct rsm_config *config, struct rsm **out);

/* Stops and frees. Waiting proposals and reads get ERR_CLOSED first. */
void rsm_free(struct rsm *r);

/* Hands leadership over if this replica has it, so that nobody waits for a
 * timeout; then calls `done`, after `timeout_ms` at the latest. */
void rsm_step_down(struct rsm *r, uint32_t timeout_ms, void (*done)(void *arg),
                   void *arg);

/* A proposal, embedded by the caller until done(). ERR_OK: applied, and
 * `reply` is what apply() wrote. ERR_NOTLEADER and ERR_CLOSED: it may or may
 * not be applied later. ERR_BUSY, ERR_TOOBIG: it will not. */
struct rsm_proposal {
    void (*done)(struct rsm_proposal *p, enum err rc, struct slice reply);
    /* The rest is rsm's. */
    raft_index index;
    raft_term term;
    enum err rc;
    struct bytes *command;
    struct buf reply;
    struct rsm_proposal *next, *prev;
};

/* Takes the caller's reference to `command`. done() is never called from
 * inside. */
void rsm_propose(struct rsm *r, struct rsm_proposal *p, struct bytes *command);

/* A linearizable read, embedded by the caller until done(): once a majority has
 * confirmed that we lead, and the state machine has caught up, run() is called
 * on the "apply" worker between two entries, then done() on the loop. With an
 * error run() was not called. */
struct rsm_read {
    void (*run)(struct rsm_read *rd);
    void (*done)(struct rsm_read *rd, enum err rc);
    /* The rest is rsm's. */
    enum err rc;
    struct rsm_read *next;
};
void rsm_read(struct rsm *r, struct rsm_read *rd);

/* As rsm_read() without the confirmation: what this replica has applied, which
 * may be old. For status and for followers' own work. */
void rsm_read_local(struct rsm *r, struct rsm_read *rd);

/* The user's net handler passes what has an RSM_METHOD_* to here. */
void rsm_handle(struct rsm *r, struct net_request *request,
                const struct net_peer *peer, net_method method,
                struct slice body);
/* The user's net down function passes on. */
void rsm_peer_down(struct rsm *r, const char *address);

bool rsm_is_leader(const struct rsm *r);
/* The leader's address as far as we know; "" when unknown. */
const char *rsm_leader_address(const struct rsm *r);

struct rsm_status {
    struct raft_status raft;
    raft_index applied;
    raft_index durable;
    uint64_t wal_bytes; /* written since start */
    uint64_t wal_syncs;
    uint32_t proposals_waiting;
};
void rsm_status(const struct rsm *r, struct rsm_status *status);
/* The core, for tests that look at its log. */
const struct raft *rsm_raft(const struct rsm *r);

#endif
