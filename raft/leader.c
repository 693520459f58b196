/* What only a leader does: take proposals, keep time, hand over. */
#include "raft/raft_int.h"

void raft_become_leader(struct raft *r)
{
    CHECK(r->role == RAFT_CANDIDATE);
    r->role = RAFT_LEADER;
    r->leader = r->id;
    r->became_leader = true;
    r->hint_tries = 0;
    r->transferred = false;
    r->transfer_to = 0;
    r->read_round = 0;
    r->read_open = false;
    r->lease_from_ms = 0;
    r->lease_spent = false;
    r->peer_count = 0;
    raft_progress_sync(r);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        raft_append_heartbeat(r, &r->peers[i]);
        r->peers[i].probe_sent = true;
    }
}

static uint64_t heard_from(const struct raft *r, raft_id id)
{
    if (id == r->id) {
        return r->now_ms;
    }
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i].id == id) {
            return r->peers[i].heard_ms;
        }
    }
    return 0;
}

static uint64_t has_space(const struct raft *r, raft_id id)
{
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i].id == id) {
            return !r->peers[i].full;
        }
    }
    return id != r->id || !r->full;
}

bool raft_has_space(const struct raft *r)
{
    return raft_quorum(r, has_space) == 1;
}

/* Check-quorum (thesis 6.2): "a leader steps down if an election timeout
 * elapses without a successful round of heartbeats to a majority". */
static uint64_t quorum_due_ms(const struct raft *r)
{
    return raft_quorum(r, heard_from) + r->election_max_ms;
}

static void tick_peer(struct raft *r, struct raft_progress *p)
{
    if (r->now_ms - p->sent_ms < r->heartbeat_ms) {
        return;
    }
    if (p->state == RAFT_PROGRESS_REPLICATE && !raft_progress_active(r, p)) {
        /* Silent for long: no more entries until it answers; and what was sent
         * meanwhile may be lost. */
        raft_progress_probe(p, p->match + 1);
        p->probe_sent = true;
    }
    raft_append_heartbeat(r, p);
}

void raft_leader_tick(struct raft *r)
{
    if (r->now_ms >= quorum_due_ms(r)) {
        raft_become_follower(r, r->term, 0);
        return;
    }
    if (r->transfer_to != 0 && r->now_ms >= r->transfer_due_ms) {
        r->transfer_to = 0;
    }
    for (uint32_t i = 0; i < r->peer_count; i++) {
        tick_peer(r, &r->peers[i]);
    }
}

uint64_t raft_leader_next_tick(const struct raft *r)
{
    uint64_t due_ms = r->transfer_to != 0 ? r->transfer_due_ms : UINT64_MAX;
    uint64_t oldest_ms = r->now_ms;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const struct raft_progress *p = &r->peers[i];
        uint64_t beat_ms = p->sent_ms + r->heartbeat_ms;
        due_ms = beat_ms < due_ms ? beat_ms : due_ms;
        oldest_ms = p->heard_ms < oldest_ms ? p->heard_ms : oldest_ms;
    }
    /* A majority was heard no earlier than the peer that is silent longest:
     * mostly that tells enough, and this is asked after each step. */
    if (due_ms <= oldest_ms + r->election_max_ms) {
        return due_ms;
    }
    uint64_t quorum_ms = quorum_due_ms(r);
    return quorum_ms < due_ms ? quorum_ms : due_ms;
}

/* Configurations come alone: the rest of a batch would not know by which
 * majority it is to be committed. */
static enum err check_proposal(const struct raft *r,
                               const struct raft_entry *entries, uint32_t count)
{
    if (count == 0) {
        return ERR_INVALID;
    }
    size_t size = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (entries[i].type == RAFT_ENTRY_CONF) {
            return count == 1 ? raft_conf_check_change(r, &entries[i])
                              : ERR_INVALID;
        }
        if (entries[i].type != RAFT_ENTRY_COMMAND &&
            entries[i].type != RAFT_ENTRY_NOOP) {
            return ERR_INVALID;
        }
        size += bytes_slice(entries[i].data).size;
    }
    /* What the leader itself needs (it has no data) always finds room, and one
     * proposal over the bound passes when it is alone. */
    uint64_t waiting =
        raft_log_bytes(&r->log, r->commit, raft_log_last(&r->log));
    size_t overhead = (size_t)count * RAFT_ENTRY_OVERHEAD;
    if (size > 0 && waiting > 0 &&
        waiting + size + overhead > r->uncommitted_size_max) {
        return ERR_BUSY;
    }
    return ERR_OK;
}

