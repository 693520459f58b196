/* The env over libuv: time, timers, posts from threads, workers. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "transport/loop.h"

static struct net_loop *loop;
static struct env *env;

static int set_up(void **state)
{
    (void)state;
    assert_int_equal(net_loop_new(&loop), ERR_OK);
    env = net_loop_env(loop);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    net_loop_free(loop);
    return 0;
}

/* --- timers --- */

struct alarm {
    struct env_timer timer; /* first */
    uint64_t set_us;        /* before it was started, */
    uint64_t started_us;    /* and after */
    uint64_t fired_us;
    uint32_t fired_count;
    uint32_t *order;
    uint32_t place;
};

static void alarm_fire(struct env_timer *timer)
{
    struct alarm *a = (struct alarm *)timer;
    assert_null(timer->impl);
    a->fired_us = env_now_us(env);
    a->fired_count++;
    if (a->order != NULL) {
        a->place = (*a->order)++;
    }
}

static void stop_fire(struct env_timer *timer)
{
    (void)timer;
    net_loop_stop(loop);
}

static void run_for(uint64_t us)
{
    struct env_timer stop = {.fire = stop_fire};
    env_timer_start(env, &stop, us);
    net_loop_run(loop);
}

/* Wrong if libuv's stale clock or its milliseconds let a timer fire early. */
static void timers_fire_in_order_and_never_early(void **state)
{
    (void)state;
    uint32_t order = 0;
    static const uint32_t delays[] = {9000, 1, 3100, 0, 7999, 1500};
    struct alarm alarms[6] = {0};
    usleep(3000); /* now the loop's own clock is stale */
    for (int i = 0; i < 6; i++) {
        alarms[i].timer.fire = alarm_fire;
        alarms[i].order = &order;
        alarms[i].set_us = env_now_us(env);
        env_timer_start(env, &alarms[i].timer, delays[i]);
        alarms[i].started_us = env_now_us(env);
    }
    run_for(30000);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(alarms[i].fired_count, 1);
        assert_true(alarms[i].fired_us >= alarms[i].set_us + delays[i]);
        for (int j = 0; j < 6; j++) {
            /* Those of the same millisecond may come in any order. */
            uint64_t due_us = alarms[i].started_us + delays[i];
            if (due_us + 1000 < alarms[j].set_us + delays[j]) {
                assert_true(alarms[i].place < alarms[j].place);
            }
        }
    }
}

static void
a_stopped_timer_does_not_fire_and_a_restarted_one_fires_once(void **state)
{
    (void)state;
    struct alarm stopped = {.timer.fire = alarm_fire};
    struct alarm again = {.timer.fire = alarm_fire};
    env_timer_stop(env, &stopped.timer); /* never started: no harm */
    env_timer_start(env, &stopped.timer, 1000);
    env_timer_stop(env, &stopped.timer);
    env_timer_stop(env, &stopped.timer);
    env_timer_start(env, &again.timer, 1000);
    again.set_us = env_now_us(env);
    env_timer_start(env, &again.timer, 8000);
    run_for(20000);
    assert_int_equal(stopped.fired_count, 0);
    assert_int_equal(again.fired_count, 1);
    assert_true(again.fired_us >= again.set_us + 8000);
}

static uint32_t chain_count, chain_length;

static void chain_fire(struct env_timer *timer)
{
    if (++chain_count < chain_length) {
        env_timer_start(env, timer, 0);
    } else {
        net_loop_stop(loop);
    }
}

/* Wrong if a timer that is set anew inside itself starves the loop, so that
 * the stop is never seen. */
static void a_timer_may_set_itself_anew(void **state)
{
    (void)state;
    struct env_timer timer = {.fire = chain_fire};
    chain_count = 0;
    chain_length = 100;
    env_timer_start(env, &timer, 0);
    net_loop_run(loop);
    assert_int_equal(chain_count, 100);
}

/* Wrong if a delay of nothing is rounded up to a millisecond: everything that
 * waits for the end of the loop's turn would wait for that. */
static void a_timer_without_delay_does_not_wait_for_the_clock(void **state)
{
    (void)state;
    struct alarm second = {.timer.fire = alarm_fire};
    struct env_timer timer = {.fire = chain_fire};
    chain_count = 0;
    chain_length = 5000;
    env_timer_start(env, &second.timer, 5000000);
    env_timer_start(env, &timer, 0);
    net_loop_run(loop);
    env_timer_stop(env, &second.timer);
    assert_int_equal(chain_count, 5000);
    assert_int_equal(second.fired_count, 0);
}

