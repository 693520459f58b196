/* A replicated state machine: the shell that shardkv and shardctrler both stand
 * on. It runs the Raft core, its log, its timers and its messages, and calls
 * its user's state machine with committed entries, in order, once each.
 *
 * Threads (workers of the env), few and fixed; they pass jobs, they share no
 * locked structure:
 *   loop     the core, messages, timers, proposals and their answers
 *   "wal"    group commit: one wal_append() for all updates that waited
 *   "apply"  the state machine: apply, reads, checkpoints, snapshot install
 *   "checkpoint"  the slow part of a checkpoint
 *   "snap"   making and compressing a snapshot for a peer; receiving one
 *   "read"   what is sent to a peer that is far behind, from the disk
 *
 * It knows no keys and no shards. */
#ifndef RSM_RSM_H
#define RSM_RSM_H

#include "base/env.h"
#include "base/msg.h"
#include "raft/raft.h"
#include "raft/storage/disk.h"
#include "raft/storage/snapfile.h"
#include "transport/net.h"

#define RSM_METHOD_RAFT   0x10 /* one-way: an encoded raft_msg */
#define RSM_METHOD_SNAP   0x11 /* call: a chunk of a snapshot stream */
#define RSM_METHOD_CHANGE 0x12 /* rsm_wish -> empty; admin */
#define RSM_METHOD_MEMBERS                                                     \
    0x13                      /* empty -> rsm_members, as this replica sees    \
                               */
#define RSM_METHOD_HELLO 0x14 /* one-way: rsm_hello */
#define RSM_METHOD_GONE  0x15 /* one-way: rsm_gone */
#define RSM_METHOD_MAX   0x1f

/* A change of members, asked of the leader: answered when it is committed.
 * ERR_TIMEDOUT: not yet, ask again. ERR_BUSY: after it no majority would
 * answer. ERR_EXISTS: the address is another's, or the id was given before.
 * ERR_NOTFOUND: no such replica. ERR_INVALID: the last voter. An id is never
 * used again, for another replica or for one that lost its disk. */
enum rsm_change_kind {
    RSM_ADD = 1,     /* `id` at `address`, as a learner */
    RSM_PROMOTE = 2, /* a learner votes, once it has what the log has now */
    RSM_REMOVE = 3,
    RSM_TRANSFER = 4, /* `id` leads (0: any other) */
};
#define RSM_WISH_FIELDS(F)                                                     \
    F(U8, kind) F(U64, id) F(BYTES, address) F(U32, timeout_ms)
MSG_STRUCT(rsm_wish, RSM_WISH_FIELDS);

enum rsm_member_role {
    RSM_VOTER = 1,
    RSM_LEARNER = 2,
    RSM_ARRIVING = 3, /* a voter of the new set only, while it is joint */
    RSM_LEAVING = 4,  /* of the old set only */
};
/* The leader's snapshot for a member, on its way; what its bytes are of. */
enum rsm_snap_phase {
    RSM_SNAP_NONE = 0,
    RSM_SNAP_MAKING = 1,     /* written at the leader; how many is not known */
    RSM_SNAP_SENDING = 2,    /* stored at the member */
    RSM_SNAP_INSTALLING = 3, /* put in the place of its state */
};
#define RSM_MEMBER_FIELDS(F)                                                   \
    F(U64, id)                                                                 \
    F(BYTES, address)                                                          \
    F(U8, role)                                                                \
    F(U64, match) /* on its disk, as the leader knows */                       \
    F(U8, active)                                                              \
    F(U8, snap_phase)  /* making, sending, installing; 0: none */              \
    F(U64, snap_index) /* of the snapshot that it is sent; 0: none */          \
    F(U64, snap_done)  /* bytes, in this phase */                              \
    F(U64, snap_all)   /* 0: not known yet */
MSG_STRUCT(rsm_member, RSM_MEMBER_FIELDS);
#define RSM_MEMBERS_FIELDS(F)                                                  \
    F(U32, group) /* whose members: addresses change hands */                  \
    F(U64, leader)                                                             \
    F(U64, term)                                                               \
    F(U64, last_index)                                                         \
    F(U8, settled)  /* the configuration is committed, and not joint */        \
    F(U64, last_id) /* ever given; a new replica gets a higher one */          \
    F(LIST, rsm_member, members, RAFT_PEERS_MAX)
MSG_STRUCT(rsm_members, RSM_MEMBERS_FIELDS);

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
 * snap_read() and snap_end() ("snap") and checkpoint_write() ("checkpoint").
 * Errors other than those named end the
 * replica: it cannot go on from half an entry. ERR_NOSPACE does not: the
 * replica waits for space (rsm/space.c). */
