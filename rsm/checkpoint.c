/* When the state machine goes to disk, and what of the log may go then.
 *
 *   begin (apply worker)       what was applied is frozen
 *   write (checkpoint worker)  and made durable, while applying goes on
 *   end (apply worker)
 *
 * Invariants:
 *
 *  1. The log is cut at or below `durable`: a restart finds all that the state
 *     machine has not stored. `durable` is what the state machine names when
 *     end() has run.
 *  2. It is never cut past the index of a snapshot that is on its way to a
 *     peer, which needs what follows it; but one that does not answer does not
 *     make the log grow: it gets a newer snapshot when it is back.
 *  3. About log_keep_size bytes stay, so that a follower that was away for a
 *     moment need not be sent a snapshot.
 *  4. For a follower that has just installed a snapshot, a leader keeps what it
 *     does not have yet, up to RSM_HOLD_FACTOR as much: else under load it
 * could need the next snapshot when it has this one, and so for ever.
 *  5. A disk that is too slow makes applying wait, when RSM_BACKLOG_FACTOR
 * times checkpoint_size_max were applied since the checkpoint began: what is
 * not durable is in memory. */
#include "base/check.h"
#include "rsm/rsm_int.h"

#include <string.h>

struct checkpoint_job {
    struct env_job job;
    struct rsm *rsm;
    bool steps; /* begin, write and end; else all at once */
    enum err rc;
    raft_index index;            /* durable now */
    uint64_t stall_us, write_us; /* how long the workers were at it */
};

static void add_mark(struct rsm *r, raft_index index)
{
    if (r->mark_count == r->mark_capacity) {
        r->mark_capacity = r->mark_capacity > 0 ? 2 * r->mark_capacity : 64;
        r->marks = mem_resize(r->marks, r->mark_capacity * sizeof *r->marks);
    }
    r->marks[r->mark_count++] =
        (struct rsm_mark){.index = index, .size = r->applied_size};
}

static void drop_marks(struct rsm *r, raft_index upto)
{
    uint32_t drop = 0;
    while (drop < r->mark_count && r->marks[drop].index <= upto) {
        drop++;
    }
    r->mark_count -= drop;
    if (r->mark_count > 0) {
        memmove(r->marks, r->marks + drop, r->mark_count * sizeof *r->marks);
    }
}

/* The last index with at least `size` bytes after it. */
static raft_index keep_from(const struct rsm *r, uint64_t size)
{
    raft_index index = 0;
    for (uint32_t i = 0; i < r->mark_count; i++) {
        if (r->applied_size - r->marks[i].size < size) {
            break;
        }
        index = r->marks[i].index;
    }
    return index;
}

void rsm_checkpoint_sent(struct rsm *r, raft_id peer)
{
    if (r->catching_count < RAFT_PEERS_MAX) {
        r->catching[r->catching_count++] = peer;
    }
}

void rsm_checkpoint_deposed(struct rsm *r)
{
    r->catching_count = 0;
}

/* What this one still needs; UINT64_MAX when it is near the end, or silent. */
static raft_index needed_by(const struct rsm *r, const struct raft_status *s,
                            raft_id id)
{
    for (uint32_t i = 0; i < s->peer_count; i++) {
        const struct raft_peer_status *p = &s->peers[i];
        if (p->id == id && p->active && !p->snapshot &&
            p->match < keep_from(r, r->config.log_keep_size)) {
            return p->match > r->compacted ? p->match : r->compacted;
        }
    }
    return UINT64_MAX;
}

/* Invariant 4. */
static raft_index hold_from(struct rsm *r)
{
    struct raft_status s;
    raft_index hold = UINT64_MAX;
    uint32_t kept = 0;
    raft_status(r->raft, &s);
    for (uint32_t i = 0; i < r->catching_count; i++) {
        raft_index needed = needed_by(r, &s, r->catching[i]);
        if (needed != UINT64_MAX) {
            r->catching[kept++] = r->catching[i];
            hold = needed < hold ? needed : hold;
        }
    }
    r->catching_count = kept;
    raft_index least =
        keep_from(r, (uint64_t)r->config.log_keep_size * RSM_HOLD_FACTOR);
    return hold > least ? hold : least;
}

