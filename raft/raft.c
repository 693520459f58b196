/* Begin, end, and one step: an event goes to the file that knows it, then all
 * that changed is gathered into the update.
 *
 * Terms are looked at here, once, before a message goes on: Raft paper, Figure
 * 2, "Rules for Servers", with the exceptions that pre-vote and stickiness
 * need. */
#include <string.h>

#include "raft/raft_int.h"

enum {
    HEARTBEAT_MS = 100,
    ELECTION_MIN_MS = 500,
    ELECTION_MAX_MS = 1000,
    APPEND_SIZE_MAX = 1 << 20,
    INFLIGHT_SIZE_MAX = 16 << 20,
    UNCOMMITTED_SIZE_MAX = 64 << 20
};

void *raft_grow(void *array, size_t *capacity, size_t count, size_t item_size)
{
    if (count < *capacity) {
        return array;
    }
    *capacity = *capacity == 0 ? 8 : *capacity * 2;
    return mem_resize(array, *capacity * item_size);
}

void raft_set_hard_state(struct raft *r, raft_term term, raft_id vote)
{
    r->term = term;
    r->vote = vote;
    r->hard_dirty = true;
    r->hard_seq = r->persist_issued + 1;
}

void raft_send(struct raft *r, struct raft_msg msg)
{
    CHECK(msg.to != r->id);
    r->out = raft_grow(r->out, &r->out_capacity, r->out_count, sizeof *r->out);
    r->out[r->out_count++] = msg;
}

/* ---- begin and end ---- */

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

static void set_options(struct raft *r, const struct raft_config *c)
{
    r->heartbeat_ms = or_default(c->heartbeat_ms, HEARTBEAT_MS);
    r->election_min_ms = or_default(c->election_min_ms, ELECTION_MIN_MS);
    r->election_max_ms = or_default(c->election_max_ms, ELECTION_MAX_MS);
    if (r->election_max_ms < r->election_min_ms) {
        r->election_max_ms = r->election_min_ms;
    }
    r->lease_reads = c->lease_reads;
    r->append_size_max =
        c->append_size_max != 0 ? c->append_size_max : APPEND_SIZE_MAX;
    r->inflight_size_max =
        c->inflight_size_max != 0 ? c->inflight_size_max : INFLIGHT_SIZE_MAX;
    r->uncommitted_size_max = c->uncommitted_size_max != 0
                                  ? c->uncommitted_size_max
                                  : UNCOMMITTED_SIZE_MAX;
}

static enum err load_conf(struct raft *r, const struct raft_entry *e)
{
    struct raft_conf conf;
    if (raft_conf_decode(bytes_slice(e->data), &conf) != ERR_OK) {
        return ERR_CORRUPT;
    }
    raft_conf_push(r, e->index, &conf);
    return ERR_OK;
}

/* What stays on disk. */
static enum err load_evicted(struct raft *r, const struct raft_config *c)
{
    enum err rc = ERR_OK;
    for (uint32_t i = 0; i < c->run_count; i++) {
        bool last = i + 1 == c->run_count;
        raft_index end = last ? c->evicted_index : c->runs[i + 1].first - 1;
        if (c->runs[i].first != r->log.base + 1 || end <= r->log.base ||
            c->runs[i].term < r->log.base_term || c->runs[i].term > r->term) {
            return ERR_CORRUPT;
        }
        raft_log_add_evicted(&r->log, end, c->runs[i].term);
    }
    for (uint32_t i = 0; i < c->conf_count && rc == ERR_OK; i++) {
        rc = load_conf(r, &c->confs[i]);
    }
    return rc;
}

static enum err load_log(struct raft *r, const struct raft_config *c)
{
    raft_log_init(&r->log, c->snapshot_index, c->snapshot_term);
    raft_conf_push(r, c->snapshot_index, &c->conf);
    enum err rc = load_evicted(r, c);
    for (uint32_t i = 0; i < c->entry_count && rc == ERR_OK; i++) {
        const struct raft_entry *e = &c->entries[i];
        if (e->index != raft_log_last(&r->log) + 1 ||
            e->term < raft_log_last_term(&r->log) || e->term > r->term) {
            return ERR_CORRUPT;
        }
        raft_log_append(&r->log, e->term, e->type, e->data);
        rc = e->type == RAFT_ENTRY_CONF ? load_conf(r, e) : ERR_OK;
    }
    return rc;
}

