/* A client's request where it is executed. The order of the questions is the
 * promise: does it make sense; is the shard ours at this point of the log; was
 * it executed before; is it in the way of a prepared transaction; and only then
 * is it done. Invariants:
 *
 *  1. Ownership is that of this entry's place in the log, never of the moment
 *     the request arrived.
 *  2. A refusal that the clerk answers by sending the same number again
 *     (ERR_WRONGGROUP, ERR_LOCKED, ERR_BUSY) leaves no reply behind. Every
 *     other answer to a request with a name does. */
#include "shardkv/fsm_int.h"

#include "base/check.h"

/* ---- replies ---- */

void skv_answer_code(struct skv_fsm *f, enum err rc)
{
    struct skv_reply reply = {.rc = (uint32_t)rc,
                              .config_number = f->config.number};
    buf_clear(&f->reply);
    skv_reply_encode(&f->reply, &reply);
}

void skv_answer_away(uint64_t config_number, const struct ctl_group *owner,
                     struct buf *out)
{
    struct buf group = {0};
    if (owner != NULL) {
        ctl_group_encode(&group, owner);
    }
    struct skv_reply reply = {.rc = ERR_WRONGGROUP,
                              .config_number = config_number,
                              .owner = buf_slice(&group)};
    skv_reply_encode(out, &reply);
    buf_free(&group);
}

/* A shard that is not served here. */
static void answer_away(struct skv_fsm *f, uint16_t shard, struct buf *out)
{
    skv_answer_away(f->config.number,
                    skv_shard_owner(&f->config, &f->previous, f->gid, shard),
                    out);
}

void skv_answer_locked(struct skv_fsm *f, const struct skv_prepared *holder,
                       struct buf *out)
{
    struct skv_reply reply = {
        .rc = ERR_LOCKED,
        .config_number = f->config.number,
        .holder_session = holder->session,
        .holder_sequence = holder->sequence,
        .participants = holder->vote.participants,
        .participants_count = holder->vote.participants_count,
    };
    skv_reply_encode(out, &reply);
}

void skv_answer_exec(struct skv_fsm *f, const struct skv_exec *x, enum err rc,
                     struct buf *out)
{
    struct skv_reply reply = {.rc = (uint32_t)rc,
                              .failed = x->failed,
                              .config_number = f->config.number};
    if (rc == ERR_OK || rc == ERR_CONFLICT) {
        reply.results = x->results;
        reply.results_count = x->request->items_count;
        for (uint32_t i = 0; rc != ERR_OK && i < reply.results_count; i++) {
            x->results[i].data = slice_of(NULL, 0);
        }
    }
    skv_reply_encode(out, &reply);
}

/* ---- executing ---- */

/* The outcome of executing is in f->reply; writes are done if it is ERR_OK. */
static enum err execute(struct skv_fsm *f, struct skv_exec *x)
{
    enum err rc = skv_exec_prepare(x);
    if (x->fault != ERR_OK) {
        return x->fault;
    }
    buf_clear(&f->reply);
    skv_answer_exec(f, x, rc, &f->reply);
    if (rc != ERR_OK) {
        return ERR_OK;
    }
    if (f->reply.size > SKV_REPLY_SIZE_MAX) {
        skv_answer_code(f, ERR_TOOBIG); /* it would have to be kept */
        return ERR_OK;
    }
    return skv_exec_write(x);
}

static struct skv_exec exec_of(struct skv_fsm *f, const struct skv_request *q,
                               bool logged)
{
    return (struct skv_exec){
        .store = f->store, .arena = &f->arena, .request = q, .logged = logged};
}

static enum err apply_execute(struct skv_call *c)
{
    struct skv_fsm *f = c->fsm;
    struct skv_exec x = exec_of(f, c->request, true);
    enum err rc = skv_exec_begin(&x);
    if (rc != ERR_OK) {
        return rc;
    }
    const struct skv_prepared *holder = skv_exec_holder(c->shard, &x);
    if (holder != NULL) {
        buf_clear(&f->reply);
        skv_answer_locked(f, holder, &f->reply);
        return ERR_OK;
    }
    rc = execute(f, &x);
    if (rc == ERR_OK && c->request->session != 0) {
        rc = skv_use_add(c, SKV_USE_EXECUTED, buf_slice(&f->reply));
    }
    return rc;
}

/* A cut is being taken: what has not begun waits, or would be half in it. A
 * PREPARE is voted against, so that its other participants, which may hold as
 * well, get rid of theirs. What is prepared may be finished. */
static enum err apply_held(struct skv_call *c)
{
    if (c->request->phase == SKV_PREPARE) {
        skv_answer_code(c->fsm, ERR_ABORTED);
        return skv_use_add(c, SKV_USE_ABORTED, buf_slice(&c->fsm->reply));
    }
    skv_answer_code(c->fsm, ERR_BUSY);
    return ERR_OK;
}

static enum err apply_new(struct skv_call *c)
{
    const struct skv_request *q = c->request;
    if (skv_is_held(c->fsm) &&
        (q->phase == SKV_EXECUTE || q->phase == SKV_PREPARE)) {
        return apply_held(c);
    }
    if (c->row.replies >= SKV_REPLIES_MAX ||
        (q->phase == SKV_PREPARE &&
         c->shard->prepared_count >= SKV_PREPARED_MAX)) {
        skv_answer_code(c->fsm, ERR_BUSY);
        return ERR_OK;
    }
    if (q->phase == SKV_EXECUTE) {
        return apply_execute(c);
    }
    struct skv_exec x = exec_of(c->fsm, q, true);
    return skv_commit_first(c, &x);
}

