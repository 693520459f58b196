/* Prepared transactions and what they lock. The locks are part of the vote, so
 * there is one record to keep, to move and to remove: none can be left behind.
 * Invariants:
 *
 *  1. shard->prepared is what the store holds for the shard, while it is
 *     served; a shard without any costs a request one comparison with NULL.
 *  2. Two prepared transactions never need the same key, but both to read it.
 *  3. The list is sorted by (session, sequence), so that every replica names
 *     the same holder. */
#include "shardkv/fsm_int.h"

#include <string.h>

#include "base/check.h"

MSG_CODEC(skv_lock, SKV_LOCK_FIELDS)
MSG_CODEC(skv_vote, SKV_VOTE_FIELDS)

/* ---- which locks ---- */

static uint8_t lock_flags(uint8_t kind)
{
    bool prefix =
        kind == SKV_CMP_EMPTY || kind == SKV_SCAN || kind == SKV_DELETE_PREFIX;
    return (uint8_t)((skv_kind_is_write(kind) ? SKV_LOCK_EXCLUSIVE : 0) |
                     (prefix ? SKV_LOCK_PREFIX : 0));
}

uint32_t skv_locks_of(const struct skv_exec *x, struct skv_lock *locks)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < x->request->items_count; i++) {
        const struct skv_item *item = &x->request->items[i];
        if (item->via.size > 0) {
            locks[count++] = (struct skv_lock){.key = item->via};
        }
        if (x->plans[i].rc == ERR_OK) {
            locks[count++] = (struct skv_lock){.key = x->plans[i].key,
                                               .flags = lock_flags(item->kind)};
        }
    }
    return count;
}

static bool overlap(const struct skv_lock *a, const struct skv_lock *b)
{
    size_t common = a->key.size < b->key.size ? a->key.size : b->key.size;
    if (memcmp(a->key.data, b->key.data, common) != 0) {
        return false;
    }
    bool a_covers =
        a->key.size == common &&
        (a->key.size == b->key.size || (a->flags & SKV_LOCK_PREFIX) != 0);
    bool b_covers =
        b->key.size == common &&
        (a->key.size == b->key.size || (b->flags & SKV_LOCK_PREFIX) != 0);
    return a_covers || b_covers;
}

static bool conflict(const struct skv_lock *a, const struct skv_lock *b)
{
    return ((a->flags | b->flags) & SKV_LOCK_EXCLUSIVE) != 0 && overlap(a, b);
}

static bool holds(const struct skv_prepared *p, const struct skv_lock *lock)
{
    for (uint32_t i = 0; i < p->vote.locks_count; i++) {
        if (conflict(&p->vote.locks[i], lock)) {
            return true;
        }
    }
    return false;
}

const struct skv_prepared *skv_locks_holder(const struct skv_shard *shard,
                                            const struct skv_lock *locks,
                                            uint32_t count)
{
    for (const struct skv_prepared *p = shard->prepared; p != NULL;
         p = p->next) {
        for (uint32_t i = 0; i < count; i++) {
            if (holds(p, &locks[i])) {
                return p;
            }
        }
    }
    return NULL;
}

const struct skv_prepared *skv_exec_holder(const struct skv_shard *shard,
                                           const struct skv_exec *x)
{
    if (shard->prepared == NULL) {
        return NULL;
    }
    struct skv_lock *locks =
        arena_array(x->arena, 2 * x->request->items_count, sizeof *locks);
    uint32_t count = skv_locks_of(x, locks);
    return skv_locks_holder(shard, locks, count);
}

/* ---- prepared transactions ---- */

static int order(const struct skv_prepared *p, uint64_t session,
                 uint64_t sequence)
{
    if (p->session != session) {
        return p->session < session ? -1 : 1;
    }
    return (p->sequence > sequence) - (p->sequence < sequence);
}

struct skv_prepared *skv_prepared_find(const struct skv_shard *shard,
                                       uint64_t session, uint64_t sequence)
{
    for (struct skv_prepared *p = shard->prepared; p != NULL; p = p->next) {
        if (order(p, session, sequence) == 0) {
            return p;
        }
    }
    return NULL;
}

