/* One thing that a group's leader does about its shards. Invariants:
 *
 *  1. A task has one of these under way, until it ends: a call to another
 *     group, a command in our log, its timer.
 *  2. Nothing is remembered here that would be missed: a new leader begins from
 *     what the log says (the picture), and every step may be made twice.
 *  3. A command cannot be taken back: a task that ends meanwhile is dead, out
 *     of the list, and freed when the command returns. */
#include "shardkv/server_int.h"

#include <inttypes.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"
#include "base/log.h"

enum {
    /* A server that is gone may leave us without an answer; one that is slow
     * gets more time at each round. */
    CALL_MIN_MS = 500,
    CALL_MAX_MS = 10000,
    MEMBERS_MS = 1000,
    /* Who hung up is asked again at once, so often between two pauses; then
     * the others are. */
    AGAIN_MAX = 3,
    PAUSE_MIN_US = 10000,
    PAUSE_MAX_US = 200000,
    /* Batches of changes after which the shard is frozen although more come
     * than we can follow. */
    CHASES_MAX = 1000,
    /* An administrator's cut takes some milliseconds; when he has gone, writes
     * must not wait for ever. */
    HOLD_MAX_US = 5000000,
};

static void pull_go_on(struct skv_task *t);
static void pull_start(struct skv_task *t);
static void pull_ask(struct skv_task *t);
static void expire_next(struct skv_task *t);

/* ---- life ---- */

struct skv_task *skv_task_find(struct skv_mover *m, enum skv_task_kind kind,
                               uint16_t shard)
{
    struct skv_task *t = NULL;
    DL_FOREACH(m->tasks, t)
    {
        if (t->kind == kind && t->shard == shard) {
            return t;
        }
    }
    return NULL;
}

uint32_t skv_task_count(const struct skv_mover *m, enum skv_task_kind kind)
{
    uint32_t count = 0;
    const struct skv_task *t = NULL;
    DL_FOREACH(m->tasks, t)
    {
        count += t->kind == kind;
    }
    return count;
}

/* A copy; `group` is not in the arena. */
static void group_take(struct skv_task *t, const struct ctl_group *group)
{
    struct buf b = {0};
    ctl_group_encode(&b, group);
    enum err rc = ctl_group_decode(arena_copy(&t->arena, buf_slice(&b)),
                                   &t->arena, &t->group);
    CHECK(rc == ERR_OK);
    buf_free(&b);
}

uint32_t skv_task_count_with(const struct skv_mover *m, enum skv_task_kind kind,
                             ctl_gid gid)
{
    uint32_t count = 0;
    const struct skv_task *t = NULL;
    DL_FOREACH(m->tasks, t)
    {
        count += t->kind == kind && t->group.gid == gid;
    }
    return count;
}

/* Where a task begins to ask: a guess at the group's leader. */
static uint8_t *hint(const struct skv_task *t)
{
    return &t->mover->hints[t->group.gid % SKV_HINTS];
}

struct skv_task *skv_task_new(struct skv_mover *m, enum skv_task_kind kind,
                              uint16_t shard, uint64_t number,
                              const struct ctl_group *group)
{
    struct skv_task *t = mem_alloc(sizeof *t);
    t->mover = m;
    t->kind = kind;
    t->shard = shard;
    t->number = number;
    t->pause_us = PAUSE_MIN_US;
    if (group != NULL) {
        group_take(t, group);
        t->server = *hint(t);
        t->again = AGAIN_MAX;
    }
    DL_APPEND(m->tasks, t);
    return t;
}

static void task_free(struct skv_task *t)
{
    buf_free(&t->pull.key_bytes);
    buf_free(&t->pull.next_bytes);
    buf_free(&t->pull.count_key);
    arena_free(&t->arena);
    mem_free(t);
}

void skv_task_end(struct skv_task *t)
{
    struct skv_mover *m = t->mover;
    DL_DELETE(m->tasks, t);
    env_timer_stop(m->env, &t->timer);
    if (t->net_call != 0) {
        net_cancel(m->server->net, t->net_call);
    }
    t->dead = true;
    if (!t->proposing) {
        task_free(t);
    }
}

