/* The Raft core, one rule at a time: each test steps a single raft by hand and
 * looks at what it asks for. tests/unit/test_raft_random.c runs whole groups.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "raft/raft.h"

/* ---- a raft under test ---- */

struct box {
    struct raft *r;
    struct raft_update u; /* of the last step */
    uint64_t now_ms;
    uint64_t seq; /* the last persist_seq that was asked for */
    enum err rc;
};

static struct raft_conf conf_of(uint32_t voters)
{
    struct raft_conf conf = {.voter_count = voters};
    for (uint32_t i = 0; i < voters; i++) {
        conf.voters[i] = i + 1;
    }
    return conf;
}

/* A raft of `voters`, with a stored log of one entry per given term. */
static struct box box_of(raft_id id, uint32_t voters, raft_term term,
                         const char *log_terms)
{
    struct raft_entry entries[64];
    uint32_t count = 0;
    for (; log_terms[count] != '\0'; count++) {
        entries[count] = (struct raft_entry){
            .term = (raft_term)(log_terms[count] - '0'),
            .index = count + 1,
            .type = RAFT_ENTRY_NOOP,
        };
    }
    struct raft_config config = {
        .id = id,
        .seed = 7,
        .conf = conf_of(voters),
        .hard_state = {.term = term},
        .entries = entries,
        .entry_count = count,
        .now_ms = 1000,
    };
    struct box b = {.now_ms = 1000};
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    return b;
}

static void step(struct box *b, struct raft_event ev)
{
    ev.now_ms = b->now_ms;
    b->rc = raft_step(b->r, &ev, &b->u);
    if (b->u.persist_seq != 0) {
        b->seq = b->u.persist_seq;
    }
}

static void tick(struct box *b)
{
    uint64_t due_ms = raft_next_tick_ms(b->r);
    b->now_ms = due_ms > b->now_ms ? due_ms : b->now_ms;
    step(b, (struct raft_event){.type = RAFT_EV_TICK});
}

static void persisted(struct box *b, uint64_t seq)
{
    step(b, (struct raft_event){.type = RAFT_EV_PERSISTED, .u.persisted = seq});
}

static void persist(struct box *b)
{
    persisted(b, b->seq);
}

static void recv(struct box *b, struct raft_msg m)
{
    struct raft_status s;
    raft_status(b->r, &s);
    m.to = s.id;
    step(b, (struct raft_event){.type = RAFT_EV_RECV, .u.msg = &m});
}

static void propose(struct box *b, enum raft_entry_type type,
                    struct bytes *data)
{
    struct raft_entry e = {.type = type, .data = data};
    step(b, (struct raft_event){
                .type = RAFT_EV_PROPOSE,
                .u.propose = {.entries = &e, .count = 1},
            });
}

static void propose_size(struct box *b, size_t size)
{
    struct bytes *data = bytes_new(size);
    memset(data->data, 'x', size);
    propose(b, RAFT_ENTRY_COMMAND, data);
    bytes_unref(data);
}

static void propose_conf(struct box *b, const struct raft_conf *conf)
{
    struct buf out = {0};
    raft_conf_encode(&out, conf);
    struct bytes *data = bytes_copy(buf_slice(&out));
    propose(b, RAFT_ENTRY_CONF, data);
    bytes_unref(data);
    buf_free(&out);
}

static const struct raft_msg *sent(const struct box *b, enum raft_msg_type type,
                                   raft_id to)
{
    for (uint32_t i = 0; i < b->u.send_count; i++) {
        if (b->u.send[i].type == type && b->u.send[i].to == to) {
            return &b->u.send[i];
        }
    }
    return NULL;
}

static struct raft_status status(const struct box *b)
{
    struct raft_status s;
    raft_status(b->r, &s);
    return s;
}

static void ack(struct box *b, raft_id from, raft_index match)
{
    recv(b, (struct raft_msg){
                .type = RAFT_MSG_APPEND_REPLY,
                .from = from,
                .term = status(b).term,
                .log_index = match,
                .match = match,
                .last_index = match,
            });
}

/* Through pre-vote and vote, granted by 2 and up. */
static void make_candidate(struct box *b)
{
    tick(b);
    raft_term next = status(b).term + 1;
    uint32_t voters = status(b).conf.voter_count;
    for (raft_id id = 2; id <= voters / 2 + 1; id++) {
        recv(b, (struct raft_msg){
                    .type = RAFT_MSG_PREVOTE_REPLY, .from = id, .term = next});
    }
    assert_int_equal(status(b).role, RAFT_CANDIDATE);
}

static void make_leader(struct box *b)
{
    make_candidate(b);
    persist(b);
    uint32_t voters = status(b).conf.voter_count;
    for (raft_id id = 2; id <= voters / 2 + 1; id++) {
        recv(b, (struct raft_msg){.type = RAFT_MSG_VOTE_REPLY,
                                  .from = id,
                                  .term = status(b).term});
    }
    assert_int_equal(status(b).role, RAFT_LEADER);
}

/* An APPEND with one NOOP per term. The entries live until the next call. */
static struct raft_msg append_of(raft_id from, raft_term term, raft_index prev,
                                 raft_term prev_term, const char *terms)
{
    static struct raft_entry entries[64];
    struct raft_msg m = {
        .type = RAFT_MSG_APPEND,
        .from = from,
        .term = term,
        .log_index = prev,
        .log_term = prev_term,
        .entries = entries,
    };
    for (; terms[m.entry_count] != '\0'; m.entry_count++) {
        entries[m.entry_count] = (struct raft_entry){
            .term = (raft_term)(terms[m.entry_count] - '0'),
            .index = prev + 1 + m.entry_count,
            .type = RAFT_ENTRY_NOOP,
        };
    }
    return m;
}

static struct raft_msg vote_of(raft_id from, raft_term term, raft_index index,
                               raft_term log_term)
{
    return (struct raft_msg){
        .type = RAFT_MSG_VOTE,
        .from = from,
        .term = term,
        .log_index = index,
        .log_term = log_term,
    };
}

/* ---- elections ---- */

