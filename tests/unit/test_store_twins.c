/* The store on disk and its twin in memory through millions of operations, with
 * a death, a reopening and a replay of the log every few hundred of them.
 *
 *   SEED=7 OPS=3000000 build/release/unit/test_store_twins
 *
 * The operation of a number is the same each time, so the numbers are the log.
 * A child opens the store, replays it and goes on, beside a third store, which
 * never crashes; it makes checkpoints in steps, some on a second thread, and
 * installs. In a run with an odd seed, some children write checkpoints on a
 * second thread; one with an even seed is the same each time. It dies at some
 * system call (dying_disk.h), and the power may go with it. Then the parent
 * opens what is left, and
 *
 *  1. it is at the last checkpoint that was said to be durable, or at the one
 *     that was on its way: the twin, which crashed too, has the same keys,
 *     lengths and inline bytes there;
 *  2. a replay of the log up to the operation in which the child died gives the
 *     same answers in both, and all that the third store has: large values
 *     byte by byte, too;
 *  3. after a checkpoint there is one file for each large value, and no other.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/unit/dying_disk.h"
#include "tests/unit/store_ops.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OPS_DEFAULT 8000
#else
#define OPS_DEFAULT 40000
#endif

enum { EPOCH = 4000, LIFE_MAX = 4000, TERM = 7 };

/* What the child says. */
struct said {
    uint64_t started; /* the last operation that may have begun */
    uint64_t durable; /* said to be; */
    uint64_t begun;   /* or on its way */
    uint64_t full;    /* times that it found no space, and went back */
};

static struct run {
    pid_t pid; /* the parent's */
    uint64_t seed, ops;
    char *dir;
    struct said *said;
    struct skv_store *steady; /* never crashes; */
    uint64_t at;              /* and is there */
    struct skv_mem_image image;
    uint64_t image_at; /* the twin's last checkpoint */
    uint64_t lives, powerless, installs;
    bool finished;
} run;

/* In every few thousand operations the keys are few, or many. */
static struct op op_of(uint64_t number)
{
    static const uint32_t keys[] = {20, 60, 200, 1000};
    struct rng epoch = {.state = run.seed ^ (number / EPOCH) << 32};
    struct rng r = {.state = run.seed + number * UINT64_C(0x9e3779b97f4a7c15)};
    (void)rng_next(&r);
    return some_op(&r, keys[rng_below(&epoch, 4)]);
}

static enum err run_number(struct skv_store *s, uint64_t number)
{
    struct op op = op_of(number);
    return run_op(s, &op);
}

static struct skv_store *store_open(void)
{
    struct skv_store *s = NULL;
    assert_int_equal(skv_store_lmdb_open(run.dir, 1u << 30, &s), ERR_OK);
    return s;
}

static uint64_t durable_of(struct skv_store *s)
{
    uint64_t index = 0, term = 0;
    s->ops->durable(s, &index, &term);
    assert_int_equal(term, index / TERM);
    return index;
}

/* ---- the child ---- */

struct child {
    struct skv_store *store;
    struct rng rng;
    uint64_t at;
    bool begun, threaded;
    sem_t begin; /* to the thread that writes checkpoints */
};

static void *write_for_ever(void *arg)
{
    struct child *c = arg;
    for (;;) {
        while (sem_wait(&c->begin) != 0) {
        }
        (void)!c->store->ops->checkpoint_write(c->store);
    }
    return NULL;
}

static void child_begin(struct child *c)
{
    run.said->begun = c->at;
    assert_int_equal(
        c->store->ops->checkpoint_begin(c->store, c->at, c->at / TERM), ERR_OK);
    c->begun = true;
    if (c->threaded) {
        sem_post(&c->begin);
    }
}

static void child_end(struct child *c)
{
    assert_int_equal(c->store->ops->checkpoint_write(c->store), ERR_OK);
    assert_int_equal(c->store->ops->checkpoint_end(c->store), ERR_OK);
    c->begun = false;
    run.said->durable = run.said->begun;
    assert_int_equal(durable_of(c->store), run.said->durable);
}

static void child_checkpoint(struct child *c)
{
    if (rng_chance(&c->rng, 15)) {
        c->begun ? child_end(c) : child_begin(c);
    } else if (!c->begun && rng_chance(&c->rng, 2)) {
        child_begin(c);
        child_end(c);
    } else if (!c->threaded && c->begun && rng_chance(&c->rng, 50)) {
        assert_int_equal(c->store->ops->checkpoint_write(c->store), ERR_OK);
    }
}

/* Back to the last checkpoint, and to where it was. */
static void child_rewind(struct child *c)
{
    run.said->full++;
    assert_int_equal(c->store->ops->rewind(c->store), ERR_OK);
    c->begun = false;
    uint64_t from = durable_of(c->store);
    assert_true(from == run.said->durable || from == run.said->begun);
    run.said->durable = from;
    for (uint64_t n = from + 1; n <= c->at; n++) {
        (void)run_number(c->store, n);
    }
}

