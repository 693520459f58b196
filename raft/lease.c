/* Reads from a lease: the leader's option to answer without asking anybody.
 * Thesis 6.4.1; Gray and Cheriton, "Leases" (SOSP '89).
 *
 *   leader   |--- round begins ------ trusts it LEASE_TRUST_MS ---|
 *   voter         |--- hears of it ----- promises RAFT_LEASE_MS --------|
 *
 * Invariants:
 *  1. A voter that accepts an APPEND which says that its sender relies on a
 *     lease votes for nobody else, and does not stand for election, for
 *     RAFT_LEASE_MS of its own clock. A hint does not end that. A restart
 *     forgets it, so a raft that is not new keeps it from its start on.
 *  2. The leader counts its lease from when a round began that a majority has
 *     echoed, not from when the echo came: each of them promised later.
 *  3. So nobody else leads while the lease lasts, as long as no clock runs more
 *     than RAFT_LEASE_DRIFT_PERCENT faster than another.
 *  4. A leader that told another one to campaign, which no promise stops, has
 *     no lease any more in this term.
 *  5. A lease replaces the round of a read and nothing else: the read still
 *     waits for an entry of this term, and for the commit index of now. */
#include "raft/raft_int.h"

/* What a promise is worth by the slowest clock, and the rounding of two clocks
 * that count milliseconds. */
enum {
    LEASE_TRUST_MS = RAFT_LEASE_MS * 100 / (100 + RAFT_LEASE_DRIFT_PERCENT) - 2
};

void raft_lease_promise(struct raft *r)
{
    r->promised_ms = r->now_ms + RAFT_LEASE_MS;
}

bool raft_lease_promised(const struct raft *r)
{
    return r->now_ms < r->promised_ms;
}

uint64_t raft_lease_until(const struct raft *r)
{
    bool has = r->role == RAFT_LEADER && r->lease_reads && !r->lease_spent &&
               r->lease_from_ms > 0;
    return has ? r->lease_from_ms + LEASE_TRUST_MS : 0;
}

bool raft_lease_valid(const struct raft *r)
{
    return r->now_ms < raft_lease_until(r);
}

/* Early enough that its echoes come before the lease ends. */
bool raft_lease_ages(const struct raft *r)
{
    return r->now_ms >= r->lease_from_ms + LEASE_TRUST_MS / 2;
}
