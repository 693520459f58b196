/* A group that serves shards: what clients ask of it, what its log holds, and
 * what another group sends it. Everything runs on the store in memory. */
#include <string.h>

#include "shardkv/fsm_int.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/command.h"

enum { SHARDS = 4, OURS = 1, THEIRS = 2, SESSION = 7001 };
#define DAY_US        (24ull * 3600 * 1000000)
#define SIZE_MAX_HERE (1u << 20) /* the store in memory has no holes */

/* ---- messages ---- */

FUZZ_MESSAGE(skv_request)
FUZZ_MESSAGE(skv_reply)
FUZZ_MESSAGE(skv_scan)
FUZZ_MESSAGE(skv_install)
FUZZ_MESSAGE(skv_step)
FUZZ_MESSAGE(skv_expire)
FUZZ_MESSAGE(skv_outcome)
FUZZ_MESSAGE(skv_pulled)
FUZZ_MESSAGE(skv_vote)
FUZZ_MESSAGE(skv_row)
FUZZ_MESSAGE(skv_cursor)
FUZZ_MESSAGE(skv_change)
FUZZ_MESSAGE(skv_count)
FUZZ_MESSAGE(skv_counted)
static const struct fuzz_message table[] = {
    {try_skv_request}, {try_skv_reply},  {try_skv_scan},    {try_skv_install},
    {try_skv_step},    {try_skv_expire}, {try_skv_outcome}, {try_skv_pulled},
    {try_skv_vote},    {try_skv_row},    {try_skv_cursor},  {try_skv_change},
    {try_skv_count},   {try_skv_counted}};
enum { MESSAGES = sizeof table / sizeof *table };

static void messages_run(struct slice input)
{
    fuzz_try_message(table, MESSAGES, input);
}

static void messages_seed(void)
{
    fuzz_seed_messages(MESSAGES);
}
const struct fuzz_target fuzz_skv_messages = {"skv_messages", messages_run,
                                              messages_seed, 0};

/* ---- a group ---- */

struct group {
    struct skv_mem_image image;
    struct skv_fsm *fsm;
    raft_index index;
    uint64_t clock_us;
    struct buf answer;
};

static enum err group_open(struct group *g)
{
    g->fsm = skv_fsm_new(skv_store_mem_open(&g->image), OURS);
    raft_term term = 0;
    g->index = g->fsm->fsm.ops->durable(&g->fsm->fsm, &term);
    return skv_fsm_ready(g->fsm);
}

static void checkpoint(struct group *g)
{
    enum err rc = g->fsm->fsm.ops->checkpoint(&g->fsm->fsm);
    CHECK(rc == ERR_OK);
}

static void group_close(struct group *g)
{
    skv_fsm_free(g->fsm);
    skv_mem_image_fini(&g->image);
    buf_free(&g->answer);
}

static void group_reopen(struct group *g)
{
    checkpoint(g);
    skv_fsm_free(g->fsm);
    enum err rc = group_open(g);
    CHECK(rc == ERR_OK);
}

static enum err apply(struct group *g, struct slice command)
{
    struct rsm_entry e = {.index = ++g->index,
                          .term = 1,
                          .type = RAFT_ENTRY_COMMAND,
                          .command = command,
                          .reply = &g->answer};
    buf_clear(&g->answer);
    return g->fsm->fsm.ops->apply(&g->fsm->fsm, &e, 1);
}

/* Takes the command, which is one that its proposer has checked. */
static enum err run(struct group *g, struct bytes *command)
{
    enum err rc = apply(g, bytes_slice(command));
    bytes_unref(command);
    return rc;
}

static void must(enum err rc)
{
    CHECK(rc == ERR_OK);
}

/* Configuration `number`: every shard belongs to `gid`. */
static struct bytes *config_command(uint64_t number, ctl_gid gid)
{
    struct ctl_server servers[2] = {{.id = 1, .address = slice_text("a:1")},
                                    {.id = 1, .address = slice_text("b:1")}};
    struct ctl_group groups[2] = {
        {.gid = OURS, .servers = &servers[0], .servers_count = 1},
        {.gid = THEIRS, .servers = &servers[1], .servers_count = 1}};
    struct ctl_owner shards[SHARDS] = {{gid}, {gid}, {gid}, {gid}};
    struct ctl_config c = {.number = number,
                           .shards = shards,
                           .shards_count = SHARDS,
                           .groups = groups,
                           .groups_count = 2};
    return skv_command_config(&c);
}