/* ---- executed before? ---- */

/* Somebody who resolves or aborts a transaction may be the first that this
 * shard hears of the session. */
static bool may_open(const struct skv_request *q)
{
    return (q->flags & SKV_FLAG_OPEN) != 0 || q->phase == SKV_ABORT ||
           q->phase == SKV_RESOLVE;
}

static enum err apply_again(struct skv_call *c, enum skv_use use,
                            struct slice stored)
{
    struct slice reply = slice_of(stored.data + 1, stored.size - 1);
    if (c->request->phase != SKV_EXECUTE) {
        return skv_commit_again(c, use, reply);
    }
    if (use != SKV_USE_EXECUTED) {
        skv_answer_code(c->fsm, ERR_INVALID); /* a number of two uses */
        return ERR_OK;
    }
    buf_clear(&c->fsm->reply);
    buf_append(&c->fsm->reply, reply.data, reply.size);
    return ERR_OK;
}

/* The row is there, and up to date with the request's `first`. */
static enum err apply_numbered(struct skv_call *c)
{
    const struct skv_request *q = c->request;
    struct skv_prepared *p =
        skv_prepared_find(c->shard, q->session, q->sequence);
    if (p != NULL && q->phase != SKV_EXECUTE && q->phase != SKV_PREPARE) {
        return skv_commit_finish(c, p);
    }
    if (q->sequence < c->row.first) {
        skv_answer_code(c->fsm, ERR_EXPIRED);
        return ERR_OK;
    }
    enum skv_use use;
    struct buf stored = {0};
    enum err rc = skv_use_find(c, &use, &stored);
    if (rc == ERR_OK) {
        rc = apply_again(c, use, buf_slice(&stored));
    } else if (rc == ERR_NOTFOUND) {
        rc = apply_new(c);
    }
    buf_free(&stored);
    return rc;
}

static enum err apply_named(struct skv_call *c)
{
    const struct skv_request *q = c->request;
    enum err rc = skv_row_find(c->fsm, q->shard, q->session, &c->row);
    if (rc == ERR_NOTFOUND) {
        if (!may_open(q)) {
            skv_answer_code(c->fsm, ERR_EXPIRED);
            return ERR_OK;
        }
        c->row = (struct skv_row){.first = q->first};
        rc = ERR_OK;
    } else if (rc == ERR_OK && q->first > c->row.first) {
        rc = skv_row_forget(c, q->first);
    }
    if (rc == ERR_OK) {
        rc = apply_numbered(c);
    }
    return rc == ERR_OK && c->row_changed ? skv_row_save(c) : rc;
}

/* ---- from bytes ---- */

enum err skv_apply_request(struct skv_fsm *f, struct slice body)
{
    struct skv_request q;
    enum err rc = skv_request_decode(body, &f->arena, &q);
    if (rc == ERR_OK) {
        rc = skv_request_check(&q);
    }
    if (rc != ERR_OK) {
        skv_answer_code(f, rc == ERR_TOOBIG ? rc : ERR_INVALID);
        return ERR_OK;
    }
    if (!skv_shard_is_served(f, q.shard)) {
        buf_clear(&f->reply);
        answer_away(f, q.shard, &f->reply);
        return ERR_OK;
    }
    struct skv_call c = {.fsm = f, .shard = &f->shards[q.shard], .request = &q};
    return q.session == 0 ? apply_execute(&c) : apply_named(&c);
}

static void encode_code(struct skv_fsm *f, enum err rc, struct buf *out)
{
    skv_answer_code(f, rc);
    buf_append(out, f->reply.data, f->reply.size);
}

static enum err read_execute(struct skv_fsm *f, const struct skv_request *q,
                             struct buf *out)
{
    struct skv_exec x = exec_of(f, q, false);
    enum err rc = skv_exec_begin(&x);
    if (rc != ERR_OK) {
        return rc;
    }
    const struct skv_prepared *holder =
        skv_exec_holder(&f->shards[q->shard], &x);
    if (holder != NULL) {
        skv_answer_locked(f, holder, out);
        return ERR_OK;
    }
    rc = skv_exec_compare(&x);
    if (rc == ERR_OK) {
        rc = skv_exec_read(&x);
    }
    if (x.fault == ERR_OK) {
        skv_answer_exec(f, &x, rc, out);
    }
    return x.fault;
}

static bool only_reads(const struct skv_request *q)
{
    for (uint32_t i = 0; i < q->items_count; i++) {
        if (skv_kind_is_write(q->items[i].kind)) {
            return false;
        }
    }
    return q->phase == SKV_EXECUTE;
}

enum err skv_apply_read(struct skv_fsm *f, struct slice body, struct buf *out)
{
    struct skv_request q;
    enum err rc = skv_fsm_ready(f);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = skv_request_decode(body, &f->arena, &q);
    if (rc == ERR_OK) {
        rc = skv_request_check(&q);
    }
    if (rc != ERR_OK || !only_reads(&q)) {
        encode_code(f, rc == ERR_TOOBIG ? rc : ERR_INVALID, out);
        rc = ERR_OK;
    } else if (!skv_shard_is_served(f, q.shard)) {
        answer_away(f, q.shard, out);
    } else {
        rc = read_execute(f, &q, out);
    }
    arena_free(&f->arena);
    return rc;
}
