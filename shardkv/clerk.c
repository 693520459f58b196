/* The clerk's transactions. Invariants:
 *
 *  1. A transaction is answered exactly once; txn->impl is NULL from then on,
 *     and nothing of the caller's is touched any more.
 *  2. done() is the last thing a function here does: the caller may run the
 *     next transaction from it.
 *  3. At most SKV_CLERK_RUNNING_MAX are under way, those included that only
 *     finish a phase two; the others wait, first in first out.
 *  4. A request keeps its number until it is answered; a transaction that was
 *     aborted because of a lock is tried anew with a new one. */
#include "shardkv/clerk_int.h"

#include <utlist.h>

#include "base/check.h"

struct skv_finished {
    struct skv_txn *txn;
    struct skv_finished *next, *prev;
};

static void op_begin(struct skv_op *op);

/* ---- state ---- */

#define TO(state) (1u << (state))
static const uint32_t moves_allowed[] = {
    [SKV_OP_QUEUED] = TO(SKV_OP_ONE) | TO(SKV_OP_PREPARE),
    [SKV_OP_ONE] = TO(SKV_OP_ONE) | TO(SKV_OP_PAUSE),
    [SKV_OP_PREPARE] =
        TO(SKV_OP_COMMIT) | TO(SKV_OP_ABORT) | TO(SKV_OP_RESOLVE),
    [SKV_OP_COMMIT] = 0,
    [SKV_OP_ABORT] = TO(SKV_OP_PAUSE),
    [SKV_OP_RESOLVE] = TO(SKV_OP_COMMIT) | TO(SKV_OP_ABORT),
    [SKV_OP_PAUSE] = TO(SKV_OP_ONE) | TO(SKV_OP_PREPARE),
};

void skv_op_move(struct skv_op *op, enum skv_op_state to)
{
    CHECK((moves_allowed[op->state] & TO(to)) != 0);
    op->state = to;
}

/* ---- answers ---- */

static void txn_fill(struct skv_txn *txn, enum err rc, uint32_t failed)
{
    txn->rc = rc;
    txn->failed = failed;
    txn->impl = NULL;
    if (txn->results == NULL) {
        txn->results =
            arena_array(&txn->arena, txn->item_count, sizeof *txn->results);
    }
}

/* Takes the transaction from its op: all votes were for it, or it is over. */
static struct skv_txn *op_detach(struct skv_op *op, enum err rc)
{
    struct skv_txn *txn = op->txn;
    op->txn = NULL;
    env_timer_stop(op->clerk->env, &op->deadline);
    if (txn == NULL) {
        return NULL;
    }
    if (op->part_count > 1 && rc == ERR_OK) {
        txn->results =
            arena_array(&txn->arena, txn->item_count, sizeof *txn->results);
        for (uint32_t i = 0; i < op->part_count; i++) {
            const struct skv_part *p = &op->parts[i];
            for (uint32_t k = 0; k < p->item_count; k++) {
                txn->results[p->positions[k]] = p->results[k];
            }
        }
    }
    txn_fill(txn, rc, op->failed);
    return txn;
}

static void queue_advance(struct skv_clerk *c)
{
    while (c->queue != NULL && c->running_count < SKV_CLERK_RUNNING_MAX &&
           !c->closing) {
        struct skv_op *op = c->queue;
        DL_DELETE(c->queue, op);
        DL_APPEND(c->running, op);
        c->running_count++;
        op_begin(op);
    }
}

/* Everything but the caller's answer. */
static void op_free(struct skv_op *op)
{
    struct skv_clerk *c = op->clerk;
    CHECK(op->txn == NULL);
    for (uint32_t i = 0; i < op->part_count; i++) {
        skv_leg_stop(&op->parts[i].leg);
    }
    skv_sequence_release(c, &op->sequence);
    env_timer_stop(c->env, &op->pause);
    if (op->state == SKV_OP_QUEUED) {
        DL_DELETE(c->queue, op);
    } else {
        DL_DELETE(c->running, op);
        c->running_count--;
    }
    arena_free(&op->memory);
    mem_free(op);
}

void skv_op_answer(struct skv_op *op, enum err rc)
{
    struct skv_txn *txn = op_detach(op, rc);
    if (txn != NULL) {
        txn->done(txn);
    }
}

void skv_op_end(struct skv_op *op, enum err rc)
{
    struct skv_clerk *c = op->clerk;
    struct skv_txn *txn = op_detach(op, rc);
    op_free(op);
    queue_advance(c);
    if (txn != NULL) {
        txn->done(txn);
    }
}

