/* What the leader of a group does about its shards, from what its log says
 * (docs/migration.md). It asks the controllers for the next configuration and
 * proposes it; for each shard that is PULLING it fetches batches from the old
 * owner and proposes them, lets that one freeze the shard when little is left,
 * and fetches the rest; then it tells the old owner that it has all, until that
 * has acknowledged (a debt); for each shard that is DROPPING it proposes DROP
 * until nothing is left.
 *
 * Nothing here is needed for safety: a second leader that does the same at the
 * same time proposes steps that are refused (shard.c, 4). */
#include <inttypes.h>

#include "shardkv/server_int.h"

#include "base/check.h"
#include "base/log.h"

enum {
    /* With one other group: one that is gone must not hold the rest up. */
    PULLS_MAX = 4,
    SETTLES_MAX = 4,
    POLL_WAIT_MS = 10000,
    POLL_TIMEOUT_MS = 15000,
    POLL_PAUSE_US = 20000,
    POLL_ERROR_PAUSE_US = 500000,
};
#define RATE_INTERVAL_US   1000000
#define EXPIRE_INTERVAL_US (3600ull * 1000000)

/* ---- configurations ---- */

static void poll(struct skv_mover *m);

static void poll_timer_fired(struct env_timer *timer)
{
    struct skv_mover *m =
        (struct skv_mover *)(void *)((char *)timer -
                                     offsetof(struct skv_mover, poll_timer));
    m->poll_paused = false;
    poll(m);
}

static void poll_pause(struct skv_mover *m, uint64_t delay_us)
{
    m->poll_paused = true;
    m->poll_timer.fire = poll_timer_fired;
    env_timer_start(m->env, &m->poll_timer, delay_us);
}

/* What is still being dropped cannot come back yet (shard.c, 5). */
static bool may_follow(const struct skv_mover *m,
                       const struct ctl_config *config)
{
    const struct skv_picture *p = &m->picture;
    if (p->held != 0) {
        return false;
    }
    for (uint32_t s = 0; s < p->shard_count && s < config->shards_count; s++) {
        if (p->states[s] == SKV_SHARD_DROPPING &&
            config->shards[s].gid == m->server->config.gid) {
            return false;
        }
    }
    return true;
}

static void polled(void *arg, enum err rc, const struct ctl_config *config)
{
    struct skv_mover *m = arg;
    uint64_t pause_us =
        rc == ERR_NOTFOUND ? POLL_PAUSE_US : POLL_ERROR_PAUSE_US;
    m->polling = false;
    if (m->closing || !m->leading) {
        return;
    }
    if (rc == ERR_OK && config->number == m->picture.number + 1 &&
        ctl_config_check(config) == ERR_OK && may_follow(m, config)) {
        struct skv_task *t =
            skv_task_new(m, SKV_TASK_CONFIG, 0, config->number, NULL);
        skv_task_start_config(t, config);
        pause_us = POLL_PAUSE_US;
    }
    poll_pause(m, pause_us);
}

/* A shard on its way holds the next configuration up (shard.c, 5). */
static bool is_settled(const struct skv_picture *p)
{
    for (uint32_t i = 0; i < p->shard_count; i++) {
        if (p->states[i] == SKV_SHARD_PULLING ||
            p->states[i] == SKV_SHARD_LEAVING ||
            p->states[i] == SKV_SHARD_FROZEN) {
            return false;
        }
    }
    return true;
}

static void poll(struct skv_mover *m)
{
    if (!m->leading || m->closing || m->polling || m->poll_paused ||
        m->picture.generation == 0 || !is_settled(&m->picture) ||
        skv_task_count(m, SKV_TASK_CONFIG) > 0) {
        return;
    }
    m->polling = true;
    ctl_client_query(m->ctl, m->picture.number + 1, POLL_WAIT_MS,
                     POLL_TIMEOUT_MS, polled, m);
}

