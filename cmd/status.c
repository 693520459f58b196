/* flotilla status: who leads, who owns which shard, who has it mounted, and
 * what is wrong. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "cmd/args.h"
#include "cmd/ask.h"
#include "cmd/behind.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/health.h"
#include "cmd/moves.h"
#include "cmd/process.h"
#include "raft/raft.h"

enum {
    CONFIG_MS = 2000,
    REPLICA_MS = 2000,
    PROBLEMS_MAX = 128,
    UNHEARD_MS = 30000, /* servers ask a controller each few seconds */
};

struct report {
    struct arena arena;
    enum err config_rc, mounts_rc;
    struct ctl_config config;
    struct ctl_mounts mounts;
    struct health health; /* of the controllers and the groups */
    char *problems[PROBLEMS_MAX];
    uint32_t problem_count;
};

static void add_problem(struct report *r, char *words)
{
    if (r->problem_count < PROBLEMS_MAX) {
        r->problems[r->problem_count++] = words;
    } else {
        mem_free(words);
    }
}

/* The cluster's directory says it too, as it was made. */
static void add_by_directory(struct report *r, const struct cluster *c)
{
    for (uint32_t i = 0; i < c->replica_count; i++) {
        if (c->replicas[i].gid != 0) {
            health_add_one(&r->health, c->replicas[i].gid, c->replicas[i].id,
                           slice_text(c->replicas[i].address));
        }
    }
}

static const char *who(char words[64], const struct ask_replica *one)
{
    if (one->gid == 0) {
        snprintf(words, 64, "controller %" PRIu64, one->id);
    } else {
        snprintf(words, 64, "replica %" PRIu64 " of group %u", one->id,
                 one->gid);
    }
    return words;
}

/* What does not work while that group has no majority. */
static void say_what_waits(FILE *to, const struct report *r, ctl_gid gid)
{
    if (gid == 0) {
        fprintf(to, "files can be used, but shards do not move and nobody new "
                    "can mount");
        return;
    }
    fprintf(to, "calls on its shards wait");
    if (r->config_rc == ERR_OK) {
        fprintf(to, ": it has ");
        health_say_held(to, &r->health, gid);
    }
    for (uint32_t i = 0; i < r->health.count; i++) {
        const struct ctl_status *s = &r->health.replicas[i].status;
        if (r->health.replicas[i].rc == ERR_OK && s->moves_count > 0 &&
            s->moves[0].from == gid) {
            fprintf(to,
                    "; group %u waits for some of them, and follows no change "
                    "after configuration %" PRIu64,
                    s->gid, s->config_number);
        }
    }
}

/* A group is well when a majority answers and one of them leads. */
static void judge_group(struct report *r, ctl_gid gid)
{
    struct health_group g = health_of(&r->health, gid);
    char *words = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&words, &size);
    CHECK(to != NULL);
    if (gid == 0) {
        fprintf(to, "the controllers: ");
    } else {
        fprintf(to, "group %u: ", gid);
    }
    bool majority = health_has_majority(&g);
    if (majority) {
        fprintf(to, "no leader now");
    } else {
        health_say(to, &r->health, gid);
        fprintf(to, ": ");
        say_what_waits(to, r, gid);
        fprintf(to, "; start the others with `flotilla up`");
    }
    fclose(to);
    if (majority && g.leader != NULL) {
        mem_free(words);
    } else {
        add_problem(r, words);
    }
}

static void judge_replica(struct report *r, const struct ask_replica *one,
                          uint64_t now_s)
{
    char name[64];
    if (one->rc != ERR_OK) {
        add_problem(r, mem_printf("%s at %s does not answer (%s): start it "
                                  "with `flotilla up`, or see its log",
                                  who(name, one), one->address,
                                  err_text(one->rc)));
        return;
    }
    if (one->status.problem.size > 0) {
        add_problem(r, mem_printf("%s: %.*s", who(name, one),
                                  (int)one->status.problem.size,
                                  (const char *)one->status.problem.data));
    }
    uint64_t end_s = one->status.certificate_end_s;
    if (end_s != 0 && end_s < now_s + 14 * 86400) {
        add_problem(r,
                    mem_printf("%s: its certificate ends in %" PRIi64 " hours",
                               who(name, one),
                               ((int64_t)end_s - (int64_t)now_s) / 3600));
    }
}

/* Does its leader look for the controllers where they are no more? While they
 * do not run, or have just been started, that is no news. */
