/* The clerk's parts, private to its files:
 *
 *   clerk.c          transactions: queue, one shard, deadlines, answers
 *   clerk_commit.c   transactions over several shards: two-phase commit
 *   clerk_resolve.c  finishing what somebody else left prepared
 *   clerk_leg.c      one request to one shard, until that shard has answered
 *   clerk_route.c    the newest configuration, the groups' leaders
 *   clerk_watch.c    servers that keep a request for long: slow, or gone?
 *   clerk_session.c  sessions, sequence numbers, `first`
 *
 * Everything runs on the loop. Nothing here calls back from inside: a leg's
 * done() and a transaction's come from the net or from a timer. */
#ifndef SHARDKV_CLERK_INT_H
#define SHARDKV_CLERK_INT_H

#include <uthash.h>

#include "shardkv/client.h"

#define SKV_CLERK_RUNNING_MAX 4096u
#define SKV_PAUSE_MIN_US      1000u
#define SKV_PAUSE_MAX_US      250000u
#define SKV_TRY_MS            2000u
#define SKV_TRY_DOUBLINGS_MAX 3u
/* Of long requests so much is under way to a group; the rest waits in line. */
#define SKV_LONG_SIZE (16u << 10)
#define SKV_LINE_SIZE (8u << 20)

/* ---- sessions ---- */

/* A number in use: from skv_sequence_take() until its request is answered by
 * every shard it went to, or will never be sent again. */
struct skv_sequence {
    struct skv_session *session; /* NULL: none taken */
    uint64_t number;
    struct skv_sequence *next, *prev;
};

struct skv_session {
    uint64_t id;
    uint64_t last;                            /* the highest number given out */
    struct skv_sequence *in_use;              /* ascending */
    bool retired;                             /* freed with its last number */
    uint8_t opened[(CTL_SHARDS_MAX + 7) / 8]; /* shards that have answered it */
    struct skv_session *next, *prev;
};

/* The next number of the current session. */
void skv_sequence_take(struct skv_clerk *c, struct skv_sequence *s);
void skv_sequence_release(struct skv_clerk *c, struct skv_sequence *s);
/* The lowest number still unanswered. */
uint64_t skv_session_first(const struct skv_session *s);
bool skv_session_is_open(const struct skv_session *s, uint16_t shard);
void skv_session_set_open(struct skv_session *s, uint16_t shard);
/* A shard has forgotten it: later requests get a new one. */
void skv_session_retire(struct skv_clerk *c, struct skv_session *s);
/* Is it one of ours, still under way? Then nobody need resolve it. */
bool skv_session_is_mine(const struct skv_clerk *c, uint64_t session,
                         uint64_t sequence);
void skv_sessions_free(struct skv_clerk *c);

/* ---- a request to one shard ---- */

struct skv_leg;
/* The shard's answer: `rc` is that of the reply and `body` the encoded reply,
 * borrowed; or the call was refused on the way (body empty). The leg is at
 * rest and may be started again, or freed. */
typedef void skv_leg_fn(struct skv_leg *leg, enum err rc, struct slice body);

struct skv_leg {
    /* The owner sets these and zeroes the rest. */
    struct skv_clerk *clerk;
    net_method method;
    struct skv_request request;  /* first and flags are set at each try */
    struct skv_session *session; /* NULL: READ, or on behalf of another clerk */
    bool stubborn; /* only the shard's own word ends it: phase two */
    skv_leg_fn *done;
    uint32_t sends; /* of this sequence; the owner zeroes it with a new one */

    uint64_t net_call;
    uint64_t sent_us; /* the try under way */
    struct env_timer timer;
    uint64_t pause_us;
    uint32_t failures;
    ctl_gid gid;                        /* of the try under way */
    uint32_t server;                    /* likewise: the index in the group */
    uint32_t servers;                   /* likewise: how many the group has */
    char address[NET_ADDRESS_SIZE_MAX]; /* likewise: the server's */
    uint32_t timeouts;                  /* of tries, since it was started */
    size_t size;                        /* of a long request, about */
    ctl_gid booked; /* its size counts in this group's line; 0: in none */
    bool in_line;   /* until others of that group have their answers */
    ctl_gid line_gid;
    uint32_t refusals; /* ERR_WRONGGROUP, since it was started */
    ctl_gid silent;    /* did not answer, and was the last; 0: all answered */
    enum err refused;  /* found without the net; given by the timer */
    bool running;
    bool waits_config; /* a newer configuration ends the pause */
    struct skv_leg *next, *prev;
};

