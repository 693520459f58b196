/* Is what another group sent as a shard's own records what a group could have?
 * Sessions, replies and votes are taken on trust by every later request: a
 * record that lies would end each of our replicas, at that request. So it is
 * looked at once, before the shard is served. Of a good shard:
 *
 *  1. Each session's row decodes, and counts its replies.
 *  2. Each reply and vote is there with all its chunks, and decodes.
 *  3. Each vote is of a number whose reply says so, locks what it writes, and
 *     can be written.
 *
 * Clients' keys need no look: their values are bytes. */
#include "shardkv/fsm_int.h"

#include "base/check.h"

/* ---- sessions and their replies ---- */

struct tally {
    struct skv_fsm *fsm;
    struct buf rows; /* u64 session, u32 replies still to be seen; sorted */
    size_t at;
    uint64_t session, sequence; /* of the reply at hand */
    uint32_t chunk, left;       /* seen of it; bytes of it still to come */
    bool bad;
};
enum { ROW_SIZE = 8 + 4 };

static bool see_row(void *arg, struct slice key, const struct skv_value *value)
{
    struct tally *t = arg;
    struct skv_row row;
    struct arena *a = &t->fsm->arena;
    t->bad = skv_row_decode(value->inline_bytes, a, &row) != ERR_OK;
    if (!t->bad) {
        enc_u64(&t->rows, get_be64(key.data + SKV_OBJECT_SIZE + 1));
        enc_u32(&t->rows, row.replies);
    }
    return !t->bad;
}

/* The row of the session counts one reply less. Both are sorted. */
static bool count_reply(struct tally *t)
{
    while (t->at < t->rows.size && get_u64(t->rows.data + t->at) < t->session) {
        t->at += ROW_SIZE;
    }
    if (t->at >= t->rows.size || get_u64(t->rows.data + t->at) != t->session) {
        return false;
    }
    uint8_t *replies = t->rows.data + t->at + 8;
    uint32_t left = get_u32(replies);
    set_u32(replies, left - 1);
    return left > 0;
}

static bool first_chunk(struct tally *t, struct slice bytes)
{
    struct dec d = dec_of(bytes);
    uint32_t size = dec_u32(&d);
    uint8_t use = dec_u8(&d);
    if (d.failed || t->left > 0 || bytes.size - 4 > size ||
        use < SKV_USE_EXECUTED || use > SKV_USE_ABORTED) {
        return false;
    }
    t->left = size - (uint32_t)(bytes.size - 4);
    t->chunk = 0;
    return count_reply(t);
}

static bool next_chunk(struct tally *t, uint32_t chunk, struct slice bytes)
{
    if (chunk != t->chunk + 1 || bytes.size > t->left ||
        (bytes.size < t->left && bytes.size != SKV_CHUNK_SIZE_MAX)) {
        return false;
    }
    t->chunk = chunk;
    t->left -= (uint32_t)bytes.size;
    return true;
}

static bool see_reply(void *arg, struct slice key,
                      const struct skv_value *value)
{
    struct tally *t = arg;
    uint64_t session = 0, sequence = 0;
    bool first = skv_name_read_chunked(key, &session, &sequence);
    bool same = session == t->session && sequence == t->sequence;
    uint32_t chunk = get_be16(key.data + key.size - 2);
    t->session = session;
    t->sequence = sequence;
    t->bad = !value->is_inline ||
             !(first  ? first_chunk(t, value->inline_bytes)
               : same ? next_chunk(t, chunk, value->inline_bytes)
                      : false) ||
             (t->left > 0 && value->inline_bytes.size != SKV_CHUNK_SIZE_MAX);
    return !t->bad;
}

static bool tally_is_good(const struct tally *t)
{
    bool good = !t->bad && t->left == 0;
    for (size_t at = 0; good && at < t->rows.size; at += ROW_SIZE) {
        good = get_u32(t->rows.data + at + 8) == 0;
    }
    return good;
}

