/* The shell around the core: one event in, one update out. Invariants:
 *
 *  1. raft_step() is called from rsm_step() only, and nothing of the user's is
 *     called from there: user's functions may call rsm again, and an update's
 *     arrays stand only until the next step. Answers and announcements wait
 *     for the flush timer or a job's end.
 *  2. Messages leave at once; the core holds back what must wait for the disk.
 *  3. After env_fatal() (which returns in the simulator) nothing is sent,
 *     stored, applied or answered any more. */
#include "rsm/rsm_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

MSG_CODEC(rsm_chunk, RSM_CHUNK_FIELDS)
MSG_CODEC(rsm_chunk_reply, RSM_CHUNK_REPLY_FIELDS)

static struct rsm *of_tick(struct env_timer *t)
{
    return (struct rsm *)((char *)t - offsetof(struct rsm, tick));
}

static struct rsm *of_flush(struct env_timer *t)
{
    return (struct rsm *)((char *)t - offsetof(struct rsm, flush));
}

void rsm_die(struct rsm *r, enum err rc, const char *what)
{
    if (rsm_stopped(r)) {
        return;
    }
    r->dead = true;
    env_timer_stop(r->env, &r->tick);
    env_timer_stop(r->env, &r->flush);
    env_timer_stop(r->env, &r->hello);
    env_fatal(r->env, "%s failed group=%u id=%" PRIu64 ": %s", what,
              r->config.group, r->config.id, err_text(rc));
}

/* --- Carrying out an update */

/* Long entries go from where they are. */
static void send_entries(struct rsm *r, const char *address,
                         const struct raft_msg *m)
{
    struct raft_cut *cuts = mem_array(m->entry_count, sizeof *cuts);
    uint32_t count = raft_msg_encode_cut(&r->message, m, RSM_ENTRY_LONG, cuts);
    struct net_part *parts = mem_array(2 * count + 1, sizeof *parts);
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        parts[2 * i].data = slice_of(r->message.data + at, cuts[i].at - at);
        parts[2 * i + 1] = (struct net_part){.data = bytes_slice(cuts[i].data),
                                             .owner = cuts[i].data};
        at = cuts[i].at;
    }
    parts[2 * count].data =
        slice_of(r->message.data + at, r->message.size - at);
    net_send_parts(r->config.net, address, RSM_METHOD_RAFT, parts,
                   2 * count + 1);
    mem_free(parts);
    mem_free(cuts);
}

static void send_message(struct rsm *r, const struct raft_msg *m)
{
    const char *address = rsm_address(r, m->to);
    if (address[0] == '\0') {
        return;
    }
    /* A peer that does not read must not eat our memory. The core sends the
     * entries again when their acknowledgement stays out. */
    if (m->entry_count > 0 &&
        net_queued(r->config.net, address) > RSM_QUEUED_SIZE_MAX) {
        return;
    }
    buf_clear(&r->message);
    if (m->entry_count > 0) {
        send_entries(r, address, m);
        return;
    }
    raft_msg_encode(&r->message, m);
    struct slice part = buf_slice(&r->message);
    net_send(r->config.net, address, RSM_METHOD_RAFT, &part, 1);
}

static void set_tick(struct rsm *r)
{
    uint64_t at = raft_next_tick_ms(r->raft);
    if (r->tick_at_ms != 0 && r->tick_at_ms <= at) {
        return; /* fires earlier, and then looks again */
    }
    uint64_t now_us = env_now_us(r->env);
    uint64_t delay_us = at * 1000 > now_us ? at * 1000 - now_us : 0;
    r->tick_at_ms = at;
    env_timer_start(r->env, &r->tick, delay_us);
}

static void carry_out(struct rsm *r, const struct raft_update *u)
{
    for (uint32_t i = 0; i < u->send_count; i++) {
        send_message(r, &u->send[i]);
    }
    rsm_log_update(r, u);
    rsm_propose_overwritten(r, u->append, u->append_count);
    if (u->commit > r->commit) {
        r->commit = u->commit;
    }
    rsm_read_granted(r, u->reads, u->read_count);
    rsm_leader_update(r, u);
    for (uint32_t i = 0; i < u->need_snapshot_count; i++) {
        rsm_outgoing_start(r, u->need_snapshot[i]);
    }
    for (uint32_t i = 0; i < u->load_count; i++) {
        rsm_stored_load(r, &u->loads[i]);
    }
}

enum err rsm_step(struct rsm *r, struct raft_event *event, raft_index *proposed)
{
    if (rsm_stopped(r)) {
        return ERR_CLOSED;
    }
    struct raft_update update;
    event->now_ms = env_now_ms(r->env);
    enum err rc = raft_step(r->raft, event, &update);
    if (proposed != NULL) {
        *proposed = update.proposed;
    }
    carry_out(r, &update);
    if (r->want_noop) {
        rsm_leader_noop(r);
    }
    if (r->space.group_since_ms != 0 && raft_has_space(r->raft)) {
        r->space.group_since_ms = 0;
    }
    rsm_apply_pump(r);
    /* A look at the wishes proposes, and is refused while a new leader has not
     * committed an entry of its own: its step must not ask for the next look.
     */
    if (!r->looking && (rsm_member_is_due(r) || rsm_stored_is_due(r))) {
        rsm_flush_later(r);
    }
    if (!r->dead) {
        set_tick(r);
    }
    return rc;
}

