/* What is on disk, and what waits for it.
 *
 * Invariants:
 *  1. `persisted` counts only entries of the log as it is now. A truncation
 *     takes it back, and takes back what writes still in flight may claim: when
 *     an old write of index 8 ends after a new leader put another entry at 8,
 *     it says nothing about the new one.
 *  2. `pending` rises in seq and in last.
 *  3. `hard_seq` is the update with the newest term and vote. Nothing that
 *     speaks for this term leaves before it is done, except a pre-vote, which
 *     promises nothing. It may be done before the entries of older updates (on
 *     a full disk): nobody was told of those, so a crash may take them. */
#include <string.h>

#include "raft/raft_int.h"

bool raft_hard_state_stored(const struct raft *r)
{
    return r->hard_seq <= r->vote_done;
}

void raft_persist_append(struct raft *r, raft_term term,
                         enum raft_entry_type type, struct bytes *data)
{
    raft_log_append(&r->log, term, type, data);
    if (r->append_from == 0) {
        r->append_from = raft_log_last(&r->log);
    }
}

/* The first of the writes that reach past the cut still proves what is before
 * it; those after it prove no more. */
static void clamp_pending(struct raft *r, raft_index last)
{
    struct raft_pending *queue = r->pending + r->pending_head;
    uint64_t seq = 0;
    while (r->pending_count > 0 && queue[r->pending_count - 1].last > last) {
        seq = queue[--r->pending_count].seq;
    }
    raft_index proved =
        r->pending_count > 0 ? queue[r->pending_count - 1].last : r->persisted;
    if (seq != 0 && last > proved) {
        queue[r->pending_count++] =
            (struct raft_pending){.seq = seq, .last = last};
    }
}

void raft_persist_truncate(struct raft *r, raft_index from)
{
    CHECK(from > r->commit);
    raft_log_truncate(&r->log, from);
    raft_conf_truncate(r, from);
    if (r->persisted >= from) {
        r->persisted = from - 1;
    }
    clamp_pending(r, from - 1);
    if (r->append_from > from) {
        r->append_from = from;
    }
}

/* The stored log was replaced and holds nothing after `persisted`: whatever is
 * still in memory after it is written again. */
void raft_persist_restart(struct raft *r, raft_index persisted)
{
    r->pending_head = r->pending_count = 0;
    r->persisted = persisted;
    r->append_from = raft_log_last(&r->log) > persisted ? persisted + 1 : 0;
}

static void push_pending(struct raft *r, struct raft_pending item)
{
    if (r->pending_head + r->pending_count == r->pending_capacity &&
        r->pending_head > r->pending_count) {
        memmove(r->pending, r->pending + r->pending_head,
                r->pending_count * sizeof *r->pending);
        r->pending_head = 0;
    }
    r->pending =
        raft_grow(r->pending, &r->pending_capacity,
                  r->pending_head + r->pending_count, sizeof *r->pending);
    r->pending[r->pending_head + r->pending_count++] = item;
}

void raft_persist_issue(struct raft *r, struct raft_update *update)
{
    if (!r->hard_dirty && r->append_from == 0) {
        return;
    }
    update->persist_seq = ++r->persist_issued;
    update->hard_state_changed = r->hard_dirty;
    update->hard_state =
        (struct raft_hard_state){.term = r->term, .vote = r->vote};
    if (r->append_from != 0) {
        raft_index last = raft_log_last(&r->log);
        update->append = raft_log_at(&r->log, r->append_from);
        update->append_count = (uint32_t)(last - r->append_from + 1);
        push_pending(
            r, (struct raft_pending){.seq = r->persist_issued, .last = last});
    }
    r->hard_dirty = false;
    r->append_from = 0;
}

/* A newer message of the same kind to the same peer says all that the older
 * did. */
static void hold(struct raft *r, struct raft_msg msg)
{
    uint32_t at = 0;
    while (at < r->held_count &&
           (r->held[at].msg.to != msg.to || r->held[at].msg.type != msg.type)) {
        at++;
    }
    if (at == RAFT_HELD_MAX) {
        memmove(r->held, r->held + 1, (RAFT_HELD_MAX - 1) * sizeof *r->held);
        at--;
        r->held_count--;
    }
    if (at == r->held_count) {
        r->held_count++;
    }
    r->held[at] = (struct raft_held){.seq = r->hard_seq, .msg = msg};
}

void raft_send_stored(struct raft *r, struct raft_msg msg)
{
    CHECK(msg.entry_count == 0);
    if (raft_hard_state_stored(r)) {
        raft_send(r, msg);
    } else {
        hold(r, msg);
    }
}

static void release_held(struct raft *r)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < r->held_count; i++) {
        if (r->held[i].seq > r->vote_done) {
            r->held[kept++] = r->held[i];
        } else if (r->held[i].msg.term == r->term) {
            raft_send(r, r->held[i].msg);
        } /* else nobody waits for it any more */
    }
    r->held_count = kept;
}

static void vote_stored(struct raft *r, uint64_t seq)
{
    r->vote_done = seq > r->vote_done ? seq : r->vote_done;
    release_held(r);
    raft_election_stored(r);
}

enum err raft_persist_vote_done(struct raft *r, uint64_t seq)
{
    if (seq > r->persist_issued) {
        return ERR_INVALID;
    }
    vote_stored(r, seq);
    if (r->role == RAFT_FOLLOWER && r->ack_owed) {
        raft_append_acknowledge(r);
    }
    return ERR_OK;
}

enum err raft_persist_done(struct raft *r, uint64_t seq)
{
    if (seq > r->persist_issued) {
        return ERR_INVALID;
    }
    if (seq <= r->persist_done) {
        return ERR_OK;
    }
    r->persist_done = seq;
    raft_index before = r->persisted;
    while (r->pending_count > 0 && r->pending[r->pending_head].seq <= seq) {
        r->persisted = r->pending[r->pending_head].last;
        r->pending_head++;
        r->pending_count--;
    }
    if (r->pending_count == 0) {
        r->pending_head = 0;
    }
    vote_stored(r, seq);
    if (r->role == RAFT_LEADER && r->persisted > before) {
        raft_commit_advance(r);
    }
    if (r->role == RAFT_FOLLOWER && r->ack_owed) {
        raft_append_acknowledge(r);
    }
    return ERR_OK;
}
