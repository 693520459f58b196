/* What the leader knows of each follower; see the picture in raft_int.h.
 *
 * Invariants, while leading:
 *  1. match < next <= last + 1.
 *  2. match is on the follower's disk: it never goes back within a term.
 *  3. REPLICATE moves `next` when it sends, PROBE when it is answered. */
#include "raft/raft_int.h"

struct raft_progress *raft_progress_of(struct raft *r, raft_id id)
{
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i].id == id) {
            return &r->peers[i];
        }
    }
    return NULL;
}

void raft_progress_probe(struct raft_progress *p, raft_index next)
{
    p->state = RAFT_PROGRESS_PROBE;
    p->next = next > p->match ? next : p->match + 1;
    p->probe_sent = false;
    p->loaded = 0;
}

void raft_progress_replicate(struct raft_progress *p, raft_index next)
{
    p->state = RAFT_PROGRESS_REPLICATE;
    p->next = next > p->match ? next : p->match + 1;
    p->probe_sent = false;
    p->loaded = 0;
}

bool raft_progress_active(const struct raft *r, const struct raft_progress *p)
{
    return r->now_ms - p->heard_ms < r->election_max_ms;
}

static void remove_gone(struct raft *r, const raft_id *ids, uint32_t count)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        for (uint32_t k = 0; k < count; k++) {
            if (ids[k] == r->peers[i].id) {
                r->peers[kept++] = r->peers[i];
                break;
            }
        }
    }
    r->peer_count = kept;
}

void raft_progress_sync(struct raft *r)
{
    raft_id ids[3 * RAFT_PEERS_MAX];
    uint32_t count = raft_conf_all(raft_conf_now(r), ids);
    remove_gone(r, ids, count);
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == r->id || raft_progress_of(r, ids[i]) != NULL) {
            continue;
        }
        CHECK(r->peer_count < RAFT_PEERS_MAX);
        /* Heard from just now, so that it gets a whole election timeout to
         * answer before it counts as silent. */
        r->peers[r->peer_count++] = (struct raft_progress){
            .id = ids[i],
            .next = raft_log_last(&r->log) + 1,
            .heard_ms = r->now_ms,
        };
    }
}
