/* flotilla member: who is in a group. Each command is a row of steps, each of
 * which may be repeated: what is done already is answered at once. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cmd/args.h"
#include "cmd/ask.h"
#include "cmd/cmd.h"
#include "cmd/member_int.h"
#include "cmd/process.h"

enum { CONNECT_MS = 10000, GRACE_MS = 10000, FAREWELL_MS = 5000 };

/* ---- commands ---- */

static bool group_is_joined(struct change *ch)
{
    struct arena arena = {0};
    struct ctl_config config;
    enum err rc = ERR_OK;
    bool joined = ch->gid == 0;
    if (!joined) {
        rc = ask_config(ch->client, CTL_LATEST, MEMBER_ASK_MS, &arena, &config);
        joined = rc == ERR_OK && ctl_config_group(&config, ch->gid) != NULL;
        arena_free(&arena);
    }
    if (!joined) {
        fprintf(stderr,
                "flotilla: group %u is not in the configuration%s%s: `flotilla "
                "shards join` first\n",
                ch->gid, rc == ERR_OK ? "" : ", which cannot be read: ",
                rc == ERR_OK ? "" : err_text(rc));
    }
    return joined;
}

/* Said before anything is made: a description with an address that makes no
 * sense, or twice the same, would be refused by every command from then on. */
static bool given_address_fits(const struct change *ch)
{
    const char *colon = strrchr(ch->address, ':');
    uint64_t port = 0;
    if (colon == NULL || colon == ch->address ||
        strlen(ch->address) >= NET_ADDRESS_SIZE_MAX ||
        !args_number(colon + 1, 1, 65535, &port)) {
        fprintf(stderr, "flotilla: --address wants HOST:PORT and got '%s'\n",
                ch->address);
        return false;
    }
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        if (strcmp(ch->c.replicas[i].address, ch->address) == 0) {
            fprintf(stderr,
                    "flotilla: %s is the address of %s: give --address "
                    "another one, or none\n",
                    ch->address, ch->c.replicas[i].name);
            return false;
        }
    }
    return true;
}

static bool choose_address(const struct change *ch,
                           char out[NET_ADDRESS_SIZE_MAX])
{
    if (ch->address != NULL) {
        snprintf(out, NET_ADDRESS_SIZE_MAX, "%s", ch->address);
        return given_address_fits(ch);
    }
    uint32_t port = 0;
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        const char *colon = strrchr(ch->c.replicas[i].address, ':');
        uint32_t one = colon == NULL ? 0 : (uint32_t)atoi(colon + 1);
        port = one > port ? one : port;
    }
    do {
        port++;
    } while (port < 65535 && !process_port_free(port));
    snprintf(out, NET_ADDRESS_SIZE_MAX, "127.0.0.1:%u", port);
    if (port >= 65535) {
        fprintf(stderr, "flotilla: no port above those of the cluster is free: "
                        "choose one with --address HOST:PORT\n");
    }
    return port < 65535;
}

/* Its name, address, certificate, data directory and identity. */
static bool make_replica(struct change *ch, struct cluster_replica **out)
{
    struct cluster *c = &ch->c;
    if (c->replica_count == CLUSTER_REPLICAS_MAX) {
        fprintf(stderr, "flotilla: a cluster has at most %d processes here\n",
                CLUSTER_REPLICAS_MAX);
        return false;
    }
    struct cluster_replica *r = &c->replicas[c->replica_count];
    *r = (struct cluster_replica){
        .gid = ch->gid, .replaces = ch->replaces, .unfinished = true};
    r->id = ch->members.last_id + 1;
    for (uint32_t i = 0; i < c->replica_count; i++) {
        if (c->replicas[i].gid == ch->gid && c->replicas[i].id >= r->id) {
            r->id = c->replicas[i].id + 1; /* begun, and never added */
        }
    }
    cluster_replica_name(r);
    if (!choose_address(ch, r->address)) {
        return false;
    }
    c->replica_count++;
    *out = r;
    return cluster_make_certificate(c, r) &&
           cluster_make_identity(c, r, true) && cluster_save(c);
}

/* What an earlier command began for the same end, and was interrupted: another
 * one for that would be one too many. */
