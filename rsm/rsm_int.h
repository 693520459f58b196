/* The inside of rsm, shared by the files of this folder only. Everything here
 * belongs to the loop; a job carries copies or references of what its run()
 * reads on a worker. */
#ifndef RSM_RSM_INT_H
#define RSM_RSM_INT_H

#include "base/msg.h"
#include "raft/storage/wal.h"
#include "rsm/rsm.h"

enum {
    RSM_PROPOSE_COUNT_MAX = 256, /* entries in one RAFT_EV_PROPOSE */
    RSM_PROPOSE_SIZE_MAX = 1 << 20,
    RSM_PROPOSALS_MAX = 65536,
    RSM_PROPOSALS_SIZE_MAX = 128 << 20, /* that wait for their turn */
    RSM_UNDER_WAY_SIZE_DEFAULT = 8 << 20,
    RSM_SHORT_SIZE = 16 << 10, /* shorter ones go first, with half of a step */
    RSM_READS_MAX = 65536,
    RSM_APPLY_COUNT_MAX = 1024,
    RSM_APPLY_SIZE_MAX = 512 << 10,
    RSM_APPLY_JOBS_MAX = 2,
    RSM_APPLY_LOAD_SIZE = 512 << 10, /* read from disk at a time */
    RSM_APPLY_LAZY_US = 5000,
    RSM_APPLY_LAZY_COUNT = 256,
    RSM_BRIEF_SIZE = 16 << 10,
    RSM_ALONE_MIN = 16, /* requests one at a time, then a leader syncs itself */
    RSM_BRIEF_APPLY_COUNT = 16,
    RSM_BRIEF_APPLY_SIZE = 8 << 10,
    RSM_ENTRY_LONG = 2 << 10,       /* such an entry is sent from its place */
    RSM_PARTS_SIZE = 16 << 10,      /* a message from this size on is kept */
    RSM_QUEUED_SIZE_MAX = 32 << 20, /* to a peer; beyond it appends are lost */
    RSM_MANIFEST_PART = 256 << 10,
    RSM_MANIFEST_SIZE_MAX = 65 << 20, /* of SNAP_PIECES_MAX pieces */
    RSM_WINDOW_SIZE = 4 << 20,        /* of a snapshot in flight to a peer */
    RSM_WINDOW_COUNT = 16,
    RSM_WINDOW_BUSY = 1 << 20, /* while clients are waited on */
    RSM_ARRIVING_MAX = 64,     /* requests of a stream that wait for the disk */
    /* For the answer to a chunk: at least this and what the bytes may take;
     * else four times what the last one took. */
    RSM_CHUNK_TIMEOUT_MIN_MS = 200,
    RSM_CHUNK_TIMEOUT_MAX_MS = 5000,
    RSM_CHUNK_BYTES_A_MS = 1024,
    RSM_CHUNK_SILENCE_MS = 30000, /* then the stream ends */
    RSM_CHUNK_PATIENCE = 2,       /* then the log waits for that peer less */
    RSM_CHUNK_PAUSE_MS = 100,
    RSM_KEEP_SIZE_DEFAULT = 16 << 20,
    RSM_CHECKPOINT_SIZE_DEFAULT = 16 << 20,
    RSM_CHECKPOINT_MS_DEFAULT = 2000,
    RSM_BACKLOG_LOG = 400, /* percent of what makes a checkpoint due */
    RSM_BACKLOG_UNSAVED = 200,
    RSM_SAMPLES = 1024,
    RSM_MARK_SIZE = 64 << 10,
    RSM_SPACE_LOW_DEFAULT = 32 << 20,
    RSM_SPACE_LOOK_US = 5000,
    RSM_SPACE_LOOK_PART = 64, /* of space_low: bytes written without a look */
    RSM_SPACE_PATIENCE_MS_DEFAULT = 10000,
    RSM_SPACE_PAUSE_MIN_MS = 100,
    RSM_SPACE_PAUSE_MAX_MS = 5000,
    RSM_SPACE_SQUEEZE_MS = 10000, /* then followers' wants count no more */
    RSM_MEMORY_SIZE = 8 << 20,    /* of the log in memory, or twice */
    RSM_MEMORY_FACTOR = 2,        /* log_keep_size, if that is less */
    RSM_HOLD_FACTOR = 8,          /* times log_keep_size, for a slow follower */
    RSM_BOOK_MAX = 16,
    RSM_KNOWN_MAX = 3 * RAFT_PEERS_MAX + RSM_BOOK_MAX + RAFT_PEERS_MAX,
    RSM_ENTRY_OVERHEAD =
        64, /* what an empty entry counts in sizes of the log */
};

