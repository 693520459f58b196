/* Keys of what the state machine keeps for itself (docs/keys.md):
 *
 *   offset  size  field
 *        0     2  shard; 0xffff: the group's own
 *        2     6  zero: object 0, which no client may name
 *        8     1  what it is, a letter below
 *        9   0-n  numbers, big-endian
 *
 * All of a shard's begin with its number, so they move and go with it. */
#include "shardkv/fsm_int.h"

#include <string.h>

#include "base/check.h"

enum {
    LETTER_SESSION = 'S',  /* session: skv_row */
    LETTER_REPLY = 'R',    /* session, sequence, chunk: use, skv_reply */
    LETTER_PREPARED = 'P', /* session, sequence, chunk: skv_vote */
    LETTER_CONFIG = 'C',   /* chunk: ctl_config */
    LETTER_PREVIOUS = 'O', /* chunk: ctl_config, the one before */
    LETTER_CLOCK = 'T',    /* u64: the replicated clock */
    LETTER_STATE = 'H',    /* shard: u8 state, u64 number */
    LETTER_DEBT = 'D',     /* shard, number: ctl_group */
    LETTER_CUT = 'B',      /* skv_hold */
    LETTER_CURSOR = 'Q',   /* shard: skv_cursor, of one that arrives */
    LETTER_CHANGE = 'J',   /* shard, index, count: skv_change, of one that
                              leaves */
    LETTER_LATEST = 'K',   /* shard, hash of a key: name of its last change */
};
enum {
    CHUNK_HEAD_SIZE = 4, /* of chunk 0: the size of all */
    CHUNK_INDEX_SIZE = 2,
    CHUNKED_SIZE = SKV_OBJECT_SIZE + 1 + 8 + 8 + CHUNK_INDEX_SIZE,
};

struct slice skv_name_slice(const struct skv_name *n)
{
    return slice_of(n->data, n->size);
}

static void name_u16(struct skv_name *n, uint16_t v)
{
    set_be16(n->data + n->size, v);
    n->size += sizeof v;
}

static void name_u64(struct skv_name *n, uint64_t v)
{
    set_be64(n->data + n->size, v);
    n->size += sizeof v;
}

static struct skv_name name_of(uint16_t shard, uint8_t letter)
{
    struct skv_name n = {.size = SKV_OBJECT_SIZE + 1};
    set_be16(n.data, shard);
    n.data[SKV_OBJECT_SIZE] = letter;
    return n;
}

struct skv_name skv_name_shard(uint16_t shard)
{
    struct skv_name n = {0};
    name_u16(&n, shard);
    return n;
}

struct skv_name skv_name_sessions(uint16_t shard)
{
    return name_of(shard, LETTER_SESSION);
}

struct skv_name skv_name_session(uint16_t shard, uint64_t session)
{
    struct skv_name n = name_of(shard, LETTER_SESSION);
    name_u64(&n, session);
    return n;
}

struct skv_name skv_name_replies_all(uint16_t shard)
{
    return name_of(shard, LETTER_REPLY);
}

struct skv_name skv_name_replies(uint16_t shard, uint64_t session)
{
    struct skv_name n = name_of(shard, LETTER_REPLY);
    name_u64(&n, session);
    return n;
}

struct skv_name skv_name_reply(uint16_t shard, uint64_t session,
                               uint64_t sequence)
{
    struct skv_name n = skv_name_replies(shard, session);
    name_u64(&n, sequence);
    return n;
}

struct skv_name skv_name_prepared_all(uint16_t shard)
{
    return name_of(shard, LETTER_PREPARED);
}

struct skv_name skv_name_prepared(uint16_t shard, uint64_t session,
                                  uint64_t sequence)
{
    struct skv_name n = skv_name_prepared_all(shard);
    name_u64(&n, session);
    name_u64(&n, sequence);
    return n;
}

struct skv_name skv_name_config(void)
{
    return name_of(SKV_GROUP_SHARD, LETTER_CONFIG);
}

struct skv_name skv_name_previous(void)
{
    return name_of(SKV_GROUP_SHARD, LETTER_PREVIOUS);
}

struct skv_name skv_name_clock(void)
{
    return name_of(SKV_GROUP_SHARD, LETTER_CLOCK);
}

struct skv_name skv_name_cut(void)
{
    return name_of(SKV_GROUP_SHARD, LETTER_CUT);
}

struct skv_name skv_name_states(void)
{
    return name_of(SKV_GROUP_SHARD, LETTER_STATE);
}

struct skv_name skv_name_state(uint16_t shard)
{
    struct skv_name n = skv_name_states();
    name_u16(&n, shard);
    return n;
}

