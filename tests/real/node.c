/* labs_node: one process of a row, told by the runner over fd 3 what it is
 * (struct real_node). The parts are those that ship, on a real disk, real time,
 * and TLS; between them and the net stands a faultnet. It ends with the runner.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "shardctrler/server.h"
#include "shardkv/server.h"
#include "tests/real/list.h"
#include "transport/rpc.h"

enum { LOOK_US = 5000 };

struct node {
    struct real_node self;
    struct net_loop *loop;
    struct env *env;
    struct tls_context *tls;
    struct rpc *rpc;
    struct faultnet *faults;
    struct disk *disk;
    struct list list;
    struct rsm *raft; /* of REAL_RAFT */
    struct ctl_replica *ctl;
    struct skv_server *skv;
    struct skv_store *store;    /* the server's */
    struct real_counts *counts; /* the runner sees it, too */
    uint64_t cut;
    struct env_timer look; /* for a new leader */
    uint64_t looked_us;
    raft_term led;
};

static struct node node;

static struct rsm *node_rsm(void)
{
    if (node.ctl != NULL) {
        return ctl_replica_rsm(node.ctl);
    }
    return node.skv != NULL ? skv_server_rsm(node.skv) : node.raft;
}

/* From any thread: the socket keeps notes whole. */
static void tell(const struct real_note *note)
{
    if (send(REAL_CONTROL_FD, note, sizeof *note, MSG_NOSIGNAL) < 0) {
        _exit(1);
    }
}

static void give_up(const char *what, enum err rc)
{
    log_error("labs", "cannot %s: %s", what, err_text(rc));
    _exit(1);
}

/* ---- proposals ---- */

struct start {
    struct rsm_proposal proposal; /* first */
    bool answered;
    enum err rc;
};

struct starts {
    struct env_timer timer; /* first */
    uint32_t count, waiting;
    bool told;
    struct start each[LAB_COMMANDS_MAX];
};

static void starts_done(struct starts *s)
{
    bool over = true;
    for (uint32_t i = 0; i < s->count; i++) {
        over &= s->each[i].answered;
    }
    if (over && s->told) {
        env_timer_stop(node.env, &s->timer);
        mem_free(s);
    }
}

static void on_answer(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    (void)reply;
    struct start *one = (struct start *)p;
    one->answered = true;
    one->rc = rc;
}

static bool has_index(const struct start *one)
{
    return one->answered || one->proposal.index != 0;
}

/* The core learns of a proposal at the end of the turn of the loop. */
static void look_for_index(struct env_timer *timer)
{
    struct starts *s = (struct starts *)timer;
    struct real_note note = {.kind = REAL_BEGUN};
    bool all = true;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct start *one = &s->each[i];
        all &= has_index(one);
        note.begun[i] =
            (struct lab_begun){.ok = one->proposal.index != 0 &&
                                     (!one->answered || one->rc == ERR_OK),
                               .index = one->proposal.index,
                               .term = one->proposal.term};
    }
    if (all && !s->told) {
        s->told = true;
        tell(&note);
    }
    env_timer_start(node.env, &s->timer, s->told ? LOOK_US : 0);
    starts_done(s);
}

static void begin(const struct real_ask *ask)
{
    if (!rsm_is_leader(node.raft)) {
        struct real_note note = {.kind = REAL_BEGUN};
        tell(&note);
        return;
    }
    struct starts *s = mem_alloc(sizeof *s);
    s->count = ask->count;
    s->timer.fire = look_for_index;
    for (uint32_t i = 0; i < ask->count; i++) {
        s->each[i].proposal.done = on_answer;
        rsm_propose(node.raft, &s->each[i].proposal,
                    lab_command(ask->values[i], ask->size));
    }
    env_timer_start(node.env, &s->timer, 0);
}

/* ---- what it is asked ---- */

static void state_fill(struct real_state *s)
{
    struct rsm *rsm = node_rsm();
    struct rsm_status status;
    rsm_status(rsm, &status);
    *s = (struct real_state){.term = status.raft.term,
                             .leader = rsm_is_leader(rsm),
                             .stored = status.durable,
                             .log_size = lab_log_size(rsm),
                             .log_files = lab_wal_files(node.disk)};
}

/* What the last checkpoint stored, as a stream: read by the thread that writes
 * the store, between two entries. First what is under way ends: the labs save
 * before the next entry comes; here the disk may take long, and the log cannot
 * be cut until it is done. */
struct sizes {
    struct rsm_read read; /* first */
    struct env_timer timer;
    struct buf stream;
    uint64_t index;
};

static enum err stream_add(void *arg, struct slice bytes)
{
    buf_append(arg, bytes.data, bytes.size);
    return ERR_OK;
}

