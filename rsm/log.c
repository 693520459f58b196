/* The queue of what the "wal" worker is to write. One job runs; updates that
 * come meanwhile gather in the next one, so that one sync covers them all
 * (group commit). Compactions and resets keep their place among them. A job
 * that finds no space stays the first, and is tried again (space.c): what is
 * behind it is not acknowledged either.
 *
 * Who has nothing else to do syncs a small write on the loop, because waking a
 * thread and being woken cost more: a follower always, a leader while its
 * callers come one at a time. Such a proposal is not committed here without our
 * own disk, so that no acknowledgement is of use before; but its messages must
 * have left first, or else the disks would work one after the other
 * (`log_late`). */
#include "base/check.h"
#include "rsm/rsm_int.h"

static struct rsm_log_job *job_of(struct env_job *job)
{
    return (struct rsm_log_job *)job;
}

static void job_free(struct rsm_log_job *j)
{
    for (uint32_t i = 0; i < j->entry_count; i++) {
        bytes_unref(j->entries[i].data);
    }
    mem_free(j->entries);
    mem_free(j->marks);
    mem_free(j);
}

static void on_done(struct env_job *job);

static enum err write_job(struct rsm_log_job *j)
{
    struct wal *wal = j->rsm->wal;
    switch (j->kind) {
    case RSM_LOG_APPEND:
        return wal_append(wal, j->with_hard_state ? &j->hard_state : NULL,
                          j->entries, j->entry_count);
    case RSM_LOG_VOTE: return wal_append(wal, &j->hard_state, NULL, 0);
    case RSM_LOG_COMPACT: return wal_compact(wal, j->index, j->term, &j->conf);
    case RSM_LOG_SHRINK: return wal_shrink(wal);
    case RSM_LOG_RESET: return wal_reset(wal, j->index, j->term, &j->conf);
    }
    return ERR_INVALID;
}

/* Is little space left? Asked of the disk now and then: it is a call that most
 * writes could do without, and `space_low` is more than what others write in
 * the meantime. On the worker. */
static bool is_low(struct rsm *r, const struct rsm_log_job *j)
{
    uint64_t now_us = env_now_us(r->env);
    r->space.unlooked_size += j->size + j->entry_count * RSM_ENTRY_OVERHEAD;
    if (now_us < r->space.look_at_us &&
        r->space.unlooked_size < r->config.space_low / RSM_SPACE_LOOK_PART) {
        return false;
    }
    r->space.look_at_us = now_us + RSM_SPACE_LOOK_US;
    r->space.unlooked_size = 0;
    return rsm_space_is_low(r);
}

/* Before anybody hears of the first thing that is stored, the identity says
 * that there is a log: without it this replica would begin anew, and vote and
 * acknowledge again what it has forgotten. */
static void on_run(struct env_job *job)
{
    struct rsm_log_job *j = job_of(job);
    struct wal *wal = j->rsm->wal;
    if (!j->written) {
        j->rc = write_job(j);
        j->written = j->rc == ERR_OK;
        wal_stats(wal, &j->stats);
        mem_free(j->marks); /* of a write that found no space */
        wal_take_marks(wal, &j->marks, &j->mark_count);
    }
    if (j->written) {
        j->rc = rsm_identity_started(j->rsm);
    }
    j->low =
        j->kind == RSM_LOG_APPEND && j->entry_count > 0 && is_low(j->rsm, j);
}

/* Somebody waits for a follower's sync and it has nothing else to do; nor has a
 * leader whose callers come one at a time. */
static bool is_brief(const struct rsm *r, const struct rsm_log_job *j)
{
    return j->kind == RSM_LOG_APPEND && j->size <= RSM_BRIEF_SIZE &&
           (!r->leading || r->alone_count >= RSM_ALONE_MIN);
}

static struct rsm_log_job *job_new(struct rsm *r, enum rsm_log_kind kind)
{
    struct rsm_log_job *j = mem_alloc(sizeof *j);
    j->job.run = on_run;
    j->job.done = on_done;
    j->rsm = r;
    j->kind = kind;
    return j;
}

static void push_first(struct rsm *r, struct rsm_log_job *j)
{
    j->next = r->log_head;
    r->log_head = j;
    r->log_tail = r->log_tail == NULL ? j : r->log_tail;
}

/* What is written last counts after a restart: nothing that waits may take back
 * what goes before it. */
