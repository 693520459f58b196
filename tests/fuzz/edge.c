/* What comes from outside before anybody is known: frames, certificates, files
 * and words of the operator; and what other mounts wrote as attributes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/keys.h"
#include "raft/raft.h"
#include "tests/fuzz/fuzz.h"
#include "transport/frame_int.h"
#include "transport/tls_int.h"

#include "cmd/mount.c" /* for the list after -o, which only it reads */

/* What the commands say goes nowhere. */
static FILE *loud;
static void hush(void)
{
    static FILE *nowhere;
    if (nowhere == NULL) {
        nowhere = fopen("/dev/null", "w");
        CHECK(nowhere != NULL);
    }
    loud = stderr;
    stderr = nowhere;
}
static void unhush(void)
{
    stderr = loud;
}

/* ---- frames ---- */

static void frame_run(struct slice input)
{
    size_t at = 0;
    while (input.size - at >= FRAME_HEADER_SIZE) {
        struct frame f;
        uint8_t again[FRAME_HEADER_SIZE];
        if (frame_decode(&f, input.data + at) != ERR_OK) {
            return;
        }
        CHECK(f.size <= NET_BODY_SIZE_MAX);
        frame_encode(again, &f);
        CHECK(memcmp(again, input.data + at, sizeof again) == 0);
        at += FRAME_HEADER_SIZE;
        if (input.size - at < f.size) {
            return;
        }
        at += f.size;
    }
}

static void frame_seed(void)
{
    static const struct frame frames[] = {
        {.type = FRAME_CALL, .call = 1, .method = 0x30, .size = 3},
        {.type = FRAME_REPLY, .call = 1, .rc = ERR_BUSY},
        {.type = FRAME_SEND, .method = 0x10, .size = NET_BODY_SIZE_MAX}};
    struct buf b = {0};
    for (int i = 0; i < 3; i++) {
        frame_encode(buf_extend(&b, FRAME_HEADER_SIZE), &frames[i]);
        if (i == 0) {
            buf_append(&b, "abc", 3);
        }
    }
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
}
const struct fuzz_target fuzz_frame = {"frame", frame_run, frame_seed, 0};

/* ---- who a certificate is for ----
 *
 * Input: u8, 0: an OU; else a certificate (DER). */

static void unit_run(const char *unit)
{
    enum net_role role = NET_ROLE_NONE;
    uint32_t group = 0;
    if (tls_role_parse(unit, &role, &group)) {
        char again[TLS_NAME_SIZE_MAX];
        snprintf(again, sizeof again, "server:%u", group);
        const char *want = role == NET_ROLE_CLIENT  ? "client"
                           : role == NET_ROLE_ADMIN ? "admin"
                                                    : again;
        CHECK(strcmp(unit, want) == 0);
    }
}

static void subject_run(struct slice der)
{
    const unsigned char *at = der.data;
    X509 *cert = d2i_X509(NULL, &at, (long)der.size);
    char name[TLS_NAME_SIZE_MAX], problem[128];
    struct net_peer peer = {0};
    if (cert != NULL &&
        tls_subject_read(cert, &peer, name, problem, sizeof problem)) {
        CHECK(peer.role != NET_ROLE_NONE && strlen(peer.name) > 0);
        for (const char *c = peer.name; *c != '\0'; c++) {
            CHECK(*c > ' ' && *c < 0x7f);
        }
    }
    X509_free(cert);
}

static void identity_run(struct slice input)
{
    if (input.size < 1) {
        return;
    }
    struct slice rest = slice_of(input.data + 1, input.size - 1);
    if (input.data[0] != 0) {
        subject_run(rest);
        return;
    }
    char *unit = mem_alloc(rest.size + 1);
    memcpy(unit, rest.data, rest.size);
    unit_run(unit);
    mem_free(unit);
}

static void seed_certificate(const char *dir, const char *unit)
{
    struct tls_identity who = {
        .name = unit, .unit = unit, .hosts = "127.0.0.1", .days = 1};
    who.name = strncmp(unit, "server", 6) == 0 ? "server" : unit;
    enum err rc = tls_make_certificate(dir, &who);
    CHECK(rc == ERR_OK);
    char *path = mem_printf("%s/%s.crt", dir, who.name);
    BIO *file = BIO_new_file(path, "r");
    X509 *cert = PEM_read_bio_X509(file, NULL, NULL, NULL);
    unsigned char *der = NULL;
    int size = i2d_X509(cert, &der);
    CHECK(size > 0);
    struct buf b = {0};
    enc_u8(&b, 1);
    buf_append(&b, der, (size_t)size);
    fuzz_seed(buf_slice(&b));
    buf_free(&b);
    OPENSSL_free(der);
    X509_free(cert);
    BIO_free(file);
    mem_free(path);
}

static void identity_seed(void)
{
    char dir[] = "/tmp/fuzz-identity-XXXXXX";
    CHECK(mkdtemp(dir) != NULL);
    enum err rc = tls_make_ca(dir, "fuzz", 1);
    CHECK(rc == ERR_OK);
    fuzz_seed(slice_of("\0server:12", 10));
    fuzz_seed(slice_of("\0client", 7));
    fuzz_seed(slice_of("\0admin", 6));
    seed_certificate(dir, "server:4294967295");
    seed_certificate(dir, "client");
    char *command = mem_printf("rm -rf %s", dir);
    CHECK(system(command) == 0);
    mem_free(command);
}
const struct fuzz_target fuzz_identity = {"identity", identity_run,
                                          identity_seed, 0};

