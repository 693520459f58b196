/* What replicas of a group send each other, and what their disks hold. */
#include <string.h>

#include "raft/raft_int.h"
#include "rsm/rsm_int.h"
#include "tests/fuzz/fuzz.h"

/* ---- configurations ---- */

static void conf_run(struct slice input)
{
    struct raft_conf conf;
    struct buf b = {0};
    if (raft_conf_decode(input, &conf) == ERR_OK) {
        raft_conf_encode(&b, &conf);
        fuzz_same(&b, input);
    }
    buf_free(&b);
}

static struct raft_conf conf_of(uint32_t voters, uint32_t learners)
{
    struct raft_conf conf = {.voter_count = voters, .learner_count = learners};
    for (uint32_t i = 0; i < voters; i++) {
        conf.voters[i] = i + 1;
    }
    for (uint32_t i = 0; i < learners; i++) {
        conf.learners[i] = voters + i + 1;
    }
    return conf;
}

static void conf_seed(void)
{
    for (uint32_t i = 1; i <= 9; i += 4) {
        struct raft_conf conf = conf_of(i, i / 3);
        struct buf b = {0};
        conf.old_count = i / 2;
        memcpy(conf.old, conf.voters, sizeof conf.old);
        raft_conf_encode(&b, &conf);
        fuzz_seed(buf_slice(&b));
        buf_free(&b);
    }
}
const struct fuzz_target fuzz_raft_conf = {"raft_conf", conf_run, conf_seed, 0};

/* ---- messages, stepped into a raft of three ----
 *
 * The core checks itself after each step (raft/verify.c): whatever members
 * send, it must refuse what cannot be and keep its invariants. */

enum raft_op {
    OP_RECV, /* the rest is a message */
    OP_TICK,
    OP_PERSISTED,
    OP_PROPOSE,
    OP_READ,
    OP_PEER_DOWN,
    OP_TRANSFER,
    OP_COUNT,
};

struct fuzz_raft {
    struct raft *raft;
    uint64_t now_ms;
    uint64_t issued;
    raft_index told;
};

static void step(struct fuzz_raft *f, struct raft_event *event)
{
    struct raft_update u;
    event->now_ms = f->now_ms;
    (void)!raft_step(f->raft, event, &u);
    if (u.persist_seq != 0) {
        f->issued = u.persist_seq;
    }
    CHECK(u.commit >= f->told);
    f->told = u.commit;
    for (uint32_t i = 0; i < u.send_count; i++) {
        CHECK(raft_msg_sane(&u.send[i]) || u.send[i].term > RAFT_TERM_MAX);
    }
}

/* The same whether entries are copied or stay parts. */
static void parts_agree(struct slice bytes, enum err rc)
{
    struct arena a = {0};
    struct raft_msg m;
    struct bytes *whole = bytes_copy(bytes);
    CHECK(raft_msg_decode_parts(whole, &a, &m) == rc);
    bytes_unref(whole);
    if (rc == ERR_OK) {
        struct buf b = {0};
        raft_msg_encode(&b, &m);
        fuzz_same(&b, bytes);
        buf_free(&b);
        raft_msg_release(&m);
    }
    arena_free(&a);
}

static void recv_bytes(struct fuzz_raft *f, struct slice bytes)
{
    struct arena a = {0};
    struct raft_msg m;
    enum err rc = raft_msg_decode(bytes, &a, &m);
    parts_agree(bytes, rc);
    if (rc == ERR_OK) {
        struct buf b = {0};
        raft_msg_encode(&b, &m);
        fuzz_same(&b, bytes);
        buf_free(&b);
        struct raft_event event = {.type = RAFT_EV_RECV, .u.msg = &m};
        step(f, &event);
        raft_msg_release(&m);
    }
    arena_free(&a);
}

static void do_op(struct fuzz_raft *f, struct slice part)
{
    if (part.size == 0) {
        return;
    }
    struct raft_entry entry = {.type = RAFT_ENTRY_COMMAND};
    struct raft_event event = {.type = RAFT_EV_TICK};
    switch ((enum raft_op)(part.data[0] % OP_COUNT)) {
    case OP_RECV: recv_bytes(f, slice_of(part.data + 1, part.size - 1)); return;
    case OP_TICK: f->now_ms = raft_next_tick_ms(f->raft); break;
    case OP_PERSISTED:
        event.type = RAFT_EV_PERSISTED;
        event.u.persisted = f->issued;
        break;
    case OP_PROPOSE:
        event.type = RAFT_EV_PROPOSE;
        event.u.propose.entries = &entry;
        event.u.propose.count = 1;
        break;
    case OP_READ: event.type = RAFT_EV_READ; break;
    case OP_PEER_DOWN:
        event.type = RAFT_EV_PEER_DOWN;
        event.u.peer = 2;
        break;
    case OP_TRANSFER: event.type = RAFT_EV_TRANSFER; break;
    case OP_COUNT: return;
    }
    step(f, &event);
}

