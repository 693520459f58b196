/* Raft as a function from (state, event) to (state, update).
 *
 * Nothing here reads a clock, a socket, a disk or a random source. Time and a
 * seed come in; what must happen outside goes out in the update. rsm/rsm.h is
 * the shell that makes it happen. The words are those of the Raft paper (Ongaro
 * and Ousterhout, ATC'14, the extended version) and of Ongaro's thesis.
 *
 * Two rules make the shell simple:
 *  - Every message in an update may be sent at once, before anything is on
 *    disk. What must not leave before the disk has it (a vote, a candidate's
 *    request, a follower's acknowledgement, the leader's own count towards a
 *    majority) the core holds back until RAFT_EV_PERSISTED says so.
 *  - The core never proposes by itself, not even a no-op: it reports that it
 *    became leader, and the layer above proposes what it needs. */
#ifndef RAFT_RAFT_H
#define RAFT_RAFT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/rng.h"

typedef uint64_t raft_index; /* the first entry has index 1 */
typedef uint64_t raft_term;  /* 0 before the first election */
typedef uint64_t raft_id;    /* a replica; 0 is nobody */

#define RAFT_PEERS_MAX        16u
#define RAFT_ADDRESS_SIZE_MAX 64u /* with the final zero */

enum raft_entry_type {
    RAFT_ENTRY_COMMAND = 1, /* the state machine's */
    RAFT_ENTRY_NOOP = 2,    /* moves the commit index into the new term */
    RAFT_ENTRY_CONF = 3,    /* an encoded struct raft_conf */
};

struct raft_entry {
    raft_term term;
    raft_index index;
    enum raft_entry_type type;
    struct bytes *data; /* NULL when empty; whoever keeps it takes a ref */
};

/* Where a replica is reached, in the shell's words: the core only carries it,
 * so that whoever has the log can find everybody in it. */
struct raft_place {
    raft_id id;
    char address[RAFT_ADDRESS_SIZE_MAX];
};

/* Who is in the group. While `old_count` is not 0 the configuration is joint
 * (paper, section 6): both majorities are needed. Learners are sent entries
 * and are in no majority. */
struct raft_conf {
    raft_id voters[RAFT_PEERS_MAX];
    uint32_t voter_count;
    raft_id old[RAFT_PEERS_MAX];
    uint32_t old_count;
    raft_id learners[RAFT_PEERS_MAX];
    uint32_t learner_count;
    struct raft_place places[RAFT_PEERS_MAX]; /* of some or all of these */
    uint32_t place_count;
    raft_id last_id; /* see raft_conf_last_id() */
};

void raft_conf_encode(struct buf *b, const struct raft_conf *conf);
MUST_USE enum err raft_conf_decode(struct slice from, struct raft_conf *conf);
/* Everybody in it, each once. Gives the count; `ids` has room for
 * 3 * RAFT_PEERS_MAX. */
uint32_t raft_conf_all(const struct raft_conf *conf, raft_id *ids);
/* The highest id that was ever in a configuration up to this one, carried from
 * each to the next. New replicas get higher ones: so an id up to it that is not
 * there was removed, and one above it is yet to come. */
raft_id raft_conf_last_id(const struct raft_conf *conf);
/* A voter, of the new set or the old? A learner? */
bool raft_conf_votes(const struct raft_conf *conf, raft_id id);
bool raft_conf_learns(const struct raft_conf *conf, raft_id id);

struct raft_hard_state {
    raft_term term;
    raft_id vote; /* for whom in `term`; 0 for nobody */
};

enum raft_msg_type {
    RAFT_MSG_PREVOTE = 1, /* thesis 9.6: would you vote for me? */
    RAFT_MSG_PREVOTE_REPLY = 2,
    RAFT_MSG_VOTE = 3,
    RAFT_MSG_VOTE_REPLY = 4,
    RAFT_MSG_APPEND = 5, /* AppendEntries; without entries, a heartbeat */
    RAFT_MSG_APPEND_REPLY = 6,
    RAFT_MSG_TIMEOUT_NOW = 7, /* leadership transfer: campaign at once */
};

