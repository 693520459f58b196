/* What an operator meets when part of a cluster is dead: the commands
 * themselves, against servers in this process that answer as they are told,
 * over TLS. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cmd/args.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "raft/raft.h"
#include "rsm/rsm.h"
#include "shardkv/cut.h"
#include "transport/rpc.h"

#define NOBODY "127.0.0.1:1" /* refuses at once, as a dead process does */

enum { GROUPS = 3, SHARDS = 4, CONFIGS = 8, OUTPUT_MAX = 1 << 22 };

/* A controller (gid 0) or the one replica of a group. */
struct fake {
    ctl_gid gid;
    struct tls_context *context;
    struct rpc *rpc;
    char address[NET_ADDRESS_SIZE_MAX];
    bool silent;   /* as if halted: takes calls, and answers none */
    uint64_t step; /* so many entries are executed before each answer */
    struct ctl_status status;
    struct ctl_move moves[SHARDS];
};

static struct {
    char dir[64];
    struct net_loop *loop;
    pthread_t thread;
    struct fake fakes[GROUPS + 1]; /* by gid */

    /* All below, and what fakes say: the test holds it but for while a command
     * runs. */
    pthread_mutex_t lock;
    uint64_t newest;
    ctl_gid owners[CONFIGS][SHARDS];
    const char *address[GROUPS + 1]; /* in the configurations */
    struct buf value;
    uint32_t reads, changes;
    ctl_gid heard_gid;
} w = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- what they answer ---- */

static bool is_in(uint64_t number, ctl_gid gid)
{
    bool in = false;
    for (int i = 0; i < SHARDS; i++) {
        in |= w.owners[number][i] == gid;
    }
    return in;
}

static void answer_config(uint64_t number, struct buf *out)
{
    struct ctl_owner shards[SHARDS];
    struct ctl_server servers[GROUPS];
    struct ctl_group groups[GROUPS];
    struct ctl_config c = {.number = number,
                           .shards = shards,
                           .shards_count = SHARDS,
                           .groups = groups};
    for (int i = 0; i < SHARDS; i++) {
        shards[i].gid = w.owners[number][i];
    }
    for (ctl_gid gid = 1; gid <= GROUPS; gid++) {
        if (is_in(number, gid)) {
            uint32_t at = c.groups_count++;
            servers[at] = (struct ctl_server){
                .id = 1, .address = slice_text(w.address[gid])};
            groups[at] = (struct ctl_group){
                .gid = gid, .servers = &servers[at], .servers_count = 1};
        }
    }
    ctl_config_encode(out, &c);
}

static enum err answer_query(struct slice body, struct buf *out)
{
    struct ctl_query q;
    assert_int_equal(ctl_query_decode(body, NULL, &q), ERR_OK);
    if (q.number != CTL_LATEST && q.number > w.newest) {
        return ERR_NOTFOUND;
    }
    answer_config(q.number == CTL_LATEST ? w.newest : q.number, out);
    return ERR_OK;
}

static enum err answer_status(struct fake *f, struct buf *out)
{
    struct ctl_heard heard = {.gid = w.heard_gid, .ago_ms = 25000};
    f->status.applied += f->step;
    f->status.gid = f->gid;
    f->status.id = f->status.leader = 1;
    f->status.role = RAFT_LEADER;
    f->status.moves = f->moves;
    f->status.peers = &(struct ctl_peer){.id = 1, .active = 1};
    f->status.peers_count = 1;
    f->status.heard = &heard;
    f->status.heard_count = f->gid == 0;
    ctl_status_encode(out, &f->status);
    f->status.peers = NULL;
    f->status.heard = NULL;
    return ERR_OK;
}

