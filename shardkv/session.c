/* Exactly once (RIFL, SOSP'15). A shard keeps a row for each session that wrote
 * to it, and a reply for each of its numbers from `first` on. Invariants:
 *
 *  1. A reply is stored by the entry that made the change it answers: both are
 *     there, or neither.
 *  2. A number below `first` is refused: its reply may be gone, so whether it
 *     was executed can no longer be known.
 *  3. Rows and replies are keys of their shard (object 0): they move with it.
 *  4. A session with a prepared transaction does not expire; one whose commit
 *     its clerk has not acknowledged (`outcome` >= first) stays much longer
 *     than others, for a participant that was away meanwhile.
 *  5. A reply below `first` is there only as long as its transaction is
 *     prepared. So a row and the votes say which replies have gone: the owner
 * of a shard that arrives needs to hear no more (track.c, 4). Hence no row goes
 *     while its shard leaves. */
#include "shardkv/fsm_int.h"

#include "base/check.h"

MSG_CODEC(skv_row, SKV_ROW_FIELDS)

enum err skv_row_find(struct skv_fsm *f, uint16_t shard, uint64_t session,
                      struct skv_row *row)
{
    struct skv_name name = skv_name_session(shard, session);
    struct skv_value value;
    enum err rc =
        f->store->ops->lookup(f->store, skv_name_slice(&name), &value);
    return rc == ERR_OK ? skv_row_decode(value.inline_bytes, &f->arena, row)
                        : rc;
}

enum err skv_row_save(struct skv_call *c)
{
    struct skv_fsm *f = c->fsm;
    const struct skv_request *q = c->request;
    struct skv_name name = skv_name_session(q->shard, q->session);
    c->row.last_us = f->clock_us;
    buf_clear(&f->scratch);
    skv_row_encode(&f->scratch, &c->row);
    return f->store->ops->put(f->store, skv_name_slice(&name),
                              buf_slice(&f->scratch));
}

/* ---- replies ---- */

struct below {
    struct skv_call *call;
    uint64_t first;
    struct buf sequences; /* u64 each */
};

/* The row counts one reply less. */
static enum err uncount_reply(struct skv_call *c)
{
    if (c->row.replies == 0) {
        return ERR_CORRUPT;
    }
    c->row.replies--;
    c->row_changed = true;
    return ERR_OK;
}

static bool collect_below(void *arg, struct slice key,
                          const struct skv_value *value)
{
    struct below *b = arg;
    uint64_t session = 0;
    uint64_t sequence = 0;
    (void)value;
    bool is_head = skv_name_read_chunked(key, &session, &sequence);
    if (sequence >= b->first) {
        return false;
    }
    if (is_head &&
        skv_prepared_find(b->call->shard, session, sequence) == NULL) {
        enc_u64(&b->sequences, sequence);
    }
    return true;
}

static enum err forget_one(struct skv_call *c, uint64_t sequence, bool *found)
{
    const struct skv_request *q = c->request;
    enum err rc = skv_chunks_forget(
        c->fsm->store, skv_name_reply(q->shard, q->session, sequence), found);
    return rc == ERR_OK && *found ? uncount_reply(c) : rc;
}

static enum err forget_by_scan(struct skv_call *c, uint64_t first)
{
    struct skv_store *s = c->fsm->store;
    const struct skv_request *q = c->request;
    struct below b = {.call = c, .first = first};
    struct skv_name all = skv_name_replies(q->shard, q->session);
    enum err rc = s->ops->scan(s, skv_name_slice(&all), slice_of(NULL, 0),
                               collect_below, &b);
    for (size_t at = 0; rc == ERR_OK && at < b.sequences.size; at += 8) {
        bool found = false;
        rc = forget_one(c, get_u64(b.sequences.data + at), &found);
    }
    buf_free(&b.sequences);
    return rc;
}

static void newest_set(struct skv_row *row, uint64_t sequence)
{
    uint64_t ahead =
        sequence >= row->first ? sequence - row->first : SKV_NEWEST_UNKNOWN;
    row->newest =
        ahead < SKV_NEWEST_UNKNOWN ? (uint16_t)ahead : SKV_NEWEST_UNKNOWN;
}

/* Most sessions have one reply in a shard, and it is known which: a scan would
 * cost more than all else that a small write does. */
static enum err forget_newest(struct skv_call *c, uint64_t first, bool *done)
{
    uint64_t newest = c->row.first + c->row.newest;
    *done = c->row.replies == 0;
    if (c->row.replies != 1 || c->row.newest == SKV_NEWEST_UNKNOWN ||
        newest >= first ||
        skv_prepared_find(c->shard, c->request->session, newest) != NULL) {
        return ERR_OK;
    }
    return forget_one(c, newest, done);
}

enum err skv_row_forget(struct skv_call *c, uint64_t first)
{
    bool done = false;
    uint64_t newest = c->row.first + c->row.newest;
    enum err rc = forget_newest(c, first, &done);
    if (rc == ERR_OK && !done) {
        rc = forget_by_scan(c, first);
    }
    c->row.first = first;
    newest_set(&c->row, newest);
    c->row_changed = true;
    return rc;
}

enum err skv_use_find(struct skv_call *c, enum skv_use *use, struct buf *out)
{
    const struct skv_request *q = c->request;
    size_t at = out->size;
    enum err rc = skv_chunks_get(
        c->fsm->store, skv_name_reply(q->shard, q->session, q->sequence), out);
    if (rc != ERR_OK) {
        return rc;
    }
    if (out->size - at < 1 || out->data[at] < SKV_USE_EXECUTED ||
        out->data[at] > SKV_USE_ABORTED) {
        return ERR_CORRUPT;
    }
    *use = out->data[at];
    return ERR_OK;
}