enum err raft_propose(struct raft *r, const struct raft_entry *entries,
                      uint32_t count)
{
    if (r->role != RAFT_LEADER) {
        return ERR_NOTLEADER;
    }
    if (r->transfer_to != 0) {
        return ERR_BUSY; /* else the new leader's log never catches up */
    }
    enum err rc = check_proposal(r, entries, count);
    if (rc != ERR_OK) {
        return rc;
    }
    r->proposed = raft_log_last(&r->log) + 1;
    for (uint32_t i = 0; i < count; i++) {
        raft_persist_append(r, r->term, entries[i].type, entries[i].data);
    }
    if (entries[0].type == RAFT_ENTRY_CONF) {
        struct raft_conf conf;
        rc = raft_conf_decode(bytes_slice(entries[0].data), &conf);
        CHECK(rc == ERR_OK);
        raft_conf_push(r, r->proposed, &conf);
        raft_progress_sync(r);
    }
    for (uint32_t i = 0; i < r->peer_count; i++) {
        raft_append_replicate(r, &r->peers[i]);
    }
    return ERR_OK;
}

static void send_timeout_now(struct raft *r, raft_id to)
{
    r->lease_spent = true;
    raft_send(r, (struct raft_msg){
                     .type = RAFT_MSG_TIMEOUT_NOW,
                     .from = r->id,
                     .to = to,
                     .term = r->term,
                 });
}

/* The voter with the longest log that answers and has room; 0: none. */
static raft_id best_successor(const struct raft *r)
{
    const struct raft_progress *best = NULL;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const struct raft_progress *p = &r->peers[i];
        if (raft_conf_votes(raft_conf_now(r), p->id) &&
            raft_progress_active(r, p) && !p->full &&
            (best == NULL || p->match > best->match)) {
            best = p;
        }
    }
    return best == NULL ? 0 : best->id;
}

/* Once the successor's log is as long as ours it is told, once; a lost message
 * ends in the deadline of the transfer. */
void raft_transfer_check(struct raft *r)
{
    if (r->transfer_to == 0 || r->transfer_sent) {
        return;
    }
    struct raft_progress *p = raft_progress_of(r, r->transfer_to);
    if (p == NULL) {
        r->transfer_to = 0;
    } else if (p->match == raft_log_last(&r->log)) {
        send_timeout_now(r, p->id);
        r->transfer_sent = true;
    }
}

enum err raft_transfer(struct raft *r, raft_id peer)
{
    if (r->role != RAFT_LEADER) {
        return ERR_NOTLEADER;
    }
    if (peer == 0) {
        peer = best_successor(r);
    }
    if (raft_progress_of(r, peer) == NULL ||
        !raft_conf_votes(raft_conf_now(r), peer)) {
        return ERR_INVALID;
    }
    r->transfer_to = peer;
    r->transfer_sent = false;
    r->transfer_due_ms = r->now_ms + r->election_max_ms;
    raft_transfer_check(r);
    return ERR_OK;
}

/* The configuration without us is committed. "The leader steps down once it has
 * committed the C_new log entry" (section 6): first the others learn of the
 * commit, and one of them need not wait for a timeout. */
void raft_leader_resign(struct raft *r)
{
    for (uint32_t i = 0; i < r->peer_count; i++) {
        raft_append_heartbeat(r, &r->peers[i]);
    }
    raft_id heir = best_successor(r);
    if (heir != 0) {
        send_timeout_now(r, heir);
    }
    raft_become_follower(r, r->term, 0);
}