void skv_tasks_stop(struct skv_mover *m)
{
    while (m->tasks != NULL) {
        skv_task_end(m->tasks);
    }
}

/* It ends, and somebody looks what else there is to do. */
static void task_over(struct skv_task *t)
{
    struct skv_mover *m = t->mover;
    skv_task_end(t);
    skv_mover_refresh(m);
}

/* ---- pauses ---- */

static void pause_over(struct env_timer *timer)
{
    struct skv_task *t =
        (struct skv_task *)(void *)((char *)timer -
                                    offsetof(struct skv_task, timer));
    skv_task_start(t);
}

/* Half of it is random, so that groups that wait for one another do not do it
 * in step. */
static void task_pause(struct skv_task *t)
{
    struct env *env = t->mover->env;
    uint64_t half = t->pause_us / 2;
    t->pause_us =
        t->pause_us * 2 < PAUSE_MAX_US ? t->pause_us * 2 : PAUSE_MAX_US;
    t->again = AGAIN_MAX;
    t->told = false;
    t->pull.freezing = false; /* changes came meanwhile: first these */
    t->timer.fire = pause_over;
    env_timer_start(env, &t->timer, half + env_random(env) % (half + 1));
}

/* It goes on when clients have had their share. */
static void task_rest(struct skv_task *t, struct skv_pace_batch *done)
{
    struct skv_mover *m = t->mover;
    uint64_t now_us = env_now_us(m->env);
    done->busy =
        done->busy || skv_pace_has_clients(m->server->asked_us, now_us);
    done->rate = m->move_rate;
    uint64_t rest_us = skv_pace_rest(&m->pace, done, now_us);
    t->pull.moved_us = now_us + rest_us; /* resting is not being stuck */
    if (rest_us == 0) {
        skv_task_start(t);
        return;
    }
    t->timer.fire = pause_over;
    env_timer_start(m->env, &t->timer, rest_us);
}

/* ---- commands ---- */

static void proposed(struct rsm_proposal *p, enum err rc, struct slice reply);

static void task_propose(struct skv_task *t, struct bytes *command)
{
    t->proposing = true;
    t->proposal = (struct rsm_proposal){.done = proposed};
    rsm_propose(t->mover->server->rsm, &t->proposal, command);
}

/* The batch at hand is in our log. */
static void pull_installed(struct skv_task *t)
{
    struct skv_pulling *p = &t->pull;
    struct buf spare = p->key_bytes;
    p->key_bytes = p->next_bytes;
    p->next_bytes = spare;
    p->cursor = p->next;
    p->cursor.key = buf_slice(&p->key_bytes);
    t->pause_us = PAUSE_MIN_US;
    p->moved_us = env_now_us(t->mover->env);
    pull_go_on(t);
}

static void expire_done(struct skv_task *t, const struct skv_outcome *outcome)
{
    t->after = outcome->next;
    if (!outcome->more) {
        t->shard++;
        t->after = 0;
    }
    expire_next(t);
}

static uint64_t ms_between(uint64_t from_us, uint64_t to_us)
{
    return from_us == 0 || to_us < from_us ? 0 : (to_us - from_us) / 1000;
}

/* The times are those that this leader has seen. */
static void say_arrived(const struct skv_task *t)
{
    const struct skv_pulling *p = &t->pull;
    uint64_t now_us = env_now_us(t->mover->env);
    log_info("shardkv",
             "arrived shard=%u from=%u keys=%" PRIu64 " bytes=%" PRIu64
             " batches=%" PRIu64 " copy_ms=%" PRIu64 " changes_ms=%" PRIu64
             " frozen_ms=%" PRIu64,
             t->shard, t->group.gid, p->next.keys, p->next.bytes,
             p->next.batches, ms_between(p->begun_us, p->changes_us),
             ms_between(p->changes_us, p->tail_us),
             ms_between(p->tail_us, now_us));
}

