#include "cmd/cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raft/raft.h"
#include "rsm/rsm.h"
#include "transport/tls.h"

enum { CERTIFICATE_DAYS = 3650 };

const char *cluster_dir(const char *given)
{
    const char *fromenv = getenv("FLOTILLA_CLUSTER");
    return given != NULL ? given : fromenv != NULL ? fromenv : "cluster";
}

char *cluster_path(const struct cluster *c, const char *sub, const char *name,
                   const char *suffix, char path[PATH_MAX])
{
    int size = snprintf(path, PATH_MAX, "%s/%s%s%s%s", c->dir, sub,
                        name[0] != 0 ? "/" : "", name, suffix);
    if (size < 0 || size >= PATH_MAX) {
        fprintf(stderr, "flotilla: the path %s is too long\n", c->dir);
        exit(1);
    }
    return path;
}

static void json_path(const char *dir, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/cluster.json", dir);
}

bool cluster_exists(const char *dir)
{
    char path[PATH_MAX];
    json_path(dir, path);
    return access(path, F_OK) == 0;
}

/* A name becomes a file's and a certificate's: one plain word. */
static bool name_is_plain(const char *name)
{
    size_t size = strspn(name, "abcdefghijklmnopqrstuvwxyz"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");
    return size > 0 && name[size] == 0;
}

static bool replica_from_json(json_t *j, struct cluster_replica *r)
{
    const char *name = NULL, *address = NULL;
    int gid = 0, id = 0, replaces = 0;
    if (json_unpack(j, "{s:s, s:i, s:i, s:s, s?i}", "name", &name, "group",
                    &gid, "id", &id, "address", &address, "replaces",
                    &replaces) != 0 ||
        strlen(name) >= sizeof r->name || !name_is_plain(name) ||
        strlen(address) >= sizeof r->address || strchr(address, ':') == NULL ||
        gid < 0 || id < 1 || replaces < 0) {
        return false;
    }
    strcpy(r->name, name);
    strcpy(r->address, address);
    r->gid = (uint32_t)gid;
    r->id = (uint64_t)id;
    r->replaces = (uint64_t)replaces;
    r->unfinished = json_is_true(json_object_get(j, "unfinished"));
    return true;
}

/* Nobody twice, and no group of more than Raft knows. */
static bool groups_make_sense(const struct cluster *c)
{
    for (uint32_t i = 0; i < c->replica_count; i++) {
        const struct cluster_replica *r = &c->replicas[i];
        uint32_t members = 1;
        for (uint32_t k = 0; k < i; k++) {
            const struct cluster_replica *other = &c->replicas[k];
            bool same_group = other->gid == r->gid;
            members += same_group;
            if (strcmp(other->name, r->name) == 0 ||
                strcmp(other->address, r->address) == 0 ||
                (same_group && other->id == r->id)) {
                return false;
            }
        }
        if (members > RAFT_PEERS_MAX) {
            return false;
        }
    }
    return true;
}

static bool from_json(json_t *j, struct cluster *c)
{
    json_t *replicas = json_object_get(j, "replicas");
    json_int_t shards = json_integer_value(json_object_get(j, "shards"));
    size_t count = json_array_size(replicas);
    if (count == 0 || count > CLUSTER_REPLICAS_MAX || shards < 1 ||
        shards > CTL_SHARDS_MAX) {
        return false;
    }
    c->shard_count = (uint32_t)shards;
    c->lease_reads = json_is_true(json_object_get(j, "lease_reads"));
    for (size_t i = 0; i < count; i++) {
        if (!replica_from_json(json_array_get(replicas, i), &c->replicas[i])) {
            return false;
        }
    }
    c->replica_count = (uint32_t)count;
    return groups_make_sense(c);
}

bool cluster_load(const char *dir, struct cluster *c)
{
    char path[PATH_MAX];
    json_path(dir, path);
    json_error_t problem;
    json_t *j = json_load_file(path, 0, &problem);
    if (j == NULL) {
        fprintf(stderr,
                "flotilla: cannot read the cluster's description %s: %s; "
                "`flotilla up` makes one, --cluster names another\n",
                path, problem.text);
        return false;
    }
    *c = (struct cluster){0};
    bool ok = realpath(dir, c->dir) != NULL && from_json(j, c);
    json_decref(j);
    if (!ok) {
        fprintf(stderr,
                "flotilla: %s is not a cluster's description (or damaged)\n",
                path);
    }
    return ok;
}

static json_t *to_json(const struct cluster *c)
{
    json_t *replicas = json_array();
    for (uint32_t i = 0; i < c->replica_count; i++) {
        const struct cluster_replica *r = &c->replicas[i];
        json_t *one =
            json_pack("{s:s, s:i, s:i, s:s}", "name", r->name, "group",
                      (int)r->gid, "id", (int)r->id, "address", r->address);
        if (r->replaces != 0) {
            json_object_set_new(one, "replaces",
                                json_integer((json_int_t)r->replaces));
        }
        if (r->unfinished) {
            json_object_set_new(one, "unfinished", json_true());
        }
        json_array_append_new(replicas, one);
    }
    return json_pack("{s:i, s:i, s:b, s:o}", "version", 1, "shards",
                     (int)c->shard_count, "lease_reads", (int)c->lease_reads,
                     "replicas", replicas);
}

static bool sync_path(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

/* flock() goes with the process, so a killed one leaves no stale lock. */
bool cluster_lock(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) {
        return true; /* open until the end */
    }
    if (fd >= 0 && errno == EWOULDBLOCK) {
        fprintf(stderr,
                "flotilla: another `flotilla member` changes the cluster in "
                "%s: try again when it has ended\n",
                dir);
    } else {
        fprintf(stderr,
                "flotilla: cannot lock the cluster's directory %s: %s\n", dir,
                strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return false;
}

/* Written last and renamed into place: a cluster exists wholly or not, also
 * when the power fails. */
bool cluster_save(const struct cluster *c)
{
    char path[PATH_MAX], temporary[PATH_MAX];
    cluster_path(c, "cluster.json", "", "", path);
    cluster_path(c, "cluster.json.new", "", "", temporary);
    json_t *j = to_json(c);
    int rc = json_dump_file(j, temporary, JSON_INDENT(2));
    json_decref(j);
    if (rc != 0 || !sync_path(temporary, O_WRONLY) ||
        rename(temporary, path) != 0 ||
        !sync_path(c->dir, O_RDONLY | O_DIRECTORY)) {
        fprintf(stderr, "flotilla: cannot write %s: %s\n", path,
                strerror(errno));
        return false;
    }
    return true;
}

void cluster_replica_name(struct cluster_replica *r)
{
    if (r->gid == 0) {
        snprintf(r->name, sizeof r->name, "ctl-%" PRIu64, r->id);
    } else {
        snprintf(r->name, sizeof r->name, "g%u-%" PRIu64, r->gid, r->id);
    }
}

static void plan_group(struct cluster *c, uint32_t gid, uint32_t count,
                       uint32_t port)
{
    for (uint32_t id = 1; id <= count; id++) {
        struct cluster_replica *r = &c->replicas[c->replica_count];
        r->gid = gid;
        r->id = id;
        cluster_replica_name(r);
        snprintf(r->address, sizeof r->address, "127.0.0.1:%u",
                 port + c->replica_count);
        c->replica_count++;
    }
}

/* A key without its certificate is what an `up` that was interrupted left: no
 * cluster was made yet, so nobody uses it. */
static void remove_half(const char *dir, const char *name)
{
    char crt[PATH_MAX + 64], key[PATH_MAX + 64];
    snprintf(crt, sizeof crt, "%s/%s.crt", dir, name);
    snprintf(key, sizeof key, "%s/%s.key", dir, name);
    if (access(crt, F_OK) != 0) {
        unlink(key);
    }
}

static bool make_certificate(const char *dir, const char *name,
                             const char *unit)
{
    const struct tls_identity who = {.name = name,
                                     .unit = unit,
                                     .hosts = "127.0.0.1,::1,localhost",
                                     .days = CERTIFICATE_DAYS};
    remove_half(dir, name);
    enum err rc = tls_make_certificate(dir, &who);
    if (rc != ERR_OK && rc != ERR_EXISTS) {
        fprintf(stderr, "flotilla: cannot make certificate %s/%s.crt: %s\n",
                dir, name, err_text(rc));
        return false;
    }
    return true;
}

bool cluster_make_certificate(const struct cluster *c,
                              const struct cluster_replica *r)
{
    char dir[PATH_MAX], unit[32];
    cluster_path(c, "certs", "", "", dir);
    snprintf(unit, sizeof unit, "server:%u", r->gid);
    return make_certificate(dir, r->name, unit);
}

static bool make_certificates(const struct cluster *c)
{
    char dir[PATH_MAX];
    cluster_path(c, "certs", "", "", dir);
    remove_half(dir, "ca");
    enum err rc = tls_make_ca(dir, "flotilla", CERTIFICATE_DAYS);
    if (rc != ERR_OK && rc != ERR_EXISTS) {
        fprintf(stderr, "flotilla: cannot make the cluster's CA in %s: %s\n",
                dir, err_text(rc));
        return false;
    }
    for (uint32_t i = 0; i < c->replica_count; i++) {
        if (!cluster_make_certificate(c, &c->replicas[i])) {
            return false;
        }
    }
    return make_certificate(dir, "client", "client") &&
           make_certificate(dir, "admin", "admin");
}

bool cluster_make_identity(const struct cluster *c,
                           const struct cluster_replica *r, bool joining)
{
    char data[PATH_MAX];
    struct disk *disk = NULL;
    cluster_path(c, "data", r->name, "", data);
    enum err rc = disk_real_open(data, &disk);
    if (rc == ERR_OK) {
        rc = rsm_identity_make(disk, r->gid, r->id, joining);
        disk_real_close(disk);
    }
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot make the data directory %s: %s\n",
                data, err_text(rc));
    }
    return rc == ERR_OK;
}

static bool make_identities(const struct cluster *c)
{
    for (uint32_t i = 0; i < c->replica_count; i++) {
        if (!cluster_make_identity(c, &c->replicas[i], false)) {
            return false;
        }
    }
    return true;
}

static bool make_dirs(const struct cluster *c)
{
    static const char *const subs[] = {"", "certs", "data", "log", "run"};
    for (size_t i = 0; i < sizeof subs / sizeof subs[0]; i++) {
        char path[PATH_MAX];
        cluster_path(c, subs[i], "", "", path);
        if (mkdir(path, 0700) != 0 && errno != EEXIST) {
            fprintf(stderr, "flotilla: cannot make %s: %s\n", path,
                    strerror(errno));
            return false;
        }
    }
    return true;
}

bool cluster_create(const char *dir, const struct cluster_plan *plan,
                    struct cluster *c)
{
    *c = (struct cluster){.shard_count = plan->shards,
                          .lease_reads = plan->lease_reads};
    uint32_t count = plan->controllers + plan->groups * plan->replicas;
    if (count > CLUSTER_REPLICAS_MAX || plan->controllers == 0 ||
        plan->groups == 0 || plan->replicas == 0) {
        fprintf(stderr, "flotilla: a cluster has 1 to %d processes here\n",
                CLUSTER_REPLICAS_MAX);
        return false;
    }
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        fprintf(stderr, "flotilla: cannot make %s: %s\n", dir, strerror(errno));
        return false;
    }
    if (realpath(dir, c->dir) == NULL) {
        fprintf(stderr, "flotilla: cannot use %s: %s\n", dir, strerror(errno));
        return false;
    }
    plan_group(c, 0, plan->controllers, plan->port);
    for (uint32_t gid = 1; gid <= plan->groups; gid++) {
        plan_group(c, gid, plan->replicas, plan->port);
    }
    return make_dirs(c) && make_certificates(c) && make_identities(c) &&
           cluster_save(c);
}

