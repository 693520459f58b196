/* A controller and a group over real sockets and TLS, and those who ask for
 * what their certificate is not for. Each is refused, the log says who and why,
 * and others are served on. Frames, handshakes and bad certificates are in
 * test_rpc.c. */
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
#include <unistd.h>

#include "base/log.h"
#include "raft/raft.h"
#include "rsm/rsm_int.h"
#include "shardctrler/server.h"
#include "shardkv/command_int.h"
#include "shardkv/server.h"
#include "transport/rpc.h"

/* What is waited for comes at once, or at the first election: nobody waits 30 s
 * unless a test fails. */
enum { SHARDS = 4, CALL_MS = 30000, TRIES = 3000, TRY_US = 10000 };

static char dir[] = "/tmp/test_hostile_XXXXXX";

/* The thread sanitizer follows descriptors, but sees neither how libuv closes
 * them nor openat(): a number that the disk gets after a socket of another
 * thread looks shared. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:raft/storage/disk_real.c\n";
}

/* ---- what the servers say ---- */

static int said_fd, stderr_fd;

static void listen_to_log(void)
{
    char *path = mem_printf("%s/log", dir);
    said_fd = open(path, O_RDWR | O_CREAT | O_APPEND, 0600);
    stderr_fd = dup(STDERR_FILENO);
    assert_true(said_fd >= 0 && stderr_fd >= 0);
    dup2(said_fd, STDERR_FILENO);
    mem_free(path);
}

/* Since the last time it was asked. The line may come a moment after the
 * reply. */
static bool was_said(const char *words)
{
    static char text[1 << 20];
    for (int i = 0; i < TRIES; i++) {
        ssize_t size = pread(said_fd, text, sizeof text - 1, 0);
        text[size > 0 ? size : 0] = '\0';
        if (strstr(text, words) != NULL) {
            assert_int_equal(ftruncate(said_fd, 0), 0);
            return true;
        }
        usleep(TRY_US);
    }
    print_error("the log has:\n%s", text);
    return false;
}

/* Strangers' lines are five a second: let the next one be among them. */
static void log_may_speak(void)
{
    usleep(1100000);
}

/* ---- ends ---- */

struct end {
    struct tls_context *context;
    struct net_loop *loop;
    struct rpc *rpc;
    char address[NET_ADDRESS_SIZE_MAX];
    pthread_t thread;
};

static void end_open(struct end *e, const char *name)
{
    char problem[256] = "";
    *e = (struct end){0};
    /* "other/op" is op of another directory. */
    const char *slash = strchr(name, '/');
    char *where = slash == NULL ? mem_strdup(dir) : mem_printf("%s/other", dir);
    if (tls_context_new(where, slash == NULL ? name : slash + 1, &e->context,
                        problem, sizeof problem) != ERR_OK) {
        fail_msg("%s", problem);
    }
    mem_free(where);
    assert_int_equal(net_loop_new(&e->loop), ERR_OK);
    assert_int_equal(rpc_new(e->loop, e->context, &e->rpc), ERR_OK);
}

static void end_listen(struct end *e)
{
    assert_int_equal(rpc_listen(e->rpc, "127.0.0.1:0"), ERR_OK);
    snprintf(e->address, sizeof e->address, "127.0.0.1:%u", rpc_port(e->rpc));
}

static void *end_main(void *arg)
{
    net_loop_run(((struct end *)arg)->loop);
    return NULL;
}

static void end_run(struct end *e)
{
    assert_int_equal(pthread_create(&e->thread, NULL, end_main, e), 0);
}

static void end_stop(struct end *e)
{
    net_loop_stop(e->loop);
    pthread_join(e->thread, NULL);
}

static void end_close(struct end *e)
{
    rpc_free(e->rpc);
    net_loop_free(e->loop);
    tls_context_free(e->context);
}

/* ---- the two servers ---- */

static struct end ctl_end, skv_end;
static struct disk *ctl_disk, *skv_disk;
static struct ctl_replica *ctl;
static struct skv_server *skv;
static struct skv_mem_image image;

static struct disk *disk_open(const char *name)
{
    struct disk *disk = NULL;
    char *path = mem_printf("%s/%s", dir, name);
    assert_int_equal(disk_real_open(path, &disk), ERR_OK);
    mem_free(path);
    return disk;
}

static void start_controller(void)
{
    end_open(&ctl_end, "ctl");
    end_listen(&ctl_end);
    ctl_disk = disk_open("ctl-data");
    struct ctl_server_config c = {.env = net_loop_env(ctl_end.loop),
                                  .net = rpc_net(ctl_end.rpc),
                                  .disk = ctl_disk,
                                  .id = 1,
                                  .peers = {{.id = 1}},
                                  .peer_count = 1,
                                  .wal_segment_size = 1 << 20,
                                  .shard_count = SHARDS};
    strcpy(c.peers[0].address, ctl_end.address);
    assert_int_equal(ctl_replica_new(&c, &ctl), ERR_OK);
    end_run(&ctl_end);
}