static void votes_only_for_a_log_as_new_as_its_own(void **state)
{
    (void)state;
    struct {
        raft_index index;
        raft_term term;
        bool granted;
    } cases[] = {{3, 2, true}, {2, 2, false}, {9, 1, false},
                 {1, 3, true}, {4, 2, true},  {0, 0, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct box b = box_of(1, 3, 2, "112");
        recv(&b, vote_of(2, 4, cases[i].index, cases[i].term));
        persist(&b);
        const struct raft_msg *m = sent(&b, RAFT_MSG_VOTE_REPLY, 2);
        assert_non_null(m);
        assert_int_equal(m->reject, !cases[i].granted);
        raft_free(b.r);
    }
}

static void a_vote_leaves_only_when_it_is_on_disk(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    recv(&b, vote_of(2, 2, 1, 1));
    assert_int_equal(b.u.hard_state.vote, 2);
    assert_int_equal(b.u.hard_state.term, 2);
    assert_null(sent(&b, RAFT_MSG_VOTE_REPLY, 2));
    recv(&b, vote_of(2, 2, 1, 1)); /* asked twice, still not */
    assert_null(sent(&b, RAFT_MSG_VOTE_REPLY, 2));
    persist(&b);
    assert_non_null(sent(&b, RAFT_MSG_VOTE_REPLY, 2));
    assert_false(sent(&b, RAFT_MSG_VOTE_REPLY, 2)->reject);
    recv(&b, vote_of(3, 2, 1, 1)); /* one vote a term */
    assert_true(sent(&b, RAFT_MSG_VOTE_REPLY, 3)->reject);
    raft_free(b.r);
}

static void a_candidate_asks_and_counts_itself_only_from_disk(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_candidate(&b);
    assert_null(sent(&b, RAFT_MSG_VOTE, 2));
    persist(&b);
    assert_non_null(sent(&b, RAFT_MSG_VOTE, 2));
    assert_non_null(sent(&b, RAFT_MSG_VOTE, 3));
    raft_free(b.r);

    b = box_of(1, 1, 0, "");
    tick(&b);
    assert_int_equal(status(&b).role, RAFT_CANDIDATE);
    assert_false(b.u.became_leader);
    persist(&b);
    assert_true(b.u.became_leader);
    raft_free(b.r);
}

/* A replica that was cut off comes back with pre-votes; nobody's term may move
 * while there is a leader, nor its own. */
static void a_prevote_disturbs_nobody(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    recv(&b, append_of(2, 2, 2, 2, ""));
    struct raft_msg ask = vote_of(3, 9, 50, 8);
    ask.type = RAFT_MSG_PREVOTE;
    recv(&b, ask);
    assert_int_equal(b.u.send_count, 0);
    recv(&b, vote_of(3, 9, 50, 8)); /* a real vote no more than that */
    assert_int_equal(b.u.send_count, 0);
    assert_int_equal(status(&b).term, 2);
    assert_int_equal(status(&b).leader, 2);
    /* By transfer it may. */
    struct raft_msg sent_by_leader = vote_of(3, 9, 50, 8);
    sent_by_leader.transfer = true;
    recv(&b, sent_by_leader);
    assert_int_equal(status(&b).term, 9);
    raft_free(b.r);

    b = box_of(1, 3, 2, "12");
    for (int i = 0; i < 5; i++) {
        tick(&b);
        assert_non_null(sent(&b, RAFT_MSG_PREVOTE, 2));
        assert_int_equal(sent(&b, RAFT_MSG_PREVOTE, 2)->term, 3);
        assert_int_equal(b.u.persist_seq, 0);
        assert_int_equal(status(&b).term, 2);
    }
    raft_free(b.r);
}

static void a_prevote_is_granted_at_once_when_there_is_no_leader(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    struct raft_msg ask = vote_of(3, 3, 2, 2);
    ask.type = RAFT_MSG_PREVOTE;
    recv(&b, ask);
    assert_non_null(sent(&b, RAFT_MSG_PREVOTE_REPLY, 3));
    assert_false(sent(&b, RAFT_MSG_PREVOTE_REPLY, 3)->reject);
    assert_int_equal(sent(&b, RAFT_MSG_PREVOTE_REPLY, 3)->term, 3);
    assert_int_equal(b.u.persist_seq, 0);
    ask.log_index = 1;
    ask.log_term = 1;
    recv(&b, ask);
    assert_true(sent(&b, RAFT_MSG_PREVOTE_REPLY, 3)->reject);
    raft_free(b.r);
}

/* A request or its answer may be lost; waiting for the next attempt would cost
 * an election timeout. Who has answered is left alone. */
static void who_has_not_answered_is_asked_again(void **state)
{
    (void)state;
    struct box b = box_of(1, 5, 2, "12");
    tick(&b);
    uint64_t begun_ms = b.now_ms;
    recv(&b, (struct raft_msg){
                 .type = RAFT_MSG_PREVOTE_REPLY, .from = 2, .term = 3});
    tick(&b);
    assert_in_range(b.now_ms - begun_ms, 1, 100);
    assert_null(sent(&b, RAFT_MSG_PREVOTE, 2));
    assert_non_null(sent(&b, RAFT_MSG_PREVOTE, 3));
    assert_int_equal(status(&b).role, RAFT_PRECANDIDATE);

    recv(&b, (struct raft_msg){
                 .type = RAFT_MSG_PREVOTE_REPLY, .from = 3, .term = 3});
    persist(&b);
    recv(&b,
         (struct raft_msg){.type = RAFT_MSG_VOTE_REPLY, .from = 4, .term = 3});
    tick(&b);
    assert_null(sent(&b, RAFT_MSG_VOTE, 4));
    assert_non_null(sent(&b, RAFT_MSG_VOTE, 3));
    assert_int_equal(status(&b).term, 3);
    raft_free(b.r);
}

static void a_broken_connection_starts_the_prevote_within_ms(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    recv(&b, append_of(2, 2, 2, 2, ""));
    step(&b, (struct raft_event){.type = RAFT_EV_PEER_DOWN, .u.peer = 3});
    assert_true(raft_next_tick_ms(b.r) > b.now_ms + 100);
    step(&b, (struct raft_event){.type = RAFT_EV_PEER_DOWN, .u.peer = 2});
    assert_true(raft_next_tick_ms(b.r) <= b.now_ms + 10);
    tick(&b);
    assert_non_null(sent(&b, RAFT_MSG_PREVOTE, 3));
    /* The other follower hears of it a little later: ask again soon. */
    assert_true(raft_next_tick_ms(b.r) <= b.now_ms + 100);
    /* It was only the connection. */
    recv(&b, append_of(2, 2, 2, 2, ""));
    assert_int_equal(status(&b).role, RAFT_FOLLOWER);
    assert_int_equal(status(&b).leader, 2);
    raft_free(b.r);
}

/* Wrong if a follower that ran into the other one's candidature waits a whole
 * election timeout: both heard of the broken connection at the same moment. */
static void
two_that_run_into_each_other_after_a_hint_try_again_soon(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    recv(&b, append_of(2, 2, 2, 2, ""));
    step(&b, (struct raft_event){.type = RAFT_EV_PEER_DOWN, .u.peer = 2});
    tick(&b);
    recv(&b, (struct raft_msg){
                 .type = RAFT_MSG_PREVOTE_REPLY, .from = 3, .term = 3});
    assert_int_equal(status(&b).role, RAFT_CANDIDATE);
    persist(&b);
    recv(&b, (struct raft_msg){.type = RAFT_MSG_VOTE_REPLY,
                               .from = 3,
                               .term = 3,
                               .reject = true});
    assert_true(raft_next_tick_ms(b.r) <= b.now_ms + 100);
    tick(&b);
    assert_non_null(sent(&b, RAFT_MSG_PREVOTE, 3));
    raft_free(b.r);
}

static void a_leader_of_an_old_term_is_told(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 5, "1");
    recv(&b, append_of(2, 3, 1, 1, "3"));
    const struct raft_msg *m = sent(&b, RAFT_MSG_APPEND_REPLY, 2);
    assert_non_null(m);
    assert_true(m->reject);
    assert_int_equal(m->term, 5);
    assert_int_equal(status(&b).last_index, 1);
    raft_free(b.r);

    b = box_of(1, 3, 1, "1");
    make_leader(&b);
    recv(&b, (struct raft_msg){.type = RAFT_MSG_APPEND_REPLY,
                               .from = 3,
                               .term = 8,
                               .reject = true});
    assert_true(b.u.lost_leadership);
    assert_int_equal(status(&b).term, 8);
    raft_free(b.r);
}

static void a_leader_nobody_answers_steps_down(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    uint64_t began_ms = b.now_ms;
    for (int i = 0; i < 30 && status(&b).role == RAFT_LEADER; i++) {
        tick(&b);
    }
    assert_true(b.u.lost_leadership);
    assert_int_equal(b.now_ms, began_ms + 1000);
    raft_free(b.r);

    b = box_of(1, 3, 1, "1");
    make_leader(&b);
    for (int i = 0; i < 30; i++) {
        tick(&b);
        ack(&b, 2, 1);
    }
    assert_int_equal(status(&b).role, RAFT_LEADER);
    raft_free(b.r);
}

