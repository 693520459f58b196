/* flotilla up and down: a cluster on this machine. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/args.h"
#include "cmd/ask.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/process.h"

enum {
    SPAWN_MS = 20000, /* a replica replays its log before it serves */
    JOIN_MS = 20000,
    GRACE_MS = 10000,
};

static void pid_file(const struct cluster *c, const char *name,
                     char path[PATH_MAX])
{
    cluster_path(c, "run", name, ".pid", path);
}

bool replica_start(const struct cluster *c, const struct cluster_replica *r)
{
    char pid_path[PATH_MAX], log_path[PATH_MAX], words[1024];
    pid_file(c, r->name, pid_path);
    if (process_alive(pid_path) != 0) {
        return true;
    }
    cluster_path(c, "log", r->name, ".log", log_path);
    const char *const args[] = {"server", "--cluster", c->dir, r->name, NULL};
    if (process_spawn(args, log_path, pid_path, SPAWN_MS, words,
                      sizeof words) == 0) {
        fprintf(stderr,
                "flotilla: replica %s did not start: %s (its log: %s)\n",
                r->name, words, log_path);
        return false;
    }
    return true;
}

/* Starts what does not run; one that cannot start holds up no other. False
 * unless all run. */
static bool start_replicas(const struct cluster *c)
{
    bool ok = true;
    for (uint32_t i = 0; i < c->replica_count; i++) {
        const struct cluster_replica *r = &c->replicas[i];
        if (replica_start(c, r)) {
            continue;
        }
        ok = false;
        if (r->unfinished) {
            fprintf(stderr,
                    "flotilla: it was never added to its group: `flotilla "
                    "member remove %u %" PRIu64 "` takes it away\n",
                    r->gid, r->id);
        }
    }
    return ok;
}

static bool has_group(const struct ctl_config *config, uint32_t gid)
{
    return ctl_config_group(config, gid) != NULL;
}

/* Groups of the description that the configuration does not have yet. */
static void missing_groups(struct arena *a, const struct cluster *c,
                           const struct ctl_config *config,
                           struct ctl_change *change)
{
    change->join = arena_array(a, CTL_GROUPS_MAX, sizeof *change->join);
    for (uint32_t i = 0; i < c->replica_count; i++) {
        const struct cluster_replica *r = &c->replicas[i];
        if (r->gid == 0 || has_group(config, r->gid)) {
            continue;
        }
        struct ctl_group *last = change->join_count == 0
                                     ? NULL
                                     : &change->join[change->join_count - 1];
        if (last == NULL || last->gid != r->gid) {
            last = &change->join[change->join_count++];
            last->gid = r->gid;
            last->servers =
                arena_array(a, CTL_SERVERS_MAX, sizeof *last->servers);
        }
        last->servers[last->servers_count++] =
            (struct ctl_server){.id = r->id, .address = slice_text(r->address)};
    }
}

static enum err read_shard(struct skv_client *client, uint32_t shard)
{
    struct buf key = {0};
    set_be64(buf_extend(&key, SKV_OBJECT_SIZE),
             (uint64_t)shard << 48 | SKV_OBJECT_KV);
    buf_append(&key, "up", 2);
    struct skv_item item = {.kind = SKV_LENGTH, .key = buf_slice(&key)};
    struct skv_txn txn = {
        .items = &item, .item_count = 1, .timeout_ms = JOIN_MS};
    enum err rc = skv_client_run(client, &txn);
    arena_free(&txn.arena);
    buf_free(&key);
    return rc == ERR_NOTFOUND ? ERR_OK : rc;
}

/* Waits until each shard's group has a leader: reads from one shard of each. */
static enum err await_groups(struct skv_client *client)
{
    struct arena arena = {0};
    struct ctl_config config;
    enum err rc = ask_config(client, CTL_LATEST, JOIN_MS, &arena, &config);
    for (uint32_t g = 0; rc == ERR_OK && g < config.groups_count; g++) {
        uint32_t shard = 0;
        while (shard < config.shards_count &&
               config.shards[shard].gid != config.groups[g].gid) {
            shard++;
        }
        if (shard < config.shards_count) {
            rc = read_shard(client, shard);
        }
        if (rc != ERR_OK) {
            fprintf(stderr,
                    "flotilla: group %u does not answer: %s; `flotilla "
                    "status` says more\n",
                    config.groups[g].gid, err_text(rc));
        }
    }
    arena_free(&arena);
    return rc;
}

