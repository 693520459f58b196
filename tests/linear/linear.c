/* The list of calls and returns in the order of time. The search takes a call
 * that stands before the first return, tries it on the state, takes both its
 * entries out and goes on; at a return it must go back (Lowe, "Testing for
 * linearizability", 2017, section 3). An operation without an answer has its
 * return after all others, and need not be taken at all. */
#include "tests/linear/linear.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

/* ---- values and the model ---- */

struct linear_value linear_value_append(struct linear_value v,
                                        struct slice bytes)
{
    if (!v.exists) {
        v = (struct linear_value){.exists = true, .hash = 0xcbf29ce484222325u};
    }
    for (size_t i = 0; i < bytes.size; i++) {
        v.hash = (v.hash ^ bytes.data[i]) * 0x100000001b3u;
    }
    v.length += bytes.size;
    return v;
}

struct linear_value linear_value_of(struct slice bytes)
{
    return linear_value_append((struct linear_value){0}, bytes);
}

struct state {
    struct linear_value keys[LINEAR_KEYS];
};

/* A part with what the search needs of its bytes. */
struct part {
    enum linear_kind kind;
    uint32_t key;
    struct linear_value value; /* of `data` */
    struct slice data;
    uint64_t number;
};

struct op {
    const struct linear_op *from;
    struct part parts[LINEAR_PARTS];
};

static bool value_same(struct linear_value a, struct linear_value b)
{
    return a.exists == b.exists &&
           (!a.exists || (a.length == b.length && a.hash == b.hash));
}

/* Does a read or compare see what it says it saw? */
static bool part_holds(const struct part *p, const struct state *s)
{
    const struct linear_value *v = &s->keys[p->key];
    switch (p->kind) {
    case LINEAR_GET: return value_same(*v, p->value);
    case LINEAR_CMP_LENGTH: return v->exists && v->length == p->number;
    default: return true;
    }
}

static bool part_write(const struct part *p, bool unknown, struct state *s)
{
    struct linear_value *v = &s->keys[p->key];
    switch (p->kind) {
    case LINEAR_PUT: *v = p->value; return true;
    case LINEAR_DELETE: *v = (struct linear_value){0}; return true;
    case LINEAR_APPEND:
        if (!unknown && p->number != v->length) {
            return false; /* it says that it landed elsewhere */
        }
        *v = linear_value_append(*v, p->data);
        return true;
    default: return true;
    }
}

/* Can `op` happen in state `s`? Then what is the state after it? */
static bool op_step(const struct op *op, struct state *s)
{
    const struct linear_op *from = op->from;
    if (from->conflict) {
        return !part_holds(&op->parts[from->failed], s);
    }
    for (uint32_t i = 0; i < from->part_count; i++) {
        const struct part *p = &op->parts[i];
        bool compares = p->kind == LINEAR_CMP_LENGTH;
        if ((!from->unknown || compares) && !part_holds(p, s)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < from->part_count; i++) {
        if (!part_write(&op->parts[i], from->unknown, s)) {
            return false;
        }
    }
    return true;
}

/* ---- operations that explain nothing ---- */

/* Was any of what `op` wrote ever read? */
static bool op_was_seen(const struct linear_op *op, const struct linear_op *ops,
                        uint32_t count)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        const struct linear_part *p = &op->parts[i];
        if (p->kind == LINEAR_DELETE || p->kind == LINEAR_APPEND ||
            p->kind == LINEAR_PUT) {
            if (p->data.size == 0) {
                return true; /* it leaves no trace that we could miss */
            }
        }
        for (uint32_t j = 0; j < count; j++) {
            for (uint32_t k = 0; k < ops[j].part_count; k++) {
                const struct linear_part *r = &ops[j].parts[k];
                if (r->kind == LINEAR_GET && r->key == p->key && r->exists &&
                    p->data.size > 0 &&
                    memmem(r->data.data, r->data.size, p->data.data,
                           p->data.size) != NULL) {
                    return true;
                }
            }
        }
    }
    return false;
}

