/* Both stores, side by side, in single scenarios. test_store_twins has the
 * random ones, with crashes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/lib/stream.h"
#include "tests/unit/store_ops.h"

#define KIB   1024u
#define LIMIT SKV_INLINE_SIZE_MAX

enum { KEYS = 60 };

static char *temp_dir(void)
{
    char *dir = mem_strdup("/tmp/test_store.XXXXXX");
    assert_non_null(mkdtemp(dir));
    return dir;
}

static void temp_dir_remove(char *dir)
{
    assert_int_equal(skv_dir_remove(dir), ERR_OK);
    mem_free(dir);
}

static struct skv_store *lmdb_open(const char *dir)
{
    struct skv_store *s = NULL;
    assert_int_equal(skv_store_lmdb_open(dir, 1u << 30, &s), ERR_OK);
    return s;
}

/* ---- single scenarios, on both ---- */

struct both {
    char *dir;
    struct skv_mem_image image;
    struct skv_store *stores[2]; /* LMDB, memory */
};

static void both_open(struct both *b)
{
    b->stores[0] = lmdb_open(b->dir);
    b->stores[1] = skv_store_mem_open(&b->image);
}

static void both_close(struct both *b)
{
    b->stores[0]->ops->close(b->stores[0]);
    b->stores[1]->ops->close(b->stores[1]);
}

static int both_setup(void **state)
{
    struct both *b = mem_alloc(sizeof *b);
    b->dir = temp_dir();
    both_open(b);
    *state = b;
    return 0;
}

static int both_teardown(void **state)
{
    struct both *b = *state;
    both_close(b);
    skv_mem_image_fini(&b->image);
    temp_dir_remove(b->dir);
    mem_free(b);
    return 0;
}

static const struct slice key_a = {(const uint8_t *)"a", 1};
static const struct slice key_b = {(const uint8_t *)"b", 1};

static struct slice filled(uint8_t *to, size_t size, uint8_t with)
{
    memset(to, with, size);
    return slice_of(to, size);
}

static void assert_value(struct skv_store *s, struct slice key, uint64_t length,
                         bool is_inline)
{
    struct skv_value v = {0};
    assert_int_equal(s->ops->lookup(s, key, &v), ERR_OK);
    assert_int_equal(v.length, length);
    assert_int_equal(v.is_inline, is_inline);
}

/* Could be wrong: the limit off by one, or a blob that goes back to inline,
 * which the store could do only by reading its bytes. */
static void a_value_is_inline_by_the_rule(void **state)
{
    struct both *b = *state;
    static uint8_t bytes[LIMIT + 1];
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        const struct skv_store_ops *o = s->ops;
        struct slice most = filled(bytes, LIMIT, 1);
        struct slice over = filled(bytes, LIMIT + 1, 1);
        struct slice one = slice_of(bytes, 1);
        assert_int_equal(o->put(s, key_a, most), ERR_OK);
        assert_value(s, key_a, LIMIT, true);
        assert_int_equal(o->put_range(s, key_a, LIMIT, one), ERR_OK);
        assert_value(s, key_a, LIMIT + 1, false);
        assert_int_equal(o->truncate(s, key_a, 1), ERR_OK);
        assert_value(s, key_a, 1, false);
        assert_int_equal(o->put_range(s, key_a, 1, one), ERR_OK);
        assert_value(s, key_a, 2, false);
        assert_int_equal(o->truncate(s, key_a, 0), ERR_OK);
        assert_value(s, key_a, 0, true);
        assert_int_equal(o->truncate(s, key_a, LIMIT), ERR_OK);
        assert_value(s, key_a, LIMIT, true);
        assert_int_equal(o->truncate(s, key_a, LIMIT + 1), ERR_OK);
        assert_value(s, key_a, LIMIT + 1, false);
        assert_int_equal(o->put(s, key_a, most), ERR_OK);
        assert_value(s, key_a, LIMIT, true);
        assert_int_equal(o->put(s, key_a, over), ERR_OK);
        assert_value(s, key_a, LIMIT + 1, false);
        /* Nothing written past the end extends nothing. */
        assert_int_equal(o->put_range(s, key_b, 9, slice_of(NULL, 0)), ERR_OK);
        assert_value(s, key_b, 0, true);
    }
}