/* ---- the operator's rate ---- */

/* Our log follows no later configuration while a shard is on its way; the rate
 * of the newest holds at once all the same. */
static void rate_heard(void *arg, enum err rc, const struct ctl_config *config)
{
    struct skv_mover *m = arg;
    m->rate_asked = false;
    if (rc == ERR_OK && ctl_config_check(config) == ERR_OK &&
        config->move_rate != m->move_rate) {
        log_info("shardkv", "shards arrive with bytes_per_s=%" PRIu64,
                 config->move_rate);
        m->move_rate = config->move_rate;
    }
}

static void rate_timer_fired(struct env_timer *timer)
{
    struct skv_mover *m =
        (struct skv_mover *)(void *)((char *)timer -
                                     offsetof(struct skv_mover, rate_timer));
    if (!m->rate_asked && skv_task_count(m, SKV_TASK_PULL) > 0) {
        m->rate_asked = true;
        ctl_client_query(m->ctl, CTL_LATEST, 0, POLL_TIMEOUT_MS, rate_heard, m);
    }
    env_timer_start(m->env, &m->rate_timer, RATE_INTERVAL_US);
}

/* ---- what there is to do ---- */

static void look_at_shard(struct skv_mover *m, uint16_t shard)
{
    const struct skv_picture *p = &m->picture;
    uint64_t number = p->numbers[shard];
    if (p->states[shard] == SKV_SHARD_PULLING &&
        skv_task_find(m, SKV_TASK_PULL, shard) == NULL) {
        ctl_gid gid = p->previous.shards[shard].gid;
        if (skv_task_count_with(m, SKV_TASK_PULL, gid) < PULLS_MAX) {
            if (skv_task_count(m, SKV_TASK_PULL) == 0) {
                m->move_rate = p->config.move_rate;
            }
            struct skv_task *t =
                skv_task_new(m, SKV_TASK_PULL, shard, number,
                             ctl_config_group(&p->previous, gid));
            skv_task_set_cursor(t, &p->cursors[shard]);
            skv_task_start(t);
        }
    }
    if (p->states[shard] == SKV_SHARD_DROPPING &&
        skv_task_count(m, SKV_TASK_DROP) == 0) {
        skv_task_start(skv_task_new(m, SKV_TASK_DROP, shard, number, NULL));
    }
}

static void look_at_debt(struct skv_mover *m, const struct skv_owed *d)
{
    if (skv_task_count_with(m, SKV_TASK_SETTLE, d->creditor.gid) <
            SETTLES_MAX &&
        skv_task_find(m, SKV_TASK_SETTLE, d->shard) == NULL) {
        skv_task_start(skv_task_new(m, SKV_TASK_SETTLE, d->shard, d->number,
                                    &d->creditor));
    }
}

void skv_mover_look(struct skv_mover *m)
{
    if (!m->leading || m->closing || m->picture.generation == 0) {
        return;
    }
    for (uint32_t s = 0; s < m->picture.shard_count; s++) {
        look_at_shard(m, (uint16_t)s);
    }
    for (uint32_t i = 0; i < m->picture.debt_count; i++) {
        look_at_debt(m, &m->picture.debts[i]);
    }
    if (m->picture.held != 0 && skv_task_find(m, SKV_TASK_RELEASE, 0) == NULL) {
        skv_task_start_release(
            skv_task_new(m, SKV_TASK_RELEASE, 0, m->picture.held, NULL));
    }
    skv_places_look(m);
    poll(m);
}

/* ---- the picture ---- */

static void take_run(struct rsm_read *rd)
{
    struct skv_mover *m =
        (struct skv_mover *)(void *)((char *)rd -
                                     offsetof(struct skv_mover, take));
    m->take_rc = skv_picture_take(m->server->fsm, &m->fresh);
}

