/* The methods of a replica. Invariants:
 *
 *  1. Each call is answered once: a struct call ends in call_reply(), from the
 *     rsm's done().
 *  2. Whether a shard is ours is decided where the request is executed; here
 *     it may only be refused.
 *  3. At most WAITING_MAX calls are held; more are told ERR_BUSY at once. */
#include "shardkv/server_int.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

enum { WAITING_MAX = 4096 };

/* A call from the net until it is answered. */
struct call {
    struct skv_server *server;
    struct net_request *request;
    struct rsm_proposal proposal;
    struct rsm_read read;
    struct bytes *body; /* of what is read first */
    ctl_gid group;      /* of the server that calls */
    bool busy;          /* with clients, when it came */
    struct buf out;
    enum err rc; /* of what run() did */
};

static struct call *call_new(struct skv_server *s, struct net_request *request)
{
    struct call *c = mem_alloc(sizeof *c);
    c->server = s;
    c->request = request;
    s->waiting++;
    return c;
}

static void call_reply(struct call *c, enum err rc, struct slice body)
{
    net_reply(c->server->net, c->request, rc, body);
    c->server->waiting--;
    bytes_unref(c->body);
    buf_free(&c->out);
    mem_free(c);
}

static void refuse(struct skv_server *s, struct net_request *request,
                   enum err rc)
{
    net_reply(s->net, request, rc, slice_of(NULL, 0));
}

/* ---- through the log ---- */

static void proposed(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    struct call *c =
        (struct call *)(void *)((char *)p - offsetof(struct call, proposal));
    call_reply(c, rc, reply);
}

static void propose(struct skv_server *s, struct net_request *request,
                    struct bytes *command)
{
    struct call *c = call_new(s, request);
    c->proposal.done = proposed;
    rsm_propose(s->rsm, &c->proposal, command);
}

static enum err request_check(struct slice body, uint16_t *shard,
                              uint8_t *phase)
{
    struct arena a = {0};
    struct skv_request q;
    enum err rc = skv_request_decode(body, &a, &q);
    if (rc == ERR_OK) {
        rc = skv_request_check(&q);
        *shard = q.shard;
        *phase = q.phase;
    }
    arena_free(&a);
    return rc == ERR_CORRUPT ? ERR_INVALID : rc;
}

/* While a shard is on its way its clients ask again and again: that need not
 * fill the log. To refuse is always safe; only the log lets a request in. */
static bool picture_is_true(const struct skv_server *s)
{
    const struct skv_picture *p = &s->mover.picture;
    return p->generation != 0 && p->generation == skv_fsm_generation(s->fsm);
}

static bool is_surely_away(const struct skv_server *s, uint16_t shard)
{
    const struct skv_picture *p = &s->mover.picture;
    return picture_is_true(s) && !skv_picture_serves(p, shard);
}

/* Likewise while a cut is taken. */
static bool is_surely_held(const struct skv_server *s, uint8_t phase)
{
    return phase == SKV_EXECUTE && picture_is_true(s) &&
           s->mover.picture.held != 0;
}

static void refuse_away(struct skv_server *s, struct net_request *request,
                        uint16_t shard)
{
    const struct skv_picture *p = &s->mover.picture;
    struct buf b = {0};
    skv_answer_away(
        p->number,
        skv_shard_owner(&p->config, &p->previous, s->config.gid, shard), &b);
    net_reply(s->net, request, ERR_OK, buf_slice(&b));
    buf_free(&b);
}

static void handle_write(struct skv_server *s, struct net_request *request,
                         struct slice body)
{
    uint16_t shard = 0;
    uint8_t phase = 0;
    enum err rc = rsm_is_leader(s->rsm) ? request_check(body, &shard, &phase)
                                        : ERR_NOTLEADER;
    if (rc == ERR_OK && is_surely_held(s, phase)) {
        rc = ERR_BUSY;
    }
    if (rc != ERR_OK) {
        refuse(s, request, rc);
    } else if (is_surely_away(s, shard)) {
        refuse_away(s, request, shard);
    } else {
        struct bytes *kept = net_keep(s->net, body, SKV_COMMAND_ROOM);
        propose(s, request, skv_command_request(env_wall_us(s->env), kept));
    }
}