static enum err check_sessions(struct skv_fsm *f, uint16_t shard,
                               enum err *fault)
{
    struct skv_store *s = f->store;
    struct tally t = {.fsm = f};
    struct skv_name rows = skv_name_sessions(shard);
    struct skv_name replies = skv_name_replies_all(shard);
    *fault =
        s->ops->scan(s, skv_name_slice(&rows), slice_of(NULL, 0), see_row, &t);
    if (*fault == ERR_OK && !t.bad) {
        *fault = s->ops->scan(s, skv_name_slice(&replies), slice_of(NULL, 0),
                              see_reply, &t);
    }
    bool good = tally_is_good(&t);
    buf_free(&t.rows);
    return good ? ERR_OK : ERR_CORRUPT;
}

/* ---- votes ---- */

static bool is_locked(const struct skv_vote *vote, struct slice key)
{
    for (uint32_t i = 0; i < vote->locks_count; i++) {
        const struct skv_lock *lock = &vote->locks[i];
        if ((lock->flags & SKV_LOCK_EXCLUSIVE) != 0 &&
            slice_compare(lock->key, key) == 0) {
            return true;
        }
    }
    return false;
}

static bool only_locked_writes(const struct skv_vote *vote)
{
    for (uint32_t i = 0; i < vote->items_count; i++) {
        const struct skv_item *item = &vote->items[i];
        if (!skv_kind_is_write(item->kind) || item->via.size > 0 ||
            !is_locked(vote, item->key)) {
            return false;
        }
    }
    return true;
}

/* Would COMMIT be able to do it? */
static enum err check_vote(struct skv_fsm *f, const struct skv_request *q,
                           const struct skv_vote *vote, enum err *fault)
{
    struct skv_call c = {.fsm = f, .shard = &f->shards[q->shard], .request = q};
    struct skv_exec x = {
        .store = f->store, .arena = &f->arena, .request = q, .logged = true};
    struct buf reply = {0};
    enum skv_use use = 0;
    enum err rc = skv_use_find(&c, &use, &reply);
    buf_free(&reply);
    if (rc != ERR_OK || use != SKV_USE_PREPARED || !only_locked_writes(vote) ||
        skv_request_check(q) != ERR_OK) {
        *fault = rc == ERR_NOTFOUND || rc == ERR_CORRUPT ? ERR_OK : rc;
        return ERR_CORRUPT;
    }
    rc = skv_exec_begin(&x);
    if (rc == ERR_OK) {
        rc = skv_exec_plan(&x);
    }
    *fault = x.fault;
    return rc == ERR_OK ? ERR_OK : ERR_CORRUPT;
}

static enum err check_votes(struct skv_fsm *f, uint16_t shard, enum err *fault)
{
    struct skv_keys keys = {.max = UINT32_MAX};
    struct skv_name all = skv_name_prepared_all(shard);
    struct slice key;
    enum err rc = ERR_OK;
    *fault = skv_keys_collect(f->store, skv_name_slice(&all), slice_of(NULL, 0),
                              &keys);
    while (rc == ERR_OK && *fault == ERR_OK && skv_keys_next(&keys, &key)) {
        struct skv_request q = {.shard = shard, .phase = SKV_COMMIT};
        struct skv_vote vote;
        struct buf bytes = {0};
        if (!skv_name_read_chunked(key, &q.session, &q.sequence)) {
            continue;
        }
        rc = skv_vote_find(f, shard, q.session, q.sequence, &bytes, &vote);
        if (rc == ERR_OK) {
            q.items = vote.items;
            q.items_count = vote.items_count;
            rc = check_vote(f, &q, &vote, fault);
        } else if (rc != ERR_CORRUPT) {
            *fault = rc;
        }
        buf_free(&bytes);
    }
    skv_keys_free(&keys);
    return rc;
}

enum err skv_arrival_check(struct skv_fsm *f, uint16_t shard, enum err *fault)
{
    enum err rc = check_sessions(f, shard, fault);
    return rc == ERR_OK && *fault == ERR_OK ? check_votes(f, shard, fault) : rc;
}
