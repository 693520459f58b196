/* The clerk against a script: the test answers every call by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "shardkv/client.h"
#include "tests/lib/scripted_net.h"

#define MS     ((uint64_t)1000)
#define SECOND (1000 * MS)

enum { KEY_SIZE = 12, ANY_PHASE = 255 };

struct world {
    struct sn sn;
    struct skv_clerk *clerk;
    uint64_t number; /* of the configuration that the controllers have */
    ctl_gid owners[4];
    struct arena arena; /* of decoded requests */
    uint64_t polls;     /* queries seen */
};

struct job {
    struct skv_txn txn;
    struct skv_item items[8];
    uint8_t keys[8][KEY_SIZE];
    uint32_t done; /* times */
};

/* ---- `first` is watched on every single request ---- */

static struct {
    uint64_t session;
    uint64_t sequence;
    bool answered;
} numbers[4096];
static uint32_t number_count;

static void number_see(const struct skv_request *r)
{
    for (uint32_t i = 0; i < number_count; i++) {
        if (numbers[i].session == r->session) {
            /* RIFL: what is not answered must not be forgotten. */
            assert_true(numbers[i].answered || numbers[i].sequence >= r->first);
        }
    }
    for (uint32_t i = 0; i < number_count; i++) {
        if (numbers[i].session == r->session &&
            numbers[i].sequence == r->sequence) {
            return;
        }
    }
    assert_true(number_count < 4096);
    numbers[number_count].session = r->session;
    numbers[number_count].sequence = r->sequence;
    numbers[number_count++].answered = false;
}

static void number_answered(uint64_t session, uint64_t sequence)
{
    for (uint32_t i = 0; i < number_count; i++) {
        if (numbers[i].session == session && numbers[i].sequence == sequence) {
            numbers[i].answered = true;
        }
    }
}

static void on_call(struct sn_call *call)
{
    struct arena a = {0};
    struct skv_request r;
    if (call->method != SKV_METHOD_WRITE) {
        return;
    }
    assert_int_equal(skv_request_decode(buf_slice(&call->body), &a, &r),
                     ERR_OK);
    assert_int_equal(skv_request_check(&r), ERR_OK);
    if (r.first > 0) {
        number_see(&r);
    }
    arena_free(&a);
}

/* ---- the controllers ---- */

static void config_encode(const struct world *w, struct buf *out)
{
    static const char *const names[2][3] = {{"a1:1", "a2:1", "a3:1"},
                                            {"b1:1", "b2:1", "b3:1"}};
    struct ctl_owner shards[4];
    struct ctl_server servers[2][3];
    struct ctl_group groups[2];
    for (int g = 0; g < 2; g++) {
        for (int i = 0; i < 3; i++) {
            servers[g][i] = (struct ctl_server){
                .id = (uint64_t)i + 1, .address = slice_text(names[g][i])};
        }
        groups[g] = (struct ctl_group){
            .gid = (ctl_gid)g + 1, .servers = servers[g], .servers_count = 3};
    }
    for (int i = 0; i < 4; i++) {
        shards[i].gid = w->owners[i];
    }
    struct ctl_config c = {.number = w->number,
                           .shards = shards,
                           .shards_count = 4,
                           .groups = groups,
                           .groups_count = 2};
    ctl_config_encode(out, &c);
}

/* Answers what asks for a configuration that is there; the rest waits. */
static bool controller_step(struct world *w)
{
    struct sn_call *c = w->sn.calls;
    for (; c != NULL; c = c->next) {
        struct ctl_query q;
        if (c->method == CTL_METHOD_QUERY &&
            ctl_query_decode(buf_slice(&c->body), NULL, &q) == ERR_OK &&
            (q.number == CTL_LATEST || q.number <= w->number)) {
            break;
        }
    }
    if (c == NULL) {
        return false;
    }
    struct buf b = {0};
    config_encode(w, &b);
    w->polls++;
    sn_answer(&w->sn, c, ERR_OK, buf_slice(&b));
    buf_free(&b);
    return true;
}

/* Runs until something is sent to a shard, or `for_us` are over. */
static void run(struct world *w, uint64_t for_us)
{
    uint64_t until = w->sn.now_us + for_us;
    while (controller_step(w) || sn_step(&w->sn, until)) {
    }
    if (w->sn.now_us < until) {
        w->sn.now_us = until;
    }
}

static void world_init(struct world *w)
{
    static const char controllers[3][NET_ADDRESS_SIZE_MAX] = {"c1:1", "c2:1",
                                                              "c3:1"};
    number_count = 0;
    *w = (struct world){.number = 1, .owners = {1, 1, 2, 2}};
    sn_init(&w->sn, 42);
    w->sn.on_call = on_call;
    w->clerk = skv_clerk_new(&w->sn.env, &w->sn.net, controllers, 3);
    run(w, 5 * MS);
    assert_int_equal(skv_clerk_shard_count(w->clerk), 4);
}

static void world_fini(struct world *w)
{
    skv_clerk_free(w->clerk);
    arena_free(&w->arena);
    sn_fini(&w->sn);
}

/* ---- transactions ---- */

static void job_done(struct skv_txn *txn)
{
    ((struct job *)(void *)txn)->done++;
}

static void job_add(struct job *j, uint16_t shard, uint8_t kind)
{
    uint32_t i = j->txn.item_count++;
    set_be64(j->keys[i], (uint64_t)shard << 48 | 5);
    memcpy(j->keys[i] + 8, "name", 4);
    j->items[i] = (struct skv_item){.kind = kind,
                                    .key = slice_of(j->keys[i], KEY_SIZE),
                                    .number = kind == SKV_GET ? 10 : 0};
    if (kind == SKV_PUT) {
        j->items[i].data = slice_text("value");
    }
    j->txn.items = j->items;
    j->txn.done = job_done;
}

static void job_start(struct world *w, struct job *j)
{
    skv_clerk_run(w->clerk, &j->txn);
    assert_int_equal(j->done, 0); /* never from inside */
}

static void job_fini(struct job *j)
{
    arena_free(&j->txn.arena);
}

/* ---- the shards ---- */

/* The oldest unanswered request to the shard in that phase; waits for it. */
static struct sn_call *expect(struct world *w, uint16_t shard, uint8_t phase,
                              struct skv_request *r)
{
    uint64_t until = w->sn.now_us + 10 * SECOND;
    for (;;) {
        for (struct sn_call *c = w->sn.calls; c != NULL; c = c->next) {
            if (c->method != SKV_METHOD_READ && c->method != SKV_METHOD_WRITE) {
                continue;
            }
            assert_int_equal(
                skv_request_decode(buf_slice(&c->body), &w->arena, r), ERR_OK);
            if (r->shard == shard &&
                (phase == ANY_PHASE || r->phase == phase)) {
                return c;
            }
        }
        assert_true(controller_step(w) || sn_step(&w->sn, until));
    }
}

static uint32_t outstanding(const struct world *w)
{
    uint32_t n = 0;
    for (struct sn_call *c = w->sn.calls; c != NULL; c = c->next) {
        n += c->method == SKV_METHOD_READ || c->method == SKV_METHOD_WRITE;
    }
    return n;
}

