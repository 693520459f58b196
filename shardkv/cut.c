/* A group's part in a cut through all shards (cut.h, docs/backup.md).
 *
 *    NONE, VIEWED, RELEASED --HOLD of a higher number--> HELD
 *    HELD --VIEW, nothing prepared--> VIEWED, and a view is opened
 *    HELD --RELEASE--> RELEASED
 *
 * Invariants:
 *
 *  1. From HELD to VIEWED no transaction begins (apply.c), no shard begins or
 *     ends to be served (fsm.c, shard.c): what the view shows of those that are
 *     is what the group held at any moment between, but for transactions that
 *     were finished meanwhile. A shard on its way is copied all the while, and
 *     is in the cut where it is served.
 *  2. A VIEW is granted once none is prepared any more; and then none will be
 *     until the hold ends.
 *  3. A step of a cut that is over changes nothing: each is named by the cut's
 *     number, and numbers rise.
 *
 * A hold whose administrator has gone is ended by the leader (task.c). */
#include "shardkv/fsm_int.h"

MSG_CODEC(skv_hold, SKV_HOLD_FIELDS)

bool skv_is_held(const struct skv_fsm *f)
{
    return f->hold.state == SKV_HOLD_HELD;
}

enum err skv_hold_load(struct skv_fsm *f)
{
    struct skv_name name = skv_name_cut();
    struct skv_value value;
    f->hold = (struct skv_hold){0};
    enum err rc =
        f->store->ops->lookup(f->store, skv_name_slice(&name), &value);
    if (rc != ERR_OK) {
        return rc == ERR_NOTFOUND ? ERR_OK : rc;
    }
    return skv_hold_decode(value.inline_bytes, &f->arena, &f->hold);
}

static enum err hold_set(struct skv_fsm *f, uint64_t id,
                         enum skv_hold_state state)
{
    struct skv_name name = skv_name_cut();
    f->hold = (struct skv_hold){
        .id = id, .state = (uint8_t)state, .index = f->index + 1};
    skv_fsm_changed(f);
    buf_clear(&f->scratch);
    skv_hold_encode(&f->scratch, &f->hold);
    return f->store->ops->put(f->store, skv_name_slice(&name),
                              buf_slice(&f->scratch));
}

static uint32_t prepared_count(const struct skv_fsm *f)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < f->config.shards_count; s++) {
        count += f->shards[s].prepared_count;
    }
    return count;
}

/* The three give the refusal; *fault is the store's own trouble. */
static enum err hold(struct skv_fsm *f, uint64_t id, enum err *fault)
{
    if (skv_is_held(f) && f->hold.id == id) {
        return ERR_OK; /* asked again, for `prepared` */
    }
    if (id <= f->hold.id) {
        return ERR_EXPIRED;
    }
    if (skv_is_held(f)) {
        return ERR_BUSY;
    }
    *fault = hold_set(f, id, SKV_HOLD_HELD);
    return ERR_OK;
}

static enum err view(struct skv_fsm *f, uint64_t id, enum err *fault)
{
    if (f->hold.id != id || f->hold.state == SKV_HOLD_RELEASED) {
        return ERR_EXPIRED;
    }
    if (f->hold.state == SKV_HOLD_VIEWED) {
        return ERR_OK; /* it comes twice */
    }
    if (prepared_count(f) > 0) {
        return ERR_BUSY;
    }
    f->view_wanted = id;
    *fault = hold_set(f, id, SKV_HOLD_VIEWED);
    return ERR_OK;
}

/* Also before its HOLD has come, which is then refused. */
static enum err release(struct skv_fsm *f, uint64_t id, enum err *fault)
{
    bool ours = f->hold.id == id && skv_is_held(f);
    bool early = id > f->hold.id && !skv_is_held(f);
    if (ours || early) {
        *fault = hold_set(f, id, SKV_HOLD_RELEASED);
    }
    return ERR_OK;
}

static void list_served(struct skv_fsm *f, struct skv_cut_reply *reply)
{
    reply->shards =
        arena_array(&f->arena, f->config.shards_count, sizeof *reply->shards);
    for (uint32_t s = 0; s < f->config.shards_count; s++) {
        if (skv_shard_is_served(f, (uint16_t)s)) {
            reply->shards[reply->shards_count++].shard = (uint16_t)s;
        }
    }
}

enum err skv_cut_apply(struct skv_fsm *f, const struct skv_cut *cut)
{
    enum err fault = ERR_OK;
    enum err refusal = ERR_INVALID;
    struct skv_cut_reply reply = {.index = f->index + 1};
    switch ((enum skv_cut_step)cut->step) {
    case SKV_CUT_HOLD: refusal = hold(f, cut->id, &fault); break;
    case SKV_CUT_VIEW:
        refusal = view(f, cut->id, &fault);
        reply.index = f->hold.index;
        break;
    case SKV_CUT_RELEASE: refusal = release(f, cut->id, &fault); break;
    case SKV_CUT_LOOK:
        f->view_wanted = cut->id;
        refusal = ERR_OK;
        break;
    }
    reply.rc = (uint32_t)refusal;
    reply.id = f->hold.id;
    reply.config_number = f->config.number;
    reply.prepared = prepared_count(f);
    list_served(f, &reply);
    buf_clear(&f->reply);
    skv_cut_reply_encode(&f->reply, &reply);
    return fault;
}
