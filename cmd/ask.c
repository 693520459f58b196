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
    struct ask_replica *replicas;
    uint32_t replica_count;
    uint32_t waiting;
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

/* One replica's status on its way. */
struct ask_one {
    struct ask *ask;
    struct ask_replica *replica;
};

static void on_status(void *arg, enum err rc, struct slice body)
{
    struct ask_one *one = arg;
    struct ask *a = one->ask;
    struct ask_replica *r = one->replica;
    r->rc = rc;
    if (rc == ERR_OK) {
        r->rc =
            ctl_status_decode(arena_copy(a->arena, body), a->arena, &r->status);
    }
    if (--a->waiting == 0) {
        skv_client_task_finish(&a->task);
    }
}

static void start_statuses(struct skv_client_task *task, struct env *env,
                           struct net *net, struct ctl_client *ctl)
{
    (void)env;
    (void)ctl;
    struct ask *a = (struct ask *)task;
    struct slice nothing = {0};
    a->waiting = a->replica_count;
    for (uint32_t i = 0; i < a->replica_count; i++) {
        struct ask_one *one = arena_alloc(a->arena, sizeof *one);
        struct ask_replica *r = &a->replicas[i];
        *one = (struct ask_one){.ask = a, .replica = r};
        /* The numbers of both services' status method differ only by who
         * answers it. */
        net_call(net, r->address,
                 r->gid == 0 ? CTL_METHOD_STATUS : SKV_METHOD_STATUS, &nothing,
                 1, a->timeout_ms, on_status, one);
    }
}

void ask_statuses(struct skv_client *client, struct ask_replica *replicas,
                  uint32_t count, uint32_t timeout_ms, struct arena *arena)
{
    if (count == 0) {
        return;
    }
    struct ask a = {.task = {.fn = start_statuses},
                    .timeout_ms = timeout_ms,
                    .arena = arena,
                    .replicas = replicas,
                    .replica_count = count};
    skv_client_task_run(client, &a.task);
}
