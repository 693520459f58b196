/* The harness of tests/labs/group.h on processes: peers are labs_node, killed
 * with kill -9; time is the clock. */
#include "tests/labs/group.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/real/home.h"
#include "tests/real/process.h"

#define MS UINT64_C(1000)

struct group {
    struct rng rng;
    struct process peers[LAB_PEERS_MAX];
    struct real_state states[LAB_PEERS_MAX]; /* as last heard */
    struct faultnet_plan plan;
    uint64_t installs;
};

/* ---- failing, and time ---- */

void lab_fail(struct lab *l, const char *format, ...)
{
    struct lab_run *run = l->run;
    if (run->failed) {
        return;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(run->failure, sizeof run->failure, format, args);
    va_end(args);
    run->failed = true;
}

bool lab_failed(const struct lab *l)
{
    return l->run->failed;
}

uint64_t lab_now_us(const struct lab *l)
{
    (void)l;
    return process_now_us();
}

static void look_for_problems(struct lab *l)
{
    for (uint32_t i = 0; i < l->peer_count; i++) {
        if (l->group->peers[i].problem[0] != '\0') {
            lab_fail(l, "%s", l->group->peers[i].problem);
        }
    }
}

void lab_run_to(struct lab *l, uint64_t end_us)
{
    if (lab_failed(l)) {
        return;
    }
    process_hear_all(l->group->peers, l->peer_count, end_us);
    look_for_problems(l);
    if (home_interrupted()) {
        lab_fail(l, "interrupted");
    }
    if (lab_now_us(l) - l->begun_us > LAB_TEST_SECONDS_MAX * 1000 * MS) {
        lab_fail(l, "test took longer than %d seconds", LAB_TEST_SECONDS_MAX);
    }
}

/* ---- what a peer says ---- */

static uint32_t number_of(const struct lab *l, const struct process *p)
{
    return (uint32_t)(p - l->group->peers);
}

static void applied(struct lab *l, uint32_t peer, const struct real_note *note)
{
    if (note->index != l->peers[peer].applied + 1) {
        lab_fail(l, "server %u apply out of order, expected index %d, got %d",
                 peer, (int)l->peers[peer].applied + 1, (int)note->index);
    }
    l->peers[peer].applied = note->index;
    lab_saw_applied(l, peer, note->index, &note->entry);
}

static void noted(struct process *p, const struct real_note *note)
{
    struct lab *l = p->arg;
    uint32_t peer = number_of(l, p);
    switch (note->kind) {
    case REAL_APPLIED: applied(l, peer, note); break;
    case REAL_INSTALLED:
        l->peers[peer].applied = 0;
        l->group->installs++;
        break;
    case REAL_LEADS: lab_saw_leader(l, peer, note->term); break;
    default: break; /* an answer that came when it was dead */
    }
}

static struct real_state *state_of(struct lab *l, uint32_t peer)
{
    struct process *p = &l->group->peers[peer];
    struct real_ask ask = {.kind = REAL_ASK_STATE};
    struct real_note note;
    if (!lab_failed(l) && p->pid != 0 &&
        process_ask(p, &ask, REAL_STATE, &note)) {
        l->group->states[peer] = note.state;
        if (note.state.leader) {
            lab_saw_leader(l, peer, note.state.term);
        }
    }
    look_for_problems(l);
    return &l->group->states[peer];
}

/* ---- the network ---- */

static struct real_net net_of(const struct lab *l, uint32_t peer)
{
    struct real_net net = {.plan = l->group->plan};
    for (uint32_t i = 0; i < l->peer_count; i++) {
        if (!l->peers[i].connected || !l->peers[peer].connected) {
            net.cut |= UINT64_C(1) << i;
        }
    }
    return net;
}

static void tell_all(struct lab *l)
{
    struct group *g = l->group;
    struct real_note note;
    bool told[LAB_PEERS_MAX] = {0};
    for (uint32_t i = 0; i < l->peer_count && !lab_failed(l); i++) {
        struct real_ask ask = {.kind = REAL_ASK_NET, .net = net_of(l, i)};
        if (g->peers[i].pid != 0) {
            process_tell(&g->peers[i], &ask);
            told[i] = true;
        }
    }
    for (uint32_t i = 0; i < l->peer_count; i++) {
        if (told[i]) {
            process_answer(&g->peers[i], REAL_DONE, &note);
        }
    }
    look_for_problems(l);
}

void lab_network(struct lab *l, bool unreliable, bool long_reordering)
{
    l->group->plan.unreliable = unreliable;
    l->group->plan.long_reordering = long_reordering;
    tell_all(l);
}

static void set_connected(struct lab *l, uint32_t peer, bool connected)
{
    if (l->peers[peer].connected != connected) {
        l->peers[peer].connected = connected;
        tell_all(l);
    }
}

void lab_connect(struct lab *l, uint32_t peer)
{
    set_connected(l, peer, true);
}

void lab_disconnect(struct lab *l, uint32_t peer)
{
    set_connected(l, peer, false);
}

/* ---- lives ---- */

void lab_crash(struct lab *l, uint32_t peer)
{
    struct group *g = l->group;
    lab_disconnect(l, peer);
    if (g->peers[peer].pid == 0 || lab_failed(l)) {
        return;
    }
    process_kill(&g->peers[peer]);
    l->peers[peer].up = false;
    l->peers[peer].applied = 0;
}

static void begin_start(struct lab *l, uint32_t peer)
{
    l->group->peers[peer].node.net = net_of(l, peer);
    process_start(&l->group->peers[peer]);
}

static void finish_start(struct lab *l, uint32_t peer)
{
    l->peers[peer].up = process_await(&l->group->peers[peer]);
    look_for_problems(l);
}

void lab_start1(struct lab *l, uint32_t peer)
{
    lab_crash(l, peer);
    if (!lab_failed(l)) {
        begin_start(l, peer);
        finish_start(l, peer);
    }
}

/* ---- what a row asks ---- */

raft_term lab_term(struct lab *l, uint32_t peer, bool *leader)
{
    *leader = false;
    if (!l->peers[peer].up) {
        return 0;
    }
    const struct real_state *s = state_of(l, peer);
    *leader = s->leader;
    return s->term;
}

void lab_begin_sized(struct lab *l, uint32_t peer, const uint64_t *values,
                     uint32_t count, size_t size, struct lab_begun *begun)
{
    struct process *p = &l->group->peers[peer];
    struct real_ask ask = {
        .kind = REAL_ASK_BEGIN, .count = count, .size = size};
    struct real_note note = {0};
    CHECK(count <= LAB_COMMANDS_MAX);
    memset(begun, 0, count * sizeof *begun);
    memcpy(ask.values, values, count * sizeof *values);
    if (!lab_failed(l) && p->pid != 0 &&
        process_ask(p, &ask, REAL_BEGUN, &note)) {
        memcpy(begun, note.begun, count * sizeof *begun);
    }
    look_for_problems(l);
}

void lab_count(struct lab *l, struct lab_counts *counts)
{
    *counts = (struct lab_counts){.installs = l->group->installs};
    for (uint32_t i = 0; i < l->peer_count; i++) {
        const struct lab_counts *one = &l->group->peers[i].counts->net;
        counts->requests += one->requests;
        counts->replies += one->replies;
        counts->bytes += one->bytes;
        counts->refusals += one->refusals;
        counts->chunks += one->chunks;
    }
}

size_t lab_state_size(struct lab *l)
{
    size_t most = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        size_t size = state_of(l, i)->log_size;
        most = size > most ? size : most;
    }
    return most;
}