enum err raft_new(const struct raft_config *config, struct raft **out)
{
    if (config->id == 0 || raft_conf_check(&config->conf) != ERR_OK) {
        return ERR_INVALID;
    }
    struct raft *r = mem_alloc(sizeof *r);
    r->id = config->id;
    r->rng.state = config->seed;
    set_options(r, config);
    r->now_ms = config->now_ms;
    if (config->restarted) {
        raft_lease_promise(r);
    }
    r->term = config->hard_state.term;
    r->vote = config->hard_state.vote;
    if (config->snapshot_term > r->term) {
        /* A snapshot of a newer term was installed, and the term itself was
         * lost in the crash. We have not voted in it: a vote is on disk before
         * it is given. */
        raft_set_hard_state(r, config->snapshot_term, 0);
    }
    enum err rc = load_log(r, config);
    if (rc != ERR_OK) {
        raft_free(r);
        return rc;
    }
    r->persisted = raft_log_last(&r->log);
    r->commit = r->told = r->log.base;
    raft_election_reset_timer(r);
    if (raft_conf_now(r)->voter_count == 1 &&
        raft_conf_votes(raft_conf_now(r), r->id)) {
        r->election_due_ms = r->now_ms; /* there is nobody to wait for */
    }
    *out = r;
    return ERR_OK;
}

void raft_free(struct raft *r)
{
    if (r == NULL) {
        return;
    }
    raft_log_fini(&r->log);
    mem_free(r->confs);
    mem_free(r->pending);
    mem_free(r->reads);
    mem_free(r->out);
    mem_free(r->out_reads);
    mem_free(r);
}

/* ---- a message arrived ---- */

/* Somebody of an older term: a leader that was cut off must hear of ours or it
 * goes on for ever, since we ignore it; so must a candidate. */
static void answer_old_term(struct raft *r, const struct raft_msg *m)
{
    enum raft_msg_type type;
    switch (m->type) {
    case RAFT_MSG_APPEND: type = RAFT_MSG_APPEND_REPLY; break;
    case RAFT_MSG_VOTE: type = RAFT_MSG_VOTE_REPLY; break;
    default: return;
    }
    raft_send_stored(r, (struct raft_msg){
                            .type = type,
                            .from = r->id,
                            .to = m->from,
                            .term = r->term,
                            .reject = true,
                        });
}

/* Moves to the message's term if it is newer. False: the message is done. */
static bool settle_term(struct raft *r, const struct raft_msg *m)
{
    bool asks = m->type == RAFT_MSG_PREVOTE || m->type == RAFT_MSG_VOTE;
    if (asks && !m->transfer && m->from != r->leader &&
        raft_election_sticky(r)) {
        return false;
    }
    if (m->type == RAFT_MSG_PREVOTE ||
        (m->type == RAFT_MSG_PREVOTE_REPLY && !m->reject)) {
        return true; /* the term in it is one that may never be */
    }
    if (m->term > r->term) {
        raft_become_follower(r, m->term,
                             m->type == RAFT_MSG_APPEND ||
                                     m->type == RAFT_MSG_TIMEOUT_NOW
                                 ? m->from
                                 : 0);
    } else if (m->term < r->term) {
        answer_old_term(r, m);
        return false;
    }
    return true;
}

