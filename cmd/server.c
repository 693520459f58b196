/* flotilla server: one replica of one group, in one process. */
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "cmd/args.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/process.h"
#include "shardctrler/server.h"
#include "shardkv/server.h"
#include "transport/rpc.h"

enum { STEP_DOWN_MS = 1000, FILES_WANTED = 8192, ARENAS_MAX = 3 };

/* The parts of a running replica, in the order of their making. */
struct server {
    struct net_loop *loop;
    struct tls_context *tls;
    struct rpc *rpc;
    struct disk *disk;
    struct ctl_replica *ctl; /* group 0 */
    struct skv_server *skv;  /* any other */
    bool stopping;
    uint64_t snap_rate; /* bytes a second */
};

struct server_options {
    const char *cluster; /* its directory, and the replica's name in it */
    const char *name;
    uint64_t ready_fd;
    uint64_t snap_rate; /* MB a second; 0: no limit */
};

/* So that `up` and an operator's environment set it alike. */
static uint64_t snap_rate_default(void)
{
    const char *text = getenv("FLOTILLA_SNAP_RATE");
    return text != NULL ? strtoull(text, NULL, 10) : 0;
}

static struct rsm *server_rsm(const struct server *s)
{
    return s->ctl != NULL ? ctl_replica_rsm(s->ctl) : skv_server_rsm(s->skv);
}

static void stop_now(void *arg)
{
    struct server *s = arg;
    net_loop_stop(s->loop);
}

/* An orderly stop hands leadership over first, so that no client waits for an
 * election timeout. A second signal does not wait. */
static void on_signal(void *arg, int number)
{
    struct server *s = arg;
    if (number == SIGHUP) {
        char problem[256];
        if (tls_context_reload(s->tls, problem, sizeof problem) != ERR_OK) {
            log_error("server", "certificates not reloaded: %s", problem);
        } else {
            log_info("server", "certificates reloaded");
        }
        return;
    }
    if (s->stopping) {
        net_loop_stop(s->loop);
        return;
    }
    s->stopping = true;
    log_info("server", "stopping signal=%d", number);
    rsm_step_down(server_rsm(s), STEP_DOWN_MS, stop_now, s);
}

/* The rsm has logged why. */
static void on_removed(void *arg)
{
    struct server *s = arg;
    s->stopping = true;
    net_loop_stop(s->loop);
}

static bool listen_at(struct server *s, const char *address)
{
    enum err rc = rpc_listen(s->rpc, address);
    if (rc == ERR_OK) {
        return true;
    }
    if (rc == ERR_EXISTS) {
        fprintf(stderr,
                "flotilla: the address %s is in use by another program: stop "
                "it, then start this again\n",
                address);
    } else {
        fprintf(stderr, "flotilla: cannot listen at %s: %s\n", address,
                err_text(rc));
    }
    return false;
}

/* Everybody of `self`'s group, and the controllers, from the description. */
static uint32_t group_peers(const struct cluster *c, uint32_t gid,
                            struct rsm_peer peers[RAFT_PEERS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->replica_count && count < RAFT_PEERS_MAX; i++) {
        if (c->replicas[i].gid == gid) {
            peers[count].id = c->replicas[i].id;
            strcpy(peers[count].address, c->replicas[i].address);
            count++;
        }
    }
    return count;
}

static enum err start_controller(struct server *s, const struct cluster *c,
                                 const struct cluster_replica *self)
{
    struct ctl_server_config config = {.env = net_loop_env(s->loop),
                                       .net = rpc_net(s->rpc),
                                       .disk = s->disk,
                                       .id = self->id,
                                       .shard_count = c->shard_count,
                                       .snap_rate = s->snap_rate,
                                       .identified = true,
                                       .on_removed = on_removed,
                                       .arg = s};
    config.peer_count = group_peers(c, 0, config.peers);
    return ctl_replica_new(&config, &s->ctl);
}

static enum err start_group(struct server *s, const struct cluster *c,
                            const struct cluster_replica *self,
                            const char *data_dir, uint64_t certificate_end_s)
{
    struct skv_server_config config = {.env = net_loop_env(s->loop),
                                       .net = rpc_net(s->rpc),
                                       .disk = s->disk,
                                       .gid = self->gid,
                                       .id = self->id,
                                       .certificate_end_s = certificate_end_s,
                                       .snap_rate = s->snap_rate,
                                       .identified = true,
                                       .lease_reads = c->lease_reads,
                                       .on_removed = on_removed,
                                       .arg = s};
    config.peer_count = group_peers(c, self->gid, config.peers);
    struct rsm_peer controllers[RAFT_PEERS_MAX];
    config.controller_count = group_peers(c, 0, controllers);
    for (uint32_t i = 0; i < config.controller_count; i++) {
        strcpy(config.controllers[i], controllers[i].address);
    }
    enum err rc = skv_store_lmdb_open(data_dir, 0, &config.store);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot open the store in %s: %s\n", data_dir,
                err_text(rc));
        return rc;
    }
    return skv_server_new(&config, &s->skv);
}

static bool start_transport(struct server *s, const struct cluster *c,
                            const struct cluster_replica *self)
{
    char certs[PATH_MAX], problem[512];
    cluster_path(c, "certs", "", "", certs);
    if (net_loop_new(&s->loop) != ERR_OK) {
        fprintf(stderr, "flotilla: cannot make an event loop\n");
        return false;
    }
    if (tls_context_new(certs, self->name, &s->tls, problem, sizeof problem) !=
        ERR_OK) {
        fprintf(stderr, "flotilla: %s\n", problem);
        return false;
    }
    return rpc_new(s->loop, s->tls, &s->rpc) == ERR_OK;
}

