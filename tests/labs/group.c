/* The harness of group.h on virtual time: peers, disks and a network that are
 * simulated. */
#include "tests/labs/group.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/sim/disk.h"
#include "tests/sim/net.h"

#define MS UINT64_C(1000)

enum { GROUP = 1, SPEEDS = 3 };

struct lab_start;

struct sim_peer {
    struct lab *lab;
    uint32_t number;
    struct sim_env env;
    struct net *net;
    struct sim_disk *disk;
    struct rsm_fsm fsm;
    struct rsm *rsm;       /* NULL while it is down */
    struct lab_log now;    /* of this life */
    struct lab_log stored; /* on its disk */
    size_t state_size;     /* when it was last up */
};

/* Who has voted for a peer, in the newest term in which somebody has. */
struct votes {
    raft_term term;
    uint32_t from; /* bits */
};

struct group {
    struct sim_world world;
    struct sim_wire *wire;
    struct sim_peer peers[LAB_PEERS_MAX];
    bool unreliable, long_reordering;
    struct lab_start *starts;
    uint64_t arrives_us[LAB_PEERS_MAX][LAB_PEERS_MAX]; /* the last message */
    struct lab_counts counts;
    struct votes votes[LAB_PEERS_MAX];
};

static const struct sim_speed speeds[SPEEDS] = {
    {"wal", 50, 5000, 0, 0},
    {"apply", 5, 500, 0, 0},
    {"snap", 50, 5000, 0, 0},
};

static const struct sim_speed slow_speeds[SPEEDS] = {
    {"wal", 1000, 20000, 0, 0},
    {"apply", 5, 500, 0, 0},
    {"snap", 1000, 20000, 0, 0},
};

/* ---- failing, and time ---- */

void lab_fail(struct lab *l, const char *format, ...)
{
    char words[sizeof l->group->world.failure];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    sim_fail(&l->group->world, "%s", words);
}

bool lab_failed(const struct lab *l)
{
    return l->group->world.failed;
}

uint64_t lab_now_us(const struct lab *l)
{
    return l->group->world.now_us;
}

/* To `end_us`, exactly. */
void lab_run_to(struct lab *l, uint64_t end_us)
{
    sim_run_to(&l->group->world, end_us);
}

/* ---- the state machine: a list ---- */

static struct sim_peer *peer_of(struct rsm_fsm *fsm)
{
    return (struct sim_peer *)((char *)fsm - offsetof(struct sim_peer, fsm));
}

static raft_index fsm_durable(struct rsm_fsm *fsm, raft_term *term)
{
    struct sim_peer *p = peer_of(fsm);
    *term = p->stored.term;
    return p->stored.count;
}

static enum err fsm_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                          uint32_t count)
{
    struct sim_peer *p = peer_of(fsm);
    if (p->env.dead) {
        return ERR_CLOSED;
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct rsm_entry *e = &entries[i];
        if (e->index != p->now.count + 1) {
            lab_fail(p->lab,
                     "server %u apply out of order, expected index %" PRIu64
                     ", got %" PRIu64,
                     p->number, p->now.count + 1, e->index);
            return ERR_CLOSED;
        }
        struct lab_entry entry = lab_entry_of(e);
        lab_saw_applied(p->lab, p->number, e->index, &entry);
        lab_log_add(&p->now, entry);
        p->now.term = e->term;
        p->lab->peers[p->number].applied = p->now.count;
    }
    return ERR_OK;
}

static enum err fsm_checkpoint(struct rsm_fsm *fsm)
{
    struct sim_peer *p = peer_of(fsm);
    if (p->env.dead) {
        return ERR_CLOSED;
    }
    lab_log_copy(&p->stored, &p->now);
    return ERR_OK;
}

static enum err fsm_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct lab_log *copy = mem_alloc(sizeof *copy);
    lab_log_copy(copy, &peer_of(fsm)->now);
    *view = copy;
    return ERR_OK;
}

static enum err fsm_snap_read(struct rsm_fsm *fsm, void *view,
                              struct snap_sink *sink)
{
    (void)fsm;
    const struct lab_log *log = view;
    return sink->write(
        sink, slice_of(log->entries, log->count * sizeof *log->entries));
}

static void fsm_snap_end(struct rsm_fsm *fsm, void *view)
{
    (void)fsm;
    lab_log_fini(view);
    mem_free(view);
}

