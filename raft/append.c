/* AppendEntries, both sides. Raft paper, section 5.3.
 *
 * Invariants:
 *  1. `leader_match`: the follower's log up to there is the leader's of this
 *     term. It only grows within a term, and nothing at or below it, or at or
 *     below the commit index, is ever cut off.
 *  2. An acknowledgement names what is on disk and in (1), nothing else.
 *  3. A heartbeat says where the leader believes the follower to be: so a lost
 *     message shows within a heartbeat, by refusal.
 *  4. The leader sends each entry once, unless a refusal or a long silence says
 *     that it was lost. */
#include "raft/raft_int.h"

/* ---- the leader ---- */

/* An APPEND of `count` entries at `next`. When the log no longer knows what
 * comes before, 0 and 0, which fit everybody: only good for a heartbeat. */
static void send_append(struct raft *r, struct raft_progress *p, uint32_t count)
{
    raft_index prev = p->next - 1;
    raft_term prev_term = 0;
    if (!raft_log_term(&r->log, prev, &prev_term)) {
        CHECK(count == 0);
        prev = 0;
    }
    raft_send(r, (struct raft_msg){
                     .type = RAFT_MSG_APPEND,
                     .from = r->id,
                     .to = p->id,
                     .term = r->term,
                     .log_index = prev,
                     .log_term = prev_term,
                     .commit = r->commit,
                     .read_round = r->read_round,
                     .lease = r->lease_reads,
                     .entry_count = count, /* entries: see finish() */
                 });
    p->sent_ms = r->now_ms;
}

void raft_append_heartbeat(struct raft *r, struct raft_progress *p)
{
    send_append(r, p, 0);
}

static uint32_t next_batch(const struct raft *r, const struct raft_progress *p)
{
    return raft_log_fit(&r->log, p->next, raft_log_last(&r->log),
                        RAFT_MSG_ENTRIES_MAX, r->append_size_max);
}

/* All that a follower without space takes: so that a new leader can commit
 * something in its term, and then answer reads. */
static bool is_noop(const struct raft *r, raft_index index)
{
    return index == raft_log_last(&r->log) && index > r->log.base &&
           raft_log_at(&r->log, index)->type == RAFT_ENTRY_NOOP;
}

/* What is not in memory comes from the disk, by way of the shell, when the one
 * before the last that was sent has arrived: two are on their way at most. */
static void replicate_stored(struct raft *r, struct raft_progress *p)
{
    if (p->state == RAFT_PROGRESS_PROBE) {
        send_append(r, p, 0); /* first, where the follower's log ends */
        p->probe_sent = true;
    } else if (!p->loading && p->match + 1 >= p->loaded) {
        CHECK(r->load_count < RAFT_PEERS_MAX);
        p->loading = true;
        r->loads[r->load_count++] = (struct raft_load){
            .peer = p->id,
            .first = p->next,
            .last = r->log.base,
            .size_max = r->append_size_max,
        };
    }
}

static bool are_ours(const struct raft *r, raft_index first,
                     const struct raft_entry *entries, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (entries[i].index != first + i ||
            !raft_log_has(&r->log, entries[i].index, entries[i].term)) {
            return false;
        }
    }
    return true;
}

enum err raft_append_loaded(struct raft *r, raft_id peer,
                            const struct raft_entry *entries, uint32_t count)
{
    struct raft_progress *p =
        r->role == RAFT_LEADER ? raft_progress_of(r, peer) : NULL;
    if (p == NULL || !p->loading) {
        return ERR_OK;
    }
    p->loading = false;
    if (p->state != RAFT_PROGRESS_REPLICATE) {
        return ERR_OK; /* it needs others by now */
    }
    if (p->next > r->log.floor && count == 0) {
        return ERR_OK; /* its next answer asks again */
    }
    if (p->next > r->log.floor && entries[0].index == p->next) {
        if (!are_ours(r, p->next, entries, count)) {
            return ERR_INVALID;
        }
        send_append(r, p, count);
        r->out[r->out_count - 1].entries = (struct raft_entry *)entries;
        p->loaded = p->next;
        p->next += count;
    }
    raft_append_replicate(r, p);
    return ERR_OK;
}