static void answer(struct world *w, struct sn_call *c,
                   const struct skv_reply *reply)
{
    struct buf b = {0};
    skv_reply_encode(&b, reply);
    sn_answer(&w->sn, c, ERR_OK, buf_slice(&b));
    buf_free(&b);
}

static void answer_rc(struct world *w, struct sn_call *c, enum err rc)
{
    struct skv_reply reply = {.rc = rc};
    answer(w, c, &reply);
}

/* ERR_OK, result i of the request with number base + i. */
static void answer_ok(struct world *w, struct sn_call *c,
                      const struct skv_request *r, uint64_t base)
{
    struct skv_result results[8] = {{0}};
    for (uint32_t i = 0; i < r->items_count; i++) {
        results[i].number = base + i;
        results[i].data = slice_text("data");
    }
    struct skv_reply reply = {
        .rc = ERR_OK, .results = results, .results_count = r->items_count};
    bool last = r->phase == SKV_EXECUTE;
    if (last) {
        number_answered(r->session, r->sequence);
    }
    answer(w, c, &reply);
}

static void answer_locked(struct world *w, struct sn_call *c, uint64_t session,
                          uint64_t sequence)
{
    struct skv_shard_ref both[2] = {{.shard = 1}, {.shard = 2}};
    struct skv_reply reply = {.rc = ERR_LOCKED,
                              .holder_session = session,
                              .holder_sequence = sequence,
                              .participants = both,
                              .participants_count = 2};
    answer(w, c, &reply);
}

static void refuse(struct world *w, struct sn_call *c, enum err rc)
{
    sn_answer(&w->sn, c, rc, slice_of(NULL, 0));
}

/* ---- one shard ---- */

static void a_read_has_no_session_and_gives_its_results(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    world_init(&w);
    job_add(&j, 1, SKV_GET);
    job_add(&j, 1, SKV_LENGTH);
    job_start(&w, &j);
    struct sn_call *c = expect(&w, 1, SKV_EXECUTE, &r);
    assert_int_equal(c->method, SKV_METHOD_READ);
    assert_int_equal(r.session, 0);
    assert_int_equal(r.sequence, 0);
    assert_int_equal(c->address[0], 'a');
    answer_ok(&w, c, &r, 100);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_OK);
    assert_int_equal(j.txn.results[1].number, 101);
    assert_memory_equal(j.txn.results[0].data.data, "data", 4);
    job_fini(&j);
    world_fini(&w);
}

/* Wrong if a retry came with a new number: the shard would do it twice. */
static void retries_keep_session_and_sequence(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    struct skv_request again;
    world_init(&w);
    job_add(&j, 0, SKV_APPEND);
    job_start(&w, &j);
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_true(r.session != 0 && r.sequence == 1 && r.first == 1);
    assert_int_equal(r.flags, SKV_FLAG_OPEN);
    char first_address = c->address[1];
    refuse(&w, c, ERR_NOTLEADER);
    assert_int_equal(outstanding(&w), 1); /* the next server, at once */
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_true(c->address[1] != first_address);
    assert_int_equal(again.session, r.session);
    assert_int_equal(again.sequence, r.sequence);
    assert_int_equal(again.flags, SKV_FLAG_OPEN | SKV_FLAG_RETRY);
    refuse(&w, c, ERR_CLOSED);
    c = expect(&w, 0, SKV_EXECUTE, &again);
    uint64_t sent = c->sent_us;
    run(&w, 2 * SECOND); /* the reply is lost */
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_true(c->sent_us > sent);
    assert_int_equal(again.sequence, r.sequence);
    refuse(&w, c, ERR_BUSY);
    assert_int_equal(outstanding(&w), 0); /* a pause */
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_int_equal(again.sequence, r.sequence);
    answer_ok(&w, c, &again, 7);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_OK);
    struct job k = {0};
    job_add(&k, 0, SKV_APPEND);
    job_start(&w, &k);
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_int_equal(again.sequence, 2);
    assert_int_equal(again.first, 2);
    assert_int_equal(again.flags, 0); /* the shard knows the session now */
    answer_ok(&w, c, &again, 0);
    job_fini(&j);
    job_fini(&k);
    world_fini(&w);
}

/* Wrong if a dead group was asked in a busy loop, or ever more seldom than the
 * longest pause allows. */
static void pauses_grow_and_are_bounded(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    world_init(&w);
    job_add(&j, 0, SKV_PUT);
    job_start(&w, &j);
    uint64_t start = w.sn.now_us;
    uint32_t tries = 0;
    while (w.sn.now_us < start + 10 * SECOND) {
        refuse(&w, expect(&w, 0, SKV_EXECUTE, &r), ERR_NOTLEADER);
        tries++;
    }
    assert_true(tries >= 3 * 40 && tries <= 3 * 110);
    assert_int_equal(r.sequence, 1);
    skv_clerk_cancel(w.clerk, &j.txn);
    run(&w, 1 * MS);
    assert_int_equal(j.txn.rc, ERR_INTERRUPTED);
    job_fini(&j);
    world_fini(&w);
}

/* Wrong if `first` went to 3 when 2 was answered while 1 was not. */
static void first_never_passes_an_unanswered_number(void **state)
{
    (void)state;
    struct world w;
    struct job j[4] = {0};
    struct skv_request r;
    world_init(&w);
    for (uint16_t i = 0; i < 4; i++) {
        job_add(&j[i], i, SKV_PUT);
    }
    job_start(&w, &j[0]);
    job_start(&w, &j[1]);
    struct sn_call *c = expect(&w, 1, SKV_EXECUTE, &r);
    assert_int_equal(r.sequence, 2);
    answer_ok(&w, c, &r, 0);
    job_start(&w, &j[2]);
    c = expect(&w, 2, SKV_EXECUTE, &r);
    assert_int_equal(r.sequence, 3);
    assert_int_equal(r.first, 1);
    answer_ok(&w, c, &r, 0);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    answer_ok(&w, c, &r, 0);
    job_start(&w, &j[3]);
    c = expect(&w, 3, SKV_EXECUTE, &r);
    assert_int_equal(r.first, 4);
    answer_ok(&w, c, &r, 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(j[i].done, 1);
        job_fini(&j[i]);
    }
    world_fini(&w);
}

/* Wrong if the clerk went on asking a group that has said where it stands, or
 * asked the controllers for nothing. */
static void a_wrong_group_makes_it_fetch_the_newer_configuration(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    world_init(&w);
    job_add(&j, 0, SKV_PUT);
    job_start(&w, &j);
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    /* Behind, or moving: it is asked again after a pause. */
    struct skv_reply reply = {.rc = ERR_WRONGGROUP, .config_number = 1};
    uint64_t polls = w.polls;
    answer(&w, c, &reply);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    assert_int_equal(w.polls, polls);
    w.number = 2;
    w.owners[0] = 2;
    reply.config_number = 2;
    answer(&w, c, &reply);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'b');
    assert_int_equal(r.sequence, 1);
    assert_true(w.polls > polls);
    answer_ok(&w, c, &r, 0);
    assert_int_equal(j.txn.rc, ERR_OK);
    job_fini(&j);
    world_fini(&w);
}

