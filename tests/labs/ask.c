/* What a row asks of the group: who leads, what is committed, agree on this;
 * and what goes on beside the row. The same for both harnesses. */
#include "tests/labs/group.h"

#include <inttypes.h>
#include <string.h>

#define MS UINT64_C(1000)

/* ---- chance, time, and what goes on beside ---- */

uint64_t lab_random(struct lab *l)
{
    return rng_next(l->rng);
}

bool lab_chance(struct lab *l, uint32_t per_mille)
{
    return rng_chance(l->rng, per_mille);
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
    while (*at != NULL && *at != task) {
        at = &(*at)->next;
    }
    if (*at == task) {
        *at = task->next;
    }
}

static void task_poll(struct lab *l, struct lab_task *task)
{
    lab_run_to(l, task->due_us);
    uint64_t again_ms = task->poll_ms(task);
    if (again_ms == 0 || lab_failed(l)) {
        task_remove(l, task);
    } else {
        task->due_us = lab_now_us(l) + again_ms * MS;
    }
}

void lab_sleep_us(struct lab *l, uint64_t us)
{
    uint64_t end_us = lab_now_us(l) + us;
    while (!lab_failed(l)) {
        struct lab_task *task = first_due(l, end_us);
        if (task == NULL) {
            break;
        }
        task_poll(l, task);
    }
    lab_run_to(l, end_us);
}

void lab_sleep(struct lab *l, uint64_t ms)
{
    lab_sleep_us(l, ms * MS);
}

void lab_task_begin(struct lab *l, struct lab_task *task)
{
    task->due_us = lab_now_us(l);
    task->next = l->tasks;
    l->tasks = task;
}

/* ---- leaders ---- */

/* Of those that are connected, the leader of the newest term. */
static bool newest_leader(struct lab *l, uint32_t *peer)
{
    raft_term newest = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        bool leader = false;
        raft_term term = lab_term(l, i, &leader);
        if (l->peers[i].connected && leader && term > newest) {
            newest = term;
            *peer = i;
        }
    }
    return newest > 0;
}

uint32_t lab_one_leader(struct lab *l)
{
    for (int i = 0; i < 10 && !lab_failed(l); i++) {
        lab_sleep(l, rng_between(l->rng, 450, 549));
        uint32_t leader = 0;
        if (newest_leader(l, &leader)) {
            return leader; /* one a term: see lab_saw_leader() */
        }
    }
    lab_fail(l, "expected one leader, got none");
    return 0;
}

void lab_no_leader(struct lab *l)
{
    uint32_t leader = 0;
    if (newest_leader(l, &leader)) {
        lab_fail(l,
                 "expected no leader among connected servers, but %u claims to "
                 "be leader",
                 leader);
    }
}

raft_term lab_same_term(struct lab *l)
{
    raft_term agreed = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        bool leader = false;
        raft_term term = lab_term(l, i, &leader);
        if (l->peers[i].connected) {
            if (agreed != 0 && term != agreed) {
                lab_fail(l, "servers disagree on term");
            }
            agreed = term;
        }
    }
    return agreed;
}

/* ---- Start() ---- */

struct lab_begun lab_begin_command(struct lab *l, uint32_t peer, uint64_t value)
{
    struct lab_begun begun;
    lab_begin_sized(l, peer, &value, 1, LAB_COMMAND_SIZE, &begun);
    return begun;
}

void lab_begin_commands(struct lab *l, uint32_t peer, const uint64_t *values,
                        uint32_t count, struct lab_begun *begun)
{
    lab_begin_sized(l, peer, values, count, LAB_COMMAND_SIZE, begun);
}

/* ---- what is committed ---- */

uint32_t lab_committed(const struct lab *l, raft_index index, uint64_t *value)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        count += index > 0 && l->peers[i].applied >= index;
    }
    if (count > 0) {
        *value = l->decided.entries[index - 1].value;
    }
    return count;
}

static bool moved_on(struct lab *l, raft_term term)
{
    for (uint32_t i = 0; i < l->peer_count; i++) {
        bool leader = false;
        if (lab_term(l, i, &leader) > term) {
            return true;
        }
    }
    return false;
}

bool lab_wait(struct lab *l, raft_index index, uint32_t peers, raft_term term,
              uint64_t *value)
{
    uint64_t pause_ms = 10;
    for (int i = 0; i < 30 && lab_committed(l, index, value) < peers; i++) {
        lab_sleep(l, pause_ms);
        pause_ms = pause_ms < 1000 ? 2 * pause_ms : pause_ms;
        if (lab_failed(l) || (term > 0 && moved_on(l, term))) {
            return false;
        }
    }
    uint32_t count = lab_committed(l, index, value);
    if (count < peers) {
        lab_fail(l, "only %u decided for index %" PRIu64 "; wanted %u", count,
                 index, peers);
    }
    return true;
}

/* ---- one() ---- */

enum { TRY_MS = 2000, ALL_MS = 10000, LOOK_MS = 20, PAUSE_MS = 50 };

