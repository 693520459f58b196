/* The harness of tests/labs/kv_harness.h on processes: controllers and groups
 * are labs_node, killed with kill -9; clerks and administrators live on a loop
 * in the runner, which turns only while a row waits. Time is the clock.
 *
 * Always: a term of a group has one leader, and no server stops by itself.
 *
 * Here: time, what servers say, the network, lives, questions; kv_begin.c makes
 * the world and ends it. */
#include "tests/real/kv_int.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"
#include "tests/real/home.h"

#define MS UINT64_C(1000)

/* ---- failing, and time ---- */

void kv_note(struct kv *kv, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(kv->world->notes, "%8.3f ", (double)kv_now_ms(kv) / 1000);
    vfprintf(kv->world->notes, format, args);
    fprintf(kv->world->notes, "\n");
    fflush(kv->world->notes);
    va_end(args);
}

void kv_fail(struct kv *kv, const char *format, ...)
{
    struct lab_run *run = kv->run;
    if (run->failed) {
        return;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(run->failure, sizeof run->failure, format, args);
    va_end(args);
    run->failed = true;
    kv_note(kv, "%s", run->failure);
    net_loop_stop(kv->world->loop);
}

bool kv_failed(const struct kv *kv)
{
    return kv->run->failed;
}

uint64_t kv_now_us(const struct kv *kv)
{
    (void)kv;
    return process_now_us();
}

void world_wake(void *arg)
{
    struct kv *kv = arg;
    net_loop_stop(kv->world->loop);
}

void kv_wake(struct kv *kv)
{
    if (kv->world->awaited != NULL && !*kv->world->awaited) {
        world_wake(kv);
    }
}

/* The world moves on, until `flag` (may be NULL) is false. */
static void run_to(struct kv *kv, const bool *flag, uint64_t end_us)
{
    struct kv_world *w = kv->world;
    w->awaited = flag;
    while (!kv_failed(kv) && (flag == NULL || *flag)) {
        uint64_t now_us = process_now_us();
        if (now_us >= end_us) {
            break;
        }
        env_timer_start(w->env, &w->alarm.timer, end_us - now_us);
        net_loop_run(w->loop);
    }
    env_timer_stop(w->env, &w->alarm.timer);
    w->awaited = NULL;
}

void kv_sleep(struct kv *kv, uint64_t ms)
{
    run_to(kv, NULL, process_now_us() + ms * MS);
}

bool kv_await(struct kv *kv, const bool *flag, uint64_t limit_ms,
              const char *what)
{
    run_to(kv, flag, process_now_us() + limit_ms * MS);
    if (*flag) {
        kv_fail(kv, "%s: no answer within %.1f s", what,
                (double)limit_ms / 1000);
    }
    return !kv_failed(kv);
}

static void later_fire(struct env_timer *timer)
{
    struct later *l = (struct later *)timer;
    l->fn(l->arg);
}

void later_init(struct later *l, struct kv *kv, void (*fn)(void *arg),
                void *arg)
{
    *l = (struct later){
        .timer.fire = later_fire, .kv = kv, .fn = fn, .arg = arg};
}

void later_free(struct later *l)
{
    struct kv_world *w = l->kv->world;
    env_timer_stop(w->env, &l->timer);
    DL_DELETE(w->laters, l);
    mem_free(l);
}

static void later_once(struct env_timer *timer)
{
    struct later once = *(struct later *)timer;
    later_free((struct later *)timer);
    once.fn(once.arg);
}

void kv_after(struct kv *kv, uint64_t ms, void (*fn)(void *arg), void *arg)
{
    struct later *l = mem_alloc(sizeof *l);
    later_init(l, kv, fn, arg);
    l->timer.fire = later_once;
    DL_APPEND(kv->world->laters, l);
    env_timer_start(kv->world->env, &l->timer, ms * MS);
}

/* ---- what a server says ---- */

static struct set *set_of(struct kv_world *w, uint32_t number)
{
    for (uint32_t i = 0; i < w->set_count; i++) {
        if (number - w->sets[i].first < w->sets[i].count) {
            return &w->sets[i];
        }
    }
    CHECK(!"a server of no set");
    return NULL;
}

static void saw_leader(struct kv *kv, uint32_t number, raft_term term)
{
    struct set *s = set_of(kv->world, number);
    if (term >= s->term_count) {
        s->leaders = mem_resize(s->leaders, (term + 1) * sizeof *s->leaders);
        memset(s->leaders + s->term_count, 0,
               (term + 1 - s->term_count) * sizeof *s->leaders);
        s->term_count = term + 1;
    }
    uint32_t *leader = &s->leaders[term];
    if (*leader == 0) {
        kv_note(kv, "n%u leads in term %" PRIu64, number, term);
    } else if (*leader != number + 1) {
        kv_fail(kv, "term %" PRIu64 " has 2 leaders: n%u and n%u", term,
                *leader - 1, number);
    }
    *leader = number + 1;
}

void world_problems(struct kv *kv)
{
    for (uint32_t i = 0; i < kv->world->server_count; i++) {
        if (kv->world->servers[i].problem[0] != '\0') {
            kv_fail(kv, "%s", kv->world->servers[i].problem);
        }
    }
    if (home_interrupted()) {
        kv_fail(kv, "interrupted");
    }
    if (kv_now_ms(kv) > KV_TEST_SECONDS_MAX * MS) {
        kv_fail(kv, "test took longer than %d seconds", KV_TEST_SECONDS_MAX);
    }
}

void world_look(void *arg)
{
    struct kv *kv = arg;
    struct kv_world *w = kv->world;
    process_hear_all(w->servers, w->server_count, 0);
    world_problems(kv);
    env_timer_start(w->env, &w->look.timer, WORLD_LOOK_US);
}

/* ---- the network ---- */

struct real_net world_net(const struct kv *kv, uint32_t number)
{
    return (struct real_net){.plan = kv->world->plan,
                             .cut = kv->world->cuts[number]};
}

static void tell_net(struct kv *kv, uint32_t first, uint32_t count)
{
    struct kv_world *w = kv->world;
    struct real_note note;
    for (uint32_t i = first; i < first + count; i++) {
        struct real_ask ask = {.kind = REAL_ASK_NET, .net = world_net(kv, i)};
        if (w->ready[i]) {
            process_tell(&w->servers[i], &ask);
        }
    }
    for (uint32_t i = first; i < first + count; i++) {
        if (w->ready[i]) {
            process_answer(&w->servers[i], REAL_DONE, &note);
        }
    }
}

/* What it was started with may be old by now. */
static void serves(struct kv *kv, uint32_t number)
{
    kv->world->ready[number] = true;
    tell_net(kv, number, 1);
}

void world_noted(struct process *p, const struct real_note *note)
{
    struct kv *kv = p->arg;
    switch (note->kind) {
    case REAL_READY: serves(kv, p->node.number); break;
    case REAL_LEADS: saw_leader(kv, p->node.number, note->term); break;
    default: break; /* an answer that came when it was dead */
    }
}

void kv_network(struct kv *kv, bool unreliable)
{
    struct kv_world *w = kv->world;
    w->plan.unreliable = unreliable;
    for (uint32_t i = 0; i < w->user_count; i++) {
        faultnet_set(w->users[i].faults, &w->plan);
    }
    tell_net(kv, 0, w->server_count);
}

static void set_cut(uint64_t *cuts, uint32_t number, bool cut)
{
    *cuts = (*cuts & ~(UINT64_C(1) << number)) | (uint64_t)cut << number;
}

void kv_partition(struct kv *kv, uint32_t group, uint32_t side)
{
    struct kv_world *w = kv->world;
    const struct set *s = &w->sets[group];
    kv_note(kv, "partition of group %u: %x", group, side);
    for (uint32_t a = 0; a < s->count; a++) {
        for (uint32_t b = 0; b < s->count; b++) {
            set_cut(&w->cuts[s->first + a], s->first + b,
                    (side >> a & 1) != (side >> b & 1));
        }
    }
    tell_net(kv, s->first, s->count);
}

void kv_connect_all(struct kv *kv)
{
    struct kv_world *w = kv->world;
    kv_note(kv, "all are connected");
    memset(w->cuts, 0, sizeof w->cuts);
    for (uint32_t i = 0; i < w->user_count; i++) {
        w->users[i].cut = 0;
    }
    tell_net(kv, 0, w->server_count);
}

void kv_client_reach(struct kv_client *c, uint32_t group, uint32_t servers)
{
    const struct set *s = &c->kv->world->sets[group];
    for (uint32_t i = 0; i < s->count; i++) {
        set_cut(&c->user->cut, s->first + i, (servers >> i & 1) == 0);
    }
}

void world_address(const struct kv_world *w, uint32_t number,
                   char address[NET_ADDRESS_SIZE_MAX])
{
    snprintf(address, NET_ADDRESS_SIZE_MAX, "127.0.0.1:%u", w->port + number);
}

void kv_address(const struct kv *kv, uint32_t group, uint32_t server,
                char address[NET_ADDRESS_SIZE_MAX])
{
    world_address(kv->world, kv->world->sets[group].first + server, address);
}

/* ---- lives ---- */

static uint32_t number_of(const struct kv *kv, uint32_t group, uint32_t server)
{
    CHECK(server < kv->world->sets[group].count);
    return kv->world->sets[group].first + server;
}

void kv_shutdown(struct kv *kv, uint32_t group, uint32_t server)
{
    uint32_t number = number_of(kv, group, server);
    if (!kv_failed(kv)) {
        kv_note(kv, "n%u is shut down", number);
        process_kill(&kv->world->servers[number]);
        kv->world->ready[number] = false;
    }
}

void kv_start(struct kv *kv, uint32_t group, uint32_t server)
{
    uint32_t number = number_of(kv, group, server);
    struct process *p = &kv->world->servers[number];
    if (!kv_failed(kv) && p->pid == 0) {
        kv_note(kv, "n%u starts", number);
        p->node.net = world_net(kv, number);
        process_start(p);
    }
}

/* ---- what a row asks ---- */

static bool ask(struct kv *kv, uint32_t number, enum real_ask_kind kind,
                struct real_state *state)
{
    struct process *p = &kv->world->servers[number];
    struct real_ask what = {.kind = kind};
    struct real_note note;
    *state = (struct real_state){0};
    if (kv_failed(kv) || !kv->world->ready[number]) {
        return false;
    }
    if (process_ask(p, &what, REAL_STATE, &note)) {
        *state = note.state;
    }
    world_problems(kv);
    return !kv_failed(kv);
}

int kv_leader_now(struct kv *kv, uint32_t group)
{
    const struct set *s = &kv->world->sets[group];
    raft_term term = 0;
    int leader = -1;
    for (uint32_t i = 0; i < s->count; i++) {
        struct real_state state;
        if (ask(kv, s->first + i, REAL_ASK_STATE, &state) && state.leader) {
            saw_leader(kv, s->first + i, state.term);
            leader = state.term > term ? (int)i : leader;
            term = state.term > term ? state.term : term;
        }
    }
    return leader;
}

void kv_sizes(struct kv *kv, uint32_t group, uint32_t server,
              struct kv_sizes *sizes)
{
    struct real_state state;
    uint32_t number = number_of(kv, group, server);
    ask(kv, number, REAL_ASK_SIZES, &state);
    *sizes = (struct kv_sizes){.log = state.log_size,
                               .snapshot = state.snapshot_size,
                               .stream = state.stream_size};
    kv_note(kv, "n%u has %zu bytes of log, %zu stored, %zu compressed", number,
            sizes->log, sizes->snapshot, sizes->stream);
}

void kv_count(struct kv *kv, struct kv_counts *counts)
{
    *counts = kv->world->counts;
    for (uint32_t i = 0; i < kv->world->server_count; i++) {
        const struct lab_counts *one = &kv->world->servers[i].counts->net;
        counts->requests += one->requests;
        counts->replies += one->replies;
        counts->bytes += one->bytes;
        counts->chunks += one->chunks;
    }
}
