/* The controllers' clerk while they are replaced: a script of who is a member,
 * who runs, and who leads. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "shardctrler/client.h"
#include "shardctrler/known.h"
#include "tests/lib/scripted_net.h"

#define SECOND UINT64_C(1000000)
#define MS     UINT64_C(1000)

enum { SITES_MAX = 200 };

/* "cN:1" for the position N, if it runs. */
struct site {
    bool runs;
    uint32_t group;
    bool is_behind; /* says what the members were when it fell behind */
    uint32_t members[RAFT_PEERS_MAX], member_count;
    uint32_t leader; /* 0: none known */
    uint64_t term;
    uint32_t asked_members, asked_else;
};

struct world {
    struct sn sn;
    struct ctl_client *client;
    struct site sites[SITES_MAX];
    enum err rc; /* of the query; ERR_BUSY: unanswered */
    uint64_t answered_us;
    struct buf forged; /* sent in place of any list of members */
};

static const char *name_of(uint32_t site, char text[NET_ADDRESS_SIZE_MAX])
{
    snprintf(text, NET_ADDRESS_SIZE_MAX, "c%u:1", site);
    return text;
}

/* These run and are the members; the first one leads. */
static void set_members(struct world *w, uint64_t term, const uint32_t *members,
                        uint32_t count)
{
    for (uint32_t i = 0; i < SITES_MAX; i++) {
        struct site *s = &w->sites[i];
        s->runs = s->is_behind || s->group != 0;
        for (uint32_t k = 0; k < count; k++) {
            s->runs |= members[k] == i;
        }
        if (s->runs && !s->is_behind && s->group == 0) {
            memcpy(s->members, members, count * sizeof *members);
            s->member_count = count;
            s->leader = members[0];
            s->term = term;
        }
    }
}

static void answer_members(struct world *w, const struct site *s,
                           struct sn_call *call)
{
    struct rsm_member members[RAFT_PEERS_MAX];
    char names[RAFT_PEERS_MAX][NET_ADDRESS_SIZE_MAX];
    struct buf body = {0};
    for (uint32_t i = 0; i < s->member_count; i++) {
        members[i] = (struct rsm_member){
            .id = s->members[i],
            .role = RSM_VOTER,
            .address = slice_text(name_of(s->members[i], names[i]))};
    }
    struct rsm_members m = {.group = s->group,
                            .leader = s->leader,
                            .term = s->term,
                            .members = members,
                            .members_count = s->member_count};
    rsm_members_encode(&body, &m);
    sn_answer(&w->sn, call, ERR_OK,
              buf_slice(w->forged.size > 0 ? &w->forged : &body));
    buf_free(&body);
}

static void answer(struct world *w, struct sn_call *call)
{
    struct slice nothing = {0};
    uint32_t number = 0;
    assert_int_equal(sscanf(call->address, "c%u:1", &number), 1);
    struct site *s = &w->sites[number];
    bool members = call->method == RSM_METHOD_MEMBERS;
    s->asked_members += members;
    s->asked_else += !members;
    if (!s->runs) {
        sn_answer(&w->sn, call, ERR_CLOSED, nothing);
    } else if (members) {
        answer_members(w, s, call);
    } else {
        sn_answer(&w->sn, call,
                  s->group != 0         ? ERR_DENIED
                  : s->leader == number ? ERR_NOTFOUND
                                        : ERR_NOTLEADER,
                  nothing);
    }
}

static void run(struct world *w, uint64_t for_us)
{
    uint64_t until_us = w->sn.now_us + for_us;
    do {
        while (w->sn.calls != NULL) {
            answer(w, w->sn.calls);
        }
    } while (sn_step(&w->sn, until_us));
    w->sn.now_us = until_us;
}

static void queried(void *arg, enum err rc, const struct ctl_config *config)
{
    struct world *w = arg;
    (void)config;
    w->rc = rc;
    w->answered_us = w->sn.now_us;
}

static void query(struct world *w)
{
    w->rc = ERR_BUSY;
    ctl_client_query(w->client, CTL_LATEST, 0, 2000, queried, w);
}

/* ERR_NOTFOUND is what the leader says. */
static void expect_answer(struct world *w, enum err rc)
{
    query(w);
    run(w, 3 * SECOND);
    assert_int_equal(w->rc, rc);
}