static void leadership_is_handed_over_once_the_log_is_there(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    ack(&b, 2, 1);
    propose_size(&b, 10);
    step(&b, (struct raft_event){.type = RAFT_EV_TRANSFER, .u.peer = 7});
    assert_int_equal(b.rc, ERR_INVALID);
    step(&b, (struct raft_event){.type = RAFT_EV_TRANSFER, .u.peer = 2});
    assert_int_equal(b.rc, ERR_OK);
    assert_null(sent(&b, RAFT_MSG_TIMEOUT_NOW, 2));
    propose_size(&b, 10);
    assert_int_equal(b.rc, ERR_BUSY);
    ack(&b, 2, 2);
    assert_non_null(sent(&b, RAFT_MSG_TIMEOUT_NOW, 2));
    struct raft_msg vote = vote_of(2, 3, 2, 2);
    vote.transfer = true;
    recv(&b, vote);
    assert_true(b.u.lost_leadership);
    persist(&b);
    assert_false(sent(&b, RAFT_MSG_VOTE_REPLY, 2)->reject);
    raft_free(b.r);

    /* The successor campaigns at once, without a pre-vote. */
    b = box_of(1, 3, 1, "1");
    recv(&b, append_of(2, 1, 1, 1, ""));
    recv(&b,
         (struct raft_msg){.type = RAFT_MSG_TIMEOUT_NOW, .from = 2, .term = 1});
    persist(&b);
    assert_non_null(sent(&b, RAFT_MSG_VOTE, 3));
    assert_true(sent(&b, RAFT_MSG_VOTE, 3)->transfer);
    raft_free(b.r);
}

static void a_transfer_that_fails_ends(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    ack(&b, 3, 1);
    step(&b, (struct raft_event){.type = RAFT_EV_TRANSFER, .u.peer = 0});
    assert_non_null(sent(&b, RAFT_MSG_TIMEOUT_NOW, 3));
    for (int i = 0; i < 12; i++) {
        tick(&b);
        ack(&b, 2, 1);
        ack(&b, 3, 1);
    }
    propose_size(&b, 10);
    assert_int_equal(b.rc, ERR_OK);
    raft_free(b.r);
}

/* ---- the log ---- */

static void an_acknowledgement_waits_for_the_disk(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    recv(&b, append_of(2, 2, 2, 2, "22"));
    assert_int_equal(b.u.append_count, 2);
    assert_int_equal(b.u.append[0].index, 3);
    assert_int_equal(b.u.send_count, 0);
    uint64_t first = b.seq;
    recv(&b, append_of(2, 2, 4, 2, "2"));
    assert_int_equal(b.u.send_count, 0);
    /* A heartbeat is answered, with what is on disk. */
    recv(&b, append_of(2, 2, 5, 2, ""));
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 2);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->log_index, 5);
    persisted(&b, first);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 4);
    persist(&b);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 5);
    raft_free(b.r);

    /* Nor does an answer of a term that is not on disk. */
    b = box_of(1, 3, 2, "12");
    recv(&b, append_of(2, 7, 2, 2, ""));
    assert_int_equal(b.u.send_count, 0);
    recv(&b, append_of(2, 7, 9, 7, ""));
    assert_int_equal(b.u.send_count, 0);
    persist(&b);
    assert_non_null(sent(&b, RAFT_MSG_APPEND_REPLY, 2));
    raft_free(b.r);
}

/* Index 3 is written, cut off and written anew by the next leader while the
 * first write is still on its way: its end says nothing about the new one. */
static void an_old_write_does_not_vouch_for_new_entries(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    recv(&b, append_of(2, 2, 2, 2, "222")); /* 3 to 5 */
    uint64_t old = b.seq;
    recv(&b, append_of(3, 4, 3, 2, "44")); /* 4 and 5 anew */
    assert_int_equal(b.u.append[0].index, 4);
    assert_int_equal(b.u.append_count, 2);
    assert_int_equal(status(&b).persisted, 2);
    persisted(&b, old);
    assert_int_equal(status(&b).persisted, 3);
    for (uint32_t i = 0; i < b.u.send_count; i++) {
        assert_true(b.u.send[i].match <= 3);
    }
    persist(&b);
    assert_int_equal(status(&b).persisted, 5);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 3)->match, 5);
    raft_free(b.r);

    /* What was persisted and is cut off is no longer so. */
    b = box_of(1, 3, 2, "1222");
    recv(&b, append_of(3, 4, 1, 1, "4"));
    assert_int_equal(status(&b).persisted, 1);
    assert_int_equal(status(&b).last_index, 2);
    persist(&b);
    assert_int_equal(status(&b).persisted, 2);
    raft_free(b.r);
}

static void old_and_repeated_appends_cut_nothing_off(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "1");
    recv(&b, append_of(2, 2, 1, 1, "222"));
    persist(&b);
    recv(&b, append_of(2, 2, 1, 1, "2")); /* a prefix, late */
    assert_int_equal(status(&b).last_index, 4);
    assert_int_equal(b.u.persist_seq, 0);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 4);
    struct raft_msg heartbeat = append_of(2, 2, 2, 2, "");
    heartbeat.commit = 99;
    recv(&b, heartbeat);
    assert_int_equal(status(&b).last_index, 4);
    assert_int_equal(b.u.commit, 4);
    recv(&b, append_of(2, 2, 3, 1, "1")); /* contradicts what is committed */
    assert_int_equal(status(&b).last_index, 4);
    raft_free(b.r);
}

static void a_conflict_is_described_by_term(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 5, "1144");
    recv(&b, append_of(2, 6, 4, 5, "6"));
    persist(&b);
    const struct raft_msg *m = sent(&b, RAFT_MSG_APPEND_REPLY, 2);
    assert_true(m->reject);
    assert_int_equal(m->conflict_term, 4);
    assert_int_equal(m->conflict_index, 3);
    recv(&b, append_of(2, 6, 9, 5, "6"));
    m = sent(&b, RAFT_MSG_APPEND_REPLY, 2);
    assert_true(m->reject);
    assert_int_equal(m->conflict_term, 0);
    assert_int_equal(m->last_index, 4);
    raft_free(b.r);
}