/* The command was applied, and did what it says. */
static void task_advance(struct skv_task *t, const struct skv_outcome *outcome)
{
    if (t->finish && t->kind == SKV_TASK_PULL) {
        say_arrived(t);
    }
    if (t->finish) {
        task_over(t);
        return;
    }
    switch (t->kind) {
    case SKV_TASK_PULL: pull_installed(t); return;
    case SKV_TASK_EXPIRE: expire_done(t, outcome); return;
    case SKV_TASK_DROP:
        if (outcome->more) {
            task_rest(t,
                      &(struct skv_pace_batch){.begun_us = t->pull.asked_us});
        } else {
            task_over(t);
        }
        return;
    case SKV_TASK_CONFIG:
    case SKV_TASK_RELEASE:
    case SKV_TASK_SETTLE: task_over(t); return;
    }
}

static void proposed(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    struct skv_task *t =
        (struct skv_task *)(void *)((char *)p -
                                    offsetof(struct skv_task, proposal));
    struct arena a = {0};
    struct skv_outcome outcome = {0};
    t->proposing = false;
    if (t->dead) {
        task_free(t);
        return;
    }
    if (rc == ERR_OK && t->kind != SKV_TASK_RELEASE) {
        rc = skv_outcome_decode(reply, &a, &outcome);
        CHECK(rc == ERR_OK); /* our own state machine's */
        rc = (enum err)outcome.rc;
    }
    arena_free(&a);
    if (rc == ERR_OK) {
        task_advance(t, &outcome);
    } else if ((rc == ERR_BUSY || rc == ERR_CORRUPT) &&
               t->kind != SKV_TASK_CONFIG) {
        /* ERR_CORRUPT: what was pulled makes no sense; from the beginning. */
        t->finish = false;
        task_pause(t);
    } else {
        /* Refused, as what has happened already is; or another leads. */
        task_over(t);
    }
}

/* ---- asking another group ---- */

static const struct ctl_group *task_group(const struct skv_task *t)
{
    return t->heard ? &t->group : skv_places_of(t->mover, &t->group);
}

static bool task_address(const struct skv_task *t, uint32_t server,
                         char address[NET_ADDRESS_SIZE_MAX])
{
    const struct ctl_group *g = task_group(t);
    if (g->servers_count == 0) {
        return false;
    }
    struct slice from = g->servers[server % g->servers_count].address;
    if (from.size >= NET_ADDRESS_SIZE_MAX) {
        return false;
    }
    memcpy(address, from.data, from.size);
    address[from.size] = '\0';
    return true;
}

static void task_call(struct skv_task *t, net_method method, struct buf *body,
                      net_reply_fn *reply)
{
    char address[NET_ADDRESS_SIZE_MAX];
    struct slice part = buf_slice(body);
    if (task_address(t, t->server, address)) {
        uint32_t rounds = t->failures / task_group(t)->servers_count;
        uint32_t timeout_ms =
            rounds < 5 ? (uint32_t)CALL_MIN_MS << rounds : CALL_MAX_MS;
        t->net_call = net_call(t->mover->server->net, address, method, &part, 1,
                               timeout_ms, reply, t);
    } else {
        t->server++;
        task_pause(t);
    }
    buf_free(body);
}

/* Who answers that it does not lead knows who the members are now. The group
 * may have left the configuration, so nobody else might know. True if it knows
 * who leads, too. */
static bool members_adopt(struct skv_task *t, const struct rsm_members *m)
{
    struct ctl_server servers[RAFT_PEERS_MAX];
    struct ctl_group now = {.gid = t->group.gid, .servers = servers};
    uint32_t leader = t->server;
    bool known = false;
    for (uint32_t i = 0; i < m->members_count; i++) {
        const struct rsm_member *one = &m->members[i];
        if (one->role == RSM_LEARNER || one->address.size == 0) {
            continue;
        }
        if (one->id == m->leader) {
            leader = now.servers_count;
            known = true;
        }
        servers[now.servers_count++] =
            (struct ctl_server){.id = one->id, .address = one->address};
    }
    if (now.servers_count > 0) {
        arena_free(&t->arena);
        group_take(t, &now);
        t->heard = true;
        t->server = leader;
        t->failures = 0;
    }
    return known;
}

