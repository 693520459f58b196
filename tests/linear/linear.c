/* The list of calls and returns in the order of time. The search takes a call
 * that stands before the first return, tries it on the state, takes both its
 * entries out and goes on; at a return it must go back (Lowe, "Testing for
 * linearizability", 2017, section 3). Operations without an answer have no
 * return, need not be taken at all, and are in a list of their own that is
 * tried last.
 *
 * That every token is written once lets most wrong turns be seen at once:
 *
 *  1. What only reads, and holds now, is taken now, and never tried later: it
 *     changes nothing, and with it gone there is less to explain.
 *  2. An append that a read shows has one place: after exactly the bytes that
 *     the read shows before it.
 *  3. A value with which some read not yet taken begins may not be destroyed:
 *     it will never be there again.
 *  4. Of a value with which no read begins, only the length matters.
 *
 * And three more keep those without an answer, of which any may be taken
 * anywhere, from being tried in each of so many ways that make no difference:
 *
 *  5. Of two that do the same, as far as anybody sees, the one that was called
 *     first is taken first: the other may stand wherever it stood.
 *  6. None is taken right before what overwrites all that it wrote, unseen: it
 *     might as well have never happened.
 *  7. None is taken right before what has no key in common with it: it may as
 *     well come after that. So a wrong turn at one key is not tried again with
 *     all that could have happened to the other. (Of two without an answer the
 *     first of `ops` comes first.)
 *
 * That (6) and (7) look at the operation taken last, which the memory does not
 * hold, hides nothing: what they leave out here was tried before, without that
 * operation or before it. */
#include "tests/linear/linear.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/rng.h"

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
    uint32_t seen;             /* GET: the value, in keys[key].seen */
    bool is_shown;             /* APPEND: some read shows it, */
    struct linear_value after; /* after these bytes */
};

struct op {
    const struct linear_op *from;
    bool only_reads;
    uint32_t twin; /* (5): the one before it, + 1; 0: none */
    /* Sets of keys, as bits. */
    uint32_t touches; /* (7): what the key is matters to it, or changes */
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
        if (p->is_shown && (p->after.length != v->length ||
                            (v->length > 0 && p->after.hash != v->hash))) {
            return false;
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

/* ---- the values that reads show ---- */

/* A value that a key had on its way to one that a read shows. */
struct seen {
    struct slice data;
    struct linear_value value;
    uint32_t end; /* those that begin with it: from itself to before here */
};

struct by_hash {
    uint64_t hash;
    uint32_t seen;
};

struct key {
    struct seen *seen; /* sorted by bytes, without the absent and the empty */
    uint32_t count;
    struct by_hash *by_hash; /* the same, sorted by hash */
    uint32_t *left;          /* reads not yet taken, by value: a Fenwick tree */
};

static int seen_compare(const void *a, const void *b)
{
    const struct seen *x = a;
    const struct seen *y = b;
    return slice_compare(x->data, y->data);
}

static bool begins_with(struct slice whole, struct slice part)
{
    return whole.size >= part.size &&
           (part.size == 0 || memcmp(whole.data, part.data, part.size) == 0);
}

static bool op_is_answered(const struct linear_op *op)
{
    return !op->unknown && !op->conflict;
}

static void key_sort(struct key *k)
{
    uint32_t n = k->count;
    k->count = 0;
    qsort(k->seen, n, sizeof *k->seen, seen_compare);
    for (uint32_t i = 0; i < n; i++) {
        if (k->count == 0 ||
            slice_compare(k->seen[k->count - 1].data, k->seen[i].data) != 0) {
            k->seen[k->count++] = k->seen[i];
        }
    }
}

/* Where a read shows `token`: the bytes before it and it. Values that are a
 * beginning of the next one show nothing more. */
static bool key_shows(const struct key *k, struct slice token,
                      struct slice *through)
{
    for (uint32_t i = 0; i < k->count; i++) {
        struct slice v = k->seen[i].data;
        if (i + 1 < k->count && begins_with(k->seen[i + 1].data, v)) {
            continue;
        }
        const uint8_t *at = memmem(v.data, v.size, token.data, token.size);
        if (at != NULL) {
            *through = slice_of(v.data, (size_t)(at - v.data) + token.size);
            return true;
        }
    }
    return false;
}

static bool part_writes_bytes(const struct linear_part *p)
{
    return (p->kind == LINEAR_PUT || p->kind == LINEAR_APPEND) &&
           p->data.size > 0;
}

static void key_collect_reads(struct key *k, uint32_t which,
                              const struct linear_op *ops, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t p = 0; p < ops[i].part_count; p++) {
            const struct linear_part *part = &ops[i].parts[p];
            if (part->kind == LINEAR_GET && part->key == which &&
                part->exists && part->data.size > 0 &&
                op_is_answered(&ops[i])) {
                k->seen[k->count++].data = part->data;
            }
        }
    }
    key_sort(k);
}