/* A group with one server, as a refusal names it. */
static void encode_owner(struct buf *b, ctl_gid gid, const char *address)
{
    struct ctl_server server = {.id = 1, .address = slice_text(address)};
    struct ctl_group group = {
        .gid = gid, .servers = &server, .servers_count = 1};
    buf_clear(b);
    ctl_group_encode(b, &group);
}

/* Wrong if it asked the owner in the configuration for ever, if it kept a
 * detour to servers that are gone, or if it believed nonsense. */
static void whoever_refuses_a_shard_says_whom_to_ask(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    struct buf b = {0};
    world_init(&w);
    job_add(&j, 0, SKV_PUT);
    job_start(&w, &j);
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    struct skv_reply reply = {.rc = ERR_WRONGGROUP, .config_number = 1};
    encode_owner(&b, 2, "z:1");
    reply.owner = buf_slice(&b);
    answer(&w, c, &reply);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_string_equal(c->address, "z:1");
    assert_int_equal(r.sequence, 1);
    /* There nobody answers: back to the configuration's. */
    sn_answer(&w.sn, c, ERR_CLOSED, slice_of(NULL, 0));
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    /* Without servers, and not a group at all. */
    struct ctl_group none = {.gid = 2};
    buf_clear(&b);
    ctl_group_encode(&b, &none);
    reply.owner = buf_slice(&b);
    answer(&w, c, &reply);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    reply.owner = slice_text("nonsense");
    answer(&w, c, &reply);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    answer_ok(&w, c, &r, 0);
    assert_int_equal(j.txn.rc, ERR_OK);
    buf_free(&b);
    job_fini(&j);
    world_fini(&w);
}

static void a_shard_of_nobody_waits_for_an_owner(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    world_init(&w);
    w.number = 2;
    w.owners[0] = 0;
    run(&w, 1 * SECOND);
    job_add(&j, 0, SKV_PUT);
    job_start(&w, &j);
    run(&w, 3 * SECOND);
    assert_int_equal(outstanding(&w), 0);
    w.number = 3;
    w.owners[0] = 1;
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    answer_ok(&w, c, &r, 0);
    assert_int_equal(j.txn.rc, ERR_OK);
    job_fini(&j);
    world_fini(&w);
}

static void a_conflict_is_final_and_names_the_compare(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    world_init(&w);
    job_add(&j, 1, SKV_CMP_EXISTS);
    job_add(&j, 1, SKV_CMP_ABSENT);
    job_add(&j, 1, SKV_PUT);
    job_start(&w, &j);
    struct sn_call *c = expect(&w, 1, SKV_EXECUTE, &r);
    struct skv_reply reply = {.rc = ERR_CONFLICT, .failed = 1};
    answer(&w, c, &reply);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_CONFLICT);
    assert_int_equal(j.txn.failed, 1);
    assert_non_null(j.txn.results);
    job_fini(&j);
    world_fini(&w);
}

/* Wrong if the first copy's fate was unknown and it was sent in a new session
 * all the same: it might be executed twice. */
static void an_expired_session_is_renewed_only_when_that_is_safe(void **state)
{
    (void)state;
    struct world w;
    struct job j[3] = {0};
    struct skv_request r;
    struct skv_request again;
    world_init(&w);
    job_add(&j[0], 0, SKV_PUT);
    job_start(&w, &j[0]);
    answer_rc(&w, expect(&w, 0, SKV_EXECUTE, &r), ERR_EXPIRED);
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_true(again.session != r.session);
    assert_int_equal(again.sequence, 1);
    answer_ok(&w, c, &again, 0);
    assert_int_equal(j[0].txn.rc, ERR_OK);
    job_add(&j[1], 0, SKV_PUT);
    job_start(&w, &j[1]);
    refuse(&w, expect(&w, 0, SKV_EXECUTE, &r), ERR_CLOSED);
    answer_rc(&w, expect(&w, 0, SKV_EXECUTE, &r), ERR_EXPIRED);
    assert_int_equal(j[1].txn.rc, ERR_EXPIRED);
    job_add(&j[2], 0, SKV_PUT);
    job_start(&w, &j[2]);
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_true(again.session != r.session);
    assert_true((again.flags & SKV_FLAG_OPEN) != 0);
    answer_ok(&w, c, &again, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(j[i].done, 1);
        job_fini(&j[i]);
    }
    world_fini(&w);
}

/* ---- giving up ---- */

static void a_deadline_ends_a_waiting_request(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    world_init(&w);
    job_add(&j, 0, SKV_PUT);
    j.txn.timeout_ms = 300;
    job_start(&w, &j);
    (void)expect(&w, 0, SKV_EXECUTE, &r);
    run(&w, 299 * MS);
    assert_int_equal(j.done, 0);
    run(&w, 2 * MS);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_TIMEDOUT);
    assert_int_equal(outstanding(&w), 0);
    /* Who did not answer is said. */
    char words[256], group[32];
    skv_txn_explain(&j.txn, words, sizeof words);
    assert_int_equal(j.txn.stuck.shard, r.shard);
    assert_int_not_equal(j.txn.stuck.gid, 0);
    snprintf(group, sizeof group, "group %u,", j.txn.stuck.gid);
    assert_non_null(strstr(words, group));
    assert_non_null(strstr(words, "300 ms (it may be done"));
    job_fini(&j);
    world_fini(&w);
}

/* A shard on its way from a group that has no majority: the configuration names
 * another, which answers, and is not to blame. */
static void who_did_not_answer_is_named_not_the_owner_to_be(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    struct buf b = {0};
    world_init(&w);
    job_add(&j, 0, SKV_PUT);
    j.txn.timeout_ms = 300;
    job_start(&w, &j);
    struct skv_reply reply = {.rc = ERR_WRONGGROUP, .config_number = 1};
    encode_owner(&b, 2, "z:1");
    reply.owner = buf_slice(&b);
    for (int i = 0; i < 2; i++) {
        answer(&w, expect(&w, 0, SKV_EXECUTE, &r), &reply);
        struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
        assert_string_equal(c->address, "z:1");
        sn_answer(&w.sn, c, ERR_CLOSED, slice_of(NULL, 0));
    }
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[0], 'a');
    run(&w, 301 * MS);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_TIMEDOUT);
    assert_int_equal(j.txn.stuck.shard, 0);
    assert_int_equal(j.txn.stuck.gid, 2);
    buf_free(&b);
    job_fini(&j);
    world_fini(&w);
}

