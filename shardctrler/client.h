/* The controller's clerk: asynchronous, on a loop. It remembers the leader,
 * retries with growing jittered pauses until a call's deadline, and numbers its
 * changes so that each is made exactly once. It follows the controllers when
 * they are replaced (known.c). */
#ifndef SHARDCTRLER_CLIENT_H
#define SHARDCTRLER_CLIENT_H

#include "base/env.h"
#include "shardctrler/config.h"
#include "transport/net.h"

#define CTL_METHOD_QUERY  0x20 /* ctl_query -> ctl_config */
#define CTL_METHOD_CHANGE 0x21 /* ctl_change -> ctl_changed; see ctl_change */
#define CTL_METHOD_MOUNT  0x22 /* ctl_mount -> empty: hello, or good-bye */
#define CTL_METHOD_MOUNTS 0x23 /* empty -> ctl_mounts */
#define CTL_METHOD_STATUS                                                      \
    0x24 /* empty -> ctl_status, of this replica alone                         \
          */

/* Number CTL_LATEST asks for the newest. With wait_ms, a number above the
 * newest waits for it to appear (long poll); ERR_NOTFOUND when it did not. */
#define CTL_LATEST          UINT64_MAX
#define CTL_QUERY_FIELDS(F) F(U64, number) F(U32, wait_ms)
MSG_STRUCT(ctl_query, CTL_QUERY_FIELDS);

/* CTL_SERVERS: `join` has one group, and these are its servers from now on;
 * its leader says so when its members have changed. Only admins may change; a
 * server, only the servers of its own group. */
enum ctl_change_kind {
    CTL_JOIN = 1,
    CTL_LEAVE = 2,
    CTL_MOVE = 3,
    CTL_SERVERS = 4,
    CTL_WEIGH = 5,
    CTL_LIMIT = 6
};
#define CTL_CHANGE_FIELDS(F)                                                   \
    F(U64, session)                                                            \
    F(U64, sequence)                                                           \
    F(U8, kind)                                                                \
    F(LIST, ctl_group, join, CTL_GROUPS_MAX)                                   \
    F(LIST, ctl_owner, leave, CTL_GROUPS_MAX)                                  \
    F(U32, move_shard)                                                         \
    F(U32, move_gid)                                                           \
    F(SUB, ctl_weight, weigh)                                                  \
    F(U64, limit) /* bytes a second; 0: none */
MSG_STRUCT(ctl_change, CTL_CHANGE_FIELDS);
#define CTL_CHANGED_FIELDS(F) F(U32, rc) F(U64, number)
MSG_STRUCT(ctl_changed, CTL_CHANGED_FIELDS);

#define CTL_MOUNT_FIELDS(F)                                                    \
    F(U64, session)                                                            \
    F(BYTES, host)                                                             \
    F(BYTES, path)                                                             \
    F(U64, pid)                                                                \
    F(U64, since_us) /* wall clock */                                          \
    F(U8, gone)      /* 1: it says good-bye */
MSG_STRUCT(ctl_mount, CTL_MOUNT_FIELDS);
#define CTL_MOUNTS_MAX       4096u
#define CTL_MOUNTS_FIELDS(F) F(LIST, ctl_mount, mounts, CTL_MOUNTS_MAX)
MSG_STRUCT(ctl_mounts, CTL_MOUNTS_FIELDS);

/* One replica as it sees itself; skv servers answer the same message. */
#define CTL_PEER_FIELDS(F)                                                     \
    F(U64, id) F(BYTES, address) F(U64, match) F(U8, active)
MSG_STRUCT(ctl_peer, CTL_PEER_FIELDS);
/* A shard on its way to this replica's group, as the group's leader sees it. */
enum ctl_move_stage {
    CTL_MOVE_COUNT = 0,   /* it is looked at how much there is */
    CTL_MOVE_COPY = 1,    /* in use where it was, as until CTL_MOVE_TAIL */
    CTL_MOVE_CHANGES = 2, /* what changed meanwhile is copied */
    CTL_MOVE_TAIL = 3,    /* frozen: the last changes, and then it is here */
};
#define CTL_MOVE_FIELDS(F)                                                     \
    F(U16, shard)                                                              \
    F(U32, from) /* group */                                                   \
    F(U8, stage)                                                               \
    F(U64, keys)     /* copied */                                              \
    F(U64, keys_all) /* 0: not counted */                                      \
    F(U64, bytes)                                                              \
    F(U64, bytes_all)                                                          \
    F(U64, left_ms) /* about; 0: nobody can tell */