static enum err answer_read(struct slice body, struct buf *out)
{
    struct arena a = {0};
    struct skv_request r;
    assert_int_equal(skv_request_decode(body, &a, &r), ERR_OK);
    const struct skv_item *item = &r.items[0];
    size_t left = w.value.size - (size_t)item->offset;
    size_t size = left < item->number ? left : (size_t)item->number;
    struct skv_result result = {
        .number = w.value.size,
        .data = slice_of(w.value.data + item->offset, size)};
    struct skv_reply reply = {.results = &result, .results_count = 1};
    skv_reply_encode(out, &reply);
    arena_free(&a);
    w.reads++;
    return ERR_OK;
}

static enum err answer_cut(struct buf *out)
{
    struct skv_cut_reply reply = {.index = 7};
    skv_cut_reply_encode(out, &reply);
    return ERR_OK;
}

static enum err answer_view(struct buf *out)
{
    struct skv_seen seen = {.index = 7, .crc = 1, .last = 1};
    skv_seen_encode(out, &seen);
    return ERR_OK;
}

static enum err answer_change(struct buf *out)
{
    struct ctl_changed changed = {.number = ++w.newest};
    assert_true(w.newest < CONFIGS);
    w.changes++;
    ctl_changed_encode(out, &changed);
    return ERR_OK;
}

/* Of any group: the last fake leads it, with another that is halted. */
static enum err answer_members(struct buf *out)
{
    struct rsm_member both[] = {
        {.id = 1, .address = slice_text(w.fakes[1].address), .role = RSM_VOTER},
        {.id = 2,
         .address = slice_text(w.fakes[GROUPS].address),
         .role = RSM_VOTER,
         .active = 1}};
    struct rsm_members m = {
        .leader = 2, .term = 5, .members = both, .members_count = 2};
    rsm_members_encode(out, &m);
    return ERR_OK;
}

static enum err answer(struct fake *f, net_method method, struct slice body,
                       struct buf *out)
{
    struct ctl_mounts none = {0};
    switch (method) {
    case CTL_METHOD_QUERY: return answer_query(body, out);
    case CTL_METHOD_CHANGE: return answer_change(out);
    case CTL_METHOD_MOUNTS: ctl_mounts_encode(out, &none); return ERR_OK;
    case CTL_METHOD_STATUS:
    case SKV_METHOD_STATUS: return answer_status(f, out);
    case SKV_METHOD_READ: return answer_read(body, out);
    case SKV_METHOD_CUT: return answer_cut(out);
    case SKV_METHOD_VIEW: return answer_view(out);
    case RSM_METHOD_MEMBERS: return answer_members(out);
    default: return ERR_INVALID;
    }
}

static void handle(void *arg, struct net_request *request,
                   const struct net_peer *peer, net_method method,
                   struct slice body)
{
    struct fake *f = arg;
    struct buf out = {0};
    (void)peer;
    pthread_mutex_lock(&w.lock);
    if (!f->silent && request != NULL) {
        enum err rc = answer(f, method, body, &out);
        net_reply(rpc_net(f->rpc), request, rc, buf_slice(&out));
    }
    pthread_mutex_unlock(&w.lock);
    buf_free(&out);
}

/* ---- life ---- */

static void certify(const char *dir, const char *name, const char *unit)
{
    struct tls_identity who = {
        .name = name, .unit = unit, .hosts = "127.0.0.1", .days = 30};
    assert_int_equal(tls_make_certificate(dir, &who), ERR_OK);
}

static void fake_open(struct fake *f, ctl_gid gid, const char *certs)
{
    char name[16], unit[16], problem[256];
    snprintf(name, sizeof name, "s%u", gid);
    snprintf(unit, sizeof unit, "server:%u", gid);
    certify(certs, name, unit);
    f->gid = gid;
    assert_int_equal(
        tls_context_new(certs, name, &f->context, problem, sizeof problem),
        ERR_OK);
    assert_int_equal(rpc_new(w.loop, f->context, &f->rpc), ERR_OK);
    rpc_net(f->rpc)->handler = handle;
    rpc_net(f->rpc)->handler_arg = f;
    assert_int_equal(rpc_listen(f->rpc, "127.0.0.1:0"), ERR_OK);
    snprintf(f->address, sizeof f->address, "127.0.0.1:%u", rpc_port(f->rpc));
}

