/* The replicated state machine of a group that serves shards, private to its
 * files, in reading order:
 *
 *   fsm.c      entries in, answers out; checkpoints and snapshots
 *   apply.c    a client's request: whose shard, executed before, or now
 *   txn.c      a minitransaction against the store
 *   session.c  exactly once: sessions and their replies
 *   lock.c     prepared transactions and what they lock
 *   commit.c   two-phase commit
 *   shard.c    which shards are here, and how they come and go
 *   track.c    what changes in a shard that leaves
 *   batch.c    a shard's contents and changes, in batches
 *   arrival.c  may what arrived be served?
 *   cut.c      a cut through all shards: holding, and when a view is opened
 *   view.c     ... the views that are open
 *   record.c   the keys of all this
 *
 * It is a function of the log: no clock but the stamps in commands, no random
 * number, no hash order. Everything here runs on the rsm's "apply" worker, but
 * for what the loop may ask (skv_fsm_generation()). A function that gives an
 * error gives the store's own trouble, after which the replica cannot go on;
 * refusals are in the reply. */
#ifndef SHARDKV_FSM_INT_H
#define SHARDKV_FSM_INT_H

#include "rsm/rsm.h"
#include "shardkv/command_int.h"
#include "shardkv/store.h"
#include "shardkv/store_int.h"

#define SKV_REPLIES_MAX     8192u /* unacknowledged, of one session in a shard */
#define SKV_REPLY_SIZE_MAX  (64u << 10) /* of a request that is logged */
#define SKV_PREPARED_MAX    1024u       /* transactions of one shard */
#define SKV_PREFIX_KEYS_MAX 65536u      /* of one DELETE_PREFIX */
#define SKV_DROP_KEYS_MAX   512u        /* of one DROP */
#define SKV_EXPIRE_ROWS_MAX 256u        /* looked at by one EXPIRE */
#define SKV_SESSION_IDLE_US (24ull * 3600 * 1000000)
#define SKV_OUTCOME_IDLE_US (30 * SKV_SESSION_IDLE_US)
#define SKV_GROUP_SHARD     0xffffu /* reserved: the group's own records */
_Static_assert(CTL_SHARDS_MAX <= SKV_GROUP_SHARD, "no real shard has it");

/* ---- keys (record.c) ---- */

struct skv_name {
    uint8_t data[40];
    size_t size;
};
struct slice skv_name_slice(const struct skv_name *n);

struct skv_name skv_name_shard(uint16_t shard); /* prefix of all it holds */
struct skv_name skv_name_sessions(uint16_t shard);
struct skv_name skv_name_session(uint16_t shard, uint64_t session);
struct skv_name skv_name_replies_all(uint16_t shard);
struct skv_name skv_name_replies(uint16_t shard, uint64_t session);
struct skv_name skv_name_reply(uint16_t shard, uint64_t session,
                               uint64_t sequence);
struct skv_name skv_name_prepared_all(uint16_t shard);
struct skv_name skv_name_prepared(uint16_t shard, uint64_t session,
                                  uint64_t sequence);
struct skv_name skv_name_config(void);
struct skv_name skv_name_previous(void);
struct skv_name skv_name_clock(void);
struct skv_name skv_name_cut(void);
struct skv_name skv_name_states(void);
struct skv_name skv_name_state(uint16_t shard);
struct skv_name skv_name_debts(void);
struct skv_name skv_name_debt(uint16_t shard, uint64_t number);
struct skv_name skv_name_cursor(uint16_t shard);
struct skv_name skv_name_changes(uint16_t shard);
struct skv_name skv_name_change(uint16_t shard, raft_index index,
                                uint32_t count);
struct skv_name skv_name_latests(uint16_t shard);
struct skv_name skv_name_latest(uint16_t shard, uint32_t hash);
/* The numbers in the key of a chunk of a reply or a vote; false unless it is
 * the first. */
bool skv_name_read_chunked(struct slice key, uint64_t *session,
                           uint64_t *sequence);
