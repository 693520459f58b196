/* The store in memory, for the simulator and for tests. It keeps what LMDB
 * keeps, by the same rule (store_rule.c); its "disk" is an image: the table
 * as it was at the last checkpoint. Invariants:
 *
 *  1. A table is sorted by key, as memcmp sorts.
 *  2. Tables share values, so that a checkpoint or a view costs a pointer a
 *     key. A value that more than one table holds does not change: who writes
 *     to it takes a copy first (own()). `durable` and `frozen` alone are the
 *     store's, whoever else holds the value.
 *  3. A crash (close without a checkpoint) goes back to the image, but bytes of
 *     blobs may be newer, as with real files: close puts them there, so that
 *     the simulator finds who reads blob bytes while an operation is applied.
 */
#include "shardkv/store_int.h"

#include <string.h>

#include "base/check.h"

/* More than that in one value is a mistake of a test, not a reason to swap. */
#define MEM_VALUE_SIZE_MAX (256ull << 20)

struct mem_value {
    uint32_t refs; /* tables; atomic: views are read on another thread */
    struct buf
        bytes; /* as long as the value; zeros where nothing was written */
    bool blob;
    bool durable; /* a blob that the image has too, the same "file" */
    bool frozen;  /* a blob that the checkpoint that was begun has */
    size_t key_size;
    uint8_t key[];
};

struct skv_mem_table {
    struct mem_value **values;
    size_t count, capacity;
};

struct mem_store {
    struct skv_store store;
    struct skv_mem_image *image;
    struct skv_mem_table table;
    bool failed; /* found no space; not rewound yet */
    /* A checkpoint that was begun. */
    struct skv_mem_table pending;
    uint64_t pending_index, pending_term;
    bool begun, written;
};

struct skv_view {
    struct skv_mem_table table; /* the image's */
};

static struct mem_store *of(struct skv_store *s)
{
    return (struct mem_store *)s;
}

static struct slice key_of(const struct mem_value *v)
{
    return slice_of(v->key, v->key_size);
}

static struct mem_value *value_new(struct slice key)
{
    struct mem_value *v = mem_alloc(sizeof *v + key.size);
    v->refs = 1;
    memcpy(v->key, key.data, key.size);
    v->key_size = key.size;
    return v;
}

static struct mem_value *value_ref(struct mem_value *v)
{
    __atomic_add_fetch(&v->refs, 1, __ATOMIC_RELAXED);
    return v;
}

