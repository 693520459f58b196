/* Linearizable reads without a log entry: ReadIndex, thesis 6.4.
 *
 * Invariants:
 *  1. A round begins only when an entry of this term is committed: before that
 *     the commit index may lag behind what an earlier leader answered.
 *  2. A read is in a round that began after the read arrived, and its index is
 *     the commit index when the round began.
 *  3. A read is answered when a majority has echoed its round or a later one,
 *     in this term: so nobody else can have led when the round began.
 *  4. One round is open at a time; what arrives meanwhile shares the next. A
 *     lost round is carried again by the heartbeats. The first `read_flight`
 *     reads are in it: none in a round that only renews the lease (lease.c). */
#include <string.h>

#include "raft/raft_int.h"

static void answer(struct raft *r, uint64_t name, enum err rc, raft_index index)
{
    r->out_reads = raft_grow(r->out_reads, &r->out_read_capacity,
                             r->out_read_count, sizeof *r->out_reads);
    r->out_reads[r->out_read_count++] =
        (struct raft_read){.read = name, .rc = rc, .index = index};
}

static uint64_t echoed_by(const struct raft *r, raft_id id)
{
    if (id == r->id) {
        return r->read_round;
    }
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i].id == id) {
            return r->peers[i].read_round;
        }
    }
    return 0;
}

static void begin_round(struct raft *r, size_t flight)
{
    r->read_flight = flight;
    r->read_open = true;
    r->read_round++;
    r->read_began_ms = r->now_ms;
    r->read_index = r->commit;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (raft_conf_votes(raft_conf_now(r), r->peers[i].id)) {
            raft_append_heartbeat(r, &r->peers[i]);
        }
    }
}

static void answer_first(struct raft *r, size_t count, raft_index index)
{
    for (size_t i = 0; i < count; i++) {
        answer(r, r->reads[i], ERR_OK, index);
    }
    r->read_count -= count;
    memmove(r->reads, r->reads + count, r->read_count * sizeof *r->reads);
}

static void end_round(struct raft *r)
{
    r->read_open = false;
    r->lease_from_ms = r->read_began_ms;
    answer_first(r, r->read_flight, r->read_index);
    r->read_flight = 0;
}

/* Those of a round that is open, too: the commit index only grows. */
static void answer_by_lease(struct raft *r)
{
    answer_first(r, r->read_count, r->commit);
    r->read_flight = 0;
    if (raft_lease_ages(r) && !r->read_open) {
        begin_round(r, 0);
    }
}

void raft_read_advance(struct raft *r)
{
    for (;;) {
        if (r->read_open && raft_quorum(r, echoed_by) >= r->read_round) {
            end_round(r);
        }
        if (r->read_count == 0 || !raft_commit_in_term(r)) {
            return;
        }
        if (raft_lease_valid(r)) {
            answer_by_lease(r);
        } else if (r->read_open) {
            return;
        } else {
            begin_round(r, r->read_count);
        }
    }
}

enum err raft_read_add(struct raft *r, uint64_t name)
{
    if (r->role != RAFT_LEADER) {
        return ERR_NOTLEADER;
    }
    if (r->read_count >= RAFT_READS_MAX) {
        return ERR_BUSY;
    }
    r->reads =
        raft_grow(r->reads, &r->read_capacity, r->read_count, sizeof *r->reads);
    r->reads[r->read_count++] = name;
    raft_read_advance(r);
    return ERR_OK;
}

void raft_read_fail(struct raft *r)
{
    for (size_t i = 0; i < r->read_count; i++) {
        answer(r, r->reads[i], ERR_NOTLEADER, 0);
    }
    r->read_count = 0;
    r->read_flight = 0;
    r->read_open = false;
}
