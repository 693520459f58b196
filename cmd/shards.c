/* flotilla shards: which group owns which shard, and changing it. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/args.h"
#include "cmd/ask.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/health.h"
#include "cmd/moves.h"
#include "cmd/process.h"

enum { TIMEOUT_MS = 10000, LOOK_MS = 1500, GLANCE_MS = 500 };

/* One use of the command. */
struct shards {
    struct skv_client *client;
    struct skv_client_config where; /* the controllers */
    bool json, wait, force;
    uint64_t timeout_ms; /* --timeout, or 0 */
    uint64_t began_ms;
};

/* Of --timeout, or `otherwise`; never 0, which would be for ever. */
static uint32_t left_ms(const struct shards *s, uint32_t otherwise)
{
    if (s->timeout_ms == 0) {
        return otherwise;
    }
    uint64_t spent = process_now_ms() - s->began_ms;
    return spent < s->timeout_ms ? (uint32_t)(s->timeout_ms - spent) : 1;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t count_of(const struct ctl_config *c, ctl_gid gid)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->shards_count; i++) {
        count += c->shards[i].gid == gid;
    }
    return count;
}

/* The groups of a configuration, and the controllers, say how they are. */
static struct health *look(const struct shards *s, const struct ctl_config *c,
                           uint32_t ms)
{
    struct health *h = mem_alloc(sizeof *h);
    health_add_controllers(h, &s->where);
    health_add_all(h, c);
    health_ask_all(h, s->client, c, least(ms, left_ms(s, ms)));
    return h;
}

static void look_end(struct health *h)
{
    health_fini(h);
    mem_free(h);
}

static void print_dead(FILE *to, const struct health *h, ctl_gid gid)
{
    fprintf(to, "group %u: ", gid);
    health_say(to, h, gid);
    fprintf(to, ": what is in ");
    health_say_held(to, h, gid);
    fprintf(to, " waits for it\n");
}

static void print_text(const struct ctl_config *c)
{
    printf("configuration %llu: %u shards, %u groups\n",
           (unsigned long long)c->number, c->shards_count, c->groups_count);
    if (c->move_rate != 0) {
        printf("rate: at most %llu MiB a second arrive at a group\n",
               (unsigned long long)c->move_rate >> 20);
    }
    for (uint32_t g = 0; g < c->groups_count; g++) {
        const struct ctl_group *group = &c->groups[g];
        uint32_t weight = ctl_config_weight(c, group->gid);
        printf("group %u: ", group->gid);
        if (weight != 1) {
            printf("weight %u, ", weight);
        }
        printf("%u shards:", count_of(c, group->gid));
        uint8_t own[CTL_SHARDS_MAX];
        for (uint32_t i = 0; i < c->shards_count; i++) {
            own[i] = c->shards[i].gid == group->gid;
        }
        health_print_shards(stdout, own, c->shards_count);
        printf("\n");
        for (uint32_t s = 0; s < group->servers_count; s++) {
            printf("  replica %llu at %.*s\n",
                   (unsigned long long)group->servers[s].id,
                   (int)group->servers[s].address.size,
                   (const char *)group->servers[s].address.data);
        }
    }
}