struct raft_msg {
    enum raft_msg_type type;
    raft_id from;
    raft_id to;
    raft_term term;
    raft_index log_index; /* VOTE: end of log; APPEND: prevLogIndex;
                             APPEND_REPLY: see raft/message.c */
    raft_term log_term;   /* VOTE: term there; APPEND: prevLogTerm */
    raft_index commit;    /* APPEND: leaderCommit */
    raft_index match;     /* APPEND_REPLY accepted: on the follower's disk */
    bool reject;          /* replies: refused */
    bool transfer;        /* VOTE: by leadership transfer: ignore stickiness */
    bool full;  /* APPEND_REPLY: the sender's disk takes nothing now */
    bool lease; /* APPEND: the leader relies on a promise (raft/lease.c) */
    raft_term conflict_term;   /* APPEND_REPLY refused: XTerm, 0 if none */
    raft_index conflict_index; /* XIndex: first index of XTerm */
    raft_index last_index;     /* XLen: the follower's last index */
    uint64_t read_round; /* APPEND and its reply: the newest ReadIndex round */
    struct raft_entry *entries; /* APPEND */
    uint32_t entry_count;
};

/* Entries from `first` on have this term, up to the next run. */
struct raft_run {
    raft_index first;
    raft_term term;
};

/* A promise to a leader that reads from its lease, and by how much a clock may
 * run faster than another one while this is safe (raft/lease.c). */
enum { RAFT_LEASE_MS = 200, RAFT_LEASE_DRIFT_PERCENT = 20 };

/* What was stored, at start; and what the group is. */
struct raft_config {
    raft_id id;
    uint64_t seed;            /* for the election timeout */
    uint32_t heartbeat_ms;    /* 0: 100 */
    uint32_t election_min_ms; /* 0: 500; the timeout is random in */
    uint32_t election_max_ms; /* 0: 1000; [min, max] */
    bool lease_reads;         /* as leader; the others need not have it */
    bool restarted; /* it may have promised something in an earlier life */
    size_t append_size_max;   /* bytes of entries in one APPEND; 0: 1 MiB */
    size_t inflight_size_max; /* unacknowledged bytes a follower; 0: 16 MiB */
    size_t uncommitted_size_max; /* PROPOSE beyond it: ERR_BUSY; 0: 64 MiB */
    struct raft_hard_state hard_state;
    /* The state machine holds everything up to here; the log goes on from it.
     * Both 0 for a new replica. `conf` is the configuration at that point. */
    raft_index snapshot_index;
    raft_term snapshot_term;
    struct raft_conf conf;
    /* The log after that, up to `evicted_index`, is stored and committed, but
     * not given: only its terms and its configurations. 0: there is no such
     * part. */
    raft_index evicted_index;
    const struct raft_run *runs; /* borrowed, as the next two */
    uint32_t run_count;
    const struct raft_entry *confs;
    uint32_t conf_count;
    const struct raft_entry *entries; /* the stored log after it; borrowed */
    uint32_t entry_count;
    uint64_t now_ms;
};

enum raft_event_type {
    RAFT_EV_TICK,      /* time passed; nothing else did */
    RAFT_EV_RECV,      /* a peer's message arrived */
    RAFT_EV_PROPOSE,   /* entries for the log; leader only */
    RAFT_EV_PERSISTED, /* the disk holds all updates up to `persisted` */
    RAFT_EV_READ,      /* ReadIndex (thesis 6.4); leader only */
    RAFT_EV_TRANSFER,  /* hand leadership to `peer`; leader only */
    RAFT_EV_PEER_DOWN, /* hint: the connection to `peer` broke */
    RAFT_EV_SNAPSHOT_INSTALLED, /* the state machine and the log were replaced
                                   by the snapshot at {index, term, conf} */
    RAFT_EV_SNAPSHOT_SENT,      /* streaming to `peer` ended; see `ok` */
    RAFT_EV_VOTE_STORED, /* the disk holds the hard states of all updates up to
                            `persisted`, but maybe not their entries */
    /* Our disk takes no commands now, or does again: the raft does not campaign
     * and takes no-ops only, and says so to the leader. */
    RAFT_EV_FULL,   /* our disk takes nothing now, or does again */
    RAFT_EV_LOADED, /* entries that were asked for by raft_update.loads */
};