static void start_group(void)
{
    end_open(&skv_end, "g1");
    end_listen(&skv_end);
    skv_disk = disk_open("g1-data");
    struct skv_server_config c = {.env = net_loop_env(skv_end.loop),
                                  .net = rpc_net(skv_end.rpc),
                                  .disk = skv_disk,
                                  .store = skv_store_mem_open(&image),
                                  .gid = 1,
                                  .id = 1,
                                  .peers = {{.id = 1}},
                                  .peer_count = 1,
                                  .controller_count = 1,
                                  .wal_segment_size = 1 << 20};
    strcpy(c.peers[0].address, skv_end.address);
    strcpy(c.controllers[0], ctl_end.address);
    assert_int_equal(skv_server_new(&c, &skv), ERR_OK);
    end_run(&skv_end);
}

static void make(const char *name, const char *unit)
{
    struct tls_identity who = {
        .name = name, .unit = unit, .hosts = "127.0.0.1", .days = 3};
    assert_int_equal(tls_make_certificate(dir, &who), ERR_OK);
}

static int set_up(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(tls_make_ca(dir, "test", 3), ERR_OK);
    make("ctl", "server:0");
    make("g1", "server:1");
    make("g2", "server:2");
    make("g3", "server:3");
    make("mount", "client");
    make("op", "admin");
    listen_to_log();
    start_controller();
    start_group();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    end_stop(&skv_end);
    end_stop(&ctl_end);
    skv_server_free(skv);
    ctl_replica_free(ctl);
    end_close(&skv_end);
    end_close(&ctl_end);
    disk_real_close(skv_disk);
    disk_real_close(ctl_disk);
    skv_mem_image_fini(&image);
    dup2(stderr_fd, STDERR_FILENO);
    close(stderr_fd);
    close(said_fd);
    char *command = mem_printf("rm -rf %s", dir);
    int rc = system(command);
    mem_free(command);
    return rc;
}

/* ---- callers ---- */

struct caller {
    struct end end;
    enum err rc;
    struct buf body;
    struct arena arena;
};

static void caller_open(struct caller *c, const char *name)
{
    *c = (struct caller){0};
    end_open(&c->end, name);
}

static void caller_close(struct caller *c)
{
    end_close(&c->end);
    buf_free(&c->body);
    arena_free(&c->arena);
}

static void answered(void *arg, enum err rc, struct slice body)
{
    struct caller *c = arg;
    c->rc = rc;
    buf_clear(&c->body);
    buf_append(&c->body, body.data, body.size);
    net_loop_stop(c->end.loop);
}

static enum err call(struct caller *c, const char *address, net_method method,
                     const struct buf *body)
{
    struct slice part = buf_slice(body);
    net_call(rpc_net(c->end.rpc), address, method, &part, 1, CALL_MS, answered,
             c);
    net_loop_run(c->end.loop);
    return c->rc;
}

static enum err call_as(const char *name, const char *address,
                        net_method method, const struct buf *body)
{
    struct caller c;
    caller_open(&c, name);
    enum err rc = call(&c, address, method, body);
    caller_close(&c);
    return rc;
}

/* ---- what is asked ---- */

static struct buf change_body(ctl_gid gid, const char *address,
                              uint64_t sequence)
{
    struct buf b = {0};
    struct ctl_server server = {.id = 1, .address = slice_text(address)};
    struct ctl_group group = {
        .gid = gid, .servers = &server, .servers_count = 1};
    struct ctl_change change = {.session = 77,
                                .sequence = sequence,
                                .kind = CTL_JOIN,
                                .join = &group,
                                .join_count = 1};
    ctl_change_encode(&b, &change);
    return b;
}

static void join(ctl_gid gid, const char *address, uint64_t sequence)
{
    struct buf b = change_body(gid, address, sequence);
    struct caller c;
    caller_open(&c, "op");
    struct ctl_changed changed = {.rc = ERR_BUSY};
    for (int i = 0; i < TRIES && changed.rc == ERR_BUSY; i++) {
        if (call(&c, ctl_end.address, CTL_METHOD_CHANGE, &b) == ERR_OK) {
            assert_int_equal(
                ctl_changed_decode(buf_slice(&c.body), &c.arena, &changed),
                ERR_OK);
        } else {
            usleep(TRY_US); /* no leader yet */
        }
    }
    assert_int_equal(changed.rc, ERR_OK);
    caller_close(&c);
    buf_free(&b);
}

