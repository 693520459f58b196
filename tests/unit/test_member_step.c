/* One step of `flotilla member` against a group whose answers get lost: what
 * was done and not heard is asked for again, and must not be done again. The
 * group is a fake that knows the rules of rsm/member.c; that those hold under
 * faults is shown by tests/sim (scenario members), and that a whole command may
 * be killed by tests/e2e. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <time.h>

/* The step's calls and pauses go to the fakes below. */
int fake_nanosleep(const struct timespec *t, struct timespec *left);
uint64_t fake_now_ms(void);
#define ask_call       fake_ask_call
#define ask_config     fake_ask_config
#define ask_many       fake_ask_many
#define nanosleep      fake_nanosleep
#define process_now_ms fake_now_ms
#include "cmd/member_step.c"

enum { GID = 1, FAULTS = 2, MEMBERS_MAX = 6, CALLS = 14 };

enum fault {
    NO_FAULT,
    LOST,    /* the request is */
    UNHEARD, /* the answer is */
    LATE,    /* it is done after its deadline */
    MOVES,   /* somebody else leads, just before */
    FAULT_KINDS
};

static struct {
    struct rsm_member members[MEMBERS_MAX];
    uint32_t count;
    uint64_t leader, term, last_id;
    uint32_t match_step; /* a learner has so much more at each look */
    uint64_t last_index;

    enum fault faults[FAULTS];
    uint32_t fault_at[FAULTS]; /* at this call, from 1 */
    bool late;
    struct rsm_wish late_wish;
    uint64_t late_leader;

    uint64_t first_leader; /* that said so to the command */
    uint64_t halted;       /* it leaves every question without an answer */
    uint64_t silent_ms;    /* from then on the leader knows it */
    bool refuses;          /* the leader: nobody else would answer */
    uint32_t calls, wishes, changes, moves;
    uint64_t now_ms;
} g;

/* ---- the group ---- */

static const char *address_of(uint64_t id)
{
    static const char *const addresses[] = {"", "h:1", "h:2", "h:3", "h:4"};
    return addresses[id];
}

static struct rsm_member *find(uint64_t id)
{
    for (uint32_t i = 0; i < g.count; i++) {
        if (g.members[i].id == id) {
            return &g.members[i];
        }
    }
    return NULL;
}

static void enter(uint64_t id, enum rsm_member_role role)
{
    g.members[g.count++] =
        (struct rsm_member){.id = id,
                            .address = slice_text(address_of(id)),
                            .role = (uint8_t)role,
                            .active = 1};
}

static void leave(uint64_t id)
{
    *find(id) = g.members[--g.count];
}

/* The next voter after the one that leads, around. */
static uint64_t next_leader(void)
{
    for (uint64_t id = g.leader % g.last_id + 1;; id = id % g.last_id + 1) {
        const struct rsm_member *m = find(id);
        if (m != NULL && m->role == RSM_VOTER) {
            return id;
        }
    }
}

static void lead(uint64_t id)
{
    g.leader = id;
    g.term++;
}

static bool is_reached(const struct rsm_wish *w)
{
    const struct rsm_member *m = find(w->id);
    switch (w->kind) {
    case RSM_ADD: return m != NULL;
    case RSM_PROMOTE: return m != NULL && m->role == RSM_VOTER;
    case RSM_REMOVE: return m == NULL;
    default: return w->id == g.leader;
    }
}

static enum err change(const struct rsm_wish *w)
{
    const struct rsm_member *m = find(w->id);
    if (w->kind == RSM_ADD && w->id <= g.last_id) {
        return ERR_EXISTS;
    }
    if (w->kind == RSM_PROMOTE && m == NULL) {
        return ERR_NOTFOUND;
    }
    if (w->kind == RSM_PROMOTE && m->match < g.last_index) {
        g.now_ms += w->timeout_ms;
        return ERR_TIMEDOUT;
    }
    g.changes++;
    switch (w->kind) {
    case RSM_ADD:
        enter(w->id, RSM_LEARNER);
        g.last_id = w->id;
        break;
    case RSM_PROMOTE: find(w->id)->role = RSM_VOTER; break;
    case RSM_REMOVE:
        if (w->id == g.leader) {
            lead(next_leader());
        }
        leave(w->id);
        break;
    default: lead(w->id == 0 ? next_leader() : w->id);
    }
    return ERR_OK;
}

static enum err take_wish(const char *address, struct slice body, bool late)
{
    struct arena a = {0};
    struct rsm_wish w;
    assert_int_equal(rsm_wish_decode(body, &a, &w), ERR_OK);
    g.wishes++;
    enum err rc = ERR_OK;
    if (strcmp(address, address_of(g.leader)) != 0) {
        rc = ERR_NOTLEADER;
    } else if (late) {
        g.late = true;
        g.late_wish = w;
        g.late_wish.address = slice_of(NULL, 0);
        g.late_leader = g.leader;
        rc = ERR_TIMEDOUT;
    } else if (g.refuses) {
        rc = ERR_BUSY;
    } else if (w.kind == RSM_TRANSFER && w.id == g.halted && w.id != 0) {
        g.now_ms += w.timeout_ms;
        rc = ERR_TIMEDOUT;
    } else if (!is_reached(&w)) {
        rc = change(&w);
    }
    arena_free(&a);
    return rc;
}

