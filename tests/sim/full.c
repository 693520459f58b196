/* Disks that are full for a while, or for good (E24). */
#include <inttypes.h>

#include "tests/sim/cluster.h"

#define MS     UINT64_C(1000)
#define SECOND UINT64_C(1000000)

void full_end(struct node *n)
{
    sim_disk_empty(n->disk);
    n->image.is_full = false;
}

static void disk_empty_later(void *arg)
{
    struct node *n = arg;
    if (!n->lost && n->cluster->world->now_us >= n->empty_at_us) {
        sim_trace(n->cluster->world, "n%u: its disk has space", n->number);
        full_end(n);
    }
}

static void disk_fill(struct node *n, uint64_t slack, uint64_t time_us)
{
    struct sim_world *w = n->cluster->world;
    sim_disk_fill(n->disk, slack);
    n->image.is_full = true;
    n->image.writes_left = (uint32_t)sim_delay(w, 0, 40);
    n->empty_at_us = w->now_us + time_us;
    sim_after(w, time_us, disk_empty_later, n);
}

void full_begin(struct cluster *c)
{
    struct sim_world *w = c->world;
    struct node *n = faults_pick_server(c);
    if (n->lost || sim_disk_is_full(n->disk)) {
        return;
    }
    uint64_t slack = sim_delay(w, 0, 40000);
    n->lost = c->plan.weights[FAULT_WIPE] == 0 &&
              !faults_lost_in_group(c, n->gid) && sim_chance(w, 50);
    sim_trace(w, "n%u: its disk is full%s, but for %" PRIu64 " bytes",
              n->number, n->lost ? " for good" : "", slack);
    disk_fill(n, slack, sim_delay(w, 100 * MS, 8 * SECOND));
}

/* What found no space is tried again and again, and the power goes in the
 * middle of that. It is the log that finds none, at a segment's beginning or
 * (on a disk that copies) anywhere: the state machine has what it needs, in
 * most cases. */
void full_and_struck(struct cluster *c)
{
    struct sim_world *w = c->world;
    struct node *n = faults_pick_server(c);
    if (n->env.dead || n->lost || sim_disk_is_full(n->disk) ||
        faults_down_in_group(c, n->gid) > 0) {
        return;
    }
    bool copies = sim_chance(w, 400);
    uint64_t slack = sim_between(w, 0, copies ? 40000 : 4000);
    sim_trace(w, "n%u: its disk is full, but for %" PRIu64 " bytes", n->number,
              slack);
    disk_fill(n, slack, sim_between(w, 200 * MS, 3 * SECOND));
    if (copies) {
        sim_disk_copy(n->disk);
    }
    n->image.is_full = sim_chance(w, 250);
    n->doomed = true;
    sim_disk_die_after_full(n->disk, (uint32_t)sim_between(w, 1, 15));
}

void full_group(struct cluster *c)
{
    struct sim_world *w = c->world;
    uint32_t gid = faults_any_server(c)->gid;
    uint64_t time_us = sim_delay(w, 100 * MS, 20 * SECOND);
    sim_trace(w, "the disks of group %u are full", gid);
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (node_is_member(n) && n->gid == gid && !sim_disk_is_full(n->disk) &&
            sim_chance(w, 800)) {
            disk_fill(n, sim_delay(w, 0, 40000), time_us);
        }
    }
}