static void the_leader_backs_up_by_whole_terms(void **state)
{
    (void)state;
    struct {
        raft_term term;
        raft_index index, last;
        raft_index prev; /* where the leader tries next */
    } cases[] = {
        {0, 0, 3, 3}, /* too short: right after its end */
        {4, 5, 9, 7}, /* the leader has XTerm: at its own last entry of it */
        {5, 6, 9, 5}, /* it has not: before XIndex */
        {1, 1, 9, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct box b = box_of(1, 3, 6, "123444466");
        make_leader(&b);
        recv(&b, (struct raft_msg){
                     .type = RAFT_MSG_APPEND_REPLY,
                     .from = 2,
                     .term = 7,
                     .log_index = 9,
                     .reject = true,
                     .conflict_term = cases[i].term,
                     .conflict_index = cases[i].index,
                     .last_index = cases[i].last,
                 });
        const struct raft_msg *m = sent(&b, RAFT_MSG_APPEND, 2);
        assert_non_null(m);
        assert_int_equal(m->log_index, cases[i].prev);
        assert_int_equal(m->entry_count, 9 - cases[i].prev);
        raft_free(b.r);
    }
}

/* A follower whose disk was set back behind what it acknowledged cannot be
 * brought up to date: whoever looks at the leader must be told. */
static void a_follower_that_forgot_is_named(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1111");
    make_leader(&b);
    persist(&b);
    ack(&b, 2, 4);
    ack(&b, 3, 4);
    struct raft_msg refusal = {.type = RAFT_MSG_APPEND_REPLY,
                               .from = 3,
                               .term = status(&b).term,
                               .log_index = 4,
                               .reject = true,
                               .last_index = 3};
    recv(&b, refusal);
    struct raft_status s = status(&b);
    for (uint32_t i = 0; i < s.peer_count; i++) {
        assert_int_equal(s.peers[i].forgot, s.peers[i].id == 3);
    }
    ack(&b, 3, 4); /* the refusal was a late one */
    s = status(&b);
    for (uint32_t i = 0; i < s.peer_count; i++) {
        assert_false(s.peers[i].forgot);
    }
    raft_free(b.r);
}

static void a_lost_message_is_found_by_the_next_heartbeat(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    ack(&b, 2, 1);
    propose_size(&b, 10); /* lost */
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->entry_count, 1);
    tick(&b);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->log_index, 2);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->entry_count, 0);
    struct raft_msg no = {
        .type = RAFT_MSG_APPEND_REPLY,
        .from = 2,
        .term = 2,
        .log_index = 2,
        .reject = true,
        .last_index = 1,
    };
    recv(&b, no);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->log_index, 1);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->entry_count, 1);
    recv(&b, no); /* repeated: harmless */
    assert_int_equal(b.u.send_count, 0);
    ack(&b, 2, 2);
    propose_size(&b, 10); /* on its way: not to be sent again for this: */
    recv(&b, no);
    assert_int_equal(b.u.send_count, 0);
    assert_int_equal(status(&b).peers[0].next, 4);
    /* A follower that denies what it acknowledged (its disk was wiped) is not
     * flooded. */
    no.last_index = 0;
    recv(&b, no);
    assert_int_equal(b.u.send_count, 0);
    raft_free(b.r);
}

static void entries_are_sent_at_once_once_and_within_bounds(void **state)
{
    (void)state;
    struct raft_config config = {
        .id = 1,
        .conf = conf_of(3),
        .append_size_max = 1000,
        .inflight_size_max = 4000,
    };
    struct box b = {0};
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    make_leader(&b);
    ack(&b, 2, 0);
    ack(&b, 3, 0);
    uint32_t entries = 0;
    for (int i = 0; i < 20; i++) {
        propose_size(&b, 400);
        for (uint32_t k = 0; k < b.u.send_count; k++) {
            entries += b.u.send[k].to == 2 ? b.u.send[k].entry_count : 0;
        }
        assert_true(b.u.send_count <= 2);
    }
    assert_true(entries * 432 >= 4000);
    assert_true(entries * 432 <= 5000);
    /* An acknowledgement opens the window; batches keep to the size. */
    ack(&b, 2, entries);
    assert_true(b.u.send_count >= 4);
    for (uint32_t k = 0; k < b.u.send_count; k++) {
        assert_true(b.u.send[k].entry_count <= 2);
        assert_int_equal(b.u.send[k].log_index, entries);
        entries += b.u.send[k].entry_count;
    }
    raft_free(b.r);
}

static void a_silent_follower_gets_heartbeats_only(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    ack(&b, 2, 1);
    ack(&b, 3, 1);
    for (int i = 0; i < 15; i++) {
        tick(&b);
        ack(&b, 2, status(&b).last_index);
    }
    propose_size(&b, 100);
    assert_non_null(sent(&b, RAFT_MSG_APPEND, 2));
    assert_null(sent(&b, RAFT_MSG_APPEND, 3));
    ack(&b, 3, 1); /* it is back */
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 3)->entry_count, 1);
    raft_free(b.r);
}

static void an_idle_leader_beats_ten_times_a_second(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    uint64_t end_ms = b.now_ms + 1000;
    uint32_t sent_count = 0;
    while (raft_next_tick_ms(b.r) <= end_ms) {
        tick(&b);
        sent_count += b.u.send_count;
        ack(&b, 2, 1);
        ack(&b, 3, 1);
        sent_count += b.u.send_count;
    }
    assert_true(sent_count <= 20);
    raft_free(b.r);
}

/* ---- commit ---- */

static void the_leader_counts_only_what_its_disk_has(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "");
    make_leader(&b);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    assert_int_equal(b.u.proposed, 1);
    ack(&b, 2, 1);
    assert_int_equal(status(&b).commit, 0);
    persist(&b);
    assert_int_equal(b.u.commit, 1);

    /* A majority without it is enough; but it applies what it has itself. */
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    ack(&b, 2, 2);
    ack(&b, 3, 2);
    assert_int_equal(status(&b).commit, 2);
    assert_int_equal(b.u.commit, 1);
    persist(&b);
    assert_int_equal(b.u.commit, 2);
    raft_free(b.r);
}

/* Paper, Figure 8 (c): an entry of term 2 on a majority is not committed by
 * counting; an entry of term 4 on top commits both. */
static void an_old_entry_is_committed_only_by_a_new_one(void **state)
{
    (void)state;
    struct box b = box_of(1, 5, 3, "12");
    make_leader(&b);
    ack(&b, 2, 2);
    ack(&b, 3, 2);
    ack(&b, 4, 2);
    assert_int_equal(status(&b).commit, 0);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    ack(&b, 2, 3);
    assert_int_equal(status(&b).commit, 0);
    ack(&b, 3, 3);
    assert_int_equal(status(&b).commit, 3);
    raft_free(b.r);
}

static void too_much_uncommitted_is_refused(void **state)
{
    (void)state;
    struct raft_config config = {
        .id = 1, .conf = conf_of(3), .uncommitted_size_max = 1000};
    struct box b = {0};
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    propose_size(&b, 1);
    assert_int_equal(b.rc, ERR_NOTLEADER);
    make_leader(&b);
    propose_size(&b, 2000); /* alone it may */
    assert_int_equal(b.rc, ERR_OK);
    propose_size(&b, 1);
    assert_int_equal(b.rc, ERR_BUSY);
    assert_int_equal(status(&b).last_index, 1);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    assert_int_equal(b.rc, ERR_OK);
    persist(&b);
    ack(&b, 2, 2);
    assert_int_equal(b.u.commit, 2);
    propose_size(&b, 900);
    assert_int_equal(b.rc, ERR_OK);
    raft_free(b.r);
}

/* ---- reads ---- */

static void read(struct box *b, uint64_t name)
{
    step(b, (struct raft_event){.type = RAFT_EV_READ, .u.read = name});
}

static void echo(struct box *b, raft_id from, raft_index match, uint64_t round)
{
    recv(b, (struct raft_msg){
                .type = RAFT_MSG_APPEND_REPLY,
                .from = from,
                .term = status(b).term,
                .log_index = match,
                .match = match,
                .last_index = match,
                .read_round = round,
            });
}