static void *run_loop(void *arg)
{
    net_loop_run(arg);
    return NULL;
}

/* Of replica 1 of each, and of one that was begun and is no member. */
static void describe(const char *begun)
{
    struct cluster c = {.shard_count = SHARDS, .replica_count = 4};
    assert_non_null(realpath(w.dir, c.dir));
    for (uint32_t i = 0; i < 3; i++) {
        c.replicas[i] = (struct cluster_replica){.gid = i, .id = 1};
        strcpy(c.replicas[i].address, w.fakes[i].address);
        cluster_replica_name(&c.replicas[i]);
    }
    c.replicas[3] =
        (struct cluster_replica){.gid = 1, .id = 2, .unfinished = true};
    strcpy(c.replicas[3].address, begun);
    cluster_replica_name(&c.replicas[3]);
    assert_true(cluster_save(&c));
}

static int open_all(void **state)
{
    (void)state;
    char certs[80], run[80];
    log_set_level(LOG_LEVEL_OFF);
    strcpy(w.dir, "/tmp/test_cmd_XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    snprintf(certs, sizeof certs, "%s/certs", w.dir);
    snprintf(run, sizeof run, "%s/run", w.dir);
    assert_int_equal(mkdir(certs, 0700), 0);
    assert_int_equal(mkdir(run, 0700), 0);
    assert_int_equal(tls_make_ca(certs, "test", 30), ERR_OK);
    certify(certs, "client", "client");
    certify(certs, "admin", "admin");
    assert_int_equal(net_loop_new(&w.loop), ERR_OK);
    for (ctl_gid gid = 0; gid <= GROUPS; gid++) {
        fake_open(&w.fakes[gid], gid, certs);
    }
    describe(NOBODY);
    setenv("FLOTILLA_CLUSTER", w.dir, 1);
    pthread_mutex_lock(&w.lock);
    return pthread_create(&w.thread, NULL, run_loop, w.loop);
}

static int close_all(void **state)
{
    (void)state;
    pthread_mutex_unlock(&w.lock);
    net_loop_stop(w.loop);
    pthread_join(w.thread, NULL);
    for (ctl_gid gid = 0; gid <= GROUPS; gid++) {
        rpc_free(w.fakes[gid].rpc);
        tls_context_free(w.fakes[gid].context);
    }
    net_loop_free(w.loop);
    buf_free(&w.value);
    char *command = mem_printf("rm -rf %s", w.dir);
    int rc = system(command);
    mem_free(command);
    return rc;
}

/* Two groups with two shards each, and all is well. */
static void reset(void)
{
    static const ctl_gid even[SHARDS] = {1, 1, 2, 2};
    for (ctl_gid gid = 0; gid <= GROUPS; gid++) {
        w.fakes[gid].silent = false;
        w.fakes[gid].step = 0;
        w.fakes[gid].status = (struct ctl_status){.config_number = 1};
        w.address[gid] = w.fakes[gid].address;
    }
    memset(w.owners, 0, sizeof w.owners);
    memcpy(w.owners[1], even, sizeof even);
    w.newest = 1;
    w.reads = w.changes = 0;
    w.heard_gid = 0;
}

/* ---- running a command ---- */

struct outcome {
    int status;
    uint64_t ms;
    char *out, *err; /* zero at the end; of `out_size` bytes */
    size_t out_size;
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static char *contents(int file, size_t *size)
{
    char *text = mem_alloc(OUTPUT_MAX);
    ssize_t n = pread(file, text, OUTPUT_MAX - 1, 0);
    assert_true(n >= 0);
    *size = (size_t)n;
    return text;
}

/* Words of standard input, or NULL. */
static struct outcome run(const char *line, const char *input)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"kv", cmd_kv},
                    {"shards", cmd_shards},
                    {"status", cmd_status},
                    {"fsck", cmd_fsck},
                    {"member", cmd_member}};
    char *copy = mem_printf("%s", line), *rest = copy, *argv[16] = {0};
    int argc = 0, saved[3], files[3];
    struct outcome o = {.status = -1};
    size_t size = 0;
    for (char *word; (word = strsep(&rest, " ")) != NULL;) {
        argv[argc++] = word;
    }
    fflush(NULL);
    for (int fd = 0; fd < 3; fd++) {
        char name[] = "/tmp/test_cmd_out_XXXXXX";
        saved[fd] = dup(fd);
        files[fd] = mkstemp(name);
        unlink(name);
        assert_true(fd != 0 || input == NULL ||
                    pwrite(files[0], input, strlen(input), 0) > 0);
        dup2(files[fd], fd);
    }
    pthread_mutex_unlock(&w.lock);
    uint64_t began = now_ms();
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[0], commands[i].name) == 0) {
            o.status = commands[i].run(argc, argv);
        }
    }
    o.ms = now_ms() - began;
    pthread_mutex_lock(&w.lock);
    fflush(NULL);
    for (int fd = 0; fd < 3; fd++) {
        dup2(saved[fd], fd);
        close(saved[fd]);
    }
    clearerr(stdin);
    o.out = contents(files[1], &o.out_size);
    o.err = contents(files[2], &size);
    for (int fd = 0; fd < 3; fd++) {
        close(files[fd]);
    }
    mem_free(copy);
    return o;
}