static void handle_cut(struct skv_server *s, struct net_request *request,
                       struct slice body)
{
    struct arena a = {0};
    struct skv_cut cut;
    enum err rc = skv_cut_decode(body, &a, &cut);
    if (rc != ERR_OK || cut.id == 0 || cut.step < SKV_CUT_HOLD ||
        cut.step > SKV_CUT_LOOK) {
        refuse(s, request, ERR_INVALID);
    } else if (!rsm_is_leader(s->rsm)) {
        refuse(s, request, ERR_NOTLEADER);
    } else {
        propose(s, request, skv_command_cut(&cut));
    }
    arena_free(&a);
}

/* ---- reads ---- */

static struct call *call_of_read(struct rsm_read *rd)
{
    return (struct call *)(void *)((char *)rd - offsetof(struct call, read));
}

static void read_run(struct rsm_read *rd)
{
    struct call *c = call_of_read(rd);
    c->rc = skv_apply_read(c->server->fsm, bytes_slice(c->body), &c->out);
    rd->held = c->out.capacity;
}

static void pull_run(struct rsm_read *rd)
{
    struct call *c = call_of_read(rd);
    struct skv_fsm *f = c->server->fsm;
    struct skv_pull pull;
    enum err fault = ERR_OK;
    c->rc = skv_pull_decode(bytes_slice(c->body), &f->arena, &pull);
    if (c->rc == ERR_OK) {
        c->rc = skv_batch_read(f, &pull, c->group, c->busy, &c->out, &fault);
    }
    if (fault != ERR_OK) {
        c->rc = fault;
    }
    rd->held = c->out.capacity;
    arena_free(&f->arena);
}

static void count_run(struct rsm_read *rd)
{
    struct call *c = call_of_read(rd);
    struct skv_fsm *f = c->server->fsm;
    struct skv_count count;
    enum err fault = ERR_OK;
    c->rc = skv_count_decode(bytes_slice(c->body), &f->arena, &count);
    if (c->rc == ERR_OK) {
        c->rc = skv_batch_count(f, &count, c->group, &c->out, &fault);
    }
    if (fault != ERR_OK) {
        c->rc = fault;
    }
    arena_free(&f->arena);
}

static void read_done(struct rsm_read *rd, enum err rc)
{
    struct call *c = call_of_read(rd);
    call_reply(c, rc == ERR_OK ? c->rc : rc, buf_slice(&c->out));
}

/* The new owner of a shard has nearly all of it (FREEZE), or has it and what is
 * left here may go (DROP). That it is the new owner who says so is looked at
 * first; the command then names the move, so that nothing else can have become
 * of the shard meanwhile. */
static enum err step_decode(const struct call *c, struct skv_step *step)
{
    struct arena a = {0};
    enum err rc = skv_step_decode(bytes_slice(c->body), &a, step);
    arena_free(&a);
    return rc == ERR_OK ? ERR_OK : ERR_INVALID;
}

static void step_run(struct rsm_read *rd)
{
    struct call *c = call_of_read(rd);
    struct skv_step step;
    c->rc = skv_fsm_ready(c->server->fsm);
    if (c->rc == ERR_OK) {
        c->rc = step_decode(c, &step);
    }
    if (c->rc == ERR_OK) {
        c->rc = skv_shard_may_take(c->server->fsm, step.shard, step.number,
                                   c->group);
    }
}

static void step_propose(struct rsm_read *rd, enum err rc,
                         enum skv_command_kind kind)
{
    struct call *c = call_of_read(rd);
    struct skv_step step;
    rc = rc == ERR_OK ? c->rc : rc;
    if (rc == ERR_OK) {
        rc = step_decode(c, &step);
    }
    if (rc != ERR_OK) {
        call_reply(c, rc, slice_of(NULL, 0));
        return;
    }
    c->proposal.done = proposed;
    rsm_propose(c->server->rsm, &c->proposal,
                skv_command_step(kind, step.shard, step.number));
}

