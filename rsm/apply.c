/* Committed entries on their way through the state machine. Invariants:
 *
 *  1. applied <= submitted <= commit, except that submitted starts at what the
 *     state machine has on disk, which the core may not know as committed yet.
 *  2. The apply worker runs jobs in the order in which they were submitted: a
 *     job submitted when `submitted` is i runs on the state at i.
 *  3. A proposal belongs to its apply job from the match on: nobody else
 *     answers it.
 *  4. A follower lets committed entries wait for RSM_APPLY_LAZY_US, or for more
 *     of them: nobody waits for it, and waking a thread costs more than most
 *     entries. A leader lets none wait.
 *  5. What is not in memory any more is read from the disk, a piece at a time,
 *     and in order: nothing else is submitted meanwhile.
 *  6. Want of space takes `submitted` and `applied` back to `durable`
 *     (space.c); entries are then applied again, and nobody is answered twice.
 *  7. A few small entries are applied by the loop, when the worker has nothing
 *     else: that takes less than to wake it and to be woken.
 */
#include "base/check.h"
#include "rsm/rsm_int.h"

struct apply_job {
    struct env_job job;
    struct rsm *rsm;
    enum err rc;
    uint32_t count;
    uint64_t size, us, unsaved;
    struct rsm_entry *entries;
    struct bytes **data; /* references */
    struct rsm_proposal **proposals;
};

static void on_run(struct env_job *job)
{
    struct apply_job *j = (struct apply_job *)job;
    struct rsm_fsm *fsm = j->rsm->config.fsm;
    j->us = env_now_us(j->rsm->env);
    if (rsm_space_enter(j->rsm, &j->rc)) {
        j->rc = fsm->ops->apply(fsm, j->entries, j->count);
        rsm_space_leave(j->rsm, j->rc);
    }
    if (fsm->ops->unsaved != NULL) {
        j->unsaved = fsm->ops->unsaved(fsm);
    }
    j->us = env_now_us(j->rsm->env) - j->us;
}

static void answer(struct rsm *r, struct apply_job *j)
{
    for (uint32_t i = 0; i < j->count; i++) {
        struct rsm_proposal *p = j->proposals[i];
        if (p == NULL) {
            continue;
        }
        if (r->dead || j->rc != ERR_OK) {
            rsm_propose_fail(r, p, ERR_CLOSED);
            continue;
        }
        rsm_propose_over(r, p);
        struct buf reply = p->reply; /* done() may free the proposal */
        p->reply = (struct buf){0};
        p->done(p, ERR_OK, buf_slice(&reply));
        buf_free(&reply);
    }
}

static void job_free(struct apply_job *j)
{
    for (uint32_t i = 0; i < j->count; i++) {
        bytes_unref(j->data[i]);
    }
    mem_free(j->entries);
    mem_free(j->data);
    mem_free(j->proposals);
    mem_free(j);
}

static void on_done(struct env_job *job)
{
    struct apply_job *j = (struct apply_job *)job;
    struct rsm *r = j->rsm;
    r->apply_running--;
    rsm_checkpoint_busy(r, j->us);
    r->unsaved = j->unsaved;
    bool waits = j->rc == ERR_NOSPACE && r->config.fsm->ops->rewind != NULL;
    if (waits) {
        rsm_space_wait(r, RSM_SPACE_STORE);
    } else if (j->rc != ERR_OK) {
        rsm_die(r, j->rc, "applying an entry");
    } else {
        r->applied = j->entries[j->count - 1].index;
    }
    answer(r, j);
    if (!rsm_stopped(r) && !waits) {
        rsm_checkpoint_applied(r, r->applied, j->size);
        rsm_incoming_applied(r);
        rsm_leader_tell(r);
        if (r->config.on_applied != NULL) {
            r->config.on_applied(r->config.arg);
        }
        rsm_apply_pump(r);
    }
    job_free(j);
}

