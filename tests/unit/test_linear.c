#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "tests/linear/linear.h"

#define STEPS 1000000

static struct linear_op op_of(enum linear_kind kind, uint64_t call,
                              uint64_t ret, const char *text)
{
    struct linear_op op = {.call = call, .ret = ret, .part_count = 1};
    op.parts[0].kind = kind;
    op.parts[0].exists = text != NULL;
    op.parts[0].data = text != NULL ? slice_text(text) : slice_of(NULL, 0);
    return op;
}

static struct linear_op put(uint64_t call, uint64_t ret, const char *text)
{
    return op_of(LINEAR_PUT, call, ret, text);
}

static struct linear_op get(uint64_t call, uint64_t ret, const char *text)
{
    return op_of(LINEAR_GET, call, ret, text);
}

static struct linear_op append(uint64_t call, uint64_t ret, const char *text,
                               uint64_t at)
{
    struct linear_op op = op_of(LINEAR_APPEND, call, ret, text);
    op.parts[0].number = at;
    return op;
}

static struct linear_op unknown(struct linear_op op)
{
    op.unknown = true;
    return op;
}

static enum linear_verdict check(const struct linear_op *ops, uint32_t count)
{
    struct buf why = {0};
    enum linear_verdict verdict = linear_check(ops, count, STEPS, &why);
    buf_free(&why);
    return verdict;
}

#define CHECK_HISTORY(expected, ...)                                           \
    do {                                                                       \
        struct linear_op ops[] = {__VA_ARGS__};                                \
        assert_int_equal(check(ops, sizeof ops / sizeof *ops), expected);      \
    } while (0)

static void sequential_histories(void **state)
{
    (void)state;
    CHECK_HISTORY(LINEAR_OK, get(1, 2, NULL), put(3, 4, "a"), get(5, 6, "a"),
                  append(7, 8, "b", 1), get(9, 10, "ab"));
    /* A stale read: the put had returned before the get began. */
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "a"));
    /* A key never written has no value; an empty one has. */
    CHECK_HISTORY(LINEAR_BAD, get(1, 2, ""));
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, ""), get(3, 4, NULL));
}

static void appends_are_there_once_and_in_order(void **state)
{
    (void)state;
    /* Lost. */
    CHECK_HISTORY(LINEAR_BAD, append(1, 2, "a", 0), append(3, 4, "b", 1),
                  get(5, 6, "a"));
    CHECK_HISTORY(LINEAR_BAD, append(1, 2, "a", 0), append(3, 4, "b", 1),
                  get(5, 6, "b"));
    /* Twice. */
    CHECK_HISTORY(LINEAR_BAD, append(1, 2, "a", 0), get(3, 4, "aa"));
    CHECK_HISTORY(LINEAR_BAD, unknown(append(1, 2, "a", 0)), get(3, 4, "aa"));
    /* Reordered against real time. */
    CHECK_HISTORY(LINEAR_BAD, append(1, 2, "a", 0), append(3, 4, "b", 1),
                  get(5, 6, "ba"));
    /* Said to be where it is not. */
    CHECK_HISTORY(LINEAR_BAD, append(1, 2, "a", 1), get(3, 4, "a"));
}

static void concurrent_operations_may_go_either_way(void **state)
{
    (void)state;
    CHECK_HISTORY(LINEAR_OK, append(1, 10, "a", 1), append(1, 10, "b", 0),
                  get(11, 12, "ba"));
    CHECK_HISTORY(LINEAR_OK, put(1, 10, "a"), get(2, 3, NULL), get(4, 5, "a"));
    /* Two readers that disagree about the order. */
    CHECK_HISTORY(LINEAR_BAD, put(1, 10, "a"), put(1, 10, "b"), get(2, 3, "a"),
                  get(4, 5, "b"), get(6, 7, "a"));
    /* Seen, then not seen. */
    CHECK_HISTORY(LINEAR_BAD, put(1, 10, "a"), get(2, 3, "a"), get(4, 5, NULL));
    /* Equal times overlap. */
    CHECK_HISTORY(LINEAR_OK, put(1, 2, "a"), get(2, 3, NULL));
}