static void sizes_read(struct rsm_read *rd)
{
    struct sizes *s = (struct sizes *)rd;
    const struct skv_store_ops *ops = node.store->ops;
    struct skv_view *view;
    uint64_t term;
    ops->durable(node.store, &s->index, &term);
    enum err rc = ops->view_open(node.store, &view);
    if (rc == ERR_OK) {
        rc = ops->view_read(node.store, view, stream_add, &s->stream);
        ops->view_close(node.store, view);
    }
    if (rc != ERR_OK) {
        give_up("read what is stored", rc);
    }
}

static void sizes_done(struct rsm_read *rd, enum err rc)
{
    struct sizes *s = (struct sizes *)rd;
    struct real_note note = {.kind = REAL_STATE};
    CHECK(rc == ERR_OK);
    state_fill(&note.state);
    if (s->index > 0) {
        note.state.snapshot_size = s->stream.size;
        note.state.stream_size = lab_stream_size(buf_slice(&s->stream));
    }
    tell(&note);
    buf_free(&s->stream);
    mem_free(s);
}

static void sizes_when_settled(struct env_timer *timer)
{
    struct sizes *s =
        (struct sizes *)((char *)timer - offsetof(struct sizes, timer));
    struct rsm_status status;
    rsm_status(node_rsm(), &status);
    if (status.checkpointing || status.applied < status.raft.commit) {
        env_timer_start(node.env, timer, LOOK_US);
    } else {
        rsm_read_local(node_rsm(), &s->read);
    }
}

static void tell_sizes(void)
{
    struct sizes *s = mem_alloc(sizeof *s);
    s->read.run = sizes_read;
    s->read.done = sizes_done;
    s->timer.fire = sizes_when_settled;
    sizes_when_settled(&s->timer);
}

static void set_net(const struct real_net *net)
{
    node.cut = net->cut;
    faultnet_set(node.faults, &net->plan);
}

static void asked(const struct real_ask *ask)
{
    struct real_note note = {.kind = REAL_DONE};
    switch (ask->kind) {
    case REAL_ASK_STATE:
        note.kind = REAL_STATE;
        state_fill(&note.state);
        tell(&note);
        break;
    case REAL_ASK_BEGIN: begin(ask); break;
    case REAL_ASK_NET:
        set_net(&ask->net);
        tell(&note);
        break;
    case REAL_ASK_SIZES: tell_sizes(); break;
    }
}

struct ask_job {
    struct env_job job; /* first */
    struct real_ask ask;
};

static void ask_done(struct env_job *job)
{
    struct ask_job *a = (struct ask_job *)job;
    asked(&a->ask);
    mem_free(a);
}

static void *listen_to_runner(void *arg)
{
    (void)arg;
    for (;;) {
        struct ask_job *a = mem_alloc(sizeof *a);
        a->job.done = ask_done;
        if (recv(REAL_CONTROL_FD, &a->ask, sizeof a->ask, 0) !=
            (ssize_t)sizeof a->ask) {
            _exit(0); /* it has ended */
        }
        env_post(node.env, &a->job);
    }
    return NULL;
}

/* ---- its net ---- */

static void address_of(uint32_t number, char address[NET_ADDRESS_SIZE_MAX])
{
    snprintf(address, NET_ADDRESS_SIZE_MAX, "127.0.0.1:%u",
             node.self.port + number);
}

static bool is_cut(void *arg, const char *address)
{
    (void)arg;
    uint32_t port = (uint32_t)strtoul(strrchr(address, ':') + 1, NULL, 10);
    uint32_t number = port - node.self.port;
    return number < REAL_NODES_MAX && (node.cut >> number & 1) != 0;
}

static bool is_reply(net_method method, struct slice body)
{
    return method == RSM_METHOD_RAFT && lab_raft_is_reply(body);
}

static void watch(void *arg, net_method method, struct slice body, bool reply)
{
    (void)arg;
    struct lab_counts *c = &node.counts->net;
    c->bytes += body.size;
    c->requests += !reply;
    c->replies += reply;
    c->refusals +=
        method == RSM_METHOD_RAFT && reply && lab_raft_is_refusal(body);
    c->chunks += method == RSM_METHOD_SNAP && !reply;
}

static void start_net(void)
{
    char problem[512], address[NET_ADDRESS_SIZE_MAX];
    if (tls_context_new(node.self.certs, node.self.name, &node.tls, problem,
                        sizeof problem) != ERR_OK) {
        log_error("labs", "%s", problem);
        _exit(1);
    }
    enum err rc = rpc_new(node.loop, node.tls, &node.rpc);
    if (rc != ERR_OK) {
        give_up("make a net", rc);
    }
    struct faultnet_config config = {.env = node.env,
                                     .inner = rpc_net(node.rpc),
                                     .seed = env_random(node.env),
                                     .is_cut = is_cut,
                                     .is_reply = is_reply,
                                     .watch = watch};
    node.faults = faultnet_new(&config);
    set_net(&node.self.net);
    address_of(node.self.number, address);
    rc = rpc_listen(node.rpc, address);
    if (rc != ERR_OK) {
        give_up(address, rc);
    }
}

/* ---- what it is ---- */