void skv_leg_start(struct skv_leg *leg);
void skv_leg_stop(struct skv_leg *leg); /* idempotent; done() will not come */
void skv_legs_config_changed(struct skv_clerk *c);
/* Everything sent to this server until then is tried elsewhere. */
void skv_legs_leave(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                    uint64_t sent_until_us);
/* Everything sent to others of the group until then is sent to its leader. */
void skv_legs_follow(struct skv_clerk *c, ctl_gid gid, uint32_t leader,
                     uint64_t sent_until_us);
/* Those in line are tried again, soon. */
void skv_line_later(struct skv_clerk *c);
void skv_line_stop(struct skv_clerk *c);
/* Doubles *pause_us; half of the result is random. */
uint64_t skv_pause_next(struct skv_clerk *c, uint64_t *pause_us);

/* ---- routes ---- */

struct skv_route {
    ctl_gid gid;
    uint32_t leader; /* index of the server that answered last; a guess */
    uint64_t avoid_until_us[CTL_SERVERS_MAX]; /* see skv_route_avoid() */
    uint64_t answered_us[CTL_SERVERS_MAX];    /* last, by any answer */
    size_t long_size;                         /* of long requests under way */
    uint32_t line_length;                     /* of those that wait for them */
    uint64_t led_us; /* when one of them said last that it leads; 0: never */
    bool known;      /* one of them has answered as its leader does */
    UT_hash_handle hh;
};

/* A shard that is on its way is served by another group than its owner in the
 * configuration: whoever refuses it says whom to ask instead. */
struct skv_detour {
    uint16_t shard;
    struct ctl_group group;
    struct arena arena;
    UT_hash_handle hh;
};

/* Who serves the shard: false when nobody has said so. */
bool skv_route_find(struct skv_clerk *c, uint16_t shard, ctl_gid *gid,
                    uint32_t *server, uint32_t *server_count,
                    char address[NET_ADDRESS_SIZE_MAX]);
/* Of one server of the group, if that still is who serves the shard. */
bool skv_route_address(struct skv_clerk *c, uint16_t shard, ctl_gid gid,
                       uint32_t server, char address[NET_ADDRESS_SIZE_MAX]);
void skv_route_failed(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                      uint32_t server_count);
void skv_route_answered(struct skv_clerk *c, ctl_gid gid, uint32_t server);
bool skv_route_has_answered(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                            uint64_t since_us);
/* May a long request go to the group now? Then it counts until it is taken out
 * again. `first`: it is the first in line, and not one that comes. */
bool skv_route_book(struct skv_clerk *c, ctl_gid gid, size_t size, bool first);
void skv_route_unbook(struct skv_clerk *c, ctl_gid gid, size_t size);
/* One more waits in line, or one less. */
void skv_route_line(struct skv_clerk *c, ctl_gid gid, bool joins);
/* Did any of its servers, ever? */
bool skv_route_is_known(struct skv_clerk *c, ctl_gid gid);
/* One of its servers says that it leads. */
void skv_route_led(struct skv_clerk *c, ctl_gid gid);
/* Did one say so in the last `for_us`? */
bool skv_route_is_led(struct skv_clerk *c, ctl_gid gid, uint64_t for_us);
/* `asked` does not serve the shard and names `owner`, an encoded group or
 * nothing. True: there is somebody else to ask. */
bool skv_detour_take(struct skv_clerk *c, uint16_t shard, ctl_gid asked,
                     struct slice owner);
/* None of its servers answers: back to what the configuration says. */
void skv_detour_drop(struct skv_clerk *c, uint16_t shard);
void skv_detours_free(struct skv_clerk *c);
/* It gives no sign of life: for a while the others are asked first. */
void skv_route_avoid(struct skv_clerk *c, ctl_gid gid, uint32_t server,
                     uint32_t server_count);
void skv_config_refresh(struct skv_clerk *c); /* asks for the newest now */
void skv_config_start(struct skv_clerk *c);   /* and follows it from now on */

/* ---- watching (clerk_watch.c) ---- */

struct skv_question;
void skv_watch_start(struct skv_clerk *c); /* a leg waits for an answer */
void skv_watch_stop(struct skv_clerk *c);

/* ---- transactions ---- */

