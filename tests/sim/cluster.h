/* A whole cluster in a simulated world: controllers, groups, clerks and an
 * administrator, the faults that a plan makes them suffer, and the checks:
 *
 *  after each event   verify.c: Raft's invariants on what the nodes hold and
 * say at the end         every operation is answered once all is healed
 * (liveness), the histories are linearizable, a group's replicas agree
 */
#ifndef TESTS_SIM_CLUSTER_H
#define TESTS_SIM_CLUSTER_H

#include "shardctrler/server.h"
#include "shardkv/client.h"
#include "shardkv/server.h"
#include "tests/sim/disk.h"
#include "tests/sim/net.h"

enum {
    SIM_CONTROLLERS = 3,
    SIM_GROUPS_MAX = 8,
    SIM_REPLICAS_MAX = 7,
    SIM_SPEEDS = 4, /* of a server: wal, apply, checkpoint, snap */
    SIM_SPARES = 4, /* a group: nodes that may join it */
    SIM_IDS_MAX = SIM_REPLICAS_MAX + SIM_SPARES,
    SIM_KEYS_MAX = 24,
};

/* What may happen, per mille of the faults drawn. */
enum fault {
    FAULT_CRASH,        /* a server dies, and comes back soon */
    FAULT_CRASH_LEADER, /* as soon as it has sent a little */
    FAULT_CRASH_ALL,    /* every server of a group at once */
    FAULT_POWER,        /* dies inside a later call to its disk */
    FAULT_SYNC,         /* a sync fails: it must die of it */
    FAULT_PARTITION,    /* the nodes in two halves */
    FAULT_ONE_WAY,      /* some links, in one direction */
    FAULT_LEADER_CUT,   /* a leader alone, or with a minority */
    FAULT_MEND,
    FAULT_PAUSE,   /* a process stands still */
    FAULT_SLOW,    /* a slow disk */
    FAULT_CLOCK,   /* a wall clock jumps */
    FAULT_WEATHER, /* loss, delay, duplicates: worse or better */
    FAULT_ADMIN,   /* a group joins or leaves, a shard moves */
    FAULT_CLERK,   /* a clerk's process dies; another starts */
    FAULT_MEMBERS, /* a replica is added, removed, replaced */
    FAULT_WIPE,    /* a disk is lost, for good */
    FAULT_RESET,   /* a leader's connections to its peers break; it lives */
    FAULT_APART,   /* a follower hears its leader no more, others restart */
    FAULT_MOVE,    /* an end of a shard's move dies around one of its steps */
    FAULT_STREAM,  /* an end of a snapshot stream dies, or its link */
    FAULT_FULL,    /* a disk is full for a while, or for good */
    FAULT_FULL_GROUP,  /* those of a whole group, or most of it */
    FAULT_FULL_STRUCK, /* one, and the power goes meanwhile */
    FAULT_ROT,         /* a bit flips in the log of a replica that is down */
    FAULT_ROT_GROUP,   /* in those of a whole group: they are repaired */
    FAULT_PARTIAL,     /* one link of a leader's, for long */
    FAULT_FORK,        /* two leaders change the members, each in its way */
    FAULT_CONTROLLERS, /* the oldest controller is replaced */
    FAULTS
};

struct plan {
    const char *scenario;
    uint64_t fault_low_us, fault_high_us; /* time between faults */
    uint32_t weights[FAULTS];
    uint32_t groups, replicas, shards, clerks, keys;
    uint64_t duration_us; /* of the time of faults */
    size_t checkpoint_size_max, wal_segment_size, log_keep_size,
        append_size_max, under_way_size;
    size_t batch_size; /* of a shard on its way */
    uint32_t checkpoint_ms_max;
    size_t snap_piece_size;
    uint64_t log_hold_size;
    uint64_t space_low;
    bool unreliable; /* the net loses one message in ten all the time */
    bool pairs;      /* transactions over two keys */
    bool lease_reads;
    uint32_t clock_error_ppm; /* clocks run so much too fast or too slow */
    bool cuts;                /* through all shards, and a bank */
    bool slow_installs; /* leaders come and go while a snapshot is installed */
    bool slow_apply;    /* and while a state machine goes back */
};

/* The plan of a seed; `scenario` NULL: the seed's choice. False: no such one.
 */
bool plan_make(struct plan *p, uint64_t seed, const char *scenario);
void plan_print_names(void);

enum node_kind { NODE_CONTROLLER, NODE_SERVER, NODE_CLERK, NODE_ADMIN };

