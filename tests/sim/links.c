/* What happens to the links between nodes: cut one way, both, or all of a
 * leader's; broken and noticed by one end only; slow, lossy and out of order.
 */
#include <inttypes.h>

#include "tests/sim/cluster.h"

#define MS     UINT64_C(1000)
#define SECOND UINT64_C(1000000)

static void cut_both(struct cluster *c, uint32_t a, uint32_t b)
{
    sim_wire_cut(c->wire, a, b, true);
    sim_wire_cut(c->wire, b, a, true);
}

void links_partition(struct cluster *c)
{
    uint64_t side = rng_next(&c->world->rng);
    for (uint32_t a = 0; a < c->node_count; a++) {
        for (uint32_t b = 0; b < a; b++) {
            if ((side >> a & 1) != (side >> b & 1)) {
                cut_both(c, a, b);
            }
        }
    }
    sim_trace(c->world, "partition %016" PRIx64, side);
}

void links_one_way(struct cluster *c)
{
    uint32_t per_mille = (uint32_t)sim_between(c->world, 20, 200);
    for (uint32_t a = 0; a < c->node_count; a++) {
        for (uint32_t b = 0; b < c->node_count; b++) {
            if (a != b && sim_chance(c->world, per_mille)) {
                sim_wire_cut(c->wire, a, b, true);
            }
        }
    }
    sim_trace(c->world, "cut one way, %u per mille of the links", per_mille);
}

/* The old leader may keep the clients: it must not answer their reads. */
void links_leader_cut(struct cluster *c)
{
    struct node *leader = cluster_leader(c, faults_any_server(c)->gid);
    if (leader == NULL) {
        return;
    }
    bool keeps_others = sim_chance(c->world, 500);
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        bool same_group = node_is_server(n) && n->gid == leader->gid;
        if (n != leader && (same_group || !keeps_others)) {
            cut_both(c, n->number, leader->number);
        }
    }
    sim_trace(c->world, "n%u, leader of group %u, is cut off%s", leader->number,
              leader->gid, keeps_others ? ", but not from clients" : "");
}

/* As when something between them resets connections: its peers take it for
 * dead, clients still speak to it, and it has not noticed. */
static void reset_now(void *arg)
{
    struct node *leader = arg;
    struct cluster *c = leader->cluster;
    if (c->healed) {
        return;
    }
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n != leader && node_is_server(n) && n->gid == leader->gid) {
            cut_both(c, n->number, leader->number);
            sim_wire_hint(c->wire, n->number, leader->number,
                          sim_between(c->world, 50, 5 * MS));
        }
    }
    sim_trace(c->world, "connections of n%u, leader of group %u, break",
              leader->number, leader->gid);
}

void links_leader_reset(struct cluster *c)
{
    struct node *leader = cluster_leader(c, faults_any_server(c)->gid);
    if (leader == NULL) {
        return;
    }
    if (sim_chance(c->world, 300)) { /* while it hands over */
        members_transfer(c, leader);
        sim_after(c->world, sim_between(c->world, MS, 12 * MS), reset_now,
                  leader);
    } else {
        reset_now(leader);
    }
}

/* It comes back at once, and does not hear the leader either. */
static void crash_apart(void *arg)
{
    struct node *n = arg;
    struct node *leader = cluster_leader(n->cluster, n->gid);
    if (n->env.dead || n->cluster->healed || leader == NULL || leader == n) {
        return;
    }
    cut_both(n->cluster, n->number, leader->number);
    node_crash(n, "killed for a moment");
    node_restart_later(n, sim_between(n->cluster->world, MS, 20 * MS));
}

/* A follower that hears its leader no more asks the others for their votes,
 * again and again; its log is as good as theirs, as nobody writes; then they
 * restart. */
void links_follower_apart(struct cluster *c)
{
    struct node *apart = faults_any_server(c);
    struct node *leader = cluster_leader(c, apart->gid);
    if (leader == NULL || leader == apart) {
        return;
    }
    cut_both(c, apart->number, leader->number);
    c->reads_only_until_us = c->world->now_us + 3 * SECOND;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n != leader && n != apart && node_is_server(n) &&
            n->gid == leader->gid && !n->spare && !n->retired) {
            sim_after(c->world, sim_between(c->world, SECOND, 3 * SECOND),
                      crash_apart, n);
        }
    }
    sim_trace(c->world, "n%u is cut off from n%u, leader of group %u",
              apart->number, leader->number, leader->gid);
}

void links_mend(struct cluster *c)
{
    sim_trace(c->world, "all links mended");
    sim_wire_mend(c->wire);
}

void links_fair_weather(struct cluster *c)
{
    *sim_wire_weather(c->wire) = (struct sim_weather){
        .delay_low_us = 50,
        .delay_high_us = c->plan.unreliable ? 27000 : 2000,
        .loss_per_mille = c->plan.unreliable ? 100 : 0,
    };
}

void links_weather(struct cluster *c)
{
    struct sim_world *w = c->world;
    struct sim_weather *we = sim_wire_weather(c->wire);
    links_fair_weather(c);
    if (sim_chance(w, 300)) {
        sim_trace(w, "fair weather");
        return;
    }
    we->delay_high_us = sim_between(w, 2, 200) * MS;
    we->loss_per_mille = (uint32_t)sim_delay(w, 0, 400);
    we->twice_per_mille = (uint32_t)sim_delay(w, 0, 200);
    we->late_per_mille = (uint32_t)sim_delay(w, 0, 200);
    we->late_us = sim_between(w, 100 * MS, 3 * SECOND);
    sim_trace(w,
              "weather: delay up to %" PRIu64 " us, lost %u, twice %u, late %u "
              "per mille",
              we->delay_high_us, we->loss_per_mille, we->twice_per_mille,
              we->late_per_mille);
}