static void agreement_try(struct lab_agreement *a)
{
    struct lab *l = a->lab;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        a->next_peer = (a->next_peer + 1) % l->peer_count;
        if (!l->peers[a->next_peer].connected) {
            continue;
        }
        struct lab_begun begun;
        lab_begin_sized(l, a->next_peer, &a->value, 1, a->size, &begun);
        if (begun.ok) {
            a->index = begun.index;
            a->tried_us = lab_now_us(l);
            return;
        }
    }
}

static bool agreement_reached(const struct lab_agreement *a)
{
    uint64_t value = 0;
    uint32_t count = lab_committed(a->lab, a->index, &value);
    return count > 0 && count >= a->peers && value == a->value;
}

static uint64_t agreement_poll(struct lab_task *task)
{
    struct lab_agreement *a = (struct lab_agreement *)task;
    struct lab *l = a->lab;
    uint64_t now_us = lab_now_us(l);
    if (a->tried_us != 0) {
        a->done = agreement_reached(a);
        if (a->done || now_us - a->tried_us < TRY_MS * MS) {
            return a->done ? 0 : LOOK_MS;
        }
        a->tried_us = 0;
    }
    if (now_us - a->begun_us >= ALL_MS * MS || (!a->retry && a->index != 0)) {
        lab_fail(l, "one(%" PRIu64 ") failed to reach agreement by %u servers",
                 a->value, a->peers);
        return 0;
    }
    agreement_try(a);
    return a->tried_us != 0 ? LOOK_MS : PAUSE_MS;
}

void lab_agreement_begin(struct lab *l, struct lab_agreement *a)
{
    a->lab = l;
    a->begun_us = lab_now_us(l);
    a->task.poll_ms = agreement_poll;
    lab_task_begin(l, &a->task);
}

raft_index lab_one_sized(struct lab *l, uint64_t value, size_t size,
                         uint32_t peers, bool retry)
{
    struct lab_agreement *a = mem_alloc(sizeof *a);
    *a = (struct lab_agreement){
        .value = value, .size = size, .peers = peers, .retry = retry};
    lab_agreement_begin(l, a);
    while (!a->done && !lab_failed(l)) {
        lab_sleep(l, LOOK_MS);
    }
    raft_index index = a->done ? a->index : 0;
    task_remove(l, &a->task);
    mem_free(a);
    return index;
}

raft_index lab_one(struct lab *l, uint64_t value, uint32_t peers, bool retry)
{
    return lab_one_sized(l, value, LAB_COMMAND_SIZE, peers, retry);
}

/* ---- what must always hold ---- */

static bool entry_same(const struct lab_entry *a, const struct lab_entry *b)
{
    return a->value == b->value && a->crc == b->crc && a->type == b->type;
}

void lab_saw_applied(struct lab *l, uint32_t peer, raft_index index,
                     const struct lab_entry *entry)
{
    if (index > l->decided.count) {
        if (index != l->decided.count + 1) {
            lab_fail(l,
                     "server %u applies index %" PRIu64
                     ", and nobody has applied %" PRIu64,
                     peer, index, index - 1);
            return;
        }
        lab_log_add(&l->decided, *entry);
    } else if (!entry_same(&l->decided.entries[index - 1], entry)) {
        lab_fail(l,
                 "commit index=%" PRIu64 " server=%u %" PRIu64 " != %" PRIu64
                 " that was applied there before",
                 index, peer, entry->value,
                 l->decided.entries[index - 1].value);
    }
}

void lab_saw_leader(struct lab *l, uint32_t peer, raft_term term)
{
    if (term >= l->term_count) {
        raft_term count = 2 * term + 64;
        l->leaders = mem_resize(l->leaders, count * sizeof *l->leaders);
        memset(l->leaders + l->term_count, 0,
               (count - l->term_count) * sizeof *l->leaders);
        l->term_count = count;
    }
    raft_id *leader = &l->leaders[term];
    if (*leader == 0) {
        *leader = peer + 1;
    } else if (*leader != peer + 1) {
        lab_fail(l, "term %" PRIu64 " has 2 leaders: n%" PRIu64 " and n%u",
                 term, *leader - 1, peer);
    }
}

/* ---- the labs' line ---- */

uint64_t lab_rpcs(struct lab *l)
{
    struct lab_counts c;
    lab_count(l, &c);
    return c.requests > c.replies ? c.requests : c.replies;
}

void lab_report(struct lab *l)
{
    struct lab_run *run = l->run;
    struct lab_counts c;
    uint64_t time_us = lab_now_us(l) - l->begun_us;
    if (time_us > LAB_TEST_SECONDS_MAX * 1000 * MS) {
        lab_fail(l, "test took longer than %d seconds", LAB_TEST_SECONDS_MAX);
    }
    lab_count(l, &c);
    run->seconds = (double)time_us / 1e6;
    run->peers = l->peer_count;
    run->rpcs = lab_rpcs(l);
    run->bytes = c.bytes;
    run->entries = l->decided.count;
}

void lab_free(struct lab *l)
{
    lab_log_fini(&l->decided);
    mem_free(l->leaders);
}
