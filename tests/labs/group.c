#include "tests/labs/group.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/codec.h"

#define MS UINT64_C(1000)

enum {
    GROUP = 1,
    TEST_SECONDS_MAX = 120,
    /* What an entry of 8 bytes counts in rsm/checkpoint.c. */
    ENTRY_SIZE = 64 + LAB_COMMAND_SIZE,
    /* Small: a log fills its segment with zeros ahead of what it writes. */
    SEGMENT_SIZE = 32768,
    SEGMENT_SIZE_SMALL = 4096,
};

enum { SPEEDS = 3 };

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
    char words[sizeof l->world.failure];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    sim_fail(&l->world, "%s", words);
}

bool lab_failed(const struct lab *l)
{
    return l->world.failed;
}

uint64_t lab_random(struct lab *l)
{
    return rng_next(&l->world.rng);
}

/* Moves the world to `end_us`, exactly. */
static void run_to(struct lab *l, uint64_t end_us)
{
    struct sim_world *w = &l->world;
    while (!w->failed && w->count > 0 && w->heap[0]->time_us <= end_us) {
        sim_step(w);
    }
    if (!w->failed && w->now_us < end_us) {
        w->now_us = end_us;
    }
}

static struct lab_task *first_due(struct lab *l, uint64_t end_us)
{
    struct lab_task *first = NULL;
    for (struct lab_task *t = l->tasks; t != NULL; t = t->next) {
        if (t->due_us <= end_us &&
            (first == NULL || t->due_us < first->due_us)) {
            first = t;
        }
    }
    return first;
}

static void task_remove(struct lab *l, struct lab_task *task)
{
    struct lab_task **at = &l->tasks;
    while (*at != task) {
        at = &(*at)->next;
    }
    *at = task->next;
}

static void task_poll(struct lab *l, struct lab_task *task)
{
    run_to(l, task->due_us);
    uint64_t again_ms = task->poll_ms(task);
    if (again_ms == 0 || lab_failed(l)) {
        task_remove(l, task);
    } else {
        task->due_us = l->world.now_us + again_ms * MS;
    }
}

void lab_sleep_us(struct lab *l, uint64_t us)
{
    uint64_t end_us = l->world.now_us + us;
    while (!lab_failed(l)) {
        struct lab_task *task = first_due(l, end_us);
        if (task == NULL) {
            break;
        }
        task_poll(l, task);
    }
    run_to(l, end_us);
}

void lab_sleep(struct lab *l, uint64_t ms)
{
    lab_sleep_us(l, ms * MS);
}

void lab_task_begin(struct lab *l, struct lab_task *task)
{
    task->due_us = l->world.now_us;
    task->next = l->tasks;
    l->tasks = task;
}

/* ---- the state machine: a list, and checkLogs ---- */

static void log_add(struct lab_log *log, struct lab_entry entry)
{
    if (log->count == log->capacity) {
        log->capacity = log->capacity == 0 ? 64 : 2 * log->capacity;
        log->entries =
            mem_resize(log->entries, log->capacity * sizeof *log->entries);
    }
    log->entries[log->count++] = entry;
}

static void log_copy(struct lab_log *to, const struct lab_log *from)
{
    to->count = 0;
    for (raft_index i = 0; i < from->count; i++) {
        log_add(to, from->entries[i]);
    }
    to->term = from->term;
}

static void log_fini(struct lab_log *log)
{
    mem_free(log->entries);
    *log = (struct lab_log){0};
}

static struct lab_peer *peer_of(struct rsm_fsm *fsm)
{
    return (struct lab_peer *)((char *)fsm - offsetof(struct lab_peer, fsm));
}

static raft_index fsm_durable(struct rsm_fsm *fsm, raft_term *term)
{
    struct lab_peer *p = peer_of(fsm);
    *term = p->stored.term;
    return p->stored.count;
}

static struct lab_entry entry_of(const struct rsm_entry *e)
{
    struct lab_entry entry = {.type = e->type, .value = e->term};
    if (e->type == RAFT_ENTRY_COMMAND) {
        entry.value = get_u64(e->command.data);
        entry.crc = crc32c(0, e->command);
    }
    return entry;
}

static bool entry_same(const struct lab_entry *a, const struct lab_entry *b)
{
    return a->value == b->value && a->crc == b->crc && a->type == b->type;
}

