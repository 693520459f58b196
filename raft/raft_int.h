/* The inside of the core, shared by the files of this folder only. */
#ifndef RAFT_RAFT_INT_H
#define RAFT_RAFT_INT_H

#include "base/check.h"
#include "raft/raft.h"

/* What an entry costs beyond its data, in the bounds on bytes: so that empty
 * entries are bounded too. */
enum { RAFT_ENTRY_OVERHEAD = 32 };

/* Entries in one message, sent or accepted. */
enum { RAFT_MSG_ENTRIES_MAX = 8192 };

/* Nobody gets here by elections; beyond, the next term would be 0. */
#define RAFT_TERM_MAX (UINT64_MAX / 2)

/* Reads that wait; one more gets ERR_BUSY. */
enum { RAFT_READS_MAX = 65536 };

/* Messages that wait for the disk; the oldest goes, as if the network had lost
 * it. */
enum { RAFT_HELD_MAX = 64 };

/* ---- log.c: the log, in memory from `base` (exclusive) on; between `floor`
 * and `base` it is the shell's, on disk, and only the terms are known ---- */

struct raft_log {
    raft_index floor; /* compacted up to here, inclusive */
    raft_term floor_term;
    struct raft_run *runs; /* of (floor, base], by index */
    size_t run_count, run_capacity;
    struct raft_entry *slots; /* the live ones are [head, head + count) */
    uint64_t *ends; /* parallel: bytes of all entries up to and with this */
    size_t capacity;
    size_t head;
    size_t count;
    raft_index base; /* not in memory up to here, inclusive */
    raft_term base_term;
    uint64_t base_end; /* `ends` of the entry at base */
};

void raft_log_init(struct raft_log *log, raft_index base, raft_term base_term);
void raft_log_fini(struct raft_log *log);
raft_index raft_log_last(const struct raft_log *log);
raft_term raft_log_last_term(const struct raft_log *log);
bool raft_log_term(const struct raft_log *log, raft_index index,
                   raft_term *term);
/* Does the log have the entry {index, term}? */
bool raft_log_has(const struct raft_log *log, raft_index index, raft_term term);
struct raft_entry *raft_log_at(const struct raft_log *log, raft_index index);
/* Takes a ref on `data`. */
void raft_log_append(struct raft_log *log, raft_term term,
                     enum raft_entry_type type, struct bytes *data);
/* Forgets `from` and everything after it. */
void raft_log_truncate(struct raft_log *log, raft_index from);
/* Forgets all but the terms up to `index`, which the log must have. */
void raft_log_evict(struct raft_log *log, raft_index index);
/* One entry, after the last, that is not in memory from the start. */
void raft_log_add_evicted(struct raft_log *log, raft_index last,
                          raft_term term);
/* Forgets everything up to `index`, which the log must have. */
void raft_log_compact(struct raft_log *log, raft_index index);
/* Forgets everything; goes on after `base`. */
void raft_log_reset(struct raft_log *log, raft_index base, raft_term base_term);
/* Bytes in (after, upto]; what is compacted counts nothing. */
uint64_t raft_log_bytes(const struct raft_log *log, raft_index after,
                        raft_index upto);
/* The first index whose term is `term` or later; last + 1 if there is none. */
raft_index raft_log_first_of(const struct raft_log *log, raft_term term);
/* How many entries from `first` to `last` fit into `size_max` bytes and
 * `count_max`; at least one if first <= last. */
uint32_t raft_log_fit(const struct raft_log *log, raft_index first,
                      raft_index last, uint32_t count_max, size_t size_max);

/* ---- progress.c: what the leader knows of a follower ----
 *
 *              accepted
 *     PROBE --------------> REPLICATE        PROBE: one message at a time
 *     ^  ^ <----------------    |            REPLICATE: optimistic, many
 *     |  |  refused, silent     |            SNAPSHOT: heartbeats only
 *     |  +---- SNAPSHOT <-------+
 *     +-- sent --+   the log lacks what it needs                          */

enum raft_progress_state {
    RAFT_PROGRESS_PROBE,
    RAFT_PROGRESS_REPLICATE,
    RAFT_PROGRESS_SNAPSHOT
};

struct raft_progress {
    raft_id id;
    enum raft_progress_state state;
    raft_index match; /* on its disk, and the same as ours */
    raft_index next;  /* the next entry to send */
    bool probe_sent;  /* PROBE: wait for an answer */
    uint64_t heard_ms;
    uint64_t sent_ms; /* the last APPEND */
    uint64_t read_round;
    bool full;         /* said so when last heard */
    bool forgot;       /* its log ended below `match` when last heard */
    bool loading;      /* the shell reads entries for it from disk */
    raft_index loaded; /* where the last such entries began */
};