/* --- Messages (docs/wire.md) */

/* To a peer that needs a snapshot (snap_send.c). A snapshot is known by its
 * manifest: size and checksum are in every message about it. */
enum rsm_chunk_kind {
    RSM_CHUNK_ASK = 1,      /* what is missing? */
    RSM_CHUNK_MANIFEST = 2, /* `data` is the manifest's from byte `at` on */
    RSM_CHUNK_PIECE = 3,    /* `data` is piece `at`, packed */
};
#define RSM_CHUNK_FIELDS(F)                                                    \
    F(U64, term) /* the leader's */                                            \
    F(U64, from)                                                               \
    F(U64, to)                                                                 \
    F(U64, index) /* of the snapshot */                                        \
    F(U64, snap_term)                                                          \
    F(U64, size) /* of the manifest */                                         \
    F(U32, crc)  /* CRC-32C of the manifest */                                 \
    F(U8, kind)                                                                \
    F(U64, at)                                                                 \
    F(BYTES, data)
MSG_STRUCT(rsm_chunk, RSM_CHUNK_FIELDS);

enum rsm_chunk_status {
    RSM_CHUNK_MORE = 1,       /* of the manifest, from byte `at` on */
    RSM_CHUNK_MISSING = 2,    /* these pieces: bit i of byte i/8 of `missing` */
    RSM_CHUNK_STORED = 3,     /* that piece */
    RSM_CHUNK_WAIT = 4,       /* nothing is needed now; ask again */
    RSM_CHUNK_DONE = 5,       /* installed, or not needed any more */
    RSM_CHUNK_REFUSED = 6,    /* give up */
    RSM_CHUNK_INSTALLING = 7, /* its first `at` pieces; ask again */
};
#define RSM_CHUNK_REPLY_FIELDS(F) F(U8, status) F(U64, at) F(BYTES, missing)
MSG_STRUCT(rsm_chunk_reply, RSM_CHUNK_REPLY_FIELDS);

#define RSM_HELLO_FIELDS(F) F(U64, from) F(BYTES, address)
MSG_STRUCT(rsm_hello, RSM_HELLO_FIELDS);
#define RSM_GONE_FIELDS(F) F(U64, to) /* who was removed */
MSG_STRUCT(rsm_gone, RSM_GONE_FIELDS);

/* --- The log's queue (log.c) */

enum rsm_log_kind {
    RSM_LOG_APPEND,
    RSM_LOG_VOTE, /* the hard state of an APPEND that waits for space */
    RSM_LOG_COMPACT,
    RSM_LOG_SHRINK, /* gives back the last segment, if that is possible */
    RSM_LOG_RESET
};

struct rsm_log_job {
    struct env_job job;
    struct rsm *rsm;
    enum rsm_log_kind kind;
    bool tried;   /* and found no space */
    bool written; /* what is left is the identity's `started` */
    bool low;     /* little space was left after it */
    enum err rc;
    struct wal_stats stats;
    struct wal_mark *marks; /* of what was written */
    uint32_t mark_count;
    /* APPEND: several updates, one group commit. */
    uint64_t seq;
    bool with_hard_state, vote_sent; /* its VOTE was made */
    struct raft_hard_state hard_state;
    struct raft_entry *entries; /* with references */
    uint32_t entry_count, entry_capacity;
    uint64_t size; /* of the entries that were added */
    /* COMPACT and RESET */
    raft_index index;
    raft_term term;
    struct raft_conf conf;
    struct rsm_log_job *next;
};

/* --- Snapshots (snap_send.c, snap_receive.c) */

struct rsm_outgoing; /* one peer's stream */
struct rsm_incoming; /* the stream we are sent; at most one */

/* Bytes applied up to an index, to know what to keep of the log. */
struct rsm_mark {
    raft_index index;
    uint64_t size;
};

/* Where entries stand on disk (stored.c). */
struct rsm_stored {
    struct wal_mark *places;
    uint32_t count, capacity;
    uint64_t read; /* entries, since start */
};

/* The last RSM_SAMPLES times something took. */
struct rsm_samples {
    uint64_t count;
    uint32_t us[RSM_SAMPLES];
};

struct rsm_read_batch;
struct rsm_wanted; /* a change of members that somebody waits for */

