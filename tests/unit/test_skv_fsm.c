/* The state machine of a group, driven by plain entries over the store in
 * memory: what is executed, what is refused, what is remembered; where that
 * survives a restart, a snapshot and a move to another group. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "shardkv/fsm_int.h"
#include "tests/lib/command.h"

enum { SHARDS = 4, SESSION = 7001 };

/* ---- a group ---- */

struct group {
    struct skv_mem_image image;
    struct skv_fsm *fsm;
    raft_index index;
    uint64_t clock_us;
    struct buf answer; /* of the last command */
    struct arena arena;
    struct skv_reply reply; /* of the last request */
};

static void group_open(struct group *g, ctl_gid gid)
{
    struct skv_store *s = skv_store_mem_open(&g->image);
    g->fsm = skv_fsm_new(s, gid);
    assert_int_equal(skv_fsm_ready(g->fsm), ERR_OK);
    raft_term term = 0;
    g->index = g->fsm->fsm.ops->durable(&g->fsm->fsm, &term);
}

static void group_close(struct group *g)
{
    skv_fsm_free(g->fsm);
    skv_mem_image_fini(&g->image);
    buf_free(&g->answer);
    arena_free(&g->arena);
    *g = (struct group){0};
}

static void checkpoint(struct group *g)
{
    assert_int_equal(g->fsm->fsm.ops->checkpoint(&g->fsm->fsm), ERR_OK);
}

/* As after a crash right behind a checkpoint. */
static void reopen(struct group *g)
{
    ctl_gid gid = g->fsm->gid;
    checkpoint(g);
    skv_fsm_free(g->fsm);
    group_open(g, gid);
}

static void apply_entry(struct group *g, enum raft_entry_type type,
                        struct slice command)
{
    buf_clear(&g->answer);
    struct rsm_entry e = {.index = ++g->index,
                          .term = 1,
                          .type = type,
                          .command = command,
                          .reply = &g->answer};
    assert_int_equal(g->fsm->fsm.ops->apply(&g->fsm->fsm, &e, 1), ERR_OK);
}

/* Takes the command. */
static struct skv_outcome run(struct group *g, struct bytes *command)
{
    struct skv_outcome outcome;
    apply_entry(g, RAFT_ENTRY_COMMAND, bytes_slice(command));
    bytes_unref(command);
    assert_int_equal(
        skv_outcome_decode(buf_slice(&g->answer), &g->arena, &outcome), ERR_OK);
    return outcome;
}

static enum err step(struct group *g, enum skv_command_kind kind,
                     uint16_t shard, uint64_t number)
{
    return (enum err)run(g, skv_command_step(kind, shard, number)).rc;
}

/* Configuration `number`: shard s belongs to owners[s]; groups 1 and 2. */
static enum err configure(struct group *g, uint64_t number,
                          const ctl_gid owners[SHARDS])
{
    struct ctl_server servers[2] = {{.id = 1, .address = slice_text("a:1")},
                                    {.id = 1, .address = slice_text("b:1")}};
    struct ctl_group groups[2] = {
        {.gid = 1, .servers = &servers[0], .servers_count = 1},
        {.gid = 2, .servers = &servers[1], .servers_count = 1}};
    struct ctl_owner shards[SHARDS];
    for (int i = 0; i < SHARDS; i++) {
        shards[i].gid = owners[i];
    }
    struct ctl_config c = {.number = number,
                           .shards = shards,
                           .shards_count = SHARDS,
                           .groups = groups,
                           .groups_count = 2};
    return (enum err)run(g, skv_command_config(&c)).rc;
}

static const ctl_gid ALL_ONE[SHARDS] = {1, 1, 1, 1};

static void group_new(struct group *g)
{
    *g = (struct group){.clock_us = 1000};
    group_open(g, 1);
    assert_int_equal(configure(g, 1, ALL_ONE), ERR_OK);
}

static void send(struct group *g, const struct skv_request *q)
{
    struct buf b = {0};
    skv_request_encode(&b, q);
    struct bytes *command = command_of(++g->clock_us, buf_slice(&b));
    apply_entry(g, RAFT_ENTRY_COMMAND, bytes_slice(command));
    bytes_unref(command);
    buf_free(&b);
    struct slice answer = arena_copy(&g->arena, buf_slice(&g->answer));
    assert_int_equal(skv_reply_decode(answer, &g->arena, &g->reply), ERR_OK);
}

/* ---- keys and requests ---- */

/* "1:name" in shard 1, object 9; a ring of names, enough for one test's line.
 */
static struct slice key(const char *text)
{
    static uint8_t ring[64][64];
    static unsigned next;
    uint8_t *to = ring[next++ % 64];
    size_t size = strlen(text + 2);
    set_be64(to, (uint64_t)(text[0] - '0') << 48 | 9);
    memcpy(to + 8, text + 2, size);
    return slice_of(to, 8 + size);
}

static struct skv_item item(uint8_t kind, const char *name, const char *data)
{
    return (struct skv_item){
        .kind = kind, .key = key(name), .data = slice_text(data)};
}

static struct skv_item ranged(uint8_t kind, const char *name, uint64_t offset,
                              uint64_t number)
{
    return (struct skv_item){
        .kind = kind, .key = key(name), .offset = offset, .number = number};
}

/* Executes as number `sequence` of the session; all below are answered. */
static enum err execute_as(struct group *g, uint64_t sequence,
                           struct skv_item *items, uint32_t count)
{
    struct skv_request q = {.session = SESSION,
                            .sequence = sequence,
                            .first = 1,
                            .flags = SKV_FLAG_OPEN,
                            .shard = get_be16(items[0].via.size > 0
                                                  ? items[0].via.data
                                                  : items[0].key.data),
                            .items = items,
                            .items_count = count};
    send(g, &q);
    return (enum err)g->reply.rc;
}

static uint64_t numbers = 100;
static enum err execute(struct group *g, struct skv_item *items, uint32_t count)
{
    return execute_as(g, ++numbers, items, count);
}
#define EXECUTE(g, ...)                                                        \
    execute(g, (struct skv_item[]){__VA_ARGS__},                               \
            sizeof((struct skv_item[]){__VA_ARGS__}) /                         \
                sizeof(struct skv_item))

static enum err read_items(struct group *g, struct skv_item *items,
                           uint32_t count)
{
    struct buf b = {0};
    struct buf out = {0};
    struct skv_request q = {.shard = get_be16(items[0].key.data),
                            .items = items,
                            .items_count = count};
    skv_request_encode(&b, &q);
    assert_int_equal(skv_apply_read(g->fsm, buf_slice(&b), &out), ERR_OK);
    struct slice answer = arena_copy(&g->arena, buf_slice(&out));
    assert_int_equal(skv_reply_decode(answer, &g->arena, &g->reply), ERR_OK);
    buf_free(&b);
    buf_free(&out);
    return (enum err)g->reply.rc;
}

static void assert_value(struct group *g, const char *name, const char *text)
{
    struct skv_item get = ranged(SKV_GET, name, 0, 1 << 20);
    assert_int_equal(read_items(g, &get, 1), ERR_OK);
    assert_int_equal(g->reply.results[0].rc, ERR_OK);
    assert_int_equal(slice_compare(g->reply.results[0].data, slice_text(text)),
                     0);
    assert_int_equal(g->reply.results[0].number, strlen(text));
}

static void assert_missing(struct group *g, const char *name)
{
    struct skv_item get = ranged(SKV_GET, name, 0, 1);
    assert_int_equal(read_items(g, &get, 1), ERR_OK);
    assert_int_equal(g->reply.results[0].rc, ERR_NOTFOUND);
}

static void put(struct group *g, const char *name, const char *text)
{
    assert_int_equal(EXECUTE(g, item(SKV_PUT, name, text)), ERR_OK);
}

/* ---- items ---- */

static void each_kind_of_write_does_what_it_says(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    put(&g, "0:a", "hello");
    assert_value(&g, "0:a", "hello");
    assert_int_equal(EXECUTE(&g, item(SKV_APPEND, "0:a", " you")), ERR_OK);
    assert_int_equal(g.reply.results[0].number, 5);
    assert_value(&g, "0:a", "hello you");
    struct skv_item range = item(SKV_PUT_RANGE, "0:a", "J");
    assert_int_equal(EXECUTE(&g, range), ERR_OK);
    assert_value(&g, "0:a", "Jello you");
    assert_int_equal(EXECUTE(&g, ranged(SKV_TRUNCATE, "0:a", 0, 5)), ERR_OK);
    assert_value(&g, "0:a", "Jello");
    assert_int_equal(EXECUTE(&g, ranged(SKV_PUNCH, "0:a", 1, 2)), ERR_OK);
    struct skv_item get = ranged(SKV_GET, "0:a", 0, 9);
    assert_int_equal(read_items(&g, &get, 1), ERR_OK);
    assert_memory_equal(g.reply.results[0].data.data, "J\0\0lo", 5);
    assert_int_equal(EXECUTE(&g, ranged(SKV_PUNCH, "0:none", 0, 9)), ERR_OK);
    assert_missing(&g, "0:none");
    assert_int_equal(EXECUTE(&g, ranged(SKV_ADD, "0:n", 8, 5)), ERR_OK);
    assert_int_equal(g.reply.results[0].number, 5);
    assert_int_equal(EXECUTE(&g, ranged(SKV_ADD, "0:n", 8, (uint64_t)-7)),
                     ERR_OK);
    assert_int_equal(g.reply.results[0].number, (uint64_t)-2);
    assert_int_equal(EXECUTE(&g, item(SKV_DELETE, "0:a", "")), ERR_OK);
    assert_missing(&g, "0:a");
    put(&g, "0:dir/1", "x");
    put(&g, "0:dir/2", "x");
    put(&g, "0:dirt", "x");
    assert_int_equal(EXECUTE(&g, item(SKV_DELETE_PREFIX, "0:dir/", "")),
                     ERR_OK);
    assert_missing(&g, "0:dir/1");
    assert_missing(&g, "0:dir/2");
    assert_value(&g, "0:dirt", "x");
    group_close(&g);
}

