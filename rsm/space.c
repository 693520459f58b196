/* A full disk (E24). Nothing that finds no space is acknowledged, and nothing
 * ends: it waits here, and is tried again after pauses that grow. Invariants:
 *
 *  1. Below space_low free bytes no new entry is taken, so that what was taken
 *     before can be stored, applied and made durable, votes be given, reads be
 *     answered, and the log be cut, which gives space back. Only what others
 *     fill the disk with leaves none at all.
 *  2. While anybody waits, the core knows (RAFT_EV_FULL): this replica takes no
 *     commands, does not campaign, hands over leadership to one with space, and
 *     says so in its acknowledgements. What it took before waits in memory,
 *     within the leader's bounds.
 *  3. A state machine that found no space may be half-way in an entry. From
 *     then on (`half`, the apply worker's) nothing looks at it until it has
 *     gone back to its last checkpoint; and until it has come again to where it
 *     was, nobody reads: bytes of blobs may be newer than the checkpoint.
 *  4. What of its own the log can give back it does, at once and at each pause:
 *     nobody's entries would make that happen (checkpoint.c, 7).
 *  5. A failed sync is no want of space: it ends the replica (E21). */
#include "base/check.h"
#include "base/log.h"
#include "rsm/rsm_int.h"

#include <inttypes.h>
#include <stdio.h>

enum { WELL_FOR_MS = 30000 }; /* then pauses begin small again */

struct rewind_job {
    struct env_job job;
    struct rsm *rsm;
    enum err rc;
    raft_index index;
};

static uint64_t free_bytes(const struct rsm *r)
{
    struct disk *disk = r->config.disk;
    uint64_t free = 0;
    return disk->ops->space(disk, &free) == ERR_OK ? free : UINT64_MAX;
}

bool rsm_space_is_low(const struct rsm *r)
{
    return free_bytes(r) < r->config.space_low;
}

/* Too little is left to keep the log for others. */
bool rsm_space_is_tight(const struct rsm *r)
{
    return r->space.full || free_bytes(r) / 4 < r->config.space_low;
}

/* Has it been full for a short time only? */
bool rsm_space_is_patient(const struct rsm *r)
{
    return env_now_ms(r->env) - r->space.full_ms < RSM_SPACE_SQUEEZE_MS;
}

/* --- On the apply worker */

bool rsm_space_enter(struct rsm *r, enum err *rc)
{
    if (r->space.half) {
        *rc = ERR_NOSPACE;
    }
    return !r->space.half;
}

void rsm_space_leave(struct rsm *r, enum err rc)
{
    if (rc == ERR_NOSPACE && r->config.fsm->ops->rewind != NULL) {
        r->space.half = true;
    }
}

static void on_run(struct env_job *job)
{
    struct rewind_job *j = (struct rewind_job *)job;
    struct rsm_fsm *fsm = j->rsm->config.fsm;
    raft_term term = 0;
    j->rc = fsm->ops->rewind(fsm);
    if (j->rc == ERR_OK) {
        j->rsm->space.half = false;
        j->rsm->space.rewinds_done++;
        j->index = fsm->ops->durable(fsm, &term);
    }
}

/* --- On the loop */

static void set_timer(struct rsm *r)
{
    struct rsm_space *s = &r->space;
    if (s->timer_set || rsm_stopped(r)) {
        return;
    }
    if (!s->full && env_now_ms(r->env) - s->well_ms > WELL_FOR_MS) {
        s->pause_ms = RSM_SPACE_PAUSE_MIN_MS;
    }
    s->timer_set = true;
    env_timer_start(r->env, &s->timer, s->pause_ms * UINT64_C(1000));
    s->pause_ms = 2 * s->pause_ms < RSM_SPACE_PAUSE_MAX_MS
                      ? 2 * s->pause_ms
                      : RSM_SPACE_PAUSE_MAX_MS;
}

/* To the best one that has space. Without a majority that has, it would gain
 * nothing: a new leader could commit nothing, and so not answer reads. */
static void hand_over(struct rsm *r)
{
    if (r->leading && r->space.full && raft_has_space(r->raft)) {
        struct raft_event event = {.type = RAFT_EV_TRANSFER};
        (void)!rsm_step(r, &event, NULL);
    }
}

/* Tells the core and the log what has become of us. Who is full at its next try
 * hands over then; and so does who is full again soon after, as it may be well
 * for a moment whenever it tries. The pauses between tries bound how often. */
static void tell(struct rsm *r)
{
    struct rsm_space *s = &r->space;
    bool full = s->low || s->log || s->store || s->snap;
    if (full == s->full || rsm_stopped(r)) {
        return;
    }
    s->full = full;
    bool again = false;
    if (full) {
        s->full_ms = env_now_ms(r->env);
        again = s->well_ms != 0 && s->full_ms - s->well_ms < WELL_FOR_MS;
        log_warn("rsm",
                 "the disk is full: this replica waits for space group=%u "
                 "id=%" PRIu64 " path=%s free=%" PRIu64 " needed=%" PRIu64,
                 r->config.group, r->config.id,
                 r->config.disk->root != NULL ? r->config.disk->root : "",
                 free_bytes(r), r->config.space_low);
    } else {
        s->well_ms = env_now_ms(r->env);
        log_info("rsm", "the disk has space again group=%u id=%" PRIu64,
                 r->config.group, r->config.id);
    }
    struct raft_event event = {.type = RAFT_EV_FULL, .u.full = full};
    (void)!rsm_step(r, &event, NULL);
    if (full) {
        rsm_checkpoint_squeeze(r);
    }
    if (again) {
        hand_over(r);
    }
}

