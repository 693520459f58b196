/* Three replicas on the real loop, with real workers and real files, for the
 * thread sanitizer; the network is a timer. What is checked in depth on virtual
 * time is only run through here: many proposals and reads, a follower that
 * needs a snapshot, and a restart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"
#include "rsm/rsm.h"
#include "transport/loop.h"

enum { NODES = 3, CLIENTS = 64, WRITES = 6000 };

struct node {
    struct net net;
    struct rsm_fsm fsm;
    uint32_t at;
    bool cut;
    struct disk *disk;
    struct rsm *rsm;
    /* The state machine: a sum, and a count; the apply worker's. */
    struct state {
        uint64_t sum, count;
        raft_index index;
        raft_term term;
    } now, stored;
    uint32_t installs;
};

static struct net_loop *loop;
static struct env *env;
static struct node nodes[NODES];

/* --- The network: a packet is a timer */

struct net_request {
    uint32_t from, to;
    net_reply_fn *reply;
    void *arg;
    uint64_t number;
};

struct packet {
    struct env_timer timer;
    uint32_t from, to;
    net_method method;
    struct net_request *request;
    bool is_reply;
    enum err rc;
    struct buf body;
    struct packet *next, **link;
};

static struct packet *packets;
static uint64_t cancelled[1024];
static uint32_t cancelled_count;
static uint64_t call_number;

static struct node *node_of(struct net *net)
{
    return (struct node *)((char *)net - offsetof(struct node, net));
}

static bool is_cancelled(uint64_t number)
{
    for (uint32_t i = 0; i < cancelled_count; i++) {
        if (cancelled[i] == number) {
            return true;
        }
    }
    return false;
}

static void packet_free(struct packet *p)
{
    *p->link = p->next;
    if (p->next != NULL) {
        p->next->link = p->link;
    }
    buf_free(&p->body);
    mem_free(p);
}

static void deliver(struct packet *p)
{
    struct net_request *request = p->request;
    bool lost =
        nodes[p->from].cut || nodes[p->to].cut || nodes[p->to].rsm == NULL;
    if (p->is_reply || (lost && request != NULL)) {
        if (!is_cancelled(request->number)) {
            request->reply(request->arg, lost ? ERR_TIMEDOUT : p->rc,
                           buf_slice(&p->body));
        }
        mem_free(request);
    } else if (!lost) {
        struct net_peer peer = {
            .role = NET_ROLE_SERVER, .group = 1, .name = "test"};
        rsm_handle(nodes[p->to].rsm, request, &peer, p->method,
                   buf_slice(&p->body));
    }
}

static void on_packet(struct env_timer *t)
{
    struct packet *p = (struct packet *)t;
    deliver(p);
    packet_free(p);
}

static struct packet *packet_new(uint32_t from, uint32_t to,
                                 const struct slice *parts, uint32_t count)
{
    struct packet *p = mem_alloc(sizeof *p);
    p->timer.fire = on_packet;
    p->from = from;
    p->to = to;
    for (uint32_t i = 0; i < count; i++) {
        buf_append(&p->body, parts[i].data, parts[i].size);
    }
    p->next = packets;
    p->link = &packets;
    if (packets != NULL) {
        packets->link = &p->next;
    }
    packets = p;
    env_timer_start(env, &p->timer, 100);
    return p;
}

static void n_send(struct net *net, const char *address, net_method method,
                   const struct slice *parts, uint32_t part_count)
{
    struct packet *p = packet_new(
        node_of(net)->at, (uint32_t)(address[0] - '1'), parts, part_count);
    p->method = method;
}

static uint64_t n_call(struct net *net, const char *address, net_method method,
                       const struct slice *parts, uint32_t part_count,
                       uint32_t timeout_ms, net_reply_fn *reply, void *arg)
{
    (void)timeout_ms;
    struct packet *p = packet_new(
        node_of(net)->at, (uint32_t)(address[0] - '1'), parts, part_count);
    p->method = method;
    p->request = mem_alloc(sizeof *p->request);
    *p->request = (struct net_request){.from = p->from,
                                       .to = p->to,
                                       .reply = reply,
                                       .arg = arg,
                                       .number = ++call_number};
    return call_number;
}

static void n_cancel(struct net *net, uint64_t call)
{
    (void)net;
    CHECK(cancelled_count < 1024);
    cancelled[cancelled_count++] = call;
}

static void n_reply(struct net_request *request, enum err rc,
                    const struct slice *parts, uint32_t part_count)
{
    struct packet *p = packet_new(request->to, request->from, parts,
                                  rc == ERR_OK ? part_count : 0);
    p->is_reply = true;
    p->rc = rc;
    p->request = request;
}

static size_t n_queued(struct net *net, const char *address)
{
    (void)net;
    (void)address;
    return 0;
}