static void key_collect_steps(struct key *k, uint32_t which,
                              const struct linear_op *ops, uint32_t count)
{
    uint32_t n = k->count;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t p = 0; p < ops[i].part_count; p++) {
            const struct linear_part *part = &ops[i].parts[p];
            struct slice through;
            if (part->key == which && part_writes_bytes(part) &&
                key_shows(k, part->data, &through)) {
                k->seen[n++].data = through;
            }
        }
    }
    k->count = n;
    key_sort(k);
}

static int by_hash_compare(const void *a, const void *b)
{
    const struct by_hash *x = a;
    const struct by_hash *y = b;
    return (x->hash > y->hash) - (x->hash < y->hash);
}

static void key_index(struct key *k)
{
    k->by_hash = mem_array(k->count + 1, sizeof *k->by_hash);
    k->left = mem_array(k->count + 1, sizeof *k->left);
    for (uint32_t i = 0; i < k->count; i++) {
        struct seen *seen = &k->seen[i];
        seen->value = linear_value_of(seen->data);
        seen->end = i + 1;
        while (seen->end < k->count &&
               begins_with(k->seen[seen->end].data, seen->data)) {
            seen->end++;
        }
        k->by_hash[i] = (struct by_hash){seen->value.hash, i};
    }
    qsort(k->by_hash, k->count, sizeof *k->by_hash, by_hash_compare);
}

static void key_init(struct key *k, uint32_t which, const struct linear_op *ops,
                     uint32_t count)
{
    k->seen = mem_array(2 * (size_t)count * LINEAR_PARTS + 1, sizeof *k->seen);
    key_collect_reads(k, which, ops, count);
    key_collect_steps(k, which, ops, count);
    key_index(k);
}

static void key_fini(struct key *k)
{
    mem_free(k->seen);
    mem_free(k->by_hash);
    mem_free(k->left);
}

static uint32_t key_find(const struct key *k, struct slice data)
{
    struct seen wanted = {.data = data};
    const struct seen *at =
        bsearch(&wanted, k->seen, k->count, sizeof *k->seen, seen_compare);
    CHECK(at != NULL);
    return (uint32_t)(at - k->seen);
}

/* NULL when it leads to nothing that a read shows. */
static const struct seen *key_of_value(const struct key *k,
                                       const struct linear_value *v)
{
    uint32_t low = 0;
    uint32_t high = k->count;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (k->by_hash[mid].hash < v->hash) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    if (low == k->count || k->by_hash[low].hash != v->hash) {
        return NULL;
    }
    const struct seen *found = &k->seen[k->by_hash[low].seen];
    return value_same(found->value, *v) ? found : NULL;
}

/* `by`: 1 or UINT32_MAX, which is -1. */
static void key_count(struct key *k, uint32_t seen, uint32_t by)
{
    for (uint32_t i = seen + 1; i <= k->count; i += i & (~i + 1)) {
        k->left[i] += by;
    }
}

static uint32_t key_left_below(const struct key *k, uint32_t end)
{
    uint32_t sum = 0;
    for (uint32_t i = end; i > 0; i -= i & (~i + 1)) {
        sum += k->left[i];
    }
    return sum;
}

static bool key_is_needed(const struct key *k, const struct seen *seen)
{
    return key_left_below(k, seen->end) >
           key_left_below(k, (uint32_t)(seen - k->seen));
}

/* Whether the lengths that appends and compares report could depend on what no
 * read shows. */
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
    struct entry *match; /* a call's return; NULL without an answer */
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

