/* The simulated machine itself: a disk that forgets nothing, a net that loses
 * nothing or a clock that fires early would make every other test a lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "tests/sim/disk.h"
#include "tests/sim/net.h"

struct machine {
    struct sim_world world;
    struct sim_env env;
    struct sim_disk *sim;
    struct disk *disk;
};

static void machine_init(struct machine *m, uint64_t seed)
{
    sim_world_init(&m->world, seed, false);
    sim_env_init(&m->env, &m->world, 0);
    sim_env_start(&m->env);
    m->sim = sim_disk_new(&m->env);
    m->disk = sim_disk_seam(m->sim);
}

static void machine_fini(struct machine *m)
{
    sim_disk_free(m->sim);
    sim_world_fini(&m->world);
}

static void power_cut(struct machine *m)
{
    sim_env_kill(&m->env);
    sim_disk_crash(m->sim);
    sim_env_start(&m->env);
}

static struct disk_file *file(struct machine *m, const char *path, bool create)
{
    struct disk_file *f = NULL;
    enum err rc = m->disk->ops->open(m->disk, path, create, &f);
    assert_true(rc == ERR_OK || (rc == ERR_NOTFOUND && f == NULL));
    return f;
}

static void write_at(struct machine *m, struct disk_file *f, uint64_t offset,
                     uint8_t byte, size_t size)
{
    uint8_t bytes[8192];
    assert_true(size <= sizeof bytes);
    memset(bytes, byte, size);
    struct slice part = slice_of(bytes, size);
    assert_int_equal(m->disk->ops->write(f, offset, &part, 1), ERR_OK);
}

/* How many of the file's bytes in [from, to) are `byte`. */
static size_t count_bytes(struct machine *m, struct disk_file *f, uint64_t from,
                          uint64_t to, uint8_t byte)
{
    size_t count = 0;
    uint64_t size = 0;
    assert_int_equal(m->disk->ops->size(f, &size), ERR_OK);
    for (uint64_t i = from; i < to && i < size; i++) {
        uint8_t got = 0;
        assert_int_equal(m->disk->ops->read(f, i, &got, 1), ERR_OK);
        count += got == byte;
    }
    return count;
}

static void what_is_synced_stays(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        struct machine m;
        machine_init(&m, seed);
        struct disk_file *f = file(&m, "a", true);
        write_at(&m, f, 0, 1, 3000);
        assert_int_equal(m.disk->ops->sync(f), ERR_OK);
        assert_int_equal(m.disk->ops->sync_dir(m.disk, ""), ERR_OK);
        write_at(&m, f, 3000, 2, 100);
        m.disk->ops->close(f);
        power_cut(&m);
        f = file(&m, "a", false);
        assert_non_null(f);
        assert_int_equal(count_bytes(&m, f, 0, 3000, 1), 3000);
        m.disk->ops->close(f);
        machine_fini(&m);
    }
}

/* Over the seeds, each fate must occur: kept, lost, torn at 512. */
static void what_is_not_synced_may_be_lost_or_torn(void **state)
{
    (void)state;
    uint32_t kept = 0;
    uint32_t lost = 0;
    uint32_t torn = 0;
    uint32_t without_name = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct machine m;
        machine_init(&m, seed);
        struct disk_file *f = file(&m, "a", true);
        write_at(&m, f, 0, 1, 4096);
        assert_int_equal(m.disk->ops->sync(f), ERR_OK);
        bool named = seed % 2 == 0;
        if (named) {
            assert_int_equal(m.disk->ops->sync_dir(m.disk, ""), ERR_OK);
        }
        write_at(&m, f, 0, 2, 4096);
        m.disk->ops->close(f);
        power_cut(&m);
        f = file(&m, "a", false);
        assert_true(f != NULL || !named);
        if (f == NULL) {
            without_name++;
        } else {
            size_t twos = count_bytes(&m, f, 0, 4096, 2);
            assert_int_equal(twos % 512, 0);
            assert_int_equal(twos + count_bytes(&m, f, 0, 4096, 1), 4096);
            kept += twos == 4096;
            lost += twos == 0;
            torn += twos > 0 && twos < 4096;
            m.disk->ops->close(f);
        }
        machine_fini(&m);
    }
    assert_true(kept > 5);
    assert_true(lost > 5);
    assert_true(torn > 5);
    assert_true(without_name > 5);
}