static enum err fsm_snap_install(struct rsm_fsm *fsm,
                                 struct snap_source *source, raft_index index,
                                 raft_term term)
{
    struct sim_peer *p = peer_of(fsm);
    struct lab *l = p->lab;
    struct lab_log log = {.term = term};
    enum err rc = lab_log_read(source, &log);
    if (rc == ERR_OK && p->env.dead) {
        rc = ERR_CLOSED;
    }
    if (rc == ERR_OK && (log.count != index || index > l->decided.count)) {
        lab_fail(l,
                 "server %u: a snapshot of index %" PRIu64 " has %" PRIu64
                 " entries, and %" PRIu64 " were applied",
                 p->number, index, log.count, l->decided.count);
        rc = ERR_CLOSED;
    }
    if (rc == ERR_OK) {
        for (raft_index i = 1; i <= index; i++) {
            lab_saw_applied(l, p->number, i, &log.entries[i - 1]);
        }
        lab_log_copy(&p->now, &log);
        lab_log_copy(&p->stored, &log);
        l->peers[p->number].applied = index;
        l->group->counts.installs++;
    }
    lab_log_fini(&log);
    return rc;
}

static const struct rsm_fsm_ops fsm_ops = {
    .durable = fsm_durable,
    .apply = fsm_apply,
    .checkpoint = fsm_checkpoint,
    .snap_begin = fsm_snap_begin,
    .snap_read = fsm_snap_read,
    .snap_end = fsm_snap_end,
    .snap_install = fsm_snap_install,
};

/* ---- the labs' network ---- */

static bool is_reply(const struct sim_letter *letter)
{
    return letter->reply || (letter->method == RSM_METHOD_RAFT &&
                             lab_raft_is_reply(letter->body));
}

static void count(struct lab *l, const struct sim_letter *letter, bool reply)
{
    struct lab_counts *c = &l->group->counts;
    c->bytes += letter->body.size;
    c->requests += !reply;
    c->replies += reply;
    c->refusals += letter->method == RSM_METHOD_RAFT && reply &&
                   lab_raft_is_refusal(letter->body);
    c->chunks += !reply && letter->method == RSM_METHOD_SNAP;
}

/* When it is sent: it may be lost, so these are at least those that count. */
static void note_vote(struct lab *l, const struct sim_letter *letter)
{
    struct votes *v = &l->group->votes[letter->to];
    raft_term term = letter->method == RSM_METHOD_RAFT
                         ? lab_raft_vote_term(letter->body)
                         : 0;
    if (term > v->term) {
        *v = (struct votes){.term = term};
    }
    if (term != 0 && term == v->term) {
        v->from |= UINT32_C(1) << letter->from;
    }
}

static void check_votes(struct lab *l, uint32_t leader, raft_term term)
{
    const struct votes *v = &l->group->votes[leader];
    uint32_t from = v->term == term ? v->from : 0;
    int count = __builtin_popcount(from | UINT32_C(1) << leader);
    if ((uint32_t)count <= l->peer_count / 2) {
        lab_fail(l, "n%u leads in term %" PRIu64 " with %d of %u votes", leader,
                 term, count, l->peer_count);
    }
}

void lab_count(struct lab *l, struct lab_counts *counts)
{
    *counts = l->group->counts;
}

static bool is_slow(const struct lab *l)
{
    return (l->options & LAB_SLOW) != 0 && l->run->seed / 2 % 2 == 0;
}

/* A connection that loses nothing keeps the order. */
static uint64_t after_the_last(struct lab *l, const struct sim_letter *letter,
                               uint64_t delay_us)
{
    uint64_t *last_us = &l->group->arrives_us[letter->from][letter->to];
    uint64_t at_us = l->group->world.now_us + delay_us;
    *last_us = at_us > *last_us ? at_us : *last_us + 1;
    return *last_us - l->group->world.now_us;
}

static bool fate(void *arg, const struct sim_letter *letter, uint64_t *delay_us)
{
    struct lab *l = arg;
    struct sim_world *w = &l->group->world;
    bool reply = is_reply(letter);
    count(l, letter, reply);
    note_vote(l, letter);
    bool unreliable = l->group->unreliable;
    if (!l->peers[letter->from].connected || !l->peers[letter->to].connected ||
        (unreliable && sim_chance(w, 100))) {
        return false;
    }
    *delay_us = sim_delay(w, 20, 500);
    if (!reply && unreliable) {
        *delay_us += sim_between(w, 0, 26 * MS);
    } else if (!reply && is_slow(l)) {
        *delay_us += sim_between(w, 0, 5 * MS);
    }
    if (!unreliable) {
        *delay_us = after_the_last(l, letter, *delay_us);
    }
    if (l->group->long_reordering && reply && sim_chance(w, 667)) {
        uint64_t most_ms = sim_between(w, 1, 2000);
        *delay_us += (200 + sim_between(w, 0, most_ms)) * MS;
    }
    return true;
}

/* ---- lives ---- */

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    struct sim_peer *p = arg;
    rsm_handle(p->rsm, request, peer, method, body);
}

