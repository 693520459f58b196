/* The blocking client with real threads, over a loop and a net of the test's
 * own. Its worth is in MODE=tsan. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <string.h>
#include <time.h>

/* The client's own calls to the transport go to the fakes below. */
#define net_loop_new     fake_loop_new
#define net_loop_free    fake_loop_free
#define net_loop_env     fake_loop_env
#define net_loop_run     fake_loop_run
#define net_loop_stop    fake_loop_stop
#define rpc_new          fake_rpc_new
#define rpc_free         fake_rpc_free
#define rpc_net          fake_rpc_net
#define tls_context_new  fake_tls_new
#define tls_context_free fake_tls_free
#include "shardkv/client.c"

#include "base/rng.h"

enum { THREADS = 8, ROUNDS = 300, KEY_SIZE = 9, STUCK_OBJECT = 99 };
enum { LONG_MS = 30000 }; /* for what comes at once */

struct answer {
    uint64_t id;
    struct buf body;
    net_reply_fn *reply;
    void *arg;
    struct answer *next;
};

struct timer_node {
    uint64_t at_us;
    struct env_timer *timer;
    struct timer_node *next;
};

/* One at a time; made by net_loop_new() and kept for the rpc. */
struct net_loop {
    struct env env; /* first */
    struct net net;
    pthread_mutex_t lock; /* posts, stop */
    pthread_cond_t woken;
    struct env_job *posts;
    bool stop;
    uint64_t wakes;
    /* The loop's alone. */
    struct timer_node *timers;
    struct answer *answers;
    uint64_t last_id;
    struct rng rng;
};

static struct net_loop *the_loop;
static bool controllers_answer;