/* The labs' checkLogs(), against all that was ever applied anywhere. */
static void check_entry(struct lab *l, const struct lab_peer *p,
                        raft_index index, const struct lab_entry *entry)
{
    if (index > l->decided.count) {
        CHECK(index == l->decided.count + 1);
        log_add(&l->decided, *entry);
    } else if (!entry_same(&l->decided.entries[index - 1], entry)) {
        lab_fail(l,
                 "commit index=%" PRIu64 " server=%u %" PRIu64 " != %" PRIu64
                 " that was applied there before",
                 index, p->number, entry->value,
                 l->decided.entries[index - 1].value);
    }
}

static enum err fsm_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                          uint32_t count)
{
    struct lab_peer *p = peer_of(fsm);
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
        struct lab_entry entry = entry_of(e);
        check_entry(p->lab, p, e->index, &entry);
        log_add(&p->now, entry);
        p->now.term = e->term;
    }
    return ERR_OK;
}

static enum err fsm_checkpoint(struct rsm_fsm *fsm)
{
    struct lab_peer *p = peer_of(fsm);
    if (p->env.dead) {
        return ERR_CLOSED;
    }
    log_copy(&p->stored, &p->now);
    return ERR_OK;
}

static enum err fsm_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct lab_log *copy = mem_alloc(sizeof *copy);
    log_copy(copy, &peer_of(fsm)->now);
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
    log_fini(view);
    mem_free(view);
}

static enum err read_log(struct snap_source *source, struct lab_log *log)
{
    for (;;) {
        struct lab_entry entry;
        size_t got = 0;
        enum err rc = source->read(source, &entry, sizeof entry, &got);
        if (rc != ERR_OK || got == 0) {
            return rc;
        }
        if (got != sizeof entry) {
            return ERR_CORRUPT;
        }
        log_add(log, entry);
    }
}

static enum err fsm_snap_install(struct rsm_fsm *fsm,
                                 struct snap_source *source, raft_index index,
                                 raft_term term)
{
    struct lab_peer *p = peer_of(fsm);
    struct lab *l = p->lab;
    struct lab_log log = {.term = term};
    enum err rc = read_log(source, &log);
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
            check_entry(l, p, i, &log.entries[i - 1]);
        }
        log_copy(&p->now, &log);
        log_copy(&p->stored, &log);
        l->installs++;
    }
    log_fini(&log);
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
    if (letter->reply || letter->method != RSM_METHOD_RAFT) {
        return letter->reply;
    }
    uint8_t type = letter->body.data[0];
    return type == RAFT_MSG_PREVOTE_REPLY || type == RAFT_MSG_VOTE_REPLY ||
           type == RAFT_MSG_APPEND_REPLY;
}

/* That the log did not fit, not that the leader's term is old. */
static bool is_refusal(const struct sim_letter *letter)
{
    struct arena arena = {0};
    struct raft_msg m;
    if (letter->method != RSM_METHOD_RAFT ||
        letter->body.data[0] != RAFT_MSG_APPEND_REPLY ||
        raft_msg_decode(letter->body, &arena, &m) != ERR_OK) {
        return false;
    }
    return m.reject && m.log_index > 0;
}

static void count(struct lab *l, const struct sim_letter *letter, bool reply)
{
    l->bytes += letter->body.size;
    l->requests += !reply;
    l->replies += reply;
    l->refusals += reply && is_refusal(letter);
    l->chunks += !reply && letter->method == RSM_METHOD_SNAP;
}

static bool is_slow(const struct lab *l)
{
    return (l->options & LAB_SLOW) != 0 && l->run->seed / 2 % 2 == 0;
}

/* A connection that loses nothing keeps the order. */
static uint64_t after_the_last(struct lab *l, const struct sim_letter *letter,
                               uint64_t delay_us)
{
    uint64_t *last_us = &l->arrives_us[letter->from][letter->to];
    uint64_t at_us = l->world.now_us + delay_us;
    *last_us = at_us > *last_us ? at_us : *last_us + 1;
    return *last_us - l->world.now_us;
}

