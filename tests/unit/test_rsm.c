/* Three replicas in one thread: virtual time, a network that can lose and cut,
 * disks that forget what was not synced, and a state machine that is a list of
 * numbers. What was acknowledged is in every list, once, at the place that the
 * answer named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/log.h"
#include "base/rng.h"
#include "rsm/rsm.h"
#include "tests/lib/faultdisk.h"

enum { NODES = 3, GROUP = 7, PAD = 200 };

/* --- Virtual time */

struct event {
    uint64_t at_us;
    uint64_t order;
    void (*fire)(void *arg);
    void *arg;
    struct event *next;
};

static struct {
    uint64_t now_us;
    uint64_t order;
    uint64_t fired;       /* events so far */
    struct event *events; /* by time */
    struct rng rng;
} world;

static struct event *schedule(uint64_t delay_us, void (*fire)(void *arg),
                              void *arg)
{
    struct event *e = mem_alloc(sizeof *e);
    *e = (struct event){.at_us = world.now_us + delay_us,
                        .order = world.order++,
                        .fire = fire,
                        .arg = arg};
    struct event **at = &world.events;
    while (*at != NULL && (*at)->at_us <= e->at_us) {
        at = &(*at)->next;
    }
    e->next = *at;
    *at = e;
    return e;
}

static void unschedule(struct event *e)
{
    struct event **at = &world.events;
    while (*at != e) {
        at = &(*at)->next;
    }
    *at = e->next;
    mem_free(e);
}

static bool run_one(void)
{
    struct event *e = world.events;
    if (e == NULL) {
        return false;
    }
    world.events = e->next;
    world.now_us = e->at_us;
    world.fired++;
    void (*fire)(void *) = e->fire;
    void *arg = e->arg;
    mem_free(e);
    fire(arg);
    return true;
}

static void run_ms(uint64_t ms)
{
    uint64_t until = world.now_us + ms * 1000;
    while (world.events != NULL && world.events->at_us <= until) {
        run_one();
    }
    world.now_us = until;
}

/* --- The env of one replica */

static uint32_t slow_per_mille;          /* jobs that take long */
static uint64_t apply_us, checkpoint_us; /* these workers' take so much more */

struct env_worker {
    struct node *node;
    bool is_wal;
    const uint64_t *more_us;
    struct env_job *head, *tail;
    struct event *event; /* the next run or done */
};

struct node {
    struct env env;
    struct net net;
    struct rsm_fsm fsm;
    uint32_t at; /* index of this node */
    struct rsm *rsm;
    struct faultdisk *disk;
    bool fatal;
    bool cut; /* from the network */
    bool leader;
    uint32_t leader_calls;
    uint32_t brief_syncs; /* jobs of "wal" that the loop might run itself */
    uint64_t sent_in, brief_in; /* of `fired`: the last time */

    /* The state machine: now, and on its disk. */
    struct list {
        uint64_t *numbers;
        uint32_t count, capacity;
        raft_index index;
        raft_term term;
    } now, stored, frozen;
    uint32_t installs;
    uint32_t snapshots;
};

static struct node nodes[NODES];

static uint64_t t_now_us(struct env *env)
{
    (void)env;
    return world.now_us;
}

static void timer_fire(void *arg)
{
    struct env_timer *t = arg;
    t->impl = NULL;
    t->fire(t);
}

static void t_timer_stop(struct env *env, struct env_timer *t)
{
    (void)env;
    if (t->impl != NULL) {
        unschedule(t->impl);
        t->impl = NULL;
    }
}

static void t_timer_start(struct env *env, struct env_timer *t,
                          uint64_t delay_us)
{
    t_timer_stop(env, t);
    t->impl = schedule(delay_us, timer_fire, t);
}

static struct env_worker *t_worker_new(struct env *env, const char *name)
{
    struct env_worker *w = mem_alloc(sizeof *w);
    w->node = (struct node *)env;
    w->is_wal = strcmp(name, "wal") == 0;
    static const uint64_t nothing;
    w->more_us = strcmp(name, "apply") == 0        ? &apply_us
                 : strcmp(name, "checkpoint") == 0 ? &checkpoint_us
                                                   : &nothing;
    return w;
}

static void worker_next(struct env_worker *w);

static void job_done(void *arg)
{
    struct env_worker *w = arg;
    struct env_job *job = w->head;
    w->event = NULL;
    w->head = job->next;
    if (job->done != NULL) {
        job->done(job);
    }
    worker_next(w);
}

static void job_run(void *arg)
{
    struct env_worker *w = arg;
    if (w->head->run != NULL) {
        w->head->run(w->head);
    }
    w->event = schedule(rng_below(&world.rng, 300), job_done, w);
}

static void worker_next(struct env_worker *w)
{
    if (w->head != NULL && w->event == NULL) {
        uint64_t delay_us = rng_below(&world.rng, 1000);
        if (rng_chance(&world.rng, slow_per_mille)) {
            delay_us *= 30;
        }
        w->event = schedule(delay_us + *w->more_us, job_run, w);
    }
}

static void t_worker_submit(struct env_worker *w, struct env_job *job)
{
    job->next = NULL;
    if (w->head != NULL) {
        w->tail->next = job;
    } else {
        w->head = job;
    }
    w->tail = job;
    worker_next(w);
}

static void t_worker_submit_brief(struct env_worker *w, struct env_job *job)
{
    w->node->brief_syncs += w->is_wal;
    w->node->brief_in = w->is_wal ? world.fired : w->node->brief_in;
    t_worker_submit(w, job);
}

static void t_worker_free(struct env_worker *w)
{
    while (w->event != NULL) {
        void (*fire)(void *) = w->event->fire;
        unschedule(w->event);
        w->event = NULL;
        fire(w);
    }
    CHECK(w->head == NULL);
    mem_free(w);
}

static void t_fatal(struct env *env, const char *words)
{
    (void)words;
    ((struct node *)env)->fatal = true;
}

static uint64_t t_random(struct env *env)
{
    (void)env;
    return rng_next(&world.rng);
}

static const struct env_ops env_ops = {
    .now_us = t_now_us,
    .wall_us = t_now_us,
    .timer_start = t_timer_start,
    .timer_stop = t_timer_stop,
    .worker_new = t_worker_new,
    .worker_submit = t_worker_submit,
    .worker_submit_brief = t_worker_submit_brief,
    .worker_free = t_worker_free,
    .fatal = t_fatal,
    .random = t_random,
};

/* --- The network */

struct net_request {
    uint64_t call;
};

struct call {
    uint64_t number;
    net_reply_fn *reply;
    void *arg;
    struct call *next;
};

struct packet {
    uint32_t from, to;
    net_method method;
    uint64_t call; /* 0: one way */
    bool is_reply;
    enum err rc;
    struct buf body;
};

static struct call *calls;
static uint64_t call_number;
static uint32_t loss_per_mille;
static enum net_role sender_role = NET_ROLE_SERVER;
static uint32_t sender_group = GROUP;

static struct node *node_of_net(struct net *net)
{
    return (struct node *)((char *)net - offsetof(struct node, net));
}

static bool take_call(uint64_t number, struct call *out)
{
    for (struct call **at = &calls; *at != NULL; at = &(*at)->next) {
        if ((*at)->number == number) {
            struct call *c = *at;
            *out = *c;
            *at = c->next;
            mem_free(c);
            return true;
        }
    }
    return false;
}

static void end_call(uint64_t number, enum err rc, struct slice body)
{
    struct call c;
    if (take_call(number, &c)) {
        c.reply(c.arg, rc, body);
    }
}