static void freeze_done(struct rsm_read *rd, enum err rc)
{
    step_propose(rd, rc, SKV_COMMAND_FREEZE);
}

static void settle_done(struct rsm_read *rd, enum err rc)
{
    step_propose(rd, rc, SKV_COMMAND_DROP);
}

struct read_steps {
    void (*run)(struct rsm_read *rd);
    void (*done)(struct rsm_read *rd, enum err rc);
};
static const struct read_steps read_steps = {read_run, read_done};
static const struct read_steps pull_steps = {pull_run, read_done};
static const struct read_steps count_steps = {count_run, read_done};
static const struct read_steps freeze_steps = {step_run, freeze_done};
static const struct read_steps settle_steps = {step_run, settle_done};

static void handle_read(struct skv_server *s, struct net_request *request,
                        const struct net_peer *peer, struct slice body,
                        const struct read_steps *steps)
{
    if (!rsm_is_leader(s->rsm)) {
        refuse(s, request, ERR_NOTLEADER);
        return;
    }
    struct call *c = call_new(s, request);
    c->body = bytes_copy(body);
    c->group = peer->group;
    c->busy = skv_pace_has_clients(s->asked_us, env_now_us(s->env));
    c->read.run = steps->run;
    c->read.done = steps->done;
    rsm_read(s->rsm, &c->read);
}

/* ---- the net ---- */

static bool may_call(const struct net_peer *peer, net_method method)
{
    switch (method) {
    case SKV_METHOD_PULL:
    case SKV_METHOD_SETTLE:
    case SKV_METHOD_FREEZE:
    case SKV_METHOD_COUNT: return peer->role == NET_ROLE_SERVER;
    case SKV_METHOD_CUT:
    case SKV_METHOD_VIEW: return peer->role == NET_ROLE_ADMIN;
    default: return peer->role != NET_ROLE_NONE;
    }
}

/* Other groups, and the janitors of ours, can wait. */
static void note_client(struct skv_server *s, const struct net_peer *peer,
                        net_method method)
{
    if (peer->role != NET_ROLE_SERVER &&
        (method == SKV_METHOD_READ || method == SKV_METHOD_WRITE)) {
        s->asked_us = env_now_us(s->env);
    }
}

static void handle_call(struct skv_server *s, struct net_request *request,
                        const struct net_peer *peer, net_method method,
                        struct slice body)
{
    switch (method) {
    case SKV_METHOD_READ:
        handle_read(s, request, peer, body, &read_steps);
        return;
    case SKV_METHOD_WRITE: handle_write(s, request, body); return;
    case SKV_METHOD_STATUS: skv_status_reply(s, request); return;
    case SKV_METHOD_LEADS:
        refuse(s, request, rsm_is_leader(s->rsm) ? ERR_OK : ERR_NOTLEADER);
        return;
    case SKV_METHOD_PULL:
        handle_read(s, request, peer, body, &pull_steps);
        return;
    case SKV_METHOD_COUNT:
        handle_read(s, request, peer, body, &count_steps);
        return;
    case SKV_METHOD_FREEZE:
        handle_read(s, request, peer, body, &freeze_steps);
        return;
    case SKV_METHOD_SETTLE:
        handle_read(s, request, peer, body, &settle_steps);
        return;
    case SKV_METHOD_CUT: handle_cut(s, request, body); return;
    case SKV_METHOD_VIEW: skv_look_handle(s, request, body); return;
    default: refuse(s, request, ERR_INVALID);
    }
}

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    struct skv_server *s = arg;
    if (method >= RSM_METHOD_RAFT && method <= RSM_METHOD_MAX) {
        rsm_handle(s->rsm, request, peer, method, body);
    } else if (request == NULL) {
        log_debug("shardkv", "ignored a one-way message method=%u",
                  (unsigned)method);
    } else if (!may_call(peer, method)) {
        refuse(s, request, ERR_DENIED);
    } else if (s->waiting >= WAITING_MAX && method != SKV_METHOD_STATUS &&
               method != SKV_METHOD_LEADS) {
        refuse(s, request, ERR_BUSY);
    } else {
        note_client(s, peer, method);
        handle_call(s, request, peer, method, body);
    }
}