static uint32_t peers_fill(uint32_t first, uint32_t count,
                           struct rsm_peer peers[RAFT_PEERS_MAX])
{
    for (uint32_t i = 0; i < count; i++) {
        peers[i].id = i + 1;
        address_of(first + i, peers[i].address);
    }
    return count;
}

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    (void)arg;
    rsm_handle(node.raft, request, peer, method, body);
}

static void peer_down(void *arg, const char *address)
{
    (void)arg;
    rsm_peer_down(node.raft, address);
}

static enum err start_raft(void)
{
    enum err rc = list_open(&node.list, node.disk, tell);
    if (rc != ERR_OK) {
        return rc;
    }
    struct rsm_config config =
        lab_rsm_config(node.self.options, node.self.seed);
    config.env = node.env;
    config.net = faultnet_net(node.faults);
    config.disk = node.disk;
    config.fsm = &node.list.fsm;
    config.id = node.self.id;
    config.peer_count =
        peers_fill(node.self.first, node.self.count, config.peers);
    rc = rsm_new(&config, &node.raft);
    config.net->handler = handle;
    config.net->down = peer_down;
    return rc;
}

static enum err start_controller(void)
{
    const struct real_node *self = &node.self;
    struct ctl_server_config config = {
        .env = node.env,
        .net = faultnet_net(node.faults),
        .disk = node.disk,
        .id = self->id,
        .shard_count = self->shards,
        .checkpoint_size_max = self->checkpoint_size_max,
        .checkpoint_ms_max = self->checkpoint_ms_max,
        .wal_segment_size = self->wal_segment_size,
        .log_keep_size = self->log_keep_size,
        .log_hold_size = self->log_hold_size,
        .identified = true,
    };
    config.peer_count = peers_fill(self->first, self->count, config.peers);
    return ctl_replica_new(&config, &node.ctl);
}

static enum err start_group(void)
{
    const struct real_node *self = &node.self;
    struct skv_server_config config = {
        .env = node.env,
        .net = faultnet_net(node.faults),
        .disk = node.disk,
        .gid = self->group,
        .id = self->id,
        .controller_count = self->controllers_count,
        .checkpoint_size_max = self->checkpoint_size_max,
        .checkpoint_ms_max = self->checkpoint_ms_max,
        .wal_segment_size = self->wal_segment_size,
        .log_keep_size = self->log_keep_size,
        .log_hold_size = self->log_hold_size,
        .identified = true,
    };
    config.peer_count = peers_fill(self->first, self->count, config.peers);
    for (uint32_t i = 0; i < self->controllers_count; i++) {
        address_of(self->controllers_first + i, config.controllers[i]);
    }
    enum err rc = skv_store_lmdb_open(self->dir, 0, &node.store);
    if (rc != ERR_OK) {
        return rc;
    }
    config.store = node.store;
    return skv_server_new(&config, &node.skv);
}

static enum err start_parts(void)
{
    const struct real_node *self = &node.self;
    enum err rc = disk_real_open(self->dir, &node.disk);
    if (rc != ERR_OK || self->kind == REAL_RAFT) {
        return rc == ERR_OK ? start_raft() : rc;
    }
    rc = rsm_identity_make(node.disk, self->group, self->id, false);
    if (rc != ERR_OK) {
        return rc;
    }
    return self->kind == REAL_CONTROLLER ? start_controller() : start_group();
}

static void start(void)
{
    enum err rc = start_parts();
    if (rc != ERR_OK) {
        give_up("start", rc);
    }
}

/* A term that it leads is told once. */
static void look(struct env_timer *timer)
{
    struct raft_status status;
    uint64_t now_us = env_now_us(node.env);
    if (node.looked_us != 0 && now_us - node.looked_us > REAL_STILL_US) {
        node.counts->stood_still_us += now_us - node.looked_us;
    }
    node.looked_us = now_us;
    raft_status(rsm_raft(node_rsm()), &status);
    if (rsm_is_leader(node_rsm()) && status.term != node.led) {
        struct real_note note = {.kind = REAL_LEADS, .term = status.term};
        node.led = status.term;
        tell(&note);
    }
    env_timer_start(node.env, timer, LOOK_US);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    if (recv(REAL_CONTROL_FD, &node.self, sizeof node.self, 0) !=
        (ssize_t)sizeof node.self) {
        fprintf(stderr, "labs_node is started by labs_real\n");
        return 2;
    }
    enum err rc = net_loop_new(&node.loop);
    if (rc != ERR_OK) {
        give_up("make a loop", rc);
    }
    node.env = net_loop_env(node.loop);
    node.counts = real_counts_map(node.self.dir);
    start_net();
    start();
    node.look.fire = look;
    env_timer_start(node.env, &node.look, LOOK_US);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, listen_to_runner, NULL) == 0);
    struct real_note ready = {.kind = REAL_READY};
    tell(&ready);
    net_loop_run(node.loop);
    return 1;
}
