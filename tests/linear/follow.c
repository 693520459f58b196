/* Whether the order in which writes were seen explains a history: a walk along
 * it, where the search of linear.c would have to try others. It takes bytes for
 * what they are, so it shares nothing with that search but the question.
 *
 *  1. What is taken next was called before anything that is left returned: so
 *     the order that it finds is one in real time.
 *  2. What only reads is taken as soon as it holds: it changes nothing.
 *  3. A write that nobody saw, and that was answered, has its place when
 * nothing else can go on. What has no answer, and nobody saw, did not happen.
 */
#include "tests/linear/linear.h"

#include <stdlib.h>
#include <string.h>

struct value {
    bool exists;
    struct buf bytes;
};

struct walk {
    uint32_t count;
    const struct linear_op **by_call, **by_return; /* those with an answer */
    const struct linear_op **by_rank;
    uint32_t answered, ranked;
    uint32_t called, returned, written; /* how far each is */
    bool *taken;                        /* by position in `first` */
    const struct linear_op *first;
    const struct linear_op **open; /* called, without a rank, not yet taken */
    uint32_t open_count;
    struct value values[LINEAR_KEYS];
};

static bool op_writes(const struct linear_op *op)
{
    bool writes = false;
    for (uint32_t i = 0; i < op->part_count; i++) {
        writes = writes || op->parts[i].kind == LINEAR_PUT ||
                 op->parts[i].kind == LINEAR_APPEND ||
                 op->parts[i].kind == LINEAR_DELETE;
    }
    return writes && !op->conflict;
}

static bool op_has_place(const struct linear_op *op)
{
    return op->rank != 0 && op_writes(op);
}

/* ---- one operation ---- */

static bool part_holds(const struct linear_part *p, const struct value *v)
{
    if (p->kind == LINEAR_GET) {
        return p->exists == v->exists &&
               (!p->exists ||
                slice_compare(p->data, buf_slice(&v->bytes)) == 0);
    }
    return v->exists && p->number == v->bytes.size;
}

static uint64_t size_after(const struct linear_part *p, uint64_t size)
{
    switch (p->kind) {
    case LINEAR_PUT: return p->data.size;
    case LINEAR_APPEND: return size + p->data.size;
    case LINEAR_DELETE: return 0;
    default: return size;
    }
}

/* Is `op` explained by what is there now? An append says where it landed. */
static bool op_holds(const struct walk *w, const struct linear_op *op)
{
    if (op->conflict) {
        const struct linear_part *p = &op->parts[op->failed];
        return !part_holds(p, &w->values[p->key]);
    }
    uint64_t sizes[LINEAR_KEYS];
    for (uint32_t key = 0; key < LINEAR_KEYS; key++) {
        sizes[key] = w->values[key].bytes.size;
    }
    for (uint32_t i = 0; i < op->part_count; i++) {
        const struct linear_part *p = &op->parts[i];
        bool tells = p->kind == LINEAR_CMP_LENGTH ||
                     (p->kind == LINEAR_GET && !op->unknown);
        bool landed = p->kind != LINEAR_APPEND || op->unknown ||
                      p->number == sizes[p->key];
        if ((tells && !part_holds(p, &w->values[p->key])) || !landed) {
            return false;
        }
        sizes[p->key] = size_after(p, sizes[p->key]);
    }
    return true;
}

static void part_write(const struct linear_part *p, struct value *v)
{
    if (p->kind == LINEAR_PUT || p->kind == LINEAR_DELETE) {
        buf_clear(&v->bytes);
        v->exists = false;
    }
    if (p->kind == LINEAR_PUT || p->kind == LINEAR_APPEND) {
        buf_append(&v->bytes, p->data.data, p->data.size);
        v->exists = true;
    }
}

static void op_take(struct walk *w, const struct linear_op *op)
{
    for (uint32_t i = 0; i < op->part_count && !op->conflict; i++) {
        part_write(&op->parts[i], &w->values[op->parts[i].key]);
    }
    w->taken[op - w->first] = true;
}