static uint64_t clock_us(struct env *env)
{
    struct timespec t;
    (void)env;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void timer_stop(struct env *env, struct env_timer *t)
{
    struct timer_node **at = &((struct net_loop *)(void *)env)->timers;
    while (t->impl != NULL) {
        if (*at == t->impl) {
            struct timer_node *node = *at;
            *at = node->next;
            mem_free(node);
            t->impl = NULL;
        } else {
            at = &(*at)->next;
        }
    }
}

static void timer_start(struct env *env, struct env_timer *t, uint64_t delay)
{
    struct net_loop *loop = (struct net_loop *)(void *)env;
    timer_stop(env, t);
    struct timer_node *node = mem_alloc(sizeof *node);
    node->at_us = clock_us(env) + delay;
    node->timer = t;
    t->impl = node;
    struct timer_node **at = &loop->timers;
    while (*at != NULL && (*at)->at_us <= node->at_us) {
        at = &(*at)->next;
    }
    node->next = *at;
    *at = node;
}

static void post(struct env *env, struct env_job *job)
{
    struct net_loop *loop = (struct net_loop *)(void *)env;
    pthread_mutex_lock(&loop->lock);
    job->next = loop->posts;
    loop->posts = job;
    loop->wakes++;
    pthread_cond_signal(&loop->woken);
    pthread_mutex_unlock(&loop->lock);
}

static uint64_t random_number(struct env *env)
{
    return rng_next(&((struct net_loop *)(void *)env)->rng);
}

static const struct env_ops env_ops = {
    .now_us = clock_us,
    .wall_us = clock_us,
    .timer_start = timer_start,
    .timer_stop = timer_stop,
    .post = post,
    .random = random_number,
};

/* ---- a net that answers by itself ---- */

static void answer_query(struct slice body, struct buf *out)
{
    struct ctl_query q;
    struct ctl_owner shards[4] = {{1}, {1}, {1}, {1}};
    struct ctl_server server = {.id = 1, .address = slice_text("a1:1")};
    struct ctl_group group = {.gid = 1, .servers = &server, .servers_count = 1};
    struct ctl_config c = {.number = 1,
                           .shards = shards,
                           .shards_count = 4,
                           .groups = &group,
                           .groups_count = 1};
    assert_int_equal(ctl_query_decode(body, NULL, &q), ERR_OK);
    if (controllers_answer && (q.number == CTL_LATEST || q.number <= 1)) {
        ctl_config_encode(out, &c);
    }
}

/* Results count up from the key's last byte; one object never answers. */
static void answer_request(struct slice body, struct buf *out)
{
    struct arena a = {0};
    struct skv_request r;
    struct skv_result results[4] = {{0}};
    assert_int_equal(skv_request_decode(body, &a, &r), ERR_OK);
    for (uint32_t i = 0; i < r.items_count; i++) {
        results[i].number = r.items[i].key.data[8] + i;
    }
    struct skv_reply reply = {.results = results,
                              .results_count = r.items_count};
    if ((get_be64(r.items[0].key.data) & SKV_OBJECT_KV) != STUCK_OBJECT) {
        skv_reply_encode(out, &reply);
    }
    arena_free(&a);
}

static uint64_t net_fake_call(struct net *net, const char *address,
                              net_method method, const struct slice *parts,
                              uint32_t part_count, uint32_t timeout_ms,
                              net_reply_fn *reply, void *arg)
{
    struct net_loop *loop = the_loop;
    struct answer *a = mem_alloc(sizeof *a);
    (void)net;
    (void)address;
    (void)timeout_ms;
    assert_int_equal(part_count, 1);
    a->id = ++loop->last_id;
    a->reply = reply;
    a->arg = arg;
    if (method == CTL_METHOD_QUERY) {
        answer_query(parts[0], &a->body);
    } else if (method == SKV_METHOD_LEADS) {
        enc_u8(&a->body, 0); /* asked when this machine stood still: it does */
    } else {
        answer_request(parts[0], &a->body);
    }
    a->next = loop->answers;
    loop->answers = a;
    return a->id;
}

static void answer_remove(struct net_loop *loop, struct answer *a)
{
    struct answer **at = &loop->answers;
    while (*at != a) {
        at = &(*at)->next;
    }
    *at = a->next;
}

static void net_fake_cancel(struct net *net, uint64_t id)
{
    (void)net;
    struct answer *a = the_loop->answers;
    while (a->id != id) {
        a = a->next;
    }
    answer_remove(the_loop, a);
    buf_free(&a->body);
    mem_free(a);
}

static const struct net_ops net_ops = {.call = net_fake_call,
                                       .cancel = net_fake_cancel};

/* ---- the loop ---- */

enum err fake_loop_new(struct net_loop **out)
{
    struct net_loop *loop = mem_alloc(sizeof *loop);
    loop->env.ops = &env_ops;
    loop->net.ops = &net_ops;
    pthread_mutex_init(&loop->lock, NULL);
    pthread_cond_init(&loop->woken, NULL);
    *out = the_loop = loop;
    return ERR_OK;
}

void fake_loop_free(struct net_loop *loop)
{
    assert_null(loop->timers);
    assert_null(loop->answers);
    pthread_cond_destroy(&loop->woken);
    pthread_mutex_destroy(&loop->lock);
    mem_free(loop);
}

struct env *fake_loop_env(struct net_loop *loop)
{
    return &loop->env;
}

static bool loop_answer(struct net_loop *loop)
{
    struct answer *a = loop->answers;
    while (a != NULL && a->body.size == 0) {
        a = a->next;
    }
    if (a == NULL) {
        return false;
    }
    answer_remove(loop, a);
    a->reply(a->arg, ERR_OK, buf_slice(&a->body));
    buf_free(&a->body);
    mem_free(a);
    return true;
}

static void loop_timers(struct net_loop *loop)
{
    while (loop->timers != NULL &&
           loop->timers->at_us <= clock_us(&loop->env)) {
        struct timer_node *node = loop->timers;
        struct env_timer *t = node->timer;
        loop->timers = node->next;
        mem_free(node);
        t->impl = NULL;
        t->fire(t);
    }
}

static void loop_posts(struct net_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    struct env_job *jobs = loop->posts;
    loop->posts = NULL;
    pthread_mutex_unlock(&loop->lock);
    while (jobs != NULL) {
        struct env_job *job = jobs;
        jobs = job->next;
        job->done(job);
    }
}

static bool loop_wait(struct net_loop *loop)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 1000000; /* a timer is at most so late */
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&loop->lock);
    if (!loop->stop && loop->posts == NULL) {
        pthread_cond_timedwait(&loop->woken, &loop->lock, &until);
    }
    bool stop = loop->stop;
    pthread_mutex_unlock(&loop->lock);
    return !stop;
}