struct rsm_identity {
    uint32_t group;
    raft_id id;
    bool joining, started;
};

/* Who waits for space on the disk (space.c). */
struct rsm_space {
    bool low;   /* little is left: no new entries */
    bool log;   /* the first job of the log's queue is tried again */
    bool store; /* the state machine went back to its last checkpoint */
    bool snap;  /* no snapshot is taken */
    bool full;  /* any of them; the core was told */
    bool log_held, apply_held, checkpoint_held; /* until the pause is over */
    bool rewinding, rewound; /* of apply_held: the job runs; it is done */
    /* How often: as the loop knows it, and as the apply worker does. While they
     * differ `submitted` is not what a job that is submitted now finds. */
    uint64_t rewinds_seen, rewinds_done;
    raft_index replay;       /* nobody reads until this is applied again */
    uint32_t pause_ms;       /* grows with each failure */
    uint64_t well_ms;        /* when space was found last */
    uint64_t full_ms;        /* when it became full last */
    uint64_t group_since_ms; /* leader: no majority has space; 0: one has */
    struct env_timer timer;
    bool timer_set;
    /* The wal worker's: when it looks again, and what it wrote since. */
    uint64_t look_at_us, unlooked_size;
    bool half; /* the apply worker's: the state machine is half-way in an
                  entry, until it has been rewound or replaced */
};

struct rsm_proposals {
    struct rsm_proposal *head, *tail;
};

struct rsm_read_list {
    struct rsm_read *head, *tail;
    uint32_t count;
};

struct rsm {
    struct rsm_config config;
    struct env *env;
    struct raft *raft;
    struct wal *wal; /* the wal worker's */
    struct env_worker *wal_worker, *apply_worker, *checkpoint_worker;
    struct env_worker *snap_worker, *read_worker;
    bool dead;    /* env_fatal() was called, and returned */
    bool closing; /* rsm_free() */

    struct env_timer tick;
    uint64_t tick_at_ms;    /* for which `tick` is set; 0: not */
    struct env_timer flush; /* what waited for the end of this loop turn */
    bool flush_set;

    /* leader.c */
    bool leading;   /* the core is leader */
    bool announced; /* on_leader(true) was called */
    bool retracted; /* leadership ended since; maybe it came back */
    bool want_noop;
    raft_index noop; /* of this leadership; 0: none yet */
    struct env_timer lost;
    struct env_timer step_down;
    uint64_t step_down_until_ms, step_down_again_ms;
    void (*step_down_done)(void *arg);
    void *step_down_arg;

    /* propose.c: not yet in the core; in the core's log, by index; failed */
    struct rsm_proposals queued_short, queued_long;
    uint32_t queued_count;
    size_t queued_size;
    struct rsm_proposals waiting;
    uint32_t waiting_count;
    size_t under_way_size; /* in the core's log or in an apply job */
    struct rsm_proposals failed;

    /* read.c */
    struct rsm_read_list reads_queued, reads_local, reads_failed;
    uint32_t reads_count;
    struct rsm_read_batch *batches; /* asked of the core, or held */
    uint64_t read_name;

    /* log.c */
    struct rsm_log_job *log_head, *log_tail;
    bool log_running;
    struct env_timer log_late; /* the first job may run when it fires */
    bool log_late_set;
    uint32_t alone_count; /* requests in a row that met no other */
    struct wal_stats wal_stats;

    /* apply.c */
    raft_index commit;
    raft_index submitted; /* given to the apply worker */
    raft_index applied;   /* and come back */
    raft_index durable;
    uint32_t apply_running;
    struct env_timer apply;
    bool apply_set, apply_due;
    bool apply_loading; /* what comes next is being read from disk */
    bool installing;    /* nothing is submitted meanwhile */

    /* checkpoint.c */
    struct env_timer checkpoint;
    bool checkpoint_set, checkpoint_due, checkpoint_running;
    raft_index compacted;     /* on disk */
    raft_index evicted;       /* from memory */
    uint64_t applied_size;    /* bytes of all entries applied since start */
    uint64_t checkpoint_size; /* the same when the last checkpoint began */
    uint64_t unsaved;         /* as the last apply job left it */
    uint64_t held_us;         /* since when applying waits for it; 0: not */
    uint64_t busy_us;         /* the longest job since it began */
    struct rsm_samples stalls, busies, writes;
    struct rsm_mark *marks;
    uint32_t mark_count, mark_capacity;

