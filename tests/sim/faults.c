/* What goes wrong, and when: one fault after another, each drawn from the
 * plan's weights, until the heal. */
#include <inttypes.h>
#include <string.h>

#include "base/check.h"
#include "tests/sim/cluster.h"

#define MS     UINT64_C(1000)
#define SECOND UINT64_C(1000000)

struct node *faults_any_server(struct cluster *c)
{
    for (;;) {
        struct node *n =
            &c->nodes[sim_between(c->world, 0, c->clerk_first - 2)];
        if (!n->spare && !n->retired) {
            return n;
        }
    }
}

/* A server, more often one that leads. */
struct node *faults_pick_server(struct cluster *c)
{
    struct node *n = faults_any_server(c);
    struct node *leader = cluster_leader(c, n->gid);
    return leader != NULL && sim_chance(c->world, 400) ? leader : n;
}

uint32_t faults_down_in_group(struct cluster *c, uint32_t gid)
{
    uint32_t down = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        down += node_is_member(n) && n->gid == gid && n->env.dead;
    }
    return down;
}

/* ---- crashes ---- */

static void crash(struct cluster *c)
{
    struct node *n = faults_pick_server(c);
    /* A second one down stops the group: seldom, or nothing gets done. */
    if (n->env.dead ||
        (faults_down_in_group(c, n->gid) > 0 && !sim_chance(c->world, 250))) {
        return;
    }
    node_crash(n, "killed");
    node_restart_later(n, sim_delay(c->world, 20 * MS, 4 * SECOND));
}

/* The paper's figure 8 needs leaders that die while their entries are on some
 * disks only: so wait for the next leader, and leave it some milliseconds. */
static void crash_leader_now(void *arg)
{
    struct node *n = arg;
    if (n->env.dead || n->cluster->healed) {
        return;
    }
    node_crash(n, "killed as leader");
    node_restart_later(n, sim_delay(n->cluster->world, 20 * MS, 3 * SECOND));
}

static void crash_leader(struct cluster *c)
{
    struct node *n = faults_any_server(c);
    if (faults_down_in_group(c, n->gid) > c->plan.replicas / 2) {
        return;
    }
    c->hunted |= 1u << n->gid;
    struct node *leader = cluster_leader(c, n->gid);
    if (leader != NULL) {
        crash_leader_now(leader);
    }
}

void faults_leader_seen(struct node *n)
{
    struct cluster *c = n->cluster;
    if ((c->hunted >> n->gid & 1) != 0 && !c->healed) {
        c->hunted &= ~(1u << n->gid);
        sim_after(c->world, sim_delay(c->world, 0, 30 * MS), crash_leader_now,
                  n);
    }
}

static void crash_group(struct cluster *c, uint32_t gid, uint64_t most_us)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (node_is_server(n) && n->gid == gid && !n->env.dead) {
            node_crash(n, "power cut of the whole group");
            node_restart_later(n, sim_delay(c->world, 20 * MS, most_us));
        }
    }
}

static void crash_all(struct cluster *c)
{
    crash_group(c, faults_any_server(c)->gid, 2 * SECOND);
}

/* A move has few steps, and each may be the one after which a new leader, of
 * either side, must go on: so wait for one, and strike around it. */
static void hunt_move(struct cluster *c)
{
    c->move_hunted = true;
}

static void crash_mover(void *arg)
{
    struct node *n = arg;
    struct cluster *c = n->cluster;
    if (n->env.dead || c->healed) {
        return;
    }
    if (sim_chance(c->world, 100)) {
        crash_group(c, n->gid, 15 * SECOND); /* away for long */
        return;
    }
    node_crash(n, "killed in a move");
    node_restart_later(n, sim_delay(c->world, 20 * MS, 3 * SECOND));
}

void faults_move_seen(struct node *from, struct node *to)
{
    struct cluster *c = from->cluster;
    if (!c->move_hunted || c->healed || !sim_chance(c->world, 250)) {
        return;
    }
    c->move_hunted = false;
    struct node *victim = sim_chance(c->world, 500) ? from : to;
    sim_after(c->world, sim_delay(c->world, 0, 40 * MS), crash_mover, victim);
}

