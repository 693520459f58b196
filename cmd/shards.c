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
#include "cmd/moves.h"

enum { TIMEOUT_MS = 10000, LOOK_MS = 3000 };

static uint32_t count_of(const struct ctl_config *c, ctl_gid gid)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->shards_count; i++) {
        count += c->shards[i].gid == gid;
    }
    return count;
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
        /* Runs, so that 128 shards fit on a line. */
        for (uint32_t i = 0; i < c->shards_count; i++) {
            uint32_t from = i;
            while (i < c->shards_count && c->shards[i].gid == group->gid) {
                i++;
            }
            if (i - from == 1) {
                printf(" %u", from);
            } else if (i > from) {
                printf(" %u-%u", from, i - 1);
            }
        }
        printf("\n");
        for (uint32_t s = 0; s < group->servers_count; s++) {
            printf("  replica %llu at %.*s\n",
                   (unsigned long long)group->servers[s].id,
                   (int)group->servers[s].address.size,
                   (const char *)group->servers[s].address.data);
        }
    }
}

static void print_json(const struct ctl_config *c)
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
        json_array_append_new(groups, json_pack("{s:i, s:i, s:o}", "group",
                                                (int)gid, "weight",
                                                (int)ctl_config_weight(c, gid),
                                                "servers", servers));
    }
    json_t *j = json_pack(
        "{s:I, s:I, s:o, s:o}", "number", (json_int_t)c->number, "move_rate",
        (json_int_t)c->move_rate, "shards", shards, "groups", groups);
    json_dumpf(j, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(j);
}

static int query(struct skv_client *client, uint64_t number, bool json)
{
    struct arena arena = {0};
    struct ctl_config config;
    enum err rc = ask_config(client, number, TIMEOUT_MS, &arena, &config);
    if (rc == ERR_OK) {
        json ? print_json(&config) : print_text(&config);
    } else {
        fprintf(stderr, "flotilla: cannot ask the controllers: %s\n",
                rc == ERR_NOTFOUND ? "there is no such configuration"
                                   : err_text(rc));
    }
    arena_free(&arena);
    return rc == ERR_OK ? EXIT_DONE : EXIT_FAILED;
}

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

/* `wait`: until all shards have arrived; on a terminal anyway. */
static int change(struct skv_client *client, const struct ctl_change *what,
                  bool wait)
{
    uint64_t number = 0;
    enum err rc = ask_change(client, what, TIMEOUT_MS, &number);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: not changed: %s\n", refusal(what->kind, rc));
        return EXIT_FAILED;
    }
    printf("configuration %llu\n", (unsigned long long)number);
    fflush(stdout);
    if (!wait && !isatty(STDOUT_FILENO)) {
        return EXIT_DONE;
    }
    rc = moves_wait(client, number);
    if (rc != ERR_OK) {
        fprintf(stderr,
                "flotilla: cannot see whether the shards have arrived: %s; "
                "`flotilla status` shows them\n",
                err_text(rc));
        return EXIT_FAILED;
    }
    return EXIT_DONE;
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

/* A shard that is on its way to a group cannot be called back: who never comes
 * would hold it, and all later changes, for ever. */
static bool runs(struct skv_client *client, const struct ctl_group *group)
{
    struct arena arena = {0};
    struct ask_replica replicas[CTL_SERVERS_MAX] = {0};
    uint32_t good = 0;
    for (uint32_t i = 0; i < group->servers_count; i++) {
        struct slice address = group->servers[i].address;
        replicas[i].gid = group->gid;
        memcpy(replicas[i].address, address.data, address.size);
    }
    ask_statuses(client, replicas, group->servers_count, LOOK_MS, &arena);
    for (uint32_t i = 0; i < group->servers_count; i++) {
        good +=
            replicas[i].rc == ERR_OK && replicas[i].status.gid == group->gid;
    }
    arena_free(&arena);
    if (good <= group->servers_count / 2) {
        fprintf(stderr,
                "flotilla: not changed: group %u does not run there: %u of %u "
                "addresses answer for it; start it first\n",
                group->gid, good, group->servers_count);
    }
    return good > group->servers_count / 2;
}