struct chain_end {
    struct env_job job;
    bool done;
};

static void chain_end_done(struct env_job *job)
{
    ((struct chain_end *)job)->done = true;
    chain_length = 0;
}

/* Wrong if timers without delay that are started while such fire are called in
 * the same turn: then nothing else comes to its turn. */
static void timers_without_delay_starve_nobody(void **state)
{
    (void)state;
    struct chain_end end = {.job.done = chain_end_done};
    struct env_timer timer = {.fire = chain_fire};
    chain_count = 0;
    chain_length = 1000000;
    env_timer_start(env, &timer, 0);
    env_post(env, &end.job);
    net_loop_run(loop);
    assert_true(end.done);
    assert_true(chain_count < 100);
}

static struct alarm *stop_victim;

static void stop_other_fire(struct env_timer *timer)
{
    (void)timer;
    env_timer_stop(env, &stop_victim->timer);
}

/* Wrong if a timer stays in the list of those without delay when it is stopped,
 * or given a delay. */
static void a_timer_without_delay_is_stopped_and_set_anew(void **state)
{
    (void)state;
    struct alarm stopped = {.timer.fire = alarm_fire};
    struct alarm by_other = {.timer.fire = alarm_fire};
    struct alarm later = {.timer.fire = alarm_fire};
    struct alarm sooner = {.timer.fire = alarm_fire};
    struct env_timer stopper = {.fire = stop_other_fire};
    stop_victim = &by_other;
    env_timer_start(env, &stopper, 0);
    env_timer_start(env, &by_other.timer, 0);
    env_timer_start(env, &stopped.timer, 0);
    env_timer_stop(env, &stopped.timer);
    env_timer_start(env, &later.timer, 0);
    later.set_us = env_now_us(env);
    env_timer_start(env, &later.timer, 5000);
    env_timer_start(env, &sooner.timer, 1000000);
    env_timer_start(env, &sooner.timer, 0);
    run_for(20000);
    assert_int_equal(stopped.fired_count, 0);
    assert_int_equal(by_other.fired_count, 0);
    assert_int_equal(later.fired_count, 1);
    assert_true(later.fired_us >= later.set_us + 5000);
    assert_int_equal(sooner.fired_count, 1);
}

/* --- posts --- */

enum { POST_THREADS = 4, POSTS_EACH = 5000 };

struct posted {
    struct env_job job; /* first */
    uint32_t thread;
    uint32_t number;
};

static struct posted posts[POST_THREADS][POSTS_EACH];
static uint32_t posts_seen[POST_THREADS];
static uint32_t posts_total;

static void post_done(struct env_job *job)
{
    struct posted *p = (struct posted *)job;
    assert_int_equal(p->number, posts_seen[p->thread]);
    posts_seen[p->thread]++;
    if (++posts_total == POST_THREADS * POSTS_EACH) {
        net_loop_stop(loop);
    }
}

static void *post_main(void *arg)
{
    struct posted *mine = arg;
    for (uint32_t i = 0; i < POSTS_EACH; i++) {
        env_post(env, &mine[i].job);
    }
    return NULL;
}

/* Wrong if the one wake-up for many posts is lost, or jobs of one thread change
 * places. */
static void posts_of_many_threads_all_arrive_in_order(void **state)
{
    (void)state;
    pthread_t threads[POST_THREADS];
    posts_total = 0;
    for (uint32_t t = 0; t < POST_THREADS; t++) {
        posts_seen[t] = 0;
        for (uint32_t i = 0; i < POSTS_EACH; i++) {
            posts[t][i] = (struct posted){
                .job.done = post_done, .thread = t, .number = i};
        }
        assert_int_equal(pthread_create(&threads[t], NULL, post_main, posts[t]),
                         0);
    }
    net_loop_run(loop);
    for (uint32_t t = 0; t < POST_THREADS; t++) {
        pthread_join(threads[t], NULL);
        assert_int_equal(posts_seen[t], POSTS_EACH);
    }
}

/* --- workers --- */

enum { JOBS = 3000 };

struct work {
    struct env_job job; /* first */
    uint32_t number;
    bool ran;
};

static struct work works[JOBS];
static uint32_t ran_count;  /* the worker's */
static uint32_t done_count; /* the loop's */
static struct env_worker *worker;

static void work_run(struct env_job *job)
{
    struct work *w = (struct work *)job;
    assert_int_equal(w->number, ran_count);
    ran_count++;
    w->ran = true;
}