void fake_loop_run(struct net_loop *loop)
{
    do {
        loop_posts(loop);
        loop_timers(loop);
        while (loop_answer(loop)) {
        }
    } while (loop_wait(loop));
}

void fake_loop_stop(struct net_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    loop->stop = true;
    pthread_cond_signal(&loop->woken);
    pthread_mutex_unlock(&loop->lock);
}

enum err fake_rpc_new(struct net_loop *loop, struct tls_context *context,
                      struct rpc **out)
{
    (void)context;
    *out = (struct rpc *)(void *)loop;
    return ERR_OK;
}

void fake_rpc_free(struct rpc *rpc)
{
    (void)rpc;
}

struct net *fake_rpc_net(struct rpc *rpc)
{
    return &((struct net_loop *)(void *)rpc)->net;
}

enum err fake_tls_new(const char *dir, const char *name,
                      struct tls_context **out, char *problem,
                      size_t problem_size)
{
    (void)dir;
    (void)problem;
    (void)problem_size;
    if (strcmp(name, "client") != 0) {
        return ERR_NOTFOUND;
    }
    *out = mem_alloc(1);
    return ERR_OK;
}

void fake_tls_free(struct tls_context *c)
{
    mem_free(c);
}

/* ---- the tests ---- */

static struct skv_client_config config = {.certs_dir = "certs",
                                          .identity = "client",
                                          .controllers = {"c1:1", "c2:1"},
                                          .controller_count = 2};

static struct skv_client *client_open_ok(void)
{
    struct skv_client *c = NULL;
    char problem[200] = "";
    controllers_answer = true;
    assert_int_equal(
        skv_client_new(&config, LONG_MS, &c, problem, sizeof problem), ERR_OK);
    assert_int_equal(skv_client_shard_count(c), 4);
    return c;
}

struct read_job {
    struct skv_txn txn;
    struct skv_item item;
    uint8_t key[KEY_SIZE];
};

static void job_init(struct read_job *j, uint64_t object, uint8_t last)
{
    *j = (struct read_job){0};
    set_be64(j->key, 2ull << 48 | object);
    j->key[8] = last;
    j->item = (struct skv_item){.kind = last % 2 == 0 ? SKV_GET : SKV_PUT,
                                .key = slice_of(j->key, KEY_SIZE)};
    j->txn.items = &j->item;
    j->txn.item_count = 1;
}

static void *many_runs(void *arg)
{
    struct skv_client *c = arg;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        struct read_job j;
        job_init(&j, 7, (uint8_t)i);
        enum err rc = skv_client_run(c, &j.txn);
        bool good = rc == ERR_OK && j.txn.results[0].number == (uint8_t)i;
        arena_free(&j.txn.arena);
        if (!good) {
            return (void *)1;
        }
    }
    return NULL;
}

/* Wrong if a caller was woken for another's answer, or never. */
static void many_threads_get_each_their_own_answer(void **state)
{
    (void)state;
    struct skv_client *c = client_open_ok();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, many_runs, c), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *bad = NULL;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    skv_client_free(c);
}

struct stuck {
    struct skv_client *client;
    struct read_job job;
    enum err rc;
};

static void *run_stuck(void *arg)
{
    struct stuck *s = arg;
    s->rc = skv_client_run(s->client, &s->job.txn);
    return NULL;
}

