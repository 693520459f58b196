/* What each write to a store says:
 *
 *  1. A value that is put, or grows, by one token: who wrote that has executed.
 *  2. A vote, and the record of its number right behind it: which tokens the
 *     transaction of that number writes.
 *  3. A number that is committed: so is all that its transaction wrote or read,
 *     in this shard and in others that have not heard of it yet.
 *  4. A key that is removed, and the record of a number right behind it, not
 *     seen before: a delete. Shards that are dropped have no such record. */
#include "tests/sim/order.h"

#include <string.h>

#include "shardkv/fsm_int.h"

/* A number of a session. */
struct number {
    uint64_t session, sequence;
    uint64_t token; /* (2); 0: a delete (4) */
};

struct order {
    void (*deleted)(void *arg, struct slice key, uint64_t rank);
    void *arg;
    uint64_t last;
    uint64_t *ranks; /* by token; 0: not seen */
    uint64_t capacity;
    struct number *numbers;
    uint32_t number_count, number_capacity;
    /* What the entry that is being applied has written before its record. */
    uint64_t voted;
    struct buf removed;
};

struct order *order_new(void (*deleted)(void *arg, struct slice key,
                                        uint64_t rank),
                        void *arg)
{
    struct order *o = mem_alloc(sizeof *o);
    o->deleted = deleted;
    o->arg = arg;
    return o;
}

void order_free(struct order *o)
{
    mem_free(o->ranks);
    mem_free(o->numbers);
    buf_free(&o->removed);
    mem_free(o);
}

/* ---- tokens ---- */

/* The number at the beginning, and where it ends; 0: there is none. */
static uint64_t token_at(struct slice data, size_t *end)
{
    uint64_t token = 0;
    size_t i = 1;
    while (i < data.size && i < 12 && data.data[i] >= '0' &&
           data.data[i] <= '9') {
        token = 10 * token + (uint64_t)(data.data[i++] - '0');
    }
    bool whole = data.size > 2 && data.data[0] == '[' && i < data.size &&
                 data.data[i] == ']';
    *end = i + 1;
    return whole ? token : 0;
}

uint64_t order_token(struct slice data)
{
    size_t end;
    uint64_t token = token_at(data, &end);
    return end == data.size ? token : 0;
}

static uint64_t token_within(struct slice data)
{
    uint64_t token = 0;
    for (size_t i = 0; i < data.size && token == 0; i++) {
        size_t end;
        token = token_at(slice_of(data.data + i, data.size - i), &end);
    }
    return token;
}

uint64_t order_rank(const struct order *o, uint64_t token)
{
    return token < o->capacity ? o->ranks[token] : 0;
}

static void rank_next(struct order *o, uint64_t token)
{
    while (token >= o->capacity) {
        uint64_t had = o->capacity;
        o->capacity = had == 0 ? 1024 : 2 * had;
        o->ranks = mem_resize(o->ranks, o->capacity * sizeof *o->ranks);
        memset(o->ranks + had, 0, (o->capacity - had) * sizeof *o->ranks);
    }
    if (token != 0 && o->ranks[token] == 0) {
        o->ranks[token] = ++o->last;
    }
}

/* ---- numbers ---- */

static struct number *number_find(struct order *o, uint64_t session,
                                  uint64_t sequence)
{
    for (uint32_t i = o->number_count; i-- > 0;) {
        struct number *n = &o->numbers[i];
        if (n->session == session && n->sequence == sequence) {
            return n;
        }
    }
    return NULL;
}

static void number_add(struct order *o, struct number n)
{
    if (o->number_count == o->number_capacity) {
        o->number_capacity = o->number_count == 0 ? 64 : 2 * o->number_count;
        o->numbers =
            mem_resize(o->numbers, o->number_capacity * sizeof *o->numbers);
    }
    o->numbers[o->number_count++] = n;
}

static void number_used(struct order *o, struct number n, enum skv_use use)
{
    struct number *known = number_find(o, n.session, n.sequence);
    if (use == SKV_USE_PREPARED && known == NULL && n.token != 0) {
        number_add(o, n);
    } else if (use == SKV_USE_COMMITTED && known != NULL) {
        rank_next(o, known->token);
    } else if (use == SKV_USE_EXECUTED && known == NULL &&
               o->removed.size > 0) {
        number_add(o, n);
        o->deleted(o->arg, buf_slice(&o->removed), ++o->last);
    }
}

/* ---- what a store says ---- */

static bool begins_with(struct slice key, struct skv_name name)
{
    return key.size > name.size && memcmp(key.data, name.data, name.size) == 0;
}

static void record_put(struct order *o, struct slice key, struct slice data,
                       size_t prefix)
{
    enum { HEAD = 4, CHUNK = 2 }; /* a chunked record's size, its number */
    if (key.size != prefix + 16 + CHUNK || data.size <= HEAD ||
        get_be16(key.data + prefix + 16) != 0) {
        return;
    }
    struct number n = {.session = get_be64(key.data + prefix),
                       .sequence = get_be64(key.data + prefix + 8),
                       .token = o->voted};
    number_used(o, n, (enum skv_use)data.data[HEAD]);
    o->voted = 0;
    buf_clear(&o->removed);
}

void order_wrote(struct order *o, struct slice key, const struct slice *data)
{
    bool is_record = key.size > SKV_OBJECT_SIZE &&
                     get_be64(key.data) << 16 == 0; /* of object 0 */
    uint16_t shard = key.size < 2 ? 0 : get_be16(key.data);
    if (is_record && shard == SKV_GROUP_SHARD) {
        return; /* the group's own: a change of a leaving shard is noted */
    }
    if (!is_record || data == NULL) {
        buf_clear(&o->removed);
    }
    if (!is_record && data == NULL) {
        buf_append(&o->removed, key.data, key.size);
    } else if (!is_record) {
        rank_next(o, order_token(*data));
    } else if (data != NULL && begins_with(key, skv_name_prepared_all(shard))) {
        o->voted = token_within(*data);
    } else if (data != NULL && begins_with(key, skv_name_replies_all(shard))) {
        record_put(o, key, *data, SKV_OBJECT_SIZE + 1);
    }
}