static void work_done(struct env_job *job)
{
    struct work *w = (struct work *)job;
    assert_true(w->ran);
    assert_int_equal(w->number, done_count);
    if (++done_count == JOBS) {
        net_loop_stop(loop);
    }
}

static void works_submit(uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        works[i] = (struct work){.job = {.run = work_run, .done = work_done},
                                 .number = i};
        env_worker_submit(env, worker, &works[i].job);
    }
}

static void a_worker_runs_in_order_and_reports_in_order(void **state)
{
    (void)state;
    ran_count = done_count = 0;
    worker = env_worker_new(env, "test");
    works_submit(0, JOBS);
    net_loop_run(loop);
    assert_int_equal(done_count, JOBS);
    env_worker_free(env, worker);
}

static void more_done(struct env_job *job)
{
    work_done(job);
    if (done_count == 10) {
        works_submit(10, 20);
    }
}

/* Wrong if free() forgets jobs that are still queued, their done(), or jobs
 * that those submit. */
static void freeing_a_worker_finishes_everything_first(void **state)
{
    (void)state;
    ran_count = done_count = 0;
    worker = env_worker_new(env, "test");
    works_submit(0, 10);
    for (int i = 0; i < 10; i++) {
        works[i].job.done = more_done;
    }
    env_worker_free(env, worker);
    assert_int_equal(ran_count, 20);
    assert_int_equal(done_count, 20);
    run_for(2000); /* nothing of it may be left in the loop */
    assert_int_equal(done_count, 20);
}

static void free_done(struct env_job *job)
{
    (void)job;
    env_worker_free(env, worker);
    done_count++;
    net_loop_stop(loop);
}

/* Wrong if delivering goes on with a worker that its own job freed. */
static void a_job_may_free_its_worker(void **state)
{
    (void)state;
    done_count = ran_count = 0;
    worker = env_worker_new(env, "test");
    struct env_job first = {.done = free_done};
    env_worker_submit(env, worker, &first);
    works_submit(0, 5);
    net_loop_run(loop);
    assert_int_equal(done_count, 6);
}

/* What a job waits for that is to run until the test says so. */
struct gate {
    bool open; /* atomic */
};

static void gate_open(struct gate *gate)
{
    __atomic_store_n(&gate->open, true, __ATOMIC_RELEASE);
}

/* False when nobody opened it for a long time. */
static bool gate_wait(struct gate *gate)
{
    for (int i = 0; i < 50000; i++) {
        if (__atomic_load_n(&gate->open, __ATOMIC_ACQUIRE)) {
            return true;
        }
        usleep(200);
    }
    return false;
}

enum { SLOW_JOBS = 8 };

static struct gate slow_gate;
static bool slow_gate_opened;

static void slow_run(struct env_job *job)
{
    (void)job;
    usleep(1000);
}

static void last_slow_run(struct env_job *job)
{
    (void)job;
    slow_gate_opened = gate_wait(&slow_gate);
}

static void slow_done(struct env_job *job)
{
    (void)job;
    done_count++;
    if (done_count == SLOW_JOBS - 1) {
        gate_open(&slow_gate);
    } else if (done_count == SLOW_JOBS) {
        net_loop_stop(loop);
    }
}

/* Wrong if a batch is reported only when all of it has run: an fsync would
 * wait for those behind it. Here the last waits for those before it. */
static void a_slow_batch_is_reported_in_pieces(void **state)
{
    (void)state;
    struct env_job slow[SLOW_JOBS];
    done_count = 0;
    slow_gate = (struct gate){0};
    worker = env_worker_new(env, "test");
    for (int i = 0; i < SLOW_JOBS; i++) {
        bool last = i == SLOW_JOBS - 1;
        slow[i] = (struct env_job){.run = last ? last_slow_run : slow_run,
                                   .done = slow_done};
        env_worker_submit(env, worker, &slow[i]);
    }
    net_loop_run(loop);
    assert_true(slow_gate_opened);
    env_worker_free(env, worker);
}

/* --- brief jobs --- */

enum { BRIEF_JOBS = 600, BRIEF_US = 1000 /* transport/worker.c's */ };

struct brief {
    struct env_job job; /* first */
    uint32_t number;
    uint32_t sleep_us;
    struct gate *wait; /* or NULL; it runs until this is open */
    bool was_here;     /* run() was on the loop's thread */
};

static pthread_t loop_thread;
static struct brief briefs[BRIEF_JOBS];
static uint32_t brief_end; /* done() of that many ends the loop */
static bool brief_slowed;  /* the machine made a brief job a long one */