/* Could be wrong: a bound that wraps, or a refusal that breaks the store. */
static void limits_are_refused_and_change_nothing(void **state)
{
    struct both *b = *state;
    static uint8_t bytes[SKV_STORE_KEY_SIZE_MAX + 1];
    struct slice none = slice_of(bytes, 0);
    struct slice key = filled(bytes, SKV_STORE_KEY_SIZE_MAX, 'k');
    struct slice over = slice_of(bytes, SKV_STORE_KEY_SIZE_MAX + 1);
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        const struct skv_store_ops *o = s->ops;
        struct skv_value v;
        assert_int_equal(o->put(s, key, key_a), ERR_OK);
        assert_int_equal(o->put(s, over, key_a), ERR_TOOBIG);
        assert_int_equal(o->put(s, none, key_a), ERR_INVALID);
        assert_int_equal(o->lookup(s, over, &v), ERR_TOOBIG);
        assert_int_equal(o->remove(s, none), ERR_INVALID);
        assert_int_equal(o->put_range(s, key, UINT64_MAX, key_a), ERR_TOOBIG);
        assert_int_equal(o->put_range(s, key, SKV_VALUE_SIZE_MAX, key_a),
                         ERR_TOOBIG);
        assert_int_equal(o->truncate(s, key, SKV_VALUE_SIZE_MAX + 1),
                         ERR_TOOBIG);
        assert_int_equal(o->punch(s, key, 1, UINT64_MAX), ERR_TOOBIG);
        assert_int_equal(o->punch(s, key_b, 0, 1), ERR_NOTFOUND);
        assert_int_equal(o->checkpoint(s, 1, 1), ERR_OK);
        assert_value(s, key, 1, true);
    }
}

/* ---- blob files ---- */

static uint32_t count_blobs(const struct both *b)
{
    char *path = mem_printf("%s/state.1/blobs", b->dir);
    uint32_t count = count_files(path);
    mem_free(path);
    return count;
}

static void reopen(struct both *b)
{
    both_close(b);
    both_open(b);
}

/* Could be wrong: unlinked before the checkpoint, so that a crash goes back to
 * a key without its file; or never unlinked. */
static void a_dead_blob_is_unlinked_after_the_checkpoint(void **state)
{
    struct both *b = *state;
    static uint8_t bytes[2 * LIMIT];
    struct skv_store *s = b->stores[0];
    assert_int_equal(s->ops->put(s, key_a, filled(bytes, sizeof bytes, 3)),
                     ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    assert_int_equal(s->ops->remove(s, key_a), ERR_OK);
    assert_int_equal(count_blobs(b), 1);
    reopen(b); /* a crash */
    s = b->stores[0];
    uint8_t back[2 * LIMIT];
    size_t got = 0;
    assert_int_equal(s->ops->read(s, key_a, 0, back, sizeof back, &got),
                     ERR_OK);
    assert_memory_equal(back, bytes, sizeof bytes);
    assert_int_equal(s->ops->remove(s, key_a), ERR_OK);
    struct skv_view *v = NULL;
    assert_int_equal(s->ops->view_open(s, &v), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 2, 1), ERR_OK);
    assert_int_equal(count_blobs(b), 1); /* the view may read it */
    s->ops->view_close(s, v);
    reopen(b); /* a crash when it was committed and not yet unlinked */
    assert_int_equal(count_blobs(b), 0);
    s = b->stores[0];
    assert_int_equal(s->ops->put(s, key_a, filled(bytes, sizeof bytes, 4)),
                     ERR_OK);
    assert_int_equal(count_blobs(b), 1);
    reopen(b); /* a crash before any checkpoint named it */
    assert_int_equal(count_blobs(b), 0);
}

/* Could be wrong: the file of the first life of a number shows through. A crash
 * can leave it, longer than what the replay writes. */
static void a_blob_made_again_begins_empty(void **state)
{
    struct both *b = *state;
    static uint8_t bytes[10 * LIMIT];
    struct skv_store *s = b->stores[0];
    char *path = mem_printf("%s/state.1/blobs/00/%016x", b->dir, 1);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    char *fan = mem_printf("%s/state.1/blobs/00", b->dir);
    assert_int_equal(mkdir(fan, 0700), 0);
    mem_free(fan);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(
        fwrite(filled(bytes, sizeof bytes, 9).data, 1, sizeof bytes, f),
        sizeof bytes);
    fclose(f);
    mem_free(path);
    assert_int_equal(s->ops->truncate(s, key_a, sizeof bytes), ERR_OK);
    static uint8_t back[10 * LIMIT];
    size_t got = 0;
    assert_int_equal(s->ops->read(s, key_a, 0, back, sizeof back, &got),
                     ERR_OK);
    memset(bytes, 0, sizeof bytes);
    assert_memory_equal(back, bytes, sizeof bytes);
}

