/* Changes of who is in a group, while everything else goes wrong: replicas are
 * added, removed and replaced, and disks are lost.
 *
 *   add       a spare node starts as a joining replica; ADD, then PROMOTE
 *   remove    REMOVE: it must hear of it, and stop by itself
 *   replace   add, then remove
 *   turn      the oldest controller is replaced, until none of the first is
 * left wipe      a member's disk is empty, or has its identity alone: it must
 *             refuse to start, and is replaced
 *
 * Each step is asked of the group's nodes in turn until one says that it is
 * done, as `flotilla member` does; and as there, the change is over when the
 * controllers know the group's servers. One change a group at a time. */
#include <inttypes.h>
#include <string.h>

#include "base/check.h"
#include "tests/sim/cluster.h"

#define MS     UINT64_C(1000)
#define SECOND UINT64_C(1000000)

enum { WISH_MS = 2000, CALL_MS = 2500, AGAIN_MS = 50 };
/* Each process asks meanwhile who the controllers are. */
#define HEAR_US (CTL_LOOK_MS * MS + SECOND)

/* A change on its way: `in` is added, then `out` removed; either may be NULL.
 */
struct members_change {
    struct cluster *cluster;
    uint32_t gid;
    struct node *in, *out;
    enum rsm_change_kind step;
    uint32_t asked; /* of the nodes, in turn */
    uint32_t tries;
};

static bool is_of(const struct node *n, uint32_t gid)
{
    return node_is_server(n) && n->gid == gid;
}

static uint32_t members_of(struct cluster *c, uint32_t gid, struct node **out)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (is_of(&c->nodes[i], gid) && node_is_member(&c->nodes[i])) {
            out[count++] = &c->nodes[i];
        }
    }
    return count;
}

static struct node *spare_of(struct cluster *c, uint32_t gid)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (is_of(&c->nodes[i], gid) && c->nodes[i].spare) {
            return &c->nodes[i];
        }
    }
    return NULL;
}

/* ---- steps ---- */

static void ask(struct members_change *m);

static void ask_again(void *arg)
{
    ask(arg);
}

static void change_end(struct members_change *m)
{
    struct cluster *c = m->cluster;
    c->changing &= ~(1u << m->gid);
    c->member_changes++;
    sim_trace(c->world, "members of group %u: changed after %u tries", m->gid,
              m->tries);
    mem_free(m);
}

static void wait_told(void *arg);

/* Whom another change is to remove may be there still (forks.c). */
static uint32_t leave_later(const struct members_change *m,
                            const struct ctl_group *g)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < m->cluster->node_count; i++) {
        const struct node *n = &m->cluster->nodes[i];
        for (uint32_t k = 0; k < g->servers_count; k++) {
            count += is_of(n, m->gid) && n->leaving && n != m->out &&
                     g->servers[k].id == n->id;
        }
    }
    return count;
}

/* The group is in it: nobody asks it to leave meanwhile (faults.c). */
static bool is_told(struct members_change *m, const struct ctl_config *config)
{
    const struct ctl_group *g = ctl_config_group(config, m->gid);
    struct node *members[SIM_NODES_MAX];
    uint32_t count = members_of(m->cluster, m->gid, members);
    if (g == NULL) {
        return true;
    }
    for (uint32_t i = 0; i < count; i++) {
        bool found = false;
        for (uint32_t k = 0; k < g->servers_count; k++) {
            found |= g->servers[k].id == members[i]->id;
        }
        if (!found) {
            return false;
        }
    }
    return g->servers_count == count + leave_later(m, g);
}

static void heard_config(void *arg, enum err rc,
                         const struct ctl_config *config)
{
    struct members_change *m = arg;
    if (rc == ERR_CLOSED) {
        mem_free(m); /* the administrator's process ends */
    } else if (rc == ERR_OK && is_told(m, config)) {
        change_end(m);
    } else {
        sim_after_taking(m->cluster->world, AGAIN_MS * MS, wait_told, m);
    }
}

static void wait_told(void *arg)
{
    struct members_change *m = arg;
    struct node *admin = &m->cluster->nodes[m->cluster->clerk_first - 1];
    ctl_client_query(admin->admin, CTL_LATEST, 0, CALL_MS, heard_config, m);
}

static void step_done(struct members_change *m)
{
    if (m->step == RSM_ADD) {
        m->step = RSM_PROMOTE;
    } else if (m->step == RSM_PROMOTE && m->out != NULL) {
        m->step = RSM_REMOVE;
        if (m->gid == 0) {
            sim_after_taking(m->cluster->world, HEAR_US, ask_again, m);
            return;
        }
    } else {
        wait_told(m);
        return;
    }
    ask(m);
}

