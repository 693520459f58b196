/* The shard controller: what clerks, servers and mounts send it, the commands
 * in its log, and its state as bytes. */
#include <string.h>

#include "shardctrler/fsm_int.h"
#include "tests/fuzz/fuzz.h"

/* ---- messages ---- */

FUZZ_MESSAGE(ctl_query)
FUZZ_MESSAGE(ctl_change)
FUZZ_MESSAGE(ctl_changed)
FUZZ_MESSAGE(ctl_mount)
FUZZ_MESSAGE(ctl_mounts)
FUZZ_MESSAGE(ctl_status)
FUZZ_MESSAGE(ctl_config)
FUZZ_MESSAGE(ctl_delta)
static const struct fuzz_message table[] = {
    {try_ctl_query},  {try_ctl_change}, {try_ctl_changed}, {try_ctl_mount},
    {try_ctl_mounts}, {try_ctl_status}, {try_ctl_config},  {try_ctl_delta}};
enum { MESSAGES = sizeof table / sizeof *table };

static struct ctl_server servers[2] = {{.id = 1}, {.id = 2}};
static struct ctl_group group = {.gid = 5, .servers = servers};

static struct ctl_change join_change(uint64_t session)
{
    servers[0].address = slice_text("a:1");
    servers[1].address = slice_text("b:2");
    group.servers_count = 2;
    return (struct ctl_change){.session = session,
                               .sequence = 1,
                               .kind = CTL_JOIN,
                               .join = &group,
                               .join_count = 1};
}

static void messages_run(struct slice input)
{
    fuzz_try_message(table, MESSAGES, input);
}

static void messages_seed(void)
{
    struct buf b = {0};
    struct ctl_change change = join_change(1);
    ctl_change_encode(&b, &change);
    fuzz_seed_message(1, &b);
    struct ctl_owner shards[3] = {{5}, {5}, {0}};
    struct ctl_weight weight = {.gid = 5, .weight = 2};
    struct ctl_config config = {.number = 1,
                                .weights = &weight,
                                .weights_count = 1,
                                .move_rate = CTL_RATE_MIN,
                                .shards = shards,
                                .shards_count = 3,
                                .groups = &group,
                                .groups_count = 1};
    ctl_config_encode(&b, &config);
    fuzz_seed_message(6, &b);
    fuzz_seed_messages(MESSAGES);
}
const struct fuzz_target fuzz_ctl_messages = {"ctl_messages", messages_run,
                                              messages_seed, 0};

/* ---- commands ----
 *
 * Parts, each the bytes of a command. A second replica applies the same, and is
 * stored and read back on the way: both must answer and end alike. */

static void apply(struct ctl_state *s, struct slice command, struct buf *reply)
{
    struct rsm_entry e = {.index = s->index + 1,
                          .term = 1,
                          .type = RAFT_ENTRY_COMMAND,
                          .command = command};
    buf_clear(reply);
    ctl_state_apply(s, &e, reply);
}

static void store_and_load(struct ctl_state *s)
{
    struct buf b = {0};
    ctl_state_encode(s, &b);
    enum err rc = ctl_state_decode(buf_slice(&b), s);
    CHECK(rc == ERR_OK);
    buf_free(&b);
}

static void check_alike(const struct ctl_state *a, const struct ctl_state *b)
{
    struct buf x = {0}, y = {0};
    ctl_state_encode(a, &x);
    ctl_state_encode(b, &y);
    fuzz_same(&x, buf_slice(&y));
    buf_free(&x);
    buf_free(&y);
}

/* Every configuration there is can be asked for, and makes sense. */
static void check_history(const struct ctl_state *s)
{
    struct arena a = {0};
    for (uint64_t n = 0; s->shard_count > 0 && n <= s->history.count; n++) {
        struct buf b = {0};
        struct ctl_config config;
        enum err rc = ctl_state_query(s, n, &b);
        CHECK(rc == ERR_OK);
        rc = ctl_config_decode(buf_slice(&b), &a, &config);
        CHECK(rc == ERR_OK && config.number == n);
        rc = ctl_config_check(&config);
        CHECK(rc == ERR_OK);
        buf_free(&b);
    }
    arena_free(&a);
}

static void command_run(struct slice input)
{
    struct ctl_state one, two;
    struct buf reply = {0}, other = {0};
    struct dec d = dec_of(input);
    struct slice part;
    ctl_state_init(&one);
    ctl_state_init(&two);
    for (uint32_t i = 0; fuzz_part(&d, &part); i++) {
        apply(&one, part, &reply);
        apply(&two, part, &other);
        fuzz_same(&reply, buf_slice(&other));
        if (i == 2) {
            store_and_load(&two);
        }
    }
    check_alike(&one, &two);
    check_history(&one);
    buf_clear(&reply);
    ctl_state_list_mounts(&one, &reply);
    ctl_state_fini(&one);
    ctl_state_fini(&two);
    buf_free(&reply);
    buf_free(&other);
}