static void group_new(struct group *g, ctl_gid owner)
{
    *g = (struct group){.clock_us = 1000};
    must(group_open(g));
    must(run(g, config_command(1, owner)));
}

static enum err send(struct group *g, struct slice request)
{
    return run(g, command_of(++g->clock_us, request));
}

/* Would the store in memory need much more memory than the request has? The
 * limits of the wire are for stores with sparse files. */
static bool is_large(struct slice request)
{
    struct arena a = {0};
    struct skv_request q;
    bool large = false;
    if (skv_request_decode(request, &a, &q) == ERR_OK) {
        for (uint32_t i = 0; i < q.items_count; i++) {
            large |= q.items[i].offset > SIZE_MAX_HERE ||
                     (q.items[i].kind != SKV_ADD &&
                      q.items[i].number > SIZE_MAX_HERE);
        }
    }
    arena_free(&a);
    return large;
}

/* ---- requests ----
 *
 * Parts: u8 op, then the bytes of a request. Two replicas: one is closed and
 * opened again now and then, and both must agree. */

enum request_op { OP_SEND, OP_REOPEN_AND_SEND, OP_EXPIRE, OP_READ, OP_COUNT };

static void read_it(struct group *g, struct slice body)
{
    struct buf out = {0};
    struct arena a = {0};
    struct skv_reply reply;
    must(skv_apply_read(g->fsm, body, &out));
    must(skv_reply_decode(buf_slice(&out), &a, &reply));
    arena_free(&a);
    buf_free(&out);
}

static void expire(struct group *g)
{
    g->clock_us += 40 * DAY_US;
    for (uint16_t s = 0; s < SHARDS; s++) {
        must(run(g, skv_command_expire(g->clock_us, s, 0)));
    }
}

/* Every key names an object: else one request could reach over others', or over
 * the shard's own records. */
static bool check_key(void *arg, struct slice key,
                      const struct skv_value *value)
{
    (void)arg;
    (void)value;
    CHECK(key.size >= SKV_OBJECT_SIZE);
    return true;
}

static void check_alike(struct group *a, struct group *b)
{
    struct skv_store *s = a->fsm->store;
    must(
        s->ops->scan(s, slice_of(NULL, 0), slice_of(NULL, 0), check_key, NULL));
    checkpoint(a);
    checkpoint(b);
    struct buf of_a = {0}, of_b = {0};
    skv_mem_image_save(&a->image, &of_a);
    skv_mem_image_save(&b->image, &of_b);
    fuzz_same(&of_a, buf_slice(&of_b));
    buf_free(&of_a);
    buf_free(&of_b);
}

static void do_op(struct group *one, struct group *two, struct slice part)
{
    if (part.size == 0) {
        return;
    }
    struct slice body = slice_of(part.data + 1, part.size - 1);
    switch ((enum request_op)(part.data[0] % OP_COUNT)) {
    case OP_EXPIRE:
        expire(one);
        expire(two);
        return;
    case OP_READ: read_it(one, body); return;
    case OP_REOPEN_AND_SEND: group_reopen(two); break;
    case OP_SEND:
    case OP_COUNT: break;
    }
    if (!is_large(body)) {
        must(send(one, body));
        must(send(two, body));
        fuzz_same(&one->answer, buf_slice(&two->answer));
    }
}

static void request_run(struct slice input)
{
    struct group one, two;
    struct dec d = dec_of(input);
    struct slice part;
    group_new(&one, OURS);
    group_new(&two, OURS);
    while (fuzz_part(&d, &part)) {
        do_op(&one, &two, part);
    }
    check_alike(&one, &two);
    group_close(&one);
    group_close(&two);
}