static void without_an_answer_any_time_later_or_never(void **state)
{
    (void)state;
    CHECK_HISTORY(LINEAR_OK, unknown(put(1, 2, "a")), get(3, 4, NULL));
    CHECK_HISTORY(LINEAR_OK, unknown(put(1, 2, "a")), get(3, 4, NULL),
                  get(5, 6, NULL), get(7, 8, "a"));
    CHECK_HISTORY(LINEAR_BAD, unknown(put(1, 2, "a")), get(3, 4, "a"),
                  get(5, 6, NULL));
    /* Not before it was called. */
    CHECK_HISTORY(LINEAR_BAD, get(1, 2, "a"), unknown(put(3, 4, "a")));
    /* Only an append without an answer explains where the next one landed. */
    CHECK_HISTORY(LINEAR_OK, unknown(append(1, 2, "aa", 0)),
                  append(3, 4, "b", 2), put(5, 6, "c"), get(7, 8, "c"));
    CHECK_HISTORY(LINEAR_OK, unknown(get(1, 2, "z")), put(3, 4, "a"));
}

static struct linear_op both(enum linear_kind kind, uint64_t call, uint64_t ret,
                             const char *first, const char *second)
{
    struct linear_op op = op_of(kind, call, ret, first);
    struct linear_op other = op_of(kind, call, ret, second);
    op.parts[1] = other.parts[0];
    op.parts[1].key = 1;
    op.part_count = 2;
    return op;
}

static void two_keys_change_together(void **state)
{
    (void)state;
    CHECK_HISTORY(LINEAR_OK, both(LINEAR_PUT, 1, 9, "a", "b"),
                  both(LINEAR_GET, 2, 3, NULL, NULL),
                  both(LINEAR_GET, 4, 5, "a", "b"));
    /* Half of it. */
    CHECK_HISTORY(LINEAR_BAD, both(LINEAR_PUT, 1, 9, "a", "b"),
                  both(LINEAR_GET, 2, 3, "a", NULL));
    CHECK_HISTORY(LINEAR_BAD, unknown(both(LINEAR_PUT, 1, 9, "a", "b")),
                  get(2, 3, "a"), both(LINEAR_GET, 4, 5, "a", NULL));
}

static struct linear_op append_if(uint64_t call, uint64_t ret, uint64_t length,
                                  const char *text, bool conflict)
{
    struct linear_op op = append(call, ret, text, length);
    op.parts[1] = op.parts[0];
    op.parts[0] =
        (struct linear_part){.kind = LINEAR_CMP_LENGTH, .number = length};
    op.part_count = 2;
    op.conflict = conflict;
    return op;
}

static void compares_are_true_or_refuse(void **state)
{
    (void)state;
    CHECK_HISTORY(LINEAR_OK, put(1, 2, "a"), append_if(3, 4, 1, "b", false),
                  append_if(5, 6, 1, "c", true), get(7, 8, "ab"));
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, "a"), append_if(3, 4, 1, "b", true));
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, "a"), append_if(3, 4, 1, "b", true),
                  get(7, 8, "ab"));
    /* Both of two rivals succeeded. */
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, "a"), append_if(3, 9, 1, "b", false),
                  append_if(3, 9, 1, "c", false));
}

/* Reads both keys, then appends to one of them, if they are that long. */
static struct linear_op if_both(uint64_t call, uint64_t ret, uint64_t first,
                                uint64_t second, uint32_t to, const char *text,
                                uint64_t at)
{
    struct linear_op op = append(call, ret, text, at);
    op.parts[2] = op.parts[0];
    op.parts[2].key = to;
    op.parts[0] =
        (struct linear_part){.kind = LINEAR_CMP_LENGTH, .number = first};
    op.parts[1] = (struct linear_part){
        .kind = LINEAR_CMP_LENGTH, .key = 1, .number = second};
    op.part_count = 3;
    return op;
}