static void on_tick(struct env_timer *t)
{
    struct rsm *r = of_tick(t);
    r->tick_at_ms = 0;
    if (env_now_ms(r->env) < raft_next_tick_ms(r->raft)) {
        set_tick(r);
        return;
    }
    struct raft_event event = {.type = RAFT_EV_TICK};
    (void)!rsm_step(r, &event, NULL);
}

void rsm_flush_later(struct rsm *r)
{
    if (!r->flush_set && !rsm_stopped(r)) {
        r->flush_set = true;
        env_timer_start(r->env, &r->flush, 0);
    }
}

/* What came in during this turn of the loop goes to the core together. */
static void on_flush(struct env_timer *t)
{
    struct rsm *r = of_flush(t);
    r->flush_set = false;
    rsm_propose_flush(r);
    rsm_read_flush(r);
    rsm_propose_answer_failed(r);
    rsm_read_answer_failed(r);
    rsm_leader_tell(r);
    rsm_member_pump(r);
    rsm_stored_bound(r);
    rsm_log_pump(r);
}

/* --- From the network */

static void drop_stranger(struct rsm *r, const struct net_peer *peer,
                          const char *why)
{
    r->strangers++;
    uint64_t now = env_now_ms(r->env);
    if (r->strangers_said_ms == 0 || now - r->strangers_said_ms >= 1000) {
        r->strangers_said_ms = now;
        log_warn(
            "rsm",
            "dropped a message, %s peer=%s group=%u dropped_so_far=%" PRIu64,
            why, peer->name != NULL ? peer->name : "?", peer->group,
            r->strangers);
    }
}

/* A long message is kept as it came, for the sake of its entries. */
static enum err decode(struct rsm *r, struct slice body, struct arena *arena,
                       struct raft_msg *msg)
{
    if (body.size < RSM_PARTS_SIZE) {
        return raft_msg_decode(body, arena, msg);
    }
    struct bytes *kept = net_keep(r->config.net, body, 0);
    enum err rc = raft_msg_decode_parts(kept, arena, msg);
    bytes_unref(kept);
    return rc;
}

static void handle_raft(struct rsm *r, const struct net_peer *peer,
                        struct slice body)
{
    struct arena arena = {0};
    struct raft_msg msg;
    if (decode(r, body, &arena, &msg) != ERR_OK) {
        drop_stranger(r, peer, "which does not decode");
        arena_free(&arena);
        return;
    }
    if (msg.to != r->config.id) {
        drop_stranger(r, peer, "which is not for this replica");
    } else {
        struct raft_event event = {.type = RAFT_EV_RECV, .u.msg = &msg};
        (void)!rsm_step(r, &event, NULL);
    }
    raft_msg_release(&msg);
    arena_free(&arena);
}

static void handle_one_way(struct rsm *r, const struct net_peer *peer,
                           net_method method, struct slice body)
{
    switch (method) {
    case RSM_METHOD_RAFT: handle_raft(r, peer, body); return;
    case RSM_METHOD_HELLO: rsm_hello_heard(r, body); return;
    case RSM_METHOD_GONE: rsm_gone_heard(r, body); return;
    default: return;
    }
}

void rsm_handle(struct rsm *r, struct net_request *request,
                const struct net_peer *peer, net_method method,
                struct slice body)
{
    enum err refused = ERR_OK;
    if (rsm_stopped(r)) {
        refused = ERR_CLOSED;
    } else if (method == RSM_METHOD_CHANGE && request != NULL) {
        rsm_member_change(r, request, peer, body);
        return;
    } else if (method == RSM_METHOD_MEMBERS && request != NULL &&
               peer->role != NET_ROLE_NONE) {
        rsm_member_show(r, request);
        return;
    } else if (peer->role != NET_ROLE_SERVER ||
               peer->group != r->config.group) {
        drop_stranger(r, peer, "whose sender is no server of this group");
        refused = ERR_DENIED;
    } else if (method == RSM_METHOD_SNAP && request != NULL) {
        rsm_incoming_chunk(r, request, body);
        return;
    } else if (request == NULL) {
        handle_one_way(r, peer, method, body);
        return;
    } else {
        refused = ERR_INVALID;
    }
    if (request != NULL) {
        net_reply(r->config.net, request, refused, slice_of(NULL, 0));
    }
}

void rsm_peer_down(struct rsm *r, const char *address)
{
    raft_id id = rsm_id_at(r, address);
    if (id != 0 && id != r->config.id) {
        struct raft_event event = {.type = RAFT_EV_PEER_DOWN, .u.peer = id};
        (void)!rsm_step(r, &event, NULL);
    }
}