/* The next one. */
static void child_op(struct child *c)
{
    uint64_t number = c->at + 1;
    if (number > run.said->started) {
        run.said->started = number;
    }
    enum err rc = run_number(c->store, number);
    if (rc == ERR_NOSPACE) {
        child_rewind(c);
        rc = run_number(c->store, number);
    }
    c->at = number;
    if (number > run.at) {
        assert_int_equal(rc, run_number(run.steady, number));
        run.at = number;
        compare_key(c->store, run.steady, op_of(number).key);
    }
}

/* Everything anew, from the other's stream. A checkpoint may be on its way. */
static void child_install(struct child *c)
{
    struct buf stream = {0};
    struct skv_store *s = c->store;
    assert_int_equal(
        run.steady->ops->checkpoint(run.steady, c->at, c->at / TERM), ERR_OK);
    view_into(run.steady, &stream);
    if (c->begun) {
        assert_int_equal(s->ops->checkpoint_write(s), ERR_OK);
        run.said->durable = run.said->begun;
    }
    run.said->begun = c->at;
    enum err rc = install_from(s, &stream, c->at, SIZE_MAX);
    if (rc == ERR_NOSPACE) {
        run.said->full++;
        run.said->begun = run.said->durable; /* nothing changed */
    } else {
        assert_int_equal(rc, ERR_OK);
        run.said->durable = c->at;
        c->begun = false;
    }
    (void)compare_all(s, run.steady);
    buf_free(&stream);
}

static void child_look(struct child *c)
{
    char from[OP_KEY_ROOM], prefix[OP_KEY_ROOM];
    uint32_t key = (uint32_t)rng_below(&c->rng, 1000);
    if (rng_chance(&c->rng, 50)) {
        struct slice p = key_name((uint32_t)rng_below(&c->rng, 1000), prefix);
        p.size = rng_below(&c->rng, (p.size < 6 ? p.size : 6) + 1);
        compare_scan(c->store, run.steady, p, key_name(key, from),
                     (uint32_t)rng_between(&c->rng, 1, 9));
    } else if (rng_chance(&c->rng, 100)) {
        compare_read(c->store, run.steady, key_name(key, from),
                     rng_below(&c->rng, 20000),
                     (size_t)rng_below(&c->rng, 20000));
    } else if (rng_below(&c->rng, 2500) == 0) {
        child_install(c);
    }
}

static void child_run(struct child *c)
{
    c->store = store_open();
    c->at = durable_of(c->store);
    if (c->threaded) {
        pthread_t thread;
        assert_int_equal(sem_init(&c->begin, 0, 0), 0);
        assert_int_equal(pthread_create(&thread, NULL, write_for_ever, c), 0);
    }
    uint64_t last = run.at + LIFE_MAX;
    last = last < run.ops ? last : run.ops;
    while (c->at < last) {
        child_checkpoint(c);
        child_op(c);
        if (c->at == run.at) {
            child_look(c);
        }
    }
    kill(getpid(), SIGKILL);
}

/* ---- the parent ---- */

/* Begins a checkpoint somewhere, which may come to be written, and crashes. */
static void twin_crash(struct skv_store **twin, struct rng *r, uint64_t last,
                       bool written)
{
    struct skv_store *t = *twin;
    uint64_t to = rng_between(r, run.image_at, last);
    for (uint64_t n = run.image_at + 1; n <= to; n++) {
        (void)run_number(t, n);
    }
    assert_int_equal(t->ops->checkpoint_begin(t, to, to / TERM), ERR_OK);
    if (written) {
        assert_int_equal(t->ops->checkpoint_write(t), ERR_OK);
        run.image_at = to;
    }
    t->ops->close(t);
    *twin = skv_store_mem_open(&run.image);
    assert_int_equal(durable_of(*twin), run.image_at);
}

static void twin_forward(struct skv_store *twin, uint64_t to)
{
    for (uint64_t n = run.image_at + 1; n <= to; n++) {
        (void)run_number(twin, n);
    }
    assert_int_equal(twin->ops->checkpoint(twin, to, to / TERM), ERR_OK);
    run.image_at = to;
}

/* Both from where they are. */
static void replay(struct skv_store *s, uint64_t s_at, struct skv_store *twin,
                   uint64_t last)
{
    uint64_t at = s_at < run.image_at ? s_at : run.image_at;
    for (uint64_t n = at + 1; n <= last; n++) {
        enum err rc = n > s_at ? run_number(s, n) : ERR_OK;
        enum err twin_rc = n > run.image_at ? run_number(twin, n) : ERR_OK;
        if (n > s_at && n > run.image_at) {
            assert_int_equal(rc, twin_rc);
            compare_key(s, twin, op_of(n).key);
        }
    }
}

static uint32_t count_blob_files(void)
{
    return count_files(run.dir) - 3; /* the lock, and LMDB's two */
}