static void say_what_changed(const struct skv_mover *m)
{
    const struct skv_picture *p = &m->fresh;
    if (m->leading && (p->number != m->picture.number ||
                       is_settled(p) != is_settled(&m->picture))) {
        log_info("shardkv",
                 "group=%u configuration=%" PRIu64
                 " serving=%u arriving=%u leaving=%u",
                 (unsigned)m->server->config.gid, p->number,
                 (unsigned)skv_picture_count(p, SKV_SHARD_SERVING),
                 (unsigned)skv_picture_count(p, SKV_SHARD_PULLING),
                 (unsigned)skv_picture_leaving(p));
    }
}

static void take_done(struct rsm_read *rd, enum err rc)
{
    struct skv_mover *m =
        (struct skv_mover *)(void *)((char *)rd -
                                     offsetof(struct skv_mover, take));
    m->taking = false;
    if (rc != ERR_OK || m->take_rc != ERR_OK) {
        skv_picture_free(&m->fresh);
        return;
    }
    say_what_changed(m);
    skv_picture_free(&m->picture);
    m->picture = m->fresh;
    m->fresh = (struct skv_picture){0};
    if (m->closing) {
        return;
    }
    if (skv_fsm_generation(m->server->fsm) != m->picture.generation) {
        skv_mover_refresh(m);
    }
    skv_mover_look(m);
}

void skv_mover_refresh(struct skv_mover *m)
{
    if (m->taking || m->closing) {
        return;
    }
    m->taking = true;
    m->take = (struct rsm_read){.run = take_run, .done = take_done};
    rsm_read_local(m->server->rsm, &m->take);
}

void skv_mover_applied(struct skv_mover *m)
{
    if (skv_fsm_generation(m->server->fsm) != m->picture.generation) {
        skv_mover_refresh(m);
    } else if (skv_places_changed(m)) {
        skv_mover_look(m);
    }
}

/* ---- idle sessions ---- */

static void expire_timer_fired(struct env_timer *timer)
{
    struct skv_mover *m =
        (struct skv_mover *)(void *)((char *)timer -
                                     offsetof(struct skv_mover, expire_timer));
    if (m->picture.generation != 0 && skv_task_count(m, SKV_TASK_EXPIRE) == 0) {
        skv_task_start(skv_task_new(m, SKV_TASK_EXPIRE, 0, 0, NULL));
    }
    env_timer_start(m->env, &m->expire_timer, EXPIRE_INTERVAL_US);
}

/* ---- leading ---- */

void skv_mover_lead(struct skv_mover *m, bool leading)
{
    if (m->leading == leading || m->closing) {
        return;
    }
    m->leading = leading;
    if (leading) {
        env_timer_start(m->env, &m->expire_timer, EXPIRE_INTERVAL_US);
        env_timer_start(m->env, &m->rate_timer, RATE_INTERVAL_US);
        skv_janitor_start(m);
        skv_mover_refresh(m);
        return;
    }
    skv_janitor_stop(m);
    env_timer_stop(m->env, &m->expire_timer);
    env_timer_stop(m->env, &m->poll_timer);
    env_timer_stop(m->env, &m->rate_timer);
    m->poll_paused = false;
    skv_places_stop(m);
    skv_tasks_stop(m);
}

void skv_mover_init(struct skv_mover *m, struct skv_server *server)
{
    const struct skv_server_config *c = &server->config;
    m->server = server;
    m->env = server->env;
    m->expire_timer.fire = expire_timer_fired;
    m->rate_timer.fire = rate_timer_fired;
    skv_places_init(m);
    m->ctl = ctl_client_new(server->env, server->net, c->controllers,
                            c->controller_count);
}

void skv_mover_stop(struct skv_mover *m)
{
    skv_mover_lead(m, false);
    m->closing = true;
}

void skv_mover_fini(struct skv_mover *m)
{
    CHECK(!m->taking && m->tasks == NULL);
    ctl_client_free(m->ctl);
    skv_places_fini(m);
    skv_picture_free(&m->picture);
}
