/* The controller's methods on the net. Invariants:
 *
 *  1. Each call is answered once: a struct call ends in call_reply(), from the
 *     rsm's done(), from its timer, or from ctl_replica_free().
 *  2. What a client is told was read under rsm_read(), or is a configuration
 *     that exists: a numbered configuration never changes.
 *  3. A waiting query is in `waiters`, and only then its timer runs. All of
 *     them are answered when this replica stops being the leader. */
#include "shardctrler/server.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "shardctrler/fsm_int.h"
#include "shardctrler/status.h"

enum { WAITERS_MAX = 4096, WAIT_MS_MAX = 60000, INIT_AGAIN_US = 100000 };

struct ctl_replica {
    struct ctl_server_config config;
    struct env *env;
    struct net *net;
    struct ctl_fsm *fsm;
    struct rsm *rsm;
    uint64_t started_us;
    struct call *waiters; /* doubly linked */
    uint32_t waiter_count;
    struct rsm_proposal init;
    bool init_runs;
    bool closing;
    struct env_timer init_again;
    /* Only a group's leader asks for configurations (skv_mover). */
    struct {
        uint32_t gid;
        uint64_t at_us;
    } heard[CTL_GROUPS_MAX];
    uint32_t heard_count;
};

/* A call from the net until it is answered. */
struct call {
    struct ctl_replica *replica;
    struct net_request *request;
    struct rsm_proposal proposal;
    struct rsm_read read;
    net_method method;
    uint64_t number;      /* QUERY */
    uint64_t deadline_us; /* QUERY: of its wait */
    enum err rc;          /* what run() found */
    struct buf out;       /* and what it wrote */
    struct env_timer timer;
    struct call *next, *prev;
};

static struct call *call_new(struct ctl_replica *r, struct net_request *request,
                             net_method method)
{
    struct call *c = mem_alloc(sizeof *c);
    c->replica = r;
    c->request = request;
    c->method = method;
    return c;
}

static void call_reply(struct call *c, enum err rc, struct slice body)
{
    net_reply(c->replica->net, c->request, rc, body);
    buf_free(&c->out);
    mem_free(c);
}

/* ---- changes and mounts: through the log ---- */

static struct bytes *command_of(struct ctl_replica *r,
                                enum ctl_command_kind kind, struct slice body)
{
    struct buf b = {0};
    struct ctl_command command = {
        .kind = (uint8_t)kind,
        .stamp_us = env_wall_us(r->env),
        .body = body,
    };
    ctl_command_encode(&b, &command);
    struct bytes *bytes = bytes_copy(buf_slice(&b));
    buf_free(&b);
    return bytes;
}

static void proposed(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    struct call *c =
        (struct call *)(void *)((char *)p - offsetof(struct call, proposal));
    if (rc == ERR_OK && c->method == CTL_METHOD_MOUNT) {
        struct dec d = dec_of(reply);
        uint32_t answer = dec_u32(&d);
        rc = dec_done(&d) == ERR_OK ? err_from_wire(answer) : ERR_CORRUPT;
        reply = slice_of(NULL, 0);
    }
    call_reply(c, rc, reply);
}

static void propose(struct ctl_replica *r, struct net_request *request,
                    net_method method, enum ctl_command_kind kind,
                    struct slice body)
{
    struct call *c = call_new(r, request, method);
    c->proposal.done = proposed;
    rsm_propose(r->rsm, &c->proposal, command_of(r, kind, body));
}

/* Operators change configurations; a group may say where itself is served, and
 * nothing else. */
static bool may_change(const struct net_peer *peer,
                       const struct ctl_change *change)
{
    return peer->role == NET_ROLE_ADMIN ||
           (peer->role == NET_ROLE_SERVER && change->kind == CTL_SERVERS &&
            change->join_count == 1 && change->join[0].gid == peer->group);
}

static void handle_change(struct ctl_replica *r, struct net_request *request,
                          const struct net_peer *peer, struct slice body)
{
    struct arena a = {0};
    struct ctl_change change;
    enum err rc = ERR_DENIED;
    if (peer->role == NET_ROLE_ADMIN || peer->role == NET_ROLE_SERVER) {
        rc = ctl_change_decode(body, &a, &change);
    }
    if (rc == ERR_OK && !may_change(peer, &change)) {
        rc = ERR_DENIED;
    }
    arena_free(&a);
    if (rc != ERR_OK) {
        net_reply(r->net, request, rc, slice_of(NULL, 0));
        return;
    }
    propose(r, request, CTL_METHOD_CHANGE, CTL_COMMAND_CHANGE, body);
}