static enum err recv(struct raft *r, const struct raft_msg *m)
{
    if (m->to != r->id || !raft_msg_sane(m)) {
        return ERR_INVALID;
    }
    if (!settle_term(r, m)) {
        return ERR_OK;
    }
    switch (m->type) {
    case RAFT_MSG_PREVOTE: raft_recv_prevote(r, m); break;
    case RAFT_MSG_PREVOTE_REPLY: raft_recv_prevote_reply(r, m); break;
    case RAFT_MSG_VOTE: raft_recv_vote(r, m); break;
    case RAFT_MSG_VOTE_REPLY: raft_recv_vote_reply(r, m); break;
    case RAFT_MSG_APPEND: return raft_recv_append(r, m);
    case RAFT_MSG_APPEND_REPLY: return raft_recv_append_reply(r, m);
    case RAFT_MSG_TIMEOUT_NOW: raft_recv_timeout_now(r, m); break;
    }
    return ERR_OK;
}

/* ---- a step ---- */

static void tick(struct raft *r)
{
    if (r->role == RAFT_LEADER) {
        raft_leader_tick(r);
    } else {
        raft_election_tick(r);
    }
}

/* The connection broke, so what was on it is probably lost. */
static void peer_down(struct raft *r, raft_id peer)
{
    struct raft_progress *p =
        r->role == RAFT_LEADER ? raft_progress_of(r, peer) : NULL;
    if (p != NULL && p->state == RAFT_PROGRESS_REPLICATE) {
        raft_progress_probe(p, p->match + 1);
        p->probe_sent = true;
    }
    raft_election_peer_down(r, peer);
}

static enum err dispatch(struct raft *r, const struct raft_event *ev)
{
    switch (ev->type) {
    case RAFT_EV_TICK: tick(r); return ERR_OK;
    case RAFT_EV_RECV: return recv(r, ev->u.msg);
    case RAFT_EV_PROPOSE:
        return raft_propose(r, ev->u.propose.entries, ev->u.propose.count);
    case RAFT_EV_PERSISTED: return raft_persist_done(r, ev->u.persisted);
    case RAFT_EV_VOTE_STORED: return raft_persist_vote_done(r, ev->u.persisted);
    case RAFT_EV_READ: return raft_read_add(r, ev->u.read);
    case RAFT_EV_TRANSFER: return raft_transfer(r, ev->u.peer);
    case RAFT_EV_PEER_DOWN: peer_down(r, ev->u.peer); return ERR_OK;
    case RAFT_EV_SNAPSHOT_INSTALLED:
        return raft_install_done(r, ev->u.snapshot.index, ev->u.snapshot.term,
                                 &ev->u.snapshot.conf);
    case RAFT_EV_SNAPSHOT_SENT:
        return raft_install_sent(r, ev->u.sent.peer, ev->u.sent.index,
                                 ev->u.sent.ok);
    case RAFT_EV_FULL: raft_election_full(r, ev->u.full); return ERR_OK;
    case RAFT_EV_LOADED:
        return raft_append_loaded(r, ev->u.loaded.peer, ev->u.loaded.entries,
                                  ev->u.loaded.count);
    }
    return ERR_INVALID;
}

static void begin(struct raft *r, uint64_t now_ms)
{
    if (now_ms > r->now_ms) {
        r->now_ms = now_ms;
    }
    r->out_count = 0;
    r->out_read_count = 0;
    r->need_count = 0;
    r->load_count = 0;
    r->became_leader = false;
    r->lost_leadership = false;
    r->proposed = 0;
}

/* Only now do messages point into the log: it does not move any more. */
static void lend_entries(struct raft *r)
{
    for (size_t i = 0; i < r->out_count; i++) {
        struct raft_msg *m = &r->out[i];
        if (m->entry_count > 0 && m->entries == NULL) {
            m->entries = raft_log_at(&r->log, m->log_index + 1);
        }
    }
}

static void finish(struct raft *r, struct raft_update *update)
{
    raft_index ours = r->commit < r->persisted ? r->commit : r->persisted;
    if (ours > r->told) {
        r->told = ours;
    }
    lend_entries(r);
    *update = (struct raft_update){
        .send = r->out,
        .send_count = (uint32_t)r->out_count,
        .commit = r->told,
        .reads = r->out_reads,
        .read_count = (uint32_t)r->out_read_count,
        .need_snapshot = r->need,
        .need_snapshot_count = r->need_count,
        .loads = r->loads,
        .load_count = r->load_count,
        .became_leader = r->became_leader,
        .lost_leadership = r->lost_leadership,
        .proposed = r->proposed,
    };
    raft_persist_issue(r, update);
    raft_verify(r);
}

