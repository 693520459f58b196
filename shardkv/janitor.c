/* Prepared transactions whose clerk has gone and that nobody trips over would
 * stay for ever, and the session that could tell how they ended would expire
 * elsewhere meanwhile (session.c, 4). So the leader looks at its shards' now
 * and then, as somebody would who needs the keys: the clerk's own resolver
 * (clerk_resolve.c) finishes what is still there when it looks again.
 *
 * The clerk speaks for others' sessions only and opens none of its own, so
 * nothing of it can expire. When the group's lead is lost it is freed with
 * all it has under way: what it has asked may still be done, as COMMIT, ABORT
 * and RESOLVE may come twice and from many, and the next leader looks again. */
#include "shardkv/clerk_int.h"
#include "shardkv/server_int.h"

enum { JANITOR_INTERVAL_US = 2000000 };

static void janitor_look(struct skv_mover *m)
{
    const struct skv_picture *p = &m->picture;
    if (p->prepared_count == 0) {
        return;
    }
    if (m->clerk == NULL) {
        const struct skv_server_config *c = &m->server->config;
        m->clerk = skv_clerk_new(m->env, m->server->net, c->controllers,
                                 c->controller_count);
    }
    /* Without a configuration it knows no shard; it will at the next look. */
    for (uint32_t i = 0; m->clerk->has_config && i < p->prepared_count; i++) {
        skv_holder_seen(m->clerk, p->prepared[i]);
    }
}

/* What the picture shows is from the refresh of the last interval. */
static void janitor_fired(struct env_timer *timer)
{
    struct skv_mover *m =
        (struct skv_mover *)(void *)((char *)timer -
                                     offsetof(struct skv_mover, janitor_timer));
    janitor_look(m);
    skv_mover_refresh(m);
    env_timer_start(m->env, &m->janitor_timer, JANITOR_INTERVAL_US);
}

void skv_janitor_start(struct skv_mover *m)
{
    m->janitor_timer.fire = janitor_fired;
    env_timer_start(m->env, &m->janitor_timer, JANITOR_INTERVAL_US);
}

void skv_janitor_stop(struct skv_mover *m)
{
    env_timer_stop(m->env, &m->janitor_timer);
    if (m->clerk != NULL) {
        skv_clerk_free(m->clerk);
        m->clerk = NULL;
    }
}