static void compares_hold_or_refuse(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    put(&g, "0:a", "hello");
    struct {
        struct skv_item compare;
        enum err rc;
    } cases[] = {
        {item(SKV_CMP_EXISTS, "0:a", ""), ERR_OK},
        {item(SKV_CMP_EXISTS, "0:b", ""), ERR_CONFLICT},
        {item(SKV_CMP_ABSENT, "0:b", ""), ERR_OK},
        {item(SKV_CMP_ABSENT, "0:a", ""), ERR_CONFLICT},
        {item(SKV_CMP_BYTES, "0:a", "hell"), ERR_OK},
        {item(SKV_CMP_BYTES, "0:a", "help"), ERR_CONFLICT},
        {item(SKV_CMP_BYTES, "0:a", "hello!"), ERR_CONFLICT},
        {item(SKV_CMP_BYTES, "0:b", ""), ERR_CONFLICT},
        {ranged(SKV_CMP_LENGTH, "0:a", 0, 5), ERR_OK},
        {ranged(SKV_CMP_LENGTH, "0:a", 0, 4), ERR_CONFLICT},
        {ranged(SKV_CMP_LENGTH, "0:b", 0, 0), ERR_CONFLICT},
        {item(SKV_CMP_EMPTY, "0:b", ""), ERR_OK},
        {item(SKV_CMP_EMPTY, "0:", ""), ERR_CONFLICT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum err rc =
            EXECUTE(&g, item(SKV_PUT, "0:z", "written"), cases[i].compare);
        assert_int_equal(rc, cases[i].rc);
        if (rc == ERR_OK) {
            assert_value(&g, "0:z", "written");
            assert_int_equal(EXECUTE(&g, item(SKV_DELETE, "0:z", "")), ERR_OK);
        } else {
            assert_int_equal(g.reply.failed, 1);
            assert_int_equal(g.reply.results[1].rc, ERR_CONFLICT);
            assert_missing(&g, "0:z");
        }
    }
    group_close(&g);
}

static void reads_see_what_was_before_the_writes(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    put(&g, "0:a", "old");
    assert_int_equal(EXECUTE(&g, item(SKV_PUT, "0:a", "new"),
                             ranged(SKV_GET, "0:a", 1, 9),
                             ranged(SKV_LENGTH, "0:a", 0, 0),
                             ranged(SKV_GET, "0:none", 0, 9)),
                     ERR_OK);
    assert_int_equal(slice_compare(g.reply.results[1].data, slice_text("ld")),
                     0);
    assert_int_equal(g.reply.results[2].number, 3);
    assert_int_equal(g.reply.results[3].rc, ERR_NOTFOUND);
    assert_value(&g, "0:a", "new");
    group_close(&g);
}

static void a_scan_pages(void **state)
{
    struct group g;
    struct skv_scan page;
    (void)state;
    group_new(&g);
    put(&g, "0:d/a", "1");
    put(&g, "0:d/b", "22");
    put(&g, "0:d/c", "333");
    put(&g, "0:e", "x");
    struct skv_item scan = ranged(SKV_SCAN, "0:d/", 0, 2);
    assert_int_equal(read_items(&g, &scan, 1), ERR_OK);
    assert_int_equal(g.reply.results[0].number, 1);
    assert_int_equal(skv_scan_decode(g.reply.results[0].data, &g.arena, &page),
                     ERR_OK);
    assert_int_equal(page.entries_count, 2);
    assert_int_equal(slice_compare(page.entries[1].key, key("0:d/b")), 0);
    assert_int_equal(page.entries[1].length, 2);
    scan.data = slice_text("b");
    assert_int_equal(read_items(&g, &scan, 1), ERR_OK);
    assert_int_equal(g.reply.results[0].number, 0);
    assert_int_equal(skv_scan_decode(g.reply.results[0].data, &g.arena, &page),
                     ERR_OK);
    assert_int_equal(page.entries_count, 1);
    assert_int_equal(slice_compare(page.entries[0].head, slice_text("333")), 0);
    group_close(&g);
}

static struct skv_item through(const char *via, const char *rest,
                               struct skv_item it)
{
    it.via = key(via);
    it.key = slice_text(rest);
    return it;
}

static void an_indirect_item_follows_the_value_it_names(void **state)
{
    struct group g;
    uint8_t id[8];
    (void)state;
    group_new(&g);
    put(&g, "0:target", "T");
    memcpy(id, key("0:").data, 8);
    struct skv_item link = item(SKV_PUT, "0:link", "");
    link.data = slice_of(id, 8);
    assert_int_equal(EXECUTE(&g, link), ERR_OK);
    set_be64(id, 1ull << 48 | 9);
    link.key = key("0:away");
    assert_int_equal(EXECUTE(&g, link), ERR_OK);
    set_be64(id, 0); /* object 0 of shard 0: nobody's business */
    link.key = key("0:evil");
    assert_int_equal(EXECUTE(&g, link), ERR_OK);

    struct skv_item get = ranged(SKV_GET, "0:x", 0, 9);
    struct skv_item via[] = {through("0:link", "target", get),
                             through("0:away", "target", get),
                             through("0:none", "target", get)};
    struct skv_request q = {.items = via, .items_count = 3};
    send(&g, &q);
    assert_int_equal(g.reply.rc, ERR_OK);
    assert_int_equal(slice_compare(g.reply.results[0].data, slice_text("T")),
                     0);
    assert_int_equal(g.reply.results[1].rc, ERR_ELSEWHERE);
    assert_int_equal(g.reply.results[2].rc, ERR_NOTFOUND);

    struct skv_item write = item(SKV_PUT, "0:x", "W");
    assert_int_equal(EXECUTE(&g, item(SKV_PUT, "0:side", "1"),
                             through("0:away", "target", write)),
                     ERR_ELSEWHERE);
    assert_int_equal(g.reply.failed, 1);
    assert_int_equal(EXECUTE(&g, through("0:evil", "Sxxxxxxxx", write)),
                     ERR_INVALID);
    assert_missing(&g, "0:side");
    assert_int_equal(EXECUTE(&g, through("0:link", "target", write)), ERR_OK);
    assert_value(&g, "0:target", "W");
    group_close(&g);
}

/* Each could be refused only after an earlier item was written, if the checks
 * were not made first. */
static void a_refused_transaction_writes_nothing(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(
        EXECUTE(&g, ranged(SKV_TRUNCATE, "0:big", 0, SKV_VALUE_SIZE_MAX >> 20)),
        ERR_OK);
    struct skv_item first = item(SKV_PUT, "0:first", "1");
    assert_int_equal(EXECUTE(&g, first, ranged(SKV_ADD, "0:big", 0, 1)),
                     ERR_TOOBIG);
    assert_int_equal(EXECUTE(&g, first, ranged(SKV_GET, "0:big", 0, 1)),
                     ERR_TOOBIG);
    assert_int_equal(EXECUTE(&g, first, item(SKV_CMP_BYTES, "0:big", "x")),
                     ERR_TOOBIG);
    /* Large only by what the transaction itself writes. */
    assert_int_equal(
        EXECUTE(&g, first,
                ranged(SKV_TRUNCATE, "0:new", 0, SKV_INLINE_SIZE_MAX + 1),
                ranged(SKV_ADD, "0:new", 0, 1)),
        ERR_TOOBIG);
    assert_int_equal(
        EXECUTE(&g, first,
                ranged(SKV_ADD, "0:new", SKV_INLINE_SIZE_MAX - 7, 1)),
        ERR_TOOBIG);
    assert_missing(&g, "0:first");
    assert_missing(&g, "0:new");
    /* And small by it. */
    assert_int_equal(EXECUTE(&g, ranged(SKV_TRUNCATE, "0:big", 0, 0),
                             ranged(SKV_ADD, "0:big", 0, 3)),
                     ERR_OK);
    assert_int_equal(g.reply.results[1].number, 3);
    group_close(&g);
}

static void an_item_sees_the_writes_before_it(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    put(&g, "0:a", "zzzzzzzzzzzz");
    assert_int_equal(
        EXECUTE(&g, item(SKV_PUT, "0:a", "\1"), item(SKV_APPEND, "0:a", "x"),
                ranged(SKV_TRUNCATE, "0:a", 0, 1), item(SKV_APPEND, "0:a", "y"),
                ranged(SKV_ADD, "0:a", 0, 2), ranged(SKV_PUNCH, "0:a", 0, 1),
                ranged(SKV_ADD, "0:a", 0, 5), item(SKV_DELETE_PREFIX, "0:", ""),
                item(SKV_APPEND, "0:a", "fin")),
        ERR_OK);
    assert_int_equal(g.reply.results[1].number, 1);
    assert_int_equal(g.reply.results[3].number, 1);
    assert_int_equal(g.reply.results[4].number, 3 | 'y' << 8);
    assert_int_equal(g.reply.results[6].number, 5 | 'y' << 8);
    assert_int_equal(g.reply.results[8].number, 0);
    assert_value(&g, "0:a", "fin");
    group_close(&g);
}

static void nonsense_is_answered_and_changes_nothing(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    struct bytes *command = command_of(1, slice_text("not a request at all"));
    apply_entry(&g, RAFT_ENTRY_COMMAND, bytes_slice(command));
    bytes_unref(command);
    struct dec d = dec_of(buf_slice(&g.answer));
    assert_int_equal(dec_u32(&d), ERR_INVALID);
    struct skv_item own = item(SKV_PUT, "0:x", "1");
    uint8_t zero[9] = {0};
    own.key = slice_of(zero, sizeof zero);
    assert_int_equal(EXECUTE(&g, own), ERR_INVALID);
    apply_entry(&g, RAFT_ENTRY_NOOP, slice_of(NULL, 0));
    assert_int_equal(g.fsm->index, g.index);
    group_close(&g);
}

/* ---- exactly once ---- */

static void append_as(struct group *g, uint64_t sequence, enum err expected)
{
    struct skv_item it = item(SKV_APPEND, "0:log", "x");
    assert_int_equal(execute_as(g, sequence, &it, 1), expected);
}

static void a_retry_is_answered_and_not_executed(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    append_as(&g, 1, ERR_OK);
    append_as(&g, 2, ERR_OK);
    append_as(&g, 1, ERR_OK);
    assert_int_equal(g.reply.results[0].number, 0);
    append_as(&g, 2, ERR_OK);
    assert_int_equal(g.reply.results[0].number, 1);
    assert_value(&g, "0:log", "xx");
    group_close(&g);
}

static void a_refusal_is_remembered_too(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    struct skv_item items[] = {item(SKV_CMP_EXISTS, "0:a", ""),
                               item(SKV_APPEND, "0:log", "x")};
    assert_int_equal(execute_as(&g, 1, items, 2), ERR_CONFLICT);
    put(&g, "0:a", "");
    assert_int_equal(execute_as(&g, 1, items, 2), ERR_CONFLICT);
    assert_missing(&g, "0:log");
    group_close(&g);
}

static void replies_survive_a_restart_and_a_snapshot(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    append_as(&g, 1, ERR_OK);
    reopen(&g);
    append_as(&g, 1, ERR_OK);
    assert_value(&g, "0:log", "x");
    append_as(&g, 2, ERR_OK);
    reopen(&g);
    append_as(&g, 2, ERR_OK);
    assert_value(&g, "0:log", "xx");
    group_close(&g);
}

/* A crash must take the change and its reply together. */
static void a_change_and_its_reply_are_lost_together(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    checkpoint(&g);
    append_as(&g, 1, ERR_OK);
    skv_fsm_free(g.fsm);
    group_open(&g, 1);
    append_as(&g, 1, ERR_OK);
    assert_value(&g, "0:log", "x");
    group_close(&g);
}

static void below_first_is_refused_and_forgotten(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    for (uint64_t i = 1; i <= 5; i++) {
        append_as(&g, i, ERR_OK);
    }
    uint64_t keys = 0, after = 0, bytes = 0;
    g.fsm->store->ops->usage(g.fsm->store, &keys, &bytes);
    struct skv_item it = item(SKV_APPEND, "0:log", "y");
    struct skv_request q = {.session = SESSION,
                            .sequence = 6,
                            .first = 5,
                            .items = &it,
                            .items_count = 1};
    send(&g, &q);
    assert_int_equal(g.reply.rc, ERR_OK);
    g.fsm->store->ops->usage(g.fsm->store, &after, &bytes);
    assert_int_equal(after, keys - 4 + 1);
    append_as(&g, 4, ERR_EXPIRED);
    append_as(&g, 5, ERR_OK);
    assert_value(&g, "0:log", "xxxxxy");
    group_close(&g);
}

static void an_unknown_session_must_say_that_it_is_new(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    struct skv_item it = item(SKV_APPEND, "0:log", "y");
    struct skv_request q = {
        .session = 5, .sequence = 1, .items = &it, .items_count = 1};
    send(&g, &q);
    assert_int_equal(g.reply.rc, ERR_EXPIRED);
    assert_missing(&g, "0:log");
    q.flags = SKV_FLAG_OPEN;
    send(&g, &q);
    assert_int_equal(g.reply.rc, ERR_OK);
    group_close(&g);
}

static void unacknowledged_replies_are_bounded(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    for (uint64_t i = 1; i <= SKV_REPLIES_MAX; i++) {
        append_as(&g, i, ERR_OK);
    }
    append_as(&g, SKV_REPLIES_MAX + 1, ERR_BUSY);
    append_as(&g, SKV_REPLIES_MAX, ERR_OK);
    assert_int_equal(g.reply.results[0].number, SKV_REPLIES_MAX - 1);
    group_close(&g);
}

static void idle_sessions_expire(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    append_as(&g, 1, ERR_OK);
    uint64_t day = SKV_SESSION_IDLE_US;
    struct skv_outcome out =
        run(&g, skv_command_expire(g.clock_us + day - 1, 0, 0));
    assert_int_equal(out.more, 0);
    append_as(&g, 1, ERR_OK); /* still known; and used just now */
    g.clock_us += day + 2;
    run(&g, skv_command_expire(g.clock_us + day, 0, 0));
    struct skv_item it = item(SKV_APPEND, "0:log", "y");
    struct skv_request q = {
        .session = SESSION, .sequence = 2, .items = &it, .items_count = 1};
    send(&g, &q);
    assert_int_equal(g.reply.rc, ERR_EXPIRED);
    assert_value(&g, "0:log", "x");
    group_close(&g);
}

static void expiry_goes_on_where_it_stopped(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    for (uint64_t s = 1; s <= SKV_EXPIRE_ROWS_MAX + 5; s++) {
        struct skv_item it = item(SKV_APPEND, "0:log", "y");
        struct skv_request q = {.session = s,
                                .sequence = 1,
                                .flags = SKV_FLAG_OPEN,
                                .items = &it,
                                .items_count = 1};
        send(&g, &q);
    }
    uint64_t late = g.clock_us + 2 * SKV_SESSION_IDLE_US, keys, bytes;
    struct skv_outcome out = run(&g, skv_command_expire(late, 0, 0));
    assert_int_equal(out.more, 1);
    assert_int_equal(out.next, SKV_EXPIRE_ROWS_MAX);
    out = run(&g, skv_command_expire(late, 0, out.next));
    assert_int_equal(out.more, 0);
    struct skv_keys left = {.max = 10};
    struct skv_name all = skv_name_sessions(0);
    assert_int_equal(skv_keys_collect(g.fsm->store, skv_name_slice(&all),
                                      slice_of(NULL, 0), &left),
                     ERR_OK);
    assert_int_equal(left.count, 0);
    skv_keys_free(&left);
    g.fsm->store->ops->usage(g.fsm->store, &keys, &bytes);
    assert_true(keys < 20);
    group_close(&g);
}

/* ---- ownership ---- */

static void a_shard_of_another_group_is_refused(void **state)
{
    struct group g = {0};
    (void)state;
    group_open(&g, 1);
    append_as(&g, 1, ERR_WRONGGROUP);
    assert_int_equal(configure(&g, 1, (ctl_gid[]){2, 1, 1, 1}), ERR_OK);
    append_as(&g, 1, ERR_WRONGGROUP);
    assert_int_equal(g.reply.config_number, 1);
    struct skv_item get = ranged(SKV_GET, "0:log", 0, 1);
    assert_int_equal(read_items(&g, &get, 1), ERR_WRONGGROUP);
    struct skv_item beyond = item(SKV_PUT, "9:x", "");
    assert_int_equal(execute_as(&g, 1, &beyond, 1), ERR_WRONGGROUP);
    group_close(&g);
}

static void configurations_come_in_order_and_wait_for_moves(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(configure(&g, 1, ALL_ONE), ERR_INVALID);
    assert_int_equal(configure(&g, 3, ALL_ONE), ERR_INVALID);
    assert_int_equal(configure(&g, 2, (ctl_gid[]){2, 1, 1, 1}), ERR_OK);
    assert_int_equal(configure(&g, 3, ALL_ONE), ERR_BUSY); /* 0 is leaving */
    append_as(&g, 1, ERR_OK);
    reopen(&g);
    append_as(&g, 2, ERR_OK);
    assert_int_equal(configure(&g, 3, ALL_ONE), ERR_BUSY);
    assert_int_equal(step(&g, SKV_COMMAND_DROP, 0, 2), ERR_INVALID);
    assert_int_equal(step(&g, SKV_COMMAND_FREEZE, 0, 2), ERR_OK);
    append_as(&g, 3, ERR_WRONGGROUP);
    reopen(&g);
    append_as(&g, 3, ERR_WRONGGROUP);
    assert_int_equal(configure(&g, 3, ALL_ONE), ERR_BUSY);
    assert_int_equal(step(&g, SKV_COMMAND_DROP, 0, 2), ERR_OK);
    assert_int_equal(configure(&g, 3, ALL_ONE), ERR_OK);
    append_as(&g, 1, ERR_WRONGGROUP); /* PULLING */
    reopen(&g);
    assert_int_equal(configure(&g, 4, ALL_ONE), ERR_BUSY);
    assert_int_equal(g.fsm->shards[0].state, SKV_SHARD_PULLING);
    group_close(&g);
}

/* ---- moving a shard from group 1 to group 2 ---- */

static const ctl_gid MOVED[SHARDS] = {2, 1, 1, 1};

/* A shard on its way from one group's log to the other's. */
struct journey {
    struct group *from, *to;
    uint16_t shard;
    uint64_t number;
    struct skv_cursor cursor; /* in memory of to->arena */
    uint32_t batches;
    struct bytes *last; /* the last INSTALL */
};

/* Asks for the next batch, and puts it into the new owner's log. */
static enum skv_end journey_batch(struct journey *j)
{
    struct skv_pull pull = {
        .shard = j->shard, .number = j->number, .cursor = j->cursor};
    struct skv_pulled got;
    struct buf out = {0};
    enum err fault = ERR_OK;
    assert_int_equal(skv_batch_read(j->from->fsm, &pull, j->to->fsm->gid, false,
                                    &out, &fault),
                     ERR_OK);
    assert_int_equal(fault, ERR_OK);
    assert_true(out.size < (3u << 20));
    struct slice bytes = arena_copy(&j->to->arena, buf_slice(&out));
    buf_free(&out);
    assert_int_equal(skv_pulled_decode(bytes, &j->to->arena, &got), ERR_OK);
    got.cursor.batches = j->cursor.batches + 1;
    struct skv_install in = {.shard = j->shard,
                             .number = j->number,
                             .last = got.end == SKV_END_LAST,
                             .cursor = got.cursor,
                             .records = got.records,
                             .records_count = got.records_count};
    bytes_unref(j->last);
    j->last = skv_command_install(&in);
    assert_int_equal(run(j->to, bytes_ref(j->last)).rc, ERR_OK);
    j->cursor = got.cursor;
    j->batches++;
    return got.end;
}

static enum err journey_freeze(struct journey *j)
{
    return step(j->from, SKV_COMMAND_FREEZE, j->shard, j->number);
}

/* Until the new owner serves it. Gives the number of batches. `again`: every
 * one comes twice, as after a change of leader. */
static uint32_t pull_all(struct group *from, struct group *to, uint16_t shard,
                         uint64_t number, bool again)
{
    struct journey j = {
        .from = from, .to = to, .shard = shard, .number = number};
    enum skv_end end = SKV_END_MORE;
    while (end != SKV_END_LAST) {
        end = journey_batch(&j);
        if (again) {
            assert_int_equal(run(to, bytes_ref(j.last)).rc, ERR_INVALID);
        }
        if (end == SKV_END_NOW) {
            assert_int_equal(journey_freeze(&j), ERR_OK);
            assert_int_equal(journey_freeze(&j), ERR_OK);
        }
    }
    bytes_unref(j.last);
    return j.batches;
}

static void two_groups(struct group *a, struct group *b)
{
    group_new(a);
    *b = (struct group){.clock_us = 1000};
    group_open(b, 2);
    assert_int_equal(configure(b, 1, ALL_ONE), ERR_OK);
}

static void move_shard_0(struct group *a, struct group *b)
{
    assert_int_equal(configure(a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(b, 2, MOVED), ERR_OK);
    pull_all(a, b, 0, 2, false);
}

static void a_shard_moves_with_its_sessions(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    append_as(&a, 1, ERR_OK);
    put(&a, "1:stays", "1");
    move_shard_0(&a, &b);
    append_as(&a, 2, ERR_WRONGGROUP);
    append_as(&b, 1, ERR_OK); /* a retry: its reply was lost on the way */
    assert_value(&b, "0:log", "x");
    append_as(&b, 2, ERR_OK);
    assert_value(&b, "0:log", "xx");
    struct skv_item get = ranged(SKV_GET, "1:stays", 0, 1);
    assert_int_equal(read_items(&b, &get, 1), ERR_WRONGGROUP);
    assert_value(&a, "1:stays", "1");
    group_close(&a);
    group_close(&b);
}

static void values_of_any_size_move_and_batches_may_come_again(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    size_t size = 3u << 20;
    struct rng rng = {.state = 3};
    uint8_t *bytes = mem_alloc(size);
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)rng_next(&rng);
    }
    memset(bytes + (1 << 20), 0, 700000); /* a hole */
    for (size_t at = 0; at < size; at += 1 << 20) {
        struct skv_item it = ranged(SKV_PUT_RANGE, "0:big", at, 0);
        it.data = slice_of(bytes + at, 1 << 20);
        assert_int_equal(EXECUTE(&a, it), ERR_OK);
    }
    assert_int_equal(EXECUTE(&a, ranged(SKV_TRUNCATE, "0:sparse", 0, 40 << 20)),
                     ERR_OK);
    assert_int_equal(EXECUTE(&a, ranged(SKV_TRUNCATE, "0:was", 0, 9000)),
                     ERR_OK);
    assert_int_equal(EXECUTE(&a, ranged(SKV_TRUNCATE, "0:was", 0, 3)), ERR_OK);
    put(&a, "0:zero", "");
    put(&a, "0:~last", "end");
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    assert_true(pull_all(&a, &b, 0, 2, true) > 4);
    for (size_t at = 0; at < size; at += 1 << 20) {
        struct skv_item get = ranged(SKV_GET, "0:big", at, 1 << 20);
        assert_int_equal(read_items(&b, &get, 1), ERR_OK);
        assert_int_equal(b.reply.results[0].data.size, 1 << 20);
        assert_memory_equal(b.reply.results[0].data.data, bytes + at, 1 << 20);
    }
    struct skv_item length = ranged(SKV_LENGTH, "0:sparse", 0, 0);
    assert_int_equal(read_items(&b, &length, 1), ERR_OK);
    assert_int_equal(b.reply.results[0].number, 40 << 20);
    length.key = key("0:was");
    assert_int_equal(read_items(&b, &length, 1), ERR_OK);
    assert_int_equal(b.reply.results[0].number, 3);
    assert_value(&b, "0:zero", "");
    assert_value(&b, "0:~last", "end");
    mem_free(bytes);
    group_close(&a);
    group_close(&b);
}

