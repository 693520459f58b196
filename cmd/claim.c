/* The key's value: whose it is (8 bytes), how often he has said that he lives
 * (u64), and 1 when the cluster may have been changed. */
#include "cmd/claim.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/check.h"

enum {
    BEAT_AT = 8,
    WRITING_AT = 16,
    VALUE_SIZE = 17,
    CALL_MS = 20000,
    BEAT_S = 1,
    /* Looks without a change, this long apart, until it is taken from somebody
     * silent. Counted are answers: while none come, his do not arrive, too. */
    LOOKS = 32,
    LOOK_MS = 250,
};

void claim_key(struct buf *key)
{
    set_be64(buf_extend(key, SKV_OBJECT_SIZE), SKV_OBJECT_KV);
    buf_append(key, "\0restore", 8);
}

static bool failed(const char *what, const char *why)
{
    fprintf(stderr, "flotilla: %s: %s\n", what, why);
    return false;
}

static struct skv_item item_of(const struct claim *c, enum skv_kind kind)
{
    return (struct skv_item){.kind = (uint8_t)kind, .key = buf_slice(&c->key)};
}

static enum err run(const struct claim *c, struct skv_item *items,
                    uint32_t count)
{
    struct skv_txn txn = {
        .items = items, .item_count = count, .timeout_ms = CALL_MS};
    enum err rc = skv_client_run(c->client, &txn);
    arena_free(&txn.arena);
    return rc;
}

struct skv_item claim_guard(const struct claim *c)
{
    struct skv_item item = item_of(c, SKV_CMP_BYTES);
    item.data = slice_of(c->id, sizeof c->id);
    return item;
}

const char *claim_words(enum err rc)
{
    return rc == ERR_CONFLICT ? "another restore has taken it over, as this "
                                "one was not heard of"
                              : err_text(rc);
}

/* `change`, if it is ours. */
static enum err run_if_ours(const struct claim *c, struct skv_item change)
{
    struct skv_item items[] = {claim_guard(c), change};
    return run(c, items, 2);
}

/* Empty: nobody's. One that is empty itself, of an earlier version, reads as
 * one byte. */
static enum err look(const struct claim *c, struct buf *value)
{
    struct skv_item item = item_of(c, SKV_GET);
    item.number = SKV_INLINE_SIZE_MAX;
    struct skv_txn txn = {
        .items = &item, .item_count = 1, .timeout_ms = CALL_MS};
    enum err rc = skv_client_run(c->client, &txn);
    buf_clear(value);
    if (rc == ERR_OK && txn.results[0].rc == ERR_OK) {
        struct slice data = txn.results[0].data;
        buf_append(value, data.data, data.size);
        if (data.size == 0) {
            enc_u8(value, 0);
        }
    }
    arena_free(&txn.arena);
    return rc;
}

static enum err take_from(struct claim *c, struct slice old)
{
    uint8_t value[VALUE_SIZE] = {0};
    struct skv_item items[3];
    uint32_t count = 0;
    c->writing =
        old.size > 0 && (old.size != VALUE_SIZE || old.data[WRITING_AT] != 0);
    memcpy(value, c->id, sizeof c->id);
    value[WRITING_AT] = c->writing;
    if (old.size == 0) {
        items[count++] = item_of(c, SKV_CMP_ABSENT);
    } else if (old.size == VALUE_SIZE) {
        items[count] = item_of(c, SKV_CMP_BYTES);
        items[count++].data = old;
    } else {
        items[count] = item_of(c, SKV_CMP_LENGTH);
        items[count++].number = old.size > 1 ? old.size : 0;
    }
    items[count] = item_of(c, SKV_PUT);
    items[count++].data = slice_of(value, sizeof value);
    enum err rc = run(c, items, count);
    c->held = rc == ERR_OK;
    return rc;
}

/* Does somebody change what we saw? */
static enum err watch(const struct claim *c, struct slice seen, bool *lives)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
    struct buf now = {0};
    enum err rc = ERR_OK;
    *lives = false;
    for (uint32_t i = 0; i < LOOKS && rc == ERR_OK && !*lives; i++) {
        nanosleep(&pause, NULL);
        rc = look(c, &now);
        *lives = rc == ERR_OK && slice_compare(buf_slice(&now), seen) != 0;
    }
    buf_free(&now);
    return rc;
}

/* ---- life ---- */

static void *beat(void *arg)
{
    struct claim *c = arg;
    pthread_mutex_lock(&c->lock);
    bool lost = false;
    while (!c->stop && !lost) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += BEAT_S;
        pthread_cond_timedwait(&c->wake, &c->lock, &until);
        if (c->stop) {
            break;
        }
        pthread_mutex_unlock(&c->lock);
        struct skv_item one_more = item_of(c, SKV_ADD);
        one_more.offset = BEAT_AT;
        one_more.number = 1;
        lost = run_if_ours(c, one_more) == ERR_CONFLICT;
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static bool beat_begin(struct claim *c)
{
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    int rc = pthread_create(&c->thread, NULL, beat, c);
    c->beats = rc == 0;
    return c->beats || failed("cannot start a thread", strerror(rc));
}

static void beat_end(struct claim *c)
{
    if (!c->beats) {
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
    c->beats = false;
}

/* ---- the right ---- */

bool claim_take(struct claim *c, struct skv_client *client)
{
    struct buf seen = {0};
    bool lives = false;
    c->client = client;
    claim_key(&c->key);
    CHECK(getrandom(c->id, sizeof c->id, 0) == sizeof c->id);
    enum err rc = look(c, &seen);
    if (rc == ERR_OK && seen.size > 0) {
        fputs("a restore was begun here: looking for some seconds whether it "
              "runs\n",
              stderr);
        rc = watch(c, buf_slice(&seen), &lives);
    }
    if (rc == ERR_OK && !lives) {
        rc = take_from(c, buf_slice(&seen));
    }
    buf_free(&seen);
    if (lives || rc == ERR_CONFLICT) {
        return failed("another restore is running into this cluster",
                      "nothing was written");
    }
    return rc == ERR_OK ? beat_begin(c)
                        : failed("cannot claim the cluster", err_text(rc));
}

bool claim_begin_writing(struct claim *c)
{
    uint8_t one = 1;
    struct skv_item mark = item_of(c, SKV_PUT_RANGE);
    mark.offset = WRITING_AT;
    mark.data = slice_of(&one, 1);
    enum err rc = run_if_ours(c, mark);
    c->writing = true;
    return rc == ERR_OK || failed("cannot claim the cluster", claim_words(rc));
}

bool claim_give_back(struct claim *c)
{
    beat_end(c);
    enum err rc = run_if_ours(c, item_of(c, SKV_DELETE));
    c->held = false;
    return rc == ERR_OK || failed("cannot end the restore", claim_words(rc));
}

void claim_fini(struct claim *c)
{
    beat_end(c);
    buf_free(&c->key);
}