static void on_rewound(struct env_job *job)
{
    struct rewind_job *j = (struct rewind_job *)job;
    struct rsm *r = j->rsm;
    r->space.rewinding = false;
    r->space.rewinds_seen += j->rc == ERR_OK;
    if (j->rc != ERR_OK && j->rc != ERR_NOSPACE) {
        rsm_die(r, j->rc, "going back to the last checkpoint");
    } else if (j->rc == ERR_OK && !rsm_stopped(r) && !r->installing) {
        CHECK(j->index >= r->durable && j->index <= r->submitted);
        r->space.rewound = true;
        r->submitted = r->applied = r->durable = j->index;
        r->unsaved = 0;
    }
    mem_free(j);
}

static void rewind_begin(struct rsm *r)
{
    struct rsm_space *s = &r->space;
    if (s->rewinding || s->rewound) {
        return;
    }
    struct rewind_job *j = mem_alloc(sizeof *j);
    j->job.run = on_run;
    j->job.done = on_rewound;
    j->rsm = r;
    s->rewinding = true;
    env_worker_submit(r->env, r->apply_worker, &j->job);
}

static void store_waits(struct rsm *r)
{
    struct rsm_space *s = &r->space;
    s->store = s->checkpoint_held = true;
    if (r->config.fsm->ops->rewind == NULL || s->apply_held) {
        return; /* nothing is half done, or it is one more of the same jobs */
    }
    s->apply_held = true;
    s->rewound = false;
    s->replay = s->replay > r->submitted ? s->replay : r->submitted;
    r->retracted = true; /* our state is not the newest for a while */
    rsm_flush_later(r);
    rewind_begin(r);
}

void rsm_space_wait(struct rsm *r, enum rsm_space_user user)
{
    if (rsm_stopped(r)) {
        return;
    }
    switch (user) {
    case RSM_SPACE_LOW: r->space.low = true; break;
    case RSM_SPACE_LOG: r->space.log = r->space.log_held = true; break;
    case RSM_SPACE_STORE: store_waits(r); break;
    case RSM_SPACE_SNAP: r->space.snap = true; break;
    }
    set_timer(r);
    tell(r);
}

/* A checkpoint that had begun before may succeed meanwhile; what is applied
 * next is known only when the state machine has gone back (3). */
static bool goes_back(const struct rsm_space *s)
{
    return s->rewinding || (s->apply_held && !s->rewound);
}

void rsm_space_found(struct rsm *r, enum rsm_space_user user)
{
    struct rsm_space *s = &r->space;
    if (!s->full) {
        return;
    }
    switch (user) {
    case RSM_SPACE_LOW: s->low = false; break;
    case RSM_SPACE_LOG: s->log = false; break;
    case RSM_SPACE_STORE:
        s->checkpoint_held = false;
        if (!goes_back(s)) {
            s->store = s->apply_held = false;
        }
        break;
    case RSM_SPACE_SNAP: s->snap = false; break;
    }
    tell(r);
}

/* Tries again, however little is free: what was taken must be stored, and the
 * store's checkpoint is what lets the log be cut. */
static void on_timer(struct env_timer *t)
{
    struct rsm *r =
        (struct rsm *)((char *)t - offsetof(struct rsm, space.timer));
    struct rsm_space *s = &r->space;
    s->timer_set = false;
    if (!rsm_space_is_low(r)) {
        s->low = s->snap = false;
    }
    s->log_held = false;
    s->log = s->log && r->log_head != NULL;
    rsm_log_pump(r);
    if (s->apply_held && !r->installing) {
        rewind_begin(r);
        s->apply_held = !s->rewound;
    }
    s->checkpoint_held = s->apply_held;
    if (!s->apply_held && r->applied == r->durable && !rsm_space_hides(r)) {
        s->store = false; /* there is nothing to make durable any more */
    }
    tell(r);
    hand_over(r);
    if (s->full) {
        set_timer(r);
        rsm_checkpoint_squeeze(r);
    }
    rsm_apply_pump(r);
}

enum err rsm_space_admit(struct rsm *r)
{
    struct rsm_space *s = &r->space;
    if (raft_has_space(r->raft)) {
        s->group_since_ms = 0;
        return s->full ? ERR_BUSY : ERR_OK;
    }
    uint64_t now_ms = env_now_ms(r->env);
    if (s->group_since_ms == 0) {
        s->group_since_ms = now_ms;
    }
    return now_ms - s->group_since_ms < r->config.space_patience_ms
               ? ERR_BUSY
               : ERR_NOSPACE;
}

bool rsm_space_hides(const struct rsm *r)
{
    return r->space.apply_held || r->submitted < r->space.replay;
}

void rsm_space_fill_status(const struct rsm *r, struct rsm_status *status)
{
    status->full = r->space.full;
    status->space_free = free_bytes(r);
    status->space_low = r->config.space_low;
    status->disk_root = r->config.disk->root;
}

void rsm_space_problem(const struct rsm_status *status, char *words,
                       size_t size)
{
    words[0] = '\0';
    if (status->full) {
        snprintf(words, size,
                 "its disk is full: %" PRIu64 " bytes are free at %s, and it "
                 "stores nothing below %" PRIu64
                 ": make room there, and it goes on by itself",
                 status->space_free,
                 status->disk_root != NULL ? status->disk_root : "its disk",
                 status->space_low);
    }
}

void rsm_space_init(struct rsm *r)
{
    r->space.timer.fire = on_timer;
    r->space.pause_ms = RSM_SPACE_PAUSE_MIN_MS;
}

void rsm_space_close(struct rsm *r)
{
    env_timer_stop(r->env, &r->space.timer);
}
