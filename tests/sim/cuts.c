/* Cuts through all shards, taken by the administrator while clerks write and
 * faults happen. What each cut that could be read to its end must show:
 *
 *  1. A bank: transfers between accounts in different shards; their sum is 0.
 *  2. Chains: a clerk puts n under one key, and when that is acknowledged under
 *     another. The second is never ahead of the first, and whatever was
 *     acknowledged before the cut began is in it.
 *  3. When all is quiet: exactly the keys and values that the groups hold. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "shardkv/cut.h"
#include "shardkv/server_int.h"
#include "tests/sim/cluster.h"

#define MS UINT64_C(1000)

enum { ACCOUNTS = 6, TAKE_MS = 15000, LOOK_MS = 8000, DENSE_MS = 500 };

/* Two keys of one clerk in one life. */
struct chain {
    struct buf keys[2];
    uint64_t asked;    /* the highest n that was begun */
    uint64_t acked;    /* ... that both keys have */
    uint64_t at_start; /* acked, when the cut began */
    struct chain *next;
};

/* A clerk's transaction, or the pause before its next. */
struct actor {
    struct skv_txn txn; /* first */
    struct cuts *cuts;
    struct node *clerk;
    uint64_t life;
    struct chain *chain; /* NULL: it makes transfers */
    uint32_t which;      /* of the chain's keys */
    struct skv_item items[2];
    uint8_t number[8];
};

struct cuts {
    struct cluster *cluster;
    struct buf accounts[ACCOUNTS];
    struct chain *chains;
    uint32_t actors_running;
    bool stopped;
    bool last; /* the one at the end */

    struct skv_cutter *cutter;
    bool taking;
    uint64_t dense_until_us; /* clerks write as much as they can */
    uint32_t shard;
    struct buf key;
    uint64_t offset;
    struct arena arena; /* what was read */
    struct skv_record *records;
    uint32_t record_count, record_capacity;
    uint32_t taken, moving, failed;
    bool last_taken;
    uint32_t silent; /* no word from the administrator gets to this node */
};

struct cuts *cuts_new(struct cluster *c)
{
    struct cuts *k = mem_alloc(sizeof *k);
    k->cluster = c;
    for (uint32_t i = 0; i < ACCOUNTS; i++) {
        char name[24];
        snprintf(name, sizeof name, "account-%u", i);
        skv_key_of_name(&k->accounts[i], slice_text(name), c->plan.shards);
    }
    return k;
}

void cuts_free(struct cuts *k)
{
    CHECK(k->cutter == NULL);
    for (struct chain *chain = k->chains; chain != NULL;) {
        struct chain *next = chain->next;
        buf_free(&chain->keys[0]);
        buf_free(&chain->keys[1]);
        mem_free(chain);
        chain = next;
    }
    for (uint32_t i = 0; i < ACCOUNTS; i++) {
        buf_free(&k->accounts[i]);
    }
    buf_free(&k->key);
    arena_free(&k->arena);
    mem_free(k);
}

/* ---- clerks ---- */

static void actor_turn(void *arg);

static void actor_later(struct actor *a)
{
    struct sim_world *w = a->cuts->cluster->world;
    /* While a cut is taken, many: it takes a few milliseconds. When it takes
     * longer it waits for somebody, and far from cuts nothing can be found. */
    bool dense = w->now_us < a->cuts->dense_until_us;
    uint64_t high_us = dense ? 20 * MS : 2000 * MS;
    sim_after_taking(w, sim_delay(w, MS, high_us), actor_turn, a);
}

static void actor_done(struct skv_txn *txn)
{
    struct actor *a = (struct actor *)txn;
    struct chain *chain = a->chain;
    bool done = txn->rc == ERR_OK;
    a->cuts->actors_running--;
    /* Its group may have been without space for long. */
    if (!done && txn->rc != ERR_CLOSED && txn->rc != ERR_NOSPACE) {
        sim_fail(a->cuts->cluster->world, "a transfer is answered with %s",
                 err_name(txn->rc));
    }
    if (done && chain != NULL) {
        chain->acked = a->which == 1 ? chain->asked : chain->acked;
        a->which = 1 - a->which;
    }
    arena_free(&txn->arena);
    *txn = (struct skv_txn){0};
    actor_later(a);
}