struct node {
    struct cluster *cluster;
    enum node_kind kind;
    uint32_t number; /* of the wire */
    uint32_t gid;
    raft_id id;           /* in its group */
    uint32_t controllers; /* the number of the first of those that it asks */
    struct sim_env env;
    struct net *net;
    struct sim_disk *disk;
    struct skv_mem_image image;
    struct skv_store *store;
    struct ctl_replica *ctl;
    struct skv_server *skv;
    struct ctl_client *admin;
    struct skv_clerk *clerk;
    bool doomed; /* a fault was planted that it must die of */
    bool rotten; /* its log is damaged: it may refuse to start */
    bool gone;   /* it refused to start */
    bool lost;   /* rotten, or its disk stays full: nothing is asked of it */
    raft_index stored;    /* on its disk when it died */
    uint64_t empty_at_us; /* when its full disk gets space */
    /* members.c */
    bool spare;   /* may join its group; not started yet */
    bool joining; /* its first life begins without a configuration */
    bool leaving; /* its group is asked to go on without it */
    bool wiped;   /* its disk was lost: it must not start again */
    bool retired; /* removed: it does not start again */
    uint32_t deaths;
    /* verify.c: what it said and held, over all its lives */
    uint64_t seen_life;
    uint64_t looked_life, looked_us, looked_timers, looked_heard;
    raft_index seen_commit; /* compared up to here, in this life */
    raft_term promised;     /* the highest term it acted in towards others */
    bool led;
    raft_term led_term;
};

/* verify.c */
struct verify;
/* workload.c */
struct workload;
/* cuts.c */
struct cuts;

struct cluster {
    struct sim_world *world;
    struct plan plan;
    struct sim_wire *wire;
    struct node nodes[SIM_NODES_MAX];
    uint32_t node_count;
    uint32_t clerk_first;           /* nodes[clerk_first ...] are clerks */
    const struct sim_speed *speeds; /* SIM_SPEEDS of them; NULL: default */
    struct verify *verify;
    struct workload *workload;
    uint64_t reads_only_until_us;          /* clerks write nothing */
    struct cuts *cuts;                     /* NULL: none are taken */
    void (*clerk_started)(struct node *n); /* may be NULL */
    void (*leader_seen)(struct node *n);   /* in a new term; may be NULL */
    void (*removed)(void *node);           /* its rsm says so; may be NULL */
    /* A store writes, or removes: see skv_mem_image. May be NULL. */
    void (*wrote)(void *arg, struct slice key, const struct slice *data);
    void *wrote_arg;
    void (*refused)(struct node *n); /* to start: damaged; may be NULL */
    /* One group speaks to another about a shard; may be NULL. */
    void (*move_seen)(struct node *from, struct node *to);
    bool healed;      /* no more faults */
    uint64_t done_us; /* all is answered */
    uint32_t hunted;  /* bit gid: the next leader is to die */
    bool move_hunted; /* somebody who next takes part in a move is to die */
    void (*stream_seen)(struct node *from, struct node *to); /* may be NULL */
    /* A message of Raft's is sent; may be NULL. */
    void (*raft_seen)(struct cluster *c, uint32_t from, struct slice body);
    bool stream_hunted;   /* the next stream of a snapshot is to be struck */
    uint32_t stream_from; /* who sends it */
    bool admin_busy;      /* a change is under way */
    uint32_t changes;     /* asked of the controllers, and answered */
    uint32_t joined;      /* bit gid: it is in the configuration */
    uint32_t faults[FAULTS];
    uint32_t changing; /* bit gid: its members are */
    uint32_t member_changes;
    uint32_t repairs, repairs_refused;
    struct partial {
        bool runs; /* one at a time */
        uint32_t gid;
        raft_term term; /* when it began */
    } partial;
    struct fork {
        int stage;
        uint32_t gid;
        uint32_t first, second; /* leaders */
        uint32_t apart;         /* who hears the first, not the second */
        uint32_t leaver[2], leavers;
        raft_term term; /* of the first */
    } fork;
};

struct result {
    bool failed;
    char failure[512];
    uint64_t hash;
    uint64_t events;
    uint64_t virtual_us;
    uint64_t messages;
    uint32_t operations, unknown;
    uint32_t changes, member_changes, crashes, snapshots, elections;
    raft_index committed;
    uint32_t repairs, repairs_refused;
    uint32_t cuts, cuts_moving; /* with a shard on its way */
};

/* One whole run; prints the tail of the trace when it fails. */
void simulate_run(uint64_t seed, const char *scenario, bool verbose,
                  struct result *out);

/* ---- node.c ---- */
struct node *node_add(struct cluster *c, enum node_kind kind, uint32_t gid,
                      raft_id id);
void node_start(struct node *n);
void node_crash(struct node *n, const char *why);
void node_end(
    struct node *n); /* frees what it runs, with its normal functions */