static void world_init(struct world *w)
{
    static const uint32_t first[] = {1, 2, 3};
    char addresses[3][NET_ADDRESS_SIZE_MAX] = {{0}};
    memset(w, 0, sizeof *w);
    sn_init(&w->sn, 7);
    set_members(w, 1, first, 3);
    for (uint32_t i = 0; i < 3; i++) {
        name_of(first[i], addresses[i]);
    }
    w->client =
        ctl_client_new(&w->sn.env, &w->sn.net,
                       (const char(*)[NET_ADDRESS_SIZE_MAX])addresses, 3);
}

static void world_fini(struct world *w)
{
    ctl_client_free(w->client);
    buf_free(&w->forged);
    sn_fini(&w->sn);
}

#define SET(w, term, ...)                                                      \
    set_members(w, term, (const uint32_t[]){__VA_ARGS__},                      \
                sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* Wrong if a process that asks nothing meanwhile finds them no more. */
static void all_are_replaced_in_turn_while_nothing_is_asked(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    SET(&w, 1, 3, 2, 4);
    run(&w, 5 * SECOND);
    SET(&w, 2, 5, 4, 3);
    run(&w, 5 * SECOND);
    SET(&w, 2, 5, 4, 6);
    run(&w, 5 * SECOND);
    SET(&w, 3, 6, 7, 8);
    expect_answer(&w, ERR_NOTFOUND);
    assert_in_range(ctl_client_silent_ms(w.client), 0, 5000);
    for (uint32_t i = 1; i < 4; i++) {
        assert_int_equal(w.sites[i].asked_else, 0);
    }
    world_fini(&w);
}

/* Wrong if the next look is waited for: it comes after 2.5 s at the least. */
static void when_one_is_silent_and_another_answers_it_is_asked(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    uint64_t begun_us = w.sn.now_us;
    SET(&w, 1, 4, 5, 3);
    run(&w, 1100 * MS);
    for (uint32_t i = 0; i < 3; i++) { /* wherever it begins */
        query(&w);
        run(&w, 300 * MS);
    }
    SET(&w, 2, 4, 5, 6);
    query(&w);
    run(&w, 400 * MS);
    assert_int_equal(w.rc, ERR_NOTFOUND);
    assert_true(w.sn.now_us - begun_us < 2500 * MS);
    world_fini(&w);
}

/* Wrong if it is asked often, if a stranger at its address is asked for more
 * than the members, or if one of the start that is back is not found. */
static void who_slept_through_it_asks_those_of_the_start(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    SET(&w, 2, 4, 5, 6);
    run(&w, 6 * SECOND); /* not heard of */
    SET(&w, 3, 7, 8, 9);
    expect_answer(&w, ERR_TIMEDOUT);
    assert_in_range(ctl_client_silent_ms(w.client), 8000, 10000);
    run(&w, 60 * SECOND);
    assert_in_range(ctl_client_silent_ms(w.client), 68000, 70000);
    SET(&w, 4, 7, 1, 9);
    run(&w, 6 * SECOND);
    expect_answer(&w, ERR_NOTFOUND);
    assert_in_range(ctl_client_silent_ms(w.client), 0, 5000);
    world_fini(&w);
}

/* c1 to c3 have gone, and group 7 is at c2 by now. */
static void only_the_members_are_asked_for_at_old_addresses(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    SET(&w, 2, 3, 4, 5);
    run(&w, 6 * SECOND);
    SET(&w, 2, 4, 5, 6);
    run(&w, 6 * SECOND);
    w.sites[2] = (struct site){.group = 7,
                               .runs = true,
                               .term = 99,
                               .leader = 2,
                               .members = {2, 50, 51},
                               .member_count = 3};
    SET(&w, 3, 20, 21, 22); /* slept through */
    for (int i = 0; i < 20; i++) {
        expect_answer(&w, ERR_TIMEDOUT);
    }
    assert_in_range(w.sites[2].asked_members, 2, 3); /* in 60 s */
    assert_int_equal(w.sites[2].asked_else, 0);
    assert_int_equal(w.sites[50].asked_members, 0);
    assert_true(w.sites[4].asked_members > 10);
    assert_in_range(ctl_client_silent_ms(w.client), 55000, 70000);
    SET(&w, 4, 20, 21, 1); /* one of the start is back */
    run(&w, 36 * SECOND);
    expect_answer(&w, ERR_NOTFOUND);
    world_fini(&w);
}

/* Wrong if what one that is behind says makes others be forgotten. */
static void only_a_leader_of_a_newer_term_makes_it_forget(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    SET(&w, 5, 4, 5, 3);
    run(&w, 6 * SECOND);
    w.sites[3].is_behind = true; /* it is cut off, and leads its old ones */
    w.sites[3].leader = 3;
    w.sites[3].term = 4;
    w.sites[3].members[0] = 1;
    w.sites[3].members[1] = 2;
    w.sites[3].members[2] = 3;
    w.sites[3].member_count = 3;
    SET(&w, 5, 4, 5, 3);
    w.sites[4].runs = w.sites[5].runs = false;
    run(&w, 12 * SECOND);
    w.sites[4].runs = w.sites[5].runs = true;
    w.sites[3].runs = false;
    expect_answer(&w, ERR_NOTFOUND);
    assert_true(w.sites[4].asked_else > 0);
    world_fini(&w);
}

/* A follower's word adds: addresses that only they reach each other at do not
 * take the place of those that are answered at. */
static void who_cannot_be_reached_takes_nobodys_place(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    for (uint32_t i = 1; i <= 3; i++) { /* "c101" is c1 to themselves */
        struct site *s = &w.sites[i];
        s->is_behind = true;
        s->leader = 101;
        s->members[0] = 101;
        s->members[1] = 102;
        s->members[2] = 103;
    }
    run(&w, 20 * SECOND);
    w.sites[1].leader = 1; /* and answers as the leader */
    expect_answer(&w, ERR_NOTFOUND);
    world_fini(&w);
}

static void forge(struct world *w, struct slice address, uint32_t count,
                  uint32_t group)
{
    struct rsm_member members[RAFT_PEERS_MAX + 1];
    for (uint32_t i = 0; i < count; i++) {
        members[i] = (struct rsm_member){.id = i + 1, .address = address};
    }
    struct rsm_members m = {.group = group,
                            .term = 9,
                            .leader = 1,
                            .members = members,
                            .members_count = count};
    buf_clear(&w->forged);
    rsm_members_encode(&w->forged, &m);
}

static void what_makes_no_sense_changes_nothing(void **state)
{
    (void)state;
    struct world w;
    static const char zero[] = "a\0b:1";
    char size[NET_ADDRESS_SIZE_MAX + 1];
    memset(size, ':', sizeof size);
    const struct {
        struct slice address;
        uint32_t count, group;
    } wrong[] = {
        {slice_text("c77:1"), 1, 7},
        {slice_text("c77"), 1, 0},
        {slice_text(""), 1, 0},
        {slice_text(""), 0, 0},
        {slice_of(zero, sizeof zero - 1), 1, 0},
        {slice_of(size, NET_ADDRESS_SIZE_MAX), 1, 0},
        {slice_text("c77:1"), RAFT_PEERS_MAX + 1, 0},
    };
    world_init(&w);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        forge(&w, wrong[i].address, wrong[i].count, wrong[i].group);
        run(&w, 6 * SECOND);
        for (uint32_t k = 1; k <= 3; k++) {
            assert_true(w.sites[k].asked_members > 0);
            w.sites[k].asked_members = 0;
        }
        expect_answer(&w, ERR_NOTFOUND);
    }
    assert_int_equal(w.sites[77].asked_members, 0);
    world_fini(&w);
}