static enum err use_save(struct skv_call *c, enum skv_use use,
                         struct slice reply)
{
    struct skv_fsm *f = c->fsm;
    const struct skv_request *q = c->request;
    if (use == SKV_USE_COMMITTED && q->sequence > c->row.outcome) {
        c->row.outcome = q->sequence;
    }
    c->row_changed = true;
    buf_clear(&f->scratch);
    enc_u8(&f->scratch, (uint8_t)use);
    buf_append(&f->scratch, reply.data, reply.size);
    return skv_chunks_put(f->store,
                          skv_name_reply(q->shard, q->session, q->sequence),
                          buf_slice(&f->scratch));
}

enum err skv_use_add(struct skv_call *c, enum skv_use use, struct slice reply)
{
    c->row.replies++;
    newest_set(&c->row, c->request->sequence);
    return use_save(c, use, reply);
}

enum err skv_use_replace(struct skv_call *c, enum skv_use use,
                         struct slice reply)
{
    const struct skv_request *q = c->request;
    if (q->sequence < c->row.first) {
        /* `first` has passed it already: nobody will ask again. */
        bool found = false;
        return forget_one(c, q->sequence, &found);
    }
    enum err rc = skv_chunks_remove(
        c->fsm->store, skv_name_reply(q->shard, q->session, q->sequence), NULL);
    return rc == ERR_OK ? use_save(c, use, reply) : rc;
}

/* ---- of a shard that arrives ---- */

struct passed {
    uint64_t first;
    struct skv_keys keys;
};

static bool collect_passed(void *arg, struct slice key,
                           const struct skv_value *value)
{
    struct passed *p = arg;
    uint64_t session = 0;
    uint64_t sequence = 0;
    (void)value;
    (void)skv_name_read_chunked(key, &session, &sequence);
    if (sequence >= p->first) {
        return false;
    }
    skv_keys_add(&p->keys, key);
    return true;
}

/* Invariant 5. A vote's changes sort before those of its reply: if the vote is
 * on its way here, the reply will come behind it, again if it goes now. */
static enum err follow_one(struct skv_fsm *f, uint16_t shard, struct slice key)
{
    uint64_t session = 0;
    uint64_t sequence = 0;
    bool prepared = false;
    (void)skv_name_read_chunked(key, &session, &sequence);
    enum err rc = skv_chunks_find(
        f->store, skv_name_prepared(shard, session, sequence), &prepared);
    return rc == ERR_OK && !prepared ? f->store->ops->remove(f->store, key)
                                     : rc;
}

enum err skv_replies_follow(struct skv_fsm *f, uint16_t shard, uint64_t session,
                            uint64_t first)
{
    struct passed p = {.first = first};
    struct skv_name all = skv_name_replies(shard, session);
    struct slice key;
    enum err rc = f->store->ops->scan(f->store, skv_name_slice(&all),
                                      slice_of(NULL, 0), collect_passed, &p);
    while (rc == ERR_OK && skv_keys_next(&p.keys, &key)) {
        rc = follow_one(f, shard, key);
    }
    skv_keys_free(&p.keys);
    return rc;
}

/* ---- expiry ---- */

static bool has_prepared(const struct skv_shard *shard, uint64_t session)
{
    for (const struct skv_prepared *p = shard->prepared; p != NULL;
         p = p->next) {
        if (p->session == session) {
            return true;
        }
    }
    return false;
}

static bool is_idle(const struct skv_fsm *f, const struct skv_row *row)
{
    uint64_t limit_us = row->outcome >= row->first && row->outcome > 0
                            ? SKV_OUTCOME_IDLE_US
                            : SKV_SESSION_IDLE_US;
    return f->clock_us > row->last_us && f->clock_us - row->last_us > limit_us;
}

static enum err session_remove(struct skv_fsm *f, uint16_t shard,
                               uint64_t session)
{
    struct skv_keys keys = {.max = UINT32_MAX}; /* SKV_REPLIES_MAX, in chunks */
    struct skv_name replies = skv_name_replies(shard, session);
    struct skv_name row = skv_name_session(shard, session);
    enum err rc = skv_keys_collect(f->store, skv_name_slice(&replies),
                                   slice_of(NULL, 0), &keys);
    if (rc == ERR_OK) {
        rc = skv_keys_remove(f->store, &keys);
    }
    skv_keys_free(&keys);
    return rc == ERR_OK ? f->store->ops->remove(f->store, skv_name_slice(&row))
                        : rc;
}

static enum err expire_one(struct skv_fsm *f, uint16_t shard, uint64_t session)
{
    struct skv_row row;
    enum err rc = skv_row_find(f, shard, session, &row);
    if (rc != ERR_OK || !is_idle(f, &row) ||
        has_prepared(&f->shards[shard], session)) {
        return rc;
    }
    return session_remove(f, shard, session);
}

enum err skv_sessions_expire(struct skv_fsm *f, uint16_t shard, uint64_t after,
                             struct skv_outcome *outcome)
{
    struct skv_keys keys = {.max = SKV_EXPIRE_ROWS_MAX};
    struct skv_name all = skv_name_sessions(shard);
    struct skv_name from = skv_name_session(shard, after + 1);
    struct slice key;
    if (after == UINT64_MAX) {
        return ERR_OK;
    }
    enum err rc = skv_keys_collect(f->store, skv_name_slice(&all),
                                   skv_name_slice(&from), &keys);
    while (rc == ERR_OK && skv_keys_next(&keys, &key)) {
        outcome->next = get_be64(key.data + all.size);
        rc = expire_one(f, shard, outcome->next);
    }
    outcome->more = keys.more;
    skv_keys_free(&keys);
    return rc;
}