struct raft_progress *raft_progress_of(struct raft *r, raft_id id);
void raft_progress_probe(struct raft_progress *p, raft_index next);
void raft_progress_replicate(struct raft_progress *p, raft_index next);
bool raft_progress_active(const struct raft *r, const struct raft_progress *p);
/* Makes the list of peers follow the configuration. */
void raft_progress_sync(struct raft *r);

/* ---- the raft itself ---- */

struct raft_conf_record {
    raft_index index; /* 0 or the base for the first record */
    struct raft_conf conf;
};

/* An update on its way to disk: when `seq` is done, the entries up to `last`
 * are stored, and they are those of the log as it is now (see persist.c). */
struct raft_pending {
    uint64_t seq;
    raft_index last;
};

struct raft_held {
    uint64_t seq; /* may leave when the disk has this */
    struct raft_msg msg;
};

struct raft_vote {
    raft_id id;
    bool granted;
};

struct raft {
    raft_id id;
    struct rng rng;
    uint32_t heartbeat_ms, election_min_ms, election_max_ms;
    size_t append_size_max, inflight_size_max, uncommitted_size_max;

    uint64_t now_ms;
    enum raft_role role;
    raft_term term;
    raft_id vote;
    raft_id leader;
    raft_index commit;
    raft_index told; /* the commit of the last update */
    struct raft_log log;
    struct raft_conf_record *confs; /* by index; the last is in force */
    size_t conf_count, conf_capacity;

    /* persist.c */
    uint64_t persist_issued, persist_done;
    uint64_t vote_done; /* hard states alone: may be ahead of persist_done */
    uint64_t hard_seq;  /* the update with the term and vote of now */
    bool hard_dirty;    /* changed in this step */
    raft_index append_from; /* first index changed in this step; 0: none */
    raft_index persisted;
    struct raft_pending *pending;
    size_t pending_head, pending_count, pending_capacity;
    struct raft_held held[RAFT_HELD_MAX];
    uint32_t held_count;

    /* Follower and candidates */
    uint64_t election_due_ms;
    uint64_t ask_due_ms; /* (pre)candidate: who has not answered, again */
    uint64_t heard_ms;   /* from the leader */
    uint32_t hint_tries;
    struct raft_vote votes[RAFT_PEERS_MAX * 2];
    uint32_t vote_count;
    bool transferred;        /* campaigns because the leader said so */
    raft_index leader_match; /* our log is the leader's up to here */
    uint64_t leader_round;
    bool ack_owed;
    uint64_t promised_ms; /* lease.c: until then no vote for others */
    bool installing;      /* between raft_install_begin() and its end */
    bool full;            /* RAFT_EV_FULL: does not campaign, and says so */

    /* Leader */
    struct raft_progress peers[RAFT_PEERS_MAX];
    uint32_t peer_count;
    raft_id transfer_to;
    bool transfer_sent;
    uint64_t transfer_due_ms;
    uint64_t *reads; /* names; the first read_flight are in the round */
    size_t read_count, read_flight, read_capacity;
    uint64_t read_round; /* the newest round begun */
    bool read_open;      /* a majority has not echoed it yet */
    uint64_t read_began_ms;
    raft_index read_index;
    bool lease_reads;       /* the option */
    bool lease_spent;       /* not again in this term */
    uint64_t lease_from_ms; /* the newest ended round's begin; 0: none */

    /* What the step gives back */
    struct raft_msg *out;
    size_t out_count, out_capacity;
    struct raft_read *out_reads;
    size_t out_read_count, out_read_capacity;
    raft_id need[RAFT_PEERS_MAX];
    uint32_t need_count;
    struct raft_load loads[RAFT_PEERS_MAX];
    uint32_t load_count;
    bool became_leader, lost_leadership;
    raft_index proposed;
};

/* raft.c */
void *raft_grow(void *array, size_t *capacity, size_t count, size_t item_size);
void raft_set_hard_state(struct raft *r, raft_term term, raft_id vote);
void raft_send(struct raft *r, struct raft_msg msg);

/* persist.c */
bool raft_hard_state_stored(const struct raft *r);
void raft_persist_append(struct raft *r, raft_term term,
                         enum raft_entry_type type, struct bytes *data);