static void down(void *arg, const char *address)
{
    struct skv_server *s = arg;
    rsm_peer_down(s->rsm, address);
}

/* ---- the rsm ---- */

static void on_leader(void *arg, bool leader)
{
    struct skv_server *s = arg;
    if (s->rsm != NULL) { /* else still in rsm_new(): start() looks again */
        skv_mover_lead(&s->mover, leader);
    }
}

static void on_applied(void *arg)
{
    struct skv_server *s = arg;
    if (s->rsm != NULL && !s->closing) {
        skv_mover_applied(&s->mover);
        skv_leases_look(s);
    }
}

static void on_removed(void *arg)
{
    struct skv_server *s = arg;
    if (s->config.on_removed != NULL) {
        s->config.on_removed(s->config.arg);
    }
}

static enum err start(struct skv_server *s)
{
    struct rsm_config config = {
        .env = s->env,
        .net = s->net,
        .disk = s->config.disk,
        .fsm = &s->fsm->fsm,
        .group = s->config.gid,
        .id = s->config.id,
        .peer_count = s->config.peer_count,
        .heartbeat_ms = s->config.heartbeat_ms,
        .election_min_ms = s->config.election_min_ms,
        .election_max_ms = s->config.election_max_ms,
        .checkpoint_size_max = s->config.checkpoint_size_max,
        .checkpoint_ms_max = s->config.checkpoint_ms_max,
        .wal_segment_size = s->config.wal_segment_size,
        .log_keep_size = s->config.log_keep_size,
        .append_size_max = s->config.append_size_max,
        .under_way_size = s->config.under_way_size,
        .snap_piece_size = s->config.snap_piece_size,
        .snap_rate = s->config.snap_rate,
        .log_hold_size = s->config.log_hold_size,
        .space_low = s->config.space_low,
        .lease_reads = s->config.lease_reads,
        .on_leader = on_leader,
        .on_applied = on_applied,
        .identified = s->config.identified,
        .on_removed = on_removed,
        .arg = s,
    };
    memcpy(config.peers, s->config.peers, sizeof config.peers);
    return rsm_new(&config, &s->rsm);
}

static bool makes_sense(const struct skv_server_config *c)
{
    return c->gid != 0 && c->peer_count > 0 &&
           c->peer_count <= RAFT_PEERS_MAX && c->controller_count > 0 &&
           c->controller_count <= RAFT_PEERS_MAX;
}

enum err skv_server_new(const struct skv_server_config *config,
                        struct skv_server **out)
{
    if (!makes_sense(config)) {
        config->store->ops->close(config->store);
        return ERR_INVALID;
    }
    struct skv_server *s = mem_alloc(sizeof *s);
    s->config = *config;
    s->env = config->env;
    s->net = config->net;
    s->started_us = env_now_us(s->env);
    s->fsm = skv_fsm_new(config->store, config->gid);
    s->fsm->id = config->id;
    if (config->batch_size > 0) {
        s->fsm->batch_size = config->batch_size;
    }
    enum err rc = start(s);
    if (rc != ERR_OK) {
        skv_fsm_free(s->fsm);
        mem_free(s);
        return rc;
    }
    skv_mover_init(&s->mover, s);
    skv_leases_start(s);
    s->net->handler = handle;
    s->net->handler_arg = s;
    s->net->down = down;
    s->net->down_arg = s;
    skv_mover_refresh(&s->mover);
    skv_mover_lead(&s->mover, rsm_is_leader(s->rsm));
    *out = s;
    return ERR_OK;
}

void skv_server_free(struct skv_server *s)
{
    s->net->handler = NULL;
    s->net->down = NULL;
    s->closing = true;
    skv_mover_stop(&s->mover);
    rsm_free(s->rsm);
    skv_leases_stop(s);
    CHECK(s->waiting == 0);
    skv_mover_fini(&s->mover);
    skv_fsm_free(s->fsm);
    mem_free(s);
}

struct rsm *skv_server_rsm(struct skv_server *s)
{
    return s->rsm;
}
