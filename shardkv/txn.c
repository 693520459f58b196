/* A minitransaction against the store. Invariants:
 *
 *  1. All or nothing: whatever can refuse it is found by begin, compare, read
 *     and plan; write() can only fail by the store's own trouble, and then the
 *     replica ends and replays the entry.
 *  2. In the log (x->logged) no bytes of a large value are read: after a crash
 *     they may be newer than this entry (DESIGN 4). Lengths, and whether a
 *     value is large, are kept with the key and are exact.
 *  3. An item sees the writes before it in the same transaction: plan() keeps
 *     what each key's value will be, by the store's own rule (store_rule.c). */
#include "shardkv/fsm_int.h"

#include <string.h>

#include "base/check.h"

enum { HEAD_SIZE = 64, SCAN_BYTES_DEFAULT = 1 << 20, SCAN_ENTRY_OVERHEAD = 16 };

static enum err fault(struct skv_exec *x, enum err rc)
{
    if (rc != ERR_OK) {
        x->fault = rc;
    }
    return rc;
}

/* ERR_NOTFOUND is an answer; all else is a fault. */
static enum err look_up(struct skv_exec *x, struct slice key,
                        struct skv_value *value)
{
    enum err rc = x->store->ops->lookup(x->store, key, value);
    return rc == ERR_NOTFOUND ? rc : fault(x, rc);
}

/* Some bytes of a value that look_up() found: `*out` is borrowed from the store
 * or in the arena. ERR_TOOBIG: invariant 2. */
static enum err read_bytes(struct skv_exec *x, struct slice key,
                           const struct skv_value *value, uint64_t offset,
                           size_t size, struct slice *out)
{
    uint64_t left = offset < value->length ? value->length - offset : 0;
    size_t part = left < size ? (size_t)left : size;
    if (value->is_inline) {
        const uint8_t *from = value->inline_bytes.data;
        *out = slice_of(part > 0 ? from + offset : NULL, part);
        return ERR_OK;
    }
    if (x->logged) {
        return ERR_TOOBIG;
    }
    size_t got = 0;
    uint8_t *to = arena_alloc(x->arena, part);
    enum err rc = x->store->ops->read(x->store, key, offset, to, part, &got);
    *out = slice_of(to, got);
    return fault(x, rc);
}

/* ---- keys ---- */