static void closing_answers_everybody_once(void **state)
{
    (void)state;
    struct world w;
    struct job j[3] = {0};
    struct skv_request r;
    world_init(&w);
    job_add(&j[0], 0, SKV_PUT);
    job_add(&j[1], 0, SKV_PUT);
    job_add(&j[1], 3, SKV_PUT);
    job_add(&j[2], 0, SKV_PUT);
    job_add(&j[2], 3, SKV_PUT);
    for (int i = 0; i < 3; i++) {
        job_start(&w, &j[i]);
    }
    (void)expect(&w, 0, SKV_EXECUTE, &r);
    skv_clerk_cancel(w.clerk, &j[2].txn);
    skv_clerk_cancel(w.clerk, &j[2].txn);
    world_fini(&w);
    assert_int_equal(j[0].txn.rc, ERR_CLOSED);
    assert_int_equal(j[1].txn.rc, ERR_CLOSED);
    assert_int_equal(j[2].txn.rc, ERR_INTERRUPTED);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(j[i].done, 1);
        job_fini(&j[i]);
    }
}

/* Wrong if the 4097th was refused, or overtook. */
static void more_than_the_bound_wait_in_order(void **state)
{
    (void)state;
    enum { COUNT = 4100 };
    struct world w;
    struct skv_request r;
    world_init(&w);
    w.sn.on_call = NULL; /* quadratic, and not the point */
    struct job *jobs = mem_array(COUNT, sizeof *jobs);
    for (uint32_t i = 0; i < COUNT; i++) {
        job_add(&jobs[i], 0, SKV_PUT);
        job_start(&w, &jobs[i]);
    }
    assert_int_equal(outstanding(&w), 4096);
    answer_ok(&w, expect(&w, 0, SKV_EXECUTE, &r), &r, 0);
    assert_int_equal(jobs[0].done, 1);
    assert_int_equal(outstanding(&w), 4096);
    skv_clerk_cancel(w.clerk, &jobs[COUNT - 1].txn);
    for (uint32_t i = 1; i < COUNT - 1; i++) {
        struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
        assert_int_equal(r.sequence, i + 1);
        arena_free(&w.arena);
        struct skv_result result = {0};
        struct skv_reply reply = {.results = &result, .results_count = 1};
        answer(&w, c, &reply);
        assert_int_equal(jobs[i].done, 1);
    }
    run(&w, MS);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(jobs[i].done, 1);
        job_fini(&jobs[i]);
    }
    mem_free(jobs);
    world_fini(&w);
}

/* A put of as much as four of which are under way to a group at most. */
static uint8_t quarter[(8 << 20) / 4];

static void job_start_long(struct world *w, struct job *j, uint16_t shard)
{
    job_add(j, shard, SKV_PUT);
    j->items[0].data = slice_of(quarter, sizeof quarter);
    job_start(w, j);
}

static void answer_next(struct world *w, uint16_t shard, uint64_t sequence)
{
    struct skv_request r;
    struct sn_call *c = expect(w, shard, SKV_EXECUTE, &r);
    assert_int_equal(r.sequence, sequence);
    answer_ok(w, c, &r, 0);
    arena_free(&w->arena);
}

/* Wrong if all that one clerk has to write is sent at once: short requests, and
 * the question whether the server lives, would be behind it. Or if one that
 * comes now is sent before one that has waited. */
static void long_requests_wait_in_line(void **state)
{
    (void)state;
    struct world w;
    struct job j[11] = {{.done = 0}};
    world_init(&w);
    for (uint32_t i = 0; i < 7; i++) {
        job_start_long(&w, &j[i], 0);
    }
    assert_int_equal(outstanding(&w), 4);
    job_add(&j[7], 1, SKV_PUT); /* a short one, to the same group */
    job_start(&w, &j[7]);
    job_start_long(&w, &j[8], 2); /* to another */
    assert_int_equal(outstanding(&w), 6);
    answer_next(&w, 1, 8);
    answer_next(&w, 2, 9);
    answer_next(&w, 0, 1);
    job_start_long(&w, &j[9], 0); /* before the line has moved */
    assert_int_equal(outstanding(&w), 3);
    run(&w, 0);
    assert_int_equal(outstanding(&w), 4);
    skv_clerk_cancel(w.clerk, &j[5].txn); /* the next in line */
    for (uint64_t sequence = 2; sequence <= 10; sequence++) {
        if (sequence != 6 && sequence != 8 && sequence != 9) {
            answer_next(&w, 0, sequence);
            run(&w, 0);
        }
    }
    assert_int_equal(outstanding(&w), 0);
    job_start_long(&w, &j[10], 0); /* there is no line any more */
    answer_next(&w, 0, 11);
    for (uint32_t i = 0; i < 11; i++) {
        assert_int_equal(j[i].done, 1);
        job_fini(&j[i]);
    }
    world_fini(&w);
}

/* Wrong if the line for a group that has lost the shard does not end. */
static void who_waits_in_line_goes_where_the_shard_goes(void **state)
{
    (void)state;
    struct world w;
    struct job j[6] = {{.done = 0}};
    struct skv_request r;
    world_init(&w);
    for (uint32_t i = 0; i < 6; i++) {
        job_start_long(&w, &j[i], 0);
    }
    w.number = 2;
    w.owners[0] = 2;
    run(&w, 50 * MS);
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    while (c != NULL && c->address[0] != 'b') {
        c = c->next;
    }
    assert_non_null(c);
    for (uint32_t i = 0; i < 6; i++) {
        skv_clerk_cancel(w.clerk, &j[i].txn);
    }
    run(&w, MS);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(j[i].done, 1);
        job_fini(&j[i]);
    }
    world_fini(&w);
}

static struct sn_call *any_question(struct world *w)
{
    struct sn_call *c = w->sn.calls;
    while (c != NULL && c->method != SKV_METHOD_LEADS) {
        c = c->next;
    }
    return c;
}

static struct sn_call *question_to(struct world *w, char server)
{
    struct sn_call *c = w->sn.calls;
    while (c != NULL &&
           (c->method != SKV_METHOD_LEADS || c->address[1] != server)) {
        c = c->next;
    }
    return c;
}

/* The question to that server, or NULL: waits until `for_us` are over. The
 * others say meanwhile that they do not lead. */
static struct sn_call *question(struct world *w, char server, uint64_t for_us)
{
    uint64_t until = w->sn.now_us + for_us;
    for (;;) {
        struct sn_call *c = any_question(w);
        if (c != NULL && c->address[1] == server) {
            return c;
        }
        if (c != NULL) {
            refuse(w, c, ERR_NOTLEADER);
        } else if (!controller_step(w) && !sn_step(&w->sn, until)) {
            return NULL;
        }
    }
}

/* Wrong if a halted leader holds its clients for the whole timeout of a
 * request, or if the next ones go to it again. */
