/* Finishing what another clerk has left prepared (Sinfonia, section 4.4). Every
 * participant is asked to RESOLVE; it has voted for the transaction, or by this
 * votes against it for ever. So the votes are final, and whoever has them all
 * may say COMMIT or ABORT: two that resolve at once decide the same. */
#include "shardkv/clerk_int.h"

#include "base/check.h"
#include "base/log.h"

enum { HOLDERS_MAX = 1024, RESOLVES_MAX = 64, PATIENCE_US = 500000 };

struct resolve_leg {
    struct skv_leg leg;
    struct skv_resolve *resolve;
};

struct skv_resolve {
    struct skv_clerk *clerk;
    struct skv_holder *holder;
    struct resolve_leg *legs;
    uint32_t count;
    uint32_t waiting;
    bool aborted;   /* somebody voted against it */
    bool undecided; /* somebody could not tell */
};

static void resolve_free(struct skv_resolve *r)
{
    struct skv_clerk *c = r->clerk;
    for (uint32_t i = 0; i < r->count; i++) {
        skv_leg_stop(&r->legs[i].leg);
    }
    HASH_DEL(c->holders, r->holder);
    mem_free(r->holder);
    mem_free(r->legs);
    mem_free(r);
    c->resolve_count--;
}

static void resolve_send(struct skv_resolve *r, enum skv_phase phase,
                         skv_leg_fn *done)
{
    r->waiting = r->count;
    for (uint32_t i = 0; i < r->count; i++) {
        struct skv_leg *leg = &r->legs[i].leg;
        leg->request.phase = (uint8_t)phase;
        leg->done = done;
        skv_leg_start(leg);
    }
}

static struct skv_resolve *resolve_of(struct skv_leg *leg)
{
    return ((struct resolve_leg *)(void *)leg)->resolve; /* first member */
}

static void told(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_resolve *r = resolve_of(leg);
    (void)rc;
    (void)body;
    if (--r->waiting == 0) {
        resolve_free(r);
    }
}

static void resolve_decide(struct skv_resolve *r)
{
    const struct skv_holder_name *name = &r->holder->name;
    if (!r->aborted && r->undecided) {
        log_warn("shardkv",
                 "cannot resolve session=%016llx sequence=%llu: a participant "
                 "knows nothing of it; trying again later",
                 (unsigned long long)name->session,
                 (unsigned long long)name->sequence);
        resolve_free(r);
        return;
    }
    log_info("shardkv", "resolved session=%016llx sequence=%llu %s",
             (unsigned long long)name->session,
             (unsigned long long)name->sequence,
             r->aborted ? "abort" : "commit");
    resolve_send(r, r->aborted ? SKV_ABORT : SKV_COMMIT, told);
}

static void voted(struct skv_leg *leg, enum err rc, struct slice body)
{
    struct skv_resolve *r = resolve_of(leg);
    (void)body;
    if (rc == ERR_ABORTED) {
        r->aborted = true;
    } else if (rc != ERR_OK) {
        r->undecided = true;
    }
    if (--r->waiting == 0) {
        resolve_decide(r);
    }
}

static void resolve_start(struct skv_clerk *c, struct skv_holder *h,
                          const struct skv_reply *reply)
{
    struct skv_resolve *r = mem_alloc(sizeof *r);
    r->clerk = c;
    r->holder = h;
    r->count = reply->participants_count;
    r->legs = mem_array(r->count, sizeof *r->legs);
    for (uint32_t i = 0; i < r->count; i++) {
        r->legs[i].resolve = r;
        r->legs[i].leg = (struct skv_leg){
            .clerk = c,
            .method = SKV_METHOD_WRITE,
            .stubborn = true,
            .request = {.session = h->name.session,
                        .sequence = h->name.sequence,
                        .shard = reply->participants[i].shard},
        };
    }
    h->resolve = r;
    c->resolve_count++;
    resolve_send(r, SKV_RESOLVE, voted);
}

/* ---- holders ---- */

/* A lock that went away by itself leaves its name here; when there are too many
 * of them, all start anew. */
static void holders_prune(struct skv_clerk *c)
{
    struct skv_holder *h = NULL;
    struct skv_holder *next = NULL;
    HASH_ITER(hh, c->holders, h, next)
    {
        if (h->resolve == NULL) {
            HASH_DEL(c->holders, h);
            mem_free(h);
        }
    }
}

static struct skv_holder *holder_of(struct skv_clerk *c,
                                    const struct skv_holder_name *name)
{
    struct skv_holder *h = NULL;
    HASH_FIND(hh, c->holders, name, sizeof *name, h);
    if (h != NULL) {
        return h;
    }
    if (HASH_COUNT(c->holders) >= HOLDERS_MAX) {
        holders_prune(c);
    }
    h = mem_alloc(sizeof *h);
    h->name = *name;
    h->seen_us = env_now_us(c->env);
    HASH_ADD(hh, c->holders, name, sizeof h->name, h);
    return h;
}

static bool makes_sense(const struct skv_clerk *c, const struct skv_reply *r)
{
    bool good = r->holder_session != 0 && r->holder_sequence != 0 &&
                r->participants_count > 0;
    for (uint32_t i = 0; good && i < r->participants_count; i++) {
        good = r->participants[i].shard < c->config.shards_count;
    }
    return good;
}

void skv_holder_seen(struct skv_clerk *c, struct slice body)
{
    struct arena a = {0};
    struct skv_reply reply;
    if (skv_reply_decode(body, &a, &reply) == ERR_OK &&
        makes_sense(c, &reply)) {
        struct skv_holder_name name = {.session = reply.holder_session,
                                       .sequence = reply.holder_sequence};
        struct skv_holder *h = holder_of(c, &name);
        if (h->resolve == NULL && c->resolve_count < RESOLVES_MAX &&
            env_now_us(c->env) - h->seen_us >= PATIENCE_US &&
            !skv_session_is_mine(c, name.session, name.sequence)) {
            resolve_start(c, h, &reply);
        }
    }
    arena_free(&a);
}

void skv_holders_free(struct skv_clerk *c)
{
    struct skv_holder *h = NULL;
    struct skv_holder *next = NULL;
    HASH_ITER(hh, c->holders, h, next)
    {
        if (h->resolve != NULL) {
            resolve_free(h->resolve);
        }
    }
    holders_prune(c);
    CHECK(c->holders == NULL);
}