/* By their names in the literature (Adya 1999; Berenson et al. 1995). Each is
 * possible at some weaker level, so each must be seen. */
static void anomalies_of_transactions(void **state)
{
    (void)state;
    /* Lost update: both read "a", both wrote what follows from it. */
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, "a"), append_if(3, 9, 1, "b", false),
                  append_if(4, 8, 1, "c", false), get(10, 11, "ab"));
    /* Write skew: each read both and wrote the key that the other only read. */
    CHECK_HISTORY(LINEAR_BAD, both(LINEAR_PUT, 1, 2, "a", "b"),
                  if_both(3, 9, 1, 1, 0, "c", 1),
                  if_both(3, 9, 1, 1, 1, "d", 1),
                  both(LINEAR_GET, 10, 11, "ac", "bd"));
    CHECK_HISTORY(LINEAR_OK, both(LINEAR_PUT, 1, 2, "a", "b"),
                  if_both(3, 9, 1, 1, 0, "c", 1),
                  if_both(3, 9, 2, 1, 1, "d", 1),
                  both(LINEAR_GET, 10, 11, "ac", "bd"));
    /* Read skew: one key from before a transaction, one from after it. */
    CHECK_HISTORY(LINEAR_BAD, both(LINEAR_PUT, 1, 2, "a", "b"),
                  both(LINEAR_PUT, 3, 9, "c", "d"),
                  both(LINEAR_GET, 4, 8, "a", "d"));
    /* Partial commit: its other half never comes. */
    CHECK_HISTORY(LINEAR_BAD, both(LINEAR_PUT, 1, 2, "a", "b"),
                  both(LINEAR_PUT, 3, 4, "c", "d"),
                  both(LINEAR_GET, 5, 6, "c", "b"));
    /* Dirty read: of a transaction that was refused. */
    CHECK_HISTORY(LINEAR_BAD, put(1, 2, "a"), append_if(3, 4, 9, "b", true),
                  get(5, 6, "ab"));
    /* Long fork: two readers see two transactions in different orders. */
    struct linear_op other = put(1, 9, "b");
    other.parts[0].key = 1;
    CHECK_HISTORY(LINEAR_BAD, put(1, 9, "a"), other,
                  both(LINEAR_GET, 2, 3, "a", NULL),
                  both(LINEAR_GET, 2, 3, NULL, "b"));
    /* Serializable, but not strictly: the later one reads the past. */
    CHECK_HISTORY(LINEAR_BAD, both(LINEAR_PUT, 1, 2, "a", "b"),
                  both(LINEAR_PUT, 3, 4, "c", "d"),
                  both(LINEAR_GET, 5, 6, "a", "b"));
}

/* Any of 24 appends could be what a length tells of. */
static void alike_without_an_answer_are_tried_once(void **state)
{
    (void)state;
    struct linear_op ops[27] = {put(1, 2, "start")};
    for (uint32_t i = 0; i < 24; i++) {
        static char tokens[24][3];
        tokens[i][0] = '<';
        tokens[i][1] = (char)('A' + i);
        ops[1 + i] = unknown(append(3 + i, 0, tokens[i], 0));
    }
    ops[25] = append(50, 51, "end", 5 + 2 * 7);
    ops[26] = append(52, 53, "END", 5 + 2 * 7 + 3 + 2);
    struct buf why = {0};
    assert_int_equal(linear_check(ops, 27, 10000, &why), LINEAR_OK);
    ops[26].parts[0].number++; /* half a one */
    assert_int_equal(linear_check(ops, 27, 10000, &why), LINEAR_BAD);
    ops[26].parts[0].number = 5 + 2 * 24 + 3 + 2; /* one too many */
    assert_int_equal(linear_check(ops, 27, 10000, &why), LINEAR_BAD);
    ops[24].call = 60; /* the last one can no longer be before the end */
    ops[26].parts[0].number = 5 + 2 * 24 + 3;
    assert_int_equal(linear_check(ops, 27, 10000, &why), LINEAR_BAD);
    buf_free(&why);
}

