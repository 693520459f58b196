/* The parts of a server, private to its files:
 *
 *   server.c    methods on the net; life
 *   status.c    what a replica says of itself
 *   migrate.c   the leader's work: configurations, arriving and leaving shards
 *   places.c    the leader tells the controllers who its members are
 *   janitor.c   and finishing what clerks have left prepared
 *   task.c      one thing that the leader does, until it is done or no leader
 *   pace.c      how fast that may be, as there are clients too
 *   look.c      reading the views of cuts
 *
 * Everything runs on the loop, but for what is given to rsm_read(). */
#ifndef SHARDKV_SERVER_INT_H
#define SHARDKV_SERVER_INT_H

#include "shardkv/fsm_int.h"
#include "shardkv/server.h"

/* ---- how fast shards arrive (pace.c) ---- */

/* Of all that arrive here: one rests behind the other. */
struct skv_pace {
    uint64_t free_us; /* when the last rest ends */
};

/* Bytes of a batch: what a smaller one takes is the net's time. */
enum { SKV_PACE_SMALL = 16 << 10 };

/* What was done, and for whom it should rest. */
struct skv_pace_batch {
    uint64_t begun_us;
    uint64_t bytes;
    uint64_t rate;       /* bytes a second that the operator allows; 0: any */
    bool busy;           /* one of the two groups has clients */
    bool small;          /* it took what the net took, and cost nobody much */
    uint64_t copy_us;    /* when the copy began, */
    uint64_t changes_us; /* and ended; 0: it has not */
};

/* Was there a request of a client lately? `asked_us`: when the last came, or 0.
 */
bool skv_pace_has_clients(uint64_t asked_us, uint64_t now_us);
/* A batch is done: how long until the next may begin. */
uint64_t skv_pace_rest(struct skv_pace *p, const struct skv_pace_batch *b,
                       uint64_t now_us);

/* ---- tasks (task.c) ---- */

enum skv_task_kind {
    SKV_TASK_CONFIG,  /* the next configuration goes into the log */
    SKV_TASK_PULL,    /* COUNT, ..., PULL, INSTALL, PULL, ..., FREEZE, ... */
    SKV_TASK_SETTLE,  /* SETTLE, SETTLED */
    SKV_TASK_DROP,    /* DROP, DROP, ... */
    SKV_TASK_EXPIRE,  /* EXPIRE of each shard */
    SKV_TASK_RELEASE, /* of a hold that lasts too long */
};

struct skv_mover;

struct skv_pulling {
    enum ctl_move_stage stage;
    uint64_t moved_us;        /* when it last came further */
    struct skv_cursor cursor; /* its key is that of key_bytes */
    struct buf key_bytes;
    struct skv_cursor next; /* behind the batch at hand; likewise */
    struct buf next_bytes;
    uint8_t end;          /* enum skv_end of the batch at hand */
    uint64_t asked_us;    /* when it was asked for */
    uint64_t batch_bytes; /* its size */
    bool busy;            /* the source has clients */
    uint32_t chases;      /* batches of changes so far */
    bool freezing;        /* FREEZE is asked, not for more changes */
    bool counted;
    uint64_t keys_all, bytes_all; /* counted */
    struct buf count_key;
    /* Of this leader: when each stage began, and with how much copied. */
    uint64_t begun_us, changes_us, tail_us, begun_bytes;
};

struct skv_task {
    struct skv_mover *mover;
    enum skv_task_kind kind;
    uint16_t shard;
    uint64_t number;
    struct ctl_group group; /* PULL, SETTLE: whom to ask; in the arena */
    bool heard;             /* from one of its members who they are now */
    bool has_follower;      /* one of them answered, in this round: */
    uint32_t follower;
    uint32_t server;   /* the one that is asked */
    uint32_t failures; /* servers that did not answer as the leader does */
    uint32_t again;    /* so often `server` is asked though it hung up */
    bool told;         /* since the last pause one of them said who leads */
    struct skv_pulling pull;
    uint64_t after; /* EXPIRE: the session */
    bool finish;    /* the command at hand ends the task */
    /* One of these is under way. */
    uint64_t net_call;
    struct env_timer timer;
    struct rsm_proposal proposal;
    bool proposing;
    bool dead; /* ended while proposing: freed when that returns */
    uint64_t pause_us;
    struct arena arena;
    struct skv_task *next, *prev;
};

/* ---- the leader's work (migrate.c) ---- */

enum { SKV_HINTS = 64 };