struct raft_event {
    enum raft_event_type type;
    uint64_t now_ms;
    union {
        const struct raft_msg *msg; /* RECV: borrowed; entries are ref'd */
        struct {
            /* Only type and data are read; the core refs data. */
            const struct raft_entry *entries;
            uint32_t count;
        } propose;
        uint64_t
            persisted; /* PERSISTED, VOTE_STORED: an update's persist_seq */
        uint64_t read; /* READ: the caller's name for it, given back */
        bool full;     /* FULL */
        raft_id peer;  /* TRANSFER (0: to the best one), PEER_DOWN */
        struct {
            raft_index index;
            raft_term term;
            struct raft_conf conf;
        } snapshot; /* SNAPSHOT_INSTALLED */
        struct {
            raft_id peer;
            raft_index index;
            bool ok;
        } sent; /* SNAPSHOT_SENT */
        struct {
            raft_id peer;
            /* Borrowed until the next step; consecutive from raft_load.first
             * on. None: they could not be read, maybe they are compacted. */
            const struct raft_entry *entries;
            uint32_t count;
        } loaded; /* LOADED */
    } u;
};

struct raft_read {
    uint64_t read;    /* the caller's name */
    enum err rc;      /* ERR_OK, or ERR_NOTLEADER: ask elsewhere */
    raft_index index; /* serve it when the state machine has applied this */
};

/* Entries that are not in memory are needed for `peer`: from `first` on, as
 * many as there are up to `last` and in about `size_max` bytes. */
struct raft_load {
    raft_id peer;
    raft_index first, last;
    size_t size_max;
};

/* What the caller must now do: begin to persist, and send. Then apply. The
 * arrays belong to the raft and stand until its next raft_step(). */
struct raft_update {
    /* Updates are persisted in order. When hard state and entries of this one
     * are synced, the caller says RAFT_EV_PERSISTED with this number (a later
     * number covers earlier ones). 0: there is nothing to persist. */
    uint64_t persist_seq;
    bool hard_state_changed;
    struct raft_hard_state hard_state;
    /* append[0].index may be at or below entries stored before: then those
     * from it on are gone (a new leader overwrote them). */
    const struct raft_entry *append;
    uint32_t append_count;

    const struct raft_msg *send;
    uint32_t send_count;

    /* Apply up to here, inclusive; never goes back. Never past what this
     * replica has on its own disk: so a state machine that makes what it
     * applied durable is never ahead of the stored log. */
    raft_index commit;

    const struct raft_read *reads;
    uint32_t read_count;

    /* These followers need entries the log no longer has: stream them a
     * snapshot, then say RAFT_EV_SNAPSHOT_SENT. Named once per need. */
    const raft_id *need_snapshot;
    uint32_t need_snapshot_count;

    /* To be read from the stored log; each is answered by RAFT_EV_LOADED. */
    const struct raft_load *loads;
    uint32_t load_count;

    bool became_leader;   /* in this step: propose a no-op now */
    bool lost_leadership; /* in this step: proposals may or may not commit */
    raft_index proposed;  /* PROPOSE: the index of the first entry */
};

struct raft;

/* Gives a new raft in `*out`; free it with raft_free(). ERR_CORRUPT if the
 * stored log has a gap or goes back in terms. */
MUST_USE enum err raft_new(const struct raft_config *config, struct raft **out);
void raft_free(struct raft *r);

/* One event. ERR_NOTLEADER, ERR_BUSY and ERR_INVALID refuse the event and
 * change nothing; `*update` is valid (and may carry work) all the same. */
MUST_USE enum err raft_step(struct raft *r, const struct raft_event *event,
                            struct raft_update *update);

/* When the next RAFT_EV_TICK is due, on the events' clock. */
uint64_t raft_next_tick_ms(const struct raft *r);

/* The entries from `first` on, at most `count_max` and about `size_max` bytes,
 * none past `last`: borrowed until the next step or compaction. */
const struct raft_entry *raft_entries(const struct raft *r, raft_index first,
                                      raft_index last, uint32_t count_max,
                                      size_t size_max, uint32_t *count);

/* The log up to `index` is on disk, and can be read there again: it leaves
 * memory. `index` must be committed; going back is ignored. */
void raft_evict(struct raft *r, raft_index index);
/* The same of as many entries as must go that at most `size` bytes stay, if
 * they are committed and stored. */