static bool split_addresses(const char *list, struct skv_client_config *config)
{
    char *copy = mem_strdup(list);
    bool ok = true;
    char *rest = copy;
    for (char *one; (one = strsep(&rest, ",")) != NULL && ok;) {
        ok = strlen(one) > 0 && strlen(one) < NET_ADDRESS_SIZE_MAX &&
             strrchr(one, ':') != NULL && config->controller_count < 16;
        if (ok) {
            strcpy(config->controllers[config->controller_count++], one);
        }
    }
    mem_free(copy);
    return ok;
}

bool cluster_client_config(const struct cluster_access *access,
                           const char *identity,
                           struct skv_client_config *config,
                           char certs_dir[PATH_MAX])
{
    *config = (struct skv_client_config){.identity = identity,
                                         .certs_dir = certs_dir};
    if (access->controllers != NULL) {
        snprintf(certs_dir, PATH_MAX, "%s",
                 access->certs != NULL ? access->certs : "certs");
        if (split_addresses(access->controllers, config)) {
            return true;
        }
        fprintf(stderr,
                "flotilla: --controllers wants HOST:PORT,HOST:PORT,... and "
                "got '%s'\n",
                access->controllers);
        return false;
    }
    struct cluster c;
    if (!cluster_load(cluster_dir(access->cluster), &c)) {
        return false;
    }
    cluster_path(&c, "certs", "", "", certs_dir);
    for (uint32_t i = 0; i < c.replica_count; i++) {
        if (c.replicas[i].gid == 0 && config->controller_count < 16) {
            strcpy(config->controllers[config->controller_count++],
                   c.replicas[i].address);
        }
    }
    return true;
}

struct skv_client *cluster_connect(const struct cluster_access *access,
                                   const char *identity, uint32_t timeout_ms)
{
    char certs_dir[PATH_MAX], problem[512];
    struct skv_client_config config;
    if (!cluster_client_config(access, identity, &config, certs_dir)) {
        return NULL;
    }
    struct skv_client *client = NULL;
    enum err rc =
        skv_client_new(&config, timeout_ms, &client, problem, sizeof problem);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot reach the cluster: %s\n", problem);
        return NULL;
    }
    return client;
}