void raft_append_replicate(struct raft *r, struct raft_progress *p)
{
    if (p->state == RAFT_PROGRESS_SNAPSHOT ||
        (p->state == RAFT_PROGRESS_PROBE && p->probe_sent)) {
        return;
    }
    raft_index last = raft_log_last(&r->log);
    if (p->full && !is_noop(r, p->next)) {
        return; /* it would not take it; heartbeats ask whether it has space */
    }
    if (p->next <= r->log.floor) {
        raft_install_need(r, p);
    } else if (p->next <= r->log.base) {
        replicate_stored(r, p);
    } else if (p->state == RAFT_PROGRESS_PROBE && p->next <= last) {
        send_append(r, p, next_batch(r, p));
        p->probe_sent = true;
    } else if (p->state == RAFT_PROGRESS_REPLICATE) {
        while (p->next <= last &&
               raft_log_bytes(&r->log, p->match, p->next - 1) <
                   r->inflight_size_max) {
            uint32_t count = next_batch(r, p);
            send_append(r, p, count);
            p->next += count;
        }
    }
}

/* Where to try next. The labs' three cases: the follower's log is too short;
 * the leader has entries of XTerm; or it has none. */
static raft_index back_up(const struct raft *r, const struct raft_msg *m)
{
    raft_index next = m->conflict_index;
    if (m->conflict_term == 0) {
        next = m->last_index < UINT64_MAX ? m->last_index + 1 : m->log_index;
    } else {
        raft_index after = raft_log_first_of(&r->log, m->conflict_term + 1);
        if (after > 0 && raft_log_has(&r->log, after - 1, m->conflict_term)) {
            next = after;
        }
    }
    next = next < m->log_index ? next : m->log_index;
    return next > 0 ? next : 1;
}

static void refused(struct raft *r, struct raft_progress *p,
                    const struct raft_msg *m)
{
    bool stale =
        p->state == RAFT_PROGRESS_SNAPSHOT || m->log_index <= p->match ||
        m->log_index >= p->next ||
        (p->state == RAFT_PROGRESS_PROBE && m->log_index != p->next - 1);
    if (!stale) {
        raft_progress_probe(p, back_up(r, m));
        raft_append_replicate(r, p);
    }
}

/* `log_index` is as far as the follower's memory agrees with us; `match` as far
 * as its disk does. */
static void accepted(struct raft *r, struct raft_progress *p,
                     const struct raft_msg *m)
{
    bool grew = m->match > p->match;
    if (grew) {
        p->match = m->match;
        p->next = p->next > p->match ? p->next : p->match + 1;
    }
    if (p->state == RAFT_PROGRESS_SNAPSHOT && p->match >= r->log.floor) {
        raft_progress_probe(p, p->match + 1); /* got there by itself */
    }
    if (p->state == RAFT_PROGRESS_PROBE) {
        p->probe_sent = false;
        if (m->log_index >= p->next - 1 && m->log_index >= r->log.floor) {
            raft_progress_replicate(p, m->log_index + 1);
        }
    }
    if (grew) {
        raft_commit_advance(r);
    }
    if (r->role == RAFT_LEADER) {
        raft_append_replicate(r, p);
        raft_transfer_check(r);
    }
}

enum err raft_recv_append_reply(struct raft *r, const struct raft_msg *m)
{
    struct raft_progress *p =
        r->role == RAFT_LEADER ? raft_progress_of(r, m->from) : NULL;
    if (p == NULL) {
        return ERR_OK; /* late, or from somebody who was removed */
    }
    if (m->read_round > r->read_round ||
        (!m->reject && (m->match > raft_log_last(&r->log) ||
                        m->log_index > raft_log_last(&r->log)))) {
        return ERR_INVALID;
    }
    p->heard_ms = r->now_ms;
    p->full = m->full;
    if (m->read_round > p->read_round) {
        p->read_round = m->read_round;
        raft_read_advance(r);
    }
    /* Of a late message the next one takes it back. */
    p->forgot = m->reject && m->last_index < p->match;
    if (m->reject) {
        refused(r, p, m);
    } else {
        accepted(r, p, m);
    }
    return ERR_OK;
}

/* ---- the follower ---- */

/* Committed entries are in the log of every later leader (Leader Completeness),
 * so they agree with this one's even before it has said so. */
static raft_index agreed(const struct raft *r)
{
    return r->leader_match > r->commit ? r->leader_match : r->commit;
}

void raft_append_acknowledge(struct raft *r)
{
    raft_index match = agreed(r) < r->persisted ? agreed(r) : r->persisted;
    r->ack_owed = !raft_hard_state_stored(r);
    if (r->ack_owed || r->leader == 0) {
        return; /* a hint took the leader; if it lives, it asks again */
    }
    raft_send(r, (struct raft_msg){
                     .type = RAFT_MSG_APPEND_REPLY,
                     .from = r->id,
                     .to = r->leader,
                     .term = r->term,
                     .log_index = agreed(r),
                     .match = match,
                     .last_index = raft_log_last(&r->log),
                     .read_round = r->leader_round,
                     .full = r->full,
                 });
    r->ack_owed = match < agreed(r);
}