/* Could be wrong: bytes of before a truncation come back when it grows. */
static void a_value_cut_and_grown_again_has_zeros(void **state)
{
    struct both *b = *state;
    static uint8_t bytes[3 * LIMIT];
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        const struct skv_store_ops *o = s->ops;
        struct slice all = filled(bytes, sizeof bytes, 7);
        assert_int_equal(o->put(s, key_a, all), ERR_OK);
        assert_int_equal(o->truncate(s, key_a, 100), ERR_OK);
        assert_int_equal(o->put_range(s, key_a, 2 * LIMIT, key_b), ERR_OK);
        uint8_t back[3];
        size_t got = 0;
        assert_int_equal(o->read(s, key_a, 99, back, 3, &got), ERR_OK);
        assert_int_equal(got, 3);
        assert_memory_equal(back, "\7\0\0", 3);
        assert_int_equal(o->read(s, key_a, 2 * LIMIT - 1, back, 3, &got),
                         ERR_OK);
        assert_int_equal(got, 2);
        assert_memory_equal(back, "\0b", 2);
    }
}

/* Could be wrong: more dirty files than may be open at once. */
static void many_blobs_survive_a_checkpoint(void **state)
{
    struct both *b = *state;
    static uint8_t bytes[LIMIT + 1];
    struct skv_store *s = b->stores[0];
    for (uint32_t i = 0; i < 600; i++) {
        uint8_t key[4];
        set_u32(key, i);
        assert_int_equal(s->ops->put(s, slice_of(key, 4),
                                     filled(bytes, sizeof bytes, (uint8_t)i)),
                         ERR_OK);
    }
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    reopen(b);
    s = b->stores[0];
    for (uint32_t i = 0; i < 600; i++) {
        uint8_t key[4];
        uint8_t last = 0;
        size_t got = 0;
        set_u32(key, i);
        assert_int_equal(
            s->ops->read(s, slice_of(key, 4), LIMIT, &last, 1, &got), ERR_OK);
        assert_int_equal(got, 1);
        assert_int_equal(last, (uint8_t)i);
    }
    uint64_t keys = 0;
    uint64_t used = 0;
    s->ops->usage(s, &keys, &used);
    assert_int_equal(keys, 600);
    assert_true(used >= 600 * sizeof bytes && used < 2 * 600 * sizeof bytes);
}

/* Could be wrong: the stream, or the disk, takes the size of the holes. */
static void a_sparse_value_stays_sparse(void **state)
{
    struct both *b = *state;
    struct skv_store *s = b->stores[0];
    uint64_t length = 1ull << 40;
    assert_int_equal(s->ops->put_range(s, key_a, length - 1, key_b), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    struct buf stream = {0};
    view_into(s, &stream);
    assert_true(stream.size < 64 * KIB);
    assert_int_equal(install_from(s, &stream, 2, SIZE_MAX), ERR_OK);
    assert_value(s, key_a, length, false);
    uint8_t back[2];
    size_t got = 0;
    assert_int_equal(s->ops->read(s, key_a, length - 2, back, 2, &got), ERR_OK);
    assert_memory_equal(back, "\0b", 2);
    buf_free(&stream);
}

/* ---- views and installs ---- */

struct viewer {
    struct skv_store *store;
    struct skv_view *view;
    struct buf stream;
    enum err rc;
};

static void *viewer_run(void *arg)
{
    struct viewer *v = arg;
    v->rc = v->store->ops->view_read(v->store, v->view, to_buf, &v->stream);
    v->store->ops->view_close(v->store, v->view);
    return NULL;
}

static void run_ops(struct skv_store *s, const struct op *ops, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        (void)run_op(s, &ops[i]);
        if (i % 50 == 49) {
            assert_int_equal(s->ops->checkpoint(s, 2 + i, 1), ERR_OK);
        }
    }
}