/* What the group says to a read of the shard. */
static enum err read_rc(struct caller *c, uint16_t shard)
{
    uint8_t key[9] = "";
    set_be64(key, (uint64_t)shard << 48 | 9);
    struct skv_item get = {
        .kind = SKV_GET, .key = slice_of(key, sizeof key), .number = 1};
    struct skv_request q = {.shard = shard, .items = &get, .items_count = 1};
    struct skv_reply reply = {.rc = ERR_NOTLEADER};
    struct buf b = {0};
    skv_request_encode(&b, &q);
    if (call(c, skv_end.address, SKV_METHOD_READ, &b) == ERR_OK) {
        assert_int_equal(
            skv_reply_decode(buf_slice(&c->body), &c->arena, &reply), ERR_OK);
    }
    buf_free(&b);
    return (enum err)reply.rc;
}

/* Gives a shard that answers so; -1 when none does, for long. */
static int shard_with(enum err rc)
{
    struct caller c;
    int found = -1;
    caller_open(&c, "mount");
    for (int i = 0; i < TRIES && found < 0; i++) {
        for (uint16_t s = 0; s < SHARDS && found < 0; s++) {
            found = read_rc(&c, s) == rc ? s : -1;
        }
        if (found < 0) {
            usleep(TRY_US);
        }
    }
    caller_close(&c);
    return found;
}

static void still_serves(void)
{
    assert_true(shard_with(ERR_OK) >= 0);
}

/* ---- tests, in this order ---- */

static enum err status_as(const char *name)
{
    struct buf empty = {0};
    return call_as(name, ctl_end.address, CTL_METHOD_STATUS, &empty);
}

static void bad_certificates_are_refused_and_it_says_why(void **state)
{
    (void)state;
    char *ours = mem_printf("cp %s/ca.crt %s/other", dir, dir);
    char *other = mem_printf("%s/other", dir);
    struct tls_identity old = {
        .name = "old", .unit = "admin", .hosts = "127.0.0.1"};
    struct tls_identity alien = {
        .name = "op", .unit = "admin", .hosts = "127.0.0.1", .days = 3};
    assert_int_equal(tls_make_certificate(dir, &old), ERR_OK);
    assert_int_equal(mkdir(other, 0700), 0);
    assert_int_equal(tls_make_ca(other, "test", 3), ERR_OK);
    assert_int_equal(tls_make_certificate(other, &alien), ERR_OK);
    assert_int_equal(status_as("old"), ERR_CLOSED);
    assert_true(was_said("certificate refused: certificate has expired"));
    /* It trusts us, so that it is we who refuse. */
    assert_int_equal(system(ours), 0);
    log_may_speak();
    assert_int_equal(status_as("other/op"), ERR_CLOSED);
    assert_true(was_said("closed: TLS: certificate refused: "));
    assert_int_equal(status_as("mount"), ERR_OK);
    mem_free(ours);
    mem_free(other);
}

static void only_an_admin_changes_the_configuration(void **state)
{
    (void)state;
    struct buf b = change_body(9, "127.0.0.1:1", 1);
    join(1, skv_end.address, 1); /* waits for a leader, too */
    static const char *const names[] = {"mount", "g1", "ctl"};
    static const char *const words[] = {
        "method=0x21 from=127.0.0.1:", "name=g1 role=server group=1",
        "name=ctl role=server group=0"};
    for (int i = 0; i < 3; i++) {
        log_may_speak();
        assert_int_equal(
            call_as(names[i], ctl_end.address, CTL_METHOD_CHANGE, &b),
            ERR_DENIED);
        assert_true(was_said(words[i]));
    }
    buf_free(&b);
    still_serves();
}

static void a_client_may_not_call_what_is_for_servers(void **state)
{
    (void)state;
    static const net_method methods[] = {SKV_METHOD_PULL, SKV_METHOD_SETTLE,
                                         RSM_METHOD_SNAP};
    static const char *const words[] = {"method=0x3a", "method=0x34",
                                        "method=0x11"};
    struct buf empty = {0};
    for (int i = 0; i < 3; i++) {
        log_may_speak();
        assert_int_equal(call_as("mount", skv_end.address, methods[i], &empty),
                         ERR_DENIED);
        assert_true(was_said(words[i]));
        assert_int_equal(call_as("op", skv_end.address, methods[i], &empty),
                         ERR_DENIED);
    }
    still_serves();
}

static uint64_t term_of(const char *address)
{
    struct caller c;
    struct buf empty = {0};
    struct ctl_status status;
    caller_open(&c, "mount");
    assert_int_equal(call(&c, address, CTL_METHOD_STATUS, &empty), ERR_OK);
    assert_int_equal(ctl_status_decode(buf_slice(&c.body), &c.arena, &status),
                     ERR_OK);
    uint64_t term = status.term;
    caller_close(&c);
    return term;
}