static void members_heard(void *arg, enum err rc, struct slice body)
{
    struct skv_task *t = arg;
    struct arena a = {0};
    struct rsm_members m;
    bool known = false;
    t->net_call = 0;
    if (rc == ERR_OK && rsm_members_decode(body, &a, &m) == ERR_OK) {
        known = members_adopt(t, &m);
    }
    arena_free(&a);
    if (known && !t->told) {
        t->told = true; /* the next time it was wrong, or out of date */
        t->again = AGAIN_MAX;
        skv_task_start(t);
    } else {
        task_pause(t);
    }
}

static void members_ask(struct skv_task *t, uint32_t server)
{
    char address[NET_ADDRESS_SIZE_MAX];
    struct slice nothing = {0};
    if (!task_address(t, server, address)) {
        task_pause(t);
        return;
    }
    t->net_call = net_call(t->mover->server->net, address, RSM_METHOD_MEMBERS,
                           &nothing, 1, MEMBERS_MS, members_heard, t);
}

/* The leader has answered: the next tasks ask it first. */
static void task_answered(struct skv_task *t)
{
    *hint(t) = (uint8_t)(t->server % task_group(t)->servers_count);
    t->failures = 0;
    t->again = AGAIN_MAX;
    t->pause_us = PAUSE_MIN_US;
}

/* ERR_BUSY: the leader, and it is not ready. Else another may be the leader:
 * each is asked once before a pause; and after it perhaps others are there. */
static void task_refused(struct skv_task *t, enum err rc)
{
    if (rc == ERR_BUSY || rc == ERR_INVALID) {
        task_pause(t);
        return;
    }
    if (rc == ERR_CLOSED && t->again > 0) {
        t->again--; /* a connection broke: the leader may be well */
        skv_task_start(t);
        return;
    }
    if (rc == ERR_NOTLEADER) {
        t->follower = t->server;
        t->has_follower = true;
    }
    t->server++;
    t->failures++;
    if (t->failures % task_group(t)->servers_count != 0) {
        skv_task_start(t);
    } else if (t->has_follower) {
        t->has_follower = false;
        members_ask(t, t->follower);
    } else {
        t->heard = false;
        skv_places_refresh(t->mover, t->group.gid);
        task_pause(t);
    }
}

/* ---- a shard arrives ---- */

void skv_task_set_cursor(struct skv_task *t, const struct skv_cursor *cursor)
{
    struct skv_pulling *p = &t->pull;
    p->cursor = *cursor;
    p->moved_us = env_now_us(t->mover->env);
    buf_append(&p->key_bytes, cursor->key.data, cursor->key.size);
    p->cursor.key = buf_slice(&p->key_bytes);
    p->stage = cursor->changes != 0 ? CTL_MOVE_CHANGES : CTL_MOVE_COPY;
    p->begun_us = p->moved_us;
    p->begun_bytes = cursor->bytes;
    if (p->stage == CTL_MOVE_CHANGES) {
        p->changes_us = p->moved_us;
    }
}

static enum err pulled_check(const struct skv_task *t,
                             const struct skv_pulled *p)
{
    if (p->cursor.key.size > SKV_STORE_KEY_SIZE_MAX || p->end > SKV_END_LAST ||
        p->cursor.changes > 1) {
        return ERR_CORRUPT;
    }
    for (uint32_t i = 0; i < p->records_count; i++) {
        if (skv_record_check(&p->records[i], t->shard) != ERR_OK) {
            return ERR_CORRUPT;
        }
    }
    return ERR_OK;
}

/* A batch of nothing need not enter the log, unless it ends the move. */
static void pull_install(struct skv_task *t, const struct skv_pulled *pulled)
{
    struct skv_pulling *p = &t->pull;
    bool logged = pulled->records_count > 0 || pulled->end == SKV_END_LAST;
    buf_clear(&p->next_bytes);
    buf_append(&p->next_bytes, pulled->cursor.key.data,
               pulled->cursor.key.size);
    p->next = pulled->cursor;
    p->next.key = buf_slice(&p->next_bytes);
    p->next.batches = p->cursor.batches + logged;
    p->end = pulled->end;
    if (!logged) {
        pull_installed(t);
        return;
    }
    struct skv_install install = {.shard = t->shard,
                                  .number = t->number,
                                  .last = p->end == SKV_END_LAST,
                                  .cursor = p->next,
                                  .records = pulled->records,
                                  .records_count = pulled->records_count};
    t->finish = p->end == SKV_END_LAST;
    task_propose(t, skv_command_install(&install));
}