/* Could be wrong: a view that sees half of what came later, or whose blobs are
 * unlinked under it. The stream and the operations since are the state. */
static void a_view_is_read_while_writes_go_on(void **state)
{
    struct both *b = *state;
    enum { COUNT = 500 };
    static struct op ops[COUNT];
    struct rng r = {.state = 42};
    for (uint32_t i = 0; i < COUNT; i++) {
        ops[i] = some_op(&r, KEYS);
    }
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        struct skv_store *other = b->stores[1 - i];
        run_ops(s, ops, COUNT);
        assert_int_equal(s->ops->checkpoint(s, 900, 1), ERR_OK);
        struct viewer v = {.store = s};
        assert_int_equal(s->ops->view_open(s, &v.view), ERR_OK);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, viewer_run, &v), 0);
        run_ops(s, ops, COUNT);
        pthread_join(thread, NULL);
        assert_int_equal(v.rc, ERR_OK);
        assert_int_equal(install_from(other, &v.stream, 900, 777), ERR_OK);
        run_ops(other, ops, COUNT);
        compare_all(s, other);
        buf_free(&v.stream);
    }
}

/* ---- exact views ---- */

struct key_list {
    struct buf bytes; /* size (one byte) and bytes of each */
};

static bool list_key(void *arg, struct slice key, const struct skv_value *value)
{
    struct key_list *l = arg;
    (void)value;
    enc_u32(&l->bytes, (uint32_t)key.size);
    buf_append(&l->bytes, key.data, key.size);
    return true;
}

/* Keys and all bytes of their values; holes are passed over, as zeros. */
static enum err exact_read(struct skv_store *s, struct skv_view *v,
                           struct buf *out)
{
    enum { STEP = 10007 };
    struct key_list l = {0};
    enum err rc = s->ops->view_scan(s, v, slice_of(NULL, 0), slice_of(NULL, 0),
                                    list_key, &l);
    struct dec d = dec_of(buf_slice(&l.bytes));
    while (rc == ERR_OK && dec_left(&d) > 0) {
        struct slice key = dec_raw(&d, dec_u32(&d));
        uint64_t offset = 0;
        size_t got = STEP;
        buf_append(out, key.data, key.size);
        while (rc == ERR_OK && got == STEP) {
            uint64_t data_at = 0;
            rc = s->ops->view_skip(s, v, key, offset, &data_at);
            while (rc == ERR_OK && offset < data_at) {
                enc_u8(out, 0);
                offset++;
            }
            if (rc == ERR_OK) {
                uint8_t *to = buf_extend(out, STEP);
                rc = s->ops->view_value(s, v, key, offset, to, STEP, &got);
                out->size -= STEP - got;
                offset += got;
            }
        }
    }
    buf_free(&l.bytes);
    return rc;
}

struct exact_viewer {
    struct skv_store *store;
    struct skv_view *view;
    const struct buf *expected;
    bool same;
};

static void *exact_viewer_run(void *arg)
{
    struct exact_viewer *v = arg;
    v->same = true;
    for (int i = 0; i < 5; i++) {
        struct buf now = {0};
        enum err rc = exact_read(v->store, v->view, &now);
        v->same = v->same && rc == ERR_OK && now.size == v->expected->size &&
                  memcmp(now.data, v->expected->data, now.size) == 0;
        buf_free(&now);
    }
    return NULL;
}

/* Could be wrong: a byte of a large value that was written, cut off or punched
 * after the view was opened, or a hole that was filled, shows. */