static bool fate(void *arg, const struct sim_letter *letter, uint64_t *delay_us)
{
    struct lab *l = arg;
    struct sim_world *w = &l->world;
    bool reply = is_reply(letter);
    count(l, letter, reply);
    if (!l->peers[letter->from].connected || !l->peers[letter->to].connected ||
        (l->unreliable && sim_chance(w, 100))) {
        return false;
    }
    *delay_us = sim_delay(w, 20, 500);
    if (!reply && l->unreliable) {
        *delay_us += sim_between(w, 0, 26 * MS);
    } else if (!reply && is_slow(l)) {
        *delay_us += sim_between(w, 0, 5 * MS);
    }
    if (!l->unreliable) {
        *delay_us = after_the_last(l, letter, *delay_us);
    }
    if (l->long_reordering && reply && sim_chance(w, 667)) {
        uint64_t most_ms = sim_between(w, 1, 2000);
        *delay_us += (200 + sim_between(w, 0, most_ms)) * MS;
    }
    return true;
}

uint64_t lab_rpcs(const struct lab *l)
{
    return l->requests > l->replies ? l->requests : l->replies;
}

/* ---- lives ---- */

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    struct lab_peer *p = arg;
    rsm_handle(p->rsm, request, peer, method, body);
}

static void peer_down(void *arg, const char *address)
{
    struct lab_peer *p = arg;
    rsm_peer_down(p->rsm, address);
}

static struct rsm_config config_of(struct lab_peer *p)
{
    struct lab *l = p->lab;
    struct rsm_config config = {
        .env = &p->env.env,
        .net = p->net,
        .disk = sim_disk_seam(p->disk),
        .fsm = &p->fsm,
        .group = GROUP,
        .id = p->number + 1,
        .peer_count = l->peer_count,
        .no_noop = !l->noop,
        .checkpoint_ms_max = UINT32_MAX,
        .checkpoint_size_max = SIZE_MAX,
        .wal_segment_size = SEGMENT_SIZE,
    };
    for (uint32_t i = 0; i < l->peer_count; i++) {
        config.peers[i].id = i + 1;
        sim_net_address(i, config.peers[i].address);
    }
    if (is_slow(l) && !l->unreliable) {
        config.append_size_max = 1; /* where messages overtake: too dear */
    }
    if ((l->options & LAB_SNAPSHOTS) != 0) {
        config.checkpoint_size_max = LAB_SNAPSHOT_INTERVAL * ENTRY_SIZE;
        /* As the labs, nothing; or as what ships, a little. */
        bool keep = l->run->seed / 2 % 2 == 0;
        config.log_keep_size = keep ? LAB_SNAPSHOT_INTERVAL * ENTRY_SIZE : 1;
        config.wal_segment_size = SEGMENT_SIZE_SMALL;
        config.log_hold_size = 1; /* who is behind is sent a snapshot */
    }
    return config;
}

static void peer_start(struct lab_peer *p)
{
    sim_trace(&p->lab->world, "n%u starts", p->number);
    sim_env_start(&p->env);
    log_copy(&p->now, &p->stored);
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
}

static void peer_end(struct lab_peer *p)
{
    if (p->rsm == NULL) {
        return;
    }
    lab_note_state_size(p);
    sim_env_kill(&p->env);
    rsm_free(p->rsm);
    p->rsm = NULL;
    sim_net_bury(p->lab->wire, p->number);
    sim_env_bury(&p->env);
    p->now.count = 0;
}

void lab_crash(struct lab *l, uint32_t peer)
{
    struct lab_peer *p = &l->peers[peer];
    lab_disconnect(l, peer);
    if (p->rsm != NULL && !lab_failed(l)) {
        sim_trace(&l->world, "n%u dies", p->number);
        peer_end(p);
        sim_disk_crash(p->disk);
    }
}

void lab_start1(struct lab *l, uint32_t peer)
{
    lab_crash(l, peer);
    if (!lab_failed(l)) {
        peer_start(&l->peers[peer]);
    }
}

void lab_connect(struct lab *l, uint32_t peer)
{
    sim_trace(&l->world, "n%u is connected", peer);
    l->peers[peer].connected = true;
}

void lab_disconnect(struct lab *l, uint32_t peer)
{
    sim_trace(&l->world, "n%u is disconnected", peer);
    l->peers[peer].connected = false;
}

/* ---- after each event ---- */