static struct slice key(const char *text)
{
    static uint8_t keys[8][32];
    static uint32_t at;
    uint8_t *to = keys[at++ % 8];
    memset(to, 0, 32);
    set_be64(to, (uint64_t)1 << 48 | 9);
    memcpy(to + 8, text, strlen(text));
    return slice_of(to, 8 + strlen(text));
}

static void encode_request(struct buf *b, uint8_t phase, uint64_t sequence,
                           struct skv_item *items, uint32_t count)
{
    static struct skv_shard_ref here[2] = {{1}, {2}};
    struct skv_request q = {.session = SESSION,
                            .sequence = sequence,
                            .first = sequence > 2 ? sequence - 2 : 1,
                            .flags = SKV_FLAG_OPEN,
                            .phase = phase,
                            .shard = 1,
                            .participants = here,
                            .participants_count = phase == SKV_PREPARE ? 2 : 0,
                            .items = items,
                            .items_count = count};
    skv_request_encode(b, &q);
}

static void add_request(struct buf *b, enum request_op op, uint8_t phase,
                        uint64_t sequence, struct skv_item *items,
                        uint32_t count)
{
    struct buf part = {0};
    enc_u8(&part, (uint8_t)op);
    encode_request(&part, phase, sequence, items, count);
    fuzz_add_part(b, buf_slice(&part));
    buf_free(&part);
}

/* One request with each kind of item; then a transaction. */
static void add_requests(struct buf *b)
{
    struct skv_item kinds[] = {
        {.kind = SKV_CMP_ABSENT, .key = key("x")},
        {.kind = SKV_CMP_LENGTH, .key = key("x"), .number = 0},
        {.kind = SKV_CMP_EMPTY, .key = key("y")},
        {.kind = SKV_GET, .key = key("a"), .number = 10},
        {.kind = SKV_LENGTH, .via = key("a"), .key = slice_text("q")},
        {.kind = SKV_SCAN, .key = key(""), .number = 3},
        {.kind = SKV_PUT, .key = key("a"), .data = slice_text("value")},
        {.kind = SKV_APPEND, .key = key("a"), .data = slice_text("more")},
        {.kind = SKV_PUT_RANGE, .key = key("a"), .offset = 5000},
        {.kind = SKV_TRUNCATE, .key = key("b"), .number = 4100},
        {.kind = SKV_ADD, .key = key("c"), .offset = 4, .number = UINT64_MAX},
        {.kind = SKV_PUNCH, .key = key("b"), .offset = 1, .number = 9},
        {.kind = SKV_DELETE, .key = key("d")},
        {.kind = SKV_DELETE_PREFIX, .key = key("")},
    };
    kinds[8].data = slice_text("far");
    uint64_t sequence = 0;
    for (uint32_t i = 0; i < sizeof kinds / sizeof *kinds; i += 3) {
        uint32_t left = (uint32_t)(sizeof kinds / sizeof *kinds) - i;
        add_request(b, i == 6 ? OP_REOPEN_AND_SEND : OP_SEND, SKV_EXECUTE,
                    ++sequence, kinds + i, left < 3 ? left : 3);
    }
    add_request(b, OP_READ, SKV_EXECUTE, sequence, kinds + 3, 3);
    add_request(b, OP_SEND, SKV_PREPARE, ++sequence, kinds + 6, 2);
    add_request(b, OP_REOPEN_AND_SEND, SKV_EXECUTE, sequence + 2, kinds + 6, 1);
    add_request(b, OP_SEND, SKV_RESOLVE, sequence, NULL, 0);
    add_request(b, OP_SEND, SKV_COMMIT, sequence, NULL, 0);
    add_request(b, OP_SEND, SKV_ABORT, sequence + 3, NULL, 0);
    add_request(b, OP_EXPIRE, SKV_EXECUTE, sequence, NULL, 0);
}

static void request_seed(void)
{
    struct buf b = {0};
    add_requests(&b);
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
}
const struct fuzz_target fuzz_skv_request = {"skv_request", request_run,
                                             request_seed, 0};

/* ---- commands of the log ----
 *
 * Parts, each a command. What does not decode ends the replica with an error;
 * on every replica alike. */