static enum err say_members(const char *address, struct arena *arena,
                            struct slice *out)
{
    if (g.first_leader == 0 && strcmp(address, address_of(g.leader)) == 0) {
        g.first_leader = g.leader;
    }
    struct buf b = {0};
    const struct rsm_members m = {.leader = g.leader,
                                  .term = g.term,
                                  .last_index = g.last_index,
                                  .settled = 1,
                                  .last_id = g.last_id,
                                  .members = g.members,
                                  .members_count = g.count};
    for (uint32_t i = 0; i < g.count; i++) {
        g.members[i].match += g.match_step;
        g.members[i].active =
            g.members[i].id != g.halted || g.now_ms < g.silent_ms;
    }
    rsm_members_encode(&b, &m);
    *out = arena_copy(arena, buf_slice(&b));
    buf_free(&b);
    return ERR_OK;
}

/* ---- the fakes ---- */

static bool serves(const char *address)
{
    for (uint32_t i = 0; i < g.count; i++) {
        if (slice_compare(g.members[i].address, slice_text(address)) == 0) {
            return true;
        }
    }
    return false;
}

static enum fault fault_now(void)
{
    for (uint32_t i = 0; i < FAULTS; i++) {
        if (g.fault_at[i] == g.calls) {
            return g.faults[i];
        }
    }
    return NO_FAULT;
}

static void do_what_is_late(void)
{
    if (g.late && g.late_leader == g.leader && !is_reached(&g.late_wish)) {
        (void)change(&g.late_wish);
    }
    g.late = false;
}

enum err fake_ask_call(struct skv_client *client, const char *address,
                       net_method method, struct slice body,
                       uint32_t timeout_ms, struct arena *arena,
                       struct slice *out)
{
    (void)client;
    g.calls++;
    do_what_is_late();
    enum fault fault = fault_now();
    bool wish = method == RSM_METHOD_CHANGE;
    if (fault == MOVES) {
        lead(next_leader());
        g.moves++;
    }
    if (!serves(address)) {
        return ERR_CLOSED;
    }
    if (g.halted != 0 && strcmp(address, address_of(g.halted)) == 0) {
        g.now_ms += timeout_ms;
        return ERR_TIMEDOUT;
    }
    if (fault == LOST || (fault == LATE && !wish)) {
        g.now_ms += timeout_ms;
        return ERR_TIMEDOUT;
    }
    enum err rc = wish ? take_wish(address, body, fault == LATE)
                       : say_members(address, arena, out);
    return fault == UNHEARD ? ERR_CLOSED : rc;
}

/* One after the other. Who is silent is not waited for: cmd/ask.c. */
void fake_ask_many(struct skv_client *client, const struct ask_whom *whom,
                   uint32_t count, uint32_t timeout_ms, ask_answer_fn *answer,
                   void *arg)
{
    bool end = false;
    for (uint32_t i = 0; i < count && !end; i++) {
        struct arena arena = {0};
        struct slice out = {0};
        struct slice nothing = {0};
        enum err rc = fake_ask_call(client, whom[i].address, whom[i].method,
                                    nothing, timeout_ms, &arena, &out);
        end = rc != ERR_TIMEDOUT && answer(arg, i, rc, out);
        arena_free(&arena);
    }
}

enum err fake_ask_config(struct skv_client *client, uint64_t number,
                         uint32_t timeout_ms, struct arena *arena,
                         struct ctl_config *out)
{
    (void)client;
    (void)number;
    (void)timeout_ms;
    (void)arena;
    (void)out;
    return ERR_CLOSED;
}

uint64_t fake_now_ms(void)
{
    return g.now_ms;
}

int fake_nanosleep(const struct timespec *t, struct timespec *left)
{
    (void)left;
    g.now_ms += (uint64_t)t->tv_sec * 1000 + (uint64_t)t->tv_nsec / 1000000;
    return 0;
}

/* ---- the tests ---- */

struct step {
    enum rsm_change_kind kind;
    uint64_t id;
};
static const struct step steps[] = {
    {RSM_ADD, 4},      {RSM_PROMOTE, 3},
    {RSM_REMOVE, 2},   {RSM_REMOVE, 1}, /* which leads */
    {RSM_TRANSFER, 2}, {RSM_TRANSFER, 0},
};
enum { STEPS = sizeof steps / sizeof *steps };

/* Three, of whom the first leads; when one is to be promoted the third
 * learns. */
static void group_make(const struct step *s)
{
    memset(&g, 0, sizeof g);
    g.leader = 1;
    g.term = 1;
    g.last_id = 3;
    for (uint64_t id = 1; id <= 3; id++) {
        enter(id, s->kind == RSM_PROMOTE && id == 3 ? RSM_LEARNER : RSM_VOTER);
    }
}

/* As a command does that was begun just now, with all four in its
 * description. */