/* ---- a shard that is used while it moves ---- */

static enum err prepare_x(struct group *g);

static const char *const BUSY_KEYS[] = {"0:a", "0:b", "0:c", "0:d", "0:e"};
enum { BUSY_LENGTH = 900000 };

/* Of every kind of write, small and large, over one another. */
static void write_something(struct group *g, struct rng *r, uint8_t *bytes)
{
    const char *name = BUSY_KEYS[rng_below(r, 5)];
    struct skv_item it = {.key = key(name)};
    uint64_t at = rng_below(r, rng_chance(r, 500) ? 3 * SKV_INLINE_SIZE_MAX
                                                  : BUSY_LENGTH);
    size_t size = (size_t)rng_below(r, rng_chance(r, 900) ? 12000 : 400000);
    for (size_t i = 0; i < size; i += 64) {
        bytes[i] = (uint8_t)rng_next(r);
    }
    it.data = slice_of(bytes, size);
    switch (rng_below(r, 9)) {
    case 0: it.kind = SKV_PUT; break;
    case 1: it.kind = SKV_APPEND; break;
    case 2:
    case 3:
    case 4:
        it.kind = SKV_PUT_RANGE;
        it.offset = at;
        break;
    case 5: it.kind = SKV_TRUNCATE; break;
    case 6: it.kind = SKV_PUNCH; break;
    case 7: it.kind = SKV_DELETE; break;
    default: it.kind = rng_chance(r, 100) ? SKV_DELETE_PREFIX : SKV_TRUNCATE;
    }
    if (it.kind == SKV_TRUNCATE) {
        it.number = at;
    }
    if (it.kind == SKV_PUNCH) {
        it.offset = at;
        it.number = size;
    }
    if (it.kind >= SKV_TRUNCATE && it.kind != SKV_ADD) {
        it.data = slice_of(NULL, 0);
    }
    assert_int_equal(EXECUTE(g, it), ERR_OK);
}