static void a_read_waits_for_the_term_and_for_a_round(void **state)
{
    (void)state;
    struct box b = box_of(1, 5, 1, "1");
    read(&b, 1);
    assert_int_equal(b.rc, ERR_NOTLEADER);
    make_leader(&b);
    read(&b, 7);
    assert_int_equal(b.rc, ERR_OK);
    assert_int_equal(b.u.send_count, 0); /* nothing of its term committed */
    for (raft_id id = 2; id <= 5; id++) {
        ack(&b, id, 1);
        assert_int_equal(b.u.read_count, 0);
    }
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    ack(&b, 2, 2);
    ack(&b, 3, 2); /* committed: now the round begins */
    assert_int_equal(b.u.read_count, 0);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 5)->read_round, 1);
    read(&b, 8); /* too late for round 1 */
    assert_null(sent(&b, RAFT_MSG_APPEND, 2));
    read(&b, 9);
    ack(&b, 4, 2); /* an answer to something older */
    echo(&b, 2, 2, 1);
    assert_int_equal(b.u.read_count, 0);
    echo(&b, 2, 2, 1);
    assert_int_equal(b.u.read_count, 0);
    echo(&b, 5, 2, 1);
    assert_int_equal(b.u.read_count, 1);
    assert_int_equal(b.u.reads[0].read, 7);
    assert_int_equal(b.u.reads[0].rc, ERR_OK);
    assert_int_equal(b.u.reads[0].index, 2);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 3)->read_round, 2);
    echo(&b, 3, 2, 2);
    echo(&b, 4, 2, 2);
    assert_int_equal(b.u.read_count, 2); /* 8 and 9 shared one */
    read(&b, 10);
    recv(&b, vote_of(3, 9, 9, 9)); /* sticky: no */
    assert_int_equal(b.u.read_count, 0);
    recv(&b, append_of(3, 9, 2, 2, ""));
    assert_int_equal(b.u.read_count, 1);
    assert_int_equal(b.u.reads[0].rc, ERR_NOTLEADER);
    raft_free(b.r);
}

static void a_follower_echoes_the_round_before_its_disk_is_done(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    struct raft_msg m = append_of(2, 2, 2, 2, "2");
    m.read_round = 4;
    recv(&b, m);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->read_round, 4);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 2);
    persist(&b);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 3);
    raft_free(b.r);
}

/* ---- leases ---- */

/* A leader of three with a committed entry of its term. */
static struct box leader_with_lease(void)
{
    struct raft_config config = {
        .id = 1, .seed = 7, .conf = conf_of(3), .lease_reads = true};
    struct box b = {.now_ms = 1000};
    config.now_ms = b.now_ms;
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    make_leader(&b);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    ack(&b, 2, 1);
    assert_int_equal(status(&b).commit, 1);
    return b;
}

static void a_lease_answers_at_once_until_it_ends(void **state)
{
    (void)state;
    struct box b = leader_with_lease();
    uint64_t began_ms = b.now_ms;
    read(&b, 7);
    assert_int_equal(b.u.read_count, 0);
    assert_true(sent(&b, RAFT_MSG_APPEND, 3)->lease);
    b.now_ms += 50; /* the echo is late: the lease began with the round */
    echo(&b, 3, 1, 1);
    assert_int_equal(b.u.read_count, 1);
    read(&b, 8);
    assert_int_equal(b.u.read_count, 1);
    assert_int_equal(b.u.reads[0].rc, ERR_OK);
    assert_int_equal(b.u.reads[0].index, 1);
    assert_null(sent(&b, RAFT_MSG_APPEND, 3)); /* young: not renewed yet */

    /* The slowest clock's 200 ms are 166 of the fastest. */
    uint64_t until_ms = status(&b).lease_until_ms;
    assert_true(until_ms > began_ms + 150 && until_ms <= began_ms + 166);
    b.now_ms = until_ms - 1;
    read(&b, 9);
    assert_int_equal(b.u.read_count, 1);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->read_round, 2);
    b.now_ms = until_ms;
    read(&b, 10); /* round 2 began before it came */
    assert_int_equal(b.u.read_count, 0);
    echo(&b, 2, 1, 2); /* but it renews the lease */
    assert_int_equal(b.u.read_count, 1);
    assert_int_equal(b.u.reads[0].read, 10);
    raft_free(b.r);
}

static void a_leader_that_hands_over_has_no_lease(void **state)
{
    (void)state;
    struct box b = leader_with_lease();
    read(&b, 7);
    echo(&b, 2, 1, 1);
    assert_int_not_equal(status(&b).lease_until_ms, 0);
    step(&b, (struct raft_event){.type = RAFT_EV_TRANSFER, .u.peer = 2});
    assert_non_null(sent(&b, RAFT_MSG_TIMEOUT_NOW, 2));
    assert_int_equal(status(&b).lease_until_ms, 0);
    read(&b, 8);
    assert_int_equal(b.u.read_count, 0);
    echo(&b, 2, 1, 2); /* the transfer failed: still none in this term */
    assert_int_equal(b.u.read_count, 1);
    read(&b, 9);
    assert_int_equal(b.u.read_count, 0);
    raft_free(b.r);
}

static bool grants_prevote(struct box *b)
{
    struct raft_msg m = vote_of(3, 9, 9, 9);
    m.type = RAFT_MSG_PREVOTE;
    recv(b, m);
    const struct raft_msg *reply = sent(b, RAFT_MSG_PREVOTE_REPLY, 3);
    return reply != NULL && !reply->reject;
}

static void a_promise_outlives_a_hint(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "12");
    struct raft_msg m = append_of(2, 2, 2, 2, "");
    m.lease = true;
    recv(&b, m);
    uint64_t heard_ms = b.now_ms;
    step(&b, (struct raft_event){.type = RAFT_EV_PEER_DOWN, .u.peer = 2});
    assert_false(grants_prevote(&b));
    while (b.now_ms < heard_ms + RAFT_LEASE_MS) {
        tick(&b);
        assert_true(b.now_ms >= heard_ms + RAFT_LEASE_MS ||
                    b.u.send_count == 0);
    }
    assert_true(b.now_ms <= heard_ms + RAFT_LEASE_MS + 50); /* and then soon */
    assert_non_null(sent(&b, RAFT_MSG_PREVOTE, 3));
    raft_free(b.r);

    b = box_of(1, 3, 2, "12"); /* without a promise the hint frees it */
    recv(&b, append_of(2, 2, 2, 2, ""));
    step(&b, (struct raft_event){.type = RAFT_EV_PEER_DOWN, .u.peer = 2});
    assert_true(grants_prevote(&b));
    raft_free(b.r);
}

static void a_restart_keeps_a_promise_it_forgot(void **state)
{
    (void)state;
    struct raft_config config = {.id = 1,
                                 .seed = 7,
                                 .conf = conf_of(3),
                                 .hard_state = {.term = 2},
                                 .restarted = true,
                                 .now_ms = 1000};
    struct box b = {.now_ms = 1000};
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    assert_false(grants_prevote(&b));
    b.now_ms += RAFT_LEASE_MS - 1;
    assert_false(grants_prevote(&b));
    b.now_ms += 1;
    assert_true(grants_prevote(&b));
    raft_free(b.r);
}

static void a_group_of_one_reads_at_once(void **state)
{
    (void)state;
    struct box b = box_of(1, 1, 0, "");
    tick(&b);
    persist(&b);
    read(&b, 1);
    assert_int_equal(b.u.read_count, 0);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    assert_int_equal(b.u.read_count, 1);
    read(&b, 2);
    assert_int_equal(b.u.read_count, 1);
    assert_int_equal(b.u.reads[0].index, 1);
    raft_free(b.r);
}

/* ---- membership ---- */