/* ---- answers that may not come from inside ---- */

static void finish_timer_fired(struct env_timer *timer)
{
    struct skv_clerk *c =
        (struct skv_clerk *)(void *)((char *)timer -
                                     offsetof(struct skv_clerk, finish_timer));
    struct skv_finished *f = c->finished;
    if (f == NULL) {
        return;
    }
    struct skv_txn *txn = f->txn;
    DL_DELETE(c->finished, f);
    mem_free(f);
    if (c->finished != NULL) {
        env_timer_start(c->env, &c->finish_timer, 0);
    }
    txn->done(txn);
}

static void finish_later(struct skv_clerk *c, struct skv_txn *txn)
{
    struct skv_finished *f = mem_alloc(sizeof *f);
    f->txn = txn;
    DL_APPEND(c->finished, f);
    if (!c->closing) {
        c->finish_timer.fire = finish_timer_fired;
        env_timer_start(c->env, &c->finish_timer, 0);
    }
}

/* ---- parts ---- */

static struct slice routing_key(const struct skv_item *item)
{
    return item->via.size > 0 ? item->via : item->key;
}

/* The part of a shard, made when it is new; NULL when there are too many. */
static struct skv_part *part_of(struct skv_op *op, struct skv_part *parts,
                                uint16_t shard)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        if (parts[i].shard == shard) {
            return &parts[i];
        }
    }
    if (op->part_count == SKV_PARTICIPANTS_MAX) {
        return NULL;
    }
    struct skv_part *p = &parts[op->part_count++];
    p->shard = shard;
    p->op = op;
    return p;
}

static enum err part_check(const struct skv_part *p)
{
    struct skv_request r = {.session = 1,
                            .sequence = 1,
                            .first = 1,
                            .shard = p->shard,
                            .items = p->items,
                            .items_count = p->item_count};
    return skv_request_check(&r);
}

static void parts_fill(struct skv_op *op)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        struct skv_part *p = &op->parts[i];
        p->items = arena_array(&op->memory, p->item_count, sizeof *p->items);
        p->positions =
            arena_array(&op->memory, p->item_count, sizeof *p->positions);
        p->item_count = 0;
    }
    for (uint32_t i = 0; i < op->txn->item_count; i++) {
        const struct skv_item *item = &op->txn->items[i];
        struct skv_part *p =
            part_of(op, op->parts, get_be16(routing_key(item).data));
        p->positions[p->item_count] = i;
        p->items[p->item_count++] = *item;
    }
}

static enum err parts_count(struct skv_op *op)
{
    for (uint32_t i = 0; i < op->txn->item_count; i++) {
        const struct skv_item *item = &op->txn->items[i];
        struct slice key = routing_key(item);
        if (key.size < SKV_OBJECT_SIZE) {
            return ERR_INVALID;
        }
        struct skv_part *p = part_of(op, op->parts, get_be16(key.data));
        if (p == NULL) {
            return ERR_TOOBIG;
        }
        p->item_count++;
        op->writes = op->writes || skv_kind_is_write(item->kind);
    }
    return ERR_OK;
}

static bool is_one_shard(const struct skv_txn *txn)
{
    struct slice first = routing_key(&txn->items[0]);
    for (uint32_t i = 0; i < txn->item_count; i++) {
        struct slice key = routing_key(&txn->items[i]);
        if (key.size < SKV_OBJECT_SIZE || first.size < SKV_OBJECT_SIZE ||
            get_be16(key.data) != get_be16(first.data)) {
            return false;
        }
    }
    return true;
}

static enum err op_split(struct skv_op *op)
{
    struct skv_txn *txn = op->txn;
    if (txn->item_count == 0) {
        return ERR_INVALID;
    }
    if (txn->item_count > SKV_ITEMS_MAX) {
        return ERR_TOOBIG;
    }
    bool one = is_one_shard(txn);
    op->parts =
        one ? &op->one
            : arena_array(&op->memory, SKV_PARTICIPANTS_MAX, sizeof *op->parts);
    enum err rc = parts_count(op);
    if (rc == ERR_OK && one) {
        op->one.items = txn->items;
    } else if (rc == ERR_OK) {
        parts_fill(op);
    }
    for (uint32_t i = 0; rc == ERR_OK && i < op->part_count; i++) {
        rc = part_check(&op->parts[i]);
    }
    return rc;
}