static void an_exact_view_does_not_change(void **state)
{
    struct both *b = *state;
    enum { COUNT = 400, LARGE = 700001 };
    static struct op ops[COUNT];
    static uint8_t bytes[LARGE];
    struct rng r = {.state = 7};
    for (uint32_t i = 0; i < COUNT; i++) {
        ops[i] = some_op(&r, KEYS);
    }
    struct slice large = filled(bytes, sizeof bytes, 3);
    struct slice sparse = slice_text("sparse"), cut = slice_text("cut");
    struct slice grows = slice_text("grows"), gone = slice_text("gone");
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        run_ops(s, ops, COUNT);
        assert_int_equal(s->ops->put(s, cut, large), ERR_OK);
        assert_int_equal(s->ops->put(s, gone, large), ERR_OK);
        assert_int_equal(s->ops->put(s, grows, slice_of(bytes, 5000)), ERR_OK);
        assert_int_equal(s->ops->truncate(s, sparse, 3 * LARGE), ERR_OK);
        assert_int_equal(
            s->ops->put_range(s, sparse, LARGE, slice_of(bytes, 90000)),
            ERR_OK);
        assert_int_equal(s->ops->checkpoint(s, 900, 1), ERR_OK);
        struct exact_viewer v = {.store = s};
        struct buf before = {0};
        assert_int_equal(s->ops->view_open_exact(s, &v.view), ERR_OK);
        assert_int_equal(exact_read(s, v.view, &before), ERR_OK);
        v.expected = &before;
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, exact_viewer_run, &v),
                         0);
        run_ops(s, ops, COUNT);
        assert_int_equal(s->ops->truncate(s, cut, 5001), ERR_OK);
        assert_int_equal(s->ops->put_range(s, cut, 400000, slice_text("new")),
                         ERR_OK);
        assert_int_equal(s->ops->remove(s, gone), ERR_OK);
        assert_int_equal(s->ops->put_range(s, grows, 5000, large), ERR_OK);
        assert_int_equal(s->ops->punch(s, sparse, LARGE, LARGE), ERR_OK);
        assert_int_equal(s->ops->put_range(s, sparse, 100, slice_text("hole")),
                         ERR_OK);
        assert_int_equal(s->ops->checkpoint(s, 2000, 1), ERR_OK);
        pthread_join(thread, NULL);
        assert_true(v.same);
        exact_viewer_run(&v);
        assert_true(v.same);
        s->ops->view_close(s, v.view);
        assert_int_equal(s->ops->checkpoint(s, 2001, 1), ERR_OK);
        buf_free(&before);
    }
}

/* Could be wrong: the view's files go away with the generation it is of. */
static void a_view_outlives_an_install(void **state)
{
    struct both *b = *state;
    struct skv_store *s = b->stores[0];
    static uint8_t bytes[LIMIT + 1];
    struct slice value = filled(bytes, sizeof bytes, 5);
    assert_int_equal(s->ops->put(s, key_a, value), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    struct viewer v = {.store = s};
    assert_int_equal(s->ops->view_open(s, &v.view), ERR_OK);
    struct buf empty = {0};
    view_into(b->stores[1], &empty);
    assert_int_equal(install_from(s, &empty, 9, 1), ERR_OK);
    struct skv_value gone;
    assert_int_equal(s->ops->lookup(s, key_a, &gone), ERR_NOTFOUND);
    char *old = mem_printf("%s/state.1", b->dir);
    assert_int_equal(access(old, F_OK), 0);
    viewer_run(&v);
    assert_int_equal(v.rc, ERR_OK);
    assert_int_not_equal(access(old, F_OK), 0);
    assert_int_equal(install_from(b->stores[1], &v.stream, 1, 100), ERR_OK);
    assert_value(b->stores[1], key_a, LIMIT + 1, false);
    mem_free(old);
    buf_free(&empty);
    buf_free(&v.stream);
}

/* Could be wrong: a stream cut short or changed is taken, or half of it stays.
 */
static void a_damaged_stream_changes_nothing(void **state)
{
    struct both *b = *state;
    struct rng r = {.state = 7};
    struct buf good = {0};
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        for (uint32_t k = 0; k < 200; k++) {
            struct op op = some_op(&r, KEYS);
            (void)run_op(s, &op);
        }
        assert_int_equal(s->ops->checkpoint(s, 1, 0), ERR_OK);
    }
    view_into(b->stores[1], &good);
    assert_int_equal(install_from(b->stores[0], &good, 1, SIZE_MAX), ERR_OK);
    log_set_level(LOG_LEVEL_OFF);
    for (uint32_t k = 0; k < 60; k++) {
        struct buf bad = {0};
        size_t at = rng_below(&r, good.size);
        buf_append(&bad, good.data, k % 3 == 0 ? at : good.size);
        if (k % 3 == 1) {
            bad.data[at] ^= (uint8_t)(1u << rng_below(&r, 8));
        } else if (k % 3 == 2) {
            *buf_extend(&bad, 1) = 0;
        }
        struct skv_store *s = b->stores[k / 3 % 2];
        enum err rc = install_from(s, &bad, 5, SIZE_MAX);
        assert_true(rc == ERR_CORRUPT || rc == ERR_VERSION);
        buf_free(&bad);
    }
    log_set_level(LOG_LEVEL_INFO);
    uint64_t index = 0;
    uint64_t term = 0;
    b->stores[0]->ops->durable(b->stores[0], &index, &term);
    assert_int_equal(index, 1);
    compare_all(b->stores[0], b->stores[1]);
    reopen(b);
    compare_all(b->stores[0], b->stores[1]);
    buf_free(&good);
}

