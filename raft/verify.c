/* What must hold after every step, whatever came in; each costs O(1), or
 * O(peers). A replica that breaks one must not go on. */
#include "raft/raft_int.h"

static void verify_leader(const struct raft *r)
{
    CHECK(r->leader == r->id);
    CHECK(!r->installing);
    CHECK(r->vote == r->id);
    CHECK(raft_hard_state_stored(r));
    CHECK(r->read_flight <= r->read_count);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const struct raft_progress *p = &r->peers[i];
        CHECK(p->id != r->id);
        CHECK(p->match < p->next);
        CHECK(p->next <= raft_log_last(&r->log) + 1);
        CHECK(p->read_round <= r->read_round);
    }
}

void raft_verify(const struct raft *r)
{
    raft_index last = raft_log_last(&r->log);
    CHECK(r->log.floor <= r->log.base);
    CHECK(r->log.base <= r->commit);
    CHECK(r->commit <= last);
    CHECK(r->persisted <= last);
    CHECK(r->told <= r->commit);
    CHECK(raft_log_last_term(&r->log) <= r->term);
    CHECK(raft_conf_index(r) <= last);
    CHECK(r->persist_done <= r->persist_issued);
    CHECK(r->leader_match <= last);
    if (r->pending_count > 0) {
        const struct raft_pending *first = &r->pending[r->pending_head];
        CHECK(first->seq > r->persist_done);
        CHECK(first[r->pending_count - 1].last <= last);
    }
    if (r->role == RAFT_LEADER) {
        verify_leader(r);
    } else {
        CHECK(r->read_count == 0);
        CHECK(r->leader != r->id);
    }
    if (r->role == RAFT_CANDIDATE) {
        CHECK(r->vote == r->id);
    }
}