static void compact(struct rsm *r)
{
    raft_index index = keep_from(r, r->config.log_keep_size);
    raft_index hold = r->catching_count > 0 ? hold_from(r) : UINT64_MAX;
    index = index < hold ? index : hold;
    raft_index oldest = rsm_outgoing_oldest(r);
    index = index < r->durable ? index : r->durable;
    index = index < oldest ? index : oldest;
    if (index <= r->compacted) {
        return;
    }
    raft_term term = 0;
    struct raft_conf conf;
    CHECK(raft_term_at(r->raft, index, &term));
    raft_conf_at(r->raft, index, &conf);
    raft_compact(r->raft, index);
    rsm_log_compact(r, index, term, &conf);
    r->compacted = index;
    drop_marks(r, index);
}

/* --- The steps */

static uint64_t now_us(const struct checkpoint_job *j)
{
    return env_now_us(j->rsm->env);
}

static void run_begin(struct env_job *job)
{
    struct checkpoint_job *j = (struct checkpoint_job *)job;
    struct rsm_fsm *fsm = j->rsm->config.fsm;
    uint64_t begun_us = now_us(j);
    raft_term term = 0;
    if (rsm_space_enter(j->rsm, &j->rc)) {
        j->rc = j->steps ? fsm->ops->checkpoint_begin(fsm)
                         : fsm->ops->checkpoint(fsm);
        rsm_space_leave(j->rsm, j->rc);
    }
    j->index = fsm->ops->durable(fsm, &term);
    j->stall_us = now_us(j) - begun_us;
}

static void run_write(struct env_job *job)
{
    struct checkpoint_job *j = (struct checkpoint_job *)job;
    struct rsm_fsm *fsm = j->rsm->config.fsm;
    j->write_us = now_us(j);
    (void)!fsm->ops->checkpoint_write(fsm); /* end() says how it went */
    j->write_us = now_us(j) - j->write_us;
}

static void run_end(struct env_job *job)
{
    struct checkpoint_job *j = (struct checkpoint_job *)job;
    struct rsm_fsm *fsm = j->rsm->config.fsm;
    uint64_t begun_us = now_us(j);
    raft_term term = 0;
    j->rc = fsm->ops->checkpoint_end(fsm);
    rsm_space_leave(j->rsm, j->rc);
    j->index = fsm->ops->durable(fsm, &term);
    j->stall_us += now_us(j) - begun_us;
}

static void finish(struct rsm *r, const struct checkpoint_job *j)
{
    uint64_t held_us = r->held_us != 0 ? env_now_us(r->env) - r->held_us : 0;
    rsm_samples_add(&r->stalls, j->stall_us + held_us);
    rsm_samples_add(&r->busies, r->busy_us);
    rsm_samples_add(&r->writes, j->write_us);
    r->held_us = r->busy_us = 0;
    if (r->installing) {
        return; /* the state that was written is being replaced */
    }
    CHECK(r->applied >= j->index);
    if (j->index > r->durable) {
        r->durable = j->index;
    }
    compact(r);
    rsm_space_found(r, RSM_SPACE_STORE);
    rsm_apply_pump(r);
}

static void on_done(struct env_job *job)
{
    struct checkpoint_job *j = (struct checkpoint_job *)job;
    struct rsm *r = j->rsm;
    r->checkpoint_running = false;
    if (j->rc == ERR_NOSPACE) {
        rsm_space_wait(r, RSM_SPACE_STORE);
    } else if (j->rc != ERR_OK) {
        rsm_die(r, j->rc, "a checkpoint");
    } else if (!rsm_stopped(r)) {
        finish(r, j);
    }
    mem_free(j);
}

static void submit(struct checkpoint_job *j, struct env_worker *worker,
                   void (*run)(struct env_job *),
                   void (*done)(struct env_job *))
{
    j->job = (struct env_job){.run = run, .done = done};
    env_worker_submit(j->rsm->env, worker, &j->job);
}