    struct rsm_space space;
    struct rsm_stored stored;

    struct rsm_outgoing *outgoing;
    struct rsm_incoming *incoming;
    struct rsm_snap_stats snap_stats;

    /* member.c, hello.c, identity.c */
    struct rsm_identity identity;
    struct rsm_wanted *wishes;
    uint32_t wish_count;
    bool looking; /* at the wishes: rsm_member_pump() runs */
    struct env_timer hello;
    bool removed;
    struct rsm_peer book[RSM_BOOK_MAX]; /* who said where it is; id 0: free */
    uint32_t book_next;

    struct buf message; /* the one being sent */
    uint64_t strangers, strangers_said_ms;
};

/* rsm.c */
/* One event into the core, and everything its update asks for. Calls nothing
 * of the user's. */
enum err rsm_step(struct rsm *r, struct raft_event *event,
                  raft_index *proposed);
void rsm_flush_later(struct rsm *r);
void rsm_die(struct rsm *r, enum err rc, const char *what);
static inline bool rsm_stopped(const struct rsm *r)
{
    return r->dead || r->closing;
}

/* open.c */
MUST_USE enum err rsm_open_log(struct rsm *r);
/* The label of the snapshot that was being installed. */
MUST_USE enum err rsm_incoming_label(struct rsm *r, struct snap_label *label);
void rsm_incoming_forget(struct rsm *r); /* it, and what it is made of */

/* member.c */
bool rsm_member_is_due(const struct rsm *r);
void rsm_member_pump(struct rsm *r);
void rsm_member_close(struct rsm *r);
void rsm_member_change(struct rsm *r, struct net_request *request,
                       const struct net_peer *peer, struct slice body);
void rsm_member_show(struct rsm *r, struct net_request *request);

/* hello.c */
const char *rsm_address(const struct rsm *r, raft_id id);    /* "" if unknown */
raft_id rsm_id_at(const struct rsm *r, const char *address); /* 0: nobody */
void rsm_hello_start(struct rsm *r);
void rsm_hello_heard(struct rsm *r, struct slice body);
void rsm_gone_heard(struct rsm *r, struct slice body);

/* identity.c */
MUST_USE enum err rsm_identity_check(struct rsm *r);
MUST_USE enum err rsm_identity_log(struct rsm *r, bool is_new);
/* On the "wal" worker, or before it runs. */
MUST_USE enum err rsm_identity_started(struct rsm *r);

/* log.c */
void rsm_log_update(struct rsm *r, const struct raft_update *update);
void rsm_log_compact(struct rsm *r, raft_index index, raft_term term,
                     const struct raft_conf *conf);
void rsm_log_shrink(struct rsm *r);
void rsm_log_reset(struct rsm *r, const struct snap_label *label);
void rsm_log_asked(struct rsm *r); /* a proposal or a read comes */
void rsm_log_init(struct rsm *r);
void rsm_log_stop(struct rsm *r);
void rsm_log_close(struct rsm *r);
void rsm_log_pump(struct rsm *r);

/* stored.c */
void rsm_stored_note(struct rsm *r, const struct wal_mark *marks,
                     uint32_t count);
void rsm_stored_compact(struct rsm *r, raft_index index);
bool rsm_stored_is_due(const struct rsm *r);
void rsm_stored_bound(struct rsm *r); /* what is in memory */
void rsm_stored_reset(struct rsm *r); /* the log is empty now */
/* For a follower, and answered to the core; peer 0: for ourselves, answered by
 * rsm_apply_loaded(). */
void rsm_stored_load(struct rsm *r, const struct raft_load *load);
void rsm_stored_close(struct rsm *r);

/* space.c */
enum rsm_space_user {
    RSM_SPACE_LOW,
    RSM_SPACE_LOG,
    RSM_SPACE_STORE,
    RSM_SPACE_SNAP
};
void rsm_space_init(struct rsm *r);
void rsm_space_close(struct rsm *r);
/* On a worker, before bytes that need room. */
bool rsm_space_is_low(const struct rsm *r);
bool rsm_space_is_tight(const struct rsm *r); /* on the loop */
bool rsm_space_is_patient(const struct rsm *r);
/* On the loop: it got ERR_NOSPACE; it got room. */
void rsm_space_wait(struct rsm *r, enum rsm_space_user user);
void rsm_space_found(struct rsm *r, enum rsm_space_user user);
/* May this be proposed now? ERR_OK, ERR_BUSY, ERR_NOSPACE. */
enum err rsm_space_admit(struct rsm *r);
/* On the apply worker, around a call of the state machine: false, and *rc is
 * set, if it may not be called; what it gave. */
