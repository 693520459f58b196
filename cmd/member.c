/* flotilla member: who is in a group. Each command is a row of steps, each of
 * which may be repeated: what is done already is answered at once. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "cmd/args.h"
#include "cmd/arrival.h"
#include "cmd/ask.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/process.h"
#include "cmd/progress.h"
#include "rsm/rsm.h"

enum {
    CONNECT_MS = 10000,
    ASK_MS = 2000,
    WISH_MS = 2000,
    PATIENCE_MS = 60000, /* for a step that makes no progress */
    PAUSE_MS = 200,
    GRACE_MS = 10000,
    TOLD_MS = 15000,
    FAREWELL_MS = 5000,
};

struct change {
    struct cluster c;
    struct cluster_access access;
    struct skv_client *client;
    uint32_t gid;
    const char *address; /* --address, or NULL */
    uint64_t replaces;   /* the replica that goes afterwards; 0: none */
    bool json;
    struct arena arena; /* of `members` */
    struct rsm_members members;
};

static void pause_ms(long ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static const char *group_name(uint32_t gid, char text[32])
{
    if (gid == 0) {
        return "the controllers";
    }
    snprintf(text, 32, "group %u", gid);
    return text;
}

/* ---- asking the group ---- */

/* Takes what `address` says if it is newer than what we have. True when it
 * leads. */
static bool ask_one(struct change *ch, const char *address)
{
    struct arena arena = {0};
    struct rsm_members m;
    struct slice body;
    enum err rc = ask_call(ch->client, address, RSM_METHOD_MEMBERS,
                           slice_of(NULL, 0), ASK_MS, &arena, &body);
    if (rc != ERR_OK || rsm_members_decode(body, &arena, &m) != ERR_OK ||
        m.term < ch->members.term ||
        (m.term == ch->members.term && m.leader == 0)) {
        arena_free(&arena);
        return false;
    }
    bool leads = false;
    for (uint32_t i = 0; i < m.members_count; i++) {
        leads |= m.members[i].id == m.leader &&
                 slice_compare(m.members[i].address, slice_text(address)) == 0;
    }
    bool better =
        leads || m.term > ch->members.term || ch->members.members_count == 0;
    if (better) {
        arena_free(&ch->arena);
        ch->arena = arena;
        ch->members = m;
    } else {
        arena_free(&arena);
    }
    return leads;
}

/* Asks everybody known until the leader itself has answered. */
static bool ask_members(struct change *ch)
{
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        if (ch->c.replicas[i].gid == ch->gid &&
            ask_one(ch, ch->c.replicas[i].address)) {
            return true;
        }
    }
    return false;
}

static const struct rsm_member *member_of(const struct change *ch, uint64_t id)
{
    for (uint32_t i = 0; i < ch->members.members_count; i++) {
        if (ch->members.members[i].id == id) {
            return &ch->members.members[i];
        }
    }
    return NULL;
}

static bool leader_address(const struct change *ch,
                           char address[NET_ADDRESS_SIZE_MAX])
{
    const struct rsm_member *leader = member_of(ch, ch->members.leader);
    if (leader == NULL || leader->address.size >= NET_ADDRESS_SIZE_MAX) {
        return false;
    }
    memcpy(address, leader->address.data, leader->address.size);
    address[leader->address.size] = 0;
    return true;
}

/* ---- one step ---- */

static const char *const step_names[] = {
    [RSM_ADD] = "add",
    [RSM_PROMOTE] = "promote",
    [RSM_REMOVE] = "remove",
    [RSM_TRANSFER] = "hand leadership to",
};

static const char *refusal(enum rsm_change_kind kind, enum err rc)
{
    switch (rc) {
    case ERR_BUSY:
        return "afterwards no majority of the group would answer: start the "
               "replicas that are down, or remove those first";
    case ERR_EXISTS:
        return kind == RSM_TRANSFER
                   ? "it leads already"
                   : "the address or the id is, or was, another replica's";
    case ERR_NOTFOUND: return "the group has no such replica";
    case ERR_INVALID: return "it is the group's last voter";
    case ERR_TOOBIG: return "the group has 16 replicas, which is the bound";
    case ERR_DENIED: return "that takes the certificate of an admin";
    default: return err_text(rc);
    }
}

