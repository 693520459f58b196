#include "cmd/ask.h"

#include <string.h>

/* One call on the client's loop, for the thread that waits for it. */
struct ask {
    struct skv_client_task task; /* first: a task is its ask */
    enum err rc;
    uint32_t timeout_ms;
    struct arena *arena;
    uint64_t number;
    const struct ctl_change *change;
    const char *address;
    net_method method;
    struct slice body;
    void *out;
};

static void on_config(void *arg, enum err rc, const struct ctl_config *config)
{
    struct ask *a = arg;
    a->rc = rc;
    if (rc == ERR_OK) {
        ctl_config_copy(a->arena, config, a->out);
    }
    skv_client_task_finish(&a->task);
}

static void start_config(struct skv_client_task *task, struct env *env,
                         struct net *net, struct ctl_client *ctl)
{
    (void)env;
    (void)net;
    struct ask *a = (struct ask *)task;
    ctl_client_query(ctl, a->number, 0, a->timeout_ms, on_config, a);
}

enum err ask_config(struct skv_client *client, uint64_t number,
                    uint32_t timeout_ms, struct arena *arena,
                    struct ctl_config *out)
{
    struct ask a = {.task = {.fn = start_config},
                    .timeout_ms = timeout_ms,
                    .number = number,
                    .arena = arena,
                    .out = out};
    skv_client_task_run(client, &a.task);
    return a.rc;
}

static void on_changed(void *arg, enum err rc, uint64_t number)
{
    struct ask *a = arg;
    a->rc = rc;
    if (rc == ERR_OK) {
        *(uint64_t *)a->out = number;
    }
    skv_client_task_finish(&a->task);
}

static void start_change(struct skv_client_task *task, struct env *env,
                         struct net *net, struct ctl_client *ctl)
{
    (void)env;
    (void)net;
    struct ask *a = (struct ask *)task;
    ctl_client_change(ctl, a->change, a->timeout_ms, on_changed, a);
}

enum err ask_change(struct skv_client *client, const struct ctl_change *change,
                    uint32_t timeout_ms, uint64_t *number)
{
    struct ask a = {.task = {.fn = start_change},
                    .timeout_ms = timeout_ms,
                    .change = change,
                    .out = number};
    skv_client_task_run(client, &a.task);
    return a.rc;
}

static void on_mounts(void *arg, enum err rc, const struct ctl_mounts *mounts)
{
    struct ask *a = arg;
    struct ctl_mounts *out = a->out;
    a->rc = rc;
    if (rc == ERR_OK) {
        out->mounts_count = mounts->mounts_count;
        out->mounts =
            arena_array(a->arena, mounts->mounts_count, sizeof *out->mounts);
        for (uint32_t i = 0; i < mounts->mounts_count; i++) {
            struct ctl_mount m = mounts->mounts[i];
            m.host = arena_copy(a->arena, m.host);
            m.path = arena_copy(a->arena, m.path);
            out->mounts[i] = m;
        }
    }
    skv_client_task_finish(&a->task);
}

static void start_mounts(struct skv_client_task *task, struct env *env,
                         struct net *net, struct ctl_client *ctl)
{
    (void)env;
    (void)net;
    struct ask *a = (struct ask *)task;
    ctl_client_mounts(ctl, a->timeout_ms, on_mounts, a);
}

enum err ask_mounts(struct skv_client *client, uint32_t timeout_ms,
                    struct arena *arena, struct ctl_mounts *out)
{
    struct ask a = {.task = {.fn = start_mounts},
                    .timeout_ms = timeout_ms,
                    .arena = arena,
                    .out = out};
    skv_client_task_run(client, &a.task);
    return a.rc;
}

static void on_reply(void *arg, enum err rc, struct slice body)
{
    struct ask *a = arg;
    a->rc = rc;
    if (rc == ERR_OK) {
        *(struct slice *)a->out = arena_copy(a->arena, body);
    }
    skv_client_task_finish(&a->task);
}

static void start_call(struct skv_client_task *task, struct env *env,
                       struct net *net, struct ctl_client *ctl)
{
    (void)env;
    (void)ctl;
    struct ask *a = (struct ask *)task;
    net_call(net, a->address, a->method, &a->body, 1, a->timeout_ms, on_reply,
             a);
}