/* `h`: NULL for an old configuration, as the groups are what they are now. */
static void print_json(const struct ctl_config *c, const struct health *h)
{
    json_t *shards = json_array(), *groups = json_array();
    for (uint32_t i = 0; i < c->shards_count; i++) {
        json_array_append_new(shards, json_integer(c->shards[i].gid));
    }
    for (uint32_t g = 0; g < c->groups_count; g++) {
        json_t *servers = json_array();
        for (uint32_t s = 0; s < c->groups[g].servers_count; s++) {
            const struct ctl_server *server = &c->groups[g].servers[s];
            json_array_append_new(servers,
                                  json_pack("{s:I, s:s%}", "id",
                                            (json_int_t)server->id, "address",
                                            (const char *)server->address.data,
                                            server->address.size));
        }
        ctl_gid gid = c->groups[g].gid;
        json_t *group =
            json_pack("{s:i, s:i, s:o}", "group", (int)gid, "weight",
                      (int)ctl_config_weight(c, gid), "servers", servers);
        if (h != NULL) {
            json_object_set_new(group, "majority",
                                json_boolean(!health_is_dead(h, gid)));
        }
        json_array_append_new(groups, group);
    }
    json_t *j = json_pack(
        "{s:I, s:I, s:o, s:o}", "number", (json_int_t)c->number, "move_rate",
        (json_int_t)c->move_rate, "shards", shards, "groups", groups);
    json_dumpf(j, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(j);
}

static void query_print(const struct shards *s, const struct ctl_config *c,
                        bool newest)
{
    struct health *h = newest ? look(s, c, GLANCE_MS) : NULL;
    s->json ? print_json(c, h) : print_text(c);
    for (uint32_t i = 0; h != NULL && !s->json && i < h->count;
         i = health_next(h, i)) {
        ctl_gid gid = h->replicas[i].gid;
        if (gid != 0 && health_is_dead(h, gid)) {
            printf("PROBLEM ");
            print_dead(stdout, h, gid);
        }
    }
    if (h != NULL) {
        look_end(h);
    }
}

static int query(const struct shards *s, uint64_t number)
{
    struct arena arena = {0};
    struct ctl_config config;
    enum err rc =
        ask_config(s->client, number, left_ms(s, TIMEOUT_MS), &arena, &config);
    if (rc == ERR_OK) {
        query_print(s, &config, number == CTL_LATEST);
    } else {
        fprintf(stderr, "flotilla: cannot ask the controllers: %s\n",
                rc == ERR_NOTFOUND ? "there is no such configuration"
                                   : err_text(rc));
    }
    arena_free(&arena);
    return rc == ERR_OK ? EXIT_DONE : EXIT_FAILED;
}

/* ---- changes ---- */

/* What a refusal of the controllers means to the one who asked. */
static const char *refusal(uint8_t kind, enum err rc)
{
    if (kind == CTL_JOIN && rc == ERR_EXISTS) {
        return "the group has joined already";
    }
    if (rc == ERR_NOTFOUND) {
        return "there is no such group";
    }
    if (kind == CTL_LEAVE && rc == ERR_INVALID) {
        return "the last group cannot leave: its shards would have nowhere to "
               "go; join another group first";
    }
    if (rc == ERR_INVALID) {
        return "there is no such group, or it has no servers";
    }
    return err_text(rc);
}

/* A move concerns who has the shard and who gets it; other changes may take
 * from, or give to, every group. */
static bool concerns(const struct ctl_change *what, const struct health *h,
                     ctl_gid gid)
{
    return what->kind != CTL_MOVE || gid == what->move_gid ||
           (what->move_shard < CTL_SHARDS_MAX &&
            h->holder[what->move_shard] == gid);
}

/* A shard that is on its way cannot be called back: who gets it waits for it,
 * and follows no later configuration meanwhile. */
static bool all_can_move(const struct shards *s, const struct ctl_change *what)
{
    struct arena arena = {0};
    struct ctl_config c = {0};
    enum err rc =
        ask_config(s->client, CTL_LATEST, left_ms(s, TIMEOUT_MS), &arena, &c);
    uint32_t dead = 0;
    if (rc == ERR_OK) {
        struct health *h = look(s, &c, LOOK_MS);
        for (uint32_t i = 0; i < h->count; i = health_next(h, i)) {
            ctl_gid gid = h->replicas[i].gid;
            if (gid != 0 && concerns(what, h, gid) && health_is_dead(h, gid)) {
                fprintf(stderr, "flotilla: ");
                print_dead(stderr, h, gid);
                dead++;
            }
        }
        look_end(h);
    }
    arena_free(&arena);
    if (dead > 0) {
        fprintf(stderr,
                "flotilla: %s: what is in its shards cannot move until a "
                "majority of it runs again, or a backup is restored "
                "(docs/operating.md). Groups that wait for its shards follow "
                "no later change meanwhile, and a change cannot be taken "
                "back.%s\n",
                s->force ? "changed all the same" : "not changed",
                s->force ? ""
                         : " Start its replicas with `flotilla up`; --force "
                           "changes all the same.");
    }
    return dead == 0 || s->force;
}

static bool make(const struct shards *s, const struct ctl_change *what,
                 uint64_t *number)
{
    enum err rc = ask_change(s->client, what, left_ms(s, TIMEOUT_MS), number);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: not changed: %s\n", refusal(what->kind, rc));
        return false;
    }
    printf("configuration %llu\n", (unsigned long long)*number);
    fflush(stdout);
    return true;
}

/* On a terminal it always waits until the shards have arrived. */
static int change(const struct shards *s, const struct ctl_change *what)
{
    uint64_t number = 0;
    if (!all_can_move(s, what) || !make(s, what, &number)) {
        return EXIT_FAILED;
    }
    bool wait = s->wait || isatty(STDOUT_FILENO);
    return !wait || moves_wait(s->client, number, left_ms(s, 0),
                               (uint32_t)s->timeout_ms)
               ? EXIT_DONE
               : EXIT_FAILED;
}