static void vote_stays(struct rsm *r, const struct rsm_log_job *newest)
{
    for (struct rsm_log_job *j = r->log_head; j != newest; j = j->next) {
        j->hard_state = newest->hard_state;
    }
}

/* The newest term and vote that wait behind entries: there is room for them in
 * the log's reserve, so that a full replica still has a voice in who leads. */
static bool voting_first(struct rsm *r)
{
    struct rsm_log_job *newest = NULL;
    for (struct rsm_log_job *j = r->log_head; j != NULL; j = j->next) {
        if (j->kind == RSM_LOG_VOTE) {
            return false; /* it found no room either */
        }
        newest = j->kind == RSM_LOG_APPEND && j->with_hard_state ? j : newest;
    }
    if (newest == NULL || newest->vote_sent) {
        return false;
    }
    newest->vote_sent = true;
    vote_stays(r, newest);
    struct rsm_log_job *vote = job_new(r, RSM_LOG_VOTE);
    vote->hard_state = newest->hard_state;
    vote->seq = newest->seq;
    push_first(r, vote);
    return true;
}

/* What cuts the log gives space back, so it need not wait for what waits for
 * space: it names only entries that are stored. */
static bool cutting_first(struct rsm *r)
{
    struct rsm_log_job *before = NULL;
    struct rsm_log_job *j = r->log_head;
    while (j != NULL &&
           (j->kind == RSM_LOG_APPEND || j->kind == RSM_LOG_VOTE)) {
        before = j;
        j = j->next;
    }
    bool cuts =
        j != NULL && (j->kind == RSM_LOG_COMPACT || j->kind == RSM_LOG_SHRINK);
    if (!cuts || j->tried) {
        return false;
    }
    if (before != NULL) {
        before->next = j->next;
        r->log_tail = r->log_tail == j ? before : r->log_tail;
        push_first(r, j);
    }
    return true;
}

void rsm_log_pump(struct rsm *r)
{
    if (r->log_running || r->log_late_set || r->log_head == NULL ||
        rsm_stopped(r)) {
        return;
    }
    if (!r->space.log_held || voting_first(r) || cutting_first(r)) {
        r->log_running = true;
        if (is_brief(r, r->log_head)) {
            env_worker_submit_brief(r->env, r->wal_worker, &r->log_head->job);
        } else {
            env_worker_submit(r->env, r->wal_worker, &r->log_head->job);
        }
    }
}

static void on_late(struct env_timer *t)
{
    struct rsm *r = (struct rsm *)((char *)t - offsetof(struct rsm, log_late));
    r->log_late_set = false;
    rsm_log_pump(r);
}

/* After the next look at the network; from the flush timer, so that this turn's
 * messages leave before. */
static void pump_late(struct rsm *r)
{
    if (!r->log_late_set) {
        r->log_late_set = true;
        env_timer_start(r->env, &r->log_late, 0);
    }
}

static void on_done(struct env_job *job)
{
    struct rsm_log_job *j = job_of(job);
    struct rsm *r = j->rsm;
    CHECK(r->log_head == j);
    r->log_running = false;
    r->wal_stats = j->stats;
    if (j->rc == ERR_NOSPACE) {
        j->tried = true;
        rsm_space_wait(r, RSM_SPACE_LOG); /* the job stays the first */
        rsm_log_pump(r);
        return;
    }
    r->log_head = j->next;
    if (r->log_head == NULL) {
        r->log_tail = NULL;
    }
    if (j->rc != ERR_OK) {
        rsm_die(r, j->rc, "writing the log");
    } else if (!rsm_stopped(r)) {
        rsm_log_pump(r); /* first: the disk should not wait for the core */
        rsm_stored_note(r, j->marks, j->mark_count);
        if (j->kind == RSM_LOG_APPEND) {
            rsm_space_found(r, RSM_SPACE_LOG);
            if (j->low) {
                rsm_space_wait(r, RSM_SPACE_LOW);
            }
            struct raft_event event = {.type = RAFT_EV_PERSISTED,
                                       .u.persisted = j->seq};
            (void)!rsm_step(r, &event, NULL);
        } else if (j->kind == RSM_LOG_VOTE) {
            struct raft_event event = {.type = RAFT_EV_VOTE_STORED,
                                       .u.persisted = j->seq};
            (void)!rsm_step(r, &event, NULL);
        } else if (j->kind == RSM_LOG_RESET) {
            rsm_stored_reset(r);
            rsm_incoming_reset_done(r);
        }
    }
    job_free(j);
}