static bool all_run(struct skv_client *client, const struct ctl_change *what)
{
    for (uint32_t i = 0; i < what->join_count; i++) {
        if (!runs(client, &what->join[i])) {
            return false;
        }
    }
    return true;
}

static int join(struct skv_client *client, char **words, uint32_t count,
                bool wait)
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
        status =
            all_run(client, &what) ? change(client, &what, wait) : EXIT_FAILED;
    } else {
        fprintf(stderr, "flotilla: join wants GROUP=HOST:PORT,HOST:PORT,...\n");
    }
    arena_free(&arena);
    return status;
}

static int leave(struct skv_client *client, char **words, uint32_t count,
                 bool wait)
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
    return change(client, &what, wait);
}

static int move(struct skv_client *client, char **words, uint32_t count,
                bool wait)
{
    uint64_t shard = 0, gid = 0;
    if (count != 2 || !args_number(words[0], 0, CTL_SHARDS_MAX - 1, &shard) ||
        !args_number(words[1], 1, UINT32_MAX, &gid)) {
        fprintf(stderr, "flotilla: move wants a SHARD and a GROUP\n");
        return EXIT_USAGE;
    }
    if (shard >= skv_client_shard_count(client)) {
        fprintf(stderr,
                "flotilla: there is no shard %s: they have the numbers 0 to "
                "%u\n",
                words[0], skv_client_shard_count(client) - 1);
        return EXIT_FAILED;
    }
    const struct ctl_change what = {.kind = CTL_MOVE,
                                    .move_shard = (uint32_t)shard,
                                    .move_gid = (ctl_gid)gid};
    return change(client, &what, wait);
}

static int weigh(struct skv_client *client, char **words, uint32_t count,
                 bool wait)
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
    return change(client, &what, wait);
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

static int limit(struct skv_client *client, char **words, uint32_t count)
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
    enum err rc = ask_change(client, &what, TIMEOUT_MS, &number);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: not changed: %s\n", err_text(rc));
        return EXIT_FAILED;
    }
    printf("configuration %llu\n", (unsigned long long)number);
    return EXIT_DONE;
}

static int run(struct skv_client *client, const char *action, char **words,
               uint32_t count, bool json, bool wait)
{
    if (strcmp(action, "join") == 0) {
        return join(client, words, count, wait);
    }
    if (strcmp(action, "leave") == 0) {
        return leave(client, words, count, wait);
    }
    if (strcmp(action, "move") == 0) {
        return move(client, words, count, wait);
    }
    if (strcmp(action, "weight") == 0) {
        return weigh(client, words, count, wait);
    }
    if (strcmp(action, "rate") == 0) {
        return limit(client, words, count);
    }
    uint64_t number = CTL_LATEST;
    if (strcmp(action, "query") != 0 || count > 1 ||
        (count == 1 && !args_number(words[0], 0, UINT64_MAX, &number))) {
        fprintf(stderr,
                "flotilla: shards wants join, leave, move, weight, rate or "
                "query; --help says more\n");
        return EXIT_USAGE;
    }
    return query(client, number, json);
}

int cmd_shards(int argc, char **argv)
{
    struct cluster_access access = {0};
    bool json = false, wait = false;
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&access),
        {"json", 'j', ARG_FLAG, &json, NULL, "query: print JSON"},
        {"wait", 'w', ARG_FLAG, &wait, NULL,
         "return when the shards have arrived (on a terminal: always, with "
         "bars)"},
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
                 "are.",
        .options = options,
        .positional_min = 1,
        .positional_max = 1 + CTL_GROUPS_MAX};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    struct skv_client *client = cluster_connect(&access, "admin", TIMEOUT_MS);
    if (client == NULL) {
        return EXIT_FAILED;
    }
    status = run(client, argv[first], argv + first + 1,
                 (uint32_t)(argc - first - 1), json, wait);
    skv_client_free(client);
    return status;
}