static void outcome_free(struct outcome *o)
{
    mem_free(o->out);
    mem_free(o->err);
}

static void has(const char *text, const char *words)
{
    if (strstr(text, words) == NULL) {
        fail_msg("no '%s' in:\n%s", words, text);
    }
}

/* ---- values ---- */

/* Wrong if a value that one put can write is read in pieces, which are of
 * several moments, or if a longer one loses a piece. */
static void values_of_megabytes_are_read_whole(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,       1,      1 << 20, (1 << 20) + 1,
                                   2 << 20, 3 << 20};
    static const uint32_t reads[] = {1, 1, 1, 1, 1, 2};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        reset();
        buf_clear(&w.value);
        uint8_t *bytes = buf_extend(&w.value, sizes[i]);
        for (size_t k = 0; k < sizes[i]; k++) {
            bytes[k] = (uint8_t)(k * 7 + k / 251);
        }
        struct outcome o = run("kv get k", NULL);
        assert_int_equal(o.status, EXIT_DONE);
        assert_int_equal(o.out_size, sizes[i]);
        assert_int_equal(w.reads, reads[i]);
        assert_memory_equal(o.out, w.value.data, sizes[i]);
        outcome_free(&o);
    }
}

/* ---- deadlines ---- */

/* Wrong if a command hangs, or gives up long after it was told to, whoever is
 * silent. */
static void every_command_keeps_to_its_timeout(void **state)
{
    (void)state;
    static const struct {
        const char *line, *input, *words;
        bool controller; /* it is silent; else both groups are */
        uint32_t least_ms;
    } cases[] = {
        {"kv get k -t 2000", NULL, "did not answer for 2000 ms", false, 1950},
        {"kv put k v -t 2000", NULL, "did not answer for 2000 ms", false, 1950},
        {"kv txn -t 2000", "put k v\nput l v\n", "did not answer", false, 1950},
        {"kv get k --timeout 800", NULL, "no configuration within 800", true,
         750},
        {"shards query -t 800", NULL, "no configuration within 800", true, 750},
        {"shards leave 2 -t 5000", NULL, "group 2: only 0 of 1", false, 450},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        reset();
        w.fakes[0].silent = cases[i].controller;
        w.fakes[1].silent = w.fakes[2].silent = !cases[i].controller;
        struct outcome o = run(cases[i].line, cases[i].input);
        has(o.err, cases[i].words);
        assert_int_equal(o.status, EXIT_FAILED);
        assert_in_range(o.ms, cases[i].least_ms, 6000);
        assert_int_equal(w.changes, 0);
        outcome_free(&o);
    }
}