static void
a_silent_server_is_asked_whether_it_lives_and_then_left(void **state)
{
    (void)state;
    struct world w;
    struct job j[2] = {{.done = 0}, {.done = 0}};
    struct skv_request r, again;
    world_init(&w);
    job_add(&j[0], 0, SKV_APPEND);
    job_start(&w, &j[0]);
    struct sn_call *c = expect(&w, 0, SKV_EXECUTE, &r);
    char silent = c->address[1];
    uint64_t sent_us = c->sent_us;
    assert_non_null(question(&w, silent, SECOND));
    run(&w, 600 * MS); /* no answer to that either */
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_true(c->address[1] != silent);
    assert_true(c->sent_us - sent_us <= 900 * MS);
    assert_int_equal(again.sequence, r.sequence);
    /* All say that they do not lead: the silent one is not asked meanwhile, and
     * the others in turn, as either may be elected. */
    char last = silent;
    for (int i = 0; i < 8; i++) {
        c = expect(&w, 0, SKV_EXECUTE, &again);
        assert_true(c->address[1] != silent && c->address[1] != last);
        last = c->address[1];
        refuse(&w, c, ERR_NOTLEADER);
    }
    c = expect(&w, 0, SKV_EXECUTE, &again);
    answer_ok(&w, c, &again, 0);
    assert_int_equal(j[0].done, 1);
    job_fini(&j[0]);
    job_fini(&j[1]);
    world_fini(&w);
}

/* The world begins, and an append is on its way. */
static struct sn_call *append_sent(struct world *w, struct job *j,
                                   struct skv_request *r)
{
    world_init(w);
    job_add(j, 0, SKV_APPEND);
    job_start(w, j);
    return expect(w, 0, SKV_EXECUTE, r);
}

/* Wrong if a clerk that has never spoken to the group, and begins with a halted
 * server, waits until that is known to be gone; or asks around without need. */
static void another_that_leads_is_turned_to_at_once(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0}, next = {0};
    struct skv_request r, again;
    struct sn_call *c = append_sent(&w, &j, &r);
    char silent = c->address[1], leader = silent == '3' ? '1' : '3';
    uint64_t sent_us = c->sent_us;
    run(&w, 40 * MS);
    assert_null(any_question(&w)); /* all may be well */
    struct sn_call *q = question(&w, leader, SECOND);
    assert_non_null(q);
    refuse(&w, q, ERR_OK);
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_int_equal(c->address[1], leader);
    assert_true(c->sent_us - sent_us < 100 * MS);
    assert_int_equal(again.sequence, r.sequence);
    assert_int_equal(outstanding(&w), 1);
    answer_ok(&w, c, &again, 0);
    assert_int_equal(j.done, 1);
    job_fini(&j);
    run(&w, SECOND);
    assert_null(any_question(&w));
    /* It is known by now: it may be slow, and is given longer. */
    job_add(&next, 0, SKV_APPEND);
    job_start(&w, &next);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->address[1], leader);
    run(&w, 90 * MS);
    assert_null(any_question(&w));
    run(&w, 60 * MS);
    assert_non_null(any_question(&w));
    answer_ok(&w, c, &r, 0);
    job_fini(&next);
    run(&w, SECOND); /* the silent one's question */
    world_fini(&w);
}

/* Wrong if one that is elected while another one is silent is found late: those
 * who did not lead are asked at each look. */
static void one_that_leads_from_now_on_is_found_at_the_next_look(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r, again;
    struct sn_call *c = append_sent(&w, &j, &r);
    char silent = c->address[1], leader = silent == '3' ? '1' : '3';
    for (int i = 0; i < 3; i++) {
        run(&w, 100 * MS);
        struct sn_call *q = question_to(&w, leader);
        assert_true(i == 0 || q != NULL);
        if (q != NULL) {
            refuse(&w, q, i < 2 ? ERR_NOTLEADER : ERR_OK);
        }
    }
    c = expect(&w, 0, SKV_EXECUTE, &again);
    assert_int_equal(c->address[1], leader);
    assert_int_equal(again.sequence, r.sequence);
    answer_ok(&w, c, &again, 0);
    assert_int_equal(j.done, 1);
    job_fini(&j);
    run(&w, SECOND); /* the silent one's question */
    world_fini(&w);
}

/* Wrong if a slow disk makes the clerk send everything twice, or ask whenever
 * it looks: of many clerks, that is a load that the slow one gets besides. */
static void a_slow_server_that_lives_is_waited_for(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    struct sn_call *c = append_sent(&w, &j, &r);
    uint64_t id = c->id;
    char slow = c->address[1];
    uint64_t asked_us = 0;
    for (int i = 0; i < 5; i++) {
        struct sn_call *q = question(&w, slow, SECOND);
        assert_non_null(q);
        assert_true(i == 0 || q->sent_us - asked_us >= 250 * MS);
        asked_us = q->sent_us;
        refuse(&w, q, ERR_OK);
        c = expect(&w, 0, SKV_EXECUTE, &r);
        assert_int_equal(c->id, id);
        assert_int_equal(outstanding(&w), 1);
    }
    /* It lives, and leads no longer: what it holds may wait for ever. */
    struct sn_call *q = question(&w, slow, SECOND);
    assert_non_null(q);
    refuse(&w, q, ERR_NOTLEADER);
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_true(c->id != id);
    answer_ok(&w, c, &r, 0);
    assert_int_equal(j.done, 1);
    job_fini(&j);
    world_fini(&w);
}

/* Wrong if a server that answers others' requests is taken for a silent one, as
 * the question is behind long ones: all would be sent again. */
static void a_server_that_answers_requests_is_not_silent(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0}, other = {0};
    struct skv_request r;
    struct sn_call *c = append_sent(&w, &j, &r);
    uint64_t id = c->id;
    char slow = c->address[1];
    struct sn_call *q = question(&w, slow, SECOND);
    assert_non_null(q);
    job_add(&other, 1, SKV_PUT);
    job_start(&w, &other);
    run(&w, MS);
    answer_next(&w, 1, 2);
    uint64_t until_us = q->deadline_us + MS;
    q->method = SKV_METHOD_STATUS; /* nobody answers this one */
    while (w.sn.now_us < until_us &&
           (q = question(&w, slow, until_us - w.sn.now_us)) != NULL) {
        refuse(&w, q, ERR_OK);
    }
    c = expect(&w, 0, SKV_EXECUTE, &r);
    assert_int_equal(c->id, id);
    answer_ok(&w, c, &r, 0);
    job_fini(&j);
    job_fini(&other);
    world_fini(&w);
}

/* Wrong if a group that is slow because much is sent to it is sent all of it
 * again every two seconds. */
static void each_try_that_ends_gives_the_next_more_time(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct skv_request r;
    struct sn_call *c = append_sent(&w, &j, &r);
    static const uint64_t seconds[] = {2, 4, 8, 16, 16};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(c->deadline_us - c->sent_us, seconds[i] * SECOND);
        refuse(&w, c, ERR_TIMEDOUT);
        c = expect(&w, 0, SKV_EXECUTE, &r);
    }
    answer_ok(&w, c, &r, 0);
    assert_int_equal(j.done, 1);
    job_fini(&j);
    world_fini(&w);
}

static void nonsense_is_refused_without_the_net(void **state)
{
    (void)state;
    struct world w;
    struct job j[3] = {0};
    world_init(&w);
    uint64_t sent = w.sn.sent;
    j[0].txn.done = job_done;
    job_add(&j[1], 0, SKV_PUT);
    j[1].items[0].key.size = 3;
    job_add(&j[2], 9, SKV_PUT); /* there are four shards */
    for (int i = 0; i < 3; i++) {
        job_start(&w, &j[i]);
    }
    run(&w, 10 * MS);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(j[i].done, 1);
        assert_int_equal(j[i].txn.rc, ERR_INVALID);
        job_fini(&j[i]);
    }
    assert_int_equal(w.sn.sent, sent);
    world_fini(&w);
}