static void judge_hearing(struct report *r, ctl_gid gid)
{
    char name[64];
    struct health_group controllers = health_of(&r->health, 0);
    struct health_group g = health_of(&r->health, gid);
    if (gid == 0 || g.leader == NULL || controllers.leader == NULL ||
        controllers.leader->status.uptime_ms < UNHEARD_MS ||
        g.leader->status.controllers_ms < UNHEARD_MS) {
        return;
    }
    add_problem(
        r,
        mem_printf("%s leads, and no controller has answered it for %" PRIu64
                   " s, though they run: its shards do not move, and who "
                   "joins it is not found. Can it reach them? If all were "
                   "replaced while it could not hear of it, end its process "
                   "(pid %" PRIu64 ") and start it with `flotilla up`",
                   who(name, g.leader), g.leader->status.controllers_ms / 1000,
                   g.leader->status.pid));
}

/* The group's leader says who is in it. */
static bool may_belong(const struct report *r,
                       const struct cluster_replica *one)
{
    struct health_group g = health_of(&r->health, one->gid);
    if (g.leader == NULL) {
        return true; /* nobody can tell */
    }
    for (uint32_t i = 0; i < g.leader->status.peers_count; i++) {
        if (g.leader->status.peers[i].id == one->id) {
            return true;
        }
    }
    return false;
}

static char *stray_words(const struct cluster_replica *one)
{
    char goes_on[96] = "";
    if (one->unfinished && one->replaces == 0) {
        snprintf(goes_on, sizeof goes_on,
                 "`flotilla member add %u` makes it one, ", one->gid);
    } else if (one->unfinished) {
        snprintf(goes_on, sizeof goes_on,
                 "`flotilla member replace %u %" PRIu64 "` makes it one, ",
                 one->gid, one->replaces);
    }
    return mem_printf("%s at %s runs, and is no member of its group: "
                      "%s`flotilla member remove %u %" PRIu64 "` takes it away",
                      one->name, one->address, goes_on, one->gid, one->id);
}

/* `member` starts a process before the group hears of it, and ends it after the
 * group has forgotten it: it may have been killed in between. */
static void judge_strays(struct report *r, const struct cluster *c)
{
    char path[PATH_MAX];
    for (uint32_t i = 0; i < c->replica_count; i++) {
        const struct cluster_replica *one = &c->replicas[i];
        if (!may_belong(r, one) &&
            process_alive(cluster_path(c, "run", one->name, ".pid", path)) !=
                0) {
            add_problem(r, stray_words(one));
        }
    }
}

static void judge_behind(struct report *r, struct skv_client *client)
{
    struct behind *found = mem_array(HEALTH_REPLICAS_MAX, sizeof *found);
    uint32_t count = behind_find(&r->health, client, found);
    for (uint32_t i = 0; i < count; i++) {
        char name[64];
        const struct behind *b = &found[i];
        add_problem(
            r,
            mem_printf("%s is behind: of %" PRIu64 " entries that were "
                       "committed %d s ago and it had not executed it has "
                       "executed %" PRIu64 " since; if all is not done soon, "
                       "see its log",
                       who(name, &r->health.replicas[b->replica]), b->entries,
                       BEHIND_MS / 1000, b->executed));
    }
    mem_free(found);
}

static void judge(struct report *r)
{
    uint64_t now_s = (uint64_t)time(NULL);
    for (uint32_t i = 0; i < r->health.count; i++) {
        judge_replica(r, &r->health.replicas[i], now_s);
    }
    for (uint32_t i = 0; i < r->health.count; i = health_next(&r->health, i)) {
        judge_group(r, r->health.replicas[i].gid);
        judge_hearing(r, r->health.replicas[i].gid);
    }
    if (r->config_rc != ERR_OK) {
        add_problem(r, mem_printf("the controllers give no configuration: %s",
                                  err_text(r->config_rc)));
    } else if (r->config.groups_count == 0) {
        add_problem(r, mem_printf("no group has joined: `flotilla shards "
                                  "join`"));
    }
}

/* `c`: the cluster's directory, or NULL; it finds the replicas when no
 * controller can say who they are. */
static void collect(struct report *r, struct skv_client *client,
                    const struct skv_client_config *config,
                    const struct cluster *c)
{
    health_add_controllers(&r->health, config);
    r->config_rc =
        ask_config(client, CTL_LATEST, CONFIG_MS, &r->arena, &r->config);
    if (r->config_rc == ERR_OK) {
        r->mounts_rc = ask_mounts(client, REPLICA_MS, &r->arena, &r->mounts);
        health_add_all(&r->health, &r->config);
    } else if (c != NULL) {
        add_by_directory(r, c);
    }
    health_ask_all(&r->health, client, &r->config, REPLICA_MS);
    for (uint32_t i = 0; i < r->health.count; i++) {
        if (r->health.replicas[i].rc == ERR_OK) {
            r->health.replicas[i].id = r->health.replicas[i].status.id;
        }
    }
    judge(r);
    judge_behind(r, client);
    if (c != NULL) {
        judge_strays(r, c);
    }
}