static bool give(const struct step *s)
{
    struct change *ch = test_calloc(1, sizeof *ch);
    ch->gid = GID;
    ch->c.replica_count = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct cluster_replica *r = &ch->c.replicas[i];
        r->gid = GID;
        r->id = i + 1;
        strcpy(r->address, address_of(r->id));
    }
    bool done = member_step(ch, s->kind, s->id, address_of(s->id));
    arena_free(&ch->arena);
    test_free(ch);
    return done;
}

static bool is_there(const struct step *s)
{
    const struct rsm_wish w = {.kind = (uint8_t)s->kind, .id = s->id};
    return s->kind == RSM_TRANSFER && s->id == 0 ? g.leader != g.first_leader
                                                 : is_reached(&w);
}

/* Leadership that somebody else takes may have to be moved again, or need not
 * be moved any more. Members are changed once. */
static void made_once(const struct step *s)
{
    assert_true(is_there(s));
    if (s->kind != RSM_TRANSFER) {
        assert_int_equal(g.changes, 1);
    } else {
        assert_in_range(g.changes, g.moves == 0 ? 1 : 0,
                        s->id == 0 ? 1 : 1 + g.moves);
    }
}

static void run(const struct step *s, uint32_t first, enum fault one,
                uint32_t second, enum fault other)
{
    group_make(s);
    g.fault_at[0] = first;
    g.faults[0] = one;
    g.fault_at[1] = second;
    g.faults[1] = other;
    assert_true(give(s));
    made_once(s);
    if (s->kind != RSM_TRANSFER) { /* that one moves on by itself */
        memset(g.fault_at, 0, sizeof g.fault_at);
        assert_true(give(s));
        made_once(s);
    }
}

/* Wrong if an answer that was lost makes the command do a thing twice: hand on
 * the leadership that it has handed over, or fail at a member that it has
 * added, or removed, itself. */
static void a_step_is_made_once_whatever_is_lost(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < STEPS; i++) {
        run(&steps[i], 0, NO_FAULT, 0, NO_FAULT);
        for (uint32_t first = 1; first <= CALLS; first++) {
            for (uint32_t second = first + 1; second <= CALLS + 1; second++) {
                for (uint32_t k = 0; k < FAULT_KINDS * FAULT_KINDS; k++) {
                    run(&steps[i], first, k / FAULT_KINDS, second,
                        k % FAULT_KINDS);
                }
            }
        }
    }
}

/* Wrong if a refusal is asked for until the minute is over. */
static void a_refusal_ends_the_step(void **state)
{
    (void)state;
    const struct step again = {RSM_ADD, 2}, nobody = {RSM_PROMOTE, 4};
    group_make(&again);
    leave(2);
    assert_false(give(&again)); /* its id was another's */
    assert_int_equal(g.wishes, 1);
    group_make(&nobody);
    assert_false(give(&nobody));
    assert_int_equal(g.wishes, 1);
    assert_int_equal(g.changes, 0);
}

/* Wrong if a command waits for ever, or floods a group that cannot answer. */
static void a_group_without_a_leader_is_given_up(void **state)
{
    (void)state;
    group_make(&steps[0]);
    g.leader = 4; /* who is none of it */
    assert_false(give(&steps[0]));
    assert_in_range(g.now_ms, 60000, 70000);
    assert_in_range(g.calls, 3, 1300);
    assert_int_equal(g.wishes, 0);
}

/* Wrong if a new replica is given up while it comes nearer, or never. */
static void one_that_catches_up_is_waited_for(void **state)
{
    (void)state;
    const struct step promote = {RSM_PROMOTE, 3};
    group_make(&promote);
    g.last_index = 200;
    g.match_step = 1;
    assert_true(give(&promote));
    assert_true(g.now_ms > 300000);
    assert_int_equal(g.changes, 1);
    group_make(&promote);
    g.last_index = 200;
    assert_false(give(&promote));
    assert_in_range(g.now_ms, 60000, 70000);
    assert_int_equal(g.changes, 0);
}

/* Wrong if a replica that is halted, and so makes each look at the group take
 * two seconds, makes a refusal take minutes; or if leadership is offered for a
 * minute to one that the leader knows to be silent. */
static void who_is_halted_costs_no_minute(void **state)
{
    (void)state;
    const struct step remove = {RSM_REMOVE, 3}, lead_3 = {RSM_TRANSFER, 3};
    group_make(&remove);
    lead(2);
    g.halted = 1;
    g.refuses = true;
    assert_false(give(&remove));
    assert_in_range(g.now_ms, 10000, 15000);
    group_make(&lead_3);
    g.halted = 3;
    g.silent_ms = 1000;
    assert_false(give(&lead_3));
    assert_in_range(g.now_ms, 2000, 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_made_once_whatever_is_lost),
        cmocka_unit_test(a_refusal_ends_the_step),
        cmocka_unit_test(a_group_without_a_leader_is_given_up),
        cmocka_unit_test(one_that_catches_up_is_waited_for),
        cmocka_unit_test(who_is_halted_costs_no_minute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