static const struct net_ops net_ops = {.call = n_call,
                                       .cancel = n_cancel,
                                       .send = n_send,
                                       .reply = n_reply,
                                       .queued = n_queued};

/* --- The state machine */

static struct node *node_of_fsm(struct rsm_fsm *fsm)
{
    return (struct node *)((char *)fsm - offsetof(struct node, fsm));
}

static raft_index s_durable(struct rsm_fsm *fsm, raft_term *term)
{
    *term = node_of_fsm(fsm)->stored.term;
    return node_of_fsm(fsm)->stored.index;
}

static enum err s_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                        uint32_t count)
{
    struct state *s = &node_of_fsm(fsm)->now;
    for (uint32_t i = 0; i < count; i++) {
        CHECK(entries[i].index == s->index + 1);
        s->index = entries[i].index;
        s->term = entries[i].term;
        if (entries[i].type == RAFT_ENTRY_COMMAND) {
            s->sum += get_u64(entries[i].command.data);
            s->count++;
        }
        if (entries[i].reply != NULL) {
            enc_u64(entries[i].reply, s->count);
        }
    }
    return ERR_OK;
}

static enum err s_checkpoint(struct rsm_fsm *fsm)
{
    node_of_fsm(fsm)->stored = node_of_fsm(fsm)->now;
    return ERR_OK;
}

static enum err s_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct state *copy = mem_alloc(sizeof *copy);
    *copy = node_of_fsm(fsm)->now;
    *view = copy;
    return ERR_OK;
}

static enum err s_snap_read(struct rsm_fsm *fsm, void *view,
                            struct snap_sink *sink)
{
    (void)fsm;
    return sink->write(sink, slice_of(view, sizeof(struct state)));
}

static void s_snap_end(struct rsm_fsm *fsm, void *view)
{
    (void)fsm;
    mem_free(view);
}

static enum err s_snap_install(struct rsm_fsm *fsm, struct snap_source *source,
                               raft_index index, raft_term term)
{
    struct node *n = node_of_fsm(fsm);
    struct state s;
    size_t got = 0;
    enum err rc = source->read(source, &s, sizeof s, &got);
    if (rc == ERR_OK) {
        CHECK(got == sizeof s && s.index == index && s.term == term);
        rc = source->read(source, &got, 1, &got);
    }
    if (rc == ERR_OK) {
        n->now = n->stored = s;
        n->installs++;
    }
    return rc;
}

static const struct rsm_fsm_ops fsm_ops = {.durable = s_durable,
                                           .apply = s_apply,
                                           .checkpoint = s_checkpoint,
                                           .snap_begin = s_snap_begin,
                                           .snap_read = s_snap_read,
                                           .snap_end = s_snap_end,
                                           .snap_install = s_snap_install};

/* --- Clients: each writes, then reads, over and over. A machine that stands
 * still may cost the leader its office: then, and only then, they fail, and go
 * on with the next one. */

struct client {
    struct rsm_proposal proposal;
    struct rsm_read read;
    struct node *node; /* which it asks */
    raft_term term;    /* of that leader */
    bool idle;         /* until there is a leader */
    uint64_t count;    /* from the last write's reply */
    uint64_t seen;
};

static struct client clients[CLIENTS];
/* That were tried; those of them that are done or under way; reads done. */
static uint32_t tries, writes, reads;
static struct env_timer pace;

static struct node *leader(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        if (nodes[i].rsm != NULL && !nodes[i].cut &&
            rsm_is_leader(nodes[i].rsm)) {
            return &nodes[i];
        }
    }
    return NULL;
}

static void client_write(struct client *c, struct node *n)
{
    struct rsm_status status;
    struct bytes *command = bytes_new(8 + writes % 500);
    memset(command->data, 0, command->size);
    set_u64(command->data, 1);
    rsm_status(n->rsm, &status);
    c->idle = false;
    c->node = n;
    c->term = status.raft.term;
    tries++;
    writes++;
    rsm_propose(n->rsm, &c->proposal, command);
}

/* Wrong if that leader still leads. */
static void client_failed(struct client *c)
{
    struct rsm_status status;
    rsm_status(c->node->rsm, &status);
    assert_true(status.raft.term != c->term || status.raft.role != RAFT_LEADER);
    c->idle = true;
    writes--;
}

static void on_read_run(struct rsm_read *rd)
{
    struct client *c =
        (struct client *)((char *)rd - offsetof(struct client, read));
    c->seen = c->node->now.count;
}

static void on_read_done(struct rsm_read *rd, enum err rc)
{
    struct client *c =
        (struct client *)((char *)rd - offsetof(struct client, read));
    if (rc != ERR_OK) {
        client_failed(c);
        return;
    }
    assert_true(c->seen >= c->count);
    reads++;
    c->idle = true;
    if (reads == WRITES) {
        net_loop_stop(loop);
    } else if (writes < WRITES) {
        client_write(c, c->node);
    }
}

