/* Bits flip in the logs of a whole group, each at other places; the repair of
 * `flotilla member repair` makes them whole again, and is itself killed now and
 * then. What it refuses was to change nothing: the bits flip back, and all must
 * start. Who was repaired has to keep its promises: verify.c sees to it. */
#include <inttypes.h>

#include "base/check.h"
#include "raft/storage/wal_repair.h"
#include "tests/sim/cluster.h"

#define MS UINT64_C(1000)

enum { FLIPS_MAX = 3 };

struct rotten {
    struct node *node;
    struct sim_rot flips[FLIPS_MAX];
    uint32_t flip_count;
};

struct group {
    struct cluster *cluster;
    struct rotten members[RAFT_PEERS_MAX];
    struct wal_repair_replica replicas[RAFT_PEERS_MAX];
    uint32_t count;
};

static void rot_one(struct group *g, struct node *n)
{
    struct sim_world *w = g->cluster->world;
    struct rotten *m = &g->members[g->count];
    m->node = n;
    g->replicas[g->count++] = (struct wal_repair_replica){
        .id = n->id, .disk = sim_disk_seam(n->disk)};
    uint32_t count = (uint32_t)sim_between(w, 0, FLIPS_MAX);
    while (m->flip_count < count) {
        struct sim_rot *rot = &m->flips[m->flip_count];
        if (!sim_disk_rot(n->disk, rot)) {
            return;
        }
        m->flip_count++;
        sim_trace(w, "n%u: wal/%s rots at byte %" PRIu64, n->number, rot->name,
                  rot->at);
    }
}

/* In a life of their own: what was not synced when it ends is lost. */
static enum err repair_once(struct group *g, bool cut)
{
    struct sim_world *w = g->cluster->world;
    char problem[256];
    for (uint32_t i = 0; i < g->count; i++) {
        sim_env_start(&g->members[i].node->env);
    }
    if (cut) {
        struct node *n = g->members[sim_between(w, 0, g->count - 1)].node;
        sim_disk_die_after(n->disk, (uint32_t)sim_between(w, 1, 8));
    }
    enum err rc = wal_repair(g->replicas, g->count, "wal", problem);
    sim_trace(w, "repair: %s %s", err_name(rc), problem);
    for (uint32_t i = 0; i < g->count; i++) {
        struct node *n = g->members[i].node;
        sim_env_kill(&n->env);
        sim_env_bury(&n->env);
        sim_disk_crash(n->disk);
    }
    return rc;
}

static void bring_back(struct rotten *m)
{
    for (uint32_t i = 0; i < m->flip_count; i++) {
        sim_disk_unrot(m->node->disk, &m->flips[i]);
    }
}

/* A whole log that would have won the vote may be shorter than this one's own.
 */
static void settle(struct group *g, uint32_t i, enum err rc, bool cut)
{
    struct rotten *m = &g->members[i];
    bool repaired = rc == ERR_OK && g->replicas[i].state == WAL_REPAIR_REPAIRED;
    if (repaired || cut) {
        m->node->stored = 0; /* cut: it may have been done already */
    }
    if (!repaired) {
        bring_back(m);
    }
    sim_trace(g->cluster->world, "n%u: %s, %u holes", m->node->number,
              repaired ? "repaired" : "as it was", g->replicas[i].holes);
    node_restart_later(m->node,
                       sim_delay(g->cluster->world, 20 * MS, 500 * MS));
}

void rot_and_repair(struct cluster *c, uint32_t gid)
{
    struct group g = {.cluster = c};
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (node_is_server(n) && n->gid == gid && !n->env.dead) {
            node_crash(n, "stopped, and its log rots");
            rot_one(&g, n);
        }
    }
    bool cut = sim_chance(c->world, 300);
    enum err rc = repair_once(&g, cut);
    if (rc != ERR_OK && cut) {
        rc = repair_once(&g, false);
    }
    if (rc != ERR_OK && rc != ERR_CORRUPT) {
        sim_fail(c->world, "group %u is not repaired: %s", gid, err_name(rc));
        return;
    }
    c->repairs += rc == ERR_OK;
    c->repairs_refused += rc != ERR_OK;
    for (uint32_t i = 0; i < g.count; i++) {
        settle(&g, i, rc, cut);
    }
}