static void check_leader(struct lab *l, const struct lab_peer *p)
{
    struct raft_status status;
    raft_status(rsm_raft(p->rsm), &status);
    if (status.term >= l->term_count) {
        raft_term count = 2 * status.term + 64;
        l->leaders = mem_resize(l->leaders, count * sizeof *l->leaders);
        memset(l->leaders + l->term_count, 0,
               (count - l->term_count) * sizeof *l->leaders);
        l->term_count = count;
    }
    raft_id *leader = &l->leaders[status.term];
    if (*leader == 0) {
        sim_trace(&l->world, "n%u leads term %" PRIu64, p->number, status.term);
        *leader = status.id;
    } else if (*leader != status.id) {
        lab_fail(l, "term %" PRIu64 " has 2 leaders: n%" PRIu64 " and n%u",
                 status.term, *leader - 1, p->number);
    }
}

static void after_event(void *arg, struct sim_env *env)
{
    struct lab *l = arg;
    struct lab_peer *p = env != NULL ? &l->peers[env->node] : NULL;
    if (p == NULL || p->rsm == NULL) {
        return;
    }
    if (env->dying) {
        lab_fail(l, "server %u stopped without cause: %s", p->number,
                 env->words);
    } else if (rsm_is_leader(p->rsm)) {
        check_leader(l, p);
    }
}

/* ---- begin and end ---- */

static void peer_init(struct lab *l, uint32_t number)
{
    struct lab_peer *p = &l->peers[number];
    p->lab = l;
    p->number = number;
    p->fsm.ops = &fsm_ops;
    sim_env_init(&p->env, &l->world, number);
    p->env.rate_ppm = (uint32_t)sim_between(&l->world, 995000, 1005000);
    p->env.speeds = is_slow(l) ? slow_speeds : speeds;
    p->env.speed_count = SPEEDS;
    p->net = sim_net_add(l->wire, &p->env, NET_ROLE_SERVER, GROUP, "server");
    p->disk = sim_disk_new(&p->env);
}

void lab_begin(struct lab *l, struct lab_run *run, uint32_t peer_count,
               unsigned options)
{
    CHECK(peer_count <= LAB_PEERS_MAX);
    *l = (struct lab){.run = run,
                      .peer_count = peer_count,
                      .options = options,
                      .unreliable = (options & LAB_UNRELIABLE) != 0};
    l->noop = (options & LAB_EXACT) == 0 && run->seed % 2 == 0;
    sim_world_init(&l->world, run->seed, run->verbose);
    l->world.after = after_event;
    l->world.after_arg = l;
    l->wire = sim_wire_new(&l->world);
    sim_wire_set_fate(l->wire, fate, l);
    sim_trace(&l->world, "seed %" PRIu64 ", %s", run->seed,
              l->noop ? "a no-op begins each term" : "no no-ops");
    for (uint32_t i = 0; i < peer_count; i++) {
        peer_init(l, i);
    }
    for (uint32_t i = 0; i < peer_count; i++) {
        peer_start(&l->peers[i]);
        lab_connect(l, i);
    }
    l->begun_us = l->world.now_us;
}

static void report(struct lab *l)
{
    struct lab_run *run = l->run;
    run->failed = l->world.failed;
    memcpy(run->failure, l->world.failure, sizeof run->failure);
    run->hash = l->world.hash;
    run->seconds = (double)(l->world.now_us - l->begun_us) / 1e6;
    run->peers = l->peer_count;
    run->rpcs = lab_rpcs(l);
    run->bytes = l->bytes;
    run->entries = l->decided.count;
    if (run->failed && run->tail) {
        sim_print_tail(&l->world);
    }
}

void lab_end(struct lab *l)
{
    if (l->world.now_us - l->begun_us > TEST_SECONDS_MAX * 1000 * MS) {
        lab_fail(l, "test took longer than %d seconds", TEST_SECONDS_MAX);
    }
    for (uint32_t i = 0; i < l->peer_count; i++) {
        peer_end(&l->peers[i]);
        sim_disk_free(l->peers[i].disk);
        log_fini(&l->peers[i].now);
        log_fini(&l->peers[i].stored);
    }
    report(l);
    lab_starts_free(l);
    log_fini(&l->decided);
    mem_free(l->leaders);
    sim_world_fini(&l->world);
    sim_wire_free(l->wire);
}