static void on_written(struct env_job *job)
{
    struct checkpoint_job *j = (struct checkpoint_job *)job;
    if (rsm_stopped(j->rsm)) {
        mem_free(j);
        return;
    }
    submit(j, j->rsm->apply_worker, run_end, on_done);
}

static void on_begun(struct env_job *job)
{
    struct checkpoint_job *j = (struct checkpoint_job *)job;
    if (rsm_stopped(j->rsm) || j->rc != ERR_OK || !j->steps) {
        on_done(job);
        return;
    }
    submit(j, j->rsm->checkpoint_worker, run_write, on_written);
}

static void begin(struct rsm *r)
{
    struct checkpoint_job *j = mem_alloc(sizeof *j);
    j->rsm = r;
    j->steps = r->config.fsm->ops->checkpoint_begin != NULL;
    r->checkpoint_size = r->applied_size;
    r->checkpoint_running = true;
    r->checkpoint_due = false;
    r->busy_us = 0;
    submit(j, r->apply_worker, run_begin, on_begun);
}

void rsm_checkpoint_busy(struct rsm *r, uint64_t us)
{
    if (r->checkpoint_running && us > r->busy_us) {
        r->busy_us = us;
    }
}

bool rsm_checkpoint_holds(struct rsm *r)
{
    uint64_t backlog = r->applied_size - r->checkpoint_size;
    if (!r->checkpoint_running ||
        backlog / RSM_BACKLOG_FACTOR < r->config.checkpoint_size_max) {
        return false;
    }
    if (r->held_us == 0) {
        r->held_us = env_now_us(r->env);
    }
    return true;
}

void rsm_checkpoint_pump(struct rsm *r)
{
    if (rsm_stopped(r) || r->checkpoint_running || r->installing ||
        r->space.checkpoint_held || r->applied <= r->durable) {
        return;
    }
    uint64_t size = r->applied_size - r->checkpoint_size;
    if (r->checkpoint_due || size >= r->config.checkpoint_size_max) {
        begin(r);
    } else if (!r->checkpoint_set) {
        r->checkpoint_set = true;
        env_timer_start(r->env, &r->checkpoint,
                        r->config.checkpoint_ms_max * UINT64_C(1000));
    }
}

void rsm_checkpoint_applied(struct rsm *r, raft_index index, uint64_t size)
{
    uint64_t step = r->config.log_keep_size / 16;
    step = step < RSM_MARK_SIZE ? step : RSM_MARK_SIZE;
    if (r->mark_count > 0 && index <= r->marks[r->mark_count - 1].index) {
        return; /* applied again (space.c) */
    }
    r->applied_size += size;
    if (r->mark_count == 0 ||
        r->applied_size - r->marks[r->mark_count - 1].size >= step) {
        add_mark(r, index);
    }
}

/* Else the log would be cut only when log_keep_size bytes have been applied
 * since the restart, and restarts would make it grow. */
void rsm_checkpoint_recovered(struct rsm *r, const struct wal_recovery *rec)
{
    for (uint32_t i = 0; i < rec->entry_count; i++) {
        const struct raft_entry *e = &rec->entries[i];
        if (e->index <= r->durable) {
            rsm_checkpoint_applied(
                r, e->index, bytes_slice(e->data).size + RSM_ENTRY_OVERHEAD);
        }
    }
    r->checkpoint_size = r->applied_size;
}

static void on_timer(struct env_timer *t)
{
    struct rsm *r =
        (struct rsm *)((char *)t - offsetof(struct rsm, checkpoint));
    r->checkpoint_set = false;
    r->checkpoint_due = true;
    rsm_checkpoint_pump(r);
}

void rsm_checkpoint_installed(struct rsm *r, raft_index index)
{
    r->durable = index;
    r->compacted = index;
    r->checkpoint_size = r->applied_size;
    r->mark_count = 0;
}

void rsm_checkpoint_init(struct rsm *r)
{
    r->checkpoint.fire = on_timer;
}

void rsm_checkpoint_close(struct rsm *r)
{
    env_timer_stop(r->env, &r->checkpoint);
}