static void brief_run(struct env_job *job)
{
    struct brief *b = (struct brief *)job;
    b->was_here = pthread_equal(pthread_self(), loop_thread) != 0;
    assert_int_equal(b->number, ran_count);
    ran_count++;
    if (b->sleep_us > 0) {
        usleep(b->sleep_us);
    }
    if (b->wait != NULL) {
        assert_true(gate_wait(b->wait));
    }
}

static void brief_done(struct env_job *job)
{
    assert_int_equal(((struct brief *)job)->number, done_count);
    if (++done_count == brief_end) {
        net_loop_stop(loop);
    }
}

static struct brief *brief_make(uint32_t number, uint32_t sleep_us)
{
    briefs[number] =
        (struct brief){.job = {.run = brief_run, .done = brief_done},
                       .number = number,
                       .sleep_us = sleep_us};
    return &briefs[number];
}

/* Submits it, and sees whether this thread was held up meanwhile: then the
 * worker sends the next ones to its thread, and is right. */
static void brief_submit(struct brief *b)
{
    uint64_t began_us = env_now_us(env);
    env_worker_submit_brief(env, worker, &b->job);
    brief_slowed |= env_now_us(env) - began_us > BRIEF_US;
}

static void briefs_begin(uint32_t end)
{
    ran_count = done_count = 0;
    brief_end = end;
    brief_slowed = false;
    loop_thread = pthread_self();
    worker = env_worker_new(env, "test");
}

/* Wrong if the thread is woken for it, or done() comes inside the call. */
static void a_brief_job_of_an_idle_worker_runs_here(void **state)
{
    (void)state;
    briefs_begin(2);
    brief_submit(brief_make(0, 0));
    assert_int_equal(ran_count, 1);
    bool slowed = brief_slowed;
    brief_submit(brief_make(1, 0));
    assert_int_equal(done_count, 0);
    net_loop_run(loop);
    assert_true(briefs[0].was_here);
    assert_true(briefs[1].was_here || slowed);
    env_worker_free(env, worker);
}

/* Wrong if a brief job overtakes others, or runs beside one. */
static void brief_jobs_keep_their_place(void **state)
{
    (void)state;
    struct gate second_submitted = {0};
    briefs_begin(BRIEF_JOBS);
    for (uint32_t i = 0; i < BRIEF_JOBS; i++) {
        struct brief *b = brief_make(i, i % 100 == 0 ? 2000 : 0);
        b->wait = i == 0 ? &second_submitted : NULL;
        if (i % 3 == 0) {
            env_worker_submit(env, worker, &b->job);
        } else {
            env_worker_submit_brief(env, worker, &b->job);
        }
        if (i == 1) {
            gate_open(&second_submitted);
        }
    }
    net_loop_run(loop);
    assert_int_equal(ran_count, BRIEF_JOBS);
    assert_false(briefs[1].was_here);
    env_worker_free(env, worker);
}

static struct gate brief_begun;

static void begun_run(struct env_job *job)
{
    gate_open(&brief_begun);
    brief_run(job);
}

/* Wrong if only the queue is looked at, and not what runs. */
static void a_brief_job_waits_for_the_one_that_runs(void **state)
{
    (void)state;
    struct gate second_submitted = {0};
    briefs_begin(2);
    brief_begun = (struct gate){0};
    brief_make(0, 0)->job.run = begun_run;
    briefs[0].wait = &second_submitted;
    env_worker_submit(env, worker, &briefs[0].job);
    assert_true(gate_wait(&brief_begun));
    env_worker_submit_brief(env, worker, &brief_make(1, 0)->job);
    gate_open(&second_submitted);
    net_loop_run(loop);
    assert_false(briefs[1].was_here);
    env_worker_free(env, worker);
}

static void brief_done_submits(struct env_job *job)
{
    uint32_t next = ((struct brief *)job)->number + 1;
    if (next < brief_end) {
        struct brief *b = brief_make(next, 0);
        b->job.done = brief_done_submits;
        brief_submit(b);
    }
    brief_done(job);
}

static uint32_t done_at_turn;

static void next_turn(struct env_timer *timer)
{
    (void)timer;
    done_at_turn = done_count;
}

static struct env_timer turn_timer;

static void turn_then_submit(struct env_timer *timer)
{
    (void)timer;
    struct brief *b = brief_make(0, 0);
    b->job.done = brief_done_submits;
    brief_submit(b);
    turn_timer.fire = next_turn;
    env_timer_start(env, &turn_timer, 0);
}

