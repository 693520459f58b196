/* Sessions and numbers. Invariants (RIFL, SOSP'15):
 *
 *  1. A number is given out once, and a request keeps its own over all retries.
 *  2. `first` never passes a number in use: a shard forgets the answers below
 *     it, and would refuse the retry.
 *  3. A session of which a shard has said ERR_EXPIRED is given to no new
 *     request. */
#include "shardkv/clerk_int.h"

#include <utlist.h>

#include "base/check.h"

static struct skv_session *session_new(struct skv_clerk *c)
{
    struct skv_session *s = mem_alloc(sizeof *s);
    do {
        s->id = env_random(c->env);
    } while (s->id == 0);
    DL_APPEND(c->sessions, s);
    return s;
}

static void session_free(struct skv_clerk *c, struct skv_session *s)
{
    CHECK(s->in_use == NULL);
    DL_DELETE(c->sessions, s);
    mem_free(s);
}

void skv_sequence_take(struct skv_clerk *c, struct skv_sequence *s)
{
    CHECK(s->session == NULL);
    if (c->session == NULL) {
        c->session = session_new(c);
    }
    s->session = c->session;
    s->number = ++c->session->last;
    DL_APPEND(c->session->in_use, s);
}

void skv_sequence_release(struct skv_clerk *c, struct skv_sequence *s)
{
    struct skv_session *session = s->session;
    if (session == NULL) {
        return;
    }
    DL_DELETE(session->in_use, s);
    s->session = NULL;
    if (session->retired && session->in_use == NULL) {
        session_free(c, session);
    }
}

uint64_t skv_session_first(const struct skv_session *s)
{
    return s->in_use != NULL ? s->in_use->number : s->last + 1;
}

bool skv_session_is_open(const struct skv_session *s, uint16_t shard)
{
    return (s->opened[shard / 8] >> shard % 8 & 1) != 0;
}

void skv_session_set_open(struct skv_session *s, uint16_t shard)
{
    s->opened[shard / 8] |= (uint8_t)(1u << shard % 8);
}

void skv_session_retire(struct skv_clerk *c, struct skv_session *s)
{
    if (c->session == s) {
        c->session = NULL;
    }
    s->retired = true;
}

bool skv_session_is_mine(const struct skv_clerk *c, uint64_t session,
                         uint64_t sequence)
{
    struct skv_session *s = NULL;
    DL_FOREACH(c->sessions, s)
    {
        struct skv_sequence *q = NULL;
        if (s->id != session) {
            continue;
        }
        DL_FOREACH(s->in_use, q)
        {
            if (q->number == sequence) {
                return true;
            }
        }
    }
    return false;
}

void skv_sessions_free(struct skv_clerk *c)
{
    struct skv_session *s = NULL;
    struct skv_session *next = NULL;
    DL_FOREACH_SAFE(c->sessions, s, next)
    {
        session_free(c, s);
    }
}
