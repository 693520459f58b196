/* The controller's methods, over an rsm that the test drives by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

/* The server's own calls to the rsm go to the fake below. */
#define rsm_new         fake_new
#define rsm_free        fake_free
#define rsm_propose     fake_propose
#define rsm_read        fake_read
#define rsm_read_local  fake_read_local
#define rsm_handle      fake_handle
#define rsm_peer_down   fake_peer_down
#define rsm_is_leader   fake_is_leader
#define rsm_status      fake_status
#define rsm_member_list fake_member_list
/* The struct of the same name is renamed with the function: in one file, both
 * sides agree. */
#include "shardctrler/server.c"
#include "shardctrler/status.c"

#include "base/rng.h"
#include "tests/lib/scripted_net.h"

#define MS     ((uint64_t)1000)
#define SECOND (1000 * MS)

struct rsm {
    struct rsm_config config;
    bool leader;
    struct rsm_proposal *proposals; /* oldest first */
    struct bytes *commands[16];
    uint32_t proposal_count;
    struct rsm_read *reads;
    size_t read_held; /* what the reads that ran said that they hold */
    raft_index index;
    uint32_t raft_messages;
};

static struct rsm *the_rsm;

enum err fake_new(const struct rsm_config *config, struct rsm **out)
{
    *out = the_rsm = mem_alloc(sizeof **out);
    (*out)->config = *config;
    return ERR_OK;
}

void fake_propose(struct rsm *r, struct rsm_proposal *p, struct bytes *command)
{
    struct rsm_proposal **at = &r->proposals;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    p->next = NULL;
    *at = p;
    r->commands[r->proposal_count++] = command;
}

void fake_read(struct rsm *r, struct rsm_read *rd)
{
    rd->next = r->reads;
    r->reads = rd;
}

void fake_read_local(struct rsm *r, struct rsm_read *rd)
{
    fake_read(r, rd);
}

void fake_handle(struct rsm *r, struct net_request *request,
                 const struct net_peer *peer, net_method method,
                 struct slice body)
{
    (void)request;
    (void)peer;
    (void)method;
    (void)body;
    r->raft_messages++;
}

void fake_peer_down(struct rsm *r, const char *address)
{
    (void)r;
    (void)address;
}

bool fake_is_leader(const struct rsm *r)
{
    return r->leader;
}

uint32_t fake_member_list(const struct rsm *r,
                          struct rsm_member members[RAFT_PEERS_MAX])
{
    (void)r;
    for (uint32_t i = 0; i < 3; i++) {
        members[i] = (struct rsm_member){.id = i + 1, .role = RSM_VOTER};
    }
    return 3;
}

void fake_status(const struct rsm *r, struct rsm_status *status)
{
    *status = (struct rsm_status){.applied = r->index};
    status->raft.leader = r->leader ? r->config.id : 0;
    status->raft.role = r->leader ? RAFT_LEADER : RAFT_FOLLOWER;
}

/* Everything waiting is applied, or ends with `rc`. */
static void pump(enum err rc)
{
    struct rsm *r = the_rsm;
    for (uint32_t i = 0; r->proposals != NULL; i++) {
        struct rsm_proposal *p = r->proposals;
        struct buf reply = {0};
        r->proposals = p->next;
        if (rc == ERR_OK) {
            struct rsm_entry e = {.index = ++r->index,
                                  .term = 1,
                                  .type = RAFT_ENTRY_COMMAND,
                                  .command = bytes_slice(r->commands[i]),
                                  .reply = &reply};
            assert_int_equal(r->config.fsm->ops->apply(r->config.fsm, &e, 1),
                             ERR_OK);
        }
        bytes_unref(r->commands[i]);
        p->done(p, rc, buf_slice(&reply));
        buf_free(&reply);
    }
    r->proposal_count = 0;
    if (rc == ERR_OK) {
        r->config.on_applied(r->config.arg);
    }
    while (r->reads != NULL) {
        struct rsm_read *rd = r->reads;
        r->reads = rd->next;
        if (rc == ERR_OK) {
            rd->run(rd);
            r->read_held += rd->held;
        }
        rd->done(rd, rc);
    }
}

void fake_free(struct rsm *r)
{
    pump(ERR_CLOSED);
    mem_free(r);
}

/* ---- the net's server side ---- */

struct net_request {
    uint32_t answers;
    enum err rc;
    struct buf body;
};

static void take_reply(struct net_request *request, enum err rc,
                       const struct slice *parts, uint32_t part_count)
{
    request->answers++;
    request->rc = rc;
    for (uint32_t i = 0; rc == ERR_OK && i < part_count; i++) {
        buf_append(&request->body, parts[i].data, parts[i].size);
    }
}

static enum err no_file(struct disk *d, const char *path, bool create,
                        struct disk_file **out)
{
    (void)d;
    (void)path;
    (void)create;
    (void)out;
    return ERR_NOTFOUND;
}