static struct cluster_replica *begun_before(struct change *ch)
{
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        struct cluster_replica *r = &ch->c.replicas[i];
        if (r->gid == ch->gid && r->unfinished && r->replaces == ch->replaces &&
            (ch->address == NULL || strcmp(ch->address, r->address) == 0)) {
            return r;
        }
    }
    return NULL;
}

static bool group_answers(struct change *ch)
{
    char name[32];
    bool answers = member_ask(ch);
    if (!answers) {
        fprintf(stderr,
                "flotilla: no leader of %s answers: is a majority running?\n",
                member_group_name(ch->gid, name));
    }
    return answers;
}

/* From now on another command to add one means another one. */
static bool finish(struct change *ch, uint64_t id)
{
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        struct cluster_replica *r = &ch->c.replicas[i];
        if (r->gid == ch->gid && r->id == id && r->unfinished) {
            r->unfinished = false;
            return cluster_save(&ch->c);
        }
    }
    return true;
}

static bool make_voter(struct change *ch, uint64_t id)
{
    if (member_step(ch, RSM_PROMOTE, id, "")) {
        member_wait_told(ch);
        return finish(ch, id);
    }
    const struct rsm_member *m = member_find(ch, id);
    if (m != NULL && m->role == RSM_LEARNER) {
        fprintf(stderr,
                "flotilla: it stays a learner and goes on catching up; finish "
                "with `flotilla member promote %u %" PRIu64 "`",
                ch->gid, id);
        if (ch->replaces != 0) {
            fprintf(stderr, ", then `flotilla member remove %u %" PRIu64 "`",
                    ch->gid, ch->replaces);
        }
        fprintf(stderr, "\n");
    }
    return false;
}

/* It is told by the others, says so in its log, and ends; one that is told
 * nothing is stopped. */
static void end_process(const char *pid_file)
{
    for (uint32_t waited = 0;
         waited < FAREWELL_MS && process_alive(pid_file) != 0;
         waited += MEMBER_PAUSE_MS) {
        member_pause(MEMBER_PAUSE_MS);
    }
    process_stop(pid_file, GRACE_MS);
}

/* Its process ends; then it is out of the description. */
static bool forget(struct change *ch, uint64_t id)
{
    char path[PATH_MAX];
    struct cluster *c = &ch->c;
    for (uint32_t i = 0; i < c->replica_count; i++) {
        struct cluster_replica gone = c->replicas[i];
        if (gone.gid != ch->gid || gone.id != id) {
            continue;
        }
        end_process(cluster_path(c, "run", gone.name, ".pid", path));
        memmove(&c->replicas[i], &c->replicas[i + 1],
                (c->replica_count - i - 1) * sizeof gone);
        c->replica_count--;
        if (!cluster_save(c)) {
            return false;
        }
        printf("Its data in %s can go.\n",
               cluster_path(c, "data", gone.name, "", path));
        break;
    }
    return true;
}

/* Its command was interrupted, and another one was added since, or it was
 * removed: the group gives no id again, nor a lower one. Nobody would ever tell
 * its process. */
static bool forget_overtaken(struct change *ch)
{
    for (uint32_t i = 0; i < ch->c.replica_count;) {
        struct cluster_replica r = ch->c.replicas[i];
        if (r.gid != ch->gid || !r.unfinished || r.id > ch->members.last_id ||
            member_find(ch, r.id) != NULL) {
            i++;
            continue;
        }
        printf("Replica %s was begun, and cannot be added any more.\n", r.name);
        if (!forget(ch, r.id)) {
            return false;
        }
    }
    return true;
}

static bool add(struct change *ch, uint64_t *id)
{
    char name[32];
    if (!group_answers(ch) || !group_is_joined(ch) || !forget_overtaken(ch)) {
        return false;
    }
    struct cluster_replica *r = begun_before(ch);
    bool goes_on = r != NULL;
    if (!goes_on && !make_replica(ch, &r)) {
        return false;
    }
    *id = r->id;
    printf("%s replica %s at %s.\n",
           goes_on ? "Going on with the unfinished" : "Starting", r->name,
           r->address);
    if (!replica_start(&ch->c, r) ||
        !member_step(ch, RSM_ADD, r->id, r->address)) {
        fprintf(stderr,
                "flotilla: take it back with `flotilla member remove "
                "%u %" PRIu64 "`\n",
                ch->gid, r->id);
        return false;
    }
    printf("It is a learner and catches up.\n");
    fflush(stdout);
    if (!make_voter(ch, r->id)) {
        return false;
    }
    printf("Replica %" PRIu64 " is a voter of %s.\n", r->id,
           member_group_name(ch->gid, name));
    return true;
}