static enum err resolve(struct skv_exec *x, const struct skv_item *item,
                        struct slice *key)
{
    if (item->via.size == 0) {
        *key = item->key;
        return ERR_OK;
    }
    struct skv_value value;
    struct slice head;
    enum err rc = look_up(x, item->via, &value);
    if (rc == ERR_OK) {
        rc = read_bytes(x, item->via, &value, 0, SKV_OBJECT_SIZE, &head);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    if (head.size < SKV_OBJECT_SIZE) {
        return ERR_NOTFOUND;
    }
    uint64_t id = get_be64(head.data);
    if (id >> 48 != x->request->shard) {
        return ERR_ELSEWHERE;
    }
    if ((id & SKV_OBJECT_KV) == 0) {
        return ERR_INVALID; /* a client's value names what no client may */
    }
    uint8_t *to = arena_alloc(x->arena, SKV_OBJECT_SIZE + item->key.size);
    set_be64(to, id);
    if (item->key.size > 0) {
        memcpy(to + SKV_OBJECT_SIZE, item->key.data, item->key.size);
    }
    *key = slice_of(to, SKV_OBJECT_SIZE + item->key.size);
    return ERR_OK;
}

enum err skv_exec_begin(struct skv_exec *x)
{
    uint32_t count = x->request->items_count;
    x->plans = arena_array(x->arena, count, sizeof *x->plans);
    x->results = arena_array(x->arena, count, sizeof *x->results);
    for (uint32_t i = 0; i < count; i++) {
        x->plans[i].rc = resolve(x, &x->request->items[i], &x->plans[i].key);
        if (x->fault != ERR_OK) {
            return x->fault;
        }
    }
    return ERR_OK;
}

/* The item's refusal is the transaction's. */
static enum err refuse(struct skv_exec *x, uint32_t i, enum err rc)
{
    x->failed = i;
    x->results[i].rc = (uint32_t)rc;
    return rc;
}

/* ---- compares ---- */

static bool stop_at_once(void *arg, struct slice key,
                         const struct skv_value *value)
{
    (void)key;
    (void)value;
    *(bool *)arg = true;
    return false;
}

static enum err compare_empty(struct skv_exec *x, struct slice prefix)
{
    bool found = false;
    enum err rc = x->store->ops->scan(x->store, prefix, slice_of(NULL, 0),
                                      stop_at_once, &found);
    if (rc != ERR_OK) {
        return fault(x, rc);
    }
    return found ? ERR_CONFLICT : ERR_OK;
}

static enum err compare_bytes(struct skv_exec *x, const struct skv_item *item,
                              struct slice key, const struct skv_value *value)
{
    struct slice bytes;
    enum err rc =
        read_bytes(x, key, value, item->offset, item->data.size, &bytes);
    if (rc != ERR_OK) {
        return rc;
    }
    return slice_compare(bytes, item->data) == 0 ? ERR_OK : ERR_CONFLICT;
}

static enum err compare(struct skv_exec *x, const struct skv_item *item,
                        struct slice key)
{
    if (item->kind == SKV_CMP_EMPTY) {
        return compare_empty(x, key);
    }
    struct skv_value value;
    enum err rc = look_up(x, key, &value);
    if (rc == ERR_NOTFOUND) {
        return item->kind == SKV_CMP_ABSENT ? ERR_OK : ERR_CONFLICT;
    }
    if (rc != ERR_OK) {
        return rc;
    }
    switch (item->kind) {
    case SKV_CMP_EXISTS: return ERR_OK;
    case SKV_CMP_LENGTH:
        return value.length == item->number ? ERR_OK : ERR_CONFLICT;
    case SKV_CMP_BYTES: return compare_bytes(x, item, key, &value);
    default: return ERR_CONFLICT; /* ABSENT, and it is there */
    }
}

enum err skv_exec_compare(struct skv_exec *x)
{
    for (uint32_t i = 0; i < x->request->items_count; i++) {
        const struct skv_item *item = &x->request->items[i];
        if (!skv_kind_is_compare(item->kind)) {
            continue;
        }
        enum err rc = x->plans[i].rc;
        if (rc == ERR_OK) {
            rc = compare(x, item, x->plans[i].key);
        }
        if (rc != ERR_OK) {
            return refuse(x, i, rc);
        }
    }
    return ERR_OK;
}

/* ---- reads ---- */

struct scan {
    const struct skv_item *item;
    struct slice above; /* empty: from the prefix itself on */
    uint64_t size_max;
    uint64_t size;
    uint32_t count;
    bool more;
    struct buf out;
};

static bool scan_each(void *arg, struct slice key,
                      const struct skv_value *value)
{
    struct scan *s = arg;
    if (s->above.size > 0 && slice_compare(key, s->above) == 0) {
        return true;
    }
    struct slice head = value->inline_bytes;
    head.size = !value->is_inline       ? 0
                : head.size < HEAD_SIZE ? head.size
                                        : HEAD_SIZE;
    uint64_t size = SCAN_ENTRY_OVERHEAD + key.size + head.size;
    bool over = s->size + size > s->size_max && s->count > 0;
    if (s->count == s->item->number || over) {
        s->more = true;
        return false;
    }
    struct skv_scan_entry entry = {
        .key = key, .length = value->length, .head = head};
    skv_scan_entry_encode(&s->out, &entry);
    s->size += size;
    s->count++;
    return true;
}

/* The head of a large value is left out, in the log or not: it would have to be
 * read from its file, and a listing should not depend on who asks. */
static enum err read_scan(struct skv_exec *x, const struct skv_item *item,
                          struct slice prefix, struct skv_result *out)
{
    struct scan s = {.item = item, .size_max = item->offset};
    if (s.size_max == 0) {
        s.size_max = SCAN_BYTES_DEFAULT;
    }
    if (item->data.size > 0) {
        size_t size = prefix.size + item->data.size;
        uint8_t *above = arena_alloc(x->arena, size);
        memcpy(above, prefix.data, prefix.size);
        memcpy(above + prefix.size, item->data.data, item->data.size);
        s.above = slice_of(above, size);
    }
    enc_u32(&s.out, 0);
    enum err rc = x->store->ops->scan(x->store, prefix, s.above, scan_each, &s);
    set_u32(s.out.data, s.count);
    out->number = s.more;
    out->data = arena_copy(x->arena, buf_slice(&s.out));
    buf_free(&s.out);
    return fault(x, rc);
}

static enum err read_one(struct skv_exec *x, const struct skv_item *item,
                         struct slice key, struct skv_result *out)
{
    if (item->kind == SKV_SCAN) {
        return read_scan(x, item, key, out);
    }
    struct skv_value value;
    struct slice bytes;
    enum err rc = look_up(x, key, &value);
    if (rc != ERR_OK) {
        return rc;
    }
    out->number = value.length;
    if (item->kind == SKV_LENGTH) {
        return ERR_OK;
    }
    rc = read_bytes(x, key, &value, item->offset, (size_t)item->number, &bytes);
    if (rc == ERR_OK) {
        /* What the store lent us goes with its next write. */
        out->data = x->logged ? arena_copy(x->arena, bytes) : bytes;
    }
    return rc;
}

enum err skv_exec_read(struct skv_exec *x)
{
    for (uint32_t i = 0; i < x->request->items_count; i++) {
        const struct skv_item *item = &x->request->items[i];
        if (!skv_kind_is_read(item->kind)) {
            continue;
        }
        enum err rc = x->plans[i].rc;
        if (rc == ERR_OK) {
            rc = read_one(x, item, x->plans[i].key, &x->results[i]);
        }
        x->results[i].rc = (uint32_t)rc;
        if (rc != ERR_OK && rc != ERR_NOTFOUND && rc != ERR_ELSEWHERE) {
            return refuse(x, i, rc);
        }
    }
    return ERR_OK;
}

/* ---- planning writes ---- */

static bool begins_with(struct slice key, struct slice prefix)
{
    return key.size >= prefix.size &&
           memcmp(key.data, prefix.data, prefix.size) == 0;
}

/* Does write item `j` change `key`? */
static bool touches(const struct skv_exec *x, uint32_t j, struct slice key)
{
    uint8_t kind = x->request->items[j].kind;
    if (!skv_kind_is_write(kind)) {
        return false;
    }
    struct slice other = x->plans[j].key;
    return kind == SKV_DELETE_PREFIX ? begins_with(key, other)
                                     : slice_compare(key, other) == 0;
}

/* The key's value as item `i` finds it. */
static enum err shape_before(struct skv_exec *x, uint32_t i,
                             struct skv_shape *shape)
{
    struct slice key = x->plans[i].key;
    for (uint32_t j = i; j > 0; j--) {
        if (touches(x, j - 1, key)) {
            *shape = x->plans[j - 1].after;
            return ERR_OK;
        }
    }
    struct skv_value value;
    enum err rc = look_up(x, key, &value);
    *shape = (struct skv_shape){0};
    if (rc == ERR_OK) {
        *shape = (struct skv_shape){
            .exists = true, .length = value.length, .blob = !value.is_inline};
    }
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

/* The bytes of a small value, zeros behind its end. */
struct small {
    uint8_t bytes[SKV_INLINE_SIZE_MAX];
    size_t size;
};

static void small_resize(struct small *s, size_t size)
{
    if (size < s->size) {
        memset(s->bytes + size, 0, s->size - size);
    }
    s->size = size;
}

static void small_write(struct small *s, uint64_t offset, struct slice data)
{
    if (data.size > 0) {
        memcpy(s->bytes + offset, data.data, data.size);
        s->size = offset + data.size > s->size ? offset + data.size : s->size;
    }
}

/* What write item `j` makes of it. Of a large value nothing is known; it only
 * becomes small by what says all of its bytes. */
static void small_apply(const struct skv_exec *x, uint32_t j, struct small *s)
{
    const struct skv_item *item = &x->request->items[j];
    const struct skv_plan *plan = &x->plans[j];
    if (plan->after.blob) {
        small_resize(s, 0);
        return;
    }
    switch ((enum skv_kind)item->kind) {
    case SKV_PUT:
        small_resize(s, 0);
        small_write(s, 0, item->data);
        break;
    case SKV_APPEND:
    case SKV_PUT_RANGE: small_write(s, plan->offset, item->data); break;
    case SKV_ADD:
        small_write(s, plan->offset, slice_of(plan->sum, sizeof plan->sum));
        break;
    case SKV_PUNCH:
        for (uint64_t k = item->offset;
             k < s->size && k - item->offset < item->number; k++) {
            s->bytes[k] = 0;
        }
        break;
    case SKV_TRUNCATE: small_resize(s, (size_t)item->number); break;
    default: small_resize(s, 0); /* deleted */
    }
}

static enum err small_before(struct skv_exec *x, uint32_t i, struct small *s)
{
    struct skv_value value;
    enum err rc = look_up(x, x->plans[i].key, &value);
    *s = (struct small){0};
    if (rc == ERR_OK && value.is_inline) {
        small_write(s, 0, value.inline_bytes);
    } else if (rc != ERR_OK && rc != ERR_NOTFOUND) {
        return rc;
    }
    for (uint32_t j = 0; j < i; j++) {
        if (touches(x, j, x->plans[i].key)) {
            small_apply(x, j, s);
        }
    }
    return ERR_OK;
}

static enum err plan_add(struct skv_exec *x, uint32_t i,
                         struct skv_shape before)
{
    const struct skv_item *item = &x->request->items[i];
    struct skv_plan *plan = &x->plans[i];
    struct small s;
    if (before.blob || item->offset > SKV_INLINE_SIZE_MAX - sizeof plan->sum) {
        return ERR_TOOBIG;
    }
    enum err rc = small_before(x, i, &s);
    if (rc != ERR_OK) {
        return rc;
    }
    CHECK(s.size == before.length);
    uint64_t sum = get_u64(s.bytes + item->offset) + item->number;
    set_u64(plan->sum, sum);
    plan->offset = item->offset;
    plan->after = skv_shape_put_range(before, item->offset, sizeof sum);
    x->results[i].number = sum;
    return ERR_OK;
}

static enum err plan_append(struct skv_exec *x, uint32_t i,
                            struct skv_shape before)
{
    const struct skv_item *item = &x->request->items[i];
    struct skv_plan *plan = &x->plans[i];
    enum err rc = skv_extent_check(before.length, item->data.size);
    if (rc != ERR_OK) {
        return rc;
    }
    plan->offset = before.length;
    plan->after = skv_shape_put_range(before, plan->offset, item->data.size);
    x->results[i].number = plan->offset;
    return ERR_OK;
}

static enum err plan_delete_prefix(struct skv_exec *x, struct slice prefix)
{
    struct skv_keys keys = {.max = SKV_PREFIX_KEYS_MAX};
    enum err rc = skv_keys_collect(x->store, prefix, slice_of(NULL, 0), &keys);
    bool more = keys.more;
    skv_keys_free(&keys);
    if (rc != ERR_OK) {
        return fault(x, rc);
    }
    return more ? ERR_TOOBIG : ERR_OK;
}

static enum err plan_one(struct skv_exec *x, uint32_t i)
{
    const struct skv_item *item = &x->request->items[i];
    struct skv_plan *plan = &x->plans[i];
    struct skv_shape before;
    enum err rc = shape_before(x, i, &before);
    if (rc != ERR_OK) {
        return rc;
    }
    plan->offset = item->offset;
    switch ((enum skv_kind)item->kind) {
    case SKV_PUT: plan->after = skv_shape_put(item->data.size); return ERR_OK;
    case SKV_APPEND: return plan_append(x, i, before);
    case SKV_PUT_RANGE:
        plan->after =
            skv_shape_put_range(before, item->offset, item->data.size);
        return ERR_OK;
    case SKV_TRUNCATE:
        plan->after = skv_shape_truncate(before, item->number);
        return ERR_OK;
    case SKV_PUNCH: plan->after = before; return ERR_OK;
    case SKV_ADD: return plan_add(x, i, before);
    case SKV_DELETE_PREFIX: return plan_delete_prefix(x, plan->key);
    default: return ERR_OK; /* DELETE: `after` says that it is gone */
    }
}

enum err skv_exec_plan(struct skv_exec *x)
{
    for (uint32_t i = 0; i < x->request->items_count; i++) {
        if (!skv_kind_is_write(x->request->items[i].kind)) {
            continue;
        }
        enum err rc = x->plans[i].rc;
        if (rc == ERR_OK) {
            rc = plan_one(x, i);
        }
        if (rc != ERR_OK) {
            return refuse(x, i, rc);
        }
    }
    return ERR_OK;
}

enum err skv_exec_prepare(struct skv_exec *x)
{
    enum err rc = skv_exec_compare(x);
    if (rc == ERR_OK) {
        rc = skv_exec_read(x);
    }
    return rc == ERR_OK ? skv_exec_plan(x) : rc;
}

/* ---- writing ---- */

static enum err delete_prefix(struct skv_store *s, struct slice prefix)
{
    struct skv_keys keys = {.max = SKV_PREFIX_KEYS_MAX + SKV_ITEMS_MAX};
    enum err rc = skv_keys_collect(s, prefix, slice_of(NULL, 0), &keys);
    if (rc == ERR_OK) {
        rc = skv_keys_remove(s, &keys);
    }
    skv_keys_free(&keys);
    return rc;
}

static enum err write_one(struct skv_store *s, const struct skv_item *item,
                          const struct skv_plan *plan)
{
    enum err rc = ERR_OK;
    switch ((enum skv_kind)item->kind) {
    case SKV_PUT: return s->ops->put(s, plan->key, item->data);
    case SKV_APPEND:
    case SKV_PUT_RANGE:
        return s->ops->put_range(s, plan->key, plan->offset, item->data);
    case SKV_TRUNCATE: return s->ops->truncate(s, plan->key, item->number);
    case SKV_DELETE: return s->ops->remove(s, plan->key);
    case SKV_DELETE_PREFIX: return delete_prefix(s, plan->key);
    case SKV_ADD:
        return s->ops->put_range(s, plan->key, plan->offset,
                                 slice_of(plan->sum, sizeof plan->sum));
    case SKV_PUNCH:
        rc = s->ops->punch(s, plan->key, item->offset, item->number);
        return rc == ERR_NOTFOUND ? ERR_OK : rc;
    default: return ERR_OK;
    }
}

enum err skv_exec_write(struct skv_exec *x)
{
    for (uint32_t i = 0; i < x->request->items_count; i++) {
        enum err rc = write_one(x->store, &x->request->items[i], &x->plans[i]);
        if (rc != ERR_OK) {
            return fault(x, rc);
        }
    }
    return ERR_OK;
}
