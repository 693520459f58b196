/* Calls that wait. Invariants:
 *
 *  1. A call is in the hash and in the heap, and in its connection's list if
 *     it has one; it leaves all of them before its reply function is called,
 *     so that function may call, cancel and fail anything.
 *  2. The timer runs for the nearest deadline or an earlier one. It is not
 *     moved when the nearest call is answered: most calls are answered long
 *     before their deadline, and then one timer serves thousands of them. */
#include "transport/rpc_int.h"

#include <utlist.h>

#include "base/check.h"

static void heap_put(struct calls *c, size_t at, struct call *call)
{
    c->heap[at] = call;
    call->heap_index = at;
}

static void heap_up(struct calls *c, size_t at)
{
    struct call *call = c->heap[at];
    while (at > 0) {
        size_t parent = (at - 1) / 2;
        if (c->heap[parent]->deadline_us <= call->deadline_us) {
            break;
        }
        heap_put(c, at, c->heap[parent]);
        at = parent;
    }
    heap_put(c, at, call);
}

static void heap_down(struct calls *c, size_t at)
{
    struct call *call = c->heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= c->heap_count) {
            break;
        }
        if (child + 1 < c->heap_count &&
            c->heap[child + 1]->deadline_us < c->heap[child]->deadline_us) {
            child++;
        }
        if (call->deadline_us <= c->heap[child]->deadline_us) {
            break;
        }
        heap_put(c, at, c->heap[child]);
        at = child;
    }
    heap_put(c, at, call);
}

static void heap_add(struct calls *c, struct call *call)
{
    if (c->heap_count == c->heap_capacity) {
        c->heap_capacity = c->heap_capacity == 0 ? 64 : 2 * c->heap_capacity;
        c->heap = mem_resize(c->heap, c->heap_capacity * sizeof(struct call *));
    }
    heap_put(c, c->heap_count, call);
    heap_up(c, c->heap_count++);
}

static void heap_remove(struct calls *c, const struct call *call)
{
    size_t at = call->heap_index;
    CHECK(at < c->heap_count && c->heap[at] == call);
    struct call *last = c->heap[--c->heap_count];
    if (last != call) {
        heap_put(c, at, last);
        heap_up(c, at);
        heap_down(c, last->heap_index);
    }
}

static void call_remove(struct calls *c, struct call *call)
{
    HASH_DEL(c->by_number, call);
    heap_remove(c, call);
    if (call->conn != NULL) {
        DL_DELETE(call->conn->calls, call);
    }
}

void calls_answer(struct calls *c, struct call *call, enum err rc,
                  struct slice body)
{
    call_remove(c, call);
    call->reply(call->arg, rc, rc == ERR_OK ? body : slice_of(NULL, 0));
    mem_free(call);
}

static void timer_set(struct calls *c, uint64_t now_us)
{
    if (c->heap_count == 0 || c->heap[0]->deadline_us >= c->timer_due_us) {
        return;
    }
    c->timer_due_us = c->heap[0]->deadline_us;
    env_timer_start(c->env, &c->timer,
                    c->timer_due_us > now_us ? c->timer_due_us - now_us : 0);
}

static void deadline_came(struct env_timer *timer)
{
    struct calls *c =
        (struct calls *)((char *)timer - offsetof(struct calls, timer));
    uint64_t now_us = env_now_us(c->env);
    c->timer_due_us = UINT64_MAX;
    while (c->heap_count > 0 && c->heap[0]->deadline_us <= now_us) {
        struct call *call = c->heap[0];
        calls_answer(c, call, call->verdict, slice_of(NULL, 0));
    }
    timer_set(c, now_us);
}

void calls_init(struct calls *c, struct env *env)
{
    c->env = env;
    c->timer.fire = deadline_came;
    c->timer_due_us = UINT64_MAX;
}

void calls_free(struct calls *c)
{
    while (c->heap_count > 0) {
        struct call *call = c->heap[0];
        call_remove(c, call);
        mem_free(call);
    }
    env_timer_stop(c->env, &c->timer);
    mem_free(c->heap);
}

uint64_t calls_add(struct calls *c, struct conn *conn, enum err verdict,
                   uint64_t delay_us, net_reply_fn *reply, void *arg)
{
    uint64_t now_us = env_now_us(c->env);
    struct call *call = mem_alloc(sizeof *call);
    call->number = ++c->number_last;
    call->conn = conn;
    call->verdict = verdict;
    call->deadline_us = now_us + delay_us;
    call->reply = reply;
    call->arg = arg;
    HASH_ADD(hh, c->by_number, number, sizeof call->number, call);
    heap_add(c, call);
    if (conn != NULL) {
        DL_APPEND(conn->calls, call);
    }
    timer_set(c, now_us);
    return call->number;
}

struct call *calls_find(struct calls *c, uint64_t number)
{
    struct call *call;
    HASH_FIND(hh, c->by_number, &number, sizeof number, call);
    return call;
}

void calls_cancel(struct calls *c, uint64_t number)
{
    struct call *call = calls_find(c, number);
    if (call != NULL) {
        call_remove(c, call);
        mem_free(call);
    }
}

void calls_fail_all(struct calls *c, struct conn *conn)
{
    while (conn->calls != NULL) {
        calls_answer(c, conn->calls, ERR_CLOSED, slice_of(NULL, 0));
    }
}
