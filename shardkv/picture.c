/* What the loop knows of the state machine, which runs on another thread: a
 * copy, taken there between two entries whenever its generation has changed. */
#include "shardkv/fsm_int.h"

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

enum err skv_picture_take(struct skv_fsm *f, struct skv_picture *p)
{
    enum err rc = skv_fsm_ready(f);
    if (rc != ERR_OK) {
        return rc;
    }
    uint32_t count = f->config.shards_count;
    p->generation = skv_fsm_generation(f);
    p->number = f->config.number;
    p->shard_count = count;
    ctl_config_copy(&p->arena, &f->previous, &p->previous);
    p->states = arena_array(&p->arena, count, sizeof *p->states);
    p->numbers = arena_array(&p->arena, count, sizeof *p->numbers);
    for (uint32_t s = 0; s < count; s++) {
        p->states[s] = f->shards[s].state;
        p->numbers[s] = f->shards[s].number;
    }
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

void skv_picture_free(struct skv_picture *p)
{
    arena_free(&p->arena);
    *p = (struct skv_picture){0};
}
