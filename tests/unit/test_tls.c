/* Certificates and TLS streams on memory: who is let in, and who is not. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "tests/lib/stream.h"
#include "transport/tls.h"

static char dir[] = "/tmp/test_tls_XXXXXX";
static char other[] = "/tmp/test_tls_XXXXXX"; /* another cluster's CA */

static void make(const char *where, const char *name, const char *unit,
                 const char *hosts, uint32_t days)
{
    struct tls_identity who = {
        .name = name, .unit = unit, .hosts = hosts, .days = days};
    assert_int_equal(tls_make_certificate(where, &who), ERR_OK);
}

static uint64_t made_at;

static int make_all(void **state)
{
    (void)state;
    made_at = (uint64_t)time(NULL);
    assert_non_null(mkdtemp(dir));
    assert_non_null(mkdtemp(other));
    assert_int_equal(tls_make_ca(dir, "test", 30), ERR_OK);
    assert_int_equal(tls_make_ca(other, "test", 30), ERR_OK);
    make(dir, "s3", "server:3", "127.0.0.1,node3,::1", 30);
    make(dir, "mount", "client", "", 30);
    make(dir, "op", "admin", NULL, 30);
    make(dir, "old", "server:4", "127.0.0.1", 0);
    make(dir, "oldmount", "client", "", 0);
    make(other, "s3", "server:3", "127.0.0.1", 30);
    make(other, "mount", "client", "", 30);
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    char *command = mem_printf("rm -rf %s %s", dir, other);
    int rc = system(command);
    mem_free(command);
    return rc;
}

static struct tls_context *context(const char *where, const char *name)
{
    struct tls_context *c = NULL;
    char problem[256] = "";
    if (tls_context_new(where, name, &c, problem, sizeof problem) != ERR_OK) {
        fail_msg("%s", problem);
    }
    return c;
}

struct pair {
    struct tls_context *contexts[2];
    struct tls *ends[2]; /* 0 the client's, 1 the server's */
    struct buf plain[2];
    enum err rc[2];
};

static void pair_begin(struct pair *p, struct tls_context *client,
                       struct tls_context *server, const char *host)
{
    *p = (struct pair){.contexts = {client, server}};
    p->ends[0] = tls_new(client, false, host);
    p->ends[1] = tls_new(server, true, NULL);
    p->rc[0] = tls_read_all(p->ends[0], &p->plain[0]);
}

/* Carries ciphertext from one end to the other, `step` bytes at a time. */
static bool carry(struct pair *p, int from, size_t step)
{
    struct buf wire = {0};
    tls_drain(p->ends[from], &wire);
    bool moved = wire.size > 0;
    int to = 1 - from;
    for (size_t at = 0; at < wire.size && p->rc[to] == ERR_OK; at += step) {
        size_t size = wire.size - at < step ? wire.size - at : step;
        tls_feed(p->ends[to], slice_of(wire.data + at, size));
        p->rc[to] = tls_read_all(p->ends[to], &p->plain[to]);
    }
    buf_free(&wire);
    return moved;
}

static void exchange(struct pair *p, size_t step)
{
    while (carry(p, 0, step) | carry(p, 1, step)) {
    }
}

static void pair_end(struct pair *p)
{
    for (int i = 0; i < 2; i++) {
        tls_free(p->ends[i]);
        tls_context_free(p->contexts[i]);
        buf_free(&p->plain[i]);
    }
}

static void roles_are_seen_on_both_sides(void **state)
{
    (void)state;
    struct pair p;
    pair_begin(&p, context(dir, "mount"), context(dir, "s3"), "127.0.0.1");
    exchange(&p, SIZE_MAX / 2);
    assert_true(tls_is_ready(p.ends[0]) && tls_is_ready(p.ends[1]));
    assert_int_equal(tls_peer(p.ends[0])->role, NET_ROLE_SERVER);
    assert_int_equal(tls_peer(p.ends[0])->group, 3);
    assert_string_equal(tls_peer(p.ends[0])->name, "s3");
    assert_int_equal(tls_peer(p.ends[1])->role, NET_ROLE_CLIENT);
    assert_string_equal(tls_peer(p.ends[1])->name, "mount");
    pair_end(&p);

    pair_begin(&p, context(dir, "op"), context(dir, "s3"), "node3");
    exchange(&p, SIZE_MAX / 2);
    assert_true(tls_is_ready(p.ends[1]));
    assert_int_equal(tls_peer(p.ends[1])->role, NET_ROLE_ADMIN);
    pair_end(&p);
}

/* Wrong if a record that is cut anywhere is lost, or the borrowed input is
 * used after the read. */