/* Wrong if somebody who gave no line is only told that it makes no sense. */
static void an_empty_transaction_is_called_so(void **state)
{
    (void)state;
    static const char *const inputs[] = {NULL, "\n# put k v\n\n"};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        reset();
        struct outcome o = run("kv txn", inputs[i]);
        assert_int_equal(o.status, EXIT_USAGE);
        has(o.err, "the transaction is empty: kv txn takes lines such as ");
        has(o.err, "'put KEY VALUE'");
        has(o.err, "--help");
        outcome_free(&o);
    }
    reset();
    struct outcome o = run("kv txn", "get k\n");
    assert_int_equal(o.status, EXIT_DONE);
    outcome_free(&o);
}

/* Wrong if who is halted is waited for as long as if nobody answered, or if it
 * is left before it was given a chance. */
static void who_is_silent_among_others_is_soon_left(void **state)
{
    (void)state;
    reset();
    w.fakes[2].silent = true;
    struct outcome o = run("status", NULL);
    assert_int_equal(o.status, EXIT_UNWELL);
    has(o.out, "replica 1 of group 2 at");
    has(o.out, "does not answer");
    assert_null(strstr(o.out, "replica 1 of group 1 at"));
    assert_in_range(o.ms, 450, 1500);
    outcome_free(&o);
}

/* Wrong if those of a group are asked one after the other. */
static void a_leader_is_found_behind_one_that_is_halted(void **state)
{
    (void)state;
    reset();
    describe(w.fakes[GROUPS].address);
    w.fakes[1].silent = true;
    struct outcome o = run("member list 1", NULL);
    describe(NOBODY);
    assert_int_equal(o.status, EXIT_DONE);
    has(o.out, "group 1: term 5");
    has(o.out, "does not answer");
    assert_in_range(o.ms, 0, 450);
    outcome_free(&o);
}

/* ---- shards ---- */

static void join_group_3(const char *address, int status, const char *words)
{
    char line[128];
    reset();
    memcpy(w.owners[2], w.owners[1], sizeof w.owners[2]);
    snprintf(line, sizeof line, "shards join 3=%s", address);
    struct outcome o = run(line, NULL);
    has(o.err, words);
    assert_int_equal(o.status, status);
    assert_int_equal(w.changes, status == EXIT_DONE);
    outcome_free(&o);
}

/* Wrong if shards are given to who never takes them. */
static void who_does_not_run_cannot_join(void **state)
{
    (void)state;
    join_group_3(NOBODY, EXIT_FAILED,
                 "group 3 does not run there: 0 of 1 addresses answer");
    join_group_3(w.fakes[2].address, EXIT_FAILED, "does not run there");
    join_group_3(w.fakes[3].address, EXIT_DONE, "");
}

/* The change that takes group 2 out is made, and it is dead. */
static void group_2_leaves_dead(void)
{
    static const ctl_gid one[SHARDS] = {1, 1, 1, 1};
    reset();
    struct fake *f = &w.fakes[1];
    memcpy(w.owners[2], one, sizeof one);
    w.address[2] = NOBODY;
    w.heard_gid = 2;
    f->status.config_number = 2;
    f->status.arriving = 2;
    f->status.moves_count = 1; /* the other is one that waits */
    f->moves[0] = (struct ctl_move){.shard = 3, .from = 2};
}

/* Wrong if a group that left and died is not shown, or not that shards are with
 * it, which and since when. */
static void status_names_what_a_dead_group_that_left_still_has(void **state)
{
    (void)state;
    group_2_leaves_dead();
    w.newest = 2;
    struct outcome o = run("status", NULL);
    assert_int_equal(o.status, EXIT_UNWELL);
    has(o.out, "PROBLEM group 2: only 0 of 1 replicas answer");
    has(o.out, "last spoke to the controllers 25 s ago");
    has(o.out, "it has shards 2-3;");
    has(o.out, "group 1 waits for some of them");
    outcome_free(&o);
    o = run("shards query", NULL);
    assert_int_equal(o.status, EXIT_DONE);
    has(o.out, "PROBLEM group 2: only 0 of 1 replicas answer");
    has(o.out, "shards 2-3 waits for it");
    outcome_free(&o);
}