struct pairs {
    struct skv_store *store;
    struct buf all; /* key, length, bytes */
};

static bool list_key(void *arg, struct slice name,
                     const struct skv_value *value)
{
    struct pairs *p = arg;
    (void)value;
    enc_bytes(&p->all, name);
    return true;
}

/* All of shard 0, as bytes: two that are the same have the same. */
static void shard_bytes(struct group *g, struct buf *out)
{
    struct pairs p = {.store = g->fsm->store};
    struct skv_name all = skv_name_shard(0);
    assert_int_equal(p.store->ops->scan(p.store, skv_name_slice(&all),
                                        slice_of(NULL, 0), list_key, &p),
                     ERR_OK);
    struct dec d = dec_of(buf_slice(&p.all));
    while (dec_left(&d) > 0) {
        struct slice name = dec_bytes(&d);
        struct skv_value value;
        size_t got = 0;
        assert_int_equal(p.store->ops->lookup(p.store, name, &value), ERR_OK);
        enc_bytes(out, name);
        enc_u64(out, value.length);
        uint64_t length = value.length;
        assert_int_equal(p.store->ops->read(p.store, name, 0,
                                            buf_extend(out, (size_t)length),
                                            (size_t)length, &got),
                         ERR_OK);
        assert_int_equal(got, length);
    }
    buf_free(&p.all);
}

static void assert_same_shard(struct group *a, struct group *b)
{
    struct buf x = {0};
    struct buf y = {0};
    shard_bytes(a, &x);
    shard_bytes(b, &y);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    buf_free(&x);
    buf_free(&y);
}

/* Writes, batches and restarts in any order, from `seed`. */
static void move_in_use(uint64_t seed)
{
    struct group a, b;
    struct rng r = {.state = seed};
    uint8_t *bytes = mem_alloc(400000);
    two_groups(&a, &b);
    for (int i = 0; i < 12; i++) {
        write_something(&a, &r, bytes);
    }
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    struct journey j = {.from = &a, .to = &b, .number = 2};
    size_t sizes[] = {1, 300, 20000, 1 << 20};
    size_t batch_size = sizes[rng_below(&r, 4)];
    enum skv_end end = SKV_END_MORE;
    for (uint32_t writes = 0; end != SKV_END_LAST;) {
        a.fsm->batch_size = batch_size;
        while (a.fsm->shards[0].state == SKV_SHARD_LEAVING && writes < 90 &&
               rng_chance(&r, 750)) {
            write_something(&a, &r, bytes);
            writes++;
        }
        if (rng_chance(&r, 30)) {
            reopen(rng_chance(&r, 500) ? &a : &b);
            continue;
        }
        end = journey_batch(&j);
        if (end == SKV_END_NOW && rng_chance(&r, 300)) {
            assert_int_equal(journey_freeze(&j), ERR_OK);
        }
    }
    assert_same_shard(&a, &b);
    bytes_unref(j.last);
    mem_free(bytes);
    group_close(&a);
    group_close(&b);
}

/* What could go wrong: a write that leaves no change, or one with too few
 * bytes; a cursor that skips; zeros that are not written over old bytes. */
static void a_shard_in_use_arrives_as_it_is(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        move_in_use(seed);
    }
}

static bool count_change(void *arg, struct slice key,
                         const struct skv_value *value)
{
    struct arena a = {0};
    struct skv_change change;
    (void)key;
    assert_int_equal(skv_change_decode(value->inline_bytes, &a, &change),
                     ERR_OK);
    *(uint32_t *)arg +=
        change.key.size == 10 && memcmp(change.key.data + 8, "ab", 2) == 0;
    arena_free(&a);
    return true;
}

static uint32_t changes_of_ab(struct group *g)
{
    uint32_t count = 0;
    struct skv_name all = skv_name_changes(0);
    struct skv_store *s = g->fsm->store;
    assert_int_equal(s->ops->scan(s, skv_name_slice(&all), slice_of(NULL, 0),
                                  count_change, &count),
                     ERR_OK);
    return count;
}

/* Else a key that is written ten times while the shard is copied is sent ten
 * times behind it. But bytes that no later change has must not be forgotten. */
static void a_key_written_again_leaves_one_change(void **state)
{
    struct group a, b;
    struct skv_item it = {
        .kind = SKV_PUT_RANGE, .key = key("0:ab"), .data = slice_text("bytes")};
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    for (int i = 0; i < 10; i++) {
        put(&a, "0:ab", "value");
    }
    assert_int_equal(changes_of_ab(&a), 1);
    assert_int_equal(EXECUTE(&a, it), ERR_OK);
    it.offset = 100;
    assert_int_equal(EXECUTE(&a, it), ERR_OK);
    it.offset = 98;
    it.data = slice_text("more bytes");
    assert_int_equal(EXECUTE(&a, it), ERR_OK);
    assert_int_equal(changes_of_ab(&a), 3);
    group_close(&a);
    group_close(&b);
}

static uint32_t count_keys(struct group *g, struct skv_name prefix)
{
    struct skv_keys keys = {.max = UINT32_MAX};
    assert_int_equal(skv_keys_collect(g->fsm->store, skv_name_slice(&prefix),
                                      slice_of(NULL, 0), &keys),
                     ERR_OK);
    uint32_t count = keys.count;
    skv_keys_free(&keys);
    return count;
}

/* As a clerk that has had the answer to each number below. */
static enum err put_next(struct group *g, uint64_t session, uint64_t sequence)
{
    struct skv_item it = item(SKV_PUT, "0:ab", "value");
    struct skv_request q = {.session = session,
                            .sequence = sequence,
                            .first = sequence,
                            .flags = SKV_FLAG_OPEN,
                            .items = &it,
                            .items_count = 1};
    send(g, &q);
    return (enum err)g->reply.rc;
}

/* The key, the session's row, the one reply that may be asked for. */
static void a_reply_that_goes_leaves_no_change(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    for (uint64_t i = 1; i <= 1000; i++) {
        assert_int_equal(put_next(&a, SESSION, i), ERR_OK);
    }
    assert_int_equal(count_keys(&a, skv_name_changes(0)), 3);
    assert_int_equal(count_keys(&a, skv_name_latests(0)), 3);
    /* By the names that they had when the reply's went before the row's. */
    struct skv_keys keys = {.max = 3};
    struct skv_name all = skv_name_changes(0);
    struct slice name;
    assert_int_equal(skv_keys_collect(a.fsm->store, skv_name_slice(&all),
                                      slice_of(NULL, 0), &keys),
                     ERR_OK);
    for (uint32_t i = 1; i <= 3; i++) {
        struct skv_name expected = skv_name_change(0, a.index, i);
        assert_true(skv_keys_next(&keys, &name));
        assert_int_equal(slice_compare(name, skv_name_slice(&expected)), 0);
    }
    skv_keys_free(&keys);
    group_close(&a);
    group_close(&b);
}

/* ---- sessions that are used while their shard moves ---- */

enum { SESSIONS = 3, LONG = 6000 };

/* Clerks with requests under way, and others that finish them. What they write
 * and hear may be long: votes and replies of several chunks. */
static void use_sessions(struct group *g, struct rng *r,
                         uint64_t last[SESSIONS])
{
    static const char *const names[] = {"0:a", "0:b", "0:c", "0:d", "0:e"};
    static const uint8_t bytes[LONG];
    struct skv_shard_ref participants[] = {{.shard = 0}, {.shard = 1}};
    uint64_t session = rng_below(r, SESSIONS);
    bool is_new = rng_chance(r, 500);
    last[session] += is_new;
    uint64_t back = is_new ? 0 : rng_below(r, 12);
    uint64_t sequence = last[session] > back ? last[session] - back : 1;
    struct skv_item items[] = {
        {.kind = SKV_PUT, .key = key(names[rng_below(r, 5)])},
        ranged(SKV_GET, names[rng_below(r, 5)], 0, LONG)};
    items[0].data = slice_of(bytes, rng_chance(r, 500) ? 3 : LONG);
    struct skv_request q = {.session = 1 + session,
                            .sequence = sequence,
                            .flags = SKV_FLAG_OPEN,
                            .items = items,
                            .items_count = 2};
    if (rng_chance(r, 200)) {
        uint64_t ahead = rng_below(r, 8);
        q.first = sequence > ahead ? sequence - ahead : 1;
    }
    if (rng_chance(r, 600)) {
        q.phase = (uint8_t)(is_new ? SKV_PREPARE : 1 + rng_below(r, 4));
        q.items_count = q.phase == SKV_PREPARE ? 2 : 0;
        q.participants = participants;
        q.participants_count = q.phase == SKV_PREPARE ? 2 : 0;
    }
    send(g, &q);
}

/* Somebody decides about the first of those that are prepared. */
static void finish_one(struct group *g, struct rng *r)
{
    const struct skv_prepared *p = g->fsm->shards[0].prepared;
    struct skv_request q = {.phase = (uint8_t)(SKV_COMMIT + rng_below(r, 2))};
    if (p != NULL) {
        q.session = p->session;
        q.sequence = p->sequence;
        send(g, &q);
    }
}

struct journey_plan {
    struct group *a, *b;
    struct rng *r;
    uint64_t *last; /* numbers given out */
};

