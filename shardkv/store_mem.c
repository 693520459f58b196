/* The store in memory, for the simulator and for tests. It keeps what LMDB
 * keeps, by the same rule (store_rule.c); its "disk" is an image: the stream of
 * the last checkpoint. Invariants:
 *
 *  1. keys[] is sorted as memcmp sorts.
 *  2. A crash (close without a checkpoint) goes back to the image, but bytes of
 *     blobs may be newer, as with real files: close puts them there, so that
 *     the simulator finds who reads blob bytes while an operation is applied.
 */
#include "shardkv/store_int.h"

#include <string.h>

#include "base/check.h"

/* More than that in one value is a mistake of a test, not a reason to swap. */
#define MEM_VALUE_SIZE_MAX (256ull << 20)

struct mem_value {
    struct buf
        bytes; /* as long as the value; zeros where nothing was written */
    bool blob;
    bool durable; /* a blob that the image has too, the same "file" */
    bool frozen;  /* a blob that the checkpoint that was begun has */
    size_t key_size;
    uint8_t key[];
};

struct mem_store {
    struct skv_store store;
    struct skv_mem_image *image;
    struct mem_value **values;
    size_t count, capacity;
    bool failed; /* found no space; not rewound yet */
    /* A checkpoint that was begun. */
    struct buf pending;
    uint64_t pending_index, pending_term;
    bool begun, written;
};

struct skv_view {
    struct buf bytes;        /* the image */
    struct mem_store frozen; /* and what it says: an exact view's */
};

static struct mem_store *of(struct skv_store *s)
{
    return (struct mem_store *)s;
}

static struct slice key_of(const struct mem_value *v)
{
    return slice_of(v->key, v->key_size);
}

/* ---- the sorted array ---- */

