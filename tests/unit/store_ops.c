#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/store_ops.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "base/codec.h"
#include "tests/lib/stream.h"

#define KIB   1024u
#define LIMIT SKV_INLINE_SIZE_MAX

static uint8_t data_bytes[OP_DATA_MAX];

struct slice key_name(uint32_t key, char name[OP_KEY_ROOM])
{
    /* Keys that begin with one another, and of different lengths. */
    static const char *const ends[] = {"", "\xff", "00", "0"};
    int size = snprintf(name, OP_KEY_ROOM, "%s%u%s", key % 3 == 0 ? "a" : "",
                        key / 4, ends[key % 4]);
    if (key % 32 == 17) {
        memset(name + size, 'x', SKV_STORE_KEY_SIZE_MAX - (size_t)size);
        size = SKV_STORE_KEY_SIZE_MAX;
    }
    return slice_of(name, (size_t)size);
}

static struct slice op_data(const struct op *op)
{
    memset(data_bytes, op->fill, (size_t)op->number);
    for (uint64_t i = 0; i < op->number; i += 100) {
        data_bytes[i] = (uint8_t)(i / 100);
    }
    return slice_of(data_bytes, (size_t)op->number);
}

/* As the state machine does it: the offset comes from the length kept. */
static enum err run_append(struct skv_store *s, struct slice key,
                           struct slice data)
{
    struct skv_value v = {0};
    enum err rc = s->ops->lookup(s, key, &v);
    if (rc != ERR_OK && rc != ERR_NOTFOUND) {
        return rc;
    }
    return s->ops->put_range(s, key, rc == ERR_OK ? v.length : 0, data);
}

enum err run_op(struct skv_store *s, const struct op *op)
{
    char name[OP_KEY_ROOM];
    struct slice key = key_name(op->key, name);
    switch (op->kind) {
    case OP_PUT: return s->ops->put(s, key, op_data(op));
    case OP_PUT_RANGE:
        return s->ops->put_range(s, key, op->offset, op_data(op));
    case OP_APPEND: return run_append(s, key, op_data(op));
    case OP_TRUNCATE: return s->ops->truncate(s, key, op->number);
    case OP_PUNCH: return s->ops->punch(s, key, op->offset, op->number);
    case OP_REMOVE: return s->ops->remove(s, key);
    default: fail(); return ERR_INVALID;
    }
}

/* Small, around the limit, and large ones. */
static uint64_t some_size(struct rng *r)
{
    switch (rng_below(r, 8)) {
    case 0: return LIMIT - 2 + rng_below(r, 5);
    case 1: return rng_below(r, OP_DATA_MAX);
    case 2: return 0;
    default: return rng_below(r, 600);
    }
}

struct op some_op(struct rng *r, uint32_t keys)
{
    static const uint8_t weights[] = {
        OP_PUT,    OP_PUT,      OP_PUT_RANGE, OP_PUT_RANGE, OP_APPEND,
        OP_APPEND, OP_TRUNCATE, OP_PUNCH,     OP_REMOVE,    OP_REMOVE};
    return (struct op){.kind =
                           (enum op_kind)weights[rng_below(r, sizeof weights)],
                       .key = (uint32_t)rng_below(r, keys),
                       .offset = rng_chance(r, 100) ? rng_below(r, 20 * KIB)
                                                    : rng_below(r, 700),
                       .number = some_size(r),
                       .fill = (uint8_t)rng_between(r, 1, 255)};
}

/* ---- comparing ---- */

struct collected {
    struct buf bytes; /* keys, lengths, inline-ness, inline bytes */
    uint32_t count;
    uint32_t limit;
};

static bool collect(void *arg, struct slice key, const struct skv_value *v)
{
    struct collected *c = arg;
    enc_bytes(&c->bytes, key);
    enc_u64(&c->bytes, v->length);
    enc_u8(&c->bytes, v->is_inline);
    if (v->is_inline) {
        assert_int_equal(v->inline_bytes.size, v->length);
        enc_bytes(&c->bytes, v->inline_bytes);
    } else {
        assert_null(v->inline_bytes.data);
    }
    return ++c->count != c->limit;
}

