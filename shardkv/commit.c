/* Two-phase commit as one shard sees it (Sinfonia, section 4). What a number
 * was used for:
 *
 *                 +--a vote for it--> PREPARED --COMMIT--> COMMITTED
 *   PREPARE ------+                       |
 *                 +--against--> ABORTED <-+--ABORT
 *   ABORT, RESOLVE of the unknown --> ABORTED
 *
 * Invariants:
 *
 *  1. COMMITTED and ABORTED are final while the reply is kept: whatever comes
 *     late or twice finds the decision and changes nothing.
 *  2. A vote for it is stored with everything that COMMIT needs, checked and
 *     locked, so COMMIT cannot be refused.
 *  3. A vote against it is remembered, also when the caller would try again:
 *     it does so under a new number. */
#include "shardkv/fsm_int.h"

#include "base/check.h"

/* ---- PREPARE ---- */

static enum err record_code(struct skv_call *c, enum skv_use use, enum err rc)
{
    skv_answer_code(c->fsm, rc);
    return skv_use_add(c, use, buf_slice(&c->fsm->reply));
}

/* The holder is told once; a copy of the PREPARE hears ERR_ABORTED. */
static enum err vote_locked(struct skv_call *c,
                            const struct skv_prepared *holder)
{
    enum err rc = record_code(c, SKV_USE_ABORTED, ERR_ABORTED);
    buf_clear(&c->fsm->reply);
    skv_answer_locked(c->fsm, holder, &c->fsm->reply);
    return rc;
}

/* The write items, each with its key as it was resolved now: what `via` says is
 * locked until the end, but COMMIT need not look again. */
static void vote_items(const struct skv_exec *x, struct skv_vote *vote)
{
    const struct skv_request *q = x->request;
    vote->items = arena_array(x->arena, q->items_count, sizeof *vote->items);
    for (uint32_t i = 0; i < q->items_count; i++) {
        if (skv_kind_is_write(q->items[i].kind)) {
            struct skv_item *item = &vote->items[vote->items_count++];
            *item = q->items[i];
            item->via = slice_of(NULL, 0);
            item->key = x->plans[i].key;
        }
    }
}

static enum err vote_for(struct skv_call *c, const struct skv_exec *x,
                         struct skv_lock *locks, uint32_t lock_count)
{
    struct skv_vote vote = {
        .participants = c->request->participants,
        .participants_count = c->request->participants_count,
        .locks = locks,
        .locks_count = lock_count,
    };
    vote_items(x, &vote);
    enum err rc = skv_prepared_add(c, &vote);
    return rc == ERR_OK
               ? skv_use_add(c, SKV_USE_PREPARED, buf_slice(&c->fsm->reply))
               : rc;
}

static enum err prepare(struct skv_call *c, struct skv_exec *x)
{
    struct skv_fsm *f = c->fsm;
    enum err rc = skv_exec_begin(x);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_lock *locks =
        arena_array(x->arena, 2 * c->request->items_count, sizeof *locks);
    uint32_t count = skv_locks_of(x, locks);
    const struct skv_prepared *holder =
        skv_locks_holder(c->shard, locks, count);
    if (holder != NULL) {
        return vote_locked(c, holder);
    }
    rc = skv_exec_prepare(x);
    if (x->fault != ERR_OK) {
        return x->fault;
    }
    buf_clear(&f->reply);
    skv_answer_exec(f, x, rc, &f->reply);
    if (f->reply.size > SKV_REPLY_SIZE_MAX) {
        return record_code(c, SKV_USE_ABORTED, ERR_TOOBIG);
    }
    return rc == ERR_OK ? vote_for(c, x, locks, count)
                        : skv_use_add(c, SKV_USE_ABORTED, buf_slice(&f->reply));
}