/* `once`: or was, as the group says. */
static bool is_known(struct change *ch, uint64_t id, bool once)
{
    bool known = !member_ask(ch) || member_find(ch, id) != NULL ||
                 (once && id <= ch->members.last_id);
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        known |= ch->c.replicas[i].gid == ch->gid && ch->c.replicas[i].id == id;
    }
    char name[32];
    if (!known) {
        fprintf(stderr, "flotilla: %s has no replica %" PRIu64 "\n",
                member_group_name(ch->gid, name), id);
    }
    return known;
}

/* Out of the group first, then its process ends; out of the description last,
 * which says what there is to do for whoever is asked again. */
static bool remove_one(struct change *ch, uint64_t id)
{
    char name[32];
    member_wait_heard(ch, id);
    if (!member_step(ch, RSM_REMOVE, id, "")) {
        return false;
    }
    if (!forget(ch, id)) {
        return false;
    }
    member_wait_told(ch);
    printf("Replica %" PRIu64 " is no member of %s any more.\n", id,
           member_group_name(ch->gid, name));
    return true;
}

/* By a command that was interrupted: what is left is to remove the other. */
static bool has_successor(const struct change *ch, uint64_t id)
{
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        const struct cluster_replica *r = &ch->c.replicas[i];
        if (r->gid == ch->gid && r->replaces == id && !r->unfinished &&
            member_find(ch, r->id) != NULL) {
            return true;
        }
    }
    return false;
}

static bool replace(struct change *ch, uint64_t dead)
{
    uint64_t id = 0;
    if (!group_answers(ch)) {
        return false;
    }
    ch->replaces = dead;
    return (has_successor(ch, dead) ||
            (is_known(ch, dead, false) && add(ch, &id))) &&
           remove_one(ch, dead);
}

static bool promote(struct change *ch, uint64_t id)
{
    if (!make_voter(ch, id)) {
        return false;
    }
    printf("Replica %" PRIu64 " is a voter.\n", id);
    return true;
}

/* What step() would learn after a minute, or call by another name. */
static bool may_lead(struct change *ch, uint64_t id)
{
    char name[32];
    const struct rsm_member *m =
        id != 0 && member_ask(ch) ? member_find(ch, id) : NULL;
    if (m == NULL || m->id == ch->members.leader) {
        return true; /* the leader says what is wrong */
    }
    if (m->role == RSM_LEARNER || m->active == 0) {
        fprintf(stderr,
                "flotilla: cannot hand leadership to replica %" PRIu64
                " of %s: %s\n",
                id, member_group_name(ch->gid, name),
                m->role == RSM_LEARNER
                    ? "it is a learner: `flotilla member promote` first"
                    : member_silent_words);
        return false;
    }
    return true;
}

static bool transfer(struct change *ch, uint64_t id)
{
    if (!may_lead(ch, id) || !member_step(ch, RSM_TRANSFER, id, "")) {
        return false;
    }
    for (uint32_t waited = 0; waited < 5000 && !member_ask(ch);
         waited += MEMBER_PAUSE_MS) {
        member_pause(MEMBER_PAUSE_MS);
    }
    printf("Replica %" PRIu64 " leads.\n", ch->members.leader);
    return id == 0 || ch->members.leader == id;
}

/* ---- the words ---- */

static int usage(void)
{
    fprintf(stderr, "flotilla: member wants list [GROUP], add GROUP, remove "
                    "GROUP ID, replace GROUP ID,\npromote GROUP ID, transfer "
                    "GROUP [ID] or repair GROUP; --help says more\n");
    return EXIT_USAGE;
}

static bool group_is_here(const struct cluster *c, uint32_t gid)
{
    for (uint32_t i = 0; i < c->replica_count; i++) {
        if (c->replicas[i].gid == gid) {
            return true;
        }
    }
    fprintf(stderr,
            "flotilla: the cluster in %s has no group %u: `flotilla member "
            "list` shows which there are\n",
            c->dir, gid);
    return false;
}