static void msg_run(struct slice input)
{
    struct raft_config config = {.id = 1, .seed = 7, .conf = conf_of(3, 0)};
    struct fuzz_raft f = {0};
    struct dec d = dec_of(input);
    struct slice part;
    enum err rc = raft_new(&config, &f.raft);
    CHECK(rc == ERR_OK);
    while (fuzz_part(&d, &part)) {
        do_op(&f, part);
    }
    raft_free(f.raft);
}

static void add_op(struct buf *b, enum raft_op op)
{
    uint8_t byte = (uint8_t)op;
    fuzz_add_part(b, slice_of(&byte, 1));
}

static void add_msg(struct buf *b, struct raft_msg m)
{
    struct buf part = {0};
    enc_u8(&part, OP_RECV);
    raft_msg_encode(&part, &m);
    fuzz_add_part(b, buf_slice(&part));
    buf_free(&part);
}

static struct raft_msg reply_of(enum raft_msg_type type, raft_term term,
                                raft_index index)
{
    return (struct raft_msg){.type = type,
                             .from = 2,
                             .to = 1,
                             .term = term,
                             .log_index = index,
                             .match = index,
                             .last_index = index,
                             .conflict_index = 1};
}

/* A follower that is sent entries; and a replica that is elected, proposes,
 * reads and hands over. */
static void msg_seed(void)
{
    struct buf b = {0};
    struct raft_conf conf = conf_of(4, 1);
    struct buf conf_bytes = {0};
    raft_conf_encode(&conf_bytes, &conf);
    struct raft_entry entries[2] = {
        {.term = 1, .index = 1, .type = RAFT_ENTRY_NOOP},
        {.term = 1,
         .index = 2,
         .type = RAFT_ENTRY_CONF,
         .data = bytes_copy(buf_slice(&conf_bytes))}};
    struct raft_msg m = reply_of(RAFT_MSG_APPEND, 1, 0);
    m.entries = entries;
    m.entry_count = 2;
    m.commit = 1;
    add_msg(&b, m);
    add_op(&b, OP_PERSISTED);
    m.from = 3;
    m.term = 2;
    m.entry_count = 1;
    m.log_index = 1;
    m.log_term = 1;
    m.entries = entries + 1;
    entries[1].term = 2;
    add_msg(&b, m);
    m.type = RAFT_MSG_TIMEOUT_NOW;
    m.entry_count = 0;
    add_msg(&b, m);
    fuzz_seed(buf_slice(&b));
    buf_clear(&b);
    add_op(&b, OP_TICK);
    add_msg(&b, reply_of(RAFT_MSG_PREVOTE_REPLY, 1, 0));
    add_op(&b, OP_PERSISTED);
    add_msg(&b, reply_of(RAFT_MSG_VOTE_REPLY, 1, 0));
    add_op(&b, OP_PROPOSE);
    add_op(&b, OP_PERSISTED);
    add_msg(&b, reply_of(RAFT_MSG_APPEND_REPLY, 1, 1));
    add_op(&b, OP_READ);
    add_op(&b, OP_TICK);
    m = reply_of(RAFT_MSG_APPEND_REPLY, 1, 1);
    m.read_round = 1;
    add_msg(&b, m);
    m.reject = true;
    add_msg(&b, m);
    add_op(&b, OP_PEER_DOWN);
    add_op(&b, OP_TRANSFER);
    fuzz_seed(buf_slice(&b));
    buf_clear(&b);
    add_msg(&b, reply_of(RAFT_MSG_PREVOTE, 1, 0));
    add_msg(&b, reply_of(RAFT_MSG_VOTE, 2, 3));
    fuzz_seed(buf_slice(&b));
    bytes_unref(entries[1].data);
    buf_free(&conf_bytes);
    buf_free(&b);
}
const struct fuzz_target fuzz_raft_msg = {"raft_msg", msg_run, msg_seed, 0};

/* ---- snapshot chunks ---- */

FUZZ_MESSAGE(rsm_chunk)
FUZZ_MESSAGE(rsm_chunk_reply)
static const struct fuzz_message rsm_table[] = {{try_rsm_chunk},
                                                {try_rsm_chunk_reply}};

static void rsm_run(struct slice input)
{
    fuzz_try_message(rsm_table, 2, input);
}

static void rsm_seed(void)
{
    struct buf b = {0};
    struct rsm_chunk m = {.from = 1, .to = 2, .data = slice_text("bytes")};
    rsm_chunk_encode(&b, &m);
    fuzz_seed_message(0, &b);
    fuzz_seed_messages(2);
}
const struct fuzz_target fuzz_rsm_messages = {"rsm_messages", rsm_run, rsm_seed,
                                              0};