static const struct disk_ops disk_ops = {.open = no_file};
static const struct net_ops server_net_ops = {.reply = take_reply};

enum { GROUP = 7 }; /* of a server that asks */

struct world {
    struct sn sn;
    struct net net;
    struct disk disk;
    struct ctl_replica *replica;
};

static void world_init(struct world *w)
{
    *w = (struct world){.net = {.ops = &server_net_ops},
                        .disk = {.ops = &disk_ops}};
    sn_init(&w->sn, 3);
    struct ctl_server_config config = {
        .env = &w->sn.env,
        .net = &w->net,
        .disk = &w->disk,
        .id = 1,
        .peers = {{1, "c1:1"}, {2, "c2:1"}, {3, "c3:1"}},
        .peer_count = 3,
        .shard_count = 16,
    };
    assert_int_equal(ctl_replica_new(&config, &w->replica), ERR_OK);
}

static void world_lead(bool leader)
{
    the_rsm->leader = leader;
    the_rsm->config.on_leader(the_rsm->config.arg, leader);
}

/* With its first configuration founded. */
static void world_found(struct world *w)
{
    world_init(w);
    world_lead(true);
    pump(ERR_OK);
}

static void world_fini(struct world *w)
{
    ctl_replica_free(w->replica);
    assert_null(w->net.handler);
    sn_fini(&w->sn);
}

static void ask(struct world *w, struct net_request *q, enum net_role role,
                net_method method, struct slice body)
{
    struct net_peer peer = {.role = role,
                            .group = role == NET_ROLE_SERVER ? GROUP : 0,
                            .name = "test"};
    buf_free(&q->body);
    *q = (struct net_request){0};
    w->net.handler(w->net.handler_arg, q, &peer, method, body);
}

static void query(struct world *w, struct net_request *q, uint64_t number,
                  uint32_t wait_ms)
{
    struct buf b = {0};
    struct ctl_query m = {.number = number, .wait_ms = wait_ms};
    ctl_query_encode(&b, &m);
    ask(w, q, NET_ROLE_CLIENT, CTL_METHOD_QUERY, buf_slice(&b));
    buf_free(&b);
}

static void join(struct world *w, struct net_request *q, enum net_role role,
                 uint64_t sequence)
{
    struct buf b = {0};
    struct ctl_server s = {.id = 1, .address = slice_text("127.0.0.1:7001")};
    struct ctl_group g = {
        .gid = (ctl_gid)sequence, .servers = &s, .servers_count = 1};
    struct ctl_change c = {.session = 5,
                           .sequence = sequence,
                           .kind = CTL_JOIN,
                           .join = &g,
                           .join_count = 1};
    ctl_change_encode(&b, &c);
    ask(w, q, role, CTL_METHOD_CHANGE, buf_slice(&b));
    buf_free(&b);
}

static uint64_t config_number(struct net_request *q)
{
    struct arena a = {0};
    struct ctl_config c;
    assert_int_equal(q->answers, 1);
    assert_int_equal(q->rc, ERR_OK);
    assert_int_equal(ctl_config_decode(buf_slice(&q->body), &a, &c), ERR_OK);
    assert_int_equal(c.shards_count, 16);
    uint64_t number = c.number;
    arena_free(&a);
    return number;
}

/* ---- tests ---- */

static void the_first_leader_founds_the_cluster_once(void **state)
{
    (void)state;
    struct world w;
    struct net_request q = {0};
    world_init(&w);
    assert_null(the_rsm->proposals);
    world_lead(true);
    assert_non_null(the_rsm->proposals);
    pump(ERR_NOTLEADER); /* lost: by its timer it tries again while it leads */
    sn_run(&w.sn, SECOND);
    assert_non_null(the_rsm->proposals);
    query(&w, &q, CTL_LATEST, 0);
    pump(ERR_OK);
    assert_int_equal(config_number(&q), 0);
    world_lead(false);
    world_lead(true);
    assert_null(the_rsm->proposals);
    buf_free(&q.body);
    world_fini(&w);
}

/* Else many who ask at once make us hold all their answers (rsm/read.c). */
static void what_an_answer_holds_is_told(void **state)
{
    (void)state;
    struct world w;
    struct net_request q = {0};
    world_found(&w);
    query(&w, &q, CTL_LATEST, 0);
    the_rsm->read_held = 0;
    pump(ERR_OK);
    assert_true(q.body.size > 0 && the_rsm->read_held >= q.body.size);
    ask(&w, &q, NET_ROLE_CLIENT, CTL_METHOD_MOUNTS, slice_of(NULL, 0));
    the_rsm->read_held = 0;
    pump(ERR_OK);
    assert_true(q.body.size > 0 && the_rsm->read_held >= q.body.size);
    buf_free(&q.body);
    world_fini(&w);
}