/* A new cluster's groups join; one that was up before has them already, also
 * when an operator let some of them leave. */
static bool join_groups(const struct cluster *c)
{
    const struct cluster_access access = {.cluster = c->dir};
    struct skv_client *client = cluster_connect(&access, "admin", JOIN_MS);
    if (client == NULL) {
        return false;
    }
    struct arena arena = {0};
    struct ctl_config config;
    struct ctl_change change = {.kind = CTL_JOIN};
    uint64_t number = 0;
    enum err rc = ask_config(client, CTL_LATEST, JOIN_MS, &arena, &config);
    if (rc == ERR_OK && config.number == 0) {
        missing_groups(&arena, c, &config, &change);
        rc = ask_change(client, &change, JOIN_MS, &number);
    }
    if (rc != ERR_OK && rc != ERR_EXISTS) {
        fprintf(stderr, "flotilla: the groups could not join: %s\n",
                err_text(rc));
    } else {
        rc = await_groups(client);
    }
    arena_free(&arena);
    skv_client_free(client);
    return rc == ERR_OK;
}

static bool mount_at(const struct cluster *c, const char *mountpoint)
{
    char command[] = "mount";
    char *args[] = {command, (char *)(uintptr_t)c->dir,
                    (char *)(uintptr_t)mountpoint, NULL};
    return cmd_mount(3, args) == EXIT_DONE;
}

static void say_next(const struct cluster *c, const char *mountpoint)
{
    printf("The cluster is up (%u processes), mounted at %s. Try:\n\n"
           "    echo hello > %s/a\n"
           "    echo more >> %s/a\n"
           "    cat %s/a\n"
           "    build/release/flotilla status --cluster %s\n\n"
           "`make down` stops it and keeps the data.\n",
           c->replica_count, mountpoint, mountpoint, mountpoint, mountpoint,
           c->dir);
}

static bool ports_are_free(const struct cluster_plan *plan)
{
    uint32_t count = plan->controllers + plan->groups * plan->replicas;
    for (uint32_t port = plan->port; port < plan->port + count; port++) {
        if (!process_port_free(port)) {
            fprintf(stderr,
                    "flotilla: port %u is in use by another program: stop it, "
                    "or take %u others with `make up PORT=n` (flotilla up "
                    "--port n)\n",
                    port, count);
            return false;
        }
    }
    return true;
}

/* What can be refused is refused before anything is made or started. A NULL
 * mount point: none is wanted. */
static bool prepare(const char *dir, const struct cluster_plan *plan,
                    const char *mountpoint, struct cluster *c)
{
    bool exists = cluster_exists(dir);
    if (exists && !cluster_load(dir, c)) {
        return false;
    }
    if (mountpoint != NULL &&
        !mount_is_possible(exists ? c : NULL, mountpoint)) {
        return false;
    }
    return exists || (ports_are_free(plan) && cluster_create(dir, plan, c));
}