/* Where the first key >= `key` is. */
static size_t lower_bound(const struct mem_store *s, struct slice key)
{
    size_t low = 0;
    size_t high = s->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (slice_compare(key_of(s->values[middle]), key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct mem_value *find(const struct mem_store *s, struct slice key)
{
    size_t at = lower_bound(s, key);
    bool found =
        at < s->count && slice_compare(key_of(s->values[at]), key) == 0;
    return found ? s->values[at] : NULL;
}

static struct mem_value *insert(struct mem_store *s, struct slice key)
{
    size_t at = lower_bound(s, key);
    if (s->count == s->capacity) {
        s->capacity = s->capacity == 0 ? 64 : 2 * s->capacity;
        s->values = mem_resize(s->values, s->capacity * sizeof *s->values);
    }
    memmove(s->values + at + 1, s->values + at,
            (s->count - at) * sizeof *s->values);
    struct mem_value *v = mem_alloc(sizeof *v + key.size);
    memcpy(v->key, key.data, key.size);
    v->key_size = key.size;
    s->values[at] = v;
    s->count++;
    return v;
}

static void value_free(struct mem_value *v)
{
    buf_free(&v->bytes);
    mem_free(v);
}

static void clear(struct mem_store *s)
{
    for (size_t i = 0; i < s->count; i++) {
        value_free(s->values[i]);
    }
    s->count = 0;
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
    const struct mem_value *v = find(of(store), key);
    if (v == NULL) {
        return ERR_NOTFOUND;
    }
    *out = value_of(v);
    return ERR_OK;
}

static enum err op_read(struct skv_store *store, struct slice key,
                        uint64_t offset, void *to, size_t size, size_t *got)
{
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    const struct mem_value *v = find(of(store), key);
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

static bool has_prefix(struct slice key, struct slice prefix)
{
    return key.size >= prefix.size &&
           (prefix.size == 0 ||
            memcmp(key.data, prefix.data, prefix.size) == 0);
}

static enum err op_scan(struct skv_store *store, struct slice prefix,
                        struct slice from, skv_scan_fn *each, void *arg)
{
    struct mem_store *s = of(store);
    struct slice start = slice_compare(from, prefix) > 0 ? from : prefix;
    if (start.size > SKV_STORE_KEY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    for (size_t i = lower_bound(s, start); i < s->count; i++) {
        struct skv_value shown = value_of(s->values[i]);
        struct slice key = key_of(s->values[i]);
        if (!has_prefix(key, prefix) || !each(arg, key, &shown)) {
            break;
        }
    }
    return ERR_OK;
}

/* ---- writes ---- */

/* Before anything changes: the fault that the image asks for. */
static enum err take_space(struct mem_store *s)
{
    struct skv_mem_image *image = s->image;
    if (image != NULL && image->is_full) {
        s->failed = s->failed || image->writes_left == 0;
        image->writes_left -= image->writes_left > 0;
    }
    return s->failed ? ERR_NOSPACE : ERR_OK;
}

static struct skv_shape shape_of(const struct mem_value *v)
{
    return v == NULL ? (struct skv_shape){0}
                     : (struct skv_shape){.exists = true,
                                          .blob = v->blob,
                                          .length = v->bytes.size};
}

/* The key's value in its new shape, made if missing; zeros in what is new. */
static struct mem_value *reshape(struct mem_store *s, struct slice key,
                                 struct skv_shape next)
{
    struct mem_value *v = find(s, key);
    if (v == NULL) {
        v = insert(s, key);
    }
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
    struct mem_value *v = reshape(of(store), key, next);
    if (value.size > 0) {
        memcpy(v->bytes.data, value.data, value.size);
    }
    return ERR_OK;
}

static enum err op_put_range(struct skv_store *store, struct slice key,
                             uint64_t offset, struct slice data)
{
    struct mem_store *s = of(store);
    enum err rc = check_write(key, offset, data.size);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_shape next =
        skv_shape_put_range(shape_of(find(s, key)), offset, data.size);
    rc = check_room(next);
    if (rc == ERR_OK) {
        rc = take_space(s);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    struct mem_value *v = reshape(s, key, next);
    if (data.size > 0) {
        memcpy(v->bytes.data + offset, data.data, data.size);
    }
    return ERR_OK;
}

static enum err op_truncate(struct skv_store *store, struct slice key,
                            uint64_t length)
{
    struct mem_store *s = of(store);
    enum err rc = check_write(key, 0, length);
    if (rc != ERR_OK) {
        return rc;
    }
    struct skv_shape next = skv_shape_truncate(shape_of(find(s, key)), length);
    rc = check_room(next);
    if (rc == ERR_OK) {
        rc = take_space(s);
    }
    if (rc == ERR_OK) {
        (void)reshape(s, key, next);
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
    struct mem_value *v = find(of(store), key);
    if (v == NULL) {
        return ERR_NOTFOUND;
    }
    rc = take_space(of(store));
    if (rc != ERR_OK) {
        return rc;
    }
    uint64_t left = offset < v->bytes.size ? v->bytes.size - offset : 0;
    uint64_t part = size < left ? size : left;
    if (part > 0) {
        memset(v->bytes.data + offset, 0, (size_t)part);
    }
    return ERR_OK;
}

static enum err op_remove(struct skv_store *store, struct slice key)
{
    struct mem_store *s = of(store);
    enum err rc = skv_store_key_check(key);
    if (rc != ERR_OK) {
        return rc;
    }
    size_t at = lower_bound(s, key);
    if (at == s->count || slice_compare(key_of(s->values[at]), key) != 0) {
        return ERR_OK;
    }
    rc = take_space(s);
    if (rc != ERR_OK) {
        return rc;
    }
    value_free(s->values[at]);
    s->count--;
    memmove(s->values + at, s->values + at + 1,
            (s->count - at) * sizeof *s->values);
    return ERR_OK;
}

/* ---- the image ---- */

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

/* Everything, as a stream. */
static void save(const struct mem_store *s, struct buf *to)
{
    buf_clear(to);
    struct skv_stream_writer w = {.write = write_to_buf, .arg = to};
    skv_stream_begin(&w);
    for (size_t i = 0; i < s->count; i++) {
        struct skv_value shown = value_of(s->values[i]);
        skv_stream_key(&w, key_of(s->values[i]), &shown);
        if (s->values[i]->blob) {
            save_blob(&w, s->values[i]);
        }
    }
    enum err rc = skv_stream_end(&w);
    CHECK(rc == ERR_OK);
}

static enum err load_key(struct mem_store *s, const struct skv_stream_record *r,
                         struct mem_value **out)
{
    struct skv_shape shape = {
        .exists = true, .blob = !r->value.is_inline, .length = r->value.length};
    enum err rc = check_room(shape);
    if (rc != ERR_OK) {
        return rc;
    }
    struct mem_value *v = reshape(s, r->key, shape);
    v->durable = shape.blob;
    if (r->value.inline_bytes.size > 0) {
        memcpy(v->bytes.data, r->value.inline_bytes.data,
               r->value.inline_bytes.size);
    }
    *out = v;
    return ERR_OK;
}

/* Into a store without keys. */
static enum err load(struct mem_store *s, skv_stream_read_fn *read, void *arg)
{
    CHECK(s->count == 0);
    struct skv_stream_reader r = {.read = read, .arg = arg};
    struct skv_stream_record record = {0};
    struct mem_value *last = NULL;
    enum err rc = ERR_OK;
    while (rc == ERR_OK && record.type != SKV_STREAM_END) {
        rc = skv_stream_next(&r, &record);
        if (rc == ERR_OK && record.type == SKV_STREAM_KEY) {
            rc = load_key(s, &record, &last);
        } else if (rc == ERR_OK && record.type == SKV_STREAM_DATA &&
                   record.data.size > 0) {
            memcpy(last->bytes.data + record.offset, record.data.data,
                   record.data.size);
        }
    }
    skv_stream_reader_fini(&r);
    return rc;
}

struct image_reader {
    struct slice left;
};

static enum err read_image(void *arg, void *to, size_t size_max, size_t *size)
{
    struct image_reader *r = arg;
    *size = r->left.size < size_max ? r->left.size : size_max;
    if (*size > 0) {
        memcpy(to, r->left.data, *size);
    }
    r->left = slice_of(r->left.data + *size, r->left.size - *size);
    return ERR_OK;
}

static void load_image(struct mem_store *s)
{
    struct image_reader from = {.left = buf_slice(&s->image->bytes)};
    enum err rc = load(s, read_image, &from);
    CHECK(rc == ERR_OK); /* we wrote it */
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
    save(s, &s->pending);
    s->pending_index = index;
    s->pending_term = term;
    s->begun = true;
    s->written = false;
    for (size_t i = 0; i < s->count; i++) {
        s->values[i]->frozen = s->values[i]->blob;
    }
    return ERR_OK;
}

static enum err op_checkpoint_write(struct skv_store *store)
{
    struct mem_store *s = of(store);
    if (s->begun && !s->written) {
        struct buf was = s->image->bytes;
        s->image->bytes = s->pending;
        s->pending = was;
        s->image->index = s->pending_index;
        s->image->term = s->pending_term;
        s->written = true;
        for (size_t i = 0; i < s->count; i++) {
            s->values[i]->durable = s->values[i]->frozen;
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
    const struct buf *image = &of(store)->image->bytes;
    buf_append(&v->bytes, image->data, image->size);
    *out = v;
    return ERR_OK;
}

static enum err op_view_read(struct skv_store *store, struct skv_view *v,
                             enum err (*write)(void *arg, struct slice bytes),
                             void *arg)
{
    (void)store;
    enum err rc = ERR_OK;
    for (size_t at = 0; at < v->bytes.size && rc == ERR_OK;) {
        size_t left = v->bytes.size - at;
        size_t part = left < SKV_STREAM_DATA_MAX ? left : SKV_STREAM_DATA_MAX;
        rc = write(arg, slice_of(v->bytes.data + at, part));
        at += part;
    }
    return rc;
}

static void op_view_close(struct skv_store *store, struct skv_view *v)
{
    (void)store;
    buf_free(&v->bytes);
    clear(&v->frozen);
    mem_free(v->frozen.values);
    mem_free(v);
}

static enum err op_view_open_exact(struct skv_store *store,
                                   struct skv_view **out)
{
    struct skv_view *v = mem_alloc(sizeof *v);
    v->frozen.image = of(store)->image;
    load_image(&v->frozen);
    *out = v;
    return ERR_OK;
}

static enum err op_view_scan(struct skv_store *store, struct skv_view *v,
                             struct slice prefix, struct slice from,
                             skv_scan_fn *each, void *arg)
{
    (void)store;
    return op_scan(&v->frozen.store, prefix, from, each, arg);
}

static enum err op_view_value(struct skv_store *store, struct skv_view *v,
                              struct slice key, uint64_t offset, void *to,
                              size_t size, size_t *got)
{
    (void)store;
    return op_read(&v->frozen.store, key, offset, to, size, got);
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

static void swap_values(struct mem_store *a, struct mem_store *b)
{
    struct mem_store was = *a;
    a->values = b->values;
    a->count = b->count;
    a->capacity = b->capacity;
    b->values = was.values;
    b->count = was.count;
    b->capacity = was.capacity;
}

static enum err op_install(struct skv_store *store,
                           enum err (*read)(void *arg, void *to,
                                            size_t size_max, size_t *size),
                           void *arg, uint64_t index, uint64_t term)
{
    struct mem_store *s = of(store);
    struct mem_store fresh = {0};
    enum err rc = s->image->is_full ? ERR_NOSPACE : load(&fresh, read, arg);
    if (rc == ERR_OK) {
        settle(store);
        swap_values(s, &fresh);
        s->failed = false;
        rc = op_checkpoint(store, index, term);
    }
    clear(&fresh);
    mem_free(fresh.values);
    return rc;
}

/* ---- the rest ---- */

static void op_usage(struct skv_store *store, uint64_t *keys, uint64_t *bytes)
{
    struct mem_store *s = of(store);
    *keys = s->count;
    *bytes = 0;
    for (size_t i = 0; i < s->count; i++) {
        *bytes += s->values[i]->key_size + s->values[i]->bytes.size;
    }
}

/* Bytes of blobs that are in both, as the files would have them (2). */
static void image_newer(struct mem_store *s)
{
    struct mem_store old = {.image = s->image};
    load_image(&old);
    for (size_t i = 0; i < old.count; i++) {
        struct mem_value *was = old.values[i];
        const struct mem_value *now = find(s, key_of(was));
        if (was->blob && now != NULL && now->durable) {
            size_t both = was->bytes.size < now->bytes.size ? was->bytes.size
                                                            : now->bytes.size;
            memset(was->bytes.data, 0, was->bytes.size);
            memcpy(was->bytes.data, now->bytes.data, both);
        }
    }
    save(&old, &s->image->bytes);
    clear(&old);
    mem_free(old.values);
}

static enum err op_rewind(struct skv_store *store)
{
    struct mem_store *s = of(store);
    settle(store);
    image_newer(s);
    clear(s);
    load_image(s);
    s->failed = false;
    return ERR_OK;
}

static void op_close(struct skv_store *store)
{
    struct mem_store *s = of(store);
    image_newer(s);
    clear(s);
    buf_free(&s->pending);
    mem_free(s->values);
    mem_free(s);
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
    .durable = op_durable,
    .rewind = op_rewind,
    .view_open = op_view_open,
    .view_read = op_view_read,
    .view_close = op_view_close,
    .view_open_exact = op_view_open_exact,
    .view_scan = op_view_scan,
    .view_value = op_view_value,
    .view_skip = op_view_skip,
    .install = op_install,
    .usage = op_usage,
    .close = op_close,
};

void skv_mem_image_fini(struct skv_mem_image *image)
{
    buf_free(&image->bytes);
}

struct skv_store *skv_store_mem_open(struct skv_mem_image *image)
{
    struct mem_store *s = mem_alloc(sizeof *s);
    s->store.ops = &mem_ops;
    s->image = image;
    if (image->bytes.size == 0) {
        save(s, &image->bytes);
    }
    load_image(s);
    return &s->store;
}