/* Could be wrong: what an interrupted install left is taken for the state, or
 * stays for ever. */
static void leftovers_of_an_install_are_removed(void **state)
{
    struct both *b = *state;
    struct skv_store *s = b->stores[0];
    assert_int_equal(s->ops->put(s, key_a, key_b), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    both_close(b);
    /* Killed while it built the next: DIR/new has some of it. */
    char *command = mem_printf("cp -r %s/state.1 %s/new", b->dir, b->dir);
    assert_int_equal(system(command), 0);
    mem_free(command);
    both_open(b);
    char *left = mem_printf("%s/new", b->dir);
    assert_int_not_equal(access(left, F_OK), 0);
    assert_value(b->stores[0], key_a, 1, true);
    mem_free(left);
    both_close(b);
    /* Killed after the switch: the new one counts, the old one goes. */
    command = mem_printf("cp -r %s/state.1 %s/state.2", b->dir, b->dir);
    assert_int_equal(system(command), 0);
    mem_free(command);
    both_open(b);
    assert_value(b->stores[0], key_a, 1, true);
    left = mem_printf("%s/state.1", b->dir);
    assert_int_not_equal(access(left, F_OK), 0);
    mem_free(left);
}

/* Could be wrong: pages that the commit holds in memory do not count, or a
 * small change of a large record counts as small. */
static void what_is_unsaved_counts_records_and_their_pages(void **state)
{
    struct both *b = *state;
    struct skv_store *s = b->stores[0];
    static uint8_t bytes[LIMIT];
    uint64_t least = s->ops->unsaved(s);
    for (uint32_t i = 0; i < 100; i++) {
        uint8_t key[4];
        set_u32(key, i);
        assert_int_equal(
            s->ops->put(s, slice_of(key, 4), filled(bytes, 4096, 1)), ERR_OK);
    }
    uint64_t all = s->ops->unsaved(s) - least;
    assert_in_range(all, 100 * (4096 + 8192), 100 * (4096 + 8192 + 500));
    assert_int_equal(s->ops->checkpoint_begin(s, 1, 1), ERR_OK);
    assert_int_equal(s->ops->unsaved(s), least);
    assert_int_equal(s->ops->checkpoint_write(s), ERR_OK);
    assert_int_equal(s->ops->checkpoint_end(s), ERR_OK);
    assert_int_equal(s->ops->unsaved(s), least);
    uint8_t key[4] = {0};
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(
            s->ops->put_range(s, slice_of(key, 4), i, slice_of("x", 1)),
            ERR_OK);
    }
    all = s->ops->unsaved(s) - least;
    assert_in_range(all, 4096 + 8192, 4096 + 8192 + 4096 + 500);
    assert_int_equal(s->ops->remove(s, slice_of(key, 4)), ERR_OK);
    assert_in_range(s->ops->unsaved(s) - least, 4096, 2 * 4096 + 500);
}

/* ---- failures ---- */

