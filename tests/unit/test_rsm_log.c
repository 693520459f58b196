/* The queue of what is to be written, over a log that the test makes full. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

/* The queue's calls to others go to the fakes below; a struct of such a name is
 * renamed with it, on both sides. */
#define wal_append           fake_append
#define wal_stats            fake_stats
#define wal_take_marks       fake_take_marks
#define rsm_identity_started fake_identity_started
#define rsm_space_is_low     fake_space_is_low
#define rsm_space_wait       fake_space_wait
#define rsm_space_found      fake_space_found
#define rsm_step             fake_step
#define rsm_stored_note      fake_stored_note
#define rsm_flush_later      fake_flush_later

#include "rsm/log.c"

static struct {
    bool full;    /* for entries */
    bool no_name; /* for another file */
    struct raft_hard_state last;
    uint32_t entries;
    uint64_t acknowledged; /* up to this update */
    struct env_job *submitted;
} disk;

enum err fake_append(struct wal *w, const struct raft_hard_state *hard_state,
                     const struct raft_entry *entries, uint32_t count)
{
    (void)w;
    (void)entries;
    if (disk.full && count > 0) {
        return ERR_NOSPACE;
    }
    if (hard_state != NULL) {
        disk.last = *hard_state;
    }
    disk.entries += count;
    return ERR_OK;
}

void fake_stats(const struct wal *w, struct wal_stats *stats)
{
    (void)w;
    *stats = (struct wal_stats){0};
}

void fake_take_marks(struct wal *w, struct wal_mark **marks, uint32_t *count)
{
    (void)w;
    *marks = NULL;
    *count = 0;
}

enum err fake_identity_started(struct rsm *r)
{
    (void)r;
    return disk.no_name ? ERR_NOSPACE : ERR_OK;
}

bool fake_space_is_low(const struct rsm *r)
{
    (void)r;
    return false;
}

void fake_space_wait(struct rsm *r, enum rsm_space_user user)
{
    r->space.log_held = user == RSM_SPACE_LOG;
}

void fake_space_found(struct rsm *r, enum rsm_space_user user)
{
    (void)r;
    (void)user;
}

enum err fake_step(struct rsm *r, struct raft_event *event, raft_index *index)
{
    (void)r;
    (void)index;
    if (event->type == RAFT_EV_PERSISTED) {
        disk.acknowledged = event->u.persisted;
    }
    return ERR_OK;
}

void fake_stored_note(struct rsm *r, const struct wal_mark *marks,
                      uint32_t count)
{
    (void)r;
    (void)marks;
    (void)count;
}

void fake_flush_later(struct rsm *r)
{
    (void)r;
}

static void submit(struct env_worker *w, struct env_job *job)
{
    (void)w;
    assert_null(disk.submitted);
    disk.submitted = job;
}

static uint64_t now_us(struct env *env)
{
    (void)env;
    return 0;
}

static const struct env_ops ops = {
    .now_us = now_us, .worker_submit = submit, .worker_submit_brief = submit};

static void run_one(void)
{
    struct env_job *job = disk.submitted;
    assert_non_null(job);
    disk.submitted = NULL;
    job->run(job);
    job->done(job);
}

static void update(struct rsm *r, raft_term term, raft_id vote,
                   raft_index index)
{
    struct raft_entry entry = {.index = index, .term = term};
    struct raft_update u = {.persist_seq = index,
                            .hard_state_changed = true,
                            .hard_state = {.term = term, .vote = vote},
                            .append = &entry,
                            .append_count = 1};
    rsm_log_update(r, &u);
    rsm_log_pump(r);
}

/* What is written last counts after a restart. A crash may come behind any
 * record: at none of them may the term be below one that was acted in. */
static void what_waited_takes_no_newer_vote_back(void **state)
{
    (void)state;
    struct env env = {.ops = &ops};
    struct rsm *r = mem_alloc(sizeof *r);
    r->env = &env;
    disk.full = true;
    update(r, 6, 1, 1); /* runs: the next one does not join it */
    update(r, 7, 2, 2);
    run_one(); /* no space; the newest vote goes first */
    run_one();
    assert_int_equal(disk.last.term, 7);
    assert_int_equal(disk.last.vote, 2);
    disk.full = false;
    r->space.log_held = false;
    rsm_log_pump(r);
    while (disk.submitted != NULL) {
        run_one();
        assert_int_equal(disk.last.term, 7);
        assert_int_equal(disk.last.vote, 2);
    }
    assert_int_equal(disk.entries, 2);
    mem_free(r);
}

/* The entries are stored, and the identity that says so finds no space. What
 * comes meanwhile is written, too, before it is said to be. */
static void what_comes_behind_a_stored_write_is_written(void **state)
{
    (void)state;
    struct env env = {.ops = &ops};
    struct rsm *r = mem_alloc(sizeof *r);
    r->env = &env;
    disk.full = false;
    disk.entries = 0;
    disk.acknowledged = 0;
    disk.no_name = true;
    update(r, 1, 1, 1);
    run_one();
    assert_int_equal(disk.entries, 1);
    assert_int_equal(disk.acknowledged, 0);
    update(r, 1, 1, 2);
    disk.no_name = false;
    r->space.log_held = false;
    rsm_log_pump(r);
    while (disk.submitted != NULL) {
        run_one();
        assert_true(disk.acknowledged <= disk.entries);
    }
    assert_int_equal(disk.acknowledged, 2);
    mem_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_waited_takes_no_newer_vote_back),
        cmocka_unit_test(what_comes_behind_a_stored_write_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