static void bytes_arrive_whole_however_they_are_cut(void **state)
{
    (void)state;
    struct pair p;
    pair_begin(&p, context(dir, "s3"), context(dir, "s3"), "::1");
    exchange(&p, 1);
    assert_true(tls_is_ready(p.ends[1]));
    size_t size = 300001;
    uint8_t *data = mem_alloc(size);
    for (size_t i = 0; i < size; i++) {
        data[i] = (uint8_t)(i * 31 >> 3);
    }
    assert_int_equal(tls_write(p.ends[0], slice_of(data, size)), ERR_OK);
    exchange(&p, 7);
    assert_int_equal(p.plain[1].size, size);
    assert_memory_equal(p.plain[1].data, data, size);
    assert_int_equal(tls_write(p.ends[1], slice_of(data, size)), ERR_OK);
    exchange(&p, 100000);
    assert_int_equal(p.plain[0].size, size);
    assert_memory_equal(p.plain[0].data, data, size);
    mem_free(data);
    pair_end(&p);
}

/* Runs a handshake that must fail at end `at`, with `words` in its problem. */
static void refused(struct tls_context *client, struct tls_context *server,
                    const char *host, int at, const char *words)
{
    struct pair p;
    pair_begin(&p, client, server, host);
    exchange(&p, SIZE_MAX / 2);
    assert_int_equal(p.rc[at], ERR_CORRUPT);
    assert_false(tls_is_ready(p.ends[at]));
    if (strstr(tls_problem(p.ends[at]), words) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", tls_problem(p.ends[at]), words);
    }
    /* The other end hears of it through the alert. */
    assert_int_equal(p.rc[1 - at], ERR_CORRUPT);
    pair_end(&p);
}

static void another_clusters_certificates_are_refused_both_ways(void **state)
{
    (void)state;
    refused(context(dir, "mount"), context(other, "s3"), "127.0.0.1", 0,
            "certificate refused");
    /* The client is tricked into trusting the server: the server must refuse
     * the client's certificate by itself. */
    char *command = mem_printf("mkdir %s/mixed && cp %s/mount.* %s/mixed && cp "
                               "%s/ca.crt %s/mixed",
                               dir, other, dir, dir, dir);
    assert_int_equal(system(command), 0);
    mem_free(command);
    char *mixed = mem_printf("%s/mixed", dir);
    refused(context(mixed, "mount"), context(dir, "s3"), "127.0.0.1", 1,
            "certificate refused");
    mem_free(mixed);
}

static void expired_certificates_are_refused_both_ways(void **state)
{
    (void)state;
    refused(context(dir, "mount"), context(dir, "old"), "127.0.0.1", 0,
            "expired");
    refused(context(dir, "oldmount"), context(dir, "s3"), "127.0.0.1", 1,
            "expired");
}

static void a_client_takes_only_servers(void **state)
{
    (void)state;
    refused(context(dir, "mount"), context(dir, "mount"), NULL, 0, "role");
    refused(context(dir, "mount"), context(dir, "op"), NULL, 0, "role");
}

static void a_certificate_for_another_host_is_refused(void **state)
{
    (void)state;
    refused(context(dir, "mount"), context(dir, "s3"), "127.0.0.2", 0,
            "mismatch");
    refused(context(dir, "mount"), context(dir, "s3"), "node4", 0, "mismatch");
}

static void garbage_is_refused(void **state)
{
    (void)state;
    struct tls_context *c = context(dir, "s3");
    struct tls *t = tls_new(c, true, NULL);
    struct buf plain = {0};
    tls_feed(t, slice_text("GET / HTTP/1.1\r\n\r\n"));
    assert_int_equal(tls_read_all(t, &plain), ERR_CORRUPT);
    assert_true(tls_problem(t)[0] != '\0');
    assert_int_equal(plain.size, 0);
    buf_free(&plain);
    tls_free(t);
    tls_context_free(c);
}

/* One flipped bit in a record must end the stream, not reach the reader. */
static void a_flipped_bit_is_noticed(void **state)
{
    (void)state;
    struct pair p;
    pair_begin(&p, context(dir, "mount"), context(dir, "s3"), "127.0.0.1");
    exchange(&p, SIZE_MAX / 2);
    assert_int_equal(tls_write(p.ends[0], slice_text("a transfer of 100")),
                     ERR_OK);
    struct buf wire = {0};
    tls_drain(p.ends[0], &wire);
    wire.data[12] ^= 1;
    tls_feed(p.ends[1], buf_slice(&wire));
    assert_int_equal(tls_read_all(p.ends[1], &p.plain[1]), ERR_CORRUPT);
    assert_int_equal(p.plain[1].size, 0);
    buf_free(&wire);
    pair_end(&p);
}

static void identities_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    static const struct tls_identity bad[] = {
        {"x", "root", "", 1},          {"x", "server", "", 1},
        {"x", "server:", "", 1},       {"x", "server:-1", "", 1},
        {"x", "server:01", "", 1},     {"x", "server:4294967296", "", 1},
        {"x", "server:1x", "", 1},     {"x", "Client", "", 1},
        {"x", "client ", "", 1},       {"../x", "client", "", 1},
        {"", "client", "", 1},         {"ca", "client", "", 1},
        {"x", "client", "a,DNS:b", 1}, {"x", "client", "", 1000000},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(tls_make_certificate(dir, &bad[i]), ERR_INVALID);
    }
}

