/* Who leads. Raft paper, section 5.2; thesis 9.6 (pre-vote), 4.2.3
 * (stickiness), 3.10 (leadership transfer).
 *
 *      timeout, hint            majority would            majority did
 *   FOLLOWER ----> PRECANDIDATE ----------> CANDIDATE ---------------> LEADER
 *      ^                |    ^                |                          |
 *      |  refused,      |    +-- timeout -----+     no majority heard,   |
 *      +--- leader -----+---------------------+---- removed, newer term -+
 *
 * Invariants:
 *  1. One vote a term, on disk before anybody hears of it; also our own.
 *  2. A pre-vote changes neither side's term or vote.
 *  3. Who hears from a leader denies (pre-)votes to others by silence, unless
 *     that leader itself asked for the election. */
#include "raft/raft_int.h"

/* After a hint the pause before the pre-vote is a few milliseconds, random so
 * that two followers do not run into each other; and attempts are repeated
 * this often, quickly: the others may hear of it a little later, or two
 * followers may run into each other all the same. */
enum { HINT_PAUSE_MS_MAX = 10, HINT_TRIES = 5 };

void raft_election_reset_timer(struct raft *r)
{
    r->election_due_ms = r->now_ms + rng_between(&r->rng, r->election_min_ms,
                                                 r->election_max_ms);
}

bool raft_election_sticky(const struct raft *r)
{
    if (r->role == RAFT_LEADER) {
        return true;
    }
    return raft_lease_promised(r) ||
           (r->leader != 0 && r->now_ms - r->heard_ms < r->election_min_ms);
}

/* A new term forgets all that was promised and learned in the old one. */
static void enter_term(struct raft *r, raft_term term, raft_id vote)
{
    CHECK(term > r->term);
    raft_set_hard_state(r, term, vote);
    r->leader = 0;
    r->leader_match = 0;
    r->leader_round = 0;
    r->ack_owed = false;
    r->held_count = 0;
}

void raft_become_follower(struct raft *r, raft_term term, raft_id leader)
{
    if (r->role == RAFT_LEADER) {
        r->lost_leadership = true;
        r->transfer_to = 0;
        r->peer_count = 0;
        r->leader = 0;
        raft_read_fail(r);
    }
    if (r->role != RAFT_FOLLOWER) {
        raft_election_reset_timer(r);
    }
    r->role = RAFT_FOLLOWER;
    r->vote_count = 0;
    if (term > r->term) {
        enter_term(r, term, 0);
    }
    r->leader = leader;
}

static void count_vote(struct raft *r, raft_id id, bool granted)
{
    for (uint32_t i = 0; i < r->vote_count; i++) {
        if (r->votes[i].id == id) {
            r->votes[i].granted = granted;
            return;
        }
    }
    if (r->vote_count < RAFT_PEERS_MAX * 2 &&
        raft_conf_votes(raft_conf_now(r), id)) {
        r->votes[r->vote_count++] =
            (struct raft_vote){.id = id, .granted = granted};
    }
}

static uint64_t granted_by(const struct raft *r, raft_id id)
{
    for (uint32_t i = 0; i < r->vote_count; i++) {
        if (r->votes[i].id == id) {
            return r->votes[i].granted;
        }
    }
    return 0;
}

static uint64_t not_refused_by(const struct raft *r, raft_id id)
{
    for (uint32_t i = 0; i < r->vote_count; i++) {
        if (r->votes[i].id == id) {
            return r->votes[i].granted;
        }
    }
    return 1;
}

static bool answered(const struct raft *r, raft_id id)
{
    for (uint32_t i = 0; i < r->vote_count; i++) {
        if (r->votes[i].id == id) {
            return true;
        }
    }
    return false;
}

/* Those who have not answered yet. "Servers retry RPCs if they do not receive
 * a response in a timely manner" (5.1): else each lost message would cost a
 * whole election timeout. */