struct rsm_fsm;
struct rsm_fsm_ops {
    /* The last entry whose effects are on disk: replay begins after it. Called
     * once, at start, on the caller's thread. */
    raft_index (*durable)(struct rsm_fsm *fsm, raft_term *term);
    enum err (*apply)(struct rsm_fsm *fsm, struct rsm_entry *entries,
                      uint32_t count);
    /* Makes all that was applied durable (durable() would name it). */
    enum err (*checkpoint)(struct rsm_fsm *fsm);
    /* The same in three steps, or NULL. apply() and all else goes on between
     * them, so begin and end must be quick; end() is called whatever write()
     * gave, and gives it too. What durable() names after it is durable: maybe
     * something else than begin() saw, if there was a rewind or an install. */
    enum err (*checkpoint_begin)(struct rsm_fsm *fsm);
    enum err (*checkpoint_write)(struct rsm_fsm *fsm);
    enum err (*checkpoint_end)(struct rsm_fsm *fsm);
    /* Bytes of memory that the next checkpoint frees, and that writing it
     * takes, about; NULL: few. Not those of one that was begun. */
    uint64_t (*unsaved)(struct rsm_fsm *fsm);
    /* Freezes a view of what is applied now, cheaply; its label is the last
     * applied index. */
    enum err (*snap_begin)(struct rsm_fsm *fsm, void **view);
    /* Writes the view's bytes to `sink`; apply() goes on meanwhile. */
    enum err (*snap_read)(struct rsm_fsm *fsm, void *view,
                          struct snap_sink *sink);
    void (*snap_end)(struct rsm_fsm *fsm, void *view);
    /* apply(), checkpoint() or snap_begin() gave ERR_NOSPACE, maybe in the
     * middle of an entry: back to the last checkpoint, as a restart goes;
     * durable() names it, and the entries after it come again. NULL if
     * ERR_NOSPACE never changes anything here: what failed is tried again. */
    enum err (*rewind)(struct rsm_fsm *fsm);
    /* Replaces all state by the bytes of `source`, durably and atomically: a
     * crash leaves the old state or the new. ERR_CORRUPT, ERR_NOSPACE: the old
     * state stands. */
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
    /* The first configuration, self included, for a log that is new; and where
     * these are, until the log says. */
    struct rsm_peer peers[RAFT_PEERS_MAX];
    uint32_t peer_count;
    /* The disk must have this replica's identity (rsm_identity_make()), which
     * says whether it founds the group or joins it. False: tests. */
    bool identified;
    uint32_t heartbeat_ms, election_min_ms, election_max_ms; /* 0: default */
    size_t wal_segment_size;                                 /* 0: 64 MiB */
    /* Log bytes between checkpoints, 0: 16 MiB; a checkpoint is also made when
     * the state machine has half as much again unsaved. When the disk cannot
     * keep up, applying waits for it (rsm/checkpoint.c, 6). */
    size_t checkpoint_size_max;
    uint32_t checkpoint_ms_max; /* time between; 0: 2000 */
    size_t append_size_max;     /* of a message with entries; 0: default */
    size_t under_way_size; /* proposed and not answered, then others wait; 0: 8
                              MiB, two of the longest */
    size_t log_keep_size; /* bytes kept after a checkpoint for slow followers */
    /* The most that is kept on disk for followers that are behind; 0: as long
     * as they answer and there is room. Memory holds twice log_keep_size. */
    uint64_t log_hold_size;
    size_t snap_piece_size; /* of a snapshot, on average; 0: the default */
    uint64_t snap_rate; /* bytes a second to one peer at most; 0: no limit */
    uint64_t space_low; /* free bytes below which no entry is stored; 0: 32 MiB
                         */
    uint32_t space_patience_ms; /* how long a group without space makes writers
                                   wait before they get ERR_NOSPACE; 0: 10 s */
    /* As leader, answer reads without asking a majority while a lease lasts
     * (raft/lease.c): safe only while no replica's clock runs more than
     * RAFT_LEASE_DRIFT_PERCENT faster than another's, or stands still. */
    bool lease_reads;
    /* A new leader proposes nothing by itself, as in the labs, which count the
     * entries from 1. Nothing commits and no read is answered until the user
     * proposes something in the new term. */
    bool no_noop;
    /* On the loop. `leader`: this replica can propose from now on, or no
     * longer. `applied`: another batch went through apply(). May be NULL. */
    void (*on_leader)(void *arg, bool leader);
    void (*on_applied)(void *arg);
    /* On the loop: the group goes on without this replica, for good. */
    void (*on_removed)(void *arg);
    void *arg;
};