static void a_joint_configuration_needs_both_majorities(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 0, "");
    make_leader(&b);
    struct raft_conf joint = {.voters = {1, 4, 5},
                              .voter_count = 3,
                              .old = {1, 2, 3},
                              .old_count = 3};
    propose_conf(&b, &joint);
    assert_int_equal(b.rc, ERR_BUSY); /* first an entry of its own term */
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    ack(&b, 2, 1);
    struct raft_conf wrong = {.voters = {1, 4, 5}, .voter_count = 3};
    propose_conf(&b, &wrong);
    assert_int_equal(b.rc, ERR_INVALID);
    propose_conf(&b, &joint);
    assert_int_equal(b.rc, ERR_OK);
    assert_int_equal(status(&b).peer_count, 4);
    assert_int_equal(status(&b).conf.old_count, 3);
    assert_int_equal(status(&b).conf_index, 2);
    persist(&b);
    ack(&b, 4, 2);
    ack(&b, 5, 2);
    assert_int_equal(status(&b).commit, 1); /* no majority of the old */
    raft_free(b.r);
    b = box_of(1, 3, 0, "");
    make_leader(&b);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    ack(&b, 2, 1);
    propose_conf(&b, &joint);
    persist(&b);
    ack(&b, 2, 2);
    ack(&b, 3, 2);
    assert_int_equal(status(&b).commit, 1); /* no majority of the new */
    struct raft_conf final = {.voters = {1, 4, 5}, .voter_count = 3};
    propose_conf(&b, &final);
    assert_int_equal(b.rc, ERR_BUSY);
    ack(&b, 4, 2);
    assert_int_equal(status(&b).commit, 2);
    propose_conf(&b, &final);
    assert_int_equal(b.rc, ERR_OK);
    persist(&b);
    ack(&b, 2, 3); /* has no say any more */
    assert_int_equal(status(&b).commit, 2);
    ack(&b, 5, 3);
    assert_int_equal(status(&b).commit, 3);
    assert_int_equal(status(&b).role, RAFT_LEADER);
    raft_free(b.r);
}

static void a_leader_that_is_not_in_the_new_set_steps_down(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 0, "");
    make_leader(&b);
    propose(&b, RAFT_ENTRY_NOOP, NULL);
    persist(&b);
    ack(&b, 2, 1);
    struct raft_conf joint = {
        .voters = {2, 3}, .voter_count = 2, .old = {1, 2, 3}, .old_count = 3};
    propose_conf(&b, &joint);
    persist(&b);
    ack(&b, 2, 2);
    assert_int_equal(status(&b).commit, 1);
    ack(&b, 3, 2);
    assert_int_equal(status(&b).commit, 2);
    struct raft_conf final = {.voters = {2, 3}, .voter_count = 2};
    propose_conf(&b, &final);
    persist(&b);
    ack(&b, 2, 3);
    assert_int_equal(status(&b).commit, 2); /* it does not count itself */
    ack(&b, 3, 3);
    assert_true(b.u.lost_leadership);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 2)->commit, 3);
    assert_true(sent(&b, RAFT_MSG_TIMEOUT_NOW, 2) != NULL ||
                sent(&b, RAFT_MSG_TIMEOUT_NOW, 3) != NULL);
    for (int i = 0; i < 5; i++) {
        tick(&b);
        assert_int_equal(b.u.send_count, 0); /* it does not campaign */
    }
    raft_free(b.r);
}

/* Thesis 4.2.2: until the configuration without it is committed, it may be the
 * only one with a log the others will vote for. */
static void who_is_leaving_still_stands_until_that_is_committed(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "1");
    struct raft_conf without = {.voters = {2, 3}, .voter_count = 2};
    struct buf out = {0};
    raft_conf_encode(&out, &without);
    struct raft_msg m = append_of(2, 2, 1, 1, "2");
    m.entries[0].type = RAFT_ENTRY_CONF;
    m.entries[0].data = bytes_copy(buf_slice(&out));
    recv(&b, m);
    persist(&b);
    bytes_unref(m.entries[0].data);
    buf_free(&out);
    tick(&b);
    assert_non_null(sent(&b, RAFT_MSG_PREVOTE, 3));
    recv(&b, (struct raft_msg){
                 .type = RAFT_MSG_PREVOTE_REPLY, .from = 3, .term = 3});
    assert_int_equal(status(&b).role, RAFT_PRECANDIDATE); /* own vote: none */
    struct raft_msg heartbeat = append_of(2, 2, 2, 2, "");
    heartbeat.commit = 2;
    recv(&b, heartbeat);
    tick(&b);
    assert_int_equal(b.u.send_count, 0);
    raft_free(b.r);
}

/* A configuration is in force from append on, and gone when its entry is. */
static void a_cut_off_configuration_is_forgotten(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 2, "1");
    struct raft_conf joint = {.voters = {1, 2, 3, 4, 5},
                              .voter_count = 5,
                              .old = {1, 2, 3},
                              .old_count = 3,
                              .learners = {6},
                              .learner_count = 1};
    struct buf out = {0};
    raft_conf_encode(&out, &joint);
    struct raft_msg m = append_of(2, 2, 1, 1, "2");
    m.entries[0].type = RAFT_ENTRY_CONF;
    m.entries[0].data = bytes_copy(buf_slice(&out));
    recv(&b, m);
    assert_int_equal(status(&b).conf.voter_count, 5);
    assert_int_equal(status(&b).conf.learners[0], 6);
    struct raft_conf before;
    raft_conf_at(b.r, 1, &before);
    assert_int_equal(before.voter_count, 3);
    bytes_unref(m.entries[0].data);
    recv(&b, append_of(3, 4, 1, 1, "4"));
    assert_int_equal(status(&b).conf.voter_count, 3);
    assert_int_equal(status(&b).conf.old_count, 0);
    buf_free(&out);
    raft_free(b.r);
}

static void a_learner_is_fed_and_has_no_say(void **state)
{
    (void)state;
    struct raft_config config = {.id = 1, .conf = conf_of(3)};
    config.conf.learners[0] = 9;
    config.conf.learner_count = 1;
    struct box b = {0};
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    make_leader(&b);
    ack(&b, 9, 0);
    propose_size(&b, 5);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 9)->entry_count, 1);
    persist(&b);
    ack(&b, 9, 1);
    assert_int_equal(status(&b).commit, 0);
    ack(&b, 3, 1);
    assert_int_equal(status(&b).commit, 1);
    raft_free(b.r);

    config.id = 9;
    b = (struct box){0};
    assert_int_equal(raft_new(&config, &b.r), ERR_OK);
    struct raft_msg beat = {.type = RAFT_MSG_APPEND, .from = 1, .term = 1};
    recv(&b, beat);
    persist(&b);
    assert_int_equal(status(&b).leader, 1);
    for (int i = 0; i < 5; i++) {
        tick(&b);
        assert_int_equal(b.u.send_count, 0);
        /* Silent for a timeout: maybe we were removed, and should ask. */
        assert_int_equal(status(&b).leader, 0);
    }
    raft_free(b.r);
}

/* ---- compaction and snapshots ---- */

static void who_needs_the_compacted_is_named_once(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 1, "1");
    make_leader(&b);
    ack(&b, 2, 1);
    for (int i = 0; i < 9; i++) {
        propose_size(&b, 10);
        persist(&b);
        ack(&b, 2, status(&b).last_index);
    }
    assert_int_equal(b.u.commit, 10);
    raft_compact(b.r, 8);
    assert_int_equal(status(&b).first_index, 9);
    struct raft_msg no = {.type = RAFT_MSG_APPEND_REPLY,
                          .from = 3,
                          .term = 2,
                          .log_index = 1,
                          .reject = true};
    recv(&b, no);
    assert_int_equal(b.u.need_snapshot_count, 1);
    assert_int_equal(b.u.need_snapshot[0], 3);
    for (int i = 0; i < 5; i++) {
        tick(&b);
        assert_int_equal(b.u.need_snapshot_count, 0);
        assert_int_equal(sent(&b, RAFT_MSG_APPEND, 3)->entry_count, 0);
        ack(&b, 3, 0);
        assert_int_equal(b.u.need_snapshot_count, 0);
        ack(&b, 2, 10);
    }
    step(&b, (struct raft_event){.type = RAFT_EV_SNAPSHOT_SENT,
                                 .u.sent = {.peer = 3, .index = 8}});
    assert_int_equal(b.u.need_snapshot_count, 0);
    ack(&b, 3, 0); /* it lives: once more */
    assert_int_equal(b.u.need_snapshot_count, 1);
    step(&b,
         (struct raft_event){.type = RAFT_EV_SNAPSHOT_SENT,
                             .u.sent = {.peer = 3, .index = 8, .ok = true}});
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 3)->log_index, 8);
    ack(&b, 3, 8);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND, 3)->entry_count, 2);
    raft_free(b.r);
}