static void handle_mount(struct ctl_replica *r, struct net_request *request,
                         struct slice body)
{
    struct arena a = {0};
    struct ctl_mount m;
    enum err rc = ctl_mount_decode(body, &a, &m);
    if (rc == ERR_OK) {
        rc = ctl_mount_check(&m);
    }
    arena_free(&a);
    if (rc != ERR_OK) {
        net_reply(r->net, request, rc, slice_of(NULL, 0));
        return;
    }
    propose(r, request, CTL_METHOD_MOUNT, CTL_COMMAND_MOUNT, body);
}

/* ---- queries: reads, and waiting ---- */

static struct call *call_of_read(struct rsm_read *rd)
{
    return (struct call *)(void *)((char *)rd - offsetof(struct call, read));
}

static void query_run(struct rsm_read *rd)
{
    struct call *c = call_of_read(rd);
    c->rc = ctl_state_query(&c->replica->fsm->state, c->number, &c->out);
    rd->held = c->out.capacity;
}

static void waiter_unlink(struct call *c)
{
    struct ctl_replica *r = c->replica;
    env_timer_stop(r->env, &c->timer);
    if (c->prev != NULL) {
        c->prev->next = c->next;
    } else {
        r->waiters = c->next;
    }
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
    c->next = c->prev = NULL;
    r->waiter_count--;
}

static void wait_over(struct env_timer *timer)
{
    struct call *c =
        (struct call *)(void *)((char *)timer - offsetof(struct call, timer));
    waiter_unlink(c);
    call_reply(c, ERR_NOTFOUND, slice_of(NULL, 0));
}

static void query_wait(struct call *c, uint64_t now_us)
{
    struct ctl_replica *r = c->replica;
    if (!rsm_is_leader(r->rsm)) {
        call_reply(c, ERR_NOTLEADER, slice_of(NULL, 0));
        return;
    }
    if (r->waiter_count == WAITERS_MAX) {
        call_reply(c, ERR_BUSY, slice_of(NULL, 0));
        return;
    }
    c->next = r->waiters;
    if (r->waiters != NULL) {
        r->waiters->prev = c;
    }
    r->waiters = c;
    r->waiter_count++;
    c->timer.fire = wait_over;
    env_timer_start(r->env, &c->timer, c->deadline_us - now_us);
}

static void query_done(struct rsm_read *rd, enum err rc)
{
    struct call *c = call_of_read(rd);
    struct ctl_replica *r = c->replica;
    rc = rc == ERR_OK ? c->rc : rc;
    if (r->closing) {
        rc = ERR_CLOSED;
    }
    uint64_t now_us = env_now_us(r->env);
    if (rc != ERR_NOTFOUND || now_us >= c->deadline_us) {
        call_reply(c, rc, buf_slice(&c->out));
        return;
    }
    if (c->number <= __atomic_load_n(&r->fsm->newest, __ATOMIC_ACQUIRE)) {
        rsm_read_local(r->rsm, &c->read); /* it appeared just now */
        return;
    }
    query_wait(c, now_us);
}

static void handle_query(struct ctl_replica *r, struct net_request *request,
                         struct slice body)
{
    struct arena a = {0};
    struct ctl_query q;
    enum err rc = ctl_query_decode(body, &a, &q);
    arena_free(&a);
    if (rc != ERR_OK) {
        net_reply(r->net, request, rc, slice_of(NULL, 0));
        return;
    }
    struct call *c = call_new(r, request, CTL_METHOD_QUERY);
    uint64_t wait_ms = q.wait_ms < WAIT_MS_MAX ? q.wait_ms : WAIT_MS_MAX;
    c->number = q.number;
    c->deadline_us = env_now_us(r->env) + wait_ms * 1000;
    c->read = (struct rsm_read){.run = query_run, .done = query_done};
    rsm_read(r->rsm, &c->read);
}

/* Another batch was applied: who waited for a configuration that is there now
 * gets it. It is committed, so no majority need be asked (invariant 2). */
static void on_applied(void *arg)
{
    struct ctl_replica *r = arg;
    uint64_t newest = __atomic_load_n(&r->fsm->newest, __ATOMIC_ACQUIRE);
    struct call *next = NULL;
    for (struct call *c = r->waiters; c != NULL; c = next) {
        next = c->next;
        if (c->number <= newest) {
            waiter_unlink(c);
            c->read = (struct rsm_read){.run = query_run, .done = query_done};
            rsm_read_local(r->rsm, &c->read);
        }
    }
}