/* One without an answer may come only because another one without does. */
static void what_nobody_shows_is_told_by_a_length(void **state)
{
    (void)state;
    struct linear_op ops[4] = {
        unknown(put(1, 0, "abc")),
        unknown(both(LINEAR_APPEND, 2, 0, "abc", "def")),
        append(3, 4, "x", 3),
        both(LINEAR_APPEND, 5, 6, "y", "z"),
    };
    ops[0].parts[0].key = 1;
    ops[3].parts[0].number = 4;
    ops[3].parts[1].number = 6;
    assert_int_equal(check(ops, 4), LINEAR_OK);
    ops[3].parts[1].number = 5;
    assert_int_equal(check(ops, 4), LINEAR_BAD);
}

/* A read shows its append; but what it compares is before a delete of
 * its own; or it was refused, and somebody else wrote those bytes later. */
static void what_was_compared_before_another_beginning_tells(void **state)
{
    (void)state;
    struct linear_op anew = append_if(3, 4, 3, "end", false);
    anew.parts[2] = anew.parts[1];
    anew.parts[1] = (struct linear_part){.kind = LINEAR_DELETE};
    anew.parts[2].number = 0;
    anew.part_count = 3;
    CHECK_HISTORY(LINEAR_OK, unknown(append(1, 0, "abc", 0)), anew,
                  get(5, 6, "end"));
    CHECK_HISTORY(LINEAR_OK, put(1, 2, "a"), unknown(append(3, 0, "bc", 0)),
                  append_if(4, 5, 1, "end", true), put(6, 7, "d"),
                  append_if(8, 9, 1, "end", false), get(10, 11, "dend"));
}

static void no_budget_is_no_answer(void **state)
{
    (void)state;
    struct linear_op ops[24];
    for (uint32_t i = 0; i < 23; i++) {
        static const char letters[23][2] = {
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l",
            "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w"};
        ops[i] = put(1, 100, letters[i]);
    }
    ops[23] = get(101, 102, "z");
    struct buf why = {0};
    assert_int_equal(linear_check(ops, 24, 10000, &why), LINEAR_BUDGET);
    buf_free(&why);
}

/* Histories made by a register that behaves: all must pass; then one read is
 * changed to an older value: must fail. */
static void made_histories(void **state)
{
    (void)state;
    struct rng rng = {.state = 7};
    for (uint32_t round = 0; round < 200; round++) {
        struct arena arena = {0};
        struct buf value = {0};
        struct linear_op ops[60];
        uint64_t time = 10;
        uint32_t last_append = 0;
        for (uint32_t i = 0; i < 60; i++) {
            uint64_t call = time - rng_below(&rng, 8);
            uint64_t ret = time + rng_below(&rng, 8);
            if (rng_chance(&rng, 500)) {
                ops[i] = op_of(LINEAR_GET, call, ret, "");
                ops[i].parts[0].data = arena_copy(&arena, buf_slice(&value));
                ops[i].parts[0].exists = last_append > 0;
            } else {
                uint8_t *token = arena_alloc(&arena, 2);
                token[0] = (uint8_t)i;
                token[1] = 0xff;
                ops[i] = append(call, ret, "", value.size);
                ops[i].parts[0].data = slice_of(token, 2);
                buf_append(&value, token, 2);
                last_append = i + 1;
            }
            time += 3;
        }
        assert_int_equal(check(ops, 60), LINEAR_OK);
        ops[59] = op_of(LINEAR_GET, time + 100, time + 101, "");
        ops[59].parts[0].exists = value.size > 2;
        ops[59].parts[0].data =
            slice_of(value.data, value.size - (last_append == 60 ? 4 : 2));
        assert_int_equal(check(ops, 60), LINEAR_BAD);
        buf_free(&value);
        arena_free(&arena);
    }
}

/* ---- small histories, against a search without any cleverness ---- */