/* Could be wrong: half an operation is committed by the next checkpoint. */
static void a_full_map_stops_the_store_and_a_restart_heals_it(void **state)
{
    (void)state;
    char *dir = temp_dir();
    struct skv_store *s = NULL;
    static uint8_t bytes[LIMIT];
    struct slice value = filled(bytes, sizeof bytes, 1);
    log_set_level(LOG_LEVEL_OFF);
    assert_int_equal(skv_store_lmdb_open(dir, 1u << 20, &s), ERR_OK);
    assert_int_equal(s->ops->put(s, key_a, key_b), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    for (uint32_t i = 0; i < 1000; i++) {
        uint8_t key[4];
        set_u32(key, i);
        assert_int_equal(s->ops->put(s, slice_of(key, 4), value), ERR_OK);
    }
    assert_int_equal(s->ops->checkpoint(s, 2, 1), ERR_NOSPACE);
    assert_int_equal(s->ops->put(s, key_a, key_a), ERR_NOSPACE);
    assert_int_equal(s->ops->checkpoint(s, 3, 1), ERR_NOSPACE);
    s->ops->close(s);
    s = lmdb_open(dir); /* with more room */
    log_set_level(LOG_LEVEL_INFO);
    uint64_t keys = 0;
    uint64_t used = 0;
    s->ops->usage(s, &keys, &used);
    assert_int_equal(keys, 1);
    assert_value(s, key_a, 1, true);
    s->ops->close(s);
    temp_dir_remove(dir);
}

/* Could be wrong: what was written since the checkpoint stays in part, or a
 * blob's number is given out twice while its file lives. */
static void a_full_map_grows_when_it_is_rewound(void **state)
{
    (void)state;
    char *dir = temp_dir();
    struct skv_store *s = NULL;
    static uint8_t bytes[LIMIT];
    static uint8_t large[3 * LIMIT];
    struct slice value = filled(bytes, sizeof bytes, 1);
    struct slice blob = filled(large, sizeof large, 2);
    log_set_level(LOG_LEVEL_OFF);
    assert_int_equal(skv_store_lmdb_open(dir, 1u << 20, &s), ERR_OK);
    assert_int_equal(s->ops->put(s, key_a, key_b), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    assert_int_equal(s->ops->put(s, key_b, blob), ERR_OK);
    for (uint32_t i = 0; i < 1000; i++) {
        uint8_t key[4];
        set_u32(key, i);
        assert_int_equal(s->ops->put(s, slice_of(key, 4), value), ERR_OK);
    }
    assert_int_equal(s->ops->checkpoint(s, 2, 1), ERR_NOSPACE);
    assert_int_equal(s->ops->rewind(s), ERR_OK);
    uint64_t keys = 0, used = 0;
    s->ops->usage(s, &keys, &used);
    assert_int_equal(keys, 1);
    for (uint32_t i = 0; i < 150; i++) {
        uint8_t key[4];
        set_u32(key, i);
        assert_int_equal(s->ops->put(s, slice_of(key, 4), value), ERR_OK);
    }
    assert_int_equal(s->ops->put(s, key_b, blob), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 2, 1), ERR_OK);
    log_set_level(LOG_LEVEL_INFO);
    s->ops->usage(s, &keys, &used);
    assert_int_equal(keys, 152);
    s->ops->close(s);
    s = lmdb_open(dir);
    s->ops->usage(s, &keys, &used);
    assert_int_equal(keys, 152);
    s->ops->close(s);
    temp_dir_remove(dir);
}

/* Could be wrong: a system's "file too large" passes for the refusal that all
 * replicas give, and they part; or the operation is committed by halves. */
static void a_failed_blob_write_stops_the_store(void **state)
{
    struct both *b = *state;
    struct skv_store *s = b->stores[0];
    static uint8_t bytes[2 * LIMIT];
    struct slice large = filled(bytes, sizeof bytes, 1);
    assert_int_equal(s->ops->put(s, key_a, large), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    struct rlimit was, one_mib;
    getrlimit(RLIMIT_FSIZE, &was);
    one_mib = (struct rlimit){.rlim_cur = 1 << 20, .rlim_max = was.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    log_set_level(LOG_LEVEL_OFF);
    setrlimit(RLIMIT_FSIZE, &one_mib);
    assert_int_equal(s->ops->remove(s, key_a), ERR_OK);
    assert_int_equal(s->ops->put_range(s, key_b, 2 << 20, large), ERR_IO);
    setrlimit(RLIMIT_FSIZE, &was);
    assert_int_equal(s->ops->checkpoint(s, 2, 1), ERR_IO);
    log_set_level(LOG_LEVEL_INFO);
    reopen(b);
    s = b->stores[0];
    struct skv_value v;
    assert_value(s, key_a, sizeof bytes, false);
    assert_int_equal(s->ops->lookup(s, key_b, &v), ERR_NOTFOUND);
    assert_int_equal(count_blobs(b), 1);
}

static void *applier_run(void *arg)
{
    struct skv_store *s = arg;
    assert_int_equal(s->ops->put(s, key_a, key_a), ERR_OK);
    assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
    assert_int_equal(s->ops->put(s, key_b, key_b), ERR_OK);
    return NULL;
}

/* Could be wrong: LMDB's lock stays with the thread that ended, and the next
 * one waits for ever. */
static void a_store_is_closed_when_its_applier_has_ended(void **state)
{
    struct both *b = *state;
    for (int round = 0; round < 2; round++) {
        pthread_t thread;
        assert_int_equal(
            pthread_create(&thread, NULL, applier_run, b->stores[0]), 0);
        pthread_join(thread, NULL);
        reopen(b);
        struct skv_store *s = b->stores[0];
        struct skv_value v;
        assert_value(s, key_a, 1, true);
        assert_int_equal(s->ops->lookup(s, key_b, &v), ERR_NOTFOUND);
        reopen(b); /* the transaction of this thread's lookup ends */
    }
}

static void a_directory_is_opened_once(void **state)
{
    struct both *b = *state;
    struct skv_store *second = NULL;
    log_set_level(LOG_LEVEL_OFF);
    assert_int_equal(skv_store_lmdb_open(b->dir, 0, &second), ERR_BUSY);
    log_set_level(LOG_LEVEL_INFO);
}

/* The stream's bytes are a format: this fails when they change. */
static void the_stream_has_the_documented_bytes(void **state)
{
    struct both *b = *state;
    static uint8_t zeros[LIMIT + 1];
    static const uint8_t begin[] = {'F', 'L', 'K', 'S', 1, 0, 0, 0,
                                    /* KEY "a", inline "b" */
                                    1, 19, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
                                    1, 0, 0, 0, 'a', 1, 0, 0, 0, 'b',
                                    /* KEY "b", a blob of 8001 */
                                    1, 18, 0, 0, 0, 1, 0x41, 0x1f, 0, 0, 0, 0,
                                    0, 0, 1, 0, 0, 0, 'b', 0, 0, 0, 0,
                                    /* DATA from 0, 8001 bytes */
                                    2, 0x4d, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                    0x41, 0x1f, 0, 0};
    static const uint8_t end[] = {3, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0};
    for (int i = 0; i < 2; i++) {
        struct skv_store *s = b->stores[i];
        assert_int_equal(s->ops->put(s, key_a, key_b), ERR_OK);
        assert_int_equal(s->ops->put(s, key_b, slice_of(zeros, sizeof zeros)),
                         ERR_OK);
        assert_int_equal(s->ops->checkpoint(s, 1, 1), ERR_OK);
        struct buf stream = {0};
        view_into(s, &stream);
        size_t before_end = sizeof begin + sizeof zeros;
        assert_int_equal(stream.size, before_end + sizeof end + 4);
        assert_memory_equal(stream.data, begin, sizeof begin);
        assert_memory_equal(stream.data + before_end, end, sizeof end);
        assert_int_equal(get_u32(stream.data + before_end + sizeof end),
                         crc32c(0, slice_of(stream.data, before_end)));
        buf_free(&stream);
    }
}

#define ON_BOTH(test)                                                          \
    cmocka_unit_test_setup_teardown(test, both_setup, both_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(a_value_is_inline_by_the_rule),
        ON_BOTH(limits_are_refused_and_change_nothing),
        ON_BOTH(a_dead_blob_is_unlinked_after_the_checkpoint),
        ON_BOTH(a_blob_made_again_begins_empty),
        ON_BOTH(a_value_cut_and_grown_again_has_zeros),
        ON_BOTH(many_blobs_survive_a_checkpoint),
        ON_BOTH(a_sparse_value_stays_sparse),
        ON_BOTH(a_view_is_read_while_writes_go_on),
        ON_BOTH(an_exact_view_does_not_change),
        ON_BOTH(a_view_outlives_an_install),
        ON_BOTH(a_damaged_stream_changes_nothing),
        ON_BOTH(leftovers_of_an_install_are_removed),
        ON_BOTH(what_is_unsaved_counts_records_and_their_pages),
        cmocka_unit_test(a_full_map_stops_the_store_and_a_restart_heals_it),
        cmocka_unit_test(a_full_map_grows_when_it_is_rewound),
        ON_BOTH(a_failed_blob_write_stops_the_store),
        ON_BOTH(a_store_is_closed_when_its_applier_has_ended),
        ON_BOTH(a_directory_is_opened_once),
        ON_BOTH(the_stream_has_the_documented_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