static void waiters_refuse(struct ctl_replica *r, enum err rc)
{
    while (r->waiters != NULL) {
        struct call *c = r->waiters;
        waiter_unlink(c);
        call_reply(c, rc, slice_of(NULL, 0));
    }
}

static void mounts_run(struct rsm_read *rd)
{
    struct call *c = call_of_read(rd);
    ctl_state_list_mounts(&c->replica->fsm->state, &c->out);
    rd->held = c->out.capacity;
}

static void mounts_done(struct rsm_read *rd, enum err rc)
{
    struct call *c = call_of_read(rd);
    call_reply(c, rc, buf_slice(&c->out));
}

static void handle_mounts(struct ctl_replica *r, struct net_request *request)
{
    struct call *c = call_new(r, request, CTL_METHOD_MOUNTS);
    c->read = (struct rsm_read){.run = mounts_run, .done = mounts_done};
    rsm_read(r->rsm, &c->read);
}

/* ---- status: of this replica alone ---- */

static void note_group(struct ctl_replica *r, const struct net_peer *peer)
{
    uint32_t at = 0;
    if (peer->role != NET_ROLE_SERVER || !rsm_is_leader(r->rsm)) {
        return;
    }
    while (at < r->heard_count && r->heard[at].gid != peer->group) {
        at++;
    }
    if (at == CTL_GROUPS_MAX) {
        return; /* groups that left long ago; who joins now is not told of */
    }
    r->heard_count += at == r->heard_count;
    r->heard[at].gid = peer->group;
    r->heard[at].at_us = env_now_us(r->env);
}

static void handle_status(struct ctl_replica *r, struct net_request *request)
{
    struct ctl_replica_status own;
    struct ctl_heard heard[CTL_GROUPS_MAX];
    struct buf b = {0};
    ctl_replica_status(r->rsm, 0, r->started_us, env_now_us(r->env), &own);
    own.status.config_number =
        __atomic_load_n(&r->fsm->newest, __ATOMIC_ACQUIRE);
    own.status.bytes = __atomic_load_n(&r->fsm->size, __ATOMIC_RELAXED);
    own.status.certificate_end_s = r->config.certificate_end_s;
    for (uint32_t i = 0; i < r->heard_count; i++) {
        uint64_t ago_us = env_now_us(r->env) - r->heard[i].at_us;
        heard[i] =
            (struct ctl_heard){.gid = r->heard[i].gid, .ago_ms = ago_us / 1000};
    }
    own.status.heard = heard;
    own.status.heard_count = r->heard_count;
    ctl_status_encode(&b, &own.status);
    net_reply(r->net, request, ERR_OK, buf_slice(&b));
    buf_free(&b);
}

/* ---- the first leader founds the cluster ---- */

static void init_propose(struct ctl_replica *r);

static void init_done(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    (void)reply;
    struct ctl_replica *r =
        (struct ctl_replica *)(void *)((char *)p -
                                       offsetof(struct ctl_replica, init));
    r->init_runs = false;
    if (rc != ERR_OK && rc != ERR_CLOSED) {
        env_timer_start(r->env, &r->init_again, INIT_AGAIN_US);
    }
}

static void init_propose(struct ctl_replica *r)
{
    if (r->init_runs || !rsm_is_leader(r->rsm) ||
        __atomic_load_n(&r->fsm->is_inited, __ATOMIC_ACQUIRE) != 0) {
        return;
    }
    struct buf b = {0};
    struct ctl_init init = {.shard_count = r->config.shard_count};
    ctl_init_encode(&b, &init);
    r->init_runs = true;
    r->init.done = init_done;
    rsm_propose(r->rsm, &r->init,
                command_of(r, CTL_COMMAND_INIT, buf_slice(&b)));
    buf_free(&b);
}

static void init_again(struct env_timer *timer)
{
    init_propose((struct ctl_replica *)(void *)((char *)timer -
                                                offsetof(struct ctl_replica,
                                                         init_again)));
}

static void on_leader(void *arg, bool leader)
{
    struct ctl_replica *r = arg;
    if (r->rsm == NULL) {
        return; /* still in rsm_new(); ctl_replica_new() looks again */
    }
    if (leader) {
        init_propose(r);
    } else {
        waiters_refuse(r, ERR_NOTLEADER);
    }
}