/* GID=HOST:PORT,HOST:PORT,... ; replicas are numbered from 1 in that order. */
static bool parse_group(struct arena *a, char *text, struct ctl_group *group)
{
    char *equals = strchr(text, '=');
    uint64_t gid = 0;
    if (equals == NULL) {
        return false;
    }
    *equals = 0;
    if (!args_number(text, 1, UINT32_MAX, &gid)) {
        return false;
    }
    group->gid = (ctl_gid)gid;
    group->servers = arena_array(a, CTL_SERVERS_MAX, sizeof *group->servers);
    char *rest = equals + 1;
    for (char *one; (one = strsep(&rest, ",")) != NULL;) {
        if (group->servers_count == CTL_SERVERS_MAX ||
            strrchr(one, ':') == NULL || strlen(one) >= NET_ADDRESS_SIZE_MAX) {
            return false;
        }
        struct ctl_server *s = &group->servers[group->servers_count++];
        s->id = group->servers_count;
        s->address = slice_text(one);
    }
    return true;
}

/* Who never comes would hold its shards, and all later changes, for ever. */
static bool runs(const struct shards *s, const struct ctl_group *group)
{
    struct health *h = mem_alloc(sizeof *h);
    health_add(h, group);
    health_ask(h, s->client, least(LOOK_MS, left_ms(s, LOOK_MS)));
    struct health_group g = health_of(h, group->gid);
    look_end(h);
    if (!health_has_majority(&g)) {
        fprintf(stderr,
                "flotilla: not changed: group %u does not run there: %u of %u "
                "addresses answer for it; start it first\n",
                g.gid, g.answer, g.all);
    }
    return health_has_majority(&g);
}

static bool all_run(const struct shards *s, const struct ctl_change *what)
{
    for (uint32_t i = 0; i < what->join_count; i++) {
        if (!runs(s, &what->join[i])) {
            return false;
        }
    }
    return true;
}

static int join(const struct shards *s, char **words, uint32_t count)
{
    struct arena arena = {0};
    struct ctl_change what = {.kind = CTL_JOIN, .join_count = count};
    what.join = arena_array(&arena, count, sizeof *what.join);
    bool ok = count > 0;
    for (uint32_t i = 0; i < count && ok; i++) {
        what.join[i] = (struct ctl_group){0};
        ok = parse_group(&arena, words[i], &what.join[i]);
    }
    int status = EXIT_USAGE;
    if (ok) {
        status = all_run(s, &what) ? change(s, &what) : EXIT_FAILED;
    } else {
        fprintf(stderr, "flotilla: join wants GROUP=HOST:PORT,HOST:PORT,...\n");
    }
    arena_free(&arena);
    return status;
}

static int leave(const struct shards *s, char **words, uint32_t count)
{
    struct ctl_owner gids[CTL_GROUPS_MAX];
    struct ctl_change what = {
        .kind = CTL_LEAVE, .leave = gids, .leave_count = count};
    bool ok = count > 0 && count <= CTL_GROUPS_MAX;
    for (uint32_t i = 0; i < count && ok; i++) {
        uint64_t gid = 0;
        ok = args_number(words[i], 1, UINT32_MAX, &gid);
        gids[i].gid = (ctl_gid)gid;
    }
    if (!ok) {
        fprintf(stderr, "flotilla: leave wants the numbers of groups\n");
        return EXIT_USAGE;
    }
    return change(s, &what);
}

static int move(const struct shards *s, char **words, uint32_t count)
{
    uint64_t shard = 0, gid = 0;
    if (count != 2 || !args_number(words[0], 0, CTL_SHARDS_MAX - 1, &shard) ||
        !args_number(words[1], 1, UINT32_MAX, &gid)) {
        fprintf(stderr, "flotilla: move wants a SHARD and a GROUP\n");
        return EXIT_USAGE;
    }
    if (shard >= skv_client_shard_count(s->client)) {
        fprintf(stderr,
                "flotilla: there is no shard %s: they have the numbers 0 to "
                "%u\n",
                words[0], skv_client_shard_count(s->client) - 1);
        return EXIT_FAILED;
    }
    const struct ctl_change what = {.kind = CTL_MOVE,
                                    .move_shard = (uint32_t)shard,
                                    .move_gid = (ctl_gid)gid};
    return change(s, &what);
}

static int weigh(const struct shards *s, char **words, uint32_t count)
{
    uint64_t gid = 0, weight = 0;
    if (count != 2 || !args_number(words[0], 1, UINT32_MAX, &gid) ||
        !args_number(words[1], 1, CTL_WEIGHT_MAX, &weight)) {
        fprintf(stderr,
                "flotilla: weight wants a GROUP and a number from 1 to %u\n",
                CTL_WEIGHT_MAX);
        return EXIT_USAGE;
    }
    const struct ctl_change what = {
        .kind = CTL_WEIGH,
        .weigh = {.gid = (ctl_gid)gid, .weight = (uint32_t)weight}};
    return change(s, &what);
}