bool rsm_space_enter(struct rsm *r, enum err *rc);
void rsm_space_leave(struct rsm *r, enum err rc);
/* Is the state not to be read for now? */
bool rsm_space_hides(const struct rsm *r);
void rsm_space_fill_status(const struct rsm *r, struct rsm_status *status);

/* apply.c */
void rsm_apply_init(struct rsm *r);
void rsm_apply_close(struct rsm *r);
void rsm_apply_pump(struct rsm *r);
void rsm_apply_loaded(struct rsm *r, const struct raft_entry *entries,
                      uint32_t count);

/* checkpoint.c */
void rsm_checkpoint_init(struct rsm *r);
void rsm_checkpoint_close(struct rsm *r);
void rsm_checkpoint_installed(struct rsm *r, raft_index index);
void rsm_checkpoint_applied(struct rsm *r, raft_index index, uint64_t size);
/* At start: what the log still has of what the state machine has stored. */
void rsm_checkpoint_recovered(struct rsm *r);
void rsm_checkpoint_pump(struct rsm *r);
/* The disk is full: gives back what of the log can be. */
void rsm_checkpoint_squeeze(struct rsm *r);
/* Must applying wait for the checkpoint that is being made? */
bool rsm_checkpoint_holds(struct rsm *r);
void rsm_checkpoint_busy(struct rsm *r, uint64_t us); /* so long was a job */

/* samples.c */
void rsm_samples_add(struct rsm_samples *s, uint64_t us);
struct rsm_spread rsm_samples_spread(const struct rsm_samples *s);

/* propose.c */
void rsm_propose_flush(struct rsm *r);
/* Its apply job is done, or it failed: another may be proposed for it. */
void rsm_propose_over(struct rsm *r, struct rsm_proposal *p);
void rsm_propose_overwritten(struct rsm *r, const struct raft_entry *entries,
                             uint32_t count);
/* Takes a proposal that is in no list; answered at the next flush. */
void rsm_propose_fail(struct rsm *r, struct rsm_proposal *p, enum err rc);
/* The one that waits for this entry, taken off; NULL if none does. */
struct rsm_proposal *rsm_propose_match(struct rsm *r, raft_index index,
                                       raft_term term);
/* All that wait, and are to be answered by ERR_NOTLEADER or ERR_CLOSED. */
void rsm_propose_fail_all(struct rsm *r, enum err rc);
void rsm_propose_fail_upto(struct rsm *r, raft_index index);
void rsm_propose_answer_failed(struct rsm *r);

/* read.c */
void rsm_read_flush(struct rsm *r);
void rsm_read_granted(struct rsm *r, const struct raft_read *reads,
                      uint32_t count);
void rsm_read_pump(struct rsm *r);
void rsm_read_fail_all(struct rsm *r, enum err rc);
void rsm_read_answer_failed(struct rsm *r);

/* leader.c */
void rsm_leader_init(struct rsm *r);
void rsm_leader_update(struct rsm *r, const struct raft_update *update);
void rsm_leader_noop(struct rsm *r);
void rsm_leader_tell(struct rsm *r);
void rsm_leader_close(struct rsm *r);

/* snap_send.c */
void rsm_outgoing_start(struct rsm *r, raft_id peer);
/* The oldest index from which a stream needs the log; UINT64_MAX: none.
 * `silent`: of those whose peers do not answer just now; else of the others. */
raft_index rsm_outgoing_oldest(const struct rsm *r, bool silent);
/* The log is cut up to `index`: what is of no use without it ends. */
void rsm_outgoing_cut(struct rsm *r, raft_index index);
/* How far the one for `m->id` is, if there is one. */
void rsm_outgoing_show(const struct rsm *r, struct rsm_member *m);
void rsm_outgoing_stop(struct rsm *r); /* ends all; jobs may still come back */
void rsm_outgoing_close(struct rsm *r);

/* snap_receive.c */
void rsm_incoming_chunk(struct rsm *r, struct net_request *request,
                        struct slice body);
void rsm_incoming_open(struct rsm *r); /* what an earlier life received */
void rsm_incoming_applied(struct rsm *r);
/* The log was reset: the install is complete. */
void rsm_incoming_reset_done(struct rsm *r);
void rsm_incoming_close(struct rsm *r);

#endif