static void peer_down(void *arg, const char *address)
{
    struct sim_peer *p = arg;
    rsm_peer_down(p->rsm, address);
}

static struct rsm_config config_of(struct sim_peer *p)
{
    struct lab *l = p->lab;
    struct rsm_config config = lab_rsm_config(l->options, l->run->seed);
    config.env = &p->env.env;
    config.net = p->net;
    config.disk = sim_disk_seam(p->disk);
    config.fsm = &p->fsm;
    config.id = p->number + 1;
    config.peer_count = l->peer_count;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        config.peers[i].id = i + 1;
        sim_net_address(i, config.peers[i].address);
    }
    return config;
}

static void peer_start(struct sim_peer *p)
{
    sim_trace(&p->lab->group->world, "n%u starts", p->number);
    sim_env_start(&p->env);
    lab_log_copy(&p->now, &p->stored);
    struct rsm_config config = config_of(p);
    enum err rc = rsm_new(&config, &p->rsm);
    if (rc != ERR_OK) {
        p->rsm = NULL;
        sim_env_kill(&p->env);
        lab_fail(p->lab, "server %u does not start again: %s", p->number,
                 err_name(rc));
        return;
    }
    p->net->handler = handle;
    p->net->handler_arg = p;
    p->net->down = peer_down;
    p->net->down_arg = p;
    p->lab->peers[p->number].up = true;
    p->lab->peers[p->number].applied = p->now.count;
}

static void peer_end(struct sim_peer *p)
{
    if (p->rsm == NULL) {
        return;
    }
    p->state_size = lab_log_size(p->rsm);
    sim_env_kill(&p->env);
    rsm_free(p->rsm);
    p->rsm = NULL;
    sim_net_bury(p->lab->group->wire, p->number);
    sim_env_bury(&p->env);
    p->now.count = 0;
    p->lab->peers[p->number].up = false;
    p->lab->peers[p->number].applied = 0;
}

void lab_crash(struct lab *l, uint32_t peer)
{
    struct sim_peer *p = &l->group->peers[peer];
    lab_disconnect(l, peer);
    if (p->rsm != NULL && !lab_failed(l)) {
        sim_trace(&l->group->world, "n%u dies", p->number);
        peer_end(p);
        sim_disk_crash(p->disk);
    }
}

void lab_start1(struct lab *l, uint32_t peer)
{
    lab_crash(l, peer);
    if (!lab_failed(l)) {
        peer_start(&l->group->peers[peer]);
    }
}

void lab_connect(struct lab *l, uint32_t peer)
{
    sim_trace(&l->group->world, "n%u is connected", peer);
    l->peers[peer].connected = true;
}

void lab_disconnect(struct lab *l, uint32_t peer)
{
    sim_trace(&l->group->world, "n%u is disconnected", peer);
    l->peers[peer].connected = false;
}

void lab_network(struct lab *l, bool unreliable, bool long_reordering)
{
    l->group->unreliable = unreliable;
    l->group->long_reordering = long_reordering;
}

/* ---- what a row asks ---- */

raft_term lab_term(struct lab *l, uint32_t peer, bool *leader)
{
    struct sim_peer *p = &l->group->peers[peer];
    *leader = false;
    if (p->rsm == NULL) {
        return 0;
    }
    struct raft_status status;
    raft_status(rsm_raft(p->rsm), &status);
    *leader = rsm_is_leader(p->rsm);
    return status.term;
}

size_t lab_state_size(struct lab *l)
{
    size_t most = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        struct sim_peer *p = &l->group->peers[i];
        if (p->rsm != NULL) {
            p->state_size = lab_log_size(p->rsm);
        }
        most = p->state_size > most ? p->state_size : most;
    }
    return most;
}

uint32_t lab_state_files(struct lab *l)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        struct sim_peer *p = &l->group->peers[i];
        uint32_t count =
            p->rsm != NULL ? lab_wal_files(sim_disk_seam(p->disk)) : 0;
        most = count > most ? count : most;
    }
    return most;
}

raft_index lab_stored(struct lab *l, uint32_t peer)
{
    return l->group->peers[peer].stored.count;
}

/* ---- Start() ---- */

struct lab_start {
    struct rsm_proposal proposal;
    bool answered;
    struct lab_start *next;
};

static void on_answer(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    (void)reply;
    ((struct lab_start *)p)->answered = true;
    p->rc = rc;
}

static struct lab_start *propose(struct lab *l, uint32_t peer, uint64_t value,
                                 size_t size)
{
    struct sim_peer *p = &l->group->peers[peer];
    if (lab_failed(l) || p->rsm == NULL || !rsm_is_leader(p->rsm)) {
        return NULL;
    }
    struct lab_start *s = mem_alloc(sizeof *s);
    s->next = l->group->starts;
    l->group->starts = s;
    s->proposal.done = on_answer;
    rsm_propose(p->rsm, &s->proposal, lab_command(value, size));
    return s;
}