/* Wrong if such a change is made without a word: it cannot be taken back. */
static void a_dead_group_leaves_only_by_force(void **state)
{
    (void)state;
    static const char *const lines[] = {"shards leave 2", "shards move 2 1",
                                        "shards weight 1 2"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        group_2_leaves_dead();
        w.fakes[1].status = (struct ctl_status){.config_number = 1};
        struct outcome o = run(lines[i], NULL);
        assert_int_equal(o.status, EXIT_FAILED);
        assert_int_equal(w.changes, 0);
        has(o.err, "group 2: only 0 of 1 replicas answer");
        has(o.err, "what is in shards 2-3 waits for it");
        has(o.err, "not changed");
        outcome_free(&o);
    }
    struct outcome o = run("shards leave 2 --force", NULL);
    assert_int_equal(o.status, EXIT_DONE);
    assert_int_equal(w.changes, 1);
    has(o.err, "changed all the same");
    outcome_free(&o);
    reset(); /* a move between others is no concern of the dead */
    w.owners[1][3] = w.owners[2][3] = 3;
    memcpy(w.owners[2], w.owners[1], sizeof w.owners[2]);
    w.address[3] = NOBODY;
    o = run("shards move 2 1", NULL);
    assert_int_equal(o.status, EXIT_DONE);
    assert_int_equal(w.changes, 1);
    outcome_free(&o);
}

/* Wrong if the wait goes on for ever, or does not say what is missing and who
 * is to blame. */
static void a_wait_ends_and_says_what_is_missing(void **state)
{
    (void)state;
    group_2_leaves_dead();
    struct outcome o = run("shards leave 2 --force --wait -t 1000", NULL);
    assert_int_equal(o.status, EXIT_FAILED);
    assert_int_equal(w.changes, 1);
    assert_in_range(o.ms, 950, 6000);
    has(o.out, "configuration 2");
    has(o.err, "within 1000 ms 2 of 2 shards have not arrived");
    has(o.err, "from group 2 to group 1: 2-3\n");
    has(o.err, "group 2: only 0 of 1 replicas answer");
    outcome_free(&o);

    group_2_leaves_dead(); /* one has arrived, and both live */
    w.address[2] = w.fakes[2].address;
    w.fakes[1].status.arriving = 1;
    o = run("shards leave 2 --wait -t 1000", NULL);
    assert_int_equal(o.status, EXIT_FAILED);
    has(o.err, "1 of 2 shards have not arrived");
    has(o.err, "from group 2 to group 1: 3\n");
    has(o.err, "group 2 is at configuration 1");
    outcome_free(&o);

    group_2_leaves_dead(); /* both have */
    w.address[2] = w.fakes[2].address;
    w.fakes[1].status.arriving = w.fakes[1].status.moves_count = 0;
    w.fakes[2].status.config_number = 2;
    o = run("shards leave 2 --wait -t 30000", NULL);
    assert_int_equal(o.status, EXIT_DONE);
    assert_in_range(o.ms, 0, 20000);
    outcome_free(&o);
}

/* ---- fsck, status ---- */

/* Wrong if one dead group keeps the others from being compared, or if what was
 * not compared passes for good. */
static void fsck_compares_those_that_answer(void **state)
{
    (void)state;
    reset();
    struct outcome o = run("fsck --kv", NULL);
    assert_int_equal(o.status, EXIT_DONE);
    has(o.out, "group 2: OK");
    assert_null(strstr(o.out, "INCOMPLETE"));
    outcome_free(&o);
    w.address[2] = NOBODY;
    o = run("fsck --kv", NULL);
    assert_int_equal(o.status, EXIT_FAILED);
    has(o.out, "group 1: OK: 1 of 1 replicas hold the same at index 7");
    has(o.out, "group 2: was not compared");
    has(o.out, "INCOMPLETE: 1 of 2 groups");
    outcome_free(&o);
}