/* Whether the lengths that appends and compares report could depend on `op`:
 * then it may matter though no read shows it. */
static bool lengths_matter(const struct linear_op *ops, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t k = 0; k < ops[i].part_count; k++) {
            enum linear_kind kind = ops[i].parts[k].kind;
            if (kind == LINEAR_CMP_LENGTH ||
                (kind == LINEAR_APPEND && !ops[i].unknown)) {
                return true;
            }
        }
    }
    return false;
}

/* ---- the list ---- */

struct entry {
    uint64_t time;
    uint32_t op;
    bool is_return;
    struct entry *match; /* a call's return */
    struct entry *next, *prev;
};

static int entry_compare(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;
    if (x->time != y->time) {
        return x->time < y->time ? -1 : 1;
    }
    if (x->is_return != y->is_return) {
        return x->is_return ? 1 : -1; /* equal times overlap */
    }
    return x->op < y->op ? -1 : x->op > y->op;
}

static void entry_lift(struct entry *call)
{
    call->prev->next = call->next;
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
    struct entry *ret = call->match;
    ret->prev->next = ret->next;
    if (ret->next != NULL) {
        ret->next->prev = ret->prev;
    }
}

static void entry_unlift(struct entry *call)
{
    struct entry *ret = call->match;
    ret->prev->next = ret;
    if (ret->next != NULL) {
        ret->next->prev = ret;
    }
    call->prev->next = call;
    if (call->next != NULL) {
        call->next->prev = call;
    }
}

/* ---- what was tried before: (set, state) in an open hash table ---- */

struct memory {
    uint32_t words;  /* of a set */
    uint64_t *slots; /* index + 1 into items; 0: empty */
    size_t slot_count, item_count;
    struct buf items; /* a state and a set each */
};

static size_t item_size(const struct memory *m)
{
    return sizeof(struct state) + m->words * sizeof(uint64_t);
}

static uint64_t hash_words(const uint8_t *bytes, size_t size)
{
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        h = (h ^ word) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return h;
}

/* The slot where `item` is or belongs. */
static uint64_t *memory_slot(struct memory *m, const uint8_t *item)
{
    size_t size = item_size(m);
    size_t at = hash_words(item, size) & (m->slot_count - 1);
    while (m->slots[at] != 0 &&
           memcmp(m->items.data + (m->slots[at] - 1) * size, item, size) != 0) {
        at = (at + 1) & (m->slot_count - 1);
    }
    return &m->slots[at];
}

static void memory_grow(struct memory *m)
{
    mem_free(m->slots);
    m->slot_count = m->slot_count == 0 ? 1024 : 2 * m->slot_count;
    m->slots = mem_array(m->slot_count, sizeof *m->slots);
    for (size_t i = 0; i < m->item_count; i++) {
        *memory_slot(m, m->items.data + i * item_size(m)) = i + 1;
    }
}

/* False when it was there already. */
static bool memory_add(struct memory *m, const struct state *s,
                       const uint64_t *set)
{
    if (2 * (m->item_count + 1) > m->slot_count) {
        memory_grow(m);
    }
    size_t size = item_size(m);
    size_t before = m->items.size;
    uint8_t *item = buf_extend(&m->items, size);
    memcpy(item, s, sizeof *s);
    memcpy(item + sizeof *s, set, m->words * sizeof *set);
    m->items.size = before;
    uint64_t *slot = memory_slot(m, item);
    if (*slot != 0) {
        return false;
    }
    m->items.size = before + size;
    *slot = ++m->item_count;
    return true;
}

/* ---- the search ---- */

struct frame {
    struct entry *call;
    struct state state; /* before it */
};