static bool command_is_large(struct slice command)
{
    struct slice body = slice_of(command.data + 1, command.size - 1);
    struct arena a = {0};
    struct skv_install install;
    bool large = false;
    if (command.data[0] == SKV_COMMAND_REQUEST && body.size >= 8) {
        return is_large(slice_of(body.data + 8, body.size - 8));
    }
    if ((command.data[0] == SKV_COMMAND_INSTALL ||
         command.data[0] == SKV_COMMAND_INSTALL_TOLD) &&
        skv_install_decode(body, &a, &install) == ERR_OK) {
        for (uint32_t i = 0; i < install.records_count; i++) {
            large |= install.records[i].length > SIZE_MAX_HERE;
        }
    }
    arena_free(&a);
    return large;
}

static void command_run(struct slice input)
{
    struct group one, two;
    struct dec d = dec_of(input);
    struct slice part;
    enum err rc = ERR_OK;
    group_new(&one, OURS);
    group_new(&two, OURS);
    for (uint32_t i = 0; rc == ERR_OK && fuzz_part(&d, &part); i++) {
        if (part.size > 0 && command_is_large(part)) {
            continue;
        }
        if (i % 4 == 3) {
            checkpoint(&two);
            skv_fsm_free(two.fsm);
            must(group_open(&two));
        }
        rc = apply(&one, part);
        CHECK(rc == ERR_OK || rc == ERR_CORRUPT);
        CHECK(apply(&two, part) == rc);
        CHECK(rc != ERR_OK || slice_compare(buf_slice(&one.answer),
                                            buf_slice(&two.answer)) == 0);
    }
    if (rc == ERR_OK) {
        check_alike(&one, &two);
    }
    group_close(&one);
    group_close(&two);
}

static void add_command(struct buf *b, struct bytes *command)
{
    fuzz_add_part(b, bytes_slice(command));
    bytes_unref(command);
}

static void command_seed(void)
{
    struct buf b = {0}, request = {0};
    struct skv_item put = {
        .kind = SKV_PUT, .key = key("a"), .data = slice_text("v")};
    encode_request(&request, SKV_EXECUTE, 1, &put, 1);
    add_command(&b, command_of(5, buf_slice(&request)));
    add_command(&b, config_command(2, THEIRS));
    for (uint16_t s = 0; s < SHARDS; s++) {
        add_command(&b, skv_command_step(SKV_COMMAND_FREEZE, s, 2));
        add_command(&b, skv_command_step(SKV_COMMAND_DROP, s, 2));
    }
    add_command(&b, config_command(3, OURS));
    struct skv_record record = {
        .key = key("k"), .span = 2, .length = 2, .data = slice_text("ab")};
    struct skv_install install = {.shard = 1,
                                  .number = 3,
                                  .cursor = {.batches = 1, .key = key("k")},
                                  .records = &record,
                                  .records_count = 1};
    add_command(&b, skv_command_install(&install));
    install.last = 1;
    install.cursor.batches = 2;
    add_command(&b, skv_command_install(&install));
    add_command(&b, skv_command_step(SKV_COMMAND_SETTLED, 1, 3));
    add_command(&b, skv_command_expire(DAY_US * 50, 1, 0));
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
    buf_free(&request);
}
const struct fuzz_target fuzz_skv_command = {"skv_command", command_run,
                                             command_seed, 0};

/* ---- another group asks for a shard ----
 *
 * Input: an encoded skv_pull. What it gets, it could have sent us. */

static void fill_and_freeze(struct group *g)
{
    struct buf life = {0};
    struct slice part;
    group_new(g, OURS);
    add_requests(&life);
    struct dec d = dec_of(buf_slice(&life));
    for (int i = 0; i < 4 && fuzz_part(&d, &part); i++) {
        must(send(g, slice_of(part.data + 1, part.size - 1)));
    }
    must(run(g, config_command(2, THEIRS)));
    buf_free(&life);
}

static void check_pulled(struct slice bytes, uint16_t shard)
{
    struct arena a = {0};
    struct skv_pulled pulled;
    must(skv_pulled_decode(bytes, &a, &pulled));
    for (uint32_t i = 0; i < pulled.records_count; i++) {
        must(skv_record_check(&pulled.records[i], shard));
    }
    arena_free(&a);
}