struct skv_name skv_name_debts(void)
{
    return name_of(SKV_GROUP_SHARD, LETTER_DEBT);
}

struct skv_name skv_name_debt(uint16_t shard, uint64_t number)
{
    struct skv_name n = skv_name_debts();
    name_u16(&n, shard);
    name_u64(&n, number);
    return n;
}

struct skv_name skv_name_cursor(uint16_t shard)
{
    struct skv_name n = name_of(SKV_GROUP_SHARD, LETTER_CURSOR);
    name_u16(&n, shard);
    return n;
}

struct skv_name skv_name_changes(uint16_t shard)
{
    struct skv_name n = name_of(SKV_GROUP_SHARD, LETTER_CHANGE);
    name_u16(&n, shard);
    return n;
}

struct skv_name skv_name_change(uint16_t shard, raft_index index,
                                uint32_t count)
{
    struct skv_name n = skv_name_changes(shard);
    name_u64(&n, index);
    name_u16(&n, (uint16_t)(count >> 16));
    name_u16(&n, (uint16_t)count);
    return n;
}

struct skv_name skv_name_latests(uint16_t shard)
{
    struct skv_name n = name_of(SKV_GROUP_SHARD, LETTER_LATEST);
    name_u16(&n, shard);
    return n;
}

struct skv_name skv_name_latest(uint16_t shard, uint32_t hash)
{
    struct skv_name n = skv_name_latests(shard);
    name_u16(&n, (uint16_t)(hash >> 16));
    name_u16(&n, (uint16_t)hash);
    return n;
}

bool skv_name_read_chunked(struct slice key, uint64_t *session,
                           uint64_t *sequence)
{
    *session = *sequence = 0;
    if (key.size != CHUNKED_SIZE) {
        return false; /* damage: nobody asks for it by this name */
    }
    const uint8_t *at = key.data + SKV_OBJECT_SIZE + 1;
    *session = get_be64(at);
    *sequence = get_be64(at + 8);
    return get_be16(at + 16) == 0;
}

bool skv_name_read_session(struct slice key, uint64_t *session)
{
    if (key.size != SKV_OBJECT_SIZE + 1 + 8 ||
        (get_be64(key.data) & SKV_OBJECT_KV) != 0 ||
        key.data[SKV_OBJECT_SIZE] != LETTER_SESSION) {
        return false;
    }
    *session = get_be64(key.data + SKV_OBJECT_SIZE + 1);
    return true;
}

bool skv_name_may_move(struct slice key)
{
    if ((get_be64(key.data) & SKV_OBJECT_KV) != 0) {
        return true; /* a client's */
    }
    uint8_t letter = key.size > SKV_OBJECT_SIZE ? key.data[SKV_OBJECT_SIZE] : 0;
    switch (letter) {
    case LETTER_SESSION: return key.size == SKV_OBJECT_SIZE + 1 + 8;
    case LETTER_REPLY:
    case LETTER_PREPARED: return key.size == CHUNKED_SIZE;
    default: return false;
    }
}

/* ---- chunks ---- */

static struct skv_name chunk_name(struct skv_name name, uint32_t index)
{
    CHECK(index <= UINT16_MAX);
    name_u16(&name, (uint16_t)index);
    return name;
}

static uint32_t chunk_count(uint32_t size)
{
    return (CHUNK_HEAD_SIZE + size + SKV_CHUNK_SIZE_MAX - 1) /
           SKV_CHUNK_SIZE_MAX;
}

static enum err put_first(struct skv_store *s, const struct skv_name *name,
                          struct slice bytes)
{
    uint8_t first[SKV_CHUNK_SIZE_MAX];
    size_t size = bytes.size < sizeof first - CHUNK_HEAD_SIZE
                      ? bytes.size
                      : sizeof first - CHUNK_HEAD_SIZE;
    set_u32(first, (uint32_t)bytes.size);
    if (size > 0) {
        memcpy(first + CHUNK_HEAD_SIZE, bytes.data, size);
    }
    return s->ops->put(s, skv_name_slice(name),
                       slice_of(first, CHUNK_HEAD_SIZE + size));
}

enum err skv_chunks_put(struct skv_store *s, struct skv_name name,
                        struct slice bytes)
{
    struct skv_name first = chunk_name(name, 0);
    enum err rc = put_first(s, &first, bytes);
    size_t at = SKV_CHUNK_SIZE_MAX - CHUNK_HEAD_SIZE;
    for (uint32_t i = 1; rc == ERR_OK && at < bytes.size; i++) {
        struct skv_name key = chunk_name(name, i);
        size_t left = bytes.size - at;
        size_t size = left < SKV_CHUNK_SIZE_MAX ? left : SKV_CHUNK_SIZE_MAX;
        rc = s->ops->put(s, skv_name_slice(&key),
                         slice_of(bytes.data + at, size));
        at += size;
    }
    return rc;
}