static void packet_arrive(void *arg)
{
    struct packet *p = arg;
    struct node *to = &nodes[p->to];
    struct node *from = &nodes[p->from];
    if (to->cut || from->cut || to->rsm == NULL) {
        /* lost; a call finds out by its timeout */
    } else if (p->is_reply) {
        end_call(p->call, p->rc, buf_slice(&p->body));
    } else {
        struct net_request *request = NULL;
        struct net_peer peer = {
            .role = sender_role, .group = sender_group, .name = "test"};
        if (p->call != 0) {
            request = mem_alloc(sizeof *request);
            request->call =
                p->call | (uint64_t)p->to << 60 | (uint64_t)p->from << 56;
        }
        rsm_handle(to->rsm, request, &peer, p->method, buf_slice(&p->body));
    }
    buf_free(&p->body);
    mem_free(p);
}

static void send_packet(struct packet p, const struct slice *parts,
                        uint32_t part_count)
{
    if (nodes[p.from].cut || rng_chance(&world.rng, loss_per_mille)) {
        return;
    }
    struct packet *copy = mem_alloc(sizeof *copy);
    *copy = p;
    for (uint32_t i = 0; i < part_count; i++) {
        buf_append(&copy->body, parts[i].data, parts[i].size);
    }
    schedule(100 + rng_below(&world.rng, 900), packet_arrive, copy);
}

static void t_send(struct net *net, const char *address, net_method method,
                   const struct slice *parts, uint32_t part_count)
{
    struct packet p = {.from = node_of_net(net)->at,
                       .to = (uint32_t)(address[0] - '1'),
                       .method = method};
    nodes[p.from].sent_in = world.fired;
    send_packet(p, parts, part_count);
}

struct timeout {
    uint64_t call;
};

static void call_timeout(void *arg)
{
    uint64_t number = ((struct timeout *)arg)->call;
    mem_free(arg);
    end_call(number, ERR_TIMEDOUT, slice_of(NULL, 0));
}

static uint64_t t_call(struct net *net, const char *address, net_method method,
                       const struct slice *parts, uint32_t part_count,
                       uint32_t timeout_ms, net_reply_fn *reply, void *arg)
{
    struct call *c = mem_alloc(sizeof *c);
    *c = (struct call){
        .number = ++call_number, .reply = reply, .arg = arg, .next = calls};
    calls = c;
    struct timeout *t = mem_alloc(sizeof *t);
    t->call = c->number;
    schedule(timeout_ms * UINT64_C(1000), call_timeout, t);
    struct packet p = {.from = node_of_net(net)->at,
                       .to = (uint32_t)(address[0] - '1'),
                       .method = method,
                       .call = c->number};
    send_packet(p, parts, part_count);
    return call_number;
}

static void t_cancel(struct net *net, uint64_t number)
{
    (void)net;
    struct call c;
    take_call(number, &c);
}

/* What a client's request was answered, which came past the net. */
static struct answer {
    bool ended;
    enum err rc;
} answer;

static void t_reply(struct net_request *request, enum err rc,
                    const struct slice *parts, uint32_t part_count)
{
    if (request->call == 0) {
        answer = (struct answer){.ended = true, .rc = rc};
        mem_free(request);
        return;
    }
    struct packet p = {.from = (uint32_t)(request->call >> 60),
                       .to = (uint32_t)(request->call >> 56 & 15),
                       .call = request->call & 0xffffffffffff,
                       .is_reply = true,
                       .rc = rc};
    send_packet(p, parts, rc == ERR_OK ? part_count : 0);
    mem_free(request);
}

static size_t t_queued(struct net *net, const char *address)
{
    (void)net;
    (void)address;
    return 0;
}

static const struct net_ops net_ops = {
    .call = t_call,
    .cancel = t_cancel,
    .send = t_send,
    .reply = t_reply,
    .queued = t_queued,
};

/* --- The state machine: a list of numbers, each with some bytes made from it
 * so that a snapshot has many chunks. */

static struct node *node_of_fsm(struct rsm_fsm *fsm)
{
    return (struct node *)((char *)fsm - offsetof(struct node, fsm));
}

static void list_copy(struct list *to, const struct list *from)
{
    mem_free(to->numbers);
    *to = *from;
    to->numbers = mem_array(from->count, sizeof(uint64_t));
    to->capacity = from->count;
    if (from->count > 0) {
        memcpy(to->numbers, from->numbers, from->count * sizeof(uint64_t));
    }
}

static void list_add(struct list *l, uint64_t number)
{
    if (l->count == l->capacity) {
        l->capacity = 2 * l->capacity + 16;
        l->numbers = mem_resize(l->numbers, l->capacity * sizeof(uint64_t));
    }
    l->numbers[l->count++] = number;
}

static raft_index l_durable(struct rsm_fsm *fsm, raft_term *term)
{
    struct node *n = node_of_fsm(fsm);
    *term = n->stored.term;
    return n->stored.index;
}

static enum err l_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                        uint32_t count)
{
    struct list *l = &node_of_fsm(fsm)->now;
    for (uint32_t i = 0; i < count; i++) {
        struct rsm_entry *e = &entries[i];
        CHECK(e->index == l->index + 1);
        CHECK(e->term >= l->term);
        l->index = e->index;
        l->term = e->term;
        if (e->type == RAFT_ENTRY_COMMAND) {
            list_add(l, get_u64(e->command.data));
            if (e->reply != NULL) {
                enc_u64(e->reply, get_u64(e->command.data));
                enc_u32(e->reply, l->count - 1);
            }
        }
    }
    return ERR_OK;
}

static enum err l_checkpoint(struct rsm_fsm *fsm)
{
    struct node *n = node_of_fsm(fsm);
    list_copy(&n->stored, &n->now);
    return ERR_OK;
}

/* What each command since the checkpoint is said to take. */
static uint64_t unsaved_each;

static uint64_t l_unsaved(struct rsm_fsm *fsm)
{
    const struct node *n = node_of_fsm(fsm);
    uint32_t saved =
        n->frozen.count > n->stored.count ? n->frozen.count : n->stored.count;
    return (n->now.count - saved) * unsaved_each;
}

static enum err l_checkpoint_begin(struct rsm_fsm *fsm)
{
    struct node *n = node_of_fsm(fsm);
    list_copy(&n->frozen, &n->now);
    return ERR_OK;
}

static enum err l_checkpoint_write(struct rsm_fsm *fsm)
{
    (void)fsm;
    return ERR_OK;
}

static enum err l_checkpoint_end(struct rsm_fsm *fsm)
{
    struct node *n = node_of_fsm(fsm);
    list_copy(&n->stored, &n->frozen);
    return ERR_OK;
}

static enum err l_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct node *n = node_of_fsm(fsm);
    struct list *copy = mem_alloc(sizeof *copy);
    list_copy(copy, &n->now);
    n->snapshots++;
    *view = copy;
    return ERR_OK;
}

static void make_item(uint64_t number, uint8_t item[PAD])
{
    struct rng rng = {number};
    for (int i = 8; i < PAD; i++) {
        item[i] = (uint8_t)rng_next(&rng);
    }
    set_u64(item, number);
}

static enum err l_snap_read(struct rsm_fsm *fsm, void *view,
                            struct snap_sink *sink)
{
    (void)fsm;
    struct list *l = view;
    enum err rc = ERR_OK;
    for (uint32_t i = 0; i < l->count && rc == ERR_OK; i++) {
        uint8_t item[PAD];
        make_item(l->numbers[i], item);
        rc = sink->write(sink, slice_of(item, PAD));
    }
    return rc;
}