static void step_installed(struct box *b, raft_index index, raft_term term)
{
    step(b,
         (struct raft_event){
             .type = RAFT_EV_SNAPSHOT_INSTALLED,
             .u.snapshot = {.index = index, .term = term, .conf = conf_of(3)},
         });
}

static void an_installed_snapshot_replaces_the_log(void **state)
{
    (void)state;
    struct box b = box_of(1, 3, 3, "1222");
    recv(&b, append_of(2, 3, 9, 3, ""));
    assert_true(raft_install_begin(b.r, 8, 3));
    recv(&b, append_of(2, 3, 1, 1, "3")); /* nothing is taken meanwhile */
    assert_int_equal(b.u.persist_seq, 0);
    step_installed(&b, 8, 3);
    assert_int_equal(b.rc, ERR_OK);
    assert_int_equal(b.u.commit, 8);
    assert_int_equal(status(&b).first_index, 9);
    assert_int_equal(status(&b).last_index, 8);
    assert_int_equal(status(&b).persisted, 8);
    assert_int_equal(sent(&b, RAFT_MSG_APPEND_REPLY, 2)->match, 8);
    recv(&b, append_of(2, 3, 8, 3, "3"));
    assert_int_equal(status(&b).last_index, 9);
    recv(&b, append_of(2, 3, 5, 3, "33333")); /* reaches back, late */
    assert_int_equal(status(&b).last_index, 10);
    assert_false(raft_wants_snapshot(b.r, 8, 3));
    step_installed(&b, 5, 2);
    assert_int_equal(b.rc, ERR_INVALID);
    raft_free(b.r);

    /* What the log has, with all that follows, is not thrown away. */
    b = box_of(1, 3, 3, "1222");
    assert_false(raft_wants_snapshot(b.r, 3, 2));
    assert_false(raft_install_begin(b.r, 3, 2));
    assert_true(raft_wants_snapshot(b.r, 3, 3));
    step_installed(&b, 3, 2);
    assert_int_equal(status(&b).last_index, 4);
    assert_int_equal(status(&b).persisted, 3);
    assert_int_equal(b.u.append_count, 1); /* stored again */
    assert_int_equal(b.u.append[0].index, 4);
    raft_free(b.r);
}

static void a_broken_stored_log_is_refused(void **state)
{
    (void)state;
    struct raft_entry entries[2] = {
        {.term = 2, .index = 4, .type = RAFT_ENTRY_NOOP},
        {.term = 2, .index = 6, .type = RAFT_ENTRY_NOOP},
    };
    struct raft_config config = {
        .id = 1,
        .conf = conf_of(3),
        .hard_state = {.term = 2},
        .snapshot_index = 3,
        .snapshot_term = 1,
        .entries = entries,
        .entry_count = 2,
    };
    struct raft *r = NULL;
    assert_int_equal(raft_new(&config, &r), ERR_CORRUPT); /* a gap */
    entries[1].index = 5;
    entries[1].term = 1;
    assert_int_equal(raft_new(&config, &r), ERR_CORRUPT); /* back in terms */
    entries[1].term = 3;
    assert_int_equal(raft_new(&config, &r), ERR_CORRUPT); /* past the term */
    entries[1].term = 2;
    assert_int_equal(raft_new(&config, &r), ERR_OK);
    raft_free(r);
}

/* ---- bytes ---- */

static void check_same(const struct raft_msg *a, const struct raft_msg *b)
{
    struct buf x = {0}, y = {0};
    raft_msg_encode(&x, a);
    raft_msg_encode(&y, b);
    assert_int_equal(slice_compare(buf_slice(&x), buf_slice(&y)), 0);
    buf_free(&x);
    buf_free(&y);
}

static struct raft_msg full_message(struct bytes *data)
{
    struct raft_msg m = append_of(2, 9, 4, 3, "345");
    m.to = 1;
    m.commit = 5;
    m.match = 6;
    m.reject = true;
    m.transfer = true;
    m.lease = true;
    m.conflict_term = 7;
    m.conflict_index = 8;
    m.last_index = 10;
    m.read_round = 11;
    m.entries[1].type = RAFT_ENTRY_COMMAND;
    m.entries[1].data = data;
    return m;
}

static enum err decode(const struct buf *b, size_t size)
{
    struct arena a = {0};
    struct raft_msg m = {0};
    /* A copy of just that size, so that the sanitizer sees a read past it. */
    struct bytes *exact = bytes_copy(slice_of(b->data, size));
    enum err rc = raft_msg_decode(bytes_slice(exact), &a, &m);
    raft_msg_release(&m);
    arena_free(&a);
    bytes_unref(exact);
    return rc;
}

/* `b` with the cuts in their places. */
static struct bytes *joined(const struct buf *b, const struct raft_cut *cuts,
                            uint32_t count)
{
    struct buf all = {0};
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        buf_append(&all, b->data + at, cuts[i].at - at);
        buf_append(&all, cuts[i].data->data, cuts[i].data->size);
        at = cuts[i].at;
    }
    buf_append(&all, b->data + at, b->size - at);
    struct bytes *bytes = bytes_copy(buf_slice(&all));
    buf_free(&all);
    return bytes;
}

/* What is cut out of a message and put in again is the same message, and its
 * entries, parts of it or copies, outlive what it was read from. */
static void a_message_is_the_same_in_parts(void **state)
{
    (void)state;
    for (size_t size = 1; size <= 8192; size = size * 3 + 1) {
        struct bytes *data = bytes_new(size);
        memset(data->data, (int)size, size);
        struct raft_msg m = full_message(data), back;
        struct raft_cut cuts[3];
        struct buf whole = {0}, heads = {0};
        struct arena a = {0};
        raft_msg_encode(&whole, &m);
        uint32_t count = raft_msg_encode_cut(&heads, &m, 100, cuts);
        assert_int_equal(count, size >= 100 ? 1 : 0);
        struct bytes *from = joined(&heads, cuts, count);
        assert_int_equal(slice_compare(bytes_slice(from), buf_slice(&whole)),
                         0);
        assert_int_equal(raft_msg_decode_parts(from, &a, &back), ERR_OK);
        bool is_part = back.entries[1].data->whole == from;
        assert_int_equal(is_part, from->size / 3 >= 2048);
        bytes_unref(from);
        check_same(&m, &back);
        raft_msg_release(&back);
        arena_free(&a);
        bytes_unref(data);
        buf_free(&whole);
        buf_free(&heads);
    }
}