static void pull_run(struct slice input)
{
    struct group g;
    struct arena a = {0};
    struct skv_pull pull;
    struct buf out = {0};
    enum err fault = ERR_OK;
    if (skv_pull_decode(input, &a, &pull) == ERR_OK) {
        fill_and_freeze(&g);
        if (skv_batch_read(g.fsm, &pull, THEIRS, false, &out, &fault) ==
            ERR_OK) {
            check_pulled(buf_slice(&out), pull.shard);
        }
        CHECK(fault == ERR_OK);
        group_close(&g);
    }
    buf_free(&out);
    arena_free(&a);
}

static void pull_seed(void)
{
    struct buf b = {0};
    struct skv_pull pull = {.shard = 1, .number = 2};
    skv_pull_encode(&b, &pull);
    fuzz_seed(buf_slice(&b));
    buf_clear(&b);
    pull.cursor.key = key("a");
    pull.cursor.offset = 100;
    skv_pull_encode(&b, &pull);
    fuzz_seed(buf_slice(&b));
    buf_clear(&b);
    pull.cursor = (struct skv_cursor){.changes = 1};
    skv_pull_encode(&b, &pull);
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
}
const struct fuzz_target fuzz_skv_pull = {"skv_pull", pull_run, pull_seed, 0};

/* ---- another group sends a shard ----
 *
 * Parts, each an encoded skv_pulled, as its answers to PULL. Whatever they say,
 * our group goes on: it serves the shard, or refuses to have it. */

static bool pulled_is_good(const struct skv_pulled *p)
{
    for (uint32_t i = 0; i < p->records_count; i++) {
        if (skv_record_check(&p->records[i], 1) != ERR_OK ||
            p->records[i].length > SIZE_MAX_HERE) {
            return false;
        }
    }
    return true;
}

static void install(struct group *g, struct slice part, uint64_t *batches)
{
    struct arena a = {0};
    struct skv_pulled pulled;
    if (skv_pulled_decode(part, &a, &pulled) == ERR_OK &&
        pulled_is_good(&pulled)) {
        struct skv_install command = {.shard = 1,
                                      .number = 2,
                                      .cursor = {.batches = ++*batches},
                                      .records = pulled.records,
                                      .records_count = pulled.records_count};
        must(run(g, skv_command_install(&command)));
    }
    arena_free(&a);
}

static void live_on(struct group *g)
{
    struct buf life = {0};
    struct slice part;
    add_requests(&life);
    struct dec d = dec_of(buf_slice(&life));
    while (fuzz_part(&d, &part)) {
        must(send(g, slice_of(part.data + 1, part.size - 1)));
    }
    expire(g);
    group_reopen(g);
    buf_free(&life);
}

static void arrival_run(struct slice input)
{
    struct group g;
    struct dec d = dec_of(input);
    struct slice part;
    group_new(&g, THEIRS);
    must(run(&g, config_command(2, OURS)));
    uint64_t batches = 0;
    while (fuzz_part(&d, &part)) {
        install(&g, part, &batches);
    }
    struct skv_install last = {
        .shard = 1, .number = 2, .last = 1, .cursor = {.batches = batches + 1}};
    must(run(&g, skv_command_install(&last)));
    live_on(&g);
    group_close(&g);
}

static void arrival_seed(void)
{
    struct group g;
    struct buf life = {0}, out = {0}, b = {0};
    struct slice part;
    struct skv_pull pull = {.shard = 1, .number = 2};
    enum err fault = ERR_OK;
    group_new(&g, OURS);
    add_requests(&life);
    struct dec d = dec_of(buf_slice(&life));
    for (int i = 0; i < 7 && fuzz_part(&d, &part); i++) {
        must(send(&g, slice_of(part.data + 1, part.size - 1)));
    }
    must(run(&g, config_command(2, THEIRS)));
    must(skv_batch_read(g.fsm, &pull, THEIRS, false, &out, &fault));
    fuzz_add_part(&b, buf_slice(&out));
    fuzz_seed(buf_slice(&b));
    group_close(&g);
    buf_free(&life);
    buf_free(&out);
    buf_free(&b);
}
const struct fuzz_target fuzz_skv_arrival = {"skv_arrival", arrival_run,
                                             arrival_seed, 16 << 10};