static void l_snap_end(struct rsm_fsm *fsm, void *view)
{
    (void)fsm;
    mem_free(((struct list *)view)->numbers);
    mem_free(view);
}

static enum err l_snap_install(struct rsm_fsm *fsm, struct snap_source *source,
                               raft_index index, raft_term term)
{
    struct node *n = node_of_fsm(fsm);
    struct buf bytes = {0};
    enum err rc = ERR_OK;
    size_t got = 1;
    while (rc == ERR_OK && got > 0) {
        size_t before = bytes.size;
        uint8_t *to = buf_extend(&bytes, 10000);
        rc = source->read(source, to, 10000, &got);
        bytes.size = before + (rc == ERR_OK ? got : 0);
    }
    if (rc != ERR_OK) {
        buf_free(&bytes);
        return rc;
    }
    struct list l = {.index = index, .term = term};
    for (size_t at = 0; at < bytes.size; at += PAD) {
        uint8_t item[PAD];
        make_item(get_u64(bytes.data + at), item);
        CHECK(memcmp(item, bytes.data + at, PAD) == 0);
        list_add(&l, get_u64(item));
    }
    buf_free(&bytes);
    list_copy(&n->now, &l);
    list_copy(&n->stored, &l);
    mem_free(l.numbers);
    n->installs++;
    return ERR_OK;
}

static const struct rsm_fsm_ops fsm_ops = {
    .durable = l_durable,
    .apply = l_apply,
    .checkpoint = l_checkpoint,
    .unsaved = l_unsaved,
    .snap_begin = l_snap_begin,
    .snap_read = l_snap_read,
    .snap_end = l_snap_end,
    .snap_install = l_snap_install,
};

/* Without snapshots. */
static const struct rsm_fsm_ops stepping_ops = {
    .durable = l_durable,
    .apply = l_apply,
    .checkpoint = l_checkpoint,
    .checkpoint_begin = l_checkpoint_begin,
    .checkpoint_write = l_checkpoint_write,
    .checkpoint_end = l_checkpoint_end,
    .unsaved = l_unsaved,
};

/* --- The cluster */

static size_t keep_size;
static uint64_t snap_rate;
static uint32_t checkpoint_ms;

static void on_leader(void *arg, bool leader)
{
    struct node *n = arg;
    assert_int_not_equal(n->leader, leader);
    n->leader = leader;
    n->leader_calls++;
}

static enum err node_try_start(uint32_t at)
{
    struct node *n = &nodes[at];
    n->fatal = n->leader = false;
    list_copy(&n->now, &n->stored);
    struct rsm_config config = {
        .env = &n->env,
        .net = &n->net,
        .disk = faultdisk_disk(n->disk),
        .fsm = &n->fsm,
        .group = GROUP,
        .id = at + 1,
        .peers = {{1, "1"}, {2, "2"}, {3, "3"}},
        .peer_count = NODES,
        .wal_segment_size = 16384,
        .checkpoint_ms_max = checkpoint_ms,
        .log_keep_size = keep_size,
        .snap_piece_size = 4096,
        .snap_rate = snap_rate,
        .on_leader = on_leader,
        .arg = n,
    };
    return rsm_new(&config, &n->rsm);
}

static void node_start(uint32_t at)
{
    assert_int_equal(node_try_start(at), ERR_OK);
}

static void node_stop(uint32_t at)
{
    rsm_free(nodes[at].rsm);
    nodes[at].rsm = NULL;
}

/* A power cut: what the workers had not stored yet fails, and what was not
 * synced is lost. */
static void node_crash(uint32_t at)
{
    faultdisk_fail_at(nodes[at].disk, 1);
    node_stop(at);
    faultdisk_crash(nodes[at].disk, rng_next(&world.rng));
}

static void cluster_new(uint64_t seed)
{
    world.rng = (struct rng){seed};
    keep_size = 10000;
    snap_rate = 0;
    unsaved_each = 0;
    apply_us = checkpoint_us = 0;
    checkpoint_ms = 300;
    slow_per_mille = 0;
    loss_per_mille = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i] = (struct node){.env.ops = &env_ops,
                                 .net.ops = &net_ops,
                                 .fsm.ops = &fsm_ops,
                                 .at = i,
                                 .disk = faultdisk_new()};
    }
}

static void cluster_start(uint64_t seed)
{
    cluster_new(seed);
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
}

static void cluster_free(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        if (nodes[i].rsm != NULL) {
            node_stop(i);
        }
    }
    while (run_one()) {
    }
    for (uint32_t i = 0; i < NODES; i++) {
        faultdisk_free(nodes[i].disk);
        mem_free(nodes[i].now.numbers);
        mem_free(nodes[i].stored.numbers);
        mem_free(nodes[i].frozen.numbers);
    }
    assert_null(calls);
}

/* The one that says it leads, and has applied its no-op; waits for one. */
static struct node *await_leader(void)
{
    for (uint32_t ms = 0; ms < 30000; ms += 10) {
        for (uint32_t i = 0; i < NODES; i++) {
            struct node *n = &nodes[i];
            if (n->rsm != NULL && !n->cut && n->leader &&
                rsm_is_leader(n->rsm)) {
                return n;
            }
        }
        run_ms(10);
    }
    fail_msg("no leader in 30 s");
    return NULL;
}

static bool all_equal(void)
{
    for (uint32_t i = 1; i < NODES; i++) {
        if (nodes[i].now.index != nodes[0].now.index) {
            return false;
        }
    }
    return true;
}

static void await_all_equal(void)
{
    for (uint32_t ms = 0; ms < 30000 && !all_equal(); ms += 10) {
        run_ms(10);
    }
    assert_true(all_equal());
    for (uint32_t i = 1; i < NODES; i++) {
        assert_int_equal(nodes[i].now.count, nodes[0].now.count);
        assert_memory_equal(nodes[i].now.numbers, nodes[0].now.numbers,
                            nodes[0].now.count * sizeof(uint64_t));
    }
}

/* --- Clients */

struct client {
    struct rsm_proposal proposal;
    uint64_t number;
    bool ended;
    enum err rc;
    uint32_t place;
};

static void client_done(struct rsm_proposal *p, enum err rc, struct slice reply)
{
    struct client *c = (struct client *)p;
    assert_false(c->ended);
    c->ended = true;
    c->rc = rc;
    if (rc == ERR_OK) {
        assert_int_equal(reply.size, 12);
        assert_int_equal(get_u64(reply.data), c->number);
        c->place = get_u32(reply.data + 8);
    }
}

static void propose_sized(struct node *n, struct client *c, uint64_t number,
                          size_t size)
{
    *c = (struct client){.proposal.done = client_done, .number = number};
    struct bytes *command = bytes_new(size);
    memset(command->data, 0, size);
    set_u64(command->data, number);
    rsm_propose(n->rsm, &c->proposal, command);
    assert_false(c->ended);
}

static void propose(struct node *n, struct client *c, uint64_t number)
{
    propose_sized(n, c, number, 100);
}

static void await_client(const struct client *c)
{
    for (uint32_t ms = 0; ms < 30000 && !c->ended; ms++) {
        run_ms(1);
    }
    assert_true(c->ended);
}

static void propose_many(struct node *n, uint64_t first, uint32_t count)
{
    struct client *c = mem_array(count, sizeof *c);
    for (uint32_t i = 0; i < count; i++) {
        propose(n, &c[i], first + i);
    }
    for (uint32_t i = 0; i < count; i++) {
        await_client(&c[i]);
        assert_int_equal(c[i].rc, ERR_OK);
    }
    mem_free(c);
}