struct search {
    struct op *ops;
    uint32_t op_count;
    uint32_t known_left; /* operations with an answer, not yet explained */
    struct entry *entries;
    struct entry head;
    struct frame *stack;
    uint32_t depth;
    uint64_t *set;
    struct memory memory;
    struct state state;
    /* The most operations explained at once, and what came next then. */
    uint32_t best_depth;
    uint32_t best_stuck;
    struct state best_state;
};

static void set_flip(uint64_t *set, uint32_t op)
{
    set[op / 64] ^= UINT64_C(1) << op % 64;
}

static void op_take(struct op *to, const struct linear_op *from)
{
    to->from = from;
    for (uint32_t i = 0; i < from->part_count; i++) {
        const struct linear_part *p = &from->parts[i];
        CHECK(p->key < LINEAR_KEYS);
        to->parts[i].kind = p->kind;
        to->parts[i].key = p->key;
        to->parts[i].number = p->number;
        to->parts[i].data = p->data;
        if (p->kind != LINEAR_GET || p->exists) {
            to->parts[i].value = linear_value_of(p->data);
        }
    }
}

static bool only_reads(const struct linear_op *op)
{
    for (uint32_t i = 0; i < op->part_count; i++) {
        if (op->parts[i].kind != LINEAR_GET &&
            op->parts[i].kind != LINEAR_CMP_LENGTH) {
            return false;
        }
    }
    return true;
}

/* Leaves out what cannot matter: a read without an answer; a write without one
 * whose bytes nobody ever saw (take it out of an order that explains the rest,
 * and the rest is still explained), unless a length could tell of it. */
static void search_take_ops(struct search *s, const struct linear_op *ops,
                            uint32_t count)
{
    bool lengths = lengths_matter(ops, count);
    s->ops = mem_array(count + 1, sizeof *s->ops);
    for (uint32_t i = 0; i < count; i++) {
        if (ops[i].unknown &&
            (only_reads(&ops[i]) ||
             (!lengths && !op_was_seen(&ops[i], ops, count)))) {
            continue;
        }
        s->known_left += !ops[i].unknown;
        op_take(&s->ops[s->op_count++], &ops[i]);
    }
}

static void search_link(struct search *s)
{
    uint32_t n = 2 * s->op_count;
    s->entries = mem_array(n + 1, sizeof *s->entries);
    for (uint32_t i = 0; i < s->op_count; i++) {
        const struct linear_op *op = s->ops[i].from;
        s->entries[2 * i] = (struct entry){.time = op->call, .op = i};
        s->entries[2 * i + 1] =
            (struct entry){.time = op->unknown ? UINT64_MAX : op->ret,
                           .op = i,
                           .is_return = true};
    }
    qsort(s->entries, n, sizeof *s->entries, entry_compare);
    struct entry **returns = mem_array(s->op_count + 1, sizeof *returns);
    struct entry *last = &s->head;
    for (uint32_t i = 0; i < n; i++) {
        struct entry *e = &s->entries[i];
        last->next = e;
        e->prev = last;
        last = e;
        if (e->is_return) {
            returns[e->op] = e;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!s->entries[i].is_return) {
            s->entries[i].match = returns[s->entries[i].op];
        }
    }
    mem_free(returns);
}

/* Takes the call at `e` if it can happen now and leads somewhere new. */
static bool search_advance(struct search *s, struct entry *e)
{
    struct state next = s->state;
    if (!op_step(&s->ops[e->op], &next)) {
        return false;
    }
    set_flip(s->set, e->op);
    if (!memory_add(&s->memory, &next, s->set)) {
        set_flip(s->set, e->op);
        return false;
    }
    s->stack[s->depth++] = (struct frame){.call = e, .state = s->state};
    s->state = next;
    s->known_left -= !s->ops[e->op].from->unknown;
    entry_lift(e);
    return true;
}

static struct entry *search_back(struct search *s)
{
    struct frame *f = &s->stack[--s->depth];
    s->state = f->state;
    s->known_left += !s->ops[f->call->op].from->unknown;
    set_flip(s->set, f->call->op);
    entry_unlift(f->call);
    return f->call->next;
}

