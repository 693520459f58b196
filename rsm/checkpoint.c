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
 *  2. While there is room on the disk, it is never cut past the index of a
 *     snapshot that is on its way to a peer: the peer needs what follows. A
 *     stream whose log is cut all the same (its peer has been silent while
 *     RSM_HOLD_FACTOR times log_keep_size was written, or the disk is nearly
 *     full) ends there and then: it never lands where the log no longer is.
 *  3. About log_keep_size bytes stay, so that a follower that was away for a
 *     moment need not be sent a snapshot.
 *  4. A leader keeps what a follower does not have yet, with the same bounds:
 *     one that is slow, or has installed a snapshot just now, could need the
 *     next one else before it is there, and so for ever. What is kept is on the
 *     disk; of the log in memory nothing but the end is (raft_evict).
 *  5. What is not durable is in memory: a checkpoint is made when
 *     checkpoint_size_max bytes of the log were applied, and also when the
 *     state machine has half as much again unsaved: a small change of a value
 *     may take much more memory than of the log.
 *  6. A disk that is too slow makes applying wait, when four times that of the
 *     log came since the checkpoint began, or twice that unsaved; on a
 *     follower, for which nobody waits, once that.
 *  7. A full disk keeps nothing that is durable but what a follower that
 *     answers does not have, log_keep_size bytes of that at most; and when that
 *     has not given it space in ten seconds, not even that. A segment of which
 *     nothing is needed is given back, also the last one. */
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

static raft_index lower(raft_index a, raft_index b)
{
    return a < b ? a : b;
}

static raft_index higher(raft_index a, raft_index b)
{
    return a > b ? a : b;
}

/* Invariant 4, of those that answer and of those that do not. */
static void needed_by_followers(struct rsm *r, raft_index *active,
                                raft_index *silent)
{
    struct raft_status s;
    raft_status(r->raft, &s);
    if (s.role != RAFT_LEADER) {
        *silent = r->compacted; /* we may lead next, and do not know */
    }
    for (uint32_t i = 0; i < s.peer_count; i++) {
        const struct raft_peer_status *p = &s.peers[i];
        raft_index *to = p->active ? active : silent;
        if (!p->snapshot) {
            *to = lower(*to, p->match > r->compacted ? p->match : r->compacted);
        }
    }
}

/* From where on others need the log (2 and 4). */
static raft_index hold_from(struct rsm *r)
{
    raft_index active = UINT64_MAX;
    raft_index silent = rsm_outgoing_oldest(r, true);
    needed_by_followers(r, &active, &silent);
    uint64_t size = (uint64_t)r->config.log_keep_size * RSM_HOLD_FACTOR;
    uint64_t limit = r->config.log_hold_size;
    active = higher(active, keep_from(r, limit));
    silent = higher(silent, keep_from(r, size < limit ? size : limit));
    raft_index streams = rsm_outgoing_oldest(r, false);
    return rsm_space_is_tight(r) ? UINT64_MAX
                                 : lower(streams, lower(active, silent));
}

/* What of the durable log a full disk keeps all the same (7). */
static raft_index squeeze_to(struct rsm *r)
{
    raft_index active = rsm_outgoing_oldest(r, false);
    raft_index silent = UINT64_MAX;
    needed_by_followers(r, &active, &silent);
    return rsm_space_is_patient(r) ? lower(active, r->durable) : r->durable;
}

/* From memory goes all that is durable but for the end; from the disk what
 * nobody needs. */
static void compact(struct rsm *r)
{
    raft_index index = keep_from(r, r->config.log_keep_size);
    index = lower(index, r->durable);
    raft_evict(r->raft, index);
    index = lower(index, hold_from(r));
    if (r->space.full) {
        index = higher(index, squeeze_to(r));
    }
    if (index <= r->compacted) {
        return;
    }
    raft_term term = 0;
    struct raft_conf conf;
    CHECK(raft_term_at(r->raft, index, &term));
    raft_conf_at(r->raft, index, &conf);
    raft_compact(r->raft, index);
    rsm_log_compact(r, index, term, &conf);
    rsm_stored_compact(r, index);
    r->compacted = index;
    drop_marks(r, index);
    rsm_outgoing_cut(r, index);
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

/* For how long applying has waited (6); it goes on. */
static uint64_t held_end(struct rsm *r)
{
    uint64_t us = r->held_us != 0 ? env_now_us(r->env) - r->held_us : 0;
    r->held_us = 0;
    return us;
}

static void finish(struct rsm *r, const struct checkpoint_job *j)
{
    rsm_samples_add(&r->stalls, j->stall_us + held_end(r));
    rsm_samples_add(&r->busies, r->busy_us);
    rsm_samples_add(&r->writes, j->write_us);
    r->busy_us = 0;
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
    struct rsm *r = j->rsm;
    r->unsaved = 0; /* what was applied before it is frozen */
    if (rsm_stopped(r) || j->rc != ERR_OK || !j->steps) {
        on_done(job);
        return;
    }
    j->stall_us += held_end(r);
    submit(j, r->checkpoint_worker, run_write, on_written);
    rsm_apply_pump(r); /* what waited only because of what is frozen now */
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

/* How near the next one is (5), in percent. */
static uint64_t log_percent(const struct rsm *r)
{
    uint64_t size = r->applied_size - r->checkpoint_size;
    return size * 100 / r->config.checkpoint_size_max;
}

static uint64_t unsaved_percent(const struct rsm *r)
{
    return r->unsaved * 200 / 3 / r->config.checkpoint_size_max;
}

static bool is_late(const struct rsm *r)
{
    return log_percent(r) >= RSM_BACKLOG_LOG ||
           unsaved_percent(r) >= (r->leading ? RSM_BACKLOG_UNSAVED : 100);
}

bool rsm_checkpoint_holds(struct rsm *r)
{
    if (!r->checkpoint_running || !is_late(r)) {
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
    if (r->checkpoint_due || log_percent(r) >= 100 ||
        unsaved_percent(r) >= 100) {
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

/* Entries that would make checkpoints due are not taken: without this the log
 * would stay as it is, and the disk full, for ever. */
void rsm_checkpoint_squeeze(struct rsm *r)
{
    if (rsm_stopped(r) || r->installing) {
        return;
    }
    r->checkpoint_due = r->applied > r->durable;
    rsm_checkpoint_pump(r);
    compact(r);
    rsm_log_shrink(r);
}

/* Else the log would be cut only when log_keep_size bytes have been applied
 * since the restart, and restarts would make it grow. */
void rsm_checkpoint_recovered(struct rsm *r)
{
    const struct rsm_stored *s = &r->stored;
    for (uint32_t i = 0; i + 1 < s->count; i++) {
        raft_index last = s->places[i + 1].index - 1;
        if (last > r->compacted && last <= r->durable) {
            rsm_checkpoint_applied(r, last,
                                   s->places[i + 1].size - s->places[i].size);
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
    r->unsaved = 0;
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