/* A stream has few moments, too: its leader, its follower or the link between
 * them goes; or the follower's power, at one of its next calls to the disk,
 * among which are those of the install. */
static void hunt_stream(struct cluster *c)
{
    c->stream_hunted = true;
}

static void strike_stream(struct node *from, struct node *to)
{
    struct cluster *c = from->cluster;
    bool goes = c->plan.slow_installs && sim_chance(c->world, 700);
    switch (goes ? 1 : sim_between(c->world, 0, 3)) {
    case 0:
        sim_trace(c->world, "a stream's link breaks: n%u n%u", from->number,
                  to->number);
        sim_wire_cut(c->wire, from->number, to->number, true);
        sim_wire_cut(c->wire, to->number, from->number, true);
        break;
    case 1:
        node_crash(from, "killed in its stream");
        node_restart_later(from, sim_delay(c->world, 20 * MS, 3 * SECOND));
        break;
    case 2:
        node_crash(to, "killed in a stream to it");
        node_restart_later(to, sim_delay(c->world, 20 * MS, 3 * SECOND));
        break;
    default:
        to->doomed = true;
        sim_disk_die_after(to->disk, (uint32_t)sim_between(c->world, 1, 60));
    }
}

/* The strike may end the life of who is just sending: so not from inside. */
static void strike_later(void *arg)
{
    struct node *to = arg;
    struct cluster *c = to->cluster;
    struct node *from = &c->nodes[c->stream_from];
    if (!c->healed && !from->env.dead && !to->env.dead &&
        faults_down_in_group(c, to->gid) == 0) {
        strike_stream(from, to);
    }
}

void faults_stream_seen(struct node *from, struct node *to)
{
    struct cluster *c = from->cluster;
    if (c->stream_hunted && !c->healed && sim_chance(c->world, 100)) {
        c->stream_hunted = false;
        c->stream_from = from->number;
        sim_after(c->world, sim_delay(c->world, 0, 20 * MS), strike_later, to);
    }
}

static void power(struct cluster *c)
{
    struct node *n = faults_pick_server(c);
    if (!n->env.dead && faults_down_in_group(c, n->gid) == 0) {
        n->doomed = true;
        sim_disk_die_after(n->disk, (uint32_t)sim_between(c->world, 1, 40));
    }
}

static void sync_fault(struct cluster *c)
{
    struct node *n = faults_pick_server(c);
    if (!n->env.dead && faults_down_in_group(c, n->gid) == 0) {
        n->doomed = true;
        sim_trace(c->world, "n%u: its next sync fails", n->number);
        sim_disk_fail_sync(n->disk);
    }
}

/* ---- disks ---- */

bool faults_lost_in_group(struct cluster *c, uint32_t gid)
{
    bool lost = false;
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        lost = lost || (node_is_server(n) && n->gid == gid && n->lost);
    }
    return lost;
}

/* One of a group at most, and for good: whoever replaces it is a later step.
 * It comes back when the bit fell where nothing is read. */
static void rot(struct cluster *c)
{
    struct node *n = faults_any_server(c);
    struct sim_rot where;
    if (faults_lost_in_group(c, n->gid) ||
        faults_down_in_group(c, n->gid) > 0) {
        return;
    }
    node_crash(n, "killed, and its log rots");
    n->lost = n->rotten = sim_disk_rot(n->disk, &where);
    if (n->rotten) {
        sim_trace(c->world, "n%u: wal/%s rots at byte %" PRIu64, n->number,
                  where.name, where.at);
    }
    node_restart_later(n, sim_delay(c->world, 20 * MS, 2 * SECOND));
}

static void rot_group(struct cluster *c)
{
    uint32_t gid = faults_any_server(c)->gid;
    if (!faults_lost_in_group(c, gid) && faults_down_in_group(c, gid) == 0) {
        rot_and_repair(c, gid);
    }
}

static void clerk_crash(struct cluster *c)
{
    struct node *n =
        &c->nodes[sim_between(c->world, c->clerk_first, c->node_count - 1)];
    if (!n->env.dead) {
        node_crash(n, "clerk killed");
        node_restart_later(n, sim_between(c->world, 10 * MS, SECOND));
    }
}

/* ---- slowness ---- */