static void answered(void *arg, enum err rc, struct slice body)
{
    (void)body;
    struct members_change *m = arg;
    struct cluster *c = m->cluster;
    switch (rc) {
    case ERR_OK: step_done(m); return;
    case ERR_NOTLEADER:
    case ERR_CLOSED:
    case ERR_TIMEDOUT:
    case ERR_IO:
    case ERR_NOSPACE:
    case ERR_BUSY: break;
    default:
        sim_fail(c->world, "group %u refuses step %d of a change: %s", m->gid,
                 (int)m->step, err_name(rc));
    }
    m->asked++;
    sim_after_taking(c->world, AGAIN_MS * MS, ask_again, m);
}

static struct node *whom(struct members_change *m)
{
    struct cluster *c = m->cluster;
    struct node *leader = cluster_leader(c, m->gid);
    if (leader != NULL && m->asked % 2 == 0) {
        return leader;
    }
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[(i + m->asked) % c->node_count];
        if (is_of(n, m->gid) && !n->spare && !n->retired) {
            return n;
        }
    }
    CHECK(!"a group has nodes");
    return NULL;
}

static void ask(struct members_change *m)
{
    struct cluster *c = m->cluster;
    struct node *admin = &c->nodes[c->clerk_first - 1];
    struct node *about = m->step == RSM_REMOVE ? m->out : m->in;
    char to[NET_ADDRESS_SIZE_MAX], address[NET_ADDRESS_SIZE_MAX];
    sim_net_address(whom(m)->number, to);
    sim_net_address(about->number, address);
    if (m->step == RSM_REMOVE) {
        about->leaving = true;
    }
    struct rsm_wish wish = {.kind = (uint8_t)m->step,
                            .id = about->id,
                            .address = slice_text(address),
                            .timeout_ms = WISH_MS};
    struct buf body = {0};
    rsm_wish_encode(&body, &wish);
    struct slice part = buf_slice(&body);
    m->tries++;
    net_call(admin->net, to, RSM_METHOD_CHANGE, &part, 1, CALL_MS, answered, m);
    buf_free(&body);
}

static void not_waited_for(void *arg, enum err rc, struct slice body)
{
    (void)arg;
    (void)rc;
    (void)body;
}

static void wish_once(struct cluster *c, struct node *leader,
                      struct rsm_wish wish)
{
    char to[NET_ADDRESS_SIZE_MAX];
    sim_net_address(leader->number, to);
    struct buf body = {0};
    rsm_wish_encode(&body, &wish);
    struct slice part = buf_slice(&body);
    net_call(c->nodes[c->clerk_first - 1].net, to, RSM_METHOD_CHANGE, &part, 1,
             CALL_MS, not_waited_for, NULL);
    buf_free(&body);
}

void members_transfer(struct cluster *c, struct node *leader)
{
    wish_once(c, leader,
              (struct rsm_wish){.kind = RSM_TRANSFER, .timeout_ms = WISH_MS});
}

void members_remove(struct node *leader, struct node *whom)
{
    whom->leaving = true;
    wish_once(whom->cluster, leader,
              (struct rsm_wish){
                  .kind = RSM_REMOVE, .id = whom->id, .timeout_ms = WISH_MS});
}

static void change_begin(struct cluster *c, uint32_t gid, struct node *in,
                         struct node *out)
{
    struct members_change *m = mem_alloc(sizeof *m);
    *m = (struct members_change){.cluster = c,
                                 .gid = gid,
                                 .in = in,
                                 .out = out,
                                 .step = in != NULL ? RSM_ADD : RSM_REMOVE};
    c->changing |= 1u << gid;
    if (in != NULL) {
        in->spare = false;
        in->joining = true;
        node_start(in);
    }
    sim_trace(c->world, "members of group %u: in n%d, out n%d", gid,
              in != NULL ? (int)in->number : -1,
              out != NULL ? (int)out->number : -1);
    ask(m);
}

/* ---- faults ---- */

/* Who is in no configuration has nobody to tell where it is: its shards would
 * not be found. */
static bool may_change(const struct cluster *c, uint32_t gid)
{
    return (c->changing >> gid & 1) == 0 && (c->joined >> gid & 1) != 0 &&
           !c->admin_busy;
}

bool members_may_fork(struct cluster *c, uint32_t gid, uint32_t count)
{
    struct node *members[SIM_NODES_MAX];
    uint32_t spares = 0;
    uint32_t found = members_of(c, gid, members);
    bool all_run = true;
    for (uint32_t i = 0; i < c->node_count; i++) {
        spares += is_of(&c->nodes[i], gid) && c->nodes[i].spare;
    }
    for (uint32_t i = 0; i < found; i++) {
        all_run = all_run && !members[i]->env.dead;
    }
    return may_change(c, gid) && all_run && found == count && spares >= 2;
}