struct reader {
    struct rsm_read read;
    struct node *node;
    uint32_t count; /* the length of the list that it saw */
    size_t holds;   /* its answer */
    bool ended;
    enum err rc;
};

static struct {
    size_t now, most;
} held; /* by the answers of all readers */

static void reader_run(struct rsm_read *rd)
{
    struct reader *reader = (struct reader *)rd;
    reader->count = reader->node->now.count;
    rd->held = reader->holds;
    held.now += rd->held;
    held.most = held.now > held.most ? held.now : held.most;
}

static void reader_done(struct rsm_read *rd, enum err rc)
{
    struct reader *reader = (struct reader *)rd;
    assert_false(reader->ended);
    reader->ended = true;
    reader->rc = rc;
    held.now -= rd->held;
}

static void read_begin(struct node *n, struct reader *rd)
{
    *rd = (struct reader){.read = {.run = reader_run, .done = reader_done},
                          .node = n};
    rsm_read(n->rsm, &rd->read);
    assert_false(rd->ended);
}

/* --- Tests */

static void test_proposals_are_applied_once_in_order(void **state)
{
    (void)state;
    cluster_start(1);
    struct node *leader = await_leader();
    static struct client c[2000];
    for (uint32_t i = 0; i < 2000; i++) {
        propose(leader, &c[i], 1000 + i);
        if (i % 50 == 0) {
            run_ms(1);
        }
    }
    for (uint32_t i = 0; i < 2000; i++) {
        await_client(&c[i]);
        assert_int_equal(c[i].rc, ERR_OK);
        assert_int_equal(c[i].place, i);
    }
    await_all_equal();
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_int_equal(status.applied, leader->now.index);
    assert_int_equal(status.proposals_waiting, 0);
    /* Many share one sync. */
    assert_true(status.wal_syncs < 500);
    run_ms(1000);
    rsm_status(leader->rsm, &status);
    assert_int_equal(status.durable, status.applied);
    cluster_free();
}

static void test_reads_see_what_was_acknowledged(void **state)
{
    (void)state;
    cluster_start(2);
    struct node *leader = await_leader();
    for (uint32_t i = 0; i < 300; i++) {
        struct client c;
        struct reader rd[3];
        propose(leader, &c, i);
        await_client(&c);
        for (uint32_t k = 0; k < 3; k++) {
            read_begin(leader, &rd[k]);
        }
        run_ms(100);
        for (uint32_t k = 0; k < 3; k++) {
            assert_true(rd[k].ended);
            assert_int_equal(rd[k].rc, ERR_OK);
            assert_int_equal(rd[k].count, i + 1);
        }
    }
    /* A leader of old does not answer: it cannot know that it still leads. */
    struct reader stale;
    leader->cut = true;
    read_begin(leader, &stale);
    struct node *next = await_leader();
    assert_ptr_not_equal(next, leader);
    struct client c;
    propose(next, &c, 999);
    await_client(&c);
    run_ms(5000);
    assert_true(stale.ended);
    assert_int_equal(stale.rc, ERR_NOTLEADER);
    leader->cut = false;
    await_all_equal();
    cluster_free();
}

/* Who asks for much at once does not make us hold all of it at once. */
static void test_reads_hold_a_bounded_number_of_bytes(void **state)
{
    (void)state;
    enum { COUNT = 500, EACH = 1 << 20 };
    cluster_start(4);
    struct node *leader = await_leader();
    static struct reader rd[COUNT];
    held.most = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        read_begin(leader, &rd[i]);
        rd[i].holds = EACH;
    }
    run_ms(1000);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_true(rd[i].ended);
        assert_int_equal(rd[i].rc, ERR_OK);
    }
    assert_int_equal(held.now, 0);
    assert_true(held.most >= RSM_READ_HELD_SIZE);
    assert_true(held.most <= 2 * (RSM_READ_HELD_SIZE + EACH));
    cluster_free();
}

/* A new leader with a long log to apply: the read waits for all of it. */
static void test_reads_wait_for_the_log(void **state)
{
    (void)state;
    cluster_new(10);
    checkpoint_ms = 1000000;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    for (uint32_t i = 0; i < 10; i++) {
        propose_many(await_leader(), i * 500, 500);
    }
    for (uint32_t i = 0; i < NODES; i++) {
        node_crash(i);
    }
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    struct reader rd = {0};
    while (!rd.ended) {
        for (uint32_t i = 0; i < NODES; i++) {
            if (rd.node == NULL && rsm_is_leader(nodes[i].rsm)) {
                read_begin(&nodes[i], &rd);
            }
        }
        assert_true(run_one());
    }
    assert_int_equal(rd.rc, ERR_OK);
    assert_int_equal(rd.count, 5000);
    cluster_free();
}

/* Could be wrong: only the log's bytes count, and what little changes make of
 * large values fills the memory. */
static void test_what_is_unsaved_bounds_checkpoints(void **state)
{
    (void)state;
    cluster_new(12);
    checkpoint_ms = 1000000;
    unsaved_each = 1 << 20;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    for (uint32_t i = 0; i < 20; i++) {
        propose_many(await_leader(), i * 10, 10);
    }
    await_all_equal();
    for (uint32_t i = 0; i < NODES; i++) {
        assert_true(nodes[i].stored.count >= 150);
    }
    cluster_free();
}

/* Could be wrong: what makes a checkpoint due still counts when it has begun,
 * and applying waits until it is written. */
static void test_applying_goes_on_when_a_checkpoint_has_begun(void **state)
{
    (void)state;
    cluster_new(13);
    checkpoint_ms = 1000000;
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].fsm.ops = &stepping_ops;
        node_start(i);
    }
    struct node *leader = await_leader();
    unsaved_each = 1 << 20;
    apply_us = 200000;
    checkpoint_us = 2000000;
    propose_many(leader, 0, 60); /* due more than twice over */
    propose_many(leader, 60, 8); /* come while it begins */
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_true(status.checkpointing);
    assert_int_equal(status.stall.count, 0);
    await_all_equal();
    run_ms(5000);
    for (uint32_t i = 0; i < NODES; i++) {
        rsm_status(nodes[i].rsm, &status);
        assert_true(status.stall.count > 0);
        assert_true(status.stall.max_us < 1000000);
    }
    cluster_free();
}

static void test_followers_refuse(void **state)
{
    (void)state;
    cluster_start(3);
    struct node *leader = await_leader();
    struct node *other = &nodes[(leader->at + 1) % NODES];
    run_ms(200);
    char address[2] = {(char)('1' + leader->at), 0};
    assert_string_equal(rsm_leader_address(other->rsm), address);
    struct client c;
    struct reader rd;
    propose(other, &c, 1);
    read_begin(other, &rd);
    run_ms(100);
    assert_true(c.ended && rd.ended);
    assert_int_equal(c.rc, ERR_NOTLEADER);
    assert_int_equal(rd.rc, ERR_NOTLEADER);
    propose_sized(leader, &c, 2, RSM_COMMAND_SIZE_MAX + 1);
    run_ms(1);
    assert_int_equal(c.rc, ERR_TOOBIG);
    propose_sized(leader, &c, 3, RSM_COMMAND_SIZE_MAX);
    await_client(&c);
    assert_int_equal(c.rc, ERR_OK);
    await_all_equal();
    cluster_free();
}

