/* Transactions over several shards: two-phase commit without a coordinator's
 * log (Sinfonia, section 4). Invariants:
 *
 *  1. COMMIT is sent only when every participant has voted for it, ABORT only
 *     when one has voted against it, or was never asked and never will be. A
 *     participant that was asked and has not answered may have voted either
 *     way, and somebody else may act on its vote: it is sent RESOLVE.
 *  2. Once one of the two was sent, it is sent to all until all have
 *     acknowledged it, whether the caller still waits or not.
 *  3. The number is in use until then: `first` passes it last of all. */
#include "shardkv/clerk_int.h"

#include "base/check.h"
#include "base/log.h"

static struct skv_part *part_of(struct skv_leg *leg)
{
    return (struct skv_part *)(void *)leg; /* its first member */
}

/* ---- phase two ---- */

static void committed(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_op *op = part_of(leg)->op;
    (void)body;
    if (rc != ERR_OK) {
        log_error("shardkv",
                  "shard=%u answered a decided commit session=%016llx "
                  "sequence=%llu with %s",
                  (unsigned)part_of(leg)->shard,
                  (unsigned long long)leg->request.session,
                  (unsigned long long)leg->request.sequence, err_name(rc));
    }
    if (--op->waiting == 0) {
        skv_op_end(op, op->verdict);
    }
}

static void commit_send(struct skv_op *op)
{
    skv_op_move(op, SKV_OP_COMMIT);
    op->waiting = op->part_count;
    for (uint32_t i = 0; i < op->part_count; i++) {
        skv_part_send(&op->parts[i], SKV_COMMIT, committed);
    }
}

static void abort_over(struct skv_op *op)
{
    if (op->again && op->txn != NULL) {
        skv_sequence_release(op->clerk, &op->sequence);
        skv_op_pause(op);
        return;
    }
    skv_op_end(op, op->verdict);
}

static void aborted(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_op *op = part_of(leg)->op;
    (void)rc; /* a shard that knows nothing of it has nothing to undo */
    (void)body;
    if (--op->waiting == 0) {
        abort_over(op);
    }
}

static void nobody_to_tell(struct env_timer *timer)
{
    abort_over((struct skv_op *)(void *)((char *)timer -
                                         offsetof(struct skv_op, pause)));
}

static void legs_stop(struct skv_op *op)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        skv_leg_stop(&op->parts[i].leg);
    }
    op->waiting = 0;
}

/* Also to those that voted against it: a late copy of the PREPARE must find
 * that the number is used up. Never calls back from inside. */
static void abort_send(struct skv_op *op)
{
    legs_stop(op);
    skv_op_move(op, SKV_OP_ABORT);
    for (uint32_t i = 0; i < op->part_count; i++) {
        op->waiting += op->parts[i].leg.sends > 0;
    }
    if (op->waiting == 0) {
        op->pause.fire = nobody_to_tell;
        env_timer_start(op->clerk->env, &op->pause, 0);
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        if (op->parts[i].leg.sends > 0) {
            skv_part_send(&op->parts[i], SKV_ABORT, aborted);
        }
    }
}

/* ---- votes ---- */

/* Its reply cannot be read; but it has voted for it, so the others' votes
 * decide, and the caller learns that its results are lost. */
static void vote_for(struct skv_part *p, struct slice body)
{
    struct skv_op *op = p->op;
    struct skv_reply reply;
    p->voted = true;
    if (op->txn != NULL && skv_part_take_results(p, body, &reply) != ERR_OK) {
        op->verdict = ERR_CORRUPT;
    }
    if (--op->waiting == 0) {
        commit_send(op);
    }
}

static void vote_against(struct skv_part *p, enum err rc, struct slice body)
{
    struct skv_op *op = p->op;
    op->verdict = rc;
    op->again = rc == ERR_LOCKED || rc == ERR_ABORTED;
    if (rc == ERR_LOCKED) {
        op->locked = p;
        skv_holder_seen(op->clerk, body);
    } else if (rc == ERR_EXPIRED) {
        skv_session_retire(op->clerk, op->sequence.session);
        op->again = p->leg.sends == 1 && !op->renewed;
        op->renewed = true;
    } else if (body.size > 0) {
        struct dec d = dec_of(body);
        dec_u32(&d); /* rc */
        op->failed = skv_part_position(p, dec_u32(&d));
    }
    abort_send(op);
}

/* Refused on the way, every time alike: it was never voted on. */
static bool is_refusal(enum err rc)
{
    return rc == ERR_INVALID || rc == ERR_TOOBIG;
}

static void prepared(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_part *p = part_of(leg);
    if (rc == ERR_OK) {
        vote_for(p, body);
    } else if (body.size > 0 || is_refusal(rc)) {
        vote_against(p, rc, body);
    } else {
        /* No word from the shard (invariant 1). */
        struct skv_op *op = p->op;
        skv_commit_abandon(op);
        skv_op_answer(op, rc);
    }
}

void skv_commit_begin(struct skv_op *op)
{
    skv_op_move(op, SKV_OP_PREPARE);
    skv_sequence_take(op->clerk, &op->sequence);
    op->verdict = ERR_OK;
    op->again = false;
    op->waiting = op->part_count;
    if (op->participants == NULL) {
        op->participants =
            arena_array(&op->memory, op->part_count, sizeof *op->participants);
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        op->participants[i].shard = op->parts[i].shard;
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        op->parts[i].voted = false;
        op->parts[i].leg.sends = 0;
        skv_part_send(&op->parts[i], SKV_PREPARE, prepared);
    }
}

/* ---- the caller has gone ---- */

static void resolved(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_op *op = part_of(leg)->op;
    (void)body;
    if (rc != ERR_OK) {
        /* ERR_ABORTED, or a session it has forgotten: no vote for it, ever. */
        op->verdict = ERR_ABORTED;
    }
    if (--op->waiting > 0) {
        return;
    }
    if (op->verdict == ERR_ABORTED) {
        abort_send(op);
    } else {
        commit_send(op);
    }
}

static bool somebody_was_never_asked(const struct skv_op *op)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        if (op->parts[i].leg.sends == 0) {
            return true;
        }
    }
    return false;
}

/* Nothing here calls back: legs only start, or the last waits for its timer. */
void skv_commit_abandon(struct skv_op *op)
{
    legs_stop(op);
    op->again = false;
    skv_op_move(op, SKV_OP_RESOLVE);
    for (uint32_t i = 0; i < op->part_count; i++) {
        op->waiting += !op->parts[i].voted;
    }
    CHECK(op->waiting > 0);
    if (somebody_was_never_asked(op)) {
        abort_send(op);
        return;
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        if (!op->parts[i].voted) {
            skv_part_send(&op->parts[i], SKV_RESOLVE, resolved);
        }
    }
}