static void only_admins_and_servers_may_change(void **state)
{
    (void)state;
    struct world w;
    struct net_request q = {0};
    world_found(&w);
    join(&w, &q, NET_ROLE_CLIENT, 1);
    assert_int_equal(q.rc, ERR_DENIED);
    join(&w, &q, NET_ROLE_SERVER, 1);
    assert_int_equal(q.rc, ERR_DENIED);
    join(&w, &q, NET_ROLE_NONE, 1);
    assert_int_equal(q.rc, ERR_DENIED);
    ask(&w, &q, NET_ROLE_NONE, CTL_METHOD_STATUS, slice_of(NULL, 0));
    assert_int_equal(q.rc, ERR_DENIED);
    assert_null(the_rsm->proposals);
    join(&w, &q, NET_ROLE_ADMIN, 1);
    assert_int_equal(q.answers, 0);
    pump(ERR_OK);
    struct ctl_changed changed;
    assert_int_equal(ctl_changed_decode(buf_slice(&q.body), NULL, &changed),
                     ERR_OK);
    assert_int_equal(changed.rc, ERR_OK);
    assert_int_equal(changed.number, 1);
    join(&w, &q, NET_ROLE_ADMIN, 2);
    pump(ERR_NOTLEADER);
    assert_int_equal(q.rc, ERR_NOTLEADER);
    buf_free(&q.body);
    world_fini(&w);
}

/* Wrong if it was answered early, twice, or never. */
static void a_query_waits_for_its_configuration(void **state)
{
    (void)state;
    struct world w;
    struct net_request q[4] = {{0}};
    struct net_request change = {0};
    world_found(&w);
    query(&w, &q[0], 1, 5000);
    query(&w, &q[1], 2, 5000);
    query(&w, &q[2], 1, 0);
    pump(ERR_OK);
    assert_int_equal(q[0].answers, 0);
    assert_int_equal(q[2].rc, ERR_NOTFOUND);
    join(&w, &change, NET_ROLE_ADMIN, 1);
    pump(ERR_OK);
    assert_int_equal(config_number(&q[0]), 1);
    assert_int_equal(q[1].answers, 0);
    sn_run(&w.sn, 6 * SECOND);
    assert_int_equal(q[1].answers, 1);
    assert_int_equal(q[1].rc, ERR_NOTFOUND);
    query(&w, &q[3], 2, 5000);
    pump(ERR_OK);
    world_lead(false);
    assert_int_equal(q[3].answers, 1);
    assert_int_equal(q[3].rc, ERR_NOTLEADER);
    world_lead(true);
    query(&w, &q[3], 2, 5000);
    pump(ERR_OK);
    world_fini(&w);
    assert_int_equal(q[3].rc, ERR_CLOSED);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(q[i].answers, 1);
        buf_free(&q[i].body);
    }
    buf_free(&change.body);
}

static void the_waiting_are_bounded(void **state)
{
    (void)state;
    enum { COUNT = 4100 };
    struct world w;
    world_found(&w);
    struct net_request *q = mem_array(COUNT, sizeof *q);
    uint32_t busy = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        query(&w, &q[i], 9, 5000);
    }
    pump(ERR_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        busy += q[i].answers == 1 && q[i].rc == ERR_BUSY;
    }
    assert_int_equal(busy, 4);
    world_fini(&w);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(q[i].answers, 1);
    }
    mem_free(q);
}

static void mounts_say_hello_and_are_listed(void **state)
{
    (void)state;
    struct world w;
    struct net_request q = {0};
    struct buf b = {0};
    struct arena a = {0};
    struct ctl_mounts mounts;
    struct ctl_mount m = {.session = 9,
                          .host = slice_text("host"),
                          .path = slice_text("/mnt"),
                          .pid = 12};
    world_found(&w);
    ctl_mount_encode(&b, &m);
    ask(&w, &q, NET_ROLE_CLIENT, CTL_METHOD_MOUNT, buf_slice(&b));
    pump(ERR_OK);
    assert_int_equal(q.rc, ERR_OK);
    assert_int_equal(q.body.size, 0);
    ask(&w, &q, NET_ROLE_CLIENT, CTL_METHOD_MOUNTS, slice_of(NULL, 0));
    pump(ERR_OK);
    assert_int_equal(ctl_mounts_decode(buf_slice(&q.body), &a, &mounts),
                     ERR_OK);
    assert_int_equal(mounts.mounts_count, 1);
    assert_int_equal(mounts.mounts[0].pid, 12);
    m.session = 0;
    buf_clear(&b);
    ctl_mount_encode(&b, &m);
    ask(&w, &q, NET_ROLE_CLIENT, CTL_METHOD_MOUNT, buf_slice(&b));
    assert_int_equal(q.rc, ERR_INVALID);
    buf_free(&b);
    buf_free(&q.body);
    arena_free(&a);
    world_fini(&w);
}