/* Is it the key of a session's row? */
bool skv_name_read_session(struct slice key, uint64_t *session);

/* May a key of at least eight bytes, sent by another group, be stored here? */
bool skv_name_may_move(struct slice key);

#define SKV_CHUNK_SIZE_MAX 4000u
/* A value of any size as small ones under name + chunk (16 bits): it may be
 * read while an entry is applied, which a large value may not (DESIGN 4). */
MUST_USE enum err skv_chunks_put(struct skv_store *s, struct skv_name name,
                                 struct slice bytes);
/* To the end of `out`. ERR_NOTFOUND. */
MUST_USE enum err skv_chunks_get(struct skv_store *s, struct skv_name name,
                                 struct buf *out);
/* *found, if not NULL: it was there. */
MUST_USE enum err skv_chunks_remove(struct skv_store *s, struct skv_name name,
                                    bool *found);
/* The same by skv_track_forget(). */
MUST_USE enum err skv_chunks_forget(struct skv_store *s, struct skv_name name,
                                    bool *found);
MUST_USE enum err skv_chunks_find(struct skv_store *s, struct skv_name name,
                                  bool *found);

/* The first `max` keys that begin with `prefix` and are above or at `from`. */
struct skv_keys {
    struct buf bytes; /* u16 size and bytes of each */
    uint32_t count;
    uint32_t max;
    bool more;
    size_t at; /* of skv_keys_next() */
};
MUST_USE enum err skv_keys_collect(struct skv_store *s, struct slice prefix,
                                   struct slice from, struct skv_keys *keys);
void skv_keys_add(struct skv_keys *keys, struct slice key);
bool skv_keys_next(struct skv_keys *keys, struct slice *key);
void skv_keys_free(struct skv_keys *keys);
MUST_USE enum err skv_keys_remove(struct skv_store *s, struct skv_keys *keys);

/* ---- state ---- */

/* See shard.c. The number is of the record in the store: never renumber. */
enum skv_shard_state {
    SKV_SHARD_ABSENT = 0,
    SKV_SHARD_SERVING = 1,
    SKV_SHARD_PULLING = 2,
    SKV_SHARD_FROZEN = 3,
    SKV_SHARD_DROPPING = 4,
    SKV_SHARD_LEAVING = 5,
};

enum skv_lock_flags { SKV_LOCK_EXCLUSIVE = 1, SKV_LOCK_PREFIX = 2 };
#define SKV_LOCK_FIELDS(F) F(BYTES, key) F(U8, flags)
MSG_STRUCT(skv_lock, SKV_LOCK_FIELDS);

/* A vote for a transaction, as stored: what it locks, and its write items with
 * their keys resolved. */
#define SKV_VOTE_FIELDS(F)                                                     \
    F(LIST, skv_shard_ref, participants, SKV_PARTICIPANTS_MAX)                 \
    F(LIST, skv_lock, locks, 2 * SKV_ITEMS_MAX)                                \
    F(LIST, skv_item, items, SKV_ITEMS_MAX)
MSG_STRUCT(skv_vote, SKV_VOTE_FIELDS);

/* The same in memory, without the items. */
struct skv_prepared {
    uint64_t session;
    uint64_t sequence;
    struct skv_vote vote;
    struct arena arena; /* of the vote */
    struct skv_prepared *next;
};

struct skv_shard {
    uint8_t state;
    uint64_t number; /* of the configuration that brought it into this state */
    struct skv_prepared *prepared; /* sorted by name; of one that is served */
    uint32_t prepared_count;
    struct buf cursor; /* PULLING: encoded skv_cursor */
    /* DROPPING: what is gone for certain, so that nobody looks there again. In
     * memory alone: without it the same keys go, later. */
    uint8_t drop_stage;
    struct buf dropped; /* of this stage, all below this key */
};

/* A shard came from a group that may not know yet that we have it. */
struct skv_debt {
    uint16_t shard;
    uint64_t number;
    struct ctl_group creditor;
    struct arena arena;
    struct skv_debt *next;
};