static void actor_add(struct actor *a, uint32_t at, uint32_t account,
                      uint64_t amount)
{
    a->items[at] = (struct skv_item){
        .kind = SKV_ADD,
        .key = buf_slice(&a->cuts->accounts[account]),
        .number = amount,
    };
}

static void actor_transfer(struct actor *a)
{
    struct sim_world *w = a->cuts->cluster->world;
    uint32_t from = (uint32_t)sim_between(w, 0, ACCOUNTS - 1);
    uint32_t by = (uint32_t)sim_between(w, 1, ACCOUNTS - 1);
    uint64_t amount = sim_between(w, 1, 1000);
    actor_add(a, 0, from, amount);
    actor_add(a, 1, (from + by) % ACCOUNTS, (uint64_t)0 - amount);
    a->txn.item_count = 2;
}

static void actor_chain(struct actor *a)
{
    a->chain->asked += a->which == 0;
    set_u64(a->number, a->chain->asked);
    a->items[0] = (struct skv_item){
        .kind = SKV_PUT,
        .key = buf_slice(&a->chain->keys[a->which]),
        .data = slice_of(a->number, sizeof a->number),
    };
    a->txn.item_count = 1;
}

static void actor_turn(void *arg)
{
    struct actor *a = arg;
    struct cuts *k = a->cuts;
    if (k->stopped || a->clerk->env.dead || a->clerk->env.life != a->life) {
        mem_free(a);
        return;
    }
    a->txn.items = a->items;
    a->txn.done = actor_done;
    if (a->chain != NULL) {
        actor_chain(a);
    } else {
        actor_transfer(a);
    }
    k->actors_running++;
    skv_clerk_run(a->clerk->clerk, &a->txn);
}

static void actor_start(struct cuts *k, struct node *clerk, struct chain *chain)
{
    struct actor *a = mem_alloc(sizeof *a);
    a->cuts = k;
    a->clerk = clerk;
    a->life = clerk->env.life;
    a->chain = chain;
    actor_later(a);
}

void cuts_clerk_started(struct cuts *k, struct node *clerk)
{
    struct chain *chain = mem_alloc(sizeof *chain);
    for (uint32_t i = 0; i < 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "chain-%u-%" PRIu64 "-%u", clerk->number,
                 clerk->env.life, i);
        skv_key_of_name(&chain->keys[i], slice_text(name),
                        k->cluster->plan.shards);
    }
    chain->next = k->chains;
    k->chains = chain;
    actor_start(k, clerk, chain);
    actor_start(k, clerk, NULL);
    actor_start(k, clerk, NULL);
}

/* ---- what a cut must show ---- */

static uint64_t number_in_cut(const struct cuts *k, const struct buf *key)
{
    for (uint32_t i = 0; i < k->record_count; i++) {
        if (slice_compare(k->records[i].key, buf_slice(key)) == 0) {
            CHECK(k->records[i].data.size == sizeof(uint64_t));
            return get_u64(k->records[i].data.data);
        }
    }
    return 0;
}

static void check_chains(struct cuts *k)
{
    for (struct chain *chain = k->chains; chain != NULL; chain = chain->next) {
        uint64_t first = number_in_cut(k, &chain->keys[0]);
        uint64_t second = number_in_cut(k, &chain->keys[1]);
        if (second > first) {
            sim_fail(k->cluster->world,
                     "a cut has %" PRIu64 " of a chain, and of what was "
                     "acknowledged before it only %" PRIu64,
                     second, first);
        }
        if (second < chain->at_start) {
            sim_fail(k->cluster->world,
                     "a cut lacks what was acknowledged before it began: "
                     "%" PRIu64 " of %" PRIu64,
                     second, chain->at_start);
        }
    }
}

static void check_bank(struct cuts *k)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < ACCOUNTS; i++) {
        sum += number_in_cut(k, &k->accounts[i]);
    }
    if (sum != 0) {
        sim_fail(k->cluster->world,
                 "a cut has half of a transfer: the sum is %" PRId64,
                 (int64_t)sum);
    }
}

static bool count_keys(void *arg, struct slice key,
                       const struct skv_value *value)
{
    (void)value;
    *(uint32_t *)arg += (get_be64(key.data) & SKV_OBJECT_KV) != 0;
    return true;
}