enum err ask_call(struct skv_client *client, const char *address,
                  net_method method, struct slice body, uint32_t timeout_ms,
                  struct arena *arena, struct slice *out)
{
    struct ask a = {.task = {.fn = start_call},
                    .timeout_ms = timeout_ms,
                    .address = address,
                    .method = method,
                    .body = body,
                    .arena = arena,
                    .out = out};
    skv_client_task_run(client, &a.task);
    return a.rc;
}

/* ---- many at once ---- */

/* Who is halted, or without power, breaks no connection: once others have
 * answered, those that are silent are waited for so much longer. On a busy
 * machine all are slow. */
enum { SILENCE_US = 500000 };

struct crowd {
    struct skv_client_task task; /* first: a task is its crowd */
    struct env *env;
    struct net *net;
    struct env_timer silence;
    const struct ask_whom *whom;
    struct asked *asked;
    uint32_t count, waiting, timeout_ms;
    ask_answer_fn *answer;
    void *arg;
};

/* One of them. */
struct asked {
    struct crowd *crowd;
    uint64_t net_call; /* 0: it is over */
};

static void crowd_end(struct crowd *c)
{
    env_timer_stop(c->env, &c->silence);
    for (uint32_t i = 0; i < c->count; i++) {
        if (c->asked[i].net_call != 0) {
            net_cancel(c->net, c->asked[i].net_call);
        }
    }
    skv_client_task_finish(&c->task);
}

static void silence_fired(struct env_timer *timer)
{
    crowd_end((struct crowd *)(void *)((char *)timer -
                                       offsetof(struct crowd, silence)));
}

static void one_answered(void *arg, enum err rc, struct slice body)
{
    struct asked *one = arg;
    struct crowd *c = one->crowd;
    one->net_call = 0;
    c->waiting--;
    bool enough = c->answer(c->arg, (uint32_t)(one - c->asked), rc, body);
    if (enough || c->waiting == 0) {
        crowd_end(c);
    } else if (rc == ERR_OK) {
        c->silence.fire = silence_fired;
        env_timer_start(c->env, &c->silence, SILENCE_US);
    }
}

static void start_crowd(struct skv_client_task *task, struct env *env,
                        struct net *net, struct ctl_client *ctl)
{
    (void)ctl;
    struct crowd *c = (struct crowd *)task;
    struct slice nothing = {0};
    c->env = env;
    c->net = net;
    c->waiting = c->count;
    for (uint32_t i = 0; i < c->count; i++) {
        c->asked[i].crowd = c;
        c->asked[i].net_call =
            net_call(net, c->whom[i].address, c->whom[i].method, &nothing, 1,
                     c->timeout_ms, one_answered, &c->asked[i]);
    }
}

void ask_many(struct skv_client *client, const struct ask_whom *whom,
              uint32_t count, uint32_t timeout_ms, ask_answer_fn *answer,
              void *arg)
{
    if (count == 0) {
        return;
    }
    struct crowd c = {.task = {.fn = start_crowd},
                      .whom = whom,
                      .count = count,
                      .timeout_ms = timeout_ms,
                      .answer = answer,
                      .arg = arg};
    c.asked = mem_array(count, sizeof *c.asked);
    skv_client_task_run(client, &c.task);
    mem_free(c.asked);
}

struct statuses {
    struct ask_replica *replicas;
    struct arena *arena;
};

static bool take_status(void *arg, uint32_t i, enum err rc, struct slice body)
{
    struct statuses *s = arg;
    struct ask_replica *r = &s->replicas[i];
    r->rc = rc;
    if (rc == ERR_OK) {
        r->rc =
            ctl_status_decode(arena_copy(s->arena, body), s->arena, &r->status);
    }
    return false;
}

void ask_statuses(struct skv_client *client, struct ask_replica *replicas,
                  uint32_t count, uint32_t timeout_ms, struct arena *arena)
{
    struct statuses s = {.replicas = replicas, .arena = arena};
    struct ask_whom *whom = mem_array(count + 1, sizeof *whom);
    for (uint32_t i = 0; i < count; i++) {
        replicas[i].rc = ERR_TIMEDOUT;
        whom[i].address = replicas[i].address;
        /* The numbers of both services' status method differ only by who
         * answers it. */
        whom[i].method =
            replicas[i].gid == 0 ? CTL_METHOD_STATUS : SKV_METHOD_STATUS;
    }
    ask_many(client, whom, count, timeout_ms, take_status, &s);
    mem_free(whom);
}