static void test_restart_of_all(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        cluster_start(seed);
        uint32_t count = 0;
        for (uint32_t round = 0; round < 3; round++) {
            struct node *leader = await_leader();
            propose_many(leader, count, 200);
            count += 200;
            run_ms(rng_below(&world.rng, 500));
            for (uint32_t i = 0; i < NODES; i++) {
                node_crash(i);
            }
            for (uint32_t i = 0; i < NODES; i++) {
                node_start(i);
            }
        }
        await_leader();
        await_all_equal();
        assert_int_equal(nodes[0].now.count, count);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(nodes[0].now.numbers[i], i);
        }
        cluster_free();
    }
}

/* Makes node `behind` need a snapshot of about 1 MB. */
static struct node *leave_behind(struct node *leader, struct node *behind)
{
    behind->cut = true;
    leader = await_leader();
    run_ms(1500); /* from then on it is silent */
    for (uint32_t i = 0; i < 10; i++) {
        propose_many(leader, i * 500, 500);
    }
    run_ms(1000); /* a checkpoint, and the log is cut */
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_true(status.raft.snapshot_index > behind->now.index);
    return leader;
}

static void test_snapshot_for_one_that_lags(void **state)
{
    (void)state;
    cluster_start(4);
    struct node *leader = await_leader();
    struct node *behind = &nodes[(leader->at + 1) % NODES];
    leader = leave_behind(leader, behind);
    behind->cut = false;
    loss_per_mille = 100;
    for (uint32_t i = 0; i < 100; i++) {
        struct client c;
        propose(leader, &c, 10000 + i);
        run_ms(20);
        if (!c.ended) {
            await_client(&c);
        }
    }
    loss_per_mille = 0;
    await_all_equal();
    assert_true(behind->installs >= 1);
    assert_null(faultdisk_bytes(behind->disk, "snap/in"));
    /* It goes on from there after a restart. */
    node_crash(behind->at);
    node_start(behind->at);
    await_leader();
    await_all_equal();
    cluster_free();
}

/* --- Streams that break */

static struct rsm_snap_stats snap_stats(const struct node *n)
{
    struct rsm_status status;
    rsm_status(n->rsm, &status);
    return status.snap;
}

/* Until about that part of the leader's snapshot has been sent. */
static void run_until_sent(const struct node *leader, uint32_t percent)
{
    for (uint32_t ms = 0; ms < 30000; ms++) {
        struct rsm_snap_stats s = snap_stats(leader);
        if (s.pieces > 0 && s.pieces_sent * 100 >= s.pieces * percent) {
            assert_true(s.pieces_sent < s.pieces);
            return;
        }
        run_ms(1);
    }
    fail_msg("no snapshot was sent");
}

static struct node *begin_stream(uint64_t seed, uint64_t rate,
                                 struct node **behind)
{
    cluster_new(seed);
    snap_rate = rate;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    struct node *leader = await_leader();
    *behind = &nodes[(leader->at + 1) % NODES];
    return leave_behind(leader, *behind);
}

static void await_installed(const struct node *n)
{
    for (uint32_t ms = 0; ms < 60000 && n->installs == 0; ms += 10) {
        run_ms(10);
    }
    assert_int_equal(n->installs, 1);
    await_all_equal();
}

/* Half of it has come when the link breaks, for long. Nothing of that half is
 * sent again, but for what was in flight. */
static void test_stream_goes_on_after_a_broken_link(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *leader = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        run_until_sent(leader, 50);
        behind->cut = true;
        run_ms(rng_below(&world.rng, 20000));
        behind->cut = false;
        await_installed(behind);
        struct rsm_snap_stats s = snap_stats(leader);
        assert_int_equal(s.streams, 1);
        assert_true(s.pieces > 100);
        assert_true(s.pieces_sent >= s.pieces);
        assert_true(s.pieces_sent < s.pieces + 50);
        cluster_free();
    }
}

/* The new leader makes a snapshot of its own, of a later index, and sends only
 * what the follower has not got from the old one. */
static void test_stream_goes_on_after_a_change_of_leader(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *old = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        run_until_sent(old, 10);
        for (uint32_t i = 0; seed % 3 != 0 && i < 30; i++) {
            propose_many(old, 70000 + 10 * i, 10); /* its state is another */
        }
        run_until_sent(old, 60);
        if (seed % 2 == 0) {
            node_crash(old->at);
        } else {
            old->cut = true;
        }
        struct node *new = await_leader();
        assert_ptr_not_equal(new, old);
        assert_ptr_not_equal(new, behind);
        for (uint32_t ms = 0; ms < 60000 && behind->installs == 0; ms += 10) {
            run_ms(10);
        }
        struct rsm_snap_stats s = snap_stats(new);
        assert_true(s.pieces > 100);
        assert_true(s.pieces_sent > 0);
        assert_true(s.pieces_sent < s.pieces * 6 / 10);
        if (old->rsm == NULL) {
            node_start(old->at);
        }
        old->cut = false;
        await_installed(behind);
        cluster_free();
    }
}

/* So does a follower that was killed: what it had synced or not, if it is whole
 * it counts. */
static void test_stream_goes_on_after_a_crash_of_the_follower(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *leader = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        run_until_sent(leader, 70);
        node_stop(behind->at); /* its process, not its machine */
        run_ms(rng_below(&world.rng, 3000));
        node_start(behind->at);
        await_installed(behind);
        struct rsm_snap_stats s = snap_stats(leader);
        assert_true(s.pieces_sent < s.pieces * 14 / 10);
        run_ms(100);
        assert_null(faultdisk_bytes(behind->disk, "snap/pieces"));
        assert_null(faultdisk_bytes(behind->disk, "snap/in"));
        cluster_free();
    }
}

/* Behind, but not too far: what it needs comes from the leader's disk, and the
 * leader's memory holds no more of the log than ever. */
static void test_follower_catches_up_from_the_stored_log(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        cluster_start(seed);
        struct node *leader = await_leader();
        struct node *behind = &nodes[(leader->at + 1) % NODES];
        behind->cut = true;
        leader = await_leader();
        propose_many(leader, 0, 400);
        run_ms(400);
        struct rsm_status status;
        rsm_status(leader->rsm, &status);
        assert_true(status.raft.first_index > behind->now.index + 100);
        assert_true(status.raft.snapshot_index <= behind->now.index + 1);
        if (seed % 2 == 0) { /* a new life knows where entries stand, too */
            node_crash(leader->at);
            behind->cut = false;
            node_start(leader->at);
            leader = await_leader();
        }
        behind->cut = false;
        propose_many(leader, 400, 50);
        await_all_equal();
        uint64_t read = 0;
        for (uint32_t i = 0; i < NODES; i++) {
            rsm_status(nodes[i].rsm, &status);
            read += status.entries_read;
            assert_int_equal(nodes[i].installs, 0);
        }
        assert_true(read > 100);
        cluster_free();
    }
}

/* E18: the log is cut every few entries, clients write all the time, the link
 * is slow and loses. One snapshot is enough: what it needs after it is there.
 */
static void test_log_is_there_when_a_snapshot_lands(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct node *behind;
        struct node *leader = begin_stream(seed, 500000, &behind);
        behind->cut = false;
        loss_per_mille = 50;
        static struct client busy[4000];
        uint32_t count = 0;
        for (uint32_t ms = 0; ms < 4000; ms += 5) {
            run_ms(5);
            leader = await_leader();
            for (uint32_t i = 0; i < 4; i++) {
                propose(leader, &busy[count], 100000 + count);
                count++;
            }
        }
        loss_per_mille = 0;
        run_ms(5000);
        await_installed(behind);
        cluster_free();
    }
}