/* ---- the net ---- */

static void handle_call(struct ctl_replica *r, struct net_request *request,
                        const struct net_peer *peer, net_method method,
                        struct slice body)
{
    switch (method) {
    case CTL_METHOD_QUERY:
        note_group(r, peer);
        handle_query(r, request, body);
        return;
    case CTL_METHOD_CHANGE: handle_change(r, request, peer, body); return;
    case CTL_METHOD_MOUNT: handle_mount(r, request, body); return;
    case CTL_METHOD_MOUNTS: handle_mounts(r, request); return;
    case CTL_METHOD_STATUS: handle_status(r, request); return;
    default: net_reply(r->net, request, ERR_INVALID, slice_of(NULL, 0));
    }
}

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    struct ctl_replica *r = arg;
    if (method >= RSM_METHOD_RAFT && method <= RSM_METHOD_MAX) {
        rsm_handle(r->rsm, request, peer, method, body);
    } else if (request == NULL) {
        log_debug("shardctrler", "ignored a one-way message method=%u",
                  (unsigned)method);
    } else if (peer->role == NET_ROLE_NONE) {
        net_reply(r->net, request, ERR_DENIED, slice_of(NULL, 0));
    } else {
        handle_call(r, request, peer, method, body);
    }
}

static void down(void *arg, const char *address)
{
    struct ctl_replica *r = arg;
    rsm_peer_down(r->rsm, address);
}

static void on_removed(void *arg)
{
    struct ctl_replica *r = arg;
    if (r->config.on_removed != NULL) {
        r->config.on_removed(r->config.arg);
    }
}

static enum err start(struct ctl_replica *r)
{
    struct rsm_config config = {
        .env = r->env,
        .net = r->net,
        .disk = r->config.disk,
        .fsm = &r->fsm->fsm,
        .group = 0,
        .id = r->config.id,
        .peer_count = r->config.peer_count,
        .heartbeat_ms = r->config.heartbeat_ms,
        .election_min_ms = r->config.election_min_ms,
        .election_max_ms = r->config.election_max_ms,
        .checkpoint_size_max = r->config.checkpoint_size_max,
        .checkpoint_ms_max = r->config.checkpoint_ms_max,
        .wal_segment_size = r->config.wal_segment_size,
        .log_keep_size = r->config.log_keep_size,
        .append_size_max = r->config.append_size_max,
        .snap_piece_size = r->config.snap_piece_size,
        .snap_rate = r->config.snap_rate,
        .log_hold_size = r->config.log_hold_size,
        .space_low = r->config.space_low,
        .on_leader = on_leader,
        .on_applied = on_applied,
        .identified = r->config.identified,
        .on_removed = on_removed,
        .arg = r,
    };
    memcpy(config.peers, r->config.peers, sizeof config.peers);
    return rsm_new(&config, &r->rsm);
}

enum err ctl_replica_new(const struct ctl_server_config *config,
                         struct ctl_replica **out)
{
    if (config->shard_count == 0 || config->shard_count > CTL_SHARDS_MAX ||
        config->peer_count == 0 || config->peer_count > RAFT_PEERS_MAX) {
        return ERR_INVALID;
    }
    struct ctl_replica *r = mem_alloc(sizeof *r);
    r->config = *config;
    r->env = config->env;
    r->net = config->net;
    r->started_us = env_now_us(r->env);
    r->init_again.fire = init_again;
    enum err rc = ctl_fsm_new(config->disk, &r->fsm);
    if (rc != ERR_OK) {
        goto free_replica;
    }
    rc = start(r);
    if (rc != ERR_OK) {
        goto free_fsm;
    }
    r->net->handler = handle;
    r->net->handler_arg = r;
    r->net->down = down;
    r->net->down_arg = r;
    init_propose(r);
    *out = r;
    return ERR_OK;

free_fsm:
    ctl_fsm_free(r->fsm);
free_replica:
    mem_free(r);
    return rc;
}

void ctl_replica_free(struct ctl_replica *r)
{
    r->net->handler = NULL;
    r->net->down = NULL;
    r->closing = true;
    waiters_refuse(r, ERR_CLOSED);
    rsm_free(r->rsm);
    CHECK(r->waiters == NULL);
    env_timer_stop(r->env, &r->init_again);
    ctl_fsm_free(r->fsm);
    mem_free(r);
}

struct rsm *ctl_replica_rsm(struct ctl_replica *r)
{
    return r->rsm;
}