static void status_says_what_is_wrong(void **state)
{
    (void)state;
    struct world w;
    struct net_request q = {0};
    struct arena a = {0};
    struct ctl_status s;
    world_init(&w);
    ask(&w, &q, NET_ROLE_CLIENT, CTL_METHOD_STATUS, slice_of(NULL, 0));
    assert_int_equal(ctl_status_decode(buf_slice(&q.body), &a, &s), ERR_OK);
    assert_int_equal(s.peers_count, 3);
    assert_int_equal(s.leader, 0);
    assert_memory_equal(s.problem.data, "no leader", 9);
    buf_free(&q.body);
    arena_free(&a);
    world_fini(&w);
}

static uint32_t heard(struct world *w, uint64_t *ago_ms)
{
    struct net_request q = {0};
    struct arena a = {0};
    struct ctl_status s;
    ask(w, &q, NET_ROLE_CLIENT, CTL_METHOD_STATUS, slice_of(NULL, 0));
    assert_int_equal(ctl_status_decode(buf_slice(&q.body), &a, &s), ERR_OK);
    for (uint32_t i = 0; i < s.heard_count; i++) {
        assert_int_equal(s.heard[i].gid, GROUP);
        *ago_ms = s.heard[i].ago_ms;
    }
    uint32_t count = s.heard_count;
    buf_free(&q.body);
    arena_free(&a);
    return count;
}

static void query_as_server(struct world *w)
{
    struct net_request q = {0};
    struct buf b = {0};
    struct ctl_query m = {.number = CTL_LATEST};
    ctl_query_encode(&b, &m);
    ask(w, &q, NET_ROLE_SERVER, CTL_METHOD_QUERY, buf_slice(&b));
    pump(the_rsm->leader ? ERR_OK : ERR_NOTLEADER);
    buf_free(&q.body);
    buf_free(&b);
}

/* Wrong if a group's silence counts from elsewhere than its last question, or
 * one is listed twice, or a controller that does not lead says anything. */
static void status_says_since_when_a_group_is_silent(void **state)
{
    (void)state;
    struct world w;
    struct net_request q = {0};
    uint64_t ago_ms = 0;
    world_found(&w);
    query(&w, &q, CTL_LATEST, 0);
    pump(ERR_OK);
    assert_int_equal(heard(&w, &ago_ms), 0); /* a client is no group */
    query_as_server(&w);
    w.sn.now_us += 3000000;
    query_as_server(&w);
    w.sn.now_us += 2000000;
    assert_int_equal(heard(&w, &ago_ms), 1);
    assert_int_equal(ago_ms, 2000);
    world_lead(false);
    query_as_server(&w); /* who leads knows better */
    assert_int_equal(heard(&w, &ago_ms), 1);
    assert_int_equal(ago_ms, 2000);
    buf_free(&q.body);
    world_fini(&w);
}

/* Wrong if bytes of a stranger are believed, or a call stays unanswered. */
static void any_bytes_may_be_in_a_call(void **state)
{
    (void)state;
    struct world w;
    struct rng r = {.state = 8};
    world_found(&w);
    for (uint32_t i = 0; i < 20000; i++) {
        struct net_request q = {0};
        uint8_t bytes[48];
        size_t size = rng_below(&r, sizeof bytes);
        for (size_t k = 0; k < size; k++) {
            bytes[k] = (uint8_t)(rng_next(&r) % 3);
        }
        net_method method = (net_method)(CTL_METHOD_QUERY + i % 6);
        ask(&w, &q, NET_ROLE_ADMIN, method, slice_of(bytes, size));
        pump(ERR_OK);
        sn_run(&w.sn, 70 * SECOND);
        assert_int_equal(q.answers, 1);
        buf_free(&q.body);
    }
    struct net_peer peer = {.role = NET_ROLE_ADMIN};
    w.net.handler(w.net.handler_arg, NULL, &peer, CTL_METHOD_QUERY,
                  slice_of(NULL, 0));
    w.net.handler(w.net.handler_arg, NULL, &peer, RSM_METHOD_RAFT,
                  slice_of(NULL, 0));
    assert_int_equal(the_rsm->raft_messages, 1);
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_leader_founds_the_cluster_once),
        cmocka_unit_test(what_an_answer_holds_is_told),
        cmocka_unit_test(only_admins_and_servers_may_change),
        cmocka_unit_test(a_query_waits_for_its_configuration),
        cmocka_unit_test(the_waiting_are_bounded),
        cmocka_unit_test(mounts_say_hello_and_are_listed),
        cmocka_unit_test(status_says_what_is_wrong),
        cmocka_unit_test(status_says_since_when_a_group_is_silent),
        cmocka_unit_test(any_bytes_may_be_in_a_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