static void a_message_survives_its_bytes(void **state)
{
    (void)state;
    struct bytes *data = bytes_copy(slice_text("some data"));
    struct raft_msg m = full_message(data);
    struct buf b = {0};
    raft_msg_encode(&b, &m);
    struct arena a = {0};
    struct raft_msg back;
    assert_int_equal(raft_msg_decode(buf_slice(&b), &a, &back), ERR_OK);
    check_same(&m, &back);
    assert_int_equal(back.entries[2].index, 7);
    assert_null(back.entries[2].data);
    assert_true(back.reject);
    assert_true(back.transfer);
    assert_true(back.lease);
    raft_msg_release(&back);
    arena_free(&a);
    for (size_t size = 0; size < b.size; size++) {
        assert_int_equal(decode(&b, size), ERR_CORRUPT);
    }
    buf_append(&b, "x", 1);
    assert_int_equal(decode(&b, b.size), ERR_CORRUPT);
    buf_free(&b);
    bytes_unref(data);
}

/* The bytes of version 1: peers of another build must understand them. */
static void the_bytes_do_not_change(void **state)
{
    (void)state;
    // clang-format off
    static const uint8_t golden[] = {
        5,                                              /* type: APPEND */
        2, 0, 0, 0, 0, 0, 0, 0,         /* from */
        1, 0, 0, 0, 0, 0, 0, 0,         /* to */
        9, 0, 0, 0, 0, 0, 0, 0,         /* term */
        4, 0, 0, 0, 0, 0, 0, 0,         /* log_index */
        3, 0, 0, 0, 0, 0, 0, 0,         /* log_term */
        5, 0, 0, 0, 0, 0, 0, 0,         /* commit */
        6, 0, 0, 0, 0, 0, 0, 0,         /* match */
        7,                                              /* flags */
        7, 0, 0, 0, 0, 0, 0, 0,         /* conflict_term */
        8, 0, 0, 0, 0, 0, 0, 0,         /* conflict_index */
        10, 0, 0, 0, 0, 0, 0, 0,         /* last_index */
        11, 0, 0, 0, 0, 0, 0, 0,         /* read_round */
        3, 0, 0, 0,                             /* entry_count */
        3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0,
        4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 'h', 'i',
        5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0,
    };
    // clang-format on
    struct bytes *data = bytes_copy(slice_text("hi"));
    struct raft_msg m = full_message(data);
    struct buf b = {0};
    raft_msg_encode(&b, &m);
    assert_int_equal(
        slice_compare(buf_slice(&b), slice_of(golden, sizeof golden)), 0);
    buf_free(&b);
    bytes_unref(data);
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    struct {
        size_t offset;
        uint8_t value;
    } cases[] = {
        {0, 0},     {0, 8},   {0, 255}, /* type */
        {1, 0},     {9, 0},             /* from, to */
        {17, 0},                        /* term */
        {57, 16},                       /* flags */
        {90, 200},                      /* entry_count */
        {93, 255},                      /* a count over all bounds */
        {94, 0},    {94, 99},           /* an entry's term */
        {102, 0},   {102, 9},           /* its type */
        {103, 255},                     /* its size */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct raft_msg m = full_message(NULL);
        struct buf b = {0};
        raft_msg_encode(&b, &m);
        assert_int_equal(decode(&b, b.size), ERR_OK);
        b.data[cases[i].offset] = cases[i].value;
        assert_int_equal(decode(&b, b.size), ERR_CORRUPT);
        buf_free(&b);
    }
}

static void a_configuration_survives_its_bytes(void **state)
{
    (void)state;
    struct raft_conf conf = {.voters = {1, 2, 3},
                             .voter_count = 3,
                             .old = {2, 3, 4},
                             .old_count = 3,
                             .learners = {4, 9},
                             .learner_count = 2};
    struct buf b = {0};
    raft_conf_encode(&b, &conf);
    struct raft_conf back;
    assert_int_equal(raft_conf_decode(buf_slice(&b), &back), ERR_OK);
    assert_memory_equal(&conf, &back, sizeof conf);
    for (size_t size = 0; size < b.size; size++) {
        assert_int_equal(raft_conf_decode(slice_of(b.data, size), &back),
                         ERR_CORRUPT);
    }
    buf_clear(&b);
    conf.voters[2] = 1; /* twice */
    raft_conf_encode(&b, &conf);
    assert_int_equal(raft_conf_decode(buf_slice(&b), &back), ERR_CORRUPT);
    buf_clear(&b);
    conf.voters[2] = 9; /* a learner cannot vote too */
    raft_conf_encode(&b, &conf);
    assert_int_equal(raft_conf_decode(buf_slice(&b), &back), ERR_CORRUPT);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(votes_only_for_a_log_as_new_as_its_own),
        cmocka_unit_test(a_vote_leaves_only_when_it_is_on_disk),
        cmocka_unit_test(a_candidate_asks_and_counts_itself_only_from_disk),
        cmocka_unit_test(a_prevote_disturbs_nobody),
        cmocka_unit_test(a_prevote_is_granted_at_once_when_there_is_no_leader),
        cmocka_unit_test(who_has_not_answered_is_asked_again),
        cmocka_unit_test(a_broken_connection_starts_the_prevote_within_ms),
        cmocka_unit_test(
            two_that_run_into_each_other_after_a_hint_try_again_soon),
        cmocka_unit_test(a_leader_of_an_old_term_is_told),
        cmocka_unit_test(a_leader_nobody_answers_steps_down),
        cmocka_unit_test(leadership_is_handed_over_once_the_log_is_there),
        cmocka_unit_test(a_transfer_that_fails_ends),
        cmocka_unit_test(an_acknowledgement_waits_for_the_disk),
        cmocka_unit_test(an_old_write_does_not_vouch_for_new_entries),
        cmocka_unit_test(old_and_repeated_appends_cut_nothing_off),
        cmocka_unit_test(a_conflict_is_described_by_term),
        cmocka_unit_test(the_leader_backs_up_by_whole_terms),
        cmocka_unit_test(a_follower_that_forgot_is_named),
        cmocka_unit_test(a_lost_message_is_found_by_the_next_heartbeat),
        cmocka_unit_test(entries_are_sent_at_once_once_and_within_bounds),
        cmocka_unit_test(a_silent_follower_gets_heartbeats_only),
        cmocka_unit_test(an_idle_leader_beats_ten_times_a_second),
        cmocka_unit_test(the_leader_counts_only_what_its_disk_has),
        cmocka_unit_test(an_old_entry_is_committed_only_by_a_new_one),
        cmocka_unit_test(too_much_uncommitted_is_refused),
        cmocka_unit_test(a_read_waits_for_the_term_and_for_a_round),
        cmocka_unit_test(a_follower_echoes_the_round_before_its_disk_is_done),
        cmocka_unit_test(a_group_of_one_reads_at_once),
        cmocka_unit_test(a_lease_answers_at_once_until_it_ends),
        cmocka_unit_test(a_leader_that_hands_over_has_no_lease),
        cmocka_unit_test(a_promise_outlives_a_hint),
        cmocka_unit_test(a_restart_keeps_a_promise_it_forgot),
        cmocka_unit_test(a_joint_configuration_needs_both_majorities),
        cmocka_unit_test(a_leader_that_is_not_in_the_new_set_steps_down),
        cmocka_unit_test(who_is_leaving_still_stands_until_that_is_committed),
        cmocka_unit_test(a_cut_off_configuration_is_forgotten),
        cmocka_unit_test(a_learner_is_fed_and_has_no_say),
        cmocka_unit_test(who_needs_the_compacted_is_named_once),
        cmocka_unit_test(an_installed_snapshot_replaces_the_log),
        cmocka_unit_test(a_broken_stored_log_is_refused),
        cmocka_unit_test(a_message_survives_its_bytes),
        cmocka_unit_test(a_message_is_the_same_in_parts),
        cmocka_unit_test(the_bytes_do_not_change),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(a_configuration_survives_its_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