void skv_part_send(struct skv_part *p, enum skv_phase phase, skv_leg_fn *done)
{
    struct skv_op *op = p->op;
    struct skv_leg *leg = &p->leg;
    bool numbered = op->sequence.session != NULL;
    leg->clerk = op->clerk;
    leg->method = numbered ? SKV_METHOD_WRITE : SKV_METHOD_READ;
    leg->session = op->sequence.session;
    leg->stubborn = phase != SKV_EXECUTE && phase != SKV_PREPARE;
    leg->done = done;
    leg->request = (struct skv_request){
        .session = numbered ? op->sequence.session->id : 0,
        .sequence = numbered ? op->sequence.number : 0,
        .phase = (uint8_t)phase,
        .shard = p->shard,
    };
    if (phase == SKV_PREPARE) {
        leg->request.participants = op->participants;
        leg->request.participants_count = op->part_count;
    }
    if (phase == SKV_EXECUTE || phase == SKV_PREPARE) {
        leg->request.items = p->items;
        leg->request.items_count = p->item_count;
    }
    skv_leg_start(leg);
}

enum err skv_part_take_results(struct skv_part *p, struct slice body,
                               struct skv_reply *reply)
{
    struct arena *a = &p->op->txn->arena;
    enum err rc = skv_reply_decode(arena_copy(a, body), a, reply);
    if (rc != ERR_OK) {
        return rc;
    }
    if (reply->results_count == p->item_count) {
        p->results = reply->results;
        return ERR_OK;
    }
    return reply->rc == ERR_OK ? ERR_CORRUPT : ERR_OK;
}

uint32_t skv_part_position(const struct skv_part *p, uint32_t failed)
{
    if (failed >= p->item_count) {
        return 0; /* a stranger's number */
    }
    return p->positions == NULL ? failed : p->positions[failed];
}

/* ---- one shard ---- */

static void one_begin(struct skv_op *op);

static void one_finish(struct skv_op *op, enum err rc, struct slice body)
{
    struct skv_reply reply = {0};
    if (body.size > 0) {
        enum err read = skv_part_take_results(&op->one, body, &reply);
        rc = read == ERR_OK ? rc : read;
        op->txn->results = op->one.results;
        op->failed = skv_part_position(&op->one, reply.failed);
    }
    skv_op_end(op, rc);
}

static void one_answered(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_op *op = ((struct skv_part *)(void *)leg)->op; /* first member */
    if (rc == ERR_LOCKED) {
        /* Not executed, and not remembered: the same number goes again. */
        skv_holder_seen(op->clerk, body);
        skv_op_pause(op);
        return;
    }
    if (rc == ERR_EXPIRED && op->sequence.session != NULL) {
        skv_session_retire(op->clerk, op->sequence.session);
        if (leg->sends == 1 && !op->renewed) {
            /* It was sent once, and that copy was refused. */
            op->renewed = true;
            skv_sequence_release(op->clerk, &op->sequence);
            one_begin(op);
            return;
        }
    }
    one_finish(op, rc, body);
}

static void one_begin(struct skv_op *op)
{
    skv_op_move(op, SKV_OP_ONE);
    if (op->writes && op->sequence.session == NULL) {
        skv_sequence_take(op->clerk, &op->sequence);
        op->one.leg.sends = 0;
    }
    skv_part_send(&op->one, SKV_EXECUTE, one_answered);
}

static void op_begin(struct skv_op *op)
{
    if (op->part_count == 1) {
        one_begin(op);
    } else {
        skv_commit_begin(op);
    }
}

static void pause_over(struct env_timer *timer)
{
    op_begin((struct skv_op *)(void *)((char *)timer -
                                       offsetof(struct skv_op, pause)));
}

void skv_op_pause(struct skv_op *op)
{
    skv_op_move(op, SKV_OP_PAUSE);
    op->pause.fire = pause_over;
    env_timer_start(op->clerk->env, &op->pause,
                    skv_pause_next(op->clerk, &op->pause_us));
}

/* ---- giving up ---- */

/* Not always the owner: while the shard is on its way another has it. */
static ctl_gid stuck_group(const struct skv_op *op, const struct skv_part *p)
{
    const struct ctl_config *config = &op->clerk->config;
    if (p->leg.running && p->leg.silent != 0) {
        return p->leg.silent;
    }
    if (p->leg.running && p->leg.net_call != 0) {
        return p->leg.gid;
    }
    bool known = op->clerk->has_config && p->shard < config->shards_count;
    return known ? config->shards[p->shard].gid : 0;
}