static uint32_t shards_of(const struct report *r, ctl_gid gid)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->config.shards_count; i++) {
        count += r->config.shards[i].gid == gid;
    }
    return count;
}

static void print_replica(const struct ask_replica *one)
{
    const struct ctl_status *s = &one->status;
    if (one->rc != ERR_OK) {
        printf("  %-3" PRIu64 " %-21s down         %s\n", one->id, one->address,
               err_text(one->rc));
        return;
    }
    printf("  %-3" PRIu64 " %-21s %-12s %5" PRIu64 " %10" PRIu64 " %10" PRIu64
           " %10" PRIu64 " %7" PRIu64 " %9" PRIu64 " %9" PRIu64 "\n",
           one->id, one->address, raft_role_text(s->role), s->term,
           s->last_index, s->commit, s->applied, s->pid, s->keys,
           s->bytes >> 20);
}

static void print_group(const struct report *r, ctl_gid gid)
{
    if (gid == 0) {
        printf("controllers\n");
    } else if (r->config_rc != ERR_OK) {
        printf("group %u\n", gid);
    } else {
        printf("group %u: %u of %u shards\n", gid, shards_of(r, gid),
               r->config.shards_count);
    }
    printf("  %-3s %-21s %-12s %5s %10s %10s %10s %7s %9s %9s\n", "id",
           "address", "role", "term", "last", "commit", "applied", "pid",
           "keys", "MiB");
    for (uint32_t i = 0; i < r->health.count; i++) {
        if (r->health.replicas[i].gid == gid) {
            print_replica(&r->health.replicas[i]);
        }
    }
}

static void print_mounts(const struct report *r)
{
    for (uint32_t i = 0; i < r->mounts.mounts_count; i++) {
        const struct ctl_mount *m = &r->mounts.mounts[i];
        time_t since = (time_t)(m->since_us / 1000000);
        struct tm tm;
        char text[32];
        strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S",
                 localtime_r(&since, &tm));
        printf("mount %.*s on %.*s, pid %" PRIu64 ", since %s\n",
               (int)m->path.size, (const char *)m->path.data, (int)m->host.size,
               (const char *)m->host.data, m->pid, text);
    }
    if (r->config_rc == ERR_OK && r->mounts.mounts_count == 0) {
        printf("nobody has it mounted\n");
    }
}

static void print_text(const struct report *r)
{
    if (r->config_rc == ERR_OK) {
        printf("configuration %" PRIu64 "\n", r->config.number);
    }
    for (uint32_t i = 0; i < r->health.count; i = health_next(&r->health, i)) {
        print_group(r, r->health.replicas[i].gid);
    }
    moves_print(r->health.replicas, r->health.count);
    print_mounts(r);
    for (uint32_t i = 0; i < r->problem_count; i++) {
        printf("PROBLEM %s\n", r->problems[i]);
    }
    if (r->problem_count == 0) {
        printf("all is well\n");
    }
}

/* What checkpoints cost: in milliseconds, of the last 1024. */
static json_t *checkpoints_json(const struct ctl_status *s)
{
    static const char *const names[CTL_SPREADS] = {
        [CTL_SPREAD_STALL] = "stall_ms",
        [CTL_SPREAD_BUSY] = "applier_job_ms",
        [CTL_SPREAD_WRITE] = "write_ms"};
    json_t *j = json_pack("{s:I}", "count", (json_int_t)s->checkpoints);
    for (uint32_t i = 0; i < s->spreads_count && i < CTL_SPREADS; i++) {
        const struct ctl_spread *one = &s->spreads[i];
        json_object_set_new(
            j, names[i],
            json_pack("{s:f, s:f, s:f}", "p50", (double)one->p50 / 1000, "p99",
                      (double)one->p99 / 1000, "max", (double)one->max / 1000));
    }
    return j;
}

/* Entries that its leader knows to be committed and it has not executed. What
 * is on its way is among them; who does not get on is among the problems. */
static void behind_json(const struct report *r, const struct ask_replica *one,
                        json_t *j)
{
    struct health_group g = health_of(&r->health, one->gid);
    if (g.leader != NULL) {
        uint64_t commit = g.leader->status.commit;
        uint64_t applied = one->status.applied;
        json_object_set_new(j, "behind",
                            json_integer(commit > applied
                                             ? (json_int_t)(commit - applied)
                                             : 0));
    }
}