static void ask_voters(struct raft *r)
{
    bool pre = r->role == RAFT_PRECANDIDATE;
    const struct raft_conf *conf = raft_conf_now(r);
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(conf, ids);
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == r->id || !raft_conf_votes(conf, ids[i]) ||
            answered(r, ids[i])) {
            continue;
        }
        struct raft_msg m = {
            .type = pre ? RAFT_MSG_PREVOTE : RAFT_MSG_VOTE,
            .from = r->id,
            .to = ids[i],
            .term = pre ? r->term + 1 : r->term,
            .log_index = raft_log_last(&r->log),
            .log_term = raft_log_last_term(&r->log),
            .transfer = r->transferred,
        };
        if (pre) {
            raft_send(r, m);
        } else {
            raft_send_stored(r, m);
        }
    }
    r->ask_due_ms = r->now_ms + r->heartbeat_ms;
}

/* When the attempt that begins now has failed and the next one is due. */
static void set_attempt_timer(struct raft *r)
{
    raft_election_reset_timer(r);
    if (r->hint_tries > 0) {
        r->election_due_ms =
            r->now_ms +
            rng_between(&r->rng, r->heartbeat_ms / 2, r->heartbeat_ms);
    }
}

static void become_candidate(struct raft *r)
{
    enter_term(r, r->term + 1, r->id);
    r->role = RAFT_CANDIDATE;
    r->vote_count = 0;
    set_attempt_timer(r);
    ask_voters(r);
}

static void become_precandidate(struct raft *r)
{
    r->role = RAFT_PRECANDIDATE;
    r->leader = 0;
    r->transferred = false;
    r->vote_count = 0;
    set_attempt_timer(r);
    if (r->hint_tries > 0) {
        r->hint_tries--;
    }
    count_vote(r, r->id, true);
    ask_voters(r);
    if (raft_quorum(r, granted_by) == 1) {
        become_candidate(r);
    }
}

/* Won, lost, or neither yet. */
static void tally(struct raft *r)
{
    if (raft_quorum(r, granted_by) == 1) {
        if (r->role == RAFT_PRECANDIDATE) {
            become_candidate(r);
        } else {
            raft_become_leader(r);
        }
    } else if (raft_quorum(r, not_refused_by) == 0) {
        /* The timer goes on: the next attempt comes when it would have. */
        uint64_t due_ms = r->election_due_ms;
        raft_become_follower(r, r->term, 0);
        r->election_due_ms = due_ms;
    }
}

/* Our vote for ourselves counts from when it is on disk. */
void raft_election_stored(struct raft *r)
{
    if (r->role == RAFT_CANDIDATE && raft_hard_state_stored(r) &&
        !granted_by(r, r->id)) {
        count_vote(r, r->id, true);
        tally(r);
    }
}

/* A few milliseconds after `from_ms`. */
static void set_hint_timer(struct raft *r, uint64_t from_ms)
{
    r->election_due_ms = from_ms + rng_between(&r->rng, 1, HINT_PAUSE_MS_MAX);
}

uint64_t raft_election_next_tick(const struct raft *r)
{
    bool asks = r->role == RAFT_PRECANDIDATE || r->role == RAFT_CANDIDATE;
    return asks && r->ask_due_ms < r->election_due_ms ? r->ask_due_ms
                                                      : r->election_due_ms;
}

void raft_election_tick(struct raft *r)
{
    if (r->now_ms < r->election_due_ms) {
        if (r->now_ms >= raft_election_next_tick(r)) {
            ask_voters(r);
        }
        return;
    }
    if (r->installing || r->full || !raft_conf_may_campaign(r)) {
        /* Learners and strangers wait; but who was removed asks nobody for as
         * long as it has a leader (rsm/hello.c). */
        r->leader = r->installing ? r->leader : 0;
        raft_election_reset_timer(r);
    } else if (raft_lease_promised(r)) {
        set_hint_timer(r, r->promised_ms);
    } else {
        become_precandidate(r);
    }
}