static void refuse(struct raft *r, const struct raft_msg *m)
{
    struct raft_msg reply = {
        .type = RAFT_MSG_APPEND_REPLY,
        .from = r->id,
        .to = m->from,
        .term = r->term,
        .log_index = m->log_index,
        .reject = true,
        .last_index = raft_log_last(&r->log),
        .read_round = r->leader_round,
        .full = r->full,
    };
    if (raft_log_term(&r->log, m->log_index, &reply.conflict_term)) {
        reply.conflict_index = raft_log_first_of(&r->log, reply.conflict_term);
    }
    raft_send_stored(r, reply);
}

static void append_entry(struct raft *r, const struct raft_entry *e)
{
    raft_persist_append(r, e->term, e->type, e->data);
    if (e->type == RAFT_ENTRY_CONF) {
        struct raft_conf conf;
        enum err rc = raft_conf_decode(bytes_slice(e->data), &conf);
        CHECK(rc == ERR_OK); /* raft_msg_sane() */
        raft_conf_push(r, e->index, &conf);
    }
}

/* "If an existing entry conflicts with a new one (same index but different
 * terms), delete the existing entry and all that follow it. Append any new
 * entries not already in the log" (Figure 2). Entries that are there already
 * stay, with what follows them: the message may be an old one. */
static enum err merge(struct raft *r, const struct raft_msg *m)
{
    raft_index last = raft_log_last(&r->log);
    uint32_t i = 0;
    while (i < m->entry_count &&
           (m->entries[i].index <= r->log.base ||
            raft_log_has(&r->log, m->entries[i].index, m->entries[i].term))) {
        i++;
    }
    if (i == m->entry_count) {
        return ERR_OK;
    }
    if (m->entries[i].index <= last) {
        if (m->entries[i].index <= agreed(r)) {
            return ERR_INVALID; /* no true leader contradicts this */
        }
        raft_persist_truncate(r, m->entries[i].index);
    }
    for (; i < m->entry_count; i++) {
        append_entry(r, &m->entries[i]);
    }
    return ERR_OK;
}

static bool is_one_noop(const struct raft_msg *m)
{
    return m->entry_count == 1 && m->entries[0].type == RAFT_ENTRY_NOOP;
}

static bool prev_fits(const struct raft *r, const struct raft_msg *m)
{
    /* Before the base all is committed, so it is the same everywhere. */
    return m->log_index < r->log.base ||
           raft_log_has(&r->log, m->log_index, m->log_term);
}

enum err raft_recv_append(struct raft *r, const struct raft_msg *m)
{
    if (r->role == RAFT_LEADER || (r->leader != 0 && r->leader != m->from)) {
        return ERR_INVALID; /* two leaders in a term: one is not a raft */
    }
    raft_become_follower(r, r->term, m->from);
    r->heard_ms = r->now_ms;
    r->hint_tries = 0;
    raft_election_reset_timer(r);
    if (m->lease) {
        raft_lease_promise(r);
    }
    bool confirms_read = m->read_round > r->leader_round;
    if (confirms_read) {
        r->leader_round = m->read_round;
    }
    if (!prev_fits(r, m)) {
        refuse(r, m);
        return ERR_OK;
    }
    if (r->installing && m->entry_count > 0) {
        return ERR_OK; /* the snapshot would take them away again */
    }
    bool takes = !r->full || m->entry_count == 0 || is_one_noop(m);
    enum err rc = takes ? merge(r, m) : ERR_OK;
    if (rc != ERR_OK) {
        return rc;
    }
    raft_index end = m->log_index + (takes ? m->entry_count : 0);
    if (end > r->leader_match && end <= raft_log_last(&r->log)) {
        r->leader_match = end;
    }
    raft_index commit = m->commit < agreed(r) ? m->commit : agreed(r);
    if (commit > r->commit) {
        r->commit = commit;
    }
    /* One answer, when the disk has it; at once when there is nothing to wait
     * for, or when a read waits for our word and not for our disk. */
    r->ack_owed = true;
    if (m->entry_count == 0 || confirms_read || !takes || end <= r->persisted) {
        raft_append_acknowledge(r);
    }
    return ERR_OK;
}
