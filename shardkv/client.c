/* The clerk for callers that block. Threads: the client's own runs the loop and
 * everything of the clerk's; the callers' put calls into a list and sleep.
 *
 *  1. `lock` guards the lists, `closing`, and txn->arg (the call of a running
 *     transaction). It is never held over a call into the clerk.
 *  2. Many calls that come together cost one wake-up of the loop: only the
 *     first of them posts.
 *  3. A call is on its caller's stack: the loop's thread does not touch it
 *     after call_wake(). */
#include "shardkv/client.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <utlist.h>

#include "base/check.h"
#include "shardkv/clerk_int.h"
#include "transport/rpc.h"

struct skv_call {
    struct skv_client *client;
    struct skv_txn *txn;          /* one of the two */
    struct skv_client_task *task; /* is set */
    pthread_mutex_t mutex;
    pthread_cond_t woken;
    bool done;        /* guarded by mutex */
    bool cancel_sent; /* it is in client->cancels */
    enum err rc;      /* of a task: ERR_CLOSED when it did not run */
    struct skv_call *next, *prev;               /* client->submitted */
    struct skv_call *next_cancel, *prev_cancel; /* client->cancels */
};

struct skv_client {
    struct net_loop *loop;
    struct env *env;
    struct tls_context *tls;
    struct rpc *rpc;
    struct skv_clerk *clerk;
    pthread_t thread;

    pthread_mutex_t lock;
    pthread_cond_t has_config;
    struct skv_call *submitted;
    struct skv_call *cancels;
    struct env_job wake;
    bool wake_posted;
    bool closing;
    uint32_t shard_count; /* 0 until the first configuration */
};

/* ---- the loop's side ---- */

static void call_wake(struct skv_call *call)
{
    pthread_mutex_lock(&call->mutex);
    call->done = true;
    pthread_cond_signal(&call->woken);
    pthread_mutex_unlock(&call->mutex);
}

static void txn_done(struct skv_txn *txn)
{
    struct skv_call *call = txn->arg;
    struct skv_client *c = call->client;
    pthread_mutex_lock(&c->lock);
    if (call->cancel_sent) {
        DL_DELETE2(c->cancels, call, prev_cancel, next_cancel);
    }
    txn->arg = NULL;
    pthread_mutex_unlock(&c->lock);
    call_wake(call);
}

static void call_begin(struct skv_call *call)
{
    struct skv_client *c = call->client;
    if (call->task != NULL) {
        call->task->fn(call->task, c->env, rpc_net(c->rpc), c->clerk->ctl);
        return;
    }
    call->txn->done = txn_done;
    skv_clerk_run(c->clerk, call->txn);
}

static struct skv_call *submitted_take(struct skv_client *c)
{
    pthread_mutex_lock(&c->lock);
    struct skv_call *calls = c->submitted;
    c->submitted = NULL;
    c->wake_posted = false;
    pthread_mutex_unlock(&c->lock);
    return calls;
}

static struct skv_txn *cancel_take(struct skv_client *c)
{
    struct skv_txn *txn = NULL;
    pthread_mutex_lock(&c->lock);
    struct skv_call *call = c->cancels;
    if (call != NULL) {
        DL_DELETE2(c->cancels, call, prev_cancel, next_cancel);
        call->cancel_sent = false;
        txn = call->txn;
    }
    pthread_mutex_unlock(&c->lock);
    return txn;
}

/* A call that was submitted and cancelled together is begun first, and then
 * cancelled: so a cancel finds its transaction in the clerk. */
static void wake(struct env_job *job)
{
    struct skv_client *c =
        (struct skv_client *)(void *)((char *)job -
                                      offsetof(struct skv_client, wake));
    struct skv_call *call = NULL;
    struct skv_call *next = NULL;
    struct skv_call *calls = submitted_take(c);
    DL_FOREACH_SAFE(calls, call, next)
    {
        call_begin(call);
    }
    for (struct skv_txn *txn = cancel_take(c); txn != NULL;
         txn = cancel_take(c)) {
        skv_clerk_cancel(c->clerk, txn);
    }
}