/*            run()                 several shards
 *  QUEUED ----------> ONE    or    PREPARE --all votes--> COMMIT -> end
 *                      | ^          |   ^ \--a no-------> ABORT --> end
 *               locked v |          |   |                   |
 *                     PAUSE         |   +---- PAUSE <-------+ locked
 *                                   +--caller gone--> RESOLVE -> COMMIT, ABORT
 */
enum skv_op_state {
    SKV_OP_QUEUED,
    SKV_OP_ONE,
    SKV_OP_PREPARE,
    SKV_OP_COMMIT,
    SKV_OP_ABORT,
    SKV_OP_RESOLVE,
    SKV_OP_PAUSE,
};

/* What a transaction has to do with one shard. */
struct skv_part {
    struct skv_leg leg;
    struct skv_op *op;
    uint16_t shard;
    struct skv_item *items;
    uint32_t item_count;
    uint32_t *positions; /* in the caller's order; NULL: the same */
    bool voted;          /* for it */
    struct skv_result *results;
};

struct skv_op {
    struct skv_clerk *clerk;
    struct skv_txn *txn; /* NULL: the caller has its answer */
    enum skv_op_state state;
    struct skv_sequence sequence;
    struct skv_part *parts;
    uint32_t part_count;
    struct skv_part one; /* the only part, mostly */
    struct skv_shard_ref *participants;
    uint32_t waiting; /* parts whose leg runs */
    bool writes;
    bool renewed;     /* went on in a new session once already */
    bool again;       /* ABORT: then try anew */
    enum err verdict; /* ABORT: what the caller is told if not again */
    uint32_t failed;  /* the compare's position, for the verdict */
    const struct skv_part *locked; /* PAUSE, ABORT: who met a lock, or NULL */
    uint64_t pause_us;
    struct env_timer pause;
    struct env_timer deadline;
    struct arena memory; /* parts, items, positions */
    struct skv_op *next, *prev;
};

void skv_op_move(struct skv_op *op, enum skv_op_state to);
/* Tells the caller; the op goes on without it. */
void skv_op_answer(struct skv_op *op, enum err rc);
/* Frees the op, begins a queued one, and last tells the caller. */
void skv_op_end(struct skv_op *op, enum err rc);
/* Then the op is begun again: with the same number if it kept it. */
void skv_op_pause(struct skv_op *op);
/* Prepares the leg of a part for a phase, and starts it. */
void skv_part_send(struct skv_part *p, enum skv_phase phase, skv_leg_fn *done);
/* Decodes into the caller's arena; ERR_CORRUPT when it cannot be the answer. */
MUST_USE enum err skv_part_take_results(struct skv_part *p, struct slice body,
                                        struct skv_reply *reply);
uint32_t skv_part_position(const struct skv_part *p, uint32_t failed);

void skv_commit_begin(struct skv_op *op);
/* The caller has gone while votes are out: find out how it ends. */
void skv_commit_abandon(struct skv_op *op);

/* ---- somebody else's prepared transactions ---- */

struct skv_holder_name {
    uint64_t session;
    uint64_t sequence;
};
struct skv_holder {
    struct skv_holder_name name;
    uint64_t seen_us; /* first */
    struct skv_resolve *resolve;
    UT_hash_handle hh;
};

/* A reply with ERR_LOCKED: remembers the holder, and resolves it when it stays.
 */
void skv_holder_seen(struct skv_clerk *c, struct slice body);
void skv_holders_free(struct skv_clerk *c);

/* ---- the clerk ---- */

struct skv_finished; /* an answer that waits for its timer */

struct skv_clerk {
    struct env *env;
    struct net *net;
    struct ctl_client *ctl;
    bool closing;

    struct ctl_config config; /* valid if has_config */
    struct arena config_arena;
    bool has_config;
    bool refreshing;
    struct env_timer poll_timer;
    struct skv_route *routes;   /* by gid */
    struct skv_detour *detours; /* by shard */
    /* On the loop, at each newer configuration; may be NULL. */
    void (*on_config)(void *arg, const struct ctl_config *config);
    void *on_config_arg;

    struct skv_session *sessions; /* the current one is the last */
    struct skv_session *session;
    struct skv_leg *legs;
    struct env_timer line_timer;
    bool line_set;
    struct env_timer watch_timer; /* runs while there are legs */
    bool watching;
    struct skv_question *questions;
    struct skv_op *running;
    uint32_t running_count;
    struct skv_op *queue;
    struct skv_finished *finished;
    struct env_timer finish_timer;
    struct skv_holder *holders; /* by name */
    uint32_t resolve_count;
    struct buf scratch; /* of an encoded request */
};

#endif