int cmd_up(int argc, char **argv)
{
    const char *dir = NULL, *mountpoint = "mnt";
    bool no_mount = false, lease_reads = false;
    uint64_t port = 7100, groups = 2, replicas = 3, controllers = 3;
    uint64_t shards = CTL_SHARDS_DEFAULT;
    const struct arg_option options[] = {
        {"cluster", 'c', ARG_TEXT, &dir, "DIR",
         "its directory (default: $FLOTILLA_CLUSTER, or ./cluster)"},
        {"mount", 'm', ARG_TEXT, &mountpoint, "DIR", "mount it here (mnt)"},
        {"no-mount", 0, ARG_FLAG, &no_mount, NULL, "do not mount it"},
        {"port", 'p', ARG_NUMBER, &port, "PORT",
         "a new cluster's first port (7100)"},
        {"groups", 0, ARG_NUMBER, &groups, "N", "its replica groups (2)"},
        {"replicas", 0, ARG_NUMBER, &replicas, "N", "replicas a group (3)"},
        {"controllers", 0, ARG_NUMBER, &controllers, "N",
         "replicas of the shard controller (3)"},
        {"shards", 0, ARG_NUMBER, &shards, "N", "number of shards (128)"},
        {"lease-reads", 0, ARG_FLAG, &lease_reads, NULL,
         "its leaders answer reads from leases: needs honest clocks"},
        {0}};
    const struct arg_spec spec = {
        .usage = "up [OPTION...]",
        .about = "Starts a cluster on this machine, makes it first if it is "
                 "new, and mounts it.\nWhat already runs is left alone.",
        .options = options};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    if (port < 1 || port > 65000 || groups < 1 || groups > 32 || replicas < 1 ||
        replicas > 16 || controllers < 1 || controllers > 16 || shards < 1 ||
        shards > CTL_SHARDS_MAX) {
        fprintf(stderr,
                "flotilla: out of range: --port 1..65000, --groups 1..32, "
                "--replicas and --controllers 1..16, --shards 1..%u\n",
                CTL_SHARDS_MAX);
        return EXIT_USAGE;
    }
    const struct cluster_plan plan = {.port = (uint32_t)port,
                                      .controllers = (uint32_t)controllers,
                                      .groups = (uint32_t)groups,
                                      .replicas = (uint32_t)replicas,
                                      .shards = (uint32_t)shards,
                                      .lease_reads = lease_reads};
    struct cluster c;
    if (no_mount) {
        mountpoint = NULL;
    }
    if (!prepare(cluster_dir(dir), &plan, mountpoint, &c)) {
        return EXIT_FAILED;
    }
    /* A replica that cannot start is no reason to leave the others unused. */
    bool all_run = start_replicas(&c);
    if (!join_groups(&c) || (!no_mount && !mount_at(&c, mountpoint)) ||
        !all_run) {
        return EXIT_FAILED;
    }
    if (no_mount) {
        printf("The cluster is up (%u processes).\n", c.replica_count);
    } else {
        say_next(&c, mountpoint);
    }
    return EXIT_DONE;
}

/* Every mount of this cluster on this machine has a pid file. */
static uint32_t stop_mounts(const struct cluster *c)
{
    char run[PATH_MAX];
    cluster_path(c, "run", "", "", run);
    DIR *d = opendir(run);
    uint32_t stopped = 0;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char path[PATH_MAX];
        if (strncmp(e->d_name, "mount-", 6) == 0) {
            cluster_path(c, "run", e->d_name, "", path);
            stopped += process_stop(path, GRACE_MS) ? 1 : 0;
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    return stopped;
}

int cmd_down(int argc, char **argv)
{
    const char *dir = NULL;
    const struct arg_option options[] = {
        {"cluster", 'c', ARG_TEXT, &dir, "DIR",
         "its directory (default: $FLOTILLA_CLUSTER, or ./cluster)"},
        {0}};
    const struct arg_spec spec = {
        .usage = "down [OPTION...]",
        .about = "Unmounts and stops, by pid, what `flotilla up` started. The "
                 "data stays.",
        .options = options};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    dir = cluster_dir(dir);
    if (!cluster_exists(dir)) {
        printf("There is no cluster in %s.\n", dir);
        return EXIT_DONE;
    }
    struct cluster c;
    if (!cluster_load(dir, &c)) {
        return EXIT_FAILED;
    }
    /* The mount first: it still needs the replicas for what it must write. */
    uint32_t stopped = stop_mounts(&c);
    char(*paths)[PATH_MAX] = mem_array(c.replica_count, sizeof *paths);
    for (uint32_t i = 0; i < c.replica_count; i++) {
        pid_file(&c, c.replicas[i].name, paths[i]);
    }
    stopped += process_stop_all(paths, c.replica_count, GRACE_MS);
    mem_free(paths);
    printf("Stopped %u processes; the data stays in %s.\n", stopped, c.dir);
    return EXIT_DONE;
}