static bool start(struct server *s, const struct cluster *c,
                  const struct cluster_replica *self)
{
    char data[PATH_MAX], certs[PATH_MAX];
    cluster_path(c, "data", self->name, "", data);
    cluster_path(c, "certs", "", "", certs);
    uint64_t certificate_end_s = 0;
    if (tls_certificate_end(certs, self->name, &certificate_end_s) != ERR_OK) {
        certificate_end_s = 0; /* tls_context_new() says what is wrong */
    }
    if (!start_transport(s, c, self)) {
        return false;
    }
    enum err rc = disk_real_open(data, &s->disk);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot use the data directory %s: %s\n",
                data,
                rc == ERR_BUSY ? "another process uses it" : err_text(rc));
        return false;
    }
    rc = self->gid == 0 ? start_controller(s, c, self)
                        : start_group(s, c, self, data, certificate_end_s);
    if (rc == ERR_NOTFOUND) {
        fprintf(stderr,
                "flotilla: replica %s has lost its data, and must not vote "
                "again under its name: give its place to a new one with "
                "`flotilla member replace %u %" PRIu64 "`\n",
                self->name, self->gid, self->id);
        return false;
    }
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: replica %s cannot start: %s\n", self->name,
                err_text(rc));
        return false;
    }
    return listen_at(s, self->address);
}

static void stop(struct server *s)
{
    if (s->ctl != NULL) {
        ctl_replica_free(s->ctl);
    }
    if (s->skv != NULL) {
        skv_server_free(s->skv);
    }
    if (s->disk != NULL) {
        disk_real_close(s->disk);
    }
    if (s->rpc != NULL) {
        rpc_free(s->rpc);
    }
    if (s->tls != NULL) {
        tls_context_free(s->tls);
    }
    if (s->loop != NULL) {
        net_loop_free(s->loop);
    }
}

static const struct cluster_replica *find(const struct cluster *c,
                                          const char *name)
{
    for (uint32_t i = 0; i < c->replica_count; i++) {
        if (strcmp(c->replicas[i].name, name) == 0) {
            return &c->replicas[i];
        }
    }
    fprintf(stderr, "flotilla: %s/cluster.json has no replica '%s'\n", c->dir,
            name);
    return NULL;
}

static int serve(const struct server_options *o)
{
    struct cluster c;
    if (!cluster_load(cluster_dir(o->cluster), &c)) {
        return EXIT_FAILED;
    }
    const struct cluster_replica *self = find(&c, o->name);
    if (self == NULL) {
        return EXIT_USAGE;
    }
    struct server s = {.snap_rate = o->snap_rate * 1000000};
    bool ok = start(&s, &c, self) &&
              net_loop_signal(s.loop, SIGTERM, on_signal, &s) == ERR_OK &&
              net_loop_signal(s.loop, SIGINT, on_signal, &s) == ERR_OK &&
              net_loop_signal(s.loop, SIGHUP, on_signal, &s) == ERR_OK;
    if (ok) {
        log_info("server", "replica %s serves at %s", self->name,
                 self->address);
        process_ready((int)(int64_t)o->ready_fd);
        net_loop_run(s.loop);
        log_info("server", "replica %s stops", self->name);
    }
    stop(&s);
    return ok ? EXIT_DONE : EXIT_FAILED;
}

/* Strangers may hold as many connections as the transport takes: there must be
 * descriptors left for the log and the store, or they would end this replica.
 */
static void raise_file_limit(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) {
        return;
    }
    rlim_t want = files.rlim_max < FILES_WANTED ? files.rlim_max : FILES_WANTED;
    if (files.rlim_cur < want) {
        files.rlim_cur = want;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    if (want < FILES_WANTED) {
        log_warn("server",
                 "may have only %llu files open: many connections could leave "
                 "none for the store; raise it to %d (ulimit -Hn)",
                 (unsigned long long)want, FILES_WANTED);
    }
}

/* What is free goes back to the kernel. By itself glibc, once something large
 * was freed, keeps up to 64 MiB at the end of each thread's heap, for good.
 * Less than this makes puts of 64 KiB fault in their buffers each time. */
static void bound_free_memory(void)
{
    (void)mallopt(M_MMAP_THRESHOLD, 2 << 20);
    (void)mallopt(M_TRIM_THRESHOLD, 16 << 20);
    (void)mallopt(M_ARENA_MAX, ARENAS_MAX);
}

int cmd_server(int argc, char **argv)
{
    struct server_options o = {.ready_fd = UINT64_MAX,
                               .snap_rate = snap_rate_default()};
    bool verbose = false;
    const struct arg_option options[] = {
        {"cluster", 'c', ARG_TEXT, &o.cluster, "DIR",
         "the cluster's directory (default: $FLOTILLA_CLUSTER, or ./cluster)"},
        {"verbose", 'v', ARG_FLAG, &verbose, NULL, "log more"},
        {"ready-fd", 0, ARG_NUMBER, &o.ready_fd, "FD",
         "write a byte there when serving"},
        {"snap-rate", 0, ARG_NUMBER, &o.snap_rate, "MB",
         "a second to a replica far behind, at most (default: "
         "$FLOTILLA_SNAP_RATE, or no limit)"},
        {0}};
    const struct arg_spec spec = {
        .usage = "server [OPTION...] NAME",
        .about = "Runs replica NAME (as in cluster.json) in the foreground, "
                 "until SIGTERM or SIGINT.\nSIGHUP reloads its certificates.",
        .options = options,
        .positional_min = 1,
        .positional_max = 1};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    o.name = argv[first];
    log_set_level(verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    bound_free_memory();
    return serve(&o);
}