/* ---- the walk ---- */

/* Until when what is taken next must have been called. */
static uint64_t first_return(struct walk *w)
{
    while (w->returned < w->answered &&
           w->taken[w->by_return[w->returned] - w->first]) {
        w->returned++;
    }
    return w->returned < w->answered ? w->by_return[w->returned]->ret : 0;
}

static void open_more(struct walk *w, uint64_t until)
{
    for (; w->called < w->answered && w->by_call[w->called]->call <= until;
         w->called++) {
        if (!op_has_place(w->by_call[w->called])) {
            w->open[w->open_count++] = w->by_call[w->called];
        }
    }
}

/* One of those without a rank, in the order of their calls. NULL: none. */
static const struct linear_op *open_take(struct walk *w, bool writes)
{
    for (uint32_t i = 0; i < w->open_count; i++) {
        const struct linear_op *op = w->open[i];
        if (op_writes(op) == writes && op_holds(w, op)) {
            w->open_count--;
            memmove(w->open + i, w->open + i + 1,
                    (w->open_count - i) * sizeof *w->open);
            return op;
        }
    }
    return NULL;
}

static const struct linear_op *next_written(struct walk *w, uint64_t until)
{
    if (w->written == w->ranked || w->by_rank[w->written]->call > until ||
        !op_holds(w, w->by_rank[w->written])) {
        return NULL;
    }
    return w->by_rank[w->written++];
}

static bool walk(struct walk *w)
{
    uint64_t until;
    while ((until = first_return(w)), w->returned < w->answered) {
        open_more(w, until);
        const struct linear_op *op = open_take(w, false);
        op = op != NULL ? op : next_written(w, until);
        op = op != NULL ? op : open_take(w, true);
        if (op == NULL) {
            return false;
        }
        op_take(w, op);
    }
    return true;
}

/* ---- the orders ---- */

static const struct linear_op *op_at(const void *place)
{
    return *(const struct linear_op *const *)place;
}

static int numbers_compare(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

static int call_compare(const void *a, const void *b)
{
    return numbers_compare(op_at(a)->call, op_at(b)->call);
}

static int return_compare(const void *a, const void *b)
{
    return numbers_compare(op_at(a)->ret, op_at(b)->ret);
}

static int rank_compare(const void *a, const void *b)
{
    return numbers_compare(op_at(a)->rank, op_at(b)->rank);
}

static void walk_init(struct walk *w, const struct linear_op *ops,
                      uint32_t count)
{
    *w = (struct walk){.first = ops};
    w->by_call = mem_array(count, sizeof *w->by_call);
    w->by_return = mem_array(count, sizeof *w->by_return);
    w->by_rank = mem_array(count, sizeof *w->by_rank);
    w->open = mem_array(count, sizeof *w->open);
    w->taken = mem_array(count, sizeof *w->taken);
    for (uint32_t i = 0; i < count; i++) {
        if (!ops[i].unknown) {
            w->by_call[w->answered] = w->by_return[w->answered] = &ops[i];
            w->answered++;
        }
        if (op_has_place(&ops[i])) {
            w->by_rank[w->ranked++] = &ops[i];
        }
    }
    qsort(w->by_call, w->answered, sizeof *w->by_call, call_compare);
    qsort(w->by_return, w->answered, sizeof *w->by_return, return_compare);
    qsort(w->by_rank, w->ranked, sizeof *w->by_rank, rank_compare);
}

static void walk_fini(struct walk *w)
{
    for (uint32_t key = 0; key < LINEAR_KEYS; key++) {
        buf_free(&w->values[key].bytes);
    }
    mem_free(w->by_call);
    mem_free(w->by_return);
    mem_free(w->by_rank);
    mem_free(w->open);
    mem_free(w->taken);
}

bool linear_follow(const struct linear_op *ops, uint32_t count)
{
    struct walk w;
    walk_init(&w, ops, count);
    bool explained = w.ranked > 0 && walk(&w);
    walk_fini(&w);
    return explained;
}