enum err raft_step(struct raft *r, const struct raft_event *event,
                   struct raft_update *update)
{
    begin(r, event->now_ms);
    enum err rc = dispatch(r, event);
    finish(r, update);
    return rc;
}

/* ---- questions ---- */

uint64_t raft_next_tick_ms(const struct raft *r)
{
    return r->role == RAFT_LEADER ? raft_leader_next_tick(r)
                                  : raft_election_next_tick(r);
}

const struct raft_entry *raft_entries(const struct raft *r, raft_index first,
                                      raft_index last, uint32_t count_max,
                                      size_t size_max, uint32_t *count)
{
    *count = raft_log_fit(&r->log, first, last, count_max, size_max);
    return *count == 0 ? NULL : raft_log_at(&r->log, first);
}

void raft_evict(struct raft *r, raft_index index)
{
    CHECK(index <= r->told);
    if (index > r->log.base) {
        raft_log_evict(&r->log, index);
    }
}

bool raft_memory_exceeds(const struct raft *r, size_t size)
{
    return r->log.base < r->told &&
           raft_log_bytes(&r->log, r->log.base, raft_log_last(&r->log)) > size;
}

void raft_bound_memory(struct raft *r, size_t size)
{
    raft_index last = raft_log_last(&r->log);
    raft_index index = r->log.base;
    while (index < r->told && raft_log_bytes(&r->log, index, last) > size) {
        index++;
    }
    raft_evict(r, index);
}

uint32_t raft_runs(const struct raft *r, raft_index first, raft_index last,
                   struct raft_run *runs, uint32_t count_max, raft_index *upto)
{
    uint32_t count = 0;
    raft_term term = 0;
    while (first <= last && count < count_max &&
           raft_log_term(&r->log, first, &term)) {
        runs[count++] = (struct raft_run){.first = first, .term = term};
        first = raft_log_first_of(&r->log, term + 1);
    }
    *upto = first - 1 < last ? first - 1 : last;
    return count;
}

void raft_compact(struct raft *r, raft_index index)
{
    CHECK(index <= r->told);
    if (index > r->log.floor) {
        raft_log_compact(&r->log, index);
        raft_conf_compact(r, index);
    }
}

bool raft_term_at(const struct raft *r, raft_index index, raft_term *term)
{
    return raft_log_term(&r->log, index, term);
}

static void peer_status(const struct raft *r, struct raft_status *s)
{
    s->peer_count = r->peer_count;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const struct raft_progress *p = &r->peers[i];
        s->peers[i] = (struct raft_peer_status){
            .id = p->id,
            .match = p->match,
            .next = p->next,
            .snapshot = p->state == RAFT_PROGRESS_SNAPSHOT,
            .active = raft_progress_active(r, p),
            .full = p->full,
            .forgot = p->forgot,
        };
    }
}

void raft_status(const struct raft *r, struct raft_status *status)
{
    *status = (struct raft_status){
        .id = r->id,
        .role = r->role,
        .term = r->term,
        .vote = r->vote,
        .leader = r->leader,
        .first_index = r->log.base + 1,
        .last_index = raft_log_last(&r->log),
        .persisted = r->persisted,
        .commit = r->commit,
        .snapshot_index = r->log.floor,
        .conf = *raft_conf_now(r),
        .conf_index = raft_conf_index(r),
        .lease_until_ms = raft_lease_until(r),
    };
    if (r->role == RAFT_LEADER) {
        peer_status(r, status);
    }
}

raft_term raft_term_now(const struct raft *r)
{
    return r->term;
}

const char *raft_role_text(enum raft_role role)
{
    switch (role) {
    case RAFT_FOLLOWER: return "follower";
    case RAFT_PRECANDIDATE: return "precandidate";
    case RAFT_CANDIDATE: return "candidate";
    case RAFT_LEADER: return "leader";
    }
    return "unknown";
}