/* ---- several shards ---- */

/* Items of shards 2, 0, 2: positions must come back in the caller's order. */
static void three_items(struct job *j)
{
    job_add(j, 2, SKV_CMP_EXISTS);
    job_add(j, 0, SKV_PUT);
    job_add(j, 2, SKV_GET);
}

/* Both participants' PREPARE; the same number in both. */
static void expect_prepares(struct world *w, struct sn_call *c[2],
                            struct skv_request r[2])
{
    c[0] = expect(w, 0, SKV_PREPARE, &r[0]);
    c[1] = expect(w, 2, SKV_PREPARE, &r[1]);
    assert_int_equal(r[0].session, r[1].session);
    assert_int_equal(r[0].sequence, r[1].sequence);
    assert_int_equal(r[0].participants_count, 2);
    assert_int_equal(r[0].items_count, 1);
    assert_int_equal(r[1].items_count, 2);
}

static void all_votes_for_it_commit_everywhere(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct job k = {0};
    struct sn_call *c[2];
    struct skv_request r[2];
    struct skv_request s;
    world_init(&w);
    three_items(&j);
    job_start(&w, &j);
    expect_prepares(&w, c, r);
    answer_ok(&w, c[1], &r[1], 20);
    assert_int_equal(outstanding(&w), 1); /* no COMMIT yet */
    answer_ok(&w, c[0], &r[0], 10);
    c[0] = expect(&w, 0, SKV_COMMIT, &s);
    assert_int_equal(s.sequence, r[0].sequence);
    assert_int_equal(s.items_count, 0);
    answer_rc(&w, c[0], ERR_OK);
    assert_int_equal(j.done, 0);
    /* A lost COMMIT is sent until it is acknowledged; `first` waits. */
    c[1] = expect(&w, 2, SKV_COMMIT, &s);
    refuse(&w, c[1], ERR_NOTLEADER);
    job_add(&k, 0, SKV_PUT);
    job_start(&w, &k);
    struct sn_call *d = expect(&w, 0, SKV_EXECUTE, &s);
    assert_int_equal(s.sequence, r[0].sequence + 1);
    assert_int_equal(s.first, r[0].sequence);
    answer_ok(&w, d, &s, 0);
    run(&w, 3 * SECOND);
    number_answered(r[0].session, r[0].sequence);
    answer_rc(&w, expect(&w, 2, SKV_COMMIT, &s), ERR_OK);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_OK);
    assert_int_equal(j.txn.results[0].number, 20);
    assert_int_equal(j.txn.results[1].number, 10);
    assert_int_equal(j.txn.results[2].number, 21);
    assert_int_equal(outstanding(&w), 0);
    job_fini(&j);
    job_fini(&k);
    world_fini(&w);
}

static void a_conflict_aborts_all_and_is_told_when_they_know(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct sn_call *c[2];
    struct skv_request r[2];
    struct skv_request s;
    world_init(&w);
    three_items(&j);
    job_start(&w, &j);
    expect_prepares(&w, c, r);
    answer_ok(&w, c[0], &r[0], 10);
    struct skv_reply reply = {.rc = ERR_CONFLICT, .failed = 0};
    answer(&w, c[1], &reply);
    answer_rc(&w, expect(&w, 0, SKV_ABORT, &s), ERR_OK);
    assert_int_equal(s.sequence, r[0].sequence);
    assert_int_equal(j.done, 0);
    answer_rc(&w, expect(&w, 2, SKV_ABORT, &s), ERR_ABORTED);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_CONFLICT);
    assert_int_equal(j.txn.failed, 0);
    assert_int_equal(outstanding(&w), 0);
    job_fini(&j);
    world_fini(&w);
}

/* Wrong if it was tried again with the aborted number: the shards would answer
 * that it was aborted, for ever. */
static void a_lock_aborts_and_tries_anew_with_a_new_number(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct sn_call *c[2];
    struct skv_request r[2];
    struct skv_request s;
    world_init(&w);
    three_items(&j);
    job_start(&w, &j);
    expect_prepares(&w, c, r);
    answer_locked(&w, c[0], 77, 3);
    /* The other vote is not waited for. */
    answer_rc(&w, expect(&w, 0, SKV_ABORT, &s), ERR_OK);
    answer_rc(&w, expect(&w, 2, SKV_ABORT, &s), ERR_OK);
    number_answered(r[0].session, r[0].sequence);
    uint64_t old = r[0].sequence;
    expect_prepares(&w, c, r);
    assert_int_equal(r[0].sequence, old + 1);
    assert_int_equal(r[0].first, old + 1);
    answer_ok(&w, c[0], &r[0], 10);
    answer_ok(&w, c[1], &r[1], 20);
    answer_rc(&w, expect(&w, 0, SKV_COMMIT, &s), ERR_OK);
    answer_rc(&w, expect(&w, 2, SKV_COMMIT, &s), ERR_OK);
    assert_int_equal(j.txn.rc, ERR_OK);
    job_fini(&j);
    world_fini(&w);
}

/* Not the first of its shards, nor one that only has not heard of the end. */
static void who_met_the_lock_is_named(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct sn_call *c[2];
    struct skv_request r[2];
    char words[256];
    world_init(&w);
    three_items(&j);
    j.txn.timeout_ms = 300;
    job_start(&w, &j);
    expect_prepares(&w, c, r);
    answer_locked(&w, c[0], 77, 3);
    number_answered(r[0].session, r[0].sequence);
    run(&w, 301 * MS);
    assert_int_equal(j.done, 1);
    assert_int_equal(j.txn.rc, ERR_TIMEDOUT);
    assert_true(j.txn.stuck.locked);
    skv_txn_explain(&j.txn, words, sizeof words);
    assert_string_equal(words,
                        "shard 0 of group 1 was locked by another transaction "
                        "for 300 ms; `flotilla status` says more");
    job_fini(&j);
    world_fini(&w);
}

/* A one-shard request trips over the same lock until the clerk resolves it. */
static void resolve_flow(enum err second_vote, uint8_t decision)
{
    struct world w;
    struct job j = {0};
    struct skv_request r;
    struct skv_request s;
    world_init(&w);
    job_add(&j, 1, SKV_PUT);
    job_start(&w, &j);
    uint64_t start = w.sn.now_us;
    struct sn_call *c = NULL;
    uint32_t locked = 0;
    for (;; locked++) {
        c = expect(&w, 1, ANY_PHASE, &r);
        if (r.phase == SKV_RESOLVE) {
            break;
        }
        assert_int_equal(r.sequence, 1);             /* it was not executed */
        assert_true((r.flags & SKV_FLAG_OPEN) != 0); /* nor remembered */
        answer_locked(&w, c, 77, 3);
    }
    assert_true(locked > 2);
    assert_true(w.sn.now_us - start >= 500 * MS);
    assert_int_equal(r.session, 77);
    assert_int_equal(r.sequence, 3);
    assert_int_equal(r.first, 0);
    answer_rc(&w, c, ERR_OK);
    answer_rc(&w, expect(&w, 2, SKV_RESOLVE, &s), second_vote);
    answer_rc(&w, expect(&w, 1, decision, &s), ERR_OK);
    assert_int_equal(s.session, 77);
    c = expect(&w, 2, decision, &s);
    refuse(&w, c, ERR_CLOSED);
    answer_rc(&w, expect(&w, 2, decision, &s), ERR_OK);
    c = expect(&w, 1, SKV_EXECUTE, &r);
    answer_ok(&w, c, &r, 0);
    assert_int_equal(j.txn.rc, ERR_OK);
    job_fini(&j);
    world_fini(&w);
}