static void value_unref(struct mem_value *v)
{
    if (__atomic_sub_fetch(&v->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        buf_free(&v->bytes);
        mem_free(v);
    }
}

/* ---- tables ---- */

static uint64_t head_of(const uint8_t *bytes)
{
    uint64_t v;
    memcpy(&v, bytes, sizeof v);
    return __builtin_bswap64(v);
}

/* As slice_compare(), eight bytes at a time: simulators spend their time here,
 * and keys are short. */
static int key_compare(const struct mem_value *v, struct slice key)
{
    size_t common = v->key_size < key.size ? v->key_size : key.size;
    size_t i = 0;
    for (; i + 8 <= common; i += 8) {
        uint64_t a = head_of(v->key + i);
        uint64_t b = head_of(key.data + i);
        if (a != b) {
            return a < b ? -1 : 1;
        }
    }
    for (; i < common; i++) {
        if (v->key[i] != key.data[i]) {
            return v->key[i] < key.data[i] ? -1 : 1;
        }
    }
    return v->key_size < key.size ? -1 : v->key_size > key.size;
}

/* Where the first key >= `key` is. */
static size_t lower_bound(const struct skv_mem_table *t, struct slice key)
{
    size_t low = 0;
    size_t high = t->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (key_compare(t->values[middle], key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool is_at(const struct skv_mem_table *t, size_t at, struct slice key)
{
    return at < t->count && key_compare(t->values[at], key) == 0;
}

static struct mem_value *find(const struct skv_mem_table *t, struct slice key)
{
    size_t at = lower_bound(t, key);
    return is_at(t, at, key) ? t->values[at] : NULL;
}

static void insert(struct skv_mem_table *t, size_t at, struct slice key)
{
    if (t->count == t->capacity) {
        t->capacity = t->capacity == 0 ? 64 : 2 * t->capacity;
        t->values = mem_resize(t->values, t->capacity * sizeof *t->values);
    }
    memmove(t->values + at + 1, t->values + at,
            (t->count - at) * sizeof *t->values);
    t->values[at] = value_new(key);
    t->count++;
}

/* The value at `at`, which no other table holds (2). */
static struct mem_value *own(struct skv_mem_table *t, size_t at)
{
    struct mem_value *v = t->values[at];
    if (__atomic_load_n(&v->refs, __ATOMIC_ACQUIRE) > 1) {
        struct mem_value *copy = value_new(key_of(v));
        copy->blob = v->blob;
        copy->durable = v->durable;
        copy->frozen = v->frozen;
        buf_append(&copy->bytes, v->bytes.data, v->bytes.size);
        value_unref(v);
        t->values[at] = v = copy;
    }
    return v;
}

static void table_fini(struct skv_mem_table *t)
{
    for (size_t i = 0; i < t->count; i++) {
        value_unref(t->values[i]);
    }
    mem_free(t->values);
    *t = (struct skv_mem_table){0};
}

static struct skv_mem_table table_copy(const struct skv_mem_table *from)
{
    struct skv_mem_table t = {
        .values = mem_array(from->count, sizeof *from->values),
        .count = from->count,
        .capacity = from->count,
    };
    for (size_t i = 0; i < t.count; i++) {
        t.values[i] = value_ref(from->values[i]);
    }
    return t;
}

/* ---- reads ---- */

static struct skv_value value_of(const struct mem_value *v)
{
    return (struct skv_value){.length = v->bytes.size,
                              .is_inline = !v->blob,
                              .inline_bytes = v->blob ? slice_of(NULL, 0)
                                                      : buf_slice(&v->bytes)};
}

static enum err op_lookup(struct skv_store *store, struct slice key,
                          struct skv_value *out)
{
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    const struct mem_value *v = find(&of(store)->table, key);
    if (v == NULL) {
        return ERR_NOTFOUND;
    }
    *out = value_of(v);
    return ERR_OK;
}

static enum err table_read(const struct skv_mem_table *t, struct slice key,
                           uint64_t offset, void *to, size_t size, size_t *got)
{
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    const struct mem_value *v = find(t, key);
    if (v == NULL) {
        return ERR_NOTFOUND;
    }
    size_t left = offset < v->bytes.size ? v->bytes.size - (size_t)offset : 0;
    size_t part = left < size ? left : size;
    if (part > 0) {
        memcpy(to, v->bytes.data + offset, part);
    }
    *got = part;
    return ERR_OK;
}

static enum err op_read(struct skv_store *store, struct slice key,
                        uint64_t offset, void *to, size_t size, size_t *got)
{
    return table_read(&of(store)->table, key, offset, to, size, got);
}

static bool has_prefix(struct slice key, struct slice prefix)
{
    return key.size >= prefix.size &&
           (prefix.size == 0 ||
            memcmp(key.data, prefix.data, prefix.size) == 0);
}

static enum err table_scan(const struct skv_mem_table *t, struct slice prefix,
                           struct slice from, skv_scan_fn *each, void *arg)
{
    struct slice start = slice_compare(from, prefix) > 0 ? from : prefix;
    if (start.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    for (size_t i = lower_bound(t, start); i < t->count; i++) {
        struct skv_value shown = value_of(t->values[i]);
        struct slice key = key_of(t->values[i]);
        if (!has_prefix(key, prefix) || !each(arg, key, &shown)) {
            break;
        }
    }
    return ERR_OK;
}

static enum err op_scan(struct skv_store *store, struct slice prefix,
                        struct slice from, skv_scan_fn *each, void *arg)
{
    return table_scan(&of(store)->table, prefix, from, each, arg);
}

/* ---- writes ---- */

/* Before anything changes: the fault that the image asks for. */
static enum err take_space(struct mem_store *s)
{
    struct skv_mem_image *image = s->image;
    if (image->is_full) {
        s->failed = s->failed || image->writes_left == 0;
        image->writes_left -= image->writes_left > 0;
    }
    return s->failed ? ERR_NOSPACE : ERR_OK;
}

static void tell(const struct mem_store *s, struct slice key,
                 const struct slice *data)
{
    if (s->image->wrote != NULL) {
        s->image->wrote(s->image->wrote_arg, key, data);
    }
}

static struct skv_shape shape_of(const struct mem_value *v)
{
    return v == NULL ? (struct skv_shape){0}
                     : (struct skv_shape){.exists = true,
                                          .blob = v->blob,
                                          .length = v->bytes.size};
}

/* The key's value in its new shape, made if missing; zeros in what is new. */
static struct mem_value *reshape(struct skv_mem_table *t, struct slice key,
                                 struct skv_shape next)
{
    size_t at = lower_bound(t, key);
    if (!is_at(t, at, key)) {
        insert(t, at, key);
    }
    struct mem_value *v = own(t, at);
    v->durable = v->durable && next.blob; /* inline: its file is dead */
    v->frozen = v->frozen && next.blob;
    v->blob = next.blob;
    size_t length = (size_t)next.length;
    size_t old = v->bytes.size;
    if (length > old) {
        memset(buf_extend(&v->bytes, length - old), 0, length - old);
    } else {
        v->bytes.size = length;
    }
    return v;
}

static enum err check_write(struct slice key, uint64_t offset, uint64_t size)
{
    enum err rc = skv_extent_check(offset, size);
    return rc != ERR_OK ? rc : skv_store_key_check(key);
}

static enum err check_room(struct skv_shape next)
{
    return next.length <= MEM_VALUE_SIZE_MAX ? ERR_OK : ERR_NOSPACE;
}

static enum err op_put(struct skv_store *store, struct slice key,
                       struct slice value)
{
    struct skv_shape next = skv_shape_put(value.size);
    enum err rc = check_write(key, 0, value.size);
    if (rc == ERR_OK) {
        rc = check_room(next);
    }
    if (rc == ERR_OK) {
        rc = take_space(of(store));
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct mem_value *v = reshape(&of(store)->table, key, next);
    if (value.size > 0) {
        memcpy(v->bytes.data, value.data, value.size);
    }
    tell(of(store), key, &value);
    return ERR_OK;
}

static enum err op_put_range(struct skv_store *store, struct slice key,
                             uint64_t offset, struct slice data)
{
    struct skv_mem_table *t = &of(store)->table;
    enum err rc = check_write(key, offset, data.size);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_shape next =
        skv_shape_put_range(shape_of(find(t, key)), offset, data.size);
    rc = check_room(next);
    if (rc == ERR_OK) {
        rc = take_space(of(store));
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct mem_value *v = reshape(t, key, next);
    if (data.size > 0) {
        memcpy(v->bytes.data + offset, data.data, data.size);
    }
    tell(of(store), key, &data);
    return ERR_OK;
}

static enum err op_truncate(struct skv_store *store, struct slice key,
                            uint64_t length)
{
    struct skv_mem_table *t = &of(store)->table;
    enum err rc = check_write(key, 0, length);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_shape next = skv_shape_truncate(shape_of(find(t, key)), length);
    rc = check_room(next);
    if (rc == ERR_OK) {
        rc = take_space(of(store));
    }
    if (rc == ERR_OK) {
        (void)reshape(t, key, next);
    }
    return rc;
}

static enum err op_punch(struct skv_store *store, struct slice key,
                         uint64_t offset, uint64_t size)
{
    enum err rc = check_write(key, offset, size);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_mem_table *t = &of(store)->table;
    size_t at = lower_bound(t, key);
    if (!is_at(t, at, key)) {
        return ERR_NOTFOUND;
    }
    rc = take_space(of(store));
    if (rc != ERR_OK) {
        return rc;
    }
    struct mem_value *v = own(t, at);
    uint64_t left = offset < v->bytes.size ? v->bytes.size - offset : 0;
    uint64_t part = size < left ? size : left;
    if (part > 0) {
        memset(v->bytes.data + offset, 0, (size_t)part);
    }
    return ERR_OK;
}

static enum err op_remove(struct skv_store *store, struct slice key)
{
    struct skv_mem_table *t = &of(store)->table;
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    size_t at = lower_bound(t, key);
    if (!is_at(t, at, key)) {
        tell(of(store), key, NULL);
        return ERR_OK;
    }
    rc = take_space(of(store));
    if (rc != ERR_OK) {
        return rc;
    }
    value_unref(t->values[at]);
    t->count--;
    memmove(t->values + at, t->values + at + 1,
            (t->count - at) * sizeof *t->values);
    tell(of(store), key, NULL);
    return ERR_OK;
}

/* ---- as a stream ---- */

static enum err write_to_buf(void *arg, struct slice bytes)
{
    buf_append(arg, bytes.data, bytes.size);
    return ERR_OK;
}

static void save_blob(struct skv_stream_writer *w, const struct mem_value *v)
{
    for (size_t at = 0; at < v->bytes.size;) {
        size_t left = v->bytes.size - at;
        size_t part = left < SKV_STREAM_DATA_MAX ? left : SKV_STREAM_DATA_MAX;
        skv_stream_data(w, at, slice_of(v->bytes.data + at, part));
        at += part;
    }
}

static void save(const struct skv_mem_table *t, struct buf *to)
{
    buf_clear(to);
    struct skv_stream_writer w = {.write = write_to_buf, .arg = to};
    skv_stream_begin(&w);
    for (size_t i = 0; i < t->count; i++) {
        struct skv_value shown = value_of(t->values[i]);
        skv_stream_key(&w, key_of(t->values[i]), &shown);
        if (t->values[i]->blob) {
            save_blob(&w, t->values[i]);
        }
    }
    enum err rc = skv_stream_end(&w);
    CHECK(rc == ERR_OK);
}

static enum err load_key(struct skv_mem_table *t,
                         const struct skv_stream_record *r,
                         struct mem_value **out)
{
    struct skv_shape shape = {
        .exists = true, .blob = !r->value.is_inline, .length = r->value.length};
    enum err rc = check_room(shape);
    if (rc != ERR_OK) {
        return rc;
    }
    struct mem_value *v = reshape(t, r->key, shape);
    v->durable = shape.blob;
    if (r->value.inline_bytes.size > 0) {
        memcpy(v->bytes.data, r->value.inline_bytes.data,
               r->value.inline_bytes.size);
    }
    *out = v;
    return ERR_OK;
}

/* Into an empty table. */
static enum err load(struct skv_mem_table *t, skv_stream_read_fn *read,
                     void *arg)
{
    CHECK(t->count == 0);
    struct skv_stream_reader r = {.read = read, .arg = arg};
    struct skv_stream_record record = {0};
    struct mem_value *last = NULL;
    enum err rc = ERR_OK;
    while (rc == ERR_OK && record.type != SKV_STREAM_END) {
        rc = skv_stream_next(&r, &record);
        if (rc == ERR_OK && record.type == SKV_STREAM_KEY) {
            rc = load_key(t, &record, &last);
        } else if (rc == ERR_OK && record.type == SKV_STREAM_DATA &&
                   record.data.size > 0) {
            memcpy(last->bytes.data + record.offset, record.data.data,
                   record.data.size);
        }
    }
    skv_stream_reader_fini(&r);
    return rc;
}

/* ---- the image ---- */

static const struct skv_mem_table no_keys;

static const struct skv_mem_table *image_table(const struct skv_mem_image *i)
{
    return i->table == NULL ? &no_keys : i->table;
}

/* Takes what `t` holds. */
static void image_replace(struct skv_mem_image *image, struct skv_mem_table t)
{
    if (image->table == NULL) {
        image->table = mem_alloc(sizeof *image->table);
    }
    table_fini(image->table);
    *image->table = t;
}

/* What the image says is all that there is. */
static void load_image(struct mem_store *s)
{
    s->table = table_copy(image_table(s->image));
    for (size_t i = 0; i < s->table.count; i++) {
        s->table.values[i]->durable = s->table.values[i]->blob;
        s->table.values[i]->frozen = false;
    }
}

static enum err op_checkpoint_begin(struct skv_store *store, uint64_t index,
                                    uint64_t term)
{
    struct mem_store *s = of(store);
    enum err rc = take_space(s);
    if (rc != ERR_OK) {
        return rc;
    }
    CHECK(!s->begun);
    s->pending = table_copy(&s->table);
    s->pending_index = index;
    s->pending_term = term;
    s->begun = true;
    s->written = false;
    for (size_t i = 0; i < s->table.count; i++) {
        s->table.values[i]->frozen = s->table.values[i]->blob;
    }
    return ERR_OK;
}

static enum err op_checkpoint_write(struct skv_store *store)
{
    struct mem_store *s = of(store);
    if (s->begun && !s->written) {
        image_replace(s->image, s->pending);
        s->pending = (struct skv_mem_table){0};
        s->image->index = s->pending_index;
        s->image->term = s->pending_term;
        s->written = true;
        for (size_t i = 0; i < s->table.count; i++) {
            s->table.values[i]->durable = s->table.values[i]->frozen;
        }
    }
    return ERR_OK;
}

static enum err op_checkpoint_end(struct skv_store *store)
{
    struct mem_store *s = of(store);
    CHECK(!s->begun || s->written);
    s->begun = false;
    return ERR_OK;
}

static void settle(struct skv_store *store)
{
    (void)!op_checkpoint_write(store);
    (void)!op_checkpoint_end(store);
}

static enum err op_checkpoint(struct skv_store *store, uint64_t index,
                              uint64_t term)
{
    settle(store);
    enum err rc = op_checkpoint_begin(store, index, term);
    if (rc == ERR_OK) {
        settle(store);
    }
    return rc;
}

static void op_durable(struct skv_store *store, uint64_t *index, uint64_t *term)
{
    *index = of(store)->image->index;
    *term = of(store)->image->term;
}

/* ---- views and install ---- */

static enum err op_view_open(struct skv_store *store, struct skv_view **out)
{
    struct skv_view *v = mem_alloc(sizeof *v);
    v->table = table_copy(image_table(of(store)->image));
    *out = v;
    return ERR_OK;
}

static enum err op_view_read(struct skv_store *store, struct skv_view *v,
                             enum err (*write)(void *arg, struct slice bytes),
                             void *arg)
{
    (void)store;
    enum err rc = ERR_OK;
    struct buf bytes = {0};
    save(&v->table, &bytes);
    for (size_t at = 0; at < bytes.size && rc == ERR_OK;) {
        size_t left = bytes.size - at;
        size_t part = left < SKV_STREAM_DATA_MAX ? left : SKV_STREAM_DATA_MAX;
        rc = write(arg, slice_of(bytes.data + at, part));
        at += part;
    }
    buf_free(&bytes);
    return rc;
}

static void op_view_close(struct skv_store *store, struct skv_view *v)
{
    (void)store;
    table_fini(&v->table);
    mem_free(v);
}

static enum err op_view_scan(struct skv_store *store, struct skv_view *v,
                             struct slice prefix, struct slice from,
                             skv_scan_fn *each, void *arg)
{
    (void)store;
    return table_scan(&v->table, prefix, from, each, arg);
}

static enum err op_view_value(struct skv_store *store, struct skv_view *v,
                              struct slice key, uint64_t offset, void *to,
                              size_t size, size_t *got)
{
    (void)store;
    return table_read(&v->table, key, offset, to, size, got);
}

static enum err op_view_skip(struct skv_store *store, struct skv_view *v,
                             struct slice key, uint64_t offset,
                             uint64_t *data_at)
{
    (void)store;
    (void)v;
    (void)key;
    *data_at = offset; /* there are no holes in memory */
    return ERR_OK;
}

static enum err op_install(struct skv_store *store,
                           enum err (*read)(void *arg, void *to,
                                            size_t size_max, size_t *size),
                           void *arg, uint64_t index, uint64_t term)
{
    struct mem_store *s = of(store);
    struct skv_mem_table fresh = {0};
    enum err rc = s->image->is_full ? ERR_NOSPACE : load(&fresh, read, arg);
    if (rc != ERR_OK) {
        table_fini(&fresh);
        return rc;
    }
    settle(store);
    table_fini(&s->table);
    s->table = fresh;
    s->failed = false;
    return op_checkpoint(store, index, term);
}

/* ---- the rest ---- */

static void op_usage(struct skv_store *store, uint64_t *keys, uint64_t *bytes)
{
    const struct skv_mem_table *t = &of(store)->table;
    *keys = t->count;
    *bytes = 0;
    for (size_t i = 0; i < t->count; i++) {
        *bytes += t->values[i]->key_size + t->values[i]->bytes.size;
    }
}

/* Bytes of blobs that are in both, as the files would have them (3). */
static void image_newer(struct mem_store *s)
{
    struct skv_mem_table *image = s->image->table;
    for (size_t i = 0; image != NULL && i < image->count; i++) {
        const struct mem_value *was = image->values[i];
        const struct mem_value *now =
            was->blob ? find(&s->table, key_of(was)) : NULL;
        if (now == NULL || now == was || !now->durable ||
            was->bytes.size == 0) {
            continue;
        }
        struct buf *bytes = &own(image, i)->bytes;
        size_t both =
            bytes->size < now->bytes.size ? bytes->size : now->bytes.size;
        memset(bytes->data, 0, bytes->size);
        if (both > 0) {
            memcpy(bytes->data, now->bytes.data, both);
        }
    }
}

static enum err op_rewind(struct skv_store *store)
{
    struct mem_store *s = of(store);
    settle(store);
    image_newer(s);
    table_fini(&s->table);
    load_image(s);
    s->failed = false;
    return ERR_OK;
}

static void op_close(struct skv_store *store)
{
    struct mem_store *s = of(store);
    image_newer(s);
    table_fini(&s->table);
    table_fini(&s->pending);
    mem_free(s);
}

/* Nobody bounds what a simulated store takes. */
static uint64_t op_unsaved(struct skv_store *store)
{
    (void)store;
    return 0;
}

static const struct skv_store_ops mem_ops = {
    .lookup = op_lookup,
    .read = op_read,
    .put = op_put,
    .put_range = op_put_range,
    .truncate = op_truncate,
    .punch = op_punch,
    .remove = op_remove,
    .scan = op_scan,
    .checkpoint = op_checkpoint,
    .checkpoint_begin = op_checkpoint_begin,
    .checkpoint_write = op_checkpoint_write,
    .checkpoint_end = op_checkpoint_end,
    .unsaved = op_unsaved,
    .durable = op_durable,
    .rewind = op_rewind,
    .view_open = op_view_open,
    .view_read = op_view_read,
    .view_close = op_view_close,
    .view_open_exact = op_view_open,
    .view_scan = op_view_scan,
    .view_value = op_view_value,
    .view_skip = op_view_skip,
    .install = op_install,
    .usage = op_usage,
    .close = op_close,
};

void skv_mem_image_fini(struct skv_mem_image *image)
{
    if (image->table != NULL) {
        table_fini(image->table);
        mem_free(image->table);
        image->table = NULL;
    }
}

void skv_mem_image_copy(struct skv_mem_image *to,
                        const struct skv_mem_image *from)
{
    *to = *from;
    to->table = NULL;
    image_replace(to, table_copy(image_table(from)));
}

void skv_mem_image_save(const struct skv_mem_image *image, struct buf *to)
{
    save(image_table(image), to);
}

struct skv_store *skv_store_mem_open(struct skv_mem_image *image)
{
    struct mem_store *s = mem_alloc(sizeof *s);
    s->store.ops = &mem_ops;
    s->image = image;
    load_image(s);
    return &s->store;
}