void raft_bound_memory(struct raft *r, size_t size);
/* Whether that would make any go. */
bool raft_memory_exceeds(const struct raft *r, size_t size);

/* The state machine holds everything up to `index` on disk, so the log up to it
 * may go. `index` must be committed; going back is ignored. */
void raft_compact(struct raft *r, raft_index index);

/* The term at `index`; false if the log does not know it (any more). */
bool raft_term_at(const struct raft *r, raft_index index, raft_term *term);

/* The terms from `first` to `last`, as far as `count_max` runs tell; gives how
 * many, and in `*upto` how far. */
uint32_t raft_runs(const struct raft *r, raft_index first, raft_index last,
                   struct raft_run *runs, uint32_t count_max, raft_index *upto);

/* The configuration in force at `index`, for a snapshot's label. Gives the
 * index of its entry (of the log's start, for the first). */
raft_index raft_conf_at(const struct raft *r, raft_index index,
                        struct raft_conf *conf);
/* The newest in the log, and its entry; borrowed until the next step. */
const struct raft_conf *raft_conf_newest(const struct raft *r,
                                         raft_index *index);

/* Is a snapshot at {index, term} news to this replica? If its log has that
 * entry, installing would forget acknowledged entries after it. */
bool raft_wants_snapshot(const struct raft *r, raft_index index,
                         raft_term term);

/* The shell goes to replace state machine and log by this snapshot. False, and
 * nothing changes, if it is not wanted (any more). From `true` on, until
 * RAFT_EV_SNAPSHOT_INSTALLED or raft_install_abort(), the raft answers
 * heartbeats but takes no entries and does not campaign: what it would
 * acknowledge now, the install would take away again. */
MUST_USE bool raft_install_begin(struct raft *r, raft_index index,
                                 raft_term term);
void raft_install_abort(struct raft *r);

enum raft_role {
    RAFT_FOLLOWER,
    RAFT_PRECANDIDATE,
    RAFT_CANDIDATE,
    RAFT_LEADER
};

struct raft_status {
    raft_id id;
    enum raft_role role;
    raft_term term;
    raft_id vote;
    raft_id leader;         /* 0 when unknown */
    raft_index first_index; /* of the log in memory */
    raft_index last_index;
    raft_index persisted;
    raft_index commit;
    raft_index snapshot_index; /* the log on disk begins after it */
    struct raft_conf conf;     /* the newest in the log: used from append on */
    uint64_t lease_until_ms;   /* leader: it may answer reads; 0: no lease */
    raft_index conf_index; /* its entry: once this is committed and the conf is
                              joint, propose the final one */
    uint32_t peer_count;   /* leader only: the progress of each peer */
    struct raft_peer_status {
        raft_id id;
        raft_index match;
        raft_index next;
        bool snapshot; /* waits for one */
        bool active;   /* heard from within an election timeout */
        bool full;     /* its disk takes nothing now */
        bool forgot;   /* has less than it said was on its disk */
    } peers[RAFT_PEERS_MAX];
};

raft_term raft_term_now(const struct raft *r);
void raft_status(const struct raft *r, struct raft_status *status);

/* Leader: do the replicas that have not said that their disk is full make up a
 * majority? Without one nothing new is committed for now. */
bool raft_has_space(const struct raft *r);
const char *raft_role_text(enum raft_role role);

/* The wire form of a message (docs/wire.md). decode: entries are new, ref'd
 * data in memory of `a`; free the refs with raft_msg_release(). */
void raft_msg_encode(struct buf *b, const struct raft_msg *msg);
/* The same without the data of entries that have `long_size` bytes or more:
 * where those go, the first at cuts[0], each behind the one before it and
 * what of `b` is between them. Gives how many; `cuts` has entry_count. */
struct raft_cut {
    size_t at; /* of `b` */
    struct bytes *data;
};
uint32_t raft_msg_encode_cut(struct buf *b, const struct raft_msg *msg,
                             size_t long_size, struct raft_cut *cuts);
MUST_USE enum err raft_msg_decode(struct slice from, struct arena *a,
                                  struct raft_msg *msg);
/* The same; if entries are long the data are parts of `from`, not copies. */
MUST_USE enum err raft_msg_decode_parts(struct bytes *from, struct arena *a,
                                        struct raft_msg *msg);
void raft_msg_release(struct raft_msg *msg);

#endif