static json_t *replica_json(const struct report *r,
                            const struct ask_replica *one)
{
    const struct ctl_status *s = &one->status;
    json_t *j = json_pack("{s:i, s:I, s:s, s:b}", "group", (int)one->gid, "id",
                          (json_int_t)one->id, "address", one->address, "up",
                          one->rc == ERR_OK);
    if (one->rc != ERR_OK) {
        json_object_set_new(j, "error", json_string(err_text(one->rc)));
        return j;
    }
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"term", s->term},
                   {"leader", s->leader},
                   {"first_index", s->first_index},
                   {"last_index", s->last_index},
                   {"commit", s->commit},
                   {"applied", s->applied},
                   {"durable", s->durable},
                   {"configuration", s->config_number},
                   {"pid", s->pid},
                   {"uptime_ms", s->uptime_ms},
                   {"keys", s->keys},
                   {"bytes", s->bytes},
                   {"certificate_end_s", s->certificate_end_s}};
    json_object_set_new(j, "role", json_string(raft_role_text(s->role)));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        json_object_set_new(j, numbers[i].name,
                            json_integer((json_int_t)numbers[i].value));
    }
    behind_json(r, one, j);
    if (one->gid != 0) {
        json_object_set_new(j, "controllers_heard_ms",
                            json_integer((json_int_t)s->controllers_ms));
    }
    json_object_set_new(j, "checkpoints", checkpoints_json(s));
    return j;
}

static void print_json(const struct report *r)
{
    json_t *replicas = json_array(), *mounts = json_array();
    json_t *problems = json_array(), *groups = json_array();
    json_t *moves = json_array();
    moves_json(r->health.replicas, r->health.count, moves);
    for (uint32_t i = 0; i < r->health.count; i++) {
        json_array_append_new(replicas,
                              replica_json(r, &r->health.replicas[i]));
    }
    for (uint32_t g = 0; g < r->config.groups_count; g++) {
        ctl_gid gid = r->config.groups[g].gid;
        json_array_append_new(
            groups, json_pack("{s:i, s:i, s:i}", "group", (int)gid, "shards",
                              (int)shards_of(r, gid), "weight",
                              (int)ctl_config_weight(&r->config, gid)));
    }
    for (uint32_t i = 0; i < r->mounts.mounts_count; i++) {
        const struct ctl_mount *m = &r->mounts.mounts[i];
        json_array_append_new(
            mounts,
            json_pack("{s:s%, s:s%, s:I, s:I}", "host",
                      (const char *)m->host.data, m->host.size, "path",
                      (const char *)m->path.data, m->path.size, "pid",
                      (json_int_t)m->pid, "since_us", (json_int_t)m->since_us));
    }
    for (uint32_t i = 0; i < r->problem_count; i++) {
        json_array_append_new(problems, json_string(r->problems[i]));
    }
    json_t *j = json_pack("{s:I, s:I, s:i, s:o, s:o, s:o, s:o, s:o}",
                          "configuration", (json_int_t)r->config.number,
                          "move_rate", (json_int_t)r->config.move_rate,
                          "shards", (int)r->config.shards_count, "groups",
                          groups, "replicas", replicas, "moves", moves,
                          "mounts", mounts, "problems", problems);
    json_dumpf(j, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(j);
}

static void report_free(struct report *r)
{
    for (uint32_t i = 0; i < r->problem_count; i++) {
        mem_free(r->problems[i]);
    }
    health_fini(&r->health);
    arena_free(&r->arena);
    mem_free(r);
}

int cmd_status(int argc, char **argv)
{
    struct cluster_access access = {0};
    bool json = false;
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&access),
        {"json", 'j', ARG_FLAG, &json, NULL, "print JSON"},
        {0}};
    const struct arg_spec spec = {
        .usage = "status [OPTION...]",
        .about = "Shows groups, replicas, leaders, terms, log indexes, shards "
                 "and mounts, and what is\nwrong. Exits with 3 when something "
                 "is.",
        .options = options};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    struct skv_client_config config;
    char certs_dir[PATH_MAX], problem[512];
    struct skv_client *client = NULL;
    if (!cluster_client_config(&access, "admin", &config, certs_dir)) {
        return EXIT_FAILED;
    }
    /* Controllers without a majority give no configuration, and just then
     * somebody wants to see what is wrong. */
    config.at_once = true;
    enum err rc = skv_client_new(&config, 0, &client, problem, sizeof problem);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot reach the cluster: %s\n", problem);
        return EXIT_FAILED;
    }
    struct report *r = mem_alloc(sizeof *r);
    struct cluster c;
    bool here = access.controllers == NULL &&
                cluster_load(cluster_dir(access.cluster), &c);
    collect(r, client, &config, here ? &c : NULL);
    json ? print_json(r) : print_text(r);
    status = r->problem_count == 0 ? EXIT_DONE : EXIT_UNWELL;
    report_free(r);
    skv_client_free(client);
    return status;
}