enum { SMALL_OPS = 9, SMALL_VALUE_MAX = 64 };

struct small_value {
    bool exists;
    uint32_t size;
    uint8_t bytes[SMALL_VALUE_MAX];
};

struct small_state {
    struct small_value keys[LINEAR_KEYS];
};

static bool small_holds(const struct linear_part *p,
                        const struct small_value *v)
{
    uint32_t size = (uint32_t)p->data.size;
    switch (p->kind) {
    case LINEAR_GET:
        return p->exists == v->exists &&
               (!v->exists ||
                (size == v->size &&
                 (size == 0 || memcmp(p->data.data, v->bytes, size) == 0)));
    case LINEAR_CMP_LENGTH: return v->exists && v->size == p->number;
    default: return true;
    }
}

static void small_write(const struct linear_part *p, struct small_value *v)
{
    if (p->kind == LINEAR_GET || p->kind == LINEAR_CMP_LENGTH) {
        return;
    }
    v->size = p->kind == LINEAR_APPEND ? v->size : 0;
    v->exists = p->kind != LINEAR_DELETE;
    if (p->data.size > 0) {
        memcpy(v->bytes + v->size, p->data.data, p->data.size);
    }
    v->size += (uint32_t)p->data.size;
}

static bool small_step(const struct linear_op *op, struct small_state *s)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        const struct linear_part *p = &op->parts[i];
        bool holds = small_holds(p, &s->keys[p->key]);
        if (op->conflict && i == op->failed) {
            return !holds;
        }
        bool looks = !op->unknown || p->kind == LINEAR_CMP_LENGTH;
        if (!op->conflict && looks && !holds) {
            return false;
        }
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        const struct linear_part *p = &op->parts[i];
        struct small_value *v = &s->keys[p->key];
        if (p->kind == LINEAR_APPEND && !op->unknown && p->number != v->size) {
            return false;
        }
        small_write(p, v);
    }
    return true;
}

/* Tries every order; `done` has a bit an operation. */
static bool small_search(const struct linear_op *ops, uint32_t done,
                         const struct small_state *s)
{
    uint64_t first_return = UINT64_MAX;
    for (uint32_t i = 0; i < SMALL_OPS; i++) {
        if ((done >> i & 1) == 0 && !ops[i].unknown &&
            ops[i].ret < first_return) {
            first_return = ops[i].ret;
        }
    }
    if (first_return == UINT64_MAX) {
        return true;
    }
    for (uint32_t i = 0; i < SMALL_OPS; i++) {
        struct small_state next = *s;
        if ((done >> i & 1) == 0 && ops[i].call <= first_return &&
            small_step(&ops[i], &next) &&
            small_search(ops, done | 1u << i, &next)) {
            return true;
        }
    }
    return false;
}

static void small_part(struct rng *rng, struct arena *arena,
                       struct linear_op *op, enum linear_kind kind,
                       uint32_t key, const struct small_state *s)
{
    static uint32_t next; /* a byte that wraps would repeat tokens */
    struct linear_part *p = &op->parts[op->part_count++];
    *p = (struct linear_part){.kind = kind, .key = key};
    const struct small_value *v = &s->keys[key];
    p->number = v->size;
    if (kind == LINEAR_GET) {
        p->exists = v->exists;
        p->data = arena_copy(arena, slice_of(v->bytes, v->size));
    } else if (kind == LINEAR_CMP_LENGTH) {
        p->number += rng_chance(rng, 250) ? 3 : 0;
    } else if (kind != LINEAR_DELETE) {
        uint8_t token[4] = {'[', (uint8_t)(1 + next++ % 80), ']', ']'};
        p->exists = true;
        p->data = arena_copy(arena, slice_of(token, 3 + rng_below(rng, 2)));
    }
}