/* The newest cut (cut.c). The number is of the record in the store. */
enum skv_hold_state {
    SKV_HOLD_NONE = 0,
    SKV_HOLD_HELD = 1,
    SKV_HOLD_VIEWED = 2,
    SKV_HOLD_RELEASED = 3,
};
#define SKV_HOLD_FIELDS(F) F(U64, id) F(U8, state) F(U64, index)
MSG_STRUCT(skv_hold, SKV_HOLD_FIELDS);

/* Views that are open (view.c). */
enum { SKV_VIEWS_MAX = 4 };
struct skv_view_slot {
    uint32_t open; /* atomic: enum skv_view_state */
    uint64_t id;   /* atomic: the loop looks at it */
    raft_index index;
    struct skv_view *view;
};

struct skv_fsm {
    struct rsm_fsm fsm;
    struct skv_store *store; /* taken; behind track.c */
    ctl_gid gid;
    uint64_t id;       /* of the replica: what is said of damage names it */
    size_t batch_size; /* of batches that are read, about; set at start */
    bool ready;        /* what follows was read from the store */
    raft_index index;  /* the last entry applied */
    raft_term term;
    uint64_t clock_us; /* replicated: the highest stamp seen */
    struct ctl_config config;
    struct ctl_config previous;
    struct arena config_arena;
    struct arena previous_arena;
    struct skv_shard *shards; /* of the configuration */
    uint32_t shards_count;
    struct skv_debt *debts;
    struct arena arena; /* of the entry at hand */
    struct buf reply;   /* likewise */
    struct buf scratch;
    struct skv_hold hold;
    uint64_t view_wanted; /* the entry at hand opens a view of this number */
    struct skv_view_slot views[SKV_VIEWS_MAX];
    uint64_t generation; /* of configurations, shards, debts, hold; atomic */
};

/* Takes the store, and does not touch it: that is the worker's. */
struct skv_fsm *skv_fsm_new(struct skv_store *store, ctl_gid gid);
/* Reads what is kept in memory, once. Called by everything on the worker that
 * may come first. Failures are logged. */
MUST_USE enum err skv_fsm_ready(struct skv_fsm *f);
void skv_fsm_free(struct skv_fsm *f);
/* Changes when a picture taken before may be out of date. Any thread. */
uint64_t skv_fsm_generation(const struct skv_fsm *f);
void skv_fsm_changed(struct skv_fsm *f);

/* ---- requests (apply.c) ---- */

/* Executes `body`, an encoded skv_request, and gives the encoded reply in
 * f->reply. */
MUST_USE enum err skv_apply_request(struct skv_fsm *f, struct slice body);
/* The same for one that only reads, outside the log: to the end of `out`. */
MUST_USE enum err skv_apply_read(struct skv_fsm *f, struct slice body,
                                 struct buf *out);

/* ---- minitransactions (txn.c) ---- */

/* An item as it is about to be executed. */
struct skv_plan {
    struct slice key;       /* with `via` resolved; empty when it cannot be */
    enum err rc;            /* then why */
    struct skv_shape after; /* writes: of the key's value */
    uint64_t offset;        /* writes: where */
    uint8_t sum[sizeof(uint64_t)]; /* ADD */
};

struct skv_exec {
    struct skv_store *store;
    struct arena *arena;
    const struct skv_request *request;
    bool logged; /* no large value's bytes may be read */
    struct skv_plan *plans;
    struct skv_result *results;
    uint32_t failed; /* with a refusal: the item's position */
    enum err fault;  /* the store's own trouble */
};

/* The steps, in this order. Each gives a refusal, or fault's code. */
MUST_USE enum err skv_exec_begin(struct skv_exec *x); /* resolves keys */
MUST_USE enum err skv_exec_compare(struct skv_exec *x);
MUST_USE enum err skv_exec_read(struct skv_exec *x);
MUST_USE enum err skv_exec_plan(struct skv_exec *x); /* all that may refuse */
MUST_USE enum err skv_exec_write(struct skv_exec *x);
/* compare, read and plan. */
MUST_USE enum err skv_exec_prepare(struct skv_exec *x);