void node_restart_later(struct node *n, uint64_t delay_us);
bool node_is_server(const struct node *n); /* a replica of any group */
bool node_is_member(const struct node *n); /* and nobody asked for less */
/* NULL while it is down. */
struct rsm *node_rsm(const struct node *n);
struct node *cluster_leader(struct cluster *c, uint32_t gid);
/* For the world and the wire: deaths, and the checks of verify.c. */
void cluster_after_event(void *arg, struct sim_env *env);
void cluster_on_message(void *arg, uint32_t from, uint32_t to,
                        net_method method, struct slice body);
void cluster_end_nodes(struct cluster *c); /* for good */

/* ---- partial.c ---- */
void partial_begin(struct cluster *c);

/* ---- forks.c ---- */
void forks_begin(struct cluster *c);
void forks_message(struct cluster *c, uint32_t from, struct slice body);

/* ---- links.c ---- */
void links_partition(struct cluster *c);
void links_one_way(struct cluster *c);
void links_leader_cut(struct cluster *c);
void links_leader_reset(struct cluster *c);
void links_follower_apart(struct cluster *c);
void links_mend(struct cluster *c);
void links_weather(struct cluster *c);
void links_fair_weather(struct cluster *c);

/* ---- full.c ---- */
void full_begin(struct cluster *c);
void full_group(struct cluster *c);
void full_and_struck(struct cluster *c);
void full_end(struct node *n);

/* ---- faults.c ---- */
struct node *faults_any_server(struct cluster *c);
/* More often one that leads. */
struct node *faults_pick_server(struct cluster *c);
uint32_t faults_down_in_group(struct cluster *c, uint32_t gid);
bool faults_lost_in_group(struct cluster *c, uint32_t gid);
void faults_begin(struct cluster *c);
void faults_leader_seen(struct node *n);
/* `from` asks `to` for a step of a move. */
void faults_move_seen(struct node *from, struct node *to);
void faults_stream_seen(struct node *from, struct node *to);
void faults_heal(struct cluster *c); /* all at once, for good */
void admin_join_first(struct cluster *c);

/* ---- rot.c ---- */
void rot_and_repair(struct cluster *c, uint32_t gid);

/* ---- members.c ---- */
void members_change(struct cluster *c);
/* Asks a leader to hand over, to anybody. */
void members_transfer(struct cluster *c, struct node *leader);
/* Once, of this leader: nobody waits for the answer. */
void members_remove(struct node *leader, struct node *whom);
/* So many run, none is being changed, and two could be replaced. */
bool members_may_fork(struct cluster *c, uint32_t gid, uint32_t count);
void members_wipe(struct cluster *c);
/* In turn: the oldest. */
void members_replace_controller(struct cluster *c);
void members_replace(struct node *n);
void members_removed(void *node); /* its rsm says so */
/* No change is under way, and who was removed has stopped. */
bool members_settled(struct cluster *c);

/* ---- verify.c ---- */
struct verify *verify_new(struct cluster *c);
void verify_free(struct verify *v);
void verify_after(struct verify *v, struct node *n); /* an event touched it */
void verify_message(struct verify *v, uint32_t from, net_method method,
                    struct slice body);
/* The replicas of each group hold the same; false: not yet. */
bool verify_replicas_agree(struct cluster *c);
/* Each process that runs was answered by a controller since all was done. */
bool verify_controllers_found(struct cluster *c);
/* No replica holds a prepared transaction of a shard that it serves. */
bool verify_locks_gone(struct cluster *c);
void verify_describe(struct cluster *c); /* into the trace */
uint32_t verify_elections(const struct verify *v);
raft_index verify_committed(const struct verify *v);

/* ---- workload.c ---- */
struct workload *workload_new(struct cluster *c);
void workload_free(struct workload *w);
void workload_clerk_started(struct node *clerk);
/* A store's: see skv_mem_image. */
void workload_wrote(void *arg, struct slice key, const struct slice *data);
void workload_stop(struct workload *w); /* finish what runs; begin no more */
bool workload_idle(const struct workload *w);
void workload_read_all(struct workload *w, struct node *clerk);
void workload_describe(struct workload *w); /* what is not answered */
void workload_check(struct workload *w);
uint32_t workload_operations(const struct workload *w, uint32_t *unknown);

/* ---- cuts.c ---- */
struct cuts *cuts_new(struct cluster *c);
void cuts_free(struct cuts *k);
void cuts_clerk_started(struct cuts *k, struct node *clerk);
void cuts_begin(struct cuts *k, struct node *admin);
void cuts_stop(struct cuts *k); /* begin no more transfers */
bool cuts_idle(const struct cuts *k);
void cuts_last(struct cuts *k);
bool cuts_last_taken(const struct cuts *k);
void cuts_end(struct cuts *k); /* before the administrator's node ends */
uint32_t cuts_taken(const struct cuts *k, uint32_t *moving);

#endif