static void pull_answered(void *arg, enum err rc, struct slice body)
{
    struct skv_task *t = arg;
    struct arena a = {0};
    struct skv_pulled pulled;
    t->net_call = 0;
    if (rc == ERR_OK) {
        rc = skv_pulled_decode(body, &a, &pulled);
    }
    if (rc == ERR_OK) {
        rc = pulled_check(t, &pulled);
    }
    if (rc == ERR_OK) {
        task_answered(t);
        t->pull.busy = pulled.busy != 0;
        t->pull.batch_bytes = body.size;
        pull_install(t, &pulled);
    } else {
        task_refused(t, rc);
    }
    arena_free(&a);
}

static void pull_ask(struct skv_task *t)
{
    struct buf b = {0};
    struct skv_pull pull = {
        .shard = t->shard, .number = t->number, .cursor = t->pull.cursor};
    t->pull.asked_us = env_now_us(t->mover->env);
    skv_pull_encode(&b, &pull);
    task_call(t, SKV_METHOD_PULL, &b, pull_answered);
}

/* ---- how much it is ---- */

static void counted(void *arg, enum err rc, struct slice body)
{
    struct skv_task *t = arg;
    struct skv_pulling *p = &t->pull;
    struct arena a = {0};
    struct skv_counted c;
    t->net_call = 0;
    if (rc == ERR_OK) {
        rc = skv_counted_decode(body, &a, &c);
    }
    if (rc == ERR_OK && c.next_key.size > SKV_STORE_KEY_SIZE_MAX) {
        rc = ERR_CORRUPT;
    }
    if (rc != ERR_OK) {
        arena_free(&a);
        task_refused(t, rc);
        return;
    }
    p->moved_us = env_now_us(t->mover->env);
    p->keys_all += c.keys;
    p->bytes_all += c.bytes;
    buf_clear(&p->count_key);
    buf_append(&p->count_key, c.next_key.data, c.next_key.size);
    bool small = c.bytes < SKV_PACE_SMALL;
    arena_free(&a);
    if (p->count_key.size == 0) {
        p->stage = CTL_MOVE_COPY;
        p->counted = true;
        p->begun_us = env_now_us(t->mover->env);
        p->begun_bytes = p->cursor.bytes;
    }
    task_rest(
        t, &(struct skv_pace_batch){.begun_us = p->asked_us, .small = small});
}

static void count_ask(struct skv_task *t)
{
    struct buf b = {0};
    struct skv_count count = {.shard = t->shard,
                              .number = t->number,
                              .key = buf_slice(&t->pull.count_key)};
    t->pull.asked_us = env_now_us(t->mover->env);
    skv_count_encode(&b, &count);
    task_call(t, SKV_METHOD_COUNT, &b, counted);
}

/* ---- a call that makes a step there ---- */

static enum err step_outcome(enum err rc, struct slice body)
{
    struct arena a = {0};
    struct skv_outcome outcome;
    if (rc == ERR_OK) {
        rc = skv_outcome_decode(body, &a, &outcome);
    }
    if (rc == ERR_OK) {
        rc = err_from_wire(outcome.rc);
    }
    arena_free(&a);
    return rc;
}

static void step_ask(struct skv_task *t, net_method method, net_reply_fn *reply)
{
    struct buf b = {0};
    struct skv_step step = {.shard = t->shard, .number = t->number};
    skv_step_encode(&b, &step);
    task_call(t, method, &b, reply);
}

/* ---- the source stops serving it ---- */