static void an_old_lock_is_resolved_to_commit(void **state)
{
    (void)state;
    resolve_flow(ERR_OK, SKV_COMMIT);
}

static void an_old_lock_is_resolved_to_abort(void **state)
{
    (void)state;
    resolve_flow(ERR_ABORTED, SKV_ABORT);
}

/* Wrong if the caller was told that it timed out though it is committed, or if
 * the COMMIT stopped with the caller. */
static void a_deadline_in_phase_two_is_a_success(void **state)
{
    (void)state;
    struct world w;
    struct job *j = mem_alloc(sizeof *j);
    struct sn_call *c[2];
    struct skv_request r[2];
    struct skv_request s;
    world_init(&w);
    three_items(j);
    j->txn.timeout_ms = 1000;
    job_start(&w, j);
    expect_prepares(&w, c, r);
    answer_ok(&w, c[0], &r[0], 10);
    answer_ok(&w, c[1], &r[1], 20);
    answer_rc(&w, expect(&w, 0, SKV_COMMIT, &s), ERR_OK);
    run(&w, 2 * SECOND);
    assert_int_equal(j->done, 1);
    assert_int_equal(j->txn.rc, ERR_OK);
    assert_int_equal(j->txn.results[2].number, 21);
    job_fini(j);
    mem_free(j); /* nothing may touch it now */
    run(&w, 5 * SECOND);
    number_answered(r[0].session, r[0].sequence);
    answer_rc(&w, expect(&w, 2, SKV_COMMIT, &s), ERR_OK);
    run(&w, SECOND);
    assert_int_equal(outstanding(&w), 0);
    world_fini(&w);
}

/* Wrong if a vote that is only unknown was taken for a vote against: somebody
 * else may have seen all votes and committed. */
static void leaving_flow(bool cancel, enum err vote, uint8_t decision)
{
    struct world w;
    struct job *j = mem_alloc(sizeof *j);
    struct sn_call *c[2];
    struct skv_request r[2];
    struct skv_request s;
    world_init(&w);
    three_items(j);
    j->txn.timeout_ms = cancel ? 0 : 1000;
    job_start(&w, j);
    expect_prepares(&w, c, r);
    answer_ok(&w, c[0], &r[0], 10);
    if (cancel) {
        skv_clerk_cancel(w.clerk, &j->txn);
        assert_int_equal(j->done, 0);
    }
    run(&w, 1100 * MS);
    assert_int_equal(j->done, 1);
    assert_int_equal(j->txn.rc, cancel ? ERR_INTERRUPTED : ERR_TIMEDOUT);
    job_fini(j);
    mem_free(j);
    c[1] = expect(&w, 2, SKV_RESOLVE, &s);
    assert_int_equal(s.session, r[0].session);
    assert_int_equal(s.sequence, r[0].sequence);
    answer_rc(&w, c[1], vote);
    answer_rc(&w, expect(&w, 0, decision, &s), ERR_OK);
    answer_rc(&w, expect(&w, 2, decision, &s), ERR_OK);
    run(&w, SECOND);
    assert_int_equal(outstanding(&w), 0);
    world_fini(&w);
}

static void a_deadline_in_phase_one_is_resolved_behind_the_caller(void **state)
{
    (void)state;
    leaving_flow(false, ERR_OK, SKV_COMMIT);
    leaving_flow(false, ERR_ABORTED, SKV_ABORT);
}

static void a_cancelled_commit_is_resolved_behind_the_caller(void **state)
{
    (void)state;
    leaving_flow(true, ERR_OK, SKV_COMMIT);
    leaving_flow(true, ERR_ABORTED, SKV_ABORT);
}

/* Wrong if the clerk resolved its own transactions, or waited for itself. */
static void its_own_locks_are_not_resolved(void **state)
{
    (void)state;
    struct world w;
    struct job j = {0};
    struct job k = {0};
    struct sn_call *c[2];
    struct skv_request r[2];
    struct skv_request s;
    world_init(&w);
    three_items(&j);
    job_start(&w, &j);
    expect_prepares(&w, c, r);
    answer_ok(&w, c[0], &r[0], 10);
    job_add(&k, 0, SKV_PUT);
    job_start(&w, &k);
    for (uint64_t end = w.sn.now_us + SECOND; w.sn.now_us < end;) {
        struct sn_call *d = expect(&w, 0, ANY_PHASE, &s);
        assert_int_equal(s.phase, SKV_EXECUTE);
        answer_locked(&w, d, r[0].session, r[0].sequence);
        assert_int_equal(outstanding(&w), 1); /* the other PREPARE */
    }
    answer_ok(&w, expect(&w, 2, SKV_PREPARE, &r[1]), &r[1], 20);
    answer_rc(&w, expect(&w, 0, SKV_COMMIT, &s), ERR_OK);
    number_answered(r[0].session, r[0].sequence);
    answer_rc(&w, expect(&w, 2, SKV_COMMIT, &s), ERR_OK);
    answer_ok(&w, expect(&w, 0, SKV_EXECUTE, &s), &s, 0);
    assert_int_equal(j.txn.rc, ERR_OK);
    assert_int_equal(k.txn.rc, ERR_OK);
    job_fini(&j);
    job_fini(&k);
    world_fini(&w);
}

/* ---- bytes from strangers ---- */

/* Wrong if a reply's counts or codes are believed. */
static void a_reply_may_be_any_bytes(void **state)
{
    (void)state;
    struct world w;
    struct rng rng = {.state = 5};
    world_init(&w);
    for (int i = 0; i < 300; i++) {
        struct job j = {0};
        struct skv_request r;
        uint8_t bytes[40];
        size_t size = rng_below(&rng, sizeof bytes);
        for (size_t k = 0; k < size; k++) {
            bytes[k] = rng_chance(&rng, 700) ? 0 : (uint8_t)rng_next(&rng);
        }
        job_add(&j, 1, i % 2 == 0 ? SKV_GET : SKV_PUT);
        if (i % 5 == 0) {
            job_add(&j, 2, SKV_PUT);
        }
        j.txn.timeout_ms = 50;
        job_start(&w, &j);
        struct sn_call *c = expect(&w, 1, ANY_PHASE, &r);
        sn_answer(&w.sn, c, ERR_OK, slice_of(bytes, size));
        run(&w, 100 * MS);
        assert_int_equal(j.done, 1);
        job_fini(&j);
        /* Drop what a transaction left behind, and begin anew. */
        world_fini(&w);
        world_init(&w);
    }
    world_fini(&w);
}