/* ---- sessions (session.c) ---- */

#define SKV_ROW_FIELDS(F)                                                      \
    F(U64, last_us)                                                            \
    F(U64, first)                                                              \
    F(U32, replies) /* kept */                                                 \
    F(U16, newest)  /* of the one stored last, less `first`; it may be gone */ \
    F(U64, outcome) /* the highest number of a commit; see SKV_OUTCOME_IDLE_US \
                     */
MSG_STRUCT(skv_row, SKV_ROW_FIELDS);

enum { SKV_NEWEST_UNKNOWN = UINT16_MAX }; /* or too far from `first` */

/* What a number was used for; in the store. */
enum skv_use {
    SKV_USE_EXECUTED = 1,
    SKV_USE_PREPARED = 2,
    SKV_USE_COMMITTED = 3,
    SKV_USE_ABORTED = 4,
};

/* A request with a name, on its way. */
struct skv_call {
    struct skv_fsm *fsm;
    struct skv_shard *shard;
    const struct skv_request *request;
    struct skv_row row;
    bool row_changed;
};

MUST_USE enum err skv_row_find(struct skv_fsm *f, uint16_t shard,
                               uint64_t session, struct skv_row *row);
/* Its replies below `first` go, but those of prepared transactions. */
MUST_USE enum err skv_row_forget(struct skv_call *c, uint64_t first);
MUST_USE enum err skv_row_save(struct skv_call *c);
/* The reply of the call's number, to the end of `out`. ERR_NOTFOUND. */
MUST_USE enum err skv_use_find(struct skv_call *c, enum skv_use *use,
                               struct buf *out);
MUST_USE enum err skv_use_add(struct skv_call *c, enum skv_use use,
                              struct slice reply);
MUST_USE enum err skv_use_replace(struct skv_call *c, enum skv_use use,
                                  struct slice reply);
/* Of a shard that arrives: a row came that says `first`. What the old owner has
 * forgotten without a change goes here, too. */
MUST_USE enum err skv_replies_follow(struct skv_fsm *f, uint16_t shard,
                                     uint64_t session, uint64_t first);
MUST_USE enum err skv_sessions_expire(struct skv_fsm *f, uint16_t shard,
                                      uint64_t after,
                                      struct skv_outcome *outcome);

/* ---- locks (lock.c) ---- */

/* Fills `locks` (room for 2 * SKV_ITEMS_MAX) with what the items touch. */
uint32_t skv_locks_of(const struct skv_exec *x, struct skv_lock *locks);
/* Who holds something that these need; NULL when nobody does. */
const struct skv_prepared *skv_locks_holder(const struct skv_shard *shard,
                                            const struct skv_lock *locks,
                                            uint32_t count);
/* Both: for a request whose keys are resolved. */
const struct skv_prepared *skv_exec_holder(const struct skv_shard *shard,
                                           const struct skv_exec *x);
struct skv_prepared *skv_prepared_find(const struct skv_shard *shard,
                                       uint64_t session, uint64_t sequence);
/* Stores and locks. */
MUST_USE enum err skv_prepared_add(struct skv_call *c,
                                   const struct skv_vote *vote);
/* Unlocks and removes. */
MUST_USE enum err skv_prepared_remove(struct skv_call *c,
                                      struct skv_prepared *p);
/* With the items; borrows from `bytes`. */
MUST_USE enum err skv_prepared_read(struct skv_call *c, struct buf *bytes,
                                    struct skv_vote *vote);
/* Of any; what does not decode, or lacks a part, is ERR_CORRUPT. */
MUST_USE enum err skv_vote_find(struct skv_fsm *f, uint16_t shard,
                                uint64_t session, uint64_t sequence,
                                struct buf *bytes, struct skv_vote *vote);