static enum err ask_wish(struct change *ch, const struct rsm_wish *wish)
{
    char address[NET_ADDRESS_SIZE_MAX];
    struct arena arena = {0};
    struct slice out;
    struct buf body = {0};
    if (!ask_members(ch) || !leader_address(ch, address)) {
        return ERR_NOTLEADER;
    }
    rsm_wish_encode(&body, wish);
    enum err rc = ask_call(ch->client, address, RSM_METHOD_CHANGE,
                           buf_slice(&body), WISH_MS + ASK_MS, &arena, &out);
    buf_free(&body);
    arena_free(&arena);
    return rc;
}

/* Waiting for a new replica, and what is shown of that. */
struct watch {
    struct arrival arrival;
    struct progress progress;
    uint8_t phase; /* that the line is of */
};

static const char *const phase_lines[] = {
    [RSM_SNAP_MAKING] = "  making its snapshot",
    [RSM_SNAP_SENDING] = "  snapshot",
    [RSM_SNAP_INSTALLING] = "  installing the snapshot",
};

static uint8_t snap_phase(const struct rsm_member *m)
{
    return m->snap_phase <= RSM_SNAP_INSTALLING ? m->snap_phase : RSM_SNAP_NONE;
}

static void watch_end(struct watch *w)
{
    if (w->phase != RSM_SNAP_NONE) {
        progress_end(&w->progress);
    }
    w->phase = RSM_SNAP_NONE;
}

static void watch_show(struct watch *w, const struct rsm_member *m,
                       uint64_t last_index)
{
    uint8_t phase = snap_phase(m);
    if (phase != w->phase) {
        watch_end(w);
    }
    if (phase == RSM_SNAP_NONE) {
        char words[ARRIVAL_WORDS_SIZE];
        printf("  %s\n", arrival_words(m, last_index, words));
        return;
    }
    if (phase != w->phase) {
        progress_begin(&w->progress, phase_lines[phase], 0);
        w->progress.unit = "MiB";
        w->phase = phase;
    }
    w->progress.total_bytes = m->snap_all >> 20;
    progress_show(&w->progress, m->snap_done >> 20, 0);
}

/* A new replica's progress is a reason to wait on; that others get what clients
 * write is none. */
static bool advances(const struct change *ch, uint64_t id, struct watch *w)
{
    const struct rsm_member *m = member_of(ch, id);
    if (m == NULL || !arrival_moves(&w->arrival, ch->members.term, m)) {
        return false;
    }
    watch_show(w, m, ch->members.last_index);
    return true;
}

static void say_failure(const struct change *ch, enum rsm_change_kind kind,
                        uint64_t id, enum err rc)
{
    char name[32], who[32] = "another replica", words[ARRIVAL_WORDS_SIZE];
    const struct rsm_member *m = member_of(ch, id);
    if (id != 0) {
        snprintf(who, sizeof who, "replica %" PRIu64, id);
    }
    fprintf(stderr, "flotilla: cannot %s %s of %s: ", step_names[kind], who,
            group_name(ch->gid, name));
    if (kind == RSM_PROMOTE && rc == ERR_TIMEDOUT && m != NULL) {
        fprintf(stderr, "nothing has moved for %d s: %s\n", PATIENCE_MS / 1000,
                arrival_words(m, ch->members.last_index, words));
    } else {
        fprintf(stderr, "%s\n",
                rc == ERR_NOTLEADER ? "no leader answers: is a majority "
                                      "running?"
                                    : refusal(kind, rc));
    }
}