static void a_rename_is_whole_or_not_at_all(void **state)
{
    (void)state;
    uint32_t done = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct machine m;
        machine_init(&m, seed);
        struct disk_file *a = file(&m, "a", true);
        struct disk_file *b = file(&m, "b", true);
        write_at(&m, a, 0, 1, 10);
        write_at(&m, b, 0, 2, 10);
        assert_int_equal(m.disk->ops->sync(a), ERR_OK);
        assert_int_equal(m.disk->ops->sync(b), ERR_OK);
        m.disk->ops->close(a);
        m.disk->ops->close(b);
        assert_int_equal(m.disk->ops->sync_dir(m.disk, ""), ERR_OK);
        assert_int_equal(m.disk->ops->rename(m.disk, "a", "b"), ERR_OK);
        power_cut(&m);
        a = file(&m, "a", false);
        b = file(&m, "b", false);
        assert_non_null(b);
        assert_int_equal(count_bytes(&m, b, 0, 10, a == NULL ? 1 : 2), 10);
        done += a == NULL;
        if (a != NULL) {
            m.disk->ops->close(a);
        }
        m.disk->ops->close(b);
        machine_fini(&m);
    }
    assert_true(done > 10 && done < 90);
}

static void a_failed_sync_loses_what_it_should_have_written(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, 3);
    struct disk_file *f = file(&m, "a", true);
    assert_int_equal(m.disk->ops->sync_dir(m.disk, ""), ERR_OK);
    write_at(&m, f, 0, 1, 100);
    sim_disk_fail_sync(m.sim);
    assert_int_equal(m.disk->ops->sync(f), ERR_IO);
    assert_int_equal(m.disk->ops->sync(f), ERR_OK); /* the lie */
    assert_int_equal(count_bytes(&m, f, 0, 100, 1), 100);
    m.disk->ops->close(f);
    power_cut(&m);
    f = file(&m, "a", false);
    assert_int_equal(count_bytes(&m, f, 0, 100, 1), 0);
    m.disk->ops->close(f);
    machine_fini(&m);
}

static void a_dead_node_changes_nothing(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, 3);
    struct disk_file *f = file(&m, "a", true);
    sim_disk_die_after(m.sim, 2);
    write_at(&m, f, 0, 1, 100);
    uint8_t byte = 9;
    struct slice part = slice_of(&byte, 1);
    assert_int_equal(m.disk->ops->write(f, 0, &part, 1), ERR_IO);
    assert_true(m.env.dying);
    assert_int_equal(m.disk->ops->sync(f), ERR_IO);
    m.disk->ops->close(f);
    machine_fini(&m);
}

/* ---- time ---- */

struct fired {
    struct env_timer timer;
    struct env *env;
    uint64_t due_us;
    uint32_t count;
};

static void fire(struct env_timer *t)
{
    struct fired *f = (struct fired *)(void *)t;
    assert_true(env_now_us(f->env) >= f->due_us);
    f->count++;
}

static void timers_are_never_early(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, 5);
    struct env *env = &m.env.env;
    struct fired timers[40];
    memset(timers, 0, sizeof timers);
    m.env.rate_ppm = 1003000;
    for (uint32_t i = 0; i < 40; i++) {
        timers[i].timer.fire = fire;
        timers[i].env = env;
        timers[i].due_us = env_now_us(env) + i * 777;
        env_timer_start(env, &timers[i].timer, i * 777);
    }
    env_timer_stop(env, &timers[7].timer);
    env_timer_stop(env, &timers[7].timer);
    while (sim_step(&m.world)) {
    }
    for (uint32_t i = 0; i < 40; i++) {
        assert_int_equal(timers[i].count, i == 7 ? 0 : 1);
    }
    machine_fini(&m);
}

struct tick {
    struct sim_event event;
    struct sim_world *world;
    uint32_t number; /* of arrival */
    bool queued;
};

enum { TICKS = 300 };

struct ticks {
    struct sim_world world;
    struct tick all[TICKS];
    uint32_t numbers, pushed, fired;
    uint64_t last_us;
    uint32_t last_number;
};

static void tick_push(struct ticks *t, struct tick *tick, uint64_t delay_us)
{
    tick->queued = true;
    tick->number = t->numbers++;
    sim_push(&t->world, &tick->event, delay_us);
}

static void tick_drop(struct sim_event *event)
{
    ((struct tick *)event)->queued = false;
}

static void tick_fire(struct sim_event *event)
{
    struct tick *tick = (struct tick *)event;
    struct ticks *t = (struct ticks *)(void *)tick->world;
    if (sim_chance(&t->world, 100)) {
        uint32_t more = (uint32_t)sim_between(&t->world, 0, TICKS - 1);
        if (!t->all[more].queued && t->all[more].world != NULL) {
            tick_push(t, &t->all[more], 0); /* at this very time */
            t->pushed++;
        }
    }
    assert_true(tick->queued);
    assert_true(event->time_us == t->world.now_us);
    assert_true(event->time_us > t->last_us || (event->time_us == t->last_us &&
                                                tick->number > t->last_number));
    t->last_us = event->time_us;
    t->last_number = tick->number;
    tick->queued = false;
    t->fired++;
}

