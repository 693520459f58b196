/* Entries that are on disk and no longer in memory, read again for followers
 * that are far behind, and for our own state machine when it is. The log in
 * memory is of RSM_MEMORY_SIZE at most, whatever has to be kept for others or
 * has not been applied yet; only what is not committed comes on top.
 * Invariants:
 *
 *  1. `places` rise in index, and name where entries stand in the log as it is
 *     now: a mark replaces all of its index and above.
 *  2. What is not compacted is there: that it cannot be found is damage. */
#include "base/check.h"
#include "rsm/rsm_int.h"

#include <string.h>

enum { RUNS_MAX = 16 };

struct stored_job {
    struct env_job job;
    struct rsm *rsm;
    raft_id peer;
    struct wal_want want;
    struct raft_run runs[RUNS_MAX];
    enum err rc;
    struct raft_entry *entries;
    uint32_t count;
};

/* --- Places */

void rsm_stored_note(struct rsm *r, const struct wal_mark *marks,
                     uint32_t count)
{
    struct rsm_stored *s = &r->stored;
    for (uint32_t i = 0; i < count; i++) {
        while (s->count > 0 &&
               s->places[s->count - 1].index >= marks[i].index) {
            s->count--;
        }
        if (s->count == s->capacity) {
            s->capacity = s->capacity > 0 ? 2 * s->capacity : 64;
            s->places = mem_resize(s->places, s->capacity * sizeof *s->places);
        }
        s->places[s->count++] = marks[i];
    }
}

/* The last at or before it. */
static const struct wal_mark *place_of(const struct rsm *r, raft_index index)
{
    const struct rsm_stored *s = &r->stored;
    uint32_t low = 0, high = s->count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (s->places[middle].index <= index) {
            low = middle;
        } else {
            high = middle;
        }
    }
    CHECK(low < s->count && s->places[low].index <= index);
    return &s->places[low];
}

void rsm_stored_compact(struct rsm *r, raft_index index)
{
    struct rsm_stored *s = &r->stored;
    uint32_t drop = 0;
    while (drop + 1 < s->count && s->places[drop + 1].index <= index + 1) {
        drop++;
    }
    if (drop > 0) {
        s->count -= drop;
        memmove(s->places, s->places + drop, s->count * sizeof *s->places);
    }
}

void rsm_stored_reset(struct rsm *r)
{
    r->stored.count = 0;
}

void rsm_stored_close(struct rsm *r)
{
    mem_free(r->stored.places);
}

/* --- Reading */

static void on_run(struct env_job *job)
{
    struct stored_job *j = (struct stored_job *)job;
    j->want.runs = j->runs;
    j->rc =
        wal_read(j->rsm->config.disk, "wal", &j->want, &j->entries, &j->count);
}

static void on_done(struct env_job *job)
{
    struct stored_job *j = (struct stored_job *)job;
    struct rsm *r = j->rsm;
    bool gone = j->want.first <= r->compacted || r->installing;
    if (j->rc != ERR_OK && !gone && !rsm_stopped(r)) {
        rsm_die(r, j->rc == ERR_NOTFOUND ? ERR_CORRUPT : j->rc,
                "reading the log again"); /* 2 */
    }
    uint32_t count = j->rc == ERR_OK ? j->count : 0;
    r->stored.read += count;
    if (j->peer == 0) {
        rsm_apply_loaded(r, j->entries, count);
    } else {
        struct raft_event event = {.type = RAFT_EV_LOADED,
                                   .u.loaded = {.peer = j->peer,
                                                .entries = j->entries,
                                                .count = count}};
        (void)!rsm_step(r, &event, NULL);
    }
    for (uint32_t i = 0; i < j->count; i++) {
        bytes_unref(j->entries[i].data);
    }
    mem_free(j->entries);
    mem_free(j);
}

void rsm_stored_load(struct rsm *r, const struct raft_load *load)
{
    struct stored_job *j = mem_alloc(sizeof *j);
    j->job.run = on_run;
    j->job.done = on_done;
    j->rsm = r;
    j->peer = load->peer;
    j->want = (struct wal_want){
        .from = *place_of(r, load->first),
        .first = load->first,
        .size_max = load->size_max,
    };
    j->want.run_count = raft_runs(r->raft, load->first, load->last, j->runs,
                                  RUNS_MAX, &j->want.last);
    env_worker_submit(r->env, r->read_worker, &j->job);
}

static size_t memory_max(const struct rsm *r)
{
    size_t size = r->config.log_keep_size;
    return size < RSM_MEMORY_SIZE / RSM_MEMORY_FACTOR ? size * RSM_MEMORY_FACTOR
                                                      : RSM_MEMORY_SIZE;
}

bool rsm_stored_is_due(const struct rsm *r)
{
    return raft_memory_exceeds(r->raft, memory_max(r));
}

void rsm_stored_bound(struct rsm *r)
{
    raft_bound_memory(r->raft, memory_max(r));
}