/* Of one shard at its owner's leader, when nobody writes. */
static void check_same(struct cuts *k, struct skv_store *s, uint32_t shard)
{
    uint8_t prefix[2];
    uint32_t keys = 0;
    set_be16(prefix, (uint16_t)shard);
    enum err rc = s->ops->scan(s, slice_of(prefix, 2), slice_of(NULL, 0),
                               count_keys, &keys);
    CHECK(rc == ERR_OK);
    for (uint32_t i = 0; i < k->record_count; i++) {
        const struct skv_record *r = &k->records[i];
        struct skv_value value;
        if (get_be16(r->key.data) != shard) {
            continue;
        }
        keys--;
        if (s->ops->lookup(s, r->key, &value) != ERR_OK ||
            slice_compare(value.inline_bytes, r->data) != 0) {
            sim_fail(k->cluster->world, "a cut differs from a quiet cluster");
        }
    }
    if (keys != 0) {
        sim_fail(k->cluster->world, "a cut has not the keys of shard %u",
                 shard);
    }
}

/* The leader of who served the shard in the cut, if it has come to the newest
 * configuration, and is not going to give the shard away. */
static struct node *keeper(const struct cuts *k, uint32_t shard)
{
    uint32_t count = 0;
    const struct skv_cut_group *groups = skv_cutter_groups(k->cutter, &count);
    struct node *n = cluster_leader(
        k->cluster, groups[skv_cutter_owner(k->cutter, shard)].gid);
    if (n == NULL || n->skv == NULL) {
        return NULL;
    }
    const struct skv_fsm *f = n->skv->fsm;
    bool keeps = f->config.number == skv_cutter_config(k->cutter)->number &&
                 f->shards[shard].state == SKV_SHARD_SERVING;
    return keeps ? n : NULL;
}

/* False: not quiet yet. */
static bool check_quiet(struct cuts *k)
{
    for (uint32_t s = 0; s < k->cluster->plan.shards; s++) {
        if (keeper(k, s) == NULL) {
            return false;
        }
    }
    for (uint32_t s = 0; s < k->cluster->plan.shards; s++) {
        check_same(k, keeper(k, s)->store, s);
    }
    return true;
}

/* ---- taking ---- */

static void take(void *arg);

static void take_later(struct cuts *k)
{
    struct sim_world *w = k->cluster->world;
    sim_after(w, sim_between(w, 50 * MS, 2000 * MS), take, k);
}

/* Does somebody serve a shard that is another's by the configuration? */
static bool is_moving(const struct cuts *k)
{
    const struct ctl_config *config = skv_cutter_config(k->cutter);
    uint32_t count = 0;
    const struct skv_cut_group *groups = skv_cutter_groups(k->cutter, &count);
    for (uint32_t s = 0; s < config->shards_count; s++) {
        if (groups[skv_cutter_owner(k->cutter, s)].gid !=
            config->shards[s].gid) {
            return true;
        }
    }
    return false;
}

static void take_over(struct cuts *k, bool read)
{
    k->taken += read;
    k->moving += read && is_moving(k);
    k->failed += !read;
    if (read) {
        check_chains(k);
        check_bank(k);
    }
    k->last_taken = read && k->last && check_quiet(k);
    skv_cutter_close(k->cutter);
    k->taking = false;
    k->dense_until_us = 0;
    if (!k->last_taken) {
        take_later(k);
    }
}

static void record_keep(struct cuts *k, const struct skv_record *r)
{
    if (k->record_count == k->record_capacity) {
        uint32_t more = k->record_capacity == 0 ? 64 : 2 * k->record_capacity;
        struct skv_record *to = arena_array(&k->arena, more, sizeof *to);
        if (k->record_count > 0) {
            memcpy(to, k->records, k->record_count * sizeof *to);
        }
        k->records = to;
        k->record_capacity = more;
    }
    struct skv_record *to = &k->records[k->record_count++];
    *to = *r;
    to->key = arena_copy(&k->arena, r->key);
    to->data = arena_copy(&k->arena, r->data);
}

static void read_next(struct cuts *k);

static void shard_begin(struct cuts *k)
{
    buf_clear(&k->key);
    set_be64(buf_extend(&k->key, 8), (uint64_t)k->shard << 48 | 1);
    k->offset = 0;
}