/* The queue is sorted no more than it must be: does it give what a sorted one
 * would? By time, then in the order of arrival, whatever is taken out. */
static void events_fire_by_time_and_then_by_arrival(void **state)
{
    (void)state;
    static struct ticks t;
    sim_world_init(&t.world, 11, false);
    uint32_t pulled = 0;
    for (uint32_t i = 0; i < 200000; i++) {
        struct tick *tick = &t.all[sim_between(&t.world, 0, TICKS - 1)];
        uint64_t most = UINT64_C(1) << sim_between(&t.world, 0, 40);
        if (!tick->queued) {
            tick->world = &t.world;
            tick->event =
                (struct sim_event){.fire = tick_fire, .drop = tick_drop};
            tick_push(&t, tick, sim_between(&t.world, 0, most));
            t.pushed++;
        } else if (sim_chance(&t.world, 200)) {
            sim_pull(&t.world, &tick->event);
            tick->queued = false;
            pulled++;
        } else if (sim_chance(&t.world, 100)) {
            uint64_t to = tick->event.time_us;
            sim_run_to(&t.world, to);
            assert_int_equal(t.world.now_us, to);
            for (uint32_t k = 0; k < TICKS; k++) {
                assert_true(!t.all[k].queued || t.all[k].event.time_us > to);
            }
        } else {
            sim_step(&t.world);
        }
    }
    while (sim_step(&t.world)) {
    }
    assert_int_equal(t.fired, t.pushed - pulled);
    sim_world_fini(&t.world);
}

static void a_timer_left_running_by_the_dead_is_a_failure(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, 5);
    struct fired t = {.timer.fire = fire, .env = &m.env.env};
    env_timer_start(&m.env.env, &t.timer, 100);
    sim_env_kill(&m.env);
    sim_env_bury(&m.env);
    assert_true(m.world.failed);
    machine_fini(&m);
}

struct job {
    struct env_job job;
    uint32_t *order;
    uint32_t *count;
    uint32_t number;
};

static void job_run(struct env_job *j)
{
    struct job *job = (struct job *)j;
    job->order[(*job->count)++] = job->number;
}

static void job_done(struct env_job *j)
{
    struct job *job = (struct job *)j;
    job->order[(*job->count)++] = 100 + job->number;
}

static void a_worker_is_first_in_first_out(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m, 9);
    struct env *env = &m.env.env;
    struct env_worker *w = env_worker_new(env, "w");
    uint32_t order[40];
    uint32_t count = 0;
    struct job jobs[20];
    for (uint32_t i = 0; i < 20; i++) {
        jobs[i] = (struct job){.job = {.run = job_run, .done = job_done},
                               .order = order,
                               .count = &count,
                               .number = i};
        env_worker_submit(env, w, &jobs[i].job);
    }
    for (int i = 0; i < 20; i++) {
        sim_step(&m.world);
    }
    assert_true(count > 10);
    env_worker_free(env, w); /* the rest runs now */
    assert_int_equal(count, 40);
    uint32_t next_run = 0;
    uint32_t next_done = 100;
    for (uint32_t i = 0; i < 40; i++) {
        if (order[i] < 100) {
            assert_int_equal(order[i], next_run++);
        } else {
            assert_int_equal(order[i], next_done++);
            assert_true(next_done - 100 <= next_run);
        }
    }
    machine_fini(&m);
}

/* ---- the net ---- */

struct ends {
    struct sim_world world;
    struct sim_env envs[2];
    struct net *nets[2];
    struct sim_wire *wire;
    uint32_t handled, answered, timed_out, closed;
};

static void on_call(void *arg, struct net_request *request,
                    const struct net_peer *peer, net_method method,
                    struct slice body)
{
    struct ends *e = arg;
    assert_int_equal(peer->role, NET_ROLE_CLIENT);
    assert_int_equal(method, 0x30);
    e->handled++;
    if (request != NULL) {
        net_reply(e->nets[1], request, ERR_OK, body);
    }
}

static void on_reply(void *arg, enum err rc, struct slice body)
{
    struct ends *e = arg;
    e->answered += rc == ERR_OK;
    e->timed_out += rc == ERR_TIMEDOUT;
    e->closed += rc == ERR_CLOSED;
    if (rc == ERR_OK) {
        assert_int_equal(slice_compare(body, slice_text("ping")), 0);
    }
}

