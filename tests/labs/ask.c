/* What a row asks of the group: who leads, what is committed, agree on this. */
#include "tests/labs/group.h"

#include <inttypes.h>

#include "base/check.h"
#include "base/codec.h"
#include "raft/storage/wal_int.h"

#define MS UINT64_C(1000)

/* ---- leaders ---- */

raft_term lab_term(struct lab *l, uint32_t peer, bool *leader)
{
    struct lab_peer *p = &l->peers[peer];
    *leader = false;
    if (p->rsm == NULL) {
        return 0;
    }
    struct raft_status status;
    raft_status(rsm_raft(p->rsm), &status);
    *leader = rsm_is_leader(p->rsm);
    return status.term;
}

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
        lab_sleep(l, sim_between(&l->world, 450, 549));
        uint32_t leader = 0;
        if (newest_leader(l, &leader)) {
            return leader; /* one a term: see after_event() */
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

/* The same value and size are the same bytes. */
static struct bytes *command_of(uint64_t value, size_t size)
{
    CHECK(size >= LAB_COMMAND_SIZE);
    struct bytes *b = bytes_new(size);
    struct rng rng = {value};
    for (size_t i = LAB_COMMAND_SIZE; i < size; i++) {
        b->data[i] = (uint8_t)rng_next(&rng); /* nothing to compress */
    }
    set_u64(b->data, value);
    return b;
}

static struct lab_start *propose(struct lab *l, uint32_t peer, uint64_t value,
                                 size_t size)
{
    struct lab_peer *p = &l->peers[peer];
    if (lab_failed(l) || p->rsm == NULL || !rsm_is_leader(p->rsm)) {
        return NULL;
    }
    struct lab_start *s = mem_alloc(sizeof *s);
    s->next = l->starts;
    l->starts = s;
    s->proposal.done = on_answer;
    rsm_propose(p->rsm, &s->proposal, command_of(value, size));
    return s;
}

/* The core learns of it at the end of the turn of the peer's loop. */
static struct lab_begun await_index(struct lab *l, const struct lab_start *s)
{
    while (s != NULL && !s->answered && s->proposal.index == 0 &&
           sim_step(&l->world)) {
    }
    if (s == NULL || s->proposal.index == 0 ||
        (s->answered && s->proposal.rc != ERR_OK)) {
        return (struct lab_begun){0};
    }
    return (struct lab_begun){
        .ok = true, .index = s->proposal.index, .term = s->proposal.term};
}

void lab_begin_commands(struct lab *l, uint32_t peer, const uint64_t *values,
                        uint32_t count, struct lab_begun *begun)
{
    struct lab_start **starts = mem_array(count, sizeof(struct lab_start *));
    for (uint32_t i = 0; i < count; i++) {
        starts[i] = propose(l, peer, values[i], LAB_COMMAND_SIZE);
    }
    for (uint32_t i = 0; i < count; i++) {
        begun[i] = await_index(l, starts[i]);
    }
    mem_free(starts);
}

struct lab_begun lab_begin_command(struct lab *l, uint32_t peer, uint64_t value)
{
    return await_index(l, propose(l, peer, value, LAB_COMMAND_SIZE));
}

void lab_starts_free(struct lab *l)
{
    while (l->starts != NULL) {
        struct lab_start *s = l->starts;
        l->starts = s->next;
        mem_free(s);
    }
}

/* ---- what is committed ---- */

uint32_t lab_committed(const struct lab *l, raft_index index, uint64_t *value)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        count += index > 0 && l->peers[i].now.count >= index;
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
        struct lab_begun begun =
            await_index(l, propose(l, a->next_peer, a->value, a->size));
        if (begun.ok) {
            a->index = begun.index;
            a->tried_us = l->world.now_us;
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
    uint64_t now_us = l->world.now_us;
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
    a->begun_us = l->world.now_us;
    a->task.poll_ms = agreement_poll;
    lab_task_begin(l, &a->task);
}

raft_index lab_one_sized(struct lab *l, uint64_t value, size_t size,
                         uint32_t peers, bool retry)
{
    struct lab_agreement a = {
        .value = value, .size = size, .peers = peers, .retry = retry};
    lab_agreement_begin(l, &a);
    while (!a.done && !lab_failed(l)) {
        lab_sleep(l, LOOK_MS);
    }
    return a.done ? a.index : 0;
}

raft_index lab_one(struct lab *l, uint64_t value, uint32_t peers, bool retry)
{
    return lab_one_sized(l, value, LAB_COMMAND_SIZE, peers, retry);
}

/* ---- how much the log is ---- */

static size_t beginning_size(const struct raft_status *status)
{
    struct buf conf = {0};
    raft_conf_encode(&conf, &status->conf);
    size_t size = WAL_HEAD_SIZE + wal_record_size(sizeof(raft_id)) +
                  wal_record_size(conf.size);
    buf_free(&conf);
    return size;
}

size_t lab_log_size(const struct rsm *rsm)
{
    const struct raft *raft = rsm_raft(rsm);
    struct raft_status status;
    raft_status(raft, &status);
    uint32_t count = 0;
    const struct raft_entry *entries =
        raft_entries(raft, status.first_index, status.last_index, UINT32_MAX,
                     SIZE_MAX, &count);
    size_t size = beginning_size(&status);
    for (uint32_t i = 0; i < count; i++) {
        size += wal_record_size(bytes_slice(entries[i].data).size);
    }
    return size;
}

void lab_note_state_size(struct lab_peer *p)
{
    p->state_size = lab_log_size(p->rsm);
}

size_t lab_state_size(struct lab *l)
{
    size_t most = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        struct lab_peer *p = &l->peers[i];
        if (p->rsm != NULL) {
            lab_note_state_size(p);
        }
        most = p->state_size > most ? p->state_size : most;
    }
    return most;
}

static void count_file(void *arg, const char *name)
{
    (void)name;
    ++*(uint32_t *)arg;
}

uint32_t lab_state_files(struct lab *l)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < l->peer_count; i++) {
        struct disk *disk = sim_disk_seam(l->peers[i].disk);
        uint32_t count = 0;
        if (l->peers[i].rsm != NULL &&
            disk->ops->list(disk, "wal", count_file, &count) == ERR_OK) {
            most = count > most ? count : most;
        }
    }
    return most;
}