/* A copy of the vote's names and locks, in its place in the list. */
static void insert(struct skv_shard *shard, uint64_t session, uint64_t sequence,
                   const struct skv_vote *vote)
{
    struct skv_prepared *p = mem_alloc(sizeof *p);
    p->session = session;
    p->sequence = sequence;
    p->vote.participants_count = vote->participants_count;
    p->vote.participants = arena_array(&p->arena, vote->participants_count,
                                       sizeof *vote->participants);
    memcpy(p->vote.participants, vote->participants,
           vote->participants_count * sizeof *vote->participants);
    p->vote.locks_count = vote->locks_count;
    p->vote.locks =
        arena_array(&p->arena, vote->locks_count, sizeof *vote->locks);
    for (uint32_t i = 0; i < vote->locks_count; i++) {
        p->vote.locks[i] = vote->locks[i];
        p->vote.locks[i].key = arena_copy(&p->arena, vote->locks[i].key);
    }
    struct skv_prepared **at = &shard->prepared;
    while (*at != NULL && order(*at, session, sequence) < 0) {
        at = &(*at)->next;
    }
    p->next = *at;
    *at = p;
    shard->prepared_count++;
}

static void unlink_free(struct skv_shard *shard, struct skv_prepared *p)
{
    struct skv_prepared **at = &shard->prepared;
    while (*at != p) {
        at = &(*at)->next;
    }
    *at = p->next;
    shard->prepared_count--;
    arena_free(&p->arena);
    mem_free(p);
}

enum err skv_prepared_add(struct skv_call *c, const struct skv_vote *vote)
{
    struct skv_fsm *f = c->fsm;
    const struct skv_request *q = c->request;
    CHECK(skv_prepared_find(c->shard, q->session, q->sequence) == NULL);
    buf_clear(&f->scratch);
    skv_vote_encode(&f->scratch, vote);
    enum err rc = skv_chunks_put(
        f->store, skv_name_prepared(q->shard, q->session, q->sequence),
        buf_slice(&f->scratch));
    if (rc == ERR_OK) {
        insert(c->shard, q->session, q->sequence, vote);
    }
    return rc;
}

enum err skv_prepared_remove(struct skv_call *c, struct skv_prepared *p)
{
    enum err rc = skv_chunks_remove(
        c->fsm->store,
        skv_name_prepared(c->request->shard, p->session, p->sequence), NULL);
    if (rc == ERR_OK) {
        unlink_free(c->shard, p);
    }
    return rc;
}

enum err skv_vote_find(struct skv_fsm *f, uint16_t shard, uint64_t session,
                       uint64_t sequence, struct buf *bytes,
                       struct skv_vote *vote)
{
    enum err rc = skv_chunks_get(
        f->store, skv_name_prepared(shard, session, sequence), bytes);
    if (rc == ERR_OK) {
        rc = skv_vote_decode(buf_slice(bytes), &f->arena, vote);
    }
    return rc == ERR_NOTFOUND ? ERR_CORRUPT : rc;
}

enum err skv_prepared_read(struct skv_call *c, struct buf *bytes,
                           struct skv_vote *vote)
{
    const struct skv_request *q = c->request;
    return skv_vote_find(c->fsm, q->shard, q->session, q->sequence, bytes,
                         vote);
}

enum err skv_prepared_load(struct skv_fsm *f, uint16_t shard)
{
    struct skv_keys keys = {.max = UINT32_MAX};
    struct skv_name all = skv_name_prepared_all(shard);
    struct slice key;
    struct buf bytes = {0};
    CHECK(f->shards[shard].prepared == NULL);
    enum err rc = skv_keys_collect(f->store, skv_name_slice(&all),
                                   slice_of(NULL, 0), &keys);
    while (rc == ERR_OK && skv_keys_next(&keys, &key)) {
        uint64_t session = 0;
        uint64_t sequence = 0;
        struct skv_vote vote;
        if (!skv_name_read_chunked(key, &session, &sequence)) {
            continue;
        }
        buf_clear(&bytes);
        rc = skv_vote_find(f, shard, session, sequence, &bytes, &vote);
        if (rc == ERR_OK) {
            insert(&f->shards[shard], session, sequence, &vote);
        }
    }
    buf_free(&bytes);
    skv_keys_free(&keys);
    return rc;
}

void skv_prepared_forget(struct skv_shard *shard)
{
    while (shard->prepared != NULL) {
        unlink_free(shard, shard->prepared);
    }
}