static void entry_out(struct entry *e)
{
    if (e == NULL) {
        return;
    }
    e->prev->next = e->next;
    if (e->next != NULL) {
        e->next->prev = e->prev;
    }
}

static void entry_in(struct entry *e)
{
    if (e == NULL) {
        return;
    }
    e->prev->next = e;
    if (e->next != NULL) {
        e->next->prev = e;
    }
}

static void entry_lift(struct entry *call)
{
    entry_out(call);
    entry_out(call->match);
}

static void entry_unlift(struct entry *call)
{
    entry_in(call->match);
    entry_in(call);
}

/* ---- what was tried before: (set, state) in an open hash table ---- */

struct slot {
    uint64_t hash;
    uint64_t item; /* index + 1 into items; 0: empty */
};

struct memory {
    uint32_t words; /* of a set */
    struct slot *slots;
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
static struct slot *memory_slot(struct memory *m, uint64_t hash,
                                const uint8_t *item)
{
    size_t size = item_size(m);
    size_t at = hash & (m->slot_count - 1);
    while (m->slots[at].item != 0 &&
           (m->slots[at].hash != hash ||
            memcmp(m->items.data + (m->slots[at].item - 1) * size, item,
                   size) != 0)) {
        at = (at + 1) & (m->slot_count - 1);
    }
    return &m->slots[at];
}

static void memory_grow(struct memory *m)
{
    struct slot *old = m->slots;
    size_t old_count = m->slot_count;
    m->slot_count = old_count == 0 ? 1024 : 2 * old_count;
    m->slots = mem_array(m->slot_count, sizeof *m->slots);
    for (size_t i = 0; i < old_count; i++) {
        size_t at = old[i].hash & (m->slot_count - 1);
        while (old[i].item != 0 && m->slots[at].item != 0) {
            at = (at + 1) & (m->slot_count - 1);
        }
        if (old[i].item != 0) {
            m->slots[at] = old[i];
        }
    }
    mem_free(old);
}

/* False when it was there already. `set_hash` is of the set: kept up by whoever
 * changes it, an operation at a time. */
static bool memory_add(struct memory *m, const struct state *s,
                       const uint64_t *set, uint64_t set_hash)
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
    uint64_t hash = hash_words(item, sizeof *s) ^ set_hash;
    struct slot *slot = memory_slot(m, hash, item);
    if (slot->item != 0) {
        return false;
    }
    m->items.size = before + size;
    *slot = (struct slot){.hash = hash, .item = ++m->item_count};
    return true;
}

/* ---- the search ---- */

struct frame {
    struct entry *call;
    struct state state; /* before it */
    bool forced;        /* (1): nothing else is tried in its place */
};

struct search {
    struct key keys[LINEAR_KEYS];
    struct op *ops;
    uint32_t op_count;
    uint32_t known_left; /* operations with an answer, not yet explained */
    struct entry *entries;
    struct entry head;    /* calls and returns of what has an answer */
    struct entry unknown; /* calls of what has none */
    struct frame *stack;
    uint32_t depth;
    uint64_t *set; /* of operations taken */
    uint64_t set_hash;
    struct memory memory;
    struct state state;
    /* The most operations explained at once, and what came next then. */
    uint32_t best_depth;
    uint32_t best_stuck;
    struct state best_state;
};