/* Before, at the same time, or long after the run began: it returns. */
static void a_cancel_ends_a_run_whenever_it_comes(void **state)
{
    (void)state;
    struct skv_client *c = client_open_ok();
    for (int i = 0; i < 60; i++) {
        struct stuck s = {.client = c};
        pthread_t thread;
        job_init(&s.job, STUCK_OBJECT, 0);
        if (i % 3 == 0) {
            skv_client_cancel(c, &s.job.txn);
        }
        assert_int_equal(pthread_create(&thread, NULL, run_stuck, &s), 0);
        if (i % 3 == 2) {
            struct timespec ms = {.tv_nsec = 1000000};
            nanosleep(&ms, NULL);
        }
        skv_client_cancel(c, &s.job.txn);
        skv_client_cancel(c, &s.job.txn);
        pthread_join(thread, NULL);
        assert_int_equal(s.rc, ERR_INTERRUPTED);
        skv_client_cancel(c, &s.job.txn);
        arena_free(&s.job.txn.arena);
    }
    skv_client_free(c);
}

static bool is_waiting(struct skv_client *c, struct stuck *s)
{
    pthread_mutex_lock(&c->lock);
    bool waiting = s->job.txn.arg != NULL;
    pthread_mutex_unlock(&c->lock);
    return waiting;
}

static void closing_ends_the_runs_that_wait(void **state)
{
    (void)state;
    struct skv_client *c = client_open_ok();
    struct stuck s[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        s[i] = (struct stuck){.client = c};
        job_init(&s[i].job, STUCK_OBJECT, 0);
        /* job_init() points into the job: it stays where it is. */
        assert_int_equal(pthread_create(&threads[i], NULL, run_stuck, &s[i]),
                         0);
        while (!is_waiting(c, &s[i])) {
            struct timespec ms = {.tv_nsec = 1000000};
            nanosleep(&ms, NULL);
        }
    }
    skv_client_free(c);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(s[i].rc, ERR_CLOSED);
        arena_free(&s[i].job.txn.arena);
    }
}

struct query_task {
    struct skv_client_task task;
    enum err rc;
    uint64_t number;
};

static void task_queried(void *arg, enum err rc, const struct ctl_config *found)
{
    struct query_task *q = arg;
    q->rc = rc;
    q->number = rc == ERR_OK ? found->number : 0;
    skv_client_task_finish(&q->task);
}

static void task_fn(struct skv_client_task *task, struct env *env,
                    struct net *net, struct ctl_client *ctl)
{
    (void)env;
    (void)net;
    ctl_client_query(ctl, CTL_LATEST, 0, LONG_MS, task_queried, task);
}

static void a_task_runs_on_the_loop(void **state)
{
    (void)state;
    struct skv_client *c = client_open_ok();
    struct query_task q = {.task = {.fn = task_fn}, .rc = ERR_IO};
    skv_client_task_run(c, &q.task);
    assert_int_equal(q.rc, ERR_OK);
    assert_int_equal(q.number, 1);
    skv_client_free(c);
}

static void a_client_that_cannot_start_says_why(void **state)
{
    (void)state;
    struct skv_client *c = NULL;
    char problem[200] = "";
    controllers_answer = false;
    assert_int_equal(skv_client_new(&config, 30, &c, problem, sizeof problem),
                     ERR_TIMEDOUT);
    assert_non_null(strstr(problem, "c1:1, c2:1"));
    struct skv_client_config bad = config;
    bad.identity = "nobody";
    assert_int_equal(skv_client_new(&bad, 30, &c, problem, sizeof problem),
                     ERR_NOTFOUND);
    bad.controller_count = 0;
    assert_int_equal(skv_client_new(&bad, 30, &c, problem, sizeof problem),
                     ERR_INVALID);
    assert_null(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_threads_get_each_their_own_answer),
        cmocka_unit_test(a_cancel_ends_a_run_whenever_it_comes),
        cmocka_unit_test(closing_ends_the_runs_that_wait),
        cmocka_unit_test(a_task_runs_on_the_loop),
        cmocka_unit_test(a_client_that_cannot_start_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