/* A Raft message of a stranger, with a term that would depose the leader. */
static void only_servers_of_the_group_speak_raft(void **state)
{
    (void)state;
    static const char *const names[] = {"mount", "op", "g1", "g2"};
    struct raft_msg m = {
        .type = RAFT_MSG_APPEND, .from = 1, .to = 1, .term = 1000, .commit = 1};
    struct buf b = {0}, empty = {0};
    m.from = 2;
    raft_msg_encode(&b, &m);
    struct slice part = buf_slice(&b);
    uint64_t term = term_of(ctl_end.address);
    for (int i = 0; i < 4; i++) {
        struct caller c;
        caller_open(&c, names[i]);
        net_send(rpc_net(c.end.rpc), ctl_end.address, RSM_METHOD_RAFT, &part,
                 1);
        /* On the same connection, so it comes after. */
        assert_int_equal(call(&c, ctl_end.address, CTL_METHOD_STATUS, &empty),
                         ERR_OK);
        caller_close(&c);
        char *words = mem_printf("no server of this group peer=%s", names[i]);
        assert_true(was_said(words));
        mem_free(words);
        assert_int_equal(
            call_as(names[i], ctl_end.address, RSM_METHOD_SNAP, &b),
            ERR_DENIED);
        log_may_speak();
    }
    assert_int_equal(term_of(ctl_end.address), term);
    buf_free(&b);
    still_serves();
}

/* Half of the shards go to group 2, which is not there: they stay frozen here.
 * Another group may neither have them, nor have them dropped. */
/* A shard that leaves for group 2, once the log says so. */
static int shard_that_leaves(void)
{
    for (int i = 0; i < TRIES; i++) {
        for (uint16_t shard = 0; shard < SHARDS; shard++) {
            struct buf b = {0};
            skv_pull_encode(&b,
                            &(struct skv_pull){.shard = shard, .number = 2});
            if (call_as("g2", skv_end.address, SKV_METHOD_PULL, &b) == ERR_OK) {
                buf_free(&b);
                return shard;
            }
            buf_free(&b);
        }
        usleep(TRY_US);
    }
    return -1;
}

static void a_leaving_shard_is_for_its_new_owner_alone(void **state)
{
    (void)state;
    join(2, "127.0.0.1:1", 2);
    int shard = shard_that_leaves();
    assert_true(shard >= 0);
    struct buf pull = {0}, count = {0}, step = {0};
    skv_pull_encode(&pull,
                    &(struct skv_pull){.shard = (uint16_t)shard, .number = 2});
    skv_count_encode(
        &count, &(struct skv_count){.shard = (uint16_t)shard, .number = 2});
    skv_step_encode(&step,
                    &(struct skv_step){.shard = (uint16_t)shard, .number = 2});
    const struct {
        net_method method;
        struct buf *body;
    } calls[] = {{SKV_METHOD_PULL, &pull},
                 {SKV_METHOD_COUNT, &count},
                 {SKV_METHOD_FREEZE, &step},
                 {SKV_METHOD_SETTLE, &step}};
    static const char *const others[] = {"g3", "ctl", "g1"};
    for (int i = 0; i < 3; i++) {
        log_may_speak();
        for (int k = 0; k < 4; k++) {
            assert_int_equal(call_as(others[i], skv_end.address,
                                     calls[k].method, calls[k].body),
                             ERR_DENIED);
            if (k == 0) { /* the lines of the others may be held back */
                assert_true(was_said("method=0x3a from=127.0.0.1:"));
            }
        }
    }
    assert_int_equal(call_as("g2", skv_end.address, SKV_METHOD_FREEZE, &step),
                     ERR_OK);
    assert_int_equal(shard_with(ERR_WRONGGROUP), shard);
    assert_int_equal(call_as("g2", skv_end.address, SKV_METHOD_PULL, &pull),
                     ERR_OK);
    assert_int_equal(call_as("g2", skv_end.address, SKV_METHOD_SETTLE, &step),
                     ERR_OK);
    assert_int_equal(call_as("g2", skv_end.address, SKV_METHOD_PULL, &pull),
                     ERR_INVALID); /* it goes */
    buf_free(&pull);
    buf_free(&count);
    buf_free(&step);
    still_serves();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_certificates_are_refused_and_it_says_why),
        cmocka_unit_test(only_an_admin_changes_the_configuration),
        cmocka_unit_test(a_client_may_not_call_what_is_for_servers),
        cmocka_unit_test(only_servers_of_the_group_speak_raft),
        cmocka_unit_test(a_leaving_shard_is_for_its_new_owner_alone),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
