/* When is an entry committed? Raft paper, sections 5.3 and 5.4.2. */
#include "raft/raft_int.h"

/* What a majority of these has at least: sort down, take the middle. */
static uint64_t majority(const struct raft *r, const raft_id *ids,
                         uint32_t count, raft_value value)
{
    uint64_t sorted[RAFT_PEERS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        uint64_t v = value(r, ids[i]);
        uint32_t at = i;
        for (; at > 0 && sorted[at - 1] < v; at--) {
            sorted[at] = sorted[at - 1];
        }
        sorted[at] = v;
    }
    return sorted[count / 2];
}

uint64_t raft_quorum(const struct raft *r, raft_value value)
{
    const struct raft_conf *conf = raft_conf_now(r);
    if (conf->voter_count == 0) {
        return 0;
    }
    uint64_t agreed = majority(r, conf->voters, conf->voter_count, value);
    if (conf->old_count > 0) {
        /* "Agreement (for elections and entry commitment) requires separate
         * majorities from both the old and new configurations." */
        uint64_t old = majority(r, conf->old, conf->old_count, value);
        agreed = old < agreed ? old : agreed;
    }
    return agreed;
}

/* The leader writes in parallel with its followers (thesis 10.2.1), so it
 * counts for what its own disk has, like anybody else. */
static uint64_t stored_by(const struct raft *r, raft_id id)
{
    if (id == r->id) {
        return r->persisted;
    }
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i].id == id) {
            return r->peers[i].match;
        }
    }
    return 0;
}

bool raft_commit_in_term(const struct raft *r)
{
    return raft_log_has(&r->log, r->commit, r->term);
}

void raft_commit_advance(struct raft *r)
{
    raft_index stored = raft_quorum(r, stored_by);
    /* "Raft never commits log entries from previous terms by counting
     * replicas" (5.4.2, Figure 8): a later leader could still overwrite them.
     */
    if (stored <= r->commit || !raft_log_has(&r->log, stored, r->term)) {
        return;
    }
    r->commit = stored;
    raft_read_advance(r);
    const struct raft_conf *conf = raft_conf_now(r);
    if (conf->old_count == 0 && raft_conf_index(r) <= r->commit &&
        !raft_conf_votes(conf, r->id)) {
        raft_leader_resign(r);
    }
}