void raft_election_peer_down(struct raft *r, raft_id peer)
{
    if (r->role != RAFT_FOLLOWER || peer == 0 || r->leader != peer) {
        return;
    }
    r->leader = 0; /* no longer sticky */
    r->hint_tries = HINT_TRIES;
    if (r->now_ms + HINT_PAUSE_MS_MAX < r->election_due_ms) {
        set_hint_timer(r, r->now_ms);
    }
}

/* Without room for a vote there is no winning, and a leader that can store
 * nothing is none. What was begun is left to others. */
void raft_election_full(struct raft *r, bool full)
{
    r->full = full;
    if (full && (r->role == RAFT_PRECANDIDATE || r->role == RAFT_CANDIDATE)) {
        raft_become_follower(r, r->term, 0);
    }
}

/* Is a log that ends at {index, term} at least as up to date as ours? Paper,
 * 5.4.1: the later last term wins; equal terms compare length. A candidate that
 * fails this may lack a committed entry. */
static bool log_covers_ours(const struct raft *r, raft_index index,
                            raft_term term)
{
    raft_term ours = raft_log_last_term(&r->log);
    return term != ours ? term > ours : index >= raft_log_last(&r->log);
}

static struct raft_msg reply_to(const struct raft *r, const struct raft_msg *m,
                                enum raft_msg_type type, bool granted)
{
    return (struct raft_msg){
        .type = type,
        .from = r->id,
        .to = m->from,
        .term = r->term,
        .reject = !granted,
    };
}

/* A grant echoes the term asked for; a refusal tells ours, so that a candidate
 * that is behind catches up with the term and asks for the right one. */
void raft_recv_prevote(struct raft *r, const struct raft_msg *m)
{
    bool free_to = m->term > r->term || (m->term == r->term && r->leader == 0 &&
                                         (r->vote == 0 || r->vote == m->from));
    bool grant = free_to && log_covers_ours(r, m->log_index, m->log_term);
    struct raft_msg reply = reply_to(r, m, RAFT_MSG_PREVOTE_REPLY, grant);
    if (grant) {
        reply.term = m->term;
        raft_send(r, reply);
    } else if (r->term > 0) {
        raft_send_stored(r, reply);
    }
}

void raft_recv_prevote_reply(struct raft *r, const struct raft_msg *m)
{
    if (r->role != RAFT_PRECANDIDATE ||
        (!m->reject && m->term != r->term + 1)) {
        return;
    }
    count_vote(r, m->from, !m->reject);
    tally(r);
}

void raft_recv_vote(struct raft *r, const struct raft_msg *m)
{
    CHECK(m->term == r->term);
    bool grant = r->role == RAFT_FOLLOWER && r->leader == 0 &&
                 (r->vote == 0 || r->vote == m->from) &&
                 log_covers_ours(r, m->log_index, m->log_term);
    if (grant) {
        if (r->vote == 0) {
            raft_set_hard_state(r, r->term, m->from);
        }
        raft_election_reset_timer(r);
    }
    raft_send_stored(r, reply_to(r, m, RAFT_MSG_VOTE_REPLY, grant));
}

void raft_recv_vote_reply(struct raft *r, const struct raft_msg *m)
{
    if (r->role == RAFT_CANDIDATE && m->term == r->term) {
        count_vote(r, m->from, !m->reject);
        tally(r);
    }
}

/* "When another server's log is up to date, the leader tells it to start an
 * election as if its timer had elapsed" (thesis 3.10): no pre-vote, and the
 * others need not keep to the old leader. */
void raft_recv_timeout_now(struct raft *r, const struct raft_msg *m)
{
    if (r->role != RAFT_FOLLOWER || r->leader != m->from || r->installing ||
        r->full || !raft_conf_may_campaign(r)) {
        return;
    }
    r->transferred = true;
    become_candidate(r);
}