static void pause_node(struct cluster *c)
{
    struct node *n = faults_pick_server(c);
    if (!n->env.dead) {
        uint64_t time_us = sim_between(c->world, 100 * MS, 3 * SECOND);
        n->env.paused_until_us = c->world->now_us + time_us;
        sim_trace(c->world, "n%u stands still for %" PRIu64 " us", n->number,
                  time_us);
    }
}

static void slow(struct cluster *c)
{
    struct node *n = faults_pick_server(c);
    n->env.slow_until_us =
        c->world->now_us + sim_between(c->world, SECOND, 4 * SECOND);
    sim_trace(c->world, "n%u has a slow disk", n->number);
}

static void clock_jump(struct cluster *c)
{
    struct node *n = faults_pick_server(c);
    n->env.wall_offset_us = (int64_t)sim_between(c->world, 0, 7200 * SECOND) -
                            (int64_t)(3600 * SECOND);
    sim_trace(c->world, "n%u: its wall clock jumps", n->number);
}

/* ---- configurations ---- */

struct request {
    struct cluster *cluster;
    uint8_t kind;
    uint32_t gid;
    uint32_t shard;
};

static void admin_send(struct request *r);

static void admin_again(void *arg)
{
    admin_send(arg);
}

static void admin_done(void *arg, enum err rc, uint64_t number)
{
    struct request *r = arg;
    struct cluster *c = r->cluster;
    sim_trace(c->world, "change %u of group %u: %s, configuration %" PRIu64,
              r->kind, r->gid, err_name(rc), number);
    if (rc == ERR_CLOSED) {
        mem_free(r); /* the administrator's process ends */
        return;
    }
    if (r->kind == CTL_JOIN && (rc == ERR_OK || rc == ERR_EXISTS)) {
        c->joined |= 1u << r->gid;
    } else if (r->kind == CTL_LEAVE && (rc == ERR_OK || rc == ERR_NOTFOUND)) {
        c->joined &= ~(1u << r->gid);
    }
    c->changes += rc == ERR_OK;
    if (c->joined == 0) {
        sim_after_taking(c->world, 10 * MS, admin_again, r);
        return;
    }
    c->admin_busy = false;
    mem_free(r);
}

static void admin_send(struct request *r)
{
    struct cluster *c = r->cluster;
    struct node *admin = &c->nodes[c->clerk_first - 1];
    struct ctl_server servers[SIM_IDS_MAX];
    char addresses[SIM_IDS_MAX][NET_ADDRESS_SIZE_MAX];
    struct ctl_group group = {.gid = r->gid, .servers = servers};
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n->kind == NODE_SERVER && n->gid == r->gid && !n->spare &&
            !n->retired) {
            uint32_t at = group.servers_count++;
            sim_net_address(n->number, addresses[at]);
            servers[at] = (struct ctl_server){
                .id = n->id, .address = slice_text(addresses[at])};
        }
    }
    struct ctl_owner gone = {.gid = r->gid};
    struct ctl_change change = {
        .kind = r->kind,
        .join = &group,
        .join_count = r->kind == CTL_JOIN ? 1 : 0,
        .leave = &gone,
        .leave_count = r->kind == CTL_LEAVE ? 1 : 0,
        .move_shard = r->kind == CTL_MOVE ? r->shard : 0,
        .move_gid = r->kind == CTL_MOVE ? r->gid : 0,
        .weigh = {.gid = r->gid, .weight = 1 + r->shard % 4},
        .limit = r->shard % 2 == 0 ? 0 : CTL_RATE_MIN,
    };
    c->admin_busy = true;
    ctl_client_change(admin->admin, &change, 30000, admin_done, r);
}

static void admin_request(struct cluster *c, enum ctl_change_kind kind,
                          uint32_t gid)
{
    struct request *r = mem_alloc(sizeof *r);
    r->cluster = c;
    r->kind = (uint8_t)kind;
    r->gid = gid;
    r->shard = (uint32_t)sim_between(c->world, 0, c->plan.shards - 1);
    sim_trace(c->world, "asks for change %u of group %u, shard %u", kind, gid,
              r->shard);
    admin_send(r);
}