/* An operator's limit is kept: a megabyte takes ten seconds. */
static void test_stream_keeps_to_its_rate(void **state)
{
    (void)state;
    struct node *behind;
    struct node *leader = begin_stream(5, 100000, &behind);
    behind->cut = false;
    uint64_t from_us = world.now_us;
    await_installed(behind);
    uint64_t seconds = (world.now_us - from_us) / 1000000;
    assert_in_range(seconds, 9, 14);
    assert_in_range(snap_stats(leader).bytes_sent / seconds, 60000, 110000);
    cluster_free();
}

static struct rsm_member shown(const struct node *leader, uint64_t id)
{
    struct rsm_member members[RAFT_PEERS_MAX];
    uint32_t count = rsm_member_list(leader->rsm, members);
    for (uint32_t i = 0; i < count; i++) {
        if (members[i].id == id) {
            return members[i];
        }
    }
    fail_msg("no such member");
    return (struct rsm_member){0};
}

/* Of each phase, what was shown of it. */
struct shown_phase {
    uint64_t first, last; /* bytes */
    uint32_t seen;
    uint32_t steps; /* how often it had grown */
};

static void watch_stream(const struct node *leader, const struct node *behind,
                         struct shown_phase phases[RSM_SNAP_INSTALLING + 1])
{
    uint8_t before = RSM_SNAP_NONE;
    for (uint32_t ms = 0; ms < 60000 && behind->installs == 0; ms++) {
        struct rsm_member m = shown(leader, behind->at + 1);
        struct shown_phase *p = &phases[m.snap_phase];
        assert_true(m.snap_phase >= before);
        assert_true(m.snap_index > 0 || m.snap_phase == RSM_SNAP_NONE);
        assert_true(m.snap_done <= m.snap_all ||
                    m.snap_phase == RSM_SNAP_MAKING);
        if (m.snap_phase != before) {
            before = m.snap_phase;
            p->first = p->last = m.snap_done;
        }
        assert_true(m.snap_done >= p->last);
        p->steps += m.snap_done > p->last;
        p->last = m.snap_done;
        p->seen++;
        run_ms(1);
    }
}

/* Wrong if a snapshot on its way looks as if it stood still, from one second
 * to the next: whoever waits for it would give up. */
static void test_how_far_a_stream_is_is_shown(void **state)
{
    (void)state;
    struct node *behind;
    struct node *leader = begin_stream(6, 100000, &behind);
    struct shown_phase phases[RSM_SNAP_INSTALLING + 1] = {0};
    behind->cut = false;
    apply_us = 500000; /* an install takes long, too */
    watch_stream(leader, behind, phases);
    apply_us = 0;
    struct shown_phase *sent = &phases[RSM_SNAP_SENDING];
    assert_int_equal(sent->first, 0);
    assert_true(sent->last > 900000);
    assert_true(sent->steps > 50);
    assert_in_range(phases[RSM_SNAP_INSTALLING].seen, 200, 1000);
    await_installed(behind);
    run_ms(1000);
    assert_int_equal(shown(leader, behind->at + 1).snap_index, 0);
    cluster_free();
}

/* What the first stream has brought counts for the next leader's. */
static void test_a_stream_that_goes_on_is_shown_so(void **state)
{
    (void)state;
    struct node *behind;
    struct node *old = begin_stream(7, 100000, &behind);
    behind->cut = false;
    run_until_sent(old, 60);
    uint64_t done = shown(old, behind->at + 1).snap_done;
    assert_true(done > 400000);
    old->cut = true;
    /* It cannot commit anything before the snapshot is there. */
    struct node *new = &nodes[NODES - old->at - behind->at];
    struct rsm_member m = shown(new, behind->at + 1);
    for (uint32_t ms = 0; ms < 10000 && m.snap_done < done; ms++) {
        run_ms(1);
        m = shown(new, behind->at + 1);
    }
    assert_int_equal(m.snap_phase, RSM_SNAP_SENDING);
    assert_in_range(m.snap_done, done, done + 100000);
    assert_true(snap_stats(new).bytes_sent < 100000);
    old->cut = false;
    await_installed(behind);
    cluster_free();
}

/* The receiver dies at some moment of an install, over and over. */
static void test_crash_while_installing(void **state)
{
    (void)state;
    uint32_t finished_at_start = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        cluster_start(seed);
        struct node *leader = await_leader();
        struct node *behind = &nodes[(leader->at + 1) % NODES];
        leave_behind(leader, behind);
        behind->cut = false;
        uint32_t installs = behind->installs;
        for (uint32_t ms = 0; ms < 20000 && behind->installs == installs;
             ms++) {
            run_ms(1);
            if (seed % 2 == 0 && rng_chance(&world.rng, 10)) {
                break;
            }
        }
        /* Odd seeds: the state machine is replaced, the log is not yet. */
        raft_index index = behind->stored.index;
        node_crash(behind->at);
        finished_at_start += behind->installs > installs;
        node_start(behind->at);
        assert_true(behind->now.index >= index);
        run_ms(3000);
        propose_many(await_leader(), 50000, 20);
        await_all_equal();
        /* What was written after the install joins up with it. */
        node_crash(behind->at);
        node_start(behind->at);
        await_leader();
        await_all_equal();
        cluster_free();
    }
    assert_true(finished_at_start > 20);
}

static void test_damaged_log_is_refused(void **state)
{
    (void)state;
    cluster_start(5);
    propose_many(await_leader(), 0, 100);
    await_all_equal();
    node_stop(2);
    const char *path = faultdisk_path(nodes[2].disk, 0);
    assert_int_equal(strncmp(path, "wal/", 4), 0);
    faultdisk_bytes(nodes[2].disk, path)->data[200] ^= 1;
    assert_int_equal(node_try_start(2), ERR_CORRUPT);
    cluster_free();
}

static void test_failed_sync_is_final(void **state)
{
    (void)state;
    cluster_start(6);
    struct node *leader = await_leader();
    struct client c;
    faultdisk_fail_at(leader->disk, 1);
    propose(leader, &c, 1);
    run_ms(3000);
    assert_true(leader->fatal);
    assert_false(c.ended && c.rc == ERR_OK);
    assert_false(rsm_is_leader(leader->rsm));
    leader->cut = true;
    struct node *next = await_leader();
    assert_ptr_not_equal(next, leader);
    propose_many(next, 10, 10);
    node_crash(leader->at);
    assert_true(c.ended);
    node_start(leader->at);
    leader->cut = false;
    await_all_equal();
    cluster_free();
}

static void test_proposals_do_not_wait_for_ever(void **state)
{
    (void)state;
    cluster_start(7);
    struct node *leader = await_leader();
    struct client c;
    leader->cut = true;
    propose(leader, &c, 1);
    run_ms(6000);
    assert_true(c.ended);
    assert_int_equal(c.rc, ERR_NOTLEADER);
    assert_false(leader->leader);
    leader->cut = false;
    await_leader();
    await_all_equal();
    cluster_free();
}

static enum err wish_of_an_admin(struct node *n, const struct rsm_wish *wish)
{
    struct net_peer admin = {.role = NET_ROLE_ADMIN, .name = "admin"};
    struct buf body = {0};
    answer.ended = false;
    rsm_wish_encode(&body, wish);
    rsm_handle(n->rsm, mem_alloc(sizeof(struct net_request)), &admin,
               RSM_METHOD_CHANGE, buf_slice(&body));
    buf_free(&body);
    for (uint32_t ms = 0; !answer.ended && ms < 10000; ms++) {
        run_ms(1);
    }
    assert_true(answer.ended);
    return answer.rc;
}