static void ends_init(struct ends *e, uint64_t seed)
{
    memset(e, 0, sizeof *e);
    sim_world_init(&e->world, seed, false);
    e->wire = sim_wire_new(&e->world);
    for (uint32_t i = 0; i < 2; i++) {
        sim_env_init(&e->envs[i], &e->world, i);
        sim_env_start(&e->envs[i]);
        e->nets[i] = sim_net_add(e->wire, &e->envs[i], NET_ROLE_CLIENT, 0, "n");
    }
    e->nets[1]->handler = on_call;
    e->nets[1]->handler_arg = e;
}

static void ends_fini(struct ends *e)
{
    for (uint32_t i = 0; i < 2; i++) {
        sim_env_kill(&e->envs[i]);
        sim_net_bury(e->wire, i);
        sim_env_bury(&e->envs[i]);
    }
    sim_world_fini(&e->world);
    sim_wire_free(e->wire);
}

static uint64_t call_often(struct ends *e, uint32_t count)
{
    char address[NET_ADDRESS_SIZE_MAX];
    sim_net_address(1, address);
    struct slice body = slice_text("ping");
    for (uint32_t i = 0; i < count; i++) {
        net_call(e->nets[0], address, 0x30, &body, 1, 100, on_reply, e);
    }
    while (sim_step(&e->world)) {
    }
    return e->world.hash;
}

static void a_good_net_answers_each_call_once(void **state)
{
    (void)state;
    struct ends e;
    ends_init(&e, 1);
    call_often(&e, 500);
    assert_int_equal(e.handled, 500);
    assert_int_equal(e.answered, 500);
    ends_fini(&e);
}

static void a_bad_net_ends_each_call_once(void **state)
{
    (void)state;
    struct ends e;
    ends_init(&e, 1);
    *sim_wire_weather(e.wire) = (struct sim_weather){.delay_low_us = 100,
                                                     .delay_high_us = 60000,
                                                     .loss_per_mille = 100,
                                                     .twice_per_mille = 100,
                                                     .late_per_mille = 100,
                                                     .late_us = 500000};
    call_often(&e, 1000);
    assert_int_equal(e.answered + e.timed_out + e.closed, 1000);
    assert_true(e.timed_out > 100 && e.timed_out < 600);
    assert_true(e.handled > 900);
    ends_fini(&e);
}

static void a_cut_is_one_way(void **state)
{
    (void)state;
    struct ends e;
    ends_init(&e, 1);
    sim_wire_cut(e.wire, 1, 0, true);
    call_often(&e, 10);
    assert_int_equal(e.handled, 10);
    assert_int_equal(e.timed_out, 10);
    sim_wire_mend(e.wire);
    call_often(&e, 10);
    assert_int_equal(e.answered, 10);
    ends_fini(&e);
}

static void the_dead_do_not_answer(void **state)
{
    (void)state;
    struct ends e;
    ends_init(&e, 1);
    sim_env_kill(&e.envs[1]);
    call_often(&e, 100);
    assert_int_equal(e.handled, 0);
    assert_true(e.closed > 20 && e.timed_out > 20);
    assert_int_equal(e.closed + e.timed_out, 100);
    ends_fini(&e);
}

static void the_same_seed_gives_the_same_run(void **state)
{
    (void)state;
    uint64_t hashes[3];
    for (uint32_t i = 0; i < 3; i++) {
        struct ends e;
        ends_init(&e, i < 2 ? 77 : 78);
        sim_wire_weather(e.wire)->loss_per_mille = 200;
        hashes[i] = call_often(&e, 300);
        ends_fini(&e);
    }
    assert_true(hashes[0] == hashes[1]);
    assert_true(hashes[0] != hashes[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_synced_stays),
        cmocka_unit_test(what_is_not_synced_may_be_lost_or_torn),
        cmocka_unit_test(a_rename_is_whole_or_not_at_all),
        cmocka_unit_test(a_failed_sync_loses_what_it_should_have_written),
        cmocka_unit_test(a_dead_node_changes_nothing),
        cmocka_unit_test(timers_are_never_early),
        cmocka_unit_test(events_fire_by_time_and_then_by_arrival),
        cmocka_unit_test(a_timer_left_running_by_the_dead_is_a_failure),
        cmocka_unit_test(a_worker_is_first_in_first_out),
        cmocka_unit_test(a_good_net_answers_each_call_once),
        cmocka_unit_test(a_bad_net_ends_each_call_once),
        cmocka_unit_test(a_cut_is_one_way),
        cmocka_unit_test(the_dead_do_not_answer),
        cmocka_unit_test(the_same_seed_gives_the_same_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