static void existing_files_are_left_alone(void **state)
{
    (void)state;
    struct tls_identity who = {"mount", "admin", "", 1};
    assert_int_equal(tls_make_certificate(dir, &who), ERR_EXISTS);
    assert_int_equal(tls_make_ca(dir, "test", 1), ERR_EXISTS);
    tls_context_free(context(dir, "mount"));

    /* A certificate without its key: no new key may appear beside it. */
    char *crt = mem_printf("%s/half.crt", dir);
    char *key = mem_printf("%s/half.key", dir);
    FILE *file = fopen(crt, "w");
    assert_non_null(file);
    fclose(file);
    struct tls_identity half = {"half", "client", "", 1};
    assert_int_equal(tls_make_certificate(dir, &half), ERR_EXISTS);
    assert_int_equal(access(key, F_OK), -1);
    mem_free(crt);
    mem_free(key);
}

static void keys_are_for_the_owner_only(void **state)
{
    (void)state;
    static const char *const names[] = {"ca", "s3", "mount"};
    for (size_t i = 0; i < 3; i++) {
        char *path = mem_printf("%s/%s.key", dir, names[i]);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        mem_free(path);
    }
}

static void problems_name_the_file(void **state)
{
    (void)state;
    struct tls_context *c = NULL;
    char problem[256] = "";
    assert_int_equal(
        tls_context_new(dir, "nobody", &c, problem, sizeof problem),
        ERR_NOTFOUND);
    assert_non_null(strstr(problem, "nobody.crt"));
    assert_null(c);

    char *swap = mem_printf("cp %s/mount.crt %s/swap.crt && cp %s/op.key "
                            "%s/swap.key",
                            dir, dir, dir, dir);
    assert_int_equal(system(swap), 0);
    mem_free(swap);
    assert_int_equal(tls_context_new(dir, "swap", &c, problem, sizeof problem),
                     ERR_CORRUPT);
    assert_non_null(strstr(problem, "swap.key"));
}

/* A reload changes new streams; a failed one changes nothing. */
static void certificates_reload(void **state)
{
    (void)state;
    char problem[256] = "";
    make(dir, "turn", "server:7", "127.0.0.1", 30);
    struct tls_context *server = context(dir, "turn");
    char *path = mem_printf("%s/turn", dir);
    char *remove = mem_printf("rm %s.crt %s.key", path, path);
    assert_int_equal(system(remove), 0);
    assert_int_equal(tls_context_reload(server, problem, sizeof problem),
                     ERR_NOTFOUND);

    struct pair p;
    pair_begin(&p, context(dir, "mount"), server, "127.0.0.1");
    exchange(&p, SIZE_MAX / 2);
    assert_int_equal(tls_peer(p.ends[0])->group, 7);
    make(dir, "turn", "server:8", "127.0.0.1", 30);
    assert_int_equal(tls_context_reload(server, problem, sizeof problem),
                     ERR_OK);
    /* The stream of before goes on. */
    assert_int_equal(tls_write(p.ends[0], slice_text("on")), ERR_OK);
    exchange(&p, 5);
    assert_int_equal(p.plain[1].size, 2);
    tls_free(p.ends[0]);
    tls_free(p.ends[1]);
    p.ends[0] = tls_new(p.contexts[0], false, NULL);
    p.ends[1] = tls_new(server, true, NULL);
    assert_int_equal(tls_read_all(p.ends[0], &p.plain[0]), ERR_OK);
    exchange(&p, SIZE_MAX / 2);
    assert_int_equal(tls_peer(p.ends[0])->group, 8);
    pair_end(&p);
    mem_free(path);
    mem_free(remove);
}

static void the_end_of_a_certificate_is_read(void **state)
{
    (void)state;
    uint64_t end = 0;
    assert_int_equal(tls_certificate_end(dir, "s3", &end), ERR_OK);
    uint64_t earliest = made_at + 30u * 86400u;
    uint64_t latest = (uint64_t)time(NULL) + 30u * 86400u;
    assert_true(end >= earliest && end <= latest);
    assert_int_equal(tls_certificate_end(dir, "none", &end), ERR_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roles_are_seen_on_both_sides),
        cmocka_unit_test(bytes_arrive_whole_however_they_are_cut),
        cmocka_unit_test(another_clusters_certificates_are_refused_both_ways),
        cmocka_unit_test(expired_certificates_are_refused_both_ways),
        cmocka_unit_test(a_client_takes_only_servers),
        cmocka_unit_test(a_certificate_for_another_host_is_refused),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(a_flipped_bit_is_noticed),
        cmocka_unit_test(identities_that_make_no_sense_are_refused),
        cmocka_unit_test(existing_files_are_left_alone),
        cmocka_unit_test(keys_are_for_the_owner_only),
        cmocka_unit_test(problems_name_the_file),
        cmocka_unit_test(certificates_reload),
        cmocka_unit_test(the_end_of_a_certificate_is_read),
    };
    return cmocka_run_group_tests(tests, make_all, remove_all);
}