MSG_STRUCT(ctl_move, CTL_MOVE_FIELDS);
#define CTL_STATUS_MOVES_MAX 16u

/* What checkpoints of late cost, in microseconds. */
#define CTL_SPREAD_FIELDS(F) F(U64, p50) F(U64, p99) F(U64, max)
MSG_STRUCT(ctl_spread, CTL_SPREAD_FIELDS);
enum ctl_spread_kind {
    CTL_SPREAD_STALL, /* for so long a checkpoint kept the applier */
    CTL_SPREAD_BUSY,  /* the applier's longest job while it was made */
    CTL_SPREAD_WRITE, /* what it took beside the applier */
    CTL_SPREADS
};

/* When a controller last heard of a group's leader, while it led itself. */
#define CTL_HEARD_FIELDS(F) F(U32, gid) F(U64, ago_ms)
MSG_STRUCT(ctl_heard, CTL_HEARD_FIELDS);

#define CTL_STATUS_FIELDS(F)                                                   \
    F(U32, gid)                                                                \
    F(U64, id)                                                                 \
    F(U8, role)                                                                \
    F(U64, term)                                                               \
    F(U64, leader)                                                             \
    F(U64, first_index)                                                        \
    F(U64, last_index)                                                         \
    F(U64, commit)                                                             \
    F(U64, applied)                                                            \
    F(U64, durable)                                                            \
    F(U64, config_number)                                                      \
    F(U64, pid)                                                                \
    F(U64, uptime_ms)                                                          \
    F(U64, keys)                                                               \
    F(U64, bytes)                                                              \
    F(U64, certificate_end_s)                                                  \
    F(BYTES, problem) /* words, empty when all is well */                      \
    F(LIST, ctl_peer, peers, 16)                                               \
    F(U32, arriving) /* shards, those of `moves` and those that wait */        \
    F(U32, leaving)                                                            \
    F(LIST, ctl_move, moves, CTL_STATUS_MOVES_MAX) /* the leader's */          \
    F(U64, checkpoints)                            /* since it started */      \
    F(LIST, ctl_spread, spreads, CTL_SPREADS) /* by enum ctl_spread_kind */    \
    F(LIST, ctl_heard, heard, CTL_GROUPS_MAX) /* a controller's */             \
    F(U64, controllers_ms) /* a group's: since a controller answered it */
MSG_STRUCT(ctl_status, CTL_STATUS_FIELDS);

/* Each clerk that runs asks a controller at least so often who they are. A
 * controller is removed so long after the last was added: then nobody loses
 * sight of all, however many are replaced one after the other. */
enum { CTL_LOOK_MS = 5000 };

struct ctl_client;

/* `addresses` are the controllers', copied; 16 at most. */
struct ctl_client *ctl_client_new(struct env *env, struct net *net,
                                  const char (*addresses)[NET_ADDRESS_SIZE_MAX],
                                  uint32_t count);
void ctl_client_free(struct ctl_client *c); /* waiting calls get ERR_CLOSED */
/* For so long no controller has answered anything. */
uint64_t ctl_client_silent_ms(const struct ctl_client *c);

/* `config` is borrowed for the call, and NULL unless `rc` is ERR_OK. */
typedef void ctl_query_fn(void *arg, enum err rc,
                          const struct ctl_config *config);
/* Waits up to `wait_ms` for configuration `number` to appear: ERR_NOTFOUND when
 * it did not. For all calls: `timeout_ms` 0 means for ever; done() is never
 * called from inside. */
void ctl_client_query(struct ctl_client *c, uint64_t number, uint32_t wait_ms,
                      uint32_t timeout_ms, ctl_query_fn *done, void *arg);

typedef void ctl_change_fn(void *arg, enum err rc, uint64_t number);
/* session and sequence are filled in here. Changes of one clerk are made one
 * after the other, in the order of these calls. A timeout is at most five
 * minutes here (0: that): a session may be forgotten some time after. */
void ctl_client_change(struct ctl_client *c, const struct ctl_change *change,
                       uint32_t timeout_ms, ctl_change_fn *done, void *arg);

typedef void ctl_mount_fn(void *arg, enum err rc);
void ctl_client_mount(struct ctl_client *c, const struct ctl_mount *mount,
                      uint32_t timeout_ms, ctl_mount_fn *done, void *arg);
typedef void ctl_mounts_fn(void *arg, enum err rc,
                           const struct ctl_mounts *mounts);
void ctl_client_mounts(struct ctl_client *c, uint32_t timeout_ms,
                       ctl_mounts_fn *done, void *arg);

#endif