static struct apply_job *
make_job(struct rsm *r, const struct raft_entry *entries, uint32_t count)
{
    struct apply_job *j = mem_alloc(sizeof *j);
    j->job.run = on_run;
    j->job.done = on_done;
    j->rsm = r;
    j->count = count;
    j->entries = mem_array(count, sizeof *j->entries);
    j->data = mem_array(count, sizeof(struct bytes *));
    j->proposals = mem_array(count, sizeof(struct rsm_proposal *));
    for (uint32_t i = 0; i < count; i++) {
        const struct raft_entry *e = &entries[i];
        struct rsm_proposal *p = rsm_propose_match(r, e->index, e->term);
        j->data[i] = bytes_ref(e->data);
        j->size += bytes_slice(e->data).size + RSM_ENTRY_OVERHEAD;
        j->proposals[i] = p;
        j->entries[i] = (struct rsm_entry){
            .index = e->index,
            .term = e->term,
            .type = e->type,
            .command = e->type == RAFT_ENTRY_COMMAND ? bytes_slice(e->data)
                                                     : slice_of(NULL, 0),
            .reply = p != NULL ? &p->reply : NULL,
        };
    }
    return j;
}

static bool may_wait(struct rsm *r)
{
    if (r->leading || r->apply_due ||
        r->commit - r->submitted >= RSM_APPLY_LAZY_COUNT) {
        return false;
    }
    if (!r->apply_set) {
        r->apply_set = true;
        env_timer_start(r->env, &r->apply, RSM_APPLY_LAZY_US);
    }
    return true;
}

static bool may_submit(const struct rsm *r)
{
    return !rsm_stopped(r) && !r->installing && !r->space.apply_held &&
           r->submitted < r->commit && r->apply_running < RSM_APPLY_JOBS_MAX;
}

static void submit(struct rsm *r, const struct raft_entry *entries,
                   uint32_t count)
{
    CHECK(entries[0].index == r->submitted + 1);
    struct apply_job *j = make_job(r, entries, count);
    r->submitted += count;
    r->apply_running++;
    if (count <= RSM_BRIEF_APPLY_COUNT && j->size <= RSM_BRIEF_APPLY_SIZE) {
        env_worker_submit_brief(r->env, r->apply_worker, &j->job);
    } else {
        env_worker_submit(r->env, r->apply_worker, &j->job);
    }
}

static bool submit_next(struct rsm *r)
{
    if (!may_submit(r) || r->apply_loading || may_wait(r) ||
        rsm_checkpoint_holds(r)) {
        return false;
    }
    uint32_t count = 0;
    const struct raft_entry *entries =
        raft_entries(r->raft, r->submitted + 1, r->commit, RSM_APPLY_COUNT_MAX,
                     RSM_APPLY_SIZE_MAX, &count);
    if (count > 0) {
        submit(r, entries, count);
        return true;
    }
    struct raft_load load = {.first = r->submitted + 1,
                             .last = r->commit,
                             .size_max = RSM_APPLY_LOAD_SIZE};
    r->apply_loading = true;
    rsm_stored_load(r, &load);
    return false;
}

/* By now others may be next: the state was replaced, or has gone back. */
void rsm_apply_loaded(struct rsm *r, const struct raft_entry *entries,
                      uint32_t count)
{
    r->apply_loading = false;
    if (may_submit(r) && count > 0 && entries[0].index == r->submitted + 1) {
        submit(r, entries, count);
    }
    if (!rsm_stopped(r)) {
        rsm_apply_pump(r);
    }
}

void rsm_apply_pump(struct rsm *r)
{
    while (submit_next(r)) {
    }
    rsm_read_pump(r);
    rsm_checkpoint_pump(r);
}

static void on_timer(struct env_timer *t)
{
    struct rsm *r = (struct rsm *)((char *)t - offsetof(struct rsm, apply));
    r->apply_set = false;
    r->apply_due = true;
    rsm_apply_pump(r);
    r->apply_due = false;
}

void rsm_apply_init(struct rsm *r)
{
    r->apply.fire = on_timer;
}

void rsm_apply_close(struct rsm *r)
{
    env_timer_stop(r->env, &r->apply);
}