/* Asks until it is done; false with words on standard error. */
static bool step(struct change *ch, enum rsm_change_kind kind, uint64_t id,
                 const char *address)
{
    const struct rsm_wish wish = {.kind = (uint8_t)kind,
                                  .id = id,
                                  .address = slice_text(address),
                                  .timeout_ms = WISH_MS};
    enum err rc = ERR_OK;
    char name[32];
    struct watch watch = {0};
    for (uint32_t waited = 0; waited < PATIENCE_MS; waited += PAUSE_MS) {
        rc = ask_wish(ch, &wish);
        if (rc == ERR_OK) {
            watch_end(&watch);
            return true;
        }
        if (rc != ERR_NOTLEADER && rc != ERR_TIMEDOUT && rc != ERR_CLOSED &&
            rc != ERR_IO && (rc != ERR_BUSY || waited > 10000)) {
            break;
        }
        if (rc == ERR_NOTLEADER && waited == 10 * PAUSE_MS) {
            printf("  no leader of %s answers yet; asking for up to %d s\n",
                   group_name(ch->gid, name), PATIENCE_MS / 1000);
        }
        bool catches_up = kind == RSM_PROMOTE && rc == ERR_TIMEDOUT;
        waited = catches_up && advances(ch, id, &watch) ? 0 : waited;
        waited += rc == ERR_TIMEDOUT ? WISH_MS : 0;
        pause_ms(PAUSE_MS);
    }
    watch_end(&watch);
    say_failure(ch, kind, id, rc);
    return false;
}

/* Clerks find the group through the controllers' configuration, which its
 * leader brings up to date. */
static bool is_told(struct change *ch)
{
    struct arena arena = {0};
    struct ctl_config config;
    bool same = true;
    if (ch->gid != 0 &&
        ask_config(ch->client, CTL_LATEST, ASK_MS, &arena, &config) == ERR_OK) {
        const struct ctl_group *g = ctl_config_group(&config, ch->gid);
        uint32_t voters = 0;
        for (uint32_t i = 0; i < ch->members.members_count; i++) {
            const struct rsm_member *m = &ch->members.members[i];
            bool found = m->role == RSM_LEARNER;
            voters += !found;
            for (uint32_t k = 0; g != NULL && k < g->servers_count; k++) {
                found |= g->servers[k].id == m->id;
            }
            same &= found;
        }
        same = g == NULL || (same && g->servers_count == voters);
    }
    arena_free(&arena);
    return same;
}

static void wait_told(struct change *ch)
{
    for (uint32_t waited = 0; waited < TOLD_MS; waited += PAUSE_MS) {
        if (ask_members(ch) && is_told(ch)) {
            return;
        }
        pause_ms(PAUSE_MS);
    }
    fprintf(stderr, "flotilla: the controllers do not know of it yet; the "
                    "group's leader goes on telling them\n");
}

/* ---- commands ---- */