/* What the simulator's clerks do, and a value that is begun anew. */
static void small_draw(struct rng *rng, struct arena *arena,
                       struct linear_op *op, const struct small_state *s)
{
    uint32_t one = (uint32_t)rng_below(rng, LINEAR_KEYS);
    uint64_t draw = rng_below(rng, 100);
    if (draw < 30) {
        small_part(rng, arena, op, LINEAR_APPEND, one, s);
    } else if (draw < 40) {
        small_part(rng, arena, op, LINEAR_PUT, one, s);
    } else if (draw < 47) {
        small_part(rng, arena, op, LINEAR_DELETE, one, s);
    } else if (draw < 65) {
        small_part(rng, arena, op, LINEAR_GET, one, s);
    } else if (draw < 75) {
        small_part(rng, arena, op, LINEAR_CMP_LENGTH, one, s);
        small_part(rng, arena, op, LINEAR_APPEND, one, s);
    } else if (draw < 85) {
        small_part(rng, arena, op, LINEAR_APPEND, 0, s);
        small_part(rng, arena, op, LINEAR_PUT + rng_below(rng, 2), 1, s);
    } else if (draw < 90) {
        small_part(rng, arena, op, LINEAR_GET, one, s);
        small_part(rng, arena, op, LINEAR_APPEND, 1 - one, s);
    } else if (draw < 95) {
        small_part(rng, arena, op, LINEAR_CMP_LENGTH, one, s);
        small_part(rng, arena, op, LINEAR_DELETE, one, s);
        small_part(rng, arena, op, LINEAR_APPEND, one, s);
        op->parts[2].number = 0;
    } else {
        small_part(rng, arena, op, LINEAR_CMP_LENGTH, one, s);
        small_part(rng, arena, op, LINEAR_APPEND, 1 - one, s);
    }
}

/* A history of two registers that behave, some of it without an answer, some of
 * that never executed; then perhaps one answer is changed. */
static void small_make(struct rng *rng, struct arena *arena,
                       struct linear_op ops[SMALL_OPS])
{
    struct small_state s = {0};
    for (uint32_t i = 0; i < SMALL_OPS; i++) {
        uint64_t at = 100 + 10 * i;
        struct linear_op *op = &ops[i];
        *op = (struct linear_op){.call = at - rng_below(rng, 45),
                                 .ret = at + rng_below(rng, 45)};
        small_draw(rng, arena, op, &s);
        op->unknown = rng_chance(rng, 450);
        bool executed = !op->unknown || rng_chance(rng, 500);
        op->rank = executed ? i + 1 : 0;
        if (executed && !small_step(op, &s) && !op->unknown) {
            op->conflict = true; /* its compare, which is its first part */
        }
    }
    struct linear_op *changed = &ops[rng_below(rng, SMALL_OPS)];
    if (rng_chance(rng, 500) && !changed->unknown && !changed->conflict) {
        changed->parts[0].number += 3;
        size_t size = changed->parts[0].data.size;
        if (changed->parts[0].kind == LINEAR_GET && size >= 3) {
            changed->parts[0].data.size = size - 3;
        }
    }
}

/* The ranks as they are, and in a wrong order, some missing: what is followed
 * is linearizable. */
static uint32_t small_follow(struct rng *rng, struct linear_op ops[SMALL_OPS],
                             bool expected)
{
    bool followed = linear_follow(ops, SMALL_OPS);
    assert_true(expected || !followed);
    for (uint32_t i = 0; i < SMALL_OPS; i++) {
        ops[i].rank = rng_below(rng, 2 * SMALL_OPS);
    }
    assert_true(expected || !linear_follow(ops, SMALL_OPS));
    assert_int_equal(check(ops, SMALL_OPS), expected ? LINEAR_OK : LINEAR_BAD);
    return followed;
}