static void search_note_best(struct search *s, const struct entry *stuck)
{
    if (s->depth >= s->best_depth) {
        s->best_depth = s->depth;
        s->best_stuck = stuck->op;
        s->best_state = s->state;
    }
}

static enum linear_verdict search_run(struct search *s, uint64_t steps)
{
    struct entry *e = s->head.next;
    while (s->known_left > 0) {
        if (steps-- == 0) {
            return LINEAR_BUDGET;
        }
        if (!e->is_return) {
            e = search_advance(s, e) ? s->head.next : e->next;
            continue;
        }
        search_note_best(s, e);
        if (s->depth == 0) {
            return LINEAR_BAD;
        }
        e = search_back(s);
    }
    return LINEAR_OK;
}

/* ---- words ---- */

static void say(struct buf *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void say(struct buf *b, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t size = (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    buf_append(b, text, size);
}

static void say_op(struct buf *b, const struct linear_op *op)
{
    static const char *const kinds[] = {"?",      "get",    "put",
                                        "append", "delete", "if-length"};
    say(b, "  op %" PRIu64 ".%" PRIu64 " [%" PRIu64 ", ", op->name >> 32,
        op->name & UINT32_MAX, op->call);
    if (op->unknown) {
        say(b, "no answer]");
    } else {
        say(b, "%" PRIu64 "]%s", op->ret, op->conflict ? " refused" : "");
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        const struct linear_part *p = &op->parts[i];
        int shown = p->data.size > 40 ? 40 : (int)p->data.size;
        say(b, " %s k%u %s%.*s (size %zu) number=%" PRIu64, kinds[p->kind],
            p->key, p->data.size > 40 ? "..." : "", shown,
            shown == 0 ? "" : (const char *)p->data.data + p->data.size - shown,
            p->data.size, p->number);
    }
    say(b, "\n");
}

static void search_explain(const struct search *s, struct buf *why)
{
    const struct linear_op *stuck = s->ops[s->best_stuck].from;
    say(why, "%u of %u operations can be put in order, then none explains\n",
        s->best_depth, s->op_count);
    say_op(why, stuck);
    for (uint32_t k = 0; k < LINEAR_KEYS; k++) {
        say(why, "  state k%u exists=%d length=%" PRIu64 "\n", k,
            s->best_state.keys[k].exists, s->best_state.keys[k].length);
    }
    say(why, "operations that overlap it, or came shortly before:\n");
    uint32_t shown = 0;
    for (uint32_t i = s->op_count; i-- > 0 && shown < 16;) {
        const struct linear_op *op = s->ops[i].from;
        if (op != stuck && op->call <= stuck->ret &&
            (op->unknown || op->ret + 2000000 >= stuck->call)) {
            say_op(why, op);
            shown++;
        }
    }
}

enum linear_verdict linear_check(const struct linear_op *ops, uint32_t count,
                                 uint64_t steps, struct buf *why)
{
    struct search s = {0};
    search_take_ops(&s, ops, count);
    search_link(&s);
    s.memory.words = (s.op_count + 63) / 64;
    s.set = mem_array(s.memory.words + 1, sizeof *s.set);
    s.stack = mem_array(s.op_count + 1, sizeof *s.stack);
    enum linear_verdict verdict = search_run(&s, steps);
    if (verdict != LINEAR_OK) {
        search_explain(&s, why);
    }
    mem_free(s.ops);
    mem_free(s.entries);
    mem_free(s.set);
    mem_free(s.stack);
    mem_free(s.memory.slots);
    buf_free(&s.memory.items);
    return verdict;
}

const char *linear_verdict_text(enum linear_verdict verdict)
{
    switch (verdict) {
    case LINEAR_OK: return "linearizable";
    case LINEAR_BAD: return "not linearizable";
    default: return "undecided: the checker's budget ran out";
    }
}
