/* What the loop knows of the state machine, which runs on another thread: a
 * copy, taken there between two entries whenever its generation has changed. */
#include "shardkv/fsm_int.h"

#include "base/check.h"

/* Of a shard, in the order of their names: those that live come and go, so
 * each that stays is among the first some time. */
enum { PREPARED_SHOWN = 64 };

static void group_copy(struct arena *a, const struct ctl_group *from,
                       struct ctl_group *to)
{
    *to = *from;
    to->servers = arena_array(a, from->servers_count, sizeof *to->servers);
    for (uint32_t i = 0; i < from->servers_count; i++) {
        to->servers[i] = from->servers[i];
        to->servers[i].address = arena_copy(a, from->servers[i].address);
    }
}

static void take_debts(const struct skv_fsm *f, struct skv_picture *p)
{
    for (const struct skv_debt *d = f->debts; d != NULL; d = d->next) {
        p->debt_count++;
    }
    p->debts = arena_array(&p->arena, p->debt_count, sizeof *p->debts);
    struct skv_owed *to = p->debts;
    for (const struct skv_debt *d = f->debts; d != NULL; d = d->next) {
        to->shard = d->shard;
        to->number = d->number;
        group_copy(&p->arena, &d->creditor, &to->creditor);
        to++;
    }
}

static void take_prepared(struct skv_fsm *f, struct skv_picture *p)
{
    for (uint32_t s = 0; s < p->shard_count; s++) {
        uint32_t count = f->shards[s].prepared_count;
        p->prepared_count += count < PREPARED_SHOWN ? count : PREPARED_SHOWN;
    }
    p->prepared =
        arena_array(&p->arena, p->prepared_count, sizeof *p->prepared);
    struct slice *to = p->prepared;
    for (uint32_t s = 0; s < p->shard_count; s++) {
        const struct skv_prepared *t = f->shards[s].prepared;
        for (int i = 0; t != NULL && i < PREPARED_SHOWN; i++, t = t->next) {
            buf_clear(&f->scratch);
            skv_answer_locked(f, t, &f->scratch);
            *to++ = arena_copy(&p->arena, buf_slice(&f->scratch));
        }
    }
}

static void take_cursor(const struct skv_shard *s, struct skv_picture *p,
                        struct skv_cursor *cursor)
{
    enum err rc = skv_cursor_decode(
        arena_copy(&p->arena, buf_slice(&s->cursor)), &p->arena, cursor);
    CHECK(rc == ERR_OK); /* we encoded it */
}

static void take_shards(const struct skv_fsm *f, struct skv_picture *p)
{
    uint32_t count = f->config.shards_count;
    p->shard_count = count;
    p->states = arena_array(&p->arena, count, sizeof *p->states);
    p->numbers = arena_array(&p->arena, count, sizeof *p->numbers);
    p->cursors = arena_array(&p->arena, count, sizeof *p->cursors);
    for (uint32_t s = 0; s < count; s++) {
        p->states[s] = f->shards[s].state;
        p->numbers[s] = f->shards[s].number;
        if (p->states[s] == SKV_SHARD_PULLING) {
            take_cursor(&f->shards[s], p, &p->cursors[s]);
        }
    }
}

enum err skv_picture_take(struct skv_fsm *f, struct skv_picture *p)
{
    enum err rc = skv_fsm_ready(f);
    if (rc != ERR_OK) {
        return rc;
    }
    p->generation = skv_fsm_generation(f);
    p->number = f->config.number;
    ctl_config_copy(&p->arena, &f->config, &p->config);
    ctl_config_copy(&p->arena, &f->previous, &p->previous);
    const struct ctl_group *own = ctl_config_group(&f->config, f->gid);
    if (own != NULL) {
        group_copy(&p->arena, own, &p->own);
    }
    take_shards(f, p);
    p->held = skv_is_held(f) ? f->hold.id : 0;
    take_debts(f, p);
    take_prepared(f, p);
    f->store->ops->usage(f->store, &p->keys, &p->bytes);
    return ERR_OK;
}

uint32_t skv_picture_count(const struct skv_picture *p,
                           enum skv_shard_state state)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < p->shard_count; i++) {
        count += p->states[i] == state;
    }
    return count;
}

uint32_t skv_picture_leaving(const struct skv_picture *p)
{
    return skv_picture_count(p, SKV_SHARD_LEAVING) +
           skv_picture_count(p, SKV_SHARD_FROZEN);
}

bool skv_picture_serves(const struct skv_picture *p, uint16_t shard)
{
    return shard < p->shard_count && (p->states[shard] == SKV_SHARD_SERVING ||
                                      p->states[shard] == SKV_SHARD_LEAVING);
}

void skv_picture_free(struct skv_picture *p)
{
    arena_free(&p->arena);
    *p = (struct skv_picture){0};
}