/* Wrong if the list outgrows its bound, or a generation is not found. */
static void many_generations_are_followed(void **state)
{
    (void)state;
    struct world w;
    world_init(&w);
    SET(&w, 2, 2, 3, 10);
    run(&w, 6 * SECOND);
    for (uint32_t g = 0; g < 100; g++) {
        uint32_t members[RAFT_PEERS_MAX];
        for (uint32_t i = 0; i < RAFT_PEERS_MAX; i++) {
            members[i] = 10 + g + i;
        }
        set_members(&w, 3 + g, members, RAFT_PEERS_MAX);
        run(&w, 5 * SECOND);
        expect_answer(&w, ERR_NOTFOUND);
    }
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_are_replaced_in_turn_while_nothing_is_asked),
        cmocka_unit_test(when_one_is_silent_and_another_answers_it_is_asked),
        cmocka_unit_test(who_slept_through_it_asks_those_of_the_start),
        cmocka_unit_test(only_the_members_are_asked_for_at_old_addresses),
        cmocka_unit_test(only_a_leader_of_a_newer_term_makes_it_forget),
        cmocka_unit_test(who_cannot_be_reached_takes_nobodys_place),
        cmocka_unit_test(what_makes_no_sense_changes_nothing),
        cmocka_unit_test(many_generations_are_followed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