static void as_a_search_of_every_order_decides(void **state)
{
    (void)state;
    struct rng rng = {.state = 11};
    uint32_t good = 0;
    uint32_t followed = 0;
    enum { ROUNDS = 20000 };
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct arena arena = {0};
        struct linear_op ops[SMALL_OPS];
        struct linear_op bare[SMALL_OPS];
        small_make(&rng, &arena, ops);
        for (uint32_t i = 0; i < SMALL_OPS; i++) {
            bare[i] = ops[i];
            bare[i].rank = 0;
        }
        struct small_state empty = {0};
        bool expected = small_search(ops, 0, &empty);
        if (check(bare, SMALL_OPS) != (expected ? LINEAR_OK : LINEAR_BAD)) {
            fail_msg("round %u: every order says %s", round,
                     expected ? "linearizable" : "not linearizable");
        }
        good += expected;
        followed += small_follow(&rng, ops, expected);
        arena_free(&arena);
    }
    /* Both kinds must come, or this shows nothing. */
    assert_in_range(good, ROUNDS / 5, ROUNDS - ROUNDS / 10);
    /* Where the last change was none that shows, the order is the true one. */
    assert_in_range(followed, ROUNDS / 2, good);
}

#define FOLLOWS(expected, ...)                                                 \
    do {                                                                       \
        struct linear_op ops[] = {__VA_ARGS__};                                \
        assert_int_equal(linear_follow(ops, sizeof ops / sizeof *ops),         \
                         expected);                                            \
    } while (0)

static struct linear_op ranked(uint64_t rank, struct linear_op op)
{
    op.rank = rank;
    return op;
}

static void an_order_that_was_seen_explains(void **state)
{
    (void)state;
    FOLLOWS(true, ranked(2, append(1, 10, "a", 1)),
            ranked(1, append(1, 10, "b", 0)), get(11, 12, "ba"));
    FOLLOWS(false, ranked(1, append(1, 10, "a", 1)),
            ranked(2, append(1, 10, "b", 0)), get(11, 12, "ba"));
    /* Nobody saw anything: nothing is said. */
    FOLLOWS(false, put(1, 2, "a"), get(3, 4, "a"));
    /* A read has its place between two writes, or none. */
    FOLLOWS(true, ranked(1, put(1, 9, "a")), ranked(2, put(1, 9, "b")),
            get(2, 8, "a"));
    FOLLOWS(false, ranked(1, put(1, 9, "a")), ranked(2, put(1, 9, "b")),
            get(2, 8, "c"));
    /* Not against real time, whatever somebody saw. */
    FOLLOWS(false, ranked(2, put(1, 2, "a")), ranked(1, put(3, 4, "b")),
            get(5, 6, "a"));
    FOLLOWS(false, ranked(1, put(5, 6, "a")), get(1, 2, "a"));
    /* What was not seen, and got no answer, did not happen; what was, did. */
    FOLLOWS(true, ranked(1, put(1, 2, "a")), unknown(put(1, 2, "b")),
            get(3, 4, "a"));
    FOLLOWS(true, ranked(1, put(1, 2, "a")), ranked(2, unknown(put(1, 2, "b"))),
            get(3, 4, "b"));
    /* A write with an answer that nobody saw: when nothing else can go on. */
    FOLLOWS(true, ranked(1, put(1, 2, "a")), op_of(LINEAR_DELETE, 3, 9, NULL),
            ranked(2, append(4, 8, "b", 0)), get(10, 11, "b"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequential_histories),
        cmocka_unit_test(appends_are_there_once_and_in_order),
        cmocka_unit_test(concurrent_operations_may_go_either_way),
        cmocka_unit_test(without_an_answer_any_time_later_or_never),
        cmocka_unit_test(two_keys_change_together),
        cmocka_unit_test(compares_are_true_or_refuse),
        cmocka_unit_test(anomalies_of_transactions),
        cmocka_unit_test(alike_without_an_answer_are_tried_once),
        cmocka_unit_test(what_nobody_shows_is_told_by_a_length),
        cmocka_unit_test(what_was_compared_before_another_beginning_tells),
        cmocka_unit_test(no_budget_is_no_answer),
        cmocka_unit_test(made_histories),
        cmocka_unit_test(as_a_search_of_every_order_decides),
        cmocka_unit_test(an_order_that_was_seen_explains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