/* Makes the identity of a new replica on its empty disk. `joining`: the group
 * is there already, and is told by RSM_ADD; else it is of the first ones.
 * Made already: fine. ERR_EXISTS: the disk is another replica's. */
MUST_USE enum err rsm_identity_make(struct disk *disk, uint32_t group,
                                    raft_id id, bool joining);

struct rsm;

/* Opens the log, replays nothing yet, starts. ERR_CORRUPT, ERR_IO and
 * ERR_NOTFOUND (the replica's data is lost) are logged with what to do. */
MUST_USE enum err rsm_new(const struct rsm_config *config, struct rsm **out);

/* Stops and frees. Waiting proposals and reads get ERR_CLOSED first. */
void rsm_free(struct rsm *r);

/* Hands leadership over if this replica has it, so that nobody waits for a
 * timeout; then calls `done`, after `timeout_ms` at the latest. */
void rsm_step_down(struct rsm *r, uint32_t timeout_ms, void (*done)(void *arg),
                   void *arg);

/* A proposal, embedded by the caller until done(). ERR_OK: applied, and
 * `reply` is what apply() wrote. ERR_NOTLEADER and ERR_CLOSED: it may or may
 * not be applied later. ERR_BUSY, ERR_TOOBIG, ERR_NOSPACE (the disks of a
 * majority are full): it will not. */
struct rsm_proposal {
    void (*done)(struct rsm_proposal *p, enum err rc, struct slice reply);
    /* The rest is rsm's. */
    raft_index index;
    raft_term term;
    enum err rc;
    struct bytes *command;
    size_t size;    /* of the command */
    bool under_way; /* counts in what the core and the applier have */
    struct buf reply;
    struct rsm_proposal *next, *prev;
};

/* Takes the caller's reference to `command`. done() is never called from
 * inside. */
void rsm_propose(struct rsm *r, struct rsm_proposal *p, struct bytes *command);

/* Of answers to reads, in bytes, before the loop sends them. */
enum { RSM_READ_HELD_SIZE = 8 << 20 };

/* A linearizable read, embedded by the caller until done(): once a majority has
 * confirmed that we lead, and the state machine has caught up, run() is called
 * on the "apply" worker between two entries, then done() on the loop. With an
 * error run() was not called. */
struct rsm_read {
    void (*run)(struct rsm_read *rd);
    void (*done)(struct rsm_read *rd, enum err rc);
    size_t held; /* run() says how many bytes wait for done() */
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

/* Everybody in the newest configuration; the addresses are borrowed until the
 * loop goes on. Gives the count. */
uint32_t rsm_member_list(const struct rsm *r,
                         struct rsm_member members[RAFT_PEERS_MAX]);

/* Snapshots, since start. */
struct rsm_snap_stats {
    uint64_t streams;     /* begun, to any peer */
    uint64_t pieces;      /* that they consist of */
    uint64_t pieces_sent; /* of these; again counts again */
    uint64_t bytes_sent;
    uint64_t installed;
};

/* Of the last RSM_SAMPLES checkpoints, in microseconds; count: of all. */
struct rsm_spread {
    uint64_t count;
    uint64_t p50_us, p99_us, max_us;
};

struct rsm_status {
    struct raft_status raft;
    struct rsm_snap_stats snap;
    raft_index applied;
    raft_index durable;
    uint64_t wal_bytes; /* written since start */
    uint64_t wal_syncs;
    uint64_t entries_read; /* again, from disk, for followers far behind */
    uint32_t proposals_waiting;
    struct rsm_spread stall; /* for which a checkpoint kept the applier */
    struct rsm_spread busy;  /* the applier's longest job while it was made */
    struct rsm_spread write; /* what it took on its own thread */
    bool full;               /* waits for space on its disk */
    uint64_t space_free;     /* bytes; UINT64_MAX: not known */
    uint64_t space_low;
    const char *disk_root; /* NULL: not a real one */
    bool checkpointing;    /* under way: then more of the log may go */
};
/* What to say of a full disk; empty if it is not. */
void rsm_space_problem(const struct rsm_status *status, char *words,
                       size_t size);
/* What to say of a peer whose disk gave back less than it acknowledged: this
 * leader cannot bring it up to date. Empty if there is none. */
void rsm_forgot_problem(const struct rsm_status *status, uint32_t group,
                        char *words, size_t size);
void rsm_status(const struct rsm *r, struct rsm_status *status);
/* The core, for tests that look at its log. */
const struct raft *rsm_raft(const struct rsm *r);

#endif