static void on_config(void *arg, const struct ctl_config *config)
{
    struct skv_client *c = arg;
    pthread_mutex_lock(&c->lock);
    c->shard_count = config->shards_count;
    pthread_cond_broadcast(&c->has_config);
    pthread_mutex_unlock(&c->lock);
}

static void *thread_main(void *arg)
{
    struct skv_client *c = arg;
    net_loop_run(c->loop);
    return NULL;
}

/* ---- the callers' side ---- */

/* With the lock held. */
static void wake_post(struct skv_client *c)
{
    if (!c->wake_posted) {
        c->wake_posted = true;
        c->wake.done = wake;
        env_post(c->env, &c->wake);
    }
}

static void call_wait(struct skv_call *call)
{
    pthread_mutex_lock(&call->mutex);
    while (!call->done) {
        pthread_cond_wait(&call->woken, &call->mutex);
    }
    pthread_mutex_unlock(&call->mutex);
    pthread_cond_destroy(&call->woken);
    pthread_mutex_destroy(&call->mutex);
}

static void call_init(struct skv_call *call, struct skv_client *c)
{
    *call = (struct skv_call){.client = c};
    pthread_mutex_init(&call->mutex, NULL);
    pthread_cond_init(&call->woken, NULL);
}

static bool is_cancelled(const struct skv_txn *txn)
{
    return __atomic_load_n(&txn->cancelled, __ATOMIC_ACQUIRE) != 0;
}