static void freeze_answered(void *arg, enum err rc, struct slice body)
{
    struct skv_task *t = arg;
    t->net_call = 0;
    rc = step_outcome(rc, body);
    if (rc != ERR_OK) {
        task_refused(t, rc);
        return;
    }
    t->pull.stage = CTL_MOVE_TAIL;
    pull_ask(t);
}

/* Behind a batch: the next one, or first the freeze if little is left. */
static void pull_go_on(struct skv_task *t)
{
    struct skv_pulling *p = &t->pull;
    if (p->cursor.changes != 0 && p->stage < CTL_MOVE_CHANGES) {
        p->stage = CTL_MOVE_CHANGES;
        p->changes_us = env_now_us(t->mover->env);
    }
    p->chases += p->stage == CTL_MOVE_CHANGES;
    bool near = p->end == SKV_END_NOW || p->chases > CHASES_MAX;
    if (p->stage == CTL_MOVE_COPY && !p->counted) {
        p->stage = CTL_MOVE_COUNT; /* what one batch holds is not counted */
    }
    if (p->stage == CTL_MOVE_CHANGES && near) {
        p->tail_us = env_now_us(t->mover->env);
        p->freezing = true;
        pull_start(t);
    } else {
        task_rest(t, &(struct skv_pace_batch){.begun_us = p->asked_us,
                                              .bytes = p->batch_bytes,
                                              .busy = p->busy,
                                              .small = p->batch_bytes <
                                                       SKV_PACE_SMALL,
                                              .copy_us = p->begun_us,
                                              .changes_us = p->changes_us});
    }
}

static void pull_start(struct skv_task *t)
{
    const struct skv_pulling *p = &t->pull;
    if (p->stage == CTL_MOVE_COUNT) {
        count_ask(t);
    } else if (p->stage == CTL_MOVE_CHANGES && p->freezing) {
        step_ask(t, SKV_METHOD_FREEZE, freeze_answered);
    } else {
        pull_ask(t);
    }
}

/* ---- its old owner learns of it ---- */

static void settle_answered(void *arg, enum err rc, struct slice body)
{
    struct skv_task *t = arg;
    t->net_call = 0;
    rc = step_outcome(rc, body);
    if (rc != ERR_OK) {
        task_refused(t, rc);
        return;
    }
    task_answered(t);
    t->finish = true;
    task_propose(t, skv_command_step(SKV_COMMAND_SETTLED, t->shard, t->number));
}

/* ---- idle sessions ---- */

/* t->shard goes through all shards, t->after through a shard's sessions. */
static void expire_next(struct skv_task *t)
{
    const struct skv_picture *p = &t->mover->picture;
    while (t->shard < p->shard_count &&
           p->states[t->shard] != SKV_SHARD_SERVING) {
        t->shard++;
    }
    if (t->shard >= p->shard_count) {
        skv_task_end(t);
        return;
    }
    task_propose(
        t, skv_command_expire(env_wall_us(t->mover->env), t->shard, t->after));
}

/* ---- starting, and again after a pause ---- */

void skv_task_start_config(struct skv_task *t, const struct ctl_config *config)
{
    t->finish = true;
    task_propose(t, skv_command_config(config));
}

static void release(struct skv_task *t)
{
    struct skv_cut cut = {.id = t->number, .step = SKV_CUT_RELEASE};
    task_propose(t, skv_command_cut(&cut));
}

void skv_task_start_release(struct skv_task *t)
{
    t->timer.fire = pause_over;
    env_timer_start(t->mover->env, &t->timer, HOLD_MAX_US);
}

void skv_task_start(struct skv_task *t)
{
    switch (t->kind) {
    case SKV_TASK_PULL: pull_start(t); return;
    case SKV_TASK_SETTLE:
        step_ask(t, SKV_METHOD_SETTLE, settle_answered);
        return;
    case SKV_TASK_DROP:
        t->pull.asked_us = env_now_us(t->mover->env);
        task_propose(t,
                     skv_command_step(SKV_COMMAND_DROP, t->shard, t->number));
        return;
    case SKV_TASK_EXPIRE: expire_next(t); return;
    case SKV_TASK_RELEASE: release(t); return;
    case SKV_TASK_CONFIG: return;
    }
}