/* ---- cluster.json ---- */

static const char *cluster_scratch(void)
{
    static char dir[] = "/tmp/fuzz-cluster-XXXXXX";
    static bool made;
    if (!made) {
        CHECK(mkdtemp(dir) != NULL);
        made = true;
    }
    return dir;
}

static void cluster_end(void)
{
    char *path = mem_printf("%s/cluster.json", cluster_scratch());
    unlink(path);
    rmdir(cluster_scratch());
    mem_free(path);
}

static void cluster_write(struct slice bytes)
{
    static FILE *file;
    if (file == NULL) {
        char *path = mem_printf("%s/cluster.json", cluster_scratch());
        file = fopen(path, "w");
        CHECK(file != NULL);
        mem_free(path);
        atexit(cluster_end);
    }
    CHECK(ftruncate(fileno(file), 0) == 0);
    CHECK(pwrite(fileno(file), bytes.data, bytes.size, 0) ==
          (ssize_t)bytes.size);
}

/* What a server makes of it: its own place, and its group's peers. */
static void cluster_check(const struct cluster *c)
{
    char path[PATH_MAX];
    CHECK(c->shard_count >= 1 && c->shard_count <= CTL_SHARDS_MAX);
    for (uint32_t i = 0; i < c->replica_count; i++) {
        const struct cluster_replica *r = &c->replicas[i];
        uint32_t members = 0;
        CHECK(r->id >= 1 && strchr(r->address, ':') != NULL);
        for (uint32_t k = 0; k < c->replica_count; k++) {
            members += c->replicas[k].gid == r->gid;
            CHECK(k == i || strcmp(c->replicas[k].name, r->name) != 0);
            CHECK(k == i || c->replicas[k].gid != r->gid ||
                  c->replicas[k].id != r->id);
        }
        CHECK(members <= RAFT_PEERS_MAX);
        cluster_path(c, "data", r->name, "", path);
        CHECK(strstr(r->name, "..") == NULL && strchr(r->name, '/') == NULL);
    }
}

static void cluster_run(struct slice input)
{
    static struct cluster c;
    cluster_write(input);
    hush();
    bool loaded = cluster_load(cluster_scratch(), &c);
    unhush();
    if (loaded) {
        cluster_check(&c);
    }
}

static void cluster_seed(void)
{
    fuzz_seed(slice_text(
        "{\"version\":1,\"shards\":128,\"replicas\":[{\"name\":\"ctl-1\","
        "\"group\":0,\"id\":1,\"address\":\"127.0.0.1:7100\"},{\"name\":"
        "\"g1-1\",\"group\":1,\"id\":1,\"address\":\"127.0.0.1:7101\"}]}"));
    fuzz_seed(slice_text("{\"shards\":-1,\"replicas\":[]}"));
}
const struct fuzz_target fuzz_cluster_json = {"cluster_json", cluster_run,
                                              cluster_seed, 0};

/* ---- numbers and -o ---- */

static void options_run(struct slice input)
{
    char *text = mem_alloc(input.size + 1);
    if (input.size > 0) {
        memcpy(text, input.data, input.size);
    }
    uint64_t number = 0;
    struct mount_request m = {0};
    char again[32];
    if (args_number(text, 5, 5000, &number)) {
        CHECK(number >= 5 && number <= 5000);
    }
    if (args_number(text, 0, UINT64_MAX, &number)) {
        snprintf(again, sizeof again, "%llu", (unsigned long long)number);
        CHECK(strcmp(text + strspn(text, "0"), again) == 0 || number == 0);
    }
    hush();
    (void)take_options(&m, text);
    unhush();
    mem_free(text);
}

static void options_seed(void)
{
    fuzz_seed(slice_text("18446744073709551615"));
    fuzz_seed(slice_text("0099"));
    fuzz_seed(slice_text("allow_other,nonempty,ro,certs=/x,x-y,rw,,foo"));
}
const struct fuzz_target fuzz_options = {"options", options_run, options_seed,
                                         0};

/* ---- attributes and directory entries, as stored ---- */

static void fs_run(struct slice input)
{
    struct fs_attr attr = {0};
    uint64_t ino = 0;
    uint32_t type = 0;
    if (fs_attr_decode(input, &attr) == ERR_OK) {
        uint8_t again[FS_ATTR_SIZE];
        fs_attr_encode(&attr, again);
        CHECK(slice_compare(slice_of(again, sizeof again), input) == 0);
    }
    (void)!fs_entry_decode(input, &ino, &type);
}

static void fs_seed(void)
{
    struct fs_attr attr = {.mode = 0100644, .nlink = 1};
    uint8_t bytes[FS_ATTR_SIZE], entry[FS_ENTRY_SIZE];
    fs_attr_encode(&attr, bytes);
    fuzz_seed(slice_of(bytes, sizeof bytes));
    fs_entry_encode(7, 0100644, entry);
    fuzz_seed(slice_of(entry, sizeof entry));
}
const struct fuzz_target fuzz_fs_values = {"fs_values", fs_run, fs_seed, 0};