/* The core learns of it at the end of the turn of the peer's loop. */
static struct lab_begun await_index(struct lab *l, const struct lab_start *s)
{
    while (s != NULL && !s->answered && s->proposal.index == 0 &&
           sim_step(&l->group->world)) {
    }
    if (s == NULL || s->proposal.index == 0 ||
        (s->answered && s->proposal.rc != ERR_OK)) {
        return (struct lab_begun){0};
    }
    return (struct lab_begun){
        .ok = true, .index = s->proposal.index, .term = s->proposal.term};
}

void lab_begin_sized(struct lab *l, uint32_t peer, const uint64_t *values,
                     uint32_t count, size_t size, struct lab_begun *begun)
{
    struct lab_start *starts[LAB_COMMANDS_MAX];
    CHECK(count <= LAB_COMMANDS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        starts[i] = propose(l, peer, values[i], size);
    }
    for (uint32_t i = 0; i < count; i++) {
        begun[i] = await_index(l, starts[i]);
    }
}

static void starts_free(struct lab *l)
{
    while (l->group->starts != NULL) {
        struct lab_start *s = l->group->starts;
        l->group->starts = s->next;
        mem_free(s);
    }
}

/* ---- after each event ---- */

static void after_event(void *arg, struct sim_env *env)
{
    struct lab *l = arg;
    struct sim_peer *p = env != NULL ? &l->group->peers[env->node] : NULL;
    if (p == NULL || p->rsm == NULL) {
        return;
    }
    if (env->dying) {
        lab_fail(l, "server %u stopped without cause: %s", p->number,
                 env->words);
    } else if (rsm_is_leader(p->rsm)) {
        struct raft_status status;
        raft_status(rsm_raft(p->rsm), &status);
        check_votes(l, p->number, status.term);
        lab_saw_leader(l, p->number, status.term);
    }
}

/* ---- begin and end ---- */

static void peer_init(struct lab *l, uint32_t number)
{
    struct sim_peer *p = &l->group->peers[number];
    p->lab = l;
    p->number = number;
    p->fsm.ops = &fsm_ops;
    sim_env_init(&p->env, &l->group->world, number);
    p->env.rate_ppm = (uint32_t)sim_between(&l->group->world, 995000, 1005000);
    p->env.speeds = is_slow(l) ? slow_speeds : speeds;
    p->env.speed_count = SPEEDS;
    p->net =
        sim_net_add(l->group->wire, &p->env, NET_ROLE_SERVER, GROUP, "server");
    p->disk = sim_disk_new(&p->env);
}

void lab_begin(struct lab *l, struct lab_run *run, uint32_t peer_count,
               unsigned options)
{
    CHECK(peer_count <= LAB_PEERS_MAX);
    *l = (struct lab){.run = run,
                      .peer_count = peer_count,
                      .options = options,
                      .group = mem_alloc(sizeof *l->group)};
    l->rng = &l->group->world.rng;
    l->group->unreliable = (options & LAB_UNRELIABLE) != 0;
    sim_world_init(&l->group->world, run->seed, run->verbose);
    l->group->world.after = after_event;
    l->group->world.after_arg = l;
    l->group->wire = sim_wire_new(&l->group->world);
    sim_wire_set_fate(l->group->wire, fate, l);
    sim_trace(&l->group->world, "seed %" PRIu64 ", options %x", run->seed,
              options);
    for (uint32_t i = 0; i < peer_count; i++) {
        peer_init(l, i);
    }
    for (uint32_t i = 0; i < peer_count; i++) {
        peer_start(&l->group->peers[i]);
        lab_connect(l, i);
    }
    l->begun_us = l->group->world.now_us;
}

static void report(struct lab *l)
{
    struct lab_run *run = l->run;
    lab_report(l);
    run->failed = l->group->world.failed;
    memcpy(run->failure, l->group->world.failure, sizeof run->failure);
    run->hash = l->group->world.hash;
    if (run->failed && run->tail) {
        sim_print_tail(&l->group->world);
    }
}

void lab_end(struct lab *l)
{
    struct group *g = l->group;
    report(l);
    for (uint32_t i = 0; i < l->peer_count; i++) {
        peer_end(&g->peers[i]);
        sim_disk_free(g->peers[i].disk);
        lab_log_fini(&g->peers[i].now);
        lab_log_fini(&g->peers[i].stored);
    }
    starts_free(l);
    sim_world_fini(&g->world);
    sim_wire_free(g->wire);
    mem_free(g);
    lab_free(l);
}