MUST_USE enum err skv_prepared_load(struct skv_fsm *f, uint16_t shard);
void skv_prepared_forget(struct skv_shard *shard); /* in memory alone */

/* ---- two-phase commit (commit.c) ---- */

/* The number is new here. PREPARE; COMMIT, ABORT and RESOLVE of what this shard
 * never voted on. The reply goes to f->reply. */
MUST_USE enum err skv_commit_first(struct skv_call *c, struct skv_exec *x);
/* It was used before, with `reply` the answer then. */
MUST_USE enum err skv_commit_again(struct skv_call *c, enum skv_use use,
                                   struct slice reply);
/* It is prepared. */
MUST_USE enum err skv_commit_finish(struct skv_call *c, struct skv_prepared *p);

/* A reply that is a code alone, to f->reply. */
void skv_answer_code(struct skv_fsm *f, enum err rc);
/* ERR_WRONGGROUP, to the end of `out`. `owner` may be NULL. */
void skv_answer_away(uint64_t config_number, const struct ctl_group *owner,
                     struct buf *out);
/* ERR_LOCKED with the holder, to the end of `out`. */
void skv_answer_locked(struct skv_fsm *f, const struct skv_prepared *holder,
                       struct buf *out);
/* What executing gave: to the end of `out`. */
void skv_answer_exec(struct skv_fsm *f, const struct skv_exec *x, enum err rc,
                     struct buf *out);

/* ---- shards (shard.c) ---- */

bool skv_shard_is_served(const struct skv_fsm *f, uint16_t shard);
/* Who else serves it, as far as is known here: its next owner, or the last one
 * while it is on its way to us. NULL: nobody. */
const struct ctl_group *skv_shard_owner(const struct ctl_config *config,
                                        const struct ctl_config *previous,
                                        ctl_gid self, uint16_t shard);
MUST_USE enum err skv_shards_load(struct skv_fsm *f);
void skv_shards_forget(struct skv_fsm *f); /* in memory alone */
/* The code is a refusal; *fault is the store's own trouble. */
MUST_USE enum err skv_shards_configure(struct skv_fsm *f,
                                       const struct ctl_config *next,
                                       enum err *fault);
MUST_USE enum err skv_shard_install(struct skv_fsm *f,
                                    const struct skv_install *install,
                                    bool follows, enum err *fault);
MUST_USE enum err skv_shard_freeze(struct skv_fsm *f,
                                   const struct skv_step *step,
                                   enum err *fault);
MUST_USE enum err skv_shard_settled(struct skv_fsm *f,
                                    const struct skv_step *step,
                                    enum err *fault);
/* May group `gid` have the frozen shard by move `number`, and say that it has?
 * ERR_DENIED: it is another's. ERR_OK also when there is nothing left to
 * protect. */
MUST_USE enum err skv_shard_may_take(const struct skv_fsm *f, uint16_t shard,
                                     uint64_t number, ctl_gid gid);
MUST_USE enum err skv_shard_drop(struct skv_fsm *f, const struct skv_step *step,
                                 bool *more, enum err *fault);

/* ---- cuts (cut.c, view.c) ---- */

/* While it is so, no transaction begins here. */
bool skv_is_held(const struct skv_fsm *f);
MUST_USE enum err skv_hold_load(struct skv_fsm *f);
/* The answer goes to f->reply. */
MUST_USE enum err skv_cut_apply(struct skv_fsm *f, const struct skv_cut *cut);

/* Opens the view that is wanted; after the entry, and after a checkpoint. */
void skv_view_add(struct skv_fsm *f);
/* Any thread: somebody needs it, so that it makes no room for others. False:
 * there is none. */
bool skv_view_take(struct skv_fsm *f, uint64_t id);
/* The rest: on the "view" worker, or when the workers have ended. */
/* Answers `look` (READ or SUM): an encoded skv_seen to the end of `out`. */
MUST_USE enum err skv_view_look(struct skv_fsm *f, const struct skv_look *look,
                                struct buf *out);