void admin_join_first(struct cluster *c)
{
    admin_request(c, CTL_JOIN,
                  (uint32_t)sim_between(c->world, 1, c->plan.groups));
}

static void admin(struct cluster *c)
{
    if (c->admin_busy) {
        return;
    }
    uint32_t gid = (uint32_t)sim_between(c->world, 1, c->plan.groups);
    bool joined = (c->joined >> gid & 1) != 0;
    bool alone = (c->joined & (c->joined - 1)) == 0;
    if (!joined) {
        admin_request(c, CTL_JOIN, gid);
    } else if (!alone && (c->changing >> gid & 1) == 0 &&
               sim_chance(c->world, 400)) {
        admin_request(c, CTL_LEAVE, gid);
    } else if (sim_chance(c->world, 200)) {
        admin_request(c, sim_chance(c->world, 500) ? CTL_WEIGH : CTL_LIMIT,
                      gid);
    } else {
        admin_request(c, CTL_MOVE, gid);
    }
}

/* ---- one after another ---- */

static void (*const acts[FAULTS])(struct cluster *c) = {
    [FAULT_CRASH] = crash,
    [FAULT_CRASH_LEADER] = crash_leader,
    [FAULT_CRASH_ALL] = crash_all,
    [FAULT_POWER] = power,
    [FAULT_SYNC] = sync_fault,
    [FAULT_PARTITION] = links_partition,
    [FAULT_ONE_WAY] = links_one_way,
    [FAULT_LEADER_CUT] = links_leader_cut,
    [FAULT_MEND] = links_mend,
    [FAULT_PAUSE] = pause_node,
    [FAULT_SLOW] = slow,
    [FAULT_CLOCK] = clock_jump,
    [FAULT_WEATHER] = links_weather,
    [FAULT_ADMIN] = admin,
    [FAULT_CLERK] = clerk_crash,
    [FAULT_MEMBERS] = members_change,
    [FAULT_WIPE] = members_wipe,
    [FAULT_MOVE] = hunt_move,
    [FAULT_STREAM] = hunt_stream,
    [FAULT_FULL] = full_begin,
    [FAULT_FULL_GROUP] = full_group,
    [FAULT_FULL_STRUCK] = full_and_struck,
    [FAULT_ROT] = rot,
    [FAULT_ROT_GROUP] = rot_group,
    [FAULT_RESET] = links_leader_reset,
    [FAULT_APART] = links_follower_apart,
    [FAULT_PARTIAL] = partial_begin,
    [FAULT_FORK] = forks_begin,
    [FAULT_CONTROLLERS] = members_replace_controller,
};

static enum fault draw(struct cluster *c)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < FAULTS; i++) {
        sum += c->plan.weights[i];
    }
    uint64_t at = sim_between(c->world, 0, sum - 1);
    uint32_t fault = 0;
    while (at >= c->plan.weights[fault]) {
        at -= c->plan.weights[fault++];
    }
    return (enum fault)fault;
}

static void next_fault(void *arg)
{
    struct cluster *c = arg;
    if (c->healed) {
        return;
    }
    enum fault fault = draw(c);
    c->faults[fault]++;
    acts[fault](c);
    sim_after(c->world,
              sim_delay(c->world, c->plan.fault_low_us, c->plan.fault_high_us),
              next_fault, c);
}

void faults_begin(struct cluster *c)
{
    links_fair_weather(c);
    sim_after(c->world, c->plan.fault_low_us, next_fault, c);
}

void faults_heal(struct cluster *c)
{
    c->healed = true;
    c->plan.unreliable = false;
    sim_wire_mend(c->wire);
    links_fair_weather(c);
    for (uint32_t i = 0; i < c->node_count; i++) {
        struct node *n = &c->nodes[i];
        if (n->env.paused_until_us > c->world->now_us) {
            n->env.paused_until_us = 0;
        }
        n->env.slow_until_us = 0;
        if (n->disk != NULL && !n->lost) {
            full_end(n);
        }
        if (n->env.dead) {
            node_start(n);
        }
        if (n->disk != NULL) {
            sim_disk_calm(n->disk);
        }
        /* It may have heard of it, and not have said so yet. */
        n->doomed = n->disk != NULL && sim_disk_sync_failed(n->disk);
    }
}