/* The part that met the lock, or the first that has not answered. */
static void note_stuck(const struct skv_op *op)
{
    bool locked = op->state == SKV_OP_PAUSE || op->state == SKV_OP_ABORT;
    const struct skv_part *p = op->locked != NULL ? op->locked : &op->parts[0];
    for (uint32_t i = 0; !locked && i < op->part_count; i++) {
        if (op->parts[i].leg.running) {
            p = &op->parts[i];
            break;
        }
    }
    op->txn->stuck = (struct skv_stuck){
        .shard = p->shard,
        .gid = stuck_group(op, p),
        .locked = locked,
    };
}

static void deadline_passed(struct env_timer *timer)
{
    struct skv_op *op =
        (struct skv_op *)(void *)((char *)timer -
                                  offsetof(struct skv_op, deadline));
    note_stuck(op);
    switch (op->state) {
    case SKV_OP_QUEUED:
    case SKV_OP_ONE:
    case SKV_OP_PAUSE: skv_op_end(op, ERR_TIMEDOUT); return;
    case SKV_OP_PREPARE:
        skv_commit_abandon(op);
        skv_op_answer(op, ERR_TIMEDOUT);
        return;
    case SKV_OP_COMMIT: skv_op_answer(op, op->verdict); return;
    case SKV_OP_ABORT:
        skv_op_answer(op, op->again ? ERR_TIMEDOUT : op->verdict);
        return;
    case SKV_OP_RESOLVE: CHECK(!"no caller, no deadline");
    }
}

void skv_clerk_cancel(struct skv_clerk *c, struct skv_txn *txn)
{
    struct skv_op *op = txn->impl;
    if (op == NULL) {
        return;
    }
    bool over = op->state == SKV_OP_QUEUED || op->state == SKV_OP_ONE ||
                op->state == SKV_OP_PAUSE;
    if (op->state == SKV_OP_PREPARE) {
        skv_commit_abandon(op);
    }
    finish_later(c, op_detach(op, ERR_INTERRUPTED));
    if (over) {
        op_free(op);
        queue_advance(c);
    }
}

/* ---- running ---- */

void skv_clerk_run(struct skv_clerk *c, struct skv_txn *txn)
{
    struct skv_op *op = mem_alloc(sizeof *op);
    op->clerk = c;
    op->txn = txn;
    txn->impl = op;
    txn->results = NULL;
    DL_APPEND(c->queue, op);
    enum err rc = c->closing ? ERR_CLOSED : op_split(op);
    if (rc != ERR_OK) {
        op_detach(op, rc);
        op->part_count = 0;
        op_free(op);
        finish_later(c, txn);
        return;
    }
    if (txn->timeout_ms > 0) {
        op->deadline.fire = deadline_passed;
        env_timer_start(c->env, &op->deadline, txn->timeout_ms * 1000ull);
    }
    queue_advance(c);
}

uint32_t skv_clerk_shard_count(const struct skv_clerk *c)
{
    return c->has_config ? c->config.shards_count : 0;
}

/* ---- life ---- */

struct skv_clerk *skv_clerk_new(struct env *env, struct net *net,
                                const char (*controllers)[NET_ADDRESS_SIZE_MAX],
                                uint32_t count)
{
    struct skv_clerk *c = mem_alloc(sizeof *c);
    c->env = env;
    c->net = net;
    c->ctl = ctl_client_new(env, net, controllers, count);
    skv_config_start(c);
    return c;
}

static void ops_close(struct skv_clerk *c, struct skv_op *list)
{
    struct skv_op *op = NULL;
    struct skv_op *next = NULL;
    DL_FOREACH_SAFE(list, op, next)
    {
        struct skv_txn *txn = op_detach(op, ERR_CLOSED);
        op_free(op);
        if (txn != NULL) {
            finish_later(c, txn);
        }
    }
}

void skv_clerk_free(struct skv_clerk *c)
{
    c->closing = true;
    ops_close(c, c->queue);
    ops_close(c, c->running);
    env_timer_stop(c->env, &c->finish_timer);
    env_timer_stop(c->env, &c->poll_timer);
    skv_watch_stop(c);
    skv_line_stop(c);
    while (c->finished != NULL) {
        /* done() may run another: it joins this list with ERR_CLOSED. */
        finish_timer_fired(&c->finish_timer);
        env_timer_stop(c->env, &c->finish_timer);
    }
    ctl_client_free(c->ctl);
    skv_holders_free(c);
    skv_sessions_free(c);
    CHECK(c->legs == NULL);
    skv_detours_free(c);
    struct skv_route *r = NULL;
    struct skv_route *next = NULL;
    HASH_ITER(hh, c->routes, r, next)
    {
        HASH_DEL(c->routes, r);
        mem_free(r);
    }
    arena_free(&c->config_arena);
    buf_free(&c->scratch);
    mem_free(c);
}