void raft_persist_truncate(struct raft *r, raft_index from);
void raft_persist_restart(struct raft *r, raft_index persisted);
void raft_persist_issue(struct raft *r, struct raft_update *update);
/* Sends when the term and vote of now are on disk. */
void raft_send_stored(struct raft *r, struct raft_msg msg);
MUST_USE enum err raft_persist_done(struct raft *r, uint64_t seq);
MUST_USE enum err raft_persist_vote_done(struct raft *r, uint64_t seq);

/* election.c */
void raft_become_follower(struct raft *r, raft_term term, raft_id leader);
void raft_election_reset_timer(struct raft *r);
void raft_election_tick(struct raft *r);
uint64_t raft_election_next_tick(const struct raft *r);
void raft_election_stored(struct raft *r);
void raft_election_peer_down(struct raft *r, raft_id peer);
void raft_election_full(struct raft *r, bool full);
bool raft_election_sticky(const struct raft *r);
void raft_recv_prevote(struct raft *r, const struct raft_msg *m);
void raft_recv_prevote_reply(struct raft *r, const struct raft_msg *m);
void raft_recv_vote(struct raft *r, const struct raft_msg *m);
void raft_recv_vote_reply(struct raft *r, const struct raft_msg *m);
void raft_recv_timeout_now(struct raft *r, const struct raft_msg *m);

/* leader.c */
void raft_become_leader(struct raft *r);
void raft_leader_tick(struct raft *r);
uint64_t raft_leader_next_tick(const struct raft *r);
MUST_USE enum err raft_propose(struct raft *r, const struct raft_entry *entries,
                               uint32_t count);
MUST_USE enum err raft_transfer(struct raft *r, raft_id peer);
void raft_transfer_check(struct raft *r);
void raft_leader_resign(struct raft *r);

/* append.c */
void raft_append_heartbeat(struct raft *r, struct raft_progress *p);
void raft_append_replicate(struct raft *r, struct raft_progress *p);
void raft_append_acknowledge(struct raft *r);
MUST_USE enum err raft_append_loaded(struct raft *r, raft_id peer,
                                     const struct raft_entry *entries,
                                     uint32_t count);
MUST_USE enum err raft_recv_append(struct raft *r, const struct raft_msg *m);
MUST_USE enum err raft_recv_append_reply(struct raft *r,
                                         const struct raft_msg *m);

/* commit.c: value() of each voter, the self included, goes in; what a majority
 * of the voters (of both sets, when joint) has at least comes out. */
typedef uint64_t (*raft_value)(const struct raft *r, raft_id id);
uint64_t raft_quorum(const struct raft *r, raft_value value);
void raft_commit_advance(struct raft *r);
bool raft_commit_in_term(const struct raft *r);

/* install.c */
void raft_install_need(struct raft *r, struct raft_progress *p);
MUST_USE enum err raft_install_done(struct raft *r, raft_index index,
                                    raft_term term,
                                    const struct raft_conf *conf);
MUST_USE enum err raft_install_sent(struct raft *r, raft_id peer,
                                    raft_index index, bool ok);

/* member.c */
const struct raft_conf *raft_conf_now(const struct raft *r);
raft_index raft_conf_index(const struct raft *r);
void raft_conf_push(struct raft *r, raft_index index,
                    const struct raft_conf *conf);
void raft_conf_truncate(struct raft *r, raft_index from);
void raft_conf_compact(struct raft *r, raft_index index);
void raft_conf_reset(struct raft *r, raft_index index,
                     const struct raft_conf *conf);
/* May this replica stand for election? */
bool raft_conf_may_campaign(const struct raft *r);
MUST_USE enum err raft_conf_check(const struct raft_conf *conf);
MUST_USE enum err raft_conf_check_change(const struct raft *r,
                                         const struct raft_entry *entry);

/* read.c */
MUST_USE enum err raft_read_add(struct raft *r, uint64_t name);
void raft_read_advance(struct raft *r);
void raft_read_fail(struct raft *r);

/* lease.c */
void raft_lease_promise(struct raft *r);
bool raft_lease_promised(const struct raft *r);
uint64_t raft_lease_until(const struct raft *r); /* 0: there is none */
bool raft_lease_valid(const struct raft *r);
bool raft_lease_ages(const struct raft *r);

/* message.c: what a sane peer may say, whatever our state. */
bool raft_msg_sane(const struct raft_msg *m);

/* verify.c */
void raft_verify(const struct raft *r);

#endif