void members_change(struct cluster *c)
{
    struct node *members[SIM_NODES_MAX];
    uint32_t gid = (uint32_t)sim_between(c->world, 1, c->plan.groups);
    if (!may_change(c, gid)) {
        return;
    }
    uint32_t count = members_of(c, gid, members);
    struct node *spare = spare_of(c, gid);
    struct node *out = members[sim_between(c->world, 0, count - 1)];
    struct node *leader = cluster_leader(c, gid);
    if (leader != NULL && node_is_member(leader) && sim_chance(c->world, 300)) {
        out = leader;
    }
    if (spare != NULL && (count <= 3 || sim_chance(c->world, 400))) {
        change_begin(c, gid, spare, sim_chance(c->world, 600) ? out : NULL);
    } else if (count > 3 || (count > 2 && sim_chance(c->world, 200))) {
        change_begin(c, gid, NULL, out);
    }
}

void members_replace_controller(struct cluster *c)
{
    struct node *members[SIM_NODES_MAX];
    struct node *spare = spare_of(c, 0);
    uint32_t count = members_of(c, 0, members);
    if (spare != NULL && count > 0 && (c->changing & 1) == 0) {
        change_begin(c, 0, spare, members[0]);
    }
}

/* Its log is damaged, so it will not start again. */
void members_replace(struct node *n)
{
    struct cluster *c = n->cluster;
    struct node *spare = n->kind == NODE_SERVER ? spare_of(c, n->gid) : NULL;
    if (spare != NULL && may_change(c, n->gid)) {
        change_begin(c, n->gid, spare, n);
    }
}

/* A new disk, which is empty, or has the identity alone: as when somebody
 * removes the files that look damaged. */
static void lose_disk(struct node *n)
{
    static const char name[] = "identity";
    uint8_t bytes[64];
    uint64_t size = 0;
    struct disk_file *file = NULL;
    struct disk *disk = sim_disk_seam(n->disk);
    bool keep = sim_chance(n->cluster->world, 500);
    sim_env_start(&n->env);
    CHECK(disk->ops->open(disk, name, false, &file) == ERR_OK);
    CHECK(disk->ops->size(file, &size) == ERR_OK && size <= sizeof bytes);
    CHECK(disk->ops->read(file, 0, bytes, size) == ERR_OK);
    disk->ops->close(file);
    sim_disk_free(n->disk);
    n->disk = sim_disk_new(&n->env);
    disk = sim_disk_seam(n->disk);
    struct slice all = slice_of(bytes, size);
    if (keep) {
        CHECK(disk->ops->open(disk, name, true, &file) == ERR_OK &&
              disk->ops->write(file, 0, &all, 1) == ERR_OK &&
              disk->ops->sync(file) == ERR_OK &&
              disk->ops->sync_dir(disk, "") == ERR_OK);
        disk->ops->close(file);
    }
    sim_env_kill(&n->env);
    sim_env_bury(&n->env);
}

/* Only where the others are a majority, and have nothing else to do. */
void members_wipe(struct cluster *c)
{
    struct node *members[SIM_NODES_MAX];
    uint32_t gid = (uint32_t)sim_between(c->world, 1, c->plan.groups);
    uint32_t count = members_of(c, gid, members);
    struct node *spare = spare_of(c, gid);
    if (!may_change(c, gid) || count < 3 || spare == NULL) {
        return;
    }
    struct node *n = members[sim_between(c->world, 0, count - 1)];
    if (!n->env.dead) {
        node_crash(n, "its disk is lost");
    }
    n->wiped = true;
    lose_disk(n);
    skv_mem_image_fini(&n->image);
    n->image = (struct skv_mem_image){0};
    node_restart_later(n, sim_delay(c->world, 20 * MS, SECOND));
    change_begin(c, gid, spare, n);
}

/* ---- the end of a replica ---- */

static void retire(void *arg)
{
    struct node *n = arg;
    if (!n->env.dead) {
        n->retired = true;
        node_crash(n, "removed from its group");
    }
}

void members_removed(void *arg)
{
    struct node *n = arg;
    struct cluster *c = n->cluster;
    if (!n->leaving) {
        sim_fail(c->world, "n%u says it was removed, and nobody asked for that",
                 n->number);
    }
    sim_after(c->world, 0, retire, n);
}

/* One that was away while all the others were replaced has nobody to ask. */
static bool knows_a_member(const struct node *n)
{
    struct cluster *c = n->cluster;
    struct rsm *rsm = node_rsm(n);
    raft_index index = 0;
    const struct raft_conf *conf =
        rsm == NULL ? NULL : raft_conf_newest(rsm_raft(rsm), &index);
    for (uint32_t i = 0; conf != NULL && i < c->node_count; i++) {
        const struct node *other = &c->nodes[i];
        if (is_of(other, n->gid) && node_is_member(other) &&
            (raft_conf_votes(conf, other->id) ||
             raft_conf_learns(conf, other->id))) {
            return true;
        }
    }
    return false;
}

bool members_settled(struct cluster *c)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        const struct node *n = &c->nodes[i];
        if (n->leaving && !n->retired && knows_a_member(n)) {
            return false;
        }
    }
    return c->changing == 0;
}