/* Wrong if the count is of what was met first, or only says that there are
 * any. */
static void fsck_counts_all_that_are_missing(void **state)
{
    (void)state;
    static const ctl_gid three[SHARDS] = {1, 2, 3, 3};
    reset();
    memcpy(w.owners[1], three, sizeof three);
    w.address[1] = w.address[3] = NOBODY;
    struct outcome o = run("fsck --kv", NULL);
    assert_int_equal(o.status, EXIT_FAILED);
    has(o.out, "group 1: was not compared");
    has(o.out, "group 2: OK: 1 of 1 replicas hold the same at index 7");
    has(o.out, "group 3: was not compared");
    has(o.out, "INCOMPLETE: 2 of 3 groups");
    outcome_free(&o);
}

static void shows_move(struct ctl_move move, const char *words,
                       const char *json)
{
    reset();
    w.fakes[1].status.moves_count = 1;
    w.fakes[1].moves[0] = move;
    struct outcome o = run("status", NULL);
    has(o.out, words);
    outcome_free(&o);
    o = run("status --json", NULL);
    has(o.out, json);
    outcome_free(&o);
}

/* Wrong if more has gone than there is. */
static void what_has_gone_is_at_most_all_there_is(void **state)
{
    (void)state;
    struct ctl_move m = {.shard = 3,
                         .from = 2,
                         .stage = CTL_MOVE_COPY,
                         .keys = 50,
                         .keys_all = 100,
                         .bytes = 400 << 20,
                         .bytes_all = 990 << 20};
    shows_move(m, " 40 % copying, 400 of 990 MiB, 50 of 100 keys\n",
               "\"changed_bytes\": 0,");
    m.bytes = 1000 << 20; /* it grew after it was counted */
    m.keys = 101;
    shows_move(m, "100 % copying, 1000 of 1000 MiB, 101 of 101 keys\n",
               "\"bytes_all\": 1048576000,");
    m.stage = CTL_MOVE_CHANGES;
    m.bytes = 1440 << 20;
    m.keys = 130;
    shows_move(m,
               "100 % catching up, 990 MiB, 100 keys copied, and 450 MiB, 30 "
               "keys of changes\n",
               "\"changed_bytes\": 471859200,");
    m.bytes = 980 << 20; /* it shrank */
    m.stage = CTL_MOVE_TAIL;
    shows_move(m, "handing over, 980 MiB, 100 keys copied, and 0 MiB, 30 keys",
               "\"changed_keys\": 30,");
    m.stage = CTL_MOVE_COUNT; /* of one batch that has come already */
    m.bytes = 2 << 20;
    m.bytes_all = 1 << 20;
    shows_move(m, "  0 % counting, 2 MiB,", "\"bytes_all\": 2097152,");
}

static void group_1_lacks(uint64_t entries, uint64_t step)
{
    reset();
    w.fakes[1].status.commit = 12000;
    w.fakes[1].status.applied = 12000 - entries;
    w.fakes[1].step = step;
    w.fakes[2].status.commit = 5;
    w.fakes[2].status.applied = 6; /* it was asked a little later */
}

/* Wrong if a replica that does not get on passes for well, or one that lacks
 * only what is on its way for one that does not. */
static void status_says_who_is_behind(void **state)
{
    (void)state;
    group_1_lacks(10700, 1);
    struct outcome o = run("status", NULL);
    assert_int_equal(o.status, EXIT_UNWELL);
    has(o.out, "PROBLEM replica 1 of group 1 is behind: of 10699 entries that "
               "were committed 3 s ago");
    assert_null(strstr(o.out, "group 2 is behind"));
    assert_in_range(o.ms, 2950, 5000);
    outcome_free(&o);
    group_1_lacks(10700, 0);
    o = run("status --json", NULL);
    assert_int_equal(o.status, EXIT_UNWELL);
    has(o.out, "\"behind\": 10700");
    has(o.out, "\"behind\": 0");
    has(o.out, "\"replica 1 of group 1 is behind: of 10700 entries");
    has(o.out, "has executed 0 since");
    outcome_free(&o);
    group_1_lacks(9000, 3000); /* under load */
    w.fakes[2].status.commit = 7;
    w.fakes[2].step = 1;
    o = run("status", NULL);
    assert_int_equal(o.status, EXIT_DONE);
    has(o.out, "all is well");
    assert_in_range(o.ms, 0, 1500);
    outcome_free(&o);
}