static void assert_same_bytes(const struct buf *a, const struct buf *b)
{
    assert_int_equal(a->size, b->size);
    if (a->size > 0 && memcmp(a->data, b->data, a->size) != 0) {
        assert_memory_equal(a->data, b->data, a->size);
    }
}

void compare_scan(struct skv_store *a, struct skv_store *b, struct slice prefix,
                  struct slice from, uint32_t limit)
{
    struct collected ca = {.limit = limit};
    struct collected cb = {.limit = limit};
    assert_int_equal(a->ops->scan(a, prefix, from, collect, &ca), ERR_OK);
    assert_int_equal(b->ops->scan(b, prefix, from, collect, &cb), ERR_OK);
    assert_int_equal(ca.count, cb.count);
    assert_same_bytes(&ca.bytes, &cb.bytes);
    buf_free(&ca.bytes);
    buf_free(&cb.bytes);
}

static size_t read_into(struct skv_store *s, struct slice key, uint64_t offset,
                        struct buf *to, size_t size)
{
    size_t got = 0;
    buf_clear(to);
    enum err rc =
        s->ops->read(s, key, offset, buf_extend(to, size), size, &got);
    assert_true(rc == ERR_OK || rc == ERR_NOTFOUND);
    to->size = got;
    return rc == ERR_OK ? got : SIZE_MAX;
}

void compare_read(struct skv_store *a, struct skv_store *b, struct slice key,
                  uint64_t offset, size_t size)
{
    struct buf ba = {0};
    struct buf bb = {0};
    assert_int_equal(read_into(a, key, offset, &ba, size),
                     read_into(b, key, offset, &bb, size));
    assert_same_bytes(&ba, &bb);
    buf_free(&ba);
    buf_free(&bb);
}

void compare_key(struct skv_store *a, struct skv_store *b, uint32_t key)
{
    char name[OP_KEY_ROOM];
    struct slice k = key_name(key, name);
    struct skv_value va = {0};
    struct skv_value vb = {0};
    enum err rc = a->ops->lookup(a, k, &va);
    assert_int_equal(rc, b->ops->lookup(b, k, &vb));
    if (rc == ERR_OK) {
        assert_int_equal(va.length, vb.length);
        assert_int_equal(va.is_inline, vb.is_inline);
        assert_int_equal(va.inline_bytes.size, vb.inline_bytes.size);
    }
}

static bool note_blob(void *arg, struct slice key, const struct skv_value *v)
{
    struct buf *to = arg;
    if (!v->is_inline) {
        enc_u64(to, v->length);
        enc_bytes(to, key);
    }
    return true;
}

uint32_t compare_all(struct skv_store *a, struct skv_store *b)
{
    struct slice none = slice_of(NULL, 0);
    struct buf blobs = {0};
    compare_scan(a, b, none, none, UINT32_MAX);
    assert_int_equal(a->ops->scan(a, none, none, note_blob, &blobs), ERR_OK);
    struct dec d = dec_of(buf_slice(&blobs));
    uint32_t count = 0;
    for (; dec_left(&d) > 0; count++) {
        uint64_t length = dec_u64(&d);
        compare_read(a, b, dec_bytes(&d), 0, (size_t)length + 1);
    }
    buf_free(&blobs);
    return count;
}

void view_into(struct skv_store *s, struct buf *stream)
{
    struct skv_view *v = NULL;
    assert_int_equal(s->ops->view_open(s, &v), ERR_OK);
    assert_int_equal(s->ops->view_read(s, v, to_buf, stream), ERR_OK);
    s->ops->view_close(s, v);
}

enum err install_from(struct skv_store *s, const struct buf *stream,
                      uint64_t index, size_t step_max)
{
    struct from_buf f = {.left = buf_slice(stream), .step_max = step_max};
    return s->ops->install(s, from_buf, &f, index, index / 7);
}

uint32_t count_files(const char *path)
{
    DIR *d = opendir(path);
    assert_non_null(d);
    uint32_t count = 0;
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (e->d_type == DT_DIR && e->d_name[0] != '.') {
            char *sub = mem_printf("%s/%s", path, e->d_name);
            count += count_files(sub);
            mem_free(sub);
        }
        count += e->d_type == DT_REG;
    }
    closedir(d);
    return count;
}