static void set_flip(struct search *s, uint32_t op)
{
    s->set[op / 64] ^= UINT64_C(1) << op % 64;
    struct rng of_op = {.state = op};
    s->set_hash ^= rng_next(&of_op);
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

static bool reads_value(const struct op *op, uint32_t i)
{
    const struct linear_part *p = &op->from->parts[i];
    return p->kind == LINEAR_GET && p->exists && p->data.size > 0 &&
           op_is_answered(op->from);
}

/* Does any read show what it wrote? Deletes and empty values leave no trace, so
 * they count as shown. */
static bool op_is_shown(const struct op *op)
{
    for (uint32_t i = 0; i < op->from->part_count; i++) {
        enum linear_kind kind = op->from->parts[i].kind;
        bool writes = kind == LINEAR_PUT || kind == LINEAR_APPEND ||
                      kind == LINEAR_DELETE;
        if (writes &&
            (op->parts[i].is_shown || op->from->parts[i].data.size == 0)) {
            return true;
        }
    }
    return false;
}

static void part_take(struct search *s, struct part *to,
                      const struct linear_part *p)
{
    CHECK(p->key < LINEAR_KEYS);
    to->kind = p->kind;
    to->key = p->key;
    to->number = p->number;
    to->data = p->data;
    if (p->kind != LINEAR_GET || p->exists) {
        to->value = linear_value_of(p->data);
    }
    struct slice through;
    if (part_writes_bytes(p) &&
        key_shows(&s->keys[p->key], p->data, &through)) {
        to->is_shown = true;
        to->after = linear_value_of(
            slice_of(through.data, through.size - p->data.size));
    }
}

/* What was read without an answer tells nothing. */
static bool part_matters(const struct linear_op *op, uint32_t i)
{
    return !op->unknown || op->parts[i].kind != LINEAR_GET;
}

static void op_take(struct search *s, struct op *to,
                    const struct linear_op *from)
{
    *to = (struct op){.from = from,
                      .only_reads = from->conflict || only_reads(from)};
    for (uint32_t i = 0; i < from->part_count; i++) {
        part_take(s, &to->parts[i], &from->parts[i]);
        to->touches |= part_matters(from, i) ? 1u << from->parts[i].key : 0;
        if (reads_value(to, i)) {
            struct key *k = &s->keys[from->parts[i].key];
            to->parts[i].seen = key_find(k, from->parts[i].data);
            key_count(k, to->parts[i].seen, 1);
        }
    }
}

/* Leaves out what cannot matter: a read without an answer; a write without one
 * whose bytes nobody ever saw (take it out of an order that explains the rest,
 * and the rest is still explained), unless a length could tell of it. */
static void search_take_ops(struct search *s, const struct linear_op *ops,
                            uint32_t count)
{
    bool lengths = lengths_matter(ops, count);
    for (uint32_t k = 0; k < LINEAR_KEYS; k++) {
        key_init(&s->keys[k], k, ops, count);
    }
    s->ops = mem_array(count + 1, sizeof *s->ops);
    for (uint32_t i = 0; i < count; i++) {
        struct op *op = &s->ops[s->op_count];
        op_take(s, op, &ops[i]);
        if (ops[i].unknown &&
            (op->only_reads || (!lengths && !op_is_shown(op)))) {
            continue;
        }
        s->known_left += !ops[i].unknown;
        s->op_count++;
    }
}

static void search_sort(struct search *s, uint32_t *count)
{
    uint32_t n = 0;
    s->entries = mem_array(2 * s->op_count + 1, sizeof *s->entries);
    for (uint32_t i = 0; i < s->op_count; i++) {
        const struct linear_op *op = s->ops[i].from;
        s->entries[n++] = (struct entry){.time = op->call, .op = i};
        if (!op->unknown) {
            s->entries[n++] =
                (struct entry){.time = op->ret, .op = i, .is_return = true};
        }
    }
    qsort(s->entries, n, sizeof *s->entries, entry_compare);
    *count = n;
}

static bool part_is_twin(const struct part *p, const struct part *q)
{
    bool writes_bytes = p->kind == LINEAR_PUT || p->kind == LINEAR_APPEND;
    bool seen = writes_bytes && (p->is_shown || q->is_shown);
    bool same_number = p->kind != LINEAR_CMP_LENGTH || p->number == q->number;
    return p->kind == q->kind && p->key == q->key && !seen && same_number &&
           (!writes_bytes || p->data.size == q->data.size);
}

/* The first part from `i` on that matters; part_count: none. */
static uint32_t part_from(const struct op *op, uint32_t i)
{
    while (i < op->from->part_count && !part_matters(op->from, i)) {
        i++;
    }
    return i;
}

static bool op_is_twin(const struct op *a, const struct op *b)
{
    uint32_t i = part_from(a, 0);
    uint32_t j = part_from(b, 0);
    while (i < a->from->part_count && j < b->from->part_count &&
           part_is_twin(&a->parts[i], &b->parts[j])) {
        i = part_from(a, i + 1);
        j = part_from(b, j + 1);
    }
    return i == a->from->part_count && j == b->from->part_count;
}

/* (5) `e` is the last of the list. */
static void twin_find(struct search *s, const struct entry *e)
{
    struct op *op = &s->ops[e->op];
    for (const struct entry *before = e->prev;
         op->twin == 0 && before != &s->unknown; before = before->prev) {
        op->twin = op_is_twin(op, &s->ops[before->op]) ? before->op + 1 : 0;
    }
}

static void search_link(struct search *s)
{
    uint32_t n = 0;
    search_sort(s, &n);
    struct entry **calls = mem_array(s->op_count + 1, sizeof *calls);
    struct entry *last = &s->head;
    struct entry *last_unknown = &s->unknown;
    for (uint32_t i = 0; i < n; i++) {
        struct entry *e = &s->entries[i];
        struct entry **end =
            s->ops[e->op].from->unknown ? &last_unknown : &last;
        (*end)->next = e;
        e->prev = *end;
        *end = e;
        if (end == &last_unknown) {
            twin_find(s, e);
        }
        if (e->is_return) {
            calls[e->op]->match = e;
        } else {
            calls[e->op] = e;
        }
    }
    mem_free(calls);
}

static void count_reads(struct search *s, const struct op *op, uint32_t by)
{
    for (uint32_t i = 0; i < op->from->part_count; i++) {
        if (reads_value(op, i)) {
            key_count(&s->keys[op->parts[i].key], op->parts[i].seen, by);
        }
    }
}

/* (3), with the reads of the operation itself taken off already. A value that
 * grew is not destroyed. */
static bool destroys_needed(const struct search *s, const struct state *next)
{
    for (uint32_t i = 0; i < LINEAR_KEYS; i++) {
        const struct key *k = &s->keys[i];
        const struct linear_value *v = &s->state.keys[i];
        if (!v->exists || v->length == 0 || value_same(*v, next->keys[i])) {
            continue;
        }
        const struct seen *was = key_of_value(k, v);
        const struct seen *is = key_of_value(k, &next->keys[i]);
        bool grew =
            was != NULL && is != NULL && is > was && is < k->seen + was->end;
        if (was != NULL && !grew && key_is_needed(k, was)) {
            return true;
        }
        /* It grew: but past what a read shows of it? */
        if (grew && key_left_below(k, was->end) - key_left_below(k, is->end) +
                            key_left_below(k, (uint32_t)(is - k->seen)) -
                            key_left_below(k, (uint32_t)(was - k->seen)) >
                        0) {
            return true;
        }
    }
    return false;
}

/* (4) */
static void forget_bytes(const struct search *s, struct state *state)
{
    for (uint32_t i = 0; i < LINEAR_KEYS; i++) {
        struct linear_value *v = &state->keys[i];
        if (v->exists && v->length > 0 &&
            key_of_value(&s->keys[i], v) == NULL) {
            v->hash = 0;
        }
    }
}

/* Does `op` replace the value of `key` without having looked at it? */
static bool overwrites(const struct op *op, uint32_t key)
{
    bool any = false;
    for (uint32_t i = 0; i < op->from->part_count; i++) {
        if (op->parts[i].key == key) {
            if (op->parts[i].kind != LINEAR_PUT &&
                op->parts[i].kind != LINEAR_DELETE) {
                return false;
            }
            any = true;
        }
    }
    return any && !op->from->conflict;
}

/* (6) */
static bool makes_last_useless(const struct search *s, const struct op *op)
{
    if (s->depth == 0) {
        return false;
    }
    const struct op *last = &s->ops[s->stack[s->depth - 1].call->op];
    for (uint32_t i = 0; i < last->from->part_count; i++) {
        enum linear_kind kind = last->parts[i].kind;
        bool writes = kind == LINEAR_PUT || kind == LINEAR_APPEND ||
                      kind == LINEAR_DELETE;
        if (writes && !overwrites(op, last->parts[i].key)) {
            return false;
        }
    }
    return last->from->unknown;
}

/* (7) */
static bool belongs_before_last(const struct search *s, const struct op *op)
{
    if (s->depth == 0) {
        return false;
    }
    const struct op *last = &s->ops[s->stack[s->depth - 1].call->op];
    bool in_order = op->from->unknown && op > last;
    return last->from->unknown && !in_order &&
           (last->touches & op->touches) == 0;
}

/* The first return: what was called after it cannot come before it. */
static struct entry *first_return(const struct search *s)
{
    struct entry *e = s->head.next;
    while (!e->is_return) {
        e = e->next;
    }
    return e;
}

static bool is_pointless(const struct search *s, const struct op *op)
{
    bool twin_waits =
        op->twin != 0 &&
        (s->set[(op->twin - 1) / 64] >> (op->twin - 1) % 64 & 1) == 0;
    return twin_waits || makes_last_useless(s, op) ||
           belongs_before_last(s, op);
}

static bool search_try(struct search *s, struct entry *e, struct state *next)
{
    const struct op *op = &s->ops[e->op];
    *next = s->state;
    if (is_pointless(s, op) || !op_step(op, next)) {
        return false;
    }
    count_reads(s, op, UINT32_MAX);
    if (!destroys_needed(s, next)) {
        forget_bytes(s, next);
        set_flip(s, e->op);
        if (memory_add(&s->memory, next, s->set, s->set_hash)) {
            return true;
        }
        set_flip(s, e->op);
    }
    count_reads(s, op, 1);
    return false;
}

/* Takes the call at `e` if it can happen now and leads somewhere new. */
static bool search_advance(struct search *s, struct entry *e)
{
    struct state next;
    if (!search_try(s, e, &next)) {
        return false;
    }
    s->stack[s->depth++] = (struct frame){
        .call = e, .state = s->state, .forced = s->ops[e->op].only_reads};
    s->state = next;
    s->known_left -= !s->ops[e->op].from->unknown;
    entry_lift(e);
    return true;
}

/* Takes the last one back. */
static struct frame search_back(struct search *s)
{
    struct frame f = s->stack[--s->depth];
    const struct op *op = &s->ops[f.call->op];
    s->state = f.state;
    s->known_left += !op->from->unknown;
    set_flip(s, f.call->op);
    count_reads(s, op, 1);
    entry_unlift(f.call);
    return f;
}

static void search_note_best(struct search *s, const struct entry *stuck)
{
    if (s->depth > s->best_depth || s->best_depth == 0) {
        s->best_depth = s->depth;
        s->best_stuck = stuck->op;
        s->best_state = s->state;
    }
}

/* What to try after `e`; NULL: nothing is left here. */
static struct entry *search_next(struct search *s, struct entry *e)
{
    if (e->is_return) {
        search_note_best(s, e);
        e = s->unknown.next;
    } else if (!s->ops[e->op].from->unknown) {
        return e->next;
    } else {
        e = e->next;
    }
    return e != NULL && e->time <= first_return(s)->time ? e : NULL;
}

/* (1): what only reads and holds now; else the first call. */
static struct entry *search_first(struct search *s)
{
    for (struct entry *e = s->head.next; e != NULL && !e->is_return;
         e = e->next) {
        struct state next = s->state;
        if (s->ops[e->op].only_reads && op_step(&s->ops[e->op], &next)) {
            return e;
        }
    }
    return s->head.next;
}

static enum linear_verdict search_run(struct search *s, uint64_t steps)
{
    struct entry *e = search_first(s);
    while (s->known_left > 0) {
        if (steps-- == 0) {
            return LINEAR_BUDGET;
        }
        bool forced = false;
        if (e != NULL && !e->is_return) {
            if (search_advance(s, e)) {
                e = search_first(s);
                continue;
            }
            struct state next = s->state;
            /* It led nowhere before, so nothing here does. */
            forced = s->ops[e->op].only_reads && op_step(&s->ops[e->op], &next);
        }
        e = e != NULL && !forced ? search_next(s, e) : NULL;
        while (e == NULL) {
            if (s->depth == 0) {
                return LINEAR_BAD;
            }
            struct frame f = search_back(s);
            e = f.forced ? NULL : search_next(s, f.call);
        }
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
    if (linear_follow(ops, count)) {
        return LINEAR_OK;
    }
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
    for (uint32_t k = 0; k < LINEAR_KEYS; k++) {
        key_fini(&s.keys[k]);
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