/* ERR_OK: it was submitted, and will be answered. */
static enum err call_submit(struct skv_call *call)
{
    struct skv_client *c = call->client;
    enum err rc = ERR_OK;
    pthread_mutex_lock(&c->lock);
    if (c->closing) {
        rc = ERR_CLOSED;
    } else if (call->txn != NULL && is_cancelled(call->txn)) {
        rc = ERR_INTERRUPTED;
    } else {
        if (call->txn != NULL) {
            call->txn->arg = call;
        }
        DL_APPEND(c->submitted, call);
        wake_post(c);
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static enum err txn_refuse(struct skv_txn *txn, enum err rc)
{
    txn->rc = rc;
    txn->failed = 0;
    txn->results =
        arena_array(&txn->arena, txn->item_count, sizeof *txn->results);
    return rc;
}

enum err skv_client_run(struct skv_client *c, struct skv_txn *txn)
{
    struct skv_call call;
    call_init(&call, c);
    call.txn = txn;
    enum err rc = call_submit(&call);
    if (rc != ERR_OK) {
        return txn_refuse(txn, rc);
    }
    call_wait(&call);
    return txn->rc;
}

void skv_client_cancel(struct skv_client *c, struct skv_txn *txn)
{
    pthread_mutex_lock(&c->lock);
    __atomic_store_n(&txn->cancelled, 1, __ATOMIC_RELEASE);
    struct skv_call *call = txn->arg;
    if (call != NULL && !call->cancel_sent && !c->closing) {
        call->cancel_sent = true;
        DL_APPEND2(c->cancels, call, prev_cancel, next_cancel);
        wake_post(c);
    }
    pthread_mutex_unlock(&c->lock);
}

uint32_t skv_client_shard_count(const struct skv_client *c)
{
    struct skv_client *mutable = (struct skv_client *)(uintptr_t)c;
    pthread_mutex_lock(&mutable->lock);
    uint32_t count = c->shard_count;
    pthread_mutex_unlock(&mutable->lock);
    return count;
}

void skv_client_task_run(struct skv_client *c, struct skv_client_task *task)
{
    struct skv_call call;
    call_init(&call, c);
    call.task = task;
    task->impl = &call;
    if (call_submit(&call) == ERR_OK) {
        call_wait(&call);
    }
}

void skv_client_task_finish(struct skv_client_task *task)
{
    call_wake(task->impl);
}

/* ---- life ---- */

static enum err wait_for_config(struct skv_client *c, uint32_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    int waited = 0;
    pthread_mutex_lock(&c->lock);
    while (c->shard_count == 0 && waited == 0) {
        waited = timeout_ms == 0
                     ? pthread_cond_wait(&c->has_config, &c->lock)
                     : pthread_cond_timedwait(&c->has_config, &c->lock, &until);
    }
    bool found = c->shard_count != 0;
    pthread_mutex_unlock(&c->lock);
    return found ? ERR_OK : ERR_TIMEDOUT;
}

static void locks_init(struct skv_client *c)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->has_config, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void say_unreachable(const struct skv_client_config *config,
                            uint32_t timeout_ms, char *problem, size_t size)
{
    int used = snprintf(problem, size,
                        "no configuration within %u ms from the controllers",
                        timeout_ms);
    for (uint32_t i = 0; i < config->controller_count; i++) {
        if (used < 0 || (size_t)used >= size) {
            return;
        }
        used += snprintf(problem + used, size - (size_t)used, "%s %s",
                         i == 0 ? "" : ",", config->controllers[i]);
    }
    if (used > 0 && (size_t)used < size) {
        snprintf(problem + used, size - (size_t)used, ": are they running?");
    }
}

/* The order is that of the pieces: each stands on those before it. */
static enum err client_open(struct skv_client *c,
                            const struct skv_client_config *config,
                            char *problem, size_t problem_size)
{
    enum err rc = tls_context_new(config->certs_dir, config->identity, &c->tls,
                                  problem, problem_size);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = net_loop_new(&c->loop);
    if (rc == ERR_OK) {
        rc = rpc_new(c->loop, c->tls, &c->rpc);
    }
    if (rc != ERR_OK) {
        snprintf(problem, problem_size, "cannot start the network: %s",
                 err_text(rc));
        return rc;
    }
    c->env = net_loop_env(c->loop);
    /* Nobody runs the loop yet, so this thread is the loop's. */
    c->clerk = skv_clerk_new(c->env, rpc_net(c->rpc), config->controllers,
                             config->controller_count);
    c->clerk->on_config = on_config;
    c->clerk->on_config_arg = c;
    if (pthread_create(&c->thread, NULL, thread_main, c) != 0) {
        snprintf(problem, problem_size, "cannot make a thread");
        skv_clerk_free(c->clerk);
        c->clerk = NULL;
        return ERR_NOMEM;
    }
    return ERR_OK;
}

/* What was submitted and not begun when the loop stopped. */
static void submitted_refuse(struct skv_client *c)
{
    struct skv_call *call = NULL;
    struct skv_call *next = NULL;
    struct skv_call *calls = submitted_take(c);
    DL_FOREACH_SAFE(calls, call, next)
    {
        if (call->txn != NULL) {
            (void)txn_refuse(call->txn, ERR_CLOSED);
            txn_done(call->txn);
        } else {
            call_wake(call);
        }
    }
}

static void client_close(struct skv_client *c)
{
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_mutex_unlock(&c->lock);
    if (c->clerk != NULL) {
        net_loop_stop(c->loop);
        pthread_join(c->thread, NULL);
        skv_clerk_free(c->clerk);
        submitted_refuse(c);
    }
    if (c->rpc != NULL) {
        rpc_free(c->rpc);
    }
    if (c->loop != NULL) {
        net_loop_free(c->loop);
    }
    if (c->tls != NULL) {
        tls_context_free(c->tls);
    }
    pthread_cond_destroy(&c->has_config);
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

enum err skv_client_new(const struct skv_client_config *config,
                        uint32_t timeout_ms, struct skv_client **out,
                        char *problem, size_t problem_size)
{
    if (config->controller_count == 0 || config->controller_count > 16) {
        snprintf(problem, problem_size, "no controllers were named");
        return ERR_INVALID;
    }
    struct skv_client *c = mem_alloc(sizeof *c);
    locks_init(c);
    enum err rc = client_open(c, config, problem, problem_size);
    if (rc == ERR_OK && !config->at_once) {
        rc = wait_for_config(c, timeout_ms);
        if (rc != ERR_OK) {
            say_unreachable(config, timeout_ms, problem, problem_size);
        }
    }
    if (rc != ERR_OK) {
        client_close(c);
        return rc;
    }
    *out = c;
    return ERR_OK;
}

void skv_client_free(struct skv_client *c)
{
    client_close(c);
}