/* Wrong if a leader that was deposed, and has not heard of it, judges a change
 * of members by the configuration that it remembers. */
static void test_wishes_wait_for_a_leader_that_is_one(void **state)
{
    (void)state;
    const struct rsm_wish wish = {
        .kind = RSM_PROMOTE, .id = 9, .timeout_ms = 1000};
    cluster_start(11);
    struct node *leader = await_leader();
    assert_int_equal(wish_of_an_admin(leader, &wish), ERR_NOTFOUND);
    leader->cut = true;
    assert_true(rsm_is_leader(leader->rsm));
    assert_int_equal(wish_of_an_admin(leader, &wish), ERR_NOTLEADER);
    leader->cut = false;
    leader = await_leader();
    assert_int_equal(wish_of_an_admin(leader, &wish), ERR_NOTFOUND);
    cluster_free();
}

/* Wrong if a leader that others wait for syncs on its loop, or if one whose
 * caller is alone does so before its messages have left. */
static void test_a_leader_syncs_itself_when_callers_come_alone(void **state)
{
    (void)state;
    cluster_start(31);
    struct node *leader = await_leader();
    propose_many(leader, 0, 50);
    uint32_t before = leader->brief_syncs;
    struct client c[3];
    for (uint32_t i = 0; i < 100; i++) {
        propose(leader, &c[0], 100 + i);
        await_client(&c[0]);
    }
    assert_in_range(leader->brief_syncs - before, 80, 90);
    propose(leader, &c[0], 200);
    uint32_t first = leader->brief_syncs;
    while (leader->brief_syncs == first) {
        assert_true(run_one());
    }
    assert_true(leader->sent_in < leader->brief_in);
    await_client(&c[0]);

    /* A second caller, and a reader. */
    propose(leader, &c[1], 300);
    propose(leader, &c[2], 301);
    await_client(&c[1]);
    await_client(&c[2]);
    before = leader->brief_syncs;
    for (uint32_t i = 0; i < 60; i++) {
        struct reader reader;
        if (i < 30) {
            propose(leader, &c[0], 400 + i);
            read_begin(leader, &reader);
        } else {
            read_begin(leader, &reader);
            propose(leader, &c[0], 400 + i);
        }
        await_client(&c[0]);
        while (!reader.ended) {
            run_ms(1);
        }
    }
    assert_int_equal(leader->brief_syncs, before);
    cluster_free();
}

static uint32_t space_looks;
static uint64_t space_left;

static enum err counted_space(struct disk *d, uint64_t *free)
{
    (void)d;
    space_looks++;
    *free = space_left;
    return ERR_OK;
}

/* Wrong if the disk is asked for its space at each write, or too late. */
static void test_space_is_looked_at_now_and_then(void **state)
{
    (void)state;
    cluster_start(32);
    struct node *leader = await_leader();
    struct disk *disk = faultdisk_disk(leader->disk);
    const struct disk_ops *before = disk->ops;
    struct disk_ops counted = *before;
    counted.space = counted_space;
    disk->ops = &counted;
    space_left = UINT64_MAX;
    struct client c;
    propose(leader, &c, 0);
    await_client(&c);
    run_ms(10);
    space_looks = 0;
    uint64_t began = world.now_us;
    for (uint32_t i = 1; i <= 200; i++) {
        propose(leader, &c, i);
        await_client(&c);
    }
    uint64_t most = (world.now_us - began) / 5000 + 10;
    assert_true(most < 180 && space_looks > 0 && space_looks <= most);

    /* As many bytes as count, in less time than counts. */
    static struct client big[8];
    space_looks = 0;
    began = world.now_us;
    for (uint32_t i = 0; i < 8; i++) {
        propose_sized(leader, &big[i], 300 + i, 300 << 10);
        run_ms(1);
    }
    for (uint32_t i = 0; i < 8; i++) {
        await_client(&big[i]);
    }
    assert_true(space_looks > (world.now_us - began) / 5000);

    space_left = 1000;
    run_ms(10);
    propose(leader, &c, 400);
    await_client(&c);
    struct rsm_status status;
    rsm_status(leader->rsm, &status);
    assert_true(status.full);
    disk->ops = before;
    cluster_free();
}

/* Bytes of its log, and what others leave of its disk. */
static uint64_t log_size(struct node *n)
{
    uint64_t size = 0;
    const char *path = NULL;
    for (uint32_t i = 0; (path = faultdisk_path(n->disk, i)) != NULL; i++) {
        if (strncmp(path, "wal/", 4) == 0) {
            size += faultdisk_bytes(n->disk, path)->size;
        }
    }
    return size;
}

static uint64_t disk_sizes[NODES];

static enum err space_behind_log(struct disk *d, uint64_t *free)
{
    uint32_t at = 0;
    while (faultdisk_disk(nodes[at].disk) != d) {
        at++;
    }
    uint64_t used = log_size(&nodes[at]);
    *free = used < disk_sizes[at] ? disk_sizes[at] - used : 0;
    return ERR_OK;
}

static void assert_full(bool full)
{
    for (uint32_t i = 0; i < NODES; i++) {
        struct rsm_status status;
        rsm_status(nodes[i].rsm, &status);
        if (status.full != full) {
            fail_msg("%u: full %d, free %d of %d", i + 1, status.full,
                     (int)status.space_free, (int)status.space_low);
        }
    }
}

static struct disk_ops small_ops;
static const struct disk_ops *ops_before;

static void small_disks_begin(uint64_t seed)
{
    cluster_new(seed);
    keep_size = 100000; /* more than there is */
    for (uint32_t i = 0; i < NODES; i++) {
        struct disk *disk = faultdisk_disk(nodes[i].disk);
        ops_before = disk->ops;
        small_ops = *ops_before;
        small_ops.space = space_behind_log;
        disk_sizes[i] = UINT64_MAX;
    }
    for (uint32_t i = 0; i < NODES; i++) {
        faultdisk_disk(nodes[i].disk)->ops = &small_ops;
        node_start(i);
    }
}

static void small_disks_end(void)
{
    for (uint32_t i = 0; i < NODES; i++) {
        faultdisk_disk(nodes[i].disk)->ops = ops_before;
    }
    cluster_free();
}

/* Others fill the disks to `lack` bytes under the bound, no entry comes, and
 * what the log gives back must do. */
static void full_is_over(uint32_t count, uint64_t lack, bool restarted)
{
    struct client c = {0};
    small_disks_begin(count);
    for (uint32_t i = 0; i < count; i++) {
        propose(await_leader(), &c, i);
        await_client(&c);
    }
    run_ms(2000);
    for (uint32_t i = 0; i < NODES; i++) {
        if (restarted) {
            node_stop(i);
        }
        disk_sizes[i] = log_size(&nodes[i]) + (32 << 20) - lack;
    }
    for (uint32_t i = 0; i < NODES && restarted; i++) {
        node_start(i);
    }
    if (!restarted) {
        propose(await_leader(), &c, count);
        await_client(&c);
        assert_full(true);
    }
    run_ms(20000);
    assert_full(false);
    propose(await_leader(), &c, count + 1);
    await_client(&c);
    small_disks_end();
}

/* A follower that answers, and takes nothing: for a while the log is kept for
 * it. */