/* Wrong if the answer to a write waits for a turn between its sync and its
 * execution, or if jobs that follow each other keep the loop from the net. */
static void two_brief_jobs_end_in_one_turn(void **state)
{
    (void)state;
    briefs_begin(5);
    done_at_turn = 0;
    turn_timer = (struct env_timer){.fire = turn_then_submit};
    env_timer_start(env, &turn_timer, 0);
    net_loop_run(loop);
    assert_true(done_at_turn == 2 || (done_at_turn < 2 && brief_slowed));
    env_worker_free(env, worker);
}

/* Wrong if a slow disk holds up the loop again and again. */
static void a_job_that_was_not_brief_sends_the_next_to_the_thread(void **state)
{
    (void)state;
    enum { LONG_US = 100000, PAUSE_FACTOR = 16 /* transport/worker.c's */ };
    briefs_begin(2);
    uint64_t began_us = env_now_us(env);
    env_worker_submit_brief(env, worker, &brief_make(0, LONG_US)->job);
    env_worker_submit_brief(env, worker, &brief_make(1, 0)->job);
    /* Held up for longer than the pause, the second may run here, too. */
    uint64_t took_us = env_now_us(env) - began_us;
    bool paused = took_us < LONG_US + LONG_US * PAUSE_FACTOR;
    net_loop_run(loop);
    assert_true(briefs[0].was_here);
    assert_true(!briefs[1].was_here || !paused);
    env_worker_free(env, worker);

    briefs_begin(2); /* a worker of its own: nothing is remembered */
    env_worker_submit_brief(env, worker, &brief_make(0, 0)->job);
    assert_true(briefs[0].was_here);
    env_worker_free(env, worker);
    assert_int_equal(done_count, 1);
    run_for(2000);
    assert_int_equal(done_count, 1);
}

/* --- the rest --- */

static int signal_seen;

static void on_signal(void *arg, int signal_number)
{
    assert_ptr_equal(arg, &signal_seen);
    signal_seen = signal_number;
    net_loop_stop(loop);
}

static void a_signal_is_called_on_the_loop(void **state)
{
    (void)state;
    assert_int_equal(net_loop_signal(loop, SIGUSR1, on_signal, &signal_seen),
                     ERR_OK);
    kill(getpid(), SIGUSR1);
    net_loop_run(loop);
    assert_int_equal(signal_seen, SIGUSR1);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(net_loop_signal(loop, SIGUSR2, on_signal, NULL),
                         ERR_OK);
    }
    assert_int_equal(net_loop_signal(loop, SIGUSR2, on_signal, NULL), ERR_BUSY);
}

static void fatal_ends_the_process_with_status_70(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        log_set_level(LOG_LEVEL_OFF);
        env_fatal(env, "disk %d is broken", 3);
        _exit(1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
}

static void a_stop_before_the_run_is_not_lost(void **state)
{
    (void)state;
    net_loop_stop(loop);
    net_loop_run(loop);
}

static void clocks_and_random_numbers(void **state)
{
    (void)state;
    uint64_t before = env_now_us(env);
    assert_true(env_now_us(env) >= before);
    assert_true(env_wall_us(env) > 1700000000ull * 1000000);
    assert_true(env_random(env) != env_random(env));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(timers_fire_in_order_and_never_early),
        T(a_stopped_timer_does_not_fire_and_a_restarted_one_fires_once),
        T(a_timer_may_set_itself_anew),
        T(a_timer_without_delay_does_not_wait_for_the_clock),
        T(timers_without_delay_starve_nobody),
        T(a_timer_without_delay_is_stopped_and_set_anew),
        T(posts_of_many_threads_all_arrive_in_order),
        T(a_worker_runs_in_order_and_reports_in_order),
        T(freeing_a_worker_finishes_everything_first),
        T(a_job_may_free_its_worker),
        T(a_slow_batch_is_reported_in_pieces),
        T(a_brief_job_of_an_idle_worker_runs_here),
        T(brief_jobs_keep_their_place),
        T(a_brief_job_waits_for_the_one_that_runs),
        T(two_brief_jobs_end_in_one_turn),
        T(a_job_that_was_not_brief_sends_the_next_to_the_thread),
        T(a_signal_is_called_on_the_loop),
        T(fatal_ends_the_process_with_status_70),
        T(a_stop_before_the_run_is_not_lost),
        T(clocks_and_random_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