/* --- Looking at it */

bool rsm_is_leader(const struct rsm *r)
{
    return r->leading && !rsm_stopped(r);
}

const char *rsm_leader_address(const struct rsm *r)
{
    struct raft_status status;
    raft_status(r->raft, &status);
    return rsm_address(r, status.leader);
}

void rsm_status(const struct rsm *r, struct rsm_status *status)
{
    *status = (struct rsm_status){
        .applied = r->applied,
        .durable = r->durable,
        .wal_bytes = r->wal_stats.bytes,
        .wal_syncs = r->wal_stats.syncs,
        .entries_read = r->stored.read,
        .proposals_waiting = r->waiting_count + r->queued_count,
        .stall = rsm_samples_spread(&r->stalls),
        .busy = rsm_samples_spread(&r->busies),
        .write = rsm_samples_spread(&r->writes),
        .checkpointing = r->checkpoint_running,
    };
    raft_status(r->raft, &status->raft);
    status->snap = r->snap_stats;
    rsm_space_fill_status(r, status);
}

const struct raft *rsm_raft(const struct rsm *r)
{
    return r->raft;
}

/* --- Life */

static void set_defaults(struct rsm_config *c)
{
    if (c->log_keep_size == 0) {
        c->log_keep_size = RSM_KEEP_SIZE_DEFAULT;
    }
    if (c->log_hold_size == 0) {
        c->log_hold_size = UINT64_MAX;
    }
    if (c->checkpoint_size_max == 0) {
        c->checkpoint_size_max = RSM_CHECKPOINT_SIZE_DEFAULT;
    }
    if (c->checkpoint_ms_max == 0) {
        c->checkpoint_ms_max = RSM_CHECKPOINT_MS_DEFAULT;
    }
    if (c->under_way_size == 0) {
        c->under_way_size = RSM_UNDER_WAY_SIZE_DEFAULT;
    }
    if (c->space_low == 0) {
        c->space_low = RSM_SPACE_LOW_DEFAULT;
    }
    if (c->space_patience_ms == 0) {
        c->space_patience_ms = RSM_SPACE_PATIENCE_MS_DEFAULT;
    }
    if (c->election_max_ms == 0) {
        c->election_max_ms = 1000;
    }
    if (c->election_min_ms == 0) {
        c->election_min_ms = 500;
    }
}

enum err rsm_new(const struct rsm_config *config, struct rsm **out)
{
    CHECK(config->peer_count <= RAFT_PEERS_MAX);
    struct rsm *r = mem_alloc(sizeof *r);
    r->config = *config;
    set_defaults(&r->config);
    r->env = config->env;
    r->tick.fire = on_tick;
    r->flush.fire = on_flush;
    rsm_leader_init(r);
    rsm_log_init(r);
    rsm_apply_init(r);
    rsm_checkpoint_init(r);
    rsm_space_init(r);
    enum err rc = rsm_identity_check(r);
    if (rc == ERR_OK) {
        rc = rsm_open_log(r);
    }
    if (rc != ERR_OK) {
        mem_free(r);
        return rc;
    }
    r->wal_worker = env_worker_new(r->env, "wal");
    r->apply_worker = env_worker_new(r->env, "apply");
    r->checkpoint_worker = env_worker_new(r->env, "checkpoint");
    r->snap_worker = env_worker_new(r->env, "snap");
    r->read_worker = env_worker_new(r->env, "read");
    rsm_incoming_open(r);
    set_tick(r);
    rsm_hello_start(r);
    *out = r;
    return ERR_OK;
}

void rsm_free(struct rsm *r)
{
    r->closing = true;
    env_timer_stop(r->env, &r->tick);
    env_timer_stop(r->env, &r->flush);
    env_timer_stop(r->env, &r->hello);
    rsm_member_close(r);
    rsm_leader_close(r);
    rsm_log_stop(r);
    rsm_apply_close(r);
    rsm_checkpoint_close(r);
    rsm_space_close(r);
    rsm_outgoing_stop(r);
    rsm_propose_fail_all(r, ERR_CLOSED);
    rsm_read_fail_all(r, ERR_CLOSED);
    rsm_propose_answer_failed(r);
    rsm_read_answer_failed(r);

    env_worker_free(r->env, r->wal_worker);
    env_worker_free(r->env, r->apply_worker);
    env_worker_free(r->env, r->checkpoint_worker);
    env_worker_free(r->env, r->snap_worker);
    env_worker_free(r->env, r->read_worker);
    /* Again: what came back from the workers. */
    rsm_propose_answer_failed(r);
    rsm_read_answer_failed(r);
    rsm_outgoing_close(r);
    rsm_incoming_close(r);
    rsm_log_close(r);
    wal_close(r->wal);
    raft_free(r->raft);
    buf_free(&r->message);
    mem_free(r->marks);
    rsm_stored_close(r);
    mem_free(r);
}