static void move_used(const struct journey_plan *p, uint64_t number)
{
    static const size_t sizes[] = {1, 300, 5000, 1 << 20};
    struct journey j = {.from = p->a, .to = p->b, .number = number};
    enum skv_end end = SKV_END_MORE;
    p->a->fsm->batch_size = sizes[rng_below(p->r, 4)];
    for (uint32_t writes = 0; end != SKV_END_LAST;) {
        while (p->a->fsm->shards[0].state == SKV_SHARD_LEAVING &&
               writes < 150 && rng_chance(p->r, 800)) {
            use_sessions(p->a, p->r, p->last);
            writes++;
            if (rng_chance(p->r, 150)) {
                finish_one(p->a, p->r);
            }
        }
        if (rng_chance(p->r, 10)) {
            size_t size = p->a->fsm->batch_size;
            reopen(rng_chance(p->r, 500) ? p->a : p->b);
            p->a->fsm->batch_size = size;
        }
        end = journey_batch(&j);
        if (end == SKV_END_NOW && rng_chance(p->r, 200)) {
            assert_int_equal(journey_freeze(&j), ERR_OK);
        }
    }
    bytes_unref(j.last);
}

/* There and back, and there. What could go wrong: a reply goes at the old owner
 * and stays at the new one, or the other way round; its number in the row. */
static void move_sessions(uint64_t seed)
{
    struct group a, b;
    struct rng r = {.state = seed};
    uint64_t last[SESSIONS] = {0};
    two_groups(&a, &b);
    struct journey_plan p = {.a = &a, .b = &b, .r = &r, .last = last};
    for (uint64_t number = 2; number <= 4; number++) {
        const ctl_gid *owners = p.b == &b ? MOVED : ALL_ONE;
        for (int i = 0; i < 30; i++) {
            use_sessions(p.a, &r, last);
        }
        assert_int_equal(configure(&a, number, owners), ERR_OK);
        assert_int_equal(configure(&b, number, owners), ERR_OK);
        move_used(&p, number);
        assert_same_shard(&a, &b);
        while (run(p.a, skv_command_step(SKV_COMMAND_DROP, 0, number)).more) {
        }
        struct group *from = p.a;
        p.a = p.b;
        p.b = from;
    }
    group_close(&a);
    group_close(&b);
}

static void sessions_in_use_arrive_as_they_are(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        move_sessions(seed);
    }
}

/* A row alone says which replies have gone; but not in a log of before, whose
 * other replicas keep them until they are told. */
static void a_row_takes_its_replies_along(void **state)
{
    struct group a, b;
    struct skv_name row = skv_name_session(0, SESSION);
    struct skv_name reply = skv_name_reply(0, SESSION, 7);
    uint8_t reply_key[64] = {0};
    struct buf bytes = {0};
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    memcpy(reply_key, reply.data, reply.size); /* and chunk 0 */
    skv_row_encode(&bytes, &(struct skv_row){.first = 8});
    struct skv_record records[] = {{.key = skv_name_slice(&row),
                                    .length = bytes.size,
                                    .span = bytes.size,
                                    .data = buf_slice(&bytes)},
                                   {.key = slice_of(reply_key, reply.size + 2),
                                    .length = 1,
                                    .span = 1,
                                    .data = slice_text("r")}};
    struct skv_install in = {.number = 2,
                             .cursor = {.batches = 1, .changes = 1},
                             .records = records,
                             .records_count = 2};
    struct bytes *told = skv_command_install(&in);
    told->data[0] = SKV_COMMAND_INSTALL_TOLD;
    assert_int_equal(run(&b, told).rc, ERR_OK);
    assert_int_equal(count_keys(&b, skv_name_replies(0, SESSION)), 1);
    in.cursor = (struct skv_cursor){.batches = 2}; /* of keys, in order */
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_OK);
    assert_int_equal(count_keys(&b, skv_name_replies(0, SESSION)), 1);
    in.cursor = (struct skv_cursor){.batches = 3, .changes = 1};
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_OK);
    assert_int_equal(count_keys(&b, skv_name_replies(0, SESSION)), 0);
    buf_free(&bytes);
    group_close(&a);
    group_close(&b);
}

/* Its row could not say any more which replies have gone. */
static void no_session_expires_while_its_shard_leaves(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(put_next(&a, SESSION, 1), ERR_OK);
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    uint64_t late = a.clock_us + 2 * SKV_SESSION_IDLE_US;
    run(&a, skv_command_expire(late, 0, 0));
    assert_int_equal(count_keys(&a, skv_name_sessions(0)), 1);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    pull_all(&a, &b, 0, 2, false);
    run(&b, skv_command_expire(late, 0, 0));
    assert_int_equal(count_keys(&b, skv_name_sessions(0)), 0);
    group_close(&a);
    group_close(&b);
}

/* Two keys of one hash: a change of one must not stand for the other's. */
static void keys_of_one_hash_have_each_their_change(void **state)
{
    struct group a, b;
    const char *one = "0:mYthsUId", *other = "0:apFCAWDK";
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(crc32c(0, key(one)), crc32c(0, key(other)));
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    struct journey j = {.from = &a, .to = &b, .number = 2};
    assert_int_equal(journey_batch(&j), SKV_END_MORE);
    put(&a, one, "1");
    put(&a, other, "2");
    assert_int_equal(journey_batch(&j), SKV_END_NOW);
    assert_int_equal(journey_freeze(&j), ERR_OK);
    assert_int_equal(journey_batch(&j), SKV_END_LAST);
    assert_value(&b, one, "1");
    assert_value(&b, other, "2");
    bytes_unref(j.last);
    group_close(&a);
    group_close(&b);
}

static void a_leaving_shard_is_served_until_it_is_frozen(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    append_as(&a, 1, ERR_OK);
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    struct journey j = {.from = &a, .to = &b, .number = 2};
    assert_int_equal(journey_batch(&j), SKV_END_MORE);
    append_as(&a, 2, ERR_OK); /* behind the copy */
    assert_value(&a, "0:log", "xx");
    append_as(&b, 3, ERR_WRONGGROUP);
    struct ctl_group owner;
    assert_int_equal(ctl_group_decode(b.reply.owner, &b.arena, &owner), ERR_OK);
    assert_int_equal(owner.gid, 1);
    assert_int_equal(prepare_x(&a), ERR_OK); /* a lock, too */
    assert_int_equal(journey_batch(&j), SKV_END_NOW);
    assert_int_equal(journey_freeze(&j), ERR_OK);
    append_as(&a, 3, ERR_WRONGGROUP);
    assert_int_equal(ctl_group_decode(a.reply.owner, &a.arena, &owner), ERR_OK);
    assert_int_equal(owner.gid, 2);
    append_as(&b, 3, ERR_WRONGGROUP);
    assert_int_equal(journey_batch(&j), SKV_END_LAST);
    append_as(&b, 2, ERR_OK); /* a retry */
    assert_value(&b, "0:log", "xx");
    append_as(&b, 3, ERR_OK);
    assert_value(&b, "0:log", "xxx");
    assert_int_equal(b.fsm->shards[0].prepared_count, 1);
    bytes_unref(j.last);
    group_close(&a);
    group_close(&b);
}

static void a_shard_is_counted_in_bounded_parts(void **state)
{
    struct group g;
    struct skv_count count = {.number = 2};
    struct skv_counted got;
    uint64_t keys = 0;
    uint64_t bytes = 0;
    int parts = 0;
    (void)state;
    group_new(&g);
    for (int i = 0; i < 5000; i++) {
        char name[16];
        snprintf(name, sizeof name, "0:%d", i);
        put(&g, name, "four");
    }
    assert_int_equal(configure(&g, 2, MOVED), ERR_OK);
    do {
        struct buf out = {0};
        enum err fault = ERR_OK;
        assert_int_equal(skv_batch_count(g.fsm, &count, 2, &out, &fault),
                         ERR_OK);
        struct slice copy = arena_copy(&g.arena, buf_slice(&out));
        assert_int_equal(skv_counted_decode(copy, &g.arena, &got), ERR_OK);
        buf_free(&out);
        keys += got.keys;
        bytes += got.bytes;
        count.key = got.next_key;
        parts++;
    } while (got.next_key.size > 0);
    assert_true(parts > 1);
    assert_true(keys >= 5000 && bytes >= 20000);
    group_close(&g);
}

static void steps_that_do_not_fit_are_refused(void **state)
{
    struct group a, b;
    enum err fault = ERR_OK;
    struct buf out = {0};
    (void)state;
    two_groups(&a, &b);
    put(&a, "0:x", "1");
    struct skv_pull pull = {.number = 2};
    assert_int_equal(skv_batch_read(a.fsm, &pull, 2, false, &out, &fault),
                     ERR_BUSY);
    assert_int_equal(step(&a, SKV_COMMAND_DROP, 0, 2), ERR_BUSY);
    assert_int_equal(step(&a, SKV_COMMAND_DROP, 0, 1), ERR_INVALID);
    assert_value(&a, "0:x", "1");
    pull.number = 1;
    assert_int_equal(skv_batch_read(a.fsm, &pull, 2, false, &out, &fault),
                     ERR_INVALID);
    assert_int_equal(step(&a, SKV_COMMAND_FREEZE, 0, 2), ERR_BUSY);
    assert_int_equal(step(&a, SKV_COMMAND_FREEZE, 0, 1), ERR_INVALID);
    struct skv_record record = {
        .key = key("0:x"), .span = 1, .length = 1, .data = slice_text("0")};
    struct skv_install in = {.number = 2,
                             .cursor = {.batches = 1},
                             .records = &record,
                             .records_count = 1};
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_INVALID);
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    in.number = 1;
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_INVALID);
    in.number = 2;
    in.shard = 1;
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_INVALID);
    in.shard = 0;
    in.cursor.batches = 2; /* one is missing */
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_INVALID);
    assert_int_equal(step(&a, SKV_COMMAND_FREEZE, 1, 2), ERR_INVALID);
    pull.number = 2;
    assert_int_equal(skv_batch_read(a.fsm, &pull, 3, false, &out, &fault),
                     ERR_DENIED);
    assert_int_equal(skv_shard_may_take(a.fsm, 0, 2, 3), ERR_DENIED);
    assert_int_equal(skv_shard_may_take(a.fsm, 0, 2, 2), ERR_OK);
    /* It has not heard that a move before this one is over. */
    assert_int_equal(skv_shard_may_take(a.fsm, 0, 1, 3), ERR_OK);
    assert_int_equal(step(&a, SKV_COMMAND_DROP, 0, 1), ERR_OK);
    assert_value(&a, "0:x", "1");
    pull_all(&a, &b, 0, 2, false);
    put(&b, "0:x", "2");
    /* A late batch of a leader that was replaced. */
    in.cursor.batches = 1;
    assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_INVALID);
    assert_int_equal(step(&a, SKV_COMMAND_FREEZE, 0, 2), ERR_OK);
    assert_value(&b, "0:x", "2");
    assert_int_equal(step(&a, SKV_COMMAND_DROP, 0, 2), ERR_OK);
    assert_int_equal(step(&a, SKV_COMMAND_FREEZE, 0, 2), ERR_INVALID);
    buf_free(&out);
    group_close(&a);
    group_close(&b);
}