static void add_command(struct buf *b, enum ctl_command_kind kind,
                        uint64_t stamp_us, struct buf *body)
{
    struct buf part = {0};
    struct ctl_command c = {
        .kind = (uint8_t)kind, .stamp_us = stamp_us, .body = buf_slice(body)};
    ctl_command_encode(&part, &c);
    fuzz_add_part(b, buf_slice(&part));
    buf_free(&part);
    buf_clear(body);
}

static void add_change(struct buf *b, const struct ctl_change *change)
{
    struct buf body = {0};
    ctl_change_encode(&body, change);
    add_command(b, CTL_COMMAND_CHANGE, change->sequence, &body);
    buf_free(&body);
}

static void add_life(struct buf *b)
{
    struct buf body = {0};
    struct ctl_init init = {.shard_count = 4};
    ctl_init_encode(&body, &init);
    add_command(b, CTL_COMMAND_INIT, 1, &body);
    struct ctl_change change = join_change(9);
    add_change(b, &change);
    change.sequence = 2;
    group.gid = 6;
    add_change(b, &change);
    struct ctl_mount mount = {
        .session = 3, .host = slice_text("host"), .path = slice_text("/mnt")};
    ctl_mount_encode(&body, &mount);
    add_command(b, CTL_COMMAND_MOUNT, 3, &body);
    struct ctl_owner leave = {.gid = 5};
    change = (struct ctl_change){.session = 9,
                                 .sequence = 3,
                                 .kind = CTL_LEAVE,
                                 .leave = &leave,
                                 .leave_count = 1};
    group.gid = 5;
    add_change(b, &change);
    change = (struct ctl_change){.session = 9,
                                 .sequence = 4,
                                 .kind = CTL_MOVE,
                                 .move_shard = 1,
                                 .move_gid = 6};
    add_change(b, &change);
    change = (struct ctl_change){.session = 9,
                                 .sequence = 5,
                                 .kind = CTL_WEIGH,
                                 .weigh = {.gid = 6, .weight = 3}};
    add_change(b, &change);
    change = (struct ctl_change){
        .session = 9, .sequence = 6, .kind = CTL_LIMIT, .limit = CTL_RATE_MIN};
    add_change(b, &change);
    buf_free(&body);
}

static void command_seed(void)
{
    struct buf b = {0};
    add_life(&b);
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
}
const struct fuzz_target fuzz_ctl_command = {"ctl_command", command_run,
                                             command_seed, 0};

/* ---- the state's bytes: a file, or a snapshot ----
 *
 * Input: u8, 1: size and checksum are put right first; then the bytes. */

static void state_use(struct ctl_state *s)
{
    struct buf life = {0}, reply = {0};
    struct slice part;
    check_history(s);
    add_life(&life);
    struct dec d = dec_of(buf_slice(&life));
    while (fuzz_part(&d, &part)) {
        apply(s, part, &reply);
    }
    store_and_load(s);
    check_history(s);
    buf_free(&life);
    buf_free(&reply);
}

static void state_run(struct slice input)
{
    enum { CRC_AT = 8, SIZE_AT = 16, HEADER_SIZE = 24 };
    struct ctl_state s;
    struct buf b = {0}, again = {0};
    if (input.size < 1) {
        return;
    }
    buf_append(&b, input.data + 1, input.size - 1);
    if (input.data[0] == 1 && b.size >= HEADER_SIZE) {
        struct slice body =
            slice_of(b.data + HEADER_SIZE, b.size - HEADER_SIZE);
        set_u64(b.data + SIZE_AT, body.size);
        set_u32(b.data + CRC_AT, crc32c(0, body));
    }
    ctl_state_init(&s);
    if (ctl_state_decode(buf_slice(&b), &s) == ERR_OK) {
        ctl_state_encode(&s, &again);
        fuzz_same(&again, buf_slice(&b));
        if (s.index < UINT64_MAX - 100) {
            state_use(&s);
        }
    }
    ctl_state_fini(&s);
    buf_free(&b);
    buf_free(&again);
}

static void state_seed(void)
{
    struct ctl_state s;
    struct buf life = {0}, reply = {0}, out = {0};
    struct slice part;
    ctl_state_init(&s);
    add_life(&life);
    struct dec d = dec_of(buf_slice(&life));
    while (fuzz_part(&d, &part)) {
        apply(&s, part, &reply);
    }
    enc_u8(&out, 1);
    ctl_state_encode(&s, &out);
    fuzz_seed(buf_slice(&out));
    out.data[0] = 0;
    fuzz_seed(buf_slice(&out));
    ctl_state_fini(&s);
    buf_free(&life);
    buf_free(&reply);
    buf_free(&out);
}
const struct fuzz_target fuzz_ctl_state = {"ctl_state", state_run, state_seed,
                                           0};