static bool group_is_joined(struct change *ch)
{
    struct arena arena = {0};
    struct ctl_config config;
    enum err rc = ERR_OK;
    bool joined = ch->gid == 0;
    if (!joined) {
        rc = ask_config(ch->client, CTL_LATEST, ASK_MS, &arena, &config);
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
    *r = (struct cluster_replica){.gid = ch->gid};
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

static bool make_voter(struct change *ch, uint64_t id)
{
    if (step(ch, RSM_PROMOTE, id, "")) {
        wait_told(ch);
        return true;
    }
    const struct rsm_member *m = member_of(ch, id);
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

static bool add(struct change *ch, uint64_t *id)
{
    struct cluster_replica *r = NULL;
    char name[32];
    if (!ask_members(ch)) {
        fprintf(stderr,
                "flotilla: no leader of %s answers: is a majority running?\n",
                group_name(ch->gid, name));
        return false;
    }
    if (!group_is_joined(ch) || !make_replica(ch, &r)) {
        return false;
    }
    *id = r->id;
    printf("Starting replica %s at %s.\n", r->name, r->address);
    if (!replica_start(&ch->c, r) || !step(ch, RSM_ADD, r->id, r->address)) {
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
           group_name(ch->gid, name));
    return true;
}

/* It is told by the others, says so in its log, and ends; one that is told
 * nothing is stopped. */
static void end_process(const char *pid_file)
{
    for (uint32_t waited = 0;
         waited < FAREWELL_MS && process_alive(pid_file) != 0;
         waited += PAUSE_MS) {
        pause_ms(PAUSE_MS);
    }
    process_stop(pid_file, GRACE_MS);
}

/* Out of the group first, then out of the description; its process ends. */
static bool is_known(struct change *ch, uint64_t id)
{
    bool known = !ask_members(ch) || member_of(ch, id) != NULL;
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        known |= ch->c.replicas[i].gid == ch->gid && ch->c.replicas[i].id == id;
    }
    char name[32];
    if (!known) {
        fprintf(stderr, "flotilla: %s has no replica %" PRIu64 "\n",
                group_name(ch->gid, name), id);
    }
    return known;
}

static bool remove_one(struct change *ch, uint64_t id)
{
    char name[32], path[PATH_MAX];
    if (!is_known(ch, id)) {
        return false;
    }
    if (!step(ch, RSM_REMOVE, id, "")) {
        return false;
    }
    struct cluster *c = &ch->c;
    for (uint32_t i = 0; i < c->replica_count; i++) {
        struct cluster_replica gone = c->replicas[i];
        if (gone.gid != ch->gid || gone.id != id) {
            continue;
        }
        memmove(&c->replicas[i], &c->replicas[i + 1],
                (c->replica_count - i - 1) * sizeof gone);
        c->replica_count--;
        if (!cluster_save(c)) {
            return false;
        }
        end_process(cluster_path(c, "run", gone.name, ".pid", path));
        printf("Its data in %s can go.\n",
               cluster_path(c, "data", gone.name, "", path));
        break;
    }
    wait_told(ch);
    printf("Replica %" PRIu64 " is no member of %s any more.\n", id,
           group_name(ch->gid, name));
    return true;
}

static bool replace(struct change *ch, uint64_t dead)
{
    uint64_t id = 0;
    if (!ask_members(ch) || member_of(ch, dead) == NULL) {
        char name[32];
        fprintf(stderr,
                "flotilla: %s has no leader that answers, or no "
                "replica %" PRIu64 "\n",
                group_name(ch->gid, name), dead);
        return false;
    }
    ch->replaces = dead;
    return add(ch, &id) && remove_one(ch, dead);
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
        id != 0 && ask_members(ch) ? member_of(ch, id) : NULL;
    if (m == NULL || m->id == ch->members.leader) {
        return true; /* the leader says what is wrong */
    }
    if (m->role == RSM_LEARNER || m->active == 0) {
        fprintf(stderr,
                "flotilla: cannot hand leadership to replica %" PRIu64
                " of %s: %s\n",
                id, group_name(ch->gid, name),
                m->role == RSM_LEARNER
                    ? "it is a learner: `flotilla member promote` first"
                    : "it does not answer: start it with `flotilla up`, or "
                      "name another");
        return false;
    }
    return true;
}

static bool transfer(struct change *ch, uint64_t id)
{
    if (!may_lead(ch, id) || !step(ch, RSM_TRANSFER, id, "")) {
        return false;
    }
    for (uint32_t waited = 0; waited < 5000 && !ask_members(ch);
         waited += PAUSE_MS) {
        pause_ms(PAUSE_MS);
    }
    printf("Replica %" PRIu64 " leads.\n", ch->members.leader);
    return id == 0 || ch->members.leader == id;
}

/* ---- list ---- */

static const char *const role_names[] = {[RSM_VOTER] = "voter",
                                         [RSM_LEARNER] = "learner",
                                         [RSM_ARRIVING] = "arriving",
                                         [RSM_LEAVING] = "leaving"};

static const char *const phase_words[] = {[RSM_SNAP_NONE] = "none",
                                          [RSM_SNAP_MAKING] = "making",
                                          [RSM_SNAP_SENDING] = "sending",
                                          [RSM_SNAP_INSTALLING] = "installing"};

static const char *role_text(uint8_t role)
{
    return role >= RSM_VOTER && role <= RSM_LEAVING ? role_names[role] : "?";
}

static void list_text(const struct change *ch)
{
    char name[32];
    const struct rsm_members *m = &ch->members;
    printf("%s: term %" PRIu64 ", %" PRIu64 " log entries%s\n",
           group_name(ch->gid, name), m->term, m->last_index,
           m->settled != 0 ? "" : ", changing");
    for (uint32_t i = 0; i < m->members_count; i++) {
        const struct rsm_member *one = &m->members[i];
        printf("  %-4" PRIu64 " %-21.*s %-8s %10" PRIu64 " %s\n", one->id,
               (int)one->address.size, (const char *)one->address.data,
               one->id == m->leader ? "leader" : role_text(one->role),
               one->match, one->active != 0 ? "" : "does not answer");
        if (snap_phase(one) != RSM_SNAP_NONE) {
            char words[ARRIVAL_WORDS_SIZE];
            printf("       %s\n", arrival_words(one, m->last_index, words));
        }
    }
}

static json_t *list_json(const struct change *ch)
{
    const struct rsm_members *m = &ch->members;
    json_t *members = json_array();
    for (uint32_t i = 0; i < m->members_count; i++) {
        const struct rsm_member *one = &m->members[i];
        json_array_append_new(
            members,
            json_pack(
                "{s:I, s:s%, s:s, s:b, s:I, s:b, s:{s:s, s:I, s:I}}", "id",
                (json_int_t)one->id, "address", (const char *)one->address.data,
                one->address.size, "role", role_text(one->role), "leader",
                one->id == m->leader, "match", (json_int_t)one->match, "active",
                one->active != 0, "snapshot", "phase",
                phase_words[snap_phase(one)], "done",
                (json_int_t)one->snap_done, "all", (json_int_t)one->snap_all));
    }
    return json_pack("{s:i, s:I, s:b, s:o}", "group", (int)ch->gid, "term",
                     (json_int_t)m->term, "settled", m->settled != 0, "members",
                     members);
}

static bool list_group(struct change *ch, uint32_t gid, json_t *all)
{
    char name[32];
    ch->gid = gid;
    ch->members = (struct rsm_members){0};
    if (!ask_members(ch)) {
        fprintf(stderr, "flotilla: no leader of %s answers\n",
                group_name(gid, name));
        return false;
    }
    if (ch->json) {
        json_array_append_new(all, list_json(ch));
    } else {
        list_text(ch);
    }
    return true;
}

static bool list(struct change *ch, bool one)
{
    json_t *all = json_array();
    bool ok = true;
    if (one) {
        ok = list_group(ch, ch->gid, all);
    }
    for (uint32_t i = 0; !one && i < ch->c.replica_count; i++) {
        uint32_t gid = ch->c.replicas[i].gid;
        bool seen = false;
        for (uint32_t k = 0; k < i; k++) {
            seen |= ch->c.replicas[k].gid == gid;
        }
        ok &= seen || list_group(ch, gid, all);
    }
    if (ch->json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        printf("\n");
    }
    json_decref(all);
    return ok;
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
        ok = list(ch, has_group);
    } else if (strcmp(action, "add") == 0 && has_group && !has_id) {
        ok = add(ch, &id);
    } else if (strcmp(action, "remove") == 0 && has_id) {
        ok = remove_one(ch, id);
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

/* These write cluster.json when they end, minutes after they read it. */
static bool changes_description(const char *action)
{
    return strcmp(action, "add") == 0 || strcmp(action, "remove") == 0 ||
           strcmp(action, "replace") == 0;
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
