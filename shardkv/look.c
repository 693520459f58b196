/* Reading the views of cuts over the net, and closing those that nobody needs
 * any more. What touches a view runs on the "view" worker, one job after the
 * other; the loop only knows when each was used last. */
#include "shardkv/server_int.h"

#include "base/log.h"

/* The administrator says every few seconds that he needs it (cutter.c). */
enum { LEASE_US = 30 * 1000000, LEASE_LOOK_US = 5 * 1000000 };

struct look_call {
    struct env_job job; /* first */
    struct skv_server *server;
    struct net_request *request; /* NULL: the lease's, which closes */
    struct skv_look look;
    struct arena arena;
    struct buf out;
    enum err rc;
};

static void look_run(struct env_job *job)
{
    struct look_call *c = (struct look_call *)job;
    if (c->look.what == SKV_LOOK_CLOSE) {
        skv_view_remove(c->server->fsm, c->look.id);
    } else {
        c->rc = skv_view_look(c->server->fsm, &c->look, &c->out);
    }
}

static void look_done(struct env_job *job)
{
    struct look_call *c = (struct look_call *)job;
    if (c->request != NULL) {
        net_reply(c->server->net, c->request, c->rc, buf_slice(&c->out));
    }
    c->server->waiting--;
    arena_free(&c->arena);
    buf_free(&c->out);
    mem_free(c);
}

static struct look_call *look_new(struct skv_server *s,
                                  struct net_request *request)
{
    struct look_call *c = mem_alloc(sizeof *c);
    c->job.run = look_run;
    c->job.done = look_done;
    c->server = s;
    c->request = request;
    s->waiting++;
    return c;
}

/* The lease of the view `id`, or NULL. */
static struct skv_lease *lease_find(struct skv_server *s, uint64_t id)
{
    for (uint32_t i = 0; i < SKV_VIEWS_MAX; i++) {
        if (s->leases[i].id == id) {
            return &s->leases[i];
        }
    }
    return NULL;
}

/* A follower may hear of a view's end before it opens it. */
static void closed_remember(struct skv_server *s, uint64_t id)
{
    s->closed[s->closed_next++ % SKV_CLOSED_MAX] = id;
}

static bool closed_find(const struct skv_server *s, uint64_t id)
{
    for (uint32_t i = 0; i < SKV_CLOSED_MAX; i++) {
        if (s->closed[i] == id) {
            return true;
        }
    }
    return false;
}

void skv_look_handle(struct skv_server *s, struct net_request *request,
                     struct slice body)
{
    struct look_call *c = look_new(s, request);
    enum err rc =
        skv_look_decode(arena_copy(&c->arena, body), &c->arena, &c->look);
    if (rc != ERR_OK || c->look.what < SKV_LOOK_READ ||
        c->look.what > SKV_LOOK_CLOSE ||
        c->look.key.size > SKV_STORE_KEY_SIZE_MAX) {
        c->rc = ERR_INVALID;
        look_done(&c->job);
        return;
    }
    struct skv_lease *lease = lease_find(s, c->look.id);
    if (lease != NULL) {
        lease->used_us = env_now_us(s->env);
    }
    if (c->look.what == SKV_LOOK_KEEP) {
        /* It may have been opened since we looked. */
        skv_leases_look(s);
        c->rc = lease_find(s, c->look.id) != NULL &&
                        skv_view_take(s->fsm, c->look.id)
                    ? ERR_OK
                    : ERR_NOTFOUND;
        look_done(&c->job);
        return;
    }
    if (c->look.what == SKV_LOOK_CLOSE) {
        closed_remember(s, c->look.id);
    }
    env_worker_submit(s->env, s->view_worker, &c->job);
}

static void lease_end(struct skv_server *s, struct skv_lease *lease)
{
    struct look_call *c = look_new(s, NULL);
    c->look = (struct skv_look){.id = lease->id, .what = SKV_LOOK_CLOSE};
    env_worker_submit(s->env, s->view_worker, &c->job);
}

void skv_leases_look(struct skv_server *s)
{
    uint64_t now_us = env_now_us(s->env);
    for (uint32_t i = 0; i < SKV_VIEWS_MAX; i++) {
        struct skv_view_slot *slot = &s->fsm->views[i];
        struct skv_lease *lease = &s->leases[i];
        bool open = __atomic_load_n(&slot->open, __ATOMIC_ACQUIRE) != 0;
        uint64_t id = open ? __atomic_load_n(&slot->id, __ATOMIC_RELAXED) : 0;
        if (id != lease->id) {
            *lease = (struct skv_lease){.id = id, .used_us = now_us};
        }
        if (id != 0 && !lease->ending &&
            (now_us - lease->used_us > LEASE_US || closed_find(s, id))) {
            lease->ending = true;
            lease_end(s, lease);
        }
    }
}

static void lease_fired(struct env_timer *timer)
{
    struct skv_server *s =
        (struct skv_server *)(void *)((char *)timer -
                                      offsetof(struct skv_server, lease_timer));
    skv_leases_look(s);
    env_timer_start(s->env, timer, LEASE_LOOK_US);
}

void skv_leases_start(struct skv_server *s)
{
    s->view_worker = env_worker_new(s->env, "view");
    s->lease_timer.fire = lease_fired;
    env_timer_start(s->env, &s->lease_timer, LEASE_LOOK_US);
}

void skv_leases_stop(struct skv_server *s)
{
    env_timer_stop(s->env, &s->lease_timer);
    env_worker_free(s->env, s->view_worker);
}