uint32_t lab_state_files(struct lab *l)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        uint32_t count = l->peers[i].up ? state_of(l, i)->log_files : 0;
        most = count > most ? count : most;
    }
    return most;
}

raft_index lab_stored(struct lab *l, uint32_t peer)
{
    return state_of(l, peer)->stored;
}

/* ---- begin and end ---- */

static void peer_init(struct lab *l, uint32_t number, const char *dir,
                      uint32_t port)
{
    struct process *p = &l->group->peers[number];
    p->noted = noted;
    p->arg = l;
    p->node = (struct real_node){.kind = REAL_RAFT,
                                 .number = number,
                                 .port = port,
                                 .group = 1,
                                 .name = "g1",
                                 .id = number + 1,
                                 .count = l->peer_count,
                                 .seed = l->run->seed,
                                 .options = l->options};
    snprintf(p->node.dir, sizeof p->node.dir, "%s/n%u", dir, number);
    snprintf(p->node.certs, sizeof p->node.certs, "%s", home_certs());
    process_init(p);
}

void lab_begin(struct lab *l, struct lab_run *run, uint32_t peer_count,
               unsigned options)
{
    const char *dir = home_row_make(run->name);
    *l = (struct lab){.run = run,
                      .peer_count = peer_count,
                      .options = options,
                      .group = mem_alloc(sizeof *l->group)};
    l->rng = &l->group->rng;
    l->rng->state = run->seed;
    l->group->plan.unreliable = (options & LAB_UNRELIABLE) != 0;
    uint32_t port = home_ports(peer_count);
    for (uint32_t i = 0; i < peer_count; i++) {
        peer_init(l, i, dir, port);
        l->peers[i].connected = true;
    }
    l->begun_us = lab_now_us(l);
    for (uint32_t i = 0; i < peer_count; i++) {
        begin_start(l, i);
    }
    for (uint32_t i = 0; i < peer_count; i++) {
        finish_start(l, i);
    }
}

void lab_end(struct lab *l)
{
    lab_report(l);
    for (uint32_t i = 0; i < l->peer_count; i++) {
        process_fini(&l->group->peers[i]);
    }
    if (!l->run->failed || home_interrupted()) {
        home_row_remove();
    }
    mem_free(l->group);
    lab_free(l);
}
