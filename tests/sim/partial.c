/* A link between two replicas of a group is cut, one way or both, while all
 * others hold, for long: each of the two hears everybody else. In such a place
 * the paper's Raft may elect leaders for ever, none of whom lasts (Cloudflare,
 * 2020-11-02): who does not hear the leader takes over, and then the old one
 * does not hear the new. Here the leader stays, or one election ends it. */
#include <inttypes.h>

#include "base/check.h"
#include "tests/sim/cluster.h"

#define SECOND UINT64_C(1000000)

enum { LASTS_S = 8, ELECTIONS_MAX = 1 };

static struct raft_status status_of(const struct node *n)
{
    struct raft_status status;
    raft_status(rsm_raft(node_rsm(n)), &status);
    return status;
}

static struct node *some_follower(struct cluster *c, const struct node *leader)
{
    struct node *found = NULL;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n != leader && node_is_member(n) && n->gid == leader->gid &&
            !n->env.dead && sim_between(c->world, 0, seen++) == 0) {
            found = n;
        }
    }
    return found;
}

static void partial_ends(void *arg)
{
    struct cluster *c = arg;
    struct partial *p = &c->partial;
    struct node *leader = cluster_leader(c, p->gid);
    p->runs = false;
    if (c->healed) {
        return;
    }
    if (leader == NULL) {
        sim_fail(c->world, "group %u has no leader, with one link cut", p->gid);
        return;
    }
    struct raft_status now = status_of(leader);
    if (now.term > p->term + ELECTIONS_MAX) {
        sim_fail(c->world,
                 "group %u, with one link cut for %d s: from term %" PRIu64
                 " to %" PRIu64,
                 p->gid, LASTS_S, p->term, now.term);
    }
    sim_wire_mend(c->wire);
}

void partial_begin(struct cluster *c)
{
    struct partial *p = &c->partial;
    uint32_t gid = (uint32_t)sim_between(c->world, 0, c->plan.groups);
    struct node *leader = cluster_leader(c, gid);
    struct node *follower = leader == NULL ? NULL : some_follower(c, leader);
    if (p->runs || follower == NULL) {
        return;
    }
    uint64_t ways = sim_between(c->world, 1, 3);
    *p = (struct partial){
        .runs = true, .gid = gid, .term = status_of(leader).term};
    sim_trace(c->world, "n%u and n%u, leader of group %u, %s", follower->number,
              leader->number, gid,
              ways == 3 ? "are cut off from each other" : "hear one way only");
    if ((ways & 1) != 0) {
        sim_wire_cut(c->wire, leader->number, follower->number, true);
    }
    if ((ways & 2) != 0) {
        sim_wire_cut(c->wire, follower->number, leader->number, true);
    }
    sim_after(c->world, LASTS_S * SECOND, partial_ends, c);
}