static void a_batch_that_is_not_the_shards_is_refused_whole(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    uint8_t state_key[] = {0xff, 0xff, 0, 0, 0, 0, 0, 0, 'H', 0, 1};
    uint8_t own_key[] = {0, 0, 0, 0, 0, 0, 0, 0, 'R', 1};
    struct slice bad[] = {key("1:x"), slice_of(state_key, sizeof state_key),
                          slice_of(own_key, sizeof own_key)};
    for (int i = 0; i < 3; i++) {
        struct skv_record records[] = {
            {.key = key("0:x"),
             .length = 1,
             .span = 1,
             .data = slice_text("1")},
            {.key = bad[i], .length = 1, .span = 1, .data = slice_text("1")}};
        struct skv_install in = {.number = 2,
                                 .cursor = {.batches = 1},
                                 .records = records,
                                 .records_count = 2};
        assert_int_equal(run(&b, skv_command_install(&in)).rc, ERR_INVALID);
    }
    struct skv_install end = {.number = 2, .last = 1, .cursor = {.batches = 1}};
    assert_int_equal(run(&b, skv_command_install(&end)).rc, ERR_OK);
    assert_missing(&b, "0:x");
    group_close(&a);
    group_close(&b);
}

static void assert_dropped(struct group *g, uint64_t number)
{
    struct buf last = {0};
    while (run(g, skv_command_step(SKV_COMMAND_DROP, 0, number)).more) {
        /* It goes on where it was, and does not look from the beginning. */
        struct slice now = buf_slice(&g->fsm->shards[0].dropped);
        assert_true(now.size > 0);
        assert_int_not_equal(slice_compare(buf_slice(&last), now), 0);
        buf_clear(&last);
        buf_append(&last, now.data, now.size);
    }
    buf_free(&last);
    const struct skv_name all[] = {skv_name_changes(0), skv_name_latests(0),
                                   skv_name_shard(0)};
    for (int i = 0; i < 3; i++) {
        struct skv_keys left = {.max = 10};
        assert_int_equal(skv_keys_collect(g->fsm->store,
                                          skv_name_slice(&all[i]),
                                          slice_of(NULL, 0), &left),
                         ERR_OK);
        assert_int_equal(left.count, 0);
        skv_keys_free(&left);
    }
}

static void put_many(struct group *g, int count)
{
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "0:%d", i);
        put(g, name, "v");
    }
}

/* A group that has dropped a shard before drops all of it again. */
static void a_shard_comes_and_goes_whole(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    put_many(&a, 1300);
    struct group *from = &a, *to = &b;
    for (uint64_t number = 2; number <= 5; number++) {
        const ctl_gid *owners = to == &b ? MOVED : ALL_ONE;
        assert_int_equal(configure(&a, number, owners), ERR_OK);
        assert_int_equal(configure(&b, number, owners), ERR_OK);
        put_many(from, 600); /* more changes than go in one DROP */
        pull_all(from, to, 0, number, false);
        assert_dropped(from, number);
        assert_value(to, "0:1299", "v");
        struct group *before = from;
        from = to;
        to = before;
    }
    group_close(&a);
    group_close(&b);
}

static void a_settled_shard_is_dropped_in_bounded_steps(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    for (int i = 0; i < 700; i++) {
        char name[16];
        snprintf(name, sizeof name, "0:%d", i);
        put(&a, name, "v");
    }
    put(&a, "1:stays", "1");
    move_shard_0(&a, &b);
    assert_non_null(b.fsm->debts);
    reopen(&b);
    assert_non_null(b.fsm->debts);
    assert_int_equal(b.fsm->debts->creditor.gid, 1);
    struct skv_outcome out = run(&a, skv_command_step(SKV_COMMAND_DROP, 0, 2));
    assert_int_equal(out.rc, ERR_OK);
    assert_int_equal(out.more, 1);
    assert_int_equal(step(&b, SKV_COMMAND_SETTLED, 0, 2), ERR_OK);
    assert_int_equal(step(&b, SKV_COMMAND_SETTLED, 0, 2), ERR_OK);
    reopen(&b);
    assert_null(b.fsm->debts);
    /* The next configuration need not wait, unless it gives the shard back. */
    reopen(&a);
    assert_int_equal(configure(&a, 3, ALL_ONE), ERR_BUSY);
    assert_int_equal(configure(&a, 3, MOVED), ERR_OK);
    while (run(&a, skv_command_step(SKV_COMMAND_DROP, 0, 2)).more) {
    }
    assert_int_equal(step(&a, SKV_COMMAND_DROP, 0, 2), ERR_OK);
    struct skv_keys left = {.max = 10};
    struct skv_name all = skv_name_shard(0);
    assert_int_equal(skv_keys_collect(a.fsm->store, skv_name_slice(&all),
                                      slice_of(NULL, 0), &left),
                     ERR_OK);
    assert_int_equal(left.count, 0);
    skv_keys_free(&left);
    assert_value(&a, "1:stays", "1");
    assert_int_equal(configure(&a, 4, ALL_ONE), ERR_OK);
    assert_int_equal(a.fsm->shards[0].state, SKV_SHARD_PULLING);
    group_close(&a);
    group_close(&b);
}

/* ---- two-phase commit ---- */

static enum err phase(struct group *g, enum skv_phase p, uint64_t sequence,
                      struct skv_item *items, uint32_t count)
{
    struct skv_shard_ref participants[] = {{.shard = 0}, {.shard = 1}};
    struct skv_request q = {.session = 42,
                            .sequence = sequence,
                            .flags = SKV_FLAG_OPEN,
                            .phase = (uint8_t)p,
                            .participants = participants,
                            .participants_count = p == SKV_PREPARE ? 2 : 0,
                            .items = items,
                            .items_count = count};
    send(g, &q);
    return (enum err)g->reply.rc;
}
#define PREPARE(g, sequence, ...)                                              \
    phase(g, SKV_PREPARE, sequence, (struct skv_item[]){__VA_ARGS__},          \
          sizeof((struct skv_item[]){__VA_ARGS__}) / sizeof(struct skv_item))
#define PHASE(g, p, sequence) phase(g, p, sequence, NULL, 0)

static enum err prepare_x(struct group *g)
{
    return PREPARE(g, 1, item(SKV_PUT, "0:x", "X"));
}

static void a_prepared_transaction_is_done_by_commit(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    put(&g, "0:n", "\5\0\0\0\0\0\0\0");
    assert_int_equal(PREPARE(&g, 1, item(SKV_CMP_ABSENT, "0:a", ""),
                             item(SKV_PUT, "0:a", "A"),
                             ranged(SKV_ADD, "0:n", 0, 2)),
                     ERR_OK);
    assert_int_equal(g.reply.results[2].number, 7);
    reopen(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_OK);
    assert_int_equal(g.reply.results[2].number, 7); /* the recorded vote */
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_OK);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    assert_value(&g, "0:a", "A");
    put(&g, "0:a", "B");
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    assert_value(&g, "0:a", "B");
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_OK);
    struct skv_item get = ranged(SKV_GET, "0:n", 0, 1);
    assert_int_equal(read_items(&g, &get, 1), ERR_OK);
    assert_int_equal(g.reply.results[0].data.data[0], 7);
    group_close(&g);
}

static void abort_undoes_and_is_final(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_OK);
    assert_int_equal(PHASE(&g, SKV_ABORT, 1), ERR_OK);
    assert_missing(&g, "0:a");
    put(&g, "0:a", "free");
    assert_int_equal(PHASE(&g, SKV_ABORT, 1), ERR_OK);
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_ABORTED);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_ABORTED);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_ABORTED);
    assert_value(&g, "0:a", "free");
    /* ABORT that overtakes its PREPARE. */
    assert_int_equal(PHASE(&g, SKV_ABORT, 2), ERR_OK);
    assert_int_equal(PREPARE(&g, 2, item(SKV_PUT, "0:a", "A")), ERR_ABORTED);
    assert_value(&g, "0:a", "free");
    group_close(&g);
}

static void resolve_before_prepare_votes_against_it_for_ever(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_ABORTED);
    reopen(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_ABORTED);
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_ABORTED);
    put(&g, "0:a", "free");
    group_close(&g);
}

static void a_conflicting_prepare_votes_against(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_CMP_EXISTS, "0:none", ""),
                             item(SKV_PUT, "0:a", "A")),
                     ERR_CONFLICT);
    assert_int_equal(g.reply.failed, 0);
    put(&g, "0:none", "");
    assert_int_equal(PREPARE(&g, 1, item(SKV_CMP_EXISTS, "0:none", ""),
                             item(SKV_PUT, "0:a", "A")),
                     ERR_CONFLICT);
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_ABORTED);
    assert_int_equal(PHASE(&g, SKV_ABORT, 1), ERR_OK);
    put(&g, "0:a", "free");
    group_close(&g);
}

static void assert_holder(struct group *g)
{
    assert_int_equal(g->reply.holder_session, 42);
    assert_int_equal(g->reply.holder_sequence, 1);
    assert_int_equal(g->reply.participants_count, 2);
    assert_int_equal(g->reply.participants[1].shard, 1);
}

/* Prepared: writes 0:w, reads 0:r, lists 0:d/, deletes 0:t/. What each other
 * request may do meanwhile. */
static void locks_keep_out_what_conflicts_and_nothing_else(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    put(&g, "0:r", "r");
    put(&g, "0:w", "w");
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:w", "A"),
                             item(SKV_CMP_EXISTS, "0:r", ""),
                             item(SKV_CMP_EMPTY, "0:d/", ""),
                             item(SKV_DELETE_PREFIX, "0:t/", "")),
                     ERR_OK);
    struct {
        struct skv_item it;
        bool locked;
    } cases[] = {
        {item(SKV_PUT, "0:w", "B"), true},
        {item(SKV_CMP_EXISTS, "0:w", ""), true},
        {ranged(SKV_GET, "0:w", 0, 1), true},
        {item(SKV_PUT, "0:r", "B"), true},
        {ranged(SKV_GET, "0:r", 0, 1), false},
        {item(SKV_CMP_EXISTS, "0:r", ""), false},
        {item(SKV_PUT, "0:d/new", ""), true},
        {ranged(SKV_SCAN, "0:d/", 0, 10), false},
        {item(SKV_DELETE_PREFIX, "0:d", ""), true},
        {item(SKV_PUT, "0:d", ""), false},
        {ranged(SKV_GET, "0:t/x", 0, 1), true},
        {ranged(SKV_SCAN, "0:", 0, 10), true},
        {item(SKV_PUT, "0:other", ""), false},
    };
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            enum err rc = EXECUTE(&g, cases[i].it);
            assert_int_equal(rc, cases[i].locked ? ERR_LOCKED : ERR_OK);
            if (cases[i].locked) {
                assert_holder(&g);
            }
            if (!skv_kind_is_write(cases[i].it.kind)) {
                rc = read_items(&g, &cases[i].it, 1);
                assert_int_equal(rc, cases[i].locked ? ERR_LOCKED : ERR_OK);
            }
        }
        reopen(&g); /* and again with locks from the store */
    }
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_not_equal(EXECUTE(&g, cases[i].it), ERR_LOCKED);
    }
    group_close(&g);
}

static void what_was_locked_executes_later_under_its_number(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:log", "A")), ERR_OK);
    append_as(&g, 1, ERR_LOCKED);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    append_as(&g, 1, ERR_OK);
    append_as(&g, 1, ERR_OK);
    assert_value(&g, "0:log", "Ax");
    /* A PREPARE that was locked has voted against. */
    assert_int_equal(PREPARE(&g, 2, item(SKV_PUT, "0:log", "B")), ERR_OK);
    assert_int_equal(PREPARE(&g, 3, item(SKV_PUT, "0:log", "C")), ERR_LOCKED);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 2), ERR_OK);
    assert_int_equal(PREPARE(&g, 3, item(SKV_PUT, "0:log", "C")), ERR_ABORTED);
    assert_value(&g, "0:log", "B");
    group_close(&g);
}