enum err skv_commit_first(struct skv_call *c, struct skv_exec *x)
{
    switch ((enum skv_phase)c->request->phase) {
    case SKV_PREPARE: return prepare(c, x);
    case SKV_ABORT: {
        enum err rc = record_code(c, SKV_USE_ABORTED, ERR_ABORTED);
        skv_answer_code(c->fsm, ERR_OK);
        return rc;
    }
    case SKV_RESOLVE: return record_code(c, SKV_USE_ABORTED, ERR_ABORTED);
    default:
        /* COMMIT of what this shard never voted for. */
        skv_answer_code(c->fsm, ERR_INVALID);
        return ERR_OK;
    }
}

/* ---- the decision ---- */

static enum err commit_write(struct skv_call *c)
{
    struct skv_fsm *f = c->fsm;
    struct buf bytes = {0};
    struct skv_vote vote;
    enum err rc = skv_prepared_read(c, &bytes, &vote);
    if (rc == ERR_OK) {
        struct skv_request writes = *c->request;
        writes.items = vote.items;
        writes.items_count = vote.items_count;
        struct skv_exec x = {.store = f->store,
                             .arena = &f->arena,
                             .request = &writes,
                             .logged = true};
        rc = skv_exec_begin(&x);
        if (rc == ERR_OK) {
            rc = skv_exec_plan(&x);
            CHECK(rc == ERR_OK || x.fault != ERR_OK); /* invariant 2 */
        }
        if (rc == ERR_OK) {
            rc = skv_exec_write(&x);
        }
    }
    buf_free(&bytes);
    return rc;
}

/* The vote's reply stays: its clerk may not have heard it yet, when somebody
 * else decided, and asks again for the results by the same PREPARE. */
static enum err commit_remember(struct skv_call *c)
{
    enum skv_use use;
    struct buf vote = {0};
    enum err rc = skv_use_find(c, &use, &vote);
    if (rc == ERR_OK) {
        rc = skv_use_replace(c, SKV_USE_COMMITTED,
                             slice_of(vote.data + 1, vote.size - 1));
    }
    buf_free(&vote);
    return rc;
}

static enum err abort_remember(struct skv_call *c)
{
    skv_answer_code(c->fsm, ERR_ABORTED);
    return skv_use_replace(c, SKV_USE_ABORTED, buf_slice(&c->fsm->reply));
}

enum err skv_commit_finish(struct skv_call *c, struct skv_prepared *p)
{
    bool commits = c->request->phase == SKV_COMMIT;
    enum err rc = ERR_OK;
    if (c->request->phase == SKV_RESOLVE) {
        skv_answer_code(c->fsm, ERR_OK);
        return ERR_OK;
    }
    if (commits) {
        rc = commit_write(c);
    }
    if (rc == ERR_OK) {
        rc = skv_prepared_remove(c, p);
    }
    if (rc == ERR_OK) {
        rc = commits ? commit_remember(c) : abort_remember(c);
    }
    skv_answer_code(c->fsm, ERR_OK);
    return rc;
}

/* ---- again, or late ---- */

enum err skv_commit_again(struct skv_call *c, enum skv_use use,
                          struct slice reply)
{
    struct skv_fsm *f = c->fsm;
    bool aborted = use == SKV_USE_ABORTED;
    bool committed = use == SKV_USE_COMMITTED;
    if (use == SKV_USE_EXECUTED) {
        skv_answer_code(f, ERR_INVALID); /* a number of two uses */
        return ERR_OK;
    }
    switch ((enum skv_phase)c->request->phase) {
    case SKV_PREPARE:
        buf_clear(&f->reply);
        buf_append(&f->reply, reply.data, reply.size);
        return ERR_OK;
    case SKV_COMMIT:
        skv_answer_code(f, committed ? ERR_OK : ERR_ABORTED);
        return ERR_OK;
    case SKV_ABORT:
        skv_answer_code(f, aborted ? ERR_OK : ERR_INVALID);
        return ERR_OK;
    default: skv_answer_code(f, aborted ? ERR_ABORTED : ERR_OK); return ERR_OK;
    }
}
