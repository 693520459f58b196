/* The controller's state machine: configurations, sessions, mounts. It is a
 * function of the log: no clock but the stamps in commands, no random number,
 * no hash order. Everything but new, free and the published numbers runs on
 * the rsm's "apply" worker. */
#ifndef SHARDCTRLER_FSM_INT_H
#define SHARDCTRLER_FSM_INT_H

#include "rsm/rsm.h"
#include "shardctrler/client.h"

#define CTL_SESSIONS_MAX         65536u
#define CTL_SESSION_IDLE_US      (24ull * 3600 * 1000000)
#define CTL_SESSION_KEEP_US      (10ull * 60 * 1000000) /* not evicted before */
#define CTL_MOUNT_SILENT_US      (60ull * 1000000)
#define CTL_HOST_SIZE_MAX        255u
#define CTL_PATH_SIZE_MAX        1023u
#define CTL_HISTORY_SIZE_MAX     (64u << 20)
#define CTL_STATE_SIZE_MAX       (128u << 20)
#define CTL_STATE_FILE           "state"
#define CTL_STATE_TEMPORARY_FILE "state.tmp"

/* ---- commands in the log ---- */

enum ctl_command_kind {
    CTL_COMMAND_INIT = 1,   /* body: ctl_init */
    CTL_COMMAND_CHANGE = 2, /* body: ctl_change; answered by ctl_changed */
    CTL_COMMAND_MOUNT = 3,  /* body: ctl_mount; answered by u32 rc */
};
#define CTL_COMMAND_FIELDS(F)                                                  \
    F(U8, kind) F(U64, stamp_us) /* the leader's wall clock */ F(BYTES, body)
MSG_STRUCT(ctl_command, CTL_COMMAND_FIELDS);
#define CTL_INIT_FIELDS(F) F(U32, shard_count)
MSG_STRUCT(ctl_init, CTL_INIT_FIELDS);

/* ---- all configurations, as differences ---- */

#define CTL_MOVED_FIELDS(F) F(U16, shard) F(U32, gid)
MSG_STRUCT(ctl_moved, CTL_MOVED_FIELDS);
#define CTL_DELTA_FIELDS(F)                                                    \
    F(LIST, ctl_owner, removed, CTL_GROUPS_MAX)                                \
    F(LIST, ctl_group, added, CTL_GROUPS_MAX)                                  \
    F(LIST, ctl_moved, moved, CTL_SHARDS_MAX)                                  \
    F(LIST, ctl_weight, weights, CTL_GROUPS_MAX) /* all there are; */          \
    F(U64, move_rate)                            /* and this, too */
MSG_STRUCT(ctl_delta, CTL_DELTA_FIELDS);

/* Configuration n is stored as what differs from n - 1, and every 64th as what
 * differs from number 0, so that any is found in at most 64 steps. */
struct ctl_history {
    struct buf bytes;  /* encoded ctl_delta, of number 1, 2, ... */
    size_t *offsets;   /* [i]: of number i + 1 */
    uint64_t count;    /* the newest number */
    uint64_t capacity; /* of offsets */
    uint32_t shard_count;
    struct ctl_config newest;
    struct arena arena; /* of newest */
};

void ctl_history_init(struct ctl_history *h, uint32_t shard_count);
/* From stored bytes: ERR_CORRUPT when they are not a history, and then there is
 * nothing to fini. */
MUST_USE enum err ctl_history_load(struct ctl_history *h, uint32_t shard_count,
                                   struct slice bytes);
void ctl_history_fini(struct ctl_history *h);
/* `next` is numbered one above the newest; copied. */
void ctl_history_append(struct ctl_history *h, const struct ctl_config *next);
/* Number `number` (at most the newest) into memory of `a`. */
void ctl_history_at(const struct ctl_history *h, uint64_t number,
                    struct arena *a, struct ctl_config *out);

/* ---- sessions and mounts, both sorted by session ---- */

#define CTL_SESSION_FIELDS(F)                                                  \
    F(U64, session)                                                            \
    F(U64, sequence) /* of the last change */                                  \
    F(U32, rc)       /* and its answer */                                      \
    F(U64, number)                                                             \
    F(U64, heard_us)
MSG_STRUCT(ctl_session, CTL_SESSION_FIELDS);
#define CTL_MOUNTED_FIELDS(F) F(SUB, ctl_mount, mount) F(U64, heard_us)
MSG_STRUCT(ctl_mounted, CTL_MOUNTED_FIELDS); /* its texts are on the heap */

/* ---- the state and its bytes ---- */

struct ctl_state {
    raft_index index; /* the last entry applied */
    raft_term term;
    uint64_t clock_us;    /* replicated: the highest stamp seen */
    uint32_t shard_count; /* 0 until INIT */
    struct ctl_history history;
    struct ctl_session *sessions;
    uint32_t session_count, session_capacity;
    struct ctl_mounted *mounts;
    uint32_t mount_count, mount_capacity;
};

void ctl_state_init(struct ctl_state *s);
void ctl_state_fini(struct ctl_state *s);
/* Room for so many sessions and mounts; what is there stays. */
void ctl_state_reserve(struct ctl_state *s, uint32_t sessions, uint32_t mounts);
/* The stored form (docs/disk.md): also a snapshot's bytes. */
void ctl_state_encode(const struct ctl_state *s, struct buf *out);
/* ERR_CORRUPT: `s` is left alone. */
MUST_USE enum err ctl_state_decode(struct slice from, struct ctl_state *s);

/* Applies one entry; the answer, if any, goes to the end of `reply`. */
void ctl_state_apply(struct ctl_state *s, const struct rsm_entry *entry,
                     struct buf *reply);
/* CTL_LATEST or a number, encoded. ERR_BUSY before INIT, ERR_NOTFOUND above
 * the newest. */
MUST_USE enum err ctl_state_query(const struct ctl_state *s, uint64_t number,
                                  struct buf *out);
void ctl_state_list_mounts(const struct ctl_state *s, struct buf *out);

/* A copy on the heap, and its end. */
struct slice ctl_text_own(struct slice from);
void ctl_text_disown(struct slice own);

/* The text of a mount within its limits? Asked before it is proposed, too. */
MUST_USE enum err ctl_mount_check(const struct ctl_mount *m);

/* ---- the rsm's fsm around it ---- */

struct ctl_fsm {
    struct rsm_fsm fsm;
    struct disk *disk;
    struct ctl_state state;
    raft_index durable_index;
    raft_term durable_term;
    /* For the loop: written by the worker, read there. Only hints: what is
     * answered is read on the worker. */
    uint64_t newest;    /* configuration's number */
    uint64_t size;      /* bytes of the last checkpoint */
    uint32_t is_inited; /* INIT was applied */
};

/* Reads the stored state. ERR_CORRUPT and ERR_IO are logged. */
MUST_USE enum err ctl_fsm_new(struct disk *disk, struct ctl_fsm **out);
void ctl_fsm_free(struct ctl_fsm *f);

#endif