/* What we wrote is there, inline: anything else is damage. */
static enum err chunk_lookup(struct skv_store *s, const struct skv_name *name,
                             struct skv_value *value)
{
    enum err rc = s->ops->lookup(s, skv_name_slice(name), value);
    if (rc == ERR_OK && !value->is_inline) {
        return ERR_CORRUPT;
    }
    return rc;
}

enum err skv_chunks_get(struct skv_store *s, struct skv_name name,
                        struct buf *out)
{
    struct skv_value value;
    struct skv_name key = chunk_name(name, 0);
    enum err rc = chunk_lookup(s, &key, &value);
    if (rc != ERR_OK) {
        return rc;
    }
    struct dec d = dec_of(value.inline_bytes);
    uint32_t size = dec_u32(&d);
    struct slice part = dec_raw(&d, dec_left(&d));
    size_t got = part.size;
    buf_append(out, part.data, part.size);
    for (uint32_t i = 1; i < chunk_count(size); i++) {
        key = chunk_name(name, i);
        rc = chunk_lookup(s, &key, &value);
        if (rc != ERR_OK) {
            return rc == ERR_NOTFOUND ? ERR_CORRUPT : rc;
        }
        got += value.inline_bytes.size;
        buf_append(out, value.inline_bytes.data, value.inline_bytes.size);
    }
    return got == size ? ERR_OK : ERR_CORRUPT;
}

typedef enum err remove_fn(struct skv_store *s, struct slice key);

static enum err remove_by(struct skv_store *s, struct skv_name name,
                          remove_fn *remove, bool *found)
{
    struct skv_value value;
    struct skv_name key = chunk_name(name, 0);
    enum err rc = chunk_lookup(s, &key, &value);
    if (found != NULL) {
        *found = rc == ERR_OK;
    }
    if (rc != ERR_OK) {
        return rc == ERR_NOTFOUND ? ERR_OK : rc;
    }
    struct dec d = dec_of(value.inline_bytes);
    uint32_t count = chunk_count(dec_u32(&d));
    for (uint32_t i = 0; rc == ERR_OK && i < count; i++) {
        key = chunk_name(name, i);
        rc = remove(s, skv_name_slice(&key));
    }
    return rc;
}

enum err skv_chunks_remove(struct skv_store *s, struct skv_name name,
                           bool *found)
{
    return remove_by(s, name, s->ops->remove, found);
}

enum err skv_chunks_forget(struct skv_store *s, struct skv_name name,
                           bool *found)
{
    return remove_by(s, name, skv_track_forget, found);
}

enum err skv_chunks_find(struct skv_store *s, struct skv_name name, bool *found)
{
    struct skv_value value;
    struct skv_name first = chunk_name(name, 0);
    enum err rc = s->ops->lookup(s, skv_name_slice(&first), &value);
    *found = rc == ERR_OK;
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

/* ---- sets of keys: a scan's callback must not write, so collect first ---- */

void skv_keys_add(struct skv_keys *keys, struct slice key)
{
    enc_u16(&keys->bytes, (uint16_t)key.size);
    buf_append(&keys->bytes, key.data, key.size);
    keys->count++;
}

static bool collect(void *arg, struct slice key, const struct skv_value *value)
{
    struct skv_keys *keys = arg;
    (void)value;
    if (keys->count == keys->max) {
        keys->more = true;
        return false;
    }
    skv_keys_add(keys, key);
    return true;
}

enum err skv_keys_collect(struct skv_store *s, struct slice prefix,
                          struct slice from, struct skv_keys *keys)
{
    return s->ops->scan(s, prefix, from, collect, keys);
}

bool skv_keys_next(struct skv_keys *keys, struct slice *key)
{
    if (keys->at == keys->bytes.size) {
        return false;
    }
    const uint8_t *at = keys->bytes.data + keys->at;
    size_t size = (size_t)(at[0] | at[1] << 8);
    *key = slice_of(at + 2, size);
    keys->at += 2 + size;
    return true;
}

void skv_keys_free(struct skv_keys *keys)
{
    buf_free(&keys->bytes);
    *keys = (struct skv_keys){.max = keys->max};
}

enum err skv_keys_remove(struct skv_store *s, struct skv_keys *keys)
{
    struct slice key;
    enum err rc = ERR_OK;
    while (rc == ERR_OK && skv_keys_next(keys, &key)) {
        rc = s->ops->remove(s, key);
    }
    return rc;
}