static void a_prepared_transaction_moves_with_its_shard(void **state)
{
    struct group a, b;
    (void)state;
    two_groups(&a, &b);
    assert_int_equal(PREPARE(&a, 1, item(SKV_PUT, "0:log", "A")), ERR_OK);
    assert_int_equal(PREPARE(&a, 2, item(SKV_PUT, "0:x", "X")), ERR_OK);
    assert_int_equal(PHASE(&a, SKV_COMMIT, 2), ERR_OK);
    move_shard_0(&a, &b);
    append_as(&b, 1, ERR_LOCKED);
    assert_holder(&b);
    assert_int_equal(PHASE(&a, SKV_COMMIT, 1), ERR_WRONGGROUP);
    assert_int_equal(PHASE(&b, SKV_COMMIT, 1), ERR_OK);
    assert_int_equal(PHASE(&b, SKV_COMMIT, 2), ERR_OK);
    append_as(&b, 1, ERR_OK);
    assert_value(&b, "0:log", "Ax");
    group_close(&a);
    group_close(&b);
}

/* What the leader finishes when its clerk is dead must be shown to it whole,
 * of each shard, and no more once it is finished. */
static void the_picture_shows_what_is_prepared(void **state)
{
    struct group g;
    struct skv_picture p = {0};
    struct skv_reply reply;
    (void)state;
    group_new(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_OK);
    assert_int_equal(PREPARE(&g, 2, item(SKV_PUT, "0:b", "B")), ERR_OK);
    assert_int_equal(skv_picture_take(g.fsm, &p), ERR_OK);
    assert_int_equal(p.prepared_count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(skv_reply_decode(p.prepared[i], &g.arena, &reply),
                         ERR_OK);
        assert_int_equal(reply.rc, ERR_LOCKED);
        assert_int_equal(reply.holder_session, 42);
        assert_int_equal(reply.holder_sequence, i + 1);
        assert_int_equal(reply.participants_count, 2);
    }
    skv_picture_free(&p);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    assert_int_equal(PHASE(&g, SKV_ABORT, 2), ERR_OK);
    assert_int_equal(skv_picture_take(g.fsm, &p), ERR_OK);
    assert_int_equal(p.prepared_count, 0);
    skv_picture_free(&p);
    group_close(&g);
}

static void a_large_vote_is_kept_whole(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    size_t size = 1500000;
    uint8_t *bytes = mem_alloc(size);
    memset(bytes, 'q', size);
    struct skv_item big = item(SKV_PUT, "0:big", "");
    big.data = slice_of(bytes, size);
    assert_int_equal(PREPARE(&g, 1, big), ERR_OK);
    reopen(&g);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    struct skv_item get = ranged(SKV_GET, "0:big", 0, size);
    assert_int_equal(read_items(&g, &get, 1), ERR_OK);
    assert_int_equal(g.reply.results[0].data.size, size);
    assert_memory_equal(g.reply.results[0].data.data, bytes, size);
    struct skv_keys left = {.max = 10};
    struct skv_name all = skv_name_prepared_all(0);
    assert_int_equal(skv_keys_collect(g.fsm->store, skv_name_slice(&all),
                                      slice_of(NULL, 0), &left),
                     ERR_OK);
    assert_int_equal(left.count, 0);
    skv_keys_free(&left);
    mem_free(bytes);
    group_close(&g);
}

static void a_session_with_a_vote_out_does_not_expire(void **state)
{
    struct group g;
    (void)state;
    group_new(&g);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_OK);
    run(&g, skv_command_expire(g.clock_us + 40 * SKV_SESSION_IDLE_US, 0, 0));
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_OK);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    assert_value(&g, "0:a", "A");
    run(&g,
        skv_command_expire(g.fsm->clock_us + 2 * SKV_SESSION_IDLE_US, 0, 0));
    assert_int_equal(PHASE(&g, SKV_RESOLVE, 1), ERR_OK);
    group_close(&g);
}

/* ---- cuts ---- */

static enum err cut(struct group *g, enum skv_cut_step what, uint64_t id,
                    struct skv_cut_reply *reply)
{
    struct skv_cut c = {.id = id, .step = (uint8_t)what};
    struct bytes *command = skv_command_cut(&c);
    apply_entry(g, RAFT_ENTRY_COMMAND, bytes_slice(command));
    bytes_unref(command);
    struct slice answer = arena_copy(&g->arena, buf_slice(&g->answer));
    assert_int_equal(skv_cut_reply_decode(answer, &g->arena, reply), ERR_OK);
    return (enum err)reply->rc;
}

static enum err look(struct group *g, uint64_t id, struct skv_seen *seen)
{
    struct skv_look l = {.id = id, .what = SKV_LOOK_READ, .shard = 0};
    uint8_t first[8] = {0, 0, 0, 0, 0, 0, 0, 1};
    struct buf b = {0};
    l.key = slice_of(first, sizeof first);
    enum err rc = skv_view_look(g->fsm, &l, &b);
    if (rc == ERR_OK) {
        struct slice answer = arena_copy(&g->arena, buf_slice(&b));
        assert_int_equal(skv_seen_decode(answer, &g->arena, seen), ERR_OK);
    }
    buf_free(&b);
    return rc;
}

/* Could be wrong: something begins while the group holds, or what has begun
 * cannot end; or the hold is lost by a restart. */
static void while_held_nothing_begins_and_all_ends(void **state)
{
    struct group g;
    struct skv_cut_reply r;
    struct skv_seen seen;
    (void)state;
    group_new(&g);
    append_as(&g, 1, ERR_OK);
    assert_int_equal(PREPARE(&g, 1, item(SKV_PUT, "0:a", "A")), ERR_OK);
    assert_int_equal(cut(&g, SKV_CUT_HOLD, 5, &r), ERR_OK);
    assert_int_equal(r.prepared, 1);
    assert_int_equal(r.shards_count, SHARDS);
    append_as(&g, 1, ERR_OK); /* executed before */
    append_as(&g, 2, ERR_BUSY);
    assert_int_equal(PREPARE(&g, 2, item(SKV_PUT, "0:b", "B")), ERR_ABORTED);
    assert_int_equal(configure(&g, 2, (ctl_gid[]){2, 1, 1, 1}), ERR_BUSY);
    reopen(&g);
    append_as(&g, 2, ERR_BUSY);
    assert_int_equal(cut(&g, SKV_CUT_VIEW, 5, &r), ERR_BUSY);
    assert_int_equal(look(&g, 5, &seen), ERR_NOTFOUND);
    assert_int_equal(PHASE(&g, SKV_COMMIT, 1), ERR_OK);
    assert_int_equal(cut(&g, SKV_CUT_HOLD, 5, &r), ERR_OK);
    assert_int_equal(r.prepared, 0);
    assert_int_equal(cut(&g, SKV_CUT_VIEW, 5, &r), ERR_OK);
    assert_int_equal(r.index, g.index);
    append_as(&g, 2, ERR_OK);
    assert_int_equal(PREPARE(&g, 2, item(SKV_PUT, "0:b", "B")), ERR_ABORTED);
    assert_int_equal(cut(&g, SKV_CUT_VIEW, 5, &r), ERR_OK); /* twice */
    assert_int_not_equal(r.index, g.index);
    assert_int_equal(look(&g, 5, &seen), ERR_OK);
    assert_int_equal(seen.index, r.index);
    assert_int_equal(seen.records_count, 2); /* 0:a, and 0:log of one x */
    assert_int_equal(seen.records[1].length, 1);
    assert_value(&g, "0:log", "xx");
    skv_view_remove(g.fsm, 5);
    assert_int_equal(look(&g, 5, &seen), ERR_NOTFOUND);
    group_close(&g);
}

/* Could be wrong: a replica that replays the log, in which there were many
 * cuts, has no slot for the next one; or a view that is read goes. */
static void views_that_nobody_asks_for_make_room(void **state)
{
    struct group g;
    struct skv_cut_reply r;
    struct skv_seen seen;
    (void)state;
    group_new(&g);
    for (uint64_t id = 1; id <= 3 * SKV_VIEWS_MAX; id++) {
        assert_int_equal(cut(&g, SKV_CUT_LOOK, id, &r), ERR_OK);
        if (id <= 2) {
            assert_int_equal(look(&g, id, &seen), ERR_OK);
        }
    }
    uint64_t last = 3 * SKV_VIEWS_MAX;
    assert_int_equal(look(&g, 1, &seen), ERR_OK);
    assert_true(skv_view_take(g.fsm, 2));
    assert_int_equal(look(&g, last, &seen), ERR_OK);
    assert_int_equal(seen.index, g.index);
    assert_true(skv_view_take(g.fsm, last - 1));
    assert_false(skv_view_take(g.fsm, last - 2));
    assert_int_equal(cut(&g, SKV_CUT_LOOK, last + 1, &r), ERR_OK);
    assert_int_equal(look(&g, last + 1, &seen), ERR_NOTFOUND); /* all in use */
    assert_int_equal(look(&g, last - 1, &seen), ERR_OK);
    skv_view_remove(g.fsm, 1);
    assert_int_equal(cut(&g, SKV_CUT_LOOK, last + 2, &r), ERR_OK);
    assert_int_equal(look(&g, last + 2, &seen), ERR_OK);
    group_close(&g);
}

/* Could be wrong: a step that comes late holds a group for nobody. */
static void steps_of_a_cut_that_is_over_change_nothing(void **state)
{
    struct group g;
    struct skv_cut_reply r;
    (void)state;
    group_new(&g);
    assert_int_equal(cut(&g, SKV_CUT_HOLD, 5, &r), ERR_OK);
    assert_int_equal(cut(&g, SKV_CUT_HOLD, 6, &r), ERR_BUSY);
    assert_int_equal(cut(&g, SKV_CUT_RELEASE, 4, &r), ERR_OK);
    append_as(&g, 1, ERR_BUSY);
    assert_int_equal(cut(&g, SKV_CUT_RELEASE, 5, &r), ERR_OK);
    append_as(&g, 1, ERR_OK);
    assert_int_equal(cut(&g, SKV_CUT_VIEW, 5, &r), ERR_EXPIRED);
    assert_int_equal(cut(&g, SKV_CUT_HOLD, 5, &r), ERR_EXPIRED);
    assert_int_equal(r.id, 5);
    assert_int_equal(cut(&g, SKV_CUT_RELEASE, 7, &r), ERR_OK);
    assert_int_equal(cut(&g, SKV_CUT_HOLD, 7, &r), ERR_EXPIRED);
    assert_int_equal(cut(&g, SKV_CUT_VIEW, 9, &r), ERR_EXPIRED);
    append_as(&g, 2, ERR_OK);
    group_close(&g);
}