/* Both durable, and the twin perhaps from the store's stream. */
static void settle(struct skv_store *s, struct skv_store *twin, struct rng *r,
                   uint64_t last)
{
    assert_int_equal(s->ops->checkpoint(s, last, last / TERM), ERR_OK);
    assert_int_equal(twin->ops->checkpoint(twin, last, last / TERM), ERR_OK);
    run.image_at = last;
    run.said->durable = run.said->begun = last;
    uint32_t blobs = compare_all(s, run.steady);
    assert_int_equal(count_blob_files(), blobs);
    if (rng_chance(r, 100)) {
        struct buf stream = {0};
        view_into(s, &stream);
        size_t step = rng_chance(r, 500) ? 1000 : SIZE_MAX;
        assert_int_equal(install_from(twin, &stream, last, step), ERR_OK);
        (void)compare_all(s, twin);
        buf_free(&stream);
        run.installs++;
    }
}

static void after_death(struct rng *r)
{
    uint64_t last = run.said->started > run.at ? run.said->started : run.at;
    struct skv_store *s = store_open();
    struct skv_store *twin = skv_store_mem_open(&run.image);
    uint64_t index = durable_of(s);
    assert_int_equal(durable_of(twin), run.image_at);
    assert_true(index == run.said->durable || index == run.said->begun);
    twin_forward(twin, index);
    struct slice none = slice_of(NULL, 0);
    compare_scan(s, twin, none, none, UINT32_MAX);
    run.said->durable = run.said->begun = index;
    bool written = rng_chance(r, 300);
    twin_crash(&twin, r, last, written);
    replay(s, index, twin, last);
    for (; run.at < last; run.at++) {
        (void)run_number(run.steady, run.at + 1);
    }
    (void)compare_all(s, twin);
    if (written || rng_chance(r, 500) || last - index > LIFE_MAX) {
        settle(s, twin, r, last);
    } else {
        (void)compare_all(s, run.steady);
    }
    s->ops->close(s);
    twin->ops->close(twin);
}

static void live_and_die(struct rng *r)
{
    static const uint64_t lengths[] = {30, 200, 600, 1500};
    uint64_t calls = rng_between(r, 1, lengths[rng_below(r, 4)]);
    uint64_t writes = rng_chance(r, 250) ? rng_between(r, 1, 300) : 0;
    struct child c = {.threaded = run.seed % 2 == 1 && rng_chance(r, 500),
                      .rng = {.state = rng_next(r)}};
    bool power = rng_chance(r, 500);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        log_set_level(writes != 0 ? LOG_LEVEL_OFF : LOG_LEVEL_INFO);
        dying_disk_arm(calls, writes);
        child_run(&c);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    if (power) {
        struct rng spoil = {.state = rng_next(r)};
        dying_disk_spoil(&spoil, run.dir);
        run.powerless++;
    }
    run.lives++;
}

/* ---- the test ---- */

static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

static int begin_run(void **state)
{
    (void)state;
    run.pid = getpid();
    run.seed = number_from("SEED", rng_entropy());
    run.ops = number_from("OPS", OPS_DEFAULT);
    /* In memory, when there is such a place: nothing is synced anyway. */
    const char *at = getenv("TMPDIR");
    if (at == NULL) {
        at = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    }
    run.dir = mem_printf("%s/test_store_twins.XXXXXX", at);
    run.said = mmap(NULL, sizeof *run.said, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    dying_disk_init();
    print_message("seed %" PRIu64 "\n", run.seed);
    return mkdtemp(run.dir) != NULL && run.said != MAP_FAILED ? 0 : -1;
}

static int end_run(void **state)
{
    (void)state;
    if (getpid() != run.pid) {
        return 0; /* a child that found something: the parent will say */
    }
    print_message("%" PRIu64 " operations, %" PRIu64 " deaths, %" PRIu64
                  " with the power, %" PRIu64 " times full, %" PRIu64
                  " streams to the twin\n",
                  run.at, run.lives, run.powerless, run.said->full,
                  run.installs);
    if (!run.finished) {
        print_message("replay: SEED=%" PRIu64 " OPS=%" PRIu64
                      " build/release/unit/test_store_twins\n",
                      run.seed, run.ops);
    }
    skv_mem_image_fini(&run.image);
    enum err rc = skv_dir_remove(run.dir);
    mem_free(run.dir);
    return rc == ERR_OK ? 0 : -1;
}

/* Could be wrong: any of it. */
static void twins_agree_through_every_death(void **state)
{
    (void)state;
    struct rng r = {.state = run.seed};
    struct skv_mem_image steady_image = {0};
    run.steady = skv_store_mem_open(&steady_image);
    while (run.at < run.ops) {
        live_and_die(&r);
        after_death(&r);
    }
    run.steady->ops->close(run.steady);
    skv_mem_image_fini(&steady_image);
    run.finished = true;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(
        twins_agree_through_every_death, begin_run, end_run)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
