#include "cmd/view.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"

struct view {
    struct skv_client_task task; /* first */
    struct skv_client *client;
    struct skv_cutter *cutter;
    bool hold;
    uint32_t timeout_ms;
    enum err rc;
    struct arena *arena;
    struct view_ask *asks;
    uint32_t count, waiting;
};

static void on_taken(void *arg, enum err rc)
{
    struct view *v = arg;
    v->rc = rc;
    skv_client_task_finish(&v->task);
}

static void start_take(struct skv_client_task *task, struct env *env,
                       struct net *net, struct ctl_client *ctl)
{
    struct view *v = (struct view *)task;
    v->cutter = skv_cutter_new(env, net, ctl);
    skv_cutter_take(v->cutter, v->hold, v->timeout_ms, on_taken, v);
}

static void start_close(struct skv_client_task *task, struct env *env,
                        struct net *net, struct ctl_client *ctl)
{
    struct view *v = (struct view *)task;
    (void)env;
    (void)net;
    (void)ctl;
    skv_cutter_close(v->cutter);
    skv_cutter_free(v->cutter);
    skv_client_task_finish(task);
}

struct view *view_open(struct skv_client *client, bool hold,
                       uint32_t timeout_ms)
{
    struct view *v = mem_alloc(sizeof *v);
    v->client = client;
    v->hold = hold;
    v->timeout_ms = timeout_ms;
    v->rc = ERR_CLOSED;
    v->task.fn = start_take;
    skv_client_task_run(client, &v->task);
    if (v->rc == ERR_OK) {
        return v;
    }
    fprintf(stderr, "flotilla: cannot take a view of all shards: %s\n",
            v->cutter != NULL ? skv_cutter_problem(v->cutter)
                              : err_text(v->rc));
    view_close(v);
    return NULL;
}

void view_close(struct view *v)
{
    if (v->cutter != NULL) {
        v->task.fn = start_close;
        skv_client_task_run(v->client, &v->task);
    }
    mem_free(v);
}

struct skv_cutter *view_cutter(struct view *v)
{
    return v->cutter;
}

/* ---- questions ---- */

struct one {
    struct view *view;
    struct view_ask *ask;
};

/* A copy in the arena. */
static void take_seen(struct arena *a, const struct skv_seen *from,
                      struct skv_seen *to)
{
    struct buf b = {0};
    skv_seen_encode(&b, from);
    enum err rc = skv_seen_decode(arena_copy(a, buf_slice(&b)), a, to);
    CHECK(rc == ERR_OK);
    buf_free(&b);
}

static void on_seen(void *arg, enum err rc, const struct skv_seen *seen)
{
    struct one *one = arg;
    struct view *v = one->view;
    one->ask->rc = rc;
    if (rc == ERR_OK) {
        take_seen(v->arena, seen, &one->ask->seen);
    }
    if (--v->waiting == 0) {
        skv_client_task_finish(&v->task);
    }
}

static void start_asks(struct skv_client_task *task, struct env *env,
                       struct net *net, struct ctl_client *ctl)
{
    struct view *v = (struct view *)task;
    (void)env;
    (void)net;
    (void)ctl;
    v->waiting = v->count;
    for (uint32_t i = 0; i < v->count; i++) {
        struct one *one = arena_alloc(v->arena, sizeof *one);
        *one = (struct one){.view = v, .ask = &v->asks[i]};
        skv_cutter_look(v->cutter, one->ask->group, one->ask->server,
                        &one->ask->look, v->timeout_ms, on_seen, one);
    }
}

void view_ask(struct view *v, struct view_ask *asks, uint32_t count,
              uint32_t timeout_ms, struct arena *arena)
{
    if (count == 0) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        asks[i].rc = ERR_CLOSED;
    }
    v->asks = asks;
    v->count = count;
    v->timeout_ms = timeout_ms;
    v->arena = arena;
    v->task.fn = start_asks;
    skv_client_task_run(v->client, &v->task);
}

/* ---- cursors ---- */

void view_cursor_begin(struct view_cursor *c, uint16_t shard, bool own)
{
    c->shard = shard;
    c->offset = 0;
    c->last = false;
    buf_clear(&c->key);
    set_be64(buf_extend(&c->key, 8), (uint64_t)shard << 48 | !own);
}

void view_cursor_move(struct view_cursor *c, const struct skv_seen *seen)
{
    c->last = seen->last != 0;
    c->offset = seen->next_offset;
    buf_clear(&c->key);
    buf_append(&c->key, seen->next_key.data, seen->next_key.size);
}