static struct rsm_log_job *push(struct rsm *r, enum rsm_log_kind kind)
{
    struct rsm_log_job *j = job_new(r, kind);
    if (r->log_tail != NULL) {
        r->log_tail->next = j;
    } else {
        r->log_head = j;
    }
    r->log_tail = j;
    return j;
}

/* The job that an update can still join. Not one that is written and waits for
 * space for the identity: what joined it would not be. */
static struct rsm_log_job *open_job(struct rsm *r)
{
    struct rsm_log_job *j = r->log_tail;
    bool running = r->log_running && j == r->log_head;
    if (j == NULL || running || j->written || j->kind != RSM_LOG_APPEND) {
        j = push(r, RSM_LOG_APPEND);
    }
    return j;
}

/* Entries of the job that this update replaces need not be written at all. */
static void cut(struct rsm_log_job *j, raft_index from)
{
    while (j->entry_count > 0 && j->entries[j->entry_count - 1].index >= from) {
        bytes_unref(j->entries[--j->entry_count].data);
    }
}

static void add_entries(struct rsm_log_job *j, const struct raft_entry *entries,
                        uint32_t count)
{
    uint32_t needed = j->entry_count + count;
    if (needed > j->entry_capacity) {
        j->entry_capacity =
            needed > 2 * j->entry_capacity ? needed : 2 * j->entry_capacity;
        j->entries =
            mem_resize(j->entries, j->entry_capacity * sizeof *j->entries);
    }
    for (uint32_t i = 0; i < count; i++) {
        j->entries[j->entry_count] = entries[i];
        j->size += bytes_slice(entries[i].data).size;
        bytes_ref(j->entries[j->entry_count++].data);
    }
}

void rsm_log_update(struct rsm *r, const struct raft_update *update)
{
    if (update->persist_seq == 0) {
        return;
    }
    struct rsm_log_job *j = open_job(r);
    j->seq = update->persist_seq;
    if (update->hard_state_changed) {
        j->with_hard_state = true;
        j->hard_state = update->hard_state;
        j->vote_sent = false;
    }
    if (update->append_count > 0) {
        cut(j, update->append[0].index);
        add_entries(j, update->append, update->append_count);
    }
    if (!r->leading) {
        rsm_flush_later(r); /* what comes in this turn shares a sync */
    } else if (!r->log_running && is_brief(r, j)) {
        pump_late(r);
    } else {
        rsm_log_pump(r);
    }
}

void rsm_log_compact(struct rsm *r, raft_index index, raft_term term,
                     const struct raft_conf *conf)
{
    struct rsm_log_job *j = push(r, RSM_LOG_COMPACT);
    j->index = index;
    j->term = term;
    j->conf = *conf;
    rsm_log_pump(r);
}

void rsm_log_shrink(struct rsm *r)
{
    for (struct rsm_log_job *j = r->log_head; j != NULL; j = j->next) {
        if (j->kind == RSM_LOG_SHRINK || j->kind == RSM_LOG_RESET) {
            return; /* which does it */
        }
    }
    push(r, RSM_LOG_SHRINK);
    rsm_log_pump(r);
}

void rsm_log_reset(struct rsm *r, const struct snap_label *label)
{
    struct rsm_log_job *j = push(r, RSM_LOG_RESET);
    j->index = label->index;
    j->term = label->term;
    j->conf = label->conf;
    rsm_log_pump(r);
}

/* One who waits for each answer cannot ask again before he has it: who asks
 * while there is somebody else's is not alone. That is also seen of those who
 * asked while the loop was in a sync: the answer leaves after this turn. */
void rsm_log_asked(struct rsm *r)
{
    if (r->queued_count + r->waiting_count + r->reads_count + r->apply_running >
        0) {
        r->alone_count = 0;
    } else if (r->alone_count < RSM_ALONE_MIN) {
        r->alone_count++;
    }
}

void rsm_log_init(struct rsm *r)
{
    r->log_late.fire = on_late;
}

void rsm_log_stop(struct rsm *r)
{
    env_timer_stop(r->env, &r->log_late);
}

void rsm_log_close(struct rsm *r)
{
    while (r->log_head != NULL) {
        struct rsm_log_job *j = r->log_head;
        r->log_head = j->next;
        job_free(j);
    }
    r->log_tail = NULL;
}