/* ---- a store's stream ----
 *
 * Input: u8, 1: the end's count and checksum are put right; then the stream of
 * a snapshot. Taken whole, or refused and nothing has changed. */

struct reading {
    struct slice left;
};

static enum err read_some(void *arg, void *to, size_t size_max, size_t *size)
{
    struct reading *r = arg;
    *size = r->left.size < size_max ? r->left.size : size_max;
    if (*size > 0) {
        memcpy(to, r->left.data, *size);
        r->left.data += *size;
        r->left.size -= *size;
    }
    return ERR_OK;
}

/* False when it is too large for here. */
static bool put_right(struct buf *stream, bool checksums)
{
    uint64_t keys = 0;
    size_t at = 8;
    while (stream->size >= at + 5) {
        uint8_t *p = stream->data + at;
        size_t size = get_u32(p + 1);
        if (size > stream->size - at - 5) {
            break;
        }
        if (p[0] == SKV_STREAM_KEY && size >= 9) {
            keys++;
            if (get_u64(p + 6) > SIZE_MAX_HERE) {
                return false;
            }
        }
        if (checksums && p[0] == SKV_STREAM_END && size == 12) {
            set_u64(p + 5, keys);
            set_u32(p + 13, crc32c(0, slice_of(stream->data, at)));
        }
        at += 5 + size;
    }
    return true;
}

static void use_store(struct group *g)
{
    struct buf life = {0};
    struct slice part;
    add_requests(&life);
    struct dec d = dec_of(buf_slice(&life));
    enum err rc = ERR_OK;
    while (rc == ERR_OK && fuzz_part(&d, &part)) {
        rc = send(g, slice_of(part.data + 1, part.size - 1));
    }
    for (uint16_t s = 0; rc == ERR_OK && s < SHARDS; s++) {
        rc = run(g, skv_command_expire(90 * DAY_US, s, 0));
    }
    CHECK(rc == ERR_OK || rc == ERR_CORRUPT);
    buf_free(&life);
}

static void stream_run(struct slice input)
{
    struct buf stream = {0};
    struct group g;
    if (input.size < 1) {
        return;
    }
    buf_append(&stream, input.data + 1, input.size - 1);
    if (put_right(&stream, input.data[0] == 1)) {
        group_new(&g, OURS);
        struct reading reading = {buf_slice(&stream)};
        struct skv_store *s = g.fsm->store;
        enum err rc = s->ops->install(s, read_some, &reading, 9, 1);
        CHECK(rc == ERR_OK || rc == ERR_CORRUPT || rc == ERR_VERSION);
        skv_fsm_free(g.fsm);
        enum err opened = group_open(&g);
        CHECK(rc == ERR_OK || opened == ERR_OK);
        if (opened == ERR_OK) {
            use_store(&g);
        }
        group_close(&g);
    }
    buf_free(&stream);
}

static void stream_seed(void)
{
    struct group g;
    struct buf life = {0}, b = {0}, stream = {0};
    struct slice part;
    group_new(&g, OURS);
    add_requests(&life);
    struct dec d = dec_of(buf_slice(&life));
    for (int i = 0; i < 7 && fuzz_part(&d, &part); i++) {
        must(send(&g, slice_of(part.data + 1, part.size - 1)));
        if (i % 3 == 0) {
            checkpoint(&g);
            buf_clear(&b);
            enc_u8(&b, 1);
            skv_mem_image_save(&g.image, &stream);
            buf_append(&b, stream.data, stream.size);
            fuzz_seed(buf_slice(&b));
        }
    }
    b.data[0] = 0;
    fuzz_seed(buf_slice(&b));
    group_close(&g);
    buf_free(&stream);
    buf_free(&life);
    buf_free(&b);
}
const struct fuzz_target fuzz_store_stream = {"store_stream", stream_run,
                                              stream_seed, 16 << 10};