static void on_write_done(struct rsm_proposal *p, enum err rc,
                          struct slice reply)
{
    struct client *c = (struct client *)p;
    if (rc != ERR_OK) {
        client_failed(c);
        return;
    }
    c->count = get_u64(reply.data);
    rsm_read(c->node->rsm, &c->read);
}

/* Those that are idle go on, with whoever leads now. The first time one of the
 * others is cut off, so that it needs a snapshot later. */
static void turn_clients(struct env_timer *t)
{
    struct node *n = leader();
    if (n != NULL && tries == 0) {
        nodes[(n->at + 1) % NODES].cut = true;
    }
    for (uint32_t i = 0; i < CLIENTS && n != NULL; i++) {
        if (clients[i].idle && writes < WRITES) {
            client_write(&clients[i], n);
        }
    }
    env_timer_start(env, t, 10000);
}

static void start_clients(struct env_timer *t)
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i].proposal.done = on_write_done;
        clients[i].read.run = on_read_run;
        clients[i].read.done = on_read_done;
        clients[i].idle = true;
    }
    t->fire = turn_clients;
    turn_clients(t);
}

static void await_equal(struct env_timer *t)
{
    struct rsm_status status[NODES];
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].cut = false;
        rsm_status(nodes[i].rsm, &status[i]);
    }
    if (status[0].applied == status[1].applied &&
        status[0].applied == status[2].applied && leader() != NULL &&
        status[0].applied > WRITES) {
        net_loop_stop(loop);
    } else {
        env_timer_start(env, t, 10000);
    }
}

/* --- The cluster */

static void start_node(uint32_t at, const char *root)
{
    char dir[256];
    snprintf(dir, sizeof dir, "%s/%u", root, at);
    struct node *n = &nodes[at];
    n->net.ops = &net_ops;
    n->fsm.ops = &fsm_ops;
    n->at = at;
    n->now = n->stored;
    assert_int_equal(disk_real_open(dir, &n->disk), ERR_OK);
    struct disk *second = NULL;
    assert_int_equal(disk_real_open(dir, &second), ERR_BUSY);
    struct rsm_config config = {
        .env = env,
        .net = &n->net,
        .disk = n->disk,
        .fsm = &n->fsm,
        .group = 1,
        .id = at + 1,
        .peers = {{1, "1"}, {2, "2"}, {3, "3"}},
        .peer_count = NODES,
        .wal_segment_size = 256 << 10,
        .checkpoint_size_max = 100 << 10,
        .checkpoint_ms_max = 200,
        .log_keep_size = 50 << 10,
        .log_hold_size = 1, /* who is behind is sent a snapshot */
        .snap_piece_size = 4096,
    };
    assert_int_equal(rsm_new(&config, &n->rsm), ERR_OK);
}

static void stop_all(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        rsm_free(nodes[i].rsm);
        nodes[i].rsm = NULL;
        disk_real_close(nodes[i].disk);
    }
    while (packets != NULL) {
        env_timer_stop(env, &packets->timer);
        mem_free(packets->request);
        packet_free(packets);
    }
    cancelled_count = 0;
}

static void run_with(void (*fire)(struct env_timer *t))
{
    pace = (struct env_timer){.fire = fire};
    env_timer_start(env, &pace, 0);
    net_loop_run(loop);
    env_timer_stop(env, &pace);
}

static void test_on_real_threads(void **state)
{
    (void)state;
    char root[] = "/tmp/test_rsm_XXXXXX";
    assert_non_null(mkdtemp(root));
    assert_int_equal(net_loop_new(&loop), ERR_OK);
    env = net_loop_env(loop);
    for (uint32_t i = 0; i < NODES; i++) {
        start_node(i, root);
    }
    uint64_t begin = env_now_us(env);
    run_with(start_clients);
    printf("%u writes and reads, %u tries, in %u ms\n", WRITES, tries,
           (unsigned)((env_now_us(env) - begin) / 1000));
    run_with(await_equal);
    uint32_t installs = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        installs += nodes[i].installs;
    }
    assert_true(installs >= 1);
    stop_all();

    /* A write that failed may have been done all the same. */
    uint64_t sum = nodes[0].now.sum;
    assert_in_range(sum, WRITES, tries);
    for (uint32_t i = 0; i < NODES; i++) {
        assert_int_equal(nodes[i].now.sum, sum);
        start_node(i, root);
    }
    run_with(await_equal);
    stop_all();
    for (uint32_t i = 0; i < NODES; i++) {
        assert_int_equal(nodes[i].now.sum, sum);
    }
    net_loop_free(loop);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    log_set_level(LOG_LEVEL_OFF);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_on_real_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