/* Wrong if a leader that has lost sight of the controllers passes for well, or
 * one that had nobody to hear. */
static void status_says_who_hears_no_controller(void **state)
{
    (void)state;
    const struct {
        uint64_t controllers_ms, uptime_ms;
        bool told;
    } cases[] = {{45999, 60000, true},
                 {29999, 60000, false},
                 {45999, 29999, false}}; /* they have just been started */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        reset();
        w.fakes[1].status.controllers_ms = cases[i].controllers_ms;
        w.fakes[0].status.uptime_ms = cases[i].uptime_ms;
        struct outcome o = run("status", NULL);
        assert_int_equal(o.status, cases[i].told ? EXIT_UNWELL : EXIT_DONE);
        assert_int_equal(cases[i].told,
                         strstr(o.out, "PROBLEM replica 1 of group 1 leads, "
                                       "and no controller has answered it for "
                                       "45 s") != NULL);
        assert_null(strstr(o.out, "group 2 leads"));
        outcome_free(&o);
        o = run("status --json", NULL);
        assert_int_equal(o.status, cases[i].told ? EXIT_UNWELL : EXIT_DONE);
        has(o.out, "\"controllers_heard_ms\": 0");
        outcome_free(&o);
    }
}

/* "PID STARTTIME": this test's own. */
static void run_as(const char *name)
{
    char path[128], text[1024];
    FILE *f = fopen("/proc/self/stat", "r");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof text, f));
    fclose(f);
    char *rest = strrchr(text, ')') + 2;
    for (int field = 3; field < 22; field++) {
        strsep(&rest, " ");
    }
    snprintf(path, sizeof path, "%s/run/%s.pid", w.dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "%d %s\n", (int)getpid(), strsep(&rest, " "));
    fclose(f);
}

/* Wrong if what a broken-off `member add` left running is not mentioned. */
static void status_names_a_process_that_is_no_member(void **state)
{
    (void)state;
    reset();
    run_as("g1-1");
    struct outcome o = run("status", NULL);
    has(o.out, "all is well"); /* g1-2 does not run: nothing to say */
    outcome_free(&o);
    run_as("g1-2");
    o = run("status", NULL);
    assert_int_equal(o.status, EXIT_UNWELL);
    has(o.out, "PROBLEM g1-2 at " NOBODY " runs, and is no member");
    has(o.out, "`flotilla member add 1` makes it one");
    has(o.out, "`flotilla member remove 1 2` takes it away");
    assert_null(strstr(o.out, "g1-1"));
    outcome_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_megabytes_are_read_whole),
        cmocka_unit_test(every_command_keeps_to_its_timeout),
        cmocka_unit_test(an_empty_transaction_is_called_so),
        cmocka_unit_test(who_is_silent_among_others_is_soon_left),
        cmocka_unit_test(a_leader_is_found_behind_one_that_is_halted),
        cmocka_unit_test(who_does_not_run_cannot_join),
        cmocka_unit_test(status_names_what_a_dead_group_that_left_still_has),
        cmocka_unit_test(a_dead_group_leaves_only_by_force),
        cmocka_unit_test(a_wait_ends_and_says_what_is_missing),
        cmocka_unit_test(fsck_compares_those_that_answer),
        cmocka_unit_test(fsck_counts_all_that_are_missing),
        cmocka_unit_test(what_has_gone_is_at_most_all_there_is),
        cmocka_unit_test(status_says_who_is_behind),
        cmocka_unit_test(status_says_who_hears_no_controller),
        cmocka_unit_test(status_names_a_process_that_is_no_member),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