void skv_view_remove(struct skv_fsm *f, uint64_t id);

/* ---- what the loop sees (picture.c) ---- */

/* A copy of what the group's leader acts on. Zero-initialise. */
struct skv_picture {
    uint64_t generation;
    uint64_t number; /* of the configuration */
    struct ctl_config config;
    struct ctl_config previous;
    struct ctl_group own; /* as in the configuration; no servers: not in it */
    uint32_t shard_count;
    uint8_t *states;
    uint64_t *numbers;
    struct skv_cursor *cursors; /* of those PULLING */
    struct skv_owed {
        uint16_t shard;
        uint64_t number;
        struct ctl_group creditor;
    } * debts;
    uint32_t debt_count;
    uint64_t keys, bytes; /* stored, about */
    uint64_t held;        /* by the cut of this number; 0: not */
    /* Some prepared transactions of each shard: encoded replies with
     * ERR_LOCKED, as somebody gets who trips over them. */
    struct slice *prepared;
    uint32_t prepared_count;
    struct arena arena;
};
MUST_USE enum err skv_picture_take(struct skv_fsm *f, struct skv_picture *p);
/* Shards in that state. */
uint32_t skv_picture_count(const struct skv_picture *p,
                           enum skv_shard_state state);
uint32_t skv_picture_leaving(const struct skv_picture *p); /* or frozen */
bool skv_picture_serves(const struct skv_picture *p, uint16_t shard);
void skv_picture_free(struct skv_picture *p);

/* ---- what changes in a shard that leaves (track.c) ---- */

/* The bytes [offset, end) of the key's value may have changed, and its length.
 */
#define SKV_CHANGE_FIELDS(F) F(BYTES, key) F(U64, offset) F(U64, end)
MSG_STRUCT(skv_change, SKV_CHANGE_FIELDS);

/* Takes the store. */
struct skv_store *skv_track_new(struct skv_store *inner,
                                const struct skv_fsm *f);
/* Removes a key of which the new owner hears otherwise: it leaves no change,
 * and the one that it has goes. `s` is of skv_track_new(). */
MUST_USE enum err skv_track_forget(struct skv_store *s, struct slice key);

/* ---- is an arrived shard whole and sane? (arrival.c) ---- */

/* ERR_CORRUPT: no. *fault is the store's own trouble. */
MUST_USE enum err skv_arrival_check(struct skv_fsm *f, uint16_t shard,
                                    enum err *fault);

/* ---- batches (batch.c) ---- */

MUST_USE enum err skv_record_check(const struct skv_record *r, uint16_t shard);

/* What batches are read from. */
struct skv_source {
    struct skv_store *store;
    struct skv_view *view; /* NULL: what is in the store now */
    struct arena *arena;
    size_t batch_size; /* of records, about */
    size_t read_size;  /* of values that are looked at, about */
};
/* The next batch of a shard's keys behind the cursor. SKV_END_LAST: the last.
 */
MUST_USE enum err skv_batch_fill(const struct skv_source *source,
                                 uint16_t shard, const struct skv_cursor *from,
                                 struct skv_pulled *out);

/* Reads the next batch of a shard that is leaving, for group `to`: an encoded
 * skv_pulled to `out`; `busy` is told. The code is a refusal; *fault is the
 * store's own trouble. */
MUST_USE enum err skv_batch_read(struct skv_fsm *f, const struct skv_pull *pull,
                                 ctl_gid to, bool busy, struct buf *out,
                                 enum err *fault);
/* Likewise: how much of it there is, an encoded skv_counted. */
MUST_USE enum err skv_batch_count(struct skv_fsm *f,
                                  const struct skv_count *count, ctl_gid to,
                                  struct buf *out, enum err *fault);
MUST_USE enum err skv_batch_write(struct skv_fsm *f,
                                  const struct skv_install *install);
/* Behind it: replies that the batch's rows have passed go. */
MUST_USE enum err skv_batch_follow(struct skv_fsm *f,
                                   const struct skv_install *install);

#endif