static void on_seen(void *arg, enum err rc, const struct skv_seen *seen)
{
    struct cuts *k = arg;
    if (rc != ERR_OK) {
        sim_trace(k->cluster->world, "a cut cannot be read: %s", err_name(rc));
        take_over(k, false);
        return;
    }
    for (uint32_t i = 0; i < seen->records_count; i++) {
        record_keep(k, &seen->records[i]);
    }
    buf_clear(&k->key);
    buf_append(&k->key, seen->next_key.data, seen->next_key.size);
    k->offset = seen->next_offset;
    if (seen->last) {
        k->shard++;
        shard_begin(k);
    }
    if (k->shard == k->cluster->plan.shards) {
        sim_trace(k->cluster->world, "a cut of %u keys", k->record_count);
        take_over(k, true);
    } else {
        read_next(k);
    }
}

static void read_next(struct cuts *k)
{
    struct skv_look look = {.what = SKV_LOOK_READ,
                            .shard = (uint16_t)k->shard,
                            .key = buf_slice(&k->key),
                            .offset = k->offset};
    skv_cutter_look(k->cutter, skv_cutter_owner(k->cutter, k->shard),
                    SKV_SERVER_ANY, &look, LOOK_MS, on_seen, k);
}

static void on_taken(void *arg, enum err rc)
{
    struct cuts *k = arg;
    if (rc != ERR_OK) {
        sim_trace(k->cluster->world, "no cut: %s",
                  skv_cutter_problem(k->cutter));
        take_over(k, false);
        return;
    }
    sim_trace(k->cluster->world, "a cut was taken");
    k->dense_until_us = 0;
    k->shard = 0;
    shard_begin(k);
    read_next(k);
}

/* A group that hears of the VIEW a second after the others: does it hold until
 * then? */
static void hear(void *arg)
{
    struct cuts *k = arg;
    struct cluster *c = k->cluster;
    sim_wire_cut(c->wire, c->clerk_first - 1, k->silent, false);
    k->silent = 0;
}

static void silence(void *arg)
{
    struct cuts *k = arg;
    struct cluster *c = k->cluster;
    uint32_t gid = (uint32_t)sim_between(c->world, 1, c->plan.groups);
    struct node *leader = cluster_leader(c, gid);
    if (leader == NULL || c->healed || k->silent != 0) {
        return;
    }
    k->silent = leader->number;
    sim_wire_cut(c->wire, c->clerk_first - 1, k->silent, true);
    sim_after(c->world, sim_between(c->world, 100 * MS, 1500 * MS), hear, k);
}

static void take(void *arg)
{
    struct cuts *k = arg;
    if (k->cutter == NULL || k->taking) {
        return;
    }
    k->taking = true;
    k->dense_until_us = k->cluster->world->now_us + DENSE_MS * MS;
    arena_free(&k->arena);
    k->records = NULL;
    k->record_count = k->record_capacity = 0;
    for (struct chain *chain = k->chains; chain != NULL; chain = chain->next) {
        chain->at_start = chain->acked;
    }
    if (sim_chance(k->cluster->world, 500)) {
        sim_after(k->cluster->world, sim_between(k->cluster->world, 0, 15 * MS),
                  silence, k);
    }
    skv_cutter_take(k->cutter, true, TAKE_MS, on_taken, k);
}

void cuts_begin(struct cuts *k, struct node *admin)
{
    k->cutter = skv_cutter_new(&admin->env.env, admin->net, admin->admin);
    take_later(k);
}

void cuts_stop(struct cuts *k)
{
    k->stopped = true;
}

bool cuts_idle(const struct cuts *k)
{
    return k->actors_running == 0 && !k->taking;
}

/* Nobody writes any more: the next must show what there is. */
void cuts_last(struct cuts *k)
{
    k->last = true;
}

bool cuts_last_taken(const struct cuts *k)
{
    return k->last_taken;
}

/* Before the administrator's node ends. */
void cuts_end(struct cuts *k)
{
    if (k->cutter != NULL) {
        skv_cutter_free(k->cutter);
        k->cutter = NULL;
    }
}

uint32_t cuts_taken(const struct cuts *k, uint32_t *moving)
{
    *moving = k->moving;
    return k->taken;
}