/* ---- the controller's clerk ---- */

static uint32_t changes_done;
static enum err change_rc;
static uint64_t change_number;

static void changed(void *arg, enum err rc, uint64_t number)
{
    (void)arg;
    changes_done++;
    change_rc = rc;
    change_number = number;
}

static struct sn_call *find_change(const struct sn *s)
{
    struct sn_call *c = s->calls;
    while (c != NULL && c->method != CTL_METHOD_CHANGE) {
        c = c->next;
    }
    return c;
}

static struct sn_call *expect_change(struct sn *s, struct ctl_change *c,
                                     struct arena *a)
{
    uint64_t until = s->now_us + 10 * SECOND;
    while (find_change(s) == NULL) {
        assert_true(sn_step(s, until));
    }
    struct sn_call *found = find_change(s);
    assert_int_equal(ctl_change_decode(buf_slice(&found->body), a, c), ERR_OK);
    return found;
}

static void answer_change(struct sn *s, struct sn_call *c, enum err rc,
                          uint64_t number)
{
    struct buf b = {0};
    struct ctl_changed out = {.rc = rc, .number = number};
    ctl_changed_encode(&b, &out);
    sn_answer(s, c, ERR_OK, buf_slice(&b));
    buf_free(&b);
}

/* Wrong if a retry was a second change, or two were on their way together. */
static void a_change_keeps_its_number_and_waits_its_turn(void **state)
{
    (void)state;
    static const char controllers[3][NET_ADDRESS_SIZE_MAX] = {"c1:1", "c2:1",
                                                              "c3:1"};
    struct sn s;
    struct arena a = {0};
    struct ctl_change move = {.kind = CTL_MOVE, .move_shard = 1, .move_gid = 2};
    struct ctl_change r;
    struct ctl_change again;
    changes_done = 0;
    sn_init(&s, 1);
    struct ctl_client *ctl = ctl_client_new(&s.env, &s.net, controllers, 3);
    ctl_client_change(ctl, &move, 20000, changed, NULL);
    ctl_client_change(ctl, &move, 20000, changed, NULL);
    ctl_client_change(ctl, &move, 500, changed, NULL);
    struct sn_call *c = expect_change(&s, &r, &a);
    assert_null(c->next);
    assert_int_equal(r.sequence, 1);
    char address[NET_ADDRESS_SIZE_MAX];
    memcpy(address, c->address, sizeof address);
    sn_answer(&s, c, ERR_NOTLEADER, slice_of(NULL, 0));
    c = expect_change(&s, &again, &a);
    assert_string_not_equal(c->address, address);
    sn_run(&s, 1100 * MS); /* lost; the third gives up meanwhile */
    assert_int_equal(changes_done, 1);
    assert_int_equal(change_rc, ERR_TIMEDOUT);
    c = expect_change(&s, &again, &a);
    assert_int_equal(again.session, r.session);
    assert_int_equal(again.sequence, 1);
    answer_change(&s, c, ERR_BUSY, 0);
    assert_null(find_change(&s));
    c = expect_change(&s, &again, &a);
    assert_int_equal(again.sequence, 1);
    memcpy(address, c->address, sizeof address);
    answer_change(&s, c, ERR_OK, 9);
    assert_int_equal(changes_done, 2);
    assert_int_equal(change_number, 9);
    c = expect_change(&s, &again, &a);
    assert_int_equal(again.sequence, 2);
    assert_string_equal(c->address, address); /* the leader is remembered */
    answer_change(&s, c, ERR_EXPIRED, 0);     /* never executed: once more */
    c = expect_change(&s, &again, &a);
    assert_true(again.session != r.session);
    assert_int_equal(again.sequence, 1);
    answer_change(&s, c, ERR_NOTFOUND, 9);
    assert_int_equal(changes_done, 3);
    assert_int_equal(change_rc, ERR_NOTFOUND);
    ctl_client_change(ctl, &move, 20000, changed, NULL);
    ctl_client_change(ctl, &move, 20000, changed, NULL);
    ctl_client_free(ctl);
    assert_int_equal(changes_done, 5);
    assert_int_equal(change_rc, ERR_CLOSED);
    arena_free(&a);
    sn_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_read_has_no_session_and_gives_its_results),
        cmocka_unit_test(retries_keep_session_and_sequence),
        cmocka_unit_test(pauses_grow_and_are_bounded),
        cmocka_unit_test(first_never_passes_an_unanswered_number),
        cmocka_unit_test(a_wrong_group_makes_it_fetch_the_newer_configuration),
        cmocka_unit_test(whoever_refuses_a_shard_says_whom_to_ask),
        cmocka_unit_test(a_shard_of_nobody_waits_for_an_owner),
        cmocka_unit_test(a_conflict_is_final_and_names_the_compare),
        cmocka_unit_test(an_expired_session_is_renewed_only_when_that_is_safe),
        cmocka_unit_test(a_deadline_ends_a_waiting_request),
        cmocka_unit_test(who_did_not_answer_is_named_not_the_owner_to_be),
        cmocka_unit_test(closing_answers_everybody_once),
        cmocka_unit_test(more_than_the_bound_wait_in_order),
        cmocka_unit_test(
            a_silent_server_is_asked_whether_it_lives_and_then_left),
        cmocka_unit_test(another_that_leads_is_turned_to_at_once),
        cmocka_unit_test(one_that_leads_from_now_on_is_found_at_the_next_look),
        cmocka_unit_test(a_slow_server_that_lives_is_waited_for),
        cmocka_unit_test(long_requests_wait_in_line),
        cmocka_unit_test(who_waits_in_line_goes_where_the_shard_goes),
        cmocka_unit_test(a_server_that_answers_requests_is_not_silent),
        cmocka_unit_test(each_try_that_ends_gives_the_next_more_time),
        cmocka_unit_test(nonsense_is_refused_without_the_net),
        cmocka_unit_test(all_votes_for_it_commit_everywhere),
        cmocka_unit_test(a_conflict_aborts_all_and_is_told_when_they_know),
        cmocka_unit_test(a_lock_aborts_and_tries_anew_with_a_new_number),
        cmocka_unit_test(who_met_the_lock_is_named),
        cmocka_unit_test(an_old_lock_is_resolved_to_commit),
        cmocka_unit_test(an_old_lock_is_resolved_to_abort),
        cmocka_unit_test(a_deadline_in_phase_two_is_a_success),
        cmocka_unit_test(a_deadline_in_phase_one_is_resolved_behind_the_caller),
        cmocka_unit_test(a_cancelled_commit_is_resolved_behind_the_caller),
        cmocka_unit_test(its_own_locks_are_not_resolved),
        cmocka_unit_test(a_reply_may_be_any_bytes),
        cmocka_unit_test(a_change_keeps_its_number_and_waits_its_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