static void full_is_over_after(uint32_t count)
{
    struct client c = {0};
    struct rsm_status status;
    small_disks_begin(count);
    struct node *leader = await_leader();
    uint32_t other = (leader->at + 1) % NODES;
    disk_sizes[other] = 0;
    for (uint32_t i = 0; i < count; i++) {
        propose(leader, &c, i);
        await_client(&c);
    }
    run_ms(2000);
    assert_true(nodes[other].now.count < 20);
    disk_sizes[leader->at] = log_size(leader) + (32 << 20) - 30000;
    propose(leader, &c, count);
    await_client(&c);
    run_ms(5000);
    rsm_status(leader->rsm, &status);
    assert_true(status.full);
    run_ms(15000);
    rsm_status(leader->rsm, &status);
    assert_true(!status.full);
    disk_sizes[other] = UINT64_MAX;
    run_ms(20000);
    assert_true(all_equal() && nodes[other].installs == 1);
    small_disks_end();
}

/* Wrong if a full disk keeps what a follower might need one day, or the segment
 * that is being written. */
static void test_full_disk_gives_back_log(void **state)
{
    (void)state;
    for (int restarted = 0; restarted < 2; restarted++) {
        full_is_over(300, 30000, restarted); /* older segments */
        full_is_over(40, 5000, restarted);   /* the only one */
    }
    full_is_over_after(300);
}

static void note_done(void *arg)
{
    *(bool *)arg = true;
}

static void test_step_down(void **state)
{
    (void)state;
    cluster_start(8);
    struct node *leader = await_leader();
    propose_many(leader, 0, 50);
    bool done = false;
    uint64_t begin = world.now_us;
    rsm_step_down(leader->rsm, 5000, note_done, &done);
    assert_false(done);
    while (!done) {
        run_ms(1);
    }
    assert_true(world.now_us - begin < 100000);
    assert_false(rsm_is_leader(leader->rsm));
    struct node *next = await_leader();
    assert_ptr_not_equal(next, leader);
    assert_true(world.now_us - begin < 300000);
    /* With nobody to take over, after its timeout. */
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].cut = nodes[i].rsm != next->rsm;
    }
    done = false;
    begin = world.now_us;
    rsm_step_down(next->rsm, 200, note_done, &done);
    while (!done) {
        run_ms(1);
    }
    assert_true(world.now_us - begin <= 250000);
    cluster_free();
}

static void test_strangers_are_not_heard(void **state)
{
    (void)state;
    cluster_start(9);
    sender_role = NET_ROLE_CLIENT;
    run_ms(5000);
    for (uint32_t i = 0; i < NODES; i++) {
        assert_false(rsm_is_leader(nodes[i].rsm));
    }
    sender_role = NET_ROLE_SERVER;
    sender_group = GROUP + 1;
    run_ms(5000);
    for (uint32_t i = 0; i < NODES; i++) {
        assert_false(rsm_is_leader(nodes[i].rsm));
    }
    sender_group = GROUP;
    await_leader();
    cluster_free();
}

/* Crashes, cuts and loss, all at once; then what was acknowledged is there. */
enum { CHAOS_CLIENTS = 3000 };
static struct client chaos[CHAOS_CLIENTS];

static void chaos_disturb(void)
{
    uint32_t at = (uint32_t)rng_below(&world.rng, NODES);
    struct node *n = &nodes[at];
    switch (rng_below(&world.rng, 8)) {
    case 0:
    case 1:
        if (n->rsm != NULL) {
            node_crash(at);
        }
        break;
    case 2:
    case 3: n->cut = true; break;
    case 4: /* the power goes for all of them */
        for (uint32_t i = 0; i < NODES; i++) {
            if (nodes[i].rsm != NULL) {
                node_crash(i);
            }
            node_start(i);
        }
        break;
    default:
        for (uint32_t i = 0; i < NODES; i++) {
            nodes[i].cut = false;
            if (nodes[i].rsm == NULL) {
                node_start(i);
            }
        }
    }
}

static void chaos_run(uint64_t seed)
{
    cluster_new(seed);
    keep_size = 3000;
    slow_per_mille = 200;
    loss_per_mille = 20;
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(i);
    }
    uint32_t proposed = 0;
    for (uint32_t step = 0; step < 400; step++) {
        for (uint32_t i = 0; i < NODES; i++) {
            if (nodes[i].rsm != NULL && rsm_is_leader(nodes[i].rsm)) {
                for (uint32_t k = 0; k < 5 && proposed < CHAOS_CLIENTS; k++) {
                    propose(&nodes[i], &chaos[proposed], proposed);
                    proposed++;
                }
            }
        }
        run_ms(rng_below(&world.rng, 30));
        if (rng_chance(&world.rng, 40)) {
            chaos_disturb();
        }
    }
    loss_per_mille = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[i].cut = false;
        if (nodes[i].rsm == NULL) {
            node_start(i);
        }
    }
    await_leader();
    run_ms(5000);
    await_all_equal();
    uint32_t acknowledged = 0;
    for (uint32_t i = 0; i < proposed; i++) {
        assert_true(chaos[i].ended);
        if (chaos[i].rc == ERR_OK) {
            acknowledged++;
            assert_true(chaos[i].place < nodes[0].now.count);
            assert_int_equal(nodes[0].now.numbers[chaos[i].place],
                             chaos[i].number);
        }
    }
    static uint8_t seen[CHAOS_CLIENTS];
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < nodes[0].now.count; i++) {
        assert_int_equal(seen[nodes[0].now.numbers[i]]++, 0);
    }
    assert_true(acknowledged > 0);
    cluster_free();
}

static void test_chaos(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        chaos_run(seed);
    }
}

int main(int argc, char **argv)
{
    log_set_level(argc > 1 ? LOG_LEVEL_DEBUG : LOG_LEVEL_OFF);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_proposals_are_applied_once_in_order),
        cmocka_unit_test(test_reads_see_what_was_acknowledged),
        cmocka_unit_test(test_reads_hold_a_bounded_number_of_bytes),
        cmocka_unit_test(test_reads_wait_for_the_log),
        cmocka_unit_test(test_what_is_unsaved_bounds_checkpoints),
        cmocka_unit_test(test_applying_goes_on_when_a_checkpoint_has_begun),
        cmocka_unit_test(test_followers_refuse),
        cmocka_unit_test(test_restart_of_all),
        cmocka_unit_test(test_snapshot_for_one_that_lags),
        cmocka_unit_test(test_stream_goes_on_after_a_broken_link),
        cmocka_unit_test(test_stream_goes_on_after_a_change_of_leader),
        cmocka_unit_test(test_stream_goes_on_after_a_crash_of_the_follower),
        cmocka_unit_test(test_follower_catches_up_from_the_stored_log),
        cmocka_unit_test(test_log_is_there_when_a_snapshot_lands),
        cmocka_unit_test(test_stream_keeps_to_its_rate),
        cmocka_unit_test(test_how_far_a_stream_is_is_shown),
        cmocka_unit_test(test_a_stream_that_goes_on_is_shown_so),
        cmocka_unit_test(test_crash_while_installing),
        cmocka_unit_test(test_damaged_log_is_refused),
        cmocka_unit_test(test_failed_sync_is_final),
        cmocka_unit_test(test_proposals_do_not_wait_for_ever),
        cmocka_unit_test(test_wishes_wait_for_a_leader_that_is_one),
        cmocka_unit_test(test_a_leader_syncs_itself_when_callers_come_alone),
        cmocka_unit_test(test_space_is_looked_at_now_and_then),
        cmocka_unit_test(test_full_disk_gives_back_log),
        cmocka_unit_test(test_step_down),
        cmocka_unit_test(test_strangers_are_not_heard),
        cmocka_unit_test(test_chaos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