/* Could be wrong: a shard on its way is in the cut twice, or not at all. */
static void who_serves_what_stays_as_it_is_while_held(void **state)
{
    struct group a, b;
    struct skv_cut_reply r;
    (void)state;
    two_groups(&a, &b);
    append_as(&a, 1, ERR_OK);
    assert_int_equal(configure(&a, 2, MOVED), ERR_OK);
    assert_int_equal(configure(&b, 2, MOVED), ERR_OK);
    struct journey j = {.from = &a, .to = &b, .number = 2};
    assert_int_equal(cut(&a, SKV_CUT_HOLD, 5, &r), ERR_OK);
    assert_int_equal(r.shards_count, SHARDS); /* one of them LEAVING */
    assert_int_equal(cut(&b, SKV_CUT_HOLD, 5, &r), ERR_OK);
    assert_int_equal(r.shards_count, 0);
    assert_int_equal(journey_batch(&j), SKV_END_MORE); /* the copy goes on */
    assert_int_equal(journey_batch(&j), SKV_END_NOW);
    assert_int_equal(journey_freeze(&j), ERR_BUSY);
    assert_int_equal(cut(&a, SKV_CUT_VIEW, 5, &r), ERR_OK);
    assert_int_equal(journey_freeze(&j), ERR_OK);
    assert_int_equal(cut(&a, SKV_CUT_HOLD, 6, &r), ERR_OK);
    assert_int_equal(r.shards_count, SHARDS - 1); /* it is served by nobody */
    struct skv_install end = {
        .number = 2, .last = 1, .cursor = {.batches = j.cursor.batches + 1}};
    assert_int_equal(run(&b, skv_command_install(&end)).rc, ERR_BUSY);
    assert_int_equal(cut(&b, SKV_CUT_RELEASE, 5, &r), ERR_OK);
    assert_int_equal(journey_batch(&j), SKV_END_LAST);
    assert_int_equal(cut(&b, SKV_CUT_HOLD, 6, &r), ERR_OK);
    assert_int_equal(r.shards_count, 1);
    bytes_unref(j.last);
    skv_view_remove(a.fsm, 5);
    group_close(&a);
    group_close(&b);
}

/* ---- every replica alike ---- */

static enum err collect(void *arg, struct slice bytes)
{
    buf_append(arg, bytes.data, bytes.size);
    return ERR_OK;
}

static void view(struct group *g, struct buf *out)
{
    void *v = NULL;
    struct skv_store *s = g->fsm->store;
    assert_int_equal(g->fsm->fsm.ops->snap_begin(&g->fsm->fsm, &v), ERR_OK);
    assert_int_equal(s->ops->view_read(s, v, collect, out), ERR_OK);
    g->fsm->fsm.ops->snap_end(&g->fsm->fsm, v);
}

static void random_request(struct group *g, struct rng *r)
{
    static const uint8_t kinds[] = {
        SKV_PUT,    SKV_APPEND, SKV_PUT_RANGE, SKV_TRUNCATE,     SKV_DELETE,
        SKV_ADD,    SKV_PUNCH,  SKV_GET,       SKV_CMP_EXISTS,   SKV_CMP_ABSENT,
        SKV_LENGTH, SKV_SCAN,   SKV_CMP_EMPTY, SKV_DELETE_PREFIX};
    static const char *const names[] = {"0:a", "0:b", "0:b2", "0:c"};
    struct skv_item items[3];
    struct skv_shard_ref participants[] = {{.shard = 0}, {.shard = 1}};
    for (int i = 0; i < 3; i++) {
        items[i] = item(kinds[rng_below(r, sizeof kinds)],
                        names[rng_below(r, 4)], "data");
        items[i].offset = rng_below(r, 100) == 0 ? 9000 : rng_below(r, 9);
        items[i].number = rng_below(r, 20);
    }
    struct skv_request q = {.session = 1 + rng_below(r, 3),
                            .sequence = 1 + rng_below(r, 60),
                            .flags = SKV_FLAG_OPEN,
                            .items = items,
                            .items_count = 1 + (uint32_t)rng_below(r, 3)};
    q.first = rng_below(r, 5) == 0 ? rng_below(r, q.sequence) : 0;
    if (rng_below(r, 3) == 0) {
        q.phase = (uint8_t)(1 + rng_below(r, 4));
        q.items_count = q.phase == SKV_PREPARE ? q.items_count : 0;
        q.participants = participants;
        q.participants_count = q.phase == SKV_PREPARE ? 2 : 0;
    }
    send(g, &q);
}

static void the_same_log_gives_the_same_bytes(void **state)
{
    struct group a, b;
    (void)state;
    group_new(&a);
    group_new(&b);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct rng ra = {.state = seed}, rb = {.state = seed};
        for (int i = 0; i < 100; i++) {
            random_request(&a, &ra);
            random_request(&b, &rb);
            assert_int_equal(
                slice_compare(buf_slice(&a.answer), buf_slice(&b.answer)), 0);
            arena_free(&a.arena);
            arena_free(&b.arena);
        }
        if (seed % 5 == 0) {
            reopen(&b);
        }
    }
    struct buf va = {0}, vb = {0};
    view(&a, &va);
    view(&b, &vb);
    assert_int_equal(slice_compare(buf_slice(&va), buf_slice(&vb)), 0);
    buf_free(&va);
    buf_free(&vb);
    group_close(&a);
    group_close(&b);
}

/* ---- a snapshot ---- */

struct from_buf {
    struct snap_source source;
    struct slice left;
};

static enum err read_buf(struct snap_source *source, void *to, size_t size_max,
                         size_t *size)
{
    struct from_buf *f = (struct from_buf *)(void *)source;
    *size = f->left.size < size_max ? f->left.size : size_max;
    memcpy(to, f->left.data, *size);
    f->left = slice_of(f->left.data + *size, f->left.size - *size);
    return ERR_OK;
}

static void a_snapshot_carries_everything(void **state)
{
    struct group a, b;
    struct buf bytes = {0};
    (void)state;
    group_new(&a);
    append_as(&a, 1, ERR_OK);
    assert_int_equal(PREPARE(&a, 1, item(SKV_PUT, "0:p", "P")), ERR_OK);
    view(&a, &bytes);
    b = (struct group){.clock_us = 1000};
    group_open(&b, 1);
    struct from_buf from = {.source.read = read_buf, .left = buf_slice(&bytes)};
    assert_int_equal(
        b.fsm->fsm.ops->snap_install(&b.fsm->fsm, &from.source, a.index, 1),
        ERR_OK);
    b.index = a.index;
    assert_int_equal(b.fsm->clock_us, a.fsm->clock_us);
    append_as(&b, 1, ERR_OK);
    assert_value(&b, "0:log", "x");
    assert_int_equal(EXECUTE(&b, item(SKV_PUT, "0:p", "")), ERR_LOCKED);
    assert_int_equal(PHASE(&b, SKV_COMMIT, 1), ERR_OK);
    assert_value(&b, "0:p", "P");
    buf_free(&bytes);
    group_close(&a);
    group_close(&b);
}

/* ---- threads ---- */

static void *apply_and_checkpoint(void *arg)
{
    struct group *g = arg;
    for (uint64_t i = 1; i <= 3; i++) {
        append_as(g, i, ERR_WRONGGROUP);
        checkpoint(g);
    }
    return NULL;
}

/* The store on disk belongs to the thread that first touches it: a checkpoint
 * of the worker would wait for ever for a transaction begun by another. */
static void the_store_is_left_to_the_worker(void **state)
{
    char dir[] = "/tmp/skv_fsm_XXXXXX";
    struct skv_store *s = NULL;
    struct group g = {0};
    pthread_t worker;
    raft_term term = 0;
    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(skv_store_lmdb_open(dir, 64 << 20, &s), ERR_OK);
    g.fsm = skv_fsm_new(s, 1);
    assert_int_equal(g.fsm->fsm.ops->durable(&g.fsm->fsm, &term), 0);
    assert_int_equal(pthread_create(&worker, NULL, apply_and_checkpoint, &g),
                     0);
    assert_int_equal(pthread_join(worker, NULL), 0);
    assert_int_equal(g.fsm->fsm.ops->durable(&g.fsm->fsm, &term), 3);
    group_close(&g);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_of_write_does_what_it_says),
        cmocka_unit_test(compares_hold_or_refuse),
        cmocka_unit_test(reads_see_what_was_before_the_writes),
        cmocka_unit_test(a_scan_pages),
        cmocka_unit_test(an_indirect_item_follows_the_value_it_names),
        cmocka_unit_test(a_refused_transaction_writes_nothing),
        cmocka_unit_test(an_item_sees_the_writes_before_it),
        cmocka_unit_test(nonsense_is_answered_and_changes_nothing),
        cmocka_unit_test(a_retry_is_answered_and_not_executed),
        cmocka_unit_test(a_refusal_is_remembered_too),
        cmocka_unit_test(replies_survive_a_restart_and_a_snapshot),
        cmocka_unit_test(a_change_and_its_reply_are_lost_together),
        cmocka_unit_test(below_first_is_refused_and_forgotten),
        cmocka_unit_test(an_unknown_session_must_say_that_it_is_new),
        cmocka_unit_test(unacknowledged_replies_are_bounded),
        cmocka_unit_test(idle_sessions_expire),
        cmocka_unit_test(expiry_goes_on_where_it_stopped),
        cmocka_unit_test(a_shard_of_another_group_is_refused),
        cmocka_unit_test(configurations_come_in_order_and_wait_for_moves),
        cmocka_unit_test(a_shard_moves_with_its_sessions),
        cmocka_unit_test(values_of_any_size_move_and_batches_may_come_again),
        cmocka_unit_test(a_shard_in_use_arrives_as_it_is),
        cmocka_unit_test(a_key_written_again_leaves_one_change),
        cmocka_unit_test(a_reply_that_goes_leaves_no_change),
        cmocka_unit_test(sessions_in_use_arrive_as_they_are),
        cmocka_unit_test(a_row_takes_its_replies_along),
        cmocka_unit_test(no_session_expires_while_its_shard_leaves),
        cmocka_unit_test(keys_of_one_hash_have_each_their_change),
        cmocka_unit_test(a_leaving_shard_is_served_until_it_is_frozen),
        cmocka_unit_test(a_shard_is_counted_in_bounded_parts),
        cmocka_unit_test(steps_that_do_not_fit_are_refused),
        cmocka_unit_test(a_batch_that_is_not_the_shards_is_refused_whole),
        cmocka_unit_test(a_shard_comes_and_goes_whole),
        cmocka_unit_test(a_settled_shard_is_dropped_in_bounded_steps),
        cmocka_unit_test(a_prepared_transaction_is_done_by_commit),
        cmocka_unit_test(abort_undoes_and_is_final),
        cmocka_unit_test(resolve_before_prepare_votes_against_it_for_ever),
        cmocka_unit_test(a_conflicting_prepare_votes_against),
        cmocka_unit_test(locks_keep_out_what_conflicts_and_nothing_else),
        cmocka_unit_test(what_was_locked_executes_later_under_its_number),
        cmocka_unit_test(a_prepared_transaction_moves_with_its_shard),
        cmocka_unit_test(the_picture_shows_what_is_prepared),
        cmocka_unit_test(a_large_vote_is_kept_whole),
        cmocka_unit_test(a_session_with_a_vote_out_does_not_expire),
        cmocka_unit_test(while_held_nothing_begins_and_all_ends),
        cmocka_unit_test(views_that_nobody_asks_for_make_room),
        cmocka_unit_test(steps_of_a_cut_that_is_over_change_nothing),
        cmocka_unit_test(who_serves_what_stays_as_it_is_while_held),
        cmocka_unit_test(the_same_log_gives_the_same_bytes),
        cmocka_unit_test(a_snapshot_carries_everything),
        cmocka_unit_test(the_store_is_left_to_the_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