/* These write cluster.json when they end, minutes after they read it. */
static bool changes_description(const char *action)
{
    return strcmp(action, "add") == 0 || strcmp(action, "remove") == 0 ||
           strcmp(action, "replace") == 0 || strcmp(action, "promote") == 0;
}

static int run(struct change *ch, const char *action, char **words, int count)
{
    uint64_t gid = 0, id = 0;
    bool has_group = count > 0, has_id = count > 1;
    if ((has_group && !args_number(words[0], 0, UINT32_MAX, &gid)) ||
        (has_id && !args_number(words[1], 1, UINT64_MAX, &id))) {
        return usage();
    }
    ch->gid = (uint32_t)gid;
    if (has_group && !group_is_here(&ch->c, ch->gid)) {
        return EXIT_FAILED;
    }
    bool ok = false;
    if (strcmp(action, "list") == 0 && !has_id) {
        ok = member_list(ch, has_group);
    } else if (strcmp(action, "add") == 0 && has_group && !has_id) {
        ok = add(ch, &id);
    } else if (strcmp(action, "remove") == 0 && has_id) {
        ok = is_known(ch, id, true) && remove_one(ch, id);
    } else if (strcmp(action, "replace") == 0 && has_id) {
        ok = replace(ch, id);
    } else if (strcmp(action, "promote") == 0 && has_id) {
        ok = promote(ch, id);
    } else if (strcmp(action, "transfer") == 0 && has_group) {
        ok = transfer(ch, id);
    } else {
        return usage();
    }
    return ok ? EXIT_DONE : EXIT_FAILED;
}

/* Needs nobody to run; nobody may. */
static int repair(const struct cluster *c, char **words, int count)
{
    uint64_t gid = 0;
    if (count != 1 || !args_number(words[0], 0, UINT32_MAX, &gid)) {
        return usage();
    }
    return repair_group(c, (uint32_t)gid) ? EXIT_DONE : EXIT_FAILED;
}

int cmd_member(int argc, char **argv)
{
    struct change ch = {0};
    const struct arg_option options[] = {
        {"cluster", 'c', ARG_TEXT, &ch.access.cluster, "DIR",
         "the cluster's directory (default: $FLOTILLA_CLUSTER, or ./cluster)"},
        {"address", 'a', ARG_TEXT, &ch.address, "HOST:PORT",
         "of a new replica (default: 127.0.0.1 and the next free port)"},
        {"json", 'j', ARG_FLAG, &ch.json, NULL, "list: print JSON"},
        {0}};
    const struct arg_spec spec = {
        .usage = "member [OPTION...] list [GROUP] | add GROUP | remove GROUP "
                 "ID | replace GROUP ID | promote GROUP ID | transfer GROUP "
                 "[ID] | repair GROUP",
        .about =
            "Shows or changes who is in a group (0: the controllers), while it "
            "is used.\n\n"
            "  add       a new replica: certificate, directory, process; it "
            "catches up, then votes\n"
            "  remove    the group goes on without ID, whose process ends\n"
            "  replace   a new replica takes the place of ID, which may be "
            "dead: add, then remove\n"
            "  promote   a learner that was left over votes\n"
            "  transfer  ID (or any other) leads\n"
            "  repair    while the group is stopped: logs that are damaged on "
            "most replicas are made\n            whole from each other; "
            "refused "
            "when that would lose anything",
        .options = options,
        .positional_min = 1,
        .positional_max = 3};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    const char *dir = cluster_dir(ch.access.cluster);
    if ((changes_description(argv[first]) && cluster_exists(dir) &&
         !cluster_lock(dir)) ||
        !cluster_load(dir, &ch.c)) {
        return EXIT_FAILED;
    }
    if (strcmp(argv[first], "repair") == 0) {
        return repair(&ch.c, argv + first + 1, argc - first - 1);
    }
    ch.client = cluster_connect(&ch.access, "admin", CONNECT_MS);
    if (ch.client == NULL) {
        return EXIT_FAILED;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    log_set_level(LOG_LEVEL_ERROR);
    status = run(&ch, argv[first], argv + first + 1, argc - first - 1);
    skv_client_free(ch.client);
    arena_free(&ch.arena);
    return status;
}
