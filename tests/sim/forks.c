/* Two leaders, each with a change of members of its own, on the same four
 * (E3; "bug in single-server membership changes", raft-dev 2015):
 *
 *   A leads B, C and D; it is asked to remove B. Cut off with that entry.
 *   One of B, C and D is elected, and does not reach X; it is asked to remove
 * A. A and X are on one side of a cut now, the other two on the other.
 *
 * If voters change in one step, and before an entry of the own term is
 * committed, A and X are a majority of {A, C, D}, the others one of {B, C, D}.
 * With joint configurations nobody can lead or commit but with a majority of
 * the four. Then all is mended, and B and A are replaced. */
#include "tests/sim/cluster.h"

#define MS     UINT64_C(1000)
#define SECOND UINT64_C(1000000)

enum { IDLE, ASKED, CUT_OFF, TWO, ENDING };
enum { FOUR = 4, WAIT_S = 3, APART_S = 3 };

static bool is_in(const struct cluster *c, const struct node *n)
{
    return node_is_server(n) && n->gid == c->fork.gid && !n->spare &&
           !n->retired;
}

static void cut_from_all(struct cluster *c, uint32_t number)
{
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (i != number && is_in(c, &c->nodes[i])) {
            sim_wire_cut(c->wire, i, number, true);
            sim_wire_cut(c->wire, number, i, true);
        }
    }
}

/* ---- the end: whoever was asked to leave is replaced ---- */

static void fork_finish(void *arg)
{
    struct cluster *c = arg;
    struct fork *f = &c->fork;
    if ((c->changing >> f->gid & 1) == 0 && f->leavers == 0) {
        f->stage = IDLE;
        return;
    }
    if ((c->changing >> f->gid & 1) == 0) {
        uint32_t at = f->leavers - 1;
        members_replace(&c->nodes[f->leaver[at]]);
        f->leavers -= c->changing >> f->gid & 1;
    }
    sim_after(c->world, 100 * MS, fork_finish, c);
}

static void fork_end(void *arg)
{
    struct cluster *c = arg;
    if (c->fork.stage == ENDING) {
        return;
    }
    c->fork.stage = ENDING;
    sim_trace(c->world, "the fork of group %u ends", c->fork.gid);
    sim_wire_mend(c->wire);
    fork_finish(c);
}

static void end_unless_two(void *arg)
{
    struct cluster *c = arg;
    if (c->fork.stage != TWO) {
        fork_end(c);
    }
}

/* ---- asking ---- */

static void ask_to_remove(struct cluster *c, uint32_t leader, uint32_t whom)
{
    struct node *n = &c->nodes[whom];
    c->fork.leaver[c->fork.leavers++] = whom;
    sim_trace(c->world, "n%u is asked to remove n%u", leader, whom);
    members_remove(&c->nodes[leader], n);
}

static void second_wish(void *arg)
{
    struct cluster *c = arg;
    if (c->fork.stage == TWO && !c->healed) {
        ask_to_remove(c, c->fork.second, c->fork.first);
    }
}

/* A and X here, the other two there. */
static void two_sides(void *arg)
{
    struct cluster *c = arg;
    struct fork *f = &c->fork;
    if (f->stage != TWO || c->healed) {
        return;
    }
    sim_wire_mend(c->wire);
    cut_from_all(c, f->first);
    cut_from_all(c, f->apart);
    sim_wire_cut(c->wire, f->first, f->apart, false);
    sim_wire_cut(c->wire, f->apart, f->first, false);
}

/* ---- what is on the wire ---- */

static bool has_conf(const struct raft_msg *m)
{
    for (uint32_t i = 0; i < m->entry_count; i++) {
        if (m->entries[i].type == RAFT_ENTRY_CONF) {
            return true;
        }
    }
    return false;
}

static void first_appended(struct cluster *c, const struct raft_msg *m)
{
    c->fork.stage = CUT_OFF;
    c->fork.term = m->term;
    sim_trace(c->world, "n%u is cut off with its change", c->fork.first);
    cut_from_all(c, c->fork.first);
}

static void second_leads(struct cluster *c, uint32_t from)
{
    struct fork *f = &c->fork;
    uint64_t seen = 0;
    f->second = from;
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (is_in(c, &c->nodes[i]) && i != f->first && i != f->leaver[0] &&
            i != from && sim_between(c->world, 0, seen++) == 0) {
            f->apart = i;
        }
    }
    f->stage = TWO;
    sim_trace(c->world, "n%u leads, and does not reach n%u", from, f->apart);
    cut_from_all(c, f->apart);
    sim_after(c->world, MS, second_wish, c);
    sim_after(c->world, SECOND, two_sides, c);
    sim_after(c->world, (1 + APART_S) * SECOND, fork_end, c);
}

void forks_message(struct cluster *c, uint32_t from, struct slice body)
{
    struct fork *f = &c->fork;
    struct arena a = {0};
    struct raft_msg m;
    if ((f->stage != ASKED && f->stage != CUT_OFF) ||
        !is_in(c, &c->nodes[from])) {
        return;
    }
    if (raft_msg_decode(body, &a, &m) != ERR_OK) {
        arena_free(&a);
        return;
    }
    if (m.type == RAFT_MSG_APPEND && f->stage == ASKED && from == f->first &&
        has_conf(&m)) {
        first_appended(c, &m);
    } else if (m.type == RAFT_MSG_APPEND && f->stage == CUT_OFF &&
               from != f->first && m.term > f->term) {
        second_leads(c, from);
    }
    raft_msg_release(&m);
    arena_free(&a);
}

/* ---- the beginning ---- */

void forks_begin(struct cluster *c)
{
    struct fork *f = &c->fork;
    uint32_t gid = (uint32_t)sim_between(c->world, 1, c->plan.groups);
    struct node *leader = cluster_leader(c, gid);
    if (f->stage != IDLE || leader == NULL || !members_may_fork(c, gid, FOUR)) {
        return;
    }
    *f = (struct fork){.stage = ASKED, .gid = gid, .first = leader->number};
    uint32_t whom = leader->number;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        if (is_in(c, &c->nodes[i]) && i != leader->number &&
            sim_between(c->world, 0, seen++) == 0) {
            whom = i;
        }
    }
    ask_to_remove(c, leader->number, whom);
    sim_after(c->world, WAIT_S * SECOND, end_unless_two, c);
}