struct skv_mover {
    struct skv_server *server;
    struct env *env;
    struct ctl_client *ctl;
    bool leading;
    bool closing;
    struct skv_picture picture; /* generation 0: none yet */
    struct skv_picture fresh;   /* being taken */
    struct rsm_read take;
    enum err take_rc;
    bool taking;
    struct skv_task *tasks;
    struct skv_pace pace;
    uint64_t move_rate; /* of the newest configuration, while shards arrive */
    bool rate_asked;
    struct env_timer rate_timer;
    uint8_t hints[SKV_HINTS]; /* by gid: who of that group answered last */
    bool polling;
    struct env_timer poll_timer;
    bool poll_paused;
    struct env_timer expire_timer;
    /* places.c */
    raft_index members_index; /* the configuration that was looked at last */
    bool placing;             /* a change is asked for, for: */
    raft_index placing_index;
    raft_index told_index; /* the controllers know of this one, */
    uint64_t told_number;  /* from that configuration on */
    struct env_timer place_timer;
    struct ctl_config newest; /* for addresses alone */
    struct arena newest_arena;
    bool looking_up;
    ctl_gid look_up_gid;
    uint32_t look_up_steps;
    struct env_timer janitor_timer;
    struct skv_clerk *clerk; /* the janitor's; NULL until it is needed */
};

void skv_mover_init(struct skv_mover *m, struct skv_server *server);
void skv_mover_lead(struct skv_mover *m, bool leading);
/* Another batch was applied. */
void skv_mover_applied(struct skv_mover *m);
void skv_mover_refresh(struct skv_mover *m); /* takes a new picture */
void skv_mover_stop(struct skv_mover *m);    /* before rsm_free() */
void skv_mover_fini(struct skv_mover *m);    /* and after */

/* places.c */
void skv_places_look(struct skv_mover *m);
bool skv_places_changed(struct skv_mover *m); /* since the last call */
void skv_places_init(struct skv_mover *m);
void skv_places_stop(struct skv_mover *m);
void skv_places_fini(struct skv_mover *m);
/* `group`, with the newest addresses that we know. */
const struct ctl_group *skv_places_of(const struct skv_mover *m,
                                      const struct ctl_group *group);
void skv_places_refresh(struct skv_mover *m, ctl_gid gid);
void skv_janitor_start(struct skv_mover *m);
void skv_janitor_stop(struct skv_mover *m);

/* Looks what there is to do. */
void skv_mover_look(struct skv_mover *m);
struct skv_task *skv_task_find(struct skv_mover *m, enum skv_task_kind kind,
                               uint16_t shard);
uint32_t skv_task_count(const struct skv_mover *m, enum skv_task_kind kind);
uint32_t skv_task_count_with(const struct skv_mover *m, enum skv_task_kind kind,
                             ctl_gid gid);
/* Takes a picture's group into the task when not NULL. */
struct skv_task *skv_task_new(struct skv_mover *m, enum skv_task_kind kind,
                              uint16_t shard, uint64_t number,
                              const struct ctl_group *group);
/* PULL: where it goes on. */
void skv_task_set_cursor(struct skv_task *t, const struct skv_cursor *cursor);
void skv_task_start(struct skv_task *t);
/* RELEASE: in a while. */
void skv_task_start_release(struct skv_task *t);
/* CONFIG */
void skv_task_start_config(struct skv_task *t, const struct ctl_config *config);
void skv_task_end(struct skv_task *t);
void skv_tasks_stop(struct skv_mover *m);

/* ---- the server ---- */

struct skv_lease {
    uint64_t id; /* of an open view; 0: none */
    uint64_t used_us;
    bool ending;
};
enum { SKV_CLOSED_MAX = 16 };

struct skv_server {
    struct skv_server_config config;
    struct env *env;
    struct net *net;
    struct skv_fsm *fsm;
    struct rsm *rsm;
    struct skv_mover mover;
    struct env_worker *view_worker;
    struct env_timer lease_timer;
    struct skv_lease leases[SKV_VIEWS_MAX]; /* of fsm->views, as last seen */
    uint64_t closed[SKV_CLOSED_MAX];        /* the last that were told to */
    uint32_t closed_next;
    uint64_t started_us;
    uint32_t waiting;  /* requests that are not answered yet */
    uint64_t asked_us; /* when the last of a client came; 0: none has */
    bool closing;
};

void skv_leases_start(struct skv_server *s);
void skv_leases_stop(struct skv_server *s); /* when the rsm is freed */
void skv_leases_look(struct skv_server *s);
void skv_look_handle(struct skv_server *s, struct net_request *request,
                     struct slice body);

void skv_status_reply(struct skv_server *s, struct net_request *request);

#endif