/* "50MiB" or "1GiB", a second, or "off": 0. */
static bool parse_rate(char *text, uint64_t *rate)
{
    enum { MIB = 20, GIB = 30, RATE_MAX = 1 << 20 };
    char *unit = text + strspn(text, "0123456789");
    int shift = strcmp(unit, "GiB") == 0 ? GIB : MIB;
    *rate = 0;
    if (strcmp(text, "off") == 0) {
        return true;
    }
    if (shift == MIB && strcmp(unit, "MiB") != 0) {
        return false;
    }
    *unit = 0;
    if (!args_number(text, 1, RATE_MAX, rate)) {
        return false;
    }
    *rate <<= shift;
    return true;
}

static int limit(const struct shards *s, char **words, uint32_t count)
{
    struct ctl_change what = {.kind = CTL_LIMIT};
    if (count != 1 || !parse_rate(words[0], &what.limit)) {
        fprintf(stderr,
                "flotilla: rate wants what may arrive at a group in a second, "
                "as 50MiB or 1GiB, or off\n");
        return EXIT_USAGE;
    }
    /* Moves that are on their way go on: there is nothing to wait for. */
    uint64_t number = 0;
    return make(s, &what, &number) ? EXIT_DONE : EXIT_FAILED;
}

static int run(const struct shards *s, const char *action, char **words,
               uint32_t count)
{
    if (strcmp(action, "join") == 0) {
        return join(s, words, count);
    }
    if (strcmp(action, "leave") == 0) {
        return leave(s, words, count);
    }
    if (strcmp(action, "move") == 0) {
        return move(s, words, count);
    }
    if (strcmp(action, "weight") == 0) {
        return weigh(s, words, count);
    }
    if (strcmp(action, "rate") == 0) {
        return limit(s, words, count);
    }
    uint64_t number = CTL_LATEST;
    if (strcmp(action, "query") != 0 || count > 1 ||
        (count == 1 && !args_number(words[0], 0, UINT64_MAX, &number))) {
        fprintf(stderr,
                "flotilla: shards wants join, leave, move, weight, rate or "
                "query; --help says more\n");
        return EXIT_USAGE;
    }
    return query(s, number);
}

int cmd_shards(int argc, char **argv)
{
    struct cluster_access access = {0};
    struct shards s = {.began_ms = process_now_ms()};
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&access),
        {"json", 'j', ARG_FLAG, &s.json, NULL, "query: print JSON"},
        {"wait", 'w', ARG_FLAG, &s.wait, NULL,
         "return when the shards have arrived (on a terminal: always, with "
         "bars), or with 1 and what is missing"},
        {"timeout", 't', ARG_NUMBER, &s.timeout_ms, "MS",
         "give up after so many milliseconds (default: 10000 for an answer; "
         "--wait: when nothing has moved for 60000)"},
        {"force", 0, ARG_FLAG, &s.force, NULL,
         "change also what concerns a group that has no majority now"},
        {0}};
    const struct arg_spec spec = {
        .usage = "shards [OPTION...] query [NUMBER] | join GROUP=ADDR,ADDR... "
                 "| leave GROUP... | move SHARD GROUP | weight GROUP W | rate "
                 "50MiB|off",
        .about = "Shows a configuration (the newest, or NUMBER), or makes the "
                 "next: groups join and\nleave, shards are spread evenly with "
                 "the fewest moves; move places one by hand.\nA group of "
                 "weight 3 gets three times what one of weight 1 gets. rate: "
                 "so much may arrive\nat each group in a second, of moves on "
                 "their way, too; off: no limit, but for clients.\nShards are "
                 "in use while they move; `flotilla status` shows how far they "
                 "are.\nA change that concerns a group without a majority is "
                 "refused: what is in its shards\ncannot move, and who waits "
                 "for it follows no later change (--force).",
        .options = options,
        .positional_min = 1,
        .positional_max = 1 + CTL_GROUPS_MAX};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    char certs_dir[PATH_MAX];
    if (s.timeout_ms > UINT32_MAX) {
        fprintf(stderr, "usage: flotilla %s\n", spec.usage);
        return EXIT_USAGE;
    }
    /* All of it: a message names what was asked for. */
    s.client = cluster_connect(&access, "admin",
                               s.timeout_ms == 0 ? TIMEOUT_MS
                                                 : (uint32_t)s.timeout_ms);
    if (s.client == NULL) {
        return EXIT_FAILED;
    }
    /* It worked a moment ago. */
    status = cluster_client_config(&access, "admin", &s.where, certs_dir)
                 ? run(&s, argv[first], argv + first + 1,
                       (uint32_t)(argc - first - 1))
                 : EXIT_FAILED;
    skv_client_free(s.client);
    return status;
}
